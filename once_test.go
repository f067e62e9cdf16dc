package gvstream

import (
	"fmt"
	"testing"
	"time"
)

func TestOnceASecond(t *testing.T) {
	start := time.Unix(1000, 0)
	var o onceASecond
	for _, step := range []struct {
		after   time.Duration
		session string
		want    bool
	}{
		{0, "a", true}, {0, "a", false}, {1, "b", true},
		{time.Second - 1, "a", false}, {time.Second, "a", true}, {time.Second, "b", false},
		{time.Second + 1, "b", true}, {2*time.Second - 1, "a", false}, {2 * time.Second, "a", true},
	} {
		if got := o.allow(start.Add(step.after), step.session); got != step.want {
			t.Errorf("%s after %v: %v, want %v", step.session, step.after, got, step.want)
		}
	}
}

// A peer that names ever more sessions is answered about as many in a second as one payload can
// name, and costs no more memory than those.
func TestOnceASecondBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	var o onceASecond
	for second := range 3 {
		said := 0
		for i := range 10 * maxOnce {
			if o.allow(now, fmt.Sprint(second, "/", i)) {
				said++
			}
		}
		if said != maxOnce || len(o.at) > maxOnce {
			t.Errorf("second %d: %d said, %d remembered, want %d", second, said, len(o.at), maxOnce)
		}
		now = now.Add(time.Second)
	}
}
