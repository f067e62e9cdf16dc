package jsontext

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// AppendString appends s as a JSON string. Like encoding/json it writes U+FFFD for
// bytes that are not UTF-8.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c, n := s[i], 1
		if c >= utf8.RuneSelf {
			var r rune
			if r, n = utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
		} else if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			dst = append(dst, `\ufffd`...)
		case c < ' ':
			const hex = "0123456789abcdef"
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			dst = append(dst, '\\', c)
		}
		i += n
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

// Unquote replaces the escapes in what a Scanner found between two quotes; without
// escapes it returns s itself. It reports false for half a surrogate pair: it has no
// UTF-8, and a replacement could make one text of two different ones.
func Unquote(s []byte) ([]byte, bool) {
	i := bytes.IndexByte(s, '\\')
	if i < 0 {
		return s, true
	}
	out := append(make([]byte, 0, len(s)), s[:i]...)
	for i < len(s) {
		if s[i] != '\\' {
			out = append(out, s[i])
			i++
			continue
		}
		c := s[i+1]
		i += 2
		if k := strings.IndexByte("bfnrt", c); k >= 0 {
			c = "\b\f\n\r\t"[k]
		}
		if c != 'u' {
			out = append(out, c)
			continue
		}
		r := hex4(s[i:])
		i += 4
		if utf16.IsSurrogate(r) {
			if i+6 > len(s) || s[i] != '\\' || s[i+1] != 'u' {
				return nil, false
			}
			if r = utf16.DecodeRune(r, hex4(s[i+2:])); r == utf8.RuneError {
				return nil, false
			}
			i += 6
		}
		out = utf8.AppendRune(out, r)
	}
	return out, true
}

// hex4 returns the value of the four hex digits that s begins with, or -1.
func hex4(s []byte) (r rune) {
	if len(s) < 4 {
		return -1
	}
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return -1
		}
	}
	return r
}

// stringEnd returns the index after the string that b[i] is in, which must be valid.
func stringEnd(b []byte, i int) int {
	for {
		i += plainLen(b[i:])
		if b[i] == '"' {
			return i + 1
		}
		i += 2 // the backslash and what it escapes, or its u
	}
}

// escapeLen returns the length of the escape that b begins with, or 0 if it begins with none.
func escapeLen(b []byte) int {
	if len(b) < 2 || b[0] != '\\' {
		return 0
	}
	n := int(escapeLens[b[1]])
	if n > 2 && hex4(b[2:]) < 0 {
		return 0
	}
	return n
}

// escapeLens are the lengths of escapes by their second byte.
var escapeLens = [256]uint8{
	'"': 2, '\\': 2, '/': 2, 'b': 2, 'f': 2, 'n': 2, 'r': 2, 't': 2, 'u': 6,
}

// plainLen returns the number of bytes before the first quote, backslash or control
// character, or all. It looks at sixteen bytes at a time, then at eight, then at each.
func plainLen(b []byte) int {
	le, rest := binary.LittleEndian, b
	for ; len(rest) >= 16; rest = rest[16:] {
		if stops(le.Uint64(rest))|stops(le.Uint64(rest[8:])) != 0 {
			break
		}
	}
	for ; len(rest) >= 8; rest = rest[8:] {
		if m := stops(le.Uint64(rest)); m != 0 {
			return len(b) - len(rest) + bits.TrailingZeros64(m)/8
		}
	}
	for len(rest) > 0 && rest[0] >= ' ' && rest[0] != '"' && rest[0] != '\\' {
		rest = rest[1:]
	}
	return len(b) - len(rest)
}

// stops sets the high bit of the first of eight bytes that is a quote, a backslash or a
// control character, and perhaps of some after it; it is 0 if there is none. For a byte c
// below 128, c^2 is below 33 if and only if c is a quote or a control character, and c^'\\'
// is below 1 if and only if c is a backslash; subtracting n from a byte below n borrows, and
// so sets its high bit. The borrow is why bytes after the first may be set wrongly.
func stops(w uint64) uint64 {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	return (((w ^ 2*ones) - 33*ones) | ((w ^ '\\'*ones) - ones)) &^ w & highs
}
