package scenarios_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
)

// An Item that went through JSON, as a Commit that stores its items makes it do, was at
// number 0. Now the item that is read again is at the position of the first one, whatever
// it is, and a reader that goes on from there misses nothing and gets nothing twice.
func TestFoundF24(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, nil)
		v := newViewer(t, "s", gvstream.Position{})
		sc.Viewer("viewer", v)
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: 3})
		publish(t, st, "s", 5)
		w := sc.Agent("agent", st)
		sc.Acked()
		w.Cut()
		st = gvstream.NewStreamer(nil) // the agent restarts
		sc.Agent("agent", st)
		publish(t, st, "s", 1)
		_, err := st.End(sc.Context(), "s", event(2))
		noError(t, err)
		sc.Acked()

		items := readItems(t, v)
		equal(t, "items", tell(items), "gap 1..2 dropped, 3..5, reset from 5 of 5, 1..2, end")
		for _, it := range items {
			body, err := json.Marshal(it)
			noError(t, err)
			var back gvstream.Item
			noError(t, json.Unmarshal(body, &back))
			equal(t, string(body), back.Position(), it.Position())
		}
	})
}
