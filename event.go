package gvstream

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// This file is what callers see of a session: events, gaps and positions, and the checks of
// ids, epochs and times that the codec, the payloads and the public methods share.

// An Event is one thing that happened in a session. Publish sets Seq, and Time
// if it is zero; the other fields are the caller's.
//
// Data is any JSON value; Bytes is for what is not JSON, such as raw terminal
// output, and is base64 on the wire. At most one of the two may be set; an event with
// neither is one that just happened. White space between JSON tokens is not kept.
//
// Publish copies the bytes, so that the caller may change its own afterwards. Those of an
// Item belong to its reader. Those in a payload are read-only: other payloads share them.
type Event struct {
	Seq   uint64          `json:"seq"`
	Time  time.Time       `json:"time,omitzero"`
	Type  string          `json:"type,omitempty"` // at most 128 bytes, without control characters
	Data  json.RawMessage `json:"data,omitempty"`
	Bytes []byte          `json:"data_base64,omitempty"`
	End   bool            `json:"end,omitempty"` // the last event of its session: set by Session.End
}

// checkFields checks what can be checked of an event without reading its data. That is all
// that a payload's check does: a hub reads the data when it encodes the event, and then
// refuses it by its number (event_rejected), so that the agent can turn just that one
// into a gap.
func (e *Event) checkFields() error {
	if e.Type != "" && !validID(e.Type) || !e.validData() {
		return ErrInvalidData
	}
	return nil
}

// validData reports whether there is at most one kind of data, and a time that RFC 3339 can
// represent.
func (e *Event) validData() bool {
	return (len(e.Data) == 0 || len(e.Bytes) == 0) && (e.Time.IsZero() || validTime(e.Time))
}

// A Gap is a range of numbers whose events can no longer be delivered. It takes their place
// in a log, and in what a reader gets: a number is never just left out.
type Gap struct {
	From   uint64 `json:"from"` // first missing number
	To     uint64 `json:"to"`   // last missing number, inclusive
	Reason Reason `json:"reason"`
}

// Reason says why the events of a gap are missing. A peer of a later version may send
// others than these, which are passed on as they are.
type Reason string

const (
	// ReasonDropped: the agent's pending was full under DropOldest (rule 10).
	ReasonDropped Reason = "dropped"
	// ReasonEvicted: they are older than what is kept for replay (rule 12).
	ReasonEvicted Reason = "evicted"
	// ReasonRejected: the hub refused the event (rule 11).
	ReasonRejected Reason = "rejected"
	// ReasonUnavailable: the agent that may hold them is away, or did not give them
	// (rule 12).
	ReasonUnavailable Reason = "unavailable"
)

// A Position is how far a reader has come in a session: an epoch and the last number
// in it that was dealt with. The zero Position is before the first event. Persist both
// fields together: a number says nothing without its epoch, since each epoch counts from 1
// (rule 2).
type Position struct {
	Epoch string `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

// valid reports whether p is the zero Position, or a number of a well-formed epoch.
func (p Position) valid() bool {
	return p.Epoch == "" && p.Seq == 0 || validEpoch(p.Epoch) && p.Seq <= MaxSeq
}

// validTime reports whether a time has a year from 0 to 9999, as RFC 3339 needs it, in its
// own zone and in UTC: encoding/json, which callers may use, writes the one, and this
// package writes the other. A time more than a day inside of both bounds is valid in any
// zone; only the rest need the calendar, which is slow.
func validTime(t time.Time) bool {
	const day, year0, year10000 = 24 * 60 * 60, -62167219200, 253402300800
	if unix := t.Unix(); unix > year0+day && unix < year10000-day {
		return true
	}
	utc := t.UTC()
	return t.Year() >= 0 && t.Year() <= 9999 && utc.Year() >= 0 && utc.Year() <= 9999
}

// validID reports whether s is 1 to 128 bytes of UTF-8 without control
// characters.
func validID(s string) bool {
	_, ok := checkID(s)
	return ok
}

// checkID is validID, and also counts the bytes of a valid id that need an escape in JSON.
// Most ids are plain ASCII: one pass that only collects what kinds of bytes there are
// settles those.
func checkID(s string) (escapes int, ok bool) {
	if len(s) == 0 || len(s) > maxID {
		return 0, false
	}
	special := uint8(0)
	for i := range len(s) {
		special |= idBytes[s[i]]
	}
	if special == 0 {
		return 0, true
	}
	return checkSpecial(s)
}

// checkSpecial is checkID for an id with bytes that are not plain: it decodes the runes and
// looks at each. U+0080 to U+009F are control characters too.
func checkSpecial(s string) (escapes int, ok bool) {
	for i := 0; i < len(s); i++ {
		switch idBytes[s[i]] {
		case idControl:
			return 0, false
		case idEscaped:
			escapes++
		case idRune:
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 || r >= 0x80 && r <= 0x9f {
				return 0, false
			}
			i += n - 1
		}
	}
	return escapes, true
}

// idBytes says of what kind each byte of an id is: 0 if it is a plain ASCII character, which
// JSON writes as it is.
var idBytes = func() (t [256]uint8) {
	for c := range t {
		switch {
		case c < 0x20 || c == 0x7f:
			t[c] = idControl
		case c == '"' || c == '\\':
			t[c] = idEscaped
		case c >= utf8.RuneSelf:
			t[c] = idRune
		}
	}
	return t
}()

// Kinds of bytes in an id. They are or-ed together only to see whether any is set.
const (
	idControl = 1 + iota // may not be in an id
	idEscaped            // takes two bytes in JSON
	idRune               // part of a rune beyond ASCII, or of no rune at all
)

func optionalID(s string) bool { return s == "" || validID(s) }

// validEpoch reports whether s is 1 to 64 bytes of [0-9a-z_-] (rule 2).
func validEpoch(s string) bool {
	return len(s) > 0 && len(s) <= maxEpoch && onlyWordBytes(s)
}

func optionalEpoch(s string) bool { return s == "" || validEpoch(s) }

// validReason reports whether r is 1 to 32 bytes of [0-9a-z_-]. It need not be one of those
// above: later versions may have others (PROTOCOL.md, "Events and gaps").
func validReason(r Reason) bool { return len(r) > 0 && len(r) <= 32 && onlyWordBytes(string(r)) }

// onlyWordBytes reports whether all bytes of s are of [0-9a-z_-]. None of them needs an
// escape, in JSON or in a URL.
func onlyWordBytes(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}
