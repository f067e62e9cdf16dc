package gvstream

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

// An Event is one thing that happened in a session. Publish sets Seq, and Time
// if it is zero; the other fields are the caller's.
//
// Data is any JSON value; Bytes is for what is not JSON, such as raw terminal
// output, and stands on the wire in base64. At most one of the two is set.
// White space between JSON tokens is not kept. Publish copies the bytes; those of
// an Item are its reader's, those in a payload are read-only.
type Event struct {
	Seq   uint64          `json:"seq"`
	Time  time.Time       `json:"time,omitzero"`
	Type  string          `json:"type,omitempty"` // at most 128 bytes, without control characters
	Data  json.RawMessage `json:"data,omitempty"`
	Bytes []byte          `json:"data_base64,omitempty"`
	End   bool            `json:"end,omitempty"` // the last event of its session: set by Session.End
}

// checkFields checks what can be checked of an event without reading its data.
func (e *Event) checkFields() error {
	if e.Type != "" && !validID(e.Type) || !e.validData() {
		return ErrInvalidData
	}
	return nil
}

func (e *Event) validData() bool {
	return (len(e.Data) == 0 || len(e.Bytes) == 0) && (e.Time.IsZero() || validTime(e.Time))
}

// A Gap is a range of numbers whose events can no longer be delivered.
type Gap struct {
	From   uint64 `json:"from"` // first missing number
	To     uint64 `json:"to"`   // last missing number, inclusive
	Reason Reason `json:"reason"`
}

// Reason says why the events of a gap are missing.
type Reason string

const (
	// ReasonDropped: the agent's pending was full under DropOldest.
	ReasonDropped Reason = "dropped"
	// ReasonEvicted: they are older than the replay buffer reaches.
	ReasonEvicted Reason = "evicted"
	// ReasonRejected: the hub refused the event.
	ReasonRejected Reason = "rejected"
	// ReasonUnavailable: the agent that may hold them is away.
	ReasonUnavailable Reason = "unavailable"
)

// A Position is how far somebody is in a session: an epoch and the last number
// in it that was dealt with. The zero Position is before the first event. It is
// never an epoch without its number or a number without its epoch.
type Position struct {
	Epoch string `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

func (p Position) valid() bool {
	return p.Epoch == "" && p.Seq == 0 || validEpoch(p.Epoch) && p.Seq <= MaxSeq
}

// validTime reports whether a time has a year from 0 to 9999, here and in UTC.
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

// checkID is validID. It counts the bytes of a valid id that need an escape in JSON.
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

// checkSpecial is checkID where there are bytes that may be more than themselves.
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

// idBytes says what each byte of an id is: 0 if it is no more than itself.
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

const (
	idControl = 1 + iota
	idEscaped
	idRune
)

func optionalID(s string) bool { return s == "" || validID(s) }

// validEpoch reports whether s is 1 to 64 bytes of [0-9a-z_-] (rule 2).
func validEpoch(s string) bool {
	return len(s) > 0 && len(s) <= maxEpoch && onlyWordBytes(s)
}

func optionalEpoch(s string) bool { return s == "" || validEpoch(s) }

// validReason lets later versions have reasons that this one does not know.
func validReason(r Reason) bool { return len(r) > 0 && len(r) <= 32 && onlyWordBytes(string(r)) }

func onlyWordBytes(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}
