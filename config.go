package gvstream

import (
	"context"
	"math"
	"time"
)

// This file is all that a caller may set: limits, policies and callbacks. Each constructor
// copies its config with the defaults filled in, and nothing changes it afterwards, so it is
// read without a lock. Zero stands for the default. In the copy zero is zero, since withDefaults
// has replaced both the zero that stands for the default and the negative that stands for 0.
// No value stands for "no limit": that is math.MaxInt.

// A StreamerConfig holds the limits of a Streamer. A nil config is all defaults.
type StreamerConfig struct {
	// Overflow is what Publish does when pending is full. If zero, Block.
	Overflow Overflow
	// MaxSessions is the number of sessions at a time. If zero, 10,000. Negative
	// means 0: none can be made.
	MaxSessions int
	// MaxPendingEvents is the number of unacknowledged events per session. If
	// zero, 8,192. Negative means 0: nothing can be published.
	MaxPendingEvents int
	// MaxPendingBytes is the bytes of unacknowledged events' JSON per session.
	// If zero, 8 MiB. Negative means 0: nothing can be published.
	MaxPendingBytes int
	// ReplayEvents is how many of the most recent events a session keeps for
	// replay, pending ones included. If zero, 65,536. Negative means 0: only the
	// pending ones are kept.
	ReplayEvents int
	// ReplayBytes is the bytes of the JSON of the events that a session keeps for
	// replay, pending ones included. If zero, 8 MiB. Negative means 0: only the
	// pending ones are kept.
	ReplayBytes int
	// MaxEventBytes is the bytes of an event's JSON, base64 included. If zero,
	// 1 MiB. Negative means 0: nothing can be published. Where it exceeds
	// MaxPendingBytes or MaxTotalBytes, it is lowered to that: a larger event would
	// never fit. A transport has limits of its own; Lines takes 2 MiB a payload.
	MaxEventBytes int
	// MaxTotalBytes is the bytes of events' JSON of all sessions together. Over
	// it, acknowledged events of any session, oldest first, are evicted before
	// Overflow applies. DropOldest drops events of its own session only; where
	// that is not enough, Publish returns ErrPendingFull. If zero, 512 MiB.
	// Negative means 0: nothing can be published.
	MaxTotalBytes int
	// MaxBatchBytes is the bytes of JSON of a batch; one event that is larger goes
	// alone. If zero, or more than that, 256 KiB; at least 16 KiB. Negative means
	// 16 KiB.
	MaxBatchBytes int
	// MaxReplays is the number of replay requests a session answers at a time.
	// If zero, 8. Negative means 0: all are refused, and history that the hub does
	// not hold is missing.
	MaxReplays int
	// TrustData spares Publish the check of Data, which then has to be one JSON
	// value in UTF-8 without white space between its tokens, such as
	// json.Marshal makes. Never set it for data that others control: Data that is
	// not a JSON value may be read as other fields of its batch, though not of
	// another payload, since Publish refuses a newline all the same. The hub
	// refuses what it can't read. Then the agent checks what it has sent and turns
	// the events that are wrong into gaps with ReasonRejected; no other event is
	// harmed (rule 11). If false, Publish refuses such Data.
	TrustData bool
}

// withDefaults returns a copy with the defaults filled in; c may be nil.
func (c *StreamerConfig) withDefaults() StreamerConfig {
	var d StreamerConfig
	if c != nil {
		d = *c
	}
	d.MaxSessions = defaultTo(d.MaxSessions, 10_000)
	d.MaxPendingEvents = defaultTo(d.MaxPendingEvents, 8192)
	d.MaxPendingBytes = defaultTo(d.MaxPendingBytes, 8<<20)
	d.ReplayEvents = defaultTo(d.ReplayEvents, 65_536)
	d.ReplayBytes = defaultTo(d.ReplayBytes, 8<<20)
	d.MaxTotalBytes = defaultTo(d.MaxTotalBytes, 512<<20)
	d.MaxEventBytes = min(defaultTo(d.MaxEventBytes, 1<<20), d.MaxPendingBytes, d.MaxTotalBytes, maxFrame)
	d.MaxBatchBytes = batchBytesOf(d.MaxBatchBytes)
	d.MaxReplays = defaultTo(d.MaxReplays, 8)
	return d
}

// Overflow is what Publish does when a session's pending is full (rule 10).
type Overflow int

const (
	// Block makes Publish wait until the hub's acks make room, ctx ends or the
	// Streamer is closed. It is the default. Without a connection, no acks come.
	Block Overflow = iota
	// Reject makes Publish return ErrPendingFull, and uses no number.
	Reject
	// DropOldest turns the oldest pending events into a gap with ReasonDropped.
	// Publish does not wait.
	DropOldest
)

// A HubConfig holds the callbacks and limits of a Hub. A nil config is all
// defaults. Callbacks are called with no lock held and may call any method of the
// package; they must return when ctx ends. Several may run at once, but for one
// session of one Hub only one call of Resume or Commit. ctx has the values of the one
// that the caller gave to the link, by Run or Handle. AuthorizeViewer is called by the
// goroutine that handles the payload, and its ctx is that very one. The others are
// called by goroutines of the Hub's own, which exist only while they are needed: a panic
// in them ends the process. Their ctx ends when the Hub is closed, and that of
// AuthorizeAgent and Resume also with the link.
type HubConfig struct {
	// AuthorizeViewer says whether a viewer may watch a session, on every watch and
	// each time one resumes; an error refuses it. It is called whether or not the
	// session exists, and the viewer can't tell the difference. If nil, every
	// viewer may watch every session (rule 13).
	AuthorizeViewer func(ctx context.Context, viewerID, sessionID string) error
	// Commit stores events and gaps, in order, before they count as accepted, are
	// acknowledged or reach a viewer. Nothing but their session waits for it: what
	// arrives meanwhile is stored by the next call, in one piece of about 1,024 items
	// or 1 MiB, and other sessions are stored at the same time, up to MaxCommits. A
	// call goes on when the agent's link is lost, and what it stores counts.
	//
	// If it returns an error, none of the items is accepted. The agent keeps them,
	// waits for a second, longer each time up to 2 minutes, and sends them again; its
	// other sessions go on. So the same items may come again: in one transaction,
	// store only what is above the last number stored in that epoch, where a gap
	// counts up to its last number. A *ProtocolError with CodeEventRejected and
	// Seq, or a range from Seq to ToSeq, instead refuses those events for good: each
	// becomes a gap with ReasonRejected, at the agent as well, and comes to Commit as
	// that, with the rest of the items.
	//
	// Where no event says that the session has ended, since that was refused or the
	// Hub has not seen it, the end comes as an Item with End, after everything else,
	// perhaps alone, and perhaps again. The items and their bytes are Commit's to
	// keep. If nil, accepted events live in the hub's memory only (rule 8).
	Commit func(ctx context.Context, sessionID, epoch string, items []Item) error
	// Resume returns the last number of a session that the caller's store holds
	// in an epoch that the hub does not know: 0 if none. If it returns an error,
	// the agent is refused for now and asks again after a wait (rule 11). If nil, the hub
	// believes the agent's own count of what was acknowledged (rule 5).
	Resume func(ctx context.Context, sessionID, epoch string) (uint64, error)
	// AuthorizeAgent says whether an agent may open a session: once for each link
	// and epoch in which it opens one, also after the hub was restarted. ownerID is
	// the agent that the session belongs to, perhaps the same one, or empty if it
	// belongs to nobody; another agent's session is taken over, which that agent
	// keeps while AuthorizeAgent runs. An error refuses the session for good, unless
	// it is a *ProtocolError that is Retryable, or the error of a context that has
	// ended: then the agent asks again after a wait. The agent is told no more of
	// the error than the Message of a *ProtocolError. If nil, any agent may open a
	// session that belongs to nobody, and none may take another's (rule 4).
	AuthorizeAgent func(ctx context.Context, agentID, sessionID, ownerID string) error

	// LogEvents is how many of the most recent events of a session the hub
	// keeps for its viewers. If zero, 65,536. Negative means 0: every viewer reads
	// from the agent.
	LogEvents int
	// LogBytes is the bytes of those events' JSON, per session. If zero, 8 MiB.
	// Negative means 0: every viewer reads from the agent.
	LogBytes int
	// MaxTotalBytes is the bytes of those events' JSON, of all sessions together.
	// Over it, the oldest events of any session go first, and viewers read them from
	// the agent. If zero, 1 GiB. Negative means 0: every viewer reads from the agent.
	MaxTotalBytes int
	// MaxEventBytes is the bytes of an event's JSON; a larger one is refused and
	// becomes a gap. If zero, 1 MiB. Negative means 0: all are refused.
	MaxEventBytes int
	// MaxBatchBytes is the bytes of JSON of a batch to a viewer; one event that is
	// larger goes alone. If zero, or more than that, 256 KiB; at least 16 KiB.
	// Negative means 16 KiB.
	MaxBatchBytes int
	// MaxSessions is the number of sessions of all agents. Where it is reached, the
	// session that ended, or was forgotten by its agent, the longest time ago goes
	// first, unless it is watched; a living one is refused only if there is none. If
	// zero, 100,000. Negative means 0: all are refused.
	MaxSessions int
	// MaxAgentSessions is the number of sessions of one agent that have not ended
	// and that the agent has not forgotten: those open on its link, and those that
	// SessionTTL keeps while it is away. If zero, 10,000. Negative means 0: all are
	// refused.
	MaxAgentSessions int
	// MaxWatches is the number of sessions watched over one viewer's link. If
	// zero, 100. Negative means 0: all are refused.
	MaxWatches int
	// MaxReplays is the number of replay requests to an agent that are open at a
	// time for one session, each for all viewers that need its events; more wait
	// their turn. An answer is about 1 MiB at most, and the hub holds up to four
	// times as many for viewers that read them. If zero, 8. Negative means 0: nothing
	// is asked of agents, and older events are missing; all, if LogEvents is 0 too.
	MaxReplays int
	// Window is the number of events an agent may send beyond the hub's ack, a
	// session. If zero, 1,024; at least 1. Negative means 1.
	Window int
	// WindowBytes is the bytes of JSON that an agent may send beyond the hub's ack,
	// a session. If zero, 1 MiB; at least 16 KiB. Negative means 16 KiB.
	WindowBytes int
	// MaxCommits is the number of sessions for which Commit runs at a time, and also
	// the number that are being opened, by AuthorizeAgent and Resume, at a time. If
	// zero, 64. Negative means 1.
	MaxCommits int
	// MaxUncommittedBytes is the bytes of events' JSON that one agent has sent and
	// that wait for Commit, all its sessions together. What is beyond is dropped, and
	// the agent sends it again a second later. If zero, 16 MiB. Negative means
	// 0, and one batch, which always fits.
	MaxUncommittedBytes int
	// SessionTTL is how long the hub remembers a session that has not ended, while
	// its agent is away and nobody watches it. If zero, 1 hour. Negative means 0: it
	// is forgotten at once.
	SessionTTL time.Duration
	// EndedTTL is how long the hub keeps a session that has ended, or that its agent
	// has forgotten, with its events, after the agent last spoke of it and while
	// nobody watches it. If zero, 1 hour. Negative means 0: it is forgotten at once.
	EndedTTL time.Duration
	// ReplayWait is how long a viewer waits for older events while their agent
	// is away, or is there and answers nothing, before they are declared
	// unavailable. If zero, 10 seconds. Negative means 0: it does not wait for an
	// agent that is away, and a second for one that is there.
	ReplayWait time.Duration
}

// withDefaults returns a copy with the defaults filled in; c may be nil.
func (c *HubConfig) withDefaults() HubConfig {
	var d HubConfig
	if c != nil {
		d = *c
	}
	d.LogEvents = defaultTo(d.LogEvents, 65_536)
	d.LogBytes = defaultTo(d.LogBytes, 8<<20)
	d.MaxTotalBytes = defaultTo(d.MaxTotalBytes, 1<<30)
	d.MaxEventBytes = defaultTo(d.MaxEventBytes, 1<<20)
	d.MaxBatchBytes = batchBytesOf(d.MaxBatchBytes)
	d.MaxSessions = defaultTo(d.MaxSessions, 100_000)
	d.MaxAgentSessions = defaultTo(d.MaxAgentSessions, 10_000)
	d.MaxWatches = defaultTo(d.MaxWatches, 100)
	d.MaxReplays = defaultTo(d.MaxReplays, 8)
	d.Window = min(max(1, defaultTo(d.Window, defaultWindow)), math.MaxInt32) // an agent may have ints of 32 bits
	d.WindowBytes = min(max(minWindowBytes, defaultTo(d.WindowBytes, 1<<20)), math.MaxInt32)
	d.MaxCommits = max(1, defaultTo(d.MaxCommits, 64))
	d.MaxUncommittedBytes = min(defaultTo(d.MaxUncommittedBytes, 16<<20), math.MaxInt/2) // two of them are added
	d.SessionTTL = min(defaultTo(d.SessionTTL, time.Hour), forever)
	d.EndedTTL = min(defaultTo(d.EndedTTL, time.Hour), forever)
	d.ReplayWait = min(defaultTo(d.ReplayWait, 10*time.Second), forever)
	return d
}

// forever is as good as any longer time, and its sums with others don't overflow.
const forever = 100 * 365 * 24 * time.Hour

// A ViewerConfig holds the limits of a Viewer. A nil config is all defaults.
type ViewerConfig struct {
	// Window is the number of items of one session that may wait to be read from
	// Items. The hub sends no more of it than there is room for: what a slow reader
	// leaves unread waits at the hub. If zero, 1,024; at least 1. Negative means 1.
	Window int
	// WindowBytes is the bytes of those items' data. An item that is larger by
	// itself comes when nothing else waits. If zero, 256 KiB; at least 1. Negative
	// means 1: items come one at a time.
	WindowBytes int
	// MaxWatches is the number of sessions watched at a time. If zero, 100.
	// Negative means 0: none can be watched.
	MaxWatches int
}

// withDefaults returns a copy with the defaults filled in; c may be nil.
func (c *ViewerConfig) withDefaults() ViewerConfig {
	var d ViewerConfig
	if c != nil {
		d = *c
	}
	d.Window = min(max(1, defaultTo(d.Window, defaultWindow)), math.MaxInt32) // a hub may have ints of 32 bits
	d.WindowBytes = min(max(1, defaultTo(d.WindowBytes, defaultWindowBytes)), math.MaxInt32)
	d.MaxWatches = defaultTo(d.MaxWatches, 100)
	return d
}

// batchBytesOf returns the bytes of a batch that a caller's value stands for.
func batchBytesOf(v int) int {
	return min(max(defaultTo(v, maxBatchBytes), minWindowBytes), maxBatchBytes)
}

// defaultTo returns v; for 0, the value that zero stands for; and 0 if v is negative.
func defaultTo[T int | time.Duration](v, zero T) T {
	if v == 0 {
		return zero
	}
	return max(v, 0)
}
