package streamtest_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/streamtest"
)

func event(epoch string, seq uint64) gvstream.Item {
	return gvstream.Item{SessionID: "s", Epoch: epoch,
		Event: &gvstream.Event{Seq: seq, Data: json.RawMessage(fmt.Sprint(seq))}}
}

func lastEvent(epoch string, seq uint64) gvstream.Item {
	return gvstream.Item{SessionID: "s", Epoch: epoch, Event: &gvstream.Event{Seq: seq, End: true}}
}

func gap(epoch string, from, to uint64) gvstream.Item {
	return gvstream.Item{SessionID: "s", Epoch: epoch, Gap: &gvstream.Gap{From: from, To: to, Reason: "evicted"}}
}

func reset(epoch, oldEpoch string, oldSeq uint64) gvstream.Item {
	return gvstream.Item{SessionID: "s", Epoch: epoch, Reset: &gvstream.Reset{Old: gvstream.Position{Epoch: oldEpoch, Seq: oldSeq}}}
}

func end(epoch string) gvstream.Item { return gvstream.Item{SessionID: "s", Epoch: epoch, End: true} }

func TestRecorderRefuses(t *testing.T) {
	items := func(items ...gvstream.Item) []gvstream.Item { return items }
	both := event("e", 1)
	both.End = true
	for _, test := range []struct {
		name   string
		before []gvstream.Item
		item   gvstream.Item
		want   string // in the error; empty: none
	}{
		{"first event", nil, event("e", 1), ""},
		{"first gap", nil, gap("e", 1, 5), ""},
		{"next event", items(event("e", 1)), event("e", 2), ""},
		{"event after gap", items(gap("e", 1, 5)), event("e", 6), ""},
		{"gap after gap", items(gap("e", 1, 5)), gap("e", 6, 6), ""},
		{"reset", items(event("e", 1)), reset("f", "e", 1), ""},
		{"reset after reset", items(event("e", 1), reset("f", "e", 1)), reset("g", "f", 0), ""},
		{"first of new epoch", items(event("e", 1), reset("f", "e", 1)), event("f", 1), ""},
		{"gap like one of the old epoch", items(gap("e", 1, 5), reset("f", "e", 5)), gap("f", 1, 5), ""},
		{"end after end event", items(lastEvent("e", 1)), end("e"), ""},
		{"end after gap", items(gap("e", 1, 2)), end("e"), ""},

		{"no kind", nil, gvstream.Item{SessionID: "s", Epoch: "e"}, "0 of event, gap, reset and end"},
		{"two kinds", nil, both, "2 of event, gap, reset and end"},
		{"no epoch", nil, event("", 1), "without session or epoch"},
		{"no session", nil, gvstream.Item{Epoch: "e", End: true}, "without session or epoch"},
		{"starts late", nil, event("e", 3), "event 3 skips 1-2 without a gap"},
		{"skips one", items(event("e", 1)), event("e", 3), "event 3 skips 2 without a gap"},
		{"gap skips", items(event("e", 1)), gap("e", 3, 4), "gap 3-4 skips 2 without a gap"},
		{"number 0", nil, event("e", 0), "not a range"},
		{"gap backwards", nil, gap("e", 1, 0), "not a range"},
		{"gap too large", nil, gap("e", 1, gvstream.MaxSeq+1), "not a range"},
		{"repeated", items(event("e", 1), event("e", 2)), event("e", 2), `event 2 is repeated or out of order, at "e"/2`},
		{"out of order", items(event("e", 1), event("e", 2)), event("e", 1), "event 1 is repeated or out of order"},
		{"event in gap", items(gap("e", 1, 5)), event("e", 5), "event 5 overlaps gap 1-5"},
		{"gap in gap", items(gap("e", 1, 5)), gap("e", 5, 9), "gap 5-9 overlaps gap 1-5"},
		{"gap over event", items(event("e", 1)), gap("e", 1, 2), "gap 1-2 is repeated or out of order"},
		{"epoch without reset", items(event("e", 1)), event("f", 2), "another epoch without a reset"},
		{"gap of another epoch", items(event("e", 1)), gap("f", 2, 2), "another epoch without a reset"},
		{"end of another epoch", items(event("e", 1)), end("f"), "another epoch without a reset"},
		{"old epoch after reset", items(event("e", 1), reset("f", "e", 1)), event("e", 2), "another epoch without a reset"},
		{"reset at first", nil, reset("e", "", 0), "reset before the first epoch"},
		{"reset to the same", items(event("e", 1)), reset("e", "e", 1), "not newer"},
		{"reset to an older", items(event("e", 1)), reset("d", "e", 1), "not newer"},
		{"reset from elsewhere", items(event("e", 1)), reset("f", "e", 2), `says the reader was at "e"/2, it was at "e"/1`},
		{"end of nothing", nil, end("e"), "end before the first number"},
		{"event after end", items(event("e", 1), end("e")), event("e", 2), "event 2 follows the end"},
		{"gap after end", items(event("e", 1), end("e")), gap("e", 2, 3), "gap 2-3 follows the end"},
		{"reset after end", items(event("e", 1), end("e")), reset("f", "e", 1), "reset follows the end"},
		{"end after end", items(event("e", 1), end("e")), end("e"), "another end follows the end"},
		{"event after end event", items(lastEvent("e", 1)), event("e", 2), "event 2 follows the end event 1"},
		{"reset after end event", items(lastEvent("e", 1)), reset("f", "e", 1), "reset follows the end event 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var r streamtest.Recorder
			for _, item := range test.before {
				if err := r.Record(item); err != nil {
					t.Fatal(err)
				}
			}
			before := r.Position("s")
			err := r.Record(test.item)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("Record = %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("Record = %v, want %q", err, test.want)
			case test.want != "" && r.Position("s") != before:
				t.Errorf("a refused item moved the position from %v to %v", before, r.Position("s"))
			}
		})
	}
}

func TestRecorderQueries(t *testing.T) {
	var r streamtest.Recorder
	items := []gvstream.Item{
		event("e", 1), gap("e", 2, 4), event("e", 5), reset("f", "e", 5),
		{SessionID: "s", Epoch: "f", Event: &gvstream.Event{Seq: 1, Bytes: []byte{0xff, 0}}},
		lastEvent("f", 2), end("f"),
	}
	for _, item := range items {
		if r.Ended("s") {
			t.Error("ended too early")
		}
		if err := r.Record(item); err != nil {
			t.Fatal(err)
		}
	}
	other := event("e", 1)
	other.SessionID = "other"
	if err := r.Record(other); err != nil {
		t.Fatal(err)
	}

	if got := r.Sessions(); !slices.Equal(got, []string{"other", "s"}) {
		t.Errorf("Sessions = %q", got)
	}
	want := []gvstream.Event{*items[0].Event, *items[2].Event, *items[4].Event, *items[5].Event}
	if diff := cmp.Diff(want, r.Events("s")); diff != "" {
		t.Errorf("Events: -want +got\n%s", diff)
	}
	if diff := cmp.Diff([]gvstream.Gap{*items[1].Gap}, r.Gaps("s")); diff != "" {
		t.Errorf("Gaps: -want +got\n%s", diff)
	}
	if diff := cmp.Diff([]gvstream.Reset{*items[3].Reset}, r.Resets("s")); diff != "" {
		t.Errorf("Resets: -want +got\n%s", diff)
	}
	if !r.Ended("s") || r.Ended("other") {
		t.Error("only one session has ended")
	}
	if got := (gvstream.Position{Epoch: "f", Seq: 2}); r.Position("s") != got {
		t.Errorf("Position = %v", r.Position("s"))
	}
	if r.Bytes("s") != 4 || r.Sum("s") != sha256.Sum256([]byte("15\xff\x00")) {
		t.Errorf("Bytes = %d, Sum = %x", r.Bytes("s"), r.Sum("s"))
	}
}

func TestRecorderUnknownSession(t *testing.T) {
	var r streamtest.Recorder
	if r.Events("s") != nil || r.Gaps("s") != nil || r.Resets("s") != nil || r.Ended("s") ||
		r.Bytes("s") != 0 || r.Sum("s") != sha256.Sum256(nil) || r.Position("s") != (gvstream.Position{}) {
		t.Error("something is known of an unknown session")
	}
	r.Record(event("e", 2))
	if got := r.Sessions(); len(got) != 0 {
		t.Errorf("Sessions = %q after a refused item", got)
	}
}

func TestRecorderResume(t *testing.T) {
	var r streamtest.Recorder
	r.Resume("s", gvstream.Position{Epoch: "e", Seq: 7})
	for _, wrong := range []gvstream.Item{event("e", 1), event("e", 7), event("e", 9), event("f", 8), gap("e", 7, 8)} {
		if r.Record(wrong) == nil {
			t.Errorf("%+v accepted behind e/7", wrong)
		}
	}
	for _, right := range []gvstream.Item{gap("e", 8, 9), lastEvent("e", 10), end("e")} {
		if err := r.Record(right); err != nil {
			t.Error(err)
		}
	}
	// The reader lost its work after 8 and starts again from there, in the middle of a
	// recorded gap.
	r.Resume("s", gvstream.Position{Epoch: "e", Seq: 8})
	for _, right := range []gvstream.Item{event("e", 9), lastEvent("e", 10), end("e")} {
		if err := r.Record(right); err != nil {
			t.Error(err)
		}
	}
	if n := len(r.Events("s")); n != 3 {
		t.Errorf("%d events, want those before Resume too", n)
	}
	r.Resume("caught up", gvstream.Position{Epoch: "e", Seq: 3})
	if err := r.Record(gvstream.Item{SessionID: "caught up", Epoch: "e", End: true}); err != nil {
		t.Errorf("end for a reader that has everything: %v", err)
	}
}

func TestRecorderConcurrentUse(t *testing.T) {
	var r streamtest.Recorder
	var wg sync.WaitGroup
	for s := range 4 {
		id := fmt.Sprint("session ", s)
		wg.Go(func() {
			for n := range uint64(200) {
				item := event("e", n+1)
				item.SessionID = id
				if err := r.Record(item); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				if len(r.Events(id)) > 200 || r.Bytes(id) < 0 || len(r.Sessions()) > 4 || r.Ended(id) {
					t.Error("impossible")
				}
				r.Sum(id)
				r.Position(id)
			}
		})
	}
	wg.Wait()
	for _, id := range r.Sessions() {
		if got := r.Position(id).Seq; got != 200 {
			t.Errorf("%s is at %d, want 200", id, got)
		}
	}
}
