package gvstream

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// An error names the session, epoch and number as far as they are known, and nothing
// else.
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

// A peer's message or code that contained a line feed forged lines in the log of a
// program that logged the error.
func TestErrorsQuotePeers(t *testing.T) {
	bad := []string{"a\nb", "a\rb", "\x1b[2J", "\x00", "\x7f", "\u0085", "\u2028", "\u202e", "\xff"}
	for _, text := range bad {
		for name, err := range map[string]error{
			"message": &ProtocolError{Code: "x", Message: text},
			"code":    &ProtocolError{Code: Code(text)},
			"session": &ProtocolError{Code: "x", SessionID: text},
			"epoch":   &ProtocolError{Code: "x", Epoch: text},
			"payload": (&ErrorPayload{Code: "x", Message: text}).protocolError(),
		} {
			if got := err.Error(); !printable(got) {
				t.Errorf("%s %q: the error is %q", name, text, got)
			}
		}
	}
	plainText := &ProtocolError{Code: "stale_epoch", SessionID: "s", Message: `the session "s" has a later epoch`}
	if got, want := plainText.Error(), `gvstream: stale_epoch session="s": the session "s" has a later epoch`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// printable reports whether a text can stand in a log line as it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}

// A store's message that was not UTF-8 grew to three times its length on the wire, and
// the agent considered it malformed: the event was resent for ever.
func TestErrorMessageOfAnyBytes(t *testing.T) {
	for _, text := range []string{strings.Repeat("\xff", 300), strings.Repeat("é\x80", 100), strings.Repeat("\x80", 300)} {
		p := refusal(CodeEventRejected, "s", "%s", text).Payload()
		line, err := Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Unmarshal(line); err != nil {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}
