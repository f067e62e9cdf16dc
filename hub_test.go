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

// speakAgent connects an agent that is played by hand, and says hello.
func speakAgent(t *testing.T, h *Hub, agentID string) *speaker {
	t.Helper()
	s := &speaker{t: t, l: h.ConnectAgent(agentID)}
	s.send(&HelloPayload{V: 1, Role: roleAgent})
	w, ok := s.next().(*WelcomePayload)
	if !ok || w.V != 1 || w.Window != h.cfg.Window || !validID(w.Link) {
		t.Fatalf("welcome: %+v", w)
	}
	s.id = w.Link
	return s
}

// feed has the hub accept events in batches of 100, acks aside.
func (s *speaker) feed(session, epoch string, from, to uint64) {
	s.t.Helper()
	for ; from <= to; from += 100 {
		s.send(s.batch(session, epoch, from, min(from+99, to)))
	}
	pass(ackDelay)
	for p := s.next(); p != nil; p = s.next() {
		if _, ok := p.(*AckBatchPayload); !ok {
			s.t.Fatalf("want acks only, got %s", payloadText(p))
		}
	}
}

func entryOf(session, epoch string, first, ack, head uint64) SessionStatus {
	return SessionStatus{SessionID: session, Epoch: epoch, FirstSeq: first, HeadSeq: head, AckSeq: ack}
}

// statOf is what the hub says of one session.
func statOf(t *testing.T, h *Hub, session string) SessionStats {
	t.Helper()
	for st := range h.Sessions() {
		if st.SessionID == session {
			return st
		}
	}
	t.Fatalf("the hub does not know %s", session)
	return SessionStats{}
}

// hubSaw compares what the hub holds of a session from the first event on.
func hubSaw(t *testing.T, h *Hub, session string, want ...string) {
	t.Helper()
	var got []string
	for it, err := range h.Items(endedContext, session, Position{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, itemText(it))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s at the hub: -want +got\n%s", session, diff)
	}
}

// itemText tells an item in a few words.
func itemText(it Item) string {
	at := it.SessionID + " " + it.Epoch + " "
	switch {
	case it.Event != nil:
		return at + fmt.Sprint(it.Event.Seq)
	case it.Gap != nil:
		return at + fmt.Sprintf("gap %d-%d %s", it.Gap.From, it.Gap.To, it.Gap.Reason)
	case it.Reset != nil:
		return at + fmt.Sprintf("reset from %s %d, prev %s %d", it.Reset.Old.Epoch, it.Reset.Old.Seq, it.Reset.PrevEpoch, it.Reset.PrevSeq)
	}
	return at + "end"
}

// itemTexts is a run of events.
func itemTexts(session, epoch string, from, to uint64) (out []string) {
	for seq := from; seq <= to; seq++ {
		out = append(out, fmt.Sprint(session, " ", epoch, " ", seq))
	}
	return out
}

// Rule 5: a status opens, and is answered by where the hub stands.
func TestHubOpensByStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 3, 5), entryOf("r", "e1", 1, 0, 0)))
		a.want(a.ack("s", "e1", 3), a.ack("r", "e1", 0)) // without Resume the agent's ack is believed
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
		a := speakAgent(t, h, "agent")
		a.refused(a.batch("s", "e1", 2, 3), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		if n := len(h.sessions); n != 0 {
			t.Errorf("%d sessions stay", n)
		}
		a.send(a.batch("s", "e1", 1, 3))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 3)...)

		a = speakAgent(t, h, "agent") // another link: to be opened again
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.send(a.status(entryOf("s", "e1", 1, 0, 4)))
		a.want(a.ack("s", "e1", 3))
		a.send(a.batch("s", "e1", 4, 4))
		pass(ackDelay)
		a.want(a.ack("s", "e1", 4))
	})
}

// Rule 9: an empty status is answered by an empty one.
func TestHubEmptyStatus(t *testing.T) {
	a := speakAgent(t, NewHub(nil), "agent")
	a.send(a.status())
	a.want(&StatusPayload{Link: a.id})
	a.refused(a.status(SessionStatus{SessionID: "s"}), &ErrorPayload{Code: codeMalformed})
}

// Each refused session of a status is answered by itself.
func TestHubStatusOfManyKinds(t *testing.T) {
	h := NewHub(nil)
	speakAgent(t, h, "other").send(&StatusPayload{Link: h.agents["other"].id, Sessions: []SessionStatus{
		entryOf("theirs", "e1", 1, 0, 0), entryOf("too", "e1", 1, 0, 0),
	}})
	a := speakAgent(t, h, "agent")
	err := a.l.Handle(t.Context(), a.status(entryOf("theirs", "e1", 1, 0, 0), entryOf("mine", "e1", 1, 0, 0), entryOf("too", "e1", 1, 0, 0)))
	if err == nil {
		t.Error("no error")
	}
	a.want(
		&ErrorPayload{Code: codeForbidden, SessionID: "theirs", Epoch: "e1"}, &ErrorPayload{Code: codeForbidden, SessionID: "too", Epoch: "e1"},
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
				a := speakAgent(t, h, "agent")
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

// Rule 7: a hole gets one nack until accepted moved or a second passed.
func TestHubNacksOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := speakAgent(t, NewHub(nil), "agent")
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
	for _, test := range []struct{ window, batch int }{{0, 64}, {256, 64}, {512, 64}, {100, 25}, {8, 2}, {4, 1}, {1, 1}, {-1, 1}} {
		t.Run(fmt.Sprint(test.window), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := speakAgent(t, NewHub(&HubConfig{Window: test.window}), "agent")
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
		a := speakAgent(t, NewHub(nil), "agent")
		a.send(a.last("s", "e1", 1))
		a.want(a.ack("s", "e1", 1))
	})
}

func TestHubManyAgentsAndViewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, b := speakAgent(t, h, "a"), speakAgent(t, h, "b")
		x, y := speakViewer(t, h, "x"), speakViewer(t, h, "y")
		x.send(x.watch("s", "", 0), x.watch("r", "", 0))
		y.send(y.watch("r", "", 0))
		x.want(x.status(SessionStatus{SessionID: "s"}, SessionStatus{SessionID: "r"}))
		y.want(y.status(SessionStatus{SessionID: "r"}))
		for i := range uint64(20) {
			a.send(a.batch("s", "e1", i+1, i+1))
			b.send(b.batch("r", "e5", i+1, i+1))
		}
		next := map[string]uint64{"xs": 1, "xr": 1, "yr": 1}
		for name, v := range map[string]*speaker{"x": x, "y": y} {
			for _, p := range v.drain() {
				if p, ok := p.(*EventBatchPayload); ok {
					if p.FirstSeq != next[name+p.SessionID] {
						t.Errorf("%s: %s begins at %d", name, p.SessionID, p.FirstSeq)
					}
					next[name+p.SessionID] = p.LastSeq + 1
				}
			}
		}
		if want := map[string]uint64{"xs": 21, "xr": 21, "yr": 21}; !cmp.Equal(want, next) {
			t.Errorf("arrived: %v", next)
		}
		want := HubStats{Sessions: 2, Agents: 2, Viewers: 2}
		if got := h.Stats(); got != want {
			t.Errorf("stats: %+v", got)
		}
		var ids []string
		for st := range h.Sessions() {
			ids = append(ids, fmt.Sprint(st.SessionID, st.Viewers, st.AgentID))
		}
		if want := []string{"r2b", "s1a"}; !slices.Equal(want, ids) {
			t.Errorf("sessions: %v", ids)
		}
		for range h.Sessions() {
			break
		}
	})
}

// Rule 8: accepted is committed; before that nobody sees anything.
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
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(SessionStatus{SessionID: "s"}))
		b := a.batch("s", "e1", 1, 70)
		b.LastSeq, b.HeadSeq, b.Gaps = 72, 72, []Gap{{71, 72, ReasonDropped}}
		done := make(chan error)
		go func() { done <- a.l.Handle(t.Context(), b) }()
		synctest.Wait()
		a.wantIdle("nothing is committed")
		v.want(v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1}))
		v.wantIdle("nothing is committed")
		if st := statOf(t, h, "s"); st.Acked != 0 {
			t.Errorf("accepted %d", st.Acked)
		}
		other := speakAgent(t, h, "other") // nobody else waits
		other.send(other.batch("r", "e1", 1, 1))
		release <- true
		if err := <-done; err != nil {
			t.Fatal(err)
		}
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
		a := speakAgent(t, h, "agent")
		err := a.l.Handle(t.Context(), a.batch("s", "e1", 1, 3))
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
		a = speakAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		a.feed("s", "e1", 1, 3)
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 3)...)
		if commits != 2 {
			t.Errorf("%d commits", commits)
		}
	})
}

// The caller's own error can be asked for by its type, from Handle and Next alike;
// a *ProtocolError that a Commit returns of itself is none of the peer's.
func TestHubCommitErrorAs(t *testing.T) {
	h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { return &diskError{7} }})
	a := speakAgent(t, h, "agent")
	err := a.l.Handle(t.Context(), a.batch("s", "e1", 1, 3))
	var disk *diskError
	if !errors.As(err, &disk) || disk.sector != 7 {
		t.Errorf("errors.As does not find the callback's error in %q", err)
	}
	if !strings.Contains(err.Error(), "sector 7") {
		t.Errorf("error: %v", err)
	}
}

func TestHubCommitReturnsForeignProtocolError(t *testing.T) {
	for _, foreign := range []*ProtocolError{{Code: codeForbidden}, {Code: codeEventRejected, Seq: 9}, {Code: codeEventRejected}} {
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { return foreign }})
		a := speakAgent(t, h, "agent")
		err := a.l.Handle(t.Context(), a.batch("s", "e1", 1, 3))
		var refused *ProtocolError
		if err == nil || errors.As(err, &refused) {
			t.Errorf("%v: Handle: %v", foreign, err)
		}
		a.wantDead(foreign)
	}
}

// Rule 11: a Commit refuses one event for good.
func TestHubCommitRejectsEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			for _, it := range items {
				if it.Event != nil && it.Event.Seq == 2 {
					return fmt.Errorf("bad: %w", &ProtocolError{Code: codeEventRejected, Seq: 2, Message: "rude"})
				}
			}
			return nil
		}})
		a := speakAgent(t, h, "agent")
		a.refused(a.batch("s", "e1", 1, 3), &ErrorPayload{Code: codeEventRejected, SessionID: "s", Epoch: "e1", Seq: 2})
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

// Rule 8: one call at a time, across links. A new link has the old call stop, and
// waits; if that returns nil all the same, it counts.
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
				old := speakAgent(t, h, "agent")
				oldDone, newDone := make(chan error, 1), make(chan error, 1)
				go func() { oldDone <- old.l.Handle(context.Background(), old.batch("s", "e1", 1, 3)) }()
				synctest.Wait()
				a := speakAgent(t, h, "agent")
				go func() { newDone <- a.l.Handle(context.Background(), a.status(entryOf("s", "e1", 1, 0, 3))) }()
				pass(time.Hour)
				if len(newDone)+len(oldDone) != 0 {
					t.Error("somebody did not wait")
				}
				release <- true
				if err := <-oldDone; (err == nil) != counts {
					t.Errorf("old link's Handle: %v", err)
				}
				if err := <-newDone; err != nil {
					t.Errorf("new link's Handle: %v", err)
				}
				if !counts {
					a.want(a.ack("s", "e1", 0))
					return
				}
				a.want(a.ack("s", "e1", 3))
				a.feed("s", "e1", 4, 4)
				hubSaw(t, h, "s", itemTexts("s", "e1", 1, 4)...)
				old.wantDead(ErrSuperseded)
			})
		})
	}
}

// The wait for another call ends with ctx, and is not the link's end.
func TestHubCommitWaitEndsWithCtx(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		old := speakAgent(t, h, "agent")
		done := make(chan error)
		go func() { done <- old.l.Handle(context.Background(), old.batch("s", "e1", 1, 3)) }()
		synctest.Wait()
		a := speakAgent(t, h, "agent")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.l.Handle(ctx, a.status(entryOf("s", "e1", 1, 0, 3))); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Handle: %v", err)
		}
		release <- true
		<-done
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 3))
	})
}

// A session that is forgotten while its Commit runs, stays forgotten.
func TestHubForgetsDuringCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		h = NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { h.Forget("s"); return nil }})
		a := speakAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3))
		pass(time.Second)
		a.wantIdle("it is forgotten")
		if len(h.sessions) != 0 || h.Stats().Sessions != 0 {
			t.Error("the session is there")
		}
	})
}

// A window without a limit is one that an agent can read: the greatest number is not
// (rule 7).
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

// Rule 5: the caller's store says where a session continues.
func TestHubResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		position, fail := uint64(7), error(nil)
		var asked []string
		h := NewHub(&HubConfig{Resume: func(_ context.Context, session, epoch string) (uint64, error) {
			asked = append(asked, session+" "+epoch)
			return position, fail
		}})
		a := speakAgent(t, h, "agent")
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
		a.refused(a.status(entryOf("r", "e1", 1, 3, 9)), &ErrorPayload{Code: codeOverloaded, SessionID: "r", Epoch: "e1", Retryable: true})
		fail, position = nil, MaxSeq+1
		a.refused(a.status(entryOf("r", "e1", 1, 3, 9)), &ErrorPayload{Code: codeOverloaded, SessionID: "r", Epoch: "e1", Retryable: true})
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
	a := speakAgent(t, h, "agent")
	if err := a.l.Handle(endedContext, a.status(entryOf("s", "e1", 1, 0, 1))); !errors.Is(err, context.Canceled) {
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
		a := speakAgent(t, h, "agent")
		done := make(chan error)
		go func() { done <- a.l.Handle(context.Background(), a.status(entryOf("s", "e1", 1, 0, 9))) }()
		synctest.Wait()
		a.l.Close()
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

// MaxSessions holds, also while Resume takes its time for several at once.
func TestHubMaxSessionsDuringResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{MaxSessions: 1, Resume: func(context.Context, string, string) (uint64, error) { <-release; return 0, nil }})
		done := make(chan error, 2)
		for _, id := range []string{"a", "b"} {
			a := speakAgent(t, h, id)
			go func() { done <- a.l.Handle(context.Background(), a.status(entryOf(id, "e1", 1, 0, 1))) }()
		}
		synctest.Wait()
		close(release)
		<-done
		<-done
		if n := h.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
	})
}

// Rule 4: a session belongs to the agent that opened it.
func TestHubOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, b := speakAgent(t, h, "a"), speakAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		forbidden := &ErrorPayload{Code: codeForbidden, SessionID: "s"}
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
		a.l.Close()
		b.refused(b.status(entryOf("s", "e2", 1, 0, 9)), forbidden) // also while its owner is away
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
		a, b := speakAgent(t, h, "a"), speakAgent(t, h, "b")
		a.feed("s", "e1", 1, 3)
		b.refused(b.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e1", 4, 5), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		b.refused(b.batch("s", "e2", 1, 5), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e2"})
		a.feed("s", "e1", 4, 4)
		allow = true
		b.send(b.status(entryOf("s", "e1", 1, 0, 5)))
		b.want(b.ack("s", "e1", 4))
		allow = false
		a.refused(a.batch("s", "e1", 5, 5), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.refused(a.status(entryOf("s", "e1", 1, 0, 5)), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})
		b.feed("s", "e1", 5, 5)
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 5)...)
		if want := []string{"b s a", "b s a", "b s a", "a s b"}; !slices.Equal(want, asked) {
			t.Errorf("asked: %v", asked)
		}
		a.l.Close() // the session is another's
		if st := statOf(t, h, "s"); st.AgentID != "b" || !st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// Rule 2: an older epoch is told the current one.
func TestHubStaleEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e2", 1, 3)
		stale := &ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: "e2"}
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
		a := speakAgent(t, h, "agent")
		epoch := func(ahead time.Duration) string {
			return epoch.NewSource(rand.Reader).Next(time.Now().Add(ahead))
		}
		first, last, beyond := epoch(0), epoch(24*time.Hour), epoch(24*time.Hour+time.Millisecond)
		a.send(a.batch("s", first, 1, 1))
		a.refused(a.status(entryOf("s", beyond, 1, 0, 1)), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: beyond})
		a.refused(a.batch("s", beyond, 1, 1), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: beyond})
		a.refused(a.batch("r", beyond, 1, 1), &ErrorPayload{Code: codeForbidden, SessionID: "r", Epoch: beyond})
		if h.lookup("r") != nil || statOf(t, h, "s").Epoch != first {
			t.Error("a refused epoch left something")
		}
		a.send(a.status(entryOf("s", last, 1, 0, 1)))
		a.want(a.ack("s", last, 0))
		back := time.Now().Add(-time.Hour) // the hub's clock was wrong
		if err := a.l.handle(t.Context(), back, a.status(entryOf("s", last, 1, 0, 1))); err != nil {
			t.Errorf("an epoch that the hub has: %v", err)
		}
		if got := statOf(t, h, "s").Epoch; got != last {
			t.Errorf("epoch %s, want %s", got, last)
		}
	})
}

// Rule 15: the last words of the old epoch reach the viewers, and then they are
// told of the new one.
func TestHubNewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "e1", 2))
		a.send(a.batch("s", "e2", 1, 2))
		v.want(
			v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 3, AckSeq: 2}),
			v.batch("s", "e1", 3, 3),
			v.status(SessionStatus{SessionID: "s", Epoch: "e2", FirstSeq: 1, HeadSeq: 2, PrevEpoch: "e1", PrevSeq: 3}),
			v.batch("s", "e2", 1, 2),
		)
		pass(endedTTL - time.Minute) // the older log is there for late readers
		hubSawFrom(t, h, "s", Position{"e1", 1}, "s e1 2", "s e1 3", "s e2 reset from e1 3, prev e1 3", "s e2 1", "s e2 2")
		pass(time.Minute)
		hubSawFrom(t, h, "s", Position{"e1", 1}, "s e2 reset from e1 1, prev e1 3", "s e2 1", "s e2 2")
		hubSawFrom(t, h, "s", Position{"e0", 9}, "s e2 reset from e0 9, prev e1 3", "s e2 1", "s e2 2")
	})
}

func hubSawFrom(t *testing.T, h *Hub, session string, after Position, want ...string) {
	t.Helper()
	var got []string
	for it, err := range h.Items(endedContext, session, after) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, itemText(it))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s behind %v: -want +got\n%s", session, after, diff)
	}
}

// Rule 11: an event that is too large is named, what stands before it is accepted,
// and its gap is taken.
func TestHubEventTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxEventBytes: 200})
		a := speakAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 5)
		b.Events[2].Data = []byte(`"` + strings.Repeat("x", 200) + `"`)
		tooLarge := &ErrorPayload{Code: codeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 3}
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

// The bound itself: an event of exactly MaxEventBytes is taken.
// Commit is not bothered with a batch of which nothing can be taken.
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
		a := speakAgent(t, h, "agent")
		for first := uint64(1); first <= 2; first++ { // as the second of its batch, and as the first
			b := a.batch("s", "e1", first, 2)
			b.Events[len(b.Events)-1].Data = json.RawMessage(`"` + strings.Repeat("x", 100) + `"`)
			a.refused(b, &ErrorPayload{Code: codeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 2})
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
		a := speakAgent(t, h, "agent")
		err := a.l.Handle(t.Context(), a.batch("s", "e1", 1, 1))
		if (err == nil) != (over > 0) {
			t.Errorf("%d bytes over: %v", over-1, err)
		}
	}
}

// Rule 16: nothing follows the end.
func TestHubEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 2)
		a.send(a.last("s", "e1", 3))
		a.want(a.ack("s", "e1", 3))
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: codeEnded, SessionID: "s", Epoch: "e1"})
		a.send(a.last("s", "e1", 3)) // a duplicate is none of that
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
		a := speakAgent(t, h, "agent")
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

func TestHubMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, cfg := range map[string]*HubConfig{"hub": {MaxSessions: 2}, "agent": {MaxAgentSessions: 2}} {
			h := NewHub(cfg)
			a := speakAgent(t, h, "agent")
			a.send(a.batch("s1", "e1", 1, 1), a.batch("s2", "e1", 1, 1))
			overloaded := &ErrorPayload{Code: codeOverloaded, SessionID: "s3", Epoch: "e1", Retryable: true}
			a.refused(a.status(entryOf("s3", "e1", 1, 0, 1)), overloaded)
			a.refused(a.batch("s3", "e1", 1, 1), overloaded)
			if n := len(h.sessions); n != 2 || h.Stats().Sessions != 2 {
				t.Errorf("%s: %d sessions stay", name, n)
			}
			a.send(a.batch("s1", "e1", 2, 2), a.batch("s2", "e2", 1, 1)) // the others are unaffected
			h.Forget("s1")
			a.send(a.batch("s3", "e1", 1, 1))
		}
		none := NewHub(&HubConfig{MaxSessions: -1})
		a := speakAgent(t, none, "agent")
		a.refused(a.batch("s", "e1", 1, 1), &ErrorPayload{Code: codeOverloaded, SessionID: "s", Epoch: "e1", Retryable: true})
	})
}

// A hub that is full asks no store about one session more, and lets a session that
// it has go from one agent to another; that agent's own limit holds then, too.
func TestHubMaxSessionsOfClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		h := NewHub(&HubConfig{
			MaxSessions: 2, MaxAgentSessions: 1,
			Claim:  func(context.Context, string, string, string) bool { return true },
			Resume: func(context.Context, string, string) (uint64, error) { asked++; return 0, nil },
		})
		a, b, c := speakAgent(t, h, "a"), speakAgent(t, h, "b"), speakAgent(t, h, "c")
		a.send(a.batch("s", "e1", 1, 1))
		b.send(b.batch("r", "e1", 1, 1))
		overloaded := func(session string) *ErrorPayload {
			return &ErrorPayload{Code: codeOverloaded, SessionID: session, Epoch: "e1", Retryable: true}
		}
		c.refused(c.batch("q", "e1", 1, 1), overloaded("q"))
		if asked != 2 {
			t.Errorf("the store was asked %d times, want 2", asked)
		}
		b.refused(b.status(entryOf("s", "e1", 1, 1, 1)), overloaded("s"))
		c.send(c.status(entryOf("s", "e1", 1, 1, 1)))
		c.want(c.ack("s", "e1", 1))
		if st := statOf(t, h, "s"); st.AgentID != "c" {
			t.Errorf("session: %+v", st)
		}
		if st := statOf(t, h, "r"); st.AgentID != "b" {
			t.Errorf("session: %+v", st)
		}
	})
}

// A session that is forgotten makes room for one of its agent, and no more.
func TestHubMaxAgentSessionsAfterForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxAgentSessions: 3})
		a := speakAgent(t, h, "agent")
		a.send(a.batch("s1", "e1", 1, 1), a.batch("s2", "e1", 1, 1), a.batch("s3", "e1", 1, 1))
		h.Forget("s1")
		a.send(a.batch("s4", "e1", 1, 1))
		a.refused(a.batch("s5", "e1", 1, 1), &ErrorPayload{Code: codeOverloaded, SessionID: "s5", Epoch: "e1", Retryable: true})
		for _, id := range []string{"s2", "s3", "s4"} {
			h.Forget(id)
		}
		if n := len(h.owned); n != 0 {
			t.Errorf("%d agents are counted who have no session", n)
		}
	})
}

// A gap that is known in part, down to its first number, is taken from there on.
func TestHubAcceptsRestOfGap(t *testing.T) {
	for first := uint64(1); first <= 4; first++ {
		synctest.Test(t, func(t *testing.T) {
			h := NewHub(nil)
			a := speakAgent(t, h, "agent")
			a.feed("s", "e1", 1, 3)
			a.send(a.lost("s", "e1", first, 5, ReasonDropped))
			hubSaw(t, h, "s", append(itemTexts("s", "e1", 1, 3), "s e1 gap 4-5 dropped")...)
		})
	}
}

// Rule 3: what is of another link, or before hello, changes nothing, and is
// answered once a second.
func TestHubStaleLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := &speaker{t: t, l: h.ConnectAgent("agent"), id: "x"}
		stale := &ErrorPayload{Code: codeStaleLink, Retryable: true}
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
	a := speakAgent(t, h, "agent")
	long := strings.Repeat("x", 129)
	for name, test := range map[string]struct {
		p    Payload
		code string
	}{
		"version":              {&HelloPayload{V: 2, Role: roleAgent}, codeVersion},
		"version 0":            {&HelloPayload{Role: roleAgent}, codeVersion},
		"role":                 {&HelloPayload{V: 1, Role: roleViewer}, codeMalformed},
		"no role":              {&HelloPayload{V: 1, Role: "hub"}, codeMalformed},
		"watch":                {&WatchPayload{SessionID: "s"}, codeUnexpected},
		"welcome":              {&WelcomePayload{V: 1, Link: "x"}, codeUnexpected},
		"ack":                  {a.ack("s", "e1", 1), codeUnexpected},
		"session id too long":  {a.batch(long, "e1", 1, 1), codeMalformed},
		"session id empty":     {a.batch("", "e1", 1, 1), codeMalformed},
		"session id controls":  {a.status(entryOf("a\x00", "e1", 1, 0, 0)), codeMalformed},
		"session id not UTF-8": {a.status(entryOf("\xff", "e1", 1, 0, 0)), codeMalformed},
		"epoch":                {a.batch("s", "E1", 1, 1), codeMalformed},
		"hole in a batch":      {&EventBatchPayload{SessionID: "s", Epoch: "e1", Link: a.id, FirstSeq: 1, LastSeq: 3, HeadSeq: 3, Events: numbered(1, 2)}, codeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			(&speaker{t: t, l: a.l}).refused(test.p, &ErrorPayload{Code: test.code})
		})
	}
	bad := a.batch("s", "e1", 1, 2)
	bad.Events[1].Data = []byte("{")
	a.refused(bad, &ErrorPayload{Code: codeEventRejected, SessionID: "s", Epoch: "e1", Seq: 2}) // of another codec
	a.send(&ErrorPayload{Code: "whatever"}, &ErrorPayload{Code: "x", RequestID: "r9"})
	if len(h.sessions) != 0 {
		t.Error("a refused frame left a session")
	}
	a.send(a.batch(strings.Repeat("x", 128), "e1", 1, 1))
}

// RefusedPayloads counts the payloads that were answered by an error, also those
// that no machine looked at.
func TestHubCountsRefusedFrames(t *testing.T) {
	h := NewHub(nil)
	a := speakAgent(t, h, "agent")
	a.refused(a.batch("s", "E1", 1, 1), &ErrorPayload{Code: codeMalformed})
	if n := h.Stats().RefusedPayloads; n != 1 {
		t.Errorf("%d refused frames, want 1", n)
	}
}

// Rule 3: an older link is dead, and changes nothing.
func TestHubSupersedes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		old := speakAgent(t, h, "agent")
		old.send(old.batch("s", "e1", 1, 3))
		a := speakAgent(t, h, "agent")
		before, session := h.Stats(), statOf(t, h, "s")
		old.wantDead(ErrSuperseded)
		if err := old.l.Handle(t.Context(), old.batch("s", "e1", 4, 4)); err != ErrSuperseded {
			t.Errorf("Handle: %v", err)
		}
		old.l.Close()
		if err := old.l.Run(t.Context(), blockedSend, blockedReceive); err != ErrSuperseded {
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

// Limits: the hub outlives the agent's connection, for SessionTTL.
func TestHubSessionTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		pass(3 * time.Hour) // with its agent there, a session stays
		if statOf(t, h, "s").Acked != 3 {
			t.Error("gone")
		}
		a.l.Close()
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 3)...)
		pass(time.Hour - 1)
		if st := statOf(t, h, "s"); st.Connected || st.Acked != 3 {
			t.Errorf("session: %+v", st)
		}
		pass(1)
		if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
			t.Error("not forgotten")
		}
	})
}

func TestHubSessionTTLVariants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := NewHub(&HubConfig{SessionTTL: -1})
		a := speakAgent(t, now, "agent")
		a.feed("s", "e1", 1, 3)
		a.l.Close()
		if now.Stats().Sessions != 0 {
			t.Error("remembered, but the TTL says not at all")
		}

		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0))
		a.l.Close()
		pass(10 * time.Hour) // who watches, keeps it
		if h.Stats().Sessions != 1 {
			t.Error("forgotten while somebody watches")
		}
		v.l.Close()
		if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
			t.Error("not forgotten")
		}

		h = NewHub(nil)
		a = speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		a.l.Close()
		pass(50 * time.Minute)
		a = speakAgent(t, h, "agent") // back again
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		pass(50 * time.Minute)
		a.l.Close()
		pass(50 * time.Minute)
		if h.Stats().Sessions != 1 {
			t.Error("forgotten too early")
		}
	})
}

// Rule 16: whoever watches a session when its time comes, keeps it, with its events.
// When the last has left, what was due happens at once.
func TestHubExpiryOfWatched(t *testing.T) {
	t.Run("its agent is away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHub(nil)
			a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
			a.feed("s", "e1", 1, 3)
			a.l.Close()
			pass(50 * time.Minute)
			v.send(v.watch("s", "", 0))
			pass(time.Hour)
			if st := statOf(t, h, "s"); st.Events != 3 {
				t.Errorf("session: %+v", st)
			}
			v.l.Close()
			if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
				t.Error("not forgotten")
			}
		})
	})
	t.Run("it has ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHub(nil)
			a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
			start := time.Now()
			a.send(a.batch("s", "e1", 1, 2), a.last("s", "e1", 3))
			pass(endedTTL)
			v.send(v.watch("s", "", 0))
			pass(2 * endedTTL)
			if st := statOf(t, h, "s"); st.Events != 3 || !st.Connected {
				t.Errorf("session: %+v", st)
			}
			v.l.Close()
			h.Stats()
			if st := statOf(t, h, "s"); st.Events != 0 || st.Connected {
				t.Errorf("session: %+v", st)
			}
			pass(time.Until(start.Add(2*endedTTL + time.Hour - 1)))
			if st := statOf(t, h, "s"); !st.Ended || st.Acked != 3 {
				t.Errorf("session: %+v", st)
			}
			pass(1)
			if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
				t.Error("not forgotten")
			}
		})
	})
}

// Rules 15 and 16: what becomes of a session is not hurried by the log of its epoch
// before, whose time comes first.
func TestHubExpiryOfPastEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		adopted := time.Now()
		a.send(a.batch("s", "e2", 1, 2), a.last("s", "e2", 3))
		past := func() bool { h.Stats(); return h.lookup("s").prev != nil }
		pass(time.Until(adopted.Add(pastEpochTTL - 1)))
		if !past() {
			t.Error("the log of the epoch before went too early")
		}
		pass(1)
		if past() {
			t.Error("the log of the epoch before stays")
		}
		if st := statOf(t, h, "s"); st.Events != 3 {
			t.Errorf("session: %+v", st)
		}
		pass(time.Until(adopted.Add(2*endedTTL - 1)))
		if st := statOf(t, h, "s"); st.Events != 3 || !st.Connected {
			t.Errorf("session: %+v", st)
		}
		pass(1)
		if st := statOf(t, h, "s"); st.Events != 0 || st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// A deadline that has become another one is dropped when it comes, so that a session
// with a long and varied life has few of them.
func TestHubExpiryHeapIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		for i := range 50 {
			a := speakAgent(t, h, "agent")
			a.send(a.batch("s", fmt.Sprintf("e%02d", i), 1, 1)) // the epoch before goes in 5 min
			a.l.Close()                                         // and all in an hour
			pass(40 * time.Minute)
			h.Stats()
		}
		if n := len(h.expiry); n > 4 {
			t.Errorf("%d deadlines of one session", n)
		}
		pass(time.Hour)
		if h.Stats().Sessions != 0 || len(h.expiry) != 0 {
			t.Errorf("%d deadlines of no session", len(h.expiry))
		}
	})
}

// A session whose time has come while a callback runs for it is left alone until
// the callback is done. Whoever looks meanwhile must not spin. This can't be in a
// bubble, whose time would stand still.
func TestHubExpiryDuringCommit(t *testing.T) {
	entered, release := make(chan bool), make(chan bool)
	h := NewHub(&HubConfig{SessionTTL: -1, Commit: func(context.Context, string, string, []Item) error {
		close(entered)
		<-release
		return nil
	}})
	a := speakAgent(t, h, "agent")
	handled, looked := make(chan error, 1), make(chan HubStats, 1)
	go func() { handled <- a.l.Handle(context.Background(), a.batch("s", "e1", 1, 1)) }()
	<-entered
	a.l.Close()
	go func() { looked <- h.Stats() }()
	select {
	case <-looked:
	case <-time.After(time.Second):
		t.Error("Stats does not return while Commit runs")
	}
	close(release)
	<-handled
}

// Rule 16: when an ended session is forgotten.
func TestHubForgetsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 2)
		a.send(a.last("s", "e1", 3))
		a.want(a.ack("s", "e1", 3))
		pass(2*endedTTL - 1)
		if st := statOf(t, h, "s"); st.Events != 3 {
			t.Errorf("%d events, want 3", st.Events)
		}
		pass(1)
		if st := statOf(t, h, "s"); st.Events != 0 || !st.Ended || st.Acked != 3 {
			t.Errorf("its events are to go, not the rest: %+v", st)
		}
		a.refused(a.last("s", "e1", 3), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.send(a.status(entryOf("s", "e1", 1, 0, 3))) // who resends is told that it arrived
		a.want(a.ack("s", "e1", 3))
		pass(2*endedTTL + time.Hour)
		if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
			t.Error("not forgotten")
		}
		a.refused(a.batch("s", "e1", 2, 3), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
	})
}

func TestHubForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		a.feed("r", "e1", 1, 3)
		v.send(v.watch("s", "e1", 3))
		v.want(v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 3, AckSeq: 3}))
		h.Forget("s")
		h.Forget("r")
		h.Forget("nobody")
		if h.Stats().Sessions != 0 || len(h.sessions) != 1 {
			t.Error("what is watched stays as a watch, the other goes")
		}
		v.want(v.status(SessionStatus{SessionID: "s"}))
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.send(a.status(entryOf("s", "e1", 1, 3, 4)))
		a.want(a.ack("s", "e1", 3))
		a.send(a.batch("s", "e1", 4, 4))
		v.want(v.batch("s", "e1", 4, 4)) // it waited
	})
}

func TestHubClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0))
		done := make(chan bool)
		go func() {
			for range h.Items(t.Context(), "s", Position{"e1", 3}) {
				t.Error("an item")
			}
			close(done)
		}()
		synctest.Wait()
		if err := h.Close(); err != nil {
			t.Error(err)
		}
		<-done
		a.wantDead(ErrClosed)
		v.wantDead(ErrClosed)
		h.Close()
		if st := h.Stats(); st != (HubStats{}) || len(h.sessions)+len(h.locals) != 0 {
			t.Errorf("stats: %+v", st)
		}
		for range h.Items(t.Context(), "s", Position{}) {
			t.Error("an item of a closed hub")
		}
	})
}

// No Close waits for a callback.
func TestHubCloseDuringCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		a := speakAgent(t, h, "agent")
		done := make(chan error)
		go func() { done <- a.l.Handle(context.Background(), a.batch("s", "e1", 1, 1)) }()
		synctest.Wait()
		h.Close()
		close(release)
		<-done
		if len(h.sessions) != 0 {
			t.Error("a session of a closed hub")
		}
	})
}

// A session that was forgotten while an agent waited for it is a new one.
func TestHubForgetsWhileAnotherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		old := speakAgent(t, h, "agent")
		go old.l.Handle(context.Background(), old.batch("s", "e1", 1, 3))
		synctest.Wait()
		a := speakAgent(t, h, "agent")
		done := make(chan error)
		go func() { done <- a.l.Handle(context.Background(), a.status(entryOf("s", "e1", 1, 2, 3))) }()
		synctest.Wait()
		h.Forget("s")
		release <- true
		if err := <-done; err != nil {
			t.Error(err)
		}
		a.want(a.ack("s", "e1", 2)) // the agent's own count: the hub has no other
		if st := statOf(t, h, "s"); st.Acked != 2 || st.Events != 0 || !st.Connected {
			t.Errorf("session: %+v", st)
		}
	})
}

// Rule 8: only a newer link of the same agent has a Commit told to stop, not what
// comes on its own link, nor another agent.
func TestHubCommitIsNotCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, done := make(chan bool), make(chan error, 2)
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
		a, b := speakAgent(t, h, "a"), speakAgent(t, h, "b")
		handle := func(s *speaker, p Payload) {
			go func() { done <- s.l.Handle(context.Background(), p) }()
			synctest.Wait()
		}
		handle(a, a.batch("s", "e1", 1, 3))
		handle(a, a.batch("s", "e1", 1, 3))
		release <- true
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("beside a payload of its own link: %v", err)
			}
		}
		handle(a, a.batch("s", "e1", 4, 5))
		handle(b, b.status(entryOf("s", "e1", 1, 0, 5)))
		release <- true
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("beside a claim: %v", err)
			}
		}
		if st := statOf(t, h, "s"); st.AgentID != "b" || st.Acked != 5 {
			t.Errorf("session: %+v", st)
		}
	})
}

// A batch waits for the Commit of the one before as long as its ctx does.
func TestHubBatchWaitEndsWithCtx(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{Commit: func(context.Context, string, string, []Item) error { <-release; return nil }})
		a := speakAgent(t, h, "agent")
		done := make(chan error)
		go func() { done <- a.l.Handle(context.Background(), a.batch("s", "e1", 1, 3)) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := a.l.Handle(ctx, a.batch("s", "e1", 4, 5)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Handle: %v", err)
		}
		release <- true
		if err := <-done; err != nil {
			t.Error(err)
		}
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3)) // nothing of the second batch, and the link lives
	})
}

// Who claims a session waits for what its owner has the hub commit, as long as its
// ctx does.
func TestHubClaimWaitEndsWithCtx(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{
			Claim:  func(context.Context, string, string, string) bool { <-release; return true },
			Commit: func(context.Context, string, string, []Item) error { <-release; return nil },
		})
		a, b := speakAgent(t, h, "a"), speakAgent(t, h, "b")
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		a.want(a.ack("s", "e1", 0))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		claimed, committed := make(chan error), make(chan error)
		go func() { claimed <- b.l.Handle(ctx, b.status(entryOf("s", "e1", 1, 0, 3))) }()
		synctest.Wait()
		go func() { committed <- a.l.Handle(context.Background(), a.batch("s", "e1", 1, 3)) }()
		synctest.Wait()
		release <- true // Claim, which came first
		if err := <-claimed; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the claim: %v", err)
		}
		release <- true
		if err := <-committed; err != nil {
			t.Error(err)
		}
		if st := statOf(t, h, "s"); st.AgentID != "a" || st.Acked != 3 {
			t.Errorf("session: %+v", st)
		}
		b.wantIdle("nobody refused anything")
	})
}

// A link that dies while Claim lets it in leaves the session to its owner, who is
// away from then on if he was.
func TestHubLinkClosedDuringClaim(t *testing.T) {
	for name, away := range map[string]bool{"the owner is there": false, "the owner is away": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var b *speaker
				h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return b.l.Close() == nil }})
				a := speakAgent(t, h, "a")
				b = speakAgent(t, h, "b")
				a.feed("s", "e1", 1, 3)
				if away {
					a.l.Close()
				}
				pass(50 * time.Minute)
				if err := b.l.Handle(t.Context(), b.status(entryOf("s", "e1", 1, 0, 3))); err != ErrClosed {
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

// The ack of a session is not said on a link that has lost it.
func TestHubAckOfLostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { return true }})
		a, b := speakAgent(t, h, "a"), speakAgent(t, h, "b")
		a.send(a.batch("s", "e1", 1, 3))
		o := h.lookup("s").on
		b.send(b.status(entryOf("s", "e1", 1, 0, 3)))
		pass(ackDelay)
		a.wantIdle("the session is another's")
		if p := o.take(time.Now()); p != nil { // asked just before
			t.Errorf("a lost session says %s", payloadText(p))
		}
		b.want(b.ack("s", "e1", 3))
	})
}

// Whoever gets an item may write to its bytes, and nobody else sees it: the payload in
// between shares them with the hub's log.
func TestHubItemsAreTheReaders(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var stored []Item
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			stored = append(stored, items...)
			return nil
		}})
		a := speakAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 3)
		b.Events[1].Data = []byte(`"text"`)
		b.Events[2].Data, b.Events[2].Bytes = nil, []byte("bytes")
		a.send(b)
		for range 2 {
			for it := range h.Items(endedContext, "s", Position{}) {
				stored = append(stored, it)
			}
			for _, it := range stored {
				if ev := it.Event; ev.Seq == 2 && string(ev.Data) != `"text"` || ev.Seq == 3 && string(ev.Bytes) != "bytes" {
					t.Errorf("item %d: %s %s", ev.Seq, ev.Data, ev.Bytes)
				}
				for i := range it.Event.Data {
					it.Event.Data[i] = '#'
				}
				clear(it.Event.Bytes)
			}
			stored = nil
		}
	})
}
