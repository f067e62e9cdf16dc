package gvstream

import "math"

// This file is the numbers that the protocol fixes; what callers may set is in config.go.

// maxFrame bounds the bytes of a frame, and of one batch's events: a slot's offset and size
// are 32 bits.
const maxFrame = math.MaxInt32

// Bounds of the protocol (PROTOCOL.md, rule 7 and "Limits"). A peer may be of another make
// and relies on them, so a sender stays within all of them, and a receiver refuses what is
// beyond.
const (
	// MaxSeq is the greatest sequence number, 2^53-1: every JSON reader keeps
	// it exact. A session that used it publishes no more (ErrSeqExhausted).
	MaxSeq = 1<<53 - 1

	version                = 1
	maxID                  = 128       // bytes of a session, viewer, agent, link or request id, and of an event's type
	maxEpoch               = 64        // bytes
	maxBatchEvents         = 256       // events of an event batch
	maxReplayBatchEvents   = 100       // events of a replay batch
	maxReplayRequestEvents = 500       // events that the hub asks for at a time
	maxBatchBytes          = 256 << 10 // bytes of a batch's JSON; one larger event travels alone
	firstBatchBytes        = 1         // of a leg's first batch, and of the first that is sent again: one event
	smallBatchBytes        = 1 << 10   // of the second one
	quickBatchBytes        = 16 << 10  // up to here batches grow without waiting for acks
	defaultWindow          = 1024      // events that a receiver takes which says nothing else
	defaultWindowBytes     = 256 << 10 // bytes of their JSON
	maxBatchGaps           = 512       // gaps of a batch: more than fit between its events
	maxStatus              = 256       // sessions of a status
	maxAcks                = 255       // further sessions of an ack
	minWindowBytes         = 16 << 10  // bytes that an agent may always send beyond an ack
	maxCohort              = 64        // viewers that one worker serves in one turn
)

// sizes are how much a machine puts into one payload, or asks for at a time. They are a
// field of each machine and no constants: smaller ones are as right, with more payloads.
type sizes struct {
	batch      int // events of an event batch
	batchBytes int // bytes of a batch, at most
	first      int // bytes of a leg's first batch
	page       int // events of a replay batch
	replay     int // events of the hub's replay requests
	cohort     int // viewers that are served in one turn
}

// fullSizes are those of every machine outside of tests.
var fullSizes = sizes{batch: maxBatchEvents, batchBytes: pageBytes, first: firstBatchBytes, page: maxReplayBatchEvents, replay: maxReplayRequestEvents, cohort: maxCohort}
