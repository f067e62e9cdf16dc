package gvstream

import "time"

// A greeter says hello on a link, again on the timer until it is welcomed, and once
// more when the hub does not know the link (rule 3). The lock of the link's machine
// protects it.
type greeter struct {
	task
	l    *Link
	role string

	awaiting bool  // a hello waits for its welcome
	timer    retry // runs from the first hello on
}

// start says hello, unless a welcome is awaited already.
func (g *greeter) start() {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if !g.awaiting {
		g.awaiting, g.timer = true, retry{}
		g.l.readyLocked(&g.task)
	}
}

// welcomed reports whether a welcome is one that was asked for.
func (g *greeter) welcomed() bool {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	return g.welcomedLocked()
}

func (g *greeter) welcomedLocked() bool {
	ok := g.awaiting && g.timer.running()
	g.awaiting = g.awaiting && !ok
	return ok
}

func (g *greeter) take(now time.Time) Payload {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	switch {
	case !g.awaiting:
		return nil
	case !g.timer.running():
		g.timer.start(now)
	case !g.timer.expired(now):
		g.l.scheduleLocked(&g.task, g.timer.at)
		return nil
	default:
		g.timer.again(now)
	}
	return &HelloPayload{V: version, Role: g.role}
}

func newGreeter(l *Link, role string) *greeter {
	g := &greeter{l: l, role: role}
	g.task = task{Source: g.take, Control: true}
	return g
}
