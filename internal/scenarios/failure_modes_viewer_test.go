package scenarios_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/testenv"
	"github.com/vibetools/gvstream/streamtest"
)

// The failure modes between a hub and its viewers.

func joinAnywhere(t *testing.T) {
	// An agent publishes while hundreds of viewers come at random times with random
	// positions. Each gets exactly what follows its position, once and in order.
	const events = 500
	for round := range uint64(5) {
		random := rand.New(rand.NewPCG(round, 0))
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: 1 + random.IntN(100), Window: 1 + random.IntN(100)})
		st := gvstream.NewStreamer(nil)
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
		session, err := st.Session("s")
		noError(t, err)
		var work sync.WaitGroup
		for i := range testenv.Fewer(30) {
			delay := time.Duration(random.IntN(events)) * time.Millisecond
			part := random.Float64()
			work.Go(func() {
				pass(delay)
				s := session.Stats()
				after := uint64(part * float64(s.Acked))
				got := follow(sc, fmt.Sprint("tab", i), "s", gvstream.Position{Epoch: s.Epoch, Seq: after})
				want := fmt.Sprintf("%d..%d, end", after+1, events+1)
				if after >= events {
					want = tellEvents(numbered(to(after+1, events+1)...), nil) + ", end"
				}
				if got != strings.TrimPrefix(want, ", ") {
					t.Errorf("round %d, after %d: %s", round, after, got)
				}
			})
		}
		for range events {
			publish(t, st, "s", 1)
			pass(time.Duration(random.IntN(3)) * time.Millisecond)
		}
		_, err = st.End(sc.Context(), "s", event(events+1))
		noError(t, err)
		work.Wait()
		sc.Close()
	}
}

func seamAtEveryStep(t *testing.T) {
	// A viewer replays 1 to 200 from the agent and 201 to 250 from the hub. Three more
	// events are published at one point of the replay, and every such point is tried:
	// before the request, between two pages, after the last one. It gets them all, in
	// order.
	steps := 0
	for at := -1; at < steps; at++ { // first without any, to count the steps
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: 50})
		st := gvstream.NewStreamer(nil)
		publish(t, st, "s", 250)
		agent := sc.Agent("a", st)
		sc.Acked()
		agent.Forget()
		v := newViewer(t, "s", gvstream.Position{})
		viewer := sc.Viewer("tab", v)
		n := 0
		once := func(moved bool) bool {
			if moved {
				if n == at {
					publish(t, st, "s", 3)
				}
				n++
			}
			return moved
		}
		for idle := 0; idle < 2; {
			moved := false
			for _, w := range []*scene.Wire{agent, viewer} {
				moved = once(w.StepUp()) || moved
				moved = once(w.StepDown()) || moved
			}
			if idle++; moved {
				idle = 0
			}
		}
		if at == -1 {
			steps = n
			if down := say(agent.Down...); !strings.HasPrefix(down, "replay s 1..200") {
				t.Fatalf("the hub asked: %s", down)
			}
		}
		want := "1..253"
		if at == -1 {
			want = "1..250"
		}
		equal(t, fmt.Sprint("published at step ", at), read(t, v), want)
	}
	if steps < 10 {
		t.Errorf("only %d steps", steps)
	}
}

func seamKnowsNoTime(t *testing.T) {
	// Whether the clock stands still or jumps ten seconds between any two payloads, the
	// seam is the same. And no set of ids already seen limits how much may be replayed
	// while other events arrive.
	for _, jump := range []time.Duration{0, 10 * time.Second} {
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: 50, ReplayWait: time.Hour})
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 200_000, MaxPendingEvents: 200_000})
		n := testenv.Fewer(100_000)
		if jump > 0 {
			n = 250
		}
		publish(t, st, "s", n)
		sc.Agent("a", st).Shared = true
		sc.Acked()
		v := newViewer(t, "s", gvstream.Position{})
		sc.Viewer("tab", v).Shared = true
		for live, steps := 0, 0; live < 100; steps++ {
			if !sc.Step() || jump > 0 || steps%10 == 0 { // all along the replay
				publish(t, st, "s", 1)
				live++
			}
			pass(jump)
		}
		sc.Flow()
		sc.Acked()
		equal(t, fmt.Sprint("with jumps of ", jump), read(t, v), fmt.Sprintf("1..%d", n+100))
	}
}

func restartResets(t *testing.T) {
	// A viewer is at 10 when the agent restarts and counts from 1 again: past 10, not as
	// far, or just as far. It learns of the new life and gets all of it, on the same
	// connection or on a new one.
	for _, n := range []int{15, 5, 10} {
		for _, attached := range []bool{true, false} {
			sc := scene.New(t, nil)
			st := gvstream.NewStreamer(nil)
			publish(t, st, "s", 10)
			w := sc.Agent("a", st)
			v := newViewer(t, "s", gvstream.Position{})
			vw := sc.Viewer("tab", v)
			sc.Acked()
			equal(t, "before", read(t, v), "1..10")
			old := v.Position("s")
			w.Cut()
			if !attached {
				vw.Cut()
			}
			st = gvstream.NewStreamer(nil)
			publish(t, st, "s", n)
			sc.Agent("a", st)
			sc.Acked()
			if !attached {
				v = newViewer(t, "s", old) // a new process
				sc.Viewer("tab", v)
				sc.Flow()
			}
			equal(t, "after", read(t, v), fmt.Sprintf("reset from 10 of 10, 1..%d", n))
			equal(t, "position", v.Position("s"), at(t, st, "s", uint64(n)))
		}
	}
}

func positionAhead(t *testing.T) {
	// A viewer comes with a position that nobody has reached. It gets one error, which says
	// how far the session is, and the watch is over: it gets no events that it would have
	// to filter. At the newest number there is simply nothing yet.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 5)
	sc.Agent("a", st)
	sc.Acked()
	ahead := newViewer(t, "s", at(t, st, "s", 10))
	newest := newViewer(t, "s", at(t, st, "s", 5))
	sc.Viewer("ahead", ahead)
	sc.Viewer("newest", newest)
	sc.Flow()
	for range 2 {
		publish(t, st, "s", 3)
		sc.Acked()
	}
	var got []string
	for it, err := range ahead.Items(scene.Ended) {
		got = append(got, code(err)+tell([]gvstream.Item{it}))
	}
	equal(t, "ahead", strings.Join(got, ";"), "replay_ahead 5")
	equal(t, "at the newest", read(t, newest), "6..11")
}

func stuckViewer(t *testing.T) {
	// Ten viewers, and one connection whose send never returns. The others get
	// everything at once, and nobody waits for the stuck one. There is no queue that
	// could overflow for it: all that it costs is a cursor.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	stuck := sc.Hub.ConnectViewer("stuck")
	noError(t, stuck.Handle(t.Context(), &gvstream.HelloPayload{V: 1, Role: "viewer"}))
	noError(t, stuck.Handle(t.Context(), &gvstream.WatchPayload{SessionID: "s"}))
	sc.Go(func() {
		block := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		stuck.Run(sc.Context(), func(ctx context.Context, _ gvstream.Payload) error { return block(ctx) },
			func(ctx context.Context) (gvstream.Payload, error) { return nil, block(ctx) })
	})
	var work sync.WaitGroup
	for i := range 9 {
		work.Go(func() {
			if got := follow(sc, fmt.Sprint("tab", i), "s", gvstream.Position{}); got != "1..1000, end" {
				t.Errorf("viewer %d: %s", i, got)
			}
		})
	}
	start := time.Now()
	publish(t, st, "s", 999)
	_, err := st.End(sc.Context(), "s", event(1000))
	noError(t, err)
	work.Wait()
	equal(t, "time until all nine have everything", time.Since(start), 0)
	synctest.Wait() // until they have left
	s := hubStats(sc.Hub, "s")
	equal(t, "watches", s.Viewers, 1)
	equal(t, "events held", s.Events, 1000)
	sc.Hub.Revoke("stuck", "s")
	synctest.Wait()
	equal(t, "links", sc.Hub.Stats().Viewers, 1)
	sc.Close()
}

func positionZero(t *testing.T) {
	// A viewer finds a session empty, drops, and comes back with the number 0 of that
	// epoch: it gets the first events, and no reset. Another one is away while everything
	// it would need is evicted from all buffers: it gets that as a gap.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 4})
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 4})
	_, err := st.Session("s")
	noError(t, err)
	sc.Agent("a", st)
	v := newViewer(t, "s", at(t, st, "s", 0))
	w := sc.Viewer("tab", v)
	sc.Acked()
	equal(t, "of an empty session", read(t, v), "")
	equal(t, "position", v.Position("s"), at(t, st, "s", 0))
	w.Cut()
	publish(t, st, "s", 3)
	sc.Acked()
	equal(t, "a new process gets", show(t, sc, "s", v.Position("s")), "1..3")
	w = sc.Viewer("tab", v)
	sc.Flow()
	equal(t, "the same process gets", read(t, v), "1..3")
	w.Cut()
	publish(t, st, "s", 20)
	sc.Acked()
	sc.Viewer("tab", v)
	sc.Flow()
	equal(t, "after a long absence", read(t, v), "gap 4..19 evicted, 20..23")
}

// rolled is a scene whose session has 20 events, of which agent and hub hold the
// last 8.
func rolled(t *testing.T) (*scene.Scene, *gvstream.Streamer) {
	t.Helper()
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 8})
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 8})
	publish(t, st, "s", 20)
	sc.Agent("a", st)
	sc.Acked()
	return sc, st
}

func truncationIsAnItem(t *testing.T) {
	// What a viewer asks for is older than anybody holds. The loss is an item of its own
	// before the first event, whose Event is nil.
	sc, st := rolled(t)
	v := newViewer(t, "s", at(t, st, "s", 5))
	w := sc.Viewer("tab", v)
	sc.Flow()
	items := readItems(t, v)
	equal(t, "the viewer gets", tell(items), "gap 6..12 evicted, 13..20")
	equal(t, "an event in the gap", items[0].Event == nil, true)
	equal(t, "position after the gap", items[0].Position(), at(t, st, "s", 12))
	status := w.Down[1].(*gvstream.StatusPayload).Sessions[0]
	equal(t, "oldest and newest", fmt.Sprint(status.FirstSeq, status.HeadSeq), "13 20")
}

func truncationBounds(t *testing.T) {
	// The same buffer, and positions at, just before and just after its bounds.
	sc, st := rolled(t)
	for after, want := range map[uint64]string{
		12: "13..20", 11: "gap 12..12 evicted, 13..20", 13: "14..20", 20: "", 19: "20", 0: "gap 1..12 evicted, 13..20",
	} {
		equal(t, fmt.Sprint("after ", after), show(t, sc, "s", at(t, st, "s", after)), want)
		sc.Later(2 * time.Second) // until the hub has forgotten what it asked the agent for
	}
	equal(t, "from the start", show(t, sc, "s", gvstream.Position{}), "gap 1..12 evicted, 13..20")
}

func noFallBackToTheStart(t *testing.T) {
	// A position that is gone is never served as if it were the start: without a
	// gap, or with what the viewer has.
	sc, st := rolled(t)
	equal(t, "after 5", show(t, sc, "s", at(t, st, "s", 5)), "gap 6..12 evicted, 13..20")
	equal(t, "after 15", show(t, sc, "s", at(t, st, "s", 15)), "16..20")
}

func readerFails(t *testing.T) {
	// The reader fails at 4, by break or panic. It has dealt with 3, and 4 comes
	// again, here and in a new process. Only one loop can read at a time, so none
	// that is further on can move the position past one that failed.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 8)
	sc.Agent("a", st)
	v := newViewer(t, "s", gvstream.Position{})
	sc.Viewer("tab", v)
	sc.Acked()
	fail := func(how func()) {
		defer func() { recover() }()
		for it, err := range v.Items(scene.Ended) {
			noError(t, err)
			if it.Event.Seq == 4 {
				how()
				break
			}
		}
	}
	for _, how := range []func(){func() {}, func() { panic("at 4") }} {
		fail(how)
		equal(t, "position", v.Position("s"), at(t, st, "s", 3))
		equal(t, "a new process gets", show(t, sc, "s", v.Position("s")), "4..8")
	}
	for range v.Items(scene.Ended) {
		for _, err := range v.Items(scene.Ended) {
			equal(t, "a second loop", err, gvstream.ErrBusy)
		}
		break
	}
	equal(t, "the same process gets", read(t, v), "4..8")
	equal(t, "position", v.Position("s"), at(t, st, "s", 8))
}

func quietViewer(t *testing.T) {
	// A viewer has 7 and is away while 8 to 10 come; then nothing comes any more. It gets
	// them by coming back. If they are lost on a connection that stays up, the hub sends them
	// again when they are not acknowledged.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 7)
	agent := sc.Agent("a", st)
	v := newViewer(t, "s", gvstream.Position{})
	w := sc.Viewer("tab", v)
	sc.Acked()
	w.Cut()
	publish(t, st, "s", 3)
	sc.Acked()
	equal(t, "while away", read(t, v), "1..7")
	start := time.Now()
	w = sc.Viewer("tab", v)
	sc.Flow()
	equal(t, "after coming back", read(t, v), "8..10")
	equal(t, "time it took", time.Since(start), 0)

	publish(t, st, "s", 2)
	agent.Flow()
	equal(t, "lost", say(scene.Ready(w.Far)...), "batch s 11..12")
	sc.Flow()
	equal(t, "at once", read(t, v), "")
	sc.Later(20 * time.Second) // the timer counts from the ack of what came before
	sc.Later(time.Second)      // one event comes first, and its ack brings the others
	equal(t, "after the hub's timer", read(t, v), "11..12")

	// If something follows what was lost, the loss shows at once.
	publish(t, st, "s", 2)
	agent.Flow()
	equal(t, "lost", say(scene.Ready(w.Far)...), "batch s 13..14")
	publish(t, st, "s", 1)
	sc.Flow()
	equal(t, "after the next event", read(t, v), "13..15")
}

func pausedViewer(t *testing.T) {
	// A viewer with room for 16 items stops reading while hundreds of events come.
	// The link waits. If agent and hub keep the events, it gets all of them later; if
	// not, one gap names all that are missing.
	for _, keep := range []int{1000, 10} {
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: keep})
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: keep})
		v := gvstream.NewViewer(&gvstream.ViewerConfig{Window: 16})
		noError(t, v.Watch("s", gvstream.Position{}))
		sc.Join(v.Connect(), sc.Hub.ConnectViewer("tab"), nil)
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
		for range 500 {
			publish(t, st, "s", 1)
			synctest.Wait()
		}
		pass(time.Second) // and all are acknowledged
		var seen streamtest.Recorder
		missing := uint64(0)
		for it, err := range v.Items(sc.Context()) {
			noError(t, err)
			noError(t, seen.Record(it))
			if it.Gap != nil {
				missing += it.Gap.To - it.Gap.From + 1
			}
			if it.Position().Seq == 500 {
				break
			}
		}
		equal(t, "told of", uint64(len(seen.Events("s")))+missing, 500)
		if first := seen.Events("s")[15].Seq; first != 16 {
			t.Errorf("the 16th event it got is %d", first)
		}
		if keep == 1000 {
			equal(t, "missing", missing, 0)
		} else {
			equal(t, "gaps", len(seen.Gaps("s")), 1)
			equal(t, "the gap ends before what is kept", seen.Gaps("s")[0].To, 490)
		}
		sc.Close()
	}
}

func rejectedPosition(t *testing.T) {
	// The position is too old, or of another epoch. The viewer asks once, is corrected
	// once, and continues live; and likewise after a reconnect.
	for _, what := range []string{"evicted", "other epoch"} {
		sc, st := rolled(t)
		from, want := at(t, st, "s", 2), "gap 3..12 evicted, 13..21"
		if what == "other epoch" {
			from, want = gvstream.Position{Epoch: epoch1, Seq: 2}, "reset from 2 of 0, gap 1..12 evicted, 13..21"
		}
		v := newViewer(t, "s", from)
		w := sc.Viewer("tab", v)
		sc.Flow()
		publish(t, st, "s", 1)
		sc.Later(time.Minute)
		equal(t, what, read(t, v), want)
		if asked := strings.Count(say(w.Up...), "watch"); asked > 2 {
			t.Errorf("%s: asked %d times", what, asked)
		}
		w.Cut()
		w = sc.Viewer("tab", v)
		publish(t, st, "s", 1)
		sc.Flow()
		equal(t, "after a reconnect", read(t, v), "22")
		equal(t, "asked then", say(w.Up...), "hello; watch s 21")
	}
}

func poison(t *testing.T) {
	// A reader always fails at 7. The event comes again as often as it tries, without a
	// reconnect or a request; when it gives up, it continues after it. And a malformed
	// event in a replayed batch costs only that batch, which is requested again.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 10)
	sc.Agent("a", st)
	v := newViewer(t, "s", gvstream.Position{})
	w := sc.Viewer("tab", v)
	sc.Acked()
	w.Forget()
	var got []uint64
	tries := 0
	for tries < 5 {
		for it := range v.Items(scene.Ended) {
			if it.Event.Seq == 7 {
				tries++
				if tries < 5 {
					break
				}
			}
			got = append(got, it.Event.Seq)
		}
		sc.Flow()
	}
	equal(t, "dealt with", fmt.Sprint(got), fmt.Sprint(to(1, 10)))
	equal(t, "said meanwhile", say(w.Up...)+say(w.Down...), "")

	sc = scene.New(t, &gvstream.HubConfig{LogEvents: 2})
	a := callAgent(t, sc.Hub, "a")
	noError(t, a.batch("s", epoch1, to(1, 10)...))
	scene.Ready(a.link)
	v = newViewer(t, "s", gvstream.Position{})
	sc.Viewer("tab", v)
	for try := range 2 {
		sc.Flow()
		said := scene.Ready(a.link)
		r := said[len(said)-1].(*gvstream.ReplayRequestPayload)
		b := &gvstream.ReplayBatchPayload{SessionID: "s", ViewerID: "tab", RequestID: r.RequestID, Epoch: epoch1,
			FirstSeq: 1, LastSeq: 8, UntilSeq: 8, AvailableFrom: 1, Done: true, Events: numbered(to(1, 8)...)}
		if try == 0 {
			b.Events[4].Data = []byte("{")
			equal(t, "the malformed one", code(a.link.Handle(t.Context(), b)), "malformed")
			equal(t, "the agent is told", a.says(), "error malformed")
			sc.Later(time.Second)
		} else {
			noError(t, a.link.Handle(t.Context(), b))
		}
	}
	sc.Flow()
	equal(t, "the viewer gets", read(t, v), "1..10")
}

func viewerChangesBytes(t *testing.T) {
	// All in one process, payloads are handed over as they are. A viewer writes into
	// what it was given; another one, the hub's log, the agent's buffer and the next
	// replay don't see it.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 2})
	st := gvstream.NewStreamer(nil)
	for range 4 {
		_, err := st.Publish(scene.Ended, "s", gvstream.Event{Data: []byte(`"original"`)})
		noError(t, err)
		_, err = st.Publish(scene.Ended, "s", gvstream.Event{Bytes: []byte("original")})
		noError(t, err)
	}
	sc.Agent("a", st).Shared = true
	first, second := newViewer(t, "s", gvstream.Position{}), newViewer(t, "s", gvstream.Position{})
	sc.Viewer("first", first).Shared = true
	sc.Viewer("second", second).Shared = true
	sc.Acked()
	third := newViewer(t, "s", gvstream.Position{})
	for _, v := range []*gvstream.Viewer{first, second, third} {
		if v == third {
			sc.Viewer("third", third).Shared = true
			sc.Flow()
		}
		items := readItems(t, v)
		equal(t, "items", len(items), 8)
		for _, it := range items {
			if got := string(it.Event.Data) + string(it.Event.Bytes); strings.Trim(got, `"`) != "original" {
				t.Fatalf("%d is %s", it.Event.Seq, got)
			}
			clear(it.Event.Data)
			clear(it.Event.Bytes)
		}
	}
}

func nobodyTakesAnything(t *testing.T) {
	// A hub never acknowledges and a viewer never reads while a hundred thousand
	// events are published. None of them holds more than its limit.
	const limit = 100
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: limit, ReplayEvents: limit})
	h := answer(t, st, 10)
	for i := range testenv.Fewer(100_000) {
		_, err := st.Publish(scene.Ended, "s", gvstream.Event{Data: text(20)})
		noError(t, err)
		if i%50 > 0 {
			continue
		}
		if s := st.Stats(); s.PendingEvents > limit || s.Bytes > limit*200 {
			t.Fatalf("after %d: %+v", i+1, s)
		}
	}
	scene.Ready(h.link)

	sc := scene.New(t, &gvstream.HubConfig{LogEvents: limit})
	st = gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: limit})
	v := gvstream.NewViewer(&gvstream.ViewerConfig{Window: limit})
	noError(t, v.Watch("s", gvstream.Position{}))
	var toViewer atomic.Int64
	sc.Join(sc.Hub.ConnectViewer("tab"), v.Connect(), func(p gvstream.Payload) {
		if b, ok := p.(*gvstream.EventBatchPayload); ok {
			toViewer.Add(int64(len(b.Events)))
		}
	})
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	for range 80 {
		publish(t, st, "s", limit)
		synctest.Wait()
		if s := hubStats(sc.Hub, "s"); s.Events > limit {
			t.Fatalf("the hub holds %d events", s.Events)
		}
	}
	if n := toViewer.Load(); n > 50*limit {
		t.Errorf("%d events are on their way to a viewer that doesn't read", n)
	}
	sc.Close()
}

func noFilters(t *testing.T) {
	// There are no filters and no options that a reconnect could lose: a watch is a session
	// and a position. A viewer that wants only some types sees the others pass, so its
	// position means the same to everybody.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	for _, typ := range []string{"x", "y", "x", "y"} {
		_, err := st.Publish(scene.Ended, "s", gvstream.Event{Type: typ})
		noError(t, err)
	}
	sc.Agent("a", st)
	v := newViewer(t, "s", gvstream.Position{})
	sc.Viewer("tab", v)
	sc.Acked()
	var passed []string
	for it := range v.Items(scene.Ended) {
		if it.Event.Seq > 3 {
			break
		}
		passed = append(passed, it.Event.Type)
	}
	equal(t, "what passed up to the position", strings.Join(passed, ""), "xyx")
	equal(t, "position", v.Position("s"), at(t, st, "s", 3))
	equal(t, "after it", show(t, sc, "s", v.Position("s")), "4")
}

func noEphemeralEvents(t *testing.T) {
	// Every event has a number and is kept as long as any other, so there is none that
	// could confuse a count. Ten thousand small events that evict one that matters leave a
	// gap in its place. In a session of their own they evict nothing.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 100})
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 100, MaxPendingEvents: 20_000})
	publish(t, st, "together", 1+10_000)
	publish(t, st, "durable", 1)
	publish(t, st, "progress", 10_000)
	sc.Agent("a", st).Shared = true
	sc.Acked()
	equal(t, "together", show(t, sc, "together", gvstream.Position{}), "gap 1..9901 evicted, 9902..10001")
	equal(t, "apart", show(t, sc, "durable", gvstream.Position{}), "1")
	equal(t, "caught up", hubStats(sc.Hub, "durable").Head, 1)
}

func nothingTwiceOnReconnect(t *testing.T) {
	// A viewer has seen 1 to 100 live. When it connects again, it asks from there
	// and gets nothing.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	sc.Agent("a", st)
	v := newViewer(t, "s", gvstream.Position{})
	w := sc.Viewer("tab", v)
	for range 100 {
		publish(t, st, "s", 1)
		sc.Flow()
	}
	equal(t, "live", read(t, v), "1..100")
	w.Cut()
	w = sc.Viewer("tab", v)
	sc.Flow()
	equal(t, "it asks", say(w.Up...), "hello; watch s 100")
	equal(t, "and is told", say(w.Down...), "welcome; status s 100 acked 100")
	equal(t, "items", read(t, v), "")
}

func replayKeepsIdentity(t *testing.T) {
	// An event is replayed three times, from the hub and from the agent, including to a
	// viewer that was restarted. Session, epoch and number are the same each time, and so
	// is the time: a reader that acts on events can recognize those it has already acted
	// on. Events carry no mark of being replayed; live and replayed ones are equal.
	for _, log := range []int{10, -1} {
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: log})
		st := gvstream.NewStreamer(nil)
		live := newViewer(t, "s", gvstream.Position{})
		sc.Agent("a", st)
		sc.Viewer("live", live)
		sc.Flow()
		_, err := st.Publish(scene.Ended, "s", gvstream.Event{Type: "permission", Data: []byte(`{"id":1}`)})
		noError(t, err)
		sc.Acked()
		identity := func(v *gvstream.Viewer) string {
			items := readItems(t, v)
			equal(t, "items", len(items), 1)
			return fmt.Sprint(items[0].SessionID, items[0].Position(), items[0].Event.Time, items[0].Event.Type, string(items[0].Event.Data))
		}
		want := identity(live)
		for range 3 {
			pass(time.Second)
			v := newViewer(t, "s", gvstream.Position{})
			sc.Viewer("again", v)
			sc.Flow()
			equal(t, "replayed", identity(v), want)
		}
	}
}

func silentHub(t *testing.T) {
	// The connection stays up, but nothing arrives any more. The viewer considers it dead
	// after three missed heartbeats. As long as heartbeats come, they say how far the
	// session is.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 5)
	sc.Agent("a", st)
	v := newViewer(t, "s", gvstream.Position{})
	w := sc.Viewer("tab", v)
	sc.Acked()
	w.Forget()
	sc.Later(31 * time.Second)
	equal(t, "signs of life", say(w.Down...), "status s 5 acked 5; status s 5 acked 5")
	start := time.Now()
	var err error
	for err == nil {
		_, err = w.Near.Next(context.Background())
	}
	equal(t, "the link ended by silence", errors.Is(err, gvstream.ErrSilent), true)
	if wait := time.Since(start); wait > time.Minute || wait < 30*time.Second {
		t.Errorf("after %v", wait)
	}
}
