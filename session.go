package gvstream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// This file is one session at the agent, across all links: publishing, and what acks,
// refusals and overflow do to what the session holds. Callers enter by Publish and End; the
// sender applies the hub's acks and errors. It changes the session under the session's
// lock, and wakes the sender, which sends.
//
// The states of a session:
//
//	state     recognized by            and what follows
//	live      none of the following    ended, by End
//	ended     hasEnded; still sent     over, once the hub has acknowledged the end
//	over      overAt                   gone after endedTTL; ended again if the hub lost the end
//	stopped   stopped; not sent        nothing, until the caller renews or forgets it
//	gone      gone                     nothing: the handle is dead
//
// An error of the hub stops a session that is live, ended or over. From every state but
// gone, Forget leads to gone, and Renew to live in a greater epoch.

// A Session is a handle of one session of a Streamer: its Publish saves the lookup
// by id. It is safe for concurrent use. After Streamer.Forget, or when the session
// was forgotten because it had ended, Publish and End return ErrClosed.
type Session struct {
	st *Streamer
	id string

	mu      sync.Mutex // level 2; protects the fields below
	epoch   string
	*life                  // in this epoch: emptyLife before the first event
	stopped *ProtocolError // why the hub does not want this epoch, or nil
	sender  *sender        // the session on the current link, or nil
	changed sched.Signal   // for calls that wait for room, for acks, or for the session's end

	age     *sched.Entry[*Session] // its place in the budget, whose lock protects it, or nil
	gone    bool                   // forgotten
	aged    bool                   // offered to the budget, which may not have looked at it yet
	inEnded bool                   // in the Streamer's list of sessions to forget
	known   bool                   // a hub may know it, in this epoch or an earlier one
}

// ownLifeLocked gives the session a life of its own, unless it has one. It comes before
// each change that may be the first: emptyLife belongs to all.
func (s *Session) ownLifeLocked() {
	if s.life == &emptyLife {
		s.life = new(life)
	}
}

// ID returns the session's id.
func (s *Session) ID() string { return s.id }

// Publish is Streamer.Publish for this session, but returns ErrClosed once the
// session was forgotten.
func (s *Session) Publish(ctx context.Context, ev Event) (uint64, error) {
	ev.End = false
	return s.publish(ctx, &ev)
}

// End is Streamer.End for this session, but returns ErrClosed once the session was
// forgotten.
func (s *Session) End(ctx context.Context, ev Event) (uint64, error) {
	ev.End = true
	return s.publish(ctx, &ev)
}

// publish checks and measures the event without a lock, and then numbers it under the
// session's. The budget evicts events of other sessions, which takes their locks, so it
// makes room before this one's is taken: no goroutine holds two locks of one level. Others
// may take that room meanwhile. Then the session is full, as the reservation finds out.
func (s *Session) publish(ctx context.Context, ev *Event) (uint64, error) {
	d := preparedEvent{ev: ev}
	if err := s.prepare(&d); err != nil {
		return 0, err
	}
	s.st.budget.makeRoom(d.size())
	s.mu.Lock()
	seq, err := s.offerLocked(&d)
	if err == ErrPendingFull && s.st.cfg.Overflow != Block {
		err = s.fullErrorLocked(d.size())
	}
	s.mu.Unlock()
	if err == ErrPendingFull {
		return s.publishLater(ctx, &d)
	}
	return seq, err
}

// fullErrorLocked is ErrPendingFull with what is full.
func (s *Session) fullErrorLocked(n int) error {
	cfg := &s.st.cfg
	switch {
	case s.pendingEvents >= cfg.MaxPendingEvents:
		return fmt.Errorf("%w: %d events, at most %d", ErrPendingFull, s.pendingEvents, cfg.MaxPendingEvents)
	case s.pendingBytes+n > cfg.MaxPendingBytes:
		return fmt.Errorf("%w: %d bytes of JSON and %d more, at most %d", ErrPendingFull, s.pendingBytes, n, cfg.MaxPendingBytes)
	}
	return fmt.Errorf("%w: no room for %d bytes of JSON: all sessions together may hold %d", ErrPendingFull, n, cfg.MaxTotalBytes)
}

// publishLater tries until there is room, of the session and of the budget. Both signals
// are taken before what they stand for is looked at, so that none is missed.
func (s *Session) publishLater(ctx context.Context, d *preparedEvent) (uint64, error) {
	for {
		freed := s.st.budget.wait()
		s.st.budget.makeRoom(d.size())
		s.mu.Lock()
		seq, err := s.offerLocked(d)
		var wait <-chan struct{}
		if err == ErrPendingFull {
			wait = s.changed.Wait()
		}
		s.mu.Unlock()
		if err != ErrPendingFull {
			return seq, err
		}
		select {
		case <-wait:
		case <-freed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// prepare sets the event's time if it has none, and refuses an event that is invalid or
// too large. It looks at the size of what was given first, since checking JSON takes time
// in proportion to it, and at that of what will be encoded when it is known.
func (s *Session) prepare(d *preparedEvent) error {
	if d.ev.Time.IsZero() {
		d.timed = d.time.Now()
	}
	if n := len(d.ev.Data) + len(d.ev.Bytes); n > s.st.cfg.MaxEventBytes {
		return fmt.Errorf("%w: %d bytes of data, and at most %d of JSON", ErrTooLarge, n, s.st.cfg.MaxEventBytes)
	}
	if err := d.check(s.st.cfg.TrustData); err != nil {
		return err
	}
	if d.size() > s.st.cfg.MaxEventBytes {
		return fmt.Errorf("%w: %d bytes of JSON, at most %d", ErrTooLarge, d.size(), s.st.cfg.MaxEventBytes)
	}
	return nil
}

// offerLocked appends the event, unless the session takes no more or has no room. The
// number is given out in the same step in which the event enters the log, so that the
// order of the log is that of the numbers, and a refused event uses none (rule 1). What
// was reserved is at least what the event takes; the rest is given back.
func (s *Session) offerLocked(d *preparedEvent) (uint64, error) {
	if err := s.publishErrorLocked(); err != nil {
		return 0, err
	}
	if !s.makeRoomLocked(d.size()) {
		return 0, ErrPendingFull
	}
	s.ownLifeLocked()
	n := s.log.publish(d)
	s.pendingEvents++
	s.pendingBytes += n
	if d.ev.End {
		s.hasEnded = true
		s.changed.Broadcast() // publishers that wait for room wait in vain
	}
	s.trimLocked(d.size() - n)
	s.wakeSenderLocked()
	return s.log.head, nil
}

// publishErrorLocked returns why nothing can be published any more, or nil.
func (s *Session) publishErrorLocked() error {
	switch {
	case s.gone || s.st.closed.Load():
		return ErrClosed
	case s.stopped != nil:
		return s.stopped
	case s.hasEnded:
		return ErrEnded
	case s.log.head >= MaxSeq:
		return ErrSeqExhausted
	}
	return nil
}

// makeRoomLocked reserves room for n more bytes in pending, and under DropOldest makes it
// (rule 10). It drops only events of this session, and only if that helps: where even
// without all its pending events the others take too much, dropping would lose events and
// still end in ErrPendingFull.
func (s *Session) makeRoomLocked(n int) bool {
	cfg := &s.st.cfg
	for {
		full := s.pendingEvents >= cfg.MaxPendingEvents || s.pendingBytes+n > cfg.MaxPendingBytes
		if !full && s.st.budget.reserve(n) {
			return true
		}
		if cfg.Overflow != DropOldest || s.pendingEvents == 0 || !s.st.budget.fits(n, s.pendingBytes) {
			return false // nothing to drop, or nothing gained by it
		}
		s.noteLostLocked(s.log.loseOldest(s.acked, ReasonDropped))
	}
}

// loseRangeLocked turns the pending events of a range of numbers into gaps, and returns how many
// there were. If the hub has one all the same, its ack clears the gap; if not, the gap is what is
// sent.
func (s *Session) loseRangeLocked(from, to uint64, reason Reason) (lost int) {
	for seq, ok := s.log.nextEvent(from, to); ok; seq, ok = s.log.nextEvent(seq+1, to) {
		if n, ok := s.log.loseSeq(seq, reason); ok {
			s.noteLostLocked(n)
			lost++
		}
	}
	return lost
}

// noteLostLocked records that a pending event of that many bytes became a gap.
func (s *Session) noteLostLocked(bytes int) {
	s.pendingEvents--
	s.pendingBytes -= bytes
	s.countLostLocked(1)
	s.st.budget.release(bytes)
}

// countLostLocked counts lost events for the session, and for the Streamer, which outlives it.
func (s *Session) countLostLocked(n uint64) {
	s.lostCount += n
	s.st.lost.Add(n)
}

// trimLocked evicts what is acknowledged and more than is kept for replay. If the oldest
// event is acknowledged, it offers the session to the budget, which evicts the oldest of
// all sessions when others need the room. One offer stands until the budget looks at it:
// updating it each time would take the budget's lock for each event. What was reserved and is
// not needed is released in the same step.
func (s *Session) trimLocked(unneeded int) {
	s.st.budget.release(unneeded + s.log.trim(s.acked, s.st.cfg.ReplayEvents, s.st.cfg.ReplayBytes))
	if s.aged {
		return
	}
	if t, ok := s.log.oldest(s.acked); ok {
		s.aged = true
		if s.age == nil {
			s.age = new(sched.Entry[*Session])
		}
		s.st.budget.offer(s.age, s, t)
	}
}

// evictOldest evicts the session's oldest acknowledged event, unless that is younger than
// the budget believes: then another session may have an older one. Either way the session
// is offered again, under the time of the event that is the oldest now. Gaps before the
// event free no bytes and go with it.
func (s *Session) evictOldest(believed time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aged = false
	t, ok := s.log.oldest(s.acked)
	for ok && t.Equal(believed) {
		if n := s.log.evict(); n > 0 {
			s.st.budget.release(n)
			break
		}
	}
	s.trimLocked(0)
}

// wakeSenderLocked makes the link ask the sender for a batch, unless it is about to anyway.
// So a publisher takes the link's lock once for each batch, not once for each event.
func (s *Session) wakeSenderLocked() {
	if sd := s.sender; sd != nil && !sd.woken {
		sd.woken = true
		sd.link.ready(&sd.task)
	}
}

// freeLocked records that the hub has everything up to a number, which is not below acked. It
// returns the events that this takes off pending, and their bytes. That makes room for
// publishers, and the acknowledgement of its end starts the time after which the session is
// forgotten (rule 16).
func (s *Session) freeLocked(now time.Time, upTo uint64) (events, bytes int) {
	if upTo <= s.acked {
		return 0, 0
	}
	events, bytes = s.log.tally(s.acked, upTo)
	s.pendingEvents -= events
	s.pendingBytes -= bytes
	s.acked = upTo
	s.trimLocked(0)
	s.changed.Broadcast()
	if s.hasEnded && s.acked == s.log.head {
		at := now.Add(endedTTL)
		s.overAt = &at
		s.st.forgetLaterLocked(s)
	}
	return events, bytes
}

// unsettledLocked reports whether there is something that the hub may not know: what is not
// acknowledged, or that the session has ended, which no event says any more (rule 16).
func (s *Session) unsettledLocked() bool { return s.acked < s.log.head || s.endLost }

// moveBackLocked makes everything after a number pending again, because the hub has lost
// it. What the log no longer holds becomes a gap (rule 6). Pending may exceed its limits
// by this: then nothing is published until acks have made room. An end that is pending
// again must not be forgotten, so overAt is cleared.
func (s *Session) moveBackLocked(to uint64) {
	if first := s.log.first(); first > to+1 {
		s.countLostLocked(min(first-1, s.acked) - to)
		s.log.declare(to, ReasonEvicted)
	}
	events, bytes := s.log.tally(to, s.acked)
	s.pendingEvents += events
	s.pendingBytes += bytes
	s.acked, s.overAt = to, nil
}

// clearLocked gives up everything the session holds, for Forget, Renew or expire: its
// events with their share of the budget, its place there, and its sender. Calls that wait
// look again and find the session gone or in another epoch.
func (s *Session) clearLocked() {
	s.st.budget.release(s.log.bytes)
	s.life, s.stopped = &emptyLife, nil
	if s.aged {
		s.aged = false
		s.st.budget.forget(s.age)
	}
	if s.sender != nil {
		s.sender.link.forget(&s.sender.task)
		s.sender = nil
	}
	s.changed.Broadcast()
}

// waitAcked waits until everything up to head, a number of that epoch, is acknowledged or
// given up. The signal is taken under the lock under which the state is seen, so that no
// change between the two is missed.
func (s *Session) waitAcked(ctx context.Context, epoch string, head uint64) error {
	for {
		s.mu.Lock()
		done := s.gone || s.epoch != epoch || s.acked >= head
		stopped, wait := s.stopped, s.changed.Wait()
		s.mu.Unlock()
		switch {
		case done:
			return nil
		case stopped != nil:
			return stopped
		case s.st.shut.Load():
			return ErrClosed
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Stats returns where the session stands. It does not block.
func (s *Session) Stats() SessionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SessionStats{
		SessionID: s.id, Epoch: s.epoch, First: s.log.first(), Head: s.log.head, Acked: s.acked,
		Events: s.log.events, Bytes: s.log.bytes, Ended: s.hasEnded,
		Connected:     s.sender != nil && s.sender.opened,
		PendingEvents: s.pendingEvents, PendingBytes: s.pendingBytes, Lost: s.lostCount,
	}
}

// A life is what has become of a session in one epoch. Renew replaces it with the epoch; it
// outlives every link. The session's lock protects it.
//
// acked and maxSentInEpoch are at most the log's head. acked goes back only by a first ack
// (rule 6), maxSentInEpoch never: a hub may hold whatever was once sent, whatever it has
// said since. The two counts of pending are kept up to date rather than counted, since
// each publisher looks at them.
type life struct {
	log            log    // begins at acked+1 at the latest
	acked          uint64 // everything up to it is acknowledged
	maxSentInEpoch uint64 // highest number handed out: mark A
	pendingEvents  int    // events in (acked, head]
	pendingBytes   int    // of their JSON
	hasEnded       bool   // the last event was published: head is the end
	endLost        bool   // and became a gap, which does not say that it is the end

	overAt    *time.Time // when to forget the session; nil: its end is not acknowledged
	lostCount uint64     // events that became gaps while they were pending
}

// emptyLife is shared by all sessions that have no events yet, and never changes: of many
// sessions most are idle, and nearly half the memory of an idle one would be its life. Only
// an event gives a session a life of its own: whatever else changes a life is about one that
// was published before.
var emptyLife life
