package gvstream

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
)

// The load tests: many sessions, many viewers, many events, many cuts. Each checks
// its invariants in a small size with the other tests, and in its full size, with
// figures, by
//
//	GVSTREAM_LOAD=1 go test -v -run '^TestLoad' .

// LoadSize is how large a load test is.
func LoadSize(full, small int) int {
	if os.Getenv("GVSTREAM_LOAD") != "" {
		return full
	}
	return small
}

// Measure runs f, which does n things, and logs what one cost and what is left.
func Measure(t *testing.T, what string, n int, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	each := func(total uint64) float64 { return float64(total) / float64(n) }
	t.Logf("%-44s %8d times %9v: %8.2f µs %7.2f allocs %8.0f B each; then heap %6.1f MB, %d goroutines",
		what, n, took.Round(time.Millisecond), float64(took.Microseconds())/float64(n),
		each(after.Mallocs-before.Mallocs), each(after.TotalAlloc-before.TotalAlloc),
		float64(heapInUse())/1e6, runtime.NumGoroutine())
}

// heapInUse is the bytes of all that can be reached.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what pools hold takes two
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A loadScene is a hub, an agent and viewers on a clock of their own, without
// goroutines: payloads pass when a test says so.
type loadScene struct {
	t   *testing.T
	now time.Time
	ctx context.Context // has ended: nothing waits
	h   *Hub
	st  *Streamer

	agent, hub *Link // the agent's connection
	sent       map[string]int
	see        func(p Payload) // everything that passes, or nil
}

func newLoadScene(t *testing.T, hub *HubConfig, agent *StreamerConfig) *loadScene {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return &loadScene{
		t: t, now: time.Now(), ctx: ctx, h: NewHub(hub), st: NewStreamer(agent), sent: make(map[string]int),
	}
}

// connect makes the agent's next connection, and lets everything pass.
func (sc *loadScene) connect() {
	clear(sc.sent)
	sc.agent, sc.hub = sc.st.connect(sc.now).Link, sc.h.connectAgent(sc.now, "agent").Link
	sc.flow()
}

func (sc *loadScene) flow() {
	for sc.pass(sc.agent, sc.hub) || sc.pass(sc.hub, sc.agent) {
	}
}

// later lets time pass, and everything that is due meanwhile.
func (sc *loadScene) later(d time.Duration) {
	for ; d > heartbeat; d -= heartbeat {
		sc.now = sc.now.Add(heartbeat)
		sc.flow()
	}
	sc.now = sc.now.Add(d)
	sc.flow()
}

// pass hands one payload over, if there is one.
func (sc *loadScene) pass(from, to *Link) bool {
	p := sc.next(from)
	if p != nil {
		sc.handle(to, p)
	}
	return p != nil
}

func (sc *loadScene) next(l *Link) Payload {
	p, _, err := l.next(sc.now)
	if err != nil {
		sc.t.Fatalf("next: %v", err)
	}
	if p != nil {
		sc.sent[p.payloadType()]++
		if sc.see != nil {
			sc.see(p)
		}
	}
	return p
}

func (sc *loadScene) handle(l *Link, p Payload) {
	if err := l.handle(sc.ctx, sc.now, p); err != nil {
		sc.t.Fatalf("handle %s: %v", payloadText(p), err)
	}
}

func (sc *loadScene) publish(id string) {
	data := strconv.AppendQuote(nil, id)
	if _, err := sc.st.Publish(sc.t.Context(), id, Event{Type: "load", Data: data}); err != nil {
		sc.t.Fatal(err)
	}
}

// wantSent checks how many payloads of a type have passed since the connection
// began, or since the last look.
func (sc *loadScene) wantSent(typ string, want int) {
	sc.t.Helper()
	if got := sc.sent[typ]; got != want {
		sc.t.Errorf("%d %s passed, want %d", got, typ, want)
	}
	delete(sc.sent, typ)
}

func loadIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("session-%06d", i)
	}
	return ids
}

// wantAccepted checks that the hub and the agent have n events of each session, all
// acknowledged, and that they are the session's own.
func (sc *loadScene) wantAccepted(ids []string, n uint64) {
	sc.t.Helper()
	for _, id := range ids {
		s, hs := sc.st.lookup(id), sc.h.lookup(id)
		if s.acked != n || s.pendingEvents != 0 || hs.log.head != n {
			sc.t.Fatalf("%s: acked %d, %d pending, accepted %d; want %d", id, s.acked, s.pendingEvents, hs.log.head, n)
		}
		p := hs.log.read(span{0, n, n, int(n), pageBytes, 0})
		events := p.open()
		for i, ev := range events {
			if ev.Seq != uint64(i)+1 || string(ev.Data) != strconv.Quote(id) {
				sc.t.Fatalf("%s: event %d is %d with %s", id, i+1, ev.Seq, ev.Data)
			}
		}
		if len(events) != int(n) || len(p.gaps) != 0 {
			sc.t.Fatalf("%s: the hub holds %d events, want %d", id, len(events), n)
		}
	}
}

// 100,000 sessions of one agent, over one connection.
func TestLoadSessions(t *testing.T) {
	n := LoadSize(100_000, 300)
	sc := newLoadScene(t, &HubConfig{MaxSessions: n, MaxAgentSessions: n}, &StreamerConfig{MaxSessions: n})
	ids := loadIDs(n)
	pages := (n + maxStatus - 1) / maxStatus
	entries, more := 0, 0
	sc.see = func(p Payload) {
		if p, ok := p.(*StatusPayload); ok {
			entries += len(p.Sessions)
			if p.More {
				more++
			}
			if len(p.Sessions) > maxStatus {
				t.Errorf("a status of %d sessions", len(p.Sessions))
			}
		}
	}
	wantPages := func() {
		t.Helper()
		sc.wantSent("status", pages)
		if entries != n || more != pages-1 {
			t.Errorf("statuses of %d sessions, %d of them with more; want %d and %d", entries, more, n, pages-1)
		}
		entries, more = 0, 0
	}
	publish := func() {
		for _, id := range ids {
			sc.publish(id)
		}
	}

	Measure(t, "publish the first event of a session", n, publish)
	Measure(t, "open a session, and have it acked", n, sc.connect)
	wantPages()
	sc.wantSent("event_batch", n)
	sc.later(time.Second) // what was opened by a batch is acked in a while
	sc.wantAccepted(ids, 1)
	clear(sc.sent)

	Measure(t, "publish to a connected session", n, publish)
	Measure(t, "send and ack one event of each", n, func() { sc.later(0); sc.later(time.Second) })
	sc.wantSent("event_batch", n)
	sc.wantSent("ack_batch", n)
	sc.wantAccepted(ids, 2)

	sc.later(time.Minute) // timers of what was acked run out
	entries, more = 0, 0
	clear(sc.sent)
	const beats = 20
	Measure(t, "heartbeat when all are idle", beats, func() {
		for range beats {
			sc.later(heartbeat)
		}
	})
	sc.wantSent("status", 2*beats) // and the hub's answer
	if entries != 0 {
		t.Errorf("idle sessions stood in a status %d times", entries)
	}

	Measure(t, "reconnect a session without anything pending", n, sc.connect)
	wantPages()
	sc.wantSent("ack_batch", n)
	sc.wantSent("event_batch", 0)

	publish()
	Measure(t, "reconnect a session with an event pending", n, sc.connect)
	wantPages()
	sc.wantSent("event_batch", n)
	sc.later(time.Second)
	sc.wantAccepted(ids, 3)
	clear(sc.sent)
	if r := sc.st.Stats().RefusedPayloads + sc.h.Stats().RefusedPayloads; r != 0 {
		t.Errorf("%d refusals", r)
	}

	publish() // and nothing is sent meanwhile
	Measure(t, "forget a session that has something to send", n, func() {
		for _, id := range slices.Backward(ids) {
			sc.st.Forget(id)
		}
	})
	sc.flow()
	if st := sc.st.Stats(); st.Sessions != 0 || st.Bytes != 0 || sc.sent["event_batch"] != 0 {
		t.Errorf("of forgotten sessions, %d are left with %d bytes, and %d batches were sent", st.Sessions, st.Bytes, sc.sent["event_batch"])
	}
}

// 100,000 sessions that have ended leave nothing behind once their time has passed,
// while the connection goes on.
func TestLoadHeap(t *testing.T) {
	n := LoadSize(100_000, 600)
	const events = 10
	sc := newLoadScene(t, &HubConfig{MaxSessions: n + 1, MaxAgentSessions: n + 1}, &StreamerConfig{MaxSessions: n + 1})
	ids := loadIDs(n)
	sc.connect()
	sc.publish("warm") // what is made once, such as pools
	sc.later(time.Minute)
	clear(sc.sent)
	before := heapInUse()
	Measure(t, "publish 10 events and the end, and ack", n, func() {
		for _, id := range ids {
			for range events - 1 {
				sc.publish(id)
			}
			if _, err := sc.st.End(t.Context(), id, Event{Data: strconv.AppendQuote(nil, id)}); err != nil {
				t.Fatal(err)
			}
			sc.flow()
		}
		sc.later(time.Second)
	})
	sc.wantAccepted(ids, events)
	full := heapInUse()
	Measure(t, "forget a session at the agent", n, func() { sc.later(endedTTL + heartbeat) })
	if left := len(sc.st.sessions) - 1; left != 0 {
		t.Errorf("the agent remembers %d sessions", left)
	}
	Measure(t, "drop a session's events at the hub", n, func() { sc.later(endedTTL) })
	Measure(t, "forget a session at the hub", n, func() { sc.later(time.Hour); sc.later(heartbeat) })
	if left := len(sc.h.sessions) - 1; left != 0 {
		t.Errorf("the hub remembers %d sessions", left)
	}
	after := heapInUse()
	t.Logf("heap: %.2f MB before, %.2f MB full (%d B a session), %.2f MB after",
		float64(before)/1e6, float64(full)/1e6, int(full-before)/n, float64(after)/1e6)
	// Maps and heaps keep their room for as many again.
	if slack := (full-before)/20 + 64<<10; after > before+slack {
		t.Errorf("%d bytes are left of %d; want at most %d", after-before, full-before, slack)
	}
	runtime.KeepAlive(ids)
	runtime.KeepAlive(sc)
}

// A loadViewer is a viewer's end of a connection, played by hand: all that a hub
// with very many of them can't tell from a Viewer. It takes note of how far it is,
// and fails at a number that is missing or comes twice.
type loadViewer struct {
	id   string
	l    *Link
	seq  uint64
	gaps int
}

func (sc *loadScene) viewer(session string, i int, after Position) *loadViewer {
	v := &loadViewer{id: fmt.Sprintf("viewer-%05d", i), seq: after.Seq}
	v.l = sc.h.connectViewer(sc.now, v.id, false).Link
	sc.handle(v.l, &HelloPayload{V: version, Role: roleViewer})
	sc.handle(v.l, &WatchPayload{SessionID: session, ViewerID: v.id, Epoch: after.Epoch, AfterSeq: after.Seq})
	return v
}

// take takes one payload, and reports whether there was one.
func (v *loadViewer) take(sc *loadScene) bool {
	p := sc.next(v.l)
	switch p := p.(type) {
	case nil:
		return false
	case *EventBatchPayload:
		v.read(sc, p.FirstSeq, p.LastSeq, len(p.Events), len(p.Gaps))
	case *ReplayBatchPayload:
		if p.ViewerID != v.id {
			sc.t.Fatalf("%s got the replay of %s", v.id, p.ViewerID)
		}
		v.read(sc, p.FirstSeq, p.LastSeq, len(p.Events), len(p.Gaps))
	case *ErrorPayload:
		sc.t.Fatalf("%s: %s", v.id, payloadText(p))
	}
	return true
}

func (v *loadViewer) read(sc *loadScene, first, last uint64, events, gaps int) {
	if first != v.seq+1 || gaps == 0 && uint64(events) != last-v.seq {
		sc.t.Fatalf("%s has %d, and then gets %d to %d, %d events", v.id, v.seq, first, last, events)
	}
	v.seq = last
	v.gaps += gaps
}

func (sc *loadScene) drain(vs []*loadViewer) {
	for _, v := range vs {
		for v.take(sc) {
		}
	}
}

func (sc *loadScene) wantAt(vs []*loadViewer, seq uint64) {
	sc.t.Helper()
	for _, v := range vs {
		if v.seq != seq || v.gaps != 0 {
			sc.t.Fatalf("%s is at %d with %d gaps, want %d", v.id, v.seq, v.gaps, seq)
		}
	}
}

// 10,000 viewers of one session.
func TestLoadViewers(t *testing.T) {
	n := LoadSize(10_000, 50)
	sc := newLoadScene(t, nil, nil)
	sc.connect()
	head := uint64(0)
	publish := func(events int) {
		for range events {
			sc.publish("s")
		}
		head += uint64(events)
		sc.flow()
	}
	publish(100)
	before := heapInUse()
	vs := make([]*loadViewer, n)
	Measure(t, "a viewer comes, and gets 100 events", n, func() {
		for i := range vs {
			vs[i] = sc.viewer("s", i, Position{})
		}
		sc.drain(vs)
	})
	sc.wantAt(vs, head)
	t.Logf("%d bytes a viewer", int(heapInUse()-before)/n)
	const times = 20
	Measure(t, "accept an event, and wake its viewers", times*n, func() {
		for range times {
			publish(1)
		}
	})
	sc.drain(vs)
	Measure(t, "hand one event to a viewer", times*n, func() {
		for range times {
			publish(1)
			sc.drain(vs)
		}
	})
	sc.wantAt(vs, head)
	Measure(t, "hand 64 events to a viewer", times*n, func() {
		for range times {
			publish(64)
			sc.drain(vs)
		}
	})
	sc.wantAt(vs, head)
	clear(sc.sent)
	sc.now = sc.now.Add(heartbeat)
	Measure(t, "a viewer's heartbeat", n, func() { sc.drain(vs) })
	sc.wantSent("status", n)

	Measure(t, "a viewer leaves", n, func() {
		for i := range vs { // the last first, and every other before the rest
			vs[(2*(n-1-i)+n%2)%n].l.fail(sc.now, ErrClosed)
		}
		for _, v := range vs {
			v.l.fail(sc.now, ErrClosed)
		}
	})
	if s := sc.h.lookup("s"); len(s.cursors) != 0 || len(sc.h.viewers) != 0 {
		t.Errorf("%d cursors and %d viewers are left", len(s.cursors), len(sc.h.viewers))
	}
	clear(vs)
	if left := int(heapInUse()) - int(before); left > 1<<20+100*n {
		t.Errorf("%d bytes are left of %d viewers", left, n)
	}
	runtime.KeepAlive(sc)
}

// 1,000 viewers resume at once on a session whose older events only the agent has.
func TestLoadResume(t *testing.T) {
	n := LoadSize(1000, 20)
	const events, kept = 2000, 100
	sc := newLoadScene(t, &HubConfig{LogEvents: kept}, &StreamerConfig{ReplayEvents: events})
	sc.connect()
	for range events {
		sc.publish("s")
	}
	sc.later(time.Second)
	hs, s := sc.h.lookup("s"), sc.st.lookup("s")
	if hs.log.events != kept || s.log.events != events {
		t.Fatalf("the hub holds %d events, the agent %d", hs.log.events, s.log.events)
	}
	after := Position{Epoch: hs.epoch, Seq: 10} // as one that has been there before
	vs := make([]*loadViewer, n)
	for i := range vs {
		vs[i] = sc.viewer("s", i, after)
	}
	most := resumed{}
	before := heapInUse()
	Measure(t, "resume a viewer by a replay of 1,890 events", n, func() {
		for moved := true; moved; {
			moved = false
			for _, v := range vs {
				moved = v.take(sc) || moved
			}
			moved = sc.pass(sc.hub, sc.agent) || moved
			moved = sc.pass(sc.agent, sc.hub) || moved
			most.look(t, hs, s)
		}
	})
	sc.wantAt(vs, events)
	t.Logf("at most %d requests open, %d replays at the agent, %d events (%d bytes) held for %d viewers; heap %+d KB",
		most.open, most.running, most.events, most.bytes, n, (int(heapInUse())-int(before))/1000)
	requests := n * ((events - kept - 10 + 499) / 500)
	sc.wantSent("replay_request", requests)
	sc.wantSent("error", 0)
	if most.open != sc.h.cfg.MaxReplays {
		t.Errorf("at most %d requests were open, want %d", most.open, sc.h.cfg.MaxReplays)
	}
	wantAtRest(t, hs, s)

	// And again, but they leave while most wait for their turn.
	again := func() {
		for i := range vs {
			vs[i].l.fail(sc.now, ErrClosed)
			vs[i] = sc.viewer("s", i, after)
		}
		sc.drain(vs) // until they have to wait
	}
	leave := func() {
		for _, v := range vs {
			v.l.fail(sc.now, ErrClosed)
		}
		sc.flow()
	}
	again()
	Measure(t, "a viewer leaves that waits for its turn", n, leave)
	wantAtRest(t, hs, s)

	// And again, but they stand still when their turn has come: each holds one
	// request's worth, and none holds up one that reads on.
	again()
	before = heapInUse()
	Measure(t, "replay to a viewer that stands still", n, sc.flow)
	held := resumed{}
	for _, c := range hs.cursors {
		held.add(c)
	}
	t.Logf("%d events (%d bytes) held for %d viewers; heap %+d KB",
		held.events, held.bytes, n, (int(heapInUse())-int(before))/1000)
	if held.events != n*hs.h.sizes.replay || hs.open != 0 {
		t.Errorf("%d events are held for %d viewers, and %d requests are open", held.events, n, hs.open)
	}
	one := sc.viewer("s", n, after)
	for one.take(sc) || sc.pass(sc.hub, sc.agent) || sc.pass(sc.agent, sc.hub) {
	}
	sc.wantAt([]*loadViewer{one}, events)
	leave()
	wantAtRest(t, hs, s)
	if left := int(heapInUse()) - int(before); left > 64<<10 {
		t.Errorf("%d bytes are left of viewers that stood still", left)
	}
	runtime.KeepAlive(sc)
}

// resumed is the most that hub and agent have held for viewers that resume.
type resumed struct{ open, running, events, bytes int }

func (r *resumed) look(t *testing.T, hs *hubSession, s *Session) {
	now := resumed{}
	for _, c := range hs.cursors {
		now.add(c)
	}
	r.open, r.running = max(r.open, hs.open), max(r.running, len(s.on.replays))
	r.events, r.bytes = max(r.events, now.events), max(r.bytes, now.bytes)
	limit := hs.h.cfg.MaxReplays
	if hs.open > limit || len(s.on.replays) > limit {
		t.Fatalf("%d requests are open, %d replays run; want at most %d", hs.open, len(s.on.replays), limit)
	}
	// Each request's worth is handed out as it comes, so the next ones find room.
	if held := 2 * limit * hs.h.sizes.replay; now.events > held {
		t.Fatalf("the hub holds %d events for its viewers, want at most %d", now.events, held)
	}
}

// add counts what is held for a cursor.
func (r *resumed) add(c *cursor) {
	for i := range c.pages {
		r.events += len(c.pages[i].slots)
		r.bytes += c.pages[i].bytes
	}
}

// wantAtRest checks that nothing is asked for, by nobody.
func wantAtRest(t *testing.T, hs *hubSession, s *Session) {
	t.Helper()
	if hs.open != 0 || len(s.on.replays) != 0 || s.on.l.bulk.len() != 0 {
		t.Errorf("%d requests open, %d replays running, %d tasks at the agent when all are served",
			hs.open, len(s.on.replays), s.on.l.bulk.len())
	}
	for _, c := range hs.cursors {
		if c.fetch != nil || len(c.pages) != 0 || c.turn.in != nil {
			t.Errorf("a cursor is not done: %+v", c)
		}
	}
}

// A cutWire is a connection that loses what is on its way when it is cut, after so
// many events.
type cutWire struct {
	sc       *loadScene
	near     func() *Link // makes the ends
	far      func() *Link
	a, b     *Link
	toA, toB []Payload
	events   int // that have been sent on this connection
	cuts     int
}

const (
	cutAfter = 1000
	onTheWay = 8 // payloads, each way
)

func (w *cutWire) cut() {
	if w.a != nil {
		w.cuts++
		w.a.fail(w.sc.now, ErrClosed)
		w.b.fail(w.sc.now, ErrClosed)
	}
	w.a, w.b = w.near(), w.far()
	w.toA, w.toB, w.events = nil, nil, 0
}

// step moves a payload each way, and reports whether there was one.
func (w *cutWire) step() bool {
	if w.events >= cutAfter {
		w.cut()
	}
	moved := w.move(w.a, w.b, &w.toB)
	return w.move(w.b, w.a, &w.toA) || moved
}

func (w *cutWire) move(from, to *Link, way *[]Payload) bool {
	p := w.sc.next(from)
	switch p := p.(type) {
	case *EventBatchPayload:
		w.events += len(p.Events)
	case *ReplayBatchPayload:
		w.events += len(p.Events)
	}
	if p != nil {
		*way = append(*way, p)
	}
	if len(*way) == 0 || p != nil && len(*way) < onTheWay {
		return p != nil
	}
	w.sc.handle(to, (*way)[0])
	*way = (*way)[1:]
	return true
}

// A million events of one session, over connections of which each is cut after
// 1,000, with what is on its way: every event arrives once and in order, at the hub
// and at a viewer.
func TestLoadCuts(t *testing.T) {
	n := uint64(LoadSize(1_000_000, 5000))
	var stored uint64
	sc := newLoadScene(t, &HubConfig{
		LogEvents: 20_000,
		Window:    256, // what is on its way must not be all that a connection carries
		Commit: func(_ context.Context, _, _ string, items []Item) error {
			for _, it := range items {
				wantNext(t, "hub", &stored, it)
			}
			return nil
		},
	}, &StreamerConfig{Overflow: Reject})
	v := NewViewer(&ViewerConfig{BufferItems: 2 * maxBatchEvents})
	if err := v.Watch("s", Position{}); err != nil {
		t.Fatal(err)
	}
	up := &cutWire{sc: sc,
		near: func() *Link { return sc.st.connect(sc.now).Link },
		far:  func() *Link { return sc.h.connectAgent(sc.now, "agent").Link },
	}
	down := &cutWire{sc: sc,
		near: func() *Link { return v.connect(sc.now).Link },
		far:  func() *Link { return sc.h.connectViewer(sc.now, "tab", false).Link },
	}
	up.cut()
	down.cut()
	s, err := sc.st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	var published, read uint64
	Measure(t, "publish, cut, resend, commit, ack, view", int(n), func() {
		for read < n {
			for range 64 {
				if published == n {
					break
				}
				if _, err := s.Publish(t.Context(), Event{Data: strconv.AppendUint(nil, published+1, 10)}); err == ErrPendingFull {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				published++
			}
			moved := up.step()
			if moved = down.step() || moved; !moved {
				sc.now = sc.now.Add(ackDelay)
			}
			for q, _ := v.front(); q != nil; q, _ = v.front() {
				wantNext(t, "viewer", &read, q.item)
				v.done(q)
			}
		}
	})
	for range 10 {
		for up.step() {
		}
		sc.now = sc.now.Add(ackDelay)
	}
	if stored != n || s.acked != n || s.lost != 0 {
		t.Errorf("%d stored, %d acked, %d lost; want all of %d", stored, s.acked, s.lost, n)
	}
	if least := int(n/cutAfter) * 9 / 10; up.cuts < least || down.cuts < least {
		t.Errorf("%d cuts at the agent, %d at the viewer; want at least %d", up.cuts, down.cuts, least)
	}
	t.Logf("%d cuts at the agent, %d at the viewer; payloads: %v", up.cuts, down.cuts, sc.sent)
}

// wantNext wants the item to be the event that follows.
func wantNext(t *testing.T, who string, seq *uint64, it Item) {
	t.Helper()
	*seq++
	if it.Event == nil || it.Event.Seq != *seq || string(it.Event.Data) != strconv.FormatUint(*seq, 10) {
		t.Fatalf("%s: got %+v, want event %d", who, it, *seq)
	}
}
