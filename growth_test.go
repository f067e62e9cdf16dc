package gvstream

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
	"weak"
)

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

// idleScene has n sessions with one event each, all acknowledged.
func idleScene(t *testing.T, n int) *loadScene {
	sc := newLoadScene(t, &HubConfig{MaxSessions: n, MaxAgentSessions: n}, &StreamerConfig{MaxSessions: n})
	for _, id := range loadIDs(n) {
		sc.publish(id)
	}
	sc.connect()
	sc.later(time.Minute)
	return sc
}

// A sign of life costs in proportion to the sessions that have something
// unacknowledged; it listed and sorted all of them.
func TestGrowthHeartbeat(t *testing.T) {
	sc := idleScene(t, 500)
	if n := allocated(func() { sc.later(heartbeat) }); n > 1500 {
		t.Errorf("a heartbeat of idle sessions allocates %d bytes", n)
	}
	var named []string
	sc.see = func(p Payload) {
		if p, ok := p.(*StatusPayload); ok {
			for _, s := range p.Sessions {
				named = append(named, s.SessionID)
			}
		}
	}
	for _, id := range []string{"session-000007", "session-000400"} {
		sc.publish(id)
	}
	for range 2 {
		sc.next(sc.agent) // the batches are lost
	}
	sc.now = sc.now.Add(heartbeat)
	sc.pass(sc.agent, sc.hub)
	if want := []string{"session-000007", "session-000400"}; !slices.Equal(named, want) {
		t.Errorf("the heartbeat named %q, want %q", named, want)
	}
	sc.later(time.Second)
	sc.wantAccepted(named, 2)
	named = nil
	sc.later(2 * heartbeat)
	if named != nil {
		t.Errorf("heartbeats named %q when all was acknowledged", named)
	}
}

// A viewer that leaves costs the same however many stay: all after it moved up.
func TestGrowthViewersLeave(t *testing.T) {
	const n = 100
	sc := newLoadScene(t, nil, nil)
	sc.connect()
	sc.publish("s")
	sc.flow()
	vs := make([]*loadViewer, n)
	for i := range vs {
		vs[i] = sc.viewer("s", i, Position{})
	}
	sc.drain(vs[:n/2]) // these wait for the next event
	s := sc.h.lookup("s")
	for i, v := range vs {
		before := slices.Clone(s.cursors)
		v.l.fail(sc.now, ErrClosed)
		moved := 0
		for j, c := range s.cursors {
			if c != before[j] {
				moved++
			}
		}
		if len(s.cursors) != n-i-1 || moved > 2 {
			t.Fatalf("%d cursors are left, and %d moved, when %d viewers have left", len(s.cursors), moved, i+1)
		}
		if i == n/4 { // those that wait are still known
			sc.publish("s")
			sc.flow()
			sc.drain(vs[i+1:])
			sc.wantAt(vs[i+1:], 2)
		}
	}
}

// A link's free slot is offered to one of the cursors that wait for it, and from one
// that does not need it any more to the next; it woke all of them.
func TestGrowthSlots(t *testing.T) {
	const n = 500
	sc := newLoadScene(t, &HubConfig{LogEvents: 1, MaxWatches: n, MaxViewerReplays: 1}, nil)
	sc.connect()
	ids := loadIDs(n)
	for range 3 {
		for _, id := range ids {
			sc.publish(id)
		}
	}
	sc.later(time.Second)
	l := sc.h.connectViewer(sc.now, "tab", false).Link
	sc.handle(l, &HelloPayload{V: version, Role: roleViewer})
	for _, id := range ids {
		sc.handle(l, &WatchPayload{SessionID: id})
	}
	for sc.next(l) != nil {
	}
	woken, replays := 0, 0
	for turn := range n {
		sc.flow() // the agent answers the one request that is open
		woken += readyTasks(l)
		if turn%3 == 0 { // one that waits, and may have been offered the slot, leaves
			sc.handle(l, &WatchPayload{SessionID: ids[n-1-turn/3], Stop: true})
		}
		for p := sc.next(l); p != nil; p = sc.next(l) {
			if _, ok := p.(*ReplayBatchPayload); ok {
				replays++
			}
		}
	}
	if stopped := (n + 2) / 3; replays < n-stopped || replays > n {
		t.Errorf("%d sessions were replayed, want %d at least of %d", replays, n-stopped, n)
	}
	if woken > 3*n {
		t.Errorf("%d wake-ups for %d replays", woken, n)
	}
}

// A cursor that was offered a slot and needs it no more passes it on: those that wait
// behind it would wait for ever.
func TestSlotPassedOn(t *testing.T) {
	sc := newLoadScene(t, &HubConfig{LogEvents: 1, MaxViewerReplays: 1}, nil)
	sc.connect()
	ids := loadIDs(3)
	for range 3 {
		for _, id := range ids {
			sc.publish(id)
		}
	}
	sc.later(time.Second)
	l := sc.h.connectViewer(sc.now, "tab", false).Link
	sc.handle(l, &HelloPayload{V: version, Role: roleViewer})
	replayed := make(map[string]bool)
	drain := func() {
		for p := sc.next(l); p != nil; p = sc.next(l) {
			if p, ok := p.(*ReplayBatchPayload); ok {
				replayed[p.SessionID] = true
			}
		}
	}
	for _, id := range ids {
		sc.handle(l, &WatchPayload{SessionID: id})
		drain() // the first is asked for
	}
	sc.flow() // and answered: the second is offered the slot, and has moved on
	sc.handle(l, &WatchPayload{SessionID: ids[1], Epoch: sc.h.lookup(ids[1]).epoch, AfterSeq: 3})
	drain()
	sc.flow()
	drain()
	if !replayed[ids[0]] || replayed[ids[1]] || !replayed[ids[2]] {
		t.Errorf("replayed: %v, want the first and the last", replayed)
	}
}

// What was forgotten is free, while its link lives on: lists that had been taken
// from held on to what was taken, and the hub's clock to sessions until their time.
func TestForgottenIsFree(t *testing.T) {
	const n = 300
	sc := idleScene(t, n)
	var agents []weak.Pointer[Session]
	var hubs []weak.Pointer[hubSession]
	for _, id := range loadIDs(n) {
		agents = append(agents, weak.Make(sc.st.lookup(id)))
		hubs = append(hubs, weak.Make(sc.h.lookup(id)))
		sc.st.Forget(id)
		sc.h.Forget(id)
	}
	runtime.GC()
	held := [2]int{}
	for i := range agents {
		if agents[i].Value() != nil {
			held[0]++
		}
		if hubs[i].Value() != nil {
			held[1]++
		}
	}
	// The stack of this test may hold the last ones.
	if held[0] > 3 || held[1] > 3 {
		t.Errorf("%d sessions are held at the agent and %d at the hub, which were forgotten", held[0], held[1])
	}
	runtime.KeepAlive(sc)
}

// The hub's clock holds a session once, and none that is gone: it kept each that
// Forget removed for an hour.
func TestGrowthHubExpiry(t *testing.T) {
	t.Parallel()
	sc := newLoadScene(t, nil, nil)
	for i := range 1000 {
		id := fmt.Sprint("s", i%2)
		sc.publish(id)
		sc.connect()
		sc.later(time.Second)
		sc.agent.fail(sc.now, ErrClosed) // its absence has a deadline
		sc.hub.fail(sc.now, ErrClosed)
		sc.h.Forget(id)
	}
	if n := sc.h.expiry.Len(); n > 1 {
		t.Errorf("the clock of a hub with %d sessions has %d deadlines", len(sc.h.sessions), n)
	}
}

// An end that is acknowledged again and again is to be forgotten once: a hub that
// took its acks back made the agent's list of ended sessions grow.
func TestGrowthEnded(t *testing.T) {
	st := NewStreamer(nil)
	if _, err := st.End(t.Context(), "s", Event{}); err != nil {
		t.Fatal(err)
	}
	s := st.lookup("s")
	now := time.Now()
	link := func() {
		al := st.connect(now)
		for _, p := range []Payload{
			nil,
			&WelcomePayload{V: version, Link: "l", Window: 256},
			&AckBatchPayload{SessionID: "s", Epoch: s.epoch, Link: "l", UpToSeq: 0},
			&AckBatchPayload{SessionID: "s", Epoch: s.epoch, Link: "l", UpToSeq: 1},
		} {
			if p != nil {
				if err := al.handle(endedContext, now, p); err != nil {
					t.Fatal(err)
				}
			}
			for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
			}
		}
	}
	for range 100 {
		link()
	}
	if n := len(st.ended); n != 1 {
		t.Errorf("one session is to be forgotten %d times", n)
	}
	// What was acknowledged later is forgotten later.
	now = now.Add(endedTTL - time.Second)
	link()
	now = now.Add(2 * time.Second)
	if st.expire(now); st.lookup("s") == nil {
		t.Error("forgotten by its first acknowledgement")
	}
	now = now.Add(endedTTL - 2*time.Second)
	if st.expire(now); st.lookup("s") != nil {
		t.Error("not forgotten in time")
	}
}

// ackAll plays the hub: it takes what the agent sends, and acknowledges it.
func ackAll(b *testing.B, al *agentLink, now time.Time) {
	for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
		if p, ok := p.(*EventBatchPayload); ok {
			ack := &AckBatchPayload{SessionID: p.SessionID, Epoch: p.Epoch, Link: p.Link, UpToSeq: p.LastSeq}
			if err := al.handle(endedContext, now, ack); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// benchAgent is an agent with n sessions of one acknowledged event each.
func benchAgent(b *testing.B, n int) (*Streamer, *agentLink, []string, time.Time) {
	st := NewStreamer(&StreamerConfig{MaxSessions: n, ReplayEvents: 8})
	ids, now := loadIDs(n), time.Now()
	al := benchLink(b, st, now)
	for _, id := range ids {
		if _, err := st.Publish(b.Context(), id, benchEvent); err != nil {
			b.Fatal(err)
		}
	}
	ackAll(b, al, now)
	return st, al, ids, now
}

func benchLink(b *testing.B, st *Streamer, now time.Time) *agentLink {
	al := st.connect(now)
	al.next(now) // hello
	if err := al.handle(endedContext, now, &WelcomePayload{V: version, Link: "l", Window: math.MaxInt32}); err != nil {
		b.Fatal(err)
	}
	return al
}

var benchEvent = Event{Type: "out", Data: []byte(strconv.Quote(fmt.Sprintf("%0250d", 1)))}

// benchSessions runs f with agents of very many sessions. At most 1,000 of those are
// used, so that what can grow is the work; in "100000-all" it is also what the
// processor's cache misses.
func benchSessions(b *testing.B, f func(b *testing.B, st *Streamer, al *agentLink, ids []string, now time.Time)) {
	for _, c := range []struct {
		name        string
		there, used int
	}{{"1", 1, 1}, {"1000", 1000, 1000}, {"100000", 100_000, 1000}, {"100000-all", 100_000, 100_000}} {
		b.Run(c.name, func(b *testing.B) {
			st, al, ids, now := benchAgent(b, c.there)
			used := make([]string, max(c.used, 1000)) // a round, with one event each
			for i := range used {
				used[i] = ids[i%c.used*(c.there/c.used)]
			}
			b.ReportAllocs()
			b.ResetTimer()
			f(b, st, al, used, now)
		})
	}
}

// What an event costs to publish, against the number of sessions.
func BenchmarkPublishSessions(b *testing.B) {
	benchSessions(b, func(b *testing.B, st *Streamer, al *agentLink, ids []string, now time.Time) {
		for i := range b.N {
			if i%len(ids) == len(ids)-1 {
				b.StopTimer()
				ackAll(b, al, now)
				b.StartTimer()
			}
			if _, err := st.Publish(b.Context(), ids[i%len(ids)], benchEvent); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// What an ack of one event costs, against the number of sessions.
func BenchmarkAckSessions(b *testing.B) {
	benchSessions(b, func(b *testing.B, st *Streamer, al *agentLink, ids []string, now time.Time) {
		acks := make([]AckBatchPayload, len(ids))
		for i := range b.N {
			if i%len(ids) == 0 {
				b.StopTimer()
				for j, id := range ids {
					seq, err := st.Publish(b.Context(), id, benchEvent)
					if err != nil {
						b.Fatal(err)
					}
					acks[j] = AckBatchPayload{SessionID: id, Epoch: st.lookup(id).epoch, Link: "l", UpToSeq: seq}
				}
				for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
				}
				b.StartTimer()
			}
			if err := al.handle(endedContext, now, &acks[i%len(ids)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// What a page of 100 events costs to replay, against how deep in the log it lies.
func BenchmarkReplayPage(b *testing.B) {
	for _, depth := range []uint64{0, 500, 900} {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			st, now := NewStreamer(nil), time.Now()
			al := benchLink(b, st, now)
			for range 1000 {
				if _, err := st.Publish(b.Context(), "s", benchEvent); err != nil {
					b.Fatal(err)
				}
			}
			ackAll(b, al, now)
			ask := &ReplayRequestPayload{SessionID: "s", RequestID: "r", AfterSeq: depth, Limit: 100}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := al.handle(endedContext, now, ask); err != nil {
					b.Fatal(err)
				}
				p, _, _ := al.next(now)
				if p, ok := p.(*ReplayBatchPayload); !ok || len(p.Events) != 100 || p.FirstSeq != depth+1 {
					b.Fatalf("got %s", payloadText(p))
				}
			}
		})
	}
}

// What a reconnect costs until everything is sent again, against what is pending.
// An event of those costs the same however many there are.
func BenchmarkReconnect(b *testing.B) {
	for _, pending := range []int{0, 1000, 8000} {
		b.Run(fmt.Sprint("pending=", pending), func(b *testing.B) {
			st, now := NewStreamer(nil), time.Now()
			s, err := st.Session("s")
			if err != nil {
				b.Fatal(err)
			}
			for range pending {
				if _, err := s.Publish(b.Context(), benchEvent); err != nil {
					b.Fatal(err)
				}
			}
			ack := &AckBatchPayload{SessionID: "s", Epoch: s.epoch, Link: "l"}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				al, sent := benchLink(b, st, now), 0
				if err := al.handle(endedContext, now, ack); err != nil {
					b.Fatal(err)
				}
				for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
					if p, ok := p.(*EventBatchPayload); ok {
						sent += len(p.Events)
					}
				}
				if sent != pending {
					b.Fatalf("%d events were sent again, want %d", sent, pending)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(max(pending, 1)), "ns/event")
		})
	}
}
