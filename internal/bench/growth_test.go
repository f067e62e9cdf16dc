package bench

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/vibetools/gvstream"
)

// Growth: what an operation costs as there is more of everything. There are no
// peers here; a row is to be compared with the others of its kind.
//
//	publish-N   an event of 64 B to one of N sessions in turn, by its id: flat,
//	            but for what the processor's caches do not hold any more
//	ack-N       an ack of one event, of one of N sessions in turn: flat
//	page-N      a page of 100 events of 256 B out of a log of 10,000, that begins
//	            after N events of it: flat
//	resume-N    a new connection with N events pending, until all of them are
//	            handed out again: in proportion to N
func BenchmarkGrowth(b *testing.B) {
	for _, n := range []int{1, 1000, manySessions} {
		b.Run(fmt.Sprint("gvstream/publish-", n), func(b *testing.B) { benchSessions(b, n, true) })
	}
	for _, n := range []int{1, 1000, manySessions} {
		b.Run(fmt.Sprint("gvstream/ack-", n), func(b *testing.B) { benchSessions(b, n, false) })
	}
	for _, n := range []int{0, 5000, 9900} {
		b.Run(fmt.Sprint("gvstream/page-", n), func(b *testing.B) { benchPage(b, uint64(n)) })
	}
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint("gvstream/resume-", n), func(b *testing.B) { benchResume(b, n) })
	}
}

// benchSessions times Publish or acks, the other half while the clock stands
// still.
func benchSessions(b *testing.B, n int, publishing bool) {
	a := newAgent(b, trusting(streamerConfig()))
	ids := sessionIDs(n)
	acks := make([]gvstream.AckBatchPayload, 0, max(n, history))
	data := payload(64)
	publish := func(i int) {
		_, err := a.st.Publish(gone, ids[i%n], jsonEvent(data))
		must(b, err)
	}
	round := cap(acks)
	all := func(f func(i int)) {
		for i := range round {
			f(i)
		}
	}
	handOut := func() {
		acks = acks[:0]
		for p := a.next(); p != nil; p = a.next() {
			batch, ok := p.(*gvstream.EventBatchPayload)
			for seq := uint64(0); ok && seq < uint64(len(batch.Events)); seq++ {
				acks = append(acks, gvstream.AckBatchPayload{
					SessionID: batch.SessionID, Epoch: batch.Epoch, Link: linkID, UpToSeq: batch.FirstSeq + seq,
				})
			}
		}
		want(b, "handed out", len(acks), round)
	}
	ack := func(i int) { a.handle(&acks[i]) }
	all(publish) // makes the sessions
	handOut()
	all(ack)
	if !publishing {
		all(publish)
		handOut()
	}
	i := 0
	m := start(b, 1)
	for ; b.Loop(); i++ {
		if i == round {
			i = 0
			m.pause()
			if publishing {
				handOut()
				all(ack)
			} else {
				all(publish)
				handOut()
			}
			m.resume()
		}
		if publishing {
			publish(i)
		} else {
			ack(i)
		}
	}
	m.done()
	left := i // since the clock last stood still
	if !publishing {
		left = round - i
	}
	want(b, "sessions", a.st.Stats().Sessions, n+1)
	want(b, "pending", a.st.Stats().PendingEvents, left)
}

const deepLog = 10_000

// deep is an agent with a log of 10,000 acknowledged events.
func deep(b *testing.B, pending bool) *agent {
	cfg := streamerConfig()
	cfg.ReplayEvents = deepLog
	a := newAgent(b, cfg)
	for range deepLog {
		a.publish(jsonEvent(payload(256)))
	}
	a.handOut()
	if !pending {
		a.ack(a.sent)
	}
	return a
}

func benchPage(b *testing.B, after uint64) {
	a := deep(b, false)
	var buf []byte
	events, asked := 0, 0
	m := start(b, 1)
	for b.Loop() {
		asked++
		a.handle(&gvstream.ReplayRequestPayload{
			SessionID: session, ViewerID: "viewer-1", RequestID: strconv.Itoa(asked), Epoch: a.epoch,
			AfterSeq: after, Limit: page,
		})
		for next, done := after+1, false; !done; {
			p := a.next().(*gvstream.ReplayBatchPayload)
			var err error
			buf, err = gvstream.Append(buf[:0], p)
			must(b, err)
			want(b, "first", p.FirstSeq, next)
			next, done = p.LastSeq+1, p.Done
			events += len(p.Events)
		}
	}
	m.done()
	want(b, "events", events, b.N*page)
}

func benchResume(b *testing.B, pending int) {
	a := deep(b, true)
	a.ack(uint64(deepLog - pending))
	a.count = 0
	m := start(b, 1)
	for b.Loop() {
		a.connect()
		a.handle(&gvstream.AckBatchPayload{
			SessionID: session, Epoch: a.epoch, Link: linkID, UpToSeq: uint64(deepLog - pending),
		})
		a.handOut()
	}
	m.done()
	want(b, "handed out", a.count, b.N*pending)
}
