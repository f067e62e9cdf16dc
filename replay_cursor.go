package gvstream

import "math"

// maxReplayBytes is about how much one answer to a request with a limit takes (rule 12). A
// hub holds one answer for each cursor that is below its log, so this bounds what a slow
// viewer costs it. A limit of events alone would not: one event may take 1 MiB.
const maxReplayBytes = 1 << 20

// A replayCursor is where the answer to one replay request stands: one more cursor on the
// session's log, with a ceiling (rule 12). It is done when it has reached its ceiling, or has
// used up its events or bytes; a page that has nothing to send is its last. It is a value
// without a lock: that of its answer's session protects it.
//
// The ceiling is fixed when the request comes. What is published later is not part of the
// answer, which ends however fast that is.
type replayCursor struct {
	after  uint64 // last number sent
	until  uint64 // last number asked for that there is; the ceiling
	events int    // that may still be sent; gaps count as nothing
	bytes  int    // that may still be sent; one page may go beyond
}

// newReplayCursor begins the answer to a request, of a log that ends at head. Without a limit
// nothing but the ceiling ends it.
func newReplayCursor(p *ReplayRequestPayload, head uint64) replayCursor {
	c := replayCursor{after: p.AfterSeq, until: head, events: math.MaxInt, bytes: math.MaxInt}
	if p.UntilSeq != 0 {
		c.until = min(p.UntilSeq, head)
	}
	if p.Limit != 0 {
		c.events, c.bytes = p.Limit, maxReplayBytes
	}
	return c
}

// span is the span of the next page, of at most that many events.
func (c *replayCursor) span(events int) span {
	return span{after: c.after, until: c.until, events: min(events, c.events), bytes: pageBytes, first: anySize}
}

// advance notes that a page was sent, and reports whether it was the last. A page that
// reaches the ceiling may end in a gap, so the number decides, not the count of events.
func (c *replayCursor) advance(last uint64, events, bytes int) (done bool) {
	c.after = last
	c.events -= events
	c.bytes -= bytes
	return c.after >= c.until || c.events <= 0 || c.bytes <= 0
}
