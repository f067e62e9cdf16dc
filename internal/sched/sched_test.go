package sched

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A waiter waits in a queue and in a heap.
type waiter struct {
	name  string
	place Element[*waiter]
	entry Entry[*waiter]
}

// listed are all in the queue, by name.
func listed(q *Queue[*waiter]) (names string) {
	for w := range q.All() {
		names += w.name
	}
	return names
}

// drain pops all, by name.
func drain(q *Queue[*waiter]) (names string) {
	for w := q.Pop(); w != nil; w = q.Pop() {
		names += w.name
	}
	return names
}

func waiters(names string) (ws []*waiter) {
	for _, r := range names {
		ws = append(ws, &waiter{name: string(r)})
	}
	return ws
}

func TestQueue(t *testing.T) {
	for _, test := range []struct {
		name   string
		remove string // by their names, in this order
		want   string
	}{
		{"nothing removed", "", "abcd"},
		{"the first", "a", "bcd"},
		{"one in the middle", "b", "acd"},
		{"the last", "d", "abc"},
		{"one after the other", "cb", "ad"},
		{"all", "bdac", ""},
		{"one twice", "bb", "acd"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var q Queue[*waiter]
			ws := waiters("abcd")
			for _, w := range ws {
				q.Push(&w.place, w)
			}
			for _, r := range test.remove {
				ws[r-'a'].place.Remove()
			}
			if q.Len() != len(test.want) {
				t.Errorf("%d are left, want %d", q.Len(), len(test.want))
			}
			if len(test.want) > 0 {
				if first, last := q.Front().name, q.Back().name; first != test.want[:1] || last != test.want[len(test.want)-1:] {
					t.Errorf("from %s to %s, want %s", first, last, test.want)
				}
			}
			if got := listed(&q); got != test.want {
				t.Errorf("listed %s, want %s", got, test.want)
			}
			if got := drain(&q); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			if q.Front() != nil || q.Back() != nil || q.Len() != 0 {
				t.Error("an empty queue has something")
			}
			for _, w := range ws {
				if w.place.Queued() {
					t.Errorf("%s believes it is queued", w.name)
				}
			}
		})
	}
}

// To give up a place costs the same however many wait: itself and its two neighbours
// change.
func TestQueueRemoveCost(t *testing.T) {
	var q Queue[int]
	places := make([]Element[int], 100)
	for i := range places {
		q.Push(&places[i], i)
	}
	for _, i := range []int{50, 0, 99, 49, 51} {
		before := slices.Clone(places)
		places[i].Remove()
		changed := 0
		for j := range places {
			if places[j] != before[j] {
				changed++
			}
		}
		if changed > 3 {
			t.Errorf("%d places of %d changed when one was given up", changed, len(places))
		}
	}
}

// What is pushed again keeps its place, in this queue and in another.
func TestQueuePushedAgain(t *testing.T) {
	var q, other Queue[*waiter]
	ws := waiters("ab")
	for _, w := range ws {
		q.Push(&w.place, w)
	}
	q.Push(&ws[0].place, ws[0])
	other.Push(&ws[1].place, ws[1])
	if other.Len() != 0 {
		t.Error("it is in two queues by one place")
	}
	if got := drain(&q); got != "ab" {
		t.Errorf("got %s, want ab", got)
	}
	q.Push(&ws[1].place, ws[1])
	if got := drain(&q); got != "b" {
		t.Errorf("after it was popped it can't be pushed: got %q", got)
	}
}

// A heap gives out in the order of times whatever was set, moved and removed before:
// compared with a sorted slice.
func TestHeap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Unix(1000, 0)
	for range 200 {
		var h Heap[*waiter]
		ws := waiters("abcdefghijklmnop")
		times := make(map[*waiter]time.Time)
		for range 60 {
			w := ws[random.IntN(len(ws))]
			at := start.Add(time.Duration(random.IntN(100)) * time.Second)
			switch random.IntN(3) {
			case 0:
				h.Set(&w.entry, w, at)
				times[w] = at
			case 1:
				old, was := times[w]
				if changed := h.SetEarlier(&w.entry, w, at); changed != (!was || at.Before(old)) {
					t.Fatalf("from %v to %v: changed is %v", old, at, changed)
				} else if changed {
					times[w] = at
				}
			case 2:
				h.Remove(&w.entry)
				delete(times, w)
			}
			if at, want := times[w]; w.entry.Queued() != want || !w.entry.At().Equal(at) {
				t.Fatalf("it is in the heap: %v, at %v; want %v, %v", w.entry.Queued(), w.entry.At(), want, at)
			}
		}
		if h.Len() != len(times) {
			t.Fatalf("%d in the heap, want %d", h.Len(), len(times))
		}
		var want []time.Time
		for _, at := range times {
			want = append(want, at)
		}
		slices.SortFunc(want, time.Time.Compare)
		for _, at := range want {
			if got := h.Earliest(); !got.Equal(at) {
				t.Fatalf("earliest is %v, want %v", got, at)
			}
			if _, _, ok := h.PopDue(at.Add(-1)); ok {
				t.Fatal("popped a nanosecond early")
			}
			w, got, ok := h.PopDue(at)
			if !ok || !got.Equal(at) || !times[w].Equal(at) {
				t.Fatalf("popped %v, want %v", got, at)
			}
			if w.entry.Queued() {
				t.Fatal("it believes it is in the heap")
			}
		}
		if _, _, ok := h.Pop(); ok || !h.Earliest().IsZero() {
			t.Fatal("an empty heap has something")
		}
	}
}

func TestHeapClear(t *testing.T) {
	var h Heap[*waiter]
	ws := waiters("ab")
	for _, w := range ws {
		h.Set(&w.entry, w, time.Unix(1000, 0))
	}
	h.Clear()
	if h.Len() != 0 || ws[0].entry.Queued() {
		t.Error("something is left")
	}
	h.Set(&ws[1].entry, ws[1], time.Unix(1000, 0))
	if w, _, ok := h.Pop(); !ok || w != ws[1] {
		t.Error("what was cleared can't be set again")
	}
}

// say returns tasks that say their name once each time they are asked.
func say(name string, control bool) *Task[string] {
	return &Task[string]{Control: control, Source: func(time.Time) string { return name }}
}

// ask asks all tasks that are to be asked at a time, and returns what they say.
func ask(s *Tasks[string], now time.Time) (said string) {
	for t, _ := s.Next(now); t != nil; t, _ = s.Next(now) {
		said += t.Source(now)
	}
	return said
}

func TestTasks(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s time.Duration) time.Time { return start.Add(s * time.Second) }
	a, b, ack := say("a", false), say("b", false), say("!", true)
	for _, test := range []struct {
		name string
		do   func(s *Tasks[string])
		now  time.Time
		said string
		next time.Time // when there will be more
	}{
		{"nothing", func(*Tasks[string]) {}, at(0), "", time.Time{}},
		{"in turn", func(s *Tasks[string]) { s.Ready(b); s.Ready(a) }, at(0), "ba", time.Time{}},
		{"once, however often it is ready", func(s *Tasks[string]) { s.Ready(a); s.Ready(b); s.Ready(a) }, at(0), "ab", time.Time{}},
		{"control first", func(s *Tasks[string]) { s.Ready(a); s.Ready(ack) }, at(0), "!a", time.Time{}},
		{"not before its time", func(s *Tasks[string]) { s.ReadyAt(a, at(2)) }, at(1), "", at(2)},
		{"at its time", func(s *Tasks[string]) { s.ReadyAt(a, at(2)); s.ReadyAt(b, at(3)) }, at(2), "a", at(3)},
		{"what is due goes behind what is ready", func(s *Tasks[string]) { s.ReadyAt(a, at(1)); s.Ready(b) }, at(1), "ba", time.Time{}},
		{"the earlier of two times", func(s *Tasks[string]) { s.ReadyAt(a, at(2)); s.ReadyAt(a, at(1)); s.ReadyAt(a, at(3)) }, at(1), "a", time.Time{}},
		{"ready and due is asked once", func(s *Tasks[string]) { s.ReadyAt(a, at(1)); s.Ready(a) }, at(1), "a", time.Time{}},
		{"removed", func(s *Tasks[string]) { s.Ready(a); s.ReadyAt(a, at(1)); s.Ready(b); s.Remove(a) }, at(1), "b", time.Time{}},
		{"removed twice", func(s *Tasks[string]) { s.Ready(a); s.Remove(a); s.Remove(a) }, at(1), "", time.Time{}},
		{"cleared", func(s *Tasks[string]) { s.Ready(a); s.Ready(ack); s.ReadyAt(b, at(1)); s.Clear() }, at(1), "", time.Time{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s Tasks[string]
			test.do(&s)
			if said := ask(&s, test.now); said != test.said {
				t.Errorf("said %q, want %q", said, test.said)
			}
			if _, next := s.Next(test.now); !next.Equal(test.next) {
				t.Errorf("next at %v, want %v", next, test.next)
			}
			s.Clear()
			if now, later := s.Len(); now+later > 0 {
				t.Errorf("%d and %d tasks are left after Clear", now, later)
			}
		})
	}
}

func TestTasksLen(t *testing.T) {
	var s Tasks[string]
	a := say("a", false)
	if s.ReadyAt(a, time.Unix(1000, 0)); a.Queued() {
		t.Error("queued before its time")
	}
	if s.Ready(a); !a.Queued() {
		t.Error("not queued when it is ready")
	}
	if s.Remove(a); a.Queued() {
		t.Error("queued after it was removed")
	}
	s.Ready(say("a", false))
	s.Ready(say("!", true))
	s.ReadyAt(say("b", false), time.Unix(1000, 0))
	if now, later := s.Len(); now != 2 || later != 1 {
		t.Errorf("%d now and %d later, want 2 and 1", now, later)
	}
}

func TestReadyAtReportsEarlier(t *testing.T) {
	var s Tasks[string]
	a, at := say("a", false), time.Unix(1000, 0)
	for _, test := range []struct {
		at   time.Time
		want bool
	}{{at, true}, {at, false}, {at.Add(1), false}, {at.Add(-1), true}} {
		if got := s.ReadyAt(a, test.at); got != test.want {
			t.Errorf("at %v: earlier is %v, want %v", test.at, got, test.want)
		}
	}
}
