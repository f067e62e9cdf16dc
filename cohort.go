package gvstream

import (
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A fan is viewers whose cursors rest at the head of one session. The crew gives them
// the next events all at once: the log is read once, under one lock, and they share
// what was read. Whoever is elsewhere, or whose link has something else to say, leaves
// the fan and is served by its link as ever. The session's lock protects it.
type fan struct {
	s       *hubSession
	place   sched.Element[*fan] // in one of the session's queues
	at      uint64              // where its cursors are
	cursors []*cursor
	flying  bool // served now: their links are claimed, and cursors is read without the lock
	left    bool // a cursor left meanwhile
	page    *page
	epoch   string
	head    uint64
}

// join has a cursor rest with others.
func (s *hubSession) join(c *cursor) {
	f := s.resting.Back()
	if f == nil || f.at != c.seq || len(f.cursors) >= s.h.sizes.fan {
		f = &fan{s: s, at: c.seq}
		s.resting.Push(&f.place, f)
	}
	f.cursors = append(f.cursors, c)
	c.fan, c.pusher = f, c.hv.pusher.Load()
	s.atRest++
}

// leave takes the cursor out of its fan, or out of the queue of those that wait.
func (c *cursor) leave() {
	c.idle.Remove()
	f := c.fan
	if f == nil {
		return
	}
	c.fan = nil
	if f.flying {
		f.left = true
		return
	}
	c.s.atRest--
	f.keep(func(d *cursor) bool { return d != c })
	if len(f.cursors) == 0 {
		f.place.Remove()
	}
}

// keep leaves those cursors in the fan that are to stay, in their order.
func (f *fan) keep(stays func(c *cursor) bool) {
	n := 0
	for i, c := range f.cursors {
		if !stays(c) {
			continue
		}
		if n < i {
			f.cursors[n] = c
		}
		n++
	}
	clear(f.cursors[n:])
	f.cursors = f.cursors[:n]
}

// work gives fans what is next, as the hub's crew, for one turn.
func (s *hubSession) work(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range pushTurn {
		f, others := s.launch()
		if f == nil {
			return
		}
		loaded := f.load()
		s.mu.Unlock()
		for _, c := range others { // whoever wakes wants the lock
			c.hv.ready(&c.task)
		}
		if loaded {
			f.send(now)
		}
		s.mu.Lock()
		f.land()
	}
	s.callCrew()
}

// callCrew has the crew come if there is a fan that is behind the head.
func (s *hubSession) callCrew() {
	if s.late() != nil {
		s.h.crew.add(&s.news, s)
	}
}

// late is the next fan that is behind the head, or nil.
func (s *hubSession) late() *fan {
	if f := s.resting.Front(); f != nil && f.at < s.log.head {
		return f
	}
	return s.behind.Front()
}

// launch takes the next fan that is behind the head, and returns those of its cursors
// too that leave it, since their own links serve them. If another fan is behind,
// somebody else of the crew may take that.
func (s *hubSession) launch() (f *fan, others []*cursor) {
	if f = s.late(); f == nil {
		return nil, nil
	}
	f.place.Remove()
	s.callCrew()
	s.atRest -= len(f.cursors)
	held := f.at+1 >= s.log.first() // else its agent is asked
	f.keep(func(c *cursor) bool {
		if held && !c.due && c.claim() {
			return true
		}
		c.fan = nil
		others = append(others, c)
		return false
	})
	f.flying, f.left = true, false
	return f, others
}

// claim makes the caller the one that may send to the viewer, if its link is pushed
// and has nothing else to say.
func (c *cursor) claim() bool { return c.pusher != nil && c.pusher.claim() }

// load reads the next page for the cursors, if there is one.
func (f *fan) load() bool {
	s := f.s
	if len(f.cursors) == 0 || f.at >= s.log.head {
		return false
	}
	f.page, f.epoch, f.head = s.read(&s.log, f.at), s.epoch, s.log.head
	f.at = f.page.last
	for _, c := range f.cursors {
		c.seq = f.at
	}
	return true
}

// send sends each viewer a payload of its own, with events that all share.
func (f *fan) send(now time.Time) {
	first := EventBatchPayload{
		SessionID: f.s.id, Epoch: f.epoch, FirstSeq: f.page.first, LastSeq: f.page.last, HeadSeq: f.head,
		Events: f.page.open(), Gaps: f.page.gaps,
	}
	var batches []EventBatchPayload // a few at a time: who keeps one keeps its neighbours
	for _, c := range f.cursors {
		if len(batches) == 0 {
			batches = make([]EventBatchPayload, 8)
		}
		b := &batches[0]
		batches = batches[1:]
		*b = first
		b.ViewerID, b.Link = c.hv.viewerID, c.hv.id
		c.pusher.give(now, b)
	}
}

// land lets those go that left meanwhile, and has the others rest again.
func (f *fan) land() {
	s := f.s
	f.flying, f.page = false, nil
	if f.left {
		f.keep(func(c *cursor) bool {
			if c.fan != f {
				c.pusher.unclaim()
			}
			return c.fan == f
		})
	}
	for _, c := range f.cursors {
		c.pusher.unclaim()
	}
	if len(f.cursors) > 0 {
		s.atRest += len(f.cursors)
		s.put(f)
	}
	s.leaveOff()
}

// put puts a fan where it is found when there is more: at the head behind the others,
// which are not ahead of it, or among those that have not got all yet.
func (s *hubSession) put(f *fan) {
	last := s.resting.Back()
	switch {
	case f.at < s.log.head:
		s.behind.Push(&f.place, f)
	case last == nil || last.at != f.at || len(last.cursors)+len(f.cursors) > s.h.sizes.fan:
		s.resting.Push(&f.place, f)
	default: // two that became small
		for _, c := range f.cursors {
			c.fan = last
		}
		last.cursors = append(last.cursors, f.cursors...)
	}
}
