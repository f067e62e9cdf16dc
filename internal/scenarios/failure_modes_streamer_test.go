package scenarios_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/testenv"
	"github.com/vibetools/gvstream/streamtest"
)

// The failure modes between an agent and its hub.

func lostInFlight(t *testing.T) {
	// Five events are written to a connection without an error, but only three
	// come out of it before it dies. The next connection carries the other two, and
	// the hub's store ends up with each event once.
	var disk store
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 3)
	w := sc.Agent("a", st)
	sc.Flow()
	publish(t, st, "s", 2)
	equal(t, "written into the void", say(scene.Ready(w.Near)...), "batch s 4..5")
	w.Cut()

	w = sc.Agent("a", st)
	sc.Flow()
	equal(t, "after the cut", say(w.Up...), "hello; status s 5 acked 0; batch s 4; batch s 5")
	equal(t, "stored", disk.tell("s"), "1..5")
}

func lostBeforeNoticed(t *testing.T) {
	// Ten events go into a connection that is dead though nobody knows it yet, and
	// ten more are published while there is none. All are kept, and sent later.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	w := sc.Agent("a", st)
	sc.Flow()
	publish(t, st, "s", 10)
	equal(t, "written into the void", say(scene.Ready(w.Near)...), "batch s 1; batch s 2..10")
	w.Cut()
	publish(t, st, "s", 10)
	equal(t, "kept", unacked(st, "s"), "1..20")

	w = sc.Agent("a", st)
	sc.Acked()
	equal(t, "after the cut", say(w.Up...), "hello; status s 20 acked 0; batch s 1; batch s 2..17; batch s 18..20")
	equal(t, "kept in the end", unacked(st, "s"), "")
	equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), "1..20")
}

func outlivesConnections(t *testing.T) {
	// A hundred connections come and go while events are published and a viewer
	// replays. Numbers, what is unacknowledged, what is kept for replay and the
	// viewer's place belong to no connection.
	var disk store
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit, LogEvents: 5})
	st := gvstream.NewStreamer(nil)
	v := newViewer(t, "s", gvstream.Position{})
	sc.Viewer("tab", v)
	for range 100 {
		publish(t, st, "s", 2) // detached
		w := sc.Agent("a", st)
		sc.Flow()
		publish(t, st, "s", 1) // attached
		w.Step()
		publish(t, st, "s", 1) // and this one is lost on the way
		scene.Ready(w.Near)
		w.Cut()
	}
	sc.Agent("a", st)
	sc.Acked()
	equal(t, "stored", disk.tell("s"), "1..400")
	equal(t, "the viewer gets", read(t, v), "1..400")
	equal(t, "a late one gets", show(t, sc, "s", gvstream.Position{}), "1..400")
	equal(t, "kept", unacked(st, "s"), "")
}

func ackOfTheUnsent(t *testing.T) {
	// The hub acknowledges more than exists, or than was sent. Nothing is freed, the error
	// names what would be believed, and a true ack on the same link frees everything.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 5)
	h := answer(t, st, 5)
	equal(t, "sent", h.says(), "status s 5 acked 0; batch s 1; batch s 2..5")
	publish(t, st, "s", 1) // not sent
	noError(t, h.ack("s", 0))
	for _, beyond := range []uint64{9, 6} {
		equal(t, "too high an ack", code(h.ack("s", beyond)), "ack_beyond_sent 5")
		equal(t, "the hub is told", h.says(), "error ack_beyond_sent")
		equal(t, "kept", unacked(st, "s"), "1..6")
	}
	noError(t, h.ack("s", 5))
	equal(t, "kept after a true ack", unacked(st, "s"), "6")
}

func oldAcks(t *testing.T) {
	// Acks come twice and in the wrong order. Old ones are not errors and take nothing
	// back.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 5)
	h := answer(t, st, 256)
	h.says()
	for _, upTo := range []uint64{3, 2, 3, 0} {
		noError(t, h.ack("s", upTo))
		equal(t, fmt.Sprint("kept after ack ", upTo), unacked(st, "s"), "4..5")
		equal(t, "acknowledged", stats(t, st, "s").Acked, 3)
	}
	equal(t, "said about it", h.says(), "")
}

func ackOfAnotherLife(t *testing.T) {
	// The agent has restarted, and an ack of its session's former life arrives. It
	// neither frees nor fails anything, however well its number would fit.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 2)
	h := answer(t, st, 256)
	h.says()
	for _, upTo := range []uint64{1, 5} {
		noError(t, h.link.Handle(t.Context(), &gvstream.AckBatchPayload{SessionID: "s", Epoch: epoch1, Link: h.name, UpToSeq: upTo}))
	}
	equal(t, "kept", unacked(st, "s"), "1..2")
	equal(t, "counted as stale", st.Stats().StalePayloads, 2)
	noError(t, h.ack("s", 2))
	equal(t, "kept after a true ack", unacked(st, "s"), "")
}

func onlyEventsCount(t *testing.T) {
	// Hellos, heartbeats and reconnects happen between the events. Both sides count only
	// events, and continue counting on the next link.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	w := sc.Agent("a", st)
	publish(t, st, "s", 1)
	sc.Later(40 * time.Second)
	publish(t, st, "s", 2)
	sc.Later(40 * time.Second)
	beats := strings.Count(say(w.Up...), "status")
	equal(t, "the opening and the signs of life", beats, 1+5)
	equal(t, "the hub's count", accepted(sc.Hub, "s"), 3)
	equal(t, "the agent's count", stats(t, st, "s").Acked, 3)

	publish(t, st, "s", 17)
	sc.Acked()
	w.Cut()
	w = sc.Agent("a", st)
	publish(t, st, "s", 1)
	sc.Acked()
	equal(t, "the hub resumes", say(w.Down...), "welcome; ack s 20; ack s 21")
	equal(t, "the agent resumes", say(w.Up...), "hello; status s 21 acked 20; batch s 21")
}

func everythingAtOnce(t *testing.T) {
	// Sixteen goroutines connect, publish, watch, read, ask, forget and cut at the
	// same time. For the race detector; and no connection ever has two sends under
	// way.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 3, Window: 8})
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: 50, ReplayEvents: 10})
	v := gvstream.NewViewer(nil)
	noError(t, v.Watch("s0", gvstream.Position{}))
	var twoSends atomic.Int32
	connect := func(near, far *gvstream.Link) {
		a, b := streamtest.Pipe()
		var sending atomic.Int32
		send := func(ctx context.Context, p gvstream.Payload) error {
			if sending.Add(1) > 1 {
				twoSends.Add(1)
			}
			defer sending.Add(-1)
			return a.Send(ctx, p)
		}
		sc.Go(func() { far.Run(sc.Context(), b.Send, b.Receive); b.Close() })
		sc.Go(func() { near.Run(sc.Context(), send, a.Receive); a.Close() })
	}
	var work sync.WaitGroup
	for g := range 16 {
		work.Go(func() {
			id := fmt.Sprint("s", g%3)
			for i := range 60 {
				switch (g + i) % 12 {
				case 0:
					connect(st.Connect(), sc.Hub.ConnectAgent("a"))
				case 1:
					connect(v.Connect(), sc.Hub.ConnectViewer("tab"))
				case 2:
					v.Watch(id, gvstream.Position{})
				case 3:
					v.Unwatch(id)
				case 4:
					for range v.Items(scene.Ended) {
					}
				case 5:
					for range sc.Hub.Items(scene.Ended, id, gvstream.Position{}) {
					}
				case 6:
					st.Forget(id)
				case 7:
					sc.Hub.Revoke("tab", id)
				case 8:
					sc.Hub.Forget(id)
					st.Stats()
					sc.Hub.Stats()
				case 9:
					link := st.Connect()
					scene.Next(link)
					link.Close()
				case 10:
					for range st.Unacked(id) {
					}
					st.Renew(id)
				}
				for range 3 {
					if _, err := st.Publish(sc.Context(), id, gvstream.Event{}); err != nil {
						t.Errorf("publish: %v", err)
					}
				}
				pass(time.Millisecond)
			}
		})
	}
	work.Wait()
	for range 3 {
		work.Go(func() { st.Close(scene.Ended) })
		work.Go(func() { sc.Hub.Close() })
		work.Go(func() { v.Close() })
	}
	work.Wait()
	sc.Close()
	equal(t, "sends at the same time", twoSends.Load(), 0)
}

func closedTwice(t *testing.T) {
	// Everything is closed twice, and used after that: typed errors, no panic.
	st, hub, v := gvstream.NewStreamer(nil), gvstream.NewHub(nil), gvstream.NewViewer(nil)
	publish(t, st, "s", 1)
	noError(t, v.Watch("s", gvstream.Position{}))
	links := []*gvstream.Link{st.Connect(), hub.ConnectAgent("a"), v.Connect(), hub.ConnectViewer("tab")}
	for range 2 {
		var left *gvstream.UnackedError
		equal(t, "Close tells what is left", errors.As(st.Close(scene.Ended), &left) && left.Events == 1, true)
		noError(t, hub.Close())
		noError(t, v.Close())
		for _, l := range links {
			noError(t, l.Close())
		}
	}
	links = append(links, st.Connect(), hub.ConnectAgent("a"), v.Connect(), hub.ConnectViewer("tab"))
	for _, l := range links {
		equal(t, "Handle", l.Handle(t.Context(), &gvstream.HelloPayload{V: 1, Role: "agent"}), gvstream.ErrClosed)
		_, err := l.Next(scene.Ended)
		equal(t, "Next", err, gvstream.ErrClosed)
	}
	_, err := st.Publish(scene.Ended, "s", event(2))
	equal(t, "Publish", err, gvstream.ErrClosed)
	equal(t, "Watch", v.Watch("s2", gvstream.Position{}), gvstream.ErrClosed)
	equal(t, "Items", read(t, v), "")
	for _, err := range hub.Items(scene.Ended, "s", gvstream.Position{}) {
		equal(t, "the hub's Items", err, gvstream.ErrClosed)
	}

	// Close while others wait in Publish: each of them returns.
	st = gvstream.NewStreamer(&gvstream.StreamerConfig{MaxPendingEvents: 1})
	publish(t, st, "s", 1)
	var work sync.WaitGroup
	var closed atomic.Int32
	for range 8 {
		work.Go(func() {
			if _, err := st.Publish(context.Background(), "s", event(2)); err == gvstream.ErrClosed {
				closed.Add(1)
			}
		})
	}
	synctest.Wait()
	st.Close(scene.Ended)
	work.Wait()
	equal(t, "blocked publishers that return", closed.Load(), 8)

	// A viewer goes away at the moment at which it is thrown out.
	hub = gvstream.NewHub(nil)
	for range 1000 {
		h := callViewer(t, hub, "tab")
		noError(t, h.watch("s", gvstream.Position{}))
		work.Go(func() { hub.Revoke("tab", "s") })
		work.Go(func() { h.link.Close() })
		work.Go(func() { hub.ConnectViewer("tab").Close() })
		work.Wait()
	}
	equal(t, "viewers left", hub.Stats().Viewers, 0)
}

func numbersNotReused(t *testing.T) {
	// Viewers have seen 1 to 13 when the agent crashes; it had made nothing of it durable.
	// The same numbers mean other events afterwards, so they belong to another epoch, and
	// viewers learn of it.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	v := newViewer(t, "s", gvstream.Position{})
	w := sc.Agent("a", st)
	sc.Viewer("tab", v)
	publish(t, st, "s", 13)
	sc.Flow()
	old := stats(t, st, "s").Epoch
	w.Cut()

	st = gvstream.NewStreamer(nil)
	for range 2 {
		_, err := st.Publish(scene.Ended, "s", gvstream.Event{Type: "other"})
		noError(t, err)
	}
	sc.Agent("a", st)
	sc.Flow()
	equal(t, "the new epoch is greater", stats(t, st, "s").Epoch > old, true)
	equal(t, "the viewer gets", read(t, v), "1..13, reset from 13 of 13, 1..2")
}

func stuckHub(t *testing.T) {
	// The connection takes nothing for a minute. Publish does as the policy says: it
	// refuses, or it waits exactly as long as it may.
	stuck := func(ctx context.Context, _ gvstream.Payload) error {
		<-ctx.Done()
		return ctx.Err()
	}
	silent := func(ctx context.Context) (gvstream.Payload, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, policy := range []gvstream.Overflow{gvstream.Reject, gvstream.Block} {
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: policy, MaxPendingEvents: 3})
		var link sync.WaitGroup
		link.Go(func() { st.Connect().Run(ctx, stuck, silent) })
		synctest.Wait()
		start := time.Now()
		publish(t, st, "s", 3)
		equal(t, "time for what there is room for", time.Since(start), 0)
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_, err := st.Publish(short, "s", event(4))
		cancel()
		if policy == gvstream.Reject {
			equalError(t, "Publish", err, gvstream.ErrPendingFull)
			equal(t, "time until refused", time.Since(start), 0)
		} else {
			equal(t, "Publish", err, context.DeadlineExceeded)
			equal(t, "time until given up", time.Since(start), 100*time.Millisecond)
		}
		equal(t, "kept", unacked(st, "s"), "1..3")
		st.Close(scene.Ended)
		link.Wait()
	}
}

func callsFromCallbacks(t *testing.T) {
	// Whatever is called from inside a callback, a send or a loop over Items returns: no
	// lock is held meanwhile. A call that did not return would hang.
	type cast struct {
		st  *gvstream.Streamer
		hub *gvstream.Hub
		v   *gvstream.Viewer
	}
	ctx := context.Background()
	calls := map[string]func(c cast){
		"Publish":       func(c cast) { c.st.Publish(scene.Ended, "s", event(1)) },
		"End":           func(c cast) { c.st.End(scene.Ended, "s", event(1)) },
		"Unacked":       func(c cast) { unacked(c.st, "s") },
		"Streamer":      func(c cast) { c.st.Stats(); c.st.Session("s") },
		"Connect":       func(c cast) { c.st.Connect() },
		"Forget":        func(c cast) { c.st.Forget("s") },
		"Renew":         func(c cast) { c.st.Renew("s") },
		"Flush":         func(c cast) { c.st.Flush(scene.Ended) },
		"Close":         func(c cast) { c.st.Close(scene.Ended) },
		"Hub":           func(c cast) { c.hub.Stats(); accepted(c.hub, "s") },
		"ConnectAgent":  func(c cast) { c.hub.ConnectAgent("a") },
		"ConnectViewer": func(c cast) { c.hub.ConnectViewer("tab") },
		"Hub.Items": func(c cast) {
			for range c.hub.Items(scene.Ended, "s", gvstream.Position{}) {
			}
		},
		"Revoke":     func(c cast) { c.hub.Revoke("tab", "s") },
		"Hub.Forget": func(c cast) { c.hub.Forget("s") },
		"Hub.Close":  func(c cast) { c.hub.Close() },
		"Watch":      func(c cast) { c.v.Watch("other", gvstream.Position{}) },
		"Unwatch":    func(c cast) { c.v.Unwatch("s") },
		"Position":   func(c cast) { c.v.Position("s") },
		"Viewer.Items": func(c cast) {
			tell(slices.Collect(func(func(gvstream.Item) bool) {
				c.v.Items(scene.Ended)(func(gvstream.Item, error) bool { return false })
			}))
		},
		"Viewer.Connect": func(c cast) { c.v.Connect() },
		"Viewer.Close":   func(c cast) { c.v.Close() },
	}
	places := []string{"agent's send", "hub's send", "viewer's send", "AuthorizeViewer", "Resume", "Commit", "AuthorizeAgent", "Items"}
	for _, place := range places {
		for name, call := range calls {
			var c cast
			var did atomic.Bool
			in := func(here string) {
				if here == place && did.CompareAndSwap(false, true) {
					call(c)
				}
			}
			c.hub = gvstream.NewHub(&gvstream.HubConfig{
				AuthorizeViewer: func(context.Context, string, string) error { in("AuthorizeViewer"); return nil },
				Resume:          func(context.Context, string, string) (uint64, error) { in("Resume"); return 0, nil },
				Commit:          func(context.Context, string, string, []gvstream.Item) error { in("Commit"); return nil },
				AuthorizeAgent:  func(context.Context, string, string, string) error { in("AuthorizeAgent"); return nil },
			})
			c.st, c.v = gvstream.NewStreamer(nil), gvstream.NewViewer(nil)
			publish(t, c.st, "s", 3)
			noError(t, c.v.Watch("s", gvstream.Position{}))
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			var links sync.WaitGroup
			run := func(l *gvstream.Link, c *streamtest.Conn, here string) {
				links.Go(func() {
					l.Run(ctx, func(ctx context.Context, p gvstream.Payload) error {
						in(here)
						return c.Send(ctx, p)
					}, c.Receive)
				})
			}
			near, far := streamtest.Pipe()
			run(c.st.Connect(), near, "agent's send")
			run(c.hub.ConnectAgent("a"), far, "hub's send")
			near, far = streamtest.Pipe()
			run(c.v.Connect(), near, "viewer's send")
			run(c.hub.ConnectViewer("tab"), far, "hub's send")
			for range c.v.Items(ctx) {
				in("Items")
			}
			links.Wait()
			cancel()
			equal(t, name+" inside of "+place+" was called", did.Load(), true)
		}
	}
}

func callsDuringSend(t *testing.T) {
	// A send hangs. Acks, statistics, a second connection and Close take no time
	// all the same, and Close ends the send through its context.
	st := gvstream.NewStreamer(nil)
	link := st.Connect()
	equal(t, "first payload", say(scene.Next(link)), "hello")
	noError(t, link.Handle(t.Context(), &gvstream.WelcomePayload{V: 1, Link: "l", WindowEvents: 8}))
	publish(t, st, "s", 2)
	var run sync.WaitGroup
	var runErr, sendErr error
	run.Go(func() {
		runErr = link.Run(context.Background(), func(ctx context.Context, _ gvstream.Payload) error {
			<-ctx.Done()
			sendErr = ctx.Err()
			return ctx.Err()
		}, func(ctx context.Context) (gvstream.Payload, error) { <-ctx.Done(); return nil, ctx.Err() })
	})
	synctest.Wait()
	start := time.Now()
	noError(t, link.Handle(t.Context(), &gvstream.AckBatchPayload{SessionID: "s", Epoch: stats(t, st, "s").Epoch, Link: "l"}))
	publish(t, st, "s", 1)
	equal(t, "kept", st.Stats().PendingEvents, 3)
	noError(t, st.Connect().Close())
	run.Wait()
	equal(t, "Run", runErr, gvstream.ErrSuperseded)
	equal(t, "the send", sendErr, context.Canceled)
	equal(t, "time it all took", time.Since(start), 0)
}

func closeFromInside(t *testing.T) {
	// A Commit closes its own hub and returns. Close from outside does not wait for
	// a Commit that is running: by design no Close waits for a callback, so there is
	// nothing that it could block.
	release := make(chan bool)
	var sc *scene.Scene
	var inside atomic.Bool
	sc = scene.New(t, &gvstream.HubConfig{Commit: func(_ context.Context, id, _ string, _ []gvstream.Item) error {
		if id == "inside" {
			sc.Hub.Close()
			inside.Store(true)
			return nil
		}
		<-release
		return nil
	}})
	st := gvstream.NewStreamer(nil)
	publish(t, st, "inside", 1)
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	synctest.Wait()
	equal(t, "Close inside of Commit returned", inside.Load(), true)
	sc.Close()

	sc = scene.New(t, &gvstream.HubConfig{Commit: func(context.Context, string, string, []gvstream.Item) error {
		<-release
		return nil
	}})
	st = gvstream.NewStreamer(nil)
	publish(t, st, "outside", 1)
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	synctest.Wait()
	start := time.Now()
	noError(t, sc.Hub.Close())
	equal(t, "time that Close took", time.Since(start), 0)
	close(release)
	sc.Close()
}

func holesInBatches(t *testing.T) {
	// The hub has 1 to 3. Batches with a hole, out of order or with a number twice
	// are refused whole: events and gaps of a batch have to tile it. So the number
	// that is missing is never acknowledged. A hole between batches is a nack.
	sc := scene.New(t, nil)
	a := callAgent(t, sc.Hub, "a")
	noError(t, a.batch("s", epoch1, 1, 2, 3))
	for _, seqs := range [][]uint64{{4, 5, 7}, {5, 4}, {4, 4, 5}, {4, 6}} {
		equal(t, fmt.Sprint(seqs), code(a.batch("s", epoch1, seqs...)), "malformed")
		equal(t, "the agent is told", a.says(), "error malformed")
		equal(t, "accepted", accepted(sc.Hub, "s"), 3)
	}
	noError(t, a.batch("s", epoch1, 4, 5))
	noError(t, a.batch("s", epoch1, 7))
	equal(t, "after a hole", a.says(), "nack s 5")
	noError(t, a.batch("s", epoch1, 3, 4, 5, 6, 7))
	pass(time.Second)
	equal(t, "after it was filled", a.says(), "ack s 7")
	v := newViewer(t, "s", gvstream.Position{})
	sc.Viewer("tab", v)
	sc.Flow()
	equal(t, "a viewer gets", read(t, v), "1..7")
}

func batchesOfTwo(t *testing.T) {
	// A batch names one session, one epoch and one viewer for all of its events: events
	// have no such fields, and if they are there, they are ignored. A batch that names
	// another viewer changes nothing.
	p, err := gvstream.Unmarshal([]byte(`{"type":"event_batch","payload":{"session_id":"s","epoch":"0001","link":"l",
		"first_seq":1,"last_seq":1,"head_seq":1,"events":[{"seq":1,"session_id":"other","epoch":"0002"}]}}`))
	noError(t, err)
	b := p.(*gvstream.EventBatchPayload)
	hub := gvstream.NewHub(nil)
	a := callAgent(t, hub, "a")
	b.Link = a.name
	noError(t, a.link.Handle(t.Context(), b))
	equal(t, "accepted of the one", accepted(hub, "s"), 1)
	equal(t, "accepted of the other", accepted(hub, "other"), 0)
	equal(t, "a batch of an epoch that is not open", code(a.batch("s", epoch2, 2)), "unknown_session")
	equal(t, "a batch of an older epoch", code(a.batch("s", "0000", 2)), "stale_epoch")
	equal(t, "accepted of the one", accepted(hub, "s"), 1)

	// At a viewer: a batch in another viewer's name.
	v := newViewer(t, "s", gvstream.Position{Epoch: epoch1})
	link := v.Connect()
	scene.Next(link)
	noError(t, link.Handle(t.Context(), &gvstream.WelcomePayload{ViewerID: "tab", V: 1, Link: "l"}))
	for _, name := range []string{"another", "tab"} {
		noError(t, link.Handle(t.Context(), &gvstream.EventBatchPayload{SessionID: "s", ViewerID: name, Epoch: epoch1, Link: "l",
			FirstSeq: 1, LastSeq: 1, HeadSeq: 1, Events: numbered(1)}))
		want := ""
		if name == "tab" {
			want = "1"
		}
		equal(t, "a batch for "+name, read(t, v), want)
	}
}

func storeFails(t *testing.T) {
	// The store takes 1 and 2 and fails at 3. The hub acknowledges 2 and no more. When the
	// store works again, the rest is resent and stored once.
	var disk store
	disk.fails = func(items []gvstream.Item) error {
		if items[len(items)-1].Position().Seq > 2 {
			return errors.New("disk full")
		}
		return nil
	}
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
	st := gvstream.NewStreamer(nil)
	w := sc.Agent("a", st)
	publish(t, st, "s", 2)
	sc.Acked()
	publish(t, st, "s", 3)
	publish(t, st, "other", 2)
	sc.Flow()
	equal(t, "what the hub says", refusals(w.Down), "overloaded")
	equal(t, "kept", unacked(st, "s"), "3..5")
	equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), "1..2")
	sc.Acked()
	equal(t, "of another session is kept", unacked(st, "other"), "")

	disk.fails = nil
	w.Forget()
	sc.Later(5 * time.Second) // it is tried again after one second, and after two more
	sc.Acked()
	equal(t, "acks", say(w.Down...), "ack s 2; ack s 5")
	equal(t, "stored", disk.tell("s"), "1..5")
	equal(t, "kept in the end", unacked(st, "s"), "")

	// The store takes nothing of another session, so nothing of it is acknowledged.
	disk.fails = func(items []gvstream.Item) error {
		if items[0].SessionID == "t" {
			return errors.New("disk full")
		}
		return nil
	}
	publish(t, st, "t", 5)
	sc.Flow()
	equal(t, "what the hub says", refusals(w.Down), "overloaded")
	equal(t, "accepted", accepted(sc.Hub, "t"), 0)
	equal(t, "kept", unacked(st, "t"), "1..5")
	disk.fails = nil
	sc.Later(2 * time.Second)
	sc.Acked()
	equal(t, "stored", disk.tell("t"), "1..5")
	equal(t, "kept in the end", unacked(st, "t"), "")
	equalError(t, "the agent's link", w.Near.Err(), nil)
	equalError(t, "the hub's link", w.Far.Err(), nil)
}

func heldIsNotAccepted(t *testing.T) {
	// A viewer is in the middle of a replay, and events have reached the hub whose
	// Commit has not returned. There is no queue to hold them for the viewer; they
	// are neither seen nor acknowledged, and when the hub dies the agent has them.
	var disk store
	stuck := make(chan bool)
	cfg := &gvstream.HubConfig{LogEvents: 2, Commit: func(ctx context.Context, id, epoch string, items []gvstream.Item) error {
		if items[0].Position().Seq > 10 {
			<-stuck
			return errors.New("died")
		}
		return disk.commit(ctx, id, epoch, items)
	}}
	sc := scene.New(t, cfg)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 10)
	w := sc.Agent("a", st)
	sc.Acked()
	v := newViewer(t, "s", gvstream.Position{})
	vw := sc.Viewer("tab", v)
	vw.Flow()
	equal(t, "the viewer waits for a replay of", say(scene.Next(w.Far)), "replay s 1..8")

	publish(t, st, "s", 3)
	b := scene.Next(w.Near)
	equal(t, "on its way", say(b), "batch s 11..13")
	var commit sync.WaitGroup
	commit.Go(func() { w.Far.Handle(t.Context(), b) })
	synctest.Wait()
	pass(time.Second)
	equal(t, "the hub's acks", say(scene.Ready(w.Far)...), "")
	equal(t, "accepted", accepted(sc.Hub, "s"), 10)
	close(stuck)
	commit.Wait()
	sc.Hub.Close()
	w.Cut()
	equal(t, "kept", unacked(st, "s"), "11..13")
}

func quietAgent(t *testing.T) {
	// The hub has acknowledged 7 of 10 when the connection breaks, and nothing is
	// published any more. The rest comes by connecting, at once.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	w := sc.Agent("a", st)
	publish(t, st, "s", 7)
	sc.Acked()
	publish(t, st, "s", 3)
	scene.Ready(w.Near)
	w.Cut()
	start := time.Now()
	w = sc.Agent("a", st)
	sc.Flow()
	equal(t, "the agent says", say(w.Up...), "hello; status s 10 acked 7; batch s 8; batch s 9..10")
	equal(t, "time it took", time.Since(start), 0)
	equal(t, "accepted", accepted(sc.Hub, "s"), 10)
}

func burstOverOneEvent(t *testing.T) {
	// A burst of ten thousand unimportant events follows one that matters. With a policy
	// that drops, either that one is still there or it lies in a gap that says so.
	for _, first := range []bool{true, false} {
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: 100})
		if first {
			publish(t, st, "s", 1) // the one that matters
		}
		publish(t, st, "s", 10_000)
		if !first {
			publish(t, st, "s", 1)
		}
		equal(t, "lost", stats(t, st, "s").Lost, 9901)
		sc := scene.New(t, nil)
		sc.Agent("a", st)
		sc.Acked()
		equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), "gap 1..9901 dropped, 9902..10001")
	}
}

func publisherReusesBytes(t *testing.T) {
	// The publisher reuses its buffer. What was published is sent, resent and replayed as
	// it was.
	st := gvstream.NewStreamer(nil)
	data, raw := []byte(`"one"`), []byte("one")
	_, err := st.Publish(scene.Ended, "s", gvstream.Event{Data: data})
	noError(t, err)
	_, err = st.Publish(scene.Ended, "s", gvstream.Event{Bytes: raw})
	noError(t, err)
	copy(data, `"XXX"`)
	copy(raw, "XXX")
	lines := bufio.NewScanner(strings.NewReader("two\nsix\n"))
	for lines.Scan() {
		_, err := st.Publish(scene.Ended, "s", gvstream.Event{Bytes: lines.Bytes()})
		noError(t, err)
	}
	contents := func(p gvstream.Payload) (out string) {
		var events []gvstream.Event
		switch p := scene.Recode(t, p).(type) {
		case *gvstream.EventBatchPayload:
			events = p.Events
		case *gvstream.ReplayBatchPayload:
			events = p.Events
		}
		for _, e := range events {
			out += string(e.Data) + string(e.Bytes)
		}
		return out
	}
	for range 2 { // sent, and sent again
		h := answer(t, st, 256)
		scene.Next(h.link) // its status
		noError(t, h.ack("s", 0))
		equal(t, "batches", contents(scene.Next(h.link))+contents(scene.Next(h.link)), `"one"onetwosix`)
		noError(t, h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "s", RequestID: "r"}))
		equal(t, "replay", contents(scene.Next(h.link)), `"one"onetwosix`)
	}
	for e := range st.Unacked("s") { // a copy as well
		copy(e.Data, "XXXXX")
		copy(e.Bytes, "XXX")
	}
	h := answer(t, st, 256)
	scene.Next(h.link)
	noError(t, h.ack("s", 0))
	equal(t, "after changing what Unacked gave", contents(scene.Next(h.link))+contents(scene.Next(h.link)), `"one"onetwosix`)
}

func closeWaitsForAcks(t *testing.T) {
	// Close waits for acks that come half a second late. Without a hub it gives up when its
	// context ends and reports how much is left, which can still be read.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 100)
	h := answer(t, st, 256)
	equal(t, "sent", h.says(), "status s 100 acked 0; batch s 1; batch s 2..17; batch s 18..50; batch s 51..100")
	var late sync.WaitGroup
	late.Go(func() {
		pass(500 * time.Millisecond)
		h.ack("s", 100)
	})
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	noError(t, st.Close(ctx))
	cancel()
	equal(t, "time until acknowledged", time.Since(start), 500*time.Millisecond)
	late.Wait()

	for _, attached := range []bool{true, false} {
		st := gvstream.NewStreamer(nil)
		publish(t, st, "s", 100)
		if attached {
			answer(t, st, 256).says()
		}
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		err := st.Close(ctx)
		cancel()
		var left *gvstream.UnackedError
		equal(t, "Close says what is left", errors.As(err, &left), true)
		equal(t, "events left", left.Events, 100)
		equal(t, "the reason", errors.Is(err, context.DeadlineExceeded), true)
		equal(t, "time until given up", time.Since(start), 2*time.Second)
		equal(t, "kept", unacked(st, "s"), "1..100")
	}
}

func closeDrains(t *testing.T) {
	// The hub may hold its ack back for a moment. Close waits for that moment and no
	// longer. The end of a session is acknowledged at once, and a viewer hears of it
	// after everything else.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	synctest.Wait()
	publish(t, st, "s", 10)
	start := time.Now()
	noError(t, st.Close(context.Background()))
	equal(t, "time until the held ack came", time.Since(start), 250*time.Millisecond)
	sc.Close()

	sc = scene.New(t, nil)
	st = gvstream.NewStreamer(nil)
	publish(t, st, "s", 300) // more than one window
	_, err := st.End(scene.Ended, "s", event(301))
	noError(t, err)
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	start = time.Now()
	noError(t, st.Close(context.Background()))
	equal(t, "time until the end was acknowledged", time.Since(start), 0)
	equal(t, "a viewer gets", follow(sc, "tab", "s", gvstream.Position{}), "1..301, end")
	sc.Close()
}

func lateCleanup(t *testing.T) {
	// A new connection is already up when the old one is finally closed, on either side.
	// The new one is not affected.
	sc := scene.New(t, nil)
	st, v := gvstream.NewStreamer(nil), newViewer(t, "s", gvstream.Position{})
	old, oldViewer := sc.Agent("a", st), sc.Viewer("tab", v)
	publish(t, st, "s", 1)
	sc.Flow()
	w := sc.Agent("a", st)
	sc.Viewer("tab", v)
	sc.Flow()
	_, err := old.Near.Next(scene.Ended)
	equal(t, "the old link", err, gvstream.ErrSuperseded)
	old.Cut()
	oldViewer.Cut()
	equal(t, "links at the hub", fmt.Sprint(sc.Hub.Stats().Agents, sc.Hub.Stats().Viewers), "1 1")
	w.Forget()
	publish(t, st, "s", 1)
	sc.Flow()
	equal(t, "on the new link", say(w.Up...), "batch s 2")
	equal(t, "the viewer gets", read(t, v), "1..2")
}

func oneWinner(t *testing.T) {
	// Ten connections are made at once, at an agent and at a hub. One stays on either
	// side, nine are superseded, and the one that stays sends everything once. Ten
	// more, one right after the other and before anything of the old is cleaned up,
	// end in the same way.
	st, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	publish(t, st, "s", 5)
	for range 2 {
		var superseded, alive [2]atomic.Int32
		var work, gone sync.WaitGroup
		ctx, stop := context.WithCancel(context.Background())
		winner := make(chan *gvstream.Link, 10)
		for range 10 {
			work.Go(func() {
				for side, link := range []*gvstream.Link{st.Connect(), hub.ConnectAgent("a")} {
					if side == 0 {
						winner <- link
					}
					gone.Go(func() {
						alive[side].Add(1)
						_, err := link.Next(ctx)
						for err == nil { // its hello
							_, err = link.Next(ctx)
						}
						alive[side].Add(-1)
						if err == gvstream.ErrSuperseded {
							superseded[side].Add(1)
						}
					})
				}
			})
		}
		work.Wait()
		synctest.Wait()
		for side, name := range []string{"agent", "hub"} {
			equal(t, name+": superseded", superseded[side].Load(), 9)
			equal(t, name+": alive", alive[side].Load(), 1)
		}
		stop()
		gone.Wait()
		close(winner)
		var said []string
		for link := range winner {
			noMoreThanDead(t, link.Handle(t.Context(), &gvstream.WelcomePayload{V: 1, Link: "l", WindowEvents: 8}))
			noMoreThanDead(t, link.Handle(t.Context(), &gvstream.AckBatchPayload{SessionID: "s", Epoch: stats(t, st, "s").Epoch, Link: "l"}))
			if all := say(scene.Ready(link)...); all != "" {
				said = append(said, all)
			}
		}
		equal(t, "said by all ten", strings.Join(said, " | "), "status s 5 acked 0; batch s 1; batch s 2..5")
	}

	var disk store
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
	for range 10 {
		sc.Agent("a", st)
	}
	sc.Acked()
	equal(t, "stored", disk.tell("s"), "1..5")
	equal(t, "links", sc.Hub.Stats().Agents, 1)
}

// noMoreThanDead fails the test for an error other than that the link is superseded.
func noMoreThanDead(t *testing.T, err error) {
	t.Helper()
	if err != gvstream.ErrSuperseded {
		noError(t, err)
	}
}

func endedGivesBack(t *testing.T) {
	// A thousand sessions end, a viewer has watched some of them, and time passes.
	// Agent, hub and viewer hold nothing of them, and the memory is free again.
	const sessions, events, watched = 1000, 10, 100
	before := testenv.HeapInUse()
	sc := scene.New(t, &gvstream.HubConfig{SessionTTL: time.Hour})
	st := gvstream.NewStreamer(nil)
	agent := sc.Agent("a", st)
	agent.Shared = true
	v := gvstream.NewViewer(&gvstream.ViewerConfig{Window: 1 << 20, WindowBytes: 1 << 30})
	for i := range watched {
		noError(t, v.Watch(fmt.Sprint("s", i), gvstream.Position{}))
	}
	tab := sc.Viewer("tab", v)
	tab.Shared = true
	for i := range sessions {
		id := fmt.Sprint("s", i)
		for range events {
			_, err := st.Publish(scene.Ended, id, gvstream.Event{Data: text(1 << 10)})
			noError(t, err)
		}
		_, err := st.End(scene.Ended, id, gvstream.Event{})
		noError(t, err)
	}
	sc.Acked()
	equal(t, "sessions at both", fmt.Sprint(st.Stats().Sessions, sc.Hub.Stats().Sessions), "1000 1000")
	if held := testenv.HeapInUse() - before; held < 2*sessions*events<<10 {
		t.Errorf("only %d bytes are held: this shows nothing", held)
	}
	equal(t, "items", len(readItems(t, v)), watched*(events+2))
	agent.Forget()
	tab.Forget()
	for i := range watched {
		equal(t, "watches of an ended session", hubStats(sc.Hub, fmt.Sprint("s", i)).Viewers, 0)
		v.Unwatch(fmt.Sprint("s", i))
	}
	sc.Later(5 * time.Minute)
	equal(t, "what the agent holds", st.Stats(), gvstream.StreamerStats{Connected: true})
	sc.Later(time.Hour)
	equal(t, "sessions at the hub", sc.Hub.Stats().Sessions, 0)
	equal(t, "what the viewer holds", v.Stats(), gvstream.ViewerStats{Connected: true})
	agent.Forget()
	tab.Forget()
	if grown := testenv.HeapInUse() - before; grown > 10<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	runtime.KeepAlive([]any{sc, st, v})
}

func pendingFullRejects(t *testing.T) {
	// Four events may be pending, and nobody takes them. The fifth is refused and uses no
	// number; the four stay as they are. After the ack the number is there.
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.Reject, MaxPendingEvents: 4})
	publish(t, st, "s", 4)
	for range 3 {
		_, err := st.Publish(scene.Ended, "s", event(5))
		equalError(t, "the fifth", err, gvstream.ErrPendingFull)
		equal(t, "kept", unacked(st, "s"), "1..4")
	}
	h := answer(t, st, 256)
	h.says()
	noError(t, h.ack("s", 4))
	seq, err := st.Publish(scene.Ended, "s", event(5))
	noError(t, err)
	equal(t, "its number now", seq, 5)
	equal(t, "sent", h.says(), "batch s 5")
}

func pendingFullResends(t *testing.T) {
	// The pending events have exactly reached their limit, and so has the window, when the
	// connection breaks. The next one sends all of it again: nothing counts as on its way
	// any more.
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.Reject, MaxPendingEvents: 4})
	publish(t, st, "s", 4)
	equal(t, "sent", answer(t, st, 4).says(), "status s 4 acked 0; batch s 1; batch s 2..4")
	for range 3 {
		h := answer(t, st, 4)
		equal(t, "announced", h.says(), "status s 4 acked 0")
		noError(t, h.ack("s", 0))
		equal(t, "sent again", h.says(), "batch s 1; batch s 2..4")
	}
}

func pendingFullBlocks(t *testing.T) {
	// Publish waits while the limit of pending events is reached: until its context ends,
	// until Close, or until there is room.
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxPendingEvents: 1})
	publish(t, st, "s", 1)
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	_, err := st.Publish(ctx, "s", event(2))
	cancel()
	equal(t, "Publish", err, context.DeadlineExceeded)
	equal(t, "time it waited", time.Since(start), 100*time.Millisecond)

	h := answer(t, st, 256)
	h.says()
	var waiting sync.WaitGroup
	waiting.Go(func() {
		seq, err := st.Publish(context.Background(), "s", event(2))
		if seq != 2 || err != nil {
			t.Errorf("with room: %d, %v", seq, err)
		}
	})
	synctest.Wait()
	noError(t, h.ack("s", 1))
	waiting.Wait()

	for range 5 {
		waiting.Go(func() {
			if _, err := st.Publish(context.Background(), "s", event(3)); err != gvstream.ErrClosed {
				t.Errorf("closed: %v", err)
			}
		})
	}
	synctest.Wait()
	st.Close(scene.Ended)
	waiting.Wait()
}

func numbersUnderContention(t *testing.T) {
	// Sixty-four goroutines publish at once. The numbers are 1 to the last without a
	// hole, each goroutine's grow, and what is kept, sent and stored is in their order.
	const publishers = 64
	each := testenv.Fewer(1000)
	var disk store
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxPendingEvents: publishers * each})
	got := make([][]uint64, publishers)
	var work sync.WaitGroup
	for g := range publishers {
		work.Go(func() {
			for i := range each {
				seq, err := st.Publish(sc.Context(), "s", gvstream.Event{Type: "x", Data: fmt.Append(nil, g*each+i)})
				if err != nil {
					t.Error(err)
				}
				got[g] = append(got[g], seq)
			}
		})
	}
	work.Wait()
	data := make(map[uint64]string) // by number
	for g, seqs := range got {
		equal(t, "numbers of one publisher grow", slices.IsSorted(seqs), true)
		for i, seq := range seqs {
			data[seq] = fmt.Sprint(g*each + i)
		}
	}
	equal(t, "numbers", len(data), publishers*each)
	equal(t, "kept", unacked(st, "s"), fmt.Sprintf("1..%d", publishers*each))

	var last uint64
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), func(p gvstream.Payload) {
		if b, ok := p.(*gvstream.EventBatchPayload); ok {
			if b.FirstSeq != last+1 {
				t.Errorf("%d..%d was sent after %d", b.FirstSeq, b.LastSeq, last)
			}
			last = b.LastSeq
		}
	})
	noError(t, st.Flush(context.Background()))
	sc.Close()
	equal(t, "stored", disk.tell("s"), fmt.Sprintf("1..%d", publishers*each))
	for i, it := range disk.items["s"] {
		equal(t, fmt.Sprint("data of ", i+1), string(it.Event.Data), data[uint64(i+1)])
	}
}

func oneMillisecond(t *testing.T) {
	// The clock stands still for a thousand events and a thousand sessions. Their
	// positions differ all the same, and later epochs are greater.
	st := gvstream.NewStreamer(nil)
	start := time.Now()
	publish(t, st, "s", 1000)
	seen := make(map[uint64]bool)
	for e := range st.Unacked("s") {
		equal(t, "time", e.Time.Equal(start), true)
		seen[e.Seq] = true
	}
	equal(t, "different numbers", len(seen), 1000)
	last := ""
	for i := range 1000 {
		epoch := stats(t, st, fmt.Sprint("s", i)).Epoch
		equal(t, "the next epoch is greater", epoch > last, true)
		last = epoch
	}
}

func nothingLeftBehind(t *testing.T) {
	// Connections are made and break hundreds of times, most of them in the middle of a
	// send. No link, goroutine or timer remains: otherwise the bubble would not end, or
	// would report that something in it is stuck.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest})
	v := gvstream.NewViewer(nil)
	noError(t, v.Watch("s", gvstream.Position{}))
	broken := errors.New("broken")
	for i := range 250 {
		publish(t, st, "s", 1)
		for _, ends := range [][2]*gvstream.Link{
			{st.Connect(), sc.Hub.ConnectAgent("a")}, {v.Connect(), sc.Hub.ConnectViewer("tab")},
		} {
			near, far := streamtest.Pipe()
			var run sync.WaitGroup
			run.Go(func() { ends[1].Run(t.Context(), far.Send, far.Receive); far.Close() })
			sends := 0
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // all of them take more than the scene's hour
			err := ends[0].Run(ctx, func(ctx context.Context, p gvstream.Payload) error {
				if sends++; sends > i%3 {
					return broken
				}
				return near.Send(ctx, p)
			}, near.Receive)
			cancel()
			near.Close()
			run.Wait()
			if err != broken && err != context.DeadlineExceeded {
				t.Fatalf("Run: %v", err)
			}
		}
	}
	equal(t, "links at the hub", fmt.Sprint(sc.Hub.Stats().Agents, sc.Hub.Stats().Viewers), "0 0")
	equal(t, "connected", st.Stats().Connected, false)
	sc.Close()
}

func resendIsNotOvertaken(t *testing.T) {
	// A thousand events are pending when a connection is made, and eight goroutines publish
	// two hundred more at the same time. All are sent in ascending order.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 1000)
	var sent []uint64
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), func(p gvstream.Payload) {
		if b, ok := p.(*gvstream.EventBatchPayload); ok {
			for _, e := range b.Events {
				sent = append(sent, e.Seq)
			}
		}
	})
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 25 {
				if _, err := st.Publish(sc.Context(), "s", gvstream.Event{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	noError(t, st.Flush(context.Background()))
	sc.Close()
	equal(t, "sent", fmt.Sprint(sent), fmt.Sprint(to(1, 1200)))
}

func orderOfNumbers(t *testing.T) {
	// Twenty-six events are sent as 1, 2, 3 and not as 1, 10, 11, each time.
	for range 50 {
		st := gvstream.NewStreamer(nil)
		publish(t, st, "s", 26)
		h := answer(t, st, 5)
		sent := []string{h.says()}
		for upTo := uint64(5); upTo < 30; upTo += 5 {
			noError(t, h.ack("s", upTo))
			sent = append(sent, h.says())
		}
		equal(t, "sent", strings.Join(sent, "; "), "status s 26 acked 0; batch s 1; batch s 2..5; batch s 6..10; batch s 11..15; batch s 16..20; batch s 21..25; batch s 26")
	}
}

func twoProducers(t *testing.T) {
	// Two processes run as one agent with the same session. The second has the
	// greater epoch; the first is refused as soon as it speaks again, and what the
	// hub holds of an epoch comes from one of them alone. A process that runs as
	// another agent gets nowhere.
	var disk store
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
	first, second := gvstream.NewStreamer(nil), gvstream.NewStreamer(nil)
	publish(t, first, "s", 3)
	sc.Agent("a", first)
	sc.Flow()
	publish(t, second, "s", 2)
	sc.Agent("a", second)
	sc.Flow()
	publish(t, first, "s", 1)
	sc.Agent("a", first)
	sc.Flow()
	_, err := first.Publish(scene.Ended, "s", event(5))
	equal(t, "the first one's Publish", code(err), "stale_epoch")
	equal(t, "its Flush", code(first.Flush(scene.Ended)), "stale_epoch")
	equal(t, "the hub's epoch is the second's", hubStats(sc.Hub, "s").Epoch, stats(t, second, "s").Epoch)

	sc.Agent("a", second)
	publish(t, second, "s", 1)
	sc.Flow()
	other := gvstream.NewStreamer(nil)
	publish(t, other, "s", 1)
	sc.Agent("b", other)
	sc.Flow()
	_, err = other.Publish(scene.Ended, "s", event(2))
	equal(t, "another agent's Publish", code(err), "forbidden")
	equal(t, "stored", disk.tell("s"), "1..3, 1..3")
	seen := make(map[gvstream.Position]bool)
	for _, it := range disk.items["s"] {
		equal(t, "stored twice", seen[it.Position()], false)
		seen[it.Position()] = true
	}
}

func largeEvent(t *testing.T) {
	// An event of 2 MiB is refused before it has a number, and nothing else is
	// touched. One that only the hub finds too large becomes a declared gap.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 2)
	_, err := st.Publish(scene.Ended, "s", gvstream.Event{Data: text(2 << 20)})
	equalError(t, "Publish", err, gvstream.ErrTooLarge)
	publish(t, st, "s", 1)
	equal(t, "kept", unacked(st, "s"), "1..3")
	_, err = st.Publish(scene.Ended, "s", gvstream.Event{Type: "large", Data: text(5000)})
	noError(t, err)
	publish(t, st, "s", 1)

	sc := scene.New(t, &gvstream.HubConfig{MaxEventBytes: 4000})
	w := sc.Agent("a", st)
	sc.Acked()
	equal(t, "said by the hub", refusals(w.Down), "event_too_large 4")
	equal(t, "kept in the end", unacked(st, "s"), "")
	equal(t, "lost", stats(t, st, "s").Lost, 1)
	equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), "1..3, gap 4..4 rejected, 5")
}

func totalBytes(t *testing.T) {
	// A hundred sessions share a budget that sixteen of them would fill. It is
	// never exceeded: what is acknowledged goes first, oldest first; when nothing of
	// that is left, Publish says so, and what is pending stays.
	const budget = 640 << 10
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.Reject, MaxTotalBytes: budget})
	sc := scene.New(t, nil)
	w := sc.Agent("a", st)
	large := text(4 << 10)
	add := func(i int) error {
		_, err := st.Publish(scene.Ended, fmt.Sprint("s", i), gvstream.Event{Data: large})
		if got := st.Stats().Bytes; got > budget {
			t.Fatalf("%d bytes of %d", got, budget)
		}
		return err
	}
	for i := range 100 {
		for range 10 {
			noError(t, add(i))
		}
		sc.Acked()
	}
	equal(t, "the first session, evicted", stats(t, st, "s0").Events, 0)
	equal(t, "the last session, kept", stats(t, st, "s99").Events, 10)
	w.Cut()
	n := 0
	for add(n%100) == nil {
		n++
	}
	if left := budget - st.Stats().Bytes; left > 4<<10+100 {
		t.Errorf("%d bytes are left, enough for one more", left)
	}
	equalError(t, "refused with", add(0), gvstream.ErrPendingFull)
	equal(t, "pending", st.Stats().PendingEvents, n)
}

func afterTheEnd(t *testing.T) {
	// The session has ended. Late events, acks and batches are refused or ignored and
	// revive nothing; a later session with the same id has none of the old events.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	w := sc.Agent("a", st)
	publish(t, st, "s", 2)
	_, err := st.End(scene.Ended, "s", event(3))
	noError(t, err)
	sc.Acked()
	_, err = st.Publish(scene.Ended, "s", event(4))
	equal(t, "a late event", err, gvstream.ErrEnded)
	_, err = st.End(scene.Ended, "s", event(4))
	equal(t, "a second end", err, gvstream.ErrEnded)
	old := stats(t, st, "s").Epoch
	batch := w.Up[2].(*gvstream.EventBatchPayload)
	late := &gvstream.EventBatchPayload{SessionID: "s", Epoch: old, Link: batch.Link, FirstSeq: 4, LastSeq: 4, HeadSeq: 4, Events: numbered(4)}
	equal(t, "a late batch", code(w.Far.Handle(t.Context(), late)), "session_ended")
	scene.Ready(w.Far) // the agent need not hear of it
	ack := &gvstream.AckBatchPayload{SessionID: "s", Epoch: old, Link: batch.Link, UpToSeq: 3}
	noError(t, w.Near.Handle(t.Context(), ack))

	sc.Later(6 * time.Minute)
	equal(t, "sessions of the agent", st.Stats().Sessions, 0)
	equal(t, "a late ack", code(w.Near.Handle(t.Context(), ack)), "unknown_session")
	equal(t, "sessions of the agent", st.Stats().Sessions, 0)
	publish(t, st, "s", 1)
	sc.Acked()
	equal(t, "a batch of the old life", code(w.Far.Handle(t.Context(), late)), "stale_epoch")
	equal(t, "the new life", stats(t, st, "s").Epoch > old, true)
	equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), "1")
}

func idleSessions(t *testing.T) {
	// Idle sessions are forgotten, except those whose events nobody has acknowledged, those
	// that somebody watches, and those whose agent is connected.
	sc := scene.New(t, &gvstream.HubConfig{SessionTTL: time.Hour})
	away, stays := gvstream.NewStreamer(nil), gvstream.NewStreamer(nil)
	publish(t, away, "watched", 1)
	publish(t, away, "unwatched", 1)
	publish(t, stays, "attached", 1)
	w := sc.Agent("away", away)
	sc.Agent("stays", stays)
	v := newViewer(t, "watched", gvstream.Position{})
	vw := sc.Viewer("tab", v)
	sc.Acked()
	w.Cut()
	_, err := away.End(scene.Ended, "watched", event(2)) // not acknowledged
	noError(t, err)
	known := func() string {
		var ids []string
		for s := range sc.Hub.Sessions() {
			ids = append(ids, s.SessionID)
		}
		return strings.Join(ids, " ")
	}
	sc.Later(time.Hour - 2*time.Second)
	equal(t, "known just before an hour", known(), "attached unwatched watched")
	sc.Later(3 * time.Second)
	equal(t, "known after an hour", known(), "attached watched")
	sc.Later(3 * time.Hour)
	equal(t, "known after four hours", known(), "attached watched")
	equal(t, "kept by the agent that is away", unacked(away, "watched"), "2")
	vw.Cut()
	pass(time.Second)
	equal(t, "known when the viewer has left", known(), "attached")
}

func fewAcks(t *testing.T) {
	// Ten thousand events in a second cost one ack for each 512 of them, half a window, or a
	// quarter of a second, and the last of them is acknowledged a quarter of a second later. The
	// agent never holds more than the window.
	sc := scene.New(t, nil)
	st := gvstream.NewStreamer(nil)
	w := sc.Agent("a", st)
	sc.Flow()
	w.Forget()
	for range 1000 {
		publish(t, st, "s", 10)
		if pending := st.Stats().PendingEvents; pending > 1024 {
			t.Fatalf("%d are pending", pending)
		}
		sc.Flow()
		pass(time.Millisecond)
	}
	last := time.Now().Add(-time.Millisecond)
	for st.Stats().PendingEvents > 0 {
		pass(time.Millisecond)
		sc.Flow()
	}
	if wait := time.Since(last); wait > 250*time.Millisecond {
		t.Errorf("the last event waited %v for its ack", wait)
	}
	if len(w.Down) > 24 {
		t.Errorf("%d acks", len(w.Down))
	}
	equal(t, "last ack", say(w.Down[len(w.Down)-1]), "ack s 10000")
}
