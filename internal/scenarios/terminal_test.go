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
	"github.com/vibetools/gvstream/internal/scene"
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

// A terminal is a recording on its way from an agent through a hub to viewers, over
// connections that are cut again and again.
type terminal struct {
	*scene.Scene
	ctx  context.Context
	rec  recording
	dial dialer
}

const session = "shell"

// play publishes the recording and returns what three viewers saw: one that was there
// from the start, one that joined late, and one that stopped in the middle and
// continued in a new process, with its saved position. The connections of all but the
// late one, and of the agent, are cut at fixed points.
func (tm *terminal) play() (screens [3]*screen, agentCuts int, err error) {
	half := make(chan struct{}) // closed when the agent is half-way
	var viewers sync.WaitGroup
	viewers.Go(func() { screens[0], _ = tm.view("early", gvstream.Position{}, len(tm.rec.output), 60) })
	viewers.Go(func() {
		<-half
		screens[1], _ = tm.view("late", gvstream.Position{}, len(tm.rec.output), 0)
	})
	viewers.Go(func() {
		first, saved := tm.view("resumed", gvstream.Position{}, 250, 100)
		second, _ := tm.view("resumed", saved, len(tm.rec.output), 100)
		first.add(second)
		screens[2] = first
	})
	agentCuts, err = tm.publish(half)
	viewers.Wait()
	return screens, agentCuts, err
}

// publish is the agent. It is cut off after every 50 events.
func (tm *terminal) publish(half chan<- struct{}) (cuts int, err error) {
	cut := make(chan struct{})
	agent := gvstream.NewStreamer(nil)
	tm.Go(func() {
		stay(tm.ctx, tm.dial, agent.Connect, func() *gvstream.Link { return tm.Hub.ConnectAgent("gvshell") }, cut)
	})
	for i, data := range tm.rec.output {
		if _, err := agent.Publish(tm.ctx, session, gvstream.Event{Type: "stdout", Data: data}); err != nil {
			return cuts, err
		}
		switch {
		case i == len(tm.rec.output)/2:
			close(half)
		case i%50 == 49:
			cut <- struct{}{}
			cuts++
		}
	}
	if _, err := agent.End(tm.ctx, session, gvstream.Event{Type: "exit"}); err != nil {
		return cuts, err
	}
	return cuts, agent.Flush(tm.ctx)
}

// view is one viewer: it watches from a position until it has seen an event
// number, and is cut off after each cutEvery events.
func (tm *terminal) view(id string, from gvstream.Position, until, cutEvery int) (*screen, gvstream.Position) {
	ctx, cancel := context.WithCancel(tm.ctx)
	v := gvstream.NewViewer(nil)
	v.Watch(session, from)
	cut := make(chan struct{})
	var connection sync.WaitGroup
	connection.Go(func() {
		stay(ctx, tm.dial, v.Connect, func() *gvstream.Link { return tm.Hub.ConnectViewer(id) }, cut)
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
		if item.End || item.Position().Seq == uint64(until) && until < len(tm.rec.output) {
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
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 100, Window: 16})
	ctx, cancel := context.WithTimeout(sc.Context(), time.Minute)
	defer cancel()
	t.Logf("recording: %d events, %d bytes, sha256 %.8x", len(rec.output), len(rec.text), sha256.Sum256([]byte(rec.text)))
	screens, cuts, err := (&terminal{sc, ctx, rec, dial}).play()
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

// TestTransports checks that the library's own transports keep the contract.
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
