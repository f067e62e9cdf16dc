package gvstream

import "time"

// A handshake says hello on a link, again on the timer until it is welcomed, and once
// more when the hub does not know the link (rule 3). A streamerLink and a viewerLink have
// one each, made and started with the link; it lives as long. Its states:
//
//	            awaiting  timer
//	due         yes       stopped   start: from Connect, or on a stale_link
//	sent        yes       running   next handed a hello out; another at each expiry
//	welcomed    no        -         acceptWelcome, until a stale_link
//
// The link's lock protects it.
type handshake struct {
	task
	l    *Link
	role string

	awaiting bool  // a hello waits for its welcome, or to be sent
	timer    retry // runs from the first hello on
}

// start says hello, unless a welcome is awaited already: several stale_links may be on
// their way, and each would ask for a hello of its own.
func (g *handshake) start() {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	if !g.awaiting {
		g.awaiting, g.timer = true, retry{}
		g.l.readyLocked(&g.task)
	}
}

// acceptWelcome reports whether a welcome is one that was asked for, which then counts.
// Before a hello was handed out it can only be an old one that was repeated, which would
// set the link back to an id that the hub may have given up.
func (g *handshake) acceptWelcome() bool {
	g.l.mu.Lock()
	defer g.l.mu.Unlock()
	return g.acceptWelcomeLocked()
}

func (g *handshake) acceptWelcomeLocked() bool {
	ok := g.awaiting && g.timer.running()
	g.awaiting = g.awaiting && !ok
	return ok
}

// next is the task's Source: a hello when it is due, and it stays scheduled until a
// welcome comes.
func (g *handshake) next(now time.Time) Payload {
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

func newHandshake(l *Link, role string) *handshake {
	g := &handshake{l: l, role: role}
	g.task = task{Source: g.next, Control: true}
	return g
}
