package gvstream

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// A Streamer is an agent's side: it numbers the events of sessions, keeps them
// until the hub has acknowledged them and, as far as its limits allow, for replay
// after that, and resends them after a reconnect. It starts no goroutines.
//
// All methods are safe for concurrent use.
type Streamer struct {
	cfg    StreamerConfig
	sizes  sizes
	epochs *epoch.Source
	budget budget
	closed atomic.Bool // no more publishing
	shut   atomic.Bool // no more links

	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu       sync.RWMutex // level 1; protects the fields below
	sessions map[string]*Session
	link     *streamerLink // the newest, or nil

	someEnded atomic.Bool // ended is not empty

	endedMu sync.Mutex // level 4; protects the field below
	ended   []endedSession
}

// endedSession is when a session is to be forgotten, or looked at again; they stand
// in that order.
type endedSession struct {
	s  *Session
	at time.Time
}

// NewStreamer returns a Streamer without sessions or links. A nil config means
// the defaults; cfg is copied.
func NewStreamer(cfg *StreamerConfig) *Streamer {
	st := &Streamer{cfg: cfg.withDefaults(), sizes: fullSizes, epochs: epoch.Process, sessions: make(map[string]*Session)}
	st.budget.max = int64(st.cfg.MaxTotalBytes)
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

func (st *Streamer) session(now time.Time, id string) (*Session, error) {
	st.expire(now)
	if s := st.lookup(id); s != nil {
		return s, nil
	}
	if !validID(id) {
		return nil, ErrInvalidID
	}
	return st.create(now, id)
}

// create makes the session, unless a call at the same time was first.
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
		return nil, ErrTooMany
	}
	s := &Session{st: st, id: id, epoch: st.epochs.Next(now), life: &emptyLife}
	st.sessions[id] = s
	if al := st.link; al != nil {
		al.attach(s)
	}
	return s, nil
}

func (st *Streamer) lookup(id string) *Session {
	st.mu.RLock()
	defer st.mu.RUnlock()
	return st.sessions[id]
}

// all returns the sessions in the order of their ids.
func (st *Streamer) all() []*Session {
	st.mu.RLock()
	out := slices.Collect(maps.Values(st.sessions))
	st.mu.RUnlock()
	sortSessions(out)
	return out
}

func sortSessions(ss []*Session) {
	slices.SortFunc(ss, func(a, b *Session) int { return cmp.Compare(a.id, b.id) })
}

// Publish appends an event to a session, which is created on first use, and
// returns its sequence number: the first event of a session has number 1, each
// next one the next number (rule 1). It sets the event's Seq, and its Time if that
// is zero, and ignores its End. The event's bytes are copied: they may be changed
// when Publish returns.
//
// It blocks only under the policy Block, while pending is full; ctx ends the wait,
// and its cause is returned. A publish that returns an error used no number.
// Errors: ErrPendingFull, ErrTooLarge, ErrInvalidData, ErrInvalidID, ErrTooMany,
// ErrEnded, ErrSeqExhausted, ErrClosed, or the *ProtocolError by which the hub
// stopped the session (rule 11).
func (st *Streamer) Publish(ctx context.Context, sessionID string, ev Event) (uint64, error) {
	return st.withSession(sessionID, func(s *Session) (uint64, error) { return s.Publish(ctx, ev) })
}

// End publishes the last event of a session, which is acknowledged and replayed
// like any other; Publish returns ErrEnded from then on. Otherwise it is as
// Publish. The session is forgotten 5 minutes after the hub acknowledged the end
// (rule 16); an event published after that begins a new life of the session.
func (st *Streamer) End(ctx context.Context, sessionID string, ev Event) (uint64, error) {
	return st.withSession(sessionID, func(s *Session) (uint64, error) { return s.End(ctx, ev) })
}

// withSession calls f with the session, again if it was forgotten meanwhile.
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

// forgetLaterLocked notes a session whose end was acknowledged, unless it is noted.
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

// expire forgets the sessions whose time has come.
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
			st.ended = nil // a slice of none still holds them all
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

// remove forgets s if its state, seen under the lock, is the one expected.
func (st *Streamer) remove(s *Session, expected func() bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || !expected() {
		return
	}
	delete(st.sessions, s.id)
	s.dropLocked()
	s.gone = true
}

// Forget removes a session with everything it holds, acknowledged or not. Waiting
// calls return; a handle of it returns ErrClosed. An event published later begins
// a new life of the session, in a greater epoch. The hub is not told: to it, the
// session stands idle, and counts against its limits, until HubConfig.SessionTTL
// after the link is lost. One that has ended is better left to be forgotten by
// itself. It does not block.
func (st *Streamer) Forget(sessionID string) {
	if s := st.lookup(sessionID); s != nil {
		st.remove(s, func() bool { return true })
	}
}

// Renew begins a new life of a session under a greater epoch, numbered from 1. It
// is the only way past a hub's stale_epoch or forbidden (rules 2 and 11), and it
// gives up everything the session holds: take what Unacked yields first in order
// to publish it again. It does not block. Errors: ErrUnknownSession, ErrClosed;
// ErrInvalidID if the epoch the hub knows leaves no greater one.
func (st *Streamer) Renew(sessionID string) error {
	return st.renew(time.Now(), sessionID)
}

func (st *Streamer) renew(now time.Time, id string) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	s := st.sessions[id]
	if s == nil {
		return ErrUnknownSession
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
		s.dropLocked()
		s.epoch = fresh
	}
	s.mu.Unlock()
	if !ok {
		return ErrInvalidID
	}
	if st.link != nil {
		st.link.attach(s)
	}
	return nil
}

// Unacked yields the events of a session that the hub has not acknowledged, oldest
// first: each a copy the caller may keep. It goes on after Close. It does not
// block; events published while it runs may be yielded too.
func (st *Streamer) Unacked(sessionID string) iter.Seq[Event] {
	return func(yield func(Event) bool) {
		s := st.lookup(sessionID)
		if s == nil {
			return
		}
		for after := uint64(0); ; {
			s.mu.Lock()
			after = max(after, s.acked)
			p := s.log.read(span{after, s.log.head, s.log.head, maxBatchEvents, pageBytes, 0})
			s.mu.Unlock()
			if p.last <= after {
				return
			}
			after = p.last
			events := p.ownEvents()
			p.end()
			for _, ev := range events {
				if !yield(ev) {
					return
				}
			}
		}
	}
}

// Flush waits until the hub has acknowledged every event published before the
// call, or its declared loss; the hub may hold an ack back for 250 ms (rule 6). It
// returns nil then, ctx's cause if ctx ends first, ErrClosed once Close is done, and
// otherwise the first error by which the hub stopped a session. It does not wait for a session that is forgotten
// or renewed meanwhile. Without a connection it waits for one.
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
// until everything is acknowledged or ctx ends, and closes the link. It returns nil
// only if nothing is left unacknowledged, and otherwise an *UnackedError: Unacked
// still yields what is left. While it waits, links may break and be made. It may be
// called again, and then does not wait.
func (st *Streamer) Close(ctx context.Context) error {
	st.closed.Store(true)
	st.wakeAll() // blocked publishers
	err := st.Flush(ctx)
	st.mu.Lock()
	st.shut.Store(true)
	al := st.link
	st.mu.Unlock()
	if al != nil {
		al.Close()
	}
	st.wakeAll() // others that wait for acks, which come no more
	left := &UnackedError{Err: err}
	for _, s := range st.all() {
		s.mu.Lock()
		if s.acked < s.log.head {
			left.Sessions++
			left.Events += s.pendingEvents
		}
		s.mu.Unlock()
	}
	if left.Sessions == 0 {
		return nil
	}
	return left
}

func (st *Streamer) wakeAll() {
	for _, s := range st.all() {
		s.mu.Lock()
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}

// Stats returns the sums over all sessions. It does not block, and takes time in
// proportion to the number of sessions.
func (st *Streamer) Stats() StreamerStats {
	st.expire(time.Now())
	out := StreamerStats{StalePayloads: st.stalePayloads.Load(), RefusedPayloads: st.refusedPayloads.Load()}
	st.mu.RLock()
	al := st.link
	st.mu.RUnlock()
	out.Connected = al != nil && al.welcomed()
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
