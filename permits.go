package gvstream

import (
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// permits limits the replay requests that are open at a time, of one session or for one
// viewer's link (rule 12). A request needs one of each. Cursors that find none free wait
// in a queue, and only the first of them may take the next: a cursor that comes just as a
// permit becomes free must not overtake those that wait. It is a value without a clock or a
// lock: its owner's lock protects it, and the time is passed in.
//
// Nothing here wakes a cursor. After each change the owner looks whether next returns one, and
// wakes it or acts for it.
type permits struct {
	free    int                  // how many may be taken now
	later   []time.Time          // when those become free that stay taken for a while, in order
	waiting sched.Queue[*cursor] // for one that is free
}

// acquire takes a permit if one is free and it is c's turn, and then c is out of the queue. If
// not, c waits for its turn, with at for its place; it keeps a place that it has already.
func (p *permits) acquire(c *cursor, at *sched.Element[*cursor]) bool {
	p.waiting.Push(at, c)
	if p.next() != c {
		return false
	}
	at.Remove()
	p.free--
	return true
}

// next returns the cursor whose turn it is to take a free permit, or nil.
func (p *permits) next() *cursor {
	if p.free <= 0 {
		return nil
	}
	return p.waiting.Front()
}

// release gives a permit back. It is free at once, or at the time at unless that is zero. Such
// times have to be given in order.
func (p *permits) release(at time.Time) {
	if at.IsZero() {
		p.free++
	} else {
		p.later = append(p.later, at)
	}
}

// expire frees the permits whose time has come, and returns when the next one's comes,
// or zero if there is none.
func (p *permits) expire(now time.Time) (next time.Time) {
	for len(p.later) > 0 && !now.Before(p.later[0]) {
		p.later = p.later[1:]
		p.free++
	}
	if len(p.later) > 0 {
		next = p.later[0]
	}
	return next
}
