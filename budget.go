package gvstream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A budget is the bytes that the sessions of one Streamer or Hub share (MaxTotalBytes). Over it,
// acknowledged events are evicted, the oldest of all sessions first: an agent keeps them only for
// replay, and pending ones are not to be lost; at a hub all are acknowledged.
//
// A publisher reserves an event's bytes before the event enters a log, and whatever takes an
// event out of a log releases them. A hub adds what it has accepted, and evicts after that.
// Sessions offer themselves while their oldest event is acknowledged:
//
//	not aged -> offer -> in the heap -> evict pops it -> evictOldest -> not aged, or offer
//
// The heap's times are those of the offers. A session that has evicted events of its own
// since is younger than its place says, so evictOldest compares, and moves it instead.
type budget[S evictor] struct {
	max  int64
	used atomic.Int64 // atomic, so that publishers don't queue

	waiting atomic.Bool // somebody may wait for freed; wait sets it before the waiter looks once more

	mu    sync.Mutex    // level 4; protects the fields below, and the sessions' places in aged
	aged  sched.Heap[S] // by the time of their oldest acknowledged event
	freed sched.Signal  // bytes were released, or may be evicted
}

// An evictor is a session whose oldest event can be evicted, unless that is younger than the budget
// believes. It is called without any lock.
type evictor interface{ evictOldest(believed time.Time) }

// reserve takes n bytes if there are that many. It never goes beyond the limit for a moment, so
// that no other reservation fails because of one that fails.
func (b *budget[S]) reserve(n int) bool {
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

// add takes n bytes that are held already, whatever the limit: evict follows, without a lock.
func (b *budget[S]) add(n int) { b.used.Add(int64(n)) }

// release gives n bytes back. It may be called with a session's lock. The bytes are free before
// the signal: publishers that it wakes find them.
func (b *budget[S]) release(n int) {
	if n == 0 {
		return
	}
	if b.used.Add(int64(-n)); b.waiting.Load() {
		b.mu.Lock()
		b.waiting.Store(false)
		b.freed.Broadcast()
		b.mu.Unlock()
	}
}

// wait returns a channel that is closed when bytes are released or become evictable: take
// it, then try, then wait.
func (b *budget[S]) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting.Store(true)
	return b.freed.Wait()
}

// fits reports whether n bytes would fit if own bytes were released. It takes none: by the
// time of the reservation others may have them.
func (b *budget[S]) fits(n, own int) bool {
	return b.used.Load()-int64(own)+int64(n) <= b.max
}

// offer says that s holds acknowledged events, the oldest of that time; e is its place. It wakes
// publishers that wait for room, since evicting those may make it. It is called with the session's
// lock.
func (b *budget[S]) offer(e *sched.Entry[S], s S, oldest time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.aged.Set(e, s, oldest)
	b.waiting.Store(false)
	b.freed.Broadcast()
}

// forget takes back what was offered, if it is still in the heap, so that nothing holds a session
// that was forgotten. It is called with the session's lock.
func (b *budget[S]) forget(e *sched.Entry[S]) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.aged.Remove(e)
}

// makeRoom evicts until n more bytes fit or nothing acknowledged is left. It is called without any
// lock, since it takes those of the sessions whose events it evicts. It gives its own up before it
// takes the session's, which comes first in the order of locks. The session may be forgotten or
// trimmed in between; evictOldest looks again.
func (b *budget[S]) makeRoom(n int) {
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
