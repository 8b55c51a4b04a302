package feed

import (
	"sync/atomic"
	"time"
)

// bucket is a token bucket without a lock (the generic cell rate algorithm): it
// keeps the time until which the tokens that were taken are paid for.
type bucket struct {
	interval time.Duration // between two tokens
	burst    time.Duration // how far ahead tokens may be taken
	paid     atomic.Int64  // nanoseconds since the same start as now
}

// newBucket returns a full bucket of perSecond tokens, which holds as many.
func newBucket(perSecond int) *bucket {
	return &bucket{interval: time.Second / time.Duration(perSecond), burst: time.Second}
}

// take takes a token at the time now, or reports that there is none.
func (b *bucket) take(now time.Duration) bool {
	for {
		paid := b.paid.Load()
		next := max(paid, int64(now)) + int64(b.interval)
		if next > int64(now+b.burst) {
			return false
		}
		if b.paid.CompareAndSwap(paid, next) {
			return true
		}
	}
}
