// Package epoch makes epochs, the names of the lives of a session's numbering, and ids
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

// MaxLead is how far ahead of a hub's clock an epoch may be that the hub takes.
const MaxLead = 24 * time.Hour

// Process is the Source of this process: one clock that never goes back.
var Process = NewSource(rand.Reader)

// A Source makes epochs, each greater than those it made before, and ids that nobody
// can guess. All methods are safe for concurrent use; none blocks.
type Source struct {
	random io.Reader

	mu   sync.Mutex // a leaf; protects the field below
	last uint64     // milliseconds of the newest epoch
}

// NewSource returns a Source that takes its random bits from random, which is read by
// one call at a time. Its methods panic if that fails, which crypto/rand never does.
func NewSource(random io.Reader) *Source { return &Source{random: random} }

// Next makes an epoch of now, or of the first millisecond after all that were made
// before. A clock that goes back by more than MaxLead is followed: in tests, bubbles
// with clocks of their own share the process.
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
// that a hub would take: other is too far ahead, or not of this kind.
func (s *Source) Past(now time.Time, other string) (string, bool) {
	if at, ok := Time(other); ok && at.UnixMilli() >= now.UnixMilli() {
		if at.After(now.Add(MaxLead)) {
			return "", false
		}
		now = at.Add(time.Millisecond)
	}
	e := s.Next(now)
	return e, e > other
}

// ID returns 128 random bits as text.
func (s *Source) ID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.encode(s.bits() >> 16)
}

func (s *Source) bits() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(s.random, b[:]); err != nil {
		panic("gvstream: no randomness: " + err.Error())
	}
	return binary.BigEndian.Uint64(b[:])
}

func (s *Source) encode(head uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], head<<16|s.bits()>>48)
	binary.BigEndian.PutUint64(b[8:], s.bits())
	return encoding.EncodeToString(b[:])
}

// Time is when an epoch was made. It reports false for one that no Source made.
func Time(e string) (time.Time, bool) {
	b, err := encoding.DecodeString(e)
	if err != nil || len(e) != length {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:8]) >> 16)), true
}
