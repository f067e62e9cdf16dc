package gvstream

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// requests is how many replay requests of the session are open.
func (s *hubSession) requests() (n int) {
	for _, f := range s.fetches {
		if f.open {
			n++
		}
	}
	return n
}

// withoutLog has a viewer watch a session of which the hub keeps nothing.
func withoutLog(t *testing.T, events uint64) (a, v *peer) {
	h := NewHub(&HubConfig{LogEvents: -1})
	a = playAgent(t, h, "agent")
	a.feed("s", "e1", 1, events)
	v = playViewer(t, h, "tab")
	v.send(v.watch("s", "", 0))
	v.drain()
	return a, v
}

// smallHub keeps five events of a session; s has 20.
func smallHub(t *testing.T, cfg HubConfig) (*Hub, *peer) {
	cfg.LogEvents = 5
	h := NewHub(&cfg)
	a := playAgent(t, h, "agent")
	a.feed("s", "e1", 1, 20)
	return h, a
}

// playReader plays a viewer that watches s from the start, and has received the status
// of s.
func playReader(t *testing.T, h *Hub, viewerID string) *peer {
	t.Helper()
	v := playViewer(t, h, viewerID)
	v.send(v.watch("s", "", 0))
	v.drain()
	return v
}

// smallReplay is a smallHub with a reader, for which the hub has asked the agent for
// what it does not keep.
func smallReplay(t *testing.T, cfg HubConfig) (h *Hub, a, v *peer, r *ReplayRequestPayload) {
	t.Helper()
	h, a = smallHub(t, cfg)
	v = playReader(t, h, "tab")
	return h, a, v, a.asked("s", "tab", "e1", 0, 15)
}

// The MiB is full when it is reached, to the byte.
func TestHubReplayBytesExact(t *testing.T) {
	for short, open := range []int{0, 1} { // bytes short of it: requests still open
		synctest.Test(t, func(t *testing.T) {
			h, a, _, r := smallReplay(t, HubConfig{})
			for seq := uint64(1); seq <= 4; seq++ {
				b := answerTo(r, seq, seq, false)
				p, err := newPage(seq, seq, b.Events, nil)
				if err != nil {
					t.Fatal(err)
				}
				fill := maxRequestBytes/4 - 1 - int(p.slots[0].size) // and a comma
				if seq == 4 {
					fill -= short
				}
				b.Events[0].Data = []byte(`"event ` + strings.Repeat("x", fill) + strconv.Itoa(int(seq)) + `"`)
				a.send(b)
			}
			if n := h.lookup("s").requests(); n != open {
				t.Errorf("%d bytes short of the limit: %d requests open, want %d", short, n, open)
			}
		})
	}
}

// An agent's answer may be no more than what was asked for.
func TestHubRefusesReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		b := playAgent(t, h, "b")
		malformed := &ErrorPayload{Code: CodeMalformed}
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
		b.send(answerTo(r, 1, 15, true)) // another link, another agent's request (rule 4)
		unknown := *r
		unknown.RequestID = "unheard-of"
		a.send(answerTo(&unknown, 1, 15, true))
		v.wantIdle("nothing of it counts")
		a.send(answerTo(r, 1, 15, true))
		v.want(headed(v.batch("s", "e1", 1, 15), 20), v.batch("s", "e1", 16, 20))
		if n := h.Stats().StalePayloads; n != 2 {
			t.Errorf("%d stale frames, want 2", n)
		}
	})
}

// An agent with nothing to send says done at once.
func TestHubReplayOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, v, r := smallReplay(t, HubConfig{})
		a.send(answerTo(r, 1, 0, true))
		v.want(headed(v.lost("s", "e1", 1, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: while the agent is away the cursor waits, and then goes on without the
// events.
func TestHubReplayAgentAway(t *testing.T) {
	for name, test := range map[string]struct{ cfg, wait time.Duration }{
		"default": {0, 10 * time.Second}, "short": {time.Second, time.Second}, "not at all": {-1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, a := smallHub(t, HubConfig{ReplayWait: test.cfg})
				a.link.Close()
				v := playViewer(t, h, "tab")
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

// A hub that keeps no events serves everything from the agent.
func TestHubWithoutLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: -1})
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 20)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 21, 20, 0)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 0, 20)
		a.send(answerTo(r, 1, 20, true))
		v.want(v.batch("s", "e1", 1, 20))
		v.wantIdle("all is there")
	})
}

// TestHubReplayTwice: an answer to a replay request that arrives twice is a duplicate.
// Near the end of a request its events counted a second time, and the hub refused an
// honest agent as malformed (rule 12).
func TestHubReplayTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: -1})
		h.sizes.replay = 3
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 8)
		v := playReader(t, h, "tab")
		r, ok := a.next().(*ReplayRequestPayload)
		if !ok || r.Limit != 3 {
			t.Fatalf("asked %+v", r)
		}
		first := answerTo(r, 1, 2, false)
		a.send(first, first, answerTo(r, 3, 3, true))
		a.wantIdle("nothing is refused")
		v.want(headed(v.batch("s", "e1", 1, 3), 8))
	})
}

// TestHubReplayFrameTwice: a replay batch that arrives in a frame for the second time
// has no new event left. Copying what was left out of the frame panicked.
func TestHubReplayFrameTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, v := withoutLog(t, 4)
		r := a.asked("s", "tab", "e1", 0, 4)
		frame, err := Marshal(answerTo(r, 1, 2, false))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.link.HandleFrame(t.Context(), frame); err != nil {
				t.Error(err)
			}
		}
		a.send(answerTo(r, 3, 4, true))
		v.want(v.batch("s", "e1", 1, 4))
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
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "e1", 13))
		v.drain()
		r := a.asked("s", "tab", "e1", 13, 15)
		p := answerTo(r, 14, 15, true)
		p.Events[1].Type = "larger"
		a.send(p)
		v.want(headed(v.batch("s", "e1", 14, 15, Gap{15, 15, ReasonRejected}), 20), v.batch("s", "e1", 16, 20))
	})
}

// TestHubReplayTooLarge: a replayed event has the same limit as any other.
func TestHubReplayTooLarge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxEventBytes: 1000})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.next()
		v.next()
		r := a.asked("s", "tab", "e1", 0, 15)
		b := answerTo(r, 1, 1, true)
		b.Events[0].Data, b.Events[0].Bytes = nil, []byte(strings.Repeat("x", 3<<20))
		a.link.Handle(t.Context(), b)
		for p := v.next(); p != nil; p = v.next() {
			out, err := Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if len(out) > maxLine {
				t.Fatalf("a %s of %d bytes for the viewer: Lines ends the link with ErrTooLarge; MaxEventBytes is 1000", p.payloadType(), len(out))
			}
		}
	})
}

// An agent's answer with as many gaps as it may have, and events that the hub
// refuses, became a batch with more gaps than one may have: the viewer refused it
// and asked for ever.
func TestReplayGapsOfRefusedEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxEventBytes: 1000, LogEvents: 5})
		a.feed("s", "e1", 21, 700)
		v := playReader(t, h, "tab")
		r, ok := a.next().(*ReplayRequestPayload)
		if !ok {
			t.Fatal("no request")
		}
		b := answerTo(r, 1, 0, true)
		large := json.RawMessage(`"` + strings.Repeat("x", 1000) + `"`)
		for seq := uint64(1); seq <= 600; seq++ {
			if seq%6 == 0 {
				b.Events = append(b.Events, Event{Seq: seq, Data: large})
			} else {
				b.Gaps = append(b.Gaps, Gap{seq, seq, Reason("r" + fmt.Sprint(seq%2))})
			}
		}
		b.LastSeq = 600
		a.send(b)
		next := uint64(1)
		for p := v.next(); p != nil; p = v.next() {
			if err := p.check(); err != nil {
				t.Fatalf("the hub said what no viewer takes: %v", err)
			}
			if b, ok := p.(*EventBatchPayload); ok && b.LastSeq <= 600 {
				if b.FirstSeq != next {
					t.Errorf("%d follows %d", b.FirstSeq, next-1)
				}
				next = b.LastSeq + 1
			}
		}
		if next != 601 {
			t.Errorf("the viewer got up to %d", next-1)
		}
	})
}

// A request that a viewer gives up while its agent's link takes it is either given up
// or sent. The race detector is what checks.
func TestHubFetchAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		var both sync.WaitGroup
		both.Go(func() {
			for range 100 {
				for range 3 {
					a.link.Next(endedContext)
				}
				pass(time.Second)
			}
		})
		both.Go(func() {
			for range 100 {
				v.link.Handle(t.Context(), v.watch("s", "", 0))
				for range 3 {
					v.link.Next(endedContext)
				}
				pass(time.Second)
			}
		})
		both.Wait()
	})
}

// Rule 12: the hub asks the agent for what it no longer has, and passes on what comes.
func TestHubReplays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v, other := playViewer(t, h, "tab"), playViewer(t, h, "other")
		other.send(other.watch("s", "e1", 20))
		other.want(other.status(stands("s", "e1", 16, 20, 20)))
		v.send(v.watch("s", "e1", 2))
		v.want(v.status(stands("s", "e1", 16, 20, 2)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 2, 15)
		a.send(answerTo(r, 3, 9, false))
		v.want(headed(v.batch("s", "e1", 3, 9), 20))
		v.wantIdle("more is to come")
		a.send(answerTo(r, 3, 9, false))  // twice
		a.send(answerTo(r, 8, 12, false)) // partly known
		v.want(headed(v.batch("s", "e1", 10, 12), 20))
		a.send(a.batch("s", "e1", 21, 21)) // meanwhile the log moves on
		tail := answerTo(r, 13, 13, true)
		tail.LastSeq, tail.Gaps = 15, []Gap{{14, 15, ReasonDropped}}
		a.send(tail)
		v.want(headed(v.batch("s", "e1", 13, 15, Gap{14, 15, ReasonDropped}), 21))
		v.wantIdle("16 is older than the log by now")
		r2 := a.asked("s", "tab", "e1", 15, 16)
		pass(ackDelay)
		a.want(a.ack("s", "e1", 21))
		a.send(answerTo(r2, 16, 16, true))
		v.want(headed(v.batch("s", "e1", 16, 16), 21), v.batch("s", "e1", 17, 21))
		a.send(answerTo(r, 3, 9, false), answerTo(r2, 16, 16, true)) // to requests that are done
		v.wantIdle("all is there")
		other.want(other.batch("s", "e1", 21, 21))
		other.wantIdle("a replay is for those that need it")
		a.wantIdle("nothing is asked")
		if n := h.Stats().StalePayloads; n != 2 {
			t.Errorf("%d stale frames, want 2", n)
		}
	})
}

// Rule 12: at most 500 events are asked for at a time, and more when a viewer has taken them.
// An agent whose answer exceeds what is left of a request is refused, and nothing of it reaches
// the viewer.
func TestHubReplaysInPieces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		h.sizes.first = maxBatchBytes
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 700)
		v := playReader(t, h, "tab")
		r := a.asked("s", "tab", "e1", 0, 695)
		for from := uint64(1); from <= 450; from += 90 {
			a.send(answerTo(r, from, from+89, false))
		}
		a.refused(answerTo(r, 451, 501, true), &ErrorPayload{Code: CodeMalformed}) // 50 are left
		a.send(answerTo(r, 451, 500, true))                                        // exactly these
		v.want(headed(v.batch("s", "e1", 1, 256), 700))
		a.wantIdle("the viewer has not taken what there is")
		v.want(headed(v.batch("s", "e1", 257, 500), 700))
		v.wantIdle("more is asked for")
		r = a.asked("s", "tab", "e1", 500, 695)
		a.send(answerTo(r, 501, 600, false), answerTo(r, 601, 695, true))
		v.want(headed(v.batch("s", "e1", 501, 695), 700), v.batch("s", "e1", 696, 700))
	})
}

// The hub holds about 1 MiB of an agent's answer: the rest is ignored, and requested
// again when the viewer has taken what the hub holds (rule 12).
func TestHubReplayBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 60)
		v := playReader(t, h, "tab")
		large := []byte(`"` + strings.Repeat("x", 100<<10) + `"`)
		s := h.lookup("s")
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
			if held := s.cursors[0].fetch.log.bytes; held > maxRequestBytes+maxBatchBytes {
				t.Fatalf("the hub holds %d bytes of one answer", held)
			}
			if s.requests() != 0 {
				t.Fatal("the request is still open")
			}
			for _, p := range v.drain() {
				b := p.(*EventBatchPayload)
				for _, e := range b.Events {
					if e.Seq <= 55 {
						got = append(got, e.Seq)
					}
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

// Rule 12: what several viewers need is asked for once, in the name of the first. One that comes
// when the others have got it finds it for a second.
func TestHubReplayShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v1, v2, v3 := playReader(t, h, "v1"), playReader(t, h, "v2"), playViewer(t, h, "v3")
		r := a.asked("s", "v1", "e1", 0, 15)
		a.wantIdle("one request is for both")
		v3.send(v3.watch("s", "e1", 4)) // in the middle of it
		v3.drain()
		a.wantIdle("it is for all three")
		v1.link.Close() // in whose name it was
		a.send(answerTo(r, 1, 10, false))
		v2.want(headed(v2.batch("s", "e1", 1, 10), 20))
		v3.want(headed(v3.batch("s", "e1", 5, 10), 20))
		a.send(answerTo(r, 11, 15, true))
		v2.want(headed(v2.batch("s", "e1", 11, 15), 20), v2.batch("s", "e1", 16, 20))
		v3.want(headed(v3.batch("s", "e1", 11, 15), 20), v3.batch("s", "e1", 16, 20))

		a.wantIdle("all have it")
		pass(time.Second - 1)
		a.wantIdle("it stays for a second")
		v4 := playReader(t, h, "v4")
		a.wantIdle("it is there")
		v4.drain()
		v4.send(v4.watch("s", "", 0)) // again, and takes nothing
		v4.next()
		a.wantIdle("it is there")
		pass(time.Second - 1)
		v4.send(v4.watch("s", "", 0))
		v4.wantTypes("status", "event_batch", "event_batch")
		a.wantIdle("it was read")
		pass(time.Second)
		a.wantIdle("it goes")
		if n := len(h.lookup("s").fetches); n != 0 {
			t.Fatalf("%d answers are held for nobody", n)
		}
		v4.send(v4.watch("s", "", 0))
		v4.drain()
		a.asked("s", "v4", "e1", 0, 15)
	})
}

// Rule 12: what is asked for ends where another request begins.
func TestHubReplayBeforeAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v1, v2, v3 := playViewer(t, h, "v1"), playViewer(t, h, "v2"), playViewer(t, h, "v3")
		v1.send(v1.watch("s", "e1", 9))
		v1.drain()
		r1 := a.asked("s", "v1", "e1", 9, 15)
		v2.send(v2.watch("s", "", 0))
		v2.drain()
		r2 := a.asked("s", "v2", "e1", 0, 9)
		v3.send(v3.watch("s", "e1", 8))
		v3.drain()
		a.wantIdle("the second request is for it")
		a.send(answerTo(r2, 1, 9, true))
		v2.want(headed(v2.batch("s", "e1", 1, 9), 20))
		v3.want(headed(v3.batch("s", "e1", 9, 9), 20))
		v2.wantIdle("the first request is not answered")
		a.send(answerTo(r1, 10, 15, true))
		v2.want(headed(v2.batch("s", "e1", 10, 15), 20), v2.batch("s", "e1", 16, 20))
		v1.wantTypes("event_batch", "event_batch")
		v3.wantTypes("event_batch", "event_batch")
		a.wantIdle("all have it")
	})
}

// Rule 12: at most 8 requests are open for a session; others wait in turn. A place is free when
// the agent has answered, whatever becomes of the viewers.
func TestHubReplayPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		var vs []*peer
		var rs []*ReplayRequestPayload
		for i := range uint64(11) { // each needs a number that no other needs
			v := playViewer(t, h, fmt.Sprint("tab", i))
			v.send(v.watch("s", "e1", 14-i))
			v.drain()
			vs = append(vs, v)
			if i < 8 {
				rs = append(rs, a.asked("s", v.viewer, "e1", 14-i, 15-i))
			}
		}
		a.wantIdle("eight are open")
		a.send(answerTo(rs[5], 10, 10, true))
		r8 := a.asked("s", "tab8", "e1", 6, 7)
		a.wantIdle("eight are open")
		vs[9].link.Close()                   // one that waits may leave
		vs[2].send(vs[2].stop("s"))          // and so may one that has a request open
		a.wantIdle("the agent is answering") // what nobody needs
		a.send(answerTo(rs[2], 13, 13, true))
		r10 := a.asked("s", "tab10", "e1", 4, 6)
		for _, v := range vs {
			v.link.Close()
		}
		for _, r := range []*ReplayRequestPayload{rs[0], rs[1], rs[3], rs[4], rs[6], rs[7], r8, r10} {
			a.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
		}
		a.wantIdle("nobody is there")
		pass(time.Second)
		a.wantIdle("nobody is there")
		if s := h.lookup("s"); len(s.fetches) != 0 || s.asking.Len() != 0 || len(s.cursors) != 0 {
			t.Errorf("%d fetches, %d asking, %d cursors when all have left", len(s.fetches), s.asking.Len(), len(s.cursors))
		}
		if n := len(h.agents["agent"].requests); n != 0 {
			t.Errorf("%d requests stay", n)
		}
	})
}

// A viewer whose link is stuck keeps no other waiting: what it asked for is answered, and the
// next is asked for, without the help of its link.
func TestHubReplayStuckViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		v1, stuck, v3 := playViewer(t, h, "v1"), playViewer(t, h, "stuck"), playViewer(t, h, "v3")
		v1.send(v1.watch("s", "e1", 13))
		v1.drain()
		stuck.send(stuck.watch("s", "e1", 11))
		stuck.drain() // and takes nothing from here on
		v3.send(v3.watch("s", "e1", 9))
		v3.drain()
		r := a.asked("s", "v1", "e1", 13, 15)
		a.wantIdle("one is open")
		a.send(answerTo(r, 14, 15, true))
		r = a.asked("s", "stuck", "e1", 11, 13)
		a.send(answerTo(r, 12, 13, true))
		r = a.asked("s", "v3", "e1", 9, 11)
		a.send(answerTo(r, 10, 11, true))
		v3.want(headed(v3.batch("s", "e1", 10, 11), 20), headed(v3.batch("s", "e1", 12, 13), 20),
			headed(v3.batch("s", "e1", 14, 15), 20), v3.batch("s", "e1", 16, 20))
	})
}

// L10: a part of an answer that is lost is asked for again after a second, and no more than once
// in a second, under the same id.
func TestHubReplayHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, v, r := smallReplay(t, HubConfig{})
		a.send(answerTo(r, 1, 5, false), answerTo(r, 11, 15, true))
		v.want(headed(v.batch("s", "e1", 1, 5), 20))
		pass(time.Second - 1)
		a.send(answerTo(r, 12, 15, true))
		a.wantIdle("a second has not passed")
		pass(1)
		a.askedAgain(r, 5, 495)
		a.send(answerTo(r, 9, 15, true))
		a.wantIdle("once a second")
		a.send(answerTo(r, 6, 8, false))
		v.want(headed(v.batch("s", "e1", 6, 8), 20))
		pass(time.Second)
		a.askedAgain(r, 8, 492)
		a.send(answerTo(r, 9, 15, true))
		v.want(headed(v.batch("s", "e1", 9, 15), 20), v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: a request that brings nothing is asked again after 5 s, if the agent says other things
// meanwhile: on a slow link an answer may take longer, and nothing comes before it.
func TestHubReplayUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, v, r := smallReplay(t, HubConfig{ReplayWait: time.Hour})
		a.send(answerTo(r, 1, 3, false))
		v.drain()
		pass(replayLost - 1)
		a.send(a.status())
		a.want(a.status())
		a.wantIdle("5 s have not passed")
		pass(time.Minute)
		a.wantIdle("nothing else has come since")
		a.send(a.status())
		a.want(a.status())
		pass(time.Second)
		a.askedAgain(r, 3, 497)
		a.wantIdle("once")
		pass(replayLost - 1)
		a.wantIdle("5 s have not passed")
		a.send(a.status())
		pass(time.Second)
		a.want(a.status())
		a.wantIdle("the status came before")
		a.send(answerTo(r, 4, 15, true))
		v.drain()
		pass(time.Minute)
		a.wantIdle("it was answered")
	})
}

// L10: nothing is asked twice within a second. A request that the agent's link has taken late, when
// the viewer has waited for as long as it does, was asked again at once.
func TestHubReplayTakenLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{ReplayWait: 2 * time.Second})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		pass(2 * time.Second)
		a.send(a.status())
		a.want(a.status())
		r := a.asked("s", "tab", "e1", 0, 15)
		v.wantIdle("the answer may be on its way")
		a.wantIdle("it was asked just now")
		pass(time.Second - 1)
		a.wantIdle("a second has not passed")
		pass(1)
		a.askedAgain(r, 0, 500)
	})
}

// Rule 12: an agent that is busy is asked again after a second; a refusal becomes a gap, for all
// that wait, but for nobody else.
func TestHubReplayRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		other := playReader(t, h, "other")
		busy := &ErrorPayload{Code: CodeReplayBusy, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID, Retryable: true}
		a.send(busy, busy)
		pass(time.Second - 1)
		a.wantIdle("a second has not passed")
		pass(1)
		a.askedAgain(r, 0, 500)
		a.wantIdle("once")
		a.send(answerTo(r, 1, 4, false))
		no := &ErrorPayload{Code: CodeUnknownSession, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID}
		a.send(no, no)
		for _, v := range []*peer{v, other} {
			v.want(headed(v.batch("s", "e1", 1, 4), 20), headed(v.lost("s", "e1", 5, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
		}
	})
}

// Rule 12: an answer that says done, or that has all, ends the request, and what is
// still missing is requested at once.
func TestHubReplayDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		a.send(answerTo(r, 1, 9, true)) // it had more than fits in an answer
		v.want(headed(v.batch("s", "e1", 1, 9), 20))
		v.wantIdle("the agent is asked")
		r = a.asked("s", "tab", "e1", 9, 15)
		a.send(answerTo(r, 10, 14, false))
		if n := h.lookup("s").requests(); n != 1 {
			t.Errorf("%d requests are open, want 1", n)
		}
		a.send(answerTo(r, 15, 15, false)) // all, although it does not say so
		if n := h.lookup("s").requests(); n != 0 {
			t.Errorf("%d requests are open, want none", n)
		}
		v.want(headed(v.batch("s", "e1", 10, 15), 20), v.batch("s", "e1", 16, 20))
	})
}

// L9: an agent that is there and answers nothing is like one that is away. That is remembered
// for its link, until it answers after all.
func TestHubReplaySilent(t *testing.T) {
	unavailable := func(v *peer) {
		v.t.Helper()
		v.want(headed(v.lost("s", "e1", 1, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
	}
	silent := func(t *testing.T) (h *Hub, a *peer, r *ReplayRequestPayload) {
		h, a, v, r := smallReplay(t, HubConfig{})
		pass(10*time.Second - 1)
		a.send(a.status())
		v.wantIdle("10 s have not passed")
		pass(3 * time.Second)
		v.wantIdle("the answer may be on its way")
		a.want(a.status())
		a.askedAgain(r, 0, 500) // after the first 5 s
		pass(5 * time.Second)
		v.wantTypes("status") // the answer may be on its way
		a.send(a.status())
		pass(time.Second)
		unavailable(v)
		a.want(a.status())
		later := playViewer(t, h, "later")
		later.send(later.watch("s", "", 0))
		later.next()
		unavailable(later)
		return h, a, r
	}
	t.Run("answers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, a, r := silent(t)
			pass(time.Hour)
			a.drain()
			a.send(answerTo(r, 1, 3, false)) // an hour later
			v := playViewer(t, h, "v")
			v.send(v.watch("s", "", 0))
			v.next()
			v.want(headed(v.batch("s", "e1", 1, 3), 20))
			v.wantIdle("it is answering")
			a.wantIdle("it is answering")
			a.send(answerTo(r, 4, 15, true))
			v.want(headed(v.batch("s", "e1", 4, 15), 20), v.batch("s", "e1", 16, 20))
		})
	})
	t.Run("comes back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, a, _ := silent(t)
			a.link.Close()
			a = playAgent(t, h, "agent")
			playReader(t, h, "v")
			a.askedFor(1, "s", "v", "e1", 0, 15) // the last link brought nothing
		})
	})
}

// An agent that answers with empty batches, or answers all but one request, or says nothing at
// all, keeps viewers waiting no longer than 2 min.
func TestHubReplayStuckAgent(t *testing.T) {
	for name, say := range map[string]func(a *peer, r *ReplayRequestPayload) Payload{
		"empty answers": func(a *peer, r *ReplayRequestPayload) Payload { return answerTo(r, 1, 0, false) },
		"other things":  func(a *peer, r *ReplayRequestPayload) Payload { return a.status() },
		"nothing":       func(a *peer, r *ReplayRequestPayload) Payload { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, a, v, r := smallReplay(t, HubConfig{})
				start := time.Now()
				for lost := false; !lost; {
					pass(time.Second)
					if p := say(a, r); p != nil {
						a.send(p)
					}
					for _, p := range v.drain() {
						if b, ok := p.(*EventBatchPayload); ok && b.LastSeq == 15 {
							lost = true
						}
					}
				}
				want := 17 * time.Second // the second request is not taken
				if name == "nothing" {
					want = timerMax
				}
				if d := time.Since(start); d < 10*time.Second || d > want {
					t.Errorf("the gap came after %v, want %v", d, want)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		h, a, v, _ := smallReplay(t, HubConfig{})
		other := playViewer(t, h, "other")
		start := time.Now()
		for head := uint64(21); ; head++ {
			a.send(a.batch("s", "e1", head, head))
			other.send(other.watch("s", "e1", head-6)) // the next is just below the log
			other.drain()
			for _, p := range a.drain() {
				if r, ok := p.(*ReplayRequestPayload); ok && r.ViewerID == "other" {
					a.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			if slices.ContainsFunc(v.drain(), func(p Payload) bool { b, ok := p.(*EventBatchPayload); return ok && len(b.Gaps) == 1 }) {
				break
			}
			pass(time.Second)
		}
		if d := time.Since(start); d < timerMax-time.Minute || d > timerMax+10*time.Second {
			t.Errorf("a request that is left out became a gap after %v, want %v", d, timerMax)
		}
	})
}

// Rule 12: an open request is made again on the agent's new link, as soon as that is greeted. What
// came of it stays, for the viewer that has not taken it yet.
func TestHubReplayAgentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, old := smallReplay(t, HubConfig{})
		waits := playViewer(t, h, "waits")
		waits.send(waits.watch("s", "e1", 9))
		waits.drain()
		a.send(answerTo(old, 1, 3, false))
		a.link.Close()
		v.want(headed(v.batch("s", "e1", 1, 3), 20))
		v.wantIdle("the agent may come back")
		waits.wantIdle("the agent may come back")
		pass(9 * time.Second)
		a = playAgent(t, h, "agent")
		r := a.asked("s", "tab", "e1", 3, 15)
		a.send(answerTo(old, 4, 15, true)) // its id means nothing here
		v.wantIdle("the agent is asked")
		pass(5 * time.Second) // the wait is over with its reason
		v.wantIdle("the agent is asked")
		a.send(answerTo(r, 4, 15, true))
		v.want(headed(v.batch("s", "e1", 4, 15), 20), v.batch("s", "e1", 16, 20))
		waits.want(headed(waits.batch("s", "e1", 10, 15), 20), waits.batch("s", "e1", 16, 20))
	})
}

// Cursors that had to wait for others when the agent's link broke go on waiting on the next one,
// and are asked for there in turn.
func TestHubReplayAgentBackInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		var vs []*peer
		for i := range uint64(3) {
			v := playViewer(t, h, fmt.Sprint("tab", i))
			v.send(v.watch("s", "e1", 14-i))
			v.drain()
			vs = append(vs, v)
		}
		a.asked("s", "tab0", "e1", 14, 15)
		for range 2 { // and on the one after that
			a.link.Close()
			for _, v := range vs {
				v.drain()
			}
			a = playAgent(t, h, "agent")
		}
		events := make([]int, len(vs))
		for p := a.next(); p != nil; p = a.next() {
			r := p.(*ReplayRequestPayload)
			a.wantIdle("one at a time")
			a.send(answerTo(r, r.AfterSeq+1, min(r.UntilSeq, r.AfterSeq+uint64(r.Limit)), true))
			for i, v := range vs {
				for _, p := range v.drain() {
					b := p.(*EventBatchPayload)
					if events[i] += len(b.Events); len(b.Gaps) > 0 || b.FirstSeq < 15-uint64(i) {
						t.Errorf("viewer %d got %s", i, payloadText(b))
					}
				}
			}
		}
		for i, n := range events {
			if n != 6+i { // up to 20
				t.Errorf("viewer %d got %d events", i, n)
			}
		}
	})
}

// What came of a request before its link died is the viewer's as long as it reads it, and is gone
// after that.
func TestHubReplayOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		a.send(answerTo(r, 1, 3, false))
		a.link.Close()
		s := h.lookup("s")
		if len(s.fetches) != 1 {
			t.Fatalf("%d fetches while the viewer reads", len(s.fetches))
		}
		v.send(v.stop("s"))
		if len(s.fetches) != 0 {
			t.Errorf("%d fetches when it has left", len(s.fetches))
		}
	})
}

// A request has an id that no other link has: a late answer to a request of the agent's
// older link is ignored on the newer one (rule 4).
func TestHubReplayOfOlderLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _, v, late := smallReplay(t, HubConfig{})
		a := playAgent(t, h, "agent")
		v.wantIdle("it is asked again")
		r := a.askedFor(1, "s", "tab", "e1", 0, 15)
		before := h.Stats().StalePayloads
		a.send(answerTo(late, 1, 9, false))
		a.wantIdle("ignored")
		v.wantIdle("ignored")
		if n := h.Stats().StalePayloads - before; n != 1 {
			t.Errorf("%d stale payloads, want 1", n)
		}
		a.send(answerTo(r, 1, 1, true))
		v.want(headed(v.batch("s", "e1", 1, 1), 20))
		v.wantIdle("more is asked for")
		r = a.askedFor(8, "s", "tab", "e1", 1, 15)
		a.send(answerTo(r, 2, 9, true))
		v.want(headed(v.batch("s", "e1", 2, 9), 20))
		v.wantIdle("more is asked for")
		r = a.askedFor(64, "s", "tab", "e1", 9, 15)
		a.send(answerTo(r, 10, 15, true))
		v.want(headed(v.batch("s", "e1", 10, 15), 20), v.batch("s", "e1", 16, 20))
	})
}

// What was asked for ends with its session's epoch and with its owner: another may not answer for
// them, and viewers are served by what follows.
func TestHubReplayEnds(t *testing.T) {
	t.Run("epoch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, a, v, r := smallReplay(t, HubConfig{MaxReplays: 1})
			other := playViewer(t, h, "other")
			other.send(other.watch("s", "e1", 2))
			other.drain()
			a.send(a.batch("s", "e2", 1, 1))
			a.send(answerTo(r, 1, 15, true))
			for _, v := range []*peer{v, other} {
				v.next()
				if got := v.next(); got.payloadType() != "event_batch" {
					t.Errorf("got %s", payloadText(got))
				}
			}
			if n := h.Stats().StalePayloads; n != 1 {
				t.Errorf("%d stale payloads, want 1", n)
			}
		})
	})
	t.Run("owner", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, a := smallHub(t, HubConfig{MaxReplays: 1, AuthorizeAgent: func(context.Context, string, string, string) error { return nil }})
			v, second := playReader(t, h, "tab"), playViewer(t, h, "second")
			r := a.asked("s", "tab", "e1", 0, 15)
			second.send(second.watch("s", "e1", 2))
			second.drain()
			b := playAgent(t, h, "b")
			b.send(b.status(entryOf("s", "e1", 1, 20, 20)))
			a.send(answerTo(r, 1, 15, true))
			v.wantIdle("the other agent is asked")
			b.want(b.ack("s", "e1", 20))
			b.send(answerTo(b.asked("s", "tab", "e1", 0, 15), 1, 15, true))
			v.want(headed(v.batch("s", "e1", 1, 15), 20), v.batch("s", "e1", 16, 20))
			second.want(headed(second.batch("s", "e1", 3, 15), 20), second.batch("s", "e1", 16, 20))
			if h.awaiting["agent"] != nil {
				t.Error("the hello of the former owner is awaited")
			}
		})
	})
	t.Run("session", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			h, a, v, r := smallReplay(t, HubConfig{})
			v.link.Close()
			h.Forget("s")
			a.send(answerTo(r, 1, 15, true))
			if n := len(h.agents["agent"].requests); n != 0 || h.lookup("s") != nil {
				t.Errorf("%d requests of a session that is gone", n)
			}
		})
	})
}

// Rule 12: a request that could not be made because the agent's link just died is made on its
// next one.
func TestHubReplayAgentJustAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)))
		ha, _ := h.agent("agent")
		a.link.Close()
		s := h.lookup("s")
		s.mu.Lock()
		if s.fetchLocked(time.Now(), s.cursors[0], ha) || len(s.fetches) != 0 {
			t.Error("a request is made on a dead link")
		}
		s.mu.Unlock()
		h.setAgent("agent", ha) // as it is for a moment while the link dies
		v.wantIdle("the link is dead")
		a = playAgent(t, h, "agent")
		a.send(answerTo(a.asked("s", "tab", "e1", 0, 15), 1, 15, true))
		v.drain()
	})
}

// TestHubReplayWaitOfThoseInTurn: cursors that wait for others' requests wait for an absent
// agent no longer than the others (rule 12).
func TestHubReplayWaitOfThoseInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		var vs []*peer
		for i := range uint64(4) {
			v := playViewer(t, h, fmt.Sprint("v", i))
			v.send(v.watch("s", "e1", 14-i))
			v.drain()
			vs = append(vs, v)
		}
		a.link.Close() // the agent is away
		pass(10*time.Second - 1)
		for _, v := range vs {
			v.wantIdle("the agent may come back")
		}
		pass(1)
		for i, v := range vs {
			v.want(headed(v.lost("s", "e1", 15-uint64(i), 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
		}
	})
}

// An agent whose hello does not come is waited for as long as a hello may be lost.
func TestHubReplayAgentNotGreeted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		a.link.Close()
		h.ConnectAgent("agent")
		v := playReader(t, h, "tab")
		pass(maxSilence - 1)
		v.wantTypes("status")
		pass(1)
		v.wantTypes("event_batch", "event_batch")
	})
}

// A hub that may not ask the agent for anything declares a gap, and does not wait for
// ever (L2).
func TestHubReplayNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := smallHub(t, HubConfig{MaxReplays: -1})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)), headed(v.lost("s", "e1", 1, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
	})
}

// TestHubRequestsGivenUp: a request that is given up before it is sent leaves the queue of the
// agent's link, and costs nothing.
func TestHubRequestsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		for i := range uint64(1000) { // the agent's send is blocked meanwhile
			v.send(v.watch("s", "e1", i%15))
			v.drain()
		}
		if n := readyTasks(a.link); n > 16 {
			t.Errorf("%d requests in the queue of the agent's link", n)
		}
		v.send(v.stop("s"))
		a.wantIdle("nobody needs anything")
		if n := len(h.agents["agent"].requests); n != 0 {
			t.Errorf("%d requests stay", n)
		}
	})
}

// TestHubReplaysGivenUp: requests that a viewer gave up keep another waiting for a second at
// most, and the agent is never asked for more than it does at a time.
func TestHubReplaysGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		st := NewStreamer(&StreamerConfig{ReplayEvents: 10000})
		for range 8000 {
			st.Publish(t.Context(), "s", Event{})
		}
		a, b := linked(st, h)
		for st.Stats().PendingEvents > 0 {
			carryAll(t, a, b)
			pass(250 * time.Millisecond)
		}
		epoch := statOf(t, h, "s").Epoch
		evil, honest := playViewer(t, h, "evil"), playViewer(t, h, "honest")
		for i := range uint64(15) {
			evil.send(evil.watch("s", epoch, i*500))
			evil.drain()
			carryOne(t, b, a) // the request goes out
		}
		honest.send(honest.watch("s", epoch, 7600))
		start := time.Now()
		for got := false; !got; pass(time.Second) {
			carryAll(t, a, b, func(p Payload) bool {
				if e, ok := p.(*ErrorPayload); ok {
					t.Errorf("the agent says %s", payloadText(e))
				}
				return false
			})
			for _, p := range honest.drain() {
				b, ok := p.(*EventBatchPayload)
				got = got || ok && b.FirstSeq == 7601
			}
			if time.Since(start) > time.Second {
				t.Fatal("the honest viewer waits for more than a second")
			}
		}
	})
}

// A viewer that kept repeating its watch, each time from another position, made the hub
// ask the agent each time: for a hundred bytes of its own the agent sent a page of up
// to 256 KiB, as often as the viewer liked. Now an agent sends the same once a second, and
// of what nobody reads to its end MaxReplays MiB a second.
func TestViewerCausesFewReplays(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"watch", "stop and watch"} {
		synctest.Test(t, func(t *testing.T) {
			const events, size, seconds = 2000, 20 << 10, 5 // 40 MB
			h := NewHub(&HubConfig{LogEvents: 5})
			agent := playAgent(t, h, "agent")
			agent.feed("s", "e1", 1, events)
			evil, honest := playViewer(t, h, "evil"), playViewer(t, h, "honest")
			data := []byte(`"` + strings.Repeat("x", size) + `"`)
			sent := make(map[uint64]int)
			answer := func() {
				for p := agent.next(); p != nil; p = agent.next() {
					if r, ok := p.(*ReplayRequestPayload); ok {
						for seq := r.AfterSeq + 1; seq <= min(r.UntilSeq, r.AfterSeq+52); seq++ {
							b := answerTo(r, seq, seq, false)
							b.Events[0].Data = data
							agent.send(b)
							sent[seq]++
						}
					}
				}
			}
			for range seconds {
				for i := range uint64(300) {
					if how != "watch" {
						evil.send(evil.stop("s"))
					}
					evil.send(evil.watch("s", "e1", i*53%1900))
					evil.next() // the status, and then it asks
					evil.link.endpoint.(*hubViewerLink).cursors["s"].next(time.Now())
					answer()
				}
				pass(time.Second)
				answer()
			}
			total := 0
			for seq, n := range sent {
				if total += n; n > seconds+1 {
					t.Fatalf("%s: %d was sent %d times in %d s", how, seq, n, seconds)
				}
			}
			if mb, most := total*size>>20, (seconds+1)*(h.cfg.MaxReplays+1); mb > most || mb < seconds {
				t.Errorf("%s: %d MiB in %d s, want up to %d", how, mb, seconds, most)
			}
			evil.link.Close()
			honest.send(honest.watch("s", "e1", 1900))
			honest.drain()
			pass(time.Second)
			answer()
			if got := honest.drain(); len(got) == 0 {
				t.Error("another viewer has to wait for more than a second")
			}
		})
	}
}

// A session holds four times as many bytes of answers as it may ask for at a time: then the oldest
// go, those first that nobody reads, and a viewer that is that slow has to ask again.
func TestHubReplayEvicts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5, MaxReplays: 1})
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 20)
		large := []byte(`"` + strings.Repeat("x", 1<<20-200) + `"`)
		var vs []*peer
		for i := range uint64(6) {
			v := playViewer(t, h, fmt.Sprint("v", i))
			vs = append(vs, v)
			v.send(v.watch("s", "e1", 14-i))
			v.next()
			v.wantIdle("the agent is asked")
			r := a.asked("s", v.viewer, "e1", 14-i, 15-i)
			b := answerTo(r, 15-i, 15-i, true)
			b.Events[0].Data = large
			a.send(b)
			if i == 1 {
				v.next() // it has read its answer to the end
				v.link.Close()
			}
		}
		s := h.lookup("s")
		held := []uint64{}
		for _, f := range s.fetches {
			held = append(held, f.log.head)
		}
		if diff := cmp.Diff([]uint64{15, 13, 12, 11, 10}, held); diff != "" {
			t.Errorf("it holds -want +got\n%s", diff)
		}
		v := playViewer(t, h, "v6")
		v.send(v.watch("s", "e1", 8))
		v.next()
		v.wantIdle("the agent is asked")
		a.asked("s", "v6", "e1", 8, 9)
		vs[0].wantIdle("it has to ask again, in turn")
	})
}

// What a hub and an agent hold for viewers that resume is bounded by the number of
// requests that may be open, however many viewers wait for their turn; and when all
// have been served or have left, nothing of it remains after a second.
func TestGrowthResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, events, kept = 20, 2000, 100
		st, h := NewStreamer(&StreamerConfig{ReplayEvents: events}), NewHub(&HubConfig{LogEvents: kept, MaxReplays: 3})
		agent, hub := linked(st, h)
		publishRounds(t, st, []string{"s"}, events, agent, hub)
		hs, s := h.lookup("s"), st.lookup("s")
		limit := h.cfg.MaxReplays
		wantAtRest := func() {
			t.Helper()
			pass(time.Second)
			carryAll(t, agent, hub)
			if len(hs.fetches) != 0 || hs.asking.Len() != 0 || len(s.sender.replays) != 0 || readyTasks(s.sender.link.Link) != 0 {
				t.Errorf("%d fetches, %d cursors ask, %d replays running, %d tasks at the agent when all are served",
					len(hs.fetches), hs.asking.Len(), len(s.sender.replays), readyTasks(s.sender.link.Link))
			}
		}
		vs := make([]*peer, n)
		come := func() {
			for i := range vs {
				vs[i] = playViewer(t, h, fmt.Sprint("viewer-", i))
				vs[i].send(vs[i].watch("s", hs.epoch, uint64(1800-90*i)))
			}
		}
		leave := func() {
			for _, v := range vs {
				v.link.Close()
			}
			carryAll(t, agent, hub)
		}

		come()
		seen, open := make([]uint64, n), 0
		for moved := true; moved; {
			moved = false
			for i, v := range vs {
				if p := v.next(); p != nil {
					moved = true
					if b, ok := p.(*EventBatchPayload); ok {
						seen[i] = b.LastSeq
					}
				}
			}
			open = max(open, hs.requests())
			moved = carryOne(t, hub, agent) || moved
			moved = carryOne(t, agent, hub) || moved
			if hs.requests() > limit || len(s.sender.replays) > limit {
				t.Fatalf("%d requests are open, %d replays run; want at most %d", hs.requests(), len(s.sender.replays), limit)
			}
		}
		for i := range seen {
			if seen[i] != events {
				t.Errorf("viewer %d has seen %d, want %d", i, seen[i], events)
			}
		}
		if open != limit {
			t.Errorf("at most %d requests were open, want %d", open, limit)
		}
		leave()
		wantAtRest()

		come() // and leave while most wait for their turn
		for _, v := range vs {
			v.drain()
		}
		leave()
		wantAtRest()

		come() // and stand still when their turn has come
		for _, v := range vs {
			v.drain()
		}
		carryAll(t, agent, hub)
		if hs.requests() != 0 {
			t.Errorf("%d requests are open", hs.requests())
		}
		leave()
		wantAtRest()
	})
}

// A gap that the hub declares for want of an answer is one viewer's, and what an agent replayed is
// true for all.
func TestHubReplayPrivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, _, r := smallReplay(t, HubConfig{})
		c := h.lookup("s").cursors[0]
		a.send(answerTo(r, 1, 3, true))
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		all := span{events: maxBatchEvents, bytes: pageBytes, first: anySize}
		if p := c.fetchOlderLocked(time.Now(), &c.s.log, all); p.last != 3 || p.private {
			t.Errorf("replayed: up to %d, private %v", p.last, p.private)
		}
		c.s.h.cfg.MaxReplays, c.sent = 0, 3
		if p := c.fetchOlderLocked(time.Now(), &c.s.log, all); p.last != 15 || !p.private {
			t.Errorf("unavailable: up to %d, private %v", p.last, p.private)
		}
	})
}

// A fetch that goes while its link asks it, hands it an answer or dies stays gone.
func TestHubReplayGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _, _, r := smallReplay(t, HubConfig{})
		s := h.lookup("s")
		f := s.fetches[0]
		s.mu.Lock()
		s.endFetchesLocked()
		s.mu.Unlock()
		if p := f.next(time.Now()); p != nil {
			t.Errorf("asked: %s", payloadText(p))
		}
		if err := f.answered(time.Now(), toBatch(answerTo(r, 1, 15, true)).(*replayBatch), nil); err != nil {
			t.Error(err)
		}
		f.refused(time.Now(), false)
		s.mu.Lock()
		f.orphanLocked()
		s.mu.Unlock()
		if n := h.Stats().StalePayloads; n != 1 || f.lost || f.log.head != 0 {
			t.Errorf("%d stale payloads, want 1; lost %v, at %d", n, f.lost, f.log.head)
		}
	})
}

func upTo(from, to uint64) (out []uint64) {
	for ; from <= to; from++ {
		out = append(out, from)
	}
	return out
}

// Two lost frames don't make a session's history unavailable for as long as the agent's link lives:
// nobody asked again once the agent was taken for silent.
func TestHubReplaySilentIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, _ := smallReplay(t, HubConfig{}) // the request is lost
		pass(8 * time.Second)
		a.send(a.status())
		a.drain() // and so is the second one
		pass(8 * time.Second)
		a.send(a.status())
		pass(time.Second)
		v.drain() // the gap
		v.send(v.stop("s"))
		asked := 0 // from here on nothing is lost, and the agent would answer
		for i := range 20 {
			w := playViewer(t, h, fmt.Sprint("w", i))
			w.send(w.watch("s", "", 0))
			for range 20 {
				pass(3 * time.Second)
				a.send(a.status())
				for _, p := range a.drain() {
					if _, ok := p.(*ReplayRequestPayload); ok {
						asked++
					}
				}
				w.drain()
			}
		}
		if asked == 0 {
			t.Error("20 viewers in 20 minutes, and the agent was not asked once")
		}
	})
}

// When a silent agent answers, what else it was asked for and nobody reads is given up: it stayed
// open for ever, and whoever came to read it got a gap at once.
func TestHubReplaySilenceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v1 := playViewer(t, h, "v1")
		v1.send(v1.watch("s", "e1", 7))
		v1.drain()
		r1 := a.asked("s", "v1", "e1", 7, 15)
		v2 := playViewer(t, h, "v2")
		v2.send(v2.watch("s", "", 0))
		v2.drain()
		a.asked("s", "v2", "e1", 0, 7)
		for range 8 { // both are lost, and asked again, and lost
			pass(3 * time.Second)
			a.send(a.status())
			a.drain()
			v1.drain()
			v2.drain()
		}
		v1.send(v1.stop("s"))
		v2.send(v2.stop("s"))
		pass(3 * time.Minute)
		a.drain()
		a.send(answerTo(r1, 8, 15, true)) // the agent answers one after all
		pass(time.Minute)
		a.drain()
		w := playViewer(t, h, "w")
		w.send(w.watch("s", "", 0))
		for range 20 {
			for _, p := range w.drain() {
				if b, ok := p.(*EventBatchPayload); ok && len(b.Gaps) > 0 {
					t.Fatalf("%v, though the agent answers; it was not asked", b.Gaps)
				}
			}
			for _, p := range a.drain() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					a.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			pass(time.Second)
			a.send(a.status())
		}
	})
}

// An agent whose connection stalled and broke is waited for from then on. Viewers that had waited
// while it was there got a gap at once, though it was back a second later.
func TestHubReplayAwayCountsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, _ := smallReplay(t, HubConfig{})
		pass(20 * time.Second) // nothing moves on the agent's connection
		v.wantTypes("status")
		a.link.Close() // it breaks
		v.wantIdle("away for 0 s")
		pass(time.Second)
		a = playAgent(t, h, "agent")
		a.send(answerTo(a.askedFor(1, "s", "tab", "e1", 0, 15), 1, 1, true))
		v.want(headed(v.batch("s", "e1", 1, 1), 20))
	})
}

// An agent that is busy answers: it was taken for one that says nothing.
func TestHubReplayBusyIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		for range 30 {
			a.send(&ErrorPayload{Code: CodeReplayBusy, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID, Retryable: true})
			pass(time.Second)
			a.drain()
			for _, p := range v.drain() {
				if b, ok := p.(*EventBatchPayload); ok {
					t.Fatalf("%v, silent on %q", b.Gaps, h.lookup("s").silentOn)
				}
			}
		}
	})
}
