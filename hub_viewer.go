package gvstream

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A hubViewerLink is the hub's half of one connection to a viewer: a set of cursors, one for
// each session that is watched, and the statuses that say where those sessions stand. A watch
// makes or moves a cursor; the cursors' own tasks send everything of the sessions
// (hub_cursor.go).
//
//	made       in Hub.viewers, or Hub.locals; a watch counts only after hello (rule 3)
//	greeted    after the first hello: it serves watches, and gives a sign of life every 15 s
//	dead       after detach: cursors is nil, and none can be added
//
// A newer link of the viewer makes it dead, and all its cursors with it: the viewer says again
// on the new link what it watches and from where.
type hubViewerLink struct {
	*Link
	h        *Hub
	viewerID string // empty: the hub's own, of Items
	local    bool   // of Items: no AuthorizeViewer, no limit of watches
	id       string // of the link; the viewer finds it in what it receives

	// The link's own tasks, besides one for each cursor. status names the sessions whose
	// cursors are in statuses, heartbeat puts all of them there every 15 s, and resend looks at
	// the timers of all cursors, while any runs, and sends nothing.
	status, heartbeat, resend task

	// Link's lock protects the fields below.
	greeted      bool                 // hello came
	staleAt      time.Time            // when stale_link was last said
	unknown      onceASecond          // unknown_session, to acks of what is not watched
	cursors      map[string]*cursor   // by session; nil: the link is dead
	statuses     sched.Queue[*cursor] // to be named in the next status; their statusPending is set
	heartbeatAt  time.Time            // when the next sign of life is due
	pendingAuths []*pendingAuth       // watches that are being authorized
}

// connectViewer makes a viewer's link, or one of Items if local. It is entered under the hub's
// lock, so that either Close finds it in a table or it finds the hub closed. The older link
// fails without that lock, which its detach takes.
func (h *Hub) connectViewer(now time.Time, viewerID string, local bool) *hubViewerLink {
	hv := &hubViewerLink{
		h: h, viewerID: viewerID, local: local, id: h.ids.ID(),
		cursors: make(map[string]*cursor),
	}
	hv.Link = newLink(hv, &h.refusedPayloads)
	hv.workers, hv.patient = &h.workers, local
	hv.status = task{Source: hv.nextStatus, Control: true}
	hv.heartbeat = task{Source: hv.nextHeartbeat, Control: true}
	hv.resend = task{Source: hv.nextResend, Control: true}
	if !local && !validID(viewerID) {
		hv.fail(now, invalidID(viewerID))
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
		old.failWith(now, ErrSuperseded, superseded(viewerID))
	}
	return hv
}

// detach takes the link out of the hub and its cursors off their sessions. The cursors are
// taken from the link first, and each is removed without the link's lock, which comes after
// the session's.
func (hv *hubViewerLink) detach(time.Time) {
	hv.h.mu.Lock()
	if hv.h.viewers[hv.viewerID] == hv {
		delete(hv.h.viewers, hv.viewerID)
	}
	delete(hv.h.locals, hv)
	hv.h.mu.Unlock()
	hv.mu.Lock()
	cursors := hv.sortedLocked()
	hv.cursors = nil
	hv.mu.Unlock()
	for _, c := range cursors { // in the same order each time
		c.remove()
	}
}

// handle implements machine. A stale payload is no error to the caller.
func (hv *hubViewerLink) handle(ctx context.Context, now time.Time, p Payload) error {
	hv.h.expire(now)
	err := hv.dispatch(ctx, now, p)
	if err == errStale {
		return nil
	}
	return err
}

func (hv *hubViewerLink) dispatch(ctx context.Context, now time.Time, p Payload) error {
	switch p := p.(type) {
	case *HelloPayload:
		return asError(hv.hello(now, p))
	case *WatchPayload:
		if err := hv.current(now, hv.id); err != nil {
			return err
		}
		return hv.watch(ctx, now, p)
	case *AckBatchPayload:
		if err := hv.current(now, p.Link); err != nil {
			return err
		}
		return asError(hv.acks(now, p))
	case *StatusPayload:
		return hv.current(now, p.Link) // a sign of life
	case *ErrorPayload:
		return nil // nothing of the hub's depends on what a viewer refuses
	}
	return &ProtocolError{Code: CodeUnexpected, Message: "a hub takes no " + p.payloadType() + " from a viewer"}
}

// hello answers each hello by the same welcome: the one before may have been lost (rule 3). The
// signs of life begin with the first one, since the viewer takes none before it.
func (hv *hubViewerLink) hello(now time.Time, p *HelloPayload) *ProtocolError {
	if p.V != version {
		return badVersion(p.V)
	}
	if p.Role != roleViewer {
		return wrongRole(p.Role, roleViewer)
	}
	hv.mu.Lock()
	if !hv.greeted {
		hv.greeted = true
		hv.heartbeatAt = now.Add(heartbeatEvery)
		hv.scheduleLocked(&hv.heartbeat, hv.heartbeatAt)
	}
	hv.mu.Unlock()
	hv.reply(&WelcomePayload{ViewerID: hv.viewerID, V: version, Link: hv.id})
	return nil
}

// current returns errStale for a payload that comes before hello, or of another link. A watch
// names none.
func (hv *hubViewerLink) current(now time.Time, link string) error {
	hv.mu.Lock()
	defer hv.mu.Unlock()
	if hv.greeted && link == hv.id {
		return nil
	}
	return staleLink(hv.h, hv.Link, now, &hv.staleAt)
}

// watch places a cursor, and answers by a status or an error (rule 13). The status goes out by
// the cursor, before any event of the session. If the session is unknown, the answer is the
// same but for the number in it, and the cursor waits for the session to appear.
func (hv *hubViewerLink) watch(ctx context.Context, now time.Time, p *WatchPayload) error {
	if p.ViewerID != "" && p.ViewerID != hv.viewerID {
		return refusal(CodeForbidden, p.SessionID, "not your viewer_id")
	}
	if p.Stop {
		hv.unwatch(p.SessionID)
		return nil
	}
	for range 2 { // once more if Revoke came meanwhile; after a second one, no
		c, err := hv.admit(ctx, p.SessionID)
		if err != nil {
			return err
		}
		if c != nil {
			c.start(p)
			return nil
		}
	}
	return refusal(CodeForbidden, p.SessionID, "revoked")
}

// acks takes what a viewer says of the sessions that it watches (rule 14). Of the refusals the
// last is returned, which Link.handle answers, and the others are answered here.
func (hv *hubViewerLink) acks(now time.Time, p *AckBatchPayload) *ProtocolError {
	if p.ViewerID != "" && p.ViewerID != hv.viewerID {
		return refusal(CodeForbidden, p.SessionID, "not your viewer_id")
	}
	last := hv.ack(now, p.first())
	for _, a := range p.Acks {
		if err := hv.ack(now, a); err != nil {
			if last != nil {
				hv.refuse(now, last)
			}
			last = err
		}
	}
	return last
}

// addressLost makes a gap in place of an event that the link's transport can't carry one of this
// viewer's: another's may carry it. An end that is lost so is said by a status (rule 16).
func (hv *hubViewerLink) addressLost(gap *EventBatchPayload, end bool) {
	gap.ViewerID, gap.Link = hv.viewerID, hv.id
	hv.mu.Lock()
	c := hv.cursors[gap.SessionID]
	hv.mu.Unlock()
	if end && c != nil {
		c.s.mu.Lock()
		c.toldEnd = false
		c.queueStatusLocked()
		c.s.mu.Unlock()
	}
}

// ack hands an ack to the session's cursor. If there is none, the viewer is told so: its watch
// may have been lost, and then it asks for it again.
func (hv *hubViewerLink) ack(now time.Time, a SessionAck) *ProtocolError {
	hv.mu.Lock()
	c := hv.cursors[a.SessionID]
	tell := c == nil && hv.unknown.allow(now, a.SessionID)
	hv.mu.Unlock()
	switch {
	case c != nil:
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		c.ackLocked(now, a)
	case tell:
		err := refusal(CodeUnknownSession, a.SessionID, "not watched on this link")
		err.Epoch = a.Epoch
		return err
	}
	return nil
}

// A pendingAuth is a watch that is being authorized: from before AuthorizeViewer is asked until its
// cursor is in place. AuthorizeViewer runs without any lock, and its answer may be older than a
// Revoke that comes before the cursor is there to be ended.
type pendingAuth struct {
	sessionID string
	revoked   bool // Revoke came meanwhile: the answer does not count
}

// admit returns the link's cursor on a session if the viewer may watch it, or
// neither cursor nor error if its watch was revoked meanwhile: then AuthorizeViewer has to be asked
// again. A Revoke at any moment finds the pendingAuth, or the cursor, or both.
func (hv *hubViewerLink) admit(ctx context.Context, sessionID string) (c *cursor, err error) {
	a := &pendingAuth{sessionID: sessionID}
	hv.mu.Lock()
	hv.pendingAuths = append(hv.pendingAuths, a)
	hv.mu.Unlock()
	defer func() { // even after a callback's panic
		hv.mu.Lock()
		hv.pendingAuths = slices.DeleteFunc(hv.pendingAuths, func(b *pendingAuth) bool { return a == b })
		revoked := a.revoked
		hv.mu.Unlock()
		if revoked {
			hv.unwatch(sessionID)
			c = nil
		}
	}()
	if err := hv.authorize(ctx, sessionID); err != nil {
		return nil, err
	}
	return hv.cursor(sessionID)
}

// revoke ends the watch of a session, and tells the viewer if there was one. One that is being
// authorized is marked first and then looked for, since its cursor may be placed in between.
func (hv *hubViewerLink) revoke(sessionID string) {
	hv.mu.Lock()
	for _, a := range hv.pendingAuths {
		a.revoked = a.revoked || a.sessionID == sessionID
	}
	hv.mu.Unlock()
	if c := hv.unwatch(sessionID); c != nil {
		hv.reply(refusal(CodeForbidden, sessionID, "revoked").Payload())
	}
}

// authorize asks whether the viewer may watch, and ends its watch if not: a permission that was
// withdrawn ends what it once allowed. The refusal is the same for a session that exists and
// one that doesn't, and does not quote the caller's error, which might give that away.
func (hv *hubViewerLink) authorize(ctx context.Context, sessionID string) error {
	if hv.h.cfg.AuthorizeViewer == nil || hv.local {
		return nil
	}
	err := hv.h.cfg.AuthorizeViewer(ctx, hv.viewerID, sessionID)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	hv.unwatch(sessionID)
	return refusal(CodeForbidden, sessionID, "not allowed")
}

// cursor returns the link's cursor on a session, and makes one if there is none. It holds
// all three locks, so that neither the session nor the link goes away meanwhile. A session that
// the hub does not know gets into its map only together with the cursor: a watch that is
// refused leaves nothing.
func (hv *hubViewerLink) cursor(sessionID string) (*cursor, error) {
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
		return nil, refusal(CodeLimitExceeded, sessionID, "a link has at most %d watches", h.cfg.MaxWatches)
	}
	c := &cursor{hv: hv, s: s, index: len(s.cursors)}
	c.task.Source, c.task.Written = c.next, c.written
	h.sessions[sessionID] = s
	hv.cursors[sessionID] = c
	s.cursors = append(s.cursors, c)
	return c, nil
}

// unwatch removes the link's cursor on a session, and returns it if there was one. It is called
// without any lock.
func (hv *hubViewerLink) unwatch(sessionID string) *cursor {
	hv.mu.Lock()
	c := hv.cursors[sessionID]
	delete(hv.cursors, sessionID)
	hv.mu.Unlock()
	if c != nil {
		c.remove()
	}
	return c
}

// nextStatus says where the sessions stand whose cursors have a status pending. They are taken
// out one at a time, since each has to be described under its session's lock, which comes
// before the link's. Those beyond one payload follow in the next: Link.take asks again.
func (hv *hubViewerLink) nextStatus(time.Time) Payload {
	p := &StatusPayload{ViewerID: hv.viewerID, Link: hv.id}
	for len(p.Sessions) < maxStatus {
		hv.mu.Lock()
		c := hv.statuses.Pop()
		hv.mu.Unlock()
		if c == nil {
			break
		}
		if st, ok := c.takeStatus(); ok {
			p.Sessions = append(p.Sessions, st)
		}
	}
	if len(p.Sessions) == 0 {
		return nil
	}
	return p
}

// nextHeartbeat gives the sign of life, every 15 s: it makes nextStatus name all watches, or
// sends an empty status itself if there are none (rule 13). It may be called too early, and
// then only sets its time again.
func (hv *hubViewerLink) nextHeartbeat(now time.Time) Payload {
	hv.mu.Lock()
	due := !now.Before(hv.heartbeatAt)
	if due {
		hv.heartbeatAt = now.Add(heartbeatEvery)
	}
	hv.scheduleLocked(&hv.heartbeat, hv.heartbeatAt)
	hv.mu.Unlock()
	if !due {
		return nil
	}
	hv.h.expire(now)
	cursors := hv.sorted()
	if len(cursors) == 0 {
		return &StatusPayload{ViewerID: hv.viewerID, Link: hv.id}
	}
	for _, c := range cursors {
		c.s.mu.Lock()
		c.queueStatusLocked()
		c.s.mu.Unlock()
	}
	return nil
}

// nextResend looks at the timers of all cursors (rule 9), and comes again when the first of those
// that run expires. One task does it for all, since a timer starts and ends with every few
// events.
func (hv *hubViewerLink) nextResend(now time.Time) Payload {
	var next time.Time
	for _, c := range hv.sorted() {
		c.s.mu.Lock()
		at := c.resendLocked(now)
		c.s.mu.Unlock()
		if next.IsZero() || !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if !next.IsZero() {
		hv.schedule(&hv.resend, next)
	}
	return nil
}

// sorted is sortedLocked for callers without the lock.
func (hv *hubViewerLink) sorted() []*cursor {
	hv.mu.Lock()
	defer hv.mu.Unlock()
	return hv.sortedLocked()
}

// sortedLocked returns the link's cursors in the order of their sessions' ids, for runs that can
// be repeated.
func (hv *hubViewerLink) sortedLocked() []*cursor {
	return slices.SortedFunc(maps.Values(hv.cursors), func(a, b *cursor) int { return compareIDs(a.s, b.s) })
}
