package bench

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/vibetools/gvstream"
)

const (
	manySessions = 100_000
	fewEvents    = 10
)

// A many holds many sessions.
type many struct {
	open    func(id string)              // make an empty session
	publish func(id string, data []byte) // into it; data is the callee's
	check   func(id string) int          // how many events it holds
}

// manies are those whose memory is compared. NATS has nothing that a session
// costs before its first event, and is given a tenth of the sessions: it is slow
// to fill.
var manies = []struct {
	row      string
	sessions int
	empty    bool // there is such a thing as an empty session
	make     func(tb testing.TB) many
}{
	{"gvstream", manySessions, true, manyGvstream},
	{"slice", manySessions, true, manySlices},
	{"mapring", manySessions, true, manyMapRings},
	{"mcp", manySessions, true, manyMCP},
	{"centrifuge", manySessions, true, manyCentrifuge},
	{"nats", manySessions / 10, false, manyNATS},
	{"floor", manySessions, false, manyFloor},
}

// Memory: the heap that a session takes, of 100,000 of them, empty and with 10
// events of 64 B, none of them acknowledged. Read B/session: the time is that of
// the whole. The ids of the sessions are not counted. The floor is 10 slices of 64
// bytes in a row.
func BenchmarkMemory(b *testing.B) {
	for _, events := range []int{0, fewEvents} {
		size := "empty"
		if events > 0 {
			size = "10x64B"
		}
		for _, m := range manies {
			if events > 0 || m.empty {
				b.Run(m.row+"/"+size, func(b *testing.B) { benchMemory(b, m.sessions, events, m.make) })
			}
		}
	}
}

func benchMemory(b *testing.B, sessions, events int, make func(testing.TB) many) {
	ids := sessionIDs(sessions)
	data := payload(64)
	var heap uint64
	rounds := 0
	for b.Loop() {
		before := heapInUse()
		m := make(b)
		for _, id := range ids {
			m.open(id)
		}
		for range events {
			for _, id := range ids {
				m.publish(id, data)
			}
		}
		heap += heapInUse() - before
		rounds++
		for _, i := range []int{0, sessions / 2, sessions - 1} {
			want(b, "events held", m.check(ids[i]), events)
		}
	}
	b.ReportMetric(float64(heap)/float64(rounds*sessions), "B/session")
}

func sessionIDs(n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("session-%06d", i)
	}
	return ids
}

// heapInUse is what lives, after two collections: the first leaves finalizers and
// pools to the second.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

func manyGvstream(tb testing.TB) many {
	st := gvstream.NewStreamer(&gvstream.StreamerConfig{MaxSessions: manySessions})
	get := func(id string) *gvstream.Session {
		s, err := st.Session(id)
		must(tb, err)
		return s
	}
	return many{
		open: func(id string) { get(id) },
		publish: func(id string, data []byte) {
			_, err := get(id).Publish(gone, jsonEvent(data))
			must(tb, err)
		},
		check: func(id string) int { return get(id).Stats().PendingEvents },
	}
}

func manySlices(testing.TB) many {
	m := make(map[string]*sliceLog)
	return many{
		open:    func(id string) { m[id] = &sliceLog{} },
		publish: func(id string, data []byte) { m[id].publish(data) },
		check:   func(id string) int { return len(m[id].unacked()) },
	}
}

// smallRing is a mapRing that makes its ring with the first event, as a program
// with many sessions would.
type smallRing struct {
	seq     uint64
	pending map[uint64]wireEvent
	ring    []wireEvent
}

func manyMapRings(testing.TB) many {
	m := make(map[string]*smallRing)
	return many{
		open: func(id string) { m[id] = &smallRing{} },
		publish: func(id string, data []byte) {
			r := m[id]
			if r.pending == nil {
				r.pending = make(map[uint64]wireEvent)
			}
			r.seq++
			ev := wireEvent{r.seq, time.Now(), "line", bytes.Clone(data)}
			r.pending[r.seq] = ev
			r.ring = append(r.ring, ev) // it grows up to its size
		},
		check: func(id string) int { return len(m[id].pending) },
	}
}

func manyMCP(tb testing.TB) many {
	s := mcp.NewMemoryEventStore(nil)
	s.SetMaxBytes(1 << 30)
	return many{
		open:    func(id string) { must(tb, s.Open(gone, id, "1")) },
		publish: func(id string, data []byte) { must(tb, s.Append(gone, id, "1", bytes.Clone(data))) },
		check: func(id string) (n int) {
			for _, err := range s.After(gone, id, "1", -1) {
				must(tb, err)
				n++
			}
			return n
		},
	}
}

// manyCentrifuge asks for the position of a channel in order to have it made.
func manyCentrifuge(tb testing.TB) many {
	broker := newBroker(tb)
	get := func(id string, limit int) []*centrifuge.Publication {
		pubs, _, err := broker.History(id, centrifuge.HistoryOptions{Filter: centrifuge.HistoryFilter{Limit: limit}})
		must(tb, err)
		return pubs
	}
	return many{
		open: func(id string) { get(id, 0) },
		publish: func(id string, data []byte) {
			opts := centrifuge.PublishOptions{HistorySize: history, HistoryTTL: time.Hour}
			_, err := broker.Publish(id, bytes.Clone(data), opts)
			must(tb, err)
		},
		check: func(id string) int { return len(get(id, -1)) },
	}
}

// manyNATS has a subject a session in one memory stream.
func manyNATS(tb testing.TB) many {
	js := newStream(tb, history)
	sent := 0
	return many{
		open: func(string) {},
		publish: func(id string, data []byte) {
			_, err := js.PublishAsync(session+"."+id, data)
			must(tb, err)
			if sent++; sent%1000 == 0 {
				<-js.PublishAsyncComplete()
			}
		},
		check: func(id string) int {
			ctx := context.Background()
			s, err := js.Stream(ctx, "bench")
			must(tb, err)
			info, err := s.Info(ctx, jetstream.WithSubjectFilter(session+"."+id))
			must(tb, err)
			return int(info.State.Subjects[session+"."+id])
		},
	}
}

func manyFloor(testing.TB) many {
	m := make(map[string][]byte, manySessions)
	return many{
		open: func(id string) { m[id] = make([]byte, 0, fewEvents*64) },
		publish: func(id string, data []byte) {
			m[id] = append(m[id], data...)
		},
		check: func(id string) int { return len(m[id]) / 64 },
	}
}
