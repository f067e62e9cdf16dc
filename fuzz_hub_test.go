package gvstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"testing"

	"github.com/vibetools/gvstream/internal/epoch"
)

// A hubTest is a Hub, and an honest viewer that watches every session. Its two targets
// add hostile peers and honest agents.
type hubTest struct {
	*machineTest
	h        *Hub
	v        *Viewer
	up       *viewerLink    // the honest viewer's half of its connection
	down     *hubViewerLink // and the hub's
	seen     map[string]*shown
	accepted map[simKey]uint64 // the highest number that the hub accepted
	stored   map[simKey]uint64 // the last number that Commit took in this life of the session
	verdict  int               // of the next Commit
	store    int               // how Resume answers
	forgot   bool              // the hub has lost sessions
}

var hubSessions = []string{"a", "b", "c"}

func newHubTest(t *testing.T, script []byte) *hubTest {
	w := &hubTest{
		machineTest: newMachineTest(t, script), seen: make(map[string]*shown),
		accepted: make(map[simKey]uint64), stored: make(map[simKey]uint64),
	}
	c := w.c
	cfg := HubConfig{
		Commit:    w.commit,
		LogEvents: one(c, []int{4, -1, 1, 20}), LogBytes: one(c, []int{0, 400}),
		MaxEventBytes: one(c, []int{0, 200}), MaxSessions: one(c, []int{8, 2}), MaxAgentSessions: one(c, []int{8, 1}),
		MaxReplays: one(c, []int{8, 1, -1}), MaxWatches: 4,
		Window: one(c, []int{4, 256, 1}),
	}
	if c.of(4) == 1 {
		cfg.Resume = w.resume
	}
	if c.of(4) == 1 {
		cfg.AuthorizeAgent = func(context.Context, string, string, string) error {
			return one(w.c, []error{nil, errors.New("no"), &ProtocolError{Retryable: true}})
		}
	}
	w.h = NewHub(&cfg)
	w.h.ids = countingSource()
	w.h.sizes = sizes{batchBytes: pageBytes, batch: one(c, []int{256, 2}), first: one(c, []int{firstBatchBytes, maxBatchBytes}), page: maxReplayBatchEvents, replay: one(c, []int{500, 3}), cohort: maxCohort}
	w.h.openings.size, w.h.commits.size = 0, 0
	w.v = NewViewer(&ViewerConfig{Window: 1 << 20, WindowBytes: 1 << 30})
	for _, id := range hubSessions {
		w.watch(id, Position{})
	}
	w.connectViewer()
	return w
}

// works does all jobs of the hub's workers.
func (w *hubTest) works() {
	for _, pool := range []*workerPool{&w.h.openings, &w.h.commits} {
		for j := pool.next(); j != nil; j = pool.next() {
			j.work(w.now)
		}
	}
}

func (w *hubTest) connectViewer() {
	w.up, w.down = w.v.connect(w.now), w.h.connectViewer(w.now, "honest", false)
}

func (w *hubTest) watch(id string, at Position) {
	w.v.Unwatch(id)
	w.seen[id] = &shown{pos: at}
	if err := w.v.Watch(id, at); err != nil {
		w.Fatal(err)
	}
}

// commit checks that what is committed continues what is accepted: S1.
func (w *hubTest) commit(_ context.Context, session, epoch string, items []Item) error {
	verdict := w.verdict
	w.verdict = 0
	switch verdict {
	case 1:
		return errors.New("disk full")
	case 2:
		return &ProtocolError{Code: CodeEventRejected, Seq: items[len(items)-1].Seq, Message: "no"}
	}
	s := w.h.sessions[session]
	r := shown{pos: Position{epoch, s.log.head}}
	for _, it := range items {
		if f := r.fault(it); f != "" || it.SessionID != session || it.Epoch != epoch {
			w.Fatalf("S1: commit to %s: %s", session, f)
		}
	}
	w.stored[simKey{session, epoch}] = r.pos.Seq
	return nil
}

func (w *hubTest) resume(context.Context, string, string) (uint64, error) {
	switch w.store {
	case 1:
		return 0, errors.New("does not answer")
	case 2:
		return MaxSeq + 1, nil
	}
	return uint64(w.store), nil
}

// serve has the honest viewer and the hub exchange a few payloads, and reads.
func (w *hubTest) serve(n int) {
	for range n {
		up, down := w.says(w.up.Link), w.says(w.down.Link)
		if up != nil {
			if err := w.takes(w.down.Link, up); isMalformed(err) {
				w.Fatalf("a viewer says %s: %v", brief(up), err)
			}
		}
		if down != nil {
			w.mayGo(w.down, down)
			if err := w.takes(w.up.Link, down); isMalformed(err) || errors.Is(err, context.Canceled) {
				w.Fatalf("the hub says %s: %v", brief(down), err)
			}
		}
		w.read()
		if up == nil && down == nil {
			return
		}
	}
}

// read: S7, S8, S9 and S12.
func (w *hubTest) read() {
	w.noteAccepted()
	for q, _ := w.v.front(); q != nil; q, _ = w.v.front() {
		w.v.done(q)
		if q.err != nil {
			w.seen[q.w.id].ended = true
			continue
		}
		w.sound(w.seen[q.w.id].fault(q.item))
		if most := w.accepted[simKey{q.w.id, q.item.Epoch}]; q.item.Seq > most {
			w.Fatalf("S8: %s %s, but %d is accepted", q.w.id, briefItem(q.item), most)
		}
	}
}

// mayGo: what the hub sends to a viewer is for that viewer, on its link.
func (w *hubTest) mayGo(hv *hubViewerLink, p Payload) {
	ok := true
	switch p := p.(type) {
	case *WelcomePayload:
		ok = p.ViewerID == hv.viewerID && p.Link == hv.id
	case *StatusPayload:
		ok = p.ViewerID == hv.viewerID && p.Link == hv.id
	case *EventBatchPayload: // for all, or for it alone
		ok = p.ViewerID == "" && p.Link == "" || p.ViewerID == hv.viewerID && p.Link == hv.id
	case *ErrorPayload:
	default:
		ok = false
	}
	if !ok {
		w.Fatalf("S11: to %s: %s", hv.viewerID, brief(p))
	}
}

func (w *hubTest) noteAccepted() {
	for id, s := range w.h.sessions {
		if s.epoch != "" {
			k := simKey{id, s.epoch}
			w.accepted[k] = max(w.accepted[k], s.log.head)
		}
	}
}

func (w *hubTest) check() {
	w.sound(hubFault(w.h))
	w.sound(viewerFault(w.v))
	w.noteAccepted()
	if n := w.h.expiry.Len(); n > 200 {
		w.Fatalf("S10: %d deadlines for %d sessions", n, len(w.h.sessions))
	}
}

func (w *hubTest) forgets(id string) {
	w.h.Forget(id)
	w.forgot = true
	for k := range w.stored {
		if k.session == id {
			delete(w.stored, k)
		}
	}
}

// settle: an honest agent takes over the id, whatever it was used for before, and its
// events reach the honest viewer.
func (w *hubTest) settle(agentID string) {
	w.now = w.now.Add(epoch.MaxLead) // past any future epoch that was named
	w.verdict, w.store = 0, 0
	const id = "honest"
	w.forgets(hubSessions[0]) // there is room for one
	w.forgets(hubSessions[1])
	if w.h.cfg.MaxSessions < 8 || w.h.cfg.MaxAgentSessions < 8 {
		for _, s := range w.h.all() {
			w.forgets(s.id)
		}
	}
	w.watch(id, Position{})
	st := NewStreamer(nil)
	st.epochs = countingSource()
	for i := range 5 {
		if _, _, err := offer(w.now, st, id, Event{Data: fmt.Append(nil, i), End: i == 4}); err != nil {
			w.Fatal(err)
		}
	}
	agent := [2]*Link{st.connect(w.now).Link, w.h.connectAgent(w.now, agentID).Link}
	w.connectViewer()
	viewer := [2]*Link{w.up.Link, w.down.Link}
	read := func() { w.works(); w.read() }
	w.carry(read, agent, viewer)
	w.check()
	if s := st.lookup(id); s.acked != 5 {
		w.Fatalf("L1: %s: acked %d of 5, stopped: %v", id, s.acked, s.stopped)
	}
	for range 40 {
		if w.seen[id].ended {
			break
		}
		w.now = w.now.Add(timerFirst)
		w.carry(read, agent, viewer)
		w.check()
	}
	if r := w.seen[id]; !r.ended || r.pos.Seq != 5 {
		w.Fatalf("L2: %s: the viewer is at %v, ended %v", id, r.pos, r.ended)
	}
}

// What happens next at a hub, on the side of its agents.
const (
	hubAgentConnects = iota
	hubHeardHello
	hubHeardBatch
	hubHeardStatus
	hubHeardReplay
	hubHeardNo
	hubSaysToAgent
	hubServes
	hubHearsLies
	hubHearsLate
	hubWaits
	hubForgets
	hubCommitFails
	hubStoreFails
	hubAgentCloses
	hubWatchedAnew
	hubAgentSteps
)

// A hubAgentTest is a Hub against hostile agents.
type hubAgentTest struct {
	*hubTest
	links []*hubAgentLink
}

var hubAgents = []string{"agent1", "agent2"}

// fuzzEpochs are epochs of the days around the start, in order, and others.
var fuzzEpochs = func() (out []string) {
	m := countingSource()
	for range 3 {
		out = append(out, m.Next(fuzzStart))
	}
	return append(out, m.Next(fuzzStart.Add(epoch.MaxLead)), "e1", "zzz")
}()

// FuzzHubAgent: whatever agents say, a hub keeps its invariants, an honest viewer is
// shown nothing but what was accepted, in order, and an honest agent gets through.
func FuzzHubAgent(f *testing.F) {
	small := make([]byte, 12)
	hello := []byte{hubAgentConnects, 0, hubHeardHello, 0, hubSaysToAgent, 0, 0, hubServes, 7}
	addScripts(f,
		slices.Concat(small, hello, []byte{
			hubHeardBatch, 0, 0, 0, 3, 0, hubSaysToAgent, 0, 3, hubServes, 7, hubHeardBatch, 0, 0, 0, 3, 0, hubServes, 7, hubWaits, 1, hubSaysToAgent, 0, 1,
		}),
		slices.Concat(small, hello, []byte{ // a replay
			hubHeardStatus, 0, 0, 0, 9, 9, 0, hubSaysToAgent, 0, 3, hubHeardBatch, 0, 0, 0, 3, 0, hubServes, 7,
			hubSaysToAgent, 0, 3, hubHeardReplay, 0, 4, 0, 0, hubHeardReplay, 0, 5, 1, 0, hubServes, 7,
		}),
		slices.Concat(small, hello, []byte{ // a refused replay
			hubHeardStatus, 0, 0, 0, 9, 9, 0, hubServes, 7, hubSaysToAgent, 0, 3, hubHeardNo, 0, 1, hubWaits, 3, hubServes, 7, hubSaysToAgent, 0, 3, hubHeardNo, 0, 0, hubServes, 7,
		}),
		slices.Concat(small, hello, []byte{ // a restart
			hubHeardBatch, 0, 0, 0, 3, 0, hubServes, 3, hubAgentCloses, 0,
		}, hello, []byte{hubHeardBatch, 0, 0, 1, 3, 0, hubServes, 7, hubHeardBatch, 0, 0, 1, 3, 1, hubServes, 7, hubWaits, 5, hubServes, 7}),
		slices.Concat(small, hello, []byte{ // a store that refuses and fails
			hubCommitFails, 2, hubHeardBatch, 0, 0, 0, 3, 0, hubSaysToAgent, 0, 3, hubCommitFails, 1, hubHeardBatch, 0, 0, 0, 3, 0, hubAgentConnects, 1,
		}),
	)
	f.Fuzz(runHubAgentTest)
}

// runHubAgentTest is one conversation.
func runHubAgentTest(t *testing.T, script []byte) {
	w := &hubAgentTest{hubTest: newHubTest(t, script)}
	w.g.viewers, w.g.requests = []string{"honest", "other"}, nil
	for w.c.left() {
		w.step()
		w.check()
	}
	w.settle(one(w.c, hubAgents))
}

func (w *hubAgentTest) step() {
	c := w.c
	switch c.of(hubAgentSteps) {
	case hubAgentConnects:
		w.links = append(w.links, w.h.connectAgent(w.now, one(c, hubAgents)))
	case hubHeardHello:
		w.hears(w.link(), &HelloPayload{V: version, Role: roleAgent})
	case hubHeardBatch:
		w.heardBatch()
	case hubHeardStatus:
		w.heardStatus()
	case hubHeardReplay:
		w.heardReplay()
	case hubHeardNo:
		w.heardNo()
	case hubSaysToAgent:
		ha, n := w.link(), c.of(8)
		for range 1 + n {
			w.saysTo(ha)
		}
	case hubServes:
		w.serve(1 + c.of(8))
	case hubHearsLies:
		w.pools()
		w.hears(w.newest(), w.g.hostile())
	case hubHearsLate:
		w.pools()
		w.hears(w.link(), w.g.hostile())
	case hubWaits:
		w.now = c.pass(w.now)
	case hubForgets:
		w.forgets(one(c, hubSessions))
	case hubCommitFails:
		w.verdict = c.of(3)
	case hubStoreFails:
		w.store = c.of(6)
	case hubAgentCloses:
		if ha := w.link(); ha != nil {
			ha.fail(w.now, ErrClosed)
		}
	case hubWatchedAnew:
		id := one(c, hubSessions)
		w.watch(id, one(c, []Position{{}, w.v.Position(id), {fuzzEpochs[0], 2}}))
	}
}

// link picks one of the last two.
func (w *hubAgentTest) link() *hubAgentLink {
	n, back := len(w.links), w.c.of(2)
	if n == 0 {
		return nil
	}
	return w.links[max(0, n-1-back)]
}

func (w *hubAgentTest) newest() *hubAgentLink {
	if len(w.links) == 0 {
		return nil
	}
	return w.links[len(w.links)-1]
}

// heardBatch: the next events of a session, as an honest agent sends them, or those
// after one that was lost, or some that the hub has.
func (w *hubAgentTest) heardBatch() {
	ha, id, epoch, n, kind := w.link(), one(w.c, hubSessions), one(w.c, fuzzEpochs), w.c.of(8), w.c.of(8)
	if ha == nil {
		return
	}
	after, end := uint64(0), kind == 1
	if s := w.h.sessions[id]; s != nil && s.epoch == epoch {
		after = s.log.head
	}
	switch {
	case kind == 2:
		after++
	case kind == 3 && after > 1:
		after -= 2
	}
	p := &EventBatchPayload{SessionID: id, Epoch: epoch, Link: ha.id, FirstSeq: after + 1}
	for i := range uint64(n + 1) {
		p.Events = append(p.Events, Event{Seq: after + 1 + i, Data: fuzzData[0], End: end && int(i) == n})
	}
	p.LastSeq = p.Events[n].Seq
	p.HeadSeq = p.LastSeq
	if p.LastSeq <= MaxSeq {
		w.hears(ha, p)
	}
}

// heardStatus: a session that is further than the hub knows.
func (w *hubAgentTest) heardStatus() {
	c := w.c
	ha, id, epoch := w.link(), one(c, hubSessions), one(c, fuzzEpochs)
	head, ack, ended := uint64(c.of(32)), uint64(c.of(32)), c.of(4) == 1
	if ha != nil {
		w.hears(ha, &StatusPayload{Link: ha.id, Sessions: []SessionStatus{
			{SessionID: id, Epoch: epoch, FirstSeq: 1, HeadSeq: head, AckSeq: min(ack, head), Ended: ended},
		}})
	}
}

// open returns one of the requests whose answer the hub awaits.
func (w *hubAgentTest) open(ha *hubAgentLink) *fetch {
	if ha == nil || len(ha.requests) == 0 {
		w.c.next()
		return nil
	}
	ids := make([]string, 0, len(ha.requests))
	for id := range ha.requests {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ha.requests[one(w.c, ids)]
}

// heardReplay: the answer to a request, or a part of it.
func (w *hubAgentTest) heardReplay() {
	f := w.open(w.link())
	n, done, lost := uint64(w.c.of(8)), w.c.of(2) == 1, w.c.of(4) == 1
	if f == nil {
		return
	}
	p := &ReplayBatchPayload{
		SessionID: f.s.id, ViewerID: f.viewerID, RequestID: f.id, Epoch: f.s.epoch,
		FirstSeq: f.log.head + 1, LastSeq: f.log.head, UntilSeq: f.until, AvailableFrom: f.log.head + 1, Done: done,
	}
	if lost && p.FirstSeq < f.until {
		p.FirstSeq++
		p.LastSeq++
	}
	for p.LastSeq < min(f.until, f.log.head+1+n) {
		p.LastSeq++
		p.Events = append(p.Events, Event{Seq: p.LastSeq, Data: fuzzData[0]})
	}
	w.hears(f.ha, p)
}

// heardNo: the agent refuses a request.
func (w *hubAgentTest) heardNo() {
	f, retry := w.open(w.link()), w.c.of(2) == 1
	if f != nil {
		w.hears(f.ha, &ErrorPayload{SessionID: f.s.id, ViewerID: f.viewerID, RequestID: f.id, Code: CodeReplayBusy, Retryable: retry})
	}
}

func (w *hubAgentTest) pools() {
	g := w.g
	g.sessions, g.epochs = hubSessions, fuzzEpochs
	g.links, g.numbers, g.requests = g.links[:0], g.numbers[:0], g.requests[:0]
	for i := len(w.links) - 1; i >= max(0, len(w.links)-3); i-- {
		ha := w.links[i]
		g.links = append(g.links, ha.id)
		for id, f := range ha.requests {
			g.requests = append(g.requests, id)
			g.numbers = append(g.numbers, f.log.head, f.until)
		}
	}
	slices.Sort(g.requests)
	for _, s := range w.h.all() {
		g.numbers = append(g.numbers, s.log.head, s.log.first(), s.agentHead, s.endSeq)
	}
	slices.Sort(g.numbers)
}

func (w *hubAgentTest) hears(ha *hubAgentLink, p Payload) {
	if ha == nil {
		return
	}
	stale := !ha.greeted || ha.failure() != nil
	switch p := p.(type) {
	case *StatusPayload:
		stale = stale || p.Link != ha.id
	case *EventBatchPayload:
		stale = stale || p.Link != ha.id
	case *ReplayBatchPayload, *AckBatchPayload, *WatchPayload:
	case *HelloPayload:
		stale = ha.failure() != nil
	}
	w.g.remember(p)
	w.h.expire(w.now) // as any call does
	before := w.print()
	w.takes(ha.Link, p)
	w.works()
	after := w.print()
	if stale && before != after {
		w.Fatalf("S6: a payload of another link changed something: %v", p)
	}
	for i, id := range hubSessions {
		a, b := before[i], after[i]
		switch {
		case a.over && b.epoch == "": // it made room for another
		case a.owner != "" && a.owner != b.owner && (b.owner != ha.agentID || w.h.cfg.AuthorizeAgent == nil):
			w.Fatalf("rule 4: %s belonged to %s, now to %s", id, a.owner, b.owner)
		case b.epoch < a.epoch, b.epoch == a.epoch && b.accepted < a.accepted:
			w.Fatalf("rule 2: %s went from %s %d to %s %d", id, a.epoch, a.accepted, b.epoch, b.accepted)
		case a.ended && a.epoch == b.epoch && (!b.ended || b.accepted != a.accepted):
			w.Fatalf("S12: %s went from its end %d to %d", id, a.accepted, b.accepted)
		}
	}
}

// hubPrint is the state of a session that no stale payload may change.
type hubPrint struct {
	owner, epoch         string
	accepted, head, held uint64
	ended, open, over    bool
}

func (w *hubTest) print() (out [3]hubPrint) {
	for i, id := range hubSessions {
		if s := w.h.sessions[id]; s != nil {
			out[i] = hubPrint{s.owner, s.epoch, s.log.head, s.agentHead, uint64(s.log.bytes), s.ended, s.receiver != nil, s.ended || s.forgotten}
		}
	}
	return out
}

// saysTo takes what the hub sends to an agent.
func (w *hubAgentTest) saysTo(ha *hubAgentLink) {
	if ha == nil {
		return
	}
	switch p := w.says(ha.Link).(type) {
	case *WelcomePayload:
		if p.Link != ha.id || p.ViewerID != "" {
			w.Fatalf("welcome to %s as %q", p.Link, p.ViewerID)
		}
	case *AckBatchPayload:
		s := w.h.sessions[p.SessionID]
		if s == nil || s.epoch != p.Epoch || p.Link != ha.id || p.UpToSeq != s.log.head || s.owner != ha.agentID {
			w.Fatalf("S1: to %s: %s", ha.agentID, brief(p))
		}
		if at, ok := w.stored[simKey{p.SessionID, p.Epoch}]; ok && at != p.UpToSeq {
			w.Fatalf("rule 8: %s, but %d are stored", brief(p), at)
		}
	case *ReplayRequestPayload:
		w.noteAccepted() // of this epoch, or of one that the agent has just left
		s, most := w.h.sessions[p.SessionID], w.accepted[simKey{p.SessionID, p.Epoch}]
		if s == nil || s.owner != ha.agentID || p.UntilSeq > most || p.Limit == 0 {
			w.Fatalf("rule 12: to %s, %d are accepted: %s", ha.agentID, most, brief(p))
		}
	case *StatusPayload:
		if p.Link != ha.id || slices.ContainsFunc(p.Sessions, func(e SessionStatus) bool { return !e.Forgotten }) {
			w.Fatalf("to %s: %s", ha.agentID, brief(p))
		}
	case *ErrorPayload, nil:
	default:
		w.Fatalf("to %s: %s", ha.agentID, brief(p))
	}
}

// What happens next at a hub, on the side of its viewers.
const (
	hubViewerConnects = iota
	hubIsGreeted
	hubIsWatched
	hubIsLeft
	hubSaysToViewer
	hubSessionGrows
	hubTalksToAgent
	hubServesHonest
	hubHearsViewerLies
	hubHearsViewerLate
	hubLetsTimePass
	hubRevokes
	hubForgetsSession
	hubAgentReconnects
	hubAgentIsAway
	hubAgentForgets
	hubViewerCloses
	hubViewerSteps
)

// A hubViewerTest is a Hub against hostile viewers, with an honest agent.
type hubViewerTest struct {
	*hubTest
	st     *Streamer
	agent  *streamerLink // its half of the connection
	side   *hubAgentLink // and the hub's
	links  []*hubViewerLink
	places map[*hubViewerLink]map[string]Position // how far each link was served, by session
}

var hubViewers = []string{"viewer1", "viewer2"}

// FuzzHubViewer: whatever viewers say, a hub keeps its invariants, serves each of them
// in order and only what it may watch, and the honest viewer and the agent are not
// affected.
func FuzzHubViewer(f *testing.F) {
	small := make([]byte, 16)
	hello := []byte{hubTalksToAgent, 7, hubViewerConnects, 0, hubIsGreeted, 0, hubSaysToViewer, 0, 0}
	addScripts(f,
		slices.Concat(small, []byte{hubSessionGrows, 0, 3, 0, hubSessionGrows, 0, 3, 0}, hello, []byte{
			hubTalksToAgent, 7, hubIsWatched, 0, 0, 0, 0, hubSaysToViewer, 0, 7, hubTalksToAgent, 7, hubSaysToViewer, 0, 7, hubServesHonest, 7, hubTalksToAgent, 7, hubServesHonest, 7,
		}),
		slices.Concat(small, []byte{hubSessionGrows, 0, 3, 0}, hello, []byte{ // a watch that is changed, revoked and refused
			hubIsWatched, 0, 0, 0, 2, hubSaysToViewer, 0, 3, hubIsWatched, 0, 0, 0, 9, hubSaysToViewer, 0, 3, hubIsWatched, 0, 2, 1, 0, hubSaysToViewer, 0, 3,
			hubIsWatched, 0, 0, 1, 1, hubRevokes, 0, 0, hubSaysToViewer, 0, 3, hubIsLeft, 0, 0,
		}),
		slices.Concat(small, []byte{hubSessionGrows, 0, 3, 0, hubSessionGrows, 0, 3, 0, hubTalksToAgent, 7, hubAgentIsAway}, hello, []byte{ // an agent that is away
			hubIsWatched, 0, 0, 0, 0, hubSaysToViewer, 0, 3, hubLetsTimePass, 3, hubSaysToViewer, 0, 3, hubAgentReconnects, hubTalksToAgent, 7, hubServesHonest, 7,
		}),
		slices.Concat(small, []byte{hubSessionGrows, 1, 3, 1, hubTalksToAgent, 7}, hello, []byte{ // an end, and a new life
			hubIsWatched, 0, 1, 0, 0, hubSaysToViewer, 0, 7, hubAgentForgets, 1, hubSessionGrows, 1, 3, 0, hubTalksToAgent, 7, hubSaysToViewer, 0, 7, hubServesHonest, 7,
		}),
	)
	f.Fuzz(runHubViewerTest)
}

// runHubViewerTest is one conversation.
func runHubViewerTest(t *testing.T, script []byte) {
	w := newHubViewerTest(t, script)
	for w.c.left() {
		w.step()
		w.check()
	}
	w.settleViewers()
}

func newHubViewerTest(t *testing.T, script []byte) *hubViewerTest {
	w := &hubViewerTest{hubTest: newHubTest(t, script), places: make(map[*hubViewerLink]map[string]Position)}
	w.h.cfg.AuthorizeViewer = func(_ context.Context, viewerID, sessionID string) error {
		if viewerID != "honest" && sessionID == "c" {
			return errors.New("secret")
		}
		return nil
	}
	c := w.c
	w.h.cfg.Commit, w.h.cfg.Resume, w.h.cfg.AuthorizeAgent = nil, nil, nil
	w.st = NewStreamer(&StreamerConfig{
		Overflow: DropOldest, MaxPendingEvents: one(c, []int{8, 3}), ReplayEvents: one(c, []int{40, 5, -1}), MaxReplays: one(c, []int{8, 1, -1}),
	})
	w.st.epochs = w.h.ids
	w.st.sizes = sizes{batchBytes: pageBytes, batch: 256, first: firstBatchBytes, page: one(c, []int{100, 2}), replay: maxReplayRequestEvents, cohort: maxCohort}
	w.g.viewers, w.g.requests = []string{"viewer1", "honest", "viewer2"}, []string{"r1"}
	w.reconnect()
	return w
}

func (w *hubViewerTest) reconnect() {
	w.agent, w.side = w.st.connect(w.now), w.h.connectAgent(w.now, "agent")
}

func (w *hubViewerTest) step() {
	c := w.c
	switch c.of(hubViewerSteps) {
	case hubViewerConnects:
		w.links = append(w.links, w.h.connectViewer(w.now, one(c, hubViewers), false))
	case hubIsGreeted:
		w.hears(w.link(), &HelloPayload{V: version, Role: roleViewer})
	case hubIsWatched:
		w.isWatched()
	case hubIsLeft:
		if hv, id := w.link(), one(c, hubSessions); hv != nil {
			w.hears(hv, &WatchPayload{SessionID: id, Stop: true})
		}
	case hubSaysToViewer:
		hv, n := w.link(), c.of(8)
		for range 1 + n {
			w.saysTo(hv)
		}
	case hubSessionGrows:
		id, n, end := one(c, hubSessions), c.of(8), c.of(8) == 1
		for i := range 1 + n {
			offer(w.now, w.st, id, Event{Data: one(c, fuzzData[:2]), End: end && i == n})
		}
	case hubTalksToAgent:
		w.talk(1 + c.of(8))
	case hubServesHonest:
		w.serve(1 + c.of(8))
	case hubHearsViewerLies, hubHearsViewerLate:
		w.pools()
		w.hears(w.link(), w.g.hostile())
	case hubLetsTimePass:
		w.now = c.pass(w.now)
	case hubRevokes:
		w.h.Revoke(one(c, hubViewers), one(c, hubSessions))
	case hubForgetsSession:
		w.forgets(one(c, hubSessions))
	case hubAgentReconnects:
		w.reconnect()
	case hubAgentIsAway:
		w.agent.fail(w.now, ErrClosed)
		w.side.fail(w.now, ErrClosed)
	case hubAgentForgets:
		w.st.Forget(one(c, hubSessions))
	case hubViewerCloses:
		if hv := w.link(); hv != nil {
			hv.fail(w.now, ErrClosed)
		}
	}
}

// talk has the agent and the hub exchange a few payloads.
func (w *hubViewerTest) talk(n int) {
	for range n {
		up, down := w.says(w.agent.Link), w.says(w.side.Link)
		if up != nil {
			if err := w.takes(w.side.Link, up); isMalformed(err) {
				w.Fatalf("an agent says %s: %v", brief(up), err)
			}
		}
		if down != nil {
			if err := w.takes(w.agent.Link, down); isMalformed(err) {
				w.Fatalf("the hub says %s: %v", brief(down), err)
			}
		}
	}
}

// link picks one of the last two.
func (w *hubViewerTest) link() *hubViewerLink {
	n, back := len(w.links), w.c.of(2)
	if n == 0 {
		return nil
	}
	return w.links[max(0, n-1-back)]
}

// isWatched: a position that is likely one of the session; or a watch for somebody else.
func (w *hubViewerTest) isWatched() {
	c := w.c
	hv, id, kind, after := w.link(), one(c, hubSessions), c.of(8), uint64(c.of(32))
	if hv == nil {
		return
	}
	p := &WatchPayload{SessionID: id, ViewerID: hv.viewerID}
	if s := w.h.sessions[id]; s != nil && s.epoch != "" && kind%2 == 1 {
		p.Epoch, p.AfterSeq = s.epoch, after
	}
	if kind == 7 {
		p.ViewerID = "honest"
	}
	w.hears(hv, p)
}

func (w *hubViewerTest) pools() {
	g := w.g
	g.sessions, g.epochs, g.links, g.numbers = hubSessions, g.epochs[:0], g.links[:0], g.numbers[:0]
	for i := len(w.links) - 1; i >= max(0, len(w.links)-3); i-- {
		g.links = append(g.links, w.links[i].id)
	}
	for _, s := range w.h.all() {
		g.numbers = append(g.numbers, s.log.head, s.log.first(), s.agentHead)
		if s.epoch != "" {
			g.epochs = append(g.epochs, s.epoch)
		}
		if s.prev != nil {
			g.epochs = append(g.epochs, s.prev.epoch)
			g.numbers = append(g.numbers, s.prev.log.head)
		}
	}
}

func (w *hubViewerTest) hears(hv *hubViewerLink, p Payload) {
	if hv == nil {
		return
	}
	w.g.remember(p)
	w.h.expire(w.now) // as any call does
	before, sessions := w.h.knownSessions.Load(), w.print()
	w.takes(hv.Link, p)
	if before != w.h.knownSessions.Load() || sessions != w.print() {
		w.Fatalf("rule 4: a viewer has changed a session: %v", p)
	}
	if _, ok := p.(*AckBatchPayload); ok { // it says where it is
		for id := range w.places[hv] {
			if c := hv.cursors[id]; c != nil && c.epoch != "" {
				w.places[hv][id] = Position{c.epoch, c.sent}
			}
		}
	}
	watch, ok := p.(*WatchPayload)
	if ok && hv.cursors[watch.SessionID] != nil && (watch.ViewerID == "" || watch.ViewerID == hv.viewerID) && watch.check() == nil && !watch.Stop {
		if w.places[hv] == nil {
			w.places[hv] = make(map[string]Position)
		}
		w.places[hv][watch.SessionID] = Position{watch.Epoch, watch.AfterSeq}
	}
}

// saysTo takes what the hub sends to a hostile viewer: S11 and S7.
func (w *hubViewerTest) saysTo(hv *hubViewerLink) {
	if hv == nil {
		return
	}
	p := w.says(hv.Link)
	if p == nil {
		return
	}
	w.mayGo(hv, p)
	switch p := p.(type) {
	case *EventBatchPayload:
		w.served(hv, p.SessionID, p.Epoch, p.FirstSeq, p.LastSeq)
	case *StatusPayload:
		for _, s := range p.Sessions {
			if s.SessionID == "c" {
				w.Fatalf("S11: %s is told of what it may not watch", hv.viewerID)
			}
		}
	}
}

func (w *hubViewerTest) served(hv *hubViewerLink, id, epoch string, first, last uint64) {
	at, ok := w.places[hv][id]
	if !ok || id == "c" {
		w.Fatalf("S11: %s is served %s, which it does not watch", hv.viewerID, id)
	}
	if epoch == at.Epoch && first > at.Seq+1 || epoch != at.Epoch && first != 1 { // before it: once more
		w.Fatalf("S7: %s %s: %s %d to %d after %v", hv.viewerID, id, tail(epoch), first, last, at)
	}
	w.noteAccepted()
	if most := w.accepted[simKey{id, epoch}]; last > most {
		w.Fatalf("S8: %s %s: %d, but %d is accepted", hv.viewerID, id, last, most)
	}
	w.places[hv][id] = Position{epoch, last}
}

// settleViewers: the honest viewer gets everything that the agent has published.
func (w *hubViewerTest) settleViewers() {
	for _, s := range w.st.all() { // the agent may be behind what a hub has forgotten
		if s.stopped != nil {
			w.st.Forget(s.id)
		}
	}
	if w.h.cfg.MaxSessions < 8 || w.h.cfg.MaxAgentSessions < 8 {
		for _, s := range w.st.all()[min(1, len(w.st.all())):] {
			w.st.Forget(s.id)
		}
		for _, s := range w.h.all() {
			w.forgets(s.id)
		}
	}
	for _, hv := range w.links {
		hv.fail(w.now, ErrClosed)
	}
	for range 4 { // a cursor without the hub's last word gives up after ReplayWait
		w.reconnect()
		w.connectViewer()
		w.carry(w.read, [2]*Link{w.agent.Link, w.side.Link}, [2]*Link{w.up.Link, w.down.Link})
		w.check()
		if w.unrest() == "" {
			return
		}
		w.now = w.now.Add(timerFirst)
	}
	w.Fatal(w.unrest())
}

// unrest describes what has not arrived: L1 and L2.
func (w *hubViewerTest) unrest() string {
	for _, s := range w.st.all() {
		hs, r := w.h.lookup(s.id), w.seen[s.id]
		switch {
		case s.stopped != nil || s.acked != s.log.head:
			return fmt.Sprintf("L1: %s: acked %d of %d, stopped %v", s.id, s.acked, s.log.head, s.stopped)
		case s.log.head == 0 || r.ended:
		case hs == nil || hs.epoch != s.epoch || r.pos != (Position{s.epoch, s.log.head}):
			return fmt.Sprintf("L2: %s: the viewer is at %v, the agent at %d", s.id, r.pos, s.log.head)
		}
	}
	return ""
}
