// Package lockorder checks, while the root package's tests run, that locks are taken in
// their order (see gvstream.Link), that methods whose names end in Locked are called with
// the lock held that they want (that of the session that they are given, or else the one
// that protects their receiver), and that no lock is held while a callback, a send or a
// receive runs.
//
// The levels are those that the comments on the locks give, so that the comments can't lie.
// The test builds the root package's tests with each sync.Mutex replaced by one that
// knows its level and its holder; the code itself stays as it is.
package lockorder
