package gvstream_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream"
)

// readmePrograms returns README.md, what stands before its first program, and the programs.
func readmePrograms(t *testing.T) (page, before, first, second []byte) {
	t.Helper()
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllSubmatchIndex(page, -1)
	if len(found) != 2 {
		t.Fatalf("%d programs, want 2", len(found))
	}
	return page, page[:found[0][0]], page[found[0][2]:found[0][3]], page[found[1][2]:found[1][3]]
}

// TestReadme checks that the first program in README.md is near the top, and that the second
// is the one in readme_test.go, which has no test of its own, so that the documentation
// shows the whole file.
func TestReadme(t *testing.T) {
	_, before, _, second := readmePrograms(t)
	if line := 1 + bytes.Count(before, []byte("\n")); line > 20 {
		t.Errorf("the first program begins at line %d, want 20 at most", line)
	}
	file, err := os.ReadFile("readme_test.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, second) {
		t.Errorf("readme_test.go does not have the second program of README.md:\n%s", second)
	}
}

// TestReadmeRuns checks that the first program in README.md compiles as it is pasted, ends by
// itself and prints what the page says.
func TestReadmeRuns(t *testing.T) {
	t.Parallel()
	page, _, first, _ := readmePrograms(t)
	said := regexp.MustCompile("(?ms)^It prints:\n\n```\n(.*?)^```$").FindSubmatch(page)
	if said == nil {
		t.Fatal("README.md does not say what the first program prints")
	}
	source := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(source, first, 0o600); err != nil {
		t.Fatal(err)
	}
	printed, err := exec.CommandContext(t.Context(), "go", "run", source).CombinedOutput()
	if err != nil {
		t.Fatalf("go run: %v\n%s", err, printed)
	}
	if diff := cmp.Diff(string(said[1]), string(printed)); diff != "" {
		t.Errorf("-README.md +go run\n%s", diff)
	}
}

// A tiredListener fails as a process without free descriptors does, then accepts one
// connection, and then nothing until it is closed.
type tiredListener struct {
	failures int
	conn     net.Conn
	closed   chan struct{}
}

func (l *tiredListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *tiredListener) Close() error   { close(l.closed); return nil }
func (l *tiredListener) Addr() net.Addr { return nil }

// The accept loop in README.md once ended at the first error, and the hub was gone.
func TestReadmeAccepts(t *testing.T) {
	defer log.SetOutput(log.Writer())
	log.SetOutput(io.Discard)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		near, far := net.Pipe()
		l := &tiredListener{failures: 20, conn: tls.Server(near, &tls.Config{}), closed: make(chan struct{})}
		var loop sync.WaitGroup
		loop.Go(func() { serve(ctx, l, nil) })
		start := time.Now()
		if _, err := far.Read(make([]byte, 1)); err == nil { // nobody logs in, so it is closed
			t.Error("a connection without a login was served")
		}
		if took := time.Since(start); took < 20*time.Second || took > 25*time.Second {
			t.Errorf("20 failures and a login that does not come took %v, want 14 s and 10 s", took)
		}
		cancel()
		loop.Wait()
	})
}

// The connect loop in README.md once went on after its end was certain, and had no limit for
// a dial.
func TestReadmeConnects(t *testing.T) {
	defer log.SetOutput(log.Writer())
	log.SetOutput(io.Discard)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		hub, agent := gvstream.NewHub(nil), gvstream.NewStreamer(nil)
		var (
			running sync.WaitGroup
			dials   []time.Duration // when
			start   = time.Now()
		)
		dial := func(dialing context.Context) (net.Conn, error) {
			dials = append(dials, time.Since(start).Truncate(time.Second))
			switch len(dials) {
			case 1: // a network that swallows packets
				<-dialing.Done()
				return nil, dialing.Err()
			case 2, 3, 4, 5, 6, 7, 8, 9:
				return nil, syscall.ECONNREFUSED
			}
			near, far := net.Pipe()
			running.Go(func() { hub.ConnectAgent("agent-7").RunLines(ctx, far) })
			if len(dials) == 10 {
				time.AfterFunc(3*time.Minute, func() { near.Close() })
			}
			return near, nil
		}
		var end error
		running.Go(func() { end = stayConnected(ctx, dial, agent.Connect) })
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := len(dials); n != 11 {
			t.Fatalf("dials after %v, want 11", dials)
		}
		if first := dials[1]; first < 10*time.Second || first > 12*time.Second {
			t.Errorf("the second dial came after %v, want 10.5 s to 11.5 s", first)
		}
		if again := dials[10] - dials[9] - 3*time.Minute; again > 2*time.Second {
			t.Errorf("the dial after a connection that lasted came after %v, want 1.5 s at most", again)
		}
		other := hub.ConnectAgent("agent-7") // of another process
		defer other.Close()
		synctest.Wait()
		if !errors.Is(end, gvstream.ErrSuperseded) {
			t.Errorf("superseded, the loop ended with %v", end)
		}

		agent.Close(ctx)
		if err := stayConnected(ctx, dial, agent.Connect); !errors.Is(err, gvstream.ErrClosed) {
			t.Errorf("closed, the loop ended with %v", err)
		}
		hub.Close()
		cancel()
		running.Wait()
	})
}

// TestDocExample checks that the example in doc.go is a part of the first program in
// README.md, which is known to run.
func TestDocExample(t *testing.T) {
	_, _, first, _ := readmePrograms(t)
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var text comment.Parser
	blocks := text.Parse(file.Doc.Text()).Content
	i := slices.IndexFunc(blocks, func(b comment.Block) bool { _, ok := b.(*comment.Code); return ok })
	if i < 0 {
		t.Fatal("doc.go has no example")
	}
	body := strings.ReplaceAll(string(first), "\n\t", "\n")
	if example := blocks[i].(*comment.Code).Text; !strings.Contains(body, example) {
		t.Errorf("the first program of README.md does not have the example in doc.go:\n%s", example)
	}
}
