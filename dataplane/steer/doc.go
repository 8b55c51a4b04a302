// Package steer owns what the kernel programs know of this node's workloads and
// of the sockets that the node proxy serves them with: which namespace is which
// workload, which listener takes a Gateway's or an inbound connection, and where
// a steered connection was going.
//
// It runs no goroutine. The kernel maps are its state: a new process finds in
// them what the last one wrote. LookupOrigin and Beat need a descriptor only,
// no privilege, and are for the process that accepts the connections.
package steer
