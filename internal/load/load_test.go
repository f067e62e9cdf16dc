package load_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/testenv"
)

const heartbeat = 15 * time.Second

// A load is a scene with one agent that counts the payloads that pass. There are no
// goroutines: payloads pass when a test says so.
type load struct {
	*scene.Scene
	t     *testing.T
	agent *gvstream.Streamer
	wire  *scene.Wire // the agent's latest connection
	sent  map[reflect.Type]int
	see   func(gvstream.Payload) // records all that passes on wire, or nil
}

func newLoad(t *testing.T, hub *gvstream.HubConfig, agent *gvstream.StreamerConfig) *load {
	return &load{Scene: scene.New(t, hub), t: t, agent: gvstream.NewStreamer(agent), sent: make(map[reflect.Type]int)}
}

// connect makes the agent's next connection, and lets everything pass.
func (l *load) connect() {
	clear(l.sent)
	l.wire = l.Agent("agent", l.agent)
	l.wire.Shared = true
	l.wire.See = func(p gvstream.Payload) {
		l.sent[reflect.TypeOf(p)]++
		if l.see != nil {
			l.see(p)
		}
	}
	l.Flow()
}

// Flow is the scene's Flow, and fails the test if anything is refused.
func (l *load) Flow() {
	l.t.Helper()
	l.Scene.Flow()
	l.wantNoErrors()
}

// Later is the scene's Later, and fails the test if anything is refused.
func (l *load) Later(d time.Duration) {
	l.t.Helper()
	l.Scene.Later(d)
	l.wantNoErrors()
}

func (l *load) wantNoErrors() {
	l.t.Helper()
	if errs := l.wire.Errs; len(errs) > 0 {
		l.t.Fatalf("%d payloads were refused, the first with %v", len(errs), errs[0])
	}
}

// next takes a payload of a link that no wire carries.
func (l *load) next(from *gvstream.Link) gvstream.Payload {
	p := scene.Next(from)
	if p != nil {
		l.sent[reflect.TypeOf(p)]++
	}
	return p
}

func (l *load) handle(to *gvstream.Link, p gvstream.Payload) {
	l.t.Helper()
	if err := to.Handle(scene.Ended, p); err != nil {
		l.t.Fatalf("%T: %v", p, err)
	}
}

// publish adds an event to a session, which carries the session's id.
func (l *load) publish(id string) {
	l.t.Helper()
	_, err := l.agent.Publish(scene.Ended, id, gvstream.Event{Type: "load", Data: strconv.AppendQuote(nil, id)})
	noError(l.t, err)
}

// wantSent checks how many payloads of P's type have passed since the connection
// began, or since the last look.
func wantSent[P gvstream.Payload](l *load, want int) {
	l.t.Helper()
	typ := reflect.TypeFor[P]()
	if got := l.sent[typ]; got != want {
		l.t.Errorf("%d %v passed, want %d", got, typ, want)
	}
	delete(l.sent, typ)
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ids(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("session-%06d", i)
	}
	return ids
}

// stats is what the agent reports about a session.
func (l *load) stats(id string) gvstream.SessionStats {
	l.t.Helper()
	s, err := l.agent.Session(id)
	noError(l.t, err)
	return s.Stats()
}

// only is what the hub reports about its only session.
func (l *load) only() (st gvstream.SessionStats) {
	for st = range l.Hub.Sessions() {
	}
	return st
}

// wantAccepted checks that the hub and the agent have n events of each session, all
// acknowledged, and that they are the session's own.
func (l *load) wantAccepted(ids []string, n uint64) {
	l.t.Helper()
	for _, id := range ids {
		if st := l.stats(id); st.Acked != n || st.PendingEvents != 0 {
			l.t.Fatalf("%s: acked %d, %d pending; want %d", id, st.Acked, st.PendingEvents, n)
		}
		seq := uint64(0)
		for it, err := range l.Hub.Items(scene.Ended, id, gvstream.Position{}) {
			noError(l.t, err)
			if it.End {
				break
			}
			if seq++; it.Event == nil || it.Event.Seq != seq || string(it.Event.Data) != strconv.Quote(id) {
				l.t.Fatalf("%s: item %d is %+v", id, seq, it)
			}
		}
		if seq != n {
			l.t.Fatalf("%s: the hub holds %d events, want %d", id, seq, n)
		}
	}
}

// 100,000 sessions of one agent, over one connection.
func TestLoadSessions(t *testing.T) { bubble(t, loadSessions) }

func loadSessions(t *testing.T, m meter) {
	const maxStatus = 256 // sessions in a status
	n := size(100_000, 300)
	l := newLoad(t, &gvstream.HubConfig{MaxSessions: n, MaxAgentSessions: n}, &gvstream.StreamerConfig{MaxSessions: n})
	ids := ids(n)
	pages := (n + maxStatus - 1) / maxStatus
	entries, more := 0, 0
	l.see = func(p gvstream.Payload) {
		if p, ok := p.(*gvstream.StatusPayload); ok {
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
		wantSent[*gvstream.StatusPayload](l, pages)
		if entries != n || more != pages-1 {
			t.Errorf("statuses of %d sessions, %d of them with more; want %d and %d", entries, more, n, pages-1)
		}
		entries, more = 0, 0
	}
	publish := func() {
		for _, id := range ids {
			l.publish(id)
		}
	}

	m.measure("publish the first event of a session", n, publish)
	m.measure("open a session, and have it acked", n, l.connect)
	wantPages()
	wantSent[*gvstream.EventBatchPayload](l, n)
	l.Later(time.Second) // what was opened by a batch is acked in a while
	l.wantAccepted(ids, 1)
	clear(l.sent)

	m.measure("publish to a connected session", n, publish)
	m.measure("send and ack one event of each", n, func() { l.Later(time.Second) })
	wantSent[*gvstream.EventBatchPayload](l, n)
	wantSent[*gvstream.AckBatchPayload](l, n)
	l.wantAccepted(ids, 2)

	l.Later(time.Minute) // timers of what was acked run out
	entries, more = 0, 0
	clear(l.sent)
	const beats = 20
	m.measure("heartbeat when all are idle", beats, func() {
		for range beats {
			l.Later(heartbeat)
		}
	})
	wantSent[*gvstream.StatusPayload](l, 2*beats) // and the hub's answer
	if entries != 0 {
		t.Errorf("idle sessions stood in a status %d times", entries)
	}

	m.measure("reconnect a session without anything pending", n, l.connect)
	wantPages()
	wantSent[*gvstream.AckBatchPayload](l, n)
	wantSent[*gvstream.EventBatchPayload](l, 0)

	publish()
	m.measure("reconnect a session with an event pending", n, l.connect)
	wantPages()
	wantSent[*gvstream.EventBatchPayload](l, n)
	l.Later(time.Second)
	l.wantAccepted(ids, 3)
	clear(l.sent)
	if r := l.agent.Stats().RefusedPayloads + l.Hub.Stats().RefusedPayloads; r != 0 {
		t.Errorf("%d refusals", r)
	}

	publish() // and nothing is sent meanwhile
	m.measure("forget a session that has something to send", n, func() {
		for _, id := range slices.Backward(ids) {
			l.agent.Forget(id)
		}
	})
	l.Flow()
	if st := l.agent.Stats(); st.Sessions != 0 || st.Bytes != 0 {
		t.Errorf("of forgotten sessions, %d are left with %d bytes", st.Sessions, st.Bytes)
	}
	wantSent[*gvstream.EventBatchPayload](l, 0)
}

// 100,000 sessions that have ended leave nothing in memory once their time has passed,
// even though the connection stays.
func TestLoadHeap(t *testing.T) { bubble(t, loadHeap) }

func loadHeap(t *testing.T, m meter) {
	n := size(100_000, 600)
	const events, endedTTL = 10, 5 * time.Minute
	l := newLoad(t, &gvstream.HubConfig{MaxSessions: n + 1, MaxAgentSessions: n + 1}, &gvstream.StreamerConfig{MaxSessions: n + 1})
	ids := ids(n)
	l.connect()
	l.publish("warm") // what is allocated once, such as pools
	l.Later(time.Minute)
	before := testenv.HeapInUse()
	m.measure("publish 10 events and the end, and ack", n, func() {
		for _, id := range ids {
			for range events - 1 {
				l.publish(id)
			}
			_, err := l.agent.End(scene.Ended, id, gvstream.Event{Data: strconv.AppendQuote(nil, id)})
			noError(t, err)
			l.Flow()
		}
		l.Later(time.Second)
	})
	l.wantAccepted(ids, events)
	full := testenv.HeapInUse()
	m.measure("forget a session at the agent", n, func() { l.Later(endedTTL + heartbeat) })
	if left := l.agent.Stats().Sessions - 1; left != 0 {
		t.Errorf("the agent remembers %d sessions", left)
	}
	m.measure("drop a session's events at the hub", n, func() { l.Later(endedTTL) })
	m.measure("forget a session at the hub", n, func() { l.Later(time.Hour + heartbeat) })
	if left := l.Hub.Stats().Sessions - 1; left != 0 {
		t.Errorf("the hub remembers %d sessions", left)
	}
	after := testenv.HeapInUse()
	t.Logf("heap: %.2f MB before, %.2f MB full (%d B a session), %.2f MB after",
		float64(before)/1e6, float64(full)/1e6, int(full-before)/n, float64(after)/1e6)
	// Maps and heaps keep their room for as many again.
	if slack := (full-before)/20 + 64<<10; after > before+slack {
		t.Errorf("%d bytes are left of %d; want at most %d", after-before, full-before, slack)
	}
	runtime.KeepAlive(ids)
	runtime.KeepAlive(l)
}

// A loadViewer is a viewer's end of a connection, played by hand, cheap enough to have
// very many of, which a hub cannot tell from a Viewer. It notes how far it is, and
// fails at a number that is missing or comes twice.
type loadViewer struct {
	id   string
	link *gvstream.Link
	seq  uint64
	gaps int
}

func (l *load) viewer(session string, i int, after gvstream.Position) *loadViewer {
	v := &loadViewer{id: fmt.Sprintf("viewer-%05d", i), seq: after.Seq}
	v.link = l.Hub.ConnectViewer(v.id)
	l.handle(v.link, &gvstream.HelloPayload{V: 1, Role: "viewer"})
	l.handle(v.link, &gvstream.WatchPayload{SessionID: session, ViewerID: v.id, Epoch: after.Epoch, AfterSeq: after.Seq})
	return v
}

// take takes one payload, and reports whether there was one.
func (v *loadViewer) take(l *load) bool {
	p := l.next(v.link)
	switch p := p.(type) {
	case nil:
		return false
	case *gvstream.EventBatchPayload:
		v.read(l, p.FirstSeq, p.LastSeq, len(p.Events), len(p.Gaps))
	case *gvstream.ReplayBatchPayload:
		if p.ViewerID != v.id {
			l.t.Fatalf("%s got the replay of %s", v.id, p.ViewerID)
		}
		v.read(l, p.FirstSeq, p.LastSeq, len(p.Events), len(p.Gaps))
	case *gvstream.ErrorPayload:
		l.t.Fatalf("%s: %+v", v.id, p)
	}
	return true
}

func (v *loadViewer) read(l *load, first, last uint64, events, gaps int) {
	if first != v.seq+1 || gaps == 0 && uint64(events) != last-v.seq {
		l.t.Fatalf("%s has %d, and then gets %d to %d, %d events", v.id, v.seq, first, last, events)
	}
	v.seq = last
	v.gaps += gaps
}

func (l *load) drain(vs []*loadViewer) {
	for _, v := range vs {
		for v.take(l) {
		}
	}
}

func (l *load) wantAt(vs []*loadViewer, seq uint64) {
	l.t.Helper()
	for _, v := range vs {
		if v.seq != seq || v.gaps != 0 {
			l.t.Fatalf("%s is at %d with %d gaps, want %d", v.id, v.seq, v.gaps, seq)
		}
	}
}

// 10,000 viewers of one session.
func TestLoadViewers(t *testing.T) { bubble(t, loadViewers) }

func loadViewers(t *testing.T, m meter) {
	n := size(10_000, 50)
	l := newLoad(t, nil, nil)
	l.connect()
	head := uint64(0)
	publish := func(events int) {
		for range events {
			l.publish("s")
		}
		head += uint64(events)
		l.Flow()
	}
	publish(100)
	before := testenv.HeapInUse()
	vs := make([]*loadViewer, n)
	m.measure("a viewer comes, and gets 100 events", n, func() {
		for i := range vs {
			vs[i] = l.viewer("s", i, gvstream.Position{})
		}
		l.drain(vs)
	})
	l.wantAt(vs, head)
	t.Logf("%d bytes a viewer", int(testenv.HeapInUse()-before)/n)
	const times = 20
	m.measure("accept an event, and wake its viewers", times*n, func() {
		for range times {
			publish(1)
		}
	})
	l.drain(vs)
	m.measure("hand one event to a viewer", times*n, func() {
		for range times {
			publish(1)
			l.drain(vs)
		}
	})
	l.wantAt(vs, head)
	m.measure("hand 64 events to a viewer", times*n, func() {
		for range times {
			publish(64)
			l.drain(vs)
		}
	})
	l.wantAt(vs, head)
	clear(l.sent)
	<-time.After(heartbeat)
	m.measure("a viewer's heartbeat", n, func() { l.drain(vs) })
	wantSent[*gvstream.StatusPayload](l, n)

	m.measure("a viewer leaves", n, func() {
		for i := range vs { // the last first, and every other before the rest
			vs[(2*(n-1-i)+n%2)%n].link.Close()
		}
		for _, v := range vs {
			v.link.Close()
		}
	})
	if left, watches := l.Hub.Stats().Viewers, l.only().Viewers; left != 0 || watches != 0 {
		t.Errorf("%d viewers and %d watches are left", left, watches)
	}
	clear(vs)
	if left := testenv.HeapInUse() - before; left > 1<<20+100*int64(n) {
		t.Errorf("%d bytes are left of %d viewers", left, n)
	}
	runtime.KeepAlive(l)
}

// 1,000 viewers resume at once on a session whose older events only the agent has.
func TestLoadResume(t *testing.T) { bubble(t, loadResume) }

func loadResume(t *testing.T, m meter) {
	n := size(1000, 20)
	const events, kept, atOnce = 2000, 100, 8
	l := newLoad(t, &gvstream.HubConfig{LogEvents: kept, MaxReplays: atOnce}, &gvstream.StreamerConfig{ReplayEvents: events})
	open, most := 0, 0
	l.see = func(p gvstream.Payload) {
		switch p := p.(type) {
		case *gvstream.ReplayRequestPayload:
			if open++; open > atOnce {
				t.Fatalf("%d requests are open", open)
			}
			most = max(most, open)
		case *gvstream.ReplayBatchPayload:
			if p.Done {
				open--
			}
		}
	}
	l.connect()
	for range events {
		l.publish("s")
	}
	l.Later(time.Second)
	if at, held := l.only().Events, l.stats("s").Events; at != kept || held != events {
		t.Fatalf("the hub holds %d events, the agent %d", at, held)
	}
	after := gvstream.Position{Epoch: l.stats("s").Epoch, Seq: 10} // as one that has been there before
	vs := make([]*loadViewer, n)
	for i := range vs {
		vs[i] = l.viewer("s", i, after)
	}
	before := testenv.HeapInUse()
	m.measure("resume a viewer by a replay of 1,890 events", n, func() {
		for moved := true; moved; {
			moved = false
			for _, v := range vs {
				moved = v.take(l) || moved
			}
			moved = l.wire.StepDown() || moved
			moved = l.wire.StepUp() || moved
		}
	})
	l.wantNoErrors()
	l.wantAt(vs, events)
	t.Logf("at most %d requests were open for %d viewers; heap %+d KB", most, n, (testenv.HeapInUse()-before)/1000)
	requests := n * ((events - kept - 10 + 499) / 500)
	wantSent[*gvstream.ReplayRequestPayload](l, requests)
	wantSent[*gvstream.ErrorPayload](l, 0)
	if most != atOnce || open != 0 {
		t.Errorf("at most %d requests were open, and %d are; want %d and none", most, open, atOnce)
	}

	// And again, but they leave while most wait for their turn.
	l.see = nil
	again := func() {
		for i := range vs {
			vs[i].link.Close()
			vs[i] = l.viewer("s", i, after)
		}
		l.drain(vs) // until they have to wait
	}
	leave := func() {
		for _, v := range vs {
			v.link.Close()
		}
		l.Flow()
	}
	again()
	m.measure("a viewer leaves that waits for its turn", n, leave)

	// And again, but they stand still when their turn has come: each holds the answer to
	// one request, and none delays those that keep reading.
	clear(l.sent)
	again()
	before = testenv.HeapInUse()
	m.measure("replay to a viewer that stands still", n, l.Flow)
	t.Logf("heap for %d viewers that stand still: %+d KB", n, (testenv.HeapInUse()-before)/1000)
	wantSent[*gvstream.ReplayRequestPayload](l, n)
	one := l.viewer("s", n, after)
	for one.take(l) || l.wire.StepDown() || l.wire.StepUp() {
	}
	l.wantAt([]*loadViewer{one}, events)
	leave()
	if left := testenv.HeapInUse() - before; left > 64<<10 {
		t.Errorf("%d bytes are left of viewers that stood still", left)
	}
	runtime.KeepAlive(l)
}

// A cutWire is a connection that loses what is on its way when it is cut, after a
// number of events.
type cutWire struct {
	load      *load
	near, far func() *gvstream.Link // make the ends
	a, b      *gvstream.Link
	toA, toB  []gvstream.Payload
	events    int // that have been sent on this connection
	cuts      int
}

const (
	cutAfter = 1000
	onTheWay = 8 // payloads, each way
)

func (w *cutWire) cut() {
	if w.a != nil {
		w.cuts++
		w.a.Close()
		w.b.Close()
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

func (w *cutWire) move(from, to *gvstream.Link, way *[]gvstream.Payload) bool {
	p := w.load.next(from)
	switch p := p.(type) {
	case *gvstream.EventBatchPayload:
		w.events += len(p.Events)
	case *gvstream.ReplayBatchPayload:
		w.events += len(p.Events)
	}
	if p != nil {
		*way = append(*way, p)
	}
	if len(*way) == 0 || p != nil && len(*way) < onTheWay {
		return p != nil
	}
	w.load.handle(to, (*way)[0])
	*way = (*way)[1:]
	return true
}

// A million events of one session, over connections of which each is cut after
// 1,000, with what is on its way: every event arrives once and in order, at the hub
// and at a viewer.
func TestLoadCuts(t *testing.T) { bubble(t, loadCuts) }

func loadCuts(t *testing.T, m meter) {
	const ackDelay = 250 * time.Millisecond
	n := uint64(size(1_000_000, 5000))
	var stored, published, read uint64
	l := newLoad(t, &gvstream.HubConfig{
		LogEvents: 20_000,
		Window:    256, // what is on its way must not be all that a connection carries
		Commit: func(_ context.Context, _, _ string, items []gvstream.Item) error {
			for _, it := range items {
				wantNext(t, "hub", &stored, it)
			}
			return nil
		},
	}, &gvstream.StreamerConfig{Overflow: gvstream.Reject})
	v := gvstream.NewViewer(&gvstream.ViewerConfig{BufferItems: 512})
	noError(t, v.Watch("s", gvstream.Position{}))
	up := &cutWire{load: l, near: l.agent.Connect, far: func() *gvstream.Link { return l.Hub.ConnectAgent("agent") }}
	down := &cutWire{load: l, near: v.Connect, far: func() *gvstream.Link { return l.Hub.ConnectViewer("tab") }}
	up.cut()
	down.cut()
	s, err := l.agent.Session("s")
	noError(t, err)
	m.measure("publish, cut, resend, commit, ack, view", int(n), func() {
		for read < n {
			for range 64 {
				if published == n {
					break
				}
				_, err := s.Publish(scene.Ended, gvstream.Event{Data: strconv.AppendUint(nil, published+1, 10)})
				if errors.Is(err, gvstream.ErrPendingFull) {
					break
				}
				noError(t, err)
				published++
			}
			moved := up.step()
			if moved = down.step() || moved; !moved {
				<-time.After(ackDelay)
			}
			for it, err := range v.Items(scene.Ended) {
				noError(t, err)
				wantNext(t, "viewer", &read, it)
			}
		}
	})
	for range 10 {
		for up.step() {
		}
		<-time.After(ackDelay)
	}
	if st := s.Stats(); stored != n || st.Acked != n || st.Lost != 0 {
		t.Errorf("%d stored, %d acked, %d lost; want all of %d", stored, st.Acked, st.Lost, n)
	}
	if least := int(n/cutAfter) * 9 / 10; up.cuts < least || down.cuts < least {
		t.Errorf("%d cuts at the agent, %d at the viewer; want at least %d", up.cuts, down.cuts, least)
	}
	t.Logf("%d cuts at the agent, %d at the viewer; payloads: %v", up.cuts, down.cuts, l.sent)
}

// wantNext wants the item to be the event that follows.
func wantNext(t *testing.T, reader string, seq *uint64, it gvstream.Item) {
	t.Helper()
	*seq++
	if it.Event == nil || it.Event.Seq != *seq || string(it.Event.Data) != strconv.FormatUint(*seq, 10) {
		t.Fatalf("%s: got %+v, want event %d", reader, it, *seq)
	}
}

// A heartbeat costs in proportion to the sessions that have something unacknowledged,
// and names those; it listed and sorted all sessions.
func TestLoadHeartbeat(t *testing.T) { bubble(t, loadHeartbeat) }

func loadHeartbeat(t *testing.T, _ meter) {
	n := size(100_000, 500)
	l := newLoad(t, &gvstream.HubConfig{MaxSessions: n, MaxAgentSessions: n}, &gvstream.StreamerConfig{MaxSessions: n})
	for _, id := range ids(n) {
		l.publish(id)
	}
	l.connect()
	l.Later(time.Minute)
	if n := allocated(func() { l.Later(heartbeat) }); n > 1500 {
		t.Errorf("a heartbeat of idle sessions allocates %d bytes", n)
	}
	var named []string
	l.see = func(p gvstream.Payload) {
		if p, ok := p.(*gvstream.StatusPayload); ok {
			for _, s := range p.Sessions {
				named = append(named, s.SessionID)
			}
		}
	}
	pending := []string{"session-000007", "session-000400"}
	for _, id := range pending {
		l.publish(id)
	}
	for range pending {
		l.next(l.wire.Near) // the batches are lost
	}
	scene.Next(l.wire.Near) // they are written
	<-time.After(heartbeat)
	l.wire.StepUp()
	if !slices.Equal(named, pending) {
		t.Errorf("the heartbeat named %q, want %q", named, pending)
	}
	l.Later(time.Second)
	l.wantAccepted(pending, 2)
	named = nil
	l.Later(2 * heartbeat)
	if named != nil {
		t.Errorf("heartbeats named %q when all was acknowledged", named)
	}
}

// allocated is the bytes that f allocates: the least of a few runs, since others may
// allocate meanwhile.
func allocated(f func()) uint64 {
	least := uint64(math.MaxUint64)
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}
