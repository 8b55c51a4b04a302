// Package client keeps a node's store equal to what the control plane publishes
// and the node asked for, by delta ADS.
//
// It is the only writer of its store. Client.Run is one goroutine that owns the
// view: what is subscribed to and why, what has arrived, and what waits. Other
// goroutines put wishes into a queue (Want, Forget, Wait) or read a snapshot.
//
// With FollowReferences the client subscribes to what a listener, virtual host or
// cluster refers to, and unsubscribes when nothing refers to it any more. A new
// version of one warms: it enters the store when all that it refers to has been
// answered for, until then the version before stays; removals wait until nothing
// warms. So a reader of the store meets no reference to a thing that was still on
// its way.
//
// A resource that does not decode, or that Config.Validate refuses, is refused
// alone: the others of the response are accepted, and the NACK names the bad ones
// in a sluice.v1.Rejections. The last good version stays.
//
// Failures: without a control plane the store keeps what it has, and a start
// begins with the state on disk. A damaged state file costs what stands behind
// the damage. No certificate and no private key is ever written to it.
package client
