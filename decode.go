package gvstream

import (
	"fmt"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/vibetools/gvstream/internal/jsontext"
)

// This file reads a frame: the envelope, the objects in it, and their values. The scanner
// below it (internal/jsontext) knows JSON; this file knows the protocol's stricter rules
// (PROTOCOL.md, "The envelope") and what each type of field looks like. codec.go says which
// fields a payload has. A decoder is used by one goroutine at a time and has no lock.

// decoders are the decoders that no frame is using. They keep their internTable from one
// frame to the next, since the same ids, types and times come again and again, and the
// memory of their slots; nothing else.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// A decoder reads one frame at a time, from decode to release. Between the two the frame
// must not change: a batch's events may be left in it, with their slots in the decoder, and
// the batch is then valid only until release (heldByFrame).
//
// Its methods return no errors. The Scanner keeps the first failure and moves to the end
// of the frame, so that whatever reads on finds nothing; decode looks at it once, at the end.
type decoder struct {
	jsontext.Scanner
	internTable
	field string // the field that is being read, for messages

	// The events of a batch are in one of two forms. Written as we write them, they stay in
	// the frame: slots are theirs, and chunk is the part of the frame that they point into.
	// Otherwise they are read one by one; arena is the most memory that their data needs.
	slots     []slot
	chunk     chunk
	arenaSize int
}

// decode returns the checked payload in a frame. A batch comes in the form that machines
// take and has to be ended, before release. An error of an error payload is marked as one
// that the peer is not answered.
func (d *decoder) decode(frame []byte) (Payload, *ProtocolError) {
	switch {
	case len(frame) > maxFrame:
		return nil, malformed("frame: more than %d bytes", maxFrame)
	case !utf8.Valid(frame):
		return nil, d.refusal(frame, "frame: not valid UTF-8", validPrefix(frame))
	}
	d.Src = frame
	p, typ := d.envelope()
	var err *ProtocolError
	switch {
	case d.Err != nil:
		err = d.refusal(frame, d.Err.Message, d.Err.Pos)
	case p == nil:
		err = &ProtocolError{Code: CodeUnknownType, Message: fmt.Sprintf("unknown type %q", shorten(typ))}
	default:
		err = p.check()
	}
	if err == nil {
		return p, nil
	}
	_, err.unanswered = p.(*ErrorPayload) // an error is never answered by an error (rule 11)
	return nil, err
}

// refusal is the answer to a frame that can't be read because of what is at a place in it.
// If that is in an event of an event batch, and the session, epoch and number of that can be
// read, it refuses the one event: otherwise the agent would send the same frame for ever
// (rule 11). A frame that was cut short has nothing wrong in it but its end.
func (d *decoder) refusal(frame []byte, message string, at int) *ProtocolError {
	d.Scanner = jsontext.Scanner{Src: frame}
	e, ok := d.find(at)
	if !ok || d.Err != nil && d.Err.Pos == len(frame) || !validID(e.session) || !validEpoch(e.epoch) {
		return malformed("%s", message)
	}
	return rejected(e.session, e.epoch, e.seq, message)
}

// rejected refuses one event for good: its agent makes a gap of it.
func rejected(sessionID, epoch string, seq uint64, message string) *ProtocolError {
	err := refusal(CodeEventRejected, sessionID, "%s", message)
	err.Epoch, err.Seq = epoch, seq
	return err
}

// validPrefix is how many bytes of a text that is no UTF-8 come before the first that is wrong.
func validPrefix(text []byte) int {
	at := 0
	for {
		r, n := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && n <= 1 {
			return at
		}
		at += n
	}
}

// A batchEvent names an event of an event batch.
type batchEvent struct {
	session, epoch string
	seq            uint64
}

// find reads a frame that could not be read, for the event that a place in it lies in. It
// reports false if that is in no event of an event batch, or if anything that says in which is
// not there, or twice. Behind an error of the JSON itself nothing can be read.
func (d *decoder) find(at int) (e batchEvent, ok bool) {
	typ, once := "", true
	payloads := 0
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		switch string(d.name(key)) {
		case "type":
			once = once && typ == ""
			typ = d.text()
		case "payload":
			payloads++
			e, ok = d.findInBatch(at)
		default:
			d.Skip()
		}
	}
	return e, ok && once && typ == "event_batch" && payloads == 1
}

// findInBatch is find for the payload.
func (d *decoder) findInBatch(at int) (e batchEvent, ok bool) {
	lists, once := 0, true
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		switch string(d.name(key)) {
		case "session_id":
			once = once && e.session == ""
			e.session = d.text()
		case "epoch":
			once = once && e.epoch == ""
			e.epoch = d.text()
		case "events":
			lists++
			for more := d.FirstItem(); more; more = d.NextItem() {
				if seq, here := d.findInEvent(at); here {
					e.seq = seq
				}
			}
		default:
			d.Skip()
		}
	}
	return e, once && lists == 1 && e.seq != 0
}

// findInEvent reads an event's number, 0 if there is not just one, and whether a place lies in
// the event.
func (d *decoder) findInEvent(at int) (seq uint64, here bool) {
	d.Peek()
	start, numbers := d.Pos, 0
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		if string(d.name(key)) != "seq" {
			d.Skip()
			continue
		}
		numbers++
		seq = d.number(MaxSeq)
	}
	if numbers != 1 {
		seq = 0
	}
	return seq, start < at && at < d.Pos
}

// release returns a decoder to the pool, and ends the use of the frame and of a batch that it
// decoded. The slots are cleared: they point to chunk, and chunk to the caller's frame.
func (d *decoder) release() {
	clear(d.slots)
	d.Scanner, d.arenaSize, d.slots, d.chunk = jsontext.Scanner{}, 0, d.slots[:0], chunk{}
	decoders.Put(d)
}

// envelope reads the whole frame. It returns the payload, or nil and the type if that is
// unknown. The two members may come in either order; a payload that comes before its type
// is passed over first and read at the end, so that the usual order needs one pass.
func (d *decoder) envelope() (p Payload, typ string) {
	var seen uint32
	at := noPayload
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		switch string(d.name(key)) {
		case "type":
			if d.given(&seen, 1, "type") {
				typ = d.text()
				p = newBatch(typ)
			}
		case "payload":
			if d.given(&seen, 2, "payload") {
				at = d.payload(p)
			}
		default:
			d.Skip()
		}
	}
	d.End()
	if typ == "" {
		d.Fail("envelope without a type")
	} else if p != nil {
		d.complete(p, at)
	}
	return p, typ
}

// Where in the frame the payload is that is still to be read, unless it is one of these. No
// payload begins at 0: the envelope's brace does.
const (
	noPayload   = -1
	payloadRead = 0
)

// payload reads the payload into p, if its type came before it. Otherwise, p being nil, it
// passes over the payload and returns where it begins.
func (d *decoder) payload(p Payload) (at int) {
	if p != nil {
		d.object(p)
		return payloadRead
	}
	at = d.Pos
	d.Skip()
	return at
}

// complete reads a payload that came before its type, once the envelope has ended. The
// position is not put back then, since nothing is read after it. After a failure it reads
// nothing: the frame is refused anyway.
func (d *decoder) complete(p Payload, at int) {
	if at == noPayload {
		d.Fail("envelope without a payload")
	} else if at != payloadRead && d.Err == nil {
		d.Pos = at
		d.object(p)
	}
}

// object reads the fields of p, a payload or a part of one. Unknown fields are ignored, so
// that later versions can add some (rule 17). An entry of a list that is null stays zero,
// and its check refuses it.
func (d *decoder) object(p any) {
	if d.null() {
		return
	}
	w := fieldCodec{d: d}
	for key := d.FirstKey(); key != nil; key = d.NextKey() {
		w.key, w.hit, w.bit = d.name(key), false, 1
		w.fields(p)
		if !w.hit {
			d.Skip()
		}
	}
}

// once marks a field as seen. It reports whether that is for the first time and something
// follows; a field that is given twice fails, since readers of JSON differ in which of the
// two they would take.
func (d *decoder) once(seen *uint32, bit uint32, name string) bool {
	d.field = name
	if *seen&bit != 0 {
		d.Fail(name + ": given twice")
		return false
	}
	*seen |= bit
	return d.Peek() != 0
}

// given is once for a field in which null counts as absent, and reports false for that.
func (d *decoder) given(seen *uint32, bit uint32, name string) bool {
	return d.once(seen, bit, name) && !d.null()
}

// null reads a null if one comes next, and reports whether it did. Nothing else that is
// valid begins with an n.
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

// number reads a plain integer up to most: no sign, fraction, exponent or leading zero. most
// is at most 2^53, so that n can't overflow before the loop sees that it is too large.
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

// anyTime reads a time in any form of RFC 3339, as encoding/json does, and returns it in UTC.
// The form that we write ourselves is read without it, by plainTime.
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

// text reads a string. Ids and types come again in most frames, so most texts are not
// allocated again but taken from the internTable.
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

// name returns an object's key without escapes. A key that is not valid text is returned as
// it is: its backslash makes it differ from every name, so that it is ignored as unknown.
func (d *decoder) name(key []byte) []byte {
	if d.Escaped {
		if name, ok := jsontext.Unquote(key); ok {
			return name
		}
	}
	return key
}

// newPayload returns an empty payload of a type, or nil if this version doesn't know it.
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

// decodeList reads a list of objects. It fails at the first entry beyond limit, before it
// has spent memory on it: a frame of many empty objects costs a peer little.
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
