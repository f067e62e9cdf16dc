package bench

import (
	"bufio"
	"context"
	"io"
	"net"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/vibetools/gvstream"
)

// EndToEnd: events from a publisher to a hub over TCP on loopback, until the hub
// has acknowledged the last one, in rounds of 5,000 (640 of 16 KiB) with a
// connection each. An operation is one event.
//
// gvstream runs its links by RunLines; "gvstream-open" runs them by Run over Lines, with
// payloads between, and trusts the publisher.
//
// The naive forms write one JSON frame an event, and acknowledge every 32 by one.
// NATS stores each event in a memory stream and acknowledges each; 4,096 may be on
// their way. The floor is bytes alone, 100 events a write, and one byte back at the
// end.
func BenchmarkEndToEnd(b *testing.B) {
	for _, size := range payloads {
		data := payload(size.n)
		n := min(5000, 10<<20/size.n) // a round
		round := func(row string, f func(tb testing.TB, data []byte, n int)) {
			b.Run(row+"/"+size.name, func(b *testing.B) {
				m := start(b, n)
				for b.Loop() {
					f(b, data, n)
				}
				m.done()
			})
		}
		round("gvstream", endToEndChecked)
		round("gvstream-trusted", endToEndTrusted)
		round("gvstream-open", endToEndOpen)
		for _, c := range codecs[:2] {
			round("naive+"+c.name, func(tb testing.TB, data []byte, n int) { endToEndNaive(tb, c, data, n) })
		}
		b.Run("nats/"+size.name, func(b *testing.B) { benchEndToEndNATS(b, data, n) })
		round("floor", endToEndRaw)
	}
}

func endToEndChecked(tb testing.TB, data []byte, n int) {
	endToEndGvstream(tb, streamerConfig(), (*gvstream.Link).RunLines, data, n)
}

func endToEndTrusted(tb testing.TB, data []byte, n int) {
	endToEndGvstream(tb, trusting(streamerConfig()), (*gvstream.Link).RunLines, data, n)
}

func endToEndOpen(tb testing.TB, data []byte, n int) {
	run := func(l *gvstream.Link, ctx context.Context, rw io.ReadWriteCloser) error {
		defer rw.Close()
		send, receive := gvstream.Lines(rw)
		return l.Run(ctx, send, receive)
	}
	endToEndGvstream(tb, trusting(streamerConfig()), run, data, n)
}

// connection is a TCP connection on loopback.
func connection(tb testing.TB) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(tb, err)
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	must(tb, err)
	far, err = l.Accept()
	must(tb, err)
	return near, far
}

func endToEndGvstream(tb testing.TB, cfg *gvstream.StreamerConfig, runLines func(*gvstream.Link, context.Context, io.ReadWriteCloser) error, data []byte, n int) {
	ctx, cancel := context.WithCancel(context.Background())
	near, far := connection(tb)
	st, hub := gvstream.NewStreamer(cfg), gvstream.NewHub(hubConfig())
	ended := make(chan struct{}, 2)
	run := func(l *gvstream.Link, c net.Conn) {
		runLines(l, ctx, c)
		ended <- struct{}{}
	}
	go run(st.Connect(), near)
	go run(hub.ConnectAgent("agent-1"), far)
	s, err := st.Session(session)
	must(tb, err)
	for range n - 1 {
		_, err := s.Publish(ctx, jsonEvent(data))
		must(tb, err)
	}
	_, err = s.End(ctx, jsonEvent(data)) // the end is acknowledged at once
	must(tb, err)
	must(tb, st.Flush(ctx))
	for stats := range hub.Sessions() {
		want(tb, "accepted", stats.Acked, uint64(n))
		want(tb, "ended", stats.Ended, true)
	}
	cancel()
	<-ended
	<-ended
}

// A naivePublisher keeps what is pending in a map and ring, and writes each event
// as a frame of its own.
func endToEndNaive(tb testing.TB, c codec, data []byte, n int) {
	near, far := connection(tb)
	defer near.Close()
	go naiveHub(tb, c, far, n)
	s := newMapRing()
	room := make(chan struct{}, 8192/ackEvery) // as many pending as a Streamer allows
	acked := make(chan error, 1)
	go func() {
		err := eachLine(near, func(line []byte) (bool, error) {
			var a wireAck
			err := c.unmarshal(line, &a)
			s.ack(a.Payload.UpToSeq)
			if a.Payload.UpToSeq%ackEvery == 0 {
				<-room
			}
			return a.Payload.UpToSeq == uint64(n), err
		})
		acked <- err
	}()
	for i := range n {
		s.publish(data)
		frame, err := c.marshal(frameOf([]wireEvent{s.ring[s.seq%history]}))
		must(tb, err)
		_, err = near.Write(append(frame, '\n'))
		must(tb, err)
		if (i+1)%ackEvery == 0 {
			room <- struct{}{}
		}
	}
	must(tb, <-acked)
	want(tb, "pending", len(s.pending), 0)
}

// naiveHub takes n events and acknowledges every 32, and the last.
func naiveHub(tb testing.TB, c codec, conn net.Conn, n int) {
	defer conn.Close()
	r := &receiver{seen: make(map[uint64]bool)}
	err := eachLine(conn, func(line []byte) (bool, error) {
		var f wireFrame
		if err := c.unmarshal(line, &f); err != nil {
			return true, err
		}
		r.accept(f.Payload.Events)
		if r.upTo%ackEvery != 0 && r.upTo != uint64(n) {
			return false, nil
		}
		ack, err := c.marshal(ackOf(r.upTo))
		if err == nil {
			_, err = conn.Write(append(ack, '\n'))
		}
		return r.upTo == uint64(n), err
	})
	if err != nil {
		tb.Error(err)
	}
}

// eachLine calls f with the lines of a connection until it says that it is done.
func eachLine(r io.Reader, f func(line []byte) (done bool, err error)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if done, err := f(line); done || err != nil {
			return err
		}
	}
}

// endToEndRaw sends the bytes alone.
func endToEndRaw(tb testing.TB, data []byte, n int) {
	near, far := connection(tb)
	defer near.Close()
	go func() {
		defer far.Close()
		got, err := io.Copy(io.Discard, struct{ io.Reader }{io.LimitReader(far, int64(n*len(data)))})
		if err == nil && got == int64(n*len(data)) {
			far.Write([]byte{1})
		}
	}()
	buf := make([]byte, 0, 100*len(data))
	for i := range n {
		buf = append(buf, data...)
		if len(buf) == cap(buf) || i == n-1 {
			_, err := near.Write(buf)
			must(tb, err)
			buf = buf[:0]
		}
	}
	_, err := io.ReadFull(near, make([]byte, 1))
	must(tb, err)
}

func benchEndToEndNATS(b *testing.B, data []byte, n int) {
	s := &natsStore{b, newStream(b, history, nats.Name("over TCP"))}
	m := start(b, n)
	for b.Loop() {
		for range n {
			s.publish(data)
		}
		s.settle(nil)
	}
	m.done()
	held, last := s.held()
	want(b, "events held", held, min(b.N*n, history))
	want(b, "last event", string(last), string(data))
}

// Everything that is published end to end arrives.
func TestEndToEnd(t *testing.T) {
	const n = 1000
	data := payload(256)
	endToEndChecked(t, data, n)
	endToEndTrusted(t, data, n)
	endToEndOpen(t, data, n)
	endToEndRaw(t, data, n)
	for _, c := range codecs {
		endToEndNaive(t, c, data, n)
	}
}
