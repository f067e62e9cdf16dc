package gvstream

// omitted names the rules of PROTOCOL.md that a machine does not obey. It is all
// zero outside of tests. The simulation takes the rules out, one at a time, and has
// to notice each: TestSimulationCatches.
type omitted struct {
	// An agent's.
	freshEpoch     bool // 2: a new life of a session has an epoch of its own
	agentLink      bool // 3: a payload of another link changes nothing
	agentNewest    bool // 3: a newer link supersedes the older one
	awaitedWelcome bool // 3: a welcome counts only while one is awaited
	agentHello     bool // 3: hello is said again until it is welcomed
	openFirst      bool // 5: nothing is sent of a session that is not open
	statusAgain    bool // 5: a session that is not open is announced again
	beyondSent     bool // 6: an ack beyond what was sent is refused
	firstAck       bool // 6: the first ack of a link is believed up to mark A
	ackMovesBack   bool // 6: and may be lower than the ack before
	oldAck         bool // 6: a later one may not
	viewerAck      bool // 6: a viewer's progress frees nothing
	window         bool // 7: no event goes beyond the window
	resend         bool // 9: what is not acknowledged is sent again on the timer
	agentSilence   bool // 9: a link on which nothing is heard ends
	pendingLimit   bool // 10: pending is limited
	declaredDrop   bool // 10: what is dropped is declared
	keepUnacked    bool // 10: nothing else leaves before it is acknowledged
	wakePublisher  bool // 10: who waits for room is told of it
	declaredLoss   bool // 6: what the log no longer holds is declared
	keepFew        bool // 12: no more is kept for replay than is configured
	reject         bool // 11: a refused event becomes a gap
	stop           bool // 11: a refused session stops
	replayCeiling  bool // 12: a replay ends at until_seq
	clipGaps       bool // 12: gaps too
	replayLimit    bool // 12: no more events than the request says
	replayBusy     bool // 12: so many replays at a time
	afterEnd       bool // 16: nothing is published after the end

	// A hub's.
	hubLink      bool // 3: a payload of another link changes nothing
	hubNewest    bool // 3: a newer link of the same agent supersedes the older one
	epochBack    bool // 2: a smaller epoch is refused
	epochLead    bool // 2: and one too far ahead
	owner        bool // 4: a session belongs to one agent
	answerStatus bool // 5: each session of a status is acknowledged
	resume       bool // 5: the store says where to start
	openBatch    bool // 5: only a batch from 1 opens a session
	skipKnown    bool // 7: known numbers are skipped
	hole         bool // 7: what follows a hole is not accepted
	commit       bool // 8: nothing is accepted that was not stored
	ackAccepted  bool // 8: nothing else is acknowledged
	hubLog       bool // 12: the log is limited
	hubSessions  bool // 11: and so is the number of sessions
	askCeiling   bool // 12: what is asked for ends before the log
	askAgain     bool // 12: a request that is not answered is made again
	askInTurn    bool // 12: so many requests at a time
	routeReplay  bool // 12: an answer belongs to one request
	replayWait   bool // 12: a cursor does not wait for an absent agent for ever
	authorize    bool // 13: each watch is allowed by the caller
	revoke       bool // 13: until that is revoked
	ahead        bool // 13: a position that no agent has reached is refused
	fanLeft      bool // 13: who left while others were served is served no more
	viewerBeat   bool // 13: a status goes to each viewer every 15 s
	watchLimit   bool // 13: so many watches on a link
	noteEnd      bool // 16: a status may say where the end is

	// A viewer's.
	viewerLink   bool // 3: a payload of another link changes nothing
	viewerNewest bool // 3: a newer link supersedes the older one
	viewerHello  bool // 3: hello is said again until it is welcomed
	viewerQuiet  bool // 9: a link on which nothing is heard ends
	watchAgain   bool // 13: a watch is repeated until it is answered
	viewerHole   bool // 14: what follows a hole is not taken
	skipReceived bool // 14: known numbers are skipped
	watermark    bool // 14: a status beyond what was received shows a loss
	yielded      bool // 14: the position moves when the reader is done
	buffer       bool // 14: the buffer is limited
	reset        bool // 15: a reset stands between two epochs
	epochStatus  bool // 15: a new epoch comes by a status only
	smallerEpoch bool // 15: an older one is no news
	endOnce      bool // 16: nothing follows the end
}
