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
		h.want(h.watch(id, "", 0))
	}
	return v, h
}

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

// takesOne deals with one item, and leaves any item that takes its place: a payload
// that waits for room may be quicker than a loop that ends.
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

// Rule 3: hello is repeated until the welcome comes, and every watch follows.
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
		h.want(h.watch("a", "", 0), h.watch("b", "e1", 7), h.watch("c", "", 0))
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
		h.send(&ReplayBatchPayload{
			SessionID: "s", ViewerID: "tab", RequestID: "r1", Epoch: "e1", FirstSeq: 6, LastSeq: 7,
			UntilSeq: 7, AvailableFrom: 1, Events: numbered(6, 7), Done: true,
		})
		h.send(h.last("s", "e1", 8))
		h.want(h.stop("s"))
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

// Rule 14: a hole causes one watch until something arrives or the timer fires.
func TestViewerHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 2))
		h.send(h.batch("s", "e1", 4, 5))
		h.want(h.watch("s", "e1", 2))
		h.send(h.batch("s", "e1", 6, 6), h.batch("s", "e1", 7, 7))
		h.wantIdle("asked already")
		h.wantAfter(timerFirst, h.watch("s", "e1", 2))
		h.send(h.status()) // the hub is there
		h.wantAfter(2*timerFirst, h.watch("s", "e1", 2))
		h.send(h.status(stands("s", "e1", 1, 9, 2)), h.batch("s", "e1", 3, 7))
		has(t, v, itemTexts("s", "e1", 1, 7)...)
		h.wantIdle("answered")
		h.send(h.batch("s", "e1", 9, 9))
		h.want(h.watch("s", "e1", 7))
		h.send(h.batch("s", "e1", 8, 9))
		has(t, v, "s e1 8", "s e1 9")
		pass(29 * time.Second)
		h.wantIdle("answered")
	})
}

// Rule 14: so does a status that says that more was sent than has arrived.
func TestViewerStatusBeyondReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 9, 0)), h.batch("s", "e1", 1, 2))
		h.send(h.status(stands("s", "e1", 1, 9, 2)))
		h.wantIdle("what is not handed out yet, is not lost")
		h.send(h.status(stands("s", "e1", 1, 9, 4)))
		h.want(h.watch("s", "e1", 2))
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
			v, h := watching(t, nil, "s")
			h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3))
			h.send(h.batch("s", "e2", 1, 2)) // it comes from a status, never from a batch
			h.send(h.status(test.status), h.status(test.status), h.batch("s", "e2", 1, 2), h.batch("s", "e1", 4, 5))
			h.wantIdle("nothing is missing")
			h.send(h.status(stands("s", "e1", 1, 5, 5)))
			h.want(h.watch("s", "e2", 2)) // the hub continues elsewhere
			has(t, v, "s e1 1", "s e1 2", "s e1 3", test.want, "s e2 1", "s e2 2")
			isAt(t, v, "s", "e2", 2)
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

// Rule 15: the first epoch after a zero position is not a reset.
func TestViewerFirstEpoch(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(SessionStatus{SessionID: "s"})) // not known yet
	next := stands("s", "e2", 1, 2, 0)
	next.PrevEpoch, next.PrevSeq = "e1", 9
	h.send(h.status(stands("s", "e1", 1, 0, 0)), h.status(next), h.batch("s", "e2", 1, 2))
	h.send(h.status(SessionStatus{SessionID: "s"})) // the hub restarted
	h.wantIdle("nothing is missing")
	has(t, v, "s e2 1", "s e2 2")
}

// Rule 15: the last events of the old epoch are requested, once.
func TestViewerAsksForOldTailOnce(t *testing.T) {
	next := stands("s", "e2", 1, 2, 0)
	next.PrevEpoch, next.PrevSeq = "e1", 5
	t.Run("it is there", func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3), h.status(next))
		h.want(h.watch("s", "e1", 3))
		h.send(h.status(stands("s", "e1", 1, 5, 3)), h.batch("s", "e1", 4, 5), h.status(next), h.batch("s", "e2", 1, 2))
		has(t, v, append(itemTexts("s", "e1", 1, 5), "s e2 reset from e1 5, prev e1 5", "s e2 1", "s e2 2")...)
	})
	t.Run("it is gone", func(t *testing.T) {
		v, h := watching(t, nil, "s")
		h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3), h.status(next))
		h.want(h.watch("s", "e1", 3))
		h.send(h.status(next), h.batch("s", "e2", 1, 2))
		h.wantIdle("asked once")
		has(t, v, append(itemTexts("s", "e1", 1, 3), "s e2 reset from e1 3, prev e1 5", "s e2 1", "s e2 2")...)
	})
}

// Rule 16: the end is yielded once, also if its event lay in a gap.
func TestViewerEnd(t *testing.T) {
	ended := stands("s", "e1", 1, 3, 3)
	ended.Ended = true
	for name, play := range map[string]func(h *peer) string{
		"event": func(h *peer) string { h.send(h.last("s", "e1", 3)); return "s e1 3" },
		"gap": func(h *peer) string {
			h.send(h.lost("s", "e1", 3, 3, ReasonDropped))
			h.wantIdle("not told yet")
			h.send(h.status(ended))
			return "s e1 gap 3-3 dropped"
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, h := watching(t, nil, "s")
			early := stands("s", "e1", 1, 3, 0)
			early.Ended = true
			h.send(h.status(early), h.batch("s", "e1", 1, 2), h.status(early))
			third := play(h)
			h.want(h.stop("s"))
			h.send(h.last("s", "e1", 3), h.status(ended), h.status(stands("s", "e2", 1, 3, 0)))
			h.want(h.stop("s"), h.stop("s"), h.stop("s")) // again, to a hub that missed it
			has(t, v, "s e1 1", "s e1 2", third, "s e1 end")
			has(t, v)
			h = playHub(t, v)
			h.wantIdle("an ended watch is not asked for again")
			if err := v.Watch("s", Position{}); !errors.Is(err, ErrWatched) {
				t.Errorf("an ended watch is one until Unwatch: %v", err)
			}
			v.Unwatch("s")
			v.Watch("s", Position{"e1", 3})
			h.want(h.watch("s", "e1", 3))
			h.send(h.status(ended))
			has(t, v, "s e1 end")
		})
	}
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

// Rule 14: when the buffer is full, Handle waits.
func TestViewerBufferFull(t *testing.T) {
	for name, test := range map[string]struct {
		cfg  *ViewerConfig
		room int
	}{
		"items":         {&ViewerConfig{BufferItems: 4}, 4},
		"one item":      {&ViewerConfig{BufferItems: -1}, 1},
		"default":       {nil, 256},
		"bytes":         {&ViewerConfig{BufferBytes: 3 * (itemBytes + len("out") + len(`"event 1"`))}, 3},
		"bytes, almost": {&ViewerConfig{BufferBytes: 3*(itemBytes+len("out")+len(`"event 1"`)) - 1}, 2},
		"one's bytes":   {&ViewerConfig{BufferBytes: -1}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, test.cfg, "s")
				h.send(h.status(stands("s", "e1", 1, 400, 0)))
				for from := 1; from <= test.room; from += 50 {
					h.send(h.batch("s", "e1", uint64(from), uint64(min(from+49, test.room))))
				}
				room := uint64(test.room)
				done := h.handling(h.batch("s", "e1", room+1, room+2))
				select {
				case err := <-done:
					t.Fatalf("Handle did not wait: %v", err)
				default:
				}
				isAt(t, v, "s", "", 0) // nothing that is called meanwhile waits
				for range v.Items(t.Context()) {
					synctest.Wait()
					if len(v.queue) != test.room {
						t.Errorf("%d items in the buffer", len(v.queue))
					}
					break // not dealt with: no room
				}
				var got []string
				for it := range v.Items(t.Context()) {
					if got = append(got, itemText(it)); len(got) == test.room+2 {
						break
					}
				}
				wantReturned(t, done, nil)
				if diff := cmp.Diff(itemTexts("s", "e1", 1, room+2), got); diff != "" {
					t.Errorf("items: -want +got\n%s", diff)
				}
			})
		})
	}
}

// One larger item is accepted, but only alone.
func TestViewerBufferLargeItem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, &ViewerConfig{BufferBytes: 500}, "s")
		h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 1))
		b := h.batch("s", "e1", 2, 3)
		b.Events[0].Data = json.RawMessage(`"` + strings.Repeat("x", 1000) + `"`)
		done := h.handling(b)
		takesOne(t, v, "s e1 1")
		synctest.Wait()
		if len(v.queue) != 1 {
			t.Errorf("%d items beside the large one", len(v.queue)-1)
		}
		takesOne(t, v, "s e1 2")
		wantReturned(t, done, nil)
		has(t, v, "s e1 3")
	})
}

// Rule 14: when ctx ends the wait, the rest counts as lost, and is sent again.
func TestViewerBufferFullCtxEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, &ViewerConfig{BufferItems: 2}, "s")
		h.send(h.status(stands("s", "e1", 1, 5, 0)))
		errWhy := errors.New("enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errWhy)
		defer cancel()
		if err := h.link.Handle(ctx, h.batch("s", "e1", 1, 3)); err != errWhy {
			t.Errorf("Handle: %v", err)
		}
		has(t, v, "s e1 1", "s e1 2")
		h.send(h.batch("s", "e1", 4, 5))
		h.want(h.watch("s", "e1", 2))
		h.send(h.batch("s", "e1", 3, 4))
		has(t, v, "s e1 3", "s e1 4")
	})
}

// An end whose wait was ended comes with the next status.
func TestViewerEndBufferFullCtxEnds(t *testing.T) {
	v, h := watching(t, &ViewerConfig{BufferItems: 1}, "s")
	h.send(h.status(stands("s", "e1", 1, 1, 0)))
	if err := h.link.Handle(endedContext, h.last("s", "e1", 1)); err == nil {
		t.Error("there was room")
	}
	has(t, v, "s e1 1")
	ended := stands("s", "e1", 1, 1, 1)
	ended.Ended = true
	h.send(h.status(ended))
	has(t, v, "s e1 end")
}

// A reset whose wait was ended comes with the next status, and nothing of the new
// epoch before it.
func TestViewerResetBufferFullCtxEnds(t *testing.T) {
	v, h := watching(t, &ViewerConfig{BufferItems: 1}, "s")
	h.send(h.status(stands("s", "e1", 1, 1, 0)), h.batch("s", "e1", 1, 1))
	if err := h.link.Handle(endedContext, h.status(stands("s", "e2", 1, 2, 0))); err == nil {
		t.Error("there was room")
	}
	h.send(h.batch("s", "e2", 1, 2))
	has(t, v, "s e1 1")
	h.send(h.status(stands("s", "e2", 1, 2, 0)))
	has(t, v, "s e2 reset from e1 1, prev  0")
	isAt(t, v, "s", "e2", 0)
}

// A payload stops waiting for room when the link, the watch or the Viewer ends.
func TestViewerBufferFullWaitEnds(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(v *Viewer, l *Link)
		want error
		left []string
	}{
		"superseded": {func(v *Viewer, _ *Link) { v.Connect() }, ErrSuperseded, []string{"s e1 1"}},
		"closed":     {func(_ *Viewer, l *Link) { l.Close() }, ErrSuperseded, []string{"s e1 1"}},
		"viewer":     {func(v *Viewer, _ *Link) { v.Close() }, ErrClosed, nil},
		"unwatched":  {func(v *Viewer, _ *Link) { v.Unwatch("s") }, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v, h := watching(t, &ViewerConfig{BufferItems: 1}, "s")
				h.send(h.status(stands("s", "e1", 1, 5, 0)))
				done := h.handling(h.batch("s", "e1", 1, 3))
				test.do(v, h.link)
				err := <-done
				if name == "closed" && errors.Is(err, ErrClosed) {
					err = ErrSuperseded // either says that the link is over
				}
				if !errors.Is(err, test.want) {
					t.Errorf("Handle: %v, want %v", err, test.want)
				}
				has(t, v, test.left...)
			})
		})
	}
}

// TestViewerHandleClosed: a Handle that waits for room says why it can't continue.
func TestViewerHandleClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h := watching(t, &ViewerConfig{BufferItems: 1}, "s")
		h.send(h.status(stands("s", "e1", 1, 3, 0)))
		errc := h.handling(h.batch("s", "e1", 1, 3))
		h.link.Close()
		if err := <-errc; err != ErrClosed {
			t.Errorf("Handle: %v, want ErrClosed", err)
		}
	})
}

// Rule 13: the watch of a session of which nothing is heard for two periods is
// repeated.
func TestViewerQuietSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, nil, "s", "r")
		known := stands("s", "e1", 1, 2, 0)
		h.send(h.status(SessionStatus{SessionID: "r"}, known), h.batch("s", "e1", 1, 2))
		known.AckSeq = 2
		for range 2 {
			pass(heartbeatEvery)
			h.send(h.status(known)) // of r it says nothing
		}
		h.want(h.watch("r", "", 0))
		h.wantIdle("of s something was heard")
		pass(timerFirst - 1)
		h.wantIdle("too early")
		h.send(h.status(known))
		pass(1)
		h.want(h.watch("r", "", 0)) // no answer
		h.send(h.status(SessionStatus{SessionID: "r"}))
		for range 10 {
			pass(heartbeatEvery)
			h.send(h.status(SessionStatus{SessionID: "r"}, known))
			h.wantIdle("all is well")
		}
		has(t, v, "s e1 1", "s e1 2")
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
		v := NewViewer(&ViewerConfig{BufferItems: 1})
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
		h.send(no, no, h.batch("s", "e1", 2, 2), h.batch("r", "e1", 1, 1))
		h.want(h.stop("s"), h.stop("s"))
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
		h.wantAfter(timerFirst, h.watch("s", "", 0))
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
			answerTo(request("s", "other", "r1", "e1", 0, 3), 1, 3, true),
		)
		has(t, v)
		h.wantIdle("they are not for this viewer")
		h.send(h.batch("unwatched", "e1", 1, 3), h.status(stands("unwatched", "e1", 1, 3, 0)))
		h.want(h.stop("unwatched"), h.stop("unwatched"))
		everyone := *h
		everyone.viewer = ""
		h.send(everyone.batch("s", "e1", 1, 1))
		has(t, v, "s e1 1")
		if n := v.stalePayloads.Load(); n != 8 {
			t.Errorf("%d stale frames, want 8", n)
		}
		for _, p := range []Payload{h.watch("s", "", 0), h.ack("s", "e1", 1), &HelloPayload{V: 1, Role: roleViewer}, request("s", "tab", "r1", "e1", 0, 1)} {
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
	h.send(answerTo(request("s", "", "r1", "e1", 0, 3), 1, 3, true))
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
		h.want(h.watch("s", "e1", 6))
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
	h.want(h.watch("s", "e1", 1))
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
	a := v.watches["s"].subscription
	h.send(h.status(stands("s", "e1", 1, 5, 5)))
	if !a.want {
		t.Fatal("nothing is to be asked")
	}
	v.Unwatch("s")
	if p := a.next(time.Now()); p != nil {
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

// Rule 14: only something new answers a watch; a batch of known numbers does not.
func TestViewerDuplicateIsNoAnswer(t *testing.T) {
	v, h := watching(t, nil, "s")
	h.send(h.status(stands("s", "e1", 1, 3, 0)), h.batch("s", "e1", 1, 3))
	h.send(h.batch("s", "e1", 6, 6))
	h.want(h.watch("s", "e1", 3))
	for last := uint64(2); last <= 3; last++ {
		h.send(h.batch("s", "e1", 1, last), h.batch("s", "e1", 7, 7))
		h.wantIdle("the watch is not answered")
	}
	h.send(h.batch("s", "e1", 1, 4), h.batch("s", "e1", 7, 7))
	h.want(h.watch("s", "e1", 4))
	has(t, v, itemTexts("s", "e1", 1, 4)...)
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

// Room that comes together with the end of ctx is used: a ready result is preferred.
func TestViewerRoomAtCtxEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, h := watching(t, &ViewerConfig{BufferItems: 1}, "s")
		h.send(h.status(stands("s", "e1", 1, 2, 0)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.link.Handle(ctx, h.batch("s", "e1", 1, 2)) }()
		synctest.Wait()
		q, _ := v.front()
		cancel()
		v.done(q)
		if err := <-done; err != nil {
			t.Errorf("Handle: %v", err)
		}
		has(t, v, "s e1 2")
	})
}

// The hub's silence ends a link that once waited for room, like any other.
func TestViewerSilentAfterFullBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := NewViewer(&ViewerConfig{BufferItems: 1})
		v.Watch("s", Position{})
		h := playHubTo(t, v, false)
		h.want(h.watch("s", "", 0))
		h.send(h.status(stands("s", "e1", 1, 2, 0)))
		done := h.handling(h.batch("s", "e1", 1, 2))
		pass(time.Hour) // the silence is its own
		h.drain()
		takesOne(t, v, "s e1 1")
		wantReturned(t, done, nil)
		pass(maxSilence - heartbeatEvery - 1)
		h.drain()
		pass(heartbeatEvery + 1)
		synctest.Wait()
		h.wantDead(ErrSilent)
	})
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
		h.want(h.stop("s"), h.stop("r"))
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
