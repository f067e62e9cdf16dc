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
func (h *handshake) start() {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	if !h.awaiting {
		h.awaiting, h.timer = true, retry{}
		h.l.readyLocked(&h.task)
	}
}

// acceptWelcome reports whether a welcome is one that was asked for, which then counts.
// Before a hello was handed out it can only be an old one that was repeated, which would
// set the link back to an id that the hub may have given up.
func (h *handshake) acceptWelcome() bool {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	return h.acceptWelcomeLocked()
}

func (h *handshake) acceptWelcomeLocked() bool {
	ok := h.awaiting && h.timer.running()
	h.awaiting = h.awaiting && !ok
	return ok
}

// next is the task's Source: a hello when it is due, and it stays scheduled until a
// welcome comes.
func (h *handshake) next(now time.Time) Payload {
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	switch {
	case !h.awaiting:
		return nil
	case !h.timer.running():
		h.timer.start(now)
	case !h.timer.expired(now):
		h.l.scheduleLocked(&h.task, h.timer.at)
		return nil
	default:
		h.timer.again(now)
	}
	return &HelloPayload{V: version, Role: h.role}
}

func newHandshake(l *Link, role string) *handshake {
	h := &handshake{l: l, role: role}
	h.task = task{Source: h.next, Control: true}
	return h
}
