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

	"github.com/vibetools/gvstream/internal/testenv"
)

// ringNumbers are the numbers in the ring, front first.
func ringNumbers(r *ring) []uint64 {
	out := []uint64{}
	for i := range r.n {
		out = append(out, r.at(i).to)
	}
	return out
}

// TestRing applies the same operations to a ring and to a slice.
func TestRing(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var r ring
		model := []uint64{}
		grow := 2 + rnd.IntN(6) // how many of ten steps add: some rings stay small
		for step := range uint64(300) {
			n := step + 1
			switch c := rnd.IntN(10); {
			case c < grow && rnd.IntN(3) == 0:
				r.pushFront(slot{to: n})
				model = append([]uint64{n}, model...)
			case c < grow:
				*r.add() = slot{to: n}
				model = append(model, n)
			case len(model) == 0:
			case rnd.IntN(2) == 0:
				r.popFront()
				model = model[1:]
			default:
				i := rnd.IntN(len(model))
				r.remove(i)
				model = append(model[:i:i], model[i+1:]...)
			}
			if got := ringNumbers(&r); !slices.Equal(got, model) {
				t.Fatalf("seed %d, step %d: %v, want %v", seed, step, got, model)
			}
			used := 0
			for _, s := range r.slots {
				if s != (slot{}) {
					used++
				}
			}
			if used != r.n || len(r.slots) > max(keepSlots, 4*r.n) {
				t.Fatalf("seed %d, step %d: %d entries in %d slots, of which %d are used", seed, step, r.n, len(r.slots), used)
			}
		}
	}
}

// TestRingBounds looks just before, at and after each size of the ring.
func TestRingBounds(t *testing.T) {
	for _, test := range []struct{ entries, slots int }{
		{0, 0}, {1, 4}, {3, 4}, {4, 4}, {5, 8}, {8, 8}, {9, 16}, {16, 16}, {17, 32},
	} {
		for start := range 5 { // where in the slots the first entry is
			var r ring
			for i := range start {
				*r.add() = slot{to: uint64(i)}
			}
			for range start {
				r.popFront()
			}
			for i := range test.entries {
				*r.add() = slot{to: uint64(i)}
			}
			if want := max(test.slots, min(start, 1)*4); r.n != test.entries || len(r.slots) != want {
				t.Errorf("start %d: %d entries in %d slots, want %d in %d", start, r.n, len(r.slots), test.entries, want)
			}
			for range test.entries {
				r.popFront()
			}
			if r.n != 0 || len(r.slots) > keepSlots {
				t.Errorf("start %d: an empty ring keeps %d slots", start, len(r.slots))
			}
		}
	}
}

// TestStore: bytes stay as they were stored until their slot is freed, and lent bytes
// forever; free chunks are released.
func TestStore(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		var st store
		var slots []slot
		var texts [][]byte
		held := 0
		lent, was := [][]byte{}, [][]byte{}
		for step := range 2000 {
			switch c := rnd.IntN(20); {
			case c < 9:
				text := bytes.Repeat([]byte{byte(step)}, 1+rnd.IntN([]int{20, 2000, 9000}[seed%3]))
				var s slot
				chunk := st.room(len(text)+1, held)
				st.put(&s, chunk, copy(chunk.b[chunk.used:], text))
				slots, texts, held = append(slots, s), append(texts, text), held+len(text)
			case c == 9 && len(slots) > 0 && len(lent) < 100:
				s := slots[rnd.IntN(len(slots))]
				st.lend(s.chunk)
				lent, was = append(lent, s.bytes()), append(was, bytes.Clone(s.bytes()))
			case len(slots) > 0:
				i := 0
				if c > 16 {
					i = rnd.IntN(len(slots))
				}
				held -= len(texts[i])
				st.free(slots[i].chunk, held)
				slots, texts = slices.Delete(slots, i, i+1), slices.Delete(texts, i, i+1)
			}
			for i := range slots {
				if !bytes.Equal(slots[i].bytes(), texts[i]) {
					t.Fatalf("seed %d, step %d: slot %d changed", seed, step, i)
				}
			}
			if has := memory(slots, &st); has != st.size {
				t.Fatalf("seed %d, step %d: counts %d bytes of memory, has %d", seed, step, st.size, has)
			}
		}
		for i := range lent {
			if !bytes.Equal(lent[i], was[i]) {
				t.Fatalf("seed %d: lent bytes changed", seed)
			}
		}
		for i := range slots {
			st.free(slots[i].chunk, 0)
		}
		if st.last != nil || st.size > minChunk {
			t.Errorf("seed %d: an empty store keeps %d bytes", seed, st.size)
		}
	}
}

// memory is the size of the chunks that slots are in, and of those that a store has.
func memory(slots []slot, st *store) (n int) {
	seen := map[*chunk]bool{nil: true}
	add := func(c *chunk) {
		if !seen[c] {
			n += len(c.b)
		}
		seen[c] = true
	}
	for i := range slots {
		add(slots[i].chunk)
	}
	if st != nil {
		add(st.last)
		add(st.spare)
	}
	return n
}

// memory is the size of the memory that a log has for its events.
func (l *log) memory() int {
	var slots []slot
	for i := range l.ring.n {
		slots = append(slots, *l.ring.at(i))
	}
	return memory(slots, l.store)
}

// TestStoreReuses: a log that evicts as much as it takes needs no more memory.
func TestStoreReuses(t *testing.T) {
	for _, size := range []int{10, 300, 3000, 20_000} {
		l := &log{}
		d := preparedEvent{ev: &Event{Bytes: make([]byte, size)}}
		if err := d.check(false); err != nil {
			t.Fatal(err)
		}
		cycle := func() {
			l.publish(&d)
			l.trim(l.head, 100, 1<<30)
		}
		for range 300 {
			cycle()
		}
		if n := testing.AllocsPerRun(testenv.Fewer(1000), cycle); n > 0 {
			t.Errorf("%d bytes: %v allocations an event", size, n)
		}
		held := l.memory()
		if most := l.bytes*5/4 + 2*maxChunk; held > most {
			t.Errorf("%d bytes: %d bytes of memory for %d of events", size, held, l.bytes)
		}
	}
}

// An empty ring keeps a few slots, and no more.
func TestRingKeepsFewSlots(t *testing.T) {
	for n, kept := range map[int]int{keepSlots: keepSlots, 100 * keepSlots: keepSlots} {
		var r ring
		for i := range n {
			*r.add() = slot{to: uint64(i + 1)}
		}
		for range n {
			r.popFront()
		}
		if len(r.slots) != kept {
			t.Errorf("after %d slots the ring keeps %d, want %d", n, len(r.slots), kept)
		}
	}
}

// The shorter side of a ring makes room for the other: the head moves for a slot of
// the first half only.
func TestRingRemovesAtShorterSide(t *testing.T) {
	for i, moved := range []bool{true, true, true, true, false, false, false, false} {
		var r ring
		for to := range uint64(8) {
			*r.add() = slot{to: to}
		}
		head := r.head
		r.remove(i)
		if (r.head != head) != moved {
			t.Errorf("slot %d of 8: head %d, then %d", i, head, r.head)
		}
	}
}

// A chunk is used to its last byte, and is as large as its bounds say: an entry just
// larger than largeEntry gets a chunk of its own, next to the one being filled.
func TestStoreRoom(t *testing.T) {
	var st store
	c := st.room(1, 0)
	if len(c.b) != minChunk {
		t.Errorf("the first chunk has %d bytes, want %d", len(c.b), minChunk)
	}
	c.b = make([]byte, growChunk)
	c.used = growChunk - 10
	if st.room(10, 0) != c {
		t.Error("10 bytes are left and not used for 10")
	}
	if st.room(largeEntry+1, 0) == c || st.room(10, 0) != c {
		t.Error("a large entry ended a chunk that has room")
	}
	if st.room(11, 0) == c {
		t.Error("10 bytes are left and used for 11")
	}
	for _, test := range []struct{ n, held, size int }{
		{minChunk, 0, minChunk}, {minChunk + 1, 0, minChunk + 1}, {1, minChunk + 1, minChunk + 1},
		{1, maxChunk, maxChunk}, {1, maxChunk + 1, maxChunk},
		{largeEntry, maxChunk, maxChunk}, {largeEntry + 1, maxChunk, largeEntry + 1},
	} {
		if c := new(store).room(test.n, test.held); len(c.b) != test.size {
			t.Errorf("room for %d with %d held: a chunk of %d bytes, want %d", test.n, test.held, len(c.b), test.size)
		}
	}
}

// A small chunk grows with what it holds, unless its bytes have been lent.
func TestStoreGrows(t *testing.T) {
	for _, test := range []struct {
		size  int
		lent  bool
		grows bool
	}{
		{minChunk, false, true}, {growChunk - 1, false, true}, {growChunk, false, false}, {minChunk, true, false},
	} {
		var st store
		c := st.room(test.size, 0)
		var s slot
		st.put(&s, c, copy(c.b, bytes.Repeat([]byte{7}, test.size-1)))
		was := s.bytes()
		if c.lent = test.lent; test.lent {
			was = bytes.Clone(was)
		}
		next := st.room(50, test.size)
		if (next == c) != test.grows {
			t.Errorf("%+v: grows %v", test, next == c)
		}
		clear(next.b[next.used:])
		if !bytes.Equal(s.bytes(), was) || len(next.b)-next.used < 50 {
			t.Errorf("%+v: %d bytes of room, or other bytes before it", test, len(next.b)-next.used)
		}
		if size := len(c.b); test.grows && st.size != size || !test.grows && st.size != size+len(next.b) {
			t.Errorf("%+v: counts %d bytes of memory", test, st.size)
		}
	}
}

// A free chunk is reused if it is large enough and less than twice as large as what is
// asked for.
func TestStoreSpare(t *testing.T) {
	for n, again := range map[int]bool{4999: false, 5000: true, 9999: true, 10_000: true, 10_001: false} {
		c := &chunk{b: make([]byte, 10_000)}
		st := store{spare: c, size: 10_000}
		if got := st.room(n, 0); (got == c) != again || st.spare != nil || st.size != len(got.b) {
			t.Errorf("%d of 10,000: written again %v, want %v; %d bytes counted", n, got == c, again, st.size)
		}
	}
}

// A chunk that was never lent is reused, unless it is larger than what the log holds by
// then, or than the smallest chunk.
func TestStoreSparesSmall(t *testing.T) {
	for _, test := range []struct {
		size, held int
		spared     bool
	}{
		{minChunk, 0, true}, {minChunk + 1, 0, false}, {minChunk + 1, minChunk, false}, {minChunk + 1, minChunk + 1, true},
	} {
		var st store
		c := st.room(test.size, 0)
		st.put(new(slot), c, test.size-1)
		st.free(c, test.held)
		if again := st.room(1, 0) == c; again != test.spared {
			t.Errorf("a chunk of %d with %d held is written again: %v", test.size, test.held, again)
		}
	}
}

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

// TestLentBytesStay: bytes that were handed out never change, whatever is published,
// dropped, evicted and refused meanwhile, with limits so small that memory is reused
// all the time. Readers write to the bytes they own. The race detector checks the rest.
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
	v := NewViewer(&ViewerConfig{Window: 50})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	link := func(what string, a, b *Link) {
		wg.Go(func() {
			var frame []byte
			for ctx.Err() == nil {
				if rand.IntN(3) == 0 { // through a buffer that is reused
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
	wg.Go(func() { // replays of what the hub no longer has
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
		if i%40 == 0 { // what is sent is checked, too
			if err := st.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	wg.Wait()
	kept.check(t)
}

// spoil does what a reader may do with bytes that it owns.
func spoil(items []Item) {
	for _, it := range items {
		if it.Event != nil {
			clear(it.Event.Data)
			clear(it.Event.Bytes)
		}
	}
}

// TestHandleKeepsNothing: what was given to Handle is neither changed nor kept, by an
// agent, a hub or a viewer, whatever happens to the items made from it.
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
		handle := func(to *peer, p Payload) { // as it is: send would hand over a copy
			t.Helper()
			if err := to.link.Handle(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		b, line := given(a.id)
		handle(a, b)
		spoiled(b, line)
		shown("the hub", h.Items(endedContext, "s", Position{}))
		shown("the hub again", h.Items(endedContext, "s", Position{}))

		h, a = smallHub(t, HubConfig{})
		tab := playViewer(t, h, "tab")
		tab.send(tab.watch("s", "", 0))
		tab.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		answer := answerTo(r, 1, 15, true)
		answer.Events, answer.Gaps = nil, []Gap{{1, 15, ReasonEvicted}}
		handle(a, answer)
		answer.Gaps[0].Reason = ReasonDropped
		if p := tab.next().(*EventBatchPayload); !slices.Equal(p.Gaps, []Gap{{1, 15, ReasonEvicted}}) {
			t.Errorf("replayed: %v", p.Gaps)
		}

		v := NewViewer(nil)
		v.Watch("s", Position{})
		hub := playHub(t, v)
		hub.drain()
		hub.send(&StatusPayload{ViewerID: hub.viewer, Link: hub.id, Sessions: []SessionStatus{{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 4}}})
		b, line = given(hub.id)
		handle(hub, b)
		spoiled(b, line)
		shown("the viewer", v.Items(endedContext))
	})
}
