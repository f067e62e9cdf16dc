package gvstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is sent in place of a payload that is too large covers the same numbers, and each
// part is smaller.
func TestDivide(t *testing.T) {
	seqs := func(seqs ...uint64) (events []Event) {
		for _, seq := range seqs {
			events = append(events, Event{Seq: seq, Type: "out"})
		}
		return events
	}
	batch := func(from, to uint64, events []Event, gaps ...Gap) *EventBatchPayload {
		return &EventBatchPayload{SessionID: "s", ViewerID: "v", Epoch: "e", Link: "l", FirstSeq: from, LastSeq: to, HeadSeq: 9, Events: events, Gaps: gaps}
	}
	replay := func(from, to uint64, done bool, events []Event, gaps ...Gap) *ReplayBatchPayload {
		return &ReplayBatchPayload{SessionID: "s", ViewerID: "v", RequestID: "r", Epoch: "e", FirstSeq: from, LastSeq: to, UntilSeq: 9, AvailableFrom: 1, Done: done, Events: events, Gaps: gaps}
	}
	gap := func(from, to uint64) Gap { return Gap{from, to, ReasonEvicted} }
	lost := func(seq uint64) Gap { return Gap{seq, seq, ReasonRejected} }
	for _, c := range []struct {
		name  string
		of    Payload
		parts []Payload
		loses bool
	}{
		{"two events", batch(3, 4, seqs(3, 4)), []Payload{batch(3, 3, seqs(3)), batch(4, 4, seqs(4))}, false},
		{"three events", batch(3, 5, seqs(3, 4, 5)), []Payload{batch(3, 3, seqs(3)), batch(4, 5, seqs(4, 5))}, false},
		{"an event and a gap", batch(3, 5, seqs(3), gap(4, 5)), []Payload{batch(3, 3, seqs(3)), batch(4, 5, nil, gap(4, 5))}, false},
		{"a gap and an event", batch(3, 5, seqs(5), gap(3, 4)), []Payload{batch(3, 4, nil, gap(3, 4)), batch(5, 5, seqs(5))}, false},
		{"gaps around", batch(1, 9, seqs(3, 4), gap(1, 2), gap(5, 9)), []Payload{batch(1, 3, seqs(3), gap(1, 2)), batch(4, 9, seqs(4), gap(5, 9))}, false},
		{"gaps alone", batch(1, 5, nil, gap(1, 2), gap(3, 5)), []Payload{batch(1, 2, nil, gap(1, 2)), batch(3, 5, nil, gap(3, 5))}, false},
		{"one event", batch(3, 3, seqs(3)), []Payload{batch(3, 3, nil, lost(3))}, true},
		{"one gap", batch(3, 5, nil, gap(3, 5)), nil, false},
		{"replayed events", replay(3, 4, true, seqs(3, 4)), []Payload{replay(3, 3, false, seqs(3)), replay(4, 4, true, seqs(4))}, false},
		{"one replayed event", replay(3, 3, true, seqs(3)), []Payload{replay(3, 3, true, nil, lost(3))}, false},
		{"an empty answer", replay(3, 2, true, nil), nil, false},
		{"a status", &StatusPayload{Link: "l", Sessions: []SessionStatus{{SessionID: "a"}, {SessionID: "b"}, {SessionID: "c"}}}, []Payload{
			&StatusPayload{Link: "l", More: true, Sessions: []SessionStatus{{SessionID: "a"}}},
			&StatusPayload{Link: "l", Sessions: []SessionStatus{{SessionID: "b"}, {SessionID: "c"}}},
		}, false},
		{"a status of one", &StatusPayload{Link: "l", Sessions: []SessionStatus{{SessionID: "a"}}}, nil, false},
		{"another", &HelloPayload{V: 1}, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, _ := Marshal(c.of)
			parts, loss := divide(c.of)
			if diff := cmp.Diff(c.parts, parts, samePayload); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if (loss != nil) != c.loses {
				t.Errorf("lost: %+v", loss)
			}
			for _, p := range parts {
				if err := p.check(); err != nil && c.of.check() == nil {
					t.Errorf("%s: %v", payloadText(p), err)
				}
			}
			if after, _ := Marshal(c.of); string(after) != string(before) {
				t.Errorf("it was changed to %s", after)
			}
		})
	}
}

// narrow is a transport that carries at most so many bytes a payload.
func narrow(limit int, send SendFunc) SendFunc {
	return func(ctx context.Context, p Payload) error {
		if line, err := Marshal(p); err != nil || len(line) > limit {
			return errors.Join(err, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(line)))
		}
		return send(ctx, p)
	}
}

// On a transport that carries small payloads alone everything arrives but what is too large by
// itself, on each leg, live and replayed, and whether links are run or pushed. Nothing else
// notices, and no link ends.
func TestNarrowTransport(t *testing.T) {
	const limit, n, large = 900, 60, 20
	for name, serve := range map[string]func(ctx context.Context, l *Link, end tube) error{
		"run": func(ctx context.Context, l *Link, end tube) error {
			return l.Run(ctx, narrow(limit, end.send), end.receive)
		},
		"pushed": func(ctx context.Context, l *Link, end tube) error {
			l.Push(ctx, narrow(limit, end.send))
			for {
				p, err := end.receive(ctx)
				if err != nil {
					return err
				}
				if l.Handle(ctx, p); l.Err() != nil {
					return l.Err()
				}
			}
		},
	} {
		for _, trust := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", trusted ", trust), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					st := NewStreamer(&StreamerConfig{TrustData: trust})
					h := NewHub(&HubConfig{LogEvents: 10})
					var links []*Link
					connect := func(near, far *Link) {
						a, b := tubes()
						links = append(links, near, far)
						go serve(ctx, near, a)
						go serve(ctx, far, b)
					}
					viewer := func(id string) *Viewer {
						v := NewViewer(&ViewerConfig{Window: 1000})
						v.Watch("s", Position{})
						connect(v.Connect(), h.ConnectViewer(id))
						return v
					}
					early := []*Viewer{viewer("v0"), viewer("v1"), viewer("v2")} // a cohort
					for i := range uint64(n) {
						text := "x"
						if i%large == large-1 {
							text = strings.Repeat("x", limit)
						}
						for _, id := range []string{"s", fmt.Sprint("other", i)} { // as many as a status has no room for
							if _, err := st.Publish(t.Context(), id, Event{Data: []byte(`"` + text + `"`)}); err != nil {
								t.Fatal(err)
							}
						}
					}
					connect(st.Connect(), h.ConnectAgent("a"))
					pass(time.Minute)
					late := viewer("late") // which the agent replays to
					pass(time.Minute)
					for i, v := range append(early, late) {
						seq := uint64(0)
						for it, err := range v.Items(endedContext) {
							if seq++; err != nil || it.Seq != seq || (it.Gap != nil) != (seq%large == 0) {
								t.Fatalf("viewer %d: %s, %v, want %d", i, itemText(it), err, seq)
							}
						}
						if seq != n {
							t.Errorf("viewer %d: up to %d of %d", i, seq, n)
						}
					}
					if stats := st.Stats(); stats.PendingEvents > 0 {
						t.Errorf("pending: %+v", stats)
					}
					if s := stats(t, st, "s"); s.Lost != n/large {
						t.Errorf("%d are lost, want %d", s.Lost, n/large)
					}
					for i, l := range links {
						if err := l.Err(); err != nil {
							t.Errorf("link %d: %v", i, err)
						}
					}
				})
			})
		}
	}
}

// What one viewer's transport can't carry another's may: the gap names the viewer and its link,
// and the others are given the event.
func TestUncarriedIsPrivate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 2)
		narrow, wide := playViewer(t, h, "narrow"), playViewer(t, h, "wide")
		for _, v := range []*peer{narrow, wide} {
			v.send(v.watch("s", "e1", 1))
			v.want(v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 2, AckSeq: 1}))
		}
		p, err := narrow.link.Next(endedContext)
		if err != nil {
			t.Fatal(err)
		}
		narrow.link.carryLess(p)
		narrow.want(narrow.private(narrow.lost("s", "e1", 2, 2, ReasonRejected)))
		wide.want(wide.batch("s", "e1", 2, 2))
	})
}

// An end that one viewer's transport can't carry is said by a status at once. The viewer heard of it
// by the next sign of life, up to 15 s later.
func TestUncarriedEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHub(nil)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 1)
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "e1", 1))
		v.drain()
		a.send(a.last("s", "e1", 2))
		p, err := v.link.Next(endedContext)
		if err != nil {
			t.Fatal(err)
		}
		v.link.carryLess(p)
		v.want(v.private(v.lost("s", "e1", 2, 2, ReasonRejected)),
			v.status(SessionStatus{SessionID: "s", Epoch: "e1", FirstSeq: 1, HeadSeq: 2, AckSeq: 2, Ended: true}))
	})
}

// An event that can't be carried is lost to the session only where it still counts: not for
// one that was acknowledged, forgotten or renewed, or is on another link. The end that lies in
// such a gap is told by a status.
func TestStreamerLosesUncarried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStreamer(nil)
		hub := playHub(t, st)
		publishN(t, st, "s", 3)
		hub.want(agentBatch("s", 1, 3, 3))
		hub.acks("s", 1)
		epoch := st.lookup("s").epoch
		sl := hub.link.endpoint.(*streamerLink)
		for seq, lost := range map[uint64]uint64{1: 0, 4: 0} {
			if sl.lose("s", epoch, seq); stats(t, st, "s").Lost != lost {
				t.Errorf("%d: %+v", seq, stats(t, st, "s"))
			}
		}
		sl.lose("unknown", epoch, 2)
		sl.lose("s", "another", 2)
		if s := stats(t, st, "s"); s.Lost != 0 {
			t.Errorf("of another session or epoch: %+v", s)
		}
		sl.lose("s", epoch, 2)
		sl.lose("s", epoch, 2)
		if s := stats(t, st, "s"); s.Lost != 1 || s.PendingEvents != 1 {
			t.Errorf("%+v", s)
		}
		hub.wantIdle("the gap was sent in the event's place")
		if _, err := st.End(t.Context(), "s", Event{}); err != nil {
			t.Fatal(err)
		}
		hub.drain()
		sl.lose("s", epoch, 4)
		hub.wantStatus("s")
		playHub(t, st)
		sl.lose("s", epoch, 3)
		if s := stats(t, st, "s"); s.Lost != 2 {
			t.Errorf("by an older link: %+v", s)
		}
	})
}

// An ack of all watches that is too large for the transport is sent in parts. It is all that a quiet
// viewer says: dropped each time, it made the hub end the link for silence.
func TestAckTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, v := NewHub(nil), NewViewer(nil)
		for i := range 100 {
			v.Watch(fmt.Sprintf("pipeline/0123456789abcdef/build-%03d", i), Position{})
		}
		up, down := v.Connect(), h.ConnectViewer("tab")
		limited := func(to *Link) SendFunc {
			return func(ctx context.Context, p Payload) error {
				if line, _ := Marshal(p); len(line) > 8<<10 {
					return ErrTooLarge
				}
				to.Handle(ctx, p)
				return nil
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		up.Push(ctx, limited(down))
		down.Push(ctx, limited(up))
		pass(2 * time.Minute)
		if err := down.Err(); err != nil {
			t.Error(err)
		}
	})
}
