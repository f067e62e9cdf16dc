package gvstream

import "time"

// endedTTL is how long an agent remembers a session whose end was acknowledged; the
// hub keeps its events twice as long (rule 16).
const endedTTL = 5 * time.Minute

// pastEpochTTL is how long the hub keeps the log of the epoch before (rule 15).
const pastEpochTTL = 5 * time.Minute

// How long, and for how many events, a receiver holds an ack back (rule 6), and how
// long it waits before it sends the same nack again (rule 7).
const (
	ackDelay  = 250 * time.Millisecond
	ackEvents = 64
	nackEvery = time.Second
)

// The timer of the protocol (PROTOCOL.md, "Timers"): what is not answered is said again
// after timerFirst, then after twice as long each time, up to timerMax.
const (
	timerFirst = 15 * time.Second
	timerMax   = 2 * time.Minute
)
