package scenarios_test

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// TestFailureModes has a subtest for each known way in which layers of this kind
// fail, under the id that it has in the collection of such failures. Each runs in a
// bubble: hours pass in no time, and what doesn't wait takes no time at all.
func TestFailureModes(t *testing.T) {
	for _, mode := range []struct {
		id  string
		run func(t *testing.T)
	}{
		// What was written is not what was delivered.
		{"M04a", lostInFlight}, {"M04c", lostBeforeNoticed}, {"M04d", outlivesConnections},
		// The seam between replay and live.
		{"M03a", joinAnywhere}, {"M03b", seamAtEveryStep}, {"M03d", seamKnowsNoTime},
		// Who may see what.
		{"M27a", authorizeEveryWatch}, {"M27c", replayOfOneLife}, {"M27d", nothingOfTheOldOwner}, {"M27e", idsNobodyGuesses},
		// What acks count.
		{"M06a", ackOfTheUnsent}, {"M06b", oldAcks}, {"M06c", ackOfAnotherLife}, {"M06e", onlyEventsCount},
		// Races and closing.
		{"M14a", everythingAtOnce}, {"M14b", closedTwice},
		// Numbers that begin again.
		{"M02a", restartResets}, {"M02b", positionAhead}, {"M02e", numbersNotReused},
		// One who is stuck holds up nobody.
		{"M10a", stuckViewer}, {"M10c", stuckHub},
		// Calls from inside of callbacks.
		{"M13a", callsFromCallbacks}, {"M13b", callsDuringSend}, {"M13d", closeFromInside},
		// Hostile input.
		{"M28a", floodOfUnknown}, {"M28b", tooManySessions}, {"M28c", hostileFrames},
		// Batches and pages.
		{"M22a", holesInBatches}, {"M22b", batchesOfTwo}, {"M22c", pagesEndExactly},
		// Where a ring begins and ends.
		{"M24a", everyRingEveryPosition}, {"M24b", positionZero}, {"M24d", evictionDuringReplay},
		{"M01a", truncationIsAnItem}, {"M01b", truncationBounds}, {"M01d", noFallBackToTheStart},
		// Not accepted before it is stored, not dealt with before it is.
		{"M07a", storeFails}, {"M07b", readerFails}, {"M07d", heldIsNotAccepted},
		// Numbers too large.
		{"M25a", hostileNumbers}, {"M25b", largestNumbers},
		// The tail of a quiet stream.
		{"M05a", quietAgent}, {"M05b", quietViewer},
		// Nothing is dropped in silence.
		{"M12a", pausedViewer}, {"M12c", burstOverOneEvent},
		// No loops without progress.
		{"M21a", emptyPages}, {"M21b", rejectedPosition}, {"M21d", poison},
		// Whose bytes they are.
		{"M26a", publisherReusesBytes}, {"M26b", viewerChangesBytes},
		// Shutdown, take-over, memory.
		{"M30a", closeWaitsForAcks}, {"M30c", closeDrains},
		{"M15a", lateCleanup}, {"M15b", oneWinner},
		{"M17a", endedGivesBack}, {"M17b", nobodyTakesAnything},
		{"M20a", replaysQueue}, {"M20c", noReconnectOfItsOwn}, {"M20d", oneSessionsTrouble},
		{"M19a", pendingFullRejects}, {"M19b", pendingFullResends}, {"M19c", pendingFullBlocks},
		// Order.
		{"M09a", numbersUnderContention}, {"M09b", oneMillisecond},
		{"M33b", noFilters}, {"M33c", noEphemeralEvents},
		{"M16b", nothingLeftBehind},
		{"M08a", resendIsNotOvertaken}, {"M08c", orderOfNumbers},
		{"M32a", twoProducers},
		{"M11a", sessionsTakeTurns}, {"M11b", acksPassReplays},
		// Sizes.
		{"M23a", batchBytes}, {"M23b", nothingTwiceOnReconnect},
		{"M18b", largeEvent}, {"M18c", totalBytes},
		// Lives of sessions, identities, silence.
		{"M31a", afterTheEnd}, {"M31b", idleSessions},
		{"M34b", replayKeepsIdentity},
		{"M29b", silentHub},
		{"M35a", fewAcks},
	} {
		t.Run(mode.id, func(t *testing.T) {
			if mode.id != "M17a" && mode.id != "M25a" && mode.id != "M28a" { // those look at the process's memory
				t.Parallel()
			}
			synctest.Test(t, mode.run)
		})
	}
}

// pass lets time pass, in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// over is a context that has ended: with it, Next and Items give what is ready, and
// nothing waits.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// equal fails the test if got is not as wanted.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// code is what a *ProtocolError says, with the number if it names one.
func code(err error) string {
	p, ok := err.(*gvstream.ProtocolError)
	switch {
	case err == nil:
		return "none"
	case !ok:
		return err.Error()
	case p.Seq != 0:
		return fmt.Sprintf("%s %d", p.Code, p.Seq)
	}
	return p.Code
}

// publish adds n events to a session. Each carries its own number, by which tell
// sees that an event is the one it says it is.
func publish(t *testing.T, st *gvstream.Streamer, id string, n int) {
	t.Helper()
	s, err := st.Session(id)
	noError(t, err)
	for range n {
		next := s.Stats().Head + 1
		seq, err := s.Publish(over, event(next))
		noError(t, err)
		equal(t, "number", seq, next)
	}
}

func event(seq uint64) gvstream.Event {
	return gvstream.Event{Type: "n", Data: fmt.Append(nil, seq)}
}

func stats(t *testing.T, st *gvstream.Streamer, id string) gvstream.SessionStats {
	t.Helper()
	s, err := st.Session(id)
	noError(t, err)
	return s.Stats()
}

// at is a position in the life that the session has now.
func at(t *testing.T, st *gvstream.Streamer, id string, seq uint64) gvstream.Position {
	t.Helper()
	return gvstream.Position{Epoch: stats(t, st, id).Epoch, Seq: seq}
}

func unacked(st *gvstream.Streamer, id string) string {
	return tellEvents(slices.Collect(st.Unacked(id)), nil)
}

// accepted is how far the hub is in a session; 0 if it doesn't know it.
func accepted(h *gvstream.Hub, id string) uint64 { return hubStats(h, id).Acked }

func hubStats(h *gvstream.Hub, id string) gvstream.SessionStats {
	for s := range h.Sessions() {
		if s.SessionID == id {
			return s
		}
	}
	return gvstream.SessionStats{}
}

// tell says in short what a reader was given, such as
// "1..5, gap 6..12 evicted, 13..20, end".
func tell(items []gvstream.Item) string {
	var out []string
	for i := 0; i < len(items); i++ {
		switch it := items[i]; {
		case it.Event != nil:
			first := i
			for i+1 < len(items) && follows(items[i], items[i+1]) {
				i++
			}
			out = append(out, span(items[first].Event, items[i].Event))
		case it.Gap != nil:
			out = append(out, fmt.Sprintf("gap %d..%d %s", it.Gap.From, it.Gap.To, it.Gap.Reason))
		case it.Reset != nil:
			out = append(out, fmt.Sprintf("reset from %d of %d", it.Reset.Old.Seq, it.Reset.PrevSeq))
		case it.End:
			out = append(out, "end")
		}
	}
	return strings.Join(out, ", ")
}

func follows(a, b gvstream.Item) bool {
	return b.Event != nil && b.Event.Seq == a.Event.Seq+1 && b.SessionID == a.SessionID && genuine(a.Event) && genuine(b.Event)
}

// genuine reports whether an event of publish carries its own number.
func genuine(e *gvstream.Event) bool { return e.Type != "n" || string(e.Data) == fmt.Sprint(e.Seq) }

func span(a, b *gvstream.Event) string {
	switch {
	case !genuine(a):
		return fmt.Sprintf("%d with the data %s", a.Seq, a.Data)
	case a == b:
		return fmt.Sprint(a.Seq)
	}
	return fmt.Sprintf("%d..%d", a.Seq, b.Seq)
}

func tellEvents(events []gvstream.Event, gaps []gvstream.Gap) string {
	var items []gvstream.Item
	for len(events) > 0 || len(gaps) > 0 {
		if len(gaps) > 0 && (len(events) == 0 || gaps[0].From < events[0].Seq) {
			items = append(items, gvstream.Item{Gap: &gaps[0]})
			gaps = gaps[1:]
		} else {
			items = append(items, gvstream.Item{Event: &events[0]})
			events = events[1:]
		}
	}
	return tell(items)
}

// say says in short what payloads are, such as "status s 5 acked 3; batch s 4..5".
func say(payloads ...gvstream.Payload) string {
	var out []string
	for _, p := range payloads {
		var s string
		switch p := p.(type) {
		case *gvstream.HelloPayload:
			s = "hello"
		case *gvstream.WelcomePayload:
			s = "welcome"
		case *gvstream.StatusPayload:
			s = "status"
			for _, e := range p.Sessions {
				s += fmt.Sprintf(" %s %d acked %d", e.SessionID, e.HeadSeq, e.AckSeq)
			}
		case *gvstream.EventBatchPayload:
			s = "batch " + p.SessionID + " " + tellEvents(p.Events, p.Gaps)
		case *gvstream.AckBatchPayload:
			s = fmt.Sprintf("ack %s %d", p.SessionID, p.UpToSeq)
			if p.Nack {
				s = "n" + s
			}
		case *gvstream.WatchPayload:
			s = fmt.Sprintf("watch %s %d", p.SessionID, p.AfterSeq)
			if p.Stop {
				s = "unwatch " + p.SessionID
			}
		case *gvstream.ReplayRequestPayload:
			s = fmt.Sprintf("replay %s %d..%d", p.SessionID, p.AfterSeq+1, p.UntilSeq)
		case *gvstream.ReplayBatchPayload:
			s = "replayed " + p.SessionID + " " + tellEvents(p.Events, p.Gaps)
			if p.Done {
				s = strings.TrimSpace(s) + " done"
			}
		case *gvstream.ErrorPayload:
			s = "error " + p.Code
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

// heap is the bytes in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// ready returns all that a link has to send now.
func ready(l *gvstream.Link) (out []gvstream.Payload) {
	for p := next(l); p != nil; p = next(l) {
		out = append(out, p)
	}
	return out
}

// next returns the next payload that a link has to send now, or nil.
func next(l *gvstream.Link) gvstream.Payload {
	p, err := l.Next(over)
	if err != nil {
		return nil
	}
	return p
}

func handle(l *gvstream.Link, p gvstream.Payload) error { return l.Handle(context.Background(), p) }

// A scene is a hub and connections to it that the test carries payload by payload,
// as if over a network.
type scene struct {
	*testing.T
	hub   *gvstream.Hub
	wires []*wire
}

func newScene(t *testing.T, cfg *gvstream.HubConfig) *scene {
	return &scene{T: t, hub: gvstream.NewHub(cfg)}
}

// A wire is one connection of a scene.
type wire struct {
	t         *testing.T
	near, far *gvstream.Link     // an agent's or viewer's, and the hub's
	up, down  []gvstream.Payload // what passed, to the hub and from it
	errs      []string           // what Handle said about it
	shared    bool               // payloads pass as they are, not as JSON
}

// agent connects a Streamer.
func (sc *scene) agent(id string, st *gvstream.Streamer) *wire {
	return sc.wire(st.Connect(), sc.hub.ConnectAgent(id))
}

// viewer connects a Viewer.
func (sc *scene) viewer(id string, v *gvstream.Viewer) *wire {
	return sc.wire(v.Connect(), sc.hub.ConnectViewer(id))
}

func (sc *scene) wire(near, far *gvstream.Link) *wire {
	w := &wire{t: sc.T, near: near, far: far}
	sc.wires = append(sc.wires, w)
	return w
}

// flow carries payloads until nobody has any more to say.
func (sc *scene) flow() {
	for n := 0; sc.step(); n++ {
		if n == 100_000 {
			sc.Fatal("they never stop talking")
		}
	}
}

// step carries at most one payload each way on every wire, if there is any. Asking
// one link can give another something to say, so it asks twice.
func (sc *scene) step() (moved bool) {
	for range 2 {
		for _, w := range sc.wires {
			moved = w.step() || moved
		}
		if moved {
			return true
		}
	}
	return false
}

// later lets time pass.
func (sc *scene) later(d time.Duration) {
	for d > 0 {
		sc.flow()
		some := min(d, 5*time.Second)
		pass(some)
		d -= some
	}
	sc.flow()
}

// acked lets time pass until the hub has acknowledged what it holds.
func (sc *scene) acked() { sc.later(time.Second) }

func (w *wire) step() bool {
	a, b := w.pass(w.near, w.far, &w.up), w.pass(w.far, w.near, &w.down)
	return a || b
}

func (w *wire) flow() {
	for w.step() {
	}
}

func (w *wire) pass(from, to *gvstream.Link, log *[]gvstream.Payload) bool {
	p := next(from)
	if p == nil {
		return false
	}
	*log = append(*log, p)
	if !w.shared {
		p = recode(w.t, p)
	}
	if err := handle(to, p); err != nil {
		w.errs = append(w.errs, code(err))
	}
	return true
}

// recode is what becomes of a payload on the way.
func recode(t *testing.T, p gvstream.Payload) gvstream.Payload {
	t.Helper()
	b, err := gvstream.Marshal(p)
	noError(t, err)
	p, err = gvstream.Unmarshal(b)
	noError(t, err)
	return p
}

// cut breaks the connection: both sides notice.
func (w *wire) cut() {
	w.near.Close()
	w.far.Close()
}

// forget empties the record of what passed.
func (w *wire) forget() { w.up, w.down = nil, nil }

// newViewer is a Viewer that watches one session and has room for everything: a
// wire carries on without its reader.
func newViewer(t *testing.T, id string, after gvstream.Position) *gvstream.Viewer {
	t.Helper()
	v := gvstream.NewViewer(&gvstream.ViewerConfig{BufferItems: 1 << 20, BufferBytes: 1 << 30})
	noError(t, v.Watch(id, after))
	return v
}

// read returns what a viewer's reader gets now. An error of a watch fails the test.
func read(t *testing.T, v *gvstream.Viewer) string {
	t.Helper()
	return tell(readItems(t, v))
}

func readItems(t *testing.T, v *gvstream.Viewer) (items []gvstream.Item) {
	t.Helper()
	for it, err := range v.Items(over) {
		noError(t, err)
		items = append(items, it)
	}
	return items
}

// show returns what a viewer gets that connects, watches from a position and leaves.
func (sc *scene) show(id string, after gvstream.Position) string {
	sc.Helper()
	v := newViewer(sc.T, id, after)
	w := sc.viewer("passer-by", v)
	sc.flow()
	w.cut()
	return read(sc.T, v)
}

// A handHub is a hub that the test plays against a Streamer.
type handHub struct {
	t    *testing.T
	st   *gvstream.Streamer
	link *gvstream.Link
	name string
}

var handLinks atomic.Int64 // made so far

// answer connects the Streamer to a hub that the test plays, and welcomes it.
func answer(t *testing.T, st *gvstream.Streamer, window int) *handHub {
	t.Helper()
	h := &handHub{t: t, st: st, link: st.Connect(), name: fmt.Sprint("link-", handLinks.Add(1))}
	equal(t, "first payload", say(next(h.link)), "hello")
	noError(t, handle(h.link, &gvstream.WelcomePayload{V: 1, Link: h.name, Window: window}))
	return h
}

// says is what the agent has to say now.
func (h *handHub) says() string { return say(ready(h.link)...) }

// ack acknowledges and returns what the agent makes of it.
func (h *handHub) ack(id string, upTo uint64) error {
	h.t.Helper()
	return handle(h.link, &gvstream.AckBatchPayload{
		SessionID: id, Epoch: stats(h.t, h.st, id).Epoch, Link: h.name, UpToSeq: upTo,
	})
}

// A handAgent is an agent that the test plays against a Hub.
type handAgent struct {
	t    *testing.T
	link *gvstream.Link
	name string
}

const epoch1, epoch2 = "0001", "0002"

func callAgent(t *testing.T, h *gvstream.Hub, id string) *handAgent {
	t.Helper()
	a := &handAgent{t: t, link: h.ConnectAgent(id)}
	noError(t, handle(a.link, &gvstream.HelloPayload{V: 1, Role: "agent"}))
	a.name = next(a.link).(*gvstream.WelcomePayload).Link
	return a
}

func (a *handAgent) says() string { return say(ready(a.link)...) }

// status says where a session stands.
func (a *handAgent) status(id, epoch string, head, ack uint64) error {
	return handle(a.link, &gvstream.StatusPayload{Link: a.name, Sessions: []gvstream.SessionStatus{
		{SessionID: id, Epoch: epoch, FirstSeq: 1, HeadSeq: head, AckSeq: ack},
	}})
}

// batch sends events with the given numbers, as one batch.
func (a *handAgent) batch(id, epoch string, seqs ...uint64) error {
	return handle(a.link, &gvstream.EventBatchPayload{
		SessionID: id, Epoch: epoch, Link: a.name, FirstSeq: slices.Min(seqs), LastSeq: slices.Max(seqs),
		HeadSeq: slices.Max(seqs), Events: numbered(seqs...),
	})
}

// numbered are the events of these numbers.
func numbered(seqs ...uint64) (events []gvstream.Event) {
	for _, seq := range seqs {
		e := event(seq)
		e.Seq = seq
		events = append(events, e)
	}
	return events
}

// to is the numbers from a to b.
func to(a, b uint64) (seqs []uint64) {
	for ; a <= b; a++ {
		seqs = append(seqs, a)
	}
	return seqs
}

// A handViewer is a viewer that the test plays against a Hub.
type handViewer struct {
	t    *testing.T
	link *gvstream.Link
	name string
}

func callViewer(t *testing.T, h *gvstream.Hub, id string) *handViewer {
	t.Helper()
	v := &handViewer{t: t, link: h.ConnectViewer(id)}
	noError(t, handle(v.link, &gvstream.HelloPayload{V: 1, Role: "viewer"}))
	v.name = next(v.link).(*gvstream.WelcomePayload).Link
	return v
}

func (v *handViewer) says() string { return say(ready(v.link)...) }

func (v *handViewer) watch(id string, after gvstream.Position) error {
	return handle(v.link, &gvstream.WatchPayload{SessionID: id, Epoch: after.Epoch, AfterSeq: after.Seq})
}

// A store is what a hub's Commit callback has written.
type store struct {
	mu    sync.Mutex
	items map[string][]gvstream.Item // by session
	fails func(items []gvstream.Item) error
}

func (s *store) commit(_ context.Context, id, _ string, items []gvstream.Item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		if err := s.fails(items); err != nil {
			return err
		}
	}
	if s.items == nil {
		s.items = make(map[string][]gvstream.Item)
	}
	s.items[id] = append(s.items[id], items...)
	return nil
}

func (s *store) tell(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tell(s.items[id])
}

// A stage is a hub and connections to it that run by themselves.
type stage struct {
	t     *testing.T
	ctx   context.Context
	hub   *gvstream.Hub
	tasks sync.WaitGroup
	stop  context.CancelFunc
}

func newStage(t *testing.T, cfg *gvstream.HubConfig) *stage {
	sg := &stage{t: t, hub: gvstream.NewHub(cfg)}
	sg.ctx, sg.stop = context.WithTimeout(context.Background(), time.Hour) // signs of life would go on for ever
	t.Cleanup(sg.close)                                                    // also when a test fails
	return sg
}

// close ends all connections and waits for them.
func (sg *stage) close() {
	sg.stop()
	sg.tasks.Wait()
}

// join runs a connection between two links, until either breaks.
func (sg *stage) join(near, far *gvstream.Link, tap func(gvstream.Payload)) {
	a, b := streamtest.Pipe()
	send := func(ctx context.Context, p gvstream.Payload) error {
		if tap != nil {
			tap(p)
		}
		return a.Send(ctx, p)
	}
	sg.tasks.Go(func() { far.Run(sg.ctx, b.Send, b.Receive); b.Close() })
	sg.tasks.Go(func() { near.Run(sg.ctx, send, a.Receive); a.Close() })
}

// follow reads one session to its end and returns what came.
func (sg *stage) follow(name, id string, after gvstream.Position) string {
	v := gvstream.NewViewer(nil)
	if err := v.Watch(id, after); err != nil {
		return err.Error()
	}
	sg.join(v.Connect(), sg.hub.ConnectViewer(name), nil)
	defer v.Close()
	var items []gvstream.Item
	for it, err := range v.Items(sg.ctx) {
		if err != nil {
			return err.Error()
		}
		items = append(items, it)
		if it.End {
			break
		}
	}
	return tell(items)
}

// text is a JSON string of n bytes with its quotes.
func text(n int) json.RawMessage {
	return json.RawMessage(`"` + strings.Repeat("x", n-2) + `"`)
}
