// Package gatewayaddr owns the addresses of Gateways on a node: the local routes
// that make the node's network namespace take their packets, and the sockets on
// which the node proxy takes their connections. The sockets are bound to loopback
// addresses; a kernel program (sk_lookup) picks one by the Gateway's address and port.
//
// The agent runs one Table. Routes and sockets outlive the agent: the file in the
// run folder says which belong to what. A listener that cannot be served leaves
// nothing behind, and the others are served.
package gatewayaddr

import (
	"log/slog"
	"net/netip"

	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// Socket takes the connections of one address and port of a Gateway.
type Socket struct {
	// Listener is the mesh.Listener's name.
	Listener string         `json:"listener"`
	Protocol mesh.Protocol  `json:"protocol"`
	AddrPort netip.AddrPort `json:"address"`
	// Local is where the socket is bound.
	Local netip.AddrPort `json:"local"`
	// FD belongs to the Table, which closes it when the address and port are removed.
	FD int `json:"-"`
}

// Hooks are told about sockets by the goroutine that calls Set or Remove.
type Hooks interface {
	// OnAdd registers a socket with the kernel program and hands it to the proxy. An
	// error closes the socket; OnRemove is not called then.
	OnAdd(s Socket) error
	// OnRemove forgets it before it is closed.
	OnRemove(s Socket)
}

// Config says what a Table works with.
type Config struct {
	// StateFile is where the Table remembers its sockets and routes, in the run folder.
	StateFile string
	// NodeNetns is the namespace to change; nil means that of the thread that calls New.
	NodeNetns *netns.Namespace
	Hooks     Hooks // nil: nobody is told
	Logger    *slog.Logger
}

// Table holds the Gateway addresses of the node. All methods may be called concurrently.
type Table struct{ cfg Config }

// New checks the configuration and changes nothing.
func New(cfg Config) (*Table, error) { return &Table{cfg: cfg}, nil }

// Restore reads what an earlier agent left: its routes stay, its sockets are waited
// for (Adopt). Call it once, before Set; then Set all listeners and Retain them.
func (t *Table) Restore() error { return nil }

// Adopt takes sockets that came back from the proxy, and their ownership. It returns
// those that are not the Table's, which stay the caller's. Call it before Set.
func (t *Table) Adopt(fds []int) (rest []int) { return fds }

// Set makes the node serve exactly the addresses and ports of l, which must be of
// type gateway: O(what differs from the Set before). On error the rest is served
// and calling Set again tries what failed.
func (t *Table) Set(l *mesh.Listener) error { return nil }

// Remove stops serving a listener. An unknown name is no error.
func (t *Table) Remove(name string) error { return nil }

// Retain removes all listeners for which keep is false.
func (t *Table) Retain(keep func(name string) bool) error { return nil }

// Sockets returns the sockets by listener, address and port.
func (t *Table) Sockets() []Socket { return nil }

// Close closes the sockets in this process and leaves the routes, for the next agent.
func (t *Table) Close() error { return nil }
