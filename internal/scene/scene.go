// Package scene is the stage for tests that look at agents, a hub and viewers together,
// through their public methods alone. Tests of one machine, which look inside it, have no
// use for it.
//
// A [Scene] is a hub and connections to it, of two kinds. Over a [Wire] the test carries
// each payload itself, so that it decides what passes, in which order, and what is lost. A
// connection made by [Scene.Join] runs by itself. One scene may have both. Scenes belong in
// testing/synctest bubbles, where hours pass in no time.
package scene

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// Ended is a context that has ended. With it, Next and Items return what is ready and never
// wait.
var Ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// Next returns the next payload that a link has to send now, or nil.
func Next(l *gvstream.Link) gvstream.Payload {
	p, err := l.Next(Ended)
	if err != nil {
		return nil
	}
	return p
}

// Ready returns all that a link has to send now.
func Ready(l *gvstream.Link) (out []gvstream.Payload) {
	for p := Next(l); p != nil; p = Next(l) {
		out = append(out, p)
	}
	return out
}

// Recode returns a payload as it arrives when it is sent as JSON.
func Recode(t *testing.T, p gvstream.Payload) gvstream.Payload {
	t.Helper()
	line, err := gvstream.Marshal(p)
	if err == nil {
		p, err = gvstream.Unmarshal(line)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A Scene is a hub and connections to it.
type Scene struct {
	Hub *gvstream.Hub

	t     *testing.T
	wires []*Wire

	ctx   context.Context // of what runs by itself
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// New makes a scene, which the end of the test closes.
func New(t *testing.T, cfg *gvstream.HubConfig) *Scene {
	sc := &Scene{Hub: gvstream.NewHub(cfg), t: t}
	// A test that waits for what never comes has to end: in a bubble, signs of life would
	// go on forever, and so would the time.
	sc.ctx, sc.stop = context.WithTimeout(context.Background(), time.Hour)
	t.Cleanup(sc.Close)
	return sc
}

// Context ends when the scene is closed, or after an hour.
func (sc *Scene) Context() context.Context { return sc.ctx }

// Go runs f in a goroutine that Close waits for. f has to return when the scene's context
// ends.
func (sc *Scene) Go(f func()) { sc.tasks.Go(f) }

// Join runs a connection between two links until either breaks or the scene is closed.
// If see is not nil, it is called with each payload that near sends.
func (sc *Scene) Join(near, far *gvstream.Link, see func(gvstream.Payload)) {
	a, b := streamtest.Pipe()
	send := a.Send
	if see != nil {
		send = func(ctx context.Context, p gvstream.Payload) error {
			see(p)
			return a.Send(ctx, p)
		}
	}
	sc.Go(func() { far.Run(sc.ctx, b.Send, b.Receive); b.Close() })
	sc.Go(func() { near.Run(sc.ctx, send, a.Receive); a.Close() })
}

// Close ends all that runs by itself, and waits for it.
func (sc *Scene) Close() {
	sc.stop()
	sc.tasks.Wait()
}

// Agent makes the next connection of a Streamer.
func (sc *Scene) Agent(id string, st *gvstream.Streamer) *Wire {
	return sc.wire(st.Connect(), sc.Hub.ConnectAgent(id))
}

// Viewer makes the next connection of a Viewer.
func (sc *Scene) Viewer(id string, v *gvstream.Viewer) *Wire {
	return sc.wire(v.Connect(), sc.Hub.ConnectViewer(id))
}

func (sc *Scene) wire(near, far *gvstream.Link) *Wire {
	w := &Wire{Near: near, Far: far, t: sc.t}
	sc.wires = append(sc.wires, w)
	return w
}

// Flow carries payloads on all wires until no link has any more to send.
func (sc *Scene) Flow() {
	sc.t.Helper()
	for n := 0; sc.Step(); n++ {
		if n == 1_000_000 {
			sc.t.Fatal("they never stop talking")
		}
	}
}

// Step carries at most one payload each way on every wire, and reports whether there
// was any. Asking one link can give an earlier one something to send, so it asks twice.
func (sc *Scene) Step() (moved bool) {
	for range 2 {
		for _, w := range sc.wires {
			moved = w.Step() || moved
		}
		if moved {
			return true
		}
	}
	return false
}

// Later lets time pass, and carries what becomes due meanwhile on all wires.
func (sc *Scene) Later(d time.Duration) {
	sc.t.Helper()
	for d > 0 {
		sc.Flow()
		some := min(d, 5*time.Second)
		<-time.After(some)
		d -= some
	}
	sc.Flow()
}

// Acked lets time pass until the hub has acknowledged what it holds: it may hold an ack back
// for 250 ms (rule 6).
func (sc *Scene) Acked() {
	sc.t.Helper()
	sc.Later(time.Second)
}

// A Wire is a connection of a scene that the test carries payloads over.
type Wire struct {
	Near, Far *gvstream.Link     // an agent's or viewer's end, and the hub's
	Up, Down  []gvstream.Payload // what has passed, to the hub and from it
	Errs      []error            // of Handle, at either end

	// Shared makes payloads pass as they are, as within one process. Otherwise they pass as
	// JSON.
	Shared bool

	// See, if not nil, is called with each payload that passes, instead of keeping it
	// in Up or Down.
	See func(gvstream.Payload)

	t *testing.T
}

// Step carries at most one payload each way, and reports whether there was any.
func (w *Wire) Step() bool {
	up, down := w.StepUp(), w.StepDown()
	return up || down
}

// StepUp carries at most one payload to the hub, and reports whether there was one.
func (w *Wire) StepUp() bool { return w.pass(w.Near, w.Far, &w.Up) }

// StepDown carries at most one payload from the hub, and reports whether there was one.
func (w *Wire) StepDown() bool { return w.pass(w.Far, w.Near, &w.Down) }

// Flow carries payloads until neither end has any more to send.
func (w *Wire) Flow() {
	for w.Step() {
	}
}

// pass carries one payload from a link to the other, if there is one.
func (w *Wire) pass(from, to *gvstream.Link, passed *[]gvstream.Payload) bool {
	p := Next(from)
	if p == nil {
		return false
	}
	if w.See != nil {
		w.See(p)
	} else {
		*passed = append(*passed, p)
	}
	if !w.Shared {
		p = Recode(w.t, p)
	}
	if err := to.Handle(context.Background(), p); err != nil {
		w.Errs = append(w.Errs, err)
	}
	synctest.Wait() // for the hub's callbacks
	return true
}

// Cut breaks the connection: both ends notice.
func (w *Wire) Cut() {
	w.Near.Close()
	w.Far.Close()
}

// Forget empties the record of what passed.
func (w *Wire) Forget() { w.Up, w.Down = nil, nil }
