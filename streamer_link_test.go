package gvstream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/testenv"
)

// TestStreamerHello: hello is repeated on the timer until it is answered, and a welcome
// counts only while one is awaited (rule 3).
func TestStreamerHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hello := &HelloPayload{V: 1, Role: "agent"}
		hub := meetHub(t, st)
		hub.want(hello)
		hub.wantAfter(15*time.Second, hello)
		if st.Stats().Connected {
			t.Error("connected before the welcome")
		}
		hub.welcome(hub.id)
		hub.send(&WelcomePayload{V: 1, Link: "other", WindowEvents: 1}) // not awaited
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))

		hub.send(&ErrorPayload{Code: CodeStaleLink, Retryable: true})
		hub.send(&ErrorPayload{Code: CodeStaleLink, Retryable: true})
		hub.want(hello)
		hub.welcome(hub.id) // the same once more
		hub.wantIdle("nothing was lost")
		hub.acks("s", 1)

		hub.send(&ErrorPayload{Code: CodeStaleLink, Retryable: true})
		hub.want(hello)
		hub.window = 2
		hub.welcome("other") // a new link id: everything of the link starts afresh
		hub.wantStatus("s")
		hub.wantIdle("no batch before the first ack")
		hub.acks("s", 1)
		hub.want(agentBatch("s", 2, 3, 3))
		if n := st.Stats().StalePayloads; n != 1 {
			t.Errorf("%d stale frames", n)
		}
	})
}

// TestStreamerVersion: another version ends the link, whether welcome or error says so
// (rule 17).
func TestStreamerVersion(t *testing.T) {
	t.Run("welcome", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := meetHub(t, NewStreamer(nil))
			hub.hearsHello()
			hub.wantDead(hub.refused(&WelcomePayload{V: 2, Link: "l", WindowEvents: 1}, &ErrorPayload{Code: CodeVersionUnsupported}))
		})
	})
	t.Run("error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := meetHub(t, NewStreamer(nil))
			hub.hearsHello()
			err := hub.refused(&ErrorPayload{Code: CodeVersionUnsupported}, &ErrorPayload{Code: CodeVersionUnsupported})
			hub.wantDead(err) // an error is not answered with an error
		})
	})
}

// TestStreamerSuperseded: a link is dead from the moment a newer one is made.
func TestStreamerSuperseded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		old := playHub(t, st)
		publishN(t, st, "s", 2)
		old.want(agentBatch("s", 1, 2, 2))
		hub := meetHub(t, st)
		if err := old.link.Handle(t.Context(), &AckBatchPayload{SessionID: "s", Epoch: stats(t, st, "s").Epoch, Link: old.id, UpToSeq: 2}); err != ErrSuperseded {
			t.Errorf("late ack: %v", err)
		}
		old.wantDead(ErrSuperseded)
		old.link.Close()
		old.wantDead(ErrSuperseded)
		hub.hearsHello()
		hub.welcome(hub.id)
		hub.wantStatus("s")
		if s := stats(t, st, "s"); s.Acked != 0 || s.Connected {
			t.Errorf("%+v", s)
		}
		hub.acks("s", 2)
		if s := stats(t, st, "s"); s.Acked != 2 || !s.Connected {
			t.Errorf("%+v", s)
		}
		blocked := start(func() error { _, err := hub.link.Next(t.Context()); return err })
		wantWaiting(t, blocked)
		st.Connect()
		wantReturned(t, blocked, ErrSuperseded)
	})
}

// TestStreamerHandlesNothingOnOlderLink: a payload that was on its way into a link
// when it died changes nothing but a counter (S6).
func TestStreamerHandlesNothingOnOlderLink(t *testing.T) {
	st, hub := ackedStreamer(t, nil, 3)
	publishN(t, st, "s", 1)
	al, epoch := st.link, stats(t, st, "s").Epoch
	hub.want(agentBatch("s", 4, 4, 4))
	hub.link.Close()
	for i, p := range []Payload{
		&AckBatchPayload{SessionID: "s", Epoch: epoch, Link: hub.id, UpToSeq: 4},
		&ReplayRequestPayload{SessionID: "s", RequestID: "r", Epoch: epoch},
		&ErrorPayload{SessionID: "s", Code: CodeForbidden, Epoch: epoch},
		&WelcomePayload{V: version, Link: "new"},
	} {
		if err := al.handle(t.Context(), time.Now(), p); err != nil {
			t.Errorf("%s: %v", payloadText(p), err)
		}
		if n := st.Stats().StalePayloads; n != uint64(i+1) {
			t.Errorf("%s: %d stale payloads, want %d", payloadText(p), n, i+1)
		}
	}
	if s := stats(t, st, "s"); s.Acked != 3 || s.PendingEvents != 1 {
		t.Errorf("%+v", s)
	}
}

// TestStreamerRun: Run says hello, handles, and returns why it ended.
func TestStreamerRun(t *testing.T) {
	cut := errors.New("cut")
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		toHub, toAgent := make(chan Payload), make(chan Payload)
		broken := make(chan struct{})
		link := st.Connect()
		done := start(func() error {
			return link.Run(t.Context(), func(ctx context.Context, p Payload) error {
				select {
				case toHub <- p:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}, func(ctx context.Context) (Payload, error) {
				select {
				case p := <-toAgent:
					if p == nil {
						return nil, malformed("no frame")
					}
					return p, nil
				case <-broken:
					return nil, cut
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			})
		})
		if p := <-toHub; p.payloadType() != "hello" {
			t.Errorf("first said %s", payloadText(p))
		}
		if err := link.Run(t.Context(), nil, nil); err != ErrBusy {
			t.Errorf("Run twice: %v", err)
		}
		toAgent <- nil // could not be decoded: answered, and the link lives
		if p, ok := (<-toHub).(*ErrorPayload); !ok || p.Code != CodeMalformed {
			t.Errorf("answer: %+v", p)
		}
		toAgent <- &WelcomePayload{V: 1, Link: "l", WindowEvents: 8}
		synctest.Wait()
		publishN(t, st, "s", 1)
		if p, ok := (<-toHub).(*EventBatchPayload); !ok || p.LastSeq != 1 {
			t.Errorf("batch: %+v", p)
		}
		toAgent <- &AckBatchPayload{SessionID: "s", Epoch: stats(t, st, "s").Epoch, Link: "l", UpToSeq: 1}
		if err := st.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		close(broken)
		wantReturned(t, done, cut)
		if _, err := link.Next(t.Context()); err != ErrClosed {
			t.Errorf("Next after Run: %v", err)
		}
	})
}

// TestStreamerResendPending: after a reconnect the agent says where it stands, and
// resends from after the first ack; new events don't overtake (rules 5 and 9).
func TestStreamerResendPending(t *testing.T) {
	for _, test := range []struct {
		name  string
		first uint64 // the hub's first ack on the new link
		batch *EventBatchPayload
	}{
		{"where the agent believes", 2, agentBatch("s", 3, 7, 7)},
		{"an ack was lost", 4, agentBatch("s", 5, 7, 7)},
		{"all acks were lost", 5, agentBatch("s", 6, 7, 7)},
		{"the hub lost something", 1, agentBatch("s", 2, 7, 7)},
		{"the hub lost everything", 0, agentBatch("s", 1, 7, 7)},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHub(t, st)
				publishN(t, st, "s", 5)
				hub.want(agentBatch("s", 1, 5, 5))
				hub.acks("s", 2)
				hub.link.Close()
				publishN(t, st, "s", 2)

				hub = playHub(t, st)
				hub.want(&StatusPayload{Sessions: []SessionStatus{{SessionID: "s", FirstSeq: 1, HeadSeq: 7, AckSeq: 2}}})
				hub.wantIdle("no batch before the first ack")
				hub.acks("s", test.first)
				hub.want(test.batch)
				hub.wantIdle("all is sent again")
				hub.acks("s", 7)
				if s := stats(t, st, "s"); s.PendingEvents != 0 || s.Acked != 7 {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

// TestStreamerManySessions: at most 256 sessions are in a status, with more set in all
// but the last (rule 5).
func TestStreamerManySessions(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 256, 257, 513} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(nil)
				var ids []string
				for i := range n {
					ids = append(ids, fmt.Sprintf("s%03d", i))
					publishN(t, st, ids[i], 1)
				}
				hub := playHub(t, st)
				for first := 0; first < n; first += maxStatus {
					last := min(n, first+maxStatus)
					hub.want(&StatusPayload{More: last < n, Sessions: hub.entriesOf(ids[first:last]...)})
				}
				for _, id := range ids { // never sent before: each opens itself
					hub.want(agentBatch(id, 1, 1, 1))
				}
				hub.wantIdle("all is said")
			})
		})
	}
}

// TestStreamerManySessionsForgotten: sessions that are forgotten before their status
// was taken don't keep the others from being named (rule 5). The hub is told of them before those,
// which it might refuse otherwise, for want of room.
func TestStreamerManySessionsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		for i := range maxStatus + 1 {
			publishN(t, st, fmt.Sprintf("s%03d", i), 1)
			hub.want(agentBatch(fmt.Sprintf("s%03d", i), 1, 1, 1))
		}
		hub = playHub(t, st)
		for i := range maxStatus {
			st.Forget(fmt.Sprintf("s%03d", i))
		}
		p, ok := hub.next().(*StatusPayload)
		if !ok || len(p.Sessions) != maxStatus || !p.More {
			t.Errorf("%+v", p)
		}
		for i, e := range p.Sessions {
			if !e.Forgotten || e.SessionID != fmt.Sprintf("s%03d", i) {
				t.Errorf("%+v", e)
			}
		}
		p, ok = hub.next().(*StatusPayload)
		if !ok || len(p.Sessions) != 1 || p.Sessions[0].SessionID != "s256" || p.Sessions[0].Forgotten || p.More {
			t.Errorf("%+v", p)
		}
	})
}

// TestStreamerTellsOfForgotten: the hub did not learn that a session was forgotten, which counted
// there for an hour after the link was lost. It is told until it answers, over all links, and of no
// more sessions than there is memory for.
func TestStreamerTellsOfForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "unsent", 1)
		st.Forget("unsent")
		hub := playHub(t, st)
		hub.wantIdle("nobody knows of it")
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 2)
		epoch := stats(t, st, "s").Epoch
		told := func() Payload {
			return &StatusPayload{Sessions: []SessionStatus{{SessionID: "s", Epoch: epoch, FirstSeq: 4, HeadSeq: 3, AckSeq: 2, Forgotten: true}}}
		}
		st.Forget("s")
		hub.want(told())
		hub.wantAfter(heartbeatEvery, told())
		hub = playHub(t, st)
		hub.want(told())
		hub.refused(&AckBatchPayload{SessionID: "s", Epoch: epoch, Link: hub.id}, &ErrorPayload{Code: CodeUnknownSession, SessionID: "s"}) // it was on its way
		knows := func(epoch string) Payload {
			return &StatusPayload{Link: hub.id, Sessions: []SessionStatus{{SessionID: "s", Epoch: epoch, Forgotten: true}}}
		}
		hub.send(knows("another"))
		hub.wantAfter(heartbeatEvery, told())
		hub.send(knows(epoch))
		hub.wantAfter(heartbeatEvery, &StatusPayload{})

		publishN(t, st, "s", 1) // a new life: the hub learns of the end of the old one by that
		hub.want(agentBatch("s", 1, 1, 1))
		epoch = stats(t, st, "s").Epoch
		st.Forget("s")
		hub.drain()
		hub.send(&ErrorPayload{Code: CodeEventRejected, SessionID: "s", Epoch: epoch, Seq: 1}) // of before
		if n := len(st.forgotten); n != 1 {
			t.Errorf("%d sessions to tell of", n)
		}
		hub.send(&ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: epoch})
		if n := len(st.forgotten); n != 0 {
			t.Errorf("%d sessions to tell of", n)
		}
		st.cfg.MaxSessions = maxForgotten / 2
		for i := range maxForgotten + 10 {
			id := fmt.Sprint("many", i)
			publishN(t, st, id, 1)
			st.Forget(id)
		}
		if n := len(st.forgotten); n != maxForgotten {
			t.Errorf("%d sessions to tell of", n)
		}
		publishN(t, st, "many1", 1)
		if n := len(st.forgotten); n != maxForgotten-1 {
			t.Errorf("%d sessions to tell of", n)
		}
	})
}

// TestStreamerStatusOnce: a status names a session once, however often it was
// announced, and not at all if it has been stopped, renewed or forgotten meanwhile
// (rule 5).
func TestStreamerStatusOnce(t *testing.T) {
	unknown := func(hub *peer) {
		hub.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: stats(hub.t, hub.st, "s").Epoch, Retryable: true})
	}
	for name, do := range map[string]func(st *Streamer, hub *peer){
		"stopped": func(_ *Streamer, hub *peer) { hub.send(&ErrorPayload{Code: CodeForbidden, SessionID: "s"}) },
		"renewed": func(st *Streamer, _ *peer) { st.Renew("s") },
		"forgotten": func(st *Streamer, hub *peer) {
			epoch := stats(hub.t, st, "s").Epoch
			st.Forget("s")
			hub.want(&StatusPayload{Sessions: []SessionStatus{{SessionID: "s", Epoch: epoch, FirstSeq: 3, HeadSeq: 2, AckSeq: 2, Forgotten: true}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, hub := ackedStreamer(t, nil, 2)
				unknown(hub)
				do(st, hub)
				hub.wantIdle("there is nothing to say of it any more")
			})
		})
	}
	t.Run("twice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st, hub := ackedStreamer(t, nil, 2)
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 3, 3, 3))
			unknown(hub)
			st.link.announceUnacked() // a heartbeat is due at the same time
			hub.wantStatus("s")
			hub.wantIdle("named once")
		})
	})
}

// TestStreamerUnknownSession: a hub that doesn't know the session gets its status, and
// the next ack counts as a first ack (rule 5).
func TestStreamerUnknownSession(t *testing.T) {
	for _, first := range []uint64{0, 2, 3, 5} {
		t.Run(fmt.Sprint("ack ", first), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHub(t, st)
				publishN(t, st, "s", 5)
				hub.want(agentBatch("s", 1, 5, 5))
				hub.acks("s", 3)
				unknown := &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: stats(t, st, "s").Epoch}
				hub.send(unknown, unknown)
				publishN(t, st, "s", 1)
				hub.wantStatus("s")
				hub.wantIdle("no batch before the ack")
				hub.acks("s", first)
				hub.want(agentBatch("s", first+1, 6, 6))
				hub.wantIdle("all is sent again")
			})
		})
	}
	t.Run("of another life", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, hub := ackedStreamer(t, nil, 1)
			hub.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "other"})
			hub.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "t"})
			hub.wantIdle("it is about another life")
		})
	})
}

// TestStreamerAcking: an ack is cumulative and frees what it names; old ones change
// nothing (rule 6).
func TestStreamerAcking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 5)
		hub.want(agentBatch("s", 1, 5, 5))
		for _, test := range []struct{ ack, acked, stale uint64 }{
			{0, 0, 0}, {2, 2, 0}, {2, 2, 0}, {1, 2, 1}, {0, 2, 2}, {4, 4, 2}, {5, 5, 2}, {5, 5, 2}, {3, 5, 3},
		} {
			hub.acks("s", test.ack)
			s := stats(t, st, "s")
			if s.Acked != test.acked || s.PendingEvents != int(5-test.acked) || s.PendingBytes != s.Bytes/5*s.PendingEvents {
				t.Errorf("ack %d: %+v", test.ack, s)
			}
			if n := st.Stats().StalePayloads; n != test.stale {
				t.Errorf("ack %d: %d stale frames, want %d", test.ack, n, test.stale)
			}
		}
		hub.nacks("s", 1)
		hub.wantIdle("the nack is as old as its number")
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 6, 6, 6))
	})
}

// TestStreamerFirstAck: the first ack of a link is believed up to what was ever sent,
// later ones up to the greater of that ack and what was sent on this link (rule 6).
func TestStreamerFirstAck(t *testing.T) {
	for _, test := range []struct {
		name   string
		acks   []uint64
		refuse uint64 // the highest number that the last of them may name; 0: it is accepted
		acked  uint64
	}{
		{"lower", []uint64{2}, 0, 2},
		{"the same", []uint64{3}, 0, 3},
		{"higher", []uint64{6}, 0, 6},
		{"all that was ever sent", []uint64{8}, 0, 8},
		{"never sent, though published", []uint64{9}, 8, 3},
		{"far beyond", []uint64{MaxSeq}, 8, 3},
		{"later: what this link sent", []uint64{3, 7}, 0, 7},
		{"later: beyond what this link sent", []uint64{3, 8}, 7, 3},
		{"later: lower", []uint64{3, 2}, 0, 3},
		{"later: the first again", []uint64{8, 8}, 0, 8},
		{"later: beyond the first", []uint64{8, 11}, 10, 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHubWindow(t, st, 5)
				publishN(t, st, "s", 10)
				hub.want(agentBatch("s", 1, 5, 10))
				hub.acks("s", 3)
				hub.want(agentBatch("s", 6, 8, 10))

				hub = playHubWindow(t, st, 4)
				if test.acks[0] == 8 {
					hub = playHubWindow(t, st, 2)
				}
				hub.wantStatus("s")
				for i, seq := range test.acks {
					if i < len(test.acks)-1 || test.refuse == 0 {
						hub.acks("s", seq)
					} else {
						hub.refused(&AckBatchPayload{SessionID: "s", UpToSeq: seq}, &ErrorPayload{Code: CodeAckBeyondSent, SessionID: "s", Epoch: stats(t, st, "s").Epoch, Seq: test.refuse})
						err := st.Flush(endedContext)
						var refused *ProtocolError
						if stopped := errors.As(err, &refused) && refused.Code == CodeAckBeyondSent; stopped != (i == 0) {
							t.Errorf("Flush after an ack of %d: %v", seq, err)
						}
					}
					if i == 0 && len(test.acks) > 1 {
						head := min(10, seq+4)
						if seq == 8 {
							head = 10
						}
						hub.want(agentBatch("s", seq+1, head, 10))
					}
				}
				if s := stats(t, st, "s"); s.Acked != test.acked || s.PendingEvents != int(10-test.acked) {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

// TestStreamerFirstAckEvicted: events that the hub has lost and the log no longer holds
// are declared lost (rule 6).
func TestStreamerFirstAckEvicted(t *testing.T) {
	for _, test := range []struct {
		name   string
		replay int
		ack    uint64
		gap    []Gap
		lost   uint64
	}{
		{"still held", 3, 3, nil, 0},
		{"just held", 3, 2, nil, 0},
		{"just not held", 3, 1, []Gap{{2, 2, ReasonEvicted}}, 1},
		{"everything lost", 3, 0, []Gap{{1, 2, ReasonEvicted}}, 2},
		{"nothing held", -1, 0, []Gap{{1, 5, ReasonEvicted}}, 5},
		{"nothing held, some lost", -1, 4, []Gap{{5, 5, ReasonEvicted}}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, _ := ackedStreamer(t, &StreamerConfig{ReplayEvents: test.replay}, 5)
				hub := reopenHub(t, st, map[string]uint64{"s": test.ack})
				hub.want(agentBatch("s", test.ack+1, 5, 5, test.gap...))
				s := stats(t, st, "s")
				if st.Stats().Lost != test.lost {
					t.Errorf("the Streamer has lost %d, want %d", st.Stats().Lost, test.lost)
				}
				if s.Lost != test.lost || s.Acked != test.ack || s.PendingEvents != int(5-test.ack-test.lost) {
					t.Errorf("%+v, want %d lost", s, test.lost)
				}
				hub.acks("s", 5)
				if s := stats(t, st, "s"); s.PendingEvents+s.PendingBytes != 0 {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

// TestStreamerAckedEarly: the first ack of a session that opened itself does not cause
// a resend of what is on its way (rule 9).
func TestStreamerAckedEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 3)
		hub := playHub(t, st)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 0) // to the status
		hub.wantIdle("they are on their way")
		hub.acks("s", 3)
		hub.wantIdle("all is acknowledged")
	})
}

// TestStreamerFirstAckAgain: on a link on which nothing was sent, the first ack may
// come again, as the answer to each heartbeat does (rule 6).
func TestStreamerFirstAckAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, _ := ackedStreamer(t, nil, 3)
		hub := reopenHub(t, st, map[string]uint64{"s": 3})
		hub.acks("s", 3)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 4, 4, 4))
		hub.acks("s", 3)
		hub.acks("s", 4)
	})
}

// TestStreamerStaleAcks: acks of another link or epoch, or before the welcome, are only
// counted (rule 3).
func TestStreamerStaleAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 3)
		hub := meetHub(t, st)
		hub.acks("s", 0)
		hub.hearsHello()
		hub.welcome(hub.id)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 3, 3))
		hub.send(
			&AckBatchPayload{SessionID: "s", UpToSeq: 2, Link: "other"},
			&AckBatchPayload{SessionID: "s", UpToSeq: 99, Epoch: "other"},
			&StatusPayload{Link: "other"},
		)
		if s, n := stats(t, st, "s"), st.Stats().StalePayloads; s.Acked != 0 || n != 4 {
			t.Errorf("acked %d, %d stale frames", s.Acked, n)
		}
		hub.wantIdle("stale payloads change nothing")
		hub.refused(&AckBatchPayload{SessionID: "t", Epoch: "e", UpToSeq: 1}, &ErrorPayload{Code: CodeUnknownSession, SessionID: "t"})
	})
}

// TestStreamerViewerAcks: an ack in a viewer's name is stale: it frees nothing and asks for
// nothing again (rule 6).
func TestStreamerViewerAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.send(
			&AckBatchPayload{SessionID: "s", ViewerID: "tab-1", UpToSeq: 2},
			&AckBatchPayload{SessionID: "s", ViewerID: "tab-2", UpToSeq: 3, Nack: true},
			&AckBatchPayload{SessionID: "s", ViewerID: "tab-1", UpToSeq: 99},
		)
		if s, n := stats(t, st, "s"), st.Stats().StalePayloads; s.Acked != 0 || s.PendingEvents != 3 || n != 3 {
			t.Errorf("%+v, %d stale payloads", s, n)
		}
		hub.wantIdle("a viewer's ack causes nothing")
	})
}

// TestStreamerWindow: no event goes out beyond ack + window (rule 7).
func TestStreamerWindow(t *testing.T) {
	for _, test := range []struct {
		window int
		sent   uint64
	}{{1, 1}, {4, 4}, {5, 5}, {6, 6}, {7, 6}, {math.MaxInt32, 6}} {
		t.Run(fmt.Sprint(test.window), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHubWindow(t, st, test.window)
				publishN(t, st, "s", 6)
				if test.sent > 0 {
					hub.want(agentBatch("s", 1, test.sent, 6))
				}
				hub.wantIdle("no more fits the window")
				if test.sent > 0 && test.sent < 6 {
					hub.acks("s", 1)
					hub.want(agentBatch("s", test.sent+1, test.sent+1, 6))
					hub.wantIdle("the ack made room for one")
				}
			})
		})
	}
}

// TestStreamerWindowGap is the odd case of rule 7: a gap may cross the window.
func TestStreamerWindowGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 4)
		publishAcked(t, hub, "s", 10)
		hub.link.Close()
		publishN(t, st, "s", 41)
		s := st.lookup("s")
		for seq := uint64(13); seq <= 50; seq++ {
			s.mu.Lock()
			s.loseRangeLocked(seq, seq, ReasonDropped)
			s.mu.Unlock()
		}
		hub = playHubWindow(t, st, 2)
		hub.wantStatus("s")
		hub.acks("s", 10)
		hub.want(agentBatch("s", 11, 50, 51, Gap{13, 50, ReasonDropped}))
		hub.wantIdle("the window is full")
		hub.acks("s", 10)
		hub.wantIdle("and stays full")
		hub.acks("s", 11)
		hub.want(agentBatch("s", 51, 51, 51))
	})
}

// TestStreamerBatches: a batch has up to 256 events, or 256 KiB (rule 7).
func TestStreamerBatches(t *testing.T) {
	for _, n := range []uint64{255, 256, 257, 513} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHubWindow(t, st, 10_000)
				publishN(t, st, "s", int(n))
				for first := uint64(1); first <= n; first += 256 {
					hub.want(agentBatch("s", first, min(n, first+255), n))
				}
				hub.wantIdle("all is sent")
			})
		})
	}
	t.Run("bytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			sizes := []int{10, 300 << 10, 10, 100 << 10, 100 << 10, 100 << 10}
			for _, n := range sizes {
				if _, err := st.Publish(t.Context(), "s", Event{Data: []byte(`"` + strings.Repeat("x", n) + `"`)}); err != nil {
					t.Fatal(err)
				}
			}
			var got [][2]uint64
			for p := hub.next(); p != nil; p = hub.next() {
				b := p.(*EventBatchPayload)
				got = append(got, [2]uint64{b.FirstSeq, b.LastSeq})
			}
			if diff := cmp.Diff([][2]uint64{{1, 1}, {2, 2}, {3, 5}, {6, 6}}, got); diff != "" {
				t.Errorf("batches (-want +got):\n%s", diff)
			}
		})
	})
}

// TestStreamerTurns: sessions take turns, one batch each (rule 7).
func TestStreamerTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 1000)
		publishN(t, st, "a", 600)
		publishN(t, st, "b", 300)
		hub.want(
			agentBatch("a", 1, 256, 600), agentBatch("b", 1, 256, 300),
			agentBatch("a", 257, 512, 600), agentBatch("b", 257, 300, 300),
			agentBatch("a", 513, 600, 600),
		)
		hub.wantIdle("all is sent")
	})
}

// TestStreamerNack: the agent goes back at most once a second for the same nacked
// number (rule 7).
func TestStreamerNack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 5)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nacks("s", 0)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nacks("s", 0)
		hub.wantIdle("it went back within this second")
		pass(time.Second - 1)
		hub.nacks("s", 0)
		hub.wantIdle("a second has not passed")
		pass(1)
		hub.nacks("s", 0)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nacks("s", 2) // another number
		hub.want(agentBatch("s", 3, 5, 5))
		hub.nacks("s", 1)
		hub.wantIdle("older than the ack")
		hub.nacks("s", 5)
		hub.wantIdle("nothing is left to send")
	})
}

// TestStreamerAckAfterNack: an ack above what is to be resent moves that up (S4).
func TestStreamerAckAfterNack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 5)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nacks("s", 2)
		hub.acks("s", 4) // what was considered lost had been on its way
		hub.want(agentBatch("s", 5, 5, 5))
		hub.nacks("s", 4) // once more: nothing is left between
		hub.acks("s", 5)
		hub.wantIdle("all is acknowledged")
	})
}

// TestStreamerResendTimer: what is not acknowledged is resent after 15 s, twice as long
// each time, up to 2 min; an ack that moves resets the timer (rule 9).
func TestStreamerResendTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 0) // to begin with: the first ack of a link is progress
		begin := time.Now()
		var resent []time.Duration
		listen := func(until time.Duration) {
			resent = nil
			ctx, cancel := context.WithDeadline(t.Context(), begin.Add(until))
			defer cancel()
			for {
				p, err := hub.link.Next(ctx)
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Fatal(err)
					}
					return
				}
				switch p := p.(type) {
				case *StatusPayload: // every 15 s, and answered: the link lives
					hub.acks("s", stats(t, st, "s").Acked)
				case *EventBatchPayload:
					if p.FirstSeq != stats(t, st, "s").Acked+1 || p.LastSeq != 3 {
						t.Errorf("resent %d to %d", p.FirstSeq, p.LastSeq)
					}
					resent = append(resent, time.Since(begin)/time.Second)
				}
			}
		}
		listen(500 * time.Second)
		if diff := cmp.Diff([]time.Duration{15, 45, 105, 225, 345, 465}, resent); diff != "" {
			t.Errorf("resent after seconds (-want +got):\n%s", diff)
		}
		begin = time.Now()
		hub.acks("s", 2)
		listen(100 * time.Second)
		if diff := cmp.Diff([]time.Duration{15, 45}, resent); diff != "" {
			t.Errorf("after progress: resent after seconds (-want +got):\n%s", diff)
		}
		hub.acks("s", 3)
		begin = time.Now()
		listen(40 * time.Second)
		if len(resent) > 0 {
			t.Errorf("resent what is acknowledged")
		}
	})
}

// TestStreamerTimerOfFirstBatch: the first batch of a session has the full timer,
// whatever happened to the status that named the session before (rule 9).
func TestStreamerTimerOfFirstBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		if _, err := st.Session("s"); err != nil {
			t.Fatal(err)
		}
		hub := playHub(t, st)
		hub.wantStatus("s") // it is lost
		pass(10 * time.Second)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 1, 1, 1)) // so is this
		hub.wantAfter(5*time.Second, hub.statusOf("s"))
		hub.wantAfter(10*time.Second, agentBatch("s", 1, 1, 1))
	})
}

// TestStreamerFirstBatchLost: the loss of the first batch of an idle session is made up
// for within one timer period, even though its status was lost too (L5).
func TestStreamerFirstBatchLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		st := NewStreamer(nil)
		st.Session("s")
		a, b := st.Connect(), h.ConnectAgent("agent")
		dropStatus := true
		dropBatch := true
		lose := func(p Payload) (lost bool) {
			switch p := p.(type) {
			case *StatusPayload:
				if lost = dropStatus && len(p.Sessions) > 0; lost {
					dropStatus = false
				}
			case *EventBatchPayload:
				lost, dropBatch = dropBatch, false
			}
			return lost
		}
		for range 100 * 4 {
			carryAll(t, a, b, lose)
			pass(250 * time.Millisecond)
		}
		st.Publish(t.Context(), "s", Event{})
		published := time.Now()
		for st.Stats().PendingEvents > 0 && time.Since(published) < 10*time.Minute {
			carryAll(t, a, b, lose)
			pass(250 * time.Millisecond)
		}
		if d := time.Since(published); d > 16*time.Second {
			t.Errorf("healed after %v", d)
		}
	})
}

// TestStreamerSilent: a link on which nothing arrives for three heartbeats ends. One on
// which something does goes on, although it is about other sessions: what is not
// acknowledged is sent again, each time later (rule 9).
func TestStreamerSilent(t *testing.T) {
	t.Run("nothing at all", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHubTo(t, st, false)
			hub.wantAfter(15*time.Second, &StatusPayload{})
			hub.wantAfter(15*time.Second, &StatusPayload{})
			pass(15*time.Second - 1)
			hub.wantIdle("not silent long enough")
			pass(1)
			synctest.Wait()
			hub.wantDead(ErrSilent)
			if st.Stats().Connected {
				t.Error("still connected")
			}
		})
	})
	t.Run("answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			hub := playHubTo(t, NewStreamer(nil), false)
			for range 10 {
				hub.wantAfter(15*time.Second, &StatusPayload{})
				hub.send(&StatusPayload{})
			}
		})
	})
	t.Run("answers to other things", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHubTo(t, st, false)
			publishN(t, st, "s", 1)
			var sent []time.Duration
			for start := time.Now(); time.Since(start) < 10*time.Minute; pass(time.Second) {
				hub.send(&StatusPayload{})
				for _, p := range hub.drain() {
					if _, ok := p.(*EventBatchPayload); ok {
						sent = append(sent, time.Since(start)/time.Second)
					}
				}
			}
			if want := []time.Duration{0, 15, 45, 105, 225, 345, 465, 585}; !slices.Equal(sent, want) {
				t.Errorf("sent after %d s, want %d s", sent, want)
			}
		})
	})
	// Nothing is outstanding, so the entry is just repeated (rules 5 and 6).
	t.Run("no answer to an idle session", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			if _, err := st.Session("idle"); err != nil {
				t.Fatal(err)
			}
			hub := playHub(t, st)
			hub.wantStatus("idle")
			for range 8 {
				pass(15 * time.Second)
				hub.drain()
				hub.send(&StatusPayload{})
			}
		})
	})
}

// TestStreamerHeartbeat: every 15 s the agent sends a status of the sessions that have
// something unacknowledged, or an empty one (rule 9).
func TestStreamerHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishAcked(t, hub, "acked", 1)
		publishN(t, st, "open", 2)
		hub.want(agentBatch("open", 1, 2, 2))
		hub.acks("open", 1)
		hub.wantAfter(15*time.Second, hub.statusOf("open"))
		hub.want(agentBatch("open", 2, 2, 2))
		hub.acks("open", 2)
		hub.wantAfter(15*time.Second, &StatusPayload{})
		hub.send(&StatusPayload{})
		hub.wantAfter(15*time.Second, &StatusPayload{})
	})
}

// TestStreamerHeartbeatList: the heartbeat lists each session once, but not those that
// have nothing unacknowledged, which have no timer either.
func TestStreamerHeartbeatList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, _ := ackedStreamer(t, nil, 3)
		hub := reopenHub(t, st, map[string]uint64{"s": 3})
		if n := len(st.link.unacked); n != 0 {
			t.Errorf("%d sessions listed, and all is acknowledged", n)
		}
		if at := st.lookup("s").sender.timer.at; !at.IsZero() {
			t.Errorf("its timer runs until %v, and all is acknowledged", at)
		}
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 4, 5, 5))
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 6, 7, 7))
		if n := len(st.link.unacked); n != 1 {
			t.Errorf("one session is listed %d times", n)
		}
		hub.acks("s", 7)
		hub.wantAfter(heartbeatEvery, &StatusPayload{})
		if n := len(st.link.unacked); n != 0 {
			t.Errorf("%d sessions stay listed", n)
		}
	})
}

// TestStreamerStops: a permanent refusal stops the session, and all callers that wait
// for it learn of it (rule 11).
func TestStreamerStops(t *testing.T) {
	for _, test := range []struct {
		code  Code
		epoch string
	}{
		{CodeStaleEpoch, "zz"}, {CodeForbidden, ""}, {CodeSessionEnded, ""}, {"some_later_code", ""},
	} {
		t.Run(string(test.code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{MaxPendingEvents: 2})
				hub := playHub(t, st)
				publishN(t, st, "s", 2)
				publishN(t, st, "t", 1)
				hub.want(agentBatch("s", 1, 2, 2), agentBatch("t", 1, 1, 1))
				publish := start(func() error { _, err := st.Publish(t.Context(), "s", Event{}); return err })
				flush := start(func() error { return st.Flush(t.Context()) })
				wantWaiting(t, publish)
				wantWaiting(t, flush)
				hub.send(&ErrorPayload{Code: test.code, SessionID: "s", Epoch: test.epoch, Message: "no"})
				wantStopped := func(err error) {
					t.Helper()
					var got *ProtocolError
					if !errors.As(err, &got) || got.Code != test.code || got.SessionID != "s" || got.Message != "no" {
						t.Errorf("error %v, want %s", err, test.code)
					}
				}
				wantStopped(<-publish)
				wantWaiting(t, flush) // for the other session
				hub.acks("t", 1)
				wantStopped(<-flush)
				_, err := st.Publish(t.Context(), "s", Event{})
				wantStopped(err)
				wantStopped(st.Flush(t.Context()))
				hub.wantAfter(15*time.Second, &StatusPayload{}) // nothing more of it is sent, not even
				hub = playHub(t, st)                            // on the next link
				hub.wantStatus("t")
				hub.wantIdle("nothing of the stopped session")
				var left *UnackedError
				if err := st.Close(t.Context()); !errors.As(err, &left) || left.Events != 2 || left.Sessions != 1 {
					t.Errorf("Close: %v", err)
				}
				wantStopped(left)
			})
		})
	}
}

// TestStreamerStoppedSendsNothing: the unacknowledged events of a stopped session are
// not resent, nor is the session named in a heartbeat (rule 11).
func TestStreamerStoppedSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 1, 2, 2))
		hub.send(&ErrorPayload{Code: CodeForbidden, SessionID: "s"})
		for range 2 {
			hub.wantAfter(heartbeatEvery, &StatusPayload{})
			hub.wantIdle("a stopped session says nothing")
			hub.send(&StatusPayload{})
		}
	})
}

// TestStreamerRefusalWithNumber: an error with a number refuses an event only if it has one
// of the two codes for that (rule 11).
func TestStreamerRefusalWithNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, hub := ackedStreamer(t, nil, 1)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 2, 2, 2))
		hub.send(&ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: stats(t, st, "s").Epoch, Seq: 2})
		_, err := st.Publish(t.Context(), "s", numberedEvent(3))
		var stopped *ProtocolError
		if !errors.As(err, &stopped) || stopped.Code != CodeForbidden {
			t.Errorf("Publish returned %v", err)
		}
		if s := stats(t, st, "s"); s.Lost != 0 || s.PendingEvents != 1 {
			t.Errorf("%+v", s)
		}
		hub.wantIdle("the session is stopped")
	})
}

// TestStreamerRefusalWithoutNumber: an error that refuses an event and does not say which
// refuses none (rule 11). It stopped the session for good.
func TestStreamerRefusalWithoutNumber(t *testing.T) {
	for _, code := range []Code{CodeEventRejected, CodeEventTooLarge} {
		synctest.Test(t, func(t *testing.T) {
			st, hub := ackedStreamer(t, nil, 1)
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 2, 2, 2))
			hub.send(&ErrorPayload{Code: code, SessionID: "s", Epoch: stats(t, st, "s").Epoch})
			hub.wantIdle("there is nothing to do about it")
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 3, 3, 3))
			if s := stats(t, st, "s"); s.Lost != 0 || s.PendingEvents != 2 {
				t.Errorf("%s: %+v", code, s)
			}
			pass(timerFirst)
			hub.wantStatus("s") // the sign of life
			hub.want(agentBatch("s", 2, 3, 3))
		})
	}
}

// TestStreamerOverloaded: a retryable error makes the session wait for a second, say
// where it stands, and continue from the next ack (rule 11).
func TestStreamerOverloaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 2)
		hub := playHub(t, st)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 2, 2))
		pass(time.Second)
		hub.send(&ErrorPayload{Code: CodeOverloaded, SessionID: "s", Retryable: true})
		publishN(t, st, "s", 1)
		hub.wantAfter(time.Second, hub.statusOf("s"))
		hub.wantIdle("no batch before the ack")
		hub.acks("s", 0)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 3)
	})
}

// TestStreamerOverloadedAgain: the status is repeated after 1 s, 2 s, … as long as the hub is
// overloaded, up to 2 minutes. The signs of life meanwhile don't name the session: it was
// asked about every 15 s.
func TestStreamerOverloadedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishAcked(t, hub, "s", 1)
		hub = playHub(t, st)
		begin := time.Now()
		var said []time.Duration
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Second)
		defer cancel()
		for {
			p, err := hub.link.Next(ctx)
			if err != nil {
				break
			}
			if status, ok := p.(*StatusPayload); ok && len(status.Sessions) > 0 {
				said = append(said, time.Since(begin)/time.Second)
				hub.send(&ErrorPayload{Code: CodeOverloaded, SessionID: "s", Retryable: true})
			}
			hub.send(&StatusPayload{})
		}
		if diff := cmp.Diff([]time.Duration{0, 1, 3, 7, 15, 31, 63, 127, 247}, said); diff != "" {
			t.Errorf("said after seconds (-want +got):\n%s", diff)
		}
	})
}

// TestStreamerOverloadedIsNoSilence: a hub that refuses one session is still there for
// the others.
func TestStreamerOverloadedIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxSessions: 1})
		st := NewStreamer(nil)
		st.Publish(t.Context(), "s1", Event{})
		st.Publish(t.Context(), "s2", Event{})
		a, b := st.Connect(), h.ConnectAgent("agent")
		for range 600 {
			carryAll(t, a, b)
			pass(time.Second)
		}
	})
}

// A hub may forget a session while a status of it is on its way, and open it at what the agent
// had acknowledged then. Its acks are below what it acknowledged later, as those are that were
// held up. So they change nothing at first; when what was sent was sent again in vain, the
// session is announced, and the next ack says where to go on from. Both went on for ever.
func TestStreamerHubFellBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 2)
		hub.nacks("s", 1)
		hub.wantIdle("it may be a relic")
		hub.wantAfter(timerFirst, hub.statusOf("s"), agentBatch("s", 3, 3, 3))
		hub.nacks("s", 1)
		hub.wantStatus("s")
		hub.nacks("s", 1) // of the status, or of the batch
		hub.want(agentBatch("s", 2, 3, 3))
		hub.nacks("s", 0)
		hub.wantStatus("s")
		hub.acks("s", 0)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 3)
		hub.nacks("s", 1)
		hub.wantIdle("all is acknowledged, and this is a relic")
	})
}

// TestStreamerAckEndsWait: an ack that opens a session ends the wait after a retryable
// error. The wait continued, and while it lasted the session's timer was stopped: a
// lost batch was not resent in time (rules 9 and 11).
func TestStreamerAckEndsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 2)
		hub := playHubWindow(t, st, 1)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 1, 2))
		overloaded := &ErrorPayload{Code: CodeOverloaded, SessionID: "s", Retryable: true}
		hub.send(overloaded)
		hub.send(overloaded) // the timer is at 30 s now
		hub.acks("s", 1)     // of a status that the hub accepted after all
		hub.want(agentBatch("s", 2, 2, 2))
		pass(timerFirst)
		hub.wantStatus("s") // the heartbeat
		hub.want(agentBatch("s", 2, 2, 2))
	})
}

// TestStreamerRejected: an event that the hub refuses becomes a gap, and sending
// continues from there (rule 11).
func TestStreamerRejected(t *testing.T) {
	for _, code := range []Code{CodeEventRejected, CodeEventTooLarge} {
		t.Run(string(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{Overflow: Reject, MaxPendingEvents: 5})
				hub := playHubWindow(t, st, 4)
				publishN(t, st, "s", 5)
				hub.want(agentBatch("s", 1, 4, 5))
				hub.acks("s", 1)
				hub.want(agentBatch("s", 5, 5, 5))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 3})
				hub.want(agentBatch("s", 3, 3, 5, Gap{3, 3, ReasonRejected})) // the hub has the rest
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 4})   // joins the gap
				hub.want(agentBatch("s", 4, 4, 5, Gap{4, 4, ReasonRejected}))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 3, ToSeq: 4}) // the hub has not heard
				hub.want(agentBatch("s", 3, 4, 5, Gap{3, 4, ReasonRejected}))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 1}) // acknowledged
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 6}) // never published
				hub.wantIdle("nothing of that is news")
				if s := stats(t, st, "s"); s.Lost != 2 || s.PendingEvents != 2 {
					t.Errorf("%+v", s)
				}
				publishN(t, st, "s", 3) // there is room again
				hub.acks("s", 2)
				publishN(t, st, "s", 1)
				hub.want(agentBatch("s", 6, 6, 9))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 7}) // published, and not sent
				hub.wantIdle("it waits for the window")
				hub.nacks("s", 2)
				hub.want(agentBatch("s", 3, 8, 9, Gap{3, 4, ReasonRejected}))
				hub.nacks("s", 2)
				hub.wantIdle("not within a second")
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 5, ToSeq: 1 << 50}) // as far as it was sent
				hub.want(agentBatch("s", 5, 8, 9, Gap{5, 8, ReasonRejected}))
				hub.nacks("s", 2) // the batch was dropped for the event
				hub.want(agentBatch("s", 3, 9, 9, Gap{3, 8, ReasonRejected}))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 3, ToSeq: 5})
				hub.acks("s", 3)
				hub.want(agentBatch("s", 4, 5, 9, Gap{4, 5, ReasonRejected}))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 4, ToSeq: 5})
				hub.acks("s", 5)
				hub.wantIdle("acknowledged meanwhile")
				for range 2 * maxGaps {
					hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 6})
				}
				if n := len(st.lookup("s").sender.confirm); n != maxGaps {
					t.Errorf("%d gaps to confirm", n)
				}
			})
		})
	}
	t.Run("the end", func(t *testing.T) { // rule 16
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			if _, err := st.End(t.Context(), "s", Event{}); err != nil {
				t.Fatal(err)
			}
			hub.want(&EventBatchPayload{SessionID: "s", FirstSeq: 1, LastSeq: 1, HeadSeq: 1, Events: []Event{{Seq: 1, End: true}}})
			hub.send(&ErrorPayload{Code: CodeEventTooLarge, SessionID: "s", Seq: 1})
			hub.want(&StatusPayload{Sessions: []SessionStatus{{SessionID: "s", FirstSeq: 1, HeadSeq: 1, Ended: true}}})
			hub.want(agentBatch("s", 1, 1, 1, Gap{1, 1, ReasonRejected}))
			hub.acks("s", 1)
			hub.wantAfter(heartbeatEvery, &StatusPayload{Sessions: []SessionStatus{{SessionID: "s", FirstSeq: 1, HeadSeq: 1, AckSeq: 1, Ended: true}}}) // the status may have been lost
			pass(endedTTL)
			if n := st.Stats().Sessions; n != 0 {
				t.Errorf("%d sessions", n)
			}
		})
	})
}

// TestStreamerRefusedFrames: what an agent can't accept is answered with one error, and
// the link lives; an error is never answered (rule 11).
func TestStreamerRefusedFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		ctx := t.Context()
		hub.refused(&HelloPayload{V: 1, Role: "agent"}, &ErrorPayload{Code: CodeUnexpected})
		hub.refused(&WatchPayload{SessionID: "s"}, &ErrorPayload{Code: CodeUnexpected})
		if err := hub.link.Handle(ctx, nil); err == nil {
			t.Error("no payload is no error")
		}
		hub.want(&ErrorPayload{Code: CodeMalformed})
		if err := hub.link.Handle(ctx, &AckBatchPayload{SessionID: "s"}); err == nil {
			t.Error("an ack without epoch is no error")
		}
		hub.want(&ErrorPayload{Code: CodeMalformed})
		if err := hub.link.Handle(ctx, &ErrorPayload{}); err == nil {
			t.Error("an error without code is no error")
		}
		hub.wantIdle("an error is not answered")
		hub.send(&ErrorPayload{Code: CodeMalformed}, &ErrorPayload{Code: "news", SessionID: "s"}, &ErrorPayload{Code: "news", RequestID: "r"})
		hub.wantIdle("an error is not answered")
		if n := st.Stats().RefusedPayloads; n != 4 {
			t.Errorf("%d payloads were answered by an error, want 4", n)
		}
		for range 2 * maxReplies { // the peer does not read: the answers waiting for it are bounded
			if err := hub.link.Handle(ctx, &WatchPayload{SessionID: "s"}); err == nil {
				t.Error("a watch is no error")
			}
		}
		for range maxReplies {
			hub.want(&ErrorPayload{Code: CodeUnexpected})
		}
		hub.wantIdle("no more answers are kept")
	})
}

// TestAckAllocs: an ack allocates nothing, and a batch makes the same few allocations
// whatever its size.
func TestAckAllocs(t *testing.T) {
	st := NewStreamer(nil)
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	hub := playHub(t, st)
	ack := &AckBatchPayload{SessionID: "s", Epoch: s.Stats().Epoch, Link: hub.id}
	batch := func(events int) func() {
		return func() {
			for range events {
				if _, err := s.Publish(t.Context(), Event{Data: []byte("1")}); err != nil {
					t.Fatal(err)
				}
			}
			for p := (*EventBatchPayload)(nil); p == nil; {
				next, err := hub.link.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				p, _ = next.(*EventBatchPayload)
			}
			ack.UpToSeq = s.log.head
			if err := hub.link.Handle(t.Context(), ack); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 100 {
		batch(200)()
	}
	// The payload, its events, its slots and their JSON. Under the race detector, pools
	// drop things.
	for _, events := range []int{1, 10, 200} {
		if n := testing.AllocsPerRun(testenv.Fewer(100), batch(events)); n > 6 && !testenv.RaceEnabled {
			t.Errorf("%v allocations for a batch of %d events, published, sent and acknowledged", n, events)
		}
	}
	for i := range s.log.ring.n { // they are reused, though everything was sent
		if s.log.ring.at(i).chunk.lent {
			t.Errorf("the chunk of slot %d is lent", i)
		}
	}
}

// ackAll plays the hub: it takes what the agent sends, and acknowledges it.
func ackAll(b *testing.B, al *streamerLink, now time.Time) {
	for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
		if p, ok := p.(*EventBatchPayload); ok {
			ack := &AckBatchPayload{SessionID: p.SessionID, Epoch: p.Epoch, Link: p.Link, UpToSeq: p.LastSeq}
			if err := al.handle(endedContext, now, ack); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// benchAgent is an agent with n sessions of one acknowledged event each.
func benchAgent(b *testing.B, n int) (*Streamer, *streamerLink, []string, time.Time) {
	st := NewStreamer(&StreamerConfig{MaxSessions: n, ReplayEvents: 8})
	ids, now := loadIDs(n), time.Now()
	al := benchLink(b, st, now)
	for _, id := range ids {
		if _, err := st.Publish(b.Context(), id, benchEvent); err != nil {
			b.Fatal(err)
		}
	}
	ackAll(b, al, now)
	return st, al, ids, now
}

func benchLink(b *testing.B, st *Streamer, now time.Time) *streamerLink {
	al := st.connect(now)
	al.next(now) // hello
	if err := al.handle(endedContext, now, &WelcomePayload{V: version, Link: "l", WindowEvents: math.MaxInt32}); err != nil {
		b.Fatal(err)
	}
	return al
}

var benchEvent = Event{Type: "out", Data: []byte(strconv.Quote(fmt.Sprintf("%0250d", 1)))}

// benchSessions runs f with agents of very many sessions. At most 1,000 of those are
// used, so that only the work can grow; in "100000-all", cache misses grow as well.
func benchSessions(b *testing.B, f func(b *testing.B, st *Streamer, al *streamerLink, ids []string, now time.Time)) {
	for _, c := range []struct {
		name        string
		there, used int
	}{{"1", 1, 1}, {"1000", 1000, 1000}, {"100000", 100_000, 1000}, {"100000-all", 100_000, 100_000}} {
		b.Run(c.name, func(b *testing.B) {
			st, al, ids, now := benchAgent(b, c.there)
			used := make([]string, max(c.used, 1000)) // a round, with one event each
			for i := range used {
				used[i] = ids[i%c.used*(c.there/c.used)]
			}
			b.ReportAllocs()
			b.ResetTimer()
			f(b, st, al, used, now)
		})
	}
}

// The cost of publishing an event, by the number of sessions.
func BenchmarkPublishSessions(b *testing.B) {
	benchSessions(b, func(b *testing.B, st *Streamer, al *streamerLink, ids []string, now time.Time) {
		for i := range b.N {
			if i%len(ids) == len(ids)-1 {
				b.StopTimer()
				ackAll(b, al, now)
				b.StartTimer()
			}
			if _, err := st.Publish(b.Context(), ids[i%len(ids)], benchEvent); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The cost of an ack of one event, by the number of sessions.
func BenchmarkAckSessions(b *testing.B) {
	benchSessions(b, func(b *testing.B, st *Streamer, al *streamerLink, ids []string, now time.Time) {
		acks := make([]AckBatchPayload, len(ids))
		for i := range b.N {
			if i%len(ids) == 0 {
				b.StopTimer()
				for j, id := range ids {
					seq, err := st.Publish(b.Context(), id, benchEvent)
					if err != nil {
						b.Fatal(err)
					}
					acks[j] = AckBatchPayload{SessionID: id, Epoch: st.lookup(id).epoch, Link: "l", UpToSeq: seq}
				}
				for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
				}
				b.StartTimer()
			}
			if err := al.handle(endedContext, now, &acks[i%len(ids)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The cost of a reconnect until everything is resent, by the number of pending events.
// Each costs the same however many there are.
func BenchmarkReconnect(b *testing.B) {
	for _, pending := range []int{0, 1000, 8000} {
		b.Run(fmt.Sprint("pending=", pending), func(b *testing.B) {
			st, now := NewStreamer(nil), time.Now()
			s, err := st.Session("s")
			if err != nil {
				b.Fatal(err)
			}
			for range pending {
				if _, err := s.Publish(b.Context(), benchEvent); err != nil {
					b.Fatal(err)
				}
			}
			ack := &AckBatchPayload{SessionID: "s", Epoch: s.epoch, Link: "l"}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				al, sent := benchLink(b, st, now), 0
				if err := al.handle(endedContext, now, ack); err != nil {
					b.Fatal(err)
				}
				for p, _, _ := al.next(now); p != nil; p, _, _ = al.next(now) {
					if p, ok := p.(*EventBatchPayload); ok {
						sent += len(p.Events)
					}
				}
				if sent != pending {
					b.Fatalf("%d events were sent again, want %d", sent, pending)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(max(pending, 1)), "ns/event")
		})
	}
}

// Each link begins with another session (rule 5). They all began with the same one, so a
// connection that always broke at what that sent never got to the others.
func TestStreamerBeginsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		for _, id := range []string{"a", "b", "c"} {
			publishN(t, st, id, 1)
		}
		for _, want := range [][]string{{"a", "b", "c"}, {"b", "c", "a"}, {"c", "a", "b"}, {"a", "b", "c"}} {
			playHub(t, st).wantStatus(want...)
		}
	})
}

// However an agent comes to forget sessions, the hub hears of all of them, and counts none any more.
func TestStreamerForgetIsHeard(t *testing.T) {
	const many = maxForgotten + 76
	for _, test := range []struct {
		name   string
		forget func(t *testing.T, st *Streamer, connect func() (down func()), carry func())
	}{
		// Beyond 1,024 at a time it did not hear of them, as long as the link lived.
		{"many at once", func(t *testing.T, st *Streamer, connect func() func(), carry func()) {
			connect()
			for i := range many {
				publishN(t, st, fmt.Sprint("s", i), 1)
			}
			carry()
			for i := range many {
				st.Forget(fmt.Sprint("s", i))
			}
		}},
		// It was told of an epoch that it did not know, and kept the one before.
		{"renewed before", func(t *testing.T, st *Streamer, connect func() func(), carry func()) {
			connect()
			publishN(t, st, "s", 1)
			carry()
			if err := st.Renew("s"); err != nil {
				t.Fatal(err)
			}
			st.Forget("s")
		}},
		// The note that it was to be told was lost with the second life.
		{"made again, and forgotten again", func(t *testing.T, st *Streamer, connect func() func(), carry func()) {
			down := connect()
			publishN(t, st, "s", 1)
			carry()
			down()
			st.Forget("s")
			if _, err := st.Session("s"); err != nil {
				t.Fatal(err)
			}
			st.Forget("s")
			connect()
		}},
		// A session that has sent nothing counted as one that no hub knows.
		{"without events", func(t *testing.T, st *Streamer, connect func() func(), carry func()) {
			if _, err := st.Session("s"); err != nil {
				t.Fatal(err)
			}
			down := connect()
			carry()
			down()
			st.Forget("s")
			connect()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, st := NewHub(&HubConfig{MaxAgentSessions: many}), NewStreamer(nil)
				var agent, hub *Link
				connect := func() (down func()) {
					agent, hub = st.Connect(), h.ConnectAgent("a")
					agent.patient, hub.patient = true, true
					return func() { agent.Close(); hub.Close() }
				}
				most := 0
				carry := func() {
					for range 2 { // and the acks, which are held back
						carryAll(t, agent, hub)
						most = max(most, h.owned["a"])
						pass(time.Second)
					}
				}
				test.forget(t, st, connect, carry)
				if most == 0 {
					t.Fatal("the hub never knew a session")
				}
				for range 4 { // it is said again with each sign of life
					carryAll(t, agent, hub)
					pass(heartbeatEvery)
				}
				if n := h.owned["a"]; n != 0 {
					t.Errorf("%d sessions count", n)
				}
			})
		})
	}
}

// All unreadable events that are in flight become gaps at once, however many. Beyond 1,024 they stayed
// as they were, counted as checked, and the session stood still.
func TestStreamerRechecksMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{TrustData: true})
		hub := playHubWindow(t, st, 4096)
		const n = 1500
		for range n {
			if _, err := st.Publish(t.Context(), "s", Event{Data: []byte(`1,"seq":7`)}); err != nil {
				t.Fatal(err)
			}
		}
		taken := func() (events int) {
			for p, err := hub.link.Next(endedContext); err == nil; p, err = hub.link.Next(endedContext) {
				if b, ok := p.(*EventBatchPayload); ok {
					events += len(b.Events)
				}
			}
			return events
		}
		if n := taken(); n <= maxGaps {
			t.Fatalf("%d events are in flight", n)
		}
		hub.send(&ErrorPayload{Code: CodeMalformed})
		if n := taken(); n > 0 {
			t.Errorf("%d events are sent again", n)
		}
		if got := stats(t, st, "s"); got.PendingEvents > 0 {
			t.Errorf("still pending: %+v", got)
		}
	})
}

// Rule 5: the status of a session without events is said again when it is lost.
func TestStreamerEmptyStatusLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		if _, err := st.Session("s"); err != nil {
			t.Fatal(err)
		}
		hub := playHub(t, st)
		hub.wantStatus("s") // lost
		for range 40 {
			pass(15 * time.Second)
			for _, p := range hub.drain() {
				if s, ok := p.(*StatusPayload); ok && len(s.Sessions) > 0 {
					return
				}
			}
		}
		t.Error("in ten minutes the session was not named again")
	})
}

// Rule 11: one retryable error that comes twice makes the agent wait once.
func TestStreamerDoubledError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 1)
		hub.drain()
		for range 2 {
			hub.send(&ErrorPayload{SessionID: "s", Code: CodeOverloaded, Retryable: true})
		}
		pass(time.Second)
		hub.wantStatus("s")
	})
}
