package gvstream

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A viewer that leaves costs the same however many stay: all after it moved up.
func TestGrowthViewersLeave(t *testing.T) {
	const n = 100
	sc := newLoadScene(t, nil, nil)
	sc.connect()
	sc.publish("s")
	sc.flow()
	vs := make([]*loadViewer, n)
	for i := range vs {
		vs[i] = sc.viewer("s", i, Position{})
	}
	sc.drain(vs[:n/2]) // these wait for the next event
	s := sc.h.lookup("s")
	for i, v := range vs {
		before := slices.Clone(s.cursors)
		v.l.fail(sc.now, ErrClosed)
		moved := 0
		for j, c := range s.cursors {
			if c != before[j] {
				moved++
			}
		}
		if len(s.cursors) != n-i-1 || moved > 2 {
			t.Fatalf("%d cursors are left, and %d moved, when %d viewers have left", len(s.cursors), moved, i+1)
		}
		if i == n/4 { // those that wait are still known
			sc.publish("s")
			sc.flow()
			sc.drain(vs[i+1:])
			sc.wantAt(vs[i+1:], 2)
		}
	}
}

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

// A link's free slot is offered to one of the cursors that wait for it, and from one
// that does not need it any more to the next; it woke all of them.
func TestGrowthSlots(t *testing.T) {
	const n = 500
	sc := newLoadScene(t, &HubConfig{LogEvents: 1, MaxWatches: n, MaxViewerReplays: 1}, nil)
	sc.connect()
	ids := loadIDs(n)
	for range 3 {
		for _, id := range ids {
			sc.publish(id)
		}
	}
	sc.later(time.Second)
	l := sc.h.connectViewer(sc.now, "tab", false).Link
	sc.handle(l, &HelloPayload{V: version, Role: roleViewer})
	for _, id := range ids {
		sc.handle(l, &WatchPayload{SessionID: id})
	}
	for sc.next(l) != nil {
	}
	woken, replays := 0, 0
	for turn := range n {
		sc.flow() // the agent answers the one request that is open
		woken += l.bulk.len()
		if turn%3 == 0 { // one that waits, and may have been offered the slot, leaves
			sc.handle(l, &WatchPayload{SessionID: ids[n-1-turn/3], Stop: true})
		}
		for p := sc.next(l); p != nil; p = sc.next(l) {
			if _, ok := p.(*ReplayBatchPayload); ok {
				replays++
			}
		}
	}
	if stopped := (n + 2) / 3; replays < n-stopped || replays > n {
		t.Errorf("%d sessions were replayed, want %d at least of %d", replays, n-stopped, n)
	}
	if woken > 3*n {
		t.Errorf("%d wake-ups for %d replays", woken, n)
	}
}

// The hub's clock holds a session once, and none that is gone: it kept each that
// Forget removed for an hour.
func TestGrowthHubExpiry(t *testing.T) {
	sc := newLoadScene(t, nil, nil)
	for i := range 1000 {
		id := fmt.Sprint("s", i%2)
		sc.publish(id)
		sc.connect()
		sc.later(time.Second)
		sc.agent.fail(sc.now, ErrClosed) // its absence has a deadline
		sc.hub.fail(sc.now, ErrClosed)
		sc.h.Forget(id)
	}
	if n := len(sc.h.expiry); n > 1 {
		t.Errorf("the clock of a hub with %d sessions has %d deadlines", len(sc.h.sessions), n)
	}
}
