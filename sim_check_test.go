package gvstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/vibetools/gvstream/internal/epoch"
)

// fail notes the first violation: the invariant's name, a colon, what is wrong.
func (w *simWorld) fail(format string, args ...any) {
	if w.err == nil {
		w.err = errorf(format, args...)
		w.say("VIOLATION: %v", w.err)
		w.verbose = false // and that is where the story ends
	}
}

// checkNowAndThen is check in one step of four: what is wrong with a machine's state mostly stays
// wrong, and to look at it after each step takes as long as all else.
func (w *simWorld) checkNowAndThen() {
	if w.checks++; w.checks%4 == 0 {
		w.check()
	}
}

// check looks at the state of every machine.
func (w *simWorld) check() {
	if w.steps%64 == 0 { // bytes must not change in a log that seems the same
		clear(w.looked)
	}
	for _, a := range w.agents {
		used := 0
		for _, id := range a.ids {
			if s := a.st.sessions[id]; s != nil {
				w.checkSession(a, s)
				used += s.log.bytes
			}
		}
		if limit := a.st.cfg.MaxTotalBytes; limit > 0 && (int(a.st.budget.used.Load()) != used || used > limit) {
			w.fail("S10: %s counts %d bytes, and holds %d of %d", a.id, a.st.budget.used.Load(), used, limit)
		}
		if len(a.st.sessions) > a.st.cfg.MaxSessions {
			w.fail("S10: %s has %d sessions", a.id, len(a.st.sessions))
		}
	}
	w.checkHub()
	for _, v := range w.viewers {
		w.checkViewer(v)
	}
	for _, x := range w.wires {
		if n := len(x.hub.link.replies) + len(x.peer.link.replies); n > 4*maxReplies {
			w.fail("S10: %d answers wait", n)
		}
	}
}

// noteAcked notes how far a session is acknowledged, and whether that has gone back.
func (w *simWorld) noteAcked(s *Session) {
	if w.acked[s] > s.acked {
		w.lowered = true
	}
	w.acked[s] = s.acked
}

func (w *simWorld) checkSession(a *simAgent, s *Session) {
	cfg := &a.st.cfg
	k := simKey{s.id, s.epoch}
	if s.acked > 0 && s.acked > w.truthOf(k).accepted { // S3: nothing is freed before some hub has it
		w.fail("S3: %s %s: %d are acknowledged, which no hub accepted", a.id, s.id, s.acked)
	}
	if s.acked > s.log.head || s.maxSentInEpoch > s.log.head || s.log.first() > s.acked+1 { // S4
		w.fail("S4: %s %s: first %d, acked %d, sent %d, head %d", a.id, s.id, s.log.first(), s.acked, s.maxSentInEpoch, s.log.head)
	}
	if w.lookedAt(&s.log, s.acked) {
		events, bytes := w.checkLog(k, &s.log, s.acked)
		if events != s.pendingEvents || bytes != s.pendingBytes {
			w.fail("S10: %s %s: counts %d events and %d bytes pending, has %d and %d", a.id, s.id, s.pendingEvents, s.pendingBytes, events, bytes)
		}
	}
	w.noteAcked(s)
	switch { // S10
	case !w.lowered && (s.pendingEvents > cfg.MaxPendingEvents || s.pendingBytes > cfg.MaxPendingBytes):
		w.fail("S10: %s %s: %d events and %d bytes pending", a.id, s.id, s.pendingEvents, s.pendingBytes)
	case s.log.events > max(cfg.ReplayEvents, s.pendingEvents) || s.log.bytes > max(cfg.ReplayBytes, s.pendingBytes):
		if s.log.first() <= s.acked { // pending events may exceed what is kept for replay
			w.fail("S10: %s %s holds %d events, %d bytes", a.id, s.id, s.log.events, s.log.bytes)
		}
	}
	o := s.sender
	switch {
	case o == nil:
		return
	case len(o.replays) > cfg.MaxReplays:
		w.fail("S10: %s %s: %d replays", a.id, s.id, len(o.replays))
	case o.maxSentOnLink > s.maxSentInEpoch || o.sent > s.log.head: // S4
		w.fail("S4: %s %s: top %d, sent %d, head %d", a.id, s.id, o.maxSentOnLink, o.sent, s.log.head)
	case !o.opened:
		delete(w.acks, o)
	case o.sent < s.acked: // S4
		w.fail("S4: %s %s: acked %d, sent %d, head %d", a.id, s.id, s.acked, o.sent, s.log.head)
	case s.acked < w.acks[o]: // S5
		w.fail("S5: %s %s: the ack went back from %d to %d", a.id, s.id, w.acks[o], s.acked)
	default:
		w.acks[o] = s.acked
	}
}

// A logLook is what a log looked like when it was last checked entry by entry.
type logLook struct {
	first, head, acked uint64
	n, events, bytes   int
}

// lookedAt reports whether a log has changed since it was last checked.
func (w *simWorld) lookedAt(l *log, acked uint64) bool {
	now := logLook{l.first(), l.head, acked, l.ring.n, l.events, l.bytes}
	if w.looked[l] == now {
		return false
	}
	w.looked[l] = now
	return true
}

// checkLog checks that a log's entries tile it and are what was published (S2), and
// counts the events after a number.
func (w *simWorld) checkLog(k simKey, l *log, after uint64) (pending, pendingBytes int) {
	t := w.truthOf(k)
	next, events, bytes := l.first(), 0, 0
	for i := range l.ring.n {
		e := l.ring.at(i)
		if from := l.from(i); from != next || e.to < from {
			w.fail("S1: %v: a log has %d to %d at %d", k, from, e.to, next)
		}
		next = e.to + 1
		if e.gap() {
			continue
		}
		events++
		bytes += int(e.size)
		if e.to > after {
			pending++
			pendingBytes += int(e.size)
		}
		if e.to > uint64(len(t.data)) || string(e.value()) != t.data[e.to-1] {
			w.fail("S2: %v: a log has another event %d: %s", k, e.to, e.bytes())
		}
	}
	if next != l.head+1 || events != l.events || bytes != l.bytes {
		w.fail("S1: %v: a log ends at %d of %d, %d of %d events, %d of %d bytes", k, next-1, l.head, events, l.events, bytes, l.bytes)
	}
	return pending, pendingBytes
}

// checkHub: S1 and S10.
func (w *simWorld) checkHub() {
	w.forgetPositions()
	known, bytes := 0, 0
	for _, id := range simIDs {
		s := w.hub.sessions[id]
		if s == nil {
			continue
		}
		w.checkRequests(s)
		if s.receiver != nil && w.hubCfg.AuthorizeAgent != nil && !w.allowed[[2]string{s.receiver.ha.agentID, id}] { // rule 4
			w.fail("S6: %s has %s open, and nobody was asked", s.receiver.ha.agentID, id)
		}
		if bytes += s.log.bytes; s.prev != nil {
			bytes += s.prev.log.bytes
		}
		if (s.ended || s.forgotten) != s.overPlace.Queued() || s.counted && (s.ended || s.forgotten) {
			w.fail("S10: %s: ended %v, forgotten %v, makes room %v, counts %v", id, s.ended, s.forgotten, s.overPlace.Queued(), s.counted)
		}
		if f := cohortFault(s); f != "" {
			w.fail("S7: %s: %s", id, f)
		}
		if s.epoch == "" {
			if len(s.cursors) == 0 {
				w.fail("S10: the hub holds %s for nobody", id)
			}
			if s.log.head > 0 || len(s.pages) > 0 {
				w.fail("S1: the hub holds events of %s, of which it knows no epoch", id)
			}
			continue
		}
		if s.ended && !w.toldEnd[simKey{id, s.epoch}] {
			w.fail("S12: %s has ended, and the store was not told", id)
		}
		known++
		k := simKey{id, s.epoch}
		if at := w.position[k]; s.log.head != at { // S1
			w.fail("S1: %v: the hub is at %d, and %d was committed", k, s.log.head, at)
		}
		if w.lookedAt(&s.log, 0) {
			w.checkLog(k, &s.log, 0)
		}
		w.checkHubLog(id, &s.log)
		if p := s.prev; p != nil {
			w.checkHubLog(id, &p.log)
			if w.lookedAt(&p.log, 0) {
				w.checkLog(simKey{id, p.epoch}, &p.log, 0)
			}
			if left := p.until.Sub(w.hubNow()); p.epoch >= s.epoch || left > pastEpochTTL {
				w.fail("S10: the hub keeps epoch %s of %s beside %s for %v", p.epoch, id, s.epoch, left)
			}
		}
	}
	if used := int(w.hub.total.used.Load()); used != bytes || used > w.hub.cfg.MaxTotalBytes {
		w.fail("S10: the hub's logs have %d bytes, and count as %d of %d", bytes, used, w.hub.cfg.MaxTotalBytes)
	}
	if n := int(w.hub.knownSessions.Load()); n != known || known > w.hub.cfg.MaxSessions {
		w.fail("S10: the hub counts %d sessions, and knows %d", n, known)
	}
	for _, a := range w.agents {
		if n := w.waiting(a.id); w.hub.uncommitted[a.id] != n || n > max(w.hub.cfg.MaxUncommittedBytes, w.largestIn) {
			w.fail("S10: %d bytes of %s wait for the store, and count as %d", n, a.id, w.hub.uncommitted[a.id])
		}
		if ha, _ := w.hub.agent(a.id); ha != nil && livingSessions(ha) > w.hub.cfg.MaxAgentSessions {
			w.fail("S10: %s has %d sessions open", a.id, len(ha.sessions))
		}
	}
}

// waiting is what an agent has sent and the store has not got.
func (w *simWorld) waiting(agentID string) (bytes int) {
	for _, s := range w.hub.sessions {
		if s.owner == agentID {
			bytes += s.bytes
		}
	}
	if ha, _ := w.hub.agent(agentID); ha != nil {
		for _, o := range ha.openings {
			bytes += o.bytes
		}
	}
	return bytes
}

// noteSize notes what a batch may count at most while it waits for the store: one fits always.
func (w *simWorld) noteSize(p *EventBatchPayload) {
	size := gapBytes * (len(p.Gaps) + len(p.Events))
	for _, ev := range p.Events {
		size += len(ev.Data) + 150
	}
	w.largestIn = max(w.largestIn, size)
}

// checkHubLog: S10. Gaps lie between the events, before and after them.
func (w *simWorld) checkHubLog(id string, l *log) {
	if l.events > w.hub.cfg.LogEvents || l.bytes > w.hub.cfg.LogBytes || l.ring.n > 2*l.events+maxGaps+1 {
		w.fail("S10: the hub holds %d entries, %d events, %d bytes of %s", l.ring.n, l.events, l.bytes, id)
	}
}

// noteStarts notes where epochs begin of which nothing has been committed yet.
func (w *simWorld) noteStarts() {
	for _, id := range simIDs {
		s := w.hub.sessions[id]
		if s == nil || s.epoch == "" {
			continue
		}
		k := simKey{id, s.epoch}
		if _, ok := w.position[k]; !ok {
			w.checkStart(k, s.log.head)
			w.position[k] = s.log.head
		}
	}
}

// checkStart: S1, where an epoch begins that is new to a hub.
func (w *simWorld) checkStart(k simKey, start uint64) {
	t := w.truthOf(k)
	switch {
	case w.durable && start != w.store[k]:
		w.fail("S1: %v: the hub starts at %d, and its store is at %d", k, start, w.store[k])
	case !w.durable && !starts(w.handling, k, start):
		w.fail("S1: %v: the hub starts at %d after %s", k, start, brief(w.handling))
	}
	t.accepted = max(t.accepted, start)
	if at, ok := epoch.Time(k.epoch); ok && at.After(w.hubNow().Add(epoch.MaxLead)) { // rule 2
		w.fail("S6: %v: an epoch of %v was adopted at %v", k, at, w.hubNow())
	}
}

// starts reports whether a payload begins an epoch at a number: a status that says
// so, or a batch from 1.
func starts(p Payload, k simKey, start uint64) bool {
	switch p := p.(type) {
	case *StatusPayload:
		return slices.ContainsFunc(p.Sessions, func(e SessionStatus) bool {
			return e.SessionID == k.session && e.Epoch == k.epoch && e.AckSeq == start
		})
	case *EventBatchPayload:
		return p.FirstSeq == 1 && start == 0
	}
	return false
}

// forgetPositions forgets how far the hub was in sessions that it has forgotten.
func (w *simWorld) forgetPositions() {
	for k := range w.position {
		switch s := w.hub.sessions[k.session]; {
		case s == nil || s.epoch == "":
			w.losable, w.backward = true, true
			delete(w.position, k)
		case s.epoch != k.epoch:
			delete(w.position, k)
		}
	}
}

// checkRequests: S10 for the replays of a session.
func (w *simWorld) checkRequests(s *hubSession) {
	for _, f := range s.fetches {
		if at := f.log.head; at > s.log.head { // S8
			w.fail("S8: viewers are about to get %d of %s, of which the hub accepted %d", at, s.id, s.log.head)
		}
		if n := f.log.events; n > w.sizes.replay {
			w.fail("S10: a request brought %d events", n)
		}
	}
	for i, f := range s.fetches { // L10: what several need is asked for once
		for _, g := range s.fetches[:i] {
			if f.open && g.open && f.log.first() <= g.until && g.log.first() <= f.until {
				w.fail("L10: %s is asked for %d to %d and for %d to %d", s.id, g.log.first(), g.until, f.log.first(), f.until)
			}
		}
	}
	if n := s.requests(); n > w.hub.cfg.MaxReplays {
		w.fail("S10: %d requests of %s are open", n, s.id)
	}
}

func (w *simWorld) checkViewer(v *simViewer) {
	if f := queueFault(v.v, w.largest, w.largestBytes); f != "" {
		w.fail("%s: %s", f, v.id)
	}
	for _, x := range v.v.watches { // L2: a hub that knows of no room sends nothing
		if sub := x.subscription; sub != nil && !sub.acks.now && (2*sub.acks.granted >= max(2, v.v.cfg.Window) || 2*sub.acks.grantedBytes >= max(2, v.v.cfg.WindowBytes)) {
			w.fail("L2: %s %s: has made room for half a window, and does not say so", v.id, x.id)
		}
	}
	if n := len(v.v.watches); n > v.v.cfg.MaxWatches { // S10
		w.fail("S10: %s watches %d sessions", v.id, n)
	}
	for _, id := range simIDs {
		x := v.v.watches[id]
		if x == nil || x.received == 0 {
			continue
		}
		if t := w.truthOf(simKey{id, x.epoch}); x.received > t.accepted { // S8
			w.fail("S8: %s %s: received %d, of which hubs accepted %d", v.id, id, x.received, t.accepted)
		}
	}
	if v.wire == nil || v.wire.hub.dead {
		return
	}
	hv := v.wire.hub.link.endpoint.(*hubViewerLink)
	if len(hv.cursors) > w.hub.cfg.MaxWatches { // S10
		w.fail("S10: %s has %d watches", v.id, len(hv.cursors))
	}
}

// checkCommit: S1, S2, S3 and S12 where they begin, before anything is stored.
func (w *simWorld) checkCommit(k simKey, items []Item) {
	t, at := w.truthOf(k), w.hub.lookup(k.session).log.head
	if was, ok := w.position[k]; !ok {
		w.checkStart(k, at)
		w.position[k] = at
	} else if was != at {
		w.fail("S1: %v: the hub is at %d, and %d was committed", k, at, was)
	}
	for i, it := range items {
		if it.End { // no number of its own
			if it.Seq != at || i < len(items)-1 { // S12
				w.fail("S12: %v: the end is committed at %d, after %d", k, it.Seq, at)
			}
			continue
		}
		from := it.Seq
		if it.Gap != nil {
			from = it.Gap.From
			w.checkLoss(k, it.Gap)
		}
		if from != at+1 { // S1
			w.fail("S1: %v: %d is committed after %d", k, from, at)
		}
		at = it.Seq
		w.checkContent(k, it)
		if t.end != 0 && at > t.end { // S12
			w.fail("S12: %v: %d is committed after the end, %d", k, at, t.end)
		}
	}
}

// acceptedTo notes what the hub accepts.
func (w *simWorld) acceptedTo(k simKey, items []Item) {
	t := w.truthOf(k)
	for _, it := range items {
		t.accepted = max(t.accepted, it.Seq)
		if it.End || it.Event != nil && it.Event.End {
			t.end, w.toldEnd[k] = it.Seq, true
		}
	}
}

// checkLoss: S3. What the hub gets as a gap must have been lost for a reason.
func (w *simWorld) checkLoss(k simKey, g *Gap) {
	t := w.truthOf(k)
	for _, a := range w.agents {
		if s := a.st.sessions[k.session]; s != nil && s.epoch == k.epoch && s.acked < g.From && s.log.first() <= g.From && !s.log.ring.at(s.log.find(g.From)).gap() {
			w.fail("S3: %v: %d is lost at the hub, and %s has it", k, g.From, a.id)
		}
	}
	switch {
	case g.Reason == ReasonDropped && w.agentCfg.Overflow == DropOldest:
	case g.Reason == ReasonEvicted && w.losable && g.To <= t.accepted: // a hub had it, and lost it
	case g.Reason == ReasonRejected && g.From == g.To && w.refusable(t, g.To):
	case g.Reason == ReasonRejected && g.From < g.To && w.refusable(t, g.From) && w.refusable(t, g.To):
	default:
		w.fail("S3: %v: %d to %d were lost for no reason: %s", k, g.From, g.To, g.Reason)
	}
}

// refusable reports whether a hub may have refused an event, or a transport.
func (w *simWorld) refusable(t *simTruth, seq uint64) bool {
	if seq > uint64(len(t.data)) {
		return false
	}
	data := t.data[seq-1]
	return poisoned(data) || len(data)+120 > w.hub.cfg.MaxEventBytes || w.carries > 0 && len(data) > w.carries
}

// checkContent: S2.
func (w *simWorld) checkContent(k simKey, it Item) {
	t := w.truthOf(k)
	switch {
	case it.Seq > uint64(len(t.data)):
		w.fail("S2: %v: %d was never published", k, it.Seq)
	case it.Event != nil && (string(it.Event.Data) != t.data[it.Seq-1] || it.Event.Type != "out"):
		w.fail("S2: %v: %d is %s, and was published as %s", k, it.Seq, it.Event.Data, t.data[it.Seq-1])
	}
}

// checkSent looks at a payload that a link sends.
func (w *simWorld) checkSent(x *simWire, from *simEnd, p Payload) {
	switch p := p.(type) {
	case *AckBatchPayload:
		w.checkNacks(from, p)
	case *WatchPayload:
		delete(w.nacks, simAsker{from.link, p.SessionID})
		if !p.Stop { // but anew after each welcome of a link that is another to it
			vl := from.link.endpoint.(*viewerLink)
			w.checkOnce(from, p, fmt.Sprint("watch ", vl.id, vl.v.welcomes), p.SessionID)
		}
	case *ReplayRequestPayload:
		w.checkOnce(from, p, "replay", p.RequestID)
	case *ErrorPayload: // the session is closed by it, or a batch was dropped for it
		delete(w.nacks, simAsker{from.link, p.SessionID})
	}
	if x.once != nil {
		w.checkSentOnce(x, from, p)
	}
	switch m := from.link.endpoint.(type) {
	case *streamerLink:
		switch p := p.(type) {
		case *EventBatchPayload:
			w.noteSize(p)
			w.checkBatch(m, p)
		case *ReplayBatchPayload:
			w.checkAnswer(m, p)
		}
	case *hubViewerLink:
		if p, ok := p.(*EventBatchPayload); ok {
			w.checkServed(x, p)
			w.checkCredit(m, p)
			size := 0
			for i := range p.Events {
				size += itemBytes + len(p.Events[i].Type) + len(p.Events[i].Data)
			}
			w.largest = max(w.largest, len(p.Events)+len(p.Gaps))
			w.largestBytes = max(w.largestBytes, size+len(p.Gaps)*itemBytes)
		}
	}
}

// checkOnce: L10. Some things a link says at most once a second.
func (w *simWorld) checkOnce(from *simEnd, p Payload, what, about string) {
	k, now := simAsk{from.link, what, about}, w.at(from)
	if was, ok := w.asked[k]; ok && now.Sub(was) < time.Second {
		w.fail("L10: %s says twice within a second: %s", from.name, brief(p))
	}
	w.asked[k] = now
}

// checkSentOnce: rule 9. Where nothing is lost, nothing is sent twice, however slow it is.
func (w *simWorld) checkSentOnce(x *simWire, from *simEnd, p Payload) {
	b, ok := p.(*EventBatchPayload)
	if !ok {
		return
	}
	k := simKey{b.SessionID, b.Epoch}
	top, ok := x.once[k]
	x.once[k] = max(top, b.LastSeq)
	switch {
	case !ok || b.FirstSeq > top || x.again != nil && len(b.Events) == 0: // gaps take nothing of a window
	case x.again == nil:
		w.fail("rule 9: %s sends again what was not lost: %s", from.name, brief(p))
	default:
		if x.again[k]++; x.again[k] > 1 { // the timer expires once
			w.fail("S15: %s sends again more than one batch, and hears nothing: %s", from.name, brief(p))
		}
	}
}

// livingHub is the hub's link on a wire, if it is alive.
func livingHub(x *simWire) *Link {
	if x == nil || x.hub.link.failure() != nil {
		return nil
	}
	return x.hub.link
}

// checkSuperseded: rule 3. The last payload of a link of the hub's that a newer one took over from
// says so.
func (w *simWorld) checkSuperseded(l *Link) {
	if l == nil || !errors.Is(l.failure(), ErrSuperseded) {
		return
	}
	if n := len(l.replies); n == 0 || !isSuperseded(l.replies[n-1]) {
		w.fail("rule 3: an older link does not say that it is superseded")
	}
}

func isSuperseded(p Payload) bool {
	e, ok := p.(*ErrorPayload)
	return ok && e.Code == CodeSuperseded
}

// checkNacks: L10. A receiver asks for the same number once a second, except that one which had no
// room asks again when it has.
func (w *simWorld) checkNacks(from *simEnd, p *AckBatchPayload) {
	for _, a := range append([]SessionAck{p.first()}, p.Acks...) {
		k := simAsker{from.link, a.SessionID}
		was, asked := w.nacks[k]
		if now := w.at(from); a.Nack {
			if asked && !was.full && was.by == w.receiverOf(from, a.SessionID) && was.epoch == a.Epoch && was.upTo == a.UpToSeq && now.Sub(was.at) < nackEvery {
				w.fail("L10: %s asks twice within a second: %s", from.name, brief(p))
			}
			w.nacks[k] = simNack{w.receiverOf(from, a.SessionID), a.Epoch, a.UpToSeq, now, a.Full}
		}
	}
}

// receiverOf is a hub's receiver of an agent's session: the hub may have forgotten the session, and
// opened it again.
func (w *simWorld) receiverOf(from *simEnd, session string) *receiver {
	if _, ok := from.link.endpoint.(*hubAgentLink); !ok {
		return nil
	}
	if s := w.hub.sessions[session]; s != nil {
		return s.receiver
	}
	return nil
}

// checkCredit: S15 of a viewer's link, for a batch that is sent. What is in flight is what was
// sent of the session beyond the last ack, once however often; one event may go alone, whatever
// it is.
func (w *simWorld) checkCredit(hv *hubViewerLink, p *EventBatchPayload) {
	c := hv.cursors[p.SessionID]
	if c == nil || c.epoch != p.Epoch || c.sent != p.LastSeq { // the watch has ended, or moved
		return
	}
	sent := w.sentTo[hv]
	if sent == nil {
		sent = make(map[simKey]map[uint64]int)
		w.sentTo[hv] = sent
	}
	k := simKey{p.SessionID, p.Epoch}
	if sent[k] == nil {
		sent[k] = make(map[uint64]int)
	}
	maps.DeleteFunc(sent[k], func(seq uint64, _ int) bool { return seq >= p.FirstSeq }) // it went back
	for i := range p.Events {
		line, err := json.Marshal(p.Events[i])
		if err != nil {
			w.fail("wire: %v", err)
		}
		sent[k][p.Events[i].Seq] = len(line)
	}
	events, size := 0, 0
	for seq, n := range sent[k] {
		if seq <= c.acked {
			delete(sent[k], seq)
		} else if seq <= c.sent {
			events++
			size += n
		}
	}
	if p.LastSeq <= w.chosen[c] {
		delete(w.chosen, c)
		return
	}
	if len(p.Events) > 0 && events > 1 && (c.window.full || events > c.window.events || size > c.window.bytes) {
		w.fail("S15: %s makes %d events and %d bytes beyond ack %d, the window is %+v", brief(p), events, size, c.acked, c.window)
	}
	if c.window.full {
		w.fail("S15: %s goes to a viewer that has no room", brief(p))
	}
}

// checkBatch: rules 5 and 7.
func (w *simWorld) checkBatch(al *streamerLink, p *EventBatchPayload) {
	s := al.st.sessions[p.SessionID]
	if s == nil || s.sender == nil || s.sender.link != al {
		w.fail("S6: %s from a link that it is not on", brief(p))
		return
	}
	if !s.sender.maySend() { // rule 5
		w.fail("rule 5: %s before the hub's ack", brief(p))
	}
	if f := windowFault(s, p); f != "" {
		w.fail("%s", f)
	}
}

// checkServed: S11, and rule 13. What is true for one viewer alone names it.
func (w *simWorld) checkServed(x *simWire, p *EventBatchPayload) {
	v := x.viewer
	if hv := x.hub.link.endpoint.(*hubViewerLink); p.Link != "" && (p.Link != hv.id || p.ViewerID != v.wireID()) { // S11
		w.fail("S11: a payload for %q on %s goes to %q on %s", p.ViewerID, p.Link, v.wireID(), hv.id)
	}
	for _, g := range p.Gaps {
		if p.Link == "" && g.Reason == ReasonUnavailable { // S11
			w.fail("S11: %s tells every viewer what %s alone can't have", brief(p), v.id)
		}
	}
	if !v.local && w.forbidden[[2]string{v.id, p.SessionID}] { // rule 13
		w.fail("S11: %s is served %s, which it may not watch", v.id, p.SessionID)
	}
}

// wireID is the id that the hub knows a viewer by.
func (v *simViewer) wireID() string {
	if v.local {
		return ""
	}
	return v.id
}

// noteRequest notes a replay request that arrives at its agent.
func (w *simWorld) noteRequest(al *streamerLink, p *ReplayRequestPayload) {
	s := al.st.sessions[p.SessionID]
	if s == nil || s.sender == nil {
		return
	}
	for _, open := range s.sender.replays {
		if open.req == *p {
			return // it is answered once
		}
	}
	r := w.requests[p.RequestID]
	if r == nil {
		r = &simRequest{viewer: p.ViewerID, session: p.SessionID, after: p.AfterSeq, until: p.UntilSeq}
		w.requests[p.RequestID] = r
	}
	numbers := int(p.UntilSeq - min(p.AfterSeq, p.UntilSeq))
	r.batches += (numbers+w.sizes.page-1)/w.sizes.page + 1
	r.events += p.Limit
}

// checkAnswer: L3, and rule 12.
func (w *simWorld) checkAnswer(al *streamerLink, p *ReplayBatchPayload) {
	r := w.requests[p.RequestID]
	if r == nil || r.viewer != p.ViewerID || r.session != p.SessionID { // S11
		w.fail("S11: %s answers nothing that was asked", brief(p))
		return
	}
	r.batches--
	r.events -= len(p.Events)
	switch {
	case r.batches < 0: // L3
		w.fail("L3: %s is more than %d to %d take", brief(p), r.after, r.until)
	case r.events < 0: // S10
		w.fail("S10: %s is more than the request's limit", brief(p))
	case p.LastSeq > r.until: // rule 12
		w.fail("S11: %s goes beyond %d", brief(p), r.until)
	}
}

// checkPosition: rule 14. A viewer's position is how far its reader has finished.
func (w *simWorld) checkPosition(v *simViewer, id string, r *simReader) {
	if r == nil || v.v.Position(id) != r.pos {
		w.fail("S7: %s %s: the position is %v, and %+v was dealt with", v.id, id, v.v.Position(id), r)
	}
}

// stopWatch notes that a watch ended with an error.
func (w *simWorld) stopWatch(v *simViewer, r *simReader, q *queued) {
	if w.verbose {
		w.say("%s: %v", v.id, q.err)
	}
	var err *ProtocolError
	if !errors.As(q.err, &err) {
		w.fail("honest: %s: unexpected error %v", v.id, q.err)
		return
	}
	r.stopped = err.Code
	switch {
	case (err.Code == CodeReplayAhead || err.Code == CodeAckBeyondSent) && w.backward:
	case err.Code == CodeForbidden && w.everForbidden && !v.local:
	case err.Code == CodeLimitExceeded && len(v.seen) > w.hubCfg.MaxWatches && w.hubCfg.MaxWatches > 0:
	case err.Code == CodeLimitExceeded && w.rewatched && w.hubCfg.MaxWatches > 0: // an unwatch was lost
	default:
		w.fail("honest: %s: unexpected error %v", v.id, q.err)
	}
}

// show checks an item that a viewer's reader gets: S2, S7, S8, S9 and S12.
func (w *simWorld) show(v *simViewer, r *simReader, it Item) {
	if w.verbose {
		w.say("%s sees %s %s", v.id, it.SessionID, briefItem(it))
	}
	k := simKey{it.SessionID, it.Epoch}
	switch {
	case r.ended: // S12
		w.fail("S12: %s %s: %s after the end", v.id, it.SessionID, briefItem(it))
	case it.Reset != nil: // S9
		if it.Reset.Old != r.pos && (r.pos != Position{} || it.Reset.Old.Seq > 0) || it.Epoch <= r.pos.Epoch {
			w.fail("S9: %s %s: a reset from %v, but the position is %v", v.id, it.SessionID, it.Reset.Old, r.pos)
		}
	case r.pos.Epoch == "" && r.told != "" && it.Epoch != r.told: // S9
		w.fail("S9: %s %s: was told of epoch %s, and gets epoch %s without a reset", v.id, it.SessionID, r.told, it.Epoch)
	case r.pos.Epoch != "" && it.Epoch != r.pos.Epoch: // S9
		w.fail("S9: %s %s: epoch %s after %s without a reset", v.id, it.SessionID, it.Epoch, r.pos.Epoch)
	case it.End: // S12
		r.ended = true
		if it.Seq != r.pos.Seq {
			w.fail("S12: %s %s: the end is at %d, but the position is %d", v.id, it.SessionID, it.Seq, r.pos.Seq)
		}
	default:
		from := it.Seq
		if it.Gap != nil {
			from = it.Gap.From
		}
		if from != r.pos.Seq+1 { // S7
			w.fail("S7: %s %s: %d after %d", v.id, it.SessionID, from, r.pos.Seq)
		}
		if it.Seq > w.truthOf(k).accepted { // S8
			w.fail("S8: %s %s: %d was accepted by no hub", v.id, it.SessionID, it.Seq)
		}
		w.checkContent(k, it)
	}
	r.pos = it.Position()
}

// A handling is the state before a payload was handled.
type handling struct {
	stale  bool   // it must not change anything
	digest digest // of the machine then
	lives  [4]simLife
	hub    bool
	said   int // answers that wait to be sent
}

func (w *simWorld) beforeHandling(x *simWire, to *simEnd, p Payload) handling {
	h := handling{stale: x.old || w.stale(to, p), said: len(to.link.replies)}
	if h.stale {
		h.digest = w.digestOf(to.link.endpoint)
	}
	if _, h.hub = to.link.endpoint.(*hubAgentLink); h.hub {
		h.lives = w.lives()
	}
	return h
}

// A simLife is whose a session is at the hub, and in which epoch.
type simLife struct {
	s            *hubSession // another one if the hub has forgotten it in between
	forgets      int         // or this is more
	owner, epoch string
}

func (w *simWorld) lives() (out [4]simLife) {
	for i, id := range simIDs {
		if s := w.hub.sessions[id]; s != nil {
			out[i] = simLife{s, w.forgets, s.owner, s.epoch}
		}
	}
	return out
}

// afterHandling: S6.
func (w *simWorld) afterHandling(h handling, to *simEnd, p Payload) {
	if h.stale && h.digest != w.digestOf(to.link.endpoint) { // S6
		w.fail("S6: %s: a payload of another link or epoch changed something: %s", to.name, brief(p))
	}
	if al, ok := to.link.endpoint.(*streamerLink); ok {
		for _, s := range al.st.sessions {
			w.noteAcked(s)
		}
	}
	for _, r := range to.link.replies[min(h.said, len(to.link.replies)):] {
		e, ok := r.(*ErrorPayload)
		if _, viewer := to.link.endpoint.(*hubViewerLink); ok && (e.Code == CodeStaleLink || e.Code == CodeUnknownSession && viewer) {
			w.checkOnce(to, e, string(e.Code), e.SessionID)
		}
	}
	if al, ok := to.link.endpoint.(*streamerLink); ok {
		w.noteError(al, p)
	}
	if st, ok := p.(*StatusPayload); ok && to.name != "" {
		w.noteTold(to, st)
	}
	if !h.hub {
		return
	}
	w.afterHub(h.lives)
}

// afterHub: rules 2 and 4, after something that may have opened sessions.
func (w *simWorld) afterHub(before [4]simLife) {
	w.noteStarts()
	for i, now := range w.lives() {
		was := before[i]
		if was.owner != "" && now.owner != "" && now.owner != was.owner && now.s == was.s && now.forgets == was.forgets && !w.claims && !w.tookOver[[2]string{now.owner, simIDs[i]}] { // rule 4
			w.fail("S6: %s belonged to %s, and now to %s", simIDs[i], was.owner, now.owner)
		}
		if now.epoch != "" && now.epoch < was.epoch && now.s == was.s && now.forgets == was.forgets { // rule 2
			w.fail("S6: %s went back from epoch %s to %s", simIDs[i], was.epoch, now.epoch)
		}
	}
}

// noteTold notes of which epoch a viewer's reader was told that it has events, before the reader
// got anything.
func (w *simWorld) noteTold(to *simEnd, p *StatusPayload) {
	for _, v := range w.viewers {
		if v.wire == nil || to != &v.wire.peer {
			continue
		}
		for _, e := range p.Sessions {
			r, x := v.seen[e.SessionID], v.v.watches[e.SessionID]
			if r != nil && x != nil && e.Epoch != "" && e.HeadSeq > 0 && x.epoch == e.Epoch && p.Link == v.v.link.id && r.pos == (Position{}) && x.unread == 0 && r.told == "" {
				r.told = e.Epoch
			}
		}
	}
}

// noteError: after unknown_session, a retryable error, or an ack that shows that the hub has
// lost its place, the next ack counts as a first ack (S5).
func (w *simWorld) noteError(al *streamerLink, p Payload) {
	id := ""
	switch p := p.(type) {
	case *ErrorPayload:
		id = p.SessionID
	case *AckBatchPayload:
		id = p.SessionID
	}
	if s := al.st.sessions[id]; s != nil && s.sender != nil && !s.sender.opened {
		delete(w.acks, s.sender)
	}
}

// stale reports whether a payload is of another link or epoch than its receiver's.
func (w *simWorld) stale(to *simEnd, p Payload) bool {
	switch m := to.link.endpoint.(type) {
	case *streamerLink:
		switch p := p.(type) {
		case *WelcomePayload:
			return !m.hello.awaiting || !m.hello.timer.running()
		case *StatusPayload:
			return p.Link != m.id
		case *AckBatchPayload:
			s := m.st.sessions[p.SessionID]
			return p.Link != m.id || s != nil && p.Epoch != s.epoch
		}
	case *hubAgentLink:
		switch p := p.(type) {
		case *StatusPayload:
			return p.Link != m.id
		case *EventBatchPayload:
			s := w.hub.sessions[p.SessionID]
			return p.Link != m.id || s != nil && p.Epoch < s.epoch
		case *ReplayBatchPayload:
			return m.requests[p.RequestID] == nil || !m.requests[p.RequestID].open
		}
	case *hubViewerLink:
		switch p := p.(type) {
		case *StatusPayload:
			return p.Link != m.id
		case *AckBatchPayload:
			return p.Link != m.id
		}
	case *viewerLink:
		switch p := p.(type) {
		case *WelcomePayload:
			return !m.hello.awaiting || !m.hello.timer.running()
		case *StatusPayload:
			return p.Link != m.id
		case *EventBatchPayload:
			x := m.v.watches[p.SessionID]
			return p.Link != m.id && p.Link != "" || x == nil || p.Epoch != x.epoch
		}
	}
	return false
}

// A digest of a machine's state is equal for equal states.
type digest uint64

func (d *digest) add(ns ...uint64) {
	for _, n := range ns {
		*d = (*d ^ digest(n)) * 1099511628211
		*d ^= *d >> 29
	}
}

func (d *digest) text(s string) {
	for i := range len(s) {
		*d = (*d ^ digest(s[i])) * 1099511628211
	}
	d.add(uint64(len(s)))
}

func (d *digest) flag(b bool) {
	if b {
		d.add(1)
	} else {
		d.add(2)
	}
}

func (w *simWorld) digestOf(m endpoint) digest {
	d := digest(14695981039346656037)
	switch m := m.(type) {
	case *streamerLink:
		for _, s := range m.st.all() {
			d.text(s.id)
			d.text(s.epoch)
			d.add(s.acked, s.maxSentInEpoch, s.log.first(), s.log.head)
			d.flag(s.stopped != nil)
			if s.sender != nil {
				d.add(s.sender.sent, s.sender.maxSentOnLink)
				d.flag(s.sender.opened)
			}
		}
	case *hubAgentLink:
		for _, s := range w.hub.all() {
			d.text(s.id)
			d.text(s.epoch)
			d.text(s.owner)
			d.add(s.log.first(), s.log.head, s.agentHead, uint64(s.requests()))
			d.flag(s.receiver != nil)
			d.flag(s.ended)
			for _, c := range s.cursors {
				d.add(c.sent)
			}
			for _, f := range s.fetches {
				d.add(f.log.head)
				d.flag(f.lost)
			}
		}
	case *hubViewerLink:
		for _, s := range w.hub.all() {
			d.text(s.id)
			d.add(uint64(len(s.cursors)))
			for _, c := range s.cursors {
				d.text(c.epoch)
				d.add(c.sent, c.acked, uint64(c.window.events), uint64(c.window.bytes))
				d.flag(c.window.full)
			}
		}
	case *viewerLink:
		for _, x := range sortedWatches(m.v) {
			d.text(x.id)
			d.text(x.epoch)
			d.add(x.received)
			d.flag(x.ended)
			d.add(uint64(x.unread))
		}
	}
	return d
}

// Invariants of the machines that hold after every step, whatever their peers do
// (PROTOCOL.md, "Invariants"). Each function returns what is wrong, or nothing.

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

// windowFault: S15 of an agent's session, for a batch that it has just sent. One event may go
// alone, whatever it is.
func windowFault(s *Session, p *EventBatchPayload) string {
	events, size := s.log.tally(s.acked, p.LastSeq)
	if w := s.sender.window; len(p.Events) > 0 && events > 1 && (w.full || events > w.events || size > w.bytes) {
		return fmt.Sprintf("S15: %s makes %d events and %d bytes beyond ack %d, the window is %+v", brief(p), events, size, s.acked, w)
	}
	return ""
}

// sessionFault: S4 and S10 of an agent's session.
func sessionFault(s *Session) string {
	if f := logFault(&s.log); f != "" {
		return s.id + ": " + f
	}
	if s.acked > s.maxSentInEpoch || s.maxSentInEpoch > s.log.head || s.log.first() > s.acked+1 {
		return fmt.Sprintf("S4: %s: first %d, acked %d, sent at the most %d, head %d", s.id, s.log.first(), s.acked, s.maxSentInEpoch, s.log.head)
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
	if cfg := &s.st.cfg; s.log.events > cfg.MaxPendingEvents+cfg.ReplayEvents {
		return fmt.Sprintf("S10: %s: holds %d events", s.id, s.log.events)
	}
	if n := s.log.ring.n; n > maxGaps+4*(s.st.cfg.MaxPendingEvents+s.st.cfg.ReplayEvents)+4 {
		return fmt.Sprintf("S10: %s: %d entries for %d events", s.id, n, s.log.events)
	}
	o := s.sender
	if o == nil {
		return ""
	}
	if len(o.replays) > s.st.cfg.MaxReplays {
		return fmt.Sprintf("S10: %s: answers %d replays", s.id, len(o.replays))
	}
	if o.maxSentOnLink > s.maxSentInEpoch || o.sent > s.maxSentInEpoch || o.opened && o.sent < s.acked {
		return fmt.Sprintf("S4: %s: acked %d, sent %d, on this link %d, ever %d", s.id, s.acked, o.sent, o.maxSentOnLink, s.maxSentInEpoch)
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
		if s.id != id || s.gone || s.sender != nil && s.sender.link != st.link {
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

// linkFault: payloads waiting to be sent are bounded, and a dead link holds nothing.
func linkFault(l *Link) string {
	if len(l.replies) > 2*maxReplies || errorsIn(l.replies) > maxReplies {
		return fmt.Sprintf("S10: %d answers wait", len(l.replies))
	}
	if now, later := l.tasks.Len(); l.err != nil && now+later > 0 {
		return "a dead link holds tasks"
	}
	return ""
}

// readyTasks is the number of a link's tasks that are ready.
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

// hubFault: S10 of a hub, and that what refers to each other agrees.
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
	if int64(known) != h.knownSessions.Load() || known > h.cfg.MaxSessions {
		return fmt.Sprintf("S10: %d sessions count as %d of %d", known, h.knownSessions.Load(), h.cfg.MaxSessions)
	}
	for _, ha := range h.agents {
		if f := hubAgentFault(ha); f != "" {
			return ha.agentID + ": " + f
		}
	}
	waiting := make(map[string]int)
	for _, s := range h.sessions {
		waiting[s.owner] += s.bytes
	}
	for agent, n := range waiting {
		if agent != "" && n != h.uncommitted[agent] {
			return fmt.Sprintf("S10: %s has %d bytes that wait for the store, and they count as %d", agent, n, h.uncommitted[agent])
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
	if s.received < s.log.head || len(s.pages) == 0 && s.received > s.log.head || len(s.pages) > 0 && (s.pages[0].first != s.log.head+1 || s.pages[len(s.pages)-1].last != s.received) {
		return fmt.Sprintf("S1: accepted %d, received %d in %d pages", s.log.head, s.received, len(s.pages))
	}
	if s.gone || s.busy || s.log.head > s.agentHead || s.ended && s.log.head < s.endSeq {
		return fmt.Sprintf("accepted %d of %d, the end is %d, ended %v", s.log.head, s.agentHead, s.endSeq, s.ended)
	}
	if o := s.receiver; o != nil && (o.ha.sessions[s] != o || o.ha.agentID != s.owner || s.h.agents[s.owner] != o.ha) {
		return "open on a link that is not its owner's"
	}
	if f := cohortFault(s); f != "" {
		return f
	}
	readers := make(map[*fetch]int)
	for _, c := range s.cursors {
		if c.gone || c.hv.cursors[c.s.id] != c {
			return c.hv.viewerID + ": a cursor of no link"
		}
		if c.fetch != nil {
			readers[c.fetch]++
		}
	}
	return fetchesFault(s, readers)
}

// fetchesFault: S10 of what a session has asked its agent for.
func fetchesFault(s *hubSession, readers map[*fetch]int) string {
	cfg, held := &s.h.cfg, 0
	for _, f := range s.fetches {
		if fault := logFault(&f.log); fault != "" {
			return "fetch: " + fault
		}
		if f.log.events > s.h.sizes.replay || f.bytes > maxRequestBytes+2<<20 {
			return fmt.Sprintf("S10: a request brought %d events, %d bytes", f.log.events, f.bytes)
		}
		if f.gone || f.log.head > f.until || f.until > s.log.head || f.readers != readers[f] || f.waiting.Len() > f.readers {
			return fmt.Sprintf("a fetch to %d of %d is at %d, with %d of %d readers, %d wait", f.until, s.log.head, f.log.head, f.readers, readers[f], f.waiting.Len())
		}
		if f.ha == nil && (f.open || f.readers == 0) || f.ha != nil && f.ha.requests[f.id] != f {
			return "a fetch of no link"
		}
		held += f.size()
	}
	if n := s.requests(); n > cfg.MaxReplays || held > (6*cfg.MaxReplays+1)*maxRequestBytes || s.asking.Len() > len(s.cursors) {
		return fmt.Sprintf("S10: %d of %d requests, %d bytes of answers, %d wait", n, cfg.MaxReplays, held, s.asking.Len())
	}
	if ha, greeted := s.h.agent(s.owner); greeted && s.asking.Len() > 0 && s.silentOn != ha.id && s.mayAskLocked() {
		return "a cursor waits for a request that may be made"
	}
	return ""
}

// livingSessions is how many of the sessions that are open on a link have not ended.
func livingSessions(ha *hubAgentLink) (n int) {
	for s := range ha.sessions {
		if !s.ended {
			n++
		}
	}
	return n
}

func hubAgentFault(ha *hubAgentLink) string {
	if livingSessions(ha) > ha.h.cfg.MaxAgentSessions {
		return fmt.Sprintf("S10: %d sessions are open", len(ha.sessions))
	}
	for s, o := range ha.sessions {
		if s.receiver != o {
			return s.id + " is open elsewhere"
		}
	}
	for id, f := range ha.requests {
		if f.id != id || f.ha != ha || !slices.Contains(f.s.fetches, f) {
			return "request " + id + " is nobody's"
		}
	}
	return linkFault(ha.Link)
}

func hubViewerFault(hv *hubViewerLink) string {
	if len(hv.cursors) > hv.h.cfg.MaxWatches || hv.statuses.Len() > len(hv.cursors) {
		return fmt.Sprintf("S10: %d watches, %d due", len(hv.cursors), hv.statuses.Len())
	}
	return linkFault(hv.Link)
}

// viewerFault: S10 of a viewer. An error needs no room, and there is at most one per
// watch.
func viewerFault(v *Viewer) string {
	if f := queueFault(v, maxBatchEvents+maxBatchGaps, math.MaxInt/2); f != "" {
		return f
	}
	if len(v.watches) > v.cfg.MaxWatches {
		return fmt.Sprintf("S10: %d watches", len(v.watches))
	}
	if v.link != nil {
		return linkFault(v.link.Link)
	}
	return ""
}

// queueFault: S10 of what waits for a viewer's reader: of each watch no more than its window, one
// batch of at most so many items and bytes, and a reset, an end and an error.
func queueFault(v *Viewer, items, bytes int) string {
	sum := 0
	var unread, unreadBytes, errs = make(map[*watch]int), make(map[*watch]int), make(map[*watch]int)
	for _, q := range v.queue {
		sum += q.size
		if v.watches[q.w.id] != q.w {
			return "S10: an item of a watch of the past of " + q.w.id
		}
		if q.err != nil {
			errs[q.w]++
			continue
		}
		unread[q.w]++
		unreadBytes[q.w] += q.size
	}
	if sum != v.bytes {
		return fmt.Sprintf("S10: %d bytes wait, and %d count", sum, v.bytes)
	}
	for _, w := range v.watches {
		n, size := unread[w], unreadBytes[w]
		if n != w.unread || size != w.unreadBytes || errs[w] > 1 {
			return fmt.Sprintf("S10: %d items, %d bytes and %d errors of %s wait, and %d and %d count", n, size, errs[w], w.id, w.unread, w.unreadBytes)
		}
		if n > v.cfg.Window+items+1 || size > v.cfg.WindowBytes+bytes+2*itemBytes {
			return fmt.Sprintf("S10: %d items and %d bytes of %s wait", n, size, w.id)
		}
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
	from := it.Seq
	if it.Gap != nil {
		from = it.Gap.From
	}
	was := r.pos
	r.pos = it.Position()
	switch {
	case r.ended:
		return fmt.Sprintf("S12: %s after the end", briefItem(it))
	case it.Reset != nil:
		if it.Reset.Old != was && (was != Position{} || it.Reset.Old.Seq > 0) || it.Epoch <= was.Epoch || it.Seq != 0 {
			return fmt.Sprintf("S9: %s at %v", briefItem(it), was)
		}
	case was.Epoch != "" && it.Epoch != was.Epoch:
		return fmt.Sprintf("S9: %s at %v without a reset", briefItem(it), was)
	case it.End:
		r.ended = true
		if it.Seq != was.Seq {
			return fmt.Sprintf("S12: %s at %v", briefItem(it), was)
		}
	case from != was.Seq+1 || it.Seq < from:
		return fmt.Sprintf("S7: %s at %v", briefItem(it), was)
	}
	return ""
}

// sortedWatches are a viewer's watches in the order of their sessions' ids.
func sortedWatches(v *Viewer) []*watch {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sortedLocked()
}
