package gvstream

import (
	"slices"
	"sync"
)

// Machines exchange batches in one form: the payload without its Events, and those as a
// page, so that a resend, a replay or a relay encodes nothing again.
//
//	              made by                        used by                    ended by
//	outgoing      a machine, of log.read         open, or the codec         that same step
//	from a frame  the decoder (newBatch)         check, machine.handle      Link.handleFrame
//	from Handle   batch, of a caller's payload   machine.handle             Link.apply
//	Hub.Items     a hub's machine                a viewer's machine.handle  carry
//	fact          a hub's machine, once          any number of links        the garbage collector
//
// From being made to being ended a batch belongs to one goroutine, unless it is a fact. Ending
// returns it to a pool and ends its page, so nothing may refer to a batch afterwards, or to bytes of its
// page that do not stay (see held).
//
// Events are in the page's slots or in Events, never in both. They are in Events if the
// batch was given to Handle, or if a peer wrote it in another way than we do. A hub then
// encodes them into the page (load) before it looks at the session; a viewer copies them.
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

// load completes the page from the payload's fields; see page.load.
func (p *eventBatch) load() error { return p.page.load(p.FirstSeq, p.LastSeq, p.Events, p.Gaps) }

// copies returns the batch's events and gaps for a reader to keep and to change.
func (p *eventBatch) copies() ([]Event, []Gap) { return p.page.copies(p.Events, p.Gaps) }

// A fact is a batch that says the same to every viewer of its session (rule 14), so that the hub
// makes it once for all that are at its position: one payload for those that are given payloads,
// and one frame for those that are given frames. Its page is shared. Both are made when the first
// link needs them; nothing else of it ever changes, so any number of goroutines may have it. It
// is a Payload by itself, in the form of machines.
type fact struct {
	eventBatch

	opened  sync.Once
	payload EventBatchPayload
	encoded sync.Once
	frame   []byte
}

// newFact makes a fact of a shared page. It holds nothing of the log but what the page has.
func newFact(b EventBatchPayload, p *page) *fact {
	f := &fact{eventBatch: eventBatch{b, *p}}
	f.page.of = nil
	return f
}

// open returns the payload that all callers are given.
func (f *fact) open() *EventBatchPayload {
	f.opened.Do(func() {
		f.payload = f.EventBatchPayload
		f.payload.Events, f.payload.fact = decodeEvents(f.slots, nil), f
	})
	return &f.payload
}

// appendTo appends the envelope.
func (f *fact) appendTo(dst []byte) []byte {
	f.encoded.Do(func() {
		w := fieldCodec{out: make([]byte, 0, f.bytes+batchOverhead/8)}
		w.envelope(&f.eventBatch) // a machine makes nothing that can't be encoded
		f.frame = w.out
	})
	return append(dst, f.frame...)
}

// factOf is the fact that p is, or nil. A copy of the payload is none, since a caller may have
// changed it.
func factOf(p Payload) *fact {
	switch p := p.(type) {
	case *fact:
		return p
	case *EventBatchPayload:
		if p.fact != nil && p == &p.fact.payload {
			return p.fact
		}
	}
	return nil
}

func (p *replayBatch) load() error { return p.page.load(p.FirstSeq, p.LastSeq, p.Events, p.Gaps) }

// Batches that were ended, as zero values, to be used again.
var (
	eventBatches  = sync.Pool{New: func() any { return new(eventBatch) }}
	replayBatches = sync.Pool{New: func() any { return new(replayBatch) }}
)

func newEventBatch() *eventBatch   { return eventBatches.Get().(*eventBatch) }
func newReplayBatch() *replayBatch { return replayBatches.Get().(*replayBatch) }

// newBatch is newPayload, but returns batches in the form that machines take.
func newBatch(typ string) Payload {
	switch typ {
	case "event_batch":
		return newEventBatch()
	case "replay_batch":
		return newReplayBatch()
	}
	return newPayload(typ)
}

// toBatch returns a caller's payload as machines take it. The result shares the lists of p:
// machines change nothing that p points to, and keep only copies, since p still belongs to
// the caller of Handle.
func toBatch(p Payload) Payload {
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

// toPayload returns a payload as callers see it. If p is a batch, that is ended, unless it is a
// fact; the payload's events refer to bytes that stay.
func toPayload(p Payload) Payload {
	switch p := p.(type) {
	case *fact:
		return p.open()
	case *eventBatch:
		out := p.EventBatchPayload
		if len(p.slots) > 0 {
			out.Events, out.trusted = p.page.payloadEvents()
		}
		releaseBatch(p)
		return &out
	case *replayBatch:
		out := p.ReplayBatchPayload
		if len(p.slots) > 0 {
			out.Events, out.trusted = p.page.payloadEvents()
		}
		releaseBatch(p)
		return &out
	}
	return p
}

// payloadEvents are the events of a payload that is made of the page, of which there are
// some, and the first of them if Append is to take their data on trust.
func (p *page) payloadEvents() (events []Event, trusted *Event) {
	unchecked := p.unchecked
	if events = p.open(); unchecked {
		trusted = &events[0]
	}
	return events, trusted
}

// releaseBatch ends p, if it is a batch: its page first, then the batch itself goes back to its pool.
func releaseBatch(p Payload) {
	switch p := p.(type) {
	case *eventBatch:
		p.page.release()
		*p = eventBatch{}
		eventBatches.Put(p)
	case *replayBatch:
		p.page.release()
		*p = replayBatch{}
		replayBatches.Put(p)
	}
}

// divide returns what is to be sent in place of a payload that is too large: two halves or,
// for a batch of one event, a gap, with lost for what is lost by that. An entry that is not
// an event has no smaller form.
func divide(p Payload) (parts []Payload, lost *EventBatchPayload) {
	switch p := p.(type) {
	case *EventBatchPayload:
		head, rest := *p, *p
		switch halve(head.half(), rest.half()) {
		case 2:
			return []Payload{&head, &rest}, nil
		case 1:
			return []Payload{&head}, p
		}
	case *ReplayBatchPayload:
		head, rest := *p, *p
		switch halve(head.half(), rest.half()) {
		case 2:
			head.Done = false
			return []Payload{&head, &rest}, nil
		case 1:
			return []Payload{&head}, nil
		}
	case *AckBatchPayload:
		if n := len(p.Acks); n > 0 {
			head, rest := *p, *p
			head.Acks = p.Acks[:n/2]
			rest.setFirst(p.Acks[n/2])
			rest.Acks = p.Acks[n/2+1:]
			return []Payload{&head, &rest}, nil
		}
	case *StatusPayload:
		if n := len(p.Sessions); n > 1 {
			head, rest := *p, *p
			head.Sessions, rest.Sessions, head.More = p.Sessions[:n/2], p.Sessions[n/2:], true
			return []Payload{&head, &rest}, nil
		}
	}
	return nil, nil
}

// A half is the fields by which a batch of either kind covers its numbers.
type half struct {
	first, last *uint64
	events      *[]Event
	gaps        *[]Gap
	trusted     **Event
}

func (p *EventBatchPayload) half() half {
	return half{&p.FirstSeq, &p.LastSeq, &p.Events, &p.Gaps, &p.trusted}
}

func (p *ReplayBatchPayload) half() half {
	return half{&p.FirstSeq, &p.LastSeq, &p.Events, &p.Gaps, &p.trusted}
}

// halve leaves the first half of the entries in head and the others in rest, which is a copy
// of it, and returns 2. Of a single event it makes a gap in head, and returns 1. It writes to
// neither list. Otherwise it returns 0.
func halve(head, rest half) int {
	items := interleave("", "", *head.events, *head.gaps)
	switch n := len(items); {
	case n > 1:
		at := items[n/2-1].Seq
		*head.last, *rest.first = at, at+1
		i := slices.IndexFunc(*head.events, func(e Event) bool { return e.Seq > at })
		if i < 0 {
			i = len(*head.events)
		}
		*head.events, *rest.events = (*head.events)[:i:i], (*head.events)[i:]
		if i = slices.IndexFunc(*head.gaps, func(g Gap) bool { return g.From > at }); i < 0 {
			i = len(*head.gaps)
		}
		*head.gaps, *rest.gaps = (*head.gaps)[:i:i], (*head.gaps)[i:]
		if *rest.trusted != nil && len(*rest.events) > 0 {
			*rest.trusted = &(*rest.events)[0]
		}
		return 2
	case n == 1 && items[0].Event != nil:
		*head.events, *head.gaps, *head.trusted = nil, []Gap{{*head.first, *head.last, ReasonRejected}}, nil
		return 1
	}
	return 0
}
