package gvstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A farEnd plays the peer of a link by hand, line by line: the link runs by RunLines
// at the other end of a connection.
type farEnd struct {
	t    *testing.T
	conn net.Conn
	said chan string // by the link
	ran  chan error  // what Run returned
	fill *strings.Replacer

	heads  bool             // what the agent has is no part of the state
	state  func() any       // what a bad line must not change
	counts func() [2]uint64 // stale and refused payloads
	next   func()           // a good line works
}

// runLines runs a link over a connection whose far end it returns.
func runLines(t *testing.T, l *Link) *farEnd {
	near, far := net.Pipe()
	f := &farEnd{t: t, conn: far, said: make(chan string, 100), ran: make(chan error, 1)}
	go func() {
		f.ran <- l.RunLines(context.Background(), near)
	}()
	go func() {
		for lines := bufio.NewReader(far); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				close(f.said)
				return
			}
			f.said <- line
		}
	}()
	t.Cleanup(func() { far.Close() })
	synctest.Wait()
	return f
}

// say sends a line, in which $link and $epoch are filled in.
func (f *farEnd) say(line string) {
	f.t.Helper()
	if f.fill != nil {
		line = f.fill.Replace(line)
	}
	if _, err := f.conn.Write([]byte(line + "\n")); err != nil {
		f.t.Fatalf("sent %.200q: %v", line, err)
	}
	synctest.Wait()
}

// hear returns what the link has said since.
func (f *farEnd) hear() (out []Payload) {
	f.t.Helper()
	for {
		select {
		case line, ok := <-f.said:
			if !ok {
				return out
			}
			p, err := Unmarshal([]byte(line))
			if err != nil {
				f.t.Fatalf("the link said %.200q: %v", line, err)
			}
			out = append(out, p)
		default:
			return out
		}
	}
}

// wants compares what the link has said since, in order.
func (f *farEnd) wants(want ...Payload) {
	f.t.Helper()
	if diff := cmp.Diff(want, f.hear(), samePayload); diff != "" {
		f.t.Fatalf("the link said: -want +got\n%s", diff)
	}
}

// ofKind returns the first payload of a type.
func ofKind[P Payload](t *testing.T, ps []Payload) P {
	t.Helper()
	for _, p := range ps {
		if p, ok := p.(P); ok {
			return p
		}
	}
	t.Fatalf("no %T in %d payloads", *new(P), len(ps))
	return *new(P)
}

// frame is a line of a type with these fields.
func frame(typ, fields string) string { return `{"type":"` + typ + `","payload":{` + fields + `}}` }

// batchLine is an event batch of session s on this link.
func batchLine(first, last uint64, events, gaps string) string {
	return frame("event_batch", fmt.Sprintf(`"session_id":"s","viewer_id":"","epoch":"$epoch","link":"$link",`+
		`"first_seq":%d,"last_seq":%d,"head_seq":%d,"events":[%s],"gaps":[%s]`, first, last, last, events, gaps))
}

// seqs are events with these numbers.
func seqs(numbers ...uint64) string {
	var list []string
	for _, n := range numbers {
		list = append(list, fmt.Sprintf(`{"seq":%d,"type":"out","data":"event %d"}`, n, n))
	}
	return strings.Join(list, ",")
}

func upTo(from, to uint64) (out []uint64) {
	for ; from <= to; from++ {
		out = append(out, from)
	}
	return out
}

func gapText(from, to uint64) string {
	return fmt.Sprintf(`{"from":%d,"to":%d,"reason":"rejected"}`, from, to)
}

// set replaces the value of the first field of a name.
func set(line, name, value string) string {
	key := `"` + name + `":`
	i := strings.Index(line, key)
	if i < 0 {
		panic("no " + name + " in " + line)
	}
	i += len(key)
	return line[:i] + value + line[i+strings.IndexAny(line[i:], ",}"):]
}

// badAgent is an agent's link: of s, 1 to 5 were sent and 1 to 2 acknowledged.
func badAgent(t *testing.T) *farEnd {
	st := NewStreamer(nil)
	publishN(t, st, "s", 5)
	f := runLines(t, st.Connect())
	f.wants(&HelloPayload{V: 1, Role: roleAgent})
	f.say(frame("welcome", `"v":1,"link":"l1","window":256`))
	ack := frame("ack_batch", `"session_id":"s","viewer_id":"","epoch":"$epoch","link":"$link","up_to_seq":2`)
	f.fill = strings.NewReplacer("$link", "l1", "$epoch", ofKind[*EventBatchPayload](t, f.hear()).Epoch)
	f.say(ack)
	f.wants()
	f.state = func() any {
		all, s := st.Stats(), st.lookup("s").Stats()
		all.StalePayloads, all.RefusedPayloads, all.Connected, s.Connected = 0, 0, false, false
		var events []Event
		for e := range st.Unacked("s") {
			events = append(events, e)
		}
		return []any{all, s, events}
	}
	f.counts = func() [2]uint64 { return [2]uint64{st.Stats().StalePayloads, st.Stats().RefusedPayloads} }
	f.next = func() {
		f.say(set(ack, "up_to_seq", "4"))
		if n := st.Stats().PendingEvents; n != 1 {
			t.Errorf("%d events pending after the next ack, want 1", n)
		}
	}
	return f
}

// badHubAgent is a hub's link to an agent, which has session s with 1 to 3, and an
// ended one with 1 to 2. Another agent has session theirs.
func badHubAgent(t *testing.T) *farEnd {
	h := NewHub(&HubConfig{MaxEventBytes: 1000})
	playAgent(t, h, "other").feed("theirs", "e1", 1, 3)
	f := runLines(t, h.ConnectAgent("agent"))
	f.say(frame("hello", `"v":1,"role":"agent"`))
	f.fill = strings.NewReplacer("$link", ofKind[*WelcomePayload](t, f.hear()).Link, "$epoch", "e1")
	f.say(batchLine(1, 3, seqs(1, 2, 3), ""))
	f.say(set(batchLine(1, 2, `{"seq":1},{"seq":2,"end":true}`, ""), "session_id", `"ended"`))
	pass(ackDelay)
	synctest.Wait()
	if n := len(f.hear()); n != 2 {
		t.Fatalf("%d acks, want 2", n)
	}
	f.state = func() any {
		all := h.Stats()
		all.StalePayloads, all.RefusedPayloads = 0, 0
		state := []any{all}
		for s := range h.Sessions() {
			if f.heads {
				s.Head = 0
			}
			state = append(state, s)
			for it := range h.Items(endedContext, s.SessionID, Position{}) {
				state = append(state, itemText(it))
			}
		}
		return state
	}
	f.counts = func() [2]uint64 { return [2]uint64{h.Stats().StalePayloads, h.Stats().RefusedPayloads} }
	f.next = func() {
		f.say(batchLine(4, 4, seqs(4), ""))
		f.acked("s", 4)
	}
	return f
}

// acked wants the hub to acknowledge.
func (f *farEnd) acked(session string, seq uint64) {
	f.t.Helper()
	pass(ackDelay)
	synctest.Wait()
	link := f.fill.Replace("$link")
	f.wants(&AckBatchPayload{SessionID: session, Epoch: "e1", Link: link, UpToSeq: seq})
}

// badHubViewer is a hub's link to a viewer, which watches s and has its 1 to 5. It
// may not see secret.
func badHubViewer(t *testing.T) *farEnd {
	h := NewHub(&HubConfig{MaxWatches: 2, Authorize: func(_ context.Context, _, session string) error {
		if session == "secret" {
			return fmt.Errorf("not for you")
		}
		return nil
	}})
	a := playAgent(t, h, "agent")
	for _, id := range []string{"s", "t", "secret"} {
		a.feed(id, "e1", 1, 5)
	}
	f := runLines(t, h.ConnectViewer("tab"))
	f.say(frame("hello", `"v":1,"role":"viewer"`))
	link := ofKind[*WelcomePayload](t, f.hear()).Link
	f.fill = strings.NewReplacer("$link", link, "$epoch", "e1")
	v := &peer{t: t, id: link, viewer: "tab"}
	f.say(watchLine)
	f.wants(v.status(stands("s", "e1", 1, 5, 3)), v.batch("s", "e1", 4, 5))
	f.state = func() any {
		all := h.Stats()
		all.StalePayloads, all.RefusedPayloads = 0, 0
		state := []any{all}
		for s := range h.Sessions() {
			state = append(state, s)
		}
		return state
	}
	f.counts = func() [2]uint64 { return [2]uint64{h.Stats().StalePayloads, h.Stats().RefusedPayloads} }
	f.next = func() {
		f.say(set(watchLine, "session_id", `"t"`))
		f.wants(v.status(stands("t", "e1", 1, 5, 3)), v.batch("t", "e1", 4, 5))
		a.feed("s", "e1", 6, 6) // what was watched before, goes on
		synctest.Wait()
		f.wants(v.batch("s", "e1", 6, 6))
	}
	return f
}

const watchLine = `{"type":"watch","payload":{"session_id":"s","viewer_id":"tab","epoch":"e1","after_seq":3}}`

// badViewer is a viewer's link: of s, 1 to 3 wait for Items.
func badViewer(t *testing.T) *farEnd {
	v := NewViewer(nil)
	if err := v.Watch("s", Position{}); err != nil {
		t.Fatal(err)
	}
	f := runLines(t, v.Connect())
	f.wants(&HelloPayload{V: 1, Role: roleViewer})
	f.fill = strings.NewReplacer("$link", "l1", "$epoch", "e1")
	f.say(frame("welcome", `"v":1,"link":"$link","viewer_id":"tab"`))
	f.wants(&WatchPayload{SessionID: "s", ViewerID: "tab"})
	f.say(statusLine)
	f.say(batchLine(1, 3, seqs(1, 2, 3), ""))
	f.wants()
	f.state = func() any {
		st := v.Stats()
		st.StalePayloads, st.RefusedPayloads, st.Connected = 0, 0, false
		state := []any{st, v.Position("s")}
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, q := range v.queue {
			state = append(state, itemText(q.item))
		}
		return append(state, v.watches["s"].received, v.watches["s"].ended)
	}
	f.counts = func() [2]uint64 { return [2]uint64{v.Stats().StalePayloads, v.Stats().RefusedPayloads} }
	f.next = func() {
		f.say(batchLine(4, 4, seqs(4), ""))
		has(t, v, itemTexts("s", "e1", 1, 4)...)
	}
	return f
}

const statusLine = `{"type":"status","payload":{"viewer_id":"","link":"$link","sessions":[` +
	`{"session_id":"s","epoch":"$epoch","first_seq":1,"head_seq":3,"ack_seq":0}]}}`

// A badLine is what no sane peer says.
type badLine struct {
	name string
	line string
	more []string // lines of the same kind, said before
	want Payload  // nil: nothing is said

	stale bool          // it counts as stale
	heads bool          // what the agent says it has is noted all the same
	ack   uint64        // the hub says again what it has
	dies  bool          // the link fails, after it told why
	then  func(*farEnd) // instead of next
}

func malformedLine(name, line string) badLine {
	return badLine{name: name, line: line, want: &ErrorPayload{Code: codeMalformed}}
}

// badAnywhere is what no link takes.
func badAnywhere() (out []badLine) {
	for name, line := range map[string]string{
		"no JSON":         `{"type":"hello","payl`,
		"no object":       `[]`,
		"null":            `null`,
		"no type":         `{"payload":{}}`,
		"no payload":      `{"type":"status"}`,
		"null payload":    `{"type":"status","payload":null}`,
		"payload of text": `{"type":"status","payload":"x"}`,
		"two values":      `{"type":"status","payload":{"link":"$link"}} 1`,
		"two types":       `{"type":"status","type":"status","payload":{"link":"$link"}}`,
		"two payloads":    `{"type":"status","payload":{"link":"$link"},"payload":{"link":"$link"}}`,
		"a field twice":   `{"type":"status","payload":{"link":"$link","link":"$link"}}`,
		"not UTF-8":       "{\"type\":\"status\",\"payload\":{\"link\":\"$link\",\"x\":\"\xff\"}}",
		"depth of 10,000": `{"type":"status","payload":{"link":"$link","x":` + deep(10_000) + `}}`,
		"objects, 10,000": strings.Repeat(`{"x":`, 10_000),
		"more than 2 MiB": `{"type":"status","payload":{"link":"$link","x":"` + strings.Repeat("x", maxLine) + `"}}`,
	} {
		out = append(out, malformedLine(name, line))
	}
	return append(out,
		badLine{name: "unknown type", line: `{"type":"weather","payload":{}}`, want: &ErrorPayload{Code: codeUnknownType}},
		badLine{name: "long unknown type", line: `{"type":"` + strings.Repeat("é", 10_000) + `","payload":{}}`, want: &ErrorPayload{Code: codeUnknownType}},
		badLine{name: "an error", line: frame("error", `"code":"malformed"`)},
		badLine{name: "an unknown error", line: frame("error", `"code":"weather","message":"rain","seq":7,"retryable":true`)},
		badLine{name: "an error of no session", line: frame("error", `"code":"forbidden","session_id":"nobody"`)},
		badLine{name: "an error of no request", line: frame("error", `"code":"replay_busy","session_id":"nobody","request_id":"r0"`)},
	)
}

// badFields puts bad values into the fields of a line that is good otherwise.
func badFields(line string, numbers, ids, optional string) (out []badLine) {
	for _, name := range strings.Fields(numbers) {
		row := malformedLine("number "+name, set(line, name, "null,"))
		for _, n := range []string{
			"-1", "-0", "1.5", "1.0", "1e1", "1E400", "9007199254740993", "18446744073709551616",
			strings.Repeat("9", 1000), "01", "+1", "0x1", `"1"`, "true", "[1]", "{}", "NaN",
		} {
			row.more = append(row.more, set(line, name, n))
		}
		out = append(out, row)
	}
	long := strings.Repeat("x", maxID+1)
	for _, name := range strings.Fields(ids + " " + optional) {
		bad := []string{
			`"` + long + `"`, `"` + strings.Repeat("é", maxID/2) + `x"`, `"a\u0000"`, `"a\n"`, `"\u007f"`, `"\u0085"`, "\"a\tb\"",
			"\"\xff\"", "\"\xc3\"", `"\ud800"`, "1", "[]", "{}",
		}
		if strings.Contains(ids, name) {
			bad = append(bad, `""`, "null")
		}
		row := malformedLine("text "+name, set(line, name, "true"))
		for _, id := range bad {
			row.more = append(row.more, set(line, name, id))
		}
		out = append(out, row)
	}
	return out
}

// badBatches are batches behind 3 that don't tile their numbers.
func badBatches() (out []badLine) {
	for name, line := range map[string]string{
		"empty":                batchLine(4, 3, "", ""),
		"nothing":              batchLine(4, 4, "", ""),
		"from zero":            batchLine(0, 1, seqs(0, 1), ""),
		"hole":                 batchLine(4, 6, seqs(4, 6), ""),
		"hole at the start":    batchLine(4, 6, seqs(5, 6), ""),
		"hole at the end":      batchLine(4, 6, seqs(4, 5), ""),
		"hole before a gap":    batchLine(4, 6, seqs(4), gapText(6, 6)),
		"duplicate":            batchLine(4, 5, seqs(4, 4, 5), ""),
		"duplicate at the end": batchLine(4, 5, seqs(4, 5, 5), ""),
		"order":                batchLine(4, 5, seqs(5, 4), ""),
		"order of gaps":        batchLine(4, 5, "", gapText(5, 5)+","+gapText(4, 4)),
		"gap over an event":    batchLine(4, 6, seqs(4, 5), gapText(5, 6)),
		"event in a gap":       batchLine(4, 6, seqs(5), gapText(4, 6)),
		"gaps overlap":         batchLine(4, 6, "", gapText(4, 5)+","+gapText(5, 6)),
		"gap turned round":     batchLine(4, 6, "", gapText(6, 4)),
		"gap too long":         batchLine(4, 6, "", gapText(4, 7)),
		"gap without a reason": batchLine(4, 4, "", `{"from":4,"to":4}`),
		"too many events":      batchLine(4, 260, seqs(upTo(4, 260)...), ""),
		"too many gaps":        batchLine(4, 516, "", strings.TrimSuffix(strings.Repeat(gapText(4, 4)+",", maxBatchGaps+1), ",")),
		"behind the end":       batchLine(4, 5, `{"seq":4,"end":true},{"seq":5}`, ""),
		"head before last":     set(batchLine(4, 5, seqs(4, 5), ""), "head_seq", "4"),
		"data twice":           batchLine(4, 4, `{"seq":4,"data":1,"data":1}`, ""),
		"data and bytes":       batchLine(4, 4, `{"seq":4,"data":1,"data_base64":"AA=="}`, ""),
		"no base64":            batchLine(4, 4, `{"seq":4,"data_base64":"?"}`, ""),
		"no time":              batchLine(4, 4, `{"seq":4,"time":"now"}`, ""),
		"long type":            batchLine(4, 4, `{"seq":4,"type":"`+strings.Repeat("t", maxID+1)+`"}`, ""),
		"null event":           batchLine(4, 4, `null`, ""),
		"deep data":            batchLine(4, 4, `{"seq":4,"data":`+deep(10_000)+`}`, ""),
	} {
		out = append(out, malformedLine("batch: "+name, line))
	}
	line := batchLine(4, 4, seqs(4), "")
	out = append(out, badFields(line, "first_seq last_seq head_seq seq", "session_id link epoch", "viewer_id")...)
	return append(out, badFields(batchLine(4, 4, "", gapText(4, 4)), "from to", "reason", "")...)
}

// unexpected are payloads from the wrong side.
func unexpected(types ...string) (out []badLine) {
	lines := map[string]string{
		"hello":          frame("hello", `"v":1,"role":"agent"`),
		"welcome":        frame("welcome", `"v":1,"link":"l9"`),
		"status":         frame("status", `"link":"$link"`),
		"event_batch":    batchLine(4, 4, seqs(4), ""),
		"ack_batch":      frame("ack_batch", `"session_id":"s","epoch":"$epoch","link":"$link","up_to_seq":4`),
		"watch":          watchLine,
		"replay_request": frame("replay_request", `"session_id":"s","request_id":"r1","epoch":"$epoch"`),
		"replay_batch":   frame("replay_batch", `"session_id":"s","request_id":"r1","epoch":"$epoch","first_seq":4,"last_seq":4,"until_seq":4,"events":[`+seqs(4)+`]`),
	}
	for _, typ := range types {
		out = append(out, badLine{name: "wrong side: " + typ, line: lines[typ], want: &ErrorPayload{Code: codeUnexpected}})
	}
	return out
}

func badForAgent() (out []badLine) {
	ack := frame("ack_batch", `"session_id":"s","viewer_id":"","epoch":"$epoch","link":"$link","up_to_seq":4,"nack":false`)
	out = append(out, badFields(ack, "up_to_seq", "session_id epoch link", "viewer_id")...)
	request := frame("replay_request", `"session_id":"s","viewer_id":"v","request_id":"r1","epoch":"$epoch","after_seq":1,"until_seq":3,"limit":9`)
	out = append(out, badFields(request, "after_seq until_seq limit", "session_id request_id", "viewer_id")...)
	out = append(out, unexpected("hello", "event_batch", "watch", "replay_batch")...)
	about := func(code, epoch string, seq uint64) *ErrorPayload {
		return &ErrorPayload{Code: code, SessionID: "s", ViewerID: "v", RequestID: "r1", Epoch: epoch, Seq: seq}
	}
	unknown := about(codeUnknownSession, "", 0)
	unknown.SessionID = "t"
	return append(out,
		malformedLine("nack of text", set(ack, "nack", `"yes"`)),
		malformedLine("until twice", set(request, "until_seq", `3,"until_seq":3`)),
		malformedLine("until too small", set(set(request, "after_seq", "3"), "until_seq", "2")),
		malformedLine("half a position", set(request, "epoch", `""`)),
		badLine{name: "ack of nobody", line: set(ack, "session_id", `"t"`), want: &ErrorPayload{Code: codeUnknownSession, SessionID: "t"}},
		badLine{name: "ack of another epoch", line: set(ack, "epoch", `"e0"`), stale: true},
		badLine{name: "ack of another link", line: set(ack, "link", `"l0"`), stale: true},
		badLine{name: "ack from before", line: set(ack, "up_to_seq", "1"), stale: true},
		badLine{name: "ack beyond sent", line: set(ack, "up_to_seq", "6"), dies: true,
			want: &ErrorPayload{Code: codeAckBeyondSent, SessionID: "s", Epoch: "$epoch", Seq: 5}},
		badLine{name: "ack of the greatest", line: set(ack, "up_to_seq", "9007199254740991"), dies: true,
			want: &ErrorPayload{Code: codeAckBeyondSent, SessionID: "s", Epoch: "$epoch", Seq: 5}},
		badLine{name: "welcome of version 2", line: frame("welcome", `"v":2,"link":"l2"`), dies: true, want: &ErrorPayload{Code: codeVersion}},
		badLine{name: "replay ahead", line: set(set(request, "after_seq", "6"), "until_seq", "9"), want: about(codeReplayAhead, "$epoch", 5)},
		badLine{name: "replay of another epoch", line: set(request, "epoch", `"e0"`), want: about(codeStaleEpoch, "$epoch", 0)},
		badLine{name: "replay of nobody", line: set(request, "session_id", `"t"`), want: unknown},
	)
}

func badForHubOfAgent() (out []badLine) {
	batch := batchLine(4, 4, seqs(4), "")
	status := set(statusLine, "session_id", `"s"`)
	out = append(badBatches(), unexpected("welcome", "ack_batch", "watch", "replay_request")...)
	out = append(out, badFields(status, "first_seq head_seq ack_seq", "session_id link", "viewer_id")...)
	replay := frame("replay_batch", `"session_id":"s","viewer_id":"v","request_id":"r1","epoch":"$epoch","first_seq":1,"last_seq":1,"until_seq":2,"available_from":1,"events":[`+seqs(1)+`]`)
	out = append(out, badFields(replay, "first_seq last_seq until_seq available_from seq", "session_id request_id epoch", "viewer_id")...)
	large := batchLine(4, 4, `{"seq":4,"data":"`+strings.Repeat("x", 1000)+`"}`, "")
	return append(out,
		malformedLine("status: ack beyond head", set(status, "ack_seq", "4")),
		malformedLine("status: first beyond head", set(status, "first_seq", "5")),
		malformedLine("status: no epoch", frame("status", `"link":"$link","sessions":[{"session_id":"s"}]`)),
		malformedLine("status: too many", frame("status", `"link":"$link","sessions":[`+strings.TrimSuffix(strings.Repeat(`{"session_id":"s"},`, maxStatus+1), ",")+`]`)),
		malformedLine("hello of a viewer", frame("hello", `"v":1,"role":"viewer"`)),
		malformedLine("hello of nobody", frame("hello", `"v":1,"role":"weather"`)),
		malformedLine("replay: too many", set(set(frame("replay_batch", `"session_id":"s","request_id":"r1","epoch":"e1","first_seq":1,"last_seq":0,"until_seq":0,"events":[`+seqs(upTo(1, 101)...)+`]`), "last_seq", "101"), "until_seq", "101")),
		malformedLine("replay: hole", frame("replay_batch", `"session_id":"s","request_id":"r1","epoch":"e1","first_seq":1,"last_seq":3,"until_seq":3,"events":[`+seqs(1, 3)+`]`)),
		badLine{name: "hello of version 2", line: frame("hello", `"v":2,"role":"agent"`), want: &ErrorPayload{Code: codeVersion}},
		badLine{name: "replay nobody asked for", line: replay, stale: true},
		badLine{name: "another link", line: set(batch, "link", `"l0"`), want: &ErrorPayload{Code: codeStaleLink, Retryable: true}, stale: true},
		badLine{name: "older epoch", line: set(batch, "epoch", `"e0"`), want: &ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: "e1"}},
		badLine{name: "later epoch, not from its start", line: set(batch, "epoch", `"e2"`), want: &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "e2"}},
		badLine{name: "unknown session", line: set(batch, "session_id", `"t"`), want: &ErrorPayload{Code: codeUnknownSession, SessionID: "t", Epoch: "e1"}},
		badLine{name: "another's session", line: set(batch, "session_id", `"theirs"`), want: &ErrorPayload{Code: codeForbidden, SessionID: "theirs", Epoch: "e1"}},
		badLine{name: "another's session from its start", line: set(batchLine(1, 4, seqs(1, 2, 3, 4), ""), "session_id", `"theirs"`),
			want: &ErrorPayload{Code: codeForbidden, SessionID: "theirs", Epoch: "e1"}},
		badLine{name: "status of another's session", line: set(status, "session_id", `"theirs"`), want: &ErrorPayload{Code: codeForbidden, SessionID: "theirs", Epoch: "e1"}},
		badLine{name: "after the end", line: set(batchLine(3, 3, seqs(3), ""), "session_id", `"ended"`), want: &ErrorPayload{Code: codeEnded, SessionID: "ended", Epoch: "e1"}},
		badLine{name: "event too large", heads: true, ack: 3, line: large, want: &ErrorPayload{Code: codeEventTooLarge, SessionID: "s", Epoch: "e1", Seq: 4}, then: func(f *farEnd) {
			f.say(batchLine(4, 5, seqs(5), gapText(4, 4)))
			f.acked("s", 5)
		}},
	)
}

func badForHubOfViewer() (out []badLine) {
	out = append(badFields(watchLine, "after_seq", "session_id", "viewer_id"),
		unexpected("welcome", "status", "event_batch", "ack_batch", "replay_request", "replay_batch")...)
	t := set(watchLine, "session_id", `"t"`)
	ahead := &ErrorPayload{Code: codeReplayAhead, SessionID: "t", Epoch: "e1", Seq: 5}
	return append(out,
		malformedLine("number without an epoch", set(watchLine, "epoch", `""`)),
		malformedLine("epoch", set(watchLine, "epoch", `"É"`)),
		malformedLine("long epoch", set(watchLine, "epoch", `"`+strings.Repeat("e", maxEpoch+1)+`"`)),
		malformedLine("stop of text", set(watchLine, "after_seq", `3,"stop":"yes"`)),
		malformedLine("hello of an agent", frame("hello", `"v":1,"role":"agent"`)),
		badLine{name: "hello of version 0", line: frame("hello", `"role":"viewer"`), want: &ErrorPayload{Code: codeVersion}},
		badLine{name: "ahead", line: set(t, "after_seq", "6"), want: ahead},
		badLine{name: "far ahead", line: set(t, "after_seq", "9007199254740991"), want: ahead},
		badLine{name: "later epoch", line: set(t, "epoch", `"e2"`), want: ahead},
		badLine{name: "another viewer", line: set(t, "viewer_id", `"other"`), want: &ErrorPayload{Code: codeForbidden, SessionID: "t"}},
		badLine{name: "not allowed", line: set(t, "session_id", `"secret"`), want: &ErrorPayload{Code: codeForbidden, SessionID: "secret"}},
	)
}

func badForViewer() (out []badLine) {
	out = append(badBatches(), unexpected("hello", "ack_batch", "watch", "replay_request")...)
	out = append(out, badFields(statusLine, "first_seq head_seq ack_seq", "session_id link", "viewer_id")...)
	batch := batchLine(4, 4, seqs(4), "")
	return append(out,
		badLine{name: "another link", line: set(batch, "link", `"l0"`), stale: true},
		badLine{name: "another viewer", line: set(batch, "viewer_id", `"other"`), stale: true},
		badLine{name: "older epoch", line: set(batch, "epoch", `"e0"`), stale: true},
		badLine{name: "later epoch", line: set(batch, "epoch", `"e2"`), stale: true},
		badLine{name: "not watched", line: set(batch, "session_id", `"t"`), stale: true, want: &WatchPayload{SessionID: "t", ViewerID: "tab", Stop: true}},
		badLine{name: "hole behind what was received", line: batchLine(5, 5, seqs(5), ""), want: &WatchPayload{SessionID: "s", ViewerID: "tab", Epoch: "e1", AfterSeq: 3}},
		badLine{name: "welcome of version 2", line: frame("welcome", `"v":2,"link":"l2"`), dies: true, want: &ErrorPayload{Code: codeVersion}},
	)
}

// Rule 11: a line that is wrong in whatever way is answered by one error and
// changes nothing, and the next line is as good as ever.
func TestBadInput(t *testing.T) {
	t.Parallel()
	for _, role := range []struct {
		name  string
		start func(t *testing.T) *farEnd
		lines []badLine
	}{
		{"agent", badAgent, badForAgent()},
		{"hub to agent", badHubAgent, badForHubOfAgent()},
		{"hub to viewer", badHubViewer, badForHubOfViewer()},
		{"viewer", badViewer, badForViewer()},
	} {
		t.Run(role.name, func(t *testing.T) {
			t.Parallel()
			for _, bad := range append(badAnywhere(), role.lines...) {
				t.Run(bad.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { bad.run(t, role.start(t)) })
				})
			}
		})
	}
}

func (bad *badLine) run(t *testing.T, f *farEnd) {
	f.heads = bad.heads
	for _, line := range bad.more {
		before := f.state()
		f.say(line)
		f.wants(bad.want)
		if diff := cmp.Diff(before, f.state()); diff != "" || t.Failed() {
			t.Fatalf("%.200q: state: -before +after\n%s", line, diff)
		}
	}
	before, counted := f.state(), f.counts()
	f.say(bad.line)
	var want []Payload
	switch p := bad.want.(type) {
	case nil:
	case *ErrorPayload:
		filled := *p
		filled.Epoch = f.fill.Replace(p.Epoch)
		want = append(want, &filled)
		if !bad.stale {
			counted[1]++
		}
	default:
		want = append(want, p)
	}
	if bad.ack != 0 {
		want = append(want, &AckBatchPayload{SessionID: "s", Epoch: "e1", Link: f.fill.Replace("$link"), UpToSeq: bad.ack})
	}
	if bad.stale {
		counted[0]++
	}
	f.wants(want...)
	if diff := cmp.Diff(before, f.state()); diff != "" {
		t.Errorf("state: -before +after\n%s", diff)
	}
	if got := f.counts(); got != counted && !strings.HasPrefix(bad.name, "an error") {
		t.Errorf("counted %v stale and refused, want %v", got, counted)
	}
	switch {
	case bad.dies:
		select {
		case err := <-f.ran:
			if refused := (*ProtocolError)(nil); !errors.As(err, &refused) || refused.Code != bad.want.(*ErrorPayload).Code {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * lastWords):
			t.Error("the link lives on")
		}
	case bad.then != nil:
		bad.then(f)
	default:
		f.next()
	}
}
