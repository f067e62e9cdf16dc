package gvstream

import (
	"fmt"
	"sync"
	"unsafe"
)

// A lockLevel is a lock's place in the order: it may be taken while locks of lower levels are
// held, and no others.
type lockLevel interface{ level() int }

type (
	lockLevel1 struct{}
	lockLevel2 struct{}
	lockLevel3 struct{}
	lockLevel4 struct{}
)

func (lockLevel1) level() int { return 1 }
func (lockLevel2) level() int { return 2 }
func (lockLevel3) level() int { return 3 }
func (lockLevel4) level() int { return 4 }

// An orderedMutex is a sync.Mutex that panics when it is locked out of order.
type orderedMutex[L lockLevel] struct{ mu sync.Mutex }

func (m *orderedMutex[L]) Lock()   { acquire[L](unsafe.Pointer(m)); m.mu.Lock() }
func (m *orderedMutex[L]) Unlock() { release(unsafe.Pointer(m)); m.mu.Unlock() }

// An orderedRWMutex is the same for a sync.RWMutex.
type orderedRWMutex[L lockLevel] struct{ mu sync.RWMutex }

func (m *orderedRWMutex[L]) Lock()    { acquire[L](unsafe.Pointer(m)); m.mu.Lock() }
func (m *orderedRWMutex[L]) Unlock()  { release(unsafe.Pointer(m)); m.mu.Unlock() }
func (m *orderedRWMutex[L]) RLock()   { acquire[L](unsafe.Pointer(m)); m.mu.RLock() }
func (m *orderedRWMutex[L]) RUnlock() { release(unsafe.Pointer(m)); m.mu.RUnlock() }

// A heldLock is a lock that a goroutine holds.
type heldLock struct {
	lock  unsafe.Pointer
	level int
}

// heldLocks are the locks that each goroutine holds, in the order in which it took them. They
// are in shards by goroutine, so that the tests still run in parallel.
var heldLocks [64]struct {
	sync.Mutex
	by map[uintptr][]heldLock
}

// acquire records that the goroutine takes a lock, and panics if it holds one of that level or
// a higher one. It is called before the lock is taken: a wrong order shows even if it happens
// not to deadlock.
func acquire[L lockLevel](lock unsafe.Pointer) {
	var l L
	id := goroutine()
	shard := &heldLocks[(id>>8)%uintptr(len(heldLocks))]
	shard.Lock()
	defer shard.Unlock()
	held := shard.by[id]
	if n := len(held); n > 0 && held[n-1].level >= l.level() {
		panic(fmt.Sprintf("lock order: level %d is locked under level %d", l.level(), held[n-1].level))
	}
	if shard.by == nil {
		shard.by = make(map[uintptr][]heldLock)
	}
	shard.by[id] = append(held, heldLock{lock, l.level()})
}

// release records that the goroutine gives a lock up, in whatever order.
func release(lock unsafe.Pointer) {
	id := goroutine()
	shard := &heldLocks[(id>>8)%uintptr(len(heldLocks))]
	shard.Lock()
	defer shard.Unlock()
	held := shard.by[id]
	for i := range held {
		if held[i].lock == lock {
			held = append(held[:i], held[i+1:]...)
			break
		}
	}
	if shard.by[id] = held; len(held) == 0 {
		delete(shard.by, id)
	}
}

// mustHold panics unless the calling goroutine holds the lock.
func mustHold(lock unsafe.Pointer, method string) {
	id := goroutine()
	shard := &heldLocks[(id>>8)%uintptr(len(heldLocks))]
	shard.Lock()
	defer shard.Unlock()
	for _, h := range shard.by[id] {
		if h.lock == lock {
			return
		}
	}
	panic("lock order: " + method + " is called without the lock")
}

// goroutine returns what identifies the calling goroutine among all that run: the address of
// the runtime's descriptor. The number in a stack trace takes a thousand times as long to get.
func goroutine() uintptr

// unlocked returns f, which is about to be called, and panics if the calling goroutine
// holds a lock.
func unlocked[F any](f F) F {
	id := goroutine()
	shard := &heldLocks[(id>>8)%uintptr(len(heldLocks))]
	shard.Lock()
	defer shard.Unlock()
	if len(shard.by[id]) > 0 {
		panic("lock order: a callback is called under a lock")
	}
	return f
}
