package gvstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Rule 13: every watch is answered at once.
func TestHubWatch(t *testing.T) {
	for _, test := range []struct {
		name  string
		epoch string
		after uint64
		want  func(v *peer) []Payload
	}{
		{"from the start", "", 0, func(v *peer) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 0)), v.batch("s", "e2", 1, 5)}
		}},
		{"behind a position", "e2", 3, func(v *peer) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 3)), v.batch("s", "e2", 4, 5)}
		}},
		{"behind zero of an epoch", "e2", 0, func(v *peer) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 0)), v.batch("s", "e2", 1, 5)}
		}},
		{"caught up", "e2", 5, func(v *peer) []Payload { return []Payload{v.status(stands("s", "e2", 1, 5, 5))} }},
		{"beyond accepted", "e2", 8, func(v *peer) []Payload { return []Payload{v.status(stands("s", "e2", 1, 5, 5))} }},
		{"beyond the head", "e2", 9, func(v *peer) []Payload {
			return []Payload{&ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: "e2", Seq: 5}}
		}},
		{"of a greater epoch", "e3", 0, func(v *peer) []Payload {
			return []Payload{&ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: "e2", Seq: 5}}
		}},
		{"of an older epoch", "e1", 7, func(v *peer) []Payload {
			return []Payload{v.status(stands("s", "e2", 1, 5, 0)), v.batch("s", "e2", 1, 5)}
		}},
		{"unknown", "", 0, func(v *peer) []Payload { return []Payload{v.status(stands("unknown", "", 0, 0, 0))} }},
		{"unknown", "e1", 9, func(v *peer) []Payload { return []Payload{v.status(stands("unknown", "", 0, 0, 0))} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHub(nil)
				a := playAgent(t, h, "agent")
				a.feed("s", "e2", 1, 4)
				a.send(headed(a.batch("s", "e2", 5, 5), 8)) // three more are on their way
				v := playViewer(t, h, "tab")
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

// Rule 6: an ack of more than was sent moves the viewer's place, since the watch by which it said
// so may have been lost. Of what the agent is not known to have it can't have anything.
func TestHubViewerAckBeyondSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.send(headed(a.batch("s", "e1", 1, 6), 8))
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "e1", 6))
		v.want(v.status(stands("s", "e1", 1, 6, 6)))
		beyond := func(seq uint64) *AckBatchPayload {
			return &AckBatchPayload{SessionID: "s", Epoch: "e1", Link: v.id, UpToSeq: seq}
		}
		v.send(beyond(7))
		v.wantIdle("it waits after 7")
		a.send(headed(a.batch("s", "e1", 7, 8), 8))
		v.want(v.batch("s", "e1", 8, 8))
		v.send(beyond(9))
		v.want(&ErrorPayload{Code: CodeAckBeyondSent, SessionID: "s", Epoch: "e1", Seq: 8})
		a.send(a.batch("s", "e1", 9, 9))
		v.wantIdle("the watch is over")
	})
}

// Rule 13: a watch from a position beyond what is accepted waits there.
func TestHubWatchBeyondAcceptedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
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
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0), v.watch("r", "", 0))
		v.want(v.status(SessionStatus{SessionID: "s"}, SessionStatus{SessionID: "r"}))
		if h.Stats().Sessions != 0 {
			t.Error("a watch made a session")
		}
		for st := range h.Sessions() {
			t.Errorf("a watch made %s", st.SessionID)
		}
		a := playAgent(t, h, "agent")
		a.send(a.batch("s", "e1", 1, 3))
		v.want(v.status(stands("s", "e1", 1, 3, 0)), v.batch("s", "e1", 1, 3))
		v.send(v.stop("s"), v.stop("s"), v.stop("never"))
		a.send(a.batch("s", "e1", 4, 4))
		v.wantIdle("stopped")
		v.link.Close()
		if h.lookup("r") != nil || len(h.sessions) != 1 {
			t.Error("the watch outlived its viewer")
		}
		h.Forget("s")
		if len(h.sessions) != 0 {
			t.Error("a session stays")
		}
	})
}

// Rule 13: AuthorizeViewer is asked on every watch, and its answer is the same whether or
// not the session exists.
func TestHubAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []string
		allow := true
		h := NewHub(&HubConfig{AuthorizeViewer: func(_ context.Context, viewerID, sessionID string) error {
			asked = append(asked, viewerID+" "+sessionID)
			if !allow {
				return errors.New("who are you?")
			}
			return nil
		}})
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		a.feed("s", "e1", 1, 1)
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 1, 1, 0)), v.batch("s", "e1", 1, 1))
		allow = false
		v.refused(v.watch("s", "e1", 1), &ErrorPayload{Code: CodeForbidden, SessionID: "s"}) // it resumes
		a.feed("s", "e1", 2, 2)
		v.wantIdle("the watch was ended")
		v.refused(v.watch("unknown", "", 0), &ErrorPayload{Code: CodeForbidden, SessionID: "unknown"})
		if len(h.sessions) != 1 {
			t.Error("a refused watch left something")
		}
		v.send(v.stop("s"))
		hubSaw(t, h, "s", itemTexts("s", "e1", 1, 2)...)
		if diff := cmp.Diff([]string{"tab s", "tab s", "tab unknown"}, asked); diff != "" {
			t.Errorf("asked: -want +got\n%s", diff)
		}
		// The texts must not differ either.
		one := v.link.Handle(t.Context(), v.watch("s", "", 0))
		two := v.link.Handle(t.Context(), v.watch("t", "", 0))
		var x, y *ProtocolError
		if !errors.As(one, &x) || !errors.As(two, &y) || x.Message != y.Message {
			t.Errorf("%v and %v tell who exists", one, two)
		}
	})
}

func TestHubAuthorizeCtxEnds(t *testing.T) {
	h := NewHub(&HubConfig{AuthorizeViewer: func(ctx context.Context, _, _ string) error { return ctx.Err() }})
	v := playViewer(t, h, "tab")
	if err := v.link.Handle(endedContext, v.watch("s", "", 0)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	v.wantIdle("nobody refused anything")
	v.send(v.watch("s", "", 0))
}

func TestHubRefusesViewerFrames(t *testing.T) {
	h := NewHub(nil)
	early := &peer{t: t, link: h.ConnectViewer("early"), viewer: "early"}
	early.send(early.watch("s", "", 0), early.watch("s", "", 0))
	early.want(&ErrorPayload{Code: CodeStaleLink, Retryable: true})
	early.wantIdle("once a second")
	v := playViewer(t, h, "tab")
	v.send(&HelloPayload{V: 1, Role: roleViewer})
	v.want(&WelcomePayload{ViewerID: "tab", V: 1, Link: v.id})
	for name, test := range map[string]struct {
		p    Payload
		want *ErrorPayload
	}{
		"version":       {&HelloPayload{V: 2, Role: roleViewer}, &ErrorPayload{Code: CodeVersionUnsupported}},
		"role":          {&HelloPayload{V: 1, Role: roleAgent}, &ErrorPayload{Code: CodeWrongRole}},
		"batch":         {v.batch("s", "e1", 1, 1), &ErrorPayload{Code: CodeUnexpected}},
		"another's id":  {&WatchPayload{SessionID: "s", ViewerID: "other"}, &ErrorPayload{Code: CodeForbidden, SessionID: "s"}},
		"half position": {v.watch("s", "", 1), &ErrorPayload{Code: CodeMalformed}},
		"bad epoch":     {v.watch("s", "É", 1), &ErrorPayload{Code: CodeMalformed}},
		"no session":    {v.watch("", "", 0), &ErrorPayload{Code: CodeMalformed}},
	} {
		t.Run(name, func(t *testing.T) {
			newPeer(t, v.link).refused(test.p, test.want)
		})
	}
	v.send(&ErrorPayload{Code: "x"}, &WatchPayload{SessionID: "s"}) // without an id it is for this viewer
	if len(h.sessions) != 1 {
		t.Errorf("%d sessions", len(h.sessions))
	}
}

// Gaps that followed events made a batch longer than a batch may be.
func TestBatchBytesWithGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		b := a.batch("s", "e1", 1, 1)
		b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", pageBytes-200) + `"`)
		for seq := uint64(2); seq < 2+maxBatchGaps; seq++ {
			b.Gaps = append(b.Gaps, Gap{seq, seq, Reason(strings.Repeat(string(rune('a'+seq%2)), 32))})
			b.LastSeq, b.HeadSeq = seq, seq
		}
		a.send(b)
		v.send(v.watch("s", "", 0))
		last := uint64(0)
		for p := v.next(); p != nil; p = v.next() {
			line, err := Marshal(p)
			if err != nil || len(line) > maxBatchBytes {
				t.Errorf("a %s of %d bytes, %v", p.payloadType(), len(line), err)
			}
			if b, ok := p.(*EventBatchPayload); ok {
				last = b.LastSeq
			}
		}
		if last != b.LastSeq {
			t.Errorf("the viewer got up to %d of %d", last, b.LastSeq)
		}
	})
}

// A viewer that takes nothing costs nobody else anything.
func TestHubStuckViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(&HubConfig{LogEvents: 50})
		near, far := tubes()
		go st.Connect().Run(t.Context(), near.send, near.receive)
		go h.ConnectAgent("agent").Run(t.Context(), far.send, far.receive)
		stuck, v := playViewer(t, h, "stuck"), playViewer(t, h, "tab")
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
		if c := h.viewers["stuck"].cursors["s"]; c.sent != 0 || c.fetch != nil {
			t.Errorf("its cursor is at %d of %v", c.sent, c.fetch)
		}
		got = 0 // and then it comes
		for range 20 {
			for _, p := range stuck.drain() {
				if b, ok := p.(*EventBatchPayload); ok {
					got += uint64(len(b.Events))
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
		a, v, idle := playAgent(t, h, "agent"), playViewer(t, h, "tab"), playViewer(t, h, "idle")
		start := time.Now()
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0), v.watch("r", "", 0))
		v.drain()
		for i := range 3 {
			pass(time.Until(start.Add(time.Duration(i+1)*heartbeatEvery - 1)))
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
	v := playViewer(t, h, "tab")
	v.send(v.watch("a", "", 0), v.watch("b", "", 0))
	v.drain()
	v.refused(v.watch("c", "", 0), &ErrorPayload{Code: CodeLimitExceeded, SessionID: "c"})
	if h.lookup("c") != nil {
		t.Error("a refused watch left something")
	}
	v.send(v.watch("b", "", 0)) // keeps its place
	v.send(v.stop("a"), v.watch("c", "", 0))
	v.want(v.status(SessionStatus{SessionID: "b"}, SessionStatus{SessionID: "c"}))
}

// TestHubMaxWatchesAtOnce: calls of Handle at the same time can't pass the limit together.
func TestHubMaxWatchesAtOnce(t *testing.T) {
	for range 50 {
		h := NewHub(&HubConfig{MaxWatches: 2})
		v := playViewer(t, h, "tab")
		var refused atomic.Int32
		var calls sync.WaitGroup
		for i := range 16 {
			calls.Go(func() {
				if v.link.Handle(t.Context(), v.watch(fmt.Sprint("s", i), "", 0)) != nil {
					refused.Add(1)
				}
			})
		}
		calls.Wait()
		if n := len(h.viewers["tab"].cursors); n != 2 || refused.Load() != 14 || len(h.sessions) != 2 {
			t.Fatalf("%d watches, %d refused, %d sessions", n, refused.Load(), len(h.sessions))
		}
	}
}

// Every watch is answered, even after many that were stopped before their answers were
// taken; and those leave nothing in the queue.
func TestHubWatchAndStopWithoutReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		for range 1000 {
			v.send(v.watch("r", "", 0), v.stop("r"))
		}
		hv := h.viewers["tab"]
		if n := hv.statuses.Len(); n > 200 {
			t.Errorf("%d answers wait for a viewer that reads nothing", n)
		}
		if n := readyTasks(hv.Link); n > 200 {
			t.Errorf("%d tasks wait for a viewer that reads nothing", n)
		}
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 1, 3, 0)), v.batch("s", "e1", 1, 3))
	})
}

// Two concurrent watches of one session become one watch.
func TestHubConcurrentWatch(t *testing.T) {
	for range 100 {
		var both sync.WaitGroup
		both.Add(2)
		h := NewHub(&HubConfig{AuthorizeViewer: func(context.Context, string, string) error {
			both.Done()
			both.Wait()
			return nil
		}})
		v := playViewer(t, h, "tab")
		var done sync.WaitGroup
		h.mu.Lock()
		for range 2 {
			done.Go(func() {
				if err := v.link.Handle(context.Background(), v.watch("s", "", 0)); err != nil {
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
		v.link.Close()
		if len(h.sessions) != 0 {
			t.Fatal("a watch stays")
		}
	}
}

func TestHubTwoTabs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		x, y := playViewer(t, h, "ann/1"), playViewer(t, h, "ann/2")
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

// A viewer that leaves costs the same however many stay: all those after it were moved
// up.
func TestGrowthViewersLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		vs := make([]*peer, n)
		for i := range vs {
			vs[i] = playViewer(t, h, fmt.Sprint("viewer-", i))
			vs[i].send(vs[i].watch("s", "", 0))
		}
		for _, v := range vs[:n/2] { // these wait for the next event
			v.drain()
		}
		s := h.lookup("s")
		for i, v := range vs {
			before := slices.Clone(s.cursors)
			v.link.Close()
			moved := 0
			for j, c := range s.cursors {
				if c != before[j] {
					moved++
				}
			}
			if len(s.cursors) != n-i-1 || moved > 2 {
				t.Fatalf("%d cursors are left, and %d moved, when %d viewers have left", len(s.cursors), moved, i+1)
			}
			if i == n/4 { // those that wait are still known
				a.feed("s", "e1", 2, 2)
				for _, v := range vs[i+1:] {
					said := v.drain()
					if b, ok := said[len(said)-1].(*EventBatchPayload); !ok || b.LastSeq != 2 {
						t.Fatalf("%s was shown %s last", v.viewer, payloadText(said[len(said)-1]))
					}
				}
			}
		}
	})
}

// Rule 3: a viewer's newer link takes over, without its watches.
func TestHubSupersedesViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		old := playViewer(t, h, "tab")
		old.send(old.watch("s", "", 0))
		old.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		v := playViewer(t, h, "tab")
		before := h.Stats()
		old.wantSuperseded()
		if err := old.link.Handle(t.Context(), old.watch("s", "", 0)); err != ErrSuperseded {
			t.Errorf("Handle: %v", err)
		}
		old.link.Close()
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
		a, v, other := playAgent(t, h, "agent"), playViewer(t, h, "tab"), playViewer(t, h, "other")
		a.feed("s", "e1", 1, 3)
		for _, x := range []*peer{v, other} {
			x.send(x.watch("s", "e1", 3))
			x.want(x.status(stands("s", "e1", 1, 3, 3)))
		}
		h.Revoke("tab", "s")
		h.Revoke("tab", "s")
		h.Revoke("tab", "r")
		h.Revoke("nobody", "s")
		v.want(&ErrorPayload{Code: CodeForbidden, SessionID: "s"})
		a.feed("s", "e1", 4, 4)
		v.wantIdle("revoked")
		other.want(other.batch("s", "e1", 4, 4))
		v.send(v.watch("s", "e1", 3)) // nobody forbids it
		v.want(v.status(stands("s", "e1", 1, 4, 3)), v.batch("s", "e1", 4, 4))
	})
}

// TestHubRevokeDuringAuthorize: if a permission is revoked while AuthorizeViewer runs, it is
// called again.
func TestHubRevokeDuringAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		allowed := true
		h = NewHub(&HubConfig{AuthorizeViewer: func(ctx context.Context, viewer, session string) error {
			ok := allowed
			// meanwhile, elsewhere: the permission is revoked
			allowed = false
			h.Revoke(viewer, session)
			if !ok {
				return errors.New("no")
			}
			return nil
		}})
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		v := playViewer(t, h, "tab")
		v.link.Handle(t.Context(), v.watch("s", "", 0))
		for p := v.next(); p != nil; p = v.next() {
			if _, ok := p.(*EventBatchPayload); ok {
				t.Fatalf("events after Revoke")
			}
		}
	})
}

// A Revoke affects the call of AuthorizeViewer that it concerns, whichever others began or
// ended meanwhile; AuthorizeViewer is called again for what was allowed before it.
func TestHubRevokeDuringOneOfManyAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, asked := make(chan bool), make(map[string]int)
		h := NewHub(&HubConfig{AuthorizeViewer: func(_ context.Context, _, sessionID string) error {
			if asked[sessionID]++; sessionID == "r" && asked["r"] == 1 {
				<-release
			}
			return nil
		}})
		v := playViewer(t, h, "tab")
		done := v.handling(v.watch("r", "", 0))
		v.send(v.watch("s", "", 0))
		h.Revoke("tab", "r")
		v.send(v.watch("q", "", 0))
		release <- true
		wantReturned(t, done, nil)
		if diff := cmp.Diff(map[string]int{"q": 1, "r": 2, "s": 1}, asked); diff != "" {
			t.Errorf("asked: -want +got\n%s", diff)
		}
		if n := len(h.viewers["tab"].pendingAuths); n != 0 {
			t.Errorf("%d calls of AuthorizeViewer seem to run", n)
		}
	})
}

// TestHubAuthorizeRevokes: AuthorizeViewer may call any method. One that revokes another
// watch of its viewer, to allow one at a time, was called again for ever: any Revoke
// counted.
func TestHubAuthorizeRevokes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h *Hub
		revokes, asked := "", 0
		h = NewHub(&HubConfig{AuthorizeViewer: func(_ context.Context, viewer, _ string) error {
			if asked++; asked > 10 {
				return errors.New("asked for ever")
			}
			h.Revoke(viewer, revokes)
			return nil
		}})
		v := playViewer(t, h, "tab")
		v.send(v.watch("r", "", 0))
		v.want(v.status(stands("r", "", 0, 0, 0)))
		revokes = "r"
		v.send(v.watch("s", "", 0))
		v.want(&ErrorPayload{Code: CodeForbidden, SessionID: "r"}, v.status(stands("s", "", 0, 0, 0)))
		if asked != 2 {
			t.Errorf("asked %d times for two watches", asked)
		}
		// Allowed and revoked in the same call: AuthorizeViewer is called once more, and refuses.
		revokes, asked = "q", 0
		v.refused(v.watch("q", "", 0), &ErrorPayload{Code: CodeForbidden, SessionID: "q"})
		v.wantIdle("refused")
		if n := len(h.viewers["tab"].cursors); asked != 2 || n != 1 {
			t.Errorf("asked %d times, %d watches", asked, n)
		}
	})
}

// Rule 16: a viewer learns of the end when it has everything.
func TestHubTellsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
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
		h, a := smallHub(t, HubConfig{AuthorizeViewer: func(context.Context, string, string) error { return errors.New("nobody") }})
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

		fromStart := collect(t.Context(), "s", Position{}, 20) // the older ones from the agent
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

		for after, code := range map[Position]Code{{"e1", 23}: CodeReplayAhead, {"e2", 0}: CodeReplayAhead} {
			got := <-collect(t.Context(), "s", after, 9)
			var refused *ProtocolError
			if !errors.As(got.err, &refused) || refused.Code != code || len(got.items) != 0 {
				t.Errorf("%v: %v %v", after, got.items, got.err)
			}
		}
		for _, session := range []string{"", "\n"} {
			if got := <-collect(t.Context(), session, Position{}, 9); !errors.Is(got.err, ErrInvalidID) {
				t.Errorf("%q: %v", session, got.err)
			}
		}
		if got := <-collect(t.Context(), "s", Position{"", 3}, 9); !errors.Is(got.err, ErrInvalidPosition) {
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
		a := playAgent(t, h, "agent")
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

// Items waits as long as either link's deadlines say: here the hub gives an absent agent 10 s,
// before the next sign of life of either.
func TestHubItemsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		a.link.Close()
		start := time.Now()
		for it, err := range h.Items(t.Context(), "s", Position{}) {
			if took := time.Since(start); err != nil || it.Gap == nil || took != 10*time.Second {
				t.Errorf("%s, %v after %v", itemText(it), err, took)
			}
			break
		}
	})
}

// TestHubItemsSlowBody: a loop body that takes its time is not the silence of a peer.
func TestHubItemsSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		for it, err := range h.Items(t.Context(), "s", Position{}) {
			if err != nil {
				t.Fatal(err)
			}
			switch seq := it.Event.Seq; {
			case seq < 80: // live, one a second
				pass(time.Second)
				a.send(a.batch("s", "e1", seq+1, seq+1))
			case seq == 80:
				a.send(a.batch("s", "e1", 81, 90))
			case seq < 90:
				pass(6 * time.Second) // a body that stores, say
			case seq == 90:
				a.send(a.batch("s", "e1", 91, 91))
			default:
				return
			}
		}
		t.Error("ended early")
	})
}

// The items of several loops at once, each at its own pace.
func TestHubItemsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
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

// Rule 13: a position that the session turns out never to have reached is refused when
// its agent connects.
func TestHubWatchAheadOfLateAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "e2", 5))
		v.want(v.status(stands("s", "", 0, 0, 0)))
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 3)
		v.want(&ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: "e1", Seq: 3})
		v.wantIdle("the watch is over")
		if n := len(h.viewers["tab"].cursors); n != 0 {
			t.Errorf("%d watches stay", n)
		}
		if n := h.Stats().RefusedPayloads; n != 1 {
			t.Errorf("%d refusals, want 1", n)
		}
	})
}

// A watch is over at once, even for a status that is just being made, and however often
// it is ended.
func TestHubWatchEndsTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		a.feed("s", "e1", 1, 3)
		v.send(v.watch("s", "", 0))
		c := h.viewers["tab"].cursors["s"]
		v.send(v.stop("s"))
		if st, ok := c.takeStatus(); ok {
			t.Errorf("a watch that is over is described as %+v", st)
		}
		c.remove()
		v.wantIdle("stopped")
		if st := statOf(t, h, "s"); st.Viewers != 0 {
			t.Errorf("session: %+v", st)
		}
	})
}

// Hub.Items yields the reason why it ended, if neither the loop nor the hub wanted it
// to.
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

// Hub.Items has room for everything that one payload may bring, gaps included: nothing
// else makes room for it.
func TestHubItemsOfManyGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
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

// A panic in AuthorizeViewer left its watch among those that are being authorized, for good.
func TestHubAuthorizePanics(t *testing.T) {
	h := NewHub(&HubConfig{AuthorizeViewer: func(context.Context, string, string) error { panic("directory") }})
	v := playViewer(t, h, "tab")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		v.send(v.watch("s", "", 0))
	}()
	if n := len(v.link.endpoint.(*hubViewerLink).pendingAuths); n > 0 || len(h.sessions) > 0 {
		t.Errorf("%d watches are being authorized, %d sessions", n, len(h.sessions))
	}
}

// MaxBatchBytes bounds what a hub sends to a viewer as well; nothing looked at it.
func TestHubMaxBatchBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxBatchBytes: 16 << 10})
		a := playAgent(t, h, "agent")
		for i := uint64(1); i <= 200; i++ {
			b := a.batch("s", "e1", i, i)
			b.Events[0].Data = []byte(`"` + string(make1k()) + `"`)
			a.send(b)
		}
		v := playViewer(t, h, "tab")
		v.send(&WatchPayload{SessionID: "s", WindowEvents: 1000, WindowBytes: 1 << 20})
		most := 0
		for _, p := range v.drain() {
			if b, ok := p.(*EventBatchPayload); ok {
				line, _ := Marshal(b)
				most = max(most, len(line))
			}
		}
		if most > 16<<10 {
			t.Errorf("a batch of %d bytes, at most %d", most, 16<<10)
		}
	})
}

func make1k() []byte {
	b := make([]byte, 1000)
	for i := range b {
		b[i] = 'x'
	}
	return b
}
