package gvstream

import "sync"

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

// load makes the page of what the payload says. An error is an *eventError.
func (p *eventBatch) load() error { return p.page.load(p.FirstSeq, p.LastSeq, p.Events, p.Gaps) }

// copies are the batch's events and gaps for a reader to keep and to write to.
func (p *eventBatch) copies() ([]Event, []Gap) { return p.page.copies(p.Events, p.Gaps) }

func (p *replayBatch) load() error { return p.page.load(p.FirstSeq, p.LastSeq, p.Events, p.Gaps) }

func (p *replayBatch) copies() ([]Event, []Gap) { return p.page.copies(p.Events, p.Gaps) }

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
