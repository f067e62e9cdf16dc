package gvstream

import (
	"math/rand/v2"
	"testing"
)

// Each batch lands with the ack of its last event, and not before; small ones land together.
func TestFlights(t *testing.T) {
	w := window{events: 80, bytes: 800}
	for _, test := range []struct {
		name    string
		batches []flight
		n       int // flights
		acks    []uint64
		lands   [][2]int
	}{
		{"nothing", nil, 0, []uint64{7}, [][2]int{{0, 0}}},
		{"one", []flight{{5, 5, 50}}, 1, []uint64{4, 5, 5}, [][2]int{{0, 0}, {5, 50}, {0, 0}}},
		{"gaps take no room", []flight{{5, 5, 50}, {9, 0, 0}}, 1, []uint64{5}, [][2]int{{5, 50}}},
		{"small ones are one", []flight{{5, 5, 50}, {10, 5, 50}}, 1, []uint64{9, 10}, [][2]int{{0, 0}, {10, 100}}},
		{"up to an eighth of the events", []flight{{5, 5, 1}, {11, 6, 1}}, 2, []uint64{5, 11}, [][2]int{{5, 1}, {6, 1}}},
		{"up to an eighth of the bytes", []flight{{5, 1, 50}, {10, 1, 51}}, 2, []uint64{9, 10}, [][2]int{{1, 50}, {1, 51}}},
		{"several land", []flight{{20, 20, 1}, {40, 20, 2}, {60, 20, 3}}, 3, []uint64{59, 60}, [][2]int{{40, 3}, {20, 3}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var f flights
			for _, b := range test.batches {
				f.add(b.last, b.events, b.bytes, w)
			}
			if f.count() != test.n {
				t.Errorf("%d flights, want %d", f.count(), test.n)
			}
			for i, upTo := range test.acks {
				if events, bytes := f.land(upTo); [2]int{events, bytes} != test.lands[i] {
					t.Errorf("an ack of %d: %d events and %d bytes land, want %v", upTo, events, bytes, test.lands[i])
				}
			}
		})
	}
}

// However small the batches are, few flights are kept; and what has not landed is never counted
// too low.
func TestFlightsBounded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		w := window{events: 1 + random.IntN(1000), bytes: 30 + random.IntN(10_000)}
		var f flights
		var last, acked uint64
		inFlight, bytesInFlight := 0, 0
		sizes := make(map[uint64]int)
		for range 2000 {
			if size := 1 + random.IntN(30); inFlight < w.events && bytesInFlight+size <= w.bytes {
				last++
				sizes[last] = size
				f.add(last, 1, size, w)
				inFlight++
				bytesInFlight += size
			} else {
				acked += 1 + uint64(random.IntN(int(last-acked)))
				events, bytes := f.land(acked)
				inFlight, bytesInFlight = inFlight-events, bytesInFlight-bytes
			}
			if acked == last {
				f.clear()
				inFlight, bytesInFlight = 0, 0
			}
			truly := 0
			for seq := acked + 1; seq <= last; seq++ {
				truly += sizes[seq]
			}
			if inFlight < int(last-acked) || bytesInFlight < truly || f.count() > 4*flightsInWindow+1 {
				t.Fatalf("%d events and %d bytes in %d flights, truly %d and %d", inFlight, bytesInFlight, f.count(), last-acked, truly)
			}
		}
	}
}

func (f *flights) count() int {
	n := len(f.older)
	if f.newest.events > 0 {
		n++
	}
	return n
}
