package sched

// A Signal wakes all goroutines that wait for a change. The zero Signal is ready for use.
// Its owner's lock protects it; only the channel is used without, so a goroutine calls Wait
// under the lock under which it looked at the state, and misses no change after that.
type Signal struct{ ch chan struct{} }

// Wait returns a channel that the next Broadcast closes. A later change has another channel.
func (s *Signal) Wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Broadcast closes the channel that Wait returned, if it was called since the last time.
func (s *Signal) Broadcast() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
