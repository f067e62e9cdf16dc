// Package faults tests the simulation: with any one rule of PROTOCOL.md taken out of
// the code, the simulation has to see the invariant broken that the rule guards.
//
// The code itself knows nothing of that. The faults are texts to be replaced, listed in
// testdata/faults.txt, and the test builds one binary of the root package's tests in
// which all of them are planted and sleep until one is woken by its name. A rule that
// moves to another file keeps its fault; one that is rewritten fails the test by the
// fault's name, and is given a new text.
package faults
