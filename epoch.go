package gvstream

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"io"
	"sync"
	"time"
)

// Epochs are 26 characters: 48 bits of Unix milliseconds and 80 random bits, in
// an alphabet that sorts bytewise, so that a later epoch is the greater string
// (rule 2).
var epochEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

const (
	epochLen     = 26
	maxEpochLead = 24 * time.Hour // how far ahead of the hub's clock an epoch may be
)

// A minter makes epochs, each greater than those it made before, and ids that
// nobody can guess.
type minter struct {
	random io.Reader

	mu   sync.Mutex // level 4; protects the field below
	last uint64     // milliseconds of the newest epoch
}

// process is the minter of this process: one clock that never goes back.
var process = &minter{random: rand.Reader}

// epoch mints an epoch of now, or of the first millisecond after all that were
// minted before. A clock that goes back by more than a day is followed: in tests,
// bubbles with clocks of their own share the process.
func (m *minter) epoch(now time.Time) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	ms := uint64(max(now.UnixMilli(), 0))
	if lead := uint64(maxEpochLead / time.Millisecond); m.last <= ms+lead { // else it is another clock: no hub would take epochs so far ahead
		ms = max(ms, m.last+1)
	}
	m.last = ms
	return m.encode(ms)
}

// past mints an epoch that is greater than other, unless other is so far ahead
// that no hub would take the next, or no epoch of this kind.
func (m *minter) past(now time.Time, other string) (string, bool) {
	if at, ok := epochTime(other); ok && at.UnixMilli() >= now.UnixMilli() {
		if at.After(now.Add(maxEpochLead)) {
			return "", false
		}
		now = at.Add(time.Millisecond)
	}
	e := m.epoch(now)
	return e, e > other
}

// id returns 128 random bits as text.
func (m *minter) id() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.encode(m.bits() >> 16)
}

func (m *minter) bits() uint64 {
	var b [8]byte
	if _, err := io.ReadFull(m.random, b[:]); err != nil {
		panic("gvstream: no randomness: " + err.Error()) // crypto/rand never fails
	}
	return binary.BigEndian.Uint64(b[:])
}

func (m *minter) encode(head uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], head<<16|m.bits()>>48)
	binary.BigEndian.PutUint64(b[8:], m.bits())
	return epochEncoding.EncodeToString(b[:])
}

// epochTime is when an epoch was minted; false if it is not of our making.
func epochTime(e string) (time.Time, bool) {
	b, err := epochEncoding.DecodeString(e)
	if err != nil || len(e) != epochLen {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b[:8]) >> 16)), true
}
