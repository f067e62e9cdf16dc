package gvstream

import "time"

// A retry is "the timer" of PROTOCOL.md: how long to wait for an answer before the same is
// said again. Each thing that waits has one of its own: a handshake, a session at the agent,
// a viewer's watch, a hub's cursor. It is a value without a lock or a clock: its
// owner's lock protects it, and the time is passed in. It sets nothing off by itself: the
// owner schedules its task for at, and asks expired then.
//
//	state     at       the next start waits
//	idle      zero     timerFirst: the zero retry, and any after reset
//	running   set      as before, if nothing comes between
//	expired   is past  again makes it run twice as long
//	stopped   zero     as long as before, or twice that after backOff
type retry struct {
	wait time.Duration // how long it waits when it is started next; zero: timerFirst
	at   time.Time     // when it expires; zero: it does not run
}

// start makes it expire after its wait. One that runs begins anew.
func (r *retry) start(now time.Time) { r.startIn(now, max(r.wait, timerFirst)) }

// startIn makes it expire after d, this once: the wait stays what it is.
func (r *retry) startIn(now time.Time, d time.Duration) { r.at = now.Add(d) }

// again starts it with twice the wait. Its owner calls it when it says the same again.
func (r *retry) again(now time.Time) {
	r.backOff()
	r.start(now)
}

// backOff doubles the wait of the next start, up to timerMax.
func (r *retry) backOff() { r.wait = min(2*max(r.wait, timerFirst), timerMax) }

// stop ends it without progress: its wait stays as long as it has become.
func (r *retry) stop() { r.at = time.Time{} }

// reset ends it after progress: it waits for timerFirst when it is started next.
func (r *retry) reset() { *r = retry{} }

// late reports whether it has become longer since there was progress.
func (r *retry) late() bool { return r.wait > 0 }

// running reports whether it was started and not ended since, expired or not.
func (r *retry) running() bool { return !r.at.IsZero() }

// expired reports whether it runs and its time has come.
func (r *retry) expired(now time.Time) bool { return r.running() && !now.Before(r.at) }
