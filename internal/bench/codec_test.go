package bench

import (
	"testing"
	"time"
	"unicode/utf8"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/bench/wirepb"
	"google.golang.org/protobuf/proto"
)

// protoOf is the frame as a Protocol Buffers message.
func protoOf(f *wireFrame) *wirepb.Batch {
	p := &wirepb.Batch{
		SessionId: f.Payload.SessionID, Epoch: f.Payload.Epoch, Link: f.Payload.Link,
		FirstSeq: f.Payload.FirstSeq, LastSeq: f.Payload.LastSeq, HeadSeq: f.Payload.HeadSeq,
	}
	for _, e := range f.Payload.Events {
		p.Events = append(p.Events, &wirepb.Event{Seq: e.Seq, Time: e.Time.UnixNano(), Type: e.Type, Data: e.Data})
	}
	return p
}

func toProto(tb testing.TB, p *wirepb.Batch) []byte {
	out, err := proto.Marshal(p)
	must(tb, err)
	return out
}

func fromProto(tb testing.TB, data []byte) *wireFrame {
	var p wirepb.Batch
	must(tb, proto.Unmarshal(data, &p))
	events := make([]wireEvent, len(p.Events))
	for i, e := range p.Events {
		events[i] = wireEvent{e.Seq, time.Unix(0, e.Time).UTC(), e.Type, e.Data}
	}
	f := frameOf(events)
	f.Payload.SessionID, f.Payload.Epoch, f.Payload.Link = p.SessionId, p.Epoch, p.Link
	return f
}

// Encode: a batch of 100 events (15 of 16 KiB) into a buffer. gvstream checks and encodes
// each event. An agent that writes frames does not: the JSON of an event was made when it
// was published, see PublishWireAck and Replay. Protocol Buffers are binary: their time is
// a number, their data is not looked at. The floor is a copy.
func BenchmarkEncode(b *testing.B) {
	for _, size := range payloads {
		frame := frameOf(newEvents(1, size.batch(), size.n))
		literal := batchOf(frame)
		text, err := gvstream.Marshal(literal)
		must(b, err)
		b.Run("gvstream/"+size.name, func(b *testing.B) { benchAppend(b, literal) })
		for _, c := range append([]codec{sonicFast}, codecs...) {
			b.Run(c.name+"/"+size.name, func(b *testing.B) {
				benchEncode(b, len(text), func(_ []byte) ([]byte, error) { return c.marshal(frame) })
			})
		}
		b.Run("protobuf/"+size.name, func(b *testing.B) {
			p := protoOf(frame)
			benchEncode(b, proto.Size(p), func(buf []byte) ([]byte, error) {
				return proto.MarshalOptions{}.MarshalAppend(buf, p)
			})
		})
		b.Run("floor/"+size.name, func(b *testing.B) {
			benchEncode(b, len(text), func(buf []byte) ([]byte, error) { return append(buf, text...), nil })
		})
	}
}

func benchAppend(b *testing.B, p *gvstream.EventBatchPayload) {
	text, err := gvstream.Marshal(p)
	must(b, err)
	back, err := gvstream.Unmarshal(text)
	must(b, err)
	want(b, "events", len(back.(*gvstream.EventBatchPayload).Events), len(p.Events))
	benchEncode(b, len(text), func(buf []byte) ([]byte, error) { return gvstream.Append(buf, p) })
}

func benchEncode(b *testing.B, size int, encode func(buf []byte) ([]byte, error)) {
	var out []byte
	m := start(b, 1)
	for b.Loop() {
		var err error
		out, err = encode(out[:0])
		must(b, err)
	}
	m.done()
	want(b, "bytes", len(out), size)
}

// Decode: the same batch out of its bytes, into memory of its own. gvstream checks
// what it reads more strictly than any other: the numbers, that no field comes
// twice, the text. The floor is a copy after a look whether it is UTF-8.
func BenchmarkDecode(b *testing.B) {
	for _, size := range payloads {
		n := size.batch()
		frame := frameOf(newEvents(1, n, size.n))
		text, err := gvstream.Marshal(batchOf(frame))
		must(b, err)
		b.Run("gvstream/"+size.name, func(b *testing.B) {
			benchDecode(b, n, text, func(data []byte) (int, error) {
				p, err := gvstream.Unmarshal(data)
				return len(p.(*gvstream.EventBatchPayload).Events), err
			})
		})
		for _, c := range append([]codec{sonicFast}, codecs...) {
			b.Run(c.name+"/"+size.name, func(b *testing.B) {
				benchDecode(b, n, text, func(data []byte) (int, error) {
					var f wireFrame
					err := c.unmarshal(data, &f)
					return len(f.Payload.Events), err
				})
			})
		}
		b.Run("protobuf/"+size.name, func(b *testing.B) {
			benchDecode(b, n, toProto(b, protoOf(frame)), func(data []byte) (int, error) {
				var p wirepb.Batch
				err := proto.Unmarshal(data, &p)
				return len(p.Events), err
			})
		})
		b.Run("floor/"+size.name, func(b *testing.B) {
			buf := make([]byte, len(text))
			benchDecode(b, n, text, func(data []byte) (int, error) {
				if !utf8.Valid(data) {
					return 0, gvstream.ErrInvalidData
				}
				return n * copy(buf, data) / len(data), nil
			})
		})
	}
}

func benchDecode(b *testing.B, n int, text []byte, decode func(data []byte) (events int, err error)) {
	got := 0
	m := start(b, 1)
	for b.Loop() {
		var err error
		got, err = decode(text)
		must(b, err)
	}
	m.done()
	want(b, "events", got, n)
}
