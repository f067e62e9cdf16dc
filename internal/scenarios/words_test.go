package scenarios_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vibetools/gvstream"
)

// The words in which scenarios say what they want, such as "1..5, gap 6..12 evicted" for
// items and "status s 5 acked 3; batch s 4..5" for payloads.

// equal fails the test if got is not what is wanted.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s:\n got %v\nwant %v", what, got, want)
	}
}

// equalError fails the test if got is not of the kind that is wanted.
func equalError(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s:\n got %v\nwant %v", what, got, want)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// code is what a *ProtocolError says, with the number if it names one.
func code(err error) string {
	p, ok := err.(*gvstream.ProtocolError)
	switch {
	case err == nil:
		return "none"
	case !ok:
		return err.Error()
	case p.Seq != 0:
		return fmt.Sprintf("%s %d", p.Code, p.Seq)
	}
	return string(p.Code)
}

// codes is what several errors say.
func codes(errs []error) string {
	var out []string
	for _, err := range errs {
		out = append(out, code(err))
	}
	return strings.Join(out, ";")
}

// refusals names the errors among payloads.
func refusals(payloads []gvstream.Payload) string {
	var out []string
	for _, p := range payloads {
		if p, ok := p.(*gvstream.ErrorPayload); ok {
			s := string(p.Code)
			if p.Seq != 0 {
				s += fmt.Sprintf(" %d", p.Seq)
			}
			out = append(out, s)
		}
	}
	return strings.Join(out, ";")
}

// tell summarizes what a reader was given, such as "1..5, gap 6..12 evicted, 13..20,
// end".
func tell(items []gvstream.Item) string {
	var out []string
	for i := 0; i < len(items); i++ {
		switch it := items[i]; {
		case it.Event != nil:
			first := i
			for i+1 < len(items) && follows(items[i], items[i+1]) {
				i++
			}
			out = append(out, span(items[first].Event, items[i].Event))
		case it.Gap != nil:
			out = append(out, fmt.Sprintf("gap %d..%d %s", it.Gap.From, it.Gap.To, it.Gap.Reason))
		case it.Reset != nil:
			out = append(out, fmt.Sprintf("reset from %d of %d", it.Reset.Old.Seq, it.Reset.PrevSeq))
		case it.End:
			out = append(out, "end")
		}
	}
	return strings.Join(out, ", ")
}

func follows(a, b gvstream.Item) bool {
	return b.Event != nil && b.Event.Seq == a.Event.Seq+1 && b.SessionID == a.SessionID && genuine(a.Event) && genuine(b.Event)
}

// genuine reports whether an event of publish carries its own number.
func genuine(e *gvstream.Event) bool { return e.Type != "n" || string(e.Data) == fmt.Sprint(e.Seq) }

func span(a, b *gvstream.Event) string {
	switch {
	case !genuine(a):
		return fmt.Sprintf("%d with the data %s", a.Seq, a.Data)
	case a == b:
		return fmt.Sprint(a.Seq)
	}
	return fmt.Sprintf("%d..%d", a.Seq, b.Seq)
}

func tellEvents(events []gvstream.Event, gaps []gvstream.Gap) string {
	var items []gvstream.Item
	for len(events) > 0 || len(gaps) > 0 {
		if len(gaps) > 0 && (len(events) == 0 || gaps[0].From < events[0].Seq) {
			items = append(items, gvstream.Item{Gap: &gaps[0]})
			gaps = gaps[1:]
		} else {
			items = append(items, gvstream.Item{Event: &events[0]})
			events = events[1:]
		}
	}
	return tell(items)
}

// say says in short what payloads are, such as "status s 5 acked 3; batch s 4..5".
func say(payloads ...gvstream.Payload) string {
	var out []string
	for _, p := range payloads {
		var s string
		switch p := p.(type) {
		case *gvstream.HelloPayload:
			s = "hello"
		case *gvstream.WelcomePayload:
			s = "welcome"
		case *gvstream.StatusPayload:
			s = "status"
			for _, e := range p.Sessions {
				s += fmt.Sprintf(" %s %d acked %d", e.SessionID, e.HeadSeq, e.AckSeq)
			}
		case *gvstream.EventBatchPayload:
			s = "batch " + p.SessionID + " " + tellEvents(p.Events, p.Gaps)
		case *gvstream.AckBatchPayload:
			s = fmt.Sprintf("ack %s %d", p.SessionID, p.UpToSeq)
			if p.Nack {
				s = "n" + s
			}
		case *gvstream.WatchPayload:
			s = fmt.Sprintf("watch %s %d", p.SessionID, p.AfterSeq)
			if p.Stop {
				s = "unwatch " + p.SessionID
			}
		case *gvstream.ReplayRequestPayload:
			s = fmt.Sprintf("replay %s %d..%d", p.SessionID, p.AfterSeq+1, p.UntilSeq)
		case *gvstream.ReplayBatchPayload:
			s = "replayed " + p.SessionID + " " + tellEvents(p.Events, p.Gaps)
			if p.Done {
				s = strings.TrimSpace(s) + " done"
			}
		case *gvstream.ErrorPayload:
			s = "error " + string(p.Code)
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}
