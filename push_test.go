package gvstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		v := newPeer(t, h.ConnectViewer("tab"))
		v.push()
		v.wantIdle("it waits for a hello")
		v.hello(roleViewer)
		v.send(v.watch("s", "", 0))
		v.wantTypes("status")
		a.feed("s", "e1", 1, 250)
		next := uint64(1)
		for _, p := range v.drain() {
			b, ok := p.(*EventBatchPayload)
			if !ok { // where the session stands, once it is known
				continue
			}
			if b.FirstSeq != next || len(b.Events) != int(b.LastSeq-b.FirstSeq+1) {
				t.Errorf("a batch of %d to %d with %d events", b.FirstSeq, b.LastSeq, len(b.Events))
			}
			next = b.LastSeq + 1
		}
		if next != 251 {
			t.Errorf("events up to %d", next-1)
		}
		pass(heartbeatEvery) // the clock is checked without a Next
		v.wantTypes("status")
		pass(2 * heartbeatEvery)
		v.wantTypes("status", "status")
		send := new(inbox).send
		if err := v.link.Push(t.Context(), send); err != ErrBusy {
			t.Errorf("a second Push: %v", err)
		}
		if err := v.link.Run(t.Context(), send, nil); err != ErrBusy {
			t.Errorf("Run beside Push: %v", err)
		}
		h.Close()
		synctest.Wait()
		if err := v.link.Handle(t.Context(), &WatchPayload{SessionID: "s"}); err != ErrClosed {
			t.Errorf("after Close: %v", err)
		}
		for want, dead := range map[error]*Link{ErrClosed: h.ConnectViewer("tab"), ErrInvalidID: NewHub(nil).ConnectViewer("")} {
			if err := dead.Push(t.Context(), send); !errors.Is(err, want) {
				t.Errorf("Push on a dead link: %v, want %v", err, want)
			}
		}
	})
}

func TestPushBesideRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewHub(nil).ConnectViewer("tab")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- l.Run(ctx, new(inbox).send, func(ctx context.Context) (Payload, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			})
		}()
		synctest.Wait()
		if err := l.Push(t.Context(), new(inbox).send); err != ErrBusy {
			t.Errorf("Push beside Run: %v", err)
		}
		cancel()
		<-ended
	})
}

// The ways in which a link that pushes ends, and what its caller then gets.
func TestPushEnds(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	hello := &HelloPayload{V: 1, Role: roleViewer}
	for _, c := range []struct {
		name string
		end  func(t *testing.T, h *Hub, l *Link, cancel context.CancelFunc)
		want error
	}{
		{"ctx", func(_ *testing.T, _ *Hub, _ *Link, cancel context.CancelFunc) { cancel() }, ErrClosed},
		{"Close", func(_ *testing.T, _ *Hub, l *Link, _ context.CancelFunc) { l.Close() }, ErrClosed},
		{"a newer link", func(_ *testing.T, h *Hub, _ *Link, _ context.CancelFunc) { h.ConnectViewer("tab") }, ErrSuperseded},
		{"send", func(t *testing.T, _ *Hub, l *Link, _ context.CancelFunc) { l.Handle(t.Context(), hello) }, broken},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHub(nil)
				l := h.ConnectViewer("tab")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var given context.Context
				l.Push(ctx, func(ctx context.Context, _ Payload) error {
					given = ctx
					return broken
				})
				c.end(t, h, l, cancel)
				synctest.Wait()
				if err := l.Handle(t.Context(), hello); !errors.Is(err, c.want) {
					t.Errorf("Handle: %v, want %v", err, c.want)
				}
				if given != nil && given.Err() == nil {
					t.Error("the ctx of send goes on")
				}
				if p := l.pusher.Load(); p.ctx.Err() == nil {
					t.Error("the pusher goes on")
				}
			})
		})
	}
}

// The reason why a link died is pushed before it ends.
func TestPushLastWords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newPeer(t, NewHub(nil).ConnectViewer("tab"))
		v.push()
		v.refused(&HelloPayload{V: 7, Role: roleViewer}, &ErrorPayload{Code: CodeVersionUnsupported})
	})
}

// A send that is stuck delays no other link while there is a goroutine left, and its
// context ends soon after its link has died.
func TestPushStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		ended := make(chan error, 1)
		stuck, quick := newPeer(t, h.ConnectViewer("tab0")), newPeer(t, h.ConnectViewer("tab1"))
		stuck.link.Push(t.Context(), func(ctx context.Context, _ Payload) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})
		quick.push()
		for _, v := range []*peer{stuck, quick} {
			v.send(&HelloPayload{V: 1, Role: roleViewer}, v.watch("s", "", 0))
			synctest.Wait()
		}
		quick.wantTypes("welcome", "status", "event_batch")
		start := time.Now()
		h.ConnectViewer("tab0") // supersedes the stuck one
		if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(start) > drainTimeout {
			t.Errorf("the stuck send ends with %v after %v", err, time.Since(start))
		}
		h.Close()
	})
}

// Rule 9: a hub that is silent is considered gone, even while send is stuck.
func TestPushSilence(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		send SendFunc
	}{
		{"a sender", new(inbox).send},
		{"a stuck sender", func(ctx context.Context, _ Payload) error { <-ctx.Done(); return ctx.Err() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewStreamer(nil).Connect()
				l.Push(t.Context(), c.send)
				start := time.Now()
				<-l.done
				if err := l.failure(); !errors.Is(err, ErrSilent) || time.Since(start) > maxSilence+heartbeatEvery {
					t.Errorf("%v after %v", err, time.Since(start))
				}
				pass(drainTimeout) // the stuck send ends
			})
		})
	}
}

// Agents, a hub and viewers all push to one another: every viewer gets everything, each
// viewer's link sends from one goroutine at a time, and in the end no goroutine is
// left.
func TestPushAllAround(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const sessions, viewers, events = 3, 40, 200
		h := NewHub(&HubConfig{LogEvents: 50}) // the rest is replayed
		st := NewStreamer(nil)
		up, down := st.Connect(), h.ConnectAgent("agent")
		join(t, up, down)
		var readers sync.WaitGroup
		for i := range viewers {
			v := NewViewer(nil)
			for s := range sessions {
				v.Watch(fmt.Sprint("s", s), Position{})
			}
			connect := func() { join(t, v.Connect(), h.ConnectViewer(fmt.Sprint("tab", i))) }
			connect()
			readers.Go(func() { readAll(t, v, sessions, events, connect) })
		}
		for n := range events * sessions {
			id := fmt.Sprint("s", n%sessions)
			publish := st.Publish
			if n >= (events-1)*sessions {
				publish = st.End
			}
			if _, err := publish(t.Context(), id, Event{Data: []byte(`1`)}); err != nil {
				t.Fatal(err)
			}
		}
		readers.Wait()
		if err := st.Close(t.Context()); err != nil {
			t.Error(err)
		}
		h.Close()
		synctest.Wait()
		if h.workers.running != 0 || h.workers.jobs.Len() != 0 {
			t.Errorf("%d goroutines are left, and %d jobs", h.workers.running, h.workers.jobs.Len())
		}
	})
}

// join has two links push to each other.
func join(t *testing.T, a, b *Link) {
	push := func(from, to *Link) {
		var busy atomic.Int32
		err := from.Push(t.Context(), func(ctx context.Context, p Payload) error {
			if busy.Add(1) != 1 {
				t.Error("two sends at a time")
			}
			defer busy.Add(-1)
			var refused *ProtocolError
			if err := to.Handle(ctx, p); !errors.As(err, &refused) {
				return err
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	push(a, b)
	push(b, a)
}

// readAll reads until all sessions have ended, and reconnects now and then.
func readAll(t *testing.T, v *Viewer, sessions, events int, connect func()) {
	random := rand.New(rand.NewPCG(1, 2))
	next := make(map[string]uint64)
	ended := 0
	for it, err := range v.Items(t.Context()) {
		switch {
		case err != nil:
			t.Error(err)
			return
		case it.Event != nil:
			if next[it.SessionID]++; it.Event.Seq != next[it.SessionID] {
				t.Errorf("%s: event %d after %d", it.SessionID, it.Event.Seq, next[it.SessionID]-1)
			}
		case it.Gap != nil:
			t.Errorf("%s: a gap %v", it.SessionID, it.Gap)
		case it.End:
			ended++
		}
		if random.IntN(200) == 0 {
			connect()
		}
		if ended == sessions {
			break
		}
	}
	for id, seq := range next {
		if seq != uint64(events)+1 && seq != uint64(events) {
			t.Errorf("%s: %d events", id, seq)
		}
	}
	v.Close()
}

// A heartbeat that falls due while a send is under way is sent after it, and those
// after it too (rule 9). The workers used the time at which its turn had begun, for
// which the timer had already been set and had fired: the link's clock stood still for
// good.
func TestPushTimerRingsDuringSend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		v := newPeer(t, h.ConnectViewer("tab"))
		slow := make(chan struct{})
		v.push(func(p Payload) {
			if s, ok := p.(*StatusPayload); ok && len(s.Sessions) > 0 {
				<-slow // closed after the first
			}
		})
		v.hello(roleViewer)
		pass(heartbeatEvery - time.Second/2)
		v.send(v.watch("s", "", 0))
		pass(time.Second)
		close(slow)
		v.wantTypes("status", "status")
		pass(10 * heartbeatEvery)
		if n := len(v.drain()); n != 10 {
			t.Errorf("%d heartbeats in ten periods", n)
		}
		h.Close()
	})
}

// Nothing is sent on a transport that has failed, though more was ready.
func TestPushSendsNoMoreAfterError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		l := h.ConnectViewer("tab")
		for range 10 {
			l.Handle(t.Context(), &HelloPayload{V: 1, Role: roleViewer})
		}
		calls := 0
		l.Push(t.Context(), func(context.Context, Payload) error {
			calls++
			return errors.New("broken")
		})
		synctest.Wait()
		if calls != 1 {
			t.Errorf("send was called %d times", calls)
		}
		h.Close()
	})
}
