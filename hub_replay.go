package gvstream

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// This file gets events that are older than the hub's log (rule 12). The agent has them; the hub
// asks for a piece at a time, which is a fetch, and all cursors that need events of that piece
// read them there, as they read the log. A fetch goes a second after the last of them has left.
//
//	the cursor                what it has
//	waits to be asked for     a place in its session's asking
//	waits for events          a fetch, and a place in its waiting
//	reads                     a fetch
//	has waited too long       a gap up to the hub's log, and nothing of the above
//
// The events of a fetch arrive on the agent's link, and a cursor goes on when its viewer's link
// asks it. Either connection may be stuck. So the agent's link keeps the time of requests and
// the viewer's that of its cursors, and neither waits for the other.

// fetching is what a session has asked its agent for. hubSession embeds it.
type fetching struct {
	fetches []*fetch             // in the order in which they were made
	asking  sched.Queue[*cursor] // need events that are in no fetch; the first is asked for next

	few      int       // events to ask for at most, after a link that broke before any came; 0: as many as may be
	newsAt   time.Time // when the agent last answered a request
	silentOn string    // the link on which the agent answers none, or empty
}

// fetchOlderLocked returns the next piece of what is older than the hub's log, as much of it as
// the span allows, or a gap if nobody has it. If it returns nil, the cursor is in a queue and has set a time, so that something wakes
// it. What has come is given out before anything else is looked at, however old it is.
func (c *cursor) fetchOlderLocked(now time.Time, l *log, r span) *page {
	s := c.s
	until := l.first() - 1
	if l != &s.log { // no agent has the older epoch any more
		return c.gapLocked(until, ReasonEvicted)
	}
	if c.attachLocked() {
		switch f := c.fetch; {
		case c.sent < f.log.head:
			c.waitingSince = time.Time{}
			r.until = f.log.head
			return s.readLocked(&f.log, r)
		case f.lost:
			return c.gapLocked(f.until, ReasonUnavailable)
		}
	}
	if s.h.cfg.MaxReplays == 0 || !now.Before(c.patienceLocked(now)) {
		return c.gapLocked(until, ReasonUnavailable)
	}
	if c.fetch == nil {
		s.asking.Push(&c.fetchPlace, c)
		s.h.await(s)
		s.askLocked(now)
	}
	if c.fetch != nil {
		c.fetch.waiting.Push(&c.fetchPlace, c)
	}
	c.hv.schedule(&c.task, c.patienceLocked(now))
	return nil
}

// patienceLocked returns until when the cursor waits. An agent that is away is waited for from
// when the cursor first needed it, over all links that come and go meanwhile. One that is there
// is waited for as long from when it last answered any request of the session, since the others
// may have to wait for that.
//
// A request may be lost, and an answer may take long on a slow link, where nothing else comes
// meanwhile. So silence counts only if the agent was asked twice, or reads nothing, and once
// something else of it has come after the time, up to timerMax: that much no payload takes. It is
// remembered for the link, so that later cursors don't wait.
func (c *cursor) patienceLocked(now time.Time) time.Time {
	s, wait := c.s, c.s.h.cfg.ReplayWait
	if c.waitingSince.IsZero() {
		c.waitingSince = now
	}
	ha, greeted := s.h.agent(s.owner)
	switch {
	case ha == nil:
		return earlier(later(c.waitingSince, s.away).Add(wait), c.waitingSince.Add(max(wait, timerMax)))
	case !greeted: // its hello may have been lost; by then it has come again, or the link is dead
		return earlier(later(c.waitingSince, s.away).Add(max(wait, maxSilence)), c.waitingSince.Add(max(wait, timerMax)))
	case s.silentOn == ha.id:
		return now
	}
	since := later(c.waitingSince, s.newsAt)
	last := since.Add(max(wait, timerMax))
	f := c.fetch
	if f == nil { // those that are asked for first find out
		return last
	}
	last = earlier(last, f.newsAt.Add(max(wait, timerMax))) // it answers others, and never this one
	greetedAt, heardAt := ha.times()
	at := later(later(since, greetedAt).Add(max(wait, replayAgain)), f.againAt.Add(replayLost))
	if now.Before(at) {
		return earlier(at, last)
	}
	if !heardAt.Before(at) {
		if !f.againAt.IsZero() || f.overdueLocked(now) {
			s.silenceLocked(ha)
			return now
		}
		f.askAgainLocked(now)
	}
	return earlier(now.Add(time.Second), last)
}

// silenceLocked remembers that the agent answers nothing on its link, and tells all that wait.
func (s *hubSession) silenceLocked(ha *hubAgentLink) {
	s.silentOn = ha.id
	for c := s.asking.Pop(); c != nil; c = s.asking.Pop() {
		c.hv.ready(&c.task)
	}
	for _, f := range s.fetches {
		f.wakeLocked()
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// gapLocked declares what nobody can give to the cursor, up to a number. It is true for this
// viewer alone: another may have got the events, or get them when the agent is back.
func (c *cursor) gapLocked(to uint64, reason Reason) *page {
	c.stopAskingLocked()
	p := gapPage(c.sent+1, to, reason)
	p.private = true
	return &p
}

// stopAskingLocked ends the cursor's wait for older events, and its reading of them.
func (c *cursor) stopAskingLocked() {
	c.fetchPlace.Remove()
	c.leaveFetchLocked()
	c.waitingSince = time.Time{}
}

// attachLocked makes the cursor read the fetch that has its next number, or will have it, and
// reports whether there is one.
func (c *cursor) attachLocked() bool {
	next := c.sent + 1
	if c.fetch != nil && c.fetch.covers(next) {
		return true
	}
	c.leaveFetchLocked()
	for _, f := range c.s.fetches {
		if f.covers(next) {
			c.readFetchLocked(f)
			return true
		}
	}
	return false
}

func (c *cursor) readFetchLocked(f *fetch) {
	c.fetchPlace.Remove()
	c.fetch, c.fromStart = f, c.sent+1 == f.log.first()
	f.readers++
	f.leftAt = time.Time{}
}

// leaveFetchLocked takes the cursor off its fetch. What becomes of one that nobody reads any
// more is for its task, on the agent's link; if that is dead, it goes at once.
func (c *cursor) leaveFetchLocked() {
	f := c.fetch
	if f == nil {
		return
	}
	c.fetchPlace.Remove()
	c.fetch = nil
	f.readers--
	f.read = f.read || c.fromStart && c.sent >= f.end()
	switch {
	case f.gone || f.readers > 0:
	case f.ha == nil:
		f.dropLocked()
	default:
		f.ha.ready(&f.task)
	}
}

// askLocked makes requests for the cursors that wait to be asked for, in their order, as far as
// MaxReplays allows. It makes them here and now, for the cursors: to wake one and let it ask
// would be wrong, since its viewer's link may be stuck, and the others would wait for it.
func (s *hubSession) askLocked(now time.Time) {
	ha, greeted := s.h.agent(s.owner)
	if !greeted {
		return
	}
	for c := s.asking.Front(); c != nil; c = s.asking.Front() {
		if c.epoch == s.epoch && c.sent+1 < s.log.first() && s.silentOn != ha.id && !c.attachLocked() {
			if !s.mayAskLocked() || !s.fetchLocked(now, c, ha) {
				return
			}
		}
		c.fetchPlace.Remove()
		c.hv.ready(&c.task)
	}
}

// mayAskLocked reports whether another request may be made. The agent is answering MaxReplays at
// most. And what it has answered and nobody has read from start to end counts for the second that
// it stays, up to as much: so viewers that come and go can't make an agent send without a limit.
func (s *hubSession) mayAskLocked() bool {
	open, unread := 0, 0
	for _, f := range s.fetches {
		if f.open {
			open++
		} else if f.unreadLocked() {
			unread += f.size()
		}
	}
	return open < s.h.cfg.MaxReplays && unread/maxRequestBytes < s.h.cfg.MaxReplays
}

// fetchLocked asks for the events that a cursor needs next, up to what another fetch has or the
// log begins with. It reports false if the link is dead: then its map is nil.
func (s *hubSession) fetchLocked(now time.Time, c *cursor, ha *hubAgentLink) bool {
	f := &fetch{
		s: s, ha: ha, viewerID: c.hv.viewerID, log: log{head: c.sent}, until: s.log.first() - 1,
		left: cmp.Or(s.few, s.h.sizes.replay), open: true, askAt: now, newsAt: now,
	}
	for _, other := range s.fetches {
		if from := other.log.first(); from > c.sent {
			f.until = min(f.until, from-1)
		}
	}
	f.task = task{Source: f.next, Control: true}
	ha.mu.Lock()
	dead := ha.requests == nil
	if !dead {
		ha.requestCount++
		f.id = ha.id + "-" + strconv.Itoa(ha.requestCount) // an id that no other link uses
		ha.requests[f.id] = f
		ha.readyLocked(&f.task)
	}
	ha.mu.Unlock()
	if dead {
		return false
	}
	s.evictFetchesLocked()
	s.fetches = append(s.fetches, f)
	c.readFetchLocked(f)
	return true
}

// evictFetchesLocked makes room for another fetch, if four times as much is held as may be asked
// for at a time: the oldest go, those first that nobody reads. A viewer that is that slow has to
// ask again. What counts as unread stays, or it would no longer count; it is bounded itself.
func (s *hubSession) evictFetchesLocked() {
	for {
		var oldest *fetch
		held := 0
		for _, f := range s.fetches {
			held += f.size()
			if !f.open && !f.unreadLocked() && (oldest == nil || oldest.readers > 0 && f.readers == 0) {
				oldest = f
			}
		}
		if held/maxRequestBytes/4 < s.h.cfg.MaxReplays || oldest == nil {
			return
		}
		oldest.dropLocked()
	}
}

// endFetchesLocked ends everything that was asked for: the session gets another epoch, another
// owner or none. Cursors decide anew when they are woken.
func (s *hubSession) endFetchesLocked() {
	for len(s.fetches) > 0 {
		s.fetches[0].dropLocked()
	}
	for c := s.asking.Pop(); c != nil; c = s.asking.Pop() {
		c.hv.ready(&c.task)
	}
	s.h.unawait(s)
	s.newsAt, s.silentOn = time.Time{}, ""
}

// maxRequestBytes is how much of the answers to one request the hub holds before it takes no
// more, and asks on later. An agent that keeps to rule 12 ends an answer with a limit there by
// itself; one that doesn't is held to it here.
const maxRequestBytes = maxReplayBytes

// A fetch is a replay request to a session's agent, and the events that came of it, as a log of
// its own. Any number of cursors read it. The session's lock protects it.
//
//	made       a task on its agent's link
//	asked      answers are awaited; asked again, under the same id, after a loss or a refusal
//	complete   not open: all has come, or all that the agent gives at a time, or the link died
//	gone       no longer in its session's fetches; what comes for it is stale
//
// An answer goes into the log in order; the agent is asked to go on from the log's head. One
// that the agent refuses for good, or to which it has nothing to give, is lost.
type fetch struct {
	task     // asks, and drops the fetch when nobody reads it any more
	s        *hubSession
	ha       *hubAgentLink // on whose link it was made; nil: that is dead
	id       string
	viewerID string // of the viewer that needed it first: every payload names one

	log   log    // begins at the first number that was asked for
	until uint64 // the last one
	left  int    // events that may still come
	bytes int    // that came
	open  bool   // the agent may be answering it
	lost  bool   // the agent does not give what the log lacks
	gone  bool

	askAt   time.Time // when to ask; zero: it was asked
	askedAt time.Time // when it was asked last; zero: never
	againAt time.Time // when it was asked for the second time; zero: it was not
	newsAt  time.Time // when it was made, or something new came

	readers int                  // cursors that have it as their fetch
	waiting sched.Queue[*cursor] // of these, those that have read what there is
	read    bool                 // one has read all of it
	leftAt  time.Time            // when it was seen without a reader; zero: it has some
}

// end is the last number that the fetch has, or may still get.
func (f *fetch) end() uint64 {
	if f.open || f.lost {
		return f.until
	}
	return f.log.head
}

// size is what the fetch counts for, in bytes. A small one costs as well.
func (f *fetch) size() int { return max(f.bytes, firstReplayPage) }

// unreadLocked reports whether all cursors left a fetch and none has read all of it, so that the
// agent may have sent it for nothing.
func (f *fetch) unreadLocked() bool { return f.readers == 0 && !f.read }

// covers reports whether a cursor finds a number here, or that nobody has it.
func (f *fetch) covers(seq uint64) bool {
	return !f.gone && seq >= f.log.first() && seq <= f.end()
}

// next asks the agent, when it is time to: at first, a second after a part was lost or the agent
// was busy, and when nothing has come for a while though something else came after that. On a
// slow link an answer may take longer, and then nothing else comes before it.
func (f *fetch) next(now time.Time) Payload {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	switch {
	case f.gone || f.ha == nil:
		return nil
	case f.readers == 0 && !f.silentLocked():
		f.lingerLocked(now)
		return nil
	case !f.open:
		return nil
	}
	at := f.askAt
	if f.silentLocked() && !f.askedAt.IsZero() {
		at = f.askedAt.Add(timerMax)
	} else if at.IsZero() {
		at = later(f.askedAt, f.newsAt).Add(replayLost)
		if _, heardAt := f.ha.times(); !now.Before(at) && heardAt.Before(at) {
			at = now.Add(time.Second)
		}
	}
	if now.Before(at) {
		f.ha.schedule(&f.task, at)
		return nil
	}
	if !f.askedAt.IsZero() && f.againAt.IsZero() {
		f.againAt = now
	}
	f.askAt, f.askedAt = time.Time{}, now
	return &ReplayRequestPayload{
		SessionID: f.s.id, ViewerID: f.viewerID, RequestID: f.id, Epoch: f.s.epoch,
		AfterSeq: f.log.head, UntilSeq: f.until, Limit: f.left,
	}
}

func (f *fetch) silentLocked() bool { return f.open && f.s.silentOn == f.ha.id }

// lingerLocked drops a fetch that nobody reads, in time. One that was never sent costs the agent
// nothing, and goes at once. What has come stays for a second, so that a viewer that comes back,
// or another, finds it, and the agent need not send the same twice in a second. One that the agent may still be answering keeps its place, or the hub
// would ask for more than the agent does at a time; there is no payload that ends it. If the
// agent answers none, it stays: an answer to it would show that the agent has come to life.
func (f *fetch) lingerLocked(now time.Time) {
	if f.leftAt.IsZero() {
		f.leftAt = now
	}
	at := f.leftAt.Add(replayAgain)
	switch {
	case f.askedAt.IsZero():
		at = now
	case f.open:
		at = later(f.leftAt, f.newsAt).Add(max(f.s.h.cfg.ReplayWait, replayAgain))
	}
	if now.Before(at) {
		f.ha.schedule(&f.task, at)
		return
	}
	f.dropLocked()
	f.s.askLocked(now)
}

// askAgainLocked asks once more at a time, unless that is due already: at most once in replayAgain,
// since the agent's link may have taken the last request only now.
func (f *fetch) askAgainLocked(at time.Time) {
	if f.askAt.IsZero() {
		f.askAt = later(at, f.askedAt.Add(replayAgain))
		f.ha.schedule(&f.task, f.askAt)
	}
}

// overdueLocked reports whether the agent's link has not taken a request for long.
func (f *fetch) overdueLocked(now time.Time) bool {
	return !f.askAt.IsZero() && !now.Before(f.askAt.Add(replayLost))
}

// closeLocked notes that nothing more is to come. The agent's place is free.
func (f *fetch) closeLocked(now time.Time) {
	f.open = false
	f.wakeLocked()
	f.s.askLocked(now)
}

func (f *fetch) wakeLocked() {
	for c := f.waiting.Pop(); c != nil; c = f.waiting.Pop() {
		c.hv.ready(&c.task)
	}
}

// dropLocked forgets the fetch. Its readers find that out when they are asked next.
func (f *fetch) dropLocked() {
	s := f.s
	f.gone = true
	f.wakeLocked()
	i := slices.Index(s.fetches, f)
	s.fetches = slices.Delete(s.fetches, i, i+1)
	if s.page != nil && s.page.of == &f.log {
		s.page = nil
	}
	if f.ha != nil {
		f.ha.mu.Lock()
		delete(f.ha.requests, f.id)
		f.ha.mu.Unlock()
		f.ha.forget(&f.task)
	}
}

// orphanLocked is for a fetch whose agent's link died. What has come of it stays as long as
// somebody reads it.
func (f *fetch) orphanLocked() {
	if f.gone {
		return
	}
	if f.open && f.log.empty() && !f.askedAt.IsZero() { // the link may carry no more than that
		f.s.few = 1
	}
	f.ha, f.open = nil, false
	if f.readers == 0 || f.log.empty() && !f.lost {
		f.dropLocked()
	}
	f.wakeLocked()
}

// answeredLocked notes that the agent answers requests of the session.
func (f *fetch) answeredLocked(now time.Time) {
	if f.s.silentOn != "" {
		for _, g := range slices.Clone(f.s.fetches) {
			if g != f && g.open && g.readers == 0 { // its requests may have been lost
				g.dropLocked()
			}
		}
	}
	f.newsAt, f.s.newsAt, f.s.silentOn = now, now, ""
	if f.readers == 0 {
		f.ha.ready(&f.task)
	}
}

// refused deals with an agent's refusal, or an answer that can't be read. If that may change, the
// agent is asked again; else what it was asked for can't be had, and becomes a gap for each reader.
func (f *fetch) refused(now time.Time, retryable bool) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	switch {
	case !f.open || f.gone:
	case retryable:
		f.s.newsAt = now
		f.askAgainLocked(now.Add(replayAgain))
	default:
		f.answeredLocked(now)
		f.lost = true
		f.closeLocked(now)
	}
}

// isOpen reports whether an answer would count.
func (f *fetch) isOpen() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.open
}

// answered takes an answer, unless the fetch is complete or gone, or the answer does not fit it:
// that is refused, since it could bring more than there is room for. It is clipped to what is
// new before it is measured, so that a transport may repeat it.
func (f *fetch) answered(now time.Time, p *replayBatch, answer *page) *ProtocolError {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !f.open || f.gone {
		s.h.stalePayloads.Add(1)
		return nil
	}
	answer.clip(f.log.head)
	switch {
	case p.SessionID != s.id || p.Epoch != s.epoch || p.ViewerID != f.viewerID:
		return malformed("replay_batch: not what request %q asked for", p.RequestID)
	case p.LastSeq > f.until || len(answer.slots) > f.left:
		return malformed("replay_batch: more than request %q asked for", p.RequestID)
	}
	f.acceptLocked(now, p, answer)
	return nil
}

// acceptLocked keeps what is new in an answer. A request that is complete, or as much as the hub
// holds at a time, is over before any viewer has taken anything.
func (f *fetch) acceptLocked(now time.Time, p *replayBatch, answer *page) {
	if p.FirstSeq > f.log.head+1 { // a part was lost
		f.askAgainLocked(now.Add(replayAgain))
		return
	}
	if answer.last > f.log.head {
		f.answeredLocked(now)
		f.left -= len(answer.slots)
		f.bytes += answer.bytes
		answer.pack()
		f.log.accept(answer, func() {})
		f.wakeLocked()
	}
	if p.Done && f.log.empty() { // the agent has nothing to give: don't ask for the same again
		f.answeredLocked(now)
		f.lost = true
	}
	if p.Done || f.fullLocked() {
		if f.s.few *= 8; f.s.few >= f.s.h.sizes.replay {
			f.s.few = 0
		}
		f.closeLocked(now)
	}
}

// fullLocked reports whether the request has got all that it asked for, or all that it may
// get, whether or not the agent said that it is done.
func (f *fetch) fullLocked() bool {
	return f.log.head >= f.until || f.left == 0 || f.bytes >= maxRequestBytes
}

// greet asks for what cursors waited for while the agent was away. Those beyond MaxReplays go on
// waiting, on this link or the next.
func (ha *hubAgentLink) greet(now time.Time) {
	for _, s := range ha.h.awaited(ha.agentID) {
		s.mu.Lock()
		s.askLocked(now)
		if s.asking.Len() > 0 {
			ha.h.await(s)
		}
		s.mu.Unlock()
	}
}

// request returns what was asked for under an id on this link, or nil.
func (ha *hubAgentLink) request(id string) *fetch {
	ha.mu.Lock()
	defer ha.mu.Unlock()
	return ha.requests[id]
}

// replayed takes an agent's answer to a replay request (rule 12). Its data is checked before any
// session is locked, and only if it is awaited: stale answers cost nothing. An event that is
// larger than the hub takes becomes a gap, as it would in a batch (rule 11), but without a word
// to the agent: it can't change what it has published.
func (ha *hubAgentLink) replayed(now time.Time, p *replayBatch) *ProtocolError {
	f := ha.request(p.RequestID)
	if f == nil || !f.isOpen() {
		ha.h.stalePayloads.Add(1)
		return nil
	}
	pg := &p.page
	if err := p.load(); err != nil {
		f.refused(now, true) // like a part that was lost
		return malformed("replay_batch: %v", err)
	}
	for i := pg.firstLarger(ha.h.cfg.MaxEventBytes); i >= 0; i = pg.firstLarger(ha.h.cfg.MaxEventBytes) {
		pg.lose(i, ReasonRejected)
	}
	return f.answered(now, p, pg)
}

// await makes the hello of a session's agent ask for what the session's cursors need.
func (h *Hub) await(s *hubSession) {
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	if h.awaiting[s.owner] == nil {
		h.awaiting[s.owner] = make(map[*hubSession]bool)
	}
	h.awaiting[s.owner][s] = true
}

func (h *Hub) unawait(s *hubSession) {
	h.agentsMu.Lock()
	defer h.agentsMu.Unlock()
	delete(h.awaiting[s.owner], s)
	if len(h.awaiting[s.owner]) == 0 {
		delete(h.awaiting, s.owner)
	}
}

// awaited returns the sessions of which cursors wait for an agent that has come, in the order of
// their ids, and forgets them.
func (h *Hub) awaited(agentID string) []*hubSession {
	h.agentsMu.Lock()
	out := slices.Collect(maps.Keys(h.awaiting[agentID]))
	delete(h.awaiting, agentID)
	h.agentsMu.Unlock()
	slices.SortFunc(out, compareIDs)
	return out
}
