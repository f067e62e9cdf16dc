// Package slowconn makes byte streams in memory that behave like bad networks: slow ones,
// ones that break in the middle, and ones on which nothing moves any more although neither
// end hears of that. They are meant for testing/synctest bubbles, where a megabyte at
// 16 KiB/s takes no time.
package slowconn

import (
	"errors"
	"io"
	"sync"
	"time"
)

// ErrCut is what the Read and Write of both ends return once a connection has broken.
var ErrCut = errors.New("slowconn: connection broke")

// A Way is how one direction of a connection behaves. The zero Way is fast and never ends.
type Way struct {
	BytesPerSecond int           // if zero, bytes pass at once
	Latency        time.Duration // added to each byte's way
	// Buffer is how many bytes may be written and not read yet, as in the buffers of two
	// sockets: a Write blocks while it is full. If zero, 64 KiB.
	Buffer  int
	MaxRead int // most bytes that a Read returns; if zero, as many as there are
	// CutAfter is how many bytes can be read before the connection breaks; what is in Buffer by
	// then is lost. If zero, it doesn't break.
	CutAfter int
	// VanishAfter is how many bytes can be written before this direction turns into a black
	// hole: what is written further is never read, and Write blocks when Buffer is full. If
	// zero, never.
	VanishAfter int
}

// Pipe returns the two ends of a connection. up is the way from near to far.
func Pipe(up, down Way) (near, far *Conn) {
	l := &line{}
	l.changed.L = &l.mu
	a, b := newStream(l, up), newStream(l, down)
	return &Conn{out: a, in: b}, &Conn{out: b, in: a}
}

// A Conn is one end of a connection. One Read and one Write may run at the same time.
type Conn struct{ out, in *stream }

// Read blocks until there is a byte, and returns io.EOF once the peer has closed its end
// and all that it wrote was read, ErrCut once the connection has broken, and
// io.ErrClosedPipe once this end is closed.
func (c *Conn) Read(p []byte) (int, error) { return c.in.take(p) }

// Write blocks while the buffer is full. It returns as Read does, with how many bytes were
// taken before that, and io.ErrClosedPipe if the peer is closed.
func (c *Conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close ends the calls that are under way at this end. The peer hears of it, unless the
// network has vanished.
func (c *Conn) Close() error {
	l := c.in.line
	l.mu.Lock()
	defer l.mu.Unlock()
	c.out.writerGone, c.in.readerGone = true, true
	l.changed.Broadcast()
	return nil
}

// Cut breaks the connection: both ends notice at once.
func (c *Conn) Cut() {
	c.in.line.mu.Lock()
	defer c.in.line.mu.Unlock()
	c.in.line.cutLocked()
}

// Vanish makes the network disappear: nothing moves any more in either direction, not even
// the news of a Close, and neither end is told.
func (c *Conn) Vanish() {
	c.in.line.mu.Lock()
	defer c.in.line.mu.Unlock()
	c.in.hole, c.out.hole = true, true
}

// Written returns how many bytes this end has written.
func (c *Conn) Written() int {
	c.out.line.mu.Lock()
	defer c.out.line.mu.Unlock()
	return c.out.written
}

// A line is what both directions of a connection have in common.
type line struct {
	mu      sync.Mutex // protects the line and its two streams
	changed sync.Cond  // bytes came or went, or the connection is over
	cut     bool
}

func (l *line) cutLocked() {
	l.cut = true
	l.changed.Broadcast()
}

func (l *line) broadcast() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changed.Broadcast()
}

// A stream is one direction.
type stream struct {
	*line
	way                    Way
	pieces                 []piece   // written and not read yet
	unread                 int       // their bytes
	written, read          int       // bytes in all
	free                   time.Time // when the last byte has left
	hole                   bool
	writerGone, readerGone bool
}

// A piece is bytes that arrive together.
type piece struct {
	bytes []byte
	at    time.Time
}

func newStream(l *line, w Way) *stream {
	if w.Buffer == 0 {
		w.Buffer = 64 << 10
	}
	return &stream{line: l, way: w}
}

func (s *stream) write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.writerGone, s.readerGone && !s.hole:
			return n, io.ErrClosedPipe
		case s.cut:
			return n, ErrCut
		case len(p) == n:
			return n, nil
		case s.unread < s.way.Buffer:
			n += s.putLocked(p[n:])
		default:
			s.changed.Wait()
		}
	}
}

// putLocked takes as many bytes as there is room for, and as arrive within about 10 ms.
func (s *stream) putLocked(p []byte) int {
	n := min(len(p), s.way.Buffer-s.unread)
	if rate := s.way.BytesPerSecond; rate > 0 {
		n = min(n, max(1, rate/100))
	}
	if left := s.way.VanishAfter - s.written; left > 0 {
		n = min(n, left)
	}
	now := time.Now()
	if s.free.Before(now) {
		s.free = now
	}
	if rate := s.way.BytesPerSecond; rate > 0 {
		s.free = s.free.Add(time.Duration(n) * time.Second / time.Duration(rate))
	}
	at := s.free.Add(s.way.Latency)
	s.pieces = append(s.pieces, piece{append([]byte(nil), p[:n]...), at})
	s.written, s.unread = s.written+n, s.unread+n
	s.hole = s.hole || s.written == s.way.VanishAfter
	if at.After(now) {
		time.AfterFunc(at.Sub(now), s.broadcast)
	} else {
		s.changed.Broadcast()
	}
	return n
}

func (s *stream) take(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.readerGone:
			return 0, io.ErrClosedPipe
		case s.cut:
			return 0, ErrCut
		case s.hole:
		case len(s.pieces) > 0 && !s.pieces[0].at.After(time.Now()):
			return s.takeLocked(p), nil
		case len(s.pieces) == 0 && s.writerGone:
			return 0, io.EOF
		}
		s.changed.Wait()
	}
}

// takeLocked reads what has arrived.
func (s *stream) takeLocked(p []byte) (n int) {
	if most := s.way.MaxRead; most > 0 {
		p = p[:min(len(p), most)]
	}
	if s.way.CutAfter > 0 {
		p = p[:min(len(p), s.way.CutAfter-s.read)]
	}
	for now := time.Now(); n < len(p) && len(s.pieces) > 0 && !s.pieces[0].at.After(now); {
		first := &s.pieces[0]
		some := copy(p[n:], first.bytes)
		n += some
		if first.bytes = first.bytes[some:]; len(first.bytes) == 0 {
			s.pieces = s.pieces[1:]
		}
	}
	s.unread -= n
	if s.read += n; s.read == s.way.CutAfter {
		s.cutLocked()
	}
	s.changed.Broadcast()
	return n
}
