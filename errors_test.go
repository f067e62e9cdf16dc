package gvstream

import (
	"errors"
	"strings"
	"testing"
	"time"
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

// An error of a caller's mistake says what is wrong, how much it is and how much it may be,
// and errors.Is still finds the kind. "invalid event" alone sent people to the debugger.
func TestErrorsSayWhat(t *testing.T) {
	publish := func(cfg StreamerConfig, ev Event) error {
		_, err := NewStreamer(&cfg).Publish(t.Context(), "s", ev)
		return err
	}
	session := func(id string) error {
		_, err := NewStreamer(nil).Session(id)
		return err
	}
	full := func(cfg StreamerConfig) error {
		cfg.Overflow = Reject
		st := NewStreamer(&cfg)
		ev := Event{Bytes: make([]byte, 100), Time: time.Unix(0, 0)}
		for range 100 {
			if _, err := st.Publish(t.Context(), "s", ev); err != nil {
				return err
			}
		}
		return nil
	}
	const day = 24 * time.Hour
	for _, c := range []struct {
		err  error
		kind error
		want string
	}{
		{session(""), ErrInvalidID, "empty"},
		{session(strings.Repeat("é", 65)), ErrInvalidID, "130 bytes, at most 128"},
		{session("ab\ncd"), ErrInvalidID, "control character U+000A at byte 2"},
		{session("é\u0085"), ErrInvalidID, "control character U+0085 at byte 2"},
		{session("\ufffd\xff"), ErrInvalidID, "no UTF-8 at byte 3"},
		{NewHub(nil).ConnectAgent("\x7f").failure(), ErrInvalidID, "control character U+007F at byte 0"},
		{NewHub(nil).ConnectViewer("").failure(), ErrInvalidID, "empty"},
		{NewViewer(nil).Watch("\x00", Position{}), ErrInvalidID, "control character U+0000 at byte 0"},
		{NewViewer(nil).Watch("s", Position{strings.Repeat("e", 65), 1}), ErrInvalidPosition, "epoch: 65 bytes, at most 64"},
		{NewViewer(nil).Watch("s", Position{"e", 1 << 53}), ErrInvalidPosition, "number 9007199254740992, at most 9007199254740991"},
		{NewViewer(&ViewerConfig{MaxWatches: -1}).Watch("s", Position{}), ErrTooMany, "0 watches, at most 0"},
		{publish(StreamerConfig{MaxSessions: -1}, Event{}), ErrTooMany, "0 sessions, at most 0"},
		{NewStreamer(nil).Renew("s\n"), ErrUnknownSession, `"s\n"`},
		{publish(StreamerConfig{}, Event{Type: strings.Repeat("t", 129)}), ErrInvalidData, "type: 129 bytes, at most 128"},
		{publish(StreamerConfig{}, Event{Data: []byte("1"), Bytes: []byte("12")}), ErrInvalidData, "1 bytes of Data and 2 of Bytes, at most one of them"},
		{publish(StreamerConfig{}, Event{Data: []byte(`{"a":12,}`)}), ErrInvalidData, "data: byte 8: want a string"},
		{publish(StreamerConfig{TrustData: true}, Event{Data: []byte("1\n")}), ErrInvalidData, "data: byte 1: newline"},
		{publish(StreamerConfig{}, Event{Time: time.Unix(1<<40, 0).Add(-day)}), ErrInvalidData, "time: year 36812, not one of 0 to 9999"},
		{publish(StreamerConfig{}, Event{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.FixedZone("", 7200))}), ErrInvalidData, "time: year 10000, not one of 0 to 9999"},
		{publish(StreamerConfig{MaxEventBytes: 100}, Event{Bytes: make([]byte, 101)}), ErrTooLarge, "101 bytes of data, and at most 100 of JSON"},
		{publish(StreamerConfig{MaxEventBytes: 100}, Event{Bytes: make([]byte, 100), Time: time.Unix(0, 0)}), ErrTooLarge, "207 bytes of JSON, at most 100"},
		{full(StreamerConfig{MaxPendingEvents: 2}), ErrPendingFull, "2 events, at most 2"},
		{full(StreamerConfig{MaxPendingBytes: 300}), ErrPendingFull, "192 bytes of JSON and 207 more, at most 300"},
		{full(StreamerConfig{MaxTotalBytes: 300}), ErrPendingFull, "no room for 207 bytes of JSON: all sessions together may hold 300"},
	} {
		if want := c.kind.Error() + ": " + c.want; !errors.Is(c.err, c.kind) || c.err.Error() != want {
			t.Errorf("%v\nwant %s", c.err, want)
		}
	}
}
