package sched

import "iter"

// A Queue is a first-in first-out queue. The zero Queue is empty. It must not be copied
// while something is in it.
type Queue[T any] struct {
	first, last *Element[T]
	n           int
}

// An Element is the place of a value in a queue: a field of what waits, one for each
// queue in which it may wait at the same time. The zero Element is in no queue.
type Element[T any] struct {
	queue      *Queue[T] // nil: in none
	value      T
	prev, next *Element[T]
}

// Len returns the number of values in the queue.
func (q *Queue[T]) Len() int { return q.n }

// Push puts v at the end, with e as its place. If e is in a queue already, it stays
// where it is.
func (q *Queue[T]) Push(e *Element[T], v T) {
	if e.queue != nil {
		return
	}
	*e = Element[T]{queue: q, value: v, prev: q.last}
	if q.last == nil {
		q.first = e
	} else {
		q.last.next = e
	}
	q.last = e
	q.n++
}

// Front returns the first value, or the zero T if the queue is empty.
func (q *Queue[T]) Front() (v T) {
	if q.first != nil {
		v = q.first.value
	}
	return v
}

// Back returns the last value, or the zero T if the queue is empty.
func (q *Queue[T]) Back() (v T) {
	if q.last != nil {
		v = q.last.value
	}
	return v
}

// Pop takes out the first value and returns it, or the zero T if the queue is empty.
func (q *Queue[T]) Pop() (v T) {
	if e := q.first; e != nil {
		v = e.value
		e.Remove()
	}
	return v
}

// All yields the values from the first to the last. The queue must not change while it runs.
func (q *Queue[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		for e := q.first; e != nil && yield(e.value); e = e.next {
		}
	}
}

// Queued reports whether e is in a queue.
func (e *Element[T]) Queued() bool { return e.queue != nil }

// Remove takes e out of the queue that it is in, if any. It costs the same wherever in the
// queue e is.
func (e *Element[T]) Remove() {
	q := e.queue
	if q == nil {
		return
	}
	if e.prev == nil {
		q.first = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next == nil {
		q.last = e.prev
	} else {
		e.next.prev = e.prev
	}
	q.n--
	*e = Element[T]{}
}
