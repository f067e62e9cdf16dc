package gvstream

import (
	"fmt"
	"slices"
	"strings"
)

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// story is all that was told.
func (w *simWorld) story() string { return strings.Join(w.trace, "\n") }

// shortStory leaves the middle of a long story out: after faults have stopped, much
// is said again and again.
func (w *simWorld) shortStory() string {
	const head, tail = 120, 30
	if n := len(w.trace); n > head+tail {
		left := fmt.Sprintf("… %d lines …", n-head-tail)
		return strings.Join(slices.Concat(w.trace[:head], []string{left}, w.trace[n-tail:]), "\n")
	}
	return w.story()
}

// say tells what happens, if somebody listens.
func (w *simWorld) say(format string, args ...any) {
	if w.verbose {
		at := fmt.Sprintf("%4d %8.2fs  ", w.steps, w.now.Sub(simStart).Seconds())
		w.trace = append(w.trace, at+fmt.Sprintf(format, args...))
	}
}

// tell tells what happens to a payload on its way.
func (w *simWorld) tell(format string, p Payload, to *simEnd) {
	if w.verbose {
		w.say(format, brief(p), to.name)
	}
}

// into says that a payload does not arrive.
func into(x *simWire, to *simEnd) string {
	if x.cut || to.dead {
		return ", into the void"
	}
	return ""
}

// brief tells a payload in a line.
func brief(p Payload) string {
	switch p := p.(type) {
	case *StatusPayload:
		var b strings.Builder
		fmt.Fprintf(&b, "status")
		for _, s := range p.Sessions {
			fmt.Fprintf(&b, " %s(%s first %d head %d ack %d ended %v prev %s %d)", s.SessionID, tail(s.Epoch), s.FirstSeq, s.HeadSeq, s.AckSeq, s.Ended, tail(s.PrevEpoch), s.PrevSeq)
		}
		return b.String()
	case *EventBatchPayload:
		return fmt.Sprintf("events %s(%s) %d-%d %v", p.SessionID, tail(p.Epoch), p.FirstSeq, p.LastSeq, p.Gaps)
	case *AckBatchPayload:
		return fmt.Sprintf("ack %s(%s) %d nack %v", p.SessionID, tail(p.Epoch), p.UpToSeq, p.Nack)
	case *WatchPayload:
		return fmt.Sprintf("watch %s(%s) %d stop %v", p.SessionID, tail(p.Epoch), p.AfterSeq, p.Stop)
	case *ReplayRequestPayload:
		return fmt.Sprintf("replay? %s(%s) %d-%d %s for %s", p.SessionID, tail(p.Epoch), p.AfterSeq, p.UntilSeq, p.RequestID, p.ViewerID)
	case *ReplayBatchPayload:
		return fmt.Sprintf("replay! %s(%s) %d-%d %v %s for %s done %v", p.SessionID, tail(p.Epoch), p.FirstSeq, p.LastSeq, p.Gaps, p.RequestID, p.ViewerID, p.Done)
	case *ErrorPayload:
		return fmt.Sprintf("error %s %s %d %s", p.Code, p.SessionID, p.Seq, p.Message)
	}
	return p.payloadType()
}

func briefItem(it Item) string {
	switch {
	case it.Event != nil:
		return fmt.Sprintf("(%s) event %d", tail(it.Epoch), it.seq)
	case it.Gap != nil:
		return fmt.Sprintf("(%s) gap %d-%d %s", tail(it.Epoch), it.Gap.From, it.Gap.To, it.Gap.Reason)
	case it.Reset != nil:
		return fmt.Sprintf("(%s) reset from %s %d, prev %s %d", tail(it.Epoch), tail(it.Reset.Old.Epoch), it.Reset.Old.Seq, tail(it.Reset.PrevEpoch), it.Reset.PrevSeq)
	}
	return fmt.Sprintf("(%s) end at %d", tail(it.Epoch), it.seq)
}

func tail(epoch string) string { return epoch[max(0, len(epoch)-4):] }
