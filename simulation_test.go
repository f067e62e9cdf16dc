package gvstream

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestSimulation runs the machines through seeded schedules. GVSTREAM_SIM_RUNS=n
// runs n of them, and GVSTREAM_SIM_SEED=s runs one again and tells it.
func TestSimulation(t *testing.T) {
	t.Parallel()
	runs := 500
	if n, err := strconv.Atoi(os.Getenv("GVSTREAM_SIM_RUNS")); err == nil {
		runs = n
	}
	if seed, err := strconv.ParseUint(os.Getenv("GVSTREAM_SIM_SEED"), 10, 64); err == nil {
		w, err := runSchedule(seeded(seed), simSteps, true)
		t.Logf("%s", strings.Join(w.trace, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	var next atomic.Uint64
	var workers errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() error {
			for seed := next.Add(1) - 1; seed < uint64(runs); seed = next.Add(1) - 1 {
				if _, err := runSchedule(seeded(seed), simSteps, false); err != nil {
					return fmt.Errorf("seed %d: %w\nGVSTREAM_SIM_SEED=%d go test -v -run 'TestSimulation$' tells how", seed, err, seed)
				}
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		t.Fatal(err)
	}
}
