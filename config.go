package gvstream

import (
	"context"
	"math"
	"time"
)

// A StreamerConfig holds the limits of a Streamer. A nil config is all defaults.
type StreamerConfig struct {
	// Overflow is what Publish does when pending is full. If zero, Block.
	Overflow Overflow
	// MaxSessions is the number of sessions at a time. If zero, 10,000.
	// If negative, none.
	MaxSessions int
	// MaxPendingEvents is the number of unacknowledged events a session. If
	// zero, 8,192. If negative, none.
	MaxPendingEvents int
	// MaxPendingBytes is the bytes of unacknowledged events' JSON a session.
	// If zero, 8 MiB. If negative, none.
	MaxPendingBytes int
	// ReplayEvents is how many of the most recent events a session keeps for
	// replay, pending ones included. If zero, 1,000. If negative, none but the
	// pending ones.
	ReplayEvents int
	// ReplayBytes is the bytes of the JSON of the events kept for replay, a
	// session. If zero, 8 MiB. If negative, none but the pending ones.
	ReplayBytes int
	// MaxEventBytes is the bytes of an event's JSON, base64 included. If zero,
	// 1 MiB. If negative, none. It can't exceed MaxPendingBytes or
	// MaxTotalBytes; a transport has limits of its own, Lines 2 MiB a payload.
	MaxEventBytes int
	// MaxTotalBytes is the bytes of events' JSON of all sessions together. Over
	// it, acknowledged events of any session, oldest first, are evicted before
	// Overflow applies. DropOldest drops events of its own session only, and
	// returns ErrPendingFull where that is not enough. If zero or negative, there
	// is no such limit.
	MaxTotalBytes int
	// MaxReplays is the number of replay requests a session answers at a time.
	// If zero, 8. If negative, none.
	MaxReplays int
	// TrustData spares Publish the check of Data, which then has to be one JSON
	// value in UTF-8 without white space between its tokens, such as
	// json.Marshal makes. Never set it for data that others control: Data that
	// is no JSON value may be read as other fields of its batch, but of no other
	// payload, since Publish refuses a newline all the same. What the hub can't
	// read it refuses, whereupon the agent checks what it has sent and turns the
	// events that are wrong into gaps with ReasonRejected; no other event is
	// harmed (rule 11). If false, Publish refuses them.
	TrustData bool
}

func (c *StreamerConfig) withDefaults() StreamerConfig {
	var d StreamerConfig
	if c != nil {
		d = *c
	}
	d.MaxSessions = defaultTo(d.MaxSessions, 10_000)
	d.MaxPendingEvents = defaultTo(d.MaxPendingEvents, 8192)
	d.MaxPendingBytes = defaultTo(d.MaxPendingBytes, 8<<20)
	d.ReplayEvents = defaultTo(d.ReplayEvents, 1000)
	d.ReplayBytes = defaultTo(d.ReplayBytes, 8<<20)
	d.MaxEventBytes = min(defaultTo(d.MaxEventBytes, 1<<20), d.MaxPendingBytes)
	if d.MaxTotalBytes = max(d.MaxTotalBytes, 0); d.MaxTotalBytes > 0 {
		d.MaxEventBytes = min(d.MaxEventBytes, d.MaxTotalBytes)
	}
	d.MaxEventBytes = min(d.MaxEventBytes, maxFrame)
	d.MaxReplays = defaultTo(d.MaxReplays, 8)
	return d
}

// Overflow is what Publish does when a session's pending is full (rule 10).
type Overflow int

const (
	// Block waits until the hub's acks make room, ctx ends or the Streamer is
	// closed. It is the default.
	Block Overflow = iota
	// Reject returns ErrPendingFull and uses no number.
	Reject
	// DropOldest turns the oldest pending events into a declared gap.
	DropOldest
)

// A HubConfig holds the callbacks and limits of a Hub. A nil config is all
// defaults. Callbacks are called without locks and may call anything back; they
// must return when ctx ends. Several may run at once, but for one session only one
// of Resume and Commit at a time.
type HubConfig struct {
	// Authorize says whether a viewer may watch a session, on every watch and
	// each time one resumes; an error refuses it. It is asked whether or not the
	// session exists, and the viewer can't tell the difference. If nil, every
	// viewer may watch every session (rule 13).
	Authorize func(ctx context.Context, viewerID, sessionID string) error
	// Commit stores events and gaps, in order, before they count as accepted,
	// are acknowledged or seen by a viewer. The agent waits meanwhile, nobody
	// else. An error accepts none of them and ends the agent's link; its
	// reconnect is the retry. So the same items may come again: store, in one
	// transaction, only what is above the last number stored in that epoch, of
	// a gap too. A *ProtocolError with Code "event_rejected" and Seq instead
	// refuses that one event for good. The items and their bytes are Commit's to
	// keep. The agent hears nothing while it waits, and takes a hub that is silent
	// for 45 s for gone: a slower store never gets past its first batch. If nil,
	// accepted events live in the hub's memory only (rule 8).
	Commit func(ctx context.Context, sessionID, epoch string, items []Item) error
	// Resume says up to which number the caller's store holds a session that the
	// hub does not know in that epoch: 0 if none. An error is answered to the
	// agent as retryable. If nil, the hub believes the agent's own count of what
	// was acknowledged (rule 5).
	Resume func(ctx context.Context, sessionID, epoch string) (uint64, error)
	// Claim says whether an agent may take over a session that belongs to
	// another agent. That one goes on meanwhile. If nil, none may (rule 4).
	Claim func(ctx context.Context, agentID, sessionID, ownerID string) bool

	// LogEvents is how many of the most recent events of a session the hub
	// keeps for its viewers. If zero, 1,000. If negative, none.
	LogEvents int
	// LogBytes is the bytes of their JSON, a session. If zero, 8 MiB. If
	// negative, none.
	LogBytes int
	// MaxEventBytes is the bytes of an event's JSON; a larger one is refused and
	// becomes a gap. If zero, 1 MiB. If negative, none.
	MaxEventBytes int
	// MaxSessions is the number of sessions of all agents. If zero, 100,000. If
	// negative, none.
	MaxSessions int
	// MaxAgentSessions is the number of sessions of one agent: those open on its
	// link, and those that SessionTTL keeps while it is away. If zero, 10,000. If
	// negative, none.
	MaxAgentSessions int
	// MaxWatches is the number of sessions watched over one viewer's link. If
	// zero, 100. If negative, none.
	MaxWatches int
	// MaxReplays is the number of replay requests to an agent that are open at a
	// time for one session; more wait in turn. If zero, 8. If negative, none.
	MaxReplays int
	// MaxViewerReplays is the same for one viewer's link. If zero, 4. If
	// negative, none.
	MaxViewerReplays int
	// Window is the number of events an agent may send beyond the hub's ack, a
	// session. If zero, 1,024. If negative, none.
	Window int
	// SessionTTL is how long the hub remembers a session whose agent is away and
	// that nobody watches, and one that has ended. If zero, 1 hour. If
	// negative, not at all.
	SessionTTL time.Duration
	// ReplayWait is how long a viewer waits for older events while their agent
	// is away, before they are declared unavailable. If zero, 10 seconds. If
	// negative, not at all.
	ReplayWait time.Duration
}

func (c *HubConfig) withDefaults() HubConfig {
	var d HubConfig
	if c != nil {
		d = *c
	}
	d.LogEvents = defaultTo(d.LogEvents, 1000)
	d.LogBytes = defaultTo(d.LogBytes, 8<<20)
	d.MaxEventBytes = defaultTo(d.MaxEventBytes, 1<<20)
	d.MaxSessions = defaultTo(d.MaxSessions, 100_000)
	d.MaxAgentSessions = defaultTo(d.MaxAgentSessions, 10_000)
	d.MaxWatches = defaultTo(d.MaxWatches, 100)
	d.MaxReplays = defaultTo(d.MaxReplays, 8)
	d.MaxViewerReplays = defaultTo(d.MaxViewerReplays, 4)
	d.Window = min(defaultTo(d.Window, 1024), math.MaxInt32) // what everybody can read
	d.SessionTTL = defaultTo(d.SessionTTL, time.Hour)
	d.ReplayWait = defaultTo(d.ReplayWait, 10*time.Second)
	return d
}

// A ViewerConfig holds the limits of a Viewer. A nil config is all defaults.
type ViewerConfig struct {
	// BufferItems is the number of items that wait for Items; when it is
	// reached, the link waits. If zero, 256. If negative, one.
	BufferItems int
	// BufferBytes is the bytes of their events' data; one larger item is taken
	// alone. If zero, 1 MiB. If negative, one item.
	BufferBytes int
	// MaxWatches is the number of sessions watched at a time. If zero, 100. If
	// negative, none.
	MaxWatches int
}

func (c *ViewerConfig) withDefaults() ViewerConfig {
	var d ViewerConfig
	if c != nil {
		d = *c
	}
	d.BufferItems = max(1, defaultTo(d.BufferItems, 256))
	d.BufferBytes = defaultTo(d.BufferBytes, 1<<20)
	d.MaxWatches = defaultTo(d.MaxWatches, 100)
	return d
}

// defaultTo returns v, or what stands for zero.
func defaultTo[T int | time.Duration](v, zero T) T {
	if v == 0 {
		return zero
	}
	return max(v, 0)
}
