package gvstream

import (
	"cmp"
	"context"
	"time"
)

// A viewerLink is a Viewer's half of one connection to the hub. It takes the hub's
// payloads, asks for each watch from what was received, and queues for Viewer.Items what
// follows on that, each number once and in order (rules 13 to 16).
//
//	new        from Connect: says hello; everything but a welcome is stale
//	welcomed   has an id, and each watch that has not ended has a subscription
//	dead       no longer the Viewer's link: its payloads change nothing (rule 3)
//
// A second welcome with another id begins it afresh, with new subscriptions. The watches
// are the Viewer's and stay; so does what was queued.
//
// The Viewer's lock, level 1, protects it, and all subscriptions and watches: they change
// together, and one viewer has little to do at a time. The embedded Link has its own lock
// and may be called with the Viewer's held, but for fail and Close, which call detach.
type viewerLink struct {
	*Link
	v *Viewer

	hello     *handshake
	heartbeat task

	// From the welcome. Whatever names another link or viewer is stale.
	id       string // the hub's name for the link; empty before the welcome
	viewerID string // the hub's name for the viewer

	heartbeatAt time.Time // when to give the next sign of life
}

// detach takes the dead link off the Viewer, unless that has a newer one, and every watch
// off the link. The next link subscribes to them again when it is welcomed.
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
	v.room.Broadcast() // payloads of this link wait for room no longer
}

// nextHeartbeat gives a sign of life every 15 s, from the welcome on (rule 13). It may be
// asked too early, and then only schedules itself again.
func (vl *viewerLink) nextHeartbeat(now time.Time) Payload {
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	due := !now.Before(vl.heartbeatAt)
	if due {
		vl.heartbeatAt = now.Add(heartbeatEvery)
	}
	vl.schedule(&vl.heartbeat, vl.heartbeatAt)
	if !due {
		return nil
	}
	return &StatusPayload{ViewerID: vl.viewerID, Link: vl.id}
}

// handle applies a payload of the hub's. One of a link that is no longer the Viewer's
// changes nothing, even if its call began before and only now gets the lock (rule 3). Any
// of the calls below may wait for room and give up the lock meanwhile, see awaitRoomLocked.
//
// A batch's events are copied before, since they may lie in the frame, while items are the
// reader's to keep. A replay_batch has no link id: it counts for the connection it came on.
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
		if vl.isCurrentLocked(p.Link, p.ViewerID) {
			return vl.statusLocked(ctx, now, p)
		}
	case *eventBatch:
		if vl.isCurrentLocked(p.Link, p.ViewerID) {
			events, gaps := p.copies()
			return vl.batchLocked(ctx, now, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq, events, gaps)
		}
	case *replayBatch:
		if vl.isCurrentLocked(vl.id, p.ViewerID) {
			events, gaps := p.copies()
			return vl.batchLocked(ctx, now, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq, events, gaps)
		}
	case *ErrorPayload:
		return vl.refusedLocked(ctx, now, p)
	default:
		return &ProtocolError{Code: CodeUnexpected, Message: "a viewer takes no " + p.payloadType()}
	}
	return nil
}

// goneLocked says why the link is no longer the Viewer's.
func (vl *viewerLink) goneLocked() error {
	return cmp.Or(vl.failure(), ErrSuperseded)
}

// isCurrentLocked reports whether a payload is of this link and for this viewer.
func (vl *viewerLink) isCurrentLocked(link, viewerID string) bool {
	if vl.id == "" || link != vl.id || viewerID != "" && viewerID != vl.viewerID {
		vl.v.stalePayloads.Add(1)
		return false
	}
	return true
}

// welcomeLocked opens the link: every watch is asked for, from what was received. A repeated
// welcome with the same id changes nothing; with another one the hub knows nothing of what
// was asked before (rule 3).
func (vl *viewerLink) welcomeLocked(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: CodeVersionUnsupported, Message: "welcome of another version", fatal: true}
	}
	if !vl.hello.acceptWelcome() {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	if vl.id == p.Link {
		return nil
	}
	vl.forgetAll() // nothing of another link id goes on
	vl.id, vl.viewerID = p.Link, p.ViewerID
	vl.heartbeatAt = now.Add(heartbeatEvery)
	vl.schedule(&vl.heartbeat, vl.heartbeatAt)
	for _, w := range vl.v.sortedLocked() {
		vl.attachLocked(w)
	}
	return nil
}

// attachLocked subscribes to a watch on this link. Before the welcome it does nothing, since
// welcomeLocked does it for all watches then.
func (vl *viewerLink) attachLocked(w *watch) {
	if vl.id == "" || w.ended {
		return
	}
	sub := &subscription{w: w, vl: vl, want: true}
	sub.task = task{Source: sub.next, Control: true}
	w.subscription = sub
	vl.ready(&sub.task)
}

// stopLocked asks the hub to end a watch. There is no answer: if it is lost, findLocked
// repeats it when something of the session comes.
func (vl *viewerLink) stopLocked(sessionID string) {
	vl.reply(&WatchPayload{SessionID: sessionID, ViewerID: vl.viewerID, Stop: true})
}

// findLocked returns the watch of a session if it is on this link. If not, it is over, and
// the hub has yet to hear that.
func (vl *viewerLink) findLocked(sessionID string) *watch {
	w := vl.v.watches[sessionID]
	if w == nil || w.subscription == nil || w.subscription.vl != vl {
		vl.v.stalePayloads.Add(1)
		vl.stopLocked(sessionID)
		return nil
	}
	return w
}

// batchLocked receives events and gaps that tile first to last (rule 14): those beyond what
// was received are queued one by one, and received moves with each, so that a wait that is
// broken off in the middle loses nothing and repeats nothing. A batch after a hole is
// dropped as a whole: the hub is asked to go on from received, which brings it again.
//
// A batch of another epoch is dropped too. Only a status announces an epoch, with what the
// reset has to say about the one before (rule 15).
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
		w.received = it.Seq
		if it.Event != nil && it.Event.End {
			return vl.endLocked(ctx, w)
		}
	}
	return nil
}

// putLocked queues an item when there is room. An item that is larger than the buffer is
// taken when the queue is empty, or it would never be. It reports false if the wait for
// room was broken off, with awaitRoomLocked's error; the item is then not received, and
// comes again. If it reports true, the watch stands where it did before the call.
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

// awaitRoomLocked waits until something was taken out of the queue, which is the one thing
// that holds up a viewer's link: what is not received stays with the transport, and the
// hub is held up in turn.
//
// The lock is free meanwhile, and anything may happen: the Viewer is closed, a newer link
// takes over, the watch is removed or ends, or a concurrent call of Handle moves it. In
// all these cases, and if ctx ends, it reports false: what the caller was about to queue
// is void, or was queued by the other call. A ctx that ends does not count if the queue is
// empty by then: the item is at hand, and room is ready.
func (vl *viewerLink) awaitRoomLocked(ctx context.Context, w *watch) (bool, error) {
	v := vl.v
	wait := v.room.Wait()
	before := Position{w.epoch, w.received}
	v.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
	}
	ended := ctx.Err() != nil
	v.mu.Lock()
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

// endLocked ends a watch whose last number was received (rule 16). If the wait for room is
// broken off, the watch goes on: the hub's next status says again that the session ended.
func (vl *viewerLink) endLocked(ctx context.Context, w *watch) error {
	ok, err := vl.putLocked(ctx, w, Item{SessionID: w.id, Epoch: w.epoch, End: true, Seq: w.received})
	if ok {
		w.ended = true
		vl.v.detachWatchLocked(w)
	}
	return err
}

// statusLocked applies a status: where the watched sessions stand at the hub (rules 13 to
// 16). It looks each watch up when its turn comes, since the lock may be free in between.
// A status is the answer to a watch, so the timer stops; but its wait stays as long as it
// is, since only events and gaps are progress.
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

// sessionLocked applies the entry of one session. The order matters: first the watch moves to
// the entry's epoch, for only then can the numbers be compared; then a hole before the
// end is found, so that only a reader that has everything before it gets the end.
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

// moveLocked moves a watch to the start of another epoch that a status announces, and
// reports whether it did (rule 15). A fresh watch takes any epoch, without a reset: its
// reader knows of none before. Otherwise there is a reset, which tells the reader that
// numbers start again, and how much of the old epoch it has missed.
//
// Instead it asks for the watch again if the epoch is smaller: either the status is old, or
// the hub has gone back, and then its answer is replay_ahead. It does the same, once for
// each new epoch, if numbers of the old one are missing: the hub may still hold them, and
// a reset gives them up for good.
func (vl *viewerLink) moveLocked(ctx context.Context, w *watch, s SessionStatus) (bool, error) {
	switch {
	case s.Epoch < w.epoch && !w.fresh: // an old status, or the hub has gone back
		w.subscription.againLocked()
		return false, nil
	case s.Epoch > w.epoch && !w.fresh:
		if s.PrevEpoch == w.epoch && s.PrevSeq > w.received && w.askedAgainFor != s.Epoch {
			w.askedAgainFor = s.Epoch
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
// it may be retried; then the subscription asks again on its timer. The error is queued
// without a wait for room: there is at most one for each watch.
func (vl *viewerLink) refusedLocked(ctx context.Context, now time.Time, p *ErrorPayload) error {
	switch {
	case p.Code == CodeStaleLink:
		vl.hello.start()
		return nil
	case p.endsLink():
		err := p.protocolError()
		err.fatal = true
		return err
	case !vl.isCurrentLocked(vl.id, p.ViewerID), p.SessionID == "":
		return nil
	}
	w := vl.v.watches[p.SessionID]
	if w == nil || w.subscription == nil || w.subscription.vl != vl {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	w.subscription.heardAt = now
	if !p.Retryable {
		vl.giveUpLocked(w, p.protocolError())
	}
	return nil
}

// giveUpLocked ends a watch by an error, which its reader gets after all items that came before.
func (vl *viewerLink) giveUpLocked(w *watch, err *ProtocolError) {
	w.ended = true
	vl.v.pushLocked(&queued{w: w, err: err, size: itemBytes})
	vl.v.detachWatchLocked(w)
}

// unreadable implements unreader: a hub sends an event that is none. To ask for it again would
// bring the same frame for ever, so the watch is over, unless it has gone past that number.
func (vl *viewerLink) unreadable(err *ProtocolError) {
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	w := vl.v.watches[err.SessionID]
	if w == nil || w.subscription == nil || w.subscription.vl != vl || w.epoch != err.Epoch || w.received >= err.Seq {
		return
	}
	vl.giveUpLocked(w, err)
}

// A subscription is one watch on one link: whether the hub is to be asked for it. It is made
// when the link is welcomed, or by Watch after that, and ends with the link, its id or the
// watch; then w.subscription is another or nil, and its task has no payload.
//
//	          want   timer
//	to ask    yes    stopped   at first, and from againLocked: next makes a watch payload
//	asked     no     running   until a status or something new comes; at each expiry asked again
//	settled   no     stopped   asked again if nothing is heard of the session for 30 s
//
// The Viewer's lock protects it.
type subscription struct {
	task
	w  *watch
	vl *viewerLink

	want    bool
	timer   retry     // runs while an answer is awaited
	heardAt time.Time // when something of the session came on this link; zero: never
}

// againLocked asks once more from what was received, unless an answer is awaited: after one
// hole every batch on its way shows the same hole, and each watch would make the hub send
// everything from there again (rule 14).
func (sub *subscription) againLocked() {
	if !sub.timer.running() {
		sub.want = true
		sub.vl.ready(&sub.task)
	}
}

// progressLocked notes that what was asked for comes: a later hole is asked about at once,
// and the timer starts again from its shortest wait.
func (sub *subscription) progressLocked() { sub.timer.reset() }

// next is the task's Source. It asks when something is missing, when no answer came, or
// when nothing was heard of the session for two heartbeats of the hub (rules 13 and 14). A
// session that is missing from two statuses is one that the hub does not serve here: it may
// never have got the watch.
func (sub *subscription) next(now time.Time) Payload {
	sub.vl.v.mu.Lock()
	defer sub.vl.v.mu.Unlock()
	w := sub.w
	if w.subscription != sub {
		return nil
	}
	asked, late := sub.timer.running(), sub.timer.expired(now)
	quiet := !asked && !sub.heardAt.IsZero() && !now.Before(sub.heardAt.Add(2*heartbeatEvery))
	if !sub.want && !late && !quiet {
		if asked {
			sub.vl.schedule(&sub.task, sub.timer.at)
		} else {
			sub.vl.schedule(&sub.task, sub.heardAt.Add(2*heartbeatEvery))
		}
		return nil
	}
	if late {
		sub.timer.again(now)
	} else {
		sub.timer.start(now)
	}
	sub.want = false
	sub.vl.schedule(&sub.task, sub.timer.at)
	return &WatchPayload{SessionID: w.id, ViewerID: sub.vl.viewerID, Epoch: w.epoch, AfterSeq: w.received}
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before, whose calls return ErrSuperseded from then on (rule 3). It does not block. On a
// closed Viewer the link is dead: its calls return ErrClosed.
func (v *Viewer) Connect() *Link { return v.connect(time.Now()).Link }

// connect is Connect at a given time. The new link is the Viewer's before the old one
// fails, so that at no moment both count; and fail, which calls detach, needs the lock to
// be free.
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
	return vl
}
