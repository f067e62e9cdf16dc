package sched

import (
	"container/heap"
	"time"
)

// A Heap holds values by time, the earliest first. The zero Heap is empty.
type Heap[T any] struct{ entries entries[T] }

// An Entry is the place of a value in a heap: a field of what waits. The zero Entry is
// in no heap. It is in the heap that it was set in until that pops it, removes it or is
// cleared, and is zero again then, so that it keeps nothing alive.
type Entry[T any] struct {
	at    time.Time
	value T
	place int // its index in the heap, plus one; 0: it is in none
}

// Queued reports whether e is in a heap.
func (e *Entry[T]) Queued() bool { return e.place > 0 }

// At returns the time under which e is in a heap, or the zero time if it is in none.
func (e *Entry[T]) At() time.Time { return e.at }

// Len returns the number of values in the heap.
func (h *Heap[T]) Len() int { return len(h.entries) }

// Set puts v into the heap under a time, with e as its place. If e is in the heap
// already, it moves to that time and keeps its value.
func (h *Heap[T]) Set(e *Entry[T], v T, at time.Time) {
	if e.place == 0 {
		e.at, e.value = at, v
		heap.Push(&h.entries, e)
		return
	}
	e.at = at
	heap.Fix(&h.entries, e.place-1)
}

// SetEarlier is Set, unless e is in the heap under that time or an earlier one already.
// It reports whether it did anything.
func (h *Heap[T]) SetEarlier(e *Entry[T], v T, at time.Time) bool {
	if e.place > 0 && !at.Before(e.at) {
		return false
	}
	h.Set(e, v, at)
	return true
}

// Remove takes e out, if it is in the heap.
func (h *Heap[T]) Remove(e *Entry[T]) {
	if e.place > 0 {
		heap.Remove(&h.entries, e.place-1)
		*e = Entry[T]{}
	}
}

// Earliest returns the first time in the heap, or the zero time if it is empty.
func (h *Heap[T]) Earliest() time.Time {
	if len(h.entries) == 0 {
		return time.Time{}
	}
	return h.entries[0].at
}

// PopDue takes out the value with the earliest time and returns both, unless that time
// is after now or the heap is empty.
func (h *Heap[T]) PopDue(now time.Time) (v T, at time.Time, ok bool) {
	if len(h.entries) == 0 || h.entries[0].at.After(now) {
		return v, at, false
	}
	return h.Pop()
}

// Pop takes out the value with the earliest time and returns both, unless the heap is
// empty.
func (h *Heap[T]) Pop() (v T, at time.Time, ok bool) {
	if len(h.entries) == 0 {
		return v, at, false
	}
	e := heap.Pop(&h.entries).(*Entry[T])
	v, at = e.value, e.at
	*e = Entry[T]{}
	return v, at, true
}

// Clear takes everything out.
func (h *Heap[T]) Clear() {
	for _, e := range h.entries {
		*e = Entry[T]{}
	}
	h.entries = nil
}

// entries implements heap.Interface, and keeps each entry's place right as it moves.
type entries[T any] []*Entry[T]

func (s entries[T]) Len() int           { return len(s) }
func (s entries[T]) Less(i, j int) bool { return s[i].at.Before(s[j].at) }

func (s entries[T]) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].place, s[j].place = i+1, j+1
}

func (s *entries[T]) Push(x any) {
	e := x.(*Entry[T])
	*s = append(*s, e)
	e.place = len(*s)
}

func (s *entries[T]) Pop() any {
	last := len(*s) - 1
	e := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	return e
}
