// Package workload owns the workloads of a node: for each a network namespace with
// a veth pair, addresses from the node's pools, a cgroup, and the sockets inside
// the namespace on which the node proxy takes its connections.
//
// The agent runs one Registry, as root. What it makes outlives the agent: a record
// is on disk before the first piece is made and until the last one is gone, so
// that a restarted agent takes running workloads over and clears up the rest. A
// workload that cannot be made whole is taken apart again; the error says which
// piece failed.
//
// A pod's interface has a /32 and a /128 address and a next hop that is the same in
// every pod (169.254.1.1, fe80::1) with permanent neighbour entries on both sides,
// so that nothing depends on ARP, neighbour discovery or duplicate detection.
package workload
