package gvstream

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// An agent that answers with more events than a request may still get is refused,
// and nothing of it reaches the viewer (rule 12).
func TestBoundsReplayLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 700)
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 696, 700, 0)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 0, 695)
		for from := uint64(1); from <= 450; from += 90 {
			a.send(answerTo(r, from, from+89, false))
			v.want(replayedTo(r, from, from+89))
		}
		a.refused(answerTo(r, 451, 501, true), &ErrorPayload{Code: codeMalformed}) // 50 are left
		v.wantIdle("nothing of it counts")
		a.send(answerTo(r, 451, 500, true)) // exactly these
		v.want(replayedTo(r, 451, 500))
		v.wantIdle("the rest is asked for")
		r = a.asked("s", "tab", "e1", 500, 695)
		a.send(answerTo(r, 501, 600, false), answerTo(r, 601, 695, true))
		v.want(replayedTo(r, 501, 600), replayedTo(r, 601, 695), v.batch("s", "e1", 696, 700))
	})
}

// The hub holds about 1 MiB of an agent's answer: what comes after that is ignored,
// and asked for again when the viewer has taken what there is (rule 12).
func TestBoundsReplayBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := speakAgent(t, h, "agent")
		a.feed("s", "e1", 1, 60)
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 56, 60, 0)))
		v.wantIdle("the agent is asked")
		large := []byte(`"` + strings.Repeat("x", 100<<10) + `"`)
		var got []uint64
		requests := 0
		for ; len(got) < 55 && requests < 20; requests++ {
			from := uint64(len(got) + 1)
			r := a.asked("s", "tab", "e1", from-1, 55)
			for ; from <= 55; from += 2 { // an agent that never stops
				b := answerTo(r, from, min(from+1, 55), from+1 >= 55)
				for i := range b.Events {
					b.Events[i].Data = large
				}
				a.send(b)
			}
			s, held := h.lookup("s"), 0
			for _, p := range s.cursors[0].pages {
				held += p.bytes
			}
			if held > fetchBytes+maxBatchBytes {
				t.Fatalf("the hub holds %d bytes of one answer", held)
			}
			if s.cursors[0].fetch != nil {
				t.Fatal("the request is still open")
			}
			for p := v.next(); p != nil; p = v.next() {
				switch p := p.(type) {
				case *ReplayBatchPayload:
					for _, e := range p.Events {
						got = append(got, e.Seq)
					}
				case *EventBatchPayload:
					if p.FirstSeq != 56 || p.LastSeq != 60 {
						t.Errorf("live: %d to %d", p.FirstSeq, p.LastSeq)
					}
				default:
					t.Errorf("the viewer got %s", payloadText(p))
				}
			}
		}
		if diff := cmp.Diff(upTo(1, 55), got); diff != "" {
			t.Errorf("replayed: -want +got\n%s", diff)
		}
		if requests != 5 { // 12 events fill a MiB
			t.Errorf("%d requests, want 5", requests)
		}
		if n := h.Stats().StalePayloads; n == 0 {
			t.Error("nothing was ignored")
		}
	})
}

// The MiB is full when it is reached, to the byte.
func TestBoundsReplayBytesExact(t *testing.T) {
	for short, open := range []int{0, 1} { // bytes short of it: requests still open
		synctest.Test(t, func(t *testing.T) {
			h, a := smallHub(t, HubConfig{})
			v := speakViewer(t, h, "tab")
			v.send(v.watch("s", "", 0))
			v.drain()
			r := a.asked("s", "tab", "e1", 0, 15)
			for seq := uint64(1); seq <= 4; seq++ {
				b := answerTo(r, seq, seq, false)
				p, err := newPage(seq, seq, b.Events, nil)
				if err != nil {
					t.Fatal(err)
				}
				fill := fetchBytes/4 - 1 - int(p.slots[0].size) // and a comma
				if seq == 4 {
					fill -= short
				}
				b.Events[0].Data = []byte(`"event ` + strings.Repeat("x", fill) + strconv.Itoa(int(seq)) + `"`)
				a.send(b)
			}
			if n := h.lookup("s").open; n != open {
				t.Errorf("%d bytes short of the limit: %d requests open, want %d", short, n, open)
			}
		})
	}
}

// A session that is forgotten while Commit runs takes nothing of what Commit stored,
// and is opened elsewhere when Commit is done.
func TestBoundsForgetDuringCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		entered, release := make(chan bool), make(chan bool)
		h := NewHub(&HubConfig{Commit: func(_ context.Context, _, _ string, items []Item) error {
			if items[0].Event.Seq == 1 {
				entered <- true
				<-release
			}
			return nil
		}})
		a, v := speakAgent(t, h, "agent"), speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0)) // it keeps the session in the hub
		v.want(v.status(SessionStatus{SessionID: "s"}))
		handled, opened := make(chan error, 1), make(chan error, 1)
		go func() { handled <- a.l.Handle(t.Context(), a.batch("s", "e1", 1, 3)) }()
		<-entered
		h.Forget("s")
		go func() { opened <- a.l.Handle(t.Context(), a.status(entryOf("s", "e1", 8, 7, 9))) }()
		synctest.Wait()
		if len(opened) > 0 {
			t.Error("opened while Commit runs")
		}
		close(release)
		if err := <-handled; err != nil {
			t.Errorf("the batch: %v", err)
		}
		if err := <-opened; err != nil {
			t.Errorf("the status: %v", err)
		}
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

// A request has an id that no other link has: a late answer to one of the agent's
// older link is ignored on the newer (rule 4).
func TestBoundsReplayOfOlderLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, old := smallHub(t, HubConfig{})
		v := speakViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)))
		v.wantIdle("the agent is asked")
		late := old.asked("s", "tab", "e1", 0, 15)
		a := speakAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 20, 20)))
		a.want(a.ack("s", "e1", 20))
		v.wantIdle("the agent is asked again")
		r := a.asked("s", "tab", "e1", 0, 15)
		if late.RequestID == r.RequestID {
			t.Errorf("both links have request %s", r.RequestID)
		}
		before := h.Stats().StalePayloads
		a.send(answerTo(late, 1, 9, false))
		a.wantIdle("ignored")
		v.wantIdle("ignored")
		if n := h.Stats().StalePayloads - before; n != 1 {
			t.Errorf("%d stale payloads, want 1", n)
		}
		a.send(answerTo(r, 1, 15, true))
		v.want(replayedTo(r, 1, 15), v.batch("s", "e1", 16, 20))
	})
}

func TestViewerStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		want := ViewerStats{}
		is := func(when string) {
			t.Helper()
			if diff := cmp.Diff(want, v.Stats()); diff != "" {
				t.Fatalf("%s: -want +got\n%s", when, diff)
			}
		}
		is("new")
		v.Watch("r", Position{})
		v.Watch("s", Position{})
		want.Watches = 2
		is("watching")
		h := &speaker{t: t, l: v.Connect(), viewer: "tab"}
		h.want(&HelloPayload{V: 1, Role: roleViewer})
		is("not welcomed")
		h.welcome("l1")
		h.want(h.watch("r", "", 0), h.watch("s", "", 0))
		want.Connected = true
		is("welcomed")
		h.send(h.status(stands("r", "e1", 1, 0, 0), stands("s", "e1", 1, 3, 0)))
		is("told where they stand")
		h.send(h.batch("s", "e1", 1, 2), h.lost("s", "e1", 3, 3, ReasonEvicted))
		want.Items, want.Bytes = 3, 3*itemBytes+2*len(`out"event 1"`)
		is("received")
		h.send(h.batch("s", "e1", 1, 2))
		is("received twice")
		h.send(h.batch("s", "e0", 4, 4), &WelcomePayload{V: 1, Link: "l2"})
		want.StalePayloads = 2
		is("of others")
		h.refused(h.ack("s", "e1", 1), &ErrorPayload{Code: codeUnexpected})
		want.RefusedPayloads = 1
		is("refused")
		for range v.Items(endedContext) {
			break
		}
		is("not dealt with")
		n := 0
		for range v.Items(endedContext) {
			if n++; n == 2 {
				break
			}
		}
		want.Items, want.Bytes = 2, 2*itemBytes+len(`out"event 1"`)
		is("one is dealt with")
		h.send(h.last("s", "e1", 4), &ErrorPayload{Code: codeForbidden, SessionID: "r"})
		h.want(h.stop("s"), h.stop("r"))
		want.Items, want.Bytes = 5, 5*itemBytes+2*len(`out"event 1"`)
		is("both have ended")
		v.Unwatch("s")
		want.Watches, want.Items, want.Bytes = 1, 1, itemBytes
		is("unwatched")
		h.l.Close()
		want.Connected = false
		is("disconnected")
		v.Close()
		is("closed")
	})
}
