package gvstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Faults that were found by reading, each with the test that showed it.

// TestHubItemsSlowBody: a loop body that takes its time is not the silence of a peer.
func TestHubItemsSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		for it, err := range h.Items(t.Context(), "s", Position{}) {
			if err != nil {
				t.Fatal(err)
			}
			switch seq := it.Event.Seq; {
			case seq < 80: // live, one a second
				pass(time.Second)
				a.send(a.batch("s", "e1", seq+1, seq+1))
			case seq == 80:
				a.send(a.batch("s", "e1", 81, 90))
			case seq < 90:
				pass(6 * time.Second) // a body that stores, say
			case seq == 90:
				a.send(a.batch("s", "e1", 91, 91))
			default:
				return
			}
		}
		t.Error("ended early")
	})
}

// TestHubStuckViewerHoldsNoTurn: a viewer whose link is stuck gets its turn at asking the agent,
// and gives it back, without its link.
func TestHubStuckViewerHoldsNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		v1, stuck, v3 := playViewer(t, h, "v1"), playViewer(t, h, "v2"), playViewer(t, h, "v3")
		for _, v := range []*peer{v1, stuck, v3} {
			v.send(v.watch("s", "", 0))
			v.drain()
		}
		// from here on v2's connection takes nothing any more: Next is not called.
		got := uint64(0)
		for range 600 { // ten minutes
			for _, v := range []*peer{v1, v3} {
				for p := v.next(); p != nil; p = v.next() {
					if b, ok := p.(*EventBatchPayload); ok && v == v3 {
						got = b.LastSeq
					}
				}
			}
			for p := a.next(); p != nil; p = a.next() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					a.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			pass(time.Second)
		}
		if got != 20 {
			t.Fatalf("v3 is at %d after ten minutes; open %d", got, h.lookup("s").open)
		}
	})
}

// TestHubReplayWaitOfThoseInTurn: who waits for a turn waits for an agent that is away no longer
// than the others (rule 12).
func TestHubReplayWaitOfThoseInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		var vs []*peer
		for i := range 4 {
			v := playViewer(t, h, fmt.Sprint("v", i))
			v.send(v.watch("s", "", 0))
			vs = append(vs, v)
			v.drain()
		}
		a.link.Close() // the agent is away
		start := time.Now()
		took := map[int]time.Duration{}
		for range 120 {
			for i, v := range vs {
				for p := v.next(); p != nil; p = v.next() {
					if b, ok := p.(*EventBatchPayload); ok && took[i] == 0 && b.LastSeq >= 15 {
						took[i] = time.Since(start)
					}
				}
			}
			pass(time.Second)
		}
		for i := range vs {
			if took[i] > 11*time.Second || took[i] == 0 {
				t.Errorf("viewer %d waited %v for the gap, want 10s (all: %v)", i, took[i], took)
				return
			}
		}
	})
}

// TestStreamerFlushAfterClose: when no link can come any more, nobody waits for acks.
func TestStreamerFlushAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		st.Publish(t.Context(), "s", Event{})
		returned := make(chan string, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { st.Flush(ctx); returned <- "flush" }()
		go func() { st.Close(ctx); returned <- "close 1" }()
		synctest.Wait()
		ended, stop := context.WithCancel(t.Context())
		stop()
		st.Close(ended) // shuts: no link can come any more
		pass(time.Hour)
		synctest.Wait()
		if n := len(returned); n != 2 {
			t.Errorf("%d of Flush and the first Close returned", n)
		}
		cancel()
		synctest.Wait()
	})
}

// TestLinkWelcomeFlood: welcomes that nobody asked for are not obeyed, and cost nothing.
func TestLinkWelcomeFlood(t *testing.T) {
	st := NewStreamer(nil)
	for i := range 100 {
		st.Publish(t.Context(), fmt.Sprint("s", i), Event{})
	}
	al := st.connect(time.Now())
	for i := range 1000 { // two small frames each; the agent's send is blocked meanwhile
		al.Handle(t.Context(), &WelcomePayload{V: 1, Link: fmt.Sprint("l", i), Window: 1})
		al.Handle(t.Context(), &ErrorPayload{Code: codeStaleLink})
	}
	if n := readyTasks(al.Link); n > 100 {
		t.Errorf("agent: %d tasks in the queue of 100 sessions", n)
	}
	v := NewViewer(nil)
	for i := range 100 {
		v.Watch(fmt.Sprint("s", i), Position{})
	}
	vl := v.connect(time.Now())
	for i := range 1000 {
		vl.Handle(t.Context(), &WelcomePayload{V: 1, Link: fmt.Sprint("l", i)})
		vl.Handle(t.Context(), &ErrorPayload{Code: codeStaleLink})
	}
	if n := readyTasks(vl.Link); n > 101 {
		t.Errorf("viewer: %d tasks in the queue of 100 watches", n)
	}
}

// TestHubFetchesGivenUp: a request that is given up leaves the queue of the agent's link.
func TestHubFetchesGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		for range 1000 { // the agent's send is blocked meanwhile
			v.send(v.watch("s", "", 0))
			v.drain()
		}
		h.agentsMu.Lock()
		ha := h.agents["agent"]
		h.agentsMu.Unlock()
		if n := readyTasks(ha.Link); n > 10 {
			t.Errorf("%d fetches in the queue of the agent's link, %d open", n, len(ha.fetches))
		}
	})
}

// TestHubWaitingGivenUp: a watch that ends gives up its place in the queue for a slot.
func TestHubWaitingGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxViewerReplays: 1})
		a.feed("r", "e1", 1, 20)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		for range 1000 {
			v.send(v.watch("r", "", 0))
			v.drain()
			v.send(v.stop("r"))
		}
		if n := h.viewers["tab"].waiting.Len(); n > 10 {
			t.Errorf("%d cursors wait for a slot, the link has %d", n, len(h.viewers["tab"].cursors))
		}
	})
}

// TestHubManyRejected: events that Commit rejects cost a round trip, not a timer (rule 11).
func TestHubManyRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{Commit: func(ctx context.Context, id, epoch string, items []Item) error {
			for _, it := range items {
				if it.Event != nil && it.Event.Type == "bad" {
					return &ProtocolError{Code: "event_rejected", Seq: it.Event.Seq}
				}
			}
			return nil
		}})
		st := NewStreamer(nil)
		for i := range 20 {
			typ := "good"
			if i%2 == 1 {
				typ = "bad"
			}
			st.Publish(t.Context(), "s", Event{Type: typ})
		}
		a, b := st.Connect(), h.ConnectAgent("agent")
		start := time.Now()
		for st.Stats().PendingEvents > 0 && time.Since(start) < time.Hour {
			carryAll(t, a, b)
			pass(250 * time.Millisecond)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("10 rejected events among 20 took %v on a perfect connection", d)
		}
	})
}

// TestHubReplayTooLarge: a replayed event has the same limit as any other.
func TestHubReplayTooLarge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxEventBytes: 1000})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.next()
		v.next()
		r := a.asked("s", "tab", "e1", 0, 15)
		b := answerTo(r, 1, 1, true)
		b.Events[0].Data, b.Events[0].Bytes = nil, []byte(strings.Repeat("x", 3<<20))
		a.link.Handle(t.Context(), b)
		for p := v.next(); p != nil; p = v.next() {
			out, err := Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if len(out) > maxLine {
				t.Fatalf("a %s of %d bytes for the viewer: Lines ends the link with ErrTooLarge; MaxEventBytes is 1000", p.payloadType(), len(out))
			}
		}
	})
}

// TestBudgetReserve: a reservation that does not fit makes no other fail.
func TestBudgetReserve(t *testing.T) {
	t.Parallel()
	b := &budget{max: 100}
	b.used.Store(90)
	var wg sync.WaitGroup
	stop := make(chan bool)
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				b.reserve(20) // never fits
			}
		}
	}()
	fails := 0
	for range 100_000 {
		if b.reserve(5) { // always fits
			b.used.Add(-5)
		} else {
			fails++
		}
	}
	close(stop)
	wg.Wait()
	if fails > 0 {
		t.Errorf("%d reservations of 5 refused with 10 free", fails)
	}
}

// TestHubRevokeDuringAuthorize: what is revoked while Authorize runs is asked again.
func TestHubRevokeDuringAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		allowed := true
		h = NewHub(&HubConfig{Authorize: func(ctx context.Context, viewer, session string) error {
			ok := allowed
			// meanwhile, elsewhere: the right is taken away
			allowed = false
			h.Revoke(viewer, session)
			if !ok {
				return errors.New("no")
			}
			return nil
		}})
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		v := playViewer(t, h, "tab")
		v.link.Handle(t.Context(), v.watch("s", "", 0))
		for p := v.next(); p != nil; p = v.next() {
			if _, ok := p.(*EventBatchPayload); ok {
				t.Fatalf("events after Revoke")
			}
		}
	})
}

// TestHubEndedCount: an ended session that the agent has forgotten is open no more.
func TestHubEndedCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxAgentSessions: 2})
		st := NewStreamer(nil)
		a, b := st.Connect(), h.ConnectAgent("agent")
		for i := range 3 {
			st.End(t.Context(), fmt.Sprint("s", i), Event{})
			for range 40 {
				carryAll(t, a, b)
				pass(time.Second)
			}
			if n := st.Stats(); n.PendingEvents > 0 {
				t.Fatalf("session %d: %+v", i, n)
			}
			for range 920 {
				carryAll(t, a, b)
				pass(time.Second)
			}
			t.Logf("agent holds %d, hub %d", st.Stats().Sessions, h.Stats().Sessions)
		}
	})
}

// TestStreamerOverloadedIsNoSilence: a hub that refuses one session is there for the others.
func TestStreamerOverloadedIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxSessions: 1})
		st := NewStreamer(nil)
		st.Publish(t.Context(), "s1", Event{})
		st.Publish(t.Context(), "s2", Event{})
		a, b := st.Connect(), h.ConnectAgent("agent")
		for range 600 {
			carryAll(t, a, b)
			pass(time.Second)
		}
	})
}

// TestStreamerFirstBatchLost: the first batch of a session that stood idle heals within one
// timer, though its status was lost too (L5).
func TestStreamerFirstBatchLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		st := NewStreamer(nil)
		st.Session("s")
		a, b := st.Connect(), h.ConnectAgent("agent")
		dropStatus := true
		dropBatch := true
		lose := func(p Payload) (lost bool) {
			switch p := p.(type) {
			case *StatusPayload:
				if lost = dropStatus && len(p.Sessions) > 0; lost {
					dropStatus = false
				}
			case *EventBatchPayload:
				lost, dropBatch = dropBatch, false
			}
			return lost
		}
		for range 100 * 4 {
			carryAll(t, a, b, lose)
			pass(250 * time.Millisecond)
		}
		st.Publish(t.Context(), "s", Event{})
		published := time.Now()
		for st.Stats().PendingEvents > 0 && time.Since(published) < 10*time.Minute {
			carryAll(t, a, b, lose)
			pass(250 * time.Millisecond)
		}
		if d := time.Since(published); d > 16*time.Second {
			t.Errorf("healed after %v", d)
		}
	})
}

// TestHubReplaysGivenUp: requests that a viewer gave up are not answered on and on.
func TestHubReplaysGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		st := NewStreamer(&StreamerConfig{ReplayEvents: 10000})
		for range 2000 {
			st.Publish(t.Context(), "s", Event{})
		}
		a, b := st.Connect(), h.ConnectAgent("agent")
		for st.Stats().PendingEvents > 0 {
			carryAll(t, a, b)
			pass(250 * time.Millisecond)
		}
		evil := playViewer(t, h, "evil")
		for range 9 {
			evil.send(evil.watch("s", "", 0))
			evil.drain()
			for { // the request goes out
				p, _ := b.Next(endedContext)
				if p == nil {
					break
				}
				a.Handle(t.Context(), p)
			}
		}
		busy := 0
		v := playViewer(t, h, "honest")
		v.send(v.watch("s", "", 0))
		v.drain()
		for {
			p, _ := b.Next(endedContext)
			if p == nil {
				break
			}
			if err := a.Handle(t.Context(), p); err != nil {
				t.Log(err)
				busy++
			}
		}
		start := time.Now()
		for {
			carryAll(t, a, b)
			got := false
			for p := v.next(); p != nil; p = v.next() {
				if _, ok := p.(*ReplayBatchPayload); ok {
					got = true
				}
			}
			if got {
				break
			}
			pass(time.Second)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the honest viewer waited %v for its first replay batch (%d replay_busy)", d, busy)
		}
	})
}

// TestViewerHandleClosed: Handle that waits for room says why it can't go on.
func TestViewerHandleClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h := watching(t, &ViewerConfig{BufferItems: 1}, "s")
		h.send(h.status(stands("s", "e1", 1, 3, 0)))
		errc := h.handling(h.batch("s", "e1", 1, 3))
		h.link.Close()
		if err := <-errc; err != ErrClosed {
			t.Errorf("Handle: %v, want ErrClosed", err)
		}
	})
}

// TestLinkTypedNil: a nil payload of any type is refused.
func TestLinkTypedNil(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("panic: %v", r)
		}
	}()
	l := NewHub(nil).ConnectAgent("a")
	l.Handle(t.Context(), (*HelloPayload)(nil))
}

// TestStreamerNoReplays: an agent that answers no replays says so for good (rule 12).
func TestStreamerNoReplays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		st := NewStreamer(&StreamerConfig{MaxReplays: -1})
		for range 20 {
			st.Publish(t.Context(), "s", Event{})
		}
		a, b := st.Connect(), h.ConnectAgent("agent")
		v := NewViewer(nil)
		v.Watch("s", Position{})
		c, d := v.Connect(), h.ConnectViewer("tab")
		for range 3600 {
			carryAll(t, a, b)
			carryAll(t, c, d)
			pass(time.Second)
		}
		n := 0
		for range v.Items(endedContext) {
			n++
		}
		if n == 0 {
			t.Errorf("nothing in an hour, not even a gap")
		}
	})
}

// TestHubRejectsGap: only an event can be rejected: the gap in its place is not sent
// again and again (rule 11).
func TestHubRejectsGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var a, b *Link
		h := NewHub(&HubConfig{Commit: func(ctx context.Context, id, epoch string, items []Item) error {
			if calls++; calls > 1000 {
				a.Close()
				b.Close()
			}
			return &ProtocolError{Code: "event_rejected", Seq: 1}
		}})
		st := NewStreamer(nil)
		st.Publish(t.Context(), "s", Event{})
		a, b = st.Connect(), h.ConnectAgent("agent")
		start := time.Now()
		for range 2000 {
			if p, _ := a.Next(endedContext); p != nil {
				b.Handle(context.Background(), p)
			}
			if p, _ := b.Next(endedContext); p != nil {
				a.Handle(context.Background(), p)
			}
		}
		if calls > 100 {
			t.Errorf("%d calls of Commit in %v", calls, time.Since(start))
		}
	})
}

// TestHubStuckViewerRequestLost: a request that is lost gives its turn back on the timer, also if
// the viewer's link is stuck: no later request was made, since only that link asked again.
func TestHubStuckViewerRequestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		stuck, v := playViewer(t, h, "v1"), playViewer(t, h, "v2")
		stuck.send(stuck.watch("s", "", 0))
		stuck.want(stuck.status(stands("s", "e1", 16, 20, 0)))
		stuck.wantIdle("the agent is asked")
		a.asked("s", "v1", "e1", 0, 15) // and does not get it; v1's connection takes nothing any more
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)))
		v.wantIdle("it waits for its turn")
		pass(timerFirst)
		r := a.asked("s", "v2", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		v.want(v.status(stands("s", "e1", 16, 20, 0)), replayedTo(r, 1, 15), v.batch("s", "e1", 16, 20))

		stuck.drain() // it has come loose, and asks again; the timer has doubled
		a.asked("s", "v1", "e1", 0, 15)
		pass(2*timerFirst - 1)
		stuck.drain()
		a.wantIdle("a request is under way")
		pass(1)
		stuck.drain()
		r = a.asked("s", "v1", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		stuck.want(replayedTo(r, 1, 15), stuck.batch("s", "e1", 16, 20))
	})
}

// TestHubAuthorizeRevokes: Authorize may call anything back. One that revokes another watch of
// its viewer, so that it has one at a time, was asked again for ever: any Revoke counted.
func TestHubAuthorizeRevokes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		revokes, asked := "", 0
		h = NewHub(&HubConfig{Authorize: func(_ context.Context, viewer, _ string) error {
			if asked++; asked > 10 {
				return errors.New("asked for ever")
			}
			h.Revoke(viewer, revokes)
			return nil
		}})
		v := playViewer(t, h, "tab")
		v.send(v.watch("r", "", 0))
		v.want(v.status(stands("r", "", 0, 0, 0)))
		revokes = "r"
		v.send(v.watch("s", "", 0))
		v.want(&ErrorPayload{Code: codeForbidden, SessionID: "r"}, v.status(stands("s", "", 0, 0, 0)))
		if asked != 2 {
			t.Errorf("asked %d times for two watches", asked)
		}
		// Allowed and revoked in one: asked once more, and no is the answer.
		revokes, asked = "q", 0
		v.refused(v.watch("q", "", 0), &ErrorPayload{Code: codeForbidden, SessionID: "q"})
		v.wantIdle("refused")
		if n := len(h.viewers["tab"].cursors); asked != 2 || n != 1 {
			t.Errorf("asked %d times, %d watches", asked, n)
		}
	})
}

// TestHubMaxWatchesAtOnce: calls of Handle at the same time can't pass the limit together.
func TestHubMaxWatchesAtOnce(t *testing.T) {
	for range 50 {
		h := NewHub(&HubConfig{MaxWatches: 2})
		v := playViewer(t, h, "tab")
		var refused atomic.Int32
		var calls sync.WaitGroup
		for i := range 16 {
			calls.Go(func() {
				if v.link.Handle(t.Context(), v.watch(fmt.Sprint("s", i), "", 0)) != nil {
					refused.Add(1)
				}
			})
		}
		calls.Wait()
		if n := len(h.viewers["tab"].cursors); n != 2 || refused.Load() != 14 || len(h.sessions) != 2 {
			t.Fatalf("%d watches, %d refused, %d sessions", n, refused.Load(), len(h.sessions))
		}
	}
}

// TestHubClaimHoldsUpNobody: an agent that asks for another's session, again and again, held up
// the owner's batches for as long as Claim took, and with them all its sessions.
func TestHubClaimHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan bool)
		h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return <-answer }})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		claim := func() <-chan error {
			return start(func() error { return b.link.Handle(t.Context(), b.status(entryOf("s", "e1", 1, 0, 5))) })
		}
		claimed := claim()
		synctest.Wait()
		fed := a.handling(a.batch("s", "e1", 4, 4))
		wantReturned(t, fed, nil)
		answer <- false
		synctest.Wait()
		if err := <-claimed; err == nil {
			t.Error("not refused")
		}
		b.want(&ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})

		claimed = claim() // allowed, but meanwhile the session is gone and another's
		synctest.Wait()
		h.Forget("s")
		c := playAgent(t, h, "c")
		c.feed("s", "e1", 1, 2)
		answer <- true
		synctest.Wait()
		answer <- true // so it is asked again, about that one
		wantReturned(t, claimed, nil)
		b.want(b.ack("s", "e1", 2))
		if st := statOf(t, h, "s"); st.AgentID != "b" || !st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// TestHubClaimIsAskedFirst: who may not have a session is not told its epoch, by which it would
// take its own for an old one.
func TestHubClaimIsAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return false }})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e2", 1, 3)
		b.refused(b.batch("s", "e1", 1, 1), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e1", 2, 2), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		b.refused(b.status(entryOf("s", "e1", 1, 0, 2)), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})
	})
}

// TestHubRefusesOneLife: an agent's status and batch are refused both, so that its caller may renew
// the session between the two answers. The second one stopped the new life.
func TestHubRefusesOneLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, st := NewHub(nil), NewStreamer(nil)
		other := playAgent(t, h, "other")
		other.feed("s", "e1", 1, 1)
		st.Publish(t.Context(), "s", Event{})
		a, b := st.Connect(), h.ConnectAgent("agent")
		var answers []Payload
		refusals := func(p Payload) bool {
			e, ok := p.(*ErrorPayload)
			if ok = ok && e.Code == codeForbidden; ok {
				answers = append(answers, p)
			}
			return ok
		}
		carryAll(t, a, b, refusals)
		if n := len(answers); n != 2 {
			t.Fatalf("%d refusals, want those of a status and a batch", n)
		}
		a.Handle(t.Context(), answers[0])
		if err := st.Flush(t.Context()); err == nil {
			t.Fatal("not stopped")
		}
		h.Forget("s") // and the other agent is gone: it may have it now
		if err := st.Renew("s"); err != nil {
			t.Fatal(err)
		}
		a.Handle(t.Context(), answers[1])
		if _, err := st.Publish(t.Context(), "s", Event{}); err != nil {
			t.Errorf("stopped by what was said of the life before: %v", err)
		}
		carryAll(t, a, b, refusals)
		if st := statOf(t, h, "s"); st.AgentID != "agent" || st.Acked != 1 {
			t.Errorf("session: %+v", st)
		}
	})
}

// TestHubForgetDuringCommitThenOpen: a session that is forgotten while Commit runs for it can be
// opened again on the agent's next link, but one call at a time is the rule: Resume asked the store
// that Commit was writing to.
func TestHubForgetDuringCommitThenOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored, writing, written := uint64(0), false, make(chan bool)
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) {
				if writing {
					t.Error("Resume while Commit runs")
				}
				return stored, nil
			},
			Commit: func(_ context.Context, _, _ string, items []Item) error {
				writing = true
				<-written
				writing, stored = false, items[len(items)-1].Position().Seq
				return nil
			},
		})
		old := playAgent(t, h, "agent")
		first := old.handling(old.batch("s", "e1", 1, 3))
		a := playAgent(t, h, "agent")
		h.Forget("s")
		second := a.handling(a.status(entryOf("s", "e1", 1, 0, 3)))
		wantWaiting(t, second)
		written <- true
		wantReturned(t, first, nil)
		wantReturned(t, second, nil)
		a.want(a.ack("s", "e1", 3))
		if n := h.Stats().Sessions; n != 1 || len(h.sessions) != 1 {
			t.Errorf("%d sessions, %d held", n, len(h.sessions))
		}

		third := a.handling(a.batch("s", "e1", 4, 4))
		h.Close()
		written <- true
		wantReturned(t, third, nil)
		if n := h.Stats().Sessions; n != 0 || len(h.sessions) != 0 {
			t.Errorf("closed: %d sessions, %d held", n, len(h.sessions))
		}
	})
}

// TestLinkSilentWhileSendIsStuck: a connection that is half open takes what fits its buffers, and
// then nothing. Whether the peer is silent was looked at between sends only, so Run stood in one
// for as long as the transport did (rule 9).
func TestLinkSilentWhileSendIsStuck(t *testing.T) {
	connect := map[string]func() *Link{
		"agent": func() *Link {
			st := NewStreamer(nil)
			publishN(t, st, "s", 1)
			return st.Connect()
		},
		"viewer": func() *Link {
			v := NewViewer(nil)
			v.Watch("s", Position{})
			return v.Connect()
		},
	}
	for role, connect := range connect {
		t.Run(role, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, near, far := connect(), make(chan Payload, 3), make(chan Payload)
				ended := start(func() error {
					return l.Run(t.Context(), func(ctx context.Context, p Payload) error {
						select {
						case near <- p:
							return nil
						case <-ctx.Done():
							return ctx.Err()
						}
					}, func(ctx context.Context) (Payload, error) {
						select {
						case p := <-far:
							return p, nil
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					})
				})
				synctest.Wait() // hello is said
				far <- &WelcomePayload{V: 1, Link: "l1", Window: 256}
				for range 5 { // to be answered, if anything could be sent
					far <- &HelloPayload{V: 1, Role: role}
				}
				pass(maxSilence - 1)
				wantWaiting(t, ended)
				pass(heartbeat)
				wantReturned(t, ended, ErrSilent)
			})
		})
	}
}

// A ctx whose cause is ErrClosed, say of a group in which a link ended so, ended a
// Publish that waited for room: it was taken for a session that was forgotten, and
// tried again for ever.
func TestPublishEndsWithCauseErrClosed(t *testing.T) {
	st := NewStreamer(&StreamerConfig{MaxPendingEvents: 1})
	publishN(t, st, "s", 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrClosed)
	if seq, err := st.Publish(ctx, "s", Event{Type: "out"}); seq != 0 || err != ErrClosed {
		t.Errorf("published %d, %v", seq, err)
	}
}

// A panic in a callback left the session locked: whoever recovers, as net/http does,
// found the next payload about it waiting for ever.
func TestHubCallbackPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trouble := true
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) {
				if trouble {
					panic("store")
				}
				return 0, nil
			},
			Commit: func(context.Context, string, string, []Item) error {
				if trouble {
					panic("store")
				}
				return nil
			},
		})
		a := playAgent(t, h, "agent")
		panics := func(p Payload) {
			t.Helper()
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			a.link.Handle(t.Context(), p)
		}
		panics(a.status(entryOf("s", "e1", 1, 0, 3)))
		trouble = false
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		trouble = true
		panics(a.batch("s", "e1", 1, 3))
		trouble = false
		a.send(a.batch("s", "e1", 1, 3))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
	})
}

// TestHubStuckAgentHoldsNoSlot: a request that an agent's connection does not take is
// given up like one without an answer, so that a viewer's other sessions have their
// turn (rule 12).
func TestHubStuckAgentHoldsNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stuck := smallHub(t, HubConfig{MaxViewerReplays: 1})
		good := playAgent(t, h, "good")
		good.feed("t", "e1", 1, 20)
		v := playViewer(t, h, "v")
		v.send(v.watch("s", "", 0))
		v.drain()
		v.send(v.watch("t", "", 0))
		got := uint64(0)
		for range 20 {
			for p := v.next(); p != nil; p = v.next() {
				if b, ok := p.(*EventBatchPayload); ok && b.SessionID == "t" {
					got = b.LastSeq
				}
			}
			for p := good.next(); p != nil; p = good.next() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					good.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			pass(time.Second)
		}
		if got != 20 {
			t.Errorf("the viewer is at %d of the other session", got)
		}
		r := stuck.asked("s", "v", "e1", 0, 15) // once, when it takes payloads again
		stuck.wantIdle("what was given up is not asked for")
		stuck.send(answerTo(r, 1, 15, true))
		for p := v.next(); p != nil; p = v.next() {
			if b, ok := p.(*EventBatchPayload); ok && b.SessionID == "s" {
				got = b.FirstSeq
			}
		}
		if got != 16 {
			t.Errorf("the stuck agent's own session goes on at %d", got)
		}
	})
}

// TestStreamerManyLosses: what is lost costs an agent no more memory than what is kept,
// also when dropped and refused events take turns and the hub acknowledges nothing.
func TestStreamerManyLosses(t *testing.T) {
	t.Parallel()
	const pending, published = 4, 1500
	now := time.UnixMilli(1_700_000_000_000)
	st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingEvents: pending})
	al := st.connect(now)
	says := func() (out []Payload) {
		for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
			out = append(out, p)
		}
		return out
	}
	says()
	al.handle(t.Context(), now, &WelcomePayload{V: version, Link: "l", Window: 1 << 30})
	most := 0
	for range published {
		s, seq, err := offer(now, st, "s", Event{})
		if err != nil {
			t.Fatal(err)
		}
		says()
		if seq%2 == 0 {
			al.handle(t.Context(), now, &ErrorPayload{SessionID: "s", Code: codeEventRejected, Seq: seq})
		}
		most = max(most, s.log.ring.n)
	}
	if most > maxGaps+4*pending {
		t.Errorf("%d entries for %d events", most, pending)
	}
	al.handle(t.Context(), now, &AckBatchPayload{SessionID: "s", Epoch: st.lookup("s").epoch, Link: "l", Nack: true})
	next := uint64(1)
	for _, p := range says() { // all of it is still declared
		b, ok := p.(*EventBatchPayload)
		if !ok {
			continue
		}
		if err := b.check(); err != nil || b.FirstSeq != next {
			t.Fatalf("a batch from %d, want %d: %v", b.FirstSeq, next, err)
		}
		next = b.LastSeq + 1
	}
	if next != published+1 {
		t.Errorf("told up to %d", next-1)
	}
}

// TestHubEndStays: where a session has ended, it has ended: a later status that names
// another end, or a head beyond it, changes nothing (rule 16).
func TestHubEndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "v")
		a.send(a.status(entryOf("s", "e1", 1, 0, 9))) // a head that the end takes back
		a.want(a.ack("s", "e1", 0))
		a.send(a.batch("s", "e1", 1, 2), a.last("s", "e1", 3))
		a.want(a.ack("s", "e1", 3))
		claim := entryOf("s", "e1", 1, 3, 29)
		a.send(a.status(claim))
		claim.Ended = true
		a.send(a.status(claim))
		a.want(a.ack("s", "e1", 3))
		if s := h.lookup("s"); !s.ended || s.endSeq != 3 || s.head != 3 {
			t.Errorf("ended %v at %d, head %d", s.ended, s.endSeq, s.head)
		}
		v.send(v.watch("s", "e1", 4)) // it would wait for ever
		v.want(&ErrorPayload{Code: codeReplayAhead, SessionID: "s", Epoch: "e1", Seq: 3})
	})
}

// TestSilentBeforeWelcome: a connection that breaks in silence before its welcome
// ends as well. Silence was looked for after the welcome only, so hello was said
// into it for ever, and nobody connected again (rule 9).
func TestSilentBeforeWelcome(t *testing.T) {
	for name, link := range map[string]func() *Link{
		"agent":  func() *Link { return NewStreamer(nil).Connect() },
		"viewer": func() *Link { return NewViewer(nil).Connect() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := link()
				pass(time.Hour) // nobody looks at it yet
				start := time.Now()
				var said []time.Duration
				for {
					if _, err := l.Next(context.Background()); err != nil {
						if err != ErrSilent || time.Since(start) != maxSilence {
							t.Errorf("ended after %v with %v", time.Since(start), err)
						}
						break
					}
					if said = append(said, time.Since(start)); len(said) > 10 {
						t.Fatalf("goes on after %v", said)
					}
				}
				if len(said) < 2 || said[1] != timerFirst {
					t.Errorf("hello was said after %v", said)
				}
			})
		})
	}
}

// TestEndWakesPublishers: who waits for room in a session that another caller ends
// is told so at once. It waited until the hub made room, for nothing (rule 10).
func TestEndWakesPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxPendingBytes: 300})
		st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 60)})
		waits := start(func() error {
			_, err := st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 100)})
			return err
		})
		wantWaiting(t, waits)
		defer st.Forget("s")
		if _, err := st.End(t.Context(), "s", Event{}); err != nil { // it is small enough
			t.Fatal(err)
		}
		wantReturned(t, waits, ErrEnded)
	})
}

// TestAckEndsWait: an ack that opens a session ends the wait after a retryable
// error. The wait went on, and while it lasted the session's timer stood still: a
// batch that was lost was not sent again in time (rules 9 and 11).
func TestAckEndsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 2)
		hub := playHubWindow(t, st, 1)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 1, 2))
		overloaded := &ErrorPayload{Code: codeOverloaded, SessionID: "s", Retryable: true}
		hub.send(overloaded)
		hub.send(overloaded) // the timer is at 30 s now
		hub.acks("s", 1)     // of a status that the hub took after all
		hub.want(agentBatch("s", 2, 2, 2))
		pass(timerFirst)
		hub.wantStatus("s") // the sign of life
		hub.want(agentBatch("s", 2, 2, 2))
	})
}

// TestReplayTwice: an answer to a replay request that arrives twice is a duplicate.
// Near the end of a request its events counted a second time, and the hub refused an
// honest agent as malformed (rule 12).
func TestReplayTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: -1})
		h.sizes.replay = 3
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 8)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r, ok := a.next().(*ReplayRequestPayload)
		if !ok || r.Limit != 3 {
			t.Fatalf("asked %+v", r)
		}
		first := answerTo(r, 1, 2, false)
		a.send(first, first, answerTo(r, 3, 3, true))
		a.wantIdle("nothing is refused")
		if got := v.drain(); len(got) != 2 {
			t.Errorf("the viewer got %d payloads", len(got))
		}
	})
}

// TestReplayTimerStartsAnew: a request that is refused for good is answered: what the
// cursor asks for later has its first timer period. It kept the doubled one of the
// requests before (rule 12).
func TestReplayTimerStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, v := withoutLog(t, 3)
		a.asked("s", "tab", "e1", 0, 3)
		pass(timerFirst) // it was lost
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 3)
		a.send(&ErrorPayload{Code: codeReplayBusy, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID})
		if got := v.drain(); len(got) != 1 {
			t.Fatalf("the viewer got %d payloads", len(got))
		}
		a.feed("s", "e1", 4, 4)
		v.drain()
		a.asked("s", "tab", "e1", 3, 4)
		pass(timerFirst)
		v.drain()
		a.asked("s", "tab", "e1", 3, 4)
	})
}

// TestReplayFrameTwice: a replay batch that came in a frame and came twice has no event
// left that is new. Taking what is left of it out of the frame was a panic.
func TestReplayFrameTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, v := withoutLog(t, 4)
		r := a.asked("s", "tab", "e1", 0, 4)
		frame, err := Marshal(answerTo(r, 1, 2, false))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.link.HandleFrame(t.Context(), frame); err != nil {
				t.Error(err)
			}
		}
		a.send(answerTo(r, 3, 4, true))
		v.want(replayedTo(r, 1, 2), replayedTo(r, 3, 4))
	})
}

// TestReplayGivenUpWhileSent: a viewer that asks anew gives its older request up. That
// one's last batch read whether it was done when others could write that (rule 12):
// the race detector sees it, and it could have said done in the middle.
func TestReplayGivenUpWhileSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		st := NewStreamer(nil)
		publishN(t, st, "s", 300)
		hub := playHub(t, st)
		var sender sync.WaitGroup
		sender.Go(func() {
			for err := error(nil); err == nil; {
				_, err = hub.link.NextFrame(ctx, nil)
			}
		})
		for i := range 3000 {
			r := &ReplayRequestPayload{SessionID: "s", ViewerID: "tab", RequestID: fmt.Sprint(i)}
			if err := hub.link.Handle(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		sender.Wait()
	})
}
