package scenarios_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
)

// A viewer that is connected and reads at full speed lost half of a burst of 2,000 short lines, though
// the hub held 181 KB of the 8 MiB that it may: the count of events bound long before their bytes.
func foundF15(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lines = 20_000
		sc := scene.New(t, nil)
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxPendingEvents: lines})
		v := newViewer(t, "s", gvstream.Position{})
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), nil)
		sc.Join(v.Connect(), sc.Hub.ConnectViewer("tab"), nil)
		pass(time.Second)
		publish(t, st, "s", lines)
		events := 0
		for it, err := range v.Items(sc.Context()) {
			noError(t, err)
			if it.Gap != nil {
				t.Fatalf("lost %d to %d: %s", it.Gap.From, it.Gap.To, it.Gap.Reason)
			}
			if events++; events == lines {
				break
			}
		}
		sc.Close()
	})
}

// Ended sessions counted 10 minutes against their agent and 70 against the hub, and forgotten ones
// until the link was lost: 17 short sessions a second filled an agent's limit for good.
func foundF16(t *testing.T) {
	// Where room is needed, the one that ended the longest time ago goes, and no other.
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, &gvstream.HubConfig{MaxSessions: 4})
		st := gvstream.NewStreamer(nil)
		sc.Agent("agent", st)
		publish(t, st, "alive", 1)
		for _, id := range []string{"third", "first", "second"} { // not in the order in which they end
			publish(t, st, id, 1)
		}
		for _, id := range []string{"first", "second", "third"} {
			_, err := st.End(t.Context(), id, event(2))
			noError(t, err)
			sc.Acked()
		}
		for i, want := range []string{"alive new0 second third", "alive new0 new1 third", "alive new0 new1 new2", "alive new0 new1 new2"} {
			publish(t, st, fmt.Sprint("new", i), 1)
			sc.Acked()
			var ids []string
			for s := range sc.Hub.Sessions() {
				ids = append(ids, s.SessionID)
			}
			equal(t, "sessions", strings.Join(ids, " "), want)
		}
	})

	// What was forgotten while its agent was away is told to the hub when that is back.
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, &gvstream.HubConfig{MaxAgentSessions: 2})
		st := gvstream.NewStreamer(nil)
		w := sc.Agent("agent", st)
		publish(t, st, "a", 1)
		publish(t, st, "b", 1)
		sc.Acked()
		w.Cut()
		st.Forget("a")
		st.Forget("b")
		publish(t, st, "c", 1)
		publish(t, st, "d", 1)
		w = sc.Agent("agent", st)
		sc.Acked()
		equal(t, "refused", refusals(w.Down), "")
		equal(t, "c at the hub", accepted(sc.Hub, "c"), 1)
		equal(t, "d at the hub", accepted(sc.Hub, "d"), 1)
	})

	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, &gvstream.HubConfig{MaxSessions: 10, MaxAgentSessions: 5})
		st := gvstream.NewStreamer(nil)
		w := sc.Agent("agent", st)
		publish(t, st, "alive", 1)
		for i := range 500 {
			short, dropped := fmt.Sprint("short", i), fmt.Sprint("dropped", i)
			_, err := st.End(t.Context(), short, event(1))
			noError(t, err)
			publish(t, st, dropped, 1)
			sc.Flow()
			st.Forget(dropped)
			sc.Flow()
		}
		sc.Acked()
		equal(t, "refused", refusals(w.Down), "")
		equal(t, "pending", st.Stats().PendingEvents, 0)
		equal(t, "the living one at the hub", accepted(sc.Hub, "alive"), 1)
		if n := sc.Hub.Stats().Sessions; n > 10 {
			t.Errorf("the hub has %d sessions", n)
		}
	})
}
