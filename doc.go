// Package gvstream carries the events of running sessions from the programs that
// produce them to whoever watches, over connections that break.
//
// An agent runs sessions and publishes their events with a [Streamer]. A [Hub]
// takes the events of many agents. A [Viewer] watches sessions at a hub. The
// package numbers the events, keeps them until they are acknowledged, sends them
// again after a cut, serves viewers that come late or come back, and declares what
// is lost. It moves no bytes by itself: the caller plugs in a byte stream, with
// [Link.RunLines], or a [SendFunc] and a [ReceiveFunc].
//
// What agents, hubs and viewers say to each other is written down in PROTOCOL.md,
// from which one can be built in another language. Comments that quote a rule by
// its number mean that page.
//
// # Words
//
//   - A session is a sequence of events under one id, such as one build.
//   - An event is one thing that happened in a session: an [Event].
//   - A sequence number, or number for short, is an event's place in its session:
//     1 for the first, one more for each next.
//   - An epoch is one life of a session's numbering. A session that an agent
//     starts again, without what it had, has a greater epoch and counts from 1.
//   - A position is an epoch and the last number in it that somebody has dealt
//     with: a [Position]. The zero Position is before the first event.
//   - A link is one connection between an agent or viewer and a hub, for as long
//     as it lasts: a [Link].
//   - An ack is the hub's word that it has accepted everything up to a number.
//   - Pending is what a session has published and not had acknowledged.
//   - A replay is older events sent again for a viewer that asks for them.
//   - A gap is a range of numbers whose events can't be delivered any more, with
//     the reason: a [Gap].
//   - The window is how many events an agent may send beyond the hub's ack.
//
// # Use
//
// All three in one process, with connections in memory from package streamtest:
//
//	agent, hub, viewer := gvstream.NewStreamer(nil), gvstream.NewHub(nil), gvstream.NewViewer(nil)
//	a, b := streamtest.Pipe()
//	c, d := streamtest.Pipe()
//	go hub.ConnectAgent("agent-1").Run(ctx, a.Send, a.Receive)
//	go agent.Connect().Run(ctx, b.Send, b.Receive)
//	go hub.ConnectViewer("tab-1").Run(ctx, c.Send, c.Receive)
//	go viewer.Connect().Run(ctx, d.Send, d.Receive)
//	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok\n")})
//	viewer.Watch("build-42", gvstream.Position{})
//	for item, err := range viewer.Items(ctx) {
//		fmt.Println(item.Event, err)
//	}
//
// [Link.Run] serves one connection and returns when it breaks. Connecting again,
// with a back-off, is the caller's part: one loop around Connect and Run. The
// Streamer, Hub and Viewer outlive all links, and hold what the next one needs.
//
// An [Item] is an event, a gap, a [Reset] before a new epoch, or the end of the
// session. Exactly one of them is set, so a reader that looks at Item.Event alone
// meets nil where something is missing.
//
// # Guarantees
//
// For each session and epoch:
//
//   - A hub accepts each number once and in order, as an event or inside a gap.
//     What it accepts is what Publish was given.
//   - A Streamer keeps an event until the hub has acknowledged it. The exceptions
//     are the caller's policy [DropOldest], an event that the hub refuses, and
//     Forget and Renew. The first two leave a gap.
//   - A reader gets each number once and in order, as an event or inside a gap,
//     from the position it gave, and never one that no hub has accepted. Between
//     two epochs it gets a Reset. Nothing follows the end.
//   - After [Viewer.Items] was left by break, return or panic, the item at hand
//     comes again, so a reader may begin with an item twice, but ends with it once.
//
// An ack means that the hub has accepted the events into its memory. With
// [HubConfig].Commit it means that Commit has stored them; set Resume too, so that
// a hub that was restarted goes on where the store is. Commit can be given the
// same item twice, so it must store by session, epoch and number.
//
// # Concurrency
//
// All methods of Streamer, [Session], Hub, Viewer and Link are safe for
// concurrent use. The package starts no goroutines but those of Run, which have ended
// when it returns, and those of [Link.Push], which end when there is nothing to send.
// Locks are never held while a callback, send or receive runs, so callbacks may call
// anything back. Close of a Streamer waits for acks as its context allows; no Close
// waits for a callback.
//
// What can block takes a context, and its comment says what it waits for. Handle
// at a viewer waits while the viewer's buffer is full: a reader that stands still
// holds up its own link, and nothing else.
//
// Each connection needs a new link. From the moment it is made, the one before is
// dead, and its calls return [ErrSuperseded].
//
// Publish copies what it is given. Items and payloads belong to whoever received
// them; payloads are read-only, since others may share their bytes.
//
// # Failure
//
// What a caller may want to decide on is a variable, to be compared with
// [errors.Is]: [ErrPendingFull], [ErrClosed], [ErrEnded], [ErrTooLarge],
// [ErrInvalidData], [ErrInvalidID], [ErrSuperseded], [ErrSilent],
// [ErrSeqExhausted], [ErrTooMany], [ErrUnknownSession] and [ErrBusy].
//
// What a peer did wrong, or says that this side did wrong, is a [*ProtocolError]
// with a code. Most cost one payload: Handle returns it, the peer is told, and the
// link goes on. One that stops a session at the agent is what Publish and Flush
// return from then on, until Forget or Renew. One that ends a watch is yielded once
// by Items.
//
// Run ends with an error of send, with one of receive that is no *ProtocolError,
// with its context's cause, with ErrSuperseded or ErrClosed, with ErrSilent when
// nothing was heard for too long, with the error of a Commit callback, or with one
// of two *ProtocolErrors: version_unsupported and, at an agent, ack_beyond_sent. In
// all other cases it goes on. Nothing is lost when it ends: connect again. (A link
// made with an invalid id ends at once with ErrInvalidID, a second Run of one link
// with ErrBusy.)
//
// [Streamer.Close] returns an [*UnackedError] if events were left that the hub had
// not acknowledged; [Streamer.Unacked] still yields them.
//
// # Limits
//
// All are fields of [StreamerConfig], [HubConfig] and [ViewerConfig]. The
// defaults:
//
//	agent   pending, a session                        8,192 events, 8 MiB
//	        kept for replay, a session                1,000 events, 8 MiB
//	        one event's JSON                          1 MiB
//	        all sessions together                     no limit
//	        sessions                                  10,000
//	hub     kept for viewers, a session               1,000 events, 8 MiB
//	        one event's JSON                          1 MiB
//	        sessions; sessions of one agent           100,000; 10,000
//	        watches of one viewer                     100
//	        window, a session                         1,024 events
//	        replays at a time, a session; a viewer    8; 4
//	        session without agent and viewers         1 hour
//	        wait for an agent that is away            10 seconds
//	viewer  items that wait for Items                 256, 1 MiB
//	        watches                                   100
//
// Past a limit there is an error that says so, nothing is allocated, and nobody
// else is affected. An id has 1 to 128 bytes, a number is at most [MaxSeq].
//
// # What it does not do
//
// It does not connect, listen, encrypt or authenticate: the caller says who an
// agent or viewer is when it makes the link. It does not write to disk: an agent's
// pending events die with its process, and a hub's log with it, but for what
// Commit has stored. It does not route between hubs, order events of different
// sessions, filter them, or carry anything from viewers to agents.
package gvstream
