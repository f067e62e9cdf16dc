package gvstream

import (
	"cmp"
	"context"
	"time"
)

// A viewerLink is a Viewer's half of one connection to the hub. The Viewer's lock
// protects it.
type viewerLink struct {
	*Link
	v *Viewer

	hello     *handshake
	heartbeat task

	id       string // the hub's name of the link; empty before the welcome
	viewerID string // the hub's name of the viewer
	heardAt  time.Time
	holding  int  // payloads that wait for room: the silence is our own
	held     bool // and one that did
}

func (vl *viewerLink) detach(time.Time) {
	v := vl.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.link == vl {
		v.link = nil
	}
	for _, w := range v.watches {
		if w.subscription != nil && w.subscription.vl == vl {
			w.subscription = nil
		}
	}
	v.room.Broadcast() // who waits for room on this link, waits no longer
}

// nextHeartbeat ends a link on which the hub has been silent: it names every watch
// every 15 s.
func (vl *viewerLink) nextHeartbeat(now time.Time) Payload {
	if vl.silent(now) {
		vl.fail(now, ErrSilent)
		return nil
	}
	vl.v.mu.Lock()
	vl.schedule(&vl.heartbeat, vl.heardAt.Add(maxSilence))
	vl.v.mu.Unlock()
	return nil
}

// silent reports whether the hub has said nothing for so long that it must be gone.
func (vl *viewerLink) silent(now time.Time) bool {
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	if vl.held || vl.holding > 0 || vl.heardAt.IsZero() { // it counts from the first hello
		vl.held, vl.heardAt = false, now
	}
	return now.Sub(vl.heardAt) >= maxSilence
}

func (vl *viewerLink) handle(ctx context.Context, now time.Time, p Payload) error {
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	if vl.v.link != vl {
		return vl.goneLocked()
	}
	switch p := p.(type) {
	case *WelcomePayload:
		return asError(vl.welcomeLocked(now, p))
	case *StatusPayload:
		if vl.heardLocked(now, p.Link, p.ViewerID) {
			return vl.statusLocked(ctx, now, p)
		}
	case *eventBatch:
		if vl.heardLocked(now, p.Link, p.ViewerID) {
			events, gaps := p.copies()
			return vl.batchLocked(ctx, now, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq, events, gaps)
		}
	case *replayBatch:
		if vl.heardLocked(now, vl.id, p.ViewerID) {
			events, gaps := p.copies()
			return vl.batchLocked(ctx, now, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq, events, gaps)
		}
	case *ErrorPayload:
		return vl.refusedLocked(ctx, now, p)
	default:
		return &ProtocolError{Code: codeUnexpected, Message: "a viewer takes no " + p.payloadType()}
	}
	return nil
}

// goneLocked says why the link is no longer the Viewer's.
func (vl *viewerLink) goneLocked() error {
	return cmp.Or(vl.failure(), ErrSuperseded)
}

// heardLocked takes note of a frame and reports whether it is one of this link and for
// this viewer.
func (vl *viewerLink) heardLocked(now time.Time, link, viewerID string) bool {
	if vl.id == "" || link != vl.id || viewerID != "" && viewerID != vl.viewerID {
		vl.v.stalePayloads.Add(1)
		return false
	}
	vl.heardAt = now
	return true
}

// welcomeLocked opens the link: every watch is asked for, from what was received.
func (vl *viewerLink) welcomeLocked(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: codeVersion, Message: "welcome of another version", fatal: true}
	}
	if !vl.hello.acceptWelcome() {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	vl.heardAt = now
	if vl.id == p.Link {
		return nil
	}
	vl.forgetAll() // nothing of another link id goes on
	vl.id, vl.viewerID = p.Link, p.ViewerID
	vl.schedule(&vl.heartbeat, now.Add(maxSilence))
	for _, w := range vl.v.sorted() {
		vl.attachLocked(w)
	}
	return nil
}

// attachLocked asks for a watch on this link, once it is welcomed.
func (vl *viewerLink) attachLocked(w *watch) {
	if vl.id == "" || w.ended {
		return
	}
	a := &subscription{w: w, vl: vl, want: true}
	a.task = task{Source: a.next, Control: true}
	w.subscription = a
	vl.ready(&a.task)
}

func (vl *viewerLink) stopLocked(sessionID string) {
	vl.reply(&WatchPayload{SessionID: sessionID, ViewerID: vl.viewerID, Stop: true})
}

// findLocked returns the watch of a session, and tells the hub if there is none.
func (vl *viewerLink) findLocked(sessionID string) *watch {
	w := vl.v.watches[sessionID]
	if w == nil || w.subscription == nil || w.subscription.vl != vl {
		vl.v.stalePayloads.Add(1)
		vl.stopLocked(sessionID)
		return nil
	}
	return w
}

// batchLocked receives events and gaps (rule 14).
func (vl *viewerLink) batchLocked(ctx context.Context, now time.Time, id, epoch string, first, last uint64, events []Event, gaps []Gap) error {
	w := vl.findLocked(id)
	if w == nil {
		return nil
	}
	if epoch != w.epoch {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	w.subscription.heardAt = now
	switch {
	case last <= w.received:
		return nil
	case first > w.received+1:
		w.subscription.againLocked()
		return nil
	}
	w.subscription.progressLocked()
	for _, it := range interleave(id, epoch, newEvents(events, w.received), newGaps(gaps, w.received)) {
		if it.Gap != nil && it.Gap.From <= w.received { // known in part
			it.Gap = &Gap{w.received + 1, it.Gap.To, it.Gap.Reason}
		}
		if ok, err := vl.putLocked(ctx, w, it); !ok {
			return err
		}
		w.received = it.seq
		if it.Event != nil && it.Event.End {
			return vl.endLocked(ctx, w)
		}
	}
	return nil
}

// putLocked queues an item when there is room. It reports false if the wait for it was
// ended, with ctx's cause or because the link or the watch is over: what was not
// put comes again. The lock is free while it waits.
func (vl *viewerLink) putLocked(ctx context.Context, w *watch, it Item) (bool, error) {
	v := vl.v
	size := itemBytes
	if it.Event != nil {
		size += len(it.Event.Data) + len(it.Event.Bytes) + len(it.Event.Type)
	}
	for len(v.queue) > 0 && (len(v.queue) >= v.cfg.BufferItems || v.bytes+size > v.cfg.BufferBytes) {
		if ok, err := vl.awaitRoomLocked(ctx, w); !ok {
			return false, err
		}
	}
	v.pushLocked(&queued{w: w, item: it, size: size})
	w.fresh = false
	return true, nil
}

// awaitRoomLocked waits until something was taken out of the queue, with the lock free.
// It reports false if what the caller was about to queue is void by then.
func (vl *viewerLink) awaitRoomLocked(ctx context.Context, w *watch) (bool, error) {
	v := vl.v
	wait := v.room.Wait()
	before := Position{w.epoch, w.received}
	vl.holding++
	v.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
	}
	ended := ctx.Err() != nil
	v.mu.Lock()
	vl.holding--
	vl.held = true
	switch {
	case v.closed:
		return false, ErrClosed
	case v.link != vl:
		return false, vl.goneLocked()
	case w.subscription == nil || w.subscription.vl != vl || before != (Position{w.epoch, w.received}):
		return false, nil
	case ended && len(v.queue) > 0:
		return false, context.Cause(ctx)
	}
	return true, nil
}

// endLocked closes a watch whose last number was received (rule 16).
func (vl *viewerLink) endLocked(ctx context.Context, w *watch) error {
	ok, err := vl.putLocked(ctx, w, Item{SessionID: w.id, Epoch: w.epoch, End: true, seq: w.received})
	if ok {
		w.ended = true
		vl.v.detachWatchLocked(w)
	}
	return err
}

// statusLocked says where the watched sessions stand at the hub (rules 13 to 16).
func (vl *viewerLink) statusLocked(ctx context.Context, now time.Time, p *StatusPayload) error {
	for _, s := range p.Sessions {
		w := vl.findLocked(s.SessionID)
		if w == nil {
			continue
		}
		w.subscription.heardAt = now
		w.subscription.timer.stop() // an answer came
		if err := vl.sessionLocked(ctx, w, s); err != nil {
			return err
		}
	}
	return nil
}

func (vl *viewerLink) sessionLocked(ctx context.Context, w *watch, s SessionStatus) error {
	switch {
	case s.Epoch == "": // the hub does not know the session yet
		return nil
	case s.Epoch != w.epoch:
		if ok, err := vl.moveLocked(ctx, w, s); !ok {
			return err
		}
	}
	if s.AckSeq > w.received { // sent on this link, and not here
		w.subscription.againLocked()
		return nil
	}
	if s.Ended && s.HeadSeq == w.received && !w.ended {
		return vl.endLocked(ctx, w)
	}
	return nil
}

// moveLocked moves a watch to the start of another epoch, and reports whether it did.
func (vl *viewerLink) moveLocked(ctx context.Context, w *watch, s SessionStatus) (bool, error) {
	switch {
	case s.Epoch < w.epoch && !w.fresh: // old news, or the hub reads on elsewhere
		w.subscription.againLocked()
		return false, nil
	case s.Epoch > w.epoch && !w.fresh:
		if s.PrevEpoch == w.epoch && s.PrevSeq > w.received && w.missed != s.Epoch {
			w.missed = s.Epoch
			w.subscription.againLocked()
			return false, nil
		}
		reset := &Reset{Old: Position{w.epoch, w.received}, PrevEpoch: s.PrevEpoch, PrevSeq: s.PrevSeq}
		if ok, err := vl.putLocked(ctx, w, Item{SessionID: w.id, Epoch: s.Epoch, Reset: reset}); !ok {
			return false, err
		}
	}
	w.epoch, w.received = s.Epoch, 0
	return true, nil
}

// refusedLocked deals with an error payload: one about a session ends its watch, unless
// it may be tried again.
func (vl *viewerLink) refusedLocked(ctx context.Context, now time.Time, p *ErrorPayload) error {
	switch {
	case p.Code == codeStaleLink:
		vl.hello.start()
		return nil
	case p.Code == codeVersion:
		err := p.protocolError()
		err.fatal = true
		return err
	case !vl.heardLocked(now, vl.id, p.ViewerID), p.SessionID == "":
		return nil
	}
	w := vl.v.watches[p.SessionID]
	if w == nil || w.subscription == nil || w.subscription.vl != vl {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	w.subscription.heardAt = now
	if !p.Retryable {
		w.ended = true
		vl.v.pushLocked(&queued{w: w, err: p.protocolError(), size: itemBytes})
		vl.v.detachWatchLocked(w)
	}
	return nil
}

// A subscription is one watch on one link: whether the hub is to be asked for it.
type subscription struct {
	task
	w  *watch
	vl *viewerLink

	want    bool  // ask now
	timer   retry // runs while an answer is awaited
	heardAt time.Time
}

// againLocked asks once more from what was received, unless an answer is awaited.
func (a *subscription) againLocked() {
	if !a.timer.running() {
		a.want = true
		a.vl.ready(&a.task)
	}
}

// progressLocked takes note that what was asked for comes.
func (a *subscription) progressLocked() { a.timer.reset() }

// next asks: when something is missing, when no answer came, or when nothing was
// heard of the session for two periods (rules 13 and 14).
func (a *subscription) next(now time.Time) Payload {
	a.vl.v.mu.Lock()
	defer a.vl.v.mu.Unlock()
	w := a.w
	if w.subscription != a {
		return nil
	}
	asked, late := a.timer.running(), a.timer.expired(now)
	quiet := !asked && !a.heardAt.IsZero() && !now.Before(a.heardAt.Add(2*heartbeatEvery))
	if !a.want && !late && !quiet {
		if asked {
			a.vl.schedule(&a.task, a.timer.at)
		} else {
			a.vl.schedule(&a.task, a.heardAt.Add(2*heartbeatEvery))
		}
		return nil
	}
	if late {
		a.timer.again(now)
	} else {
		a.timer.start(now)
	}
	a.want = false
	a.vl.schedule(&a.task, a.timer.at)
	return &WatchPayload{SessionID: w.id, ViewerID: a.vl.viewerID, Epoch: w.epoch, AfterSeq: w.received}
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before. It does not block. On a closed Viewer the link is dead: its calls return
// ErrClosed.
func (v *Viewer) Connect() *Link { return v.connect(time.Now()).Link }

func (v *Viewer) connect(now time.Time) *viewerLink {
	vl := &viewerLink{v: v}
	vl.Link = newLink(vl, &v.refusedPayloads)
	vl.hello = newHandshake(vl.Link, roleViewer)
	vl.heartbeat = task{Source: vl.nextHeartbeat, Control: true}
	v.mu.Lock()
	old, closed := v.link, v.closed
	if !closed {
		v.link = vl
	}
	v.mu.Unlock()
	if closed {
		vl.fail(now, ErrClosed)
		return vl
	}
	if old != nil {
		old.fail(now, ErrSuperseded)
	}
	vl.hello.start()
	vl.schedule(&vl.heartbeat, now)
	return vl
}
