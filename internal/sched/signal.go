package sched

// A Signal wakes all who wait for a change, once. The zero Signal is ready for use.
type Signal struct{ ch chan struct{} }

// Wait returns a channel that the next Broadcast closes.
func (s *Signal) Wait() <-chan struct{} {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Broadcast closes the channel that Wait returned, if anybody asked for one.
func (s *Signal) Broadcast() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
