package streamtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/vibetools/gvstream"
)

const (
	sampleSession = "build 42 \"späť\"\u2028<&>"
	sampleEpoch   = "0abc-1_z"
	sampleLink    = "link-1"
)

// A sent payload and what its JSON was before it was sent: a transport in memory may
// hand over the very payload, and a later comparison would compare it with itself.
type sent struct {
	payload gvstream.Payload
	json    []byte
}

func sample(payloads []gvstream.Payload) ([]sent, error) {
	samples := make([]sent, len(payloads))
	for i, p := range payloads {
		b, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("%T: %w", p, err)
		}
		samples[i] = sent{p, b}
	}
	return samples, nil
}

// compare reports how got differs in meaning from what was sent: a transport may
// write an event's data with its fields in another order.
func (s sent) compare(got gvstream.Payload) error {
	if want := reflect.TypeOf(s.payload); reflect.TypeOf(got) != want {
		return fmt.Errorf("%v arrived as %T", want, got)
	}
	b, err := json.Marshal(got)
	if err != nil {
		return fmt.Errorf("%T: %w", got, err)
	}
	if bytes.Equal(s.json, b) {
		return nil
	}
	var was, is any
	if err := errors.Join(json.Unmarshal(s.json, &was), json.Unmarshal(b, &is)); err != nil {
		return fmt.Errorf("%T: %w", got, err)
	}
	if !reflect.DeepEqual(was, is) {
		return fmt.Errorf("%T is not as it was sent:\n\tsent %s\n\tgot  %s", got, short(s.json), short(b))
	}
	return nil
}

// short is JSON for a message.
func short(b []byte) string {
	if len(b) > 600 {
		return fmt.Sprintf("%s... (%d bytes)", b[:600], len(b))
	}
	return string(b)
}

// data is a JSON string of n bytes with its quotes.
func data(n int) json.RawMessage {
	b := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
	b[0], b[n-1] = '"', '"'
	return b
}

// batch is the event batch of one event.
func batch(seq uint64, data json.RawMessage) gvstream.Payload {
	return &gvstream.EventBatchPayload{SessionID: "s", Epoch: sampleEpoch, Link: sampleLink,
		FirstSeq: seq, LastSeq: seq, HeadSeq: seq,
		Events: []gvstream.Event{{Seq: seq, Type: "stdout", Data: data}}}
}

// acks is n of the smallest possible payloads, each different.
func acks(n int) []gvstream.Payload {
	payloads := make([]gvstream.Payload, n)
	for i := range payloads {
		payloads[i] = &gvstream.AckBatchPayload{SessionID: "s", Epoch: sampleEpoch, Link: sampleLink, UpToSeq: uint64(i)}
	}
	return payloads
}

// mixed is n payloads of three types and of sizes up to 2 KiB, each different.
func mixed(n int) []gvstream.Payload {
	payloads := acks(n)
	for i := range payloads {
		switch seq := uint64(i + 1); i % 3 {
		case 0:
			payloads[i] = batch(seq, data(16+i*61%2048))
		case 1:
			payloads[i] = &gvstream.WatchPayload{SessionID: "s", Epoch: sampleEpoch, AfterSeq: seq}
		}
	}
	return payloads
}

// large is an event of just about 1 MiB, the most that an event may be, followed by a
// small payload.
func large() []gvstream.Payload {
	return []gvstream.Payload{batch(1, data(1<<20-256)), acks(1)[0]}
}

// everyPayload is one of each type with every field set, and one of each that
// may be empty with none.
func everyPayload() []gvstream.Payload {
	events, gaps := sampleEvents(), []gvstream.Gap{{From: 4, To: 9, Reason: gvstream.ReasonDropped}}
	return []gvstream.Payload{
		&gvstream.HelloPayload{ViewerID: "tab 1", V: 1, Role: "viewer"},
		&gvstream.HelloPayload{V: 1, Role: "agent"},
		&gvstream.WelcomePayload{ViewerID: "tab 1", V: 1, Link: sampleLink, WindowEvents: 256, WindowBytes: 1 << 20},
		&gvstream.StatusPayload{Link: sampleLink},
		&gvstream.StatusPayload{ViewerID: "tab 1", Link: sampleLink, More: true, Sessions: []gvstream.SessionStatus{
			{SessionID: sampleSession, Epoch: sampleEpoch, FirstSeq: 2, HeadSeq: gvstream.MaxSeq, AckSeq: 5,
				Ended: true, PrevEpoch: "0aaa", PrevSeq: 7},
			{SessionID: "unknown"}}},
		&gvstream.EventBatchPayload{SessionID: sampleSession, ViewerID: "tab 1", Epoch: sampleEpoch, Link: sampleLink,
			FirstSeq: 1, LastSeq: 10, HeadSeq: gvstream.MaxSeq, Events: events, Gaps: gaps},
		&gvstream.AckBatchPayload{SessionID: sampleSession, ViewerID: "tab 1", Epoch: sampleEpoch, Link: sampleLink,
			UpToSeq: gvstream.MaxSeq, Nack: true},
		&gvstream.WatchPayload{SessionID: sampleSession},
		&gvstream.WatchPayload{SessionID: sampleSession, ViewerID: "tab 1", Epoch: sampleEpoch, AfterSeq: 3, Stop: true},
		&gvstream.ReplayRequestPayload{SessionID: sampleSession, ViewerID: "tab 1", RequestID: "r1", Epoch: sampleEpoch,
			AfterSeq: 3, UntilSeq: 900, Limit: 500},
		&gvstream.ReplayBatchPayload{SessionID: sampleSession, ViewerID: "tab 1", RequestID: "r1", Epoch: sampleEpoch,
			FirstSeq: 1, LastSeq: 10, UntilSeq: 10, AvailableFrom: 1, Done: true, Events: events, Gaps: gaps},
		&gvstream.ReplayBatchPayload{SessionID: sampleSession, RequestID: "r1", Epoch: sampleEpoch, FirstSeq: 4, LastSeq: 3, UntilSeq: 3},
		&gvstream.ErrorPayload{SessionID: sampleSession, ViewerID: "tab 1", Code: gvstream.CodeEventRejected, Message: "no \"tabs\"\n",
			Retryable: true, RequestID: "r1", Epoch: sampleEpoch, Seq: 6},
	}
}

// sampleEvents are the events 1, 2, 3 and 10, with every possible byte.
func sampleEvents() []gvstream.Event {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return []gvstream.Event{
		{Seq: 1, Time: time.Date(2026, 1, 2, 3, 4, 5, 678900001, time.UTC), Type: "tool/call",
			Data: json.RawMessage(`{"a":[1,-2.5e3,null,true],"ž":"\u0000\n\\\"<&>` + "\u2028\U0001f600" + `"}`)},
		{Seq: 2, Type: "stdout", Bytes: every},
		{Seq: 3, Data: json.RawMessage(`null`)},
		{Seq: 10, End: true},
	}
}
