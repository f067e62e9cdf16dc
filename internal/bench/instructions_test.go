package bench

import (
	"testing"

	"github.com/vibetools/gvstream"
)

// Instructions: the small hot paths, one after the other and without a clock, for
// instructions.sh, which counts what a processor executes for them. As times they
// say nothing that the other jobs do not say better. Payloads have 256 B.
//
//	publish    an event whose JSON is checked, into a session that is full, so
//	           that the oldest is given up
//	trusted    the same, with the caller's word for it
//	cycle      an event that is published, handed out and acknowledged, 32 at a
//	           time, and at last evicted
//	ack        an ack of one event
//	encode     a batch of 100 events
//	decode     the same out of its bytes
func BenchmarkInstructions(b *testing.B) {
	data := payload(256)
	frame := frameOf(newEvents(1, 100, 256))
	b.Run("publish", func(b *testing.B) { countPublish(b, streamerConfig(), data) })
	b.Run("trusted", func(b *testing.B) { countPublish(b, trusting(streamerConfig()), data) })
	b.Run("cycle", func(b *testing.B) { countCycle(b, data) })
	b.Run("ack", func(b *testing.B) { countAck(b, data) })
	b.Run("encode", func(b *testing.B) { countEncode(b, batchOf(frame)) })
	b.Run("decode", func(b *testing.B) { countDecode(b, batchOf(frame)) })
}

func countPublish(b *testing.B, cfg *gvstream.StreamerConfig, data []byte) {
	cfg.Overflow, cfg.MaxPendingEvents = gvstream.DropOldest, history
	a := newAgent(b, cfg)
	for range b.N {
		a.publish(jsonEvent(data))
	}
	want(b, "published", a.s.Stats().Head, uint64(b.N))
}

func countCycle(b *testing.B, data []byte) {
	a := newAgent(b, streamerConfig())
	for i := 1; i <= b.N; i++ {
		a.publish(jsonEvent(data))
		if i%ackEvery == 0 {
			a.handOut()
			a.ack(a.sent)
		}
	}
	want(b, "acknowledged", a.s.Stats().Acked, uint64(b.N/ackEvery*ackEvery))
}

func countAck(b *testing.B, data []byte) {
	const most = 32_000 // as many in each run, so that only the acks differ
	a := newAgent(b, streamerConfig())
	for range most {
		a.publish(jsonEvent(data))
	}
	a.handOut()
	for i := range b.N {
		a.ack(uint64(i + 1))
	}
	want(b, "acknowledged", a.s.Stats().Acked, uint64(b.N))
}

func countEncode(b *testing.B, p *gvstream.EventBatchPayload) {
	var out []byte
	for range b.N {
		var err error
		out, err = gvstream.Append(out[:0], p)
		must(b, err)
	}
}

func countDecode(b *testing.B, p *gvstream.EventBatchPayload) {
	text, err := gvstream.Marshal(p)
	must(b, err)
	for range b.N {
		_, err := gvstream.Unmarshal(text)
		must(b, err)
	}
}
