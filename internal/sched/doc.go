// Package sched decides what is asked next: queues from which a value can be removed
// anywhere, heaps of deadlines, and the tasks of one connection, made of both.
//
// Nothing here has a lock or a clock. The owner's lock protects a value with all that
// was put into it, and the time is passed in. Only a heap that grows allocates: what waits
// has its place in itself, as a field, which also makes removing it cheap.
package sched
