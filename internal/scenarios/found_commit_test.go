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
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/epoch"
	"github.com/vibetools/gvstream/internal/scene"
)

// A store that failed for one session ended its agent's link, again and again: another session of
// the same agent got nothing through in 3,600 connections.
func TestFoundF01(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var disk store
		commits := 0
		sc := scene.New(t, &gvstream.HubConfig{Commit: func(ctx context.Context, id, epoch string, items []gvstream.Item) error {
			if id == "a" {
				commits++
				return errors.New("disk full")
			}
			return disk.commit(ctx, id, epoch, items)
		}})
		st := gvstream.NewStreamer(nil)
		publish(t, st, "a", 1)
		publish(t, st, "b", 1)
		w := sc.Agent("agent", st)
		for i := range 60 { // a minute
			publish(t, st, "b", 1)
			sc.Acked()
			equal(t, fmt.Sprint("of b, unacknowledged after second ", i+1), unacked(st, "b"), "")
		}
		equal(t, "hellos", strings.Count(say(w.Up...), "hello"), 1)
		equal(t, "links that broke", len(w.Errs), 0)
		sc.Later(time.Hour)
		if commits < 30 || commits > 45 { // 1, 2, 4 … 64 s, and every two minutes
			t.Errorf("%d commits of a in an hour", commits)
		}
		equal(t, "of a, kept", unacked(st, "a"), "1")
	})
}

// Commits of one agent ran one at a time, and what had come together for a session was not merged:
// a store of 5 ms took 176 events a second of 1,000, and the agent's link was lost.
func TestFoundF02(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, seconds = 1000, 20
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
				pass(time.Second / sessions)
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
func TestFoundF11(t *testing.T) {
	for name, cfg := range map[string]*gvstream.HubConfig{
		"each is refused": {Commit: func(_ context.Context, _, _ string, items []gvstream.Item) error {
			for _, it := range items {
				if it.Event != nil {
					return &gvstream.ProtocolError{Code: "event_rejected", Seq: it.Event.Seq}
				}
			}
			return nil
		}},
		"every fourth is too large": {MaxEventBytes: 1000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := gvstream.NewStreamer(nil)
				once, sent := 0, 0
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
				}
				sc.Later(time.Minute)
				equal(t, "pending", st.Stats().PendingEvents, 0)
				lost := uint64(1000)
				if cfg.MaxEventBytes > 0 {
					lost = 250
				}
				equal(t, "lost", stats(t, st, "s").Lost, lost)
				if sent > 2*once {
					t.Errorf("%d bytes were sent for %d of events", sent, once)
				}
			})
		})
	}
}

// A hub whose clock was more than a day behind for a moment refused sessions for good.
func TestFoundF12(t *testing.T) {
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
}

// A panic in the callback that decides about an agent's session was "fatal error: sync: unlock of
// unlocked mutex", which says nothing of the caller's fault. It goes through, and ends the process
// as a panic in any goroutine.
func TestFoundF20(t *testing.T) {
	const env = "GVSTREAM_TEST_PANIC"
	if os.Getenv(env) != "" {
		hub := gvstream.NewHub(&gvstream.HubConfig{AuthorizeAgent: func(context.Context, string, string, string) error { panic("the caller's own") }})
		noError(t, callAgent(t, hub, "agent").status("s", epoch1, 0, 0))
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFoundF20$")
	cmd.Env = append(os.Environ(), env+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: the caller's own") || strings.Contains(string(out), "fatal error") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Nobody was asked about an agent's new session, so any agent could take an id that another had
// used, as soon as the hub had forgotten it or was started anew.
func TestFoundF23(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := &gvstream.HubConfig{AuthorizeAgent: func(_ context.Context, agentID, sessionID, _ string) error {
			if !strings.HasPrefix(sessionID, agentID+"/") {
				return errors.New("not yours")
			}
			return nil
		}}
		for range 2 { // and with a hub that was started anew
			hub := gvstream.NewHub(cfg)
			thief, owner := callAgent(t, hub, "thief"), callAgent(t, hub, "owner")
			noError(t, thief.status("owner/1", epoch1, 3, 0))
			synctest.Wait()
			equal(t, "the thief hears", refusals(scene.Ready(thief.link)), "forbidden")
			noError(t, owner.status("owner/1", epoch1, 3, 0))
			synctest.Wait()
			equal(t, "the owner hears", owner.says(), "ack owner/1 0")
		}
	})
}
