package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/centrifugal/centrifuge"
	"github.com/nats-io/nats.go"
	"github.com/tmaxmax/go-sse"
	"github.com/vibetools/gvstream"
)

// burst is how many events follow each other at once.
const burst = 64

// A fan gives events of a session to viewers.
type fan interface {
	// publish hands n events on, and returns when all viewers have them.
	publish(n int, data []byte)
	// seen tells how many events all viewers together have.
	seen() int64
}

// fans are those that can be published to, by the name of their row.
var fans = []struct {
	row  string
	open func(tb testing.TB, viewers int) fan
}{
	{"gvstream", newPushes},
	{"gvstream-next", newTurns},
	{"gvstream-run", newRuns},
	{"go-sse", newJoe},
	{"chan", newChannels},
	{"centrifuge", newNode},
	{"nats", newSubscriptions},
	{"floor", newLoop},
}

// FanOut: an event of 256 B to 1, 10, 100 and 1,000 viewers, until the last of
// them has it, alone and in bursts of 64. An operation is one event to all. A
// viewer is a function that counts: nothing goes over a network.
//
// "gvstream" publishes with a Streamer, carries the batch to a Hub, and the viewers'
// links push. "gvstream-next" serves the links in turn from one goroutine, by Next, and
// "gvstream-run" has Run serve each, as a hub with a goroutine a connection does. All number, acknowledge and
// keep the events, twice. Joe of go-sse calls its viewers in turn and keeps the
// last 1,000. "chan" is the form that most projects have: a goroutine and a
// buffered channel for each viewer, and no history. centrifuge encodes what it
// sends, from a goroutine a client, and keeps the last 1,000. NATS speaks its
// protocol over an in-process connection, and keeps nothing.
func BenchmarkFanOut(b *testing.B) {
	data := payload(256)
	for _, viewers := range []int{1, 10, 100, 1000} {
		for _, mode := range []size{{"single", 1}, {"burst", burst}} {
			for _, f := range fans {
				b.Run(fmt.Sprintf("%s/%d-%s", f.row, viewers, mode.name), func(b *testing.B) {
					benchFanOut(b, f.open(b, viewers), viewers, mode.n, data)
				})
			}
		}
	}
}

func benchFanOut(b *testing.B, f fan, viewers, n int, data []byte) {
	f.publish(n, data)
	before := f.seen()
	m := start(b, n)
	for b.Loop() {
		f.publish(n, data)
	}
	m.done()
	want(b, "events seen", f.seen()-before, int64(b.N*n*viewers))
}

// FanOutAccept: what of it the publisher pays for: the hub has accepted the event,
// and the viewers need not be served yet. It is not to grow with their number. The
// hub begins to serve them at once, on the other processor; what is left of that is
// waited for while the clock stands still.
func BenchmarkFanOutAccept(b *testing.B) {
	data := payload(256)
	for _, viewers := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("gvstream/%d", viewers), func(b *testing.B) {
			f := newPushes(b, viewers).(*pushes)
			before := f.seen()
			m := start(b, burst)
			for b.Loop() {
				f.expect(burst)
				f.accept(burst, data)
				m.pause()
				f.wait()
				m.resume()
			}
			m.done()
			want(b, "events seen", f.seen()-before, int64(b.N*burst*viewers))
		})
	}
}

// turns are viewers whose links are served in turn.
type turns struct {
	*pair
	*tally
	seats []*seat
}

func newTurns(tb testing.TB, viewers int) fan {
	f := &turns{pair: newPair(tb), tally: newTally(viewers)}
	for i := range viewers {
		f.seats = append(f.seats, f.watch(i))
	}
	f.serve()
	return f
}

func (f *turns) publish(n int, data []byte) {
	f.accept(n, data)
	f.serve()
}

// serve gives each viewer what has come together for it.
func (f *turns) serve() {
	for _, v := range f.seats {
		for p := ready(f.tb, v.link); p != nil; p = ready(f.tb, v.link) {
			f.add(v.take(p))
		}
	}
}

// A tally counts what viewers in goroutines of their own get, and lets one wait
// for a number.
type tally struct {
	viewers int
	n       atomic.Int64
	target  atomic.Int64
	reached chan struct{}
}

func newTally(viewers int) *tally { return &tally{viewers: viewers, reached: make(chan struct{}, 1)} }

// expect says that n more events are to reach every viewer.
func (t *tally) expect(n int) { t.target.Add(int64(n * t.viewers)) }

func (t *tally) add(n int) {
	if n > 0 && t.n.Add(int64(n)) == t.target.Load() { // zero, if nobody waits
		t.reached <- struct{}{}
	}
}

func (t *tally) wait()       { <-t.reached }
func (t *tally) seen() int64 { return t.n.Load() }

// pushes are viewers whose links push to a function.
type pushes struct{ *runs }

func newPushes(tb testing.TB, viewers int) fan {
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	f := &pushes{&runs{newPair(tb), newTally(viewers)}}
	f.publishOne(payload(64)) // the session is there before they come
	f.expect(1)
	for i := range viewers {
		v := f.watch(i)
		must(tb, v.link.Push(ctx, f.sink(v)))
	}
	f.wait()
	return f
}

// runs are viewers each of whose links is served by Run.
type runs struct {
	*pair
	*tally
}

func newRuns(tb testing.TB, viewers int) fan {
	ctx, cancel := context.WithCancel(context.Background())
	f := &runs{newPair(tb), newTally(viewers)}
	f.publishOne(payload(64)) // the session is there before they come
	f.expect(1)
	var ended sync.WaitGroup
	tb.Cleanup(func() { cancel(); ended.Wait() })
	for i := range viewers {
		v := f.watch(i)
		ended.Go(func() { v.link.Run(ctx, f.sink(v), silence) })
	}
	f.wait()
	return f
}

// sink is a viewer's connection.
func (f *runs) sink(v *seat) gvstream.SendFunc {
	return func(_ context.Context, p gvstream.Payload) error {
		f.add(v.take(p))
		return nil
	}
}

// silence receives nothing.
func silence(ctx context.Context) (gvstream.Payload, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (f *runs) publishOne(data []byte) {
	_, err := f.s.Publish(gone, jsonEvent(data))
	must(f.tb, err)
	f.pump()
}

func (f *runs) publish(n int, data []byte) {
	f.expect(n)
	f.accept(n, data)
	f.wait()
}

// A joe is go-sse's Joe with a FiniteReplayer. Its viewers are called by its one
// goroutine, and are given the message that all of them share.
type joe struct {
	*tally
	tb     testing.TB
	j      *sse.Joe
	topics []string
}

func newJoe(tb testing.TB, viewers int) fan {
	r, err := sse.NewFiniteReplayer(history, true)
	must(tb, err)
	f := &joe{newTally(viewers), tb, &sse.Joe{Replayer: r}, []string{session}}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	tb.Cleanup(func() { cancel(); ended.Wait(); f.j.Shutdown(context.Background()) })
	for range 2 { // of which each viewer is sent the second: so it is known to be there
		must(tb, f.j.Publish(message(payload(64)), f.topics))
	}
	f.expect(1)
	for range viewers {
		ended.Go(func() {
			f.j.Subscribe(ctx, sse.Subscription{Client: joeViewer{f.tally}, Topics: f.topics, LastEventID: sse.ID("0")})
		})
	}
	f.wait()
	return f
}

type joeViewer struct{ *tally }

func (v joeViewer) Send(*sse.Message) error { v.add(1); return nil }
func (v joeViewer) Flush() error            { return nil }

func (f *joe) publish(n int, data []byte) {
	f.expect(n)
	for range n {
		must(f.tb, f.j.Publish(message(data), f.topics))
	}
	f.wait()
}

// channels are a goroutine and a channel for each viewer.
type channels struct {
	*tally
	mu  sync.Mutex
	chs []chan wireEvent
	seq uint64
}

func newChannels(tb testing.TB, viewers int) fan {
	f := &channels{tally: newTally(viewers)}
	for range viewers {
		ch := make(chan wireEvent, 2*burst)
		f.chs = append(f.chs, ch)
		go func() {
			for range ch {
				f.add(1)
			}
		}()
		tb.Cleanup(func() { close(ch) })
	}
	return f
}

func (f *channels) publish(n int, data []byte) {
	f.expect(n)
	for range n {
		f.mu.Lock()
		f.seq++
		ev := wireEvent{Seq: f.seq, Type: "line", Data: append([]byte(nil), data...)}
		for _, ch := range f.chs {
			ch <- ev
		}
		f.mu.Unlock()
	}
	f.wait()
}

// A node is a centrifuge Node whose clients are subscribed by the server, over a
// transport that counts.
type node struct {
	*tally
	tb testing.TB
	n  *centrifuge.Node
}

func newNode(tb testing.TB, viewers int) fan {
	n, err := centrifuge.New(centrifuge.Config{})
	must(tb, err)
	f := &node{newTally(viewers), tb, n}
	n.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{UserID: "u"},
			Subscriptions: map[string]centrifuge.SubscribeOptions{session: {}},
		}, nil
	})
	must(tb, n.Run())
	for range viewers {
		client, _, err := centrifuge.NewClient(context.Background(), n, &transport{t: f.tally})
		must(tb, err)
		client.Connect(centrifuge.ConnectRequest{})
	}
	f.tb.Cleanup(func() { n.Shutdown(context.Background()) })
	want(tb, "subscribers", n.Hub().NumSubscribers(session), viewers)
	return f
}

func (f *node) publish(n int, data []byte) {
	f.expect(n)
	for range n {
		_, err := f.n.Publish(session, append([]byte(nil), data...), centrifuge.WithHistory(history, 3600e9))
		must(f.tb, err)
	}
	f.wait()
}

// A transport counts the publications that are written to it. It is not told of
// the connection itself.
type transport struct{ t *tally }

func (c *transport) Name() string                                { return "bench" }
func (c *transport) AcceptProtocol() string                      { return "" }
func (c *transport) Protocol() centrifuge.ProtocolType           { return centrifuge.ProtocolTypeJSON }
func (c *transport) ProtocolVersion() centrifuge.ProtocolVersion { return centrifuge.ProtocolVersion2 }
func (c *transport) Unidirectional() bool                        { return true }
func (c *transport) Emulation() bool                             { return false }
func (c *transport) DisabledPushFlags() uint64                   { return centrifuge.PushFlagConnect }
func (c *transport) PingPongConfig() centrifuge.PingPongConfig {
	return centrifuge.PingPongConfig{PingInterval: -1, PongTimeout: -1}
}
func (c *transport) Write([]byte) error                { c.t.add(1); return nil }
func (c *transport) WriteMany(msgs ...[]byte) error    { c.t.add(len(msgs)); return nil }
func (c *transport) Close(centrifuge.Disconnect) error { return nil }

// subscriptions are NATS subscriptions of one client, each with a goroutine.
type subscriptions struct {
	*tally
	tb testing.TB
	nc *nats.Conn
}

func newSubscriptions(tb testing.TB, viewers int) fan {
	nc, err := nats.Connect("", nats.InProcessServer(newNATSServer(tb)))
	must(tb, err)
	tb.Cleanup(nc.Close)
	f := &subscriptions{newTally(viewers), tb, nc}
	for range viewers {
		_, err := nc.Subscribe(session, func(*nats.Msg) { f.add(1) })
		must(tb, err)
	}
	must(tb, nc.Flush())
	return f
}

func (f *subscriptions) publish(n int, data []byte) {
	f.expect(n)
	for range n {
		must(f.tb, f.nc.Publish(session, data))
	}
	must(f.tb, f.nc.Flush())
	f.wait()
}

// A loop calls viewers one after the other: the least there is.
type loop struct {
	log   floorLog
	sinks []sink
}

type sink interface{ take(*[]byte) }

type counter struct{ n int64 }

func (c *counter) take(*[]byte) { c.n++ }

func newLoop(_ testing.TB, viewers int) fan {
	f := &loop{}
	for range viewers {
		f.sinks = append(f.sinks, &counter{})
	}
	return f
}

func (f *loop) publish(n int, data []byte) {
	for range n {
		f.log.publish(data)
		ev := &f.log.ring[f.log.seq%history].data
		for _, s := range f.sinks {
			s.take(ev)
		}
	}
}

func (f *loop) seen() int64 {
	var n int64
	for _, s := range f.sinks {
		n += s.(*counter).n
	}
	return n
}

// Every viewer of every fan gets every event.
func TestFans(t *testing.T) {
	for _, f := range fans {
		t.Run(f.row, func(t *testing.T) {
			fan := f.open(t, 7)
			before := fan.seen()
			fan.publish(1, payload(64))
			fan.publish(burst, payload(64))
			want(t, "events seen", fan.seen()-before, 7*(1+burst))
		})
	}
}
