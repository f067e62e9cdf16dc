package gvstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A position's text is read as the same position, is its JSON between quotes, and stands in
// a URL without escapes.
func TestPositionText(t *testing.T) {
	longest := Position{strings.Repeat("z", maxEpoch), MaxSeq}
	for want, p := range map[string]Position{
		"":            {},
		"e1.0":        {"e1", 0},
		"e1.7":        {"e1", 7},
		"_-09az.10":   {"_-09az", 10},
		"0.1":         {"0", 1},
		"-.1":         {"-", 1},
		"e1.18014398": {"e1", 18014398},
		strings.Repeat("z", 64) + ".9007199254740991": longest,
	} {
		text, err := p.MarshalText()
		if string(text) != want || err != nil || p.String() != want || url.QueryEscape(want) != want || url.PathEscape(want) != want {
			t.Errorf("%#v: %q, %v; String %q", p, text, err, p)
		}
		if got, err := ParsePosition(want); got != p || err != nil {
			t.Errorf("%q: %#v, %v", want, got, err)
		}
		body, err := json.Marshal(map[Position]Position{p: p})
		if want := fmt.Sprintf(`{"%s":"%[1]s"}`, want); string(body) != want || err != nil {
			t.Errorf("%s, %v; want %s", body, err, want)
		}
		var back map[Position]Position
		if err := json.Unmarshal(body, &back); err != nil || back[p] != p || len(back) != 1 {
			t.Errorf("%s: %#v, %v", body, back, err)
		}
	}
}

// Any other text is refused, with what is wrong with it, and leaves the position alone. It
// comes from a URL or a header, so the error must not repeat more of it than a byte.
func TestParsePositionRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"e":                            "1 bytes without a dot",
		"7":                            "1 bytes without a dot",
		".":                            "0 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.":                           "0 bytes after the dot, not a number from 0 to 9007199254740991",
		".7":                           "number 7 without an epoch",
		".0":                           "number 0 without an epoch",
		"e.07":                         "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.00":                         "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.+7":                         "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.-7":                         "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.7 ":                         "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e. 7":                         "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.0x7":                        "3 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.1_0":                        "3 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.7e1":                        "3 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.٧":                          "2 bytes after the dot, not a number from 0 to 9007199254740991",
		"e.9007199254740992":           "number 9007199254740992, at most 9007199254740991",
		"e.18446744073709551615":       "number 18446744073709551615, at most 9007199254740991",
		"e.18446744073709551616":       "20 bytes after the dot, not a number from 0 to 9007199254740991",
		"e." + nines:                   "1000 bytes after the dot, not a number from 0 to 9007199254740991",
		"E.7":                          `epoch: "E" at byte 0, not one of [0-9a-z_-]`,
		"e.e.7":                        `epoch: "." at byte 1, not one of [0-9a-z_-]`,
		"ab\n.7":                       `epoch: "\n" at byte 2, not one of [0-9a-z_-]`,
		"\xff.7":                       `epoch: "\xff" at byte 0, not one of [0-9a-z_-]`,
		"aé.7":                         `epoch: "\xc3" at byte 1, not one of [0-9a-z_-]`,
		strings.Repeat("z", 65) + ".7": "epoch: 65 bytes, at most 64",
	} {
		got, err := ParsePosition(text)
		if got != (Position{}) || !errors.Is(err, ErrInvalidPosition) || err.Error() != "gvstream: invalid position: "+want {
			t.Errorf("%.70q: %#v, %v", text, got, err)
		}
		kept := Position{"kept", 1}
		if err := kept.UnmarshalText([]byte(text)); !errors.Is(err, ErrInvalidPosition) || kept != (Position{"kept", 1}) {
			t.Errorf("%.70q: %#v, %v", text, kept, err)
		}
	}
}

var nines = strings.Repeat("9", 1000)

// A position that is none has no text, and what String makes of it is one line that is not
// read again, whatever is in it.
func TestPositionInvalid(t *testing.T) {
	for _, p := range []Position{{"", 1}, {"e", MaxSeq + 1}, {"e", math.MaxUint64}, {"a\nb", 1}, {"\xff\u202e", 0}, {strings.Repeat("z", maxEpoch+1), 1}} {
		if text, err := p.MarshalText(); !errors.Is(err, ErrInvalidPosition) {
			t.Errorf("%#v: text %q, %v", p, text, err)
		}
		if body, err := json.Marshal(p); !errors.Is(err, ErrInvalidPosition) {
			t.Errorf("%#v: JSON %s, %v", p, body, err)
		}
		if got, err := ParsePosition(p.String()); err == nil || !printable(p.String()) {
			t.Errorf("%q is %#v", p, got)
		}
	}
}

// FuzzParsePosition: a text is refused, or is the only one of its position, which a viewer
// takes.
func FuzzParsePosition(f *testing.F) {
	for _, s := range []string{"", "e.7", "e.0", ".", ".7", "e.07", "e", "e.9007199254740991", "e.9007199254740992", "a.b.1", "e.+1", "\xff.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePosition(text)
		if err != nil {
			if !errors.Is(err, ErrInvalidPosition) || p != (Position{}) || !printable(err.Error()) || len(err.Error()) > 200 {
				t.Fatalf("%#v, %v", p, err)
			}
			return
		}
		if p.String() != text || !p.valid() || url.QueryEscape(text) != text {
			t.Fatalf("%#v", p)
		}
		if err := NewViewer(nil).Watch("s", p); err != nil {
			t.Fatal(err)
		}
	})
}

// itemsOfAllKinds are one item of each kind and of what can be in it.
func itemsOfAllKinds() []Item {
	at := time.Date(2026, 11, 23, 23, 0, 0, 250e6, time.UTC)
	return []Item{
		{SessionID: "s", Epoch: "e1", Seq: 1, Event: &Event{Seq: 1}},
		{SessionID: "s", Epoch: "e1", Seq: 2, Event: &Event{Seq: 2, Time: at, Type: "out", Data: []byte(`{"a":["b",null]}`)}},
		{SessionID: "s", Epoch: "e1", Seq: 3, Event: &Event{Seq: 3, Type: "raw", Bytes: []byte("\x00\xff\x1b[2J")}},
		{SessionID: "s", Epoch: "e1", Seq: 4, Event: &Event{Seq: 4, Data: []byte("null"), End: true}},
		{SessionID: "s", Epoch: "e1", Seq: 9, Gap: &Gap{5, 9, ReasonDropped}},
		{SessionID: "s", Epoch: "e2", Reset: &Reset{Old: Position{"e1", 9}, PrevEpoch: "e1", PrevSeq: 12}},
		{SessionID: "s", Epoch: "e2", Reset: &Reset{}},
		{SessionID: "s", Epoch: "e2", Seq: 12, End: true},
		{SessionID: "a \"b\" é", Epoch: "e2", Seq: 12, End: true},
	}
}

// An item that goes through JSON is the same item. Its position, the one thing that must
// not get lost, was at (e, 0) after that.
func TestItemJSON(t *testing.T) {
	for _, it := range itemsOfAllKinds() {
		body, err := json.Marshal(it)
		if err != nil {
			t.Fatal(err)
		}
		var back Item
		if err := json.Unmarshal(body, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(it, back); diff != "" || back.Position() != it.Position() {
			t.Errorf("%s: -want +got\n%s", body, diff)
		}
	}
}

// The names in an item's JSON are those of the wire.
func TestItemJSONGolden(t *testing.T) {
	all := itemsOfAllKinds()
	for i, want := range map[int]string{
		1: `{"session_id":"s","epoch":"e1","seq":2,"event":{"seq":2,"time":"2026-11-23T23:00:00.25Z","type":"out","data":{"a":["b",null]}}}`,
		2: `{"session_id":"s","epoch":"e1","seq":3,"event":{"seq":3,"type":"raw","data_base64":"AP8bWzJK"}}`,
		4: `{"session_id":"s","epoch":"e1","seq":9,"gap":{"from":5,"to":9,"reason":"dropped"}}`,
		5: `{"session_id":"s","epoch":"e2","seq":0,"reset":{"old":"e1.9","prev_epoch":"e1","prev_seq":12}}`,
		7: `{"session_id":"s","epoch":"e2","seq":12,"end":true}`,
	} {
		if got, err := json.Marshal(all[i]); string(got) != want || err != nil {
			t.Errorf("%s, %v\nwant %s", got, err, want)
		}
	}
}

// FuzzItemJSON: an item that was read from any JSON is written to JSON that is read as the
// same item, unless its position is none.
func FuzzItemJSON(f *testing.F) {
	for _, it := range itemsOfAllKinds() {
		body, err := json.Marshal(it)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Add([]byte(`{"reset":{"old":"e.07"}}`))
	f.Add([]byte(`{"event":{"data":"\u2028<"},"seq":1e3}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var it, back Item
		if json.Unmarshal(body, &it) != nil {
			return
		}
		if !printable(strings.ReplaceAll(it.String(), "\ufffd", "?")) { // which encoding/json makes of bad UTF-8
			t.Fatalf("%q", it)
		}
		again, err := json.Marshal(it)
		if err != nil {
			if it.Event != nil && !validTime(it.Event.Time) {
				return
			}
			t.Fatal(err)
		}
		if err := json.Unmarshal(again, &back); err != nil || back.Position() != it.Position() {
			t.Fatalf("%v: %s", err, again)
		}
		third, err := json.Marshal(back)
		if err != nil || string(third) != string(again) {
			t.Fatalf("%s, %v\nwant %s", third, err, again)
		}
	})
}

// An item is one line for a log, whatever is in it and however long that is.
func TestItemString(t *testing.T) {
	long := strings.Repeat("x", maxSummary)
	for _, c := range []struct {
		it   Item
		want string
	}{
		{Item{}, "no item"},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Seq: 1}}, "s e.1: event"},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Seq: 1, Type: "exit", End: true}}, "s e.1: exit, the last"},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Type: "out", Data: []byte(`{"a":1}`)}}, `s e.1: out {"a":1}`},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Type: "out", Data: []byte("[\n1]")}}, `s e.1: out "[\n1]"`},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Type: "a\nb", Data: []byte(long)}}, `s e.1: "a\nb" ` + long},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Data: []byte(long + "y")}}, "s e.1: event " + long + "… of 129 bytes"},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Data: []byte(long[1:] + "é")}}, "s e.1: event " + long[1:] + "… of 129 bytes"},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Bytes: []byte("\x1b[0m")}}, `s e.1: event "\x1b[0m"`},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Bytes: []byte(long)}}, `s e.1: event "` + long + `"`},
		{Item{SessionID: "s", Epoch: "e", Seq: 1, Event: &Event{Bytes: []byte(long + "y")}}, `s e.1: event "` + long + `"… of 129 bytes`},
		{Item{SessionID: "a\nb", Epoch: "e", Seq: 9, Gap: &Gap{5, 9, "evicted"}}, `"a\nb" e.9: missing from 5: evicted`},
		{Item{SessionID: "s", Epoch: "e", Seq: 9, Gap: &Gap{5, 9, "\x00"}}, `s e.9: missing from 5: "\x00"`},
		{Item{SessionID: "s", Epoch: "e2", Reset: &Reset{Old: Position{"e1", 9}}}, "s e2.0: new epoch after e1.9"},
		{Item{SessionID: "s", Epoch: "E\n", Seq: 2, End: true}, `s invalid position "E\n".2: end`},
	} {
		if got := c.it.String(); got != c.want || !printable(got) {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}
