package gvstream

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/decimal"
	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/timetext"
)

// appendTo appends the events' JSON objects, separated by commas. What lies in one
// piece is copied in one piece. There are events.
func (p *page) appendTo(dst []byte) []byte {
	for i := 0; i < len(p.slots); {
		s := p.slots[i]
		end := s.off + s.size
		for i++; i < len(p.slots) && p.slots[i].chunk == s.chunk && p.slots[i].off == end+1; i++ {
			end += 1 + p.slots[i].size
		}
		dst = append(append(dst, s.chunk.b[s.off:end]...), ',')
	}
	return dst[:len(dst)-1]
}

// jsonSize is the bytes that appendTo appends, and one.
func (p *page) jsonSize() int {
	size := 0
	for i := range p.slots {
		size += int(p.slots[i].size) + 1
	}
	return size
}

// open makes the page's events for a caller to keep and not to change, and ends the use
// of the page.
func (p *page) open() (events []Event) {
	if p.shared != nil {
		p.shared.once.Do(func() { p.shared.events = decodeEvents(p.slots, nil) })
		return p.shared.events
	}
	if p.held == heldByPool || p.held == heldByFrame {
		events = p.ownEvents()
	} else {
		events = decodeEvents(p.slots, nil)
	}
	p.end()
	return events
}

// end ends the use of the page: its memory may be another's now.
func (p *page) end() {
	p.memory.release()
	p.slots, p.memory = nil, nil
}

// sharedEvents are the Events of all payloads that are made of one page, made for the
// first of them.
type sharedEvents struct {
	once   sync.Once
	events []Event
}

// ownEvents are the page's events in memory of their own.
func (p *page) ownEvents() []Event {
	if len(p.slots) == 0 {
		return nil
	}
	return decodeEvents(p.slots, &chunk{b: p.appendTo(make([]byte, 0, p.jsonSize()))})
}

// decodeEvents makes the events of slots as callers see them. Their data is what stands
// in the slots' bytes or, if that is not nil, in a chunk to which those were copied.
func decodeEvents(slots []slot, copied *chunk) []Event {
	if len(slots) == 0 {
		return nil
	}
	var known memo
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

// An eventError says which event can't be told.
type eventError struct {
	seq uint64
	err error
}

func (e *eventError) Error() string { return fmt.Sprintf("event %d: %v", e.seq, e.err) }
func (e *eventError) Unwrap() error { return e.err }

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

// encode makes the page of events, if all of them can be encoded. An error is an
// *eventError.
func (p *page) encode(events []Event) error {
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
	p.slots, p.held = make([]slot, len(events)), heldOwn
	out, c := make([]byte, 0, size), new(chunk)
	for i := range drafts {
		d, s, off := &drafts[i], &p.slots[i], len(out)
		var data int
		out, data = d.appendTo(out, events[i].Seq)
		d.note(s, events[i].Seq, data)
		s.chunk, s.off, s.size = c, uint32(off), uint32(len(out)-off)
		out = append(out, ',')
	}
	c.b = out
	return nil
}

// settle takes the page to slots and bytes of its own, in as little memory as they need.
func (p *page) settle() {
	if len(p.slots) > 0 {
		p.slots = slices.Clone(p.slots)
		p.copyTo(&chunk{b: make([]byte, 0, p.jsonSize())})
	}
	p.held = heldOwn
}

// copyTo takes the JSON to a chunk.
func (p *page) copyTo(c *chunk) {
	c.b = p.appendTo(c.b[:0])
	off := uint32(0)
	for i := range p.slots {
		s := &p.slots[i]
		s.chunk, s.off = c, off
		off += s.size + 1
	}
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

// Machines exchange batches in one form: what the payload says but for its Events, and
// those as a page, so that a resend, a replay or a relay encodes nothing again. Next, Run
// and Push make a payload of one; NextFrame and RunLines append its JSON; either ends its
// use. The use of a batch that comes in ends when it was handled.
//
// There is one exception: a batch that was given to Handle, or that a peer wrote in
// another way than we do, still has its Events, and a page without slots. A hub loads the
// page of them, once it knows that it wants them; a viewer copies them.
type (
	eventBatch struct {
		EventBatchPayload
		page
	}
	replayBatch struct {
		ReplayBatchPayload
		page
	}
)

// Batches whose use has ended.
var (
	eventBatches  = sync.Pool{New: func() any { return new(eventBatch) }}
	replayBatches = sync.Pool{New: func() any { return new(replayBatch) }}
)

func newEventBatch() *eventBatch   { return eventBatches.Get().(*eventBatch) }
func newReplayBatch() *replayBatch { return replayBatches.Get().(*replayBatch) }

// newBatch is newPayload with batches in the form that machines take.
func newBatch(typ string) Payload {
	switch typ {
	case "event_batch":
		return newEventBatch()
	case "replay_batch":
		return newReplayBatch()
	}
	return newPayload(typ)
}

// batch is a caller's payload as machines take it. They change nothing of what it points
// to, and keep copies.
func batch(p Payload) Payload {
	switch p := p.(type) {
	case *EventBatchPayload:
		b := newEventBatch()
		b.EventBatchPayload = *p
		return b
	case *ReplayBatchPayload:
		b := newReplayBatch()
		b.ReplayBatchPayload = *p
		return b
	}
	return p
}

// open is a payload as callers see it. If p is a batch, its use ends.
func open(p Payload) Payload {
	switch p := p.(type) {
	case *eventBatch:
		out := p.EventBatchPayload
		if len(p.slots) > 0 {
			out.Events = p.open()
		}
		end(p)
		return &out
	case *replayBatch:
		out := p.ReplayBatchPayload
		if len(p.slots) > 0 {
			out.Events = p.open()
		}
		end(p)
		return &out
	}
	return p
}

// end ends the use of p, if it is a batch.
func end(p Payload) {
	switch p := p.(type) {
	case *eventBatch:
		p.page.end()
		*p = eventBatch{}
		eventBatches.Put(p)
	case *replayBatch:
		p.page.end()
		*p = replayBatch{}
		replayBatches.Put(p)
	}
}

// load makes the page of what the payload says. An error is an *eventError.
func (p *eventBatch) load() error { return p.page.load(p.FirstSeq, p.LastSeq, p.Events, p.Gaps) }

func (p *replayBatch) load() error { return p.page.load(p.FirstSeq, p.LastSeq, p.Events, p.Gaps) }

// copies are the batch's events and gaps for a reader to keep and to write to.
func (p *eventBatch) copies() ([]Event, []Gap) { return p.page.copies(p.Events, p.Gaps) }

func (p *replayBatch) copies() ([]Event, []Gap) { return p.page.copies(p.Events, p.Gaps) }

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
