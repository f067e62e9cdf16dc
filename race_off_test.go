//go:build !race

package gvstream

const raceEnabled = false
