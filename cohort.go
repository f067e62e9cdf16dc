package gvstream

import (
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A cohort is viewers whose cursors rest at the head of one session. The workers give them
// the next events all at once: the log is read once, under one lock, and they share
// what was read. Whoever is elsewhere, or whose link has something else to say, leaves
// the cohort and is served by its link as ever. The session's lock protects it.
type cohort struct {
	s       *hubSession
	place   sched.Element[*cohort] // in one of the session's queues
	at      uint64                 // where its cursors are
	cursors []*cursor
	sending bool // served now: their links are claimed, and cursors is read without the lock
	left    bool // a cursor left meanwhile
	page    *page
	epoch   string
	head    uint64
}

// joinLocked has a cursor rest with others.
func (s *hubSession) joinLocked(c *cursor) {
	f := s.atHead.Back()
	if f == nil || f.at != c.seq || len(f.cursors) >= s.h.sizes.cohort {
		f = &cohort{s: s, at: c.seq}
		s.atHead.Push(&f.place, f)
	}
	f.cursors = append(f.cursors, c)
	c.cohort, c.pusher = f, c.hv.pusher.Load()
	s.parked++
}

// leaveLocked takes the cursor out of its cohort, or out of the queue of those that wait.
func (c *cursor) leaveLocked() {
	c.idle.Remove()
	f := c.cohort
	if f == nil {
		return
	}
	c.cohort = nil
	if f.sending {
		f.left = true
		return
	}
	c.s.parked--
	f.keepLocked(func(d *cursor) bool { return d != c })
	if len(f.cursors) == 0 {
		f.place.Remove()
	}
}

// keepLocked leaves those cursors in the cohort that are to stay, in their order.
func (f *cohort) keepLocked(stays func(c *cursor) bool) {
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

// work gives fans what is next, as the hub's workers, for one turn.
func (s *hubSession) work(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range pushTurn {
		f, others := s.beginSendLocked()
		if f == nil {
			return
		}
		loaded := f.loadLocked()
		s.mu.Unlock()
		for _, c := range others { // whoever wakes wants the lock
			c.hv.ready(&c.task)
		}
		if loaded {
			f.send(now)
		}
		s.mu.Lock()
		f.endSendLocked()
	}
	s.callWorkersLocked()
}

// callWorkersLocked has the workers come if there is a cohort that is behind the head.
func (s *hubSession) callWorkersLocked() {
	if s.nextBehindLocked() != nil {
		s.h.workers.add(&s.jobPlace, s)
	}
}

// nextBehindLocked is the next cohort that is behind the head, or nil.
func (s *hubSession) nextBehindLocked() *cohort {
	if f := s.atHead.Front(); f != nil && f.at < s.log.head {
		return f
	}
	return s.lagging.Front()
}

// beginSendLocked takes the next cohort that is behind the head, and returns those of its cursors
// too that leave it, since their own links serve them. If another cohort is behind,
// somebody else of the workers may take that.
func (s *hubSession) beginSendLocked() (f *cohort, others []*cursor) {
	if f = s.nextBehindLocked(); f == nil {
		return nil, nil
	}
	f.place.Remove()
	s.callWorkersLocked()
	s.parked -= len(f.cursors)
	held := f.at+1 >= s.log.first() // else its agent is asked
	f.keepLocked(func(c *cursor) bool {
		if held && !c.statusPending && c.claimLocked() {
			return true
		}
		c.cohort = nil
		others = append(others, c)
		return false
	})
	f.sending, f.left = true, false
	return f, others
}

// claimLocked makes the caller the one that may send to the viewer, if its link is pushed
// and has nothing else to say.
func (c *cursor) claimLocked() bool { return c.pusher != nil && c.pusher.claim() }

// loadLocked reads the next page for the cursors, if there is one.
func (f *cohort) loadLocked() bool {
	s := f.s
	if len(f.cursors) == 0 || f.at >= s.log.head {
		return false
	}
	f.page, f.epoch, f.head = s.readLocked(&s.log, f.at), s.epoch, s.log.head
	f.at = f.page.last
	for _, c := range f.cursors {
		c.seq = f.at
	}
	return true
}

// send sends each viewer a payload of its own, with events that all share.
func (f *cohort) send(now time.Time) {
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
		c.pusher.write(now, b)
	}
}

// endSendLocked lets those go that left meanwhile, and has the others rest again.
func (f *cohort) endSendLocked() {
	s := f.s
	f.sending, f.page = false, nil
	if f.left {
		f.keepLocked(func(c *cursor) bool {
			if c.cohort != f {
				c.pusher.unclaim()
			}
			return c.cohort == f
		})
	}
	for _, c := range f.cursors {
		c.pusher.unclaim()
	}
	if len(f.cursors) > 0 {
		s.parked += len(f.cursors)
		s.putLocked(f)
	}
	s.dropSharedPageLocked()
}

// putLocked puts a cohort where it is found when there is more: at the head behind the others,
// which are not ahead of it, or among those that have not got all yet.
func (s *hubSession) putLocked(f *cohort) {
	last := s.atHead.Back()
	switch {
	case f.at < s.log.head:
		s.lagging.Push(&f.place, f)
	case last == nil || last.at != f.at || len(last.cursors)+len(f.cursors) > s.h.sizes.cohort:
		s.atHead.Push(&f.place, f)
	default: // two that became small
		for _, c := range f.cursors {
			c.cohort = last
		}
		last.cursors = append(last.cursors, f.cursors...)
	}
}
