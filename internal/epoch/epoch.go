// Package epoch makes ids, and epochs, which name the lives of a session's numbering
// (rule 2 of PROTOCOL.md).
package epoch

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// Epochs are 26 characters: 48 bits of Unix milliseconds and 80 random bits, in an
// alphabet that sorts bytewise, so that a later epoch is the greater string.
var encoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

const length = 26

// MaxLead is how far ahead of a hub's clock an epoch may be for the hub to take it. A clock
// that was wrong once would otherwise make epochs that nothing later gets past.
const MaxLead = 24 * time.Hour

// Process is the Source of this process: one clock that never goes back.
var Process = NewSource(rand.Reader)

// A Source makes epochs, each greater than those that Next made before, and ids that nobody
// can guess. All methods are safe for concurrent use; none blocks.
type Source struct {
	random io.Reader

	mu   sync.Mutex // a leaf; protects the field below
	last uint64     // milliseconds of the newest epoch
}

// NewSource returns a Source that takes its random bits from random, which it reads from
// one goroutine at a time. Its methods panic if that fails, which crypto/rand never does.
func NewSource(random io.Reader) *Source { return &Source{random: random} }

// Next makes an epoch of now, or of the first millisecond after all those made before. A
// clock that goes back by more than MaxLead is followed, since no hub would take an epoch
// that far ahead: the clock was set, or, in tests, synctest bubbles with clocks of their own
// share the process.
func (s *Source) Next(now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ms := uint64(max(now.UnixMilli(), 0))
	if lead := uint64(MaxLead / time.Millisecond); s.last <= ms+lead { // else it is another clock: no hub would take epochs so far ahead
		ms = max(ms, s.last+1)
	}
	s.last = ms
	return s.encode(ms)
}

// Past makes an epoch that is greater than other. It reports false if there is none
// that a hub would take: other is too far ahead, or greater and not of this form. Where other
// is ahead of now, only the one epoch is made to get past it: what Next makes afterwards is
// of its own time, or one bad epoch would put all later ones ahead, and a restart of the
// process behind all of them.
func (s *Source) Past(now time.Time, other string) (string, bool) {
	if at, ok := Time(other); ok && at.UnixMilli() >= now.UnixMilli() {
		if at.After(now.Add(MaxLead)) {
			return "", false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.encode(uint64(at.UnixMilli()) + 1), true
	}
	e := s.Next(now)
	return e, e > other
}

// ID returns 128 random bits as text of 26 characters.
func (s *Source) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.encode(s.bits() >> 16)
}

// bits returns 64 random bits. The lock is held, as random need not allow two reads at a time.
func (s *Source) bits() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(s.random, b[:]); err != nil {
		panic("gvstream: no randomness: " + err.Error())
	}
	return binary.BigEndian.Uint64(b[:])
}

// encode returns the text of 48 bits and 80 random ones after them.
func (s *Source) encode(head uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], head<<16|s.bits()>>48)
	binary.BigEndian.PutUint64(b[8:], s.bits())
	return encoding.EncodeToString(b[:])
}

// Time returns when an epoch was made. It reports false for one that is not of this form.
func Time(e string) (time.Time, bool) {
	b, err := encoding.DecodeString(e)
	if err != nil || len(e) != length {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:8]) >> 16)), true
}
