package gvstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Whatever codec a caller uses, Handle refuses payloads that exceed a bound and accepts
// those just at it: here, encoding/json decodes the frames of the table.
func TestPayloadBounds(t *testing.T) {
	l := newScript().Link
	for _, c := range badCases(t, "any") {
		if !c.taken {
			continue
		}
		p, err := jsonDecode([]byte(c.frame))
		if err == nil {
			err = l.Handle(t.Context(), p)
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, c := range foreignPayloads(t) {
		var refused *ProtocolError
		if err := l.Handle(t.Context(), c.say(nil)); !errors.As(err, &refused) || refused.Code != c.want.Code {
			t.Errorf("%s: %v, want %s", c.name, err, c.want.Code)
		}
	}
}

// An id is any text without control characters, those between 0x80 and 0x9f included.
// The replacement character is a character like any other, unless it replaces bytes
// that are not text.
func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"":                              false,
		" ":                             true,
		"~":                             true,
		"\x1f":                          false,
		"\x7f":                          false,
		"\x80":                          false,
		"\xc3":                          false,
		"\u00e4\n":                      false,
		"\u20ac\n\n":                    false,
		"\U0001f600\x7f":                false,
		"\u00e4\u0080":                  false,
		"a\u0080":                       false,
		"a\u009f":                       false,
		"a\u00a0":                       true,
		"\ufffd":                        true,
		"\U0010ffff":                    true,
		"\xed\xa0\x80":                  false,
		strings.Repeat("\u00e4", 64):    true,
		strings.Repeat("x", 127):        true,
		"x" + strings.Repeat("ä", 64):   false,
		strings.Repeat("x", maxID):      true,
		strings.Repeat("x", maxID+1):    false,
		strings.Repeat("x", 126) + "\n": false,
	} {
		if validID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

// An epoch consists of [0-9a-z_-] only: the neighbours of each range are refused.
func TestValidEpoch(t *testing.T) {
	for _, id := range []string{"0", "9", "a", "z", "_", "-", strings.Repeat("0", maxEpoch)} {
		if !validEpoch(id) {
			t.Errorf("%q is refused", id)
		}
	}
	for _, id := range []string{"", "/", ":", "`", "{", "^", ".", ",", "A", "e\xff", strings.Repeat("0", maxEpoch+1)} {
		if validEpoch(id) {
			t.Errorf("%q is allowed", id)
		}
	}
}

// A time has a year from 0 to 9999, both in its own zone and in UTC: near the bounds
// one may be inside and the other not.
func TestValidTime(t *testing.T) {
	first := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	end := time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, hours := range []int{-23, -5, 0, 5, 23} {
		zone := time.FixedZone("", hours*3600)
		early, late := time.Duration(max(0, -hours))*time.Hour, time.Duration(max(0, hours))*time.Hour
		for at, want := range map[time.Time]bool{
			first.Add(early): true, first.Add(early - 1): false,
			end.Add(-late - 1): true, end.Add(-late): false,
		} {
			if at := at.In(zone); validTime(at) != want {
				t.Errorf("%v: %v, want %v", at, !want, want)
			}
		}
	}
}

// roundTrip encodes p with encoding/json and for the wire, and expects the same back,
// with exactly these fields.
func roundTrip[T any, P interface {
	*T
	Payload
}](t *testing.T, p P, fields ...string) {
	t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(body, &names); err != nil {
		t.Fatal(err)
	}
	for _, name := range fields {
		if _, ok := names[name]; !ok {
			t.Errorf("no field %q in %s", name, body)
		}
		delete(names, name)
	}
	for name := range names {
		t.Errorf("unexpected field %q in %s", name, body)
	}
	back := P(new(T))
	if err := json.Unmarshal(body, back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back, sameWireTold); diff != "" {
		t.Errorf("encoding/json (-want +got):\n%s", diff)
	}
	line, err := Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`{"type":%q,"payload":%s}`, p.payloadType(), body); string(line) != want {
		t.Errorf("Marshal:\n got %s\nwant %s", line, want)
	}
	got, err := Unmarshal(line)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Payload(p), got, sameWireTold); diff != "" {
		t.Errorf("Unmarshal (-want +got):\n%s", diff)
	}
}

var sameWireTold = cmp.Options{cmpopts.IgnoreUnexported(EventBatchPayload{}, ReplayBatchPayload{}), cmpopts.EquateEmpty()}

const someEpoch = "065wzsb8000020g30g2gc1r814"

func TestAckBatchPayloadJSON(t *testing.T) {
	always := []string{"session_id", "viewer_id", "epoch", "link", "up_to_seq"}
	t.Run("from the hub", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", Epoch: someEpoch, Link: "l1", UpToSeq: 64}, always...)
	})
	t.Run("nothing yet", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", Epoch: someEpoch, Link: "l1"}, always...)
	})
	t.Run("nack", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", Epoch: someEpoch, Link: "l1", UpToSeq: 64, Nack: true}, append(always, "nack")...)
	})
	t.Run("of a viewer", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: someEpoch, Link: "l1", UpToSeq: MaxSeq}, always...)
	})
	t.Run("as told", func(t *testing.T) {
		got, err := json.Marshal(&AckBatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: "e", Link: "l1", UpToSeq: 64, Nack: true})
		want := `{"session_id":"build-42","viewer_id":"tab-1","epoch":"e","link":"l1","up_to_seq":64,"nack":true}`
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	})
}

func TestReplayBatchPayloadJSON(t *testing.T) {
	always := []string{
		"session_id", "viewer_id", "request_id", "epoch", "first_seq", "last_seq", "until_seq", "available_from",
	}
	t.Run("events and gaps", func(t *testing.T) {
		roundTrip(t, &ReplayBatchPayload{
			SessionID: "build-42", ViewerID: "tab-1", RequestID: "r7", Epoch: someEpoch,
			FirstSeq: 1, LastSeq: 4, UntilSeq: 4, AvailableFrom: 3, Done: true,
			Events: []Event{
				{Seq: 3, Type: "stdout", Data: []byte(`{"line":"ok"}`), Time: time.Date(2025, 11, 23, 1, 2, 3, 4, time.UTC)},
				{Seq: 4, Type: "stdout", Bytes: []byte{0, 0xff}, End: true},
			},
			Gaps: []Gap{{1, 2, ReasonEvicted}},
		}, append(always, "done", "events", "gaps")...)
	})
	t.Run("not the last", func(t *testing.T) {
		roundTrip(t, &ReplayBatchPayload{
			SessionID: "build-42", ViewerID: "tab-1", RequestID: "r7", Epoch: someEpoch,
			FirstSeq: 1, LastSeq: 1, UntilSeq: 9, AvailableFrom: 1, Events: []Event{{Seq: 1}},
		}, append(always, "events")...)
	})
	t.Run("empty, for the hub itself", func(t *testing.T) {
		roundTrip(t, &ReplayBatchPayload{
			SessionID: "build-42", RequestID: "r7", Epoch: someEpoch,
			FirstSeq: 5, LastSeq: 4, UntilSeq: 4, AvailableFrom: 1, Done: true,
		}, append(always, "done")...)
	})
	t.Run("as told", func(t *testing.T) {
		got, err := json.Marshal(&ReplayBatchPayload{
			SessionID: "s", ViewerID: "tab-1", RequestID: "r7", Epoch: "e", FirstSeq: 1, LastSeq: 2, UntilSeq: 2,
			AvailableFrom: 2, Done: true, Events: []Event{{Seq: 2, Data: []byte("1")}}, Gaps: []Gap{{1, 1, ReasonEvicted}},
		})
		want := `{"session_id":"s","viewer_id":"tab-1","request_id":"r7","epoch":"e","first_seq":1,"last_seq":2,"until_seq":2,` +
			`"available_from":2,"done":true,"events":[{"seq":2,"data":1}],"gaps":[{"from":1,"to":1,"reason":"evicted"}]}`
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	})
}
