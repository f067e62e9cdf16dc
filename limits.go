package gvstream

import "math"

// maxFrame is the bytes of a frame, and of one batch's events: what slots can tell.
const maxFrame = math.MaxInt32

// Bounds of the protocol (PROTOCOL.md, rule 7 and "Limits").
const (
	// MaxSeq is the greatest sequence number, 2^53-1: every JSON reader keeps
	// it exact. A session that used it publishes no more (ErrSeqExhausted).
	MaxSeq = 1<<53 - 1

	version        = 1
	maxID          = 128       // bytes of a session, viewer, agent, link or request id, and of an event's type
	maxEpoch       = 64        // bytes
	maxBatchEvents = 256       // events of an event batch
	maxReplayPage  = 100       // events of a replay batch
	maxReplay      = 500       // events that the hub asks for at a time
	maxBatchBytes  = 256 << 10 // bytes of a batch's JSON; one larger event travels alone
	maxBatchGaps   = 512       // gaps of a batch: more than can stand between its events
	maxStatus      = 256       // sessions of a status
	maxCohort      = 64        // viewers that are given the same in one turn
)

// sizes are how much a machine puts into one payload, and asks for at a time: the
// simulation makes them small.
type sizes struct {
	batch  int // events of an event batch
	page   int // events of a replay batch
	replay int // events of the hub's replay requests
	cohort int // viewers that are served in one turn
}

var fullSizes = sizes{batch: maxBatchEvents, page: maxReplayPage, replay: maxReplay, cohort: maxCohort}
