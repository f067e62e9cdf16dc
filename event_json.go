package gvstream

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/vibetools/gvstream/internal/decimal"
	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/timetext"
)

// This file is the JSON of one event, as this package writes it: always the same fields in
// the same order without white space, so that the places of time, type and data in it follow
// from a few numbers, which the event's slot has. preparedEvent writes it, once for each
// event; a slot's value and head find the parts again without parsing; decodeEvents makes
// Events of slots for callers. decode_events.go takes events of this form as they are.

// An eventError says which event has no JSON form, and why.
type eventError struct {
	seq uint64
	err error
}

func (e *eventError) Error() string { return fmt.Sprintf("event %d: %v", e.seq, e.err) }
func (e *eventError) Unwrap() error { return e.err }

// What stands between the values of an event, in this order. All but the first are left out
// with their value.
const (
	seqPrefix    = `{"seq":`
	timePrefix   = `,"time":"`
	typePrefix   = `,"type":"`
	dataPrefix   = `,"data":`
	base64Prefix = `,"data_base64":"`
	endSuffix    = `,"end":true`
)

// compact reports whether the data of an event is JSON without white space. It is, unless
// it was published unchecked (StreamerConfig.TrustData).
func (s *slot) compact() bool {
	if s.data == 0 || s.kind&kindMask == isBytes { // nothing, or our own encoding
		return true
	}
	spaces, err := jsontext.Check(s.value())
	return err == nil && spaces == 0
}

// value returns the data in an event's JSON, or the base64 text of its bytes, or nil. It
// begins at s.data and ends before what kind says must follow. The result is part of the
// slot's bytes.
func (s *slot) value() []byte {
	if s.data == 0 {
		return nil
	}
	json := s.bytes()
	end := len(json) - len(`}`)
	if s.end() {
		end -= len(endSuffix)
	}
	if s.kind&kindMask == isBytes {
		end -= len(`"`)
	}
	return json[s.data:end:end]
}

// timeAndType returns the time and the type in an event's JSON. The type is still with its escapes,
// and part of the slot's bytes: its length is what is left between the time and headEnd.
func (s *slot) timeAndType(known *internTable) (at time.Time, typ []byte) {
	json, i := s.bytes(), len(seqPrefix)+decimal.Len(s.to)
	if s.timed > 0 {
		from := i + len(timePrefix)
		i = from + int(s.timed) + len(`"`)
		at, _ = known.times.Read(json[from : i-len(`"`)])
	}
	if end := s.prefixEnd(); end > i {
		typ = json[i+len(typePrefix) : end-len(`"`)]
	}
	return at, typ
}

// prefixEnd is where in an event's JSON its time and type end: where the next part begins, or
// else the closing brace.
func (s *slot) prefixEnd() int {
	switch {
	case s.data > 0 && s.kind&kindMask == isBytes:
		return int(s.data) - len(base64Prefix)
	case s.data > 0:
		return int(s.data) - len(dataPrefix)
	case s.end():
		return int(s.size) - len(`}`) - len(endSuffix)
	}
	return int(s.size) - len(`}`)
}

// A preparedEvent is an event that is checked and measured, but has no number yet. All that
// can fail or takes long is done by check, before the session is locked; under the lock,
// where the event gets its number (rule 1), appendTo only copies bytes. It refers to the
// caller's event, which must not change until appendTo has copied it.
//
//	ev set → (time.Now, which sets timed, if ev has no time) → check → size, appendTo, note
type preparedEvent struct {
	ev      *Event
	spaces  int // bytes of white space in the data, which are not kept
	escapes int // bytes of the type that need an escape
	tail    int // bytes of its JSON after the number
	timed   int // bytes of time, without the quote after it; 0: no time
	time    timetext.Text
}

// check checks ev and fills in the rest. It wraps ErrInvalidData if the event has no JSON
// form. Data that is trusted is not read, except for newlines: over a byte stream what
// follows one would be another payload, of whatever the data's author likes (rule 11).
func (d *preparedEvent) check(trust bool) error {
	ev := d.ev
	escapes, ok := checkID(ev.Type)
	if !ok && ev.Type != "" || !ev.validData() {
		return ev.fieldError()
	}
	d.tail, d.escapes = len(`}`), escapes
	if d.timed == 0 && !ev.Time.IsZero() {
		d.timed = d.time.Put(ev.Time)
	}
	if d.timed > 0 {
		d.tail += len(timePrefix) + d.timed + len(`"`)
	}
	if ev.Type != "" {
		d.tail += len(typePrefix) + len(ev.Type) + d.escapes + len(`"`)
	}
	if ev.End {
		d.tail += len(endSuffix)
	}
	return d.checkData(trust)
}

// checkData is check for the data: one of Data and Bytes, or neither.
func (d *preparedEvent) checkData(trust bool) (err error) {
	data, raw := d.ev.Data, d.ev.Bytes
	switch {
	case len(raw) > 0:
		d.tail += len(base64Prefix) + base64.StdEncoding.EncodedLen(len(raw)) + len(`"`)
		return nil
	case len(data) == 0:
		return nil
	case !trust:
		if d.spaces, err = jsontext.Check(data); err != nil {
			return fmt.Errorf("%w: data: %v", ErrInvalidData, err)
		}
	case bytes.IndexByte(data, '\n') >= 0:
		return fmt.Errorf("%w: data: byte %d: newline", ErrInvalidData, bytes.IndexByte(data, '\n'))
	}
	d.tail += len(dataPrefix) + len(data) - d.spaces
	return nil
}

// size is the most bytes that the event's JSON takes, whatever number it gets: limits are
// checked and room is reserved before there is one.
func (d *preparedEvent) size() int { return seqRoom + d.tail }

// note records in a slot what appendTo made: all but where the bytes are. data is as
// appendTo returned it.
func (d *preparedEvent) note(s *slot, seq uint64, data int) {
	s.to, s.data, s.timed, s.kind = seq, uint16(data), uint8(d.timed), isJSON
	if len(d.ev.Bytes) > 0 {
		s.kind = isBytes
	}
	if d.ev.End {
		s.kind |= isEnd
	}
}

// appendTo appends the JSON of the event under its number: at most size bytes. data is where
// in it the data or its base64 text begins; 0 if there is neither.
func (d *preparedEvent) appendTo(dst []byte, seq uint64) (out []byte, data int) {
	start := len(dst)
	out = decimal.Append(append(dst, seqPrefix...), seq)
	if d.timed > 0 {
		out = append(append(out, timePrefix...), d.time[:d.timed+len(`"`)]...)
	}
	switch {
	case d.escapes > 0:
		out = jsontext.AppendString(append(out, typePrefix[:len(typePrefix)-1]...), d.ev.Type)
	case d.ev.Type != "":
		out = append(append(append(out, typePrefix...), d.ev.Type...), '"')
	}
	switch {
	case len(d.ev.Data) > 0:
		out = append(out, dataPrefix...)
		data = len(out) - start
		out = jsontext.AppendCompact(out, d.ev.Data, d.spaces)
	case len(d.ev.Bytes) > 0:
		out = append(out, base64Prefix...)
		data = len(out) - start
		out = append(base64.StdEncoding.AppendEncode(out, d.ev.Bytes), '"')
	}
	if d.ev.End {
		out = append(out, endSuffix...)
	}
	return append(out, '}'), data
}

// seqRoom is what an event's JSON takes up to its number, with the longest number.
const seqRoom = len(`{"seq":9007199254740991`)

// decodeEvents makes the events of slots as callers see them. Their Data refers to the
// slots' bytes or, if copied is not nil, to that chunk, which has the same bytes one event
// after the other, as page.appendTo writes them. The caller has seen to it that those bytes
// stay. Bytes are decoded from base64, all into one piece of memory.
func decodeEvents(slots []slot, copied *chunk) []Event {
	if len(slots) == 0 {
		return nil
	}
	var known internTable
	var typ []byte // of the event before, as it stands in the JSON
	word, inBytes, off := "", 0, uint32(0)
	events := make([]Event, len(slots))
	for i := range slots {
		e, s := &events[i], slots[i]
		if copied != nil {
			s.chunk, s.off = copied, off
			off += s.size + 1
		}
		at, text := s.timeAndType(&known)
		if string(text) != string(typ) {
			typ, word = text, known.typeOf(text)
		}
		e.Seq, e.Time, e.Type, e.End = s.to, at, word, s.end()
		switch data := s.value(); {
		case len(data) == 0:
		case s.kind&kindMask == isBytes:
			e.Bytes = data
			inBytes += (len(data) + 3) / 4 * 3
		default:
			e.Data = data
		}
	}
	if inBytes > 0 {
		decodeBytes(events, inBytes)
	}
	return events
}

// decodeBytes decodes the base64 text in the events' Bytes, which is as we write it and so
// can't fail. most is enough memory for all, so that it never moves.
func decodeBytes(events []Event, most int) {
	raw := make([]byte, 0, most)
	for i := range events {
		if e := &events[i]; e.Bytes != nil {
			from := len(raw)
			raw, _ = strictBase64.AppendDecode(raw, e.Bytes)
			e.Bytes = raw[from:len(raw):len(raw)]
		}
	}
}

// strictBase64 takes only the text that encoding produces. A slot's bytes have that one form;
// what a peer wrote in another is decoded leniently and encoded again.
var strictBase64 = base64.StdEncoding.Strict()

// cloneEvents returns copies of events, with all their data in one piece of memory. Each
// slice is capped, so that its owner can append to it and not overwrite the next event's.
func cloneEvents(events []Event) []Event {
	size := 0
	for i := range events {
		size += len(events[i].Data) + len(events[i].Bytes)
	}
	out, data := slices.Clone(events), make([]byte, 0, size)
	clone := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		from := len(data)
		data = append(data, b...)
		return data[from:len(data):len(data)]
	}
	for i := range out {
		out[i].Data, out[i].Bytes = clone(out[i].Data), clone(out[i].Bytes)
	}
	return out
}

// An internTable remembers texts that were read before, so that they are not allocated
// again: types, times and ids repeat. It forgets the older of two that share a place, and
// holds at most 16 short texts, so a hostile peer can make it useless but not large. Its
// owner, a decoder or one call of decodeEvents, is used by one goroutine at a time.
type internTable struct {
	words [8][2]string // by a hash of the text; in each the newer one first
	times timetext.Reader
}

// word returns text as a string: one that it remembers, if it can.
func (m *internTable) word(text []byte) string {
	if len(text) == 0 {
		return ""
	}
	if len(text) > maxID {
		return string(text) // not worth remembering
	}
	words := &m.words[(int(text[0])+7*int(text[len(text)-1])+len(text))%len(m.words)]
	for _, word := range words {
		if word == string(text) {
			return word
		}
	}
	words[0], words[1] = string(text), words[0]
	return words[0]
}

// typeOf is word for an event's type, as it is in the JSON: with escapes.
func (m *internTable) typeOf(text []byte) string {
	if bytes.IndexByte(text, '\\') >= 0 {
		text, _ = jsontext.Unquote(text)
	}
	return m.word(text)
}
