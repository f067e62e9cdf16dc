package gvstream

import (
	"context"
	"slices"
	"strconv"
	"time"
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
	cursors map[string]*cursor // by session
	due     queue[*cursor]     // to be named in the next status
	beatAt  time.Time
	slots   int            // replay requests open for this link, offered to a cursor, and given up in the last second
	waiting queue[*cursor] // for a slot
	givenUp []time.Time    // when slots of requests that the viewer gave up are free again
	asks    []*ask         // calls of Authorize that are running
}

func (h *Hub) connectViewer(now time.Time, viewerID string, local bool) *hubViewer {
	hv := &hubViewer{h: h, viewerID: viewerID, local: local, id: h.mint.ID(), cursors: make(map[string]*cursor)}
	hv.Link = newLink(hv, &h.refusedPayloads)
	hv.crew = &h.crew
	hv.status = task{owner: takeFunc(hv.takeStatus), urgent: true}
	hv.beat = task{owner: takeFunc(hv.takeBeat), urgent: true}
	hv.refund = task{owner: takeFunc(hv.takeRefund), urgent: true}
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
		hv.giveUp(now, p.SessionID)
		hv.unwatch(p.SessionID)
		return nil
	}
	for range 2 { // once more if Revoke came meanwhile
		c, err := hv.admit(ctx, p.SessionID)
		if err != nil {
			return err
		}
		if c != nil {
			hv.giveUp(now, p.SessionID)
			c.start(p.Epoch, p.AfterSeq)
			return nil
		}
	}
	return refusal(codeForbidden, p.SessionID, "revoked")
}

// giveUp has the slot of a request that the viewer gives up stay taken for a second:
// its agent may be sending what nobody wants any more (rule 12).
func (hv *hubViewer) giveUp(now time.Time, sessionID string) {
	hv.mu.Lock()
	c := hv.cursors[sessionID]
	hv.mu.Unlock()
	if c == nil {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.fetch == nil || c.fetch.closed || !c.fetch.sent {
		return
	}
	hv.mu.Lock()
	hv.slots++
	hv.givenUp = append(hv.givenUp, now.Add(time.Second))
	hv.scheduleLocked(&hv.refund, hv.givenUp[0])
	hv.mu.Unlock()
	c.dropFetch()
}

// takeRefund frees the slots that were given up for a second.
func (hv *hubViewer) takeRefund(now time.Time) Payload {
	hv.mu.Lock()
	n := 0
	for n < len(hv.givenUp) && !now.Before(hv.givenUp[n]) {
		n++
	}
	if hv.givenUp = hv.givenUp[n:]; len(hv.givenUp) > 0 {
		hv.scheduleLocked(&hv.refund, hv.givenUp[0])
	}
	hv.mu.Unlock()
	for range n {
		hv.freeSlot()
	}
	return nil
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
		s = &hubSession{h: h, id: sessionID}
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
	c.task.owner = c
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
		c := hv.due.pop()
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

	fetch *fetch        // its open replay request, or nil
	timer time.Duration // of the next one; zero: timerFirst
	pages []page        // what came of it, to be handed out
	lost  uint64        // the agent can't give what is up to here
	since time.Time     // it waits for the agent since then; zero: it does not

	fan    *fan           // in which it rests, or nil
	pusher *pusher        // of its link, or nil; for the fan
	idle   place[*cursor] // in the session's queue of others that wait
	turn   place[*cursor] // in the session's queue for a turn
	// The link's lock protects these.
	slot    place[*cursor] // in the link's queue for a slot
	offered bool           // a slot is kept for it
	news    place[*cursor] // in the link's queue for a status
}

// remove takes the cursor off its session.
func (c *cursor) remove() {
	s := c.s
	s.mu.Lock()
	if c.gone { // refused just before its link died
		s.mu.Unlock()
		return
	}
	c.restart("", 0)
	c.gone = true
	s.drop(c)
	s.watchClock()
	s.mu.Unlock()
	c.hv.mu.Lock()
	c.news.leave()
	c.slot.leave()
	c.leaveSlot()
	c.hv.mu.Unlock()
	c.hv.forget(&c.task)
	c.hv.offerSlot()
	c.s.h.release(s)
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
	c.dropFetch()
	c.leaveQueue()
	c.epoch, c.seq = epoch, seq
	c.pages, c.lost, c.ended, c.since, c.timer = nil, 0, false, time.Time{}, 0
	c.hv.ready(&c.task)
}

// start is restart for a watch, which is answered.
func (c *cursor) start(epoch string, seq uint64) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !c.gone {
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
	c.hv.due.push(&c.news, c)
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
	l := c.settle()
	st := SessionStatus{
		SessionID: s.id, Epoch: c.epoch, FirstSeq: l.first(), HeadSeq: l.head, AckSeq: min(c.seq, l.head),
	}
	if l == &s.log {
		st.Ended, st.PrevEpoch, st.PrevSeq = s.ended, s.prevID, s.prevSeq
	}
	return st, true
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

// refuse ends the watch. The session's lock is held, so the cursor goes when its
// turn comes.
func (c *cursor) refuse(err *ProtocolError) {
	c.hv.refused.Add(1)
	c.hv.answer(err.Payload())
	c.hv.mu.Lock()
	if c.hv.cursors[c.s.id] == c {
		delete(c.hv.cursors, c.s.id)
	}
	c.slot.leave()
	c.leaveSlot()
	c.hv.mu.Unlock()
	c.hv.offerSlot()
	c.restart("", 0)
	c.gone = true
	c.s.drop(c)
	c.s.watchClock()
}

// settle returns the log that the cursor reads. At the end of an older epoch it
// moves to the current one, and the viewer is told (rule 15).
func (c *cursor) settle() *log {
	s := c.s
	if c.epoch == s.epoch {
		return &s.log
	}
	if s.prev != nil && s.prev.epoch == c.epoch && c.seq < s.prev.log.head {
		return &s.prev.log
	}
	c.restart(s.epoch, 0)
	c.tell()
	return &s.log
}

// take hands out what comes next in the session: a piece of the hub's log, a piece
// that the agent replayed, or a gap.
func (c *cursor) take(now time.Time) Payload {
	defer c.passSlot()
	s := c.s
	s.mu.Lock()
	c.leave()
	if c.gone || c.due || s.epoch == "" {
		s.mu.Unlock()
		return nil
	}
	if ahead := c.ahead(); ahead != nil {
		c.refuse(ahead)
		s.mu.Unlock()
		return nil
	}
	l := c.settle()
	if c.due {
		s.mu.Unlock()
		return nil
	}
	p, replayed := c.next(now, l)
	epoch, head, first := c.epoch, l.head, l.first()
	s.mu.Unlock()
	switch {
	case p == nil:
		return nil
	case replayed:
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
		c.dropFetch()
		c.pages = nil
		p = s.read(l, c.seq)
	case len(c.pages) > 0:
		p, replayed = &c.pages[0], true
		c.pages = c.pages[1:]
	default:
		p = c.older(now, l)
	}
	if p != nil {
		c.seq, c.timer = p.last, 0 // it goes on
	}
	return p, replayed
}

// rest puts the cursor among those that wait for the next event.
func (c *cursor) rest() {
	s := c.s
	if c.hv.served.Load() && c.seq == s.log.head && c.epoch == s.epoch {
		s.join(c)
	} else {
		s.idle.push(&c.idle, c)
	}
	s.leaveOff()
}

// leaveOff forgets the page that cursors shared, if none of them is on the way.
func (s *hubSession) leaveOff() {
	if s.atRest+s.idle.n == len(s.cursors) && s.late() == nil {
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
	gap := func(to uint64, reason Reason) *page {
		c.since = time.Time{}
		c.dropFetch()
		c.leaveQueue()
		p := gapPage(c.seq+1, to, reason)
		return &p
	}
	switch {
	case l != &s.log: // no agent has the older epoch any more
		return gap(until, ReasonEvicted)
	case c.lost > c.seq:
		return gap(min(c.lost, until), ReasonUnavailable)
	case c.fetch != nil && c.fetch.due.IsZero(): // not sent yet: its agent's link may be stuck
		c.fetch.due = now.Add(c.fetch.timer)
		c.hv.schedule(&c.task, c.fetch.due)
		return nil
	case c.fetch != nil && now.Before(c.fetch.due):
		c.hv.schedule(&c.task, c.fetch.due)
		return nil
	}
	if s.h.cfg.MaxReplays == 0 || s.h.cfg.MaxViewerReplays == 0 { // its turn never comes
		return gap(until, ReasonUnavailable)
	}
	ha, greeted := s.h.agent(s.owner)
	if greeted {
		c.since = time.Time{}
		c.ask(ha, until)
		return nil
	}
	if c.since.IsZero() {
		c.since = now
	}
	patience := s.h.cfg.ReplayWait
	if ha != nil { // its hello may have been lost, and comes again
		patience = max(patience, maxSilence)
	}
	left := c.since.Add(patience).Sub(now)
	if left <= 0 {
		return gap(until, ReasonUnavailable)
	}
	c.hv.schedule(&c.task, now.Add(min(left, time.Second)))
	return nil
}

// ask sends a replay request to the agent, when it is the cursor's turn.
func (c *cursor) ask(ha *hubAgent, until uint64) {
	if f := c.fetch; f != nil { // unanswered: again, under a new id
		c.timer = f.timer
		if !f.closed {
			c.timer = backoff(f.timer)
		}
		c.dropFetch() // its turn goes to the next that waits
	}
	if c.grant() {
		c.request(ha, until)
	}
}

// request sends the request, in the turn that the cursor was granted.
func (c *cursor) request(ha *hubAgent, until uint64) {
	timer := max(c.timer, timerFirst)
	f := &fetch{c: c, ha: ha, from: c.seq + 1, next: c.seq + 1, until: until, left: c.s.h.sizes.replay, timer: timer}
	f.task = task{owner: f, urgent: true}
	c.fetch = f
	ha.mu.Lock()
	dead := ha.fetches == nil
	if !dead {
		ha.requests++
		f.id = ha.id + "-" + strconv.Itoa(ha.requests) // no other link has it
		ha.fetches[f.id] = f
	}
	ha.mu.Unlock()
	if dead { // it is asked again when the agent is back
		c.dropFetch()
		c.hv.ready(&c.task)
		return
	}
	ha.ready(&f.task)
	c.hv.ready(&c.task) // its clock runs from now on
}

// grant takes a turn at asking, of the session's and of the link's, or queues for
// one.
func (c *cursor) grant() bool {
	if c.turn.in != nil {
		return false
	}
	s, hv := c.s, c.hv
	hv.mu.Lock()
	free := c.offered || hv.slots < s.h.cfg.MaxViewerReplays
	switch {
	case !free:
		hv.waiting.push(&c.slot, c)
	case !c.offered:
		hv.slots++
		c.slot.leave()
	}
	c.offered = false
	hv.mu.Unlock()
	if !free {
		return false
	}
	if s.open >= s.h.cfg.MaxReplays {
		s.turns.push(&c.turn, c)
		return false
	}
	s.open++
	return true
}

// leaveQueue gives up the cursor's place in the queue for a turn.
func (c *cursor) leaveQueue() {
	if c.turn.in != nil {
		c.turn.leave()
		c.hv.freeSlot()
	}
}

// passTurn gives the session's turn to the first that waits for it and can use it.
// The request goes out here and now: the viewer's own link may be stuck.
func (s *hubSession) passTurn() {
	for c := s.turns.pop(); c != nil; c = s.turns.pop() {
		if ha, greeted := s.h.agent(s.owner); greeted && c.epoch == s.epoch {
			c.request(ha, s.log.first()-1)
			return
		}
		c.hv.freeSlot()
		c.hv.ready(&c.task)
	}
	s.open--
}

// passSlot offers the next what the cursor was offered and did not use.
func (c *cursor) passSlot() {
	c.hv.mu.Lock()
	c.leaveSlot()
	c.hv.mu.Unlock()
	c.hv.offerSlot()
}

// leaveSlot gives back the slot that is kept for the cursor. The link's lock is held.
func (c *cursor) leaveSlot() {
	if c.offered {
		c.offered = false
		c.hv.slots--
	}
}

// freeSlot gives a slot of the link back.
func (hv *hubViewer) freeSlot() {
	hv.mu.Lock()
	hv.slots--
	hv.mu.Unlock()
	hv.offerSlot()
}

// offerSlot keeps a free slot for the first that waits for one, and has it try again.
func (hv *hubViewer) offerSlot() {
	hv.mu.Lock()
	var c *cursor
	if hv.slots < hv.h.cfg.MaxViewerReplays {
		c = hv.waiting.pop()
	}
	if c != nil {
		hv.slots++
		c.offered = true
		hv.readyLocked(&c.task)
	}
	hv.mu.Unlock()
}

// dropFetch gives up the open request: what still comes of it, counts for nothing.
func (c *cursor) dropFetch() {
	if f := c.fetch; f != nil {
		c.fetch = nil
		f.close()
	}
}

// fetchBytes bounds what the hub holds of one replay request, beside its events.
const fetchBytes = maxReplayBytes

// A fetch is one open replay request to an agent, for one cursor. It holds a turn
// of the session and one of the viewer's link. The session's lock protects it.
type fetch struct {
	task
	c  *cursor
	ha *hubAgent // whose link it was sent on: answers count on no other
	id string

	from, next, until uint64 // asked from, expected next, asked until
	left              int    // events that may still come
	bytes             int
	timer             time.Duration
	due               time.Time // to be asked again then; zero: its clock does not run yet
	sent, closed      bool
}

func (f *fetch) take(now time.Time) Payload {
	s := f.c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.closed:
		return nil
	case f.sent && now.Before(f.due):
		f.ha.schedule(&f.task, f.due)
		return nil
	case f.sent: // unanswered, and the viewer's own link may be stuck
		f.timer = backoff(f.timer)
		f.close()
		f.c.hv.ready(&f.c.task)
		return nil
	}
	f.sent = true
	f.due = now.Add(f.timer)
	f.c.hv.schedule(&f.c.task, f.due)
	return &ReplayRequestPayload{
		SessionID: s.id, ViewerID: f.c.hv.viewerID, RequestID: f.id, Epoch: f.c.epoch,
		AfterSeq: f.from - 1, UntilSeq: f.until, Limit: f.left,
	}
}

// close ends the request and passes its turns on.
func (f *fetch) close() {
	if f.closed {
		return
	}
	f.closed = true
	f.ha.mu.Lock()
	delete(f.ha.fetches, f.id)
	f.ha.mu.Unlock()
	f.ha.forget(&f.task)
	f.c.s.passTurn()
	f.c.hv.freeSlot()
}

// pause ends a request that is to be asked again after a while, in turn.
func (f *fetch) pause(now time.Time, d time.Duration) {
	f.due = now.Add(d)
	f.c.hv.schedule(&f.c.task, f.due)
	f.close()
}

// refused ends a request that the agent does not answer: it is asked again on the
// timer, or what it asked for is lost.
func (f *fetch) refused(now time.Time, retry bool) {
	c := f.c
	if retry {
		f.pause(now, f.timer)
		f.timer = backoff(f.timer)
		return
	}
	c.lost = f.until
	c.dropFetch()
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
	if f.closed {
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
		f.pause(now, time.Second)
		return
	}
	if answer.pack(); answer.held != heldOwn {
		answer.settle()
	}
	for _, pg := range answer.pieces() {
		f.due = now.Add(f.timer) // an answer without news is none
		c.timer = 0
		pg.request, pg.available = f.id, p.AvailableFrom
		c.pages = append(c.pages, pg)
		f.next = pg.last + 1
		f.left -= len(pg.slots)
		f.bytes += pg.bytes
	}
	if p.Done && f.next == f.from { // it has nothing to give
		c.lost = f.until
	}
	if p.Done || f.next > f.until || f.left == 0 || f.bytes >= fetchBytes {
		c.dropFetch()
	}
	c.hv.ready(&c.task)
}
