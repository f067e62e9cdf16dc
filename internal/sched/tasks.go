package sched

import "time"

// A Task is something on a connection that may have a message M to send: a session, a
// replay, a heartbeat. Asking it in vain costs nothing else, so whoever changes what it
// depends on just calls Ready. Source and Control are set once, before the task is used.
type Task[M any] struct {
	// Source returns the task's next message, or a zero M if it has none. It is called
	// without the lock that protects the Tasks.
	Source func(now time.Time) M
	// Control has the task asked before all others without it: its messages are small
	// and others wait for them.
	Control bool

	place Element[*Task[M]] // in a queue: it is to be asked
	timer Entry[*Task[M]]   // in the heap: it is to be asked then
}

// Queued reports whether t is to be asked now.
func (t *Task[M]) Queued() bool { return t.place.Queued() }

// Tasks are the tasks of one connection that are to be asked, now or later. The zero
// Tasks has none.
type Tasks[M any] struct {
	control Queue[*Task[M]]
	data    Queue[*Task[M]] // in turn
	timers  Heap[*Task[M]]
}

// Ready has t asked, in turn.
func (s *Tasks[M]) Ready(t *Task[M]) {
	if t.Control {
		s.control.Push(&t.place, t)
	} else {
		s.data.Push(&t.place, t)
	}
}

// ReadyAt has t asked at a time, or earlier, and reports whether that is earlier than
// was known. A task that is asked too early calls ReadyAt again, so moving a deadline
// back costs nothing.
func (s *Tasks[M]) ReadyAt(t *Task[M], at time.Time) (earlier bool) {
	return s.timers.SetEarlier(&t.timer, t, at)
}

// Remove takes t out: it is asked no more, and nothing holds it.
func (s *Tasks[M]) Remove(t *Task[M]) {
	s.timers.Remove(&t.timer)
	t.place.Remove()
}

// Len returns how many tasks are to be asked now, and how many later.
func (s *Tasks[M]) Len() (now, later int) {
	return s.control.Len() + s.data.Len(), s.timers.Len()
}

// Clear takes all tasks out.
func (s *Tasks[M]) Clear() {
	for s.control.Pop() != nil || s.data.Pop() != nil {
	}
	s.timers.Clear()
}

// Next takes out the task that is to be asked next, or nil, and then returns when one
// will be, or the zero time if that depends on Ready and ReadyAt alone.
func (s *Tasks[M]) Next(now time.Time) (t *Task[M], at time.Time) {
	for {
		t, _, ok := s.timers.PopDue(now)
		if !ok {
			break
		}
		s.Ready(t)
	}
	if t = s.control.Pop(); t == nil {
		t = s.data.Pop()
	}
	if t != nil {
		return t, time.Time{}
	}
	return nil, s.timers.Earliest()
}
