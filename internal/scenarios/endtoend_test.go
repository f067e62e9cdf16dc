package scenarios_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/streamtest"
)

// TestEndToEnd runs agents, a hub and viewers as goroutines, over connections that
// drop, repeat, reorder and delay payloads and break: every viewer is shown every
// event once and in order.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { endToEnd(t, seed) })
		})
	}
}

func endToEnd(t *testing.T, seed uint64) {
	const events = 200
	// A replay request may be lost several times in a row.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 20, Window: 32, ReplayWait: time.Minute})
	ctx, dial := sc.Context(), faulty(seed)
	var work sync.WaitGroup
	sessions := []string{"s1", "s2", "s3"}
	for i, ids := range [][]string{{"s1", "s2"}, {"s3"}} {
		agent := gvstream.NewStreamer(nil)
		sc.Go(func() {
			stay(ctx, dial, agent.Connect, func() *gvstream.Link { return sc.Hub.ConnectAgent(fmt.Sprint("agent", i)) }, nil)
		})
		work.Go(func() {
			for n := range events {
				for _, id := range ids {
					data := fmt.Appendf(nil, "%q", fmt.Sprint(id, "/", n))
					if _, err := agent.Publish(ctx, id, gvstream.Event{Type: "line", Data: data}); err != nil {
						t.Error(err)
					}
				}
				pass(10 * time.Millisecond)
			}
			for _, id := range ids {
				if _, err := agent.End(ctx, id, gvstream.Event{Type: "exit"}); err != nil {
					t.Error(err)
				}
			}
			if err := agent.Flush(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 3 {
		v := gvstream.NewViewer(nil)
		sc.Go(func() {
			stay(ctx, dial, v.Connect, func() *gvstream.Link { return sc.Hub.ConnectViewer(fmt.Sprint("viewer", i)) }, nil)
		})
		work.Go(func() {
			pass(time.Duration(i) * 700 * time.Millisecond) // the last ones come late
			var seen streamtest.Recorder
			for _, id := range sessions {
				if err := v.Watch(id, gvstream.Position{}); err != nil {
					t.Error(err)
				}
			}
			ended := 0
			for item, err := range v.Items(ctx) {
				if err == nil {
					err = seen.Record(item)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if item.End {
					ended++
				}
				if ended == len(sessions) {
					break
				}
			}
			for _, id := range sessions {
				if got := len(seen.Events(id)); got != events+1 {
					t.Errorf("viewer %d has %d events of %s, and gaps %v", i, got, id, seen.Gaps(id))
				}
			}
		})
	}
	work.Wait()
}
