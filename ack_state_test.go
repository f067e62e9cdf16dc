package gvstream

import (
	"testing"
	"time"
)

// Rules 6 and 7 at each bound: just before it, and at it.
func TestAckState(t *testing.T) {
	start := time.Unix(1000, 0)
	accept := func(events, window int, ended bool) func(*ackState) {
		return func(a *ackState) { a.accept(start, events, window, ended) }
	}
	nackAgain := func(after time.Duration, accepted uint64) func(*ackState) {
		return func(a *ackState) {
			a.hole(start, 3)
			a.sent()
			a.hole(start.Add(after), accepted)
		}
	}
	for _, test := range []struct {
		name  string
		do    func(*ackState)
		after time.Duration
		due   bool
		nack  bool // what the ack says, if one is due
	}{
		{"nothing is owed", func(*ackState) {}, time.Hour, false, false},
		{"63 events wait", accept(63, 1024, false), ackDelay - 1, false, false},
		{"63 events wait no longer than the delay", accept(63, 1024, false), ackDelay, true, false},
		{"64 events don't wait", accept(64, 1024, false), 0, true, false},
		{"less than a quarter of a small window waits", accept(1, 8, false), 0, false, false},
		{"a quarter of a small window doesn't", accept(2, 8, false), 0, true, false},
		{"without a window nothing waits", accept(1, 0, false), 0, true, false},
		{"the end doesn't wait", accept(1, 1024, true), 0, true, false},
		{"events add up", func(a *ackState) {
			a.accept(start, 63, 1024, false)
			a.accept(start, 1, 1024, false)
		}, 0, true, false},
		{"the delay counts from the first event", func(a *ackState) {
			a.accept(start, 1, 1024, false)
			a.accept(start.Add(ackDelay-1), 1, 1024, false)
		}, ackDelay, true, false},
		{"an ack settles what was owed", func(a *ackState) {
			a.accept(start, 64, 1024, false)
			a.sent()
		}, time.Hour, false, false},
		{"a hole is told at once", func(a *ackState) { a.hole(start, 3) }, 0, true, true},
		{"what was missing comes before the nack is sent", func(a *ackState) {
			a.hole(start, 3)
			a.accept(start, 1, 1024, false)
		}, 0, true, false},
		{"the same hole within a second is not told again", nackAgain(nackEvery-1, 3), time.Hour, false, false},
		{"the same hole is told again after a second", nackAgain(nackEvery, 3), nackEvery, true, true},
		{"another hole is told at once", nackAgain(1, 4), 1, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var a ackState
			test.do(&a)
			due, _ := a.due(start.Add(test.after))
			if due != test.due {
				t.Fatalf("due is %v, want %v", due, test.due)
			}
			if nack := a.sent(); due && nack != test.nack {
				t.Errorf("nack is %v, want %v", nack, test.nack)
			}
		})
	}
}
