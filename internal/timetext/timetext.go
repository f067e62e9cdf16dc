// Package timetext writes and reads times in the form of RFC 3339, in UTC and with as many
// digits of the second as they need: the text that encoding/json makes of such a time.
// It remembers the last second, since times that follow each other mostly share it, and
// the date is what takes long to write and to read.
package timetext

import (
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/decimal"
)

// Max is the longest text of a time, in bytes.
const Max = len("2006-01-02T15:04:05.999999999Z")

// A Text has room for a time and the quote after it.
type Text [Max + len(`"`)]byte

// Put writes a time of the years 0 to 9999 and a quote. It returns the length of the
// time.
func (b *Text) Put(t time.Time) int {
	if s := thisSecond.Load(); s.unix == t.Unix() {
		*(*secondText)(b[:]) = s.text
	} else {
		appendSecond(b[:0], t.UTC())
	}
	return b.fraction(uint64(t.Nanosecond()))
}

// Now is Put for the time now. time.Now reads two clocks, the monotonic one and the wall
// clock; Now reads the former each time and the latter once a second, so that a wall clock
// that is set shows here up to a second later.
func (b *Text) Now() int {
	s := thisSecond.Load()
	d := time.Since(s.at)
	if d < 0 || d >= s.left { // below 0: it was read by the clock of another synctest bubble
		s, d = readClock(), 0
	}
	*(*secondText)(b[:]) = s.text
	return b.fraction(uint64(s.at.Nanosecond()) + uint64(d))
}

// fraction writes .999999999Z and the quote. It returns the length of the whole time.
func (b *Text) fraction(nsec uint64) int {
	n := len(secondText{})
	if nsec > 0 {
		rest := decimal.Split(nsec % 1e8)
		b[n], b[n+1] = '.', byte('0'+nsec/1e8)
		binary.LittleEndian.PutUint64(b[n+2:], rest|decimal.Zeros)
		n += len(".999999999")
		if rest>>56 == 0 { // seldom: one zero at the end or more
			n -= bits.LeadingZeros64(rest) / 8
		}
	}
	b[n], b[n+1] = 'Z', '"'
	return n + 1
}

// thisSecond is the second that the wall clock showed when it was last read: most events
// have it in their time. It is shared by all goroutines; its value never changes once it is
// stored.
var thisSecond atomic.Pointer[second]

func init() { readClock() }

type second struct {
	unix int64
	text secondText
	at   time.Time     // when the clock was read
	left time.Duration // of the second, from then on
}

type secondText [len("2006-01-02T15:04:05")]byte

// readClock replaces thisSecond by the present one, and returns it.
func readClock() *second {
	now := time.Now()
	s := &second{unix: now.Unix(), at: now, left: time.Second - time.Duration(now.Nanosecond())}
	appendSecond(s.text[:0], now.UTC())
	thisSecond.Store(s)
	return s
}

// appendSecond appends 2006-01-02T15:04:05.
func appendSecond(dst []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = append(appendTwo(appendTwo(dst, uint(year/100)), uint(year%100)), '-')
	dst = append(appendTwo(dst, uint(month)), '-')
	dst = append(appendTwo(dst, uint(day)), 'T')
	dst = append(appendTwo(dst, uint(hour)), ':')
	dst = append(appendTwo(dst, uint(minute)), ':')
	return appendTwo(dst, uint(second))
}

func appendTwo(dst []byte, n uint) []byte {
	two := twoDigits[n]
	return append(dst, two[0], two[1])
}

// twoDigits are the texts of the numbers from 00 to 99.
var twoDigits = func() (t [100][2]byte) {
	for i := range t {
		t[i] = [2]byte{byte('0' + i/10), byte('0' + i%10)}
	}
	return t
}()

// A Reader reads times, and remembers the last second that it read. The zero Reader
// remembers none. It is for one goroutine at a time.
type Reader struct {
	second secondText // all zero bytes before the first
	unix   int64      // the time of second
}

// Read reads a time as Put writes it, and reports false for any other text.
func (r *Reader) Read(text []byte) (time.Time, bool) {
	n := len(r.second)
	if len(text) <= n || len(text) > Max || text[len(text)-1] != 'Z' {
		return time.Time{}, false
	}
	if r.second[0] == 0 || string(text[:n]) != string(r.second[:]) {
		unix, ok := readSecond(text[:n])
		if !ok {
			return time.Time{}, false
		}
		r.unix = unix
		copy(r.second[:], text)
	}
	nsec, ok := readFraction(text[n : len(text)-1])
	return time.Unix(r.unix, nsec).UTC(), ok
}

// readSecond reads 2006-01-02T15:04:05, which is in UTC.
func readSecond(b []byte) (unix int64, ok bool) {
	if b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' {
		return 0, false
	}
	bad := 0
	two := func(i int) int {
		tens, ones := int(b[i])-'0', int(b[i+1])-'0'
		if uint(tens) > 9 || uint(ones) > 9 {
			bad++
		}
		return 10*tens + ones
	}
	year, month, day := 100*two(0)+two(2), two(5), two(8)
	hour, minute, second := two(11), two(14), two(17)
	if bad > 0 || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	if t.Day() != day || t.Month() != time.Month(month) { // no such day
		return 0, false
	}
	return t.Unix(), true
}

// readFraction reads a fraction such as .25, or nothing. Its last digit must not be 0: Put
// writes none, and two texts of one time would be two encodings of one event.
func readFraction(b []byte) (nsec int64, ok bool) {
	switch {
	case len(b) == 0:
		return 0, true
	case len(b) < 2 || len(b) > len(tens) || b[0] != '.' || b[len(b)-1] == '0':
		return 0, false
	}
	digits := b[1:]
	if len(digits) > 8 {
		if nsec, ok = decimal.Eight(digits); !ok {
			return 0, false
		}
		digits = digits[8:]
	}
	for _, c := range digits {
		if c-'0' > 9 {
			return 0, false
		}
		nsec = 10*nsec + int64(c-'0')
	}
	return nsec * tens[len(b)-1], true
}

// tens has, for each number of digits in a fraction, what makes nanoseconds of it.
var tens = [...]int64{1e9, 1e8, 1e7, 1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1}
