package gvstream

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"

	"github.com/vibetools/gvstream/internal/jsontext"
)

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
	w := fieldCodec{out: append(dst, `{"type":"`...)}
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
	return open(p), asError(err)
}

// A fieldCodec is given the fields of an object one after the other, by the one list
// that each type has for both directions. Without a decoder it appends them to
// out; with one it reads the value of the field that is called key.
type fieldCodec struct {
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
		w.int("window", &p.Window)
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
		w.int("limit", &p.Limit)
	case *ErrorPayload:
		w.text("session_id", &p.SessionID)
		w.text("viewer_id", &p.ViewerID)
		w.text("code", &p.Code)
		w.optText("message", &p.Message)
		w.flag("retryable", &p.Retryable)
		w.optText("request_id", &p.RequestID)
		w.optText("epoch", &p.Epoch)
		w.optSeq("seq", &p.Seq)
	case *EventBatchPayload, *eventBatch, *ReplayBatchPayload, *replayBatch:
		w.batch(p)
	case *SessionStatus, *Gap:
		w.entry(p)
	default:
		w.err = fmt.Errorf("gvstream: a %T is no payload", p)
	}
}

// entry is fields for what payloads have lists of.
func (w *fieldCodec) entry(p any) {
	switch p := p.(type) {
	case *SessionStatus:
		w.text("session_id", &p.SessionID)
		w.text("epoch", &p.Epoch)
		w.first("first_seq", &p.FirstSeq)
		w.seq("head_seq", &p.HeadSeq)
		w.seq("ack_seq", &p.AckSeq)
		w.flag("ended", &p.Ended)
		w.optText("prev_epoch", &p.PrevEpoch)
		w.optSeq("prev_seq", &p.PrevSeq)
	case *Gap:
		w.seq("from", &p.From)
		w.seq("to", &p.To)
		w.text("reason", (*string)(&p.Reason))
	}
}

// batch is fields for batches.
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

// eventBatch walks an event batch whose events are in pg, or in p itself.
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

// replayBatch is the same for a replay batch.
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
	w.events(&p.Events, p.trusted, pg, maxReplayPage)
	listField(w, "gaps", &p.Gaps, maxBatchGaps)
}

// at reports whether the named field's value is to be written, or read, now.
func (w *fieldCodec) at(name string) bool {
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
	case !w.at(name):
	case w.d != nil:
		*p = w.d.text()
	default:
		w.out = jsontext.AppendString(w.out, *p)
	}
}

func (w *fieldCodec) seq(name string, p *uint64) { w.number(name, p, MaxSeq) }

// first is where a range begins: behind the last number there is, if it is empty.
func (w *fieldCodec) first(name string, p *uint64) { w.number(name, p, MaxSeq+1) }

func (w *fieldCodec) number(name string, p *uint64, most uint64) {
	switch {
	case !w.at(name):
	case w.d != nil:
		*p = w.d.number(most)
	default:
		w.out = strconv.AppendUint(w.out, *p, 10)
	}
}

func (w *fieldCodec) int(name string, p *int) {
	switch {
	case !w.at(name):
	case w.d != nil:
		*p = int(w.d.number(min(MaxSeq, math.MaxInt)))
	default:
		w.out = strconv.AppendInt(w.out, int64(*p), 10)
	}
}

// The fields below are left out when they are zero.

func (w *fieldCodec) optText(name string, p *string) {
	if w.d != nil || *p != "" {
		w.text(name, p)
	}
}

func (w *fieldCodec) optSeq(name string, p *uint64) {
	if w.d != nil || *p != 0 {
		w.seq(name, p)
	}
}

func (w *fieldCodec) flag(name string, p *bool) {
	switch {
	case w.d == nil && !*p, !w.at(name):
	case w.d != nil:
		*p = w.d.boolean()
	default:
		w.out = append(w.out, "true"...)
	}
}

func listField[T any](w *fieldCodec, name string, p *[]T, limit int) {
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
func (w *fieldCodec) events(list *[]Event, trusted bool, pg *page, limit int) {
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
