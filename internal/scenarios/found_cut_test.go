package scenarios_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/slowconn"
)

// cutting runs connections one after the other, each of which breaks after as many bytes from
// the sender as it says, until done. It returns how many it took.
func cutting(t *testing.T, up, down slowconn.Way, most int, near, far func() *gvstream.Link, done func() bool) int {
	t.Helper()
	for n := 0; n < most; n++ {
		if done() {
			return n
		}
		a, b := slowconn.Pipe(up, down)
		var running sync.WaitGroup
		running.Go(func() { near().RunLines(context.Background(), a) })
		running.Go(func() { far().RunLines(context.Background(), b) })
		ended := make(chan struct{})
		go func() { running.Wait(); close(ended) }()
		for over := false; !over && !done(); { // a connection that lives on may be all it takes
			select {
			case <-ended:
				over = true
			case <-time.After(time.Second):
			}
		}
		a.Close()
		b.Close()
		<-ended
		pass(time.Second)
	}
	t.Fatalf("%d connections were not enough", most)
	return most
}

// 2,000 events of 1 KB over connections of 20 KiB/s that live for 10 s: nothing arrived over
// 654 connections, since each batch was larger than what a connection carries. To a viewer,
// 901 events of 80 bytes over 20 KB a connection: nothing over 1,174. A connection that carries
// one event makes progress, and one that carries many carries at least half of its bytes.
func TestFoundF04(t *testing.T) {
	for _, test := range []struct {
		name         string
		events, size int
		carries      int // bytes a connection
		most         int // connections
	}{
		{"ten seconds each", 2000, 1000, 200 << 10, 30},
		{"a few events each", 200, 1000, 4 << 10, 210},
		{"one event each", 30, 1000, 1900, 35},
	} {
		t.Run("agent, "+test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, st := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
				publishSized(t, st, test.events, test.size)
				way := slowconn.Way{BytesPerSecond: 20 << 10, CutAfter: test.carries}
				n := cutting(t, way, slowconn.Way{}, test.most, st.Connect, func() *gvstream.Link { return hub.ConnectAgent("a") },
					func() bool { return accepted(hub, "s") == uint64(test.events) })
				t.Logf("%d connections of %d bytes", n, test.carries)
			})
		})
	}
	for _, test := range []struct {
		name         string
		events, size int
		carries      int
		most         int
	}{
		{"20 KB each", 901, 80, 20_000, 20},
		{"a few events each", 901, 80, 2000, 200},
		{"one event each", 30, 80, 800, 35},
	} {
		t.Run("viewer, "+test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, st, v := gvstream.NewHub(nil), gvstream.NewStreamer(nil), newViewer(t, "s", gvstream.Position{})
				publishSized(t, st, test.events, test.size)
				cutting(t, slowconn.Way{}, slowconn.Way{}, 2, st.Connect, func() *gvstream.Link { return hub.ConnectAgent("a") },
					func() bool { return accepted(hub, "s") == uint64(test.events) })
				got := 0
				n := cutting(t, slowconn.Way{}, slowconn.Way{CutAfter: test.carries}, test.most, v.Connect, func() *gvstream.Link { return hub.ConnectViewer("v") },
					func() bool {
						for _, it := range readItems(t, v) {
							if it.Event != nil {
								got++
								equal(t, "number", it.Event.Seq, uint64(got))
							}
						}
						return got == test.events
					})
				t.Logf("%d connections of %d bytes", n, test.carries)
			})
		})
	}
}

// A viewer that begins with the first event, of which the hub holds only the last five, over an
// agent's connections that each carry a few events: a replay batch of 16 KiB never arrived, however
// often it was asked for. After a connection that brought nothing the hub asks for less.
func TestFoundF04Replay(t *testing.T) {
	const events, size = 100, 250
	for name, carries := range map[string]int{"a few events each": 2000, "one event each": 900} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, st := gvstream.NewHub(&gvstream.HubConfig{LogEvents: 5}), gvstream.NewStreamer(nil)
				publishSized(t, st, events, size)
				agent := func() *gvstream.Link { return hub.ConnectAgent("a") }
				cutting(t, slowconn.Way{}, slowconn.Way{}, 2, st.Connect, agent, func() bool { return accepted(hub, "s") == events })
				v := newViewer(t, "s", gvstream.Position{})
				ctx, cancel := context.WithCancel(t.Context())
				defer pass(time.Second)
				defer cancel()
				near, far := slowconn.Pipe(slowconn.Way{}, slowconn.Way{})
				go v.Connect().RunLines(ctx, near)
				go hub.ConnectViewer("v").RunLines(ctx, far)
				got := uint64(0)
				n := cutting(t, slowconn.Way{CutAfter: carries}, slowconn.Way{}, events+5, st.Connect, agent, func() bool {
					for _, it := range readItems(t, v) {
						if got++; it.Event == nil || it.Seq != got {
							t.Fatalf("%v, want event %d", it, got)
						}
					}
					return got == events
				})
				t.Logf("%d connections of %d bytes", n, carries)
			})
		})
	}
}

// publishSized publishes events whose JSON has about that many bytes.
func publishSized(t *testing.T, st *gvstream.Streamer, n, size int) {
	t.Helper()
	for range n {
		_, err := st.Publish(t.Context(), "s", gvstream.Event{Data: append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, size-60)...), '"')})
		noError(t, err)
	}
}
