package gvstream

import (
	"runtime"
	"sync"
	"time"

	"github.com/vibetools/gvstream/internal/sched"
)

// A workerPool is a few goroutines that work for many links, in turn. A goroutine starts
// when a job is added and fewer than size run, and ends when it finds no job, so that an
// idle hub has none, however many viewers it has. A Hub has one pool for all its viewers'
// links that push and for its sessions' cohorts, one for the calls of Commit, and one for the
// sessions that are being opened; any other link that pushes has its own, in which its one job
// keeps one goroutine busy at most.
//
// Jobs take turns: each does a bounded amount of work and queues itself again if there is
// more. A job whose send or callback blocks holds up one goroutine, and size of them the
// whole pool. A panic in a job ends the process, as in any goroutine.
type workerPool struct {
	mu      sync.Mutex // level 4; protects the fields below
	jobs    sched.Queue[job]
	running int // goroutines
	size    int // goroutines at most; with none, the pool's owner does the jobs and looks at the clock
}

// add queues a job with p for its place, unless it waits there already: however often it
// is added before its turn, it is done once.
func (wp *workerPool) add(p *sched.Element[job], j job) {
	wp.mu.Lock()
	wp.jobs.Push(p, j)
	start := wp.running < wp.size
	if start {
		wp.running++
	}
	wp.mu.Unlock()
	if start {
		go wp.work()
	}
}

// work is the life of one goroutine of the pool.
func (wp *workerPool) work() {
	for j := wp.next(); j != nil; j = wp.next() {
		j.work(time.Now())
	}
}

// next takes out the next job. If there is none, the calling goroutine counts as ended
// under the same lock, so that a job added just after finds that it has to start another.
// In a pool without goroutines the caller is the owner, which doesn't count.
func (wp *workerPool) next() job {
	wp.mu.Lock()
	defer wp.mu.Unlock()
	j := wp.jobs.Pop()
	if j == nil && wp.size > 0 {
		wp.running--
	}
	return j
}

// newWorkerPool returns a pool with as many goroutines as can run at once: jobs compute and
// are not supposed to wait.
func newWorkerPool() workerPool { return workerPool{size: runtime.GOMAXPROCS(0)} }

// A job is a pushWriter whose link has something to send, a session that has events for
// its cohorts or for its store, or a session that is being opened. work is called with no lock held, for one turn.
type job interface{ work(now time.Time) }
