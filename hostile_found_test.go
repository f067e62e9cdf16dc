package gvstream

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Faults that a hostile peer could have used, each with the test that showed it.

// A peer's message, or code, with a line feed in it wrote lines of its own into the
// log of whoever logged the error.
func TestErrorsQuotePeers(t *testing.T) {
	bad := []string{"a\nb", "a\rb", "\x1b[2J", "\x00", "\x7f", "\u0085", "\u2028", "\u202e", "\xff"}
	for _, text := range bad {
		for name, err := range map[string]error{
			"message": &ProtocolError{Code: "x", Message: text},
			"code":    &ProtocolError{Code: text},
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

// A store's message that is no UTF-8 grew to three times its length on the wire, and
// the agent took it for malformed: the event was sent for ever.
func TestErrorMessageOfAnyBytes(t *testing.T) {
	for _, text := range []string{strings.Repeat("\xff", 300), strings.Repeat("é\x80", 100), strings.Repeat("\x80", 300)} {
		p := refusal(codeEventRejected, "s", "%s", text).Payload()
		line, err := Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Unmarshal(line); err != nil {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}

// printable reports whether a text can stand in a log line as it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) })
}
