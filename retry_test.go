package gvstream

import (
	"testing"
	"time"
)

// The waits double from 15 s up to 2 min, and begin anew after progress.
func TestRetry(t *testing.T) {
	now := time.Unix(1000, 0)
	var r retry
	if r.running() || r.expired(now) {
		t.Error("it runs before it was started")
	}
	r.start(now)
	for _, wait := range []time.Duration{15, 30, 60, 120, 120} {
		wait *= time.Second
		if now = now.Add(wait - 1); r.expired(now) {
			t.Fatalf("expired before %v had passed", wait)
		}
		if now = now.Add(1); !r.expired(now) {
			t.Fatalf("not expired after %v", wait)
		}
		r.again(now)
	}
	r.reset()
	if r.running() || r.expired(now.Add(time.Hour)) {
		t.Error("it runs after progress")
	}
	r.start(now)
	if want := now.Add(timerFirst); !r.at.Equal(want) {
		t.Errorf("after progress it expires at %v, want %v", r.at, want)
	}
}

func TestRetryStop(t *testing.T) {
	now := time.Unix(1000, 0)
	var r retry
	r.start(now)
	r.again(now)
	r.stop()
	if r.running() {
		t.Error("it runs after it was stopped")
	}
	r.start(now)
	if want := now.Add(2 * timerFirst); !r.at.Equal(want) {
		t.Errorf("started again it expires at %v, want %v: a stop is no progress", r.at, want)
	}
	r.backOff()
	if want := now.Add(2 * timerFirst); !r.at.Equal(want) {
		t.Errorf("a longer wait moved it to %v", r.at)
	}
}

// A wait given for once is used only once, and does not count as progress.
func TestRetryStartIn(t *testing.T) {
	now := time.Unix(1000, 0)
	var r retry
	r.start(now)
	r.backOff()
	r.startIn(now, time.Second)
	if r.expired(now.Add(time.Second-1)) || !r.expired(now.Add(time.Second)) {
		t.Errorf("it expires at %v, want it a second after %v", r.at, now)
	}
	r.start(now)
	if want := now.Add(2 * timerFirst); !r.at.Equal(want) {
		t.Errorf("started again it expires at %v, want %v", r.at, want)
	}
}
