package gvstream_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"time"

	"github.com/vibetools/gvstream"
)

// The program in README.md: an agent, a hub and a viewer, over TCP.
func Example_tcp() {
	defer log.SetOutput(log.Writer())
	log.SetOutput(io.Discard) // why connections ended
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	agents, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Panic(err)
	}
	defer agents.Close()
	viewers, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Panic(err)
	}
	defer viewers.Close()

	go hub(ctx, agents, viewers)
	fmt.Println("agent:", agent(ctx, agents.Addr().String()))
	viewer(ctx, viewers.Addr().String(), func(item gvstream.Item, err error) {
		switch {
		case err != nil:
			fmt.Println(err)
		case item.Event != nil:
			fmt.Printf("%s: %q%s\n", item.Event.Type, item.Event.Bytes, item.Event.Data)
		default:
			fmt.Println("gap:", item.Gap, "reset:", item.Reset, "end:", item.End)
		}
	})
	// Output:
	// agent: <nil>
	// stdout: "ok\n"
	// exit: ""{"code":0}
	// gap: <nil> reset: <nil> end: true
}

// hub serves agents on one port and viewers on another.
func hub(ctx context.Context, agents, viewers net.Listener) {
	h := gvstream.NewHub(nil)
	go accept(ctx, agents, func(net.Conn) *gvstream.Link { return h.ConnectAgent("agent-1") }) // the id that your login says
	accept(ctx, viewers, func(c net.Conn) *gvstream.Link { return h.ConnectViewer(c.RemoteAddr().String()) })
}

func accept(ctx context.Context, l net.Listener, link func(net.Conn) *gvstream.Link) {
	for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
		go run(ctx, conn, link(conn))
	}
}

func run(ctx context.Context, conn net.Conn, link *gvstream.Link) {
	log.Print(link.RunLines(ctx, conn)) // returns when the connection breaks, and closes it
}

func stayConnected(ctx context.Context, addr string, connect func() *gvstream.Link) {
	for ctx.Err() == nil { // this loop is yours, and its back-off too
		if conn, err := net.Dial("tcp", addr); err == nil {
			run(ctx, conn, connect())
		}
		select {
		case <-time.After(time.Second/2 + rand.N(time.Second)):
		case <-ctx.Done():
		}
	}
}

func agent(ctx context.Context, addr string) error {
	s := gvstream.NewStreamer(nil)
	go stayConnected(ctx, addr, s.Connect)
	s.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok\n")})
	s.End(ctx, "build-42", gvstream.Event{Type: "exit", Data: []byte(`{"code":0}`)})
	return s.Close(ctx) // nil: the hub has all of it
}

func viewer(ctx context.Context, addr string, show func(gvstream.Item, error)) {
	v := gvstream.NewViewer(nil)
	go stayConnected(ctx, addr, v.Connect)
	v.Watch("build-42", gvstream.Position{}) // from the first event
	for item, err := range v.Items(ctx) {
		if show(item, err); item.End { // an Event, a Gap, a Reset, or the end
			return
		}
	}
}
