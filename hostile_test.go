package gvstream

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/epoch"
)

// A victim is a link that a hostile peer is about to say something to.
type victim struct {
	*peer
	epoch string // of session s
	state func() any
	next  func() // the next good payload works

	request *ReplayRequestPayload // open at the agent
}

// A hostile input is one payload that no sane peer says to a link.
type hostile struct {
	what string
	say  Payload
	err  string  // the whole text of the error; empty: it is ignored
	said Payload // what is said beside the error, or instead
	dies bool    // the link fails
}

// footprint is how many entries there are in every map and slice that can be reached,
// by the field that they stand in.
func footprint(roots ...any) map[string]int {
	counts, seen := make(map[string]int), make(map[uintptr]bool)
	for _, root := range roots {
		count(reflect.ValueOf(root), "", counts, seen)
	}
	return counts
}

func count(v reflect.Value, path string, counts map[string]int, seen map[uintptr]bool) {
	switch v.Kind() {
	case reflect.Interface:
		count(v.Elem(), path, counts, seen)
	case reflect.Pointer:
		if !v.IsNil() && !seen[v.Pointer()] {
			seen[v.Pointer()] = true
			count(v.Elem(), v.Type().Elem().Name(), counts, seen)
		}
	case reflect.Struct:
		if v.Type().PkgPath() == "github.com/vibetools/gvstream" {
			for i := range v.NumField() {
				count(v.Field(i), path+"."+v.Type().Field(i).Name, counts, seen)
			}
		}
	case reflect.Slice:
		counts[path] += v.Len()
		for i := range v.Len() {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				break
			}
			count(v.Index(i), path+"[]", counts, seen)
		}
	case reflect.Map:
		counts[path] += v.Len()
		for it := v.MapRange(); it.Next(); {
			count(it.Key(), path+"[]", counts, seen)
			count(it.Value(), path+"[]", counts, seen)
		}
	}
}

// victimAgent is an agent that has handed out 1 to 5 of s, of which 1 and 2 are
// acknowledged.
func victimAgent(t *testing.T) *victim {
	st := NewStreamer(nil)
	publishN(t, st, "s", 5)
	v := &victim{peer: &peer{t: t, link: st.Connect(), id: "l1"}, epoch: stats(t, st, "s").Epoch}
	v.want(&HelloPayload{V: 1, Role: roleAgent})
	v.send(&WelcomePayload{V: 1, Link: "l1", Window: 256})
	v.drain()
	v.send(v.ack("s", v.epoch, 2))
	v.state = func() any {
		all, s := st.Stats(), stats(t, st, "s")
		all.StalePayloads, all.RefusedPayloads, all.Connected, s.Connected = 0, 0, false, false
		var events []Event
		for e := range st.Unacked("s") {
			events = append(events, e)
		}
		return []any{all, s, events}
	}
	acked := uint64(2)
	v.next = func() {
		publishN(t, st, "s", 1)
		acked++
		b, ok := v.peer.next().(*EventBatchPayload)
		if !ok || b.LastSeq != acked+3 {
			t.Fatalf("the agent says %s behind its %d", payloadText(b), acked+2)
		}
		v.send(v.ack("s", v.epoch, acked))
		if n := st.Stats().PendingEvents; n != 3 {
			t.Fatalf("%d pending, want 3", n)
		}
	}
	return v
}

// hostileToAgent is what a hostile hub may say to an agent.
func hostileToAgent(v *victim) []hostile {
	const most, other = MaxSeq, "other"
	e := v.epoch
	ack := func(f func(p *AckBatchPayload)) Payload {
		p := &AckBatchPayload{SessionID: "s", Epoch: e, Link: "l1", UpToSeq: v.acked()}
		f(p)
		return p
	}
	ask := func(f func(p *ReplayRequestPayload)) Payload {
		p := &ReplayRequestPayload{SessionID: "s", ViewerID: "v", RequestID: "r1", Epoch: e, AfterSeq: 1, UntilSeq: 3, Limit: 9}
		f(p)
		return p
	}
	head := v.acked() + 3
	beyond := fmt.Sprintf("gvstream: ack_beyond_sent session=%q epoch=%q seq=%d: ack beyond what was sent", "s", e, head)
	ahead := func(after uint64) string {
		return fmt.Sprintf("gvstream: replay_ahead session=%q epoch=%q seq=%d: replay after %d, but the head is %d", "s", e, head, after, head)
	}
	return []hostile{
		{"nothing", nil, "gvstream: malformed: no payload", nil, false},
		{"nothing of a type", (*AckBatchPayload)(nil), "gvstream: malformed: no payload", nil, false},
		{"an agent's hello", &HelloPayload{V: 1, Role: "agent"}, "gvstream: unexpected: an agent takes no hello", nil, false},
		{"a hello of no role", &HelloPayload{V: 1, Role: "r\noot"}, `gvstream: malformed: hello: unknown role "r\noot"`, nil, false},
		{"a batch", v.batch("s", "e1", 1, 1), "gvstream: unexpected: an agent takes no event_batch", nil, false},
		{"a watch", &WatchPayload{SessionID: "s"}, "gvstream: unexpected: an agent takes no watch", nil, false},
		{"a replay batch", &ReplayBatchPayload{SessionID: "s", RequestID: "r", Epoch: "e", FirstSeq: 1}, "gvstream: unexpected: an agent takes no replay_batch", nil, false},

		{"a second welcome", &WelcomePayload{V: 1, Link: "l2", Window: 1}, "", nil, false},
		{"the same welcome", &WelcomePayload{V: 1, Link: "l1", Window: 1}, "", nil, false},
		{"welcome to a negative window", &WelcomePayload{V: 1, Link: "l1", Window: -1}, "gvstream: malformed: welcome: negative window", nil, false},
		{"welcome to no link", &WelcomePayload{V: 1}, "gvstream: malformed: welcome: bad link", nil, false},
		{"welcome of a bad viewer", &WelcomePayload{V: 1, Link: "l1", ViewerID: "\x7f"}, "gvstream: malformed: welcome: bad viewer_id", nil, false},
		{"welcome of version 0", &WelcomePayload{Link: "l1"}, "gvstream: version_unsupported: welcome of another version", nil, true},
		{"welcome of version -1", &WelcomePayload{V: -1, Link: "l1"}, "gvstream: version_unsupported: welcome of another version", nil, true},
		{"welcome of the last version", &WelcomePayload{V: math.MaxInt, Link: "l2"}, "gvstream: version_unsupported: welcome of another version", nil, true},

		{"status of another link", &StatusPayload{Link: "l2"}, "", nil, false},
		{"status of no link", &StatusPayload{}, "gvstream: malformed: status: bad link", nil, false},
		{"status of this link", &StatusPayload{Link: "l1", Sessions: []SessionStatus{{SessionID: "s", Epoch: "z", HeadSeq: most, AckSeq: most}}}, "", nil, false},
		{"status of 257", &StatusPayload{Link: "l1", Sessions: make([]SessionStatus, 257)}, "gvstream: malformed: status: more than 256 sessions", nil, false},

		{"ack of one more than was sent", ack(func(p *AckBatchPayload) { p.UpToSeq = head + 1 }), beyond, nil, true},
		{"ack of twice as many", ack(func(p *AckBatchPayload) { p.UpToSeq = 2 * head }), beyond, nil, true},
		{"nack beyond", ack(func(p *AckBatchPayload) { p.UpToSeq, p.Nack = head+1, true }), beyond, nil, true},
		{"ack of the greatest", ack(func(p *AckBatchPayload) { p.UpToSeq = most }), beyond, nil, true},
		{"ack of one more than the greatest", ack(func(p *AckBatchPayload) { p.UpToSeq = most + 1 }), "gvstream: malformed: ack_batch: up_to_seq too large", nil, false},
		{"ack of 64 bits", ack(func(p *AckBatchPayload) { p.UpToSeq = math.MaxUint64 }), "gvstream: malformed: ack_batch: up_to_seq too large", nil, false},
		{"ack from before", ack(func(p *AckBatchPayload) { p.UpToSeq-- }), "", nil, false},
		{"nack from before", ack(func(p *AckBatchPayload) { p.UpToSeq, p.Nack = p.UpToSeq-1, true }), "", nil, false},
		{"ack of nothing", ack(func(p *AckBatchPayload) { p.UpToSeq = 0 }), "", nil, false},
		{"ack of an older epoch", ack(func(p *AckBatchPayload) { p.Epoch = "0" }), "", nil, false},
		{"ack of a later epoch", ack(func(p *AckBatchPayload) { p.Epoch, p.UpToSeq = "z", 5 }), "", nil, false},
		{"ack of an epoch cut off", ack(func(p *AckBatchPayload) { p.Epoch = e[:25] }), "", nil, false},
		{"ack of an epoch and more", ack(func(p *AckBatchPayload) { p.Epoch = e + "0" }), "", nil, false},
		{"ack of another link", ack(func(p *AckBatchPayload) { p.Link, p.UpToSeq = "l2", 5 }), "", nil, false},
		{"ack of no link", ack(func(p *AckBatchPayload) { p.Link = "" }), "gvstream: malformed: ack_batch: bad link", nil, false},
		{"ack of no epoch", ack(func(p *AckBatchPayload) { p.Epoch = "" }), "gvstream: malformed: ack_batch: bad epoch", nil, false},
		{"ack of a loud epoch", ack(func(p *AckBatchPayload) { p.Epoch = strings.ToUpper(e) }), "gvstream: malformed: ack_batch: bad epoch", nil, false},
		{"ack of no session", ack(func(p *AckBatchPayload) { p.SessionID = "" }), "gvstream: malformed: ack_batch: bad session_id", nil, false},
		{"ack of two lines", ack(func(p *AckBatchPayload) { p.SessionID = "s\ns" }), "gvstream: malformed: ack_batch: bad session_id", nil, false},
		{"ack of bytes", ack(func(p *AckBatchPayload) { p.SessionID = "s\xff" }), "gvstream: malformed: ack_batch: bad session_id", nil, false},
		{"ack of a bad viewer", ack(func(p *AckBatchPayload) { p.ViewerID = "\x00" }), "gvstream: malformed: ack_batch: bad viewer_id", nil, false},
		{"ack of an unknown session", ack(func(p *AckBatchPayload) { p.SessionID = "t" }), `gvstream: unknown_session session="t": ack of an unknown session`, nil, false},
		{"ack of a session in colour", ack(func(p *AckBatchPayload) { p.SessionID = "\u202et" }), `gvstream: unknown_session session="\u202et": ack of an unknown session`, nil, false},
		{"ack of a session as long as may be", ack(func(p *AckBatchPayload) { p.SessionID = strings.Repeat("t", 128) }),
			`gvstream: unknown_session session="` + strings.Repeat("t", 128) + `": ack of an unknown session`, nil, false},
		{"ack of a longer one", ack(func(p *AckBatchPayload) { p.SessionID = strings.Repeat("t", 129) }), "gvstream: malformed: ack_batch: bad session_id", nil, false},
		{"progress beyond the head", ack(func(p *AckBatchPayload) { p.ViewerID, p.UpToSeq = "v", head+1 }), "", nil, false},

		{"replay of an unknown session", ask(func(p *ReplayRequestPayload) { p.SessionID = "t" }), `gvstream: unknown_session session="t": replay of an unknown session`, nil, false},
		{"replay of an older epoch", ask(func(p *ReplayRequestPayload) { p.Epoch = "0" }), fmt.Sprintf("gvstream: stale_epoch session=%q epoch=%q: replay of another epoch", "s", e), nil, false},
		{"replay of a later epoch", ask(func(p *ReplayRequestPayload) { p.Epoch = "z" }), fmt.Sprintf("gvstream: stale_epoch session=%q epoch=%q: replay of another epoch", "s", e), nil, false},
		{"replay from one beyond the head", ask(func(p *ReplayRequestPayload) { p.AfterSeq, p.UntilSeq = head+1, 0 }), ahead(head + 1), nil, false},
		{"replay from the greatest", ask(func(p *ReplayRequestPayload) { p.AfterSeq, p.UntilSeq = most, most }), ahead(most), nil, false},
		{"replay from beyond the greatest", ask(func(p *ReplayRequestPayload) { p.AfterSeq, p.UntilSeq = most+1, 0 }), "gvstream: malformed: replay_request: bad position", nil, false},
		{"replay from half a position", ask(func(p *ReplayRequestPayload) { p.Epoch = "" }), "gvstream: malformed: replay_request: bad position", nil, false},
		{"replay up to beyond the greatest", ask(func(p *ReplayRequestPayload) { p.UntilSeq = most + 1 }),
			"gvstream: malformed: replay_request: until 9007199254740992 before after 1, or too large", nil, false},
		{"replay backwards", ask(func(p *ReplayRequestPayload) { p.AfterSeq, p.UntilSeq = 3, 2 }), "gvstream: malformed: replay_request: until 2 before after 3, or too large", nil, false},
		{"replay of less than nothing", ask(func(p *ReplayRequestPayload) { p.Limit = -1 }), "gvstream: malformed: replay_request: negative limit", nil, false},
		{"replay without an id", ask(func(p *ReplayRequestPayload) { p.RequestID = "" }), "gvstream: malformed: replay_request: bad request_id", nil, false},
		{"replay with an id of two lines", ask(func(p *ReplayRequestPayload) { p.RequestID = "a\nb" }), "gvstream: malformed: replay_request: bad request_id", nil, false},
		{"replay for a bad viewer", ask(func(p *ReplayRequestPayload) { p.ViewerID = "\u0085" }), "gvstream: malformed: replay_request: bad viewer_id", nil, false},
		{"replay of no session", ask(func(p *ReplayRequestPayload) { p.SessionID = "" }), "gvstream: malformed: replay_request: bad session_id", nil, false},

		{"an error of no code", &ErrorPayload{}, "gvstream: malformed: error: bad code", nil, false},
		{"an error of a code in two lines", &ErrorPayload{Code: "a\nb"}, "gvstream: malformed: error: bad code", nil, false},
		{"a long error", &ErrorPayload{Code: "x", Message: strings.Repeat("x", 257)}, "gvstream: malformed: error: bad message", nil, false},
		{"an error of bytes", &ErrorPayload{Code: "x", Message: "\xff"}, "gvstream: malformed: error: bad message", nil, false},
		{"an error about a bad session", &ErrorPayload{Code: "x", SessionID: "\n"}, "gvstream: malformed: error: bad session_id", nil, false},
		{"an error about a bad viewer", &ErrorPayload{Code: "x", ViewerID: "\n"}, "gvstream: malformed: error: bad viewer_id", nil, false},
		{"an error about a bad request", &ErrorPayload{Code: "x", RequestID: "\n"}, "gvstream: malformed: error: bad request_id", nil, false},
		{"an error about a bad epoch", &ErrorPayload{Code: "x", Epoch: "E"}, "gvstream: malformed: error: bad epoch", nil, false},
		{"an error about a large number", &ErrorPayload{Code: "x", Seq: most + 1}, "gvstream: malformed: error: seq too large", nil, false},
		{"an error about nothing", &ErrorPayload{Code: codeForbidden}, "", nil, false},
		{"an error about an unknown session", &ErrorPayload{Code: codeForbidden, SessionID: "t"}, "", nil, false},
		{"an error about a request", &ErrorPayload{Code: codeForbidden, SessionID: "s", RequestID: "r"}, "", nil, false},
		{"an error about another epoch", &ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: "0"}, "", nil, false},
		{"a smaller epoch is current", &ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: "0"}, "", nil, false},
		{"this epoch is current", &ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: e}, "", nil, false},
		{"rejected was what is acknowledged", &ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: 1}, "", nil, false},
		{"rejected was what was not sent", &ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: head + 1}, "", nil, false},
		{"too large is the greatest", &ErrorPayload{Code: codeEventTooLarge, SessionID: "s", Seq: most}, "", nil, false},
		{"another version", &ErrorPayload{Code: codeVersion, Message: "no\nmore"}, `gvstream: version_unsupported: "no\nmore"`, nil, true},
	}
}

// acked is how far the agent knows itself acknowledged.
func (v *victim) acked() uint64 { return v.state().([]any)[1].(SessionStats).Acked }

// victimHubOfAgent is a hub's link to an agent that has s with 1 to 3, and an ended
// session with 1 and 2. Of long the hub asks it for 1 to 15. Another agent has
// theirs.
func victimHubOfAgent(t *testing.T) *victim {
	h := NewHub(&HubConfig{MaxEventBytes: 1000, LogEvents: 5, MaxAgentSessions: 3, Window: 4})
	playAgent(t, h, "other").feed("theirs", "e1", 1, 3)
	v := &victim{peer: playAgent(t, h, "agent"), epoch: "e1"}
	v.feed("s", "e1", 1, 3)
	v.feed("long", "e1", 1, 20)
	v.send(v.last("ended", "e1", 1))
	v.drain()
	tab := playViewer(t, h, "tab")
	tab.send(tab.watch("long", "", 0))
	tab.drain()
	v.request = v.asked("long", "tab", "e1", 0, 15)
	v.wantIdle("asked once")
	v.state = func() any {
		all := h.Stats()
		all.StalePayloads, all.RefusedPayloads = 0, 0
		tab.drain()
		state := []any{all, footprint(h)}
		for s := range h.Sessions() {
			state = append(state, s)
			l := &h.lookup(s.SessionID).log
			for i := range l.ring.n {
				state = append(state, l.from(i), string(l.ring.at(i).bytes()))
			}
		}
		c := h.lookup("long").cursors[0]
		return append(state, c.seq, c.lost, len(c.pages), c.fetch.next, c.fetch.left)
	}
	last := uint64(3)
	v.next = func() {
		last++
		v.send(v.batch("s", "e1", last, last))
		v.want(v.ack("s", "e1", last))
		v.wantIdle("one ack is enough")
	}
	return v
}

// hostileToHubOfAgent is what a hostile agent may say to a hub.
func hostileToHubOfAgent(v *victim) []hostile {
	const most = MaxSeq
	last := v.state().([]any)
	n := uint64(0) // accepted of s
	for _, x := range last {
		if s, ok := x.(SessionStats); ok && s.SessionID == "s" {
			n = s.Acked
		}
	}
	batch := func(f func(p *EventBatchPayload)) Payload {
		p := v.batch("s", "e1", n+1, n+2)
		f(p)
		return p
	}
	replay := func(f func(p *ReplayBatchPayload)) Payload {
		p := answerTo(v.request, 1, 3, false)
		f(p)
		return p
	}
	entry := func(f func(s *SessionStatus)) Payload {
		s := entryOf("s", "e1", 1, 1, n)
		f(&s)
		return v.status(s)
	}
	gap := func(p *EventBatchPayload, from, to uint64) {
		p.Events, p.Gaps = nil, []Gap{{from, to, ReasonDropped}}
	}
	at := func(off uint64) string { return fmt.Sprint(n + off) }
	badData := fmt.Sprintf("gvstream: event_rejected session=%q epoch=%q seq=%d: event %d: gvstream: invalid event: ", "s", "e1", n+1, n+1)
	inAYear := epoch.NewSource(rand.Reader).Next(time.Now().Add(8760 * time.Hour))
	forbidden := func(epoch string) string {
		return fmt.Sprintf("gvstream: forbidden session=%q epoch=%q: the session belongs to another agent", "theirs", epoch)
	}
	stale := `gvstream: stale_epoch session="s" epoch="e1": the session has a later epoch`
	full := `gvstream: overloaded session="new" epoch="e1": too many sessions`
	return []hostile{
		{"nothing", nil, "gvstream: malformed: no payload", nil, false},
		{"a welcome", &WelcomePayload{V: 1, Link: "l"}, "gvstream: unexpected: a hub takes no welcome from an agent", nil, false},
		{"an ack", v.ack("s", "e1", 3), "gvstream: unexpected: a hub takes no ack_batch from an agent", nil, false},
		{"a watch", &WatchPayload{SessionID: "s"}, "gvstream: unexpected: a hub takes no watch from an agent", nil, false},
		{"a replay request", request("s", "v", "r", "e1", 0, 3), "gvstream: unexpected: a hub takes no replay_request from an agent", nil, false},
		{"hello of version 0", &HelloPayload{Role: "agent"}, "gvstream: version_unsupported: version 0: this hub speaks 1", nil, false},
		{"hello of version -1", &HelloPayload{V: -1, Role: "agent"}, "gvstream: version_unsupported: version -1: this hub speaks 1", nil, false},
		{"hello of the last version", &HelloPayload{V: math.MaxInt32, Role: "agent"}, "gvstream: version_unsupported: version 2147483647: this hub speaks 1", nil, false},
		{"hello of a viewer", &HelloPayload{V: 1, Role: "viewer"}, `gvstream: malformed: hello: an agent's link, but role "viewer"`, nil, false},
		{"hello of no role", &HelloPayload{V: 1}, `gvstream: malformed: hello: unknown role ""`, nil, false},
		{"hello of a long role", &HelloPayload{V: 1, Role: strings.Repeat("\x00", 1000)}, `gvstream: malformed: hello: unknown role "` + strings.Repeat(`\x00`, 32) + `"`, nil, false},
		{"hello of a bad viewer", &HelloPayload{V: 1, Role: "agent", ViewerID: "\n"}, "gvstream: malformed: hello: bad viewer_id", nil, false},

		{"status of another link", &StatusPayload{Link: "l0", Sessions: []SessionStatus{entryOf("new", "e1", 1, 0, 0)}}, "", &ErrorPayload{Code: codeStaleLink, Message: "say hello", Retryable: true}, false},
		{"status of no link", &StatusPayload{}, "gvstream: malformed: status: bad link", nil, false},
		{"status of 257", &StatusPayload{Link: v.id, Sessions: make([]SessionStatus, 257)}, "gvstream: malformed: status: more than 256 sessions", nil, false},
		{"status of a bad viewer", &StatusPayload{Link: v.id, ViewerID: "\n"}, "gvstream: malformed: status: bad viewer_id", nil, false},
		{"status without an epoch", v.status(SessionStatus{SessionID: "s"}), "gvstream: malformed: status: an agent's session without epoch", nil, false},
		{"status of no session", entry(func(s *SessionStatus) { s.SessionID = "" }), "gvstream: malformed: status: bad session_id", nil, false},
		{"status with numbers without an epoch", entry(func(s *SessionStatus) { s.Epoch = "" }), "gvstream: malformed: status: numbers without an epoch", nil, false},
		{"status of a bad epoch", entry(func(s *SessionStatus) { s.Epoch = "e 1" }), "gvstream: malformed: status: bad epoch", nil, false},
		{"status of a bad epoch before", entry(func(s *SessionStatus) { s.PrevEpoch = "E" }), "gvstream: malformed: status: bad epoch", nil, false},
		{"status: ack beyond the head", entry(func(s *SessionStatus) { s.AckSeq = s.HeadSeq + 1 }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status: first two beyond the head", entry(func(s *SessionStatus) { s.FirstSeq = s.HeadSeq + 2 }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status: head beyond the greatest", entry(func(s *SessionStatus) { s.HeadSeq = most + 1 }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status: 64 bits", entry(func(s *SessionStatus) { s.HeadSeq, s.FirstSeq = math.MaxUint64, math.MaxUint64 }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status: epoch before with 64 bits", entry(func(s *SessionStatus) { s.PrevSeq = math.MaxUint64 }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status of an older epoch", entry(func(s *SessionStatus) { s.Epoch = "e0" }), stale, nil, false},
		{"status of a prefix of the epoch", entry(func(s *SessionStatus) { s.Epoch = "e" }), stale, nil, false},
		{"status of another's session", entry(func(s *SessionStatus) { s.SessionID = "theirs" }), forbidden("e1"), nil, false},
		{"status of another's session in a later epoch", entry(func(s *SessionStatus) { s.SessionID, s.Epoch = "theirs", "z" }), forbidden("z"), nil, false},
		{"status of an epoch in a year", entry(func(s *SessionStatus) {
			s.SessionID, s.Epoch = "new", inAYear
		}),
			fmt.Sprintf("gvstream: forbidden session=%q epoch=%q: the epoch is too far ahead of the hub's clock", "new", inAYear), nil, false},
		{"status of one session too many", entry(func(s *SessionStatus) { s.SessionID = "new" }), full, nil, false},

		{"batch of another link", batch(func(p *EventBatchPayload) { p.Link = "l0" }), "", &ErrorPayload{Code: codeStaleLink, Message: "say hello", Retryable: true}, false},
		{"batch of another's session", batch(func(p *EventBatchPayload) { p.SessionID = "theirs" }), forbidden("e1"), nil, false},
		{"batch of another's session from the start", v.batch("theirs", "e1", 1, 9), forbidden("e1"), nil, false},
		{"batch of another's session in a later epoch", v.batch("theirs", "e2", 1, 9), forbidden("e2"), nil, false},
		{"batch of an older epoch", batch(func(p *EventBatchPayload) { p.Epoch = "e0" }), stale, nil, false},
		{"batch of an older epoch from the start", v.batch("s", "e0", 1, 2), stale, nil, false},
		{"batch of a later epoch, not from its start", batch(func(p *EventBatchPayload) { p.Epoch = "e2" }), `gvstream: unknown_session session="s" epoch="e2": not open on this link`, nil, false},
		{"batch of an unknown session", batch(func(p *EventBatchPayload) { p.SessionID = "new" }), `gvstream: unknown_session session="new" epoch="e1": not open on this link`, nil, false},
		{"batch of one session too many", v.batch("new", "e1", 1, 2), full, nil, false},
		{"batch behind the end", v.batch("ended", "e1", 2, 2), `gvstream: session_ended session="ended" epoch="e1": the session ended at 1`, nil, false},
		{"gap behind the end", batch(func(p *EventBatchPayload) {
			p.SessionID, p.FirstSeq, p.LastSeq = "ended", 2, most
			p.HeadSeq = most
			gap(p, 2, most)
		}),
			`gvstream: session_ended session="ended" epoch="e1": the session ended at 1`, nil, false},
		{"a second end", v.last("ended", "e1", 2), `gvstream: session_ended session="ended" epoch="e1": the session ended at 1`, nil, false},
		{"batch of no session", batch(func(p *EventBatchPayload) { p.SessionID = "" }), "gvstream: malformed: event_batch: bad session_id", nil, false},
		{"batch of a session in bytes", batch(func(p *EventBatchPayload) { p.SessionID = "\xc3" }), "gvstream: malformed: event_batch: bad session_id", nil, false},
		{"batch for a bad viewer", batch(func(p *EventBatchPayload) { p.ViewerID = "\x1b[31m" }), "gvstream: malformed: event_batch: bad viewer_id", nil, false},
		{"batch of no epoch", batch(func(p *EventBatchPayload) { p.Epoch = "" }), "gvstream: malformed: event_batch: bad epoch", nil, false},
		{"batch of a long epoch", batch(func(p *EventBatchPayload) { p.Epoch = strings.Repeat("e", 65) }), "gvstream: malformed: event_batch: bad epoch", nil, false},
		{"batch of no link", batch(func(p *EventBatchPayload) { p.Link = "" }), "gvstream: malformed: event_batch: bad link", nil, false},
		{"batch without anything", batch(func(p *EventBatchPayload) { p.Events = nil }), "gvstream: malformed: batch: ends at " + at(0) + ", not at last_seq " + at(2), nil, false},
		{"batch from 0", batch(func(p *EventBatchPayload) { p.FirstSeq = 0 }), "gvstream: malformed: batch: numbers start at 1 and end at 9007199254740991", nil, false},
		{"batch turned round", batch(func(p *EventBatchPayload) { p.LastSeq = n; p.HeadSeq = n }), "gvstream: malformed: event_batch: empty", nil, false},
		{"batch up to beyond the greatest", batch(func(p *EventBatchPayload) { p.LastSeq, p.HeadSeq = most+1, most+1 }),
			"gvstream: malformed: event_batch: head 9007199254740992 before last 9007199254740992, or too large", nil, false},
		{"batch of 64 bits", batch(func(p *EventBatchPayload) {
			p.FirstSeq, p.LastSeq, p.HeadSeq = math.MaxUint64, math.MaxUint64, math.MaxUint64
		}),
			"gvstream: malformed: event_batch: head 18446744073709551615 before last 18446744073709551615, or too large", nil, false},
		{"batch beyond its head", batch(func(p *EventBatchPayload) { p.HeadSeq = n + 1 }), "gvstream: malformed: event_batch: head " + at(1) + " before last " + at(2) + ", or too large", nil, false},
		{"batch with a hole", batch(func(p *EventBatchPayload) { p.Events[1].Seq++; p.LastSeq++; p.HeadSeq++ }), "gvstream: malformed: batch: nothing tiles number " + at(2), nil, false},
		{"batch with a hole before it", batch(func(p *EventBatchPayload) { p.Events = p.Events[1:] }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},
		{"batch with a hole behind it", batch(func(p *EventBatchPayload) { p.Events = p.Events[:1] }), "gvstream: malformed: batch: ends at " + at(1) + ", not at last_seq " + at(2), nil, false},
		{"batch with a number twice", batch(func(p *EventBatchPayload) { p.Events[1].Seq-- }), "gvstream: malformed: batch: nothing tiles number " + at(2), nil, false},
		{"batch in the wrong order", batch(func(p *EventBatchPayload) { p.Events[0], p.Events[1] = p.Events[1], p.Events[0] }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},
		{"batch with one event too many", batch(func(p *EventBatchPayload) { p.Events = numbered(n+1, n+3) }), "gvstream: malformed: batch: ends at " + at(3) + ", not at last_seq " + at(2), nil, false},
		{"batch of 257", batch(func(p *EventBatchPayload) { p.Events = make([]Event, 257) }), "gvstream: malformed: event_batch: more than 256 events", nil, false},
		{"batch of 513 gaps", batch(func(p *EventBatchPayload) { p.Events, p.Gaps = nil, make([]Gap, 513) }), "gvstream: malformed: batch: more than 512 gaps", nil, false},
		{"gap over an event", batch(func(p *EventBatchPayload) { p.Gaps = []Gap{{n + 2, n + 2, ReasonDropped}} }), "gvstream: malformed: batch: nothing tiles number " + at(3), nil, false},
		{"event in a gap", batch(func(p *EventBatchPayload) { p.Gaps = []Gap{{n + 1, n + 2, ReasonDropped}}; p.Events = p.Events[:1] }), "gvstream: malformed: batch: nothing tiles number " + at(2), nil, false},
		{"gap turned round", batch(func(p *EventBatchPayload) { gap(p, n+1, n) }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},
		{"gap to beyond the batch", batch(func(p *EventBatchPayload) { gap(p, n+1, most) }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},
		{"gap of 64 bits", batch(func(p *EventBatchPayload) { gap(p, n+1, math.MaxUint64) }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},
		{"gap from 0", batch(func(p *EventBatchPayload) { gap(p, 0, n+2) }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},
		{"gap without a reason", batch(func(p *EventBatchPayload) { gap(p, n+1, n+2); p.Gaps[0].Reason = "" }), "gvstream: malformed: batch: gap at " + at(1) + ": bad reason", nil, false},
		{"gap for a long reason", batch(func(p *EventBatchPayload) { gap(p, n+1, n+2); p.Gaps[0].Reason = Reason(strings.Repeat("a", 33)) }), "gvstream: malformed: batch: gap at " + at(1) + ": bad reason", nil, false},
		{"gap for two lines", batch(func(p *EventBatchPayload) { gap(p, n+1, n+2); p.Gaps[0].Reason = "a\nb" }), "gvstream: malformed: batch: gap at " + at(1) + ": bad reason", nil, false},
		{"something behind the end", batch(func(p *EventBatchPayload) { p.Events[0].End = true }), "gvstream: malformed: batch: something follows the end " + at(1), nil, false},
		{"a type in two lines", batch(func(p *EventBatchPayload) { p.Events[0].Type = "a\nb" }), "gvstream: malformed: batch: event " + at(1) + ": bad type, data or time", nil, false},
		{"a long type", batch(func(p *EventBatchPayload) { p.Events[0].Type = strings.Repeat("t", 129) }), "gvstream: malformed: batch: event " + at(1) + ": bad type, data or time", nil, false},
		{"data and bytes", batch(func(p *EventBatchPayload) { p.Events[1].Bytes = []byte("x") }), "gvstream: malformed: batch: event " + at(2) + ": bad type, data or time", nil, false},
		{"the year 10000", batch(func(p *EventBatchPayload) { p.Events[1].Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }), "gvstream: malformed: batch: event " + at(2) + ": bad type, data or time", nil, false},
		{"data that is no JSON", batch(func(p *EventBatchPayload) { p.Events[0].Data = json.RawMessage("{") }), badData + "data: byte 1: want a string", nil, false},
		{"data of two values", batch(func(p *EventBatchPayload) { p.Events[0].Data = json.RawMessage("1 2") }), badData + "data: byte 2: something follows the value", nil, false},
		{"data of bytes", batch(func(p *EventBatchPayload) { p.Events[0].Data = json.RawMessage("\"\xff\"") }), badData + "data: not valid UTF-8", nil, false},
		{"data of 501 levels", batch(func(p *EventBatchPayload) { p.Events[0].Data = json.RawMessage(deep(501)) }), badData + "data: byte 500: nested too deeply", nil, false},

		{"replay nobody asked for", replay(func(p *ReplayBatchPayload) { p.RequestID = "r0" }), "", nil, false},
		{"replay of another session", replay(func(p *ReplayBatchPayload) { p.SessionID = "s" }), fmt.Sprintf("gvstream: malformed: replay_batch: not what request %q asked for", v.request.RequestID), nil, false},
		{"replay of another agent's session", replay(func(p *ReplayBatchPayload) { p.SessionID = "theirs" }), fmt.Sprintf("gvstream: malformed: replay_batch: not what request %q asked for", v.request.RequestID), nil, false},
		{"replay of another epoch", replay(func(p *ReplayBatchPayload) { p.Epoch = "e2" }), fmt.Sprintf("gvstream: malformed: replay_batch: not what request %q asked for", v.request.RequestID), nil, false},
		{"replay for another viewer", replay(func(p *ReplayBatchPayload) { p.ViewerID = "other" }), fmt.Sprintf("gvstream: malformed: replay_batch: not what request %q asked for", v.request.RequestID), nil, false},
		{"replay for nobody", replay(func(p *ReplayBatchPayload) { p.ViewerID = "" }), fmt.Sprintf("gvstream: malformed: replay_batch: not what request %q asked for", v.request.RequestID), nil, false},
		{"replay beyond what was asked for", replay(func(p *ReplayBatchPayload) { p.Events, p.LastSeq, p.UntilSeq = numbered(1, 16), 16, 16 }), fmt.Sprintf("gvstream: malformed: replay_batch: more than request %q asked for", v.request.RequestID), nil, false},
		{"replay of 101", replay(func(p *ReplayBatchPayload) { p.Events = make([]Event, 101) }), "gvstream: malformed: replay_batch: more than 100 events", nil, false},
		{"replay beyond its own end", replay(func(p *ReplayBatchPayload) { p.UntilSeq = 2 }), "gvstream: malformed: replay_batch: numbers out of order", nil, false},
		{"replay until beyond the greatest", replay(func(p *ReplayBatchPayload) { p.UntilSeq = most + 1 }), "gvstream: malformed: replay_batch: numbers out of order", nil, false},
		{"replay available from nowhere", replay(func(p *ReplayBatchPayload) { p.AvailableFrom = most + 2 }), "gvstream: malformed: replay_batch: numbers out of order", nil, false},
		{"replay from 0", replay(func(p *ReplayBatchPayload) { p.FirstSeq = 0 }), "gvstream: malformed: replay_batch: ends before it starts", nil, false},
		{"replay turned round", replay(func(p *ReplayBatchPayload) { p.FirstSeq = 5 }), "gvstream: malformed: replay_batch: ends before it starts", nil, false},
		{"replay with a hole", replay(func(p *ReplayBatchPayload) { p.Events[1].Seq = 3 }), "gvstream: malformed: batch: nothing tiles number 2", nil, false},
		{"replay that ends too early", replay(func(p *ReplayBatchPayload) { p.Events = p.Events[:2] }), "gvstream: malformed: batch: ends at 2, not at last_seq 3", nil, false},
		{"replay without an id", replay(func(p *ReplayBatchPayload) { p.RequestID = "" }), "gvstream: malformed: replay_batch: bad request_id", nil, false},
		{"replay of no session", replay(func(p *ReplayBatchPayload) { p.SessionID = "" }), "gvstream: malformed: replay_batch: bad session_id", nil, false},
		{"replay for a bad viewer", replay(func(p *ReplayBatchPayload) { p.ViewerID = "\n" }), "gvstream: malformed: replay_batch: bad viewer_id", nil, false},
		{"replay of no epoch", replay(func(p *ReplayBatchPayload) { p.Epoch = "" }), "gvstream: malformed: replay_batch: bad epoch", nil, false},
		{"replay of what is no JSON", replay(func(p *ReplayBatchPayload) { p.Events[2].Data = json.RawMessage("nul") }), "gvstream: malformed: replay_batch: event 3: gvstream: invalid event: data: byte 0: want null", nil, false},
		{"replay with gaps over events", replay(func(p *ReplayBatchPayload) { p.Gaps = []Gap{{2, 2, ReasonEvicted}} }), "gvstream: malformed: batch: nothing tiles number 4", nil, false},

		{"an error of no code", &ErrorPayload{}, "gvstream: malformed: error: bad code", nil, false},
		{"an error about nothing", &ErrorPayload{Code: codeStaleLink}, "", nil, false},
		{"an error about a request nobody made", &ErrorPayload{Code: codeReplayBusy, RequestID: "r0"}, "", nil, false},
		{"an error about another's session", &ErrorPayload{Code: codeForbidden, SessionID: "theirs"}, "", nil, false},
		{"another version", &ErrorPayload{Code: codeVersion}, "", nil, false},
		{"an event was rejected", &ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: 1}, "", nil, false},
	}
}

// runHostile has a victim take one input after the other.
func runHostile(t *testing.T, start func(t *testing.T) *victim, inputs func(v *victim) []hostile) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := start(t)
		for i := range inputs(v) {
			in := inputs(v)[i] // of the state that the last good payload left
			if in.said != nil {
				pass(time.Second) // stale_link is said once a second
			}
			in.run(t, v)
			if t.Failed() {
				t.Fatalf("it was: %s", in.what)
			}
			if in.dies {
				v = start(t)
			} else {
				v.next()
			}
		}
	})
}

func (in *hostile) run(t *testing.T, v *victim) {
	before := v.state()
	err := v.link.Handle(t.Context(), in.say)
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != in.err {
		t.Errorf("%s:\n got %s\nwant %s", in.what, got, in.err)
	}
	var want []Payload
	if refused := (*ProtocolError)(nil); errors.As(err, &refused) {
		if _, isError := in.say.(*ErrorPayload); !isError {
			want = append(want, refused.Payload())
		}
	}
	if in.said != nil {
		want = append(want, in.said)
	}
	said := v.rest()
	if diff := cmp.Diff(want, said, sameWire); diff != "" {
		t.Errorf("%s: said -want +got\n%s", in.what, diff)
	}
	if alive := v.link.failure() == nil; alive == in.dies {
		t.Errorf("%s: the link lives: %v", in.what, alive)
	}
	if diff := cmp.Diff(before, v.state()); diff != "" {
		t.Errorf("%s: state -before +after\n%s", in.what, diff)
	}
}

// rest is what the link still says, also when it is dead.
func (v *victim) rest() (out []Payload) {
	for {
		p, err := v.link.Next(endedContext)
		if err != nil {
			return out
		}
		out = append(out, p)
	}
}

// victimHubOfViewer is a hub's link to a viewer that watches s and has its 1 to 5, and
// waits for a session that there is not. There may be no third watch, and none of
// secret.
func victimHubOfViewer(t *testing.T) *victim {
	h := NewHub(&HubConfig{MaxWatches: 2, Window: 4, LogEvents: 5, Authorize: func(_ context.Context, _, session string) error {
		if session == "secret" {
			return errors.New("a reason that nobody is told")
		}
		return nil
	}})
	a := playAgent(t, h, "agent")
	for _, id := range []string{"s", "t", "secret"} {
		a.feed(id, "e1", 1, 5)
	}
	v := &victim{peer: playViewer(t, h, "tab"), epoch: "e1"}
	v.send(v.watch("s", "e1", 0), v.watch("nobody", "", 0))
	v.drain()
	v.state = func() any {
		all := h.Stats()
		all.StalePayloads, all.RefusedPayloads = 0, 0
		state := []any{all, footprint(h)}
		for s := range h.Sessions() {
			state = append(state, s)
		}
		c := h.viewers["tab"].cursors["s"]
		return append(state, c.epoch, c.seq, c.due)
	}
	last := uint64(5)
	v.next = func() {
		last++
		a.send(a.batch("s", "e1", last, last))
		a.want(a.ack("s", "e1", last))
		v.want(v.batch("s", "e1", last, last))
		v.wantIdle("that is all")
	}
	return v
}

// hostileToHubOfViewer is what a hostile viewer may say to a hub.
func hostileToHubOfViewer(v *victim) []hostile {
	watch := func(session, epoch string, after uint64) Payload { return v.watch(session, epoch, after) }
	refused := `gvstream: forbidden session="secret": not allowed`
	limit := `gvstream: limit_exceeded session="t": a link has at most 2 watches`
	return []hostile{
		{"nothing", nil, "gvstream: malformed: no payload", nil, false},
		{"nothing of a type", (*WatchPayload)(nil), "gvstream: malformed: no payload", nil, false},
		{"a welcome", &WelcomePayload{V: 1, Link: "l"}, "gvstream: unexpected: a hub takes no welcome from a viewer", nil, false},
		{"a status", v.status(entryOf("s", "e1", 1, 0, 9)), "gvstream: unexpected: a hub takes no status from a viewer", nil, false},
		{"a batch", v.batch("s", "e1", 6, 6), "gvstream: unexpected: a hub takes no event_batch from a viewer", nil, false},
		{"an ack", v.ack("s", "e1", 5), "gvstream: unexpected: a hub takes no ack_batch from a viewer", nil, false},
		{"a replay request", request("s", "tab", "r", "e1", 0, 3), "gvstream: unexpected: a hub takes no replay_request from a viewer", nil, false},
		{"a replay batch", answerTo(request("s", "tab", "r", "e1", 0, 3), 1, 3, true), "gvstream: unexpected: a hub takes no replay_batch from a viewer", nil, false},
		{"hello of an agent", &HelloPayload{V: 1, Role: "agent"}, `gvstream: malformed: hello: a viewer's link, but role "agent"`, nil, false},
		{"hello of version 2", &HelloPayload{V: 2, Role: "viewer"}, "gvstream: version_unsupported: version 2: this hub speaks 1", nil, false},
		{"hello of version -1", &HelloPayload{V: -1, Role: "viewer"}, "gvstream: version_unsupported: version -1: this hub speaks 1", nil, false},
		{"hello of a role in two lines", &HelloPayload{V: 1, Role: "viewer\n"}, `gvstream: malformed: hello: unknown role "viewer\n"`, nil, false},
		{"hello of a bad id", &HelloPayload{V: 1, Role: "viewer", ViewerID: "\xff"}, "gvstream: malformed: hello: bad viewer_id", nil, false},

		{"watch of no session", watch("", "", 0), "gvstream: malformed: watch: bad session_id", nil, false},
		{"watch of a long session", watch(strings.Repeat("s", 129), "", 0), "gvstream: malformed: watch: bad session_id", nil, false},
		{"watch of two lines", watch("s\ns", "", 0), "gvstream: malformed: watch: bad session_id", nil, false},
		{"watch of bytes", watch("\xed\xa0\x80", "", 0), "gvstream: malformed: watch: bad session_id", nil, false},
		{"watch from half a position", watch("s", "", 1), "gvstream: malformed: watch: bad position", nil, false},
		{"watch from a bad epoch", watch("s", "E1", 1), "gvstream: malformed: watch: bad position", nil, false},
		{"watch from a long epoch", watch("s", strings.Repeat("e", 65), 1), "gvstream: malformed: watch: bad position", nil, false},
		{"watch from beyond the greatest", watch("s", "e1", MaxSeq+1), "gvstream: malformed: watch: bad position", nil, false},
		{"watch from 64 bits", watch("s", "e1", math.MaxUint64), "gvstream: malformed: watch: bad position", nil, false},
		{"watch in another's name", &WatchPayload{SessionID: "s", ViewerID: "other"}, `gvstream: forbidden session="s": not your viewer_id`, nil, false},
		{"a stop in another's name", &WatchPayload{SessionID: "s", ViewerID: "other", Stop: true}, `gvstream: forbidden session="s": not your viewer_id`, nil, false},
		{"watch in a bad name", &WatchPayload{SessionID: "s", ViewerID: "\u0085"}, "gvstream: malformed: watch: bad viewer_id", nil, false},
		{"watch of a secret", watch("secret", "", 0), refused, nil, false},
		{"watch of a secret from its middle", watch("secret", "e1", 3), refused, nil, false},
		{"watch of a secret from beyond its head", watch("secret", "e1", 6), refused, nil, false},
		{"watch of a secret from another epoch", watch("secret", "e2", 1), refused, nil, false},
		{"one watch too many", watch("t", "", 0), limit, nil, false},
		{"one too many, of nobody", watch("no one", "", 0), `gvstream: limit_exceeded session="no one": a link has at most 2 watches`, nil, false},
		{"one too many, beyond the head", watch("t", "e1", MaxSeq), limit, nil, false},
		{"stop of what is not watched", v.stop("t"), "", nil, false},
		{"stop of what there is not", v.stop("no one"), "", nil, false},
		{"stop of a secret", v.stop("secret"), "", nil, false},

		{"an error of no code", &ErrorPayload{}, "gvstream: malformed: error: bad code", nil, false},
		{"an error about the session", &ErrorPayload{Code: codeForbidden, SessionID: "s"}, "", nil, false},
		{"an event was too large", &ErrorPayload{Code: codeEventTooLarge, SessionID: "s", Seq: 3}, "", nil, false},
		{"stale link", &ErrorPayload{Code: codeStaleLink}, "", nil, false},
		{"another version", &ErrorPayload{Code: codeVersion}, "", nil, false},
	}
}

// victimViewer is a viewer whose reader has 1 and 2 of s before it, and which watches
// a session that has not begun.
func victimViewer(t *testing.T) *victim {
	w := NewViewer(nil)
	for _, id := range []string{"s", "later"} {
		if err := w.Watch(id, Position{}); err != nil {
			t.Fatal(err)
		}
	}
	v := &victim{peer: playHub(t, w), epoch: "e1"}
	v.drain()
	v.send(v.status(stands("s", "e1", 1, 9, 0)), v.batch("s", "e1", 1, 3))
	v.state = func() any {
		st := w.Stats()
		st.StalePayloads, st.RefusedPayloads, st.Connected = 0, 0, false
		held := footprint(w)
		maps.DeleteFunc(held, func(field string, _ int) bool { return strings.HasPrefix(field, "Link.") }) // it dies in some
		state := []any{st, held, w.Position("s"), w.Position("later")}
		for _, q := range w.queue {
			state = append(state, itemText(q.item))
		}
		for _, id := range []string{"s", "later"} {
			state = append(state, w.watches[id].epoch, w.watches[id].received, w.watches[id].ended)
		}
		return state
	}
	last := uint64(3)
	v.next = func() {
		last++
		v.send(v.batch("s", "e1", last, last))
		for it, err := range w.Items(endedContext) {
			if err != nil {
				t.Fatal(err)
			}
			if it.Event.Seq == last-1 {
				break // it keeps the last two
			}
		}
		isAt(t, w, "s", "e1", last-2)
		v.rest()
	}
	v.next()
	return v
}

// hostileToViewer is what a hostile hub may say to a viewer.
func hostileToViewer(v *victim) []hostile {
	state := v.state().([]any)
	n := state[len(state)-5].(uint64) // received of s
	at := func(off uint64) string { return fmt.Sprint(n + off) }
	batch := func(f func(p *EventBatchPayload)) Payload {
		p := v.batch("s", "e1", n+1, n+2)
		f(p)
		return p
	}
	replay := func(f func(p *ReplayBatchPayload)) Payload {
		p := answerTo(request("s", "tab", "r", "e1", n, n+2), n+1, n+2, false)
		f(p)
		return p
	}
	entry := func(f func(s *SessionStatus)) Payload {
		s := stands("s", "e1", 1, n, n)
		f(&s)
		return v.status(s)
	}
	stop := v.stop("t")
	again := v.watch("s", "e1", n)
	return []hostile{
		{"nothing", nil, "gvstream: malformed: no payload", nil, false},
		{"nothing of a type", (*StatusPayload)(nil), "gvstream: malformed: no payload", nil, false},
		{"a hello", &HelloPayload{V: 1, Role: "viewer"}, "gvstream: unexpected: a viewer takes no hello", nil, false},
		{"an ack", v.ack("s", "e1", 3), "gvstream: unexpected: a viewer takes no ack_batch", nil, false},
		{"a watch", v.watch("s", "", 0), "gvstream: unexpected: a viewer takes no watch", nil, false},
		{"a replay request", request("s", "tab", "r", "e1", 0, 3), "gvstream: unexpected: a viewer takes no replay_request", nil, false},
		{"a second welcome", &WelcomePayload{V: 1, Link: "l9"}, "", nil, false},
		{"welcome of version 0", &WelcomePayload{Link: "l9"}, "gvstream: version_unsupported: welcome of another version", nil, true},
		{"welcome of version 2", &WelcomePayload{V: 2, Link: "l9"}, "gvstream: version_unsupported: welcome of another version", nil, true},
		{"welcome to no link", &WelcomePayload{V: 1}, "gvstream: malformed: welcome: bad link", nil, false},
		{"welcome to a negative window", &WelcomePayload{V: 1, Link: "l9", Window: -1}, "gvstream: malformed: welcome: negative window", nil, false},

		{"status of another link", &StatusPayload{Link: "l9", Sessions: []SessionStatus{stands("s", "e2", 1, 9, 0)}}, "", nil, false},
		{"status for another viewer", &StatusPayload{Link: v.id, ViewerID: "other", Sessions: []SessionStatus{stands("s", "e2", 1, 9, 0)}}, "", nil, false},
		{"status of 257", &StatusPayload{Link: v.id, Sessions: make([]SessionStatus, 257)}, "gvstream: malformed: status: more than 256 sessions", nil, false},
		{"status of what is not watched", v.status(stands("t", "e1", 1, 9, 0)), "", stop, false},
		{"status of no epoch", entry(func(s *SessionStatus) { *s = SessionStatus{SessionID: "s"} }), "", nil, false},
		{"status with numbers without an epoch", entry(func(s *SessionStatus) { s.Epoch = "" }), "gvstream: malformed: status: numbers without an epoch", nil, false},
		{"status of a bad epoch", entry(func(s *SessionStatus) { s.Epoch = "e\n" }), "gvstream: malformed: status: bad epoch", nil, false},
		{"status: handed out beyond the head", entry(func(s *SessionStatus) { s.AckSeq++ }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status: beyond the greatest", entry(func(s *SessionStatus) { s.HeadSeq = MaxSeq + 1 }), "gvstream: malformed: status: numbers out of order", nil, false},
		{"status: ended before what was received", entry(func(s *SessionStatus) { s.HeadSeq, s.AckSeq, s.FirstSeq, s.Ended = n-1, n-1, 1, true }), "", nil, false},

		{"batch of another link", batch(func(p *EventBatchPayload) { p.Link = "l9" }), "", nil, false},
		{"batch for another viewer", batch(func(p *EventBatchPayload) { p.ViewerID = "other" }), "", nil, false},
		{"batch of an older epoch", batch(func(p *EventBatchPayload) { p.Epoch = "e0" }), "", nil, false},
		{"batch of a later epoch", batch(func(p *EventBatchPayload) { p.Epoch = "e2" }), "", nil, false},
		{"batch of what is not watched", batch(func(p *EventBatchPayload) { p.SessionID = "t" }), "", stop, false},
		{"batch of what has not begun", batch(func(p *EventBatchPayload) { p.SessionID = "later" }), "", nil, false},
		{"batch that is known", v.batch("s", "e1", 1, n), "", nil, false},
		{"end that is past", v.last("s", "e1", 1), "", nil, false},
		{"gap over what is known", v.lost("s", "e1", 1, n, ReasonEvicted), "", nil, false},
		{"batch behind a hole", v.batch("s", "e1", n+2, n+2), "", again, false},
		{"batch far behind a hole", v.batch("s", "e1", MaxSeq, MaxSeq), "", again, false},
		{"batch of no session", batch(func(p *EventBatchPayload) { p.SessionID = "" }), "gvstream: malformed: event_batch: bad session_id", nil, false},
		{"batch of no epoch", batch(func(p *EventBatchPayload) { p.Epoch = "" }), "gvstream: malformed: event_batch: bad epoch", nil, false},
		{"batch of no link", batch(func(p *EventBatchPayload) { p.Link = "" }), "gvstream: malformed: event_batch: bad link", nil, false},
		{"batch from 0", batch(func(p *EventBatchPayload) { p.FirstSeq = 0 }), "gvstream: malformed: batch: numbers start at 1 and end at 9007199254740991", nil, false},
		{"batch turned round", batch(func(p *EventBatchPayload) { p.LastSeq, p.HeadSeq = n, n }), "gvstream: malformed: event_batch: empty", nil, false},
		{"batch beyond its head", batch(func(p *EventBatchPayload) { p.HeadSeq-- }), "gvstream: malformed: event_batch: head " + at(1) + " before last " + at(2) + ", or too large", nil, false},
		{"batch with a hole", batch(func(p *EventBatchPayload) { p.Events[1].Seq++ }), "gvstream: malformed: batch: nothing tiles number " + at(2), nil, false},
		{"batch with a number twice", batch(func(p *EventBatchPayload) { p.Events[1].Seq-- }), "gvstream: malformed: batch: nothing tiles number " + at(2), nil, false},
		{"batch that ends too early", batch(func(p *EventBatchPayload) { p.Events = p.Events[:1] }), "gvstream: malformed: batch: ends at " + at(1) + ", not at last_seq " + at(2), nil, false},
		{"batch of 257", batch(func(p *EventBatchPayload) { p.Events = make([]Event, 257) }), "gvstream: malformed: event_batch: more than 256 events", nil, false},
		{"batch of 513 gaps", batch(func(p *EventBatchPayload) { p.Gaps = make([]Gap, 513) }), "gvstream: malformed: batch: more than 512 gaps", nil, false},
		{"something behind the end", batch(func(p *EventBatchPayload) { p.Events[0].End = true }), "gvstream: malformed: batch: something follows the end " + at(1), nil, false},
		{"a type that rings", batch(func(p *EventBatchPayload) { p.Events[0].Type = "\a" }), "gvstream: malformed: batch: event " + at(1) + ": bad type, data or time", nil, false},

		{"replay for another viewer", replay(func(p *ReplayBatchPayload) { p.ViewerID = "other" }), "", nil, false},
		{"replay of another epoch", replay(func(p *ReplayBatchPayload) { p.Epoch = "e2" }), "", nil, false},
		{"replay of what is not watched", replay(func(p *ReplayBatchPayload) { p.SessionID = "t" }), "", stop, false},
		{"replay behind a hole", replay(func(p *ReplayBatchPayload) { p.FirstSeq, p.Events = n+2, p.Events[1:] }), "", again, false},
		{"replay of nothing", replay(func(p *ReplayBatchPayload) { p.LastSeq, p.Events = n, nil }), "", nil, false},
		{"replay of 101", replay(func(p *ReplayBatchPayload) { p.Events = make([]Event, 101) }), "gvstream: malformed: replay_batch: more than 100 events", nil, false},
		{"replay without an id", replay(func(p *ReplayBatchPayload) { p.RequestID = "" }), "gvstream: malformed: replay_batch: bad request_id", nil, false},
		{"replay beyond its end", replay(func(p *ReplayBatchPayload) { p.UntilSeq = n + 1 }), "gvstream: malformed: replay_batch: numbers out of order", nil, false},
		{"replay turned round", replay(func(p *ReplayBatchPayload) { p.FirstSeq = n + 4 }), "gvstream: malformed: replay_batch: ends before it starts", nil, false},
		{"replay with a hole", replay(func(p *ReplayBatchPayload) { p.Events = p.Events[1:] }), "gvstream: malformed: batch: nothing tiles number " + at(1), nil, false},

		{"an error of no code", &ErrorPayload{}, "gvstream: malformed: error: bad code", nil, false},
		{"an error of bytes", &ErrorPayload{Code: "x", Message: "\xff"}, "gvstream: malformed: error: bad message", nil, false},
		{"an error about nothing", &ErrorPayload{Code: codeForbidden}, "", nil, false},
		{"an error about what is not watched", &ErrorPayload{Code: codeForbidden, SessionID: "t"}, "", nil, false},
		{"an error for another viewer", &ErrorPayload{Code: codeForbidden, SessionID: "s", ViewerID: "other"}, "", nil, false},
		{"an error that passes", &ErrorPayload{Code: codeForbidden, SessionID: "s", Retryable: true}, "", nil, false},
		{"another version", &ErrorPayload{Code: codeVersion, Message: "\x1b[2J"}, `gvstream: version_unsupported: "\x1b[2J"`, nil, true},
	}
}

func TestHostileToAgent(t *testing.T) { runHostile(t, victimAgent, hostileToAgent) }

func TestHostileToHubOfAgent(t *testing.T) { runHostile(t, victimHubOfAgent, hostileToHubOfAgent) }

func TestHostileToHubOfViewer(t *testing.T) { runHostile(t, victimHubOfViewer, hostileToHubOfViewer) }

func TestHostileToViewer(t *testing.T) { runHostile(t, victimViewer, hostileToViewer) }

// victims are the four kinds of link, and what is said to them.
var victims = []struct {
	name   string
	start  func(t *testing.T) *victim
	inputs func(v *victim) []hostile
}{
	{"agent", victimAgent, hostileToAgent},
	{"hub of agent", victimHubOfAgent, hostileToHubOfAgent},
	{"hub of viewer", victimHubOfViewer, hostileToHubOfViewer},
	{"viewer", victimViewer, hostileToViewer},
}

// Frames that can't be decoded come to each kind of link: each is answered by one
// error, that of TestUnmarshalRefuses, and changes nothing, and the next payload
// works (rule 11).
func TestHostileFrames(t *testing.T) {
	for _, kind := range victims {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				v := kind.start(t)
				for _, c := range hostileFrames {
					frame := hostileFrame(t, c.typ, c.old, c.new)
					before := v.state()
					frames := [][]byte{frame}
					err := receiveLoop(t.Context(), v.link, func(context.Context) (Payload, error) {
						if len(frames) == 0 {
							return nil, io.EOF
						}
						frames = nil
						return Unmarshal(frame)
					}, v.link.Handle)
					if err != io.EOF {
						t.Fatalf("%.200s: %v", frame, err)
					}
					_, err = Unmarshal(frame)
					want := []Payload{err.(*ProtocolError).Payload()}
					if err.(*ProtocolError).unanswered {
						want = nil // an error is never answered by an error
					}
					if diff := cmp.Diff(want, v.rest(), sameWire); diff != "" {
						t.Fatalf("%.200s: said -want +got\n%s", frame, diff)
					}
					if diff := cmp.Diff(before, v.state()); diff != "" {
						t.Fatalf("%.200s: state -before +after\n%s", frame, diff)
					}
					v.next()
				}
			})
		})
	}
}

// There are hundreds of inputs in the tables, and each is there once.
func TestHostileCount(t *testing.T) {
	frames, refused, ignored := make(map[string]bool), 0, 0
	for _, c := range hostileFrames {
		frames[string(hostileFrame(t, c.typ, c.old, c.new))] = true
	}
	for _, kind := range victims {
		synctest.Test(t, func(t *testing.T) {
			names := make(map[string]bool)
			for _, in := range kind.inputs(kind.start(t)) {
				if names[in.what] {
					t.Errorf("%s: %q twice", kind.name, in.what)
				}
				names[in.what] = true
				if in.err == "" {
					ignored++
				} else {
					refused++
				}
			}
		})
	}
	t.Logf("%d frames, %d payloads with an error, %d that are ignored", len(frames), refused, ignored)
	if len(frames) < 200 || refused < 200 || len(frames)+refused+ignored < 300 {
		t.Error("too few")
	}
}
