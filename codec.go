package gvstream

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"

	"github.com/vibetools/gvstream/internal/jsontext"
)

// This file is both directions of the JSON of payloads: the public functions, and the one
// list of fields that each type has for writing and for reading. The decoder, which steps
// through a frame and calls the lists, is in decode.go; events have a form of their own, in
// event_json.go and decode_events.go. Nothing here is shared between calls but pools.

// Marshal returns the JSON envelope of p, {"type":"ack_batch","payload":{…}}, on
// one line without a newline. It has the same meaning as what encoding/json makes of p;
// times are in UTC. It does not block, may be called concurrently for the same p, and the
// result is the caller's.
//
// It fails for a nil p and, wrapping ErrInvalidData, for an event that has no JSON form.
// It does not check that a peer may say p.
func Marshal(p Payload) ([]byte, error) { return Append(nil, p) }

// isNil reports whether p holds no payload: it is nil, or a nil pointer of a payload type,
// which a caller may pass by mistake and on which every method would panic.
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
	if f := factOf(p); f != nil {
		return f.appendTo(dst), nil
	}
	w := fieldCodec{out: dst}
	w.envelope(p)
	if w.err != nil {
		return dst, w.err
	}
	return w.out, nil
}

// envelope writes a payload in its envelope.
func (w *fieldCodec) envelope(p Payload) {
	w.out = append(w.out, `{"type":"`...)
	w.out = append(w.out, p.payloadType()...)
	w.out = append(w.out, `","payload":{`...)
	w.fields(p)
	w.out = append(w.out, "}}"...)
}

// Unmarshal returns the payload in a JSON envelope, checked: what it returns obeys
// the limits of the protocol, and its batches are without holes. It does not
// block, may be called concurrently, and keeps no reference to data. The events of
// one batch share one piece of memory, which is read-only and lives as long as any of
// them is referred to.
//
// It is stricter than encoding/json: names must match in case, a field may stand
// once, numbers are plain integers from 0 to MaxSeq, and text is valid UTF-8.
// Unknown fields are ignored, null is an absent field, and the order of fields
// does not matter. It never spends memory on more entries than a payload may have.
//
// Every error is a *ProtocolError: with CodeUnknownType for a type that this version does
// not know, with CodeEventRejected for a batch in which nothing is wrong but an event whose
// number can be read, and otherwise with CodeMalformed. Answer it, and go on (rule 11).
func Unmarshal(data []byte) (Payload, error) {
	d := decoders.Get().(*decoder)
	defer d.release()
	p, err := d.decode(data)
	return toPayload(p), asError(err)
}

// A fieldCodec writes or reads one object, field by field. Each type has one list of its
// fields, which calls a method of the codec for each; so the two directions can't differ in
// a name, and the order in which fields are written is that of the list.
//
//   - Writing (d is nil): one pass over the list appends every field to out.
//   - Reading (d is set): the decoder goes over the list once for each key in the frame,
//     which may come in any order. The list's calls do nothing but the one whose name is
//     the key; that reads the value from d.
//
// A fieldCodec lives on the stack, for one object. The lists are short enough for a walk
// over one to cost less than a map of names would.
type fieldCodec struct {
	// For writing.
	out []byte
	err error // the first value that can't be encoded; out is then of no use

	// For reading. A list has at most 32 fields, one bit each in their order.
	d    *decoder
	key  []byte // the key to be read now
	hit  bool   // the field called key was found
	bit  uint32 // of the next field of the list
	seen uint32 // bits of the fields that were read, to refuse one that is given twice
}

// fields goes through the list of p, a payload or a part of one. A type switch, unlike a method of
// an interface, keeps the codec on the stack: escape analysis can see where it goes.
func (w *fieldCodec) fields(p any) {
	switch p := p.(type) {
	case *HelloPayload:
		w.text("viewer_id", &p.ViewerID)
		w.int("v", &p.V)
		w.text("role", &p.Role)
	case *WelcomePayload:
		w.text("viewer_id", &p.ViewerID)
		w.int("v", &p.V)
		w.text("link", &p.Link)
		w.optInt("window_events", &p.WindowEvents)
		w.optInt("window_bytes", &p.WindowBytes)
	case *StatusPayload:
		w.text("viewer_id", &p.ViewerID)
		w.text("link", &p.Link)
		w.flag("more", &p.More)
		listField(w, "sessions", &p.Sessions, maxStatus)
	case *AckBatchPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("epoch", &p.Epoch)
		w.text("link", &p.Link)
		w.seq("up_to_seq", &p.UpToSeq)
		w.flag("nack", &p.Nack)
		w.flag("full", &p.Full)
		w.optInt("window_events", &p.WindowEvents)
		w.optInt("window_bytes", &p.WindowBytes)
		w.optSeq("read_seq", &p.ReadSeq)
		listField(w, "acks", &p.Acks, maxAcks)
	case *WatchPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("epoch", &p.Epoch)
		w.seq("after_seq", &p.AfterSeq)
		w.flag("stop", &p.Stop)
		w.optInt("window_events", &p.WindowEvents)
		w.optInt("window_bytes", &p.WindowBytes)
	case *ReplayRequestPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("request_id", &p.RequestID)
		w.text("epoch", &p.Epoch)
		w.seq("after_seq", &p.AfterSeq)
		w.seq("until_seq", &p.UntilSeq)
		w.int("limit", &p.Limit)
	case *ErrorPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("code", (*string)(&p.Code))
		w.optText("message", &p.Message)
		w.flag("retryable", &p.Retryable)
		w.optText("request_id", &p.RequestID)
		w.optText("epoch", &p.Epoch)
		w.optSeq("seq", &p.Seq)
		w.optSeq("to_seq", &p.ToSeq)
	case *EventBatchPayload, *eventBatch, *ReplayBatchPayload, *replayBatch:
		w.batch(p)
	case *SessionStatus, *SessionAck, *Gap:
		w.entry(p)
	default:
		w.err = fmt.Errorf("gvstream: a %T is no payload", p)
	}
}

// entry is fields for the parts that payloads have lists of.
func (w *fieldCodec) entry(p any) {
	switch p := p.(type) {
	case *SessionStatus:
		w.text("session_id", &p.SessionID)
		w.text("epoch", &p.Epoch)
		w.first("first_seq", &p.FirstSeq)
		w.seq("head_seq", &p.HeadSeq)
		w.seq("ack_seq", &p.AckSeq)
		w.flag("ended", &p.Ended)
		w.flag("forgotten", &p.Forgotten)
		w.optText("prev_epoch", &p.PrevEpoch)
		w.optSeq("prev_seq", &p.PrevSeq)
	case *SessionAck:
		w.text("session_id", &p.SessionID)
		w.text("epoch", &p.Epoch)
		w.seq("up_to_seq", &p.UpToSeq)
		w.flag("nack", &p.Nack)
		w.flag("full", &p.Full)
		w.optInt("window_events", &p.WindowEvents)
		w.optInt("window_bytes", &p.WindowBytes)
		w.optSeq("read_seq", &p.ReadSeq)
	case *Gap:
		w.seq("from", &p.From)
		w.seq("to", &p.To)
		w.text("reason", (*string)(&p.Reason))
	}
}

// batch is fields for batches, in the form that callers see, whose events are in Events, and
// in the form that machines exchange, which have them in a page.
func (w *fieldCodec) batch(p any) {
	switch p := p.(type) {
	case *EventBatchPayload:
		w.eventBatch(p, new(page))
	case *eventBatch:
		w.eventBatch(&p.EventBatchPayload, &p.page)
	case *ReplayBatchPayload:
		w.replayBatch(p, new(page))
	case *replayBatch:
		w.replayBatch(&p.ReplayBatchPayload, &p.page)
	}
}

// eventBatch goes through the fields of an event batch. Its events are in pg or in p
// itself; when reading, pg gets them if they are written as we write them. A payload of a
// caller's comes with an empty page, and is only ever written: the decoder always makes
// batches with pages.
func (w *fieldCodec) eventBatch(p *EventBatchPayload, pg *page) {
	w.text("session_id", &p.SessionID)
	w.text("viewer_id", &p.ViewerID)
	w.text("epoch", &p.Epoch)
	w.text("link", &p.Link)
	w.first("first_seq", &p.FirstSeq)
	w.seq("last_seq", &p.LastSeq)
	w.seq("head_seq", &p.HeadSeq)
	w.events(&p.Events, p.trusted, pg, maxBatchEvents)
	listField(w, "gaps", &p.Gaps, maxBatchGaps)
}

// replayBatch is eventBatch for a replay batch.
func (w *fieldCodec) replayBatch(p *ReplayBatchPayload, pg *page) {
	w.text("session_id", &p.SessionID)
	w.text("viewer_id", &p.ViewerID)
	w.text("request_id", &p.RequestID)
	w.text("epoch", &p.Epoch)
	w.first("first_seq", &p.FirstSeq)
	w.seq("last_seq", &p.LastSeq)
	w.seq("until_seq", &p.UntilSeq)
	w.first("available_from", &p.AvailableFrom)
	w.flag("done", &p.Done)
	w.events(&p.Events, p.trusted, pg, maxReplayBatchEvents)
	listField(w, "gaps", &p.Gaps, maxBatchGaps)
}

// wants reports whether the named field's value is to be written, or read, now. When writing
// it has appended the name; when reading, a null has been read and counts as absent, and a
// field that is given twice has failed the decoder.
func (w *fieldCodec) wants(name string) bool {
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

func (w *fieldCodec) text(name string, p *string) {
	switch {
	case !w.wants(name):
	case w.d != nil:
		*p = w.d.text()
	default:
		w.out = jsontext.AppendString(w.out, *p)
	}
}

func (w *fieldCodec) seq(name string, p *uint64) { w.number(name, p, MaxSeq) }

// first is a field that says where a range begins. It may be one more than the last number
// there is: an empty range after that begins there.
func (w *fieldCodec) first(name string, p *uint64) { w.number(name, p, MaxSeq+1) }

func (w *fieldCodec) number(name string, p *uint64, most uint64) {
	switch {
	case !w.wants(name):
	case w.d != nil:
		*p = w.d.number(most)
	default:
		w.out = strconv.AppendUint(w.out, *p, 10)
	}
}

// int is a count or the version. What an int of 32 bits can't hold is refused.
func (w *fieldCodec) int(name string, p *int) {
	switch {
	case !w.wants(name):
	case w.d != nil:
		*p = int(w.d.number(min(MaxSeq, math.MaxInt)))
	default:
		w.out = strconv.AppendInt(w.out, int64(*p), 10)
	}
}

// The fields below are left out when they are zero, as by omitempty in encoding/json. The
// check whether they are comes before at, which would append their name.

func (w *fieldCodec) optText(name string, p *string) {
	if w.d != nil || *p != "" {
		w.text(name, p)
	}
}

func (w *fieldCodec) optInt(name string, p *int) {
	if w.d != nil || *p != 0 {
		w.int(name, p)
	}
}

func (w *fieldCodec) optSeq(name string, p *uint64) {
	if w.d != nil || *p != 0 {
		w.seq(name, p)
	}
}

func (w *fieldCodec) flag(name string, p *bool) {
	switch {
	case w.d == nil && !*p, !w.wants(name):
	case w.d != nil:
		*p = w.d.boolean()
	default:
		w.out = append(w.out, "true"...)
	}
}

// listField is a list of objects of at most limit entries. It is a function since methods
// have no type parameters.
func listField[T any](w *fieldCodec, name string, p *[]T, limit int) {
	switch {
	case w.d == nil && len(*p) == 0, !w.wants(name):
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

// events writes or reads the events of a batch. They are written from whichever of list
// and pg has any. They are read into pg if they are written as we write them, and
// otherwise into list.
func (w *fieldCodec) events(list *[]Event, trusted *Event, pg *page, limit int) {
	switch {
	case w.d == nil && len(*list)+len(pg.slots) == 0, !w.wants("events"):
		return
	case w.d != nil:
		*list = w.d.events(pg, limit)
		return
	}
	w.out = append(w.out, '[')
	if len(pg.slots) > 0 {
		w.out = pg.appendTo(w.out)
	} else {
		w.eachEvent(*list, trusted == &(*list)[0])
	}
	w.out = append(w.out, ']')
}

// eachEvent encodes events one after the other, checked as by Publish: what a caller gives
// to Marshal may be anything. Data that is trusted is written unread (rule 11).
func (w *fieldCodec) eachEvent(events []Event, trusted bool) {
	for i := range events {
		d := preparedEvent{ev: &events[i]}
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
