// Package jsontext reads and writes JSON text in memory: a Scanner that steps through
// it without making anything, the check of a single value, compaction, and strings both
// ways. It is stricter than encoding/json in that text is valid UTF-8, a text with half
// a surrogate pair is none, and values nest at most MaxDepth deep.
package jsontext

import "unicode/utf8"

// MaxDepth is how deep a value may nest.
const MaxDepth = 500

// Check reports how many bytes of white space stand between the tokens of src.
// It fails if src is not exactly one JSON value in valid UTF-8, nested at most MaxDepth
// deep.
func Check(src []byte) (spaces int, err error) {
	if !utf8.Valid(src) {
		return 0, &Error{"not valid UTF-8"}
	}
	s := Scanner{Src: src}
	s.Skip()
	s.End()
	if s.Err != nil {
		return 0, &Error{s.Err.Message} // s.Err itself would have src escape to the heap
	}
	return s.Spaces, nil
}

// AppendCompact appends valid JSON without the white space that stands between its
// tokens, which Check has counted.
func AppendCompact(dst, src []byte, spaces int) []byte {
	if spaces == 0 {
		return append(dst, src...)
	}
	for i := 0; i < len(src); {
		from := i
		if src[i] == '"' {
			i = stringEnd(src, i+1)
		} else {
			for i < len(src) && src[i] > ' ' && src[i] != '"' {
				i++
			}
		}
		dst = append(dst, src[from:i]...)
		for i < len(src) && src[i] <= ' ' {
			i++
		}
	}
	return dst
}
