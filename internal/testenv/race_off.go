//go:build !race

package testenv

// RaceEnabled is whether the tests run under the race detector.
const RaceEnabled = false
