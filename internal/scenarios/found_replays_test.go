package scenarios_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/testenv"
)

// firstItems reads a viewer's items until the scene is closed, and notes when the first of each
// session came, and the last number of each.
type firstItems struct {
	mu    sync.Mutex
	first map[string]time.Time
	at    map[string]uint64
	lost  map[string]gvstream.Gap // the last gap
}

func readFirst(sc *scene.Scene, v *gvstream.Viewer) *firstItems {
	r := &firstItems{first: make(map[string]time.Time), at: make(map[string]uint64), lost: make(map[string]gvstream.Gap)}
	sc.Go(func() {
		for it, err := range v.Items(sc.Context()) {
			if err != nil {
				return
			}
			r.mu.Lock()
			if r.first[it.SessionID].IsZero() {
				r.first[it.SessionID] = time.Now()
			}
			r.at[it.SessionID] = it.Position().Seq
			if it.Gap != nil {
				r.lost[it.SessionID] = *it.Gap
			}
			r.mu.Unlock()
		}
	})
	return r
}

// of returns where the reader is in a session, when its first item came and what it lost last.
func (r *firstItems) of(id string) (seq uint64, first time.Time, lost gvstream.Gap) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at[id], r.first[id], r.lost[id]
}

// An agent that was connected and answered no replay kept a viewer from the history and from the
// live events of its session for ever, and took turns at replays from the viewer's other
// sessions. Its silence ends in a gap, as an agent's absence does, and delays nobody.
func foundF06(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: 100})
		mute := callAgent(t, sc.Hub, "mute")
		const sessions = 99
		v := gvstream.NewViewer(nil)
		for i := range sessions {
			id := fmt.Sprintf("mute-%02d", i)
			noError(t, mute.batch(id, epoch1, to(1, 200)...))
			noError(t, v.Watch(id, gvstream.Position{}))
		}
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 5000})
		publish(t, st, "good", 2500)
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("good"), nil)
		noError(t, v.Watch("good", gvstream.Position{}))
		pass(time.Second)

		start := time.Now()
		r := readFirst(sc, v)
		sc.Join(v.Connect(), sc.Hub.ConnectViewer("tab"), nil)
		pass(time.Second)
		if seq, _, _ := r.of("good"); seq != 2500 {
			t.Errorf("beside %d sessions of a mute agent the viewer has %d of 2500 events after a second", sessions, seq)
		}
		for time.Since(start) < 30*time.Second { // the agent lives, and goes on with its sessions
			pass(time.Second)
			for _, p := range scene.Ready(mute.link) {
				if r, ok := p.(*gvstream.ReplayRequestPayload); ok && r.ViewerID != "tab" {
					t.Errorf("asked for %q", r.ViewerID)
				}
			}
			noError(t, mute.link.Handle(t.Context(), &gvstream.StatusPayload{Link: mute.name}))
		}
		for i := range sessions {
			seq, first, lost := r.of(fmt.Sprintf("mute-%02d", i))
			if after := first.Sub(start); seq != 200 || lost != (gvstream.Gap{From: 1, To: 100, Reason: gvstream.ReasonUnavailable}) || after > 15*time.Second {
				t.Fatalf("session %d: the viewer is at %d after %v, and lost %v", i, seq, after, lost)
			}
		}
		noError(t, mute.batch("mute-00", epoch1, 201))
		if seq, _, _ := r.of("mute-00"); seq != 201 {
			t.Errorf("live: the viewer is at %d", seq)
		}

		// What is known of the agent spares the next viewer the wait.
		later := gvstream.NewViewer(nil)
		noError(t, later.Watch("mute-01", gvstream.Position{}))
		r = readFirst(sc, later)
		sc.Join(later.Connect(), sc.Hub.ConnectViewer("later"), nil)
		if seq, _, _ := r.of("mute-01"); seq != 200 {
			t.Errorf("a later viewer is at %d at once", seq)
		}
		sc.Close()
	})
}

// When a viewer left in the middle of a replay, the hub passed its turn on while the agent still
// answered, the agent was busy, and the hub waited for a timer of 15 s that doubled.
func foundF07(t *testing.T) {
	// Nine viewers of one session read different parts of it from the agent, which answers
	// eight at a time, and one of the eight leaves after its first page.
	t.Run("one of nine leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, &gvstream.HubConfig{LogEvents: 100})
			st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 10_000})
			publish(t, st, "s", 6000)
			agent := sc.Agent("agent", st)
			sc.Acked()
			var tabs []*scene.Wire
			var vs []*gvstream.Viewer
			for i := range 9 {
				v := newViewer(t, "s", at(t, st, "s", uint64(600*i)))
				vs = append(vs, v)
				tabs = append(tabs, sc.Viewer(fmt.Sprint("tab-", i), v))
			}
			for _, w := range tabs {
				w.Flow() // they watch, and the hub has requests for eight
			}
			for range 8 {
				agent.StepDown()
			}
			for range 8 {
				agent.StepUp() // a page of each
			}
			for _, w := range tabs[:8] {
				w.Flow()
			}
			if got := read(t, vs[0]); got == "" {
				t.Fatal("the first viewer has got no page")
			}
			tabs[0].Cut()
			for range 11 {
				sc.Later(100 * time.Millisecond)
			}
			if got := read(t, vs[8]); !strings.HasPrefix(got, "4801..") {
				t.Errorf("the ninth viewer has %q after 1.1 s", got)
			}
			for _, p := range agent.Up {
				if e, ok := p.(*gvstream.ErrorPayload); ok {
					t.Errorf("the agent says %v", e)
				}
			}
		})
	})

	// Viewers that come late to one session get the same events of it: the agent sends them
	// about once, not once for each viewer.
	t.Run("late viewers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const events = 1000
			viewers := testenv.Fewer(500)
			sc := scene.New(t, &gvstream.HubConfig{LogEvents: 10})
			st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: events})
			data, err := json.Marshal(strings.Repeat("x", 1000))
			noError(t, err)
			for range events {
				_, err := st.Publish(t.Context(), "s", gvstream.Event{Data: data})
				noError(t, err)
			}
			var mu sync.Mutex
			sent := 0
			sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), func(p gvstream.Payload) {
				if b, ok := p.(*gvstream.ReplayBatchPayload); ok {
					mu.Lock()
					defer mu.Unlock()
					for _, e := range b.Events {
						sent += len(e.Data)
					}
				}
			})
			pass(time.Second)
			readers := make([]*firstItems, viewers)
			for i := range readers {
				v := gvstream.NewViewer(nil)
				noError(t, v.Watch("s", gvstream.Position{}))
				readers[i] = readFirst(sc, v)
				sc.Join(v.Connect(), sc.Hub.ConnectViewer(fmt.Sprint("tab-", i)), nil)
			}
			pass(5 * time.Second)
			for i, r := range readers {
				if seq, _, lost := r.of("s"); seq != events || lost.To != 0 {
					t.Fatalf("viewer %d is at %d, and lost %v", i, seq, lost)
				}
			}
			sc.Close()
			t.Logf("%d viewers read %d KB each, and the agent sent %d KB", viewers, events, sent/1000)
			if sent > 2*events*1000 {
				t.Errorf("the agent sent %d KB, want %d at most", sent/1000, 2*events)
			}
		})
	})

	// Each viewer resumes at some place, takes one batch and leaves.
	t.Run("one batch each", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const events = 20_000
			viewers := testenv.Fewer(1000)
			sc := scene.New(t, &gvstream.HubConfig{LogEvents: 100})
			st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: events, MaxPendingEvents: events})
			publish(t, st, "s", events)
			sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), nil)
			pass(time.Second)
			start := time.Now()
			var mu sync.Mutex
			var worst time.Duration
			got := 0
			for i := range viewers {
				v := newViewer(t, "s", at(t, st, "s", uint64(i*7919%(events-1000))))
				sc.Go(func() {
					ctx, leave := context.WithCancel(sc.Context())
					defer leave()
					l := v.Connect()
					sc.Join(l, sc.Hub.ConnectViewer(fmt.Sprint("tab-", i)), nil)
					for range v.Items(ctx) {
						break
					}
					l.Close()
					mu.Lock()
					defer mu.Unlock()
					got++
					worst = max(worst, time.Since(start))
				})
			}
			pass(20 * time.Minute)
			mu.Lock()
			defer mu.Unlock()
			t.Logf("%d of %d got their batch, the last after %v", got, viewers, worst)
			if got != viewers || worst > 1500*time.Millisecond {
				t.Errorf("%d of %d got their batch, the last after %v", got, viewers, worst)
			}
			sc.Close()
		})
	})
}
