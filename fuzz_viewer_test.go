package gvstream

import (
	"errors"
	"slices"
	"testing"
)

// What happens next at a viewer.
const (
	viewerConnects = iota
	viewerSays
	viewerIsWelcomed
	viewerIsTold
	viewerIsServed
	viewerIsRefused
	viewerReads
	viewerWatches
	viewerUnwatches
	viewerHearsLies
	viewerHearsLate
	viewerWaits
	viewerCloses
	viewerSteps
)

// A viewerTest is a Viewer against a hostile hub.
type viewerTest struct {
	*machineTest
	v     *Viewer
	links []*viewerLink // the last is the newest
	seen  map[string]*shown
}

// FuzzViewer: whatever a hub says, a viewer's reader is shown each number once and in
// order, and a new link to an honest hub works.
func FuzzViewer(f *testing.F) {
	small := make([]byte, 3)
	connect := []byte{viewerWatches, 0, 0, viewerConnects, viewerSays, 0, viewerIsWelcomed, viewerSays, 3}
	addScripts(f,
		slices.Concat(small, connect, []byte{
			viewerIsTold, 0, 0, 0, 0, 0, viewerIsServed, 0, 0, 3, 0, viewerReads, 1, viewerIsServed, 0, 1, 3, 1, viewerReads, 15, viewerIsServed, 0, 0, 1, 2, viewerReads, 15,
		}),
		slices.Concat(small, connect, []byte{ // a reset
			viewerIsTold, 0, 0, 0, 0, 0, viewerIsServed, 0, 0, 3, 0, viewerIsTold, 0, 1, 0, 4, 0, viewerIsServed, 0, 0, 3, 0, viewerReads, 15, viewerIsTold, 0, 0, 0, 0, 0, viewerSays, 3,
		}),
		slices.Concat(small, connect, []byte{ // losses, and no room
			viewerIsTold, 0, 0, 0, 0, 0, viewerIsServed, 0, 0, 3, 3, viewerSays, 3, viewerIsServed, 0, 0, 7, 0, viewerIsServed, 0, 0, 7, 0, viewerReads, 15, viewerIsServed, 0, 0, 7, 4, viewerReads, 15,
		}),
		slices.Concat(small, connect, []byte{ // an end that lies in a gap, a watch that is refused, one that is left
			viewerIsTold, 0, 0, 0, 0, 0, viewerIsServed, 0, 0, 3, 1, viewerIsTold, 0, 0, 0, 0, 1, viewerReads, 15,
			viewerWatches, 1, 0, viewerSays, 1, viewerIsRefused, 1, 0, viewerReads, 3, viewerUnwatches, 1, viewerSays, 3,
		}),
		slices.Concat(small, connect, []byte{ // silence
			viewerWaits, 3, viewerSays, 1, viewerWaits, 3, viewerSays, 1, viewerWaits, 4, viewerSays, 1, viewerConnects, viewerSays, 0,
		}),
	)
	f.Fuzz(runViewerTest)
}

// runViewerTest is one conversation.
func runViewerTest(t *testing.T, script []byte) {
	w := newViewerTest(t, script)
	for w.c.left() {
		w.step()
		w.sound(viewerFault(w.v))
	}
	w.settle()
}

func newViewerTest(t *testing.T, script []byte) *viewerTest {
	w := &viewerTest{machineTest: newMachineTest(t, script), seen: make(map[string]*shown)}
	w.v = NewViewer(&ViewerConfig{
		BufferItems: one(w.c, []int{8, 1, 256}), BufferBytes: one(w.c, []int{0, -1, 500}), MaxWatches: one(w.c, []int{8, 3}),
	})
	w.g.viewers, w.g.requests = []string{"me", "other"}, []string{"r1"}
	return w
}

func (w *viewerTest) step() {
	c := w.c
	switch c.of(viewerSteps) {
	case viewerConnects:
		w.links = append(w.links, w.v.connect(w.now))
	case viewerSays:
		n := c.of(8)
		for range 1 + n {
			w.said()
		}
	case viewerIsWelcomed:
		w.given(&WelcomePayload{ViewerID: "me", V: version, Link: "l" + string(rune('0'+len(w.links)%10))})
	case viewerIsTold:
		w.isTold()
	case viewerIsServed:
		w.isServed()
	case viewerIsRefused:
		id, retry := one(c, hubSessions), c.of(4) == 1
		w.given(&ErrorPayload{SessionID: id, Code: codeForbidden, Retryable: retry})
	case viewerReads:
		w.reads(1 + c.of(32))
	case viewerWatches:
		id, at := one(c, hubSessions), one(c, []Position{{}, {}, {fuzzEpochs[1], 3}, {fuzzEpochs[0], MaxSeq}, {"zzz", 0}})
		if err := w.v.Watch(id, at); err == nil {
			w.seen[id] = &shown{pos: at}
		} else if !errors.Is(err, ErrBusy) && !errors.Is(err, ErrTooMany) {
			w.Fatalf("watch: %v", err)
		}
	case viewerUnwatches:
		w.v.Unwatch(one(c, hubSessions))
	case viewerHearsLies:
		w.pools()
		w.given(w.g.hostile())
	case viewerHearsLate:
		if len(w.links) > 1 {
			w.pools()
			w.hears(one(c, w.links), w.g.hostile())
		}
	case viewerWaits:
		w.now = c.pass(w.now)
	case viewerCloses:
		if vl := w.link(); vl != nil {
			vl.fail(w.now, ErrClosed)
		}
	}
}

func (w *viewerTest) link() *viewerLink {
	if len(w.links) == 0 {
		return nil
	}
	return w.links[len(w.links)-1]
}

// isTold sends a status of one session, in its epoch or a later one.
func (w *viewerTest) isTold() {
	c := w.c
	x, later, ack, prev, ended := w.v.watches[one(c, hubSessions)], c.of(4), c.next(), uint64(c.of(8)), c.of(4) == 1
	vl := w.link()
	if x == nil || vl == nil {
		return
	}
	s := SessionStatus{SessionID: x.id, Epoch: x.epoch, HeadSeq: x.received, Ended: ended}
	if later > 0 || x.epoch == "" {
		s.Epoch, s.HeadSeq = fuzzEpochs[later%len(fuzzEpochs)], 0
		if x.epoch != "" {
			s.PrevEpoch, s.PrevSeq = x.epoch, prev
		}
	}
	s.HeadSeq = min(s.HeadSeq+uint64(ack%4), MaxSeq)
	s.AckSeq = min(s.HeadSeq, uint64(ack/4))
	w.given(&StatusPayload{ViewerID: "me", Link: vl.id, Sessions: []SessionStatus{s}})
}

// isServed sends what comes next in a session, live or replayed; or something that is
// already known, comes after a hole, ends the session or is of another epoch.
func (w *viewerTest) isServed() {
	c := w.c
	x, kind, n, odd := w.v.watches[one(c, hubSessions)], c.of(2), uint64(c.of(12)), c.of(8)
	vl := w.link()
	if x == nil || vl == nil || x.epoch == "" {
		return
	}
	first := x.received + 1
	switch odd {
	case 2:
		first++
	case 3, 4:
		first -= min(x.received, 2)
	}
	if first+n > MaxSeq-2 {
		return
	}
	epoch := x.epoch
	if odd == 6 {
		epoch = one(c, fuzzEpochs)
	}
	var events []Event
	var gaps []Gap
	last := first + n
	for seq := first; seq <= last; seq++ {
		events = append(events, Event{Seq: seq, Data: fuzzData[0], End: odd == 5 && seq == last})
	}
	if odd == 1 || odd == 4 {
		gaps, events = []Gap{{first, last, ReasonEvicted}}, nil
	}
	if kind == 0 {
		w.given(&EventBatchPayload{SessionID: x.id, ViewerID: "me", Epoch: epoch, Link: vl.id, FirstSeq: first, LastSeq: last, HeadSeq: last, Events: events, Gaps: gaps})
	} else {
		w.given(&ReplayBatchPayload{SessionID: x.id, ViewerID: "me", RequestID: "r", Epoch: epoch, FirstSeq: first, LastSeq: last, UntilSeq: last, Events: events, Gaps: gaps})
	}
}

func (w *viewerTest) pools() {
	g := w.g
	g.sessions, g.epochs, g.links, g.numbers = hubSessions, append(g.epochs[:0], fuzzEpochs...), g.links[:0], g.numbers[:0]
	for i := len(w.links) - 1; i >= max(0, len(w.links)-3); i-- {
		g.links = append(g.links, w.links[i].id)
	}
	for _, x := range w.v.sorted() {
		g.epochs = append(g.epochs, x.epoch)
		g.numbers = append(g.numbers, x.received, x.received+1, x.handled.Seq)
	}
}

func (w *viewerTest) given(p Payload) {
	if vl := w.link(); vl != nil {
		w.g.remember(p)
		w.hears(vl, p)
	}
}

func (w *viewerTest) hears(vl *viewerLink, p Payload) {
	stale, before := vl != w.link(), w.print()
	switch p := p.(type) {
	case *StatusPayload:
		stale = stale || p.Link != vl.id || p.ViewerID != "" && p.ViewerID != vl.viewerID
	case *EventBatchPayload:
		stale = stale || p.Link != vl.id || p.ViewerID != "" && p.ViewerID != vl.viewerID
	}
	w.takes(vl.Link, p)
	if stale && before != w.print() {
		w.Fatalf("S6: a payload of another link changed something: %v", p)
	}
}

// viewerPrint is the state that no stale payload may change.
type viewerPrint struct {
	epochs                 string
	received, items, ended uint64
}

func (w *viewerTest) print() (out viewerPrint) {
	out.items = uint64(len(w.v.queue))
	for _, id := range hubSessions {
		if x := w.v.watches[id]; x != nil {
			out.epochs += x.epoch + " "
			out.received += x.received
			if x.ended {
				out.ended++
			}
		}
	}
	return out
}

// said takes what the viewer sends.
func (w *viewerTest) said() {
	vl := w.link()
	if vl == nil {
		return
	}
	switch p := w.says(vl.Link).(type) {
	case *HelloPayload:
		if p.Role != roleViewer {
			w.Fatalf("hello of %q", p.Role)
		}
	case *WatchPayload:
		x := w.v.watches[p.SessionID]
		if !p.Stop && (x == nil || x.ended || p.Epoch != x.epoch || p.AfterSeq != x.received) {
			w.Fatalf("rule 14: %s", brief(p))
		}
		if p.ViewerID != vl.viewerID {
			w.Fatalf("%s as %q", brief(p), p.ViewerID)
		}
	case *ErrorPayload, nil:
	default:
		w.Fatalf("a viewer says %s", brief(p))
	}
}

// reads takes items as the loop over Items does. Until it is done with one, that one
// comes again.
func (w *viewerTest) reads(n int) {
	for range n {
		q, _ := w.v.front()
		if q == nil {
			return
		}
		id := q.w.id
		r := w.seen[id]
		if again, _ := w.v.front(); again != q || w.v.Position(id) != r.pos {
			w.Fatal("rule 14: an item is gone that was not dealt with")
		}
		w.v.done(q)
		if q.err != nil {
			r.ended = true
		} else {
			w.sound(r.fault(q.item))
		}
		if w.v.Position(id) != r.pos {
			w.Fatalf("rule 14: %s: position %v, was shown %v", id, w.v.Position(id), r.pos)
		}
	}
}

// settle: over a new link, an honest hub is watched to the end of a session.
func (w *viewerTest) settle() {
	readAll := func() { w.reads(1 << 20) }
	readAll()
	const id = "honest"
	for _, used := range hubSessions {
		w.v.Unwatch(used)
	}
	h, st := NewHub(&HubConfig{LogEvents: 2}), NewStreamer(nil)
	h.ids, st.epochs = countingMinter(), countingMinter()
	for i := range 6 {
		if _, _, err := offer(w.now, st, id, Event{Data: []byte(`1`), End: i == 5}); err != nil {
			w.Fatal(err)
		}
	}
	if err := w.v.Watch(id, Position{}); err != nil {
		w.Fatal(err)
	}
	w.seen[id] = &shown{}
	agent := [2]*Link{st.connect(w.now).Link, h.connectAgent(w.now, "agent").Link}
	viewer := [2]*Link{w.v.connect(w.now).Link, h.connectViewer(w.now, "me", false).Link}
	w.carry(readAll, agent, viewer)
	if r := w.seen[id]; !r.ended || r.pos.Seq != 6 {
		w.Fatalf("L2: the viewer is at %v, ended %v", r.pos, r.ended)
	}
}
