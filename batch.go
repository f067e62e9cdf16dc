package gvstream

import "sync"

// Machines exchange batches in one form: the payload without its Events, and those as a
// page, so that a resend, a replay or a relay encodes nothing again.
//
//	              made by                        used by                    ended by
//	outgoing      a machine, of log.read         open, or the codec         that same step
//	from a frame  the decoder (newBatch)         check, machine.handle      Link.handleFrame
//	from Handle   batch, of a caller's payload   machine.handle             Link.apply
//	Hub.Items     a hub's machine                a viewer's machine.handle  carry
//
// From being made to being ended a batch belongs to one goroutine. Ending returns it to a
// pool and ends its page, so nothing may refer to a batch afterwards, or to bytes of its
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

// toPayload returns a payload as callers see it. If p is a batch, that is ended; the payload's
// events refer to bytes that stay.
func toPayload(p Payload) Payload {
	switch p := p.(type) {
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
