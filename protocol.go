package gvstream

import "unicode/utf8"

// This file is what peers say to each other: the payload types of PROTOCOL.md, and the
// check that each must pass. It holds no state and no lock. Machines make payloads to be
// sent; the decoder, or a caller of Handle, makes those that arrive, and a link checks
// each of them before its machine looks at it. The names and order of the fields on the
// wire are codec.go's.

// A Payload is one message of the protocol: a pointer to one of the payload
// types of this package. A link's Next returns them and Handle takes them.
// A payload belongs to the caller that received it, and is read-only: its events may
// share memory with those of other payloads, and with a log. It may be read by several
// goroutines at the same time.
type Payload interface {
	payloadType() string   // the envelope's type
	check() *ProtocolError // whether a peer may say this at all
}

// HelloPayload is the first payload on every connection, from the agent or the
// viewer (rule 3).
type HelloPayload struct {
	ViewerID string `json:"viewer_id"` // empty: the hub knows who connects
	V        int    `json:"v"`         // version of the protocol: 1
	Role     string `json:"role"`      // "agent" or "viewer"
}

// WelcomePayload is the hub's answer to a hello (rules 3 and 17).
type WelcomePayload struct {
	ViewerID string `json:"viewer_id"` // the viewer as the hub knows it; empty for an agent
	V        int    `json:"v"`         // version of the protocol: 1
	Link     string `json:"link"`      // stands in every later frame that has the field

	// What an agent may send of a session before the hub has acknowledged anything of it on
	// this link. If zero, the defaults of PROTOCOL.md.
	WindowEvents int `json:"window_events,omitempty"`
	WindowBytes  int `json:"window_bytes,omitempty"`
}

// StatusPayload says where sessions stand. An agent sends it when a link opens, and as a
// sign of life; a hub sends it to answer a watch, and as a sign of life (rules 5, 9 and
// 13). Without sessions it is a sign of life alone.
type StatusPayload struct {
	ViewerID string          `json:"viewer_id"`
	Link     string          `json:"link"`
	More     bool            `json:"more,omitempty"` // another status follows that belongs to this one
	Sessions []SessionStatus `json:"sessions,omitempty"`
}

// SessionStatus is one session in a StatusPayload, from the sender's point of view: an
// agent's numbers are of what it published, a hub's of what it accepted. It is complete in
// itself, whatever entries came before.
type SessionStatus struct {
	SessionID string `json:"session_id"`
	Epoch     string `json:"epoch"`                // empty: the hub knows no such session (yet)
	FirstSeq  uint64 `json:"first_seq"`            // first number the sender's log still holds
	HeadSeq   uint64 `json:"head_seq"`             // agent: last number published; hub: last number accepted
	AckSeq    uint64 `json:"ack_seq"`              // agent: last number acknowledged; hub: last number acknowledged on this leg
	Ended     bool   `json:"ended,omitempty"`      // HeadSeq is the session's last number
	Forgotten bool   `json:"forgotten,omitempty"`  // agent: it has forgotten the session, which did not end; hub: it has heard that
	PrevEpoch string `json:"prev_epoch,omitempty"` // the epoch before, if the hub knows it
	PrevSeq   uint64 `json:"prev_seq,omitempty"`   // last number accepted of it
}

// EventBatchPayload carries events and gaps from an agent to the hub, and from the hub to a
// viewer (rule 7). Together they tile FirstSeq to LastSeq: they name each number once. It
// is never empty.
type EventBatchPayload struct {
	SessionID string  `json:"session_id"`
	ViewerID  string  `json:"viewer_id"` // the viewer it is for; empty to the hub
	Epoch     string  `json:"epoch"`
	Link      string  `json:"link"` // empty from a hub, if the batch is true for every viewer
	FirstSeq  uint64  `json:"first_seq"`
	LastSeq   uint64  `json:"last_seq"`
	HeadSeq   uint64  `json:"head_seq"` // last number the sender has
	Events    []Event `json:"events,omitempty"`
	Gaps      []Gap   `json:"gaps,omitempty"`

	// trusted is the first of Events if their data was published unread, and Append writes
	// it unread too (StreamerConfig.TrustData). Other Events that a caller puts into a copy
	// of the payload are checked like any.
	trusted *Event
	fact    *fact // whose payload this is, if it is one of many viewers; Append has its frame then
}

// AckBatchPayload says how far the receiver of a session is, and how much more it takes: the
// hub to an agent, a viewer to the hub. Everything up to UpToSeq is accepted, as an event or
// in a gap (rule 6). It is cumulative, so a lost one does no harm: the next one says more.
type AckBatchPayload struct {
	SessionID    string `json:"session_id"`
	ViewerID     string `json:"viewer_id"` // empty: the hub
	Epoch        string `json:"epoch"`     // empty with UpToSeq 0: a viewer that was told of no epoch yet
	Link         string `json:"link"`
	UpToSeq      uint64 `json:"up_to_seq"`               // inclusive; 0: nothing yet
	Nack         bool   `json:"nack,omitempty"`          // what follows UpToSeq did not arrive: send again from there
	Full         bool   `json:"full,omitempty"`          // there is no room beyond UpToSeq now
	WindowEvents int    `json:"window_events,omitempty"` // events beyond UpToSeq that there is room for; 0: as said before
	WindowBytes  int    `json:"window_bytes,omitempty"`  // bytes of their JSON; 0: as said before
	ReadSeq      uint64 `json:"read_seq,omitempty"`      // a viewer's reader has dealt with what is up to here

	Acks []SessionAck `json:"acks,omitempty"` // the same of further sessions
}

// SessionAck is one more session in an AckBatchPayload. Its fields mean the same.
type SessionAck struct {
	SessionID    string `json:"session_id"`
	Epoch        string `json:"epoch"`
	UpToSeq      uint64 `json:"up_to_seq"`
	Nack         bool   `json:"nack,omitempty"`
	Full         bool   `json:"full,omitempty"`
	WindowEvents int    `json:"window_events,omitempty"`
	WindowBytes  int    `json:"window_bytes,omitempty"`
	ReadSeq      uint64 `json:"read_seq,omitempty"`
}

// first is the ack of the session that the payload itself names.
func (p *AckBatchPayload) first() SessionAck {
	return SessionAck{
		SessionID: p.SessionID, Epoch: p.Epoch, UpToSeq: p.UpToSeq, Nack: p.Nack, Full: p.Full,
		WindowEvents: p.WindowEvents, WindowBytes: p.WindowBytes, ReadSeq: p.ReadSeq,
	}
}

// setFirst is the reverse of first.
func (p *AckBatchPayload) setFirst(a SessionAck) {
	p.SessionID, p.Epoch, p.UpToSeq, p.Nack, p.Full = a.SessionID, a.Epoch, a.UpToSeq, a.Nack, a.Full
	p.WindowEvents, p.WindowBytes, p.ReadSeq = a.WindowEvents, a.WindowBytes, a.ReadSeq
}

// WatchPayload asks the hub for a session from a position on, or to stop
// (rule 13).
type WatchPayload struct {
	SessionID string `json:"session_id"`
	ViewerID  string `json:"viewer_id"`
	Epoch     string `json:"epoch"`     // empty with AfterSeq 0: from the first event
	AfterSeq  uint64 `json:"after_seq"` // exclusive
	Stop      bool   `json:"stop,omitempty"`

	// How much the viewer takes beyond AfterSeq. If zero, the defaults of PROTOCOL.md.
	WindowEvents int `json:"window_events,omitempty"`
	WindowBytes  int `json:"window_bytes,omitempty"`
}

// ReplayRequestPayload asks an agent for older events on behalf of one viewer
// (rule 12).
type ReplayRequestPayload struct {
	SessionID string `json:"session_id"`
	ViewerID  string `json:"viewer_id"`
	RequestID string `json:"request_id"` // chosen by the hub, returned in every answer
	Epoch     string `json:"epoch"`      // empty, with AfterSeq 0: the current one
	AfterSeq  uint64 `json:"after_seq"`  // exclusive
	UntilSeq  uint64 `json:"until_seq"`  // inclusive; 0: up to the last number published
	Limit     int    `json:"limit"`      // maximum number of events; 0: everything up to UntilSeq
}

// ReplayBatchPayload answers a replay request, up to 100 events at a time, for
// the one viewer it names (rule 12). Events and gaps tile FirstSeq to LastSeq; one
// without either has LastSeq = FirstSeq-1, and says Done. It has no Link: the request's id
// says on which link it counts.
type ReplayBatchPayload struct {
	SessionID     string  `json:"session_id"`
	ViewerID      string  `json:"viewer_id"`
	RequestID     string  `json:"request_id"`
	Epoch         string  `json:"epoch"`
	FirstSeq      uint64  `json:"first_seq"`
	LastSeq       uint64  `json:"last_seq"`
	UntilSeq      uint64  `json:"until_seq"`      // where the request ends
	AvailableFrom uint64  `json:"available_from"` // first number the agent still holds
	Done          bool    `json:"done,omitempty"` // the last batch of this request
	Events        []Event `json:"events,omitempty"`
	Gaps          []Gap   `json:"gaps,omitempty"`

	// trusted is the first of Events if their data was published unread, and Append writes
	// it unread too (StreamerConfig.TrustData). Other Events that a caller puts into a copy
	// of the payload are checked like any.
	trusted *Event
}

// ErrorPayload refuses something (rule 11). It is never answered by another error, or two
// peers that each refuse what the other says would never stop. What the receiver does is
// decided by Code, and for a code that it doesn't know by the other fields.
type ErrorPayload struct {
	SessionID string `json:"session_id"`           // empty: not about one session
	ViewerID  string `json:"viewer_id"`            // empty: not about one viewer
	Code      Code   `json:"code"`                 // what is wrong; may be one that is no constant here
	Message   string `json:"message,omitempty"`    // for people, at most 256 bytes
	Retryable bool   `json:"retryable,omitempty"`  // the same may succeed later
	RequestID string `json:"request_id,omitempty"` // the replay request it answers
	Epoch     string `json:"epoch,omitempty"`      // what it is about, or the current one
	Seq       uint64 `json:"seq,omitempty"`        // the event it is about, or 0
	ToSeq     uint64 `json:"to_seq,omitempty"`     // the last of a range of events that begins at Seq, or 0
}

func (*HelloPayload) payloadType() string         { return "hello" }
func (*WelcomePayload) payloadType() string       { return "welcome" }
func (*StatusPayload) payloadType() string        { return "status" }
func (*EventBatchPayload) payloadType() string    { return "event_batch" }
func (*AckBatchPayload) payloadType() string      { return "ack_batch" }
func (*WatchPayload) payloadType() string         { return "watch" }
func (*ReplayRequestPayload) payloadType() string { return "replay_request" }
func (*ReplayBatchPayload) payloadType() string   { return "replay_batch" }
func (*ErrorPayload) payloadType() string         { return "error" }

// The check methods stand between a peer and any state. They run on every payload that
// arrives, also on one that the caller's own codec made, and nothing looks at it before
// them; what they let through needs no further check of its form. They say whether a peer
// may say this at all, not whether it may say it now: that is the machine's to decide. Each
// returns a malformed error or nil, takes no lock and changes nothing. The codec's limits
// on lists are the same ones, but hold before memory is spent on a list.

// Another version is not malformed, here or in a welcome, and has an answer of its own (rule
// 17); what its other fields may be, only that version knows. So has another role (rule 3).
func (p *HelloPayload) check() *ProtocolError {
	switch {
	case p.V != version:
		return nil
	case !optionalID(p.ViewerID):
		return malformed("hello: bad viewer_id")
	case !validID(p.Role):
		return malformed("hello: bad role")
	}
	return nil
}

// The roles of a hello. A hub refuses one that does not match what it takes the connection
// for.
const (
	roleAgent  = "agent"
	roleViewer = "viewer"
)

func (p *WelcomePayload) check() *ProtocolError {
	switch {
	case p.WindowEvents < 0 || p.WindowBytes < 0:
		return malformed("welcome: negative window")
	case p.V != version:
		return nil
	case !optionalID(p.ViewerID):
		return malformed("welcome: bad viewer_id")
	case !validID(p.Link):
		return malformed("welcome: bad link")
	}
	return nil
}

func (p *StatusPayload) check() *ProtocolError {
	switch {
	case !optionalID(p.ViewerID):
		return malformed("status: bad viewer_id")
	case !validID(p.Link):
		return malformed("status: bad link")
	case len(p.Sessions) > maxStatus:
		return malformed("status: more than %d sessions", maxStatus)
	}
	for i := range p.Sessions {
		if err := p.Sessions[i].check(); err != nil {
			return err
		}
	}
	return nil
}

// check keeps to what holds in both directions. That an agent must name an epoch, which
// only a hub may leave out, is the hub's machine's to check.
func (s *SessionStatus) check() *ProtocolError {
	switch {
	case !validID(s.SessionID):
		return malformed("status: bad session_id")
	case s.Epoch == "" && !s.unknown():
		return malformed("status: numbers without an epoch")
	case !optionalEpoch(s.Epoch) || !optionalEpoch(s.PrevEpoch):
		return malformed("status: bad epoch")
	case s.HeadSeq > MaxSeq || s.AckSeq > s.HeadSeq || s.FirstSeq > s.HeadSeq+1 || s.PrevSeq > MaxSeq:
		return malformed("status: numbers out of order")
	}
	return nil
}

// unknown reports whether the entry says nothing of the session, as that of a hub does
// which doesn't know it. FirstSeq may be 1 even then: an empty log begins there.
func (s *SessionStatus) unknown() bool {
	return s.HeadSeq|s.AckSeq|s.PrevSeq == 0 && !s.Ended && !s.Forgotten && s.PrevEpoch == ""
}

func (p *EventBatchPayload) check() *ProtocolError { return p.checkWith(nil) }

func (p *eventBatch) check() *ProtocolError { return p.checkWith(p.slots) }

// checkWith is check for a batch whose events are in slots or in p itself: those in slots
// are never made into Events just to be checked.
func (p *EventBatchPayload) checkWith(slots []slot) *ProtocolError {
	switch {
	case !validID(p.SessionID):
		return malformed("event_batch: bad session_id")
	case !optionalID(p.ViewerID):
		return malformed("event_batch: bad viewer_id")
	case !validEpoch(p.Epoch):
		return malformed("event_batch: bad epoch")
	case !optionalID(p.Link):
		return malformed("event_batch: bad link")
	case len(p.Events)+len(slots) > maxBatchEvents:
		return malformed("event_batch: more than %d events", maxBatchEvents)
	case p.HeadSeq < p.LastSeq || p.HeadSeq > MaxSeq:
		return malformed("event_batch: head %d before last %d, or too large", p.HeadSeq, p.LastSeq)
	case p.LastSeq < p.FirstSeq:
		return malformed("event_batch: empty")
	}
	err := checkTiles(p.FirstSeq, p.LastSeq, p.Events, slots, p.Gaps)
	if err != nil && err.Seq != 0 { // the rest is as it should be, so the agent can make a gap of the event
		return rejected(p.SessionID, p.Epoch, err.Seq, err.Message)
	}
	return err
}

func (p *AckBatchPayload) check() *ProtocolError {
	switch {
	case !optionalID(p.ViewerID):
		return malformed("ack_batch: bad viewer_id")
	case !validID(p.Link):
		return malformed("ack_batch: bad link")
	case len(p.Acks) > maxAcks:
		return malformed("ack_batch: %d further sessions, at most %d", len(p.Acks), maxAcks)
	}
	first := p.first()
	if err := first.check(); err != nil {
		return err
	}
	for i := range p.Acks {
		if err := p.Acks[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (a *SessionAck) check() *ProtocolError {
	switch {
	case !validID(a.SessionID):
		return malformed("ack_batch: bad session_id")
	case !optionalEpoch(a.Epoch):
		return malformed("ack_batch: bad epoch")
	case a.Epoch == "" && a.UpToSeq > 0:
		return malformed("ack_batch: up_to_seq %d without an epoch", a.UpToSeq)
	case a.UpToSeq > MaxSeq:
		return malformed("ack_batch: up_to_seq too large")
	case a.ReadSeq > a.UpToSeq:
		return malformed("ack_batch: read_seq %d above up_to_seq %d", a.ReadSeq, a.UpToSeq)
	case a.WindowEvents < 0 || a.WindowBytes < 0:
		return malformed("ack_batch: negative window")
	}
	return nil
}

func (p *WatchPayload) check() *ProtocolError {
	switch {
	case !validID(p.SessionID):
		return malformed("watch: bad session_id")
	case !optionalID(p.ViewerID):
		return malformed("watch: bad viewer_id")
	case !(Position{p.Epoch, p.AfterSeq}).valid():
		return malformed("watch: position: %s", Position{p.Epoch, p.AfterSeq}.problem())
	case p.WindowEvents < 0 || p.WindowBytes < 0:
		return malformed("watch: negative window")
	}
	return nil
}

func (p *ReplayRequestPayload) check() *ProtocolError {
	switch {
	case !validID(p.SessionID):
		return malformed("replay_request: bad session_id")
	case !optionalID(p.ViewerID):
		return malformed("replay_request: bad viewer_id")
	case !validID(p.RequestID):
		return malformed("replay_request: bad request_id")
	case !(Position{p.Epoch, p.AfterSeq}).valid():
		return malformed("replay_request: position: %s", Position{p.Epoch, p.AfterSeq}.problem())
	case p.UntilSeq > MaxSeq || p.UntilSeq != 0 && p.UntilSeq < p.AfterSeq:
		return malformed("replay_request: until %d before after %d, or too large", p.UntilSeq, p.AfterSeq)
	case p.Limit < 0:
		return malformed("replay_request: negative limit")
	}
	return nil
}

func (p *ReplayBatchPayload) check() *ProtocolError { return p.checkWith(nil) }

func (p *replayBatch) check() *ProtocolError { return p.checkWith(p.slots) }

// checkWith is check for a batch whose events are in slots or in p itself.
func (p *ReplayBatchPayload) checkWith(slots []slot) *ProtocolError {
	switch {
	case !validID(p.SessionID):
		return malformed("replay_batch: bad session_id")
	case !optionalID(p.ViewerID):
		return malformed("replay_batch: bad viewer_id")
	case !validID(p.RequestID):
		return malformed("replay_batch: bad request_id")
	case !validEpoch(p.Epoch):
		return malformed("replay_batch: bad epoch")
	case len(p.Events)+len(slots) > maxReplayBatchEvents:
		return malformed("replay_batch: more than %d events", maxReplayBatchEvents)
	case !p.ordered():
		return malformed("replay_batch: numbers out of order")
	case p.FirstSeq == 0 || p.LastSeq < p.FirstSeq-1:
		return malformed("replay_batch: ends before it starts")
	}
	err := checkTiles(p.FirstSeq, p.LastSeq, p.Events, slots, p.Gaps)
	if err != nil {
		err.Seq = 0 // an agent can't be refused what it has been acknowledged
	}
	return err
}

// ordered reports whether the batch lies within its request, and the request within the
// numbers that there are. AvailableFrom may be one more: an agent that used the last number
// and keeps no events.
func (p *ReplayBatchPayload) ordered() bool {
	return p.LastSeq <= p.UntilSeq && p.UntilSeq <= MaxSeq && p.AvailableFrom <= MaxSeq+1
}

func (p *ErrorPayload) check() *ProtocolError {
	switch {
	case !optionalID(p.SessionID):
		return malformed("error: bad session_id")
	case !optionalID(p.ViewerID):
		return malformed("error: bad viewer_id")
	case !validID(string(p.Code)):
		return malformed("error: bad code")
	case len(p.Message) > maxMessage || !utf8.ValidString(p.Message):
		return malformed("error: bad message")
	case !optionalID(p.RequestID):
		return malformed("error: bad request_id")
	case !optionalEpoch(p.Epoch):
		return malformed("error: bad epoch")
	case p.Seq > MaxSeq || p.ToSeq > MaxSeq:
		return malformed("error: seq too large")
	case p.ToSeq != 0 && (p.Seq == 0 || p.ToSeq < p.Seq):
		return malformed("error: %d to %d is no range", p.Seq, p.ToSeq)
	}
	return nil
}

// checkTiles checks that events and gaps tile first to last: each number once and in order,
// with nothing after an end. All that a log does relies on it, since a log's slots say
// only where they end. The events are in one of events and slots; those in slots were
// checked when the slots were made. Both lists are in order by themselves, so one pass
// over the two, from the next number that is missing, finds every hole and overlap.
func checkTiles(first, last uint64, events []Event, slots []slot, gaps []Gap) *ProtocolError {
	if first == 0 || last > MaxSeq {
		return malformed("batch: numbers start at 1 and end at %d", uint64(MaxSeq))
	}
	if len(gaps) > maxBatchGaps {
		return malformed("batch: more than %d gaps", maxBatchGaps)
	}
	next := first
	for i := 0; i < len(events)+len(slots) || len(gaps) > 0; {
		if seq, end, ev := eventAt(i, events, slots); seq == next {
			if err := checkEventTile(next, last, end, ev); err != nil {
				return err
			}
			i++
			next++
			continue
		}
		if err := checkGapTile(next, last, gaps); err != nil {
			return err
		}
		next = gaps[0].To + 1
		gaps = gaps[1:]
	}
	if next != last+1 {
		return malformed("batch: ends at %d, not at last_seq %d", next-1, last)
	}
	return nil
}

// eventAt returns the number of event i, which is 0 if there is none, and whether it is
// the session's end. ev is nil if the event is in a slot.
func eventAt(i int, events []Event, slots []slot) (seq uint64, end bool, ev *Event) {
	switch {
	case i < len(slots):
		return slots[i].to, slots[i].end(), nil
	case i < len(events):
		return events[i].Seq, events[i].End, &events[i]
	}
	return 0, false, nil
}

// checkEventTile checks the event at number next of a batch that ends at last. An error that is
// about the event itself names its number.
func checkEventTile(next, last uint64, end bool, ev *Event) *ProtocolError {
	if ev != nil {
		if bad := ev.checkFields(); bad != nil {
			err := malformed("%v", &eventError{next, bad})
			err.Seq = next
			return err
		}
	}
	if end && next != last {
		return malformed("batch: something follows the end %d", next)
	}
	return nil
}

// checkGapTile checks that the first of gaps begins at number next of a batch that ends
// at last.
func checkGapTile(next, last uint64, gaps []Gap) *ProtocolError {
	switch {
	case len(gaps) == 0 || gaps[0].From != next || gaps[0].To < next || gaps[0].To > last:
		return malformed("batch: nothing tiles number %d", next)
	case !validReason(gaps[0].Reason):
		return malformed("batch: gap at %d: bad reason", next)
	}
	return nil
}

// shorten shortens a word of the peer's for an error message, so that the peer can't make this
// side send, or log, a long one.
func shorten(s string) string { return s[:min(len(s), 32)] }

// Payload returns the error payload that says the same to the peer. It is for callers that
// decode frames themselves and drive a Link by Handle and Next: Run and Handle
// answer by themselves. The message is cut to the 256 bytes that the protocol allows.
func (e *ProtocolError) Payload() *ErrorPayload {
	return &ErrorPayload{
		SessionID: e.SessionID, ViewerID: e.ViewerID, Code: e.Code, Message: clip(e.Message),
		Retryable: e.Retryable, RequestID: e.RequestID, Epoch: e.Epoch, Seq: e.Seq, ToSeq: e.ToSeq,
	}
}

// protocolError is the error that a peer's error payload reports, for callers of this side
// to compare and print. The message is in the peer's words.
func (p *ErrorPayload) protocolError() *ProtocolError {
	return &ProtocolError{
		Code: p.Code, Message: p.Message, Retryable: p.Retryable, SessionID: p.SessionID,
		ViewerID: p.ViewerID, RequestID: p.RequestID, Epoch: p.Epoch, Seq: p.Seq, ToSeq: p.ToSeq,
	}
}
