package decimal

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"testing"
)

// TestAppend: numbers are written as strconv writes them, and Len says how long they
// are, at each border between two lengths and in between.
func TestAppend(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	numbers := []uint64{0, 1, math.MaxUint64 / 2, 1<<53 - 1}
	for p := uint64(10); p < 1e19; p *= 10 {
		numbers = append(numbers, p-1, p, p+1, rnd.Uint64N(p))
	}
	for _, n := range numbers {
		got, want := string(Append([]byte("before"), n)), "before"+strconv.FormatUint(n, 10)
		if got != want || Len(n) != len(want)-len("before") {
			t.Errorf("%d is written as %q, of %d digits", n, got, Len(n))
		}
	}
}

// TestEight: it reads what Split makes, and nothing in which one byte is no digit. The
// bytes next to the digits, and those whose high bit is set, are the ones that a
// calculation on whole words could take.
func TestEight(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range uint64(20_000) {
		n := rnd.Uint64N(1e8)
		switch {
		case i < 1000:
			n = i
		case i < 2000:
			n = 1e8 - 1 - (i - 1000)
		}
		text := fmt.Appendf(nil, "%08d and more", n)
		digits := Split(n)
		for k := range 8 {
			if d := byte(digits >> (8 * k)); d != text[k]-'0' {
				t.Fatalf("digit %d of %s is %d", k, text[:8], d)
			}
		}
		if got, ok := Eight(text); !ok || got != int64(n) {
			t.Fatalf("%s read as %d, %v", text[:8], got, ok)
		}
		text[i%8] = "/:\x00 .Z\x7f\x80\xb0\xb9\xff"[i/8%11]
		if got, ok := Eight(text); ok {
			t.Fatalf("%q read as %d", text[:8], got)
		}
	}
}
