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
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/testenv"
)

const wireEpoch = "01jdqz7c3k9w5v8x2m4n6p0rst"

var wireTime = time.Date(2025, 11, 23, 22, 34, 5, 120e6, time.UTC)

// sameWire compares payloads as they are encoded.
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
		&WelcomePayload{ViewerID: "tab-1", V: 1, Link: "l7", WindowEvents: 256, WindowBytes: 1 << 20},
		&StatusPayload{Link: "l7", More: true, Sessions: []SessionStatus{
			{SessionID: "build-42", Epoch: wireEpoch, FirstSeq: 12, HeadSeq: 64, AckSeq: 60, Ended: true, Forgotten: true, PrevEpoch: "01jdq", PrevSeq: 99},
			{SessionID: "gebäude"},
		}},
		&EventBatchPayload{
			SessionID: "build-42", Epoch: wireEpoch, Link: "l7", FirstSeq: 61, LastSeq: 64, HeadSeq: 70,
			Events: events, Gaps: []Gap{{61, 62, ReasonDropped}},
		},
		&AckBatchPayload{SessionID: "build-42", Epoch: wireEpoch, Link: "l7", UpToSeq: 64, Nack: true, Full: true,
			WindowEvents: 256, WindowBytes: 1 << 20, ReadSeq: 63, Acks: []SessionAck{{
				SessionID: "build-43", Epoch: "01jdqz7c3k9w5v8x2m4n6p0rsv", UpToSeq: 12, Nack: true, Full: true,
				WindowEvents: 1024, WindowBytes: 256 << 10, ReadSeq: 11,
			}}},
		&WatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: wireEpoch, AfterSeq: 40, Stop: true, WindowEvents: 256, WindowBytes: 1 << 20},
		&ReplayRequestPayload{SessionID: "build-42", ViewerID: "tab-1", RequestID: "r3", Epoch: wireEpoch, AfterSeq: 40, UntilSeq: 91, Limit: 500},
		&ReplayBatchPayload{
			SessionID: "build-42", ViewerID: "tab-1", RequestID: "r3", Epoch: wireEpoch, FirstSeq: 41, LastSeq: 91,
			UntilSeq: 91, AvailableFrom: 81, Done: true, Events: last, Gaps: []Gap{{41, 80, ReasonEvicted}, {81, 89, ReasonRejected}},
		},
		&ErrorPayload{
			SessionID: "build-42", ViewerID: "tab-1", Code: CodeReplayBusy, Message: "after 99 of \"build-42\"",
			Retryable: true, RequestID: "r3", Epoch: wireEpoch, Seq: 99, ToSeq: 120,
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
	if string(env.Payload) == "null" { // as good as absent
		return nil, errors.New("no payload")
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
		&ErrorPayload{SessionID: odd, Code: Code(odd), Message: odd},
		&WelcomePayload{V: -3, WindowEvents: -1},
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

// A frame of the table is refused with the whole text of the error, and its answer is
// one that a peer may send. What is wrong with it is found whether or not bytes are
// borrowed.
func TestUnmarshalRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range badFrames(t) {
		p, err := Unmarshal([]byte(c.frame))
		checkRefusal(t, p, err)
		checkBorrowed(t, []byte(c.frame), p, err)
		want := *c.want
		if c.loose {
			want.Message = err.(*ProtocolError).Message
		}
		if got := err.Error(); got != want.protocolError().Error() {
			t.Errorf("%s: got %s\nwant %s\nfrom %.200s", c.name, got, want.protocolError(), c.frame)
		}
	}
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
		got, err := Unmarshal(oddFrame(t, c.typ, c.old, c.new))
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

// Values just at a bound are accepted: MaxSeq itself is a number like any other. The
// values just beyond are next to them in the table.
func TestUnmarshalBounds(t *testing.T) {
	taken := 0
	for _, c := range badCases(t, "any") {
		if !c.taken {
			continue
		}
		taken++
		p, err := Unmarshal([]byte(c.frame))
		if err != nil {
			t.Errorf("%s: %v from %.200s", c.name, err, c.frame)
		}
		checkBorrowed(t, []byte(c.frame), p, err)
	}
	if taken < 60 {
		t.Errorf("%d cases", taken)
	}
}

// A hostile frame must not cost much more memory than its length.
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
		"escaped keys":  `{"type":"hello","payload":{"v":1,"x":{` + fill(`"\n":0,`) + `"":0}}}`,
		"nested":        `{"type":"hello","payload":` + fill(`[`),
		"white space":   header + `{"seq":1,"data":[` + fill(" ") + `]}]}}`,
		"long id":       `{"type":"hello","payload":{"v":1,"viewer_id":"` + fill("x") + `"}}`,
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
	if got > 4 && !testenv.RaceEnabled {
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
		"data, bytes":   {event(Event{Data: json.RawMessage("1"), Bytes: []byte("x")}), "event 7: gvstream: invalid event: 1 bytes of Data and 1 of Bytes, at most one of them"},
		"type":          {event(Event{Type: "a\nb"}), "event 7: gvstream: invalid event: type: control character U+000A at byte 1"},
		"year":          {event(Event{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}), "event 7: gvstream: invalid event: time: year 10000, not one of 0 to 9999"},
		"year in UTC":   {event(Event{Time: time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -7200))}), "event 7: gvstream: invalid event: time: year 10000, not one of 0 to 9999"},
		"year in UTC 2": {event(Event{Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 7200))}), "event 7: gvstream: invalid event: time: year -1, not one of 0 to 9999"},
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

// Append writes after the existing bytes, and on one line whatever Data contains.
func TestAppend(t *testing.T) {
	p := &EventBatchPayload{Events: []Event{{Data: json.RawMessage("\n[1,\r\n{\"a b\" :\t\"\\n\"} ]\n")}}}
	got, err := Append([]byte("{"), p)
	want := `{{"type":"event_batch","payload":{"session_id":"","viewer_id":"","epoch":"","link":"","first_seq":0,"last_seq":0,` +
		`"head_seq":0,"events":[{"seq":0,"data":[1,{"a b":"\n"}]}]}}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

// TestAppendTrusted: data that Publish trusted is written as it is, whatever it is. Other
// events that a caller puts into a copy of the payload are checked: without that, their
// data could break out of its event.
func TestAppendTrusted(t *testing.T) {
	events := []Event{{Seq: 7, Data: []byte("[1, 2")}}
	for name, test := range map[string]struct {
		trusted *Event
		ok      bool
	}{
		"trusted":      {&events[0], true},
		"not trusted":  {nil, false},
		"other events": {&Event{Seq: 7}, false},
	} {
		for _, p := range []Payload{
			&EventBatchPayload{Events: events, trusted: test.trusted}, &ReplayBatchPayload{Events: events, trusted: test.trusted},
		} {
			got, err := Append(nil, p)
			if told := bytes.Contains(got, []byte(`"events":[{"seq":7,"data":[1, 2}]`)); told != test.ok || (err == nil) != test.ok {
				t.Errorf("%s: %s, %v", name, got, err)
			}
		}
	}
}

func TestPreparedEventAppend(t *testing.T) {
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
		d := preparedEvent{ev: &c.e}
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

// deep is an array nested n deep.
func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// batchOf is an event batch from first to last with these events.
func batchOf(first, last uint64, events string) string {
	return fmt.Sprintf(`{"type":"event_batch","payload":{"session_id":"s","viewer_id":"","epoch":"e","link":"l",`+
		`"first_seq":%d,"last_seq":%d,"head_seq":%d,"events":[%s]}}`, first, last, last, events)
}

// oddFrame is the golden frame of a type with one text replaced.
func oddFrame(t testing.TB, typ, old, new string) []byte {
	t.Helper()
	line := wire(t, typ)
	if !strings.Contains(line, old) {
		t.Fatalf("no %s in %s", old, line)
	}
	return []byte(strings.Replace(line, old, new, 1))
}

// A decoder that had not read a time yet mistook NULs for the time it remembered: the
// frame was not JSON, and yet a hub kept its bytes and sent them on to viewers.
func TestTimeOfNothing(t *testing.T) {
	frame := batchOf(1, 1, `{"seq":1,"time":"`+strings.Repeat("\x00", len("2006-01-02T15:04:05"))+`Z"}`)
	d := &decoder{Scanner: jsontext.Scanner{Src: []byte(frame)}}
	if p, _ := d.envelope(); d.Err == nil {
		line, err := Marshal(p)
		t.Errorf("taken, and told as %q, %v", line, err)
	}
}

// Sizes that slots cannot represent are refused before anything is read.
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
	if testenv.RaceEnabled || most == math.MaxInt { // the detector would touch all of the frame
		return
	}
	if _, err := Unmarshal(make([]byte, most+1)); err == nil || err.Error() != fmt.Sprintf("gvstream: malformed: frame: more than %d bytes", most) {
		t.Errorf("decoded: %v", err)
	}
}

// checkBorrowed: a frame whose bytes are borrowed by a machine means the same as one
// that Unmarshal has copied; it is encoded again in the same way, and what a machine
// keeps of it outlives the frame.
func checkBorrowed(t *testing.T, frame []byte, want Payload, wantErr error) {
	t.Helper()
	frame = bytes.Clone(frame)
	d := new(decoder)
	p, err := d.decode(frame)
	if errorText(asError(err)) != errorText(wantErr) {
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
		pg.detach()
	}
	clear(frame)
	clear(d.slots)
	if p = toPayload(p); again != nil || !equalWire(p, want) {
		t.Fatalf("kept: %v\n%s", again, cmp.Diff(want, p, sameWire))
	}
}

// The fast path decodes a frame if and only if all its events are written as we write
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
		{`{"seq":1,"data_base64":"AAF="}`, false},               // unused bits that are not zero
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
