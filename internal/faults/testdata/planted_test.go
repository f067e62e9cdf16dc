package gvstream

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestPlanted runs schedules with the fault GVSTREAM_FAULT awake until one breaks the
// invariant GVSTREAM_BREAKS, GVSTREAM_WITHIN of them at most. A panic, or another
// check that fails first, counts for nothing. Without an invariant to break, all of
// them have to pass.
func TestPlanted(t *testing.T) {
	breaks := os.Getenv("GVSTREAM_BREAKS")
	within, err := strconv.ParseUint(os.Getenv("GVSTREAM_WITHIN"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	awake = os.Getenv("GVSTREAM_FAULT")
	for seed := range within {
		w := runSchedule(newSeeded(seed, simSteps), false)
		switch {
		case w.err != nil && breaks == "":
			t.Fatalf("seed %d: %v", seed, w.err)
		case w.err != nil && w.broken() == breaks:
			t.Logf("schedule %d: %v", seed+1, w.err)
			return
		}
	}
	if breaks != "" {
		t.Errorf("%d schedules don't see %s broken", within, breaks)
	}
}

// broken is the invariant that was violated; when one payload was lost (L5), what it
// led to.
func (w *simWorld) broken() string {
	return invariantOf(errors.New(strings.TrimPrefix(w.err.Error(), "L5: ")))
}

// TestPlantedShrinks: what one seed found is found again from its recorded choices, and
// shrunk to a schedule of a few steps that finds the same.
func TestPlantedShrinks(t *testing.T) {
	awake = "skipKnown"
	seed := uint64(0)
	for runSchedule(newSeeded(seed, simSteps), false).err == nil {
		if seed++; seed > 1000 {
			t.Fatal("finds nothing")
		}
	}
	rec := newRecorder(newSeeded(seed, simSteps))
	first := runSchedule(rec, true)
	again := runSchedule(newReplayer(rec.schedule()), true)
	if first.story() != again.story() {
		t.Fatalf("recorded:\n%s\nreplayed:\n%s", first.story(), again.story())
	}
	s := shrinkSeed(seed)
	w := runSchedule(newReplayer(s), true)
	if w.err == nil || invariantOf(w.err) != invariantOf(first.err) {
		t.Fatalf("shrunk from %v to %v", first.err, w.err)
	}
	if len(s) > 40 {
		t.Errorf("shrunk from %d steps to %d:\n%s", len(rec.schedule())-2, len(s)-2, w.story())
	}
}
