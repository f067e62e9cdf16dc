package gvstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"
)

const (
	// maxLine is the longest line that Lines sends or takes, in bytes without
	// its line ending.
	maxLine = 2 << 20
	// keepLine is how much of a buffer stays with a quiet connection, in bytes, and about
	// how much RunLines puts into one Write.
	keepLine = 64 << 10
	// pieceSize is how much of a long buffer RunLines puts into one Write, in bytes: the end
	// of each says that the peer goes on reading.
	pieceSize = 16 << 10
)

// Lines makes a transport of any byte stream, such as a TCP or TLS connection, a
// unix socket, an ssh channel or a process's stdin and stdout: one JSON envelope
// (see Marshal) a line, lines ended by \n or \r\n. Empty lines mean nothing. If you
// don't need to see the payloads, give the stream to Link.RunLines instead.
//
// Both functions block as long as rw does. When the ctx that was last given to one
// of them ends, also between calls, rw is closed, which makes both return, with
// the ctx's error; so the Close of rw must make its Read and Write return. In all
// other cases closing rw is left to the caller. One send and one receive may run
// at the same time, but not two of a kind. They keep neither a payload that was
// sent nor anything of a payload that was received.
//
// A send is one Write. An envelope of more than 2 MiB is refused with an error
// that wraps ErrTooLarge, one that can't be encoded with Marshal's error, and
// nothing is written; after an error of Write every send fails with it, since part
// of a line may be on its way.
//
// A receive returns a *ProtocolError for a line of more than 2 MiB, which it skips
// without storing it, and for one that Unmarshal refuses; the next call goes on
// with the next line. Every other error stays: io.EOF where the peer closed the
// stream between two lines, io.ErrUnexpectedEOF inside a line, and whatever else
// Read returns.
func Lines(rw io.ReadWriteCloser) (SendFunc, ReceiveFunc) {
	s, r := newLines(rw)
	return s.send, r.receive
}

// RunLines is Run over Lines(rw), and faster: it carries frames, as NextFrame and
// HandleFrame do, and writes all lines that are ready in one Write, up to 64 KiB and the
// line that crosses that; what is longer goes out in pieces of 16 KiB. It sees every byte
// that moves: nothing has to arrive within 45 s but a part of a line (rule 9). It returns
// what Run would, and has closed rw when it returns; so the Close of rw must make its Read
// and Write return. A payload too long for a line is sent in parts, and an event that is too
// long by itself becomes a gap, as with any SendFunc.
func (l *Link) RunLines(ctx context.Context, rw io.ReadWriteCloser) error {
	s, r := newLines(rw)
	r.link = l
	defer s.end()
	defer s.alarm.stop()
	return run(ctx, l, func(ctx context.Context) error { return s.sendReady(ctx, l) }, r.frame, l.HandleFrame)
}

// newLines returns the two halves of a stream. Each watches the ctx that it was given last,
// since the two may differ; either closes rw, once.
func newLines(rw io.ReadWriteCloser) (*lineSender, *lineReceiver) {
	end := sync.OnceFunc(func() { rw.Close() })
	return &lineSender{w: rw, closer: closer{end: end}}, &lineReceiver{r: rw, closer: closer{end: end}}
}

// A closer calls end when the ctx that it was given last ends. A blocked Read or Write of
// a stream knows no ctx; closing the stream is the one way to end it. A lineSender and a
// lineReceiver have one each, which their one caller at a time has to itself.
type closer struct {
	end     func()
	done    <-chan struct{} // of that ctx
	stop    func() bool
	cleanup runtime.Cleanup
}

// watch registers end with ctx. It is cheap for the same ctx again, as nearly all calls
// are. What it registers is taken back by release and, since ctx may outlive a connection
// whose functions are called no more, even when those are garbage.
func (c *closer) watch(ctx context.Context) {
	if ctx.Done() == c.done {
		return
	}
	c.release()
	c.done = ctx.Done()
	c.stop = context.AfterFunc(ctx, c.end)
	c.cleanup = runtime.AddCleanup(c, func(stop func() bool) { stop() }, c.stop)
}

// release takes back what watch registered.
func (c *closer) release() {
	if c.stop != nil {
		c.cleanup.Stop()
		c.stop()
	}
	c.done, c.stop = nil, nil
}

// finish returns what a call reports for err. Once ctx has ended, rw is closed and its
// errors say no more than that, so ctx's own is reported.
func (c *closer) finish(ctx context.Context, err error) error {
	c.release()
	if ctx.Err() != nil {
		c.end()
		return ctx.Err()
	}
	return err
}

// A lineSender is the sending half of a stream. It has no buffer of its own and no lock:
// one call at a time uses it. After an error of Write it is dead, since the peer may
// have part of a line.
type lineSender struct {
	closer
	alarm reusableTimer // for sendReady alone
	w     io.Writer
	err   error // of an earlier Write
}

// lineBuffers holds buffers for the length of a send, so that none stays with a
// connection that has nothing to send.
var lineBuffers = sync.Pool{New: func() any { return new([]byte) }}

func (s *lineSender) send(ctx context.Context, p Payload) error {
	if ctx.Err() != nil || s.err != nil {
		return s.finish(ctx, s.err)
	}
	buf := lineBuffers.Get().(*[]byte)
	defer lineBuffers.Put(buf)
	line, err := Append((*buf)[:0], p)
	*buf = line
	switch {
	case err != nil:
		return err
	case len(line) > maxLine:
		*buf = nil // too large to keep in the pool
		return tooLong(line)
	}
	*buf = append(line, '\n')
	return s.write(ctx, *buf)
}

func tooLong(line []byte) error {
	return fmt.Errorf("%w: a line of %d bytes", ErrTooLarge, len(line))
}

// sendReady sends the link's next payload, and what else is ready then, in one Write: a
// burst of small payloads costs one call of the system and not one each.
func (s *lineSender) sendReady(ctx context.Context, l *Link) error {
	p, err := l.await(ctx, &s.alarm)
	if err != nil {
		return err
	}
	buf := lineBuffers.Get().(*[]byte)
	defer lineBuffers.Put(buf)
	lines := (*buf)[:0]
	for now := time.Now(); p != nil; p, _, _ = l.takeMore(now) {
		start := len(lines)
		if lines, _ = Append(lines, p); len(lines)-start > maxLine {
			lines = lines[:start]
			l.carryLess(toPayload(p))
			continue
		}
		releaseBatch(p)
		if lines = append(lines, '\n'); len(lines) >= keepLine {
			break
		}
	}
	*buf = lines
	return s.writeReady(ctx, l, lines)
}

// writeReady is one write, or several if that would be long.
func (s *lineSender) writeReady(ctx context.Context, l *Link, lines []byte) error {
	begun := time.Now()
	for len(lines) > 0 {
		piece := lines
		if len(lines) > keepLine+pieceSize {
			piece = lines[:pieceSize]
		}
		lines = lines[len(piece):]
		if err := s.write(ctx, piece); err != nil {
			return err
		}
		now := time.Now()
		l.wrote(begun, now)
		begun = now
	}
	return nil
}

// write is one Write, which ctx ends by closing the stream.
func (s *lineSender) write(ctx context.Context, lines []byte) error {
	if ctx.Err() != nil {
		return s.finish(ctx, nil)
	}
	s.watch(ctx)
	n, err := s.w.Write(lines)
	if err == nil && n < len(lines) {
		err = io.ErrShortWrite
	}
	if err != nil {
		s.err = err
		return s.finish(ctx, err)
	}
	return nil
}

// A lineReceiver is the receiving half of a stream: a buffer from which it takes one line
// after the other. The buffer grows to the longest line and shrinks again; the bytes of a
// line are the caller's until the next call. No lock: one call at a time uses it.
type lineReceiver struct {
	closer
	r    io.Reader
	link *Link // hears of each byte that comes, if it is run by RunLines
	err  error // of an earlier Read

	// lo <= seen <= hi <= len(buf).
	buf    []byte
	lo, hi int  // buf[lo:hi] was read and not yet taken
	seen   int  // there is no line's end in buf[lo:seen], so no byte is searched twice
	last   int  // length of the last line
	long   bool // the line was too long and is being skipped
}

// receive returns the next line's payload.
func (r *lineReceiver) receive(ctx context.Context) (Payload, error) {
	line, err := r.frame(ctx)
	if err != nil {
		return nil, err
	}
	return Unmarshal(line)
}

// frame returns the next line that is not empty.
func (r *lineReceiver) frame(ctx context.Context) ([]byte, error) {
	for {
		if line, err := r.next(ctx); len(line) > 0 || err != nil {
			return line, err
		}
	}
}

// next returns the next line without its ending. It is valid until the next call. Lines
// that were read before an error are returned before it. Of a line that is too long, what
// was read is dropped each time around, so that it costs no memory however long it gets.
func (r *lineReceiver) next(ctx context.Context) ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf[r.seen:r.hi], '\n'); i >= 0 {
			return r.take(r.seen + i)
		}
		r.seen = r.hi
		if r.hi-r.lo > maxLine+1 { // one more than maxLine may be a \r
			r.long = true
		}
		if r.long {
			r.lo, r.hi, r.seen = 0, 0, 0
		}
		if r.err != nil || ctx.Err() != nil {
			return nil, r.finish(ctx, r.err)
		}
		r.watch(ctx)
		r.fill()
	}
}

// take takes the line that ends at buf[end], or reports that it was too long.
func (r *lineReceiver) take(end int) ([]byte, error) {
	line := bytes.TrimSuffix(r.buf[r.lo:end], []byte("\r"))
	r.lo, r.seen = end+1, end+1
	r.last = len(line)
	if r.long || len(line) > maxLine {
		r.long = false
		return nil, malformed("frame: a line of more than %d bytes", maxLine)
	}
	return line, nil
}

// fill reads once. The end of the stream inside a line is io.ErrUnexpectedEOF.
func (r *lineReceiver) fill() {
	r.makeRoom()
	n, err := r.r.Read(r.buf[r.hi:])
	r.hi += n
	if n > 0 && r.link != nil {
		r.link.heard(time.Now())
	}
	if err == io.EOF && (r.hi > r.lo || r.long) && !bytes.HasSuffix(r.buf[r.lo:r.hi], []byte("\n")) {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
}

// makeRoom makes room for at least one byte from buf[hi] on. It replaces an empty buffer
// that is large and whose last line was small, so that one long line doesn't cost its
// memory for the rest of the connection; it moves what is left of a line to the front
// before it grows the buffer, which doubles and never exceeds the longest line.
func (r *lineReceiver) makeRoom() {
	switch {
	case r.lo == r.hi:
		r.lo, r.hi, r.seen = 0, 0, 0
		if r.buf == nil || len(r.buf) > keepLine && r.last < keepLine/2 {
			r.buf = make([]byte, 4<<10)
		}
	case r.hi < len(r.buf):
	case r.lo > 0:
		r.hi = copy(r.buf, r.buf[r.lo:r.hi])
		r.seen -= r.lo
		r.lo = 0
	default:
		grown := make([]byte, min(2*len(r.buf), maxLine+2))
		copy(grown, r.buf)
		r.buf = grown
	}
}
