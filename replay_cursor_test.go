package gvstream

import (
	"math"
	"testing"
)

// Rule 12: where an answer ends, just before it and at it. The log's head is 10.
func TestReplayCursor(t *testing.T) {
	const head = 10
	request := func(after, until uint64, limit int) ReplayRequestPayload {
		return ReplayRequestPayload{AfterSeq: after, UntilSeq: until, Limit: limit}
	}
	for _, test := range []struct {
		name    string
		request ReplayRequestPayload
		until   uint64 // where it ends at the latest
		page    int    // events that the next page of at most 4 may have

		last   uint64 // of the page that is sent
		events int
		bytes  int
		done   bool
	}{
		{"up to the head if it does not say", request(3, 0, 0), head, 4, 9, 4, 0, false},
		{"at the head", request(3, 0, 0), head, 4, head, 4, 0, true},
		{"up to the head if it says more", request(3, head+1, 0), head, 4, head, 4, 0, true},
		{"before its ceiling", request(3, 8, 0), 8, 4, 7, 4, 0, false},
		{"at its ceiling", request(3, 8, 0), 8, 4, 8, 4, 0, true},
		{"nothing to send", request(head, 0, 0), head, 4, head, 0, 0, true},
		{"without a limit its bytes don't matter", request(3, 8, 0), 8, 4, 7, 4, math.MaxInt - 1, false},
		{"before its limit", request(3, 8, 3), 8, 3, 5, 2, 0, false},
		{"at its limit", request(3, 8, 3), 8, 3, 6, 3, 0, true},
		{"gaps don't count against it", request(3, 8, 3), 8, 3, 7, 2, 0, false},
		{"with a limit, before its bytes", request(3, 8, 3), 8, 3, 5, 2, maxReplayBytes - 1, false},
		{"with a limit, at its bytes", request(3, 8, 3), 8, 3, 5, 2, maxReplayBytes, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newReplayCursor(&test.request, head)
			want := span{test.request.AfterSeq, test.until, test.until, test.page, pageBytes, 0}
			if next := c.next(4); next != want {
				t.Fatalf("the next page is %+v, want %+v", next, want)
			}
			if done := c.advance(test.last, test.events, test.bytes); done != test.done {
				t.Errorf("done is %v", done)
			}
			if next := c.next(4); next.after != test.last {
				t.Errorf("it goes on after %d, want %d", next.after, test.last)
			}
		})
	}
}
