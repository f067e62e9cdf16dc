package gvstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vibetools/gvstream/internal/jsontext"
)

// trustWires are ways from agent to hub; each hands over what becomes of a payload.
var trustWires = map[string]func(p Payload) []any{
	"in one process": func(p Payload) []any { return []any{p} },
	"frames":         func(p Payload) []any { return []any{decoded(p, nil)} },
	"lines": func(p Payload) (out []any) { // as Lines would cut them
		line, _ := Marshal(p)
		for _, part := range bytes.Split(line, []byte("\n")) {
			out = append(out, decoded(nil, part))
		}
		return out
	},
}

// decoded is a payload or frame after its way over the wire, or the error of it.
func decoded(p Payload, line []byte) any {
	if line == nil {
		line, _ = Marshal(p)
	}
	got, err := Unmarshal(line)
	if err != nil {
		return err
	}
	return got
}

// carryTrusted carries payloads between an agent and a hub until neither has more to
// say.
func carryTrusted(t *testing.T, now time.Time, agent, hub *Link, wire func(Payload) []any) {
	t.Helper()
	for quiet := false; !quiet; {
		quiet = true
		if p, _, err := agent.next(now); err != nil {
			t.Fatal(err)
		} else if p != nil {
			quiet = false
			for _, got := range wire(p) {
				var refused *ProtocolError
				if err, ok := got.(error); ok && errors.As(err, &refused) {
					hub.refuse(now, refused)
				} else if err := hub.handle(context.Background(), now, got.(Payload)); err != nil && !errors.As(err, &refused) {
					t.Fatal(err)
				}
			}
		}
		if p, _, err := hub.next(now); err != nil {
			t.Fatal(err)
		} else if p != nil {
			quiet = false
			if err := agent.handle(context.Background(), now, p); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestTrustData: data that is trusted and wrong is refused by the hub and becomes a
// declared gap, whatever it is and however it travels; the events around it arrive
// (rule 11).
func TestTrustData(t *testing.T) {
	for _, bad := range []string{
		"{", `"`, `"a\"`, "\"\xff\"", "\"\t\"", "nul", "1 2", `1}`, `1},{"seq":2,"data":1`, `1,"seq":7`, `1]`, deep(jsontext.MaxDepth + 1),
		`1}],"x":[{"y":1`, `1}],"session_id":"other","x":[{"y":1`, `1}]},"payload":{"x":[{"y":1`, `1}]}}`,
	} {
		for name, wire := range trustWires {
			t.Run(fmt.Sprintf("%.20q/%s", bad, name), func(t *testing.T) {
				st, h := NewStreamer(&StreamerConfig{TrustData: true}), NewHub(nil)
				s, err := st.Session("s")
				if err != nil {
					t.Fatal(err)
				}
				for _, data := range []string{`"first"`, bad, `{"a":"last"}`, bad, bad} {
					if _, err := s.Publish(t.Context(), Event{Type: "out", Data: []byte(data)}); err != nil {
						t.Fatal(err)
					}
				}
				now := time.Now()
				carryTrusted(t, now, st.Connect(), h.ConnectAgent("a"), wire)
				s.Publish(t.Context(), Event{Bytes: []byte("more")})
				for range 4 { // an ack that the hub holds back
					now = now.Add(ackDelay)
					carryTrusted(t, now, st.link.Link, h.agents["a"].Link, wire)
				}
				e := s.Stats().Epoch
				hubSaw(t, h, "s", "s "+e+" 1", "s "+e+" gap 2-2 rejected", "s "+e+" 3", "s "+e+" gap 4-5 rejected", "s "+e+" 6")
				if got := s.Stats(); got.Acked != 6 || got.Lost != 3 {
					t.Errorf("%+v", got)
				}
			})
		}
	}
}

// TestTrustDataWhiteSpace: a hub that can read it keeps it.
func TestTrustDataWhiteSpace(t *testing.T) {
	for name, wire := range trustWires {
		st, h := NewStreamer(&StreamerConfig{TrustData: true}), NewHub(nil)
		if _, err := st.Publish(t.Context(), "s", Event{Data: []byte("[1, 2]")}); err != nil {
			t.Fatal(err)
		}
		carryTrusted(t, time.Now(), st.Connect(), h.ConnectAgent("a"), wire)
		for it := range h.Items(endedContext, "s", Position{}) {
			if it.Event == nil || string(it.Event.Data) != "[1,2]" {
				t.Errorf("%s: %+v", name, it)
			}
		}
	}
}

// TestTrustDataNewline: data with a newline, which over lines could be any other
// payload, is never sent. An encoder of encoding/json ends its values with one.
func TestTrustDataNewline(t *testing.T) {
	st := NewStreamer(&StreamerConfig{TrustData: true})
	for _, data := range []string{"1\n", "[1,\n2]", "\"\n\"", "1}]}}\n" + `{"type":"status","payload":{"link":"l"}}`} {
		if seq, err := st.Publish(t.Context(), "s", Event{Data: []byte(data)}); seq != 0 || !errors.Is(err, ErrInvalidData) {
			t.Errorf("%q: number %d, %v", data, seq, err)
		}
	}
	if got := st.Stats(); got.PendingEvents != 0 {
		t.Errorf("%+v", got)
	}
}

// TestTrustDataVet: a hub that can't read a frame costs the agent the events whose
// data is wrong, and none that has no data, bytes, or was refused before (rule 11).
func TestTrustDataVet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{TrustData: true})
		hub := playHub(t, st)
		for _, ev := range []Event{{Type: "none"}, {Bytes: []byte("bytes")}, {Data: []byte("1")}, {Data: []byte("{")}, {Data: []byte(`"a"`)}} {
			if _, err := st.Publish(t.Context(), "s", ev); err != nil {
				t.Fatal(err)
			}
		}
		sent := func(gaps ...Gap) {
			t.Helper()
			p, err := hub.link.Next(endedContext) // not told: it can't be
			if b, ok := p.(*EventBatchPayload); err != nil || !ok || b.LastSeq != 5 || fmt.Sprint(b.Gaps) != fmt.Sprint(gaps) {
				t.Fatalf("%v, got %+v, want 1 to 5 with %v", err, p, gaps)
			}
			hub.wantIdle()
		}
		sent()
		hub.send(&ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: 3})
		sent(Gap{3, 3, ReasonRejected})
		hub.send(&ErrorPayload{Code: codeMalformed})
		sent(Gap{3, 4, ReasonRejected})
		hub.send(&ErrorPayload{Code: codeMalformed})
		hub.wantIdle() // each is looked at once
		old := st.link
		hub.link.Close()
		old.vet() // late: the session is on no link, or on another
		reopenHub(t, st, map[string]uint64{"s": 0})
		old.vet()
		if s := stats(t, st, "s"); s.Lost != 2 || s.PendingEvents != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTrustDataVetOnce: a hub that calls frames malformed without end has the agent go
// through its sessions once, and not for each error of a hundred bytes.
func TestTrustDataVetOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{TrustData: true})
		hub := playHub(t, st)
		for i := range 500 {
			publishN(t, st, fmt.Sprint("s", i), 1)
		}
		for {
			if _, err := hub.link.Next(endedContext); err != nil {
				break
			}
		}
		complain := func() { hub.send(&ErrorPayload{Code: codeMalformed}) }
		complain()
		if n := testing.AllocsPerRun(100, complain); n > 10 {
			t.Errorf("%v allocations an error, of an agent with 500 sessions", n)
		}
		if _, err := st.Publish(t.Context(), "s7", Event{Data: []byte("{")}); err != nil {
			t.Fatal(err)
		}
		if p, err := hub.link.Next(endedContext); err != nil {
			t.Fatalf("%v, %v", p, err)
		}
		complain() // what was sent since is looked at
		if s := stats(t, st, "s7"); s.Lost != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestTrustDataOff: by default the publisher hears of it, and no number is used.
func TestTrustDataOff(t *testing.T) {
	st := NewStreamer(nil)
	if seq, err := st.Publish(t.Context(), "s", Event{Data: []byte("{")}); seq != 0 || !errors.Is(err, ErrInvalidData) {
		t.Errorf("Publish = %d, %v", seq, err)
	}
}
