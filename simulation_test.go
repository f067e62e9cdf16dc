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
	w.settle()
	return w
}

func (w *simWorld) recoverPanic() {
	if r := recover(); r != nil {
		stack := strings.Split(string(debug.Stack()), "\n")
		w.fail("panic: %v\n%s", r, strings.Join(stack[min(7, len(stack)):min(15, len(stack))], "\n"))
	}
}

// TestSimulation runs the machines through seeded schedules. GVSTREAM_SIM_RUNS=n
// runs n of them, GVSTREAM_SIM_SEED_FROM=s begins at seed s, and GVSTREAM_SIM_SEED=s
// runs one again and tells it.
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

// tellShrunk tells the shortest conversation that fails as a seed's does.
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
