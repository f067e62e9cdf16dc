package gvstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vibetools/gvstream/internal/epoch"
)

// A peer plays the other end of one link by hand, so that a test reads as a
// conversation with that link:
//
//	st := NewStreamer(nil)
//	hub := playHub(t, st) // connected, and welcomed
//	publishN(t, st, "s", 3)
//	hub.want(agentBatch("s", 1, 3, 3)) // what the link says
//	hub.nacks("s", 1)                  // what it hears
//	hub.want(agentBatch("s", 2, 3, 3))
//	hub.wantIdle("all is sent again")
//	hub.wantAfter(heartbeat, hub.statusOf("s"))
//
// There are four to play: playHub is the hub of a Streamer or of a Viewer, and
// playAgent and playViewer connect to a Hub. newPeer plays the rest.
//
// Both ways go through the wire's JSON, so that what is compared is what is encoded.
// want and its like look at what the link has to send now, and don't wait. What is not
// part of a conversation (contexts, concurrent calls, payloads that no wire can carry)
// goes directly to the link.
type peer struct {
	t      *testing.T
	link   *Link
	id     string // of the link, by which payloads name it
	viewer string // the viewer's id, if the link is between hub and viewer

	// If st is set, the peer is the hub of that Streamer. An empty epoch in a payload
	// then stands for the session's. The times of events are the Streamer's own, and
	// not compared.
	st     *Streamer
	window int // that its welcome grants

	waits bool // the hub's callbacks are called by goroutines of its own: send waits for them
	deaf  bool // passes over empty statuses, unless they are wanted
	// If set, the peer is the viewer of a Hub. What it is sent is true for every viewer, and it
	// acknowledges each batch when it takes it, unless it is silent.
	hub    *hubViewerLink
	silent bool

	credit window // that the hub's acks are to name, if the peer is its agent

	pushed   *inbox          // receives what the link pushes, if it does
	requests map[string]bool // ids of the replay requests that were wanted
}

// newPeer plays the other end of a link, and has sent nothing yet. It gives no signs of life,
// which the link forgives, but in tests of just that.
func newPeer(t *testing.T, link *Link) *peer {
	link.patient = true
	return &peer{t: t, link: link}
}

// meetHub connects a Streamer or a Viewer to a hub that has sent nothing yet.
func meetHub(t *testing.T, of interface{ Connect() *Link }) *peer {
	hub := newPeer(t, of.Connect())
	hub.id = epoch.Process.ID()
	switch of := of.(type) {
	case *Streamer:
		hub.st, hub.window = of, 256
		of.sizes.first = maxBatchBytes // small first batches have tests of their own
	case *Viewer:
		hub.viewer, hub.deaf = "tab", true
	}
	return hub
}

// playHub connects a Streamer or a Viewer to a hub, and welcomes it. The window is
// the one that a Hub grants by default.
func playHub(t *testing.T, of interface{ Connect() *Link }) *peer {
	t.Helper()
	return playHubTo(t, of, true)
}

// playHubTo is playHub for a link that forgives the hub's silence, or does not.
func playHubTo(t *testing.T, of interface{ Connect() *Link }, patient bool) *peer {
	t.Helper()
	hub := meetHub(t, of)
	hub.link.patient = patient // before the link is used
	hub.hearsHello()
	hub.welcome(hub.id)
	return hub
}

func playHubWindow(t *testing.T, st *Streamer, window int) *peer {
	t.Helper()
	hub := meetHub(t, st)
	hub.window = window
	hub.hearsHello()
	hub.welcome(hub.id)
	return hub
}

// reopenHub is playHub for sessions that exist: it takes their status, and acks.
func reopenHub(t *testing.T, st *Streamer, acks map[string]uint64) *peer {
	t.Helper()
	hub := playHub(t, st)
	hub.wantStatus(slices.Sorted(maps.Keys(acks))...)
	for id, seq := range acks {
		hub.acks(id, seq)
	}
	return hub
}

// hearsHello takes the link's hello, after which it waits for its welcome.
func (p *peer) hearsHello() {
	p.t.Helper()
	role := roleAgent
	if p.viewer != "" {
		role = roleViewer
	}
	p.want(&HelloPayload{V: 1, Role: role})
	p.wantIdle("not welcomed yet")
}

// welcome gives the link an id.
func (p *peer) welcome(id string) {
	p.t.Helper()
	p.id = id
	p.send(&WelcomePayload{ViewerID: p.viewer, V: 1, Link: id, WindowEvents: p.window, WindowBytes: 64 << 20})
}

// playAgent connects an agent to a hub, and says hello.
func playAgent(t *testing.T, h *Hub, agentID string) *peer {
	t.Helper()
	h.sizes.first = maxBatchBytes
	a := newPeer(t, h.ConnectAgent(agentID))
	a.waits = (h.cfg.Commit != nil || h.cfg.Resume != nil || h.cfg.AuthorizeAgent != nil) && h.commits.size > 0
	a.deaf = true
	w := a.hello(roleAgent)
	if w.V != 1 || w.WindowEvents != h.cfg.Window || !validID(w.Link) {
		t.Fatalf("welcome: %+v", w)
	}
	a.credit = window{events: w.WindowEvents, bytes: w.WindowBytes}
	return a
}

// playViewer connects a viewer to a hub, and says hello.
func playViewer(t *testing.T, h *Hub, viewerID string) *peer {
	t.Helper()
	v := newPeer(t, h.ConnectViewer(viewerID))
	v.viewer = viewerID
	v.hub = v.link.endpoint.(*hubViewerLink)
	w := v.hello(roleViewer)
	if w.V != 1 || w.ViewerID != viewerID || !validID(w.Link) {
		t.Fatalf("welcome: %+v", w)
	}
	return v
}

// hello says hello, and has the link's id from the welcome.
func (p *peer) hello(role string) *WelcomePayload {
	p.t.Helper()
	p.send(&HelloPayload{V: 1, Role: role})
	got := p.next()
	w, ok := got.(*WelcomePayload)
	if !ok {
		p.t.Fatalf("got %s, want a welcome", payloadText(got))
	}
	p.id = w.Link
	return w
}

// send has the link handle payloads, which it must not refuse.
func (p *peer) send(ps ...Payload) {
	p.t.Helper()
	for _, said := range ps {
		p.fill(said)
		wired, err := overWire(said)
		if err == nil {
			err = p.link.Handle(context.Background(), wired)
		}
		if err != nil {
			p.t.Fatalf("sent %s: %v", payloadText(said), err)
		}
		if p.waits {
			synctest.Wait()
		}
	}
}

// acks sends the ack of a Streamer's session.
func (p *peer) acks(session string, upTo uint64) {
	p.t.Helper()
	p.send(p.ack(session, "", upTo))
}

// nacks is acks for a hub that has found a hole after upTo.
func (p *peer) nacks(session string, upTo uint64) {
	p.t.Helper()
	p.send(p.nack(session, "", upTo))
}

// refused has the link handle a payload that it must refuse, and answer unless it is an
// error itself (rule 11). The payload is passed in as it is: perhaps no wire can carry
// it.
func (p *peer) refused(said Payload, want *ErrorPayload) *ProtocolError {
	p.t.Helper()
	p.fill(said)
	err := p.link.Handle(context.Background(), said)
	if p.waits && err == nil { // a callback refuses it, and only the answer says so
		synctest.Wait()
		p.want(want)
		return nil
	}
	var refused *ProtocolError
	if !errors.As(err, &refused) {
		p.t.Fatalf("sent %s: error %v, want %s", payloadText(said), err, want.Code)
	}
	if diff := cmp.Diff(want, refused.Payload(), samePayload); diff != "" {
		p.t.Fatalf("sent %s: refused with -want +got\n%s", payloadText(said), diff)
	}
	if _, isError := said.(*ErrorPayload); !isError {
		p.want(want)
	}
	return refused
}

// feed has the hub accept events in batches of 100, acks aside.
func (p *peer) feed(session, epoch string, from, to uint64) {
	p.t.Helper()
	for ; from <= to; from += 100 {
		p.send(p.batch(session, epoch, from, min(from+99, to)))
	}
	pass(ackDelay)
	for _, got := range p.drain() {
		if _, ok := got.(*AckBatchPayload); !ok {
			p.t.Fatalf("want acks only, got %s", payloadText(got))
		}
	}
}

// next takes what the link sends next, or nil if it has nothing to send.
func (p *peer) next() Payload {
	p.t.Helper()
	for {
		got := p.take()
		if b, ok := got.(*EventBatchPayload); ok && p.hub != nil && !p.silent {
			p.settle(b.SessionID, b.Epoch, b.LastSeq)
		}
		if !p.deaf || !isBeat(got) {
			return got
		}
	}
}

func isBeat(p Payload) bool {
	s, ok := p.(*StatusPayload)
	return ok && len(s.Sessions) == 0
}

// settle acknowledges what came to a hub's viewer, unless the hub has another watch by now.
func (p *peer) settle(session, epoch string, upTo uint64) {
	p.t.Helper()
	p.hub.mu.Lock()
	c := p.hub.cursors[session]
	p.hub.mu.Unlock()
	if c == nil {
		return
	}
	c.s.mu.Lock()
	current := c.epoch == epoch && c.acked < upTo && upTo <= c.limit(0)
	c.s.mu.Unlock()
	if current {
		p.send(p.ack(session, epoch, upTo))
	}
}

func (p *peer) take() Payload {
	p.t.Helper()
	if p.pushed != nil {
		return p.pushed.next()
	}
	said, err := p.link.Next(endedContext)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			p.t.Fatalf("the link is dead: %v", err)
		}
		return nil
	}
	p.link.mu.Lock()
	p.link.noteWrittenLocked(time.Now()) // it takes no time
	p.link.mu.Unlock()
	got, err := overWire(said)
	if err != nil {
		p.t.Fatalf("the link says %s: %v", payloadText(said), err)
	}
	return got
}

// want takes payloads from the link, in this order.
func (p *peer) want(ps ...Payload) {
	p.t.Helper()
	for _, want := range ps {
		p.fill(want)
		next := p.next
		if isBeat(want) {
			next = p.take
		}
		got := next()
		if got == nil {
			p.t.Fatalf("the link says nothing, want %s", payloadText(want))
		}
		if p.st != nil {
			withoutTimes(got)
		}
		if sameLine(want, got) {
			continue // the diff below is slow
		}
		if diff := cmp.Diff(want, got, samePayload); diff != "" {
			p.t.Fatalf("want %s\n got %s\n(-want +got):\n%s", payloadText(want), payloadText(got), diff)
		}
	}
}

// wantTypes takes everything that the link sends, and compares the types.
func (p *peer) wantTypes(want ...string) {
	p.t.Helper()
	var got []string
	for _, said := range p.drain() {
		got = append(got, said.payloadType())
	}
	if !slices.Equal(got, want) {
		p.t.Fatalf("the link says %q, want %q", got, want)
	}
}

// wantStatus wants a Streamer's status of sessions as they stand.
func (p *peer) wantStatus(sessions ...string) {
	p.t.Helper()
	p.want(p.statusOf(sessions...))
}

func (p *peer) wantIdle(why string) {
	p.t.Helper()
	if got := p.next(); got != nil {
		p.t.Fatalf("%s: want nothing, got %s", why, payloadText(got))
	}
}

// wantAfter wants nothing before d has passed, and then the payloads.
func (p *peer) wantAfter(d time.Duration, ps ...Payload) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d-1)
	defer cancel()
	got, err := p.link.Next(ctx)
	for p.deaf && err == nil && isBeat(got) {
		got, err = p.link.Next(ctx)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		p.t.Fatalf("want nothing for %v, got %s, %v", d, payloadText(got), err)
	}
	pass(1)
	p.want(ps...)
}

// wantDead wants the link to have ended with an error.
func (p *peer) wantDead(want error) {
	p.t.Helper()
	if _, err := p.link.Next(endedContext); !errors.Is(err, want) {
		p.t.Fatalf("Next: %v, want %v", err, want)
	}
	if err := p.link.Handle(context.Background(), &HelloPayload{V: 1, Role: roleAgent}); !errors.Is(err, want) {
		p.t.Fatalf("Handle: %v, want %v", err, want)
	}
}

// wantSuperseded wants a hub's link to have said that a newer one has taken over, and to be
// dead.
func (p *peer) wantSuperseded() {
	p.t.Helper()
	p.want(&ErrorPayload{Code: CodeSuperseded, ViewerID: p.viewer})
	p.wantDead(ErrSuperseded)
}

// askedAgain wants the hub to repeat a request, from another number on.
func (p *peer) askedAgain(r *ReplayRequestPayload, after uint64, limit int) {
	p.t.Helper()
	again := *r
	again.AfterSeq, again.Limit = after, limit
	p.want(&again)
}

// asked wants the hub to ask the agent for a replay, under an id of its own.
func (p *peer) asked(session, viewer, epoch string, after, until uint64) *ReplayRequestPayload {
	p.t.Helper()
	return p.askedFor(maxReplayRequestEvents, session, viewer, epoch, after, until)
}

// askedFor is asked for fewer events.
func (p *peer) askedFor(limit int, session, viewer, epoch string, after, until uint64) *ReplayRequestPayload {
	p.t.Helper()
	got := p.next()
	r, ok := got.(*ReplayRequestPayload)
	if !ok {
		p.t.Fatalf("got %s, want a replay request", payloadText(got))
	}
	want := request(session, viewer, r.RequestID, epoch, after, until)
	want.Limit = limit
	if diff := cmp.Diff(want, r); diff != "" {
		p.t.Fatalf("replay request: -want +got\n%s", diff)
	}
	if p.requests[r.RequestID] {
		p.t.Fatalf("request %s was made before", r.RequestID)
	}
	if p.requests == nil {
		p.requests = make(map[string]bool)
	}
	p.requests[r.RequestID] = true
	return r
}

// drain takes everything that the link has to send.
func (p *peer) drain() (out []Payload) {
	p.t.Helper()
	for got := p.next(); got != nil; got = p.next() {
		out = append(out, got)
	}
	return out
}

// push has the link push to the peer, from where next takes the payloads. What a test
// has to do meanwhile is called for each payload, in the link's call of send.
func (p *peer) push(meanwhile ...func(Payload)) {
	p.t.Helper()
	p.pushed = new(inbox)
	err := p.link.Push(p.t.Context(), func(ctx context.Context, said Payload) error {
		for _, f := range meanwhile {
			f(said)
		}
		return p.pushed.send(ctx, said)
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// An inbox is where a link pushes to.
type inbox struct {
	mu  sync.Mutex
	got []Payload
}

func (in *inbox) send(_ context.Context, p Payload) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.got = append(in.got, p)
	return nil
}

// next takes the oldest payload there is when all goroutines of the bubble wait.
func (in *inbox) next() (p Payload) {
	synctest.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.got) > 0 {
		p, in.got = in.got[0], in.got[1:]
	}
	return p
}

// fill completes a payload of the test.
func (p *peer) fill(said Payload) {
	epoch := func(session string, epoch *string) {
		if p.st == nil || *epoch != "" {
			return
		}
		if s := p.st.lookup(session); s != nil {
			*epoch = s.Stats().Epoch
		}
	}
	link := func(link *string) {
		if *link == "" {
			*link = p.id
		}
	}
	switch said := said.(type) {
	case *StatusPayload:
		link(&said.Link)
		for i := range said.Sessions {
			epoch(said.Sessions[i].SessionID, &said.Sessions[i].Epoch)
		}
	case *EventBatchPayload:
		if p.hub == nil {
			link(&said.Link)
		}
		epoch(said.SessionID, &said.Epoch)
	case *AckBatchPayload:
		link(&said.Link)
		epoch(said.SessionID, &said.Epoch)
	case *ReplayRequestPayload:
		epoch(said.SessionID, &said.Epoch)
	case *ReplayBatchPayload:
		epoch(said.SessionID, &said.Epoch)
	}
}

// overWire is a payload as it arrives at the other end.
func overWire(p Payload) (Payload, error) {
	line, err := Marshal(p)
	if err != nil {
		return nil, err
	}
	got, err := Unmarshal(line)
	if err != nil {
		return nil, err
	}
	if err := got.check(); err != nil {
		return nil, err
	}
	return got, nil
}

// samePayload compares payloads, except for the text that is for people.
var samePayload = cmp.Options{
	cmpopts.IgnoreUnexported(EventBatchPayload{}, ReplayBatchPayload{}),
	cmpopts.IgnoreFields(ErrorPayload{}, "Message"),
	cmpopts.EquateEmpty(),
}

// sameLine reports whether payloads are encoded alike.
func sameLine(a, b Payload) bool {
	x, err1 := Marshal(a)
	y, err2 := Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// withoutTimes takes the times out of a payload's events.
func withoutTimes(p Payload) {
	var events []Event
	switch p := p.(type) {
	case *EventBatchPayload:
		events = p.Events
	case *ReplayBatchPayload:
		events = p.Events
	}
	for i := range events {
		events[i].Time = time.Time{}
	}
}

// payloadText is a payload as on the wire, cut to a line.
func payloadText(p Payload) string {
	if p == nil {
		return "nothing"
	}
	text, err := json.Marshal(p)
	if err != nil {
		return fmt.Sprintf("%#v", p)
	}
	return p.payloadType() + " " + string(text[:min(len(text), 400)])
}

// numberedEvent is the event that tests publish under a number.
func numberedEvent(seq uint64) Event {
	return Event{Seq: seq, Type: "out", Data: fmt.Appendf(nil, `"event %d"`, seq)}
}

// numbered makes events with these numbers, except those in gaps.
func numbered(from, to uint64, gaps ...Gap) (out []Event) {
	for seq := from; seq <= to; seq++ {
		if !slices.ContainsFunc(gaps, func(g Gap) bool { return g.From <= seq && seq <= g.To }) {
			out = append(out, numberedEvent(seq))
		}
	}
	return out
}

// batch is events, and gaps between them: on this link, or for every viewer of a hub.
func (p *peer) batch(session, epoch string, from, to uint64, gaps ...Gap) *EventBatchPayload {
	b := &EventBatchPayload{
		SessionID: session, Epoch: epoch,
		FirstSeq: from, LastSeq: to, HeadSeq: to, Events: numbered(from, to, gaps...), Gaps: gaps,
	}
	if p.hub == nil {
		p.private(b)
	}
	return b
}

// private makes a batch one for this viewer alone.
func (p *peer) private(b *EventBatchPayload) *EventBatchPayload {
	b.ViewerID, b.Link = p.viewer, p.id
	return b
}

// lost is one gap. A hub declares those that are true for one viewer to that one.
func (p *peer) lost(session, epoch string, from, to uint64, reason Reason) *EventBatchPayload {
	b := p.batch(session, epoch, from, to, Gap{from, to, reason})
	if p.hub != nil && (reason == ReasonUnavailable || reason == ReasonEvicted) {
		p.private(b)
	}
	return b
}

// last is one event, the end of its session.
func (p *peer) last(session, epoch string, seq uint64) *EventBatchPayload {
	b := p.batch(session, epoch, seq, seq)
	b.Events[0].End = true
	return b
}

func headed(b *EventBatchPayload, head uint64) *EventBatchPayload {
	b.HeadSeq = head
	return b
}

func (p *peer) ack(session, epoch string, upTo uint64) *AckBatchPayload {
	return &AckBatchPayload{
		SessionID: session, ViewerID: p.viewer, Epoch: epoch, Link: p.id, UpToSeq: upTo,
		WindowEvents: p.credit.events, WindowBytes: p.credit.bytes,
	}
}

func (p *peer) nack(session, epoch string, upTo uint64) *AckBatchPayload {
	a := p.ack(session, epoch, upTo)
	a.Nack = true
	return a
}

func (p *peer) status(sessions ...SessionStatus) *StatusPayload {
	return &StatusPayload{ViewerID: p.viewer, Link: p.id, Sessions: sessions}
}

// statusOf is a Streamer's status of sessions as they stand.
func (p *peer) statusOf(sessions ...string) *StatusPayload {
	return p.status(p.entriesOf(sessions...)...)
}

func (p *peer) entriesOf(sessions ...string) (out []SessionStatus) {
	for _, id := range sessions {
		s := p.st.lookup(id).Stats()
		e := entryOf(id, s.Epoch, s.First, s.Acked, s.Head)
		e.Ended = s.Ended
		out = append(out, e)
	}
	return out
}

// entryOf is a session in an agent's status.
func entryOf(session, epoch string, first, ack, head uint64) SessionStatus {
	return SessionStatus{SessionID: session, Epoch: epoch, FirstSeq: first, HeadSeq: head, AckSeq: ack}
}

// stands is a session in a hub's status for a viewer.
func stands(session, epoch string, first, head, acked uint64) SessionStatus {
	return entryOf(session, epoch, first, acked, head)
}

// watch is a viewer's watch, with room for as much as usual.
func (p *peer) watch(session, epoch string, after uint64) *WatchPayload {
	return &WatchPayload{
		SessionID: session, ViewerID: p.viewer, Epoch: epoch, AfterSeq: after,
		WindowEvents: defaultWindow, WindowBytes: defaultWindowBytes,
	}
}

func (p *peer) stop(session string) *WatchPayload {
	return &WatchPayload{SessionID: session, ViewerID: p.viewer, Stop: true}
}

// request is a hub's replay request, to be answered in one piece.
func request(session, viewer, id, epoch string, after, until uint64) *ReplayRequestPayload {
	return &ReplayRequestPayload{
		SessionID: session, ViewerID: viewer, RequestID: id, Epoch: epoch,
		AfterSeq: after, UntilSeq: until, Limit: 500,
	}
}

// answerTo is an agent's answer to a request, or a page of it.
func answerTo(r *ReplayRequestPayload, from, to uint64, done bool) *ReplayBatchPayload {
	return agentPage(r, from, to, r.UntilSeq, 1, done)
}

// agentPage is answerTo for an agent that may no longer have the first events.
func agentPage(r *ReplayRequestPayload, first, last, until, available uint64, done bool, gaps ...Gap) *ReplayBatchPayload {
	return &ReplayBatchPayload{
		SessionID: r.SessionID, ViewerID: r.ViewerID, RequestID: r.RequestID, Epoch: r.Epoch,
		FirstSeq: first, LastSeq: last, UntilSeq: until, AvailableFrom: available, Done: done,
		Events: numbered(first, last, gaps...), Gaps: gaps,
	}
}

// agentBatch is a Streamer's batch of the events that publishN published, on its link
// and in its epoch.
func agentBatch(session string, first, last, head uint64, gaps ...Gap) *EventBatchPayload {
	return &EventBatchPayload{
		SessionID: session, FirstSeq: first, LastSeq: last, HeadSeq: head,
		Events: numbered(first, last, gaps...), Gaps: gaps,
	}
}

// endedContext has ended: with it, Next and Items return what is ready, and do not
// wait.
var endedContext = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// pass lets time go by, in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// handling has the link handle a payload in a goroutine of the bubble, and returns the
// channel of its error once the call waits for something.
func (p *peer) handling(said Payload) <-chan error {
	done := start(func() error { return p.link.Handle(p.t.Context(), said) })
	synctest.Wait()
	return done
}

// start runs f in a goroutine of the bubble, and returns the channel of its error.
func start(f func() error) <-chan error {
	out := make(chan error, 1)
	go func() { out <- f() }()
	return out
}

// wantWaiting checks that what was started has not returned.
func wantWaiting(t *testing.T, c <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		t.Fatalf("returned %v, want it to wait", err)
	default:
	}
}

// wantReturned checks that what was started has returned err, at once.
func wantReturned(t *testing.T, c <-chan error, err error) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-c:
		if !errors.Is(got, err) {
			t.Fatalf("returned %v, want %v", got, err)
		}
	default:
		t.Fatalf("still waits, want it to return %v", err)
	}
}

// carryAll has two links exchange payloads until both are silent. Payloads that a test
// keeps do not reach the other link.
func carryAll(t *testing.T, a, b *Link, keeps ...func(Payload) bool) {
	t.Helper()
	for quiet := false; !quiet; {
		up, down := carryOne(t, a, b, keeps...), carryOne(t, b, a, keeps...)
		quiet = !up && !down
	}
}

// carryOne is carryAll for one payload, and reports whether there was one.
func carryOne(t *testing.T, from, to *Link, keeps ...func(Payload) bool) bool {
	t.Helper()
	p, err := from.Next(endedContext)
	if errors.Is(err, context.Canceled) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range keeps {
		if keep(p) {
			return true
		}
	}
	var refused *ProtocolError // it is answered, and so a part of the conversation
	if err := to.Handle(context.Background(), p); err != nil && !errors.As(err, &refused) {
		t.Fatalf("%s: %v", payloadText(p), err)
	}
	return true
}
