package gvstream

import (
	"bytes"
	"encoding/base64"
	"fmt"

	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/timetext"
)

// This file reads the events of a batch, in one of two ways. Events that are written exactly
// as this package writes them ("plain": fields in its order, no white space, escapes only in
// data) stay where they are in the frame, and only slots are made of them. All others,
// such as those of an agent in another language, are read field by field into Events.
// Both ways accept the same events, with the same meaning: plain is only an encoding that
// is faster to take. What is not plain is not an error by itself: the plain way gives up at
// the first difference, and unless the frame has failed the other one begins again.

// events reads the events of a batch into pg or, if they are not plain, into a list.
func (d *decoder) events(pg *page, limit int) []Event {
	start, spaces := d.Pos, d.Spaces
	if d.plainEvents(pg, limit) || d.Err != nil {
		return nil
	}
	d.Pos, d.Spaces = start, spaces
	return d.anyEvents(limit)
}

// plainEvents makes slots of the events, which stay in the frame (heldByFrame), if all of
// them are plain. If it reports false without a failure, the caller goes back and reads them
// in the other way; pg is unchanged then. White space inside of data counts as a difference
// too: it is not kept, so such bytes can't be passed on as they are.
func (d *decoder) plainEvents(pg *page, limit int) bool {
	spaces := d.Spaces
	if !d.SkipText("[") || len(d.Src)-d.Pos < len(seqPrefix) {
		return false
	}
	start, typ, slots := d.Pos, "", d.slots[:0]
	for next := true; next; next = d.SkipText(",") {
		if len(slots) == limit {
			d.Fail("events: too many")
			return false
		}
		s := slot{chunk: &d.chunk, off: uint32(d.Pos - start)}
		if !d.plainEvent(&s, &typ) {
			return false
		}
		slots = append(slots, s)
	}
	if !d.SkipText("]") || d.Spaces != spaces {
		return false
	}
	d.slots, d.chunk.b = slots, d.Src[start:d.Pos-1:d.Pos-1]
	pg.slots, pg.held = slots, heldByFrame
	return true
}

// plainEvent reads a plain event into s, and reports false if it is not plain. typ is the
// type of the event before it, and then its own: a run of events mostly has one type,
// which then costs one comparison. The offsets in s are from the event's first byte. Data
// begins within the first few hundred bytes, so 16 bits hold its offset.
func (d *decoder) plainEvent(s *slot, typ *string) bool {
	start := d.Pos
	if !d.SkipText(seqPrefix) || d.Pos == len(d.Src) || d.Src[d.Pos]-'0' > 9 {
		return false
	}
	d.field = "seq"
	s.to, s.kind = d.number(MaxSeq), isJSON
	if d.SkipText(timePrefix) && !d.plainTime(s) {
		return false
	}
	if d.SkipText(typePrefix) && !d.plainType(typ) {
		return false
	}
	if !d.plainData(s, start) {
		return false
	}
	if d.SkipText(endSuffix) {
		s.kind |= isEnd
	}
	s.size = uint32(d.Pos + 1 - start)
	return d.SkipText(`}`)
}

// plainTime reads a time as we write it, after its first quote, and its last quote. The
// value is dropped: what matters is that head can read the text again later. The zero time
// is never written, and so not plain.
func (d *decoder) plainTime(s *slot) bool {
	n := bytes.IndexByte(d.Src[d.Pos:min(len(d.Src), d.Pos+timetext.Max+1)], '"')
	if n < 0 {
		return false
	}
	t, ok := d.times.Read(d.Src[d.Pos : d.Pos+n])
	d.Pos += n + 1
	s.timed = uint8(n)
	return ok && !t.IsZero()
}

// plainType reads a type without escapes, after its first quote, and its last quote. It is
// mostly that of the event before.
func (d *decoder) plainType(typ *string) bool {
	if n := d.Pos + len(*typ); *typ != "" && n < len(d.Src) && d.Src[n] == '"' && string(d.Src[d.Pos:n]) == *typ {
		d.Pos = n + 1
		return true
	}
	d.Pos--
	text := d.Quoted()
	if d.Escaped || len(text) == 0 || len(text) > maxID {
		return false
	}
	*typ = d.word(text)
	return validID(*typ)
}

// plainData reads the data, if there is any, of an event that begins at start. JSON data may
// have any form that is valid; plainEvents looks at its white space.
func (d *decoder) plainData(s *slot, start int) bool {
	switch {
	case d.SkipText(dataPrefix):
		s.data = uint16(d.Pos - start)
		d.Skip()
	case d.SkipText(base64Prefix):
		s.kind, s.data = isBytes, uint16(d.Pos-start)
		return d.plainBytes()
	}
	return true
}

// plainBytes reads base64 as we write it, after its first quote, and its last quote. Empty
// data is never written, and so not plain.
func (d *decoder) plainBytes() bool {
	d.Pos--
	text := d.Quoted()
	return !d.Escaped && len(text) > 0 && isBase64(text)
}

// isBase64 reports whether text is what we make of some bytes: strict base64, with padding
// and no stray bits. It decodes in pieces into memory on the stack, and drops the result.
// The decoder of encoding/base64 would skip newlines, but a scanned string has no control
// characters.
func isBase64(text []byte) bool {
	const piece = 1024
	var out [piece / 4 * 3]byte
	for ; len(text) > piece; text = text[piece:] {
		if n, err := strictBase64.Decode(out[:], text[:piece]); err != nil || n < len(out) {
			return false
		}
	}
	_, err := strictBase64.Decode(out[:], text)
	return err == nil
}

// anyEvents reads the events in whatever form they are. The name in the message is given
// here: the plain way has changed d.field.
func (d *decoder) anyEvents(limit int) (events []Event) {
	for next := d.FirstItem(); next; next = d.NextItem() {
		if len(events) == limit {
			d.Fail("events: too many")
			return nil
		}
		events = append(events, Event{})
		d.event(&events[len(events)-1])
	}
	if d.Err != nil || len(events) == 0 {
		return nil
	}
	d.own(events)
	return events
}

// event reads one event. Its Data and Bytes refer to the frame, Bytes still to the base64
// text, until own copies them; the size of those copies is added up in d.arena.
func (d *decoder) event(e *Event) {
	if d.null() {
		return
	}
	var seen uint32
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		field, name := eventField(d.name(key))
		switch {
		case field == 0:
			d.Skip()
		case field == fieldData: // null is a value here
			if d.once(&seen, field, name) {
				d.eventValue(field, e)
			}
		case d.given(&seen, field, name):
			d.eventValue(field, e)
		}
	}
}

// The fields of an event, one bit each.
const (
	fieldSeq = 1 << iota
	fieldTime
	fieldType
	fieldData
	fieldBase64
	fieldEnd
)

// eventField returns the field of that name, and the name as a text that needs no memory, or
// 0 if there is no such field.
func eventField(name []byte) (field uint32, text string) {
	switch string(name) {
	case "seq":
		return fieldSeq, "seq"
	case "time":
		return fieldTime, "time"
	case "type":
		return fieldType, "type"
	case "data":
		return fieldData, "data"
	case "data_base64":
		return fieldBase64, "data_base64"
	case "end":
		return fieldEnd, "end"
	}
	return 0, ""
}

// eventValue reads the value of a field of an event.
func (d *decoder) eventValue(field uint32, e *Event) {
	switch field {
	case fieldSeq:
		e.Seq = d.number(MaxSeq)
	case fieldTime:
		e.Time = d.anyTime()
	case fieldType:
		e.Type = d.text()
	case fieldData:
		start, spaces := d.Pos, d.Spaces
		d.Skip()
		e.Data = d.Src[start:d.Pos]
		d.arenaSize += len(e.Data) - (d.Spaces - spaces)
	case fieldBase64:
		e.Bytes = d.Quoted()
		d.arenaSize += base64.StdEncoding.DecodedLen(len(e.Bytes))
	case fieldEnd:
		e.End = d.boolean()
	}
}

// own copies what the events refer to in the frame into one piece of memory: data without
// its white space, bytes decoded. d.arena is at least what that needs, so that the memory
// never moves while events refer to it; each event's slice is capped, so that appending to
// it can't write to its neighbour.
func (d *decoder) own(events []Event) {
	arena := make([]byte, 0, d.arenaSize)
	for i := range events {
		e, from := &events[i], len(arena)
		if e.Data != nil {
			arena = jsontext.AppendCompact(arena, e.Data, d.Spaces)
			e.Data = arena[from:len(arena):len(arena)]
			from = len(arena)
		}
		if e.Bytes == nil {
			continue
		}
		text, ok := jsontext.Unquote(e.Bytes)
		var err error
		if arena, err = base64.StdEncoding.AppendDecode(arena, text); err != nil || !ok {
			// All that is left of the frame's bytes begins where the text does.
			d.Err = &jsontext.Error{Message: fmt.Sprintf("event %d: data_base64: not base64", e.Seq), Pos: cap(d.Src) - cap(e.Bytes)}
			return
		}
		if e.Bytes = nil; len(arena) > from {
			e.Bytes = arena[from:len(arena):len(arena)]
		}
	}
}
