package bench

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"github.com/vibetools/gvstream"
)

// Contention: what others cost a publisher of events of 256 B. There are no peers
// here; a row is to be compared with the others.
//
//	one-session      a publisher, its events given up when more than 1,000 are
//	                 pending, so that there is no link to wait for
//	two-sessions     two publishers, each with a session of its own in the same
//	                 Streamer, at the same time; an operation is one event of either
//	alone            a publisher, while a link hands the events out and
//	                 acknowledges them from another goroutine
//	during-replay    the same, while that link also replays 1,000 events all the time
func BenchmarkContention(b *testing.B) {
	b.Run("gvstream/one-session", func(b *testing.B) { benchSideBySide(b, 1) })
	b.Run("gvstream/two-sessions", func(b *testing.B) { benchSideBySide(b, 2) })
	b.Run("gvstream/alone", func(b *testing.B) { benchDuringReplay(b, false) })
	b.Run("gvstream/during-replay", func(b *testing.B) { benchDuringReplay(b, true) })
}

func losing() *gvstream.StreamerConfig {
	cfg := trusting(streamerConfig())
	cfg.Overflow, cfg.MaxPendingEvents = gvstream.DropOldest, history
	return cfg
}

// benchSideBySide has publishers do rounds of as many events, and waits for all of
// them.
func benchSideBySide(b *testing.B, publishers int) {
	const round = 20_000
	st := gvstream.NewStreamer(losing())
	data := payload(256)
	var work sync.WaitGroup
	m := start(b, round*publishers)
	for b.Loop() {
		for i := range publishers {
			work.Go(func() {
				s, err := st.Session(strconv.Itoa(i))
				if err != nil {
					b.Error(err)
				}
				for range round {
					if _, err := s.Publish(gone, jsonEvent(data)); err != nil {
						b.Error(err)
					}
				}
			})
		}
		work.Wait()
	}
	m.done()
	for i := range publishers {
		s, err := st.Session(strconv.Itoa(i))
		must(b, err)
		want(b, "published", s.Stats().Head, uint64(b.N*round))
	}
}

func benchDuringReplay(b *testing.B, replaying bool) {
	a := newAgent(b, losing())
	data := payload(256)
	for range history {
		a.publish(jsonEvent(data))
	}
	a.handOut()
	a.ack(a.sent)
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	replays := 0
	work.Go(func() { replays = a.serve(ctx, replaying) })
	n := 0
	m := start(b, 1)
	for b.Loop() {
		a.publish(jsonEvent(data))
		n++
	}
	m.done()
	stop()
	work.Wait()
	want(b, "published", a.s.Stats().Head, uint64(history+n))
	if replaying {
		want(b, "no replay", replays == 0, false)
		b.ReportMetric(float64(replays)/b.Elapsed().Seconds(), "replays/s")
	}
}

// serve is a hub's half of a link that acknowledges each batch, and asks for a
// replay whenever the one before is done, until ctx ends.
func (a *agent) serve(ctx context.Context, replaying bool) (replays int) {
	var buf []byte
	open := false
	for ctx.Err() == nil {
		if replaying && !open {
			replays++
			a.handle(&gvstream.ReplayRequestPayload{
				SessionID: session, ViewerID: "viewer-1", RequestID: strconv.Itoa(replays), Epoch: a.epoch,
			})
			open = true
		}
		p, err := a.link.Next(ctx)
		if err != nil {
			break
		}
		buf, err = gvstream.Append(buf[:0], p)
		if err != nil {
			a.tb.Error(err)
		}
		switch p := p.(type) {
		case *gvstream.EventBatchPayload:
			a.ack(p.LastSeq)
		case *gvstream.ReplayBatchPayload:
			open = !p.Done
		}
	}
	return replays
}
