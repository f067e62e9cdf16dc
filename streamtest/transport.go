package streamtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vibetools/gvstream"
)

// A Transport is one end of a connection as TestTransport takes it. All fields
// must be set.
type Transport struct {
	Send    gvstream.SendFunc
	Receive gvstream.ReceiveFunc
	Close   func() error // ends the connection; is called more than once
}

// TestTransport checks that a transport keeps the contract of
// [gvstream.SendFunc] and [gvstream.ReceiveFunc], in subtests whose failures
// quote what the contract asks. makePair makes a new connection for each of
// them; both its ends are closed when the subtest is over.
//
// A correct transport takes well under a second, plus its own time for two thousand
// small payloads and a few of 1 MiB; a hanging one is abandoned after 40 s. Inside a
// testing/synctest bubble, where a test can't have subtests, call CheckTransport.
func TestTransport(t *testing.T, makePair func(t *testing.T) (agent, hub Transport)) {
	t.Helper()
	for _, c := range transportChecks {
		t.Run(c.name, func(t *testing.T) {
			if err := c.on(makePair(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// CheckTransport makes the checks of TestTransport one after the other and returns all
// failures joined, each with the name of its check, or nil. It may be called inside a
// testing/synctest bubble, where a hanging transport is abandoned at once, since the
// bubble's clock jumps.
func CheckTransport(makePair func() (agent, hub Transport)) error {
	var errs []error
	for _, c := range transportChecks {
		if err := c.on(makePair()); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

// A check is one requirement of the contract.
type check struct {
	name string
	rule string // quoted by a failure
	run  func(a, b Transport) error
}

// on runs the check over one connection and closes that.
func (c check) on(a, b Transport) error {
	defer b.Close()
	defer a.Close()
	if err := c.run(a, b); err != nil {
		return fmt.Errorf("%w\n\tthe contract: %s", err, c.rule)
	}
	return nil
}

const (
	ruleOrder   = "payloads arrive in the order they were sent, each once"
	ruleMeaning = "every type of payload arrives as that type, every field with its value"
	ruleLarge   = "an event may be 1 MiB"
	ruleDuplex  = "one goroutine sends and another receives at the same time, on both ends"
	ruleReceive = "a ReceiveFunc must return when ctx ends, with an error that is no *gvstream.ProtocolError"
	ruleSend    = "a SendFunc may block, and must return when ctx ends"
	ruleClosed  = "when either end closes, both ends' receive returns an error that is no *gvstream.ProtocolError, and goes on doing so"
	ruleKeep    = "a SendFunc must not change the payload"
	ruleOwn     = "a payload and its bytes belong to whoever received it: a transport does not use them again"
)

var transportChecks = []check{
	{"order", ruleOrder, func(a, b Transport) error { return pass(a, b, mixed(200)) }},
	{"many small payloads", ruleOrder, func(a, b Transport) error { return pass(a, b, acks(1000)) }},
	{"every payload from the agent", ruleMeaning, func(a, b Transport) error { return pass(a, b, everyPayload()) }},
	{"every payload from the hub", ruleMeaning, func(a, b Transport) error { return pass(b, a, everyPayload()) }},
	{"large payload from the agent", ruleLarge, func(a, b Transport) error { return pass(a, b, large()) }},
	{"large payload from the hub", ruleLarge, func(a, b Transport) error { return pass(b, a, large()) }},
	{"both directions at once", ruleDuplex, checkBothDirections},
	{"send while receive waits", ruleDuplex, checkPingPong},
	{"payload unchanged by send", ruleKeep, checkSentUnchanged},
	{"payload unchanged after receive", ruleOwn, checkReceivedKept},
	{"agent's receive ends with ctx", ruleReceive, checkReceiveContext},
	{"hub's receive ends with ctx", ruleReceive, swapped(checkReceiveContext)},
	{"receive with an ended ctx", ruleReceive, checkReceiveEnded},
	{"agent's send ends with ctx", ruleSend, checkSendContext},
	{"hub's send ends with ctx", ruleSend, swapped(checkSendContext)},
	{"agent closes", ruleClosed, checkClose},
	{"hub closes", ruleClosed, swapped(checkClose)},
}

func swapped(run func(a, b Transport) error) func(a, b Transport) error {
	return func(a, b Transport) error { return run(b, a) }
}

const (
	// guard is how long a check may take before its context ends, and then again before the
	// check is abandoned. It only bounds failures.
	guard = 20 * time.Second
	// settle is how long a call is given to block before its context ends or its connection
	// is closed. If it is too short for a slow machine, the check is weaker but never
	// wrong.
	settle = 50 * time.Millisecond
)

// together runs the calls concurrently, cancels their context at the first error, and
// returns that error when all are done.
func together(calls ...func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), guard)
	defer cancel()
	done := make(chan error, len(calls))
	for _, call := range calls {
		go func() { done <- call(ctx) }()
	}
	stuck := time.NewTimer(2 * guard)
	defer stuck.Stop()
	var first error
	for range calls {
		select {
		case err := <-done:
			if err != nil && first == nil {
				first = err
				cancel()
			}
		case <-stuck.C:
			return errors.Join(first, fmt.Errorf("a call has not returned %v after its ctx ended", guard))
		}
	}
	return first
}

// pass sends payloads from one end and compares what arrives at the other.
func pass(from, to Transport, payloads []gvstream.Payload) error {
	samples, err := sample(payloads)
	if err != nil {
		return err
	}
	return together(
		func(ctx context.Context) error { return sendAll(ctx, from, samples) },
		func(ctx context.Context) error { _, err := receiveAll(ctx, to, samples); return err })
}

func sendAll(ctx context.Context, to Transport, samples []sent) error {
	for i, s := range samples {
		if err := to.Send(ctx, s.payload); err != nil {
			return fmt.Errorf("sending payload %d of %d, %T: %w", i+1, len(samples), s.payload, err)
		}
	}
	return nil
}

func receiveAll(ctx context.Context, from Transport, samples []sent) ([]gvstream.Payload, error) {
	var got []gvstream.Payload
	for i, s := range samples {
		p, err := from.Receive(ctx)
		if err != nil {
			return nil, fmt.Errorf("payload %d of %d, %T, did not arrive: %w", i+1, len(samples), s.payload, err)
		}
		if err := s.compare(p); err != nil {
			return nil, fmt.Errorf("payload %d of %d: %w", i+1, len(samples), err)
		}
		got = append(got, p)
	}
	return got, nil
}

func checkBothDirections(a, b Transport) error {
	there, err := sample(mixed(300))
	if err != nil {
		return err
	}
	back, err := sample(everyPayload())
	if err != nil {
		return err
	}
	return together(
		func(ctx context.Context) error { return sendAll(ctx, a, there) },
		func(ctx context.Context) error { _, err := receiveAll(ctx, b, there); return err },
		func(ctx context.Context) error { return sendAll(ctx, b, back) },
		func(ctx context.Context) error { _, err := receiveAll(ctx, a, back); return err })
}

// checkPingPong has a's receiver wait for a payload that comes only after a's sender
// has sent. By the second round it is blocked in Receive while Send is called.
func checkPingPong(a, b Transport) error {
	samples, err := sample(acks(50))
	if err != nil {
		return err
	}
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return together(
		func(ctx context.Context) error {
			for _, s := range samples {
				select {
				case <-turn:
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := a.Send(ctx, s.payload); err != nil {
					return fmt.Errorf("send while a receive waits: %w", err)
				}
			}
			return nil
		},
		func(ctx context.Context) error {
			for i := range samples {
				if _, err := receiveAll(ctx, a, samples[i:i+1]); err != nil {
					return err
				}
				turn <- struct{}{}
			}
			return nil
		},
		func(ctx context.Context) error {
			for i := range samples {
				if _, err := receiveAll(ctx, b, samples[i:i+1]); err != nil {
					return err
				}
				if err := sendAll(ctx, b, samples[i:i+1]); err != nil {
					return err
				}
			}
			return nil
		})
}

func checkSentUnchanged(a, b Transport) error {
	samples, err := sample(everyPayload())
	if err != nil {
		return err
	}
	err = together(
		func(ctx context.Context) error { return sendAll(ctx, a, samples) },
		func(ctx context.Context) error {
			for range samples {
				if _, err := b.Receive(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	if err != nil {
		return err
	}
	for _, s := range samples {
		if err := s.compare(s.payload); err != nil {
			return fmt.Errorf("after send, the sender's own payload: %w", err)
		}
	}
	return nil
}

func checkReceivedKept(a, b Transport) error {
	samples, err := sample(mixed(100))
	if err != nil {
		return err
	}
	var got []gvstream.Payload
	err = together(
		func(ctx context.Context) error { return sendAll(ctx, a, samples) },
		func(ctx context.Context) (err error) { got, err = receiveAll(ctx, b, samples); return err })
	if err != nil {
		return err
	}
	for i, s := range samples {
		if err := s.compare(got[i]); err != nil {
			return fmt.Errorf("payload %d, looked at again after later ones arrived: %w", i+1, err)
		}
	}
	return nil
}

// receiveFails reports a receive that does not fail as it must, when of what.
func receiveFails(ctx context.Context, end Transport, what string) error {
	p, err := end.Receive(ctx)
	if err == nil {
		return fmt.Errorf("receive %s: returned a %T and no error", what, p)
	}
	if _, ok := errors.AsType[*gvstream.ProtocolError](err); ok {
		return fmt.Errorf("receive %s: returned %v, on which a link goes on", what, err)
	}
	return nil
}

func checkReceiveContext(a, _ Transport) error {
	return together(func(context.Context) error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		defer time.AfterFunc(settle, cancel).Stop()
		return receiveFails(ctx, a, "when ctx ends")
	})
}

func checkReceiveEnded(a, b Transport) error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return together(
		func(context.Context) error { return receiveFails(ended, a, "with an ended ctx") },
		func(context.Context) error { return receiveFails(ended, b, "with an ended ctx") })
}

// checkSendContext sends to a peer that never reads, until that blocks and nothing has
// gone out for a while; then the context ends. A transport that takes 64 MiB without
// blocking passes: there is no blocked call to return from.
func checkSendContext(a, _ Transport) error {
	p := batch(1, data(64<<10))
	return together(func(context.Context) error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		blocked := time.AfterFunc(settle, cancel)
		defer blocked.Stop()
		for range 1024 {
			if err := a.Send(ctx, p); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return fmt.Errorf("send before ctx ended: %w", err)
			}
			blocked.Reset(settle)
		}
		return nil
	})
}

// checkClose closes a while both ends are waiting in receive.
func checkClose(a, b Transport) error {
	closed := make(chan struct{})
	defer time.AfterFunc(settle, func() {
		defer close(closed)
		a.Close()
	}).Stop()
	twice := func(end Transport, what string) func(context.Context) error {
		return func(context.Context) error {
			for range 2 {
				if err := receiveFails(context.Background(), end, what); err != nil {
					return err
				}
			}
			return nil
		}
	}
	err := together(twice(a, "after its own end closed"), twice(b, "after the other end closed"))
	if err != nil {
		return err
	}
	return together(func(ctx context.Context) error {
		<-closed // not while Close is still at it
		if err := a.Send(ctx, acks(1)[0]); err == nil {
			return errors.New("send after its own end closed: returned no error")
		}
		return nil
	})
}
