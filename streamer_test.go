package gvstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/testenv"
)

// anyTime compares events except for their times.
var anyTime = cmp.Options{cmpopts.IgnoreFields(Event{}, "Time"), cmpopts.EquateEmpty()}

// publishN publishes n events, each carrying its number.
func publishN(t *testing.T, st *Streamer, id string, n int) {
	t.Helper()
	for range n {
		head := uint64(0)
		if s := st.lookup(id); s != nil {
			head = s.Stats().Head
		}
		seq, err := st.Publish(t.Context(), id, numberedEvent(head+1))
		if err != nil || seq != head+1 {
			t.Fatalf("Publish(%q) = %d, %v, want %d", id, seq, err, head+1)
		}
	}
}

// loadIDs are the ids of n sessions.
func loadIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("session-%06d", i)
	}
	return ids
}

// linked connects the agent to the hub.
func linked(st *Streamer, h *Hub) (agent, hub *Link) {
	return st.Connect(), h.ConnectAgent("agent")
}

// publishRounds has each session publish n events, and the hub acknowledge them.
func publishRounds(t *testing.T, st *Streamer, ids []string, n int, agent, hub *Link) {
	t.Helper()
	for range n {
		for _, id := range ids {
			publishN(t, st, id, 1)
		}
	}
	carryAll(t, agent, hub)
	pass(time.Second)
	carryAll(t, agent, hub)
}

// ackedStreamer has a session "s" of a number of events, all acknowledged.
func ackedStreamer(t *testing.T, cfg *StreamerConfig, events int) (*Streamer, *peer) {
	t.Helper()
	st := NewStreamer(cfg)
	hub := playHub(t, st)
	publishAcked(t, hub, "s", events)
	return st, hub
}

// publishAcked publishes events one by one, and acknowledges each.
func publishAcked(t *testing.T, hub *peer, id string, events int) {
	t.Helper()
	for range events {
		publishN(t, hub.st, id, 1)
		head := hub.st.lookup(id).Stats().Head
		hub.want(agentBatch(id, head, head, head))
		hub.acks(id, head)
	}
	hub.wantIdle("all is acknowledged")
}

func stats(t *testing.T, st *Streamer, id string) SessionStats {
	t.Helper()
	s := st.lookup(id)
	if s == nil {
		t.Fatalf("no session %q", id)
	}
	return s.Stats()
}

// TestStreamerBasic: a session opens itself with its first batch (rule 5); events are
// sent at once, in order.
func TestStreamerBasic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := meetHub(t, st)
		hub.hearsHello()
		publishN(t, st, "s", 2)
		hub.wantIdle("nothing but hello before the welcome")
		hub.welcome(hub.id)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 2, 2))
		hub.wantIdle("all is sent")
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 3, 3, 3))
		hub.acks("s", 3)
		hub.wantIdle("an ack is not answered")

		seq, err := st.Publish(t.Context(), "bytes", Event{Type: "tty", Bytes: []byte("\x1b[1m\xff")})
		if seq != 1 || err != nil {
			t.Fatalf("Publish = %d, %v", seq, err)
		}
		hub.want(&EventBatchPayload{
			SessionID: "bytes", FirstSeq: 1, LastSeq: 1, HeadSeq: 1,
			Events: []Event{{Seq: 1, Type: "tty", Bytes: []byte("\x1b[1m\xff")}},
		})
		if got := st.Stats(); got.Sessions != 2 || got.PendingEvents != 1 || !got.Connected || got.StalePayloads+got.RefusedPayloads != 0 {
			t.Errorf("Stats() = %+v", got)
		}
	})
}

// TestStreamerAutoCreateSession: the first event creates its session.
func TestStreamerAutoCreateSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "a", 1)
		publishN(t, st, "b", 1)
		publishN(t, st, "a", 1)
		if a, b := stats(t, st, "a"), stats(t, st, "b"); a.Head != 2 || b.Head != 1 || a.Epoch == b.Epoch || !validEpoch(a.Epoch) {
			t.Errorf("a: %+v\nb: %+v", a, b)
		}
		hub.want(agentBatch("a", 1, 2, 2), agentBatch("b", 1, 1, 1))
		s, err := st.Session("a")
		if err != nil || s.ID() != "a" || s.Stats().Head != 2 {
			t.Errorf("Session = %v, %v", s, err)
		}
		if c, err := st.Session("c"); err != nil || c.Stats().Head != 0 || st.Stats().Sessions != 3 {
			t.Errorf("Session = %v, %v", c, err)
		}
		hub.wantIdle("a session without a number has nothing to say")
		for _, id := range []string{"", strings.Repeat("x", maxID+1), "a\n", "\xff"} {
			if _, err := st.Publish(t.Context(), id, Event{}); !errors.Is(err, ErrInvalidID) {
				t.Errorf("Publish(%q): %v", id, err)
			}
			if _, err := st.Session(id); !errors.Is(err, ErrInvalidID) {
				t.Errorf("Session(%q): %v", id, err)
			}
		}
		publishN(t, st, strings.Repeat("x", maxID), 1)
	})
}

// TestStreamerDataSize: data longer than an event may be is refused unread; white space
// counts for that, and for nothing else.
func TestStreamerDataSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxEventBytes: 100})
		wide := func(n int) []byte { return []byte("[1" + strings.Repeat(" ", n-3) + "]") }
		for _, test := range []struct {
			ev   Event
			want error
		}{
			{Event{Data: wide(99)}, nil},
			{Event{Data: wide(100)}, nil},
			{Event{Data: wide(101)}, ErrTooLarge},
			{Event{Bytes: make([]byte, 101)}, ErrTooLarge},
			{Event{Data: wide(50), Bytes: make([]byte, 50)}, ErrInvalidData},
			{Event{Data: wide(50), Bytes: make([]byte, 51)}, ErrTooLarge},
		} {
			if _, err := st.Publish(t.Context(), "s", test.ev); !errors.Is(err, test.want) {
				t.Errorf("%d and %d bytes: %v, want %v", len(test.ev.Data), len(test.ev.Bytes), err, test.want)
			}
		}
	})
}

// TestStreamerEvictsOldestNow: a session whose oldest event was evicted since it was
// last checked loses no other event because of that one's age; the oldest of all goes
// first.
func TestStreamerEvictsOldestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		publish := func(st *Streamer, id string, second int) {
			t.Helper()
			ev := Event{Time: start.Add(time.Duration(second) * time.Second), Data: json.RawMessage(`"data"`)}
			if _, err := st.Publish(t.Context(), id, ev); err != nil {
				t.Fatal(err)
			}
		}
		scratch := NewStreamer(nil)
		publish(scratch, "s", 1)
		one := scratch.Stats().Bytes
		// Three events fit, with room for a number; with the one that c publishes, there is one
		// too many.
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 3*one + seqRoom, ReplayEvents: 1})
		hub := playHub(t, st)
		for second, id := range []string{"a", "b", "a"} {
			publish(st, id, second+1)
			p := hub.next()
			hub.acks(id, p.(*EventBatchPayload).LastSeq)
		}
		if s := st.Stats(); s.Bytes != 2*one {
			t.Fatalf("%d bytes held, want a's second event and b's", s.Bytes)
		}
		large := Event{Data: json.RawMessage(`"` + strings.Repeat("x", one+seqRoom-20) + `"`)}
		if _, err := st.Publish(t.Context(), "c", large); err != nil {
			t.Fatal(err)
		}
		if a, b := stats(t, st, "a"), stats(t, st, "b"); a.Events != 1 || b.Events != 0 {
			t.Errorf("a keeps %d events and b %d: the older one is b's", a.Events, b.Events)
		}
	})
}

// TestStreamerCreatesSessionOnce: two concurrent first events of a session create one
// session, even when both calls found none.
func TestStreamerCreatesSessionOnce(t *testing.T) {
	st := NewStreamer(&StreamerConfig{MaxSessions: 1})
	now := time.Now()
	a, err := st.create(now, "s")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := st.create(now, "s"); b != a || err != nil {
		t.Errorf("%p and %p, %v", a, b, err)
	}
	if _, err := st.create(now, "r"); !errors.Is(err, ErrTooMany) {
		t.Errorf("a second session: %v", err)
	}
}

// TestStreamerMaxReplayBuffer: ReplayEvents events are kept for replay, no more, but
// never fewer than are pending.
func TestStreamerMaxReplayBuffer(t *testing.T) {
	for _, test := range []struct{ limit, kept int }{{-1, 0}, {1, 1}, {2, 2}, {10, 10}, {1000, 1000}} {
		for _, n := range []int{test.kept - 1, test.kept, test.kept + 1, test.kept + 5} {
			if n < 1 {
				continue
			}
			t.Run(fmt.Sprintf("%d of %d", test.limit, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					st := NewStreamer(&StreamerConfig{ReplayEvents: test.limit})
					hub := playHubWindow(t, st, 10_000)
					publishN(t, st, "s", n)
					if s := stats(t, st, "s"); s.Events != n || s.First != 1 {
						t.Fatalf("before the ack: %+v", s)
					}
					for first := 1; first <= n; first += maxBatchEvents {
						hub.want(agentBatch("s", uint64(first), uint64(min(n, first+maxBatchEvents-1)), uint64(n)))
					}
					hub.acks("s", uint64(n))
					kept := min(n, test.kept)
					first := uint64(n - kept + 1)
					if s := stats(t, st, "s"); s.Events != kept || s.First != first || s.PendingEvents+s.PendingBytes != 0 {
						t.Errorf("after the ack: %+v", s)
					}
					req := &ReplayRequestPayload{SessionID: "s", ViewerID: "v", RequestID: "r"}
					hub.send(req)
					var gaps []Gap
					if first > 1 {
						gaps = []Gap{{1, first - 1, ReasonEvicted}}
					}
					last := min(first+maxReplayBatchEvents-1, uint64(n))
					hub.want(agentPage(req, 1, last, uint64(n), first, last == uint64(n), gaps...))
				})
			})
		}
	}
}

// TestStreamerRenew: only Renew gets past the hub's refusal; it begins a new life under
// a greater epoch than the hub knows (rules 2 and 11).
func TestStreamerRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		old := stats(t, st, "s").Epoch
		known, ok := epoch.Process.Past(time.Now().Add(time.Hour), old)
		if !ok {
			t.Fatal("no greater epoch")
		}
		hub.send(&ErrorPayload{Code: CodeStaleEpoch, SessionID: "s", Epoch: known})
		var again []Event
		for ev := range st.Unacked("s") {
			again = append(again, ev)
		}
		if len(again) != 3 {
			t.Errorf("%d events to be published again", len(again))
		}
		if err := st.Renew("s"); err != nil {
			t.Fatal(err)
		}
		if s := stats(t, st, "s"); s.Epoch <= known || s.Head != 0 || s.PendingEvents != 0 || s.Bytes != 0 {
			t.Errorf("renewed: %+v, want past %q", s, known)
		}
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 1, 2, 2))
		hub.send(&ErrorPayload{Code: CodeStaleEpoch, SessionID: "s", Epoch: known}) // an error about the life before
		hub.send(&ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: old})
		hub.send(&AckBatchPayload{SessionID: "s", Epoch: old, UpToSeq: 2})
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 3, 3, 3))
		hub.acks("s", 3)

		if err := st.Renew("t"); !errors.Is(err, ErrUnknownSession) {
			t.Errorf("Renew of an unknown session: %v", err)
		}
		hub.send(&ErrorPayload{Code: CodeStaleEpoch, SessionID: "s", Epoch: "zzz"})
		if err := st.Renew("s"); !errors.Is(err, ErrEpochAhead) {
			t.Errorf("Renew past the greatest epoch: %v", err)
		}
		if _, err := st.Publish(t.Context(), "s", Event{}); err == nil {
			t.Error("published to a stopped session")
		}
		st.Close(t.Context())
		if err := st.Renew("s"); err != ErrClosed {
			t.Errorf("Renew after Close: %v", err)
		}
	})
}

// TestStreamerBlock: with Block, a publisher waits for room, its context or the end
// of the session (rule 10, L4).
func TestStreamerBlock(t *testing.T) {
	cause := errors.New("no more patience")
	for _, test := range []struct {
		name string
		end  func(st *Streamer, hub *peer, cancel func(error))
		err  error
		seq  uint64
	}{
		{"ack", func(_ *Streamer, hub *peer, _ func(error)) { hub.acks("s", 1) }, nil, 3},
		{"ack of everything", func(_ *Streamer, hub *peer, _ func(error)) { hub.acks("s", 2) }, nil, 3},
		{"rejected", func(_ *Streamer, hub *peer, _ func(error)) {
			hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "s", Seq: 2})
		}, nil, 3},
		{"ctx", func(_ *Streamer, _ *peer, cancel func(error)) { cancel(cause) }, cause, 0},
		{"Close", func(st *Streamer, _ *peer, _ func(error)) { go st.Close(context.Background()) }, ErrClosed, 0},
		{"Forget", func(st *Streamer, _ *peer, _ func(error)) { st.Forget("s") }, nil, 1},
		{"Renew", func(st *Streamer, _ *peer, _ func(error)) { st.Renew("s") }, nil, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{MaxPendingEvents: 2})
				hub := playHub(t, st)
				publishN(t, st, "s", 2)
				hub.want(agentBatch("s", 1, 2, 2))
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				var seq uint64
				done := start(func() (err error) { seq, err = st.Publish(ctx, "s", Event{}); return err })
				pass(time.Hour)
				wantWaiting(t, done)
				test.end(st, hub, cancel)
				wantReturned(t, done, test.err)
				if seq != test.seq {
					t.Errorf("number %d, want %d", seq, test.seq)
				}
				if test.err == ErrClosed {
					hub.acks("s", 2) // so that Close ends
				}
			})
		})
	}
	t.Run("handle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(&StreamerConfig{MaxPendingEvents: 1})
			publishN(t, st, "s", 1)
			s, _ := st.Session("s")
			done := start(func() error { _, err := s.Publish(t.Context(), Event{}); return err })
			wantWaiting(t, done)
			st.Forget("s")
			wantReturned(t, done, ErrClosed)
		})
	})
	t.Run("room and an ended ctx", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if seq, err := NewStreamer(nil).Publish(ctx, "s", Event{}); seq != 1 || err != nil {
			t.Errorf("Publish = %d, %v", seq, err)
		}
	})
	t.Run("all in turn", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(&StreamerConfig{MaxPendingEvents: 1})
			hub := playHub(t, st)
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if _, err := st.Publish(t.Context(), "s", Event{}); err != nil {
						t.Error(err)
					}
				})
			}
			for seq := range uint64(20) {
				synctest.Wait()
				if p, ok := hub.next().(*EventBatchPayload); !ok || p.LastSeq != seq+1 {
					t.Fatalf("sent %v, want %d", p, seq+1)
				}
				hub.acks("s", seq+1)
			}
			all.Wait()
		})
	})
}

// When a ctx whose cause is ErrClosed, say of a group in which a link ended in that
// way, ended a Publish that waited for room, that was mistaken for a forgotten session,
// and tried again for ever.
func TestStreamerPublishEndsWithCauseErrClosed(t *testing.T) {
	st := NewStreamer(&StreamerConfig{MaxPendingEvents: 1})
	publishN(t, st, "s", 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrClosed)
	if seq, err := st.Publish(ctx, "s", Event{Type: "out"}); seq != 0 || err != ErrClosed {
		t.Errorf("published %d, %v", seq, err)
	}
}

// TestStreamerEndWakesPublishers: a publisher that waits for room in a session that another
// caller ends returns at once. It waited until the hub made room, for nothing (rule 10).
func TestStreamerEndWakesPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxPendingBytes: 300})
		st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 60)})
		waits := start(func() error {
			_, err := st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 100)})
			return err
		})
		wantWaiting(t, waits)
		defer st.Forget("s")
		if _, err := st.End(t.Context(), "s", Event{}); err != nil { // it is small enough
			t.Fatal(err)
		}
		wantReturned(t, waits, ErrEnded)
	})
}

// TestStreamerReject: with Reject, publishing beyond the limit of pending events uses
// no number (rule 10).
func TestStreamerReject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: Reject, MaxPendingEvents: 2})
		hub := playHub(t, st)
		publishN(t, st, "s", 2)
		for range 3 {
			if seq, err := st.Publish(t.Context(), "s", Event{}); seq != 0 || !errors.Is(err, ErrPendingFull) {
				t.Fatalf("Publish = %d, %v", seq, err)
			}
		}
		publishN(t, st, "t", 1) // other sessions are unaffected
		hub.want(agentBatch("s", 1, 2, 2), agentBatch("t", 1, 1, 1))
		hub.acks("s", 1)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 3, 3, 3))
		if _, err := st.Publish(t.Context(), "s", Event{}); !errors.Is(err, ErrPendingFull) {
			t.Errorf("Publish: %v", err)
		}
	})
}

// TestStreamerLimits checks just before, at and after the limits of pending events.
func TestStreamerLimits(t *testing.T) {
	ctx := context.Background()
	at := time.Date(2025, 11, 23, 0, 0, 0, 0, time.UTC)
	ev := Event{Time: at, Data: []byte(`"0123456789"`)}
	d := preparedEvent{ev: &ev}
	if err := d.check(false); err != nil {
		t.Fatal(err)
	}
	most := d.size()                           // with the longest number
	size := most - (seqRoom - len(`{"seq":1`)) // with number 1 to 9
	one := &StreamerConfig{Overflow: Reject, MaxPendingEvents: 1}
	for _, test := range []struct {
		name string
		cfg  StreamerConfig
		fits int // events that can be published
		err  error
	}{
		{"no events", StreamerConfig{MaxPendingEvents: -1}, 0, ErrPendingFull},
		{"one event", *one, 1, ErrPendingFull},
		{"five events", StreamerConfig{MaxPendingEvents: 5}, 5, ErrPendingFull},
		{"no bytes", StreamerConfig{MaxPendingBytes: -1}, 0, ErrTooLarge},
		{"one event's bytes less one", StreamerConfig{MaxPendingBytes: most - 1}, 0, ErrTooLarge},
		{"one event's bytes", StreamerConfig{MaxPendingBytes: most}, 1, ErrPendingFull},
		{"three events' bytes less one", StreamerConfig{MaxPendingBytes: 2*size + most - 1}, 2, ErrPendingFull},
		{"three events' bytes", StreamerConfig{MaxPendingBytes: 2*size + most}, 3, ErrPendingFull},
		{"no large events", StreamerConfig{MaxEventBytes: -1}, 0, ErrTooLarge},
		{"event's bytes less one", StreamerConfig{MaxEventBytes: most - 1}, 0, ErrTooLarge},
		{"event's bytes", StreamerConfig{MaxEventBytes: most, MaxPendingEvents: 1}, 1, ErrPendingFull},
		{"no sessions", StreamerConfig{MaxSessions: -1}, 0, ErrTooMany},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Overflow = Reject
			st := NewStreamer(&test.cfg)
			n := 0
			for ; n < 100; n++ {
				seq, err := st.Publish(ctx, "s", ev)
				if err != nil {
					if !errors.Is(err, test.err) || seq != 0 {
						t.Errorf("Publish = %d, %v, want %v", seq, err, test.err)
					}
					break
				}
			}
			if n != test.fits {
				t.Errorf("%d events, want %d", n, test.fits)
			}
		})
	}
	t.Run("defaults", func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: Reject})
		for n := range 8193 {
			if _, err := st.Publish(ctx, "s", Event{Time: at}); (errors.Is(err, ErrPendingFull)) != (n == 8192) {
				t.Fatalf("event %d: %v", n+1, err)
			}
		}
	})
	t.Run("sessions", func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxSessions: 2})
		publishN(t, st, "a", 1)
		publishN(t, st, "b", 1)
		if _, err := st.Publish(ctx, "c", Event{}); !errors.Is(err, ErrTooMany) {
			t.Errorf("third session: %v", err)
		}
		publishN(t, st, "a", 1)
		st.Forget("a")
		publishN(t, st, "c", 1)
	})
}

// TestStreamerDropOldest: the oldest pending events become a declared gap (rule 10).
func TestStreamerDropOldest(t *testing.T) {
	cfg := &StreamerConfig{Overflow: DropOldest, MaxPendingEvents: 3}
	dropped := func(from, to uint64) Gap { return Gap{from, to, ReasonDropped} }
	t.Run("before it was sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			publishN(t, st, "s", 10)
			if s := stats(t, st, "s"); s.Lost != 7 || s.PendingEvents != 3 || s.First != 1 || s.Events != 3 {
				t.Errorf("%+v", s)
			}
			hub := playHub(t, st)
			hub.wantStatus("s")
			hub.want(agentBatch("s", 1, 10, 10, dropped(1, 7)))
			hub.acks("s", 10)
		})
	})
	t.Run("sent, and the hub has it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			hub := playHub(t, st)
			publishN(t, st, "s", 3)
			hub.want(agentBatch("s", 1, 3, 3))
			publishN(t, st, "s", 2)
			hub.want(agentBatch("s", 4, 5, 5)) // no loss is reported
			hub.acks("s", 3)
			hub.acks("s", 5)
			hub.wantIdle("the hub has all")
		})
	})
	t.Run("sent, and lost on the way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			hub := playHub(t, st)
			publishN(t, st, "s", 3)
			hub.want(agentBatch("s", 1, 3, 3))
			publishN(t, st, "s", 2)
			hub.want(agentBatch("s", 4, 5, 5))
			hub.nacks("s", 0)
			hub.want(agentBatch("s", 1, 5, 5, dropped(1, 2)))
		})
	})
	t.Run("acknowledged in part", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			hub := playHub(t, st)
			publishN(t, st, "s", 3)
			hub.want(agentBatch("s", 1, 3, 3))
			hub.acks("s", 0)
			hub.link.Close()
			publishN(t, st, "s", 3) // 1 to 3 are a gap
			hub = reopenHub(t, st, map[string]uint64{"s": 2})
			hub.want(agentBatch("s", 3, 6, 6, dropped(3, 3)))
			publishN(t, st, "s", 1) // 4 joins the gap
			hub.want(agentBatch("s", 7, 7, 7))
			hub.nacks("s", 2)
			hub.want(agentBatch("s", 3, 7, 7, dropped(3, 4)))
			hub.acks("s", 7)
			if s := stats(t, st, "s"); s.PendingEvents+s.PendingBytes != 0 {
				t.Errorf("in the end: %+v", s)
			}
		})
	})
	t.Run("bytes", func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingBytes: 1000})
		for i := range 50 {
			if seq, err := st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 10*i)}); seq != uint64(i+1) || err != nil {
				t.Fatalf("Publish = %d, %v", seq, err)
			}
			if s := stats(t, st, "s"); s.PendingBytes > 1000 || s.PendingEvents < 1 {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// TestStreamerManyLosses: lost events cost an agent no more memory than kept ones, even
// when dropped and refused events alternate and the hub acknowledges nothing.
func TestStreamerManyLosses(t *testing.T) {
	t.Parallel()
	const pending, published = 4, 1500
	now := time.UnixMilli(1_700_000_000_000)
	st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingEvents: pending})
	al := st.connect(now)
	says := func() (out []Payload) {
		for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
			out = append(out, p)
		}
		return out
	}
	says()
	al.handle(t.Context(), now, &WelcomePayload{V: version, Link: "l", WindowEvents: 1 << 30})
	most := 0
	for range published {
		s, seq, err := offer(now, st, "s", Event{})
		if err != nil {
			t.Fatal(err)
		}
		says()
		if seq%2 == 0 {
			al.handle(t.Context(), now, &ErrorPayload{SessionID: "s", Code: CodeEventRejected, Seq: seq})
		}
		most = max(most, s.log.ring.n)
	}
	if most > maxGaps+4*pending {
		t.Errorf("%d entries for %d events", most, pending)
	}
	al.handle(t.Context(), now, &AckBatchPayload{SessionID: "s", Epoch: st.lookup("s").epoch, Link: "l", Nack: true})
	next := uint64(1)
	for _, p := range says() { // all of it is still declared
		b, ok := p.(*EventBatchPayload)
		if !ok {
			continue
		}
		if err := b.check(); err != nil || b.FirstSeq != next {
			t.Fatalf("a batch from %d, want %d: %v", b.FirstSeq, next, err)
		}
		next = b.LastSeq + 1
	}
	if next != published+1 {
		t.Errorf("told up to %d", next-1)
	}
}

// TestStreamerReplayBytes: the bytes kept for replay have a limit, too.
func TestStreamerReplayBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, _ := ackedStreamer(t, nil, 9)
		size := stats(t, st, "s").Bytes / 9
		for _, test := range []struct{ limit, kept int }{
			{-1, 0}, {size - 1, 0}, {size, 1}, {3*size - 1, 2}, {3 * size, 3}, {3*size + 1, 3}, {9 * size, 9}, {0, 9},
		} {
			st, _ := ackedStreamer(t, &StreamerConfig{ReplayBytes: test.limit}, 9)
			if s := stats(t, st, "s"); s.Events != test.kept {
				t.Errorf("limit %d: %d events kept, want %d", test.limit, s.Events, test.kept)
			}
		}
	})
}

// TestStreamerEnd: after the end nothing is published; 5 min after its ack the
// session is forgotten, and may begin anew (rule 16).
func TestStreamerEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		s, err := st.Session("s")
		if err != nil {
			t.Fatal(err)
		}
		if seq, err := s.Publish(t.Context(), Event{End: true}); seq != 1 || err != nil {
			t.Fatalf("Publish = %d, %v", seq, err) // which ignores End
		}
		if seq, err := st.End(t.Context(), "s", Event{Type: "exit"}); seq != 2 || err != nil {
			t.Fatalf("End = %d, %v", seq, err)
		}
		hub.want(&EventBatchPayload{
			SessionID: "s", FirstSeq: 1, LastSeq: 2, HeadSeq: 2,
			Events: []Event{{Seq: 1}, {Seq: 2, Type: "exit", End: true}},
		})
		for _, publish := range []func(context.Context, Event) (uint64, error){s.Publish, s.End} {
			if seq, err := publish(t.Context(), Event{}); seq != 0 || err != ErrEnded {
				t.Errorf("after the end: %d, %v", seq, err)
			}
		}
		old := s.Stats()
		if !old.Ended || old.Head != 2 {
			t.Errorf("%+v", old)
		}
		pass(endedTTL)
		hub = reopenHub(t, st, map[string]uint64{"s": 1})
		hub.want(&EventBatchPayload{
			SessionID: "s", FirstSeq: 2, LastSeq: 2, HeadSeq: 2, Events: []Event{{Seq: 2, Type: "exit", End: true}},
		})
		hub.acks("s", 2)
		pass(endedTTL - 1)
		if n := st.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions just before the time", n)
		}
		if _, err := st.Publish(t.Context(), "s", Event{}); err != ErrEnded {
			t.Errorf("just before the time: %v", err)
		}
		pass(1)
		if n := st.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions after the time", n)
		}
		if _, err := s.Publish(t.Context(), Event{}); err != ErrClosed {
			t.Errorf("handle of a forgotten session: %v", err)
		}
		publishN(t, st, "s", 1)
		if now := stats(t, st, "s"); now.Epoch <= old.Epoch || now.Head != 1 {
			t.Errorf("in its new life: %+v", now)
		}
	})
}

// TestStreamerEndMovedBack: the 5 min count from the latest ack of the end (rule 16).
func TestStreamerEndMovedBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		if _, err := st.End(t.Context(), "s", Event{}); err != nil {
			t.Fatal(err)
		}
		hub.wantTypes("event_batch")
		hub.acks("s", 1)
		pass(endedTTL - time.Minute)
		hub = reopenHub(t, st, map[string]uint64{"s": 0}) // the hub has lost it
		hub.wantTypes("event_batch")
		hub.acks("s", 1)
		pass(endedTTL - 1)
		if n := st.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions just before 5 min", n)
		}
		pass(1)
		if n := st.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions after 5 min", n)
		}
	})
}

// A session whose end is acknowledged repeatedly is listed once for forgetting: a hub
// that took its acks back made the agent's list of ended sessions grow.
func TestGrowthEnded(t *testing.T) {
	st := NewStreamer(nil)
	if _, err := st.End(t.Context(), "s", Event{}); err != nil {
		t.Fatal(err)
	}
	s := st.lookup("s")
	now := time.Now()
	link := func() {
		al := st.connect(now)
		for _, p := range []Payload{
			nil,
			&WelcomePayload{V: version, Link: "l", WindowEvents: 256},
			&AckBatchPayload{SessionID: "s", Epoch: s.epoch, Link: "l", UpToSeq: 0},
			&AckBatchPayload{SessionID: "s", Epoch: s.epoch, Link: "l", UpToSeq: 1},
		} {
			if p != nil {
				if err := al.handle(endedContext, now, p); err != nil {
					t.Fatal(err)
				}
			}
			for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
			}
		}
	}
	for range 100 {
		link()
	}
	if n := len(st.ended); n != 1 {
		t.Errorf("one session is to be forgotten %d times", n)
	}
	// What was acknowledged later is forgotten later.
	now = now.Add(endedTTL - time.Second)
	link()
	now = now.Add(2 * time.Second)
	if st.expire(now); st.lookup("s") == nil {
		t.Error("forgotten by its first acknowledgement")
	}
	now = now.Add(endedTTL - 2*time.Second)
	if st.expire(now); st.lookup("s") != nil {
		t.Error("not forgotten in time")
	}
}

// TestStreamerFlush waits for what was published before it.
func TestStreamerFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		if err := st.Flush(t.Context()); err != nil {
			t.Errorf("with nothing: %v", err)
		}
		publishN(t, st, "a", 2)
		publishN(t, st, "b", 1)
		flush := start(func() error { return st.Flush(t.Context()) })
		pass(time.Hour) // there is no connection
		wantWaiting(t, flush)
		hub := playHub(t, st)
		hub.wantStatus("a", "b")
		hub.want(agentBatch("a", 1, 2, 2), agentBatch("b", 1, 1, 1))
		publishN(t, st, "a", 1)
		hub.want(agentBatch("a", 3, 3, 3))
		hub.acks("a", 1)
		hub.acks("b", 1)
		wantWaiting(t, flush)
		hub.acks("a", 2) // what came later is not waited for
		wantReturned(t, flush, nil)

		cause := errors.New("no more patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		flush = start(func() error { return st.Flush(ctx) })
		wantWaiting(t, flush)
		cancel(cause)
		wantReturned(t, flush, cause)
		hub.acks("a", 3)
		if err := st.Flush(ctx); err != nil { // a ready result is preferred
			t.Errorf("with everything acknowledged: %v", err)
		}
		publishN(t, st, "c", 1)
		flush = start(func() error { return st.Flush(t.Context()) })
		wantWaiting(t, flush)
		st.Forget("c")
		wantReturned(t, flush, nil)
	})
}

// TestStreamerClose waits as Flush does, and reports what is left.
func TestStreamerClose(t *testing.T) {
	cause := errors.New("no more patience")
	t.Run("with nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, hub := ackedStreamer(t, nil, 2)
			if err := st.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
			hub.wantDead(ErrClosed)
			for _, f := range []func() error{
				func() error { _, err := st.Publish(t.Context(), "s", Event{}); return err },
				func() error { _, err := st.Publish(t.Context(), "new", Event{}); return err },
				func() error { _, err := st.End(t.Context(), "s", Event{}); return err },
				func() error { _, err := st.Session("new"); return err },
				func() error { _, err := st.Connect().Next(t.Context()); return err },
				func() error { return st.Connect().Handle(t.Context(), &StatusPayload{Link: "l"}) },
			} {
				if err := f(); err != ErrClosed {
					t.Errorf("after Close: %v", err)
				}
			}
			if err := st.Close(t.Context()); err != nil {
				t.Errorf("Close again: %v", err)
			}
		})
	})
	t.Run("acknowledged meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			publishN(t, st, "s", 2)
			done := start(func() error { return st.Close(t.Context()) })
			wantWaiting(t, done)
			if _, err := st.Publish(t.Context(), "s", Event{}); err != ErrClosed {
				t.Errorf("Publish while Close waits: %v", err)
			}
			hub.want(agentBatch("s", 1, 2, 2))
			hub.link.Close()
			hub = reopenHub(t, st, map[string]uint64{"s": 1}) // links may be made meanwhile
			hub.want(agentBatch("s", 2, 2, 2))
			wantWaiting(t, done)
			hub.acks("s", 2)
			wantReturned(t, done, nil)
			hub.wantDead(ErrClosed)
		})
	})
	t.Run("detached", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			publishN(t, st, "a", 300)
			publishN(t, st, "b", 1)
			ctx, cancel := context.WithCancelCause(t.Context())
			done := start(func() error { return st.Close(ctx) })
			pass(time.Hour)
			wantWaiting(t, done)
			cancel(cause)
			err := <-done
			var left *UnackedError
			if !errors.As(err, &left) || left.Sessions != 2 || left.Events != 301 || !errors.Is(err, cause) {
				t.Errorf("Close: %v", err)
			}
			if want := "gvstream: 301 events of 2 sessions not acknowledged, 0 lost: no more patience"; err.Error() != want {
				t.Errorf("Close: %q", err)
			}
			if err := st.Close(t.Context()); !errors.As(err, &left) || !errors.Is(err, ErrClosed) {
				t.Errorf("Close again: %v", err)
			}
			n := uint64(0)
			for ev := range st.Unacked("a") {
				n++
				if diff := cmp.Diff(numberedEvent(n), ev, anyTime); diff != "" {
					t.Fatal(diff)
				}
			}
			if n != 300 {
				t.Errorf("%d unacked events after Close", n)
			}
		})
	})
	t.Run("ctx over, a gap undelivered", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 1, 1, 1))
			hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "s", Seq: 1})
			hub.link.Close()
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(cause)
			if err := st.Close(ctx); err == nil {
				t.Error("Close says that all is acknowledged, but the hub knows nothing of number 1")
			}
		})
	})
}

// TestStreamerFlushAfterClose: when no link can come any more, nobody waits for acks.
func TestStreamerFlushAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		st.Publish(t.Context(), "s", Event{})
		returned := make(chan string, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { st.Flush(ctx); returned <- "flush" }()
		go func() { st.Close(ctx); returned <- "close 1" }()
		synctest.Wait()
		ended, stop := context.WithCancel(t.Context())
		stop()
		st.Close(ended) // shuts: no link can come any more
		pass(time.Hour)
		synctest.Wait()
		if n := len(returned); n != 2 {
			t.Errorf("%d of Flush and the first Close returned", n)
		}
		cancel()
		synctest.Wait()
	})
}

// TestStreamerUnacked yields what the hub has not acknowledged, copied.
func TestStreamerUnacked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 1000)
		publishN(t, st, "s", 600)
		unacked := func(id string) (out []Event) {
			for ev := range st.Unacked(id) {
				out = append(out, ev)
			}
			return out
		}
		if diff := cmp.Diff(numbered(1, 600), unacked("s"), anyTime); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		hub.want(agentBatch("s", 1, 256, 600))
		hub.acks("s", 200)
		hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "s", Seq: 202})
		want := append(numbered(201, 201), numbered(203, 600)...)
		got := unacked("s")
		if diff := cmp.Diff(want, got, anyTime); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for _, ev := range got {
			clear(ev.Data)
		}
		if diff := cmp.Diff(want, unacked("s"), anyTime); diff != "" {
			t.Errorf("after its copy was spoilt (-want +got):\n%s", diff)
		}
		for ev := range st.Unacked("s") {
			if ev.Seq != 201 {
				t.Errorf("went on after break")
			}
			hub.acks("s", 256)
			break
		}
		n := 0
		for range st.Unacked("s") { // the loop body may call any method
			if n++; n == 1 {
				st.Forget("s")
			}
		}
		if n == 0 || unacked("s") != nil || unacked("never") != nil {
			t.Errorf("%d events; of no session: %v", n, unacked("never"))
		}
	})
}

// TestStreamerForget: a forgotten session is gone with everything; published to
// again, it has a new life.
func TestStreamerForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		s, err := st.Session("s")
		if err != nil {
			t.Fatal(err)
		}
		old := s.Stats()
		st.Forget("s")
		st.Forget("s")
		st.Forget("never")
		if _, err := s.Publish(t.Context(), Event{}); err != ErrClosed {
			t.Errorf("Publish by the handle: %v", err)
		}
		if _, err := s.End(t.Context(), Event{}); err != ErrClosed {
			t.Errorf("End by the handle: %v", err)
		}
		if got := st.Stats(); got.Sessions+got.Bytes+got.PendingEvents+got.PendingBytes != 0 {
			t.Errorf("Stats() = %+v", got)
		}
		hub.want(&StatusPayload{Sessions: []SessionStatus{{SessionID: "s", Epoch: old.Epoch, FirstSeq: 4, HeadSeq: 3, Forgotten: true}}})
		hub.refused(&AckBatchPayload{SessionID: "s", Epoch: old.Epoch, UpToSeq: 3}, &ErrorPayload{Code: CodeUnknownSession, SessionID: "s"})
		publishN(t, st, "s", 1)
		if now := stats(t, st, "s"); now.Epoch <= old.Epoch {
			t.Errorf("epoch %q after %q", now.Epoch, old.Epoch)
		}
		hub.want(agentBatch("s", 1, 1, 1))
		hub.send(&AckBatchPayload{SessionID: "s", Epoch: old.Epoch, UpToSeq: 3})
		if now := stats(t, st, "s"); now.Acked != 0 {
			t.Errorf("an ack of the old life counts: %+v", now)
		}
		hub.wantAfter(15*time.Second, hub.statusOf("s"), agentBatch("s", 1, 1, 1))
		hub.wantIdle("said once")
	})
}

// TestStreamerConcurrent: with concurrent publishers, numbers are 1 to n, each once
// (rule 1).
func TestStreamerConcurrent(t *testing.T) {
	t.Parallel()
	const publishers, each = 64, 1000
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxPendingEvents: 5000, ReplayEvents: 1000})
		hub := playHub(t, st)
		numbers := make([][]uint64, publishers)
		var all sync.WaitGroup
		for i := range publishers {
			all.Go(func() {
				for range each {
					seq, err := st.Publish(t.Context(), "s", Event{})
					if err != nil {
						t.Error(err)
						return
					}
					numbers[i] = append(numbers[i], seq)
				}
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		acked := start(func() error {
			next := uint64(1)
			for {
				p, err := hub.link.Next(ctx)
				if err != nil {
					return err
				}
				b, ok := p.(*EventBatchPayload)
				if !ok {
					continue
				}
				if b.FirstSeq != next {
					return fmt.Errorf("batch from %d, want %d", b.FirstSeq, next)
				}
				next = b.LastSeq + 1
				ack := &AckBatchPayload{SessionID: "s", Epoch: b.Epoch, Link: b.Link, UpToSeq: b.LastSeq}
				if err := hub.link.Handle(ctx, ack); err != nil {
					return err
				}
			}
		})
		all.Wait()
		if err := st.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		cancel()
		wantReturned(t, acked, context.Canceled)
		seen := make([]bool, publishers*each+1)
		for _, seqs := range numbers {
			if !slices.IsSorted(seqs) {
				t.Error("a publisher's numbers are out of order")
			}
			for _, seq := range seqs {
				if seq < 1 || seq > publishers*each || seen[seq] {
					t.Fatalf("number %d", seq)
				}
				seen[seq] = true
			}
		}
		if s := stats(t, st, "s"); s.Head != publishers*each || s.Acked != s.Head || s.PendingEvents+s.PendingBytes != 0 || s.Events != 1000 {
			t.Errorf("in the end: %+v", s)
		}
	})
}

// TestStreamerCopies: Publish copies its bytes, so the caller may use them again.
func TestStreamerCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		line, raw := []byte("1"), []byte("a")
		for i := range 5 {
			line[0], raw[0] = byte('1'+i), byte('a'+i)
			if _, err := st.Publish(t.Context(), "data", Event{Data: line}); err != nil {
				t.Fatal(err)
			}
			if _, err := st.Publish(t.Context(), "bytes", Event{Bytes: raw}); err != nil {
				t.Fatal(err)
			}
		}
		line[0], raw[0] = 'x', 'x'
		for range 2 {
			p := hub.next()
			var got []byte
			for _, ev := range p.(*EventBatchPayload).Events {
				got = append(append(got, ev.Data...), ev.Bytes...)
			}
			if s := string(got); s != "12345" && s != "abcde" {
				t.Errorf("published bytes changed: %s", s)
			}
		}
	})
}

// TestStreamerEvents: the valid kinds of event, and how they arrive.
func TestStreamerEvents(t *testing.T) {
	at := time.Date(2025, 11, 23, 23, 0, 0, 250, time.FixedZone("", 3600))
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		now := time.Now().UTC()
		for _, test := range []struct{ ev, want Event }{
			{Event{}, Event{Time: now}},
			{Event{Data: []byte{}, Bytes: []byte{}}, Event{Time: now}},
			{Event{Data: []byte(`""`)}, Event{Data: []byte(`""`), Time: now}},
			{Event{Data: []byte(`null`)}, Event{Data: []byte(`null`), Time: now}},
			{Event{Data: []byte(" [1, \"a b\"]\n")}, Event{Data: []byte(`[1,"a b"]`), Time: now}},
			{Event{Bytes: []byte{0}}, Event{Bytes: []byte{0}, Time: now}},
			{Event{Bytes: []byte("\x1b[1m\xff\xfe")}, Event{Bytes: []byte("\x1b[1m\xff\xfe"), Time: now}},
			{Event{Time: at}, Event{Time: at.UTC()}},
			{Event{Seq: 77, End: true, Type: "t"}, Event{Type: "t", Time: now}},
			{Event{Type: strings.Repeat("x", maxID)}, Event{Type: strings.Repeat("x", maxID), Time: now}},
			{Event{Data: []byte(strings.Repeat("[", 400) + strings.Repeat("]", 400))}, Event{Data: []byte(strings.Repeat("[", 400) + strings.Repeat("]", 400)), Time: now}},
		} {
			seq, err := st.Publish(t.Context(), "s", test.ev)
			if err != nil {
				t.Errorf("Publish: %v", err)
				continue
			}
			p := hub.next()
			test.want.Seq = seq
			if diff := cmp.Diff([]Event{test.want}, p.(*EventBatchPayload).Events, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	})
}

// TestStreamerInvalidEvents: an event that can't be encoded uses no number.
func TestStreamerInvalidEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		for _, test := range []struct {
			ev  Event
			err error
		}{
			{Event{Data: []byte("1"), Bytes: []byte("1")}, ErrInvalidData},
			{Event{Data: []byte("{")}, ErrInvalidData},
			{Event{Data: []byte(" ")}, ErrInvalidData},
			{Event{Data: []byte("1 2")}, ErrInvalidData},
			{Event{Data: []byte("1}")}, ErrInvalidData},
			{Event{Data: []byte("nul")}, ErrInvalidData},
			{Event{Data: []byte("'a'")}, ErrInvalidData},
			{Event{Data: []byte("\"\xff\"")}, ErrInvalidData},
			{Event{Data: []byte("\"\n\"")}, ErrInvalidData},
			{Event{Data: []byte(strings.Repeat("[", 600) + strings.Repeat("]", 600))}, ErrInvalidData},
			{Event{Type: strings.Repeat("x", maxID+1)}, ErrInvalidData},
			{Event{Type: "a\x00"}, ErrInvalidData},
			{Event{Type: "\xff"}, ErrInvalidData},
			{Event{Time: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}, ErrInvalidData},
			{Event{Time: time.Date(-1, 12, 31, 0, 0, 0, 0, time.UTC)}, ErrInvalidData},
			{Event{Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600))}, ErrInvalidData}, // the year before in UTC
			{Event{Data: bytes.Repeat([]byte("1"), 1<<20)}, ErrTooLarge},
			{Event{Bytes: make([]byte, 800<<10)}, ErrTooLarge}, // in base64
		} {
			if seq, err := st.Publish(t.Context(), "s", test.ev); seq != 0 || !errors.Is(err, test.err) {
				t.Errorf("Publish(%.40q, %.40q) = %d, %v, want %v", test.ev.Data, test.ev.Type, seq, err, test.err)
			}
			if _, err := st.End(t.Context(), "s", test.ev); !errors.Is(err, test.err) {
				t.Errorf("End: %v, want %v", err, test.err)
			}
		}
		publishN(t, st, "s", 1) // and gets number 1
	})
}

// trustWires are ways from agent to hub; each returns what becomes of a payload on it.
var trustWires = map[string]func(p Payload) []any{
	"in one process": func(p Payload) []any { return []any{p} },
	"frames":         func(p Payload) []any { return []any{decoded(p, nil)} },
	"lines": func(p Payload) (out []any) { // as Lines would cut them
		line, _ := Marshal(p)
		for _, part := range bytes.Split(line, []byte("\n")) {
			out = append(out, decoded(nil, part))
		}
		return out
	},
}

// decoded is a payload or frame as it arrives, or the error of decoding it.
func decoded(p Payload, line []byte) any {
	if line == nil {
		line, _ = Marshal(p)
	}
	got, err := Unmarshal(line)
	if err != nil {
		return err
	}
	return got
}

// carryTrusted carries payloads between an agent and a hub until neither has more to
// send.
func carryTrusted(t *testing.T, now time.Time, agent, hub *Link, wire func(Payload) []any) {
	t.Helper()
	for quiet := false; !quiet; {
		quiet = true
		if p, _, err := agent.next(now); err != nil {
			t.Fatal(err)
		} else if p != nil {
			quiet = false
			for _, got := range wire(p) {
				var refused *ProtocolError
				if err, ok := got.(error); ok && errors.As(err, &refused) {
					hub.refuse(now, refused)
				} else if err := hub.handle(context.Background(), now, got.(Payload)); err != nil && !errors.As(err, &refused) {
					t.Fatal(err)
				}
			}
		}
		if p, _, err := hub.next(now); err != nil {
			t.Fatal(err)
		} else if p != nil {
			quiet = false
			if err := agent.handle(context.Background(), now, p); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTrustData: trusted data that is invalid is refused by the hub and becomes a
// declared gap, whatever it contains and however it travels; the events around it
// arrive (rule 11).
func TestTrustData(t *testing.T) {
	for _, bad := range []string{
		"{", `"`, `"a\"`, "\"\xff\"", "\"\t\"", "nul", "1 2", `1}`, `1},{"seq":2,"data":1`, `1,"seq":7`, `1]`, deep(jsontext.MaxDepth + 1),
		`1}],"x":[{"y":1`, `1}],"session_id":"other","x":[{"y":1`, `1}]},"payload":{"x":[{"y":1`, `1}]}}`,
		`1},{"seq":3,"data":NaN`, `1},{"seq":3,"time":1},{"seq":4,"data":1`, // for which the hub refuses another event
	} {
		for name, wire := range trustWires {
			t.Run(fmt.Sprintf("%.20q/%s", bad, name), func(t *testing.T) {
				st, h := NewStreamer(&StreamerConfig{TrustData: true}), NewHub(nil)
				s, err := st.Session("s")
				if err != nil {
					t.Fatal(err)
				}
				for _, data := range []string{`"first"`, bad, `{"a":"last"}`, bad, bad} {
					if _, err := s.Publish(t.Context(), Event{Type: "out", Data: []byte(data)}); err != nil {
						t.Fatal(err)
					}
				}
				now := time.Now()
				carryTrusted(t, now, st.Connect(), h.ConnectAgent("a"), wire)
				s.Publish(t.Context(), Event{Bytes: []byte("more")})
				for range 4 { // an ack that the hub holds back
					now = now.Add(ackDelay)
					carryTrusted(t, now, st.link.Link, h.agents["a"].Link, wire)
				}
				e := s.Stats().Epoch
				hubSaw(t, h, "s", "s "+e+" 1", "s "+e+" gap 2-2 rejected", "s "+e+" 3", "s "+e+" gap 4-5 rejected", "s "+e+" 6")
				if got := s.Stats(); got.Acked != 6 || got.Lost != 3 {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

// TestTrustDataWhiteSpace: a hub that can read data with white space keeps it.
func TestTrustDataWhiteSpace(t *testing.T) {
	for name, wire := range trustWires {
		st, h := NewStreamer(&StreamerConfig{TrustData: true}), NewHub(nil)
		if _, err := st.Publish(t.Context(), "s", Event{Data: []byte("[1, 2]")}); err != nil {
			t.Fatal(err)
		}
		carryTrusted(t, time.Now(), st.Connect(), h.ConnectAgent("a"), wire)
		for it := range h.Items(endedContext, "s", Position{}) {
			if it.Event == nil || string(it.Event.Data) != "[1,2]" {
				t.Errorf("%s: %+v", name, it)
			}
		}
	}
}

// TestTrustDataNewline: data with a newline, which over lines could be any other
// payload, is never sent. A json.Encoder ends its values with one.
func TestTrustDataNewline(t *testing.T) {
	st := NewStreamer(&StreamerConfig{TrustData: true})
	for _, data := range []string{"1\n", "[1,\n2]", "\"\n\"", "1}]}}\n" + `{"type":"status","payload":{"link":"l"}}`} {
		if seq, err := st.Publish(t.Context(), "s", Event{Data: []byte(data)}); seq != 0 || !errors.Is(err, ErrInvalidData) {
			t.Errorf("%q: number %d, %v", data, seq, err)
		}
	}
	if got := st.Stats(); got.PendingEvents != 0 {
		t.Errorf("%+v", got)
	}
}

// TestTrustDataVet: a hub that can't read a frame costs the agent the events whose data
// is invalid, and none that has no data, has bytes, or was refused before (rule 11). That
// comes before the event that the hub names.
func TestTrustDataVet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{TrustData: true})
		hub := playHub(t, st)
		for _, ev := range []Event{{Type: "none"}, {Bytes: []byte("bytes")}, {Data: []byte("1")}, {Data: []byte("{")}, {Data: []byte(`"a"`)}} {
			if _, err := st.Publish(t.Context(), "s", ev); err != nil {
				t.Fatal(err)
			}
		}
		sent := func(gaps ...Gap) {
			t.Helper()
			p, err := hub.link.Next(endedContext) // not over the wire, which can't bring it
			if b, ok := p.(*EventBatchPayload); err != nil || !ok || b.LastSeq != 5 || fmt.Sprint(b.Gaps) != fmt.Sprint(gaps) {
				t.Fatalf("%v, got %+v, want 1 to 5 with %v", err, p, gaps)
			}
			hub.wantIdle("all is sent")
		}
		sent()
		hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "s", Seq: 3})
		sent(Gap{4, 4, ReasonRejected}) // whose data may have been taken for an event 3
		hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "s", Seq: 3})
		hub.want(agentBatch("s", 3, 3, 5, Gap{3, 3, ReasonRejected}))
		hub.send(&ErrorPayload{Code: CodeMalformed})
		hub.wantIdle("each is looked at once")
		old := st.link
		hub.link.Close()
		old.recheckData() // late: the session is on no link, or on another
		reopenHub(t, st, map[string]uint64{"s": 0})
		old.recheckData()
		if s := stats(t, st, "s"); s.Lost != 2 || s.PendingEvents != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTrustDataVetSent: what was not sent yet is not what a hub could not read.
func TestTrustDataVetSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{TrustData: true})
		hub := playHubWindow(t, st, 1)
		for _, data := range []string{"1", "{"} {
			if _, err := st.Publish(t.Context(), "s", Event{Data: []byte(data)}); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := hub.link.Next(endedContext); err != nil || p.(*EventBatchPayload).LastSeq != 1 {
			t.Fatal(p, err)
		}
		hub.send(&ErrorPayload{Code: CodeMalformed})
		if s := stats(t, st, "s"); s.Lost != 0 || s.PendingEvents != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTrustDataVetOnce: a hub that keeps answering malformed makes the agent check its
// sessions once, and not again for each error of a hundred bytes.
func TestTrustDataVetOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{TrustData: true})
		hub := playHub(t, st)
		for i := range 500 {
			publishN(t, st, fmt.Sprint("s", i), 1)
		}
		for {
			if _, err := hub.link.Next(endedContext); err != nil {
				break
			}
		}
		complain := func() { hub.send(&ErrorPayload{Code: CodeMalformed}) }
		complain()
		if n := testing.AllocsPerRun(100, complain); n > 10 {
			t.Errorf("%v allocations an error, of an agent with 500 sessions", n)
		}
		if _, err := st.Publish(t.Context(), "s7", Event{Data: []byte("{")}); err != nil {
			t.Fatal(err)
		}
		if p, err := hub.link.Next(endedContext); err != nil {
			t.Fatalf("%v, %v", p, err)
		}
		complain() // what was sent since is checked
		if s := stats(t, st, "s7"); s.Lost != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTrustDataOff: by default Publish refuses invalid data, and no number is used.
func TestTrustDataOff(t *testing.T) {
	st := NewStreamer(nil)
	if seq, err := st.Publish(t.Context(), "s", Event{Data: []byte("{")}); seq != 0 || !errors.Is(err, ErrInvalidData) {
		t.Errorf("Publish = %d, %v", seq, err)
	}
}

// Most of an agent's many sessions are idle: the memory of one is bounded, and its
// first events allocate only a chunk that fits them. Sizes are those of the allocator's
// classes.
func TestSessionMemory(t *testing.T) {
	if n := reflect.TypeFor[Session]().Size(); n > 96 {
		t.Errorf("a session takes %d bytes", n)
	}
	if n := reflect.TypeFor[life]().Size(); n > 160 {
		t.Errorf("its life takes %d bytes", n)
	}
	s, err := NewStreamer(nil).Session("s")
	if err != nil {
		t.Fatal(err)
	}
	if s.Stats(); s.life != &emptyLife {
		t.Error("a session without events has a life of its own")
	}
	for range 10 {
		if _, err := s.Publish(t.Context(), Event{Type: "line", Data: []byte(`"` + strings.Repeat("x", 62) + `"`)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.log.store.size; n > 1536 {
		t.Errorf("10 events of %d bytes take %d", s.log.bytes, n)
	}
}

// TestStreamerLastNumber: a session that has used all numbers but one can use that, and
// then says that there are no more (rule 1). Nothing wraps around, and a new life
// begins at 1. Nobody can publish that many, so the test sets the number.
func TestStreamerLastNumber(t *testing.T) {
	st := NewStreamer(nil)
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.ownLifeLocked()
	s.log = log{head: MaxSeq - 1}
	s.acked = MaxSeq - 1
	s.mu.Unlock()
	if seq, err := s.Publish(t.Context(), Event{}); seq != MaxSeq || err != nil {
		t.Errorf("Publish = %d, %v", seq, err)
	}
	for range 2 {
		if seq, err := s.Publish(t.Context(), Event{}); seq != 0 || err != ErrSeqExhausted {
			t.Errorf("Publish = %d, %v", seq, err)
		}
		if seq, err := s.End(t.Context(), Event{}); seq != 0 || err != ErrSeqExhausted {
			t.Errorf("End = %d, %v", seq, err)
		}
	}
	if got := s.Stats(); got.Head != MaxSeq || got.PendingEvents != 1 {
		t.Errorf("%+v", got)
	}
	if err := st.Renew("s"); err != nil {
		t.Fatal(err)
	}
	publishN(t, st, "s", 1)
}

// TestPublishAllocs: a publish allocates nothing once the log has reached its size,
// whatever happens to the events it evicts.
func TestPublishAllocs(t *testing.T) {
	for name, cfg := range map[string]StreamerConfig{
		"drop oldest":    {Overflow: DropOldest, MaxPendingEvents: 100, ReplayEvents: -1},
		"replay buffer":  {Overflow: Reject, ReplayEvents: 100},
		"trusted":        {Overflow: Reject, ReplayEvents: 100, TrustData: true},
		"common budget":  {Overflow: DropOldest, MaxTotalBytes: 64 << 10},
		"replay by size": {Overflow: Reject, ReplayBytes: 32 << 10},
	} {
		for _, ev := range []Event{
			{Type: "stdout", Data: fmt.Appendf(nil, "%q", strings.Repeat("x", 250))},
			{Type: "tty", Bytes: make([]byte, 1000)},
			{Time: time.Date(2025, 11, 23, 22, 34, 5, 120e6, time.UTC), Data: []byte(`{"line":"ok"}`)},
		} {
			st := NewStreamer(&cfg)
			s, err := st.Session("s")
			if err != nil {
				t.Fatal(err)
			}
			publish := func() {
				if _, err := s.Publish(context.Background(), ev); err != nil {
					t.Fatal(err)
				}
				if cfg.Overflow == Reject { // as an ack does
					s.mu.Lock()
					s.freeLocked(time.Time{}, s.log.head)
					s.mu.Unlock()
				}
			}
			for range 2000 {
				publish()
			}
			if n := testing.AllocsPerRun(testenv.Fewer(1000), publish); n > 0 {
				t.Errorf("%s: %v allocations a Publish of type %q", name, n, ev.Type)
			}
		}
	}
}
