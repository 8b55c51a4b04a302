// Package feed carries flows from the process that parses connections to the one
// that keeps them.
//
// A Sender runs in the proxy. Each worker has a Queue of its own, and Add never
// blocks and keeps no reference: it writes the flow's record into a bounded
// buffer, which the sender's goroutine empties into a unix socket. What has no
// room, and what is more than the limit per second, is counted and told as a
// TypeLost flow once there is room again. While the agent is away the queues
// fill, and nothing else happens.
//
// A Receiver runs in the agent. The proxy parses what strangers send, so the
// receiver believes only what a flow says of the connection itself: the names and
// labels of workloads come from the agent's own tables.
//
// On the socket, stream or seqpacket, travel frames: the four bytes "SLF1", four
// bytes of length (little endian), and whole records of package record.
package feed
