package gvstream

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// ringNumbers are the numbers in the ring, front first.
func ringNumbers(r *ring) []uint64 {
	out := []uint64{}
	for i := range r.n {
		out = append(out, r.at(i).from)
	}
	return out
}

// TestRing does the same things to a ring and to a slice.
func TestRing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var r ring
		model := []uint64{}
		grow := 2 + rnd.IntN(6) // of ten steps, so many add: some rings stay small
		for step := range uint64(300) {
			n := step + 1
			switch c := rnd.IntN(10); {
			case c < grow && rnd.IntN(3) == 0:
				r.pushFront(entry{from: n, json: []byte("x")})
				model = append([]uint64{n}, model...)
			case c < grow:
				r.pushBack(entry{from: n, json: []byte("x")})
				model = append(model, n)
			case len(model) == 0:
			case rnd.IntN(2) == 0:
				r.popFront()
				model = model[1:]
			default:
				i := rnd.IntN(len(model))
				r.remove(i)
				model = append(model[:i:i], model[i+1:]...)
			}
			if got := ringNumbers(&r); !slices.Equal(got, model) {
				t.Fatalf("seed %d, step %d: %v, want %v", seed, step, got, model)
			}
			if held := ringHolds(&r); held != r.n {
				t.Fatalf("seed %d, step %d: %d slots hold bytes of %d entries", seed, step, held, r.n)
			}
		}
	}
}

// ringHolds counts the slots that keep bytes alive.
func ringHolds(r *ring) (n int) {
	for i := range r.slots {
		if r.slots[i].json != nil {
			n++
		}
	}
	return n
}

// TestRingBounds looks just before, at and after each size of the ring.
func TestRingBounds(t *testing.T) {
	for _, test := range []struct{ entries, slots int }{
		{0, 0}, {1, 4}, {3, 4}, {4, 4}, {5, 8}, {8, 8}, {9, 16}, {16, 16}, {17, 32},
	} {
		for start := range 5 { // where in the slots the first entry is
			var r ring
			for i := range start {
				r.pushBack(entry{from: uint64(i)})
			}
			for range start {
				r.popFront()
			}
			for i := range test.entries {
				r.pushBack(entry{from: uint64(i)})
			}
			if want := max(test.slots, min(start, 1)*4); r.n != test.entries || len(r.slots) != want {
				t.Errorf("start %d: %d entries in %d slots, want %d in %d", start, r.n, len(r.slots), test.entries, want)
			}
			for range test.entries {
				r.popFront()
			}
			if r.n != 0 || len(r.slots) > keepSlots {
				t.Errorf("start %d: an empty ring keeps %d slots", start, len(r.slots))
			}
		}
	}
}

func TestEntryTime(t *testing.T) {
	for _, at := range []time.Time{
		{},
		time.Unix(0, 0).UTC(),
		time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC),
	} {
		d, err := newDraft(&Event{Time: at})
		if err != nil {
			t.Fatal(err)
		}
		e := d.number(1)
		if got := e.time(); !got.Equal(at) || got.Location() != time.UTC || got.IsZero() != at.IsZero() {
			t.Errorf("time() = %v, want %v", got, at)
		}
	}
}
