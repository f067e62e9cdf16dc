package gvstream

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// requests is how many replay requests of the session are open.
func (s *hubSession) requests() int { return s.h.cfg.MaxReplays - s.permits.free }

// requests is how many replay requests count for the viewer's link.
func (hv *hubViewerLink) requests() int { return hv.h.cfg.MaxViewerReplays - hv.permits.free }

// Rule 12: only a limited number of requests are open, cursors that wait get permits in
// the order in which they came, and a permit that is released for later stays taken
// until then.
func TestPermits(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit int
		// What is done, a letter for a cursor: "+a" it acquires a permit, and "?a" it has to
		// wait instead; "-" one is released, "-1s" one is released in a second, and "1s" a
		// second has passed since the start; "/a" it leaves the queue. The cursor whose turn it
		// is follows "="; "=" alone means that it is nobody's turn.
		steps string
		free  int
	}{
		{"nobody asks", 2, "=", 2},
		{"free ones are taken at once", 2, "+a = +b =", 0},
		{"the limit", 2, "+a +b ?c =", 0},
		{"no limit above zero", 0, "?a =", 0},
		{"a negative limit", -1, "?a =", -1},
		{"one that is released is for the first that waits", 1, "+a ?b ?c - =b", 1},
		{"nobody overtakes it", 1, "+a ?b - ?c =b ?c =b +b =", 0},
		{"nor the one that released", 1, "+a ?b - ?a =b +b - =a +a =", 0},
		{"asking again keeps the place", 1, "+a ?b ?c ?b - =b", 1},
		{"two that are released are for the first two", 2, "+a +b ?c ?d ?e - - =c +c =d +d =", 0},
		{"a turn that is given up is the next one's", 1, "+a ?b ?c - =b /b =c +c =", 0},
		{"so is a place", 1, "+a ?b ?c ?d /c - +b - =d", 1},
		{"one that left waits behind the others", 1, "+a ?b ?c - /b ?b =c", 1},
		{"the last one leaves", 1, "+a ?b - /b = +c =", 0},
		{"released for later, just before", 1, "+a ?b -1s 999ms =", 0},
		{"released for later, then", 1, "+a ?b -1s 1s =b +b =", 0},
		{"released for later, each at its time", 2, "+a +b ?c ?d -1s -2s 1s =c +c = 1999ms = 2s =d", 1},
		{"released for later, all at once", 2, "+a +b ?c ?d -1s -2s 3s =c +c =d", 1},
		{"released for later is not free before", 2, "+a +b ?c -1s - =c +c = 1s", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			p := permits{free: test.limit}
			cursors := make(map[string]*cursor)
			of := func(name string) *cursor {
				if cursors[name] == nil {
					cursors[name] = new(cursor)
				}
				return cursors[name]
			}
			for i, step := range strings.Fields(test.steps) {
				at, name := fmt.Sprintf("step %d, %s", i, step), step[1:]
				switch step[0] {
				case '+', '?':
					c := of(name)
					if got, want := p.acquire(c, &c.atLink), step[0] == '+'; got != want {
						t.Fatalf("%s: acquired is %v, want %v", at, got, want)
					}
				case '-':
					p.release(timeAfter(start, name))
				case '/':
					of(name).atLink.Remove()
				case '=':
					var want *cursor
					if name != "" {
						want = of(name)
					}
					if p.next() != want {
						t.Fatalf("%s: it is another one's turn", at)
					}
				default:
					p.expire(timeAfter(start, step))
				}
			}
			if p.free != test.free {
				t.Errorf("%d are free, want %d", p.free, test.free)
			}
		})
	}
}

// timeAfter is the time this long after start, or zero if none is given.
func timeAfter(start time.Time, d string) time.Time {
	if d == "" {
		return time.Time{}
	}
	after, err := time.ParseDuration(d)
	if err != nil {
		panic(err)
	}
	return start.Add(after)
}

// Permits that were released for later say when to ask for them.
func TestPermitsExpire(t *testing.T) {
	start := time.Unix(1000, 0)
	times := []time.Time{start.Add(1), start.Add(2), start.Add(3)}
	var p permits
	if next := p.expire(start); !next.IsZero() {
		t.Errorf("with nothing to come, the next is at %v", next)
	}
	for _, at := range times {
		p.release(at)
	}
	var got []time.Time
	for at := p.expire(start); !at.IsZero(); at = p.expire(at) {
		got = append(got, at)
	}
	if !slices.Equal(got, times) || p.free != 3 {
		t.Errorf("%d free at %v, want 3 at %v", p.free, got, times)
	}
}

// The timer of replay requests is 15 s again after progress. It was not for a request
// that followed an unanswered one: when the next part of its answer was lost, it was
// requested after 30 s.
func TestReplayTimerAfterProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, a := smallHub(t, HubConfig{})
		v := playViewer(t, h, "tab")
		v.send(v.watch("s", "", 0))
		v.drain()
		a.asked("s", "tab", "e1", 0, 15)
		pass(timerFirst)
		v.drain()
		r := a.asked("s", "tab", "e1", 0, 15) // whose timer is 30 s
		a.send(answerTo(r, 1, 3, false))
		v.drain()
		pass(timerFirst - 1)
		v.drain()
		a.wantIdle("too early")
		pass(1)
		v.drain()
		a.asked("s", "tab", "e1", 3, 15)
	})
}
