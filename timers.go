package gvstream

import "time"

// All times of the protocol (PROTOCOL.md, "Timers"), and the counts that bound what
// waits for one. Those that a caller may set stand in config.go.
const (
	// timerFirst is how long an answer is waited for before the same is said again, of
	// each kind: a hello, a status, a batch, a replay request, a watch. The wait doubles
	// each time, up to timerMax, and begins anew after progress (rules 3, 5, 9, 12, 13).
	timerFirst = 15 * time.Second
	timerMax   = 2 * time.Minute

	// heartbeatEvery is how often each side gives a sign of life. A peer that is silent for
	// maxSilence is taken for gone (rules 6, 9 and 13).
	heartbeatEvery = 15 * time.Second
	maxSilence     = 3 * heartbeatEvery

	// ackDelay and ackEvents are how long, and for how many events, a receiver holds an
	// ack back (rule 6). nackEvery is when it sends the same nack again, at the earliest
	// (rule 7).
	ackDelay  = 250 * time.Millisecond
	ackEvents = 64
	nackEvery = time.Second

	// replayAgain is how long the hub waits before it asks again for a replay of which a
	// part was lost, and how long the permit of a request that a viewer gave up stays
	// taken, since its agent may still be answering (rule 12).
	replayAgain = time.Second

	// staleEvery is how often a peer is told that it speaks of another link (rule 3).
	staleEvery = time.Second

	// endedTTL is how long an agent remembers a session whose end was acknowledged. The
	// hub keeps its events twice as long (rule 16).
	endedTTL = 5 * time.Minute

	// pastEpochTTL is how long the hub keeps the log of the epoch before (rule 15).
	pastEpochTTL = 5 * time.Minute

	// drainTimeout is how long a failed link tries to tell its peer why. maxReplies is how
	// many refusals may wait to be sent; more are dropped.
	drainTimeout = time.Second
	maxReplies   = 64
)
