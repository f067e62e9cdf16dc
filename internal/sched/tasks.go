package sched

import "time"

// A Task is something on a connection that may have a message M to send: a session, a
// replay, a heartbeat. It is idle, queued (to be asked now), timed (to be asked later), or
// queued and timed. A task that is asked in vain does no harm, so code that changes what
// it depends on just calls Ready. Its functions and Control are set once, before the task is used.
type Task[M any] struct {
	// Source returns the task's next message, or a zero M if it has none. It is called
	// without the lock that protects the Tasks.
	Source func(now time.Time) M
	// Written, if not nil, is called once the messages that the task had are written, or
	// later. Like Source it is called without the lock, but not by Tasks.
	Written func(now time.Time)
	// Control makes the task be asked before all tasks without it: its messages are small,
	// and the peer waits for them (rule 7 of PROTOCOL.md).
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

// Ready queues t, after the tasks of its kind that are queued already. If t is one of them,
// it keeps its turn.
func (s *Tasks[M]) Ready(t *Task[M]) {
	if t.Control {
		s.control.Push(&t.place, t)
	} else {
		s.data.Push(&t.place, t)
	}
}

// ReadyAt makes t be asked at a time, or earlier, and reports whether that is earlier than
// before. A later deadline need not be set: a task that is asked too early calls ReadyAt
// again, so that moving a deadline back costs nothing.
func (s *Tasks[M]) ReadyAt(t *Task[M], at time.Time) (earlier bool) {
	return s.timers.SetEarlier(&t.timer, t, at)
}

// Remove takes t out: it is not asked again, and nothing here refers to it.
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

// Next takes out and returns the task to be asked next. If there is none it returns nil and
// the time at which the first one is due, or the zero time if there is none of those either.
// Before that it queues the tasks that are due, after those that wait already.
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
