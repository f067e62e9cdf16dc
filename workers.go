package gvstream

import (
	"runtime"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A workerPool is a few goroutines that do what there is to do for many links, in turn.
// When there is nothing to do, there are none.
type workerPool struct {
	mu      sync.Mutex // level 4; protects the fields below
	jobs    sched.Queue[job]
	running int // goroutines
	size    int // goroutines at the most; with none, its owner does the jobs and looks at the clock
}

// add has a job done, once, however often it is added before.
func (c *workerPool) add(p *sched.Element[job], j job) {
	c.mu.Lock()
	c.jobs.Push(p, j)
	start := c.running < c.size
	if start {
		c.running++
	}
	c.mu.Unlock()
	if start {
		go c.work()
	}
}

func (c *workerPool) work() {
	for j := c.next(); j != nil; j = c.next() {
		j.work(time.Now())
	}
}

// next takes out the next job. Without one the goroutine ends, if the caller is one.
func (c *workerPool) next() job {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs.Pop()
	if j == nil && c.size > 0 {
		c.running--
	}
	return j
}

func newWorkerPool() workerPool { return workerPool{size: runtime.GOMAXPROCS(0)} }

// A job is a link that has something to send, or a session that has news for many.
type job interface{ work(now time.Time) }
