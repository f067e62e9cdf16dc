package gvstream

import "time"

// A fan is viewers whose cursors rest at the head of one session. The crew gives them
// the next events all at once: the log is read once, under one lock, and they share
// what was read. Whoever is elsewhere, or whose link has something else to say, leaves
// the fan and is served by its link as ever. The session's lock protects it.
type fan struct {
	s       *hubSession
	place   place[*fan] // in the session's queue of those that rest
	at      uint64      // where its cursors are
	cursors []*cursor
	flying  bool // served now: their links are claimed, and cursors is read without the lock
	left    bool // a cursor left meanwhile
	page    *page
	epoch   string
	head    uint64
}

// join has a cursor rest with others.
func (s *hubSession) join(c *cursor) {
	f := s.resting.back()
	if f == nil || f.at != c.seq || len(f.cursors) >= s.h.sizes.fan {
		f = &fan{s: s, at: c.seq}
		s.resting.push(&f.place, f)
	}
	f.cursors = append(f.cursors, c)
	c.fan, c.pusher = f, c.hv.pusher.Load()
	s.atRest++
}

// leave takes the cursor out of its fan, or out of the queue of those that wait.
func (c *cursor) leave() {
	c.idle.leave()
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
		f.place.leave()
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

// work gives the news to those who rest, as the hub's crew.
func (s *hubSession) work(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := s.launch(); f != nil; f = s.launch() {
		for f.load() {
			s.mu.Unlock()
			f.send(now)
			s.mu.Lock()
			f.settle()
		}
		f.land()
	}
}

// launch takes the fan that has rested longest, if it is behind the head. If another
// one is, somebody else of the crew may take that.
func (s *hubSession) launch() *fan {
	f := s.resting.front()
	if f == nil || f.at >= s.log.head {
		return nil
	}
	f.place.leave()
	if next := s.resting.front(); next != nil && next.at < s.log.head {
		s.h.crew.add(&s.news, s)
	}
	s.atRest -= len(f.cursors)
	held := f.held()
	f.keep(func(c *cursor) bool {
		if held && !c.due && c.claim() {
			return true
		}
		c.fan = nil
		c.hv.ready(&c.task)
		return false
	})
	f.flying, f.left = true, false
	return f
}

// held reports whether the hub's log has what comes next.
func (f *fan) held() bool { return f.at+1 >= f.s.log.first() }

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
		Gaps: f.page.gaps, encoded: f.page.seal(),
	}
	open(&first)
	batches := make([]EventBatchPayload, len(f.cursors))
	for i, c := range f.cursors {
		b := &batches[i]
		*b = first
		b.ViewerID, b.Link = c.hv.viewerID, c.hv.id
		c.pusher.give(now, b)
	}
}

// settle lets those go that left meanwhile, and before there is more those with
// something else to say, or all if the log has lost what comes next.
func (f *fan) settle() {
	s := f.s
	more, held := f.at < s.log.head, f.held()
	if s.h.without.fanLeft {
		f.left = false
	}
	if !more && held && !s.ended && !f.left {
		return
	}
	f.keep(func(c *cursor) bool {
		if c.fan == f && held && !s.ended && !(more && c.pusher.news()) {
			return true
		}
		if c.fan == f {
			c.fan = nil
			c.hv.ready(&c.task)
		}
		c.pusher.unclaim()
		return false
	})
}

// land has the cursors rest again.
func (f *fan) land() {
	f.flying, f.page = false, nil
	if len(f.cursors) == 0 {
		return
	}
	s := f.s
	for _, c := range f.cursors {
		c.pusher.unclaim()
	}
	s.atRest += len(f.cursors)
	last := s.resting.back()
	if last == nil || last.at != f.at || len(last.cursors)+len(f.cursors) > s.h.sizes.fan {
		s.resting.push(&f.place, f)
	} else { // two that became small
		for _, c := range f.cursors {
			c.fan = last
		}
		last.cursors = append(last.cursors, f.cursors...)
	}
	s.leaveOff()
}
