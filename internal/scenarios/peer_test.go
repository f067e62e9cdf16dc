package scenarios_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
)

// A peer is an agent, a hub or a viewer that the test plays by hand against a real one.
type peer struct {
	t    *testing.T
	link *gvstream.Link     // the real one's
	name string             // of the link
	st   *gvstream.Streamer // for a hub, the real one
}

// Epochs of agents that are played: they are older than any real one.
const epoch1, epoch2 = "0001", "0002"

var answered atomic.Int64 // links that played hubs have named

// answer plays a hub: it connects the Streamer and welcomes it.
func answer(t *testing.T, st *gvstream.Streamer, window int) *peer {
	t.Helper()
	h := &peer{t: t, link: st.Connect(), name: fmt.Sprint("link-", answered.Add(1)), st: st}
	equal(t, "first payload", say(scene.Next(h.link)), "hello")
	noError(t, h.link.Handle(t.Context(), &gvstream.WelcomePayload{V: 1, Link: h.name, WindowEvents: window, WindowBytes: 1 << 30}))
	return h
}

// callAgent plays an agent that a Hub has welcomed.
func callAgent(t *testing.T, h *gvstream.Hub, id string) *peer {
	t.Helper()
	return greet(t, h.ConnectAgent(id), "agent")
}

// callViewer plays a viewer that a Hub has welcomed.
func callViewer(t *testing.T, h *gvstream.Hub, id string) *peer {
	t.Helper()
	return greet(t, h.ConnectViewer(id), "viewer")
}

func greet(t *testing.T, l *gvstream.Link, role string) *peer {
	t.Helper()
	noError(t, l.Handle(t.Context(), &gvstream.HelloPayload{V: 1, Role: role}))
	return &peer{t: t, link: l, name: scene.Next(l).(*gvstream.WelcomePayload).Link}
}

// says is what the real one has to send now.
func (p *peer) says() string { return say(scene.Ready(p.link)...) }

// ack is a hub's: it acknowledges, and returns what the agent makes of it.
func (p *peer) ack(id string, upTo uint64) error {
	p.t.Helper()
	return p.link.Handle(p.t.Context(), &gvstream.AckBatchPayload{
		SessionID: id, Epoch: stats(p.t, p.st, id).Epoch, Link: p.name, UpToSeq: upTo,
	})
}

// status is an agent's: it says where a session stands.
func (p *peer) status(id, epoch string, head, ack uint64) error {
	return p.link.Handle(p.t.Context(), &gvstream.StatusPayload{Link: p.name, Sessions: []gvstream.SessionStatus{
		{SessionID: id, Epoch: epoch, FirstSeq: 1, HeadSeq: head, AckSeq: ack},
	}})
}

// batch is an agent's: it sends events with the given numbers, as one batch.
func (p *peer) batch(id, epoch string, seqs ...uint64) error {
	return p.link.Handle(p.t.Context(), &gvstream.EventBatchPayload{
		SessionID: id, Epoch: epoch, Link: p.name, FirstSeq: slices.Min(seqs), LastSeq: slices.Max(seqs),
		HeadSeq: slices.Max(seqs), Events: numbered(seqs...),
	})
}

// watch is a viewer's.
func (p *peer) watch(id string, after gvstream.Position) error {
	return p.link.Handle(p.t.Context(), &gvstream.WatchPayload{SessionID: id, Epoch: after.Epoch, AfterSeq: after.Seq})
}
