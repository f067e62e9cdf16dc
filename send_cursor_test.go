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
			verdict := c.ack(time.Unix(1000, 0), SessionAck{UpToSeq: test.upTo, Nack: test.nack}, test.acked, test.maxSent)
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
			if c.ack(start, SessionAck{UpToSeq: 3, Nack: true}, 3, 6); c.sent != 3 {
				t.Fatalf("a nack goes back to %d, want 3", c.sent)
			}
			c.advance(6, 1, 10, 3)
			if c.ack(start.Add(test.after), SessionAck{UpToSeq: test.upTo, Nack: true}, 3, 6); c.sent != test.sent {
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
		c.advance(last, 1, 10, acked)
		c.written(start.Add(after), acked)
	}
	open := func(c *sendCursor) {
		c.ack(start, SessionAck{UpToSeq: 2, Nack: false}, 2, 5)
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
			c.ack(start, SessionAck{UpToSeq: 2, Nack: false}, 2, 5)
			c.advance(5, 1, 10, 2)
		}, time.Hour, 2, nothingDue, 0},
		{"written late, it begins then", func(c *sendCursor) {
			c.ack(start, SessionAck{UpToSeq: 2, Nack: false}, 2, 5)
			c.advance(5, 1, 10, 2)
			c.written(start.Add(time.Hour), 2)
		}, time.Hour + first, 2, sendAgain, 0},
		{"written when all is acknowledged", func(c *sendCursor) {
			open(c)
			c.advance(6, 1, 10, 2)
			c.ack(start, SessionAck{UpToSeq: 6, Nack: false}, 2, 6)
			c.written(start, 6)
		}, time.Hour, 6, nothingDue, 0},
		{"written when the hub has forgotten the session", func(c *sendCursor) {
			c.implicitOpen = true
			c.advance(5, 1, 10, 0)
			c.reopen()
			c.written(start, 0)
		}, time.Hour, 0, nothingDue, 0},
		{"an ack without progress, it goes on", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(first-1), SessionAck{UpToSeq: 2, Nack: false}, 2, 5)
		}, first, 2, sendAgain, 0},
		{"an ack of a part, it begins anew", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(1), SessionAck{UpToSeq: 3, Nack: false}, 2, 5)
		}, first, 3, nothingDue, first + 1},
		{"an ack of a part, while more is being written", func(c *sendCursor) {
			open(c)
			c.advance(6, 1, 10, 2)
			c.ack(start.Add(1), SessionAck{UpToSeq: 5, Nack: false}, 2, 6)
		}, time.Hour, 5, nothingDue, 0},
		{"an ack of all", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(1), SessionAck{UpToSeq: 5, Nack: false}, 2, 5)
		}, first + 1, 5, nothingDue, 0},
		{"a nack, and what it asks for is not written yet", func(c *sendCursor) {
			open(c)
			c.ack(start.Add(1), SessionAck{UpToSeq: 2, Nack: true}, 2, 5)
			c.advance(5, 1, 10, 2)
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
			c.ack(start.Add(first), SessionAck{UpToSeq: 2, Nack: false}, 2, 5)
		}), second, 2, sendAgain, 0},
		{"progress between two", expiredOnce(func(c *sendCursor) {
			c.ack(start.Add(first), SessionAck{UpToSeq: 3, Nack: false}, 2, 5)
		}), 2 * first, 3, sendAgain, 0},
		{"all was acknowledged between two", expiredOnce(func(c *sendCursor) {
			c.ack(start.Add(first), SessionAck{UpToSeq: 5, Nack: false}, 2, 5)
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

// Rule 11: after a retryable error the session is announced a second later, twice as long each
// time up to 2 minutes, and an ack ends the wait. Only progress makes the next one short again.
func TestSendCursorPause(t *testing.T) {
	now := time.Unix(1000, 0)
	c := sendCursor{opened: true, firstAck: 3, sent: 6, maxSentOnLink: 6}
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 120, 120} {
		wait *= time.Second
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
	if c.ack(now, SessionAck{UpToSeq: 1, Nack: false}, 3, 8) != ackTaken || !c.maySend() || c.sent != 1 || !c.nextTick().IsZero() {
		t.Errorf("an ack does not end the wait: %+v", c)
	}
	if c.pause(now); !c.nextTick().Equal(now.Add(timerMax)) {
		t.Errorf("an ack without progress: waits for %v", c.nextTick().Sub(now))
	}
	c.ack(now, SessionAck{UpToSeq: 4}, 3, 8)
	if c.pause(now); !c.nextTick().Equal(now.Add(pauseFirst)) {
		t.Errorf("after progress: waits for %v", c.nextTick().Sub(now))
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
		c.ack(time.Unix(1000, 0), SessionAck{UpToSeq: 0, Nack: false}, 0, 6)
		if c.sent != 0 || !c.reopen() {
			t.Errorf("%s, and an ack: %+v", name, c)
		}
	}
	if c := (sendCursor{}); c.reopen() || c.rewind {
		t.Errorf("it was never open: %+v", c)
	}
}

// Rule 7: no more is in flight than the receiver takes, but one event always goes if nothing
// else is under way.
func TestSendCursorWindow(t *testing.T) {
	open := func(w window) *sendCursor {
		return &sendCursor{opened: true, window: w, batchBytes: 1 << 20}
	}
	for _, test := range []struct {
		name          string
		window        window
		sent          [][2]int // events and bytes of what was sent
		events, bytes int
		first         int
	}{
		{"nothing in flight", window{events: 4, bytes: 100}, nil, 4, 100, anySize},
		{"some", window{events: 4, bytes: 100}, [][2]int{{1, 10}, {2, 20}}, 1, 70, 70},
		{"more room than a batch has", window{events: 4, bytes: 5000}, [][2]int{{1, 10}}, 3, 1000, 4990},
		{"all events", window{events: 4, bytes: 100}, [][2]int{{4, 40}}, 0, 60, 60},
		{"all bytes", window{events: 4, bytes: 100}, [][2]int{{1, 100}}, 3, 0, 0},
		{"one that was too large", window{events: 4, bytes: 100}, [][2]int{{1, 500}}, 3, 0, 0},
		{"a window that has shrunk", window{events: 1, bytes: 10}, [][2]int{{4, 40}}, 0, 0, 0},
		{"a full receiver", window{events: 4, bytes: 100, full: true}, nil, 0, 0, 0},
		{"no window at all", window{}, nil, 1, 0, anySize},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, seq := open(test.window), uint64(0)
			for _, b := range test.sent {
				seq += uint64(b[0])
				c.advance(seq, b[0], b[1], 0)
			}
			c.batchBytes = 1 << 20
			if events, bytes, first := c.allowed(1000); events != test.events || bytes != test.bytes || first != test.first {
				t.Errorf("%d events, %d bytes, the first of %d, want %d, %d, %d", events, bytes, first, test.events, test.bytes, test.first)
			}
		})
	}
}

// Rule 7: what an ack covers is in flight no more, nor is anything once all that was sent is
// acknowledged or is to be sent again. An ack that says no window leaves it as it was.
func TestSendCursorInFlight(t *testing.T) {
	start := time.Unix(1000, 0)
	sent := func() *sendCursor {
		c := &sendCursor{opened: true, window: window{events: 10, bytes: 1000}}
		c.advance(6, 6, 60, 0)
		c.written(start, 0)
		return c
	}
	for _, test := range []struct {
		name         string
		do           func(c *sendCursor)
		events, size int
		window       window
	}{
		{"an ack of some", func(c *sendCursor) {
			c.ack(start, SessionAck{UpToSeq: 2, WindowEvents: 9}, 0, 6)
			c.landed(2, 20)
		}, 4, 40, window{events: 9, bytes: 1000}},
		{"an ack of more than could be counted", func(c *sendCursor) {
			c.ack(start, SessionAck{UpToSeq: 2}, 0, 6)
			c.landed(7, 70)
		}, 0, 0, window{events: 10, bytes: 1000}},
		{"an ack of all", func(c *sendCursor) { c.ack(start, SessionAck{UpToSeq: 6, WindowBytes: 5, Full: true}, 0, 6) },
			0, 0, window{events: 10, bytes: 5, full: true}},
		{"a nack", func(c *sendCursor) { c.ack(start, SessionAck{Nack: true}, 0, 6) }, 0, 0, window{events: 10, bytes: 1000}},
		{"a stale ack", func(c *sendCursor) {
			c.ack(start, SessionAck{UpToSeq: 2}, 0, 6)
			c.ack(start, SessionAck{UpToSeq: 1, Full: true}, 2, 6)
		}, 6, 60, window{events: 10, bytes: 1000}},
		{"the timer", func(c *sendCursor) { c.tick(start.Add(timerFirst), 0) }, 0, 0, window{events: 10, bytes: 1000}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := sent()
			if test.do(c); c.inFlight != test.events || c.inFlightBytes != test.size || c.window != test.window {
				t.Errorf("in flight %d events, %d bytes, window %+v; want %d, %d, %+v",
					c.inFlight, c.inFlightBytes, c.window, test.events, test.size, test.window)
			}
		})
	}
}

// Rule 9: after its timer has expired a sender sends one batch, until something is heard. A
// receiver that reads nothing was sent its whole window at each expiry.
func TestSendCursorProbes(t *testing.T) {
	start := time.Unix(1000, 0)
	for name, test := range map[string]struct {
		hear  func(c *sendCursor)
		again bool // it sends more
	}{
		"nothing":     {func(*sendCursor) {}, false},
		"an old ack":  {func(c *sendCursor) { c.ack(start, SessionAck{UpToSeq: 1}, 2, 9) }, false},
		"no progress": {func(c *sendCursor) { c.ack(start, SessionAck{UpToSeq: 2}, 2, 9) }, false},
		"a nack":      {func(c *sendCursor) { c.ack(start, SessionAck{UpToSeq: 2, Nack: true}, 2, 9) }, true},
		"progress":    {func(c *sendCursor) { c.ack(start, SessionAck{UpToSeq: 3}, 2, 9) }, true},
		"a new opening": {func(c *sendCursor) {
			c.close()
			c.ack(start, SessionAck{UpToSeq: 2}, 2, 9)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := sendCursor{opened: true, firstAck: 2, sent: 2, window: window{events: 100, bytes: 1 << 20}}
			send := func() {
				c.advance(c.sent+1, 1, 10, 2)
				c.written(start, 2)
			}
			for range 5 {
				send()
			}
			if due := c.tick(start.Add(timerFirst), 2); due != sendAgain || c.sent != 2 {
				t.Fatalf("due %d, sent %d", due, c.sent)
			}
			if events, _, first := c.allowed(100); events == 0 || first != anySize {
				t.Fatalf("it sends nothing again: %d events", events)
			}
			send()
			test.hear(&c)
			if events, _, _ := c.allowed(100); (events > 0) != test.again {
				t.Errorf("%d more events may go", events)
			}
		})
	}
}

// Rule 7: batches begin small, so that a connection that carries little carries something,
// and grow by themselves only to where a slow one is not blocked for long.
func TestSendCursorBatchBytes(t *testing.T) {
	start := time.Unix(1000, 0)
	c := sendCursor{opened: true, firstBytes: firstBatchBytes, window: window{events: 1 << 20, bytes: 1 << 30}}
	want := func(what string, bytes int) {
		t.Helper()
		if _, got, _ := c.allowed(maxBatchBytes); got != bytes {
			t.Errorf("%s: a batch of %d bytes, want %d", what, got, bytes)
		}
	}
	want("the first", 1)
	for i, bytes := range []int{1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 16 << 10} {
		c.advance(uint64(i+1), 1, 10, 0)
		c.written(start, 0)
		want("one more was sent", bytes)
	}
	c.ack(start.Add(growWithin+1), SessionAck{UpToSeq: 5}, 0, 6)
	want("a late ack", 16<<10)
	c.advance(7, 1, 10, 5)
	c.written(start, 5)
	c.advance(8, 1, 10, 5)
	c.ack(start.Add(growWithin), SessionAck{UpToSeq: 6}, 5, 8)
	want("an ack of what was sent before", 16<<10)
	c.ack(start.Add(growWithin), SessionAck{UpToSeq: 7}, 6, 8)
	want("an ack within a second, though more was sent since", 32<<10)
	for seq, bytes := uint64(9), 64<<10; bytes <= 512<<10; bytes *= 2 {
		c.advance(seq, 1, 10, seq-1)
		c.ack(start.Add(time.Hour), SessionAck{UpToSeq: seq}, seq-1, seq)
		want("an ack before it is known to be written", min(bytes, 256<<10))
		seq++
	}
	if _, got, _ := c.allowed(50); got != 50 {
		t.Errorf("a batch of %d bytes where 50 are the most", got)
	}
	c.rewindTo(3)
	want("sent again", 1)
}
