package scenarios_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
)

// The parts that scenarios are made of: distinguishable events, viewers that are read,
// and a store.

// pass lets time pass, in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// publish adds n events to a session. Each carries its own number, by which tell checks
// that an event is the right one.
func publish(t *testing.T, st *gvstream.Streamer, id string, n int) {
	t.Helper()
	s, err := st.Session(id)
	noError(t, err)
	for range n {
		next := s.Stats().Head + 1
		seq, err := s.Publish(scene.Ended, event(next))
		noError(t, err)
		equal(t, "number", seq, next)
	}
}

func event(seq uint64) gvstream.Event {
	return gvstream.Event{Type: "n", Data: fmt.Append(nil, seq)}
}

func stats(t *testing.T, st *gvstream.Streamer, id string) gvstream.SessionStats {
	t.Helper()
	s, err := st.Session(id)
	noError(t, err)
	return s.Stats()
}

// at is a position in the session's current epoch.
func at(t *testing.T, st *gvstream.Streamer, id string, seq uint64) gvstream.Position {
	t.Helper()
	return gvstream.Position{Epoch: stats(t, st, id).Epoch, Seq: seq}
}

func unacked(st *gvstream.Streamer, id string) string {
	return tellEvents(slices.Collect(st.Unacked(id)), nil)
}

// accepted is how far the hub is in a session; 0 if it doesn't know it.
func accepted(h *gvstream.Hub, id string) uint64 { return hubStats(h, id).Acked }

func hubStats(h *gvstream.Hub, id string) gvstream.SessionStats {
	for s := range h.Sessions() {
		if s.SessionID == id {
			return s
		}
	}
	return gvstream.SessionStats{}
}

// numbered are the events of these numbers.
func numbered(seqs ...uint64) (events []gvstream.Event) {
	for _, seq := range seqs {
		e := event(seq)
		e.Seq = seq
		events = append(events, e)
	}
	return events
}

// to is the numbers from a to b.
func to(a, b uint64) (seqs []uint64) {
	for ; a <= b; a++ {
		seqs = append(seqs, a)
	}
	return seqs
}

// text is a JSON string of n bytes with its quotes.
func text(n int) json.RawMessage {
	return json.RawMessage(`"` + strings.Repeat("x", n-2) + `"`)
}

// newViewer is a Viewer that watches one session and has room for everything: a
// wire carries on without its reader.
func newViewer(t *testing.T, id string, after gvstream.Position) *gvstream.Viewer {
	t.Helper()
	v := gvstream.NewViewer(&gvstream.ViewerConfig{Window: 1 << 20, WindowBytes: 1 << 30})
	noError(t, v.Watch(id, after))
	return v
}

// read returns what a viewer's reader gets now. An error of a watch fails the test.
func read(t *testing.T, v *gvstream.Viewer) string {
	t.Helper()
	return tell(readItems(t, v))
}

func readItems(t *testing.T, v *gvstream.Viewer) (items []gvstream.Item) {
	t.Helper()
	for it, err := range v.Items(scene.Ended) {
		noError(t, err)
		items = append(items, it)
	}
	return items
}

// show returns what a viewer gets that connects, watches from a position and leaves.
func show(t *testing.T, sc *scene.Scene, id string, after gvstream.Position) string {
	t.Helper()
	v := newViewer(t, id, after)
	w := sc.Viewer("passer-by", v)
	sc.Flow()
	w.Cut()
	return read(t, v)
}

// follow reads one session to its end, over a connection that runs by itself, and
// returns what came.
func follow(sc *scene.Scene, name, id string, after gvstream.Position) string {
	v := gvstream.NewViewer(nil)
	if err := v.Watch(id, after); err != nil {
		return err.Error()
	}
	sc.Join(v.Connect(), sc.Hub.ConnectViewer(name), nil)
	defer v.Close()
	var items []gvstream.Item
	for it, err := range v.Items(sc.Context()) {
		if err != nil {
			return err.Error()
		}
		items = append(items, it)
		if it.End {
			break
		}
	}
	return tell(items)
}

// A store is what a hub's Commit callback has written.
type store struct {
	mu    sync.Mutex
	items map[string][]gvstream.Item // by session
	fails func(items []gvstream.Item) error
}

func (s *store) commit(_ context.Context, id, _ string, items []gvstream.Item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		if err := s.fails(items); err != nil {
			return err
		}
	}
	if s.items == nil {
		s.items = make(map[string][]gvstream.Item)
	}
	s.items[id] = append(s.items[id], items...)
	return nil
}

func (s *store) tell(id string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tell(s.items[id])
}
