package gvstream

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A viewerLink is a Viewer's half of one connection to the hub. It takes the hub's
// payloads, asks for each watch from what was received, queues for Viewer.Items what
// follows on that, each number once and in order, and tells the hub by acks how far it is and
// how much more there is room for (rules 13 to 16).
//
//	new        from Connect: says hello; everything but a welcome is stale
//	welcomed   has an id, and each watch that is not over has a subscription
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
	ack, stop task

	// From the welcome. Whatever names another link or viewer is stale.
	id       string // the hub's name for the link; empty before the welcome
	viewerID string // the hub's name for the viewer

	// Acks go out together: when one is due, all that can be said is. At the latest signOfLife
	// all watches are named, in case an ack that gave credit was lost (rule 13).
	unsaid     sched.Queue[*subscription] // those with something to say
	ackNow     bool                       // one of them is due
	signOfLife time.Time

	// Sessions that the hub is to send no longer, and has not been told of. A stop is a state
	// of the session, which a later watch of it ends: however often a caller changes its mind,
	// the hub is told what holds last.
	stops     []string
	stopsSaid onceASecond // to a hub that sends what nobody watches
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
}

// handle applies a payload of the hub's, and never waits: what there is no room for is
// dropped. One of a link that is no longer the Viewer's changes nothing, even if its call began
// before and only now gets the lock (rule 3).
func (vl *viewerLink) handle(_ context.Context, now time.Time, p Payload) error {
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
			vl.statusLocked(now, p)
		}
	case *eventBatch:
		if vl.isCurrentLocked(cmp.Or(p.Link, vl.id), p.ViewerID) { // without a link it is true on any
			vl.batchLocked(now, p)
		}
	case *fact:
		if vl.isCurrentLocked(vl.id, "") {
			vl.batchLocked(now, &p.eventBatch)
		}
	case *ErrorPayload:
		return vl.refusedLocked(now, p)
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
	for vl.unsaid.Pop() != nil {
	}
	vl.ackNow, vl.stops = false, nil
	vl.signOfLife = now.Add(heartbeatEvery)
	vl.schedule(&vl.ack, vl.signOfLife)
	for _, w := range vl.v.rotatedLocked() {
		w.subscription = nil
		vl.attachLocked(w)
	}
	return nil
}

// attachLocked subscribes to a watch on this link. Before the welcome it does nothing, since
// welcomeLocked does it for all watches then. A stop of the session that was not said yet is
// void: the watch moves the hub's cursor.
func (vl *viewerLink) attachLocked(w *watch) {
	if vl.id == "" || w.ended {
		return
	}
	cfg := &vl.v.cfg
	sub := &subscription{w: w, vl: vl, want: true, acks: ackState{
		delay: viewerAckDelay, window: window{events: cfg.Window, bytes: cfg.WindowBytes},
	}}
	sub.task = task{Source: sub.next, Control: true}
	if i := slices.Index(vl.stops, w.id); i >= 0 {
		vl.stops = slices.Delete(vl.stops, i, i+1)
		sub.said = true // of the one before
	}
	w.subscription = sub
	vl.ready(&sub.task)
}

// stopLocked asks the hub to end a watch. There is no answer: if it is lost, findLocked
// repeats it when something of the session comes.
func (vl *viewerLink) stopLocked(sessionID string) {
	if !slices.Contains(vl.stops, sessionID) {
		vl.stops = append(vl.stops, sessionID)
		vl.ready(&vl.stop)
	}
}

// nextStop is the Source of the stop task. A watch that is about to be asked for says the
// stops before it as well: the hub may have room for it only after them.
func (vl *viewerLink) nextStop(time.Time) Payload {
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	if p := vl.takeStopLocked(); p != nil {
		return p
	}
	return nil
}

// takeStopLocked takes the oldest stop, or returns nil.
func (vl *viewerLink) takeStopLocked() *WatchPayload {
	if len(vl.stops) == 0 {
		return nil
	}
	sessionID := vl.stops[0]
	vl.stops = vl.stops[1:]
	return &WatchPayload{SessionID: sessionID, ViewerID: vl.viewerID, Stop: true}
}

// findLocked returns the watch of a session if it is on this link. If not, it is over, and
// the hub has yet to hear that.
func (vl *viewerLink) findLocked(now time.Time, sessionID string) *watch {
	w := vl.v.watches[sessionID]
	if w == nil || w.subscription == nil {
		vl.v.stalePayloads.Add(1)
		if len(vl.stops) < maxOnce && vl.stopsSaid.allow(now, sessionID) {
			vl.stopLocked(sessionID)
		}
		return nil
	}
	return w
}

// batchLocked receives events and gaps that tile first to last (rule 14): those beyond what
// was received are queued one by one. A batch after a hole is dropped as a whole, and the hub
// is asked to go back to what was received, which brings it again. So is one that comes when
// the watch is full: a hub that keeps to what it is told sends none.
//
// A batch of another epoch is dropped too. Only a status announces an epoch, with what the
// reset has to say about the one before (rule 15). If the epoch is new, that status was lost,
// and a nack makes the hub say it again.
//
// The events are copied, since they may lie in the frame, while items are the reader's to keep.
func (vl *viewerLink) batchLocked(now time.Time, p *eventBatch) {
	w := vl.findLocked(now, p.SessionID)
	if w == nil {
		return
	}
	sub := w.subscription
	switch events, bytes := vl.v.roomLocked(w); {
	case w.ended: // nothing follows; the ack of the end may have been lost
		sub.acks.now = true
	case p.Epoch != w.epoch:
		vl.v.stalePayloads.Add(1)
		if p.Epoch > w.epoch && !sub.timer.running() { // or the hub's answer will say
			sub.acks.hole(now, w.received)
		}
	case p.LastSeq <= w.received:
		sub.acks.now = true // its ack may have been lost
	case p.FirstSeq > w.received+1:
		sub.acks.hole(now, w.received)
	case events == 0 || bytes == 0:
		sub.acks.hole(now, w.received)
		sub.acks.lost()
	default:
		vl.acceptLocked(w, p)
		sub.acks.came()
		sub.acks.accept(now, w.ended, p.HeadSeq > w.received)
	}
	sub.sayLocked(now)
}

// acceptLocked queues what is new in a batch, all of it: the room was for its first item.
func (vl *viewerLink) acceptLocked(w *watch, p *eventBatch) {
	events, gaps := p.copies()
	for _, it := range interleave(w.id, w.epoch, newEvents(events, w.received), newGaps(gaps, w.received)) {
		if it.Gap != nil && it.Gap.From <= w.received { // known in part
			it.Gap = &Gap{w.received + 1, it.Gap.To, it.Gap.Reason}
		}
		vl.putLocked(w, it)
		w.received = it.Seq
		if it.Event != nil && it.Event.End {
			w.last = it.Seq
		}
	}
	if w.received == w.last {
		vl.endLocked(w)
	}
}

// putLocked queues an item.
func (vl *viewerLink) putLocked(w *watch, it Item) {
	size := itemBytes
	if it.Event != nil {
		size += len(it.Event.Data) + len(it.Event.Bytes) + len(it.Event.Type)
	}
	vl.v.pushLocked(&queued{w: w, item: it, size: size})
	w.fresh = false
}

// endLocked ends a watch whose last number was received (rule 16). It keeps its subscription
// until the end is acknowledged; then it is over here and at the hub.
func (vl *viewerLink) endLocked(w *watch) {
	vl.putLocked(w, Item{SessionID: w.id, Epoch: w.epoch, End: true, Seq: w.received})
	w.ended = true
}

// statusLocked applies a status: where the watched sessions stand at the hub (rules 13 to
// 16). An entry answers the watch.
func (vl *viewerLink) statusLocked(now time.Time, p *StatusPayload) {
	for _, s := range p.Sessions {
		if w := vl.findLocked(now, s.SessionID); w != nil && !w.ended {
			answer := w.subscription.timer.running()
			w.subscription.timer.reset()
			vl.sessionLocked(now, w, s, answer)
		}
	}
}

// sessionLocked applies the entry of one session. The order matters: first the watch moves to
// the entry's epoch, for only then can the numbers be compared; and only a reader that has
// everything before the end gets the end. If the hub takes more for acknowledged than was
// received, it has another watch in mind, which was given up, and has lost the present one.
func (vl *viewerLink) sessionLocked(now time.Time, w *watch, s SessionStatus, answer bool) {
	switch before := w.epoch; {
	case s.Epoch == "": // the hub does not know the session yet
		return
	case s.Epoch == before:
	case !vl.moveLocked(w, s, answer):
		return
	case before != "": // the hub knows only of the room that there was then
		w.subscription.acks.now = true
		w.subscription.sayLocked(now)
	}
	if s.HeadSeq > 0 {
		w.fresh = false // it was told of something
	}
	if s.Ended { // which may be said before all of it has come, and its last number lie in a gap
		w.last = s.HeadSeq
	}
	switch {
	case s.AckSeq > w.received:
		w.subscription.againLocked()
	case s.Ended && w.received == w.last:
		vl.endLocked(w)
		w.subscription.acks.came()
		w.subscription.acks.accept(now, true, false)
		w.subscription.sayLocked(now)
	}
}

// moveLocked moves a watch to the start of another epoch that a status announces, and
// reports whether it did (rule 15). A fresh watch takes any epoch, without a reset: its
// reader knows of none before, unless something of that was accepted and did not arrive.
// Otherwise there is a reset, which tells the reader that numbers start again, and how much of
// the old epoch it has missed.
//
// Instead it asks for the watch again if the epoch is smaller: either the status is old, or
// the hub has gone back, and then its answer is replay_ahead. It does the same, once for
// each new epoch, if numbers of the old one are missing, unless this is what the hub answers
// when it is asked for them: it may still hold them, and a reset gives them up for good. If there is no room for a reset, the status is asked for
// again when there is.
func (vl *viewerLink) moveLocked(w *watch, s SessionStatus, answer bool) bool {
	missed := w.epoch != "" && s.PrevEpoch == w.epoch && s.PrevSeq > w.received
	switch events, bytes := vl.v.roomLocked(w); {
	case w.fresh && !missed:
	case s.Epoch < w.epoch: // an old status, or the hub has gone back
		w.subscription.againLocked()
		return false
	case missed && !answer && (w.askedAgainFor != s.Epoch || w.subscription.want):
		w.askedAgainFor = s.Epoch
		w.subscription.againLocked()
		return false
	case events == 0 || bytes == 0:
		w.subscription.acks.lost()
		return false
	default:
		reset := &Reset{Old: Position{w.epoch, w.received}, PrevEpoch: s.PrevEpoch, PrevSeq: s.PrevSeq}
		vl.putLocked(w, Item{SessionID: w.id, Epoch: s.Epoch, Reset: reset})
	}
	w.epoch, w.received, w.last = s.Epoch, 0, 0
	w.subscription.acks.lacks = false // of the epoch before
	return true
}

// refusedLocked deals with an error payload: one about a session ends its watch, unless
// it may be retried; then the subscription asks again on its timer. A hub that does not know
// the watch is asked at once. The error is queued whether or not there is room: there is at
// most one for each watch.
func (vl *viewerLink) refusedLocked(now time.Time, p *ErrorPayload) error {
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
	if w == nil || w.subscription == nil || w.ended {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	switch sub := w.subscription; {
	case sub.saidAt.IsZero(): // of a watch before this one
		vl.v.stalePayloads.Add(1)
	case p.Code == CodeUnknownSession:
		sub.timer.stop() // the watch was lost, if it was not said after what is refused here
		sub.againLocked()
	case !p.Retryable:
		vl.giveUpLocked(w, p.protocolError())
		sub.endLocked()
	case !sub.timer.running():
		sub.timer.start(now)
		vl.schedule(&sub.task, sub.timer.at)
	}
	return nil
}

// giveUpLocked ends a watch by an error, which its reader gets after all items that came before.
func (vl *viewerLink) giveUpLocked(w *watch, err *ProtocolError) {
	w.ended = true
	vl.v.pushLocked(&queued{w: w, err: err, size: itemBytes})
}

// unreadable implements unreader: a hub sends an event that is none. To ask for it again would
// bring the same frame for ever, so the watch is over, unless it has gone past that number.
func (vl *viewerLink) unreadable(err *ProtocolError) {
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	w := vl.v.watches[err.SessionID]
	if w == nil || w.subscription == nil || w.ended || w.epoch != err.Epoch || w.received >= err.Seq {
		return
	}
	vl.giveUpLocked(w, err)
	vl.v.detachWatchLocked(w)
}

// nextAck is the Source of the ack task: what all watches have to say, as soon as one of them
// is due (rule 14). When the next sign of life is near, it names all watches and is that, so
// that a viewer of quiet sessions needs no more than an ack in viewerAckDelay.
func (vl *viewerLink) nextAck(now time.Time) Payload {
	v := vl.v
	v.mu.Lock()
	defer v.mu.Unlock()
	late := !now.Before(vl.signOfLife)
	if !vl.ackNow && !late && !vl.ackDueLocked(now) {
		return nil
	}
	if !now.Before(vl.signOfLife.Add(-viewerAckDelay)) {
		vl.signOfLife = now.Add(heartbeatEvery)
		for _, w := range v.sortedLocked() {
			if sub := w.subscription; sub != nil {
				vl.unsaid.Push(&sub.place, sub)
			}
		}
	}
	p := &AckBatchPayload{ViewerID: vl.viewerID, Link: vl.id}
	for len(p.Acks) < maxAcks && vl.unsaid.Len() > 0 {
		switch a, ok := vl.unsaid.Pop().takeAckLocked(now); {
		case !ok:
		case p.SessionID == "":
			p.setFirst(a)
		default:
			p.Acks = append(p.Acks, a)
		}
	}
	vl.ackNow = vl.unsaid.Len() > 0
	vl.schedule(&vl.ack, vl.signOfLife)
	switch {
	case p.SessionID != "":
		return p
	case late:
		return &StatusPayload{ViewerID: vl.viewerID, Link: vl.id}
	}
	return nil
}

// ackDueLocked reports whether an ack that was held back is due. If not, the link asks again
// when the first one is.
func (vl *viewerLink) ackDueLocked(now time.Time) bool {
	first := vl.signOfLife
	for sub := range vl.unsaid.All() {
		due, next := sub.acks.due(now)
		if due {
			return true
		}
		if !next.IsZero() && next.Before(first) {
			first = next
		}
	}
	vl.schedule(&vl.ack, first)
	return false
}

// A subscription is one watch on one link: whether the hub is to be asked for it, and what it
// is to be told. It is made when the link is welcomed, or by Watch after that, and ends with
// the link, its id or the watch; then w.subscription is another or nil, and its task has no
// payload.
//
//	          want   timer
//	to ask    yes    stopped   at first, and from againLocked: next makes a watch payload
//	asked     no     running   until a status comes; at each expiry asked again
//	settled   no     stopped   what is missing is asked for by nacks
//
// A subscription whose watch has ended waits to say so, by its last ack. The Viewer's lock
// protects it.
type subscription struct {
	task
	w  *watch
	vl *viewerLink

	want   bool
	said   bool      // the hub was asked, by this subscription or one before: it may be sending
	saidAt time.Time // when
	timer  retry     // runs while an answer is awaited

	acks  ackState
	place sched.Element[*subscription] // in the link's queue of those that have something to say
}

// endLocked takes the subscription off its watch.
func (sub *subscription) endLocked() {
	sub.w.subscription = nil
	sub.place.Remove()
	sub.vl.forget(&sub.task)
}

// againLocked asks once more from what was received, unless an answer is awaited.
func (sub *subscription) againLocked() {
	if !sub.timer.running() {
		sub.want = true
		sub.vl.ready(&sub.task)
	}
}

// sayLocked makes the link ask for acks when this one's is due, if it has something to say.
func (sub *subscription) sayLocked(now time.Time) {
	vl := sub.vl
	due, next := sub.acks.due(now)
	if !due && next.IsZero() {
		return
	}
	vl.unsaid.Push(&sub.place, sub)
	if due {
		vl.ackNow = true
		vl.ready(&vl.ack)
	} else {
		vl.schedule(&vl.ack, next)
	}
}

// grantLocked notes that there is more room: the caller has read something. If that is not
// worth an ack of its own, the next one says it.
func (sub *subscription) grantLocked(events, bytes int) {
	vl := sub.vl
	sub.acks.grant(events, bytes)
	vl.unsaid.Push(&sub.place, sub)
	if sub.acks.now {
		vl.ackNow = true
		vl.ready(&vl.ack)
	}
}

// takeAckLocked returns the entry of an ack that says where the watch is, unless the hub is to be
// asked for the watch first: then that says it. With the ack of the end the watch is over on this
// link.
func (sub *subscription) takeAckLocked(now time.Time) (SessionAck, bool) {
	w := sub.w
	if (!sub.said || sub.want) && !w.ended {
		return SessionAck{}, false
	}
	a := SessionAck{SessionID: w.id, Epoch: w.epoch, UpToSeq: w.received, Nack: sub.acks.sent(now, w.received)}
	a.WindowEvents, a.WindowBytes = sub.vl.v.roomLocked(w)
	a.Full = a.WindowEvents == 0 || a.WindowBytes == 0
	if w.handled.Epoch == w.epoch {
		a.ReadSeq = w.handled.Seq
	}
	if w.ended {
		sub.endLocked()
	}
	return a, true
}

// next is the task's Source. It asks when that is wanted or no answer came (rules 13 and 14),
// at most once a second, and says the stops of other sessions before. A watch says what an ack
// would, except that there is no room at all.
func (sub *subscription) next(now time.Time) Payload {
	vl := sub.vl
	vl.v.mu.Lock()
	defer vl.v.mu.Unlock()
	w := sub.w
	if w.subscription != sub || w.ended {
		return nil
	}
	late := sub.timer.expired(now)
	switch again := sub.saidAt.Add(nackEvery); {
	case !sub.want && !late:
		if sub.timer.running() {
			vl.schedule(&sub.task, sub.timer.at)
		}
		return nil
	case now.Before(again):
		vl.schedule(&sub.task, again)
		return nil
	}
	if p := vl.takeStopLocked(); p != nil {
		return p
	}
	if late {
		sub.timer.again(now)
	} else {
		sub.timer.start(now)
	}
	sub.want, sub.said, sub.saidAt = false, true, now
	vl.schedule(&sub.task, sub.timer.at)
	p := &WatchPayload{SessionID: w.id, ViewerID: vl.viewerID, Epoch: w.epoch, AfterSeq: w.received}
	events, bytes := vl.v.roomLocked(w)
	p.WindowEvents, p.WindowBytes = max(events, 1), max(bytes, 1)
	sub.acks.lacks = false // the watch asks for all that comes next
	if sub.acks.sent(now, w.received); events == 0 || bytes == 0 {
		sub.acks.now = true
		sub.sayLocked(now)
	}
	return p
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
	vl.ack = task{Source: vl.nextAck, Control: true}
	vl.stop = task{Source: vl.nextStop, Control: true}
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
