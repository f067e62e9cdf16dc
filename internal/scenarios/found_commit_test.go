package scenarios_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/testenv"
	"github.com/vibetools/gvstream/streamtest"
)

// A store that failed for one session ended its agent's link, again and again: another session of
// the same agent got nothing through in 3,600 connections, if its id came later.
func foundF01(t *testing.T) {
	for _, bad := range []string{"a", "c"} {
		t.Run("a store that fails for "+bad, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var disk store
				start := time.Now()
				var commits []time.Duration // of the session that can't be stored
				sc := scene.New(t, &gvstream.HubConfig{Commit: func(ctx context.Context, id, epoch string, items []gvstream.Item) error {
					if id == bad {
						commits = append(commits, time.Since(start).Round(time.Second))
						return errors.New("disk full")
					}
					return disk.commit(ctx, id, epoch, items)
				}})
				st := gvstream.NewStreamer(nil)
				publish(t, st, bad, 1)
				publish(t, st, "b", 1)
				w := sc.Agent("agent", st)
				for i := range 60 { // a minute
					publish(t, st, "b", 1)
					sc.Acked()
					equal(t, fmt.Sprint("of b, unacknowledged after second ", i+1), unacked(st, "b"), "")
				}
				equal(t, "hellos", strings.Count(say(w.Up...), "hello"), 1)
				equal(t, "links that broke", len(w.Errs), 0)
				equal(t, "commits in the minute", fmt.Sprint(commits), "[0s 1s 3s 7s 15s 31s]")
				for _, p := range w.Down {
					if e, ok := p.(*gvstream.ErrorPayload); ok && (!e.Retryable || e.SessionID != bad) {
						t.Errorf("the hub says %+v", e)
					}
				}
				sc.Later(time.Hour)
				if len(commits) < 30 || len(commits) > 45 { // 1, 2, 4 … 64 s, and every two minutes
					t.Errorf("%d commits in an hour", len(commits))
				}
				equal(t, "kept", unacked(st, bad), "1")
			})
		})
	}

	// The same with a transport on which one session's payloads fail, whatever its id is.
	for _, bad := range []string{"a", "c"} {
		failing := func(send gvstream.SendFunc) gvstream.SendFunc {
			return func(ctx context.Context, p gvstream.Payload) error {
				if b, ok := p.(*gvstream.EventBatchPayload); ok && b.SessionID == bad {
					return errors.New("can't be sent")
				}
				return send(ctx, p)
			}
		}
		connect := func(sc *scene.Scene, near, far *gvstream.Link, toHub bool) {
			a, b := streamtest.Pipe()
			up, down := a.Send, b.Send
			if toHub {
				up = failing(up)
			} else {
				down = failing(down)
			}
			done := make(chan struct{})
			sc.Go(func() { far.Run(sc.Context(), down, b.Receive); b.Close(); close(done) })
			near.Run(sc.Context(), up, a.Receive)
			a.Close()
			<-done
			pass(time.Second)
		}
		t.Run("an agent that can't send "+bad, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				st := gvstream.NewStreamer(nil)
				publish(t, st, bad, 1)
				publish(t, st, "b", 1)
				for range 64 {
					connect(sc, st.Connect(), sc.Hub.ConnectAgent("agent"), true)
				}
				equal(t, "of b, accepted", accepted(sc.Hub, "b"), 1)
			})
		})
		t.Run("a hub that can't send "+bad, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := scene.New(t, nil)
				st := gvstream.NewStreamer(nil)
				publish(t, st, bad, 1)
				publish(t, st, "b", 1)
				sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), nil)
				pass(time.Second)
				v := newViewer(t, bad, gvstream.Position{})
				noError(t, v.Watch("b", gvstream.Position{}))
				for range 64 {
					connect(sc, v.Connect(), sc.Hub.ConnectViewer("tab"), false)
				}
				equal(t, "the viewer gets of b", read(t, v), "1")
			})
		})
	}
}

// Commits of one agent ran one at a time, and what had come together for a session was not merged:
// a store of 5 ms took 176 events a second of 1,000, and the agent's link was lost.
func foundF02(t *testing.T) {
	t.Run("a store of 5 ms", func(t *testing.T) { foundF02Late(t) })

	// 500 sessions and a store of 200 ms cost the link.
	t.Run("a store of 200 ms", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			calls, items := 0, 0
			sc := scene.New(t, &gvstream.HubConfig{Commit: func(_ context.Context, _, _ string, stored []gvstream.Item) error {
				time.Sleep(200 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				calls, items = calls+1, items+len(stored)
				return nil
			}})
			st := gvstream.NewStreamer(nil)
			agent := st.Connect()
			sc.Join(agent, sc.Hub.ConnectAgent("agent"), nil)
			sessions, each := 500, testenv.Fewer(100)
			for range each {
				for i := range sessions {
					publish(t, st, fmt.Sprint("s", i), 1)
				}
				pass(time.Second)
			}
			pass(5 * time.Second)
			equal(t, "pending", st.Stats().PendingEvents, 0)
			equal(t, "the link is alive", agent.Err(), nil)
			sc.Close()
			equal(t, "items", items, sessions*each)
			if calls > items*9/10 { // a call takes what came during the turns of the others
				t.Errorf("%d calls for %d items", calls, items)
			}
		})
	})

	// What a store that hangs makes the hub hold for one agent is bounded, and the rest waits there.
	t.Run("a store that hangs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const most, batch = 1 << 20, 256 << 10
			release := make(chan struct{})
			var disk store
			sc := scene.New(t, &gvstream.HubConfig{MaxUncommittedBytes: most, Commit: func(ctx context.Context, id, epoch string, items []gvstream.Item) error {
				<-release
				return disk.commit(ctx, id, epoch, items)
			}})
			st := gvstream.NewStreamer(nil)
			const sessions, each, size = 20, 30, 10_000
			for i := range sessions {
				for range each {
					_, err := st.Publish(t.Context(), fmt.Sprint("s", i), sized(size))
					noError(t, err)
				}
			}
			agent := st.Connect()
			sc.Join(agent, sc.Hub.ConnectAgent("agent"), nil)
			pass(5 * time.Minute)
			equal(t, "the link is alive", agent.Err(), nil)
			agent.Close()
			pass(time.Second)
			close(release) // what the hub had received is stored
			pass(time.Second)
			held := 0
			for i := range sessions {
				disk.mu.Lock()
				held += size * len(disk.items[fmt.Sprint("s", i)])
				disk.mu.Unlock()
			}
			if held < most/2 || held > most+batch {
				t.Errorf("the hub held %d bytes, and may hold %d", held, most)
			}
			sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), nil)
			noError(t, st.Flush(sc.Context()))
			sc.Close()
		})
	})
}

func foundF02Late(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sessions, seconds := testenv.Fewer(1000), 20
		var late []time.Duration
		done := make(chan time.Duration, sessions*seconds)
		sc := scene.New(t, &gvstream.HubConfig{Commit: func(_ context.Context, _, _ string, items []gvstream.Item) error {
			time.Sleep(5 * time.Millisecond)
			for _, it := range items {
				done <- time.Since(it.Event.Time)
			}
			return nil
		}})
		st := gvstream.NewStreamer(nil)
		hellos := 0
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), func(p gvstream.Payload) {
			if _, ok := p.(*gvstream.HelloPayload); ok {
				hellos++
			}
		})
		for range seconds {
			for i := range sessions {
				publish(t, st, fmt.Sprint("s", i), 1)
				pass(time.Second / time.Duration(sessions))
			}
		}
		pass(5 * time.Second)
		for range sessions * seconds {
			late = append(late, <-done)
		}
		slices.Sort(late)
		if p99 := late[len(late)*99/100]; p99 >= time.Second {
			t.Errorf("99 of 100 events are stored within %v, the last after %v", p99, late[len(late)-1])
		}
		equal(t, "pending", st.Stats().PendingEvents, 0)
		sc.Close()
		equal(t, "hellos", hellos, 1)
	})
}

// Each event that the store refused made the agent send its whole window again: 485 times the bytes
// for 1,000 refused events, 10 times for 75 of 300 that were too large.
func foundF11(t *testing.T) {
	for name, cfg := range map[string]*gvstream.HubConfig{
		"each is refused": {Commit: func(_ context.Context, _, _ string, items []gvstream.Item) error {
			for _, it := range items {
				if it.Event != nil {
					return &gvstream.ProtocolError{Code: "event_rejected", Seq: it.Event.Seq}
				}
			}
			return nil
		}},
		"each range is refused": {Commit: func(_ context.Context, _, _ string, items []gvstream.Item) error {
			var refused *gvstream.ProtocolError
			for _, it := range items {
				switch {
				case it.Event == nil:
				case refused == nil:
					refused = &gvstream.ProtocolError{Code: gvstream.CodeEventRejected, Seq: it.Event.Seq, ToSeq: it.Event.Seq}
				default:
					refused.ToSeq = it.Event.Seq
				}
			}
			if refused != nil {
				return refused
			}
			return nil
		}},
		"every fourth is too large": {MaxEventBytes: 1000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := gvstream.NewStreamer(nil)
				once, sent, refusals := 0, 0, 0
				for i := range 1000 {
					data := text(200)
					if i%4 == 0 && cfg.MaxEventBytes > 0 {
						data = text(2000)
					}
					if _, err := st.Publish(t.Context(), "s", gvstream.Event{Data: data}); err != nil {
						t.Fatal(err)
					}
					once += len(data) + 60
				}
				sc := scene.New(t, cfg)
				w := sc.Agent("agent", st)
				w.See = func(p gvstream.Payload) {
					if b, ok := p.(*gvstream.EventBatchPayload); ok {
						line, err := gvstream.Marshal(b)
						noError(t, err)
						sent += len(line)
					}
					if _, ok := p.(*gvstream.ErrorPayload); ok {
						refusals++
					}
				}
				sc.Later(time.Minute)
				equal(t, "pending", st.Stats().PendingEvents, 0)
				lost := uint64(1000)
				if cfg.MaxEventBytes > 0 {
					lost = 250
				}
				equal(t, "lost", stats(t, st, "s").Lost, lost)
				if name == "each range is refused" && refusals > 20 {
					t.Errorf("%d refusals", refusals)
				}
				if sent > 2*once {
					t.Errorf("%d bytes were sent for %d of events", sent, once)
				}
			})
		})
	}
}

// A hub whose clock was more than a day behind for a moment refused sessions for good.
func foundF12(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := gvstream.NewHub(nil)
		ahead := epoch.NewSource(rand.Reader).Next(time.Now().Add(25 * time.Hour))
		a := callAgent(t, hub, "agent")
		var refused *gvstream.ProtocolError
		if err := a.status("s", ahead, 0, 0); !errors.As(err, &refused) || !refused.Retryable || refused.Epoch != ahead {
			t.Errorf("refused with %v", err)
		}
		pass(2 * time.Hour)
		a = callAgent(t, hub, "agent")
		noError(t, a.status("s", ahead, 0, 0))
	})

	// A Streamer goes on by itself when the hub's clock is right, on the same link.
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, nil)
		st := gvstream.NewStreamer(nil)
		publish(t, st, "s", 1)
		is := stats(t, st, "s").Epoch
		ahead := laterBy(is, 24*time.Hour+20*time.Minute-time.Until(epochTime(is)))
		a, b := streamtest.Pipe()
		agent, hub := st.Connect(), sc.Hub.ConnectAgent("agent")
		sc.Go(func() { hub.Run(sc.Context(), renamed(b.Send, []byte(ahead), []byte(is)), b.Receive); b.Close() })
		sc.Go(func() { agent.Run(sc.Context(), renamed(a.Send, []byte(is), []byte(ahead)), a.Receive); a.Close() })
		pass(19 * time.Minute)
		publish(t, st, "s", 1)
		equal(t, "while the hub is behind, unacknowledged", unacked(st, "s"), "1..2")
		pass(4 * time.Minute)
		equal(t, "later, unacknowledged", unacked(st, "s"), "")
		equal(t, "the link is alive", agent.Err(), nil)
		sc.Close()
	})
}

// A panic in the callback that decides about an agent's session was "fatal error: sync: unlock of
// unlocked mutex", which says nothing of the caller's fault. It goes through, and ends the process
// as a panic in any goroutine, as do those of the store. One in Authorize reaches the caller of
// Handle, which may recover it: the hub is as it was before.
func foundF20(t *testing.T) {
	const env = "GVSTREAM_TEST_PANIC"
	callbacks := map[string]gvstream.HubConfig{
		"AuthorizeAgent": {AuthorizeAgent: func(context.Context, string, string, string) error { panic("the caller's own") }},
		"Resume":         {Resume: func(context.Context, string, string) (uint64, error) { panic("the caller's own") }},
		"Commit":         {Commit: func(context.Context, string, string, []gvstream.Item) error { panic("the caller's own") }},
	}
	if cfg, ok := callbacks[os.Getenv(env)]; ok {
		noError(t, callAgent(t, gvstream.NewHub(&cfg), "agent").batch("s", epoch1, 1))
		select {}
	}
	for name := range callbacks {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFound$/^F20$")
		cmd.Env = append(os.Environ(), env+"="+name)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "panic: the caller's own") || strings.Contains(string(out), "fatal error") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}

	panics := true
	hub := gvstream.NewHub(&gvstream.HubConfig{MaxWatches: 1, Authorize: func(context.Context, string, string) error {
		if panics {
			panic("the caller's own")
		}
		return nil
	}})
	tab := callViewer(t, hub, "tab")
	watch := func() (thrown any) {
		defer func() { thrown = recover() }()
		noError(t, tab.watch("s", gvstream.Position{}))
		return nil
	}
	for range 3 {
		equal(t, "Handle panics with", watch(), any("the caller's own"))
		equal(t, "sessions", hub.Stats().Sessions, 0)
	}
	panics = false
	equal(t, "Handle panics with", watch(), nil)
	hub.Revoke("tab", "s")
	equal(t, "the hub says", refusals(scene.Ready(tab.link)), "forbidden") // one watch was there to revoke
}

// Nobody was asked about an agent's new session, so any agent could take an id that another had
// used, as soon as the hub had forgotten it or was started anew.
func foundF23(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := &gvstream.HubConfig{AuthorizeAgent: func(_ context.Context, agentID, sessionID, _ string) error {
			if !strings.HasPrefix(sessionID, agentID+"/") {
				return errors.New("not yours")
			}
			return nil
		}}
		for range 2 { // and with a hub that was started anew
			hub := gvstream.NewHub(cfg)
			tab := callViewer(t, hub, "tab")
			noError(t, tab.watch("owner/1", gvstream.Position{}))
			thief, owner := callAgent(t, hub, "thief"), callAgent(t, hub, "owner")
			noError(t, thief.status("owner/1", epoch1, 3, 0))
			synctest.Wait()
			noError(t, thief.batch("owner/1", epoch2, 1))
			synctest.Wait()
			equal(t, "the thief hears", refusals(scene.Ready(thief.link)), "forbidden;forbidden")
			noError(t, owner.status("owner/1", epoch1, 3, 0))
			synctest.Wait()
			equal(t, "the owner hears", owner.says(), "ack owner/1 0")
			noError(t, owner.batch("owner/1", epoch1, 1))
			synctest.Wait()
			equal(t, "the owner's viewer hears", tab.says(), "status owner/1 1 acked 0; batch owner/1 1")
		}
	})
}
