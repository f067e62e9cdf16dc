package gvstream

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A hubViewer is the hub's half of one connection to a viewer: a set of cursors.
type hubViewer struct {
	*Link
	h        *Hub
	viewerID string // empty: the hub's own, of Items
	local    bool
	id       string // of the link

	status, beat, refund task

	// Link's lock protects the fields below.
	greeted bool
	staleAt time.Time
	cursors map[string]*cursor   // by session
	due     sched.Queue[*cursor] // to be named in the next status
	beatAt  time.Time
	permits permits // of replay requests for this link
	asks    []*ask  // calls of Authorize that are running
}

func (h *Hub) connectViewer(now time.Time, viewerID string, local bool) *hubViewer {
	hv := &hubViewer{
		h: h, viewerID: viewerID, local: local, id: h.mint.ID(),
		cursors: make(map[string]*cursor), permits: permits{free: h.cfg.MaxViewerReplays},
	}
	hv.Link = newLink(hv, &h.refusedPayloads)
	hv.crew = &h.crew
	hv.status = task{Source: hv.takeStatus, Control: true}
	hv.beat = task{Source: hv.takeBeat, Control: true}
	hv.refund = task{Source: hv.takeRefund, Control: true}
	if !local && !validID(viewerID) {
		hv.fail(now, ErrInvalidID)
		return hv
	}
	h.mu.Lock()
	old, closed := h.viewers[viewerID], h.closed
	switch {
	case closed:
	case local:
		h.locals[hv] = true
	default:
		h.viewers[viewerID] = hv
	}
	h.mu.Unlock()
	if closed {
		hv.fail(now, ErrClosed)
	} else if old != nil {
		old.fail(now, ErrSuperseded)
	}
	return hv
}

func (hv *hubViewer) detach(time.Time) {
	hv.h.mu.Lock()
	if hv.h.viewers[hv.viewerID] == hv {
		delete(hv.h.viewers, hv.viewerID)
	}
	delete(hv.h.locals, hv)
	hv.h.mu.Unlock()
	hv.mu.Lock()
	cursors := hv.cursors
	hv.cursors = nil
	hv.mu.Unlock()
	for _, c := range cursors {
		c.remove()
	}
}

func (hv *hubViewer) handle(ctx context.Context, now time.Time, p Payload) error {
	hv.h.expire(now)
	err := hv.dispatch(ctx, now, p)
	if err == errStale {
		return nil
	}
	return err
}

func (hv *hubViewer) dispatch(ctx context.Context, now time.Time, p Payload) error {
	switch p := p.(type) {
	case *HelloPayload:
		return plain(hv.hello(now, p))
	case *WatchPayload:
		if err := hv.current(now); err != nil {
			return err
		}
		return hv.watch(ctx, now, p)
	case *ErrorPayload:
		return nil // nothing of the hub's depends on what a viewer refuses
	}
	return &ProtocolError{Code: codeUnexpected, Message: "a hub takes no " + p.payloadType() + " from a viewer"}
}

func (hv *hubViewer) hello(now time.Time, p *HelloPayload) *ProtocolError {
	if p.Role != roleViewer {
		return malformed("hello: a viewer's link, but role %q", p.Role)
	}
	if p.V != version {
		return badVersion(p.V)
	}
	hv.mu.Lock()
	if !hv.greeted {
		hv.greeted = true
		hv.beatAt = now.Add(heartbeat)
		hv.scheduleLocked(&hv.beat, hv.beatAt)
	}
	hv.mu.Unlock()
	hv.answer(&WelcomePayload{ViewerID: hv.viewerID, V: version, Link: hv.id})
	return nil
}

func (hv *hubViewer) current(now time.Time) error {
	hv.mu.Lock()
	defer hv.mu.Unlock()
	if hv.greeted {
		return nil
	}
	return staleLink(hv.h, hv.Link, now, &hv.staleAt)
}

// watch places a cursor, and answers by a status or an error (rule 13).
func (hv *hubViewer) watch(ctx context.Context, now time.Time, p *WatchPayload) error {
	if p.ViewerID != "" && p.ViewerID != hv.viewerID {
		return refusal(codeForbidden, p.SessionID, "not your viewer_id")
	}
	if p.Stop {
		hv.stop(now, p.SessionID)
		return nil
	}
	for range 2 { // once more if Revoke came meanwhile
		c, err := hv.admit(ctx, p.SessionID)
		if err != nil {
			return err
		}
		if c != nil {
			c.start(now, p.Epoch, p.AfterSeq)
			return nil
		}
	}
	return refusal(codeForbidden, p.SessionID, "revoked")
}

// stop ends a watch because the viewer says so.
func (hv *hubViewer) stop(now time.Time, sessionID string) {
	hv.mu.Lock()
	c := hv.cursors[sessionID]
	hv.mu.Unlock()
	if c == nil {
		return
	}
	c.s.mu.Lock()
	c.giveUp(now)
	c.s.mu.Unlock()
	hv.unwatch(sessionID)
}

// takeRefund frees the permits of requests that the viewer gave up a second ago.
func (hv *hubViewer) takeRefund(now time.Time) Payload {
	hv.mu.Lock()
	defer hv.mu.Unlock()
	if next := hv.permits.expire(now); !next.IsZero() {
		hv.scheduleLocked(&hv.refund, next)
	}
	hv.offerLocked()
	return nil
}

// offerLocked has the cursor ask again whose turn it is to take a permit of the link.
func (hv *hubViewer) offerLocked() {
	if c := hv.permits.next(); c != nil {
		hv.readyLocked(&c.task)
	}
}

// An ask is a call of Authorize that is running.
type ask struct {
	sessionID string
	revoked   bool // Revoke came meanwhile: what is allowed now may be so no longer
}

// admit returns the link's cursor on a session if the viewer may watch it, or
// neither cursor nor error if its watch was revoked meanwhile.
func (hv *hubViewer) admit(ctx context.Context, sessionID string) (*cursor, error) {
	a := &ask{sessionID: sessionID}
	hv.mu.Lock()
	hv.asks = append(hv.asks, a)
	hv.mu.Unlock()
	var c *cursor
	err := hv.authorize(ctx, sessionID)
	if err == nil {
		c, err = hv.cursor(sessionID)
	}
	hv.mu.Lock()
	hv.asks = slices.DeleteFunc(hv.asks, func(b *ask) bool { return a == b })
	revoked := a.revoked
	hv.mu.Unlock()
	if revoked {
		hv.unwatch(sessionID)
		return nil, err
	}
	return c, err
}

// revoke ends the watch of a session, and tells the viewer.
func (hv *hubViewer) revoke(sessionID string) {
	hv.mu.Lock()
	for _, a := range hv.asks {
		a.revoked = a.revoked || a.sessionID == sessionID
	}
	hv.mu.Unlock()
	if c := hv.unwatch(sessionID); c != nil {
		hv.answer(refusal(codeForbidden, sessionID, "revoked").Payload())
	}
}

// authorize asks whether the viewer may watch, and ends its watch if not.
func (hv *hubViewer) authorize(ctx context.Context, sessionID string) error {
	if hv.h.cfg.Authorize == nil || hv.local {
		return nil
	}
	err := hv.h.cfg.Authorize(ctx, hv.viewerID, sessionID)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	hv.unwatch(sessionID)
	return refusal(codeForbidden, sessionID, "not allowed")
}

// cursor returns the link's cursor on a session, which is made if there is none.
// It holds all three locks, so that neither the session nor the link goes away
// meanwhile.
func (hv *hubViewer) cursor(sessionID string) (*cursor, error) {
	h := hv.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[sessionID]
	if s == nil {
		s = h.newSession(sessionID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	hv.mu.Lock()
	defer hv.mu.Unlock()
	switch c := hv.cursors[sessionID]; {
	case hv.cursors == nil:
		return nil, hv.err
	case c != nil:
		return c, nil
	case len(hv.cursors) >= h.cfg.MaxWatches && !hv.local:
		return nil, refusal(codeLimit, sessionID, "a link has at most %d watches", h.cfg.MaxWatches)
	}
	c := &cursor{hv: hv, s: s, at: len(s.cursors)}
	c.task.Source = c.take
	h.sessions[sessionID] = s
	hv.cursors[sessionID] = c
	s.cursors = append(s.cursors, c)
	return c, nil
}

// unwatch removes the link's cursor on a session, and returns it if there was one.
func (hv *hubViewer) unwatch(sessionID string) *cursor {
	hv.mu.Lock()
	c := hv.cursors[sessionID]
	delete(hv.cursors, sessionID)
	hv.mu.Unlock()
	if c != nil {
		c.remove()
	}
	return c
}

// takeStatus says where the watched sessions stand.
func (hv *hubViewer) takeStatus(time.Time) Payload {
	p := &StatusPayload{ViewerID: hv.viewerID, Link: hv.id}
	for len(p.Sessions) < maxStatus {
		hv.mu.Lock()
		c := hv.due.Pop()
		hv.mu.Unlock()
		if c == nil {
			break
		}
		if st, ok := c.describe(); ok {
			p.Sessions = append(p.Sessions, st)
		}
	}
	if len(p.Sessions) == 0 {
		return nil
	}
	return p
}

// takeBeat names all watches in one status, every 15 s.
func (hv *hubViewer) takeBeat(now time.Time) Payload {
	hv.mu.Lock()
	due := !now.Before(hv.beatAt)
	if due {
		hv.beatAt = now.Add(heartbeat)
	}
	hv.scheduleLocked(&hv.beat, hv.beatAt)
	cursors := make([]*cursor, 0, len(hv.cursors))
	for _, c := range hv.cursors {
		cursors = append(cursors, c)
	}
	hv.mu.Unlock()
	if !due {
		return nil
	}
	hv.h.expire(now)
	if len(cursors) == 0 {
		return &StatusPayload{ViewerID: hv.viewerID, Link: hv.id}
	}
	slices.SortFunc(cursors, func(a, b *cursor) int { return compareIDs(a.s, b.s) })
	for _, c := range cursors {
		c.s.mu.Lock()
		c.tell()
		c.s.mu.Unlock()
	}
	return nil
}

// A cursor is one viewer's place in one session. All that a viewer costs the hub
// is this. The session's lock protects it.
type cursor struct {
	task
	hv *hubViewer
	s  *hubSession
	at int // in the session's cursors

	epoch string // empty: from the first event of whatever epoch there is
	seq   uint64 // handed out up to here
	gone  bool
	due   bool // a status comes first
	ended bool // it was told of the end

	fetch *fetch    // its open replay request, or nil
	retry retry     // of its request; without one that is open, it does not ask before then
	pages []page    // what came of it, to be handed out
	lost  uint64    // the agent can't give what is up to here
	since time.Time // it waits for the agent since then; zero: it does not

	fan       *fan                   // in which it rests, or nil
	pusher    *pusher                // of its link, or nil; for the fan
	idle      sched.Element[*cursor] // in the session's queue of others that wait
	atSession sched.Element[*cursor] // in the queue for the session's permit; it has the link's then
	// The link's lock protects these.
	atLink sched.Element[*cursor] // in the queue for the link's permit. It changes under both locks
	news   sched.Element[*cursor] // in the link's queue for a status
}

// remove takes the cursor off its session.
func (c *cursor) remove() {
	s := c.s
	s.mu.Lock()
	if !c.gone { // or it was refused just before its link died
		c.end()
	}
	s.mu.Unlock()
	s.h.release(s)
}

// end takes the cursor off its session and its link. The session's lock is held, so the
// session itself goes later, if it does.
func (c *cursor) end() {
	s, hv := c.s, c.hv
	c.restart("", 0)
	c.gone = true
	s.drop(c)
	s.watchClock()
	hv.mu.Lock()
	if hv.cursors[s.id] == c {
		delete(hv.cursors, s.id)
	}
	c.news.Remove()
	c.atLink.Remove()
	hv.offerLocked()
	hv.mu.Unlock()
	hv.forget(&c.task)
}

// drop takes a cursor out.
func (s *hubSession) drop(c *cursor) {
	c.leave()
	last := len(s.cursors) - 1
	s.cursors[c.at] = s.cursors[last]
	s.cursors[c.at].at = c.at
	s.cursors[last] = nil
	s.cursors = s.cursors[:last]
	s.leaveOff()
}

// restart puts the cursor at a position.
func (c *cursor) restart(epoch string, seq uint64) {
	c.leave()
	c.stopAsking()
	c.epoch, c.seq = epoch, seq
	c.pages, c.lost, c.ended = nil, 0, false
	c.hv.ready(&c.task)
}

// start is restart for a watch, which is answered.
func (c *cursor) start(now time.Time, epoch string, seq uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.gone {
		c.giveUp(now)
		c.restart(epoch, seq)
		c.tell()
	}
}

// tell has the viewer told where the session stands, before anything else of it.
func (c *cursor) tell() {
	if c.due || c.gone {
		return
	}
	c.due = true
	c.hv.mu.Lock()
	c.hv.due.Push(&c.news, c)
	c.hv.readyLocked(&c.hv.status)
	c.hv.mu.Unlock()
}

// describe is the session's place in a status to this viewer. Its AckSeq is what
// was handed to the viewer's link: if less than that arrived, something was lost.
func (c *cursor) describe() (SessionStatus, bool) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { c.due = false }()
	if c.gone {
		return SessionStatus{}, false
	}
	c.hv.ready(&c.task)
	if s.epoch == "" {
		return SessionStatus{SessionID: s.id}, true
	}
	if ahead := c.ahead(); ahead != nil {
		c.refuse(ahead)
		return SessionStatus{}, false
	}
	if c.log() == nil {
		c.restart(s.epoch, 0)
	}
	return c.standing(), true
}

// standing is a status entry of the cursor's epoch.
func (c *cursor) standing() SessionStatus {
	s, l := c.s, c.log()
	st := SessionStatus{
		SessionID: s.id, Epoch: c.epoch, FirstSeq: l.first(), HeadSeq: l.head, AckSeq: min(c.seq, l.head),
	}
	if l == &s.log {
		st.Ended, st.PrevEpoch, st.PrevSeq = s.ended, s.prevID, s.prevSeq
	}
	return st
}

// ahead refuses a position that no agent has reached (rule 13).
func (c *cursor) ahead() *ProtocolError {
	s := c.s
	if c.epoch < s.epoch || c.epoch == s.epoch && c.seq <= s.head {
		return nil
	}
	err := refusal(codeReplayAhead, s.id, "position %d is ahead of the session", c.seq)
	err.Epoch, err.Seq = s.epoch, s.log.head
	return err
}

// refuse ends the watch, and tells the viewer why.
func (c *cursor) refuse(err *ProtocolError) {
	c.hv.refused.Add(1)
	c.hv.answer(err.Payload())
	c.end()
}

// log returns the log of the cursor's epoch, or nil if the cursor is at the end of an
// older one, or the hub no longer has that: then it goes on in the current one.
func (c *cursor) log() *log {
	s := c.s
	switch {
	case c.epoch == s.epoch:
		return &s.log
	case s.prev != nil && s.prev.epoch == c.epoch && c.seq < s.prev.log.head:
		return &s.prev.log
	}
	return nil
}

// take hands out what comes next in the session: a piece of the hub's log, a piece
// that the agent replayed, or a gap.
func (c *cursor) take(now time.Time) Payload {
	s := c.s
	s.mu.Lock()
	c.leave()
	l := c.readable()
	var p *page
	var replayed bool
	if l != nil {
		p, replayed = c.next(now, l)
	}
	if c.atLink.Queued() {
		c.passOn()
	}
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	epoch, head, first := c.epoch, l.head, l.first()
	s.mu.Unlock()
	if replayed {
		b := newReplayBatch()
		b.ReplayBatchPayload = ReplayBatchPayload{
			SessionID: s.id, ViewerID: c.hv.viewerID, RequestID: p.request, Epoch: epoch,
			FirstSeq: p.first, LastSeq: p.last, UntilSeq: first - 1, AvailableFrom: p.available,
			Done: p.last == first-1,
		}
		b.Gaps, b.page = p.gaps, *p
		return b
	}
	b := newEventBatch()
	b.EventBatchPayload = EventBatchPayload{
		SessionID: s.id, ViewerID: c.hv.viewerID, Epoch: epoch, Link: c.hv.id,
		FirstSeq: p.first, LastSeq: p.last, HeadSeq: head,
	}
	b.Gaps, b.page = p.gaps, *p
	return b
}

// readable returns the log that the cursor reads, or nil if there is nothing to read
// now: a status comes first, or the watch is over.
func (c *cursor) readable() *log {
	s := c.s
	if c.gone || c.due || s.epoch == "" {
		return nil
	}
	if ahead := c.ahead(); ahead != nil {
		c.refuse(ahead)
		return nil
	}
	l := c.log()
	if l == nil { // the viewer is told before it goes on (rule 15)
		c.restart(s.epoch, 0)
		c.tell()
	}
	return l
}

// next returns the next piece of the log, and whether the agent replayed it.
func (c *cursor) next(now time.Time, l *log) (p *page, replayed bool) {
	s := c.s
	switch {
	case c.seq >= l.head:
		c.rest()
		if s.ended && !c.ended {
			c.ended = true
			c.tell()
		}
		return nil, false
	case c.seq+1 >= l.first():
		c.stopAsking()
		c.pages = nil
		p = s.read(l, c.seq)
	case len(c.pages) > 0:
		p, replayed = &c.pages[0], true
		c.pages = c.pages[1:]
	default:
		p = c.older(now, l)
	}
	if p != nil {
		c.seq = p.last
	}
	return p, replayed
}

// rest puts the cursor among those that wait for the next event.
func (c *cursor) rest() {
	s := c.s
	if c.hv.served.Load() && c.seq == s.log.head && c.epoch == s.epoch {
		s.join(c)
	} else {
		s.idle.Push(&c.idle, c)
	}
	s.leaveOff()
}

// leaveOff forgets the page that cursors shared, if none of them is on the way.
func (s *hubSession) leaveOff() {
	if s.atRest+s.idle.Len() == len(s.cursors) && s.late() == nil {
		s.page = nil
	}
}

// read returns the page behind a number of one of the session's logs. Cursors that
// come one after the other share it.
func (s *hubSession) read(l *log, after uint64) *page {
	if p := s.page; p != nil && p.of == l && p.first == after+1 {
		return p
	}
	p := l.read(span{after, l.head, l.head, s.h.sizes.batch, pageBytes, 0})
	if len(s.cursors) > 1 {
		p.of, p.shared, p.memory = l, new(sharedEvents), nil // which nobody may use again
		s.page = &p
	}
	return &p
}

// older deals with what is older than the hub's log: it asks the agent, waits, or
// declares a gap (rule 12).
func (c *cursor) older(now time.Time, l *log) *page {
	s := c.s
	until := l.first() - 1
	switch {
	case l != &s.log: // no agent has the older epoch any more
		return c.gap(until, ReasonEvicted)
	case c.lost > c.seq:
		return c.gap(min(c.lost, until), ReasonUnavailable)
	case c.awaits(now):
		return nil
	case s.h.cfg.MaxReplays == 0 || s.h.cfg.MaxViewerReplays == 0: // its turn never comes
		return c.gap(until, ReasonUnavailable)
	}
	ha, greeted := s.h.agent(s.owner)
	if greeted {
		c.since = time.Time{}
		c.ask(ha, until)
		c.awaits(now)
		return nil
	}
	if !c.patient(now, ha != nil) {
		return c.gap(until, ReasonUnavailable)
	}
	return nil
}

// patient reports whether the cursor still waits for an agent that can't be asked, and
// looks for it again soon.
func (c *cursor) patient(now time.Time, connected bool) bool {
	if c.since.IsZero() {
		c.since = now
	}
	patience := c.s.h.cfg.ReplayWait
	if connected { // its hello may have been lost, and comes again
		patience = max(patience, maxSilence)
	}
	left := c.since.Add(patience).Sub(now)
	if left > 0 {
		c.hv.schedule(&c.task, now.Add(min(left, time.Second)))
	}
	return left > 0
}

// gap declares what nobody can give to the cursor.
func (c *cursor) gap(to uint64, reason Reason) *page {
	c.stopAsking()
	p := gapPage(c.seq+1, to, reason)
	return &p
}

// awaits reports whether the cursor waits for an answer, or for the time to ask again.
func (c *cursor) awaits(now time.Time) bool {
	if c.fetch != nil && !c.retry.running() { // not yet sent: its agent's link may be stuck
		c.retry.start(now)
	}
	c.unanswered(now)
	if !c.retry.running() || c.retry.expired(now) {
		return false
	}
	c.hv.schedule(&c.task, c.retry.at)
	return true
}

// unanswered ends a request to which nothing came for a timer period, and reports
// whether it did. The agent is asked again, under a new id and in turn.
func (c *cursor) unanswered(now time.Time) bool {
	if c.fetch == nil || !c.retry.expired(now) {
		return false
	}
	c.retry.backOff()
	c.release()
	return true
}

// ask sends a replay request to the agent, once the cursor has the permits for it.
func (c *cursor) ask(ha *hubAgent, until uint64) {
	if c.acquire() {
		c.request(ha, until)
	}
}

// acquire takes the permits that a request needs, the link's before the session's, or
// waits for one.
func (c *cursor) acquire() bool {
	if !c.atSession.Queued() {
		c.hv.mu.Lock()
		ok := c.hv.permits.acquire(c, &c.atLink)
		c.hv.offerLocked()
		c.hv.mu.Unlock()
		if !ok {
			return false
		}
	}
	return c.s.permits.acquire(c, &c.atSession)
}

// request sends the request for which the cursor has the permits.
func (c *cursor) request(ha *hubAgent, until uint64) {
	f := &fetch{c: c, ha: ha, from: c.seq + 1, next: c.seq + 1, until: until, left: c.s.h.sizes.replay}
	f.task = task{Source: f.take, Control: true}
	c.fetch = f
	c.retry.stop()
	ha.mu.Lock()
	dead := ha.fetches == nil
	if !dead {
		ha.requests++
		f.id = ha.id + "-" + strconv.Itoa(ha.requests) // no other link has it
		ha.fetches[f.id] = f
		ha.readyLocked(&f.task)
	}
	ha.mu.Unlock()
	if dead { // it is asked again when the agent is back
		c.release()
		c.hv.ready(&c.task)
	}
}

// release ends the cursor's request, or its wait for the session's permit, and gives
// back the permits that it has.
func (c *cursor) release() { c.releaseAt(time.Time{}) }

// releaseAt is release, but for the link's permit, which stays taken until then.
func (c *cursor) releaseAt(at time.Time) {
	s, hv, f := c.s, c.hv, c.fetch
	if f == nil && !c.atSession.Queued() {
		return
	}
	c.atSession.Remove()
	hv.mu.Lock()
	hv.permits.release(at)
	hv.offerLocked()
	hv.mu.Unlock()
	if f != nil {
		c.fetch = nil
		c.retry.stop()
		f.withdraw()
		s.permits.release(time.Time{})
		s.passPermits()
	}
}

// passPermits gives the session's free permits to the first that wait for one and can
// use it. Their requests go out here and now: the viewers' own links may be stuck.
func (s *hubSession) passPermits() {
	for c := s.permits.next(); c != nil; c = s.permits.next() {
		if ha, greeted := s.h.agent(s.owner); greeted && c.epoch == s.epoch {
			c.ask(ha, s.log.first()-1)
		} else {
			c.release()
		}
		c.hv.ready(&c.task) // if it asked, its clock runs from now on
	}
}

// passOn gives up the cursor's turn to take a permit of the link, if it did not use it.
func (c *cursor) passOn() {
	c.hv.mu.Lock()
	defer c.hv.mu.Unlock()
	if c.hv.permits.next() == c {
		c.atLink.Remove()
		c.hv.offerLocked()
	}
}

// giveUp ends a request that the viewer gives up. It counts for its link for another
// second: the agent may be sending what nobody wants any more (rule 12).
func (c *cursor) giveUp(now time.Time) {
	if c.fetch == nil || !c.fetch.sent {
		return
	}
	at := now.Add(time.Second)
	c.releaseAt(at)
	c.hv.schedule(&c.hv.refund, at)
}

// stopAsking ends whatever the cursor does to have older events from the agent.
func (c *cursor) stopAsking() {
	c.release()
	c.retry.reset()
	c.since = time.Time{}
}

// fetchBytes bounds what the hub holds of one replay request, beside its events.
const fetchBytes = maxReplayBytes

// A fetch is one open replay request to an agent, for one cursor. It holds a permit of
// the session and one of the viewer's link. It is over when it is no longer its cursor's.
// The session's lock protects it.
type fetch struct {
	task
	c  *cursor
	ha *hubAgent // whose link it was sent on: answers count on no other
	id string

	from, next, until uint64 // asked from, expected next, asked until
	left              int    // events that may still come
	bytes             int
	sent              bool
}

func (f *fetch) take(now time.Time) Payload {
	c := f.c
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	switch {
	case c.fetch != f:
		return nil
	case f.sent && c.unanswered(now): // here too: the viewer's own link may be stuck
		c.hv.ready(&c.task)
		return nil
	case f.sent:
		f.ha.schedule(&f.task, c.retry.at)
		return nil
	}
	f.sent = true
	c.retry.start(now)
	c.hv.schedule(&c.task, c.retry.at)
	return &ReplayRequestPayload{
		SessionID: c.s.id, ViewerID: c.hv.viewerID, RequestID: f.id, Epoch: c.epoch,
		AfterSeq: f.from - 1, UntilSeq: f.until, Limit: f.left,
	}
}

// withdraw takes the request off its agent's link.
func (f *fetch) withdraw() {
	f.ha.mu.Lock()
	delete(f.ha.fetches, f.id)
	f.ha.mu.Unlock()
	f.ha.forget(&f.task)
}

// refused ends a request that the agent does not answer: it is asked again on the
// timer, or what it asked for is lost.
func (f *fetch) refused(now time.Time, retry bool) {
	c := f.c
	c.release()
	if retry {
		c.retry.start(now)
		c.hv.schedule(&c.task, c.retry.at)
		c.retry.backOff()
		return
	}
	c.lost = f.until
	c.hv.ready(&c.task)
}

// replayed takes an agent's answer to a replay request (rule 12).
func (ha *hubAgent) replayed(now time.Time, p *replayBatch) *ProtocolError {
	ha.mu.Lock()
	f := ha.fetches[p.RequestID]
	ha.mu.Unlock()
	if f == nil {
		ha.h.stalePayloads.Add(1)
		return nil
	}
	pg := &p.page
	if err := p.load(); err != nil {
		return malformed("replay_batch: %v", err)
	}
	for i := pg.larger(ha.h.cfg.MaxEventBytes); i >= 0; i = pg.larger(ha.h.cfg.MaxEventBytes) {
		pg.lose(i, ReasonRejected)
	}
	return f.answered(now, p, pg)
}

// answered takes an answer unless the request is no longer open, or it is not one.
func (f *fetch) answered(now time.Time, p *replayBatch, answer *page) *ProtocolError {
	s := f.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.c.fetch != f {
		s.h.stalePayloads.Add(1)
		return nil
	}
	answer.clip(f.next - 1) // a duplicate asks for nothing more
	switch {
	case p.SessionID != s.id || p.Epoch != f.c.epoch || p.ViewerID != f.c.hv.viewerID:
		return malformed("replay_batch: not what request %q asked for", p.RequestID)
	case p.LastSeq > f.until || len(answer.slots) > f.left:
		return malformed("replay_batch: more than request %q asked for", p.RequestID)
	}
	f.accept(now, p, answer)
	return nil
}

// accept keeps what is new in an answer for the cursor to hand out.
func (f *fetch) accept(now time.Time, p *replayBatch, answer *page) {
	c := f.c
	if p.FirstSeq > f.next { // a part was lost: ask again, in a moment
		c.release()
		c.retry.startIn(now, time.Second)
		c.hv.schedule(&c.task, c.retry.at)
		return
	}
	if answer.pack(); answer.held != heldOwn {
		answer.settle()
	}
	for _, pg := range answer.pieces() {
		c.retry.reset() // an answer without news is none
		c.retry.start(now)
		pg.request, pg.available = f.id, p.AvailableFrom
		c.pages = append(c.pages, pg)
		f.next = pg.last + 1
		f.left -= len(pg.slots)
		f.bytes += pg.bytes
	}
	if p.Done && f.next == f.from { // it has nothing to give
		c.lost = f.until
	}
	if p.Done || f.full() {
		c.release()
	}
	c.hv.ready(&c.task)
}

// full reports whether the request has all that it may have.
func (f *fetch) full() bool { return f.next > f.until || f.left == 0 || f.bytes >= fetchBytes }
