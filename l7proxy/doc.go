// Package l7proxy carries the connections of a node's workloads and of its
// gateways: it is the node proxy's data path, from an accepted socket to the
// endpoint that was chosen for it.
//
// It owns every downstream and upstream connection, and the listening sockets
// that it was handed. The journeys are outbound.go (a workload dialled a
// service), ingress.go (anybody dialled a Gateway) and inbound.go (somebody
// dialled a workload); exchange.go is one HTTP request with its response, in any
// pairing of HTTP/1.1 and HTTP/2. The protocol engines below it (http1, http2,
// tlsengine) do no I/O.
//
// Run starts one goroutine per core, each locked to a thread and owner of all it
// accepted: an epoll loop without locks between connections. Configuration is
// read from mesh/store and route.Tables, immutable values that are looked up for
// each request and kept for that request only.
//
// It fails closed: a connection without a known original destination, a request
// without a route, a listener whose configuration does not arrive in time are
// refused with a flow.Reason, which the client sees in x-sluice-reason, and
// which the access log, the metrics and the flow repeat.
package l7proxy
