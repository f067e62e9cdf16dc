package load_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// 10,000 viewers of one session by Run, with all their goroutines: each reads every
// event once and in order, and when they are gone, so are all goroutines.
func TestLoadRun(t *testing.T) {
	n := size(10_000, 25)
	const events = 200
	m := meter{t, time.Now}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	agent, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	var runs, readers sync.WaitGroup
	connect := func(near, far *gvstream.Link) {
		a, b := streamtest.Pipe()
		runs.Go(func() { wantCanceled(t, near.Run(ctx, a.Send, a.Receive)) })
		runs.Go(func() { wantCanceled(t, far.Run(ctx, b.Send, b.Receive)) })
	}
	connect(agent.Connect(), hub.ConnectAgent("agent"))
	publish := func() {
		for range events / 2 {
			_, err := agent.Publish(ctx, "s", gvstream.Event{})
			noError(t, err)
		}
	}
	publish()

	var there sync.WaitGroup // until all have read the first half
	m.measure("a viewer comes, and reads 100 events", n, func() {
		for i := range n {
			v := gvstream.NewViewer(nil)
			noError(t, v.Watch("s", gvstream.Position{}))
			connect(v.Connect(), hub.ConnectViewer(fmt.Sprint("viewer-", i)))
			there.Add(1)
			readers.Go(func() {
				half := sync.OnceFunc(there.Done)
				defer half()
				readAll(t, ctx, v, events+1, func(seq uint64) {
					if seq == events/2 {
						half()
					}
				})
			})
		}
		there.Wait()
	})
	m.measure("read 100 more, and the end, one by one", n, func() {
		publish()
		_, err := agent.End(ctx, "s", gvstream.Event{})
		noError(t, err)
		readers.Wait()
	})
	noError(t, agent.Close(ctx))
	cancel()
	runs.Wait()
	for range 1000 { // a goroutine that is done may be about to return
		if runtime.NumGoroutine() <= before {
			break
		}
		<-time.After(time.Millisecond)
	}
	if left := runtime.NumGoroutine(); left > before {
		t.Errorf("%d goroutines are left, of %d before", left, before)
	}
	if st := hub.Stats(); st.Agents != 0 || st.Viewers != 0 {
		t.Errorf("%d agents and %d viewers are left", st.Agents, st.Viewers)
	}
}

// readAll wants the events of a session up to the number last, which is its end.
func readAll(t *testing.T, ctx context.Context, v *gvstream.Viewer, last uint64, at func(seq uint64)) {
	var rec streamtest.Recorder
	for it, err := range v.Items(ctx) {
		if err == nil {
			err = rec.Record(it)
		}
		if err != nil || it.Gap != nil || it.Reset != nil {
			t.Errorf("%+v, %v", it, err)
			return
		}
		if it.End {
			break
		}
		at(it.Event.Seq)
	}
	if pos := rec.Position("s"); pos.Seq != last {
		t.Errorf("a viewer read up to %d, want %d", pos.Seq, last)
	}
}

func wantCanceled(t *testing.T, err error) {
	if !errors.Is(err, context.Canceled) && !errors.Is(err, gvstream.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}
