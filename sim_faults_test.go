package gvstream

import (
	"slices"
	"time"
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
		e.inbox = nil
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

// forge turns an ack into a viewer's progress, and into an ack of what was never sent.
func (w *simWorld) forge(to *simEnd, i int) {
	ack, ok := to.inbox[i].(*AckBatchPayload)
	al, agent := to.link.m.(*streamerLink)
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
}

// cutSome breaks a connection: noticed by both sides, by one, or by none.
func (w *simWorld) cutSome() {
	x, from, to := w.someEnd(w.wires)
	if x == nil {
		return
	}
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
	w.commitDown, w.halfCommit, w.forgetIn = false, false, ""
	w.hub.cfg.Window = w.hubCfg.Window
	for _, v := range w.viewers {
		v.stuck, v.away = false, false
	}
	for _, a := range w.agents {
		a.away, a.wall = false, 0
	}
}

// upset makes rare things happen to agents, viewers and the hub.
func (w *simWorld) upset() {
	switch w.choose(3) {
	case 0:
		w.upsetAgent(w.agents[w.choose(len(w.agents))])
	case 1:
		w.upsetViewer(w.viewers[w.choose(len(w.viewers))])
	case 2:
		w.upsetHub()
	}
}

func (w *simWorld) upsetAgent(a *simAgent) {
	id := a.ids[w.choose(len(a.ids))]
	switch w.choose(10) {
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
	switch w.choose(9) {
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
