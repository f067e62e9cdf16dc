package gvstream

import "context"

// A SendFunc sends one payload to the peer. It may block, for as long as the
// transport does, and must return when ctx ends. A link calls it from one
// goroutine at a time. It must not change the payload; it may keep it.
type SendFunc func(ctx context.Context, p Payload) error

// A ReceiveFunc returns the next payload from the peer. It blocks until there is
// one and must return when ctx ends. A link calls it from one goroutine at a
// time. The payload and its bytes belong to the link from then on. If it returns
// a *ProtocolError, for a frame that could not be decoded, the peer is told and
// the link goes on; any other error ends the link's Run.
type ReceiveFunc func(ctx context.Context) (Payload, error)
