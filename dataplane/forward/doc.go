// Package forward owns what happens to packets at the node's ends of workloads'
// veth pairs: a source that is not the workload's own is dropped, and what goes to
// another workload of this node is handed to it without passing the node's network
// stack (bpf/host.h).
//
// It runs no goroutine. Links and maps are pinned and are its state: traffic goes on
// without a process, and a later process reads back what this one wrote. A workload
// that it could not set up sends nothing.
//
// Between workloads of one node, packets that bypass the stack meet none of the
// node's netfilter rules, and a capture on the receiver's node end does not show
// them. IP options, hop-by-hop options and expired hop limits are left to the stack.
package forward
