package gvstream

import (
	"fmt"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/vibetools/gvstream/internal/jsontext"
)

// decoders hold what they remember from one frame to the next: ids, types and
// times come again.
var decoders = sync.Pool{New: func() any { return new(decoder) }}

// A decoder reads the frames of the protocol. Its Scanner keeps the first failure.
type decoder struct {
	jsontext.Scanner
	internTable
	field string // being read, for messages
	arena int    // bytes that the events' data needs

	// The events of a batch, until release, if they stand in the frame as we write them.
	slots []slot
	chunk chunk
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

// release ends the use of a decoder, and of the batch that it decoded.
func (d *decoder) release() {
	clear(d.slots)
	d.Scanner, d.arena, d.slots, d.chunk = jsontext.Scanner{}, 0, d.slots[:0], chunk{}
	decoders.Put(d)
}

// envelope returns the payload, or nil and the type if that is unknown.
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

// Where an envelope's payload stands that is still to be read, if it is not one of these.
const (
	noPayload   = -1
	payloadRead = 0
)

// payload reads the payload into p, if its type came before it. Otherwise it passes over it
// and returns where it stands.
func (d *decoder) payload(p Payload) (at int) {
	if p != nil {
		d.object(p)
		return payloadRead
	}
	at = d.Pos
	d.Skip()
	return at
}

// complete reads, at the end of an envelope, a payload that came before its type.
func (d *decoder) complete(p Payload, at int) {
	if at == noPayload {
		d.Fail("envelope without a payload")
	} else if at != payloadRead && d.Err == nil {
		d.Pos = at
		d.object(p)
	}
}

// object reads the fields of p, a payload or a part of one.
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

// given is once for a field in which null counts as absent, and reports false for that.
func (d *decoder) given(seen *uint32, bit uint32, name string) bool {
	return d.once(seen, bit, name) && !d.null()
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
