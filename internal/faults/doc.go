// Package faults tests the simulation: with any one rule of PROTOCOL.md taken out of
// the code, the simulation has to see the invariant broken that the rule guards.
//
// The code itself knows nothing of this. The faults are pieces of its text to be replaced,
// listed in testdata/faults.txt. The test builds one binary of the root package's tests in
// which all of them are planted, and each does nothing until it is named in the environment.
// A rule that moves to another file keeps its fault. One that is rewritten fails the test,
// which names the fault, until the list has the new text.
package faults
