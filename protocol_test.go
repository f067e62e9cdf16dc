package gvstream

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Whatever codec a caller uses, no payload passes Handle that breaks a bound, and one that
// is just at it does: encoding/json decodes the frames of the table.
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
		if err := l.Handle(t.Context(), c.say(nil)); !errors.As(err, &refused) || refused.Code != codeMalformed {
			t.Errorf("%s: %v, want malformed", c.name, err)
		}
	}
}

// An id is any text without control characters, those between 0x80 and 0x9f
// included. The replacement character is a character like any other, unless it
// stands for bytes that are no text.
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

// An epoch is of [0-9a-z_-] alone: the neighbours of each range are not in it.
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

// A time has a year from 0 to 9999 where it is told and in UTC: near the bounds one
// may be inside and the other not.
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
