package gvstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"
)

// Faults that a hostile peer could have used, each with the test that showed it.

// A peer's message, or code, with a line feed in it wrote lines of its own into the
// log of whoever logged the error.
func TestErrorsQuotePeers(t *testing.T) {
	bad := []string{"a\nb", "a\rb", "\x1b[2J", "\x00", "\x7f", "\u0085", "\u2028", "\u202e", "\xff"}
	for _, text := range bad {
		for name, err := range map[string]error{
			"message": &ProtocolError{Code: "x", Message: text},
			"code":    &ProtocolError{Code: text},
			"session": &ProtocolError{Code: "x", SessionID: text},
			"epoch":   &ProtocolError{Code: "x", Epoch: text},
			"payload": (&ErrorPayload{Code: "x", Message: text}).protocolError(),
		} {
			if got := err.Error(); !printable(got) {
				t.Errorf("%s %q: the error is %q", name, text, got)
			}
		}
	}
	plainText := &ProtocolError{Code: "stale_epoch", SessionID: "s", Message: `the session "s" has a later epoch`}
	if got, want := plainText.Error(), `gvstream: stale_epoch session="s": the session "s" has a later epoch`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A store's message that is no UTF-8 grew to three times its length on the wire, and
// the agent took it for malformed: the event was sent for ever.
func TestErrorMessageOfAnyBytes(t *testing.T) {
	for _, text := range []string{strings.Repeat("\xff", 300), strings.Repeat("é\x80", 100), strings.Repeat("\x80", 300)} {
		p := refusal(codeEventRejected, "s", "%s", text).Payload()
		line, err := Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Unmarshal(line); err != nil {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}

// Gaps that followed events made a batch longer than a batch may be.
func TestBatchBytesWithGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a, v := playAgent(t, h, "agent"), playViewer(t, h, "tab")
		b := a.batch("s", "e1", 1, 1)
		b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", pageBytes-200) + `"`)
		for seq := uint64(2); seq < 2+maxBatchGaps; seq++ {
			b.Gaps = append(b.Gaps, Gap{seq, seq, Reason(strings.Repeat(string(rune('a'+seq%2)), 32))})
			b.LastSeq, b.HeadSeq = seq, seq
		}
		a.send(b)
		v.send(v.watch("s", "", 0))
		last := uint64(0)
		for p := v.next(); p != nil; p = v.next() {
			line, err := Marshal(p)
			if err != nil || len(line) > maxBatchBytes {
				t.Errorf("a %s of %d bytes, %v", p.payloadType(), len(line), err)
			}
			if b, ok := p.(*EventBatchPayload); ok {
				last = b.LastSeq
			}
		}
		if last != b.LastSeq {
			t.Errorf("the viewer got up to %d of %d", last, b.LastSeq)
		}
	})
}

// An agent's answer with as many gaps as it may have, and events that the hub
// refuses, became a batch with more gaps than one may have: the viewer refused it
// and asked for ever.
func TestReplayGapsOfRefusedEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{MaxEventBytes: 1000, LogEvents: 5})
		a.feed("s", "e1", 21, 700)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r, ok := a.next().(*ReplayRequestPayload)
		if !ok {
			t.Fatal("no request")
		}
		b := answerTo(r, 1, 0, true)
		large := json.RawMessage(`"` + strings.Repeat("x", 1000) + `"`)
		for seq := uint64(1); seq <= 600; seq++ {
			if seq%6 == 0 {
				b.Events = append(b.Events, Event{Seq: seq, Data: large})
			} else {
				b.Gaps = append(b.Gaps, Gap{seq, seq, Reason("r" + fmt.Sprint(seq%2))})
			}
		}
		b.LastSeq = 600
		a.send(b)
		next := uint64(1)
		for p := v.next(); p != nil; p = v.next() {
			if err := p.check(); err != nil {
				t.Fatalf("the hub said what no viewer takes: %v", err)
			}
			if b, ok := p.(*ReplayBatchPayload); ok {
				if b.FirstSeq != next {
					t.Errorf("%d follows %d", b.FirstSeq, next-1)
				}
				next = b.LastSeq + 1
			}
		}
		if next != 601 {
			t.Errorf("the viewer got up to %d", next-1)
		}
	})
}

// MaxAgentSessions counted what was open on the link. An agent that connected again
// and again, each time with other sessions, filled the hub's MaxSessions, and no
// other agent could open one.
func TestAgentFillsHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{MaxSessions: 50, MaxAgentSessions: 10, SessionTTL: time.Hour})
		opened := 0
		for i := range 10 {
			greedy := playAgent(t, h, "greedy")
			for j := range 10 {
				err := greedy.link.Handle(t.Context(), greedy.batch(fmt.Sprint("s", i, "-", j), "e1", 1, 1))
				if err == nil {
					opened++
				} else if refused := (*ProtocolError)(nil); !errors.As(err, &refused) || refused.Code != codeOverloaded || !refused.Retryable {
					t.Fatalf("refused with %v", err)
				}
			}
		}
		if opened != 10 || h.Stats().Sessions != 10 {
			t.Errorf("%d sessions opened, the hub has %d; one agent may have 10", opened, h.Stats().Sessions)
		}
		modest := playAgent(t, h, "modest")
		modest.send(modest.batch("theirs", "e1", 1, 1))
		again := playAgent(t, h, "greedy")
		again.send(again.status(entryOf("s0-0", "e1", 1, 1, 1))) // what it has, it may open again
		again.want(again.ack("s0-0", "e1", 1))
		h.Forget("s0-0")
		again.send(again.batch("another", "e1", 1, 1)) // and there is room for one more
		pass(2 * time.Hour)
		again.link.Close()
		pass(2 * time.Hour)
		h.Stats()
		if n := len(h.owned); n != 1 {
			t.Errorf("%d agents are counted: %v", n, h.owned)
		}
	})
}

// An agent that answers no replay request kept the slots of a viewer's link: the
// request was given up, and made again before those that waited had their turn. The
// viewer's watches of other agents' sessions got nothing, for ever.
func TestSilentAgentKeepsNoSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(&HubConfig{LogEvents: 5})
		silent, honest := playAgent(t, h, "silent"), playAgent(t, h, "honest")
		v := playViewer(t, h, "tab")
		for i := range 6 {
			silent.feed(fmt.Sprint("quiet", i), "e1", 1, 20)
			v.send(v.watch(fmt.Sprint("quiet", i), "", 0))
		}
		honest.feed("s", "e1", 1, 20)
		v.send(v.watch("s", "", 0))
		start := time.Now()
		for time.Since(start) < 10*time.Minute {
			for p := v.next(); p != nil; p = v.next() {
				if b, ok := p.(*EventBatchPayload); ok && b.SessionID == "s" {
					if d := time.Since(start); d > time.Minute {
						t.Errorf("served after %v", d)
					}
					return
				}
			}
			for p := honest.next(); p != nil; p = honest.next() {
				if r, ok := p.(*ReplayRequestPayload); ok {
					honest.send(answerTo(r, r.AfterSeq+1, r.UntilSeq, true))
				}
			}
			silent.drain()
			pass(time.Second)
		}
		t.Error("an honest agent's session got nothing in ten minutes")
	})
}

// An agent that answers a request with empty batches, none of them the last, kept its
// turn for ever.
func TestEmptyAnswersKeepNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15)
		for range 3 {
			pass(14 * time.Second)
			a.link.Handle(t.Context(), answerTo(r, 1, 0, false))
			v.drain()
		}
		for p := a.next(); p != nil; p = a.next() {
			if again, ok := p.(*ReplayRequestPayload); ok && again.RequestID != r.RequestID {
				return
			}
		}
		t.Error("still the first request after 42 s without an event")
	})
}

// printable reports whether a text can stand in a log line as it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}

// A viewer that watched again and again, each time from elsewhere, had the hub ask the
// agent each time: for a hundred bytes of its own the agent sent a page of up to
// 256 KiB, as often as the viewer liked.
func TestViewerCausesFewReplays(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"watch", "stop and watch"} {
		synctest.Test(t, func(t *testing.T) {
			h, agent := smallHub(t, HubConfig{})
			agent.feed("r", "e1", 1, 20)
			evil, honest := playViewer(t, h, "evil"), playViewer(t, h, "honest")
			requests := 0
			count := func() {
				for p := agent.next(); p != nil; p = agent.next() {
					if r, ok := p.(*ReplayRequestPayload); ok && r.ViewerID == "evil" {
						requests++
					}
				}
			}
			const seconds = 10
			for range seconds {
				for i := range uint64(300) {
					if how != "watch" {
						evil.send(evil.stop("s"))
					}
					evil.send(evil.watch("s", "e1", i%10))
					evil.drain()
					count()
				}
				pass(time.Second)
			}
			if most := 4 * (seconds + 1); requests > most || requests < seconds {
				t.Errorf("%s: %d requests in %d s, want up to %d", how, requests, seconds, most)
			}
			evil.drain()
			count()
			honest.send(honest.watch("s", "", 0))
			honest.drain()
			if agent.next().(*ReplayRequestPayload).ViewerID != "honest" {
				t.Error("another viewer has to wait")
			}
			evil.send(evil.stop("s"), evil.watch("r", "", 0))
			pass(time.Second)
			evil.drain()
			if agent.next().(*ReplayRequestPayload).ViewerID != "evil" {
				t.Error("it does not get its next replay after a second")
			}
		})
	}
}

// Where there is a Claim, an agent that sent a batch of another agent's session in a
// small epoch was told the session's epoch, before anybody was asked. The epoch that
// it hears of is its own.
func TestBatchTellsNoEpochOfOthers(t *testing.T) {
	asked := 0
	h := NewHub(&HubConfig{Claim: func(context.Context, string, string, string) bool { asked++; return false }})
	owner, thief := playAgent(t, h, "owner"), playAgent(t, h, "thief")
	owner.send(owner.batch("s", "e5", 1, 3))
	thief.refused(thief.batch("s", "e1", 1, 3), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})
	thief.refused(thief.batch("s", "e1", 4, 4), &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e1"})
	thief.refused(thief.status(entryOf("s", "e1", 1, 0, 4)), &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "e1"})
	if asked != 2 {
		t.Errorf("Claim was asked %d times, want 2", asked)
	}
	if st := statOf(t, h, "s"); st.AgentID != "owner" || st.Acked != 3 {
		t.Errorf("%+v", st)
	}
}
