// Package mesh holds the values that every side of Sluice shares: what a
// workload, a service, a listener, a route and a cluster are once Kubernetes
// objects have been compiled, and before they become maps or bytes.
//
// It owns no state and runs no goroutine. Every value is immutable after it was
// published in a Delta: a reader may keep it for ever, a writer builds a new one.
// It imports the standard library only.
package mesh
