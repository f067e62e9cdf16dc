package gvstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/testenv"
)

// A fanned is a viewer whose link pushes.
type fanned struct {
	*peer
	then func() // called once, with the next payload
}

// texts takes what was pushed, each payload described in a few words. All of it has to
// be for this viewer.
func (f *fanned) texts() (out []string) {
	for _, p := range f.drain() {
		out = append(out, f.text(p))
	}
	return out
}

func (f *fanned) text(p Payload) string {
	if err := p.check(); err != nil {
		f.t.Errorf("%s got %s: %v", f.viewer, payloadText(p), err)
	}
	switch p := p.(type) {
	case *EventBatchPayload:
		if p.ViewerID != "" || p.Link != "" {
			f.t.Errorf("%s got a batch for %s on %s", f.viewer, p.ViewerID, p.Link)
		}
		return fmt.Sprintf("%s %d-%d of %d%s", p.Epoch, p.FirstSeq, p.LastSeq, p.HeadSeq, gapsText(p.Gaps))
	case *StatusPayload:
		text := "status"
		for _, s := range p.Sessions {
			text += fmt.Sprintf(" %s %d of %d", s.Epoch, s.AckSeq, s.HeadSeq)
			if s.Ended {
				text += " ended"
			}
		}
		return text
	case *ErrorPayload:
		return string(p.Code)
	}
	return payloadText(p)
}

func gapsText(gaps []Gap) (text string) {
	for _, g := range gaps {
		text += fmt.Sprintf(" gap %d-%d %s", g.From, g.To, g.Reason)
	}
	return text
}

// workersWork does all pending jobs.
func workersWork(h *Hub) {
	for j := h.workers.next(); j != nil; j = h.workers.next() {
		j.work(time.Now())
	}
}

// cohortRig is a hub whose workers work only when the test says so, with one agent and
// viewers that rest after event 10.
func cohortRig(t *testing.T, cfg *HubConfig, viewers int) (h *Hub, a *peer, vs []*fanned) {
	t.Helper()
	h = NewHub(cfg)
	h.workers.size = 0
	a = playAgent(t, h, "agent")
	a.feed("s", "e1", 1, 10)
	for i := range viewers {
		f := &fanned{peer: playViewer(t, h, fmt.Sprint("tab", i))}
		f.send(f.watch("s", "e1", 10))
		f.push(func(Payload) {
			if then := f.then; then != nil {
				f.then = nil
				then()
			}
		})
		workersWork(h)
		f.drain()
		vs = append(vs, f)
	}
	s := h.lookup("s")
	if f := cohortFault(s); s.parked != viewers || s.page != nil || f != "" {
		t.Fatalf("%d of %d viewers rest, page %v, %s", s.parked, viewers, s.page, f)
	}
	return h, a, vs
}

// While the first of two viewers is sent events 11 and 12, something happens to the
// second. Each gets what its own link would have sent, and in the end both have
// everything.
func TestCohortDisturbed(t *testing.T) {
	t.Parallel()
	both := []string{"e1 11-12 of 12"}
	for _, c := range []struct {
		name    string
		cfg     *HubConfig
		disturb func(h *Hub, a *peer, v *fanned)
		first   []string
		second  []string
	}{
		{"nothing", nil, func(*Hub, *peer, *fanned) {}, both, both},
		{
			"more events", nil,
			func(_ *Hub, a *peer, _ *fanned) { a.send(a.batch("s", "e1", 13, 13)) },
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"}, []string{"e1 11-12 of 12", "e1 13-13 of 13"},
		},
		{
			"more events, and a watch that is answered before them", nil,
			func(_ *Hub, a *peer, v *fanned) {
				a.send(a.batch("s", "e1", 13, 13))
				v.send(v.watch("other", "", 0))
			},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"},
			[]string{"e1 11-12 of 12", "status  0 of 0", "e1 13-13 of 13"},
		},
		{
			"it watches from elsewhere", nil,
			func(_ *Hub, _ *peer, v *fanned) { v.send(v.watch("s", "e1", 3)) },
			both, []string{"e1 11-12 of 12", "status e1 3 of 12", "e1 4-12 of 12"},
		},
		{
			"it watches from elsewhere, and more events", nil,
			func(_ *Hub, a *peer, v *fanned) {
				v.send(v.watch("s", "e1", 3))
				a.send(a.batch("s", "e1", 13, 13))
			},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"},
			[]string{"e1 11-12 of 12", "status e1 3 of 13", "e1 4-13 of 13"},
		},
		{
			"its watch ends, and more events", nil,
			func(_ *Hub, a *peer, v *fanned) {
				v.send(v.stop("s"))
				a.send(a.batch("s", "e1", 13, 13))
			},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"}, both,
		},
		{
			"its watch is revoked", nil,
			func(h *Hub, _ *peer, v *fanned) { h.Revoke(v.viewer, "s") },
			both, []string{"e1 11-12 of 12", "forbidden"},
		},
		{
			"its link is closed, and more events", nil,
			func(_ *Hub, a *peer, v *fanned) {
				v.link.Close()
				a.send(a.batch("s", "e1", 13, 13))
			},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"}, both,
		},
		{
			"the end", nil,
			func(_ *Hub, a *peer, _ *fanned) { a.send(a.last("s", "e1", 13)) },
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13"},
		},
		{
			"the end, in a gap", nil,
			func(_ *Hub, a *peer, _ *fanned) {
				ended := entryOf("s", "e1", 1, 12, 13)
				ended.Ended = true
				a.send(a.status(ended), a.lost("s", "e1", 13, 13, ReasonRejected))
			},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13 gap 13-13 rejected", "status e1 10 of 13 ended"},
			[]string{"e1 11-12 of 12", "e1 13-13 of 13 gap 13-13 rejected", "status e1 10 of 13 ended"},
		},
		{
			"a new epoch", nil,
			func(_ *Hub, a *peer, _ *fanned) { a.send(a.batch("s", "e2", 1, 1)) },
			[]string{"e1 11-12 of 12", "status e2 0 of 1", "e2 1-1 of 1"},
			[]string{"e1 11-12 of 12", "status e2 0 of 1", "e2 1-1 of 1"},
		},
		{
			"the hub forgets", nil,
			func(h *Hub, _ *peer, _ *fanned) { h.Forget("s") },
			[]string{"e1 11-12 of 12", "status  0 of 0"}, []string{"e1 11-12 of 12", "status  0 of 0"},
		},
		{ // the agent has to replay what comes next: it is not a gap
			"more events than the hub's log holds", &HubConfig{LogEvents: 2},
			func(_ *Hub, a *peer, _ *fanned) { a.send(a.batch("s", "e1", 13, 16)) },
			both, both,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, a, vs := cohortRig(t, c.cfg, 2)
				vs[0].then = func() { c.disturb(h, a, vs[1]) }
				a.send(a.batch("s", "e1", 11, 12))
				workersWork(h)
				for i, want := range [][]string{c.first, c.second} {
					if diff := cmp.Diff(want, vs[i].texts()); diff != "" {
						t.Errorf("%s: -want +got\n%s", vs[i].viewer, diff)
					}
				}
				if s := h.lookup("s"); s != nil {
					if f := cohortFault(s); f != "" {
						t.Error(f)
					}
				}
				h.Close()
				workersWork(h)
			})
		})
	}
}

// A cursor that rests below the hub's log asks the agent for what it missed.
func TestCohortBelowLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, &HubConfig{LogEvents: 2}, 1)
		a.send(a.batch("s", "e1", 11, 14))
		workersWork(h)
		r := a.asked("s", "tab0", "e1", 10, 12)
		a.send(answerTo(r, 11, 12, true))
		workersWork(h)
		if got := vs[0].texts(); len(got) != 2 || got[1] != "e1 13-14 of 14" {
			t.Errorf("got %q", got)
		}
		h.Close()
	})
}

// A session in which something happens all the time is served in turn with the others:
// the workers do not stay with it as long as there is more.
func TestCohortTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, nil, 1)
		seq := uint64(11)
		var more func()
		more = func() {
			if seq++; seq <= 100 {
				a.send(a.batch("s", "e1", seq, seq))
				vs[0].then = more
			}
		}
		vs[0].then = more
		a.send(a.batch("s", "e1", seq, seq))
		h.workers.next().work(time.Now())
		if n := len(vs[0].drain()); n != pushTurn || h.workers.jobs.Len() != 1 {
			t.Fatalf("%d payloads in one turn, %d jobs", n, h.workers.jobs.Len())
		}
		workersWork(h)
		if got := vs[0].texts(); got[len(got)-1] != "e1 100-100 of 100" {
			t.Errorf("ends with %s", got[len(got)-1])
		}
		h.Close()
		workersWork(h)
	})
}

// A status is sent before events that become ready at the same time (rule 7).
func TestCohortStatusFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, nil, 2)
		pass(heartbeatEvery)
		for _, v := range vs {
			v.link.pusher.Load().wake() // as its timer does
		}
		a.send(a.batch("s", "e1", 11, 11))
		workersWork(h)
		for _, v := range vs {
			got, want := v.texts(), []string{"status e1 10 of 11", "e1 11-11 of 11"}
			if !slices.Equal(got, want) {
				t.Errorf("%s got %q, want %q", v.viewer, got, want)
			}
		}
		h.Close()
	})
}

// Viewers that are sent the same events share them, and when all have them the hub
// holds no more of them than its log.
func TestCohortShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, _ := cohortRig(t, nil, 0)
		var kept []*EventBatchPayload
		var late *peer // is served by Next
		for i := range 3 {
			v := playViewer(t, h, fmt.Sprint("tab", i))
			v.send(v.watch("s", "e1", 10))
			if i == 2 {
				late = v
				late.drain()
				continue
			}
			v.link.Push(t.Context(), func(_ context.Context, p Payload) error {
				if b, ok := p.(*EventBatchPayload); ok {
					kept = append(kept, b)
				}
				return nil
			})
		}
		workersWork(h)
		a.send(a.batch("s", "e1", 11, 12))
		workersWork(h)
		s := h.lookup("s")
		if s.page == nil {
			t.Error("nothing is kept for the viewer that is still to come")
		}
		p, err := late.link.Next(endedContext) // the payload itself, not yet carried over a wire
		b, ok := p.(*EventBatchPayload)
		if !ok || len(kept) != 2 {
			t.Fatalf("%d batches; %v", len(kept), err)
		}
		late.wantIdle("at the head")
		for _, other := range kept {
			if other != b {
				t.Error("a payload of its own")
			}
		}
		if s.page != nil {
			t.Error("the page is kept when everybody has it")
		}
		h.Close()
	})
}

// A panic of a send function reaches the goroutine that called it. An unlock on its way out of a
// mutex that was not locked was fatal, and hid it.
func TestCohortSendPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, nil, 2)
		vs[0].then = func() { panic("lost my connection") }
		a.send(a.batch("s", "e1", 11, 11))
		func() {
			defer func() {
				if r := recover(); r != "lost my connection" {
					t.Error(r)
				}
			}()
			workersWork(h)
		}()
		a.send(a.batch("s", "e1", 12, 12)) // the session is not locked
		h.Close()
	})
}

// All viewers at one position are sent the same bytes, encoded once, whether their links are given
// payloads, frames or a stream; and those are what anybody's Marshal makes of the payload. A copy
// that a caller has changed is encoded by itself.
func TestFactFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 10)
		var pushed []*EventBatchPayload
		var lines []*bufferedPipe
		var framed []*peer
		for i := range 6 {
			v := playViewer(t, h, fmt.Sprint("tab", i))
			v.send(v.watch("s", "e1", 10))
			switch v.drain(); i % 3 {
			case 0:
				v.link.Push(ctx, func(_ context.Context, p Payload) error {
					if b, ok := p.(*EventBatchPayload); ok {
						pushed = append(pushed, b)
					}
					return nil
				})
			case 1:
				framed = append(framed, v)
			case 2:
				lines = append(lines, &bufferedPipe{closed: make(chan struct{})})
				go v.link.RunLines(ctx, lines[len(lines)-1])
			}
		}
		synctest.Wait()
		a.send(a.batch("s", "e1", 11, 14, Gap{12, 13, ReasonEvicted}))
		synctest.Wait()
		if len(pushed) != 2 || pushed[0] != pushed[1] {
			t.Fatalf("%d payloads, want the same one twice", len(pushed))
		}
		b := pushed[0]
		changed := *b
		own, err := Marshal(&changed)
		if err != nil || changed.Link+changed.ViewerID != "" || len(b.Events) != 2 || len(b.Gaps) != 1 {
			t.Fatalf("%s, %v", own, err)
		}
		frames := []string{string(lines[0].next()), string(lines[1].next())}
		for _, v := range framed {
			frame, err := v.link.NextFrame(endedContext, []byte("before"))
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, strings.TrimPrefix(string(frame), "before"))
		}
		again, _ := Append(nil, b)
		for i, frame := range append(frames, string(again)) {
			if frame != string(own) {
				t.Errorf("%d: %s, want %s", i, frame, own)
			}
		}
		if first := &factOf(b).appendTo(nil)[0]; &again[0] == first {
			t.Error("a caller is given the frame itself, which it may change")
		}
		changed.Events = changed.Events[:1]
		changed.Gaps, changed.LastSeq = nil, 11
		if got, err := Marshal(&changed); err != nil || len(got) >= len(own) {
			t.Errorf("a changed copy is encoded as %s, %v", got, err)
		}
		h.Close()
	})
}

// A bufferedPipe is a stream that keeps what is written, and from which nothing comes.
type bufferedPipe struct {
	mu     sync.Mutex
	lines  [][]byte
	closed chan struct{}
}

func (p *bufferedPipe) Read([]byte) (int, error) { <-p.closed; return 0, io.EOF }
func (p *bufferedPipe) Close() error             { close(p.closed); return nil }

func (p *bufferedPipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for line := range bytes.Lines(b) {
		p.lines = append(p.lines, bytes.TrimSpace(bytes.Clone(line)))
	}
	return len(b), nil
}

// next is the next event batch that was written.
func (p *bufferedPipe) next() (line []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !bytes.Contains(line, []byte("event_batch")) {
		line, p.lines = p.lines[0], p.lines[1:]
	}
	return line
}

// The page is not kept for a viewer that has gone.
func TestCohortPageOfGoneViewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, nil, 1)
		v := playViewer(t, h, "slow")
		v.send(v.watch("s", "e1", 10))
		v.drain()
		a.send(a.batch("s", "e1", 11, 12))
		workersWork(h)
		if h.lookup("s").page == nil {
			t.Error("nothing is kept for the viewer that is still to come")
		}
		v.link.Close()
		if h.lookup("s").page != nil {
			t.Error("the page is kept for nobody")
		}
		vs[0].link.Close()
		h.Close()
		workersWork(h)
	})
}

// What the publisher's link does for an event is the same for one viewer and for many:
// it wakes the workers (rule 7).
func TestGrowthAccept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, nil, 3*maxCohort)
		a.send(a.batch("s", "e1", 11, 11))
		if h.workers.jobs.Len() != 1 {
			t.Errorf("%d jobs", h.workers.jobs.Len())
		}
		for _, v := range vs {
			if v.link.pusher.Load().state.Load() != pushIdle || readyTasks(v.link) > 0 {
				t.Fatal("a viewer's link was touched")
			}
		}
		workersWork(h)
		s := h.lookup("s")
		if s.atHead.Len() != 3 {
			t.Errorf("%d fans of %d viewers", s.atHead.Len(), len(vs))
		}
		for i, v := range vs { // most leave, and those that stay are grouped together
			if got := v.texts(); len(got) != 1 {
				t.Errorf("%s got %q", v.viewer, got)
			}
			if i%4 > 0 {
				v.link.Close()
			}
		}
		a.send(a.batch("s", "e1", 12, 12))
		workersWork(h)
		if f := cohortFault(s); f != "" || s.atHead.Len() != 1 || s.parked != 3*maxCohort/4 {
			t.Errorf("%d fans of %d viewers: %s", s.atHead.Len(), s.parked, f)
		}
		h.Close()
		workersWork(h)
	})
}

// A batch costs as many allocations, however many viewers it goes to.
func TestCohortAllocs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a, vs := cohortRig(t, nil, maxCohort)
		for _, v := range vs {
			v.pushed.got = make([]Payload, 0, 100)
		}
		seq := uint64(10)
		allocs := testing.AllocsPerRun(testenv.Fewer(50), func() {
			seq++
			a.send(a.batch("s", "e1", seq, seq))
			workersWork(h)
		})
		alone := testing.AllocsPerRun(testenv.Fewer(50), func() {
			seq++
			a.send(a.batch("s", "e1", seq, seq))
		})
		if allocs-alone > 12 && !testenv.RaceEnabled {
			t.Errorf("%v allocations for %d viewers", allocs-alone, maxCohort)
		}
		h.Close()
		workersWork(h)
	})
}

// cohortFault says what is wrong with a session's cohorts.
func cohortFault(s *hubSession) string {
	n, at := 0, uint64(0)
	var fans []*cohort
	for f := range s.atHead.All() {
		if f.seq < at {
			return fmt.Sprintf("a fan rests at %d, after one at %d", f.seq, at)
		}
		at = f.seq
		fans = append(fans, f)
	}
	fans = slices.AppendSeq(fans, s.lagging.All())
	for _, f := range fans {
		if f.sending || len(f.cursors) == 0 || len(f.cursors) > s.h.sizes.cohort || f.seq > s.log.head {
			return fmt.Sprintf("a fan of %d cursors at %d", len(f.cursors), f.seq)
		}
		for _, c := range f.cursors {
			if c.cohort != f || c.sent != f.seq || c.gone || c.epoch != s.epoch || s.cursors[c.index] != c || c.idle.Queued() {
				return fmt.Sprintf("%s is at %d of %s, and in a fan at %d of %s", c.hv.viewerID, c.sent, c.epoch, f.seq, s.epoch)
			}
		}
		n += len(f.cursors)
	}
	if n != s.parked || n+s.idle.Len() > len(s.cursors) {
		return fmt.Sprintf("%d cursors rest, and %d count", n, s.parked)
	}
	return ""
}
