package slowconn

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

var data = bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB

// All bytes arrive, in order, in the time that the slow way takes, and the EOF after them.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := Pipe(Way{BytesPerSecond: 16 << 10, Latency: time.Second, MaxRead: 1000}, Way{})
		start := time.Now()
		go func() {
			near.Write(data)
			near.Close()
		}()
		got, err := io.ReadAll(far)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if took := time.Since(start); took < 64*time.Second || took > 66*time.Second {
			t.Errorf("it took %v, want 65 s", took)
		}
		if near.Written() != len(data) || far.Written() != 0 {
			t.Errorf("written: %d and %d", near.Written(), far.Written())
		}
		if _, err := far.Write(data); err != io.ErrClosedPipe {
			t.Errorf("to a closed end: %v", err)
		}
	})
}

// A writer is held up by a reader that stands still, and Close ends its call.
func TestBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := Pipe(Way{Buffer: 100}, Way{})
		time.AfterFunc(time.Hour, func() { near.Close() })
		start := time.Now()
		if n, err := near.Write(data); n != 100 || err != io.ErrClosedPipe || time.Since(start) != time.Hour {
			t.Errorf("%d bytes, %v after %v", n, err, time.Since(start))
		}
		if got, err := io.ReadAll(far); len(got) != 100 || err != nil {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		if _, err := near.Read(make([]byte, 1)); err != io.ErrClosedPipe {
			t.Errorf("at the closed end: %v", err)
		}
	})
}

// A cut is seen at both ends, by calls that are under way.
func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := Pipe(Way{CutAfter: 150_000}, Way{})
		read := make(chan error)
		go func() {
			_, err := io.ReadAll(far)
			read <- err
		}()
		if n, err := near.Write(data); n < 150_000 || n > 150_000+64<<10 || !errors.Is(err, ErrCut) {
			t.Errorf("%d bytes, %v", n, err)
		}
		if err := <-read; err != ErrCut {
			t.Errorf("read: %v", err)
		}
		near, far = Pipe(Way{}, Way{})
		time.AfterFunc(time.Hour, near.Cut)
		if _, err := far.Read(make([]byte, 1)); err != ErrCut {
			t.Errorf("read: %v", err)
		}
	})
}

// In a vanished network a read waits for ever, writes fit until the buffer is full, and no
// end hears that the other is closed.
func TestVanish(t *testing.T) {
	for name, pipe := range map[string]func() (near, far *Conn){
		"at once": func() (near, far *Conn) {
			near, far = Pipe(Way{}, Way{})
			near.Vanish()
			return near, far
		},
		"later": func() (near, far *Conn) { return Pipe(Way{VanishAfter: 10}, Way{}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := pipe()
				done := make(chan string, 2)
				go func() {
					near.Write(data)
					done <- "write"
				}()
				go func() {
					io.ReadAll(far)
					done <- "read"
				}()
				select {
				case who := <-done:
					t.Errorf("%s returned", who)
				case <-time.After(time.Hour):
				}
				if near.Written() != 64<<10 {
					t.Errorf("%d bytes were written", near.Written())
				}
				near.Close()
				synctest.Wait()
				if len(done) != 1 || <-done != "write" {
					t.Error("Close reached the far end")
				}
				far.Close()
			})
		})
	}
}
