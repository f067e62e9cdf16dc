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

// Overflow is what Publish does when a session's pending is full (rule 10).
type Overflow int

const (
	// Block waits until the hub's acks make room, ctx ends or the Streamer is
	// closed. It is the default.
	Block Overflow = iota
	// Reject returns ErrPendingFull and uses no number.
	Reject
	// DropOldest turns the oldest pending events into a declared gap.
	DropOldest
)

// A StreamerConfig holds the limits of a Streamer. A nil config is all defaults.
type StreamerConfig struct {
	// Overflow is what Publish does when pending is full. If zero, Block.
	Overflow Overflow
	// MaxSessions is the number of sessions at a time. If zero, 10,000.
	// If negative, none.
	MaxSessions int
	// MaxPendingEvents is the number of unacknowledged events a session. If
	// zero, 8,192. If negative, none.
	MaxPendingEvents int
	// MaxPendingBytes is the bytes of unacknowledged events' JSON a session.
	// If zero, 8 MiB. If negative, none.
	MaxPendingBytes int
	// ReplayEvents is how many of the most recent events a session keeps for
	// replay, pending ones included. If zero, 1,000. If negative, none but the
	// pending ones.
	ReplayEvents int
	// ReplayBytes is the bytes of the JSON of the events kept for replay, a
	// session. If zero, 8 MiB. If negative, none but the pending ones.
	ReplayBytes int
	// MaxEventBytes is the bytes of an event's JSON, base64 included. If zero,
	// 1 MiB. If negative, none. It can't exceed MaxPendingBytes or
	// MaxTotalBytes; a transport has limits of its own, Lines 2 MiB a payload.
	MaxEventBytes int
	// MaxTotalBytes is the bytes of events' JSON of all sessions together. Over
	// it, acknowledged events of any session, oldest first, are evicted before
	// Overflow applies. DropOldest drops events of its own session only, and
	// returns ErrPendingFull where that is not enough. If zero or negative, there
	// is no such limit.
	MaxTotalBytes int
	// MaxReplays is the number of replay requests a session answers at a time.
	// If zero, 8. If negative, none.
	MaxReplays int
	// TrustData spares Publish the check of Data, which then has to be one JSON
	// value in UTF-8 without white space between its tokens, such as
	// json.Marshal makes. Never set it for data that others control: Data that
	// is no JSON value may be read as other fields of its batch, but of no other
	// payload, since Publish refuses a newline all the same. What the hub can't
	// read it refuses, whereupon the agent checks what it has sent and turns the
	// events that are wrong into gaps with ReasonRejected; no other event is
	// harmed (rule 11). If false, Publish refuses them.
	TrustData bool
}

func (c *StreamerConfig) withDefaults() StreamerConfig {
	var d StreamerConfig
	if c != nil {
		d = *c
	}
	d.MaxSessions = or(d.MaxSessions, 10_000)
	d.MaxPendingEvents = or(d.MaxPendingEvents, 8192)
	d.MaxPendingBytes = or(d.MaxPendingBytes, 8<<20)
	d.ReplayEvents = or(d.ReplayEvents, 1000)
	d.ReplayBytes = or(d.ReplayBytes, 8<<20)
	d.MaxEventBytes = min(or(d.MaxEventBytes, 1<<20), d.MaxPendingBytes)
	if d.MaxTotalBytes = max(d.MaxTotalBytes, 0); d.MaxTotalBytes > 0 {
		d.MaxEventBytes = min(d.MaxEventBytes, d.MaxTotalBytes)
	}
	d.MaxEventBytes = min(d.MaxEventBytes, maxFrame)
	d.MaxReplays = or(d.MaxReplays, 8)
	return d
}

// endedTTL is how long an agent remembers a session whose end was acknowledged; the
// hub keeps its events twice as long (rule 16).
const endedTTL = 5 * time.Minute

// A Streamer is an agent's side: it numbers the events of sessions, keeps them
// until the hub has acknowledged them and, as far as its limits allow, for replay
// after that, and resends them after a reconnect. It starts no goroutines.
//
// All methods are safe for concurrent use.
type Streamer struct {
	cfg    StreamerConfig
	sizes  sizes
	mint   *epoch.Source
	budget budget
	closed atomic.Bool // no more publishing
	shut   atomic.Bool // no more links

	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu       sync.RWMutex // level 1; protects the fields below
	sessions map[string]*Session
	link     *agentLink // the newest, or nil

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
	st := &Streamer{cfg: cfg.withDefaults(), sizes: fullSizes, mint: epoch.Process, sessions: make(map[string]*Session)}
	st.budget.max = int64(st.cfg.MaxTotalBytes)
	return st
}

// A Session is a handle of one session of a Streamer: its Publish spares the
// lookup. It is safe for concurrent use. After Streamer.Forget, or when the
// session was forgotten because it had ended, its methods return ErrClosed.
type Session struct {
	st *Streamer
	id string

	mu      sync.Mutex // level 2; protects the fields below
	epoch   string
	*life               // in this epoch; nobody's before the first event
	on      *attachment // the session on the current link, or nil
	changed signal
	age     *age // its place in the budget, whose lock protects it, or nil
	gone    bool // forgotten
	aged    bool // offered to the budget
	over    bool // it stands in the Streamer's list of sessions to forget
}

// A life is what has become of a session in one epoch.
type life struct {
	log           log
	acked         uint64 // everything up to it is acknowledged
	maxSent       uint64 // highest number handed out
	pendingEvents int    // events in (acked, head]
	pendingBytes  int
	hasEnded      bool       // the last event was published
	stopped       error      // why the hub does not want it
	overAt        *time.Time // when to forget it, once its end is acknowledged
	lost          uint64
	progress      map[string]uint64 // viewers, as a hub relays them
}

// unborn is the life of sessions of which nothing has become: most of many. It never
// changes.
var unborn life

// begin has the session a life of its own, which may be changed.
func (s *Session) begin() {
	if s.life == &unborn {
		s.life = new(life)
	}
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
	s := &Session{st: st, id: id, epoch: st.mint.Next(now), life: &unborn}
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
	d := draft{ev: ev}
	if err := s.fill(&d); err != nil {
		return 0, err
	}
	s.st.budget.makeRoom(d.size())
	s.mu.Lock()
	seq, err := s.offer(&d)
	s.mu.Unlock()
	if err == ErrPendingFull && s.st.cfg.Overflow == Block {
		return s.publishLater(ctx, &d)
	}
	return seq, err
}

// publishLater waits until there is room.
func (s *Session) publishLater(ctx context.Context, d *draft) (uint64, error) {
	for {
		freed := s.st.budget.wait() // before the try, so that nothing is missed
		s.st.budget.makeRoom(d.size())
		s.mu.Lock()
		seq, err := s.offer(d)
		var wait <-chan struct{}
		if err == ErrPendingFull {
			wait = s.changed.wait()
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

// fill fills a draft in for this session.
func (s *Session) fill(d *draft) error {
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

// offer appends the event if it may.
func (s *Session) offer(d *draft) (uint64, error) {
	if err := s.refuses(); err != nil {
		return 0, err
	}
	if !s.makeRoom(d.size()) {
		return 0, ErrPendingFull
	}
	s.begin()
	n := s.log.publish(d)
	s.st.budget.release(d.size() - n)
	s.pendingEvents++
	s.pendingBytes += n
	if d.ev.End {
		s.hasEnded = true
		s.changed.broadcast() // who waits for room, waits for nothing
	}
	s.trim()
	s.poke()
	return s.log.head, nil
}

// refuses says why nothing can be published, if nothing can.
func (s *Session) refuses() error {
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

// makeRoom reserves room for n more bytes in pending (rule 10).
func (s *Session) makeRoom(n int) bool {
	cfg := &s.st.cfg
	for {
		full := s.pendingEvents >= cfg.MaxPendingEvents || s.pendingBytes+n > cfg.MaxPendingBytes
		if !full && s.st.budget.reserve(n) {
			return true
		}
		if cfg.Overflow != DropOldest || s.pendingEvents == 0 || !s.st.budget.fits(n, s.pendingBytes) {
			return false // nothing to drop, or nothing gained by it
		}
		s.dropOldest()
	}
}

// dropOldest turns the oldest pending event into a gap.
func (s *Session) dropOldest() {
	i := s.log.find(s.acked + 1)
	for s.log.ring.at(i).gap() {
		i++
	}
	s.loseAt(i, ReasonDropped)
}

// loseAt turns the pending event at index i into a gap. If the hub has it all the
// same, its ack clears the gap; if not, the gap is what is sent.
func (s *Session) loseAt(i int, reason Reason) {
	n := s.log.lose(i, reason)
	s.pendingEvents--
	s.pendingBytes -= n
	s.lost++
	s.st.budget.release(n)
}

// trim evicts what is acknowledged and more than is kept for replay.
func (s *Session) trim() {
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
	s.trim()
}

// poke has the session send what it can, unless it is about to be asked anyway.
func (s *Session) poke() {
	if a := s.on; a != nil && !a.poked {
		a.poked = true
		a.l.ready(&a.task)
	}
}

// free takes note that the hub has everything up to a number, which is not below
// acked.
func (s *Session) free(now time.Time, upTo uint64) {
	if upTo > s.acked {
		s.begin()
		for i := s.log.find(s.acked + 1); i < s.log.ring.n; i++ {
			e := s.log.ring.at(i)
			if e.to > upTo {
				break
			}
			if !e.gap() {
				s.pendingEvents--
				s.pendingBytes -= int(e.size)
			}
		}
		s.acked = upTo
		s.trim()
		s.changed.broadcast()
		if s.hasEnded && s.acked == s.log.head {
			at := now.Add(endedTTL)
			s.overAt = &at
			s.st.forgetLater(s)
		}
	}
}

// moveBack makes everything after a number pending again, because the hub has
// lost it. What the log no longer holds, is declared (rule 6).
func (s *Session) moveBack(to uint64) {
	if first := s.log.first(); first > to+1 {
		s.lost += min(first-1, s.acked) - to
		s.log.declare(to, ReasonEvicted)
	}
	for i := s.log.find(to + 1); i < s.log.ring.n; i++ {
		e := s.log.ring.at(i)
		if s.log.from(i) > s.acked {
			break
		}
		if !e.gap() {
			s.pendingEvents++
			s.pendingBytes += int(e.size)
		}
	}
	s.acked, s.overAt = to, nil
}

// forgetLater notes a session whose end was acknowledged, unless it is noted.
func (st *Streamer) forgetLater(s *Session) {
	if s.over {
		return
	}
	s.over = true
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
			s.over = false
			if s.overAt != nil && s.overAt.After(now) { // its end was acknowledged once more
				st.forgetLater(s)
			}
			return !s.over && s.overAt != nil
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
	s.drop()
	s.gone = true
}

// drop gives up everything the session holds.
func (s *Session) drop() {
	s.st.budget.release(s.log.bytes)
	s.life = &unborn
	if s.aged {
		s.aged = false
		s.st.budget.forget(s)
	}
	if s.on != nil {
		s.on.l.forget(&s.on.task)
		s.on = nil
	}
	s.changed.broadcast()
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
	if stopped, ok := s.stopped.(*ProtocolError); ok && stopped.Epoch > known {
		known = stopped.Epoch
	}
	fresh, ok := st.mint.Past(now, known)
	if ok {
		s.drop()
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

func (s *Session) waitAcked(ctx context.Context, epoch string, head uint64) error {
	for {
		s.mu.Lock()
		done := s.gone || s.epoch != epoch || s.acked >= head
		stopped, wait := s.stopped, s.changed.wait()
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
		s.changed.broadcast()
		s.mu.Unlock()
	}
}

// StreamerStats is what a Streamer holds and has seen.
type StreamerStats struct {
	Sessions        int    // ended ones that are remembered included
	PendingEvents   int    // unacknowledged
	PendingBytes    int    // of their JSON
	Bytes           int    // of the JSON of all events held
	Connected       bool   // a link was welcomed by the hub
	StalePayloads   uint64 // payloads of another link or epoch, which changed nothing
	RefusedPayloads uint64 // payloads answered by an error
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

// SessionStats is where one session stands, at an agent or at a hub.
type SessionStats struct {
	SessionID string
	Epoch     string
	First     uint64 // first number held
	Head      uint64 // agent: last number published; hub: last number the agent is known to have
	Acked     uint64 // agent: last number acknowledged; hub: last number accepted
	Events    int    // events held
	Bytes     int    // of their JSON
	Ended     bool   // the last event was published; hub: accepted
	Connected bool   // it is open on a link between agent and hub

	PendingEvents int               // agent: unacknowledged
	PendingBytes  int               // agent: of their JSON
	Lost          uint64            // agent: events that became gaps before they were acknowledged
	Progress      map[string]uint64 // agent: viewers' progress, if the hub relays it (rule 6)

	AgentID string // hub: the agent the session belongs to
	Viewers int    // hub: watches on it
}

// Stats returns where the session stands. It does not block.
func (s *Session) Stats() SessionStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := SessionStats{
		SessionID: s.id, Epoch: s.epoch, First: s.log.first(), Head: s.log.head, Acked: s.acked,
		Events: s.log.events, Bytes: s.log.bytes, Ended: s.hasEnded,
		Connected:     s.on != nil && s.on.opened,
		PendingEvents: s.pendingEvents, PendingBytes: s.pendingBytes, Lost: s.lost,
	}
	out.Progress = maps.Clone(s.progress)
	return out
}
