package gvstream

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"
)

// A budget is the bytes that the sessions of one Streamer share. Over it,
// acknowledged events are evicted, the oldest of all sessions first.
type budget struct {
	max  int64 // 0: no limit
	used atomic.Int64

	mu    sync.Mutex // protects the fields below
	aged  ageHeap
	freed signal
}

// reserve takes n bytes if there are that many.
func (b *budget) reserve(n int) bool {
	if b.used.Add(int64(n)) > b.max && b.max > 0 {
		b.used.Add(int64(-n))
		return false
	}
	return true
}

func (b *budget) release(n int) {
	if n == 0 {
		return
	}
	b.used.Add(int64(-n))
	if b.max > 0 {
		b.mu.Lock()
		b.freed.broadcast()
		b.mu.Unlock()
	}
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

// offer says that s holds acknowledged events, the oldest of that time. It is
// called with the session's lock.
func (b *budget) offer(s *Session, oldest time.Time) {
	b.mu.Lock()
	heap.Push(&b.aged, aged{oldest, s})
	b.mu.Unlock()
}

// makeRoom evicts until n more bytes fit or nothing acknowledged is left. It is
// called without any lock.
func (b *budget) makeRoom(n int) {
	for b.max > 0 && b.used.Load()+int64(n) > b.max {
		b.mu.Lock()
		if len(b.aged) == 0 {
			b.mu.Unlock()
			return
		}
		a := heap.Pop(&b.aged).(aged)
		b.mu.Unlock()
		a.s.evictOldest(a.oldest)
	}
}

type aged struct {
	oldest time.Time
	s      *Session
}

// An ageHeap holds sessions by the time of their oldest acknowledged event, as
// it was when they were offered.
type ageHeap []aged

func (h ageHeap) Len() int           { return len(h) }
func (h ageHeap) Less(i, j int) bool { return h[i].oldest.Before(h[j].oldest) }
func (h ageHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *ageHeap) Push(x any)        { *h = append(*h, x.(aged)) }
func (h *ageHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = aged{}
	*h = old[:len(old)-1]
	return x
}
