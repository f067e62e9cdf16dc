// Package decimal writes and reads whole numbers in decimal, eight digits at a time in one
// 64-bit word: each event has a number, and mostly a time.
package decimal

import (
	"encoding/binary"
	"strconv"
)

// Zeros is the text of eight zeros in a word: or-ed to the digits of Split, it makes them
// text.
const Zeros = '0' * everyByte

const everyByte = 0x0101010101010101

// Append is strconv.AppendUint in base 10, and faster for numbers below 1e8.
func Append(dst []byte, n uint64) []byte {
	if n >= 1e8 {
		return strconv.AppendUint(dst, n, 10)
	}
	zeros := 8 - Len(n) // before the first digit
	dst = binary.LittleEndian.AppendUint64(dst, (Split(n)|Zeros)>>(8*zeros))
	return dst[:len(dst)-zeros]
}

// Len returns the number of digits of n, which must be below 1e19.
func Len(n uint64) int {
	d := 1
	for p := uint64(10); n >= p; p *= 10 {
		d++
	}
	return d
}

// Split returns the eight digits of n, which must be below 1e8, a byte each and the first
// one lowest. It takes n apart into fours, then pairs, then single digits, each step on all
// parts at once: a division is a multiplication and a shift. It is the reverse of Eight.
func Split(n uint64) uint64 {
	w := n/1e4 | n%1e4<<32
	q := w * 10486 >> 20 & 0x0000007f_0000007f // by 100
	w = q | (w-q*100)<<16
	q = w * 103 >> 10 & 0x000f_000f_000f_000f // by 10
	return q | (w-q*10)<<8
}

// Eight reads the eight digits that b begins with: it puts them together in pairs, then in
// fours, then all. It reports false if they are not all digits: a byte below '0' borrows in
// the first subtraction and so has its high bit set, one above '9' gets it from the sum.
func Eight(b []byte) (n int64, ok bool) {
	const highs = 0x80 * everyByte
	w := binary.LittleEndian.Uint64(b) - Zeros
	if (w|(w+(128-10)*everyByte))&highs != 0 {
		return 0, false
	}
	w = (w*10 + w>>8) & 0x00ff00ff00ff00ff
	w = (w*100 + w>>16) & 0x0000ffff0000ffff
	return int64((w*10000 + w>>32) & 0xffffffff), true
}
