// Package routing has tests only: of routes from YAML to bytes, within one process.
//
// Manifests go through kube/manifest, the gateway's translator, the xDS codec in
// both directions and the store into a node proxy on real sockets, which real
// clients ask and real servers answer. What the kernel and the processes add to that
// is tested by package lab.
package routing
