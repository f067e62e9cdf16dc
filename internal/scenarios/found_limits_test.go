package scenarios_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
)

// A viewer that is connected and reads at full speed lost half of a burst of 2,000 short lines, though
// the hub held 181 KB of the 8 MiB that it may: the count of events bound long before their bytes.
func TestFoundF15(t *testing.T) {
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
func TestFoundF16(t *testing.T) {
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
