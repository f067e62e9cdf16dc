package gvstream

import (
	"testing"
	"time"
)

// Rules 6, 7 and 14 at each bound: just before it, and at it.
func TestAckState(t *testing.T) {
	start := time.Unix(1000, 0)
	const delay = 5 * time.Second
	usual := window{events: 1024, bytes: 1 << 20}
	accept := func(ended bool) func(*ackState) {
		return func(a *ackState) { a.accept(start, ended, false) }
	}
	grant := func(events, bytes int) func(*ackState) {
		return func(a *ackState) { a.grant(events, bytes) }
	}
	nackAgain := func(after time.Duration, accepted uint64) func(*ackState) {
		return func(a *ackState) {
			a.hole(start, 3)
			a.sent(start, 3)
			a.hole(start.Add(after), accepted)
		}
	}
	for _, test := range []struct {
		name   string
		window window
		do     func(*ackState)
		after  time.Duration
		due    bool
		nack   bool // what the ack says that is due, or comes anyway
	}{
		{"nothing is owed", usual, func(*ackState) {}, time.Hour, false, false},
		{"what is accepted waits", usual, accept(false), delay - 1, false, false},
		{"and no longer than the delay", usual, accept(false), delay, true, false},
		{"the end doesn't wait", usual, accept(true), 0, true, false},
		{"the delay counts from what came first", usual, func(a *ackState) {
			a.accept(start, false, false)
			a.accept(start.Add(delay-1), false, false)
		}, delay, true, false},
		{"if the sender has more, it may be waiting", usual, func(a *ackState) { a.accept(start, false, true) }, ackDelay - 1, false, false},
		{"and waits no longer than this", usual, func(a *ackState) { a.accept(start, false, true) }, ackDelay, true, false},
		{"unless it sends what it has", usual, func(a *ackState) {
			a.accept(start, false, true)
			a.accept(start.Add(1), false, false)
		}, delay - 1, false, false},
		{"within the delay", usual, func(a *ackState) {
			a.accept(start, false, false)
			a.accept(start.Add(delay-1), false, true)
		}, delay, true, false},
		{"less than half a window waits", usual, grant(511, 1<<19-1), time.Hour, false, false},
		{"half a window doesn't, in events", usual, grant(512, 0), 0, true, false},
		{"half a window doesn't, in bytes", usual, grant(1, 1<<19), 0, true, false},
		{"what is granted adds up", usual, func(a *ackState) { a.grant(500, 0); a.grant(12, 0) }, 0, true, false},
		{"with a window of one event nothing waits", window{events: 1, bytes: 1 << 20}, grant(1, 1), 0, true, false},
		{"with a window of one byte nothing waits", window{events: 1024, bytes: 1}, grant(1, 1), 0, true, false},
		{"an ack settles what was owed", usual, func(a *ackState) {
			a.accept(start, false, false)
			a.grant(512, 1<<19)
			a.sent(start, 3)
			a.grant(511, 1<<19-1)
		}, time.Hour, false, false},
		{"a hole is told at once", usual, func(a *ackState) { a.hole(start, 3) }, 0, true, true},
		{"what was missing comes before the nack is sent", usual, func(a *ackState) {
			a.hole(start, 3)
			a.came()
			a.accept(start, false, false)
		}, 0, true, false},
		{"what was received before it is accepted", usual, func(a *ackState) {
			a.hole(start, 3)
			a.accept(start, false, false)
		}, 0, true, true},
		{"the same hole within a second is not told again", usual, nackAgain(nackEvery-1, 3), nackEvery - 1, false, false},
		{"the same hole is told again after a second", usual, nackAgain(nackEvery, 3), nackEvery, true, true},
		{"another hole is told at once", usual, nackAgain(1, 4), 1, true, true},
		{"an ack within a second does not tell it again", usual, func(a *ackState) {
			a.hole(start, 3)
			a.sent(start, 3)
			a.grant(512, 0)
		}, nackEvery - 1, true, false},
		{"but one after a second does, though no batch has come", usual, func(a *ackState) {
			a.hole(start, 3)
			a.sent(start, 3)
			a.grant(512, 0)
		}, nackEvery, true, true},
		{"not if what was missing has come", usual, func(a *ackState) {
			a.hole(start, 3)
			a.sent(start, 3)
			a.came()
			a.accept(start, false, false)
		}, delay, true, false},
		{"what was lost waits for an ack", usual, func(a *ackState) { a.lost() }, time.Hour, false, true},
		{"what was lost is told by the next ack, even within a second", usual, func(a *ackState) {
			a.hole(start, 3)
			a.sent(start, 3)
			a.lost()
			a.grant(512, 0)
		}, 1, true, true},
		{"and by that one alone", usual, func(a *ackState) {
			a.lost()
			a.sent(start, 3)
			a.grant(512, 0)
		}, 1, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := ackState{delay: delay, window: test.window}
			test.do(&a)
			due, _ := a.due(start.Add(test.after))
			if due != test.due {
				t.Fatalf("due is %v, want %v", due, test.due)
			}
			accepted := uint64(3)
			if test.name == "another hole is told at once" {
				accepted = 4
			}
			if nack := a.sent(start.Add(test.after), accepted); nack != test.nack {
				t.Errorf("nack is %v, want %v", nack, test.nack)
			}
		})
	}
}
