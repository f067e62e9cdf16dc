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

// An eventError says which event can't be told.
type eventError struct {
	seq uint64
	err error
}

func (e *eventError) Error() string { return fmt.Sprintf("event %d: %v", e.seq, e.err) }
func (e *eventError) Unwrap() error { return e.err }

const (
	headSeq  = `{"seq":`
	headTime = `,"time":"`
	headType = `,"type":"`
	headData = `,"data":`
	head64   = `,"data_base64":"`
	tailEnd  = `,"end":true`
)

// value is the data in an event's JSON, or the base64 text of its bytes.
func (s *slot) value() []byte {
	if s.data == 0 {
		return nil
	}
	json := s.bytes()
	end := len(json) - len(`}`)
	if s.end() {
		end -= len(tailEnd)
	}
	if s.kind&kindMask == isBytes {
		end -= len(`"`)
	}
	return json[s.data:end:end]
}

// head is the time and the type, with escapes, in an event's JSON.
func (s *slot) head(known *internTable) (at time.Time, typ []byte) {
	json, i := s.bytes(), len(headSeq)+decimal.Len(s.to)
	if s.timed > 0 {
		from := i + len(headTime)
		i = from + int(s.timed) + len(`"`)
		at, _ = known.times.Read(json[from : i-len(`"`)])
	}
	if end := s.headEnd(); end > i {
		typ = json[i+len(headType) : end-len(`"`)]
	}
	return at, typ
}

// headEnd is where in an event's JSON its time and type are over.
func (s *slot) headEnd() int {
	switch {
	case s.data > 0 && s.kind&kindMask == isBytes:
		return int(s.data) - len(head64)
	case s.data > 0:
		return int(s.data) - len(headData)
	case s.end():
		return int(s.size) - len(`}`) - len(tailEnd)
	}
	return int(s.size) - len(`}`)
}

// A preparedEvent is an event that was checked and has no number yet. All that can fail or
// takes long is done when it is made, so that the rest may be done under a lock.
type preparedEvent struct {
	ev      *Event
	spaces  int // bytes of the data that are not kept
	escapes int // bytes of the type that need one
	tail    int // bytes of its JSON behind the number
	timed   int // bytes of time, without the quote behind it
	time    timetext.Text
}

// check checks ev and fills the rest in. It wraps ErrInvalidData if the event can't be
// told. Data that is trusted is kept as it is; it is only kept from beginning a line,
// which could be any payload.
func (d *preparedEvent) check(trust bool) error {
	ev := d.ev
	escapes, ok := checkID(ev.Type)
	if !ok && ev.Type != "" || !ev.validData() {
		return ErrInvalidData
	}
	d.tail, d.escapes = len(`}`), escapes
	if d.timed == 0 && !ev.Time.IsZero() {
		d.timed = d.time.Put(ev.Time)
	}
	if d.timed > 0 {
		d.tail += len(headTime) + d.timed + len(`"`)
	}
	if ev.Type != "" {
		d.tail += len(headType) + len(ev.Type) + d.escapes + len(`"`)
	}
	if ev.End {
		d.tail += len(tailEnd)
	}
	return d.checkData(trust)
}

// checkData is check for the data: one of Data and Bytes, or neither.
func (d *preparedEvent) checkData(trust bool) (err error) {
	data, raw := d.ev.Data, d.ev.Bytes
	switch {
	case len(raw) > 0:
		d.tail += len(head64) + base64.StdEncoding.EncodedLen(len(raw)) + len(`"`)
		return nil
	case len(data) == 0:
		return nil
	case !trust:
		if d.spaces, err = jsontext.Check(data); err != nil {
			return fmt.Errorf("%w: data: %v", ErrInvalidData, err)
		}
	case bytes.IndexByte(data, '\n') >= 0:
		return fmt.Errorf("%w: data: newline", ErrInvalidData)
	}
	d.tail += len(headData) + len(data) - d.spaces
	return nil
}

// size is the most that the numbered event's JSON takes, in bytes.
func (d *preparedEvent) size() int { return seqRoom + d.tail }

// note notes in a slot what appendTo made, but for its place.
func (d *preparedEvent) note(s *slot, seq uint64, data int) {
	s.to, s.data, s.timed, s.kind = seq, uint16(data), uint8(d.timed), isJSON
	if len(d.ev.Bytes) > 0 {
		s.kind = isBytes
	}
	if d.ev.End {
		s.kind |= isEnd
	}
}

// appendTo appends the JSON of the event as a number. data is where in it the data
// begins, or the base64 text; 0 if there is neither.
func (d *preparedEvent) appendTo(dst []byte, seq uint64) (out []byte, data int) {
	start := len(dst)
	out = decimal.Append(append(dst, headSeq...), seq)
	if d.timed > 0 {
		out = append(append(out, headTime...), d.time[:d.timed+len(`"`)]...)
	}
	switch {
	case d.escapes > 0:
		out = jsontext.AppendString(append(out, headType[:len(headType)-1]...), d.ev.Type)
	case d.ev.Type != "":
		out = append(append(append(out, headType...), d.ev.Type...), '"')
	}
	switch {
	case len(d.ev.Data) > 0:
		out = append(out, headData...)
		data = len(out) - start
		out = jsontext.AppendCompact(out, d.ev.Data, d.spaces)
	case len(d.ev.Bytes) > 0:
		out = append(out, head64...)
		data = len(out) - start
		out = append(base64.StdEncoding.AppendEncode(out, d.ev.Bytes), '"')
	}
	if d.ev.End {
		out = append(out, tailEnd...)
	}
	return append(out, '}'), data
}

const seqRoom = len(`{"seq":9007199254740991`)

// decodeEvents makes the events of slots as callers see them. Their data is what stands
// in the slots' bytes or, if that is not nil, in a chunk to which those were copied.
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
		at, text := s.head(&known)
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

// decodeBytes makes bytes of the base64 text in the events' Bytes, which is as we
// write it.
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

var strictBase64 = base64.StdEncoding.Strict()

// cloneEvents are events in memory of their own, all their data in one piece.
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

// An internTable knows texts that were read before: types, times and ids repeat.
type internTable struct {
	words [8][2]string
	times timetext.Reader
}

// word is text as a string.
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

// typeOf is word for a text that may have escapes.
func (m *internTable) typeOf(text []byte) string {
	if bytes.IndexByte(text, '\\') >= 0 {
		text, _ = jsontext.Unquote(text)
	}
	return m.word(text)
}
