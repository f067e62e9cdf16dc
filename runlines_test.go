package gvstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A runForm runs a link over a byte stream.
type runForm = func(l *Link, ctx context.Context, rw io.ReadWriteCloser) error

// runForms are the two ways to do so, which do the same.
var runForms = map[string]runForm{
	"RunLines": (*Link).RunLines,
	"Run": func(l *Link, ctx context.Context, rw io.ReadWriteCloser) error {
		defer rw.Close()
		send, receive := Lines(rw)
		return l.Run(ctx, send, receive)
	},
}

// eachForm makes the test in a bubble for each of runForms.
func eachForm(t *testing.T, test func(t *testing.T, run runForm)) {
	t.Parallel()
	for name, run := range runForms {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(t, run) })
		})
	}
}

// A line that can't be read is refused, and the others are handled, until the stream
// ends; then it is closed.
func TestRunLinesReceive(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		for name, c := range lineStreams() {
			var closed atomic.Bool
			var refused atomic.Uint64
			handled := 0
			m := newScript()
			m.Link = newLink(m, &refused)
			m.handled = func(_ context.Context, p Payload) error {
				if diff := cmp.Diff(&HelloPayload{V: 1, Role: roleAgent}, p); diff != "" {
					t.Error(diff)
				}
				handled++
				return nil
			}
			err := run(m.Link, t.Context(), stream{c.in, io.Discard, func() error { closed.Store(true); return nil }})
			ok := 0
			for _, want := range c.want {
				if want == "ok" {
					ok++
				}
			}
			if bad := len(c.want) - 1 - ok; handled != ok || int(refused.Load()) != bad || !closed.Load() {
				t.Errorf("%s: %d handled, want %d; %d refused, want %d; closed: %v", name, handled, ok, refused.Load(), bad, closed.Load())
			}
			if want := c.want[len(c.want)-1]; err == nil || err.Error() != want {
				t.Errorf("%s: ends with %v, want %s", name, err, want)
			}
		}
	})
}

// sayTexts is a task that says texts, in watches of that id.
func sayTexts(texts ...string) *task {
	return &task{owner: takeFunc(func(time.Time) Payload {
		if len(texts) == 0 {
			return nil
		}
		p := &WatchPayload{SessionID: texts[0]}
		texts = texts[1:]
		return p
	})}
}

// A tap lets a test look at what is written, and wait for it. Reads wait for its end.
type tap struct {
	mu    sync.Mutex
	list  []string
	ended chan struct{}
	shut  func()
}

func newTap() *tap {
	w := &tap{ended: make(chan struct{})}
	w.shut = sync.OnceFunc(func() { close(w.ended) })
	return w
}

func (w *tap) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, string(b))
	return len(b), nil
}

func (w *tap) Read([]byte) (int, error) { <-w.ended; return 0, io.EOF }
func (w *tap) Close() error             { w.shut(); return nil }

func (w *tap) writes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list
}

// What is ready goes out in one Write; what is more than 64 KiB, in several.
func TestRunLinesJoinsLines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		w := newTap()
		done := make(chan error)
		m.ready(notes("a", false, 3))
		m.ready(notes("b", true, 2))
		go func() { done <- m.RunLines(t.Context(), w) }()
		synctest.Wait()
		line := func(id string) string {
			return frame("watch", `"session_id":"`+id+`","viewer_id":"","epoch":"","after_seq":0`) + "\n"
		}
		want := []string{line("b") + line("b") + line("a") + line("a") + line("a")}
		if diff := cmp.Diff(want, w.writes()); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		m.ready(notes("c", false, 1)) // what comes later is not waited for
		synctest.Wait()
		want = append(want, line("c"))
		if diff := cmp.Diff(want, w.writes()); diff != "" {
			t.Errorf("-want +got\n%s", diff)
		}
		long := strings.Repeat("x", 1000)
		var texts []string
		for range 300 {
			texts = append(texts, long)
		}
		m.ready(sayTexts(texts...))
		synctest.Wait()
		more := w.writes()[len(want):]
		if all := strings.Join(more, ""); all != strings.Repeat(line(long), 300) {
			t.Errorf("%d bytes written, want %d", len(all), 300*len(line(long)))
		}
		for i, b := range more {
			if len(b) >= keepLine+len(line(long)) || i < len(more)-1 && len(b) < keepLine {
				t.Errorf("write %d of %d has %d bytes", i, len(more), len(b))
			}
		}
		w.Close()
		if err := <-done; err != io.EOF {
			t.Errorf("RunLines: %v, want EOF", err)
		}
	})
}

// The longest line that is allowed is sent. One that is longer ends the run, and
// nothing of it is written.
func TestRunLinesTooLarge(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		overhead := len(frame("watch", `"session_id":"","viewer_id":"","epoch":"","after_seq":0`))
		m := newScript()
		w := newTap()
		m.ready(sayTexts(strings.Repeat("x", maxLine-overhead), strings.Repeat("x", maxLine-overhead+1)))
		if err := run(m.Link, t.Context(), w); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v, want ErrTooLarge", err)
		}
		if all := w.writes(); len(all) != 1 || len(all[0]) != maxLine+1 {
			t.Errorf("%d writes, want the one line that is allowed", len(all))
		}
	})
}

// A Write that fails, or takes less than it is given, ends the run.
func TestRunLinesWriteFails(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		broken := errors.New("broken")
		for _, c := range []struct {
			write writerFunc
			want  error
		}{
			{func([]byte) (int, error) { return 0, broken }, broken},
			{func([]byte) (int, error) { return 7, broken }, broken},
			{func(b []byte) (int, error) { return len(b) - 1, nil }, io.ErrShortWrite},
		} {
			m := newScript()
			w := newTap()
			m.ready(notes("a", false, 3))
			if err := run(m.Link, t.Context(), stream{w, c.write, w.Close}); err != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err := m.failure(); err != ErrClosed {
				t.Errorf("the link has %v, want ErrClosed", err)
			}
		}
	})
}

// A run ends at once, whatever its stream waits for, and closes that once.
func TestRunLinesEnds(t *testing.T) {
	errWhy := errors.New("user went home")
	for name, c := range map[string]struct {
		end  func(l *Link, cancel context.CancelCauseFunc)
		want error
	}{
		"ctx":    {func(_ *Link, cancel context.CancelCauseFunc) { cancel(errWhy) }, errWhy},
		"closed": {func(l *Link, _ context.CancelCauseFunc) { l.Close() }, ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			eachForm(t, func(t *testing.T, run runForm) {
				for _, stuck := range []bool{false, true} {
					ctx, cancel := context.WithCancelCause(t.Context())
					near, _ := net.Pipe() // nobody reads what is written
					var closed atomic.Int32
					m := newScript()
					if stuck {
						m.ready(notes("a", false, 1))
					}
					done := make(chan error)
					go func() {
						done <- run(m.Link, ctx, stream{near, near, func() error { closed.Add(1); return near.Close() }})
					}()
					pass(time.Second)
					start := time.Now()
					c.end(m.Link, cancel)
					if err := <-done; err != c.want || time.Since(start) != 0 {
						t.Errorf("%v after %v, want %v at once", err, time.Since(start), c.want)
					}
					if closed.Load() == 0 {
						t.Error("the stream is not closed")
					}
				}
			})
		})
	}
}

// With a ctx that has ended nothing is written, and what was ready comes again on the
// next link.
func TestRunLinesEndedContext(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		m := newScript()
		w := newTap()
		m.ready(notes("a", false, 1))
		if err := run(m.Link, endedContext, w); err != context.Canceled || len(w.writes()) > 0 {
			t.Errorf("%v, written %q", err, w.writes())
		}
	})
}

// Rule 9: an agent whose Write is stuck still notices that the hub is gone.
func TestRunLinesSilence(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		near, _ := net.Pipe()
		start := time.Now()
		if err := run(NewStreamer(nil).Connect(), t.Context(), near); err != ErrSilent {
			t.Errorf("%v, want ErrSilent", err)
		}
		if d := time.Since(start); d < maxSilence || d > maxSilence+2*heartbeat {
			t.Errorf("after %v", d)
		}
	})
}

// A link that fails says why, behind all that it had to say before.
func TestRunLinesLastWords(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		fatal := &ProtocolError{Code: codeAckBeyondSent, SessionID: "s", Seq: 3, fatal: true}
		near, far := net.Pipe()
		m := newScript()
		m.handled = func(context.Context, Payload) error { return fatal }
		done := make(chan error, 1)
		go func() { done <- run(m.Link, t.Context(), near) }()
		go io.WriteString(far, helloLine+"\n")
		pass(lastWords / 2) // the peer is slow to read
		said, err := io.ReadAll(bufio.NewReader(far))
		want, _ := Marshal(fatal.Payload())
		if err != nil || !bytes.Equal(said, append(want, '\n')) {
			t.Errorf("said %q, %v; want %q", said, err, want)
		}
		if err := <-done; !errors.Is(err, fatal) {
			t.Errorf("%v, want the fatal error", err)
		}
	})
}

func TestRunLinesTwice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		first, second := newTap(), newTap()
		done := make(chan error)
		go func() { done <- m.RunLines(t.Context(), first) }()
		synctest.Wait()
		if err := m.RunLines(t.Context(), second); err != ErrBusy {
			t.Errorf("%v, want ErrBusy", err)
		}
		<-second.ended // closed all the same
		first.Close()
		if err := <-done; err != io.EOF {
			t.Errorf("%v, want EOF", err)
		}
	})
}

// All payloads arrive, whichever form runs at either end, however the bytes are cut.
func TestRunLinesBetweenForms(t *testing.T) {
	t.Parallel()
	for from, one := range runForms {
		for to, other := range runForms {
			synctest.Test(t, func(t *testing.T) {
				const events = 500
				st, h := NewStreamer(nil), NewHub(nil)
				near, far := net.Pipe()
				ctx, cancel := context.WithCancel(t.Context())
				var tasks sync.WaitGroup
				tasks.Go(func() { one(st.Connect(), ctx, near) })
				tasks.Go(func() { other(h.ConnectAgent("a"), ctx, far) })
				publishN(t, st, "s", events)
				if err := st.Flush(ctx); err != nil {
					t.Error(err)
				}
				n := uint64(0)
				for it := range h.Items(ctx, "s", Position{}) {
					if n++; it.Event == nil || it.Event.Seq != n {
						t.Errorf("%s to %s: item %d is %v", from, to, n, it)
					}
					if n == events {
						break
					}
				}
				cancel()
				tasks.Wait()
			})
		}
	}
}

// One payload that no line can hold ends the link, but what came before it is sent:
// other sessions do not starve of it.
func TestRunLinesBeforeTooLarge(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		st := NewStreamer(&StreamerConfig{MaxEventBytes: maxLine + 1000})
		for id, text := range map[string]string{"a": "x", "b": strings.Repeat("x", maxLine)} {
			if _, err := st.Publish(t.Context(), id, Event{Data: []byte(`"` + text + `"`)}); err != nil {
				t.Fatal(err)
			}
		}
		near, far := net.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- run(st.Connect(), t.Context(), near) }()
		var got []string
		in := bufio.NewScanner(far)
		for in.Scan() {
			p, err := Unmarshal(in.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, p.payloadType()); len(got) == 1 {
				go far.Write([]byte(`{"type":"welcome","payload":{"v":1,"link":"l","window":9}}` + "\n"))
			}
		}
		slices.Sort(got) // in whatever order, and however often
		got = slices.Compact(got)
		if want := []string{"event_batch", "hello", "status"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if err := <-ended; !errors.Is(err, ErrTooLarge) {
			t.Errorf("ends with %v", err)
		}
	})
}
