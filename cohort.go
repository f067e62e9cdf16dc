package gvstream

import (
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// This file serves the many viewers of one session that have got everything and wait for more.
// For one event each of a thousand viewers would otherwise be woken, take the session's lock
// and find the same page. Instead acceptLocked gives the session to the hub's workers as a job,
// and they send to a cohort at a time. It is a shortcut: what it sends is what cursor.next
// would, and a cursor that does not fit in is served by its own link.

// A cohort is up to maxCohort cursors of one session at the same position. The log is read
// once for them, under one lock, and all are given one batch. The session's lock
// protects it, except where a field says otherwise.
//
//	state     in queue     what moves it there
//	resting   atHead       joinLocked makes it; endSendLocked, if it got everything
//	sending   none         beginSendLocked, a worker
//	lagging   lagging      endSendLocked, if more was accepted meanwhile
//	over      none         its last cursor left, or another cohort took them in
//
// The cohorts in atHead are in the order of their positions, the furthest behind first: each
// is pushed with the position of the head, which only grows. So the first one says whether any
// is behind. A new epoch, which begins lower, dissolves them all (wakeAllLocked).
type cohort struct {
	s       *hubSession
	place   sched.Element[*cohort] // in one of the session's queues
	seq     uint64                 // where its cursors are
	cursors []*cursor

	sending bool // its cursors' links are claimed, and the worker reads cursors without the lock
	left    bool // a cursor left while it was sending, and is still in cursors

	// What is being sent; the worker reads these without the lock as well. Only beginSendLocked
	// and endSendLocked write them, on the same goroutine.
	page  *page
	batch Payload // made of it
}

// joinLocked makes a cursor at the head rest with others. Cohorts are kept small so that a
// worker never sends for long, and several can share the work of one session.
func (s *hubSession) joinLocked(c *cursor) {
	co := s.atHead.Back()
	if co == nil || co.seq != c.sent || len(co.cursors) >= s.h.sizes.cohort {
		co = &cohort{s: s, seq: c.sent}
		s.atHead.Push(&co.place, co)
	}
	co.cursors = append(co.cursors, c)
	c.cohort, c.pusher = co, c.hv.pusher.Load()
	s.parked++
}

// leaveLocked takes the cursor out of its cohort, or out of the queue of those that wait. While
// the cohort is sending, its list of cursors can't change: the cursor is only marked as having
// left, which endSendLocked then carries out. The batch on its way may still reach the viewer,
// as one that was sent just before might: it is known, or the viewer sees a hole (rule 14).
func (c *cursor) leaveLocked() {
	c.idle.Remove()
	co := c.cohort
	if co == nil {
		return
	}
	c.cohort = nil
	if co.sending {
		co.left = true
		return
	}
	c.s.parked--
	co.keepLocked(func(d *cursor) bool { return d != c })
	if len(co.cursors) == 0 {
		co.place.Remove()
	}
}

// keepLocked leaves those cursors in the cohort that are to stay, in their order. It is called
// for each batch, and mostly all stay: then it writes nothing.
func (co *cohort) keepLocked(stays func(c *cursor) bool) {
	n := 0
	for i, c := range co.cursors {
		if !stays(c) {
			continue
		}
		if n < i {
			co.cursors[n] = c
		}
		n++
	}
	clear(co.cursors[n:])
	co.cursors = co.cursors[:n]
}

// work sends to the session's cohorts what comes next. It stops after pushTurn of them, so that
// other sessions and links get their turns. It may run on several workers at once, each with a
// cohort of its own. The session's lock is free while payloads are sent.
func (s *hubSession) work(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range pushTurn {
		co, others := s.beginSendLocked(now)
		if co == nil {
			return
		}
		co.sendLocked(now, others)
		co.endSendLocked(now)
	}
	s.callWorkersLocked()
}

// callWorkersLocked makes the session a job for the workers if a cohort is behind the head. It
// is called after whatever may have left one behind: events were accepted, or a worker's turn
// is over.
func (s *hubSession) callWorkersLocked() {
	if s.nextBehindLocked() != nil {
		s.h.workers.add(&s.jobPlace, s)
	}
}

// nextBehindLocked returns the next cohort that is behind the head, or nil. Those that got
// everything the last time come before those that were sent something since: they have waited
// longer.
func (s *hubSession) nextBehindLocked() *cohort {
	if co := s.atHead.Front(); co != nil && co.seq < s.log.head {
		return co
	}
	return s.lagging.Front()
}

// beginSendLocked takes the next cohort that is behind the head, with the page that comes next
// for those of its cursors that have room for it and whose links it could claim. The others
// leave the cohort and are returned: their own links serve them, since they are run, are
// sending something else, owe a status that comes first, have less room or none, or are so far
// behind that the agent has to be asked. If another cohort is behind, a second worker may take
// that.
//
// The cursors count as having been sent the page while the lock is still held: a watch that moves
// a cursor during the sending sets a new position, which must not be overwritten after it.
func (s *hubSession) beginSendLocked(now time.Time) (co *cohort, others []*cursor) {
	if co = s.nextBehindLocked(); co == nil {
		return nil, nil
	}
	co.place.Remove()
	s.callWorkersLocked()
	s.parked -= len(co.cursors)
	co.page = co.readLocked()
	co.keepLocked(func(c *cursor) bool {
		if co.page != nil && !c.statusPending && c.hasRoomLocked(co.page) && c.claimLocked() {
			c.sentLocked(now, co.page)
			return true
		}
		c.cohort = nil
		others = append(others, c)
		return false
	})
	if len(co.cursors) > 0 {
		co.batch, co.seq = s.batchLocked(co.page, s.epoch, s.log.head), co.page.last
	}
	co.sending, co.left = true, false
	return co, others
}

// readLocked returns the next page for the cohort: as large as the first of its cursors that has
// any room may be sent. It is nil if none has, or the log no longer has what comes next.
func (co *cohort) readLocked() *page {
	l := &co.s.log
	if co.seq >= l.head || co.seq+1 < l.first() {
		return nil
	}
	for _, c := range co.cursors {
		if events, bytes, first := c.allowed(c.s.h.sizes.batchBytes); !c.window.full {
			if p := co.s.readLocked(l, span{after: co.seq, until: l.head, events: events, bytes: bytes, first: first}); p != nil {
				return p
			}
		}
	}
	return nil
}

// hasRoomLocked reports whether the viewer has room for a page.
func (c *cursor) hasRoomLocked(p *page) bool {
	return !c.window.full && p.fits(c.allowed(c.s.h.sizes.batchBytes))
}

// claimLocked makes the caller the one that may send to the viewer, if its link is pushed
// and has nothing else to send. The latter keeps the order of rule 7: no batch overtakes an
// answer or a status that waits.
func (c *cursor) claimLocked() bool { return c.pusher != nil && c.pusher.tryClaim() }

// sendLocked wakes the others, and sends the batch to each viewer. The session's lock is given up
// meanwhile, since the others take it as soon as they wake, and the callers' send functions run
// here: if one panics, that has to end the process, and not an unlock on its way out.
func (co *cohort) sendLocked(now time.Time, others []*cursor) {
	co.s.mu.Unlock()
	defer co.s.mu.Lock()
	for _, c := range others {
		c.hv.ready(&c.task)
	}
	if co.batch == nil {
		return
	}
	p := toPayload(co.batch)
	for _, c := range co.cursors {
		c.pusher.write(now, p)
	}
}

// endSendLocked lets those cursors go that left meanwhile, and makes the others rest again. All
// links that beginSendLocked claimed are given back, also those of cursors that left: a link
// that got something else to send meanwhile is served from now on.
func (co *cohort) endSendLocked(now time.Time) {
	s := co.s
	co.sending, co.page, co.batch = false, nil, nil
	if co.left {
		co.keepLocked(func(c *cursor) bool {
			if c.cohort != co {
				c.writtenLocked(now)
				c.pusher.unclaim()
			}
			return c.cohort == co
		})
	}
	for _, c := range co.cursors {
		c.writtenLocked(now)
		c.pusher.unclaim()
	}
	if len(co.cursors) > 0 {
		s.parked += len(co.cursors)
		s.putLocked(co)
	}
	s.dropSharedPageLocked()
}

// putLocked puts a cohort where it is found when there is more: at the head after the others,
// which are not ahead of it, or among those that have not got everything yet. Cohorts shrink as
// cursors leave them, and are joined here, or there would be many small ones after a while.
func (s *hubSession) putLocked(co *cohort) {
	last := s.atHead.Back()
	switch {
	case co.seq < s.log.head:
		s.lagging.Push(&co.place, co)
	case last == nil || last.seq != co.seq || len(last.cursors)+len(co.cursors) > s.h.sizes.cohort:
		s.atHead.Push(&co.place, co)
	default: // into the last one, which has room
		for _, c := range co.cursors {
			c.cohort = last
		}
		last.cursors = append(last.cursors, co.cursors...)
	}
}
