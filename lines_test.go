package gvstream

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/testenv"
)

// A stream is a ReadWriteCloser of parts.
type stream struct {
	io.Reader
	io.Writer
	close func() error
}

func (s stream) Close() error {
	if s.close == nil {
		return nil
	}
	return s.close()
}

const helloLine = `{"type":"hello","payload":{"viewer_id":"","v":1,"role":"agent"}}`

// padded is helloLine, made n bytes long by white space.
func padded(n int) string { return helloLine + strings.Repeat(" ", n-len(helloLine)) }

func TestLinesPipe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		testLinesBothWays(t, a, b)
	})
}

func TestLinesTCP(t *testing.T) {
	t.Parallel()
	a, b := tcpPair(t)
	testLinesBothWays(t, a, b)
}

// tcpPair is the two ends of a connection over the loopback interface.
func tcpPair(t *testing.T) (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// testLinesBothWays sends every payload to the far end and what arrived there back,
// many times.
func testLinesBothWays(t *testing.T, a, b net.Conn) {
	const rounds = 20
	ctx := t.Context()
	done := make(chan error, 2)
	go func() { // the far end returns everything
		send, receive := Lines(b)
		for {
			p, err := receive(ctx)
			if err == nil {
				err = send(ctx, p)
			}
			if err != nil {
				done <- err
				return
			}
		}
	}()
	send, receive := Lines(a)
	go func() {
		for range rounds {
			for _, p := range wireSamples() {
				if err := send(ctx, p); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	for range rounds {
		for _, want := range wireSamples() {
			got, err := receive(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, sameWire); diff != "" {
				t.Fatal(diff)
			}
		}
	}
	if err := <-done; err != nil {
		t.Errorf("send: %v", err)
	}
	a.Close()
	if err := <-done; err != io.EOF {
		t.Errorf("the far end got %v, want EOF", err)
	}
}

// A lineStream is a stream of lines, and what is received from it: "ok" or the error,
// up to the final one.
type lineStream struct {
	in   io.Reader
	want []string
}

func lineStreams() map[string]lineStream {
	broken := errors.New("broken")
	tooLong := fmt.Sprintf("gvstream: malformed: frame: a line of more than %d bytes", maxLine)
	all := map[string]lineStream{
		"nothing":               {strings.NewReader(""), []string{"EOF"}},
		"one":                   {strings.NewReader(helloLine + "\n"), []string{"ok", "EOF"}},
		"CR LF":                 {strings.NewReader(helloLine + "\r\n" + helloLine + "\r\n"), []string{"ok", "ok", "EOF"}},
		"empty lines":           {strings.NewReader("\n\r\n\n" + helloLine + "\n\n\r\n\n"), []string{"ok", "EOF"}},
		"no line's end":         {strings.NewReader(helloLine), []string{"unexpected EOF"}},
		"second broken off":     {strings.NewReader(helloLine + "\n{"), []string{"ok", "unexpected EOF"}},
		"only CR":               {strings.NewReader("\r"), []string{"unexpected EOF"}},
		"last data with EOF":    {iotest.DataErrReader(strings.NewReader(helloLine + "\n" + helloLine + "\n")), []string{"ok", "ok", "EOF"}},
		"broken off with EOF":   {iotest.DataErrReader(strings.NewReader(helloLine + "\n{")), []string{"ok", "unexpected EOF"}},
		"byte by byte":          {iotest.OneByteReader(strings.NewReader(helloLine + "\r\n" + padded(9000) + "\n")), []string{"ok", "ok", "EOF"}},
		"other error":           {io.MultiReader(strings.NewReader(helloLine+"\n{"), iotest.ErrReader(broken)), []string{"ok", "broken"}},
		"malformed":             {strings.NewReader("{\n" + helloLine + "\n"), []string{"gvstream: malformed: byte 1: want a string", "ok", "EOF"}},
		"white space":           {strings.NewReader(" \n" + helloLine + "\n"), []string{"gvstream: malformed: byte 1: want an object", "ok", "EOF"}},
		"CR inside":             {strings.NewReader("{\r}\n"), []string{"gvstream: malformed: byte 3: envelope without a type", "EOF"}},
		"unknown type":          {strings.NewReader(`{"type":"x"}` + "\n"), []string{`gvstream: unknown_type: unknown type "x"`, "EOF"}},
		"one less than longest": {strings.NewReader(padded(maxLine-1) + "\n" + helloLine + "\n"), []string{"ok", "ok", "EOF"}},
		"longest":               {strings.NewReader(padded(maxLine) + "\n" + helloLine + "\n"), []string{"ok", "ok", "EOF"}},
		"longest, CR LF":        {strings.NewReader(padded(maxLine) + "\r\n" + helloLine + "\n"), []string{"ok", "ok", "EOF"}},
		"too long":              {strings.NewReader(padded(maxLine+1) + "\n" + helloLine + "\n"), []string{tooLong, "ok", "EOF"}},
		"too long, CR LF":       {strings.NewReader(padded(maxLine+1) + "\r\n" + helloLine + "\n"), []string{tooLong, "ok", "EOF"}},
		"too long, in halves":   {iotest.HalfReader(strings.NewReader(padded(maxLine+1) + "\n" + helloLine + "\n")), []string{tooLong, "ok", "EOF"}},
		"too long, at the end":  {iotest.DataErrReader(strings.NewReader(padded(2*maxLine) + "\n")), []string{tooLong, "EOF"}},
		"too long, broken off":  {strings.NewReader(padded(3 * maxLine)), []string{"unexpected EOF"}},
		"twice too long":        {strings.NewReader(padded(2*maxLine) + "\n" + padded(maxLine+2) + "\n" + helloLine + "\n"), []string{tooLong, tooLong, "ok", "EOF"}},
	}
	if testenv.RaceEnabled { // one goroutine, and megabytes: once is enough
		maps.DeleteFunc(all, func(name string, _ lineStream) bool {
			return name != "too long" && name != "longest" && strings.Contains(name, "long")
		})
	}
	return all
}

func TestLinesReceive(t *testing.T) {
	t.Parallel()
	for name, c := range lineStreams() {
		t.Run(name, func(t *testing.T) {
			_, receive := Lines(stream{Reader: c.in})
			last := c.want[len(c.want)-1]
			for _, want := range append(c.want, last, last) {
				p, err := receive(t.Context())
				got := "ok"
				if err != nil {
					got = err.Error()
				}
				if got != want || (p == nil) != (err != nil) {
					t.Fatalf("%v, %s; want %s", p, got, want)
				}
			}
		})
	}
}

// endless is a line that goes on for n bytes.
type endless struct{ n int }

func (e *endless) Read(b []byte) (int, error) {
	if e.n <= 0 {
		return copy(b, "\n"), io.EOF
	}
	n := min(len(b), e.n)
	for i := range n {
		b[i] = 'x'
	}
	e.n -= n
	return n, nil
}

func TestLinesLongLineIsNotStored(t *testing.T) {
	_, receive := Lines(stream{Reader: &endless{64 << 20}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := receive(t.Context())
	runtime.ReadMemStats(&after)
	if cost := after.TotalAlloc - before.TotalAlloc; cost > 10<<20 {
		t.Errorf("%d bytes allocated for a line of 64 MiB", cost)
	}
	var perr *ProtocolError
	if !errors.As(err, &perr) || perr.Code != CodeMalformed {
		t.Errorf("error %v", err)
	}
	if _, err := receive(t.Context()); err != io.EOF {
		t.Errorf("then %v, want EOF", err)
	}
}

// A connection that becomes quiet gives back the memory that a large frame needed.
func TestLinesShrinks(t *testing.T) {
	t.Parallel()
	r := &lineReceiver{r: strings.NewReader(padded(maxLine) + "\n" + strings.Repeat(helloLine+"\n", 3)), closer: closer{end: func() {}}}
	for range 4 {
		if _, err := r.receive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.receive(t.Context()); err != io.EOF || len(r.buf) > keepLine {
		t.Errorf("a buffer of %d bytes is kept (%v)", len(r.buf), err)
	}
}

// writes keeps every Write.
type writes struct {
	list []string
	err  error
	n    int // bytes taken when err is set
}

func (w *writes) Write(b []byte) (int, error) {
	w.list = append(w.list, string(b))
	if w.err != nil {
		return w.n, w.err
	}
	return len(b), nil
}

func TestLinesSend(t *testing.T) {
	w := new(writes)
	send, _ := Lines(stream{Writer: w})
	var want []string
	for _, p := range wireSamples() {
		want = append(want, wire(t, p.payloadType())+"\n")
		if err := send(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, w.list); diff != "" {
		t.Errorf("one Write a line (-want +got):\n%s", diff)
	}
}

func batchOfData(data string) *EventBatchPayload {
	return &EventBatchPayload{
		SessionID: "s", Epoch: "e", Link: "l", FirstSeq: 1, LastSeq: 1, HeadSeq: 1,
		Events: []Event{{Seq: 1, Data: json.RawMessage(data)}},
	}
}

// Line breaks between the tokens of Data do not reach the wire.
func TestLinesSendFraming(t *testing.T) {
	var b bytes.Buffer
	send, receive := Lines(stream{Reader: &b, Writer: &b})
	if err := send(t.Context(), batchOfData("\n[1,\r\n\n2]\n")); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "\n"); n != 1 {
		t.Errorf("%d line ends in %q", n, b.String())
	}
	got, err := receive(t.Context())
	if diff := cmp.Diff(batchOfData("[1,2]"), got, sameWire); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestLinesSendTooLarge(t *testing.T) {
	t.Parallel()
	overhead, err := Marshal(batchOfData(`""`))
	if err != nil {
		t.Fatal(err)
	}
	w := new(writes)
	send, _ := Lines(stream{Writer: w})
	text := func(n int) string { return `"` + strings.Repeat("x", n-len(overhead)) + `"` }
	for _, c := range []struct {
		p    Payload
		want error
	}{
		{batchOfData(text(maxLine + 1)), ErrTooLarge},
		{batchOfData(text(3 * maxLine)), ErrTooLarge},
		{batchOfData("{"), ErrInvalidData},
		{batchOfData(text(maxLine)), nil},
	} {
		if err := send(t.Context(), c.p); !errors.Is(err, c.want) {
			t.Errorf("error %v, want %v", err, c.want)
		}
	}
	if len(w.list) != 1 || len(w.list[0]) != maxLine+1 {
		t.Errorf("%d lines written, want only the longest that is allowed", len(w.list))
	}
}

// After half a line nothing more can be sent.
func TestLinesSendFails(t *testing.T) {
	hello := &HelloPayload{V: 1, Role: roleAgent}
	for _, w := range []*writes{{err: errors.New("broken"), n: 7}, {err: errors.New("broken")}} {
		send, _ := Lines(stream{Writer: w})
		first := send(t.Context(), hello)
		second := send(t.Context(), hello)
		if first != w.err || second != w.err || len(w.list) != 1 {
			t.Errorf("errors %v and %v after %d writes", first, second, len(w.list))
		}
	}
	short := stream{Writer: writerFunc(func(b []byte) (int, error) { return len(b) - 1, nil })}
	send, _ := Lines(short)
	if err := send(t.Context(), hello); err != io.ErrShortWrite {
		t.Errorf("error %v, want %v", err, io.ErrShortWrite)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestLinesContext(t *testing.T) {
	for name, start := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"canceled": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(time.Second, cancel)
			return ctx, cancel
		},
		"deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := start(t.Context())
				defer cancel()
				a, _ := net.Pipe()
				testLinesContext(t, ctx, a)
			})
		})
	}
}

func TestLinesContextTCP(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	a, _ := tcpPair(t)
	testLinesContext(t, ctx, a)
}

// testLinesContext has a send and a receive wait for a peer that does nothing,
// until ctx ends.
func testLinesContext(t *testing.T, ctx context.Context, a net.Conn) {
	var closed atomic.Int32
	send, receive := Lines(stream{a, a, func() error { closed.Add(1); return a.Close() }})
	sent := make(chan error)
	go func() {
		p := batchOfData(`"` + strings.Repeat("x", 1<<20) + `"`)
		for {
			if err := send(ctx, p); err != nil {
				sent <- err
				return
			}
		}
	}()
	if _, err := receive(ctx); err != ctx.Err() {
		t.Errorf("receive: %v, want %v", err, ctx.Err())
	}
	if err := <-sent; err != ctx.Err() {
		t.Errorf("send: %v, want %v", err, ctx.Err())
	}
	if _, err := receive(ctx); err != ctx.Err() {
		t.Errorf("receive again: %v, want %v", err, ctx.Err())
	}
	if n := closed.Load(); n != 1 {
		t.Errorf("closed %d times", n)
	}
	if _, err := receive(t.Context()); err == nil {
		t.Errorf("a receive from the closed stream succeeded")
	}
}

// A ctx that ends between two calls closes the stream too, one that had ended before
// closes it at once, and a line that has already arrived is still returned.
func TestLinesContextBetweenCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var closed atomic.Int32
		count := func() error { closed.Add(1); return nil }
		hello := &HelloPayload{V: 1, Role: roleAgent}

		_, receive := Lines(stream{Reader: strings.NewReader(helloLine + "\n" + helloLine + "\n"), close: count})
		send, _ := Lines(stream{Writer: io.Discard, close: count})
		if _, err := receive(ctx); err != nil {
			t.Fatal(err)
		}
		if err := send(ctx, hello); err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if n := closed.Load(); n != 2 {
			t.Errorf("%d of 2 closed", n)
		}
		if _, err := receive(ctx); err != nil {
			t.Errorf("the line that was read already: %v", err)
		}
		if _, err := receive(ctx); err != context.Canceled {
			t.Errorf("receive: %v", err)
		}
		if err := send(ctx, hello); err != context.Canceled {
			t.Errorf("send: %v", err)
		}

		closed.Store(0)
		w := new(writes)
		send, receive = Lines(stream{Reader: iotest.ErrReader(io.EOF), Writer: w, close: count})
		if err := send(ctx, hello); err != context.Canceled || len(w.list) > 0 {
			t.Errorf("send: %v, written %q", err, w.list)
		}
		if _, err := receive(ctx); err != context.Canceled {
			t.Errorf("receive: %v", err)
		}
		if n := closed.Load(); n != 1 {
			t.Errorf("closed %d times", n)
		}
	})
}

type valueKey struct{}

// countingCtx counts what is registered with it, instead of ending.
type countingCtx struct {
	context.Context
	done         chan struct{}
	added, taken atomic.Int32
}

func newCountingCtx(t *testing.T) *countingCtx {
	return &countingCtx{Context: t.Context(), done: make(chan struct{})}
}

func (c *countingCtx) Done() <-chan struct{} { return c.done }

func (c *countingCtx) AfterFunc(func()) func() bool {
	c.added.Add(1)
	return func() bool { c.taken.Add(1); return true }
}

// A ctx that outlives the stream retains nothing of it.
func TestLinesRegistersOnce(t *testing.T) {
	first, second := newCountingCtx(t), newCountingCtx(t)
	check := func(when string, c *countingCtx, added, taken int32) {
		t.Helper()
		if a, b := c.added.Load(), c.taken.Load(); a != added || b != taken {
			t.Errorf("%s: registered %d times, taken back %d times; want %d and %d", when, a, b, added, taken)
		}
	}
	_, receive := Lines(stream{Reader: iotest.OneByteReader(strings.NewReader(strings.Repeat(helloLine+"\n", 6)))})
	get := func(ctx context.Context) {
		t.Helper()
		if _, err := receive(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		get(first)
		get(context.WithValue(first, valueKey{}, "same end"))
	}
	check("after six calls", first, 1, 0)
	if _, err := receive(second); err != io.EOF {
		t.Error(err)
	}
	check("the ctx before", first, 1, 1)
	check("at the end", second, 1, 1)

	_, receive = Lines(stream{Reader: strings.NewReader(helloLine + "\n")})
	get(context.Background()) // never ends: nothing to register
	if _, err := receive(first); err != io.EOF {
		t.Error(err)
	}
	check("after a Background", first, 2, 2)
}

// The functions of a stream can be collected while ctx and stream live on.
func TestLinesDropped(t *testing.T) {
	ctx := newCountingCtx(t)
	send, _ := Lines(stream{Writer: io.Discard})
	if err := send(ctx, &HelloPayload{V: 1, Role: roleAgent}); err != nil {
		t.Fatal(err)
	}
	send = nil
	for ctx.taken.Load() == 0 { // the garbage collector decides when
		runtime.GC()
	}
}

// A runForm runs a link over a byte stream.
type runForm = func(l *Link, ctx context.Context, rw io.ReadWriteCloser) error

// runForms are the two ways to do so, which behave the same.
var runForms = map[string]runForm{
	"RunLines": (*Link).RunLines,
	"Run": func(l *Link, ctx context.Context, rw io.ReadWriteCloser) error {
		defer rw.Close()
		send, receive := Lines(rw)
		return l.Run(ctx, send, receive)
	},
}

// eachForm runs the test in a bubble for each of runForms.
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
	return &task{Source: func(time.Time) Payload {
		if len(texts) == 0 {
			return nil
		}
		p := &WatchPayload{SessionID: texts[0]}
		texts = texts[1:]
		return p
	}}
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

// What is ready goes out in one Write; more than 64 KiB, in several.
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

// The longest line that is allowed is sent. Of one that is longer and has no parts nothing is
// written, as if it were lost on its way, and the run goes on.
func TestRunLinesTooLarge(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		overhead := len(frame("watch", `"session_id":"","viewer_id":"","epoch":"","after_seq":0`))
		m := newScript()
		w := newTap()
		m.ready(sayTexts(strings.Repeat("x", maxLine-overhead), strings.Repeat("x", maxLine-overhead+1), "y"))
		done := start(func() error { return run(m.Link, t.Context(), w) })
		synctest.Wait()
		w.Close()
		wantReturned(t, done, io.EOF)
		rest := frame("watch", `"session_id":"y","viewer_id":"","epoch":"","after_seq":0`) + "\n"
		if all := strings.Join(w.writes(), ""); len(all) != maxLine+1+len(rest) || !strings.HasSuffix(all, "\n"+rest) {
			t.Errorf("%d bytes were written, want %d and %q", len(all), maxLine+1, rest)
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

// With a ctx that has ended nothing is written, and what was ready is sent on the next
// link.
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
		if err := run(NewStreamer(nil).Connect(), t.Context(), near); !errors.Is(err, ErrSilent) {
			t.Errorf("%v, want ErrSilent", err)
		}
		if d := time.Since(start); d < maxSilence || d > maxSilence+2*heartbeatEvery {
			t.Errorf("after %v", d)
		}
	})
}

// A link that fails sends the reason, after everything that it had to send before.
func TestRunLinesLastWords(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		fatal := &ProtocolError{Code: CodeAckBeyondSent, SessionID: "s", Seq: 3, fatal: true}
		near, far := net.Pipe()
		m := newScript()
		m.handled = func(context.Context, Payload) error { return fatal }
		done := make(chan error, 1)
		go func() { done <- run(m.Link, t.Context(), near) }()
		go io.WriteString(far, helloLine+"\n")
		pass(drainTimeout / 2) // the peer is slow to read
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

// A payload that no line can hold ends nothing: it is sent in parts, an event that is too
// long by itself becomes a gap, and what else is ready goes out as well.
func TestRunLinesInParts(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		st := NewStreamer(&StreamerConfig{MaxEventBytes: maxLine + 1000, TrustData: true})
		for _, text := range []string{"x", strings.Repeat("x", maxLine), "y"} {
			for _, id := range []string{"a", "b"} {
				if _, err := st.Publish(t.Context(), id, Event{Data: []byte(`"` + text + `"`)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		near, far := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		ended := start(func() error { return run(st.Connect(), ctx, near) })
		send, receive := Lines(far)
		if _, err := receive(ctx); err != nil { // hello
			t.Fatal(err)
		}
		send(ctx, &WelcomePayload{V: 1, Link: "l", WindowEvents: 9, WindowBytes: 64 << 20})
		got := make(map[string]string)
		for len(got["a"])+len(got["b"]) < 2*len("1 gap2 3 ") {
			p, err := receive(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if b, ok := p.(*EventBatchPayload); ok {
				for _, it := range interleave(b.SessionID, b.Epoch, b.Events, b.Gaps) {
					if it.Gap != nil {
						got[b.SessionID] += "gap"
					}
					got[b.SessionID] += fmt.Sprint(it.Seq, " ")
				}
			}
		}
		for _, id := range []string{"a", "b"} {
			if got[id] != "1 gap2 3 " {
				t.Errorf("%s: got %s", id, got[id])
			}
			if s := stats(t, st, id); s.Lost != 1 || s.PendingEvents != 2 {
				t.Errorf("%s: %+v", id, s)
			}
		}
		cancel()
		wantReturned(t, ended, context.Canceled)
	})
}
