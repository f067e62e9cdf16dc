package gvstream

import (
	"slices"
	"testing"
)

// Who gives up a place in a queue costs the same however many wait: it was looked
// for, and all after it moved up.
func TestGrowthQueue(t *testing.T) {
	var q queue[int]
	places := make([]place[int], 100)
	for i := range places {
		q.push(&places[i], i)
	}
	for _, i := range []int{50, 0, 99, 49, 51} {
		before := slices.Clone(places)
		places[i].leave()
		changed := 0
		for j := range places {
			if places[j] != before[j] {
				changed++
			}
		}
		if changed > 3 { // itself and its neighbours
			t.Errorf("%d places of %d changed when one was given up", changed, len(places))
		}
	}
}
