package timetext

import (
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestTimes: times are written as encoding/json writes them in UTC, and read back as
// they were; of other texts none is read differently than encoding/json reads it.
func TestTimes(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(5, 5))
	var known Reader
	for i := range 20_000 {
		at := time.Unix(rnd.Int64N(315537897600)-62135596800, rnd.Int64N(1e9)/[]int64{1, 10, 1e3, 1e6, 1e9}[i%5]*[]int64{1, 10, 1e3, 1e6, 1e9}[i%5])
		if i%3 == 0 {
			at = time.Unix(1763937245+rnd.Int64N(2), rnd.Int64N(1e9))
		}
		if i%7 == 0 { // of the second that is remembered
			at = time.Unix(readClock().unix, rnd.Int64N(1e9))
		}
		var room Text
		n := room.Put(at)
		text := room[:n]
		if want := at.UTC().Format(time.RFC3339Nano); string(text) != want || room[n] != '"' {
			t.Fatalf("wrote %s, want %s", text, want)
		}
		if got, ok := known.Read(text); !ok || got != at.UTC() {
			t.Fatalf("read %v, %v from %s", got, ok, text)
		}
		text[rnd.IntN(len(text))] = "0123456789:.-TZ /z\xff"[rnd.IntN(19)]
		var want time.Time
		err := want.UnmarshalJSON([]byte(`"` + string(text) + `"`))
		if got, ok := known.Read(text); ok && (err != nil || !got.Equal(want)) {
			t.Fatalf("read %v from %s, want %v, %v", got, text, want, err)
		}
	}
}

// TestReadRefuses: what Put never writes is not read, whatever was read before. A
// Reader that has read nothing yet remembers NULs, which are no second.
func TestReadRefuses(t *testing.T) {
	for _, text := range []string{
		"", "Z", "2026-01-02T03:04:05", "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05.Z", "2026-01-02T03:04:05.250Z",
		"2026-01-02T03:04:05.1234567891Z", "2026-01-02T03:04:05,5Z", "2026-01-02T03:04:05.5xZ", "2026-01-02T03:04:05.5x5Z",
		"2026-01-02T03:04:05.1234x6789Z", "2026-01-02T03:04:05.12345678xZ", "2026-01-02T03:04:05z", "2026-01-02 03:04:05Z",
		"2026-02-29T03:04:05Z", "2026-13-02T03:04:05Z", "2026-00-02T03:04:05Z", "2026-01-00T03:04:05Z", "2026-01-02T24:04:05Z",
		"2026-01-02T03:60:05Z", "2026-01-02T03:04:60Z", "2026-01-02T03:04:x5Z", "x026-01-02T03:04:05Z",
		strings.Repeat("\x00", len("2006-01-02T15:04:05")) + "Z",
	} {
		var r Reader
		for range 2 {
			if got, ok := r.Read([]byte(text)); ok {
				t.Errorf("read %v from %q", got, text)
			}
			if _, ok := r.Read([]byte("2026-01-02T03:04:05Z")); !ok {
				t.Errorf("a good time is not read behind %q", text)
			}
		}
	}
}

// TestNow: the time is the clock's, also where a second begins and where another
// bubble's clock was read before.
func TestNow(t *testing.T) {
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			for _, d := range []time.Duration{0, 1, 1e3, 123456789, 1e9 - 123457790, 999999999, 1, 1e9, 3600e9} {
				<-time.After(d)
				var room Text
				got := string(room[:room.Now()])
				if want := time.Now().UTC().Format(time.RFC3339Nano); got != want {
					t.Errorf("the clock is at %s, want %s", got, want)
				}
			}
		})
		before := time.Now()
		var room Text
		at, ok := new(Reader).Read(room[:room.Now()])
		if !ok || at.Sub(before).Abs() > time.Second {
			t.Errorf("the clock is at %v, want %v", at, before)
		}
	}
}
