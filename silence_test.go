package gvstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream/internal/slowconn"
)

// wantSilent wants the link to end by silence within a heartbeat after maxSilence, with an
// error that says for how long.
func wantSilent(t *testing.T, l *Link) {
	t.Helper()
	start := time.Now()
	<-l.Done()
	if took := time.Since(start); took < maxSilence-heartbeatEvery || took > maxSilence+heartbeatEvery {
		t.Errorf("the link ended after %v", took)
	}
	err := l.Err()
	if !errors.Is(err, ErrSilent) {
		t.Fatalf("the link ended with %v", err)
	}
	_, said, _ := strings.Cut(err.Error(), " for ")
	if d, err := time.ParseDuration(said); err != nil || d < maxSilence || d > maxSilence+heartbeatEvery {
		t.Errorf("it was silent for %q", said)
	}
}

// eachLink runs a test with a link of each kind.
func eachLink(t *testing.T, test func(t *testing.T, l *Link)) {
	t.Parallel()
	for name, link := range map[string]func() *Link{
		"agent":         func() *Link { return NewStreamer(nil).Connect() },
		"hub, to agent": func() *Link { return NewHub(nil).ConnectAgent("a") },
		"hub":           func() *Link { return NewHub(nil).ConnectViewer("tab") },
		"viewer":        func() *Link { return NewViewer(nil).Connect() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, link()) })
		})
	}
}

// Rule 9: whatever comes is a sign of life, also what is refused or stale. The silence counts
// from when the link is first served, and however it is served, it ends the link.
func TestSilence(t *testing.T) {
	const alive = 20 * time.Second
	serving := map[string]func(l *Link){
		"Next":        func(l *Link) { l.Next(endedContext) },
		"NextFrame":   func(l *Link) { l.NextFrame(endedContext, nil) },
		"Handle":      func(l *Link) { l.Handle(endedContext, nil) },
		"HandleFrame": func(l *Link) { l.HandleFrame(endedContext, nil) },
		"Done":        func(l *Link) { l.Done() },
		"Push":        func(l *Link) { l.Push(context.Background(), blockedSend) },
		"Run":         func(l *Link) { go l.Run(context.Background(), blockedSend, blockedReceive) },
		"RunLines": func(l *Link) {
			conn, _ := slowconn.Pipe(slowconn.Way{}, slowconn.Way{})
			go l.RunLines(context.Background(), conn)
		},
	}
	eachLink(t, func(t *testing.T, l *Link) {
		pass(time.Hour) // nobody serves it yet
		for _, sign := range []func(){
			func() { l.HandleFrame(endedContext, []byte("nonsense")) },
			func() { l.HandleFrame(endedContext, []byte(`{"type":"hello"}`)) },
			func() { l.Handle(endedContext, &StatusPayload{Link: "another"}) },
			func() { l.Handle(endedContext, &ErrorPayload{Code: CodeMalformed}) },
			func() { l.Handle(endedContext, &HelloPayload{V: 1, Role: "nobody"}) },
		} {
			for range 5 {
				sign()
				pass(alive)
			}
		}
		if err := l.Handle(endedContext, &StatusPayload{Link: "another"}); l.Err() != nil {
			t.Fatalf("the link ended with %v", err)
		}
		wantSilent(t, l)
	})
	for name, serve := range serving {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newScript().Link
				serve(l)
				synctest.Wait()
				wantSilent(t, l)
				pass(drainTimeout) // what serves it ends
			})
		})
	}
}

// A part of a line is a sign of life: a long one may take minutes to come.
func TestSilenceBytesRead(t *testing.T) {
	eachLink(t, func(t *testing.T, l *Link) {
		near, far := slowconn.Pipe(slowconn.Way{}, slowconn.Way{})
		go io.Copy(io.Discard, far)
		done := start(func() error { return l.RunLines(t.Context(), near) })
		far.Write([]byte(`{"type":"error","payload":{"message":"`))
		for range 20 {
			pass(30 * time.Second)
			far.Write([]byte("x"))
		}
		wantWaiting(t, done)
		wantSilent(t, l)
		wantReturned(t, done, ErrSilent)
		far.Close()
	})
}

// A write that had to wait and went on is a sign of life, in pieces of 16 KiB; one that
// never goes on is none, and neither are those that fit into the buffers of this side.
func TestSilenceBytesWritten(t *testing.T) {
	eachForm(t, func(t *testing.T, run runForm) {
		m := newScript()
		near, far := slowconn.Pipe(slowconn.Way{Buffer: pieceSize}, slowconn.Way{})
		done := start(func() error { return run(m.Link, t.Context(), near) })
		const lines, size = 20, 100_000
		var texts []string
		for range lines {
			texts = append(texts, strings.Repeat("x", size))
		}
		m.ready(sayTexts(texts...))
		buf := make([]byte, pieceSize)
		began := time.Now()
		for read := 0; read < lines*size*9/10; {
			pass(4 * time.Second) // a line takes half a minute
			n, err := far.Read(buf)
			if err != nil {
				t.Fatalf("after %d bytes and %v: %v", read, time.Since(began), err)
			}
			read += n
		}
		wantSilent(t, m.Link) // the last line is never read
		wantReturned(t, done, ErrSilent)
	})
	t.Run("buffers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := newScript()
			near, _ := slowconn.Pipe(slowconn.Way{}, slowconn.Way{})
			done := start(func() error { return m.RunLines(t.Context(), near) })
			go func() {
				for m.Err() == nil {
					m.ready(notes("a", false, 1))
					pass(time.Second)
				}
			}()
			wantSilent(t, m.Link)
			wantReturned(t, done, ErrSilent)
			pass(time.Second)
		})
	})
}

// A long line goes out in pieces, of which the last is what is left.
func TestRunLinesPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		w := newTap()
		m.ready(sayTexts(strings.Repeat("x", keepLine+2*pieceSize)))
		done := start(func() error { return m.RunLines(t.Context(), w) })
		synctest.Wait()
		var sizes []int
		for _, piece := range w.writes() {
			sizes = append(sizes, len(piece))
		}
		if n := len(sizes); n != 3 || sizes[0] != pieceSize || sizes[1] != pieceSize || sizes[2] <= keepLine || sizes[2] > keepLine+pieceSize {
			t.Errorf("pieces of %d bytes", sizes)
		}
		if in := bufio.NewScanner(strings.NewReader(strings.Join(w.writes(), ""))); true {
			in.Buffer(nil, maxLine)
			if !in.Scan() || !bytes.HasSuffix(in.Bytes(), []byte("}")) || in.Scan() {
				t.Error("the pieces are not one line")
			}
		}
		w.Close()
		wantReturned(t, done, io.EOF)
	})
}

// While a payload is being handled the next ones are not received: that is this side's own
// silence, however long it takes. It is over with the call.
func TestSilenceWhileHandling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, busy := range []time.Duration{heartbeatEvery - 1, maxSilence - 1, maxSilence, time.Hour} {
			m := newScript()
			m.handled = func(context.Context, Payload) error { pass(busy); return nil }
			m.Handle(t.Context(), note("a"))
			pass(maxSilence - heartbeatEvery - 1) // the peer's next sign of life may need as long
			if err := m.Err(); err != nil {
				t.Errorf("busy for %v: %v", busy, err)
			}
			m.Close()
		}
		m := newScript()
		m.handled = func(context.Context, Payload) error { panic("mine") }
		func() {
			defer func() { recover() }()
			m.Handle(t.Context(), note("a"))
		}()
		wantSilent(t, m.Link)
	})
}

// Rule 9: a hub speaks to an agent by itself, 15 s after what it said last.
func TestHubHeartbeatToAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newPeer(t, NewHub(nil).ConnectAgent("a"))
		pass(time.Minute)
		a.wantIdle("nothing before the hello")
		a.hello(roleAgent)
		alive := &StatusPayload{Link: a.id}
		a.wantAfter(heartbeatEvery, alive)
		a.wantAfter(heartbeatEvery, alive)
		pass(heartbeatEvery - 1)
		a.send(a.status())
		a.want(alive) // the answer
		a.wantAfter(heartbeatEvery, alive)
		a.send(&HelloPayload{V: 1, Role: roleAgent}) // a second one changes nothing
		a.wantTypes("welcome")
		a.wantAfter(heartbeatEvery, alive)
	})
}

// Rule 13: so does a viewer, from the welcome on and under the link's present id.
func TestViewerHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := meetHub(t, NewViewer(nil))
		hub.deaf = false
		hub.hearsHello()
		hub.wantAfter(timerFirst, &HelloPayload{V: 1, Role: roleViewer})
		hub.welcome("l1")
		hub.wantAfter(heartbeatEvery, &StatusPayload{ViewerID: "tab", Link: "l1"})
		pass(heartbeatEvery - 1)
		hub.send(&ErrorPayload{Code: CodeStaleLink})
		hub.want(&HelloPayload{V: 1, Role: roleViewer})
		hub.welcome("l2")
		hub.wantAfter(heartbeatEvery, &StatusPayload{ViewerID: "tab", Link: "l2"})
		hub.wantAfter(heartbeatEvery, &StatusPayload{ViewerID: "tab", Link: "l2"})
	})
}

// Done is closed when the last payload is sent, or a second after the death if nobody comes
// for it, also if the link died before it was used.
func TestLinkDone(t *testing.T) {
	fatal := &ProtocolError{Code: CodeVersionUnsupported, fatal: true}
	for _, c := range []struct {
		name string
		end  func(l *Link)
		want error
		took time.Duration
	}{
		{"Close", func(l *Link) { l.Done(); l.Close() }, ErrClosed, 0},
		{"Close of one not served", func(l *Link) { l.Close() }, ErrClosed, 0},
		{"a last payload", func(l *Link) { l.Done(); l.refuse(time.Now(), fatal) }, fatal, drainTimeout},
		{"a last payload of one not served", func(l *Link) { l.refuse(time.Now(), fatal) }, fatal, drainTimeout},
		{"a last payload that is sent", func(l *Link) {
			l.Done()
			l.refuse(time.Now(), fatal)
			l.Next(endedContext)
			l.Next(endedContext)
		}, fatal, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newScript().Link
				if err := l.Err(); err != nil {
					t.Errorf("alive, and the error is %v", err)
				}
				c.end(l)
				start := time.Now()
				<-l.Done()
				if took := time.Since(start); took != c.took {
					t.Errorf("done after %v, want %v", took, c.took)
				}
				if err := l.Err(); err != c.want {
					t.Errorf("error %v, want %v", err, c.want)
				}
				if p, err := l.Next(endedContext); p != nil || err != c.want {
					t.Errorf("then Next returns %v, %v", p, err)
				}
				pass(time.Hour) // nothing rings any more
			})
		})
	}
}
