//go:build race

package gvstream

// The simulation has one goroutine, so the race detector only makes it slow: its
// schedules are shorter then.
const simSteps = 50
