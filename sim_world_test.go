package gvstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// The simulation: the real machines of two agents, a hub and four viewers, stepped by
// one goroutine that takes every choice from one source, on clocks of its own. After
// every step it checks the safety invariants of PROTOCOL.md, and, when faults have stopped, the
// liveness ones.
//
//	sim_choices_test.go  where choices come from; how a schedule is shrunk
//	sim_world_test.go    the world, its plain steps, and how they are described
//	sim_faults_test.go   what goes wrong in it, and what has to hold once that has stopped
//	sim_check_test.go    what has to hold after every step
//	simulation_test.go   the runs, and the same world with few choices, for all of
//	                     which it runs

// simEnd is one side of a wire: a link, and the payloads on their way to it.
type simEnd struct {
	name  string
	link  *Link
	lead  *time.Duration // how far the machine's clock is ahead
	inbox []Payload
	dead  bool // this side has noticed that the connection broke
	deaf  bool // what is in the inbox does not get to it

	// What this side is writing to a wire that is slow, or nil, since when and until when.
	writing      Payload
	since, until time.Time
}

// A simWire is one connection between the hub and an agent or viewer.
type simWire struct {
	peer, hub simEnd
	viewer    *simViewer // at the peer's end, or nil
	cut       bool       // nothing passes any more
	old       bool       // a newer one took its place

	left int               // how many bytes it carries before it breaks; 0: as many as there are
	rate int               // how many in a second; 0: in no time
	once map[simKey]uint64 // up to where each session was sent, if nothing may be sent twice
	// How often it was sent again, if the receiver is deaf, or nil.
	again map[simKey]int
}

// A simAgent is one agent: its Streamer is replaced when it restarts.
type simAgent struct {
	id   string
	ids  []string // the sessions that it publishes
	st   *Streamer
	wire *simWire
	lead time.Duration // of its timers: it stood still for a while
	wall time.Duration // of its wall clock, which only epochs show
	away bool          // does not connect
	mute bool          // answers no replay requests
}

// A simViewer is one viewer: its Viewer is replaced when it restarts.
type simViewer struct {
	id    string
	v     *Viewer
	wire  *simWire
	lead  time.Duration
	local bool // Hub.Items: a reader in the hub's process
	away  bool // does not connect
	stuck bool // its loop does not ask for items
	seen  map[string]*simReader
}

// simReader is what one viewer was shown of one session.
type simReader struct {
	pos     Position
	ended   bool
	stopped Code   // the code of the error that ended the watch
	told    string // the first epoch that a status said to have events, before anything came
}

type simKey struct{ session, epoch string }

// simTruth is what is known of one session in one epoch, from outside.
type simTruth struct {
	data      []string // by number, from 1: what Publish was given
	accepted  uint64   // the highest number that any hub accepted
	committed uint64   // the highest number that any Commit was given
	end       uint64   // the number of the end, once a hub accepted it
	last      uint64   // the number of the end, once it was published
}

// A blocked publisher waits for room.
type blocked struct {
	a           *simAgent
	s           *Session
	d           preparedEvent
	data        string
	wait, freed <-chan struct{}
}

type simWorld struct {
	src     source
	random  *rand.Rand // for ids, which are not choices
	now     time.Time
	ended   context.Context // a viewer without room does not wait
	verbose bool
	trace   []string
	err     error
	steps   int
	checks  int // times that it may have been checked

	agents    []*simAgent
	hub       *Hub
	hubLead   time.Duration
	viewers   []*simViewer
	wires     []*simWire // of agents and viewers, as they are now
	old       []*simWire // earlier ones
	busy      []busyEnd
	handling  Payload // the last that was handled
	pushed    int     // payloads
	inside    bool    // something goes on while one is pushed
	calmed    bool    // faults have stopped
	blocked   []*blocked
	serial    int // events made
	largestIn int // bytes that a batch of an agent's may have counted
	forgets   int // times that the hub was made to forget a session

	// The configuration.
	sizes     sizes
	hubCfg    HubConfig
	agentCfg  StreamerConfig
	viewerCfg ViewerConfig
	durable   bool // hubs restart with their store
	encoded   bool // payloads travel as JSON
	pushes    bool // the hub's links to viewers push
	plain     bool // no event is special
	carries   int  // how many bytes of data transports carry in a payload; 0: as many as there are
	frail     int  // how many bytes new wires carry before they break; 0: as many as there are
	slow      int  // how many in a second; 0: in no time
	always    int  // the kind of all events; 0: any, see event
	upsets    int  // how often something is upset, of a hundred steps
	cuts      int  // and cut

	// The current state.
	commitDown bool                 // Commit and Resume fail
	halfCommit bool                 // Commit stores, and fails
	failing    string               // the session for which Commit fails
	hung       string               // the session for which it does not return
	hanging    []job                // those jobs
	spared     string               // the session that need not come to rest
	claims     bool                 // AuthorizeAgent allows to take a session over
	askAgain   bool                 // AuthorizeAgent does not know
	forgetIn   string               // the session that the hub is to forget while its Commit runs
	forbidden  map[[2]string]bool   // viewer and session
	allowed    map[[2]string]bool   // agent and session, on the agent's link
	tookOver   map[[2]string]bool   // of these, where another owned the session; the opening may come later
	store      map[simKey]uint64    // what Commit has stored
	ghosts     map[string][]Payload // payloads that were delivered, by receiver

	// Circumstances that excuse deviations.
	losable       bool // a hub has lost state: what was acknowledged is sent again
	lowered       bool // what was acknowledged is pending again, and may exceed the limits
	backward      bool // a session may have fallen behind a viewer's position
	everForbidden bool
	rewindowed    bool      // links have other windows
	rewatched     bool      // a watch was given up, and the hub may not know
	rewatchedAt   time.Time // when that was last

	// What is known from outside.
	truth    map[simKey]*simTruth
	position map[simKey]uint64 // what the present hub has accepted
	lied     map[simKey]bool   // a forged ack has stopped it
	toldEnd  map[simKey]bool   // Commit was given the end
	acks     map[*sender]uint64
	acked    map[*Session]uint64
	spoke    map[*Session]bool
	looked   map[*log]logLook
	requests map[string]*simRequest
	divided  []simRange                                   // batches that were too large
	sentTo   map[*hubViewerLink]map[simKey]map[uint64]int // numbers of events, and their bytes
	chosen   map[*cursor]uint64                           // up to where a cohort is sending, though an ack came that may have less room
	nacks    map[simAsker]simNack                         // the last of each
	asked    map[simAsk]time.Time                         // when each was said last

	largest, largestBytes int // items and bytes of the batches that viewers were sent
}

// A simAsker is the receiving end of one session on one link, and a simNack what it asked for.
type simAsker struct {
	link    *Link
	session string
}

type simNack struct {
	by    *receiver // if the asker is a hub
	epoch string
	upTo  uint64
	at    time.Time
	full  bool
}

// A simAsk is what one link says at most once a second about a session or a request.
type simAsk struct {
	link  *Link
	what  string
	about string
}

// simRequest is a replay request that reached its agent.
type simRequest struct {
	viewer  string
	session string
	after   uint64
	until   uint64
	batches int // that may still answer it
	events  int
}

var (
	simIDs      = []string{"a1", "a2", "b1", "shared"}
	simSessions = [][]string{{"a1", "a2", "shared"}, {"b1", "shared"}}
	simStart    = time.UnixMilli(1_700_000_000_000)
)

func (w *simWorld) choose(n int) int { return w.src.choose(n) }

// pick chooses one of several values, the plainest first.
func pick[T any](w *simWorld, vs ...T) T { return vs[w.choose(len(vs))] }

// rarely is true once in n times.
func (w *simWorld) rarely(n int) bool { return w.choose(n) == n-1 }

func emptyWorld(src source) *simWorld {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return &simWorld{
		src: src, now: simStart, ended: ctx,
		random: rand.New(rand.NewPCG(1, 2)),
		store:  make(map[simKey]uint64), truth: make(map[simKey]*simTruth),
		ghosts: make(map[string][]Payload), forbidden: make(map[[2]string]bool), allowed: make(map[[2]string]bool), tookOver: make(map[[2]string]bool),
		position: make(map[simKey]uint64), lied: make(map[simKey]bool), toldEnd: make(map[simKey]bool),
		acks: make(map[*sender]uint64), acked: make(map[*Session]uint64), spoke: make(map[*Session]bool),
		looked:   make(map[*log]logLook),
		requests: make(map[string]*simRequest),
		sentTo:   make(map[*hubViewerLink]map[simKey]map[uint64]int),
		chosen:   make(map[*cursor]uint64),
		nacks:    make(map[simAsker]simNack), asked: make(map[simAsk]time.Time),
	}
}

// begin starts all machines, in a chosen configuration.
func (w *simWorld) begin() {
	w.configure()
	w.startHub()
	for i, ids := range simSessions {
		a := &simAgent{id: fmt.Sprintf("agent%d", i), ids: ids}
		w.agents = append(w.agents, a)
		w.startAgent(a)
	}
	for i := range 4 {
		v := &simViewer{id: fmt.Sprintf("viewer%d", i), local: i == 3}
		w.viewers = append(w.viewers, v)
		w.startViewer(v, false)
	}
	w.carries = pick(w, 0, 0, 0, 0, 0, 0, 0, 100)
}

// configure chooses limits, mostly small ones.
func (w *simWorld) configure() {
	w.agentCfg = StreamerConfig{
		Overflow:         pick(w, Block, Reject, DropOldest),
		MaxPendingEvents: pick(w, 30, 8, 4),
		MaxPendingBytes:  pick(w, 0, 0, 700),
		ReplayEvents:     pick(w, 40, 10, 3, -1),
		ReplayBytes:      pick(w, 0, 0, 600, -1),
		MaxReplays:       pick(w, 8, 1, 8, -1),
		MaxTotalBytes:    pick(w, 0, 0, 1500),
		MaxSessions:      pick(w, 0, 0, 0, 2),
		MaxEventBytes:    pick(w, 0, 0, 0, 250),
	}
	w.sizes = sizes{batchBytes: pageBytes, batch: pick(w, 256, 3, 1), first: pick(w, firstBatchBytes, 50, maxBatchBytes), page: pick(w, 100, 2, 1), replay: pick(w, 500, 5, 1), cohort: pick(w, 64, 2)}
	w.hubCfg = HubConfig{
		Commit: w.commit, AuthorizeViewer: w.authorize, AuthorizeAgent: w.authorizeAgent,
		LogEvents: pick(w, 20, 5, 1, -1), LogBytes: pick(w, 0, 0, 400, -1),
		Window: pick(w, 256, 16, 4, 1), MaxUncommittedBytes: pick(w, 0, 0, 600),
		MaxReplays:       pick(w, 8, 2, 1, -1),
		ReplayWait:       pick(w, 10*time.Second, time.Second, -1),
		MaxEventBytes:    pick(w, 0, 0, 0, 200),
		MaxSessions:      pick(w, 0, 0, 0, 0, 0, 2),
		MaxAgentSessions: pick(w, 0, 0, 0, 0, 0, 1),
		MaxWatches:       pick(w, 0, 0, 0, 2),
		SessionTTL:       pick(w, 0, 0, 0, time.Minute, -1),
		EndedTTL:         pick(w, 0, 0, 0, time.Minute, -1),
		MaxTotalBytes:    pick(w, 0, 0, 1000, -1),
	}
	if w.durable = w.choose(2) == 0; w.durable {
		w.hubCfg.Resume = w.resume
	}
	w.viewerCfg = ViewerConfig{
		Window: pick(w, 256, 4, 1), WindowBytes: pick(w, 0, 0, 300), MaxWatches: pick(w, 0, 0, 0, 2),
	}
	w.encoded = w.rarely(16)
	w.pushes = w.rarely(3)
	w.upsets, w.cuts = pick(w, 2, 0, 1, 3), pick(w, 1, 0, 3)
}

func (w *simWorld) minter() *epoch.Source { return epoch.NewSource(simRandom{w}) }

type simRandom struct{ w *simWorld }

func (r simRandom) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.w.random.Uint32())
	}
	return len(p), nil
}

func (w *simWorld) startHub() {
	w.hub = NewHub(&w.hubCfg)
	w.hub.ids, w.hub.sizes = w.minter(), w.sizes
	w.hub.workers.size, w.hub.openings.size, w.hub.commits.size = 0, 0, 0
	clear(w.position)
}

func (w *simWorld) startAgent(a *simAgent) {
	w.breakWire(a.wire)
	a.wire = nil
	a.st = NewStreamer(&w.agentCfg)
	a.st.epochs, a.st.sizes = w.minter(), w.sizes
	w.blocked = slices.DeleteFunc(w.blocked, func(b *blocked) bool { return b.a == a })
	w.rewire()
}

// startViewer starts a new viewer process: with what the old one had persisted, or
// with nothing.
func (w *simWorld) startViewer(v *simViewer, persisted bool) {
	w.breakWire(v.wire)
	v.wire = nil
	w.rewire()
	old := v.positions()
	v.v = NewViewer(&w.viewerCfg)
	if v.local {
		v.v = NewViewer(nil)
	}
	v.seen = make(map[string]*simReader)
	for _, id := range simIDs {
		if (!v.local || len(v.seen) == 0) && !w.rarely(5) {
			w.watch(v, id, old, persisted)
		}
	}
}

// positions are what the viewer would persist.
func (v *simViewer) positions() map[string]Position {
	out := make(map[string]Position)
	for id := range v.seen {
		out[id] = v.v.Position(id)
	}
	return out
}

func (w *simWorld) watch(v *simViewer, id string, old map[string]Position, persisted bool) {
	r := &simReader{}
	if persisted {
		r.pos = old[id]
	}
	err := v.v.Watch(id, r.pos)
	if errors.Is(err, ErrTooMany) && len(v.v.watches) == v.v.cfg.MaxWatches {
		return
	}
	if err != nil {
		w.fail("watch: %v", err)
	}
	v.seen[id] = r
	if v.wire != nil { // it is another watch
		maps.DeleteFunc(w.asked, func(k simAsk, _ time.Time) bool { return k.link == v.wire.peer.link && k.about == id })
	}
}

// rewatch ends a watch, or begins one, at its last position or from the start.
func (w *simWorld) rewatch(v *simViewer, id string) {
	old := v.positions()
	if w.verbose {
		w.say("%s watches %s anew", v.id, id)
	}
	w.rewatched, w.rewatchedAt = true, w.now
	v.v.Unwatch(id)
	delete(v.seen, id)
	if (!v.local || len(v.seen) == 0) && !w.rarely(3) {
		w.watch(v, id, old, w.choose(2) == 0)
	}
}

// rewire records which wires exist.
func (w *simWorld) rewire() {
	w.wires = w.wires[:0]
	for _, a := range w.agents {
		if a.wire != nil {
			w.wires = append(w.wires, a.wire)
		}
	}
	for _, v := range w.viewers {
		if v.wire != nil && !v.local {
			w.wires = append(w.wires, v.wire)
		}
	}
}

// connectAgent makes a new connection. The old one may still be open.
func (w *simWorld) connectAgent(a *simAgent) {
	w.say("%s connects", a.id)
	w.retire(a.wire)
	was := livingHub(a.wire)
	maps.DeleteFunc(w.allowed, func(k [2]string, _ bool) bool { return k[0] == a.id }) // it is asked on each link
	a.wire = &simWire{
		left: w.frail, rate: w.slow,
		peer: simEnd{name: a.id, link: a.st.connect(w.now.Add(a.lead)).Link, lead: &a.lead},
		hub:  simEnd{name: "hub(" + a.id + ")", link: w.hub.connectAgent(w.hubNow(), a.id).Link, lead: &w.hubLead},
	}
	w.checkSuperseded(was)
	w.rewire()
}

func (w *simWorld) connectViewer(v *simViewer) {
	w.say("%s connects", v.id)
	w.retire(v.wire)
	id := v.id
	if v.local {
		id = ""
	}
	was := livingHub(v.wire)
	v.wire = &simWire{
		viewer: v, left: w.frail, rate: w.slow,
		peer: simEnd{name: v.id, link: v.v.connect(w.now.Add(v.lead)).Link, lead: &v.lead},
		hub:  simEnd{name: "hub(" + v.id + ")", link: w.hub.connectViewer(w.hubNow(), id, v.local).Link, lead: &w.hubLead},
	}
	v.wire.peer.link.patient = v.local
	w.checkSuperseded(was)
	if x := v.wire; w.pushes && !v.local {
		x.hub.link.Push(context.Background(), func(_ context.Context, p Payload) error {
			w.pushed++
			if w.tooLarge(x, &x.hub, p) {
				return ErrTooLarge
			}
			w.sent(x, &x.hub, &x.peer, p)
			if w.rarely(3) && !w.inside {
				w.inside = true
				w.whilePushing(x)
				w.inside = false
			}
			return nil
		})
	}
	w.rewire()
}

// whilePushing is what goes on while a payload is pushed to a viewer.
func (w *simWorld) whilePushing(x *simWire) {
	switch w.choose(4) {
	case 0, 1:
		w.deliver()
	case 2:
		w.receive(x, &x.hub)
	case 3:
		if v := x.viewer; w.rarely(4) && !v.stuck {
			w.rewatch(v, simIDs[w.choose(len(simIDs))])
			for range 3 {
				w.send(x, &x.peer, &x.hub)
				w.receive(x, &x.hub)
			}
		}
	}
}

// retire keeps an old wire for a while: what is on its way may still arrive.
func (w *simWorld) retire(x *simWire) {
	if x == nil || x.viewer != nil && x.viewer.local {
		return
	}
	x.old = true
	w.old = append(w.old, x)
	if len(w.old) > 3 {
		w.breakWire(w.old[0])
		w.old = w.old[1:]
	}
}

func (w *simWorld) hubNow() time.Time { return w.now.Add(w.hubLead) }

func (w *simWorld) at(e *simEnd) time.Time { return w.now.Add(*e.lead) }

// step does one thing, and checks what has to hold after it.
func (w *simWorld) step() {
	w.steps++
	switch c := w.choose(100); {
	case c < 15:
		w.publishSome()
	case c < 38:
		w.pump()
	case c < 58:
		w.deliver()
	case c < 66:
		w.flow()
	case c < 74:
		if v := w.viewers[w.choose(len(w.viewers))]; !v.stuck {
			w.read(v, true)
		}
	case c < 77:
		w.carry(w.viewers[3])
		w.works(1)
	case c < 84:
		w.connectSome()
	case c < 86:
		w.useOld()
	case c < 89:
		w.pass()
	case c < 91:
		w.recover()
	case c < 91+w.cuts:
		w.cutSome()
	case c < 92+w.cuts+w.upsets:
		w.upset()
	default:
		w.disturb()
	}
	w.retryBlocked()
	w.checkNowAndThen()
}

func (w *simWorld) publishSome() {
	a := w.agents[w.choose(len(w.agents))]
	w.publish(a, a.ids[w.choose(len(a.ids))], 1+w.choose(4))
}

// publish has an agent publish some events in one session.
func (w *simWorld) publish(a *simAgent, id string, n int) {
	s, err := a.st.session(w.wallOf(a), id)
	switch {
	case errors.Is(err, ErrTooMany) && len(a.st.sessions) >= a.st.cfg.MaxSessions:
		return
	case err != nil:
		w.fail("S10: session: %v", err)
		return
	}
	for range n {
		ev := w.event(a)
		ev.Time = w.wallOf(a)
		d := preparedEvent{ev: &ev}
		err := s.prepare(&d)
		if errors.Is(err, ErrTooLarge) && len(ev.Data)+60 > a.st.cfg.MaxEventBytes {
			continue
		}
		if err != nil {
			w.fail("draft: %v", err)
			return
		}
		if !w.offer(&blocked{a: a, s: s, d: d, data: string(ev.Data)}) {
			return
		}
	}
}

func (w *simWorld) wallOf(a *simAgent) time.Time { return w.now.Add(a.lead + a.wall) }

// event makes an event; now and then a large one, one that the store refuses, or the
// end.
func (w *simWorld) event(a *simAgent) Event {
	w.serial++
	data := fmt.Appendf(nil, `"%s/%d`, a.id, w.serial)
	c := w.always
	if c == 0 && !w.plain {
		c = w.choose(60)
	}
	switch c {
	case 59, 54:
		data = append(data, '!') // the store refuses it
	case 58, 57, 56:
		for range 20 {
			data = append(data, "0123456789"...)
		}
	}
	return Event{Type: "out", End: c == 55 || c == 54, Data: append(data, '"')}
}

func poisoned(data string) bool { return data[len(data)-2] == '!' }

// offer publishes one event, or has its publisher wait.
func (w *simWorld) offer(b *blocked) bool {
	b.freed = b.s.st.budget.wait()
	b.s.st.budget.makeRoom(b.d.size())
	b.s.mu.Lock()
	seq, err := b.s.offerLocked(&b.d)
	b.s.mu.Unlock()
	b.wait = b.s.changed.Wait()
	switch {
	case errors.Is(err, ErrPendingFull) && w.agentCfg.Overflow == Block && len(w.blocked) < 4:
		w.blocked = append(w.blocked, b)
		if w.verbose {
			w.say("%s waits to publish in %s", b.a.id, b.s.id)
		}
		return false
	case err != nil:
		if stopped := (*ProtocolError)(nil); errors.As(err, &stopped) && w.choose(4) == 0 {
			w.renew(b.a, b.s.id)
		}
		return false
	}
	k := simKey{b.s.id, b.s.epoch}
	t := w.truthOf(k)
	if seq != uint64(len(t.data))+1 { // rule 1
		w.fail("S1: %v: number %d was given out after %d", k, seq, len(t.data))
	}
	if t.last != 0 { // rule 16
		w.fail("S12: %v: number %d was given out after the end, %d", k, seq, t.last)
	}
	t.data = append(t.data, b.data)
	if b.d.ev.End {
		t.last = seq
	}
	if w.verbose {
		w.say("%s publishes %s %d: %.30s%s", b.a.id, b.s.id, seq, b.data, endMark(b.d.ev.End))
	}
	return true
}

func endMark(end bool) string {
	if end {
		return ", the end"
	}
	return ""
}

func (w *simWorld) renew(a *simAgent, id string) {
	w.say("%s renews %s", a.id, id)
	a.st.renew(w.wallOf(a), id)
}

// someEnd picks one side of one connection, and the other side of it.
func (w *simWorld) someEnd(ws []*simWire) (x *simWire, from, to *simEnd) {
	if len(ws) == 0 {
		return nil, nil, nil
	}
	x = ws[w.choose(len(ws))]
	if w.choose(2) == 0 {
		return x, &x.peer, &x.hub
	}
	return x, &x.hub, &x.peer
}

// pump has one link send what it has.
func (w *simWorld) pump() {
	if x, from, to := w.someEnd(w.wires); x != nil {
		for range 1 + w.choose(4) {
			if !w.send(x, from, to) {
				return
			}
		}
	}
}

func (w *simWorld) send(x *simWire, from, to *simEnd) bool {
	w.arrive(x)
	if from.dead || from.writing != nil || len(to.inbox) >= 20 {
		return false
	}
	from.link.checkSilence(w.at(from))
	if p := from.link.pusher.Load(); p != nil {
		return w.push(from, p)
	}
	p, _, err := from.link.next(w.at(from))
	if err != nil {
		w.say("%s is dead: %v", from.name, err)
		w.closeEnd(from)
		return false
	}
	if p == nil {
		return false
	}
	if w.tooLarge(x, from, p) {
		from.link.carryLess(p)
	} else {
		w.sent(x, from, to, p)
	}
	return true
}

// A simRange is what one side sends in a batch.
type simRange struct {
	from        *simEnd
	k           simKey
	first, last uint64
}

func (w *simWorld) rangeOf(from *simEnd, p Payload) (r simRange, events []Event) {
	switch p := p.(type) {
	case *EventBatchPayload:
		return simRange{from, simKey{p.SessionID, p.Epoch}, p.FirstSeq, p.LastSeq}, p.Events
	case *ReplayBatchPayload:
		return simRange{from, simKey{p.SessionID, p.Epoch}, p.FirstSeq, p.LastSeq}, p.Events
	}
	return r, nil
}

// tooLarge reports whether no transport carries a payload, which is then sent in parts.
// Events that are large can't be carried at all then, others only a few at a time.
func (w *simWorld) tooLarge(x *simWire, from *simEnd, p Payload) bool {
	if w.carries == 0 {
		return false
	}
	r, events := w.rangeOf(from, p)
	n := 0
	for _, ev := range events {
		n += len(ev.Data)
	}
	if n <= w.carries {
		return false
	}
	if w.verbose {
		w.say("too large for %s: %s", from.name, brief(p))
	}
	w.checkTaken(x, from, p)
	w.divided = append(w.divided, r)
	return true
}

// checkTaken checks a payload that a link sends, unless it is a part of one that was checked
// when that was taken: it may be sent a little later, as if the transport were slow.
func (w *simWorld) checkTaken(x *simWire, from *simEnd, p Payload) {
	r, _ := w.rangeOf(from, p)
	if !slices.ContainsFunc(w.divided, func(d simRange) bool {
		return d.from == r.from && d.k == r.k && d.first <= r.first && r.last <= d.last
	}) {
		w.checkSent(x, from, p)
	}
}

// push has the hub's workers work until something is sent, on any link, or nothing is
// left to do.
func (w *simWorld) push(from *simEnd, p *pushWriter) bool {
	before := w.pushed
	p.wake()
	for j := p.workers.next(); j != nil; j = p.workers.next() {
		if j.work(w.at(from)); w.pushed > before {
			return true
		}
	}
	if err := from.link.failure(); err != nil {
		w.say("%s is dead: %v", from.name, err)
		w.closeEnd(from)
	}
	return false
}

// sent puts what one link sends into the other's inbox.
func (w *simWorld) sent(x *simWire, from, to *simEnd, p Payload) {
	if w.verbose {
		w.say("%s sends %s%s", from.name, brief(p), into(x, to))
	}
	w.checkTaken(x, from, p)
	if x.cut || to.dead {
		return
	}
	if w.encoded {
		p = w.overTheWire(p)
	}
	n := 0
	if x.left > 0 || x.rate > 0 {
		n = w.bytesOf(p)
	}
	if x.left > 0 && !w.carried(x, from, to, p, n) {
		return
	}
	if x.rate > 0 && from.link.pusher.Load() == nil { // one that is pushed waits in its SendFunc
		from.writing, from.since = p, w.now
		from.until = w.now.Add(time.Duration(n) * time.Second / time.Duration(x.rate))
		return
	}
	to.inbox = append(to.inbox, p)
}

func (w *simWorld) bytesOf(p Payload) int {
	line, err := Marshal(p)
	if err != nil {
		w.fail("wire: %v: %s", err, brief(p))
	}
	return len(line)
}

// carried reports whether a wire that carries only so many bytes carries these. The frame in
// which it breaks is lost. After faults only batches count, so that all connections carry
// whatever comes before the first one.
func (w *simWorld) carried(x *simWire, from, to *simEnd, p Payload, n int) bool {
	if r, _ := w.rangeOf(from, p); w.calmed && r.last == 0 {
		return true
	}
	if x.left -= n; x.left > 0 {
		return true
	}
	w.tell("breaks: %s to %s", p, to)
	if x.cut = true; !w.calmed { // which may lose what is on its way as well
		w.cut(x, from, to)
	}
	return false
}

// arrive ends what was being written to a slow wire, when its time has come. Bytes moved, which
// both sides notice.
func (w *simWorld) arrive(x *simWire) {
	for _, ends := range [][2]*simEnd{{&x.peer, &x.hub}, {&x.hub, &x.peer}} {
		from, to := ends[0], ends[1]
		if from.writing == nil || w.now.Before(from.until) {
			continue
		}
		p := from.writing
		from.writing = nil
		if from.dead || x.cut || to.dead {
			continue
		}
		from.link.wrote(w.at(from).Add(from.since.Sub(w.now)), w.at(from))
		to.inbox = append(to.inbox, p)
	}
}

// overTheWire encodes and decodes a payload.
func (w *simWorld) overTheWire(p Payload) Payload {
	line, err := Marshal(p)
	if err == nil {
		p, err = Unmarshal(line)
	}
	if err != nil {
		w.fail("wire: %v: %s", err, line)
	}
	return p
}

// deliver has one link handle what has arrived.
func (w *simWorld) deliver() {
	busy := w.busyEnds()
	if len(busy) == 0 {
		return
	}
	b := busy[w.choose(len(busy))]
	for range 1 + w.choose(4) {
		if !w.receive(b.wire, b.end) {
			return
		}
	}
}

type busyEnd struct {
	wire *simWire
	end  *simEnd
}

// busyEnds are the sides of wires for which something is on its way.
func (w *simWorld) busyEnds() []busyEnd {
	w.busy = w.busy[:0]
	for _, x := range w.wires {
		w.arrive(x)
		if len(x.peer.inbox) > 0 && !x.peer.deaf {
			w.busy = append(w.busy, busyEnd{x, &x.peer})
		}
		if len(x.hub.inbox) > 0 {
			w.busy = append(w.busy, busyEnd{x, &x.hub})
		}
	}
	return w.busy
}

// flow lets a conversation continue undisturbed for a while.
func (w *simWorld) flow() {
	if len(w.wires) == 0 {
		return
	}
	x := w.wires[w.choose(len(w.wires))]
	for range 1 + w.choose(6) {
		w.receive(x, &x.hub)
		w.receive(x, &x.peer)
		w.send(x, &x.peer, &x.hub)
		w.send(x, &x.hub, &x.peer)
	}
	if v := x.viewer; v != nil && !v.stuck {
		w.read(v, true)
	}
}

// receive has a link handle the next payload, and checks that one that is stale
// changes nothing.
func (w *simWorld) receive(x *simWire, to *simEnd) bool {
	w.arrive(x)
	if to.dead || to.deaf || len(to.inbox) == 0 {
		return false
	}
	p := to.inbox[0]
	if _, asks := p.(*ReplayRequestPayload); asks && slices.ContainsFunc(w.agents, func(a *simAgent) bool { return a.mute && a.wire == x }) {
		w.tell("ignored: %s to %s", p, to)
		to.inbox = to.inbox[1:]
		return true
	}
	err := w.handle(x, to, p)
	if to.dead { // handling it ended the link
		return false
	}
	to.inbox = to.inbox[1:]
	w.remember(to, p)
	if _, ok := to.link.endpoint.(*hubAgentLink); ok && w.plain {
		defer w.works(100)
	} else if ok && !w.inside && !w.rarely(4) {
		defer func() { w.works(1 + w.choose(8)) }()
	}
	if err == nil {
		if w.verbose {
			w.say("%s handles %s", to.name, brief(p))
		}
		return true
	}
	if w.verbose {
		w.say("%s refuses %s: %v", to.name, brief(p), err)
	}
	if refused := (*ProtocolError)(nil); errors.As(err, &refused) && refused.Code == CodeMalformed {
		w.fail("honest: %s refuses what an honest peer said: %v: %s", to.name, err, brief(p))
	}
	return true
}

func (w *simWorld) handle(x *simWire, to *simEnd, p Payload) error {
	ctx, now := context.Background(), w.at(to)
	switch m := to.link.endpoint.(type) {
	case *hubAgentLink, *hubViewerLink:
		w.hub.expire(now) // as any call may do
		w.forgetPositions()
		if hv, ok := m.(*hubViewerLink); ok {
			for _, c := range hv.cursors {
				if c.cohort != nil && c.cohort.sending {
					w.chosen[c] = c.sent
				}
			}
		}
	case *streamerLink:
		if r, ok := p.(*ReplayRequestPayload); ok {
			w.noteRequest(m, r)
		}
	}
	w.handling = p
	before := w.beforeHandling(x, to, p)
	err := w.handOver(ctx, now, to.link, p)
	w.afterHandling(before, to, p)
	return err
}

// handOver has a link handle a payload; if payloads are encoded, as a frame whose bytes
// nobody may keep.
func (w *simWorld) handOver(ctx context.Context, now time.Time, l *Link, p Payload) error {
	if !w.encoded {
		return l.handle(ctx, now, p)
	}
	frame, err := Marshal(p)
	if err != nil {
		w.fail("wire: %v: %s", err, brief(p))
	}
	defer clear(frame)
	return l.handleFrame(ctx, now, frame)
}

// remember keeps payloads that name their link, so that they may arrive again on a
// later one.
func (w *simWorld) remember(to *simEnd, p Payload) {
	switch p.(type) {
	case *WelcomePayload, *StatusPayload, *EventBatchPayload, *AckBatchPayload, *ReplayBatchPayload:
		name := to.name
		if old := w.ghosts[name]; len(old) < 8 {
			w.ghosts[name] = append(old, p)
		} else {
			w.serial++
			old[w.serial%8] = p
		}
	}
}

// read has a viewer's loop take some items. It may break, and then the current item
// comes again.
func (w *simWorld) read(v *simViewer, breaks bool) {
	n := 64
	if breaks {
		n = 1 + w.choose(8)
	}
	for range n {
		q, _ := v.v.front()
		if q == nil {
			return
		}
		r := v.seen[q.w.id]
		w.checkPosition(v, q.w.id, r)
		if breaks && w.rarely(16) {
			return
		}
		if q.err != nil {
			w.stopWatch(v, r, q)
		} else {
			w.show(v, r, q.item)
		}
		v.v.done(q)
		w.checkPosition(v, q.w.id, r)
	}
}

// carry moves payloads between the two links of a local reader, as Items does.
func (w *simWorld) carry(v *simViewer) bool {
	if v.wire == nil || v.wire.peer.dead {
		return false
	}
	x := v.wire
	moved := false
	for _, ends := range [][2]*simEnd{{&x.peer, &x.hub}, {&x.hub, &x.peer}} {
		p, _, err := ends[0].link.next(w.hubNow())
		if err == nil && p != nil {
			if w.verbose {
				w.say("%s carries %s", v.id, brief(p))
			}
			moved = true
			w.checkSent(x, ends[0], p)
			err = ends[1].link.handle(w.ended, w.hubNow(), p)
		}
		if err != nil {
			w.say("%s ends: %v", v.id, err)
			w.breakWire(x)
			return false
		}
	}
	return moved
}

// pass lets time pass: a little, to the next deadline, or a lot.
func (w *simWorld) pass() {
	d := pick(w, time.Millisecond, 300*time.Millisecond, time.Second, 5*time.Second)
	switch w.choose(40) {
	case 39:
		d = pick(w, 6*time.Minute, 11*time.Minute, 70*time.Minute)
	case 38, 37:
		d = 46 * time.Second
	case 36, 35, 34, 33, 32, 31:
		d = 16 * time.Second
	}
	if w.verbose {
		w.say("%v pass", d)
	}
	w.now = w.now.Add(d)
}

// truthOf is what is known of a session in an epoch.
func (w *simWorld) truthOf(k simKey) *simTruth {
	t := w.truth[k]
	if t == nil {
		t = &simTruth{}
		w.truth[k] = t
	}
	return t
}

// The hub's callbacks.

func (w *simWorld) authorize(_ context.Context, viewerID, sessionID string) error {
	if w.forbidden[[2]string{viewerID, sessionID}] {
		return errors.New("not this one")
	}
	return nil
}

func (w *simWorld) authorizeAgent(_ context.Context, agentID, sessionID, ownerID string) error {
	w.meanwhile()
	if w.verbose {
		w.say("hub: may %s open %s of %q: take-overs %v, unknown %v", agentID, sessionID, ownerID, w.claims, w.askAgain)
	}
	switch {
	case w.askAgain:
		return &ProtocolError{Message: "the directory is down", Retryable: true}
	case ownerID != "" && ownerID != agentID && !w.claims:
		return errors.New("not yours")
	}
	w.allowed[[2]string{agentID, sessionID}] = true
	w.tookOver[[2]string{agentID, sessionID}] = ownerID != "" && ownerID != agentID
	return nil
}

// meanwhile is something that goes on while a callback runs: now and then payloads arrive, and
// other workers do something.
func (w *simWorld) meanwhile() {
	if !w.plain && w.rarely(4) && !w.inside {
		w.inside = true
		handling := w.handling
		w.deliver()
		w.works(w.choose(4))
		w.handling = handling
		w.inside = false
	}
}

// works has the hub's workers that call back do at most n jobs.
func (w *simWorld) works(n int) (did bool) {
	for range n {
		j := w.hub.openings.next()
		if j == nil {
			j = w.hub.commits.next()
		}
		if j == nil && w.hung == "" && len(w.hanging) > 0 {
			j, w.hanging = w.hanging[0], w.hanging[1:]
		}
		if j == nil {
			return did
		}
		did = true
		if w.hung != "" && sessionOf(j) == w.hung {
			w.hanging = append(w.hanging, j)
			continue
		}
		w.forgetPositions() // the hub may have forgotten sessions since
		before := w.lives()
		j.work(w.hubNow())
		if o, ok := j.(*opening); ok { // whose entry may have changed meanwhile
			w.handling = &StatusPayload{Sessions: []SessionStatus{o.entry}}
			if !o.status {
				w.handling = &EventBatchPayload{FirstSeq: o.entry.FirstSeq}
			}
		}
		w.afterHub(before)
		if w.err != nil {
			return did
		}
	}
	return did
}

// sessionOf is whose a job of the hub's workers is.
func sessionOf(j job) string {
	if o, ok := j.(*opening); ok {
		return o.entry.SessionID
	}
	return j.(*commitJob).s.id
}

func (w *simWorld) resume(_ context.Context, session, epoch string) (uint64, error) {
	w.meanwhile()
	if w.commitDown || session == w.failing {
		return 0, errors.New("store is down")
	}
	k := simKey{session, epoch}
	t := w.truthOf(k) // what is stored is accepted as soon as a hub says so
	t.accepted = max(t.accepted, w.store[k])
	return w.store[k], nil
}

// commit stores what the hub is about to accept.
func (w *simWorld) commit(_ context.Context, session, epoch string, items []Item) error {
	k := simKey{session, epoch}
	if w.commitDown || session == w.failing {
		w.say("hub: commit fails")
		return errors.New("disk full")
	}
	w.checkCommit(k, items)
	w.meanwhile()
	if w.err != nil || w.hub.lookup(session).epoch != epoch {
		w.store[k] = max(w.store[k], items[len(items)-1].Seq) // forgotten meanwhile
		w.truthOf(k).committed = max(w.truthOf(k).committed, w.store[k])
		return nil
	}
	for _, it := range items {
		if it.Event != nil && poisoned(string(it.Event.Data)) {
			w.say("hub: commit rejects %d", it.Seq)
			return &ProtocolError{Code: CodeEventRejected, Seq: it.Seq}
		}
	}
	last := items[len(items)-1].Seq
	w.store[k] = max(w.store[k], last)
	t := w.truthOf(k)
	t.committed = max(t.committed, last)
	if w.halfCommit {
		w.say("hub: commit stores up to %d, and fails", last)
		return errors.New("lost the store's answer")
	}
	w.position[k] = last
	w.acceptedTo(k, items)
	if w.forgetIn == session { // a callback may call any method
		w.forgetIn = ""
		w.forget(session)
	}
	return nil
}

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// story is the whole log of the schedule.
func (w *simWorld) story() string { return strings.Join(w.trace, "\n") }

// shortStory omits the middle of a long story: after faults have stopped, much of it is
// repetitive.
func (w *simWorld) shortStory() string {
	const head, tail = 120, 30
	if n := len(w.trace); n > head+tail {
		left := fmt.Sprintf("… %d lines …", n-head-tail)
		return strings.Join(slices.Concat(w.trace[:head], []string{left}, w.trace[n-tail:]), "\n")
	}
	return w.story()
}

// say logs what happens, if there is a log.
func (w *simWorld) say(format string, args ...any) {
	if w.verbose {
		at := fmt.Sprintf("%4d %8.2fs  ", w.steps, w.now.Sub(simStart).Seconds())
		w.trace = append(w.trace, at+fmt.Sprintf(format, args...))
	}
}

// tell logs what happens to a payload on its way.
func (w *simWorld) tell(format string, p Payload, to *simEnd) {
	if w.verbose {
		w.say(format, brief(p), to.name)
	}
}

// into says that a payload does not arrive.
func into(x *simWire, to *simEnd) string {
	if x.cut || to.dead {
		return ", into the void"
	}
	return ""
}

// brief describes a payload in one line.
func brief(p Payload) string {
	switch p := p.(type) {
	case *StatusPayload:
		var b strings.Builder
		fmt.Fprintf(&b, "status")
		for _, s := range p.Sessions {
			fmt.Fprintf(&b, " %s(%s first %d head %d ack %d ended %v prev %s %d)", s.SessionID, tail(s.Epoch), s.FirstSeq, s.HeadSeq, s.AckSeq, s.Ended, tail(s.PrevEpoch), s.PrevSeq)
		}
		return b.String()
	case *EventBatchPayload:
		return fmt.Sprintf("events %s(%s) %d-%d %v", p.SessionID, tail(p.Epoch), p.FirstSeq, p.LastSeq, p.Gaps)
	case *AckBatchPayload:
		text := "ack"
		for _, a := range append([]SessionAck{p.first()}, p.Acks...) {
			text += fmt.Sprintf(" %s(%s) %d nack %v full %v window %d %d read %d", a.SessionID, tail(a.Epoch), a.UpToSeq, a.Nack, a.Full, a.WindowEvents, a.WindowBytes, a.ReadSeq)
		}
		return text
	case *WatchPayload:
		return fmt.Sprintf("watch %s(%s) %d stop %v", p.SessionID, tail(p.Epoch), p.AfterSeq, p.Stop)
	case *ReplayRequestPayload:
		return fmt.Sprintf("replay? %s(%s) %d-%d %s for %s", p.SessionID, tail(p.Epoch), p.AfterSeq, p.UntilSeq, p.RequestID, p.ViewerID)
	case *ReplayBatchPayload:
		return fmt.Sprintf("replay! %s(%s) %d-%d %v %s for %s done %v", p.SessionID, tail(p.Epoch), p.FirstSeq, p.LastSeq, p.Gaps, p.RequestID, p.ViewerID, p.Done)
	case *ErrorPayload:
		return fmt.Sprintf("error %s %s %d %s", p.Code, p.SessionID, p.Seq, p.Message)
	}
	return p.payloadType()
}

func briefItem(it Item) string {
	switch {
	case it.Event != nil:
		return fmt.Sprintf("(%s) event %d", tail(it.Epoch), it.Seq)
	case it.Gap != nil:
		return fmt.Sprintf("(%s) gap %d-%d %s", tail(it.Epoch), it.Gap.From, it.Gap.To, it.Gap.Reason)
	case it.Reset != nil:
		return fmt.Sprintf("(%s) reset from %s %d, prev %s %d", tail(it.Epoch), tail(it.Reset.Old.Epoch), it.Reset.Old.Seq, tail(it.Reset.PrevEpoch), it.Reset.PrevSeq)
	}
	return fmt.Sprintf("(%s) end at %d", tail(it.Epoch), it.Seq)
}

func tail(epoch string) string { return epoch[max(0, len(epoch)-4):] }
