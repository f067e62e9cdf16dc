package gvstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/testenv"
)

// These tests measure what a hostile peer can make others spend. SECURITY.md quotes the
// figures.

// A hundred thousand payloads about sessions that don't exist leave nothing: no entry
// in any map or slice, no byte of the heap, no goroutine.
func TestFloodLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rounds, kinds = 6_250, 16
		st, w := NewStreamer(nil), NewViewer(nil)
		h := NewHub(&HubConfig{MaxAgentSessions: 1, LogEvents: 5, Window: 4})
		publishN(t, st, "s", 3)
		w.Watch("s", Position{})
		hub := &peer{t: t, link: st.Connect(), id: "l1"} // a hostile one
		hub.drain()
		hub.send(&WelcomePayload{V: 1, Link: "l1", WindowEvents: 256})
		hub2 := playHub(t, w)
		agent := playAgent(t, h, "agent")
		agent.feed("s", "e1", 1, 20)
		viewer := playViewer(t, h, "tab")
		viewer.send(viewer.watch("s", "", 0))
		flood := func(n int) {
			for i := range n {
				id := fmt.Sprint("none", i)
				for _, p := range []Payload{
					&AckBatchPayload{SessionID: id, Epoch: "e1", Link: "l1", UpToSeq: uint64(i)},
					&AckBatchPayload{SessionID: id, ViewerID: id, Epoch: "e1", Link: "l1", UpToSeq: uint64(i)},
					&ReplayRequestPayload{SessionID: id, ViewerID: id, RequestID: id},
					&ErrorPayload{Code: CodeEventRejected, SessionID: id, Seq: uint64(i)},
				} {
					hub.link.Handle(t.Context(), p)
				}
				for _, p := range []Payload{
					hub2.status(stands(id, "e1", 1, 9, 0)), hub2.batch(id, "e1", 1, 1),
					answerTo(request(id, "tab", id, "e1", 0, 1), 1, 1, true),
					&ErrorPayload{Code: CodeForbidden, SessionID: id},
				} {
					hub2.link.Handle(t.Context(), p)
				}
				for _, p := range []Payload{
					agent.status(entryOf(id, "e1", 1, 0, 9)), agent.batch(id, "e1", 1, 1), agent.batch(id, "e1", 2, 2),
					answerTo(request(id, "tab", id, "e1", 0, 1), 1, 1, true),
					&ErrorPayload{Code: CodeUnknownSession, SessionID: id, RequestID: id},
				} {
					agent.link.Handle(t.Context(), p)
				}
				for _, p := range []Payload{viewer.watch(id, "", 0), viewer.stop(id), &ErrorPayload{Code: CodeForbidden, SessionID: id}} {
					viewer.link.Handle(t.Context(), p)
				}
				if i%16 == 0 {
					for _, s := range []*peer{hub, hub2, agent, viewer} {
						s.drain()
					}
				}
			}
			for _, s := range []*peer{hub, hub2, agent, viewer} {
				s.drain()
			}
		}
		state := func() any {
			var sessions []SessionStats
			for s := range h.Sessions() {
				sessions = append(sessions, s)
			}
			return []any{footprint(st, h, w), sessions, stats(t, st, "s"), h.Stats().Sessions, st.Stats().Sessions, w.Stats().Watches}
		}
		flood(50) // pools and buffers have what they need
		before, goroutines, heap := state(), runtime.NumGoroutine(), heapBytes()
		flood(rounds)
		if diff := cmp.Diff(before, state()); diff != "" {
			t.Errorf("-before +after %d payloads\n%s", rounds*kinds, diff)
		}
		if grown := heapBytes() - heap; grown > 64<<10 {
			t.Errorf("the heap grew by %d bytes in %d payloads", grown, rounds*kinds)
		}
		if n := runtime.NumGoroutine(); n > goroutines { // one of an earlier test may have ended
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		runtime.KeepAlive([]any{st, h, w, hub, hub2, agent, viewer})
	})
}

func heapBytes() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The same from a peer that reads no answers: the answers waiting for it are bounded.
func TestFloodUnread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, w := NewStreamer(nil), NewViewer(nil)
		h := NewHub(nil)
		w.Watch("s", Position{})
		hub := &peer{t: t, link: st.Connect(), id: "l1"}
		hub.drain()
		hub.send(&WelcomePayload{V: 1, Link: "l1", WindowEvents: 256})
		hub2, agent, viewer := playHub(t, w), playAgent(t, h, "agent"), playViewer(t, h, "tab")
		for i := range 5000 {
			id := fmt.Sprint("none", i)
			hub.link.Handle(t.Context(), hub.ack(id, "e1", 1))
			hub.link.Handle(t.Context(), &ReplayRequestPayload{SessionID: id, RequestID: id})
			hub2.link.Handle(t.Context(), hub2.batch(id, "e1", 1, 1))
			agent.link.Handle(t.Context(), agent.batch(id, "e1", 2, 2))
			agent.link.Handle(t.Context(), agent.status())
			agent.link.Handle(t.Context(), &HelloPayload{V: 1, Role: roleAgent})
			viewer.link.Handle(t.Context(), &HelloPayload{V: 1, Role: roleViewer})
			viewer.link.Handle(t.Context(), viewer.watch(id, "", 0))
		}
		for name, l := range map[string]*Link{"agent": hub.link, "viewer": hub2.link, "hub from agent": agent.link, "hub from viewer": viewer.link} {
			n, most := len(l.replies), 2*maxReplies
			if l == hub2.link { // a viewer says by stops what it does not watch
				n, most = len(w.link.stops), maxOnce
			}
			if n > most || n < maxReplies {
				t.Errorf("%s: %d answers wait", name, n)
			}
			refusals := 0
			for _, p := range l.replies {
				if _, ok := p.(*ErrorPayload); ok {
					refusals++
				}
			}
			if refusals > maxReplies {
				t.Errorf("%s: %d refusals wait", name, refusals)
			}
		}
		if n := len(h.viewers["tab"].cursors); n != h.cfg.MaxWatches {
			t.Errorf("%d watches", n)
		}
	})
}

// size is how long a payload is on the wire.
func size(t *testing.T, p Payload) int {
	t.Helper()
	line, err := Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return len(line) + 1
}

// checked is a payload of ours as a peer takes it, and its size.
func checked(t *testing.T, p Payload) int {
	t.Helper()
	line, err := Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unmarshal(line); err != nil {
		t.Errorf("the link said what no peer takes: %v", err)
	}
	return len(line)
}

// longID is an id that is as long on the wire as one can be.
func longID(i int) string { return fmt.Sprintf(`%s%03d`, strings.Repeat(`"`, maxID-3), i) }

// Each answer is within the limits of its kind, and just at them where that is
// possible, even with ids whose encoding is twice their length.
func TestAnswersKeepLimits(t *testing.T) {
	t.Parallel()
	const replayRequestBytes = maxReplayBytes
	for name, e := range map[string]Event{
		"tiny":          {},
		"small":         {Type: strings.Repeat(`"`, maxID), Data: json.RawMessage(`"` + strings.Repeat("x", 500) + `"`)},
		"2.5 KiB":       {Data: json.RawMessage(`"` + strings.Repeat("x", 2500) + `"`)},
		"2.6 KiB":       {Bytes: []byte(strings.Repeat("x", 1990))},
		"a third":       {Data: json.RawMessage(`"` + strings.Repeat("x", pageBytes/3-60) + `"`)},
		"a whole batch": {Data: json.RawMessage(`"` + strings.Repeat("x", pageBytes-100) + `"`)},
		"more":          {Data: json.RawMessage(`"` + strings.Repeat("x", pageBytes+1) + `"`)},
	} {
		if testenv.RaceEnabled && len(e.Data) > 10_000 { // one goroutine, and megabytes of JSON
			continue
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { answersKeepLimits(t, e, replayRequestBytes) })
		})
	}
}

func answersKeepLimits(t *testing.T, e Event, most int) {
	st := NewStreamer(&StreamerConfig{MaxPendingBytes: 256 << 20, ReplayBytes: 256 << 20, Overflow: DropOldest})
	id := longID(0)
	n := 520
	if len(e.Data) > 50_000 {
		n = 16
	}
	for range n {
		if _, err := st.Publish(t.Context(), id, e); err != nil {
			t.Fatal(err)
		}
	}
	h := NewHub(&HubConfig{LogEvents: 5, Window: 1 << 20})
	a, b := st.Connect(), h.ConnectAgent(longID(1))
	v := playViewer(t, h, longID(2))
	v.send(v.watch(id, "", 0))
	answered, events := 0, 0 // to the request that is open
	within := func(p Payload) {
		size, list, gaps := checked(t, p), []Event(nil), []Gap(nil)
		limit := maxBatchEvents
		switch p := p.(type) {
		case *EventBatchPayload:
			list, gaps = p.Events, p.Gaps
		case *ReplayBatchPayload:
			list, gaps, limit = p.Events, p.Gaps, maxReplayBatchEvents
		default:
			if size > 2<<10 {
				t.Errorf("a %s of %d bytes", p.payloadType(), size)
			}
		}
		if len(list) > limit || len(gaps) > maxBatchGaps || size > maxBatchBytes && len(list) > 1 {
			t.Errorf("a %s of %d events, %d gaps, %d bytes", p.payloadType(), len(list), len(gaps), size)
		}
	}
	for range 10_000 {
		moved := false
		if p, _ := a.Next(endedContext); p != nil {
			moved = true
			within(p)
			if r, ok := p.(*ReplayBatchPayload); ok {
				answered += checked(t, p)
				if events += len(r.Events); events > maxReplayRequestEvents || answered > most+maxBatchBytes+2*len(e.Data)+2*len(e.Bytes) {
					t.Errorf("%d events, %d bytes for one request", events, answered)
				}
			}
			b.Handle(context.Background(), p)
		}
		if p, _ := b.Next(endedContext); p != nil {
			moved = true
			within(p)
			if _, ok := p.(*ReplayRequestPayload); ok {
				answered, events = 0, 0
			}
			a.Handle(context.Background(), p)
		}
		if p := v.next(); p != nil {
			moved = true
			within(p)
			if b, ok := p.(*EventBatchPayload); ok && b.LastSeq == uint64(n) {
				return
			}
		}
		if !moved {
			pass(time.Second)
		}
	}
	t.Error("the viewer did not get all of it")
}

// A status names at most 256 sessions and stays far below the limit of a line, whatever
// their ids are.
func TestStatusKeepsLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, h := NewStreamer(nil), NewHub(&HubConfig{MaxWatches: 600})
		for i := range 600 {
			publishN(t, st, longID(i), 1)
		}
		a, v := st.Connect(), playViewer(t, h, longID(1))
		a.Next(endedContext)
		a.Handle(t.Context(), &WelcomePayload{V: 1, Link: longID(0)})
		for i := range 600 {
			v.send(v.watch(longID(i), "", 0))
		}
		for name, l := range map[string]*Link{"agent": a, "hub": v.link} {
			sessions, payloads := 0, 0
			for sessions < 600 {
				p, err := l.Next(endedContext)
				if err != nil {
					t.Fatal(err)
				}
				s, ok := p.(*StatusPayload)
				if !ok {
					continue
				}
				payloads++
				sessions += len(s.Sessions)
				if n := checked(t, s); len(s.Sessions) > maxStatus || n > 128<<10 {
					t.Errorf("%s: a status of %d sessions, %d bytes", name, len(s.Sessions), n)
				}
			}
			if sessions != 600 || payloads != 3 {
				t.Errorf("%s: %d sessions in %d statuses, want 600 in 3", name, sessions, payloads)
			}
		}
	})
}

// Every error payload is at most 256 bytes of text, whatever it quotes.
func TestErrorsKeepLimits(t *testing.T) {
	long := strings.Repeat("\u2028", 40) + "x"
	for _, say := range []struct {
		kind string
		p    Payload
	}{
		{"hub from agent", &ReplayBatchPayload{SessionID: "s", RequestID: long, Epoch: "e", FirstSeq: 1}},
		{"hub from agent", &HelloPayload{V: 1, Role: strings.Repeat("\u2028", 1000)}},
		{"hub from agent", &HelloPayload{V: -1 << 31, Role: "agent"}},
		{"hub from viewer", &WatchPayload{SessionID: long, ViewerID: "other"}},
		{"hub from viewer", &WatchPayload{SessionID: "secret"}},
		{"agent", &ReplayRequestPayload{SessionID: long, RequestID: long}},
		{"agent", &ReplayRequestPayload{SessionID: "s", RequestID: long, AfterSeq: MaxSeq + 1, UntilSeq: MaxSeq + 2}},
	} {
		synctest.Test(t, func(t *testing.T) {
			v := startVictim(t, say.kind)
			if r, ok := say.p.(*ReplayBatchPayload); ok { // one that is open, answered wrongly
				v.link.endpoint.(*hubAgentLink).requests[r.RequestID] = v.link.endpoint.(*hubAgentLink).requests[v.request.RequestID]
			}
			if err := v.link.Handle(t.Context(), say.p); err == nil || !printable(err.Error()) {
				t.Errorf("%s: error %q", payloadText(say.p), err)
			}
			for _, p := range v.hear() {
				e, ok := p.(*ErrorPayload)
				if !ok || len(e.Message) > maxMessage || !printable(e.Message) {
					t.Errorf("%s: answered by %s", payloadText(say.p), payloadText(p))
				}
				checked(t, p)
			}
		})
	}
	for _, c := range badFrames(t) {
		_, err := Unmarshal([]byte(c.frame))
		refused := err.(*ProtocolError)
		if n := len(refused.Payload().Message); n > maxMessage || !printable(err.Error()) || !printable(refused.Payload().Message) {
			t.Errorf("%.100q: %d bytes of %q", c.frame, n, err)
		}
	}
	if _, err := Unmarshal([]byte(`{"type":"` + strings.Repeat(`\u2028\n`, 5000) + `","payload":0}`)); err == nil || len(err.Error()) > maxMessage+30 || !printable(err.Error()) {
		t.Errorf("a type of line feeds: %q", err)
	}
}

// How many bytes a hub, agent or viewer sends at once, to any peer, for the bytes that
// it receives, which are as few as say the same. The events of a session that the peer may
// see count as requested. The table of SECURITY.md has these figures.
func TestAmplification(t *testing.T) {
	t.Parallel()
	type in struct {
		row  string // of the table
		name string
		kind string
		line func(v *victim) string
	}
	text := func(line string) func(v *victim) string {
		return func(v *victim) string { return v.fill.Replace(line) }
	}
	payload := func(typ, fields string) func(v *victim) string { return text(frame(typ, fields)) }
	ids := func(form string) string { // 256 entries, each with another id of two letters
		var all []string
		for i := range maxStatus {
			all = append(all, fmt.Sprintf(form, fmt.Sprintf("%c%c", 'a'+i/16, 'a'+i%16)))
		}
		return strings.Join(all, ",")
	}
	const numbers = `"epoch":"e1","link":"$link","first_seq":%[1]d,"last_seq":%[1]d,"head_seq":%[1]d,"events":[{"seq":%[1]d}]`
	batch := func(id string, seq int) func(v *victim) string {
		return payload("event_batch", `"session_id":"`+id+`",`+fmt.Sprintf(numbers, seq))
	}
	replay := `"session_id":"s","request_id":"r","epoch":"e1","first_seq":1,"last_seq":1,"until_seq":1,"events":[{"seq":1}]`
	opened := func(line func(v *victim) string) func(v *victim) string { // by a hub as it is by default
		return func(v *victim) string {
			cfg := &v.link.endpoint.(*hubAgentLink).h.cfg
			cfg.MaxAgentSessions, cfg.Window = 10_000, defaultWindow
			return line(v)
		}
	}
	twice := func(v *victim) string { // a watch of a session that an agent has begun twice
		a := playAgent(v.t, v.hub.h, "begins twice")
		a.feed("u", epoch.Process.Next(time.Now()), 1, 1000)
		a.feed("u", epoch.Process.Next(time.Now()), 1, 1000)
		return frame("watch", `"session_id":"u"`)
	}
	full := func(v *victim) string { // a watch beyond the limit
		v.tell(v.watch("nobody", "", 0))
		v.hear()
		return frame("watch", `"session_id":"t"`)
	}
	bounds := map[string]float64{ // bytes out for each byte in, or bytes
		"a line that is not a frame": 250, "`hello`": 3, "`hello` of another version": 5, "an agent's empty `status`": 1.5,
		"a `status` of 256 sessions that are opened": 5.5, "a `status` of 256 sessions that are refused": 2,
		"`event_batch` that brings nothing": 1.5, "`replay_batch` that nobody asked for": 0, "`watch` that yields nothing": 6,
		"a viewer's ack of 256 sessions": 2, "an agent's refusal of `ack_batch`, `replay_request`": 3,
		"a second `welcome`, `stale_link`": 1.5, "a hub's `status` of 256 sessions, not watched": 6, "a hub's `event_batch` that is not taken": 2,
	}
	type figures struct{ in, out []int }
	measured := make(map[string]*figures)
	for _, in := range []in{
		{"a line that is not a frame", "a byte", "hub from agent", text("x")},
		{"a line that is not a frame", "an object", "hub from agent", text("{}")},
		{"a line that is not a frame", "an unknown type", "hub from viewer", text(`{"type":"` + strings.Repeat(`\n`, 500) + `"}`)},
		{"`hello`", "of an agent", "hub from agent", payload("hello", `"v":1,"role":"agent"`)},
		{"`hello`", "of a viewer", "hub from viewer", payload("hello", `"v":1,"role":"viewer"`)},
		{"`hello`", "of another role", "hub from viewer", payload("hello", `"v":1,"role":"agent"`)},
		{"`hello` of another version", "none", "hub from agent", payload("hello", ``)},
		{"an agent's empty `status`", "empty", "hub from agent", payload("status", `"link":"$link"`)},
		{"a `status` of 256 sessions that are opened", "opened", "hub from agent",
			opened(payload("status", `"link":"$link","sessions":[`+ids(`{"session_id":"%s","epoch":"e"}`)+`]`))},
		{"a `status` of 256 sessions that are refused", "too many", "hub from agent",
			payload("status", `"link":"$link","sessions":[`+ids(`{"session_id":"%s","epoch":"e"}`)+`]`)},
		{"a `status` of 256 sessions that are refused", "without an epoch", "hub from agent",
			payload("status", `"link":"$link","sessions":[`+ids(`{"session_id":"%s"}`)+`]`)},
		{"`event_batch` that brings nothing", "of an unknown session", "hub from agent", batch("t", 2)},
		{"`event_batch` that brings nothing", "with a hole before it", "hub from agent", batch("s", 9)},
		{"`event_batch` that brings nothing", "that is known", "hub from agent", batch("s", 1)},
		{"`replay_batch` that nobody asked for", "an answer", "hub from agent", payload("replay_batch", replay)},
		{"`watch` that yields nothing", "of nobody", "hub from viewer", payload("watch", `"session_id":"n"`)},
		{"`watch` that yields nothing", "of a secret", "hub from viewer", payload("watch", `"session_id":"secret"`)},
		{"`watch` that yields nothing", "from ahead", "hub from viewer", payload("watch", `"session_id":"s","epoch":"e1","after_seq":99`)},
		{"`watch` that yields nothing", "too many", "hub from viewer", full},
		{"`watch` that yields nothing", "of a second epoch", "hub from viewer", twice},
		{"a viewer's ack of 256 sessions", "not watched", "hub from viewer",
			payload("ack_batch", `"session_id":"n","link":"$link","acks":[`+strings.TrimSuffix(ids(`{"session_id":"%s"}`), `,{"session_id":"pp"}`)+`]`)},
		{"an agent's refusal of `ack_batch`, `replay_request`", "of an unknown session", "agent", payload("ack_batch", `"session_id":"t","link":"$link"`)},
		{"an agent's refusal of `ack_batch`, `replay_request`", "beyond what was sent", "agent",
			payload("ack_batch", `"session_id":"s","link":"$link","epoch":"$epoch","up_to_seq":9`)},
		{"an agent's refusal of `ack_batch`, `replay_request`", "a replay of an unknown session", "agent", payload("replay_request", `"session_id":"t","request_id":"r"`)},
		{"a second `welcome`, `stale_link`", "welcome", "agent", payload("welcome", `"v":1,"link":"l9"`)},
		{"a second `welcome`, `stale_link`", "stale_link", "agent", payload("error", `"code":"stale_link"`)},
		{"a hub's `status` of 256 sessions, not watched", "not watched", "viewer", payload("status", `"link":"$link","sessions":[`+ids(`{"session_id":"%s"}`)+`]`)},
		{"a hub's `event_batch` that is not taken", "not watched", "viewer", batch("t", 1)},
		{"a hub's `event_batch` that is not taken", "behind a hole", "viewer", batch("s", 9)},
	} {
		t.Run(in.row+" "+in.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := startVictim(t, in.kind)
				line := []byte(in.line(v))
				said := v.answered(line)
				for range 9 { // repeated, it yields no more each time
					said = max(said, v.answered(line))
				}
				most := bounds[in.row]
				if most < 100 {
					most *= float64(len(line))
				}
				if said > int(most) {
					t.Errorf("%d bytes in, %d out, at most %.0f", len(line), said, most)
				}
				if measured[in.row] == nil {
					measured[in.row] = new(figures)
				}
				f := measured[in.row]
				f.in, f.out = append(f.in, len(line)), append(f.out, said)
			})
		})
	}
	rows := make(map[string]string)
	for row, f := range measured {
		bound := "%g times"
		if bounds[row] > 100 {
			bound = "%g bytes"
		}
		rows[row] = fmt.Sprintf("| %s | %s | "+bound+" |", spanOf(f.in), spanOf(f.out), bounds[row])
	}
	inPage := make(map[string]string)
	table := section(t, "SECURITY.md", "Amplification")
	for _, row := range regexp.MustCompile(`(?m)^\| (.*?) (\| [0-9].*)$`).FindAllStringSubmatch(table, -1) {
		inPage[row[1]] = row[2]
	}
	if diff := cmp.Diff(rows, inPage); diff != "" {
		t.Errorf("SECURITY.md: -measured +page\n%s", diff)
	}
}

// section is a chapter of a page.
func section(t *testing.T, page, name string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, found := strings.Cut(string(text), "\n## "+name+"\n")
	if !found {
		t.Fatalf("%s has no chapter %q", page, name)
	}
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	return chapter
}

// spanOf is the least and the greatest of some numbers, as SECURITY.md writes them.
func spanOf(ns []int) string {
	least, most := thousands(slices.Min(ns)), thousands(slices.Max(ns))
	if least == most {
		return least
	}
	return least + " to " + most
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return thousands(n/1000) + fmt.Sprintf(",%03d", n%1000)
}

// A nack has everything sent again that the sender's window allows, and one for each number in
// turn is obeyed at once: what it costs for its own bytes is in SECURITY.md. It goes out as the
// connection takes it, and nothing is queued for it.
func TestClimbingNacks(t *testing.T) {
	const events, nacks = 2000, 100
	data := []byte(`"` + strings.Repeat("x", 500) + `"`)
	batches := func(p *peer) (bytes int) {
		for _, b := range p.drain() {
			bytes += size(t, b)
		}
		return bytes
	}
	inPage := section(t, "SECURITY.md", "Amplification")
	check := func(who string, in, out int) {
		t.Helper()
		if window := nacks * defaultWindowBytes; out < window/2 || out > window+window/4 {
			t.Errorf("%s: %d nacks have %d bytes sent, of a window of %d each", who, nacks, out, defaultWindowBytes)
		}
		figure := fmt.Sprintf("%s %s times", who, thousands(out/in/100*100))
		if !strings.Contains(inPage, figure) {
			t.Errorf("SECURITY.md does not say %q", figure)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := meetHub(t, st)
		hub.hearsHello()
		hub.send(&WelcomePayload{V: 1, Link: hub.id}) // the default window
		for range events {
			if _, err := st.Publish(t.Context(), "s", Event{Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		hub.drain()
		in, out, e := 0, 0, stats(t, st, "s").Epoch
		for seq := range uint64(nacks) {
			nack := hub.ack("s", e, seq)
			nack.Nack, nack.WindowEvents, nack.WindowBytes = true, 0, 0
			hub.send(nack)
			in, out = in+size(t, nack), out+batches(hub)
		}
		check("an agent", in, out)
	})
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		for seq := uint64(1); seq <= events; seq++ {
			b := a.batch("s", "e1", seq, seq)
			b.Events[0].Data = data
			a.send(b)
		}
		a.drain()
		v := playViewer(t, h, "tab")
		v.silent = true
		v.send(v.watch("s", "", 0))
		v.drain()
		in, out := 0, 0
		for seq := range uint64(nacks) {
			nack := &AckBatchPayload{SessionID: "s", ViewerID: "tab", Epoch: "e1", Link: v.id, UpToSeq: seq, Nack: true}
			v.send(nack)
			in, out = in+size(t, nack), out+batches(v)
		}
		check("a hub", in, out)
	})
}

// What a connection costs a hub whose peer sends a line and doesn't end it, or watches and reads
// nothing, in bytes of the heap; and for how long, once nothing moves.
func TestCostOfStuckConnections(t *testing.T) {
	if testenv.RaceEnabled { // which has a heap of its own
		return
	}
	const connections = 16
	inPage := section(t, "SECURITY.md", "Not defended")
	for _, c := range []struct {
		name, figure string
		most         int64
		stuck        func(t *testing.T, h *Hub, i int) *farEnd
	}{
		{"an unfinished line", "2 MiB", 2<<20 + 64<<10, func(t *testing.T, h *Hub, i int) *farEnd {
			f := newFarEnd(t, t.Context(), h.ConnectAgent(fmt.Sprint("agent ", i)), (*Link).RunLines)
			f.listen()
			for range 32 {
				f.Write(make([]byte, 64<<10)) // one more, and it would be too long
			}
			return f
		}},
		{"a viewer that reads nothing", "512 KiB", 512 << 10, func(t *testing.T, h *Hub, i int) *farEnd {
			f := newFarEnd(t, t.Context(), h.ConnectViewer(fmt.Sprint("tab ", i)), (*Link).RunLines)
			fmt.Fprintln(f, frame("hello", `"v":1,"role":"viewer"`))
			for j := range h.cfg.MaxWatches {
				fmt.Fprintln(f, frame("watch", fmt.Sprintf(`"session_id":"s%d"`, j)))
			}
			return f
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := NewHub(nil)
				a := playAgent(t, h, "agent")
				for seq := uint64(1); seq <= 100; seq++ {
					b := a.batch("s0", "e1", seq, seq)
					b.Events[0].Data = []byte(`"` + strings.Repeat("x", 50<<10) + `"`)
					a.send(b)
				}
				a.drain()
				before := heapBytes()
				var ends []*farEnd
				for i := range connections {
					ends = append(ends, c.stuck(t, h, i))
				}
				synctest.Wait()
				cost := (heapBytes() - before) / connections
				t.Logf("%d bytes for each", cost)
				if cost > c.most || cost < c.most/4 || !strings.Contains(inPage, c.figure) {
					t.Errorf("%d bytes for each, want up to %d, and SECURITY.md to say %s", cost, c.most, c.figure)
				}
				pass(maxSilence + heartbeatEvery)
				synctest.Wait()
				for _, f := range ends {
					if err := <-f.ran; !errors.Is(err, ErrSilent) {
						t.Errorf("it ended by %v", err)
					}
				}
			})
		})
	}
}

// What a hub holds for one watch of what only an agent has: an answer, which a hostile agent makes
// as large as a line may be, and what a viewer has left unread by watching from elsewhere.
func TestCostOfReplays(t *testing.T) {
	t.Parallel()
	inPage := section(t, "SECURITY.md", "Not defended")
	for _, c := range []struct {
		name  string
		event int // bytes of data
		moves int // watches from elsewhere
		held  int // at most, in MiB
	}{
		{"reads slowly", 100 << 10, 0, 1},
		{"reads slowly, of a hostile agent", maxLine/2 - 200, 0, 3},
		{"moves its watch", 100 << 10, 100, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const events = 2000
				h := NewHub(&HubConfig{LogEvents: 5})
				a := playAgent(t, h, "agent")
				a.feed("s", "e1", 1, events)
				v := playViewer(t, h, "tab")
				s, most := h.lookup("s"), 0
				answer := func(r *ReplayRequestPayload, from, until uint64, bytes int) {
					p := answerTo(r, from, until, false)
					for i := range p.Events {
						p.Events[i].Data = []byte(`"` + strings.Repeat("x", bytes) + `"`)
					}
					a.send(p)
				}
				for i := range uint64(1 + c.moves) {
					v.send(v.watch("s", "e1", 19*i))
					for range 2 { // the status, and then it asks
						v.next()
					}
					for p := a.next(); p != nil; p = a.next() {
						r, ok := p.(*ReplayRequestPayload)
						if !ok {
							continue
						}
						answer(r, r.AfterSeq+1, r.AfterSeq+1, min(c.event, 1000<<10)) // just no MiB
						for from := r.AfterSeq + 2; from < r.AfterSeq+30; from += 2 {
							answer(r, from, from+1, c.event)
						}
					}
					held := 0
					for _, f := range s.fetches {
						held += f.log.bytes
					}
					most = max(most, held)
				}
				t.Logf("%d bytes", most)
				if mib := (most + 1<<19) >> 20; mib != c.held {
					t.Errorf("the hub holds up to %d MiB, want %d", mib, c.held)
				}
				for _, figure := range []string{fmt.Sprintf("%d MiB", c.held), fmt.Sprintf("%d MiB", c.held*h.cfg.MaxWatches)} {
					if !strings.Contains(inPage, figure) {
						t.Errorf("SECURITY.md does not say %s", figure)
					}
				}
			})
		})
	}
}

// answered has the link handle a line, and returns how many bytes it answers.
func (v *victim) answered(line []byte) (said int) {
	v.say(line)
	for _, p := range v.hear() {
		said += size(v.t, p)
	}
	return said
}

// A hub's words reach the log through errors of Publish, Flush, Close, Run and Items:
// on one line, and without terminal codes.
func TestHubsWordsInErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const words = "\n2026-11-25 INFO all is well\x1b[2J"
		says := &ErrorPayload{Code: CodeForbidden, SessionID: "s", Message: words}
		st, v := NewStreamer(nil), NewViewer(nil)
		publishN(t, st, "s", 1)
		v.Watch("s", Position{})
		a, w := &peer{t: t, link: st.Connect(), id: "l1"}, playHub(t, v)
		a.drain()
		a.send(&WelcomePayload{V: 1, Link: "l1"}, says)
		w.drain() // the watch is said
		w.send(says)
		_, publish := st.Publish(t.Context(), "s", Event{})
		errs := map[string]error{"Publish": publish, "Flush": st.Flush(t.Context()), "Close": st.Close(t.Context())}
		for _, err := range v.Items(endedContext) {
			errs["Items"] = err
		}
		err := v.Connect().Run(t.Context(), blockedSend, func(context.Context) (Payload, error) {
			return &ErrorPayload{Code: CodeVersionUnsupported, Message: words}, nil
		})
		errs["Run"] = err
		for name, err := range errs {
			if err == nil || !printable(err.Error()) || !strings.Contains(err.Error(), `\n2026`) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(errs) != 5 {
			t.Errorf("%d errors", len(errs))
		}
	})
}

// A frame costs time in proportion to its length, whatever is in it: a frame of sixteen
// times the length costs about sixteen times as much. A quadratic cost would be 256
// times as much.
func TestTimeOfFrames(t *testing.T) {
	header := strings.TrimSuffix(batchOf(1, MaxSeq, ""), "]}}")
	for name, frame := range map[string]func(fill func(string) string) string{
		"nested values": func(fill func(string) string) string { return `{"x":[` + fill(deep(400)+",") + `0],"type":"none"}` },
		"open brackets": func(fill func(string) string) string { return `{"x":` + fill(`[`) },
		"tiny values":   func(fill func(string) string) string { return `{"x":[` + fill(`0,`) + `0],"type":"none"}` },
		"tiny events":   func(fill func(string) string) string { return header + fill(`{},`) + `{}]}}` },
		"data of an event": func(fill func(string) string) string {
			return header + `{"seq":1,"data":[` + fill(`{"a":[]},`) + `0]}]}}`
		},
		"large numbers": func(fill func(string) string) string {
			return `{"type":"ack_batch","payload":{"up_to_seq":` + fill("9") + `}}`
		},
		"large fractions": func(fill func(string) string) string { return `{"x":1.` + fill("9") + `e99,"type":"none"}` },
		"equal keys": func(fill func(string) string) string {
			return `{"type":"status","payload":{` + fill(`"k":0,`) + `"k":0}}`
		},
		"different keys": func(fill func(string) string) string {
			return `{"type":"status","payload":{` + fill(`"sessions_and_more":0,"k":0,`) + `"k":0}}`
		},
		"escaped keys": func(fill func(string) string) string {
			return `{"type":"status","payload":{` + fill(`"\u0073":0,`) + `"k":0}}`
		},
		"escapes": func(fill func(string) string) string {
			return `{"type":"error","payload":{"message":"` + fill(`\ud83d\ude00`) + `"}}`
		},
		"broken escapes": func(fill func(string) string) string {
			return `{"type":"error","payload":{"message":"` + fill(`\ud83d`) + `"}}`
		},
		"backslashes": func(fill func(string) string) string { return `{"type":"` + fill(`\\`) },
		"white space": func(fill func(string) string) string { return `{` + fill(" \n") },
		"base64": func(fill func(string) string) string {
			return header + `{"seq":1,"data_base64":"` + fill(`AA\n==`) + `"}]}}`
		},
		"a long string": func(fill func(string) string) string {
			return `{"type":"error","payload":{"message":"` + fill("é") + `"}}`
		},
		"no UTF-8": func(fill func(string) string) string { return fill("é") + "\xff" },
	} {
		const n = 4 << 10
		frames := [2][]byte{}
		for i, size := range []int{n, 16 * n} {
			frames[i] = []byte(frame(func(s string) string { return strings.Repeat(s, size/len(s)) }))
		}
		grows(t, name, func(i int) { Unmarshal(frames[i]) })
	}
}

// A line costs time in proportion to its length, however small the pieces in which it
// comes, and even if it never ends.
func TestTimeOfLines(t *testing.T) {
	for name, line := range map[string]func(size int) string{
		"in pieces":    func(size int) string { return strings.Repeat("x", size) + "\n" },
		"empty lines":  func(size int) string { return strings.Repeat("\n", size) },
		"without end":  func(size int) string { return strings.Repeat("x", 8*size) },
		"many objects": func(size int) string { return strings.Repeat("{}\n", size/3) },
	} {
		const n = 4 << 10
		lines := [2]string{line(n), line(16 * n)}
		grows(t, name, func(i int) {
			_, receive := Lines(&crumbs{rest: lines[i]})
			for err := error(nil); ; {
				if _, err = receive(t.Context()); err != nil && !errors.As(err, new(*ProtocolError)) {
					return
				}
			}
		})
	}
}

// crumbs is a stream that comes in small pieces.
type crumbs struct{ rest string }

func (c *crumbs) Read(p []byte) (int, error) {
	if c.rest == "" {
		return 0, io.EOF
	}
	n := copy(p, c.rest[:min(len(c.rest), 64)])
	c.rest = c.rest[n:]
	return n, nil
}

func (*crumbs) Write(p []byte) (int, error) { return len(p), nil }
func (*crumbs) Close() error                { return nil }

// grows fails if run(1), which has sixteen times as much to do as run(0), is never seen
// to take less than 64 times as long. Both are short enough to finish, in at least one
// of several tries, before another process gets the processor.
func grows(t *testing.T, name string, run func(i int)) {
	t.Helper()
	least := [2]time.Duration{time.Hour, time.Hour}
	for range 500 {
		for i := range least {
			start := time.Now()
			run(i)
			least[i] = min(least[i], time.Since(start))
		}
		if least[1] < 64*least[0] {
			return
		}
	}
	t.Errorf("%s: %v, and %v for sixteen times as much", name, least[0], least[1])
}

// An agent that sends only gaps, with alternating reasons so that none merges with the
// one before, does not fill a log.
func TestGapsKeepLimits(t *testing.T) {
	h := NewHub(&HubConfig{LogEvents: 100})
	a := playAgent(t, h, "agent")
	first := uint64(1)
	for range 20 {
		b := a.lost("s", "e1", first, first+maxBatchGaps-1, "a")
		b.Gaps = nil
		for range maxBatchGaps {
			b.Gaps = append(b.Gaps, Gap{first, first, Reason("r" + fmt.Sprint(first%2))})
			first++
		}
		a.send(b)
		if n := h.lookup("s").log.ring.n; n > 201 {
			t.Fatalf("%d gaps in a log of 100 events", n)
		}
	}
	if st := statOf(t, h, "s"); st.Acked != first-1 || st.Bytes != 0 {
		t.Errorf("%+v", st)
	}
}

// An agent that begins epoch after epoch has two logs of a session at the hub, and
// one that comes and goes has one entry in the hub's clock.
func TestEpochsKeepLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		held := func() map[string]int { return footprint(h) }
		var before map[string]int
		for i := range 300 {
			a := playAgent(t, h, "agent")
			v := playViewer(t, h, "tab")
			a.send(a.batch("s", fmt.Sprintf("e%03d", i), 1, 50))
			a.send(a.last("ended", fmt.Sprintf("e%03d", i), 1))
			v.send(v.watch("s", "", 0), v.watch("nobody", "", 0))
			v.drain()
			a.drain()
			a.link.Close()
			v.link.Close()
			pass(time.Second)
			if i == 2 {
				before = held()
			}
		}
		if n := h.expiry.Len(); n > 8 {
			t.Errorf("%d entries in the hub's clock for two sessions", n)
		}
		now := held()
		before["Hub.expiry"], now["Hub.expiry"] = 0, 0
		if diff := cmp.Diff(before, now); diff != "" {
			t.Errorf("-after three lives +after 300\n%s", diff)
		}
	})
}

// A hub has its agent say where all of its sessions stand once for each welcome that
// the agent asked for, and send what it holds once for each replay that it is asked
// for: no more than that, and no more than eight at a time.
func TestAmplificationOfHub(t *testing.T) {
	st := NewStreamer(nil)
	const sessions = 100
	for i := range sessions {
		publishN(t, st, fmt.Sprintf("s%02d", i), 1)
	}
	h := newPeer(t, st.Connect())
	h.drain()
	for i := range 20 {
		in := size(t, &WelcomePayload{V: 1, Link: fmt.Sprint("l", i)})
		for range 10 { // but for the first of them nobody waits
			h.send(&WelcomePayload{V: 1, Link: fmt.Sprint("l", i)}, &ErrorPayload{Code: CodeStaleLink}, &ErrorPayload{Code: CodeStaleLink})
			in += size(t, &ErrorPayload{Code: CodeStaleLink})
		}
		out := 0
		for _, p := range h.drain() {
			out += size(t, p)
		}
		if i > 0 && out/sessions != 98 || out > 400*sessions { // the first one draws what was published, too
			t.Errorf("welcome %d: %d bytes in, %d out for %d sessions", i, in, out, sessions)
		}
	}
	h.id = "l19"
	epoch := stats(t, st, "s00").Epoch
	h.send(h.ack("s00", epoch, 0))
	publishN(t, st, "s00", 900)
	h.drain()
	for i := range 100 {
		h.link.Handle(t.Context(), &ReplayRequestPayload{SessionID: "s00", RequestID: fmt.Sprint("r", i)})
		h.link.Handle(t.Context(), &ReplayRequestPayload{SessionID: "s00", RequestID: fmt.Sprint("r", i)}) // twice
	}
	replayed, busy := 0, 0
	for _, p := range h.drain() {
		switch p := p.(type) {
		case *ReplayBatchPayload:
			replayed += len(p.Events)
		case *ErrorPayload:
			busy++
		}
	}
	inPage := section(t, "SECURITY.md", "Amplification")
	for _, figure := range []string{
		fmt.Sprintf("(%d bytes together)", size(t, &WelcomePayload{V: 1, Link: "l1"})+size(t, &ErrorPayload{Code: CodeStaleLink})),
		"98 bytes per session",
		fmt.Sprintf("`replay_request` (%d bytes)", len(frame("replay_request", `"session_id":"s","request_id":"r"`))),
		fmt.Sprintf("`watch` (%d bytes)", len(frame("watch", `"session_id":"s"`))),
	} {
		if !strings.Contains(inPage, figure) {
			t.Errorf("SECURITY.md does not say %s", figure)
		}
	}
	if replayed != 8*901 || busy != maxReplies {
		t.Errorf("%d events and %d refusals for 100 requests of 901", replayed, busy)
	}
}

// stuffed is a batch from one number to another, as decoded from a peer's frame, in
// which all events but one have the given number of bytes.
func stuffed(t *testing.T, p Payload, from, to, small uint64, bytes int) Payload {
	t.Helper()
	var events []Event
	for seq := from; seq <= to; seq++ {
		e := Event{Seq: seq, Data: json.RawMessage("1")}
		if seq != small {
			e.Data = json.RawMessage(`"` + strings.Repeat("x", bytes) + `"`)
		}
		events = append(events, e)
	}
	switch p := p.(type) {
	case *EventBatchPayload:
		p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events = from, to, to, events
	case *ReplayBatchPayload:
		p.FirstSeq, p.LastSeq, p.Events = from, to, events
	}
	line, err := Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unmarshal(line)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Events of one frame share its memory. A peer that sent each new event together with
// many known ones, or with one that was too large, made the hub or viewer retain the
// whole frame, up to 2 MiB, for a few bytes that counted against its limits (S10).
func TestFramesPinNoMemory(t *testing.T) {
	const known = 40
	bytes := 2500
	if testenv.RaceEnabled { // one goroutine
		bytes = 800
	}
	h := NewHub(&HubConfig{MaxEventBytes: 20_000, LogEvents: 150})
	a := playAgent(t, h, "agent")
	batch := func(from, to, small uint64, bytes int) Payload {
		return stuffed(t, a.batch("s", "e1", 1, 1), from, to, small, bytes)
	}
	a.send(batch(1, known, 0, bytes))
	checkMemory := func() {
		t.Helper()
		if l := &h.lookup("s").log; l.memory() > 4*l.bytes+4<<10 {
			t.Fatalf("the hub's log has %d bytes of memory for %d of events", l.memory(), l.bytes)
		}
	}
	for seq := uint64(known + 1); seq <= known+100; seq++ {
		a.send(batch(seq-known, seq, seq, bytes))
	}
	checkMemory()
	for seq := uint64(known + 101); seq <= known+300; seq += 2 {
		a.send(batch(seq, seq+1, seq, 50_000), a.lost("s", "e1", seq+1, seq+1, ReasonRejected))
	}
	checkMemory()
	v := playViewer(t, h, "tab")
	v.send(v.watch("s", "", 0))
	v.drain()
	var r *ReplayRequestPayload
	for _, p := range a.drain() {
		if p, ok := p.(*ReplayRequestPayload); ok {
			r = p
		}
	}
	a.send(stuffed(t, answerTo(r, 1, 1, false), 1, known, 0, 10))
	for seq := uint64(known + 1); seq <= known+50; seq++ {
		a.send(stuffed(t, answerTo(r, 1, 1, false), seq-known, seq, seq, bytes))
	}
	var slots []slot
	counted := 0
	replayed := &h.lookup("s").fetches[0].log
	for i := range replayed.ring.n {
		slots, counted = append(slots, *replayed.ring.at(i)), counted+int(replayed.ring.at(i).size)
	}
	if has := memory(slots, nil); len(slots) != known+50 || has > 4*counted+4<<10 {
		t.Errorf("%d events to replay have %d bytes of memory, count %d", len(slots), has, counted)
	}

	w := NewViewer(nil)
	w.Watch("s", Position{"e1", known})
	hub := playHub(t, w)
	hub.drain()
	before := heapBytes()
	for seq := uint64(known + 1); seq <= known+200; seq++ {
		hub.send(stuffed(t, hub.batch("s", "e1", 1, 1), seq-known, seq, seq, bytes))
	}
	if has := heapBytes() - before; w.Stats().Items != 200 || has > 4*1<<20 {
		t.Errorf("%d items that count %d bytes take %d", w.Stats().Items, w.Stats().Bytes, has)
	}
}

// An agent's sessions take at most four times the bytes that count of the heap, plus
// 128 bytes per entry and 8 KiB per session, whatever a hub refuses (S10).
func TestHeapOfEvents(t *testing.T) {
	const sessions, published = 10, 2500
	for name, kept := range map[string]int{"all": 1, "one of 30": 30, "one of 1,000": 1000} {
		st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingEvents: 1000, ReplayEvents: 100})
		before := heapBytes()
		entries := 0
		for _, id := range loadIDs(sessions) {
			s, err := st.Session(id)
			if err != nil {
				t.Fatal(err)
			}
			for i := range published {
				if _, err := s.Publish(t.Context(), Event{Type: "out", Bytes: make([]byte, 100)}); err != nil {
					t.Fatal(err)
				}
				if i%kept > 0 {
					s.mu.Lock()
					s.loseRangeLocked(s.log.head, s.log.head, ReasonRejected) // as refused does
					s.mu.Unlock()
				}
			}
			entries += s.log.ring.n
		}
		most := 4*st.Stats().Bytes + 128*entries + sessions*8<<10
		if has := heapBytes() - before; has > int64(most) {
			t.Errorf("%s kept: %d bytes of heap for %d of events in %d entries", name, has, st.Stats().Bytes, entries)
		}
		runtime.KeepAlive(st)
	}
}
