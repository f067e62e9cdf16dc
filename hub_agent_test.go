package gvstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/epoch"
)

// Rule 5: a status opens a session, and is answered with where the hub stands.
func TestHubOpensByStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 3, 5), entryOf("r", "e1", 1, 0, 0)))
		a.want(a.ack("s", "e1", 3), a.ack("r", "e1", 0)) // without Resume the agent's ack is trusted
		a.send(a.batch("s", "e1", 4, 5))
		a.wantIdle("no ack yet")
		pass(ackDelay)
		a.want(a.ack("s", "e1", 5))
		a.send(a.status(entryOf("s", "e1", 1, 3, 5)))
		a.want(a.ack("s", "e1", 5))
		want := SessionStats{
			SessionID: "s", Epoch: "e1", First: 4, Head: 5, Acked: 5, Events: 2,
			Bytes: statOf(t, h, "s").Bytes, Connected: true, AgentID: "agent",
		}
		if diff := cmp.Diff(want, statOf(t, h, "s")); diff != "" || want.Bytes == 0 {
			t.Errorf("stats: -want +got\n%s", diff)
		}
	})
}

// Rule 5: so does a first batch, and no other.
func TestHubOpensByFirstBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.refused(a.batch("s", "e1", 2, 3), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		if n := len(h.sessions); n != 0 {
			t.Errorf("%d sessions stay", n)
		}
		a.send(a.batch("s", "e1", 1, 3))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 3)...)

		a = playAgent(t, h, "agent") // another link: the session has to be opened again
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.send(a.status(entryOf("s", "e1", 1, 0, 4)))
		a.want(a.ack("s", "e1", 3))
		a.send(a.batch("s", "e1", 4, 4))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 4))
	})
}

// Rule 9: an empty status is answered with an empty one.
func TestHubEmptyStatus(t *testing.T) {
	a := playAgent(t, NewHub(nil), "agent")
	a.send(a.status())
	a.want(&StatusPayload{Link: a.id})
	a.refused(a.status(SessionStatus{SessionID: "s"}), &ErrorPayload{Code: CodeMalformed})
}

// Each refused session of a status gets an answer of its own.
func TestHubStatusOfManyKinds(t *testing.T) {
	h := NewHub(nil)
	playAgent(t, h, "other").send(&StatusPayload{Link: h.agents["other"].id, Sessions: []SessionStatus{
		entryOf("theirs", "e1", 1, 0, 0), entryOf("too", "e1", 1, 0, 0),
	}})
	a := playAgent(t, h, "agent")
	err := a.link.Handle(t.Context(), a.status(entryOf("theirs", "e1", 1, 0, 0), entryOf("mine", "e1", 1, 0, 0), entryOf("too", "e1", 1, 0, 0)))
	if err == nil {
		t.Error("no error")
	}
	a.want(
		&ErrorPayload{Code: CodeForbidden, SessionID: "theirs", Epoch: "e1"}, &ErrorPayload{Code: CodeForbidden, SessionID: "too", Epoch: "e1"},
		a.ack("mine", "e1", 0),
	)
}

// Rule 7: exactly once, in order, whatever comes.
func TestHubAcceptsOnceInOrder(t *testing.T) {
	type frame struct {
		from, to uint64
		gap      bool
		want     uint64 // acknowledged
		nack     bool
		silent   bool
	}
	tests := []struct {
		name   string
		frames []frame
		want   []string
	}{
		{"in order", []frame{{1, 3, false, 3, false, false}, {4, 5, false, 5, false, false}}, itemTexts("s", "e1", 1, 5)},
		{"duplicate", []frame{{1, 3, false, 3, false, false}, {1, 3, false, 3, false, false}, {2, 2, false, 3, false, false}}, itemTexts("s", "e1", 1, 3)},
		{"overlap", []frame{{1, 3, false, 3, false, false}, {2, 5, false, 5, false, false}}, itemTexts("s", "e1", 1, 5)},
		{"hole", []frame{{1, 3, false, 3, false, false}, {5, 6, false, 3, true, false}, {4, 6, false, 6, false, false}}, itemTexts("s", "e1", 1, 6)},
		{"hole twice", []frame{{1, 3, false, 3, false, false}, {5, 6, false, 3, true, false}, {7, 8, false, 3, true, true}}, itemTexts("s", "e1", 1, 3)},
		{"gap", []frame{{1, 3, false, 3, false, false}, {4, 8, true, 8, false, false}, {9, 9, false, 9, false, false}},
			append(itemTexts("s", "e1", 1, 3), "s e1 gap 4-8 dropped", "s e1 9")},
		{"gap known in part", []frame{{1, 3, false, 3, false, false}, {2, 8, true, 8, false, false}},
			append(itemTexts("s", "e1", 1, 3), "s e1 gap 4-8 dropped")},
		{"gap known all", []frame{{1, 3, false, 3, false, false}, {1, 3, true, 3, false, false}}, itemTexts("s", "e1", 1, 3)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stored []string
				h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
					for _, it := range items {
						stored = append(stored, itemText(it))
					}
					return nil
				}})
				a := playAgent(t, h, "agent")
				for _, f := range test.frames {
					if f.gap {
						a.send(a.lost("s", "e1", f.from, f.to, ReasonDropped))
					} else {
						a.send(a.batch("s", "e1", f.from, f.to))
					}
					if !f.nack {
						pass(ackDelay)
					}
					switch {
					case f.silent:
						a.wantIdle("said within this second")
					case f.nack:
						a.want(a.nack("s", "e1", f.want))
					default:
						a.want(a.ack("s", "e1", f.want))
					}
				}
				a.wantIdle("all is said")
				hubSaw(t, h, "s", test.want...)
				if diff := cmp.Diff(test.want, stored); diff != "" {
					t.Errorf("stored: -want +got\n%s", diff)
				}
			})
		})
	}
}

// A gap that is partly known, even if only its first number is, is accepted from there
// on.
func TestHubAcceptsRestOfGap(t *testing.T) {
	for first := uint64(1); first <= 4; first++ {
		synctest.Test(t, func(t *testing.T) {
			h := NewHub(nil)
			a := playAgent(t, h, "agent")
			a.feed("s", "e1", 1, 3)
			a.send(a.lost("s", "e1", first, 5, ReasonDropped))
			hubSaw(t, h, "s", append(itemTexts("s", "e1", 1, 3), "s e1 gap 4-5 dropped")...)
		})
	}
}

// Rule 7: a hole gets one nack until accepted has moved or a second has passed.
func TestHubNacksOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := playAgent(t, NewHub(nil), "agent")
		a.feed("s", "e1", 1, 3)
		hole := a.batch("s", "e1", 6, 6)
		a.send(hole)
		a.want(a.nack("s", "e1", 3))
		pass(time.Second - 1)
		a.send(hole)
		a.wantIdle("not a second yet")
		pass(1)
		a.send(hole)
		a.want(a.nack("s", "e1", 3))
		a.feed("s", "e1", 4, 4)
		a.send(hole)
		a.want(a.nack("s", "e1", 4)) // accepted moved
	})
}

// Rule 6: when acks go out.
func TestHubAckTiming(t *testing.T) {
	for _, test := range []struct{ window, batch int }{{256, 128}, {100, 50}, {9, 4}, {8, 4}, {3, 1}, {2, 1}, {1, 1}, {-1, 1}} {
		t.Run(fmt.Sprint(test.window), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := playAgent(t, NewHub(&HubConfig{Window: test.window}), "agent")
				n := uint64(test.batch)
				a.send(a.batch("s", "e1", 1, n))
				a.want(a.ack("s", "e1", n))
				if n > 1 {
					a.send(a.batch("s", "e1", n+1, 2*n-1))
					a.wantIdle("one too few")
					pass(ackDelay - 1)
					a.wantIdle("too early")
					a.send(a.lost("s", "e1", 2*n, 2*n, ReasonDropped)) // counts as nothing, and delays nothing
					a.wantIdle("too early")
					pass(1)
					a.want(a.ack("s", "e1", 2*n))
				}
				pass(time.Minute)
				a.wantIdle("all is acknowledged")
			})
		})
	}
	t.Run("end", func(t *testing.T) {
		a := playAgent(t, NewHub(nil), "agent")
		a.send(a.last("s", "e1", 1))
		a.want(a.ack("s", "e1", 1))
	})
}

// A window without a limit is sent as a number that an agent can read, which the
// greatest integer is not (rule 7).
func TestHubWindowNoLimit(t *testing.T) {
	a := NewHub(&HubConfig{Window: math.MaxInt}).ConnectAgent("agent")
	a.Handle(t.Context(), &HelloPayload{V: version, Role: roleAgent})
	welcome, err := a.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	line, err := Marshal(welcome)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unmarshal(line); err != nil {
		t.Errorf("%s: %v", line, err)
	}
}

// Rule 8: accepted means committed; before that nobody sees anything, and nobody waits.
func TestHubCommitsBeforeAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored []string
		release := make(chan bool)
		h := NewHub(&HubConfig{Commit: func(_ context.Context, session, epoch string, items []Item) error {
			if session != "s" {
				return nil
			}
			<-release
			for _, it := range items {
				if it.SessionID != session || it.Epoch != epoch {
					t.Errorf("item of %s %s in %s %s", it.SessionID, it.Epoch, session, epoch)
				}
				stored = append(stored, itemText(it))
			}
			return nil
		}})
		h.sizes.first = maxBatchBytes
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(SessionStatus{SessionID: "s"}))
		b := a.batch("s", "e1", 1, 70)
		b.LastSeq, b.HeadSeq, b.Gaps = 72, 72, []Gap{{71, 72, ReasonDropped}}
		a.send(b)
		a.wantIdle("nothing is committed")
		v.want(v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1}))
		v.wantIdle("nothing is committed")
		if st := statOf(t, h, "s"); st.Acked != 0 {
			t.Errorf("accepted %d", st.Acked)
		}
		a.send(a.batch("r", "e1", 1, 64)) // another session of the same agent
		pass(ackDelay)
		a.want(a.ack("r", "e1", 64))
		release <- true
		synctest.Wait()
		pass(ackDelay)
		a.want(a.ack("s", "e1", 72))
		want := append(itemTexts("s", "e1", 1, 70), "s e1 gap 71-72 dropped")
		if diff := cmp.Diff(want, stored); diff != "" {
			t.Errorf("stored: -want +got\n%s", diff)
		}
		seen := v.batch("s", "e1", 1, 70)
		seen.LastSeq, seen.HeadSeq, seen.Gaps = 72, 72, b.Gaps
		v.want(seen)
	})
}

// What arrives while Commit runs is stored by the next call, as far as it fits one. The events
// that wait are known: sent again, they are skipped, and have no answer before their ack.
func TestHubCommitMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		var calls []int
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			<-release
			calls = append(calls, len(items))
			return nil
		}})
		a := playAgent(t, h, "agent")
		const batch = 100
		for first := uint64(1); first <= 20*batch; first += batch {
			a.send(a.batch("s", "e1", first, first+batch-1))
		}
		a.send(a.batch("s", "e1", 101, 200), a.batch("s", "e1", 1901, 2001))
		a.wantIdle("nothing is accepted, nothing missing")
		a.send(a.batch("s", "e1", 2003, 2003))
		a.want(a.nack("s", "e1", 0)) // of what is accepted: that is what an ack says
		close(release)
		pass(ackDelay)
		a.want(a.nack("s", "e1", 2001)) // 2002 is still missing
		if want := []int{batch, 10 * batch, 9*batch + 1}; !slices.Equal(want, calls) {
			t.Errorf("calls of %v items, want %v", calls, want)
		}
		if n := len(h.uncommitted); n > 0 {
			t.Errorf("%d agents have something that waits", n)
		}
	})
}

// One call is at most 1 MiB, or one batch.
func TestHubCommitBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		var calls []int
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			<-release
			calls = append(calls, len(items))
			return nil
		}})
		a := playAgent(t, h, "agent")
		for seq := uint64(1); seq <= 6; seq++ {
			b := a.batch("s", "e1", seq, seq)
			b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", 400<<10) + `"`)
			a.send(b)
		}
		close(release)
		pass(ackDelay)
		a.want(a.ack("s", "e1", 6))
		if want := []int{1, 2, 2, 1}; !slices.Equal(want, calls) {
			t.Errorf("calls of %v items, want %v", calls, want)
		}
	})
}

// At most MaxCommits calls run at a time, over all agents, and one for a session.
func TestHubMaxCommits(t *testing.T) {
	for limit, want := range map[int]int{3: 3, -1: 1, 0: 20} {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			running, most := 0, 0
			h := NewHub(&HubConfig{MaxCommits: limit, Commit: func(context.Context, string, string, []Item) error {
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				pass(time.Second)
				mu.Lock()
				running--
				mu.Unlock()
				return nil
			}})
			for _, id := range []string{"a", "b"} {
				a := playAgent(t, h, id)
				for i := range 10 {
					a.send(a.batch(fmt.Sprint(id, i), "e1", 1, 1), a.batch(fmt.Sprint(id, i), "e1", 2, 2))
				}
			}
			pass(time.Hour)
			if most != want {
				t.Errorf("MaxCommits %d: %d at a time, want %d", limit, most, want)
			}
			for st := range h.Sessions() {
				if st.Acked != 2 {
					t.Errorf("%s: accepted %d", st.SessionID, st.Acked)
				}
			}
		})
	}
}

// What one agent has sent and is not stored is bounded. A batch beyond is dropped, and asked for
// a second later; what follows it until then is a hole that is known. The bound holds over all
// its links, and one batch fits always.
func TestHubMaxUncommittedBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{MaxUncommittedBytes: 30 << 10, Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		a := playAgent(t, h, "agent")
		large := func(p *peer, id string, seq uint64) *EventBatchPayload {
			b := p.batch(id, "e1", seq, seq)
			b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", 20<<10) + `"`)
			return b
		}
		a.send(large(a, "s", 1), large(a, "s", 2), large(a, "s", 3))
		a.wantIdle("no room, for a second")
		window := func(id string) (events, bytes int) {
			s := h.lookup(id)
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.receiver.windowLocked()
		}
		if e, b := window("s"); e != 1024 || b != minWindowBytes {
			t.Errorf("window of %d events and %d bytes", e, b)
		}
		pass(time.Second)
		a.credit.bytes = minWindowBytes
		a.want(a.nack("s", "e1", 0))
		a.send(large(a, "r", 1))
		if e, b := window("r"); e != 1024 || b != minWindowBytes {
			t.Errorf("window of %d events and %d bytes", e, b)
		}
		pass(time.Second)
		a.want(a.nack("r", "e1", 0))
		a = playAgent(t, h, "agent") // nothing is gained by a new link
		a.send(large(a, "q", 1))
		a.wantIdle("no room")
		other := playAgent(t, h, "other")
		other.send(large(other, "p", 1)) // has room of its own
		release <- true
		release <- true
		pass(ackDelay)
		other.credit.bytes = 30 << 10
		other.want(other.ack("p", "e1", 1))
		a.credit.bytes = 30 << 10
		pass(time.Second)
		a.want(a.nack("q", "e1", 0))
		a.send(large(a, "q", 1))
		release <- true
		pass(ackDelay)
		a.want(a.ack("q", "e1", 1))
		if n := len(h.uncommitted); n > 0 {
			t.Errorf("%d agents have something that waits", n)
		}
		if _, b := window("q"); b != 30<<10 {
			t.Errorf("window of %d bytes", b)
		}
	})
}

// Rule 8: an error accepts nothing and closes the session on its link, which lives. Another of
// its sessions goes on, and what was sent of the one after the failure has to be sent again.
func TestHubCommitFails(t *testing.T) {
	for _, fail := range []error{
		&diskError{7}, &ProtocolError{Code: CodeForbidden}, &ProtocolError{Code: CodeEventRejected, Seq: 9}, &ProtocolError{Code: CodeEventRejected},
	} {
		synctest.Test(t, func(t *testing.T) {
			commits := 0
			h := NewHub(&HubConfig{Commit: func(_ context.Context, id, _ string, _ []Item) error {
				if id == "s" {
					commits++
					return fail
				}
				return nil
			}})
			a := playAgent(t, h, "agent")
			a.send(a.batch("s", "e1", 1, 3))
			a.want(&ErrorPayload{Code: CodeOverloaded, SessionID: "s", Epoch: "e1", Retryable: true})
			if st := statOf(t, h, "s"); st.Acked != 0 || st.Connected || st.AgentID != "agent" {
				t.Errorf("session: %+v", st)
			}
			a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
			a.feed("r", "e1", 1, 3)
			fail = nil
			a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
			a.want(a.ack("s", "e1", 0))
			a.feed("s", "e1", 1, 3)
			hubSaw(t, h, "s", itemTexts("s", "e1", 1, 3)...)
			if commits != 2 {
				t.Errorf("%d commits", commits)
			}
		})
	}
}

// Rule 11: a Commit refuses events permanently. What precedes the first is stored; the rest waits
// for the agent's gap, and only for that.
func TestHubCommitRejectsEvent(t *testing.T) {
	for name, to := range map[string]uint64{"one": 0, "a range": 3} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stored []string
				h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
					for _, it := range items {
						if it.Event != nil && it.Event.Seq >= 2 && it.Event.Seq <= max(2, to) {
							return fmt.Errorf("bad: %w", &ProtocolError{Code: CodeEventRejected, Seq: 2, ToSeq: to, Message: "rude"})
						}
					}
					for _, it := range items {
						stored = append(stored, itemText(it))
					}
					return nil
				}})
				a := playAgent(t, h, "agent")
				a.send(a.batch("s", "e1", 1, 5))
				refused := &ErrorPayload{Code: CodeEventRejected, SessionID: "s", Epoch: "e1", Seq: 2, ToSeq: to}
				a.want(refused)
				pass(ackDelay)
				a.want(a.ack("s", "e1", 1))
				a.send(a.batch("s", "e1", 6, 6)) // received, as it was not told
				a.wantIdle("2 is in the way")
				pass(time.Second)
				a.send(a.batch("s", "e1", 2, 6)) // the agent has not heard
				a.want(refused)
				a.send(a.batch("s", "e1", 2, 6))
				a.wantIdle("it was said a moment ago")
				last := max(2, to)
				a.send(a.lost("s", "e1", 2, last, ReasonRejected))
				pass(ackDelay)
				a.want(a.ack("s", "e1", 6))
				want := []string{"s e1 1", "s e1 gap 2-2 rejected"}
				if to > 0 {
					want = append(want[:1], "s e1 gap 2-3 rejected")
				}
				want = append(want, itemTexts("s", "e1", last+1, 6)...)
				hubSaw(t, h, "s", want...)
				if to > 0 { // each event of a batch is a gap of its own, until they are in a log
					want = slices.Concat(want[:1], []string{"s e1 gap 2-2 rejected", "s e1 gap 3-3 rejected"}, want[2:])
				}
				if diff := cmp.Diff(want, stored); diff != "" {
					t.Errorf("stored: -want +got\n%s", diff)
				}
			})
		})
	}
}

// TestHubManyRejected: events that Commit rejects cost a round trip, not a timer (rule 11).
func TestHubManyRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{Commit: func(ctx context.Context, id, epoch string, items []Item) error {
			for _, it := range items {
				if it.Event != nil && it.Event.Type == "bad" {
					return &ProtocolError{Code: CodeEventRejected, Seq: it.Event.Seq}
				}
			}
			return nil
		}})
		st := NewStreamer(nil)
		for i := range 20 {
			typ := "good"
			if i%2 == 1 {
				typ = "bad"
			}
			st.Publish(t.Context(), "s", Event{Type: typ})
		}
		a, b := st.Connect(), h.ConnectAgent("agent")
		start := time.Now()
		for st.Stats().PendingEvents > 0 && time.Since(start) < time.Hour {
			carryAll(t, a, b)
			pass(250 * time.Millisecond)
		}
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("10 rejected events among 20 took %v on a perfect connection", d)
		}
	})
}

// TestHubRejectsGap: only an event can be rejected: the gap in its place is not resent
// over and over (rule 11).
func TestHubRejectsGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		var a, b *Link
		h := NewHub(&HubConfig{Commit: func(ctx context.Context, id, epoch string, items []Item) error {
			if calls++; calls > 1000 {
				a.Close()
				b.Close()
			}
			return &ProtocolError{Code: CodeEventRejected, Seq: 1}
		}})
		st := NewStreamer(nil)
		st.Publish(t.Context(), "s", Event{})
		a, b = st.Connect(), h.ConnectAgent("agent")
		start := time.Now()
		for range 2000 {
			if p, _ := a.Next(endedContext); p != nil {
				b.Handle(context.Background(), p)
				synctest.Wait()
			}
			if p, _ := b.Next(endedContext); p != nil {
				a.Handle(context.Background(), p)
			}
		}
		if calls > 100 {
			t.Errorf("%d calls of Commit in %v", calls, time.Since(start))
		}
	})
}

// Rule 8: one call at a time, across links. A Commit goes on when its link is lost, and what it
// stores counts. The next link does not wait: it is told what is accepted, and what it sends again
// is known.
func TestHubCommitAcrossLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		running, release := 0, make(chan bool)
		h := NewHub(&HubConfig{Commit: func(ctx context.Context, _, _ string, items []Item) error {
			if running++; running > 1 {
				t.Error("two calls at a time")
			}
			defer func() { running-- }()
			<-release
			return ctx.Err()
		}})
		old := playAgent(t, h, "agent")
		old.send(old.batch("s", "e1", 1, 3), old.batch("s", "e1", 4, 4))
		a := playAgent(t, h, "agent")
		old.wantSuperseded()
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		a.send(a.batch("s", "e1", 1, 5))
		pass(time.Hour)
		a.wantIdle("nothing is stored")
		release <- true
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
		release <- true
		pass(ackDelay)
		a.want(a.ack("s", "e1", 5))
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 5)...)
	})
}

// What the owner before has sent and is not stored is not a new owner's to confirm: the running call
// counts, as far as it was stored, and the rest has to come again. A new epoch waits for the call.
func TestHubTakeOverDuringCommit(t *testing.T) {
	for name, test := range map[string]struct {
		epoch string
		err   error
		want  uint64
	}{
		"stored": {"e1", nil, 3}, "failed": {"e1", errors.New("no"), 0}, "rejected": {"e1", &ProtocolError{Code: CodeEventRejected, Seq: 1}, 0},
		"another epoch": {"e2", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan bool)
				h := NewHub(&HubConfig{
					AuthorizeAgent: func(context.Context, string, string, string) error { return nil },
					Commit:         func(context.Context, string, string, []Item) error { <-release; return test.err },
				})
				a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
				a.send(a.batch("s", "e1", 1, 3), a.batch("s", "e1", 4, 9))
				b.send(b.status(entryOf("s", test.epoch, 1, 0, 9)))
				if test.epoch == "e1" {
					b.want(b.ack("s", "e1", 0))
				}
				b.wantIdle("the call runs")
				release <- true
				pass(ackDelay)
				if test.want > 0 || test.epoch == "e2" {
					b.want(b.ack("s", test.epoch, test.want))
				}
				if st := statOf(t, h, "s"); st.AgentID != "b" || st.Acked != test.want || !st.Connected {
					t.Errorf("session: %+v", st)
				}
				if n := len(h.uncommitted); n > 0 {
					t.Errorf("%d agents have something that waits", n)
				}
			})
		})
	}
}

// The ctx of a callback has the values of the link's, whichever goroutine calls it. Only Close
// ends that of Commit, and that of an opening ends with its link as well.
func TestHubCallbackContexts(t *testing.T) {
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var ended []string
		in := func(name string, ctx context.Context) {
			if ctx.Value(key{}) != "v" || ctx.Err() != nil {
				t.Errorf("%s: value %v, %v", name, ctx.Value(key{}), ctx.Err())
			}
			if name != "AuthorizeViewer" {
				<-ctx.Done()
				mu.Lock()
				ended = append(ended, name)
				mu.Unlock()
				if err := context.Cause(ctx); err != context.Canceled {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		over := func() []string { // the callbacks whose ctx has ended, in the order of their names
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(ended)
			return slices.Clone(ended)
		}
		var h *Hub
		var authorized atomic.Bool
		h = NewHub(&HubConfig{
			AuthorizeViewer: func(ctx context.Context, _, _ string) error { in("AuthorizeViewer", ctx); return nil },
			AuthorizeAgent: func(ctx context.Context, _, id, _ string) error {
				if id == "asked" {
					in("AuthorizeAgent", ctx)
				}
				authorized.Store(true)
				return nil
			},
			Resume: func(ctx context.Context, id, _ string) (uint64, error) {
				if id == "resumed" {
					in("Resume", ctx)
				}
				return 0, nil
			},
			Commit: func(ctx context.Context, _, _ string, _ []Item) error { in("Commit", ctx); return nil },
		})
		ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "v"))
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		for l, p := range map[*Link]Payload{v.link: v.watch("s", "", 0), a.link: a.status(entryOf("asked", "e1", 1, 0, 1), entryOf("resumed", "e1", 1, 0, 1))} {
			if err := l.Handle(ctx, p); err != nil {
				t.Error(err)
			}
		}
		if err := a.link.Handle(ctx, a.batch("s", "e1", 1, 1)); err != nil {
			t.Error(err)
		}
		cancel(errors.New("the call is over"))
		if got := over(); len(got) > 0 || !authorized.Load() {
			t.Errorf("ended with the caller's ctx: %v", got)
		}
		a.link.Close()
		if got := over(); !slices.Equal(got, []string{"AuthorizeAgent", "Resume"}) {
			t.Errorf("ended with the link: %v", got)
		}
		h.Close()
		if got := over(); !slices.Contains(got, "Commit") {
			t.Errorf("ended with the hub: %v", got)
		}
	})
}

// A session that is forgotten while its Commit runs, stays forgotten.
func TestHubForgetsDuringCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		h = NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { h.Forget("s"); return nil }})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3))
		pass(time.Second)
		a.wantIdle("it is forgotten")
		if len(h.sessions) != 0 || h.Stats().Sessions != 0 {
			t.Error("the session is there")
		}
	})
}

// A session that is forgotten while Commit runs accepts nothing of what Commit stored,
// and can be opened on another link when Commit is done.
func TestHubForgetDuringCommitOfWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered, release := make(chan bool), make(chan bool)
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			if items[0].Event.Seq == 1 {
				entered <- true
				<-release
			}
			return nil
		}})
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0)) // it keeps the session in the hub
		v.want(v.status(SessionStatus{SessionID: "s"}))
		go func() { <-entered }()
		a.send(a.batch("s", "e1", 1, 3))
		h.Forget("s")
		a.send(a.status(entryOf("s", "e1", 8, 7, 9)))
		a.wantIdle("Commit runs")
		close(release)
		synctest.Wait()
		a.want(a.ack("s", "e1", 7))
		if st := statOf(t, h, "s"); st.Acked != 7 || st.Events != 0 {
			t.Errorf("the forgotten batch counts: %+v", st)
		}
		a.send(a.batch("s", "e1", 8, 9))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 9))
		if st := statOf(t, h, "s"); st.First != 8 || st.Acked != 9 || st.Events != 2 {
			t.Errorf("behind the new start: %+v", st)
		}
	})
}

// TestHubForgetDuringCommitThenOpen: a session that is forgotten while Commit runs for it can be
// opened again on the agent's next link, but one call at a time is the rule: Resume asked the store
// that Commit was writing to.
func TestHubForgetDuringCommitThenOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored, writing, written := uint64(0), false, make(chan bool)
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) {
				if writing {
					t.Error("Resume while Commit runs")
				}
				return stored, nil
			},
			Commit: func(_ context.Context, _, _ string, items []Item) error {
				writing = true
				<-written
				writing, stored = false, items[len(items)-1].Position().Seq
				return nil
			},
		})
		old := playAgent(t, h, "agent")
		old.send(old.batch("s", "e1", 1, 3))
		a := playAgent(t, h, "agent")
		h.Forget("s")
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.wantIdle("Commit runs")
		written <- true
		synctest.Wait()
		a.want(a.ack("s", "e1", 3))
		if n := h.Stats().Sessions; n != 1 || len(h.sessions) != 1 {
			t.Errorf("%d sessions, %d held", n, len(h.sessions))
		}

		a.send(a.batch("s", "e1", 4, 4))
		h.Close()
		written <- true
		synctest.Wait()
		if n := h.Stats().Sessions; n != 0 || len(h.sessions) != 0 {
			t.Errorf("closed: %d sessions, %d held", n, len(h.sessions))
		}
	})
}

// A panic in a callback leaves the state sound: it ends the process, but for a caller that
// recovers, as net/http does in the goroutine that it gave to the link.
func TestHubCallbackPanics(t *testing.T) {
	trouble := ""
	in := func(name string) {
		if trouble == name {
			panic(name)
		}
	}
	h := NewHub(&HubConfig{
		Resume:         func(context.Context, string, string) (uint64, error) { in("Resume"); return 0, nil },
		Commit:         func(context.Context, string, string, []Item) error { in("Commit"); return nil },
		AuthorizeAgent: func(context.Context, string, string, string) error { in("AuthorizeAgent"); return nil },
	})
	h.commits.size, h.openings.size = 0, 0 // this goroutine does their jobs
	works := func() {
		for _, pool := range []*workerPool{&h.openings, &h.commits} {
			for j := pool.next(); j != nil; j = pool.next() {
				j.work(time.Now())
			}
		}
	}
	a := playAgent(t, h, "agent")
	a.waits = false
	panics := func(name string, p Payload) {
		t.Helper()
		trouble = name
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
			trouble = ""
		}()
		a.send(p)
		works()
	}
	sends := func(p Payload) { a.send(p); works() }
	for _, name := range []string{"AuthorizeAgent", "Resume"} {
		panics(name, a.status(entryOf("s", "e1", 1, 0, 3)))
		if len(h.owned) > 0 || len(a.link.endpoint.(*hubAgentLink).openings) > 0 {
			t.Errorf("after a panic in %s: %v, an opening is left", name, h.owned)
		}
	}
	sends(a.status(entryOf("s", "e1", 1, 0, 3)))
	a.want(a.ack("s", "e1", 0))
	panics("Commit", a.batch("s", "e1", 1, 64))
	if len(h.uncommitted) > 0 {
		t.Errorf("after a panic in Commit: %v", h.uncommitted)
	}
	sends(a.batch("s", "e1", 1, 200))
	sends(a.status(entryOf("s", "e1", 1, 0, 200)))
	a.want(a.ack("s", "e1", 200))
	if h.owned["agent"] != 1 {
		t.Errorf("%v", h.owned)
	}
}

// Rule 5: the caller's store says where a session continues.
func TestHubResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		position, fail := uint64(7), error(nil)
		var asked []string
		h := NewHub(&HubConfig{Resume: func(_ context.Context, session, epoch string) (uint64, error) {
			asked = append(asked, session+" "+epoch)
			return position, fail
		}})
		a := playAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 3, 9)))
		a.want(a.ack("s", "e1", 7))
		a.send(a.status(entryOf("s", "e1", 1, 3, 9))) // known by now
		a.want(a.ack("s", "e1", 7))
		position = MaxSeq
		a.send(a.status(entryOf("full", "e1", 1, 3, 9)))
		a.want(a.ack("full", "e1", MaxSeq))
		h.Forget("full")
		position = 0
		a.send(a.status(entryOf("zero", "e1", 1, 3, 9)))
		a.want(a.ack("zero", "e1", 0))
		fail = errors.New("store is down")
		a.refused(a.status(entryOf("r", "e1", 1, 3, 9)), &ErrorPayload{Code: CodeOverloaded, SessionID: "r", Epoch: "e1", Retryable: true})
		fail, position = nil, MaxSeq+1
		a.refused(a.status(entryOf("r", "e1", 1, 3, 9)), &ErrorPayload{Code: CodeOverloaded, SessionID: "r", Epoch: "e1", Retryable: true})
		if h.lookup("r") != nil || h.Stats().Sessions != 2 {
			t.Error("a session that was refused stays")
		}
		fail, position = nil, 2
		a.send(a.status(entryOf("s", "e2", 1, 0, 2)))
		a.want(a.ack("s", "e2", 2))
		want := []string{"s e1", "full e1", "zero e1", "r e1", "r e1", "s e2"}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Errorf("asked: -want +got\n%s", diff)
		}
	})
}

// Rule 16: an end that the store has, in a session that the hub has forgotten, is known again from the
// batch that opens the session. All of that is a duplicate, whose end was not looked at: the session
// counted as one that goes on, and the agent, whose events were all acknowledged, said no more.
func TestHubResumesAtEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) { return 3, nil },
			Commit: func(context.Context, string, string, []Item) error { return nil },
		})
		a := playAgent(t, h, "agent")
		whole := a.batch("s", "e1", 1, 3)
		whole.Events[2].End = true
		a.send(whole)
		a.want(a.ack("s", "e1", 3))
		s := h.lookup("s")
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.ended || s.endSeq != 3 {
			t.Errorf("ended %v at %d", s.ended, s.endSeq)
		}
	})
}

// A link that is closed while Resume runs leaves no session that counts as
// connected for ever: it would never be forgotten (limits, SessionTTL).
func TestHubLinkClosedDuringResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Resume: func(context.Context, string, string) (uint64, error) { <-release; return 5, nil }})
		a := playAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 0, 9)))
		a.link.Close()
		release <- true
		synctest.Wait()
		for st := range h.Sessions() {
			if st.Connected {
				t.Errorf("%s is connected, but its link is closed", st.SessionID)
			}
		}
		pass(2 * time.Hour)
		if n := h.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions after SessionTTL, want 0", n)
		}
	})
}

// A link that is closed while it waits for a session that another one is opening opens
// nothing and calls nothing.
func TestHubLinkClosedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{
			Resume:         func(context.Context, string, string) (uint64, error) { <-release; return 0, nil },
			AuthorizeAgent: func(context.Context, string, string, string) error { return nil },
		})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.send(a.status(entryOf("s", "e1", 1, 0, 1)))
		b.send(b.status(entryOf("s", "e2", 1, 0, 1)))
		b.link.Close()
		close(release)
		synctest.Wait()
		if st := statOf(t, h, "s"); st.AgentID != "a" || st.Epoch != "e1" || h.owned["b"] != 0 {
			t.Errorf("%+v, owned %v, want a's e1", st, h.owned)
		}
	})
}

// Rule 4: a session belongs to the agent that opened it.
func TestHubOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		forbidden := &ErrorPayload{Code: CodeForbidden, SessionID: "s"}
		for _, epoch := range []string{"e0", "e1", "e2"} {
			forbidden.Epoch = epoch
			b.refused(b.status(entryOf("s", epoch, 1, 0, 9)), forbidden)
			b.refused(b.batch("s", epoch, 1, 9), forbidden)
			b.refused(b.batch("s", epoch, 4, 9), forbidden)
		}
		st := statOf(t, h, "s")
		if st.Epoch != "e1" || st.Head != 3 || st.AgentID != "a" || !st.Connected {
			t.Errorf("session: %+v", st)
		}
		a.link.Close()
		b.refused(b.status(entryOf("s", "e2", 1, 0, 9)), forbidden) // even while its owner is away
	})
}

func TestHubAuthorizeAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer error
		var asked []string
		h := NewHub(&HubConfig{AuthorizeAgent: func(_ context.Context, agentID, sessionID, ownerID string) error {
			asked = append(asked, agentID+" "+sessionID+" "+ownerID)
			return answer
		}})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		answer = errors.New("not yours")
		b.refused(b.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e1", 4, 5), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e2", 1, 5), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e2"})
		b.refused(b.batch("r", "e2", 1, 5), &ErrorPayload{Code: CodeForbidden, SessionID: "r", Epoch: "e2"}) // nobody's
		a.feed("s", "e1", 4, 4)
		answer = nil
		b.send(b.status(entryOf("s", "e1", 1, 0, 5)))
		b.want(b.ack("s", "e1", 4))
		b.send(b.status(entryOf("s", "e1", 1, 4, 5))) // it is open
		b.want(b.ack("s", "e1", 4))
		answer = &ProtocolError{Message: "out"}
		a.refused(a.batch("s", "e1", 5, 5), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.refused(a.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		for _, answer = range []error{&ProtocolError{Retryable: true}, context.DeadlineExceeded, fmt.Errorf("directory: %w", context.Canceled)} {
			a.refused(a.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: CodeOverloaded, SessionID: "s", Epoch: "e1", Retryable: true})
		}
		b.feed("s", "e1", 5, 5)
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 5)...)
		b = playAgent(t, h, "b") // another link, and the owner itself is asked about
		answer = nil
		b.send(b.status(entryOf("s", "e1", 1, 5, 5)))
		b.want(b.ack("s", "e1", 5))
		b.send(b.batch("s", "e2", 1, 64)) // another epoch
		pass(ackDelay)
		b.want(b.ack("s", "e2", 64))
		if want := []string{"a s ", "b s a", "b s a", "b r ", "b s a", "a s b", "a s b", "a s b", "a s b", "b s b", "b s b"}; !slices.Equal(want, asked) {
			t.Errorf("asked: %q", asked)
		}
		a.link.Close() // the session is another's
		if st := statOf(t, h, "s"); st.AgentID != "b" || !st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// A batch whose session was refused before it was held for it caused another question and another
// answer, up to three of each.
func TestHubAsksOnceForABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		h := NewHub(&HubConfig{AuthorizeAgent: func(context.Context, string, string, string) error {
			asked.Add(1)
			return errors.New("not yours")
		}})
		a := playAgent(t, h, "a")
		for i := range int64(1000) {
			id := fmt.Sprint("s", i)
			a.refused(a.batch(id, "e1", 1, 3), &ErrorPayload{Code: CodeForbidden, SessionID: id, Epoch: "e1"})
			a.wantIdle("it has been answered")
			if n := asked.Load(); n != i+1 {
				t.Fatalf("asked %d times for %d batches", n, i+1)
			}
		}
	})
}

// An agent that sent a batch of another agent's session in a small epoch learned the session's
// epoch, before AuthorizeAgent was called. The epoch in the answer is its own.
func TestBatchTellsNoEpochOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		h := NewHub(&HubConfig{AuthorizeAgent: func(_ context.Context, agentID, _, _ string) error {
			if agentID == "thief" {
				asked++
				return errors.New("stop")
			}
			return nil
		}})
		owner, thief := playAgent(t, h, "owner"), playAgent(t, h, "thief")
		owner.send(owner.batch("s", "e5", 1, 3))
		thief.refused(thief.batch("s", "e1", 1, 3), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		thief.refused(thief.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		thief.refused(thief.status(entryOf("s", "e1", 1, 0, 4)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		if asked != 2 {
			t.Errorf("AuthorizeAgent was asked %d times, want 2", asked)
		}
		if st := statOf(t, h, "s"); st.AgentID != "owner" || st.Acked != 3 {
			t.Errorf("%+v", st)
		}
	})
}

// TestHubAuthorizeAgentHoldsUpNobody: an agent that asks for another's session, again and again,
// held up the owner's batches for as long as the question took, and all sessions of its own link.
func TestHubAuthorizeAgentHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error)
		h := NewHub(&HubConfig{AuthorizeAgent: func(_ context.Context, agentID, sessionID, _ string) error {
			if agentID == "b" && sessionID == "s" {
				return <-answer
			}
			return nil
		}})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		claim := b.status(entryOf("s", "e1", 1, 0, 5), entryOf("r", "e1", 1, 0, 0))
		b.send(claim)
		b.want(b.ack("r", "e1", 0))
		b.send(claim) // it is being asked about
		b.want(b.ack("r", "e1", 0))
		a.feed("s", "e1", 4, 4)
		answer <- errors.New("no")
		synctest.Wait()
		b.want(&ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})

		b.send(b.status(entryOf("s", "e1", 1, 0, 5))) // allowed, but meanwhile the session is gone and another's
		h.Forget("s")
		c := playAgent(t, h, "c")
		c.feed("s", "e1", 1, 2)
		answer <- nil
		synctest.Wait()
		b.wantIdle("AuthorizeAgent is called again, about that one")
		answer <- nil
		synctest.Wait()
		b.want(b.ack("s", "e1", 2))
		if st := statOf(t, h, "s"); st.AgentID != "b" || !st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// Batches of a session that is being opened wait for that, as far as there is room. What does not
// follow is asked for afterwards, and a greater epoch takes the place of what was being opened.
func TestHubBatchesWaitForOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan uint64)
		h := NewHub(&HubConfig{Resume: func(context.Context, string, string) (uint64, error) { return <-answer, nil }})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3), a.batch("s", "e1", 4, 9), a.batch("s", "e1", 11, 12), a.status(entryOf("s", "e0", 1, 0, 0)))
		a.refused(a.batch("s", "e2", 2, 3), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e2"})
		a.wantIdle("the store is asked")
		answer <- 2
		synctest.Wait()
		a.want(a.nack("s", "e1", 9))
		if st := statOf(t, h, "s"); st.First != 3 || st.Acked != 9 || st.Head != 9 {
			t.Errorf("session: %+v", st)
		}

		a.send(a.batch("s", "e2", 1, 3), a.batch("s", "e3", 1, 2))
		answer <- 0
		synctest.Wait()
		a.wantIdle("the store is asked about e3")
		answer <- 0
		synctest.Wait()
		a.send(a.batch("s", "e3", 1, 2))
		pass(ackDelay)
		a.want(a.ack("s", "e3", 2))
		if n := len(h.uncommitted); n > 0 {
			t.Errorf("%d agents have something that waits", n)
		}

		a.send(a.batch("r", "e1", 1, 3))
		a.link.Close()
		answer <- 0
		synctest.Wait()
		if len(h.uncommitted) > 0 || h.lookup("r") != nil || h.owned["agent"] != 1 {
			t.Errorf("a dead link left %v of %v", h.uncommitted, h.owned)
		}
	})
}

// An agent can't have more sessions opened at a time than it may have.
func TestHubOpeningsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error)
		h := NewHub(&HubConfig{MaxAgentSessions: 2, AuthorizeAgent: func(context.Context, string, string, string) error { return <-answer }})
		a := playAgent(t, h, "agent")
		a.send(a.status(entryOf("a", "e1", 1, 0, 0), entryOf("b", "e1", 1, 0, 0)))
		overloaded := func(id string) *ErrorPayload {
			return &ErrorPayload{Code: CodeOverloaded, SessionID: id, Epoch: "e1", Retryable: true}
		}
		var many []SessionStatus
		for i := range maxStatus {
			many = append(many, entryOf(fmt.Sprint("more", i), "e1", 1, 0, 0))
		}
		a.send(a.status(many...))
		a.drain()
		a.waits = false
		a.refused(a.status(entryOf("c", "e1", 1, 0, 0)), overloaded("c"))
		close(answer)
		synctest.Wait()
		a.drain()
		a.waits = true
		a.refused(a.status(entryOf("c", "e1", 1, 0, 0)), overloaded("c"))
		if h.owned["agent"] != 2 || h.Stats().Sessions != 2 {
			t.Errorf("%v", h.owned)
		}
	})
}

// TestHubRefusesOneLife: an agent's status and batch are both refused, so its caller
// may renew the session between the two answers. The second one stopped the new life.
func TestHubRefusesOneLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, st := NewHub(nil), NewStreamer(nil)
		other := playAgent(t, h, "other")
		other.feed("s", "e1", 1, 1)
		st.Publish(t.Context(), "s", Event{})
		a, b := st.Connect(), h.ConnectAgent("agent")
		var answers []Payload
		refusals := func(p Payload) bool {
			e, ok := p.(*ErrorPayload)
			if ok = ok && e.Code == CodeForbidden; ok {
				answers = append(answers, p)
			}
			return ok
		}
		carryAll(t, a, b, refusals)
		if n := len(answers); n != 2 {
			t.Fatalf("%d refusals, want those of a status and a batch", n)
		}
		a.Handle(t.Context(), answers[0])
		if err := st.Flush(t.Context()); err == nil {
			t.Fatal("not stopped")
		}
		h.Forget("s") // and the other agent is gone: it may have it now
		if err := st.Renew("s"); err != nil {
			t.Fatal(err)
		}
		a.Handle(t.Context(), answers[1])
		if _, err := st.Publish(t.Context(), "s", Event{}); err != nil {
			t.Errorf("stopped by what was said of the life before: %v", err)
		}
		carryAll(t, a, b, refusals)
		if st := statOf(t, h, "s"); st.AgentID != "agent" || st.Acked != 1 {
			t.Errorf("session: %+v", st)
		}
	})
}

// A link that dies while AuthorizeAgent grants it the session leaves the session to its owner,
// and if the owner is away, its absence counts from then on.
func TestHubLinkClosedDuringAuthorizeAgent(t *testing.T) {
	for name, away := range map[string]bool{"the owner is there": false, "the owner is away": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b *peer
				h := NewHub(&HubConfig{AuthorizeAgent: func(_ context.Context, agentID, _, _ string) error {
					if agentID == "b" {
						b.link.Close()
					}
					return nil
				}})
				a := playAgent(t, h, "a")
				b = playAgent(t, h, "b")
				a.feed("s", "e1", 1, 3)
				if away {
					a.link.Close()
				}
				pass(50 * time.Minute)
				b.send(b.status(entryOf("s", "e1", 1, 0, 3)))
				if st := statOf(t, h, "s"); st.AgentID != "a" || st.Connected == away {
					t.Errorf("session: %+v", st)
				}
				pass(10*time.Minute - ackDelay - 1)
				statOf(t, h, "s")
				pass(1 + ackDelay)
				if n := h.Stats().Sessions; (n == 0) != away {
					t.Errorf("%d sessions after an hour", n)
				}
			})
		})
	}
}

// The ack of a session is not sent on a link that has lost it.
func TestHubAckOfLostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{AuthorizeAgent: func(context.Context, string, string, string) error { return nil }})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.send(a.batch("s", "e1", 1, 3))
		o := h.lookup("s").receiver
		b.send(b.status(entryOf("s", "e1", 1, 0, 3)))
		pass(ackDelay)
		a.wantIdle("the session is another's")
		if p := o.next(time.Now()); p != nil { // requested just before
			t.Errorf("a lost session says %s", payloadText(p))
		}
		b.want(b.ack("s", "e1", 3))
	})
}

// Rule 2: an older epoch is refused, with the current one in the error.
func TestHubStaleEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e2", 1, 3)
		stale := &ErrorPayload{Code: CodeStaleEpoch, SessionID: "s", Epoch: "e2"}
		a.refused(a.status(entryOf("s", "e1", 1, 0, 9)), stale)
		a.refused(a.batch("s", "e1", 1, 9), stale)
		a.refused(a.batch("s", "e1", 4, 9), stale)
		hubSaw(t, h, "s", itemTexts("s", "e2", 1, 3)...)
		if n := h.Stats().RefusedPayloads; n != 3 {
			t.Errorf("%d refused frames, want 3", n)
		}
	})
}

// Rule 2: a greater epoch is adopted if its time is at most 24 h ahead.
func TestHubEpochAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		epoch := func(ahead time.Duration) string {
			return epoch.NewSource(rand.Reader).Next(time.Now().Add(ahead))
		}
		first, last, beyond := epoch(0), epoch(24*time.Hour), epoch(24*time.Hour+time.Millisecond)
		a.send(a.batch("s", first, 1, 1))
		a.refused(a.status(entryOf("s", beyond, 1, 0, 1)), &ErrorPayload{Code: CodeOverloaded, SessionID: "s", Epoch: beyond, Retryable: true})
		a.refused(a.batch("s", beyond, 1, 1), &ErrorPayload{Code: CodeOverloaded, SessionID: "s", Epoch: beyond, Retryable: true})
		a.refused(a.batch("r", beyond, 1, 1), &ErrorPayload{Code: CodeOverloaded, SessionID: "r", Epoch: beyond, Retryable: true})
		if h.lookup("r") != nil || statOf(t, h, "s").Epoch != first {
			t.Error("a refused epoch left something")
		}
		a.send(a.status(entryOf("s", last, 1, 0, 1)))
		a.want(a.ack("s", last, 0))
		back := time.Now().Add(-time.Hour) // the hub's clock was wrong
		if err := a.link.handle(t.Context(), back, a.status(entryOf("s", last, 1, 0, 1))); err != nil {
			t.Errorf("an epoch that the hub has: %v", err)
		}
		if got := statOf(t, h, "s").Epoch; got != last {
			t.Errorf("epoch %s, want %s", got, last)
		}
	})
}

// Rule 11: an event that is too large is named, what precedes it is accepted, and so is what
// follows, as soon as the agent has a gap in its place. Nothing else has to be sent again.
func TestHubEventTooLarge(t *testing.T) {
	for name, cfg := range map[string]*HubConfig{"accepted": {}, "stored": {Commit: func(context.Context, string, string, []Item) error { return nil }}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg.MaxEventBytes = 200
				h := NewHub(cfg)
				a := playAgent(t, h, "agent")
				b := a.batch("s", "e1", 1, 7)
				for _, i := range []int{2, 5, 6} {
					b.Events[i].Data = []byte(`"` + strings.Repeat("x", 200) + `"`)
				}
				tooLarge := func(seq, to uint64) *ErrorPayload {
					return &ErrorPayload{Code: CodeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: seq, ToSeq: to}
				}
				a.send(b)
				a.want(tooLarge(3, 0), tooLarge(6, 7))
				pass(ackDelay)
				a.want(a.ack("s", "e1", 2))
				a.send(a.batch("s", "e1", 8, 8))
				a.send(a.lost("s", "e1", 6, 7, ReasonRejected)) // in any order
				a.wantIdle("3 is in the way")
				a.send(a.lost("s", "e1", 3, 3, ReasonRejected))
				pass(ackDelay)
				a.want(a.ack("s", "e1", 8))
				hubSaw(t, h, "s", "s e1 1", "s e1 2", "s e1 gap 3-3 rejected", "s e1 4", "s e1 5", "s e1 gap 6-7 rejected", "s e1 8")
			})
		})
	}
}

// Rule 11: a refusal is repeated if the event comes again, since it may have been lost, but at most
// once a second. An agent that never sends the gap holds up its own session alone.
func TestHubRefusesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxEventBytes: 200})
		a := playAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 2)
		b.Events[1].Data = []byte(`"` + strings.Repeat("x", 200) + `"`)
		refused := func(code Code) *ErrorPayload {
			return &ErrorPayload{Code: code, SessionID: "s", Epoch: "e1", Seq: 2}
		}
		a.send(b)
		a.want(refused(CodeEventTooLarge))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 1))
		for range 3 {
			pass(nackEvery - ackDelay - 1)
			a.send(b)
			a.wantIdle("it was said within the last second")
			pass(ackDelay + 1)
			a.send(b, b)
			a.want(refused(CodeEventRejected))
			a.feed("t", "e1", 1, 2)
			pass(ackDelay)
			a.drain()
			pass(nackEvery - ackDelay)
			a.send(b)
			a.want(refused(CodeEventRejected))
		}
	})
}

// An agent that never confirms a refusal, since it has stopped the session by then, does not keep
// its other sessions from being received: what was held of the session counted against
// MaxUncommittedBytes for as long as the link lived.
func TestHubRefusalUnconfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxEventBytes: 100, MaxUncommittedBytes: 1, Commit: func(context.Context, string, string, []Item) error { return nil }})
		a := playAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 1)
		b.Events[0].Data = []byte(`"` + strings.Repeat("x", 100) + `"`)
		a.send(a.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 3, Ended: true}))
		a.drain()
		a.send(b)
		a.want(&ErrorPayload{Code: CodeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 1})
		for range int(timerFirst / time.Second) {
			a.send(a.batch("t", "e1", 1, 1))
			pass(time.Second)
			for _, p := range a.drain() {
				if ack, ok := p.(*AckBatchPayload); ok && ack.UpToSeq > 0 {
					t.Fatalf("%s while there is no room", payloadText(ack))
				}
			}
		}
		if n := h.uncommitted["agent"]; n != 0 {
			t.Fatalf("%d bytes wait after %s", n, timerFirst)
		}
		a.feed("t", "e1", 1, 1)

		b = a.batch("s", "e1", 1, 3) // nor has the session lost anything, or its end
		b.Events = b.Events[1:]
		b.Gaps = []Gap{{1, 1, ReasonRejected}}
		a.send(b)
		synctest.Wait()
		if st := statOf(t, h, "s"); st.Acked != 3 || !st.Ended {
			t.Errorf("%+v", st)
		}
		h.Close()
	})
}

func TestHubEventSizeBound(t *testing.T) {
	p, err := newPage(1, 1, numbered(1, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	for over := range 3 {
		h := NewHub(&HubConfig{MaxEventBytes: int(p.slots[0].size) - 1 + over})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 1))
		if st := statOf(t, h, "s"); (st.Acked == 1) != (over > 0) {
			t.Errorf("%d bytes over: accepted %d", over-1, st.Acked)
		}
	}
}

// Rule 16: nothing follows the end.
func TestHubEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 2)
		a.send(a.last("s", "e1", 3))
		a.want(a.ack("s", "e1", 3))
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeSessionEnded, SessionID: "s", Epoch: "e1"})
		a.send(a.last("s", "e1", 3)) // a duplicate does not follow the end
		a.want(a.ack("s", "e1", 3))
		if !statOf(t, h, "s").Ended {
			t.Error("not ended")
		}
		hubSaw(t, h, "s", "s e1 1", "s e1 2", "s e1 3", "s e1 end")
	})
}

// Rule 16: the end may lie in a gap; the agent's status says so.
func TestHubEndInGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 2)
		ended := entryOf("s", "e1", 1, 2, 3)
		ended.Ended = true
		a.send(a.status(ended))
		a.want(a.ack("s", "e1", 2))
		if statOf(t, h, "s").Ended {
			t.Error("ended before its end was accepted")
		}
		a.send(a.lost("s", "e1", 3, 3, ReasonRejected))
		a.want(a.ack("s", "e1", 3))
		hubSaw(t, h, "s", "s e1 1", "s e1 2", "s e1 gap 3-3 rejected", "s e1 end")
	})
}

// A store could not learn of an end whose event was refused. It is told of it by an Item with End,
// once everything up to it is stored, before the session counts as ended, and again until it
// takes it.
func TestHubCommitsEndInGap(t *testing.T) {
	for name, late := range map[string]bool{"before the gap": false, "after the gap": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var stored []string
				fail := false
				h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
					if fail {
						return errors.New("disk full")
					}
					for _, it := range items {
						stored = append(stored, itemText(it))
					}
					return nil
				}})
				a := playAgent(t, h, "agent")
				a.feed("s", "e1", 1, 2)
				ended := a.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 3, AckSeq: 2, Ended: true})
				gap := a.lost("s", "e1", 3, 3, ReasonRejected)
				if late {
					a.send(gap)
					pass(ackDelay)
					a.want(a.ack("s", "e1", 3))
					fail = true
					a.send(ended)
					a.want(&ErrorPayload{Code: CodeOverloaded, SessionID: "s", Epoch: "e1", Retryable: true})
					if statOf(t, h, "s").Ended {
						t.Error("ended, and the store does not know")
					}
					fail = false
					a.send(ended)
				} else {
					a.send(ended)
					a.want(a.ack("s", "e1", 2))
					a.send(gap)
				}
				a.want(a.ack("s", "e1", 3))
				want := append(itemTexts("s", "e1", 1, 2), "s e1 gap 3-3 rejected", "s e1 end")
				hubSaw(t, h, "s", want...)
				if diff := cmp.Diff(want, stored); diff != "" {
					t.Errorf("stored: -want +got\n%s", diff)
				}
				a.send(ended)
				a.want(a.ack("s", "e1", 3))
				a.wantIdle("the store is told once")
			})
		})
	}
}

// TestHubEndStays: an end is final: a later status that names another end, or a head
// beyond it, changes nothing (rule 16).
func TestHubEndStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "v")
		a.send(a.status(entryOf("s", "e1", 1, 0, 9))) // a head beyond the end that comes later
		a.want(a.ack("s", "e1", 0))
		a.send(a.batch("s", "e1", 1, 2), a.last("s", "e1", 3))
		a.want(a.ack("s", "e1", 3))
		claim := entryOf("s", "e1", 1, 3, 29)
		a.send(a.status(claim))
		claim.Ended = true
		a.send(a.status(claim))
		a.want(a.ack("s", "e1", 3))
		if s := h.lookup("s"); !s.ended || s.endSeq != 3 || s.agentHead != 3 {
			t.Errorf("ended %v at %d, head %d", s.ended, s.endSeq, s.agentHead)
		}
		again := a.last("s", "e1", 3)
		again.HeadSeq = 29 // a duplicate can't raise it either
		a.send(again)
		if s := h.lookup("s"); s.agentHead != 3 {
			t.Errorf("head %d beyond the end", s.agentHead)
		}
		v.send(v.watch("s", "e1", 4)) // it would wait for ever
		v.want(&ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: "e1", Seq: 3})
	})
}

// Rule 3: a payload that names another link, or comes before hello, changes nothing,
// and is answered once a second.
func TestHubStaleLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := &peer{t: t, link: h.ConnectAgent("agent"), id: "x", deaf: true}
		a.link.patient = true
		stale := &ErrorPayload{Code: CodeStaleLink, Retryable: true}
		a.send(a.batch("s", "e1", 1, 1))
		a.want(stale)
		a.send(a.status(), &ReplayBatchPayload{SessionID: "s", RequestID: "r1", Epoch: "e1", FirstSeq: 1})
		pass(time.Second - 1)
		a.send(a.batch("s", "e1", 1, 1))
		a.wantIdle("not a second yet")
		pass(1)
		a.send(&ReplayBatchPayload{SessionID: "s", RequestID: "r1", Epoch: "e1", FirstSeq: 1}) // names no link
		a.want(stale)
		if st := h.Stats(); st.Sessions != 0 || st.StalePayloads != 5 || st.RefusedPayloads != 0 {
			t.Errorf("stats: %+v", st)
		}
		a.send(&HelloPayload{V: 1, Role: roleAgent})
		w := a.next().(*WelcomePayload)
		pass(time.Minute)
		a.send(a.batch("s", "e1", 1, 1)) // still under another link's id
		a.want(stale)
		a.send(&HelloPayload{V: 1, Role: roleAgent})
		a.want(w) // the same welcome again
		a.id = w.Link
		a.send(a.batch("s", "e1", 1, 1))
		if h.Stats().Sessions != 1 {
			t.Error("not opened")
		}
	})
}

func TestHubRefusesFrames(t *testing.T) {
	h := NewHub(nil)
	a := playAgent(t, h, "agent")
	long := strings.Repeat("x", 129)
	for name, test := range map[string]struct {
		p    Payload
		code Code
	}{
		"version":              {&HelloPayload{V: 2, Role: roleAgent}, CodeVersionUnsupported},
		"version 0":            {&HelloPayload{Role: roleAgent}, CodeVersionUnsupported},
		"role":                 {&HelloPayload{V: 1, Role: roleViewer}, CodeWrongRole},
		"no role":              {&HelloPayload{V: 1}, CodeMalformed},
		"unknown role":         {&HelloPayload{V: 1, Role: "hub"}, CodeWrongRole},
		"watch":                {&WatchPayload{SessionID: "s"}, CodeUnexpected},
		"welcome":              {&WelcomePayload{V: 1, Link: "x"}, CodeUnexpected},
		"ack":                  {a.ack("s", "e1", 1), CodeUnexpected},
		"session id too long":  {a.batch(long, "e1", 1, 1), CodeMalformed},
		"session id empty":     {a.batch("", "e1", 1, 1), CodeMalformed},
		"session id controls":  {a.status(entryOf("a\x00", "e1", 1, 0, 0)), CodeMalformed},
		"session id not UTF-8": {a.status(entryOf("\xff", "e1", 1, 0, 0)), CodeMalformed},
		"epoch":                {a.batch("s", "E1", 1, 1), CodeMalformed},
		"hole in a batch":      {&EventBatchPayload{SessionID: "s", Epoch: "e1", Link: a.id, FirstSeq: 1, LastSeq: 3, HeadSeq: 3, Events: numbered(1, 2)}, CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			newPeer(t, a.link).refused(test.p, &ErrorPayload{Code: test.code})
		})
	}
	bad := a.batch("s", "e1", 1, 2)
	bad.Events[1].Data = []byte("{")
	a.refused(bad, &ErrorPayload{Code: CodeEventRejected, SessionID: "s", Epoch: "e1", Seq: 2}) // from another codec
	a.send(&ErrorPayload{Code: "whatever"}, &ErrorPayload{Code: "x", RequestID: "r9"})
	if len(h.sessions) != 0 {
		t.Error("a refused frame left a session")
	}
	a.send(a.batch(strings.Repeat("x", 128), "e1", 1, 1))
}

// RefusedPayloads counts the payloads that were answered with an error, including those
// that never reached a machine.
func TestHubCountsRefusedFrames(t *testing.T) {
	h := NewHub(nil)
	a := playAgent(t, h, "agent")
	a.refused(a.batch("s", "E1", 1, 1), &ErrorPayload{Code: CodeMalformed})
	if n := h.Stats().RefusedPayloads; n != 1 {
		t.Errorf("%d refused frames, want 1", n)
	}
}

// Rule 3: an older link is dead, and changes nothing.
func TestHubSupersedes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		old := playAgent(t, h, "agent")
		old.send(old.batch("s", "e1", 1, 3))
		a := playAgent(t, h, "agent")
		before, session := h.Stats(), statOf(t, h, "s")
		old.wantSuperseded()
		if err := old.link.Handle(t.Context(), old.batch("s", "e1", 4, 4)); err != ErrSuperseded {
			t.Errorf("Handle: %v", err)
		}
		old.link.Close()
		if err := old.link.Run(t.Context(), blockedSend, blockedReceive); err != ErrSuperseded {
			t.Errorf("Run: %v", err)
		}
		if after := h.Stats(); after != before || before.Agents != 1 {
			t.Errorf("stats: %+v, before %+v", after, before)
		}
		if diff := cmp.Diff(session, statOf(t, h, "s")); diff != "" {
			t.Errorf("session: -before +after\n%s", diff)
		}
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 3))
		pass(time.Minute)
		a.wantIdle("the old link's ack died with it")
	})
}

// An agent that refuses an ack as beyond what it has sent does not mean the session that the hub
// means, and may have stopped it. What the hub had received and not accepted, since the agent was
// to confirm a refusal first, kept its share of MaxUncommittedBytes for as long as the link lived.
func TestHubAckRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxEventBytes: 100})
		a := playAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		b := a.batch("s", "e1", 1, 3)
		b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", 100) + `"`)
		a.send(b)
		a.want(&ErrorPayload{Code: CodeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 1})
		if h.uncommitted["agent"] == 0 {
			t.Fatal("nothing waits")
		}
		a.send(&ErrorPayload{Code: CodeAckBeyondSent, SessionID: "s", Epoch: "e0"}) // of another life
		if h.uncommitted["agent"] == 0 || !statOf(t, h, "s").Connected {
			t.Error("closed by an error of another epoch")
		}
		a.send(&ErrorPayload{Code: CodeAckBeyondSent, SessionID: "s", Epoch: "e1"})
		if h.uncommitted["agent"] != 0 || statOf(t, h, "s").Connected {
			t.Error("still open")
		}
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
	})
}

// What was dropped for want of room is asked for, also if what came before it is stored meanwhile:
// that was taken for what was missing, and the agent waited for its timer.
func TestHubDropsThenStores(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{MaxUncommittedBytes: 1, Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3))
		a.send(a.batch("s", "e1", 4, 6)) // no room: dropped
		release <- true
		synctest.Wait()
		nacked := false
		for range 12 {
			pass(time.Second)
			for _, p := range a.drain() {
				if ack, ok := p.(*AckBatchPayload); ok && ack.Nack {
					nacked = true
				}
			}
		}
		if !nacked {
			t.Error("no nack in 12 s")
		}
		h.Close()
	})
}

// What is received while Resume runs for another epoch is stored when that fails. Nobody took it
// up again, and it counted against MaxUncommittedBytes until a new event came.
func TestHubResumeFailsWhileReceiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error)
		stored := 0
		h := NewHub(&HubConfig{
			Resume: func(_ context.Context, _, epoch string) (uint64, error) {
				if epoch == "e1" {
					return 0, nil
				}
				return 0, <-answer
			},
			Commit: func(_ context.Context, _, _ string, items []Item) error { stored += len(items); return nil },
		})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 1))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 1))
		a.send(a.status(entryOf("s", "e2", 1, 0, 0))) // Resume hangs
		a.send(a.batch("s", "e1", 2, 3))
		answer <- errors.New("down")
		synctest.Wait()
		for range 60 {
			pass(time.Second)
			a.drain()
			a.send(a.batch("s", "e1", 2, 3)) // on its timer
			a.send(a.status(entryOf("s", "e1", 1, 1, 3)))
		}
		if stored != 3 || len(h.uncommitted) > 0 {
			t.Errorf("stored %d of 3, uncommitted %v", stored, h.uncommitted)
		}
		h.Close()
	})
}

// A status that says the end does not take back the nack of what was lost before it.
func TestHubEndStatusKeepsNack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3))
		pass(ackDelay)
		a.drain()
		a.send(a.batch("s", "e1", 5, 6)) // 4 was lost
		e := entryOf("s", "e1", 1, 3, 6)
		e.Ended = true
		a.send(a.status(e))
		nacked := false
		for _, p := range a.drain() {
			if ack, ok := p.(*AckBatchPayload); ok && ack.Nack {
				nacked = true
			}
		}
		if !nacked {
			t.Error("no nack")
		}
	})
}

type commitKey struct{}

// The values of the link's ctx reach Commit, also if no batch came and a status says the end.
func TestHubCommitValuesAtEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := any("not called")
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) { return 3, nil },
			Commit: func(ctx context.Context, _, _ string, items []Item) error { got = ctx.Value(commitKey{}); return nil },
		})
		a := playAgent(t, h, "agent")
		e := entryOf("s", "e1", 1, 3, 3)
		e.Ended = true
		p := a.status(e)
		a.fill(p)
		a.link.Handle(context.WithValue(t.Context(), commitKey{}, "value"), p)
		synctest.Wait()
		if got != "value" {
			t.Errorf("got %v", got)
		}
		h.Close()
	})
}

// A session that its agent forgets while it is being opened refuses nobody else's. It was begun all
// the same, counted against MaxSessions as one that is alive, and against its agent's limit not.
func TestHubForgottenWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan bool)
		h := NewHub(&HubConfig{MaxSessions: 2, MaxAgentSessions: 1, AuthorizeAgent: func(_ context.Context, agent, _, _ string) error {
			if agent == "bad" {
				<-answer
			}
			return nil
		}})
		bad := playAgent(t, h, "bad")
		for _, id := range []string{"a", "b"} {
			bad.send(bad.status(entryOf(id, "e1", 1, 0, 0)))
			e := entryOf(id, "e1", 1, 0, 0)
			e.Forgotten = true
			bad.send(bad.status(e))
			answer <- true
			synctest.Wait()
		}
		bad.link.Close()
		good := playAgent(t, h, "good")
		good.send(good.status(entryOf("s", "e1", 1, 0, 0)))
		good.want(good.ack("s", "e1", 0))
	})
}

// A batch that was dropped while its session was being opened is asked for as soon as it is open.
func TestHubDropsWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan bool)
		h := NewHub(&HubConfig{MaxUncommittedBytes: 1, AuthorizeAgent: func(context.Context, string, string, string) error { <-answer; return nil }})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3), a.batch("s", "e1", 4, 6)) // the second has no room
		answer <- true
		synctest.Wait()
		nacked := false
		for range 12 {
			pass(time.Second)
			for _, p := range a.drain() {
				ack, ok := p.(*AckBatchPayload)
				nacked = nacked || ok && ack.Nack
			}
		}
		if !nacked {
			t.Error("no nack in 12 s")
		}
	})
}
