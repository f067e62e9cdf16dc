package gvstream

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/decimal"
	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/timetext"
)

// encodedEvents is the JSON of events as a log keeps it and as it stands on the
// wire: made once, when they were published, so that a resend, a replay or a relay
// encodes nothing again. Its bytes are read-only.
type encodedEvents struct {
	slots    []slot        // of the events alone, in order
	sum      uint64        // sumOf the events
	raw      []byte        // the decoded data of those whose data is bytes, one behind the other
	lent     bool          // others may hold the bytes too
	borrowed bool          // slots and bytes are in memory that will be used again
	sealed   bool          // the payload's Events are still to be made of it
	checked  bool          // all data is known to be JSON
	shared   *sharedEvents // with other payloads, or nil

	memory *pageMemory // holds the slots, and the bytes if they are borrowed; or nil
}

// appendTo appends the events' JSON objects, separated by commas. What lies in one
// piece is copied in one piece.
func (m *encodedEvents) appendTo(dst []byte) []byte {
	for i := 0; i < len(m.slots); {
		s := m.slots[i]
		end := s.off + s.size
		for i++; i < len(m.slots) && m.slots[i].chunk == s.chunk && m.slots[i].off == end+1; i++ {
			end += 1 + m.slots[i].size
		}
		dst = append(append(dst, s.chunk.b[s.off:end]...), ',')
	}
	return dst[:len(dst)-1]
}

// open returns the payload's Events, which are made now if they were not: who only
// passes them on needs none.
func (m *encodedEvents) open(events []Event) []Event {
	if !m.sealed {
		return events
	}
	m.sealed = false
	if m.shared == nil {
		m.settle()
		return m.events()
	}
	return m.shared.open(m)
}

// sharedEvents are the Events of several payloads, made for the first that is opened.
type sharedEvents struct {
	once   sync.Once
	of     encodedEvents
	events []Event
}

func (s *sharedEvents) open(m *encodedEvents) []Event {
	s.once.Do(func() {
		s.of = encodedEvents{slots: m.slots}
		s.events = s.of.events()
	})
	m.sum, m.raw = s.of.sum, s.of.raw
	return s.events
}

// count is the number of the payload's events.
func (m *encodedEvents) count(events []Event) int {
	if m.sealed {
		return len(m.slots)
	}
	return len(events)
}

// place is where the payload's event at index i stands in its session.
func (m *encodedEvents) place(events []Event, i int) (seq uint64, end bool) {
	if m.sealed {
		return m.slots[i].to, m.slots[i].end()
	}
	return events[i].Seq, events[i].End
}

// events are the events as callers see them. They share the bytes.
func (m *encodedEvents) events() []Event {
	if len(m.slots) == 0 {
		return nil
	}
	var known memo
	var typ []byte // of the event before, as it stands in the JSON
	word, inBytes := "", 0
	events := make([]Event, len(m.slots))
	for i := range m.slots {
		e, s := &events[i], &m.slots[i]
		at, text := s.head(&known)
		if string(text) != string(typ) {
			typ, word = text, known.typeOf(text)
		}
		e.Seq, e.Time, e.Type, e.End = s.to, at, word, s.end()
		inBytes += s.give(e)
	}
	if inBytes > 0 {
		m.decodeBytes(events, inBytes)
	}
	m.sum = sumOf(events)
	return events
}

// give gives an event its data out of its JSON; if that is bytes, the base64 text of
// it. It returns how many bytes that may be.
func (s *slot) give(e *Event) (inBytes int) {
	data := s.value()
	switch {
	case len(data) == 0:
	case s.kind&kindMask == isBytes:
		e.Bytes = data
		return (len(data) + 3) / 4 * 3
	default:
		e.Data = data
	}
	return 0
}

// give gives all events their data.
func (m *encodedEvents) give(events []Event) (inBytes int) {
	for i := range m.slots {
		inBytes += m.slots[i].give(&events[i])
	}
	return inBytes
}

// decodeBytes makes bytes of the base64 text in the events' Bytes, which is as we
// write it.
func (m *encodedEvents) decodeBytes(events []Event, most int) {
	m.raw = make([]byte, 0, most)
	for i := range events {
		if m.slots[i].kind&kindMask != isBytes {
			continue
		}
		from := len(m.raw)
		m.raw, _ = strictBase64.AppendDecode(m.raw, events[i].Bytes)
		events[i].Bytes = m.raw[from:len(m.raw):len(m.raw)]
	}
}

var strictBase64 = base64.StdEncoding.Strict()

// isOf reports whether the JSON still is that of events: a caller between Next
// and the wire may have put other events, or other bytes, into the payload.
func (m *encodedEvents) isOf(events []Event) bool {
	if len(m.slots) == 0 || len(m.slots) != len(events) || m.sum != sumOf(events) {
		return false
	}
	raw := m.raw
	for i := range events {
		e, s := &events[i], &m.slots[i]
		data, bytes := s.value(), []byte(nil)
		if s.kind&kindMask == isBytes {
			n := min(len(e.Bytes), len(raw))
			data, bytes, raw = nil, raw[:n], raw[n:]
		}
		if !sameBytes(e.Data, data) || !sameBytes(e.Bytes, bytes) {
			return false
		}
	}
	return len(raw) == 0
}

// sumOf is a sum of all that is to be told of events, but for their data.
func sumOf(events []Event) (sum uint64) {
	typ, typSum := "", maphash.String(sumSeed, "")
	for i := range events {
		e := &events[i]
		if e.Type != typ {
			typ, typSum = e.Type, maphash.String(sumSeed, e.Type)
		}
		of := typSum
		if e.End {
			of = ^of
		}
		sum = mix(sum^of, e.Seq)
		sum = mix(sum^uint64(e.Time.Unix()), uint64(e.Time.Nanosecond()))
	}
	return sum
}

// mix has each bit of a and b change half of the sum's.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xd1342543de82ef95)
	return hi ^ lo
}

var sumSeed = maphash.MakeSeed()

// sameBytes reports whether a and b are the same memory.
func sameBytes(a, b []byte) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// An eventError says which event can't be told.
type eventError struct {
	seq uint64
	err error
}

func (e *eventError) Error() string { return fmt.Sprintf("event %d: %v", e.seq, e.err) }
func (e *eventError) Unwrap() error { return e.err }

// own returns the payload's events and gaps as nobody else reads them: copies, if
// others may.
func (m *encodedEvents) own(events []Event, gaps []Gap) ([]Event, []Gap) {
	if !m.lent {
		return events, gaps
	}
	return cloneEvents(events), slices.Clone(gaps)
}

func cloneEvents(events []Event) []Event {
	out := slices.Clone(events)
	for i := range out {
		out[i].Data, out[i].Bytes = bytes.Clone(out[i].Data), bytes.Clone(out[i].Bytes)
	}
	return out
}

// encode makes the JSON of events, if all of them can be told.
func (m *encodedEvents) encode(events []Event) error {
	size := 0
	drafts := make([]draft, len(events))
	for i := range events {
		drafts[i].ev = &events[i]
		if err := drafts[i].check(false); err != nil {
			return &eventError{events[i].Seq, err}
		}
		size += drafts[i].size() + 1
	}
	if size > maxFrame {
		return &eventError{events[0].Seq, ErrTooLarge}
	}
	*m = encodedEvents{slots: make([]slot, len(events)), checked: true, sum: sumOf(events)}
	out, c := make([]byte, 0, size), new(chunk)
	for i := range drafts {
		d, s, off := &drafts[i], &m.slots[i], len(out)
		var data int
		out, data = d.appendTo(out, events[i].Seq)
		d.note(s, events[i].Seq, data)
		s.chunk, s.off, s.size = c, uint32(off), uint32(len(out)-off)
		out = append(out, ',')
	}
	c.b = out
	return nil
}

// copied is the same JSON in memory of its own.
func (m *encodedEvents) copied() encodedEvents {
	if len(m.slots) == 0 {
		return encodedEvents{}
	}
	out := encodedEvents{slots: slices.Clone(m.slots), checked: m.checked}
	out.copyOut()
	return out
}

// copyOut takes the JSON to memory of its own. There are events, and nobody else has
// their slots.
func (m *encodedEvents) copyOut() {
	size := 0
	for i := range m.slots {
		size += int(m.slots[i].size) + 1
	}
	m.copyTo(&chunk{b: make([]byte, 0, size)})
}

// copyTo takes the JSON to a chunk.
func (m *encodedEvents) copyTo(c *chunk) {
	c.b = m.appendTo(c.b[:0])
	off := uint32(0)
	for i := range m.slots {
		s := &m.slots[i]
		s.chunk, s.off = c, off
		off += s.size + 1
	}
}

// settle takes what is borrowed to memory of its own.
func (m *encodedEvents) settle() {
	if !m.borrowed && m.memory == nil {
		return
	}
	memory := m.memory
	m.slots, m.memory = slices.Clone(m.slots), nil
	if m.borrowed && len(m.slots) > 0 {
		m.copyOut()
	}
	m.borrowed = false
	memory.release()
}

// A pageMemory is what a page of a log is made of, to be used again by another once
// that one is encoded. A page that nobody gives back is the garbage collector's.
type pageMemory struct {
	slots []slot
	chunk chunk
}

var pageMemories = sync.Pool{New: func() any { return new(pageMemory) }}

func (m *pageMemory) release() {
	if m == nil || len(m.chunk.b) > maxBatchBytes {
		return
	}
	clear(m.slots) // they hold the log's chunks
	pageMemories.Put(m)
}

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
func (s *slot) head(known *memo) (at time.Time, typ []byte) {
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

// A memo knows texts that were read before: types, times and ids repeat.
type memo struct {
	words [8][2]string
	times timetext.Reader
}

// word is text as a string.
func (m *memo) word(text []byte) string {
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
func (m *memo) typeOf(text []byte) string {
	if bytes.IndexByte(text, '\\') >= 0 {
		text, _ = jsontext.Unquote(text)
	}
	return m.word(text)
}

// A draft is an event that was checked and has no number yet. All that can fail or
// takes long is done when it is made, so that the rest may be done under a lock.
type draft struct {
	ev      *Event
	spaces  int // bytes of the data that are not kept
	escapes int // bytes of the type that need one
	tail    int // bytes of its JSON behind the number
	timed   int // bytes of time, without the quote behind it
	time    timetext.Text
}

const seqRoom = len(`{"seq":9007199254740991`)

// check checks ev and fills the rest in. It wraps ErrInvalidData if the event can't be
// told. Data that is trusted is kept as it is; it is only kept from beginning a line,
// which could be any payload.
func (d *draft) check(trust bool) (err error) {
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
	switch {
	case len(ev.Data) > 0:
		if trust && bytes.IndexByte(ev.Data, '\n') >= 0 {
			return fmt.Errorf("%w: data: newline", ErrInvalidData)
		} else if !trust {
			if d.spaces, err = jsontext.Check(ev.Data); err != nil {
				return fmt.Errorf("%w: data: %v", ErrInvalidData, err)
			}
		}
		d.tail += len(headData) + len(ev.Data) - d.spaces
	case len(ev.Bytes) > 0:
		d.tail += len(head64) + base64.StdEncoding.EncodedLen(len(ev.Bytes)) + len(`"`)
	}
	if ev.End {
		d.tail += len(tailEnd)
	}
	return nil
}

// size is the most that the numbered event's JSON takes, in bytes.
func (d *draft) size() int { return seqRoom + d.tail }

// note notes in a slot what appendTo made, but for its place.
func (d *draft) note(s *slot, seq uint64, data int) {
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
func (d *draft) appendTo(dst []byte, seq uint64) (out []byte, data int) {
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
