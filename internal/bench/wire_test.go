package bench

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/bytedance/sonic"
	gojson "github.com/goccy/go-json"
	"github.com/vibetools/gvstream"
)

// The JSON of hand-written streams: the same fields and the same bytes as
// gvstream's event_batch.
type wireFrame struct {
	Type    string    `json:"type"`
	Payload wireBatch `json:"payload"`
}

type wireBatch struct {
	SessionID string      `json:"session_id"`
	ViewerID  string      `json:"viewer_id"`
	Epoch     string      `json:"epoch"`
	Link      string      `json:"link"`
	FirstSeq  uint64      `json:"first_seq"`
	LastSeq   uint64      `json:"last_seq"`
	HeadSeq   uint64      `json:"head_seq"`
	Events    []wireEvent `json:"events"`
}

type wireEvent struct {
	Seq  uint64          `json:"seq"`
	Time time.Time       `json:"time"`
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
}

type wireAck struct {
	Type    string `json:"type"`
	Payload struct {
		SessionID string `json:"session_id"`
		UpToSeq   uint64 `json:"up_to_seq"`
	} `json:"payload"`
}

func ackOf(seq uint64) *wireAck {
	a := &wireAck{Type: "ack_batch"}
	a.Payload.SessionID, a.Payload.UpToSeq = session, seq
	return a
}

// frameOf is a frame of events that follow each other.
func frameOf(events []wireEvent) *wireFrame {
	first, last := events[0].Seq, events[len(events)-1].Seq
	return &wireFrame{Type: "event_batch", Payload: wireBatch{
		SessionID: session, Epoch: epoch, Link: linkID, FirstSeq: first, LastSeq: last, HeadSeq: last, Events: events,
	}}
}

const epoch = "1nrbp36a0000000000000000"

// newEvents makes n events with data of the given size, the first with number
// first, each with bytes of its own.
func newEvents(first uint64, n, size int) []wireEvent {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_912_345, time.UTC)
	out := make([]wireEvent, n)
	for i := range out {
		out[i] = wireEvent{first + uint64(i), at.Add(time.Duration(i) * 1234 * time.Microsecond), "line", payload(size)}
	}
	return out
}

// A codec is a JSON library. The first one is encoding/json.
type codec struct {
	name      string
	marshal   func(any) ([]byte, error)
	unmarshal func([]byte, any) error
}

var codecs = []codec{
	{"json", json.Marshal, json.Unmarshal},
	{"sonic", sonic.Marshal, sonic.Unmarshal},
	{"goccy", gojson.Marshal, gojson.Unmarshal},
}

// sonicFast is sonic without its checks of what is already JSON: it trusts the
// caller.
var sonicFast = codec{"sonicfast", sonic.ConfigFastest.Marshal, sonic.ConfigFastest.Unmarshal}

// batchOf is the frame as gvstream's payload, made by hand.
func batchOf(f *wireFrame) *gvstream.EventBatchPayload {
	p := &gvstream.EventBatchPayload{
		SessionID: f.Payload.SessionID, Epoch: f.Payload.Epoch, Link: f.Payload.Link,
		FirstSeq: f.Payload.FirstSeq, LastSeq: f.Payload.LastSeq, HeadSeq: f.Payload.HeadSeq,
	}
	for _, e := range f.Payload.Events {
		p.Events = append(p.Events, gvstream.Event{Seq: e.Seq, Time: e.Time, Type: e.Type, Data: e.Data})
	}
	return p
}

// Every codec makes the same of a frame, and reads what any of them wrote.
func TestCodecsAgree(t *testing.T) {
	for _, s := range payloads {
		frame := frameOf(newEvents(7, s.batch(), s.n))
		ours, err := gvstream.Marshal(batchOf(frame))
		must(t, err)
		for _, c := range append([]codec{sonicFast}, codecs...) {
			text, err := c.marshal(frame)
			must(t, err)
			want(t, c.name+" "+s.name, string(text), string(ours))
			var back wireFrame
			must(t, c.unmarshal(ours, &back))
			if !reflect.DeepEqual(&back, frame) {
				t.Errorf("%s %s: read back as something else", c.name, s.name)
			}
			p, err := gvstream.Unmarshal(text)
			must(t, err)
			if !reflect.DeepEqual(p.(*gvstream.EventBatchPayload).Events, batchOf(frame).Events) {
				t.Errorf("%s %s: gvstream reads something else", c.name, s.name)
			}
		}
		pb := protoOf(frame)
		if back := fromProto(t, toProto(t, pb)); !reflect.DeepEqual(back, frame) {
			t.Errorf("protobuf %s: read back as something else", s.name)
		}
	}
}
