package gvstream

import "testing"

// TestLockChecks: the checks see a lock that is taken out of order, two of one level, a
// method that is called without its lock, and a callback under one.
func TestLockChecks(t *testing.T) {
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: nothing was seen", what)
			}
		}()
		f()
	}
	st := NewStreamer(nil)
	s, err := st.Session("s")
	if err != nil {
		t.Fatal(err)
	}
	other, err := st.Session("other")
	if err != nil {
		t.Fatal(err)
	}
	panics("without the lock", func() { s.trimLocked(0) })
	s.mu.Lock()
	s.trimLocked(0)
	panics("the Streamer's under a session's", func() { st.mu.Lock() })
	panics("two sessions'", func() { other.mu.Lock() })
	panics("a callback", func() { unlocked(t.Log) })
	s.mu.Unlock()
	unlocked(t.Log)("no lock is held")
	st.mu.Lock()
	s.mu.Lock()
	s.mu.Unlock()
	st.mu.Unlock()
}
