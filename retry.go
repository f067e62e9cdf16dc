package gvstream

import "time"

// The timer of the protocol (PROTOCOL.md, "Timers"): what is not answered is said again
// after timerFirst, then after twice as long each time, up to timerMax.
const (
	timerFirst = 15 * time.Second
	timerMax   = 2 * time.Minute
)

// A retry is one such timer. It is a value without a lock or a clock: its owner's lock
// protects it, and the time is passed in. The zero retry does not run, and waits for
// timerFirst when it is started.
type retry struct {
	wait time.Duration // how long it waits when it is started next; zero: timerFirst
	at   time.Time     // when it expires; zero: it does not run
}

// start has it expire after its wait. One that runs begins anew.
func (r *retry) start(now time.Time) { r.startIn(now, max(r.wait, timerFirst)) }

// startIn has it expire after d, this once.
func (r *retry) startIn(now time.Time, d time.Duration) { r.at = now.Add(d) }

// again has it wait twice as long from now on, and starts it.
func (r *retry) again(now time.Time) {
	r.backOff()
	r.start(now)
}

// backOff has it wait twice as long when it is started next.
func (r *retry) backOff() { r.wait = min(2*max(r.wait, timerFirst), timerMax) }

// stop ends it, and it still waits as long when it is started next.
func (r *retry) stop() { r.at = time.Time{} }

// reset ends it after progress: it waits for timerFirst when it is started next.
func (r *retry) reset() { *r = retry{} }

// running reports whether it was started and not ended since, expired or not.
func (r *retry) running() bool { return !r.at.IsZero() }

// expired reports whether it runs and its time has come.
func (r *retry) expired(now time.Time) bool { return r.running() && !now.Before(r.at) }
