package bench

import (
	"runtime"
	"testing"

	"github.com/vibetools/gvstream"
)

type gvEvent = gvstream.Event

// allStores are gvstream's forms, those that others have published, and the
// hand-written ones.
func allStores() []opener { return append(published(), handWritten...) }

func published() []opener {
	var out []opener
	for _, f := range eventForms {
		out = append(out, opener{f.row, func(tb testing.TB, _ int) store {
			return &gvStore{newAgent(tb, f.config()), f.event}
		}})
	}
	return append(out, stores...)
}

// Publish: one event into a store that keeps the last 1,000. The payload is
// copied. An event is timed until it is stored; for NATS that is when its ack has
// come, 1,000 events at a time. The hand-written forms stand in PublishAck, since
// their pending is half of what they do.
func BenchmarkPublish(b *testing.B) {
	for _, s := range published() {
		for _, size := range payloads {
			b.Run(s.row+"/"+size.name, func(b *testing.B) { benchPublish(b, s.open(b, size.n), size.n) })
		}
	}
}

func benchPublish(b *testing.B, s store, size int) {
	data := payload(size)
	fill(s, data)
	m := start(b, 1)
	for i := 1; b.Loop(); i++ {
		s.publish(data)
		if i%history == 0 {
			s.settle(m)
		}
	}
	m.done()
	s.settle(idleMeter())
	n, last := s.held()
	want(b, "events held", n, history)
	want(b, "last event", string(last), string(data))
}

// fill brings a store into the state in which each event evicts one.
func fill(s store, data []byte) {
	for range 2 * history {
		s.publish(data)
	}
	s.settle(idleMeter())
}

// An acker is a store whose events are pending until they are acknowledged.
type acker interface {
	publish(data []byte)
	ack(upTo uint64)
	head() uint64
	unacked() []wireEvent
}

func (s *floorLog) unacked() []wireEvent { return make([]wireEvent, s.seq-s.acked) }

const ackEvery = 32

// PublishAck: the same, and an ack for every 32 events. A Streamer takes acks of
// what it has handed out only: "gvstream" and "gvstream-checked" publish 1,000,
// hand them out while the clock stands still, collect the garbage of that, and have
// them acknowledged 32 at a time, since the others hand nothing out.
// "gvstream-handout" includes it all.
func BenchmarkPublishAck(b *testing.B) {
	for _, size := range payloads {
		for _, f := range eventForms[:2] {
			b.Run(f.row+"/"+size.name, func(b *testing.B) { benchAckGvstream(b, f.config(), size.n) })
		}
		b.Run("gvstream-handout/"+size.name, func(b *testing.B) { benchHandOut(b, size.n) })
		b.Run("slice/"+size.name, func(b *testing.B) { benchAck(b, &sliceLog{}, size.n) })
		b.Run("mapring/"+size.name, func(b *testing.B) { benchAck(b, newMapRing(), size.n) })
		b.Run("floor/"+size.name, func(b *testing.B) { benchAck(b, &floorLog{}, size.n) })
	}
}

func benchAck(b *testing.B, s acker, size int) {
	data := payload(size)
	before := uint64(2 * history)
	for range before {
		s.publish(data)
	}
	s.ack(before)
	m := start(b, 1)
	for i := before + 1; b.Loop(); i++ {
		s.publish(data)
		if i%ackEvery == 0 {
			s.ack(i)
		}
	}
	m.done()
	want(b, "published", s.head(), before+uint64(b.N))
	want(b, "left", len(s.unacked()), int((before+uint64(b.N))%ackEvery))
}

func benchAckGvstream(b *testing.B, cfg *gvstream.StreamerConfig, size int) {
	const round = 32 * ackEvery
	s := &gvStore{newAgent(b, cfg), jsonEvent}
	data := payload(size)
	fill(s, data)
	m := start(b, 1)
	for i := 1; b.Loop(); i++ {
		s.publish(data)
		if i%round != 0 {
			continue
		}
		acked := s.sent
		m.pause()
		s.handOut()
		runtime.GC()
		m.resume()
		for acked < s.sent {
			acked += ackEvery
			s.ack(acked)
		}
	}
	m.done()
	want(b, "left", s.s.Stats().PendingEvents, b.N%round)
	want(b, "handed out", s.count, 2*history+b.N/round*round)
}

func benchHandOut(b *testing.B, size int) {
	s := &gvStore{newAgent(b, trusting(streamerConfig())), jsonEvent}
	data := payload(size)
	fill(s, data)
	m := start(b, 1)
	for i := 1; b.Loop(); i++ {
		s.publish(data)
		if i%ackEvery == 0 {
			s.handOut()
			s.ack(s.sent)
		}
	}
	m.done()
	want(b, "handed out", s.count, 2*history+b.N/ackEvery*ackEvery)
}

// PublishWireAck: 32 events are published, made one JSON frame (those of 16 KiB a
// few, at gvstream), and acknowledged. The payload is JSON already: "gvstream" and
// sonicfast take the caller's word for it, the others check. "gvstream-open" makes
// payloads first, for who looks at them. An operation is one event.
func BenchmarkPublishWireAck(b *testing.B) {
	for _, size := range payloads {
		for _, f := range eventForms[:2] {
			b.Run(f.row+"/"+size.name, func(b *testing.B) { benchWireGvstream(b, f.config(), size.n) })
		}
		b.Run("gvstream-open/"+size.name, func(b *testing.B) { benchWireOpen(b, size.n) })
		b.Run("slice+json/"+size.name, func(b *testing.B) { benchWire(b, &sliceLog{}, codecs[0], size.n) })
		b.Run("mapring+json/"+size.name, func(b *testing.B) { benchWire(b, newMapRing(), codecs[0], size.n) })
		b.Run("mapring+sonic/"+size.name, func(b *testing.B) { benchWire(b, newMapRing(), codecs[1], size.n) })
		b.Run("mapring+sonicfast/"+size.name, func(b *testing.B) { benchWire(b, newMapRing(), sonicFast, size.n) })
	}
}

func benchWireGvstream(b *testing.B, cfg *gvstream.StreamerConfig, size int) {
	s := &gvStore{newAgent(b, cfg), jsonEvent}
	data := payload(size)
	fill(s, data)
	var buf, frame []byte
	m := start(b, ackEvery)
	for b.Loop() {
		for range ackEvery {
			s.publish(data)
		}
		for buf = s.frame(buf[:0]); len(buf) > 0; buf = s.frame(buf[:0]) { // one, or a few of 256 KiB
			frame = buf
		}
		s.sent += ackEvery
		s.ack(s.sent)
	}
	m.done()
	want(b, "published", s.s.Stats().Head, uint64(2*history+b.N*ackEvery))
	want(b, "left", s.s.Stats().PendingEvents, 0)
	checkFrame(b, frame, data)
}

func benchWireOpen(b *testing.B, size int) {
	s := &gvStore{newAgent(b, trusting(streamerConfig())), jsonEvent}
	data := payload(size)
	fill(s, data)
	var frame []byte
	m := start(b, ackEvery)
	for b.Loop() {
		for range ackEvery {
			s.publish(data)
		}
		for p := s.next(); p != nil; p = s.next() { // one, or a few of 256 KiB
			var err error
			frame, err = gvstream.Append(frame[:0], p)
			must(b, err)
			batch := p.(*gvstream.EventBatchPayload)
			s.sent = batch.LastSeq
			s.count += len(batch.Events)
		}
		s.ack(s.sent)
	}
	m.done()
	want(b, "handed out", s.count, 2*history+b.N*ackEvery)
	want(b, "left", s.s.Stats().PendingEvents, 0)
	checkFrame(b, frame, data)
}

func benchWire(b *testing.B, s acker, c codec, size int) {
	data := payload(size)
	for range 2 * history {
		s.publish(data)
	}
	s.ack(s.head())
	var frame []byte
	var err error
	m := start(b, ackEvery)
	for b.Loop() {
		for range ackEvery {
			s.publish(data)
		}
		frame, err = c.marshal(frameOf(s.unacked()))
		must(b, err)
		s.ack(s.head())
	}
	m.done()
	want(b, "published", s.head(), 2*history+uint64(b.N)*ackEvery)
	checkFrame(b, frame, data)
}

// checkFrame looks into the last frame.
func checkFrame(tb testing.TB, frame, data []byte) {
	var f wireFrame
	must(tb, codecs[0].unmarshal(frame, &f))
	want(tb, "events of an empty frame", len(f.Payload.Events) == 0, false)
	for _, e := range f.Payload.Events {
		want(tb, "data", string(e.Data), string(data))
	}
}
