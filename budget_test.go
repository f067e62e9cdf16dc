package gvstream

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// budgetEvent takes about 1,000 bytes.
func budgetEvent() Event { return Event{Bytes: make([]byte, 690)} }

// budgetHub publishes to a session and acknowledges at once.
func budgetHub(t *testing.T, hub *peer, id string) {
	t.Helper()
	if _, err := hub.st.Publish(t.Context(), id, budgetEvent()); err != nil {
		t.Fatal(err)
	}
	p := hub.next()
	hub.acks(id, p.(*EventBatchPayload).LastSeq)
}

// TestBudget: when the common budget is exceeded, the oldest acknowledged events of all
// sessions go first, whichever session publishes.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 6200, Overflow: Reject})
		hub := playHub(t, st)
		for _, id := range []string{"a", "b", "c", "a", "b", "c"} {
			budgetHub(t, hub, id)
			pass(time.Second)
		}
		if n := st.Stats().Bytes; n > 6200 {
			t.Errorf("%d bytes held", n)
		}
		for i, id := range []string{"a", "b", "c", "a", "b", "c"} { // in order of age
			before := stats(t, st, id)
			if before.Acked > 2 {
				t.Fatalf("%+v", before)
			}
			if _, err := st.Publish(t.Context(), "d", budgetEvent()); err != nil {
				t.Fatalf("event %d: %v", i, err)
			}
			if after := stats(t, st, id); after.First != before.First+1 || st.Stats().Bytes > 6200 {
				t.Errorf("event %d: %s held from %d, now from %d; %d bytes in all", i, id, before.First, after.First, st.Stats().Bytes)
			}
			pass(time.Second)
		}
		if seq, err := st.Publish(t.Context(), "d", budgetEvent()); seq != 0 || !errors.Is(err, ErrPendingFull) {
			t.Errorf("with nothing acknowledged: %d, %v", seq, err) // rule 10 applies
		}
		st.Forget("d")
		if n := st.budget.used.Load(); n != int64(st.Stats().Bytes) || n != 0 {
			t.Errorf("%d bytes used, %d held", n, st.Stats().Bytes)
		}
	})
}

// TestBudgetDropOldest: when nothing acknowledged is left, the session's own oldest
// events go.
func TestBudgetDropOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 3100, Overflow: DropOldest})
		for i := range 5 {
			if seq, err := st.Publish(t.Context(), "s", budgetEvent()); seq != uint64(i+1) || err != nil {
				t.Fatalf("Publish = %d, %v", seq, err)
			}
		}
		if s := stats(t, st, "s"); s.Lost != 2 || s.PendingEvents != 3 || s.Bytes > 3100 {
			t.Errorf("%+v", s)
		}
		if n := st.budget.used.Load(); n != int64(st.Stats().Bytes) {
			t.Errorf("%d bytes used, %d held", n, st.Stats().Bytes)
		}
	})
}

// TestBudgetBlock: a publisher that waits for the budget continues as soon as anything
// in any session can be evicted or is given up (L4).
func TestBudgetBlock(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(st *Streamer, hub *peer)
	}{
		{"ack of its own session", func(_ *Streamer, hub *peer) { hub.acks("b", 1) }},
		{"ack of another session", func(_ *Streamer, hub *peer) { hub.acks("a", 1) }},
		{"Forget of another session", func(st *Streamer, _ *peer) { st.Forget("a") }},
		{"Renew of another session", func(st *Streamer, _ *peer) { st.Renew("a") }},
		{"rejected in another session", func(_ *Streamer, hub *peer) {
			hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "a", Seq: 2})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{MaxTotalBytes: 3100})
				hub := playHub(t, st)
				for _, id := range []string{"a", "a", "b"} {
					if _, err := st.Publish(t.Context(), id, budgetEvent()); err != nil {
						t.Fatal(err)
					}
				}
				hub.wantTypes("event_batch", "event_batch")
				done := start(func() error { _, err := st.Publish(t.Context(), "b", budgetEvent()); return err })
				wantWaiting(t, done)
				test.end(st, hub)
				wantReturned(t, done, nil)
			})
		})
	}
}

// TestBudgetTooSmall: an event that no eviction can make room for is too large, and
// costs no other event.
func TestBudgetTooSmall(t *testing.T) {
	for _, overflow := range []Overflow{Block, Reject, DropOldest} {
		t.Run(fmt.Sprint(overflow), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{MaxTotalBytes: 900, Overflow: overflow})
				publishN(t, st, "s", 3)
				done := start(func() error { _, err := st.Publish(t.Context(), "s", budgetEvent()); return err })
				defer st.Forget("s") // releases a publisher that is still waiting
				wantReturnedOr(t, done, st)
				if s := stats(t, st, "s"); s.Lost != 0 || s.PendingEvents != 3 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// wantReturnedOr expects ErrTooLarge, and closes st if that does not come.
func wantReturnedOr(t *testing.T, done <-chan error, st *Streamer) {
	t.Helper()
	pass(time.Hour)
	select {
	case err := <-done:
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("returned %v, want %v", err, ErrTooLarge)
		}
	default:
		t.Errorf("still waits, want %v", ErrTooLarge)
		go st.Close(t.Context())
		<-done
	}
}

// TestBudgetDropsInVain: when other sessions hold the budget, a session does not drop
// its own events in vain.
func TestBudgetDropsInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 3300, Overflow: DropOldest})
		for _, id := range []string{"a", "a", "a"} {
			if _, err := st.Publish(t.Context(), id, budgetEvent()); err != nil {
				t.Fatal(err)
			}
		}
		publishN(t, st, "b", 1)
		if seq, err := st.Publish(t.Context(), "b", budgetEvent()); seq != 0 || !errors.Is(err, ErrPendingFull) {
			t.Errorf("Publish = %d, %v", seq, err)
		}
		if s := stats(t, st, "b"); s.Lost != 0 || s.PendingEvents != 1 {
			t.Errorf("a publish that failed cost an event: %+v", s)
		}
	})
}

// TestBudgetForgets: sessions that are gone leave nothing in the budget (S10).
func TestBudgetForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 1 << 20})
		hub := playHub(t, st)
		for i := range 500 {
			id := fmt.Sprint("s", i)
			budgetHub(t, hub, id)
			st.Forget(id)
			hub.drain()
		}
		if n := st.budget.aged.Len(); n > 100 {
			t.Errorf("the budget remembers %d sessions, and the Streamer has %d", n, st.Stats().Sessions)
		}
		if n := st.budget.used.Load(); n != 0 {
			t.Errorf("%d bytes used", n)
		}
	})
}

// TestBudgetCounts: whatever happens to events, the bytes counted are the bytes held.
func TestBudgetCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 20_000, Overflow: DropOldest, ReplayEvents: 3, MaxPendingEvents: 6})
		hub := playHub(t, st)
		check := func(what string) {
			t.Helper()
			if used, held := st.budget.used.Load(), int64(st.Stats().Bytes); used != held || used > 20_000 {
				t.Errorf("%s: %d bytes used, %d held", what, used, held)
			}
		}
		for i := range 30 {
			id := fmt.Sprint("s", i%4)
			for range i % 7 {
				if _, err := st.Publish(t.Context(), id, budgetEvent()); err != nil {
					t.Fatal(err)
				}
			}
			check("publish")
			for p := hub.next(); p != nil; p = hub.next() {
				if b, ok := p.(*EventBatchPayload); ok && i%3 > 0 {
					hub.acks(b.SessionID, b.LastSeq)
				}
			}
			check("ack")
			switch i % 10 {
			case 4:
				st.Forget(id)
				hub.drain()
			case 8:
				st.Renew(id)
			case 9:
				hub = playHub(t, st)
				for _, s := range st.all() {
					hub.acks(s.id, s.Stats().Acked/2)
				}
			}
			check("change")
			pass(time.Second)
		}
	})
}

// TestBudgetReserve: a reservation that does not fit does not make others fail.
func TestBudgetReserve(t *testing.T) {
	t.Parallel()
	b := &budget[*Session]{max: 100}
	b.used.Store(90)
	var wg sync.WaitGroup
	stop := make(chan bool)
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				b.reserve(20) // never fits
			}
		}
	}()
	fails := 0
	for range 100_000 {
		if b.reserve(5) { // always fits
			b.used.Add(-5)
		} else {
			fails++
		}
	}
	close(stop)
	wg.Wait()
	if fails > 0 {
		t.Errorf("%d reservations of 5 refused with 10 free", fails)
	}
}
