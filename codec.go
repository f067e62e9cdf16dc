package gvstream

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/vibetools/gvstream/internal/timetext"
)

// maxDepth is how deep the data of an event, or a field that we ignore, may nest.
const maxDepth = 500

// maxFrame is the bytes of a frame, and of one batch's events: what slots can tell.
const maxFrame = math.MaxInt32

// Marshal returns the JSON envelope of p, {"type":"ack_batch","payload":{…}}, on
// one line without a newline. It means what encoding/json makes of p; times are
// in UTC. It does not block, may be called concurrently for the same p, and the
// result is the caller's.
//
// It fails for a nil p and, wrapping ErrInvalidData, for an event that can't be
// told. It does not check that a peer may say p.
func Marshal(p Payload) ([]byte, error) { return Append(nil, p) }

// isNil reports whether there is no payload in p, not even behind its type.
func isNil(p Payload) bool {
	v := reflect.ValueOf(p)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// Append is Marshal into a buffer of the caller's: it appends the envelope to dst
// and returns the extended slice. After an error it returns dst as it was. It
// keeps neither dst nor p.
func Append(dst []byte, p Payload) ([]byte, error) {
	if isNil(p) {
		return dst, errors.New("gvstream: nil payload")
	}
	w := walker{out: append(dst, `{"type":"`...)}
	w.out = append(w.out, p.payloadType()...)
	w.out = append(w.out, `","payload":{`...)
	w.fields(p)
	if w.err != nil {
		return dst, w.err
	}
	return append(w.out, "}}"...), nil
}

// Unmarshal returns the payload in a JSON envelope, checked: what it returns obeys
// the limits of the protocol, and its batches are without holes. It does not
// block, may be called concurrently, and keeps no reference to data; events of
// one batch share one piece of memory, which is read-only.
//
// It is stricter than encoding/json: names must match in case, a field may stand
// once, numbers are plain integers from 0 to MaxSeq, and text is valid UTF-8.
// Unknown fields are ignored, null is an absent field, and the order of fields
// does not matter. It never spends memory on more entries than a payload may have.
//
// Every error is a *ProtocolError with code "malformed", or "unknown_type" for a
// type that this version does not know: answer it, and go on (rule 11).
func Unmarshal(data []byte) (Payload, error) {
	d := decoders.Get().(*decoder)
	defer d.release()
	p, err := d.decode(data)
	return p, plain(err)
}

// decode returns the payload in a frame.
func (d *decoder) decode(frame []byte) (Payload, *ProtocolError) {
	switch {
	case len(frame) > maxFrame:
		return nil, malformed("frame: more than %d bytes", maxFrame)
	case !utf8.Valid(frame):
		return nil, malformed("frame: not valid UTF-8")
	}
	d.b = frame
	p, typ := d.envelope()
	err := d.err
	switch {
	case err != nil:
	case p == nil:
		err = &ProtocolError{Code: codeUnknownType, Message: fmt.Sprintf("unknown type %q", cut(typ))}
	default:
		err = p.check()
	}
	if err == nil {
		return p, nil
	}
	_, err.unanswered = p.(*ErrorPayload) // an error is never answered by an error (rule 11)
	return nil, err
}

// newPayload returns an empty payload of a type, or nil.
func newPayload(typ string) Payload {
	switch typ {
	case "hello":
		return new(HelloPayload)
	case "welcome":
		return new(WelcomePayload)
	case "status":
		return new(StatusPayload)
	case "event_batch":
		return new(EventBatchPayload)
	case "ack_batch":
		return new(AckBatchPayload)
	case "watch":
		return new(WatchPayload)
	case "replay_request":
		return new(ReplayRequestPayload)
	case "replay_batch":
		return new(ReplayBatchPayload)
	case "error":
		return new(ErrorPayload)
	}
	return nil
}

// A walker is given the fields of an object one after the other, by the one list
// that each type has for both directions. Without a decoder it appends them to
// out; with one it reads the value of the field that is called key.
type walker struct {
	out []byte
	err error

	d    *decoder
	key  []byte
	hit  bool   // the field called key was found
	bit  uint32 // of the next field
	seen uint32 // bits of the fields that were read
}

// fields calls the list of p, a payload or a part of one. A type switch, unlike an
// interface, leaves the walker on the stack.
func (w *walker) fields(p any) {
	switch p := p.(type) {
	case *HelloPayload:
		w.text("viewer_id", &p.ViewerID)
		w.whole("v", &p.V)
		w.text("role", &p.Role)
	case *WelcomePayload:
		w.text("viewer_id", &p.ViewerID)
		w.whole("v", &p.V)
		w.text("link", &p.Link)
		w.whole("window", &p.Window)
	case *StatusPayload:
		w.text("viewer_id", &p.ViewerID)
		w.text("link", &p.Link)
		w.flag("more", &p.More)
		walkList(w, "sessions", &p.Sessions, maxStatus)
	case *SessionStatus:
		w.text("session_id", &p.SessionID)
		w.text("epoch", &p.Epoch)
		w.first("first_seq", &p.FirstSeq)
		w.seq("head_seq", &p.HeadSeq)
		w.seq("ack_seq", &p.AckSeq)
		w.flag("ended", &p.Ended)
		w.optText("prev_epoch", &p.PrevEpoch)
		w.optSeq("prev_seq", &p.PrevSeq)
	case *EventBatchPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("epoch", &p.Epoch)
		w.text("link", &p.Link)
		w.first("first_seq", &p.FirstSeq)
		w.seq("last_seq", &p.LastSeq)
		w.seq("head_seq", &p.HeadSeq)
		w.events(&p.Events, &p.encoded, p.LastSeq-p.FirstSeq, maxBatchEvents)
		walkList(w, "gaps", &p.Gaps, maxBatchGaps)
	case *AckBatchPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("epoch", &p.Epoch)
		w.text("link", &p.Link)
		w.seq("up_to_seq", &p.UpToSeq)
		w.flag("nack", &p.Nack)
	case *WatchPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("epoch", &p.Epoch)
		w.seq("after_seq", &p.AfterSeq)
		w.flag("stop", &p.Stop)
	case *ReplayRequestPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("request_id", &p.RequestID)
		w.text("epoch", &p.Epoch)
		w.seq("after_seq", &p.AfterSeq)
		w.seq("until_seq", &p.UntilSeq)
		w.whole("limit", &p.Limit)
	case *ReplayBatchPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("request_id", &p.RequestID)
		w.text("epoch", &p.Epoch)
		w.first("first_seq", &p.FirstSeq)
		w.seq("last_seq", &p.LastSeq)
		w.seq("until_seq", &p.UntilSeq)
		w.first("available_from", &p.AvailableFrom)
		w.flag("done", &p.Done)
		w.events(&p.Events, &p.encoded, p.LastSeq-p.FirstSeq, maxReplayPage)
		walkList(w, "gaps", &p.Gaps, maxBatchGaps)
	case *ErrorPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("code", &p.Code)
		w.optText("message", &p.Message)
		w.flag("retryable", &p.Retryable)
		w.optText("request_id", &p.RequestID)
		w.optText("epoch", &p.Epoch)
		w.optSeq("seq", &p.Seq)
	case *Gap:
		w.seq("from", &p.From)
		w.seq("to", &p.To)
		w.text("reason", (*string)(&p.Reason))
	default:
		w.err = fmt.Errorf("gvstream: a %T is no payload", p)
	}
}

// at reports whether the named field's value is to be written, or read, now.
func (w *walker) at(name string) bool {
	if w.d == nil {
		if w.out[len(w.out)-1] != '{' {
			w.out = append(w.out, ',')
		}
		w.out = append(append(append(w.out, '"'), name...), '"', ':')
		return true
	}
	bit := w.bit
	w.bit <<= 1
	if w.hit || string(w.key) != name {
		return false
	}
	w.hit = true
	return w.d.once(&w.seen, bit, name) && !w.d.null()
}

func (w *walker) text(name string, p *string) {
	switch {
	case !w.at(name):
	case w.d != nil:
		*p = w.d.text()
	default:
		w.out = appendString(w.out, *p)
	}
}

func (w *walker) seq(name string, p *uint64) { w.number(name, p, MaxSeq) }

// first is where a range begins: behind the last number there is, if it is empty.
func (w *walker) first(name string, p *uint64) { w.number(name, p, MaxSeq+1) }

func (w *walker) number(name string, p *uint64, most uint64) {
	switch {
	case !w.at(name):
	case w.d != nil:
		*p = w.d.number(most)
	default:
		w.out = strconv.AppendUint(w.out, *p, 10)
	}
}

func (w *walker) whole(name string, p *int) {
	switch {
	case !w.at(name):
	case w.d != nil:
		*p = int(w.d.number(min(MaxSeq, math.MaxInt)))
	default:
		w.out = strconv.AppendInt(w.out, int64(*p), 10)
	}
}

// The fields below are left out when they are zero.

func (w *walker) optText(name string, p *string) {
	if w.d != nil || *p != "" {
		w.text(name, p)
	}
}

func (w *walker) optSeq(name string, p *uint64) {
	if w.d != nil || *p != 0 {
		w.seq(name, p)
	}
}

func (w *walker) flag(name string, p *bool) {
	switch {
	case w.d == nil && !*p, !w.at(name):
	case w.d != nil:
		*p = w.d.boolean()
	default:
		w.out = append(w.out, "true"...)
	}
}

func walkList[T any](w *walker, name string, p *[]T, limit int) {
	switch {
	case w.d == nil && len(*p) == 0, !w.at(name):
		return
	case w.d != nil:
		*p = decodeList[T](w.d, limit)
		return
	}
	sep := byte('[')
	for i := range *p {
		w.out = append(w.out, sep, '{')
		w.fields(&(*p)[i])
		w.out = append(w.out, '}')
		sep = ','
	}
	w.out = append(w.out, ']')
}

// events walks the events of a batch, of which at least about more+1 are expected.
func (w *walker) events(p *[]Event, made *encodedEvents, more uint64, limit int) {
	switch {
	case w.d == nil && made.count(*p) == 0, !w.at("events"):
		return
	case w.d != nil:
		*p = w.d.events(made, more, limit)
		return
	}
	w.out = append(w.out, '[')
	if made.sealed || made.isOf(*p) {
		w.out = made.appendTo(w.out)
	} else {
		w.eachEvent(*p)
	}
	w.out = append(w.out, ']')
}

func (w *walker) eachEvent(events []Event) {
	for i := range events {
		d := draft{ev: &events[i]}
		if err := d.check(false); err != nil {
			w.err = &eventError{events[i].Seq, err}
			return
		}
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.out, _ = d.appendTo(w.out, events[i].Seq)
	}
}

// checkJSON reports how many bytes of white space stand between the tokens of src.
// It wraps ErrInvalidData if src is not exactly one JSON value in valid UTF-8,
// nested at most maxDepth deep.
func checkJSON(src []byte) (spaces int, err error) {
	if !utf8.Valid(src) {
		return 0, fmt.Errorf("%w: data: not valid UTF-8", ErrInvalidData)
	}
	s := scanner{b: src}
	s.skip(0)
	s.end()
	if s.err != nil {
		return 0, fmt.Errorf("%w: data: %s", ErrInvalidData, s.err.Message)
	}
	return s.spaces, nil
}

// appendCompact appends valid JSON without the white space, so many bytes of it,
// that stands between its tokens.
func appendCompact(dst, src []byte, spaces int) []byte {
	if spaces == 0 {
		return append(dst, src...)
	}
	for i := 0; i < len(src); {
		from := i
		if src[i] == '"' {
			i = stringEnd(src, i+1)
		} else {
			for i < len(src) && src[i] > ' ' && src[i] != '"' {
				i++
			}
		}
		dst = append(dst, src[from:i]...)
		for i < len(src) && src[i] <= ' ' {
			i++
		}
	}
	return dst
}

// stringEnd returns the index behind the string that b[i] is in, which is valid.
func stringEnd(b []byte, i int) int {
	for {
		i += plainLen(b[i:])
		if b[i] == '"' {
			return i + 1
		}
		i += 2 // the backslash and what it escapes, or its u
	}
}

// appendString appends s as a JSON string. Like encoding/json it tells bytes that
// are not UTF-8 as U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c, n := s[i], 1
		if c >= utf8.RuneSelf {
			var r rune
			if r, n = utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
		} else if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, `\ufffd`...)
		case c < ' ':
			const hex = "0123456789abcdef"
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, '\\', c)
		}
		i += n
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

// decoders hold what they remember from one frame to the next: ids, types and
// times come again.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// A decoder reads the frames of the protocol. The first failure stays in err and
// moves it to the end of the input, so that every loop comes to its end.
type decoder struct {
	scanner
	memo
	field string // being read, for messages
	arena int    // bytes that the events' data needs

	borrow bool   // batches are to be sealed, and their bytes left where they are
	slots  []slot // those of such a batch, until release
	chunk  chunk  // and its bytes
}

// release ends the use of a decoder, and of what it lent.
func (d *decoder) release() {
	clear(d.slots)
	d.scanner, d.arena, d.borrow, d.slots, d.chunk = scanner{}, 0, false, d.slots[:0], chunk{}
	decoders.Put(d)
}

// envelope returns the payload, or nil and the type if that is unknown.
func (d *decoder) envelope() (p Payload, typ string) {
	var seen uint32
	at := -1 // where a payload stands that came before its type
	found := false
	for key := d.firstKey(); key != nil; key = d.nextKey() {
		switch string(d.name(key)) {
		case "type":
			if d.once(&seen, 1, "type") && !d.null() {
				typ = d.text()
				p = newPayload(typ)
			}
		case "payload":
			if !d.once(&seen, 2, "payload") || d.null() {
				continue
			}
			found = true
			if p != nil {
				d.object(p)
				continue
			}
			at = d.i
			d.skip(0)
		default:
			d.skip(0)
		}
	}
	d.end()
	switch {
	case typ == "":
		d.fail("envelope without a type")
	case !found && p != nil:
		d.fail("envelope without a payload")
	case at >= 0 && p != nil && d.err == nil:
		d.i = at
		d.object(p)
	}
	return p, typ
}

// object reads the fields of p, a payload or a part of one.
func (d *decoder) object(p any) {
	if d.null() {
		return
	}
	w := walker{d: d}
	for key := d.firstKey(); key != nil; key = d.nextKey() {
		w.key, w.hit, w.bit = d.name(key), false, 1
		w.fields(p)
		if !w.hit {
			d.skip(0)
		}
	}
}

func decodeList[T any](d *decoder, limit int) (list []T) {
	name := d.field
	for more := d.firstItem(); more; more = d.nextItem() {
		if len(list) == limit {
			d.fail(name + ": too many")
			break
		}
		list = append(list, *new(T))
		d.object(&list[len(list)-1])
	}
	return list
}

// events reads the events of a batch, about more+1 of them.
func (d *decoder) events(made *encodedEvents, more uint64, limit int) []Event {
	start, spaces := d.i, d.spaces
	events, ok := d.plainEvents(made, more, limit)
	if ok || d.err != nil {
		return events
	}
	*made = encodedEvents{}
	d.i, d.spaces = start, spaces
	return d.anyEvents(events, limit)
}

// plainEvents reads the events if they stand in the frame just as we write them, so
// that their JSON can be kept in made; it reports false if they do not. Of those that
// are borrowed it makes nothing else.
func (d *decoder) plainEvents(made *encodedEvents, more uint64, limit int) (events []Event, ok bool) {
	spaces := d.spaces
	if !d.skipText("[") || len(d.b)-d.i < len(headSeq) {
		return nil, false
	}
	start, c := d.i, &d.chunk
	slots, e := d.slots[:0], new(Event)
	if !d.borrow { // at least 10 bytes each, `{"seq":1},`
		n := min(more, uint64(limit-1), uint64(len(d.b)-d.i)/10) + 1
		slots, events, c = make([]slot, 0, n), make([]Event, 0, n), new(chunk)
	}
	for next := true; next; next = d.skipText(",") {
		if len(slots) == limit {
			d.fail("events: too many")
			return events, false
		}
		if !d.borrow {
			events = append(events, Event{Type: e.Type})
			e = &events[len(events)-1]
		}
		s := slot{chunk: c, off: uint32(d.i - start)}
		if !d.plainEvent(e, &s) {
			return events, false
		}
		slots = append(slots, s)
	}
	if !d.skipText("]") || d.spaces != spaces {
		return events, false
	}
	*made = encodedEvents{slots: slots, checked: true, sealed: d.borrow, borrowed: d.borrow}
	if c.b = d.b[start : d.i-1 : d.i-1]; d.borrow {
		d.slots = slots
		return nil, true
	}
	c.b = bytes.Clone(c.b)
	made.sum = sumOf(events)
	if inBytes := made.give(events); inBytes > 0 {
		made.decodeBytes(events, inBytes)
	}
	return events, true
}

// plainEvent reads an event that is written as we write it, and reports false if it
// is not. The one before it had the type that e has.
func (d *decoder) plainEvent(e *Event, s *slot) bool {
	start := d.i
	if !d.skipText(headSeq) || d.i == len(d.b) || d.b[d.i]-'0' > 9 {
		return false
	}
	d.field = "seq"
	s.to = d.number(MaxSeq)
	e.Seq, s.kind = s.to, isJSON
	if d.skipText(headTime) && !d.plainTime(&e.Time, s) {
		return false
	}
	if !d.skipText(headType) {
		e.Type = ""
	} else if !d.plainType(e) {
		return false
	}
	switch {
	case d.skipText(headData):
		s.data = uint16(d.i - start)
		d.skip(0)
	case d.skipText(head64):
		s.kind, s.data = isBytes, uint16(d.i-start)
		if !d.plainBytes() {
			return false
		}
	}
	if e.End = d.skipText(tailEnd); e.End {
		s.kind |= isEnd
	}
	s.size = uint32(d.i + 1 - start)
	return d.skipText(`}`)
}

// plainTime reads a time that is written as we write it, without its first quote.
func (d *decoder) plainTime(t *time.Time, s *slot) (ok bool) {
	n := bytes.IndexByte(d.b[d.i:min(len(d.b), d.i+timetext.Max+1)], '"')
	if n < 0 {
		return false
	}
	*t, ok = d.times.Read(d.b[d.i : d.i+n])
	d.i += n + 1
	s.timed = uint8(n)
	return ok && !t.IsZero()
}

// plainType reads a type without escapes and its first quote. It is mostly that of
// the event before.
func (d *decoder) plainType(e *Event) bool {
	if n := d.i + len(e.Type); e.Type != "" && n < len(d.b) && d.b[n] == '"' && string(d.b[d.i:n]) == e.Type {
		d.i = n + 1
		return true
	}
	d.i--
	text := d.str()
	if d.escaped || len(text) == 0 || len(text) > maxID {
		return false
	}
	e.Type = d.word(text)
	return validID(e.Type)
}

// plainBytes reads base64 as we write it, without its first quote.
func (d *decoder) plainBytes() bool {
	d.i--
	text := d.str()
	return !d.escaped && len(text) > 0 && isBase64(text)
}

// isBase64 reports whether text is what we make of some bytes. No control characters
// are in it, which the library takes.
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

// anyEvents reads the events in whatever form they stand. The memory of those that
// were read in vain is used again.
func (d *decoder) anyEvents(events []Event, limit int) []Event {
	events = events[:0]
	for next := d.firstItem(); next; next = d.nextItem() {
		if len(events) == limit {
			d.fail("events: too many")
			return nil
		}
		events = append(events, Event{})
		d.event(&events[len(events)-1])
	}
	if d.err != nil || len(events) == 0 {
		return nil
	}
	d.own(events)
	return events
}

// skipText passes over a text if it comes next.
func (d *decoder) skipText(text string) bool {
	if n := d.i + len(text); n <= len(d.b) && string(d.b[d.i:n]) == text {
		d.i = n
		return true
	}
	return false
}

// event reads one event. Its Data and Bytes are what stands in the frame, until
// own copies them.
func (d *decoder) event(e *Event) {
	if d.null() {
		return
	}
	var seen uint32
	for key := d.firstKey(); key != nil; key = d.nextKey() {
		switch string(d.name(key)) {
		case "seq":
			if d.once(&seen, 1, "seq") && !d.null() {
				e.Seq = d.number(MaxSeq)
			}
		case "time":
			if d.once(&seen, 2, "time") && !d.null() {
				e.Time = d.anyTime()
			}
		case "type":
			if d.once(&seen, 4, "type") && !d.null() {
				e.Type = d.text()
			}
		case "data": // null is a value here
			if d.once(&seen, 8, "data") {
				start, spaces := d.i, d.spaces
				d.skip(0)
				e.Data = d.b[start:d.i]
				d.arena += len(e.Data) - (d.spaces - spaces)
			}
		case "data_base64":
			if d.once(&seen, 16, "data_base64") && !d.null() {
				e.Bytes = d.str()
				d.arena += base64.StdEncoding.DecodedLen(len(e.Bytes))
			}
		case "end":
			if d.once(&seen, 32, "end") && !d.null() {
				e.End = d.boolean()
			}
		default:
			d.skip(0)
		}
	}
}

// own copies what the events took from the frame into one piece of memory.
func (d *decoder) own(events []Event) {
	arena := make([]byte, 0, d.arena)
	for i := range events {
		e, from := &events[i], len(arena)
		if e.Data != nil {
			arena = appendCompact(arena, e.Data, d.spaces)
			e.Data = arena[from:len(arena):len(arena)]
			from = len(arena)
		}
		if e.Bytes == nil {
			continue
		}
		text, ok := unquote(e.Bytes)
		var err error
		if arena, err = base64.StdEncoding.AppendDecode(arena, text); err != nil || !ok {
			d.err = malformed("event %d: data_base64: not base64", e.Seq)
			return
		}
		if e.Bytes = nil; len(arena) > from {
			e.Bytes = arena[from:len(arena):len(arena)]
		}
	}
}

// once marks a field as seen and reports whether it is for the first time.
func (d *decoder) once(seen *uint32, bit uint32, name string) bool {
	d.field = name
	if *seen&bit != 0 {
		d.fail(name + ": given twice")
		return false
	}
	*seen |= bit
	return d.peek() != 0
}

// null reads a null, if one comes next.
func (d *decoder) null() bool {
	if d.peek() != 'n' {
		return false
	}
	d.literal("null")
	return true
}

func (d *decoder) boolean() bool {
	switch d.peek() {
	case 't':
		d.literal("true")
		return true
	case 'f':
		d.literal("false")
	default:
		d.fail(d.field + ": want true or false")
	}
	return false
}

// number reads a plain integer: no sign, fraction, exponent or leading zero.
func (d *decoder) number(most uint64) uint64 {
	d.peek()
	start, n := d.i, uint64(0)
	for d.i < len(d.b) && d.b[d.i]-'0' <= 9 && n <= most {
		n = n*10 + uint64(d.b[d.i]-'0')
		d.i++
	}
	switch {
	case d.i == start, n > most, d.b[start] == '0' && d.i > start+1,
		d.i < len(d.b) && (d.b[d.i] == '.' || d.b[d.i]|0x20 == 'e'):
		d.i = start
		d.fail(d.field + ": want an integer from 0 to " + strconv.FormatUint(most, 10))
		return 0
	}
	return n
}

// anyTime reads a time as encoding/json does.
func (d *decoder) anyTime() (t time.Time) {
	d.peek()
	start := d.i
	d.skip(0)
	if d.err != nil {
		return t
	}
	if err := t.UnmarshalJSON(d.b[start:d.i]); err != nil {
		d.i = start
		d.fail(d.field + ": want a time as of RFC 3339")
	}
	return t.UTC()
}

func (d *decoder) text() string {
	if d.peek() != '"' {
		d.fail(d.field + ": want a string")
		return ""
	}
	start := d.i
	text, ok := d.str(), true
	if d.escaped {
		text, ok = unquote(text)
	}
	switch {
	case !ok:
		d.i = start
		d.fail(d.field + ": half a surrogate pair")
		return ""
	case len(text) == 0:
		return ""
	}
	return d.word(text)
}

// name returns an object's key without escapes. Of one that is no text, it
// returns something that is no name.
func (d *decoder) name(key []byte) []byte {
	if d.escaped {
		if name, ok := unquote(key); ok {
			return name
		}
	}
	return key
}

// unquote replaces the escapes in a valid string. It reports false for half a
// surrogate pair, with which different texts could become the same.
func unquote(s []byte) ([]byte, bool) {
	i := bytes.IndexByte(s, '\\')
	if i < 0 {
		return s, true
	}
	out := append(make([]byte, 0, len(s)), s[:i]...)
	for i < len(s) {
		if s[i] != '\\' {
			out = append(out, s[i])
			i++
			continue
		}
		c := s[i+1]
		i += 2
		if k := strings.IndexByte("bfnrt", c); k >= 0 {
			c = "\b\f\n\r\t"[k]
		}
		if c != 'u' {
			out = append(out, c)
			continue
		}
		r := hex4(s[i:])
		i += 4
		if utf16.IsSurrogate(r) {
			if i+6 > len(s) || s[i] != '\\' || s[i+1] != 'u' {
				return nil, false
			}
			if r = utf16.DecodeRune(r, hex4(s[i+2:])); r == utf8.RuneError {
				return nil, false
			}
			i += 6
		}
		out = utf8.AppendRune(out, r)
	}
	return out, true
}

// hex4 is the value of the four hex digits that s begins with, or -1.
func hex4(s []byte) (r rune) {
	if len(s) < 4 {
		return -1
	}
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return -1
		}
	}
	return r
}

// A scanner steps through JSON whose UTF-8 was checked before.
type scanner struct {
	b      []byte
	i      int
	spaces int // bytes of white space between tokens so far
	err    *ProtocolError

	escaped bool // the last string has escapes
}

// fail keeps the first failure and ends the input.
func (s *scanner) fail(what string) {
	if s.err == nil {
		s.err = malformed("byte %d: %s", s.i, what)
	}
	s.i = len(s.b)
}

// peek returns the first byte of the next token, or 0, which begins none.
func (s *scanner) peek() byte {
	if s.i < len(s.b) && s.b[s.i] > ' ' {
		return s.b[s.i]
	}
	return s.peekSpace()
}

func (s *scanner) peekSpace() byte {
	for ; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
			s.spaces++
		default:
			return c
		}
	}
	return 0
}

// end fails if anything is left.
func (s *scanner) end() {
	if s.peek(); s.i < len(s.b) {
		s.fail("something follows the value")
	}
}

// skip passes over one value, which is inside of depth others.
func (s *scanner) skip(depth int) {
	c := s.peek()
	if (c == '{' || c == '[') && depth == maxDepth {
		s.fail("nested too deeply")
		return
	}
	switch c {
	case '"':
		s.str()
	case '{':
		for key := s.firstKey(); key != nil; key = s.nextKey() {
			s.skip(depth + 1)
		}
	case '[':
		for more := s.firstItem(); more; more = s.nextItem() {
			s.skip(depth + 1)
		}
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	case 'n':
		s.literal("null")
	default:
		s.real()
	}
}

// firstKey enters an object and returns its first key, with escapes, or nil.
func (s *scanner) firstKey() []byte {
	if !s.enter('{', '}', "want an object") {
		return nil
	}
	return s.keyColon()
}

// nextKey returns the object's next key, or nil behind its end.
func (s *scanner) nextKey() []byte {
	if !s.more('}', "want a comma or the end of an object") {
		return nil
	}
	return s.keyColon()
}

func (s *scanner) keyColon() []byte {
	key := s.str()
	if s.peek() != ':' {
		s.fail("want a colon")
		return nil
	}
	s.i++
	return key
}

// firstItem enters an array; it and nextItem report whether an item follows.
func (s *scanner) firstItem() bool { return s.enter('[', ']', "want an array") }
func (s *scanner) nextItem() bool  { return s.more(']', "want a comma or the end of an array") }

func (s *scanner) enter(open, shut byte, want string) bool {
	if s.peek() != open {
		s.fail(want)
		return false
	}
	s.i++
	if s.peek() == shut {
		s.i++
		return false
	}
	return true
}

func (s *scanner) more(shut byte, want string) bool {
	switch s.peek() {
	case ',':
		s.i++
		return true
	case shut:
		s.i++
	default:
		s.fail(want)
	}
	return false
}

func (s *scanner) literal(word string) {
	if n := s.i + len(word); n <= len(s.b) && string(s.b[s.i:n]) == word {
		s.i = n
		return
	}
	s.fail("want " + word)
}

// real passes over a number of any kind.
func (s *scanner) real() {
	s.accept('-', '-')
	if !s.accept('0', '0') && !s.digits() {
		s.fail("want a value")
		return
	}
	if s.accept('.', '.') && !s.digits() {
		s.fail("want a digit")
	}
	if s.accept('e', 'E') {
		s.accept('+', '-')
		if !s.digits() {
			s.fail("want a digit")
		}
	}
}

// accept passes over one byte if it is a or b.
func (s *scanner) accept(a, b byte) bool {
	if s.i < len(s.b) && (s.b[s.i] == a || s.b[s.i] == b) {
		s.i++
		return true
	}
	return false
}

func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && s.b[s.i]-'0' <= 9 {
		s.i++
	}
	return s.i > start
}

// str passes over a string and returns what is between its quotes, with escapes.
// After a failure it returns nil.
func (s *scanner) str() []byte {
	if s.peek() != '"' {
		s.fail("want a string")
		return nil
	}
	b, start := s.b, s.i+1
	s.escaped = false
	for i := start; ; {
		i += plainLen(b[i:])
		if i < len(b) && b[i] == '"' {
			s.i = i + 1
			return b[start:i]
		}
		n := escapeLen(b[i:])
		if n == 0 {
			s.i = i
			s.failString()
			return nil
		}
		s.escaped = true
		i += n
	}
}

// failString says what is wrong with a string at s.i.
func (s *scanner) failString() {
	switch {
	case s.i == len(s.b):
		s.fail("string without an end")
	case s.b[s.i] == '\\':
		s.fail("bad escape in a string")
	default:
		s.fail("control character in a string")
	}
}

// escapeLen is the length of the escape that b begins with, or 0 if it is none.
func escapeLen(b []byte) int {
	if len(b) < 2 || b[0] != '\\' {
		return 0
	}
	n := int(escapeLens[b[1]])
	if n > 2 && hex4(b[2:]) < 0 {
		return 0
	}
	return n
}

// escapeLens are the lengths of escapes by their second byte.
var escapeLens = [256]uint8{
	'"': 2, '\\': 2, '/': 2, 'b': 2, 'f': 2, 'n': 2, 'r': 2, 't': 2, 'u': 6,
}

// plainLen is the number of bytes before the first quote, backslash or control
// character.
func plainLen(b []byte) int {
	le, rest := binary.LittleEndian, b
	for ; len(rest) >= 16; rest = rest[16:] {
		if stops(le.Uint64(rest))|stops(le.Uint64(rest[8:])) != 0 {
			break
		}
	}
	for ; len(rest) >= 8; rest = rest[8:] {
		if m := stops(le.Uint64(rest)); m != 0 {
			return len(b) - len(rest) + bits.TrailingZeros64(m)/8
		}
	}
	for len(rest) > 0 && rest[0] >= ' ' && rest[0] != '"' && rest[0] != '\\' {
		rest = rest[1:]
	}
	return len(b) - len(rest)
}

// stops sets the high bit of the first byte of eight that is a quote, a backslash or a
// control character, and perhaps of some behind it; it is 0 if there is none. Of a
// byte below 128, c^2 is below 33 if it is a quote or a control character, c^'\\' is
// below 1 if it is a backslash; and what is below n gets its high bit set by taking n
// away.
func stops(w uint64) uint64 {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	return (((w ^ 2*ones) - 33*ones) | ((w ^ '\\'*ones) - ones)) &^ w & highs
}
