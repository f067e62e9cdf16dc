package gvstream_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/vibetools/gvstream"
)

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

// A position is stored as a whole: an epoch is never without its number.
func ExamplePosition() {
	text, _ := json.Marshal(gvstream.Position{Epoch: "01jdqz7c", Seq: 40})
	fmt.Println(string(text))

	var saved gvstream.Position
	json.Unmarshal(text, &saved)
	viewer := gvstream.NewViewer(nil)
	fmt.Println(viewer.Watch("build-42", saved))
	fmt.Println(viewer.Position("build-42") == saved)
	fmt.Println(viewer.Watch("build-43", gvstream.Position{})) // from the first event
	fmt.Println(viewer.Watch("build-44", gvstream.Position{Seq: 40}))
	// Output:
	// {"epoch":"01jdqz7c","seq":40}
	// <nil>
	// true
	// <nil>
	// gvstream: invalid id
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

// The hub's Commit refuses one event permanently. Readers get a gap in its place.
func ExampleProtocolError() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hub := gvstream.NewHub(&gvstream.HubConfig{
		Commit: func(ctx context.Context, sessionID, epoch string, items []gvstream.Item) error {
			for _, item := range items { // before any of them is stored
				if item.Event != nil && strings.Contains(string(item.Event.Bytes), "password") {
					return &gvstream.ProtocolError{Code: "event_rejected", Seq: item.Event.Seq, Message: "a secret"}
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
	err := send(context.Background(), &gvstream.WelcomePayload{V: 1, Link: "l7", Window: 256})
	fmt.Println(string(<-messages), err)
	// Output: {"type":"welcome","payload":{"viewer_id":"","v":1,"link":"l7","window":256}} <nil>
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
	text, _ := gvstream.Marshal(&gvstream.WelcomePayload{V: 1, Link: "l7", Window: 256})
	fmt.Println(string(text))
	// Output: {"type":"welcome","payload":{"viewer_id":"","v":1,"link":"l7","window":256}}
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
	refused := &gvstream.ProtocolError{Code: "forbidden", SessionID: "build-42", Message: "not allowed"}
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
