package scenarios_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/slowconn"
	"github.com/vibetools/gvstream/internal/testenv"
	"github.com/vibetools/gvstream/streamtest"
)

// joinLines runs two links over the ends of a byte stream, and returns the ends.
func joinLines(sc *scene.Scene, near, far *gvstream.Link, up, down slowconn.Way) (*slowconn.Conn, *slowconn.Conn) {
	a, b := slowconn.Pipe(up, down)
	sc.Go(func() { near.RunLines(sc.Context(), a) })
	sc.Go(func() { far.RunLines(sc.Context(), b) })
	return a, b
}

// sized is an event of so many bytes of data, and a few more.
func sized(n int) gvstream.Event {
	return gvstream.Event{Data: []byte(`"` + strings.Repeat("x", n-2) + `"`)}
}

// firstItem waits for the next item of a viewer that is none but an event or a gap.
func firstItem(t *testing.T, sc *scene.Scene, v *gvstream.Viewer) gvstream.Item {
	t.Helper()
	for it, err := range v.Items(sc.Context()) {
		noError(t, err)
		return it
	}
	t.Fatal("no item came within an hour")
	return gvstream.Item{}
}

// One event of 1 MB at 16 KiB/s was never delivered, and the agent's other session stood
// still for as long, since silence counted whole payloads only: 61 s without one ended the
// link, on which the event had not arrived, and the next one began it anew.
func foundF03(t *testing.T) {
	const bytes, rate = 1_000_000, 16 << 10
	const want = bytes * time.Second / rate
	slow := slowconn.Way{BytesPerSecond: rate}
	t.Run("from an agent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			st := gvstream.NewStreamer(nil)
			agent := st.Connect()
			joinLines(sc, agent, sc.Hub.ConnectAgent("a"), slow, slowconn.Way{})
			large, small := newViewer(t, "large", gvstream.Position{}), newViewer(t, "small", gvstream.Position{})
			for id, v := range map[string]*gvstream.Viewer{"1": large, "2": small} {
				sc.Join(v.Connect(), sc.Hub.ConnectViewer(id), nil)
			}
			start := time.Now()
			_, err := st.Publish(sc.Context(), "large", sized(bytes))
			noError(t, err)
			publish(t, st, "small", 1)
			smallTook := make(chan time.Duration, 1)
			sc.Go(func() {
				for range small.Items(sc.Context()) {
					smallTook <- time.Since(start)
					return
				}
			})
			firstItem(t, sc, large)
			if took := time.Since(start); took < want || took > want*11/10 {
				t.Errorf("1 MB took %v, want %v", took, want)
			}
			if took := <-smallTook; took > want*11/10 {
				t.Errorf("the small event took %v", took)
			}
			// The agent's and the hub's link are the ones of before.
			pass(time.Minute)
			equal(t, "the link is alive", agent.Err(), nil)
		})
	})
	t.Run("to a viewer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			st := gvstream.NewStreamer(nil)
			sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
			v := newViewer(t, "large", gvstream.Position{})
			noError(t, v.Watch("small", gvstream.Position{}))
			viewer := v.Connect()
			joinLines(sc, viewer, sc.Hub.ConnectViewer("tab"), slowconn.Way{}, slow)
			pass(time.Second)
			start := time.Now()
			_, err := st.Publish(sc.Context(), "large", sized(bytes))
			noError(t, err)
			publish(t, st, "small", 1)
			got := make(map[string]bool)
			for it, err := range v.Items(sc.Context()) {
				noError(t, err)
				if took := time.Since(start); took > want*11/10 || it.SessionID == "large" && took < want {
					t.Errorf("the %s event took %v, want %v for the large one", it.SessionID, took, want)
				}
				if got[it.SessionID] = true; len(got) == 2 {
					break
				}
			}
			pass(time.Minute)
			equal(t, "the link is alive", viewer.Err(), nil)
		})
	})
}

// An event that no line can carry ended every link with ErrTooLarge, so that nothing of the
// agent's reached the hub any more; and one that just fitted between agent and hub, where
// fewer ids stood in a payload, did the same to every viewer. What a hub gives to all viewers
// names none, so that it fits.
func foundF05(t *testing.T) {
	t.Run("messages", foundF05Messages)
	for name, c := range map[string]struct {
		bytes  int
		lost   bool
		gets   string
		memory bool // between agent and hub, so that it is the viewer's line that can't carry it
	}{
		"3 MiB":             {3 << 20, true, "1 gap 2..2 rejected 3 ", false},
		"3 MiB to a viewer": {3 << 20, false, "1 gap 2..2 rejected 3 ", true},
		"just a line":       {2<<20 - 255, false, "1 2 3 ", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, &gvstream.HubConfig{MaxEventBytes: 4 << 20})
				st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxEventBytes: 4 << 20})
				agent := st.Connect()
				if c.memory {
					sc.Join(agent, sc.Hub.ConnectAgent("a"), nil)
				} else {
					joinLines(sc, agent, sc.Hub.ConnectAgent("a"), slowconn.Way{}, slowconn.Way{})
				}
				v := newViewer(t, "s", gvstream.Position{})
				noError(t, v.Watch("neighbour", gvstream.Position{}))
				viewer := v.Connect()
				joinLines(sc, viewer, sc.Hub.ConnectViewer(strings.Repeat("v", 128)), slowconn.Way{}, slowconn.Way{})
				pass(time.Second)
				publish(t, st, "s", 1)
				_, err := st.Publish(sc.Context(), "s", sized(c.bytes))
				noError(t, err)
				publish(t, st, "s", 1)
				publish(t, st, "neighbour", 2)
				pass(10 * time.Second)
				equal(t, "acknowledged", unacked(st, "s"), "")
				equal(t, "the agent's loss", stats(t, st, "s").Lost > 0, c.lost)
				got := make(map[string]string)
				for _, it := range readItems(t, v) {
					got[it.SessionID] += tell([]gvstream.Item{it}) + " "
				}
				equal(t, "the viewer's items", got["s"], c.gets)
				equal(t, "the neighbour's", got["neighbour"], "1 2 ")
				for _, l := range []*gvstream.Link{agent, viewer} {
					equal(t, "the link is alive", l.Err(), nil)
				}
			})
		})
	}
}

// The same with a transport that says so itself, such as a WebSocket whose peer reads messages
// of 32 KiB at most.
func foundF05Messages(t *testing.T) {
	for _, toViewer := range []bool{false, true} {
		t.Run(map[bool]string{false: "from an agent", true: "to a viewer"}[toViewer], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				join := func(near, far *gvstream.Link, up bool) {
					a, b := streamtest.Pipe()
					small := func(send gvstream.SendFunc, is bool) gvstream.SendFunc {
						return func(ctx context.Context, p gvstream.Payload) error {
							if line, err := gvstream.Marshal(p); is && (err != nil || len(line) > 32<<10) {
								return fmt.Errorf("%w: a message of %d bytes", gvstream.ErrTooLarge, len(line))
							}
							return send(ctx, p)
						}
					}
					sc.Go(func() { far.Run(sc.Context(), small(b.Send, toViewer && !up), b.Receive); b.Close() })
					sc.Go(func() { near.Run(sc.Context(), small(a.Send, !toViewer && up), a.Receive); a.Close() })
				}
				st := gvstream.NewStreamer(nil)
				const n = 500 // 50 KB of them go into one batch elsewhere
				for _, id := range []string{"s", "neighbour"} {
					publish(t, st, id, n)
					if id == "s" {
						_, err := st.Publish(sc.Context(), id, sized(40_000))
						noError(t, err)
					}
					publish(t, st, id, n)
				}
				agent, v := st.Connect(), newViewer(t, "s", gvstream.Position{})
				noError(t, v.Watch("neighbour", gvstream.Position{}))
				join(agent, sc.Hub.ConnectAgent("agent"), true)
				pass(10 * time.Second)
				viewer := v.Connect()
				join(viewer, sc.Hub.ConnectViewer("tab"), false)
				pass(10 * time.Second)
				got := make(map[string][]gvstream.Item)
				for _, it := range readItems(t, v) {
					got[it.SessionID] = append(got[it.SessionID], it)
				}
				equal(t, "the viewer's items", tell(got["s"]), "1..500, gap 501..501 rejected, 502..1001")
				equal(t, "the neighbour's", tell(got["neighbour"]), "1..1000")
				equal(t, "the agent's link is alive", agent.Err(), nil)
				equal(t, "the viewer's link is alive", viewer.Err(), nil)
				sc.Close()
			})
		})
	}
}

// A backlog of 1 MB at 5 KiB/s was sent 1.36 times, since the timer that sends again started
// when a batch was handed to the transport, which needed 50 s for it; and links were taken
// for silent that were busy.
func foundF14(t *testing.T) {
	const n, size, rate = 1000, 1000, 5 << 10
	const once = n * (size + 60) // what stands around the data is some 60 bytes
	const want = once * time.Second / rate
	for _, toViewer := range []bool{false, true} {
		t.Run(map[bool]string{false: "from an agent", true: "to a viewer"}[toViewer], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				st := gvstream.NewStreamer(nil)
				for range n {
					_, err := st.Publish(sc.Context(), "s", sized(size))
					noError(t, err)
				}
				slow := slowconn.Way{BytesPerSecond: rate}
				near, far := st.Connect(), sc.Hub.ConnectAgent("a")
				var sender *slowconn.Conn
				start := time.Now()
				if toViewer {
					sc.Join(near, far, nil)
					noError(t, st.Flush(sc.Context()))
					v := newViewer(t, "s", gvstream.Position{})
					near, far = v.Connect(), sc.Hub.ConnectViewer("tab")
					start = time.Now()
					_, sender = joinLines(sc, near, far, slowconn.Way{}, slow)
					for it, err := range v.Items(sc.Context()) {
						noError(t, err)
						if it.Event == nil || it.Seq == n {
							equal(t, "the viewer has", it.Position().Seq, n)
							break
						}
					}
				} else {
					sender, _ = joinLines(sc, near, far, slow, slowconn.Way{})
					noError(t, st.Flush(sc.Context()))
				}
				if sent := sender.Written(); sent > once*105/100 {
					t.Errorf("%d bytes were sent of %d", sent, once)
				}
				if took := time.Since(start); took > want*105/100 {
					t.Errorf("it took %v, want %v", took, want)
				}
				equal(t, "the receiver's link is alive", far.Err(), nil)
				equal(t, "the sender's link is alive", near.Err(), nil)
			})
		})
	}
}

// byHand serves a link over lines as a program with frames of its own does, and returns why
// the link ended. Each half returns as soon as it can't go on.
func byHand(sc *scene.Scene, l *gvstream.Link, conn *slowconn.Conn) <-chan error {
	ctx := sc.Context()
	go func() {
		<-l.Done()
		conn.Close()
	}()
	sc.Go(func() {
		defer l.Close()
		for {
			frame, err := l.NextFrame(ctx, nil)
			if err == nil {
				_, err = conn.Write(append(frame, '\n'))
			}
			if err != nil {
				return
			}
		}
	})
	ended := make(chan error, 1)
	sc.Go(func() {
		in := bufio.NewScanner(conn)
		in.Buffer(nil, 4<<20)
		for in.Scan() {
			if l.HandleFrame(ctx, in.Bytes()); l.Err() != nil {
				break
			}
		}
		<-l.Done()
		ended <- l.Err()
	})
	return ended
}

// A loop with frames of its own never noticed the silence while its write was stuck: nothing
// but a call of Next looked at the clock.
func foundF17(t *testing.T) {
	for _, toViewer := range []bool{false, true} {
		t.Run(map[bool]string{false: "an agent", true: "a viewer"}[toViewer], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				st, v := gvstream.NewStreamer(nil), newViewer(t, "s", gvstream.Position{})
				a, b := st.Connect(), sc.Hub.ConnectAgent("a")
				if toViewer {
					sc.Join(a, b, nil)
					a, b = v.Connect(), sc.Hub.ConnectViewer("tab")
				}
				near, far := slowconn.Pipe(slowconn.Way{}, slowconn.Way{})
				client, hub := byHand(sc, a, near), byHand(sc, b, far)
				publish(t, st, "s", 1)
				pass(20 * time.Minute)
				equal(t, "acknowledged", unacked(st, "s"), "")
				near.Vanish()
				start := time.Now()
				_, err := st.Publish(sc.Context(), "s", sized(200_000)) // more than the connection's buffer
				noError(t, err)
				for name, ended := range map[string]<-chan error{"the near end": client, "the hub": hub} {
					if err := <-ended; !errors.Is(err, gvstream.ErrSilent) || time.Since(start) > time.Minute {
						t.Errorf("the link of %s ended with %v after %v", name, err, time.Since(start))
					}
				}
				sc.Close()
			})
		})
	}
}

// Handle returns an error for a payload that was refused, and for the end of the link. A
// loop that ended at either one ended each connection by the same payload again, and could
// not tell them apart.
func foundF18(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := gvstream.NewHub(nil)
		defer hub.Close()
		st := gvstream.NewStreamer(nil)
		agent := st.Connect()
		handle := func(l *gvstream.Link, frame string) (refused bool) {
			err := l.HandleFrame(context.Background(), []byte(frame))
			return errors.As(err, new(*gvstream.ProtocolError))
		}
		scene.Ready(agent) // hello
		handle(agent, `{"type":"welcome","payload":{"v":1,"link":"l","window":9}}`)
		publish(t, st, "s", 1)
		scene.Ready(agent)
		for _, frame := range []string{`{"type":"ack_batch"}`, `{"type":"new"}`, `nonsense`, `{"type":"watch","payload":{"session_id":"s"}}`} {
			equal(t, frame+" is refused", handle(agent, frame), true)
			equal(t, "the link after "+frame, agent.Err(), nil)
		}
		equal(t, "another version is refused", handle(agent, `{"type":"welcome","payload":{"v":2,"link":"l"}}`), true)
		var fatal *gvstream.ProtocolError
		if !errors.As(agent.Err(), &fatal) || fatal.Code != gvstream.CodeVersionUnsupported {
			t.Errorf("the link ended with %v", agent.Err())
		}
		pass(time.Second)
		synctest.Wait()
		select {
		case <-agent.Done():
		default:
			t.Error("not done after a second")
		}

		for _, l := range []*gvstream.Link{gvstream.NewViewer(nil).Connect(), callAgent(t, hub, "agent").link, callViewer(t, hub, "tab").link} {
			for _, frame := range []string{`{"type":"new"}`, `nonsense`, `{"type":"replay_request","payload":{"session_id":"s","request_id":"r"}}`} {
				equal(t, frame+" is refused", handle(l, frame), true)
				equal(t, "the link after "+frame, l.Err(), nil)
			}
			l.Close()
			equal(t, "the end of the link is a refusal", handle(l, `{"type":"new"}`), false)
			equalError(t, "the link's end", l.Err(), gvstream.ErrClosed)
		}
	})
}

// A hub kept the links of viewers whose network had vanished for as long as the system kept
// the connections: a thousand were 4,007 goroutines for a quarter of an hour.
func foundF19(t *testing.T) {
	t.Run("viewers vanish", foundF19Viewers)

	t.Run("agents vanish", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			var conns []*slowconn.Conn
			var links []*gvstream.Link
			for i := range 50 {
				st := gvstream.NewStreamer(nil)
				publish(t, st, fmt.Sprint("s", i), 1)
				near, far := st.Connect(), sc.Hub.ConnectAgent(fmt.Sprint("a", i))
				conn, _ := joinLines(sc, near, far, slowconn.Way{}, slowconn.Way{})
				conns, links = append(conns, conn), append(links, near, far)
			}
			pass(3 * time.Minute)
			equal(t, "agents that are there", sc.Hub.Stats().Agents, len(conns))
			for _, c := range conns {
				c.Vanish()
			}
			pass(time.Minute)
			equal(t, "agents that are gone", sc.Hub.Stats().Agents, 0)
			for _, l := range links {
				equalError(t, "a link's end", l.Err(), gvstream.ErrSilent)
			}
		})
	})

	// A viewer that reads no items, or no bytes, costs the hub's system no more than its window, and
	// one event each time that the timer expires.
	const log, window = 2000 * 1000, 256 << 10
	fill := func(t *testing.T, sc *scene.Scene) {
		st := gvstream.NewStreamer(nil)
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
		for range log / 1000 {
			_, err := st.Publish(sc.Context(), "s", sized(1000))
			noError(t, err)
		}
		noError(t, st.Flush(sc.Context()))
	}
	within := func(t *testing.T, sent int) {
		t.Helper()
		if sent > window*11/10 {
			t.Errorf("%d bytes were sent, and the window is %d", sent, window)
		}
	}
	t.Run("a viewer reads no items", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			fill(t, sc)
			v := gvstream.NewViewer(&gvstream.ViewerConfig{WindowBytes: window})
			noError(t, v.Watch("s", gvstream.Position{}))
			viewer := v.Connect()
			_, far := joinLines(sc, viewer, sc.Hub.ConnectViewer("tab"), slowconn.Way{}, slowconn.Way{Buffer: 16 << 20})
			pass(10 * time.Minute)
			within(t, far.Written())
			equal(t, "the link is alive", viewer.Err(), nil)
		})
	})
	t.Run("a viewer reads no bytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			fill(t, sc)
			near, far := slowconn.Pipe(slowconn.Way{}, slowconn.Way{Buffer: 16 << 20})
			hub := sc.Hub.ConnectViewer("tab")
			sc.Go(func() { hub.RunLines(sc.Context(), far) })
			for _, line := range []string{`{"type":"hello","payload":{"v":1,"role":"viewer"}}`, `{"type":"watch","payload":{"session_id":"s"}}`} {
				_, err := near.Write([]byte(line + "\n"))
				noError(t, err)
			}
			pass(14 * time.Second)
			within(t, far.Written())
			pass(30 * time.Second)
			equal(t, "the link is alive", hub.Err(), nil)
			pass(16 * time.Second)
			within(t, far.Written()) // the timer has expired, twice perhaps
			equalError(t, "the link's end", hub.Err(), gvstream.ErrSilent)
		})
	})
}

func foundF19Viewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, nil)
		st := gvstream.NewStreamer(nil)
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
		publish(t, st, "s", 1)
		viewers := testenv.Fewer(1000)
		var conns []*slowconn.Conn
		var hub, near sync.WaitGroup
		var mu sync.Mutex
		var errs []error
		for i := range viewers {
			conn, far := slowconn.Pipe(slowconn.Way{}, slowconn.Way{})
			conns = append(conns, conn)
			v := newViewer(t, "s", gvstream.Position{})
			link := sc.Hub.ConnectViewer(fmt.Sprint("v", i))
			near.Go(func() { v.Connect().RunLines(sc.Context(), conn) })
			hub.Go(func() {
				err := link.RunLines(sc.Context(), far)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
		pass(3 * time.Minute)
		equal(t, "viewers that are there", sc.Hub.Stats().Viewers, viewers)
		equal(t, "links that ended", len(errs), 0)
		start := time.Now()
		for _, c := range conns {
			c.Vanish()
		}
		publish(t, st, "s", 1) // there is something to send, and room to write it
		hub.Wait()
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the last is gone after %v", took)
		}
		for _, err := range errs {
			if !errors.Is(err, gvstream.ErrSilent) {
				t.Fatalf("a link ended with %v", err)
			}
		}
		synctest.Wait()
		equal(t, "viewers that are gone", sc.Hub.Stats().Viewers, 0)
		near.Wait()
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the last viewer has noticed after %v", took)
		}
	})
}
