package scenarios_test

import (
	"bytes"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/streamtest"
)

// An Item that went through JSON, as a Commit that stores its items makes it do, was at
// number 0. Now the item that is read again is at the position of the first one, whatever
// it is, and a reader that goes on from there misses nothing and gets nothing twice.
func foundF24(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, nil)
		v := newViewer(t, "s", gvstream.Position{})
		sc.Viewer("viewer", v)
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: 3})
		publish(t, st, "s", 5)
		w := sc.Agent("agent", st)
		sc.Acked()
		w.Cut()
		st = gvstream.NewStreamer(nil) // the agent restarts
		sc.Agent("agent", st)
		publish(t, st, "s", 1)
		_, err := st.End(sc.Context(), "s", event(2))
		noError(t, err)
		sc.Acked()

		items := readItems(t, v)
		equal(t, "items", tell(items), "gap 1..2 dropped, 3..5, reset from 5 of 5, 1..2, end")
		for _, it := range items {
			body, err := json.Marshal(it)
			noError(t, err)
			var back gvstream.Item
			noError(t, json.Unmarshal(body, &back))
			equal(t, string(body), back.Position(), it.Position())
			if !reflect.DeepEqual(back, it) {
				t.Errorf("%s is read as %v", body, back)
			}

			// A position stands alone as well: in JSON, and as a text.
			var at, parsed gvstream.Position
			body, err = json.Marshal(it.Position())
			noError(t, err)
			noError(t, json.Unmarshal(body, &at))
			equal(t, string(body), at, it.Position())
			parsed, err = gvstream.ParsePosition(it.Position().String())
			noError(t, err)
			equal(t, it.Position().String(), parsed, it.Position())
		}
		zero, err := gvstream.ParsePosition(gvstream.Position{}.String())
		noError(t, err)
		equal(t, "the zero position", zero, gvstream.Position{})
	})
}

// Two processes that use one id superseded each other 1,715 times in an hour, since each
// heard only that its connection had ended. The hub says why now, and the loop of the one
// that came first stops. That goes for agents and for viewers, with Run and by hand.
func foundF30(t *testing.T) {
	for what, connect := range map[string]func(h *gvstream.Hub) (near func() *gvstream.Link, far func() *gvstream.Link){
		"agents": func(h *gvstream.Hub) (near func() *gvstream.Link, far func() *gvstream.Link) {
			return gvstream.NewStreamer(nil).Connect, func() *gvstream.Link { return h.ConnectAgent("one id") }
		},
		"viewers": func(h *gvstream.Hub) (near func() *gvstream.Link, far func() *gvstream.Link) {
			return gvstream.NewViewer(nil).Connect, func() *gvstream.Link { return h.ConnectViewer("one id") }
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			sc := scene.New(t, nil)
			var connections atomic.Int64
			loop := func() error {
				near, far := connect(sc.Hub)
				for sc.Context().Err() == nil {
					connections.Add(1)
					a, b := streamtest.Pipe()
					sc.Go(func() { far().Run(sc.Context(), b.Send, b.Receive); b.Close() })
					err := near().Run(sc.Context(), a.Send, a.Receive)
					a.Close()
					if errors.Is(err, gvstream.ErrSuperseded) {
						return err
					}
					pass(time.Second)
				}
				return nil
			}
			var first error
			sc.Go(func() { first = loop() })
			pass(10 * time.Second)
			sc.Go(func() { loop() })
			pass(50 * time.Minute)
			synctest.Wait()
			equalError(t, "why the first one stopped", first, gvstream.ErrSuperseded)
			equal(t, what+": connections", connections.Load(), 2)

			near, far := connect(sc.Hub) // a third one, by hand
			w := &scene.Wire{Near: near(), Far: far(), Shared: true}
			w.Flow()
			_, far = connect(sc.Hub)
			far()
			w.Flow()
			equal(t, "the hub's last word", say(w.Down[len(w.Down)-1]), "error superseded")
			_, err := w.Near.Next(scene.Ended)
			equalError(t, "by hand", err, gvstream.ErrSuperseded)
		})
	}

	// A hub that answers in a way that can't be read was "nothing heard from the peer" at the
	// agent. Each answer is refused with the reason, the statistics count it, and the link lives.
	synctest.Test(t, func(t *testing.T) {
		st := gvstream.NewStreamer(nil)
		h := answer(t, st, 8)
		publish(t, st, "s", 1)
		for range 10 {
			pass(15 * time.Second)
			scene.Ready(h.link)
			err := h.link.HandleFrame(t.Context(), []byte(`{"type":"ack_batch","payload":{"session_id":"s","link":"l","up_to_seq":-1}}`))
			says(t, err, "malformed", "up_to_seq", "an integer from 0")
		}
		equal(t, "the link is alive", h.link.Err(), nil)
		equal(t, "refused", st.Stats().RefusedPayloads, 10)
	})

	// "event too large", "invalid event" and "invalid id" said no more than that.
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxEventBytes: 1000})
	for what, test := range map[string]struct {
		id    string
		event gvstream.Event
		kind  error
		facts []string
	}{
		"too large":      {"s", gvstream.Event{Data: text(1200)}, gvstream.ErrTooLarge, []string{"1200", "1000"}},
		"cut off":        {"s", gvstream.Event{Data: []byte(`{"a":`)}, gvstream.ErrInvalidData, []string{"5"}},
		"no UTF-8":       {"s", gvstream.Event{Data: []byte("\"\xff\"")}, gvstream.ErrInvalidData, []string{"UTF-8"}},
		"two kinds":      {"s", gvstream.Event{Data: []byte("12"), Bytes: []byte("123")}, gvstream.ErrInvalidData, []string{"2 bytes of Data", "3 of Bytes"}},
		"a long type":    {"s", gvstream.Event{Type: string(text(129))}, gvstream.ErrInvalidData, []string{"type", "129", "128"}},
		"a distant year": {"s", gvstream.Event{Time: time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)}, gvstream.ErrInvalidData, []string{"year 12026", "9999"}},
		"no id":          {"", gvstream.Event{}, gvstream.ErrInvalidID, []string{"empty"}},
		"a long id":      {string(text(129)), gvstream.Event{}, gvstream.ErrInvalidID, []string{"129", "128"}},
		"a control":      {"a\tb", gvstream.Event{}, gvstream.ErrInvalidID, []string{"control", "1"}},
	} {
		_, err := st.Publish(t.Context(), test.id, test.event)
		equalError(t, what, err, test.kind)
		says(t, err, test.facts...)
	}
}

// says fails the test if an error doesn't have all of these words.
func says(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(fmt.Sprint(err), word) {
			t.Errorf("%q says nothing of %q", fmt.Sprint(err), word)
		}
	}
}

// An agent on the port of viewers, or the reverse, was answered "malformed" and then
// nothing: after 45 s of silence its link ended, and it connected again. A hello of a later
// version was malformed too, unless its role was one of this version's. Either is told what
// is wrong, at once, and its link ends with that.
func foundF29(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := gvstream.NewHub(nil)
		for _, w := range []*scene.Wire{
			{Near: gvstream.NewStreamer(nil).Connect(), Far: hub.ConnectViewer("a")},
			{Near: gvstream.NewViewer(nil).Connect(), Far: hub.ConnectAgent("a")},
		} {
			w.Shared = true
			w.Flow()
			_, err := w.Near.Next(scene.Ended)
			equal(t, "the link", code(err), "wrong_role")
		}
		for _, l := range []*gvstream.Link{hub.ConnectAgent("b"), hub.ConnectViewer("b")} {
			err := l.Handle(t.Context(), &gvstream.HelloPayload{V: 2, Role: "observer"})
			equal(t, "a later version", code(err), "version_unsupported")
		}

		// A refusal of no event in particular stopped the session.
		st := gvstream.NewStreamer(nil)
		h := answer(t, st, 8)
		publish(t, st, "s", 1)
		equal(t, "the agent", h.says(), "batch s 1")
		noError(t, h.link.Handle(t.Context(), &gvstream.ErrorPayload{Code: gvstream.CodeEventRejected, SessionID: "s"}))
		publish(t, st, "s", 1)
		// A replay request from a number without an epoch was a "bad position".
		err := h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "s", RequestID: "r", AfterSeq: 1})
		equal(t, "a replay", fmt.Sprint(err), "gvstream: malformed: replay_request: position: number 1 without an epoch")

		// A hub counted a reader in its own process among a session's viewers and not among
		// its own. The zero time and no bytes count as absent, as the documents say now.
		a := callAgent(t, hub, "c")
		noError(t, a.link.HandleFrame(t.Context(), fmt.Appendf(nil, `{"type":"event_batch","payload":{"session_id":"s","epoch":"0001","link":"%s",`+
			`"first_seq":1,"last_seq":2,"head_seq":2,"events":[{"seq":1,"time":"0001-01-01T00:00:00Z","type":"n","data":1},{"seq":2,"data_base64":""}]}}`, a.name)))
		before := hub.Stats().Viewers
		for it := range hub.Items(t.Context(), "s", gvstream.Position{}) {
			equal(t, "viewers of the session", hubStats(hub, "s").Viewers, 1)
			equal(t, "viewers of the hub", hub.Stats().Viewers, before+1)
			equal(t, "time", it.Event.Time, time.Time{})
			if it.Seq == 2 {
				equal(t, "bytes", it.Event.Bytes == nil && it.Event.Data == nil, true)
				break
			}
		}
		equal(t, "viewers of the hub, later", hub.Stats().Viewers, before)
	})

	// Errors counted as signs of life, against the rule. The rule says now that any bytes do.
	synctest.Test(t, func(t *testing.T) {
		hub := gvstream.NewHub(nil)
		a := callAgent(t, hub, "a")
		for range 10 {
			pass(30 * time.Second)
			a.says()
			a.link.HandleFrame(t.Context(), []byte("nonsense"))
			noError(t, a.link.Handle(t.Context(), &gvstream.ErrorPayload{Code: "any"}))
			equal(t, "the link is alive", a.link.Err(), nil)
		}
		pass(time.Minute)
		a.says()
		equalError(t, "the link's end", a.link.Err(), gvstream.ErrSilent)
	})

	// A replay request went out up to a second after the agent's hello.
	synctest.Test(t, func(t *testing.T) {
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: 1})
		a := callAgent(t, sc.Hub, "a")
		noError(t, a.batch("s", epoch1, to(1, 10)...))
		a.link.Close()
		sc.Viewer("tab", newViewer(t, "s", gvstream.Position{}))
		sc.Later(5300 * time.Millisecond)
		a = callAgent(t, sc.Hub, "a")
		equal(t, "with the hello, the agent is told", a.says(), "replay s 1..9")
	})

	// A Commit that refused a session's last event never learned that the session had ended.
	synctest.Test(t, func(t *testing.T) {
		disk := store{fails: func(items []gvstream.Item) error {
			for _, it := range items {
				if it.Event != nil && it.Event.End {
					return &gvstream.ProtocolError{Code: gvstream.CodeEventRejected, Seq: it.Seq}
				}
			}
			return nil
		}}
		sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
		st := gvstream.NewStreamer(nil)
		publish(t, st, "s", 2)
		_, err := st.End(t.Context(), "s", event(3))
		noError(t, err)
		sc.Agent("agent", st)
		sc.Acked()
		equal(t, "stored", disk.tell("s"), "1..2, gap 3..3 rejected, end")
		equal(t, "it has ended at the hub", hubStats(sc.Hub, "s").Ended, true)
	})

	// The examples of the wire said what no hub and no agent says.
	for name, wrong := range map[string]func(p gvstream.Payload) bool{
		"error": func(p gvstream.Payload) bool {
			e := p.(*gvstream.ErrorPayload)
			return e.Code == gvstream.CodeReplayAhead && e.Retryable
		},
		"replay_batch": func(p gvstream.Payload) bool { // what is evicted ends where the log begins
			b := p.(*gvstream.ReplayBatchPayload)
			return len(b.Gaps) == 0 || b.Gaps[0].Reason != gvstream.ReasonEvicted || b.Gaps[0].To+1 != b.AvailableFrom
		},
	} {
		line, err := os.ReadFile("../../testdata/wire/" + name + ".json")
		noError(t, err)
		p, err := gvstream.Unmarshal(bytes.TrimSpace(line))
		noError(t, err)
		if wrong(p) {
			t.Errorf("%s", line)
		}
	}
}

// One session that was renewed past an epoch of nearly a day ahead took all later sessions
// of its process there, and after a restart the hub refused them all for a day. Only the
// renewed session is ahead.
func foundF26(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := gvstream.NewStreamer(nil)
		publish(t, st, "before", 1)
		before := stats(t, st, "before").Epoch
		bad := laterBy(before, 23*time.Hour+59*time.Minute-time.Until(epochTime(before))) // other tests' clocks may have been ahead
		h := answer(t, st, 8)
		publish(t, st, "s", 1)
		h.says()
		noError(t, h.link.Handle(t.Context(), &gvstream.ErrorPayload{Code: gvstream.CodeStaleEpoch, SessionID: "s", Epoch: bad}))
		noError(t, st.Renew("s"))
		if renewed := stats(t, st, "s").Epoch; renewed <= bad {
			t.Errorf("renewed as %s, which is not past %s", renewed, bad)
		}

		pass(time.Second)
		publish(t, st, "after", 1)
		other := gvstream.NewStreamer(nil)
		publish(t, other, "another", 1)
		for id, epoch := range map[string]string{"after": stats(t, st, "after").Epoch, "another": stats(t, other, "another").Epoch} {
			if epoch > laterBy(before, time.Minute) {
				t.Errorf("%s is in epoch %s, a second after %s", id, epoch, before)
			}
		}
	})
}

var epochText = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// epochTime is the time in an epoch.
func epochTime(epoch string) time.Time {
	b, err := epochText.DecodeString(epoch)
	if err != nil {
		panic(err)
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(b) >> 16))
}

// laterBy is an epoch of a time that much after that of another.
func laterBy(epoch string, d time.Duration) string {
	b, err := epochText.DecodeString(epoch)
	if err != nil {
		panic(err)
	}
	binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)+uint64(d.Milliseconds())<<16)
	return epochText.EncodeToString(b)
}

// A SessionTTL of the greatest duration overflowed, and ended sessions were forgotten after
// ten minutes. Each limit and each time may be as great as its type allows.
func foundF27(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			agentCfg  gvstream.StreamerConfig
			hubCfg    gvstream.HubConfig
			viewerCfg gvstream.ViewerConfig
		)
		setGreatest(t, &agentCfg)
		setGreatest(t, &hubCfg)
		setGreatest(t, &viewerCfg)
		sc := scene.New(t, &hubCfg)
		st, v := gvstream.NewStreamer(&agentCfg), gvstream.NewViewer(&viewerCfg)
		noError(t, v.Watch("s", gvstream.Position{}))
		sc.Viewer("viewer", v)
		w := sc.Agent("agent", st)
		publish(t, st, "s", 2000)
		_, err := st.End(t.Context(), "s", event(2001))
		noError(t, err)
		publish(t, st, "away", 1)
		sc.Acked()
		equal(t, "the viewer gets", read(t, v), "1..2001, end")
		noError(t, v.Close())
		w.Cut()
		epoch := hubStats(sc.Hub, "s").Epoch

		pass(365 * 24 * time.Hour) // nobody is there meanwhile
		equal(t, "sessions", sc.Hub.Stats().Sessions, 2)
		equal(t, "what is known of the ended one", hubStats(sc.Hub, "s").Acked, 2001)
		equal(t, "its epoch", hubStats(sc.Hub, "s").Epoch, epoch)
		equal(t, "the other one", hubStats(sc.Hub, "away").Acked, 1)

		v = newViewer(t, "away", gvstream.Position{Epoch: hubStats(sc.Hub, "away").Epoch})
		sc.Viewer("viewer", v)
		sc.Later(time.Minute)
		equal(t, "it still has", read(t, v), "1")
	})
}

// setGreatest sets each limit and each time of a config to the greatest of its type.
func setGreatest(t *testing.T, cfg any) {
	t.Helper()
	set := 0
	for _, f := range reflect.ValueOf(cfg).Elem().Fields() {
		if f.Kind() == reflect.Int && f.Type() == reflect.TypeFor[int]() {
			f.SetInt(math.MaxInt)
			set++
		} else if f.Type() == reflect.TypeFor[time.Duration]() {
			f.SetInt(math.MaxInt64)
			set++
		}
	}
	if set < 3 {
		t.Errorf("%T: %d fields", cfg, set)
	}
}

// A hub refused ten of ten events. Publish, Flush and Close returned nil, and no statistics
// of the Streamer told of a loss.
func foundF25(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := store{fails: func(items []gvstream.Item) error {
			for _, it := range items {
				if it.Event != nil && it.SessionID == "s" {
					return &gvstream.ProtocolError{Code: gvstream.CodeEventRejected, Seq: it.Event.Seq}
				}
			}
			return nil
		}}
		sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit})
		st := gvstream.NewStreamer(nil)
		publish(t, st, "s", 10)
		sc.Join(st.Connect(), sc.Hub.ConnectAgent("agent"), nil)
		noError(t, st.Flush(sc.Context()))
		equal(t, "lost", st.Stats().Lost, 10)
		st.Forget("s")
		publish(t, st, "t", 1)
		noError(t, st.Renew("t")) // what that gives up is not lost: the caller wants it so
		equal(t, "lost, with the session gone", st.Stats().Lost, 10)
		err := st.Close(sc.Context())
		var left *gvstream.UnackedError
		if !errors.As(err, &left) || left.Lost != 10 || left.Events != 0 || left.Unwrap() != nil {
			t.Errorf("Close: %v", err)
		}
	})
}
