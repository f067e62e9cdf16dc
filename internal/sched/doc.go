// Package sched schedules who is asked next: queues in which something can give up its
// place, heaps of deadlines, and the tasks of one connection, made of both.
//
// Nothing here has a lock or a clock. The owner's lock protects a value with all that
// was put into it, and the time is passed in. Nothing allocates but a heap that grows:
// what waits has its place in itself, as a field.
package sched
