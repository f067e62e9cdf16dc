package gvstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A street is a hub with an agent and a viewer that behave, on connections that run by
// themselves, with room for others that don't.
type street struct {
	t    *testing.T
	h    *Hub
	st   *Streamer
	v    *Viewer
	ctx  context.Context
	good map[string]*farEnd // of connections that have to live

	published, seen uint64
}

func newStreet(t *testing.T, cfg *HubConfig) *street {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	s := &street{t: t, h: NewHub(cfg), st: NewStreamer(nil), v: NewViewer(nil), ctx: ctx, good: make(map[string]*farEnd)}
	if err := s.v.Watch("good", Position{}); err != nil {
		t.Fatal(err)
	}
	s.join("good agent", s.st.Connect(), s.h.ConnectAgent("good"))
	s.join("good viewer", s.v.Connect(), s.h.ConnectViewer("good"))
	return s
}

// join runs a connection over bytes between two links.
func (s *street) join(who string, near, far *Link) {
	end := newFarEnd(s.t, s.ctx, near, (*Link).RunLines)
	s.good[who] = end
	go func() { end.ran <- far.RunLines(s.ctx, end) }()
	synctest.Wait()
}

// villain is a connection whose far end the test writes by hand. What comes out of it
// is read and thrown away, or not read at all.
func (s *street) villain(l *Link, reads bool) *farEnd {
	f := newFarEnd(s.t, s.ctx, l, (*Link).RunLines)
	if reads {
		f.listen()
	}
	return f
}

// frame is a line of a type with these fields.
func frame(typ, fields string) string { return `{"type":"` + typ + `","payload":{` + fields + `}}` }

// goesOn checks that the two continue as if nobody else were there: the next event
// reaches the reader, and its ack the agent, as soon as possible.
func (s *street) goesOn(during string) {
	s.t.Helper()
	synctest.Wait()
	s.published++
	start := time.Now()
	if _, err := s.st.Publish(s.ctx, "good", numberedEvent(s.published)); err != nil {
		s.t.Fatalf("%s: Publish: %v", during, err)
	}
	synctest.Wait()
	for it, err := range s.v.Items(endedContext) {
		s.seen++
		if err != nil || it.Event == nil || it.Event.Seq != s.seen || string(it.Event.Data) != string(numberedEvent(s.seen).Data) {
			s.t.Fatalf("%s: item %d is %+v, %v", during, s.seen, it, err)
		}
	}
	if s.seen != s.published || !time.Now().Equal(start) {
		s.t.Fatalf("%s: the reader has %d of %d after %v", during, s.seen, s.published, time.Since(start))
	}
	pass(ackDelay)
	synctest.Wait()
	if n := s.st.Stats().PendingEvents; n != 0 {
		s.t.Fatalf("%s: %d events wait for their ack", during, n)
	}
	for who, f := range s.good {
		select {
		case err := <-f.ran:
			s.t.Fatalf("%s: the link of the %s ended: %v", during, who, err)
		default:
		}
	}
}

// Whatever an agent or a viewer does to a hub costs at most its own link: an honest
// pair at the same hub loses nothing and is not delayed.
func TestHostileNeighbours(t *testing.T) {
	hello := func(role string) string { return frame("hello", `"v":1,"role":"`+role+`"`) }
	write := func(c *farEnd, lines ...string) {
		for _, line := range lines {
			if _, err := c.Write([]byte(line + "\n")); err != nil {
				return // the link ended, as it may
			}
		}
	}
	agentSays := func(s *street, lines ...string) {
		write(s.villain(s.h.ConnectAgent("bad"), true), append([]string{hello("agent")}, lines...)...)
	}
	viewerSays := func(s *street, lines ...string) {
		write(s.villain(s.h.ConnectViewer("bad"), true), append([]string{hello("viewer")}, lines...)...)
	}
	watch := func(id string) string { return frame("watch", `"session_id":"`+id+`"`) }
	open := func(s *street, agentID string) (*farEnd, string) {
		l := s.h.ConnectAgent(agentID)
		c := s.villain(l, true)
		write(c, hello("agent"))
		return c, l.endpoint.(*hubAgentLink).id
	}
	batch := func(link, id string, first, last uint64, data string) string {
		var events []string
		for seq := first; seq <= last; seq++ {
			events = append(events, fmt.Sprintf(`{"seq":%d,"data":%s}`, seq, data))
		}
		return frame("event_batch", fmt.Sprintf(`"session_id":%q,"epoch":"e1","link":%q,"first_seq":%d,"last_seq":%d,"head_seq":%d,"events":[%s]`,
			id, link, first, last, last, strings.Join(events, ",")))
	}
	for _, villain := range []struct {
		name string
		do   func(s *street)
	}{
		{"says what is no frame", func(s *street) {
			for i, c := range badFrames(s.t) {
				if c.loose {
					continue // one of a list: TestHostileFrames has them all
				}
				line := strings.ReplaceAll(c.frame, "\n", " ")
				if i%2 == 0 {
					agentSays(s, line)
				} else {
					viewerSays(s, line)
				}
			}
		}},
		{"an agent says a long line", func(s *street) { agentSays(s, strings.Repeat("x", maxLine+10), "{}") }},
		{"a viewer says a long line", func(s *street) { viewerSays(s, strings.Repeat("[", maxLine+10), "{}") }},
		{"an agent stops in the middle of a line", func(s *street) { s.villain(s.h.ConnectAgent("bad"), true).Write([]byte(`{"type":"hel`)) }},
		{"a viewer stops in the middle of a line", func(s *street) { s.villain(s.h.ConnectViewer("bad"), true).Write([]byte(`{"type":"hel`)) }},
		{"an agent says nothing", func(s *street) { s.villain(s.h.ConnectAgent("bad"), true) }},
		{"an agent reads nothing", func(s *street) {
			c := s.villain(s.h.ConnectAgent("bad"), false)
			go write(c, strings.Split(strings.Repeat("{}\n", 500), "\n")...)
		}},
		{"a viewer reads nothing", func(s *street) {
			c := s.villain(s.h.ConnectViewer("bad"), false)
			go write(c, hello("viewer"), watch("good"), watch("good"), watch("other"))
		}},
		{"an agent comes and goes", func(s *street) {
			for range 50 {
				c, link := open(s, "bad")
				write(c, batch(link, "theirs", 1, 3, "1"))
				c.Close()
			}
		}},
		{"an agent supersedes itself", func(s *street) {
			for range 50 {
				open(s, "bad")
			}
		}},
		{"a viewer comes and goes", func(s *street) {
			for range 50 {
				viewerSays(s, watch("good"))
			}
		}},
		{"an agent claims the session", func(s *street) {
			c, link := open(s, "bad")
			write(c, batch(link, "good", 1, 5, `"mine"`), batch(link, "good", 2, 2, `"mine"`),
				frame("status", `"link":"`+link+`","sessions":[{"session_id":"good","epoch":"zzzz","head_seq":9}]`),
				frame("replay_batch", `"session_id":"good","request_id":"`+link+`-1","epoch":"e1","first_seq":1,"last_seq":0`),
				frame("error", `"code":"event_rejected","session_id":"good","seq":1`))
		}},
		{"an agent uses the other's link", func(s *street) {
			s.h.agentsMu.Lock()
			theirs := s.h.agents["good"].id
			s.h.agentsMu.Unlock()
			agentSays(s, batch(theirs, "good", 1, 1, `"mine"`), frame("status", `"link":"`+theirs+`"`))
		}},
		{"an agent opens as many sessions as it may, and more", func(s *street) {
			c, link := open(s, "bad")
			for range 3 {
				var entries []string
				for i := range maxStatus {
					entries = append(entries, fmt.Sprintf(`{"session_id":"b%d-%d","epoch":"e1"}`, s.published, i))
				}
				write(c, frame("status", `"link":"`+link+`","sessions":[`+strings.Join(entries, ",")+`]`))
			}
		}},
		{"an agent sends as much as it can", func(s *street) {
			c, link := open(s, "bad")
			for i := range uint64(30) {
				write(c, batch(link, "flood", i*100+1, i*100+100, `"`+strings.Repeat("x", 2000)+`"`))
			}
		}},
		{"an agent's events are not stored", func(s *street) {
			c, link := open(s, "bad")
			write(c, batch(link, "no store", 1, 1, "1"))
		}},
		{"an agent's events are never stored", func(s *street) {
			c, link := open(s, "bad")
			write(c, batch(link, "slow store", 1, 1, "1"))
		}},
		{"a viewer watches a hundred sessions, and more", func(s *street) {
			var watches []string
			for i := range 120 {
				watches = append(watches, watch(fmt.Sprint("w", i)))
			}
			viewerSays(s, watches...)
		}},
		{"a viewer asks for everything again and again", func(s *street) {
			c := s.villain(s.h.ConnectViewer("bad"), true)
			write(c, hello("viewer"))
			for range 50 {
				write(c, watch("good"))
			}
		}},
		{"a viewer is slow to be authorized", func(s *street) {
			c := s.villain(s.h.ConnectViewer("bad"), true)
			write(c, hello("viewer"))
			go write(c, watch("ask long"), watch("good"))
		}},
		{"a viewer speaks as somebody else", func(s *street) {
			viewerSays(s, frame("watch", `"session_id":"good","viewer_id":"good","stop":true`), frame("hello", `"v":1,"role":"viewer","viewer_id":"good"`),
				frame("error", `"code":"forbidden","session_id":"good","viewer_id":"good"`))
		}},
		{"a viewer speaks as an agent", func(s *street) {
			viewerSays(s, batch("l", "good", 1, 1, "1"), frame("status", `"link":"l"`), frame("ack_batch", `"session_id":"good","epoch":"e1","link":"l","up_to_seq":9`))
		}},
	} {
		t.Run(villain.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				stop := make(chan bool)
				s := newStreet(t, &HubConfig{
					MaxAgentSessions: 300,
					AuthorizeViewer: func(ctx context.Context, _, id string) error {
						if id == "ask long" {
							<-ctx.Done()
						}
						return nil
					},
					Commit: func(ctx context.Context, id, _ string, _ []Item) error {
						switch id {
						case "no store":
							return errors.New("disk full")
						case "slow store":
							<-stop
						}
						return nil
					},
				})
				defer close(stop)
				s.goesOn("before")
				for i := range 3 {
					villain.do(s)
					s.goesOn(fmt.Sprint(villain.name, ", time ", i+1))
				}
				pass(time.Minute)
				s.goesOn("a minute later")
			})
		})
	}
}

// Two processes are connected to a hostile hub and to a good one: what the hostile one
// sends changes nothing about the other, and costs at most its own link.
func TestHostileHub(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStreet(t, nil)
		s.goesOn("before")
		for i, c := range badFrames(s.t) {
			if c.loose {
				continue
			}
			st, v := NewStreamer(nil), NewViewer(nil)
			publishN(t, st, "good", 2)
			v.Watch("good", Position{})
			line := strings.ReplaceAll(c.frame, "\n", " ")
			for _, l := range []*Link{st.Connect(), v.Connect()} {
				far := s.villain(l, true)
				fmt.Fprintln(far, frame("welcome", `"v":1,"link":"l7","window_events":9`))
				fmt.Fprintln(far, line)
				far.Close()
			}
			if n := st.Stats().PendingEvents; n != 2 {
				t.Errorf("%.100s: %d events are left", line, n)
			}
			if i%20 == 0 {
				s.goesOn(line)
			}
		}
		s.goesOn("after")
	})
}
