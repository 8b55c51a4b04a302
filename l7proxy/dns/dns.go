// Package dns answers the DNS queries of workloads.
package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Config says what a server answers from.
type Config struct {
	Store *store.Store
	// ClusterDomain is "cluster.local" if empty.
	ClusterDomain string
	// Upstreams answer for names outside the cluster domain, in this order. None:
	// such queries are refused.
	Upstreams []netip.AddrPort
	// Flows takes one flow for each query; nil: none are made. It must not block.
	Flows      func(*flow.Flow)
	Node       string
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Server answers the queries that arrive on the sockets it was handed.
type Server struct{}

// New returns a server and subscribes it to the store.
func New(cfg Config) (*Server, error) { return &Server{}, nil }

// Run serves until ctx ends, then closes all sockets.
func (s *Server) Run(ctx context.Context) error { return nil }

// AddPacketConn serves UDP queries of a workload on c, which the server owns from
// now on.
func (s *Server) AddPacketConn(c net.PacketConn, index mesh.WorkloadIndex, name mesh.Name) {}

// AddListener serves TCP queries of a workload on l, which the server owns from
// now on.
func (s *Server) AddListener(l net.Listener, index mesh.WorkloadIndex, name mesh.Name) {}

// Remove closes the sockets of a workload.
func (s *Server) Remove(index mesh.WorkloadIndex) {}
