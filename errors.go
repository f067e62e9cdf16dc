package gvstream

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Errors that a caller may want to decide on. All are returned as they are or
// wrapped: compare with errors.Is.
var (
	// ErrPendingFull: the session holds as many unacknowledged events as it may, and
	// its overflow policy is Reject, or DropOldest where dropping is not enough. No
	// number was used.
	ErrPendingFull = errors.New("gvstream: pending is full")
	// ErrClosed: the Streamer, Hub, Viewer or Link was closed, or the Session
	// was forgotten.
	ErrClosed = errors.New("gvstream: closed")
	// ErrEnded: the session's last event was published already.
	ErrEnded = errors.New("gvstream: session has ended")
	// ErrTooLarge: the event's JSON is longer than an event may be, and no number was
	// used; or, from a SendFunc such as that of Lines, a payload is longer than the
	// transport can carry.
	ErrTooLarge = errors.New("gvstream: event too large")
	// ErrInvalidData: the event's data is not JSON, its type is not a valid id or its time
	// has no JSON form, or it has both Data and Bytes. No number was used.
	ErrInvalidData = errors.New("gvstream: invalid event")
	// ErrInvalidID: the id of a session, agent or viewer is not 1 to 128 bytes of UTF-8
	// without control characters.
	ErrInvalidID = errors.New("gvstream: invalid id")
	// ErrInvalidPosition: a Position is neither zero nor a number, at most MaxSeq, of an
	// epoch, which is 1 to 64 bytes of [0-9a-z_-]; or a text is not that of a Position.
	ErrInvalidPosition = errors.New("gvstream: invalid position")
	// ErrSuperseded: a newer link of the same agent or viewer took over. To connect again
	// would only supersede that one: another process may use the same id.
	ErrSuperseded = errors.New("gvstream: link superseded by a newer one")
	// ErrSilent: nothing moved on the connection for so long that it must be taken for
	// dead. It is wrapped in an error that says for how long.
	ErrSilent = errors.New("gvstream: nothing moved on the connection")
	// ErrSeqExhausted: the session used its last number, MaxSeq.
	ErrSeqExhausted = errors.New("gvstream: sequence numbers exhausted")
	// ErrTooMany: there are already as many sessions, or watches, as the
	// configuration allows.
	ErrTooMany = errors.New("gvstream: too many")
	// ErrUnknownSession: there is no session with that id.
	ErrUnknownSession = errors.New("gvstream: unknown session")
	// ErrBusy: a second call of what runs once at a time, Viewer.Items, or once in a link's
	// life, Run and Push.
	ErrBusy = errors.New("gvstream: already running")
	// ErrWatched: the Viewer watches the session already.
	ErrWatched = errors.New("gvstream: session is watched already")
	// ErrEpochAhead: the epoch that the hub knows of the session is so far ahead of the
	// clock, or of such a form, that the hub would take no greater one (rule 2).
	ErrEpochAhead = errors.New("gvstream: no later epoch")
)

// A Code says what is wrong, in an ErrorPayload and in a ProtocolError. PROTOCOL.md says for
// each who sends it when, and what its receiver does. A peer may send others than these.
type Code string

const (
	// CodeMalformed: the payload can't be decoded, or breaks a limit or a table of the
	// protocol.
	CodeMalformed Code = "malformed"
	// CodeUnknownType: the receiver knows no payload of that type.
	CodeUnknownType Code = "unknown_type"
	// CodeUnexpected: a payload of that type doesn't go in this direction.
	CodeUnexpected Code = "unexpected"
	// CodeStaleLink: the payload is of another link, or came before the hello (rule 3).
	CodeStaleLink Code = "stale_link"
	// CodeStaleEpoch: the session has a greater epoch: it was begun again elsewhere
	// (rule 2). Streamer.Renew gets past it.
	CodeStaleEpoch Code = "stale_epoch"
	// CodeForbidden: the agent may not open the session, or the viewer may not watch it
	// (rules 4 and 13).
	CodeForbidden Code = "forbidden"
	// CodeUnknownSession: the session isn't open on the link, or isn't the agent's (rule 5).
	CodeUnknownSession Code = "unknown_session"
	// CodeAckBeyondSent: an ack is above all that was sent (rule 6).
	CodeAckBeyondSent Code = "ack_beyond_sent"
	// CodeReplayAhead: a viewer's position is one that the agent has not reached (rules 12
	// and 13).
	CodeReplayAhead Code = "replay_ahead"
	// CodeReplayBusy: the agent answers as many replays of the session as it may (rule 12).
	CodeReplayBusy Code = "replay_busy"
	// CodeEventRejected: the hub refuses the event for good, and the agent turns it into a
	// gap (rule 11). Commit may return it.
	CodeEventRejected Code = "event_rejected"
	// CodeEventTooLarge: the event is larger than the hub takes, and becomes a gap (rule 11).
	CodeEventTooLarge Code = "event_too_large"
	// CodeSessionEnded: the session goes on after the end that the hub has accepted
	// (rule 16).
	CodeSessionEnded Code = "session_ended"
	// CodeOverloaded: the hub can't take the session for now: it has too many, its store
	// fails, or the epoch is too far ahead of its clock (rules 2, 5 and 8).
	CodeOverloaded Code = "overloaded"
	// CodeLimitExceeded: the viewer watches as many sessions as it may over one link.
	CodeLimitExceeded Code = "limit_exceeded"
	// CodeVersionUnsupported: the peer speaks another version of the protocol (rule 17).
	CodeVersionUnsupported Code = "version_unsupported"
	// CodeWrongRole: an agent has connected where the hub expects viewers, or the reverse
	// (rule 3).
	CodeWrongRole Code = "wrong_role"
	// CodeSuperseded: a newer link of the same agent or viewer has taken over (rule 3).
	CodeSuperseded Code = "superseded"
)

// A ProtocolError is what a peer did wrong, or what a peer says that this side did
// wrong. Link.Handle returns one for a payload that it refused, and answers the peer
// by itself; Items yields one for a watch that the hub ended; Publish returns one for
// a session that the hub stopped.
//
// A Commit callback may return one with CodeEventRejected and Seq set, and ToSeq for
// a range: the agent then turns those events into gaps instead of sending them again
// (rule 11).
type ProtocolError struct {
	Code      Code   // what is wrong; a peer may send others than the constants
	Message   string // for people, at most 256 bytes; may be a peer's own words: Error quotes them
	Retryable bool   // the same may succeed later
	SessionID string // empty if it is not about one session
	ViewerID  string // empty if it is not about one viewer
	RequestID string // the replay request it answers, or empty
	Epoch     string // the epoch it is about, or the current one
	Seq       uint64 // the event it is about, or 0
	ToSeq     uint64 // the last of a range of events that begins at Seq, or 0

	fatal      bool // the link fails (rules 3 and 17)
	unanswered bool // the peer gets no error payload: what it sent was one (rule 11)
}

// Error names the code, the session, epoch and number as far as they are known. It
// is one line: a peer's text with characters that don't print is quoted, Message too.
func (e *ProtocolError) Error() string {
	s := "gvstream: " + quoted(string(e.Code))
	if e.SessionID != "" {
		s += fmt.Sprintf(" session=%q", e.SessionID)
	}
	if e.Epoch != "" {
		s += fmt.Sprintf(" epoch=%q", e.Epoch)
	}
	if e.Seq != 0 {
		s += fmt.Sprintf(" seq=%d", e.Seq)
	}
	if e.ToSeq > e.Seq {
		s += fmt.Sprintf("-%d", e.ToSeq)
	}
	if e.Message != "" {
		s += ": " + quoted(e.Message)
	}
	return s
}

// Is makes errors.Is find ErrSuperseded in a hub's word for it.
func (e *ProtocolError) Is(target error) bool {
	return target == ErrSuperseded && e.Code == CodeSuperseded
}

// quoted is a text in a form that is safe in a log even if a hostile peer wrote it: without
// line feeds, which would forge entries, and without what a terminal obeys.
func quoted(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	return strconv.Quote(s)
}

// malformed is the answer to a frame that breaks the protocol. It names no session,
// since a frame like that can't be trusted to say which.
func malformed(format string, args ...any) *ProtocolError {
	return &ProtocolError{Code: CodeMalformed, Message: clip(fmt.Sprintf(format, args...))}
}

// refusal is an answer about one session.
func refusal(code Code, sessionID, format string, args ...any) *ProtocolError {
	return &ProtocolError{Code: code, SessionID: sessionID, Message: clip(fmt.Sprintf(format, args...))}
}

// maxMessage is the longest text of an error payload, in bytes.
const maxMessage = 256

// clip makes a text valid for an error payload. A caller's or a peer's words may be in
// it, so it can be of any length and no UTF-8.
func clip(s string) string { return clipTo(s, maxMessage) }

// clipTo cuts a text to that many bytes, between characters, and makes it UTF-8.
func clipTo(s string, n int) string {
	if s = strings.ToValidUTF8(s, "\ufffd"); len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// An UnackedError is what Close returns when the hub has not acknowledged all events: some
// are left, which Streamer.Unacked still yields, or some were lost.
type UnackedError struct {
	Sessions int    // sessions with unacknowledged events
	Events   int    // unacknowledged events in all
	Lost     uint64 // events that became gaps instead, as in StreamerStats
	Err      error  // why Close could not wait on; nil if nothing is left
}

// Error gives the counts and why Close could not wait on.
func (e *UnackedError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("gvstream: %d events lost", e.Lost)
	}
	return fmt.Sprintf("gvstream: %d events of %d sessions not acknowledged, %d lost: %v", e.Events, e.Sessions, e.Lost, e.Err)
}

// Unwrap returns what ended the wait: the context's error, or the error that
// stopped a session. It is nil if the wait came to its end.
func (e *UnackedError) Unwrap() error { return e.Err }

// asError makes an error of a *ProtocolError that may be nil: a nil pointer in an error is
// not a nil error.
func asError(err *ProtocolError) error {
	if err == nil {
		return nil
	}
	return err
}
