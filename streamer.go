package gvstream

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// This file is the agent's side as a whole: its sessions by id, its newest link, and the
// calls that concern them all. One session is in session.go, one connection in
// streamer_link.go, and one session on one connection in sender.go.
//
// A session enters the map at its first use. It leaves by Forget, or endedTTL after its
// end was acknowledged. Since there is no goroutine to expire it, the calls that look up a
// session, Stats, and the heartbeat of the link do so in passing.

// A Streamer is an agent's side: it numbers the events of sessions, keeps them
// until the hub has acknowledged them and, as far as its limits allow, for replay
// after that, and resends them after a reconnect. It starts no goroutines.
//
// All methods are safe for concurrent use.
type Streamer struct {
	cfg    StreamerConfig
	sizes  sizes
	epochs *epoch.Source
	budget budget[*Session]

	// Close sets first one and later the other; neither is ever cleared. In between,
	// links may still break and be made, so that what is pending can be acknowledged.
	closed atomic.Bool // no more publishing
	shut   atomic.Bool // no more links; set under mu

	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64
	lost            atomic.Uint64 // events that became gaps while they were pending

	mu       sync.RWMutex        // level 1; protects the fields below
	sessions map[string]*Session // by id; those that are not gone
	link     *streamerLink       // the newest, until it dies, or nil
	welcomes int                 // of links, to begin each with another session

	// forgotten are the sessions that the hub has to be told of, by id. It is bounded: of those
	// beyond, the hub finds out by HubConfig.SessionTTL.
	forgotten map[string]SessionStatus

	// someEnded lets Session skip both the clock and the lock below while there is
	// nothing to forget, which is nearly always.
	someEnded atomic.Bool // ended is not empty

	endedMu sync.Mutex // level 4; protects the field below
	ended   []endedSession
}

// An endedSession reminds the Streamer to forget a session at a time. The list needs no
// sorting: each is appended endedTTL before its time. It is no more than a reminder. By
// then, the session may have been forgotten otherwise, or a first ack below its end may
// have made events pending again, so expire looks at the session itself.
type endedSession struct {
	s  *Session
	at time.Time
}

// NewStreamer returns a Streamer without sessions or links. A nil config means
// the defaults; cfg is copied.
func NewStreamer(cfg *StreamerConfig) *Streamer {
	st := &Streamer{cfg: cfg.withDefaults(), sizes: fullSizes, epochs: epoch.Process, sessions: make(map[string]*Session), forgotten: make(map[string]SessionStatus)}
	st.budget.max = int64(st.cfg.MaxTotalBytes)
	st.sizes.batchBytes = st.cfg.MaxBatchBytes - batchOverhead
	return st
}

// Session returns the handle of a session, which is created if it does not exist.
// It does not block. Errors: ErrInvalidID, ErrTooMany, ErrClosed.
func (st *Streamer) Session(sessionID string) (*Session, error) {
	if !st.someEnded.Load() { // nothing to expire, and no need of the clock
		if s := st.lookup(sessionID); s != nil {
			return s, nil
		}
	}
	return st.session(time.Now(), sessionID)
}

// session is Session at a given time. The id is checked only if the session does not
// exist: the ids of those that do were checked when they were created.
func (st *Streamer) session(now time.Time, id string) (*Session, error) {
	st.expire(now)
	if s := st.lookup(id); s != nil {
		return s, nil
	}
	if !validID(id) {
		return nil, invalidID(id)
	}
	return st.create(now, id)
}

// create makes the session, unless a concurrent call was first. It attaches it under the
// lock under which welcome attaches all others, so none falls between the two.
func (st *Streamer) create(now time.Time, id string) (*Session, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if s := st.sessions[id]; s != nil {
		return s, nil
	}
	if st.closed.Load() {
		return nil, ErrClosed
	}
	if len(st.sessions) >= st.cfg.MaxSessions {
		return nil, fmt.Errorf("%w: %d sessions, at most %d", ErrTooMany, len(st.sessions), st.cfg.MaxSessions)
	}
	s := &Session{st: st, id: id, epoch: st.epochs.Next(now), life: &emptyLife}
	st.sessions[id] = s
	_, s.known = st.forgotten[id]
	delete(st.forgotten, id) // a new life says so as well
	if sl := st.link; sl != nil {
		sl.attach(s)
	}
	return s, nil
}

func (st *Streamer) lookup(id string) *Session {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return st.sessions[id]
}

// all returns the sessions in the order of their ids. No lock is held when it returns, so
// that callers can lock one session after the other: a session may be gone by then.
func (st *Streamer) all() []*Session {
	st.mu.RLock()
	out := slices.Collect(maps.Values(st.sessions))
	st.mu.RUnlock()
	sortSessions(out)
	return out
}

// sortSessions puts sessions into the order of their ids, so that what is done for all of
// them does not depend on the order of a map, and happens the same way each time.
func sortSessions(ss []*Session) {
	slices.SortFunc(ss, func(a, b *Session) int { return cmp.Compare(a.id, b.id) })
}

// rotatedLocked returns the sessions in the order of their ids, but each time begins with the
// next one: a connection may always break before the last of them has had its turn (rule 5).
func (st *Streamer) rotatedLocked() []*Session {
	sessions := slices.Collect(maps.Values(st.sessions))
	sortSessions(sessions)
	return rotated(sessions, &st.welcomes)
}

// rotated returns a list that begins with the element at turn, counted round and round, and
// moves turn to the next one.
func rotated[T any](list []T, turn *int) []T {
	if len(list) == 0 {
		return nil
	}
	first := *turn % len(list)
	*turn++
	return slices.Concat(list[first:], list[:first])
}

// Publish appends an event to a session, which is created on first use, and
// returns its sequence number: the first event of a session has number 1, each
// next one the next number (rule 1). It sets the event's Seq, and its Time if that
// is zero, and ignores its End. The event's bytes are copied: the caller may change
// them once Publish has returned.
//
// The event is held then until the hub has acknowledged it, or its loss was declared: the
// hub may refuse it, and the policy may drop it, in which case readers get a gap in its
// place and StreamerStats.Lost counts it.
//
// It blocks only under the policy Block, while pending is full; ctx ends the wait,
// and its cause is returned. A call that returns an error has used no number.
// Errors: ErrPendingFull, ErrTooLarge, ErrInvalidData, ErrInvalidID, ErrTooMany,
// ErrEnded, ErrSeqExhausted, ErrClosed, or the *ProtocolError by which the hub
// stopped the session (rule 11).
func (st *Streamer) Publish(ctx context.Context, sessionID string, ev Event) (uint64, error) {
	return st.withSession(sessionID, func(s *Session) (uint64, error) { return s.Publish(ctx, ev) })
}

// End publishes the last event of a session, which is acknowledged and replayed
// like any other; Publish returns ErrEnded from then on. Otherwise it is like
// Publish. The session is forgotten 5 minutes after the hub has acknowledged the end
// (rule 16); an event published after that begins a new life of the session.
func (st *Streamer) End(ctx context.Context, sessionID string, ev Event) (uint64, error) {
	return st.withSession(sessionID, func(s *Session) (uint64, error) { return s.End(ctx, ev) })
}

// withSession calls f with the session, and again with a new one if the session was
// forgotten between the lookup and f, which then returns ErrClosed: callers that use ids
// need not know that sessions are forgotten.
func (st *Streamer) withSession(id string, f func(*Session) (uint64, error)) (uint64, error) {
	for {
		s, err := st.Session(id)
		if err != nil {
			return 0, err
		}
		if seq, err := f(s); err != ErrClosed || st.lookup(id) == s { // the cause of a ctx may be ErrClosed too
			return seq, err
		}
	}
}

// forgetLaterLocked notes a session whose end was acknowledged, unless it is noted
// already. The session's lock is held.
func (st *Streamer) forgetLaterLocked(s *Session) {
	if s.inEnded {
		return
	}
	s.inEnded = true
	st.endedMu.Lock()
	defer st.endedMu.Unlock()
	st.ended = append(st.ended, endedSession{s, *s.overAt})
	st.someEnded.Store(true)
}

// expire forgets the sessions whose time has come. It gives the list's lock up before it
// takes those of the Streamer and the session, which come before it in the order of locks.
func (st *Streamer) expire(now time.Time) {
	for {
		st.endedMu.Lock()
		if len(st.ended) == 0 || st.ended[0].at.After(now) {
			st.endedMu.Unlock()
			return
		}
		s := st.ended[0].s
		st.ended[0] = endedSession{}
		if st.ended = st.ended[1:]; len(st.ended) == 0 {
			st.ended = nil // an empty slice would keep the array alive
			st.someEnded.Store(false)
		}
		st.endedMu.Unlock()
		st.remove(s, func() bool {
			s.inEnded = false
			if s.overAt != nil && s.overAt.After(now) { // its end was acknowledged once more
				st.forgetLaterLocked(s)
			}
			return !s.inEnded && s.overAt != nil
		})
	}
}

// remove forgets s if expected, called with the locks of the Streamer and of s, returns
// true. The session is then gone for good: another under the same id is another Session.
func (st *Streamer) remove(s *Session, expected func() bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || !expected() {
		return
	}
	delete(st.sessions, s.id)
	s.clearLocked()
	s.gone = true
}

// Forget removes a session with everything it holds, acknowledged or not. Waiting
// calls return; its handles return ErrClosed. An event published later begins a new
// life of the session, in a greater epoch. The hub is told: there, the session counts
// against no limit any more, and viewers can read what the hub holds of it for
// HubConfig.EndedTTL. A session that has ended is better left alone: the Streamer
// forgets it in time. It does not block.
func (st *Streamer) Forget(sessionID string) {
	if s := st.lookup(sessionID); s != nil {
		st.remove(s, func() bool { st.noteForgotten(s); return true })
	}
}

// noteForgotten notes that the hub is to be told that the session is forgotten, if it may know of
// it and the session is not over there anyway. It is called with the locks of the Streamer and the
// session.
func (st *Streamer) noteForgotten(s *Session) {
	over := s.overAt != nil && !s.endLost
	if !s.known && s.sender == nil || over || s.stopped != nil || len(st.forgotten) >= max(maxForgotten, st.cfg.MaxSessions) {
		return
	}
	e := SessionStatus{
		SessionID: s.id, Epoch: s.epoch, FirstSeq: s.log.head + 1, HeadSeq: s.log.head, AckSeq: s.acked, Forgotten: true,
	}
	st.forgotten[s.id] = e
	if st.link != nil {
		st.link.tellForgotten(e)
	}
}

// heardForgotten notes that the hub knows of a session that was forgotten in that epoch, and reports
// whether it was to be told.
func (st *Streamer) heardForgotten(sessionID, epoch string) bool {
	st.mu.RLock()
	e, ok := st.forgotten[sessionID]
	st.mu.RUnlock()
	if !ok || e.Epoch != epoch { // nearly always
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.forgotten[sessionID] == e {
		delete(st.forgotten, sessionID)
	}
	return true
}

// allForgotten returns what the hub has to be told of, in the order of the ids.
func (st *Streamer) allForgotten() []SessionStatus {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return slices.SortedFunc(maps.Values(st.forgotten), func(a, b SessionStatus) int { return cmp.Compare(a.SessionID, b.SessionID) })
}

// maxForgotten bounds the sessions that the hub is still to be told of, unless the agent may have
// more at a time: one that never finds a hub is not to fill its own memory.
const maxForgotten = 1024

// Renew begins a new life of a session under a greater epoch, numbered from 1. It
// is the only way past an error that stopped the session, such as stale_epoch,
// forbidden or ack_beyond_sent (rules 2, 6 and 11), and it gives up everything the
// session holds. To publish that again, take what Unacked yields before the call.
// Handles of the session stay valid. It does not block. Errors: ErrUnknownSession,
// ErrClosed; ErrEpochAhead if the epoch the hub knows leaves no greater one.
func (st *Streamer) Renew(sessionID string) error {
	return st.renew(time.Now(), sessionID)
}

// renew is Renew at a given time. The new epoch is greater than the session's and than the
// one that the hub named when it refused that: with a lesser one, the hub would refuse the
// session again. The session's lock is given up before attach takes it; an event published
// in between belongs to the new life already, and the Streamer's lock keeps links away.
func (st *Streamer) renew(now time.Time, id string) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.sessions[id]
	if s == nil {
		return fmt.Errorf("%w: %q", ErrUnknownSession, clip(id))
	}
	if st.closed.Load() {
		return ErrClosed
	}
	s.mu.Lock()
	known := s.epoch
	if s.stopped != nil {
		known = max(known, s.stopped.Epoch)
	}
	fresh, ok := st.epochs.Past(now, known)
	if ok {
		s.clearLocked()
		s.epoch = fresh
	}
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: %q", ErrEpochAhead, known)
	}
	if st.link != nil {
		st.link.attach(s)
	}
	return nil
}

// Unacked yields the events of a session that the hub has not acknowledged, oldest
// first: each is a copy that the caller may keep. It works after Close, too. It does
// not block, and holds no lock while it yields: events published while it runs may be
// yielded, and those acknowledged meanwhile may not. An unknown session yields nothing.
func (st *Streamer) Unacked(sessionID string) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		s := st.lookup(sessionID)
		if s == nil {
			return
		}
		for after := uint64(0); ; {
			s.mu.Lock()
			after = max(after, s.acked)
			p := s.log.read(span{after: after, until: s.log.head, events: maxBatchEvents, bytes: pageBytes, first: anySize})
			s.mu.Unlock()
			if p.last <= after {
				return
			}
			after = p.last
			events := p.ownEvents()
			p.release()
			for _, ev := range events {
				if !yield(ev) {
					return
				}
			}
		}
	}
}

// Flush waits until the hub has acknowledged every event published before the call,
// or the gap that declares it lost, as StreamerStats.Lost tells; the hub may hold an ack back for 250 ms (rule 6).
// Then it returns nil. It returns ctx's cause if ctx ends first, ErrClosed once Close
// is done, and otherwise the first error by which the hub stopped a session. It does
// not wait for a session that is forgotten or renewed meanwhile. Without a connection
// it waits for one.
func (st *Streamer) Flush(ctx context.Context) error {
	var first error
	for _, s := range st.all() {
		s.mu.Lock()
		epoch, head := s.epoch, s.log.head
		s.mu.Unlock()
		if err := s.waitAcked(ctx, epoch, head); ctx.Err() != nil && err != nil {
			return err
		} else if first == nil {
			first = err
		}
	}
	return first
}

// Close ends publishing, which returns ErrClosed from then on, waits like Flush
// until everything is acknowledged or ctx ends, and closes the link. It returns nil only
// if the hub has acknowledged each event that was published, but for those of sessions that
// were forgotten or renewed. Otherwise it returns an *UnackedError, which counts those that
// are left, and Unacked still yields, and those that were lost: refused by the hub, dropped,
// or evicted before a hub that had lost them could be sent them again. While it waits, links
// may break and be made. Another call after it has returned does not wait.
func (st *Streamer) Close(ctx context.Context) error {
	st.closed.Store(true)
	st.wakeAll() // blocked publishers
	err := st.Flush(ctx)
	// Under the lock under which connect looks at shut and sets the link: a link made at
	// the same time either finds shut set, or is the one that is closed here.
	st.mu.Lock()
	st.shut.Store(true)
	sl := st.link
	st.mu.Unlock()
	if sl != nil {
		sl.Close()
	}
	st.wakeAll() // other calls that wait for acks, which come no more
	left := &UnackedError{Lost: st.lost.Load(), Err: err}
	for _, s := range st.all() {
		s.mu.Lock()
		if s.acked < s.log.head {
			left.Sessions++
			left.Events += s.pendingEvents
		}
		s.mu.Unlock()
	}
	if left.Sessions == 0 && left.Lost == 0 {
		return nil
	}
	return left
}

// wakeAll wakes all calls that wait for a session, to look at closed and shut again. Those
// are set before: a call that takes a session's lock later sees them, and one that took it
// earlier is waiting for the signal.
func (st *Streamer) wakeAll() {
	for _, s := range st.all() {
		s.mu.Lock()
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

// Stats returns the sums over all sessions. It reads one session after the other, so
// while others publish the sums are not those of any one moment. It does not block,
// and takes time in proportion to the number of sessions.
func (st *Streamer) Stats() StreamerStats {
	st.expire(time.Now())
	out := StreamerStats{Lost: st.lost.Load(), StalePayloads: st.stalePayloads.Load(), RefusedPayloads: st.refusedPayloads.Load()}
	st.mu.RLock()
	sl := st.link
	st.mu.RUnlock()
	out.Connected = sl != nil && sl.welcomed()
	for _, s := range st.all() {
		s.mu.Lock()
		out.Sessions++
		out.PendingEvents += s.pendingEvents
		out.PendingBytes += s.pendingBytes
		out.Bytes += s.log.bytes
		s.mu.Unlock()
	}
	return out
}
