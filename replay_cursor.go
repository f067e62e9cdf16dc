package gvstream

import "math"

// maxReplayBytes is about how much one answer to a request with a limit takes (rule 12).
const maxReplayBytes = 1 << 20

// A replayCursor is where the answer to one replay request stands: one more cursor on the
// session's log, with a ceiling (rule 12). It is a value: its owner's lock protects it.
type replayCursor struct {
	after  uint64 // last number sent
	until  uint64 // last number asked for that there is
	events int    // that may still be sent
	bytes  int    // that may still be sent; one page may go beyond
}

// newReplayCursor begins the answer to a request, of a log that ends at head.
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

// span is the span of the next page, of so many events at the most.
func (c *replayCursor) span(events int) span {
	return span{c.after, c.until, c.until, min(events, c.events), pageBytes, 0}
}

// advance notes that a page was sent, and reports whether it was the last.
func (c *replayCursor) advance(last uint64, events, bytes int) (done bool) {
	c.after = last
	c.events -= events
	c.bytes -= bytes
	return c.after >= c.until || c.events <= 0 || c.bytes <= 0
}
