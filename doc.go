// Package gvstream carries the events of running sessions from the agents that produce
// them, through a hub, to any number of viewers, over connections that break. It numbers
// the events, keeps them until the hub has acknowledged them, sends them again after a
// cut, serves viewers that come late or come back, and declares what is lost. An ack of the
// hub means that it has accepted the events. That is durable only if the hub has a
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
//   - A position is an epoch and the last number in it that a reader has dealt with: a
//     [Position]. The zero Position is before the first event.
//   - A log is what an agent or hub keeps of a session in memory: its most recent events
//     and gaps, without holes between them.
//   - A link is the state of one connection between an agent or viewer and a hub, for as
//     long as it lasts: a [Link].
//   - A leg is one session on one link, from a sender, which has a place in a log, to a
//     receiver, which says how far it is. Agent to hub and hub to viewer are the same.
//   - A number is accepted when the receiver has taken it for good. A hub has it in its log
//     then, after Commit, if there is one, has stored it; viewers see nothing before that. A
//     viewer has it in memory, where it waits for the reader.
//   - An ack is the receiver's word that it has accepted everything up to a number. A nack
//     is an ack which says that what follows did not arrive.
//   - The window is how many events, and bytes of their JSON, the receiver takes beyond
//     its ack.
//   - In flight is what was sent on a leg and is not acknowledged on it.
//   - Pending is what a session has published and the hub has not acknowledged, sent or not.
//   - A gap is a range of numbers whose events can't be delivered any more, with
//     the reason: a [Gap].
//   - A watch is a viewer's request for a session from a position on, and what it leads
//     to, until [Viewer.Unwatch].
//   - A replay is the hub's reading of older events from the agent's log, for viewers that
//     are below the hub's.
//   - An item is what a viewer's program is given: an [Item], which is an event, a gap, a
//     [Reset] before a new epoch, or the end of the session.
//   - A payload is one message on a link: a [Payload]. A frame is its JSON. A batch is a
//     payload with events and gaps of one session.
//
// # Use
//
// All three in one process:
//
//	ctx := context.Background()
//	agent, hub, viewer := gvstream.NewStreamer(nil), gvstream.NewHub(nil), gvstream.NewViewer(nil)
//	join := func(l, m *gvstream.Link) {
//		a, b := net.Pipe() // or TCP, TLS, SSH, or any other byte stream
//		go l.RunLines(ctx, a)
//		go m.RunLines(ctx, b)
//	}
//	join(agent.Connect(), hub.ConnectAgent("agent-7"))
//	join(viewer.Connect(), hub.ConnectViewer("tab-1"))
//
//	// Publish waits while 8,192 events are unacknowledged, unless Overflow says otherwise.
//	agent.Publish(ctx, "build-42", gvstream.Event{Type: "stdout", Bytes: []byte("ok")})
//	agent.End(ctx, "build-42", gvstream.Event{Type: "exit", Data: []byte(`{"code":0}`)})
//
//	viewer.Watch("build-42", gvstream.Position{}) // from the first event
//	for item, err := range viewer.Items(ctx) {
//		switch {
//		case err != nil: // the hub has ended the watch
//			log.Fatal(err)
//		case item.Event != nil:
//			fmt.Printf("%d %s: %s%s\n", item.Event.Seq, item.Event.Type, item.Event.Bytes, item.Event.Data)
//		case item.End:
//			fmt.Println("end; the hub has everything:", agent.Close(ctx) == nil)
//			return
//		default: // a Gap, where events are missing, or a Reset, after the agent was restarted
//			fmt.Println(item)
//		}
//	}
//
// It prints three lines: "1 stdout: ok", "2 exit: {"code":0}" and "end; the hub has
// everything: true".
//
// Streamer, Hub and Viewer outlive all links and hold what the next one needs. Each
// connection needs a link of its own: write one loop that connects, makes a link, runs
// it until the connection breaks, and starts over with a back-off. It stops on [ErrClosed]
// and [ErrSuperseded]. README.md has such a loop to copy. How to run a link depends on the
// transport:
//
//   - [Link.RunLines] for a byte stream, such as a TCP connection
//   - [Link.Run] for two functions that send and receive a payload
//   - [Link.NextFrame] and [Link.HandleFrame] for messages, such as WebSocket's
//   - [Link.Push] for a server without a goroutine for each connection
//
// Exactly one of an item's kinds is set, so code that looks at Item.Event alone meets nil
// where something is missing.
//
// The end of a session comes twice, at one position: as the last event, which has
// Event.End, and after it as an item of its own, which has Item.End and no event. Show the
// event like any other. Act on the item: it comes always, also where the last event is in a
// gap, and nothing follows it.
//
// To go on in another process, persist [Viewer.Position] with the results of the items, and
// give it to [Viewer.Watch]. Positions and items have a JSON form, and a position has a
// text, which [ParsePosition] reads.
//
// # Guarantees
//
// For each session and epoch:
//
//   - A hub accepts each number once and in order, as an event or inside a gap.
//     What it accepts is what Publish was given.
//   - A Streamer keeps an event until the hub has acknowledged it. The exceptions
//     are the caller's policy [DropOldest], an event that the hub refuses or no frame can
//     carry, and Forget and Renew. All but the last two leave a gap.
//   - [Viewer.Items] and [Hub.Items] yield each number once and in order, as an event or
//     inside a gap, from the position they were given, and never one that no hub has
//     accepted. Between two epochs they yield a Reset. Nothing follows the end.
//   - If the loop over Viewer.Items ends by break, return or panic, its last item comes
//     again: a loop may begin with an item twice, but finishes with it once.
//   - A session that can't go on, because its store fails or hangs or its viewers read
//     nothing, delays no other by more than its turn. For Commit that holds as long as
//     fewer than MaxCommits sessions hang at a time.
//   - A viewer gets a session's live events whatever becomes of its history.
//
// With Commit, set Resume too, so that a hub that was restarted goes on where the store
// is. Commit may be given the same item twice, so it must store by session, epoch and
// number.
//
// # Concurrency
//
// All methods of Streamer, [Session], Hub, Viewer and Link are safe for concurrent use.
// The package starts no goroutines but those of Run and RunLines, which have ended when
// the call returns, those of Push, which end when there is nothing to send, and those in
// which a Hub calls AuthorizeAgent, Resume and Commit. These end when there is nothing to
// call, and a panic of such a callback ends the process. Authorize is called by the
// goroutine that handles the payload. No lock is held while a callback, send or receive
// runs, so callbacks may call any method. [Streamer.Close] waits for acks as its context
// allows; no Close waits for a callback.
//
// A method that can block takes a context, and its comment says what it waits for. Handle
// waits for Authorize at a hub, and for nothing at an agent or a viewer: what a loop over
// Items has not read makes the window smaller, and the rest waits at the hub.
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
// with a [Code], such as [CodeForbidden]. Most reject one payload only: Handle returns the
// error, the peer gets an error payload, and the link goes on. One that stops a session at
// the agent is what Publish and Flush return from then on, until Forget or Renew. One that
// ends a watch is yielded once by Items.
//
// Run returns when the link can't go on, always with an error:
//
//   - one of send that does not wrap ErrTooLarge, or one of receive that is no *ProtocolError
//   - its context's cause
//   - ErrSuperseded or ErrClosed
//   - ErrSilent when nothing has moved on the connection for 45 to 60 seconds, at a hub as well
//   - a *ProtocolError: version_unsupported, wrong_role, or superseded (which is
//     ErrSuperseded to errors.Is)
//   - at once, ErrInvalidID if the link was made with an invalid id, and ErrBusy if it was
//     given to Run or Push before
//
// No event is lost by that: connect again, except after ErrSuperseded and ErrClosed.
//
// What concerns one session does not end a link. If Commit fails, the session is refused
// for now; the agent sends its events again after a second, later after up to two minutes.
// A payload that send can't carry, which it says by an error that wraps ErrTooLarge, is
// sent in parts, and an event that is too large by itself becomes a gap.
//
// Flush returns nil when the hub has acknowledged everything or the gap that declares its
// loss. [Streamer.Close] returns nil only if the hub has acknowledged each event. If some
// are left, which [Streamer.Unacked] still yields, or some were lost, it returns an
// [*UnackedError].
//
// # Limits
//
// All are fields of [StreamerConfig], [HubConfig] and [ViewerConfig]. A field that is zero
// has its default. A negative one never means "no limit": it stands for zero or, where
// nothing would work with that, for the least that does, as the field's comment says. The
// defaults:
//
//	agent   pending, per session                      8,192 events, 8 MiB
//	        kept for replay, per session              65,536 events, 8 MiB
//	        all sessions together                     512 MiB
//	        one event's JSON                          1 MiB
//	        one batch's JSON                          256 KiB, or one event
//	        sessions                                  10,000
//	        replays at a time, per session            8
//	hub     kept for viewers, per session             65,536 events, 8 MiB
//	        all sessions together                     1 GiB
//	        one event's JSON                          1 MiB
//	        one batch's JSON                          256 KiB, or one event
//	        sessions; sessions of one agent           100,000; 10,000
//	        watches of one viewer                     100
//	        window, per session                       1,024 events, 1 MiB
//	        sessions in Commit at a time              64
//	        waiting for Commit, of one agent          16 MiB
//	        replays at a time, per session            8
//	        session without agent and viewers         1 hour
//	        session that has ended, without viewers   1 hour
//	        wait for what an agent does not bring     10 seconds
//	viewer  window, per watch                         1,024 events, 256 KiB
//	        watches                                   100
//
// A log that is full evicts its oldest events; where all sessions together reach their
// limit, the oldest of any of them go first, but never one that is pending. Full pending
// does what [Overflow] says. A sender waits when a window is used up; replays wait their
// turn. Sessions that have ended or were forgotten, and that nobody watches, make room for
// others, the oldest first. Past any other limit there is an error that says so, and nobody else is affected.
// An id has 1 to 128 bytes, a number is at most [MaxSeq].
//
// A transport has limits, too. A line has at most 2 MiB, and so has a frame as long as
// these defaults hold: give a WebSocket a read limit of that, or lower the bytes of an event
// and of a batch.
//
// # What it does not do
//
// It does not connect, listen, encrypt or authenticate: when the caller makes the link, it
// says which agent or viewer is at the other end, and the package trusts that. It does
// not write to disk: an agent's pending events die with its process, and so does a hub's
// log, except for what Commit has stored. It does not route between hubs, order events of
// different sessions, filter them, or carry anything from viewers to agents.
package gvstream
