package jsontext

import "fmt"

// An Error says where a text is wrong and how.
type Error struct {
	Message string
	Pos     int // index in the text
}

func (e *Error) Error() string { return e.Message }

// A Scanner steps through JSON whose UTF-8 was checked before. Its methods pass over
// white space before a token. The first failure stays in Err and moves Pos to the end, so
// that every loop over the text ends and callers need to look at Err only once, at the end
// too. What it returns are parts of Src, which must not change meanwhile. The zero Scanner
// is at the end of an empty text.
type Scanner struct {
	Src     []byte
	Pos     int    // index in Src of what comes next
	Spaces  int    // bytes of white space between tokens so far
	Err     *Error // the first failure
	Escaped bool   // the string that was passed last has escapes
}

// Fail keeps the first failure, at Pos, and ends the text.
func (s *Scanner) Fail(what string) {
	if s.Err == nil {
		s.Err = &Error{fmt.Sprintf("byte %d: %s", s.Pos, what), s.Pos}
	}
	s.Pos = len(s.Src)
}

// Peek moves Pos to the next token and returns its first byte, or 0, which begins no token,
// at the end.
func (s *Scanner) Peek() byte {
	if s.Pos < len(s.Src) && s.Src[s.Pos] > ' ' {
		return s.Src[s.Pos]
	}
	return s.peekSpace()
}

// peekSpace is Peek where white space may come first, or the end.
func (s *Scanner) peekSpace() byte {
	for ; s.Pos < len(s.Src); s.Pos++ {
		switch c := s.Src[s.Pos]; c {
		case ' ', '\t', '\r', '\n':
			s.Spaces++
		default:
			return c
		}
	}
	return 0
}

// End fails if anything is left.
func (s *Scanner) End() {
	if s.Peek(); s.Pos < len(s.Src) {
		s.Fail("something follows the value")
	}
}

// Skip passes over one value.
func (s *Scanner) Skip() { s.skip(0) }

// skip is Skip for a value that is inside depth others.
func (s *Scanner) skip(depth int) {
	c := s.Peek()
	if (c == '{' || c == '[') && depth == MaxDepth {
		s.Fail("nested too deeply")
		return
	}
	switch c {
	case '"':
		s.Quoted()
	case '{':
		for key := s.FirstKey(); key != nil; key = s.NextKey() {
			s.skip(depth + 1)
		}
	case '[':
		for more := s.FirstItem(); more; more = s.NextItem() {
			s.skip(depth + 1)
		}
	case 't':
		s.Literal("true")
	case 'f':
		s.Literal("false")
	case 'n':
		s.Literal("null")
	default:
		s.real()
	}
}

// FirstKey enters an object and returns its first key, with escapes, or nil.
func (s *Scanner) FirstKey() []byte {
	if !s.enter('{', '}', "want an object") {
		return nil
	}
	return s.keyColon()
}

// NextKey returns the object's next key, or nil after its end. The value before it must have
// been passed.
func (s *Scanner) NextKey() []byte {
	if !s.more('}', "want a comma or the end of an object") {
		return nil
	}
	return s.keyColon()
}

func (s *Scanner) keyColon() []byte {
	key := s.Quoted()
	if s.Peek() != ':' {
		s.Fail("want a colon")
		return nil
	}
	s.Pos++
	return key
}

// FirstItem enters an array and reports whether an item follows.
func (s *Scanner) FirstItem() bool { return s.enter('[', ']', "want an array") }

// NextItem is FirstItem after an item.
func (s *Scanner) NextItem() bool { return s.more(']', "want a comma or the end of an array") }

func (s *Scanner) enter(open, shut byte, want string) bool {
	if s.Peek() != open {
		s.Fail(want)
		return false
	}
	s.Pos++
	if s.Peek() == shut {
		s.Pos++
		return false
	}
	return true
}

func (s *Scanner) more(shut byte, want string) bool {
	switch s.Peek() {
	case ',':
		s.Pos++
		return true
	case shut:
		s.Pos++
	default:
		s.Fail(want)
	}
	return false
}

// Literal passes over a word that begins at Pos, where Peek has moved it, or fails.
func (s *Scanner) Literal(word string) {
	if n := s.Pos + len(word); n <= len(s.Src) && string(s.Src[s.Pos:n]) == word {
		s.Pos = n
		return
	}
	s.Fail("want " + word)
}

// SkipText passes over a text if exactly that is at Pos, without white space before it, and
// reports whether it did. It never fails.
func (s *Scanner) SkipText(text string) bool {
	if n := s.Pos + len(text); n <= len(s.Src) && string(s.Src[s.Pos:n]) == text {
		s.Pos = n
		return true
	}
	return false
}

// real passes over a number of any kind.
func (s *Scanner) real() {
	s.accept('-', '-')
	if !s.accept('0', '0') && !s.digits() {
		s.Fail("want a value")
		return
	}
	if s.accept('.', '.') && !s.digits() {
		s.Fail("want a digit")
	}
	if s.accept('e', 'E') {
		s.accept('+', '-')
		if !s.digits() {
			s.Fail("want a digit")
		}
	}
}

// accept passes over one byte if it is a or b.
func (s *Scanner) accept(a, b byte) bool {
	if s.Pos < len(s.Src) && (s.Src[s.Pos] == a || s.Src[s.Pos] == b) {
		s.Pos++
		return true
	}
	return false
}

func (s *Scanner) digits() bool {
	start := s.Pos
	for s.Pos < len(s.Src) && s.Src[s.Pos]-'0' <= 9 {
		s.Pos++
	}
	return s.Pos > start
}

// Quoted passes over a string and returns what is between its quotes, with escapes.
// After a failure it returns nil.
func (s *Scanner) Quoted() []byte {
	if s.Peek() != '"' {
		s.Fail("want a string")
		return nil
	}
	b, start := s.Src, s.Pos+1
	s.Escaped = false
	for i := start; ; {
		i += plainLen(b[i:])
		if i < len(b) && b[i] == '"' {
			s.Pos = i + 1
			return b[start:i]
		}
		n := escapeLen(b[i:])
		if n == 0 {
			s.Pos = i
			s.failString()
			return nil
		}
		s.Escaped = true
		i += n
	}
}

// failString fails with what is wrong in a string at s.Pos.
func (s *Scanner) failString() {
	switch {
	case s.Pos == len(s.Src):
		s.Fail("string without an end")
	case s.Src[s.Pos] == '\\':
		s.Fail("bad escape in a string")
	default:
		s.Fail("control character in a string")
	}
}
