package gvstream

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vibetools/gvstream/internal/testenv"
	"golang.org/x/sync/errgroup"
)

// simSteps is how many steps a schedule has.
const simSteps = 500

// runSchedule runs a world through one schedule; its err is the first violation. A
// panic is one.
func runSchedule(src source, verbose bool) (w *simWorld) {
	w = emptyWorld(src)
	w.verbose = verbose
	defer w.recoverPanic()
	w.begin()
	for src.next() {
		w.step()
		if w.err != nil {
			return w
		}
	}
	w.quiesce()
	return w
}

func (w *simWorld) recoverPanic() {
	if r := recover(); r != nil {
		stack := strings.Split(string(debug.Stack()), "\n")
		w.fail("panic: %v\n%s", r, strings.Join(stack[min(7, len(stack)):min(15, len(stack))], "\n"))
	}
}

// TestSimulation runs the machines through seeded schedules. GVSTREAM_SIM_RUNS=n runs n
// of them, GVSTREAM_SIM_SEED_FROM=s begins at seed s, and GVSTREAM_SIM_SEED=s runs one
// again and prints it.
func TestSimulation(t *testing.T) {
	t.Parallel()
	if seed, ok := simEnv("GVSTREAM_SIM_SEED"); ok {
		w := runSchedule(newSeeded(seed, simSteps), true)
		t.Logf("%s", w.story())
		if w.err != nil {
			t.Fatal(w.err)
		}
		return
	}
	runs := uint64(2000)
	if testenv.RaceEnabled { // it has one goroutine, so the detector only makes it slow
		runs = 40
	}
	if n, ok := simEnv("GVSTREAM_SIM_RUNS"); ok {
		runs = n
	}
	from, _ := simEnv("GVSTREAM_SIM_SEED_FROM")
	var done, steps atomic.Uint64
	var workers errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			for i := done.Add(1) - 1; i < runs; i = done.Add(1) - 1 {
				w := runSchedule(newSeeded(from+i, simSteps), false)
				steps.Add(uint64(w.steps))
				if w.err != nil {
					done.Store(runs)
					return fmt.Errorf("seed %d: %w", from+i, errors.Join(w.err, tellShrunk(from+i)))
				}
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d schedules from seed %d, %d steps", runs, from, steps.Load())
}

// simEnv is a number from the environment, if there is one.
func simEnv(name string) (uint64, bool) {
	n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
	return n, err == nil
}

// shrinkTries bounds how long a failing schedule is shrunk: a few seconds.
const shrinkTries = 4000

// shrinkSeed makes the failing schedule of a seed short.
func shrinkSeed(seed uint64) schedule {
	rec := newRecorder(newSeeded(seed, simSteps))
	w := runSchedule(rec, false)
	return shrink(rec.schedule(), shrinkTries, func(s schedule) bool {
		again := runSchedule(newReplayer(s), false)
		return again.err != nil && invariantOf(again.err) == invariantOf(w.err)
	})
}

// invariantOf is the name that a violation begins with.
func invariantOf(err error) string {
	name, _, _ := strings.Cut(err.Error(), ":")
	return name
}

// tellShrunk prints the shortest conversation that fails in the same way as a seed's.
func tellShrunk(seed uint64) error {
	s := shrinkSeed(seed)
	w := runSchedule(newReplayer(s), true)
	return fmt.Errorf("GVSTREAM_SIM_SEED=%d go test -v -run 'TestSimulation$' . tells all of it. Shrunk:\n%s\nAs a file for testdata/simulation:\n%s",
		seed, w.shortStory(), s)
}

// TestSimulationSchedules runs the schedules that once showed a fault, which are
// committed below testdata/simulation. They show it no longer.
func TestSimulationSchedules(t *testing.T) {
	names, err := filepath.Glob("testdata/simulation/*.txt")
	if err != nil || len(names) == 0 {
		t.Fatalf("no schedules: %v", err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			s, err := readSchedule(name)
			if err != nil {
				t.Fatal(err)
			}
			if w := runSchedule(newReplayer(s), true); w.err != nil {
				t.Fatalf("%s\n%v", w.story(), w.err)
			}
		})
	}
}

// FuzzSimulation takes the choices from bytes.
func FuzzSimulation(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(simBytes(seed, 600))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w := runSchedule(&byteSource{data[:min(len(data), 4000)]}, false)
		if w.err != nil {
			t.Fatal(w.err)
		}
	})
}

// simBytes are bytes that make a schedule.
func simBytes(seed uint64, n int) []byte {
	src, out := newSeeded(seed, 0), make([]byte, n)
	for i := range out {
		out[i] = byte(src.choose(256))
	}
	return out
}

// TestSimulationSmall runs every schedule of the small world, up to a depth.
// GVSTREAM_SIM_DEPTH=n goes as deep as you say.
func TestSimulationSmall(t *testing.T) {
	t.Parallel()
	depth := 3
	if testenv.RaceEnabled {
		depth = 2
	}
	if n, ok := simEnv("GVSTREAM_SIM_DEPTH"); ok {
		depth = int(n)
	}
	start := time.Now()
	var schedules atomic.Uint64
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for first := range len(smallWorlds) * len(smallSteps) {
		workers.Go(func() error {
			return everySchedule(first/len(smallSteps), first%len(smallSteps), depth, &schedules)
		})
	}
	if err := workers.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("all %d schedules of up to %d steps, in %v", schedules.Load(), depth, time.Since(start).Round(time.Second/10))
}

// The small world: one agent with one session, a hub and one viewer, with limits of
// a few events, connected and at rest. Every schedule of a few steps is run.

// A smallWorld is one configuration of it.
type smallWorld struct {
	overflow Overflow
	durable  bool
}

var smallWorlds = []smallWorld{{Block, false}, {DropOldest, true}}

// smallSteps are the possible steps. A step that can't happen reports false: the steps
// after it are covered by a shorter schedule.
var smallSteps = []func(w *simWorld) bool{
	func(w *simWorld) bool { return w.smallPublish() },
	func(w *simWorld) bool { return w.smallMove(w.agents[0].wire, true) },
	func(w *simWorld) bool { return w.smallMove(w.agents[0].wire, false) },
	func(w *simWorld) bool { return w.smallMove(w.viewers[0].wire, false) },
	func(w *simWorld) bool { return w.smallMove(w.viewers[0].wire, true) },
	func(w *simWorld) bool { return w.smallLose(w.agents[0].wire, true) },
	func(w *simWorld) bool { return w.smallLose(w.agents[0].wire, false) },
	func(w *simWorld) bool { return w.smallLose(w.viewers[0].wire, false) },
	func(w *simWorld) bool { // it is on its way when the connection breaks
		x := w.agents[0].wire
		return len(x.hub.inbox) < 2 && w.send(x, &x.peer, &x.hub)
	},
	func(w *simWorld) bool { return w.smallAgain(&w.agents[0].wire.hub) },
	func(w *simWorld) bool { return w.smallAgain(&w.agents[0].wire.peer) },
	func(w *simWorld) bool { return w.smallAgain(&w.viewers[0].wire.peer) },
	func(w *simWorld) bool {
		w.say("the agent's connection breaks")
		w.breakWire(w.agents[0].wire)
		return w.smallConnect()
	},
	func(w *simWorld) bool {
		w.say("the viewer's connection breaks")
		w.breakWire(w.viewers[0].wire)
		return w.smallConnect()
	},
	func(w *simWorld) bool {
		w.say("the agent restarts")
		w.now = w.now.Add(time.Millisecond)
		w.startAgent(w.agents[0])
		w.smallConnect()
		return w.smallPublish()
	},
	func(w *simWorld) bool {
		w.say("the hub restarts")
		w.losable, w.backward = true, true
		w.breakWire(w.agents[0].wire)
		w.breakWire(w.viewers[0].wire)
		w.startHub()
		return w.smallConnect()
	},
	func(w *simWorld) bool {
		w.say("16 s pass")
		w.now = w.now.Add(16 * time.Second)
		return true
	},
	func(w *simWorld) bool {
		w.say("the store goes down")
		was := w.commitDown
		w.commitDown = true
		return !was
	},
}

// beginSmall starts all machines and lets them come to rest.
func (w *simWorld) beginSmall(c smallWorld) {
	w.plain = true
	w.agentCfg = StreamerConfig{Overflow: c.overflow, MaxPendingEvents: 2, ReplayEvents: 2}
	w.sizes = sizes{batchBytes: pageBytes, batch: 2, first: maxBatchBytes, page: 1, replay: 2, cohort: 2}
	w.hubCfg = HubConfig{Commit: w.commit, LogEvents: 1, Window: 2, ReplayWait: time.Second}
	if w.durable = c.durable; c.durable {
		w.hubCfg.Resume = w.resume
	}
	w.viewerCfg = ViewerConfig{Window: 4}
	w.startHub()
	a, v := &simAgent{id: "agent0", ids: simIDs[:1]}, &simViewer{id: "viewer0"}
	w.agents, w.viewers = []*simAgent{a}, []*simViewer{v}
	w.startAgent(a)
	v.v, v.seen = NewViewer(&w.viewerCfg), make(map[string]*simReader)
	w.watch(v, simIDs[0], nil, false)
	w.smallConnect()
	for range 2 {
		w.smallPublish()
		w.drain(nil)
		w.now = w.now.Add(time.Second)
		w.drain(nil)
	}
	w.smallPublish()
}

func (w *simWorld) smallPublish() bool {
	before := w.serial
	w.publish(w.agents[0], simIDs[0], 1)
	s := w.agents[0].st.sessions[simIDs[0]]
	return s != nil && w.serial > before && len(w.blocked) == 0
}

// smallConnect connects an agent or viewer that is not connected, and has the hub send
// its welcome.
func (w *simWorld) smallConnect() bool {
	if a := w.agents[0]; broken(a.wire) {
		w.connectAgent(a)
		w.greet(a.wire)
	}
	if v := w.viewers[0]; broken(v.wire) {
		w.connectViewer(v)
		w.greet(v.wire)
	}
	return true
}

func (w *simWorld) greet(x *simWire) {
	w.send(x, &x.peer, &x.hub)
	w.receive(x, &x.hub)
	w.send(x, &x.hub, &x.peer)
	w.receive(x, &x.peer)
}

// smallMove moves one payload over a wire, up to the hub or down from it.
func (w *simWorld) smallMove(x *simWire, up bool) bool {
	from, to := &x.hub, &x.peer
	if up {
		from, to = to, from
	}
	if len(to.inbox) == 0 && !w.send(x, from, to) {
		return false
	}
	w.receive(x, to)
	w.read(w.viewers[0], false)
	return true
}

// smallLose has one payload be sent, and get lost.
func (w *simWorld) smallLose(x *simWire, up bool) bool {
	from, to := &x.hub, &x.peer
	if up {
		from, to = to, from
	}
	n := len(to.inbox)
	if !w.send(x, from, to) {
		return false
	}
	if len(to.inbox) > n {
		w.tell("lost: %s to %s", to.inbox[n], to)
		to.inbox = to.inbox[:n]
	}
	return true
}

// smallAgain delivers the last payload once more, maybe on a later connection.
func (w *simWorld) smallAgain(to *simEnd) bool {
	old := w.ghosts[to.name]
	if len(old) == 0 || to.dead {
		return false
	}
	w.tell("again: %s to %s", old[len(old)-1], to)
	for _, x := range w.wires {
		if to == &x.peer || to == &x.hub {
			w.handle(x, to, old[len(old)-1])
		}
	}
	return true
}

// runSmall runs one schedule of the small world. It reports false for one that has
// a step which can't happen.
func runSmall(src source, c smallWorld, verbose bool) (w *simWorld, whole bool) {
	w = emptyWorld(src)
	w.verbose = verbose
	defer w.recoverPanic()
	w.beginSmall(c)
	for src.next() {
		w.steps++
		if !smallSteps[w.choose(len(smallSteps))](w) {
			return w, w.err != nil
		}
		w.retryBlocked()
		if w.check(); w.err != nil {
			return w, true
		}
	}
	w.quiesce()
	return w, true
}

// everySchedule runs all schedules up to a depth that begin with one step.
func everySchedule(world, first, depth int, count *atomic.Uint64) error {
	for d := 1; d <= depth; d++ {
		e := &enumerator{depth: d, path: []int{first}, of: []int{len(smallSteps)}, prefix: 1}
		for more := true; more; more = e.advance() {
			w, whole := runSmall(e, smallWorlds[world], false)
			if w.err != nil {
				e.at, e.steps = 0, 0
				w, _ = runSmall(e, smallWorlds[world], true)
				return fmt.Errorf("%w\n%s", w.err, w.story())
			}
			if whole {
				count.Add(1)
			}
		}
	}
	return nil
}
