// Package handoff is the conversation between a node's agent and its proxy over
// one unix socket (SOCK_SEQPACKET): the agent hands over the listening sockets
// that it made in the workloads' network namespaces and on the node, and after a
// restart of its own takes them back from the proxy, which holds them too. A
// listening socket therefore outlives either process.
//
// The agent runs a Server, the proxy's worker a Client; each has one goroutine a
// connection. A message is one JSON value with at most one descriptor. A peer
// that is neither root nor the proxy's user, or that sends what is no message,
// is disconnected and nothing it sent takes effect.
package handoff
