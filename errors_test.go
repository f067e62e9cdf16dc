package gvstream

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// An error names what is known of session, epoch and number, and nothing else.
func TestProtocolErrorText(t *testing.T) {
	for want, e := range map[string]ProtocolError{
		"gvstream: c":                                  {Code: "c"},
		`gvstream: c session="s\n"`:                    {Code: "c", SessionID: "s\n"},
		`gvstream: c epoch="e"`:                        {Code: "c", Epoch: "e"},
		"gvstream: c seq=1":                            {Code: "c", Seq: 1},
		"gvstream: c: why":                             {Code: "c", Message: "why"},
		`gvstream: c session="s" epoch="e" seq=7: why`: {Code: "c", SessionID: "s", Epoch: "e", Seq: 7, Message: "why"},
	} {
		if got := e.Error(); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

// A message that quotes a peer fits into a payload, whatever it quotes, and is cut
// between characters.
func TestProtocolErrorMessageIsCut(t *testing.T) {
	for _, c := range []struct{ quoted, want string }{
		{strings.Repeat("x", maxMessage), strings.Repeat("x", maxMessage)},
		{strings.Repeat("x", maxMessage+1), strings.Repeat("x", maxMessage)},
		{strings.Repeat("ä", maxMessage/2), strings.Repeat("ä", maxMessage/2)},
		{"x" + strings.Repeat("ä", maxMessage/2), "x" + strings.Repeat("ä", maxMessage/2-1)},
		{strings.Repeat("x", maxMessage-1) + "\U0001f600", strings.Repeat("x", maxMessage-1)},
		{strings.Repeat("x", maxMessage-3) + "\U0001f600", strings.Repeat("x", maxMessage-3)},
		{strings.Repeat("x", maxMessage-4) + "\U0001f600", strings.Repeat("x", maxMessage-4) + "\U0001f600"},
		{"a\x80\xffb", "a\ufffdb"},
		{strings.Repeat("\x80", maxMessage+1), "\ufffd"},
	} {
		for _, e := range []*ProtocolError{malformed("%s", c.quoted), refusal("c", "s", "%s", c.quoted)} {
			if e.Message != c.want || !utf8.ValidString(e.Message) {
				t.Errorf("%q of %q", e.Message, c.quoted)
			}
			if err := e.Payload().check(); err != nil {
				t.Error(err)
			}
		}
	}
}
