package gvstream

// This file is what callers can see of the inside. All of these are copies, which the caller
// may keep and change. Counters only grow; everything else is as it was when Stats looked.

// StreamerStats is what a Streamer holds and has seen. The sums are over all sessions,
// which are read one after the other.
type StreamerStats struct {
	Sessions        int    // ended ones that are remembered included
	PendingEvents   int    // unacknowledged
	PendingBytes    int    // of their JSON
	Bytes           int    // of the JSON of all events held
	Connected       bool   // a link was welcomed by the hub
	Lost            uint64 // events that became gaps before they were acknowledged, also of sessions that are gone
	StalePayloads   uint64 // payloads of another link or epoch, which changed nothing
	RefusedPayloads uint64 // payloads answered by an error
}

// SessionStats is where one session stands, at an agent or at a hub. All fields are of one
// moment. First is Head+1 at an agent that holds nothing; Head minus Acked counts gaps as
// well, PendingEvents does not.
type SessionStats struct {
	SessionID string
	Epoch     string
	First     uint64 // first number held
	Head      uint64 // agent: last number published; hub: last number the agent is known to have
	Acked     uint64 // agent: last number acknowledged; hub: last number accepted
	Events    int    // events held
	Bytes     int    // of their JSON
	Ended     bool   // the last event was published; hub: accepted
	Connected bool   // it is open on a link between agent and hub

	PendingEvents int    // agent: unacknowledged
	PendingBytes  int    // agent: of their JSON
	Lost          uint64 // agent: events that became gaps before they were acknowledged

	AgentID string // hub: the agent the session belongs to
	Viewers int    // hub: watches on it, those of Items included
}

// HubStats is what a Hub holds and has seen. The counts are read one after the other, so
// that while agents and viewers come and go they are not of one moment.
type HubStats struct {
	Sessions        int    // known, remembered ended ones included
	Agents          int    // links
	Viewers         int    // links, and iterations of Items
	StalePayloads   uint64 // payloads of another link, epoch or request, which changed nothing
	RefusedPayloads uint64 // payloads answered by an error
}

// ViewerStats is what a Viewer holds and has seen. Items and Bytes are what its reader is
// behind; when they reach the limits of ViewerConfig, the viewer takes nothing more from
// its link.
type ViewerStats struct {
	Watches         int    // ended ones included, until Unwatch
	Items           int    // that wait for Items
	Bytes           int    // what they count against ViewerConfig.BufferBytes
	Connected       bool   // a link was welcomed by the hub
	StalePayloads   uint64 // payloads of another link, epoch, viewer or watch, which changed nothing
	RefusedPayloads uint64 // payloads answered by an error
}
