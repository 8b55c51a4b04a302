// Package gateway turns the Kubernetes object set into the mesh, and says of each
// object what came of it.
//
// A [Translator] owns the state between two changes; whoever runs the control
// plane calls it from one goroutine. Its work is a chain of small pure steps, each
// for one object or resource, in packages graph (references resolved) and compile
// (values of the mesh):
//
//	GatewayClass → Gateway → route → conflict → virtual host
//	                            ↘ Service, its clusters and endpoints
//
// A step records what it asked for, so that a change reaches exactly the steps that
// depend on it; a step whose result is as before ends the chain. The mesh is
// a function of the object set alone, whatever the changes were that led to it,
// except for addresses that were given before and stay.
//
// Nothing here fails for what is in an object: that becomes a condition of the
// object's status, and the rest goes on. A rule that is not supported answers 500,
// it is never skipped in favour of a more general one.
package gateway
