package gvstream_test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// A recorded terminal session goes from an agent through a hub to a viewer, over
// connections that keep breaking, on both sides. The viewer gets every byte.
func Example_terminal() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	recording, err := os.ReadFile("testdata/shell-session.cast") // each line is some output
	if err != nil {
		fmt.Println(err)
		return
	}
	agent, viewer := gvstream.NewStreamer(nil), gvstream.NewViewer(nil)
	hub := gvstream.NewHub(&gvstream.HubConfig{Window: 16}) // small payloads, and therefore many

	// Connections in memory, each of which breaks after ten payloads.
	var connections atomic.Int32
	var running sync.WaitGroup
	stayConnected := func(accept, connect func() *gvstream.Link) {
		for ctx.Err() == nil {
			connections.Add(1)
			near, far := streamtest.Pipe()
			faults := streamtest.Faults{CutAfter: 10}
			send, receive := faults.Wrap(near.Send, near.Receive)
			running.Go(func() { accept().Run(ctx, far.Send, far.Receive) })
			connect().Run(ctx, send, receive)
			near.Close()
		}
	}
	running.Go(func() { stayConnected(func() *gvstream.Link { return hub.ConnectAgent("shell-1") }, agent.Connect) })
	running.Go(func() { stayConnected(func() *gvstream.Link { return hub.ConnectViewer("tab-1") }, viewer.Connect) })

	acknowledged := make(chan error)
	go func() {
		for line := range bytes.Lines(recording) {
			agent.Publish(ctx, "shell", gvstream.Event{Type: "line", Bytes: line})
		}
		agent.End(ctx, "shell", gvstream.Event{Type: "exit"})
		acknowledged <- agent.Flush(ctx)
	}()

	viewer.Watch("shell", gvstream.Position{})
	var seen []byte
	for item, err := range viewer.Items(ctx) {
		switch {
		case err != nil:
			fmt.Println(err)
		case item.Event != nil:
			seen = append(seen, item.Event.Bytes...)
		case item.Gap != nil:
			fmt.Println("missing:", *item.Gap)
		}
		if item.End {
			break
		}
	}
	fmt.Println("all acknowledged:", <-acknowledged == nil)
	cancel()
	running.Wait()
	fmt.Printf("the viewer has all %d bytes: %v\n", len(recording), bytes.Equal(seen, recording))
	fmt.Println("more than ten connections:", connections.Load() > 10)
	// Output:
	// all acknowledged: true
	// the viewer has all 52045 bytes: true
	// more than ten connections: true
}

// An agent publishes the events of a build, and in the end knows that the hub has all
// of them.
func ExampleStreamer() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	agent, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	a, h := streamtest.Pipe() // a connection in memory
	go hub.ConnectAgent("agent-1").Run(ctx, h.Send, h.Receive)
	go agent.Connect().Run(ctx, a.Send, a.Receive)

	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok\n")})
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "result", Data: []byte(`{"tests":12,"failed":0}`)})
	last, err := agent.End(ctx, "build-42", gvstream.Event{Type: "exit", Data: []byte(`{"code":0}`)})
	fmt.Println("published:", last, err)
	fmt.Println("all acknowledged:", agent.Close(ctx) == nil)
	// Output:
	// published: 3 <nil>
	// all acknowledged: true
}

// Each session is numbered from 1. A publish that fails uses no number.
func ExampleStreamer_Publish() {
	ctx := context.Background()
	agent := gvstream.NewStreamer(nil) // not connected: events wait for the hub
	fmt.Println(agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("\x1b[1mok\x1b[m")}))
	seq, err := agent.Publish(ctx, "build-42", gvstream.Event{Type: "result", Data: []byte(`{"tests":`)})
	fmt.Println(seq, errors.Is(err, gvstream.ErrInvalidData))
	fmt.Println(agent.Publish(ctx, "build-42", gvstream.Event{Type: "result", Data: []byte(`{"tests":12}`)}))
	fmt.Println(agent.Publish(ctx, "build-43", gvstream.Event{Type: "stdout"}))
	fmt.Println(agent.End(ctx, "build-43", gvstream.Event{}))
	fmt.Println(agent.Publish(ctx, "build-43", gvstream.Event{Type: "stdout"}))
	// Output:
	// 1 <nil>
	// 0 true
	// 2 <nil>
	// 1 <nil>
	// 2 <nil>
	// 0 gvstream: session has ended
}

// The same session was started in a newer process, so the hub refuses the older one's
// events. Renew makes the older one the newest, with the events it still has.
func ExampleStreamer_Renew() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(nil)
	older, newer := gvstream.NewStreamer(nil), gvstream.NewStreamer(nil)
	older.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok\n")})
	newer.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	connect(ctx, hub.ConnectAgent("agent-1"), newer.Connect())
	newer.Close(ctx)

	connect(ctx, hub.ConnectAgent("agent-1"), older.Connect())
	err := older.Flush(ctx)
	var refused *gvstream.ProtocolError
	if errors.As(err, &refused) && refused.Code == gvstream.CodeStaleEpoch {
		fmt.Println("the hub says:", refused.Code, refused.SessionID)
		var left []gvstream.Event
		for event := range older.Unacked("build-42") {
			left = append(left, event)
		}
		fmt.Println("renewed:", older.Renew("build-42"))
		for _, event := range left {
			older.Publish(ctx, "build-42", event)
		}
	}
	fmt.Println(older.End(ctx, "build-42", gvstream.Event{Type: "exit"}))
	fmt.Println(older.Close(ctx))
	// Output:
	// the hub says: stale_epoch build-42
	// renewed: <nil>
	// 2 <nil>
	// <nil>
}

// An agent with little memory, which must not wait.
func ExampleStreamerConfig() {
	ctx := context.Background()
	agent := gvstream.NewStreamer(&gvstream.StreamerConfig{
		Overflow:         gvstream.Reject,
		MaxSessions:      2,
		MaxPendingEvents: 100,
		MaxEventBytes:    4 << 10,
		ReplayEvents:     -1, // events that the hub has need not be kept
	})
	for {
		seq, err := agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout"})
		if errors.Is(err, gvstream.ErrPendingFull) {
			fmt.Println(seq, err)
			break
		}
	}
	fmt.Println(agent.Publish(ctx, "build-43", gvstream.Event{Bytes: make([]byte, 5000)}))
	fmt.Println(agent.Publish(ctx, "build-44", gvstream.Event{}))
	// Output:
	// 0 gvstream: pending is full: 100 events, at most 100
	// 0 gvstream: event too large: 5000 bytes of data, and at most 4096 of JSON
	// 0 gvstream: too many: 2 sessions, at most 2
}

// While the hub is away, the agent keeps the newest events. The events that it dropped
// become a gap.
func ExampleOverflow() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(nil)
	agent := gvstream.NewStreamer(&gvstream.StreamerConfig{
		Overflow:         gvstream.DropOldest, // or Block, or Reject
		MaxPendingEvents: 3,
	})
	for i := range 10 {
		agent.Publish(ctx, "load", gvstream.Event{Type: "cpu", Data: fmt.Append(nil, i)})
	}
	agent.End(ctx, "load", gvstream.Event{Type: "exit"})
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	fmt.Println(agent.Close(ctx))

	for item, err := range hub.Items(ctx, "load", gvstream.Position{}) {
		printItem(item, err)
	}
	// Output:
	// gvstream: 8 events lost
	// 1 to 8 are missing: dropped
	// 9 cpu(8)
	// 10 cpu(9)
	// 11 exit()
	// end
}

// Code that writes the events of one session needs only the session's handle.
func ExampleSession() {
	ctx := context.Background()
	agent := gvstream.NewStreamer(nil)
	session, err := agent.Session("build-42")
	if err != nil {
		fmt.Println(err)
		return
	}
	session.Publish(ctx, gvstream.Event{Type: "stdout", Bytes: []byte("ok\n")})
	session.End(ctx, gvstream.Event{Type: "exit", Data: []byte(`{"code":0}`)})
	stats := session.Stats()
	fmt.Println(session.ID(), "published", stats.Head, "acknowledged", stats.Acked, "ended", stats.Ended)
	// Output: build-42 published 2 acknowledged 0 ended true
}

// A link serves one connection. The loop around it belongs to the caller, and so does
// the back-off: it grows with each failure, part of it is random, so that a thousand
// agents don't come back at once, and it is reset only by a connection that lasted.
func ExampleLink_reconnect() {
	const (
		shortest = time.Millisecond // a second, outside of an example
		longest  = time.Minute
		stable   = time.Minute
	)
	stayConnected := func(ctx context.Context, dial func() (*streamtest.Conn, error), connect func() *gvstream.Link) {
		wait := shortest
		for ctx.Err() == nil {
			if conn, err := dial(); err == nil {
				start := time.Now()
				err := connect().Run(ctx, conn.Send, conn.Receive)
				conn.Close()
				if errors.Is(err, gvstream.ErrClosed) || errors.Is(err, gvstream.ErrSuperseded) {
					return // the agent was closed, or another process has taken over its id
				}
				if time.Since(start) >= stable {
					wait = shortest
				}
			}
			select {
			case <-time.After(wait/2 + rand.N(wait)):
			case <-ctx.Done():
			}
			wait = min(2*wait, longest)
		}
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, agent := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
	dials := 0
	dial := func() (*streamtest.Conn, error) { // the third connection is the first good one
		a, h := streamtest.Pipe()
		switch dials++; dials {
		case 1:
			return nil, errors.New("no route to the hub")
		case 2:
			h.Close()
		default:
			go hub.ConnectAgent("agent-1").Run(ctx, h.Send, h.Receive)
		}
		return a, nil
	}
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	var loop sync.WaitGroup
	loop.Go(func() { stayConnected(ctx, dial, agent.Connect) })
	fmt.Println("all acknowledged:", agent.Close(ctx) == nil)
	loop.Wait()
	fmt.Println("dials:", dials)
	// Output:
	// all acknowledged: true
	// dials: 3
}

// Run returns when the connection breaks. The agent loses nothing by that.
func ExampleLink_Run() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	agent, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})

	a, h := streamtest.Pipe()
	go hub.ConnectAgent("agent-1").Run(ctx, h.Send, h.Receive)
	go func() {
		agent.Flush(ctx)
		h.Close() // the hub's machine goes down
	}()
	err := agent.Connect().Run(ctx, a.Send, a.Receive)
	fmt.Println("connect again:", errors.Is(err, io.EOF))
	// Output: connect again: true
}

// A program with an event loop of its own carries the payloads itself.
func ExampleLink() {
	ctx := context.Background()
	agent, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})

	a, h := agent.Connect(), hub.ConnectAgent("agent-1")
	carry := func(from, to *gvstream.Link) {
		p, err := from.Next(ctx)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%T\n", p)
		if err := to.Handle(ctx, p); err != nil {
			fmt.Println(err) // the next Next returns the answer for the peer
		}
	}
	for range 3 {
		carry(a, h)
		carry(h, a)
	}
	fmt.Println("all acknowledged:", agent.Close(ctx) == nil)

	_, err := a.Next(ctx)
	fmt.Println(err)
	// Output:
	// *gvstream.HelloPayload
	// *gvstream.WelcomePayload
	// *gvstream.StatusPayload
	// *gvstream.AckBatchPayload
	// *gvstream.EventBatchPayload
	// *gvstream.AckBatchPayload
	// all acknowledged: true
	// gvstream: closed
}

// A server with many viewers and an event loop has the hub push into its queues, and
// passes in what it receives.
func ExampleLink_Push() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, agent := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())

	queue := make(chan gvstream.Payload, 100) // of one viewer's connection
	tab := hub.ConnectViewer("tab-1")
	tab.Push(ctx, func(ctx context.Context, p gvstream.Payload) error {
		select {
		case queue <- p:
			return nil
		default:
			return errors.New("too slow") // it may come back: the viewer keeps its own position
		}
	})
	tab.Handle(ctx, &gvstream.HelloPayload{V: 1, Role: "viewer"})
	tab.Handle(ctx, &gvstream.WatchPayload{SessionID: "build-42"})
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})
	for p := range queue {
		if batch, ok := p.(*gvstream.EventBatchPayload); ok {
			fmt.Printf("%s: %s\n", batch.SessionID, batch.Events[0].Bytes)
			break
		}
	}
	// Output: build-42: ok
}

// One agent, one hub and two viewers, one of which comes when everything is over.
func ExampleHub() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(nil)
	agent, early, late := gvstream.NewStreamer(nil), gvstream.NewViewer(nil), gvstream.NewViewer(nil)

	connect(ctx, hub.ConnectViewer("tab-1"), early.Connect())
	early.Watch("build-42", gvstream.Position{}) // need not exist yet

	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit", Data: []byte(`{"code":0}`)})
	printItems(ctx, early)

	connect(ctx, hub.ConnectViewer("tab-2"), late.Connect())
	late.Watch("build-42", gvstream.Position{})
	printItems(ctx, late)
	// Output:
	// 1 stdout(ok)
	// 2 exit({"code":0})
	// end
	// 1 stdout(ok)
	// 2 exit({"code":0})
	// end
}

// The hub's own process reads a session, to index it for example.
func ExampleHub_Items() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, agent := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})

	for item, err := range hub.Items(ctx, "build-42", gvstream.Position{}) {
		switch {
		case err != nil:
			fmt.Println(err)
		case item.Event != nil:
			fmt.Println(item.Event.Seq, item.Event.Type)
		case item.Gap != nil, item.Reset != nil:
			fmt.Println("not here:", item.Gap, item.Reset)
		}
	}
	// Output:
	// 1 stdout
	// 2 exit
}

// A viewer whose permission is revoked sees nothing more of the session.
func ExampleHub_Revoke() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, agent, viewer := gvstream.NewHub(nil), gvstream.NewStreamer(nil), gvstream.NewViewer(nil)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	viewer.Watch("build-42", gvstream.Position{})
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})
	for item, err := range viewer.Items(ctx) {
		printItem(item, err)
		if err != nil {
			break
		}
		hub.Revoke("tab-1", "build-42")
	}
	// Output:
	// 1 stdout(ok)
	// gvstream: forbidden session="build-42": revoked
}

// A hub that acknowledges only what is in a database. Commit stores its items in one
// transaction, each once, even if it comes twice; Resume reads how far the store is,
// for a hub that was restarted.
func ExampleHubConfig() {
	type life struct{ session, epoch string }
	var (
		mu    sync.Mutex // sessions are committed concurrently
		store = make(map[life][]gvstream.Item)
		fault = errors.New("the database does not answer")
	)
	last := func(l life) uint64 { // SELECT max(seq) WHERE session = ... AND epoch = ...
		if n := len(store[l]); n > 0 {
			return store[l][n-1].Position().Seq
		}
		return 0
	}
	cfg := &gvstream.HubConfig{
		Commit: func(ctx context.Context, sessionID, epoch string, items []gvstream.Item) error {
			mu.Lock()
			defer mu.Unlock()
			l, stored := life{sessionID, epoch}, 0
			for _, item := range items {
				if item.Position().Seq > last(l) { // ON CONFLICT DO NOTHING
					store[l] = append(store[l], item)
					stored++
				}
			}
			err := fault // the answer is lost: the items are stored, but Commit fails
			fault = nil
			fmt.Printf("commit of %d, %d are new, error: %v\n", len(items), stored, err)
			return err
		},
		Resume: func(ctx context.Context, sessionID, epoch string) (uint64, error) {
			mu.Lock()
			defer mu.Unlock()
			seq := last(life{sessionID, epoch})
			fmt.Println("resume behind", seq)
			return seq, nil
		},
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	agent := gvstream.NewStreamer(nil)
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})

	hub := gvstream.NewHub(cfg)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	agent.Flush(ctx) // a second after the fault, the agent sends the event again
	hub.Close()

	hub = gvstream.NewHub(cfg) // restarted, with nothing but the store
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	fmt.Println("all acknowledged:", agent.Close(ctx) == nil)
	// Output:
	// resume behind 0
	// commit of 1, 1 are new, error: the database does not answer
	// commit of 1, 0 are new, error: <nil>
	// resume behind 1
	// commit of 1, 1 are new, error: <nil>
	// all acknowledged: true
}

// AuthorizeViewer decides which viewer may watch which session.
func ExampleHubConfig_authorize() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(&gvstream.HubConfig{
		AuthorizeViewer: func(ctx context.Context, viewerID, sessionID string) error {
			user, _, _ := strings.Cut(viewerID, "/") // the id from the login: user/tab
			if !strings.HasPrefix(sessionID, user+"/") {
				return errors.New("not yours") // for the hub's own log: the viewer doesn't see it
			}
			return nil
		},
	})
	agent, viewer := gvstream.NewStreamer(nil), gvstream.NewViewer(nil)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	connect(ctx, hub.ConnectViewer("eve/tab-1"), viewer.Connect())
	agent.End(ctx, "eve/build-1", gvstream.Event{Type: "exit"})

	viewer.Watch("bob/build-1", gvstream.Position{})
	for _, err := range viewer.Items(ctx) {
		var refused *gvstream.ProtocolError
		if errors.As(err, &refused) {
			fmt.Println(refused.SessionID, refused.Code)
		}
		break
	}
	viewer.Unwatch("bob/build-1")
	viewer.Watch("eve/build-1", gvstream.Position{})
	printItems(ctx, viewer)
	// Output:
	// bob/build-1 forbidden
	// 1 exit()
	// end
}

// A viewer reads a session from its first event to its end.
func ExampleViewer() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, viewer := gvstream.NewHub(nil), gvstream.NewViewer(nil)
	v, h := streamtest.Pipe() // a connection in memory
	go hub.ConnectViewer("tab-1").Run(ctx, h.Send, h.Receive)
	go viewer.Connect().Run(ctx, v.Send, v.Receive)
	startBuild(ctx, hub)

	if err := viewer.Watch("build-42", gvstream.Position{}); err != nil {
		fmt.Println(err)
		return
	}
	for item, err := range viewer.Items(ctx) {
		switch {
		case err != nil:
			fmt.Println(err) // the end of this watch, but not of the others
		case item.Event != nil:
			fmt.Printf("%d %s\n", item.Event.Seq, item.Event.Bytes)
		case item.Gap != nil:
			fmt.Println("missing:", item.Gap.From, item.Gap.To, item.Gap.Reason)
		case item.Reset != nil:
			fmt.Println("the build began again")
		case item.End:
			viewer.Close() // or watch the next
		}
	}
	// Output:
	// 1 step 1
	// 2 step 2
	// 3 step 3
	// 4
}

// A viewer keeps its position on disk. A new process continues after it.
func ExampleViewer_Position() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(nil)
	startBuild(ctx, hub)
	file, err := os.CreateTemp("", "position")
	if err != nil {
		fmt.Println(err)
		return
	}
	file.Close()
	defer os.Remove(file.Name())

	viewer := gvstream.NewViewer(nil)
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	viewer.Watch("build-42", gvstream.Position{})
	for item, err := range viewer.Items(ctx) {
		if item.Position().Seq == 3 {
			break // before 3 has been dealt with, so it comes again
		}
		printItem(item, err)
	}
	saved, _ := json.Marshal(viewer.Position("build-42"))
	os.WriteFile(file.Name(), saved, 0o600)
	viewer.Close()

	var position gvstream.Position
	saved, _ = os.ReadFile(file.Name())
	if err := json.Unmarshal(saved, &position); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("a new process, behind", position.Seq)
	viewer = gvstream.NewViewer(nil)
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	viewer.Watch("build-42", position)
	printItems(ctx, viewer)
	// Output:
	// 1 stdout(step 1)
	// 2 stdout(step 2)
	// a new process, behind 2
	// 3 stdout(step 3)
	// 4 exit()
	// end
}

// A viewer that buffers no more than a screenful.
func ExampleViewerConfig() {
	viewer := gvstream.NewViewer(&gvstream.ViewerConfig{Window: 50, MaxWatches: 1})
	fmt.Println(viewer.Watch("build-42", gvstream.Position{}))
	fmt.Println(viewer.Watch("build-43", gvstream.Position{}))
	viewer.Unwatch("build-42")
	fmt.Println(viewer.Watch("build-43", gvstream.Position{}))
	// Output:
	// <nil>
	// gvstream: too many: 1 watches, at most 1
	// <nil>
}

// connect runs two links over a connection in memory. The function it returns waits
// until both have ended.
func connect(ctx context.Context, hub, peer *gvstream.Link) (wait func()) {
	h, p := streamtest.Pipe()
	var running sync.WaitGroup
	running.Go(func() { hub.Run(ctx, h.Send, h.Receive); h.Close() })
	running.Go(func() { peer.Run(ctx, p.Send, p.Receive); p.Close() })
	return running.Wait
}

// startBuild connects an agent that publishes four events of build-42.
func startBuild(ctx context.Context, hub *gvstream.Hub) {
	agent := gvstream.NewStreamer(nil)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	for i := range 3 {
		agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: fmt.Append(nil, "step ", i+1)})
	}
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
}

// printItems prints what a viewer reads, until a session ends.
func printItems(ctx context.Context, viewer *gvstream.Viewer) {
	for item, err := range viewer.Items(ctx) {
		printItem(item, err)
		if item.End {
			return
		}
	}
}

func printItem(item gvstream.Item, err error) {
	switch {
	case err != nil:
		fmt.Println(err)
	case item.Event != nil:
		fmt.Printf("%d %s(%s%s)\n", item.Event.Seq, item.Event.Type, item.Event.Data, item.Event.Bytes)
	case item.Gap != nil:
		fmt.Printf("%d to %d are missing: %s\n", item.Gap.From, item.Gap.To, item.Gap.Reason)
	case item.Reset != nil:
		fmt.Println("a new epoch")
	case item.End:
		fmt.Println("end")
	}
}

// Data is for JSON, Bytes for everything else.
func ExampleEvent() {
	at := time.Date(2025, 11, 23, 22, 34, 5, 0, time.UTC)
	for _, event := range []gvstream.Event{
		{Seq: 1, Time: at, Type: "result", Data: []byte(`{"tests":12}`)},
		{Seq: 2, Time: at, Type: "tty", Bytes: []byte("\x1b[1mok")},
		{Seq: 3, Type: "exit", End: true},
	} {
		text, err := json.Marshal(event)
		fmt.Println(string(text), err)
	}
	// Output:
	// {"seq":1,"time":"2025-11-23T22:34:05Z","type":"result","data":{"tests":12}} <nil>
	// {"seq":2,"time":"2025-11-23T22:34:05Z","type":"tty","data_base64":"G1sxbW9r"} <nil>
	// {"seq":3,"type":"exit","end":true} <nil>
}

// A reader that can't overlook a gap: each kind of item has its case, and anything else
// is an error.
func ExampleGap() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, viewer := gvstream.NewHub(nil), gvstream.NewViewer(nil)
	agent := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: 2})
	for i := range 5 {
		agent.Publish(ctx, "load", gvstream.Event{Data: fmt.Append(nil, 10*i)})
	}
	agent.End(ctx, "load", gvstream.Event{Data: []byte(`"off"`)})
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	viewer.Watch("load", gvstream.Position{})

	for item, err := range viewer.Items(ctx) {
		switch {
		case err != nil:
			fmt.Println(err)
			return
		case item.Event != nil:
			fmt.Printf("%d: %s\n", item.Event.Seq, item.Event.Data)
		case item.Gap != nil:
			fmt.Printf("%d to %d: %s\n", item.Gap.From, item.Gap.To, item.Gap.Reason)
		case item.Reset != nil:
			fmt.Println("from the beginning")
		case item.End:
			fmt.Println("complete, but for what was named")
			return
		default:
			panic("an item of a later version")
		}
	}
	// Output:
	// 1 to 4: dropped
	// 5: 40
	// 6: "off"
	// complete, but for what was named
}

// Neither the hub nor the agent keeps more than two events of this session for a
// viewer that comes late.
func ExampleReason() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(&gvstream.HubConfig{LogEvents: 2})
	agent := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 2})
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	for range 10 {
		agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout"})
	}
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	agent.Flush(ctx)

	for item := range hub.Items(ctx, "build-42", gvstream.Position{}) {
		if item.Gap == nil {
			continue
		}
		lost := item.Gap.To - item.Gap.From + 1
		switch item.Gap.Reason {
		case gvstream.ReasonEvicted:
			fmt.Println(lost, "events are too old")
		case gvstream.ReasonDropped, gvstream.ReasonRejected:
			fmt.Println(lost, "events never reached the hub")
		case gvstream.ReasonUnavailable:
			fmt.Println(lost, "events may come back with their agent")
		default:
			fmt.Println(lost, "events are missing:", item.Gap.Reason)
		}
	}
	// Output: 9 events are too old
}

// An item says where its reader is: store that together with the result of processing
// the item.
func ExampleItem() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(nil)
	startBuild(ctx, hub)
	var (
		text  strings.Builder
		saved gvstream.Position
	)
	for item, err := range hub.Items(ctx, "build-42", gvstream.Position{}) {
		if err != nil {
			fmt.Println(err)
			return
		}
		if item.Event != nil && item.Event.Type == "stdout" {
			text.Write(item.Event.Bytes)
			text.WriteString("; ")
		}
		saved = item.Position()
	}
	fmt.Println(text.String(), saved.Seq, saved.Epoch != "")
	// Output: step 1; step 2; step 3;  4 true
}

// A position is stored as a whole: an epoch is never without its number. Its text needs no
// escapes in a URL.
func ExamplePosition() {
	position := gvstream.Position{Epoch: "01jdqz7c", Seq: 40}
	text, _ := json.Marshal(position)
	fmt.Println(position, string(text))

	var saved gvstream.Position
	json.Unmarshal(text, &saved)
	viewer := gvstream.NewViewer(nil)
	fmt.Println(viewer.Watch("build-42", saved))
	fmt.Println(viewer.Position("build-42") == saved)
	fmt.Println(viewer.Watch("build-43", gvstream.Position{})) // from the first event
	fmt.Println(viewer.Watch("build-44", gvstream.Position{Seq: 40}))
	// Output:
	// 01jdqz7c.40 "01jdqz7c.40"
	// <nil>
	// true
	// <nil>
	// gvstream: invalid position: number 40 without an epoch
}

// A browser's EventSource says in Last-Event-ID how far it has come: what the server gave
// as the id of the last event. Anybody may send anything there.
func ExampleParsePosition() {
	for _, header := range []string{"01jdqz7c.40", "", "40", "01JDQZ7C.40"} {
		position, err := gvstream.ParsePosition(header)
		fmt.Printf("%q %d %v\n", position.Epoch, position.Seq, err)
	}
	// Output:
	// "01jdqz7c" 40 <nil>
	// "" 0 <nil>
	// "" 0 gvstream: invalid position: 2 bytes without a dot
	// "" 0 gvstream: invalid position: epoch: "J" at byte 2, not one of [0-9a-z_-]
}

// An item that a program keeps, or passes on, as JSON is the same when it is read again.
func ExampleItem_json() {
	item := gvstream.Item{SessionID: "build-42", Epoch: "01jdqz7c", Seq: 40, Gap: &gvstream.Gap{From: 38, To: 40, Reason: gvstream.ReasonDropped}}
	text, _ := json.Marshal(item)
	fmt.Println(string(text))

	var again gvstream.Item
	json.Unmarshal(text, &again)
	fmt.Println(again)
	fmt.Println(again.Position() == item.Position())
	// Output:
	// {"session_id":"build-42","epoch":"01jdqz7c","seq":40,"gap":{"from":38,"to":40,"reason":"dropped"}}
	// build-42 01jdqz7c.40: missing from 38: dropped
	// true
}

// The agent was killed and starts the build again. The reader discards its result of
// the first try.
func ExampleReset() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, viewer := gvstream.NewHub(nil), gvstream.NewViewer(nil)
	agent := gvstream.NewStreamer(nil)
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	agent.Publish(ctx, "build-42", gvstream.Event{Bytes: []byte("first try")})

	viewer.Watch("build-42", gvstream.Position{})
	for item, err := range viewer.Items(ctx) {
		switch {
		case err != nil:
			fmt.Println(err)
		case item.Event != nil:
			fmt.Printf("%d %s\n", item.Event.Seq, item.Event.Bytes)
			if agent != nil {
				agent = nil
				startBuild(ctx, hub)
			}
		case item.Gap != nil:
			fmt.Println("missing:", item.Gap.From, item.Gap.To, item.Gap.Reason)
		case item.Reset != nil:
			fmt.Println("again: we read", item.Reset.Old.Seq, "of the", item.Reset.PrevSeq, "that the hub had")
		case item.End:
			return
		}
	}
	// Output:
	// 1 first try
	// again: we read 1 of the 1 that the hub had
	// 1 step 1
	// 2 step 2
	// 3 step 3
	// 4
}

// A refusal's code says what a program can do about it.
func ExampleCode() {
	what := func(err error) string {
		var refused *gvstream.ProtocolError
		if !errors.As(err, &refused) {
			return "not refused"
		}
		switch refused.Code {
		case gvstream.CodeStaleEpoch:
			return "renew the session"
		case gvstream.CodeForbidden:
			return "ask for access"
		}
		return "log " + string(refused.Code)
	}
	fmt.Println(what(&gvstream.ProtocolError{Code: gvstream.CodeForbidden, SessionID: "build-42"}))
	fmt.Println(what(&gvstream.ProtocolError{Code: "of a later version", SessionID: "build-42"}))
	// Output:
	// ask for access
	// log of a later version
}

// The hub's Commit refuses one event permanently. Readers get a gap in its place.
func ExampleProtocolError() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(&gvstream.HubConfig{
		Commit: func(ctx context.Context, sessionID, epoch string, items []gvstream.Item) error {
			for _, item := range items { // before any of them is stored
				if item.Event != nil && strings.Contains(string(item.Event.Bytes), "password") {
					return &gvstream.ProtocolError{Code: gvstream.CodeEventRejected, Seq: item.Event.Seq, Message: "a secret"}
				}
			}
			return nil
		},
	})
	agent := gvstream.NewStreamer(nil)
	for _, text := range []string{"ok", "password: 123", "ok"} {
		agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte(text)})
	}
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	for item, err := range hub.Items(ctx, "build-42", gvstream.Position{}) {
		printItem(item, err)
	}
	// Output:
	// 1 stdout(ok)
	// 2 to 2 are missing: rejected
	// 3 stdout(ok)
	// 4 exit()
	// end
}

// An agent that has to stop says what it could not deliver.
func ExampleUnackedError() {
	agent := gvstream.NewStreamer(nil) // never connected
	agent.Publish(context.Background(), "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})
	agent.Publish(context.Background(), "build-43", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})

	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	err := agent.Close(ctx)
	var left *gvstream.UnackedError
	if errors.As(err, &left) {
		fmt.Println(left.Events, "events of", left.Sessions, "sessions are left")
		for event := range agent.Unacked("build-42") {
			fmt.Printf("%d %s\n", event.Seq, event.Bytes)
		}
	}
	fmt.Println(errors.Is(err, context.DeadlineExceeded))
	// Output:
	// 2 events of 2 sessions are left
	// 1 ok
	// true
}

// For a dashboard, at an agent.
func ExampleStreamerStats() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, agent := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
	show := func(stats gvstream.StreamerStats) {
		fmt.Println("sessions", stats.Sessions, "pending", stats.PendingEvents, "connected", stats.Connected)
	}
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout"})
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	show(agent.Stats())
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	agent.Flush(ctx)
	show(agent.Stats())
	// Output:
	// sessions 1 pending 2 connected false
	// sessions 1 pending 0 connected true
}

// What a hub holds of each session.
func ExampleSessionStats() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, agent := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
	for _, id := range []string{"build-43", "build-42"} {
		agent.Publish(ctx, id, gvstream.Event{Type: "stdout"})
		agent.End(ctx, id, gvstream.Event{Type: "exit"})
	}
	connect(ctx, hub.ConnectAgent("agent-1"), agent.Connect())
	agent.Flush(ctx)
	for stats := range hub.Sessions() {
		fmt.Println(stats.AgentID, stats.SessionID, "accepted", stats.Acked, "ended", stats.Ended, "viewers", stats.Viewers)
	}
	// Output:
	// agent-1 build-42 accepted 2 ended true viewers 0
	// agent-1 build-43 accepted 2 ended true viewers 0
}

// For a dashboard, at a hub.
func ExampleHubStats() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, viewer := gvstream.NewHub(nil), gvstream.NewViewer(nil)
	startBuild(ctx, hub)
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	viewer.Watch("build-42", gvstream.Position{})
	for item := range viewer.Items(ctx) {
		if item.End {
			break
		}
	}
	stats := hub.Stats()
	fmt.Println("sessions", stats.Sessions, "agents", stats.Agents, "viewers", stats.Viewers)
	// Output: sessions 1 agents 1 viewers 1
}

// A transport that has messages, such as a WebSocket, needs no lines.
func ExampleSendFunc() {
	messages := make(chan []byte, 1) // the WebSocket
	var send gvstream.SendFunc = func(ctx context.Context, p gvstream.Payload) error {
		message, err := gvstream.Marshal(p)
		if err != nil {
			return err
		}
		select {
		case messages <- message:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := send(context.Background(), &gvstream.WelcomePayload{V: 1, Link: "l7", WindowEvents: 256})
	fmt.Println(string(<-messages), err)
	// Output: {"type":"welcome","payload":{"viewer_id":"","v":1,"link":"l7","window_events":256}} <nil>
}

// A message that is not a payload costs only that message. Unmarshal's error goes to
// the link, which reports it to the peer.
func ExampleReceiveFunc() {
	messages := make(chan []byte, 2) // the WebSocket
	var receive gvstream.ReceiveFunc = func(ctx context.Context) (gvstream.Payload, error) {
		select {
		case message := <-messages:
			return gvstream.Unmarshal(message)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	messages <- []byte(`{"type":"watch","payload":{"session_id":""}}`)
	messages <- []byte(`{"type":"watch","payload":{"session_id":"build-42"}}`)
	_, err := receive(context.Background())
	fmt.Println(err)
	p, err := receive(context.Background())
	fmt.Println(p.(*gvstream.WatchPayload).SessionID, err)
	// Output:
	// gvstream: malformed: watch: bad session_id
	// build-42 <nil>
}

// A transport that carries messages, such as a WebSocket, sends and receives frames.
func ExampleLink_NextFrame() {
	ctx := context.Background()
	agent, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	up, down := agent.Connect(), hub.ConnectAgent("agent-1")
	var buf []byte
	carry := func(from, to *gvstream.Link) { // in a program: conn.Write, and conn.Read at the other end
		var err error
		if buf, err = from.NextFrame(ctx, buf[:0]); err == nil {
			err = to.HandleFrame(ctx, buf) // the buffer may be reused
		}
		if err != nil {
			fmt.Println(err)
		}
	}
	carry(up, down) // hello
	fmt.Println(string(buf))
	carry(down, up) // welcome
	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Data: []byte(`"ok"`)})
	carry(up, down)
	for stats := range hub.Sessions() {
		fmt.Println(stats.SessionID, "accepted", stats.Acked)
	}
	// Output:
	// {"type":"hello","payload":{"viewer_id":"","v":1,"role":"agent"}}
	// build-42 accepted 1
}

// A loop for a transport of messages. An error of HandleFrame alone says nothing about the
// connection: it ends with its link, which Err tells, and the link ends with it. Done closes
// it even while a write is stuck.
func ExampleLink_HandleFrame() {
	serve := func(ctx context.Context, link *gvstream.Link, conn *socket) error {
		defer link.Close()
		go func() {
			<-link.Done()
			conn.Close()
		}()
		go func() {
			defer link.Close()
			var buf []byte
			for {
				var err error
				if buf, err = link.NextFrame(ctx, buf[:0]); err != nil {
					return
				}
				if err := conn.Write(buf); err != nil {
					return
				}
			}
		}()
		for {
			frame, err := conn.Read()
			if err != nil {
				return cmp.Or(link.Err(), err)
			}
			if err := link.HandleFrame(ctx, frame); link.Err() != nil {
				return link.Err()
			} else if err != nil {
				fmt.Println("refused:", err) // the peer is told; go on
			}
		}
	}

	ctx := context.Background()
	agent, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	a, h := newSocket()
	link := agent.Connect()
	var served sync.WaitGroup
	served.Go(func() { serve(ctx, hub.ConnectAgent("agent-1"), h) })
	h.out <- []byte("nonsense")
	served.Go(func() { fmt.Println("ended:", serve(ctx, link, a)) })
	agent.End(ctx, "build-42", gvstream.Event{Type: "exit"})
	fmt.Println("all acknowledged:", agent.Flush(ctx) == nil)
	agent.Close(ctx)
	served.Wait()
	// Output:
	// refused: gvstream: malformed: byte 0: want an object
	// all acknowledged: true
	// ended: gvstream: closed
}

// A socket is a connection of messages in memory.
type socket struct {
	in, out chan []byte
	closed  chan struct{}
	close   func()
}

func newSocket() (a, b *socket) {
	closed, up, down := make(chan struct{}), make(chan []byte, 1), make(chan []byte, 1)
	shut := sync.OnceFunc(func() { close(closed) })
	return &socket{up, down, closed, shut}, &socket{down, up, closed, shut}
}

func (s *socket) Read() ([]byte, error) {
	select {
	case frame := <-s.in:
		return frame, nil
	case <-s.closed:
		return nil, io.EOF
	}
}

func (s *socket) Write(frame []byte) error {
	select {
	case s.out <- bytes.Clone(frame):
		return nil
	case <-s.closed:
		return io.ErrClosedPipe
	}
}

func (s *socket) Close() { s.close() }

// Each line is one payload.
func ExampleLines() {
	ctx := context.Background()
	here, there := net.Pipe() // or net.Dial
	defer here.Close()
	send, receive := gvstream.Lines(here)

	lines := bufio.NewScanner(there)
	go send(ctx, &gvstream.HelloPayload{V: 1, Role: "viewer"})
	lines.Scan()
	fmt.Println(lines.Text())

	go fmt.Fprintln(there, `{"type":"welcome","payload":{"v":1,"link":"l7","viewer_id":"tab-1"}}`)
	p, err := receive(ctx)
	fmt.Println(p.(*gvstream.WelcomePayload).ViewerID, err)

	there.Close()
	_, err = receive(ctx)
	fmt.Println(err)
	// Output:
	// {"type":"hello","payload":{"viewer_id":"","v":1,"role":"viewer"}}
	// tab-1 <nil>
	// EOF
}

// A payload is a pointer to one of the nine types. Here are those that carry
// events.
func ExamplePayload() {
	count := func(p gvstream.Payload) int {
		switch p := p.(type) {
		case *gvstream.EventBatchPayload:
			return len(p.Events)
		case *gvstream.ReplayBatchPayload:
			return len(p.Events)
		}
		return 0
	}
	fmt.Println(count(&gvstream.EventBatchPayload{Events: make([]gvstream.Event, 2)}))
	fmt.Println(count(&gvstream.AckBatchPayload{UpToSeq: 2}))
	// Output:
	// 2
	// 0
}

func ExampleMarshal() {
	text, err := gvstream.Marshal(&gvstream.AckBatchPayload{SessionID: "build-42", Epoch: "01jdqz7c", Link: "l7", UpToSeq: 64})
	fmt.Println(string(text), err)

	event := gvstream.Event{Seq: 1, Data: []byte("not JSON")}
	_, err = gvstream.Marshal(&gvstream.EventBatchPayload{Events: []gvstream.Event{event}})
	fmt.Println(errors.Is(err, gvstream.ErrInvalidData))
	// Output:
	// {"type":"ack_batch","payload":{"session_id":"build-42","viewer_id":"","epoch":"01jdqz7c","link":"l7","up_to_seq":64}} <nil>
	// true
}

// One buffer for many payloads.
func ExampleAppend() {
	var buf []byte
	for _, role := range []string{"agent", "viewer"} {
		var err error
		if buf, err = gvstream.Append(buf[:0], &gvstream.HelloPayload{V: 1, Role: role}); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(string(buf))
	}
	// Output:
	// {"type":"hello","payload":{"viewer_id":"","v":1,"role":"agent"}}
	// {"type":"hello","payload":{"viewer_id":"","v":1,"role":"viewer"}}
}

func ExampleUnmarshal() {
	for _, text := range []string{
		`{"type":"event_batch","payload":{"session_id":"build-42","epoch":"01jdq","link":"l7",
			"first_seq":1,"last_seq":3,"head_seq":3,
			"events":[{"seq":3,"type":"exit"}],"gaps":[{"from":1,"to":2,"reason":"dropped"}]}}`,
		`{"type":"event_batch","payload":{"session_id":"build-42","epoch":"01jdq","link":"l7",
			"first_seq":1,"last_seq":3,"head_seq":3,
			"events":[{"seq":3,"type":"exit"}]}}`,
		`{"type":"weather","payload":{}}`,
	} {
		p, err := gvstream.Unmarshal([]byte(text))
		switch p := p.(type) {
		case *gvstream.EventBatchPayload:
			fmt.Println(p.SessionID, p.Gaps[0].Reason, p.Events[0].Type)
		case nil:
			fmt.Println(err)
		}
	}
	// Output:
	// build-42 dropped exit
	// gvstream: malformed: batch: nothing tiles number 1
	// gvstream: unknown_type: unknown type "weather"
}

func ExampleHelloPayload() {
	text, _ := gvstream.Marshal(&gvstream.HelloPayload{V: 1, Role: "agent"})
	fmt.Println(string(text))

	p, err := gvstream.Unmarshal(text)
	fmt.Println(p.(*gvstream.HelloPayload).Role, err)
	// Output:
	// {"type":"hello","payload":{"viewer_id":"","v":1,"role":"agent"}}
	// agent <nil>
}

func ExampleWelcomePayload() {
	text, _ := gvstream.Marshal(&gvstream.WelcomePayload{V: 1, Link: "l7", WindowEvents: 256})
	fmt.Println(string(text))
	// Output: {"type":"welcome","payload":{"viewer_id":"","v":1,"link":"l7","window_events":256}}
}

func ExampleStatusPayload() {
	text, _ := gvstream.Marshal(&gvstream.StatusPayload{Link: "l7"}) // a heartbeat
	fmt.Println(string(text))
	// Output: {"type":"status","payload":{"viewer_id":"","link":"l7"}}
}

// An agent says that it has the events 12 to 64 and acks up to 60.
func ExampleSessionStatus() {
	text, _ := gvstream.Marshal(&gvstream.StatusPayload{Link: "l7", Sessions: []gvstream.SessionStatus{
		{SessionID: "build-42", Epoch: "01jdqz7c", FirstSeq: 12, HeadSeq: 64, AckSeq: 60},
	}})
	fmt.Println(string(text))
	// Output: {"type":"status","payload":{"viewer_id":"","link":"l7","sessions":[{"session_id":"build-42","epoch":"01jdqz7c","first_seq":12,"head_seq":64,"ack_seq":60}]}}
}

// Two numbers are lost and one is not: together they are the numbers 61 to 63.
func ExampleEventBatchPayload() {
	text, _ := gvstream.Marshal(&gvstream.EventBatchPayload{
		SessionID: "build-42", Epoch: "01jdqz7c", Link: "l7", FirstSeq: 61, LastSeq: 63, HeadSeq: 70,
		Events: []gvstream.Event{{Seq: 63, Type: "stdout", Data: []byte(`"ok"`)}},
		Gaps:   []gvstream.Gap{{From: 61, To: 62, Reason: gvstream.ReasonDropped}},
	})
	fmt.Println(string(text))
	// Output: {"type":"event_batch","payload":{"session_id":"build-42","viewer_id":"","epoch":"01jdqz7c","link":"l7","first_seq":61,"last_seq":63,"head_seq":70,"events":[{"seq":63,"type":"stdout","data":"ok"}],"gaps":[{"from":61,"to":62,"reason":"dropped"}]}}
}

// The hub has everything up to 64, but the next batch it received does not start at 65.
func ExampleAckBatchPayload() {
	text, _ := gvstream.Marshal(&gvstream.AckBatchPayload{
		SessionID: "build-42", Epoch: "01jdqz7c", Link: "l7", UpToSeq: 64, Nack: true,
	})
	fmt.Println(string(text))
	// Output: {"type":"ack_batch","payload":{"session_id":"build-42","viewer_id":"","epoch":"01jdqz7c","link":"l7","up_to_seq":64,"nack":true}}
}

// A viewer has dealt with everything up to 40, and wants the rest.
func ExampleWatchPayload() {
	text, _ := gvstream.Marshal(&gvstream.WatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: "01jdqz7c", AfterSeq: 40})
	fmt.Println(string(text))
	// Output: {"type":"watch","payload":{"session_id":"build-42","viewer_id":"tab-1","epoch":"01jdqz7c","after_seq":40}}
}

// The hub wants the events 41 to 91 for a viewer.
func ExampleReplayRequestPayload() {
	text, _ := gvstream.Marshal(&gvstream.ReplayRequestPayload{
		SessionID: "build-42", ViewerID: "tab-1", RequestID: "r3", Epoch: "01jdqz7c", AfterSeq: 40, UntilSeq: 91, Limit: 500,
	})
	fmt.Println(string(text))
	// Output: {"type":"replay_request","payload":{"session_id":"build-42","viewer_id":"tab-1","request_id":"r3","epoch":"01jdqz7c","after_seq":40,"until_seq":91,"limit":500}}
}

// The agent has only the last of them.
func ExampleReplayBatchPayload() {
	text, _ := gvstream.Marshal(&gvstream.ReplayBatchPayload{
		SessionID: "build-42", ViewerID: "tab-1", RequestID: "r3", Epoch: "01jdqz7c",
		FirstSeq: 41, LastSeq: 91, UntilSeq: 91, AvailableFrom: 91, Done: true,
		Events: []gvstream.Event{{Seq: 91, Type: "exit", End: true}},
		Gaps:   []gvstream.Gap{{From: 41, To: 90, Reason: gvstream.ReasonEvicted}},
	})
	fmt.Println(string(text))
	// Output: {"type":"replay_batch","payload":{"session_id":"build-42","viewer_id":"tab-1","request_id":"r3","epoch":"01jdqz7c","first_seq":41,"last_seq":91,"until_seq":91,"available_from":91,"done":true,"events":[{"seq":91,"type":"exit","end":true}],"gaps":[{"from":41,"to":90,"reason":"evicted"}]}}
}

func ExampleErrorPayload() {
	refused := &gvstream.ProtocolError{Code: gvstream.CodeForbidden, SessionID: "build-42", Message: "not allowed"}
	text, _ := gvstream.Marshal(refused.Payload())
	fmt.Println(string(text))
	// Output: {"type":"error","payload":{"session_id":"build-42","viewer_id":"","code":"forbidden","message":"not allowed"}}
}

// For a dashboard, at a viewer. An item that the loop has not dealt with yet still
// counts as waiting.
func ExampleViewerStats() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub, viewer := gvstream.NewHub(nil), gvstream.NewViewer(nil)
	show := func() {
		stats := viewer.Stats()
		fmt.Println("watches", stats.Watches, "items", stats.Items, "connected", stats.Connected)
	}
	viewer.Watch("build-42", gvstream.Position{})
	show()
	startBuild(ctx, hub)
	connect(ctx, hub.ConnectViewer("tab-1"), viewer.Connect())
	for item := range viewer.Items(ctx) {
		if item.End {
			show()
			break
		}
	}
	viewer.Unwatch("build-42")
	show()
	// Output:
	// watches 1 items 0 connected false
	// watches 1 items 1 connected true
	// watches 0 items 0 connected true
}
