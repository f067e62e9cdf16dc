package gvstream

import "fmt"

// What holds of the machines after every step, whoever their peers are (PROTOCOL.md,
// "Invariants"). Each function returns what is wrong, or nothing.

// logFault: entries tile first to head, and the counts are those of the entries.
func logFault(l *log) string {
	next, events, bytes := l.first(), 0, 0
	for i := range l.ring.n {
		e := l.ring.at(i)
		if from := l.from(i); from != next || e.to < from {
			return fmt.Sprintf("log: %d to %d stands at %d", from, e.to, next)
		}
		next = e.to + 1
		if !e.gap() {
			events++
			bytes += int(e.size)
		}
	}
	if next != l.head+1 || events != l.events || bytes != l.bytes || l.head > MaxSeq {
		return fmt.Sprintf("log: ends at %d of %d, %d of %d events, %d of %d bytes", next-1, l.head, events, l.events, bytes, l.bytes)
	}
	return ""
}

// sessionFault: S4 and S10 of an agent's session.
func sessionFault(s *Session) string {
	if f := logFault(&s.log); f != "" {
		return s.id + ": " + f
	}
	if s.acked > s.maxSent || s.maxSent > s.log.head || s.log.first() > s.acked+1 {
		return fmt.Sprintf("S4: %s: first %d, acked %d, sent at the most %d, head %d", s.id, s.log.first(), s.acked, s.maxSent, s.log.head)
	}
	events, bytes := 0, 0
	for i := range s.log.ring.n {
		if e := s.log.ring.at(i); e.to > s.acked && !e.gap() {
			events++
			bytes += int(e.size)
		}
	}
	if events != s.pendingEvents || bytes != s.pendingBytes {
		return fmt.Sprintf("S10: %s: counts %d events and %d bytes pending, has %d and %d", s.id, s.pendingEvents, s.pendingBytes, events, bytes)
	}
	if cfg := &s.st.cfg; s.log.events > cfg.MaxPendingEvents+cfg.ReplayEvents || len(s.progress) > maxProgress {
		return fmt.Sprintf("S10: %s: holds %d events, progress of %d", s.id, s.log.events, len(s.progress))
	}
	if n := s.log.ring.n; n > maxGaps+4*(s.st.cfg.MaxPendingEvents+s.st.cfg.ReplayEvents)+4 {
		return fmt.Sprintf("S10: %s: %d entries for %d events", s.id, n, s.log.events)
	}
	o := s.on
	if o == nil {
		return ""
	}
	if len(o.replays) > s.st.cfg.MaxReplays {
		return fmt.Sprintf("S10: %s: answers %d replays", s.id, len(o.replays))
	}
	if o.top > s.maxSent || o.sent > s.maxSent || o.opened && o.sent < s.acked {
		return fmt.Sprintf("S4: %s: acked %d, sent %d, on this link %d, ever %d", s.id, s.acked, o.sent, o.top, s.maxSent)
	}
	return ""
}

// streamerFault looks at all sessions of an agent, at what they share and at the link.
func streamerFault(st *Streamer) string {
	used := 0
	for id, s := range st.sessions {
		if f := sessionFault(s); f != "" {
			return f
		}
		if s.id != id || s.gone || s.on != nil && s.on.l != st.link {
			return id + ": gone, or on a link of the past"
		}
		used += s.log.bytes
	}
	if max := st.budget.max; max > 0 && (int64(used) != st.budget.used.Load() || int64(used) > max) {
		return fmt.Sprintf("S10: %d bytes count as %d of %d", used, st.budget.used.Load(), st.budget.max)
	}
	if len(st.sessions) > st.cfg.MaxSessions || st.budget.aged.Len() > len(st.sessions) {
		return fmt.Sprintf("S10: %d sessions, %d of them aged", len(st.sessions), st.budget.aged.Len())
	}
	if st.link != nil {
		return linkFault(st.link.Link)
	}
	return ""
}

// linkFault: what waits to be sent is bounded, and a dead link holds nothing.
func linkFault(l *Link) string {
	if len(l.answers) > 2*maxAnswers || errorsIn(l.answers) > maxAnswers {
		return fmt.Sprintf("S10: %d answers wait", len(l.answers))
	}
	if now, later := l.tasks.Len(); l.err != nil && now+later > 0 {
		return "a dead link holds tasks"
	}
	return ""
}

// readyTasks is how many tasks of a link are to be asked now.
func readyTasks(l *Link) int {
	n, _ := l.tasks.Len()
	return n
}

func errorsIn(ps []Payload) (n int) {
	for _, p := range ps {
		if _, ok := p.(*ErrorPayload); ok {
			n++
		}
	}
	return n
}

// hubFault: S10 of a hub, and who belongs to whom.
func hubFault(h *Hub) string {
	known := 0
	for id, s := range h.sessions {
		if f := hubSessionFault(s); f != "" {
			return id + ": " + f
		}
		if s.epoch != "" {
			known++
		} else if len(s.cursors) == 0 {
			return id + ": kept for nobody"
		}
	}
	if int64(known) != h.known.Load() || known > h.cfg.MaxSessions {
		return fmt.Sprintf("S10: %d sessions count as %d of %d", known, h.known.Load(), h.cfg.MaxSessions)
	}
	for _, ha := range h.agents {
		if f := hubAgentFault(ha); f != "" {
			return ha.agentID + ": " + f
		}
	}
	for _, hv := range h.viewers {
		if f := hubViewerFault(hv); f != "" {
			return hv.viewerID + ": " + f
		}
	}
	return ""
}

func hubSessionFault(s *hubSession) string {
	if f := logFault(&s.log); f != "" {
		return f
	}
	cfg := &s.h.cfg
	if s.log.events > cfg.LogEvents || s.log.bytes > cfg.LogBytes || s.log.ring.n > 2*cfg.LogEvents+1 {
		return fmt.Sprintf("S10: the log holds %d events, %d bytes, %d entries", s.log.events, s.log.bytes, s.log.ring.n)
	}
	if s.gone || s.busy != nil || s.log.head > s.head || s.ended && s.log.head < s.endSeq {
		return fmt.Sprintf("accepted %d of %d, the end is %d, ended %v", s.log.head, s.head, s.endSeq, s.ended)
	}
	if o := s.on; o != nil && (o.ha.sessions[s] != o || o.ha.agentID != s.owner || s.h.agents[s.owner] != o.ha) {
		return "open on a link that is not its owner's"
	}
	if f := fanFault(s); f != "" {
		return f
	}
	requests := 0
	for _, c := range s.cursors {
		if f := cursorFault(c); f != "" {
			return c.hv.viewerID + ": " + f
		}
		if c.fetch != nil {
			requests++
		}
	}
	if n := s.requests(); n != requests || n > cfg.MaxReplays || s.permits.waiting.Len() > len(s.cursors) || s.permits.next() != nil {
		return fmt.Sprintf("S10: %d requests count as %d of %d, %d wait", requests, n, cfg.MaxReplays, s.permits.waiting.Len())
	}
	return ""
}

func cursorFault(c *cursor) string {
	events, bytes := 0, 0
	next := c.seq + 1
	for i := range c.pages {
		p := &c.pages[i]
		if p.first != next {
			return fmt.Sprintf("a page begins at %d, not %d", p.first, next)
		}
		next = p.last + 1
		events += len(p.slots)
		bytes += p.bytes
	}
	if events > c.s.h.sizes.replay || bytes > fetchBytes+2<<20 {
		return fmt.Sprintf("S10: holds %d events, %d bytes of a replay", events, bytes)
	}
	if c.gone || c.hv.cursors[c.s.id] != c {
		return "a cursor of no link"
	}
	return ""
}

func hubAgentFault(ha *hubAgent) string {
	if len(ha.sessions) > ha.h.cfg.MaxAgentSessions {
		return fmt.Sprintf("S10: %d sessions are open", len(ha.sessions))
	}
	for s, o := range ha.sessions {
		if s.on != o {
			return s.id + " is open elsewhere"
		}
	}
	for id, f := range ha.fetches {
		if f.id != id || f.c.fetch != f {
			return "request " + id + " is nobody's"
		}
	}
	return linkFault(ha.Link)
}

func hubViewerFault(hv *hubViewer) string {
	if len(hv.cursors) > hv.h.cfg.MaxWatches || hv.due.Len() > len(hv.cursors) || hv.permits.waiting.Len() > len(hv.cursors) {
		return fmt.Sprintf("S10: %d watches, %d due, %d waiting", len(hv.cursors), hv.due.Len(), hv.permits.waiting.Len())
	}
	requests := 0
	for _, c := range hv.cursors {
		if c.atSession.Queued() || c.fetch != nil {
			requests++
		}
	}
	if n := hv.requests(); requests+len(hv.permits.later) != n || n > hv.h.cfg.MaxViewerReplays {
		return fmt.Sprintf("S10: %d requests count as %d of %d", requests, n, hv.h.cfg.MaxViewerReplays)
	}
	if c := hv.permits.next(); c != nil && !c.Queued() {
		return "a permit is free, and the cursor whose turn it is sleeps"
	}
	return linkFault(hv.Link)
}

// viewerFault: S10 of a viewer. An error needs no room, and there is one a watch at
// the most.
func viewerFault(v *Viewer) string {
	bytes, errs := 0, 0
	for _, q := range v.queue {
		bytes += q.size
		if q.err != nil {
			errs++
		}
		if v.watches[q.w.id] != q.w {
			return q.w.id + ": an item of a watch of the past"
		}
	}
	if n := len(v.queue) - errs; n > v.cfg.BufferItems || errs > len(v.watches) || bytes != v.bytes {
		return fmt.Sprintf("S10: %d items and %d errors wait, %d of %d bytes", n, errs, v.bytes, bytes)
	}
	if len(v.watches) > v.cfg.MaxWatches {
		return fmt.Sprintf("S10: %d watches", len(v.watches))
	}
	if v.link != nil {
		return linkFault(v.link.Link)
	}
	return ""
}

// shown is what a viewer's reader was given of one session.
type shown struct {
	pos   Position
	ended bool
}

// fault takes the next item: S7, S9 and S12.
func (r *shown) fault(it Item) string {
	from := it.seq
	if it.Gap != nil {
		from = it.Gap.From
	}
	was := r.pos
	r.pos = it.Position()
	switch {
	case r.ended:
		return fmt.Sprintf("S12: %s after the end", briefItem(it))
	case it.Reset != nil:
		if it.Reset.Old != was || it.Epoch <= was.Epoch || it.seq != 0 {
			return fmt.Sprintf("S9: %s at %v", briefItem(it), was)
		}
	case was.Epoch != "" && it.Epoch != was.Epoch:
		return fmt.Sprintf("S9: %s at %v without a reset", briefItem(it), was)
	case it.End:
		r.ended = true
		if it.seq != was.Seq {
			return fmt.Sprintf("S12: %s at %v", briefItem(it), was)
		}
	case from != was.Seq+1 || it.seq < from:
		return fmt.Sprintf("S7: %s at %v", briefItem(it), was)
	}
	return ""
}
