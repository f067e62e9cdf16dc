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

// Rule 8: accepted means committed; before that nobody sees anything.
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
		done := a.handling(b)
		a.wantIdle("nothing is committed")
		v.want(v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1}))
		v.wantIdle("nothing is committed")
		if st := statOf(t, h, "s"); st.Acked != 0 {
			t.Errorf("accepted %d", st.Acked)
		}
		other := playAgent(t, h, "other") // nobody else waits
		other.send(other.batch("r", "e1", 1, 1))
		release <- true
		wantReturned(t, done, nil)
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

// Rule 8: an error accepts nothing and ends the link; the reconnect is the retry.
func TestHubCommitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fail := fmt.Errorf("store: %w", &diskError{7})
		commits := 0
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error {
			commits++
			return fail
		}})
		a := playAgent(t, h, "agent")
		err := a.link.Handle(t.Context(), a.batch("s", "e1", 1, 3))
		if !errors.Is(err, fail) {
			t.Errorf("Handle: %v", err)
		}
		a.wantDead(fail)
		if st := h.Stats(); st.Agents != 0 || st.Sessions != 1 {
			t.Errorf("stats: %+v", st)
		}
		if st := statOf(t, h, "s"); st.Acked != 0 || st.Connected {
			t.Errorf("session: %+v", st)
		}
		fail = nil
		a = playAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		a.feed("s", "e1", 1, 3)
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 3)...)
		if commits != 2 {
			t.Errorf("%d commits", commits)
		}
	})
}

// The caller's own error can be found by its type, from Handle and Next alike; a
// *ProtocolError that a Commit itself returns does not count as the peer's.
func TestHubCommitErrorAs(t *testing.T) {
	h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { return &diskError{7} }})
	a := playAgent(t, h, "agent")
	err := a.link.Handle(t.Context(), a.batch("s", "e1", 1, 3))
	var disk *diskError
	if !errors.As(err, &disk) || disk.sector != 7 {
		t.Errorf("errors.As does not find the callback's error in %q", err)
	}
	if !strings.Contains(err.Error(), "sector 7") {
		t.Errorf("error: %v", err)
	}
}

func TestHubCommitReturnsForeignProtocolError(t *testing.T) {
	for _, foreign := range []*ProtocolError{{Code: CodeForbidden}, {Code: CodeEventRejected, Seq: 9}, {Code: CodeEventRejected}} {
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { return foreign }})
		a := playAgent(t, h, "agent")
		err := a.link.Handle(t.Context(), a.batch("s", "e1", 1, 3))
		var refused *ProtocolError
		if err == nil || errors.As(err, &refused) {
			t.Errorf("%v: Handle: %v", foreign, err)
		}
		a.wantDead(foreign)
	}
}

// Rule 11: a Commit refuses one event permanently.
func TestHubCommitRejectsEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			for _, it := range items {
				if it.Event != nil && it.Event.Seq == 2 {
					return fmt.Errorf("bad: %w", &ProtocolError{Code: CodeEventRejected, Seq: 2, Message: "rude"})
				}
			}
			return nil
		}})
		a := playAgent(t, h, "agent")
		a.refused(a.batch("s", "e1", 1, 3), &ErrorPayload{Code: CodeEventRejected, SessionID: "s", Epoch: "e1", Seq: 2})
		if st := statOf(t, h, "s"); st.Acked != 0 {
			t.Errorf("accepted %d", st.Acked)
		}
		b := a.batch("s", "e1", 1, 3)
		b.Events, b.Gaps = slices.Delete(b.Events, 1, 2), []Gap{{2, 2, ReasonRejected}}
		a.send(b)
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
		hubSaw(t, h, "s", "s e1 1", "s e1 gap 2-2 rejected", "s e1 3")
	})
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

// Rule 8: one call at a time, across links. A new link cancels the old call, and waits;
// if that returns nil all the same, it counts.
func TestHubCommitAcrossLinks(t *testing.T) {
	for name, counts := range map[string]bool{"it returns nil": true, "it gives up": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				running, release := 0, make(chan bool)
				h := NewHub(&HubConfig{Commit: func(ctx context.Context, _, _ string, items []Item) error {
					if running++; running > 1 {
						t.Error("two calls at a time")
					}
					defer func() { running-- }()
					if items[0].Event.Seq > 3 {
						return nil
					}
					<-ctx.Done()
					<-release
					if counts {
						return nil
					}
					return ctx.Err()
				}})
				old := playAgent(t, h, "agent")
				oldDone := old.handling(old.batch("s", "e1", 1, 3))
				a := playAgent(t, h, "agent")
				newDone := a.handling(a.status(entryOf("s", "e1", 1, 0, 3)))
				pass(time.Hour)
				wantWaiting(t, oldDone)
				wantWaiting(t, newDone)
				release <- true
				if err := <-oldDone; (err == nil) != counts {
					t.Errorf("old link's Handle: %v", err)
				}
				wantReturned(t, newDone, nil)
				if !counts {
					a.want(a.ack("s", "e1", 0))
					return
				}
				a.want(a.ack("s", "e1", 3))
				a.feed("s", "e1", 4, 4)
				hubSaw(t, h, "s", itemTexts("s", "e1", 1, 4)...)
				old.wantSuperseded()
			})
		})
	}
}

// Rule 8: only a newer link of the same agent cancels a Commit, not a payload on its
// own link, nor another agent.
func TestHubCommitIsNotCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{
			Claim: func(context.Context, string, string, string) bool { return true },
			Commit: func(ctx context.Context, _, _ string, _ []Item) error {
				select {
				case <-release:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			},
		})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		first, second := a.handling(a.batch("s", "e1", 1, 3)), a.handling(a.batch("s", "e1", 1, 3))
		release <- true
		wantReturned(t, first, nil)
		wantReturned(t, second, nil)
		commit, claim := a.handling(a.batch("s", "e1", 4, 5)), b.handling(b.status(entryOf("s", "e1", 1, 0, 5)))
		release <- true
		wantReturned(t, commit, nil)
		wantReturned(t, claim, nil)
		if st := statOf(t, h, "s"); st.AgentID != "b" || st.Acked != 5 {
			t.Errorf("session: %+v", st)
		}
	})
}

// A payload that waits for a Commit to return waits until its ctx ends. Nothing of it
// counts then, and its link lives.
func TestHubCommitWaitEndsWithCtx(t *testing.T) {
	status := func(a *peer) (*peer, Payload) { return a, a.status(entryOf("s", "e1", 1, 0, 3)) }
	for name, waits := range map[string]func(h *Hub, a *peer) (*peer, Payload){
		"the next batch":        func(_ *Hub, a *peer) (*peer, Payload) { return a, a.batch("s", "e1", 4, 5) },
		"the agent's next link": func(h *Hub, a *peer) (*peer, Payload) { return status(playAgent(a.t, h, "agent")) },
		"another agent's claim": func(h *Hub, a *peer) (*peer, Payload) { return status(playAgent(a.t, h, "other")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan bool)
				h := NewHub(&HubConfig{
					Claim:  func(context.Context, string, string, string) bool { return true },
					Commit: func(context.Context, string, string, []Item) error { <-release; return nil },
				})
				a := playAgent(t, h, "agent")
				committed := a.handling(a.batch("s", "e1", 1, 3))
				b, p := waits(h, a)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := b.link.Handle(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Handle: %v", err)
				}
				release <- true
				wantReturned(t, committed, nil)
				if st := statOf(t, h, "s"); st.AgentID != "agent" || st.Acked != 3 {
					t.Errorf("session: %+v", st)
				}
				b.send(b.status(entryOf("s", "e1", 1, 0, 3)))
				b.want(b.ack("s", "e1", 3)) // nobody refused anything
			})
		})
	}
}

// An agent that was granted a session by Claim also waits for a Commit that its owner
// has caused meanwhile, until its ctx ends.
func TestHubClaimWaitEndsWithCtx(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{
			Claim:  func(context.Context, string, string, string) bool { <-release; return true },
			Commit: func(context.Context, string, string, []Item) error { <-release; return nil },
		})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		claimed := start(func() error { return b.link.Handle(ctx, b.status(entryOf("s", "e1", 1, 0, 3))) })
		synctest.Wait()
		committed := a.handling(a.batch("s", "e1", 1, 3))
		release <- true // Claim, which came first
		pass(time.Minute)
		wantReturned(t, claimed, context.DeadlineExceeded)
		release <- true
		wantReturned(t, committed, nil)
		if st := statOf(t, h, "s"); st.AgentID != "a" || st.Acked != 3 {
			t.Errorf("session: %+v", st)
		}
		b.wantIdle("nobody refused anything")
	})
}

// A session that was forgotten while an agent waited for it is a new one.
func TestHubForgetsWhileAnotherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		old := playAgent(t, h, "agent")
		go old.link.Handle(context.Background(), old.batch("s", "e1", 1, 3))
		synctest.Wait()
		a := playAgent(t, h, "agent")
		done := a.handling(a.status(entryOf("s", "e1", 1, 2, 3)))
		h.Forget("s")
		release <- true
		wantReturned(t, done, nil)
		a.want(a.ack("s", "e1", 2)) // the agent's own count: the hub has no other
		if st := statOf(t, h, "s"); st.Acked != 2 || st.Events != 0 || !st.Connected {
			t.Errorf("session: %+v", st)
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
		handled := a.handling(a.batch("s", "e1", 1, 3))
		<-entered
		h.Forget("s")
		opened := a.handling(a.status(entryOf("s", "e1", 8, 7, 9)))
		wantWaiting(t, opened) // while Commit runs
		close(release)
		wantReturned(t, handled, nil)
		wantReturned(t, opened, nil)
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
		first := old.handling(old.batch("s", "e1", 1, 3))
		a := playAgent(t, h, "agent")
		h.Forget("s")
		second := a.handling(a.status(entryOf("s", "e1", 1, 0, 3)))
		wantWaiting(t, second)
		written <- true
		wantReturned(t, first, nil)
		wantReturned(t, second, nil)
		a.want(a.ack("s", "e1", 3))
		if n := h.Stats().Sessions; n != 1 || len(h.sessions) != 1 {
			t.Errorf("%d sessions, %d held", n, len(h.sessions))
		}

		third := a.handling(a.batch("s", "e1", 4, 4))
		h.Close()
		written <- true
		wantReturned(t, third, nil)
		if n := h.Stats().Sessions; n != 0 || len(h.sessions) != 0 {
			t.Errorf("closed: %d sessions, %d held", n, len(h.sessions))
		}
	})
}

// A panic in a callback left the session locked: for a caller that recovers, as
// net/http does, the next payload about it waited for ever. A panic in Claim ended the
// process, by unlocking what was not locked.
func TestHubCallbackPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trouble := true
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) {
				if trouble {
					panic("store")
				}
				return 0, nil
			},
			Commit: func(context.Context, string, string, []Item) error {
				if trouble {
					panic("store")
				}
				return nil
			},
			Claim: func(context.Context, string, string, string) bool {
				if trouble {
					panic("store")
				}
				return true
			},
		})
		a := playAgent(t, h, "agent")
		panics := func(p Payload) {
			t.Helper()
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			a.link.Handle(t.Context(), p)
		}
		panics(a.status(entryOf("s", "e1", 1, 0, 3)))
		trouble = false
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		trouble = true
		panics(a.batch("s", "e1", 1, 3))
		trouble = false
		a.send(a.batch("s", "e1", 1, 3))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
		trouble = true
		a = playAgent(t, h, "another")
		panics(a.status(entryOf("s", "e1", 1, 3, 3)))
		trouble = false
		a.send(a.status(entryOf("s", "e1", 1, 3, 3)))
		a.want(a.ack("s", "e1", 3))
	})
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

func TestHubResumeCtxEnds(t *testing.T) {
	h := NewHub(&HubConfig{Resume: func(ctx context.Context, _, _ string) (uint64, error) { return 0, context.Cause(ctx) }})
	a := playAgent(t, h, "agent")
	if err := a.link.Handle(endedContext, a.status(entryOf("s", "e1", 1, 0, 1))); !errors.Is(err, context.Canceled) {
		t.Errorf("Handle: %v", err)
	}
	a.wantIdle("nobody refused anything")
	if len(h.sessions) != 0 {
		t.Error("a session stays")
	}
}

// A link that is closed while Resume runs leaves no session that counts as
// connected for ever: it would never be forgotten (limits, SessionTTL).
func TestHubLinkClosedDuringResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Resume: func(context.Context, string, string) (uint64, error) { <-release; return 5, nil }})
		a := playAgent(t, h, "agent")
		done := a.handling(a.status(entryOf("s", "e1", 1, 0, 9)))
		a.link.Close()
		release <- true
		<-done
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
		claims := 0
		h := NewHub(&HubConfig{
			Resume: func(context.Context, string, string) (uint64, error) { <-release; return 0, nil },
			Claim:  func(context.Context, string, string, string) bool { claims++; return true },
		})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		opened := a.handling(a.status(entryOf("s", "e1", 1, 0, 1)))
		waited := b.handling(b.status(entryOf("s", "e2", 1, 0, 1)))
		b.link.Close()
		close(release)
		wantReturned(t, opened, nil)
		wantReturned(t, waited, ErrClosed)
		if st := statOf(t, h, "s"); st.AgentID != "a" || st.Epoch != "e1" || claims != 0 {
			t.Errorf("%+v after %d claims, want a's e1 and none", st, claims)
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

func TestHubClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		allow := false
		var asked []string
		h := NewHub(&HubConfig{Claim: func(_ context.Context, agentID, sessionID, ownerID string) bool {
			asked = append(asked, agentID+" "+sessionID+" "+ownerID)
			return allow
		}})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		b.refused(b.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e1", 4, 5), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e2", 1, 5), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e2"})
		a.feed("s", "e1", 4, 4)
		allow = true
		b.send(b.status(entryOf("s", "e1", 1, 0, 5)))
		b.want(b.ack("s", "e1", 4))
		allow = false
		a.refused(a.batch("s", "e1", 5, 5), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.refused(a.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		b.feed("s", "e1", 5, 5)
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 5)...)
		if want := []string{"b s a", "b s a", "b s a", "a s b"}; !slices.Equal(want, asked) {
			t.Errorf("asked: %v", asked)
		}
		a.link.Close() // the session is another's
		if st := statOf(t, h, "s"); st.AgentID != "b" || !st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// Where there is a Claim, an agent that sent a batch of another agent's session in a
// small epoch learned the session's epoch, before Claim was called. The epoch in the
// answer is its own.
func TestBatchTellsNoEpochOfOthers(t *testing.T) {
	asked := 0
	h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { asked++; return false }})
	owner, thief := playAgent(t, h, "owner"), playAgent(t, h, "thief")
	owner.send(owner.batch("s", "e5", 1, 3))
	thief.refused(thief.batch("s", "e1", 1, 3), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
	thief.refused(thief.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
	thief.refused(thief.status(entryOf("s", "e1", 1, 0, 4)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
	if asked != 2 {
		t.Errorf("Claim was asked %d times, want 2", asked)
	}
	if st := statOf(t, h, "s"); st.AgentID != "owner" || st.Acked != 3 {
		t.Errorf("%+v", st)
	}
}

// TestHubClaimHoldsUpNobody: an agent that asks for another's session, again and again, held up
// the owner's batches for as long as Claim took, and with them all its sessions.
func TestHubClaimHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan bool)
		h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return <-answer }})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		claim := func() <-chan error {
			return start(func() error { return b.link.Handle(t.Context(), b.status(entryOf("s", "e1", 1, 0, 5))) })
		}
		claimed := claim()
		synctest.Wait()
		fed := a.handling(a.batch("s", "e1", 4, 4))
		wantReturned(t, fed, nil)
		answer <- false
		synctest.Wait()
		if err := <-claimed; err == nil {
			t.Error("not refused")
		}
		b.want(&ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})

		claimed = claim() // allowed, but meanwhile the session is gone and another's
		synctest.Wait()
		h.Forget("s")
		c := playAgent(t, h, "c")
		c.feed("s", "e1", 1, 2)
		answer <- true
		synctest.Wait()
		answer <- true // so Claim is called again, about that one
		wantReturned(t, claimed, nil)
		b.want(b.ack("s", "e1", 2))
		if st := statOf(t, h, "s"); st.AgentID != "b" || !st.Connected {
			t.Errorf("session: %+v", st)
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

// A link that dies while Claim grants it the session leaves the session to its owner,
// and if the owner is away, its absence counts from then on.
func TestHubLinkClosedDuringClaim(t *testing.T) {
	for name, away := range map[string]bool{"the owner is there": false, "the owner is away": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b *peer
				h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return b.link.Close() == nil }})
				a := playAgent(t, h, "a")
				b = playAgent(t, h, "b")
				a.feed("s", "e1", 1, 3)
				if away {
					a.link.Close()
				}
				pass(50 * time.Minute)
				if err := b.link.Handle(t.Context(), b.status(entryOf("s", "e1", 1, 0, 3))); err != ErrClosed {
					t.Errorf("Handle: %v", err)
				}
				if st := statOf(t, h, "s"); st.AgentID != "a" || st.Connected == away {
					t.Errorf("session: %+v", st)
				}
				pass(time.Hour - 1)
				statOf(t, h, "s")
				pass(1)
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
		h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return true }})
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
		a.refused(a.status(entryOf("s", beyond, 1, 0, 1)), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: beyond})
		a.refused(a.batch("s", beyond, 1, 1), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: beyond})
		a.refused(a.batch("r", beyond, 1, 1), &ErrorPayload{Code: CodeForbidden, SessionID: "r", Epoch: beyond})
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

// Rule 11: an event that is too large is named, what precedes it is accepted, and so is
// the gap in its place.
func TestHubEventTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxEventBytes: 200})
		a := playAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 5)
		b.Events[2].Data = []byte(`"` + strings.Repeat("x", 200) + `"`)
		tooLarge := &ErrorPayload{Code: CodeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 3}
		a.refused(b, tooLarge)
		if st := statOf(t, h, "s"); st.Acked != 2 {
			t.Errorf("accepted %d, want 2", st.Acked)
		}
		a.refused(b, tooLarge)
		c := a.batch("s", "e1", 4, 5)
		c.FirstSeq, c.Gaps = 3, []Gap{{3, 3, ReasonRejected}}
		a.send(c)
		pass(ackDelay)
		a.want(a.ack("s", "e1", 5))
		hubSaw(t, h, "s", "s e1 1", "s e1 2", "s e1 gap 3-3 rejected", "s e1 4", "s e1 5")
	})
}

// The bound itself: an event of exactly MaxEventBytes is accepted. Commit is not called
// for a batch of which nothing can be accepted.
func TestHubEventTooLargeIsNotCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored []string
		h := NewHub(&HubConfig{MaxEventBytes: 100, Commit: func(_ context.Context, _, _ string, items []Item) error {
			for _, it := range items {
				stored = append(stored, itemText(it))
			}
			if len(items) == 0 {
				t.Error("nothing to store")
			}
			return nil
		}})
		a := playAgent(t, h, "agent")
		for first := uint64(1); first <= 2; first++ { // as the second of its batch, and as the first
			b := a.batch("s", "e1", first, 2)
			b.Events[len(b.Events)-1].Data = json.RawMessage(`"` + strings.Repeat("x", 100) + `"`)
			a.refused(b, &ErrorPayload{Code: CodeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 2})
			a.want(a.ack("s", "e1", 1))
		}
		if diff := cmp.Diff([]string{"s e1 1"}, stored); diff != "" {
			t.Errorf("stored: -want +got\n%s", diff)
		}
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
		err := a.link.Handle(t.Context(), a.batch("s", "e1", 1, 1))
		if (err == nil) != (over > 0) {
			t.Errorf("%d bytes over: %v", over-1, err)
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
		v.send(v.watch("s", "e1", 4)) // it would wait for ever
		v.want(&ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: "e1", Seq: 3})
	})
}

// Rule 3: a payload that names another link, or comes before hello, changes nothing,
// and is answered once a second.
func TestHubStaleLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := &peer{t: t, link: h.ConnectAgent("agent"), id: "x"}
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
