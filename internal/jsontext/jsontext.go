// Package jsontext reads and writes JSON text in memory: a Scanner that steps through
// it without allocating, the check of a single value, compaction, and strings both
// ways. It is stricter than encoding/json: text must be valid UTF-8, half a surrogate pair
// is refused, and values nest at most MaxDepth deep.
package jsontext

import "unicode/utf8"

// MaxDepth is how deep a value may nest. The scanner calls itself once a level, so a peer
// must not decide how deep.
const MaxDepth = 500

// Check reports how many bytes of white space stand between the tokens of src.
// It fails if src is not exactly one JSON value in valid UTF-8, nested at most MaxDepth
// deep.
func Check(src []byte) (spaces int, err error) {
	if !utf8.Valid(src) {
		return 0, &Error{Message: "not valid UTF-8"}
	}
	s := Scanner{Src: src}
	s.Skip()
	s.End()
	if s.Err != nil {
		return 0, &Error{s.Err.Message, s.Err.Pos} // s.Err itself would make src escape to the heap
	}
	return s.Spaces, nil
}

// AppendCompact appends src, which must be valid JSON, without the white space between its
// tokens, which Check has counted. Without any it is one copy.
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
