package gvstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// addFrames seeds a fuzz target with every frame of the tables.
func addFrames(f *testing.F) {
	for _, p := range wireSamples() {
		f.Add([]byte(wire(f, p.payloadType())))
	}
	for _, c := range hostileFrames {
		if frame := hostileFrame(f, c.typ, c.old, c.new); len(frame) < 4096 {
			f.Add(frame)
		}
	}
	for _, c := range oddFrames {
		f.Add(hostileFrame(f, c.typ, c.old, c.new))
	}
}

// FuzzUnmarshal: what Unmarshal takes means the same to encoding/json, and
// survives Marshal.
func FuzzUnmarshal(f *testing.F) {
	addFrames(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		given := bytes.Clone(data)
		p, err := Unmarshal(data)
		if !bytes.Equal(data, given) {
			t.Fatal("changed its input")
		}
		var perr *ProtocolError
		switch {
		case err == nil:
		case !errors.As(err, &perr) || perr.Payload().check() != nil:
			t.Fatalf("error %v", err)
		default:
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
		if err != nil || !cmp.Equal(again, p, sameWire) {
			t.Fatalf("%v from %s\n%s", err, line, cmp.Diff(p, again, sameWire))
		}
		if foldedNames(given) {
			return // encoding/json takes SESSION_ID for session_id
		}
		theirs, err := jsonDecode(given)
		if err != nil || !cmp.Equal(theirs, p, sameWire) {
			t.Fatalf("encoding/json: %v\n%s", err, cmp.Diff(theirs, p, sameWire))
		}
	})
}

// foldedNames reports whether any name in a frame is one of ours but for case.
func foldedNames(frame []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(frame))
	for {
		token, err := dec.Token()
		if err != nil {
			return false
		}
		s, ok := token.(string)
		if ok && slices.ContainsFunc(wireNames, func(name string) bool { return s != name && strings.EqualFold(s, name) }) {
			return true
		}
	}
}

var wireNames = strings.Fields(`type payload session_id viewer_id v role link window more sessions epoch first_seq
	head_seq ack_seq ended prev_epoch prev_seq last_seq events gaps up_to_seq nack after_seq stop request_id
	until_seq limit available_from done code message retryable seq time data data_base64 end from to reason`)

// FuzzData: appendJSON takes what encoding/json takes, and makes of it what
// json.Compact does.
func FuzzData(f *testing.F) {
	for _, s := range jsonTexts {
		if len(s) < 4096 {
			f.Add([]byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) { checkAppendJSON(t, src) })
}

// FuzzLines: how a stream is cut into reads changes nothing, every line comes out
// once, and the stream ends as it ended.
func FuzzLines(f *testing.F) {
	f.Add([]byte(helloLine+"\n"), uint8(1))
	f.Add([]byte(helloLine+"\r\n\r\n{\n"+helloLine), uint8(7))
	f.Add([]byte(padded(5000)+"\n"+helloLine+"\n"), uint8(255))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		_, receive := Lines(stream{Reader: &slow{data, int(size) + 1}})
		lines := bytes.Split(data, []byte("\n"))
		for _, line := range lines[:len(lines)-1] {
			if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
				continue
			}
			want, wantErr := Unmarshal(line)
			got, err := receive(t.Context())
			if !cmp.Equal(got, want, sameWire) || errorText(err) != errorText(wantErr) {
				t.Fatalf("got %v, %v; want %v, %v", got, err, want, wantErr)
			}
		}
		end := io.EOF
		if len(lines[len(lines)-1]) > 0 {
			end = io.ErrUnexpectedEOF
		}
		if _, err := receive(t.Context()); err != end {
			t.Fatalf("ends with %v, want %v", err, end)
		}
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// slow reads at most n bytes at a time.
type slow struct {
	data []byte
	n    int
}

func (s *slow) Read(b []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, s.data[:min(s.n, len(s.data))])
	s.data = s.data[n:]
	return n, nil
}

// agree checks that Marshal and encoding/json tell p in the same way, or both
// can't; and that Unmarshal takes what a peer may say.
func agree(t *testing.T, p Payload) {
	t.Helper()
	theirs, theirErr := jsonEncode(p)
	ours, err := Marshal(p)
	if err != nil {
		if theirErr == nil && p.check() == nil && validData(p) {
			t.Fatalf("Marshal: %v", err)
		}
		return
	}
	if theirErr != nil {
		t.Fatalf("encoding/json: %v, but Marshal: %s", theirErr, ours)
	}
	a, err := jsonDecode(ours)
	if err != nil {
		t.Fatalf("encoding/json reading %s: %v", ours, err)
	}
	b, err := jsonDecode(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b, a, sameWire); diff != "" {
		t.Fatalf("different to encoding/json (-theirs +ours):\n%s", diff)
	}
	if p.check() != nil || unsafeNumbers(p) {
		return
	}
	got, err := Unmarshal(ours)
	if err != nil || !cmp.Equal(got, a, sameWire) {
		t.Fatalf("Unmarshal(%s): %v\n%s", ours, err, cmp.Diff(a, got, sameWire))
	}
}

// validData reports whether all events have data that appendJSON may take, and
// times that have a year in UTC.
func validData(p Payload) bool {
	for _, e := range payloadEvents(p) {
		y := e.Time.UTC().Year()
		if len(e.Data) > 0 && (!json.Valid(e.Data) || !utf8.Valid(e.Data) || jsonDepth(e.Data) > maxDepth) || y < 0 || y > 9999 {
			return false
		}
	}
	return true
}

// unsafeNumbers reports whether p has a number that check allows and that is not
// allowed on the wire: the one behind MaxSeq.
func unsafeNumbers(p Payload) bool {
	b, _ := json.Marshal(p)
	return bytes.Contains(b, []byte("9007199254740992"))
}

// FuzzEventBatch builds batches from fields.
func FuzzEventBatch(f *testing.F) {
	f.Add("s", "", "e", "l", uint64(1), "stdout", []byte(`{"a": 1}`), []byte(nil), int64(1763937245), int64(5), 0, true, "evicted")
	f.Add("ü\u2028", "<v>", "e-1", "l", uint64(MaxSeq), "", []byte(nil), []byte("\x00\xff"), int64(0), int64(0), 3600, false, "dropped")
	f.Add("s\xff", "\x00", "", "", uint64(0), "\n", []byte("{"), []byte("x"), int64(253402300799), int64(1e9), -60, false, "")
	f.Fuzz(func(t *testing.T, session, viewer, epoch, link string, seq uint64, typ string, data, raw []byte, sec, nsec int64, zone int, end bool, reason string) {
		at := time.Unix(sec, nsec).In(time.FixedZone("", zone%86400/60*60))
		if sec == 0 {
			at = time.Time{}
		}
		event := Event{Seq: seq, Time: at, Type: typ, Data: data, Bytes: raw, End: end}
		gaps := []Gap{{seq + 1, seq + 3, Reason(reason)}}
		if end {
			gaps = nil
		}
		last := seq + 3*uint64(len(gaps))
		agree(t, &EventBatchPayload{
			SessionID: session, ViewerID: viewer, Epoch: epoch, Link: link, FirstSeq: seq, LastSeq: last, HeadSeq: last,
			Events: []Event{event}, Gaps: gaps,
		})
		agree(t, &ReplayBatchPayload{
			SessionID: session, ViewerID: viewer, RequestID: link, Epoch: epoch, FirstSeq: seq, LastSeq: last, UntilSeq: last,
			AvailableFrom: seq, Done: end, Events: []Event{event}, Gaps: gaps,
		})
	})
}

// FuzzStatus builds statuses from fields.
func FuzzStatus(f *testing.F) {
	f.Add("", "l", true, "s", "e", uint64(1), uint64(9), uint64(3), false, "d", uint64(4))
	f.Add("\"\\", "<>", false, "\xff", "", uint64(0), uint64(0), uint64(0), true, "", uint64(1<<53))
	f.Fuzz(func(t *testing.T, viewer, link string, more bool, session, epoch string, first, head, ack uint64, ended bool, prev string, prevSeq uint64) {
		agree(t, &StatusPayload{ViewerID: viewer, Link: link, More: more, Sessions: []SessionStatus{
			{session, epoch, first, head, ack, ended, prev, prevSeq}, {SessionID: viewer},
		}})
	})
}

// FuzzSmall builds the payloads that have no lists.
func FuzzSmall(f *testing.F) {
	f.Add("s", "v", "e", "l", "r", "hub says \"no\"", uint64(7), uint64(9), 500, true)
	f.Add("\xff", "\x00", "", "<", "\u2028", "\U0001f600", uint64(1<<53-1), uint64(1<<53), -1, false)
	f.Fuzz(func(t *testing.T, session, viewer, epoch, link, request, text string, seq, until uint64, n int, flag bool) {
		role := roleAgent
		if flag {
			role = text
		}
		for _, p := range []Payload{
			&HelloPayload{viewer, n, role},
			&WelcomePayload{viewer, n, link, n},
			&AckBatchPayload{session, viewer, epoch, link, seq, flag},
			&WatchPayload{session, viewer, epoch, seq, flag},
			&ReplayRequestPayload{session, viewer, request, epoch, seq, until, n},
			&ErrorPayload{session, viewer, link, text, flag, request, epoch, seq},
		} {
			if n >= 0 && uint64(n) <= MaxSeq {
				agree(t, p)
			}
		}
	})
}
