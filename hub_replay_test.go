package gvstream

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

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

// Rule 12: the hub asks the agent for what it no longer has, for that one viewer.
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
		v.want(replayedTo(r, 3, 9))
		v.wantIdle("more is to come")
		a.send(answerTo(r, 3, 9, false))  // twice
		a.send(answerTo(r, 8, 12, false)) // partly known
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
		a.send(answerTo(r, 3, 9, false), answerTo(r2, 16, 16, true)) // to requests that are done
		v.wantIdle("all is there")
		other.want(other.batch("s", "e1", 21, 21))
		other.wantIdle("a replay is for one viewer")
		a.wantIdle("nothing is asked")
		if n := h.Stats().StalePayloads; n != 2 {
			t.Errorf("%d stale frames, want 2", n)
		}
	})
}

// Rule 12: at most 500 events are asked for at a time, and more when the viewer's link
// has taken them. An agent whose answer exceeds what is left of a request is refused,
// and nothing of it reaches the viewer.
func TestHubReplaysInPieces(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 700)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 696, 700, 0)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 0, 695)
		for from := uint64(1); from <= 450; from += 90 {
			a.send(answerTo(r, from, from+89, false))
		}
		a.refused(answerTo(r, 451, 501, true), &ErrorPayload{Code: CodeMalformed}) // 50 are left
		a.send(answerTo(r, 451, 500, true))                                        // exactly these
		for from := uint64(1); from <= 500; from += 90 {
			a.wantIdle("the viewer has not taken what there is")
			v.want(replayedTo(r, from, min(from+89, 500)))
		}
		v.wantIdle("more is asked for")
		r = a.asked("s", "tab", "e1", 500, 695)
		a.send(answerTo(r, 501, 600, false), answerTo(r, 601, 695, true))
		v.want(replayedTo(r, 501, 600), replayedTo(r, 601, 695), v.batch("s", "e1", 696, 700))
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
		v := playViewer(t, h, "tab")
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
			if held > maxRequestBytes+maxBatchBytes {
				t.Fatalf("the hub holds %d bytes of one answer", held)
			}
			if s.cursors[0].request != nil {
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
		v.want(replayedTo(r, 1, 15), v.batch("s", "e1", 16, 20))
		if n := h.Stats().StalePayloads; n != 2 {
			t.Errorf("%d stale frames, want 2", n)
		}
	})
}

// Rule 12: at most 8 requests are open for a session; others wait in turn.
func TestHubReplayPermitsOfSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		var vs []*peer
		for i := range 11 {
			v := playViewer(t, h, fmt.Sprint("tab", i))
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
		vs[9].link.Close()          // one that waits may leave
		vs[2].send(vs[2].stop("s")) // and so may one that has a request open
		vs[10].wantIdle("it asks")  // in turn
		vs[5].want(replayedTo(r, 1, 15), vs[5].batch("s", "e1", 16, 20))
		a.asked("s", "tab10", "e1", 0, 15)
		a.wantIdle("eight are open")
		for _, v := range vs {
			v.link.Close()
		}
		if s := h.lookup("s"); s.requests() != 0 || s.permits.waiting.Len() != 0 || len(s.cursors) != 0 {
			t.Errorf("%d open, %d asking, %d cursors when all have left", s.requests(), s.permits.waiting.Len(), len(s.cursors))
		}
		if n := len(h.agents["agent"].requests); n != 0 {
			t.Errorf("%d requests stay", n)
		}
	})
}

// Rule 12: and at most 4 for a viewer's link.
func TestHubReplayPermitsOfViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		a := playAgent(t, h, "agent")
		v := playViewer(t, h, "tab")
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
		other := playViewer(t, h, "other") // the limit is the link's own
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
		v.link.Close()
		if s := h.lookup("s6"); s.requests() != 1 {
			t.Errorf("%d open, want the other's", s.requests())
		}
	})
}

// Rule 12: a permit that the viewer gave up is free again after a second, each in turn.
func TestHubReplaySlotsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5, MaxViewerReplays: 2})
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
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

// Rule 12: a permit that was offered to a watch which ended before it asked goes to the
// next one waiting.
func TestHubReplayPermitPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5, MaxViewerReplays: 1})
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		for _, id := range []string{"s0", "s1", "s2"} {
			a.feed(id, "e1", 1, 20)
			v.send(v.watch(id, "", 0))
		}
		v.drain()
		r := a.asked("s0", "tab", "e1", 0, 15)
		a.wantIdle("one is open")
		a.send(answerTo(r, 1, 15, true))
		v.send(v.stop("s1")) // it had been offered a permit
		v.drain()
		r = a.asked("s2", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		v.drain()
		a.wantIdle("all is there")
		if n := h.viewers["tab"].requests(); n != 0 {
			t.Errorf("%d slots are taken, want none", n)
		}
	})
}

// Rule 12: a cursor that waits for a permit gets it before one whose request was not
// answered asks again.
func TestHubReplayUnansweredIsLast(t *testing.T) {
	for name, cfg := range map[string]HubConfig{"slot": {MaxViewerReplays: 1}, "turn": {MaxReplays: 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg.LogEvents = 5
				h := NewHub(&cfg)
				a := playAgent(t, h, "agent")
				first := playViewer(t, h, "tab")
				second, session := first, "r"
				a.feed("s", "e1", 1, 20)
				a.feed("r", "e1", 1, 20)
				if name == "turn" {
					second, session = playViewer(t, h, "other"), "s"
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

// TestHubWaitingGivenUp: a watch that ends gives up its place in the queue for a
// permit.
func TestHubWaitingGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxViewerReplays: 1})
		a.feed("r", "e1", 1, 20)
		v := playReader(t, h, "tab")
		for range 1000 {
			v.send(v.watch("r", "", 0))
			v.drain()
			v.send(v.stop("r"))
		}
		if n := h.viewers["tab"].permits.waiting.Len(); n > 10 {
			t.Errorf("%d cursors wait for a slot, the link has %d", n, len(h.viewers["tab"].cursors))
		}
	})
}

// Rule 12: an unanswered request is asked again under a new id.
func TestHubReplayUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, v, first := smallReplay(t, HubConfig{})
		start := time.Now()
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

// A hole in an answer means a lost frame: the hub asks again after a second.
func TestHubReplayHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, v, r := smallReplay(t, HubConfig{})
		a.send(answerTo(r, 1, 5, false), answerTo(r, 11, 15, true))
		v.want(replayedTo(r, 1, 5))
		a.send(answerTo(r, 6, 10, false)) // too late
		pass(time.Second - 1)
		v.wantIdle("a second has not passed")
		a.wantIdle("a second has not passed")
		pass(1)
		v.wantIdle("the agent is asked")
		r = a.asked("s", "tab", "e1", 5, 15)
		// The new request has the full timer, like any other.
		pass(14 * time.Second)
		v.drain()
		a.wantIdle("15 s have not passed")
		a.send(answerTo(r, 6, 15, true))
		v.want(replayedTo(r, 6, 15), v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: an answer that says done, or that has all, ends the request, and what is
// still missing is requested at once.
func TestHubReplayDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		a.send(answerTo(r, 1, 9, true)) // it had more than fits in an answer
		v.want(replayedTo(r, 1, 9))
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
		v.want(replayedTo(r, 10, 14), replayedTo(r, 15, 15), v.batch("s", "e1", 16, 20))
	})
}

// Rule 12: an agent that is busy is asked again on the timer; a refusal becomes a gap.
func TestHubReplayRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, r := smallReplay(t, HubConfig{})
		a.send(&ErrorPayload{Code: CodeReplayBusy, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID, Retryable: true})
		if s := h.lookup("s"); s.requests() != 0 {
			t.Error("a refused request is not open")
		}
		v.wantAfter(timerFirst, v.status(stands("s", "e1", 16, 20, 0))) // a heartbeat is due as well
		v.wantIdle("the agent is asked")
		r = a.asked("s", "tab", "e1", 0, 15)
		a.send(answerTo(r, 1, 4, false))
		a.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID})
		v.want(replayedTo(r, 1, 4))
		v.want(headed(v.lost("s", "e1", 5, 15, ReasonUnavailable), 20), v.batch("s", "e1", 16, 20))
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

// Rule 12: an open request is asked again on the agent's new link.
func TestHubReplayAgentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, v, old := smallReplay(t, HubConfig{})
		a.send(answerTo(old, 1, 3, false))
		a.link.Close()
		v.want(replayedTo(old, 1, 3))
		v.wantIdle("the agent may come back")
		pass(9 * time.Second)
		a = playAgent(t, h, "agent")
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

// Rule 12: a request that could not be made because the agent's link just died is made
// on its next one, and takes up no permit until then.
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
		s.cursors[0].requestReplayLocked(ha, 15)
		s.mu.Unlock()
		if n := h.viewers["tab"].requests(); s.requests() != 0 || n != 0 {
			t.Errorf("%d and %d turns are taken", s.requests(), n)
		}
		v.wantIdle("the agent may come back")
		a = playAgent(t, h, "agent")
		a.send(a.status(entryOf("s", "e1", 1, 20, 20)))
		v.wantIdle("the agent is asked")
		a.want(a.ack("s", "e1", 20))
		a.send(answerTo(a.asked("s", "tab", "e1", 0, 15), 1, 15, true))
		v.drain()
	})
}

// A request has an id that no other link has: a late answer to a request of the agent's
// older link is ignored on the newer one (rule 4).
func TestHubReplayOfOlderLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, old := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)))
		v.wantIdle("the agent is asked")
		late := old.asked("s", "tab", "e1", 0, 15)
		a := playAgent(t, h, "agent")
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

// TestHubReplayWaitOfThoseInTurn: cursors that wait for a permit wait for an absent
// agent no longer than the others (rule 12).
func TestHubReplayWaitOfThoseInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		var vs []*peer
		for i := range 4 {
			vs = append(vs, playReader(t, h, fmt.Sprint("v", i)))
		}
		a.link.Close() // the agent is away
		start := time.Now()
		took := map[int]time.Duration{}
		for range 120 {
			for i, v := range vs {
				for p := v.next(); p != nil; p = v.next() {
					if b, ok := p.(*EventBatchPayload); ok && took[i] == 0 && b.LastSeq >= 15 {
						took[i] = time.Since(start)
					}
				}
			}
			pass(time.Second)
		}
		for i := range vs {
			if took[i] > 11*time.Second || took[i] == 0 {
				t.Errorf("viewer %d waited %v for the gap, want 10s (all: %v)", i, took[i], took)
				return
			}
		}
	})
}

// A hub that may not ask the agent for anything declares a gap, and does not wait for
// ever (L2).
func TestHubReplayNone(t *testing.T) {
	for name, cfg := range map[string]HubConfig{"session": {MaxReplays: -1}, "viewer": {MaxViewerReplays: -1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, _ := smallHub(t, cfg)
				v := playViewer(t, h, "tab")
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
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 20)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 21, 20, 0)))
		v.wantIdle("the agent is asked")
		r := a.asked("s", "tab", "e1", 0, 20)
		a.send(answerTo(r, 1, 20, true))
		v.want(replayedTo(r, 1, 20))
		v.wantIdle("all is there")
	})
}

// TestHubReplayTimerStartsAnew: a request that is refused permanently is answered: the
// cursor's next request starts with the first timer period. It kept the doubled one of
// the requests before it (rule 12).
func TestHubReplayTimerStartsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, v := withoutLog(t, 3)
		a.asked("s", "tab", "e1", 0, 3)
		pass(timerFirst) // it was lost
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 3)
		a.send(&ErrorPayload{Code: CodeReplayBusy, SessionID: "s", ViewerID: "tab", RequestID: r.RequestID})
		if got := v.drain(); len(got) != 1 {
			t.Fatalf("the viewer got %d payloads", len(got))
		}
		a.feed("s", "e1", 4, 4)
		v.drain()
		a.asked("s", "tab", "e1", 3, 4)
		pass(timerFirst)
		v.drain()
		a.asked("s", "tab", "e1", 3, 4)
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
		if got := v.drain(); len(got) != 2 {
			t.Errorf("the viewer got %d payloads", len(got))
		}
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
		v.want(replayedTo(r, 1, 2), replayedTo(r, 3, 4))
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
		want := replayedTo(r, 14, 15)
		want.Events, want.Gaps = want.Events[:1], []Gap{{15, 15, ReasonRejected}}
		v.want(want, v.batch("s", "e1", 16, 20))
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
			if b, ok := p.(*ReplayBatchPayload); ok {
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

// A request that is given up while it is being made or answered is not made, and its
// answer is ignored.
func TestHubReplayGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := playReader(t, h, "tab")
		f := h.lookup("s").cursors[0].request
		r := a.asked("s", "tab", "e1", 0, 15)
		v.send(v.stop("s"))
		if p := f.next(time.Now()); p != nil {
			t.Errorf("made: %s", payloadText(p))
		}
		if err := f.answered(time.Now(), toBatch(answerTo(r, 1, 15, true)).(*replayBatch), nil); err != nil {
			t.Error(err)
		}
		if n := h.Stats().StalePayloads; n != 1 {
			t.Errorf("%d stale payloads, want 1", n)
		}
		v.wantIdle("stopped")
		a.wantIdle("nothing is asked")
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

// TestHubRequestsGivenUp: a request that is given up leaves the queue of the agent's link.
func TestHubRequestsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		for range 1000 { // the agent's send is blocked meanwhile
			v.send(v.watch("s", "", 0))
			v.drain()
		}
		h.agentsMu.Lock()
		ha := h.agents["agent"]
		h.agentsMu.Unlock()
		if n := readyTasks(ha.Link); n > 10 {
			t.Errorf("%d fetches in the queue of the agent's link, %d open", n, len(ha.requests))
		}
	})
}

// TestHubReplaysGivenUp: requests that a viewer gave up are not answered forever.
func TestHubReplaysGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		st := NewStreamer(&StreamerConfig{ReplayEvents: 10000})
		for range 2000 {
			st.Publish(t.Context(), "s", Event{})
		}
		a, b := st.Connect(), h.ConnectAgent("agent")
		for st.Stats().PendingEvents > 0 {
			carryAll(t, a, b)
			pass(250 * time.Millisecond)
		}
		evil := playViewer(t, h, "evil")
		for range 9 {
			evil.send(evil.watch("s", "", 0))
			evil.drain()
			for { // the request goes out
				p, _ := b.Next(endedContext)
				if p == nil {
					break
				}
				a.Handle(t.Context(), p)
			}
		}
		busy := 0
		v := playReader(t, h, "honest")
		for {
			p, _ := b.Next(endedContext)
			if p == nil {
				break
			}
			if err := a.Handle(t.Context(), p); err != nil {
				t.Log(err)
				busy++
			}
		}
		start := time.Now()
		for {
			carryAll(t, a, b)
			got := false
			for p := v.next(); p != nil; p = v.next() {
				if _, ok := p.(*ReplayBatchPayload); ok {
					got = true
				}
			}
			if got {
				break
			}
			pass(time.Second)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the honest viewer waited %v for its first replay batch (%d replay_busy)", d, busy)
		}
	})
}

// A viewer that kept repeating its watch, each time from another position, made the hub
// ask the agent each time: for a hundred bytes of its own the agent sent a page of up
// to 256 KiB, as often as the viewer liked.
func TestViewerCausesFewReplays(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"watch", "stop and watch"} {
		synctest.Test(t, func(t *testing.T) {
			h, agent := smallHub(t, HubConfig{})
			agent.feed("r", "e1", 1, 20)
			evil, honest := playViewer(t, h, "evil"), playViewer(t, h, "honest")
			requests := 0
			count := func() {
				for p := agent.next(); p != nil; p = agent.next() {
					if r, ok := p.(*ReplayRequestPayload); ok && r.ViewerID == "evil" {
						requests++
					}
				}
			}
			const seconds = 10
			for range seconds {
				for i := range uint64(300) {
					if how != "watch" {
						evil.send(evil.stop("s"))
					}
					evil.send(evil.watch("s", "e1", i%10))
					evil.drain()
					count()
				}
				pass(time.Second)
			}
			if most := 4 * (seconds + 1); requests > most || requests < seconds {
				t.Errorf("%s: %d requests in %d s, want up to %d", how, requests, seconds, most)
			}
			evil.drain()
			count()
			honest.send(honest.watch("s", "", 0))
			honest.drain()
			if agent.next().(*ReplayRequestPayload).ViewerID != "honest" {
				t.Error("another viewer has to wait")
			}
			evil.send(evil.stop("s"), evil.watch("r", "", 0))
			pass(time.Second)
			evil.drain()
			if agent.next().(*ReplayRequestPayload).ViewerID != "evil" {
				t.Error("it does not get its next replay after a second")
			}
		})
	}
}

// TestHubStuckViewerHoldsNoPermit: a viewer whose link is stuck gets a permit to ask the
// agent, and gives it back, without the help of its link.
func TestHubStuckViewerHoldsNoPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		v1 := playReader(t, h, "v1")
		playReader(t, h, "v2") // its connection takes nothing from here on: Next is not called
		v3 := playReader(t, h, "v3")
		got := uint64(0)
		for range 600 { // ten minutes
			for _, v := range []*peer{v1, v3} {
				for p := v.next(); p != nil; p = v.next() {
					if b, ok := p.(*EventBatchPayload); ok && v == v3 {
						got = b.LastSeq
					}
				}
			}
			for p := a.next(); p != nil; p = a.next() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					a.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			pass(time.Second)
		}
		if got != 20 {
			t.Fatalf("v3 is at %d after ten minutes; open %d", got, h.lookup("s").requests())
		}
	})
}

// TestHubStuckViewerRequestLost: a request that is lost gives its permit back on the
// timer, even if the viewer's link is stuck: no later request was made, since only that
// link asked again.
func TestHubStuckViewerRequestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxReplays: 1})
		stuck, v := playViewer(t, h, "v1"), playViewer(t, h, "v2")
		stuck.send(stuck.watch("s", "", 0))
		stuck.want(stuck.status(stands("s", "e1", 16, 20, 0)))
		stuck.wantIdle("the agent is asked")
		a.asked("s", "v1", "e1", 0, 15) // and does not get it; v1's connection takes nothing any more
		v.send(v.watch("s", "", 0))
		v.want(v.status(stands("s", "e1", 16, 20, 0)))
		v.wantIdle("it waits for its turn")
		pass(timerFirst)
		r := a.asked("s", "v2", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		v.want(v.status(stands("s", "e1", 16, 20, 0)), replayedTo(r, 1, 15), v.batch("s", "e1", 16, 20))

		stuck.drain() // it is no longer stuck, and asks again; the timer has doubled
		a.asked("s", "v1", "e1", 0, 15)
		pass(2*timerFirst - 1)
		stuck.drain()
		a.wantIdle("a request is under way")
		pass(1)
		stuck.drain()
		r = a.asked("s", "v1", "e1", 0, 15)
		a.send(answerTo(r, 1, 15, true))
		stuck.want(replayedTo(r, 1, 15), stuck.batch("s", "e1", 16, 20))
	})
}

// TestHubStuckAgentHoldsNoPermit: a request that an agent's connection does not take is
// given up like an unanswered one, so that a viewer's other sessions get the permit
// (rule 12).
func TestHubStuckAgentHoldsNoPermit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, stuck := smallHub(t, HubConfig{MaxViewerReplays: 1})
		good := playAgent(t, h, "good")
		good.feed("t", "e1", 1, 20)
		v := playReader(t, h, "v")
		v.send(v.watch("t", "", 0))
		got := uint64(0)
		for range 20 {
			for p := v.next(); p != nil; p = v.next() {
				if b, ok := p.(*EventBatchPayload); ok && b.SessionID == "t" {
					got = b.LastSeq
				}
			}
			for p := good.next(); p != nil; p = good.next() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					good.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			pass(time.Second)
		}
		if got != 20 {
			t.Errorf("the viewer is at %d of the other session", got)
		}
		r := stuck.asked("s", "v", "e1", 0, 15) // once, when it takes payloads again
		stuck.wantIdle("what was given up is not asked for")
		stuck.send(answerTo(r, 1, 15, true))
		for p := v.next(); p != nil; p = v.next() {
			if b, ok := p.(*EventBatchPayload); ok && b.SessionID == "s" {
				got = b.FirstSeq
			}
		}
		if got != 16 {
			t.Errorf("the stuck agent's own session goes on at %d", got)
		}
	})
}

// An agent that answers no replay requests kept the permits of a viewer's link: the
// request was given up, and made again before those that waited had their turn. The
// viewer's watches of other agents' sessions got nothing, for ever.
func TestSilentAgentKeepsNoSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		silent, honest := playAgent(t, h, "silent"), playAgent(t, h, "honest")
		v := playViewer(t, h, "tab")
		for i := range 6 {
			silent.feed(fmt.Sprint("quiet", i), "e1", 1, 20)
			v.send(v.watch(fmt.Sprint("quiet", i), "", 0))
		}
		honest.feed("s", "e1", 1, 20)
		v.send(v.watch("s", "", 0))
		start := time.Now()
		for time.Since(start) < 10*time.Minute {
			for p := v.next(); p != nil; p = v.next() {
				if b, ok := p.(*EventBatchPayload); ok && b.SessionID == "s" {
					if d := time.Since(start); d > time.Minute {
						t.Errorf("served after %v", d)
					}
					return
				}
			}
			for p := honest.next(); p != nil; p = honest.next() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					honest.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			silent.drain()
			pass(time.Second)
		}
		t.Error("an honest agent's session got nothing in ten minutes")
	})
}

// An agent that answers a request with empty batches, none of them the last, kept its
// permit for ever.
func TestEmptyAnswersKeepNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, v, r := smallReplay(t, HubConfig{})
		for range 3 {
			pass(14 * time.Second)
			a.link.Handle(t.Context(), answerTo(r, 1, 0, false))
			v.drain()
		}
		for p := a.next(); p != nil; p = a.next() {
			if again, ok := p.(*ReplayRequestPayload); ok && again.RequestID != r.RequestID {
				return
			}
		}
		t.Error("still the first request after 42 s without an event")
	})
}

// A link's free permit is offered to one of the cursors that wait for it, and a cursor
// that no longer needs it passes it to the next; it woke all of them.
func TestGrowthPermits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 500
		st, h := NewStreamer(nil), NewHub(&HubConfig{LogEvents: 1, MaxWatches: n, MaxViewerReplays: 1})
		agent, hub := linked(st, h)
		ids := loadIDs(n)
		publishRounds(t, st, ids, 3, agent, hub)
		v := playViewer(t, h, "tab")
		for _, id := range ids {
			v.send(v.watch(id, "", 0))
		}
		v.drain()
		woken, replays := 0, 0
		for turn := range n {
			carryAll(t, agent, hub) // the agent answers the one request that is open
			woken += readyTasks(v.link)
			if turn%3 == 0 { // one that waits, and may have been offered the permit, leaves
				v.send(v.stop(ids[n-1-turn/3]))
			}
			for _, p := range v.drain() {
				if _, ok := p.(*ReplayBatchPayload); ok {
					replays++
				}
			}
		}
		if stopped := (n + 2) / 3; replays < n-stopped || replays > n {
			t.Errorf("%d sessions were replayed, want %d at least of %d", replays, n-stopped, n)
		}
		if woken > 3*n {
			t.Errorf("%d wake-ups for %d replays", woken, n)
		}
	})
}

// A cursor that was offered a permit and no longer needs it passes it on: those that
// wait after it would wait for ever.
func TestSlotPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(&HubConfig{LogEvents: 1, MaxViewerReplays: 1})
		agent, hub := linked(st, h)
		ids := loadIDs(3)
		publishRounds(t, st, ids, 3, agent, hub)
		v := playViewer(t, h, "tab")
		replayed := make(map[string]bool)
		drain := func() {
			for _, p := range v.drain() {
				if p, ok := p.(*ReplayBatchPayload); ok {
					replayed[p.SessionID] = true
				}
			}
		}
		for _, id := range ids {
			v.send(v.watch(id, "", 0))
			drain() // the first is requested
		}
		carryAll(t, agent, hub) // and answered: the second is offered the permit, and has moved on
		v.send(v.watch(ids[1], statOf(t, h, ids[1]).Epoch, 3))
		drain()
		carryAll(t, agent, hub)
		drain()
		if !replayed[ids[0]] || replayed[ids[1]] || !replayed[ids[2]] {
			t.Errorf("replayed: %v, want the first and the last", replayed)
		}
	})
}

// What a hub and an agent hold for viewers that resume is bounded by the number of
// requests that may be open, however many viewers wait for their turn; and when all
// have been served or have left, nothing of it remains.
func TestGrowthResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, events, kept = 20, 2000, 100
		st, h := NewStreamer(&StreamerConfig{ReplayEvents: events}), NewHub(&HubConfig{LogEvents: kept})
		agent, hub := linked(st, h)
		publishRounds(t, st, []string{"s"}, events, agent, hub)
		hs, s := h.lookup("s"), st.lookup("s")
		limit := h.cfg.MaxReplays
		held := func() (events int) {
			for _, c := range hs.cursors {
				for i := range c.pages {
					events += len(c.pages[i].slots)
				}
			}
			return events
		}
		wantAtRest := func() {
			t.Helper()
			if hs.requests() != 0 || len(s.sender.replays) != 0 || readyTasks(s.sender.link.Link) != 0 {
				t.Errorf("%d requests open, %d replays running, %d tasks at the agent when all are served",
					hs.requests(), len(s.sender.replays), readyTasks(s.sender.link.Link))
			}
			for _, c := range hs.cursors {
				if c.request != nil || len(c.pages) != 0 || c.atSession.Queued() {
					t.Errorf("a cursor is not done: %+v", c)
				}
			}
		}
		vs := make([]*peer, n)
		come := func() {
			for i := range vs {
				vs[i] = playViewer(t, h, fmt.Sprint("viewer-", i))
				vs[i].send(vs[i].watch("s", hs.epoch, 10))
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
				switch p := v.next().(type) {
				case nil:
					continue
				case *EventBatchPayload:
					seen[i] = p.LastSeq
				case *ReplayBatchPayload:
					seen[i] = p.LastSeq
				}
				moved = true
			}
			moved = carryOne(t, hub, agent) || moved
			moved = carryOne(t, agent, hub) || moved
			open = max(open, hs.requests())
			if hs.requests() > limit || len(s.sender.replays) > limit {
				t.Fatalf("%d requests are open, %d replays run; want at most %d", hs.requests(), len(s.sender.replays), limit)
			}
			// Each answer is passed on as it comes, so the next ones find room.
			if most := 2 * limit * h.sizes.replay; held() > most {
				t.Fatalf("the hub holds %d events for its viewers, want at most %d", held(), most)
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
		wantAtRest()
		leave()

		come() // and leave while most wait for their turn
		for _, v := range vs {
			v.drain()
		}
		leave()
		wantAtRest()

		come() // and stand still when their turn has come: each holds the answer to one request
		for _, v := range vs {
			v.drain()
		}
		carryAll(t, agent, hub)
		if held() != n*h.sizes.replay || hs.requests() != 0 {
			t.Errorf("%d events are held for %d viewers, and %d requests are open", held(), n, hs.requests())
		}
		leave()
		wantAtRest()
	})
}

func upTo(from, to uint64) (out []uint64) {
	for ; from <= to; from++ {
		out = append(out, from)
	}
	return out
}
