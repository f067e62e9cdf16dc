package gvstream

import (
	"context"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// An agentLink is a Streamer's half of one connection to the hub.
type agentLink struct {
	*Link
	st *Streamer

	hello        *greeter
	status, beat task
	unvetted     atomic.Bool // something was sent that vet has not looked at

	// Link's lock protects the fields below.
	id      string // the hub's name of the link; empty before the welcome
	window  uint64
	beatAt  time.Time // when to give the next sign of life
	heardAt time.Time
	list    []*attachment // to be named in the next status
	unacked []*attachment // that may have something unacknowledged
}

// Connect makes the link of a new connection to the hub, and supersedes the one
// before. It does not block. On a closed Streamer the link is dead: its calls
// return ErrClosed.
func (st *Streamer) Connect() *Link { return st.connect(time.Now()).Link }

func (st *Streamer) connect(now time.Time) *agentLink {
	al := &agentLink{st: st}
	al.Link = newLink(al, &st.refusedPayloads)
	al.hello = newGreeter(al.Link, roleAgent)
	al.status = task{owner: takeFunc(al.takeStatus), urgent: true}
	al.beat = task{owner: takeFunc(al.takeBeat), urgent: true}
	st.mu.Lock()
	old, shut := st.link, st.shut.Load()
	if !shut {
		st.link = al
	}
	st.mu.Unlock()
	if shut {
		al.fail(now, ErrClosed)
		return al
	}
	if old != nil {
		old.fail(now, ErrSuperseded)
	}
	al.hello.start()
	al.schedule(&al.beat, now)
	return al
}

func (al *agentLink) welcomed() bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	return al.id != ""
}

func (al *agentLink) detach(time.Time) {
	al.st.mu.Lock()
	defer al.st.mu.Unlock()
	if al.st.link == al {
		al.st.link = nil
	}
	for _, s := range al.st.sessions {
		s.mu.Lock()
		if s.on != nil && s.on.l == al {
			s.on = nil
		}
		s.mu.Unlock()
	}
}

// takeStatus names the listed sessions, at most 256 a payload (rules 5 and 9).
func (al *agentLink) takeStatus(now time.Time) Payload {
	for {
		al.mu.Lock()
		n := min(len(al.list), maxStatus)
		batch := al.list[:n:n]
		if al.list = al.list[n:]; len(al.list) == 0 {
			al.list = nil // a slice of none still holds them all
		}
		p := &StatusPayload{Link: al.id, More: len(al.list) > 0}
		al.mu.Unlock()
		for _, a := range batch {
			if s, ok := a.describe(now); ok {
				p.Sessions = append(p.Sessions, s)
			}
		}
		if n == 0 {
			return nil
		}
		if len(p.Sessions) > 0 {
			return p
		}
	}
}

// takeBeat gives a sign of life: a status of the sessions that have something
// unacknowledged, or an empty one (rule 9). It ends a link that has been silent.
func (al *agentLink) takeBeat(now time.Time) Payload {
	al.mu.Lock()
	id, due := al.id, !now.Before(al.beatAt)
	if due {
		al.beatAt = now.Add(heartbeat)
	}
	al.scheduleLocked(&al.beat, al.beatAt)
	al.mu.Unlock()
	if !due {
		return nil
	}
	if al.silent(now) {
		al.fail(now, ErrSilent)
		return nil
	}
	al.st.expire(now)
	if id == "" {
		return nil
	}
	if al.announceUnacked() {
		return nil
	}
	return &StatusPayload{Link: id}
}

// announceUnacked lists the sessions that have something unacknowledged, and
// reports whether there are any. Sessions that have not cost it nothing.
func (al *agentLink) announceUnacked() bool {
	al.mu.Lock()
	as := al.unacked
	al.unacked = nil
	al.mu.Unlock()
	as = slices.DeleteFunc(as, func(a *attachment) bool {
		s := a.s
		s.mu.Lock()
		defer s.mu.Unlock()
		if a.unacked = s.on == a && s.acked < s.log.head && s.stopped == nil; a.unacked {
			a.announce()
		}
		return !a.unacked
	})
	al.mu.Lock()
	al.unacked = append(as, al.unacked...)
	al.mu.Unlock()
	return len(as) > 0
}

// noteUnacked has the next sign of life name the session, if it is not acknowledged
// until then. The session's lock is held.
func (a *attachment) noteUnacked() {
	if a.unacked || a.s.acked >= a.s.log.head {
		return
	}
	a.unacked = true
	a.l.mu.Lock()
	a.l.unacked = append(a.l.unacked, a)
	a.l.mu.Unlock()
}

// silent reports whether the hub has said nothing for so long that it must be gone.
func (al *agentLink) silent(now time.Time) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	if al.heardAt.IsZero() { // it counts from the first hello
		al.heardAt = now
	}
	return now.Sub(al.heardAt) >= maxSilence
}

func (al *agentLink) handle(_ context.Context, now time.Time, p Payload) error {
	var err *ProtocolError
	switch p := p.(type) {
	case *WelcomePayload:
		err = al.welcome(now, p)
	case *StatusPayload:
		al.heard(now, p.Link)
	case *AckBatchPayload:
		if al.heard(now, p.Link) {
			err = al.ack(now, p)
		}
	case *ReplayRequestPayload:
		if al.heard(now, "") {
			err = al.replay(p)
		}
	case *ErrorPayload:
		err = al.refused(now, p)
	default:
		err = &ProtocolError{Code: codeUnexpected, Message: "an agent takes no " + p.payloadType()}
	}
	return plain(err)
}

// heard takes note of a frame and reports whether it is one of this link. An
// empty id stands for a frame that does not say.
func (al *agentLink) heard(now time.Time, link string) bool {
	al.mu.Lock()
	defer al.mu.Unlock()
	if al.id == "" || link != "" && link != al.id {
		al.st.stalePayloads.Add(1)
		return false
	}
	al.heardAt = now
	return true
}

// welcome opens the link: every session is announced (rules 3 and 5).
func (al *agentLink) welcome(now time.Time, p *WelcomePayload) *ProtocolError {
	if p.V != version {
		return &ProtocolError{Code: codeVersion, Message: "welcome of another version", fatal: true}
	}
	al.st.mu.Lock()
	defer al.st.mu.Unlock()
	al.mu.Lock()
	if al.st.link != al || !al.hello.welcomedLocked() {
		al.mu.Unlock()
		al.st.stalePayloads.Add(1)
		return nil
	}
	al.heardAt = now
	if al.id == p.Link { // welcomed once more: nothing was lost
		al.mu.Unlock()
		return nil
	}
	al.clearLocked() // nothing of another link id goes on
	al.id, al.window = p.Link, uint64(p.Window)
	al.beatAt = now.Add(heartbeat)
	al.scheduleLocked(&al.beat, al.beatAt)
	al.list, al.unacked = nil, nil
	al.mu.Unlock()
	sessions := slices.Collect(maps.Values(al.st.sessions))
	sortSessions(sessions)
	for _, s := range sessions {
		if a := al.attach(s); a != nil {
			s.mu.Lock()
			a.announce()
			s.mu.Unlock()
		}
	}
	return nil
}

// attach begins the session's life on this link, once it is welcomed. The
// Streamer's lock is held.
func (al *agentLink) attach(s *Session) *attachment {
	al.mu.Lock()
	id, window := al.id, al.window
	al.mu.Unlock()
	if id == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := &attachment{s: s, l: al, id: id, window: window, timer: timerFirst}
	a.task.owner = a
	a.pioneer = s.maxSent == 0
	s.on = a
	s.poke()
	return a
}

func (al *agentLink) ack(now time.Time, p *AckBatchPayload) *ProtocolError {
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return refusal(codeUnknownSession, p.SessionID, "ack of an unknown session")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.on
	switch {
	case a == nil || a.l != al || p.Epoch != s.epoch:
		al.st.stalePayloads.Add(1)
		return nil
	case p.ViewerID != "":
		s.noteProgress(p.ViewerID, p.UpToSeq)
		return nil
	}
	return a.ack(now, p)
}

const maxProgress = 100 // viewers whose progress a session notes

func (s *Session) noteProgress(viewerID string, seq uint64) {
	if _, ok := s.progress[viewerID]; !ok && len(s.progress) >= maxProgress || seq > s.log.head {
		return
	}
	s.begin()
	if s.progress == nil {
		s.progress = make(map[string]uint64)
	}
	s.progress[viewerID] = seq
}

// refused deals with an error payload (rule 11).
func (al *agentLink) refused(now time.Time, p *ErrorPayload) *ProtocolError {
	switch {
	case p.Code == codeStaleLink:
		al.hello.start()
		return nil
	case p.Code == codeVersion:
		err := p.protocolError()
		err.fatal = true
		return err
	case !al.heard(now, ""):
		return nil
	case p.Code == codeMalformed && al.st.cfg.TrustData:
		al.vet()
		return nil
	case p.SessionID == "" || p.RequestID != "":
		return nil // about a frame: what it carried is sent again on the timer
	}
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.on
	if a == nil || a.l != al || p.Code != codeStaleEpoch && p.Epoch != "" && p.Epoch != s.epoch {
		al.st.stalePayloads.Add(1)
		return nil
	}
	a.silent = false
	switch {
	case p.Code == codeStaleEpoch && p.Epoch <= s.epoch: // news of before a Renew
		al.st.stalePayloads.Add(1)
	case p.Code == codeUnknownSession:
		a.reopen()
	case p.Seq != 0 && (p.Code == codeEventRejected || p.Code == codeEventTooLarge):
		a.reject(p.Seq)
	case p.Retryable:
		a.resume = now.Add(a.timer)
		a.timer = backoff(a.timer)
		a.opened, a.pioneer, a.rewind = false, false, true
		a.resendAt = time.Time{}
		a.l.schedule(&a.task, a.resume)
	default:
		s.begin()
		s.stopped = p.protocolError()
		s.changed.broadcast()
	}
	return nil
}

// An attachment is one session on one link: the state that ends with the link.
// The session's lock protects it.
type attachment struct {
	task
	s *Session
	l *agentLink

	id      string // of the link
	window  uint64
	pioneer bool   // never sent before this link: its first batch opens it (rule 5)
	opened  bool   // the hub said on this link where it stands
	rewind  bool   // it said that it didn't know the session: go back to its next ack
	first   uint64 // that first ack
	sent    uint64 // last number handed out; put back to acked to send again
	top     uint64 // highest number handed out on this link
	poked   bool   // take will be called, and that has not begun yet
	vetted  uint64 // the data of what was sent up to it has been checked
	listed  bool   // in the link's list for the next status
	unacked bool   // in the link's list for the next sign of life

	timer    time.Duration
	resendAt time.Time // when to send again what is not acknowledged; zero: nothing is
	expired  bool      // resendAt passed without progress
	silent   bool      // nothing was heard of the session since then
	resume   time.Time // a retryable error: not before

	nacked   uint64 // the number last gone back to, and when
	nackedAt time.Time

	replays []*replay
}

// announce lists the session for the next status.
func (a *attachment) announce() {
	if a.listed {
		return
	}
	a.listed = true
	a.l.mu.Lock()
	a.l.list = append(a.l.list, a)
	a.l.readyLocked(&a.l.status)
	a.l.mu.Unlock()
}

// describe is the session's place in a status. While it is unopened, its timer
// says it again (rule 5).
func (a *attachment) describe(now time.Time) (SessionStatus, bool) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	a.listed = false
	if s.on != a || s.stopped != nil {
		return SessionStatus{}, false
	}
	if !a.opened && a.resendAt.IsZero() {
		a.arm(now)
	}
	return SessionStatus{
		SessionID: s.id, Epoch: s.epoch, FirstSeq: s.log.first(), HeadSeq: s.log.head,
		AckSeq: s.acked, Ended: s.hasEnded,
	}, true
}

// take sends the next batch of the session, if it may send (rule 7).
func (a *attachment) take(now time.Time) Payload {
	s := a.s
	s.mu.Lock()
	a.poked = false
	if s.on != a || s.stopped != nil {
		s.mu.Unlock()
		return nil
	}
	if dead := a.tick(now); dead {
		s.mu.Unlock()
		a.l.fail(now, ErrSilent)
		return nil
	}
	a.noteUnacked()
	if !a.opened && !a.pioneer {
		s.mu.Unlock()
		return nil
	}
	limit := s.acked + a.window
	// A copy, some ten microseconds at the most, so that publishing needs no new
	// memory for what was sent.
	p := s.log.read(span{a.sent, s.log.head, limit, s.st.sizes.batch, pageBytes, pageBytes})
	if p.last == a.sent { // nothing more, or nothing that the window allows
		s.mu.Unlock()
		return nil
	}
	if a.top <= s.acked { // nothing was outstanding
		a.timer, a.resendAt, a.expired = timerFirst, time.Time{}, false
	}
	a.sent = p.last
	if a.sent > a.top {
		a.top = a.sent
		a.l.unvetted.Store(true)
	}
	s.maxSent = max(s.maxSent, a.sent)
	if a.resendAt.IsZero() {
		a.arm(now)
	}
	b := newEventBatch()
	b.EventBatchPayload = EventBatchPayload{
		SessionID: s.id, Epoch: s.epoch, Link: a.id, FirstSeq: p.first, LastSeq: p.last, HeadSeq: s.log.head,
	}
	s.mu.Unlock()
	b.Gaps, b.page, b.trusted = p.gaps, p, s.st.cfg.TrustData
	return b
}

// arm starts the timer.
func (a *attachment) arm(now time.Time) {
	a.resendAt = now.Add(a.timer)
	a.l.schedule(&a.task, a.resendAt)
}

// tick looks at the clock: what is not acknowledged in time is sent again, or
// announced again if the hub has not said where it stands (rules 5 and 9). It
// reports true if nothing at all came between two expiries (rule 6).
func (a *attachment) tick(now time.Time) (dead bool) {
	if !a.resume.IsZero() {
		if now.Before(a.resume) {
			a.l.schedule(&a.task, a.resume)
			return false
		}
		a.resume = time.Time{}
		a.announce()
	}
	switch {
	case a.resendAt.IsZero():
		return false
	case now.Before(a.resendAt):
		a.l.schedule(&a.task, a.resendAt)
		return false
	case a.expired && a.silent && a.s.acked < a.s.log.head:
		return true
	}
	a.expired, a.silent = true, true
	a.timer = backoff(a.timer)
	if a.opened || a.pioneer {
		a.sent = a.s.acked
	}
	if !a.opened && !a.pioneer {
		a.announce()
	}
	a.arm(now)
	return false
}

// ack applies the hub's ack (rule 6).
func (a *attachment) ack(now time.Time, p *AckBatchPayload) *ProtocolError {
	s := a.s
	limit := s.maxSent
	if a.opened {
		limit = max(a.first, a.top)
	}
	switch {
	case p.UpToSeq > limit:
		return &ProtocolError{
			Code: codeAckBeyondSent, SessionID: s.id, Epoch: s.epoch, Seq: limit,
			Message: "ack beyond what was sent", fatal: true,
		}
	case a.opened && p.UpToSeq < s.acked:
		s.st.stalePayloads.Add(1) // old: later news came before it
		return nil
	}
	a.silent = false
	progress := p.UpToSeq > s.acked || !a.opened && a.top == 0
	if p.UpToSeq < s.acked {
		s.moveBack(p.UpToSeq)
	}
	s.free(now, p.UpToSeq)
	if !a.opened && (a.top == 0 || a.rewind) {
		a.sent = p.UpToSeq
	}
	if !a.opened {
		a.opened, a.pioneer, a.rewind, a.first = true, false, false, p.UpToSeq
		a.resume = time.Time{} // the hub has room again
	}
	a.sent = max(a.sent, p.UpToSeq)
	if p.Nack {
		a.goBack(now, p.UpToSeq)
	}
	if progress {
		a.timer, a.resendAt, a.expired = timerFirst, time.Time{}, false
		if a.sent > s.acked {
			a.arm(now)
		}
	}
	a.l.ready(&a.task)
	return nil
}

// goBack sends again from behind a number, at most once a second for each.
func (a *attachment) goBack(now time.Time, seq uint64) {
	if seq == a.nacked && now.Sub(a.nackedAt) < time.Second && !a.nackedAt.IsZero() {
		return
	}
	a.nacked, a.nackedAt = seq, now
	a.sent = seq
}

// reopen says where the session stands to a hub that doesn't know it (rule 5).
func (a *attachment) reopen() {
	if !a.opened && !a.pioneer {
		return // said already
	}
	a.opened, a.pioneer, a.rewind = false, false, true
	a.announce()
}

// vet checks the data that was sent unchecked, since the hub could not read a frame:
// once, however often the hub says so.
func (al *agentLink) vet() {
	if !al.unvetted.Swap(false) {
		return
	}
	for _, s := range al.st.all() {
		s.mu.Lock()
		if a := s.on; a != nil && a.l == al {
			a.vet()
		}
		s.mu.Unlock()
	}
}

// vet turns the sent events whose data is wrong into gaps.
func (a *attachment) vet() {
	s := a.s
	for seq := max(a.vetted, s.acked) + 1; seq <= a.top; {
		i := s.log.find(seq)
		e := s.log.ring.at(i)
		seq = e.to + 1
		if !s.log.compact(e) {
			a.reject(e.to)
		}
	}
	a.vetted = max(a.vetted, a.top)
}

// reject turns an event that the hub refuses into a gap (rule 11).
func (a *attachment) reject(seq uint64) {
	s := a.s
	if seq <= s.acked || seq > a.top {
		return
	}
	i := s.log.find(seq)
	if s.log.ring.at(i).gap() {
		return // refused before
	}
	s.loseAt(i, ReasonRejected)
	s.changed.broadcast()
	if s.hasEnded {
		a.announce() // the end may lie in the gap
	}
	a.sent = min(a.sent, s.acked) // what came before may not have been accepted with it
	a.l.ready(&a.task)
}

// A replay answers one request, a page at a time and in turn with everything
// else. It is one more cursor on the session's log, with a ceiling (rule 12).
type replay struct {
	task
	a     *attachment
	req   ReplayRequestPayload
	epoch string
	after uint64
	until uint64
	left  int // events that may still be sent
	bytes int // sent so far
	done  bool
}

const maxReplayBytes = 1 << 20 // of an answer to a request with a limit

func (al *agentLink) replay(p *ReplayRequestPayload) *ProtocolError {
	s := al.st.lookup(p.SessionID)
	if s == nil {
		return about(p, refusal(codeUnknownSession, p.SessionID, "replay of an unknown session"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.on
	switch {
	case a == nil || a.l != al:
		al.st.stalePayloads.Add(1)
		return nil
	case p.Epoch != "" && p.Epoch != s.epoch:
		err := refusal(codeStaleEpoch, s.id, "replay of another epoch")
		err.Epoch = s.epoch
		return about(p, err)
	case p.AfterSeq > s.log.head:
		err := refusal(codeReplayAhead, s.id, "replay after %d, but the head is %d", p.AfterSeq, s.log.head)
		err.Epoch, err.Seq = s.epoch, s.log.head
		return about(p, err)
	}
	for _, r := range a.replays {
		if r.req.RequestID == p.RequestID {
			return nil // asked twice
		}
		if p.ViewerID != "" && r.req.ViewerID == p.ViewerID { // that viewer has moved on
			r.done = true
			a.drop(r)
			break
		}
	}
	if len(a.replays) >= al.st.cfg.MaxReplays {
		err := refusal(codeReplayBusy, s.id, "%d replays are running", len(a.replays))
		err.Retryable = len(a.replays) > 0
		return about(p, err)
	}
	r := &replay{a: a, req: *p, epoch: s.epoch, after: p.AfterSeq, until: s.log.head, left: p.Limit}
	r.task.owner = r
	if p.UntilSeq != 0 {
		r.until = min(p.UntilSeq, s.log.head)
	}
	if p.Limit == 0 {
		r.left = math.MaxInt
	}
	a.replays = append(a.replays, r)
	al.ready(&r.task)
	return nil
}

// about says which request an error answers.
func about(p *ReplayRequestPayload, err *ProtocolError) *ProtocolError {
	err.RequestID, err.ViewerID = p.RequestID, p.ViewerID
	return err
}

func (r *replay) take(time.Time) Payload {
	s := r.a.s
	s.mu.Lock()
	if r.done || s.on != r.a || s.epoch != r.epoch {
		s.mu.Unlock()
		return nil
	}
	n := min(s.st.sizes.page, r.left)
	p := s.log.read(span{r.after, r.until, r.until, n, pageBytes, 0})
	available := s.log.first()
	r.after = p.last
	r.bytes += p.bytes
	r.left -= len(p.slots)
	r.done = r.after >= r.until || r.left == 0 || r.req.Limit != 0 && r.bytes >= maxReplayBytes
	if r.done {
		r.a.drop(r)
	}
	done := r.done // which a later request of the viewer may set, though this one goes on
	s.mu.Unlock()
	b := newReplayBatch()
	b.ReplayBatchPayload = ReplayBatchPayload{
		SessionID: s.id, ViewerID: r.req.ViewerID, RequestID: r.req.RequestID, Epoch: r.epoch,
		FirstSeq: p.first, LastSeq: p.last, UntilSeq: r.until, AvailableFrom: available, Done: done,
	}
	b.Gaps, b.page, b.trusted = p.gaps, p, s.st.cfg.TrustData
	return b
}

func (a *attachment) drop(r *replay) {
	a.l.forget(&r.task)
	for i := range a.replays {
		if a.replays[i] == r {
			a.replays = append(a.replays[:i], a.replays[i+1:]...)
			return
		}
	}
}
