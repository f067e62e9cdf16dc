package gvstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/testenv"
)

// A tube is one end of a connection in memory.
type tube struct{ out, in chan Payload }

func tubes() (a, b tube) {
	x, y := make(chan Payload), make(chan Payload)
	return tube{x, y}, tube{y, x}
}

func (x tube) send(ctx context.Context, p Payload) error {
	select {
	case x.out <- p:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (x tube) receive(ctx context.Context) (Payload, error) {
	select {
	case p := <-x.in:
		return p, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A script is a machine whose behaviour a test supplies.
type script struct {
	*Link
	handled  func(ctx context.Context, p Payload) error
	detached int
}

func newScript() *script {
	m := &script{handled: func(context.Context, Payload) error { return nil }}
	m.Link = newLink(m, new(atomic.Uint64))
	return m
}

func (m *script) handle(ctx context.Context, _ time.Time, p Payload) error { return m.handled(ctx, p) }
func (m *script) detach(time.Time)                                         { m.detached++ }

// note is a payload that names its sender.
func note(name string) Payload { return &WatchPayload{SessionID: name} }

// notes is a task that sends n notes.
func notes(name string, urgent bool, n int) *task {
	return &task{Control: urgent, Source: func(time.Time) Payload {
		if n == 0 {
			return nil
		}
		n--
		return note(name)
	}}
}

func blockedSend(ctx context.Context, _ Payload) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func blockedReceive(ctx context.Context) (Payload, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// diskError is a store's error of its own type.
type diskError struct{ sector int }

func (e *diskError) Error() string { return fmt.Sprintf("sector %d is gone", e.sector) }

func TestLinkRunReturnsFirstCause(t *testing.T) {
	errLine := errors.New("line is down")
	errWhy := errors.New("user went home")
	fatal := &ProtocolError{Code: CodeAckBeyondSent, fatal: true}
	hello := func(context.Context) (Payload, error) { return &HelloPayload{V: 1, Role: roleAgent}, nil }
	tests := []struct {
		name    string
		send    SendFunc
		receive ReceiveFunc
		handled error
		during  func(l *Link, cancel context.CancelCauseFunc)
		want    error
	}{
		{name: "send fails", send: func(context.Context, Payload) error { return errLine }, want: errLine},
		{name: "receive fails", receive: func(context.Context) (Payload, error) { return nil, errLine }, want: errLine},
		{name: "ctx ends", during: func(_ *Link, cancel context.CancelCauseFunc) { cancel(errWhy) }, want: errWhy},
		{name: "closed", during: func(l *Link, _ context.CancelCauseFunc) { l.Close() }, want: ErrClosed},
		{name: "superseded", during: func(l *Link, _ context.CancelCauseFunc) { l.fail(time.Now(), ErrSuperseded) }, want: ErrSuperseded},
		{name: "fatal refusal", receive: hello, handled: fatal, want: fatal},
		{name: "handle fails", receive: hello, handled: &diskError{7}, want: &diskError{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newScript()
				m.handled = func(context.Context, Payload) error { return test.handled }
				m.ready(notes("x", false, 1))
				send, receive := test.send, test.receive
				if send == nil {
					send = blockedSend
				}
				if receive == nil {
					receive = blockedReceive
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if test.during != nil {
					go func() {
						synctest.Wait()
						test.during(m.Link, cancel)
					}()
				}
				err := m.Run(ctx, send, receive)
				var disk *diskError
				if errors.As(test.want, &disk) {
					if !errors.As(err, &disk) || disk.sector != 7 {
						t.Errorf("Run: %v, want the callback's own error", err)
					}
				} else if !errors.Is(err, test.want) {
					t.Errorf("Run: %v, want %v", err, test.want)
				}
				synctest.Wait()
				if m.detached != 1 {
					t.Errorf("detached %d times, want once", m.detached)
				}
				if err := m.Handle(t.Context(), note("late")); err == nil {
					t.Error("Handle after Run: no error")
				}
			}) // Test fails if a goroutine is left
		})
	}
}

// Run returns ctx's cause, also to a transport that itself returns ctx.Err().
func TestLinkRunReturnsCtxCause(t *testing.T) {
	errWhy := errors.New("user went home")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errWhy)
	receive := func(ctx context.Context) (Payload, error) { return nil, ctx.Err() }
	for range 2000 {
		if err := newScript().Run(ctx, blockedSend, receive); err != errWhy {
			t.Fatalf("Run: %v, want ctx's cause", err)
		}
	}
}

func TestLinkRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		first := make(chan error)
		go func() { first <- m.Run(t.Context(), blockedSend, blockedReceive) }()
		synctest.Wait()
		if err := m.Run(t.Context(), blockedSend, blockedReceive); err != ErrBusy {
			t.Errorf("second Run: %v, want ErrBusy", err)
		}
		if err := m.failure(); err != nil {
			t.Errorf("the second Run ended the link: %v", err)
		}
		m.Close()
		if err := <-first; err != ErrClosed {
			t.Errorf("first Run: %v, want ErrClosed", err)
		}
	})
}

func TestLinkRunOnDeadLink(t *testing.T) {
	closedHub, closedViewer := NewHub(nil), NewViewer(nil)
	closedHub.Close()
	closedViewer.Close()
	for name, test := range map[string]struct {
		link *Link
		want error
	}{
		"agent without id":          {NewHub(nil).ConnectAgent(""), ErrInvalidID},
		"viewer with a control":     {NewHub(nil).ConnectViewer("a\nb"), ErrInvalidID},
		"viewer with a long id":     {NewHub(nil).ConnectViewer(strings.Repeat("x", 129)), ErrInvalidID},
		"agent of invalid UTF-8":    {NewHub(nil).ConnectAgent("\xff"), ErrInvalidID},
		"agent at a closed hub":     {closedHub.ConnectAgent("a"), ErrClosed},
		"viewer at a closed hub":    {closedHub.ConnectViewer("a"), ErrClosed},
		"link of a closed viewer":   {closedViewer.Connect(), ErrClosed},
		"link that was closed once": {closedLink(), ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if err := test.link.Run(t.Context(), blockedSend, blockedReceive); !errors.Is(err, test.want) {
					t.Errorf("Run: %v, want %v", err, test.want)
				}
				newPeer(t, test.link).wantDead(test.want)
			})
		})
	}
}

func closedLink() *Link {
	l := NewHub(nil).ConnectAgent("a")
	l.Close()
	l.Close()
	return l
}

// Rule 11: what could not be decoded is answered, and the link lives.
func TestLinkAnswersProtocolErrorOfReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := tubes()
		bad := true
		receive := func(ctx context.Context) (Payload, error) {
			if bad {
				bad = false
				return nil, fmt.Errorf("frame 1: %w", malformed("no JSON"))
			}
			return near.receive(ctx)
		}
		l := NewHub(nil).ConnectAgent("agent")
		done := make(chan error)
		go func() { done <- l.Run(t.Context(), near.send, receive) }()
		if p, _ := far.receive(t.Context()); p.(*ErrorPayload).Code != CodeMalformed {
			t.Errorf("got %s, want an error", payloadText(p))
		}
		far.send(t.Context(), &HelloPayload{V: 1, Role: roleAgent})
		if p, _ := far.receive(t.Context()); p.payloadType() != "welcome" {
			t.Errorf("got %s, want a welcome", payloadText(p))
		}
		l.Close()
		if err := <-done; err != ErrClosed {
			t.Error(err)
		}
	})
}

// Rule 11: an error is never answered with an error.
func TestLinkNeverAnswersErrorByError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := &ProtocolError{Code: CodeUnexpected}
		m := newScript()
		m.handled = func(context.Context, Payload) error { return refuse }
		s := newPeer(t, m.Link)
		for _, p := range []*ErrorPayload{{Code: CodeOverloaded}, {Code: ""}, {Code: "x", SessionID: "\n"}, {Code: "x", Epoch: "E"}, {Code: "x", Seq: MaxSeq + 1}} {
			if err := m.Handle(t.Context(), p); err == nil {
				t.Errorf("%+v: no error", p)
			}
			s.wantIdle("an error is not answered")
		}
		s.refused(note("x"), &ErrorPayload{Code: CodeUnexpected})
		refuse.fatal = true
		if err := m.Handle(t.Context(), &ErrorPayload{Code: "x"}); !errors.Is(err, refuse) {
			t.Error(err)
		}
		s.wantDead(refuse)
	})
}

func TestLinkStuckSendIsCancelled(t *testing.T) {
	for name, end := range map[string]struct {
		do    func(h *Hub, l *Link)
		want  error
		after time.Duration
	}{
		"superseded": {func(h *Hub, _ *Link) { h.ConnectAgent("agent") }, ErrSuperseded, drainTimeout}, // it would say so
		"closed":     {func(_ *Hub, l *Link) { l.Close() }, ErrClosed, 0},
		"hub closed": {func(h *Hub, _ *Link) { h.Close() }, ErrClosed, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHub(nil)
				l := h.ConnectAgent("agent")
				if err := l.Handle(t.Context(), &HelloPayload{V: 1, Role: roleAgent}); err != nil {
					t.Fatal(err)
				}
				done := make(chan error)
				go func() { done <- l.Run(t.Context(), blockedSend, blockedReceive) }()
				synctest.Wait()
				start := time.Now()
				end.do(h, l)
				if err := <-done; err != end.want || time.Since(start) != end.after {
					t.Errorf("Run: %v after %v, want %v after %v", err, time.Since(start), end.want, end.after)
				}
			})
		})
	}
}

// A link that fails sends the reason before it is gone, but does not try for ever.
func TestLinkFatalErrorTellsThePeer(t *testing.T) {
	fatal := &ProtocolError{Code: CodeAckBeyondSent, SessionID: "s", Seq: 3, fatal: true}
	t.Run("by Run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newScript()
			m.handled = func(context.Context, Payload) error { return fatal }
			near, far := tubes()
			done := make(chan error, 1)
			go func() { done <- m.Run(t.Context(), near.send, near.receive) }()
			far.send(t.Context(), note("x"))
			pass(drainTimeout / 2)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if p, err := far.receive(ctx); err != nil || p.(*ErrorPayload).Code != CodeAckBeyondSent {
				t.Errorf("the peer heard %s, %v", payloadText(p), err)
			}
			if err := <-done; !errors.Is(err, fatal) {
				t.Errorf("Run: %v", err)
			}
		})
	})
	t.Run("by Run, to a stuck peer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newScript()
			m.handled = func(context.Context, Payload) error { return fatal }
			near, far := tubes()
			done := make(chan error)
			go func() { done <- m.Run(t.Context(), blockedSend, near.receive) }()
			far.send(t.Context(), note("x"))
			start := time.Now()
			if err := <-done; !errors.Is(err, fatal) || time.Since(start) != drainTimeout && time.Since(start) != 0 {
				t.Errorf("Run: %v after %v", err, time.Since(start))
			}
		})
	})
	t.Run("by Next", func(t *testing.T) {
		m := newScript()
		m.handled = func(context.Context, Payload) error { return fatal }
		s := newPeer(t, m.Link)
		s.refused(note("x"), fatal.Payload())
		s.wantDead(fatal)
	})
}

func TestLinkNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		s := newPeer(t, m.Link)
		m.ready(notes("x", false, 1))
		s.want(note("x")) // a ready payload is preferred to an ended context
		errWhy := errors.New("user went home")
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() { _, err := m.Next(ctx); got <- err }()
		synctest.Wait()
		cancel(errWhy)
		if err := <-got; err != errWhy {
			t.Errorf("Next: %v, want ctx's cause", err)
		}
		go func() { _, err := m.Next(t.Context()); got <- err }()
		synctest.Wait()
		m.Close()
		if err := <-got; err != ErrClosed {
			t.Errorf("Next: %v, want ErrClosed", err)
		}
	})
}

// Next holds the one timer of the link: it is woken by the earliest deadline, including
// one that is set while it waits.
func TestLinkNextTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		m.patient = true
		start := time.Now()
		late, soon := notes("late", false, 1), notes("soon", false, 1)
		m.schedule(late, start.Add(time.Hour))
		m.schedule(late, start.Add(2*time.Hour)) // a later deadline changes nothing
		go func() {
			pass(time.Minute)
			m.schedule(soon, start.Add(5*time.Minute))
			m.schedule(soon, start.Add(2*time.Minute))
		}()
		for _, want := range []struct {
			name string
			at   time.Duration
		}{{"soon", 2 * time.Minute}, {"late", time.Hour}} {
			p, err := m.Next(t.Context())
			if err != nil || p.(*WatchPayload).SessionID != want.name || time.Since(start) != want.at {
				t.Errorf("%v: %s, %v, want %s at %v", time.Since(start), payloadText(p), err, want.name, want.at)
			}
		}
	})
}

// A payload counts as written when the sender comes for another. That its task was forgotten
// meanwhile, or the link has died or begun anew, means that nobody cares any more.
func TestLinkWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name string
			then func(m *script, a *task)
			want int
		}{
			{"Next", func(m *script, _ *task) { m.Next(endedContext) }, 1},
			{"NextFrame", func(m *script, _ *task) { m.NextFrame(endedContext, nil) }, 1},
			{"one that has not written yet", func(m *script, _ *task) { m.takeMore(time.Now()) }, 0},
			{"Handle", func(m *script, _ *task) { m.Handle(endedContext, note("a")) }, 0},
			{"forget", func(m *script, a *task) { m.forget(a); m.Next(endedContext) }, 0},
			{"forget another", func(m *script, _ *task) { m.forget(notes("b", false, 1)); m.Next(endedContext) }, 1},
			{"forgetAll", func(m *script, _ *task) { m.forgetAll(); m.Next(endedContext) }, 0},
			{"Close", func(m *script, _ *task) { m.Close(); m.Next(endedContext) }, 0},
		} {
			m := newScript()
			var written []time.Time
			a := notes("a", false, 1)
			a.Written = func(now time.Time) {
				m.failure() // takes the lock
				written = append(written, now)
			}
			m.ready(a)
			m.Next(endedContext)
			if len(written) > 0 {
				t.Errorf("%s: written before it could be", c.name)
			}
			pass(time.Second)
			c.then(m, a)
			if len(written) != c.want || c.want > 0 && !written[0].Equal(time.Now()) {
				t.Errorf("%s: written at %v, want %d", c.name, written, c.want)
			}
			m.Next(endedContext)
			if m.Next(endedContext); len(written) > 1 {
				t.Errorf("%s: written twice", c.name)
			}
			m.Close()
		}
	})
}

// Of many payloads in one write each task hears, and the list of them is not kept.
func TestLinkWrittenTogether(t *testing.T) {
	m := newScript()
	const n = 100
	written := 0
	for range n {
		a := notes("a", false, 1)
		a.Written = func(time.Time) { written++ }
		m.ready(a)
	}
	for range n {
		m.takeMore(time.Now())
	}
	m.take(time.Now())
	if written != n || cap(m.unwritten) != 0 {
		t.Errorf("%d of %d are written, and there is room for %d more", written, n, cap(m.unwritten))
	}
	m.Close()
}

func TestLinkForgottenTaskNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		a, b := notes("a", false, 1), notes("b", false, 1)
		m.schedule(a, time.Now().Add(time.Second))
		m.schedule(b, time.Now().Add(2*time.Second))
		m.forget(a)
		m.forget(a)
		pass(time.Hour)
		s := newPeer(t, m.Link)
		s.want(note("b"))
		s.wantIdle("a was forgotten")
	})
}

func TestLinkClosedSaysAndTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		calls := 0
		m.handled = func(context.Context, Payload) error { calls++; return nil }
		m.reply(note("answer"))
		m.ready(notes("x", false, 1))
		m.Close()
		m.Close()
		m.ready(notes("y", false, 1))
		m.schedule(notes("z", false, 1), time.Now())
		m.reply(note("late"))
		newPeer(t, m.Link).wantDead(ErrClosed)
		if calls != 0 || m.detached != 1 {
			t.Errorf("%d calls, detached %d times", calls, m.detached)
		}
	})
}

func TestLinkBoundsAnswers(t *testing.T) {
	m := newScript()
	m.handled = func(context.Context, Payload) error { return &ProtocolError{Code: CodeUnexpected} }
	for range 3 * maxReplies {
		m.Handle(t.Context(), note("x"))
	}
	s := newPeer(t, m.Link)
	if n := len(s.drain()); n != maxReplies {
		t.Errorf("%d answers, want %d", n, maxReplies)
	}
	s.refused(note("x"), &ErrorPayload{Code: CodeUnexpected}) // there is room again
}

// Rule 7: sessions take turns; acks, errors and statuses go before events.
func TestLinkTurns(t *testing.T) {
	m := newScript()
	m.ready(notes("a", false, 3))
	m.ready(notes("b", false, 1))
	m.ready(notes("c", false, 2))
	m.ready(notes("ack", true, 2))
	m.reply(note("error"))
	var got []string
	s := newPeer(t, m.Link)
	for p := s.next(); p != nil; p = s.next() {
		got = append(got, p.(*WatchPayload).SessionID)
		if len(got) == 5 {
			m.ready(notes("late ack", true, 1))
		}
	}
	want := []string{"error", "ack", "ack", "a", "b", "late ack", "c", "a", "c", "a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order: -want +got\n%s", diff)
	}
}

// A call that waits in Next is woken for each payload: two calls, two payloads.
func TestLinkConcurrentNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		got := make(chan Payload, 2)
		for range 2 {
			go func() {
				if p, err := m.Next(t.Context()); err == nil {
					got <- p
				}
			}()
		}
		synctest.Wait()
		m.mu.Lock() // both become ready before anyone looks
		m.readyLocked(notes("a", false, 1))
		m.readyLocked(notes("b", false, 1))
		m.mu.Unlock()
		m.wakeNext()
		synctest.Wait()
		if len(got) != 2 {
			t.Errorf("%d of 2 waiting calls were given a payload", len(got))
		}
		m.Close()
	})
}

func TestLinkHandleNoPayload(t *testing.T) {
	s := newPeer(t, newScript().Link)
	s.refused(nil, &ErrorPayload{Code: CodeMalformed})
}

// A ctx that ends a call does not end the link: the payload counts as lost.
func TestLinkHandleCtxEnds(t *testing.T) {
	m := newScript()
	m.handled = func(ctx context.Context, _ Payload) error { return context.Cause(ctx) }
	if err := m.Handle(endedContext, note("x")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := m.Handle(t.Context(), note("x")); err != nil {
		t.Error(err)
	}
}

// All three machines over Run, with a cut in the middle (rules 3 and 6).
func TestLinkRunWholeWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		st, h, v := NewStreamer(nil), NewHub(nil), NewViewer(nil)
		if err := v.Watch("s", Position{}); err != nil {
			t.Fatal(err)
		}
		connect := func() (cut context.CancelFunc) {
			ctx, cut := context.WithCancel(ctx)
			a, b := tubes()
			c, d := tubes()
			go st.Connect().Run(ctx, a.send, a.receive)
			go h.ConnectAgent("agent").Run(ctx, b.send, b.receive)
			go v.Connect().Run(ctx, c.send, c.receive)
			go h.ConnectViewer("tab").Run(ctx, d.send, d.receive)
			return cut
		}
		cut := connect()
		go func() {
			for i := range 600 {
				if i == 300 {
					cut()
					synctest.Wait()
					cut = connect()
				}
				if _, err := st.Publish(ctx, "s", Event{Type: "out", Data: json.RawMessage(fmt.Sprint(i))}); err != nil {
					t.Error(err)
				}
			}
			if _, err := st.End(ctx, "s", Event{Type: "exit"}); err != nil {
				t.Error(err)
			}
		}()
		next := uint64(1)
		for it, err := range v.Items(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if it.End {
				break
			}
			if it.Event == nil || it.Event.Seq != next {
				t.Fatalf("%+v, want event %d", it, next)
			}
			next++
		}
		if next != 602 {
			t.Errorf("the end came before %d", next)
		}
		if err := st.Close(ctx); err != nil {
			t.Error(err)
		}
		cut()
		cancel()
	})
}

// An error is never answered with an error, not even one that can't be decoded (rule
// 11).
func TestLinkUnreadableErrorIsNotAnswered(t *testing.T) {
	for _, line := range []string{
		`{"type":"error","payload":{"code":""}}`,
		`{"type":"error","payload":{"code":7}}`,
		`{"type":"error","payload":{"code":"x","seq":-1}}`,
	} {
		_, err := Unmarshal([]byte(line))
		var refused *ProtocolError
		if !errors.As(err, &refused) || !refused.unanswered {
			t.Errorf("%s: %v is to be answered", line, err)
		}
	}
	if _, err := Unmarshal([]byte(`{"type":"hello","payload":{"v":-1}}`)); err.(*ProtocolError).unanswered {
		t.Errorf("%v is not to be answered", err)
	}
}

// TestLinkNextLeavesTimer: of two waiting calls, only the one that was woken last may
// know the link's next deadline. If its ctx ends, the other one has to check.
func TestLinkNextLeavesTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		m.patient = true
		got := make(chan Payload, 2)
		next := func(ctx context.Context) {
			if p, err := m.Next(ctx); err == nil {
				got <- p
			}
		}
		first, cancel := context.WithCancel(t.Context())
		go next(first)
		synctest.Wait()
		go next(t.Context())
		synctest.Wait()
		m.schedule(notes("a", false, 1), time.Now().Add(time.Minute))
		synctest.Wait()
		cancel()
		pass(time.Minute)
		synctest.Wait()
		if len(got) != 1 {
			t.Error("the call that stayed missed the timer")
		}
		m.Close()
	})
}

// Polling with a context that has ended does not pay for a timer.
func TestLinkPollAllocatesNothing(t *testing.T) {
	m := newScript()
	defer m.Close()
	m.schedule(notes("a", false, 1), time.Now().Add(time.Hour))
	if n := testing.AllocsPerRun(100, func() { m.Next(endedContext) }); n != 0 {
		t.Errorf("%v allocations a poll", n)
	}
}

// TestLinkTypedNil: a nil payload of any type is refused.
func TestLinkTypedNil(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("panic: %v", r)
		}
	}()
	l := NewHub(nil).ConnectAgent("a")
	l.Handle(t.Context(), (*HelloPayload)(nil))
}

// TestLinkWelcomeFlood: unsolicited welcomes are not obeyed, and cost nothing.
func TestLinkWelcomeFlood(t *testing.T) {
	st := NewStreamer(nil)
	for i := range 100 {
		st.Publish(t.Context(), fmt.Sprint("s", i), Event{})
	}
	al := st.connect(time.Now())
	for i := range 1000 { // two small frames each; the agent's send is blocked meanwhile
		al.Handle(t.Context(), &WelcomePayload{V: 1, Link: fmt.Sprint("l", i), WindowEvents: 1})
		al.Handle(t.Context(), &ErrorPayload{Code: CodeStaleLink})
	}
	if n := readyTasks(al.Link); n > 100 {
		t.Errorf("agent: %d tasks in the queue of 100 sessions", n)
	}
	v := NewViewer(nil)
	for i := range 100 {
		v.Watch(fmt.Sprint("s", i), Position{})
	}
	vl := v.connect(time.Now())
	for i := range 1000 {
		vl.Handle(t.Context(), &WelcomePayload{V: 1, Link: fmt.Sprint("l", i)})
		vl.Handle(t.Context(), &ErrorPayload{Code: CodeStaleLink})
	}
	if n := readyTasks(vl.Link); n > 101 {
		t.Errorf("viewer: %d tasks in the queue of 100 watches", n)
	}
}

// TestLinkSilentWhileSendIsStuck: a half-open connection takes what fits into its
// buffers, and then nothing. The peer's silence was checked only between sends, so Run
// was stuck in one for as long as the transport was (rule 9).
func TestLinkSilentWhileSendIsStuck(t *testing.T) {
	connect := map[string]func() *Link{
		"agent": func() *Link {
			st := NewStreamer(nil)
			publishN(t, st, "s", 1)
			return st.Connect()
		},
		"viewer": func() *Link {
			v := NewViewer(nil)
			v.Watch("s", Position{})
			return v.Connect()
		},
	}
	for role, connect := range connect {
		t.Run(role, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, near, far := connect(), make(chan Payload, 3), make(chan Payload)
				ended := start(func() error {
					return l.Run(t.Context(), func(ctx context.Context, p Payload) error {
						select {
						case near <- p:
							return nil
						case <-ctx.Done():
							return ctx.Err()
						}
					}, func(ctx context.Context) (Payload, error) {
						select {
						case p := <-far:
							return p, nil
						case <-ctx.Done():
							return nil, ctx.Err()
						}
					})
				})
				synctest.Wait() // hello is said
				far <- &WelcomePayload{V: 1, Link: "l1", WindowEvents: 256}
				for range 5 { // to be answered, if anything could be sent
					far <- &HelloPayload{V: 1, Role: role}
				}
				pass(maxSilence - 1)
				wantWaiting(t, ended)
				pass(heartbeatEvery)
				wantReturned(t, ended, ErrSilent)
			})
		})
	}
}

// TestLinkSilentBeforeWelcome: a connection that breaks silently before its welcome
// ends as well. Silence was checked only after the welcome, so hello was repeated for
// ever, and nobody reconnected (rule 9).
func TestLinkSilentBeforeWelcome(t *testing.T) {
	for name, link := range map[string]func() *Link{
		"agent":  func() *Link { return NewStreamer(nil).Connect() },
		"viewer": func() *Link { return NewViewer(nil).Connect() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := link()
				pass(time.Hour) // not checked yet
				start := time.Now()
				var said []time.Duration
				for {
					if _, err := l.Next(context.Background()); err != nil {
						if !errors.Is(err, ErrSilent) || time.Since(start) != maxSilence {
							t.Errorf("ended after %v with %v", time.Since(start), err)
						}
						break
					}
					if said = append(said, time.Since(start)); len(said) > 10 {
						t.Fatalf("goes on after %v", said)
					}
				}
				if len(said) < 2 || said[1] != timerFirst {
					t.Errorf("hello was said after %v", said)
				}
			})
		})
	}
}

// relay joins links by frames, all in one buffer that is overwritten before the next,
// until none has anything to send.
func relay(t *testing.T, pairs ...[2]*Link) {
	t.Helper()
	var buf []byte
	for quiet := 0; quiet < 3; quiet++ { // a silent link may make others send
		for _, pair := range pairs {
			frame, err := pair[0].NextFrame(endedContext, append(buf[:0], "before "...))
			if !bytes.HasPrefix(frame, []byte("before ")) {
				t.Fatalf("what stood in dst is gone: %.100q", frame)
			}
			if buf = frame; len(frame) == len("before ") {
				if err != context.Canceled {
					t.Fatal(err)
				}
				continue
			}
			quiet = 0
			if err := pair[1].HandleFrame(context.Background(), frame[len("before "):]); err != nil {
				t.Fatalf("%v: %.300s", err, frame)
			}
			for i := range frame {
				frame[i] = '#'
			}
		}
	}
}

// Events of all kinds, live and replayed, go from agent to viewers in frames of which
// nobody keeps a byte.
func TestFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 600
		st := NewStreamer(nil)
		h := NewHub(&HubConfig{LogEvents: 50})
		early, late := NewViewer(&ViewerConfig{BufferItems: 2 * events}), NewViewer(&ViewerConfig{BufferItems: 2 * events})
		agent, hub := st.Connect(), h.ConnectAgent("a")
		hubEarly, atEarly := h.ConnectViewer("early"), early.Connect()
		hubLate, atLate := h.ConnectViewer("late"), late.Connect()
		wires := [][2]*Link{{agent, hub}, {hub, agent}, {hubEarly, atEarly}, {atEarly, hubEarly}, {hubLate, atLate}, {atLate, hubLate}}
		early.Watch("s", Position{})
		var want []Event
		for i := range events {
			e := Event{Type: []string{"out", "err", ""}[i/7%3], Data: fmt.Appendf(nil, `"%0*d"`, 1+i*i%700, i)}
			switch {
			case i%11 == 5:
				e.Data, e.Bytes = nil, bytes.Repeat([]byte{byte(i)}, 1+i%9)
			case i%50 == 7:
				e.Data = nil
			case i%50 == 8: // one that a hub has a chunk of its own for
				e.Data = fmt.Appendf(nil, `"%06000d"`, i)
			}
			want = append(want, e)
			if _, err := st.Publish(t.Context(), "s", e); err != nil {
				t.Fatal(err)
			}
			if i%37 == 0 {
				relay(t, wires...)
			}
		}
		relay(t, wires...)
		pass(ackDelay)
		late.Watch("s", Position{})
		relay(t, wires...)
		for name, v := range map[string]*Viewer{"early": early, "late": late} {
			n := 0
			for it, err := range v.Items(endedContext) {
				if err != nil || it.Event == nil {
					t.Fatalf("%s: %v, %v", name, it, err)
				}
				if e := want[n]; it.Event.Type != e.Type || !bytes.Equal(it.Event.Data, e.Data) || !bytes.Equal(it.Event.Bytes, e.Bytes) {
					t.Fatalf("%s: event %d is %v, want %v", name, n+1, it.Event, e)
				}
				n++
			}
			if n != events {
				t.Errorf("%s saw %d events, want %d", name, n, events)
			}
		}
		if n := st.Stats().PendingEvents; n != 0 {
			t.Errorf("%d events pending", n)
		}
	})
}

// A frame that NextFrame writes is what Append makes of what Next returns, even after
// others have used the same memory.
func TestNextFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		links := make([]*Link, 2)
		for i := range links {
			st := NewStreamer(nil)
			st.epochs = epoch.NewSource(zeros{}) // both make the same epochs
			links[i] = st.Connect()
			s := newPeer(t, links[i])
			s.want(&HelloPayload{V: 1, Role: roleAgent})
			s.send(&WelcomePayload{V: 1, Link: "l", WindowEvents: 1000})
			for n := range 400 {
				st.Publish(t.Context(), "s", Event{Type: "out", Data: fmt.Appendf(nil, `"%0*d"`, n, n)})
			}
		}
		for n := 0; ; n++ {
			p, err := links[0].Next(endedContext)
			frame, frameErr := links[1].NextFrame(endedContext, nil)
			if err != frameErr {
				t.Fatalf("%v and %v", err, frameErr)
			}
			if err != nil {
				if n < 2 || frame != nil {
					t.Errorf("%d frames; then %q", n, frame)
				}
				return
			}
			want, err := Marshal(p)
			if err != nil || !bytes.Equal(frame, want) {
				t.Fatalf("%v\n%s", err, cmp.Diff(string(want), string(frame)))
			}
		}
	})
}

// zeros is a source of randomness that has none.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// A link that has died neither accepts nor makes frames.
func TestHandleFrameClosed(t *testing.T) {
	m := newScript()
	m.Close()
	for _, frame := range []string{helloLine, "{"} {
		if err := m.HandleFrame(t.Context(), []byte(frame)); err != ErrClosed {
			t.Errorf("%s: %v, want ErrClosed", frame, err)
		}
	}
	if frame, err := m.NextFrame(t.Context(), []byte("as it was")); string(frame) != "as it was" || err != ErrClosed {
		t.Errorf("%q, %v", frame, err)
	}
}

// NextFrame and HandleFrame wait as Next and Handle do, and return ctx's cause.
func TestFramesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		errWhy := errors.New("user went home")
		m.handled = func(ctx context.Context, _ Payload) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() { _, err := m.NextFrame(ctx, nil); got <- err }()
		go func() { got <- m.HandleFrame(ctx, []byte(helloLine)) }()
		synctest.Wait()
		cancel(errWhy)
		for range 2 {
			if err := <-got; err != errWhy {
				t.Errorf("%v, want ctx's cause", err)
			}
		}
		if err := m.failure(); err != nil {
			t.Errorf("the link died: %v", err)
		}
	})
}

// A busy connection makes no garbage: a batch costs its payload, and what the hub's
// log has to grow.
func TestFramesAllocate(t *testing.T) {
	st := NewStreamer(nil)
	h := NewHub(nil)
	agent, hub := st.Connect(), h.ConnectAgent("a")
	wires := [][2]*Link{{agent, hub}, {hub, agent}}
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("7"), 200)
	var frame []byte
	batch := func() {
		for range 100 {
			if _, err := s.Publish(t.Context(), Event{Type: "out", Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		for quiet := false; !quiet; {
			quiet = true
			for _, wire := range wires {
				frame, err = wire[0].NextFrame(endedContext, frame[:0])
				if err == nil {
					quiet = false
					err = wire[1].HandleFrame(t.Context(), frame)
				}
				if err != nil && err != context.Canceled {
					t.Fatal(err)
				}
			}
		}
	}
	for range 30 {
		batch()
	}
	// At most the payloads of two batches and acks, and chunks. A sync.Pool forgets things
	// under the race detector.
	if n := testing.AllocsPerRun(testenv.Fewer(100), batch); n > 8 && !testenv.RaceEnabled {
		t.Errorf("%v allocations", n)
	}
	if n := st.Stats().PendingEvents; n != 0 {
		t.Errorf("%d events pending", n)
	}
}

// Large events of a frame stay together in the log, which would have had a chunk for
// each.
func TestHandleFrameLargeEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 3)
		for i := range b.Events {
			b.Events[i].Data = fmt.Appendf(nil, "%q", strings.Repeat(string(rune('a'+i)), 2*largeEntry))
		}
		frame, err := Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.link.HandleFrame(t.Context(), frame); err != nil {
			t.Fatal(err)
		}
		clear(frame)
		l := &h.lookup("s").log
		if l.ring.at(0).chunk != l.ring.at(2).chunk {
			t.Error("the events are apart")
		}
		n := 0
		for it := range h.Items(endedContext, "s", Position{}) {
			if string(it.Event.Data) != string(b.Events[n].Data) {
				t.Errorf("event %d is %.20s", it.Event.Seq, it.Event.Data)
			}
			n++
		}
		if n != 3 {
			t.Errorf("%d events", n)
		}
	})
}
