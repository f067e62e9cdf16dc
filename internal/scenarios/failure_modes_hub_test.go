package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
	"github.com/vibetools/gvstream/internal/testenv"
	"github.com/vibetools/gvstream/streamtest"
)

// The failure modes of what a hub lets in, and of replays.

func authorizeEveryWatch(t *testing.T) {
	// A viewer may watch one session and asks for another. It gets an error and no
	// event, the same whether or not there is such a session. It is asked about at
	// every watch, also at one that resumes. A viewer can't ask for a replay in any
	// other way.
	var asked []string
	sc := scene.New(t, &gvstream.HubConfig{
		LogEvents: 2,
		AuthorizeViewer: func(_ context.Context, viewer, id string) error {
			asked = append(asked, viewer+" "+id)
			if id == "s2" {
				return nil
			}
			return errors.New("a secret reason")
		},
	})
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s1", 5)
	publish(t, st, "s2", 5)
	sc.Agent("a", st)
	sc.Acked()

	h := callViewer(t, sc.Hub, "tab")
	var answers []string
	for _, id := range []string{"s1", "none"} {
		equal(t, "watch "+id, code(h.watch(id, gvstream.Position{})), "forbidden")
		p := scene.Next(h.link).(*gvstream.ErrorPayload)
		answers = append(answers, fmt.Sprintf("%s %q %v %d %q", p.Code, p.Message, p.Retryable, p.Seq, p.Epoch))
		sc.Flow()
		equal(t, "and then", h.says(), "")
	}
	equal(t, "the two answers", answers[0], answers[1])
	equal(t, "a request of its own", code(h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "s1", RequestID: "r"})), "unexpected")

	asked = nil
	v := newViewer(t, "s2", gvstream.Position{})
	w := sc.Viewer("tab", v)
	sc.Flow()
	w.Cut()
	sc.Viewer("tab", v)
	sc.Flow()
	equal(t, "the allowed one gets", read(t, v), "1..5")
	equal(t, "asked, first and when it resumed", strings.Join(asked, ", "), "tab s2, tab s2")
}

func replayOfOneLife(t *testing.T) {
	// Numbers of one session mean nothing in another, nor do those of one epoch in another:
	// neither agent nor hub sends anything for them.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s1", 5)
	publish(t, st, "s2", 3)
	h := answer(t, st, 256)
	h.says()
	for what, ask := range map[string]gvstream.ReplayRequestPayload{
		"stale_epoch":     {SessionID: "s2", Epoch: stats(t, st, "s1").Epoch, AfterSeq: 1},
		"replay_ahead 3":  {SessionID: "s2", Epoch: stats(t, st, "s2").Epoch, AfterSeq: 4},
		"unknown_session": {SessionID: "s3", Epoch: stats(t, st, "s1").Epoch, AfterSeq: 1},
	} {
		ask.RequestID = "r"
		equal(t, "asked of the agent", code(h.link.Handle(t.Context(), &ask)), what)
		equal(t, "its answer", h.says(), "error "+strings.Fields(what)[0])
	}

	sc := scene.New(t, nil)
	sc.Agent("a", st)
	sc.Flow()
	equal(t, "s2 after a position of s1", show(t, sc, "s2", at(t, st, "s1", 2)), "reset from 2 of 0, 1..3")
	var refused []string
	v := newViewer(t, "s1", at(t, st, "s2", 2)) // a greater epoch
	sc.Viewer("tab", v)
	sc.Flow()
	for it, err := range v.Items(scene.Ended) {
		refused = append(refused, code(err)+tell([]gvstream.Item{it}))
	}
	equal(t, "s1 after a position of s2", strings.Join(refused, ";"), "replay_ahead 5")
	equal(t, "an unknown one", show(t, sc, "s3", at(t, st, "s1", 2)), "")
}

func nothingOfTheOldOwner(t *testing.T) {
	// A session has ended and is forgotten, and another agent uses its id. A
	// viewer that comes with the old position gets nothing of the old owner, and what
	// the old owner still has on its way doesn't get into the new one's session.
	sc := scene.New(t, &gvstream.HubConfig{EndedTTL: 10 * time.Minute})
	old := gvstream.NewStreamer(nil)
	oldWire := sc.Agent("old", old)
	publish(t, old, "s", 3)
	_, err := old.End(scene.Ended, "s", event(4))
	noError(t, err)
	sc.Acked()
	position := at(t, old, "s", 2)
	link := oldWire.Down[0].(*gvstream.WelcomePayload).Link
	equal(t, "a viewer of the old one gets", show(t, sc, "s", position), "3..4, end")

	sc.Later(12 * time.Minute)
	equal(t, "sessions that the hub knows", sc.Hub.Stats().Sessions, 0)
	equal(t, "with the old position", show(t, sc, "s", position), "")

	young := gvstream.NewStreamer(nil)
	publish(t, young, "s", 2)
	sc.Agent("young", young)
	sc.Acked()
	late := &gvstream.EventBatchPayload{SessionID: "s", Epoch: position.Epoch, Link: link, FirstSeq: 1, LastSeq: 1, HeadSeq: 1, Events: numbered(1)}
	equal(t, "a late batch of the old owner", code(oldWire.Far.Handle(t.Context(), late)), "forbidden")
	equal(t, "with the old position", show(t, sc, "s", position), "reset from 2 of 0, 1..2")
	equal(t, "with none", show(t, sc, "s", gvstream.Position{}), "1..2")
	for it, err := range sc.Hub.Items(scene.Ended, "s", gvstream.Position{}) {
		noError(t, err)
		equal(t, "whose epoch", it.Epoch, stats(t, young, "s").Epoch)
	}
}

func idsNobodyGuesses(t *testing.T) {
	// Ids of links and epochs that the library makes are random: the first by 128
	// bits, the second by 80 after the time. An id that a client chose opens
	// nothing that belongs to somebody else, and a watch makes no session.
	sc := scene.New(t, nil)
	seen := make(map[string]bool)
	bits := make([]int64, 26)
	for range 1000 {
		name := callAgent(t, sc.Hub, "a").name
		equal(t, "length of a link's id", len(name), 26) // of 5 bits each
		equal(t, "seen before", seen[name], false)
		seen[name] = true
		for i := range name {
			bits[i] |= 1 << strings.IndexByte("0123456789abcdefghjkmnpqrstvwxyz", name[i])
		}
	}
	for i, used := range bits[:25] {
		equal(t, fmt.Sprint("letters in use at ", i), used, int64(math.MaxUint32))
	}
	epochs := gvstream.NewStreamer(nil)
	tails := make(map[string]bool)
	for i := range 300 {
		tails[stats(t, epochs, fmt.Sprint("s", i)).Epoch[10:]] = true
	}
	equal(t, "different random parts of epochs", len(tails), 300)

	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", 1)
	sc.Agent("owner", st)
	sc.Flow()
	thief := callAgent(t, sc.Hub, "thief")
	equal(t, "another's status", code(thief.status("s", epoch1, 0, 0)), "forbidden")
	equal(t, "another's batch", code(thief.batch("s", stats(t, st, "s").Epoch, 1, 2)), "forbidden")
	equal(t, "accepted", accepted(sc.Hub, "s"), 1)
	noError(t, callViewer(t, sc.Hub, "tab").watch("guess", gvstream.Position{}))
	equal(t, "sessions", sc.Hub.Stats().Sessions, 1)
}

func floodOfUnknown(t *testing.T) {
	// Peers send a hundred thousand payloads about sessions that don't exist. Nothing is
	// created or kept for them, neither at the agent nor at the hub.
	st, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
	h := answer(t, st, 256)
	a := callAgent(t, hub, "a")
	v := callViewer(t, hub, "tab")
	flood := func(n int) {
		for i := range n {
			id := fmt.Sprint("none", i)
			h.link.Handle(t.Context(), &gvstream.AckBatchPayload{SessionID: id, Epoch: epoch1, Link: h.name, UpToSeq: uint64(i)})
			h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: id, RequestID: id})
			a.link.Handle(t.Context(), &gvstream.ReplayBatchPayload{SessionID: id, RequestID: id, Epoch: epoch1, FirstSeq: 1})
			a.link.Handle(t.Context(), &gvstream.EventBatchPayload{SessionID: id, Epoch: epoch1, Link: a.name,
				FirstSeq: 2, LastSeq: 2, HeadSeq: 2, Events: numbered(2)})
			v.link.Handle(t.Context(), &gvstream.WatchPayload{SessionID: id})
		}
		scene.Ready(v.link)
	}
	flood(1000)
	before, goroutines := testenv.HeapInUse(), runtime.NumGoroutine()
	flood(20_000)
	if grown := testenv.HeapInUse() - before; grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if n := runtime.NumGoroutine(); n > goroutines { // one of an earlier test may have ended
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	equal(t, "sessions", fmt.Sprint(st.Stats().Sessions, hub.Stats().Sessions), "0 0")
	runtime.KeepAlive(v)
}

func tooManySessions(t *testing.T) {
	// There may be a thousand sessions: of a process, and of one agent, on one connection
	// or on several in turn. One more is refused, and the others go on.
	const limit = 1000
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxSessions: limit})
	for i := range limit {
		publish(t, st, fmt.Sprint("s", i), 1)
	}
	_, err := st.Publish(scene.Ended, "one more", event(1))
	equalError(t, "at the agent", err, gvstream.ErrTooMany)
	publish(t, st, "s0", 1)

	for what, cfg := range map[string]gvstream.HubConfig{
		"of the hub": {MaxSessions: limit}, "of an agent": {MaxAgentSessions: limit},
	} {
		hub := gvstream.NewHub(&cfg)
		a, b := callAgent(t, hub, "a"), callAgent(t, hub, "b")
		for i := range limit {
			noError(t, a.batch(fmt.Sprint("s", i), epoch1, 1))
		}
		equal(t, "one more "+what, code(a.batch("one more", epoch1, 1)), "overloaded")
		noError(t, a.batch("s0", epoch1, 2))
		want := "none"
		if what == "of the hub" {
			want = "overloaded"
		}
		equal(t, "another agent's, with a limit "+what, code(b.batch("b's", epoch1, 1)), want)
		equal(t, "accepted", accepted(hub, "s0"), 2)
		a = callAgent(t, hub, "a")
		equal(t, "one more "+what+", on the next connection", code(a.batch("one more", epoch1, 1)), "overloaded")
		noError(t, a.status("s0", epoch1, 2, 2))
		equal(t, "sessions", hub.Stats().Sessions <= limit+1, true)
	}
}

func hostileFrames(t *testing.T) {
	// Broken and absurd frames of all kinds arrive. Each is answered with an error and
	// changes nothing, and the same connection keeps working. (The fuzz targets go
	// further.)
	payload := func(typ, body string) string { return `{"type":"` + typ + `","payload":` + body + `}` }
	batch := func(events string) string {
		return payload("event_batch", `{"session_id":"s","epoch":"0001","link":"l","first_seq":1,"last_seq":1,"head_seq":1,"events":`+events+`}`)
	}
	bodies := []string{
		"{}", "[]", "null", "123", "true", `"text"`, `{"session":1}`, `{"session":""}`, `{"session_id":""}`, `{"session_id":1}`,
		`{"session_id":"s","session_id":"t"}`, "{\"session_id\":\"\xff\"}", `{"session_id":"\ud800"}`, `{"session_id":"a` + "\x00" + `"}`,
		`{"x":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, `{`, `{"a"`, ``,
		`{"session_id":"` + strings.Repeat("x", testenv.Fewer(50<<20)) + `"}`,
	}
	frames := []string{
		"", "{}", "[]", "null", "123", "{", "\xff", `{"type":1}`, `{"type":"nothing","payload":{}}`, `{"TYPE":"hello"}`,
		batch("[" + strings.Repeat("{},", 1_000_000) + "{}]"), batch("[{}]"), batch("[1]"), batch("{}"), batch(`[{"seq":1,"data":}]`),
		batch(`[{"seq":1,"data":1,"data_base64":"AA=="}]`), batch(`[{"seq":1,"data_base64":"?"}]`), batch(`[{"seq":1,"time":"now"}]`),
	}
	for _, typ := range []string{"hello", "welcome", "event_batch", "ack_batch", "watch", "replay_request", "replay_batch", "error", "status"} {
		for i, body := range bodies {
			if i < len(bodies)-1 || typ == "watch" { // the large one once
				frames = append(frames, payload(typ, body))
			}
		}
	}
	hub := gvstream.NewHub(nil)
	link := hub.ConnectAgent("a")
	i := 0
	var said []string
	receive := func(ctx context.Context) (gvstream.Payload, error) {
		synctest.Wait() // until the answer is sent: few may wait for that
		if i++; i <= len(frames) {
			p, err := gvstream.Unmarshal([]byte(frames[i-1]))
			var refused *gvstream.ProtocolError
			if err != nil && !errors.As(err, &refused) {
				t.Errorf("%.80q: %v", frames[i-1], err)
			}
			return p, err
		}
		if i == len(frames)+1 {
			return &gvstream.HelloPayload{V: 1, Role: "agent"}, nil
		}
		return nil, io.EOF
	}
	err := link.Run(context.Background(), func(_ context.Context, p gvstream.Payload) error {
		said = append(said, say(p))
		return nil
	}, receive)
	equal(t, "Run", err, io.EOF)
	equal(t, "answered last", said[len(said)-1], "welcome")
	equal(t, "state", hub.Stats().Sessions, 0)
	for _, s := range said[:len(said)-1] {
		if s != "error malformed" && s != "error unknown_type" && s != "error stale_link" && s != "error unexpected" && s != "error version_unsupported" && s != "error event_rejected" {
			t.Errorf("answered: %s", s)
		}
	}
}

func pagesEndExactly(t *testing.T) {
	// However many events there are, pages cover them exactly once, the last one
	// says so, and none follows it.
	const page = 100 // events of a replay batch
	for _, n := range []int{0, 1, 100, 101, 255, 256, 257, 512} {
		st := gvstream.NewStreamer(nil)
		h := answer(t, st, math.MaxInt32)
		publish(t, st, "s", n)
		h.says()
		for _, limit := range []int{0, 1, 100, 256} {
			if limit == 1 && n > 101 {
				continue
			}
			want, requests := uint64(0), 0
			for done := false; !done; {
				requests++
				noError(t, h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "s", RequestID: fmt.Sprint("r", requests),
					Epoch: stats(t, st, "s").Epoch, AfterSeq: want, UntilSeq: uint64(n), Limit: limit}))
				got := 0
				ps := scene.Ready(h.link)
				for i, p := range ps {
					b := p.(*gvstream.ReplayBatchPayload)
					equal(t, "first of a page", b.FirstSeq, want+1)
					equal(t, "events and numbers", uint64(len(b.Events)), b.LastSeq-want)
					equal(t, "last page", b.Done, i == len(ps)-1)
					got += len(b.Events)
					want = b.LastSeq
				}
				if limit > 0 && got > limit {
					t.Fatalf("%d events of at most %d", got, limit)
				}
				equal(t, "pages", len(ps), max(1, (got+page-1)/page))
				done = want == uint64(n)
			}
			if limit > 0 {
				equal(t, fmt.Sprintf("requests for %d by %d", n, limit), requests, max(1, (n+limit-1)/limit))
			}
		}
		// Live batches.
		if n > 0 {
			st = gvstream.NewStreamer(nil)
			publish(t, st, "s", n)
			h = answer(t, st, math.MaxInt32)
			ps := scene.Ready(h.link)
			next, largest := uint64(1), 0 // the first batches are smaller
			for _, p := range ps[1:] {
				b := p.(*gvstream.EventBatchPayload)
				equal(t, "continued", b.FirstSeq, next)
				next, largest = b.LastSeq+1, max(largest, len(b.Events))
			}
			equal(t, "the last number", next, uint64(n+1))
			equal(t, "a full batch, if there is one", largest > 256 || n >= 1000 && largest < 256, false)
		}
		// And all the way to a viewer.
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: -1, Window: 1 << 20})
		st = gvstream.NewStreamer(nil)
		publish(t, st, "s", n)
		sc.Agent("a", st)
		sc.Acked()
		want := ""
		if n > 0 {
			want = tellEvents(numbered(to(1, uint64(n))...), nil)
		}
		equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), want)
	}

	// A page ends inside a gap: the gap is cut, and continues in the next page.
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{Overflow: gvstream.DropOldest, MaxPendingEvents: 5})
	publish(t, st, "s", 20)
	h := answer(t, st, 256)
	h.says()
	for _, ends := range [][2]uint64{{0, 7}, {7, 8}, {8, 17}, {17, 20}} {
		noError(t, h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "s", RequestID: "r",
			Epoch: stats(t, st, "s").Epoch, AfterSeq: ends[0], UntilSeq: ends[1]}))
		equal(t, "cut gaps", h.says(), map[uint64]string{
			7: "replayed s gap 1..7 dropped done", 8: "replayed s gap 8..8 dropped done",
			17: "replayed s gap 9..15 dropped, 16..17 done", 20: "replayed s 18..20 done",
		}[ends[1]])
	}

	// Ten thousand, most of them only at the agent.
	st = gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 10_000, MaxPendingEvents: 10_000})
	publish(t, st, "s", 10_000)
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 256})
	w := sc.Agent("a", st)
	sc.Acked()
	w.Forget()
	equal(t, "a viewer gets", show(t, sc, "s", gvstream.Position{}), "1..10000")
	equal(t, "requests", strings.Count(say(w.Down...), "replay s"), 20) // of 500 events
	equal(t, "batches", strings.Count(say(w.Up...), "replayed s"), 98)  // of 100: 19 times 5, and 3 for 244
}

func everyRingEveryPosition(t *testing.T) {
	// All small rings, all numbers of events in them and all positions, compared
	// with a plain slice: at an agent's replay buffer and at a hub's log.
	expect := func(capacity, count, after int) (want string) {
		first := max(1, count-capacity+1)
		if after+1 < first {
			want = fmt.Sprintf("gap %d..%d evicted", after+1, min(first-1, count))
			after = first - 1
		}
		if after < count {
			want = strings.TrimPrefix(want+", "+tellEvents(numbered(to(uint64(after+1), uint64(count))...), nil), ", ")
		}
		return want
	}
	for capacity := 1; capacity <= 6; capacity++ {
		for count := range 16 {
			st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: capacity})
			s, err := st.Session("s")
			noError(t, err)
			h := answer(t, st, 256)
			h.says()
			publish(t, st, "s", count)
			h.says()
			noError(t, h.ack("s", uint64(count)))
			h.says()

			sc := scene.New(t, &gvstream.HubConfig{LogEvents: capacity})
			bare := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: -1})
			publish(t, bare, "s", count)
			sc.Agent("a", bare)
			sc.Acked()
			for after := 0; after <= count+3; after++ {
				name := fmt.Sprintf("capacity %d, %d events, after %d", capacity, count, after)
				ask := &gvstream.ReplayRequestPayload{SessionID: "s", RequestID: "r", Epoch: s.Stats().Epoch, AfterSeq: uint64(after)}
				err := h.link.Handle(t.Context(), ask)
				v := newViewer(t, "s", at(t, bare, "s", uint64(after)))
				w := sc.Viewer("tab", v)
				sc.Flow()
				w.Cut()
				if after > count {
					equal(t, name, strings.TrimSuffix(code(err), fmt.Sprint(" ", count)), "replay_ahead")
					equal(t, name, h.says(), "error replay_ahead")
					for _, err := range v.Items(scene.Ended) {
						equal(t, name+", at the hub", strings.TrimSuffix(code(err), fmt.Sprint(" ", count)), "replay_ahead")
					}
					continue
				}
				noError(t, err)
				b := scene.Next(h.link).(*gvstream.ReplayBatchPayload)
				equal(t, name, tellEvents(b.Events, b.Gaps), expect(capacity, count, after))
				equal(t, name+": oldest", int(b.AvailableFrom), max(1, count-capacity+1))
				equal(t, name+": newest", int(b.UntilSeq), count)
				equal(t, name+": done", b.Done, true)
				equal(t, name+", at the hub", read(t, v), expect(capacity, count, after))
			}
		}
	}
}

func evictionDuringReplay(t *testing.T) {
	// An agent publishes without a pause, its replay buffer and the hub's log hold 64
	// events, and eight viewers replay. Whatever is evicted under them is a gap:
	// what each of them gets has no hole and nothing twice, to the end.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 64})
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: 64})
	sc.Join(st.Connect(), sc.Hub.ConnectAgent("a"), nil)
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			pass(time.Duration(i) * time.Millisecond)
			v := gvstream.NewViewer(&gvstream.ViewerConfig{Window: 8})
			v.Watch("s", gvstream.Position{})
			sc.Join(v.Connect(), sc.Hub.ConnectViewer(fmt.Sprint("tab", i)), nil)
			defer v.Close()
			var seen streamtest.Recorder
			for it, err := range v.Items(sc.Context()) {
				if err == nil {
					err = seen.Record(it)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if it.End {
					break
				}
				if it.Position().Seq%16 == 0 {
					pass(time.Millisecond)
				}
			}
			missing := uint64(0)
			for _, g := range seen.Gaps("s") {
				missing += g.To - g.From + 1
			}
			if got := uint64(len(seen.Events("s"))) + missing; got != 1501 {
				t.Errorf("viewer %d was told of %d numbers", i, got)
			}
		})
	}
	for i := range 1500 {
		publish(t, st, "s", 1)
		if i%50 == 0 {
			pass(time.Millisecond)
		}
	}
	_, err := st.End(sc.Context(), "s", gvstream.Event{})
	noError(t, err)
	work.Wait()
	sc.Close()
}

func hostileNumbers(t *testing.T) {
	// Numbers at and beyond every bound are tried in every field. Those that are not
	// numbers of the protocol are malformed; the others do no harm, and nothing is
	// allocated according to their size.
	numbers := []string{"-1", "0", "1", "2147483648", "4294967296", "9007199254740991", "9007199254740992",
		"9007199254740993", "9223372036854775807", "18446744073709551615", "18446744073709551616"}
	templates := []string{
		`{"type":"ack_batch","payload":{"session_id":"s","epoch":"EPOCH","link":"LINK","up_to_seq":N}}`,
		`{"type":"replay_request","payload":{"session_id":"s","request_id":"r","epoch":"EPOCH","after_seq":N}}`,
		`{"type":"replay_request","payload":{"session_id":"s","request_id":"r","epoch":"EPOCH","until_seq":N}}`,
		`{"type":"replay_request","payload":{"session_id":"s","request_id":"r","epoch":"EPOCH","limit":N}}`,
		`{"type":"error","payload":{"code":"event_rejected","session_id":"s","seq":N}}`,
		`{"type":"watch","payload":{"session_id":"s","epoch":"EPOCH","after_seq":N}}`,
		`{"type":"event_batch","payload":{"session_id":"s","epoch":"EPOCH","link":"LINK","first_seq":N,"last_seq":N,"head_seq":N,"events":[{"seq":N}]}}`,
		`{"type":"event_batch","payload":{"session_id":"s","epoch":"EPOCH","link":"LINK","first_seq":1,"last_seq":N,"head_seq":N,"gaps":[{"from":1,"to":N,"reason":"evicted"}]}}`,
		`{"type":"status","payload":{"link":"LINK","sessions":[{"session_id":"s","epoch":"EPOCH","head_seq":N,"ack_seq":N}]}}`,
		`{"type":"replay_batch","payload":{"session_id":"s","request_id":"r","epoch":"EPOCH","first_seq":N,"last_seq":N,"until_seq":N,"available_from":N,"events":[{"seq":N}]}}`,
		`{"type":"welcome","payload":{"v":1,"link":"LINK","window_events":N}}`,
	}
	var before, after runtime.MemStats
	for _, template := range templates {
		for _, n := range numbers {
			st, hub := gvstream.NewStreamer(nil), gvstream.NewHub(nil)
			publish(t, st, "s", 3)
			h, a, v := answer(t, st, 256), callAgent(t, hub, "a"), callViewer(t, hub, "tab")
			h.says()
			noError(t, a.batch("s", stats(t, st, "s").Epoch, 1, 2, 3))
			runtime.ReadMemStats(&before)
			for link, name := range map[*gvstream.Link]string{h.link: h.name, a.link: a.name, v.link: v.name} {
				frame := strings.NewReplacer("EPOCH", stats(t, st, "s").Epoch, "LINK", name, "N", n).Replace(template)
				p, err := gvstream.Unmarshal([]byte(frame))
				if value, isNumber := strconv.ParseUint(n, 10, 64); isNumber != nil || value > gvstream.MaxSeq {
					equal(t, frame, code(err), "malformed")
					continue
				}
				if err == nil {
					link.Handle(t.Context(), p)
					scene.Ready(link)
				} else {
					equal(t, frame, code(err), "malformed")
				}
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%s with %s: %d bytes", template, numbers, n)
			}
			// What was there still is, and numbers go on.
			s := stats(t, st, "s")
			equal(t, "the agent's head", s.Head, 3)
		}
	}
}

func largestNumbers(t *testing.T) {
	// The greatest numbers survive a reader that keeps numbers as floating point:
	// neighbours stay apart. What is not a plain integer is not a number.
	for _, seq := range []uint64{gvstream.MaxSeq - 2, gvstream.MaxSeq - 1, gvstream.MaxSeq} {
		p := scene.Recode(t, &gvstream.WatchPayload{SessionID: "s", Epoch: epoch1, AfterSeq: seq}).(*gvstream.WatchPayload)
		equal(t, "encoded and decoded", p.AfterSeq, seq)
		equal(t, "as floating point", uint64(float64(seq)), seq)
		if float64(seq) == float64(seq-1) {
			t.Errorf("%d is its neighbour", seq)
		}
	}
	line, err := gvstream.Marshal(&gvstream.WatchPayload{SessionID: "s", Epoch: epoch1, AfterSeq: gvstream.MaxSeq + 1})
	noError(t, err)
	_, err = gvstream.Unmarshal(line)
	equal(t, "one more", code(err), "malformed")
	for _, n := range []string{"1.5", "1e3", "1.0", `"5x"`, `"5"`, "12345678901234567890", "9007199254740992", "-0", "01", "+1", "0x1", "true"} {
		_, err := gvstream.Unmarshal([]byte(`{"type":"watch","payload":{"session_id":"s","epoch":"0001","after_seq":` + n + `}}`))
		equal(t, n, code(err), "malformed")
	}
}

func emptyPages(t *testing.T) {
	// An agent answers replay requests with nothing. If it says that this was all, the
	// viewer gets a gap after one page; if it says that more follows, it is given time, but
	// no more than an agent that is away.
	for _, done := range []bool{true, false} {
		sc := scene.New(t, &gvstream.HubConfig{LogEvents: 2})
		a := callAgent(t, sc.Hub, "a")
		noError(t, a.batch("s", epoch1, to(1, 10)...))
		scene.Ready(a.link)
		v := newViewer(t, "s", gvstream.Position{})
		sc.Viewer("tab", v)
		requests := 0
		start := time.Now()
		for time.Since(start) < time.Minute {
			sc.Flow()
			for _, p := range scene.Ready(a.link) {
				if r, ok := p.(*gvstream.ReplayRequestPayload); ok {
					requests++
					noError(t, a.link.Handle(t.Context(), &gvstream.ReplayBatchPayload{SessionID: "s", ViewerID: "tab", RequestID: r.RequestID,
						Epoch: epoch1, FirstSeq: r.AfterSeq + 1, LastSeq: r.AfterSeq, UntilSeq: r.UntilSeq, AvailableFrom: 1, Done: done}))
				}
			}
			if time.Since(start)%(15*time.Second) == 0 { // the agent's sign of life
				noError(t, a.link.Handle(t.Context(), &gvstream.StatusPayload{Link: a.name}))
			}
			if after := time.Since(start); done && after == 0 || !done && after == 31*time.Second {
				sc.Flow()
				equal(t, "the viewer gets", read(t, v), "gap 1..8 unavailable, 9..10")
			}
			pass(time.Second)
		}
		if requests > 3 || done && requests > 1 {
			t.Errorf("%d requests in a minute", requests)
		}
	}
}

func sessionsTakeTurns(t *testing.T) {
	// One session has fifty thousand events to send, replayed and live, another ten. The
	// ten come next or after one more batch.
	const many = 50_000
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{ReplayEvents: many, MaxPendingEvents: many})
	publish(t, st, "a", many)
	publish(t, st, "b", 1)
	h := answer(t, st, math.MaxInt32)
	sent := scene.Ready(h.link)
	equal(t, "b after one batch of a", say(sent[1:3]...), "batch a 1; batch b 1")
	for _, p := range sent[1:] {
		b := p.(*gvstream.EventBatchPayload)
		line, err := gvstream.Marshal(b)
		noError(t, err)
		if len(b.Events) > 256 || len(line) > 256<<10 {
			t.Errorf("a batch of %d events, %d bytes", len(b.Events), len(line))
		}
	}
	noError(t, h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "a", RequestID: "r"}))
	equal(t, "a replays", say(scene.Next(h.link)), "replayed a 1..100")
	publish(t, st, "b", 10)
	equal(t, "b after one page of a", say(scene.Next(h.link), scene.Next(h.link)), "replayed a 101..200; batch b 2..11")

	// The same at the hub, for one viewer of both.
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: many})
	sc.Agent("agent", st).Shared = true
	sc.Acked()
	v := callViewer(t, sc.Hub, "tab")
	noError(t, v.watch("a", gvstream.Position{}))
	equal(t, "a", say(scene.Next(v.link), scene.Next(v.link)), "status a 50000 acked 0; batch a 1")
	noError(t, v.watch("b", gvstream.Position{}))
	got := say(scene.Next(v.link), scene.Next(v.link), scene.Next(v.link))
	equal(t, "b after one batch of a", got, "status b 11 acked 0; batch a 2..17; batch b 1")
}

func acksPassReplays(t *testing.T) {
	// A long replay is running. An ack of another session takes effect at once, and what
	// the agent has to send besides events goes out before the next page. At the hub, acks
	// go before a viewer's events.
	st := gvstream.NewStreamer(nil)
	publish(t, st, "a", 1000)
	publish(t, st, "b", 10)
	h := answer(t, st, math.MaxInt32)
	h.says()
	noError(t, h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "a", RequestID: "r"}))
	equal(t, "a replays", say(scene.Next(h.link)), "replayed a 1..100")
	noError(t, h.ack("b", 10))
	equal(t, "kept of b", unacked(st, "b"), "")
	pass(15 * time.Second) // a heartbeat is due
	equal(t, "next", say(scene.Next(h.link), scene.Next(h.link)), "status a 1000 acked 0; replayed a 101..200")
	equal(t, "refused at once", code(h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "none", RequestID: "r"})), "unknown_session")
	equal(t, "next", say(scene.Next(h.link)), "error unknown_session")

	hub := gvstream.NewHub(nil)
	a := callAgent(t, hub, "a")
	noError(t, a.batch("s", epoch1, to(1, 256)...))
	noError(t, a.batch("s", epoch1, to(257, 512)...))
	start := time.Now()
	equal(t, "the hub's ack", a.says(), "ack s 512")
	equal(t, "time it took", time.Since(start), 0)
}

func batchBytes(t *testing.T) {
	// A thousand events of 10 KiB: no batch is longer than 256 KiB as it stands on the
	// wire, text or base64. An event that is longer than that travels alone.
	for _, raw := range []bool{false, true} {
		st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxPendingBytes: 64 << 20, ReplayBytes: 64 << 20})
		events, large := testenv.Fewer(1000), 15
		for i := range events {
			e := gvstream.Event{Type: "x", Data: text(10 << 10)}
			if raw {
				e = gvstream.Event{Type: "x", Bytes: bytes.Repeat([]byte{byte(i)}, 10<<10)}
			}
			if i+1 == large {
				e = gvstream.Event{Type: "large", Data: text(300 << 10)}
			}
			_, err := st.Publish(scene.Ended, "s", e)
			noError(t, err)
		}
		check := func(p gvstream.Payload, events []gvstream.Event) {
			line, err := gvstream.Marshal(p)
			noError(t, err)
			alone := len(events) == 1 && events[0].Type == "large"
			if len(line) > 256<<10 && !alone {
				t.Errorf("%d events in %d bytes", len(events), len(line))
			}
		}
		h := answer(t, st, math.MaxInt32)
		live, replayed := 0, 0
		for _, p := range scene.Ready(h.link)[1:] {
			b := p.(*gvstream.EventBatchPayload)
			check(b, b.Events)
			live += len(b.Events)
		}
		noError(t, h.link.Handle(t.Context(), &gvstream.ReplayRequestPayload{SessionID: "s", RequestID: "r"}))
		for _, p := range scene.Ready(h.link) {
			b := p.(*gvstream.ReplayBatchPayload)
			check(b, b.Events)
			replayed += len(b.Events)
		}
		equal(t, "events sent and replayed", fmt.Sprint(live, replayed), fmt.Sprint(events, events))
	}
}

func oneSessionsTrouble(t *testing.T) {
	// Sixteen sessions come back after a cut, and the hub's store doesn't answer for
	// one of them. The connection stays, the others go on at once, and the one is
	// tried again on its timer.
	ill := true
	var disk store
	sc := scene.New(t, &gvstream.HubConfig{Commit: disk.commit, Resume: func(_ context.Context, id, _ string) (uint64, error) {
		if ill && id == "s07" {
			return 0, errors.New("timeout")
		}
		return 0, nil
	}})
	st := gvstream.NewStreamer(nil)
	for i := range 16 {
		publish(t, st, fmt.Sprintf("s%02d", i), 3)
	}
	answer(t, st, 256).says() // a hub that died
	w := sc.Agent("a", st)
	sc.Acked()
	equal(t, "links", sc.Hub.Stats().Agents, 1)
	equal(t, "hellos", strings.Count(say(w.Up...), "hello"), 1)
	equal(t, "refused", refusals(w.Down), "overloaded;overloaded")
	for i := range 16 {
		want := "1..3"
		if i == 7 {
			want = ""
		}
		equal(t, fmt.Sprint("stored of ", i), disk.tell(fmt.Sprintf("s%02d", i)), want)
	}
	ill = false
	sc.Later(20 * time.Second)
	equal(t, "stored of 7", disk.tell("s07"), "1..3")
	equal(t, "pending", st.Stats().PendingEvents, 0)
	equal(t, "hellos", strings.Count(say(w.Up...), "hello"), 1)
}

func noReconnectOfItsOwn(t *testing.T) {
	// The library has no back-off because it makes no connection: Run serves one and
	// returns its error, and trying again is the caller's. What the protocol itself
	// repeats on a connection, it repeats more and more slowly.
	broken := errors.New("broken")
	sends := 0
	err := gvstream.NewStreamer(nil).Connect().Run(context.Background(), func(context.Context, gvstream.Payload) error {
		sends++
		return broken
	}, func(ctx context.Context) (gvstream.Payload, error) { <-ctx.Done(); return nil, ctx.Err() })
	equal(t, "Run", err, broken)
	equal(t, "sends", sends, 1)

	link := gvstream.NewStreamer(nil).Connect()
	var times []string
	for start := time.Now(); time.Since(start) < 10*time.Minute; pass(time.Second) {
		noError(t, link.Handle(scene.Ended, &gvstream.StatusPayload{Link: "l0"})) // of another link, but a sign of life
		if say(scene.Ready(link)...) == "hello" {
			times = append(times, time.Since(start).String())
		}
	}
	equal(t, "hellos that nobody answers", strings.Join(times, " "), "0s 15s 45s 1m45s 3m45s 5m45s 7m45s 9m45s")
}

func replaysQueue(t *testing.T) {
	// A thousand viewers come at once for what only the agent has, each from a number
	// before that of the one before. At most eight replays are open at a time, nothing is
	// asked for twice, and all finish.
	const events = 110
	viewers := testenv.Fewer(1000)
	sc := scene.New(t, &gvstream.HubConfig{LogEvents: 1})
	st := gvstream.NewStreamer(nil)
	publish(t, st, "s", events)
	w := sc.Agent("a", st)
	sc.Acked()
	w.Forget()
	all, tabs := make([]*gvstream.Viewer, viewers), make([]*scene.Wire, viewers)
	for i := range all {
		all[i] = newViewer(t, "s", at(t, st, "s", uint64(99-i%100)))
		tabs[i] = sc.Viewer(fmt.Sprint("tab", i), all[i])
		tabs[i].Shared = true
		tabs[i].Flow()
	}
	w.Shared = true
	open, most, asked := 0, 0, uint64(0)
	start := time.Now()
	for n, idle := 0, 0; idle < 3; n++ {
		idle++
		if w.StepDown() || w.StepUp() { // the agent hears of all requests before it answers
			idle = 0
		}
		if idle > 0 || n%50 == 0 {
			for _, to := range tabs {
				if to.Step() {
					idle = 0
				}
			}
		}
		for _, p := range w.Up {
			if b, ok := p.(*gvstream.ReplayBatchPayload); ok && b.Done {
				open--
			}
		}
		for _, p := range w.Down {
			if r, ok := p.(*gvstream.ReplayRequestPayload); ok {
				open++
				asked += r.UntilSeq - r.AfterSeq
			}
		}
		most = max(most, open)
		w.Forget()
	}
	equal(t, "most open at a time", most, 8)
	equal(t, "events asked for", asked, events-1)
	equal(t, "refused", codes(w.Errs), "")
	equal(t, "time it took", time.Since(start), 0)
	for i, v := range all {
		equal(t, fmt.Sprint("viewer ", i), read(t, v), fmt.Sprintf("%d..110", 100-i%100))
	}
}
