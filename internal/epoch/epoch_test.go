package epoch

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"regexp"
	"strings"
	"testing"
	"time"
)

// epochOf is an epoch of that many milliseconds, with random bits as given.
func epochOf(ms uint64, random byte) string {
	var b [16]byte
	for i := range b {
		b[i] = random
	}
	binary.BigEndian.PutUint64(b[:8], ms<<16|uint64(random)<<8|uint64(random))
	return encoding.EncodeToString(b[:])
}

// wellFormed reports whether e is of the length and the alphabet of epochs and ids.
func wellFormed(e string) bool { return regexp.MustCompile(`^[0-9a-hjkmnp-tv-z]{26}$`).MatchString(e) }

const lastMilli = 1<<48 - 1

// TestEpochGolden: rule 2 gives this value for other implementations.
func TestEpochGolden(t *testing.T) {
	// Randomness is drawn in two words, of which the first gives its upper 16 bits.
	s := NewSource(bytes.NewReader([]byte{0, 1, 0, 0, 0, 0, 0, 0, 2, 3, 4, 5, 6, 7, 8, 9}))
	got := s.Next(time.UnixMilli(1_700_000_000_000))
	if want := "065wzsb8000020g30g2gc1r814"; got != want {
		t.Errorf("epoch = %q, want %q", got, want)
	}
	if at, ok := Time(got); !ok || at.UnixMilli() != 1_700_000_000_000 {
		t.Errorf("Time = %v, %v", at, ok)
	}
}

// TestEpochsGrow: each epoch of a process is greater than those before, whatever
// the clock does (rule 2).
func TestEpochsGrow(t *testing.T) {
	s := NewSource(rand.Reader)
	start := time.UnixMilli(1_700_000_000_000)
	last := ""
	for _, d := range []time.Duration{0, 0, 0, time.Millisecond, time.Hour, -time.Hour, 0, 24 * time.Hour, time.Millisecond} {
		e := s.Next(start.Add(d))
		if e <= last || !wellFormed(e) {
			t.Errorf("at %v: %q after %q", d, e, last)
		}
		last = e
	}
}

// TestEpochOtherClock: a clock set back by more than a day is followed, since no
// hub would take epochs that far ahead; so bubbles can share a process (rule 2).
func TestEpochOtherClock(t *testing.T) {
	s := NewSource(rand.Reader)
	now := time.UnixMilli(1_700_000_000_000)
	s.Next(now)
	for _, at := range []time.Time{time.UnixMilli(946_684_800_000), now} {
		if got, _ := Time(s.Next(at)); !got.Equal(at) {
			t.Errorf("an epoch of %v is minted at %v", got, at)
		}
	}
}

// TestEpochPast: what Renew mints is greater than what the hub knows, or there is
// no such epoch (rule 2).
func TestEpochPast(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	ms := uint64(now.UnixMilli())
	for _, test := range []struct {
		name, other string
		ok          bool
	}{
		{"none", "", true},
		{"older", epochOf(ms-1, 0xff), true},
		{"of this millisecond", epochOf(ms, 0xff), true},
		{"newer", epochOf(ms+1, 0xff), true},
		{"a day ahead", epochOf(ms+24*3600*1000, 0xff), true},
		{"more than a day ahead", epochOf(ms+24*3600*1000+1, 0), false},
		{"last but one", epochOf(lastMilli-1, 0xff), false},
		{"last", epochOf(lastMilli, 0), false},
		{"of another kind, smaller", "0-epoch", true},
		{"of another kind, greater", "zzz", false},
		{"longest and greatest", strings.Repeat("z", 64), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := NewSource(rand.Reader)
			got, ok := s.Past(now, test.other)
			if ok != test.ok || ok && got <= test.other {
				t.Errorf("Past(%q) = %q, %v", test.other, got, ok)
			}
		})
	}
}

// TestEpochsGrowAfterPast: whatever a hub claims to know, the epochs of this process
// go on growing, and are no further ahead of the clock than they would have been (rule 2).
// Randomness that shrinks shows two of one millisecond.
func TestEpochsGrowAfterPast(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	ms := uint64(now.UnixMilli())
	for _, other := range []string{
		"", "zzz", epochOf(ms, 0xff), epochOf(ms+1, 0xff), epochOf(ms+23*3600*1000, 0), epochOf(ms+24*3600*1000, 0xff),
		epochOf(lastMilli-1, 0xff), epochOf(lastMilli, 0xff),
	} {
		s := NewSource(bytes.NewReader(bytes.Join([][]byte{
			bytes.Repeat([]byte{0xff}, 16), bytes.Repeat([]byte{0x7f}, 16), make([]byte, 16), make([]byte, 16),
		}, nil)))
		before := s.Next(now)
		past, ok := s.Past(now, other)
		if again, more := s.Past(now, past); ok && more && again <= past {
			t.Errorf("past %q: %q, and past that %q", other, past, again)
		}
		after := s.Next(now)
		if at, _ := Time(after); after <= before || at.After(now.Add(3*time.Millisecond)) {
			t.Errorf("after Past(%q): epoch %q follows %q", other, after, before)
		}
	}
}

func TestEpochTime(t *testing.T) {
	for _, test := range []struct {
		e  string
		ms int64
		ok bool
	}{
		{epochOf(0, 0), 0, true},
		{epochOf(lastMilli, 0xff), lastMilli, true},
		{"", 0, false},
		{"abc", 0, false},
		{epochOf(5, 0)[1:], 0, false},
		{epochOf(5, 0) + "0", 0, false},
		{strings.Repeat("u", length), 0, false}, // no letter of the alphabet
		{strings.Repeat("-", length), 0, false},
	} {
		at, ok := Time(test.e)
		if ok != test.ok || ok && at.UnixMilli() != test.ms {
			t.Errorf("Time(%q) = %v, %v", test.e, at, ok)
		}
	}
}

// TestID: no id comes twice.
func TestID(t *testing.T) {
	s := NewSource(rand.Reader)
	seen := map[string]bool{}
	for range 1000 {
		id := s.ID()
		if !wellFormed(id) || seen[id] {
			t.Fatalf("id %q", id)
		}
		seen[id] = true
	}
}

type noRandomness struct{}

func (noRandomness) Read([]byte) (int, error) { return 0, bytes.ErrTooLarge }

// TestWithoutRandomness: an epoch that others could have is worse than none.
func TestWithoutRandomness(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("an epoch without randomness")
		}
	}()
	NewSource(noRandomness{}).Next(time.Now())
}
