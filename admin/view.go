package admin

import (
	"context"

	"github.com/sluice-mesh/sluice/observe/ring"
)

// The views are what the processes implement. Their methods are called by many
// goroutines at a time and return values of the moment, which the caller owns.

// View is what every process shows. The server fills in Name, PID, Started and
// Version of the component.
type View interface {
	Status() Status
	// Config is the configuration that the process runs with; it is shown as JSON.
	// Whatever is secret in it must redact itself, as mesh.PrivateBytes does.
	Config() any
}

// AgentView is what the agent shows besides.
type AgentView interface {
	View
	Workloads() []Workload
	Services() []Service
	// Flows is the ring that GET /flows reads.
	Flows() *ring.Ring
}

// NodeView is what the supervisor and control plane shows besides.
type NodeView interface {
	View
	Routes() []Route
	Gateways() []Gateway
	XDS() []XDSType
}

// ProxyView is what the proxy shows besides.
type ProxyView interface {
	View
	Connections() []Connection
	Backends() []Backend
	// Explain answers ErrNotFound if the request's workload does not exist.
	Explain(ctx context.Context, r ExplainRequest) (*Explanation, error)
	XDS() []XDSType
}
