package gvstream

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A keeper keeps what it was given, and a copy that was made at once.
type keeper struct {
	mu   sync.Mutex
	what []string
	got  [][]byte
	was  [][]byte
}

func (k *keeper) keep(what string, bs ...[]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range bs {
		k.what, k.got, k.was = append(k.what, what), append(k.got, b), append(k.was, bytes.Clone(b))
	}
}

func (k *keeper) keepEvents(what string, events []Event) {
	for i := range events {
		k.keep(what, events[i].Data, events[i].Bytes)
	}
}

func (k *keeper) keepPayload(what string, p Payload) {
	switch p := p.(type) {
	case *EventBatchPayload:
		k.keepEvents(what, p.Events)
	case *ReplayBatchPayload:
		k.keepEvents(what, p.Events)
	}
}

func (k *keeper) check(t *testing.T) {
	t.Helper()
	for i := range k.got {
		if !bytes.Equal(k.got[i], k.was[i]) {
			t.Fatalf("%s: %q became %q", k.what[i], k.was[i], k.got[i])
		}
	}
	if len(k.got) < 1000 {
		t.Errorf("only %d pieces were kept", len(k.got))
	}
}

// TestLentBytesStay: nobody ever sees bytes change that he was given, whatever is
// published, dropped, evicted and refused meanwhile, with limits so small that memory
// is used again all the time. Readers write to what is theirs. The race detector
// watches the rest.
func TestLentBytesStay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, lentBytesStay)
}

func lentBytesStay(t *testing.T) {
	var kept keeper
	st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingEvents: 20, ReplayEvents: 30, ReplayBytes: 6000, MaxTotalBytes: 20_000})
	h := NewHub(&HubConfig{LogEvents: 10, LogBytes: 4000, Commit: func(_ context.Context, _, _ string, items []Item) error {
		spoil(items)
		return nil
	}})
	v := NewViewer(&ViewerConfig{BufferItems: 50})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	link := func(what string, a, b *Link) {
		wg.Go(func() {
			var frame []byte
			for ctx.Err() == nil {
				if rand.IntN(3) == 0 { // through a buffer that is used again
					var err error
					if frame, err = a.NextFrame(ctx, frame[:0]); err != nil {
						return
					}
					if err := b.HandleFrame(ctx, frame); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
					clear(frame)
					continue
				}
				p, err := a.Next(ctx)
				if err != nil {
					return
				}
				kept.keepPayload(what, p)
				if rand.IntN(5) == 0 { // a frame instead of the payload itself
					line, err := Marshal(p)
					if err != nil {
						t.Error(err)
					}
					if p, err = Unmarshal(line); err != nil {
						t.Error(err)
					}
				}
				if err := b.Handle(ctx, p); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	sessions := []string{"s0", "s1", "s2"}
	agent, hub := st.Connect(), h.ConnectAgent("a")
	up, down := h.ConnectViewer("v"), v.Connect()
	link("agent", agent, hub)
	link("hub", hub, agent)
	link("hub's viewer", up, down)
	link("viewer", down, up)
	for _, id := range sessions {
		if err := v.Watch(id, Position{}); err != nil {
			t.Fatal(err)
		}
	}
	wg.Go(func() {
		for it := range v.Items(ctx) {
			spoil([]Item{it})
		}
	})
	wg.Go(func() { // replays, of whatever the hub no longer has
		for i := 0; ctx.Err() == nil; i++ {
			n := 0
			for it := range h.Items(ctx, sessions[i%3], Position{}) {
				if spoil([]Item{it}); n > 20 {
					break
				}
				n++
			}
			pass(time.Millisecond)
		}
	})
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			for e := range st.Unacked(sessions[i%3]) {
				spoil([]Item{{Event: &e}})
			}
			pass(time.Millisecond)
		}
	})
	rnd := rand.New(rand.NewPCG(1, 1))
	for i := range 1200 {
		e := Event{Type: "out", Bytes: bytes.Repeat([]byte{byte(i)}, 1+rnd.IntN([]int{20, 300, 5000}[i%3]))}
		if i%2 == 0 {
			e = Event{Data: fmt.Appendf(nil, `"%0*d"`, 1+rnd.IntN(400), i)}
		}
		if _, err := st.Publish(ctx, sessions[i%3], e); err != nil {
			t.Fatal(err)
		}
		if i%40 == 0 { // what is sent is looked at, too
			if err := st.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	wg.Wait()
	kept.check(t)
}

// spoil does what a reader may do with what is its own.
func spoil(items []Item) {
	for _, it := range items {
		if it.Event != nil {
			clear(it.Event.Data)
			clear(it.Event.Bytes)
		}
	}
}

// TestHandleKeepsNothing: what was given to Handle is neither changed nor kept, by an
// agent, a hub or a viewer, whatever becomes of the items that were made of it.
func TestHandleKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spoiled := func(b *EventBatchPayload, before []byte) {
			t.Helper()
			if line, err := Marshal(b); err != nil || !bytes.Equal(line, before) {
				t.Errorf("%v: %s became %s", err, before, line)
			}
			spoil([]Item{{Event: &b.Events[0]}, {Event: &b.Events[1]}})
			clear(b.Events)
			clear(b.Gaps)
		}
		given := func(link string) (*EventBatchPayload, []byte) {
			b := &EventBatchPayload{
				SessionID: "s", Epoch: "e1", Link: link, FirstSeq: 1, LastSeq: 4, HeadSeq: 4,
				Events: []Event{{Seq: 1, Data: []byte("[1]")}, {Seq: 4, Bytes: []byte("four")}}, Gaps: []Gap{{2, 3, ReasonDropped}},
			}
			line, err := Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			return b, line
		}
		shown := func(what string, items iter.Seq2[Item, error]) {
			t.Helper()
			var got []string
			for it, err := range items {
				switch {
				case err != nil:
					t.Fatal(err)
				case it.Gap != nil:
					got = append(got, fmt.Sprint(*it.Gap))
				default:
					got = append(got, string(it.Event.Data)+string(it.Event.Bytes))
				}
				spoil([]Item{it})
			}
			if want := []string{"[1]", "{2 3 dropped}", "four"}; !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
		}
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		b, line := given(a.id)
		a.send(b)
		spoiled(b, line)
		shown("the hub", h.Items(endedContext, "s", Position{}))
		shown("the hub again", h.Items(endedContext, "s", Position{}))

		v := NewViewer(nil)
		v.Watch("s", Position{})
		hub := speakHub(t, v)
		hub.drain()
		hub.send(&StatusPayload{ViewerID: hub.viewer, Link: hub.id, Sessions: []SessionStatus{{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 4}}})
		b, line = given(hub.id)
		hub.send(b)
		spoiled(b, line)
		shown("the viewer", v.Items(endedContext))
	})
}
