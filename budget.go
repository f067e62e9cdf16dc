package gvstream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A budget is the bytes that the sessions of one Streamer share
// (StreamerConfig.MaxTotalBytes). Over it, acknowledged events are evicted, the oldest of
// all sessions first: they are kept only for replay, and pending ones are not to be lost.
//
// A publisher reserves an event's bytes before the event enters a log, and whatever takes an
// event out of a log releases them. Sessions offer themselves while their oldest event is
// acknowledged:
//
//	not aged -> offer -> in the heap -> evict pops it -> evictOldest -> not aged, or offer
//
// The heap's times are those of the offers. A session that has evicted events of its own
// since is younger than its place says, so evictOldest compares, and moves it instead.
//
// Without a limit, nothing here is counted or locked.
type budget struct {
	max  int64        // 0: no limit
	used atomic.Int64 // counted only if there is a limit; atomic, so that publishers don't queue

	mu    sync.Mutex           // level 4; protects the fields below, and Session's age
	aged  sched.Heap[*Session] // by the time of their oldest acknowledged event
	freed sched.Signal         // bytes were released, or may be evicted
}

// reserve takes n bytes if there are that many.
func (b *budget) reserve(n int) bool { return b.max == 0 || b.take(n) }

// take is reserve if there is a limit. It never goes beyond the limit for a moment, so that
// no other reservation fails because of one that fails.
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

// release gives n bytes back. It may be called with a session's lock.
func (b *budget) release(n int) {
	if b.max != 0 && n != 0 {
		b.give(n)
	}
}

// give is release if there is a limit. The bytes are free before the signal: publishers that
// it wakes find them.
func (b *budget) give(n int) {
	b.used.Add(int64(-n))
	b.mu.Lock()
	b.freed.Broadcast()
	b.mu.Unlock()
}

// wait returns a channel that is closed when bytes are released or become evictable: take
// it, then try, then wait. Without a limit it is nil, which is never ready in a select.
func (b *budget) wait() <-chan struct{} {
	if b.max == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.freed.Wait()
}

// fits reports whether n bytes would fit if own bytes were released. It takes none: by the
// time of the reservation others may have them.
func (b *budget) fits(n, own int) bool {
	return b.max == 0 || b.used.Load()-int64(own)+int64(n) <= b.max
}

// offer says that s holds acknowledged events, the oldest of that time. It wakes publishers
// that wait for room, since evicting those may make it. It is called with the session's
// lock.
func (b *budget) offer(s *Session, oldest time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.age == nil {
		s.age = new(sched.Entry[*Session])
	}
	b.aged.Set(s.age, s, oldest)
	b.freed.Broadcast()
}

// forget takes s back, if it is still in the heap, so that nothing holds a session that was
// forgotten. It is called with the session's lock.
func (b *budget) forget(s *Session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.age != nil {
		b.aged.Remove(s.age)
	}
}

// makeRoom evicts until n more bytes fit or nothing acknowledged is left. It is called
// without any lock, since it takes those of the sessions whose events it evicts.
func (b *budget) makeRoom(n int) {
	if b.max != 0 {
		b.evict(n)
	}
}

// evict is makeRoom if there is a limit. It gives its lock up before it takes the session's,
// which comes first in the order of locks. The session may be forgotten or trimmed in
// between; evictOldest looks again.
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
