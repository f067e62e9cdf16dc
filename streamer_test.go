package gvstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vibetools/gvstream/internal/epoch"
)

var sameEvents = cmpopts.EquateEmpty()

// sameTold compares payloads as they are told, but for the time of events.
var sameTold = cmp.Options{
	cmpopts.IgnoreUnexported(EventBatchPayload{}, ReplayBatchPayload{}),
	cmpopts.IgnoreFields(Event{}, "Time"),
	cmpopts.IgnoreFields(ErrorPayload{}, "Message"),
	cmpopts.EquateEmpty(),
}

// A playedHub is the hub's side of one link, played by a test. What it wants and
// sends goes through the wire's JSON. An empty epoch or link in a payload stands
// for the session's and the link's.
type playedHub struct {
	t    *testing.T
	st   *Streamer
	link *Link
	id   string
}

// meetHub connects st to a hub that has not said anything yet.
func meetHub(t *testing.T, st *Streamer) *playedHub {
	return &playedHub{t: t, st: st, link: st.Connect(), id: epoch.Process.ID()}
}

// playHub connects st to a hub with the default window, and welcomes it.
func playHub(t *testing.T, st *Streamer) *playedHub {
	t.Helper()
	return playHubWindow(t, st, 256)
}

func playHubWindow(t *testing.T, st *Streamer, window int) *playedHub {
	t.Helper()
	hub := meetHub(t, st)
	hub.want(&HelloPayload{V: 1, Role: "agent"})
	hub.welcome(window)
	return hub
}

// reopenHub is playHub for sessions that exist: it takes their status, and acks.
func reopenHub(t *testing.T, st *Streamer, acks map[string]uint64) *playedHub {
	t.Helper()
	hub := playHub(t, st)
	hub.wantStatus(slices.Sorted(func(yield func(string) bool) {
		for id := range acks {
			if !yield(id) {
				return
			}
		}
	})...)
	for id, seq := range acks {
		hub.send(&AckBatchPayload{SessionID: id, UpToSeq: seq})
	}
	return hub
}

func (h *playedHub) welcome(window int) {
	h.t.Helper()
	h.send(&WelcomePayload{V: 1, Link: h.id, Window: window})
}

// fill completes a payload of the test.
func (h *playedHub) fill(p Payload) {
	epoch := func(id string, p *string) {
		if s := h.st.lookup(id); s != nil && *p == "" {
			*p = s.Stats().Epoch
		}
	}
	link := func(p *string) {
		if *p == "" {
			*p = h.id
		}
	}
	switch p := p.(type) {
	case *StatusPayload:
		link(&p.Link)
		for i := range p.Sessions {
			epoch(p.Sessions[i].SessionID, &p.Sessions[i].Epoch)
		}
	case *EventBatchPayload:
		link(&p.Link)
		epoch(p.SessionID, &p.Epoch)
	case *AckBatchPayload:
		link(&p.Link)
		epoch(p.SessionID, &p.Epoch)
	case *ReplayRequestPayload:
		epoch(p.SessionID, &p.Epoch)
	case *ReplayBatchPayload:
		epoch(p.SessionID, &p.Epoch)
	}
}

// told is a payload after its way over the wire.
func (h *playedHub) told(p Payload) Payload {
	h.t.Helper()
	line, err := Marshal(p)
	if err != nil {
		h.t.Fatalf("Marshal: %v", err)
	}
	got, err := Unmarshal(line)
	if err != nil {
		h.t.Fatalf("Unmarshal %s: %v", line, err)
	}
	if err := got.check(); err != nil {
		h.t.Fatalf("%s: %v", line, err)
	}
	return got
}

// next returns what the agent sends now, if anything.
func (h *playedHub) next() (Payload, error) {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // what is ready is preferred to that
	p, err := h.link.Next(ctx)
	if err != nil {
		return nil, err
	}
	return h.told(p), nil
}

// want expects the agent to send the payloads now, in this order.
func (h *playedHub) want(payloads ...Payload) {
	h.t.Helper()
	for _, want := range payloads {
		h.fill(want)
		got, err := h.next()
		if err != nil {
			h.t.Fatalf("want %s, got error %v", told(want), err)
		}
		if sameLines(want, got) {
			continue // the diff below takes long
		}
		if diff := cmp.Diff(want, got, sameTold); diff != "" {
			h.t.Fatalf("want %s\n got %s\n(-want +got):\n%s", told(want), told(got), diff)
		}
	}
}

// sameLines reports whether payloads are told alike, but for the time of events.
// It takes the times out of got.
func sameLines(want, got Payload) bool {
	var events []Event
	switch p := got.(type) {
	case *EventBatchPayload:
		events = p.Events
	case *ReplayBatchPayload:
		events = p.Events
	}
	for i := range events {
		events[i].Time = time.Time{}
	}
	a, err1 := Marshal(want)
	b, err2 := Marshal(got)
	return err1 == nil && err2 == nil && bytes.Equal(a, b)
}

// told is a payload as the wire has it, cut to a line.
func told(p Payload) string {
	line, _ := Marshal(p)
	return string(line[:min(len(line), 400)])
}

// wantStatus expects a status of the sessions as they stand.
func (h *playedHub) wantStatus(ids ...string) {
	h.t.Helper()
	h.want(&StatusPayload{Sessions: h.statuses(ids...)})
}

func (h *playedHub) statuses(ids ...string) (out []SessionStatus) {
	for _, id := range ids {
		s := h.st.lookup(id).Stats()
		out = append(out, SessionStatus{SessionID: id, FirstSeq: s.First, HeadSeq: s.Head, AckSeq: s.Acked, Ended: s.Ended})
	}
	return out
}

// wantIdle expects the agent to send nothing now.
func (h *playedHub) wantIdle() {
	h.t.Helper()
	if p, err := h.next(); !errors.Is(err, context.Canceled) {
		h.t.Fatalf("want nothing, got %v, %v", p, err)
	}
}

// wantAfter expects nothing until so much time has passed, and then the payloads.
func (h *playedHub) wantAfter(d time.Duration, payloads ...Payload) {
	h.t.Helper()
	h.wantIdleFor(d - 1)
	pass(1)
	h.want(payloads...)
}

func (h *playedHub) wantIdleFor(d time.Duration) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if p, err := h.link.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		h.t.Fatalf("want nothing for %v, got %v, %v", d, p, err)
	}
}

// wantDead expects the link to be dead of err.
func (h *playedHub) wantDead(err error) {
	h.t.Helper()
	if _, got := h.next(); !errors.Is(got, err) {
		h.t.Fatalf("link ended with %v, want %v", got, err)
	}
	if got := h.link.Handle(context.Background(), &StatusPayload{Link: h.id}); !errors.Is(got, err) {
		h.t.Fatalf("Handle on a dead link: %v, want %v", got, err)
	}
}

// send has the agent handle the payloads.
func (h *playedHub) send(payloads ...Payload) {
	h.t.Helper()
	for _, p := range payloads {
		if err := h.tell(p); err != nil {
			h.t.Fatalf("handling %s: %v", told(p), err)
		}
	}
}

func (h *playedHub) tell(p Payload) error {
	h.t.Helper()
	h.fill(p)
	return h.link.Handle(context.Background(), h.told(p))
}

// sendRefused is send of something that the agent refuses with that code.
func (h *playedHub) sendRefused(p Payload, code string) {
	h.t.Helper()
	var refused *ProtocolError
	if err := h.tell(p); !errors.As(err, &refused) || refused.Code != code {
		h.t.Fatalf("handling %s: %v, want %s", told(p), err, code)
	}
}

func (h *playedHub) ack(id string, upTo uint64) {
	h.t.Helper()
	h.send(&AckBatchPayload{SessionID: id, UpToSeq: upTo})
}

func (h *playedHub) nack(id string, upTo uint64) {
	h.t.Helper()
	h.send(&AckBatchPayload{SessionID: id, UpToSeq: upTo, Nack: true})
}

// pass lets time go by, in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// agentEvent is what publishN publishes under a number.
func agentEvent(seq uint64) Event {
	return Event{Seq: seq, Type: "out", Data: strconv.AppendUint(nil, seq, 10)}
}

// publishN publishes n events, each of which carries its number.
func publishN(t *testing.T, st *Streamer, id string, n int) {
	t.Helper()
	for range n {
		head := uint64(0)
		if s := st.lookup(id); s != nil {
			head = s.Stats().Head
		}
		seq, err := st.Publish(t.Context(), id, agentEvent(head+1))
		if err != nil || seq != head+1 {
			t.Fatalf("Publish(%q) = %d, %v, want %d", id, seq, err, head+1)
		}
	}
}

// agentEvents are the events of publishN from first to last, but for the gaps.
func agentEvents(first, last uint64, gaps []Gap) (out []Event) {
	for seq := first; seq <= last; seq++ {
		if !slices.ContainsFunc(gaps, func(g Gap) bool { return g.From <= seq && seq <= g.To }) {
			out = append(out, agentEvent(seq))
		}
	}
	return out
}

// agentBatch is the batch of publishN's events from first to last.
func agentBatch(id string, first, last, head uint64, gaps ...Gap) *EventBatchPayload {
	return &EventBatchPayload{
		SessionID: id, FirstSeq: first, LastSeq: last, HeadSeq: head,
		Events: agentEvents(first, last, gaps), Gaps: gaps,
	}
}

// agentPage is a page of the answer to a replay request.
func agentPage(req *ReplayRequestPayload, first, last, until, available uint64, done bool, gaps ...Gap) *ReplayBatchPayload {
	return &ReplayBatchPayload{
		SessionID: req.SessionID, ViewerID: req.ViewerID, RequestID: req.RequestID,
		FirstSeq: first, LastSeq: last, UntilSeq: until, AvailableFrom: available, Done: done,
		Events: agentEvents(first, last, gaps), Gaps: gaps,
	}
}

// ackedStreamer has a session "s" of so many events, all acknowledged.
func ackedStreamer(t *testing.T, cfg *StreamerConfig, events int) (*Streamer, *playedHub) {
	t.Helper()
	st := NewStreamer(cfg)
	hub := playHub(t, st)
	publishAcked(t, hub, "s", events)
	return st, hub
}

// publishAcked publishes events one by one, and acknowledges each.
func publishAcked(t *testing.T, hub *playedHub, id string, events int) {
	t.Helper()
	for range events {
		publishN(t, hub.st, id, 1)
		head := hub.st.lookup(id).Stats().Head
		hub.want(agentBatch(id, head, head, head))
		hub.ack(id, head)
	}
	hub.wantIdle()
}

func stats(t *testing.T, st *Streamer, id string) SessionStats {
	t.Helper()
	s := st.lookup(id)
	if s == nil {
		t.Fatalf("no session %q", id)
	}
	return s.Stats()
}

// start runs f in a goroutine of the bubble, and returns where its error comes.
func start(f func() error) <-chan error {
	out := make(chan error, 1)
	go func() { out <- f() }()
	return out
}

// wantWaiting expects that what was started has not returned.
func wantWaiting(t *testing.T, c <-chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-c:
		t.Fatalf("returned %v, want it to wait", err)
	default:
	}
}

// wantReturned expects that what was started has returned err, at once.
func wantReturned(t *testing.T, c <-chan error, err error) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-c:
		if !errors.Is(got, err) {
			t.Fatalf("returned %v, want %v", got, err)
		}
	default:
		t.Fatalf("still waits, want it to return %v", err)
	}
}

// bubble runs each test of the conversation on a clock of its own.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
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

// TestStreamerBasic: a session opens itself by its first batch (rule 5); what is
// published goes out at once, in order.
func TestStreamerBasic(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := meetHub(t, st)
		hub.want(&HelloPayload{V: 1, Role: "agent"})
		publishN(t, st, "s", 2)
		hub.wantIdle() // nothing but hello before the welcome
		hub.welcome(256)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 2, 2))
		hub.wantIdle()
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 3, 3, 3))
		hub.ack("s", 3)
		hub.wantIdle()

		seq, err := st.Publish(t.Context(), "bytes", Event{Type: "tty", Bytes: []byte("\x1b[1m\xff")})
		if seq != 1 || err != nil {
			t.Fatalf("Publish = %d, %v", seq, err)
		}
		hub.want(&EventBatchPayload{
			SessionID: "bytes", FirstSeq: 1, LastSeq: 1, HeadSeq: 1,
			Events: []Event{{Seq: 1, Type: "tty", Bytes: []byte("\x1b[1m\xff")}},
		})
		if got := st.Stats(); got.Sessions != 2 || got.PendingEvents != 1 || !got.Connected || got.StalePayloads+got.RefusedPayloads != 0 {
			t.Errorf("Stats() = %+v", got)
		}
	})
}

// TestStreamerAcking: an ack is cumulative and frees what it names; old ones change
// nothing (rule 6).
func TestStreamerAcking(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 5)
		hub.want(agentBatch("s", 1, 5, 5))
		for _, test := range []struct{ ack, acked, stale uint64 }{
			{0, 0, 0}, {2, 2, 0}, {2, 2, 0}, {1, 2, 1}, {0, 2, 2}, {4, 4, 2}, {5, 5, 2}, {5, 5, 2}, {3, 5, 3},
		} {
			hub.ack("s", test.ack)
			s := stats(t, st, "s")
			if s.Acked != test.acked || s.PendingEvents != int(5-test.acked) || s.PendingBytes != s.Bytes/5*s.PendingEvents {
				t.Errorf("ack %d: %+v", test.ack, s)
			}
			if n := st.Stats().StalePayloads; n != test.stale {
				t.Errorf("ack %d: %d stale frames, want %d", test.ack, n, test.stale)
			}
		}
		hub.nack("s", 1) // as old as its number
		hub.wantIdle()
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 6, 6, 6))
	})
}

// TestStreamerReplay: more than 250 events for one viewer come in batches of 100,
// each of which names the viewer (rule 12).
func TestStreamerReplay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 1000)
		publishN(t, st, "s", 260)
		hub.want(agentBatch("s", 1, 256, 260), agentBatch("s", 257, 260, 260))
		hub.ack("s", 260)

		one := &ReplayRequestPayload{SessionID: "s", ViewerID: "tab-1", RequestID: "r1"}
		hub.send(one)
		hub.want(
			agentPage(one, 1, 100, 260, 1, false),
			agentPage(one, 101, 200, 260, 1, false),
			agentPage(one, 201, 260, 260, 1, true),
		)
		hub.wantIdle()

		// Two viewers, and what is published meanwhile, take turns (rule 7).
		two := &ReplayRequestPayload{SessionID: "s", ViewerID: "tab-2", RequestID: "r2", AfterSeq: 150}
		one.RequestID = "r3"
		hub.send(one, two)
		publishN(t, st, "s", 1)
		hub.want(
			agentPage(one, 1, 100, 260, 1, false),
			agentPage(two, 151, 250, 260, 1, false),
			agentBatch("s", 261, 261, 261),
			agentPage(one, 101, 200, 260, 1, false),
			agentPage(two, 251, 260, 260, 1, true),
			agentPage(one, 201, 260, 260, 1, true),
		)
		hub.wantIdle()
	})
}

// TestStreamerAutoCreateSession: the first event creates its session.
func TestStreamerAutoCreateSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "a", 1)
		publishN(t, st, "b", 1)
		publishN(t, st, "a", 1)
		if a, b := stats(t, st, "a"), stats(t, st, "b"); a.Head != 2 || b.Head != 1 || a.Epoch == b.Epoch || !validEpoch(a.Epoch) {
			t.Errorf("a: %+v\nb: %+v", a, b)
		}
		hub.want(agentBatch("a", 1, 2, 2), agentBatch("b", 1, 1, 1))
		s, err := st.Session("a")
		if err != nil || s.ID() != "a" || s.Stats().Head != 2 {
			t.Errorf("Session = %v, %v", s, err)
		}
		if c, err := st.Session("c"); err != nil || c.Stats().Head != 0 || st.Stats().Sessions != 3 {
			t.Errorf("Session = %v, %v", c, err)
		}
		hub.wantIdle() // a session without a number has nothing to say
		for _, id := range []string{"", strings.Repeat("x", maxID+1), "a\n", "\xff"} {
			if _, err := st.Publish(t.Context(), id, Event{}); err != ErrInvalidID {
				t.Errorf("Publish(%q): %v", id, err)
			}
			if _, err := st.Session(id); err != ErrInvalidID {
				t.Errorf("Session(%q): %v", id, err)
			}
		}
		publishN(t, st, strings.Repeat("x", maxID), 1)
	})
}

// TestStreamerHeartbeatList: the sign of life has each session on its list once, and
// those that have nothing unacknowledged not at all, nor have they a timer.
func TestStreamerHeartbeatList(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, _ := ackedStreamer(t, nil, 3)
		hub := reopenHub(t, st, map[string]uint64{"s": 3})
		if n := len(st.link.unacked); n != 0 {
			t.Errorf("%d sessions listed, and all is acknowledged", n)
		}
		if at := st.lookup("s").on.resendAt; !at.IsZero() {
			t.Errorf("its timer runs until %v, and all is acknowledged", at)
		}
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 4, 5, 5))
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 6, 7, 7))
		if n := len(st.link.unacked); n != 1 {
			t.Errorf("one session is listed %d times", n)
		}
		hub.ack("s", 7)
		hub.wantAfter(heartbeat, &StatusPayload{})
		if n := len(st.link.unacked); n != 0 {
			t.Errorf("%d sessions stay listed", n)
		}
	})
}

// TestStreamerRefusalWithNumber: a number makes a refusal of an event only of the two
// codes that are about one, and neither is about an event without (rule 11).
func TestStreamerRefusalWithNumber(t *testing.T) {
	for _, p := range []ErrorPayload{
		{Code: codeForbidden, Seq: 2}, {Code: codeEventRejected}, {Code: codeEventTooLarge},
	} {
		bubble(t, func(t *testing.T) {
			st, hub := ackedStreamer(t, nil, 1)
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 2, 2, 2))
			p.SessionID, p.Epoch = "s", stats(t, st, "s").Epoch
			hub.send(&p)
			_, err := st.Publish(t.Context(), "s", agentEvent(3))
			var stopped *ProtocolError
			if !errors.As(err, &stopped) || stopped.Code != p.Code {
				t.Errorf("%s of %d: Publish returned %v", p.Code, p.Seq, err)
			}
			if s := stats(t, st, "s"); s.Lost != 0 || s.PendingEvents != 1 {
				t.Errorf("%s of %d: %+v", p.Code, p.Seq, s)
			}
			hub.wantIdle()
		})
	}
}

// TestStreamerStatusOnce: a status names a session once, however often there was
// reason to, and not if it stopped, was renewed or was forgotten meanwhile (rule 5).
func TestStreamerStatusOnce(t *testing.T) {
	unknown := func(hub *playedHub) {
		hub.send(&ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: stats(hub.t, hub.st, "s").Epoch, Retryable: true})
	}
	for name, do := range map[string]func(st *Streamer, hub *playedHub){
		"stopped":   func(_ *Streamer, hub *playedHub) { hub.send(&ErrorPayload{Code: codeForbidden, SessionID: "s"}) },
		"renewed":   func(st *Streamer, _ *playedHub) { st.Renew("s") },
		"forgotten": func(st *Streamer, _ *playedHub) { st.Forget("s") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st, hub := ackedStreamer(t, nil, 2)
				unknown(hub)
				do(st, hub)
				hub.wantIdle()
			})
		})
	}
	t.Run("twice", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st, hub := ackedStreamer(t, nil, 2)
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 3, 3, 3))
			unknown(hub)
			st.link.announceUnacked() // a sign of life is due at the same time
			hub.wantStatus("s")
			hub.wantIdle()
		})
	})
}

// TestStreamerTimerOfFirstBatch: the first batch of a session has the whole timer,
// whatever became of the status that named the session before (rule 9).
func TestStreamerTimerOfFirstBatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		if _, err := st.Session("s"); err != nil {
			t.Fatal(err)
		}
		hub := playHub(t, st)
		hub.wantStatus("s") // it is lost
		pass(10 * time.Second)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 1, 1, 1)) // so is this
		hub.wantAfter(5*time.Second, &StatusPayload{Sessions: hub.statuses("s")})
		hub.wantIdleFor(10*time.Second - 1)
		hub.wantAfter(1, agentBatch("s", 1, 1, 1))
	})
}

// TestStreamerReplayBytesExact: an answer to a request with a limit ends where it has
// reached 1 MiB, to the byte.
func TestStreamerReplayBytesExact(t *testing.T) {
	t.Parallel()
	for short, last := range []uint64{4, 5} { // bytes short of it: the last number
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			for seq := uint64(1); seq <= 6; seq++ {
				ev := agentEvent(seq)
				ev.Time, ev.Data = time.Now().UTC(), json.RawMessage(`""`)
				scratch := NewStreamer(nil)
				if _, err := scratch.Publish(t.Context(), "s", ev); err != nil {
					t.Fatal(err)
				}
				fill := maxReplayBytes/4 - 1 - scratch.Stats().Bytes // and a comma
				if seq == 4 {
					fill -= short
				}
				ev.Data = json.RawMessage(`"` + strings.Repeat("x", fill) + `"`)
				if _, err := st.Publish(t.Context(), "s", ev); err != nil {
					t.Fatal(err)
				}
			}
			for p, err := hub.next(); err == nil; p, err = hub.next() {
				hub.ack("s", p.(*EventBatchPayload).LastSeq)
			}
			hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "r", Limit: 500})
			for seq := uint64(1); seq <= last; seq++ {
				p, err := hub.next()
				if err != nil {
					t.Fatal(err)
				}
				if b := p.(*ReplayBatchPayload); b.FirstSeq != seq || b.LastSeq != seq || b.Done != (seq == last) {
					t.Errorf("%d bytes short: %d to %d, done %v, want %d alone", short, b.FirstSeq, b.LastSeq, b.Done, seq)
				}
			}
			hub.wantIdle()
		})
	}
}

// TestStreamerDataSize: data that has more bytes than an event may have is refused
// unread; white space counts for that, and for nothing else.
func TestStreamerDataSize(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxEventBytes: 100})
		wide := func(n int) []byte { return []byte("[1" + strings.Repeat(" ", n-3) + "]") }
		for _, test := range []struct {
			ev   Event
			want error
		}{
			{Event{Data: wide(99)}, nil},
			{Event{Data: wide(100)}, nil},
			{Event{Data: wide(101)}, ErrTooLarge},
			{Event{Bytes: make([]byte, 101)}, ErrTooLarge},
			{Event{Data: wide(50), Bytes: make([]byte, 50)}, ErrInvalidData},
			{Event{Data: wide(50), Bytes: make([]byte, 51)}, ErrTooLarge},
		} {
			if _, err := st.Publish(t.Context(), "s", test.ev); err != test.want {
				t.Errorf("%d and %d bytes: %v, want %v", len(test.ev.Data), len(test.ev.Bytes), err, test.want)
			}
		}
	})
}

// TestStreamerEvictsOldestNow: a session whose oldest event went since it was last
// looked at loses none for that one's age; the oldest of all goes first.
func TestStreamerEvictsOldestNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		start := time.Now()
		publish := func(st *Streamer, id string, second int) {
			t.Helper()
			ev := Event{Time: start.Add(time.Duration(second) * time.Second), Data: json.RawMessage(`"data"`)}
			if _, err := st.Publish(t.Context(), id, ev); err != nil {
				t.Fatal(err)
			}
		}
		scratch := NewStreamer(nil)
		publish(scratch, "s", 1)
		one := scratch.Stats().Bytes
		// Three and a number's room fit; with what c publishes, one is too many.
		st := NewStreamer(&StreamerConfig{MaxTotalBytes: 3*one + seqRoom, ReplayEvents: 1})
		hub := playHub(t, st)
		for second, id := range []string{"a", "b", "a"} {
			publish(st, id, second+1)
			p, err := hub.next()
			if err != nil {
				t.Fatal(err)
			}
			hub.ack(id, p.(*EventBatchPayload).LastSeq)
		}
		if s := st.Stats(); s.Bytes != 2*one {
			t.Fatalf("%d bytes held, want a's second event and b's", s.Bytes)
		}
		large := Event{Data: json.RawMessage(`"` + strings.Repeat("x", one+seqRoom-20) + `"`)}
		if _, err := st.Publish(t.Context(), "c", large); err != nil {
			t.Fatal(err)
		}
		if a, b := stats(t, st, "a"), stats(t, st, "b"); a.Events != 1 || b.Events != 0 {
			t.Errorf("a keeps %d events and b %d: the older one is b's", a.Events, b.Events)
		}
	})
}

// TestStreamerStoppedSendsNothing: what a stopped session has not had acknowledged is
// not sent again, nor named in a sign of life (rule 11).
func TestStreamerStoppedSendsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 1, 2, 2))
		hub.send(&ErrorPayload{Code: codeForbidden, SessionID: "s"})
		for range 2 {
			hub.wantAfter(heartbeat, &StatusPayload{})
			hub.wantIdle()
			hub.send(&StatusPayload{})
		}
	})
}

// TestStreamerCreatesSessionOnce: two first events of a session at the same time are
// of one session, also when both calls found that there is none.
func TestStreamerCreatesSessionOnce(t *testing.T) {
	st := NewStreamer(&StreamerConfig{MaxSessions: 1})
	now := time.Now()
	a, err := st.create(now, "s")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := st.create(now, "s"); b != a || err != nil {
		t.Errorf("%p and %p, %v", a, b, err)
	}
	if _, err := st.create(now, "r"); err != ErrTooMany {
		t.Errorf("a second session: %v", err)
	}
}

// TestStreamerMaxReplayBuffer: so many events are kept for replay and no more, but
// never less than is pending.
func TestStreamerMaxReplayBuffer(t *testing.T) {
	for _, test := range []struct{ limit, kept int }{{-1, 0}, {1, 1}, {2, 2}, {10, 10}, {0, 1000}} {
		for _, n := range []int{test.kept - 1, test.kept, test.kept + 1, test.kept + 5} {
			if n < 1 {
				continue
			}
			t.Run(fmt.Sprintf("%d of %d", test.limit, n), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					st := NewStreamer(&StreamerConfig{ReplayEvents: test.limit})
					hub := playHubWindow(t, st, 10_000)
					publishN(t, st, "s", n)
					if s := stats(t, st, "s"); s.Events != n || s.First != 1 {
						t.Fatalf("before the ack: %+v", s)
					}
					for first := 1; first <= n; first += maxBatchEvents {
						hub.want(agentBatch("s", uint64(first), uint64(min(n, first+maxBatchEvents-1)), uint64(n)))
					}
					hub.ack("s", uint64(n))
					kept := min(n, test.kept)
					first := uint64(n - kept + 1)
					if s := stats(t, st, "s"); s.Events != kept || s.First != first || s.PendingEvents+s.PendingBytes != 0 {
						t.Errorf("after the ack: %+v", s)
					}
					req := &ReplayRequestPayload{SessionID: "s", ViewerID: "v", RequestID: "r"}
					hub.send(req)
					var gaps []Gap
					if first > 1 {
						gaps = []Gap{{1, first - 1, ReasonEvicted}}
					}
					last := min(first+maxReplayPage-1, uint64(n))
					hub.want(agentPage(req, 1, last, uint64(n), first, last == uint64(n), gaps...))
				})
			})
		}
	}
}

// TestStreamerResendPending: after a reconnect the agent says where it stands, and
// sends again from behind the first ack; new events don't overtake (rules 5 and 9).
func TestStreamerResendPending(t *testing.T) {
	for _, test := range []struct {
		name  string
		first uint64 // the hub's first ack on the new link
		batch *EventBatchPayload
	}{
		{"where the agent believes", 2, agentBatch("s", 3, 7, 7)},
		{"an ack was lost", 4, agentBatch("s", 5, 7, 7)},
		{"all acks were lost", 5, agentBatch("s", 6, 7, 7)},
		{"the hub lost something", 1, agentBatch("s", 2, 7, 7)},
		{"the hub lost everything", 0, agentBatch("s", 1, 7, 7)},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHub(t, st)
				publishN(t, st, "s", 5)
				hub.want(agentBatch("s", 1, 5, 5))
				hub.ack("s", 2)
				hub.link.Close()
				publishN(t, st, "s", 2)

				hub = playHub(t, st)
				hub.want(&StatusPayload{Sessions: []SessionStatus{{SessionID: "s", FirstSeq: 1, HeadSeq: 7, AckSeq: 2}}})
				hub.wantIdle() // no batch before the first ack
				hub.ack("s", test.first)
				hub.want(test.batch)
				hub.wantIdle()
				hub.ack("s", 7)
				if s := stats(t, st, "s"); s.PendingEvents != 0 || s.Acked != 7 {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

// TestStreamerHello: hello is said on the timer until it is answered, and a welcome
// counts only while one is awaited (rule 3).
func TestStreamerHello(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hello := &HelloPayload{V: 1, Role: "agent"}
		hub := meetHub(t, st)
		hub.want(hello)
		hub.wantAfter(15*time.Second, hello)
		if st.Stats().Connected {
			t.Error("connected before the welcome")
		}
		hub.welcome(256)
		hub.send(&WelcomePayload{V: 1, Link: "other", Window: 1}) // not awaited
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))

		hub.send(&ErrorPayload{Code: codeStaleLink, Retryable: true})
		hub.send(&ErrorPayload{Code: codeStaleLink, Retryable: true})
		hub.want(hello)
		hub.welcome(256) // the same once more: nothing was lost
		hub.wantIdle()
		hub.ack("s", 1)

		hub.send(&ErrorPayload{Code: codeStaleLink, Retryable: true})
		hub.want(hello)
		hub.id = "other"
		hub.welcome(2) // a new link id: everything of the link starts afresh
		hub.wantStatus("s")
		hub.wantIdle()
		hub.ack("s", 1)
		hub.want(agentBatch("s", 2, 3, 3))
		if n := st.Stats().StalePayloads; n != 1 {
			t.Errorf("%d stale frames", n)
		}
	})
}

// TestStreamerVersion: another version ends the link, whoever says so (rule 17).
func TestStreamerVersion(t *testing.T) {
	t.Run("welcome", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			hub := meetHub(t, NewStreamer(nil))
			hub.want(&HelloPayload{V: 1, Role: "agent"})
			hub.sendRefused(&WelcomePayload{V: 2, Link: "l", Window: 1}, codeVersion)
			hub.want(&ErrorPayload{Code: codeVersion})
			hub.wantDeadOf(codeVersion)
		})
	})
	t.Run("error", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			hub := meetHub(t, NewStreamer(nil))
			hub.want(&HelloPayload{V: 1, Role: "agent"})
			hub.sendRefused(&ErrorPayload{Code: codeVersion}, codeVersion)
			hub.wantDeadOf(codeVersion) // an error is not answered by an error
		})
	})
}

// wantDeadOf expects the link to be dead of a *ProtocolError.
func (h *playedHub) wantDeadOf(code string) {
	h.t.Helper()
	var got *ProtocolError
	if _, err := h.next(); !errors.As(err, &got) || got.Code != code {
		h.t.Fatalf("link ended with %v, want %s", err, code)
	}
}

// TestStreamerManySessions: at most 256 sessions stand in a status, with more on
// all but the last (rule 5).
func TestStreamerManySessions(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 256, 257, 513} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(nil)
				var ids []string
				for i := range n {
					ids = append(ids, fmt.Sprintf("s%03d", i))
					publishN(t, st, ids[i], 1)
				}
				hub := playHub(t, st)
				for first := 0; first < n; first += maxStatus {
					last := min(n, first+maxStatus)
					hub.want(&StatusPayload{More: last < n, Sessions: hub.statuses(ids[first:last]...)})
				}
				for _, id := range ids { // never sent before: each opens itself
					hub.want(agentBatch(id, 1, 1, 1))
				}
				hub.wantIdle()
			})
		})
	}
}

// TestStreamerManySessionsForgotten: sessions that are forgotten before their status
// was taken don't keep the others from being named (rule 5).
func TestStreamerManySessionsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		for i := range maxStatus + 1 {
			publishN(t, st, fmt.Sprintf("s%03d", i), 1)
			hub.want(agentBatch(fmt.Sprintf("s%03d", i), 1, 1, 1))
		}
		hub = playHub(t, st)
		for i := range maxStatus {
			st.Forget(fmt.Sprintf("s%03d", i))
		}
		hub.wantStatus("s256")
	})
}

// TestStreamerFirstAck: the first ack of a link is believed up to what was ever
// sent, later ones up to the greater of it and what was sent on this link (rule 6).
func TestStreamerFirstAck(t *testing.T) {
	for _, test := range []struct {
		name   string
		acks   []uint64
		refuse uint64 // what the last of them may name at the most; 0: it is fine
		acked  uint64
	}{
		{"lower", []uint64{2}, 0, 2},
		{"the same", []uint64{3}, 0, 3},
		{"higher", []uint64{6}, 0, 6},
		{"all that was ever sent", []uint64{8}, 0, 8},
		{"never sent, though published", []uint64{9}, 8, 3},
		{"far beyond", []uint64{MaxSeq}, 8, 3},
		{"later: what this link sent", []uint64{3, 7}, 0, 7},
		{"later: beyond what this link sent", []uint64{3, 8}, 7, 3},
		{"later: lower", []uint64{3, 2}, 0, 3},
		{"later: the first again", []uint64{8, 8}, 0, 8},
		{"later: beyond the first", []uint64{8, 11}, 10, 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHubWindow(t, st, 5)
				publishN(t, st, "s", 10)
				hub.want(agentBatch("s", 1, 5, 10))
				hub.ack("s", 3)
				hub.want(agentBatch("s", 6, 8, 10))

				hub = playHubWindow(t, st, 4)
				if test.acks[0] == 8 {
					hub = playHubWindow(t, st, 2)
				}
				hub.wantStatus("s")
				for i, seq := range test.acks {
					if i < len(test.acks)-1 || test.refuse == 0 {
						hub.ack("s", seq)
					} else {
						hub.sendRefused(&AckBatchPayload{SessionID: "s", UpToSeq: seq}, codeAckBeyondSent)
						hub.want(&ErrorPayload{Code: codeAckBeyondSent, SessionID: "s", Epoch: stats(t, st, "s").Epoch, Seq: test.refuse})
						hub.wantDeadOf(codeAckBeyondSent)
					}
					if i == 0 && len(test.acks) > 1 {
						head := min(10, seq+4)
						if seq == 8 {
							head = 10
						}
						hub.want(agentBatch("s", seq+1, head, 10))
					}
				}
				if s := stats(t, st, "s"); s.Acked != test.acked || s.PendingEvents != int(10-test.acked) {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

// TestStreamerFirstAckEvicted: what the hub has lost and the log no longer holds is
// declared (rule 6).
func TestStreamerFirstAckEvicted(t *testing.T) {
	for _, test := range []struct {
		name   string
		replay int
		ack    uint64
		gap    []Gap
		lost   uint64
	}{
		{"still held", 3, 3, nil, 0},
		{"just held", 3, 2, nil, 0},
		{"just not held", 3, 1, []Gap{{2, 2, ReasonEvicted}}, 1},
		{"everything lost", 3, 0, []Gap{{1, 2, ReasonEvicted}}, 2},
		{"nothing held", -1, 0, []Gap{{1, 5, ReasonEvicted}}, 5},
		{"nothing held, some lost", -1, 4, []Gap{{5, 5, ReasonEvicted}}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st, _ := ackedStreamer(t, &StreamerConfig{ReplayEvents: test.replay}, 5)
				hub := reopenHub(t, st, map[string]uint64{"s": test.ack})
				hub.want(agentBatch("s", test.ack+1, 5, 5, test.gap...))
				s := stats(t, st, "s")
				if s.Lost != test.lost || s.Acked != test.ack || s.PendingEvents != int(5-test.ack-test.lost) {
					t.Errorf("%+v, want %d lost", s, test.lost)
				}
				hub.ack("s", 5)
				if s := stats(t, st, "s"); s.PendingEvents+s.PendingBytes != 0 {
					t.Errorf("in the end: %+v", s)
				}
			})
		})
	}
}

// TestStreamerAckedEarly: the first ack of a session that opened itself does not
// send again what is on its way (rule 9).
func TestStreamerAckedEarly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 3)
		hub := playHub(t, st)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 3, 3))
		hub.ack("s", 0) // to the status
		hub.wantIdle()
		hub.ack("s", 3)
		hub.wantIdle()
	})
}

// TestStreamerFirstAckAgain: on a link on which nothing was sent, the first ack may
// come again, as the answer to each sign of life does (rule 6).
func TestStreamerFirstAckAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, _ := ackedStreamer(t, nil, 3)
		hub := reopenHub(t, st, map[string]uint64{"s": 3})
		hub.ack("s", 3)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 4, 4, 4))
		hub.ack("s", 3)
		hub.ack("s", 4)
	})
}

// TestStreamerStaleAcks: acks of another link or epoch, or before the welcome, are
// counted and nothing else (rule 3).
func TestStreamerStaleAcks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 3)
		hub := meetHub(t, st)
		hub.ack("s", 0)
		hub.want(&HelloPayload{V: 1, Role: "agent"})
		hub.welcome(256)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 3, 3))
		hub.send(
			&AckBatchPayload{SessionID: "s", UpToSeq: 2, Link: "other"},
			&AckBatchPayload{SessionID: "s", UpToSeq: 99, Epoch: "other"},
			&StatusPayload{Link: "other"},
		)
		if s, n := stats(t, st, "s"), st.Stats().StalePayloads; s.Acked != 0 || n != 4 {
			t.Errorf("acked %d, %d stale frames", s.Acked, n)
		}
		hub.wantIdle()
		hub.sendRefused(&AckBatchPayload{SessionID: "t", Epoch: "e", UpToSeq: 1}, codeUnknownSession)
		hub.want(&ErrorPayload{Code: codeUnknownSession, SessionID: "t"})
	})
}

// TestStreamerViewerAcks: a viewer's progress is shown and frees nothing (rule 6).
func TestStreamerViewerAcks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.send(
			&AckBatchPayload{SessionID: "s", ViewerID: "tab-1", UpToSeq: 2},
			&AckBatchPayload{SessionID: "s", ViewerID: "tab-2", UpToSeq: 3, Nack: true},
			&AckBatchPayload{SessionID: "s", ViewerID: "tab-1", UpToSeq: 99}, // beyond the head: nobody can be there
		)
		s := stats(t, st, "s")
		if diff := cmp.Diff(map[string]uint64{"tab-1": 2, "tab-2": 3}, s.Progress); diff != "" || s.Acked != 0 || s.PendingEvents != 3 {
			t.Errorf("%+v, progress (-want +got):\n%s", s, diff)
		}
		hub.wantIdle()
		for i := range 2 * maxProgress {
			hub.send(&AckBatchPayload{SessionID: "s", ViewerID: fmt.Sprint("v", i), UpToSeq: 1})
		}
		hub.send(&AckBatchPayload{SessionID: "s", ViewerID: "tab-1", UpToSeq: 3})
		if s := stats(t, st, "s"); len(s.Progress) != maxProgress || s.Progress["tab-1"] != 3 {
			t.Errorf("%d viewers, tab-1 at %d", len(s.Progress), s.Progress["tab-1"])
		}
	})
}

// TestStreamerWindow: no event goes out beyond ack + window (rule 7).
func TestStreamerWindow(t *testing.T) {
	for _, test := range []struct {
		window int
		sent   uint64
	}{{0, 0}, {1, 1}, {4, 4}, {5, 5}, {6, 6}, {7, 6}, {math.MaxInt32, 6}} {
		t.Run(fmt.Sprint(test.window), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHubWindow(t, st, test.window)
				publishN(t, st, "s", 6)
				if test.sent > 0 {
					hub.want(agentBatch("s", 1, test.sent, 6))
				}
				hub.wantIdle()
				if test.sent > 0 && test.sent < 6 {
					hub.ack("s", 1)
					hub.want(agentBatch("s", test.sent+1, test.sent+1, 6))
					hub.wantIdle()
				}
			})
		})
	}
}

// TestStreamerWindowGap is the odd case of rule 7: a gap may cross the window.
func TestStreamerWindowGap(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 4)
		publishAcked(t, hub, "s", 10)
		hub.link.Close()
		publishN(t, st, "s", 41)
		s := st.lookup("s")
		for seq := uint64(13); seq <= 50; seq++ {
			s.loseAt(s.log.find(seq), ReasonDropped)
		}
		hub = playHubWindow(t, st, 4)
		hub.wantStatus("s")
		hub.ack("s", 10)
		hub.want(agentBatch("s", 11, 50, 51, Gap{13, 50, ReasonDropped}))
		hub.wantIdle()
		hub.ack("s", 12)
		hub.wantIdle()
		hub.ack("s", 50)
		hub.want(agentBatch("s", 51, 51, 51))
	})
}

// TestStreamerBatches: 256 events a batch, or 256 KiB (rule 7).
func TestStreamerBatches(t *testing.T) {
	for _, n := range []uint64{255, 256, 257, 513} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHubWindow(t, st, 10_000)
				publishN(t, st, "s", int(n))
				for first := uint64(1); first <= n; first += 256 {
					hub.want(agentBatch("s", first, min(n, first+255), n))
				}
				hub.wantIdle()
			})
		})
	}
	t.Run("bytes", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			sizes := []int{10, 300 << 10, 10, 100 << 10, 100 << 10, 100 << 10}
			for _, n := range sizes {
				if _, err := st.Publish(t.Context(), "s", Event{Data: []byte(`"` + strings.Repeat("x", n) + `"`)}); err != nil {
					t.Fatal(err)
				}
			}
			var got [][2]uint64
			for p, err := hub.next(); err == nil; p, err = hub.next() {
				b := p.(*EventBatchPayload)
				got = append(got, [2]uint64{b.FirstSeq, b.LastSeq})
			}
			if diff := cmp.Diff([][2]uint64{{1, 1}, {2, 2}, {3, 5}, {6, 6}}, got); diff != "" {
				t.Errorf("batches (-want +got):\n%s", diff)
			}
		})
	})
}

// TestStreamerTurns: sessions take turns, one batch each (rule 7).
func TestStreamerTurns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 1000)
		publishN(t, st, "a", 600)
		publishN(t, st, "b", 300)
		hub.want(
			agentBatch("a", 1, 256, 600), agentBatch("b", 1, 256, 300),
			agentBatch("a", 257, 512, 600), agentBatch("b", 257, 300, 300),
			agentBatch("a", 513, 600, 600),
		)
		hub.wantIdle()
	})
}

// TestStreamerNack: the agent goes back at most once per nacked number and second
// (rule 7).
func TestStreamerNack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 5)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nack("s", 0)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nack("s", 0)
		hub.wantIdle()
		pass(time.Second - 1)
		hub.nack("s", 0)
		hub.wantIdle()
		pass(1)
		hub.nack("s", 0)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nack("s", 2) // another number
		hub.want(agentBatch("s", 3, 5, 5))
		hub.nack("s", 1) // older than the ack
		hub.wantIdle()
		hub.nack("s", 5)
		hub.wantIdle()
	})
}

// TestStreamerAckAfterNack: an ack above what is to be sent again moves that up (S4).
func TestStreamerAckAfterNack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 5)
		hub.want(agentBatch("s", 1, 5, 5))
		hub.nack("s", 2)
		hub.ack("s", 4) // what was taken for lost had been on its way
		hub.want(agentBatch("s", 5, 5, 5))
		hub.nack("s", 4) // once more: nothing is left between
		hub.ack("s", 5)
		hub.wantIdle()
	})
}

// TestStreamerResendTimer: what is not acknowledged goes again after 15 s, twice as
// long each time, up to 2 min; an ack that moves puts the timer back (rule 9).
func TestStreamerResendTimer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.ack("s", 0) // to begin with: the first ack of a link is progress
		begin := time.Now()
		var resent []time.Duration
		listen := func(until time.Duration) {
			resent = nil
			ctx, cancel := context.WithDeadline(t.Context(), begin.Add(until))
			defer cancel()
			for {
				p, err := hub.link.Next(ctx)
				if err != nil {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Fatal(err)
					}
					return
				}
				switch p := p.(type) {
				case *StatusPayload: // every 15 s, and answered: the link lives
					hub.ack("s", stats(t, st, "s").Acked)
				case *EventBatchPayload:
					if p.FirstSeq != stats(t, st, "s").Acked+1 || p.LastSeq != 3 {
						t.Errorf("resent %d to %d", p.FirstSeq, p.LastSeq)
					}
					resent = append(resent, time.Since(begin)/time.Second)
				}
			}
		}
		listen(500 * time.Second)
		if diff := cmp.Diff([]time.Duration{15, 45, 105, 225, 345, 465}, resent); diff != "" {
			t.Errorf("resent after seconds (-want +got):\n%s", diff)
		}
		begin = time.Now()
		hub.ack("s", 2)
		listen(100 * time.Second)
		if diff := cmp.Diff([]time.Duration{15, 45}, resent); diff != "" {
			t.Errorf("after progress: resent after seconds (-want +got):\n%s", diff)
		}
		hub.ack("s", 3)
		begin = time.Now()
		listen(40 * time.Second)
		if len(resent) > 0 {
			t.Errorf("resent what is acknowledged")
		}
	})
}

// TestStreamerSilent: a link on which nothing comes for three heartbeats ends, and
// so does one on which nothing comes about a session with events outstanding
// (rules 6 and 9).
func TestStreamerSilent(t *testing.T) {
	t.Run("nothing at all", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			hub.wantAfter(15*time.Second, &StatusPayload{})
			hub.wantAfter(15*time.Second, &StatusPayload{})
			pass(15*time.Second - 1)
			hub.wantIdle()
			pass(1)
			hub.wantDead(ErrSilent)
			if st.Stats().Connected {
				t.Error("still connected")
			}
		})
	})
	t.Run("answers", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			hub := playHub(t, NewStreamer(nil))
			for range 10 {
				hub.wantAfter(15*time.Second, &StatusPayload{})
				hub.send(&StatusPayload{})
			}
		})
	})
	t.Run("answers to other things", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			publishN(t, st, "s", 1)
			for _, wait := range []time.Duration{0, 15 * time.Second} {
				pass(wait)
				if wait > 0 {
					hub.wantStatus("s")
				}
				hub.want(agentBatch("s", 1, 1, 1))
				hub.send(&StatusPayload{})
			}
			hub.wantAfter(15*time.Second, &StatusPayload{Sessions: hub.statuses("s")})
			hub.send(&StatusPayload{})
			pass(15 * time.Second)
			hub.wantStatus("s")
			hub.wantDead(ErrSilent)
		})
	})
	// Nothing is outstanding, so the entry is just repeated (rules 5 and 6).
	t.Run("no answer to an idle session", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			if _, err := st.Session("idle"); err != nil {
				t.Fatal(err)
			}
			hub := playHub(t, st)
			hub.wantStatus("idle")
			for range 8 {
				pass(15 * time.Second)
				for p, err := hub.next(); !errors.Is(err, context.Canceled); p, err = hub.next() {
					if err != nil {
						t.Fatalf("after %v: %v", p, err)
					}
				}
				hub.send(&StatusPayload{})
			}
		})
	})
}

// TestStreamerHeartbeat: every 15 s a status of the sessions that have something
// unacknowledged, or an empty one (rule 9).
func TestStreamerHeartbeat(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishAcked(t, hub, "acked", 1)
		publishN(t, st, "open", 2)
		hub.want(agentBatch("open", 1, 2, 2))
		hub.ack("open", 1)
		hub.wantAfter(15*time.Second, &StatusPayload{Sessions: hub.statuses("open")})
		hub.want(agentBatch("open", 2, 2, 2))
		hub.ack("open", 2)
		hub.wantAfter(15*time.Second, &StatusPayload{})
		hub.send(&StatusPayload{})
		hub.wantAfter(15*time.Second, &StatusPayload{})
	})
}

// TestStreamerUnknownSession: a hub that doesn't know the session is told where it
// stands, and its next ack counts as a first one (rule 5).
func TestStreamerUnknownSession(t *testing.T) {
	for _, first := range []uint64{0, 2, 3, 5} {
		t.Run(fmt.Sprint("ack ", first), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(nil)
				hub := playHub(t, st)
				publishN(t, st, "s", 5)
				hub.want(agentBatch("s", 1, 5, 5))
				hub.ack("s", 3)
				unknown := &ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: stats(t, st, "s").Epoch}
				hub.send(unknown, unknown)
				publishN(t, st, "s", 1)
				hub.wantStatus("s")
				hub.wantIdle()
				hub.ack("s", first)
				hub.want(agentBatch("s", first+1, 6, 6))
				hub.wantIdle()
			})
		})
	}
	t.Run("of another life", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			_, hub := ackedStreamer(t, nil, 1)
			hub.send(&ErrorPayload{Code: codeUnknownSession, SessionID: "s", Epoch: "other"})
			hub.send(&ErrorPayload{Code: codeUnknownSession, SessionID: "t"})
			hub.wantIdle()
		})
	})
}

// TestStreamerStops: what a hub refuses for good stops the session, and everybody
// who waits for it is told (rule 11).
func TestStreamerStops(t *testing.T) {
	for _, test := range []struct {
		code, epoch string
	}{
		{codeStaleEpoch, "zz"}, {codeForbidden, ""}, {codeEnded, ""}, {"some_later_code", ""},
	} {
		t.Run(test.code, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{MaxPendingEvents: 2})
				hub := playHub(t, st)
				publishN(t, st, "s", 2)
				publishN(t, st, "t", 1)
				hub.want(agentBatch("s", 1, 2, 2), agentBatch("t", 1, 1, 1))
				publish := start(func() error { _, err := st.Publish(t.Context(), "s", Event{}); return err })
				flush := start(func() error { return st.Flush(t.Context()) })
				wantWaiting(t, publish)
				wantWaiting(t, flush)
				hub.send(&ErrorPayload{Code: test.code, SessionID: "s", Epoch: test.epoch, Message: "no"})
				wantStopped := func(err error) {
					t.Helper()
					var got *ProtocolError
					if !errors.As(err, &got) || got.Code != test.code || got.SessionID != "s" || got.Message != "no" {
						t.Errorf("error %v, want %s", err, test.code)
					}
				}
				wantStopped(<-publish)
				wantWaiting(t, flush) // for the other session
				hub.ack("t", 1)
				wantStopped(<-flush)
				_, err := st.Publish(t.Context(), "s", Event{})
				wantStopped(err)
				wantStopped(st.Flush(t.Context()))
				hub.wantAfter(15*time.Second, &StatusPayload{}) // nothing more of it, also not
				hub = playHub(t, st)                            // on the next link
				hub.wantStatus("t")
				hub.wantIdle()
				var left *UnackedError
				if err := st.Close(t.Context()); !errors.As(err, &left) || left.Events != 2 || left.Sessions != 1 {
					t.Errorf("Close: %v", err)
				}
				wantStopped(left)
			})
		})
	}
}

// TestStreamerRenew: only Renew gets past what the hub refuses; it begins a new
// life under a greater epoch than the hub knows (rules 2 and 11).
func TestStreamerRenew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		old := stats(t, st, "s").Epoch
		known, ok := epoch.Process.Past(time.Now().Add(time.Hour), old)
		if !ok {
			t.Fatal("no greater epoch")
		}
		hub.send(&ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: known})
		var again []Event
		for ev := range st.Unacked("s") {
			again = append(again, ev)
		}
		if len(again) != 3 {
			t.Errorf("%d events to be published again", len(again))
		}
		if err := st.Renew("s"); err != nil {
			t.Fatal(err)
		}
		if s := stats(t, st, "s"); s.Epoch <= known || s.Head != 0 || s.PendingEvents != 0 || s.Bytes != 0 {
			t.Errorf("renewed: %+v, want past %q", s, known)
		}
		publishN(t, st, "s", 2)
		hub.want(agentBatch("s", 1, 2, 2))
		hub.send(&ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: known}) // news of before
		hub.send(&ErrorPayload{Code: codeForbidden, SessionID: "s", Epoch: old})
		hub.send(&AckBatchPayload{SessionID: "s", Epoch: old, UpToSeq: 2})
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 3, 3, 3))
		hub.ack("s", 3)

		if err := st.Renew("t"); err != ErrUnknownSession {
			t.Errorf("Renew of an unknown session: %v", err)
		}
		hub.send(&ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: "zzz"})
		if err := st.Renew("s"); err != ErrInvalidID {
			t.Errorf("Renew past the greatest epoch: %v", err)
		}
		if _, err := st.Publish(t.Context(), "s", Event{}); err == nil {
			t.Error("published to a stopped session")
		}
		st.Close(t.Context())
		if err := st.Renew("s"); err != ErrClosed {
			t.Errorf("Renew after Close: %v", err)
		}
	})
}

// TestStreamerOverloaded: a retryable error has the session wait for its timer, say
// where it stands, and go on from the next ack (rule 11).
func TestStreamerOverloaded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		publishN(t, st, "s", 2)
		hub := playHub(t, st)
		hub.wantStatus("s")
		hub.want(agentBatch("s", 1, 2, 2))
		pass(time.Second)
		hub.send(&ErrorPayload{Code: codeOverloaded, SessionID: "s", Retryable: true})
		publishN(t, st, "s", 1)
		hub.wantAfter(14*time.Second, &StatusPayload{Sessions: hub.statuses("s")}) // the heartbeat
		hub.wantAfter(time.Second, &StatusPayload{Sessions: hub.statuses("s")})
		hub.wantIdle() // no batch before the ack
		hub.ack("s", 0)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.ack("s", 3)
	})
}

// TestStreamerOverloadedAgain: the status is said again after 15 s, 30 s, … as long
// as the hub is overloaded ("the timer": 15 s, doubling).
func TestStreamerOverloadedAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishAcked(t, hub, "s", 1)
		hub = playHub(t, st)
		begin := time.Now()
		var said []time.Duration
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Second)
		defer cancel()
		for {
			p, err := hub.link.Next(ctx)
			if err != nil {
				break
			}
			if status, ok := p.(*StatusPayload); ok && len(status.Sessions) > 0 {
				said = append(said, time.Since(begin)/time.Second)
				hub.send(&ErrorPayload{Code: codeOverloaded, SessionID: "s", Retryable: true})
			}
			hub.send(&StatusPayload{})
		}
		if diff := cmp.Diff([]time.Duration{0, 15, 45, 105, 225}, said); diff != "" {
			t.Errorf("said after seconds (-want +got):\n%s", diff)
		}
	})
}

// TestStreamerRejected: an event that the hub refuses becomes a gap, and sending goes
// on from there (rule 11).
func TestStreamerRejected(t *testing.T) {
	for _, code := range []string{codeEventRejected, codeEventTooLarge} {
		t.Run(code, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{Overflow: Reject, MaxPendingEvents: 5})
				hub := playHubWindow(t, st, 4)
				publishN(t, st, "s", 5)
				hub.want(agentBatch("s", 1, 4, 5))
				hub.ack("s", 1)
				hub.want(agentBatch("s", 5, 5, 5))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 3})
				hub.want(agentBatch("s", 2, 5, 5, Gap{3, 3, ReasonRejected})) // what came before may not be accepted
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 4})   // joins the gap, which goes whole
				hub.want(agentBatch("s", 2, 5, 5, Gap{3, 4, ReasonRejected}))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 4}) // said twice
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 1}) // acknowledged
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 6}) // never published
				hub.wantIdle()
				if s := stats(t, st, "s"); s.Lost != 2 || s.PendingEvents != 2 {
					t.Errorf("%+v", s)
				}
				publishN(t, st, "s", 3) // there is room again
				hub.ack("s", 2)
				hub.want(agentBatch("s", 6, 6, 8))
				hub.send(&ErrorPayload{Code: code, SessionID: "s", Seq: 7}) // published, and not sent
				hub.wantIdle()
				hub.nack("s", 2)
				hub.want(agentBatch("s", 3, 6, 8, Gap{3, 4, ReasonRejected}))
			})
		})
	}
	t.Run("the end", func(t *testing.T) { // rule 16
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			if _, err := st.End(t.Context(), "s", Event{}); err != nil {
				t.Fatal(err)
			}
			hub.want(&EventBatchPayload{SessionID: "s", FirstSeq: 1, LastSeq: 1, HeadSeq: 1, Events: []Event{{Seq: 1, End: true}}})
			hub.send(&ErrorPayload{Code: codeEventTooLarge, SessionID: "s", Seq: 1})
			hub.want(&StatusPayload{Sessions: []SessionStatus{{SessionID: "s", FirstSeq: 1, HeadSeq: 1, Ended: true}}})
			hub.want(agentBatch("s", 1, 1, 1, Gap{1, 1, ReasonRejected}))
			hub.ack("s", 1)
			pass(endedTTL)
			if n := st.Stats().Sessions; n != 0 {
				t.Errorf("%d sessions", n)
			}
		})
	})
}

// TestStreamerRefusedFrames: what an agent can't take is answered by one error, and
// the link lives; an error never is (rule 11).
func TestStreamerRefusedFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		ctx := t.Context()
		hub.sendRefused(&HelloPayload{V: 1, Role: "agent"}, codeUnexpected)
		hub.want(&ErrorPayload{Code: codeUnexpected})
		hub.sendRefused(&WatchPayload{SessionID: "s"}, codeUnexpected)
		hub.want(&ErrorPayload{Code: codeUnexpected})
		if err := hub.link.Handle(ctx, nil); err == nil {
			t.Error("no payload is no error")
		}
		hub.want(&ErrorPayload{Code: codeMalformed})
		if err := hub.link.Handle(ctx, &AckBatchPayload{SessionID: "s"}); err == nil {
			t.Error("an ack without epoch is no error")
		}
		hub.want(&ErrorPayload{Code: codeMalformed})
		if err := hub.link.Handle(ctx, &ErrorPayload{}); err == nil {
			t.Error("an error without code is no error")
		}
		hub.wantIdle()
		hub.send(&ErrorPayload{Code: codeMalformed}, &ErrorPayload{Code: "news", SessionID: "s"}, &ErrorPayload{Code: "news", RequestID: "r"})
		hub.wantIdle()
		if n := st.Stats().RefusedPayloads; n != 4 {
			t.Errorf("%d payloads were answered by an error, want 4", n)
		}
		for range 2 * maxAnswers { // the peer does not read: what waits is bounded
			hub.sendRefused(&WatchPayload{SessionID: "s"}, codeUnexpected)
		}
		for range maxAnswers {
			hub.want(&ErrorPayload{Code: codeUnexpected})
		}
		hub.wantIdle()
	})
}

// TestStreamerBlock: with Block, a publisher waits for room, its context or the end
// of the session (rule 10, L4).
func TestStreamerBlock(t *testing.T) {
	cause := errors.New("no more patience")
	for _, test := range []struct {
		name string
		end  func(st *Streamer, hub *playedHub, cancel func(error))
		err  error
		seq  uint64
	}{
		{"ack", func(_ *Streamer, hub *playedHub, _ func(error)) { hub.ack("s", 1) }, nil, 3},
		{"ack of everything", func(_ *Streamer, hub *playedHub, _ func(error)) { hub.ack("s", 2) }, nil, 3},
		{"rejected", func(_ *Streamer, hub *playedHub, _ func(error)) {
			hub.send(&ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: 2})
		}, nil, 3},
		{"ctx", func(_ *Streamer, _ *playedHub, cancel func(error)) { cancel(cause) }, cause, 0},
		{"Close", func(st *Streamer, _ *playedHub, _ func(error)) { go st.Close(context.Background()) }, ErrClosed, 0},
		{"Forget", func(st *Streamer, _ *playedHub, _ func(error)) { st.Forget("s") }, nil, 1},
		{"Renew", func(st *Streamer, _ *playedHub, _ func(error)) { st.Renew("s") }, nil, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st := NewStreamer(&StreamerConfig{MaxPendingEvents: 2})
				hub := playHub(t, st)
				publishN(t, st, "s", 2)
				hub.want(agentBatch("s", 1, 2, 2))
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				var seq uint64
				done := start(func() (err error) { seq, err = st.Publish(ctx, "s", Event{}); return err })
				pass(time.Hour)
				wantWaiting(t, done)
				test.end(st, hub, cancel)
				wantReturned(t, done, test.err)
				if seq != test.seq {
					t.Errorf("number %d, want %d", seq, test.seq)
				}
				if test.err == ErrClosed {
					hub.ack("s", 2) // so that Close ends
				}
			})
		})
	}
	t.Run("handle", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(&StreamerConfig{MaxPendingEvents: 1})
			publishN(t, st, "s", 1)
			s, _ := st.Session("s")
			done := start(func() error { _, err := s.Publish(t.Context(), Event{}); return err })
			wantWaiting(t, done)
			st.Forget("s")
			wantReturned(t, done, ErrClosed)
		})
	})
	t.Run("room and an ended ctx", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if seq, err := NewStreamer(nil).Publish(ctx, "s", Event{}); seq != 1 || err != nil {
			t.Errorf("Publish = %d, %v", seq, err)
		}
	})
	t.Run("all in turn", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(&StreamerConfig{MaxPendingEvents: 1})
			hub := playHub(t, st)
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if _, err := st.Publish(t.Context(), "s", Event{}); err != nil {
						t.Error(err)
					}
				})
			}
			for seq := range uint64(20) {
				synctest.Wait()
				if p, err := hub.next(); err != nil || p.(*EventBatchPayload).LastSeq != seq+1 {
					t.Fatalf("sent %v, %v, want %d", p, err, seq+1)
				}
				hub.ack("s", seq+1)
			}
			all.Wait()
		})
	})
}

// TestStreamerReject: with Reject, a full pending uses no number (rule 10).
func TestStreamerReject(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: Reject, MaxPendingEvents: 2})
		hub := playHub(t, st)
		publishN(t, st, "s", 2)
		for range 3 {
			if seq, err := st.Publish(t.Context(), "s", Event{}); seq != 0 || err != ErrPendingFull {
				t.Fatalf("Publish = %d, %v", seq, err)
			}
		}
		publishN(t, st, "t", 1) // everybody else is unaffected
		hub.want(agentBatch("s", 1, 2, 2), agentBatch("t", 1, 1, 1))
		hub.ack("s", 1)
		publishN(t, st, "s", 1)
		hub.want(agentBatch("s", 3, 3, 3))
		if _, err := st.Publish(t.Context(), "s", Event{}); err != ErrPendingFull {
			t.Errorf("Publish: %v", err)
		}
	})
}

// TestStreamerLimits looks just before, at and after the limits of pending.
func TestStreamerLimits(t *testing.T) {
	ctx := context.Background()
	at := time.Date(2025, 11, 23, 0, 0, 0, 0, time.UTC)
	ev := Event{Time: at, Data: []byte(`"0123456789"`)}
	d := draft{ev: &ev}
	if err := d.check(false); err != nil {
		t.Fatal(err)
	}
	most := d.size()                           // with the longest number
	size := most - (seqRoom - len(`{"seq":1`)) // with number 1 to 9
	one := &StreamerConfig{Overflow: Reject, MaxPendingEvents: 1}
	for _, test := range []struct {
		name string
		cfg  StreamerConfig
		fits int // events that can be published
		err  error
	}{
		{"no events", StreamerConfig{MaxPendingEvents: -1}, 0, ErrPendingFull},
		{"one event", *one, 1, ErrPendingFull},
		{"five events", StreamerConfig{MaxPendingEvents: 5}, 5, ErrPendingFull},
		{"no bytes", StreamerConfig{MaxPendingBytes: -1}, 0, ErrTooLarge},
		{"one event's bytes less one", StreamerConfig{MaxPendingBytes: most - 1}, 0, ErrTooLarge},
		{"one event's bytes", StreamerConfig{MaxPendingBytes: most}, 1, ErrPendingFull},
		{"three events' bytes less one", StreamerConfig{MaxPendingBytes: 2*size + most - 1}, 2, ErrPendingFull},
		{"three events' bytes", StreamerConfig{MaxPendingBytes: 2*size + most}, 3, ErrPendingFull},
		{"no large events", StreamerConfig{MaxEventBytes: -1}, 0, ErrTooLarge},
		{"event's bytes less one", StreamerConfig{MaxEventBytes: most - 1}, 0, ErrTooLarge},
		{"event's bytes", StreamerConfig{MaxEventBytes: most, MaxPendingEvents: 1}, 1, ErrPendingFull},
		{"no sessions", StreamerConfig{MaxSessions: -1}, 0, ErrTooMany},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Overflow = Reject
			st := NewStreamer(&test.cfg)
			n := 0
			for ; n < 100; n++ {
				seq, err := st.Publish(ctx, "s", ev)
				if err != nil {
					if !errors.Is(err, test.err) || seq != 0 {
						t.Errorf("Publish = %d, %v, want %v", seq, err, test.err)
					}
					break
				}
			}
			if n != test.fits {
				t.Errorf("%d events, want %d", n, test.fits)
			}
		})
	}
	t.Run("defaults", func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: Reject})
		for n := range 8193 {
			if _, err := st.Publish(ctx, "s", Event{Time: at}); (err == ErrPendingFull) != (n == 8192) {
				t.Fatalf("event %d: %v", n+1, err)
			}
		}
	})
	t.Run("sessions", func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxSessions: 2})
		publishN(t, st, "a", 1)
		publishN(t, st, "b", 1)
		if _, err := st.Publish(ctx, "c", Event{}); err != ErrTooMany {
			t.Errorf("third session: %v", err)
		}
		publishN(t, st, "a", 1)
		st.Forget("a")
		publishN(t, st, "c", 1)
	})
}

// TestStreamerDropOldest: the oldest pending events become a declared gap (rule 10).
func TestStreamerDropOldest(t *testing.T) {
	cfg := &StreamerConfig{Overflow: DropOldest, MaxPendingEvents: 3}
	dropped := func(from, to uint64) Gap { return Gap{from, to, ReasonDropped} }
	t.Run("before it was sent", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			publishN(t, st, "s", 10)
			if s := stats(t, st, "s"); s.Lost != 7 || s.PendingEvents != 3 || s.First != 1 || s.Events != 3 {
				t.Errorf("%+v", s)
			}
			hub := playHub(t, st)
			hub.wantStatus("s")
			hub.want(agentBatch("s", 1, 10, 10, dropped(1, 7)))
			hub.ack("s", 10)
		})
	})
	t.Run("sent, and the hub has it", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			hub := playHub(t, st)
			publishN(t, st, "s", 3)
			hub.want(agentBatch("s", 1, 3, 3))
			publishN(t, st, "s", 2)
			hub.want(agentBatch("s", 4, 5, 5)) // nobody is told of a loss
			hub.ack("s", 3)
			hub.ack("s", 5)
			hub.wantIdle()
		})
	})
	t.Run("sent, and lost on the way", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			hub := playHub(t, st)
			publishN(t, st, "s", 3)
			hub.want(agentBatch("s", 1, 3, 3))
			publishN(t, st, "s", 2)
			hub.want(agentBatch("s", 4, 5, 5))
			hub.nack("s", 0)
			hub.want(agentBatch("s", 1, 5, 5, dropped(1, 2)))
		})
	})
	t.Run("acknowledged in part", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(cfg)
			hub := playHub(t, st)
			publishN(t, st, "s", 3)
			hub.want(agentBatch("s", 1, 3, 3))
			hub.ack("s", 0)
			hub.link.Close()
			publishN(t, st, "s", 3) // 1 to 3 are a gap
			hub = reopenHub(t, st, map[string]uint64{"s": 2})
			hub.want(agentBatch("s", 3, 6, 6, dropped(3, 3)))
			publishN(t, st, "s", 1) // 4 joins the gap
			hub.want(agentBatch("s", 7, 7, 7))
			hub.nack("s", 2)
			hub.want(agentBatch("s", 3, 7, 7, dropped(3, 4)))
			hub.ack("s", 7)
			if s := stats(t, st, "s"); s.PendingEvents+s.PendingBytes != 0 {
				t.Errorf("in the end: %+v", s)
			}
		})
	})
	t.Run("bytes", func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingBytes: 1000})
		for i := range 50 {
			if seq, err := st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 10*i)}); seq != uint64(i+1) || err != nil {
				t.Fatalf("Publish = %d, %v", seq, err)
			}
			if s := stats(t, st, "s"); s.PendingBytes > 1000 || s.PendingEvents < 1 {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// TestStreamerReplayBytes: the bytes kept for replay have a limit, too.
func TestStreamerReplayBytes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, _ := ackedStreamer(t, nil, 9)
		size := stats(t, st, "s").Bytes / 9
		for _, test := range []struct{ limit, kept int }{
			{-1, 0}, {size - 1, 0}, {size, 1}, {3*size - 1, 2}, {3 * size, 3}, {3*size + 1, 3}, {9 * size, 9}, {0, 9},
		} {
			st, _ := ackedStreamer(t, &StreamerConfig{ReplayBytes: test.limit}, 9)
			if s := stats(t, st, "s"); s.Events != test.kept {
				t.Errorf("limit %d: %d events kept, want %d", test.limit, s.Events, test.kept)
			}
		}
	})
}

// TestStreamerReplayBounds: what a request may ask for, and what it gets (rule 12).
func TestStreamerReplayBounds(t *testing.T) {
	type pages [][2]uint64 // first and last of each
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{ReplayEvents: 230})
		hub := playHub(t, st)
		publishN(t, st, "s", 250)
		hub.want(agentBatch("s", 1, 250, 250))
		hub.ack("s", 250)
		for n, test := range []struct {
			after, until uint64
			limit        int
			pages        pages
		}{
			{0, 0, 0, pages{{21, 120}, {121, 220}, {221, 250}}}, // but for the gap, which stands in the first
			{0, 20, 0, pages{{21, 20}}},
			{0, 10, 0, pages{{21, 10}}},
			{19, 0, 1, pages{{21, 21}}},
			{20, 0, 0, pages{{21, 120}, {121, 220}, {221, 250}}},
			{21, 0, 0, pages{{22, 121}, {122, 221}, {222, 250}}},
			{100, 0, 99, pages{{101, 199}}},
			{100, 0, 100, pages{{101, 200}}},
			{100, 0, 101, pages{{101, 200}, {201, 201}}},
			{100, 199, 500, pages{{101, 199}}},
			{100, 200, 500, pages{{101, 200}}},
			{100, 201, 500, pages{{101, 200}, {201, 201}}},
			{100, 201, 1, pages{{101, 101}}},
			{100, 9999, 500, pages{{101, 200}, {201, 250}}}, // clipped to the head
			{249, 0, 0, pages{{250, 250}}},
			{250, 0, 0, pages{{251, 250}}}, // nothing to send: one empty batch
			{250, 9999, 7, pages{{251, 250}}},
			{100, 100, 0, pages{{101, 100}}},
		} {
			req := &ReplayRequestPayload{
				SessionID: "s", ViewerID: "v", RequestID: fmt.Sprint("r", n), AfterSeq: test.after, UntilSeq: test.until, Limit: test.limit,
			}
			hub.send(req)
			until := uint64(250)
			if test.until > 0 {
				until = min(until, test.until)
			}
			for i, p := range test.pages {
				want := agentPage(req, p[0], p[1], until, 21, i == len(test.pages)-1)
				if i == 0 && test.after < 20 { // older than the log: declared, and clipped
					want.FirstSeq = test.after + 1
					want.LastSeq = max(p[1], min(20, until))
					want.Gaps = []Gap{{test.after + 1, min(20, until), ReasonEvicted}}
				}
				hub.want(want)
			}
			hub.wantIdle()
		}
	})
}

// TestStreamerReplayGaps: gaps in a replay are clipped to what was asked (rule 12).
func TestStreamerReplayGaps(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{Overflow: DropOldest, MaxPendingEvents: 5})
		publishN(t, st, "s", 15) // 1 to 10 are a gap
		hub := playHub(t, st)
		hub.wantStatus("s")
		gap := Gap{1, 10, ReasonDropped}
		hub.want(agentBatch("s", 1, 15, 15, gap))
		for i, test := range []struct {
			after, until uint64
			gap          []Gap
		}{
			{0, 15, []Gap{gap}},
			{4, 15, []Gap{{5, 10, ReasonDropped}}},
			{0, 4, []Gap{{1, 4, ReasonDropped}}},
			{3, 4, []Gap{{4, 4, ReasonDropped}}},
			{9, 11, []Gap{{10, 10, ReasonDropped}}},
			{10, 12, nil},
		} {
			req := &ReplayRequestPayload{SessionID: "s", RequestID: fmt.Sprint("r", i), AfterSeq: test.after, UntilSeq: test.until}
			hub.send(req) // also what is pending can be replayed
			hub.want(agentPage(req, test.after+1, test.until, test.until, 1, true, test.gap...))
		}
		hub.wantIdle()
	})
}

// TestStreamerReplayRefused: what can't be answered is refused, with the request's
// id and the viewer's (rule 12).
func TestStreamerReplayRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, hub := ackedStreamer(t, nil, 3)
		epoch := stats(t, st, "s").Epoch
		for _, test := range []struct {
			req  ReplayRequestPayload
			want ErrorPayload
		}{
			{ReplayRequestPayload{SessionID: "s", AfterSeq: 4}, ErrorPayload{Code: codeReplayAhead, SessionID: "s", Epoch: epoch, Seq: 3}},
			{ReplayRequestPayload{SessionID: "s", AfterSeq: MaxSeq}, ErrorPayload{Code: codeReplayAhead, SessionID: "s", Epoch: epoch, Seq: 3}},
			{ReplayRequestPayload{SessionID: "s", Epoch: "other", AfterSeq: 1}, ErrorPayload{Code: codeStaleEpoch, SessionID: "s", Epoch: epoch}},
			{ReplayRequestPayload{SessionID: "t", Epoch: "other"}, ErrorPayload{Code: codeUnknownSession, SessionID: "t"}},
		} {
			test.req.ViewerID, test.req.RequestID = "tab-1", "r1"
			test.want.ViewerID, test.want.RequestID = "tab-1", "r1"
			hub.sendRefused(&test.req, test.want.Code)
			hub.want(&test.want)
			hub.wantIdle()
		}
		req := &ReplayRequestPayload{SessionID: "s", RequestID: "r2"} // for the hub itself, in the current epoch
		if err := hub.link.Handle(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		hub.want(agentPage(req, 1, 3, 3, 1, true))
	})
}

// TestStreamerReplayBusy: a session answers so many requests at a time (rule 12).
func TestStreamerReplayBusy(t *testing.T) {
	for _, test := range []struct{ limit, open int }{{-1, 0}, {1, 1}, {3, 3}, {0, 8}} {
		t.Run(fmt.Sprint(test.limit), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st, hub := ackedStreamer(t, &StreamerConfig{MaxReplays: test.limit}, 2)
				publishAcked(t, hub, "other", 1)
				var open []*ReplayRequestPayload
				for i := range test.open {
					req := &ReplayRequestPayload{SessionID: "s", ViewerID: fmt.Sprint("v", i), RequestID: fmt.Sprint("r", i)}
					hub.send(req, req) // twice is once
					open = append(open, req)
				}
				busy := &ReplayRequestPayload{SessionID: "s", ViewerID: "v", RequestID: "more"}
				hub.sendRefused(busy, codeReplayBusy)
				hub.want(&ErrorPayload{Code: codeReplayBusy, Retryable: test.open > 0, SessionID: "s", ViewerID: "v", RequestID: "more"})
				if test.open == 0 {
					return
				}
				elsewhere := &ReplayRequestPayload{SessionID: "other", ViewerID: "v", RequestID: "elsewhere"}
				hub.send(elsewhere)
				hub.want(agentPage(open[0], 1, 2, 2, 1, true))
				hub.send(busy) // one is done, so there is room
				for _, req := range open[1:] {
					hub.want(agentPage(req, 1, 2, 2, 1, true))
				}
				hub.want(agentPage(elsewhere, 1, 1, 1, 1, true), agentPage(busy, 1, 2, 2, 1, true))
				hub.wantIdle()

				hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "cut"})
				hub = reopenHub(t, st, map[string]uint64{"s": 2, "other": 1})
				hub.wantIdle() // requests end with their link
			})
		})
	}
}

// TestStreamerReplayBig: an answer to a request with a limit ends after about 1 MiB,
// and its batches stay within 256 KiB (rule 12).
func TestStreamerReplayBig(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		for range 20 {
			if _, err := st.Publish(t.Context(), "s", Event{Bytes: make([]byte, 75<<10)}); err != nil {
				t.Fatal(err)
			}
		}
		for p, err := hub.next(); err == nil; p, err = hub.next() {
			hub.ack("s", p.(*EventBatchPayload).LastSeq)
		}
		for _, test := range []struct {
			limit int
			last  uint64
		}{{500, 12}, {0, 20}} {
			hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "r", Limit: test.limit})
			next := uint64(1)
			for done := false; !done; {
				p, err := hub.next()
				if err != nil {
					t.Fatal(err)
				}
				b := p.(*ReplayBatchPayload)
				if b.FirstSeq != next || len(b.Events) != 2 {
					t.Errorf("limit %d: batch of %d to %d after %d", test.limit, b.FirstSeq, b.LastSeq, next-1)
				}
				next, done = b.LastSeq+1, b.Done
			}
			if next != test.last+1 {
				t.Errorf("limit %d: done at %d, want %d", test.limit, next-1, test.last)
			}
		}
	})
}

// TestStreamerReplayAcrossRenew: a replay of an older life ends with it.
func TestStreamerReplayAcrossRenew(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, hub := ackedStreamer(t, nil, 3)
		hub.send(&ReplayRequestPayload{SessionID: "s", RequestID: "r"})
		if err := st.Renew("s"); err != nil {
			t.Fatal(err)
		}
		hub.wantIdle()
	})
}

// TestStreamerEnd: after the end nothing is published; 5 min after its ack the
// session is forgotten, and may begin anew (rule 16).
func TestStreamerEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		s, err := st.Session("s")
		if err != nil {
			t.Fatal(err)
		}
		if seq, err := s.Publish(t.Context(), Event{End: true}); seq != 1 || err != nil {
			t.Fatalf("Publish = %d, %v", seq, err) // which ignores End
		}
		if seq, err := st.End(t.Context(), "s", Event{Type: "exit"}); seq != 2 || err != nil {
			t.Fatalf("End = %d, %v", seq, err)
		}
		hub.want(&EventBatchPayload{
			SessionID: "s", FirstSeq: 1, LastSeq: 2, HeadSeq: 2,
			Events: []Event{{Seq: 1}, {Seq: 2, Type: "exit", End: true}},
		})
		for _, publish := range []func(context.Context, Event) (uint64, error){s.Publish, s.End} {
			if seq, err := publish(t.Context(), Event{}); seq != 0 || err != ErrEnded {
				t.Errorf("after the end: %d, %v", seq, err)
			}
		}
		old := s.Stats()
		if !old.Ended || old.Head != 2 {
			t.Errorf("%+v", old)
		}
		pass(endedTTL)
		hub = reopenHub(t, st, map[string]uint64{"s": 1})
		hub.want(&EventBatchPayload{
			SessionID: "s", FirstSeq: 2, LastSeq: 2, HeadSeq: 2, Events: []Event{{Seq: 2, Type: "exit", End: true}},
		})
		hub.ack("s", 2)
		pass(endedTTL - 1)
		if n := st.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions just before the time", n)
		}
		if _, err := st.Publish(t.Context(), "s", Event{}); err != ErrEnded {
			t.Errorf("just before the time: %v", err)
		}
		pass(1)
		if n := st.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions after the time", n)
		}
		if _, err := s.Publish(t.Context(), Event{}); err != ErrClosed {
			t.Errorf("handle of a forgotten session: %v", err)
		}
		publishN(t, st, "s", 1)
		if now := stats(t, st, "s"); now.Epoch <= old.Epoch || now.Head != 1 {
			t.Errorf("in its new life: %+v", now)
		}
	})
}

// TestStreamerEndMovedBack: 5 min count from the ack that holds (rule 16).
func TestStreamerEndMovedBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		if _, err := st.End(t.Context(), "s", Event{}); err != nil {
			t.Fatal(err)
		}
		if _, err := hub.next(); err != nil {
			t.Fatal(err)
		}
		hub.ack("s", 1)
		pass(endedTTL - time.Minute)
		hub = reopenHub(t, st, map[string]uint64{"s": 0}) // the hub has lost it
		if _, err := hub.next(); err != nil {
			t.Fatal(err)
		}
		hub.ack("s", 1)
		pass(endedTTL - 1)
		if n := st.Stats().Sessions; n != 1 {
			t.Errorf("%d sessions just before 5 min", n)
		}
		pass(1)
		if n := st.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions after 5 min", n)
		}
	})
}

// TestStreamerFlush waits for what was published before it.
func TestStreamerFlush(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		if err := st.Flush(t.Context()); err != nil {
			t.Errorf("with nothing: %v", err)
		}
		publishN(t, st, "a", 2)
		publishN(t, st, "b", 1)
		flush := start(func() error { return st.Flush(t.Context()) })
		pass(time.Hour) // there is no connection
		wantWaiting(t, flush)
		hub := playHub(t, st)
		hub.wantStatus("a", "b")
		hub.want(agentBatch("a", 1, 2, 2), agentBatch("b", 1, 1, 1))
		publishN(t, st, "a", 1)
		hub.want(agentBatch("a", 3, 3, 3))
		hub.ack("a", 1)
		hub.ack("b", 1)
		wantWaiting(t, flush)
		hub.ack("a", 2) // what came later is not waited for
		wantReturned(t, flush, nil)

		cause := errors.New("no more patience")
		ctx, cancel := context.WithCancelCause(t.Context())
		flush = start(func() error { return st.Flush(ctx) })
		wantWaiting(t, flush)
		cancel(cause)
		wantReturned(t, flush, cause)
		hub.ack("a", 3)
		if err := st.Flush(ctx); err != nil { // what is ready is preferred
			t.Errorf("with everything acknowledged: %v", err)
		}
		publishN(t, st, "c", 1)
		flush = start(func() error { return st.Flush(t.Context()) })
		wantWaiting(t, flush)
		st.Forget("c")
		wantReturned(t, flush, nil)
	})
}

// TestStreamerClose waits as Flush does, and says what was left.
func TestStreamerClose(t *testing.T) {
	cause := errors.New("no more patience")
	t.Run("with nothing", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st, hub := ackedStreamer(t, nil, 2)
			if err := st.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
			hub.wantDead(ErrClosed)
			for _, f := range []func() error{
				func() error { _, err := st.Publish(t.Context(), "s", Event{}); return err },
				func() error { _, err := st.Publish(t.Context(), "new", Event{}); return err },
				func() error { _, err := st.End(t.Context(), "s", Event{}); return err },
				func() error { _, err := st.Session("new"); return err },
				func() error { _, err := st.Connect().Next(t.Context()); return err },
				func() error { return st.Connect().Handle(t.Context(), &StatusPayload{Link: "l"}) },
			} {
				if err := f(); err != ErrClosed {
					t.Errorf("after Close: %v", err)
				}
			}
			if err := st.Close(t.Context()); err != nil {
				t.Errorf("Close again: %v", err)
			}
		})
	})
	t.Run("acknowledged meanwhile", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			publishN(t, st, "s", 2)
			done := start(func() error { return st.Close(t.Context()) })
			wantWaiting(t, done)
			if _, err := st.Publish(t.Context(), "s", Event{}); err != ErrClosed {
				t.Errorf("Publish while Close waits: %v", err)
			}
			hub.want(agentBatch("s", 1, 2, 2))
			hub.link.Close()
			hub = reopenHub(t, st, map[string]uint64{"s": 1}) // links may be made meanwhile
			hub.want(agentBatch("s", 2, 2, 2))
			wantWaiting(t, done)
			hub.ack("s", 2)
			wantReturned(t, done, nil)
			hub.wantDead(ErrClosed)
		})
	})
	t.Run("detached", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			publishN(t, st, "a", 300)
			publishN(t, st, "b", 1)
			ctx, cancel := context.WithCancelCause(t.Context())
			done := start(func() error { return st.Close(ctx) })
			pass(time.Hour)
			wantWaiting(t, done)
			cancel(cause)
			err := <-done
			var left *UnackedError
			if !errors.As(err, &left) || left.Sessions != 2 || left.Events != 301 || !errors.Is(err, cause) {
				t.Errorf("Close: %v", err)
			}
			if want := "gvstream: 301 events of 2 sessions not acknowledged: no more patience"; err.Error() != want {
				t.Errorf("Close: %q", err)
			}
			if err := st.Close(t.Context()); !errors.As(err, &left) || !errors.Is(err, ErrClosed) {
				t.Errorf("Close again: %v", err)
			}
			n := uint64(0)
			for ev := range st.Unacked("a") {
				n++
				if diff := cmp.Diff(agentEvent(n), ev, sameTold); diff != "" {
					t.Fatal(diff)
				}
			}
			if n != 300 {
				t.Errorf("%d unacked events after Close", n)
			}
		})
	})
	t.Run("ctx over, a gap undelivered", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			st := NewStreamer(nil)
			hub := playHub(t, st)
			publishN(t, st, "s", 1)
			hub.want(agentBatch("s", 1, 1, 1))
			hub.send(&ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: 1})
			hub.link.Close()
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(cause)
			if err := st.Close(ctx); err == nil {
				t.Error("Close says that all is acknowledged, but the hub knows nothing of number 1")
			}
		})
	})
}

// TestStreamerUnacked yields what the hub has not acknowledged, copied.
func TestStreamerUnacked(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHubWindow(t, st, 1000)
		publishN(t, st, "s", 600)
		unacked := func(id string) (out []Event) {
			for ev := range st.Unacked(id) {
				out = append(out, ev)
			}
			return out
		}
		if diff := cmp.Diff(agentEvents(1, 600, nil), unacked("s"), sameTold); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		hub.want(agentBatch("s", 1, 256, 600))
		hub.ack("s", 200)
		hub.send(&ErrorPayload{Code: codeEventRejected, SessionID: "s", Seq: 202})
		want := append(agentEvents(201, 201, nil), agentEvents(203, 600, nil)...)
		got := unacked("s")
		if diff := cmp.Diff(want, got, sameTold); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for _, ev := range got {
			clear(ev.Data)
		}
		if diff := cmp.Diff(want, unacked("s"), sameTold); diff != "" {
			t.Errorf("after its copy was spoilt (-want +got):\n%s", diff)
		}
		for ev := range st.Unacked("s") {
			if ev.Seq != 201 {
				t.Errorf("went on after break")
			}
			hub.ack("s", 256)
			break
		}
		n := 0
		for range st.Unacked("s") { // the loop body may call anything back
			if n++; n == 1 {
				st.Forget("s")
			}
		}
		if n == 0 || unacked("s") != nil || unacked("never") != nil {
			t.Errorf("%d events; of no session: %v", n, unacked("never"))
		}
	})
}

// TestStreamerForget: a forgotten session is gone with everything; published to
// again, it has a new life.
func TestStreamerForget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		s, err := st.Session("s")
		if err != nil {
			t.Fatal(err)
		}
		old := s.Stats()
		st.Forget("s")
		st.Forget("s")
		st.Forget("never")
		if _, err := s.Publish(t.Context(), Event{}); err != ErrClosed {
			t.Errorf("Publish by the handle: %v", err)
		}
		if _, err := s.End(t.Context(), Event{}); err != ErrClosed {
			t.Errorf("End by the handle: %v", err)
		}
		if got := st.Stats(); got.Sessions+got.Bytes+got.PendingEvents+got.PendingBytes != 0 {
			t.Errorf("Stats() = %+v", got)
		}
		hub.sendRefused(&AckBatchPayload{SessionID: "s", Epoch: old.Epoch, UpToSeq: 3}, codeUnknownSession)
		hub.want(&ErrorPayload{Code: codeUnknownSession, SessionID: "s"})
		publishN(t, st, "s", 1)
		if now := stats(t, st, "s"); now.Epoch <= old.Epoch {
			t.Errorf("epoch %q after %q", now.Epoch, old.Epoch)
		}
		hub.want(agentBatch("s", 1, 1, 1))
		hub.send(&AckBatchPayload{SessionID: "s", Epoch: old.Epoch, UpToSeq: 3})
		if now := stats(t, st, "s"); now.Acked != 0 {
			t.Errorf("an ack of the old life counts: %+v", now)
		}
		hub.wantAfter(15*time.Second, &StatusPayload{Sessions: hub.statuses("s")}, agentBatch("s", 1, 1, 1))
		hub.wantIdle()
	})
}

// TestStreamerSuperseded: a link is dead from the moment a newer one is made.
func TestStreamerSuperseded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		old := playHub(t, st)
		publishN(t, st, "s", 2)
		old.want(agentBatch("s", 1, 2, 2))
		hub := meetHub(t, st)
		if err := old.link.Handle(t.Context(), &AckBatchPayload{SessionID: "s", Epoch: stats(t, st, "s").Epoch, Link: old.id, UpToSeq: 2}); err != ErrSuperseded {
			t.Errorf("late ack: %v", err)
		}
		old.wantDead(ErrSuperseded)
		old.link.Close()
		old.wantDead(ErrSuperseded)
		hub.want(&HelloPayload{V: 1, Role: "agent"})
		hub.welcome(256)
		hub.wantStatus("s")
		if s := stats(t, st, "s"); s.Acked != 0 || s.Connected {
			t.Errorf("%+v", s)
		}
		hub.ack("s", 2)
		if s := stats(t, st, "s"); s.Acked != 2 || !s.Connected {
			t.Errorf("%+v", s)
		}
		blocked := start(func() error { _, err := hub.link.Next(t.Context()); return err })
		wantWaiting(t, blocked)
		st.Connect()
		wantReturned(t, blocked, ErrSuperseded)
	})
}

// TestStreamerHandlesNothingOnOlderLink: a payload that was on its way into a link
// when it died changes nothing but a counter (S6).
func TestStreamerHandlesNothingOnOlderLink(t *testing.T) {
	st, hub := ackedStreamer(t, nil, 3)
	publishN(t, st, "s", 1)
	al, epoch := st.link, stats(t, st, "s").Epoch
	hub.want(agentBatch("s", 4, 4, 4))
	hub.link.Close()
	for i, p := range []Payload{
		&AckBatchPayload{SessionID: "s", Epoch: epoch, Link: hub.id, UpToSeq: 4},
		&ReplayRequestPayload{SessionID: "s", RequestID: "r", Epoch: epoch},
		&ErrorPayload{SessionID: "s", Code: codeForbidden, Epoch: epoch},
		&WelcomePayload{V: version, Link: "new"},
	} {
		if err := al.handle(t.Context(), time.Now(), p); err != nil {
			t.Errorf("%s: %v", told(p), err)
		}
		if n := st.Stats().StalePayloads; n != uint64(i+1) {
			t.Errorf("%s: %d stale payloads, want %d", told(p), n, i+1)
		}
	}
	if s := stats(t, st, "s"); s.Acked != 3 || s.PendingEvents != 1 {
		t.Errorf("%+v", s)
	}
}

// TestStreamerRun: Run says hello, handles, and returns why it ended.
func TestStreamerRun(t *testing.T) {
	cut := errors.New("cut")
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		toHub, toAgent := make(chan Payload), make(chan Payload)
		broken := make(chan struct{})
		link := st.Connect()
		done := start(func() error {
			return link.Run(t.Context(), func(ctx context.Context, p Payload) error {
				select {
				case toHub <- p:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}, func(ctx context.Context) (Payload, error) {
				select {
				case p := <-toAgent:
					if p == nil {
						return nil, malformed("no frame")
					}
					return p, nil
				case <-broken:
					return nil, cut
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			})
		})
		if p := <-toHub; p.payloadType() != "hello" {
			t.Errorf("first said %s", told(p))
		}
		if err := link.Run(t.Context(), nil, nil); err != ErrBusy {
			t.Errorf("Run twice: %v", err)
		}
		toAgent <- nil // could not be decoded: answered, and the link lives
		if p, ok := (<-toHub).(*ErrorPayload); !ok || p.Code != codeMalformed {
			t.Errorf("answer: %+v", p)
		}
		toAgent <- &WelcomePayload{V: 1, Link: "l", Window: 8}
		synctest.Wait()
		publishN(t, st, "s", 1)
		if p, ok := (<-toHub).(*EventBatchPayload); !ok || p.LastSeq != 1 {
			t.Errorf("batch: %+v", p)
		}
		toAgent <- &AckBatchPayload{SessionID: "s", Epoch: stats(t, st, "s").Epoch, Link: "l", UpToSeq: 1}
		if err := st.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		close(broken)
		wantReturned(t, done, cut)
		if _, err := link.Next(t.Context()); err != ErrClosed {
			t.Errorf("Next after Run: %v", err)
		}
	})
}

// TestStreamerConcurrent: whoever publishes, numbers are 1 to n, each once (rule 1).
func TestStreamerConcurrent(t *testing.T) {
	t.Parallel()
	const publishers, each = 64, 1000
	bubble(t, func(t *testing.T) {
		st := NewStreamer(&StreamerConfig{MaxPendingEvents: 5000})
		hub := playHub(t, st)
		numbers := make([][]uint64, publishers)
		var all sync.WaitGroup
		for i := range publishers {
			all.Go(func() {
				for range each {
					seq, err := st.Publish(t.Context(), "s", Event{})
					if err != nil {
						t.Error(err)
						return
					}
					numbers[i] = append(numbers[i], seq)
				}
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		acked := start(func() error {
			next := uint64(1)
			for {
				p, err := hub.link.Next(ctx)
				if err != nil {
					return err
				}
				b, ok := p.(*EventBatchPayload)
				if !ok {
					continue
				}
				if b.FirstSeq != next {
					return fmt.Errorf("batch from %d, want %d", b.FirstSeq, next)
				}
				next = b.LastSeq + 1
				ack := &AckBatchPayload{SessionID: "s", Epoch: b.Epoch, Link: b.Link, UpToSeq: b.LastSeq}
				if err := hub.link.Handle(ctx, ack); err != nil {
					return err
				}
			}
		})
		all.Wait()
		if err := st.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		cancel()
		wantReturned(t, acked, context.Canceled)
		seen := make([]bool, publishers*each+1)
		for _, seqs := range numbers {
			if !slices.IsSorted(seqs) {
				t.Error("a publisher's numbers are out of order")
			}
			for _, seq := range seqs {
				if seq < 1 || seq > publishers*each || seen[seq] {
					t.Fatalf("number %d", seq)
				}
				seen[seq] = true
			}
		}
		if s := stats(t, st, "s"); s.Head != publishers*each || s.Acked != s.Head || s.PendingEvents+s.PendingBytes != 0 || s.Events != 1000 {
			t.Errorf("in the end: %+v", s)
		}
	})
}

// TestStreamerCopies: Publish copies its bytes, so the caller may use them again.
func TestStreamerCopies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		line, raw := []byte("1"), []byte("a")
		for i := range 5 {
			line[0], raw[0] = byte('1'+i), byte('a'+i)
			if _, err := st.Publish(t.Context(), "data", Event{Data: line}); err != nil {
				t.Fatal(err)
			}
			if _, err := st.Publish(t.Context(), "bytes", Event{Bytes: raw}); err != nil {
				t.Fatal(err)
			}
		}
		line[0], raw[0] = 'x', 'x'
		for range 2 {
			p, err := hub.next()
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			for _, ev := range p.(*EventBatchPayload).Events {
				got = append(append(got, ev.Data...), ev.Bytes...)
			}
			if s := string(got); s != "12345" && s != "abcde" {
				t.Errorf("published bytes changed: %s", s)
			}
		}
	})
}

// TestStreamerEvents: what an event may be, and how it arrives.
func TestStreamerEvents(t *testing.T) {
	at := time.Date(2025, 11, 23, 23, 0, 0, 250, time.FixedZone("", 3600))
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		now := time.Now().UTC()
		for _, test := range []struct{ ev, want Event }{
			{Event{}, Event{Time: now}},
			{Event{Data: []byte{}, Bytes: []byte{}}, Event{Time: now}},
			{Event{Data: []byte(`""`)}, Event{Data: []byte(`""`), Time: now}},
			{Event{Data: []byte(`null`)}, Event{Data: []byte(`null`), Time: now}},
			{Event{Data: []byte(" [1, \"a b\"]\n")}, Event{Data: []byte(`[1,"a b"]`), Time: now}},
			{Event{Bytes: []byte{0}}, Event{Bytes: []byte{0}, Time: now}},
			{Event{Bytes: []byte("\x1b[1m\xff\xfe")}, Event{Bytes: []byte("\x1b[1m\xff\xfe"), Time: now}},
			{Event{Time: at}, Event{Time: at.UTC()}},
			{Event{Seq: 77, End: true, Type: "t"}, Event{Type: "t", Time: now}},
			{Event{Type: strings.Repeat("x", maxID)}, Event{Type: strings.Repeat("x", maxID), Time: now}},
			{Event{Data: []byte(strings.Repeat("[", 400) + strings.Repeat("]", 400))}, Event{Data: []byte(strings.Repeat("[", 400) + strings.Repeat("]", 400)), Time: now}},
		} {
			seq, err := st.Publish(t.Context(), "s", test.ev)
			if err != nil {
				t.Errorf("Publish: %v", err)
				continue
			}
			p, err := hub.next()
			if err != nil {
				t.Fatal(err)
			}
			test.want.Seq = seq
			if diff := cmp.Diff([]Event{test.want}, p.(*EventBatchPayload).Events, sameEvents); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
	})
}

// TestStreamerInvalidEvents: what can't be told on the wire uses no number.
func TestStreamerInvalidEvents(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		st := NewStreamer(nil)
		for _, test := range []struct {
			ev  Event
			err error
		}{
			{Event{Data: []byte("1"), Bytes: []byte("1")}, ErrInvalidData},
			{Event{Data: []byte("{")}, ErrInvalidData},
			{Event{Data: []byte(" ")}, ErrInvalidData},
			{Event{Data: []byte("1 2")}, ErrInvalidData},
			{Event{Data: []byte("1}")}, ErrInvalidData},
			{Event{Data: []byte("nul")}, ErrInvalidData},
			{Event{Data: []byte("'a'")}, ErrInvalidData},
			{Event{Data: []byte("\"\xff\"")}, ErrInvalidData},
			{Event{Data: []byte("\"\n\"")}, ErrInvalidData},
			{Event{Data: []byte(strings.Repeat("[", 600) + strings.Repeat("]", 600))}, ErrInvalidData},
			{Event{Type: strings.Repeat("x", maxID+1)}, ErrInvalidData},
			{Event{Type: "a\x00"}, ErrInvalidData},
			{Event{Type: "\xff"}, ErrInvalidData},
			{Event{Time: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}, ErrInvalidData},
			{Event{Time: time.Date(-1, 12, 31, 0, 0, 0, 0, time.UTC)}, ErrInvalidData},
			{Event{Time: time.Date(0, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600))}, ErrInvalidData}, // the year before in UTC
			{Event{Data: bytes.Repeat([]byte("1"), 1<<20)}, ErrTooLarge},
			{Event{Bytes: make([]byte, 800<<10)}, ErrTooLarge}, // in base64
		} {
			if seq, err := st.Publish(t.Context(), "s", test.ev); seq != 0 || !errors.Is(err, test.err) {
				t.Errorf("Publish(%.40q, %.40q) = %d, %v, want %v", test.ev.Data, test.ev.Type, seq, err, test.err)
			}
			if _, err := st.End(t.Context(), "s", test.ev); !errors.Is(err, test.err) {
				t.Errorf("End: %v, want %v", err, test.err)
			}
		}
		publishN(t, st, "s", 1) // and is number 1
	})
}

// An agent has many sessions of which most are idle: what one takes is bounded, and
// its first events make no more than a chunk that fits them. Sizes are those of the
// allocator's classes.
func TestSessionMemory(t *testing.T) {
	if n := reflect.TypeFor[Session]().Size(); n > 96 {
		t.Errorf("a session takes %d bytes", n)
	}
	if n := reflect.TypeFor[life]().Size(); n > 160 {
		t.Errorf("its life takes %d bytes", n)
	}
	s, err := NewStreamer(nil).Session("s")
	if err != nil {
		t.Fatal(err)
	}
	if s.Stats(); s.life != &unborn {
		t.Error("a session without events has a life of its own")
	}
	for range 10 {
		if _, err := s.Publish(t.Context(), Event{Type: "line", Data: []byte(`"` + strings.Repeat("x", 62) + `"`)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.log.store.size; n > 1536 {
		t.Errorf("10 events of %d bytes take %d", s.log.bytes, n)
	}
}

// TestStreamerLastNumber: after MaxSeq nothing can be published (rule 1).
func TestStreamerLastNumber(t *testing.T) {
	st := NewStreamer(nil)
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	SetHead(s, MaxSeq-1)
	if seq, err := s.Publish(t.Context(), Event{}); seq != MaxSeq || err != nil {
		t.Errorf("Publish = %d, %v", seq, err)
	}
	if seq, err := s.Publish(t.Context(), Event{}); seq != 0 || err != ErrSeqExhausted {
		t.Errorf("Publish = %d, %v", seq, err)
	}
}

// TestPublishAllocs: a publish allocates nothing once the log has its size, whatever
// happens to what it evicts.
func TestPublishAllocs(t *testing.T) {
	for name, cfg := range map[string]StreamerConfig{
		"drop oldest":    {Overflow: DropOldest, MaxPendingEvents: 100, ReplayEvents: -1},
		"replay buffer":  {Overflow: Reject, ReplayEvents: 100},
		"trusted":        {Overflow: Reject, ReplayEvents: 100, TrustData: true},
		"common budget":  {Overflow: DropOldest, MaxTotalBytes: 64 << 10},
		"replay by size": {Overflow: Reject, ReplayBytes: 32 << 10},
	} {
		for _, ev := range []Event{
			{Type: "stdout", Data: fmt.Appendf(nil, "%q", strings.Repeat("x", 250))},
			{Type: "tty", Bytes: make([]byte, 1000)},
			{Time: time.Date(2025, 11, 23, 22, 34, 5, 120e6, time.UTC), Data: []byte(`{"line":"ok"}`)},
		} {
			st := NewStreamer(&cfg)
			s, err := st.Session("s")
			if err != nil {
				t.Fatal(err)
			}
			publish := func() {
				if _, err := s.Publish(context.Background(), ev); err != nil {
					t.Fatal(err)
				}
				if cfg.Overflow == Reject { // as an ack does
					s.free(time.Time{}, s.log.head)
				}
			}
			for range 2000 {
				publish()
			}
			if n := testing.AllocsPerRun(Fewer(1000), publish); n > 0 {
				t.Errorf("%s: %v allocations a Publish of type %q", name, n, ev.Type)
			}
		}
	}
}

// TestAckAllocs: an ack allocates nothing, and a batch of any size the same few.
func TestAckAllocs(t *testing.T) {
	st := NewStreamer(nil)
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	hub := playHub(t, st)
	ack := &AckBatchPayload{SessionID: "s", Epoch: s.Stats().Epoch, Link: hub.id}
	batch := func(events int) func() {
		return func() {
			for range events {
				if _, err := s.Publish(t.Context(), Event{Data: []byte("1")}); err != nil {
					t.Fatal(err)
				}
			}
			for p := (*EventBatchPayload)(nil); p == nil; {
				next, err := hub.link.Next(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				p, _ = next.(*EventBatchPayload)
			}
			ack.UpToSeq = s.log.head
			if err := hub.link.Handle(t.Context(), ack); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 100 {
		batch(200)()
	}
	// The payload, its events, its slots and their JSON. The race detector has pools
	// lose things.
	for _, events := range []int{1, 10, 200} {
		if n := testing.AllocsPerRun(Fewer(100), batch(events)); n > 6 && !raceEnabled {
			t.Errorf("%v allocations for a batch of %d events, published, sent and acknowledged", n, events)
		}
	}
	for i := range s.log.ring.n { // they are written again, though all was sent
		if s.log.ring.at(i).chunk.lent {
			t.Errorf("the chunk of slot %d is lent", i)
		}
	}
}
