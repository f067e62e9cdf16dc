package gvstream

import (
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

// A script is a machine that does what a test says.
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

// note is a payload that says who it is from.
func note(name string) Payload { return &WatchPayload{SessionID: name} }

// notes is a task that says something n times.
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
	fatal := &ProtocolError{Code: codeAckBeyondSent, fatal: true}
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
		if p, _ := far.receive(t.Context()); p.(*ErrorPayload).Code != codeMalformed {
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

// Rule 11: an error is never answered by an error.
func TestLinkNeverAnswersErrorByError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := &ProtocolError{Code: codeUnexpected}
		m := newScript()
		m.handled = func(context.Context, Payload) error { return refuse }
		s := newPeer(t, m.Link)
		for _, p := range []*ErrorPayload{{Code: "overloaded"}, {Code: ""}, {Code: "x", SessionID: "\n"}, {Code: "x", Epoch: "E"}, {Code: "x", Seq: MaxSeq + 1}} {
			if err := m.Handle(t.Context(), p); err == nil {
				t.Errorf("%+v: no error", p)
			}
			s.wantIdle("an error is not answered")
		}
		s.refused(note("x"), &ErrorPayload{Code: codeUnexpected})
		refuse.fatal = true
		if err := m.Handle(t.Context(), &ErrorPayload{Code: "x"}); !errors.Is(err, refuse) {
			t.Error(err)
		}
		s.wantDead(refuse)
	})
}

func TestLinkStuckSendIsCancelled(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(h *Hub, l *Link)
		want error
	}{
		"superseded": {func(h *Hub, _ *Link) { h.ConnectAgent("agent") }, ErrSuperseded},
		"closed":     {func(_ *Hub, l *Link) { l.Close() }, ErrClosed},
		"hub closed": {func(h *Hub, _ *Link) { h.Close() }, ErrClosed},
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
				if err := <-done; err != end.want || time.Since(start) != 0 {
					t.Errorf("Run: %v after %v, want %v at once", err, time.Since(start), end.want)
				}
			})
		})
	}
}

// A link that fails says why before it is gone, but not for ever.
func TestLinkFatalErrorTellsThePeer(t *testing.T) {
	fatal := &ProtocolError{Code: codeAckBeyondSent, SessionID: "s", Seq: 3, fatal: true}
	t.Run("by Run", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newScript()
			m.handled = func(context.Context, Payload) error { return fatal }
			near, far := tubes()
			done := make(chan error, 1)
			go func() { done <- m.Run(t.Context(), near.send, near.receive) }()
			far.send(t.Context(), note("x"))
			pass(lastWords / 2)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if p, err := far.receive(ctx); err != nil || p.(*ErrorPayload).Code != codeAckBeyondSent {
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
			if err := <-done; !errors.Is(err, fatal) || time.Since(start) != lastWords && time.Since(start) != 0 {
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

// Next holds the one timer of the link: it is woken by the earliest deadline, also
// by one that is set while it waits.
func TestLinkNextTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
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
		m.answer(note("answer"))
		m.ready(notes("x", false, 1))
		m.Close()
		m.Close()
		m.ready(notes("y", false, 1))
		m.schedule(notes("z", false, 1), time.Now())
		m.answer(note("late"))
		newPeer(t, m.Link).wantDead(ErrClosed)
		if calls != 0 || m.detached != 1 {
			t.Errorf("%d calls, detached %d times", calls, m.detached)
		}
	})
}

func TestLinkBoundsAnswers(t *testing.T) {
	m := newScript()
	m.handled = func(context.Context, Payload) error { return &ProtocolError{Code: codeUnexpected} }
	for range 3 * maxAnswers {
		m.Handle(t.Context(), note("x"))
	}
	s := newPeer(t, m.Link)
	if n := len(s.drain()); n != maxAnswers {
		t.Errorf("%d answers, want %d", n, maxAnswers)
	}
	s.refused(note("x"), &ErrorPayload{Code: codeUnexpected}) // there is room again
}

// Rule 7: sessions take turns; acks, errors and statuses go before events.
func TestLinkTurns(t *testing.T) {
	m := newScript()
	m.ready(notes("a", false, 3))
	m.ready(notes("b", false, 1))
	m.ready(notes("c", false, 2))
	m.ready(notes("ack", true, 2))
	m.answer(note("error"))
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

// Whoever waits in Next is woken for each payload: two calls, two payloads.
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
	s.refused(nil, &ErrorPayload{Code: codeMalformed})
}

// What ctx ended is no end of the link: the payload counts as lost.
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

// An error is never answered by an error, not even one that can't be read (rule 11).
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

// TestLinkNextLeavesTimer: of two calls only the one that was woken last may know when
// the link is due. If its ctx ends, the other one has to look.
func TestLinkNextLeavesTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
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

// Whoever polls with a context that has ended pays for no timer.
func TestLinkPollAllocatesNothing(t *testing.T) {
	m := newScript()
	defer m.Close()
	m.schedule(notes("a", false, 1), time.Now().Add(time.Hour))
	if n := testing.AllocsPerRun(100, func() { m.Next(endedContext) }); n != 0 {
		t.Errorf("%v allocations a poll", n)
	}
}
