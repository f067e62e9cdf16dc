package gvstream

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/timetext"
)

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
	return open(p), plain(err)
}

// decode returns the payload in a frame; a batch in the form that machines take, valid
// until release.
func (d *decoder) decode(frame []byte) (Payload, *ProtocolError) {
	switch {
	case len(frame) > maxFrame:
		return nil, malformed("frame: more than %d bytes", maxFrame)
	case !utf8.Valid(frame):
		return nil, malformed("frame: not valid UTF-8")
	}
	d.Src = frame
	p, typ := d.envelope()
	var err *ProtocolError
	switch {
	case d.Err != nil:
		err = malformed("%s", d.Err.Message)
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
		w.eventBatch(p, new(page))
	case *eventBatch:
		w.eventBatch(&p.EventBatchPayload, &p.page)
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
		w.replayBatch(p, new(page))
	case *replayBatch:
		w.replayBatch(&p.ReplayBatchPayload, &p.page)
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

// eventBatch walks an event batch whose events are in pg, or in p itself.
func (w *walker) eventBatch(p *EventBatchPayload, pg *page) {
	w.text("session_id", &p.SessionID)
	w.text("viewer_id", &p.ViewerID)
	w.text("epoch", &p.Epoch)
	w.text("link", &p.Link)
	w.first("first_seq", &p.FirstSeq)
	w.seq("last_seq", &p.LastSeq)
	w.seq("head_seq", &p.HeadSeq)
	w.events(&p.Events, p.trusted, pg, maxBatchEvents)
	walkList(w, "gaps", &p.Gaps, maxBatchGaps)
}

// replayBatch is the same for a replay batch.
func (w *walker) replayBatch(p *ReplayBatchPayload, pg *page) {
	w.text("session_id", &p.SessionID)
	w.text("viewer_id", &p.ViewerID)
	w.text("request_id", &p.RequestID)
	w.text("epoch", &p.Epoch)
	w.first("first_seq", &p.FirstSeq)
	w.seq("last_seq", &p.LastSeq)
	w.seq("until_seq", &p.UntilSeq)
	w.first("available_from", &p.AvailableFrom)
	w.flag("done", &p.Done)
	w.events(&p.Events, p.trusted, pg, maxReplayPage)
	walkList(w, "gaps", &p.Gaps, maxBatchGaps)
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
		w.out = jsontext.AppendString(w.out, *p)
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

// events walks the events of a batch. They are written from the one of list and pg that
// has any; they are read into pg, or into list if they don't stand there as we write them.
func (w *walker) events(list *[]Event, trusted bool, pg *page, limit int) {
	switch {
	case w.d == nil && len(*list)+len(pg.slots) == 0, !w.at("events"):
		return
	case w.d != nil:
		*list = w.d.events(pg, limit)
		return
	}
	w.out = append(w.out, '[')
	if len(pg.slots) > 0 {
		w.out = pg.appendTo(w.out)
	} else {
		w.eachEvent(*list, trusted)
	}
	w.out = append(w.out, ']')
}

func (w *walker) eachEvent(events []Event, trusted bool) {
	for i := range events {
		d := draft{ev: &events[i]}
		if err := d.check(trusted); err != nil {
			w.err = &eventError{events[i].Seq, err}
			return
		}
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.out, _ = d.appendTo(w.out, events[i].Seq)
	}
}

// decoders hold what they remember from one frame to the next: ids, types and
// times come again.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// A decoder reads the frames of the protocol. Its Scanner keeps the first failure.
type decoder struct {
	jsontext.Scanner
	memo
	field string // being read, for messages
	arena int    // bytes that the events' data needs

	// The events of a batch, until release, if they stand in the frame as we write them.
	slots []slot
	chunk chunk
}

// release ends the use of a decoder, and of the batch that it decoded.
func (d *decoder) release() {
	clear(d.slots)
	d.Scanner, d.arena, d.slots, d.chunk = jsontext.Scanner{}, 0, d.slots[:0], chunk{}
	decoders.Put(d)
}

// envelope returns the payload, or nil and the type if that is unknown.
func (d *decoder) envelope() (p Payload, typ string) {
	var seen uint32
	at := -1 // where a payload stands that came before its type
	found := false
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		switch string(d.name(key)) {
		case "type":
			if d.once(&seen, 1, "type") && !d.null() {
				typ = d.text()
				p = newBatch(typ)
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
			at = d.Pos
			d.Skip()
		default:
			d.Skip()
		}
	}
	d.End()
	switch {
	case typ == "":
		d.Fail("envelope without a type")
	case !found && p != nil:
		d.Fail("envelope without a payload")
	case at >= 0 && p != nil && d.Err == nil:
		d.Pos = at
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
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		w.key, w.hit, w.bit = d.name(key), false, 1
		w.fields(p)
		if !w.hit {
			d.Skip()
		}
	}
}

func decodeList[T any](d *decoder, limit int) (list []T) {
	name := d.field
	for more := d.FirstItem(); more; more = d.NextItem() {
		if len(list) == limit {
			d.Fail(name + ": too many")
			break
		}
		list = append(list, *new(T))
		d.object(&list[len(list)-1])
	}
	return list
}

// events reads the events of a batch into pg or, if they don't stand there as we write
// them, into a list.
func (d *decoder) events(pg *page, limit int) []Event {
	start, spaces := d.Pos, d.Spaces
	if d.plainEvents(pg, limit) || d.Err != nil {
		return nil
	}
	d.Pos, d.Spaces = start, spaces
	return d.anyEvents(limit)
}

// plainEvents leaves the events where they are in the frame, if they stand there just as
// we write them; it reports false if they do not.
func (d *decoder) plainEvents(pg *page, limit int) bool {
	spaces := d.Spaces
	if !d.SkipText("[") || len(d.Src)-d.Pos < len(headSeq) {
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

// plainEvent reads an event that is written as we write it, and reports false if it
// is not. typ is the type of the one before it, and then its own.
func (d *decoder) plainEvent(s *slot, typ *string) bool {
	start := d.Pos
	if !d.SkipText(headSeq) || d.Pos == len(d.Src) || d.Src[d.Pos]-'0' > 9 {
		return false
	}
	d.field = "seq"
	s.to, s.kind = d.number(MaxSeq), isJSON
	if d.SkipText(headTime) && !d.plainTime(s) {
		return false
	}
	if d.SkipText(headType) && !d.plainType(typ) {
		return false
	}
	switch {
	case d.SkipText(headData):
		s.data = uint16(d.Pos - start)
		d.Skip()
	case d.SkipText(head64):
		s.kind, s.data = isBytes, uint16(d.Pos-start)
		if !d.plainBytes() {
			return false
		}
	}
	if d.SkipText(tailEnd) {
		s.kind |= isEnd
	}
	s.size = uint32(d.Pos + 1 - start)
	return d.SkipText(`}`)
}

// plainTime reads a time that is written as we write it, without its first quote.
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

// plainType reads a type without escapes and its first quote. It is mostly that of
// an event before.
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

// plainBytes reads base64 as we write it, without its first quote.
func (d *decoder) plainBytes() bool {
	d.Pos--
	text := d.Quoted()
	return !d.Escaped && len(text) > 0 && isBase64(text)
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

// anyEvents reads the events in whatever form they stand.
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

// event reads one event. Its Data and Bytes are what stands in the frame, until
// own copies them.
func (d *decoder) event(e *Event) {
	if d.null() {
		return
	}
	var seen uint32
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
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
				start, spaces := d.Pos, d.Spaces
				d.Skip()
				e.Data = d.Src[start:d.Pos]
				d.arena += len(e.Data) - (d.Spaces - spaces)
			}
		case "data_base64":
			if d.once(&seen, 16, "data_base64") && !d.null() {
				e.Bytes = d.Quoted()
				d.arena += base64.StdEncoding.DecodedLen(len(e.Bytes))
			}
		case "end":
			if d.once(&seen, 32, "end") && !d.null() {
				e.End = d.boolean()
			}
		default:
			d.Skip()
		}
	}
}

// own copies what the events took from the frame into one piece of memory.
func (d *decoder) own(events []Event) {
	arena := make([]byte, 0, d.arena)
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
			d.Err = &jsontext.Error{Message: fmt.Sprintf("event %d: data_base64: not base64", e.Seq)}
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
		d.Fail(name + ": given twice")
		return false
	}
	*seen |= bit
	return d.Peek() != 0
}

// null reads a null, if one comes next.
func (d *decoder) null() bool {
	if d.Peek() != 'n' {
		return false
	}
	d.Literal("null")
	return true
}

func (d *decoder) boolean() bool {
	switch d.Peek() {
	case 't':
		d.Literal("true")
		return true
	case 'f':
		d.Literal("false")
	default:
		d.Fail(d.field + ": want true or false")
	}
	return false
}

// number reads a plain integer: no sign, fraction, exponent or leading zero.
func (d *decoder) number(most uint64) uint64 {
	d.Peek()
	start, n := d.Pos, uint64(0)
	for d.Pos < len(d.Src) && d.Src[d.Pos]-'0' <= 9 && n <= most {
		n = n*10 + uint64(d.Src[d.Pos]-'0')
		d.Pos++
	}
	switch {
	case d.Pos == start, n > most, d.Src[start] == '0' && d.Pos > start+1,
		d.Pos < len(d.Src) && (d.Src[d.Pos] == '.' || d.Src[d.Pos]|0x20 == 'e'):
		d.Pos = start
		d.Fail(d.field + ": want an integer from 0 to " + strconv.FormatUint(most, 10))
		return 0
	}
	return n
}

// anyTime reads a time as encoding/json does.
func (d *decoder) anyTime() (t time.Time) {
	d.Peek()
	start := d.Pos
	d.Skip()
	if d.Err != nil {
		return t
	}
	if err := t.UnmarshalJSON(d.Src[start:d.Pos]); err != nil {
		d.Pos = start
		d.Fail(d.field + ": want a time as of RFC 3339")
	}
	return t.UTC()
}

func (d *decoder) text() string {
	if d.Peek() != '"' {
		d.Fail(d.field + ": want a string")
		return ""
	}
	start := d.Pos
	text, ok := d.Quoted(), true
	if d.Escaped {
		text, ok = jsontext.Unquote(text)
	}
	switch {
	case !ok:
		d.Pos = start
		d.Fail(d.field + ": half a surrogate pair")
		return ""
	case len(text) == 0:
		return ""
	}
	return d.word(text)
}

// name returns an object's key without escapes. Of one that is no text, it
// returns something that is no name.
func (d *decoder) name(key []byte) []byte {
	if d.Escaped {
		if name, ok := jsontext.Unquote(key); ok {
			return name
		}
	}
	return key
}
