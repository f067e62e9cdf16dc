package gvstream

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The table of bad inputs, testdata/refused: payloads that peers must not send, and the
// answers to them. Its README.md says how a case is written, and in what state each
// link is. TestUnmarshalRefuses and TestUnmarshalBounds read it for the decoder,
// TestPayloadBounds for Handle with another codec, hostile_test.go for each kind of
// link, and the fuzz targets as seeds. Payloads that no frame can express are in
// badPayloads, below.

// A badCase is one case of the table.
type badCase struct {
	name   string
	to     string                  // the kind of link; "any": all of them
	before []string                // good frames that are sent first
	frame  string                  // with its variables, unless the case is for any link
	say    func(v *victim) Payload // from badPayloads: passed to Handle, instead of a frame
	want   *ErrorPayload           // the refusal; nil: there is none
	loose  bool                    // only the code of the refusal is given
	stale  bool                    // it is ignored, and counted as stale
	taken  bool                    // it is just at a bound, and is good
	says   []string                // what the link sends after the refusal
	ends   bool                    // the link ends
}

var (
	// An edit is a golden frame of testdata/wire in which one text is replaced.
	editForm = regexp.MustCompile(`(?s)^([a-z_]+) with (.+?) ->(?: (.*))?$`)
	// A piece is a text repeated, a range of numbers, or bytes.
	pieceForm = regexp.MustCompile(`(?s)«(?:0x([0-9a-f]+)|(\d+)(?:\.\.(\d+))?\*([^»]*))»`)
	// A list stands for each of its values in turn.
	listForm = regexp.MustCompile(`@[a-z]+`)
)

// badCases are the cases of the table for a kind of link, or those for "any".
func badCases(t testing.TB, to string) (out []badCase) {
	t.Helper()
	all, err := readCases()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.to == to {
			out = append(out, c)
		}
	}
	return out
}

// badFrames are the frames that no link accepts.
func badFrames(t testing.TB) (out []badCase) {
	t.Helper()
	for _, c := range badCases(t, "any") {
		if !c.taken {
			out = append(out, c)
		}
	}
	return out
}

var readCases = sync.OnceValues(func() (all []badCase, err error) {
	files, err := filepath.Glob(filepath.Join("testdata", "refused", "*.txt"))
	if err != nil {
		return nil, err
	}
	lists := make(map[string][]string)
	names, frames := make(map[string]bool), make(map[string]string)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for block := range strings.SplitSeq(string(text), "\n\n") {
			c, ok, err := readBlock(block, lists)
			if err != nil {
				return nil, fmt.Errorf("%s: %w in\n%s", file, err, block)
			}
			if !ok {
				continue
			}
			for _, c := range c.spread(lists) {
				frame := c.to + strings.Join(c.before, "") + c.frame
				was, twice := frames[frame]
				if twice && c.loose { // of a list, and stands by itself as well
					continue
				}
				if twice || names[c.to+c.name] {
					return nil, fmt.Errorf("%s: %s, %s: stands there twice, also as %s", file, c.to, c.name, was)
				}
				names[c.to+c.name], frames[frame] = true, c.name
				all = append(all, c)
			}
		}
	}
	return all, nil
})

// readBlock reads a case, or into lists what a block without one defines.
func readBlock(block string, lists map[string][]string) (c badCase, ok bool, err error) {
	for line := range strings.Lines(block) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, values, isList := strings.Cut(line, " = "); isList && listForm.FindString(name) == name {
			for value := range strings.FieldsSeq(values) {
				value, err := expand(value)
				if err != nil {
					return c, false, err
				}
				lists[name] = append(lists[name], value)
			}
			continue
		}
		if c.name == "" {
			c.name = line
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch kind, isFrame := strings.CutPrefix(key, "to "); {
		case isFrame:
			c.to = kind
			c.frame, err = expand(value)
		case key == "before":
			c.before = append(c.before, value)
		case key == "refused":
			c.want, c.loose, err = readRefusal(value)
		case key == "says":
			c.says = append(c.says, value)
		case line == "the link ends":
			c.ends = true
		case line == "stale":
			c.stale = true
		case line == "taken":
			c.taken = true
		case line == "ignored":
		default:
			return c, false, fmt.Errorf("no line of a case: %q", line)
		}
		if err != nil {
			return c, false, err
		}
	}
	if c.name == "" {
		return c, false, nil
	}
	if !kindOfLink(c.to) {
		return c, false, fmt.Errorf("no kind of link: %q", c.to)
	}
	return c, true, nil
}

func kindOfLink(to string) bool {
	for _, kind := range victims {
		if kind.name == to {
			return true
		}
	}
	return to == "any"
}

// readRefusal reads the error that a peer gets: the code, the other fields as JSON, and
// the text for people.
func readRefusal(s string) (*ErrorPayload, bool, error) {
	s, err := expand(s)
	if err != nil {
		return nil, false, err
	}
	p := new(ErrorPayload)
	n := strings.IndexAny(s+":", " :")
	code, rest := s[:n], s[n:]
	if strings.HasPrefix(rest, " {") {
		d := json.NewDecoder(strings.NewReader(rest))
		if err := d.Decode(p); err != nil {
			return nil, false, err
		}
		rest = rest[d.InputOffset():]
	}
	p.Code = Code(code)
	if rest == "" {
		return p, true, nil
	}
	text, ok := strings.CutPrefix(rest, ": ")
	if !ok {
		return nil, false, fmt.Errorf("refusal %q", s)
	}
	if strings.HasPrefix(text, `"`) {
		if err := json.Unmarshal([]byte(text), &text); err != nil {
			return nil, false, err
		}
	}
	p.Message = wantOf(text)
	return p, false, nil
}

// wantOf is the text of an error; the table was written where an int has 64 bits.
func wantOf(want string) string {
	for _, field := range []string{" v: ", " window: ", " limit: "} {
		if strconv.IntSize == 32 && strings.Contains(want, field) {
			return strings.Replace(want, "9007199254740991", "2147483647", 1)
		}
	}
	return want
}

// expand expands the abbreviations in a frame.
func expand(s string) (out string, err error) {
	out = pieceForm.ReplaceAllStringFunc(s, func(piece string) string {
		m := pieceForm.FindStringSubmatch(piece)
		if m[1] != "" {
			raw, bad := hex.DecodeString(m[1])
			err = errors.Join(err, bad)
			return string(raw)
		}
		from, _ := strconv.Atoi(m[2])
		if m[3] == "" {
			return strings.Repeat(m[4], from)
		}
		to, _ := strconv.Atoi(m[3])
		var list strings.Builder
		for i := from; i <= to; i++ {
			list.WriteString(strings.ReplaceAll(m[4], "#", strconv.Itoa(i)))
		}
		return list.String()
	})
	if m := editForm.FindStringSubmatch(out); m != nil && err == nil {
		golden, bad := os.ReadFile(filepath.Join("testdata", "wire", m[1]+".json"))
		if bad != nil {
			return "", bad
		}
		line := strings.TrimSuffix(string(golden), "\n")
		if !strings.Contains(line, m[2]) {
			return "", fmt.Errorf("no %s in %s", m[2], line)
		}
		out = strings.Replace(line, m[2], m[3], 1)
	}
	return out, err
}

// spread makes one case per value from a case that has a list in its frame.
func (c badCase) spread(lists map[string][]string) (out []badCase) {
	list := listForm.FindString(c.frame)
	if list == "" || lists[list] == nil {
		return []badCase{c}
	}
	for _, value := range lists[list] {
		one := c
		one.frame = strings.Replace(c.frame, list, value, 1)
		one.name += fmt.Sprintf(": %.40q", value)
		out = append(out, one)
	}
	return out
}

// badPayloads are payloads that no frame can express, but that a caller with a codec of
// its own can pass in. The refusals are written as in the table.
func badPayloads(t testing.TB) (out []badCase) {
	t.Helper()
	const large = MaxSeq + 1
	is := func(p Payload) func(*victim) Payload { return func(*victim) Payload { return p } }
	batch := func(change func(p *EventBatchPayload)) func(*victim) Payload {
		return func(v *victim) Payload {
			p := v.batch("s", "e1", 4, 5)
			change(p)
			return p
		}
	}
	data := func(text string) func(*victim) Payload {
		return batch(func(p *EventBatchPayload) { p.Events[0].Data = json.RawMessage(text) })
	}
	status := func(change func(s *SessionStatus)) func(*victim) Payload {
		return func(v *victim) Payload {
			s := entryOf("s", "e1", 1, 1, 3)
			change(&s)
			return v.status(s)
		}
	}
	ask := func(change func(p *ReplayRequestPayload)) func(*victim) Payload {
		p := request("s", "v", "r1", "e1", 1, 3)
		change(p)
		return is(p)
	}
	replay := func(change func(p *ReplayBatchPayload)) func(*victim) Payload {
		return func(v *victim) Payload {
			r := v.request
			if r == nil {
				r = request("s", "v", "r1", "e1", 0, 3)
			}
			p := answerTo(r, 1, 3, false)
			change(p)
			return p
		}
	}
	year := time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	badEvent := `event_rejected {"session_id":"s","epoch":"e1","seq":4}: event 4: gvstream: invalid event: `
	noJSON := `event_rejected {"session_id":"s","epoch":"e1","seq":4}: event 4: gvstream: invalid event: data: `
	for _, c := range []struct {
		name, to string
		say      func(v *victim) Payload
		refused  string
		ends     bool
	}{
		{"nothing", "any", is(nil), "malformed: no payload", false},
		{"nothing of a type", "any", is((*StatusPayload)(nil)), "malformed: no payload", false},
		{"window of -1", "any", is(&WelcomePayload{V: 1, Link: "l1", WindowEvents: -1}), "malformed: welcome: negative window", false},
		{"window of -1 byte", "any", is(&WelcomePayload{V: 1, Link: "l1", WindowBytes: -1}), "malformed: welcome: negative window", false},
		{"watch's window of -1", "any", is(&WatchPayload{SessionID: "s", WindowEvents: -1}), "malformed: watch: negative window", false},
		{"watch's window of -1 byte", "any", is(&WatchPayload{SessionID: "s", WindowBytes: -1}), "malformed: watch: negative window", false},
		{"ack's window of -1", "any", is(&AckBatchPayload{SessionID: "s", Epoch: "e", Link: "l", WindowEvents: -1}), "malformed: ack_batch: negative window", false},
		{"ack's window of -1 byte", "any", is(&AckBatchPayload{SessionID: "s", Epoch: "e", Link: "l", WindowBytes: -1}), "malformed: ack_batch: negative window", false},
		{"256 further acks", "any", is(&AckBatchPayload{SessionID: "s", Epoch: "e", Link: "l", Acks: make([]SessionAck, 256)}),
			"malformed: ack_batch: 256 further sessions, at most 255", false},
		{"hello of a viewer_id in bytes", "any", is(&HelloPayload{V: 1, Role: "viewer", ViewerID: "\xff"}), "malformed: hello: bad viewer_id", false},
		{"status of 257 sessions", "any", is(&StatusPayload{Link: "l", Sessions: make([]SessionStatus, 257)}), "malformed: status: more than 256 sessions", false},
		{"head beyond the greatest", "any", status(func(s *SessionStatus) { s.HeadSeq = large }), "malformed: status: numbers out of order", false},
		{"head and first of 64 bits", "any", status(func(s *SessionStatus) { s.HeadSeq, s.FirstSeq = math.MaxUint64, math.MaxUint64 }), "malformed: status: numbers out of order", false},
		{"an epoch before of 64 bits", "any", status(func(s *SessionStatus) { s.PrevSeq = math.MaxUint64 }), "malformed: status: numbers out of order", false},
		{"ack beyond the greatest", "any", is(&AckBatchPayload{SessionID: "s", Epoch: "e1", Link: "l", UpToSeq: large}), "malformed: ack_batch: up_to_seq too large", false},
		{"ack of 64 bits", "any", is(&AckBatchPayload{SessionID: "s", Epoch: "e1", Link: "l", UpToSeq: math.MaxUint64}), "malformed: ack_batch: up_to_seq too large", false},
		{"ack of bytes", "any", is(&AckBatchPayload{SessionID: "s\xff", Epoch: "e1", Link: "l"}), "malformed: ack_batch: bad session_id", false},
		{"watch of bytes", "any", is(&WatchPayload{SessionID: "\xed\xa0\x80"}), "malformed: watch: bad session_id", false},
		{"watch from beyond the greatest", "any", is(&WatchPayload{SessionID: "s", Epoch: "e1", AfterSeq: large}), "malformed: watch: position: number 9007199254740992, at most 9007199254740991", false},
		{"watch from 64 bits", "any", is(&WatchPayload{SessionID: "s", Epoch: "e1", AfterSeq: math.MaxUint64}), "malformed: watch: position: number 18446744073709551615, at most 9007199254740991", false},
		{"replay from beyond the greatest", "any", ask(func(p *ReplayRequestPayload) { p.AfterSeq, p.UntilSeq = large, 0 }), "malformed: replay_request: position: number 9007199254740992, at most 9007199254740991", false},
		{"replay up to beyond the greatest", "any", ask(func(p *ReplayRequestPayload) { p.UntilSeq = large }), "malformed: replay_request: until 9007199254740992 before after 1, or too large", false},
		{"replay of less than nothing", "any", ask(func(p *ReplayRequestPayload) { p.Limit = -1 }), "malformed: replay_request: negative limit", false},
		{"an error of bytes", "any", is(&ErrorPayload{Code: "x", Message: "\xff"}), "malformed: error: bad message", false},
		{"an error about a large number", "any", is(&ErrorPayload{Code: "x", Seq: large}), "malformed: error: seq too large", false},

		{"batch of a session in bytes", "any", batch(func(p *EventBatchPayload) { p.SessionID = "\xc3" }), "malformed: event_batch: bad session_id", false},
		{"batch up to beyond the greatest", "any", batch(func(p *EventBatchPayload) { p.LastSeq, p.HeadSeq = large, large }), "malformed: event_batch: head 9007199254740992 before last 9007199254740992, or too large", false},
		{"batch of 64 bits", "any", batch(func(p *EventBatchPayload) {
			p.FirstSeq, p.LastSeq, p.HeadSeq = math.MaxUint64, math.MaxUint64, math.MaxUint64
		}), "malformed: event_batch: head 18446744073709551615 before last 18446744073709551615, or too large", false},
		{"batch of 257 events", "any", batch(func(p *EventBatchPayload) { p.Events = make([]Event, 257) }), "malformed: event_batch: more than 256 events", false},
		{"batch of 513 gaps", "any", batch(func(p *EventBatchPayload) { p.Gaps = make([]Gap, 513) }), "malformed: batch: more than 512 gaps", false},
		{"gap up to 64 bits", "any", batch(func(p *EventBatchPayload) { p.Events, p.Gaps = nil, []Gap{{4, math.MaxUint64, ReasonDropped}} }), "malformed: batch: nothing tiles number 4", false},
		{"a type in two lines", "any", batch(func(p *EventBatchPayload) { p.Events[0].Type = "a\nb" }), badEvent + "type: control character U+000A at byte 1", false},
		{"a type that rings", "any", batch(func(p *EventBatchPayload) { p.Events[0].Type = "\a" }), badEvent + "type: control character U+0007 at byte 0", false},
		{"a type of 129 bytes", "any", batch(func(p *EventBatchPayload) { p.Events[0].Type = strings.Repeat("t", maxID+1) }), badEvent + "type: 129 bytes, at most 128", false},
		{"data and bytes", "any", batch(func(p *EventBatchPayload) { p.Events[0].Bytes = []byte("x") }), badEvent + "9 bytes of Data and 1 of Bytes, at most one of them", false},
		{"the year 10000", "any", batch(func(p *EventBatchPayload) { p.Events[0].Time = year }), badEvent + "time: year 10000, not one of 0 to 9999", false},
		{"the year -1", "any", batch(func(p *EventBatchPayload) { p.Events[0].Time = year.AddDate(-10_001, 0, 0) }), badEvent + "time: year -1, not one of 0 to 9999", false},
		{"replay of 101", "any", replay(func(p *ReplayBatchPayload) { p.Events = make([]Event, 101) }), "malformed: replay_batch: more than 100 events", false},
		{"replay until beyond the greatest", "any", replay(func(p *ReplayBatchPayload) { p.UntilSeq = large }), "malformed: replay_batch: numbers out of order", false},
		{"replay available from nowhere", "any", replay(func(p *ReplayBatchPayload) { p.AvailableFrom = large + 1 }), "malformed: replay_batch: numbers out of order", false},

		{"welcome of version -1", "agent", is(&WelcomePayload{V: -1, Link: "l1"}), "version_unsupported: welcome of another version", true},
		{"welcome of the last version", "agent", is(&WelcomePayload{V: math.MaxInt, Link: "l2"}), "version_unsupported: welcome of another version", true},
		{"hello of version -1", "hub from agent", is(&HelloPayload{V: -1, Role: "agent"}), "version_unsupported: version -1: this hub speaks 1", false},
		{"hello of version -1", "hub from viewer", is(&HelloPayload{V: -1, Role: "viewer"}), "version_unsupported: version -1: this hub speaks 1", false},
		{"data that is no JSON", "hub from agent", data("{"), noJSON + "byte 1: want a string", false},
		{"data of two values", "hub from agent", data("1 2"), noJSON + "byte 2: something follows the value", false},
		{"data of bytes", "hub from agent", data("\"\xff\""), noJSON + "not valid UTF-8", false},
		{"data of 501 levels", "hub from agent", data(deep(501)), noJSON + "byte 500: nested too deeply", false},
		{"replay of what is no JSON", "hub from agent", replay(func(p *ReplayBatchPayload) { p.Events[2].Data = json.RawMessage("nul") }), "malformed: replay_batch: event 3: gvstream: invalid event: data: byte 0: want null", false},
	} {
		want, _, err := readRefusal(c.refused)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, badCase{name: c.name, to: c.to, say: c.say, want: want, ends: c.ends})
	}
	return out
}
