package gateway

import (
	"errors"
	"log/slog"
	"net/netip"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// DefaultController is the controllerName of GatewayClasses that Sluice serves.
const DefaultController = "sluice.dev/gateway-controller"

// Config of a Translator.
type Config struct {
	// Controller is the spec.controllerName that a GatewayClass must have to be ours.
	// Empty: DefaultController.
	Controller string
	// GatewayPools are where Gateways without spec.addresses get their addresses:
	// one of each family that is given.
	GatewayPools []netip.Prefix
	// StateDir is where addresses given to Gateways are remembered, or empty.
	StateDir string
	// Node is the name of the node for workloads that do not name one.
	Node   string
	Logger *slog.Logger
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	for _, p := range c.GatewayPools {
		if !p.IsValid() {
			return errors.New("gateway: invalid address pool")
		}
	}
	return nil
}

// Result is what a change of objects comes to.
type Result struct {
	Delta mesh.Delta
	// Statuses are those that differ from the ones before.
	Statuses []kube.Status
	// Gone are objects that had a status and have none any more.
	Gone []kube.Key
}

// Translator keeps the mesh that the objects given to Apply describe. One
// goroutine may use it at a time.
type Translator struct{ cfg Config }

// New validates and reads the remembered addresses.
func New(cfg Config) (*Translator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Translator{cfg: cfg}, nil
}

// Apply takes a change in and returns what it changes of the mesh, at a cost of
// what depends on it.
func (t *Translator) Apply(c kube.Change) Result { return Result{} }

// Rejected notes that a node refused a resource, for the reason in text, and
// returns the statuses that say so. Empty text takes it back; so does the next
// version of the resource.
func (t *Translator) Rejected(ref mesh.Ref, text string) Result { return Result{} }
