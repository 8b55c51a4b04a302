package events

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Config of a Reader. The three functions may be nil, must not block, and are called from Run.
type Config struct {
	Datapath *loader.Datapath
	// Node is the name of this node.
	Node string
	// Workload names a workload of this node.
	Workload func(mesh.WorkloadIndex) *mesh.Workload
	// Address names the owner of an address in the mesh.
	Address func(netip.Addr) *mesh.Workload
	// Service names the service or gateway with the frontend.
	Service func(mesh.Frontend) mesh.Name
	// Sink takes the flows. It must not block.
	Sink   func(*flow.Flow)
	Logger *slog.Logger
}

// Reader turns kernel events into flows.
type Reader struct{}

// New opens the ring; nothing is read before Run.
func New(cfg Config) (*Reader, error) { return nil, errors.New("not written yet") }

// Run reads events until ctx ends, and returns nil then.
func (r *Reader) Run(ctx context.Context) error { return errors.New("not written yet") }
