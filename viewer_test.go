package gvstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// watching makes a viewer that watches sessions from their start, and its hub.
func watching(t *testing.T, cfg *ViewerConfig, sessions ...string) (*Viewer, *peer) {
	t.Helper()
	v := NewViewer(cfg)
	for _, id := range sessions {
		if err := v.Watch(id, Position{}); err != nil {
			t.Fatal(err)
		}
	}
	h := playHub(t, v)
	slices.Sort(sessions)
	for _, id := range sessions {
		h.want(h.watchWith(v, id, "", 0, 0, 0))
	}
	return v, h
}

// watchWith is a viewer's watch, when so many unread items and bytes wait.
func (p *peer) watchWith(v *Viewer, session, epoch string, after uint64, items, bytes int) *WatchPayload {
	w := p.watch(session, epoch, after)
	w.WindowEvents, w.WindowBytes = v.cfg.Window-items, v.cfg.WindowBytes-bytes
	return w
}

// says is what a viewer tells the hub of a session: up to where it has received, and its reader has
// read, and the room that so many unread items and bytes leave.
func (p *peer) says(v *Viewer, session, epoch string, upTo, read uint64, items, bytes int) *AckBatchPayload {
	room, bytesLeft := max(0, v.cfg.Window-items), max(0, v.cfg.WindowBytes-bytes)
	return &AckBatchPayload{
		SessionID: session, ViewerID: p.viewer, Epoch: epoch, Link: p.id, UpToSeq: upTo, ReadSeq: read,
		WindowEvents: room, WindowBytes: bytesLeft, Full: room == 0 || bytesLeft == 0,
	}
}

// lacks is says for a viewer that has found a hole.
func (p *peer) lacks(v *Viewer, session, epoch string, upTo, read uint64, items, bytes int) *AckBatchPayload {
	a := p.says(v, session, epoch, upTo, read, items, bytes)
	a.Nack = true
	return a
}

// itemSize is what the event of a one-digit number counts while it waits.
const itemSize = itemBytes + len(`out"event 1"`)

// has checks that these items are ready, and no others.
func has(t *testing.T, v *Viewer, want ...string) {
	t.Helper()
	var got []string
	for it, err := range v.Items(endedContext) {
		if err != nil {
			got = append(got, err.Error())
			continue
		}
		got = append(got, itemText(it))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("items: -want +got\n%s", diff)
	}
}

// takesOne deals with one item.
func takesOne(t *testing.T, v *Viewer, want string) {
	t.Helper()
	q, _ := v.front()
	if q == nil || itemText(q.item) != want {
		t.Fatalf("%+v, want %s", q, want)
	}
	v.done(q)
}

func isAt(t *testing.T, v *Viewer, session, epoch string, seq uint64) {
	t.Helper()
	if got, want := v.Position(session), (Position{epoch, seq}); got != want {
		t.Fatalf("%s: position %v, want %v", session, got, want)
	}
}

// Rule 3: hello is repeated until the welcome comes, and every watch follows. Another one is the
// first each time (L8).
func TestViewerHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		v.Watch("b", Position{"e1", 7})
		v.Watch("a", Position{})
		h := meetHub(t, v)
		hello := &HelloPayload{V: 1, Role: roleViewer}
		h.want(hello)
		h.wantAfter(15*time.Second, hello)
		h.welcome("x")
		h.want(h.watch("a", "", 0), h.watch("b", "e1", 7))
		h.send(&WelcomePayload{ViewerID: "other", V: 1, Link: "y"}) // unsolicited
		h.wantIdle("a welcome is obeyed while one is awaited")
		v.Watch("c", Position{})
		h.want(h.watch("c", "", 0))
		h.send(&ErrorPayload{Code: CodeStaleLink, Retryable: true}, &ErrorPayload{Code: CodeStaleLink})
		h.want(hello)
		h.wantIdle("said")
		h.welcome("x") // nothing was lost
		h.wantIdle("the watches stand")
		h.send(&ErrorPayload{Code: CodeStaleLink, Retryable: true})
		h.want(hello)
		h.welcome("z") // a new link
		h.want(h.watch("b", "e1", 7), h.watch("c", "", 0), h.watch("a", "", 0))
		h.wantIdle("said")
	})
}

func TestViewerVersion(t *testing.T) {
	for name, p := range map[string]Payload{
		"welcome": &WelcomePayload{V: 2, Link: "x"},
		"error":   &ErrorPayload{Code: CodeVersionUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			s := newPeer(t, NewViewer(nil).Connect())
			err := s.link.Handle(t.Context(), p)
			var refused *ProtocolError
			if !errors.As(err, &refused) || refused.Code != CodeVersionUnsupported {
				t.Fatalf("Handle: %v", err)
			}
			if name == "welcome" {
				s.want(&ErrorPayload{Code: CodeVersionUnsupported})
			}
			s.wantDead(refused)
		})
	}
}

func TestViewerWatch(t *testing.T) {
	v := NewViewer(&ViewerConfig{MaxWatches: 2})
	for _, test := range []struct {
		session string
		after   Position
		want    error
	}{
		{"", Position{}, ErrInvalidID},
		{strings.Repeat("x", 129), Position{}, ErrInvalidID},
		{"s", Position{"", 1}, ErrInvalidPosition},
		{"s", Position{"E", 1}, ErrInvalidPosition},
		{"s", Position{"e1", MaxSeq + 1}, ErrInvalidPosition},
		{"s", Position{"e1", MaxSeq}, nil},
		{"s", Position{}, ErrWatched},
		{"r", Position{}, nil},
		{"q", Position{}, ErrTooMany},
	} {
		if err := v.Watch(test.session, test.after); !errors.Is(err, test.want) {
			t.Errorf("%q %v: %v, want %v", test.session, test.after, err, test.want)
		}
	}
	isAt(t, v, "s", "e1", MaxSeq)
	isAt(t, v, "nobody", "", 0)
	v.Unwatch("r")
	v.Unwatch("r")
	if err := v.Watch("q", Position{}); err != nil {
		t.Error(err)
	}
	v.Close()
	if err := v.Watch("p", Position{}); err != ErrClosed {
		t.Error(err)
	}
}

// Rule 14: items come in order, whatever their kind, with sessions interleaved.
func TestViewerItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s", "r")
		h.send(h.status(stands("r", "e5", 1, 0, 0), stands("s", "e1", 1, 3, 0)))
		b := h.batch("s", "e1", 1, 2)
		b.LastSeq, b.HeadSeq, b.Gaps = 5, 5, []Gap{{3, 5, ReasonDropped}}
		h.send(b, h.batch("r", "e5", 1, 1))
		h.send(h.batch("s", "e1", 6, 7), h.last("s", "e1", 8))
		all := h.says(v, "s", "e1", 8, 0, 7, 5*itemSize+2*itemBytes)
		all.Acks = []SessionAck{h.says(v, "r", "e5", 1, 0, 1, itemSize).first()}
		h.want(all)
		isAt(t, v, "s", "", 0)
		has(t, v, "s e1 1", "s e1 2", "s e1 gap 3-5 dropped", "r e5 1", "s e1 6", "s e1 7", "s e1 8", "s e1 end")
		isAt(t, v, "s", "e1", 8)
		isAt(t, v, "r", "e5", 1)
		h.wantIdle("nothing is missing")
	})
}

// Rule 14: an item is dealt with when the loop asks for the next one.
func TestViewerPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 5, 0)), h.batch("s", "e1", 1, 5))
		for it := range v.Items(t.Context()) {
			isAt(t, v, "s", it.Position().Epoch[:min(2, int(2*(it.Event.Seq-1)))], it.Event.Seq-1)
			if it.Event.Seq == 2 {
				break
			}
		}
		isAt(t, v, "s", "e1", 1)
		func() {
			defer func() { recover() }()
			for it := range v.Items(t.Context()) {
				if it.Event.Seq == 3 {
					panic("the body failed")
				}
			}
		}()
		isAt(t, v, "s", "e1", 2)
		func() {
			for it := range v.Items(t.Context()) {
				if it.Event.Seq != 3 {
					t.Errorf("%s after the panic", itemText(it))
				}
				return
			}
		}()
		has(t, v, itemTexts("s", "e1", 3, 5)...)
		isAt(t, v, "s", "e1", 5)
	})
}

func TestViewerItemsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 5, 0)), h.batch("s", "e1", 1, 1))
		for range v.Items(t.Context()) {
			n := 0
			for it, err := range v.Items(t.Context()) {
				if n++; err != ErrBusy {
					t.Errorf("%s, %v", itemText(it), err)
				}
			}
			if n != 1 {
				t.Errorf("%d errors", n)
			}
			break
		}
		has(t, v, "s e1 1") // the second one disturbed nothing
	})
}

func TestViewerItemsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan string, 9)
		go func() {
			for it, err := range v.Items(ctx) {
				got <- fmt.Sprint(itemText(it), err)
			}
			close(got)
		}()
		synctest.Wait()
		h.send(h.status(stands("s", "e1", 1, 5, 0)), h.batch("s", "e1", 1, 1))
		if s := <-got; s != "s e1 1<nil>" {
			t.Error(s)
		}
		cancel()
		if s, more := <-got; more {
			t.Error(s)
		}
	})
}

// Rule 14: a hole is nacked once a second for the same number, as long as batches come.
func TestViewerHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 2))
		h.send(h.batch("s", "e1", 4, 5))
		nack := h.lacks(v, "s", "e1", 2, 0, 2, 2*itemSize)
		h.want(nack)
		h.send(h.batch("s", "e1", 6, 6), h.batch("s", "e1", 7, 7))
		h.wantIdle("asked already")
		pass(nackEvery - 1)
		h.send(h.batch("s", "e1", 8, 8))
		h.wantIdle("asked within the last second")
		pass(1)
		h.wantIdle("nothing comes")
		h.send(h.batch("s", "e1", 9, 9))
		h.want(nack)
		h.send(h.batch("s", "e1", 3, 7))
		h.send(h.batch("s", "e1", 9, 9))
		h.want(h.lacks(v, "s", "e1", 7, 0, 7, 7*itemSize)) // another one
		h.send(h.batch("s", "e1", 8, 9))
		has(t, v, itemTexts("s", "e1", 1, 9)...)
		h.wantAfter(viewerAckDelay, h.says(v, "s", "e1", 9, 9, 0, 0))
	})
}

// Rule 14: what was received is acknowledged 5 s after the first of it, for all watches together,
// and when the reader has made room for half a window.
func TestViewerAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, &ViewerConfig{Window: 8}, "r", "s")
		h.send(h.status(stands("r", "e5", 1, 9, 0), stands("s", "e1", 1, 9, 0)))
		h.send(h.batch("s", "e1", 1, 2))
		pass(time.Second)
		h.send(h.batch("r", "e5", 1, 1), h.batch("s", "e1", 3, 3))
		both := h.says(v, "s", "e1", 3, 0, 3, 3*itemSize)
		both.Acks = []SessionAck{h.says(v, "r", "e5", 1, 0, 1, itemSize).first()}
		h.wantAfter(viewerAckDelay-time.Second, both)
		h.wantIdle("said")
		for _, text := range []string{"s e1 1", "s e1 2", "r e5 1"} {
			takesOne(t, v, text)
			h.wantIdle("less than half a window of either was read")
		}
		h.send(h.batch("s", "e1", 4, 8))
		takesOne(t, v, "s e1 3")
		h.wantIdle("three events of s")
		takesOne(t, v, "s e1 4")
		both = h.says(v, "s", "e1", 8, 4, 4, 4*itemSize)
		both.Acks = []SessionAck{h.says(v, "r", "e5", 1, 1, 0, 0).first()}
		h.want(both)
	})
}

// A viewer of sessions in which something happens once a second sends an ack in 5 seconds, for
// all of them, and that is its sign of life.
func TestViewerFewAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "r", "s")
		h.send(h.status(stands("r", "e1", 1, 0, 0), stands("s", "e1", 1, 0, 0)))
		last := time.Now()
		acks, beats := 0, time.Now().Add(heartbeatEvery)
		for i := range uint64(600) {
			session := []string{"r", "s"}[i%2]
			h.send(h.batch(session, "e1", i/2+1, i/2+1))
			for it := range v.Items(endedContext) {
				_ = it
			}
			for range 10 {
				pass(time.Second / 10)
				for _, p := range h.drain() {
					a, ok := p.(*AckBatchPayload)
					if !ok || time.Since(last) < viewerAckDelay {
						t.Fatalf("%v after the last ack: %s", time.Since(last), payloadText(p))
					}
					last = time.Now()
					if acks++; len(a.Acks) == 1 {
						beats = time.Now().Add(heartbeatEvery)
					}
				}
			}
			if time.Now().After(beats) {
				t.Fatal("no ack named all watches for 15 s")
			}
		}
		if acks < 100 {
			t.Errorf("%d acks in 10 minutes", acks)
		}
	})
}

// Rule 13: a viewer gives a sign of life every 15 s. It repeats what credit there is, for an ack
// that said so may have been lost.
func TestViewerSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.wantAfter(heartbeatEvery, h.says(v, "s", "", 0, 0, 0, 0), h.watch("s", "", 0))
		h.send(h.status(SessionStatus{SessionID: "s"}))
		h.wantAfter(heartbeatEvery, h.says(v, "s", "", 0, 0, 0, 0))
		h.send(h.status(stands("s", "e1", 1, 2, 0)), h.batch("s", "e1", 1, 2))
		has(t, v, "s e1 1", "s e1 2")
		h.drain()
		pass(heartbeatEvery)
		h.drain()
		for range 3 {
			h.send(h.status(stands("s", "e1", 1, 2, 2)))
			h.wantAfter(heartbeatEvery, h.says(v, "s", "e1", 2, 2, 0, 0))
		}
		v.Unwatch("s")
		h.want(h.stop("s"))
		h.wantAfter(heartbeatEvery, h.status())
	})
}

// Rule 14: a hub that takes more for acknowledged than was received has another watch in mind:
// the present one was lost.
func TestViewerStatusOfAnotherWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 2))
		h.send(h.status(stands("s", "e1", 1, 9, 2)))
		h.wantIdle("right")
		for range 3 {
			h.send(h.status(stands("s", "e1", 1, 9, 4)))
		}
		again := h.watch("s", "e1", 2)
		again.WindowEvents, again.WindowBytes = defaultWindow-2, defaultWindowBytes-2*itemSize
		h.wantAfter(nackEvery, again) // after the first one
		h.send(h.status(stands("s", "e1", 1, 9, 2)), h.batch("s", "e1", 3, 9))
		has(t, v, itemTexts("s", "e1", 1, 9)...)
	})
}

// Rule 14: known numbers are skipped, and a gap that is partly known is clipped.
func TestViewerDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 3), h.batch("s", "e1", 1, 3))
		h.send(h.batch("s", "e1", 2, 4), h.lost("s", "e1", 3, 6, ReasonUnavailable), h.lost("s", "e1", 5, 6, ReasonEvicted))
		has(t, v, "s e1 1", "s e1 2", "s e1 3", "s e1 4", "s e1 gap 5-6 unavailable")
		h.want(h.says(v, "s", "e1", 6, 6, 0, 0)) // at once, since the one before may have been lost
		h.wantIdle("nothing is missing")
	})
}

// Rule 15: a new epoch is a reset.
func TestViewerReset(t *testing.T) {
	next := func(prev string, seq uint64) SessionStatus {
		s := stands("s", "e2", 1, 2, 0)
		s.PrevEpoch, s.PrevSeq = prev, seq
		return s
	}
	for _, test := range []struct {
		name   string
		status SessionStatus
		want   string
	}{
		{"with all of the old", next("e1", 3), "s e2 reset from e1 3, prev e1 3"},
		{"unknown before", next("", 0), "s e2 reset from e1 3, prev  0"},
		{"one between", next("e1-b", 9), "s e2 reset from e1 3, prev e1-b 9"},
		{"beyond the hub's own", next("e1", 2), "s e2 reset from e1 3, prev e1 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, nil, "s")
				pass(nackEvery)
				h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3))
				h.send(h.batch("s", "e2", 1, 2)) // it comes from a status, never from a batch
				h.drain()
				h.send(h.status(test.status), h.status(test.status), h.batch("s", "e2", 1, 2), h.batch("s", "e1", 4, 5))
				h.want(h.says(v, "s", "e2", 2, 0, 6, 5*itemSize+itemBytes))
				h.wantIdle("nothing is missing")
				h.send(h.status(stands("s", "e1", 1, 5, 5)))
				h.want(h.watchWith(v, "s", "e2", 2, 6, 5*itemSize+itemBytes)) // the hub continues elsewhere
				has(t, v, "s e1 1", "s e1 2", "s e1 3", test.want, "s e2 1", "s e2 2")
				isAt(t, v, "s", "e2", 2)
			})
		})
	}
}

func TestViewerPositionAfterReset(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 1), h.status(stands("s", "e2", 1, 3, 0)))
	has(t, v, "s e1 1", "s e2 reset from e1 1, prev  0")
	isAt(t, v, "s", "e2", 0)
	v = NewViewer(nil)
	v.Watch("s", Position{"e2", 0}) // and that is not a zero position
	h = playHub(t, v)
	h.want(h.watch("s", "e2", 0))
	h.send(h.status(stands("s", "e3", 1, 3, 0)))
	has(t, v, "s e3 reset from e2 0, prev  0")
}

// Rule 15: the first epoch after a zero position is not a reset, if nothing is known to be lost.
func TestViewerFirstEpoch(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(SessionStatus{SessionID: "s"})) // not known yet
	next := stands("s", "e3", 1, 2, 0)
	next.PrevEpoch, next.PrevSeq = "e2", 9
	h.send(h.status(stands("s", "e1", 1, 0, 0)), h.status(next), h.batch("s", "e3", 1, 2))
	h.send(h.status(SessionStatus{SessionID: "s"})) // the hub restarted
	h.want(h.says(v, "s", "e3", 2, 0, 2, 2*itemSize))
	h.wantIdle("nothing is missing")
	has(t, v, "s e3 1", "s e3 2")
}

// Rule 15: a viewer that was told of an epoch, and got nothing of it, learns what it missed. It may
// have been told only by the status of the epoch that follows.
func TestViewerMissesFirstEpoch(t *testing.T) {
	for name, first := range map[string]SessionStatus{
		"with numbers":        stands("s", "e1", 1, 5, 0),
		"before it had any":   stands("s", "e1", 1, 0, 0),
		"with fewer than now": stands("s", "e1", 1, 2, 0),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, nil, "s")
				pass(nackEvery)
				next := stands("s", "e2", 1, 2, 0)
				next.PrevEpoch, next.PrevSeq = "e1", 5
				h.send(h.status(first), h.status(next))
				h.want(h.watch("s", "e1", 0))
				h.send(h.status(next), h.batch("s", "e2", 1, 2))
				has(t, v, "s e2 reset from e1 0, prev e1 5", "s e2 1", "s e2 2")
			})
		})
	}
}

// Rule 15: the last events of the old epoch are requested, once.
func TestViewerAsksForOldTailOnce(t *testing.T) {
	next := stands("s", "e2", 1, 2, 0)
	next.PrevEpoch, next.PrevSeq = "e1", 5
	for name, old := range map[string]bool{"it is there": true, "it is gone": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, nil, "s")
				pass(nackEvery)
				h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3), h.status(next))
				h.want(h.watchWith(v, "s", "e1", 3, 3, 3*itemSize))
				h.send(h.batch("s", "e2", 1, 2)) // the answer will say what to make of it
				last, text := uint64(3), "s e2 reset from e1 3, prev e1 5"
				if old {
					h.send(h.status(stands("s", "e1", 1, 5, 3)), h.batch("s", "e1", 4, 5))
					last, text = 5, "s e2 reset from e1 5, prev e1 5"
				}
				h.send(h.status(next), h.batch("s", "e2", 1, 2))
				items := int(last) + 2
				h.want(h.says(v, "s", "e2", 2, 0, items+1, items*itemSize+itemBytes))
				h.wantIdle("asked once")
				has(t, v, append(itemTexts("s", "e1", 1, last), text, "s e2 1", "s e2 2")...)
			})
		})
	}
}

// Rule 16: the end is yielded once, also if its event lay in a gap. Its ack is the last word about
// the watch, unless the hub goes on.
func TestViewerEnd(t *testing.T) {
	ended := stands("s", "e1", 1, 3, 3)
	ended.Ended = true
	for name, play := range map[string]func(h *peer) string{
		"event": func(h *peer) string { h.send(h.last("s", "e1", 3)); return "s e1 3" },
		"gap": func(h *peer) string {
			h.send(h.lost("s", "e1", 3, 3, ReasonDropped))
			return "s e1 gap 3-3 dropped"
		},
		"gap before it is known": func(h *peer) string {
			h.send(h.lost("s", "e1", 3, 3, ReasonDropped))
			h.wantIdle("not told yet")
			h.send(h.status(ended))
			return "s e1 gap 3-3 dropped"
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, nil, "s")
				early := stands("s", "e1", 1, 3, 0)
				early.Ended = name != "gap before it is known"
				h.send(h.status(early), h.batch("s", "e1", 1, 2), h.status(early))
				third := play(h)
				h.send(h.status(ended), h.batch("s", "e1", 2, 2)) // before the ack is out
				bytes := 2*itemSize + 2*itemBytes
				if name == "event" {
					bytes += itemSize - itemBytes
				}
				h.want(h.says(v, "s", "e1", 3, 0, 4, bytes))
				h.wantIdle("the watch is over")
				h.send(h.last("s", "e1", 3), h.status(ended), h.status(stands("s", "e2", 1, 3, 0)))
				h.want(h.stop("s")) // to a hub that missed it
				pass(nackEvery)
				h.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "s"}, h.status(ended))
				h.want(h.stop("s"))
				has(t, v, "s e1 1", "s e1 2", third, "s e1 end")
				has(t, v)
				h = playHub(t, v)
				h.wantIdle("an ended watch is not asked for again")
				if err := v.Watch("s", Position{}); !errors.Is(err, ErrWatched) {
					t.Errorf("an ended watch is one until Unwatch: %v", err)
				}
				v.Unwatch("s")
				h.wantIdle("there is nothing to stop")
				v.Watch("s", Position{"e1", 3})
				h.want(h.watch("s", "e1", 3))
				h.send(h.status(ended))
				h.want(h.says(v, "s", "e1", 3, 3, 1, itemBytes))
				has(t, v, "s e1 end")
			})
		})
	}
}

// An end that is not acknowledged yet is taken along when the caller is done with the watch.
func TestViewerUnwatchEnded(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(stands("s", "e1", 1, 1, 0)), h.last("s", "e1", 1))
	v.Unwatch("s")
	h.want(h.stop("s"))
	h.wantIdle("said")
}

func TestViewerUnwatchDropsItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s", "r")
		h.send(h.status(stands("s", "e1", 1, 3, 0), stands("r", "e1", 1, 3, 0)))
		h.send(h.batch("s", "e1", 1, 2), h.batch("r", "e1", 1, 2), h.batch("s", "e1", 3, 3))
		for it := range v.Items(t.Context()) { // also in the loop's body
			if it.SessionID != "s" || it.Event.Seq != 1 {
				t.Error(itemText(it))
			}
			v.Unwatch("s")
			break
		}
		h.want(h.stop("s"))
		isAt(t, v, "s", "", 0)
		has(t, v, "r e1 1", "r e1 2")
		h.send(h.batch("s", "e1", 4, 4))
		h.want(h.stop("s"))
		has(t, v)
		if v.bytes != 0 {
			t.Errorf("%d bytes are counted in an empty buffer", v.bytes)
		}
	})
}

func TestViewerUnwatchInBody(t *testing.T) {
	v, h := watching(t, nil, "s", "r")
	h.send(h.status(stands("s", "e1", 1, 3, 0), stands("r", "e1", 1, 3, 0)))
	h.send(h.batch("s", "e1", 1, 2), h.batch("r", "e1", 1, 2))
	var got []string
	for it := range v.Items(endedContext) {
		got = append(got, itemText(it))
		v.Unwatch("s")
		v.Watch("s", Position{"e1", 9})
	}
	if want := []string{"s e1 1", "r e1 1", "r e1 2"}; !slices.Equal(want, got) {
		t.Errorf("items: %v", got)
	}
	isAt(t, v, "s", "e1", 9) // the item was the old watch's
}

// Rule 14: what there is no room for is dropped, and asked for when there is room.
func TestViewerFull(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  *ViewerConfig
		room int // events that fit
		half int // of which the reading is said
	}{
		"events":        {&ViewerConfig{Window: 8}, 8, 4},
		"one event":     {&ViewerConfig{Window: -1}, 1, 1},
		"bytes":         {&ViewerConfig{WindowBytes: 8 * itemSize}, 8, 4},
		"bytes, almost": {&ViewerConfig{WindowBytes: 8*itemSize - 1}, 8, 4},
		"one byte more": {&ViewerConfig{WindowBytes: 8*itemSize + 1}, 9, 5},
		"one's bytes":   {&ViewerConfig{WindowBytes: -1}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, test.cfg, "s")
				h.send(h.status(stands("s", "e1", 1, 99, 0)))
				room := uint64(test.room)
				for seq := uint64(1); seq <= room; seq++ {
					h.send(h.batch("s", "e1", seq, seq))
				}
				h.wantIdle("there was room")
				h.send(h.batch("s", "e1", room+1, room+1))
				full := h.lacks(v, "s", "e1", room, 0, test.room, test.room*itemSize)
				if full.WindowEvents > 0 && full.WindowBytes > 0 {
					t.Fatalf("%+v", full)
				}
				h.want(full)
				h.send(h.batch("s", "e1", room+1, room+1))
				h.wantIdle("that was said")
				isAt(t, v, "s", "", 0)
				for seq := 1; seq < test.half; seq++ {
					takesOne(t, v, fmt.Sprint("s e1 ", seq))
					h.wantIdle("less than half a window was read")
				}
				takesOne(t, v, fmt.Sprint("s e1 ", test.half))
				left := test.room - test.half
				h.want(h.lacks(v, "s", "e1", room, uint64(test.half), left, left*itemSize))
				h.send(h.batch("s", "e1", room+1, room+1))
				has(t, v, itemTexts("s", "e1", uint64(test.half)+1, room+1)...)
			})
		})
	}
}

// A batch for which there is any room is taken whole, also one event that is larger than that.
func TestViewerTakesBatchWhole(t *testing.T) {
	v := NewViewer(&ViewerConfig{Window: 2, WindowBytes: 500})
	v.Watch("s", Position{})
	h := playHub(t, v)
	h.drain()
	h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 1))
	b := h.batch("s", "e1", 2, 5)
	b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", 1000) + `"`)
	h.send(b, h.batch("s", "e1", 6, 6))
	h.want(h.lacks(v, "s", "e1", 5, 0, 5, 5000))
	has(t, v, itemTexts("s", "e1", 1, 5)...)
}

// Windows are given a watch: one that nobody reads leaves room for the others.
func TestViewerFullWatchAmongOthers(t *testing.T) {
	v := NewViewer(&ViewerConfig{Window: 2})
	v.Watch("r", Position{})
	v.Watch("s", Position{})
	h := playHub(t, v)
	h.drain()
	h.send(h.status(stands("r", "e1", 1, 9, 0), stands("s", "e1", 1, 9, 0)))
	h.send(h.batch("s", "e1", 1, 2), h.batch("s", "e1", 3, 3))
	h.want(h.lacks(v, "s", "e1", 2, 0, 2, 2*itemSize))
	h.send(h.batch("r", "e1", 1, 2))
	has(t, v, "s e1 1", "s e1 2", "r e1 1", "r e1 2")
}

// The end needs no room, and neither does an error.
func TestViewerEndNeedsNoRoom(t *testing.T) {
	v := NewViewer(&ViewerConfig{Window: 1})
	v.Watch("s", Position{})
	h := playHub(t, v)
	h.drain()
	h.send(h.status(stands("s", "e1", 1, 1, 0)), h.batch("s", "e1", 1, 1))
	ended := stands("s", "e1", 1, 1, 1)
	ended.Ended = true
	h.send(h.status(ended))
	h.want(h.says(v, "s", "e1", 1, 0, 2, itemSize+itemBytes))
	has(t, v, "s e1 1", "s e1 end")
}

// A reset needs room, or a hub could fill a viewer's memory with epochs. Its status is asked for
// when there is room; and that ack tells the hub what it did not know, the room in the new epoch.
func TestViewerResetNeedsRoom(t *testing.T) {
	v := NewViewer(&ViewerConfig{Window: 1})
	v.Watch("s", Position{})
	h := playHub(t, v)
	h.drain()
	h.send(h.status(stands("s", "e1", 1, 1, 0)), h.batch("s", "e1", 1, 1))
	for i := range 100 {
		h.send(h.status(stands("s", fmt.Sprintf("e2-%02d", i), 1, 2, 0)))
	}
	h.wantIdle("there is no room")
	has(t, v, "s e1 1")
	h.want(h.lacks(v, "s", "e1", 1, 1, 0, 0))
	h.send(h.status(stands("s", "e3", 1, 2, 0)))
	h.want(h.says(v, "s", "e3", 0, 0, 1, itemBytes))
	has(t, v, "s e3 reset from e1 1, prev  0")
	h.want(h.says(v, "s", "e3", 0, 0, 0, 0))
	isAt(t, v, "s", "e3", 0)
}

// A watch that is asked for while there is no room says so by the ack after it: the watch itself
// can't.
func TestViewerWatchesWhenFull(t *testing.T) {
	v := NewViewer(&ViewerConfig{Window: 2})
	v.Watch("s", Position{})
	h := playHub(t, v)
	h.drain()
	h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 2))
	h = playHub(t, v)
	watch := h.watch("s", "e1", 2)
	watch.WindowEvents, watch.WindowBytes = 1, defaultWindowBytes-2*itemSize
	h.want(watch, h.says(v, "s", "e1", 2, 0, 2, 2*itemSize))
	h.wantIdle("said")
}

// A watch is repeated until a status answers it. Batches don't: they may be those of a watch
// before.
func TestViewerWatchAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		v.Watch("s", Position{"e1", 2})
		h := playHub(t, v)
		watch := h.watch("s", "e1", 2)
		h.want(watch)
		h.send(h.batch("s", "e1", 1, 2), h.status())
		h.want(h.says(v, "s", "e1", 2, 2, 0, 0))
		h.wantAfter(timerFirst, h.says(v, "s", "e1", 2, 2, 0, 0), watch)
		h.send(h.status(stands("s", "e1", 1, 9, 2)))
		for range 10 {
			h.wantAfter(heartbeatEvery, h.says(v, "s", "e1", 2, 2, 0, 0))
			h.send(h.status())
		}
		h.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "s"})
		h.want(watch)
		h.send(&ErrorPayload{Code: CodeUnknownSession, SessionID: "s"})
		h.wantAfter(nackEvery, watch)
		has(t, v)
	})
}

// Rule 15: a batch of an epoch that is not known is no use. The status that names the epoch was
// lost: it is asked for once a second.
func TestViewerUnknownEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(SessionStatus{SessionID: "s"}))
		pass(nackEvery)
		h.send(h.batch("s", "e1", 1, 2), h.batch("s", "e1", 3, 3))
		h.want(h.lacks(v, "s", "", 0, 0, 0, 0))
		h.send(h.batch("s", "e1", 1, 2))
		h.wantIdle("asked")
		h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3))
		h.send(h.batch("s", "e2", 1, 2), h.batch("s", "e2", 3, 3))
		nack := h.lacks(v, "s", "e1", 3, 0, 3, 3*itemSize)
		h.want(nack)
		h.send(h.batch("s", "e0", 1, 2))
		h.wantIdle("an old one is no news")
		pass(nackEvery)
		h.send(h.batch("s", "e2", 4, 4))
		h.want(nack)
		h.send(h.status(stands("s", "e2", 1, 4, 0)), h.batch("s", "e2", 1, 4))
		h.want(h.says(v, "s", "e2", 4, 0, 8, 7*itemSize+itemBytes))
		has(t, v, "s e1 1", "s e1 2", "s e1 3", "s e2 reset from e1 3, prev  0", "s e2 1", "s e2 2", "s e2 3", "s e2 4")
	})
}

// Watch and Unwatch in a row tell the hub what holds last, and stops before watches: it may have
// room for a watch only after them.
func TestViewerStopsBeforeWatches(t *testing.T) {
	v := NewViewer(&ViewerConfig{MaxWatches: 2})
	v.Watch("a", Position{})
	v.Watch("b", Position{})
	h := playHub(t, v)
	h.want(h.watch("a", "", 0), h.watch("b", "", 0))
	for range 500 {
		v.Unwatch("a")
		v.Watch("c", Position{}) // it was never said
		v.Unwatch("c")
		v.Watch("a", Position{"e1", 3})
	}
	v.Unwatch("b")
	v.Watch("d", Position{})
	v.Unwatch("a")
	v.Watch("e", Position{})
	h.want(h.stop("b"), h.stop("a"), h.watch("e", "", 0), h.watch("d", "", 0))
	h.wantIdle("said")
	v.Unwatch("d")
	v.Watch("d", Position{"e1", 7}) // moves it
	h.want(h.watch("d", "e1", 7))
	v.Unwatch("d")
	v.Unwatch("e")
	h.want(h.stop("d"), h.stop("e"))
	h.wantIdle("said")
}

// A hub that sends what nobody watches is told so once a second for each session, of a bounded
// number.
func TestViewerStopsOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		for range 100 {
			h.send(h.batch("x", "e1", 1, 1), h.status(stands("x", "e1", 1, 1, 0)))
		}
		h.want(h.stop("x"))
		h.wantIdle("said")
		pass(nackEvery - 1)
		h.send(h.batch("x", "e1", 1, 1))
		h.wantIdle("within a second")
		pass(1)
		h.send(h.batch("x", "e1", 1, 1))
		h.want(h.stop("x"))
		for range 3 {
			for i := range 2 * maxOnce {
				h.send(h.batch(fmt.Sprint("x", i), "e1", 1, 1))
			}
			pass(nackEvery)
		}
		if n := len(v.link.stops); n > maxOnce {
			t.Errorf("%d stops wait", n)
		}
	})
}

// A hub that sends nothing for three periods is considered gone.
func TestViewerSilentHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		v.Watch("s", Position{})
		h := playHubTo(t, v, false)
		h.want(h.watch("s", "", 0))
		pass(maxSilence - 1)
		h.drain()
		h.send(h.status())
		pass(maxSilence - heartbeatEvery + 1)
		h.drain()
		pass(heartbeatEvery)
		synctest.Wait()
		h.wantDead(ErrSilent)
		h = playHub(t, v)
		h.want(h.watch("s", "", 0))
	})
}

// A slow loop is not a silence of the hub: the link stays.
func TestViewerSlowLoopIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(&ViewerConfig{Window: 1})
		v.Watch("s", Position{})
		near, far := tubes()
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- v.Connect().Run(ctx, near.send, near.receive) }()
		h := NewHub(nil)
		go h.ConnectViewer("tab").Run(ctx, far.send, far.receive)
		a := playAgent(t, h, "agent")
		a.feed("s", "e1", 1, 5)
		next := uint64(1)
		for it := range v.Items(ctx) {
			if it.Event == nil || it.Event.Seq != next {
				t.Fatalf("%s, want %d", itemText(it), next)
			}
			pass(2 * maxSilence)
			if next++; next > 5 || len(ended) > 0 {
				break
			}
		}
		select {
		case err := <-ended:
			t.Errorf("the link ended while the hub was speaking: %v", err)
		default:
		}
		cancel()
	})
}

// An error about a session ends its watch, and is yielded once.
func TestViewerForbidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s", "r")
		h.send(h.status(stands("s", "e1", 1, 3, 0), stands("r", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 1))
		no := &ErrorPayload{Code: CodeForbidden, SessionID: "s", Message: "not allowed"}
		h.send(no, no)
		h.wantIdle("it is over at the hub")
		h.send(h.batch("s", "e1", 2, 2), h.batch("r", "e1", 1, 1))
		h.want(h.stop("s"))
		n := 0
		for it, err := range v.Items(endedContext) {
			var refused *ProtocolError
			if errors.As(err, &refused) {
				if n++; refused.Code != CodeForbidden || refused.SessionID != "s" || refused.Message != "not allowed" {
					t.Errorf("%+v", refused)
				}
				isAt(t, v, "s", "e1", 1)
			} else if it.Event == nil || it.Event.Seq != 1 {
				t.Error(itemText(it))
			}
		}
		if n != 1 {
			t.Errorf("%d errors", n)
		}
		isAt(t, v, "s", "e1", 1)
		isAt(t, v, "r", "e1", 1)
		v.Unwatch("s")
		v.Watch("s", v.Position("s")) // it may try again
		h.want(h.watch("s", "", 0))
	})
}

// One that may be tried again, is.
func TestViewerRetryableError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(&ErrorPayload{Code: CodeOverloaded, SessionID: "s", Retryable: true})
		h.send(&ErrorPayload{Code: CodeOverloaded}, &ErrorPayload{Code: CodeOverloaded, SessionID: "other"})
		beat := h.says(v, "s", "", 0, 0, 0, 0)
		h.wantAfter(timerFirst, beat, h.watch("s", "", 0))
		h.send(h.status(SessionStatus{SessionID: "s"}))
		h.send(&ErrorPayload{Code: CodeOverloaded, SessionID: "s", Retryable: true}) // of a watch that was answered
		h.wantAfter(timerFirst, beat, h.watch("s", "", 0))
		has(t, v)
	})
}

func TestViewerIgnoresForeignFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 3, 0)))
		other := *h
		other.viewer = "other"
		elsewhere := *h
		elsewhere.id = "elsewhere"
		h.send(
			other.batch("s", "e1", 1, 3), elsewhere.batch("s", "e1", 1, 3), elsewhere.status(stands("s", "e2", 1, 3, 0)),
			other.status(stands("s", "e2", 1, 3, 0)), h.batch("s", "e0", 1, 3),
		)
		has(t, v)
		h.wantIdle("they are not for this viewer")
		h.send(h.batch("unwatched", "e1", 1, 3), h.status(stands("unwatched", "e1", 1, 3, 0)))
		h.want(h.stop("unwatched"))
		everyone := *h
		everyone.viewer = ""
		fact := h.batch("s", "e1", 2, 2)
		fact.ViewerID, fact.Link = "", ""
		if err := h.link.Handle(t.Context(), everyone.batch("s", "e1", 1, 1)); err != nil {
			t.Error(err)
		}
		if err := h.link.Handle(t.Context(), fact); err != nil {
			t.Error(err)
		}
		has(t, v, "s e1 1", "s e1 2")
		if n := v.stalePayloads.Load(); n != 7 {
			t.Errorf("%d stale frames, want 7", n)
		}
		for _, p := range []Payload{
			h.watch("s", "", 0), h.ack("s", "e1", 1), &HelloPayload{V: 1, Role: roleViewer}, request("s", "tab", "r1", "e1", 0, 1),
			answerTo(request("s", "tab", "r1", "e1", 1, 3), 2, 3, true),
		} {
			h.refused(p, &ErrorPayload{Code: CodeUnexpected})
		}
	})
}

// An error for another viewer ends nothing here.
func TestViewerIgnoresForeignError(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(stands("s", "e1", 1, 3, 0)))
	h.send(&ErrorPayload{Code: CodeForbidden, SessionID: "s", ViewerID: "other"})
	h.send(h.batch("s", "e1", 1, 1))
	has(t, v, "s e1 1")
}

// Before the welcome nothing else counts.
func TestViewerBeforeWelcome(t *testing.T) {
	v := NewViewer(nil)
	v.Watch("s", Position{})
	h := meetHub(t, v)
	h.hearsHello()
	h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3), &ErrorPayload{Code: CodeForbidden, SessionID: "s"})
	has(t, v)
	h.welcome(h.id)
	h.want(h.watch("s", "", 0))
}

// Rule 14: from a saved position, in another process, nothing is lost or repeated,
// though more had been received.
func TestViewerResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 6))
		for it := range v.Items(t.Context()) {
			if it.Event.Seq == 4 {
				break
			}
		}
		h = playHub(t, v) // the same one: from what was received
		h.want(h.watchWith(v, "s", "e1", 6, 3, 3*itemSize))
		saved := v.Position("s")
		v.Close()
		if saved != (Position{"e1", 3}) || v.Position("s") != saved {
			t.Errorf("saved %v", saved)
		}

		text, err := json.Marshal(saved)
		if err != nil || string(text) != `"e1.3"` {
			t.Errorf("%s, %v", text, err)
		}
		v = NewViewer(nil)
		v.Watch("s", saved)
		h = playHub(t, v)
		h.want(h.watch("s", "e1", 3))
		h.send(h.status(stands("s", "e1", 1, 9, 3)), h.batch("s", "e1", 4, 9))
		has(t, v, itemTexts("s", "e1", 4, 9)...)
	})
}

// Rule 3: an older link changes nothing.
func TestViewerSupersedes(t *testing.T) {
	v, old := watching(t, nil, "s")
	old.send(old.status(stands("s", "e1", 1, 3, 0)), old.batch("s", "e1", 1, 1))
	h := playHub(t, v)
	h.want(h.watchWith(v, "s", "e1", 1, 1, itemSize))
	stale := v.stalePayloads.Load()
	old.wantDead(ErrSuperseded)
	for _, p := range []Payload{old.batch("s", "e1", 2, 2), old.status(stands("s", "e2", 1, 3, 0)), &ErrorPayload{Code: CodeForbidden, SessionID: "s"}} {
		if err := old.link.Handle(t.Context(), p); err != ErrSuperseded {
			t.Errorf("Handle: %v", err)
		}
	}
	old.link.Close()
	if n := v.stalePayloads.Load(); n != stale {
		t.Error("a dead link counts")
	}
	h.send(h.batch("s", "e1", 2, 2))
	has(t, v, "s e1 1", "s e1 2")
}

func TestViewerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		done := make(chan bool)
		go func() {
			for range v.Items(t.Context()) {
				t.Error("an item")
			}
			close(done)
		}()
		synctest.Wait()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		<-done
		h.wantDead(ErrClosed)
		v.Close()
		has(t, v)
		newPeer(t, v.Connect()).wantDead(ErrClosed)
		v.Unwatch("s")
	})
}

// Close does not wait for the body of a loop.
func TestViewerCloseInBody(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3))
	n := 0
	for range v.Items(t.Context()) {
		n++
		v.Close()
	}
	if n != 1 {
		t.Errorf("%d items", n)
	}
	isAt(t, v, "s", "e1", 1)
}

// A payload that was on its way into a link when the next one was made changes
// nothing (rule 3).
func TestViewerHandlesNothingOnOlderLink(t *testing.T) {
	v := NewViewer(nil)
	if err := v.Watch("s", Position{}); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	old := v.connect(now)
	v.connect(now)
	if err := old.handle(t.Context(), now, &WelcomePayload{V: 1, Link: "old"}); err != ErrSuperseded {
		t.Errorf("the older link's machine: %v", err)
	}
	if old.id != "" || v.Stats().Connected {
		t.Error("it was welcomed")
	}
}

// A watch that ended while its link was about to send it is not sent.
func TestViewerUnwatchedIsNotAskedFor(t *testing.T) {
	v, h := watching(t, nil, "s")
	sub := v.watches["s"].subscription
	h.send(h.status(stands("s", "e1", 1, 5, 5)))
	if !sub.want {
		t.Fatal("nothing is to be asked")
	}
	v.Unwatch("s")
	if p := sub.next(time.Now().Add(time.Hour)); p != nil {
		t.Errorf("got %s", payloadText(p))
	}
	h.want(h.stop("s"))
	h.wantIdle("the watch is over")
}

// A link that dies leaves its watches to the next one, and takes none from that one.
func TestViewerLinkLeavesItsWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, _ := watching(t, nil, "s")
		old, w := v.link, v.watches["s"]
		old.Close()
		if w.subscription != nil {
			t.Error("a watch stays on a link that is dead")
		}
		h := playHub(t, v)
		h.want(h.watch("s", "", 0))
		old.detach(time.Now()) // late
		h.send(h.status(stands("s", "e1", 1, 2, 0)), h.batch("s", "e1", 1, 2))
		has(t, v, "s e1 1", "s e1 2")
		if !v.Stats().Connected {
			t.Error("the newer link is not the Viewer's")
		}
	})
}

// Rule 14: a gap that is partly known, even if only its first number is, is accepted
// from there on.
func TestViewerRestOfGap(t *testing.T) {
	for first := uint64(1); first <= 4; first++ {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 5, 0)), h.batch("s", "e1", 1, 3), h.lost("s", "e1", first, 5, ReasonDropped))
		has(t, v, append(itemTexts("s", "e1", 1, 3), "s e1 gap 4-5 dropped")...)
		isAt(t, v, "s", "e1", 5)
	}
}

// The size that an item counts: a little, plus all of its event's text and bytes.
func TestViewerItemSize(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(stands("s", "e1", 1, 3, 0)))
	b := h.batch("s", "e1", 1, 2)
	b.Events[0] = Event{Seq: 1, Type: "four", Data: json.RawMessage(`"seven"`)}
	b.Events[1] = Event{Seq: 2, Type: "tty", Bytes: make([]byte, 1000)}
	h.send(b, h.lost("s", "e1", 3, 3, ReasonDropped))
	if got, want := v.Stats().Bytes, 3*itemBytes+4+7+3+1000; got != want {
		t.Errorf("the items count %d bytes, want %d", got, want)
	}
	has(t, v, "s e1 1", "s e1 2", "s e1 gap 3-3 dropped")
	if n := v.Stats().Bytes; n != 0 {
		t.Errorf("%d bytes of no items", n)
	}
}

func TestViewerStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		want := ViewerStats{}
		is := func(when string) {
			t.Helper()
			if diff := cmp.Diff(want, v.Stats()); diff != "" {
				t.Fatalf("%s: -want +got\n%s", when, diff)
			}
		}
		is("new")
		v.Watch("r", Position{})
		v.Watch("s", Position{})
		want.Watches = 2
		is("watching")
		h := meetHub(t, v)
		h.hearsHello()
		is("not welcomed")
		h.welcome("l1")
		h.want(h.watch("r", "", 0), h.watch("s", "", 0))
		want.Connected = true
		is("welcomed")
		h.send(h.status(stands("r", "e1", 1, 0, 0), stands("s", "e1", 1, 3, 0)))
		is("told where they stand")
		h.send(h.batch("s", "e1", 1, 2), h.lost("s", "e1", 3, 3, ReasonEvicted))
		want.Items, want.Bytes = 3, 3*itemBytes+2*len(`out"event 1"`)
		is("received")
		h.send(h.batch("s", "e1", 1, 2))
		is("received twice")
		h.send(h.batch("s", "e0", 4, 4), &WelcomePayload{V: 1, Link: "l2"})
		want.StalePayloads = 2
		is("of others")
		h.refused(h.ack("s", "e1", 1), &ErrorPayload{Code: CodeUnexpected})
		want.RefusedPayloads = 1
		is("refused")
		for range v.Items(endedContext) {
			break
		}
		is("not dealt with")
		n := 0
		for range v.Items(endedContext) {
			if n++; n == 2 {
				break
			}
		}
		want.Items, want.Bytes = 2, 2*itemBytes+len(`out"event 1"`)
		is("one is dealt with")
		h.send(h.last("s", "e1", 4), &ErrorPayload{Code: CodeForbidden, SessionID: "r"})
		want.Items, want.Bytes = 5, 5*itemBytes+2*len(`out"event 1"`)
		is("both have ended")
		v.Unwatch("s")
		want.Watches, want.Items, want.Bytes = 1, 1, itemBytes
		is("unwatched")
		h.link.Close()
		want.Connected = false
		is("disconnected")
		v.Close()
		is("closed")
	})
}

// A malformed event of a hub ends the watch that it is for, with the error, after the items
// that came before it. It ends no other: not one that has gone past that number, nor one in
// another epoch, nor one that is over.
func TestViewerUnreadableEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		for _, id := range []string{"bad", "past", "later"} {
			v.Watch(id, Position{})
		}
		h := playHub(t, v)
		h.drain()
		h.send(h.status(stands("bad", "e1", 1, 3, 1), stands("past", "e1", 1, 3, 3), stands("later", "e2", 1, 1, 0)))
		h.send(h.batch("bad", "e1", 1, 1), h.batch("past", "e1", 1, 3))
		h.drain()
		for _, id := range []string{"bad", "past", "later", "unknown", "bad"} {
			p := h.batch(id, "e1", 2, 3)
			p.Events[0].Type = "a\n"
			h.refused(p, &ErrorPayload{Code: CodeEventRejected, SessionID: id, Epoch: "e1", Seq: 2})
			h.drain()
		}
		h.send(h.batch("later", "e2", 1, 1))
		var got []string
		for it, err := range v.Items(endedContext) {
			if err != nil {
				got = append(got, err.Error())
			} else {
				got = append(got, it.SessionID+" "+it.Position().String())
			}
		}
		want := []string{"bad e1.1", "past e1.1", "past e1.2", "past e1.3", `gvstream: event_rejected session="bad" epoch="e1" seq=2: ` +
			"event 2: gvstream: invalid event: type: control character U+000A at byte 1", "later e2.1"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// A status that comes twice does not give up the tail of the old epoch, before that was asked for.
func TestViewerDoubledStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		next := stands("s", "e2", 1, 2, 0)
		next.PrevEpoch, next.PrevSeq = "e1", 5
		h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3)) // 4 and 5 are lost
		h.send(h.status(next), h.status(next))                                 // doubled by the transport
		pass(nackEvery)
		h.want(h.watchWith(v, "s", "e1", 3, 3, 3*itemSize))
		h.send(h.status(stands("s", "e1", 1, 5, 3)), h.batch("s", "e1", 4, 5), h.status(next), h.batch("s", "e2", 1, 2))
		has(t, v, append(itemTexts("s", "e1", 1, 5), "s e2 reset from e1 5, prev e1 5", "s e2 1", "s e2 2")...)
	})
}

// The refusal of a watch that was given up does not end the next one, which was not said yet.
func TestViewerOldError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(nil)
		v.Watch("s", Position{"e9", 7})
		h := playHub(t, v)
		h.want(h.watch("s", "e9", 7))
		v.Unwatch("s")
		v.Watch("s", Position{})
		h.send(&ErrorPayload{Code: CodeReplayAhead, SessionID: "s", Epoch: "e1", Seq: 3}) // was on its way
		h.want(h.watch("s", "", 0))
		h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3))
		has(t, v, itemTexts("s", "e1", 1, 3)...)
	})
}
