package gvstream

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
	"weak"
)

// loadIDs are the ids of n sessions.
func loadIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("session-%06d", i)
	}
	return ids
}

// linked connects the agent to the hub.
func linked(st *Streamer, h *Hub) (agent, hub *Link) {
	return st.Connect(), h.ConnectAgent("agent")
}

// publishRounds has each session publish n events, and the hub acknowledge them.
func publishRounds(t *testing.T, st *Streamer, ids []string, n int, agent, hub *Link) {
	t.Helper()
	for range n {
		for _, id := range ids {
			publishN(t, st, id, 1)
		}
	}
	carryAll(t, agent, hub)
	pass(time.Second)
	carryAll(t, agent, hub)
}

// A viewer that leaves costs the same however many stay: all after it moved up.
func TestGrowthViewersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		vs := make([]*peer, n)
		for i := range vs {
			vs[i] = playViewer(t, h, fmt.Sprint("viewer-", i))
			vs[i].send(vs[i].watch("s", "", 0))
		}
		for _, v := range vs[:n/2] { // these wait for the next event
			v.drain()
		}
		s := h.lookup("s")
		for i, v := range vs {
			before := slices.Clone(s.cursors)
			v.link.Close()
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
				a.feed("s", "e1", 2, 2)
				for _, v := range vs[i+1:] {
					said := v.drain()
					if b, ok := said[len(said)-1].(*EventBatchPayload); !ok || b.LastSeq != 2 {
						t.Fatalf("%s was shown %s last", v.viewer, payloadText(said[len(said)-1]))
					}
				}
			}
		}
	})
}

// A link's free slot is offered to one of the cursors that wait for it, and from one
// that does not need it any more to the next; it woke all of them.
func TestGrowthSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 500
		st, h := NewStreamer(nil), NewHub(&HubConfig{LogEvents: 1, MaxWatches: n, MaxViewerReplays: 1})
		agent, hub := linked(st, h)
		ids := loadIDs(n)
		publishRounds(t, st, ids, 3, agent, hub)
		v := playViewer(t, h, "tab")
		for _, id := range ids {
			v.send(v.watch(id, "", 0))
		}
		v.drain()
		woken, replays := 0, 0
		for turn := range n {
			carryAll(t, agent, hub) // the agent answers the one request that is open
			woken += readyTasks(v.link)
			if turn%3 == 0 { // one that waits, and may have been offered the slot, leaves
				v.send(v.stop(ids[n-1-turn/3]))
			}
			for _, p := range v.drain() {
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
	})
}

// A cursor that was offered a slot and needs it no more passes it on: those that wait
// behind it would wait for ever.
func TestSlotPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(&HubConfig{LogEvents: 1, MaxViewerReplays: 1})
		agent, hub := linked(st, h)
		ids := loadIDs(3)
		publishRounds(t, st, ids, 3, agent, hub)
		v := playViewer(t, h, "tab")
		replayed := make(map[string]bool)
		drain := func() {
			for _, p := range v.drain() {
				if p, ok := p.(*ReplayBatchPayload); ok {
					replayed[p.SessionID] = true
				}
			}
		}
		for _, id := range ids {
			v.send(v.watch(id, "", 0))
			drain() // the first is asked for
		}
		carryAll(t, agent, hub) // and answered: the second is offered the slot, and has moved on
		v.send(v.watch(ids[1], statOf(t, h, ids[1]).Epoch, 3))
		drain()
		carryAll(t, agent, hub)
		drain()
		if !replayed[ids[0]] || replayed[ids[1]] || !replayed[ids[2]] {
			t.Errorf("replayed: %v, want the first and the last", replayed)
		}
	})
}

// What a hub and an agent hold for viewers that resume is bounded by the requests that
// may be open, however many viewers wait for their turn; and when all have been served,
// or have left, nothing of it stays.
func TestGrowthResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, events, kept = 20, 2000, 100
		st, h := NewStreamer(&StreamerConfig{ReplayEvents: events}), NewHub(&HubConfig{LogEvents: kept})
		agent, hub := linked(st, h)
		publishRounds(t, st, []string{"s"}, events, agent, hub)
		hs, s := h.lookup("s"), st.lookup("s")
		limit := h.cfg.MaxReplays
		held := func() (events int) {
			for _, c := range hs.cursors {
				for i := range c.pages {
					events += len(c.pages[i].slots)
				}
			}
			return events
		}
		wantAtRest := func() {
			t.Helper()
			if hs.open != 0 || len(s.on.replays) != 0 || readyTasks(s.on.l.Link) != 0 {
				t.Errorf("%d requests open, %d replays running, %d tasks at the agent when all are served",
					hs.open, len(s.on.replays), readyTasks(s.on.l.Link))
			}
			for _, c := range hs.cursors {
				if c.fetch != nil || len(c.pages) != 0 || c.turn.Queued() {
					t.Errorf("a cursor is not done: %+v", c)
				}
			}
		}
		vs := make([]*peer, n)
		come := func() {
			for i := range vs {
				vs[i] = playViewer(t, h, fmt.Sprint("viewer-", i))
				vs[i].send(vs[i].watch("s", hs.epoch, 10))
			}
		}
		leave := func() {
			for _, v := range vs {
				v.link.Close()
			}
			carryAll(t, agent, hub)
		}

		come()
		seen, open := make([]uint64, n), 0
		for moved := true; moved; {
			moved = false
			for i, v := range vs {
				switch p := v.next().(type) {
				case nil:
					continue
				case *EventBatchPayload:
					seen[i] = p.LastSeq
				case *ReplayBatchPayload:
					seen[i] = p.LastSeq
				}
				moved = true
			}
			moved = carryOne(t, hub, agent) || moved
			moved = carryOne(t, agent, hub) || moved
			open = max(open, hs.open)
			if hs.open > limit || len(s.on.replays) > limit {
				t.Fatalf("%d requests are open, %d replays run; want at most %d", hs.open, len(s.on.replays), limit)
			}
			// Each request's worth is handed out as it comes, so the next ones find room.
			if most := 2 * limit * h.sizes.replay; held() > most {
				t.Fatalf("the hub holds %d events for its viewers, want at most %d", held(), most)
			}
		}
		for i := range seen {
			if seen[i] != events {
				t.Errorf("viewer %d has seen %d, want %d", i, seen[i], events)
			}
		}
		if open != limit {
			t.Errorf("at most %d requests were open, want %d", open, limit)
		}
		wantAtRest()
		leave()

		come() // and leave while most wait for their turn
		for _, v := range vs {
			v.drain()
		}
		leave()
		wantAtRest()

		come() // and stand still when their turn has come: each holds one request's worth
		for _, v := range vs {
			v.drain()
		}
		carryAll(t, agent, hub)
		if held() != n*h.sizes.replay || hs.open != 0 {
			t.Errorf("%d events are held for %d viewers, and %d requests are open", held(), n, hs.open)
		}
		leave()
		wantAtRest()
	})
}

// What was forgotten is free, while its link lives on: lists that had been taken
// from held on to what was taken, and the hub's clock to sessions until their time.
func TestForgottenIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		st, h := NewStreamer(nil), NewHub(nil)
		agent, hub := linked(st, h)
		ids := loadIDs(n)
		publishRounds(t, st, ids, 1, agent, hub)
		for range 4 { // timers of what was acknowledged run out
			pass(heartbeat)
			carryAll(t, agent, hub)
		}
		var agents []weak.Pointer[Session]
		var hubs []weak.Pointer[hubSession]
		for _, id := range ids {
			agents = append(agents, weak.Make(st.lookup(id)))
			hubs = append(hubs, weak.Make(h.lookup(id)))
			st.Forget(id)
			h.Forget(id)
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
		runtime.KeepAlive(agent)
		runtime.KeepAlive(hub)
	})
}

// The hub's clock holds a session once, and none that is gone: it kept each that
// Forget removed for an hour.
func TestGrowthHubExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(nil)
		for i := range 1000 {
			id := fmt.Sprint("s", i%2)
			agent, hub := linked(st, h)
			publishRounds(t, st, []string{id}, 1, agent, hub)
			agent.Close() // its absence has a deadline
			hub.Close()
			h.Forget(id)
		}
		if n := h.expiry.Len(); n > 1 {
			t.Errorf("the clock of a hub with %d sessions has %d deadlines", len(h.sessions), n)
		}
	})
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
