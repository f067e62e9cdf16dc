package gvstream

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A ViewerConfig holds the limits of a Viewer. A nil config is all defaults.
type ViewerConfig struct {
	// BufferItems is the number of items that wait for Items; when it is
	// reached, the link waits. If zero, 256. If negative, one.
	BufferItems int
	// BufferBytes is the bytes of their events' data; one larger item is taken
	// alone. If zero, 1 MiB. If negative, one item.
	BufferBytes int
	// MaxWatches is the number of sessions watched at a time. If zero, 100. If
	// negative, none.
	MaxWatches int
}

func (c *ViewerConfig) withDefaults() ViewerConfig {
	var d ViewerConfig
	if c != nil {
		d = *c
	}
	d.BufferItems = max(1, or(d.BufferItems, 256))
	d.BufferBytes = or(d.BufferBytes, 1<<20)
	d.MaxWatches = or(d.MaxWatches, 100)
	return d
}

// A Viewer watches sessions at a hub and yields what happens in them, each event
// once and in order, and a gap or a reset where something is missing. It starts no
// goroutines.
//
// All methods are safe for concurrent use; Items runs once at a time.
type Viewer struct {
	cfg             ViewerConfig
	stalePayloads   atomic.Uint64
	refusedPayloads atomic.Uint64

	mu      sync.Mutex // level 1; protects the fields below
	watches map[string]*watch
	link    *viewerLink
	queue   []*queued // what Items yields next
	bytes   int       // of it
	room    signal    // something was taken
	more    signal    // something was added
	reading bool      // Items runs
	closed  bool
}

// A watch is one session that the viewer watches. It has two positions: what was
// received, by which holes are seen, and what the caller has dealt with.
type watch struct {
	id       string
	epoch    string
	received uint64
	fresh    bool // nothing of the epoch was queued, and the position was zero
	handled  Position
	ended    bool   // its end, or the error that ended it, was received
	missed   string // the epoch whose beginning showed that the one before is incomplete
	on       *watchLink
}

// queued is an item, or an error, that waits for Items.
type queued struct {
	w    *watch
	item Item
	err  error
	size int
}

const itemBytes = 64 // what an item counts beside its data

// NewViewer returns a Viewer without watches or links. A nil config means the
// defaults; cfg is copied.
func NewViewer(cfg *ViewerConfig) *Viewer {
	return &Viewer{cfg: cfg.withDefaults(), watches: make(map[string]*watch)}
}

// Watch begins to watch a session after a position: the zero Position for its
// first event, or what Position or Item.Position returned, also in another process.
// The session need not exist yet. It does not block and needs no connection.
// Errors: ErrInvalidID, ErrTooMany, ErrClosed, and ErrBusy if the session is
// watched already.
func (v *Viewer) Watch(sessionID string, after Position) error {
	if !validID(sessionID) || !after.valid() {
		return ErrInvalidID
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return ErrClosed
	case v.watches[sessionID] != nil:
		return ErrBusy
	case len(v.watches) >= v.cfg.MaxWatches:
		return ErrTooMany
	}
	w := &watch{id: sessionID, epoch: after.Epoch, received: after.Seq, handled: after, fresh: after.Epoch == ""}
	v.watches[sessionID] = w
	if v.link != nil {
		v.link.attach(w)
	}
	return nil
}

// Unwatch ends the watch of a session, ended ones too, and drops what of it Items
// has not yielded. It does not block.
func (v *Viewer) Unwatch(sessionID string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.watches[sessionID]
	if w == nil {
		return
	}
	delete(v.watches, sessionID)
	v.detachWatch(w)
	kept := v.queue[:0]
	for _, q := range v.queue {
		if q.w == w {
			v.bytes -= q.size
		} else {
			kept = append(kept, q)
		}
	}
	clear(v.queue[len(kept):])
	v.queue = kept
	v.room.broadcast()
}

// detachWatch takes a watch off the link and tells the hub.
func (v *Viewer) detachWatch(w *watch) {
	if a := w.on; a != nil {
		w.on = nil
		a.vl.forget(&a.task)
		a.vl.stop(w.id)
	}
}

// Position returns how far the caller has dealt with a session: what to persist
// and to watch from later. It moves when the body of the loop over Items is done
// with an item. It is the zero Position for a session that is not watched.
func (v *Viewer) Position(sessionID string) Position {
	v.mu.Lock()
	defer v.mu.Unlock()
	if w := v.watches[sessionID]; w != nil {
		return w.handled
	}
	return Position{}
}

// Items yields what happens in all watched sessions, those of one session in
// order. It blocks until there is something, and ends without an error when ctx
// ends or the Viewer is closed; what is ready is yielded before ctx is looked at. An
// item counts as dealt with when the loop's body asks for the next one: after
// break, return or panic it comes again.
//
// An error ends one watch and not the loop: it is a *ProtocolError that names the
// session, such as forbidden or replay_ahead. A watch that has ended keeps its
// place and its position until Unwatch. A second Items at the same time
// yields ErrBusy and ends.
func (v *Viewer) Items(ctx context.Context) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		if !v.startReading() {
			yield(Item{}, ErrBusy)
			return
		}
		defer v.stopReading()
		for {
			q, wait := v.front()
			if q != nil {
				if !yield(q.item, q.err) {
					return
				}
				v.done(q)
				continue
			}
			if wait == nil { // closed
				return
			}
			select {
			case <-wait:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (v *Viewer) startReading() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.reading
	v.reading = true
	return !was
}

func (v *Viewer) stopReading() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reading = false
}

// front returns what to yield next, or what to wait for, or neither.
func (v *Viewer) front() (*queued, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.closed:
		return nil, nil
	case len(v.queue) > 0:
		return v.queue[0], nil
	}
	return nil, v.more.wait()
}

// done moves the position past an item, unless its watch ended meanwhile.
func (v *Viewer) done(q *queued) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) == 0 || v.queue[0] != q {
		return
	}
	v.queue[0] = nil
	v.queue = v.queue[1:]
	v.bytes -= q.size
	if q.err == nil {
		q.w.handled = q.item.Position()
	}
	v.room.broadcast()
}

// Close ends Items and the link, and everything that waits. It does not wait for a
// loop's body. Position goes on. It always returns nil.
func (v *Viewer) Close() error {
	v.mu.Lock()
	v.closed = true
	vl := v.link
	v.room.broadcast()
	v.more.broadcast()
	v.mu.Unlock()
	if vl != nil {
		vl.Close()
	}
	return nil
}

// ViewerStats is what a Viewer holds and has seen.
type ViewerStats struct {
	Watches         int    // ended ones included, until Unwatch
	Items           int    // that wait for Items
	Bytes           int    // what they count against ViewerConfig.BufferBytes
	Connected       bool   // a link was welcomed by the hub
	StalePayloads   uint64 // payloads of another link, epoch, viewer or watch, which changed nothing
	RefusedPayloads uint64 // payloads answered by an error
}

// Stats returns what the Viewer holds now. It does not block.
func (v *Viewer) Stats() ViewerStats {
	v.mu.Lock()
	defer v.mu.Unlock()
	return ViewerStats{
		Watches: len(v.watches), Items: len(v.queue), Bytes: v.bytes, Connected: v.link != nil && v.link.id != "",
		StalePayloads: v.stalePayloads.Load(), RefusedPayloads: v.refusedPayloads.Load(),
	}
}

// A viewerLink is a Viewer's half of one connection to the hub. The Viewer's lock
// protects it.
type viewerLink struct {
	*Link
	v *Viewer

	hello *greeter
	beat  task

	id       string // the hub's name of the link; empty before the welcome
	viewerID string // the hub's name of the viewer
	heardAt  time.Time
	holding  int  // payloads that wait for room: the silence is our own
	held     bool // and one that did
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before. It does not block. On a closed Viewer the link is dead: its calls return
// ErrClosed.
func (v *Viewer) Connect() *Link { return v.connect(time.Now()).Link }

func (v *Viewer) connect(now time.Time) *viewerLink {
	vl := &viewerLink{v: v}
	vl.Link = newLink(vl, &v.refusedPayloads)
	vl.hello = newGreeter(vl.Link, roleViewer)
	vl.beat = task{owner: takeFunc(vl.takeBeat), urgent: true}
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
	vl.schedule(&vl.beat, now)
	return vl
}

func (vl *viewerLink) detach(time.Time) {
	v := vl.v
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.link == vl {
		v.link = nil
	}
	for _, w := range v.watches {
		if w.on != nil && w.on.vl == vl {
			w.on = nil
		}
	}
	v.room.broadcast() // who waits for room on this link, waits no longer
}

// takeBeat ends a link on which the hub has been silent: it names every watch
// every 15 s.
func (vl *viewerLink) takeBeat(now time.Time) Payload {
	if vl.silent(now) {
		vl.fail(now, ErrSilent)
		return nil
	}
	vl.v.mu.Lock()
	vl.schedule(&vl.beat, vl.heardAt.Add(maxSilence))
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
		return vl.gone()
	}
	switch p := p.(type) {
	case *WelcomePayload:
		return plain(vl.welcome(now, p))
	case *StatusPayload:
		if vl.heard(now, p.Link, p.ViewerID) {
			return vl.status(ctx, now, p)
		}
	case *eventBatch:
		if vl.heard(now, p.Link, p.ViewerID) {
			events, gaps := p.copies()
			return vl.batch(ctx, now, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq, events, gaps)
		}
	case *replayBatch:
		if vl.heard(now, vl.id, p.ViewerID) {
			events, gaps := p.copies()
			return vl.batch(ctx, now, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq, events, gaps)
		}
	case *ErrorPayload:
		return vl.refused(ctx, now, p)
	default:
		return &ProtocolError{Code: codeUnexpected, Message: "a viewer takes no " + p.payloadType()}
	}
	return nil
}

// gone says why the link is no longer the Viewer's.
func (vl *viewerLink) gone() error {
	return cmp.Or(vl.failure(), ErrSuperseded)
}

// heard takes note of a frame and reports whether it is one of this link and for
// this viewer.
func (vl *viewerLink) heard(now time.Time, link, viewerID string) bool {
	if vl.id == "" || link != vl.id || viewerID != "" && viewerID != vl.viewerID {
		vl.v.stalePayloads.Add(1)
		return false
	}
	vl.heardAt = now
	return true
}

// welcome opens the link: every watch is asked for, from what was received.
func (vl *viewerLink) welcome(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: codeVersion, Message: "welcome of another version", fatal: true}
	}
	if !vl.hello.welcomed() {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	vl.heardAt = now
	if vl.id == p.Link {
		return nil
	}
	vl.clear() // nothing of another link id goes on
	vl.id, vl.viewerID = p.Link, p.ViewerID
	vl.schedule(&vl.beat, now.Add(maxSilence))
	for _, w := range vl.v.sorted() {
		vl.attach(w)
	}
	return nil
}

// attach asks for a watch on this link, once it is welcomed.
func (vl *viewerLink) attach(w *watch) {
	if vl.id == "" || w.ended {
		return
	}
	a := &watchLink{w: w, vl: vl, want: true}
	a.task = task{owner: a, urgent: true}
	w.on = a
	vl.ready(&a.task)
}

func (vl *viewerLink) stop(sessionID string) {
	vl.answer(&WatchPayload{SessionID: sessionID, ViewerID: vl.viewerID, Stop: true})
}

// find returns the watch of a session, and tells the hub if there is none.
func (vl *viewerLink) find(sessionID string) *watch {
	w := vl.v.watches[sessionID]
	if w == nil || w.on == nil || w.on.vl != vl {
		vl.v.stalePayloads.Add(1)
		vl.stop(sessionID)
		return nil
	}
	return w
}

// batch receives events and gaps (rule 14).
func (vl *viewerLink) batch(ctx context.Context, now time.Time, id, epoch string, first, last uint64, events []Event, gaps []Gap) error {
	w := vl.find(id)
	if w == nil {
		return nil
	}
	if epoch != w.epoch {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	w.on.heardAt = now
	switch {
	case last <= w.received:
		return nil
	case first > w.received+1:
		w.on.again()
		return nil
	}
	w.on.progress()
	for _, it := range tile(id, epoch, newEvents(events, w.received), newGaps(gaps, w.received)) {
		if it.Gap != nil && it.Gap.From <= w.received { // known in part
			it.Gap = &Gap{w.received + 1, it.Gap.To, it.Gap.Reason}
		}
		if ok, err := vl.put(ctx, w, it); !ok {
			return err
		}
		w.received = it.seq
		if it.Event != nil && it.Event.End {
			return vl.end(ctx, w)
		}
	}
	return nil
}

// put queues an item when there is room. It reports false if the wait for it was
// ended, with ctx's cause or because the link or the watch is over: what was not
// put comes again. The lock is free while it waits.
func (vl *viewerLink) put(ctx context.Context, w *watch, it Item) (bool, error) {
	v := vl.v
	size := itemBytes
	if it.Event != nil {
		size += len(it.Event.Data) + len(it.Event.Bytes) + len(it.Event.Type)
	}
	for len(v.queue) > 0 && (len(v.queue) >= v.cfg.BufferItems || v.bytes+size > v.cfg.BufferBytes) {
		wait := v.room.wait()
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
			return false, vl.gone()
		case w.on == nil || w.on.vl != vl || before != (Position{w.epoch, w.received}):
			return false, nil
		case ended && len(v.queue) > 0:
			return false, context.Cause(ctx)
		}
	}
	v.push(&queued{w: w, item: it, size: size})
	w.fresh = false
	return true, nil
}

func (v *Viewer) push(q *queued) {
	v.queue = append(v.queue, q)
	v.bytes += q.size
	v.more.broadcast()
}

// end closes a watch whose last number was received (rule 16).
func (vl *viewerLink) end(ctx context.Context, w *watch) error {
	ok, err := vl.put(ctx, w, Item{SessionID: w.id, Epoch: w.epoch, End: true, seq: w.received})
	if ok {
		w.ended = true
		vl.v.detachWatch(w)
	}
	return err
}

// status says where the watched sessions stand at the hub (rules 13 to 16).
func (vl *viewerLink) status(ctx context.Context, now time.Time, p *StatusPayload) error {
	for _, s := range p.Sessions {
		w := vl.find(s.SessionID)
		if w == nil {
			continue
		}
		w.on.heardAt = now
		w.on.timer.stop() // an answer came
		if err := vl.session(ctx, w, s); err != nil {
			return err
		}
	}
	return nil
}

func (vl *viewerLink) session(ctx context.Context, w *watch, s SessionStatus) error {
	switch {
	case s.Epoch == "": // the hub does not know the session yet
		return nil
	case s.Epoch < w.epoch && !w.fresh: // old news, or the hub reads on elsewhere
		w.on.again()
		return nil
	case s.Epoch > w.epoch && !w.fresh:
		if s.PrevEpoch == w.epoch && s.PrevSeq > w.received && w.missed != s.Epoch {
			w.missed = s.Epoch // its last words may have been lost on the way: ask once
			w.on.again()
			return nil
		}
		reset := &Reset{Old: Position{w.epoch, w.received}, PrevEpoch: s.PrevEpoch, PrevSeq: s.PrevSeq}
		if ok, err := vl.put(ctx, w, Item{SessionID: w.id, Epoch: s.Epoch, Reset: reset}); !ok {
			return err
		}
		w.epoch, w.received = s.Epoch, 0
	case s.Epoch != w.epoch: // the first epoch is no reset
		w.epoch, w.received = s.Epoch, 0
	}
	if s.AckSeq > w.received { // sent on this link, and not here
		w.on.again()
		return nil
	}
	if s.Ended && s.HeadSeq == w.received && !w.ended {
		return vl.end(ctx, w)
	}
	return nil
}

// refused deals with an error payload: one about a session ends its watch, unless
// it may be tried again.
func (vl *viewerLink) refused(ctx context.Context, now time.Time, p *ErrorPayload) error {
	switch {
	case p.Code == codeStaleLink:
		vl.hello.start()
		return nil
	case p.Code == codeVersion:
		err := p.protocolError()
		err.fatal = true
		return err
	case !vl.heard(now, vl.id, p.ViewerID), p.SessionID == "":
		return nil
	}
	w := vl.v.watches[p.SessionID]
	if w == nil || w.on == nil || w.on.vl != vl {
		vl.v.stalePayloads.Add(1)
		return nil
	}
	w.on.heardAt = now
	if !p.Retryable {
		w.ended = true
		vl.v.push(&queued{w: w, err: p.protocolError(), size: itemBytes})
		vl.v.detachWatch(w)
	}
	return nil
}

// sorted returns the watches in the order of their ids.
func (v *Viewer) sorted() []*watch {
	out := make([]*watch, 0, len(v.watches))
	for _, w := range v.watches {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *watch) int { return cmp.Compare(a.id, b.id) })
	return out
}

// A watchLink is one watch on one link: whether the hub is to be asked for it.
type watchLink struct {
	task
	w  *watch
	vl *viewerLink

	want    bool  // ask now
	timer   retry // runs while an answer is awaited
	heardAt time.Time
}

// again asks once more from what was received, unless an answer is awaited.
func (a *watchLink) again() {
	if !a.timer.running() {
		a.want = true
		a.vl.ready(&a.task)
	}
}

// progress takes note that what was asked for comes.
func (a *watchLink) progress() { a.timer.reset() }

// take asks: when something is missing, when no answer came, or when nothing was
// heard of the session for two periods (rules 13 and 14).
func (a *watchLink) take(now time.Time) Payload {
	a.vl.v.mu.Lock()
	defer a.vl.v.mu.Unlock()
	w := a.w
	if w.on != a {
		return nil
	}
	asked, late := a.timer.running(), a.timer.expired(now)
	quiet := !asked && !a.heardAt.IsZero() && !now.Before(a.heardAt.Add(2*heartbeat))
	if !a.want && !late && !quiet {
		if asked {
			a.vl.schedule(&a.task, a.timer.at)
		} else {
			a.vl.schedule(&a.task, a.heardAt.Add(2*heartbeat))
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
