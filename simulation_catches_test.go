package gvstream

import "testing"

// plantedFaults are the rules that the simulation is told to do without: the rule's
// number in PROTOCOL.md, the name of its switch, the invariant that is broken without
// it, and the number of schedules within which the simulation has to see that. At the
// share of 200 schedules that see it, so many would miss it once in ten thousand times.
var plantedFaults = []struct {
	rule      string
	breaks    string // the invariant that has to be seen broken
	schedules uint64
	without   omitted
}{
	{"2 fresh epoch", "S1", 30, omitted{freshEpoch: true}},
	{"3 agent link", "S6", 1000, omitted{agentLink: true}},
	{"3 agent newest", "S6", 1000, omitted{agentNewest: true}},
	{"3 awaited welcome", "S6", 1000, omitted{awaitedWelcome: true}},
	{"3 agent hello", "L1", 300, omitted{agentHello: true}},
	{"5 open first", "rule 5", 30, omitted{openFirst: true}},
	{"5 status again", "L1", 300, omitted{statusAgain: true}},
	{"6 beyond sent", "S3", 300, omitted{beyondSent: true}},
	{"6 first ack", "L1", 30, omitted{firstAck: true}},
	{"6 ack moves back", "S4", 300, omitted{ackMovesBack: true}},
	{"6 old ack", "S5", 1000, omitted{oldAck: true}},
	{"6 viewer ack", "S3", 100, omitted{viewerAck: true}},
	{"7 window", "S10", 30, omitted{window: true}},
	{"9 resend", "L1", 300, omitted{resend: true}},
	{"9 agent silence", "L1", 1000, omitted{agentSilence: true}},
	{"10 pending limit", "S10", 30, omitted{pendingLimit: true}},
	{"10 declared drop", "S3", 30, omitted{declaredDrop: true}},
	{"10 keep unacked", "S4", 30, omitted{keepUnacked: true}},
	{"10 wake publisher", "L4", 100, omitted{wakePublisher: true}},
	{"6 declared loss", "S4", 300, omitted{declaredLoss: true}},
	{"12 keep few", "S10", 30, omitted{keepFew: true}},
	{"11 reject", "L1", 30, omitted{reject: true}},
	{"11 stop", "L1", 30, omitted{stop: true}},
	{"12 replay ceiling", "S11", 30, omitted{replayCeiling: true}},
	{"12 clip gaps", "S11", 30, omitted{clipGaps: true}},
	{"12 replay limit", "S10", 100, omitted{replayLimit: true}},
	{"12 replay busy", "S10", 100, omitted{replayBusy: true}},
	{"16 after end", "S12", 30, omitted{afterEnd: true}},
	{"3 hub link", "S6", 300, omitted{hubLink: true}},
	{"3 hub newest", "S6", 1000, omitted{hubNewest: true}},
	{"2 epoch back", "S6", 100, omitted{epochBack: true}},
	{"2 epoch lead", "S6", 1000, omitted{epochLead: true}},
	{"4 owner", "S6", 30, omitted{owner: true}},
	{"5 answer status", "L1", 30, omitted{answerStatus: true}},
	{"5 resume", "S1", 100, omitted{resume: true}},
	{"5 open batch", "S1", 1000, omitted{openBatch: true}},
	{"7 skip known", "S1", 100, omitted{skipKnown: true}},
	{"7 hole", "S1", 100, omitted{hole: true}},
	{"8 commit", "S1", 30, omitted{commit: true}},
	{"8 ack accepted", "S3", 100, omitted{ackAccepted: true}},
	{"12 hub log", "S10", 30, omitted{hubLog: true}},
	{"11 hub sessions", "S10", 100, omitted{hubSessions: true}},
	{"12 ask ceiling", "S8", 300, omitted{askCeiling: true}},
	{"12 ask again", "L2", 100, omitted{askAgain: true}},
	{"12 ask in turn", "S10", 30, omitted{askInTurn: true}},
	{"12 route replay", "S11", 100, omitted{routeReplay: true}},
	{"12 replay wait", "L2", 300, omitted{replayWait: true}},
	{"13 authorize", "S11", 100, omitted{authorize: true}},
	{"13 revoke", "S11", 300, omitted{revoke: true}},
	{"13 ahead", "L1", 1000, omitted{ahead: true}},
	{"13 fan left", "S7", 1000, omitted{fanLeft: true}},
	{"13 viewer beat", "L2", 300, omitted{viewerBeat: true}},
	{"13 watch limit", "S10", 100, omitted{watchLimit: true}},
	{"16 note end", "L2", 1000, omitted{noteEnd: true}},
	{"3 viewer link", "S6", 1000, omitted{viewerLink: true}},
	{"3 viewer newest", "S6", 1000, omitted{viewerNewest: true}},
	{"3 viewer hello", "L2", 300, omitted{viewerHello: true}},
	{"9 viewer quiet", "L2", 100, omitted{viewerQuiet: true}},
	{"13 watch again", "L2", 300, omitted{watchAgain: true}},
	{"14 viewer hole", "S7", 100, omitted{viewerHole: true}},
	{"14 skip received", "S7", 100, omitted{skipReceived: true}},
	{"14 watermark", "L2", 100, omitted{watermark: true}},
	{"14 yielded", "S7", 30, omitted{yielded: true}},
	{"14 buffer", "S10", 100, omitted{buffer: true}},
	{"15 reset", "S9", 30, omitted{reset: true}},
	{"15 epoch status", "S6", 300, omitted{epochStatus: true}},
	{"15 smaller epoch", "S9", 1000, omitted{smallerEpoch: true}},
	{"16 end once", "S12", 100, omitted{endOnce: true}},
}

// TestSimulationCatches: with any one rule taken out, the simulation finds a
// violation, and it is the one that the rule prevents: a panic, or another check that
// fails first, counts for nothing. A rule that can be taken out unseen is one that the
// simulation does not test.
func TestSimulationCatches(t *testing.T) {
	for _, fault := range plantedFaults {
		if raceEnabled && fault.schedules > 100 {
			continue // it has one goroutine, so the detector only makes it slow
		}
		t.Run(fault.rule, func(t *testing.T) {
			t.Parallel()
			for seed := range fault.schedules {
				w := runSchedule(newSeeded(seed, simSteps), fault.without, false)
				if w.err != nil && w.broken() == fault.breaks {
					t.Logf("schedule %d: %v", seed+1, w.err)
					return
				}
			}
			t.Errorf("%d schedules don't see %s broken", fault.schedules, fault.breaks)
		})
	}
}
