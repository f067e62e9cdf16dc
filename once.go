package gvstream

import (
	"maps"
	"time"
)

// onceASecond is what was said about sessions within the last second, so that a peer which
// goes on about a session that is not open hears so once a second, and not for each payload.
// It remembers few sessions: beyond that nothing is said, and the peer's next payload asks
// again. The zero value has said nothing. Its owner's lock protects it.
type onceASecond struct {
	at        map[string]time.Time // by session
	cleanedAt time.Time
}

// allow reports whether something may be said about a session now, and notes that it is.
func (o *onceASecond) allow(now time.Time, sessionID string) bool {
	if at, ok := o.at[sessionID]; ok && now.Sub(at) < time.Second {
		return false
	}
	if len(o.at) >= maxOnce && now.Sub(o.cleanedAt) >= time.Second {
		o.cleanedAt = now
		maps.DeleteFunc(o.at, func(_ string, at time.Time) bool { return now.Sub(at) >= time.Second })
	}
	if _, ok := o.at[sessionID]; !ok && len(o.at) >= maxOnce {
		return false
	}
	if o.at == nil {
		o.at = make(map[string]time.Time)
	}
	o.at[sessionID] = now
	return true
}

// maxOnce is as many sessions as one payload can name.
const maxOnce = maxStatus
