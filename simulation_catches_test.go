package gvstream

import "testing"

// plantedFaults are the rules that the simulation is told to do without: the rule's
// number in PROTOCOL.md, the name of its switch, and the number of schedules within
// which the simulation has to notice. Each is at least three times what the worst of
// four ranges of seeds needed.
var plantedFaults = []struct {
	rule      string
	schedules uint64
	without   omitted
}{
	{"2 fresh epoch", 30, omitted{freshEpoch: true}},
	{"3 agent link", 300, omitted{agentLink: true}},
	{"3 agent newest", 1000, omitted{agentNewest: true}},
	{"3 awaited welcome", 300, omitted{awaitedWelcome: true}},
	{"3 agent hello", 100, omitted{agentHello: true}},
	{"5 open first", 30, omitted{openFirst: true}},
	{"5 status again", 300, omitted{statusAgain: true}},
	{"6 beyond sent", 100, omitted{beyondSent: true}},
	{"6 first ack", 30, omitted{firstAck: true}},
	{"6 ack moves back", 300, omitted{ackMovesBack: true}},
	{"6 old ack", 300, omitted{oldAck: true}},
	{"7 window", 30, omitted{window: true}},
	{"9 resend", 100, omitted{resend: true}},
	{"9 agent silence", 30, omitted{agentSilence: true}},
	{"10 pending limit", 30, omitted{pendingLimit: true}},
	{"10 declared drop", 30, omitted{declaredDrop: true}},
	{"10 keep unacked", 30, omitted{keepUnacked: true}},
	{"10 wake publisher", 100, omitted{wakePublisher: true}},
	{"6 declared loss", 300, omitted{declaredLoss: true}},
	{"11 reject", 30, omitted{reject: true}},
	{"11 stop", 30, omitted{stop: true}},
	{"12 replay ceiling", 30, omitted{replayCeiling: true}},
	{"12 clip gaps", 100, omitted{clipGaps: true}},
	{"12 replay limit", 100, omitted{replayLimit: true}},
	{"16 after end", 30, omitted{afterEnd: true}},
	{"3 hub link", 300, omitted{hubLink: true}},
	{"3 hub newest", 300, omitted{hubNewest: true}},
	{"2 epoch back", 100, omitted{epochBack: true}},
	{"2 epoch lead", 300, omitted{epochLead: true}},
	{"4 owner", 30, omitted{owner: true}},
	{"5 answer status", 30, omitted{answerStatus: true}},
	{"5 resume", 30, omitted{resume: true}},
	{"5 open batch", 300, omitted{openBatch: true}},
	{"7 skip known", 30, omitted{skipKnown: true}},
	{"7 hole", 100, omitted{hole: true}},
	{"8 commit", 30, omitted{commit: true}},
	{"8 ack accepted", 30, omitted{ackAccepted: true}},
	{"10 hub limits", 30, omitted{hubLimits: true}},
	{"12 ask ceiling", 30, omitted{askCeiling: true}},
	{"12 ask again", 100, omitted{askAgain: true}},
	{"12 ask in turn", 30, omitted{askInTurn: true}},
	{"12 route replay", 30, omitted{routeReplay: true}},
	{"12 replay wait", 100, omitted{replayWait: true}},
	{"13 authorize", 30, omitted{authorize: true}},
	{"13 revoke", 300, omitted{revoke: true}},
	{"13 ahead", 1000, omitted{ahead: true}},
	{"13 viewer beat", 1000, omitted{viewerBeat: true}},
	{"13 watch limit", 100, omitted{watchLimit: true}},
	{"16 note end", 1000, omitted{noteEnd: true}},
	{"3 viewer link", 1000, omitted{viewerLink: true}},
	{"3 viewer newest", 1000, omitted{viewerNewest: true}},
	{"3 viewer hello", 300, omitted{viewerHello: true}},
	{"9 viewer quiet", 30, omitted{viewerQuiet: true}},
	{"13 watch again", 100, omitted{watchAgain: true}},
	{"14 viewer hole", 100, omitted{viewerHole: true}},
	{"14 skip received", 30, omitted{skipReceived: true}},
	{"14 watermark", 100, omitted{watermark: true}},
	{"14 yielded", 30, omitted{yielded: true}},
	{"14 buffer", 30, omitted{buffer: true}},
	{"15 reset", 30, omitted{reset: true}},
	{"15 epoch status", 30, omitted{epochStatus: true}},
	{"15 smaller epoch", 1500, omitted{smallerEpoch: true}},
	{"16 end once", 30, omitted{endOnce: true}},
}

// TestSimulationCatches: with any one rule taken out, the simulation finds a
// violation. A rule that can be taken out unseen is one that it does not test.
func TestSimulationCatches(t *testing.T) {
	for _, fault := range plantedFaults {
		if raceEnabled && fault.schedules > 100 {
			continue // it has one goroutine, so the detector only makes it slow
		}
		t.Run(fault.rule, func(t *testing.T) {
			t.Parallel()
			for seed := range fault.schedules {
				if w := runSchedule(newSeeded(seed, simSteps), fault.without, false); w.err != nil {
					t.Logf("schedule %d: %v", seed+1, w.err)
					return
				}
			}
			t.Errorf("%d schedules see nothing", fault.schedules)
		})
	}
}
