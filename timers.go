package gvstream

import "time"

// All times of the protocol (PROTOCOL.md, "Timers"), and the counts that bound what
// waits for one. Those that a caller may set stand in config.go.
const (
	// timerFirst is how long a side waits for an answer before it says the same again: a
	// hello, a status, a batch, a watch. It is long, since on a transport
	// that fails loudly nothing is lost without the link's end. The wait doubles each time,
	// up to timerMax, so that a peer that is slow is not buried under repetitions, and
	// begins anew after progress (rules 3, 5, 9 and 14).
	timerFirst = 15 * time.Second
	timerMax   = 2 * time.Minute

	// pauseFirst is how long an agent waits after a retryable error before it says again where
	// the session stands. The wait doubles each time, up to timerMax (rule 11).
	pauseFirst = time.Second

	// heartbeatEvery is how often each side gives a sign of life. A peer that is silent for
	// maxSilence is taken for gone: two signs of life may be lost, a third may not (rules
	// 6, 9 and 13).
	heartbeatEvery = 15 * time.Second
	maxSilence     = 3 * heartbeatEvery

	// ackDelay and viewerAckDelay are how long a hub and a viewer hold an ack back, so that
	// one ack serves many events of a busy session and a quiet one does not wait. A viewer
	// waits longer: a hub has many of them, and frees nothing when they ack (rules 6 and 14).
	// nackEvery is how long a receiver waits before it sends the same nack again: what is on
	// its way when it finds a hole would each bring another (rule 7).
	ackDelay       = 250 * time.Millisecond
	viewerAckDelay = 5 * time.Second
	nackEvery      = time.Second

	// replayAgain is how long the hub waits before it asks again for a replay of which a
	// part was lost, or for which the agent was busy, and how long it keeps what it got when
	// nobody reads it any more. replayLost is how long a request may bring nothing before it
	// counts as lost (rule 12).
	replayAgain = time.Second
	replayLost  = 5 * time.Second

	// growWithin is how soon the ack of a batch has to come for the next ones to be larger.
	growWithin = time.Second

	// staleEvery is how often, at most, the hub answers payloads of another link: all that
	// were on their way are stale, and one answer is enough for the peer (rule 3).
	staleEvery = time.Second

	// endedTTL is how long an agent remembers a session whose end was acknowledged. The
	// hub keeps its events longer (rule 16, HubConfig.EndedTTL).
	endedTTL = 5 * time.Minute

	// pastEpochTTL is how long the hub keeps the log of the epoch before, for viewers that
	// have not read it to its end (rule 15).
	pastEpochTTL = 5 * time.Minute

	// drainTimeout is how long a failed link tries to send its peer the reason. maxReplies
	// is how many refusals may wait to be sent; more are dropped, so that a peer that
	// sends nonsense and reads nothing costs no memory (rule 11).
	drainTimeout = time.Second
	maxReplies   = 64
)
