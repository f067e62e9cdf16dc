package gvstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/epoch"
)

// checkBorrowed: a frame whose bytes are borrowed by a machine means the same as one that
// Unmarshal has copied; it is told again in the same way, and what a machine keeps of it
// outlives the frame.
func checkBorrowed(t *testing.T, frame []byte, want Payload, wantErr error) {
	t.Helper()
	frame = bytes.Clone(frame)
	d := new(decoder)
	p, err := d.decode(frame)
	if errorText(plain(err)) != errorText(wantErr) {
		t.Fatalf("%.300s: error %v, want %v", frame, err, wantErr)
	}
	if err != nil {
		if p != nil || err.unanswered != wantErr.(*ProtocolError).unanswered {
			t.Fatalf("%.300s: %v, unanswered: %v", frame, p, err.unanswered)
		}
		return
	}
	line, again := Marshal(p)
	wantLine, _ := Marshal(want)
	if again != nil || !bytes.Equal(line, wantLine) {
		t.Fatalf("told again as %s, %v; want %s", line, again, wantLine)
	}
	var pg *page
	switch p := p.(type) {
	case *eventBatch:
		again, pg = p.load(), &p.page
		p.Events = nil
	case *replayBatch:
		again, pg = p.load(), &p.page
		p.Events = nil
	}
	if pg != nil && again == nil {
		pg.settle()
	}
	clear(frame)
	clear(d.slots)
	if p = open(p); again != nil || !equalWire(p, want) {
		t.Fatalf("kept: %v\n%s", again, cmp.Diff(want, p, sameWire))
	}
}

// A frame is taken in the fast way exactly if all its events stand there as we write
// them.
func TestBorrowedEvents(t *testing.T) {
	t.Parallel()
	long := fmt.Sprintf("%q", bytes.Repeat([]byte("x"), 5000))
	text64 := string(bytes.Repeat([]byte("AAAA"), 256))
	for _, c := range []struct {
		events string
		plain  bool
	}{
		{`{"seq":1}`, true},
		{`{"seq":1,"end":true}`, true},
		{`{"seq":1,"type":"a","data":{"x":[1,2,"\n"]}}`, true},
		{`{"seq":1,"time":"2026-01-02T03:04:05.25Z","type":"a","data":` + long + `}`, true},
		{`{"seq":1,"data_base64":"AAA="}`, true},
		{`{"seq":1,"data_base64":"` + text64 + `"}`, true},
		{`{"seq":1,"data_base64":"` + text64 + `AA=="}`, true},
		{`{"seq":1,"data_base64":"` + text64[:1022] + `A="}`, true},
		{`{"seq":1,"type":"é"}`, true},
		{` {"seq":1}`, false},
		{`{"seq":1} `, false},
		{`{"seq": 1}`, false},
		{`{"seq":1,"data":[1, 2]}`, false},
		{`{"seq":1,"x":2}`, false},
		{`{"type":"a","seq":1}`, false},
		{`{"seq":1,"type":"\u0061"}`, false},
		{`{"seq":1,"type":""}`, false},
		{`{"seq":1,"type":null}`, false},
		{`{"seq":1,"time":"2026-01-02T03:04:05+00:00"}`, false},
		{`{"seq":1,"time":"2026-01-02T03:04:05.250Z"}`, false},
		{`{"seq":1,"time":"0001-01-01T00:00:00Z"}`, false},
		{`{"seq":1,"data_base64":""}`, false},
		{`{"seq":1,"data_base64":"AAF="}`, false},               // bits that say nothing
		{`{"seq":1,"data_base64":"\u0041AA="}`, false},          // an escape
		{`{"seq":1,"data_base64":"` + text64 + `AAF="}`, false}, // in a later piece
		{`{"seq":1,"end":false}`, false},
	} {
		frame := []byte(batchOf(1, 1, c.events))
		p, err := Unmarshal(frame)
		if err != nil {
			t.Fatalf("%.300s: %v", frame, err)
		}
		checkBorrowed(t, frame, p, nil)
		got, _ := new(decoder).decode(frame)
		if b := got.(*eventBatch); len(b.slots) > 0 != c.plain || len(b.Events) > 0 == c.plain {
			t.Errorf("%.300s: %d events in the page, %d beside it", frame, len(b.slots), len(b.Events))
		}
	}
}

// What is wrong with an event is found whether or not its bytes are borrowed.
func TestBorrowedEventsRefused(t *testing.T) {
	t.Parallel()
	good := `{"seq":1,"type":"a","data":1},`
	for _, bad := range []string{
		`{"seq":2,"type":"\u007f"}`, "{\"seq\":2,\"type\":\"\x7f\"}", "{\"seq\":2,\"type\":\"\xc2\x80\"}", "{\"seq\":2,\"type\":\"\n\"}",
		`{"seq":2,"type":"` + string(bytes.Repeat([]byte("x"), maxID+1)) + `"}`,
		`{"seq":3}`, `{"seq":2,"end":true},{"seq":3}`, `{"seq":02}`, `{"seq":-2}`, `{"seq":9007199254740992}`, `{"seq":`, `{"seq":2`,
		`{"seq":2,"time":"2026-01-02T25:04:05Z"}`, `{"seq":2,"time":"2026-01-02T03:04:05Z`,
		`{"seq":2,"data":}`, `{"seq":2,"data":1`, `{"seq":2,"data":"\x"}`, `{"seq":2,"data":` + deep(501) + `}`,
		`{"seq":2,"data":1,"data":2}`, `{"seq":2,"data":1,"data_base64":"AAA="}`,
		`{"seq":2,"data_base64":"AAA"}`, `{"seq":2,"data_base64":"A"}`, `{"seq":2,"data_base64":"====` + string(bytes.Repeat([]byte("AAAA"), 256)) + `"}`,
		`{"seq":2,"data_base64":"AA==AAAA"}`, `{"seq":2,"data_base64":"AAA`,
		`{"seq":2},`, `{"seq":2}{"seq":3}`, `{"seq":2}x`,
	} {
		frame := []byte(batchOf(1, 2, good+bad))
		p, err := Unmarshal(frame)
		if err == nil {
			t.Errorf("taken: %.300s", frame)
		}
		checkBorrowed(t, frame, p, err)
	}
	many := bytes.Repeat([]byte(`{"seq":1},`), maxBatchEvents+1)
	frame := []byte(batchOf(1, maxBatchEvents+1, string(many[:len(many)-1])))
	p, err := Unmarshal(frame)
	checkBorrowed(t, frame, p, err)
}

// relay joins links by frames, all in one buffer that is spoilt before the next, until
// none has anything to say.
func relay(t *testing.T, pairs ...[2]*Link) {
	t.Helper()
	var buf []byte
	for quiet := 0; quiet < 3; quiet++ { // who has nothing to say may have others speak
		for _, pair := range pairs {
			frame, err := pair[0].NextFrame(endedContext, append(buf[:0], "before "...))
			if !bytes.HasPrefix(frame, []byte("before ")) {
				t.Fatalf("what stood in dst is gone: %.100q", frame)
			}
			if buf = frame; len(frame) == len("before ") {
				if err != context.Canceled {
					t.Fatal(err)
				}
				continue
			}
			quiet = 0
			if err := pair[1].HandleFrame(context.Background(), frame[len("before "):]); err != nil {
				t.Fatalf("%v: %.300s", err, frame)
			}
			for i := range frame {
				frame[i] = '#'
			}
		}
	}
}

// Events of all kinds go from agent to viewers in frames of which nobody keeps a
// byte, live ones and replayed ones.
func TestFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 600
		st := NewStreamer(nil)
		h := NewHub(&HubConfig{LogEvents: 50})
		early, late := NewViewer(&ViewerConfig{BufferItems: 2 * events}), NewViewer(&ViewerConfig{BufferItems: 2 * events})
		agent, hub := st.Connect(), h.ConnectAgent("a")
		hubEarly, atEarly := h.ConnectViewer("early"), early.Connect()
		hubLate, atLate := h.ConnectViewer("late"), late.Connect()
		wires := [][2]*Link{{agent, hub}, {hub, agent}, {hubEarly, atEarly}, {atEarly, hubEarly}, {hubLate, atLate}, {atLate, hubLate}}
		early.Watch("s", Position{})
		var want []Event
		for i := range events {
			e := Event{Type: []string{"out", "err", ""}[i/7%3], Data: fmt.Appendf(nil, `"%0*d"`, 1+i*i%700, i)}
			switch {
			case i%11 == 5:
				e.Data, e.Bytes = nil, bytes.Repeat([]byte{byte(i)}, 1+i%9)
			case i%50 == 7:
				e.Data = nil
			case i%50 == 8: // one that a hub has a chunk of its own for
				e.Data = fmt.Appendf(nil, `"%06000d"`, i)
			}
			want = append(want, e)
			if _, err := st.Publish(t.Context(), "s", e); err != nil {
				t.Fatal(err)
			}
			if i%37 == 0 {
				relay(t, wires...)
			}
		}
		relay(t, wires...)
		pass(ackDelay)
		late.Watch("s", Position{})
		relay(t, wires...)
		for name, v := range map[string]*Viewer{"early": early, "late": late} {
			n := 0
			for it, err := range v.Items(endedContext) {
				if err != nil || it.Event == nil {
					t.Fatalf("%s: %v, %v", name, it, err)
				}
				if e := want[n]; it.Event.Type != e.Type || !bytes.Equal(it.Event.Data, e.Data) || !bytes.Equal(it.Event.Bytes, e.Bytes) {
					t.Fatalf("%s: event %d is %v, want %v", name, n+1, it.Event, e)
				}
				n++
			}
			if n != events {
				t.Errorf("%s saw %d events, want %d", name, n, events)
			}
		}
		if n := st.Stats().PendingEvents; n != 0 {
			t.Errorf("%d events pending", n)
		}
	})
}

// A frame that NextFrame writes is what Append makes of what Next returns, also after
// others have used the same memory.
func TestNextFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		links := make([]*Link, 2)
		for i := range links {
			st := NewStreamer(nil)
			st.mint = epoch.NewSource(zeros{}) // both make the same epochs
			links[i] = st.Connect()
			s := &speaker{t: t, l: links[i]}
			s.want(&HelloPayload{V: 1, Role: roleAgent})
			s.send(&WelcomePayload{V: 1, Link: "l", Window: 1000})
			for n := range 400 {
				st.Publish(t.Context(), "s", Event{Type: "out", Data: fmt.Appendf(nil, `"%0*d"`, n, n)})
			}
		}
		for n := 0; ; n++ {
			p, err := links[0].Next(endedContext)
			frame, frameErr := links[1].NextFrame(endedContext, nil)
			if err != frameErr {
				t.Fatalf("%v and %v", err, frameErr)
			}
			if err != nil {
				if n < 2 || frame != nil {
					t.Errorf("%d frames; then %q", n, frame)
				}
				return
			}
			want, err := Marshal(p)
			if err != nil || !bytes.Equal(frame, want) {
				t.Fatalf("%v\n%s", err, cmp.Diff(string(want), string(frame)))
			}
		}
	})
}

// zeros is no randomness.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// Rule 11, for frames: what can't be decoded is answered, but for an error, and the
// link lives.
func TestHandleFrameRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		s := &speaker{t: t, l: m.Link}
		var handled []Payload
		m.handled = func(_ context.Context, p Payload) error {
			handled = append(handled, p)
			return nil
		}
		for _, c := range hostileFrames {
			frame := hostileFrame(t, c.typ, c.old, c.new)
			err := m.HandleFrame(t.Context(), frame)
			_, wantErr := Unmarshal(frame)
			want := wantErr.(*ProtocolError)
			if errorText(err) != want.Error() {
				t.Fatalf("%.200s: %v, want %v", frame, err, want)
			}
			if !want.unanswered {
				s.want(want.Payload())
			}
			s.wantIdle("it was answered once")
		}
		if err := m.HandleFrame(t.Context(), []byte(helloLine)); err != nil || len(handled) != 1 {
			t.Errorf("%v, %d payloads", err, len(handled))
		}
		m.Close()
		for _, frame := range []string{helloLine, "{"} {
			if err := m.HandleFrame(t.Context(), []byte(frame)); err != ErrClosed {
				t.Errorf("%s: %v, want ErrClosed", frame, err)
			}
		}
		if frame, err := m.NextFrame(t.Context(), []byte("as it was")); string(frame) != "as it was" || err != ErrClosed {
			t.Errorf("%q, %v", frame, err)
		}
	})
}

// Both wait as Next and Handle do, and return ctx's cause.
func TestFramesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newScript()
		errWhy := errors.New("user went home")
		m.handled = func(ctx context.Context, _ Payload) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() { _, err := m.NextFrame(ctx, nil); got <- err }()
		go func() { got <- m.HandleFrame(ctx, []byte(helloLine)) }()
		synctest.Wait()
		cancel(errWhy)
		for range 2 {
			if err := <-got; err != errWhy {
				t.Errorf("%v, want ctx's cause", err)
			}
		}
		if err := m.failure(); err != nil {
			t.Errorf("the link died: %v", err)
		}
	})
}

// A busy connection makes no garbage: a batch costs its payload, and what the hub's
// log has to grow.
func TestFramesAllocate(t *testing.T) {
	st := NewStreamer(nil)
	h := NewHub(nil)
	agent, hub := st.Connect(), h.ConnectAgent("a")
	wires := [][2]*Link{{agent, hub}, {hub, agent}}
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("7"), 200)
	var frame []byte
	batch := func() {
		for range 100 {
			if _, err := s.Publish(t.Context(), Event{Type: "out", Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		for quiet := false; !quiet; {
			quiet = true
			for _, wire := range wires {
				frame, err = wire[0].NextFrame(endedContext, frame[:0])
				if err == nil {
					quiet = false
					err = wire[1].HandleFrame(t.Context(), frame)
				}
				if err != nil && err != context.Canceled {
					t.Fatal(err)
				}
			}
		}
	}
	for range 30 {
		batch()
	}
	// Payloads of two batches and acks at the most, and chunks. A sync.Pool forgets
	// things under the race detector.
	if n := testing.AllocsPerRun(Fewer(100), batch); n > 8 && !raceEnabled {
		t.Errorf("%v allocations", n)
	}
	if n := st.Stats().PendingEvents; n != 0 {
		t.Errorf("%d events pending", n)
	}
}

// Large events of a frame stay together in the log, which would have had a chunk for
// each.
func TestHandleFrameLargeEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := speakAgent(t, h, "agent")
		b := a.batch("s", "e1", 1, 3)
		for i := range b.Events {
			b.Events[i].Data = fmt.Appendf(nil, "%q", strings.Repeat(string(rune('a'+i)), 2*largeEntry))
		}
		frame, err := Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.l.HandleFrame(t.Context(), frame); err != nil {
			t.Fatal(err)
		}
		clear(frame)
		l := &h.lookup("s").log
		if l.ring.at(0).chunk != l.ring.at(2).chunk {
			t.Error("the events are apart")
		}
		n := 0
		for it := range h.Items(endedContext, "s", Position{}) {
			if string(it.Event.Data) != string(b.Events[n].Data) {
				t.Errorf("event %d is %.20s", it.Event.Seq, it.Event.Data)
			}
			n++
		}
		if n != 3 {
			t.Errorf("%d events", n)
		}
	})
}
