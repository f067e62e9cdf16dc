package gvstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vibetools/gvstream/internal/jsontext"
)

const wireEpoch = "01jdqz7c3k9w5v8x2m4n6p0rst"

var wireTime = time.Date(2025, 11, 23, 22, 34, 5, 120e6, time.UTC)

// sameWire compares payloads as they are told.
var sameWire = cmp.Options{
	cmpopts.IgnoreUnexported(EventBatchPayload{}, ReplayBatchPayload{}),
	cmpopts.EquateEmpty(),
}

// wireSamples is one payload of each type with all of its fields in use.
func wireSamples() []Payload {
	events := []Event{
		{Seq: 63, Time: wireTime, Type: "stdout", Data: json.RawMessage(`"ok \u2713\n"`)},
		{Seq: 64, Time: wireTime.Add(time.Nanosecond), Type: "tty", Bytes: []byte("\x1b[1mbold\xff")},
	}
	last := []Event{
		{Seq: 90, Type: "result", Data: json.RawMessage(`{"files":["a.go","b<c>.go"],"cost":1.5e-3,"next":null}`)},
		{Seq: 91, Time: wireTime, Data: json.RawMessage(`null`), End: true},
	}
	return []Payload{
		&HelloPayload{ViewerID: "tab-1", V: 1, Role: "viewer"},
		&WelcomePayload{ViewerID: "tab-1", V: 1, Link: "l7", Window: 256},
		&StatusPayload{Link: "l7", More: true, Sessions: []SessionStatus{
			{SessionID: "build-42", Epoch: wireEpoch, FirstSeq: 12, HeadSeq: 64, AckSeq: 60, Ended: true, PrevEpoch: "01jdq", PrevSeq: 99},
			{SessionID: "gebäude"},
		}},
		&EventBatchPayload{
			SessionID: "build-42", Epoch: wireEpoch, Link: "l7", FirstSeq: 61, LastSeq: 64, HeadSeq: 70,
			Events: events, Gaps: []Gap{{61, 62, ReasonDropped}},
		},
		&AckBatchPayload{SessionID: "build-42", Epoch: wireEpoch, Link: "l7", UpToSeq: 64, Nack: true},
		&WatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: wireEpoch, AfterSeq: 40, Stop: true},
		&ReplayRequestPayload{SessionID: "build-42", ViewerID: "tab-1", RequestID: "r3", Epoch: wireEpoch, AfterSeq: 40, UntilSeq: 91, Limit: 500},
		&ReplayBatchPayload{
			SessionID: "build-42", ViewerID: "tab-1", RequestID: "r3", Epoch: wireEpoch, FirstSeq: 41, LastSeq: 91,
			UntilSeq: 91, AvailableFrom: 90, Done: true, Events: last, Gaps: []Gap{{41, 80, ReasonEvicted}, {81, 89, ReasonRejected}},
		},
		&ErrorPayload{
			SessionID: "build-42", ViewerID: "tab-1", Code: codeReplayAhead, Message: "after 99 of \"build-42\"",
			Retryable: true, RequestID: "r3", Epoch: wireEpoch, Seq: 99,
		},
	}
}

// wire is the golden line of a payload type.
func wire(t testing.TB, typ string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "wire", typ+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(b), "\n")
}

func TestWireGolden(t *testing.T) {
	for _, p := range wireSamples() {
		t.Run(p.payloadType(), func(t *testing.T) {
			golden := wire(t, p.payloadType())
			line, err := Marshal(p)
			if err != nil || string(line) != golden {
				t.Errorf("Marshal: %v\n got %s\nwant %s", err, line, golden)
			}
			got, err := Unmarshal([]byte(golden))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(p, got, sameWire); diff != "" {
				t.Errorf("Unmarshal (-want +got):\n%s", diff)
			}
		})
	}
}

// jsonEnvelope is the envelope as encoding/json sees it.
type jsonEnvelope struct {
	Type    string          `json:"type"`
	Payload json.RawMessage `json:"payload"`
}

// jsonDecode decodes an envelope by encoding/json alone.
func jsonDecode(line []byte) (Payload, error) {
	var env jsonEnvelope
	if err := json.Unmarshal(line, &env); err != nil {
		return nil, err
	}
	p := newPayload(env.Type)
	if p == nil {
		return nil, fmt.Errorf("type %q", env.Type)
	}
	if err := json.Unmarshal(env.Payload, p); err != nil {
		return nil, err
	}
	for _, e := range payloadEvents(p) {
		var b bytes.Buffer // RawMessage keeps white space, Unmarshal does not
		if len(e.Data) > 0 {
			if err := json.Compact(&b, e.Data); err != nil {
				return nil, err
			}
			e.Data = b.Bytes()
		}
	}
	return p, nil
}

func payloadEvents(p Payload) (events []*Event) {
	var list []Event
	switch p := p.(type) {
	case *EventBatchPayload:
		list = p.Events
	case *ReplayBatchPayload:
		list = p.Events
	}
	for i := range list {
		events = append(events, &list[i])
	}
	return events
}

// jsonEncode encodes an envelope by encoding/json alone.
func jsonEncode(p Payload) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // it would rewrite Data
	err := enc.Encode(struct {
		Type    string  `json:"type"`
		Payload Payload `json:"payload"`
	}{p.payloadType(), p})
	return b.Bytes(), err
}

func TestAgreesWithEncodingJSON(t *testing.T) {
	t.Parallel()
	payloads := wireSamples()
	for _, p := range wireSamples() { // and with every field empty
		payloads = append(payloads, reflect.New(reflect.TypeOf(p).Elem()).Interface().(Payload))
	}
	odd := "\x00\x1f\"\\/<>&\u2028\U0001f600\x7f\xff\xc3"
	payloads = append(payloads,
		&ErrorPayload{SessionID: odd, Code: odd, Message: odd},
		&WelcomePayload{V: -3, Window: -1},
		&EventBatchPayload{FirstSeq: 1<<64 - 1, Events: []Event{{Time: wireTime.In(time.FixedZone("", -5*3600))}, {Bytes: []byte{}}}},
	)
	for _, p := range payloads {
		t.Run(p.payloadType(), func(t *testing.T) {
			ours, err := Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := jsonEncode(p)
			if err != nil {
				t.Fatal(err)
			}
			a, err := jsonDecode(ours)
			if err != nil {
				t.Fatalf("%v in %s", err, ours)
			}
			b, err := jsonDecode(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(b, a, sameWire); diff != "" {
				t.Errorf("encoding/json reads them differently (-theirs +ours):\n%s", diff)
			}
			if p.check() == nil {
				if got, err := Unmarshal(theirs); err != nil || !cmp.Equal(got, p, sameWire) {
					t.Errorf("Unmarshal of encoding/json's output: %v\n%s", err, cmp.Diff(p, got, sameWire))
				}
			}
		})
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	t.Parallel()
	for i, c := range hostileFrames {
		in := hostileFrame(t, c.typ, c.old, c.new)
		p, err := Unmarshal(in)
		var perr *ProtocolError
		if !errors.As(err, &perr) || p != nil {
			t.Errorf("%d: %T, %v from %.200s", i, p, err, in)
			continue
		}
		got := strings.TrimPrefix(strings.TrimPrefix(err.Error(), "gvstream: "), "malformed: ")
		if want := wantOf(c.want); got != want {
			t.Errorf("%d: got %s\nwant %s\nfrom %.200s", i, got, want, in)
		}
		if perr.Payload().check() != nil {
			t.Errorf("%d: the answer %q is malformed itself", i, err)
		}
	}
}

// wantOf is the error for want, which was written where an int has 64 bits.
func wantOf(want string) string {
	for _, field := range []string{" v: ", " window: ", " limit: "} {
		if strconv.IntSize == 32 && strings.Contains(want, field) {
			return strings.Replace(want, "9007199254740991", "2147483647", 1)
		}
	}
	return want
}

// oddFrames are unusual and allowed: each means the golden payload of its type.
var oddFrames = []struct{ typ, old, new string }{
	{"hello", `{"type":"hello","payload":{"viewer_id":"tab-1","v":1,"role":"viewer"}}`, `{"payload":{"role":"viewer","v":1,"viewer_id":"tab-1"},"type":"hello"}`},
	{"hello", `{"type"`, " \t\r\n{ \"type\""},
	{"hello", `"v":1`, ` "v" : 1 `},
	{"hello", `}}`, "} } \r\n"},
	{"hello", `{"type"`, `{"trace":{"id":[1,-2.5e+7,"\ud800",null,{"":{}}]},"trace":7,"type"`},
	{"hello", `"v"`, `"V":"x","role ":[],"ROLE":"agent","\ud800":0,"\ud800":1,"v"`},
	{"hello", `"role"`, `"\u0072ole"`},
	{"hello", `tab-1`, `\u0074ab\u002D1`},
	{"hello", `"type":"hello"`, `"type":"h\u0065llo"`},
	{"hello", `"v"`, `"link":null,"v"`},
	{"hello", `{"type"`, `{"x":` + deep(500) + `,"type"`},
	{"status", `gebäude`, `geb\u00e4ude`},
	{"status", `"ended":true`, `"ended":true,"prev":null`},
	{"status", `"epoch":"","first_seq":0,"head_seq":0,"ack_seq":0`, `"epoch":null,"first_seq":null,"ended":null`},
	{"error", `after 99`, `after \u0039\u0039`},
	{"ack_batch", `"viewer_id":"",`, ``},
	{"ack_batch", `"viewer_id":""`, `"viewer_id":null`},
	{"event_batch", `"ok \u2713\n"`, "\n\t\"ok \\u2713\\n\" "},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-11-23T23:34:05.120+01:00"`},
	{"event_batch", `G1sxbWJvbGT/`, `G1sxbWJvbGT\/`},
	{"event_batch", `G1sxbWJvbGT/`, `G1sx\nbWJv\r\nbGT\u002f`},
	{"event_batch", `"type":"tty"`, `"end":false,"type":"tty","data_base64 ":1`},
	{"replay_batch", `{"files":["a.go","b<c>.go"],"cost":1.5e-3,"next":null}`, "{\"files\" : [ \"a.go\",\n\"b<c>.go\"],\r\"cost\":\t1.5e-3 , \"next\": null }"},
	{"replay_batch", `"data":null,"end":true`, `"end":true,"data_base64":null,"data": null`},
	{"replay_batch", `"data":null`, `"data_base64":"","data":null`},
	{"error", `after 99 of \"build-42\"`, `after\u002099 of \u0022build-42\u0022`},
}

func TestUnmarshalAccepts(t *testing.T) {
	for _, c := range oddFrames {
		want, err := Unmarshal([]byte(wire(t, c.typ)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unmarshal(hostileFrame(t, c.typ, c.old, c.new))
		if err != nil || !cmp.Equal(got, want, sameWire) {
			t.Errorf("%s with %s: %v\n%s", c.typ, c.new, err, cmp.Diff(want, got, sameWire))
		}
	}
}

func TestUnmarshalText(t *testing.T) {
	for escaped, want := range map[string]string{
		`\ud83d\ude00`:              "\U0001f600",
		`a\ud83d\ude00b`:            "a\U0001f600b",
		`\uDBFF\uDFFF`:              "\U0010ffff",
		`\ufffd`:                    "\ufffd",
		`\"\\\/\b\f\n\r\t\u0000`:    "\"\\/\b\f\n\r\t\x00",
		`\\u0041`:                   `\u0041`,
		"\u2028\U0001f600\x7f12345": "\u2028\U0001f600\x7f12345",
	} {
		p, err := Unmarshal([]byte(`{"type":"error","payload":{"code":"x","message":"` + escaped + `"}}`))
		if err != nil || p.(*ErrorPayload).Message != want {
			t.Errorf("%s: %+v, %v", escaped, p, err)
		}
	}
}

// MaxSeq itself is a number like any other; nothing is above it.
func TestUnmarshalBounds(t *testing.T) {
	for _, c := range []struct {
		frame string
		ok    bool
	}{
		{batchOf(MaxSeq, MaxSeq, fmt.Sprintf(`{"seq":%d}`, uint64(MaxSeq))), true},
		{batchOf(1, maxBatchEvents, eventsOf(maxBatchEvents)), true},
		{batchOf(1, maxBatchEvents+1, eventsOf(maxBatchEvents+1)), false},
		{replayOf(maxReplayPage), true},
		{replayOf(maxReplayPage + 1), false},
		{statusOf(maxStatus), true},
		{statusOf(maxStatus + 1), false},
		{gapsOf(maxBatchGaps), true},
		{gapsOf(maxBatchGaps + 1), false},
		{batchOf(1, 1, `{"seq":1,"data":`+deep(jsontext.MaxDepth-1)+`}`), true},
		{batchOf(1, 1, `{"seq":1,"data":`+deep(jsontext.MaxDepth)+`}`), true},
		{batchOf(1, 1, `{"seq":1,"data":`+deep(jsontext.MaxDepth+1)+`}`), false},
		{batchOf(1, 1, `{"seq":1,"type":"`+strings.Repeat("t", maxID)+`"}`), true},
		{batchOf(1, 1, `{"seq":1,"type":"`+strings.Repeat("t", maxID+1)+`"}`), false},
	} {
		if _, err := Unmarshal([]byte(c.frame)); (err == nil) != c.ok {
			t.Errorf("%v from %.150s", err, c.frame)
		}
	}
}

func eventsOf(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`{"seq":%d}`, i+1)
	}
	return strings.Join(list, ",")
}

func replayOf(n int) string {
	return fmt.Sprintf(`{"type":"replay_batch","payload":{"session_id":"s","request_id":"r","epoch":"e","first_seq":1,`+
		`"last_seq":%d,"until_seq":%d,"events":[%s]}}`, n, n, eventsOf(n))
}

func statusOf(n int) string {
	return `{"type":"status","payload":{"link":"l","sessions":[` +
		strings.TrimSuffix(strings.Repeat(`{"session_id":"s"},`, n), ",") + `]}}`
}

func gapsOf(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`{"from":%d,"to":%d,"reason":"evicted"}`, i+1, i+1)
	}
	return fmt.Sprintf(`{"type":"event_batch","payload":{"session_id":"s","epoch":"e","link":"l","first_seq":1,"last_seq":%d,`+
		`"head_seq":%d,"gaps":[%s]}}`, n, n, strings.Join(list, ","))
}

// A hostile frame must not cost much more memory than it is long.
func TestUnmarshalCost(t *testing.T) {
	const size = 1 << 20
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	header := strings.TrimSuffix(batchOf(1, MaxSeq, ""), "]}}")
	for name, frame := range map[string]string{
		"events":        header + fill(`{},`) + `{}]}}`,
		"null events":   header + fill(`null,`) + `null]}}`,
		"gaps":          `{"type":"replay_batch","payload":{"gaps":[` + fill(`{},`) + `{}]}}`,
		"sessions":      `{"type":"status","payload":{"sessions":[` + fill(`{},`) + `{}]}}`,
		"unknown":       `{"type":"status","payload":{"x":[` + fill(`{},`) + `{}]}}`,
		"payload first": `{"payload":{"events":[` + fill(`{},`) + `{}]},"type":"event_batch"}`,
		"escaped keys":  `{"type":"hello","payload":{"x":{` + fill(`"\n":0,`) + `"":0}}}`,
		"nested":        `{"type":"hello","payload":` + fill(`[`),
		"white space":   header + `{"seq":1,"data":[` + fill(" ") + `]}]}}`,
		"long id":       `{"type":"hello","payload":{"viewer_id":"` + fill("x") + `"}}`,
	} {
		data := []byte(frame)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Unmarshal(data)
		runtime.ReadMemStats(&after)
		cost := after.TotalAlloc - before.TotalAlloc
		limit := uint64(256 << 10)
		if name == "long id" {
			limit += size // one copy
		}
		if err == nil || cost > limit {
			t.Errorf("%s: %d bytes allocated, error %v", name, cost, err)
		}
	}
}

// White space in the data is not kept alive by the events.
func TestUnmarshalArena(t *testing.T) {
	frame := batchOf(1, 2, `{"seq":1,"data":[1,`+strings.Repeat(" \n", 1000)+`2]},{"seq":2,"data":"x"}`)
	data := []byte(frame)
	got, err := Unmarshal(data)
	if err != nil {
		t.Fatal(err)
	}
	clear(data)
	events := got.(*EventBatchPayload).Events
	if string(events[0].Data) != "[1,2]" || string(events[1].Data) != `"x"` {
		t.Errorf("data %s and %s: white space kept, or the caller's buffer", events[0].Data, events[1].Data)
	}
	if cap(events[0].Data) != 5 {
		t.Errorf("an append to event 1 would write into event 2")
	}
}

func TestUnmarshalKeepsNothing(t *testing.T) {
	for _, want := range wireSamples() {
		line := []byte(wire(t, want.payloadType()))
		got, err := Unmarshal(line)
		for i := range line {
			line[i] = '#'
		}
		if err != nil || !cmp.Equal(got, want, sameWire) {
			t.Errorf("%v, changed with the buffer:\n%s", err, cmp.Diff(want, got, sameWire))
		}
	}
}

func TestUnmarshalAllocs(t *testing.T) {
	line, err := Marshal(benchBatch(64))
	if err != nil {
		t.Fatal(err)
	}
	got := testing.AllocsPerRun(100, func() {
		if _, err := Unmarshal(line); err != nil {
			t.Fatal(err)
		}
	})
	// Payload, events, their JSON and its chunk. A sync.Pool forgets things under the race
	// detector.
	if got > 4 && !raceEnabled {
		t.Errorf("%v allocations for 64 events", got)
	}
}

func TestAppendRefuses(t *testing.T) {
	event := func(e Event) Payload { e.Seq = 7; return &ReplayBatchPayload{Events: []Event{{Seq: 6}, e}} }
	for name, c := range map[string]struct {
		p    Payload
		want string
	}{
		"nil":           {nil, "gvstream: nil payload"},
		"nil pointer":   {(*StatusPayload)(nil), "gvstream: nil payload"},
		"other type":    {struct{ *HelloPayload }{}, "gvstream: a struct { *gvstream.HelloPayload } is no payload"},
		"no JSON":       {event(Event{Data: json.RawMessage(`{"a":}`)}), "event 7: gvstream: invalid event: data: byte 5: want a value"},
		"two values":    {event(Event{Data: json.RawMessage(`1 2`)}), "event 7: gvstream: invalid event: data: byte 2: something follows the value"},
		"white space":   {event(Event{Data: json.RawMessage(` `)}), "event 7: gvstream: invalid event: data: byte 1: want a value"},
		"no UTF-8":      {event(Event{Data: json.RawMessage("\"\xff\"")}), "event 7: gvstream: invalid event: data: not valid UTF-8"},
		"too deep":      {event(Event{Data: json.RawMessage(deep(jsontext.MaxDepth + 1))}), "event 7: gvstream: invalid event: data: byte 500: nested too deeply"},
		"data, bytes":   {event(Event{Data: json.RawMessage("1"), Bytes: []byte("x")}), "event 7: gvstream: invalid event"},
		"type":          {event(Event{Type: "a\nb"}), "event 7: gvstream: invalid event"},
		"year":          {event(Event{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}), "event 7: gvstream: invalid event"},
		"year in UTC":   {event(Event{Time: time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200))}), "event 7: gvstream: invalid event"},
		"year in UTC 2": {event(Event{Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 7200))}), "event 7: gvstream: invalid event"},
	} {
		got, err := Append([]byte("before"), c.p)
		if err == nil || err.Error() != c.want || string(got) != "before" {
			t.Errorf("%s: %q, %v\nwant %s", name, got, err, c.want)
		}
		if strings.HasPrefix(c.want, "event") && !errors.Is(err, ErrInvalidData) {
			t.Errorf("%s: %v is no ErrInvalidData", name, err)
		}
	}
}

// Append writes behind what is there, and on one line whatever Data contains.
func TestAppend(t *testing.T) {
	p := &EventBatchPayload{Events: []Event{{Data: json.RawMessage("\n[1,\r\n{\"a b\" :\t\"\\n\"} ]\n")}}}
	got, err := Append([]byte("{"), p)
	want := `{{"type":"event_batch","payload":{"session_id":"","viewer_id":"","epoch":"","link":"","first_seq":0,"last_seq":0,` +
		`"head_seq":0,"events":[{"seq":0,"data":[1,{"a b":"\n"}]}]}}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

// TestAppendTrusted: data that Publish took on trust is written as it is, whatever it is,
// and any other is checked.
func TestAppendTrusted(t *testing.T) {
	events := []Event{{Seq: 7, Data: json.RawMessage("[1, 2")}}
	for _, trusted := range []bool{false, true} {
		for _, p := range []Payload{
			&EventBatchPayload{Events: events, trusted: trusted}, &ReplayBatchPayload{Events: events, trusted: trusted},
		} {
			got, err := Marshal(p)
			if told := bytes.Contains(got, []byte(`"events":[{"seq":7,"data":[1, 2}]`)); told != trusted || (err == nil) != trusted {
				t.Errorf("trusted: %v: %s, %v", trusted, got, err)
			}
		}
	}
}

func TestDraftAppend(t *testing.T) {
	for _, c := range []struct {
		e          Event
		want, data string
	}{
		{Event{}, `}`, ``},
		{Event{End: true}, `,"end":true}`, ``},
		{Event{Type: `a"b\<ü`}, `,"type":"a\"b\\<ü"}`, ``},
		{Event{Time: wireTime.In(time.FixedZone("", 3600))}, `,"time":"2025-11-23T22:34:05.12Z"}`, ``},
		{Event{Data: json.RawMessage(` null `)}, `,"data":null}`, `null`},
		{Event{Data: json.RawMessage(`{ }`), End: true}, `,"data":{},"end":true}`, `{}`},
		{Event{Bytes: []byte("hi")}, `,"data_base64":"aGk="}`, `aGk=`},
		{Event{Data: json.RawMessage{}, Bytes: []byte{}}, `}`, ``},
	} {
		d := draft{ev: &c.e}
		if err := d.check(false); err != nil {
			t.Fatal(err)
		}
		out, data := d.appendTo([]byte("x"), MaxSeq)
		var s slot
		d.note(&s, MaxSeq, data)
		s.chunk, s.size = &chunk{b: out[1:]}, uint32(len(out)-1)
		if want := `x{"seq":9007199254740991` + c.want; string(out) != want || string(s.value()) != c.data {
			t.Errorf("%+v: %s, data %q", c.e, out, s.value())
		}
		if len(out)-1 != d.size() {
			t.Errorf("%+v: %d bytes, and said %d", c.e, len(out)-1, d.size())
		}
	}
}

// jsonDepth is how deep a valid JSON value nests.
func jsonDepth(src []byte) (deepest int) {
	depth, dec := 0, json.NewDecoder(bytes.NewReader(src))
	dec.UseNumber()
	for {
		token, err := dec.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
		deepest = max(deepest, depth)
	}
}

func benchBatch(n int) *EventBatchPayload {
	p := &EventBatchPayload{SessionID: "build-42", Epoch: wireEpoch, Link: "l7", FirstSeq: 1, LastSeq: uint64(n), HeadSeq: uint64(n)}
	for i := range n {
		p.Events = append(p.Events, Event{
			Seq: uint64(i + 1), Time: wireTime, Type: "stdout",
			Data: json.RawMessage(fmt.Sprintf(`{"line":"\u001b[32mok\u001b[0m  github.com/vibetools/gvstream/internal/thing%d 0.412s","n":%d}`, i, i)),
		})
	}
	return p
}

func BenchmarkAppend(b *testing.B) {
	fresh := benchBatch(64)
	kept := &eventBatch{EventBatchPayload: *fresh}
	if err := kept.load(); err != nil {
		b.Fatal(err)
	}
	for name, p := range map[string]Payload{"ack": wireSamples()[4], "64 events kept": kept, "64 events fresh": fresh} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf, _ := Append(nil, p)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				buf, _ = Append(buf[:0], p)
			}
		})
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	for name, p := range map[string]Payload{"ack": wireSamples()[4], "64 events": benchBatch(64)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			line, _ := Marshal(p)
			b.SetBytes(int64(len(line)))
			for b.Loop() {
				if _, err := Unmarshal(line); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// hostileFrames are frames that must be refused, each with the whole text of the
// error. A frame is the golden line of a type with old replaced by new, or new
// alone.
var hostileFrames = []struct{ typ, old, new, want string }{
	// the envelope
	{"", "", "", "byte 0: want an object"},
	{"", "", " ", "byte 1: want an object"},
	{"", "", "null", "byte 0: want an object"},
	{"", "", "true", "byte 0: want an object"},
	{"", "", "7", "byte 0: want an object"},
	{"", "", `"hello"`, "byte 0: want an object"},
	{"", "", "[]", "byte 0: want an object"},
	{"", "", "{", "byte 1: want a string"},
	{"", "", "{}", "byte 2: envelope without a type"},
	{"", "", `{"type":null}`, "byte 13: envelope without a type"},
	{"", "", `{"type":""}`, "byte 11: envelope without a type"},
	{"", "", `{"type":7,"payload":{}}`, "byte 8: type: want a string"},
	{"", "", `{"type":["hello"],"payload":{}}`, "byte 8: type: want a string"},
	{"", "", `{"type":"hello"}`, "byte 16: envelope without a payload"},
	{"", "", `{"type":"hello","payload":null}`, "byte 31: envelope without a payload"},
	{"", "", `{"type":"hello","payload":[]}`, "byte 26: want an object"},
	{"", "", `{"type":"hello","payload":"x"}`, "byte 26: want an object"},
	{"", "", `{"type":"hello","payload":{}`, "byte 28: want a comma or the end of an object"},
	{"", "", `{"type":"hello","payload":{}}}`, "byte 29: something follows the value"},
	{"", "", `{"type":"hello","payload":{}} x`, "byte 30: something follows the value"},
	{"", "", `{"payload":{"v":1}}`, "byte 19: envelope without a type"},
	{"", "", `{"payload":{"v":1.5},"type":"hello"}`, "byte 16: v: want an integer from 0 to 9007199254740991"},
	{"", "", `{"payload":{"v":1,"role":"boss"},"type":"hello"}`, `hello: unknown role "boss"`},
	{"", "", `{"type":"hello","type":"hello","payload":{}}`, "byte 23: type: given twice"},
	{"", "", `{"type":"hello","payload":{},"payload":{}}`, "byte 39: payload: given twice"},
	{"", "", `{"type":null,"type":"hello","payload":{}}`, "byte 20: type: given twice"},
	{"", "", `{"TYPE":"hello","payload":{}}`, "byte 29: envelope without a type"},
	{"", "", `{"Type":"hello","Payload":{}}`, "byte 29: envelope without a type"},
	{"", "", `{"type":"Hello","payload":{}}`, `unknown_type: unknown type "Hello"`},
	{"", "", `{"type":"nope","payload":{}}`, `unknown_type: unknown type "nope"`},
	{"", "", `{"type":"nope"}`, `unknown_type: unknown type "nope"`},
	{"", "", `{"type":"n\"\u0000\u00fc","payload":7}`, `unknown_type: unknown type "n\"\x00ü"`},
	{"", "", `{"payload":{"v":-1},"type":"nope"}`, `unknown_type: unknown type "nope"`},
	{"", "", `{"type":"nope","payload":{]}`, "byte 26: want a string"},
	{"", "", `{"type":"hel\ud800lo","payload":{}}`, "byte 8: type: half a surrogate pair"},
	{"", "", `{"type":"hello" "payload":{}}`, "byte 16: want a comma or the end of an object"},
	{"", "", `{"type":"hello",}`, "byte 16: want a string"},
	{"", "", `{"type":"hello",,}`, "byte 16: want a string"},
	{"", "", `{type:"hello"}`, "byte 1: want a string"},
	{"", "", "{'type':'hello'}", "byte 1: want a string"},
	{"", "", `{"type":"hello","payload":{}}{"type":"hello","payload":{}}`, "byte 29: something follows the value"},
	{"", "", "\ufeff" + `{"type":"hello","payload":{}}`, "byte 0: want an object"},
	{"", "", `{"type":"hello","x":[1,],"payload":{}}`, "byte 23: want a value"},
	{"", "", `{"type":"hello","x":nul,"payload":{}}`, "byte 20: want null"},
	{"", "", `{"type":"hello","x":+1,"payload":{}}`, "byte 20: want a value"},
	{"", "", `{"type":"hello","x":01,"payload":{}}`, "byte 21: want a comma or the end of an object"},
	{"", "", `{"type":"hello","x":1.,"payload":{}}`, "byte 22: want a digit"},
	{"", "", `{"type":"hello","x":.5,"payload":{}}`, "byte 20: want a value"},
	{"", "", `{"type":"hello","x":1e,"payload":{}}`, "byte 22: want a digit"},
	{"", "", `{"type":"hello","x":-,"payload":{}}`, "byte 21: want a value"},
	{"", "", `{"type":"hello","x":"\x","payload":{}}`, "byte 21: bad escape in a string"},
	{"", "", `{"type":"hello","x":"\u12g4","payload":{}}`, "byte 21: bad escape in a string"},
	{"", "", `{"type":"hello","x":"\u12`, "byte 21: bad escape in a string"},
	{"", "", "{\"type\":\"hello\",\"x\":\"a\tb\",\"payload\":{}}", "byte 22: control character in a string"},
	{"", "", `{"type":"hello","x":"a`, "byte 22: string without an end"},
	{"", "", `{"type":"hello","x":NaN,"payload":{}}`, "byte 20: want a value"},
	{"", "", `{"type":"hello","x":/**/1,"payload":{}}`, "byte 20: want a value"},
	{"", "", `{"type":"hello","x":{"a" 1},"payload":{}}`, "byte 25: want a colon"},
	{"", "", `{"type":"hello","x":{"a":1 "b":2},"payload":{}}`, "byte 27: want a comma or the end of an object"},
	{"", "", `{"type":"hello","x":[1 2],"payload":{}}`, "byte 23: want a comma or the end of an array"},
	{"", "", `{"type":"hello","x":{1:2},"payload":{}}`, "byte 21: want a string"},
	{"", "", "{\"type\":\"hello\u0000\",\"payload\":{}}", "byte 14: control character in a string"},

	// numbers
	{"ack_batch", `":64`, `":-1`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":-0`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":+1`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":1.5`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":1.0`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":1e3`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":1E3`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":064`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":00`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":9007199254740992`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":18446744073709551615`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":18446744073709551616`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":99999999999999999999`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":5x`, "byte 132: want a comma or the end of an object"},
	{"ack_batch", `":64`, `":"64"`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":true`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":[64]`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":{}`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"ack_batch", `":64`, `":0x40`, "byte 132: want a comma or the end of an object"},
	{"ack_batch", `":64`, `":6 4`, "byte 133: want a comma or the end of an object"},
	{"ack_batch", `":64`, `":`, "byte 131: up_to_seq: want an integer from 0 to 9007199254740991"},
	{"hello", `"v":1`, `"v":-1`, "byte 51: v: want an integer from 0 to 9007199254740991"},
	{"hello", `"v":1`, `"v":1.0`, "byte 51: v: want an integer from 0 to 9007199254740991"},
	{"hello", `"v":1`, `"v":9007199254740992`, "byte 51: v: want an integer from 0 to 9007199254740991"},
	{"hello", `"v":1`, `"v":"1"`, "byte 51: v: want an integer from 0 to 9007199254740991"},
	{"welcome", "256", "-1", "byte 76: window: want an integer from 0 to 9007199254740991"},
	{"replay_request", "500", "-1", "byte 173: limit: want an integer from 0 to 9007199254740991"},
	{"replay_request", "500", "1e2", "byte 173: limit: want an integer from 0 to 9007199254740991"},
	{"status", `"first_seq":12`, `"first_seq":-12`, "byte 153: first_seq: want an integer from 0 to 9007199254740992"},
	{"error", `"seq":99`, `"seq":9.9`, "byte 208: seq: want an integer from 0 to 9007199254740991"},
	{"event_batch", `"seq":63`, `"seq":63.0`, "byte 181: seq: want an integer from 0 to 9007199254740991"},
	{"replay_batch", `"from":41`, `"from":"41"`, "byte 392: from: want an integer from 0 to 9007199254740991"},

	// text, ids and names of fields
	{"ack_batch", `"session_id":"build-42"`, `"session_id":""`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":null`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":7`, "byte 44: session_id: want a string"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":{}`, "byte 44: session_id: want a string"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"a\u0000b"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"a\nb"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"\u007f"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"\u0085"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"\ud800"`, "byte 44: session_id: half a surrogate pair"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"\udc00\ud800"`, "byte 44: session_id: half a surrogate pair"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"\ud800\u0041"`, "byte 44: session_id: half a surrogate pair"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"\ud800x"`, "byte 44: session_id: half a surrogate pair"},
	{"ack_batch", `"session_id":"build-42"`, "\"session_id\":\"a\nb\"", "byte 46: control character in a string"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"` + strings.Repeat("a", 129) + `"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, "\"session_id\":\"a\xffb\"", "frame: not valid UTF-8"},
	{"ack_batch", `"session_id":"build-42"`, "\"session_id\":\"\xed\xa0\x80\"", "frame: not valid UTF-8"},
	{"ack_batch", `"session_id":"build-42"`, "\"session_id\":\"\xc0\xaf\"", "frame: not valid UTF-8"},
	{"hello", `"v"`, "\"\xff\":0,\"v\"", "frame: not valid UTF-8"},
	{"ack_batch", `"session_id"`, `"SESSION_ID"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id"`, `"Session_id"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id"`, `"ſession_id"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id"`, `"session_id "`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id"`, `"sessionId"`, "ack_batch: bad session_id"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"build-42","session_id":"build-42"`, "byte 68: session_id: given twice"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"build-42","session\u005fid":"other"`, "byte 73: session_id: given twice"},
	{"ack_batch", `"session_id":"build-42"`, `"session_id":"build-42","session_id":null`, "byte 68: session_id: given twice"},
	{"ack_batch", `"nack":true`, `"nack":1`, "byte 141: nack: want true or false"},
	{"ack_batch", `"nack":true`, `"nack":"true"`, "byte 141: nack: want true or false"},
	{"ack_batch", `"nack":true`, `"nack":tru`, "byte 141: want true"},
	{"ack_batch", `"nack":true`, `"nack":True`, "byte 141: nack: want true or false"},
	{"ack_batch", `"epoch":"01jdqz7c3k9w5v8x2m4n6p0rst"`, `"epoch":""`, "ack_batch: bad epoch"},
	{"ack_batch", "01jdqz7c3k9w5v8x2m4n6p0rst", "UPPER", "ack_batch: bad epoch"},
	{"ack_batch", "01jdqz7c3k9w5v8x2m4n6p0rst", strings.Repeat("a", 65), "ack_batch: bad epoch"},
	{"ack_batch", "01jdqz7c3k9w5v8x2m4n6p0rst", "a/b", "ack_batch: bad epoch"},
	{"ack_batch", `"link":"l7",`, "", "ack_batch: bad link"},
	{"ack_batch", `"l7"`, `"` + strings.Repeat("a", 129) + `"`, "ack_batch: bad link"},
	{"ack_batch", `"viewer_id":""`, `"viewer_id":"` + strings.Repeat("a", 129) + `"`, "ack_batch: bad viewer_id"},
	{"hello", `"viewer"`, `"Viewer"`, `hello: unknown role "Viewer"`},
	{"hello", `"tab-1"`, `"tab\t1"`, "hello: bad viewer_id"},
	{"welcome", `"l7"`, `""`, "welcome: bad link"},
	{"welcome", "tab-1", `\u0001`, "welcome: bad viewer_id"},

	// status
	{"status", `"sessions":[`, `"sessions":[` + strings.Repeat("{},", 257), "byte 847: sessions: too many"},
	{"status", `"sessions":[`, `"sessions":[null,`, "status: bad session_id"},
	{"status", `"sessions":[`, `"sessions":[7,`, "byte 79: want an object"},
	{"status", `"sessions":[`, `"sessions":{"0":[`, "byte 78: want an array"},
	{"status", `"ack_seq":60`, `"ack_seq":65`, "status: numbers out of order"},
	{"status", `"first_seq":12`, `"first_seq":66`, "status: numbers out of order"},
	{"status", `"ack_seq":0`, `"ack_seq":1`, "status: numbers without an epoch"},
	{"status", `"01jdq"`, `"01 jdq"`, "status: bad epoch"},
	{"status", `"session_id":"build-42",`, "", "status: bad session_id"},
	{"status", `"ended":true`, `"ended":true,"ended":true`, "byte 204: ended: given twice"},
	{"status", `"l7"`, `""`, "status: bad link"},

	// batches
	{"event_batch", `"seq":63`, `"seq":62`, "batch: nothing tiles number 63"},
	{"event_batch", `"seq":63`, `"seq":64`, "batch: nothing tiles number 63"},
	{"event_batch", `"seq":64`, `"seq":65`, "batch: nothing tiles number 64"},
	{"event_batch", `"seq":63`, `"seq":0`, "batch: nothing tiles number 63"},
	{"event_batch", `"seq":63,`, "", "batch: nothing tiles number 63"},
	{"event_batch", `"first_seq":61`, `"first_seq":0`, "batch: numbers start at 1 and end at 9007199254740991"},
	{"event_batch", `"first_seq":61`, `"first_seq":60`, "batch: nothing tiles number 60"},
	{"event_batch", `"first_seq":61`, `"first_seq":65`, "event_batch: empty"},
	{"event_batch", `"last_seq":64`, `"last_seq":65`, "batch: ends at 64, not at last_seq 65"},
	{"event_batch", `"last_seq":64`, `"last_seq":63`, "batch: ends at 64, not at last_seq 63"},
	{"event_batch", `"last_seq":64`, `"last_seq":71`, "event_batch: head 70 before last 71, or too large"},
	{"", "", batchOf(4, 5, `{"seq":5},{"seq":4}`), "batch: nothing tiles number 4"},
	{"", "", batchOf(4, 5, `{"seq":4},{"seq":4},{"seq":5}`), "batch: nothing tiles number 5"},
	{"", "", batchOf(4, 5, `{"seq":4},{"seq":6}`), "batch: nothing tiles number 5"},
	{"", "", batchOf(4, 5, `{"seq":4}`), "batch: ends at 4, not at last_seq 5"},
	{"event_batch", `"to":62`, `"to":60`, "batch: nothing tiles number 61"},
	{"event_batch", `"to":62`, `"to":63`, "batch: nothing tiles number 64"},
	{"event_batch", `"to":62`, `"to":61`, "batch: nothing tiles number 62"},
	{"event_batch", `"to":62`, `"to":9007199254740991`, "batch: nothing tiles number 61"},
	{"event_batch", `"from":61`, `"from":62`, "batch: nothing tiles number 61"},
	{"event_batch", `"dropped"`, `""`, "batch: gap at 61: bad reason"},
	{"event_batch", `"dropped"`, `"Dropped"`, "batch: gap at 61: bad reason"},
	{"event_batch", `"dropped"`, `"a long reason that says too much"`, "batch: gap at 61: bad reason"},
	{"event_batch", `"gaps":[`, `"gaps":[null,`, "batch: nothing tiles number 61"},
	{"event_batch", `"gaps":[`, `"gaps":[` + strings.Repeat("{},", 513), "byte 1893: gaps: too many"},
	{"event_batch", `"events":[`, `"events":[` + strings.Repeat("{},", 257), "byte 942: events: too many"},
	{"replay_batch", `"events":[`, `"events":[` + strings.Repeat("{},", 101), "byte 519: events: too many"},
	{"event_batch", `"events":[`, `"events":[null,`, "batch: nothing tiles number 63"},
	{"event_batch", `"events":[`, `"events":[{},`, "batch: nothing tiles number 63"},
	{"event_batch", `"events":[`, `"events":[[],`, "byte 174: want an object"},
	{"event_batch", `"events":[`, `"events":[],"events":[`, "byte 185: events: given twice"},
	{"event_batch", `"events":[`, `"events":[,`, "byte 174: want an object"},
	{"event_batch", `"events":[`, `"events":{"a":[`, "byte 173: want an array"},
	{"event_batch", `"seq":63`, `"seq":63,"seq":63`, "byte 190: seq: given twice"},
	{"event_batch", `"type":"stdout"`, `"type":"stdout","type":"stdout"`, "byte 240: type: given twice"},
	{"event_batch", `"type":"stdout"`, `"type":7`, "byte 224: type: want a string"},
	{"event_batch", `"stdout"`, `"` + strings.Repeat("a", 129) + `"`, "batch: event 63: bad type, data or time"},
	{"event_batch", `"stdout"`, `"a\u0007"`, "batch: event 63: bad type, data or time"},
	{"event_batch", `"data":"ok`, `"data":"","data":"ok`, "byte 250: data: given twice"},
	{"event_batch", `"data":"ok`, `"data_base64":"AA==","data":"ok`, "batch: event 63: bad type, data or time"},
	{"event_batch", `"data":`, `"data":,"x":`, "byte 240: want a value"},
	{"event_batch", `"data":`, `"data":tru,"x":`, "byte 240: want true"},
	{"event_batch", `"data":`, `"data":` + deep(501) + `,"x":`, "byte 740: nested too deeply"},
	{"event_batch", `"G1sxbWJvbGT/"`, `"G1s"`, "event 64: data_base64: not base64"},
	{"event_batch", `"G1sxbWJvbGT/"`, `"G1s*"`, "event 64: data_base64: not base64"},
	{"event_batch", `"G1sxbWJvbGT/"`, `"G1sx===="`, "event 64: data_base64: not base64"},
	{"event_batch", `"G1sxbWJvbGT/"`, `"\ud800"`, "event 64: data_base64: not base64"},
	{"event_batch", `"G1sxbWJvbGT/"`, "7", "byte 332: want a string"},
	{"event_batch", `"G1sxbWJvbGT/"`, `null,"data_base64":"AA=="`, "byte 351: data_base64: given twice"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-11-23"`, "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-11-23T22:34:05"`, "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-11-23t22:34:05z"`, "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-13-01T00:00:00Z"`, "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-11-23T24:00:00Z"`, "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"2025-11-23T22:34:05\u005a"`, "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `[1}`, "byte 193: want a comma or the end of an array"},
	{"event_batch", `2025-11-23T22:34:05.12Z`, strings.Repeat("2", 1000), "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, "1763937245", "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, "{}", "byte 191: time: want a time as of RFC 3339"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, "nope", "byte 191: want null"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"0000-01-01T00:00:00+01:00"`, "batch: event 63: bad type, data or time"},
	{"event_batch", `"2025-11-23T22:34:05.12Z"`, `"9999-12-31T23:59:59-01:00"`, "batch: event 63: bad type, data or time"},
	{"event_batch", `"type":"stdout"`, `"end":true`, "batch: something follows the end 63"},
	{"event_batch", `"type":"stdout"`, `"end":"yes"`, "byte 223: end: want true or false"},
	{"replay_batch", `"first_seq":41`, `"first_seq":0`, "replay_batch: ends before it starts"},
	{"replay_batch", `"last_seq":91`, `"last_seq":39`, "replay_batch: ends before it starts"},
	{"replay_batch", `"until_seq":91`, `"until_seq":90`, "replay_batch: numbers out of order"},
	{"replay_batch", `"request_id":"r3",`, "", "replay_batch: bad request_id"},
	{"replay_batch", `"available_from":90`, `"available_from":9007199254740993`, "byte 194: available_from: want an integer from 0 to 9007199254740992"},
	{"replay_batch", `"viewer_id":"tab-1"`, `"viewer_id":"\u0000"`, "replay_batch: bad viewer_id"},
	{"replay_batch", "build-42", "", "replay_batch: bad session_id"},
	{"replay_batch", "01jdqz7c3k9w5v8x2m4n6p0rst", "-A", "replay_batch: bad epoch"},

	// the rest
	{"watch", "01jdqz7c3k9w5v8x2m4n6p0rst", "", "watch: bad position"},
	{"watch", `"session_id":"build-42"`, `"session_id":""`, "watch: bad session_id"},
	{"watch", "tab-1", `\u009f`, "watch: bad viewer_id"},
	{"watch", `"stop":true`, `"stop":0`, "byte 130: stop: want true or false"},
	{"replay_request", `"until_seq":91`, `"until_seq":39`, "replay_request: until 39 before after 40, or too large"},
	{"replay_request", `"r3"`, `""`, "replay_request: bad request_id"},
	{"replay_request", "01jdqz7c3k9w5v8x2m4n6p0rst", "", "replay_request: bad position"},
	{"replay_request", "build-42", "", "replay_request: bad session_id"},
	{"replay_request", "tab-1", `\u0000`, "replay_request: bad viewer_id"},
	{"error", `"replay_ahead"`, `""`, "error: bad code"},
	{"error", `"code":"replay_ahead",`, "", "error: bad code"},
	{"error", "after 99", strings.Repeat("a", 257), "error: bad message"},
	{"error", `"r3"`, `"\u0000"`, "error: bad request_id"},
	{"error", "01jdqz7c3k9w5v8x2m4n6p0rst", "E", "error: bad epoch"},
	{"error", "build-42", `\u0000`, "error: bad session_id"},
	{"error", "tab-1", `\u0000`, "error: bad viewer_id"},
	{"error", `"retryable":true`, `"retryable":null,"retryable":true`, "byte 159: retryable: given twice"},

	// depth
	{"", "", `{"type":"hello","x":` + deep(501) + `,"payload":{}}`, "byte 520: nested too deeply"},
	{"", "", strings.Repeat(`{"x":`, 501), "byte 2505: want a value"},
	{"", "", `{"type":"hello","x":` + deep(10000) + `,"payload":{}}`, "byte 520: nested too deeply"},
	{"", "", strings.Repeat(`{"x":`, 10000), "byte 2505: nested too deeply"},
}

// deep is an array nested n deep.
func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// batchOf is an event batch from first to last with these events.
func batchOf(first, last uint64, events string) string {
	return fmt.Sprintf(`{"type":"event_batch","payload":{"session_id":"s","viewer_id":"","epoch":"e","link":"l",`+
		`"first_seq":%d,"last_seq":%d,"head_seq":%d,"events":[%s]}}`, first, last, last, events)
}

// hostileFrame is the frame of one row.
func hostileFrame(t testing.TB, typ, old, new string) []byte {
	t.Helper()
	if typ == "" {
		return []byte(new)
	}
	line := wire(t, typ)
	if !strings.Contains(line, old) {
		t.Fatalf("no %s in %s", old, line)
	}
	return []byte(strings.Replace(line, old, new, 1))
}

// A decoder that had read no time yet took NULs for the one it remembered: the frame
// was no JSON, and yet a hub kept its bytes and sent them on to viewers.
func TestTimeOfNothing(t *testing.T) {
	frame := batchOf(1, 1, `{"seq":1,"time":"`+strings.Repeat("\x00", len("2006-01-02T15:04:05"))+`Z"}`)
	d := &decoder{Scanner: jsontext.Scanner{Src: []byte(frame)}}
	if p, _ := d.envelope(); d.Err == nil {
		line, err := Marshal(p)
		t.Errorf("taken, and told as %q, %v", line, err)
	}
}

// More than slots can tell is refused before it is looked at.
func TestTooMuchForSlots(t *testing.T) {
	large := make([]byte, 32<<20)
	events := make([]Event, 60) // 2.7 GB in base64
	for i := range events {
		events[i] = Event{Seq: uint64(i + 1), Bytes: large}
	}
	if _, err := newPage(1, 60, events, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("encoded: %v", err)
	}
	most := maxFrame
	if raceEnabled || most == math.MaxInt { // the detector would touch all of the frame
		return
	}
	if _, err := Unmarshal(make([]byte, most+1)); err == nil || err.Error() != fmt.Sprintf("gvstream: malformed: frame: more than %d bytes", most) {
		t.Errorf("decoded: %v", err)
	}
}
