package gvstream

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// connectSome connects an agent or viewer that has no connection, and now and then one
// that still has.
func (w *simWorld) connectSome() {
	i := w.choose(len(w.agents) + len(w.viewers))
	anyway := w.rarely(8) // although the old one is intact
	if i < len(w.agents) {
		if a := w.agents[i]; !a.away && (anyway || broken(a.wire)) {
			w.connectAgent(a)
		}
		return
	}
	if v := w.viewers[i-len(w.agents)]; !v.away && (anyway && !v.local || broken(v.wire)) {
		w.connectViewer(v)
	}
}

func broken(x *simWire) bool { return x == nil || x.peer.dead || x.cut }

func (w *simWorld) breakWire(x *simWire) {
	if x != nil {
		x.cut = true
		w.closeEnd(&x.peer)
		w.closeEnd(&x.hub)
	}
}

func (w *simWorld) closeEnd(e *simEnd) {
	if !e.dead {
		e.dead = true
		for _, p := range e.inbox {
			w.remember(e, p)
		}
		e.inbox, e.writing = nil, nil
		e.link.fail(w.at(e), ErrClosed)
	}
}

// disturb drops, duplicates or reorders payloads on their way, or lets one of an
// older connection arrive.
func (w *simWorld) disturb() {
	busy := w.busyEnds()
	if len(busy) == 0 {
		return
	}
	to := busy[w.choose(len(busy))].end
	i := w.choose(len(to.inbox))
	p := to.inbox[i]
	switch w.choose(8) {
	case 0:
		w.tell("lost: %s to %s", p, to)
		to.inbox = slices.Delete(slices.Clone(to.inbox), i, i+1)
	case 1:
		w.tell("twice: %s to %s", p, to)
		to.inbox = append(to.inbox, p)
	case 2:
		j := w.choose(len(to.inbox))
		w.tell("out of order: %s to %s", p, to)
		to.inbox[i], to.inbox[j] = to.inbox[j], p
	case 3:
		w.say("lost: %d payloads to %s", i+1, to.name)
		to.inbox = to.inbox[i+1:]
	case 4, 5, 6:
		if old := w.ghosts[to.name]; len(old) > 0 {
			p := old[w.choose(len(old))]
			w.tell("late: %s to %s", p, to)
			to.inbox = slices.Insert(slices.Clone(to.inbox), i, p)
		}
	case 7:
		w.forge(to, i)
	}
}

// forge turns an ack into a viewer's, and into one of what was never sent.
func (w *simWorld) forge(to *simEnd, i int) {
	ack, ok := to.inbox[i].(*AckBatchPayload)
	al, agent := to.link.endpoint.(*streamerLink)
	if !ok || !agent {
		return
	}
	s := al.st.sessions[ack.SessionID]
	if s == nil || s.epoch != ack.Epoch {
		return
	}
	acked, forged := s.acked, *ack
	forged.UpToSeq, forged.ViewerID = s.maxSentInEpoch, "viewer0"
	w.tell("a viewer's: %s to %s", &forged, to)
	to.link.handle(w.ended, w.at(to), &forged)
	if s.acked != acked { // S3, rule 6
		w.fail("S3: %s believed a viewer's ack of %d", to.name, forged.UpToSeq)
	}
	if s.maxSentInEpoch >= s.log.head {
		return
	}
	forged.UpToSeq, forged.ViewerID = s.maxSentInEpoch+1, ""
	w.tell("forged: %s to %s", &forged, to)
	to.link.handle(w.ended, w.at(to), &forged)
	if s.acked > acked { // S3, rule 6
		w.fail("S3: %s believed a forged ack of %d", to.name, forged.UpToSeq)
	}
	if s.stopped != nil { // by this: it can't know that the hub lies
		w.lied[simKey{s.id, s.epoch}] = true
	}
}

// cutSome breaks a connection: noticed by both sides, by one, or by none.
func (w *simWorld) cutSome() {
	x, from, to := w.someEnd(w.wires)
	if x == nil {
		return
	}
	w.cut(x, from, to)
}

func (w *simWorld) cut(x *simWire, from, to *simEnd) {
	x.cut = true
	switch w.choose(3) {
	case 0:
		w.say("cut: %s and %s", from.name, to.name)
		w.closeEnd(from)
		w.closeEnd(to)
	case 1:
		w.say("cut: %s, and %s does not know", from.name, to.name)
		w.closeEnd(from)
	case 2:
		w.say("cut: %s and %s don't know", from.name, to.name)
	}
}

// useOld moves payloads of a connection that a newer one took over.
func (w *simWorld) useOld() {
	x, from, to := w.someEnd(w.old)
	if x == nil {
		return
	}
	for range 1 + w.choose(4) {
		w.send(x, from, to)
		w.receive(x, to)
	}
}

// recover ends what goes wrong for a while.
func (w *simWorld) recover() {
	w.say("all is well again")
	w.commitDown, w.halfCommit, w.forgetIn, w.failing, w.askAgain = false, false, "", "", false
	w.hub.cfg.Window = w.hubCfg.Window
	for _, v := range w.viewers {
		v.stuck, v.away = false, false
	}
	for _, a := range w.agents {
		a.away, a.mute, a.wall = false, false, 0
	}
	w.frail, w.slow = 0, 0
	for _, x := range w.wires {
		x.left, x.rate = 0, 0
		x.peer.until, x.hub.until = w.now, w.now
	}
}

// upset makes rare things happen to agents, viewers and the hub.
func (w *simWorld) upset() {
	switch w.choose(4) {
	case 0:
		w.upsetAgent(w.agents[w.choose(len(w.agents))])
	case 1:
		w.upsetViewer(w.viewers[w.choose(len(w.viewers))])
	case 2:
		w.upsetHub()
	case 3:
		w.upsetWires()
	}
}

// upsetWires makes new connections break after some bytes, or slow, and one that there is.
func (w *simWorld) upsetWires() {
	w.frail, w.slow = pick(w, 0, 800, 2000, 5000), pick(w, 0, 0, 1000, 200)
	w.say("new connections carry %d bytes, %d a second", w.frail, w.slow)
	if len(w.wires) > 0 {
		x := w.wires[w.choose(len(w.wires))]
		x.left, x.rate = w.frail, w.slow
	}
}

func (w *simWorld) upsetAgent(a *simAgent) {
	id := a.ids[w.choose(len(a.ids))]
	switch w.choose(11) {
	case 0, 1:
		w.say("%s restarts without its log", a.id)
		w.now = w.now.Add(time.Duration(w.choose(3)) * time.Millisecond)
		w.startAgent(a)
	case 2:
		w.closeAgent(a)
	case 3: // an agent's log has no store: this is equivalent to a restart with its log
		w.say("%s loses its connection and keeps its log", a.id)
		w.breakWire(a.wire)
	case 4:
		a.lead += pick(w, 20*time.Second, 50*time.Second, 4*time.Minute)
		w.say("%s stood still", a.id)
	case 5:
		a.wall = pick(w, 0, 2*time.Hour, -2*time.Hour, -48*time.Hour, 30*time.Hour)
		w.say("%s: the clock jumps to %v", a.id, a.wall)
	case 6:
		w.say("%s forgets %s", a.id, id)
		a.st.Forget(id)
	case 7:
		w.renew(a, id)
	case 8:
		a.away = !a.away
		w.say("%s: away %v", a.id, a.away)
		if a.away {
			w.breakWire(a.wire)
		}
	case 9:
		w.claims = !w.claims
		w.say("take-overs: %v", w.claims)
	case 10:
		a.mute = !a.mute
		w.say("%s answers no replays: %v", a.id, a.mute)
	}
}

// closeAgent ends an agent in an orderly way, and starts the next.
func (w *simWorld) closeAgent(a *simAgent) {
	left := 0
	for _, s := range a.st.all() {
		left += s.pendingEvents
	}
	err := a.st.Close(w.ended)
	w.say("%s closes: %v", a.id, err)
	if left > 0 && err == nil { // L1
		w.fail("L1: %s: Close says that all is acknowledged, but %d events are not", a.id, left)
	}
	w.retryBlocked()
	for _, b := range w.blocked {
		if b.a == a {
			w.fail("L4: a publisher in %s still waits after Close", b.s.id)
		}
	}
	w.startAgent(a)
}

func (w *simWorld) upsetViewer(v *simViewer) {
	id := simIDs[w.choose(len(simIDs))]
	switch w.choose(8) {
	case 0, 1:
		persisted := !w.rarely(4)
		w.say("%s restarts, with its positions: %v", v.id, persisted)
		w.startViewer(v, persisted)
	case 2, 3:
		w.rewatch(v, id)
	case 4:
		v.stuck = !v.stuck
		w.say("%s: stuck %v", v.id, v.stuck)
	case 5:
		if w.rarely(4) {
			w.say("all viewers leave")
			for _, v := range w.viewers {
				w.breakWire(v.wire)
			}
			return
		}
		v.away = !v.away
		w.say("%s: away %v", v.id, v.away)
		if v.away {
			w.breakWire(v.wire)
		}
	case 6:
		v.lead += pick(w, 20*time.Second, 50*time.Second, 4*time.Minute)
		w.say("%s stood still", v.id)
	case 7:
		who := [2]string{v.id, id}
		if w.forbidden[who] {
			w.say("%s may watch %s", v.id, id)
			delete(w.forbidden, who)
		} else {
			w.say("%s may no longer watch %s", v.id, id)
			w.forbidden[who], w.everForbidden = true, true
			w.hub.Revoke(v.id, id)
		}
	}
}

func (w *simWorld) upsetHub() {
	switch w.choose(11) {
	case 9:
		if w.failing = ""; !w.rarely(3) {
			w.failing = simIDs[w.choose(len(simIDs))]
		}
		w.say("store fails for %q", w.failing)
	case 10:
		w.askAgain = !w.askAgain
		w.say("the directory is down: %v", w.askAgain)
	case 0, 1:
		w.restartHub()
	case 2, 3:
		w.commitDown = !w.commitDown
		w.say("store down: %v", w.commitDown)
	case 4:
		w.halfCommit = !w.halfCommit
		w.say("store answers: %v", !w.halfCommit)
	case 5, 8:
		id := simIDs[w.choose(len(simIDs))]
		if w.forgetIn = ""; w.rarely(3) {
			w.forgetIn = id
			return
		}
		w.forget(id)
	case 6:
		w.rewindowed = true
		w.hub.cfg.Window = pick(w, 0, w.hubCfg.Window, w.hub.cfg.Window/2)
		w.say("hub: new links have window %d", w.hub.cfg.Window)
	case 7:
		w.hubLead += pick(w, 20*time.Second, 50*time.Second, 4*time.Minute)
		w.say("hub stood still")
	}
}

// forget has the hub forget a session.
func (w *simWorld) forget(id string) {
	w.say("hub forgets %s", id)
	w.losable, w.backward = true, true
	w.forgets++
	w.hub.Forget(id)
	w.forgetPositions()
}

// restartHub starts a new hub: with a store, or with nothing.
func (w *simWorld) restartHub() {
	w.say("hub restarts, with a store: %v", w.durable)
	for _, x := range w.wires {
		x.cut = true
		w.closeEnd(&x.hub)
		if w.choose(2) == 0 {
			w.closeEnd(&x.peer)
		}
	}
	for _, v := range w.viewers {
		if v.local {
			w.breakWire(v.wire)
		}
	}
	w.losable, w.backward = true, true
	if w.durable && w.choose(2) == 1 {
		w.say("the store lost its last part")
		for k, n := range w.store {
			w.store[k] = n - min(n, 3)
		}
	}
	w.hubLead = pick(w, 0, -2*time.Hour, 2*time.Hour)
	w.startHub()
}

// quiesce stops all faults: the machines must come to rest within bounded time, and
// after that make up for one lost payload within one timer period.
func (w *simWorld) quiesce() {
	w.say("faults stop")
	w.calm()
	w.drain(nil)
	w.publishAll()
	w.restWithin(20*time.Minute, 5*time.Second, nil)
	for losses := w.choose(4); losses > 0 && w.err == nil; losses-- {
		for range 10 { // an earlier loss that has not shown yet
			w.now = w.now.Add(5 * time.Second)
			w.drain(nil)
		}
		w.loseOne()
	}
	if w.err == nil {
		w.stayAndVanish()
	}
	if w.err == nil {
		w.trial()
	}
}

// trial puts the world, which is at rest, through one thing that goes on for a while, or none.
func (w *simWorld) trial() {
	c := w.choose(20)
	if c == 0 || c > 9 || len(w.viewers) < 4 {
		return
	}
	w.inside = true // no viewer leaves or comes while something is pushed
	w.hub.cfg.SessionTTL, w.hub.cfg.EndedTTL = time.Hour, time.Hour
	w.reconnect()
	w.drain(nil)
	a := w.agents[w.choose(len(w.agents))]
	switch {
	case c < 3 && !a.away:
		w.frailAgent(a)
	case c == 3:
		w.frailViewer(w.viewers[w.choose(3)])
	case c == 4 && !a.away:
		w.slowAgent(a)
	case c == 5:
		w.stuckViewer(w.viewers[w.choose(len(w.viewers))])
	case c == 8 && !a.away:
		w.refuseOne(a)
	case c == 9:
		w.deafViewer(w.viewers[w.choose(3)])
	case c == 6 || c == 7:
		w.stuckStore(simIDs[w.choose(len(simIDs))], c == 7)
	}
}

// frailAgent: L7. Each connection carries a batch of one event, and whatever comes before it.
func (w *simWorld) frailAgent(a *simAgent) {
	if w.sizes.first > 50 {
		return
	}
	for _, v := range w.viewers { // what they would ask the agent for comes before other batches
		w.breakWire(v.wire)
	}
	w.breakWire(a.wire)
	w.plain = true
	for _, id := range a.ids {
		if s := a.st.sessions[id]; s != nil && publishError(s) == nil {
			w.publish(a, id, 4)
		}
	}
	one := w.bytesOf(&EventBatchPayload{
		SessionID: "shared", Epoch: w.minter().ID(), Link: w.minter().ID(), FirstSeq: 100, LastSeq: 100, HeadSeq: 100,
		Events: []Event{{Seq: 100, Time: w.now, Type: "out", Data: json.RawMessage(`"agent0/10000"`)}},
		Gaps:   []Gap{{10, 20, ReasonDropped}},
	})
	reached := func() (sum uint64) {
		for _, id := range a.ids {
			if s, h := a.st.sessions[id], w.hub.sessions[id]; s != nil && h != nil && h.epoch == s.epoch {
				sum += h.log.head
			}
		}
		return sum
	}
	for range 3 * 40 { // there are at most 30 events pending in each session, and a gap or two
		w.connectAgent(a)
		a.wire.left = one + 1
		before := reached()
		w.work(time.Second)
		if !a.wire.cut || w.err != nil {
			break
		}
		if reached() <= before {
			w.fail("L7: %s gets nothing through connections that carry %d bytes of batches", a.id, one)
		}
		w.breakWire(a.wire)
	}
	w.restAgain("L7", "", 2*time.Minute)
}

// frailViewer is the same for what the hub's log has for a viewer that begins anew.
func (w *simWorld) frailViewer(v *simViewer) {
	if w.sizes.first > 50 {
		return
	}
	w.breakWire(v.wire)
	gaps := 0
	for _, id := range simIDs {
		if h := w.hub.sessions[id]; h != nil {
			gaps += h.log.ring.n - h.log.events
		}
		if v.seen[id] != nil {
			v.v.Unwatch(id)
			delete(v.seen, id)
			w.watch(v, id, nil, false)
		}
	}
	behind := func() (left, got uint64) {
		for id, r := range v.seen {
			got += r.pos.Seq
			if h := w.hub.sessions[id]; h != nil && h.log.events > 0 && h.log.first() == 1 && !r.ended && r.stopped == "" && !w.forbidden[[2]string{v.id, id}] {
				left += h.log.head - r.pos.Seq
			}
		}
		return left, got
	}
	for left, got := behind(); left > 0 && w.err == nil; {
		w.connectViewer(v)
		v.wire.left = 700 + 60*gaps
		w.work(time.Second)
		if !v.wire.cut {
			break
		}
		was := got
		if left, got = behind(); got <= was {
			w.fail("L7: %s gets nothing through connections that carry %d bytes of batches", v.id, 700+60*gaps)
		}
		w.breakWire(v.wire)
	}
	w.restAgain("L7", "", 2*time.Minute)
}

// slowAgent: rule 9. A batch takes longer to write than the timer's first wait, and none is sent
// again.
func (w *simWorld) slowAgent(a *simAgent) {
	if w.carries > 0 || w.hubCfg.MaxEventBytes > 0 || w.agentCfg.MaxEventBytes > 0 || w.rewindowed {
		return
	}
	for _, v := range w.viewers {
		w.breakWire(v.wire)
	}
	w.breakWire(a.wire)
	w.connectAgent(a)
	w.drain(nil)
	for _, id := range a.ids {
		if s := a.st.sessions[id]; s != nil && publishError(s) == nil && s.acked == s.log.head {
			a.wire.rate, a.wire.once = 25, make(map[simKey]uint64)
			w.plain, w.always = true, 56
			w.publish(a, id, 2)
			break
		}
	}
	for range 150 {
		w.work(time.Second)
	}
	w.always = 0
	a.wire.rate, a.wire.once = 0, nil
	w.drain(nil)
	w.restAgain("rule 9", "", 2*time.Minute)
}

// stuckViewer: a viewer that reads nothing gets no more than it has room for, once, and holds up
// nobody.
func (w *simWorld) stuckViewer(v *simViewer) {
	v.stuck = true
	w.plain = true
	v.wire.once = make(map[simKey]uint64)
	for range 3 {
		for _, a := range w.agents {
			for _, id := range a.ids {
				if s := a.st.sessions[id]; s != nil && publishError(s) == nil {
					w.publish(a, id, 3)
				}
			}
		}
		w.restWithin(time.Minute, time.Second, nil)
		for range 5 {
			w.work(5 * time.Second)
		}
	}
	v.stuck = false
	v.wire.once = nil
	w.restAgain("L2", "", 2*time.Minute)
}

// deafViewer: S15. A viewer's connection takes everything and delivers nothing: no more is under
// way there than its window, and one batch of a session each time that the timer expires.
func (w *simWorld) deafViewer(v *simViewer) {
	if v.local || v.away || w.rewindowed {
		return
	}
	w.plain = true
	w.work(viewerAckDelay + time.Second) // all that was sent is acknowledged
	x := v.wire
	if x == nil || x.cut || x.old || x.peer.dead || x.hub.dead {
		return
	}
	x.peer.deaf, x.once, x.again = true, make(map[simKey]uint64), make(map[simKey]int)
	for range 2 {
		for _, a := range w.agents {
			for _, id := range a.ids {
				if s := a.st.sessions[id]; s != nil && publishError(s) == nil {
					w.publish(a, id, 2)
				}
			}
		}
		w.work(time.Second)
	}
	for range 5 {
		w.work(5 * time.Second)
	}
	x.peer.deaf, x.once, x.again = false, nil, nil
	w.restAgain("L2", "", 2*time.Minute)
}

// stuckStore: L8. The store fails for one session, or does not answer, and all others go on.
func (w *simWorld) stuckStore(id string, hangs bool) {
	w.plain = true
	w.hub.cfg.MaxUncommittedBytes = 1 << 20 // one session may have all of it
	if hangs {
		w.hung = id
	} else {
		w.failing = id
	}
	for _, a := range w.agents { // Resume is the store's as well
		w.breakWire(a.wire)
	}
	w.publishAll()
	w.restAgain("L8", id, 2*time.Second+w.replayPatience())
	w.hung, w.failing = "", ""
	w.restAgain("L8", "", time.Minute+w.replayPatience())
}

// refuseOne: rule 11. An event that the store refuses is a gap as soon as the agent has heard of it.
func (w *simWorld) refuseOne(a *simAgent) {
	id := a.ids[w.choose(len(a.ids))]
	if s := a.st.sessions[id]; s == nil || publishError(s) != nil || w.ahead(s.epoch) {
		return
	}
	w.plain = true
	w.publish(a, id, w.choose(2))
	w.always = 59
	w.publish(a, id, 1)
	w.always = 0
	w.publish(a, id, 2)
	w.restAgain("L1", "", 8*time.Second+w.replayPatience())
}

// work lets everything work for some time.
func (w *simWorld) work(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(min(d, time.Second/4)) {
		w.drain(nil)
	}
	w.drain(nil)
}

// restAgain lets everything come to rest but one session. An invariant is named for what does not.
func (w *simWorld) restAgain(invariant, but string, limit time.Duration) {
	if w.err != nil {
		return
	}
	w.spared = but
	w.restWithin(limit, time.Second, nil)
	if w.spared = ""; w.err != nil {
		w.err = fmt.Errorf("%s: %w", invariant, w.err)
	}
}

// stayAndVanish checks rule 9: a link stays on which there is nothing but signs of life, and
// all end, at both ends, once the network has vanished.
func (w *simWorld) stayAndVanish() {
	for _, x := range w.wires { // a clock may have jumped, and a sign of life been lost
		w.breakWire(x)
	}
	w.reconnect()
	w.drain(nil)
	alive := make(map[*simEnd]bool)
	for _, x := range w.wires {
		if !x.cut && !x.hub.dead && !x.peer.dead {
			alive[&x.hub], alive[&x.peer] = true, true
		}
	}
	for range 6 {
		w.now = w.now.Add(heartbeatEvery)
		w.drain(nil)
	}
	for _, x := range w.wires {
		for _, e := range []*simEnd{&x.hub, &x.peer} {
			if alive[e] && e.dead {
				w.fail("rule 9: %s ends a link whose other end is alive: %v", e.name, e.link.err)
			}
		}
		x.cut = true
		x.hub.inbox, x.peer.inbox = nil, nil
	}
	w.say("the network vanishes")
	for range 4 {
		w.now = w.now.Add(heartbeatEvery)
		w.drain(nil)
	}
	for _, x := range w.wires {
		for _, e := range []*simEnd{&x.hub, &x.peer} {
			if !e.dead {
				w.fail("rule 9: %s does not notice that the network has vanished", e.name)
			}
		}
	}
}

// calm ends everything that goes wrong, except that an agent may be away for good, or answer no
// replays any more.
func (w *simWorld) calm() {
	w.recover()
	w.claims, w.calmed = false, true
	w.hub.cfg.MaxSessions, w.hub.cfg.MaxAgentSessions = 100, 100
	if w.rewindowed { // a window lasts as long as the link
		for _, a := range w.agents {
			w.breakWire(a.wire)
		}
	}
	if w.rarely(4) {
		a := w.agents[w.choose(len(w.agents))]
		w.say("%s is away for good", a.id)
		a.away = true
		w.breakWire(a.wire)
	}
	if w.rarely(4) {
		a := w.agents[w.choose(len(w.agents))]
		w.say("%s answers no replays any more", a.id)
		a.mute = true
	}
}

// publishAll publishes in every session: the agent of one that was taken over then
// learns of it (L6).
func (w *simWorld) publishAll() {
	plain := w.plain
	w.plain = true
	defer func() { w.plain = plain }()
	for _, a := range w.agents {
		for _, id := range a.ids {
			if s := a.st.sessions[id]; s != nil && publishError(s) == nil {
				w.publish(a, id, 1)
				w.spoke[s] = s.acked < s.log.head // not if another session fills the budget
			}
		}
	}
}

// restWithin lets the machines work, one step of time after the other, until they are
// at rest. drop may drop a payload, and the time then counts from there; so it does when a viewer
// watches a session anew, since the agent that has to be asked may be one that answers nothing.
func (w *simWorld) restWithin(limit, step time.Duration, drop func(Payload) bool) {
	for end := w.now.Add(limit); ; w.now = w.now.Add(step) {
		w.reconnect()
		switch w.drain(drop).(type) {
		case nil:
		case *ErrorPayload: // the payload may have ended a watch, which has to be repeated (rule 13)
			end = w.now.Add(limit + heartbeatEvery)
		default:
			end = w.now.Add(limit)
		}
		if at := w.rewatchedAt.Add(limit); at.After(end) {
			end = at
		}
		unrest := w.unrest()
		if w.err != nil || unrest == "" {
			return
		}
		if !w.now.Before(end) {
			w.fail("%s, %v after faults stopped", unrest, limit)
			return
		}
	}
}

// reconnect makes connections for those that know that they have none.
func (w *simWorld) reconnect() {
	for _, a := range w.agents { // an agent that is cut off has to find that out by itself
		if !a.away && (a.wire == nil || a.wire.peer.dead) {
			w.connectAgent(a)
		}
	}
	for _, v := range w.viewers {
		if v.wire == nil || v.wire.peer.dead {
			w.connectViewer(v)
		}
	}
}

// drain moves payloads until nothing moves. It returns the one that it dropped.
func (w *simWorld) drain(drop func(Payload) bool) (dropped Payload) {
	idle := 0
	for range 20_000 {
		moved := false
		for _, x := range w.wires {
			for _, ends := range [][2]*simEnd{{&x.peer, &x.hub}, {&x.hub, &x.peer}} {
				if w.send(x, ends[0], ends[1]) {
					moved = true
					if p := w.dropLast(ends[1], drop); p != nil {
						dropped = p
					}
				}
			}
			moved = w.receive(x, &x.peer) || moved
			moved = w.receive(x, &x.hub) || moved
		}
		moved = w.works(100) || moved
		for _, v := range w.viewers {
			if v.local {
				moved = w.carry(v) || moved
			}
			if q, _ := v.v.front(); q != nil && !v.stuck {
				w.read(v, false)
				moved = true
			}
		}
		w.retryBlocked()
		if idle++; moved {
			idle = 0
			w.checkNowAndThen()
		} else {
			w.check()
		}
		if idle == 2 || w.err != nil { // one link may have woken another that was checked before
			return dropped
		}
	}
	w.fail("L1: payloads go on for ever")
	return dropped
}

// dropLast drops the payload that was just sent, if it is the one.
func (w *simWorld) dropLast(to *simEnd, drop func(Payload) bool) Payload {
	n := len(to.inbox)
	if drop == nil || n == 0 || !drop(to.inbox[n-1]) {
		return nil
	}
	p := to.inbox[n-1]
	w.tell("lost: %s to %s", p, to)
	to.inbox = to.inbox[:n-1]
	return p
}

// retryBlocked has publishers that were woken try again: L4.
func (w *simWorld) retryBlocked() {
	waiting := w.blocked
	w.blocked = nil
	for _, b := range waiting {
		select {
		case <-b.wait:
		case <-b.freed:
		default:
			if w.room(b) { // L4
				w.fail("L4: a publisher waits in %s, where there is room", b.s.id)
			}
			w.blocked = append(w.blocked, b)
			continue
		}
		w.offer(b)
	}
}

// publishError says why nothing can be published in a session, if nothing can.
func publishError(s *Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publishErrorLocked()
}

// room reports whether a blocked publisher need not wait.
func (w *simWorld) room(b *blocked) bool {
	s, cfg, size := b.s, &b.a.st.cfg, b.d.size()
	if publishError(s) != nil {
		return true
	}
	return s.pendingEvents < cfg.MaxPendingEvents && s.pendingBytes+size <= cfg.MaxPendingBytes && s.st.budget.fits(size, 0)
}

// unrest says what is not at rest yet, or nothing.
func (w *simWorld) unrest() string {
	for _, a := range w.agents {
		if l := a.st.link; !a.away && (l == nil || l.id == "" || l.hello.awaiting) { // rule 3
			return fmt.Sprintf("L1: %s is not welcomed", a.id)
		}
		for _, id := range a.ids {
			if s := a.st.sessions[id]; s != nil && !a.away && id != w.spared {
				if unrest := w.sessionUnrest(a, s); unrest != "" {
					return unrest
				}
			}
		}
	}
	for _, v := range w.viewers {
		if l := v.v.link; l == nil || l.id == "" || l.hello.awaiting { // rule 3
			return fmt.Sprintf("L2: %s is not welcomed", v.id)
		}
		if v.v.link.id != v.wire.hub.link.endpoint.(*hubViewerLink).id { // a late welcome: silence ends it
			return fmt.Sprintf("L2: %s is on another link than the hub", v.id)
		}
		for _, id := range simIDs {
			if r := v.seen[id]; r != nil && !v.stuck && id != w.spared {
				if unrest := w.readerUnrest(v, id, r); unrest != "" {
					return unrest
				}
			}
		}
		for id := range v.wire.hub.link.endpoint.(*hubViewerLink).cursors { // rule 13
			if v.seen[id] == nil {
				return fmt.Sprintf("S10: %s: the hub keeps a watch of %s that was stopped", v.id, id)
			}
		}
	}
	return ""
}

// sessionUnrest: L1, L4 and L6.
func (w *simWorld) sessionUnrest(a *simAgent, s *Session) string {
	if w.ahead(s.epoch) {
		return ""
	}
	if s.stopped != nil {
		if s.stopped.Code == CodeAckBeyondSent && !w.lied[simKey{s.id, s.epoch}] {
			return fmt.Sprintf("L1: %s %s stopped: %v", a.id, s.id, s.stopped)
		}
		return ""
	}
	if s.acked != s.log.head { // L1
		return fmt.Sprintf("L1: %s %s: %d of %d are acknowledged", a.id, s.id, s.acked, s.log.head)
	}
	for _, b := range w.blocked { // L4; a stopped session holds what it has until it is renewed
		if b.s == s && !w.anyStopped(a) {
			return fmt.Sprintf("L4: %s %s: a publisher waits", a.id, s.id)
		}
	}
	if h := w.hub.sessions[s.id]; h != nil && h.epoch != "" && w.spoke[s] && s.log.head > 0 && !s.hasEnded && (h.owner != a.id || h.epoch > s.epoch) { // L6
		return fmt.Sprintf("L6: %s %s was not told that %s has it", a.id, s.id, h.owner)
	}
	if s.log.head > 0 && !s.hasEnded && (s.sender == nil || !s.sender.opened) { // rule 5
		return fmt.Sprintf("L1: %s %s is not open", a.id, s.id)
	}
	if h := w.hub.sessions[s.id]; s.hasEnded && h != nil && h.epoch == s.epoch && !h.ended { // rule 16
		return fmt.Sprintf("L2: the hub does not know that %s has ended", s.id)
	}
	return ""
}

// ahead reports whether the hub does not adopt an epoch yet, for it is ahead of its clock.
func (w *simWorld) ahead(id string) bool {
	at, ok := epoch.Time(id)
	return ok && at.After(w.hubNow().Add(epoch.MaxLead))
}

func (w *simWorld) anyStopped(a *simAgent) bool {
	for _, s := range a.st.sessions {
		if s.stopped != nil || w.ahead(s.epoch) {
			return true
		}
	}
	return false
}

// readerUnrest: L2.
func (w *simWorld) readerUnrest(v *simViewer, id string, r *simReader) string {
	if w.forbidden[[2]string{v.id, id}] && !v.local {
		if !r.ended && r.stopped == "" { // rule 13
			return fmt.Sprintf("L2: %s %s: was not told that it may not watch", v.id, id)
		}
		return ""
	}
	s := w.hub.sessions[id]
	if r.ended && v.wire.hub.link.endpoint.(*hubViewerLink).cursors[id] != nil { // rule 16
		return fmt.Sprintf("S10: %s %s: the hub keeps a watch that has ended", v.id, id)
	}
	if s == nil || s.epoch == "" || r.ended || r.stopped != "" {
		return ""
	}
	if r.pos.Epoch == s.epoch && r.pos.Seq > s.log.head && !w.continues(s) { // rule 13: it waits for its agent
		return ""
	}
	invariant := "L2"
	if slices.ContainsFunc(w.agents, func(a *simAgent) bool { return a.id == s.owner && (a.away || a.mute) }) {
		invariant = "L9"
	}
	if want := (Position{s.epoch, s.log.head}); r.pos != want && (s.log.head > 0 || r.pos.Epoch != "" && r.pos.Epoch != s.epoch) {
		return fmt.Sprintf("%s: %s %s: at %v, and the hub is at %v", invariant, v.id, id, r.pos, want)
	}
	if s.ended {
		return fmt.Sprintf("L2: %s %s: was not told of the end", v.id, id)
	}
	return ""
}

// continues reports whether a session's agent continues it.
func (w *simWorld) continues(h *hubSession) bool {
	return slices.ContainsFunc(w.agents, func(a *simAgent) bool {
		s := a.st.sessions[h.id]
		return a.id == h.owner && !a.away && s != nil && s.epoch == h.epoch && s.stopped == nil
	})
}

// loseOne makes something happen, and loses one of its payloads: L5.
func (w *simWorld) loseOne() {
	countdown := 1 + w.choose(8)
	a, v := w.agents[w.choose(len(w.agents))], w.viewers[w.choose(min(3, len(w.viewers)))]
	if a.away {
		return
	}
	for _, x := range w.wires { // what nobody has noticed yet is noticed now
		if x.cut || x.hub.dead {
			w.breakWire(x)
		}
	}
	id := a.ids[w.choose(len(a.ids))]
	switch w.choose(4) {
	case 0:
		w.publish(a, id, 1)
	case 1:
		w.say("%s connects again", a.id)
		w.breakWire(a.wire)
		w.publish(a, id, 2)
	case 2:
		w.say("%s connects again", v.id)
		w.breakWire(v.wire)
		w.publish(a, id, 1)
	case 3:
		if slices.Contains(simIDs, id) && v.seen[id] != nil {
			w.say("%s watches %s from the first event", v.id, id)
			v.v.Unwatch(id)
			delete(v.seen, id)
			w.watch(v, id, nil, false)
		}
	}
	lost := func(p Payload) bool {
		countdown--
		return countdown == 0
	}
	limit := timerFirst + viewerAckDelay + 2*time.Second // the timer begins anew with each ack, and those are held back
	w.restWithin(limit+w.replayPatience(), time.Second, lost)
	if w.err != nil {
		w.err = fmt.Errorf("L5: %w", w.err)
	}
}

// replayPatience is how long viewers may wait for older events that no agent gives.
func (w *simWorld) replayPatience() (d time.Duration) {
	if slices.ContainsFunc(w.agents, func(a *simAgent) bool { return a.away }) {
		d += 2 * w.hub.cfg.ReplayWait // what is sent again is waited for again
	}
	if slices.ContainsFunc(w.agents, func(a *simAgent) bool { return a.mute }) {
		d += w.hub.cfg.ReplayWait + 3*heartbeatEvery // it is asked twice, and each time there has to be a sign of life
	}
	return d
}
