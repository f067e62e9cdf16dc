package gvstream_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/vibetools/gvstream"
)

// The second program in README.md: an agent, a hub and a viewer, over TCP and TLS, with
// loops that a program in production needs.
func Example_tcp() {
	defer log.SetOutput(log.Writer())
	log.SetOutput(io.Discard) // why connections ended
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	hub, agent, viewer := newIdentity("hub"), newIdentity("agent-7"), newIdentity("ada")
	agents, dialAgents := listen(hub, agent)
	viewers, dialViewers := listen(hub, viewer)

	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { runHub(ctx, agents, viewers) })
	fmt.Println("agent:", runAgent(ctx, dialAgents))
	err := runViewer(ctx, dialViewers, func(item gvstream.Item) {
		switch {
		case item.Event != nil:
			fmt.Printf("%s: %s%s\n", item.Event.Type, item.Event.Bytes, item.Event.Data)
		case item.End:
			fmt.Println("end")
		default:
			fmt.Println(item) // a Gap or a Reset
		}
	})
	fmt.Println("viewer:", err)
	// Output:
	// agent: <nil>
	// stdout: ok
	// exit: {"code":0}
	// end
	// viewer: <nil>
}

// newIdentity makes a certificate that certifies itself. In production an authority of
// yours signs them, one authority for agents and another for viewers.
func newIdentity(name string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		log.Panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		log.Panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// listen returns a port of the hub for one kind of client, and what such a client dials.
func listen(hub, client tls.Certificate) (net.Listener, dialFunc) {
	clients, hubs := x509.NewCertPool(), x509.NewCertPool()
	clients.AddCert(client.Leaf)
	hubs.AddCert(hub.Leaf)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{hub},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
	})
	if err != nil {
		log.Panic(err)
	}
	dialer := &tls.Dialer{Config: &tls.Config{
		Certificates: []tls.Certificate{client},
		RootCAs:      hubs,
		ServerName:   "hub",
	}}
	return l, func(ctx context.Context) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", l.Addr().String())
	}
}

// runHub serves agents on one port and viewers on another until ctx ends. Both are from
// tls.Listen, with RequireAndVerifyClientCert and ClientCAs of their own.
func runHub(ctx context.Context, agents, viewers net.Listener) {
	h := gvstream.NewHub(nil) // HubConfig: who may watch what, and where events are stored
	defer h.Close()
	var ports sync.WaitGroup
	ports.Go(func() {
		serve(ctx, agents, func(id string, _ net.Conn) *gvstream.Link { return h.ConnectAgent(id) })
	})
	ports.Go(func() {
		serve(ctx, viewers, func(id string, c net.Conn) *gvstream.Link { // ids differ between one user's tabs
			return h.ConnectViewer(id + " " + c.RemoteAddr().String())
		})
	})
	ports.Wait()
}

// serve runs a link on each connection that l accepts, until l is closed or ctx ends.
func serve(ctx context.Context, l net.Listener, link func(id string, c net.Conn) *gvstream.Link) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	wait := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			wait = 0
			go func() {
				defer conn.Close()
				id, err := login(ctx, conn)
				if err == nil {
					err = link(id, conn).RunLines(ctx, conn)
				}
				log.Printf("%q at %v: %v", id, conn.RemoteAddr(), err)
			}()
		case errors.Is(err, net.ErrClosed):
			return
		default: // it will pass, such as "too many open files"
			wait = min(2*wait+5*time.Millisecond, time.Second)
			log.Printf("accept: %v; again in %v", err, wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
	}
}

// login returns the name in the client's certificate, which is the same on each connection.
func login(ctx context.Context, conn net.Conn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, ok := conn.(*tls.Conn)
	if !ok {
		return "", errors.New("not a TLS connection")
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return "", err
	}
	if certs := c.ConnectionState().PeerCertificates; len(certs) > 0 {
		return certs[0].Subject.CommonName, nil
	}
	return "", errors.New("no client certificate")
}

type dialFunc func(context.Context) (net.Conn, error) // such as one that calls tls.Dialer.DialContext

// stayConnected keeps a Streamer or Viewer connected until that is closed, another process
// takes over its id, or ctx ends. It returns which of them it was.
func stayConnected(ctx context.Context, dial dialFunc, connect func() *gvstream.Link) error {
	const shortest, longest, lasted = time.Second, time.Minute, 2 * time.Minute
	for wait := shortest; ; wait = min(2*wait, longest) {
		start := time.Now()
		err := connectOnce(ctx, dial, connect)
		log.Printf("not connected: %v", err)
		if ctx.Err() != nil || errors.Is(err, gvstream.ErrClosed) || errors.Is(err, gvstream.ErrSuperseded) {
			return err
		}
		if time.Since(start) >= lasted {
			wait = shortest
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)): // a thousand agents don't come back at once
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func connectOnce(ctx context.Context, dial dialFunc, connect func() *gvstream.Link) error {
	dialing, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := dial(dialing)
	if err != nil {
		return err
	}
	return connect().RunLines(ctx, conn) // closes conn
}

func runAgent(ctx context.Context, dial dialFunc) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := gvstream.NewStreamer(nil)
	go func() { cancel(stayConnected(ctx, dial, s.Connect)) }() // if it gives up, all that waits below ends

	// Publish waits while 8,192 events are unacknowledged, unless Overflow says otherwise.
	if _, err := s.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")}); err != nil {
		return err
	}
	if _, err := s.End(ctx, "build-42", gvstream.Event{Type: "exit", Data: []byte(`{"code":0}`)}); err != nil {
		return err
	}
	return s.Close(ctx) // waits until the hub has every event, or ctx ends
}

func runViewer(ctx context.Context, dial dialFunc, show func(gvstream.Item)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := gvstream.NewViewer(nil)
	go func() { cancel(stayConnected(ctx, dial, v.Connect)) }()

	if err := v.Watch("build-42", gvstream.Position{}); err != nil { // from the first event
		return err
	}
	for item, err := range v.Items(ctx) {
		if err != nil {
			return err // the hub has ended the watch
		}
		show(item) // an Event, a Gap, a Reset, or the end
		if item.End {
			return nil
		}
	}
	return context.Cause(ctx)
}
