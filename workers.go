package gvstream

import (
	"runtime"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A crew is a few goroutines that do what there is to do for many links, in turn.
// When there is nothing to do, there are none.
type crew struct {
	mu   sync.Mutex // level 4; protects the fields below
	jobs sched.Queue[job]
	busy int // goroutines
	size int // goroutines at the most; with none, its owner does the jobs and looks at the clock
}

// add has a job done, once, however often it is added before.
func (c *crew) add(p *sched.Element[job], j job) {
	c.mu.Lock()
	c.jobs.Push(p, j)
	start := c.busy < c.size
	if start {
		c.busy++
	}
	c.mu.Unlock()
	if start {
		go c.work()
	}
}

func (c *crew) work() {
	for j := c.next(); j != nil; j = c.next() {
		j.work(time.Now())
	}
}

// next takes out the next job. Without one the goroutine ends, if the caller is one.
func (c *crew) next() job {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs.Pop()
	if j == nil && c.size > 0 {
		c.busy--
	}
	return j
}

func newCrew() crew { return crew{size: runtime.GOMAXPROCS(0)} }

// A job is a link that has something to send, or a session that has news for many.
type job interface{ work(now time.Time) }
