// Package events owns the reading end of the kernel programs' ring of events and
// makes flows of them.
//
// Run is its only goroutine. Events that found no room in the ring are counted by
// the kernel and become flows of flow.TypeLost.
package events
