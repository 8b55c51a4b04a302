// Package filter changes message heads as the filters of a route's rule say.
//
// It owns nothing: the bytes that it makes live in the caller's Scratch. It is
// called by the goroutine that owns the exchange, does not allocate once the
// Scratch has grown, and cannot fail: route.Validate has refused what could.
package filter
