package gvstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// The simulation: the real machines, stepped by one goroutine that takes every
// choice from one generator, on a clock of its own. After every step it checks the
// safety invariants of the protocol, and at the end, when faults have stopped, the
// liveness ones. PROTOCOL.md names them S1 to S12, L1 and L2.

// A chooser decides what happens: a number from 0 to n-1.
type chooser func(n int) int

func seeded(seed uint64) chooser {
	r := rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))
	return r.IntN
}

// simEnd is one side of a wire: a link, and the payloads on their way to it.
type simEnd struct {
	name  string
	link  *Link
	inbox []Payload
	dead  bool // this side has noticed that the connection broke
}

// A simWire is one connection between the hub and an agent or viewer.
type simWire struct {
	peer, hub simEnd
	cut       bool // nothing passes any more
}

type simAgent struct {
	id   string
	skew time.Duration // of its clock, which only epochs show
	st   *Streamer
	wire *simWire
}

type simViewer struct {
	id      string
	v       *Viewer
	wire    *simWire
	seen    map[string]*simReader
	stopped map[string]bool // watches that ended with an error
}

// simReader is what one viewer was shown of one session.
type simReader struct {
	pos   Position
	ended bool
}

type simKey struct{ session, epoch string }

// simTruth is what is known of one session in one epoch, from outside.
type simTruth struct {
	data     []string // by number, from 1: what Publish was given
	accepted uint64   // the most that any hub accepted
}

type simWorld struct {
	choose  chooser
	now     time.Time
	ctx     context.Context // has ended: a viewer without room does not wait
	trace   []string
	verbose bool

	agents  []*simAgent
	hub     *Hub
	viewers []*simViewer

	sizes      sizes
	hubCfg     HubConfig
	agentCfg   StreamerConfig
	viewerCfg  ViewerConfig
	store      map[simKey]uint64 // what Commit has stored
	durable    bool              // hubs restart with their store
	commitDown bool              // Commit fails
	losable    bool              // a hub has lost its state
	backward   bool              // and an agent may have a smaller epoch than before

	ghosts   map[string][]Payload // payloads that were delivered, by receiver
	truth    map[simKey]*simTruth
	position map[simKey]uint64 // what the present hub has accepted
	acks     map[*attachment]uint64
	err      error
}

type choiceReader struct{ choose chooser }

func (r choiceReader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.choose(256))
	}
	return len(p), nil
}

var simIDs = []string{"a1", "a2", "b1", "shared"}

var simSessions = [][]string{{"a1", "a2", "shared"}, {"b1", "shared"}}

func newSimWorld(choose chooser) *simWorld {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w := &simWorld{
		choose: choose, now: time.UnixMilli(1_700_000_000_000), ctx: ctx,
		store: make(map[simKey]uint64), truth: make(map[simKey]*simTruth),
		ghosts: make(map[string][]Payload), position: make(map[simKey]uint64), acks: make(map[*attachment]uint64),
	}
	pick := func(ns ...int) int { return ns[choose(len(ns))] }
	w.agentCfg = StreamerConfig{
		Overflow:         Overflow(choose(3)),
		MaxPendingEvents: pick(4, 8, 30),
		ReplayEvents:     pick(-1, 3, 10, 40),
		MaxReplays:       pick(1, 8),
		MaxTotalBytes:    pick(0, 0, 1500),
	}
	w.sizes = sizes{batch: pick(1, 3, 256), page: pick(1, 2, 100), replay: pick(1, 5, 500)}
	w.hubCfg = HubConfig{
		Commit:    w.commit,
		LogEvents: pick(-1, 1, 5, 20), Window: pick(1, 4, 16, 256),
		MaxReplays: pick(1, 2, 8), MaxViewerReplays: pick(1, 4),
		ReplayWait: time.Duration(pick(-1, 1, 10)) * time.Second,
	}
	if w.durable = choose(2) == 0; w.durable {
		w.hubCfg.Resume = func(_ context.Context, s, e string) (uint64, error) {
			if w.commitDown {
				return 0, errors.New("store is down")
			}
			return w.store[simKey{s, e}], nil
		}
	}
	w.viewerCfg = ViewerConfig{BufferItems: pick(1, 4, 256)}
	w.startHub()
	for i := range simSessions {
		a := &simAgent{id: fmt.Sprintf("agent%d", i)}
		w.agents = append(w.agents, a)
		w.startAgent(a)
	}
	for i := range 3 {
		v := &simViewer{id: fmt.Sprintf("viewer%d", i)}
		w.viewers = append(w.viewers, v)
		w.startViewer(v, false)
	}
	return w
}

func (w *simWorld) say(format string, args ...any) {
	if w.verbose {
		w.trace = append(w.trace, fmt.Sprintf("%7.2fs ", w.now.Sub(time.UnixMilli(1_700_000_000_000)).Seconds())+fmt.Sprintf(format, args...))
	}
}

// fail notes the first violation.
func (w *simWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		w.say("VIOLATION: %v", w.err)
	}
}

func (w *simWorld) minter() *minter { return &minter{random: choiceReader{w.choose}} }

func (w *simWorld) startHub() {
	w.hub = NewHub(&w.hubCfg)
	w.hub.mint, w.hub.sizes = w.minter(), w.sizes
	w.position = make(map[simKey]uint64)
}

func (w *simWorld) startAgent(a *simAgent) {
	w.breakWire(a.wire)
	a.wire = nil
	a.st = NewStreamer(&w.agentCfg)
	a.st.mint, a.st.sizes = w.minter(), w.sizes
	if w.choose(3) == 0 {
		a.skew = time.Duration(w.choose(5)-2) * time.Hour
	}
}

// startViewer starts a new viewer process: with what the old one had persisted, or
// with nothing.
func (w *simWorld) startViewer(v *simViewer, persisted bool) {
	w.breakWire(v.wire)
	v.wire = nil
	old := v.positions()
	v.v = NewViewer(&w.viewerCfg)
	v.seen, v.stopped = make(map[string]*simReader), make(map[string]bool)
	for _, id := range simIDs {
		if w.choose(5) > 0 {
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
	v.seen[id] = r
	if err := v.v.Watch(id, r.pos); err != nil {
		w.fail("watch: %v", err)
	}
}

// rewatch ends a watch, or begins one, where it was or from the start.
func (w *simWorld) rewatch(v *simViewer, id string) {
	old := v.positions()
	w.say("%s: rewatches %s", v.id, id)
	v.v.Unwatch(id)
	delete(v.seen, id)
	delete(v.stopped, id)
	if w.choose(3) > 0 {
		w.watch(v, id, old, w.choose(2) == 0)
	}
}

func (w *simWorld) breakWire(x *simWire) {
	if x != nil {
		w.closeEnd(&x.peer)
		w.closeEnd(&x.hub)
		x.cut = true
	}
}

func (w *simWorld) closeEnd(e *simEnd) {
	if !e.dead {
		e.dead = true
		for _, p := range e.inbox {
			w.remember(e, p)
		}
		e.inbox = nil
		e.link.fail(w.now, ErrClosed)
	}
}

// commit is the hub's Commit: it checks S1, S2 and S3 before anything is stored.
func (w *simWorld) commit(_ context.Context, session, epoch string, items []Item) error {
	if w.commitDown {
		w.say("hub: commit fails")
		return errors.New("disk full")
	}
	k := simKey{session, epoch}
	s := w.hub.lookup(session)
	next := s.log.head + 1
	if at, ok := w.position[k]; ok && at+1 != next {
		w.fail("S1: %v: hub's log is at %d, but %d were committed", k, next-1, at)
	}
	for _, it := range items {
		from := it.seq
		if it.Gap != nil {
			from = it.Gap.From
			w.checkLoss(k, it.Gap)
		}
		if from != next {
			w.fail("S1: %v: committed %d, expected %d", k, from, next)
		}
		next = it.seq + 1
		w.checkContent(k, it)
	}
	w.position[k] = next - 1
	w.store[k] = max(w.store[k], next-1)
	t := w.truthOf(k)
	t.accepted = max(t.accepted, next-1)
	return nil
}

// checkLoss: S3.
func (w *simWorld) checkLoss(k simKey, g *Gap) {
	switch {
	case g.Reason == ReasonDropped && w.agentCfg.Overflow == DropOldest:
	case g.Reason == ReasonEvicted && w.losable:
	default:
		w.fail("S3: %v: %d to %d lost for no reason: %s", k, g.From, g.To, g.Reason)
	}
}

// checkContent: S2, and S8 by the caller.
func (w *simWorld) checkContent(k simKey, it Item) {
	t := w.truthOf(k)
	if it.seq > uint64(len(t.data)) {
		w.fail("S2: %v: %d was never published", k, it.seq)
	} else if it.Event != nil && string(it.Event.Data) != t.data[it.seq-1] {
		w.fail("S2: %v: %d is %s, published was %s", k, it.seq, it.Event.Data, t.data[it.seq-1])
	}
}

func (w *simWorld) truthOf(k simKey) *simTruth {
	t := w.truth[k]
	if t == nil {
		t = &simTruth{}
		w.truth[k] = t
	}
	return t
}

// step does one thing.
func (w *simWorld) step() {
	switch c := w.choose(100); {
	case c < 17:
		w.publish()
	case c < 43:
		w.pump()
	case c < 67:
		w.deliver()
	case c < 75:
		w.read(w.viewers[w.choose(len(w.viewers))])
	case c < 83:
		w.connectSome()
	case c < 92:
		w.disturb()
	case c < 93:
		w.cutSome()
	case c < 96:
		w.pass()
	default:
		w.upset()
	}
	w.check()
}

func (w *simWorld) publish() {
	i := w.choose(len(w.agents))
	a := w.agents[i]
	id := simSessions[i][w.choose(len(simSessions[i]))]
	s, err := a.st.session(w.now.Add(a.skew), id)
	if err != nil {
		w.fail("session: %v", err)
		return
	}
	for range 1 + w.choose(4) {
		ev := Event{Time: w.now, Type: "out", End: w.choose(200) == 0, Data: fmt.Appendf(nil, "%q", fmt.Sprint(a.id, "/", w.choose(1<<30)))}
		d := draft{ev: &ev}
		if err := s.fill(&d); err != nil {
			w.fail("draft: %v", err)
			return
		}
		seq, _, err := s.offer(&d)
		if err != nil {
			var stopped *ProtocolError
			if errors.As(err, &stopped) && w.choose(4) == 0 { // L6: told and stopped
				w.say("%s: renews %s after %v", a.id, id, err)
				a.st.renew(w.now.Add(a.skew), id)
			}
			return
		}
		k := simKey{id, s.epoch}
		t := w.truthOf(k)
		if seq != uint64(len(t.data))+1 {
			w.fail("rule 1: %v: number %d follows %d", k, seq, len(t.data))
		}
		t.data = append(t.data, string(ev.Data))
		if w.verbose {
			w.say("%s: publishes %s %d end=%v", a.id, id, seq, ev.End)
		}
	}
}

// wires returns the connections that exist, whole or not.
func (w *simWorld) wires() []*simWire {
	var out []*simWire
	for _, a := range w.agents {
		if a.wire != nil {
			out = append(out, a.wire)
		}
	}
	for _, v := range w.viewers {
		if v.wire != nil {
			out = append(out, v.wire)
		}
	}
	return out
}

// someEnd picks one side of one connection, and the other side of it.
func (w *simWorld) someEnd() (x *simWire, from, to *simEnd) {
	ws := w.wires()
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
	if x, from, to := w.someEnd(); x != nil {
		for range 1 + w.choose(4) {
			if !w.send(x, from, to) {
				return
			}
		}
	}
}

func (w *simWorld) send(x *simWire, from, to *simEnd) bool {
	if from.dead || len(to.inbox) >= 20 {
		return false
	}
	p, _, err := from.link.next(w.now)
	if err != nil {
		w.closeEnd(from)
		return false
	}
	if p == nil {
		return false
	}
	if w.verbose {
		w.say("%s sends %s", from.name, brief(p))
	}
	w.checkRoute(x, p)
	w.checkWindow(from, p)
	if !x.cut && !to.dead {
		to.inbox = append(to.inbox, p)
	}
	return true
}

// checkWindow: rule 7.
func (w *simWorld) checkWindow(from *simEnd, p Payload) {
	b, ok := p.(*EventBatchPayload)
	al, agent := from.link.m.(*agentLink)
	if !ok || !agent || len(b.Events) == 0 {
		return
	}
	if s := al.st.sessions[b.SessionID]; b.Events[len(b.Events)-1].Seq > s.acked+uint64(w.hubCfg.Window) {
		w.fail("rule 7: %s beyond ack %d and window %d", brief(b), s.acked, w.hubCfg.Window)
	}
}

// checkRoute: S11.
func (w *simWorld) checkRoute(x *simWire, p Payload) {
	b, ok := p.(*ReplayBatchPayload)
	if !ok {
		return
	}
	for _, v := range w.viewers {
		if v.wire == x && b.ViewerID != v.id {
			w.fail("S11: a replay for %q on the link of %q", b.ViewerID, v.id)
		}
	}
}

func (w *simWorld) deliver() {
	if _, _, to := w.someEnd(); to != nil {
		for range 1 + w.choose(4) {
			if !w.receive(to) {
				return
			}
		}
	}
}

func (w *simWorld) receive(to *simEnd) bool {
	if to.dead || len(to.inbox) == 0 {
		return false
	}
	p := to.inbox[0]
	ctx := context.Background()
	if _, ok := to.link.m.(*viewerLink); ok {
		ctx = w.ctx
	}
	before := w.fingerprint(to.link, p)
	var owners map[string]string
	if _, ok := to.link.m.(*hubAgent); ok {
		w.hub.expire(w.now) // what any call may do
		owners = w.owners()
	}
	err := to.link.handle(ctx, w.now, p)
	for id, was := range owners {
		if s := w.hub.sessions[id]; s != nil && was != "" && s.owner != "" && was != s.owner {
			w.fail("rule 4: %s belonged to %s, now to %s", id, was, s.owner)
		}
	}
	if before != "" && before != w.fingerprint(to.link, p) {
		w.fail("S6: %s: a payload of another link changed something: %s", to.name, brief(p))
	}
	if errors.Is(err, context.Canceled) {
		return false // no room: it waits
	}
	if to.dead { // the handling was the end of it
		return false
	}
	to.inbox = to.inbox[1:]
	w.remember(to, p)
	if err != nil {
		if w.verbose {
			w.say("%s refuses %s: %v", to.name, brief(p), err)
		}
		if refused := (*ProtocolError)(nil); errors.As(err, &refused) && refused.Code == codeMalformed {
			w.fail("%s refuses what an honest peer said: %v: %s", to.name, err, brief(p))
		}
	} else if w.verbose {
		w.say("%s handled %s", to.name, brief(p))
	}
	return true
}

func (w *simWorld) owners() map[string]string {
	out := make(map[string]string, len(w.hub.sessions))
	for id, s := range w.hub.sessions {
		out[id] = s.owner
	}
	return out
}

// fingerprint is the state of a link's machine, if p is of another link: such a
// payload must not change it.
func (w *simWorld) fingerprint(l *Link, p Payload) string {
	var of string
	switch p := p.(type) {
	case *StatusPayload:
		of = p.Link
	case *EventBatchPayload:
		of = p.Link
	case *AckBatchPayload:
		of = p.Link
	default:
		return ""
	}
	w.hub.expire(w.now)
	var b strings.Builder
	switch m := l.m.(type) {
	case *agentLink:
		if of == m.id {
			return ""
		}
		for _, s := range m.st.all() {
			fmt.Fprint(&b, s.id, s.epoch, s.acked, s.log.first(), s.on != nil && s.on.opened, " ")
		}
	case *hubAgent:
		if of == m.id {
			return ""
		}
		for _, s := range w.hub.all() {
			fmt.Fprint(&b, s.id, s.epoch, s.log.head, s.head, s.owner, s.on != nil, " ")
		}
	case *viewerLink:
		if of == m.id {
			return ""
		}
		for _, x := range m.v.sorted() {
			fmt.Fprint(&b, x.id, x.epoch, x.received, x.on != nil && x.on.want, " ")
		}
	}
	return b.String() + "."
}

// remember keeps payloads that say which link they belong to, so that they may
// come again on a later one.
func (w *simWorld) remember(to *simEnd, p Payload) {
	switch p.(type) {
	case *StatusPayload, *EventBatchPayload, *AckBatchPayload, *ReplayBatchPayload:
		name := to.name
		if old := w.ghosts[name]; len(old) < 8 {
			w.ghosts[name] = append(old, p)
		} else if w.choose(4) == 0 {
			old[w.choose(8)] = p
		}
	}
}

// read has a viewer's loop take some items: S7, S8, S9 and S12.
func (w *simWorld) read(v *simViewer) {
	for range 1 + w.choose(8) {
		q, _ := v.v.front()
		if q == nil {
			return
		}
		if w.choose(16) == 0 {
			return // the loop broke off: the item comes again
		}
		if q.err != nil {
			w.say("%s: %v", v.id, q.err)
			v.stopped[q.w.id] = true
			var pe *ProtocolError
			if !errors.As(q.err, &pe) || pe.Code != codeReplayAhead || !w.backward {
				w.fail("%s: unexpected error %v", v.id, q.err)
			}
		} else {
			w.show(v, q.item)
		}
		v.v.done(q)
		if r := v.seen[q.w.id]; v.v.Position(q.w.id) != r.pos {
			w.fail("rule 14: %s %s: position %v after %v was handled", v.id, q.w.id, v.v.Position(q.w.id), r.pos)
		}
	}
}

func (w *simWorld) show(v *simViewer, it Item) {
	r := v.seen[it.SessionID]
	if w.verbose {
		w.say("%s: sees %s %s", v.id, it.SessionID, briefItem(it))
	}
	k := simKey{it.SessionID, it.Epoch}
	switch {
	case r.ended:
		w.fail("S12: %s %s: %s after the end", v.id, it.SessionID, briefItem(it))
	case it.Reset != nil:
		if it.Reset.Old != r.pos || it.Epoch <= r.pos.Epoch {
			w.fail("S9: %s %s: reset from %v, but the position is %v", v.id, it.SessionID, it.Reset.Old, r.pos)
		}
	case r.pos.Epoch != "" && it.Epoch != r.pos.Epoch:
		w.fail("S9: %s %s: epoch %s after %s without a reset", v.id, it.SessionID, it.Epoch, r.pos.Epoch)
	case it.End:
		r.ended = true
		if it.seq != r.pos.Seq {
			w.fail("S12: %s %s: the end is at %d, but the position is %d", v.id, it.SessionID, it.seq, r.pos.Seq)
		}
	default:
		from := it.seq
		if it.Gap != nil {
			from = it.Gap.From
		}
		if from != r.pos.Seq+1 {
			w.fail("S7: %s %s: %d after %d", v.id, it.SessionID, from, r.pos.Seq)
		}
		if it.seq > w.truthOf(k).accepted {
			w.fail("S8: %s %s: %d was accepted by no hub", v.id, it.SessionID, it.seq)
		}
		w.checkContent(k, it)
	}
	r.pos = it.Position()
}

// connectSome connects somebody who has no connection, or whose connection is
// half-open.
func (w *simWorld) connectSome() {
	if ws := w.wires(); len(ws) > 0 && w.choose(6) == 0 { // one side leaves a half-open connection
		if x := ws[w.choose(len(ws))]; x.cut {
			w.closeEnd(&x.peer)
		}
	}
	i := w.choose(len(w.agents) + len(w.viewers))
	if i < len(w.agents) {
		w.connectAgent(w.agents[i])
	} else {
		w.connectViewer(w.viewers[i-len(w.agents)])
	}
}

// connectAgent makes a new connection. The old one may still be open at the hub.
func (w *simWorld) connectAgent(a *simAgent) {
	if a.wire != nil && !a.wire.peer.dead && !a.wire.cut {
		return
	}
	w.say("%s connects", a.id)
	a.wire = &simWire{
		peer: simEnd{name: a.id, link: a.st.connect(w.now).Link},
		hub:  simEnd{name: "hub(" + a.id + ")", link: w.hub.connectAgent(w.now, a.id).Link},
	}
}

func (w *simWorld) connectViewer(v *simViewer) {
	if v.wire != nil && !v.wire.peer.dead && !v.wire.cut {
		return
	}
	w.say("%s connects", v.id)
	v.wire = &simWire{
		peer: simEnd{name: v.id, link: v.v.connect(w.now).Link},
		hub:  simEnd{name: "hub(" + v.id + ")", link: w.hub.connectViewer(w.now, v.id, false).Link},
	}
}

// disturb drops, duplicates or reorders payloads on their way, or lets one of an
// older connection arrive.
func (w *simWorld) disturb() {
	var busy []*simEnd
	for _, x := range w.wires() {
		for _, e := range []*simEnd{&x.peer, &x.hub} {
			if len(e.inbox) > 0 {
				busy = append(busy, e)
			}
		}
	}
	if len(busy) == 0 {
		return
	}
	to := busy[w.choose(len(busy))]
	i := w.choose(len(to.inbox))
	p := to.inbox[i]
	switch w.choose(8) {
	case 7:
		w.forge(to, i)
	case 3:
		n := 1 + w.choose(len(to.inbox))
		w.say("lost: %d payloads to %s", n, to.name)
		to.inbox = to.inbox[n:]
	case 4, 5, 6:
		if old := w.ghosts[to.name]; len(old) > 0 {
			p := old[w.choose(len(old))]
			w.say("late: %s to %s", brief(p), to.name)
			to.inbox = slices.Insert(to.inbox, i, p)
		}
	case 0:
		w.say("lost: %s", brief(p))
		to.inbox = append(to.inbox[:i:i], to.inbox[i+1:]...)
	case 1:
		w.say("twice: %s", brief(p))
		to.inbox = append(to.inbox, p)
	default:
		j := w.choose(len(to.inbox))
		w.say("out of order: %s", brief(p))
		to.inbox[i], to.inbox[j] = to.inbox[j], p
	}
}

// forge makes an ack of what was never sent: it frees nothing and ends the link.
func (w *simWorld) forge(to *simEnd, i int) {
	ack, ok := to.inbox[i].(*AckBatchPayload)
	al, agent := to.link.m.(*agentLink)
	if !ok || !agent {
		return
	}
	if s := al.st.sessions[ack.SessionID]; s != nil && s.maxSent < s.log.head && s.epoch == ack.Epoch {
		forged := *ack
		forged.UpToSeq = s.maxSent + 1
		w.say("forged: %s", brief(&forged))
		if err := to.link.handle(w.ctx, w.now, &forged); err == nil && s.on != nil && s.on.id == ack.Link {
			w.fail("rule 6: %s believed a forged ack", to.name)
		}
	}
}

// cutSome breaks a connection: noticed by both sides, or by one.
func (w *simWorld) cutSome() {
	x, from, to := w.someEnd()
	if x == nil {
		return
	}
	w.say("cut: %s", from.name)
	x.cut = true
	w.closeEnd(from)
	if w.choose(2) == 0 {
		w.closeEnd(to)
	}
}

// pass lets time pass: a little, to the next deadline, or a lot.
func (w *simWorld) pass() {
	d := []time.Duration{time.Millisecond, 300 * time.Millisecond, time.Second, 16 * time.Second, 40 * time.Second}
	if w.choose(15) == 0 {
		d = []time.Duration{6 * time.Minute, 11 * time.Minute, 70 * time.Minute}
		w.backward = true // the hub may forget sessions
	}
	w.now = w.now.Add(d[w.choose(len(d))])
}

// upset restarts somebody, with or without their state.
func (w *simWorld) upset() {
	switch w.choose(12) {
	case 10, 11:
		a := w.agents[w.choose(len(w.agents))]
		if s := a.st.all(); len(s) > 0 {
			id := s[w.choose(len(s))].id
			w.say("%s renews %s", a.id, id)
			a.st.renew(w.now.Add(a.skew), id)
		}
	case 8, 9:
		w.rewatch(w.viewers[w.choose(len(w.viewers))], simIDs[w.choose(len(simIDs))])
	case 0, 1:
		a := w.agents[w.choose(len(w.agents))]
		w.say("%s restarts", a.id)
		w.now = w.now.Add(time.Duration(w.choose(3)) * time.Millisecond)
		w.startAgent(a)
	case 2, 3:
		v := w.viewers[w.choose(len(w.viewers))]
		persisted := w.choose(4) > 0
		w.say("%s restarts, persisted=%v", v.id, persisted)
		w.startViewer(v, persisted)
	case 4:
		w.restartHub()
	case 5:
		w.commitDown = !w.commitDown
	case 6:
		id := simIDs[w.choose(len(simIDs))]
		w.say("hub forgets %s", id)
		w.losable, w.backward = true, true
		w.hub.Forget(id)
		for k := range w.position {
			if k.session == id {
				delete(w.position, k)
			}
		}
	case 7:
		a := w.agents[w.choose(len(w.agents))]
		id := simSessions[w.choose(len(simSessions))][0]
		w.say("%s forgets %s", a.id, id)
		a.st.Forget(id)
	}
}

func (w *simWorld) restartHub() {
	w.say("hub restarts, durable=%v", w.durable)
	for _, x := range w.wires() {
		x.cut = true
		w.closeEnd(&x.hub)
		if w.choose(2) == 0 {
			w.closeEnd(&x.peer)
		}
	}
	w.losable = true
	if w.durable && w.choose(4) == 0 { // the store lost its last part
		for _, id := range simIDs {
			for k := range w.store {
				if k.session == id && w.store[k] > 0 {
					w.store[k] -= min(w.store[k], 3)
				}
			}
		}
	}
	w.startHub()
	w.backward = true
}

// check looks at the state of every machine: S4, S5 and S10.
func (w *simWorld) check() {
	for _, a := range w.agents {
		w.sound(a.id, streamerFault(a.st))
		for _, s := range a.st.sessions {
			w.checkSession(a, s)
		}
	}
	for k := range w.position {
		if s := w.hub.sessions[k.session]; s == nil || s.epoch == "" {
			delete(w.position, k) // forgotten by its age
		}
	}
	w.sound("hub", hubFault(w.hub))
	for _, v := range w.viewers {
		w.sound(v.id, viewerFault(v.v))
	}
}

// sound fails if something is wrong with somebody.
func (w *simWorld) sound(who, fault string) {
	if fault != "" {
		w.fail("%s: %s", who, fault)
	}
}

func (w *simWorld) checkSession(a *simAgent, s *Session) {
	if t := w.truth[simKey{s.id, s.epoch}]; s.acked > 0 && (t == nil || s.acked > t.accepted) {
		w.fail("S3: %s %s: acked %d, which no hub accepted", a.id, s.id, s.acked)
	}
	o := s.on
	if o == nil || !o.opened {
		delete(w.acks, o)
		return
	}
	if s.acked < w.acks[o] {
		w.fail("S5: %s %s: ack went back from %d to %d", a.id, s.id, w.acks[o], s.acked)
	}
	w.acks[o] = s.acked
}

// settle stops all faults and lets the machines come to rest: L1 and L2.
func (w *simWorld) settle() {
	w.say("faults stop")
	w.commitDown = false
	for range 80 { // rounds of at most a second each, then longer
		for _, a := range w.agents {
			w.connectAgent(a)
		}
		for _, v := range w.viewers {
			w.connectViewer(v)
		}
		w.drain()
		if w.err != nil || w.rest() == "" {
			return
		}
		w.now = w.now.Add(5 * time.Second)
	}
	w.fail("L1/L2: %s", w.rest())
}

// drain moves payloads until nothing moves.
func (w *simWorld) drain() {
	for range 10_000 {
		moved := false
		for _, x := range w.wires() {
			moved = w.send(x, &x.peer, &x.hub) || moved
			moved = w.send(x, &x.hub, &x.peer) || moved
			moved = w.receive(&x.peer) || moved
			moved = w.receive(&x.hub) || moved
		}
		for _, v := range w.viewers {
			if q, _ := v.v.front(); q != nil {
				w.read(v)
				moved = true
			}
		}
		w.check()
		if !moved || w.err != nil {
			return
		}
	}
	w.fail("livelock: payloads go on for ever")
}

// rest says what is not at rest yet, or nothing.
func (w *simWorld) rest() string {
	for _, a := range w.agents {
		for _, s := range a.st.all() {
			if s.stopped == nil && s.acked != s.log.head {
				return fmt.Sprintf("L1: %s %s: acked %d of %d", a.id, s.id, s.acked, s.log.head)
			}
		}
	}
	for _, v := range w.viewers {
		for id, r := range v.seen {
			s := w.hub.sessions[id]
			if s == nil || s.epoch == "" || v.stopped[id] || r.ended {
				continue
			}
			if want := (Position{s.epoch, s.log.head}); r.pos != want && !(s.log.head == 0 && r.pos == (Position{})) {
				return fmt.Sprintf("L2: %s %s: at %v, hub at %v", v.id, id, r.pos, want)
			}
			if s.ended && !r.ended {
				return fmt.Sprintf("L2: %s %s: not told of the end", v.id, id)
			}
		}
	}
	return ""
}

// brief tells a payload in a line.
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
		return fmt.Sprintf("ack %s(%s) %d nack %v", p.SessionID, tail(p.Epoch), p.UpToSeq, p.Nack)
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
		return fmt.Sprintf("(%s) event %d", tail(it.Epoch), it.seq)
	case it.Gap != nil:
		return fmt.Sprintf("(%s) gap %d-%d %s", tail(it.Epoch), it.Gap.From, it.Gap.To, it.Gap.Reason)
	case it.Reset != nil:
		return fmt.Sprintf("(%s) reset from %s %d, prev %s %d", tail(it.Epoch), tail(it.Reset.Old.Epoch), it.Reset.Old.Seq, tail(it.Reset.PrevEpoch), it.Reset.PrevSeq)
	}
	return fmt.Sprintf("(%s) end at %d", tail(it.Epoch), it.seq)
}

func tail(epoch string) string { return epoch[max(0, len(epoch)-4):] }

// runSchedule runs one schedule and returns its first violation.
func runSchedule(choose chooser, steps int, verbose bool) (w *simWorld, err error) {
	w = newSimWorld(choose)
	w.verbose = verbose
	for range steps {
		w.step()
		if w.err != nil {
			return w, w.err
		}
	}
	w.settle()
	return w, w.err
}
