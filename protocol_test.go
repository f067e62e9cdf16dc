package gvstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Whatever codec a caller uses, no payload passes Handle that breaks a bound: each
// is tried at it, where the payload is right, and just beyond it.
func TestPayloadBounds(t *testing.T) {
	long := strings.Repeat("x", maxID)
	word := strings.Repeat("e", maxEpoch)
	hello := func(change func(*HelloPayload)) Payload {
		p := &HelloPayload{V: 1, Role: roleAgent}
		change(p)
		return p
	}
	welcome := func(change func(*WelcomePayload)) Payload {
		p := &WelcomePayload{V: 1, Link: "l"}
		change(p)
		return p
	}
	status := func(change func(*StatusPayload, *SessionStatus)) Payload {
		p := &StatusPayload{Link: "l", Sessions: []SessionStatus{
			{SessionID: "s", Epoch: "e", FirstSeq: 3, HeadSeq: 9, AckSeq: 5, PrevEpoch: "d", PrevSeq: 4},
		}}
		change(p, &p.Sessions[0])
		return p
	}
	batch := func(change func(*EventBatchPayload)) Payload {
		p := &EventBatchPayload{
			SessionID: "s", Epoch: "e", Link: "l", FirstSeq: 5, LastSeq: 8, HeadSeq: 8,
			Events: []Event{{Seq: 5}, {Seq: 8}}, Gaps: []Gap{{6, 7, ReasonDropped}},
		}
		change(p)
		return p
	}
	ack := func(change func(*AckBatchPayload)) Payload {
		p := &AckBatchPayload{SessionID: "s", Epoch: "e", Link: "l"}
		change(p)
		return p
	}
	watch := func(change func(*WatchPayload)) Payload {
		p := &WatchPayload{SessionID: "s", Epoch: "e", AfterSeq: 7}
		change(p)
		return p
	}
	request := func(change func(*ReplayRequestPayload)) Payload {
		p := &ReplayRequestPayload{SessionID: "s", RequestID: "r", Epoch: "e", AfterSeq: 7, UntilSeq: 9, Limit: 1}
		change(p)
		return p
	}
	page := func(change func(*ReplayBatchPayload)) Payload {
		p := &ReplayBatchPayload{
			SessionID: "s", RequestID: "r", Epoch: "e", FirstSeq: 5, LastSeq: 6, UntilSeq: 6, AvailableFrom: 1,
			Events: []Event{{Seq: 5}, {Seq: 6}},
		}
		change(p)
		return p
	}
	refusal := func(change func(*ErrorPayload)) Payload {
		p := &ErrorPayload{SessionID: "s", Code: "c", RequestID: "r", Epoch: "e"}
		change(p)
		return p
	}
	year := func(y int) time.Time { return time.Date(y, 6, 1, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		name   string
		p      Payload
		beyond Payload
	}{
		{"hello's viewer_id",
			hello(func(p *HelloPayload) { p.ViewerID = long }),
			hello(func(p *HelloPayload) { p.ViewerID = long + "x" })},
		{"hello's role",
			hello(func(p *HelloPayload) { p.Role = roleViewer }),
			hello(func(p *HelloPayload) { p.Role = "hub" })},
		{"welcome's viewer_id",
			welcome(func(p *WelcomePayload) { p.ViewerID = long }),
			welcome(func(p *WelcomePayload) { p.ViewerID = long + "x" })},
		{"welcome's link",
			welcome(func(p *WelcomePayload) { p.Link = long }),
			welcome(func(p *WelcomePayload) { p.Link = "" })},
		{"welcome's window",
			welcome(func(p *WelcomePayload) { p.Window = 0 }),
			welcome(func(p *WelcomePayload) { p.Window = -1 })},

		{"status's viewer_id",
			status(func(p *StatusPayload, _ *SessionStatus) { p.ViewerID = "" }),
			status(func(p *StatusPayload, _ *SessionStatus) { p.ViewerID = "\n" })},
		{"status's link",
			status(func(p *StatusPayload, _ *SessionStatus) { p.Link = "l" }),
			status(func(p *StatusPayload, _ *SessionStatus) { p.Link = "" })},
		{"status's sessions",
			status(func(p *StatusPayload, s *SessionStatus) { p.Sessions = repeat(*s, maxStatus) }),
			status(func(p *StatusPayload, s *SessionStatus) { p.Sessions = repeat(*s, maxStatus+1) })},
		{"a status's session_id",
			status(func(_ *StatusPayload, s *SessionStatus) { s.SessionID = long }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.SessionID = "" })},
		{"a status's epoch",
			status(func(_ *StatusPayload, s *SessionStatus) { s.Epoch = word }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.Epoch = word + "e" })},
		{"a status's prev_epoch",
			status(func(_ *StatusPayload, s *SessionStatus) { s.PrevEpoch = word }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.PrevEpoch = word + "e" })},
		{"a status's head_seq",
			status(func(_ *StatusPayload, s *SessionStatus) { s.HeadSeq = MaxSeq }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.HeadSeq = MaxSeq + 1 })},
		{"a status's ack_seq",
			status(func(_ *StatusPayload, s *SessionStatus) { s.AckSeq = 9 }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.AckSeq = 10 })},
		{"a status's first_seq",
			status(func(_ *StatusPayload, s *SessionStatus) { s.FirstSeq = 10 }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.FirstSeq = 11 })},
		{"a status's prev_seq",
			status(func(_ *StatusPayload, s *SessionStatus) { s.PrevSeq = MaxSeq }),
			status(func(_ *StatusPayload, s *SessionStatus) { s.PrevSeq = MaxSeq + 1 })},
		{"a status without epoch, head_seq",
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s"} }),
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s", HeadSeq: 1} })},
		{"a status without epoch, prev_seq",
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s"} }),
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s", PrevSeq: 1} })},
		{"a status without epoch, ended",
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s"} }),
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s", Ended: true} })},
		{"a status without epoch, prev_epoch",
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s"} }),
			status(func(_ *StatusPayload, s *SessionStatus) { *s = SessionStatus{SessionID: "s", PrevEpoch: "d"} })},

		{"event_batch's session_id",
			batch(func(p *EventBatchPayload) { p.SessionID = long }),
			batch(func(p *EventBatchPayload) { p.SessionID = long + "x" })},
		{"event_batch's viewer_id",
			batch(func(p *EventBatchPayload) { p.ViewerID = long }),
			batch(func(p *EventBatchPayload) { p.ViewerID = long + "x" })},
		{"event_batch's epoch",
			batch(func(p *EventBatchPayload) { p.Epoch = word }),
			batch(func(p *EventBatchPayload) { p.Epoch = "" })},
		{"event_batch's link",
			batch(func(p *EventBatchPayload) { p.Link = long }),
			batch(func(p *EventBatchPayload) { p.Link = "" })},
		{"event_batch's events",
			batch(func(p *EventBatchPayload) {
				p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events, p.Gaps = 1, maxBatchEvents, MaxSeq, numbered(1, maxBatchEvents), nil
			}),
			batch(func(p *EventBatchPayload) {
				p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events, p.Gaps = 1, maxBatchEvents+1, MaxSeq, numbered(1, maxBatchEvents+1), nil
			})},
		{"event_batch's gaps",
			batch(func(p *EventBatchPayload) {
				p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events, p.Gaps = 1, maxBatchGaps, MaxSeq, nil, ranges(maxBatchGaps)
			}),
			batch(func(p *EventBatchPayload) {
				p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events, p.Gaps = 1, maxBatchGaps+1, MaxSeq, nil, ranges(maxBatchGaps+1)
			})},
		{"event_batch's head_seq",
			batch(func(p *EventBatchPayload) { p.HeadSeq = 8 }),
			batch(func(p *EventBatchPayload) { p.HeadSeq = 7 })},
		{"event_batch's greatest head_seq",
			batch(func(p *EventBatchPayload) { p.HeadSeq = MaxSeq }),
			batch(func(p *EventBatchPayload) { p.HeadSeq = MaxSeq + 1 })},
		{"event_batch's first_seq",
			batch(func(p *EventBatchPayload) { p.FirstSeq, p.LastSeq, p.Events, p.Gaps = 1, 1, numbered(1, 1), nil }),
			batch(func(p *EventBatchPayload) { p.FirstSeq, p.LastSeq, p.Events, p.Gaps = 0, 0, numbered(0, 0), nil })},
		{"event_batch's last_seq",
			batch(func(p *EventBatchPayload) { p.LastSeq, p.Events, p.Gaps = 5, p.Events[:1], nil }),
			batch(func(p *EventBatchPayload) { p.LastSeq, p.Events, p.Gaps = 4, nil, nil })},
		{"event_batch's greatest last_seq",
			batch(func(p *EventBatchPayload) {
				p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events, p.Gaps = MaxSeq, MaxSeq, MaxSeq, []Event{{Seq: MaxSeq}}, nil
			}),
			batch(func(p *EventBatchPayload) {
				p.FirstSeq, p.LastSeq, p.HeadSeq, p.Events, p.Gaps = MaxSeq+1, MaxSeq+1, MaxSeq+1, []Event{{Seq: MaxSeq + 1}}, nil
			})},

		{"a tile",
			batch(func(p *EventBatchPayload) {}),
			batch(func(p *EventBatchPayload) { p.Gaps = nil })},
		{"the last tile",
			batch(func(p *EventBatchPayload) { p.LastSeq, p.Events = 7, p.Events[:1] }),
			batch(func(p *EventBatchPayload) { p.Events = p.Events[:1] })},
		{"a gap's to",
			batch(func(p *EventBatchPayload) { p.FirstSeq, p.Events, p.Gaps[0] = 5, nil, Gap{5, 8, ReasonDropped} }),
			batch(func(p *EventBatchPayload) { p.FirstSeq, p.Events, p.Gaps[0] = 5, nil, Gap{5, 9, ReasonDropped} })},
		{"a gap's from",
			batch(func(p *EventBatchPayload) { p.Events[1].Seq, p.LastSeq, p.Gaps[0].To = 7, 7, 6 }),
			batch(func(p *EventBatchPayload) { p.Events[1].Seq, p.LastSeq, p.Gaps[0].To = 6, 6, 5 })},
		{"a gap's reason",
			batch(func(p *EventBatchPayload) { p.Gaps[0].Reason = Reason(strings.Repeat("r", 32)) }),
			batch(func(p *EventBatchPayload) { p.Gaps[0].Reason = Reason(strings.Repeat("r", 33)) })},
		{"a gap without reason",
			batch(func(p *EventBatchPayload) { p.Gaps[0].Reason = "0" }),
			batch(func(p *EventBatchPayload) { p.Gaps[0].Reason = "" })},
		{"an end",
			batch(func(p *EventBatchPayload) { p.Events[1].End = true }),
			batch(func(p *EventBatchPayload) { p.Events[0].End = true })},
		{"an event's type",
			batch(func(p *EventBatchPayload) { p.Events[0].Type = long }),
			batch(func(p *EventBatchPayload) { p.Events[0].Type = long + "x" })},
		{"an event's data",
			batch(func(p *EventBatchPayload) { p.Events[0].Bytes = []byte{0} }),
			batch(func(p *EventBatchPayload) { p.Events[0].Bytes, p.Events[0].Data = []byte{0}, []byte("0") })},
		{"an event's first year",
			batch(func(p *EventBatchPayload) { p.Events[0].Time = year(0) }),
			batch(func(p *EventBatchPayload) { p.Events[0].Time = year(-1) })},
		{"an event's last year",
			batch(func(p *EventBatchPayload) { p.Events[0].Time = year(9999) }),
			batch(func(p *EventBatchPayload) { p.Events[0].Time = year(10_000) })},

		{"ack_batch's session_id",
			ack(func(p *AckBatchPayload) { p.SessionID = "s" }),
			ack(func(p *AckBatchPayload) { p.SessionID = "" })},
		{"ack_batch's viewer_id",
			ack(func(p *AckBatchPayload) { p.ViewerID = long }),
			ack(func(p *AckBatchPayload) { p.ViewerID = long + "x" })},
		{"ack_batch's epoch",
			ack(func(p *AckBatchPayload) { p.Epoch = word }),
			ack(func(p *AckBatchPayload) { p.Epoch = word + "e" })},
		{"ack_batch's link",
			ack(func(p *AckBatchPayload) { p.Link = long }),
			ack(func(p *AckBatchPayload) { p.Link = long + "x" })},
		{"ack_batch's up_to_seq",
			ack(func(p *AckBatchPayload) { p.UpToSeq = MaxSeq }),
			ack(func(p *AckBatchPayload) { p.UpToSeq = MaxSeq + 1 })},

		{"watch's session_id",
			watch(func(p *WatchPayload) { p.SessionID = "s" }),
			watch(func(p *WatchPayload) { p.SessionID = "" })},
		{"watch's viewer_id",
			watch(func(p *WatchPayload) { p.ViewerID = long }),
			watch(func(p *WatchPayload) { p.ViewerID = long + "x" })},
		{"watch's after_seq",
			watch(func(p *WatchPayload) { p.AfterSeq = MaxSeq }),
			watch(func(p *WatchPayload) { p.AfterSeq = MaxSeq + 1 })},
		{"watch's position",
			watch(func(p *WatchPayload) { p.Epoch, p.AfterSeq = "", 0 }),
			watch(func(p *WatchPayload) { p.Epoch, p.AfterSeq = "", 1 })},
		{"watch's epoch",
			watch(func(p *WatchPayload) { p.Epoch = "0-z_9a" }),
			watch(func(p *WatchPayload) { p.Epoch = "A" })},

		{"replay_request's session_id",
			request(func(p *ReplayRequestPayload) { p.SessionID = "s" }),
			request(func(p *ReplayRequestPayload) { p.SessionID = "" })},
		{"replay_request's viewer_id",
			request(func(p *ReplayRequestPayload) { p.ViewerID = long }),
			request(func(p *ReplayRequestPayload) { p.ViewerID = long + "x" })},
		{"replay_request's request_id",
			request(func(p *ReplayRequestPayload) { p.RequestID = long }),
			request(func(p *ReplayRequestPayload) { p.RequestID = "" })},
		{"replay_request's position",
			request(func(p *ReplayRequestPayload) { p.Epoch, p.AfterSeq = "", 0 }),
			request(func(p *ReplayRequestPayload) { p.Epoch, p.AfterSeq = "", 1 })},
		{"replay_request's until_seq",
			request(func(p *ReplayRequestPayload) { p.UntilSeq = 7 }),
			request(func(p *ReplayRequestPayload) { p.UntilSeq = 6 })},
		{"replay_request's greatest until_seq",
			request(func(p *ReplayRequestPayload) { p.UntilSeq = MaxSeq }),
			request(func(p *ReplayRequestPayload) { p.UntilSeq = MaxSeq + 1 })},
		{"replay_request's limit",
			request(func(p *ReplayRequestPayload) { p.UntilSeq, p.Limit = 0, 0 }),
			request(func(p *ReplayRequestPayload) { p.UntilSeq, p.Limit = 0, -1 })},

		{"replay_batch's session_id",
			page(func(p *ReplayBatchPayload) { p.SessionID = "s" }),
			page(func(p *ReplayBatchPayload) { p.SessionID = "" })},
		{"replay_batch's viewer_id",
			page(func(p *ReplayBatchPayload) { p.ViewerID = long }),
			page(func(p *ReplayBatchPayload) { p.ViewerID = long + "x" })},
		{"replay_batch's request_id",
			page(func(p *ReplayBatchPayload) { p.RequestID = long }),
			page(func(p *ReplayBatchPayload) { p.RequestID = "" })},
		{"replay_batch's epoch",
			page(func(p *ReplayBatchPayload) { p.Epoch = word }),
			page(func(p *ReplayBatchPayload) { p.Epoch = "" })},
		{"replay_batch's events",
			page(func(p *ReplayBatchPayload) {
				p.FirstSeq, p.LastSeq, p.UntilSeq, p.Events = 1, maxReplayPage, MaxSeq, numbered(1, maxReplayPage)
			}),
			page(func(p *ReplayBatchPayload) {
				p.FirstSeq, p.LastSeq, p.UntilSeq, p.Events = 1, maxReplayPage+1, MaxSeq, numbered(1, maxReplayPage+1)
			})},
		{"replay_batch's until_seq",
			page(func(p *ReplayBatchPayload) { p.UntilSeq = 6 }),
			page(func(p *ReplayBatchPayload) { p.UntilSeq = 5 })},
		{"replay_batch's greatest until_seq",
			page(func(p *ReplayBatchPayload) { p.UntilSeq = MaxSeq }),
			page(func(p *ReplayBatchPayload) { p.UntilSeq = MaxSeq + 1 })},
		{"replay_batch's available_from",
			page(func(p *ReplayBatchPayload) { p.AvailableFrom = MaxSeq + 1 }),
			page(func(p *ReplayBatchPayload) { p.AvailableFrom = MaxSeq + 2 })},
		{"an empty replay_batch",
			page(func(p *ReplayBatchPayload) { p.LastSeq, p.Events = 4, nil }),
			page(func(p *ReplayBatchPayload) { p.LastSeq, p.Events = 3, nil })},
		{"replay_batch's first_seq",
			page(func(p *ReplayBatchPayload) { p.FirstSeq, p.LastSeq, p.Events = 1, 0, nil }),
			page(func(p *ReplayBatchPayload) { p.FirstSeq, p.LastSeq, p.Events = 0, 0, nil })},

		{"error's session_id",
			refusal(func(p *ErrorPayload) { p.SessionID = "" }),
			refusal(func(p *ErrorPayload) { p.SessionID = "\x7f" })},
		{"error's viewer_id",
			refusal(func(p *ErrorPayload) { p.ViewerID = long }),
			refusal(func(p *ErrorPayload) { p.ViewerID = long + "x" })},
		{"error's code",
			refusal(func(p *ErrorPayload) { p.Code = long }),
			refusal(func(p *ErrorPayload) { p.Code = "" })},
		{"error's message",
			refusal(func(p *ErrorPayload) { p.Message = strings.Repeat("m", maxMessage) }),
			refusal(func(p *ErrorPayload) { p.Message = strings.Repeat("m", maxMessage+1) })},
		{"error's message's encoding",
			refusal(func(p *ErrorPayload) { p.Message = "\n" }),
			refusal(func(p *ErrorPayload) { p.Message = "\xff" })},
		{"error's request_id",
			refusal(func(p *ErrorPayload) { p.RequestID = "" }),
			refusal(func(p *ErrorPayload) { p.RequestID = long + "x" })},
		{"error's epoch",
			refusal(func(p *ErrorPayload) { p.Epoch = "" }),
			refusal(func(p *ErrorPayload) { p.Epoch = word + "e" })},
		{"error's seq",
			refusal(func(p *ErrorPayload) { p.Seq = MaxSeq }),
			refusal(func(p *ErrorPayload) { p.Seq = MaxSeq + 1 })},
	} {
		l := newLink(newScript(), new(atomic.Uint64))
		if err := l.Handle(t.Context(), c.p); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var refused *ProtocolError
		if err := l.Handle(t.Context(), c.beyond); !errors.As(err, &refused) || refused.Code != codeMalformed {
			t.Errorf("%s, one beyond: %v, want malformed", c.name, err)
		}
	}
}

// repeat is n times the same status.
func repeat(s SessionStatus, n int) []SessionStatus {
	list := make([]SessionStatus, n)
	for i := range list {
		list[i] = s
	}
	return list
}

// ranges are n gaps of one number each, from 1.
func ranges(n int) []Gap {
	list := make([]Gap, n)
	for i := range list {
		list[i] = Gap{uint64(i + 1), uint64(i + 1), ReasonDropped}
	}
	return list
}

// An id is any text without control characters, those between 0x80 and 0x9f
// included. The replacement character is a character like any other, unless it
// stands for bytes that are no text.
func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"":                              false,
		" ":                             true,
		"~":                             true,
		"\x1f":                          false,
		"\x7f":                          false,
		"\x80":                          false,
		"\xc3":                          false,
		"\u00e4\n":                      false,
		"\u20ac\n\n":                    false,
		"\U0001f600\x7f":                false,
		"\u00e4\u0080":                  false,
		"a\u0080":                       false,
		"a\u009f":                       false,
		"a\u00a0":                       true,
		"\ufffd":                        true,
		"\U0010ffff":                    true,
		"\xed\xa0\x80":                  false,
		strings.Repeat("\u00e4", 64):    true,
		strings.Repeat("x", 127):        true,
		"x" + strings.Repeat("ä", 64):   false,
		strings.Repeat("x", maxID):      true,
		strings.Repeat("x", maxID+1):    false,
		strings.Repeat("x", 126) + "\n": false,
	} {
		if validID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

// An epoch is of [0-9a-z_-] alone: the neighbours of each range are not in it.
func TestValidEpoch(t *testing.T) {
	for _, id := range []string{"0", "9", "a", "z", "_", "-", strings.Repeat("0", maxEpoch)} {
		if !validEpoch(id) {
			t.Errorf("%q is refused", id)
		}
	}
	for _, id := range []string{"", "/", ":", "`", "{", "^", ".", ",", "A", "e\xff", strings.Repeat("0", maxEpoch+1)} {
		if validEpoch(id) {
			t.Errorf("%q is allowed", id)
		}
	}
}

// A time has a year from 0 to 9999 where it is told and in UTC: near the bounds one
// may be inside and the other not.
func TestValidTime(t *testing.T) {
	first := time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)
	end := time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, hours := range []int{-23, -5, 0, 5, 23} {
		zone := time.FixedZone("", hours*3600)
		early, late := time.Duration(max(0, -hours))*time.Hour, time.Duration(max(0, hours))*time.Hour
		for at, want := range map[time.Time]bool{
			first.Add(early): true, first.Add(early - 1): false,
			end.Add(-late - 1): true, end.Add(-late): false,
		} {
			if at := at.In(zone); validTime(at) != want {
				t.Errorf("%v: %v, want %v", at, !want, want)
			}
		}
	}
}

// roundTrip tells p by encoding/json and by the wire, and expects the same back,
// and just these fields.
func roundTrip[T any, P interface {
	*T
	Payload
}](t *testing.T, p P, fields ...string) {
	t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(body, &names); err != nil {
		t.Fatal(err)
	}
	for _, name := range fields {
		if _, ok := names[name]; !ok {
			t.Errorf("no field %q in %s", name, body)
		}
		delete(names, name)
	}
	for name := range names {
		t.Errorf("unexpected field %q in %s", name, body)
	}
	back := P(new(T))
	if err := json.Unmarshal(body, back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back, sameWireTold); diff != "" {
		t.Errorf("encoding/json (-want +got):\n%s", diff)
	}
	line, err := Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`{"type":%q,"payload":%s}`, p.payloadType(), body); string(line) != want {
		t.Errorf("Marshal:\n got %s\nwant %s", line, want)
	}
	got, err := Unmarshal(line)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Payload(p), got, sameWireTold); diff != "" {
		t.Errorf("Unmarshal (-want +got):\n%s", diff)
	}
}

var sameWireTold = cmp.Options{cmpopts.IgnoreUnexported(EventBatchPayload{}, ReplayBatchPayload{}), cmpopts.EquateEmpty()}

const someEpoch = "065wzsb8000020g30g2gc1r814"

func TestAckBatchPayloadJSON(t *testing.T) {
	always := []string{"session_id", "viewer_id", "epoch", "link", "up_to_seq"}
	t.Run("from the hub", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", Epoch: someEpoch, Link: "l1", UpToSeq: 64}, always...)
	})
	t.Run("nothing yet", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", Epoch: someEpoch, Link: "l1"}, always...)
	})
	t.Run("nack", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", Epoch: someEpoch, Link: "l1", UpToSeq: 64, Nack: true}, append(always, "nack")...)
	})
	t.Run("of a viewer", func(t *testing.T) {
		roundTrip(t, &AckBatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: someEpoch, Link: "l1", UpToSeq: MaxSeq}, always...)
	})
	t.Run("as told", func(t *testing.T) {
		got, err := json.Marshal(&AckBatchPayload{SessionID: "build-42", ViewerID: "tab-1", Epoch: "e", Link: "l1", UpToSeq: 64, Nack: true})
		want := `{"session_id":"build-42","viewer_id":"tab-1","epoch":"e","link":"l1","up_to_seq":64,"nack":true}`
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	})
}

func TestReplayBatchPayloadJSON(t *testing.T) {
	always := []string{
		"session_id", "viewer_id", "request_id", "epoch", "first_seq", "last_seq", "until_seq", "available_from",
	}
	t.Run("events and gaps", func(t *testing.T) {
		roundTrip(t, &ReplayBatchPayload{
			SessionID: "build-42", ViewerID: "tab-1", RequestID: "r7", Epoch: someEpoch,
			FirstSeq: 1, LastSeq: 4, UntilSeq: 4, AvailableFrom: 3, Done: true,
			Events: []Event{
				{Seq: 3, Type: "stdout", Data: []byte(`{"line":"ok"}`), Time: time.Date(2025, 11, 23, 1, 2, 3, 4, time.UTC)},
				{Seq: 4, Type: "stdout", Bytes: []byte{0, 0xff}, End: true},
			},
			Gaps: []Gap{{1, 2, ReasonEvicted}},
		}, append(always, "done", "events", "gaps")...)
	})
	t.Run("not the last", func(t *testing.T) {
		roundTrip(t, &ReplayBatchPayload{
			SessionID: "build-42", ViewerID: "tab-1", RequestID: "r7", Epoch: someEpoch,
			FirstSeq: 1, LastSeq: 1, UntilSeq: 9, AvailableFrom: 1, Events: []Event{{Seq: 1}},
		}, append(always, "events")...)
	})
	t.Run("empty, for the hub itself", func(t *testing.T) {
		roundTrip(t, &ReplayBatchPayload{
			SessionID: "build-42", RequestID: "r7", Epoch: someEpoch,
			FirstSeq: 5, LastSeq: 4, UntilSeq: 4, AvailableFrom: 1, Done: true,
		}, append(always, "done")...)
	})
	t.Run("as told", func(t *testing.T) {
		got, err := json.Marshal(&ReplayBatchPayload{
			SessionID: "s", ViewerID: "tab-1", RequestID: "r7", Epoch: "e", FirstSeq: 1, LastSeq: 2, UntilSeq: 2,
			AvailableFrom: 2, Done: true, Events: []Event{{Seq: 2, Data: []byte("1")}}, Gaps: []Gap{{1, 1, ReasonEvicted}},
		})
		want := `{"session_id":"s","viewer_id":"tab-1","request_id":"r7","epoch":"e","first_seq":1,"last_seq":2,"until_seq":2,` +
			`"available_from":2,"done":true,"events":[{"seq":2,"data":1}],"gaps":[{"from":1,"to":1,"reason":"evicted"}]}`
		if err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	})
}
