package gvstream

// SetHead has a session go on as if it had used all numbers up to seq and had them
// acknowledged: nobody can publish that many.
func SetHead(s *Session, seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begin()
	s.log = log{head: seq}
	s.acked = seq
}
