package gvstream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vibetools/gvstream/internal/epoch"
)

// What happens next at an agent.
const (
	agentPublishes = iota
	agentConnects
	agentSays
	agentIsWelcomed
	agentIsAcked
	agentIsAsked
	agentIsRefused
	agentHearsLies
	agentHearsLate
	agentWaits
	agentForgets
	agentRenews
	agentCloses
	agentLooksBack
	agentSteps
)

// An agentTest is a Streamer against a hostile hub.
type agentTest struct {
	*machineTest
	st    *Streamer
	links []*streamerLink // the last is the newest

	published map[simKey][]string // by number
	handed    map[simKey]uint64   // the highest number that was sent
	asked     map[string]bool     // request and viewer ids
	acks      map[*sender]uint64
	rejected  bool // the hub has refused an event
}

var agentSessions = []string{"a", "b", "c"}

func newAgentTest(t *testing.T, script []byte) *agentTest {
	m := newMachineTest(t, script)
	c := m.c
	cfg := StreamerConfig{
		Overflow:         Overflow(1 + c.of(2)), // Block waits as Reject fails
		MaxSessions:      one(c, []int{8, 2}),
		MaxPendingEvents: one(c, []int{8, 2, 30}),
		MaxPendingBytes:  one(c, []int{0, 600}),
		ReplayEvents:     one(c, []int{5, -1, 40}),
		MaxTotalBytes:    one(c, []int{0, 900}),
		MaxReplays:       one(c, []int{2, -1, 8}),
	}
	w := &agentTest{
		machineTest: m, st: NewStreamer(&cfg), published: make(map[simKey][]string),
		handed: make(map[simKey]uint64), asked: make(map[string]bool), acks: make(map[*sender]uint64),
	}
	w.st.epochs = countingSource()
	w.st.sizes = sizes{batchBytes: pageBytes, batch: one(c, []int{256, 2}), first: one(c, []int{firstBatchBytes, maxBatchBytes}), page: one(c, []int{100, 2}), replay: maxReplayRequestEvents, cohort: maxCohort}
	w.g.viewers, w.g.requests = []string{"v1", "v2"}, []string{"r1", "r2", "r3"}
	return w
}

// FuzzStreamer: whatever a hub says, and whatever the caller does meanwhile, an agent
// keeps its invariants; a new link to an honest hub delivers all that was published.
func FuzzStreamer(f *testing.F) {
	small := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0}
	connect := []byte{agentConnects, agentSays, 0, agentIsWelcomed, 0}
	addScripts(f,
		slices.Concat(small, connect, []byte{
			agentPublishes, 0, 3, 0, agentSays, 3, agentIsAcked, 0, 255, 0, agentPublishes, 0, 2, 0, agentSays, 3, agentIsAcked, 0, 1, 0,
		}),
		slices.Concat(small, connect, []byte{ // a cut, and a lower first ack
			agentPublishes, 0, 3, 0, agentPublishes, 1, 3, 0, agentSays, 3, agentIsAcked, 0, 3, 0,
		}, connect, []byte{agentSays, 3, agentIsAcked, 0, 1, 0, agentSays, 3, agentIsAcked, 0, 255, 1, agentSays, 3}),
		slices.Concat(small, connect, []byte{ // replays
			agentPublishes, 0, 3, 0, agentPublishes, 0, 3, 0, agentSays, 3, agentIsAcked, 0, 6, 0,
			agentIsAsked, 0, 0, 0, 0, 0, agentIsAsked, 0, 1, 1, 1, 2, agentSays, 3, agentSays, 3,
		}),
		slices.Concat([]byte{1, 0, 1, 0, 0, 0, 0, 1, 1}, connect, []byte{ // losses and refusals
			agentPublishes, 0, 3, 0, agentPublishes, 0, 3, 0, agentSays, 3, agentIsRefused, 0, 0, 0, agentSays, 3,
			agentIsRefused, 0, 2, 0, agentSays, 1, agentIsRefused, 0, 3, 0, agentWaits, 3, agentSays, 1, agentIsRefused, 0, 5, 0, agentRenews, 0,
		}),
		slices.Concat([]byte{0, 0, 0, 0, 1, 0, 0, 0, 0}, connect, []byte{ // the agent no longer holds what the hub has lost
			agentPublishes, 0, 3, 0, agentSays, 3, agentIsAcked, 0, 3, 0, agentPublishes, 0, 1, 0, agentSays, 3,
		}, connect, []byte{agentSays, 3, agentIsAcked, 0, 1, 0, agentSays, 3}),
		slices.Concat([]byte{0, 0, 0, 0, 2, 1, 0, 0, 0}, connect, []byte{ // sessions that share bytes
			agentPublishes, 0, 0, 2, agentPublishes, 1, 0, 2, agentSays, 3, agentIsAcked, 0, 255, 0, agentIsAcked, 1, 255, 0,
			agentPublishes, 0, 3, 2, agentSays, 3, agentIsAcked, 0, 255, 0, agentPublishes, 1, 3, 2, agentLooksBack, 1, agentForgets, 0,
		}),
		slices.Concat(small, connect, []byte{ // silence
			agentPublishes, 0, 3, 0, agentSays, 3, agentWaits, 3, agentSays, 3, agentWaits, 3, agentSays, 3, agentWaits, 4, agentSays, 3,
		}, connect, []byte{agentWaits, 3, agentSays, 3, agentWaits, 3, agentSays, 3, agentIsRefused, 0, 6, 0, agentSays, 3, agentIsWelcomed, 0}),
		slices.Concat(small, connect, []byte{ // the end, and after it
			agentPublishes, 0, 3, 1, agentSays, 3, agentIsAcked, 0, 255, 0, agentWaits, 5, agentPublishes, 0, 1, 0, agentSays, 1,
		}),
	)
	f.Fuzz(runAgentTest)
}

// runAgentTest is one conversation.
func runAgentTest(t *testing.T, script []byte) {
	w := newAgentTest(t, script)
	for w.c.left() {
		w.step()
		w.check()
		for id, s := range w.st.sessions {
			if sent := w.handed[simKey{id, s.epoch}]; s.maxSentInEpoch != sent {
				t.Fatalf("rule 6: %s: sent %d, but says %d", id, sent, s.maxSentInEpoch)
			}
		}
	}
	w.settle()
}

func (w *agentTest) step() {
	c := w.c
	switch c.of(agentSteps) {
	case agentPublishes:
		id := one(c, agentSessions)
		n, kind := c.of(4), c.of(16)
		for range 1 + n {
			w.publish(id, kind)
		}
	case agentConnects:
		w.links = append(w.links, w.st.connect(w.now))
	case agentSays:
		n := c.of(4)
		for range 1 + n {
			w.says()
		}
	case agentIsWelcomed:
		w.given(&WelcomePayload{V: version, Link: fmt.Sprint("l", len(w.links)), WindowEvents: one(c, []int{256, 1, 4, 0})})
	case agentIsAcked:
		w.isAcked()
	case agentIsAsked:
		w.isAsked()
	case agentIsRefused:
		w.isRefused()
	case agentHearsLies:
		w.pools()
		w.given(w.g.hostile())
	case agentHearsLate:
		if len(w.links) > 1 {
			w.pools()
			w.hears(one(c, w.links), w.g.hostile())
		}
	case agentWaits:
		w.now = c.pass(w.now)
	case agentForgets:
		w.st.Forget(one(c, agentSessions))
	case agentRenews:
		w.st.renew(w.now, one(c, agentSessions))
	case agentCloses:
		if al := w.link(); al != nil {
			al.fail(w.now, ErrClosed)
		}
	case agentLooksBack:
		w.looksBack(one(c, agentSessions))
	}
}

func (w *agentTest) publish(id string, kind int) {
	ev := Event{Type: "out", Data: fmt.Appendf(nil, "%q", fmt.Sprint(id, len(w.published), kind)), End: kind == 1}
	switch kind {
	case 2:
		ev.Data = fmt.Appendf(nil, "%q", strings.Repeat("x", 300))
	case 3:
		ev.Data, ev.Bytes = nil, []byte(id)
	}
	s, seq, err := offer(w.now, w.st, id, ev)
	if err != nil {
		return
	}
	k := simKey{id, s.epoch}
	if w.published[k] = append(w.published[k], content(&ev)); seq != uint64(len(w.published[k])) {
		w.Fatalf("rule 1: number %d follows %d", seq, len(w.published[k])-1)
	}
}

// content is the part of an event that must not change.
func content(ev *Event) string {
	return ev.Type + " " + string(ev.Data) + " " + string(ev.Bytes) + fmt.Sprint(ev.End)
}

func (w *agentTest) link() *streamerLink {
	if len(w.links) == 0 {
		return nil
	}
	return w.links[len(w.links)-1]
}

// pools fills the forger's pools with values near the true ones.
func (w *agentTest) pools() {
	g := w.g
	g.sessions, g.links, g.epochs, g.numbers = agentSessions, g.links[:0], g.epochs[:0], g.numbers[:0]
	for _, al := range w.links {
		g.links = append(g.links, al.id)
	}
	slices.Reverse(g.links)
	for _, s := range w.st.all() {
		g.epochs = append(g.epochs, s.epoch)
		g.numbers = append(g.numbers, s.acked, s.maxSentInEpoch, s.log.head, s.log.first())
		if s.sender != nil {
			g.numbers = append(g.numbers, s.sender.sent, s.sender.maxSentOnLink)
		}
	}
}

// given hands a payload to the newest link.
func (w *agentTest) given(p Payload) {
	if al := w.link(); al != nil {
		w.g.remember(p)
		w.hears(al, p)
	}
}

func (w *agentTest) hears(al *streamerLink, p Payload) {
	stale := false
	switch p := p.(type) {
	case *StatusPayload:
		stale = p.Link != al.id
	case *AckBatchPayload:
		stale = p.Link != al.id
	case *ReplayRequestPayload:
		w.asked[p.RequestID+" "+p.ViewerID] = true
	case *ErrorPayload:
		w.rejected = w.rejected || p.Code == CodeEventRejected || p.Code == CodeEventTooLarge
		if s := w.st.lookup(p.SessionID); s != nil && s.sender != nil && (p.Retryable || p.Code == CodeUnknownSession) {
			delete(w.acks, s.sender) // its next ack counts as a first ack
		}
	}
	before := w.print()
	w.takes(al.Link, p)
	if (stale || al != w.link()) && before != w.print() {
		w.Fatalf("S6: a payload of another link changed something: %s", brief(p))
	}
}

// agentPrint is the state that no stale payload may change.
type agentPrint struct{ acked, first, head, sent, events, stopped uint64 }

func (w *agentTest) print() (f agentPrint) {
	for _, s := range w.st.sessions {
		f.acked += s.acked
		f.first += s.log.first()
		f.head += s.log.head
		f.events += uint64(s.log.events)
		if s.stopped != nil {
			f.stopped++
		}
		if s.sender != nil {
			f.sent += s.sender.sent
		}
	}
	return f
}

// isAcked: an honest hub acknowledges some of what was sent.
func (w *agentTest) isAcked() {
	s, n, nack := w.st.lookup(one(w.c, agentSessions)), w.c.next(), w.c.of(4) == 1
	if s == nil || s.sender == nil {
		return
	}
	w.given(&AckBatchPayload{SessionID: s.id, Epoch: s.epoch, Link: s.sender.id, UpToSeq: min(uint64(n), s.maxSentInEpoch), Nack: nack})
}

// isAsked: an honest hub wants a replay for a viewer.
func (w *agentTest) isAsked() {
	c := w.c
	id, request, viewer := one(c, agentSessions), one(c, []string{"r1", "r2", "r3", "r4"}), one(c, []string{"v1", "v2", ""})
	after, limit := uint64(c.of(6)), one(c, []int{0, 1, 5, 500})
	if s := w.st.lookup(id); s != nil {
		w.given(&ReplayRequestPayload{SessionID: id, ViewerID: viewer, RequestID: request, Epoch: s.epoch, AfterSeq: after, UntilSeq: max(after, s.acked), Limit: limit})
	}
}

// isRefused: a hub refuses an event, a session or a link.
func (w *agentTest) isRefused() {
	s, kind, back := w.st.lookup(one(w.c, agentSessions)), w.c.of(7), uint64(w.c.of(4))
	if s == nil || s.sender == nil {
		return
	}
	p := &ErrorPayload{SessionID: s.id, Epoch: s.epoch}
	switch kind {
	case 0, 1:
		p.Code = CodeEventRejected
		p.Seq = s.sender.maxSentOnLink - min(back, s.sender.maxSentOnLink)
	case 2:
		p.Code = CodeUnknownSession
	case 3:
		p.Code, p.Retryable = CodeOverloaded, true
	case 4:
		p.Code = CodeForbidden
	case 5:
		p.Code = CodeStaleEpoch
		p.Epoch, _ = countingSource().Past(w.now, s.epoch)
	case 6:
		p = &ErrorPayload{Code: CodeStaleLink, Retryable: true}
	}
	w.given(p)
}

// says takes the next payload and compares it with the truth.
func (w *agentTest) says() {
	al := w.link()
	if al == nil {
		return
	}
	switch p := w.machineTest.says(al.Link).(type) {
	case *HelloPayload:
		if p.V != version || p.Role != roleAgent {
			w.Fatalf("hello of %q, version %d", p.Role, p.V)
		}
	case *StatusPayload:
		w.stands(al, p)
	case *EventBatchPayload:
		s := w.st.lookup(p.SessionID)
		if s == nil || s.epoch != p.Epoch || p.Link != al.id || p.LastSeq > s.maxSentInEpoch {
			w.Fatalf("a batch of another life or link: %s", brief(p))
		}
		if f := windowFault(s, p); f != "" {
			w.Fatalf("%s", f)
		}
		w.truthful(p.SessionID, p.Epoch, p.Events, p.Gaps)
		k := simKey{p.SessionID, p.Epoch}
		w.handed[k] = max(w.handed[k], p.LastSeq)
	case *ReplayBatchPayload:
		if !w.asked[p.RequestID+" "+p.ViewerID] {
			w.Fatalf("S11: nobody asked for %s", brief(p))
		}
		w.truthful(p.SessionID, p.Epoch, p.Events, p.Gaps)
	case *ErrorPayload, nil:
	default:
		w.Fatalf("an agent says %s", brief(p))
	}
}

// stands checks that a status says where sessions stand.
func (w *agentTest) stands(al *streamerLink, p *StatusPayload) {
	for _, e := range p.Sessions {
		if s := w.st.lookup(e.SessionID); e.Forgotten {
			if s != nil && s.epoch == e.Epoch {
				w.Fatalf("forgotten, and there: %s", brief(p))
			}
		} else if s == nil || e.Epoch != s.epoch || e.HeadSeq != s.log.head || e.AckSeq != s.acked || e.Ended != s.hasEnded {
			w.Fatalf("status: %s", brief(p))
		}
	}
	if p.Link != al.id {
		w.Fatalf("status of link %q on %q", p.Link, al.id)
	}
}

// truthful: S2 and S3.
func (w *agentTest) truthful(id, epoch string, events []Event, gaps []Gap) {
	all := w.published[simKey{id, epoch}]
	for i := range events {
		if seq := events[i].Seq; seq > uint64(len(all)) || content(&events[i]) != all[seq-1] {
			w.Fatalf("S2: %s %d is %s", id, seq, content(&events[i]))
		}
	}
	for _, g := range gaps {
		switch {
		case g.To > uint64(len(all)):
			w.Fatalf("S3: %s: %v was never published", id, g)
		case g.Reason == ReasonDropped && w.st.cfg.Overflow == DropOldest, g.Reason == ReasonRejected && w.rejected, g.Reason == ReasonEvicted:
		default:
			w.Fatalf("S3: %s: %v lost for no reason", id, g)
		}
	}
}

// looksBack: Unacked yields what is not acknowledged, in order.
func (w *agentTest) looksBack(id string) {
	s, n := w.st.lookup(id), 0
	last := uint64(0)
	for ev := range w.st.Unacked(id) {
		if ev.Seq <= max(last, s.acked) || content(&ev) != w.published[simKey{id, s.epoch}][ev.Seq-1] {
			w.Fatalf("unacked: %d after %d", ev.Seq, max(last, s.acked))
		}
		last = ev.Seq
		n++
	}
	if s != nil && n != s.pendingEvents {
		w.Fatalf("unacked: %d of %d events", n, s.pendingEvents)
	}
}

func (w *agentTest) check() {
	w.sound(streamerFault(w.st))
	for _, s := range w.st.sessions {
		o := s.sender
		if o == nil || !o.opened {
			delete(w.acks, o)
			continue
		}
		if s.acked < w.acks[o] {
			w.Fatalf("S5: %s: ack went back from %d to %d", s.id, w.acks[o], s.acked)
		}
		w.acks[o] = s.acked
	}
}

// settle: an honest hub gets everything. Sessions that the hostile one has stopped are
// renewed, or begin anew if it has left no epoch for that.
func (w *agentTest) settle() {
	w.now = w.now.Add(epoch.MaxLead) // past any future epoch that it may have named
	h := NewHub(nil)
	h.ids = countingSource()
	pair := func() [2]*Link { return [2]*Link{w.st.connect(w.now).Link, h.connectAgent(w.now, "agent").Link} }
	for _, s := range w.st.all() {
		if s.stopped != nil && w.st.renew(w.now, s.id) != nil {
			w.st.Forget(s.id)
		}
	}
	w.carry(func() {}, pair())
	w.check()
	w.rests(h)
	for _, id := range agentSessions[:2] {
		_, _, err := offer(w.now, w.st, id, Event{Data: []byte(`"last"`)})
		if errors.Is(err, ErrEnded) || errors.Is(err, ErrTooMany) {
			continue
		}
		if err != nil {
			w.Fatalf("publish: %v", err)
		}
	}
	w.carry(func() {}, pair())
	w.check()
	w.rests(h)
}

// rests: L1.
func (w *agentTest) rests(h *Hub) {
	w.Helper()
	for _, s := range w.st.all() {
		if s.stopped != nil {
			w.Fatalf("%s: an honest hub stopped it: %v", s.id, s.stopped)
		}
		if s.acked != s.log.head {
			w.Fatalf("L1: %s: acked %d of %d", s.id, s.acked, s.log.head)
		}
		if hs := h.lookup(s.id); s.log.head > 0 && (hs == nil || hs.epoch != s.epoch || hs.log.head != s.log.head) {
			w.Fatalf("L1: %s: not at the hub", s.id)
		}
	}
}
