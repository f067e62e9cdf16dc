package gvstream

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Rule 12: where an answer ends, just before it and at it. The log's head is 10.
func TestReplayCursor(t *testing.T) {
	const head = 10
	request := func(after, until uint64, limit int) ReplayRequestPayload {
		return ReplayRequestPayload{AfterSeq: after, UntilSeq: until, Limit: limit}
	}
	for _, test := range []struct {
		name    string
		request ReplayRequestPayload
		until   uint64 // the latest number at which it ends
		page    int    // events that the next page of at most 4 may have

		last   uint64 // of the page that is sent
		events int
		bytes  int
		done   bool
	}{
		{"up to the head if it does not say", request(3, 0, 0), head, 4, 9, 4, 0, false},
		{"at the head", request(3, 0, 0), head, 4, head, 4, 0, true},
		{"up to the head if it says more", request(3, head+1, 0), head, 4, head, 4, 0, true},
		{"before its ceiling", request(3, 8, 0), 8, 4, 7, 4, 0, false},
		{"at its ceiling", request(3, 8, 0), 8, 4, 8, 4, 0, true},
		{"nothing to send", request(head, 0, 0), head, 4, head, 0, 0, true},
		{"without a limit its bytes don't matter", request(3, 8, 0), 8, 4, 7, 4, math.MaxInt - 1, false},
		{"before its limit", request(3, 8, 3), 8, 3, 5, 2, 0, false},
		{"at its limit", request(3, 8, 3), 8, 3, 6, 3, 0, true},
		{"gaps don't count against it", request(3, 8, 3), 8, 3, 7, 2, 0, false},
		{"with a limit, before its bytes", request(3, 8, 3), 8, 3, 5, 2, maxReplayBytes - 1, false},
		{"with a limit, at its bytes", request(3, 8, 3), 8, 3, 5, 2, maxReplayBytes, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newReplayCursor(&test.request, head)
			want := span{test.request.AfterSeq, test.until, test.page, pageBytes, anySize, 0}
			if next := c.span(4); next != want {
				t.Fatalf("the next page is %+v, want %+v", next, want)
			}
			if done := c.advance(test.last, test.events, test.bytes); done != test.done {
				t.Errorf("done is %v", done)
			}
			if next := c.span(4); next.after != test.last {
				t.Errorf("it goes on after %d, want %d", next.after, test.last)
			}
		})
	}
}

// TestStreamerReplay: more than 250 events for one viewer come in batches of 100, each
// naming the viewer (rule 12).
func TestStreamerReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 1000)
		publishN(t, st, "s", 260)
		hub.want(agentBatch("s", 1, 256, 260), agentBatch("s", 257, 260, 260))
		hub.acks("s", 260)

		one := &ReplayRequestPayload{SessionID: "s", ViewerID: "tab-1", RequestID: "r1"}
		hub.send(one)
		hub.want(
			agentPage(one, 1, 100, 260, 1, false),
			agentPage(one, 101, 200, 260, 1, false),
			agentPage(one, 201, 260, 260, 1, true),
		)
		hub.wantIdle("the request is answered")

		// Two viewers, and what is published meanwhile, take turns (rule 7).
		two := &ReplayRequestPayload{SessionID: "s", ViewerID: "tab-2", RequestID: "r2", AfterSeq: 150}
		one.RequestID = "r3"
		hub.send(one, two)
		publishN(t, st, "s", 1)
		hub.want(
			agentPage(one, 1, 100, 260, 1, false),
			agentPage(two, 151, 250, 260, 1, false),
			agentBatch("s", 261, 261, 261),
			agentPage(one, 101, 200, 260, 1, false),
			agentPage(two, 251, 260, 260, 1, true),
			agentPage(one, 201, 260, 260, 1, true),
		)
		hub.wantIdle("both requests are answered")
	})
}

// TestStreamerReplayBounds: the ranges that a request may name, and the answers (rule
// 12).
func TestStreamerReplayBounds(t *testing.T) {
	type pages [][2]uint64 // first and last of each
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{ReplayEvents: 230})
		hub := playHub(t, st)
		publishN(t, st, "s", 250)
		hub.want(agentBatch("s", 1, 250, 250))
		hub.acks("s", 250)
		for n, test := range []struct {
			after, until uint64
			limit        int
			pages        pages
		}{
			{0, 0, 0, pages{{21, 120}, {121, 220}, {221, 250}}}, // except for the gap, which is in the first
			{0, 20, 0, pages{{21, 20}}},
			{0, 10, 0, pages{{21, 10}}},
			{19, 0, 1, pages{{21, 21}}},
			{20, 0, 0, pages{{21, 120}, {121, 220}, {221, 250}}},
			{21, 0, 0, pages{{22, 121}, {122, 221}, {222, 250}}},
			{100, 0, 99, pages{{101, 199}}},
			{100, 0, 100, pages{{101, 200}}},
			{100, 0, 101, pages{{101, 200}, {201, 201}}},
			{100, 199, 500, pages{{101, 199}}},
			{100, 200, 500, pages{{101, 200}}},
			{100, 201, 500, pages{{101, 200}, {201, 201}}},
			{100, 201, 1, pages{{101, 101}}},
			{100, 9999, 500, pages{{101, 200}, {201, 250}}}, // clipped to the head
			{249, 0, 0, pages{{250, 250}}},
			{250, 0, 0, pages{{251, 250}}}, // nothing to send: one empty batch
			{250, 9999, 7, pages{{251, 250}}},
			{100, 100, 0, pages{{101, 100}}},
		} {
			req := &ReplayRequestPayload{
				SessionID: "s", ViewerID: "v", RequestID: fmt.Sprint("r", n), AfterSeq: test.after, UntilSeq: test.until, Limit: test.limit,
			}
			hub.send(req)
			until := uint64(250)
			if test.until > 0 {
				until = min(until, test.until)
			}
			for i, p := range test.pages {
				want := agentPage(req, p[0], p[1], until, 21, i == len(test.pages)-1)
				if i == 0 && test.after < 20 { // older than the log: declared, and clipped
					want.FirstSeq = test.after + 1
					want.LastSeq = max(p[1], min(20, until))
					want.Gaps = []Gap{{test.after + 1, min(20, until), ReasonEvicted}}
				}
				hub.want(want)
			}
			hub.wantIdle("the request is answered")
		}
	})
}

// TestStreamerReplayGaps: gaps in a replay are clipped to what was asked (rule 12).
func TestStreamerReplayGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingEvents: 5})
		publishN(t, st, "s", 15) // 1 to 10 are a gap
		hub := playHub(t, st)
		hub.wantStatus("s")
		gap := Gap{1, 10, ReasonDropped}
		hub.want(agentBatch("s", 1, 15, 15, gap))
		for i, test := range []struct {
			after, until uint64
			gap          []Gap
		}{
			{0, 15, []Gap{gap}},
			{4, 15, []Gap{{5, 10, ReasonDropped}}},
			{0, 4, []Gap{{1, 4, ReasonDropped}}},
			{3, 4, []Gap{{4, 4, ReasonDropped}}},
			{9, 11, []Gap{{10, 10, ReasonDropped}}},
			{10, 12, nil},
		} {
			req := &ReplayRequestPayload{SessionID: "s", RequestID: fmt.Sprint("r", i), AfterSeq: test.after, UntilSeq: test.until}
			hub.send(req) // pending events can be replayed, too
			hub.want(agentPage(req, test.after+1, test.until, test.until, 1, true, test.gap...))
		}
		hub.wantIdle("all are answered")
	})
}

// TestStreamerReplayRefused: a request that can't be answered is refused, with its id
// and the viewer's (rule 12).
func TestStreamerReplayRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, hub := ackedStreamer(t, nil, 3)
		epoch := stats(t, st, "s").Epoch
		for _, test := range []struct {
			req  ReplayRequestPayload
			want ErrorPayload
		}{
			{ReplayRequestPayload{SessionID: "s", AfterSeq: 4}, ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: epoch, Seq: 3}},
			{ReplayRequestPayload{SessionID: "s", AfterSeq: MaxSeq}, ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: epoch, Seq: 3}},
			{ReplayRequestPayload{SessionID: "s", Epoch: "other", AfterSeq: 1}, ErrorPayload{Code: CodeStaleEpoch, SessionID: "s", Epoch: epoch}},
			{ReplayRequestPayload{SessionID: "t", Epoch: "other"}, ErrorPayload{Code: CodeUnknownSession, SessionID: "t"}},
		} {
			test.req.ViewerID, test.req.RequestID = "tab-1", "r1"
			test.want.ViewerID, test.want.RequestID = "tab-1", "r1"
			hub.refused(&test.req, &test.want)
			hub.wantIdle("refused once")
		}
		req := &ReplayRequestPayload{SessionID: "s", RequestID: "r2"} // for the hub itself, in the current epoch
		if err := hub.link.Handle(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		hub.want(agentPage(req, 1, 3, 3, 1, true))
	})
}

// TestStreamerReplayBusy: a session answers up to MaxReplays requests at a time (rule 12).
func TestStreamerReplayBusy(t *testing.T) {
	for _, test := range []struct{ limit, open int }{{-1, 0}, {1, 1}, {3, 3}, {0, 8}} {
		t.Run(fmt.Sprint(test.limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, hub := ackedStreamer(t, &StreamerConfig{MaxReplays: test.limit}, 2)
				publishAcked(t, hub, "other", 1)
				var open []*ReplayRequestPayload
				for i := range test.open {
					req := &ReplayRequestPayload{SessionID: "s", ViewerID: fmt.Sprint("v", i), RequestID: fmt.Sprint("r", i)}
					hub.send(req, req) // twice is once
					open = append(open, req)
				}
				busy := &ReplayRequestPayload{SessionID: "s", ViewerID: "v", RequestID: "more"}
				hub.refused(busy, &ErrorPayload{Code: CodeReplayBusy, Retryable: test.open > 0, SessionID: "s", ViewerID: "v", RequestID: "more"})
				if test.open == 0 {
					return
				}
				elsewhere := &ReplayRequestPayload{SessionID: "other", ViewerID: "v", RequestID: "elsewhere"}
				hub.send(elsewhere)
				hub.want(agentPage(open[0], 1, 2, 2, 1, true))
				hub.send(busy) // one is done, so there is room
				for _, req := range open[1:] {
					hub.want(agentPage(req, 1, 2, 2, 1, true))
				}
				hub.want(agentPage(elsewhere, 1, 1, 1, 1, true), agentPage(busy, 1, 2, 2, 1, true))
				hub.wantIdle("all are answered")

				hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "cut"})
				hub = reopenHub(t, st, map[string]uint64{"s": 2, "other": 1})
				hub.wantIdle("requests end with their link")
			})
		})
	}
}

// TestStreamerNoReplays: an agent that answers no replays refuses each request
// permanently (rule 12).
func TestStreamerNoReplays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		st := NewStreamer(&StreamerConfig{MaxReplays: -1})
		for range 20 {
			st.Publish(t.Context(), "s", Event{})
		}
		a, b := st.Connect(), h.ConnectAgent("agent")
		v := NewViewer(nil)
		v.Watch("s", Position{})
		c, d := v.Connect(), h.ConnectViewer("tab")
		for range 3600 {
			carryAll(t, a, b)
			carryAll(t, c, d)
			pass(time.Second)
		}
		n := 0
		for range v.Items(endedContext) {
			n++
		}
		if n == 0 {
			t.Errorf("nothing in an hour, not even a gap")
		}
	})
}

// TestStreamerReplayBig: an answer to a request with a limit ends after about 1 MiB,
// and its batches stay within 256 KiB (rule 12).
func TestStreamerReplayBig(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		for range 20 {
			if _, err := st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 75<<10)}); err != nil {
				t.Fatal(err)
			}
		}
		for p := hub.next(); p != nil; p = hub.next() {
			hub.acks("s", p.(*EventBatchPayload).LastSeq)
		}
		for _, test := range []struct {
			limit int
			last  uint64
		}{{500, 12}, {0, 20}} {
			hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "r", Limit: test.limit})
			next := uint64(1)
			for done := false; !done; {
				p := hub.next()
				b := p.(*ReplayBatchPayload)
				if b.FirstSeq != next || len(b.Events) != 2 {
					t.Errorf("limit %d: batch of %d to %d after %d", test.limit, b.FirstSeq, b.LastSeq, next-1)
				}
				next, done = b.LastSeq+1, b.Done
			}
			if next != test.last+1 {
				t.Errorf("limit %d: done at %d, want %d", test.limit, next-1, test.last)
			}
		}
	})
}

// TestStreamerReplayBytesExact: an answer to a request with a limit ends where it has
// reached 1 MiB, to the byte.
func TestStreamerReplayBytesExact(t *testing.T) {
	t.Parallel()
	for short, last := range []uint64{4, 5} { // bytes short of it: the last number
		synctest.Test(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			for seq := uint64(1); seq <= 6; seq++ {
				ev := numberedEvent(seq)
				ev.Time, ev.Data = time.Now().UTC(), json.RawMessage(`""`)
				scratch := NewStreamer(nil)
				if _, err := scratch.Publish(t.Context(), "s", ev); err != nil {
					t.Fatal(err)
				}
				fill := maxReplayBytes/4 - 1 - scratch.Stats().Bytes // and a comma
				if seq == 4 {
					fill -= short
				}
				ev.Data = json.RawMessage(`"` + strings.Repeat("x", fill) + `"`)
				if _, err := st.Publish(t.Context(), "s", ev); err != nil {
					t.Fatal(err)
				}
			}
			for p := hub.next(); p != nil; p = hub.next() {
				hub.acks("s", p.(*EventBatchPayload).LastSeq)
			}
			hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "r", Limit: 500})
			for seq := uint64(1); seq <= last; seq++ {
				p := hub.next()
				if b := p.(*ReplayBatchPayload); b.FirstSeq != seq || b.LastSeq != seq || b.Done != (seq == last) {
					t.Errorf("%d bytes short: %d to %d, done %v, want %d alone", short, b.FirstSeq, b.LastSeq, b.Done, seq)
				}
			}
			hub.wantIdle("the answer has ended")
		})
	}
}

// TestStreamerReplayAcrossRenew: a replay of an older life ends with that life.
func TestStreamerReplayAcrossRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, hub := ackedStreamer(t, nil, 3)
		hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "r"})
		if err := st.Renew("s"); err != nil {
			t.Fatal(err)
		}
		hub.wantIdle("the replay ended with its life")
	})
}

// TestStreamerReplayGivenUpWhileSent: a viewer's new request replaces its older one.
// The older one's last batch read whether it was done while others could write that
// (rule 12): the race detector sees it, and a batch in the middle could have said done.
func TestStreamerReplayGivenUpWhileSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		st := NewStreamer(nil)
		publishN(t, st, "s", 300)
		hub := playHub(t, st)
		var sender sync.WaitGroup
		sender.Go(func() {
			for err := error(nil); err == nil; {
				_, err = hub.link.NextFrame(ctx, nil)
			}
		})
		for i := range 3000 {
			r := &ReplayRequestPayload{SessionID: "s", ViewerID: "tab", RequestID: fmt.Sprint(i)}
			if err := hub.link.Handle(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		sender.Wait()
	})
}

// The cost of replaying a page of 100 events, by its depth in the log.
func BenchmarkReplayPage(b *testing.B) {
	for _, depth := range []uint64{0, 500, 900} {
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			st, now := NewStreamer(nil), time.Now()
			al := benchLink(b, st, now)
			for range 1000 {
				if _, err := st.Publish(b.Context(), "s", benchEvent); err != nil {
					b.Fatal(err)
				}
			}
			ackAll(b, al, now)
			ask := &ReplayRequestPayload{SessionID: "s", RequestID: "r", AfterSeq: depth, Limit: 100}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := al.handle(endedContext, now, ask); err != nil {
					b.Fatal(err)
				}
				p, _, _ := al.next(now)
				if p, ok := p.(*ReplayBatchPayload); !ok || len(p.Events) != 100 || p.FirstSeq != depth+1 {
					b.Fatalf("got %s", payloadText(p))
				}
			}
		})
	}
}
