package scenarios_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// A recording is a terminal session in the asciicast format, version 2.
type recording struct {
	output []json.RawMessage // what the terminal printed, as JSON strings
	text   string            // the same, together
}

func readRecording(name string) (recording, error) {
	var rec recording
	f, err := os.Open(name)
	if err != nil {
		return rec, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Scan() // the header
	for lines.Scan() {
		var event [3]json.RawMessage // time, kind, text
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return rec, err
		}
		if string(event[1]) == `"o"` {
			rec.output = append(rec.output, event[2])
			rec.text += unquote(event[2])
		}
	}
	return rec, lines.Err()
}

func unquote(data json.RawMessage) string {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err.Error()
	}
	return s
}

// A screen is what one viewer saw of a terminal.
type screen struct {
	events int
	gaps   int
	cuts   int
	text   strings.Builder
}

func (s *screen) String() string {
	return fmt.Sprintf("%d events, %d bytes, sha256 %.8x, %d gaps", s.events, s.text.Len(), sha256.Sum256([]byte(s.text.String())), s.gaps)
}

// A dialer makes a connection: the end of an agent or a viewer, and the hub's.
type dialer func() (near, far end)

// An end of a connection runs a link over itself, until it is closed.
type end struct {
	run   func(context.Context, *gvstream.Link) error
	close func() error
}

// onto is the end that a transport is.
func onto(t streamtest.Transport) end {
	run := func(ctx context.Context, l *gvstream.Link) error { return l.Run(ctx, t.Send, t.Receive) }
	return end{run, t.Close}
}

func inMemory() (near, far end) {
	a, b := pipe()
	return onto(a), onto(b)
}

func pipe() (near, far streamtest.Transport) {
	a, b := streamtest.Pipe()
	return streamtest.Transport{Send: a.Send, Receive: a.Receive, Close: a.Close},
		streamtest.Transport{Send: b.Send, Receive: b.Receive, Close: b.Close}
}

// stay keeps a connection up until ctx ends: when it breaks, it makes the next.
// Each time cut can be sent to, the connection that is up is cut. Its near end's
// context ends with it: a link that waits for a slow reader looks at no transport.
func stay(ctx context.Context, dial dialer, connect, accept func() *gvstream.Link, cut <-chan struct{}) {
	var running sync.WaitGroup
	defer running.Wait()
	for ctx.Err() == nil {
		near, far := dial()
		up, hangUp := context.WithCancel(ctx)
		broken := make(chan struct{})
		running.Go(func() { far.run(ctx, accept()); far.close() })
		running.Go(func() { near.run(up, connect()); close(broken) })
		select {
		case <-cut:
		case <-broken:
		}
		near.close()
		hangUp()
		<-broken
	}
}

// A theatre plays a recording: an agent, a hub and viewers.
type theatre struct {
	rec   recording
	dial  dialer
	hub   *gvstream.Hub
	agent *gvstream.Streamer

	tasks sync.WaitGroup
}

const session = "shell"

// play publishes the recording and returns what three viewers saw: one that was
// there from the start, one that joined late, and one that stopped in the middle
// and went on in a new process, with its saved position. All but the late one have
// their connections cut again and again, at fixed points; so has the agent.
func play(ctx context.Context, rec recording, dial dialer) (screens [3]*screen, agentCuts int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	th := &theatre{
		rec: rec, dial: dial,
		hub:   gvstream.NewHub(&gvstream.HubConfig{LogEvents: 100, Window: 16}),
		agent: gvstream.NewStreamer(nil),
	}
	defer th.tasks.Wait()
	defer cancel()

	half := make(chan struct{}) // the agent is half-way
	var viewers sync.WaitGroup
	viewers.Go(func() { screens[0], _ = th.view(ctx, "early", gvstream.Position{}, len(rec.output), 60) })
	viewers.Go(func() {
		<-half
		screens[1], _ = th.view(ctx, "late", gvstream.Position{}, len(rec.output), 0)
	})
	viewers.Go(func() {
		first, saved := th.view(ctx, "resumed", gvstream.Position{}, 250, 100)
		second, _ := th.view(ctx, "resumed", saved, len(rec.output), 100)
		first.add(second)
		screens[2] = first
	})
	agentCuts, err = th.publish(ctx, half)
	viewers.Wait()
	return screens, agentCuts, err
}

// publish is the agent. It is cut off after every 50 events.
func (th *theatre) publish(ctx context.Context, half chan<- struct{}) (cuts int, err error) {
	cut := make(chan struct{})
	th.tasks.Go(func() {
		stay(ctx, th.dial, th.agent.Connect, func() *gvstream.Link { return th.hub.ConnectAgent("gvshell") }, cut)
	})
	for i, data := range th.rec.output {
		if _, err := th.agent.Publish(ctx, session, gvstream.Event{Type: "stdout", Data: data}); err != nil {
			return cuts, err
		}
		switch {
		case i == len(th.rec.output)/2:
			close(half)
		case i%50 == 49:
			cut <- struct{}{}
			cuts++
		}
	}
	if _, err := th.agent.End(ctx, session, gvstream.Event{Type: "exit"}); err != nil {
		return cuts, err
	}
	return cuts, th.agent.Flush(ctx)
}

// view is one viewer: it watches from a position until it has seen an event
// number, and is cut off after every so many events.
func (th *theatre) view(ctx context.Context, id string, from gvstream.Position, until, cutEvery int) (*screen, gvstream.Position) {
	ctx, cancel := context.WithCancel(ctx)
	v := gvstream.NewViewer(nil)
	v.Watch(session, from)
	cut := make(chan struct{})
	var connection sync.WaitGroup
	connection.Go(func() {
		stay(ctx, th.dial, v.Connect, func() *gvstream.Link { return th.hub.ConnectViewer(id) }, cut)
	})
	defer connection.Wait()
	defer cancel()

	s := &screen{}
	for item, err := range v.Items(ctx) {
		switch {
		case err != nil:
			s.text.WriteString(err.Error())
		case item.Gap != nil:
			s.gaps++
		case item.Event != nil && item.Event.Type == "stdout":
			s.events++
			s.text.WriteString(unquote(item.Event.Data))
			if cutEvery > 0 && s.events%cutEvery == 0 {
				cut <- struct{}{}
				s.cuts++
			}
		}
		if item.End || item.Position().Seq == uint64(until) && until < len(th.rec.output) {
			return s, item.Position()
		}
	}
	return s, v.Position(session)
}

func (s *screen) add(next *screen) {
	s.events += next.events
	s.gaps += next.gaps
	s.cuts += next.cuts
	s.text.WriteString(next.text.String())
}

// tcp makes real connections on loopback.
func tcp(t *testing.T) func() (near, far net.Conn) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var one sync.Mutex // dial and accept in pairs
	return func() (near, far net.Conn) {
		one.Lock()
		defer one.Unlock()
		near, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			far, err = listener.Accept()
		}
		if err != nil {
			t.Error(err)
			return net.Pipe()
		}
		return near, far
	}
}

// overTCP runs links as lines over real connections.
func overTCP(t *testing.T) dialer {
	run := func(conn net.Conn) end {
		return end{func(ctx context.Context, l *gvstream.Link) error { return l.RunLines(ctx, conn) }, conn.Close}
	}
	dial := tcp(t)
	return func() (near, far end) {
		a, b := dial()
		return run(a), run(b)
	}
}

func lines(conn net.Conn) streamtest.Transport {
	send, receive := gvstream.Lines(conn)
	return streamtest.Transport{Send: send, Receive: receive, Close: conn.Close}
}

// TestTerminal streams the recording in memory and over TCP, in real time, and
// logs what each viewer saw.
func TestTerminal(t *testing.T) {
	rec, err := readRecording("../../testdata/shell-session.cast")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("in memory", func(t *testing.T) { testTerminal(t, rec, inMemory) })
	t.Run("over TCP", func(t *testing.T) { testTerminal(t, rec, overTCP(t)) })
}

func testTerminal(t *testing.T, rec recording, dial dialer) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Logf("recording: %d events, %d bytes, sha256 %.8x", len(rec.output), len(rec.text), sha256.Sum256([]byte(rec.text)))
	screens, cuts, err := play(ctx, rec, dial)
	t.Logf("agent:     cut off %d times", cuts)
	if err != nil || cuts < 10 {
		t.Errorf("the agent ended with %v after %d cuts", err, cuts)
	}
	for i, s := range screens {
		t.Logf("%-10s %v, cut off %d times", viewerNames[i], s, s.cuts)
		if s.events != len(rec.output) || s.gaps != 0 || s.text.String() != rec.text {
			t.Errorf("viewer %d saw %v; the recording has %d events and %d bytes", i, s, len(rec.output), len(rec.text))
		}
		if cut := []int{10, 0, 5}[i]; s.cuts < cut {
			t.Errorf("viewer %d survived %d cuts, want %d or more", i, s.cuts, cut)
		}
	}
}

var viewerNames = []string{"early:", "late:", "resumed:"}

// TestTransports shows that what the library's own transports promise is so.
func TestTransports(t *testing.T) {
	t.Parallel()
	t.Run("pipe", func(t *testing.T) {
		t.Parallel()
		streamtest.TestTransport(t, func(*testing.T) (agent, hub streamtest.Transport) { return pipe() })
	})
	t.Run("net.Pipe", func(t *testing.T) {
		t.Parallel()
		streamtest.TestTransport(t, func(*testing.T) (agent, hub streamtest.Transport) {
			a, b := net.Pipe()
			return lines(a), lines(b)
		})
	})
	t.Run("tcp", func(t *testing.T) {
		t.Parallel()
		dial := tcp(t)
		streamtest.TestTransport(t, func(*testing.T) (agent, hub streamtest.Transport) {
			a, b := dial()
			return lines(a), lines(b)
		})
	})
}
