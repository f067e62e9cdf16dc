// Package scenarios tests agents, a hub and viewers together, by their public methods
// alone. Each scenario tells a story from outside: what breaks, and what everybody has
// in the end. A rule of one machine, or a state that cannot be seen from outside, has
// its test in the package itself.
//
//   - TestFailureModes: the known ways in which layers of this kind fail, one by one.
//   - TestFound: faults that were found from outside, one by one.
//   - TestEndToEnd: everything at once, over connections with all faults.
//   - TestTerminal: a recorded terminal session, in memory and over TCP.
package scenarios
