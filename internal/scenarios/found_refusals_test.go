package scenarios_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/vibetools/gvstream"
	"github.com/vibetools/gvstream/internal/scene"
)

// One malformed event was asked for again for ever, from an agent and by a viewer.
func foundF10(t *testing.T) {
	t.Run("agent", foundF10Agent)
	t.Run("malformed", foundF10Malformed)
	t.Run("viewer", foundF10Viewer)
}

// One malformed event of an agent in another language made its whole batch malformed, which
// says nothing of which event is wrong: the agent sent the same frame for ever. It is refused
// by its number now wherever that can be read, whatever is wrong with it and in whatever
// order the fields come; the agent sends a gap, and the session goes on.
func foundF10Agent(t *testing.T) {
	const first = `{"type":"event_batch","payload":{"session_id":"s","epoch":"0001","link":"$","first_seq":1,"last_seq":3,"head_seq":3,"events":[{"seq":1,"type":"n","data":1},`
	const third = `,{"seq":3,"type":"n","data":3}]}}`
	for name, frame := range map[string]string{
		"a leap second":           first + `{"seq":2,"time":"2016-12-31T23:59:60Z"}` + third,
		"NaN":                     first + `{"seq":2,"data":NaN}` + third,
		"no UTF-8":                first + "{\"seq\":2,\"data\":\"\xe9\"}" + third,
		"too deep":                first + `{"seq":2,"data":` + strings.Repeat("[", 501) + strings.Repeat("]", 501) + `}` + third,
		"half a surrogate pair":   first + `{"seq":2,"type":"\ud800"}` + third,
		"a long type":             first + `{"seq":2,"type":"` + strings.Repeat("x", 129) + `"}` + third,
		"two kinds of data":       first + `{"seq":2,"data":1,"data_base64":"MQ=="}` + third,
		"no base64":               first + `{"seq":2,"data_base64":"?"}` + third,
		"a year of five digits":   first + `{"seq":2,"time":"12026-01-01T00:00:00Z"}` + third,
		"in the order of letters": `{"payload":{"epoch":"0001","events":[{"data":1,"seq":1,"type":"n"},{"data":2,"end":"no","seq":2},{"data":3,"seq":3,"type":"n"}],"first_seq":1,"head_seq":3,"last_seq":3,"link":"$","session_id":"s"},"type":"event_batch"}`,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := gvstream.NewHub(nil)
				a := callAgent(t, hub, "agent")
				noError(t, a.batch("t", "0001", 1))
				err := a.link.HandleFrame(t.Context(), []byte(strings.ReplaceAll(frame, "$", a.name)))
				equal(t, "the hub's answer", code(err), "event_rejected 2")
				said := scene.Ready(a.link)
				refused, ok := said[0].(*gvstream.ErrorPayload)
				if !ok || refused.SessionID != "s" || refused.Epoch != "0001" || refused.Seq != 2 || refused.Retryable {
					t.Fatalf("the hub says %+v", said[0])
				}
				noError(t, a.link.HandleFrame(t.Context(), fmt.Appendf(nil, `{"type":"event_batch","payload":{"session_id":"s","epoch":"0001","link":%q,`+
					`"first_seq":1,"last_seq":3,"head_seq":3,"events":[{"seq":1,"type":"n","data":1},{"seq":3,"type":"n","data":3}],"gaps":[{"from":2,"to":2,"reason":"rejected"}]}}`, a.name)))
				equal(t, "accepted", accepted(hub, "s"), 3)
				noError(t, a.batch("t", "0001", 2))
			})
		})
	}
}

// What can't be read for certain is malformed as before: no event is given up for it.
func foundF10Malformed(t *testing.T) {
	const head = `{"type":"event_batch","payload":{"session_id":"s","epoch":"0001","link":"$","first_seq":1,"last_seq":2,"head_seq":2,"events":[`
	for name, frame := range map[string]string{
		"cut off in an event":        head + `{"seq":1},{"seq":2,"data":"x`,
		"cut off in a character":     head + "{\"seq\":1},{\"seq\":2,\"data\":\"\xc3",
		"cut off in a list":          head + `{"seq":1},{"seq":2,"data":[`,
		"no number":                  head + `{"seq":1},{"time":"now"}]}}`,
		"no number of the wire":      head + `{"seq":1},{"seq":-2,"time":"now"}]}}`,
		"two numbers":                head + `{"seq":1},{"seq":2,"time":"now","seq":3}]}}`,
		"its number behind no JSON":  head + `{"seq":1},{"data":NaN,"seq":2}]}}`,
		"two sessions":               head + `{"seq":1},{"seq":2,"time":"now"}],"session_id":"other"}}`,
		"two epochs":                 head + `{"seq":1},{"seq":2,"time":"now"}],"epoch":"0002"}}`,
		"two lists":                  head + `{"seq":1},{"seq":2,"time":"now"}],"events":[{"seq":7}]}}`,
		"two payloads":               head + `{"seq":1},{"seq":2,"time":"now"}]},"payload":{}}`,
		"two types":                  head + `{"seq":1},{"seq":2,"time":"now"}]},"type":"event_batch"}`,
		"no session":                 `{"type":"event_batch","payload":{"epoch":"0001","events":[{"seq":1,"time":"now"}]}}`,
		"a session that is none":     `{"type":"event_batch","payload":{"session_id":"","epoch":"0001","events":[{"seq":1,"time":"now"}]}}`,
		"an epoch that is none":      `{"type":"event_batch","payload":{"session_id":"s","epoch":"E","events":[{"seq":1,"time":"now"}]}}`,
		"its session behind no JSON": `{"type":"event_batch","payload":{"epoch":"0001","events":[{"seq":1,"data":NaN}],"session_id":"s"}}`,
		"between two events":         head + `{"seq":1} {"seq":2}]}}`,
		"an event too many":          head + `{"seq":1}` + strings.Repeat(`,{"seq":2}`, 256) + `]}}`,
		"an answer to a request":     `{"type":"replay_batch","payload":{"session_id":"s","epoch":"0001","request_id":"r","first_seq":1,"last_seq":1,"until_seq":1,"events":[{"seq":1,"time":"now"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := callAgent(t, gvstream.NewHub(nil), "agent")
			err := a.link.HandleFrame(t.Context(), []byte(strings.ReplaceAll(frame, "$", a.name)))
			equal(t, "the hub's answer", code(err), "malformed")
		})
	}
}

// A viewer whose hub sends it a malformed event asked for the same batch again and again. Its
// reader gets the error, once, after what came before, and the watch is over.
func foundF10Viewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newViewer(t, "s", gvstream.Position{})
		link := v.Connect()
		equal(t, "first payload", say(scene.Next(link)), "hello")
		noError(t, link.Handle(t.Context(), &gvstream.WelcomePayload{V: 1, Link: "l"}))
		status := &gvstream.StatusPayload{Link: "l", Sessions: []gvstream.SessionStatus{{SessionID: "s", Epoch: "0001", FirstSeq: 1, HeadSeq: 3, AckSeq: 3}}}
		asked := 0
		for range 100 {
			for _, p := range scene.Ready(link) {
				w, ok := p.(*gvstream.WatchPayload)
				if !ok || w.Stop {
					continue
				}
				asked++
				noError(t, link.Handle(t.Context(), status))
				for _, events := range []string{
					`"first_seq":1,"last_seq":1,"head_seq":3,"events":[{"seq":1,"type":"n","data":1}]`,
					`"first_seq":2,"last_seq":3,"head_seq":3,"events":[{"seq":2,"time":"2016-12-31T23:59:60Z"},{"seq":3,"type":"n","data":3}]`,
				} {
					link.HandleFrame(t.Context(), []byte(`{"type":"event_batch","payload":{"session_id":"s","epoch":"0001","link":"l",`+events+`}}`))
				}
			}
			pass(15e9)
			noError(t, link.Handle(t.Context(), status))
		}
		equal(t, "watches", asked, 1)
		var got []string
		for it, err := range v.Items(scene.Ended) {
			var refused *gvstream.ProtocolError
			switch {
			case errors.As(err, &refused):
				got = append(got, fmt.Sprint(refused.Code, " ", refused.SessionID, " ", refused.Seq))
			default:
				got = append(got, fmt.Sprint(it.Position().Seq))
			}
		}
		equal(t, "the reader gets", strings.Join(got, ", "), "1, event_rejected s 2")
		equal(t, "its position", v.Position("s"), gvstream.Position{Epoch: "0001", Seq: 1})
	})
}
