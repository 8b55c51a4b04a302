package service

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
)

// Config of a Table.
type Config struct {
	Datapath *loader.Datapath
	// DNS are the addresses of the DNS service: port 53 of them, TCP and UDP, is
	// answered by the node proxy, whatever a Service says of it.
	DNS        []netip.Addr
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Table is the service tables.
type Table struct{}

var errTODO = errors.New("not written yet")

// New reads back the tables of an earlier process and writes the DNS frontends.
func New(cfg Config) (*Table, error) { return nil, errTODO }

// Apply projects the services of a delta; other kinds are ignored. It costs
// O(the services in d). A client sees a frontend as it was or as it is, never a
// mixture. The error joins one for each service that could not be written; those
// are tried again with the next Apply. One goroutine at a time may call
// Apply and Prune.
func (t *Table) Apply(d mesh.Delta) error { return errTODO }

// Prune removes the frontends of an earlier process that no service applied since
// New has. Call it once the first full state was applied.
func (t *Table) Prune() (removed int, err error) { return 0, errTODO }
