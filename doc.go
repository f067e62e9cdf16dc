// Package gvstream carries the events of running sessions from the agents that produce
// them, through a hub, to any number of viewers, over connections that break. It numbers
// the events, keeps them until the hub has acknowledged them, sends them again after a
// cut, serves viewers that come late or come back, and declares what is lost. An ack
// means that the hub has accepted the events. That is durable only if the hub has a
// Commit callback that stores them (see [HubConfig]); without one, they are in memory
// only.
//
// An agent publishes with a [Streamer], a [Hub] takes the events of many agents, and a
// [Viewer] watches sessions at a hub. The package moves no bytes by itself: give a link a
// byte stream, with [Link.RunLines], or a [SendFunc] and a [ReceiveFunc], with [Link.Run].
//
// PROTOCOL.md says what agents, hubs and viewers send each other, so that any of them can
// be written in another language. Where a comment names a rule by its number, it is a
// rule of that page.
//
// # Words
//
//   - An agent is a program in which sessions run, a hub the program between agents and
//     viewers, and a viewer one connected reader, such as a browser tab, not a user.
//   - A session is a sequence of events under one id, such as one build.
//   - An event is one thing that happened in a session: an [Event].
//   - A sequence number, or number for short, is an event's place in its session:
//     1 for the first, one more for each next.
//   - An epoch is one life of a session's numbering. A session that an agent starts
//     again, without the state it had, has a greater epoch and counts from 1.
//   - A position is an epoch and the last number in it that has been dealt with: a
//     [Position]. The zero Position is before the first event.
//   - A log is what an agent or hub keeps of a session in memory: its most recent events
//     and gaps.
//   - A number is accepted when the hub has taken it into its log, after Commit, if there
//     is one, has stored it. Viewers see nothing before that.
//   - An ack is the hub's word that it has accepted everything up to a number.
//   - Pending is what a session has published and the hub has not acknowledged.
//   - The window is how many events an agent may send beyond the hub's ack.
//   - A gap is a range of numbers whose events can't be delivered any more, with
//     the reason: a [Gap].
//   - A watch is a viewer's request for a session from a position on, and what it leads
//     to, until [Viewer.Unwatch].
//   - A replay is the sending of older events from the agent's log to a viewer that is
//     below the hub's log.
//   - An item is what a viewer's program is given: an [Item], which is an event, a gap, a
//     [Reset] before a new epoch, or the end of the session.
//   - A link is the state of one connection between an agent or viewer and a hub, for as
//     long as it lasts: a [Link].
//   - A payload is one message on a link: a [Payload]. A frame is its JSON.
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
// Streamer, Hub and Viewer outlive all links and hold what the next one needs. Each
// connection needs a link of its own: write one loop that connects, makes a link, runs
// it until the connection breaks, and starts over with a back-off. How to run it depends
// on the transport:
//
//   - [Link.RunLines] for a byte stream, such as a TCP connection
//   - [Link.Run] for two functions that send and receive a payload
//   - [Link.NextFrame] and [Link.HandleFrame] for messages, such as WebSocket's
//   - [Link.Push] for a server without a goroutine for each connection
//
// Exactly one of an item's kinds is set, so code that looks at Item.Event alone meets nil
// where something is missing. To go on in another process, persist [Viewer.Position] with
// the results of the items, and give it to [Viewer.Watch].
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
//   - [Viewer.Items] and [Hub.Items] yield each number once and in order, as an event or
//     inside a gap, from the position they were given, and never one that no hub has
//     accepted. Between two epochs they yield a Reset. Nothing follows the end.
//   - If the loop over Viewer.Items ends by break, return or panic, its last item comes
//     again: a loop may begin with an item twice, but finishes with it once.
//
// With Commit, set Resume too, so that a hub that was restarted goes on where the store
// is. Commit may be given the same item twice, so it must store by session, epoch and
// number.
//
// # Concurrency
//
// All methods of Streamer, [Session], Hub, Viewer and Link are safe for concurrent use.
// The package starts no goroutines but those of Run and RunLines, which have ended when
// the call returns, and those of Push, which end when there is nothing to send. It holds
// no lock while a callback, send or receive runs, so callbacks may call any method.
// [Streamer.Close] waits for acks as its context allows; no Close waits for a callback.
//
// A method that can block takes a context, and its comment says what it waits for. Handle
// at a viewer waits while the viewer's buffer is full: a loop over Items that stands still
// holds up its own link and nothing else.
//
// From the moment a new link is made, the one before is dead, and its calls return
// [ErrSuperseded].
//
// Publish copies what it is given. Items are the caller's to keep and to change. Payloads
// are the caller's to keep but read-only, since others may share their bytes.
//
// # Failure
//
// Errors that a caller may want to act on are variables, to be compared with
// [errors.Is]: [ErrPendingFull], [ErrClosed], [ErrEnded], [ErrTooLarge],
// [ErrInvalidData], [ErrInvalidID], [ErrInvalidPosition], [ErrSuperseded], [ErrSilent],
// [ErrSeqExhausted], [ErrTooMany], [ErrUnknownSession], [ErrEpochAhead], [ErrWatched] and
// [ErrBusy]. Most are wrapped with the facts: what is wrong, how much and at most how much.
//
// What a peer did wrong, or says that this side did wrong, is a [*ProtocolError]
// with a code. Most reject one payload only: Handle returns the error, the peer gets an
// error payload, and the link goes on. One that stops a session at the agent is what
// Publish and Flush return from then on, until Forget or Renew. One that ends a watch is
// yielded once by Items.
//
// Run returns when the link can't go on, always with an error:
//
//   - one of send, or one of receive that is no *ProtocolError
//   - its context's cause
//   - ErrSuperseded or ErrClosed
//   - ErrSilent when nothing has moved on the connection for 45 to 60 seconds
//   - at a hub, the error of a Commit callback
//   - a *ProtocolError: version_unsupported, wrong_role, superseded (which is ErrSuperseded
//     to errors.Is) or, at an agent, ack_beyond_sent
//   - at once, ErrInvalidID if the link was made with an invalid id, and ErrBusy if it was
//     given to Run or Push before
//
// No event is lost by that: connect again.
//
// [Streamer.Close] returns an [*UnackedError] if events were left that the hub had
// not acknowledged, which [Streamer.Unacked] still yields, or if some were lost.
//
// # Limits
//
// All are fields of [StreamerConfig], [HubConfig] and [ViewerConfig]. The
// defaults:
//
//	agent   pending, per session                      8,192 events, 8 MiB
//	        kept for replay, per session              1,000 events, 8 MiB
//	        one event's JSON                          1 MiB
//	        all sessions together                     no limit
//	        sessions                                  10,000
//	        replays at a time, per session            8
//	hub     kept for viewers, per session             1,000 events, 8 MiB
//	        one event's JSON                          1 MiB
//	        sessions; sessions of one agent           100,000; 10,000
//	        watches of one viewer                     100
//	        window, per session                       1,024 events
//	        replays at a time, per session; viewer    8; 4
//	        session without agent and viewers         1 hour
//	        wait for an agent that is away            10 seconds
//	viewer  items that wait for Items                 256, 1 MiB
//	        watches                                   100
//
// A log that is full evicts its oldest events; full pending does what [Overflow] says; a
// full viewer holds up its link; replays wait their turn. Past any other limit there is
// an error that says so, and nobody else is affected. An id has 1 to 128 bytes, a number
// is at most [MaxSeq].
//
// # What it does not do
//
// It does not connect, listen, encrypt or authenticate: when the caller makes the link, it
// says which agent or viewer is at the other end, and the package trusts that. It does
// not write to disk: an agent's pending events die with its process, and so does a hub's
// log, except for what Commit has stored. It does not route between hubs, order events of
// different sessions, filter them, or carry anything from viewers to agents.
package gvstream
