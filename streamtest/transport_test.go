package streamtest

import (
	"context"
	"encoding/gob"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream"
)

func pipePair() (agent, hub Transport) {
	a, b := Pipe()
	return Transport{a.Send, a.Receive, a.Close}, Transport{b.Send, b.Receive, b.Close}
}

func TestTransportOverPipe(t *testing.T) {
	TestTransport(t, func(*testing.T) (agent, hub Transport) { return pipePair() })
}

func TestTransportInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := CheckTransport(pipePair); err != nil {
			t.Error(err)
		}
	})
}

// A real connection, with a codec that is not JSON.
func TestTransportOverTCP(t *testing.T) {
	for _, p := range everyPayload() {
		gob.Register(p)
	}
	TestTransport(t, func(t *testing.T) (agent, hub Transport) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return overGob(a), overGob(b)
	})
}

func overGob(conn net.Conn) Transport {
	enc, dec := gob.NewEncoder(conn), gob.NewDecoder(conn)
	return Transport{
		Send: func(ctx context.Context, p gvstream.Payload) error {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			return enc.Encode(&p)
		},
		Receive: func(ctx context.Context) (p gvstream.Payload, err error) {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			err = dec.Decode(&p)
			return p, err
		},
		Close: conn.Close,
	}
}

// withFaults is a pair whose agent end has faults in both directions.
func withFaults(f Faults) func() (a, b Transport) {
	return func() (a, b Transport) {
		a, b = pipePair()
		a.Send, a.Receive = f.Wrap(a.Send, a.Receive)
		return a, b
	}
}

// with is a pair whose ends were both changed.
func with(change func(end *Transport)) func() (a, b Transport) {
	return func() (a, b Transport) {
		a, b = pipePair()
		change(&a)
		change(&b)
		return a, b
	}
}

// sending and receiving alter the payloads of both ends on their way.
func sending(change func(p gvstream.Payload) (gvstream.Payload, error)) func() (a, b Transport) {
	return with(func(end *Transport) {
		send := end.Send
		end.Send = func(ctx context.Context, p gvstream.Payload) error {
			p, err := change(p)
			if err != nil {
				return err
			}
			return send(ctx, p)
		}
	})
}

// failing changes the errors that both ends' receive returns.
func failing(change func(p gvstream.Payload, err error) (gvstream.Payload, error)) func() (a, b Transport) {
	return with(func(end *Transport) {
		receive := end.Receive
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			p, err := receive(ctx)
			if err != nil {
				return change(p, err)
			}
			return p, nil
		}
	})
}

// brokenTransports has, for each way to be wrong, the checks that must find it.
var brokenTransports = []struct {
	name string
	pair func() (agent, hub Transport)
	want []string
}{
	{"reorders", withFaults(Faults{Reorder: 0.02}), []string{"order", "many small payloads", "both directions at once"}},
	{"loses one in fifty", withFaults(Faults{Drop: 0.02}), []string{"order", "many small payloads", "both directions at once"}},
	{"repeats one in fifty", withFaults(Faults{Duplicate: 0.02}), []string{"order", "many small payloads"}},
	{"loses everything", withFaults(Faults{Drop: 1}), []string{"order", "every payload from the agent",
		"every payload from the hub", "large payload from the agent", "large payload from the hub", "payload unchanged after receive"}},
	{"breaks after 100", withFaults(Faults{CutAfter: 100}), []string{"order", "many small payloads"}},
	{"knows no nack", sending(func(p gvstream.Payload) (gvstream.Payload, error) {
		if a, ok := p.(*gvstream.AckBatchPayload); ok {
			c := *a
			c.Nack = false
			return &c, nil
		}
		return p, nil
	}), []string{"every payload from the agent", "every payload from the hub"}},
	{"rounds numbers", sending(func(p gvstream.Payload) (gvstream.Payload, error) {
		if b, ok := p.(*gvstream.EventBatchPayload); ok && b.HeadSeq == gvstream.MaxSeq {
			c := *b
			c.HeadSeq++
			return &c, nil
		}
		return p, nil
	}), []string{"every payload from the agent", "every payload from the hub"}},
	{"takes watches for hellos", sending(func(p gvstream.Payload) (gvstream.Payload, error) {
		if _, ok := p.(*gvstream.WatchPayload); ok {
			return &gvstream.HelloPayload{}, nil
		}
		return p, nil
	}), []string{"order", "every payload from the agent", "every payload from the hub"}},
	{"writes into what it sends", sending(func(p gvstream.Payload) (gvstream.Payload, error) {
		if h, ok := p.(*gvstream.HelloPayload); ok {
			h.ViewerID = "me"
		}
		return p, nil
	}), []string{"payload unchanged by send", "every payload from the agent"}},
	{"refuses 64 KiB", sending(func(p gvstream.Payload) (gvstream.Payload, error) {
		if b, ok := p.(*gvstream.EventBatchPayload); ok && len(b.Events[0].Data) > 65536 {
			return nil, errors.New("frame too long")
		}
		return p, nil
	}), []string{"large payload from the agent", "large payload from the hub"}},
	{"reuses its buffer", reuses, []string{"payload unchanged after receive"}},
	{"receives under the sender's lock", oneLock, []string{"send while receive waits"}},
	{"receive ignores ctx", with(func(end *Transport) {
		receive := end.Receive
		end.Receive = func(context.Context) (gvstream.Payload, error) { return receive(context.Background()) }
	}), []string{"agent's receive ends with ctx", "hub's receive ends with ctx", "receive with an ended ctx"}},
	{"receive looks at ctx first only", with(func(end *Transport) {
		receive := end.Receive
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return receive(context.Background())
		}
	}), []string{"agent's receive ends with ctx", "hub's receive ends with ctx"}},
	{"receive knows deadlines only", with(func(end *Transport) {
		receive := end.Receive
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			if d, ok := ctx.Deadline(); ok {
				return receive(withDeadline(d))
			}
			return receive(context.Background())
		}
	}), []string{"agent's receive ends with ctx", "hub's receive ends with ctx"}},
	{"receive waits once too often", with(func(end *Transport) {
		receive, refused := end.Receive, false
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			if ctx.Err() != nil && !refused {
				refused = true
				return receive(context.Background())
			}
			return receive(ctx)
		}
	}), []string{"receive with an ended ctx"}},
	{"receive ends without an error", failing(func(gvstream.Payload, error) (gvstream.Payload, error) { return nil, nil }),
		[]string{"agent's receive ends with ctx", "receive with an ended ctx", "agent closes", "hub closes"}},
	{"receive ends with a protocol error", failing(func(gvstream.Payload, error) (gvstream.Payload, error) {
		return nil, &gvstream.ProtocolError{Code: gvstream.CodeMalformed}
	}), []string{"hub's receive ends with ctx", "receive with an ended ctx", "agent closes", "hub closes"}},
	{"send ignores ctx", with(func(end *Transport) {
		send := end.Send
		end.Send = func(_ context.Context, p gvstream.Payload) error { return send(context.Background(), p) }
	}), []string{"agent's send ends with ctx", "hub's send ends with ctx"}},
	{"closes one end only", halfClosed, []string{"agent closes", "hub closes"}},
	{"sends after close", with(func(end *Transport) {
		send := end.Send
		end.Send = func(ctx context.Context, p gvstream.Payload) error {
			if err := send(ctx, p); !errors.Is(err, io.ErrClosedPipe) {
				return err
			}
			return nil
		}
	}), []string{"agent closes", "hub closes"}},
	{"tells of the end once", tellsOnce, []string{"agent closes", "hub closes"}},
}

func withDeadline(d time.Time) context.Context {
	ctx, cancel := context.WithDeadline(context.Background(), d)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// reuses returns the same bytes for every event.
func reuses() (a, b Transport) {
	return with(func(end *Transport) {
		receive, buffer := end.Receive, make([]byte, 2<<20)
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			p, err := receive(ctx)
			if batch, ok := p.(*gvstream.EventBatchPayload); ok {
				c := *batch
				c.Events = slices.Clone(batch.Events)
				c.Events[0].Data = buffer[:copy(buffer, c.Events[0].Data)]
				p = &c
			}
			return p, err
		}
	})()
}

// oneLock serializes the calls of an end. The lock is a channel, which a
// synctest bubble knows how to wait for.
func oneLock() (a, b Transport) {
	return with(func(end *Transport) {
		send, receive, lock := end.Send, end.Receive, make(chan struct{}, 1)
		end.Send = func(ctx context.Context, p gvstream.Payload) error {
			select {
			case lock <- struct{}{}:
				defer func() { <-lock }()
				return send(ctx, p)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			select {
			case lock <- struct{}{}:
				defer func() { <-lock }()
				return receive(ctx)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	})()
}

// halfClosed is two pipes, each end receiving from one and closing that.
func halfClosed() (a, b Transport) {
	a1, b1 := Pipe()
	a2, b2 := Pipe()
	return Transport{a1.Send, a2.Receive, a2.Close}, Transport{b2.Send, b1.Receive, b1.Close}
}

// tellsOnce reports the end of the connection to the first receive only. A later
// one waits, until Close is called again.
func tellsOnce() (a, b Transport) {
	var closes int
	var mu sync.Mutex
	over := make(chan struct{})
	return with(func(end *Transport) {
		receive, told := end.Receive, false
		end.Receive = func(ctx context.Context) (gvstream.Payload, error) {
			if told {
				<-over
			}
			p, err := receive(ctx)
			told = errors.Is(err, io.EOF)
			return p, err
		}
		shut := end.Close
		end.Close = func() error {
			mu.Lock()
			defer mu.Unlock()
			if closes++; closes == 2 {
				close(over)
			}
			return shut()
		}
	})()
}

func TestBrokenTransportsFail(t *testing.T) {
	found := make(map[string]bool)
	for _, broken := range brokenTransports {
		t.Run(broken.name, func(t *testing.T) {
			for _, name := range broken.want {
				i := slices.IndexFunc(transportChecks, func(c check) bool { return c.name == name })
				c := transportChecks[i]
				var err error
				synctest.Test(t, func(*testing.T) { err = c.on(broken.pair()) })
				if err == nil {
					t.Errorf("%s: passed", name)
				} else if !strings.Contains(err.Error(), "the contract: "+c.rule) {
					t.Errorf("%s: no rule in %v", name, err)
				}
				found[name] = true
			}
		})
	}
	for _, c := range transportChecks {
		if !found[c.name] {
			t.Errorf("no broken transport is there for %q", c.name)
		}
	}
}

func TestCheckTransportNamesEveryFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := CheckTransport(withFaults(Faults{Cut: 1}))
		for _, c := range transportChecks {
			needsData := !strings.Contains(c.name, "ctx") && !strings.Contains(c.name, "closes")
			if named := err != nil && strings.Contains(err.Error(), c.name+": "); needsData && !named {
				t.Errorf("%s is not in the error", c.name)
			}
		}
	})
}

// A delay does not violate the contract.
func TestSlowTransportPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := CheckTransport(withFaults(Faults{Seed: 1, Delay: 0.5, MaxDelay: time.Millisecond})); err != nil {
			t.Error(err)
		}
	})
}
