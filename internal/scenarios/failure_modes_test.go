package scenarios_test

import (
	"testing"
	"testing/synctest"
)

// TestFailureModes has a subtest for each known way in which layers of this kind
// fail, under the id that it has in the collection of such failures. Each runs in a
// bubble: hours pass in no time, and what doesn't wait takes no time at all.
func TestFailureModes(t *testing.T) {
	for _, mode := range []struct {
		id  string
		run func(t *testing.T)
	}{
		// What was written is not what was delivered.
		{"M04a", lostInFlight}, {"M04c", lostBeforeNoticed}, {"M04d", outlivesConnections},
		// The seam between replay and live.
		{"M03a", joinAnywhere}, {"M03b", seamAtEveryStep}, {"M03d", seamKnowsNoTime},
		// Which viewer may see what.
		{"M27a", authorizeEveryWatch}, {"M27c", replayOfOneLife}, {"M27d", nothingOfTheOldOwner}, {"M27e", idsNobodyGuesses},
		// What acks count.
		{"M06a", ackOfTheUnsent}, {"M06b", oldAcks}, {"M06c", ackOfAnotherLife}, {"M06e", onlyEventsCount},
		// Races and closing.
		{"M14a", everythingAtOnce}, {"M14b", closedTwice},
		// Numbers that begin again.
		{"M02a", restartResets}, {"M02b", positionAhead}, {"M02e", numbersNotReused},
		// A stuck peer holds up no other.
		{"M10a", stuckViewer}, {"M10c", stuckHub},
		// Calls from inside callbacks.
		{"M13a", callsFromCallbacks}, {"M13b", callsDuringSend}, {"M13d", closeFromInside},
		// Hostile input.
		{"M28a", floodOfUnknown}, {"M28b", tooManySessions}, {"M28c", hostileFrames},
		// Batches and pages.
		{"M22a", holesInBatches}, {"M22b", batchesOfTwo}, {"M22c", pagesEndExactly},
		// Where a ring begins and ends.
		{"M24a", everyRingEveryPosition}, {"M24b", positionZero}, {"M24d", evictionDuringReplay},
		{"M01a", truncationIsAnItem}, {"M01b", truncationBounds}, {"M01d", noFallBackToTheStart},
		// Not accepted before it is stored, not dealt with before it is.
		{"M07a", storeFails}, {"M07b", readerFails}, {"M07d", heldIsNotAccepted},
		// Numbers too large.
		{"M25a", hostileNumbers}, {"M25b", largestNumbers},
		// The tail of a quiet stream.
		{"M05a", quietAgent}, {"M05b", quietViewer},
		// Nothing is dropped in silence.
		{"M12a", pausedViewer}, {"M12c", burstOverOneEvent},
		// No loops without progress.
		{"M21a", emptyPages}, {"M21b", rejectedPosition}, {"M21d", poison},
		// Whose bytes they are.
		{"M26a", publisherReusesBytes}, {"M26b", viewerChangesBytes},
		// Shutdown, take-scene.Ended, memory.
		{"M30a", closeWaitsForAcks}, {"M30c", closeDrains},
		{"M15a", lateCleanup}, {"M15b", oneWinner},
		{"M17a", endedGivesBack}, {"M17b", nobodyTakesAnything},
		{"M20a", replaysQueue}, {"M20c", noReconnectOfItsOwn}, {"M20d", oneSessionsTrouble},
		{"M19a", pendingFullRejects}, {"M19b", pendingFullResends}, {"M19c", pendingFullBlocks},
		// Order.
		{"M09a", numbersUnderContention}, {"M09b", oneMillisecond},
		{"M33b", noFilters}, {"M33c", noEphemeralEvents},
		{"M16b", nothingLeftBehind},
		{"M08a", resendIsNotOvertaken}, {"M08c", orderOfNumbers},
		{"M32a", twoProducers},
		{"M11a", sessionsTakeTurns}, {"M11b", acksPassReplays},
		// Sizes.
		{"M23a", batchBytes}, {"M23b", nothingTwiceOnReconnect},
		{"M18b", largeEvent}, {"M18c", totalBytes},
		// Lives of sessions, identities, silence.
		{"M31a", afterTheEnd}, {"M31b", idleSessions},
		{"M34b", replayKeepsIdentity},
		{"M29b", silentHub},
		{"M35a", fewAcks},
	} {
		t.Run(mode.id, func(t *testing.T) {
			if mode.id != "M17a" && mode.id != "M25a" && mode.id != "M28a" { // those look at the process's memory
				t.Parallel()
			}
			synctest.Test(t, mode.run)
		})
	}
}
