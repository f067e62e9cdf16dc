package gvstream

import (
	"testing"
	"time"
)

// Rule 6 at each bound: just before it, at it and after it. What is sent next follows
// the number in sent.
func TestSendCursorAck(t *testing.T) {
	waiting := sendCursor{}                                              // nothing was sent on this link yet
	pioneer := sendCursor{implicitOpen: true, sent: 5, maxSentOnLink: 5} // its first batch is out
	open := sendCursor{opened: true, firstAck: 3, sent: 6, maxSentOnLink: 6}
	back := sendCursor{opened: true, firstAck: 3, sent: 3, maxSentOnLink: 6} // it resends
	ahead := sendCursor{opened: true, firstAck: 7, sent: 7}                  // the first ack was beyond what this link sent
	lost := sendCursor{rewind: true, firstAck: 3, sent: 6, maxSentOnLink: 6}
	for _, test := range []struct {
		name           string
		cursor         sendCursor
		acked, maxSent uint64
		upTo           uint64
		nack           bool
		verdict        ackVerdict
		sent           uint64
	}{
		{"a first ack below acked moves back", waiting, 3, 8, 2, false, ackTaken, 2},
		{"a first ack of what is acked", waiting, 3, 8, 3, false, ackTaken, 3},
		{"a first ack above acked", waiting, 3, 8, 4, false, ackTaken, 4},
		{"a first ack of all that was ever sent", waiting, 3, 8, 8, false, ackTaken, 8},
		{"a first ack of more", waiting, 3, 8, 9, false, ackBeyond, 0},
		{"a first ack where nothing was ever sent", waiting, 0, 0, 0, false, ackTaken, 0},
		{"a first ack of what was never sent", waiting, 0, 0, 1, false, ackBeyond, 0},

		{"a pioneer's batches are not sent again", pioneer, 0, 5, 0, false, ackTaken, 5},
		{"unless they are missing", pioneer, 0, 5, 0, true, ackTaken, 0},
		{"a pioneer's first ack of all it sent", pioneer, 0, 5, 5, false, ackTaken, 5},
		{"a pioneer's first ack of more", pioneer, 0, 5, 6, false, ackBeyond, 5},

		{"an ack below acked is old", open, 4, 8, 3, false, ackStale, 6},
		{"and so is its nack", open, 4, 8, 3, true, ackStale, 6},
		{"an ack of what is acked", open, 4, 8, 4, false, ackTaken, 6},
		{"a nack of what is acked goes back", open, 4, 8, 4, true, ackTaken, 4},
		{"an ack of all that this link sent", open, 4, 8, 6, false, ackTaken, 6},
		{"an ack of what only another link sent", open, 4, 8, 7, false, ackBeyond, 6},
		{"an ack above what was put back moves it up", back, 3, 8, 5, false, ackTaken, 5},
		{"up to all that this link sent", back, 3, 8, 6, false, ackTaken, 6},
		{"and no further", back, 3, 8, 7, false, ackBeyond, 3},

		{"the first ack once more, though this link sent nothing", ahead, 7, 8, 7, false, ackTaken, 7},
		{"one above it", ahead, 7, 8, 8, false, ackBeyond, 7},

		{"a receiver that lost its place goes back", lost, 3, 8, 1, false, ackTaken, 1},
		{"or stays", lost, 3, 8, 3, false, ackTaken, 3},
		{"or knows more than this link sent", lost, 3, 8, 8, false, ackTaken, 8},
		{"but no more than was ever sent", lost, 3, 8, 9, false, ackBeyond, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := test.cursor
			verdict := c.ack(time.Unix(1000, 0), test.upTo, test.nack, test.acked, test.maxSent)
			if verdict != test.verdict || c.sent != test.sent {
				t.Errorf("verdict %d, sent %d, want %d and %d", verdict, c.sent, test.verdict, test.sent)
			}
			switch {
			case verdict != ackTaken && c != test.cursor:
				t.Errorf("an ack that is not taken changes %+v to %+v", test.cursor, c)
			case verdict == ackTaken && (!c.opened || c.implicitOpen || c.rewind):
				t.Errorf("not open after an ack: %+v", c)
			}
		})
	}
}

// Rule 7: a nack for the same number within a second changes nothing, for another one it
// does at once.
func TestSendCursorNack(t *testing.T) {
	start := time.Unix(1000, 0)
	for _, test := range []struct {
		name  string
		after time.Duration
		upTo  uint64
		sent  uint64
	}{
		{"the same number within a second", nackEvery - 1, 3, 6},
		{"the same number after a second", nackEvery, 3, 3},
		{"another number at once", 0, 4, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sendCursor{opened: true, firstAck: 3, sent: 6, maxSentOnLink: 6}
			if c.ack(start, 3, true, 3, 6); c.sent != 3 {
				t.Fatalf("a nack goes back to %d, want 3", c.sent)
			}
			c.advance(6, 3)
			if c.ack(start.Add(test.after), test.upTo, true, 3, 6); c.sent != test.sent {
				t.Errorf("sent %d, want %d", c.sent, test.sent)
			}
		})
	}
}

// Rules 5 and 9: what the timer asks for, just before it expires and when it does.
func TestSendCursorTick(t *testing.T) {
	const first, second = timerFirst, timerFirst + 2*timerFirst
	start := time.Unix(1000, 0)
	send := func(c *sendCursor, after time.Duration, last, acked uint64) {
		c.advance(last, acked)
		c.written(start.Add(after), acked)
	}
	open := func(c *sendCursor) {
		c.ack(start, 2, false, 2, 5)
		send(c, 0, 5, 2)
	}
	pioneer := func(c *sendCursor) {
		c.implicitOpen = true
		send(c, 0, 5, 0)
	}
	unopened := func(c *sendCursor) { c.announced(start) }
	expiredOnce := func(then func(*sendCursor)) func(*sendCursor) {
		return func(c *sendCursor) {
			open(c)
			c.tick(start.Add(first), 2)
			send(c, first, 5, 2)
			then(c)
		}
	}
	nothing := func(*sendCursor) {}
	for _, test := range []struct {
		name  string
		do    func(*sendCursor)
		after time.Duration
		acked uint64
		due   duty
		next  time.Duration // when tick is to be called next; zero: never
	}{
		{"nothing was sent", nothing, time.Hour, 2, nothingDue, 0},
		{"sent, and the timer runs", open, first - 1, 2, nothingDue, first},
		{"sent, and it expires", open, first, 2, sendAgain, 0},
		{"a pioneer's, and it expires", pioneer, first, 0, sendAgain, 0},
		{"announced, and it runs", unopened, first - 1, 2, nothingDue, first},
		{"announced, and it expires", unopened, first, 2, announceAgain, second},
		{"announced once more, it goes on", func(c *sendCursor) {
			c.announced(start)
			c.announced(start.Add(first - 1))
		}, first, 2, announceAgain, second},
		{"announced, and an event is refused", func(c *sendCursor) {
			unopened(c)
			c.resend(2)
		}, first, 2, announceAgain, second},
		{"sent once more, it goes on", func(c *sendCursor) {
			open(c)
			send(c, first-1, 6, 2)
		}, first, 2, sendAgain, 0},
		{"not written yet", func(c *sendCursor) {
			c.ack(start, 2, false, 2, 5)
			c.advance(5, 2)
		}, time.Hour, 2, nothingDue, 0},
		{"written late, it begins then", func(c *sendCursor) {
			c.ack(start, 2, false, 2, 5)
			c.advance(5, 2)
			c.written(start.Add(time.Hour), 2)
		}, time.Hour + first, 2, sendAgain, 0},
		{"written when all is acknowledged", func(c *sendCursor) {
			open(c)
			c.advance(6, 2)
			c.ack(start, 6, false, 2, 6)
			c.written(start, 6)
		}, time.Hour, 6, nothingDue, 0},
		{"written when the hub has forgotten the session", func(c *sendCursor) {
			c.implicitOpen = true
			c.advance(5, 0)
			c.reopen()
			c.written(start, 0)
		}, time.Hour, 0, nothingDue, 0},
		{"an ack without progress, it goes on", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(first-1), 2, false, 2, 5)
		}, first, 2, sendAgain, 0},
		{"an ack of a part, it begins anew", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(1), 3, false, 2, 5)
		}, first, 3, nothingDue, first + 1},
		{"an ack of a part, while more is being written", func(c *sendCursor) {
			open(c)
			c.advance(6, 2)
			c.ack(start.Add(1), 5, false, 2, 6)
		}, time.Hour, 5, nothingDue, 0},
		{"an ack of all", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(1), 5, false, 2, 5)
		}, first + 1, 5, nothingDue, 0},
		{"a nack, and what it asks for is not written yet", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(1), 2, true, 2, 5)
			c.advance(5, 2)
		}, time.Hour, 2, nothingDue, 0},
		{"the second time is later", expiredOnce(nothing), second - 1, 2, nothingDue, second},
		{"the second time", expiredOnce(nothing), second, 2, sendAgain, 0},
		{"the second time, sent again late", func(c *sendCursor) {
			open(c)
			c.tick(start.Add(first), 2)
			send(c, time.Hour, 5, 2)
		}, time.Hour + 2*first - 1, 2, nothingDue, time.Hour + 2*first},
		{"announced twice", func(c *sendCursor) {
			unopened(c)
			c.tick(start.Add(first), 6)
		}, second, 6, announceAgain, second + 4*timerFirst},
		{"an ack without progress between two", expiredOnce(func(c *sendCursor) {
			c.ack(start.Add(first), 2, false, 2, 5)
		}), second, 2, sendAgain, 0},
		{"progress between two", expiredOnce(func(c *sendCursor) {
			c.ack(start.Add(first), 3, false, 2, 5)
		}), 2 * first, 3, sendAgain, 0},
		{"all was acknowledged between two", expiredOnce(func(c *sendCursor) {
			c.ack(start.Add(first), 5, false, 2, 5)
			send(c, first, 6, 5)
		}), 2 * first, 5, sendAgain, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c sendCursor
			test.do(&c)
			sent := c.sent
			if due := c.tick(start.Add(test.after), test.acked); due != test.due {
				t.Fatalf("due is %d, want %d", due, test.due)
			}
			if test.due == sendAgain {
				sent = test.acked
			}
			if c.sent != sent {
				t.Errorf("sent is %d, want %d", c.sent, sent)
			}
			var next time.Duration
			if at := c.nextTick(); !at.IsZero() {
				next = at.Sub(start)
			}
			if next != test.next {
				t.Errorf("the next tick is after %v, want %v", next, test.next)
			}
		})
	}
}

// Rule 11: after a retryable error the session is announced when a timer period has
// passed, twice as long each time, and an ack ends the wait.
func TestSendCursorPause(t *testing.T) {
	now := time.Unix(1000, 0)
	c := sendCursor{opened: true, firstAck: 3, sent: 6, maxSentOnLink: 6}
	for _, wait := range []time.Duration{timerFirst, 2 * timerFirst} {
		c.pause(now)
		if c.maySend() || !c.nextTick().Equal(now.Add(wait)) {
			t.Fatalf("may send: %v, and is asked again after %v, want %v", c.maySend(), c.nextTick().Sub(now), wait)
		}
		if due := c.tick(now.Add(wait-1), 3); due != nothingDue {
			t.Fatalf("due before %v: %d", wait, due)
		}
		if now = now.Add(wait); c.tick(now, 3) != announceAgain {
			t.Fatalf("not announced after %v", wait)
		}
	}
	c.pause(now)
	if c.ack(now, 1, false, 3, 8) != ackTaken || !c.maySend() || c.sent != 1 || !c.nextTick().IsZero() {
		t.Errorf("an ack does not end the wait: %+v", c)
	}
}

// Rule 5: unknown_session has an effect once, until the next ack.
func TestSendCursorReopen(t *testing.T) {
	for name, c := range map[string]sendCursor{
		"open":    {opened: true, firstAck: 3, sent: 6, maxSentOnLink: 6},
		"pioneer": {implicitOpen: true, sent: 6, maxSentOnLink: 6},
	} {
		if !c.reopen() || c.maySend() || c.reopen() {
			t.Errorf("%s: %+v", name, c)
		}
		c.ack(time.Unix(1000, 0), 0, false, 0, 6)
		if c.sent != 0 || !c.reopen() {
			t.Errorf("%s, and an ack: %+v", name, c)
		}
	}
	if c := (sendCursor{}); c.reopen() || c.rewind {
		t.Errorf("it was never open: %+v", c)
	}
}

// Rule 7: how far events may go.
func TestSendCursorWindow(t *testing.T) {
	c := sendCursor{window: 4}
	if got := c.eventsUntil(10); got != 14 {
		t.Errorf("events may go up to %d, want 14", got)
	}
}
