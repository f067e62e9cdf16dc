package bench

import (
	"fmt"
	"testing"

	"github.com/vibetools/gvstream"
)

const (
	session = "build-42"
	linkID  = "bench"
	window  = 1 << 20

	usualWindow = 1024 // of a viewer that names none
)

// streamerConfig keeps as many events as every other store here. It does not
// limit their bytes, since no other store does.
func streamerConfig() *gvstream.StreamerConfig {
	return &gvstream.StreamerConfig{
		ReplayEvents: history, ReplayBytes: 1 << 30, MaxPendingBytes: 1 << 30, MaxPendingEvents: 100_000,
		MaxSessions: 200_000,
	}
}

// hubConfig keeps as many events, too.
func hubConfig() *gvstream.HubConfig { return &gvstream.HubConfig{LogEvents: history} }

// trusting has Publish take the caller's word that Data is JSON, as every peer
// does that does not look into the payload.
func trusting(cfg *gvstream.StreamerConfig) *gvstream.StreamerConfig {
	cfg.TrustData = true
	return cfg
}

// An agent is a Streamer with one session and a link that a test's hand holds the
// other end of: no hub, no transport, no goroutine.
type agent struct {
	tb   testing.TB
	st   *gvstream.Streamer
	s    *gvstream.Session
	link *gvstream.Link

	epoch string
	sent  uint64 // last number handed out
	count int    // events handed out
}

func newAgent(tb testing.TB, cfg *gvstream.StreamerConfig) *agent {
	a := &agent{tb: tb, st: gvstream.NewStreamer(cfg)}
	a.connect()
	var err error
	a.s, err = a.st.Session(session)
	must(tb, err)
	return a
}

// connect makes a link and welcomes it.
func (a *agent) connect() {
	a.link = a.st.Connect()
	if _, ok := a.next().(*gvstream.HelloPayload); !ok {
		a.tb.Fatal("no hello")
	}
	a.handle(&gvstream.WelcomePayload{V: 1, Link: linkID, WindowEvents: window, WindowBytes: 1 << 30})
}

// next is the next payload that is ready, or nil.
func (a *agent) next() gvstream.Payload { return ready(a.tb, a.link) }

// ready is the next payload that is ready on a link, or nil.
func ready(tb testing.TB, l *gvstream.Link) gvstream.Payload {
	p, err := l.Next(gone)
	if err != nil && err != gone.Err() {
		tb.Fatal(err)
	}
	return p
}

// frame appends the next frame that is ready to buf; nothing if there is none.
func (a *agent) frame(buf []byte) []byte { return readyFrame(a.tb, a.link, buf) }

func readyFrame(tb testing.TB, l *gvstream.Link, buf []byte) []byte {
	out, err := l.NextFrame(gone, buf)
	if err != nil && err != gone.Err() {
		tb.Fatal(err)
	}
	return out
}

func (a *agent) handle(p gvstream.Payload) { must(a.tb, a.link.Handle(gone, p)) }

func (a *agent) publish(ev gvstream.Event) {
	_, err := a.s.Publish(gone, ev)
	must(a.tb, err)
}

// handOut takes batches until none is ready. The last one is returned.
func (a *agent) handOut() *gvstream.EventBatchPayload {
	var last *gvstream.EventBatchPayload
	for p := a.next(); p != nil; p = a.next() {
		if b, ok := p.(*gvstream.EventBatchPayload); ok {
			a.epoch, a.sent, last = b.Epoch, b.LastSeq, b
			a.count += len(b.Events)
		}
	}
	return last
}

func (a *agent) ack(upTo uint64) {
	a.handle(&gvstream.AckBatchPayload{SessionID: session, Epoch: a.epoch, Link: linkID, UpToSeq: upTo})
}

// events are the forms in which a payload can be published, by the name of their
// row.
var eventForms = []struct {
	row    string
	config func() *gvstream.StreamerConfig
	event  func(data []byte) gvstream.Event
}{
	{"gvstream", func() *gvstream.StreamerConfig { return trusting(streamerConfig()) }, jsonEvent},
	{"gvstream-checked", streamerConfig, jsonEvent},
	{"gvstream-bytes", streamerConfig, bytesEvent},
}

func jsonEvent(data []byte) gvstream.Event  { return gvstream.Event{Type: "line", Data: data} }
func bytesEvent(data []byte) gvstream.Event { return gvstream.Event{Type: "line", Bytes: data} }

// A pair is an agent and a hub that are joined by hand.
type pair struct {
	tb   testing.TB
	st   *gvstream.Streamer
	s    *gvstream.Session
	up   *gvstream.Link // the agent's
	hub  *gvstream.Hub
	down *gvstream.Link // the hub's
	buf  []byte         // a frame on its way
}

func newPair(tb testing.TB) *pair {
	p := &pair{tb: tb, st: gvstream.NewStreamer(streamerConfig()), hub: gvstream.NewHub(hubConfig())}
	p.up, p.down = p.st.Connect(), p.hub.ConnectAgent("agent-1")
	var err error
	p.s, err = p.st.Session(session)
	must(tb, err)
	p.pump()
	return p
}

// pump carries frames both ways until neither side has one.
func (p *pair) pump() {
	for p.carry(p.up, p.down) || p.carry(p.down, p.up) {
	}
}

func (p *pair) carry(from, to *gvstream.Link) bool {
	p.buf = readyFrame(p.tb, from, p.buf[:0])
	if len(p.buf) > 0 {
		must(p.tb, to.HandleFrame(gone, p.buf))
	}
	return len(p.buf) > 0
}

// A seat is a viewer's link with a cursor on the session, and what came of it. It acknowledges
// as a Viewer does that reads at once: with half of the usual window.
type seat struct {
	id      string
	link    *gvstream.Link
	hubLink string // the hub's name for it
	unacked int
}

// take deals with a payload to the viewer, and returns how many events it has. It may be called
// by any goroutine, so it can't end the test.
func (v *seat) take(p gvstream.Payload) int {
	switch p := p.(type) {
	case *gvstream.WelcomePayload:
		v.hubLink = p.Link
	case *gvstream.EventBatchPayload:
		if v.unacked += len(p.Events); v.unacked >= usualWindow/2 {
			v.unacked = 0
			err := v.link.Handle(gone, &gvstream.AckBatchPayload{
				SessionID: session, ViewerID: v.id, Epoch: p.Epoch, Link: v.hubLink, UpToSeq: p.LastSeq,
			})
			if err != nil {
				panic(err)
			}
		}
		return len(p.Events)
	}
	return 0
}

// watch makes a viewer's link with a cursor on the session.
func (p *pair) watch(i int) *seat {
	id := fmt.Sprint("viewer-", i)
	l := p.hub.ConnectViewer(id)
	must(p.tb, l.Handle(gone, &gvstream.HelloPayload{V: 1, Role: "viewer"}))
	must(p.tb, l.Handle(gone, &gvstream.WatchPayload{SessionID: session, ViewerID: id}))
	return &seat{id: id, link: l}
}

// accept publishes, and has the hub accept.
func (p *pair) accept(n int, data []byte) {
	for range n {
		_, err := p.s.Publish(gone, jsonEvent(data))
		must(p.tb, err)
	}
	p.pump()
}
