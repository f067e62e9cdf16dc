package gvstream

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A Session is a handle of one session of a Streamer: its Publish spares the
// lookup. It is safe for concurrent use. After Streamer.Forget, or when the
// session was forgotten because it had ended, its methods return ErrClosed.
type Session struct {
	st *Streamer
	id string

	mu      sync.Mutex // level 2; protects the fields below
	epoch   string
	*life                  // in this epoch: unborn before the first event
	stopped *ProtocolError // why the hub does not want this epoch, or nil
	sender  *sender        // the session on the current link, or nil
	changed sched.Signal
	age     *sched.Entry[*Session] // its place in the budget, whose lock protects it, or nil
	gone    bool                   // forgotten
	aged    bool                   // offered to the budget
	inEnded bool                   // it stands in the Streamer's list of sessions to forget
}

// ownLifeLocked gives the session a life of its own, unless it has one.
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

func (s *Session) publish(ctx context.Context, ev *Event) (uint64, error) {
	d := preparedEvent{ev: ev}
	if err := s.prepare(&d); err != nil {
		return 0, err
	}
	s.st.budget.makeRoom(d.size())
	s.mu.Lock()
	seq, err := s.offerLocked(&d)
	s.mu.Unlock()
	if err == ErrPendingFull && s.st.cfg.Overflow == Block {
		return s.publishLater(ctx, &d)
	}
	return seq, err
}

// publishLater waits until there is room.
func (s *Session) publishLater(ctx context.Context, d *preparedEvent) (uint64, error) {
	for {
		freed := s.st.budget.wait() // before the try, so that nothing is missed
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

// prepare fills a draft in for this session.
func (s *Session) prepare(d *preparedEvent) error {
	if d.ev.Time.IsZero() {
		d.timed = d.time.Now()
	}
	if len(d.ev.Data)+len(d.ev.Bytes) > s.st.cfg.MaxEventBytes {
		return ErrTooLarge
	}
	if err := d.check(s.st.cfg.TrustData); err != nil {
		return err
	}
	if d.size() > s.st.cfg.MaxEventBytes {
		return ErrTooLarge
	}
	return nil
}

// offerLocked appends the event if it may.
func (s *Session) offerLocked(d *preparedEvent) (uint64, error) {
	if err := s.publishErrorLocked(); err != nil {
		return 0, err
	}
	if !s.makeRoomLocked(d.size()) {
		return 0, ErrPendingFull
	}
	s.ownLifeLocked()
	n := s.log.publish(d)
	s.st.budget.release(d.size() - n)
	s.pendingEvents++
	s.pendingBytes += n
	if d.ev.End {
		s.hasEnded = true
		s.changed.Broadcast() // who waits for room, waits for nothing
	}
	s.trimLocked()
	s.wakeSenderLocked()
	return s.log.head, nil
}

// publishErrorLocked says why nothing can be published, if nothing can.
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

// makeRoomLocked reserves room for n more bytes in pending (rule 10).
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

// loseLocked turns a pending event into a gap, and reports whether there was one under that
// number. If the hub has it all the same, its ack clears the gap; if not, the gap is
// what is sent.
func (s *Session) loseLocked(seq uint64, reason Reason) bool {
	n, ok := s.log.loseSeq(seq, reason)
	if ok {
		s.noteLostLocked(n)
	}
	return ok
}

// noteLostLocked takes note that a pending event of so many bytes became a gap.
func (s *Session) noteLostLocked(bytes int) {
	s.pendingEvents--
	s.pendingBytes -= bytes
	s.lost++
	s.st.budget.release(bytes)
}

// trimLocked evicts what is acknowledged and more than is kept for replay.
func (s *Session) trimLocked() {
	s.st.budget.release(s.log.trim(s.acked, s.st.cfg.ReplayEvents, s.st.cfg.ReplayBytes))
	if s.st.budget.max == 0 || s.aged {
		return
	}
	if t, ok := s.log.oldest(s.acked); ok {
		s.aged = true
		s.st.budget.offer(s, t)
	}
}

// evictOldest evicts the session's oldest acknowledged event, unless that is
// younger than the budget believes.
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
	s.trimLocked()
}

// wakeSenderLocked has the session send what it can, unless it is about to be asked anyway.
func (s *Session) wakeSenderLocked() {
	if a := s.sender; a != nil && !a.woken {
		a.woken = true
		a.link.ready(&a.task)
	}
}

// freeLocked takes note that the hub has everything up to a number, which is not below
// acked.
func (s *Session) freeLocked(now time.Time, upTo uint64) {
	if upTo > s.acked {
		events, bytes := s.log.tally(s.acked, upTo)
		s.pendingEvents -= events
		s.pendingBytes -= bytes
		s.acked = upTo
		s.trimLocked()
		s.changed.Broadcast()
		if s.hasEnded && s.acked == s.log.head {
			at := now.Add(endedTTL)
			s.overAt = &at
			s.st.forgetLaterLocked(s)
		}
	}
}

// moveBackLocked makes everything after a number pending again, because the hub has
// lost it. What the log no longer holds, is declared (rule 6).
func (s *Session) moveBackLocked(to uint64) {
	if first := s.log.first(); first > to+1 {
		s.lost += min(first-1, s.acked) - to
		s.log.declare(to, ReasonEvicted)
	}
	events, bytes := s.log.tally(to, s.acked)
	s.pendingEvents += events
	s.pendingBytes += bytes
	s.acked, s.overAt = to, nil
}

// dropLocked gives up everything the session holds.
func (s *Session) dropLocked() {
	s.st.budget.release(s.log.bytes)
	s.life, s.stopped = &emptyLife, nil
	if s.aged {
		s.aged = false
		s.st.budget.forget(s)
	}
	if s.sender != nil {
		s.sender.link.forget(&s.sender.task)
		s.sender = nil
	}
	s.changed.Broadcast()
}

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
	out := SessionStats{
		SessionID: s.id, Epoch: s.epoch, First: s.log.first(), Head: s.log.head, Acked: s.acked,
		Events: s.log.events, Bytes: s.log.bytes, Ended: s.hasEnded,
		Connected:     s.sender != nil && s.sender.opened,
		PendingEvents: s.pendingEvents, PendingBytes: s.pendingBytes, Lost: s.lost,
	}
	out.Progress = maps.Clone(s.progress)
	return out
}

// A life is what has become of a session in one epoch.
type life struct {
	log            log
	acked          uint64 // everything up to it is acknowledged
	maxSentInEpoch uint64 // highest number handed out
	pendingEvents  int    // events in (acked, head]
	pendingBytes   int
	hasEnded       bool       // the last event was published
	overAt         *time.Time // when to forget it, once its end is acknowledged
	lost           uint64
	progress       map[string]uint64 // viewers, as a hub relays them
}

// emptyLife is the life of all sessions without events, which most of many are: shared,
// and never changed. Only an event gives a session a life of its own, or a viewer's
// progress; all else that changes one is about an event that was published before.
var emptyLife life

func (s *Session) noteProgressLocked(viewerID string, seq uint64) {
	if _, ok := s.progress[viewerID]; !ok && len(s.progress) >= maxProgress || seq > s.log.head {
		return
	}
	s.ownLifeLocked()
	if s.progress == nil {
		s.progress = make(map[string]uint64)
	}
	s.progress[viewerID] = seq
}

const maxProgress = 100 // viewers whose progress a session notes
