package gvstream

import (
	"fmt"
	"sync/atomic"
	"time"
)

// The small world: one agent with one session, a hub and one viewer, with limits of
// a few events, connected and at rest. Every schedule of a few steps is run.

// A smallWorld is one configuration of it.
type smallWorld struct {
	overflow Overflow
	durable  bool
}

var smallWorlds = []smallWorld{{Block, false}, {DropOldest, true}}

// smallSteps are what may happen. A step that can't happen reports false: what
// follows it is a shorter schedule.
var smallSteps = []func(w *simWorld) bool{
	func(w *simWorld) bool { return w.smallPublish() },
	func(w *simWorld) bool { return w.smallMove(w.agents[0].wire, true) },
	func(w *simWorld) bool { return w.smallMove(w.agents[0].wire, false) },
	func(w *simWorld) bool { return w.smallMove(w.viewers[0].wire, false) },
	func(w *simWorld) bool { return w.smallMove(w.viewers[0].wire, true) },
	func(w *simWorld) bool { return w.smallLose(w.agents[0].wire, true) },
	func(w *simWorld) bool { return w.smallLose(w.agents[0].wire, false) },
	func(w *simWorld) bool { return w.smallLose(w.viewers[0].wire, false) },
	func(w *simWorld) bool { // it is on its way when the connection breaks
		x := w.agents[0].wire
		return len(x.hub.inbox) < 2 && w.send(x, &x.peer, &x.hub)
	},
	func(w *simWorld) bool { return w.smallAgain(&w.agents[0].wire.hub) },
	func(w *simWorld) bool { return w.smallAgain(&w.agents[0].wire.peer) },
	func(w *simWorld) bool { return w.smallAgain(&w.viewers[0].wire.peer) },
	func(w *simWorld) bool {
		w.say("the agent's connection breaks")
		w.breakWire(w.agents[0].wire)
		return w.smallConnect()
	},
	func(w *simWorld) bool {
		w.say("the viewer's connection breaks")
		w.breakWire(w.viewers[0].wire)
		return w.smallConnect()
	},
	func(w *simWorld) bool {
		w.say("the agent restarts")
		w.now = w.now.Add(time.Millisecond)
		w.startAgent(w.agents[0])
		w.smallConnect()
		return w.smallPublish()
	},
	func(w *simWorld) bool {
		w.say("the hub restarts")
		w.losable, w.backward = true, true
		w.breakWire(w.agents[0].wire)
		w.breakWire(w.viewers[0].wire)
		w.startHub()
		return w.smallConnect()
	},
	func(w *simWorld) bool {
		w.say("16 s pass")
		w.now = w.now.Add(16 * time.Second)
		return true
	},
	func(w *simWorld) bool {
		w.say("the store goes down")
		was := w.commitDown
		w.commitDown = true
		return !was
	},
}

// beginSmall has everybody start and come to rest.
func (w *simWorld) beginSmall(c smallWorld) {
	w.plain = true
	w.agentCfg = StreamerConfig{Overflow: c.overflow, MaxPendingEvents: 2, ReplayEvents: 2}
	w.sizes = sizes{batch: 2, page: 1, replay: 2, fan: 2}
	w.hubCfg = HubConfig{Commit: w.commit, LogEvents: 1, Window: 2, ReplayWait: time.Second}
	if w.durable = c.durable; c.durable {
		w.hubCfg.Resume = w.resume
	}
	w.viewerCfg = ViewerConfig{BufferItems: 4}
	w.startHub()
	a, v := &simAgent{id: "agent0", ids: simIDs[:1]}, &simViewer{id: "viewer0"}
	w.agents, w.viewers = []*simAgent{a}, []*simViewer{v}
	w.startAgent(a)
	v.v, v.seen = NewViewer(&w.viewerCfg), make(map[string]*simReader)
	w.watch(v, simIDs[0], nil, false)
	w.smallConnect()
	for range 2 {
		w.smallPublish()
		w.drain(nil)
		w.now = w.now.Add(time.Second)
		w.drain(nil)
	}
	w.smallPublish()
}

func (w *simWorld) smallPublish() bool {
	before := w.serial
	w.publish(w.agents[0], simIDs[0], 1)
	s := w.agents[0].st.sessions[simIDs[0]]
	return s != nil && w.serial > before && len(w.blocked) == 0
}

// smallConnect connects whoever is not, and has the hub say welcome.
func (w *simWorld) smallConnect() bool {
	if a := w.agents[0]; broken(a.wire) {
		w.connectAgent(a)
		w.greet(a.wire)
	}
	if v := w.viewers[0]; broken(v.wire) {
		w.connectViewer(v)
		w.greet(v.wire)
	}
	return true
}

func (w *simWorld) greet(x *simWire) {
	w.send(x, &x.peer, &x.hub)
	w.receive(x, &x.hub)
	w.send(x, &x.hub, &x.peer)
	w.receive(x, &x.peer)
}

// smallMove moves one payload over a wire, up to the hub or down from it.
func (w *simWorld) smallMove(x *simWire, up bool) bool {
	from, to := &x.hub, &x.peer
	if up {
		from, to = to, from
	}
	if len(to.inbox) == 0 && !w.send(x, from, to) {
		return false
	}
	w.receive(x, to)
	w.read(w.viewers[0], false)
	return true
}

// smallLose has one payload be sent, and get lost.
func (w *simWorld) smallLose(x *simWire, up bool) bool {
	from, to := &x.hub, &x.peer
	if up {
		from, to = to, from
	}
	n := len(to.inbox)
	if !w.send(x, from, to) {
		return false
	}
	if len(to.inbox) > n {
		w.tell("lost: %s to %s", to.inbox[n], to)
		to.inbox = to.inbox[:n]
	}
	return true
}

// smallAgain has the payload that came last come once more, maybe on a later
// connection.
func (w *simWorld) smallAgain(to *simEnd) bool {
	old := w.ghosts[to.name]
	if len(old) == 0 || to.dead {
		return false
	}
	w.tell("again: %s to %s", old[len(old)-1], to)
	for _, x := range w.wires {
		if to == &x.peer || to == &x.hub {
			w.handle(x, to, old[len(old)-1])
		}
	}
	return true
}

// runSmall runs one schedule of the small world. It reports false for one that has
// a step which can't happen.
func runSmall(src source, c smallWorld, verbose bool) (w *simWorld, whole bool) {
	w = emptyWorld(src)
	w.verbose = verbose
	defer w.recoverPanic()
	w.beginSmall(c)
	for src.next() {
		w.steps++
		if !smallSteps[w.choose(len(smallSteps))](w) {
			return w, w.err != nil
		}
		w.retryBlocked()
		if w.check(); w.err != nil {
			return w, true
		}
	}
	w.settle()
	return w, true
}

// everySchedule runs all schedules up to a depth that begin with one step.
func everySchedule(world, first, depth int, count *atomic.Uint64) error {
	for d := 1; d <= depth; d++ {
		e := &enumerator{depth: d, path: []int{first}, of: []int{len(smallSteps)}, prefix: 1}
		for more := true; more; more = e.advance() {
			w, whole := runSmall(e, smallWorlds[world], false)
			if w.err != nil {
				e.at, e.steps = 0, 0
				w, _ = runSmall(e, smallWorlds[world], true)
				return fmt.Errorf("%w\n%s", w.err, w.story())
			}
			if whole {
				count.Add(1)
			}
		}
	}
	return nil
}
