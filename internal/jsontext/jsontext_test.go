package jsontext

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vibetools/gvstream/internal/testenv"
)

// jsonTexts are seeds of what Check takes and refuses; encoding/json is the judge.
var jsonTexts = []string{
	``, ` `, `null`, `nul`, `nulll`, `true`, `tru`, `false`, `falsy`, `0`, `-0`, `-`, `01`, `-01`, `1.`, `1.0`, `.1`, `1e5`, `1E+5`, `1e-`, `1e`, `0x1`, `1 2`,
	`""`, `"`, `"a`, `"\`, `"\"`, `"\n"`, `"\x"`, `"\u"`, `"\u12"`, `"\u12G4"`, `"\uD800"`, `"\ud83d\ude00"`, "\"\n\"", "\"\x00\"", "\"\x7f\"", `"ü✓😀"`,
	"\"\xff\"", "\"\xed\xa0\x80\"", "\"\xe2\x28\xa1\"", "\xef\xbb\xbf1", `"1234567"`, `"12345678"`, `"123456789"`, `"1234567\n"`, `"12345678\""`, "\"1234567\t\"",
	`[]`, `[`, `]`, `[1]`, `[1,]`, `[,1]`, `[1 2]`, `[1,2`, `[ ]`, `[[],[[]]]`, `{}`, `{`, `}`, `{"a"}`, `{"a":}`, `{"a":1}`, `{"a":1,}`, `{"a":1 "b":2}`, `{a:1}`, `{"a":1,"a":2}`, `{1:2}`, `[}`, `{]`, `[1}`,
	" { \"a b\" :\r[ 1 ,\t-2.50e+3 , \" x \\\" y \" ]\n} ", "[1]\v", "\u00a01", `[1]]`, `{"a":{"b":[{"c":null}]}}`, `//`, `/**/1`, `'a'`, `NaN`, `Infinity`, `+1`,
	deep(500), deep(501), deep(10000), strings.Repeat("[", 100000),
}

// TestCheck: Check and AppendCompact agree with encoding/json.
func TestCheck(t *testing.T) {
	for _, src := range jsonTexts {
		checkCompact(t, []byte(src))
	}
}

// checkCompact compares Check and AppendCompact with encoding/json, which does not look
// at UTF-8 or, as far as we go, at depth.
func checkCompact(t *testing.T, src []byte) {
	t.Helper()
	spaces, err := Check(src)
	got := AppendCompact([]byte("before"), src, spaces)
	if err != nil {
		if json.Valid(src) && utf8.Valid(src) && testenv.JSONDepth(src) <= MaxDepth {
			t.Errorf("refused %.200q: %v", src, err)
		}
		return
	}
	var want bytes.Buffer
	if err := json.Compact(&want, src); err != nil || !utf8.Valid(src) || testenv.JSONDepth(src) > MaxDepth {
		t.Errorf("accepted %.200q", src)
		return
	}
	if string(got) != "before"+want.String() {
		t.Errorf("%.200q became %.200q, not %.200q", src, got, want.Bytes())
	}
}

// FuzzCheck: Check takes what encoding/json takes, and AppendCompact makes of it what
// json.Compact does.
func FuzzCheck(f *testing.F) {
	for _, s := range jsonTexts {
		if len(s) < 4096 {
			f.Add([]byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) { checkCompact(t, src) })
}

// deep is an array nested n deep.
func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// TestCheckSays: an error says where the text is wrong and how.
func TestCheckSays(t *testing.T) {
	for src, want := range map[string]string{
		"":                           "byte 0: want a value",
		" ":                          "byte 1: want a value",
		"\"\xff\"":                   "not valid UTF-8",
		"1 2":                        "byte 2: something follows the value",
		"tru":                        "byte 0: want true",
		"-":                          "byte 1: want a value",
		"1.":                         "byte 2: want a digit",
		"1e+":                        "byte 3: want a digit",
		`{"a"}`:                      "byte 4: want a colon",
		`{"a":1 "b":2}`:              "byte 7: want a comma or the end of an object",
		`{a:1}`:                      "byte 1: want a string",
		`[1 2]`:                      "byte 3: want a comma or the end of an array",
		`"a`:                         "byte 2: string without an end",
		`"\x"`:                       "byte 1: bad escape in a string",
		`"\u12G4"`:                   "byte 1: bad escape in a string",
		"\"a\n\"":                    "byte 2: control character in a string",
		"[\"a\n\", nul]":             "byte 3: control character in a string", // the first failure counts
		deep(MaxDepth + 1):           "byte 500: nested too deeply",
		strings.Repeat("[", 100_000): "byte 500: nested too deeply",
	} {
		if _, err := Check([]byte(src)); err == nil || err.Error() != want {
			t.Errorf("%.50q: %v, want %s", src, err, want)
		}
	}
}

// TestScanner: it steps through objects and arrays, and tells of each string whether it
// has escapes; other white space than JSON's is none.
func TestScanner(t *testing.T) {
	s := Scanner{Src: []byte(" {\"a\" : [ 1,\t\"x\\n\" , {} ] ,\"b\\u0041\":null,\"c\":{ }, \"d\":[]}\r\n")}
	var got []any
	for key := s.FirstKey(); key != nil; key = s.NextKey() {
		got = append(got, string(key), s.Escaped)
		if s.Peek() != '[' {
			s.Skip()
			continue
		}
		for more := s.FirstItem(); more; more = s.NextItem() {
			start := s.Pos
			s.Peek()
			if s.SkipText("1") {
				continue
			}
			s.Skip()
			got = append(got, string(bytes.TrimSpace(s.Src[start:s.Pos])), s.Escaped)
		}
	}
	s.End()
	want := []any{"a", false, `"x\n"`, true, "{}", true, `b\u0041`, true, "c", false, "d", false}
	if s.Err != nil || !reflect.DeepEqual(got, want) || s.Spaces != 13 {
		t.Errorf("%v, %d spaces: %q\nwant %q", s.Err, s.Spaces, got, want)
	}
	for _, text := range []string{"\v1", "\u00a01", "\ufeff1"} {
		s := Scanner{Src: []byte(text)}
		if s.Skip(); s.Err == nil || s.Pos != len(text) || s.Peek() != 0 || s.Quoted() != nil {
			t.Errorf("%q: %v, at %d", text, s.Err, s.Pos)
		}
	}
	s = Scanner{Src: []byte("[1")}
	if s.SkipText("[2") || s.SkipText("[1]") || !s.SkipText("[1") || s.Pos != 2 || s.Err != nil {
		t.Errorf("at %d, %v", s.Pos, s.Err)
	}
}

// TestLists: what is no object has no key, and what is no array no item.
func TestLists(t *testing.T) {
	for _, c := range []struct {
		src, want string
		next      func(s *Scanner) bool
	}{
		{"[]", "byte 0: want an object", func(s *Scanner) bool { return s.FirstKey() != nil }},
		{"{}", "byte 0: want an array", (*Scanner).FirstItem},
		{`{"a" 1}`, "byte 5: want a colon", func(s *Scanner) bool { return s.FirstKey() != nil }},
	} {
		s := Scanner{Src: []byte(c.src)}
		if c.next(&s) || s.Err == nil || s.Err.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.src, s.Err, c.want)
		}
	}
}

// TestUnquote: escapes are read as encoding/json reads them, but for halves of surrogate
// pairs, which it replaces.
func TestUnquote(t *testing.T) {
	for escaped, want := range map[string]string{
		"":                          "",
		"plain ü":                   "plain ü",
		`\ud83d\ude00`:              "\U0001f600",
		`a\ud83d\ude00b`:            "a\U0001f600b",
		`\uDBFF\uDFFF`:              "\U0010ffff",
		`\ufffd`:                    "\ufffd",
		`\"\\\/\b\f\n\r\t\u0000`:    "\"\\/\b\f\n\r\t\x00",
		`\\u0041`:                   `\u0041`,
		"\u2028\U0001f600\x7f12345": "\u2028\U0001f600\x7f12345",
	} {
		var judge string
		if err := json.Unmarshal([]byte(`"`+escaped+`"`), &judge); err != nil || judge != want {
			t.Errorf("encoding/json: %q, %v from %s", judge, err, escaped)
		}
		if got, ok := Unquote([]byte(escaped)); !ok || string(got) != want {
			t.Errorf("%q, %v from %s", got, ok, escaped)
		}
	}
	for _, half := range []string{`\ud800`, `\udc00`, `\ud800x`, `\ud800\n12345`, `\ud800\u0041`, `\ud800\ud800`, `\udc00\ud800`, `\ud83d\ude0`} {
		if got, ok := Unquote([]byte(half)); ok {
			t.Errorf("%q from %s", got, half)
		}
	}
}

// TestAppendString: encoding/json reads the string that was written, with U+FFFD for
// what is no UTF-8.
func TestAppendString(t *testing.T) {
	for s, want := range map[string]string{
		"":                     `""`,
		"plain":                `"plain"`,
		"a\"\\b":               `"a\"\\b"`,
		"\x00\n\x1f\x7f":       "\"\\u0000\\u000a\\u001f\x7f\"",
		"<&>\u2028ü\U0001f600": "\"<&>\u2028ü\U0001f600\"",
		"\xffa\xc3":            `"\ufffda\ufffd"`,
		"\ufffd \xed\xa0\x80":  "\"\ufffd \\ufffd\\ufffd\\ufffd\"",
	} {
		got := AppendString([]byte("before"), s)
		var back string
		err := json.Unmarshal(got[len("before"):], &back)
		if string(got) != "before"+want || err != nil || back != string([]rune(s)) {
			t.Errorf("%q became %s, read as %q, %v", s, got, back, err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	for name, src := range map[string]string{
		"line":   `"` + strings.Repeat("some output of a build ", 5) + `"`,
		"object": `{"line":"\u001b[32mok\u001b[0m  github.com/vibetools/gvstream/internal/thing0 0.412s","n":0}`,
		"spaced": `{"line": "ok  github.com/vibetools/gvstream", "n": 12, "list": [1, 2, 3]}`,
		"64 KiB": `"` + strings.Repeat("some output of a build ", 2800) + `"`,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(src)))
			buf, in := []byte(nil), []byte(src)
			for b.Loop() {
				spaces, _ := Check(in)
				buf = AppendCompact(buf[:0], in, spaces)
			}
		})
	}
}
