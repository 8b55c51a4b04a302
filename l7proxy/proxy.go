package l7proxy

import (
	"context"
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// SocketType says what a listening socket takes.
type SocketType uint8

// The types of listening socket.
const (
	SocketOutbound SocketType = iota + 1 // a workload's steered connections
	SocketInbound                        // connections to a workload's own ports
	SocketGateway                        // one address and port of a Gateway
)

// String returns "outbound", "inbound" or "gateway", which is also the value of
// the metrics' label "journey".
func (t SocketType) String() string {
	switch t {
	case SocketOutbound:
		return "outbound"
	case SocketInbound:
		return "inbound"
	case SocketGateway:
		return "gateway"
	}
	return "unknown"
}

// Socket is a listening TCP socket, bound and listening.
type Socket struct {
	FD   int
	Type SocketType
	// Workload and WorkloadName are those of the namespace that the socket is in;
	// zero on gateways.
	Workload     mesh.WorkloadIndex
	WorkloadName mesh.Name
	// Listener is the name of the mesh.Listener; gateways only.
	Listener string
	// Addr is what clients dial. It names the socket for RemoveSocket, with Type and
	// Workload.
	Addr netip.AddrPort
}

// Connection is a downstream connection, as the admin socket shows it.
type Connection struct {
	Journey     string         `json:"journey"`
	Protocol    string         `json:"protocol"` // "detect", "tls", "http/1.1", "h2", "tcp"
	Source      netip.AddrPort `json:"source"`
	Workload    mesh.Name      `json:"workload,omitzero"`
	Destination netip.AddrPort `json:"destination"`
	Listener    string         `json:"listener,omitempty"`
	Loop        int            `json:"loop"`
	Age         time.Duration  `json:"age_ns"`
	Exchanges   uint64         `json:"exchanges"` // begun on it
	Buffered    int            `json:"buffered_bytes"`
}

// Proxy is the data path of a node proxy.
type Proxy struct{}

// New validates cfg and starts nothing.
func New(cfg Config) (*Proxy, error) { panic("under construction") }

// Run serves until ctx ends, then closes all connections and listening sockets.
func (p *Proxy) Run(ctx context.Context) error { panic("under construction") }

// AddSocket begins to accept on s, which becomes the proxy's, also when it fails.
// Any goroutine may call it, before or while Run runs.
func (p *Proxy) AddSocket(s Socket) error { panic("under construction") }

// RemoveSocket closes the listening socket with the type, workload and address of
// s; connections that it accepted go on. It reports whether there was one.
func (p *Proxy) RemoveSocket(s Socket) bool { panic("under construction") }

// Sockets returns the listening sockets that the proxy holds. The descriptors
// stay the proxy's: duplicate before use, they close with RemoveSocket and Run.
func (p *Proxy) Sockets() []Socket { panic("under construction") }

// Drain stops accepting on all sockets, which stay open (others who hold them
// accept), asks clients to go (Connection: close, GOAWAY), closes what is idle,
// and returns when no connection is left, or with ctx's error when ctx ends; what
// is left then is closed by the end of Run.
func (p *Proxy) Drain(ctx context.Context) error { panic("under construction") }

// Snapshot returns the downstream connections.
func (p *Proxy) Snapshot(ctx context.Context) ([]Connection, error) { panic("under construction") }

var _ = flow.ReasonNone
