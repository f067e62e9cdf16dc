package bench

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/centrifugal/protocol"
	"github.com/vibetools/gvstream"
)

// page is how many events a batch of a replay has.
const page = 100

// replayOf are the events that an agent replays after a number.
func replayOf(a *agent, after uint64) []gvEvent {
	var out []gvEvent
	a.ask(after)
	for p := a.next(); p != nil; p = a.next() {
		if r, ok := p.(*gvstream.ReplayBatchPayload); ok {
			out = append(out, r.Events...)
		}
	}
	return out
}

func (a *agent) ask(after uint64) {
	a.handle(&gvstream.ReplayRequestPayload{
		SessionID: session, ViewerID: "viewer-1", RequestID: strconv.FormatUint(after, 10), Epoch: a.epoch, AfterSeq: after,
	})
}

// Replay: 1,000 events for a viewer that comes late, made bytes for its
// connection. An operation is all 1,000. The floor is a copy of that many bytes.
//
// gvstream, slice and mapring make JSON frames of 100 events; "gvstream-open" makes
// payloads first, for who looks at them. So does centrifuge, by its own encoder, without
// types. go-sse and MCP write one SSE
// message an event; a message is flushed alone, which costs nothing here.
func BenchmarkReplay(b *testing.B) {
	for _, size := range payloads {
		b.Run("gvstream/"+size.name, func(b *testing.B) { benchReplayGvstream(b, size.n) })
		b.Run("gvstream-open/"+size.name, func(b *testing.B) { benchReplayOpen(b, size.n) })
		b.Run("centrifuge/"+size.name, func(b *testing.B) { benchReplayCentrifuge(b, size.n) })
		b.Run("go-sse/"+size.name, func(b *testing.B) { benchReplaySSE(b, size.n) })
		b.Run("mcp/"+size.name, func(b *testing.B) { benchReplayMCP(b, size.n) })
		b.Run("slice+json/"+size.name, func(b *testing.B) { benchReplaySlice(b, codecs[0], size.n) })
		b.Run("slice+sonic/"+size.name, func(b *testing.B) { benchReplaySlice(b, codecs[1], size.n) })
		b.Run("floor/"+size.name, func(b *testing.B) { benchReplayFloor(b, size.n) })
	}
}

// A replayed is what came of a replay: it is checked after the measuring.
type replayed struct {
	events int
	bytes  int
	last   []byte // the last frame or message
}

func (r *replayed) check(b *testing.B, data []byte) {
	want(b, "events", r.events, history)
	if r.bytes < history*len(data) || !bytes.Contains(r.last, data) {
		b.Fatalf("%d bytes, of which the last are %.80s", r.bytes, r.last)
	}
}

// fullAgent has a full history, which begins after a number.
func fullAgent(b *testing.B, size int) (a *agent, data []byte, after uint64) {
	a, data = newAgent(b, streamerConfig()), payload(size)
	fill(&gvStore{a, jsonEvent}, data)
	return a, data, a.s.Stats().Head - history
}

func benchReplayGvstream(b *testing.B, size int) {
	a, data, after := fullAgent(b, size)
	var r replayed
	var buf []byte
	m := start(b, 1)
	for b.Loop() {
		r = replayed{}
		a.ask(after)
		for buf = a.frame(buf[:0]); len(buf) > 0; buf = a.frame(buf[:0]) {
			r.bytes += len(buf)
			r.last = buf
		}
	}
	m.done()
	a.ask(after) // one more, to be looked into
	for frame := a.frame(nil); len(frame) > 0; frame = a.frame(nil) {
		p, err := gvstream.Unmarshal(frame)
		must(b, err)
		r.events += len(p.(*gvstream.ReplayBatchPayload).Events)
		r.bytes -= len(frame)
		r.last = frame
	}
	want(b, "bytes of the last replay beyond this", r.bytes, 0)
	r.bytes = history * size
	r.check(b, data)
}

func benchReplayOpen(b *testing.B, size int) {
	a, data, after := fullAgent(b, size)
	var r replayed
	var buf []byte
	m := start(b, 1)
	for b.Loop() {
		r = replayed{}
		a.ask(after)
		for p := a.next(); p != nil; p = a.next() {
			batch, ok := p.(*gvstream.ReplayBatchPayload)
			if !ok {
				continue
			}
			var err error
			buf, err = gvstream.Append(buf[:0], batch)
			must(b, err)
			r.events += len(batch.Events)
			r.bytes += len(buf)
			r.last = buf
		}
	}
	m.done()
	r.check(b, data)
}

func benchReplayCentrifuge(b *testing.B, size int) {
	s := newCentrifuge(b, size).(*centrifugeStore)
	data := payload(size)
	fill(s, data)
	_, top, err := s.broker.History(session, centrifuge.HistoryOptions{})
	must(b, err)
	enc := protocol.NewJSONReplyEncoder()
	var r replayed
	m := start(b, 1)
	for b.Loop() {
		r = replayed{}
		since := centrifuge.StreamPosition{Offset: top.Offset - history, Epoch: top.Epoch}
		for since.Offset < top.Offset {
			pubs, _, err := s.broker.History(session, centrifuge.HistoryOptions{
				Filter: centrifuge.HistoryFilter{Since: &since, Limit: page},
			})
			must(b, err)
			reply := &protocol.Reply{Id: 1, History: &protocol.HistoryResult{Epoch: top.Epoch, Offset: top.Offset}}
			for _, p := range pubs {
				reply.History.Publications = append(reply.History.Publications,
					&protocol.Publication{Offset: p.Offset, Data: p.Data, Time: p.Time})
			}
			r.last, err = enc.Encode(reply)
			must(b, err)
			r.events += len(pubs)
			r.bytes += len(r.last)
			since.Offset = pubs[len(pubs)-1].Offset
		}
	}
	m.done()
	r.check(b, data)
}

func benchReplaySSE(b *testing.B, size int) {
	s := newSSE(b, size).(*sseStore)
	data := payload(size)
	fill(s, data)
	var w sseWriter
	m := start(b, 1)
	for b.Loop() {
		w.n = 0
		w.buf.Reset()
		must(b, s.replay(&w))
	}
	m.done()
	(&replayed{w.n, w.buf.Len(), w.buf.Bytes()}).check(b, data)
}

// benchReplayMCP iterates as the SDK's server does. What it writes for an event
// can't be called from outside and is written anew here: the lines of one SSE
// message through a buffer of its own.
func benchReplayMCP(b *testing.B, size int) {
	s := newMCP(b, size).(*mcpStore)
	data := payload(size)
	fill(s, data)
	var r replayed
	var out bytes.Buffer
	m := start(b, 1)
	for b.Loop() {
		r = replayed{}
		out.Reset()
		for data, err := range s.after() {
			must(b, err)
			var msg bytes.Buffer
			fmt.Fprintf(&msg, "event: %s\n", "message")
			fmt.Fprintf(&msg, "id: %s\n", "1_"+strconv.Itoa(r.events))
			msg.Grow(len(data) + 8)
			msg.WriteString("data: ")
			msg.Write(data)
			msg.WriteString("\n\n")
			out.Write(msg.Bytes())
			r.events++
		}
	}
	m.done()
	r.bytes, r.last = out.Len(), out.Bytes()
	r.check(b, data)
}

func benchReplaySlice(b *testing.B, c codec, size int) {
	s := &sliceLog{}
	data := payload(size)
	fill(s, data)
	var r replayed
	m := start(b, 1)
	for b.Loop() {
		r = replayed{}
		s.mu.Lock()
		events := append([]wireEvent(nil), s.history...)
		s.mu.Unlock()
		for len(events) > 0 {
			var err error
			r.last, err = c.marshal(frameOf(events[:page]))
			must(b, err)
			events = events[page:]
			r.events += page
			r.bytes += len(r.last)
		}
	}
	m.done()
	r.check(b, data)
}

func benchReplayFloor(b *testing.B, size int) {
	events := newEvents(1, page, size)
	frame, err := codecs[0].marshal(frameOf(events))
	must(b, err)
	frames := make([][]byte, history/page)
	for i := range frames {
		frames[i] = bytes.Clone(frame)
	}
	buf := make([]byte, len(frame))
	var r replayed
	m := start(b, 1)
	for b.Loop() {
		r = replayed{}
		for _, f := range frames {
			r.bytes += copy(buf, f)
			r.events += page
		}
	}
	m.done()
	r.last = buf
	r.check(b, events[0].Data)
}

// All events of a replay are there, and in order.
func TestReplay(t *testing.T) {
	a := newAgent(t, streamerConfig())
	for i := range history {
		a.publish(jsonEvent(numbered(i)))
	}
	a.handOut()
	a.ack(a.sent)
	before := time.Now()
	events := replayOf(a, 0)
	want(t, "events", len(events), history)
	for i, ev := range events {
		want(t, "number", ev.Seq, uint64(i+1))
		want(t, "data", string(ev.Data), string(numbered(i)))
		want(t, "time in the future", ev.Time.After(before), false)
	}
}
