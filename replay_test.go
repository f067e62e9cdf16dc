package gvstream

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vibetools/gvstream/internal/testenv"
)

// A logModel is a slow log: what is at each number from first on.
type logModel struct {
	first uint64
	at    []string // "" for an event, else the reason of the gap that covers it
}

func (m *logModel) head() uint64 { return m.first + uint64(len(m.at)) - 1 }

// gapAt is the gap that begins at index i of the numbers in at.
func gapAt(first uint64, at []string, i int) Gap {
	j := i
	for j+1 < len(at) && at[j+1] == at[i] {
		j++
	}
	return Gap{first + uint64(i), first + uint64(j), Reason(at[i])}
}

// tiles are the events' numbers and the gaps in (after, until].
func (m *logModel) tiles(after, until uint64) (events []uint64, gaps []Gap) {
	until = min(until, m.head())
	if after+1 < m.first && after < until {
		last := min(m.first-1, until)
		gaps = append(gaps, Gap{after + 1, last, ReasonEvicted})
		after = last
	}
	if after >= until {
		return nil, gaps
	}
	at := m.at[after+1-m.first : until+1-m.first]
	for i := 0; i < len(at); i++ {
		if at[i] == "" {
			events = append(events, after+1+uint64(i))
			continue
		}
		g := gapAt(after+1, at, i)
		gaps = append(gaps, g)
		i += int(g.To - g.From)
	}
	return events, gaps
}

// testEvent is an event whose data is its number.
func testEvent(seq uint64) Event { return Event{Seq: seq, Type: "out", Data: fmt.Append(nil, seq)} }

// testSize is the size of its JSON.
func testSize(seq uint64) int {
	p, err := newPage(seq, seq, []Event{testEvent(seq)}, nil)
	if err != nil {
		panic(err)
	}
	return int(p.slots[0].size)
}

// newPage is the page of a batch.
func newPage(first, last uint64, events []Event, gaps []Gap) (p page, err error) {
	err = p.load(first, last, events, gaps)
	return p, err
}

// add publishes the next event.
func (l *log) add() {
	ev := testEvent(l.head + 1)
	d := preparedEvent{ev: &ev}
	if err := d.check(false); err != nil {
		panic(err)
	}
	l.publish(&d)
}

func testLog(events uint64) *log {
	l := &log{}
	for range events {
		l.add()
	}
	return l
}

// checkLog checks that the log is the model, and that its counts are right.
func checkLog(t *testing.T, l *log, m *logModel) {
	t.Helper()
	if l.first() != m.first || l.head != m.head() {
		t.Fatalf("log of %d to %d, want %d to %d", l.first(), l.head, m.first, m.head())
	}
	events, gaps := m.tiles(m.first-1, m.head())
	bytes, entries := 0, 0
	for i := range l.ring.n {
		e := l.ring.at(i)
		for seq := l.from(i); seq <= e.to; seq++ {
			if at := l.find(seq); at != i {
				t.Fatalf("find(%d) = %d, want %d", seq, at, i)
			}
			if want := m.at[seq-m.first]; e.gap() != (want != "") || e.gap() && string(e.reason()) != want {
				t.Fatalf("number %d: gap %v %q, want %q", seq, e.gap(), e.bytes(), want)
			}
		}
		if !e.gap() {
			bytes += int(e.size)
		}
		entries++
	}
	if l.events != len(events) || l.bytes != bytes || entries != len(events)+len(gaps) {
		t.Fatalf("%d events, %d bytes, %d entries; want %d, %d, %d", l.events, l.bytes, entries, len(events), bytes, len(events)+len(gaps))
	}
}

// checkRead reads every span of the log and compares it with the model.
func checkRead(t *testing.T, l *log, m *logModel) {
	t.Helper()
	for after := range m.head() + 4 {
		for until := range m.head() + 4 {
			p := l.read(span{after, until, 1000, pageBytes, anySize, 0})
			wantEvents, wantGaps := m.tiles(after, until)
			checkPage(t, &p, after, max(after, min(until, m.head())), wantEvents, wantGaps)
		}
	}
}

// eventsOfPage are a page's events, in the page's own bytes, which stay in use.
func eventsOfPage(p *page) []Event { return decodeEvents(p.slots, nil) }

func checkPage(t *testing.T, p *page, after, last uint64, wantEvents []uint64, wantGaps []Gap) {
	t.Helper()
	events, gaps := eventsOfPage(p), p.gaps
	var seqs []uint64
	for _, ev := range events {
		seqs = append(seqs, ev.Seq)
		if string(ev.Data) != fmt.Sprint(ev.Seq) || ev.Type != "out" {
			t.Fatalf("event %d is %q %s", ev.Seq, ev.Type, ev.Data)
		}
	}
	if p.first != after+1 || p.last != last || len(p.slots) != len(events) {
		t.Fatalf("after %d: page of %d to %d with %d events, want %d to %d with %d", after, p.first, p.last, len(p.slots), after+1, last, len(events))
	}
	if !slices.Equal(seqs, wantEvents) || !slices.Equal(gaps, wantGaps) {
		t.Fatalf("after %d: events %v, gaps %v; want %v, %v", after, seqs, gaps, wantEvents, wantGaps)
	}
	if p.last >= p.first {
		if err := checkTiles(p.first, p.last, events, nil, gaps); err != nil {
			t.Fatalf("after %d: %v", after, err)
		}
	}
	if len(events) == 0 {
		return
	}
	if err := checkTiles(p.first, p.last, nil, p.slots, gaps); err != nil {
		t.Fatalf("after %d: %v", after, err)
	}
	fresh, err := newPage(p.first, p.last, events, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.appendTo(nil), fresh.appendTo(nil); !bytes.Equal(got, want) {
		t.Fatalf("after %d: encoded %s, want %s", after, got, want)
	}
}

// TestLog: every capacity, count, position and ceiling, against a plain slice.
func TestLog(t *testing.T) {
	for capacity := range 7 {
		for count := range uint64(16) {
			l := testLog(count)
			held := min(uint64(capacity), count)
			freed := l.trim(count, capacity, 1<<20)
			m := &logModel{first: count - held + 1, at: make([]string, held)}
			if want := testLog(count).bytes - l.bytes; freed != want {
				t.Fatalf("capacity %d, %d events: %d bytes freed, want %d", capacity, count, freed, want)
			}
			checkLog(t, l, m)
			checkRead(t, l, m)
		}
	}
}

// TestLogTrim: nothing pending is evicted, and acknowledged events only as far as the
// limits require (rule 10).
func TestLogTrim(t *testing.T) {
	t.Parallel()
	const count = 8
	size := testSize(1)
	for acked := range uint64(count + 1) {
		for maxEvents := range count + 2 {
			for maxSize := range count + 2 {
				for slack := -1; slack <= 1; slack++ {
					l := testLog(count)
					l.trim(acked, maxEvents, maxSize*size+slack)
					fits := min(maxEvents, maxSize)
					if slack < 0 {
						fits = min(maxEvents, max(maxSize-1, 0))
					}
					evicted := min(acked, uint64(max(count-fits, 0)))
					m := &logModel{first: evicted + 1, at: make([]string, count-evicted)}
					checkLog(t, l, m)
				}
			}
		}
	}
}

// TestLogTrimGaps: gaps do not count as events, but there are never more of them than
// fit between the events that are kept.
func TestLogTrimGaps(t *testing.T) {
	l := &log{}
	for seq := range uint64(40) {
		l.appendGap(seq+1, []Reason{ReasonDropped, ReasonRejected}[seq%2])
	}
	if l.ring.n != 40 || l.events != 0 || l.bytes != 0 {
		t.Fatalf("%d entries, %d events, %d bytes", l.ring.n, l.events, l.bytes)
	}
	l.trim(30, 10, 1<<20)
	if l.first() != 20 || l.ring.n != 21 {
		t.Errorf("10 events kept: log from %d with %d gaps", l.first(), l.ring.n)
	}
	l.trim(30, 0, 1<<20)
	if l.first() != 31 || l.ring.n != 10 {
		t.Errorf("no events kept: log from %d with %d gaps", l.first(), l.ring.n)
	}
}

// TestLogTrimNoLimit: a limit that says "all" keeps all. Twice the greatest number of
// events overflowed, and nothing acknowledged was kept.
func TestLogTrimNoLimit(t *testing.T) {
	l := testLog(10)
	if freed := l.trim(10, math.MaxInt, math.MaxInt); freed != 0 || l.first() != 1 {
		t.Errorf("%d bytes freed, log from %d", freed, l.first())
	}
}

// TestLogLose turns each event of each log into a gap, next to gaps with the same and
// with other reasons: neighbours merge if the reasons are the same.
func TestLogLose(t *testing.T) {
	t.Parallel()
	reasons := []Reason{ReasonDropped, ReasonRejected}
	for count := 1; count <= 5; count++ {
		for pattern := range 1 << (2 * count) { // for each number: an event, or lost by one of two reasons
			for _, backwards := range []bool{false, true} {
				l := testLog(uint64(count))
				m := &logModel{first: 1, at: make([]string, count)}
				for i := range count {
					if backwards {
						i = count - 1 - i
					}
					if c := pattern >> (2 * i) & 3; c >= 2 {
						want := testSize(uint64(i + 1))
						if n := l.loseAt(l.find(uint64(i+1)), reasons[c-2]); n != want {
							t.Fatalf("lose(%d) frees %d bytes, want %d", i+1, n, want)
						}
						m.at[i] = string(reasons[c-2])
					}
				}
				checkLog(t, l, m)
				if !backwards {
					checkRead(t, l, m)
				}
			}
		}
	}
}

// What a log counts and loses after a number, for each log of up to four events and
// gaps, is the same as when going through it number by number. A gap is not an event,
// even where it crosses the number up to which events count.
func TestLogAfter(t *testing.T) {
	const count = 4
	for lost := range uint64(1 << count) {
		isLost := func(seq uint64) bool { return lost>>(seq-1)&1 == 1 }
		newLog := func() *log {
			l := testLog(count)
			for seq := uint64(1); seq <= count; seq++ {
				if isLost(seq) {
					l.loseAt(l.find(seq), ReasonDropped)
				}
			}
			return l
		}
		for after := range uint64(count) {
			events, bytes, oldest := 0, 0, uint64(0)
			for seq := after + 1; seq <= count; seq++ {
				if !isLost(seq) {
					events++
					bytes += testSize(seq)
					if oldest == 0 {
						oldest = seq
					}
				}
				if n, b := newLog().tally(after, seq); n != events || b != bytes {
					t.Errorf("lost %04b: %d events, %d bytes in (%d, %d], want %d and %d", lost, n, b, after, seq, events, bytes)
				}
			}
			if _, ok := newLog().loseSeq(after+1, ReasonDropped); ok == isLost(after+1) {
				t.Errorf("lost %04b: losing %d: %v", lost, after+1, ok)
			}
			if oldest != 0 {
				l := newLog()
				n := l.loseOldest(after, ReasonDropped)
				if _, again := l.loseSeq(oldest, ReasonDropped); again || n != testSize(oldest) {
					t.Errorf("lost %04b: losing the oldest after %d frees %d bytes, want the %d of %d", lost, after, n, testSize(oldest), oldest)
				}
			}
		}
	}
}

// Gaps of different reasons stay apart, up to a limit; beyond it a new one is merged
// with its neighbours.
func TestLogMaxGaps(t *testing.T) {
	for _, test := range []struct{ lost, events, left int }{
		{maxGaps, 0, maxGaps}, {maxGaps + 1, 0, maxGaps}, {maxGaps + 1, 1, maxGaps + 2}, {maxGaps + 2, 1, maxGaps + 2}, {maxGaps + 3, 1, maxGaps + 3},
	} {
		l := testLog(uint64(test.lost + test.events))
		for i := range test.lost {
			l.loseAt(l.find(uint64(i+1)), Reason(fmt.Sprint("r", i%2)))
		}
		if l.ring.n != test.left || l.events != test.events {
			t.Errorf("%d of %d lost: %d slots with %d events, want %d", test.lost, test.lost+test.events, l.ring.n, l.events, test.left)
		}
	}
}

// TestLogDeclare: missing numbers in front become a gap, which joins one that is
// already there (rule 6).
func TestLogDeclare(t *testing.T) {
	for count := range uint64(8) {
		for evicted := range count + 1 {
			for after := range count + 2 {
				for _, lost := range []bool{false, true} {
					l := testLog(count)
					for range evicted {
						l.evict()
					}
					m := &logModel{first: evicted + 1, at: make([]string, count-evicted)}
					if lost && evicted < count {
						l.loseAt(0, ReasonEvicted)
						m.at[0] = string(ReasonEvicted)
					}
					l.declare(after, ReasonEvicted)
					for m.first > after+1 {
						m.first--
						m.at = append([]string{string(ReasonEvicted)}, m.at...)
					}
					checkLog(t, l, m)
				}
			}
		}
	}
}

// TestLogAppend: a gap joins the gap before it if the reasons are the same.
func TestLogAppend(t *testing.T) {
	l := testLog(1)
	l.appendGap(3, ReasonDropped)
	l.appendGap(4, ReasonDropped)
	l.appendGap(9, ReasonRejected)
	l.add()
	l.appendGap(11, ReasonRejected)
	_, gaps := l.pageOf(t)
	want := []Gap{{2, 4, ReasonDropped}, {5, 9, ReasonRejected}, {11, 11, ReasonRejected}}
	if diff := cmp.Diff(want, gaps); diff != "" || l.events != 2 {
		t.Errorf("%d events, gaps (-want +got):\n%s", l.events, diff)
	}
}

// pageOf reads the whole log.
func (l *log) pageOf(t *testing.T) ([]Event, []Gap) {
	t.Helper()
	p := l.read(span{0, l.head, 1 << 20, 1 << 30, anySize, 0})
	return p.open(), p.gaps
}

// TestLogSteps applies all operations to a log in random order.
func TestLogSteps(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		l, m := &log{}, &logModel{first: 1}
		acked := uint64(0)
		for range 120 {
			switch rnd.IntN(8) {
			case 0, 1, 2:
				l.add()
				m.at = append(m.at, "")
			case 3:
				to := l.head + 1 + rnd.Uint64N(3)
				l.appendGap(to, ReasonUnavailable)
				for m.head() < to {
					m.at = append(m.at, string(ReasonUnavailable))
				}
			case 4:
				if i := rnd.IntN(len(m.at) + 1); i < len(m.at) && m.at[i] == "" {
					l.loseAt(l.find(m.first+uint64(i)), ReasonDropped)
					m.at[i] = string(ReasonDropped)
				}
			case 5:
				acked += rnd.Uint64N(l.head - acked + 1)
				keep := rnd.IntN(6)
				l.trim(acked, keep, 1<<20)
				m.at = m.at[l.first()-m.first:]
				m.first = l.first()
				if m.first > acked+1 {
					t.Fatalf("seed %d: log from %d, acked %d", seed, m.first, acked)
				}
			case 6:
				acked -= rnd.Uint64N(acked + 1)
				l.declare(acked, ReasonEvicted)
				for m.first > acked+1 {
					m.first--
					m.at = append([]string{string(ReasonEvicted)}, m.at...)
				}
			case 7:
				after := rnd.Uint64N(l.head + 3)
				until := rnd.Uint64N(l.head + 3)
				p := l.read(span{after, until, 1000, pageBytes, anySize, 0})
				events, gaps := m.tiles(after, until)
				checkPage(t, &p, after, max(after, min(until, m.head())), events, gaps)
			}
			checkLog(t, l, m)
		}
	}
}

// TestReadBounds: a page ends just at its number of events, at the number up to which
// events may go, and at its bytes; gaps do not count as events (rule 7).
func TestReadBounds(t *testing.T) {
	size := testSize(1) + 1
	for _, test := range []struct {
		name string
		lose []uint64
		span span
		last uint64
	}{
		{"no events", nil, span{0, 9, 0, 1000, anySize, 0}, 0},
		{"one event", nil, span{0, 9, 1, 1000, anySize, 0}, 1},
		{"all but one", nil, span{0, 9, 8, 1000, anySize, 0}, 8},
		{"just all", nil, span{0, 9, 9, 1000, anySize, 0}, 9},
		{"more than all", nil, span{0, 9, 10, 1000, anySize, 0}, 9},
		{"events up to 9", nil, span{0, 9, 9, 1000, anySize, 0}, 9},
		{"until 4, events beyond", nil, span{0, 4, 9, 1000, anySize, 0}, 4},
		{"three events' bytes less one", nil, span{0, 9, 9, 3*size - 1, anySize, 0}, 2},
		{"three events' bytes", nil, span{0, 9, 9, 3 * size, anySize, 0}, 3},
		{"three events' bytes and one", nil, span{0, 9, 9, 3*size + 1, anySize, 0}, 3},
		{"the first event whatever its size", nil, span{0, 9, 9, 0, anySize, 0}, 1},
		{"a gap behind the last event", []uint64{3, 4}, span{0, 9, 2, 1000, anySize, 0}, 4},
		{"a gap where no event may go", []uint64{1, 2}, span{0, 9, 0, 1000, anySize, 0}, 2},
		{"a gap where no byte may go", []uint64{1, 2}, span{0, 9, 9, 0, 0, 0}, 2},
		{"a gap clipped to until", []uint64{3, 4, 5}, span{0, 4, 9, 1000, anySize, 0}, 4},
		{"no event that is too large beside others", nil, span{0, 9, 9, 1000, size - 2, 0}, 0},
		{"one that is not", nil, span{0, 9, 9, 0, size - 1, 0}, 1},
		{"the first event behind a gap whatever its size", []uint64{1, 2}, span{0, 9, 9, 0, anySize, 0}, 3},
		{"gaps take bytes", []uint64{2}, span{0, 9, 9, 2*size + gapBytes - 1, anySize, 0}, 2},
		{"and no more", []uint64{2}, span{0, 9, 9, 2*size + gapBytes, anySize, 0}, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := testLog(9)
			for _, seq := range test.lose {
				l.loseAt(l.find(seq), ReasonDropped)
			}
			if p := l.read(test.span); p.last != test.last {
				t.Errorf("page of %d to %d, want %d", p.first, p.last, test.last)
			}
		})
	}
}

// TestReadGaps: a page has no more gaps than a batch may have.
func TestReadGaps(t *testing.T) {
	l := &log{}
	for seq := range uint64(2 * maxBatchGaps) {
		l.appendGap(seq+1, []Reason{ReasonDropped, ReasonRejected}[seq%2])
	}
	for range 10 {
		l.evict()
	}
	p := l.read(span{0, l.head, maxBatchEvents, pageBytes, anySize, 0}) // with one for the evicted
	if len(p.gaps) != maxBatchGaps {
		t.Errorf("%d gaps in a page, want %d", len(p.gaps), maxBatchGaps)
	}
}

// A gap after an event is included if it fits, to the byte; one in front always is.
func TestReadGapBytes(t *testing.T) {
	l := testLog(1)
	l.appendGap(2, ReasonDropped)
	fits := testSize(1) + 1 + gapBytes
	for bytes, last := range map[int]uint64{fits - 1: 1, fits: 2, fits + 1: 2} {
		if p := l.read(span{until: 2, events: 10, bytes: bytes, first: anySize}); p.last != last {
			t.Errorf("%d bytes: up to %d, want %d", bytes, p.last, last)
		}
	}
	l = new(log)
	l.appendGap(1, ReasonDropped)
	if p := l.read(span{until: 1, events: 10, bytes: gapBytes - 1, first: anySize}); p.last != 1 {
		t.Errorf("a gap in front: up to %d", p.last)
	}
}

// TestReadBytes: a batch's JSON stays within 256 KiB whatever the events' sizes,
// and one larger event travels alone (rule 7).
func TestReadBytes(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 3))
	for _, most := range []int{10, 3000, 400_000} {
		l := &log{}
		for seq := range uint64(300) {
			if rnd.IntN(5) == 0 {
				l.appendGap(seq+1, []Reason{ReasonDropped, ReasonRejected}[rnd.IntN(2)])
				continue
			}
			d := preparedEvent{ev: &Event{Type: "out", Bytes: make([]byte, 1+rnd.IntN(most))}}
			if err := d.check(false); err != nil {
				t.Fatal(err)
			}
			l.publish(&d)
			if l.bytes > 3<<20 {
				break
			}
		}
		for after := uint64(0); after < l.head; {
			p := l.read(span{after, l.head, maxBatchEvents, pageBytes, anySize, 0})
			b := &EventBatchPayload{SessionID: "s", Epoch: "e", Link: "l", FirstSeq: p.first, LastSeq: p.last, HeadSeq: l.head}
			b.Events, b.Gaps = p.open(), p.gaps
			line, err := Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			if len(line) > maxBatchBytes && len(b.Events) != 1 {
				t.Errorf("sizes up to %d: a batch of %d events has %d bytes", most, len(b.Events), len(line))
			}
			if p.last <= after {
				t.Fatalf("after %d: nothing was read", after)
			}
			after = p.last
		}
	}
}

// TestPageStays: what was read never changes, whatever happens to the log.
func TestPageStays(t *testing.T) {
	for _, copied := range []int{0, pageBytes} {
		l := testLog(50)
		p := l.read(span{0, 50, 50, 1 << 20, anySize, copied})
		events := eventsOfPage(&p)
		for range 1000 {
			l.add()
			l.trim(l.head, 20, 1<<20)
		}
		l.loseAt(l.find(l.head), ReasonDropped)
		for i := range events {
			_ = append(events[i].Data, "spoilt"...) // no room after it either
		}
		checkPage(t, &p, 0, 50, numbersUpTo(50), nil)
		m := &logModel{first: l.first(), at: make([]string, l.head-l.first()+1)}
		m.at[len(m.at)-1] = string(ReasonDropped)
		checkLog(t, l, m)
		if want := map[int]held{0: heldByLog, pageBytes: heldByPool}[copied]; p.held != want {
			t.Errorf("copied up to %d bytes: held %v, want %v", copied, p.held, want)
		}
	}
}

func numbersUpTo(n uint64) (out []uint64) {
	for seq := range n {
		out = append(out, seq+1)
	}
	return out
}

// TestPageCopied: a copy shares no bytes with the log.
func TestPageCopied(t *testing.T) {
	l := testLog(3)
	p := l.read(span{0, 3, 9, 1000, anySize, 0})
	for _, ev := range p.ownEvents() {
		for i := range ev.Data {
			ev.Data[i] = '#'
		}
	}
	m := &logModel{first: 1, at: make([]string, 3)}
	checkLog(t, l, m)
	checkRead(t, l, m)
}

// TestPreparedEvent: an event's JSON is the same for each number, except for the number itself.
func TestPreparedEvent(t *testing.T) {
	at := time.Date(2025, 11, 23, 22, 34, 5, 120e6, time.UTC)
	for _, test := range []struct {
		ev   Event
		want string
	}{
		{Event{}, `{"seq":%d}`},
		{Event{Time: at}, `{"seq":%d,"time":"2025-11-23T22:34:05.12Z"}`},
		{Event{Type: "a\"b"}, `{"seq":%d,"type":"a\"b"}`},
		{Event{Data: []byte(" { \"a\" : [ 1 , 2 ] } ")}, `{"seq":%d,"data":{"a":[1,2]}}`},
		{Event{Data: []byte("null")}, `{"seq":%d,"data":null}`},
		{Event{Data: []byte{}, Bytes: []byte{}}, `{"seq":%d}`},
		{Event{Bytes: []byte{0, 0xff}}, `{"seq":%d,"data_base64":"AP8="}`},
		{Event{Type: "t", Data: []byte("1"), Time: at, End: true, Seq: 77}, `{"seq":%d,"time":"2025-11-23T22:34:05.12Z","type":"t","data":1,"end":true}`},
	} {
		for _, seq := range []uint64{1, 9, 10, 99, 100, 1 << 32, MaxSeq - 1, MaxSeq} {
			d := preparedEvent{ev: &test.ev}
			if err := d.check(false); err != nil {
				t.Fatal(err)
			}
			l := &log{head: seq - 1}
			n := l.publish(&d)
			json := l.ring.at(0).bytes()
			if want := fmt.Sprintf(test.want, seq); string(json) != want || len(want) != n || len(want)-len(fmt.Sprint(seq))+16 != d.size() {
				t.Errorf("json %s of %d bytes, want %s; %d bytes at the most", json, n, want, d.size())
			}
			want := test.ev
			want.Seq = seq
			want.Data = bytes.ReplaceAll(want.Data, []byte(" "), nil)
			p := l.read(span{seq - 1, seq, 1, pageBytes, anySize, 0})
			if diff := cmp.Diff([]Event{want}, eventsOfPage(&p), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
		}
	}
}

// TestNewPage: what came in a batch is put into a log, and reads as it was sent.
func TestNewPage(t *testing.T) {
	events := []Event{testEvent(3), testEvent(4), testEvent(6)}
	gaps := []Gap{{1, 2, ReasonDropped}, {5, 5, ReasonRejected}, {7, 9, ReasonRejected}}
	p, err := newPage(1, 9, events, gaps)
	if err != nil {
		t.Fatal(err)
	}
	checkPage(t, &p, 0, 9, []uint64{3, 4, 6}, gaps)
	l := &log{}
	l.accept(&p, func() {})
	m := &logModel{first: 1, at: []string{"dropped", "dropped", "", "", "rejected", "", "rejected", "rejected", "rejected"}}
	checkLog(t, l, m)
	checkRead(t, l, m)
	if _, err := newPage(3, 3, []Event{{Seq: 3, Data: []byte("{")}}, nil); err == nil {
		t.Error("data that is no JSON was taken")
	}
	if p, err := newPage(1, 0, nil, nil); err != nil || len(p.slots) != 0 || p.last != 0 {
		t.Errorf("of nothing: %+v, %v", p, err)
	}
}

// A pageModel is what is at each number of a page.
func pageModel(p *page) (out []string) {
	events, gaps := eventsOfPage(p), p.gaps
	for seq := p.first; seq <= p.last; seq++ {
		switch {
		case len(events) > 0 && events[0].Seq == seq:
			out = append(out, fmt.Sprint(seq, " ", string(events[0].Data)))
			events = events[1:]
		case gaps[0].From <= seq && seq <= gaps[0].To:
			out = append(out, fmt.Sprint(seq, " ", gaps[0].Reason))
		}
		if len(gaps) > 0 && gaps[0].To == seq {
			gaps = gaps[1:]
		}
	}
	return out
}

// TestPageParts: clip, cut and pieces keep what they should, count its bytes, and leave
// the original batch unchanged.
func TestPageParts(t *testing.T) {
	events := []Event{testEvent(3), testEvent(4), testEvent(6)}
	gaps := []Gap{{1, 2, ReasonDropped}, {5, 5, ReasonRejected}, {7, 9, ReasonUnavailable}}
	whole, err := newPage(1, 9, events, gaps)
	if err != nil {
		t.Fatal(err)
	}
	all := pageModel(&whole)
	check := func(name string, p *page, want []string) {
		t.Helper()
		if got := pageModel(p); !slices.Equal(got, want) || p.bytes != pageSize(p) {
			t.Errorf("%s: %q of %d bytes, want %q of %d", name, got, p.bytes, want, pageSize(p))
		}
	}
	for after := range uint64(11) {
		p := whole
		p.clip(after)
		check(fmt.Sprint("clip ", after), &p, all[min(after, 9):])
	}
	for _, last := range []uint64{0, 2, 3, 4, 5, 6, 9, 10} {
		p := whole
		p.cut(last)
		check(fmt.Sprint("cut ", last), &p, all[:min(last, 9)])
	}
	p := whole
	p.lose(1, ReasonRejected)
	check("lose", &p, append(append(slices.Clone(all[:3]), "4 rejected"), all[4:]...))
	check("whole", &whole, all)
	if diff := cmp.Diff([]Gap{{1, 2, ReasonDropped}, {5, 5, ReasonRejected}, {7, 9, ReasonUnavailable}}, gaps); diff != "" {
		t.Errorf("the batch's gaps changed:\n%s", diff)
	}
}

func pageSize(p *page) int {
	n := len(p.gaps) * gapBytes
	for i := range p.slots {
		n += int(p.slots[i].size) + 1
	}
	return n
}

// A gap that begins before the known numbers end is clipped exactly there.
func TestPageClipsGap(t *testing.T) {
	for after, from := range map[uint64]uint64{1: 3, 2: 3, 3: 4, 4: 5} {
		p := gapPage(3, 5, ReasonDropped)
		p.clip(after)
		if len(p.gaps) != 1 || p.gaps[0] != (Gap{from, 5, ReasonDropped}) {
			t.Errorf("after %d: %v, want from %d", after, p.gaps, from)
		}
	}
	p := gapPage(3, 5, ReasonDropped)
	p.clip(5)
	if len(p.gaps) != 0 || p.bytes != 0 {
		t.Errorf("after 5: %v of %d bytes", p.gaps, p.bytes)
	}
}

// A piece is as large as a payload may be, to the byte.
func TestPagePieceBytes(t *testing.T) {
	page := func(fill int) page {
		p, err := newPage(1, 2, []Event{{Seq: 1, Data: json.RawMessage(`"` + strings.Repeat("x", fill) + `"`)}, {Seq: 2}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	base := page(0)
	for over, want := range []int{1, 2} {
		p := page(pageBytes - base.bytes + over)
		if n := len(p.pieces()); n != want || p.bytes != pageBytes+over {
			t.Errorf("%d bytes in %d pieces, want %d", p.bytes, n, want)
		}
	}
}

// A log that accepts a page from the page's second chunk on has the right bytes.
func TestLogAcceptsClippedPage(t *testing.T) {
	l := testLog(200)
	p := l.read(span{until: 200, events: 200, bytes: pageBytes, first: anySize})
	i := slices.IndexFunc(p.slots, func(s slot) bool { return s.chunk != p.slots[0].chunk })
	if i < 0 {
		t.Fatal("the page has one chunk")
	}
	after := p.slots[i].to - 1
	p.clip(after)
	taken := log{head: after}
	taken.accept(&p, func() {})
	for seq := after + 1; seq <= 200; seq++ {
		want := l.ring.at(l.find(seq)).bytes()
		if got := taken.ring.at(taken.find(seq)).bytes(); !bytes.Equal(got, want) {
			t.Fatalf("%d: %s, want %s", seq, got, want)
		}
	}
}

// A page no larger than the limit for copying is copied; a larger one is lent.
func TestReadCopies(t *testing.T) {
	l := testLog(2)
	size := l.read(span{until: 2, events: 2, bytes: pageBytes, first: anySize}).bytes
	for copied, want := range map[int]held{size - 1: heldByLog, size: heldByPool, size + 1: heldByPool} {
		if p := l.read(span{until: 2, events: 2, bytes: pageBytes, first: anySize, copied: copied}); p.held != want {
			t.Errorf("%d bytes, copied up to %d: held %v, want %v", size, copied, p.held, want)
		}
	}
}

// TestPagePieces: each piece fits one payload, and together they are the page.
func TestPagePieces(t *testing.T) {
	t.Parallel()
	var events []Event
	var gaps []Gap
	seq := uint64(1)
	for i := range 100 {
		events = append(events, Event{Seq: seq, Type: "out", Data: []byte(`"` + strings.Repeat("x", i*i*40) + `"`)})
		seq++
		for range i % 9 {
			gaps = append(gaps, Gap{seq, seq + 1, ReasonRejected})
			seq += 2
		}
	}
	p, err := newPage(1, seq-1, events, gaps)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	next := uint64(1)
	for _, piece := range p.pieces() {
		if piece.first != next || piece.bytes != pageSize(&piece) || piece.bytes > pageBytes && len(piece.slots)+len(piece.gaps) > 1 || len(piece.gaps) > maxBatchGaps {
			t.Errorf("a piece of %d to %d has %d bytes and %d gaps", piece.first, piece.last, piece.bytes, len(piece.gaps))
		}
		next = piece.last + 1
		got = append(got, pageModel(&piece)...)
	}
	if !slices.Equal(got, pageModel(&p)) {
		t.Error("the pieces are not the page")
	}
}

// publishBytes publishes an event of the given size, and returns its number.
func (l *log) publishBytes(t *testing.T, n int) uint64 {
	t.Helper()
	d := preparedEvent{ev: &Event{Bytes: make([]byte, n)}}
	if err := d.check(false); err != nil {
		t.Fatal(err)
	}
	l.publish(&d)
	return l.head
}

// TestLogMemory: whatever is published, lost, read and evicted, a log has at most four
// times the memory that its events' JSON takes, and 4 KiB (S10).
func TestLogMemory(t *testing.T) {
	t.Parallel()
	for name, step := range map[string]func(l *log, i int){
		// The first gap kept a chunk for ever, and with it a list of all chunks since.
		"the oldest is dropped": func(l *log, _ int) {
			l.publishBytes(t, 100)
			if l.events > 4 {
				l.loseAt(l.find(l.first())+min(1, l.ring.n-l.events), ReasonDropped)
			}
		},
		// An event that stays kept its neighbours' memory.
		"few of many are not refused": func(l *log, i int) {
			if seq := l.publishBytes(t, 100); i%100 > 0 {
				l.loseAt(l.find(seq), ReasonRejected)
			}
		},
		"all but the first are refused": func(l *log, i int) {
			if seq := l.publishBytes(t, 100); i > 0 {
				l.loseAt(l.find(seq), ReasonRejected)
			}
		},
		"refused and dropped in turn": func(l *log, i int) {
			seq := l.publishBytes(t, 100)
			l.loseAt(l.find(seq), []Reason{ReasonRejected, ReasonDropped}[i%2])
		},
		// Each large event began a chunk, and so did the small one after it.
		"small and large in turn": func(l *log, i int) {
			l.publishBytes(t, []int{10, 4000}[i%2])
			l.trim(l.head, 200, 1<<30)
		},
		"a flood, and few that stay": func(l *log, i int) {
			l.publishBytes(t, []int{10, 1000}[i/400%2])
			if i%400 == 399 {
				l.trim(l.head, 1, 1<<30)
			}
		},
		"a huge one at times": func(l *log, i int) {
			l.publishBytes(t, []int{10, 300_000}[i%50/49])
			l.trim(l.head, 10, 1<<30)
		},
		"read, so that no memory is used again": func(l *log, i int) {
			l.publishBytes(t, i%500)
			l.read(span{0, l.head, 9, pageBytes, anySize, 0})
			l.trim(l.head, i%100, 1<<30)
		},
		"all of a peer's but the last are evicted": func(l *log, i int) {
			events := []Event{{Seq: l.head + 1, Bytes: make([]byte, 10_000)}, {Seq: l.head + 2}}
			p, err := newPage(l.head+1, l.head+2, events, nil)
			if err != nil {
				t.Fatal(err)
			}
			l.accept(&p, func() {})
			l.trim(l.head, 1, 1<<30)
		},
	} {
		l := &log{}
		n := max(500, testenv.Fewer(2000))
		for i := range n {
			step(l, i)
			if i%41 > 0 && i < n-10 {
				continue
			}
			if has := l.memory(); has > 4*l.bytes+4<<10 {
				t.Fatalf("%s: after %d: %d bytes of memory for %d of events", name, i+1, has, l.bytes)
			}
			if l.store != nil && l.store.size > l.memory() {
				t.Fatalf("%s: after %d: counts %d bytes of memory, has %d", name, i+1, l.store.size, l.memory())
			}
		}
		if f := logFault(l); f != "" {
			t.Errorf("%s: %s", name, f)
		}
		checkEvents(t, l)
	}
}

// checkEvents checks that the log's events can be read as they were written.
func checkEvents(t *testing.T, l *log) {
	t.Helper()
	p := l.read(span{l.first() - 1, l.head, 1 << 20, 1 << 30, anySize, 0})
	for _, e := range eventsOfPage(&p) {
		if e.Data != nil || len(bytes.Trim(e.Bytes, "\x00")) > 0 {
			t.Fatalf("event %d changed", e.Seq)
		}
	}
}
