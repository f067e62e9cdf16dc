package gvstream

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// This file is the way of a session's events from their agent into its log, past the store:
//
//	received   the batch was checked, and waits in the session's intake
//	stored     one call of Commit at a time, in a worker, with what has come together
//	accepted   in the log: acknowledged, and visible to viewers (rule 8)
//
// No link waits for a store. Each session has its turn at the workers, so that one whose store is
// slow, or fails, holds up no other (L8). Without Commit, what arrives is accepted at once, and the
// intake is used only while a refused event is in the way.

// An intake is what was received of a session and is not accepted yet, and the calls to the store
// that are made about it. The session's lock protects it.
//
//	log.head | in the running call |  pages  |
//	         | ................. calling ... received
type intake struct {
	received uint64          // last number received; nothing between it and the log's head is missing
	pages    []page          // in order, in memory of their own; the first follows calling, or the log's head
	bytes    int             // what the pages count against MaxUncommittedBytes
	endsAt   uint64          // the number of an End event in the pages or the running call, or 0
	refused  []uint64        // numbers in pages that are gaps here, and not yet at the agent, in order
	ctx      context.Context // of the last payload, for the values that its callbacks see

	busy    bool       // a call of Resume or Commit is running
	calling uint64     // last number in the running call of Commit, or 0
	waiting []*opening // that need the session when it is not busy any more
	turn    bool       // it is the turn of one that waited: no call begins before it has looked
	commit  commitJob
}

// A commitJob is the session's turn at the hub's workers that call Commit.
type commitJob struct {
	s     *hubSession
	place sched.Element[job] // the lock of the workers protects it
}

// Bounds of one call of Commit, beyond its first batch.
const (
	commitItems = 1024
	commitBytes = 1 << 20
)

// A callContext is a callback's: it has the values of the link's, and ends with the hub, or for
// an agent's opening, with the link.
type callContext struct {
	context.Context
	values context.Context
}

func (c callContext) Value(key any) any { return c.values.Value(key) }

// callLocked runs a callback of the store without the lock, which it takes again, even when the
// callback panics. One runs at a time for a session, over all links, since the store must not be
// asked where it stands while it is being written to (rule 8). As long as it runs, busy keeps
// the session in the hub's map and out of the clock's way, but Forget, Close, takeovers and the
// end of the link don't wait: the caller looks again at the epoch and the receiver.
func (s *hubSession) callLocked(f func() error) error {
	s.busy = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.busy = false
		for _, o := range s.waiting {
			o.turns = true
			s.h.openings.add(&o.place, o)
		}
		s.turn, s.waiting = len(s.waiting) > 0, nil
	}()
	return f()
}

// uncommitted is what a page counts against MaxUncommittedBytes: the bytes of its events, and its
// lists.
func (p *page) uncommitted() int { return p.bytes + gapBytes*len(p.slots) }

// reserve counts bytes that wait for the store against an agent's limit, if it has room for them.
// There is always room for one batch, whatever its size, or it could never be stored.
// It may be called with the locks of a session and a link.
func (h *Hub) reserve(agentID string, bytes int) bool {
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	if was := h.uncommitted[agentID]; was > 0 && was+bytes > h.cfg.MaxUncommittedBytes {
		return false
	}
	h.uncommitted[agentID] += bytes
	return true
}

// unreserve gives back what reserve took.
func (h *Hub) unreserve(agentID string, bytes int) {
	if bytes == 0 {
		return
	}
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	if h.uncommitted[agentID] -= bytes; h.uncommitted[agentID] == 0 {
		delete(h.uncommitted, agentID)
	}
}

// keep moves the page's lists and bytes to memory of their own, since it outlasts its payload.
func (p *page) keep() {
	p.gaps = slices.Clone(p.gaps)
	if p.held == heldByFrame {
		p.detach()
	} else {
		p.pack()
	}
}

// lastLocked returns the number of the session's end, if that was received or accepted.
func (s *hubSession) lastLocked() (seq uint64, ok bool) {
	if s.ended {
		return s.log.head, true
	}
	return s.endsAt, s.endsAt > 0
}

// takeLocked receives what is new in a page, and accepts it as soon as the store allows.
func (rc *receiver) takeLocked(ctx context.Context, now time.Time, p *page) {
	s, h := rc.s, rc.ha.h
	p.clip(s.received)
	tooLarge := p.loseLarger(h.cfg.MaxEventBytes)
	if h.cfg.Commit == nil && len(s.pages) == 0 && len(tooLarge) == 0 {
		p.pack()
		rc.acks.came()
		rc.acceptLocked(now, *p)
		s.received = s.log.head
		return
	}
	bytes := p.uncommitted()
	if !h.reserve(s.owner, bytes) {
		rc.acks.full(now, s.log.head)
		rc.wakeLocked(now)
		return
	}
	p.keep()
	rc.acks.came()
	s.pages = append(s.pages, *p)
	s.bytes += bytes
	s.received = p.last
	if p.hasEnd() {
		s.endsAt = p.last
	}
	s.ctx = context.WithoutCancel(ctx)
	for _, seq := range tooLarge {
		s.refused = append(s.refused, seq)
		rc.refuseLocked(now, seq, refusal(CodeEventTooLarge, s.id, "an event has at most %d bytes", h.cfg.MaxEventBytes))
	}
	s.drainLocked(now)
}

// loseLarger turns the events whose JSON has more bytes than that into gaps, and returns their
// numbers.
func (p *page) loseLarger(bytes int) (seqs []uint64) {
	for i := p.firstLarger(bytes); i >= 0; i = p.firstLarger(bytes) {
		seqs = append(seqs, p.slots[i].to)
		p.lose(i, ReasonRejected)
	}
	return seqs
}

// confirmLocked looks for refused events in a page of the agent's. Where the agent has a gap now,
// as the intake has, nothing is in the way any more. An event that the agent still has it is told
// of once more, at most once a second: the refusal may have been lost.
func (rc *receiver) confirmLocked(now time.Time, p *page) {
	s := rc.s
	var again []uint64
	before := len(s.refused)
	s.refused = slices.DeleteFunc(s.refused, func(seq uint64) bool {
		if seq < p.first || seq > p.last {
			return false
		}
		if p.has(seq) {
			again = append(again, seq)
			return false
		}
		return true
	})
	if len(again) > 0 && len(rc.refusals) == 0 && now.Sub(rc.refusedAt) >= nackEvery {
		for _, seq := range again {
			rc.refuseLocked(now, seq, refusal(CodeEventRejected, s.id, "refused before"))
		}
	}
	if len(s.refused) < before {
		s.drainLocked(now)
	}
}

// drainLocked goes on with what was received: it has a worker store it, or accepts it if there is
// no store. It is called after whatever may have made something ready for that.
func (s *hubSession) drainLocked(now time.Time) {
	if s.h.cfg.Commit == nil {
		if call := s.nextCallLocked(); len(call) > 0 {
			s.acceptCallLocked(now, call)
		}
	} else if !s.busy && !s.turn && (s.endDueLocked(s.log.head) || len(s.pages) > 0 && (len(s.refused) == 0 || s.pages[0].first < s.refused[0])) {
		s.h.commits.add(&s.commit.place, &s.commit)
	}
}

// nextCallLocked takes out of the intake what the next call of Commit stores. It ends before the
// first refused event that the agent does not know of: the agent is to have the same gap there
// as the store and the viewers, before any later number is accepted.
func (s *hubSession) nextCallLocked() (call []page) {
	items, bytes := 0, 0
	for len(s.pages) > 0 {
		p := &s.pages[0]
		until := p.last
		if len(s.refused) > 0 {
			until = min(until, s.refused[0]-1)
		}
		if until < p.first {
			break
		}
		piece := *p
		piece.cut(until)
		items += len(piece.slots) + len(piece.gaps)
		bytes += piece.bytes
		if len(call) > 0 && s.h.cfg.Commit != nil && (items > commitItems || bytes > commitBytes) {
			break
		}
		s.bytes -= p.uncommitted()
		if until < p.last {
			p.clip(until)
			s.bytes += p.uncommitted()
		} else {
			s.pages[0] = page{}
			s.pages = s.pages[1:]
		}
		call = append(call, piece)
	}
	return call
}

// endDueLocked reports whether the store is to be told of the end, once everything up to a number
// is stored: the agent has said that the session ends there, and the end is no event.
func (s *hubSession) endDueLocked(last uint64) bool {
	return s.h.cfg.Commit != nil && s.endSeq != 0 && last >= s.endSeq && !s.ended && !s.endStored
}

// work calls Commit once, with what has come together in the intake.
func (j *commitJob) work(now time.Time) {
	s := j.s
	forgotten := false
	defer func() {
		s.mu.Unlock()
		if forgotten {
			s.h.release(s)
		}
		s.h.total.makeRoom(0)
	}()
	s.mu.Lock()
	s.storeLocked(now)
	forgotten = s.epoch == ""
}

// storeLocked has Commit store what is next, and accepts it. The lock is free while Commit runs.
// Meanwhile the session may have been forgotten, and then what Commit says does not count; or its
// link may have died, and then it does, as the next link finds.
func (s *hubSession) storeLocked(now time.Time) {
	if s.busy || s.turn || s.epoch == "" {
		return // what made it so ends with drainLocked
	}
	call := s.nextCallLocked()
	last, bytes, end := s.log.head, 0, false
	var items []Item
	for i := range call {
		p := &call[i]
		last, end = p.last, p.hasEnd()
		bytes += p.uncommitted()
		items = append(items, p.items(s.id, s.epoch)...)
	}
	if !end && s.endDueLocked(last) {
		end = true
		items = append(items, Item{SessionID: s.id, Epoch: s.epoch, End: true, Seq: last})
	}
	if len(items) == 0 {
		return
	}
	epoch, owner, ctx := s.epoch, s.owner, callContext{s.h.open, s.ctx}
	s.calling = last
	returned := false
	defer func() {
		if !returned { // a panic: nothing of it counts
			s.calling = 0
			s.h.unreserve(owner, bytes)
			s.dropIntakeLocked()
		}
	}()
	err := s.callLocked(func() error { return s.h.cfg.Commit(ctx, s.id, epoch, items) })
	returned = true
	s.calling = 0
	if s.epoch != epoch {
		s.h.unreserve(owner, bytes)
		return
	}
	switch {
	case err != nil && (s.owner != owner || s.receiver == nil): // there is nobody to tell
		s.h.unreserve(owner, bytes)
		s.dropIntakeLocked()
	case err == nil:
		s.endStored = s.endStored || end
		s.h.unreserve(owner, bytes)
		s.acceptCallLocked(now, call)
	case s.rejectLocked(now, call, err):
		s.pages, s.bytes = append(call, s.pages...), s.bytes+bytes
		s.recountLocked(owner, bytes, len(call))
	default:
		s.h.unreserve(owner, bytes)
		s.failLocked(now)
	}
	s.drainLocked(now)
}

// recountLocked counts the first n pages anew, some of whose events have become gaps.
func (s *hubSession) recountLocked(owner string, was, n int) {
	is := 0
	for i := range s.pages[:n] {
		is += s.pages[i].uncommitted()
	}
	s.bytes += is - was
	s.h.unreserve(owner, was-is)
}

// acceptCallLocked accepts what is stored, and owes the agent an ack for it.
func (s *hubSession) acceptCallLocked(now time.Time, call []page) {
	if s.receiver != nil {
		s.receiver.acceptLocked(now, call...)
	} else {
		s.acceptLocked(call...)
	}
}

// rejectLocked turns the events that Commit has refused into gaps, tells the agent, and reports
// whether there are any in the call. Any other error is a failure of the store.
func (s *hubSession) rejectLocked(now time.Time, call []page, err error) bool {
	var said *ProtocolError
	if !errors.As(err, &said) || said.Code != CodeEventRejected {
		return false
	}
	var lost []uint64
	for i := range call {
		p := &call[i]
		for j := 0; j < len(p.slots); {
			if seq := p.slots[j].to; seq < said.Seq || seq > max(said.Seq, said.ToSeq) {
				j++
				continue
			}
			lost = append(lost, p.slots[j].to)
			if p.slots[j].end() {
				s.endsAt = 0
			}
			p.lose(j, ReasonRejected)
		}
	}
	s.refused = append(lost, s.refused...)
	for _, seq := range lost {
		s.receiver.refuseLocked(now, seq, refusal(CodeEventRejected, s.id, "%s", said.Message))
	}
	return len(lost) > 0
}

// failLocked gives up what was received, since the store does not take it, and closes the session
// on its link, which lives. The agent is told to say later where the session stands.
func (s *hubSession) failLocked(now time.Time) {
	rc := s.receiver
	err := notNow(s.id, "the hub's store does not take the session's events")
	err.Epoch = s.epoch
	s.closeLocked(now)
	rc.failed = err
	rc.ha.h.refusedPayloads.Add(1)
	rc.ha.ready(&rc.task)
}

// closeLocked closes the session on the link where it is open, which goes on with others. What
// was received and not accepted has to come again.
func (s *hubSession) closeLocked(now time.Time) {
	s.dropIntakeLocked()
	s.receiver.closeLocked()
	s.receiver, s.away = nil, now
	s.wakeAllLocked()
	s.watchClockLocked()
}

// dropIntakeLocked forgets what was received and is in no running call, and where the end is: the
// agent says it again when it opens the session.
func (s *hubSession) dropIntakeLocked() {
	s.dropPagesLocked()
	if !s.ended {
		s.endSeq = 0
	}
}

// dropPagesLocked forgets what was received and is in no running call.
func (s *hubSession) dropPagesLocked() {
	s.h.unreserve(s.owner, s.bytes)
	s.pages, s.bytes, s.refused = nil, 0, nil
	s.received = max(s.log.head, s.calling)
	if s.endsAt > s.received {
		s.endsAt = 0
	}
}
