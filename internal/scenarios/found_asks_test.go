package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/streamtest"
)

// asks counts on one leg how often a receiver asks for what is missing, and how often a number
// is sent. lose says which of a sender's batches, and which of the asks, the transport loses.
type asks struct {
	lose func(batch *gvstream.EventBatchPayload) bool // nil for an ask

	mu      sync.Mutex
	watched bool           // the first watch asks for nothing that is missing
	times   []time.Time    // of the asks
	sent    map[uint64]int // by number, how often
	start   time.Time
}

func countAsks(lose func(*gvstream.EventBatchPayload) bool) *asks {
	return &asks{lose: lose, sent: make(map[uint64]int), start: time.Now()}
}

// lost notes a payload of either side, and says whether it is lost.
func (a *asks) lost(p gvstream.Payload) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch p := p.(type) {
	case *gvstream.EventBatchPayload:
		for _, e := range p.Events {
			a.sent[e.Seq]++
		}
		return a.lose(p)
	case *gvstream.WatchPayload:
		first := !a.watched
		a.watched = true
		return !first && a.ask()
	case *gvstream.AckBatchPayload:
		if p.Nack {
			return a.ask()
		}
	}
	return false
}

func (a *asks) ask() bool {
	a.times = append(a.times, time.Now())
	return a.lose(nil)
}

// since returns how many asks there were since a time. It fails the test if any two came within a
// second, or if a number was sent more often than at first and then once for each ask, or each
// time that the timer expired.
func (a *asks) since(t *testing.T, from time.Time) (n int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, at := range a.times {
		if i > 0 && at.Sub(a.times[i-1]) < time.Second {
			t.Errorf("asked after %v and after %v", a.times[i-1].Sub(a.start), at.Sub(a.start))
			break
		}
		if !at.Before(from) {
			n++
		}
	}
	for seq, times := range a.sent {
		if times > 1+len(a.times)+int(time.Since(a.start)/(15*time.Second)) {
			t.Fatalf("%d was sent %d times, and asked for %d times", seq, times, len(a.times))
		}
	}
	return n
}

// joinSlowly runs a connection between two links on which each payload takes a millisecond, so
// that a hot loop is one of a thousand rounds a second, and lost ones never arrive.
func joinSlowly(sc *scene.Scene, near, far *gvstream.Link, lost func(gvstream.Payload) bool) {
	a, b := streamtest.Pipe()
	over := func(send gvstream.SendFunc) gvstream.SendFunc {
		return func(ctx context.Context, p gvstream.Payload) error {
			pass(time.Millisecond)
			if lost(p) {
				return nil
			}
			return send(ctx, p)
		}
	}
	sc.Go(func() { far.Run(sc.Context(), over(b.Send), b.Receive); b.Close() })
	sc.Go(func() { near.Run(sc.Context(), over(a.Send), a.Receive); a.Close() })
}

// legs runs a test for a session's agent and hub, and for hub and viewer, as the two ends of the
// leg that payloads are lost on. The viewer has room for everything.
func legs(t *testing.T, run func(t *testing.T, sc *scene.Scene, st *gvstream.Streamer, v *gvstream.Viewer, join func(lost func(gvstream.Payload) bool))) {
	for _, toViewer := range []bool{false, true} {
		t.Run(map[bool]string{false: "from an agent", true: "to a viewer"}[toViewer], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, &gvstream.HubConfig{LogEvents: 1000})
				st, v := gvstream.NewStreamer(nil), newViewer(t, "s", gvstream.Position{})
				run(t, sc, st, v, func(lost func(gvstream.Payload) bool) {
					all := func(gvstream.Payload) bool { return false }
					agentLost, viewerLost := lost, all
					if toViewer {
						agentLost, viewerLost = all, lost
					}
					joinSlowly(sc, st.Connect(), sc.Hub.ConnectAgent("agent"), agentLost)
					pass(time.Second)
					joinSlowly(sc, v.Connect(), sc.Hub.ConnectViewer("tab"), viewerLost)
				})
				sc.Close()
			})
		})
	}
}

// A viewer whose transport lost each batch of an ended session asked for it as fast as the
// connection went: 316,198 times in 3 s, and was answered each time.
func foundF08(t *testing.T) {
	for name, lost := range map[string]func(*gvstream.EventBatchPayload) bool{
		"each batch":          func(*gvstream.EventBatchPayload) bool { return true },
		"what begins it":      func(b *gvstream.EventBatchPayload) bool { return b.FirstSeq == 1 },
		"all but what begins": func(b *gvstream.EventBatchPayload) bool { return b.FirstSeq > 1 },
	} {
		t.Run(name, func(t *testing.T) {
			legs(t, func(t *testing.T, sc *scene.Scene, st *gvstream.Streamer, v *gvstream.Viewer, join func(func(gvstream.Payload) bool)) {
				publish(t, st, "s", 300)
				_, err := st.End(sc.Context(), "s", event(301))
				noError(t, err)
				start := time.Now()
				a := countAsks(func(b *gvstream.EventBatchPayload) bool {
					return b != nil && time.Since(start) < time.Minute && lost(b)
				})
				join(a.lost)
				pass(3 * time.Second)
				if n := a.since(t, start); n > 4 {
					t.Errorf("asked %d times in 3 s", n)
				}
				pass(2 * time.Minute) // the transport works again after a minute
				a.since(t, start)
				equal(t, "the viewer gets", read(t, v), "1..301, end")
			})
		})
	}
}

// The reverse: when a batch and the ask for it were lost, nothing was asked for 14 s. Meanwhile
// the viewer threw 1,442 events away, which the hub then held no more. Each further batch shows
// that something is missing, so that it is asked for once a second.
func foundF09(t *testing.T) {
	legs(t, func(t *testing.T, sc *scene.Scene, st *gvstream.Streamer, v *gvstream.Viewer, join func(func(gvstream.Payload) bool)) {
		publish(t, st, "s", 1)
		var from time.Time // when a batch was lost; then so are the asks of some seconds
		var lose bool
		a := countAsks(func(b *gvstream.EventBatchPayload) bool {
			switch {
			case b == nil:
				return !from.IsZero() && time.Since(from) < 5*time.Second
			case lose && from.IsZero():
				from = time.Now()
				return true
			}
			return false
		})
		join(a.lost)
		pass(2 * time.Second)
		const rate = 100 // a second
		live := func(d time.Duration) {
			for range d * rate / time.Second {
				publish(t, st, "s", 1)
				pass(time.Second / rate)
			}
		}
		live(time.Second)
		a.mu.Lock()
		lose = true
		a.mu.Unlock()
		start := time.Now()
		live(5 * time.Second)
		if n := a.since(t, start); n < 5 || n > 6 {
			t.Errorf("asked %d times in 5 s", n)
		}
		live(1100 * time.Millisecond)
		pass(20 * time.Millisecond)
		equal(t, "the viewer gets", read(t, v), fmt.Sprint("1..", 1+710))
	})
}

// A viewer whose connection was stuck for a moment lost the stops of watches beyond 128: at its
// limit of 100 watches it stopped and began the watch of one place 130 times, and then 50
// others, and 49 of those were refused by the hub for too many watches.
func foundF13(t *testing.T) {
	for _, same := range []bool{true, false} {
		t.Run(map[bool]string{true: "one session again and again", false: "sessions in turn"}[same], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				st, v := gvstream.NewStreamer(nil), gvstream.NewViewer(nil)
				sc.Agent("agent", st)
				ids := make(map[string]bool) // watched
				watch := func(id string) {
					t.Helper()
					noError(t, v.Watch(id, gvstream.Position{}))
					ids[id] = true
				}
				unwatch := func(id string) {
					v.Unwatch(id)
					delete(ids, id)
				}
				for i := range 100 {
					watch(fmt.Sprint("s", i))
				}
				sc.Viewer("tab", v)
				sc.Later(2 * time.Second)
				place := "s99"
				for i := range 130 {
					unwatch(place)
					if !same {
						place = fmt.Sprint("place", i)
					}
					watch(place)
				}
				for i := range 50 {
					unwatch(fmt.Sprint("s", i))
					watch(fmt.Sprint("new", i))
				}
				sc.Later(2 * time.Second)
				for id := range ids {
					publish(t, st, id, 1)
				}
				publish(t, st, "s0", 1) // which is no longer watched
				sc.Later(time.Second)
				got := 0
				for _, it := range readItems(t, v) { // no watch has ended in an error
					if !ids[it.SessionID] {
						t.Errorf("an item of %s", it.SessionID)
					}
					got++
				}
				equal(t, "items", got, 100)
				for s := range sc.Hub.Sessions() {
					if want := map[bool]int{true: 1}[ids[s.SessionID]]; s.Viewers != want {
						t.Errorf("the hub has %d watches of %s, want %d", s.Viewers, s.SessionID, want)
					}
				}
			})
		})
	}

	// A watch that has ended was over at the hub only if the viewer stopped it, so that after
	// 100 ended sessions each watch was refused.
	t.Run("ended sessions", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			st := gvstream.NewStreamer(nil)
			sc.Agent("agent", st)
			var ids []string
			for i := range 200 {
				ids = append(ids, fmt.Sprint("s", i))
				publish(t, st, ids[i], 1)
				_, err := st.End(t.Context(), ids[i], event(2))
				noError(t, err)
			}
			sc.Acked()

			v := gvstream.NewViewer(&gvstream.ViewerConfig{MaxWatches: len(ids)})
			sc.Viewer("tab", v)
			played := callViewer(t, sc.Hub, "played")
			for _, id := range ids {
				noError(t, v.Watch(id, gvstream.Position{}))
				sc.Flow()
				equal(t, "the viewer gets of "+id, read(t, v), "1..2, end")

				noError(t, played.watch(id, gvstream.Position{}))
				equal(t, "the hub says", played.says(), fmt.Sprintf("status %s 2 acked 0; batch %s 1; batch %[1]s 2", id, id))
				noError(t, played.link.Handle(t.Context(), &gvstream.AckBatchPayload{SessionID: id, Epoch: hubStats(sc.Hub, id).Epoch, Link: played.name, UpToSeq: 2}))
				equal(t, "watches at the hub", hubStats(sc.Hub, id).Viewers, 0)
			}

			// One that is refused is over as well.
			for i := range 200 {
				err := played.watch(ids[i], gvstream.Position{Epoch: hubStats(sc.Hub, ids[i]).Epoch, Seq: 3})
				if err == nil { // it is refused by what the hub sends next
					equal(t, "the hub says", played.says(), "error replay_ahead")
				}
				equal(t, "watches at the hub", hubStats(sc.Hub, ids[i]).Viewers, 0)
			}
			noError(t, played.watch("another", gvstream.Position{}))
		})
	})
}

// A viewer from the beginning was told of the first epoch's five events, which were lost, and
// then of the next epoch: it began with that one and had no word of the five. Now it gets
// them, or a reset that says how many it missed.
func foundF21(t *testing.T) {
	for name, c := range map[string]struct {
		cut  bool          // the viewer's connection breaks as well
		away time.Duration // for how long
		want string
	}{
		"on the same link":          {want: "1..5, reset from 5 of 5, 1..3"},
		"on a new link":             {cut: true, want: "1..5, reset from 5 of 5, 1..3"},
		"after the hub forgot them": {cut: true, away: 10 * time.Minute, want: "reset from 0 of 5, 1..3"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				st, v := gvstream.NewStreamer(nil), newViewer(t, "s", gvstream.Position{})
				agent := sc.Agent("agent", st)
				publish(t, st, "s", 5)
				sc.Acked()
				w := sc.Viewer("tab", v)
				for len(w.Down) < 2 { // welcome, status
					w.StepUp()
					w.StepDown()
				}
				equal(t, "the viewer is told", say(w.Down...), "welcome; status s 5 acked 0")
				if lost := say(scene.Ready(w.Far)...); !strings.HasPrefix(lost, "batch s 1") {
					t.Fatalf("lost: %s", lost)
				}
				if c.cut {
					w.Cut()
				}
				agent.Cut()
				pass(time.Second)
				st = gvstream.NewStreamer(nil)
				sc.Agent("agent", st)
				publish(t, st, "s", 3)
				sc.Later(time.Second + c.away)
				if c.cut {
					sc.Viewer("tab", v)
				}
				sc.Later(time.Minute)
				equal(t, "the viewer gets", read(t, v), c.want)
			})
		})
	}
}

// An agent that was restored from a state a little old had a first ack above all that it had
// sent. That ended its link, and so did the ack on each later one: 90 times in 5 s, with all
// its sessions. Only the session stops, and its caller can begin a new epoch of it.
func foundF28(t *testing.T) {
	// The hub's part, for an agent of any make.
	t.Run("another agent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			v := newViewer(t, "s", gvstream.Position{})
			sc.Viewer("tab", v)
			a := callAgent(t, sc.Hub, "agent")
			noError(t, a.batch("s", epoch1, to(1, 10)...))
			a.link.Close()
			sc.Flow()

			a = callAgent(t, sc.Hub, "agent")
			noError(t, a.status("s", epoch1, 5, 5))
			synctest.Wait()
			equal(t, "the hub says", a.says(), "ack s 10")
			noError(t, a.batch("t", epoch1, 1))
			a.link.Handle(t.Context(), &gvstream.ErrorPayload{Code: gvstream.CodeAckBeyondSent, SessionID: "s", Epoch: epoch1, Seq: 5})
			pass(time.Second)
			equal(t, "the hub says", a.says(), "ack t 1")
			noError(t, a.batch("t", epoch1, 2))
			for range 4 {
				sc.Later(15 * time.Second)
				for _, p := range scene.Ready(a.link) {
					if said := say(p); strings.Contains(said, " s ") {
						t.Errorf("the hub says %s", said)
					}
				}
				noError(t, a.link.Handle(t.Context(), &gvstream.StatusPayload{Link: a.name}))
			}
			scene.Ready(a.link)
			noError(t, a.status("s", epoch2, 0, 0))
			synctest.Wait()
			equal(t, "the hub says", a.says(), "ack s 0")
			noError(t, a.batch("s", epoch2, to(1, 3)...))
			sc.Later(time.Second)
			equal(t, "the viewer gets", read(t, v), "1..10, reset from 10 of 10, 1..3")
		})
	})

	// The Streamer's part. It has no state that could be old, so that another one takes the place
	// of what it was at number 5: on the wire its epoch is the first one's.
	t.Run("the Streamer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			v := newViewer(t, "s", gvstream.Position{})
			sc.Join(v.Connect(), sc.Hub.ConnectViewer("tab"), nil)
			st := gvstream.NewStreamer(nil)
			publish(t, st, "s", 10)
			w := sc.Agent("agent", st)
			sc.Acked()
			w.Cut()
			pass(time.Second)

			old := gvstream.NewStreamer(nil)
			publish(t, old, "s", 5)
			publish(t, old, "t", 1)
			was, is := []byte(stats(t, st, "s").Epoch), []byte(stats(t, old, "s").Epoch)
			connections := 0
			sc.Go(func() {
				for sc.Context().Err() == nil {
					connections++
					a, b := streamtest.Pipe()
					far := sc.Hub.ConnectAgent("agent")
					sc.Go(func() { far.Run(sc.Context(), renamed(b.Send, was, is), b.Receive); b.Close() })
					old.Connect().Run(sc.Context(), renamed(a.Send, is, was), a.Receive)
					a.Close()
					pass(50 * time.Millisecond)
				}
			})
			pass(5 * time.Second)
			publish(t, old, "t", 1)
			pass(time.Minute)
			equal(t, "of the other session, unacknowledged", unacked(old, "t"), "")
			_, err := old.Publish(t.Context(), "s", event(6))
			var stopped *gvstream.ProtocolError
			if !errors.As(err, &stopped) || stopped.Code != gvstream.CodeAckBeyondSent || stopped.SessionID != "s" {
				t.Fatalf("publish: %v", err)
			}
			for _, figure := range []string{"10", "5"} { // what was acknowledged, and what was sent
				if !strings.Contains(stopped.Error(), figure) {
					t.Errorf("%q doesn't say %s", stopped, figure)
				}
			}
			equal(t, "kept", unacked(old, "s"), "1..5")
			noError(t, old.Renew("s"))
			publish(t, old, "s", 1)
			pass(time.Second)
			equal(t, "after Renew, unacknowledged", unacked(old, "s"), "")
			equal(t, "the viewer gets", read(t, v), "1..10, reset from 10 of 10, 1")
			sc.Close()
			equal(t, "connections", connections, 1)
		})
	})
}

// renamed sends payloads with one text in them in another's place.
func renamed(send gvstream.SendFunc, from, to []byte) gvstream.SendFunc {
	return func(ctx context.Context, p gvstream.Payload) error {
		line, err := gvstream.Marshal(p)
		if err == nil {
			p, err = gvstream.Unmarshal(bytes.ReplaceAll(line, from, to))
		}
		if err != nil {
			return err
		}
		return send(ctx, p)
	}
}
