package bench

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/tmaxmax/go-sse"
)

// A store keeps the most recent events of one session. Publish copies data.
type store interface {
	publish(data []byte)
	// settle waits until everything published is stored. What is no part of
	// publishing, it does while the meter is paused.
	settle(m *meter)
	// held tells how many events the store has, and the data of the last one.
	held() (n int, last []byte)
}

// An opener makes a store, which closes with the test that made it.
type opener struct {
	row  string
	open func(tb testing.TB, size int) store
}

var stores = []opener{
	{"centrifuge", newCentrifuge},
	{"go-sse", newSSE},
	{"mcp", newMCP},
	{"nats", newNATS},
	{"floor", func(testing.TB, int) store { return &floorLog{} }},
}

var handWritten = []opener{
	{"slice", func(testing.TB, int) store { return &sliceLog{} }},
	{"mapring", func(testing.TB, int) store { return newMapRing() }},
}

// A centrifugeStore is centrifuge's memory broker. Beside storing, it looks for
// subscribers, and keeps a time at which the history expires. The copy of the
// data is the adapter's: the broker keeps the slice that it is given.
type centrifugeStore struct {
	tb     testing.TB
	broker *centrifuge.MemoryBroker
	opts   centrifuge.PublishOptions
}

type ignorePublications struct{}

func (ignorePublications) HandlePublication(string, *centrifuge.Publication, centrifuge.StreamPosition, bool, *centrifuge.Publication) error {
	return nil
}
func (ignorePublications) HandleJoin(string, *centrifuge.ClientInfo) error  { return nil }
func (ignorePublications) HandleLeave(string, *centrifuge.ClientInfo) error { return nil }

func newBroker(tb testing.TB) *centrifuge.MemoryBroker {
	node, err := centrifuge.New(centrifuge.Config{})
	must(tb, err)
	broker, err := centrifuge.NewMemoryBroker(node, centrifuge.MemoryBrokerConfig{})
	must(tb, err)
	must(tb, broker.RegisterBrokerEventHandler(ignorePublications{}))
	tb.Cleanup(func() { broker.Close(context.Background()) })
	return broker
}

func newCentrifuge(tb testing.TB, _ int) store {
	return &centrifugeStore{tb, newBroker(tb), centrifuge.PublishOptions{HistorySize: history, HistoryTTL: time.Hour}}
}

func (s *centrifugeStore) publish(data []byte) {
	_, err := s.broker.Publish(session, bytes.Clone(data), s.opts)
	must(s.tb, err)
}

func (s *centrifugeStore) settle(*meter) {}

func (s *centrifugeStore) held() (int, []byte) {
	pubs, _, err := s.broker.History(session, centrifuge.HistoryOptions{Filter: centrifuge.HistoryFilter{Limit: -1}})
	must(s.tb, err)
	return len(pubs), pubs[len(pubs)-1].Data
}

// An sseStore is go-sse's FiniteReplayer. The mutex stands for Joe, the goroutine
// that it needs around it, and costs less.
type sseStore struct {
	tb     testing.TB
	mu     sync.Mutex
	r      *sse.FiniteReplayer
	topics []string
}

func newSSE(tb testing.TB, _ int) store {
	r, err := sse.NewFiniteReplayer(history, true)
	must(tb, err)
	s := &sseStore{tb: tb, r: r, topics: []string{session}}
	s.publish([]byte("number 0: nobody can ask for what is after -1"))
	return s
}

// message makes an SSE message of data, which it copies and cuts into lines.
func message(data []byte) *sse.Message {
	m := &sse.Message{Type: sse.Type("line")}
	m.AppendData(string(data))
	return m
}

func (s *sseStore) publish(data []byte) {
	m := message(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.r.Put(m, s.topics)
	must(s.tb, err)
}

func (s *sseStore) settle(*meter) {}

func (s *sseStore) held() (int, []byte) {
	var out sseWriter
	must(s.tb, s.replay(&out))
	return out.n, out.lastData()
}

// replay sends everything held to a client.
func (s *sseStore) replay(c sse.MessageWriter) error {
	return s.r.Replay(sse.Subscription{Client: c, LastEventID: sse.ID("0"), Topics: s.topics})
}

// An sseWriter is a client that writes the messages' text into a buffer.
type sseWriter struct {
	buf  bytes.Buffer
	n    int
	last *sse.Message
}

func (w *sseWriter) Send(m *sse.Message) error {
	w.n++
	w.last = m
	_, err := m.WriteTo(&w.buf)
	return err
}

func (w *sseWriter) Flush() error { return nil }

// lastData is the data of the last message, out of its text.
func (w *sseWriter) lastData() []byte {
	_, data, _ := bytes.Cut([]byte(w.last.String()), []byte("data: "))
	return bytes.TrimSuffix(data, []byte("\n\n"))
}

// An mcpStore is the MCP SDK's MemoryEventStore, which keeps the slice that it is
// given and is bounded by bytes alone. It keeps no time and no type.
type mcpStore struct {
	tb testing.TB
	s  *mcp.MemoryEventStore
	n  int
}

func newMCP(tb testing.TB, size int) store {
	s := mcp.NewMemoryEventStore(nil)
	s.SetMaxBytes((history - 1) * size) // it makes room before it appends
	must(tb, s.Open(gone, session, "1"))
	return &mcpStore{tb: tb, s: s}
}

func (s *mcpStore) publish(data []byte) {
	s.n++
	must(s.tb, s.s.Append(gone, session, "1", bytes.Clone(data)))
}

func (s *mcpStore) settle(*meter) {}

func (s *mcpStore) held() (n int, last []byte) {
	for data, err := range s.after() {
		must(s.tb, err)
		last = data
		n++
	}
	return n, last
}

func (s *mcpStore) after() func(func([]byte, error) bool) {
	return s.s.After(gone, session, "1", max(s.n-history, 0)-1)
}

// A natsStore is a memory stream of a NATS server in this process, over its
// in-process connection, published to without waiting for each ack. It does more:
// a protocol between client and server, an ack for each event, and a stream that
// other clients may consume.
type natsStore struct {
	tb testing.TB
	js jetstream.JetStream
}

func newNATSServer(tb testing.TB) *server.Server {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: tb.TempDir(), NoLog: true, NoSigs: true,
	})
	must(tb, err)
	s.Start()
	tb.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		tb.Fatal("the NATS server does not start")
	}
	return s
}

// newStream connects to a new server and makes a memory stream of all subjects
// that begin with the session's name.
func newStream(tb testing.TB, perSubject int64, options ...nats.Option) jetstream.JetStream {
	s := newNATSServer(tb)
	if options == nil {
		options = []nats.Option{nats.InProcessServer(s)}
	}
	nc, err := nats.Connect(s.ClientURL(), options...)
	must(tb, err)
	tb.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
	must(tb, err)
	_, err = js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: "bench", Subjects: []string{session + ".>"}, Storage: jetstream.MemoryStorage,
		MaxMsgsPerSubject: perSubject, Discard: jetstream.DiscardOld,
	})
	must(tb, err)
	return js
}

func newNATS(tb testing.TB, _ int) store { return &natsStore{tb, newStream(tb, history)} }

func (s *natsStore) publish(data []byte) {
	_, err := s.js.PublishAsync(session+".1", data)
	must(s.tb, err)
}

func (s *natsStore) settle(*meter) { <-s.js.PublishAsyncComplete() }

func (s *natsStore) held() (int, []byte) {
	ctx := context.Background()
	stream, err := s.js.Stream(ctx, "bench")
	must(s.tb, err)
	msg, err := stream.GetLastMsgForSubject(ctx, session+".1")
	must(s.tb, err)
	return int(stream.CachedInfo().State.Msgs), msg.Data
}

// A sliceLog is the form that most projects have first: a mutex, append, and a
// slice moved along.
type sliceLog struct {
	mu      sync.Mutex
	seq     uint64
	pending []wireEvent
	history []wireEvent
}

func (s *sliceLog) publish(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	ev := wireEvent{s.seq, time.Now(), "line", bytes.Clone(data)}
	s.pending = append(s.pending, ev)
	s.history = append(s.history, ev)
	if len(s.history) > history {
		s.history = s.history[1:]
	}
}

func (s *sliceLog) ack(upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for i < len(s.pending) && s.pending[i].Seq <= upTo {
		i++
	}
	s.pending = s.pending[i:]
}

func (s *sliceLog) unacked() []wireEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]wireEvent(nil), s.pending...)
}

func (s *sliceLog) head() uint64 { return s.seq }

// settle forgets what is pending: nobody acknowledges it here.
func (s *sliceLog) settle(m *meter) {
	m.pause()
	s.ack(s.seq)
	m.resume()
}

func (s *sliceLog) held() (int, []byte) { return len(s.history), s.history[len(s.history)-1].Data }

// A mapRing is the form that most projects have next: a map of what is pending,
// and a ring for who comes late.
type mapRing struct {
	mu      sync.Mutex
	seq     uint64
	acked   uint64
	pending map[uint64]wireEvent
	ring    [history]wireEvent
}

func newMapRing() *mapRing { return &mapRing{pending: make(map[uint64]wireEvent)} }

func (s *mapRing) publish(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	ev := wireEvent{s.seq, time.Now(), "line", bytes.Clone(data)}
	s.pending[s.seq] = ev
	s.ring[s.seq%history] = ev
}

func (s *mapRing) ack(upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; s.acked < upTo; s.acked++ {
		delete(s.pending, s.acked+1)
	}
}

func (s *mapRing) unacked() []wireEvent {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]wireEvent, 0, len(s.pending))
	for seq := s.acked + 1; seq <= s.seq; seq++ {
		out = append(out, s.pending[seq])
	}
	return out
}

func (s *mapRing) head() uint64 { return s.seq }

func (s *mapRing) settle(m *meter) {
	m.pause()
	s.ack(s.seq)
	m.resume()
}

func (s *mapRing) held() (int, []byte) {
	return int(min(s.seq, history)), s.ring[s.seq%history].Data
}

// A floorLog is the least that keeps an event: a mutex that nobody else wants, a
// slot of a ring, the clock, and one copy of the payload into memory that is there.
type floorLog struct {
	mu    sync.Mutex
	seq   uint64
	acked uint64
	ring  [history]struct {
		seq  uint64
		at   time.Time
		data []byte
	}
}

func (s *floorLog) publish(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	slot := &s.ring[s.seq%history]
	slot.seq, slot.at, slot.data = s.seq, time.Now(), append(slot.data[:0], data...)
}

func (s *floorLog) ack(upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = upTo
}

func (s *floorLog) head() uint64 { return s.seq }

func (s *floorLog) settle(*meter) {}

func (s *floorLog) held() (int, []byte) {
	return int(min(s.seq, history)), s.ring[s.seq%history].data
}

// A gvStore is a Streamer whose link is connected. Publishing is measured;
// handing the events out and having them acknowledged is not, as in the other
// stores, nor is the garbage that it leaves.
type gvStore struct {
	*agent
	event func([]byte) gvEvent
}

func (s *gvStore) publish(data []byte) {
	_, err := s.s.Publish(gone, s.event(data))
	must(s.tb, err)
}

func (s *gvStore) settle(m *meter) {
	m.pause()
	s.handOut()
	s.ack(s.sent)
	runtime.GC()
	m.resume()
}

func (s *gvStore) held() (int, []byte) {
	st := s.s.Stats()
	var last gvEvent
	for _, ev := range replayOf(s.agent, st.Head-1) {
		last = ev
	}
	if len(last.Bytes) > 0 {
		return st.Events, last.Bytes
	}
	return st.Events, last.Data
}

// Each store has the last events that were published, all of their bytes, and no
// more than it is to keep.
func TestStores(t *testing.T) {
	for _, s := range allStores() {
		t.Run(s.row, func(t *testing.T) {
			for _, n := range []int{10, 2*history + 10} {
				st := s.open(t, 64)
				for i := range n {
					st.publish(numbered(i))
				}
				st.settle(idleMeter())
				held, last := st.held()
				want(t, "events held", held, min(n, history))
				want(t, "last event", string(last), string(numbered(n-1)))
			}
		})
	}
}

// numbered is a payload of 64 bytes that tells its number.
func numbered(i int) []byte {
	p := payload(64)
	copy(p[len(`{"id":`):], strconv.Itoa(1_000_000+i))
	return p
}

func idleMeter() *meter { return &meter{b: new(testing.B)} }

// The hand-written forms give up what is acknowledged, and only that.
func TestHandWrittenAcks(t *testing.T) {
	for _, s := range []acker{&sliceLog{}, newMapRing()} {
		for i := range 40 {
			s.publish(numbered(i))
		}
		s.ack(32)
		left := s.unacked()
		want(t, fmt.Sprintf("%T: left", s), len(left), 8)
		want(t, fmt.Sprintf("%T: first", s), string(left[0].Data), string(numbered(32)))
	}
}
