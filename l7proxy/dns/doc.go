// Package dns answers the DNS queries of workloads: names of the cluster from the
// node's store, as the Kubernetes DNS specification 1.1.0 says, and everything else
// from the upstream resolvers.
//
// Server owns the sockets that it is handed, one goroutine for each of them and for
// each TCP connection. It keeps no answers: names of the cluster come from the
// store's last good data, so that they resolve while agent and control plane are
// away. It fails towards the client: REFUSED where there is nobody to ask, SERVFAIL
// where nobody answered or a limit is reached. Every query becomes a flow.
package dns
