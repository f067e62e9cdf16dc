package gvstream

import "math"

// maxReplayBytes is about how much one answer to a request with a limit takes (rule 12). A
// hub holds what it asked for until the last viewer has read it, so this bounds what a slow one
// costs it. A limit of events alone would not: one event may take 1 MiB.
const maxReplayBytes = 1 << 20

// The pages of an answer begin with firstReplayPage bytes and double up to maxReplayPage, which is
// less than a batch may have: a connection that breaks early has brought one by then, and what
// else the agent sends does not wait long for one on a slow link.
const (
	firstReplayPage = 16 << 10
	maxReplayPage   = 64 << 10
)

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
	page   int    // bytes of the next page; one event may have more
}

// newReplayCursor begins the answer to a request, of a log that ends at head. Without a limit
// nothing but the ceiling ends it.
func newReplayCursor(p *ReplayRequestPayload, head uint64) replayCursor {
	c := replayCursor{after: p.AfterSeq, until: head, events: math.MaxInt, bytes: math.MaxInt, page: firstReplayPage}
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
	return span{after: c.after, until: c.until, events: min(events, c.events), bytes: c.page, first: anySize}
}

// advance notes that a page was sent, and reports whether it was the last. A page that
// reaches the ceiling may end in a gap, so the number decides, not the count of events.
func (c *replayCursor) advance(last uint64, events, bytes int) (done bool) {
	c.after = last
	c.events -= events
	c.bytes -= bytes
	c.page = min(2*c.page, maxReplayPage)
	return c.after >= c.until || c.events <= 0 || c.bytes <= 0
}
