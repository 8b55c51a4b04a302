package l7proxy

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/l7proxy/healthcheck"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// backendMetrics count what happens to endpoints. Their labels are bounded by the
// clusters that this node's traffic uses.
type backendMetrics struct {
	checks  *prometheus.CounterVec
	changes *prometheus.CounterVec
}

func newBackendMetrics(reg prometheus.Registerer) (*backendMetrics, error) {
	m := &backendMetrics{
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_proxy_health_checks_total",
			Help: "Health checks of endpoints, by cluster and result (passed, failed).",
		}, []string{"cluster", "result"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_proxy_endpoint_changes_total",
			Help: "Endpoints that became healthy, failed (by their health checks) or ejected (for their answers), by cluster.",
		}, []string{"cluster", "state"}),
	}
	for _, c := range []prometheus.Collector{m.checks, m.changes} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// checkEndpoint is the registry's Checker.
func (p *Proxy) checkEndpoint(ctx context.Context, h *mesh.HealthCheck, cluster string, to netip.AddrPort) error {
	name := cluster
	if parts := strings.Split(cluster, "/"); len(parts) == 3 {
		name = parts[1] + "." + parts[0]
	}
	err := healthcheck.Check(ctx, h, name, to)
	if ctx.Err() != nil {
		return err
	}
	result := "passed"
	if err != nil {
		result = "failed"
	}
	p.backends.checks.WithLabelValues(cluster, result).Inc()
	return err
}

// endpointChanged takes in a change of an endpoint's state.
func (p *Proxy) endpointChanged(e upstream.Event) {
	p.backends.changes.WithLabelValues(e.Cluster, e.State.String()).Inc()
	for _, w := range p.workers {
		w.committed()
	}
	if p.cfg.Flows == nil {
		return
	}
	f := &flow.Flow{
		Time: time.Now(), Node: p.cfg.Node, Type: flow.TypeHealth, Verdict: flow.VerdictForwarded, Detail: e.Why, Protocol: mesh.ProtocolTCP,
		Destination: flow.Peer{AddrPort: e.Endpoint.AddrPort, Workload: e.Endpoint.Workload, Service: e.Service},
	}
	switch e.State {
	case upstream.StateFailed:
		f.Verdict, f.Reason = flow.VerdictError, flow.ReasonHealthCheckFailed
	case upstream.StateEjected:
		f.Verdict, f.Reason = flow.VerdictError, flow.ReasonEjected
	case upstream.StateHealthy, upstream.StateUnchecked:
	}
	p.cfg.Flows(f)
}

// Backend is an endpoint of a cluster, as the admin socket shows it.
type Backend struct {
	Cluster  string         `json:"cluster"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Workload mesh.Name      `json:"workload,omitzero"`
	// State is "healthy", "unchecked", "failed" or "ejected".
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
}

// Backends returns the endpoints of all clusters that traffic of this node has used.
// Any goroutine may call it.
func (p *Proxy) Backends() []Backend {
	var out []Backend
	p.registry.Clusters(func(v upstream.View) {
		out = append(out, Backend{
			Cluster: v.Cluster, Endpoint: v.Endpoint.AddrPort, Workload: v.Endpoint.Workload, State: v.State.String(), Why: v.Why,
		})
	})
	return out
}

// refreshClusters has the loops see at once what a commit says of clusters that they
// use, so that connections to endpoints that left do not wait for the next request.
func (p *Proxy) refreshClusters(d mesh.Delta) {
	var names []string
	for _, r := range d.Upserts {
		if k := r.Kind(); k == mesh.KindCluster || k == mesh.KindClusterEndpoints {
			names = append(names, r.Key())
		}
	}
	if len(names) == 0 {
		return
	}
	for _, w := range p.workers {
		w.loop.Post(func() {
			for _, name := range names {
				if w.set.Get(name) != nil {
					_, _ = w.cluster(name)
				}
			}
		})
	}
}

// answered tells the endpoint's outlier detection of a response. A gRPC response says
// how it went at its end, unless that is here already.
func (x *exchange) answered(h *message.Head) {
	if x.grpc && h.Status == 200 {
		if v, ok := h.Get("grpc-status"); ok {
			x.endpoint.Answered(statusOfGRPC(v))
			x.grpcAnswered = true
		}
		return
	}
	x.grpcAnswered = true
	x.endpoint.Answered(h.Status)
}

// ended does that for a gRPC response with trailers.
func (x *exchange) ended() {
	if !x.grpcAnswered && x.endpoint != nil {
		x.endpoint.Answered(statusOfGRPC(x.grpcOut))
	}
}

// statusOfGRPC is the HTTP status that a gRPC status amounts to for outlier detection
// (google.rpc.Code); no status is a broken answer.
func statusOfGRPC(code []byte) int {
	switch string(code) {
	case "0":
		return 200
	case "2", "13", "15", "": // UNKNOWN, INTERNAL, DATA_LOSS
		return 500
	case "4": // DEADLINE_EXCEEDED
		return 504
	case "14": // UNAVAILABLE
		return 503
	}
	return 400
}

// endpointFailed tells the endpoint's outlier detection of a try that failed.
func (x *exchange) endpointFailed(reason flow.Reason, unsent bool) {
	switch reason {
	case flow.ReasonUpstreamReset:
		if unsent {
			return // a connection of the pool that the endpoint was about to close
		}
	case flow.ReasonConnectFailed:
		if x.detail == upstream.ErrNoSocket.Error() {
			return // not the endpoint's fault
		}
	case flow.ReasonConnectTimeout, flow.ReasonUpstreamProtocol, flow.ReasonBackendTimeout:
	default:
		return
	}
	if x.endpoint != nil {
		x.endpoint.Failed()
	}
}
