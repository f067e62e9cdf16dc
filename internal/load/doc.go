// Package load tests agents, a hub and viewers together, by their public methods alone,
// with very many sessions, viewers, events and cuts. Each test checks its invariants in
// a small size with the other tests, and in its full size, with figures, by
//
//	GVSTREAM_LOAD=1 go test -v ./internal/load
package load
