package gvstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/epoch"
)

// A hostile peer sends each kind of link, in each way in which payloads reach one, what
// testdata/refused lists: the answer is exactly the one in the table, and is sent once;
// nothing else changes; and the next good payload works (rule 11).

// A victim is a link in the state that testdata/refused describes for its kind.
type victim struct {
	*peer
	state   func() any
	left    any                   // the state that the last case left, until a good payload comes
	counts  func() [2]uint64      // stale and refused payloads
	next    func()                // the next good payload works
	fill    *strings.Replacer     // replaces the table's variables
	request *ReplayRequestPayload // open at the agent

	say  func(frame []byte) error // also nil if this way returns no error
	hear func() []Payload         // what the link has sent since
	wire *farEnd                  // where it runs by itself, or nil
}

// victims makes the four kinds of link.
var victims = []struct {
	name  string
	start func(t *testing.T) *victim
}{
	{"agent", victimAgent},
	{"hub from agent", victimHubOfAgent},
	{"hub from viewer", victimHubOfViewer},
	{"viewer", victimViewer},
}

// startVictim makes a victim of a kind, that takes frames by Handle.
func startVictim(t *testing.T, kind string) *victim {
	t.Helper()
	for _, k := range victims {
		if k.name == kind {
			v := k.start(t)
			v.byHandle()
			v.next()
			return v
		}
	}
	t.Fatalf("no kind of link %q", kind)
	return nil
}

// ways are the ways in which a peer's frames reach a link.
var ways = []struct {
	name    string
	connect func(v *victim)
}{
	{"Handle", (*victim).byHandle},
	{"HandleFrame", (*victim).byHandleFrame},
	{"Run", func(v *victim) { v.byLines(runForms["Run"]) }},
	{"RunLines", func(v *victim) { v.byLines(runForms["RunLines"]) }},
}

func (v *victim) byHandle() {
	v.hear = v.rest
	v.say = func(frame []byte) error {
		p, err := Unmarshal(frame)
		if refused := (*ProtocolError)(nil); errors.As(err, &refused) {
			v.link.refuseFrame(time.Now(), refused) // as Run does
			return err
		}
		return v.link.Handle(v.t.Context(), p)
	}
}

func (v *victim) byHandleFrame() {
	v.hear = v.rest
	v.say = func(frame []byte) error { return v.link.HandleFrame(v.t.Context(), frame) }
}

// rest is what the link still sends, even when it is dead.
func (v *victim) rest() (out []Payload) {
	for {
		p, err := v.link.Next(endedContext)
		if err != nil {
			return out
		}
		out = append(out, p)
	}
}

func (v *victim) byLines(run runForm) {
	v.wire = newFarEnd(v.t, context.Background(), v.link, run)
	v.wire.listen()
	v.say = func(frame []byte) error {
		v.wire.Write(append(frame, '\n'))
		synctest.Wait()
		return nil
	}
	v.hear = func() (out []Payload) {
		synctest.Wait()
		for line := range bytes.Lines(v.wire.heard()) {
			p, err := Unmarshal(line)
			if err != nil {
				v.t.Fatalf("the link said %.200q: %v", line, err)
			}
			out = append(out, p)
		}
		return out
	}
}

// goesOn checks that the next good payload works.
func (v *victim) goesOn() {
	v.t.Helper()
	v.left = nil
	v.next()
}

// tell sends a good payload.
func (v *victim) tell(p Payload) {
	v.t.Helper()
	frame, err := Marshal(p)
	if err == nil {
		err = v.say(frame)
	}
	if err != nil {
		v.t.Fatalf("said %s: %v", payloadText(p), err)
	}
}

// heard checks that the link has sent this, and nothing more.
func (v *victim) heard(want ...Payload) {
	v.t.Helper()
	if got := v.hear(); !slices.EqualFunc(want, got, sameFrame) {
		v.t.Fatalf("said -want +got\n%s", cmp.Diff(want, got, sameWire))
	}
}

// sameFrame reports whether two payloads are the same on the wire. cmp is slow.
func sameFrame(a, b Payload) bool {
	x, xErr := Marshal(a)
	y, yErr := Marshal(b)
	return xErr == nil && yErr == nil && bytes.Equal(x, y)
}

// filled replaces the variables in a frame of the table.
func (v *victim) filled(frame string) string { return v.fill.Replace(frame) }

// wanted is the refusal of a case, or nil.
func (v *victim) wanted(c *badCase) *ErrorPayload {
	if c.want == nil {
		return nil
	}
	want := *c.want
	for _, field := range []*string{&want.SessionID, &want.RequestID, &want.Epoch, &want.Message} {
		*field = v.filled(*field)
	}
	if c.loose && c.say == nil {
		_, err := Unmarshal([]byte(c.frame))
		want.Message = err.(*ProtocolError).Message
	}
	return &want
}

// suffer has the link handle one case, and checks everything except that it goes on.
func (v *victim) suffer(c *badCase) {
	t := v.t
	t.Helper()
	if v.left == nil {
		v.left = v.state()
	}
	before, counted := v.left, v.counts()
	var err error
	isError := strings.HasPrefix(c.frame, `{"type":"error"`) && utf8.ValidString(c.frame)
	if c.say == nil {
		err = v.say([]byte(v.filled(c.frame)))
	} else {
		p := c.say(v)
		_, isError = p.(*ErrorPayload)
		err = v.link.Handle(t.Context(), p)
	}
	want := v.wanted(c)
	var said []Payload
	if want != nil && !isError { // an error is never answered with an error
		said = append(said, want)
		counted[1]++
	}
	if c.stale {
		counted[0]++
	}
	for _, frame := range c.says {
		p, err := Unmarshal([]byte(v.filled(frame)))
		if err != nil {
			t.Fatal(err)
		}
		said = append(said, p)
	}
	got := v.hear()
	if want != nil && want.Code == CodeEventRejected && len(c.says) == 0 {
		// A hub asks an agent for the rest of the batch, once a second.
		got = slices.DeleteFunc(got, func(p Payload) bool { a, ok := p.(*AckBatchPayload); return ok && a.Nack })
	}
	if !slices.EqualFunc(said, got, sameFrame) {
		t.Errorf("%s: said -want +got\n%s", c.name, cmp.Diff(said, got, sameWire))
	}
	if after := v.state(); !reflect.DeepEqual(before, after) {
		t.Errorf("%s: state -before +after\n%s", c.name, cmp.Diff(before, after))
	}
	if got := v.counts(); got != counted {
		t.Errorf("%s: counts %v stale and refused, want %v", c.name, got, counted)
	}
	wantErr := ""
	if want != nil {
		wantErr = want.protocolError().Error()
	}
	later := want != nil && c.to == "hub from viewer" && want.Code == CodeReplayAhead // the watch is accepted, and then ends
	if v.wire == nil && !later && errorText(err) != wantErr {
		t.Errorf("%s:\n got %s\nwant %s", c.name, errorText(err), wantErr)
	}
	switch {
	case !c.ends:
		if err := v.link.failure(); err != nil {
			t.Errorf("%s: the link ended: %v", c.name, err)
		}
	case v.wire != nil:
		select {
		case err = <-v.wire.ran:
			if errorText(err) != wantErr {
				t.Errorf("%s: Run: %v, want %s", c.name, err, wantErr)
			}
		case <-time.After(2 * drainTimeout):
			t.Errorf("%s: the link lives on", c.name)
		}
	case v.link.failure() == nil:
		t.Errorf("%s: the link lives on", c.name)
	}
	if t.Failed() {
		t.Fatalf("it was: %.300s", c.frame)
	}
}

// fits reports whether a frame fits in a line.
func (v *victim) fits(frame string) bool {
	return v.wire == nil || frame != "" && !strings.Contains(frame, "\n")
}

// runHostile sends a kind of link what is listed for it: each case to a link of its
// own, in each way, and by Handle the payloads that no frame can express.
func runHostile(t *testing.T, kind string) {
	t.Parallel()
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cases := badCases(t, kind)
				if way.name == "Handle" {
					for _, c := range badPayloads(t) {
						if c.to == kind {
							cases = append(cases, c)
						}
					}
				}
				for _, c := range cases {
					v := startVictim(t, kind)
					way.connect(v)
					for _, frame := range c.before {
						if err := v.say([]byte(v.filled(frame))); err != nil {
							t.Fatalf("%s: before: %v", c.name, err)
						}
						v.hear()
					}
					if v.suffer(&c); !c.ends {
						v.goesOn()
					}
					v.link.Close()
				}
			})
		})
	}
}

func TestHostileToAgent(t *testing.T) { runHostile(t, "agent") }

func TestHostileToHubOfAgent(t *testing.T) { runHostile(t, "hub from agent") }

func TestHostileToHubOfViewer(t *testing.T) { runHostile(t, "hub from viewer") }

func TestHostileToViewer(t *testing.T) { runHostile(t, "viewer") }

// Frames that no link accepts come to each kind of link, one after the other: each is
// answered as TestUnmarshalRefuses expects.
func TestHostileFrames(t *testing.T) {
	for _, kind := range victims {
		for w, way := range ways[1:] { // without Handle, which takes no frames
			t.Run(kind.name+"/"+way.name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					v := startVictim(t, kind.name)
					way.connect(v)
					for i, c := range badFrames(t) {
						if !v.fits(c.frame) || c.loose && i%3 != w {
							continue // each of a list goes one way
						}
						v.suffer(&c)
						if !c.loose || i%16 == 0 {
							v.goesOn()
						}
					}
					if v.wire != nil {
						v.suffer(&badCase{
							name:  "a line of more than 2 MiB",
							frame: `{"type":"status","payload":{"link":"l","x":"` + strings.Repeat("x", maxLine) + `"}}`,
							want:  &ErrorPayload{Code: CodeMalformed, Message: "frame: a line of more than 2097152 bytes"},
						})
					}
					v.goesOn()
					v.link.Close()
				})
			})
		}
	}
}

// Payloads that exceed a bound are refused whatever the codec: encoding/json accepts
// many frames that Unmarshal refuses, and a caller can make payloads that no frame can
// express.
func TestHostilePayloads(t *testing.T) {
	for _, kind := range victims {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				v := startVictim(t, kind.name)
				for i, c := range slices.Concat(foreignPayloads(t), badPayloads(t)) {
					if c.to != "any" {
						continue
					}
					v.suffer(&c)
					if !c.loose || i%16 == 0 {
						v.goesOn()
					}
				}
				v.goesOn()
			})
		})
	}
}

// foreignPayloads are the payloads that encoding/json makes from bad frames, and that
// check refuses.
func foreignPayloads(t testing.TB) (out []badCase) {
	t.Helper()
	for _, c := range badFrames(t) {
		p, err := jsonDecode([]byte(c.frame))
		if err != nil || p.check() == nil {
			continue
		}
		refused, loose := p.check().Payload(), c.loose
		if !loose && !strings.HasPrefix(c.want.Message, "byte ") && !strings.HasPrefix(c.want.Message, "frame: ") {
			refused = c.want
		}
		out = append(out, badCase{name: c.name, to: "any", say: func(*victim) Payload { return p }, want: refused, loose: loose})
	}
	return out
}

// The table has hundreds of cases, and readCases checks that each is there once.
func TestHostileCount(t *testing.T) {
	frames := len(badFrames(t))
	refused := len(foreignPayloads(t)) + len(badPayloads(t))
	ignored := 0
	for _, kind := range victims {
		for _, c := range badCases(t, kind.name) {
			if c.want != nil {
				refused++
			} else {
				ignored++
			}
		}
	}
	t.Logf("%d frames, %d payloads with an error, %d that are ignored", frames, refused, ignored)
	if frames < 1200 || refused < 400 || ignored < 60 {
		t.Error("too few")
	}
}

// footprint counts the entries of every map and slice that can be reached, by the field
// that holds it.
func footprint(roots ...any) map[string]int {
	counts, seen := make(map[string]int), make(map[uintptr]bool)
	for _, root := range roots {
		count(reflect.ValueOf(root), "", counts, seen)
	}
	return counts
}

func count(v reflect.Value, path string, counts map[string]int, seen map[uintptr]bool) {
	switch v.Kind() {
	case reflect.Interface:
		count(v.Elem(), path, counts, seen)
	case reflect.Pointer:
		if !v.IsNil() && !seen[v.Pointer()] {
			seen[v.Pointer()] = true
			count(v.Elem(), v.Type().Elem().Name(), counts, seen)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[onceASecond]() {
			return // what was said within a second: TestOnceASecondBounded
		}
		if v.Type().PkgPath() == "github.com/vibetools/gvstream" {
			for i := range v.NumField() {
				switch v.Field(i).Kind() {
				case reflect.Interface, reflect.Pointer, reflect.Struct, reflect.Slice, reflect.Map:
					count(v.Field(i), path+"."+v.Type().Field(i).Name, counts, seen)
				}
			}
		}
	case reflect.Slice:
		counts[path] += v.Len()
		for i := range v.Len() {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				break
			}
			count(v.Index(i), path+"[]", counts, seen)
		}
	case reflect.Map:
		counts[path] += v.Len()
		for it := v.MapRange(); it.Next(); {
			count(it.Key(), path+"[]", counts, seen)
			count(it.Value(), path+"[]", counts, seen)
		}
	}
}

// A farEnd is the far end of a connection on which a link runs by itself.
type farEnd struct {
	net.Conn
	ran chan error // what Run returned

	mu   sync.Mutex // protects said
	said []byte     // by the link, since the last call of heard
}

// newFarEnd runs a link on a connection. What the link sends is not read, unless the
// far end listens.
func newFarEnd(t *testing.T, ctx context.Context, l *Link, run runForm) *farEnd {
	near, far := net.Pipe()
	f := &farEnd{Conn: far, ran: make(chan error, 2)} // two ends may run
	go func() { f.ran <- run(l, ctx, near) }()
	t.Cleanup(func() { far.Close() })
	return f
}

// listen reads what the link sends from now on.
func (f *farEnd) listen() {
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := f.Read(buf)
			f.mu.Lock()
			f.said = append(f.said, buf[:n]...)
			f.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

// heard returns what the link has sent since.
func (f *farEnd) heard() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	said := f.said
	f.said = nil
	return said
}

func victimAgent(t *testing.T) *victim {
	st := NewStreamer(nil)
	publishN(t, st, "s", 4)
	epoch := stats(t, st, "s").Epoch
	v := &victim{peer: &peer{t: t, link: st.Connect(), id: "l1"}}
	v.want(&HelloPayload{V: 1, Role: roleAgent})
	v.send(&WelcomePayload{V: 1, Link: "l1", WindowEvents: 256})
	v.drain()
	v.send(v.ack("s", epoch, 1))
	v.fill = strings.NewReplacer("$link", "l1", "$epoch", epoch, "$cut", epoch[:len(epoch)-1])
	v.counts = func() [2]uint64 { return [2]uint64{st.Stats().StalePayloads, st.Stats().RefusedPayloads} }
	v.state = func() any {
		all, s := st.Stats(), stats(t, st, "s")
		all.StalePayloads, all.RefusedPayloads, all.Connected, s.Connected = 0, 0, false, false
		var events []Event
		for e := range st.Unacked("s") {
			events = append(events, e)
		}
		return []any{all, s, events}
	}
	acked := uint64(1)
	v.next = func() {
		t.Helper()
		publishN(t, st, "s", 1)
		acked++
		b := ofKind[*EventBatchPayload](t, v.hear())
		if b.LastSeq != acked+3 {
			t.Fatalf("the agent says %s behind its %d", payloadText(b), acked+2)
		}
		v.tell(v.ack("s", epoch, acked))
		v.heard()
		if n := st.Stats().PendingEvents; n != 3 {
			t.Fatalf("%d pending, want 3", n)
		}
	}
	return v
}

func victimHubOfAgent(t *testing.T) *victim {
	h := NewHub(&HubConfig{MaxEventBytes: 1000, LogEvents: 5, MaxAgentSessions: 2, Window: 2})
	playAgent(t, h, "other").feed("theirs", "e1", 1, 3)
	v := &victim{peer: playAgent(t, h, "agent")}
	v.send(v.last("ended", "e1", 1), headed(v.batch("s", "e1", 1, 2), 9))
	v.feed("long", "e1", 1, 20)
	v.drain()
	tab := playViewer(t, h, "tab")
	tab.send(tab.watch("long", "", 0))
	tab.drain()
	v.request = v.asked("long", "tab", "e1", 0, 15)
	v.wantIdle("asked once")
	inAYear := epoch.NewSource(rand.Reader).Next(time.Now().Add(8760 * time.Hour))
	v.fill = strings.NewReplacer("$link", v.id, "$request", v.request.RequestID, "$later", inAYear)
	v.counts = func() [2]uint64 { return [2]uint64{h.Stats().StalePayloads, h.Stats().RefusedPayloads} }
	v.state = func() any {
		all := h.Stats()
		all.StalePayloads, all.RefusedPayloads = 0, 0
		tab.drain()
		state := []any{all, footprint(h)}
		for s := range h.Sessions() {
			state = append(state, s)
			l := &h.lookup(s.SessionID).log
			for i := range l.ring.n {
				state = append(state, l.from(i), string(l.ring.at(i).bytes()))
			}
		}
		c := h.lookup("long").cursors[0]
		return append(state, c.sent, c.fetch.log.head, c.fetch.left, c.fetch.lost, c.fetch.open)
	}
	last := uint64(2)
	v.next = func() {
		t.Helper()
		last++
		v.tell(headed(v.batch("s", "e1", last, last), max(last, 9)))
		v.heard(v.ack("s", "e1", last))
	}
	return v
}

func victimHubOfViewer(t *testing.T) *victim {
	h := NewHub(&HubConfig{MaxWatches: 2, Window: 2, LogEvents: 5, AuthorizeViewer: func(_ context.Context, _, session string) error {
		if session == "secret" {
			return errors.New("a reason that nobody is told")
		}
		return nil
	}})
	a := playAgent(t, h, "agent")
	a.feed("s", "e1", 1, 4)
	a.feed("t", "e1", 1, 5)
	a.feed("secret", "e1", 1, 5)
	v := &victim{peer: playViewer(t, h, "tab")}
	v.send(v.watch("s", "e1", 0))
	v.drain()
	v.fill = strings.NewReplacer("$link", v.id)
	v.counts = func() [2]uint64 { return [2]uint64{h.Stats().StalePayloads, h.Stats().RefusedPayloads} }
	v.state = func() any {
		all := h.Stats()
		all.StalePayloads, all.RefusedPayloads = 0, 0
		state := []any{all, footprint(h)}
		for s := range h.Sessions() {
			state = append(state, s)
		}
		c := h.viewers["tab"].cursors["s"]
		return append(state, c.epoch, c.sent, c.statusPending)
	}
	last := uint64(4)
	v.next = func() {
		t.Helper()
		last++
		a.send(a.batch("s", "e1", last, last))
		a.want(a.ack("s", "e1", last))
		v.heard(v.batch("s", "e1", last, last))
	}
	return v
}

func victimViewer(t *testing.T) *victim {
	w := NewViewer(nil)
	for _, id := range []string{"s", "later"} {
		if err := w.Watch(id, Position{}); err != nil {
			t.Fatal(err)
		}
	}
	v := &victim{peer: playHub(t, w)}
	v.drain()
	v.send(v.status(stands("s", "e1", 1, 9, 0)), v.batch("s", "e1", 1, 3))
	v.fill = strings.NewReplacer("$link", v.id)
	v.counts = func() [2]uint64 { return [2]uint64{w.Stats().StalePayloads, w.Stats().RefusedPayloads} }
	v.state = func() any {
		st := w.Stats()
		st.StalePayloads, st.RefusedPayloads, st.Connected = 0, 0, false
		held := footprint(w)
		maps.DeleteFunc(held, func(field string, _ int) bool {
			return strings.HasPrefix(field, "Link.") || strings.HasPrefix(field, "viewerLink.")
		}) // in some cases it dies
		state := []any{st, held, w.Position("s"), w.Position("later")}
		for _, q := range w.queue {
			state = append(state, itemText(q.item))
		}
		for _, id := range []string{"s", "later"} {
			state = append(state, w.watches[id].epoch, w.watches[id].received, w.watches[id].ended)
		}
		return state
	}
	last := uint64(3)
	v.next = func() {
		t.Helper()
		last++
		v.tell(v.batch("s", "e1", last, last))
		for it, err := range w.Items(endedContext) {
			if err != nil {
				t.Fatal(err)
			}
			if it.Event.Seq == last-1 {
				break // it keeps the last two
			}
		}
		isAt(t, w, "s", "e1", last-2)
		v.hear()
	}
	return v
}

// ofKind returns the only payload of a list, which has a type.
func ofKind[P Payload](t *testing.T, ps []Payload) (p P) {
	t.Helper()
	if len(ps) == 1 {
		if p, ok := ps[0].(P); ok {
			return p
		}
	}
	t.Fatalf("%d payloads, want one %T: %v", len(ps), p, ps)
	return p
}
