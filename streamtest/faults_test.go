package streamtest_test

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

// outgoing sends n payloads through f and returns what goes out, and the error
// that ended it.
func outgoing(t *testing.T, f streamtest.Faults, n uint64) (got []uint64, err error) {
	t.Helper()
	send, _ := f.Wrap(func(_ context.Context, p gvstream.Payload) error {
		got = append(got, number(p))
		return nil
	}, nil)
	for i := range n {
		if err := send(t.Context(), ack(i)); err != nil {
			return got, err
		}
	}
	return got, nil
}

// incoming receives through f what arrives of n payloads, followed by an io.EOF.
func incoming(t *testing.T, f streamtest.Faults, n uint64) (got []uint64, err error) {
	t.Helper()
	next := uint64(0)
	_, receive := f.Wrap(nil, func(context.Context) (gvstream.Payload, error) {
		if next == n {
			return nil, io.EOF
		}
		next++
		return ack(next - 1), nil
	})
	for {
		p, err := receive(t.Context())
		if err == io.EOF {
			return got, nil
		} else if err != nil {
			return got, err
		}
		got = append(got, number(p))
	}
}

func TestFaults(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, test := range []struct {
		name   string
		faults streamtest.Faults
		want   []uint64 // of six payloads
		err    error
	}{
		{"none", streamtest.Faults{}, []uint64{0, 1, 2, 3, 4, 5}, nil},
		{"seed alone", streamtest.Faults{Seed: 7}, []uint64{0, 1, 2, 3, 4, 5}, nil},
		{"drop", streamtest.Faults{Drop: 1}, nil, nil},
		{"duplicate", streamtest.Faults{Duplicate: 1}, []uint64{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5}, nil},
		{"reorder", streamtest.Faults{Reorder: 1}, []uint64{1, 0, 3, 2, 5, 4}, nil},
		{"duplicate and reorder", streamtest.Faults{Duplicate: 1, Reorder: 1},
			[]uint64{0, 1, 1, 0, 2, 3, 3, 2, 4, 5, 5, 4}, nil},
		{"cut", streamtest.Faults{Cut: 1}, nil, streamtest.ErrCut},
		{"cut beats drop", streamtest.Faults{Cut: 1, Drop: 1}, nil, streamtest.ErrCut},
		{"cut after 1", streamtest.Faults{CutAfter: 1}, []uint64{0}, streamtest.ErrCut},
		{"cut after 5", streamtest.Faults{CutAfter: 5}, []uint64{0, 1, 2, 3, 4}, streamtest.ErrCut},
		{"cut after duplicates", streamtest.Faults{CutAfter: 2, Duplicate: 1}, []uint64{0, 0, 1, 1}, streamtest.ErrCut},
		{"cut after dropped ones", streamtest.Faults{CutAfter: 2, Drop: 1}, nil, streamtest.ErrCut},
		{"cut after one held back", streamtest.Faults{CutAfter: 1, Reorder: 1}, nil, streamtest.ErrCut},
		{"below 0", streamtest.Faults{Drop: -1, Duplicate: -inf, Reorder: nan, Cut: -1, CutAfter: -1, MaxDelay: -1, Delay: 1},
			[]uint64{0, 1, 2, 3, 4, 5}, nil},
		{"above 1", streamtest.Faults{Duplicate: inf, Cut: -3}, []uint64{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, err := outgoing(t, test.faults, 6); !slices.Equal(got, test.want) || err != test.err {
				t.Errorf("sending: %v, %v; want %v, %v", got, err, test.want, test.err)
			}
			if got, err := incoming(t, test.faults, 6); !slices.Equal(got, test.want) || err != test.err {
				t.Errorf("receiving: %v, %v; want %v, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestFaultsCutAfterSixOfSix(t *testing.T) {
	f := streamtest.Faults{CutAfter: 6}
	if got, err := outgoing(t, f, 6); len(got) != 6 || err != nil {
		t.Errorf("sending: %v, %v; want the last one to succeed", got, err)
	}
	if got, err := incoming(t, f, 6); len(got) != 6 || err != streamtest.ErrCut {
		t.Errorf("receiving: %v, %v; want 6 and then ErrCut", got, err)
	}
}

func TestFaultsLastHeldBackIsLost(t *testing.T) {
	got, _ := incoming(t, streamtest.Faults{Reorder: 1}, 3)
	if want := []uint64{1, 0}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFaultsSequenceDependsOnSeed(t *testing.T) {
	f := streamtest.Faults{Seed: 1, Drop: 0.2, Duplicate: 0.2, Reorder: 0.2}
	first, _ := outgoing(t, f, 1000)
	again, _ := outgoing(t, f, 1000)
	if !slices.Equal(first, again) {
		t.Error("the same seed gave another sequence")
	}
	if back, _ := incoming(t, f, 1000); slices.Equal(first, back) {
		t.Error("both directions have the same sequence")
	}
	f.Seed = 2
	if other, _ := outgoing(t, f, 1000); slices.Equal(first, other) {
		t.Error("another seed gave the same sequence")
	}
	if n := len(first); n < 850 || n > 1070 { // 1000 * 0.8 * 1.2, and more than 4 sigma
		t.Errorf("%d of 1000 payloads came out, want about 960", n)
	}
	// One more fault does not change what the others hit.
	one, _ := outgoing(t, streamtest.Faults{Drop: 0.3}, 100)
	two, _ := outgoing(t, streamtest.Faults{Drop: 0.3, Duplicate: 0.5}, 100)
	if !slices.Equal(one, slices.Compact(two)) {
		t.Error("Duplicate changed what Drop drops")
	}
}

func TestFaultsDirectionsAreIndependent(t *testing.T) {
	f := streamtest.Faults{Seed: 3, Drop: 0.5}
	want, _ := incoming(t, f, 100)
	next := uint64(0)
	send, receive := f.Wrap(
		func(context.Context, gvstream.Payload) error { return nil },
		func(context.Context) (gvstream.Payload, error) { next++; return ack(next - 1), nil })
	for i, w := range want {
		for range i % 3 {
			if err := send(t.Context(), ack(0)); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := receive(t.Context()); err != nil || number(p) != w {
			t.Fatalf("receive %d = %v, %v; want %d", i, p, err, w)
		}
	}
}

func TestFaultsDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streamtest.Pipe()
		f := streamtest.Faults{Delay: 1, MaxDelay: time.Hour}
		send, receive := f.Wrap(a.Send, a.Receive)
		start := time.Now()
		for n := range uint64(8) {
			if err := send(t.Context(), ack(n)); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d < time.Hour || d > 7*time.Hour {
			t.Errorf("8 delays of up to 1 h took %v", d)
		}
		b.Send(t.Context(), ack(0))
		ctx, cancel := context.WithTimeout(t.Context(), 1)
		defer cancel()
		if p, err := receive(ctx); err != context.DeadlineExceeded {
			t.Errorf("receive = %v, %v; want the ctx to end the delay", p, err)
		}
		if err := send(ctx, ack(9)); err != context.DeadlineExceeded {
			t.Errorf("send = %v; want the ctx to end the delay", err)
		}
		if p, err := receive(t.Context()); err != nil || number(p) != 0 {
			t.Errorf("receive = %v, %v; want the payload that was delayed", p, err)
		}
	})
}

// A cut by one direction ends a call of the other that is blocked in the
// transport or in a delay.
func TestFaultsCutWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := streamtest.Pipe()
		f := streamtest.Faults{CutAfter: 3}
		send, receive := f.Wrap(a.Send, a.Receive)
		var blocked error
		go func() { _, blocked = receive(t.Context()) }()
		for n := range uint64(3) {
			synctest.Wait()
			if blocked != nil {
				t.Fatalf("receive = %v before the cut", blocked)
			}
			if err := send(t.Context(), ack(n)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if blocked != streamtest.ErrCut {
			t.Errorf("receive = %v, want ErrCut", blocked)
		}
		for range 2 {
			if err := send(t.Context(), ack(0)); err != streamtest.ErrCut {
				t.Errorf("send after the cut = %v", err)
			}
			if p, err := receive(t.Context()); p != nil || err != streamtest.ErrCut {
				t.Errorf("receive after the cut = %v, %v", p, err)
			}
		}
	})
}

func TestFaultsCutWakesDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := streamtest.Pipe()
		// With this seed, sent payloads are delayed for longer than received ones.
		f := streamtest.Faults{Seed: 4, CutAfter: 2, Delay: 1, MaxDelay: time.Hour}
		send, receive := f.Wrap(a.Send, a.Receive)
		b.Send(t.Context(), ack(0))
		b.Send(t.Context(), ack(1))
		var delayed error
		go func() { delayed = send(t.Context(), ack(0)) }()
		synctest.Wait()
		if p, err := receive(t.Context()); err != nil || number(p) != 0 {
			t.Errorf("receive = %v, %v; want the last payload before the cut", p, err)
		}
		synctest.Wait()
		if delayed != streamtest.ErrCut {
			t.Errorf("send = %v, want ErrCut", delayed)
		}
		if _, err := receive(t.Context()); err != streamtest.ErrCut {
			t.Errorf("receive = %v, want ErrCut", err)
		}
	})
}

func TestFaultsPassErrorsOn(t *testing.T) {
	refused := &gvstream.ProtocolError{Code: gvstream.CodeMalformed}
	broken := errors.New("broken")
	errs := []error{nil, refused, nil, broken}
	f := streamtest.Faults{Reorder: 1}
	send, receive := f.Wrap(
		func(context.Context, gvstream.Payload) error { return broken },
		func(context.Context) (gvstream.Payload, error) {
			err := errs[0]
			errs = errs[1:]
			return ack(uint64(len(errs))), err
		})
	if err := send(t.Context(), ack(0)); err != nil {
		t.Errorf("send of what is held back = %v", err)
	}
	if err := send(t.Context(), ack(0)); err != broken {
		t.Errorf("send = %v, want the transport's error", err)
	}
	if _, err := receive(t.Context()); err != refused {
		t.Errorf("receive = %v, want the transport's ProtocolError", err)
	}
	for _, want := range []uint64{1, 3} { // held back across the error
		if p, err := receive(t.Context()); err != nil || number(p) != want {
			t.Errorf("receive = %v, %v; want %d", p, err, want)
		}
	}
	if _, err := receive(t.Context()); err != broken {
		t.Errorf("receive = %v, want the transport's error", err)
	}
}
