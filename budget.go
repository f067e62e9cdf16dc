package gvstream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A budget is the bytes that the sessions of one Streamer share. Over it,
// acknowledged events are evicted, the oldest of all sessions first.
type budget struct {
	max  int64        // 0: no limit
	used atomic.Int64 // counted only if there is a limit

	mu    sync.Mutex           // level 4; protects the fields below, and Session's age
	aged  sched.Heap[*Session] // by the time of their oldest acknowledged event
	freed signal               // bytes were released, or may be evicted
}

// reserve takes n bytes if there are that many.
func (b *budget) reserve(n int) bool { return b.max == 0 || b.take(n) }

func (b *budget) take(n int) bool {
	for {
		used := b.used.Load()
		if used+int64(n) > b.max {
			return false
		}
		if b.used.CompareAndSwap(used, used+int64(n)) {
			return true
		}
	}
}

// release gives n bytes back.
func (b *budget) release(n int) {
	if b.max != 0 && n != 0 {
		b.give(n)
	}
}

func (b *budget) give(n int) {
	b.used.Add(int64(-n))
	b.mu.Lock()
	b.freed.broadcast()
	b.mu.Unlock()
}

// wait returns a channel that is closed when bytes are released.
func (b *budget) wait() <-chan struct{} {
	if b.max == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freed.wait()
}

// fits reports whether n bytes fit once own bytes are released.
func (b *budget) fits(n, own int) bool {
	return b.max == 0 || b.used.Load()-int64(own)+int64(n) <= b.max
}

// offer says that s holds acknowledged events, the oldest of that time. It is
// called with the session's lock.
func (b *budget) offer(s *Session, oldest time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.age == nil {
		s.age = new(sched.Entry[*Session])
	}
	b.aged.Set(s.age, s, oldest)
	b.freed.broadcast()
}

// forget takes s back, if it is still offered.
func (b *budget) forget(s *Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.age != nil {
		b.aged.Remove(s.age)
	}
}

// makeRoom evicts until n more bytes fit or nothing acknowledged is left. It is
// called without any lock.
func (b *budget) makeRoom(n int) {
	if b.max != 0 {
		b.evict(n)
	}
}

func (b *budget) evict(n int) {
	for !b.fits(n, 0) {
		b.mu.Lock()
		s, oldest, ok := b.aged.Pop()
		b.mu.Unlock()
		if !ok {
			return
		}
		s.evictOldest(oldest)
	}
}
