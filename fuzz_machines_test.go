package gvstream

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// The fuzz targets of the machines turn bytes into a conversation: each byte is a
// choice of what happens next, of what a hostile peer says, or of what the caller
// does. After every step the invariants are checked; at the end an honest peer
// connects, and everything has to work.

// choices are the bytes of a fuzz input. When they are used up, each choice is 0.
type choices struct {
	b []byte
}

const maxChoices = 400 // bounds what one input costs

func newChoices(b []byte) *choices { return &choices{b[:min(len(b), maxChoices)]} }

func (c *choices) left() bool { return len(c.b) > 0 }

func (c *choices) next() int {
	if len(c.b) == 0 {
		return 0
	}
	n := c.b[0]
	c.b = c.b[1:]
	return int(n)
}

// of returns a number from 0 to n-1.
func (c *choices) of(n int) int { return c.next() % n }

// one returns one of a list.
func one[T any](c *choices, list []T) T { return list[c.of(len(list))] }

// addScripts seeds a target with conversations, and with some by chance.
func addScripts(f *testing.F, honest ...[]byte) {
	for _, script := range honest {
		f.Add(script)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
}

// counting is a source of bits for an epoch.Source: each id is different.
type counting struct{ n uint64 }

func (r *counting) Read(p []byte) (int, error) {
	for i := 0; i < len(p); i += 8 {
		var b [8]byte
		r.n++
		binary.BigEndian.PutUint64(b[:], r.n)
		copy(p[i:], b[:])
	}
	return len(p), nil
}

func countingSource() *epoch.Source { return epoch.NewSource(new(counting)) }

var fuzzStart = time.UnixMilli(1_700_000_000_000)

// pass moves a clock.
func (c *choices) pass(now time.Time) time.Time {
	return now.Add(one(c, []time.Duration{
		time.Millisecond, 300 * time.Millisecond, time.Second, 16 * time.Second, 40 * time.Second,
		6 * time.Minute, 11 * time.Minute, 2 * time.Hour, -time.Second,
	}))
}

// A forger says what a hostile peer may say: payloads whose fields are taken from
// small pools, so that many are nearly right.
type forger struct {
	c        *choices
	sessions []string
	viewers  []string
	links    []string
	requests []string
	epochs   []string
	numbers  []uint64
	given    []Payload // what was sent to the machine before, to be sent again, altered
	said     []Payload // what the machine sent itself
}

// Ids and epochs that are in every pool.
var (
	oddIDs     = []string{"", "\x00", "unknown", "\xff", strings.Repeat("i", maxID), strings.Repeat("i", maxID+1)}
	oddEpochs  = []string{"", "0", "zz", "e\x00", strings.Repeat("z", maxEpoch), strings.Repeat("z", maxEpoch+1)}
	oddNumbers = []uint64{0, 1, 2, 3, MaxSeq - 1, MaxSeq, MaxSeq + 1, MaxSeq + 2, 1 << 62, 1<<64 - 1}
	fuzzCodes  = []Code{
		CodeMalformed, CodeUnknownType, CodeUnexpected, CodeStaleLink, CodeStaleEpoch, CodeForbidden, CodeUnknownSession,
		CodeAckBeyondSent, CodeReplayAhead, CodeReplayBusy, CodeEventRejected, CodeEventTooLarge, CodeSessionEnded, CodeOverloaded,
		CodeLimitExceeded, CodeSuperseded, CodeWrongRole, "later", "", "\n", CodeVersionUnsupported,
	}
)

// pool takes an entry of likely three times in four, and one of odd otherwise.
func pool[T any](c *choices, likely, odd []T) T {
	b := c.next()
	if b < 192 && len(likely) > 0 {
		return likely[b%len(likely)]
	}
	return odd[b%len(odd)]
}

func (g *forger) session() string { return pool(g.c, g.sessions, oddIDs) }
func (g *forger) viewer() string  { return pool(g.c, g.viewers, oddIDs) }
func (g *forger) link() string    { return pool(g.c, g.links, oddIDs) }
func (g *forger) request() string { return pool(g.c, g.requests, oddIDs) }
func (g *forger) epoch() string   { return pool(g.c, g.epochs, oddEpochs) }
func (g *forger) flag() bool      { return g.c.next()%2 == 1 }

func (g *forger) number() uint64 {
	n := pool(g.c, g.numbers, oddNumbers)
	switch g.c.of(4) {
	case 1:
		return n + 1
	case 2:
		return n - 1
	}
	return n
}

// window makes a window, of events or of bytes.
func (g *forger) window() int { return one(g.c, []int{256, 4, 1, 0, -1, 1 << 30}) }

// ack makes the ack of one session.
func (g *forger) ack() SessionAck {
	n := g.number()
	return SessionAck{g.session(), g.epoch(), n, g.flag(), g.flag(), g.window(), g.window(), n / 2}
}

// payload makes a payload of any type.
func (g *forger) payload() Payload {
	c := g.c
	switch c.of(10) {
	case 0:
		return &HelloPayload{g.viewer(), one(c, []int{1, 1, 2, 0, -1}), one(c, []string{roleAgent, roleViewer, "", "boss"})}
	case 1:
		return &WelcomePayload{g.viewer(), one(c, []int{1, 1, 1, 2, 0}), g.link(), g.window(), g.window()}
	case 2:
		p := &StatusPayload{ViewerID: g.viewer(), Link: g.link(), More: g.flag()}
		for range c.of(4) {
			p.Sessions = append(p.Sessions, g.entry())
		}
		return p
	case 3, 4:
		first := g.number()
		events, gaps, last := g.tiles(first)
		return &EventBatchPayload{
			SessionID: g.session(), ViewerID: g.viewer(), Epoch: g.epoch(), Link: g.link(),
			FirstSeq: first, LastSeq: last, HeadSeq: max(last, g.number()), Events: events, Gaps: gaps,
		}
	case 5:
		a := g.ack()
		p := &AckBatchPayload{a.SessionID, g.viewer(), a.Epoch, g.link(), a.UpToSeq, a.Nack, a.Full, a.WindowEvents, a.WindowBytes, a.ReadSeq, nil}
		for range c.of(3) {
			p.Acks = append(p.Acks, g.ack())
		}
		return p
	case 6:
		return &WatchPayload{g.session(), g.viewer(), g.epoch(), g.number(), g.flag(), g.window(), g.window()}
	case 7:
		return &ReplayRequestPayload{g.session(), g.viewer(), g.request(), g.epoch(), g.number(), g.number(), one(c, []int{0, 1, 5, 500, -1})}
	case 8:
		first := g.number()
		events, gaps, last := g.tiles(first)
		return &ReplayBatchPayload{
			SessionID: g.session(), ViewerID: g.viewer(), RequestID: g.request(), Epoch: g.epoch(),
			FirstSeq: first, LastSeq: last, UntilSeq: max(last, g.number()), AvailableFrom: g.number(), Done: g.flag(), Events: events, Gaps: gaps,
		}
	}
	return &ErrorPayload{g.session(), g.viewer(), one(c, fuzzCodes), "because", g.flag(), g.request(), g.epoch(), g.number(), one(c, []uint64{0, 0, g.number()})}
}

func (g *forger) entry() SessionStatus {
	head := g.number()
	return SessionStatus{g.session(), g.epoch(), min(g.number(), head+1), head, min(g.number(), head), g.flag(), g.c.of(8) == 1, g.epoch(), g.number()}
}

// tiles makes the events and gaps of a batch that begins at first; most of them fit.
func (g *forger) tiles(first uint64) ([]Event, []Gap, uint64) {
	c := g.c
	shape := make([]byte, c.of(6))
	for i := range shape {
		shape[i] = byte(c.next())
	}
	ev := Event{Type: "out", Data: one(c, fuzzData), End: c.of(8) == 1}
	return tiles(first, shape, ev, one(c, []Reason{ReasonDropped, ReasonEvicted, "later", ""}))
}

var fuzzData = []json.RawMessage{
	json.RawMessage(`1`), nil, json.RawMessage(`{ "a": [1] }`), json.RawMessage(`{`), json.RawMessage("\"\xff\""),
	json.RawMessage(`"` + strings.Repeat("x", 300) + `"`),
}

// keep adds a payload to the last few.
func keep(list []Payload, p Payload) []Payload {
	if len(list) == 16 {
		copy(list, list[1:])
		list = list[:15]
	}
	return append(list, p)
}

// remember keeps a payload to be sent again.
func (g *forger) remember(p Payload) { g.given = keep(g.given, p) }

// again repeats an earlier payload: as it was, or with one field altered.
func (g *forger) again() Payload {
	list := g.given
	if g.c.of(4) == 1 {
		list = g.said // the machine's own word, sent back to it
	}
	if len(list) == 0 {
		return g.payload()
	}
	switch p := one(g.c, list).(type) {
	case *HelloPayload:
		q := *p
		alter(g, &q.V, 1)
		return &q
	case *WelcomePayload:
		q := *p
		g.alterText(&q.Link, g.link)
		g.alterText(&q.ViewerID, g.viewer)
		return &q
	case *StatusPayload:
		q := *p
		q.Sessions = append([]SessionStatus(nil), p.Sessions...)
		g.alterText(&q.Link, g.link)
		for i := range q.Sessions {
			s := &q.Sessions[i]
			g.alterText(&s.Epoch, g.epoch)
			g.alterNumber(&s.HeadSeq)
			g.alterNumber(&s.AckSeq)
			s.Ended = s.Ended != (g.c.of(8) == 1)
		}
		return &q
	case *EventBatchPayload:
		q := *p
		g.alterText(&q.Epoch, g.epoch)
		g.alterText(&q.Link, g.link)
		g.alterNumber(&q.HeadSeq)
		g.alterNumber(&q.FirstSeq)
		return &q
	case *AckBatchPayload:
		q := *p
		g.alterText(&q.Epoch, g.epoch)
		g.alterText(&q.Link, g.link)
		g.alterText(&q.ViewerID, g.viewer)
		g.alterNumber(&q.UpToSeq)
		q.Nack = q.Nack != (g.c.of(4) == 1)
		return &q
	case *WatchPayload:
		q := *p
		g.alterText(&q.Epoch, g.epoch)
		g.alterNumber(&q.AfterSeq)
		return &q
	case *ReplayRequestPayload:
		q := *p
		g.alterText(&q.RequestID, g.request)
		g.alterNumber(&q.UntilSeq)
		g.alterNumber(&q.AfterSeq)
		return &q
	case *ReplayBatchPayload:
		q := *p
		g.alterText(&q.RequestID, g.request)
		g.alterText(&q.ViewerID, g.viewer)
		g.alterText(&q.Epoch, g.epoch)
		g.alterNumber(&q.UntilSeq)
		q.Done = q.Done != (g.c.of(4) == 1)
		return &q
	case *ErrorPayload:
		q := *p
		g.alterNumber(&q.Seq)
		q.Retryable = q.Retryable != (g.c.of(4) == 1)
		return &q
	}
	return nil // no payload at all
}

func alter[T any](g *forger, p *T, v T) {
	if g.c.of(8) == 1 {
		*p = v
	}
}

func (g *forger) alterText(p *string, text func() string) {
	if g.c.of(8) == 1 {
		*p = text()
	}
}

func (g *forger) alterNumber(p *uint64) {
	if g.c.of(8) == 1 {
		*p = g.number()
	}
}

// hostile is the next payload that a hostile peer sends.
func (g *forger) hostile() Payload {
	if g.c.of(3) == 1 {
		return g.again()
	}
	return g.payload()
}

// A machineTest is what the fuzz targets of the machines share.
type machineTest struct {
	*testing.T
	c   *choices
	g   *forger
	now time.Time
	buf []byte
}

func newMachineTest(t *testing.T, script []byte) *machineTest {
	c := newChoices(script)
	return &machineTest{T: t, c: c, g: &forger{c: c}, now: fuzzStart}
}

// sound fails the test if something is wrong.
func (m *machineTest) sound(fault string) {
	m.Helper()
	if fault != "" {
		m.Fatal(fault)
	}
}

// takes hands a payload to a link. It checks that what is refused leaves the link alive
// unless that is fatal, and that an error is not answered with an error.
func (m *machineTest) takes(l *Link, p Payload) error {
	before := errorsIn(l.replies)
	dead := l.failure()
	ctx := context.Background()
	if _, ok := l.endpoint.(*viewerLink); ok {
		ctx = endedContext // it does not wait for room
	}
	err := l.handle(ctx, m.now, p)
	if _, ok := p.(*ErrorPayload); ok && errorsIn(l.replies) > before {
		m.Fatalf("an error was answered by an error: %s", brief(l.replies[len(l.replies)-1]))
	}
	switch refused, ok := err.(*ProtocolError); {
	case dead != nil && err == nil:
		m.Fatal("a dead link takes payloads")
	case dead == nil && ok && !refused.fatal && l.failure() != nil:
		m.Fatalf("the link died of %v", err)
	case ok && refused.Payload().check() != nil:
		m.Fatalf("refused in a way that nobody may say: %v", err)
	case ok && refused.fatal && !refused.Payload().endsLink() && refused.Code != CodeAckBeyondSent:
		m.Fatalf("fatal: %v", err)
	}
	return err
}

// says returns the next payload of a link, or nil. It must be one that a peer may send,
// and no longer than the wire allows.
func (m *machineTest) says(l *Link) Payload {
	p, _, _ := l.next(m.now)
	if p == nil {
		return nil
	}
	m.g.said = keep(m.g.said, p)
	if refused := p.check(); refused != nil {
		m.Fatalf("says %s: %v", brief(p), refused)
	}
	line, err := Append(m.buf[:0], p)
	if err != nil {
		m.Fatalf("says %s: %v", brief(p), err)
	}
	m.buf = line
	if len(line) > maxBatchBytes && (len(payloadEvents(p)) != 1 || len(line) > maxLine) {
		m.Fatalf("says %d bytes: %s", len(line), brief(p))
	}
	return p
}

// carry has pairs of honest links talk until all are silent, and time pass in between.
// After each round it calls read.
func (m *machineTest) carry(read func(), pairs ...[2]*Link) {
	for range 4 { // an ack is held back for a while
		for range 2000 {
			moved := false
			for _, pair := range pairs {
				for i := range pair {
					if p := m.says(pair[i]); p != nil {
						moved = true
						if err := m.takes(pair[1-i], p); isMalformed(err) {
							m.Fatalf("an honest peer says %s: %v", brief(p), err)
						}
					}
				}
			}
			if read(); !moved {
				break
			}
		}
		m.now = m.now.Add(ackDelay)
	}
}

func isMalformed(err error) bool {
	refused, ok := err.(*ProtocolError)
	return ok && refused.Code == CodeMalformed
}

// offer publishes without waiting.
func offer(now time.Time, st *Streamer, id string, ev Event) (*Session, uint64, error) {
	s, err := st.session(now, id)
	if err != nil {
		return nil, 0, err
	}
	if ev.Time.IsZero() {
		ev.Time = now
	}
	d := preparedEvent{ev: &ev}
	if err := s.prepare(&d); err != nil {
		return s, 0, err
	}
	s.st.budget.makeRoom(d.size()) // as publish does
	s.mu.Lock()
	defer s.mu.Unlock()
	seq, err := s.offerLocked(&d)
	return s, seq, err
}

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
		Window: one(w.c, []int{8, 1, 256}), WindowBytes: one(w.c, []int{0, -1, 500}), MaxWatches: one(w.c, []int{8, 3}),
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
		w.given(&ErrorPayload{SessionID: id, Code: CodeForbidden, Retryable: retry})
	case viewerReads:
		w.reads(1 + c.of(32))
	case viewerWatches:
		id, at := one(c, hubSessions), one(c, []Position{{}, {}, {fuzzEpochs[1], 3}, {fuzzEpochs[0], MaxSeq}, {"zzz", 0}})
		if err := w.v.Watch(id, at); err == nil {
			w.seen[id] = &shown{pos: at}
		} else if !errors.Is(err, ErrWatched) && !errors.Is(err, ErrTooMany) {
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
	for _, x := range sortedWatches(w.v) {
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
		stale = stale || p.Link != "" && p.Link != vl.id || p.ViewerID != "" && p.ViewerID != vl.viewerID
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
	case *AckBatchPayload:
		if p.ViewerID != vl.viewerID || p.Link != vl.id || p.check() != nil {
			w.Fatalf("%s as %q on %q", brief(p), p.ViewerID, p.Link)
		}
		for _, a := range append([]SessionAck{p.first()}, p.Acks...) {
			x := w.v.watches[a.SessionID]
			if x == nil || a.Epoch != x.epoch || a.UpToSeq != x.received || a.WindowEvents > w.v.cfg.Window || a.Full != (a.WindowEvents == 0 || a.WindowBytes == 0) {
				w.Fatalf("rule 14: %s", brief(p))
			}
		}
	case *StatusPayload:
		if p.ViewerID != vl.viewerID || p.Link != vl.id || len(p.Sessions) > 0 {
			w.Fatalf("%s as %q on %q", brief(p), p.ViewerID, p.Link)
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
	h.ids, st.epochs = countingSource(), countingSource()
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
