package bench

import (
	"bytes"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/bench/wirepb"
	"google.golang.org/protobuf/proto"
)

// frames is how many batches a receiver takes before it begins anew.
const frames = 64

// Receive: a batch of 100 events (15 of 16 KiB) from the wire: decode, drop what
// is known, accept into a log of 1,000, and answer with an ack as JSON. An
// operation is one batch. Duplicates are found by comparing numbers at the hub,
// and by a map in the hand-written forms. "gvstream-open" makes payloads first, for
// who looks at them.
func BenchmarkReceive(b *testing.B) {
	for _, size := range payloads {
		n := size.batch()
		texts := make([][]byte, frames)
		protos := make([][]byte, frames)
		for i := range texts {
			frame := frameOf(newEvents(uint64(i*n+1), n, size.n))
			frame.Payload.HeadSeq = uint64(frames * n)
			var err error
			texts[i], err = codecs[0].marshal(frame)
			must(b, err)
			protos[i] = toProto(b, protoOf(frame))
		}
		b.Run("gvstream/"+size.name, func(b *testing.B) { benchReceiveGvstream(b, texts, n, (*hubLink).receive) })
		b.Run("gvstream-open/"+size.name, func(b *testing.B) { benchReceiveGvstream(b, texts, n, (*hubLink).receiveOpen) })
		for _, c := range codecs {
			b.Run("map+"+c.name+"/"+size.name, func(b *testing.B) {
				benchReceive(b, texts, n, func(data []byte) ([]wireEvent, error) {
					var f wireFrame
					err := c.unmarshal(data, &f)
					return f.Payload.Events, err
				}, c.marshal)
			})
		}
		b.Run("map+protobuf/"+size.name, func(b *testing.B) {
			benchReceive(b, protos, n, decodeProto, func(any) ([]byte, error) { // an ack is a batch without events
				return proto.Marshal(&wirepb.Batch{SessionId: session})
			})
		})
	}
}

func decodeProto(data []byte) ([]wireEvent, error) {
	var p wirepb.Batch
	if err := proto.Unmarshal(data, &p); err != nil {
		return nil, err
	}
	events := make([]wireEvent, len(p.Events))
	for i, e := range p.Events {
		events[i] = wireEvent{e.Seq, time.Unix(0, e.Time), e.Type, e.Data}
	}
	return events, nil
}

// A hubLink is a hub and an agent's link to it, of which the agent's half is a
// test's hand.
type hubLink struct {
	tb   testing.TB
	hub  *gvstream.Hub
	down *gvstream.Link
	id   string
}

func newHubLink(tb testing.TB) *hubLink {
	h := &hubLink{tb: tb, hub: gvstream.NewHub(&gvstream.HubConfig{Window: 2, LogEvents: history})} // each batch is acknowledged
	h.down = h.hub.ConnectAgent("agent-1")
	must(tb, h.down.Handle(gone, &gvstream.HelloPayload{V: 1, Role: "agent"}))
	welcome, ok := ready(tb, h.down).(*gvstream.WelcomePayload)
	want(tb, "welcomed", ok, true)
	h.id = welcome.Link
	return h
}

// receive takes a frame and appends the ack to out, if one is due.
func (h *hubLink) receive(frame, out []byte) []byte {
	must(h.tb, h.down.HandleFrame(gone, frame))
	return readyFrame(h.tb, h.down, out)
}

func (h *hubLink) receiveOpen(frame, out []byte) []byte {
	p, err := gvstream.Unmarshal(frame)
	must(h.tb, err)
	must(h.tb, h.down.Handle(gone, p))
	if answer := ready(h.tb, h.down); answer != nil {
		out, err = gvstream.Append(out, answer)
		must(h.tb, err)
	}
	return out
}

// linked are frames of this link: those of a test were made before it.
func (h *hubLink) linked(frames [][]byte) [][]byte {
	out := make([][]byte, len(frames))
	for i, f := range frames {
		out[i] = bytes.Replace(f, []byte(`"link":"`+linkID+`"`), []byte(`"link":"`+h.id+`"`), 1)
	}
	return out
}

func (h *hubLink) accepted() uint64 {
	for s := range h.hub.Sessions() {
		return s.Acked
	}
	return 0
}

func benchReceiveGvstream(b *testing.B, texts [][]byte, n int, receive func(h *hubLink, frame, out []byte) []byte) {
	h := newHubLink(b)
	texts = h.linked(texts)
	acks := 0
	var out []byte
	m := start(b, 1)
	for i := 0; b.Loop(); i++ {
		if i == frames {
			m.pause()
			want(b, "accepted", h.accepted(), uint64(frames*n))
			h.hub.Forget(session)
			i = 0
			m.resume()
		}
		if out = receive(h, texts[i], out[:0]); len(out) > 0 {
			acks++
		}
	}
	m.done()
	want(b, "accepted", h.accepted(), uint64((b.N-1)%frames*n+n))
	want(b, "no acks", acks == 0, false)
}

// A receiver is the hand-written form: a map of the numbers seen, and a slice.
type receiver struct {
	seen    map[uint64]bool
	log     []wireEvent
	upTo    uint64
	repeats int
}

func (r *receiver) accept(events []wireEvent) {
	for _, e := range events {
		if r.seen[e.Seq] {
			r.repeats++
			continue
		}
		r.seen[e.Seq] = true
		r.upTo = max(r.upTo, e.Seq)
		r.log = append(r.log, e)
		if len(r.log) > history {
			r.log = r.log[1:]
		}
	}
}

func benchReceive(b *testing.B, texts [][]byte, n int, decode func([]byte) ([]wireEvent, error), marshal func(any) ([]byte, error)) {
	r := &receiver{seen: make(map[uint64]bool)}
	events := 0
	m := start(b, 1)
	for i := 0; b.Loop(); i++ {
		if i == frames {
			m.pause()
			want(b, "accepted", r.upTo, uint64(frames*n))
			r = &receiver{seen: make(map[uint64]bool)}
			i = 0
			m.resume()
		}
		got, err := decode(texts[i])
		must(b, err)
		r.accept(got)
		_, err = marshal(ackOf(r.upTo))
		must(b, err)
		events += len(got)
	}
	m.done()
	want(b, "events", events, b.N*n)
	want(b, "repeats", r.repeats, 0)
}

// A receiver takes each number once, and so does the hub.
func TestReceive(t *testing.T) {
	frame, err := codecs[0].marshal(frameOf(newEvents(1, 100, 64)))
	must(t, err)
	h := newHubLink(t)
	r := &receiver{seen: make(map[uint64]bool)}
	for i := range 4 {
		receive := h.receive
		if i > 1 {
			receive = h.receiveOpen
		}
		ack := receive(h.linked([][]byte{frame})[0], nil)
		a, err := gvstream.Unmarshal(ack)
		must(t, err)
		want(t, "ack", a.(*gvstream.AckBatchPayload).UpToSeq, 100)
		var f wireFrame
		must(t, codecs[0].unmarshal(frame, &f))
		r.accept(f.Payload.Events)
	}
	want(t, "accepted", h.accepted(), 100)
	want(t, "accepted by hand", len(r.log), 100)
	want(t, "repeats", r.repeats, 300)
}
