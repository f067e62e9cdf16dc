package scenarios_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// Connections that break, and are made again: in memory, with faults, and over TCP.

// A dialer makes a connection: the end of an agent or a viewer, and the hub's.
type dialer func() (near, far end)

// An end of a connection runs a link over itself, until it is closed.
type end struct {
	run   func(context.Context, *gvstream.Link) error
	close func() error
}

// onto is the end that a transport is.
func onto(t streamtest.Transport) end {
	run := func(ctx context.Context, l *gvstream.Link) error { return l.Run(ctx, t.Send, t.Receive) }
	return end{run, t.Close}
}

func inMemory() (near, far end) {
	a, b := pipe()
	return onto(a), onto(b)
}

func pipe() (near, far streamtest.Transport) {
	a, b := streamtest.Pipe()
	return streamtest.Transport{Send: a.Send, Receive: a.Receive, Close: a.Close},
		streamtest.Transport{Send: b.Send, Receive: b.Receive, Close: b.Close}
}

// stay keeps a connection up until ctx ends: when it breaks, it makes the next.
// Each time cut can be sent to, the connection that is up is cut. Its near end's
// context ends with it: a link that waits for a slow reader looks at no transport.
func stay(ctx context.Context, dial dialer, connect, accept func() *gvstream.Link, cut <-chan struct{}) {
	var running sync.WaitGroup
	defer running.Wait()
	for ctx.Err() == nil {
		near, far := dial()
		up, hangUp := context.WithCancel(ctx)
		broken := make(chan struct{})
		running.Go(func() { far.run(ctx, accept()); far.close() })
		running.Go(func() { near.run(up, connect()); close(broken) })
		select {
		case <-cut:
		case <-broken:
		}
		near.close()
		hangUp()
		<-broken
	}
}

// faulty is a dialer of in-memory connections with faults.
func faulty(seed uint64) dialer {
	var mu sync.Mutex
	return func() (near, far end) {
		mu.Lock()
		seed += 1000
		faults := streamtest.Faults{
			Seed: seed, Drop: 0.03, Duplicate: 0.03, Reorder: 0.03, Delay: 0.2,
			MaxDelay: 50 * time.Millisecond, CutAfter: 60,
		}
		mu.Unlock()
		a, b := pipe()
		a.Send, a.Receive = faults.Wrap(a.Send, a.Receive)
		return onto(a), onto(b)
	}
}

// tcp makes real connections on loopback.
func tcp(t *testing.T) func() (near, far net.Conn) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var one sync.Mutex // dial and accept in pairs
	return func() (near, far net.Conn) {
		one.Lock()
		defer one.Unlock()
		near, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			far, err = listener.Accept()
		}
		if err != nil {
			t.Error(err)
			return net.Pipe()
		}
		return near, far
	}
}

// overTCP runs links as lines over real connections.
func overTCP(t *testing.T) dialer {
	run := func(conn net.Conn) end {
		return end{func(ctx context.Context, l *gvstream.Link) error { return l.RunLines(ctx, conn) }, conn.Close}
	}
	dial := tcp(t)
	return func() (near, far end) {
		a, b := dial()
		return run(a), run(b)
	}
}

func lines(conn net.Conn) streamtest.Transport {
	send, receive := gvstream.Lines(conn)
	return streamtest.Transport{Send: send, Receive: receive, Close: conn.Close}
}
