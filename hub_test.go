package gvstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/google/go-cmp/cmp"
)

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

// itemText describes an item in a few words.
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

func TestHubManyAgentsAndViewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		x, y := playViewer(t, h, "x"), playViewer(t, h, "y")
		x.send(x.watch("s", "", 0), x.watch("r", "", 0))
		y.send(y.watch("r", "", 0))
		x.want(x.status(SessionStatus{SessionID: "s"}, SessionStatus{SessionID: "r"}))
		y.want(y.status(SessionStatus{SessionID: "r"}))
		for i := range uint64(20) {
			a.send(a.batch("s", "e1", i+1, i+1))
			b.send(b.batch("r", "e5", i+1, i+1))
		}
		next := map[string]uint64{"xs": 1, "xr": 1, "yr": 1}
		for name, v := range map[string]*peer{"x": x, "y": y} {
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

// MaxSessions holds, also while Resume takes its time for several at once.
func TestHubMaxSessionsDuringResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		h := NewHub(&HubConfig{MaxSessions: 1, Resume: func(context.Context, string, string) (uint64, error) { <-release; return 0, nil }})
		for _, id := range []string{"a", "b"} {
			a := playAgent(t, h, id)
			a.send(a.status(entryOf(id, "e1", 1, 0, 1)))
		}
		close(release)
		synctest.Wait()
		if n := h.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions, want 1", n)
		}
	})
}

// Rule 15: the last events of the old epoch reach the viewers, and then they learn of
// the new one.
func TestHubNewEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
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

func TestHubMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, cfg := range map[string]*HubConfig{"hub": {MaxSessions: 2}, "agent": {MaxAgentSessions: 2}} {
			h := NewHub(cfg)
			a := playAgent(t, h, "agent")
			a.send(a.batch("s1", "e1", 1, 1), a.batch("s2", "e1", 1, 1))
			overloaded := &ErrorPayload{Code: CodeOverloaded, SessionID: "s3", Epoch: "e1", Retryable: true}
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
		a := playAgent(t, none, "agent")
		a.refused(a.batch("s", "e1", 1, 1), &ErrorPayload{Code: CodeOverloaded, SessionID: "s", Epoch: "e1", Retryable: true})
	})
}

// A hub that is full does not ask the store about one more session, but lets a session
// that it has go from one agent to another; that agent's own limit applies then, too.
func TestHubMaxSessionsOfClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		h := NewHub(&HubConfig{
			MaxSessions: 2, MaxAgentSessions: 1,
			AuthorizeAgent: func(context.Context, string, string, string) error { return nil },
			Resume:         func(context.Context, string, string) (uint64, error) { asked++; return 0, nil },
		})
		a, b, c := playAgent(t, h, "a"), playAgent(t, h, "b"), playAgent(t, h, "c")
		a.send(a.batch("s", "e1", 1, 1))
		b.send(b.batch("r", "e1", 1, 1))
		overloaded := func(session string) *ErrorPayload {
			return &ErrorPayload{Code: CodeOverloaded, SessionID: session, Epoch: "e1", Retryable: true}
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

// A session that is forgotten makes room for one more of its agent's sessions.
func TestHubMaxAgentSessionsAfterForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxAgentSessions: 3})
		a := playAgent(t, h, "agent")
		a.send(a.batch("s1", "e1", 1, 1), a.batch("s2", "e1", 1, 1), a.batch("s3", "e1", 1, 1))
		h.Forget("s1")
		a.send(a.batch("s4", "e1", 1, 1))
		a.refused(a.batch("s5", "e1", 1, 1), &ErrorPayload{Code: CodeOverloaded, SessionID: "s5", Epoch: "e1", Retryable: true})
		for _, id := range []string{"s2", "s3", "s4"} {
			h.Forget(id)
		}
		if n := len(h.owned); n != 0 {
			t.Errorf("%d agents are counted who have no session", n)
		}
	})
}

// MaxAgentSessions counted only what was open on the link. An agent that kept
// reconnecting, each time with other sessions, filled the hub's MaxSessions, and no
// other agent could open one.
func TestAgentFillsHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxSessions: 50, MaxAgentSessions: 10, SessionTTL: time.Hour})
		opened := 0
		for i := range 10 {
			greedy := playAgent(t, h, "greedy")
			for j := range 10 {
				err := greedy.link.Handle(t.Context(), greedy.batch(fmt.Sprint("s", i, "-", j), "e1", 1, 1))
				if err == nil {
					opened++
				} else if refused := (*ProtocolError)(nil); !errors.As(err, &refused) || refused.Code != CodeOverloaded || !refused.Retryable {
					t.Fatalf("refused with %v", err)
				}
			}
		}
		if opened != 10 || h.Stats().Sessions != 10 {
			t.Errorf("%d sessions opened, the hub has %d; one agent may have 10", opened, h.Stats().Sessions)
		}
		modest := playAgent(t, h, "modest")
		modest.send(modest.batch("theirs", "e1", 1, 1))
		again := playAgent(t, h, "greedy")
		again.send(again.status(entryOf("s0-0", "e1", 1, 1, 1))) // what it has, it may open again
		again.want(again.ack("s0-0", "e1", 1))
		h.Forget("s0-0")
		again.send(again.batch("another", "e1", 1, 1)) // and there is room for one more
		pass(2 * time.Hour)
		again.link.Close()
		pass(2 * time.Hour)
		h.Stats()
		if n := len(h.owned); n != 1 {
			t.Errorf("%d agents are counted: %v", n, h.owned)
		}
	})
}

// TestHubEndedCount: an ended session that the agent has forgotten no longer counts as
// open.
func TestHubEndedCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxAgentSessions: 2})
		st := NewStreamer(nil)
		a, b := st.Connect(), h.ConnectAgent("agent")
		for i := range 3 {
			st.End(t.Context(), fmt.Sprint("s", i), Event{})
			for range 40 {
				carryAll(t, a, b)
				pass(time.Second)
			}
			if n := st.Stats(); n.PendingEvents > 0 {
				t.Fatalf("session %d: %+v", i, n)
			}
			for range 920 {
				carryAll(t, a, b)
				pass(time.Second)
			}
			t.Logf("agent holds %d, hub %d", st.Stats().Sessions, h.Stats().Sessions)
		}
	})
}

// Limits: the hub outlives the agent's connection, for SessionTTL.
func TestHubSessionTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		pass(3 * time.Hour) // with its agent there, a session stays
		if statOf(t, h, "s").Acked != 3 {
			t.Error("gone")
		}
		a.link.Close()
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
		a := playAgent(t, now, "agent")
		a.feed("s", "e1", 1, 3)
		a.link.Close()
		if now.Stats().Sessions != 0 {
			t.Error("remembered, but the TTL says not at all")
		}

		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0))
		a.link.Close()
		pass(10 * time.Hour) // a watch keeps it
		if h.Stats().Sessions != 1 {
			t.Error("forgotten while somebody watches")
		}
		v.link.Close()
		if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
			t.Error("not forgotten")
		}

		h = NewHub(nil)
		a = playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		a.link.Close()
		pass(50 * time.Minute)
		a = playAgent(t, h, "agent") // back again
		a.send(a.status(entryOf("s", "e1", 1, 0, 3)))
		pass(50 * time.Minute)
		a.link.Close()
		pass(50 * time.Minute)
		if h.Stats().Sessions != 1 {
			t.Error("forgotten too early")
		}
	})
}

// Rule 16: a viewer that watches a session when it is due to be forgotten keeps it,
// with its events. When the last viewer has left, it is forgotten at once.
func TestHubExpiryOfWatched(t *testing.T) {
	t.Run("its agent is away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHub(nil)
			a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
			a.feed("s", "e1", 1, 3)
			a.link.Close()
			pass(50 * time.Minute)
			v.send(v.watch("s", "", 0))
			pass(time.Hour)
			if st := statOf(t, h, "s"); st.Events != 3 {
				t.Errorf("session: %+v", st)
			}
			v.link.Close()
			if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
				t.Error("not forgotten")
			}
		})
	})
	t.Run("it has ended", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h := NewHub(nil)
			a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
			start := time.Now()
			a.send(a.batch("s", "e1", 1, 2), a.last("s", "e1", 3))
			a.want(a.ack("s", "e1", 3)) // until it has that, the session stays
			pass(endedTTL)
			v.send(v.watch("s", "", 0))
			pass(time.Hour - endedTTL - 1)
			v.link.Close()
			if st := statOf(t, h, "s"); st.Events != 3 || !st.Ended || !st.Connected {
				t.Errorf("session: %+v", st)
			}
			v = playViewer(t, h, "tab")
			v.send(v.watch("s", "", 0))
			pass(time.Hour)
			if st := statOf(t, h, "s"); st.Events != 3 || time.Since(start) < time.Hour {
				t.Errorf("session: %+v", st)
			}
			v.link.Close()
			if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
				t.Error("not forgotten")
			}
		})
	})
}

// Rules 15 and 16: a session does not expire early because the log of its previous
// epoch, whose time comes first, does.
func TestHubExpiryOfPastEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		adopted := time.Now()
		a.send(a.batch("s", "e2", 1, 2), a.last("s", "e2", 3))
		a.want(a.ack("s", "e2", 3)) // until it has that, the session stays
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
		pass(time.Until(adopted.Add(time.Hour - 1)))
		if st := statOf(t, h, "s"); st.Events != 3 || !st.Connected {
			t.Errorf("session: %+v", st)
		}
		pass(1)
		if n := h.Stats().Sessions; n != 0 || h.total.used.Load() != 0 {
			t.Errorf("%d sessions, %d bytes", n, h.total.used.Load())
		}
	})
}

// A deadline that has been replaced is dropped when it comes, so that a session with a
// long and varied life has few of them.
func TestHubExpiryHeapIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		for i := range 50 {
			a := playAgent(t, h, "agent")
			a.send(a.batch("s", fmt.Sprintf("e%02d", i), 1, 1)) // the previous epoch goes in 5 min
			a.link.Close()                                      // and all in an hour
			pass(40 * time.Minute)
			h.Stats()
		}
		if n := h.expiry.Len(); n > 4 {
			t.Errorf("%d deadlines of one session", n)
		}
		pass(time.Hour)
		if h.Stats().Sessions != 0 || h.expiry.Len() != 0 {
			t.Errorf("%d deadlines of no session", h.expiry.Len())
		}
	})
}

// A session whose time has come while a callback runs for it is left alone until the
// callback is done. Goroutines that check it meanwhile must not spin. This can't be in
// a bubble, whose time would stand still.
func TestHubExpiryDuringCommit(t *testing.T) {
	entered, release := make(chan bool), make(chan bool)
	h := NewHub(&HubConfig{SessionTTL: -1, Commit: func(context.Context, string, string, []Item) error {
		close(entered)
		<-release
		return nil
	}})
	h.commits.size = 0
	a := playAgent(t, h, "agent")
	looked := make(chan HubStats, 1)
	a.send(a.batch("s", "e1", 1, 1))
	done := start(func() error { h.commits.next().work(time.Now()); return nil })
	<-entered
	a.link.Close()
	go func() { looked <- h.Stats() }()
	select {
	case <-looked:
	case <-time.After(time.Second):
		t.Error("Stats does not return while Commit runs")
	}
	close(release)
	<-done
}

// Rule 16: when an ended session is forgotten.
func TestHubForgetsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 2)
		a.send(a.last("s", "e1", 3))
		a.want(a.ack("s", "e1", 3))
		pass(30 * time.Minute)
		a.send(a.status(entryOf("s", "e1", 1, 0, 3))) // an agent that resends learns that it arrived
		a.want(a.ack("s", "e1", 3))
		pass(20*time.Minute - 1)
		a.link.Close() // that does not shorten it: an absent agent's session went up to 10 minutes early
		pass(40 * time.Minute)
		if st := statOf(t, h, "s"); st.Events != 3 || !st.Ended || st.Acked != 3 {
			t.Errorf("its time has not come: %+v", st)
		}
		pass(1)
		if h.Stats().Sessions != 0 || len(h.sessions) != 0 {
			t.Error("not forgotten")
		}
		a = playAgent(t, h, "agent")
		a.refused(a.batch("s", "e1", 2, 3), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
	})
}

// What has ended, or was forgotten by its agent, makes room for what lives, the oldest first, but not
// if it is watched. Nothing of it counts against its agent.
func TestHubDropsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxSessions: 4, MaxAgentSessions: 1})
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		a.send(a.last("ended1", "e1", 1), a.last("ended2", "e1", 1), a.batch("forgotten", "e1", 1, 1))
		v.send(v.watch("ended1", "", 0))
		gone := entryOf("forgotten", "e1", 2, 1, 1)
		gone.Forgotten = true
		a.drain()
		a.send(a.status(gone))
		a.want(a.status(SessionStatus{SessionID: "forgotten", Epoch: "e1", HeadSeq: 1, AckSeq: 1, Forgotten: true}))
		if st := statOf(t, h, "forgotten"); st.Connected || st.Events != 1 {
			t.Errorf("forgotten: %+v", st)
		}
		knows := func(want ...string) {
			t.Helper()
			var ids []string
			for st := range h.Sessions() {
				ids = append(ids, st.SessionID)
			}
			if !slices.Equal(ids, want) {
				t.Errorf("the hub knows %v, want %v", ids, want)
			}
		}
		a.send(a.batch("s", "e1", 1, 1))
		b, c := playAgent(t, h, "b"), playAgent(t, h, "c")
		b.send(b.batch("t", "e1", 1, 1))
		knows("ended1", "forgotten", "s", "t")
		c.send(c.batch("u", "e1", 1, 1))
		knows("ended1", "s", "t", "u")
		d := playAgent(t, h, "d")
		err := d.link.Handle(t.Context(), d.batch("w", "e1", 1, 1))
		if want := "too many sessions: 4 of at most 4, all alive"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		v.link.Close()
		d = playAgent(t, h, "d")
		d.send(d.batch("w", "e1", 1, 1))
		knows("s", "t", "u", "w")
		if n := h.over.Len(); n != 0 {
			t.Errorf("%d sessions are over", n)
		}
	})
}

// An agent tells of a session that it has forgotten until it hears that the hub knows. The session
// may be another's, of another epoch, or unknown, and may live on after all.
func TestHubIsToldOfForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan uint64)
		h := NewHub(&HubConfig{Resume: func(context.Context, string, string) (uint64, error) { return <-answer, nil }})
		a, b := playAgent(t, h, "a"), playAgent(t, h, "b")
		forget := func(p *peer, id, epoch string) *StatusPayload {
			e := entryOf(id, epoch, 4, 3, 3)
			e.Forgotten = true
			return p.status(e)
		}
		knows := func(epoch string, accepted uint64) *StatusPayload {
			return a.status(SessionStatus{SessionID: "s", Epoch: epoch, HeadSeq: accepted, AckSeq: accepted, Forgotten: true})
		}
		a.send(forget(a, "s", "e1"))
		a.want(knows("e1", 0)) // never heard of
		if n := len(h.sessions); n != 0 {
			t.Errorf("%d sessions", n)
		}
		a.send(a.batch("s", "e1", 1, 3), forget(a, "s", "e1")) // while it is being opened
		a.want(knows("e1", 0))
		answer <- 0
		synctest.Wait()
		if len(h.owned)+len(h.uncommitted)+len(h.sessions) != 0 {
			t.Errorf("counts: %v, %v, %v", h.owned, h.uncommitted, h.sessions)
		}
		a.send(a.batch("s", "e1", 1, 3))
		answer <- 0
		pass(ackDelay)
		a.want(a.ack("s", "e1", 3))
		b.refused(forget(b, "s", "e1"), &ErrorPayload{Code: CodeForbidden, SessionID: "s", Epoch: "e1"})
		a.send(forget(a, "s", "e0"))
		a.want(knows("e0", 0))
		if st := statOf(t, h, "s"); !st.Connected {
			t.Errorf("%+v", st)
		}
		for range 2 { // the answer may be lost
			a.send(forget(a, "s", "e1"))
			a.want(knows("e1", 3))
		}
		a.send(a.status(entryOf("s", "e1", 1, 3, 3)))
		a.want(a.ack("s", "e1", 3))
		if h.owned["a"] != 1 || h.over.Len() != 0 || !statOf(t, h, "s").Connected {
			t.Errorf("it does not live on: %v", h.owned)
		}
		a.send(forget(a, "s", "e1"))
		a.drain()
		pass(time.Hour)
		if n := h.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions after EndedTTL", n)
		}
	})
}

// The logs of all sessions share MaxTotalBytes: the oldest events of any session go first, of an
// epoch before the current one too. What an agent says of the future does not keep its events.
func TestHubMaxTotalBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 10_000
		h := NewHub(&HubConfig{MaxTotalBytes: limit})
		a := playAgent(t, h, "agent")
		send := func(id, epoch string, seq uint64, at time.Time) {
			b := a.batch(id, epoch, seq, seq)
			b.Events[0].Time, b.Events[0].Data = at, json.RawMessage(`"`+strings.Repeat("x", 900)+`"`)
			a.send(b)
			held := 0
			for _, s := range h.all() {
				held += s.log.bytes
				if s.prev != nil {
					held += s.prev.log.bytes
				}
			}
			if used := int(h.total.used.Load()); used != held || used > limit {
				t.Fatalf("%s %d: %d bytes count as %d", id, seq, held, used)
			}
		}
		for seq := uint64(1); seq <= 4; seq++ {
			send("old", "e1", seq, time.Now())
			pass(time.Second)
			send("future", "e1", seq, time.Now().Add(time.Hour))
			pass(time.Second)
		}
		send("old", "e2", 1, time.Now())
		for seq := uint64(1); seq <= 6; seq++ {
			pass(time.Second)
			send("new", "e1", seq, time.Now())
		}
		// Of the 15 events ten fit. The first four are the oldest, and the next one is of those that
		// the agent spoke of before e2 began, whatever time they claim.
		if n := h.lookup("old").prev.log.events; n != 0 {
			t.Errorf("of old, e1: %d events", n)
		}
		for id, want := range map[string]int{"future": 3, "old": 1, "new": 6} {
			if st := statOf(t, h, id); st.Events != want {
				t.Errorf("of %s: %d events, want %d", id, st.Events, want)
			}
		}
		for seq := uint64(7); seq <= 30; seq++ {
			pass(time.Second)
			send("new", "e1", seq, time.Now())
		}
		for _, id := range []string{"old", "future"} {
			if st := statOf(t, h, id); st.Events != 0 {
				t.Errorf("of %s: %d events", id, st.Events)
			}
		}
		h.Forget("new")
		h.Forget("old")
		h.Forget("future")
		if n := h.total.used.Load(); n != 0 || h.total.aged.Len() != 0 {
			t.Errorf("%d bytes, %d sessions are left", n, h.total.aged.Len())
		}
	})
}

func TestHubForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
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
		a.refused(a.batch("s", "e1", 4, 4), &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", Epoch: "e1"})
		a.send(a.status(entryOf("s", "e1", 1, 3, 4)))
		a.want(a.ack("s", "e1", 3))
		a.send(a.batch("s", "e1", 4, 4))
		v.want(v.batch("s", "e1", 4, 4)) // it waited
	})
}

func TestHubClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
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
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 1))
		h.Close()
		close(release)
		synctest.Wait()
		if len(h.sessions) != 0 {
			t.Error("a session of a closed hub")
		}
	})
}

// A reader may write to the bytes of its items, and nobody else sees that: the payload
// in between shares them with the hub's log.
func TestHubItemsAreTheReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stored []Item
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			stored = append(stored, items...)
			return nil
		}})
		a := playAgent(t, h, "agent")
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

// What was forgotten is freed even while its link lives: lists retained elements that
// had been taken out, and the hub's clock retained sessions until their deadlines.
func TestForgottenIsFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 300
		st, h := NewStreamer(nil), NewHub(nil)
		agent, hub := linked(st, h)
		ids := loadIDs(n)
		publishRounds(t, st, ids, 1, agent, hub)
		for range 4 { // timers of what was acknowledged run out
			pass(heartbeatEvery)
			carryAll(t, agent, hub)
		}
		var agents []weak.Pointer[Session]
		var hubs []weak.Pointer[hubSession]
		for _, id := range ids {
			agents = append(agents, weak.Make(st.lookup(id)))
			hubs = append(hubs, weak.Make(h.lookup(id)))
			st.Forget(id)
			h.Forget(id)
		}
		runtime.GC()
		held := [2]int{}
		for i := range agents {
			if agents[i].Value() != nil {
				held[0]++
			}
			if hubs[i].Value() != nil {
				held[1]++
			}
		}
		// The stack of this test may still refer to the last ones.
		if held[0] > 3 || held[1] > 3 {
			t.Errorf("%d sessions are held at the agent and %d at the hub, which were forgotten", held[0], held[1])
		}
		runtime.KeepAlive(agent)
		runtime.KeepAlive(hub)
	})
}

// The hub's clock holds each session once, and none that is gone: it kept those that
// Forget removed for an hour.
func TestGrowthHubExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(nil)
		for i := range 1000 {
			id := fmt.Sprint("s", i%2)
			agent, hub := linked(st, h)
			publishRounds(t, st, []string{id}, 1, agent, hub)
			agent.Close() // its absence has a deadline
			hub.Close()
			h.Forget(id)
		}
		if n := h.expiry.Len(); n > 1 {
			t.Errorf("the clock of a hub with %d sessions has %d deadlines", len(h.sessions), n)
		}
	})
}
