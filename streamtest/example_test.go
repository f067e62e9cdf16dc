package streamtest_test

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

func ExampleConn() {
	ctx := context.Background()
	agent, hub := streamtest.Pipe()
	agent.Send(ctx, &gvstream.HelloPayload{V: 1, Role: "agent"})
	p, err := hub.Receive(ctx)
	fmt.Println(p.(*gvstream.HelloPayload).Role, err)

	agent.Close()
	_, err = hub.Receive(ctx)
	fmt.Println(err)
	// Output:
	// agent <nil>
	// EOF
}

func ExampleFaults() {
	ctx := context.Background()
	agent, hub := streamtest.Pipe()
	faults := streamtest.Faults{Seed: 1, Reorder: 1, CutAfter: 4}
	send, receive := faults.Wrap(agent.Send, agent.Receive)
	for seq := range uint64(4) {
		send(ctx, &gvstream.WatchPayload{SessionID: "build-42", Epoch: "e", AfterSeq: seq})
	}
	for range 4 {
		p, _ := hub.Receive(ctx)
		fmt.Print(p.(*gvstream.WatchPayload).AfterSeq, " ")
	}
	_, err := receive(ctx)
	fmt.Println(err)
	// Output: 1 0 3 2 streamtest: connection cut by Faults
}

func ExampleRecorder() {
	event := func(seq uint64) gvstream.Item {
		return gvstream.Item{SessionID: "build-42", Epoch: "e1",
			Event: &gvstream.Event{Seq: seq, Data: json.RawMessage(`"ok"`)}}
	}
	gap := gvstream.Item{SessionID: "build-42", Epoch: "e1",
		Gap: &gvstream.Gap{From: 2, To: 5, Reason: gvstream.ReasonEvicted}}

	var rec streamtest.Recorder
	for _, item := range []gvstream.Item{event(1), gap, event(6), event(8)} {
		if err := rec.Record(item); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println(len(rec.Events("build-42")), rec.Gaps("build-42"), rec.Position("build-42").Seq)
	// Output:
	// streamtest: session "build-42" epoch "e1": event 8 skips 7 without a gap
	// 2 [{2 5 evicted}] 6
}

func ExampleTransport() {
	makePair := func() (agent, hub streamtest.Transport) {
		a, b := streamtest.Pipe()
		return streamtest.Transport{Send: a.Send, Receive: a.Receive, Close: a.Close},
			streamtest.Transport{Send: b.Send, Receive: b.Receive, Close: b.Close}
	}
	// In a test function: streamtest.TestTransport(t, makePairForT)
	fmt.Println(streamtest.CheckTransport(makePair))
	// Output: <nil>
}
