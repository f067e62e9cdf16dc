package gvstream

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// speakViewer connects a viewer that is played by hand, and says hello.
func speakViewer(t *testing.T, h *Hub, viewerID string) *speaker {
	t.Helper()
	s := &speaker{t: t, l: h.ConnectViewer(viewerID), viewer: viewerID}
	s.send(&HelloPayload{V: 1, Role: roleViewer})
	w, ok := s.next().(*WelcomePayload)
	if !ok || w.V != 1 || w.ViewerID != viewerID || !validID(w.Link) {
		t.Fatalf("welcome: %+v", w)
	}
	s.id = w.Link
	return s
}

func (s *speaker) watch(session, epoch string, after uint64) *WatchPayload {
	return &WatchPayload{SessionID: session, ViewerID: s.viewer, Epoch: epoch, AfterSeq: after}
}

func (s *speaker) stop(session string) *WatchPayload {
	return &WatchPayload{SessionID: session, ViewerID: s.viewer, Stop: true}
}

// stands is a hub's status entry.
func stands(session, epoch string, first, head, handed uint64) SessionStatus {
	return entryOf(session, epoch, first, handed, head)
}

// asked wants the hub to ask the agent for a replay, under an id of its own.
func (s *speaker) asked(session, viewer, epoch string, after, until uint64) *ReplayRequestPayload {
	s.t.Helper()
	p := s.next()
	r, ok := p.(*ReplayRequestPayload)
	if !ok {
		s.t.Fatalf("got %s, want a replay request", payloadText(p))
	}
	want := request(session, viewer, r.RequestID, epoch, after, until)
	if diff := cmp.Diff(want, r); diff != "" {
		s.t.Fatalf("replay request: -want +got\n%s", diff)
	}
	if s.requests[r.RequestID] {
		s.t.Fatalf("request %s was made before", r.RequestID)
	}
	if s.requests == nil {
		s.requests = make(map[string]bool)
	}
	s.requests[r.RequestID] = true
	return r
}

func request(session, viewer, id, epoch string, after, until uint64) *ReplayRequestPayload {
	return &ReplayRequestPayload{
		SessionID: session, ViewerID: viewer, RequestID: id, Epoch: epoch,
		AfterSeq: after, UntilSeq: until, Limit: 500,
	}
}

// answerTo is an agent's answer to a request.
func answerTo(r *ReplayRequestPayload, from, to uint64, done bool) *ReplayBatchPayload {
	return &ReplayBatchPayload{
		SessionID: r.SessionID, ViewerID: r.ViewerID, RequestID: r.RequestID, Epoch: r.Epoch,
		FirstSeq: from, LastSeq: to, UntilSeq: r.UntilSeq, AvailableFrom: 1, Done: done, Events: numbered(from, to),
	}
}

// replayedTo is what of it the hub hands to the viewer.
func replayedTo(r *ReplayRequestPayload, from, to uint64) *ReplayBatchPayload {
	return answerTo(r, from, to, to == r.UntilSeq)
}

// withoutLog has a viewer watch a session of which the hub keeps nothing.
func withoutLog(t *testing.T, events uint64) (a, v *speaker) {
	h := NewHub(&HubConfig{LogEvents: -1})
	a = speakAgent(t, h, "agent")
	a.feed("s", "e1", 1, events)
	v = speakViewer(t, h, "tab")
	v.send(v.watch("s", "", 0))
	v.drain()
	return a, v
}

// smallHub keeps five events of a session; s has 20.
func smallHub(t *testing.T, cfg HubConfig) (*Hub, *speaker) {
	cfg.LogEvents = 5
	h := NewHub(&cfg)
	a := speakAgent(t, h, "agent")
	a.feed("s", "e1", 1, 20)
	return h, a
}

// Rule 13: every watch is answered at once.
func TestHubWatch(t *testing.T) {
	for _, test := range []struct {
		name  string
		epoch string
		after uint64
		want  func(v *speaker) []Payload
	}{
		{"from the start", "", 0, func(v *speaker) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 0)), v.batch("s", "e2", 1, 5)}
		}},
		{"behind a position", "e2", 3, func(v *speaker) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 3)), v.batch("s", "e2", 4, 5)}
		}},
		{"behind zero of an epoch", "e2", 0, func(v *speaker) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 0)), v.batch("s", "e2", 1, 5)}
		}},
		{"caught up", "e2", 5, func(v *speaker) []Payload { return []Payload{v.status(stands("s", "e2", 1, 5, 5))} }},
		{"beyond accepted", "e2", 8, func(v *speaker) []Payload { return []Payload{v.status(stands("s", "e2", 1, 5, 5))} }},
		{"beyond the head", "e2", 9, func(v *speaker) []Payload {
			return []Payload{&ErrorPayload{Code: codeReplayAhead, SessionID: "s", Epoch: "e2", Seq: 5}}
		}},
		{"of a greater epoch", "e3", 0, func(v *speaker) []Payload {
			return []Payload{&ErrorPayload{Code: codeReplayAhead, SessionID: "s", Epoch: "e2", Seq: 5}}
		}},
		{"of an older epoch", "e1", 7, func(v *speaker) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 0)), v.batch("s", "e2", 1, 5)}
		}},
		{"unknown", "", 0, func(v *speaker) []Payload { return []Payload{v.status(stands("unknown", "", 0, 0, 0))} }},
		{"unknown", "e1", 9, func(v *speaker) []Payload { return []Payload{v.status(stands("unknown", "", 0, 0, 0))} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHub(nil)
				a := speakAgent(t, h, "agent")
				a.feed("s", "e2", 1, 4)
				a.send(headed(a.batch("s", "e2", 5, 5), 8)) // three more are on their way
				v := speakViewer(t, h, "tab")
				session := "s"
				if test.name == "unknown" {
					session = "unknown"
				}
				v.send(v.watch(session, test.epoch, test.after))
				want := test.want(v)
				v.want(want...)
				v.wantIdle("answered")
				_, ends := want[0].(*ErrorPayload)
				if n := len(h.viewers["tab"].cursors); (n == 0) != ends {
					t.Errorf("%d watches stay", n)
				}
			})
		})
	}
}

// Rule 13: a position beyond what is accepted waits there.
func TestHubWatchBeyondAcceptedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.send(a.status(entryOf("s", "e1", 1, 0, 8)))
		v.send(v.watch("s", "e1", 6))
		v.want(v.status(stands("s", "e1", 1, 0, 0)))
		a.send(a.batch("s", "e1", 1, 6))
		v.wantIdle("it has these")
		a.send(a.batch("s", "e1", 7, 8))
		v.want(v.batch("s", "e1", 7, 8))
	})
}

// Rule 13: an unknown session costs nothing but the watch, and is served when it
// appears.
func TestHubWatchUnknownSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0), v.watch("r", "", 0))
		v.want(v.status(SessionStatus{SessionID: "s"}, SessionStatus{SessionID: "r"}))
		if h.Stats().Sessions != 0 {
			t.Error("a watch made a session")
		}
		for st := range h.Sessions() {
			t.Errorf("a watch made %s", st.SessionID)
		}
		a := speakAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3))
		v.want(v.status(stands("s", "e1", 1, 3, 0)), v.batch("s", "e1", 1, 3))
		v.send(v.stop("s"), v.stop("s"), v.stop("never"))
		a.send(a.batch("s", "e1", 4, 4))
		v.wantIdle("stopped")
		v.l.Close()
		if h.lookup("r") != nil || len(h.sessions) != 1 {
			t.Error("the watch outlived its viewer")
		}
		h.Forget("s")
		if len(h.sessions) != 0 {
			t.Error("a session stays")
		}
	})
}

// Rule 13: Authorize is asked on every watch, and its answer is the same whether or
// not the session exists.
func TestHubAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		allow := true
		h := NewHub(&HubConfig{Authorize: func(_ context.Context, viewerID, sessionID string) error {
			asked = append(asked, viewerID+" "+sessionID)
			if !allow {
				return errors.New("who are you?")
			}
			return nil
		}})
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 1)
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 1, 1, 0)), v.batch("s", "e1", 1, 1))
		allow = false
		v.refused(v.watch("s", "e1", 1), &ErrorPayload{Code: codeForbidden, SessionID: "s"}) // it resumes
		a.feed("s", "e1", 2, 2)
		v.wantIdle("the watch was ended")
		v.refused(v.watch("unknown", "", 0), &ErrorPayload{Code: codeForbidden, SessionID: "unknown"})
		if len(h.sessions) != 1 {
			t.Error("a refused watch left something")
		}
		v.send(v.stop("s"))
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 2)...)
		if diff := cmp.Diff([]string{"tab s", "tab s", "tab unknown"}, asked); diff != "" {
			t.Errorf("asked: -want +got\n%s", diff)
		}
		// The texts must not differ either.
		one := v.l.Handle(t.Context(), v.watch("s", "", 0))
		two := v.l.Handle(t.Context(), v.watch("t", "", 0))
		var x, y *ProtocolError
		if !errors.As(one, &x) || !errors.As(two, &y) || x.Message != y.Message {
			t.Errorf("%v and %v tell who exists", one, two)
		}
	})
}

func TestHubAuthorizeCtxEnds(t *testing.T) {
	h := NewHub(&HubConfig{Authorize: func(ctx context.Context, _, _ string) error { return ctx.Err() }})
	v := speakViewer(t, h, "tab")
	if err := v.l.Handle(endedContext, v.watch("s", "", 0)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	v.wantIdle("nobody refused anything")
	v.send(v.watch("s", "", 0))
}

func TestHubRefusesViewerFrames(t *testing.T) {
	h := NewHub(nil)
	early := &speaker{t: t, l: h.ConnectViewer("early"), viewer: "early"}
	early.send(early.watch("s", "", 0), early.watch("s", "", 0))
	early.want(&ErrorPayload{Code: codeStaleLink, Retryable: true})
	early.wantIdle("once a second")
	v := speakViewer(t, h, "tab")
	v.send(&HelloPayload{V: 1, Role: roleViewer})
	v.want(&WelcomePayload{ViewerID: "tab", V: 1, Link: v.id})
	for name, test := range map[string]struct {
		p    Payload
		want *ErrorPayload
	}{
		"version":       {&HelloPayload{V: 2, Role: roleViewer}, &ErrorPayload{Code: codeVersion}},
		"role":          {&HelloPayload{V: 1, Role: roleAgent}, &ErrorPayload{Code: codeMalformed}},
		"batch":         {v.batch("s", "e1", 1, 1), &ErrorPayload{Code: codeUnexpected}},
		"another's id":  {&WatchPayload{SessionID: "s", ViewerID: "other"}, &ErrorPayload{Code: codeForbidden, SessionID: "s"}},
		"half position": {v.watch("s", "", 1), &ErrorPayload{Code: codeMalformed}},
		"bad epoch":     {v.watch("s", "É", 1), &ErrorPayload{Code: codeMalformed}},
		"no session":    {v.watch("", "", 0), &ErrorPayload{Code: codeMalformed}},
	} {
		t.Run(name, func(t *testing.T) {
			(&speaker{t: t, l: v.l}).refused(test.p, test.want)
		})
	}
	v.send(&ErrorPayload{Code: "x"}, &WatchPayload{SessionID: "s"}) // without an id it is this viewer's
	if len(h.sessions) != 1 {
		t.Errorf("%d sessions", len(h.sessions))
	}
}

// Rule 12: what the hub no longer has, it asks of the agent, for that one viewer.
func TestHubReplays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v, other := speakViewer(t, h, "tab"), speakViewer(t, h, "other")
		other.send(other.watch("s", "e1", 20))
		other.want(other.status(stands("s", "e1", 16, 20, 20)))
		v.send(v.watch("s", "e1", 2))
		v.want(v.status(stands("s", "e1", 16, 20, 2)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 2, 15)
		a.send(answerTo(r, 3, 9, false))
		v.want(replayedTo(r, 3, 9))
		v.wantIdle("more is to come")
		a.send(answerTo(r, 3, 9, false))  // twice
		a.send(answerTo(r, 8, 12, false)) // known in part
		v.want(replayedTo(r, 10, 12))
		a.send(a.batch("s", "e1", 21, 21)) // meanwhile the log moves on
		tail := answerTo(r, 13, 13, true)
		tail.LastSeq, tail.Gaps, tail.AvailableFrom = 15, []Gap{{14, 15, ReasonDropped}}, 3
		a.send(tail)
		tail.UntilSeq, tail.Done = 16, false
		v.want(tail)
		v.wantIdle("16 is older than the log by now")
		r2 := a.asked("s", "tab", "e1", 15, 16)
		pass(ackDelay)
		a.want(a.ack("s", "e1", 21))
		a.send(answerTo(r2, 16, 16, true))
		v.want(replayedTo(r2, 16, 16), v.batch("s", "e1", 17, 21))
		a.send(answerTo(r, 3, 9, false), answerTo(r2, 16, 16, true)) // of requests that are done
		v.wantIdle("all is there")
		other.want(other.batch("s", "e1", 21, 21))
		other.wantIdle("a replay is for one viewer")
		a.wantIdle("nothing is asked")
		if n := h.Stats().StalePayloads; n != 2 {
			t.Errorf("%d stale frames, want 2", n)
		}
	})
}

// Rule 12: at most 500 events are asked for at a time, and more when the viewer's
// link has taken them.
func TestHubReplaysInPieces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 620)
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 616, 620, 0)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 0, 615)
		for from := uint64(1); from < 500; from += 100 {
			a.send(answerTo(r, from, from+99, from == 401))
		}
		for from := uint64(1); from < 500; from += 100 {
			a.wantIdle("the viewer has not taken what there is")
			v.want(replayedTo(r, from, from+99))
		}
		v.wantIdle("more is asked for")
		r = a.asked("s", "tab", "e1", 500, 615)
		a.send(answerTo(r, 501, 600, false), answerTo(r, 601, 615, true))
		v.want(replayedTo(r, 501, 600), replayedTo(r, 601, 615), v.batch("s", "e1", 616, 620))
	})
}

// An agent's answer may be no more than what was asked for.
func TestHubRefusesReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		b, v := speakAgent(t, h, "b"), speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		malformed := &ErrorPayload{Code: codeMalformed}
		for name, change := range map[string]func(p *ReplayBatchPayload){
			"viewer":   func(p *ReplayBatchPayload) { p.ViewerID = "other" },
			"session":  func(p *ReplayBatchPayload) { p.SessionID = "other" },
			"epoch":    func(p *ReplayBatchPayload) { p.Epoch = "e2" },
			"too far":  func(p *ReplayBatchPayload) { p.LastSeq, p.UntilSeq, p.Events = 16, 16, numbered(1, 16) },
			"not JSON": func(p *ReplayBatchPayload) { p.Events[0].Data = []byte("{") },
			"hole":     func(p *ReplayBatchPayload) { p.Events = p.Events[1:] },
		} {
			p := answerTo(r, 1, 9, false)
			change(p)
			t.Log(name)
			a.refused(p, malformed)
		}
		b.send(answerTo(r, 1, 15, true)) // another link, another's request (rule 4)
		unknown := *r
		unknown.RequestID = "unheard-of"
		a.send(answerTo(&unknown, 1, 15, true))
		v.wantIdle("nothing of it counts")
		a.send(answerTo(r, 1, 15, true))
		v.want(replayedTo(r, 1, 15), v.batch("s", "e1", 16, 20))
		if n := h.Stats().StalePayloads; n != 2 {
			t.Errorf("%d stale frames, want 2", n)
		}
	})
}

// Rule 12: at most 8 requests are open for a session; others wait in turn.
func TestHubReplayTurnsOfSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		var vs []*speaker
		for i := range 11 {
			v := speakViewer(t, h, fmt.Sprint("tab", i))
			v.send(v.watch("s", "", 0))
			v.want(v.status(stands("s", "e1", 16, 20, 0)))
			v.wantIdle("the agent is asked")
			vs = append(vs, v)
		}
		var rs []*ReplayRequestPayload
		for i := range 8 {
			rs = append(rs, a.asked("s", vs[i].viewer, "e1", 0, 15))
		}
		a.wantIdle("eight are open")
		r := rs[5]
		a.send(answerTo(r, 1, 15, true))
		vs[8].wantIdle("its turn")
		a.asked("s", "tab8", "e1", 0, 15)
		a.wantIdle("eight are open")
		vs[9].l.Close()             // who waits may leave
		vs[2].send(vs[2].stop("s")) // who asks, too
		vs[10].wantIdle("it asks")  // in turn
		vs[5].want(replayedTo(r, 1, 15), vs[5].batch("s", "e1", 16, 20))
		a.asked("s", "tab10", "e1", 0, 15)
		a.wantIdle("eight are open")
		for _, v := range vs {
			v.l.Close()
		}
		if s := h.lookup("s"); s.open != 0 || s.turns.len() != 0 || len(s.cursors) != 0 {
			t.Errorf("%d open, %d asking, %d cursors when all have left", s.open, s.turns.len(), len(s.cursors))
		}
		if n := len(h.agents["agent"].fetches); n != 0 {
			t.Errorf("%d requests stay", n)
		}
	})
}

// Rule 12: and at most 4 for a viewer's link.
func TestHubReplayTurnsOfViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := speakAgent(t, h, "agent")
		v := speakViewer(t, h, "tab")
		for i := range 7 {
			id := fmt.Sprint("s", i)
			a.feed(id, "e1", 1, 20)
			v.send(v.watch(id, "", 0))
		}
		v.drain()
		var rs []*ReplayRequestPayload
		for i := range 4 {
			rs = append(rs, a.asked(fmt.Sprint("s", i), "tab", "e1", 0, 15))
		}
		a.wantIdle("four are open")
		other := speakViewer(t, h, "other") // the limit is the link's own
		other.send(other.watch("s6", "", 0))
		other.drain()
		a.asked("s6", "other", "e1", 0, 15)
		a.send(answerTo(rs[2], 1, 15, true))
		if n := len(v.drain()); n != 2 {
			t.Errorf("%d payloads, want the replay and the log", n)
		}
		a.asked("s4", "tab", "e1", 0, 15)
		a.wantIdle("four are open")
		v.send(v.stop("s0"), v.stop("s5")) // s5 waits
		v.drain()
		a.wantIdle("s0 was given up just now")
		pass(time.Second)
		v.drain()
		a.asked("s6", "tab", "e1", 0, 15)
		v.l.Close()
		if s := h.lookup("s6"); s.open != 1 {
			t.Errorf("%d open, want the other's", s.open)
		}
	})
}

// Rule 12: an unanswered request is asked again under a new id.
func TestHubReplayUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		start := time.Now()
		first := a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(first, 1, 3, false))
		v.drain()
		passes := func(d time.Duration) *ReplayRequestPayload {
			t.Helper()
			pass(time.Until(start.Add(d)) - 1)
			v.drain()
			a.wantIdle("too early")
			pass(1)
			v.drain()
			return a.asked("s", "tab", "e1", 3, 15)
		}
		passes(15 * time.Second)
		a.send(answerTo(first, 4, 15, true)) // too late
		v.wantIdle("under its new id only")
		r := passes(45 * time.Second) // after twice as long
		a.send(answerTo(r, 4, 15, true))
		v.want(replayedTo(r, 4, 15), v.batch("s", "e1", 16, 20))
	})
}

// A hole in an answer is a lost frame: asked again after a second.
func TestHubReplayHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 5, false), answerTo(r, 11, 15, true))
		v.want(replayedTo(r, 1, 5))
		a.send(answerTo(r, 6, 10, false)) // too late
		pass(time.Second - 1)
		v.wantIdle("a second has not passed")
		a.wantIdle("a second has not passed")
		pass(1)
		v.wantIdle("the agent is asked")
		r = a.asked("s", "tab", "e1", 5, 15)
		// The new request has the whole timer of any other.
		pass(14 * time.Second)
		v.drain()
		a.wantIdle("15 s have not passed")
		a.send(answerTo(r, 6, 15, true))
		v.want(replayedTo(r, 6, 15), v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: an agent that is busy is asked again on the timer; one that refuses
// leaves a gap.
func TestHubReplayRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		a.send(&ErrorPayload{Code: codeReplayBusy, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID, Retryable: true})
		if s := h.lookup("s"); s.open != 0 {
			t.Error("a refused request is not open")
		}
		pass(timerFirst - 1)
		v.wantIdle("too early")
		pass(1)
		v.want(v.status(stands("s", "e1", 16, 20, 0))) // a sign of life is due as well
		v.wantIdle("the agent is asked")
		r = a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 4, false))
		a.send(&ErrorPayload{Code: codeUnknownSession, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID})
		v.want(replayedTo(r, 1, 4))
		v.want(headed(v.lost("s", "e1", 5, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
	})
}

// An agent with nothing to give says done at once.
func TestHubReplayOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 0, true))
		v.want(headed(v.lost("s", "e1", 1, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: while the agent is away the cursor waits, and then does without.
func TestHubReplayAgentAway(t *testing.T) {
	for name, test := range map[string]struct{ cfg, wait time.Duration }{
		"default": {0, 10 * time.Second}, "short": {time.Second, time.Second}, "not at all": {-1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, a := smallHub(t, HubConfig{ReplayWait: test.cfg})
				a.l.Close()
				v := speakViewer(t, h, "tab")
				v.send(v.watch("s", "", 0))
				v.want(v.status(stands("s", "e1", 16, 20, 0)))
				if test.wait > 0 {
					v.wantIdle("the agent may come back")
					pass(test.wait - 1)
					v.wantIdle("the agent may come back")
					pass(1)
				}
				v.want(headed(v.lost("s", "e1", 1, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
			})
		})
	}
}

// Rule 12: an open request is asked again on the agent's new link.
func TestHubReplayAgentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		old := a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(old, 1, 3, false))
		a.l.Close()
		v.want(replayedTo(old, 1, 3))
		v.wantIdle("the agent may come back")
		pass(9 * time.Second)
		a = speakAgent(t, h, "agent")
		a.send(answerTo(old, 4, 15, true)) // its id means nothing here
		a.send(a.status(entryOf("s", "e1", 1, 20, 20)))
		v.wantIdle("the agent is asked")
		a.want(a.ack("s", "e1", 20))
		r := a.asked("s", "tab", "e1", 3, 15)
		pass(5 * time.Second) // the wait is over with its reason
		v.wantIdle("the agent is asked")
		a.send(answerTo(r, 4, 15, true))
		v.want(replayedTo(r, 4, 15), v.batch("s", "e1", 16, 20))
	})
}

// A hub that may ask nothing of the agent declares a gap, and does not wait for
// ever (L2).
func TestHubReplayNone(t *testing.T) {
	for name, cfg := range map[string]HubConfig{"session": {MaxReplays: -1}, "viewer": {MaxViewerReplays: -1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, _ := smallHub(t, cfg)
				v := speakViewer(t, h, "tab")
				v.send(v.watch("s", "", 0))
				v.want(v.status(stands("s", "e1", 16, 20, 0)))
				for range 10 {
					for _, p := range v.drain() {
						if b, ok := p.(*EventBatchPayload); ok {
							if len(b.Gaps) != 1 || b.Gaps[0].To != 15 {
								t.Errorf("got %s, want a gap to 15", payloadText(p))
							}
							return
						}
					}
					pass(timerFirst)
				}
				t.Error("the viewer is never served")
			})
		})
	}
}

// A hub that keeps no events serves everything from the agent.
func TestHubWithoutLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: -1})
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 20)
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 21, 20, 0)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 0, 20)
		a.send(answerTo(r, 1, 20, true))
		v.want(replayedTo(r, 1, 20))
		v.wantIdle("all is there")
	})
}

// A viewer that takes nothing costs nobody anything.
func TestHubStuckViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(&HubConfig{LogEvents: 50})
		near, far := tubes()
		go st.Connect().Run(t.Context(), near.send, near.receive)
		go h.ConnectAgent("agent").Run(t.Context(), far.send, far.receive)
		stuck, v := speakViewer(t, h, "stuck"), speakViewer(t, h, "tab")
		stuck.send(stuck.watch("s", "", 0))
		v.send(v.watch("s", "", 0))
		got := uint64(0)
		for range 1000 {
			if _, err := st.Publish(t.Context(), "s", Event{Type: "out", Data: []byte(`1`)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for _, p := range v.drain() {
				if b, ok := p.(*EventBatchPayload); ok {
					got += uint64(len(b.Events))
				}
			}
		}
		if got != 1000 {
			t.Errorf("the other viewer got %d", got)
		}
		if st := statOf(t, h, "s"); st.Acked != 1000 || st.Events != 50 {
			t.Errorf("session: %+v", st)
		}
		if c := h.viewers["stuck"].cursors["s"]; c.seq != 0 || len(c.pages) != 0 {
			t.Errorf("its cursor is at %d with %d pages", c.seq, len(c.pages))
		}
		got = 0 // and then it comes
		for range 20 {
			for _, p := range stuck.drain() {
				switch p := p.(type) {
				case *EventBatchPayload:
					got += uint64(len(p.Events))
				case *ReplayBatchPayload:
					got += uint64(len(p.Events))
				}
			}
			synctest.Wait()
		}
		if got != 1000 {
			t.Errorf("the stuck viewer got %d in the end", got)
		}
		h.Close()
		st.Close(endedContext)
	})
}

// Rule 13: one status of all watches, every 15 s.
func TestHubViewerStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v, idle := speakAgent(t, h, "agent"), speakViewer(t, h, "tab"), speakViewer(t, h, "idle")
		start := time.Now()
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0), v.watch("r", "", 0))
		v.drain()
		for i := range 3 {
			pass(time.Until(start.Add(time.Duration(i+1)*heartbeat - 1)))
			v.wantIdle("too early")
			pass(1)
			v.want(v.status(SessionStatus{SessionID: "r"}, stands("s", "e1", 1, 3, 3)))
			v.wantIdle("said")
			idle.want(idle.status())
		}
	})
}

func TestHubMaxWatches(t *testing.T) {
	h := NewHub(&HubConfig{MaxWatches: 2})
	v := speakViewer(t, h, "tab")
	v.send(v.watch("a", "", 0), v.watch("b", "", 0))
	v.drain()
	v.refused(v.watch("c", "", 0), &ErrorPayload{Code: codeLimit, SessionID: "c"})
	if h.lookup("c") != nil {
		t.Error("a refused watch left something")
	}
	v.send(v.watch("b", "", 0)) // has its place
	v.send(v.stop("a"), v.watch("c", "", 0))
	v.want(v.status(SessionStatus{SessionID: "b"}, SessionStatus{SessionID: "c"}))
}

// Every watch is answered, also after many that were stopped before anybody asked
// for their answers; and those leave nothing behind.
func TestHubWatchAndStopWithoutReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		for range 1000 {
			v.send(v.watch("r", "", 0), v.stop("r"))
		}
		hv := h.viewers["tab"]
		if n := hv.due.len(); n > 200 {
			t.Errorf("%d answers wait for a viewer that reads nothing", n)
		}
		if n := hv.Link.bulk.len(); n > 200 {
			t.Errorf("%d tasks wait for a viewer that reads nothing", n)
		}
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 1, 3, 0)), v.batch("s", "e1", 1, 3))
	})
}

// Two watches of one session at the same time are one watch.
func TestHubConcurrentWatch(t *testing.T) {
	for range 100 {
		var both sync.WaitGroup
		both.Add(2)
		h := NewHub(&HubConfig{Authorize: func(context.Context, string, string) error {
			both.Done()
			both.Wait()
			return nil
		}})
		v := speakViewer(t, h, "tab")
		var done sync.WaitGroup
		h.mu.Lock()
		for range 2 {
			done.Go(func() {
				if err := v.l.Handle(context.Background(), v.watch("s", "", 0)); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		for range 200 { // let both come as far as they can
			runtime.Gosched()
		}
		h.mu.Unlock()
		done.Wait()
		if n := len(h.lookup("s").cursors); n != 1 {
			t.Fatalf("%d cursors of one watch", n)
		}
		v.l.Close()
		if len(h.sessions) != 0 {
			t.Fatal("a watch stays")
		}
	}
}

func TestHubTwoTabs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		x, y := speakViewer(t, h, "ann/1"), speakViewer(t, h, "ann/2")
		x.send(x.watch("s", "", 0))
		y.send(y.watch("s", "e1", 2))
		x.want(x.status(stands("s", "e1", 1, 3, 0)), x.batch("s", "e1", 1, 3))
		y.want(y.status(stands("s", "e1", 1, 3, 2)), y.batch("s", "e1", 3, 3))
		x.send(x.stop("s"))
		a.feed("s", "e1", 4, 4)
		x.wantIdle("stopped")
		y.want(y.batch("s", "e1", 4, 4))
	})
}

// Rule 3: a viewer's newer link takes over, without its watches.
func TestHubSupersedesViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		old := speakViewer(t, h, "tab")
		old.send(old.watch("s", "", 0))
		old.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		v := speakViewer(t, h, "tab")
		before := h.Stats()
		old.wantDead(ErrSuperseded)
		if err := old.l.Handle(t.Context(), old.watch("s", "", 0)); err != ErrSuperseded {
			t.Errorf("Handle: %v", err)
		}
		old.l.Close()
		if after := h.Stats(); after != before || before.Viewers != 1 {
			t.Errorf("stats: %+v, before %+v", after, before)
		}
		a.send(answerTo(r, 1, 15, true))
		pass(ackDelay)
		v.wantIdle("it watches nothing, and the replay was for the link before")
		v.send(v.watch("s", "e1", 15))
		v.want(v.status(stands("s", "e1", 16, 20, 15)), v.batch("s", "e1", 16, 20))
	})
}

func TestHubRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v, other := speakAgent(t, h, "agent"), speakViewer(t, h, "tab"), speakViewer(t, h, "other")
		a.feed("s", "e1", 1, 3)
		for _, x := range []*speaker{v, other} {
			x.send(x.watch("s", "e1", 3))
			x.want(x.status(stands("s", "e1", 1, 3, 3)))
		}
		h.Revoke("tab", "s")
		h.Revoke("tab", "s")
		h.Revoke("tab", "r")
		h.Revoke("nobody", "s")
		v.want(&ErrorPayload{Code: codeForbidden, SessionID: "s"})
		a.feed("s", "e1", 4, 4)
		v.wantIdle("revoked")
		other.want(other.batch("s", "e1", 4, 4))
		v.send(v.watch("s", "e1", 3)) // nobody forbids it
		v.want(v.status(stands("s", "e1", 1, 4, 3)), v.batch("s", "e1", 4, 4))
	})
}

// Rule 16: a viewer is told of the end, when it has all.
func TestHubTellsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 2)
		v.send(v.watch("s", "e1", 2))
		v.drain()
		ended := entryOf("s", "e1", 1, 2, 3)
		ended.Ended = true
		a.send(a.status(ended))
		v.wantIdle("its end is not here yet")
		a.send(a.lost("s", "e1", 3, 3, ReasonDropped))
		told := stands("s", "e1", 1, 3, 3)
		told.Ended = true
		v.want(v.lost("s", "e1", 3, 3, ReasonDropped), v.status(told))
		v.wantIdle("told once")
	})
}

func TestHubItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{Authorize: func(context.Context, string, string) error { return errors.New("nobody") }})
		type result struct {
			items []string
			err   error
		}
		collect := func(ctx context.Context, session string, after Position, until int) <-chan result {
			ch := make(chan result, 1)
			go func() {
				var r result
				for it, err := range h.Items(ctx, session, after) {
					if err != nil {
						r.err = err
						continue
					}
					if r.items = append(r.items, itemText(it)); len(r.items) == until {
						break
					}
				}
				ch <- r
			}()
			synctest.Wait()
			return ch
		}
		check := func(what string, got result, want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, got.items); diff != "" || got.err != nil {
				t.Errorf("%s: %v, -want +got\n%s", what, got.err, diff)
			}
		}
		check("from a position", <-collect(t.Context(), "s", Position{"e1", 17}, 3), itemTexts("s", "e1", 18, 20)...)

		fromStart := collect(t.Context(), "s", Position{}, 20) // older ones by the agent
		r := a.asked("s", "", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		check("from the start", <-fromStart, itemTexts("s", "e1", 1, 20)...)

		ctx, cancel := context.WithCancel(t.Context())
		waiting := collect(ctx, "s", Position{"e1", 20}, 9)
		unknown := collect(ctx, "unknown", Position{}, 9)
		a.send(a.batch("s", "e1", 21, 22))
		synctest.Wait()
		cancel()
		check("until ctx ends", <-waiting, itemTexts("s", "e1", 21, 22)...)
		check("unknown", <-unknown)

		for after, code := range map[Position]string{{"e1", 23}: codeReplayAhead, {"e2", 0}: codeReplayAhead} {
			got := <-collect(t.Context(), "s", after, 9)
			var refused *ProtocolError
			if !errors.As(got.err, &refused) || refused.Code != code || len(got.items) != 0 {
				t.Errorf("%v: %v %v", after, got.items, got.err)
			}
		}
		for _, session := range []string{"", "\n"} {
			if got := <-collect(t.Context(), session, Position{}, 9); got.err != ErrInvalidID {
				t.Errorf("%q: %v", session, got.err)
			}
		}
		if got := <-collect(t.Context(), "s", Position{"", 3}, 9); got.err != ErrInvalidID {
			t.Errorf("half a position: %v", got.err)
		}

		ending := collect(t.Context(), "s", Position{"e1", 22}, 9)
		a.send(a.last("s", "e1", 23))
		check("to the end", <-ending, "s e1 23", "s e1 end")

		if n := len(h.locals); n != 0 {
			t.Errorf("%d readers stay", n)
		}
		closing := collect(t.Context(), "unknown", Position{}, 9)
		h.Close()
		check("until Close", <-closing)
	})
}

// Hub.Items has no connection that could be silent: its loop may take its time.
func TestHubItemsSlowLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		next := uint64(1)
		for it, err := range h.Items(t.Context(), "s", Position{}) {
			if err != nil || it.Event == nil || it.Event.Seq != next {
				t.Fatalf("%s, %v, want event %d", itemText(it), err, next)
			}
			if next++; next > 4 {
				break
			}
			pass(20 * time.Second << next) // 80 s and more
			a.feed("s", "e1", next, next)
		}
	})
}

// The items of several loops at once, each at its own pace.
func TestHubItemsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				next := uint64(1)
				for it, err := range h.Items(t.Context(), "s", Position{}) {
					if err != nil || it.Event == nil || it.Event.Seq != next {
						t.Errorf("%s, %v, want event %d", itemText(it), err, next)
						return
					}
					if next++; next > 50 {
						return
					}
					pass(time.Duration(i) * time.Millisecond)
				}
			})
		}
		for seq := range uint64(50) {
			a.send(a.batch("s", "e1", seq+1, seq+1))
			pass(2 * time.Millisecond)
		}
		wg.Wait()
	})
}

// Rule 13: a position that the session turns out never to have reached is refused
// when its agent comes.
func TestHubWatchAheadOfLateAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "e2", 5))
		v.want(v.status(stands("s", "", 0, 0, 0)))
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		v.want(&ErrorPayload{Code: codeReplayAhead, SessionID: "s", Epoch: "e1", Seq: 3})
		v.wantIdle("the watch is over")
		if n := len(h.viewers["tab"].cursors); n != 0 {
			t.Errorf("%d watches stay", n)
		}
		if n := h.Stats().RefusedPayloads; n != 1 {
			t.Errorf("%d refusals, want 1", n)
		}
	})
}

// A watch is over at once, also for a status that is just being made, and however
// often it is ended.
func TestHubWatchEndsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0))
		c := h.viewers["tab"].cursors["s"]
		v.send(v.stop("s"))
		if st, ok := c.describe(); ok {
			t.Errorf("a watch that is over is described as %+v", st)
		}
		c.remove()
		v.wantIdle("stopped")
		if st := statOf(t, h, "s"); st.Viewers != 0 {
			t.Errorf("session: %+v", st)
		}
	})
}

// Rule 12: a request that could not be made because the agent's link just died is
// made on its next one, and takes up no turn until then.
func TestHubReplayAgentJustAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)))
		ha, _ := h.agent("agent")
		a.l.Close()
		s := h.lookup("s")
		s.mu.Lock()
		s.cursors[0].ask(ha, 15)
		s.mu.Unlock()
		if n := h.viewers["tab"].slots; s.open != 0 || n != 0 {
			t.Errorf("%d and %d turns are taken", s.open, n)
		}
		v.wantIdle("the agent may come back")
		a = speakAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 20, 20)))
		v.wantIdle("the agent is asked")
		a.want(a.ack("s", "e1", 20))
		a.send(answerTo(a.asked("s", "tab", "e1", 0, 15), 1, 15, true))
		v.drain()
	})
}

// Hub.Items tells why it ended, if neither the loop nor the hub wanted it to.
func TestHubItemsLinkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		got := make(chan []error)
		go func() {
			var errs []error
			for _, err := range h.Items(t.Context(), "s", Position{}) {
				errs = append(errs, err)
			}
			got <- errs
		}()
		synctest.Wait()
		for hv := range h.locals {
			hv.fail(time.Now(), ErrSilent)
		}
		if errs := <-got; len(errs) != 1 || errs[0] != ErrSilent {
			t.Errorf("Items yielded %v", errs)
		}
	})
}

// A request that is given up while it is being made or answered is neither.
func TestHubReplayGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		f := h.lookup("s").cursors[0].fetch
		r := a.asked("s", "tab", "e1", 0, 15)
		v.send(v.stop("s"))
		if p := f.take(time.Now()); p != nil {
			t.Errorf("made: %s", payloadText(p))
		}
		if err := f.answered(time.Now(), batch(answerTo(r, 1, 15, true)).(*replayBatch), nil); err != nil {
			t.Error(err)
		}
		if n := h.Stats().StalePayloads; n != 1 {
			t.Errorf("%d stale payloads, want 1", n)
		}
		v.wantIdle("stopped")
		a.wantIdle("nothing is asked")
	})
}

// What a viewer gives up, and what its agent's link takes at the same time, are one
// thing or the other. It is the race detector that looks.
func TestHubFetchAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		var both sync.WaitGroup
		both.Go(func() {
			for range 100 {
				for range 3 {
					a.l.Next(endedContext)
				}
				pass(time.Second)
			}
		})
		both.Go(func() {
			for range 100 {
				v.l.Handle(t.Context(), v.watch("s", "", 0))
				for range 3 {
					v.l.Next(endedContext)
				}
				pass(time.Second)
			}
		})
		both.Wait()
	})
}

// Revoke is noticed by the call of Authorize that it concerns, whichever others
// began or ended meanwhile; what was allowed before it is asked about again.
func TestHubRevokeDuringOneOfManyAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, asked := make(chan bool), make(map[string]int)
		h := NewHub(&HubConfig{Authorize: func(_ context.Context, _, sessionID string) error {
			if asked[sessionID]++; sessionID == "r" && asked["r"] == 1 {
				<-release
			}
			return nil
		}})
		v := speakViewer(t, h, "tab")
		done := make(chan error)
		go func() { done <- v.l.Handle(context.Background(), v.watch("r", "", 0)) }()
		synctest.Wait()
		v.send(v.watch("s", "", 0))
		h.Revoke("tab", "r")
		v.send(v.watch("q", "", 0))
		release <- true
		if err := <-done; err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(map[string]int{"q": 1, "r": 2, "s": 1}, asked); diff != "" {
			t.Errorf("asked: -want +got\n%s", diff)
		}
		if n := len(h.viewers["tab"].asks); n != 0 {
			t.Errorf("%d calls of Authorize seem to run", n)
		}
	})
}

// Rule 12: a slot that the viewer gave up is free again after a second, each in its
// turn.
func TestHubReplaySlotsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5, MaxViewerReplays: 2})
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		for _, id := range []string{"s0", "s1", "s2", "s3"} {
			a.feed(id, "e1", 1, 20)
			v.send(v.watch(id, "", 0))
		}
		v.drain()
		a.asked("s0", "tab", "e1", 0, 15)
		a.asked("s1", "tab", "e1", 0, 15)
		a.wantIdle("two are open")
		start := time.Now()
		after := func(d time.Duration) {
			pass(time.Until(start.Add(d)))
			v.drain()
		}
		v.send(v.stop("s0"))
		after(500 * time.Millisecond)
		v.send(v.stop("s1"))
		after(time.Second - 1)
		a.wantIdle("their agent may be sending")
		after(time.Second)
		a.asked("s2", "tab", "e1", 0, 15)
		after(1500*time.Millisecond - 1)
		a.wantIdle("the second slot is not free yet")
		after(1500 * time.Millisecond)
		a.asked("s3", "tab", "e1", 0, 15)
		a.wantIdle("two are open")
	})
}

// Rule 12: who waits for a slot or a turn has it before the one whose request was
// not answered asks again.
func TestHubReplayUnansweredIsLast(t *testing.T) {
	for name, cfg := range map[string]HubConfig{"slot": {MaxViewerReplays: 1}, "turn": {MaxReplays: 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg.LogEvents = 5
				h := NewHub(&cfg)
				a := speakAgent(t, h, "agent")
				first := speakViewer(t, h, "tab")
				second, session := first, "r"
				a.feed("s", "e1", 1, 20)
				a.feed("r", "e1", 1, 20)
				if name == "turn" {
					second, session = speakViewer(t, h, "other"), "s"
				}
				first.send(first.watch("s", "", 0))
				first.drain()
				second.send(second.watch(session, "", 0))
				second.drain()
				a.asked("s", "tab", "e1", 0, 15)
				a.wantIdle("one is open")
				pass(timerFirst)
				first.drain()
				second.drain()
				r := a.asked(session, second.viewer, "e1", 0, 15)
				a.wantIdle("one is open")
				a.send(answerTo(r, 1, 15, true))
				first.drain()
				second.drain()
				a.asked("s", "tab", "e1", 0, 15)
			})
		})
	}
}

// Rule 12: an answer that says done, or that has all, ends the request, and what is
// still missing is asked for at once.
func TestHubReplayDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 9, true)) // it had more than fits an answer
		v.want(replayedTo(r, 1, 9))
		v.wantIdle("the agent is asked")
		r = a.asked("s", "tab", "e1", 9, 15)
		a.send(answerTo(r, 10, 14, false))
		if n := h.lookup("s").open; n != 1 {
			t.Errorf("%d requests are open, want 1", n)
		}
		a.send(answerTo(r, 15, 15, false)) // all, although it does not say so
		if n := h.lookup("s").open; n != 0 {
			t.Errorf("%d requests are open, want none", n)
		}
		v.want(replayedTo(r, 10, 14), replayedTo(r, 15, 15), v.batch("s", "e1", 16, 20))
	})
}

// Rule 11: an event that is as large as one may be is replayed; a larger one is not.
func TestHubReplaySizeBound(t *testing.T) {
	pg, err := newPage(10, 10, numbered(10, 10), nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxEventBytes: int(pg.slots[0].size)})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "e1", 13))
		v.drain()
		r := a.asked("s", "tab", "e1", 13, 15)
		p := answerTo(r, 14, 15, true)
		p.Events[1].Type = "larger"
		a.send(p)
		want := replayedTo(r, 14, 15)
		want.Events, want.Gaps = want.Events[:1], []Gap{{15, 15, ReasonRejected}}
		v.want(want, v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: a slot that was kept for a watch which ended before it asked goes to the
// next that waits.
func TestHubReplaySlotPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5, MaxViewerReplays: 1})
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		for _, id := range []string{"s0", "s1", "s2"} {
			a.feed(id, "e1", 1, 20)
			v.send(v.watch(id, "", 0))
		}
		v.drain()
		r := a.asked("s0", "tab", "e1", 0, 15)
		a.wantIdle("one is open")
		a.send(answerTo(r, 1, 15, true))
		v.send(v.stop("s1")) // its turn had come
		v.drain()
		r = a.asked("s2", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		v.drain()
		a.wantIdle("all is there")
		if n := h.viewers["tab"].slots; n != 0 {
			t.Errorf("%d slots are taken, want none", n)
		}
	})
}

// Hub.Items takes whatever one payload may bring, gaps included: nobody else makes
// room for it.
func TestHubItemsOfManyGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 399)
		b.Events = nil
		var want []string
		for seq := uint64(1); seq <= 399; seq++ {
			if seq%2 == 1 {
				b.Events = append(b.Events, Event{Seq: seq})
				want = append(want, fmt.Sprint("s e1 ", seq))
			} else {
				b.Gaps = append(b.Gaps, Gap{seq, seq, ReasonDropped})
				want = append(want, fmt.Sprintf("s e1 gap %d-%d dropped", seq, seq))
			}
		}
		a.send(b)
		hubSaw(t, h, "s", want...)
	})
}
