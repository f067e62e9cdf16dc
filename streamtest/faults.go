package streamtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vibetools/gvstream"
)

// ErrCut is what the functions of Faults.Wrap return after an injected cut.
var ErrCut = errors.New("streamtest: connection cut by Faults")

// Faults says how a connection misbehaves. Probabilities are per payload and
// direction; below 0 counts as 0, above 1 as 1. The zero Faults changes nothing.
//
// What happens to the n-th payload of a direction depends on Seed and n alone. Give a
// new connection another seed, or it breaks at the same place again. Wrap only reads a
// Faults, so it may be shared.
type Faults struct {
	Seed uint64

	Drop      float64 // the payload is lost, and Send returns nil
	Duplicate float64 // it arrives twice: the same pointer
	Reorder   float64 // it is held back until the next one has passed
	Delay     float64 // it waits for up to MaxDelay, and so does everything after it
	Cut       float64 // it is lost, and the connection is cut

	MaxDelay time.Duration // delays are uniform between 0 and MaxDelay; if 0 or negative, there are none
	CutAfter int           // cut after this many payloads in both directions together, including lost ones; if 0 or negative, never
}

// The two directions of a connection.
const (
	outgoing = iota
	incoming
	directions
)

// Wrap returns send and receive with the faults of f as it is now. Like the
// functions of any transport, each of the two is for one goroutine at a time;
// they may be used concurrently with each other. They return when ctx ends if
// send and receive do, and start no goroutines.
//
// After a cut both return ErrCut for good, and a call that is blocked returns it at
// once. The connection underneath stays open: a caller that gets ErrCut closes it.
// Other errors are those of send, receive and ctx. As on a real connection, an error
// from send does not mean that the payload did not go out.
//
// A payload that Reorder holds back waits for a successor that is not dropped. Without
// one it does not arrive, and is lost when the connection ends. A receive whose ctx
// ends during a delay loses nothing: the next one returns the payload.
func (f *Faults) Wrap(send gvstream.SendFunc, receive gvstream.ReceiveFunc) (gvstream.SendFunc, gvstream.ReceiveFunc) {
	c := &cutter{after: f.CutAfter}
	out, in := newLane(*f, outgoing, c), newLane(*f, incoming, c)
	return func(ctx context.Context, p gvstream.Payload) error {
			_, err := out.call(ctx, func(ctx context.Context) (gvstream.Payload, error) {
				return nil, out.deliver(ctx, send, p)
			})
			return err
		}, func(ctx context.Context) (gvstream.Payload, error) {
			return in.call(ctx, func(ctx context.Context) (gvstream.Payload, error) {
				return in.take(ctx, receive)
			})
		}
}

// A lane is one direction of a connection. One goroutine at a time uses it.
type lane struct {
	faults    Faults
	direction int
	cutter    *cutter
	rand      *rand.Rand
	queue     []parcel // decided on, not yet passed on
	held      *parcel  // held back by Reorder
	last      bool     // cut when the queue is empty
}

// A parcel is a payload and how long it has to wait.
type parcel struct {
	payload gvstream.Payload
	delay   time.Duration
}

func newLane(f Faults, direction int, c *cutter) *lane {
	return &lane{faults: f, direction: direction, cutter: c,
		rand: rand.New(rand.NewPCG(f.Seed, uint64(direction)))}
}

// call runs do under a context that also ends with the connection.
func (l *lane) call(ctx context.Context, do gvstream.ReceiveFunc) (gvstream.Payload, error) {
	ctx, err := l.cutter.begin(ctx, l.direction)
	if err != nil {
		return nil, err
	}
	p, err := do(ctx)
	if l.cutter.finish(l.direction) {
		return nil, ErrCut
	}
	if err == nil && l.last && len(l.queue) == 0 {
		l.cutter.cut()
	}
	return p, err
}

// deliver sends what may pass when p arrives: nothing, p, p twice, p and the one that
// was held back.
func (l *lane) deliver(ctx context.Context, send gvstream.SendFunc, p gvstream.Payload) error {
	if err := l.admit(p); err != nil {
		return err
	}
	for len(l.queue) > 0 {
		p, err := l.pop(ctx)
		if err != nil {
			return err
		}
		if err := send(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// take receives until something may pass.
func (l *lane) take(ctx context.Context, receive gvstream.ReceiveFunc) (gvstream.Payload, error) {
	for len(l.queue) == 0 {
		if l.last { // and the last one is lost or held back
			return nil, l.cutter.cut()
		}
		p, err := receive(ctx)
		if err != nil {
			return nil, err
		}
		if err := l.admit(p); err != nil {
			return nil, err
		}
	}
	return l.pop(ctx)
}

// pop waits for the first parcel's time and removes it. If ctx ends it stays.
func (l *lane) pop(ctx context.Context) (gvstream.Payload, error) {
	if err := wait(ctx, l.queue[0].delay); err != nil {
		return nil, err
	}
	p := l.queue[0].payload
	l.queue = l.queue[1:]
	return p, nil
}

// admit decides what happens to p.
func (l *lane) admit(p gvstream.Payload) error {
	// Every number is drawn for every payload: what happens to one does not
	// depend on what happened to those before it.
	drop, duplicate, reorder := l.draw(l.faults.Drop), l.draw(l.faults.Duplicate), l.draw(l.faults.Reorder)
	delay, cut := l.draw(l.faults.Delay), l.draw(l.faults.Cut)
	length := time.Duration(l.rand.Float64() * float64(l.faults.MaxDelay))

	last, over := l.cutter.count()
	if over || cut {
		return l.cutter.cut()
	}
	l.last = l.last || last
	if drop {
		return nil
	}
	if !delay {
		length = 0
	}
	passing := []parcel{{p, length}}
	if duplicate {
		passing = append(passing, parcel{p, 0})
	}
	switch n := len(passing) - 1; {
	case l.held != nil:
		passing = append(passing, *l.held)
		l.held = nil
	case reorder:
		l.held = &passing[n]
		passing = passing[:n:n]
	}
	l.queue = append(l.queue, passing...)
	return nil
}

// draw reports whether something of the given probability happens. Float64 is in [0,
// 1), so probabilities outside that range need no clamping.
func (l *lane) draw(probability float64) bool { return l.rand.Float64() < probability }

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A cutter is the state that the directions of one connection share.
type cutter struct {
	after int // cut after this many payloads; 0 or negative: never

	mu     sync.Mutex // protects the fields below
	passed int
	isCut  bool
	cancel [directions]context.CancelFunc // ends the running call; nil if none is
}

// begin returns a context that ends with ctx or with the connection.
func (c *cutter) begin(ctx context.Context, direction int) (context.Context, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		return nil, ErrCut
	}
	ctx, c.cancel[direction] = context.WithCancel(ctx)
	return ctx, nil
}

// finish ends what begin began and reports whether the connection was cut.
func (c *cutter) finish(direction int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancel[direction]()
	c.cancel[direction] = nil
	return c.isCut
}

// count counts one payload and says whether it is the last one that may pass,
// or one too many.
func (c *cutter) count() (last, over bool) {
	if c.after <= 0 {
		return false, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passed++
	return c.passed == c.after, c.passed > c.after
}

// cut ends the connection and every running call, and returns ErrCut.
func (c *cutter) cut() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = true
	for _, cancel := range c.cancel {
		if cancel != nil {
			cancel()
		}
	}
	return ErrCut
}
