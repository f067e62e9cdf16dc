package streamtest_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

func ack(n uint64) gvstream.Payload {
	return &gvstream.AckBatchPayload{SessionID: "s", Epoch: "e", Link: "l", UpToSeq: n}
}

func number(p gvstream.Payload) uint64 { return p.(*gvstream.AckBatchPayload).UpToSeq }

func TestPipePassesPointersInOrder(t *testing.T) {
	a, b := streamtest.Pipe()
	ctx := t.Context()
	for _, ends := range [][2]*streamtest.Conn{{a, b}, {b, a}} {
		var want []gvstream.Payload
		for n := range uint64(8) {
			want = append(want, ack(n))
			if err := ends[0].Send(ctx, want[n]); err != nil {
				t.Fatal(err)
			}
		}
		for n := range want {
			if got, err := ends[1].Receive(ctx); err != nil || got != want[n] {
				t.Errorf("Receive = %p, %v; want %p", got, err, want[n])
			}
		}
	}
}

func TestPipeBlocksWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streamtest.Pipe()
		sent := 0
		go func() {
			for n := range uint64(10) {
				if err := a.Send(t.Context(), ack(n)); err != nil {
					t.Error(err)
				}
				sent++
			}
		}()
		for i, want := range []int{8, 9, 10, 10} {
			synctest.Wait()
			if sent != want {
				t.Errorf("after %d receives %d sends returned, want %d", i, sent, want)
			}
			if p, err := b.Receive(t.Context()); err != nil || number(p) != uint64(i) {
				t.Errorf("Receive = %v, %v; want %d", p, err, i)
			}
		}
	})
}

func TestPipeClose(t *testing.T) {
	for _, closer := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			a, b := streamtest.Pipe()
			ends := []*streamtest.Conn{a, b}
			ctx := t.Context()
			for n := range uint64(8) {
				a.Send(ctx, ack(n)) // fills the buffer, and is lost
			}
			var blockedSend, blockedReceive error
			go func() { blockedSend = a.Send(ctx, ack(9)) }()
			go func() { _, blockedReceive = a.Receive(ctx) }()
			synctest.Wait()
			if err := ends[closer].Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			synctest.Wait()
			if blockedSend != io.ErrClosedPipe || blockedReceive != io.EOF {
				t.Errorf("blocked Send = %v, Receive = %v", blockedSend, blockedReceive)
			}
			for _, end := range ends {
				if err := end.Send(ctx, ack(1)); err != io.ErrClosedPipe {
					t.Errorf("Send after Close = %v", err)
				}
				if p, err := end.Receive(ctx); p != nil || err != io.EOF {
					t.Errorf("Receive after Close = %v, %v", p, err)
				}
				if err := end.Close(); err != nil {
					t.Errorf("another Close = %v", err)
				}
			}
		})
	}
}

func TestPipeContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streamtest.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if p, err := b.Receive(ctx); p != nil || err != context.DeadlineExceeded {
			t.Errorf("Receive = %v, %v", p, err)
		}
		for n := range uint64(8) { // room is preferred to the ended ctx
			if err := a.Send(ctx, ack(n)); err != nil {
				t.Errorf("Send with room = %v", err)
			}
		}
		if err := a.Send(ctx, ack(8)); err != context.DeadlineExceeded {
			t.Errorf("Send without room = %v", err)
		}
		for n := range uint64(8) { // so is a payload
			if p, err := b.Receive(ctx); err != nil || number(p) != n {
				t.Errorf("Receive = %v, %v; want %d", p, err, n)
			}
		}
	})
}

func TestPipeConcurrentUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streamtest.Pipe()
		var senders, receivers sync.WaitGroup
		var mu sync.Mutex
		got := make(map[uint64]int)
		for s := range uint64(4) {
			senders.Go(func() {
				for n := range uint64(100) {
					if err := a.Send(t.Context(), ack(100*s+n)); err != nil {
						t.Error(err)
					}
				}
			})
			receivers.Go(func() {
				for range 100 {
					p, err := b.Receive(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					got[number(p)]++
					mu.Unlock()
				}
			})
		}
		senders.Wait()
		receivers.Wait()
		if len(got) != 400 {
			t.Errorf("%d different payloads arrived, want 400", len(got))
		}
		for range 4 {
			senders.Go(func() { a.Close(); b.Close() })
		}
		senders.Wait()
		if _, err := a.Receive(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("Receive = %v", err)
		}
	})
}
