package streamtest

import (
	"context"
	"io"
	"sync"

	"github.com/vibetools/gvstream"
)

// pipeBuffer is how many payloads a direction of a pipe holds: some, so that a Send may
// succeed though its payload never arrives, but few, so that a peer that does not read
// is noticed.
const pipeBuffer = 8

// A Conn is one end of a connection in memory, made by Pipe. Send and Receive
// are a [gvstream.SendFunc] and a [gvstream.ReceiveFunc]. All methods are safe
// for concurrent use.
type Conn struct {
	in   <-chan gvstream.Payload
	out  chan<- gvstream.Payload
	line *line
}

// A line is the state that both ends of a pipe share.
type line struct {
	once sync.Once
	cut  chan struct{} // closed by the first Close of either end
}

// Pipe returns the two ends of a new connection. Each direction buffers 8
// payloads. It blocks on nothing but channels, so it works in a testing/synctest
// bubble if it is made inside it.
//
// Payloads pass by pointer: the receiver gets the very value that was sent, and
// neither side may change it afterwards.
func Pipe() (a, b *Conn) {
	l := &line{cut: make(chan struct{})}
	ab := make(chan gvstream.Payload, pipeBuffer)
	ba := make(chan gvstream.Payload, pipeBuffer)
	return &Conn{in: ba, out: ab, line: l}, &Conn{in: ab, out: ba, line: l}
}

// Send puts p into the buffer to the other end, and blocks while that is full until
// there is room, ctx ends or either end is closed. A nil error does not mean that the
// other end has p or ever will. After Close it returns [io.ErrClosedPipe], and when ctx
// ends, its error; room is preferred to a ctx that has already ended.
func (c *Conn) Send(ctx context.Context, p gvstream.Payload) error {
	if c.closed() {
		return io.ErrClosedPipe
	}
	select {
	case c.out <- p:
		return nil
	default:
	}
	select {
	case c.out <- p:
		return nil
	case <-c.line.cut:
		return io.ErrClosedPipe
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Receive returns the next payload of the other end, and blocks until there is one, ctx
// ends or either end is closed. After Close it returns [io.EOF], and when ctx ends, its
// error; a payload that has arrived is preferred to a ctx that has already ended.
func (c *Conn) Receive(ctx context.Context) (gvstream.Payload, error) {
	if c.closed() {
		return nil, io.EOF
	}
	select {
	case p := <-c.in:
		return p, nil
	default:
	}
	select {
	case p := <-c.in:
		return p, nil
	case <-c.line.cut:
		return nil, io.EOF
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close cuts the connection for both ends and wakes every blocked Send and
// Receive. Payloads that were sent and not yet received are lost, as on a real
// connection. It does not block, may be called again, and returns nil.
func (c *Conn) Close() error {
	c.line.once.Do(func() { close(c.line.cut) })
	return nil
}

func (c *Conn) closed() bool {
	select {
	case <-c.line.cut:
		return true
	default:
		return false
	}
}
