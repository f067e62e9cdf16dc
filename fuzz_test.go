package gvstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/vibetools/gvstream/internal/jsontext"
	"github.com/vibetools/gvstream/internal/testenv"
)

// The fuzz targets of the codec and of Lines. Those of the machines are in
// fuzz_machines_test.go. Inputs that once failed are below testdata/fuzz.

// addFrames seeds a fuzz target with every frame of the tables.
func addFrames(f *testing.F) {
	for _, p := range wireSamples() {
		f.Add([]byte(wire(f, p.payloadType())))
	}
	for _, c := range badCases(f, "any") {
		if len(c.frame) < 4096 {
			f.Add([]byte(c.frame))
		}
	}
	for _, c := range oddFrames {
		f.Add(oddFrame(f, c.typ, c.old, c.new))
	}
}

// equalWire reports whether two payloads are encoded in the same way.
func equalWire(a, b Payload) bool { return reflect.DeepEqual(a, b) || cmp.Equal(a, b, sameWire) }

// FuzzUnmarshal: what Unmarshal accepts means the same to encoding/json and survives
// Marshal; what it refuses, encoding/json refuses too, except where PROTOCOL.md is
// stricter; and HandleFrame treats all of it in the same way.
func FuzzUnmarshal(f *testing.F) {
	addFrames(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		given := bytes.Clone(data)
		p, err := Unmarshal(data)
		if !bytes.Equal(data, given) {
			t.Fatal("changed its input")
		}
		checkBorrowed(t, given, p, err)
		theirs, theirErr := jsonDecode(given)
		if err != nil {
			checkRefusal(t, p, err)
			if theirErr == nil && theirs.check() == nil && !loose(given, theirs) {
				t.Fatalf("refused: %v", err)
			}
			return
		}
		if err := p.check(); err != nil {
			t.Fatalf("returned a payload that is refused: %v", err)
		}
		line, err := Marshal(p)
		if err != nil || bytes.ContainsAny(line, "\n\r") {
			t.Fatalf("%q, %v", line, err)
		}
		again, err := Unmarshal(line)
		if err != nil || !equalWire(again, p) {
			t.Fatalf("%v from %s\n%s", err, line, cmp.Diff(p, again, sameWire))
		}
		if names := namesOf(given); names.folded || names.twice {
			return // encoding/json takes SESSION_ID for session_id, and the last of two
		}
		if theirErr != nil || !equalWire(theirs, p) {
			t.Fatalf("encoding/json: %v\n%s", theirErr, cmp.Diff(theirs, p, sameWire))
		}
	})
}

// checkRefusal: a refused frame leaves no trace, and its answer is one that a peer may
// send.
func checkRefusal(t *testing.T, p Payload, err error) {
	t.Helper()
	var refused *ProtocolError
	if p != nil || !errors.As(err, &refused) || refused.Payload().check() != nil {
		t.Fatalf("%v, error %v", p, err)
	}
}

// loose reports whether a frame that means p to encoding/json is one that
// PROTOCOL.md forbids all the same ("The envelope").
func loose(frame []byte, p Payload) bool {
	names := namesOf(frame)
	return !utf8.Valid(frame) || names.folded || names.twice || names.half || names.minus || names.list ||
		testenv.JSONDepth(frame) > jsontext.MaxDepth || !wholeNumbers(p) || !tellable(p)
}

// odd records what is unusual about the names and values of a frame.
type odd struct {
	folded bool // a name is one of ours except for case
	twice  bool // a name occurs twice in one object
	half   bool // a text has half a surrogate pair, which encoding/json replaces
	minus  bool // -0, which encoding/json reads as a number without a sign
	list   bool // bytes as a list of numbers
}

// namesOf reads a frame token by token.
func namesOf(frame []byte) (o odd) {
	type object struct{ seen []string }
	dec := json.NewDecoder(bytes.NewReader(frame))
	dec.UseNumber()
	escapes := bytes.Contains(frame, []byte(`\u`))
	var open []*object // nil for a list
	name, isName := "", false
	for {
		token, err := dec.Token()
		if err != nil {
			return o
		}
		in := len(open) > 0 && open[len(open)-1] != nil
		isName = in && !isName // names and values alternate
		switch v := token.(type) {
		case json.Delim:
			o.list = o.list || v == '[' && name == "data_base64"
			switch v {
			case '{':
				open, isName = append(open, &object{}), false
			case '[':
				open, isName = append(open, nil), false
			default: // the object or list that is closed was a value
				open, isName = open[:len(open)-1], false
			}
			continue
		case string:
			o.half = o.half || escapes && strings.ContainsRune(v, utf8.RuneError)
			if isName {
				name = v
				top := open[len(open)-1]
				o.twice = o.twice || slices.Contains(top.seen, v)
				top.seen = append(top.seen, v)
				o.folded = o.folded || slices.ContainsFunc(wireNames, func(w string) bool { return v != w && strings.EqualFold(v, w) })
			}
		case json.Number:
			o.minus = o.minus || v == "-0"
		}
	}
}

var wireNames = strings.Fields(`type payload session_id viewer_id v role link window_events window_bytes full read_seq acks more sessions epoch first_seq
	head_seq ack_seq ended prev_epoch prev_seq last_seq events gaps up_to_seq nack after_seq stop request_id
	until_seq limit available_from done code message retryable seq time data data_base64 end from to reason`)

// wholeNumbers reports whether the counts in p are numbers of the wire: check bounds
// all others.
func wholeNumbers(p Payload) bool {
	switch p := p.(type) {
	case *HelloPayload:
		return whole(p.V)
	case *WelcomePayload:
		return whole(p.V) && whole(p.WindowEvents) && whole(p.WindowBytes)
	case *WatchPayload:
		return whole(p.WindowEvents) && whole(p.WindowBytes)
	case *AckBatchPayload:
		return whole(p.WindowEvents) && whole(p.WindowBytes)
	case *ReplayRequestPayload:
		return whole(p.Limit)
	}
	return true
}

func whole(n int) bool { return n >= 0 && uint64(n) <= MaxSeq }

// tellable reports whether Marshal may accept p: all events have fields and data that
// can be encoded, and a year in UTC that is within bounds.
func tellable(p Payload) bool {
	for _, e := range payloadEvents(p) {
		y := e.Time.UTC().Year()
		if e.checkFields() != nil || y < 0 || y > 9999 {
			return false
		}
		if len(e.Data) > 0 && (!json.Valid(e.Data) || !utf8.Valid(e.Data) || testenv.JSONDepth(e.Data) > jsontext.MaxDepth) {
			return false
		}
	}
	return true
}

// FuzzLines: how a stream is cut into reads changes nothing, every line comes out once,
// and the stream ends in the same way; RunLines handles the same lines. A tab in data
// stands for many spaces, so that short inputs make long lines.
func FuzzLines(f *testing.F) {
	f.Add([]byte(helloLine+"\n"), []byte{1}, uint16(1))
	f.Add([]byte(helloLine+"\r\n\r\n{\n"+helloLine), []byte{7, 0, 0}, uint16(0))
	f.Add([]byte("\t"+helloLine+"\n"+helloLine+"\t\t\n"), []byte{255, 3}, uint16(4090))
	f.Add([]byte(helloLine+"\t\t\t\t\t\t\t\t\t\n\r\n\r\r\n"), []byte{200}, uint16(8191))
	f.Add([]byte(helloLine+"\n"+helloLine), []byte{128}, uint16(0))
	f.Fuzz(func(t *testing.T, data, cuts []byte, tab uint16) {
		if bytes.Count(data, []byte("\t")) < 20 {
			data = bytes.ReplaceAll(data, []byte("\t"), bytes.Repeat([]byte(" "), int(tab%8192)))
		}
		ctx := context.Background()
		_, receive := Lines(stream{Reader: &cutReader{data: data, cuts: cuts}})
		lines := bytes.Split(data, []byte("\n"))
		var all []Payload
		for _, line := range lines[:len(lines)-1] {
			if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
				continue
			}
			want, wantErr := Unmarshal(line)
			got, err := receive(ctx)
			if !equalWire(got, want) || errorText(err) != errorText(wantErr) {
				t.Fatalf("got %v, %v; want %v, %v", got, err, want, wantErr)
			}
			if err == nil {
				all = append(all, got)
			}
		}
		end := io.EOF
		if len(lines[len(lines)-1]) > 0 {
			end = io.ErrUnexpectedEOF
		}
		for range 2 {
			if _, err := receive(ctx); err != end {
				t.Fatalf("ends with %v, want %v", err, end)
			}
		}
		m := newScript()
		m.handled = func(_ context.Context, p Payload) error {
			if p = toPayload(p); len(all) == 0 || !equalWire(p, all[0]) {
				t.Errorf("RunLines handles %v", p)
				return nil
			}
			all = all[1:]
			return nil
		}
		err := m.RunLines(ctx, stream{Reader: &cutReader{data: data, cuts: cuts}, Writer: io.Discard})
		if err != end || len(all) > 0 {
			t.Fatalf("RunLines ends with %v, want %v; %d payloads missing", err, end, len(all))
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A cutReader reads as many bytes at a time as cuts say, in turn: nothing now and
// then, and the last ones together with the end of the stream or before it.
type cutReader struct {
	data, cuts []byte
	i          int
	idle       bool // the last read gave nothing
}

func (r *cutReader) Read(b []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	cut := 255
	if len(r.cuts) > 0 {
		cut = int(r.cuts[r.i%len(r.cuts)])
		r.i++
	}
	if cut == 0 && !r.idle {
		r.idle = true
		return 0, nil
	}
	r.idle = false
	n := copy(b, r.data[:min(max(1, cut%128*(1+cut/128*32)), len(r.data))])
	r.data = r.data[n:]
	if len(r.data) == 0 && cut%2 == 1 {
		return n, io.EOF
	}
	return n, nil
}

// FuzzSendLines: what is sent over Lines is one line per payload, in order, until a
// Write fails, and then nothing more; the other end receives the same payloads.
func FuzzSendLines(f *testing.F) {
	var all []byte
	for _, p := range wireSamples() {
		all = append(append(all, wire(f, p.payloadType())...), '\n')
	}
	f.Add(all, []byte{200, 3, 0}, uint8(255), uint8(0))
	f.Add(all, []byte{1}, uint8(3), uint8(7))
	f.Add(all, []byte{255}, uint8(0), uint8(129))
	f.Add([]byte(batchOf(1, 2, `{"seq":1,"data": [1, 2]},{"seq":2,"type":"x","data_base64":"AA=="}`)), []byte{9}, uint8(1), uint8(0))
	f.Fuzz(func(t *testing.T, data, cuts []byte, failing, taken uint8) {
		ctx := context.Background()
		w := &failWriter{failing: int(failing), taken: int(taken)}
		send, _ := Lines(stream{Writer: w})
		var want []byte
		var sent []Payload
		for line := range bytes.Lines(data) {
			p, err := Unmarshal(line)
			if err != nil {
				continue
			}
			out, err := Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			err = send(ctx, p)
			if failed := w.n > int(failing); failed != (err != nil) {
				t.Fatalf("write %d of %d: %v", w.n, failing, err)
			}
			if err == nil {
				sent = append(sent, p)
				want = append(append(want, out...), '\n')
			}
		}
		if w.n > int(failing)+1 || !bytes.HasPrefix(w.got, want) {
			t.Fatalf("%d writes, %d may succeed:\n%q\nwant\n%q", w.n, failing, w.got, want)
		}
		_, receive := Lines(stream{Reader: &cutReader{data: w.got, cuts: cuts}})
		for _, p := range sent {
			if got, err := receive(ctx); err != nil || !equalWire(got, p) {
				t.Fatalf("received %v, %v\n%s", got, err, cmp.Diff(p, got, sameWire))
			}
		}
	})
}

// A failWriter takes some writes whole. The next one fails, after some of its bytes,
// with an error or, worse, without.
type failWriter struct {
	got            []byte
	n              int // writes so far
	failing, taken int
}

func (w *failWriter) Write(b []byte) (int, error) {
	if w.n++; w.n <= w.failing {
		w.got = append(w.got, b...)
		return len(b), nil
	}
	n := min(w.taken%128, len(b)-1)
	w.got = append(w.got, b[:n]...)
	if w.taken >= 128 {
		return n, nil
	}
	return n, io.ErrClosedPipe
}

// agree checks that Marshal and encoding/json encode p in the same way, or that neither
// can; that each reads what the other wrote; and that Unmarshal accepts exactly what a
// peer may send.
func agree(t *testing.T, p Payload) {
	t.Helper()
	theirs, theirErr := jsonEncode(p)
	ours, err := Marshal(p)
	if told := tellable(p); told != (err == nil) || err != nil && (ours != nil || !errors.Is(err, ErrInvalidData)) {
		t.Fatalf("Marshal: %s, %v, but tellable: %v", ours, err, told)
	}
	if err != nil {
		return
	}
	if theirErr != nil {
		t.Fatalf("encoding/json: %v, but Marshal: %s", theirErr, ours)
	}
	want, err := jsonDecodeUTC(theirs)
	if err != nil {
		t.Fatal(err)
	}
	lines := [][]byte{ours, theirs}
	if bytes.Equal(bytes.TrimSuffix(theirs, []byte("\n")), ours) {
		lines = lines[:1]
	} else if got, err := jsonDecodeUTC(ours); err != nil || !equalWire(got, want) {
		t.Fatalf("encoding/json reading %s: %v\n%s", ours, err, cmp.Diff(want, got, sameWire))
	}
	allowed := want.check() == nil && wholeNumbers(want)
	for _, line := range lines {
		got, err := Unmarshal(line)
		if allowed && (err != nil || !equalWire(got, want)) {
			t.Fatalf("Unmarshal(%s): %v\n%s", line, err, cmp.Diff(want, got, sameWire))
		}
		if !allowed {
			if err == nil {
				t.Fatalf("Unmarshal(%s) took it", line)
			}
			checkRefusal(t, got, err)
		}
	}
	if allowed && p.check() == nil {
		agreeEncoded(t, p, ours)
	}
}

// jsonDecodeUTC is jsonDecode with times in UTC, as the library encodes them.
func jsonDecodeUTC(line []byte) (Payload, error) {
	p, err := jsonDecode(line)
	if err != nil {
		return nil, err
	}
	for _, e := range payloadEvents(p) {
		e.Time = e.Time.UTC()
	}
	return p, nil
}

// agreeEncoded: a batch in the machines' form is encoded as line, which was made from
// the events themselves, and decodes to the same payload.
func agreeEncoded(t *testing.T, p Payload, line []byte) {
	t.Helper()
	b := toBatch(p)
	var err error
	switch b := b.(type) {
	case *eventBatch:
		err = b.load()
		b.Events = nil
	case *replayBatch:
		err = b.load()
		b.Events = nil
	}
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	if got, err := Marshal(b); err != nil || !bytes.Equal(got, line) {
		t.Fatalf("as machines have it: %v\n%s\nbefore:\n%s", err, got, line)
	}
	if got, err := Marshal(toPayload(b)); err != nil || !bytes.Equal(got, line) {
		t.Fatalf("opened: %v\n%s\nbefore:\n%s", err, got, line)
	}
}

// tiles makes the events and gaps of a batch: each byte of shape is one of them,
// and some don't fit to those before. It returns the last number. A batch of many
// would be slow: the bounds of their counts are in testdata/refused.
func tiles(first uint64, shape []byte, ev Event, reason Reason) (events []Event, gaps []Gap, last uint64) {
	next := first
	for _, b := range shape[:min(len(shape), 12)] {
		ev.Seq = next
		switch b % 8 {
		default:
			events = append(events, ev)
			ev.Data, ev.Bytes, ev.Type, ev.Time, ev.End = ev.Data[:0:0], ev.Bytes[:0:0], "", time.Time{}, false
			next++
		case 4, 5:
			to := next + uint64(b/8)
			gaps = append(gaps, Gap{next, to, reason})
			next = to + 1
		case 6: // one is missing
			ev.Seq++
			events = append(events, ev)
			next++
		case 7: // a gap that ends before it begins, or is repeated
			gaps = append(gaps, Gap{next, next - uint64(b/8)%2, reason})
		}
	}
	return events, gaps, next - 1
}

// eventTime is a time in a zone that is the given number of seconds east of UTC; zero
// for 0.
func eventTime(sec, nsec int64, zone int) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, nsec).In(time.FixedZone("", zone%86400/60*60))
}

// FuzzEventBatch builds event batches from fields.
func FuzzEventBatch(f *testing.F) {
	f.Add("s", "", "e", "l", uint64(1), uint64(0), []byte{0, 4, 0}, "stdout", []byte(`{"a": 1}`), []byte(nil), int64(1763937245), int64(5), 0, false, "evicted")
	f.Add("ü\u2028", "<v>", "e-1", "l", uint64(MaxSeq-2), uint64(0), []byte{0, 12}, "", []byte(nil), []byte("\x00\xff"), int64(0), int64(0), 3600, false, "dropped")
	f.Add("s\xff", "\x00", "", "", uint64(0), uint64(9), []byte{0}, "\n", []byte("{"), []byte("x"), int64(253402300799), int64(1e9), -60, false, "")
	f.Add("s", "", "e", "l", uint64(7), uint64(1<<63), []byte{0}, "exit", []byte(`null`), []byte(nil), int64(-62135596800), int64(0), 0, true, "")
	f.Fuzz(func(t *testing.T, session, viewer, epoch, link string, first, more uint64, shape []byte, typ string, data, raw []byte, sec, nsec int64, zone int, end bool, reason string) {
		events, gaps, last := tiles(first, shape, Event{Time: eventTime(sec, nsec, zone), Type: typ, Data: data, Bytes: raw, End: end}, Reason(reason))
		agree(t, &EventBatchPayload{
			SessionID: session, ViewerID: viewer, Epoch: epoch, Link: link, FirstSeq: first, LastSeq: last, HeadSeq: last + more,
			Events: events, Gaps: gaps,
		})
	})
}

// FuzzReplayBatch builds replay batches from fields.
func FuzzReplayBatch(f *testing.F) {
	f.Add("s", "", "r", "e", uint64(1), uint64(0), uint64(1), []byte{0, 4, 0}, "stdout", []byte(`[ 1 ]`), int64(1763937245), true, "evicted")
	f.Add("s", "v", "r", "e", uint64(MaxSeq+1), uint64(0), uint64(MaxSeq+1), []byte{}, "", []byte(nil), int64(0), true, "")
	f.Add("s", "v", "r", "e", uint64(MaxSeq), uint64(0), uint64(MaxSeq+2), []byte{0}, "", []byte(nil), int64(0), false, "")
	f.Add("\xff", "\n", "", "E", uint64(0), uint64(3), uint64(0), []byte{6, 7}, "\x7f", []byte(`{`), int64(-1), false, "X")
	f.Fuzz(func(t *testing.T, session, viewer, request, epoch string, first, more, available uint64, shape []byte, typ string, data []byte, sec int64, done bool, reason string) {
		events, gaps, last := tiles(first, shape, Event{Time: eventTime(sec, 0, 0), Type: typ, Data: data, End: done}, Reason(reason))
		agree(t, &ReplayBatchPayload{
			SessionID: session, ViewerID: viewer, RequestID: request, Epoch: epoch, FirstSeq: first, LastSeq: last,
			UntilSeq: last + more, AvailableFrom: available, Done: done, Events: events, Gaps: gaps,
		})
	})
}

// FuzzStatus builds statuses from fields, with up to three sessions.
func FuzzStatus(f *testing.F) {
	f.Add("", "l", true, uint8(1), "s", "e", uint64(1), uint64(9), uint64(3), false, "d", uint64(4))
	f.Add("\"\\", "<>", false, uint8(2), "\xff", "", uint64(0), uint64(0), uint64(0), true, "", uint64(1<<53))
	f.Add("v", "l", false, uint8(3), "s", "", uint64(0), uint64(0), uint64(0), false, "", uint64(0))
	f.Add("v", "l", false, uint8(0), "s", "e", uint64(MaxSeq+1), uint64(MaxSeq), uint64(MaxSeq), true, "", uint64(0))
	f.Fuzz(func(t *testing.T, viewer, link string, more bool, n uint8, session, epoch string, first, head, ack uint64, ended bool, prev string, prevSeq uint64) {
		p := &StatusPayload{ViewerID: viewer, Link: link, More: more}
		for i := range n % 4 {
			p.Sessions = append(p.Sessions, SessionStatus{session, epoch, first, head, ack, ended != (i == 1), more, prev, prevSeq})
		}
		agree(t, p)
	})
}

// FuzzSmall builds the payloads that have no lists.
func FuzzSmall(f *testing.F) {
	for kind := range uint8(6) {
		f.Add(kind, "s", "v", "e", "l", "r", "hub says \"no\"", uint64(7), uint64(9), 500, true)
		f.Add(kind, "\xff", "\x00", "", "<", "\u2028", "\U0001f600", uint64(MaxSeq), uint64(1<<53), -1, false)
		f.Add(kind, "s", "", "", "l", "r", roleViewer, uint64(0), uint64(0), 0, false)
	}
	f.Fuzz(func(t *testing.T, kind uint8, session, viewer, epoch, link, request, text string, seq, until uint64, n int, flag bool) {
		agree(t, []Payload{
			&HelloPayload{viewer, n, text},
			&WelcomePayload{viewer, n, link, n, n / 2},
			&AckBatchPayload{session, viewer, epoch, link, seq, flag, !flag, n, n / 2, until, nil},
			&WatchPayload{session, viewer, epoch, seq, flag, n, n / 2},
			&ReplayRequestPayload{session, viewer, request, epoch, seq, until, n},
			&ErrorPayload{session, viewer, Code(link), text, flag, request, epoch, seq, until},
		}[kind%6])
	})
}
