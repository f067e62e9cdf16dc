package gvstream

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// This file is what callers see of a session: events, gaps and positions, and the checks of
// ids, epochs and times that the codec, the payloads and the public methods share.

// An Event is one thing that happened in a session. Publish sets Seq, and Time
// if it is zero; the other fields are the caller's.
//
// Data is any JSON value; Bytes is for what is not JSON, such as raw terminal
// output, and is base64 on the wire. At most one of the two may be set; an event with
// neither is one that just happened, and empty Bytes are the same as none. White space
// between JSON tokens is not kept. So with what an agent in another language sends: an empty
// data_base64 counts as absent, as does the zero time.Time, 0001-01-01T00:00:00Z.
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
		return e.fieldError()
	}
	return nil
}

// fieldError says what is wrong with an event's type, kinds of data or time.
func (e *Event) fieldError() error {
	switch {
	case e.Type != "" && !validID(e.Type):
		return fmt.Errorf("%w: type: %s", ErrInvalidData, idProblem(e.Type))
	case len(e.Data) > 0 && len(e.Bytes) > 0:
		return fmt.Errorf("%w: %d bytes of Data and %d of Bytes, at most one of them", ErrInvalidData, len(e.Data), len(e.Bytes))
	}
	year := e.Time.UTC().Year()
	if year >= 0 && year <= 9999 { // then in its own zone it has another
		year = e.Time.Year()
	}
	return fmt.Errorf("%w: time: year %d, not one of 0 to 9999", ErrInvalidData, year)
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
//
// Its text, which String and MarshalText return, encoding/json writes as a string and
// ParsePosition reads, is such as "06h0n8sxg285q462xvygrj9mb4.39", and empty for the zero
// Position. It has at most 81 bytes, all of [0-9a-z_.-], so that it can stand as it is in a
// URL, as the id of a server-sent event or in the name of a file.
type Position struct {
	Epoch string
	Seq   uint64
}

// ParsePosition reads the text of a Position, and no other form of it. What it returns is
// one that Viewer.Watch and Hub.Items take. Error: ErrInvalidPosition.
func ParsePosition(text string) (Position, error) {
	if text == "" {
		return Position{}, nil
	}
	i := strings.LastIndexByte(text, '.')
	if i < 0 {
		return Position{}, fmt.Errorf("%w: %d bytes without a dot", ErrInvalidPosition, len(text))
	}
	epoch, digits := text[:i], text[i+1:]
	seq, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || digits[0] == '0' && len(digits) > 1 {
		return Position{}, fmt.Errorf("%w: %d bytes after the dot, not a number from 0 to %d", ErrInvalidPosition, len(digits), uint64(MaxSeq))
	}
	p := Position{epoch, seq}
	if epoch == "" {
		return Position{}, fmt.Errorf("%w: number %d without an epoch", ErrInvalidPosition, seq)
	}
	if err := p.check(); err != nil {
		return Position{}, err
	}
	return p, nil
}

// String returns the position's text. Of a Position that is not valid it is one line that no
// ParsePosition takes.
func (p Position) String() string {
	switch {
	case p == Position{}:
		return ""
	case !p.valid():
		return fmt.Sprintf("invalid position %q.%d", p.Epoch, p.Seq)
	}
	return p.Epoch + "." + strconv.FormatUint(p.Seq, 10)
}

// MarshalText returns the position's text. Error: ErrInvalidPosition.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), p.check() }

// UnmarshalText is ParsePosition. After an error p is as it was.
func (p *Position) UnmarshalText(text []byte) error {
	parsed, err := ParsePosition(string(text))
	if err == nil {
		*p = parsed
	}
	return err
}

// valid reports whether p is the zero Position, or a number of a well-formed epoch.
func (p Position) valid() bool { return p.problem() == "" }

// check returns what is wrong with p, wrapping ErrInvalidPosition, or nil.
func (p Position) check() error {
	if problem := p.problem(); problem != "" {
		return fmt.Errorf("%w: %s", ErrInvalidPosition, problem)
	}
	return nil
}

// problem says what is wrong with p, or nothing. It quotes at most a byte of it, so that it
// can go into any log.
func (p Position) problem() string {
	switch {
	case p == Position{}:
		return ""
	case p.Epoch == "":
		return fmt.Sprintf("number %d without an epoch", p.Seq)
	case !validEpoch(p.Epoch):
		return "epoch: " + epochProblem(p.Epoch)
	case p.Seq > MaxSeq:
		return fmt.Sprintf("number %d, at most %d", p.Seq, uint64(MaxSeq))
	}
	return ""
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

// invalidID is the error of a caller's id that is none.
func invalidID(s string) error { return fmt.Errorf("%w: %s", ErrInvalidID, idProblem(s)) }

// idProblem says what is wrong with an id that is not valid.
func idProblem(s string) string {
	switch {
	case s == "":
		return "empty"
	case len(s) > maxID:
		return fmt.Sprintf("%d bytes, at most %d", len(s), maxID)
	}
	if i := validPrefix([]byte(s)); i < len(s) {
		return fmt.Sprintf("no UTF-8 at byte %d", i)
	}
	i := strings.IndexFunc(s, unicode.IsControl)
	r, _ := utf8.DecodeRuneInString(s[i:])
	return fmt.Sprintf("control character %U at byte %d", r, i)
}

func optionalID(s string) bool { return s == "" || validID(s) }

// validEpoch reports whether s is 1 to 64 bytes of [0-9a-z_-] (rule 2).
func validEpoch(s string) bool {
	return len(s) > 0 && len(s) <= maxEpoch && onlyWordBytes(s)
}

// epochProblem says what is wrong with an epoch that is not valid, nor empty.
func epochProblem(s string) string {
	if len(s) > maxEpoch {
		return fmt.Sprintf("%d bytes, at most %d", len(s), maxEpoch)
	}
	i := strings.IndexFunc(s, func(r rune) bool { return !onlyWordBytes(string(r)) })
	return fmt.Sprintf("%q at byte %d, not one of [0-9a-z_-]", s[i:i+1], i)
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
