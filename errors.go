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
	// ErrInvalidID: an id is not 1 to 128 bytes of UTF-8 without control
	// characters, or an epoch or position is malformed.
	ErrInvalidID = errors.New("gvstream: invalid id")
	// ErrSuperseded: a newer link of the same agent or viewer took over.
	ErrSuperseded = errors.New("gvstream: link superseded by a newer one")
	// ErrSilent: nothing moved on the connection for so long that it must be taken for
	// dead. It is wrapped in an error that says for how long.
	ErrSilent = errors.New("gvstream: nothing moved on the connection")
	// ErrSeqExhausted: the session used its last number, MaxSeq.
	ErrSeqExhausted = errors.New("gvstream: sequence numbers exhausted")
	// ErrTooMany: there are already as many sessions, or watches, as the
	// configuration allows.
	ErrTooMany = errors.New("gvstream: too many sessions or watches")
	// ErrUnknownSession: there is no session with that id.
	ErrUnknownSession = errors.New("gvstream: unknown session")
	// ErrBusy: Items is running already, the link was given to Run or Push before,
	// or the session is watched already.
	ErrBusy = errors.New("gvstream: already in use")
)

// The codes of an error payload. They are part of the protocol: PROTOCOL.md
// says what each asks of the peer. A peer may send others, too.
const (
	codeMalformed      = "malformed"
	codeUnknownType    = "unknown_type"
	codeUnexpected     = "unexpected"
	codeStaleLink      = "stale_link"
	codeStaleEpoch     = "stale_epoch"
	codeForbidden      = "forbidden"
	codeUnknownSession = "unknown_session"
	codeAckBeyondSent  = "ack_beyond_sent"
	codeReplayAhead    = "replay_ahead"
	codeReplayBusy     = "replay_busy"
	codeEventRejected  = "event_rejected"
	codeEventTooLarge  = "event_too_large"
	codeEnded          = "session_ended"
	codeOverloaded     = "overloaded"
	codeLimit          = "limit_exceeded"
	codeVersion        = "version_unsupported"
)

// A ProtocolError is what a peer did wrong, or what a peer says that this side did
// wrong. Link.Handle returns one for a payload that it refused, and answers the peer
// by itself; Items yields one for a watch that the hub ended; Publish returns one for
// a session that the hub stopped.
//
// A Commit callback may return one with Code "event_rejected" and Seq set: the
// agent then turns that event into a gap instead of sending it again (rule 11).
type ProtocolError struct {
	Code      string // one of the codes in PROTOCOL.md
	Message   string // for people, at most 256 bytes; may be a peer's own words: Error quotes them
	Retryable bool   // the same may succeed later
	SessionID string // empty if it is not about one session
	ViewerID  string // empty if it is not about one viewer
	RequestID string // the replay request it answers, or empty
	Epoch     string // the epoch it is about, or the current one
	Seq       uint64 // the event it is about, or 0

	fatal      bool // the link fails (rule 6)
	unanswered bool // the peer gets no error payload: what it sent was one (rule 11)
}

// Error names the code, the session, epoch and number as far as they are known. It
// is one line: a peer's text with characters that don't print is quoted, Message too.
func (e *ProtocolError) Error() string {
	s := "gvstream: " + quoted(e.Code)
	if e.SessionID != "" {
		s += fmt.Sprintf(" session=%q", e.SessionID)
	}
	if e.Epoch != "" {
		s += fmt.Sprintf(" epoch=%q", e.Epoch)
	}
	if e.Seq != 0 {
		s += fmt.Sprintf(" seq=%d", e.Seq)
	}
	if e.Message != "" {
		s += ": " + quoted(e.Message)
	}
	return s
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
	return &ProtocolError{Code: codeMalformed, Message: clip(fmt.Sprintf(format, args...))}
}

// refusal is an answer about one session.
func refusal(code, sessionID, format string, args ...any) *ProtocolError {
	return &ProtocolError{Code: code, SessionID: sessionID, Message: clip(fmt.Sprintf(format, args...))}
}

// maxMessage is the longest text of an error payload, in bytes.
const maxMessage = 256

// clip makes a text valid for an error payload. A caller's or a peer's words may be in
// it, so it can be of any length and no UTF-8.
func clip(s string) string {
	if s = strings.ToValidUTF8(s, "\ufffd"); len(s) <= maxMessage {
		return s
	}
	n := maxMessage
	for !utf8.RuneStart(s[n]) { // not inside a character
		n--
	}
	return s[:n]
}

// An UnackedError is what Close returns when events were left that the hub had
// not acknowledged. Streamer.Unacked still yields them.
type UnackedError struct {
	Sessions int // sessions with unacknowledged events
	Events   int // unacknowledged events in all
	Err      error
}

// Error gives the counts and why Close could not wait on.
func (e *UnackedError) Error() string {
	return fmt.Sprintf("gvstream: %d events of %d sessions not acknowledged: %v", e.Events, e.Sessions, e.Err)
}

// Unwrap returns what ended the wait: the context's error, or the error that
// stopped a session.
func (e *UnackedError) Unwrap() error { return e.Err }

// asError makes an error of a *ProtocolError that may be nil: a nil pointer in an error is
// not a nil error.
func asError(err *ProtocolError) error {
	if err == nil {
		return nil
	}
	return err
}
