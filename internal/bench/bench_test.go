package bench

import (
	"context"
	"fmt"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// history is how many events every store keeps of a session.
const history = 1000

// payloads are the sizes of events' data.
var payloads = []size{{"64B", 64}, {"256B", 256}, {"1KiB", 1 << 10}, {"16KiB", 16 << 10}}

type size struct {
	name string
	n    int
}

// batch is the number of events in the batches of a codec: 100, or as many as
// gvstream puts into one payload of at most 256 KiB.
func (s size) batch() int { return min(100, 240<<10/s.n) }

// payload returns a JSON object of n bytes that looks like what agents say: a few
// short fields, and a text with an escape in each line.
func payload(n int) []byte {
	const line = `[12:30:45] compiling internal/app/server.go ... ok\n`
	out := []byte(`{"id":1234567,"stream":"stdout","text":"`)
	for i := 0; len(out) < n-2; i++ {
		out = append(out, line[i%len(line)])
	}
	if out[len(out)-1] == '\\' {
		out[len(out)-1] = '.'
	}
	return append(out, `"}`...)
}

// gone is a context that has ended: Link.Next returns what is ready, or its error.
var gone = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// A meter reports, beside Go's own figures, the CPU time that the whole process
// spent on an event. It divides all figures by the events of an iteration.
type meter struct {
	b      *testing.B
	events int

	cpu           time.Duration
	mallocs, heap uint64

	cpuAt           time.Duration
	mallocAt, bytes uint64
}

// start is called immediately before the loop, with the number of events that an
// iteration deals with.
func start(b *testing.B, events int) *meter {
	b.ReportAllocs()
	m := &meter{b: b, events: events}
	m.mark()
	m.cpuAt = cpuTime()
	return m
}

// mark and add note and sum up the allocations.
func (m *meter) mark() {
	if m.events > 1 {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		m.mallocAt, m.bytes = s.Mallocs, s.TotalAlloc
	}
}

func (m *meter) add() {
	if m.events > 1 {
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		m.mallocs += s.Mallocs - m.mallocAt
		m.heap += s.TotalAlloc - m.bytes
	}
}

// pause and resume enclose what is not to be measured. Both stop the world for a
// moment, so they stand around hundreds of events, not around one.
func (m *meter) pause() {
	m.cpu += cpuTime() - m.cpuAt
	m.b.StopTimer()
	m.add()
}

func (m *meter) resume() {
	m.mark()
	m.b.StartTimer()
	m.cpuAt = cpuTime()
}

// done is called immediately after the loop.
func (m *meter) done() {
	m.pause()
	n := float64(m.b.N) * float64(m.events)
	m.b.ReportMetric(float64(m.cpu)/n, "cpu-ns/op")
	if m.events > 1 {
		m.b.ReportMetric(float64(m.b.Elapsed())/n, "ns/op")
		m.b.ReportMetric(float64(m.mallocs)/n, "allocs/op")
		m.b.ReportMetric(float64(m.heap)/n, "B/op")
	}
}

// cpuTime is what the process used so far, in user and system mode.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// must fails the test for an error.
func must(tb testing.TB, err error) {
	if err != nil {
		tb.Helper()
		tb.Fatal(err)
	}
}

// want fails the test if what was done is not what was to be done.
func want[T comparable](tb testing.TB, what string, got, want T) {
	if got != want {
		tb.Helper()
		tb.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func TestPayload(t *testing.T) {
	for _, s := range payloads {
		p := payload(s.n)
		want(t, "length", len(p), s.n)
		var v map[string]any
		must(t, codecs[0].unmarshal(p, &v))
		want(t, "id", fmt.Sprint(v["id"]), "1.234567e+06")
	}
}
