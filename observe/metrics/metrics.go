// Package metrics counts flows for Prometheus and serves what a process counted.
//
// Flows belongs to the agent and is told of every flow as it enters the ring; all
// labels are words of package flow, so that their number is bounded whatever
// clients send. Serve runs until its context ends and fails only with its listener.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// Flows counts flows. Create it with NewFlows.
type Flows struct {
	flows *prometheus.CounterVec
	drops *prometheus.CounterVec
	lost  *prometheus.CounterVec
	dns   *prometheus.CounterVec

	// counters are the handles that were needed so far, by kind; replaced under mu.
	counters atomic.Pointer[map[kind]handles]
	mu       sync.Mutex
}

// kind is what the labels of a flow are made of. There are only so many: each
// field has a word, or is the one value for all that have none.
type kind struct {
	flow     flow.Type
	verdict  flow.Verdict
	reason   flow.Reason
	protocol mesh.Protocol
	rcode    string // a word of rcodes, "other", or empty
}

// kindOf returns the kind of a flow, whose numbers are another process's.
func kindOf(f *flow.Flow) kind {
	k := kind{flow: f.Type, verdict: f.Verdict, reason: f.Reason, protocol: f.Protocol}
	if !k.flow.Known() {
		k.flow = 0
	}
	if !k.verdict.Known() {
		k.verdict = 0
	}
	if !k.reason.Known() {
		k.reason = math.MaxUint16
	}
	if k.protocol != mesh.ProtocolTCP && k.protocol != mesh.ProtocolUDP {
		k.protocol = 0
	}
	if f.DNS != nil {
		k.rcode = "other"
		if rcodes[f.DNS.RCode] {
			k.rcode = f.DNS.RCode
		}
	}
	return k
}

type handles struct {
	flow, drop, dns prometheus.Counter // drop and dns may be nil
}

// NewFlows registers the counters:
//
//	sluice_flows_total{type,verdict,reason}
//	sluice_drops_total{reason,protocol}      refused or failed
//	sluice_flows_lost_total{source}          events that nobody could record
//	sluice_dns_answers_total{rcode}
func NewFlows(r prometheus.Registerer) (*Flows, error) {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	f := &Flows{
		flows: vec("sluice_flows_total", "Flows that were recorded on this node.", "type", "verdict", "reason"),
		drops: vec("sluice_drops_total", "Connections and requests that were refused on purpose or failed.", "reason", "protocol"),
		lost:  vec("sluice_flows_lost_total", "Events that could not be recorded, by where they were lost.", "source"),
		dns:   vec("sluice_dns_answers_total", "Answers to DNS queries of workloads.", "rcode"),
	}
	f.counters.Store(&map[kind]handles{})
	for _, c := range []prometheus.Collector{f.flows, f.drops, f.lost, f.dns} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of flows: %w", err)
		}
	}
	for _, source := range lostSources {
		f.lost.WithLabelValues(source) // a loss that never happened is 0, not absent
	}
	return f, nil
}

// lostSources are the words of flow.Flow.LostSource; another one counts as the last.
var lostSources = []string{flow.LostByKernel, flow.LostByProxy, flow.LostByRing, "other"}

// rcodes are the answers that a resolver gives (RFC 1035 §4.1.1, RFC 2136 §2.2);
// another one counts as "other".
var rcodes = map[string]bool{
	"NOERROR": true, "FORMERR": true, "SERVFAIL": true, "NXDOMAIN": true, "NOTIMP": true, "REFUSED": true,
}

// Count counts flows. Many goroutines may call it; it does not allocate once every
// kind of flow was seen.
func (m *Flows) Count(flows ...*flow.Flow) {
	for _, f := range flows {
		m.count(f)
	}
}

func (m *Flows) count(f *flow.Flow) {
	if f.Type == flow.TypeLost {
		m.countLost(f.LostSource, f.Lost)
		return
	}
	m.countKind(kindOf(f))
}

// CountBatch counts the flows of a batch.
func (m *Flows) CountBatch(b *record.Batch) {
	for i := range b.Len() {
		h := b.Head(i)
		if h.Type == flow.TypeLost {
			m.countLost(flow.LostByProxy, h.Lost)
			continue
		}
		k := kindOf(&flow.Flow{Type: h.Type, Verdict: h.Verdict, Reason: h.Reason, Protocol: h.Protocol})
		k.rcode = h.RCode
		m.countKind(k)
	}
}

func (m *Flows) countLost(source string, lost uint64) {
	switch source {
	case flow.LostByKernel, flow.LostByProxy, flow.LostByRing:
	default:
		source = "other"
	}
	m.lost.WithLabelValues(source).Add(float64(lost))
}

func (m *Flows) countKind(k kind) {
	h, ok := (*m.counters.Load())[k]
	if !ok {
		h = m.resolve(k)
	}
	h.flow.Inc()
	if h.drop != nil {
		h.drop.Inc()
	}
	if h.dns != nil {
		h.dns.Inc()
	}
}

func (m *Flows) resolve(k kind) handles {
	h := handles{flow: m.flows.WithLabelValues(k.flow.String(), k.verdict.String(), k.reason.String())}
	if k.verdict == flow.VerdictDropped || k.verdict == flow.VerdictError {
		h.drop = m.drops.WithLabelValues(k.reason.String(), protocolWord(k.protocol))
	}
	if k.rcode != "" {
		h.dns = m.dns.WithLabelValues(k.rcode)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.counters.Load()
	next := maps.Clone(old)
	next[k] = h
	m.counters.Store(&next)
	return h
}

func protocolWord(p mesh.Protocol) string {
	switch p {
	case mesh.ProtocolTCP:
		return "tcp"
	case mesh.ProtocolUDP:
		return "udp"
	}
	return "other"
}

// Sink adds flows to a ring and counts them. It is what the agent gives to those
// who observe.
type Sink struct {
	Ring  *ring.Ring
	Flows *Flows
}

// Add counts the flows and adds them to the ring.
func (s Sink) Add(flows ...*flow.Flow) {
	s.Flows.Count(flows...)
	s.Ring.Add(flows...)
}

// AddBatch counts the flows of a batch and adds them to the ring.
func (s Sink) AddBatch(b *record.Batch) {
	s.Flows.CountBatch(b)
	s.Ring.AddBatch(b)
}

// RegisterBuild registers sluice_build_info{component,version,revision,goversion},
// which is always 1.
func RegisterBuild(r prometheus.Registerer, component, version, revision, goVersion string) error {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluice_build_info", Help: "The build that runs; always 1.",
		ConstLabels: prometheus.Labels{"component": component, "version": version, "revision": revision, "goversion": goVersion},
	})
	g.Set(1)
	if err := r.Register(g); err != nil {
		return fmt.Errorf("register the build's metric: %w", err)
	}
	return nil
}

// RegisterRing registers what a ring knows of itself:
//
//	sluice_flow_ring_size, sluice_flow_ring_followers
//	sluice_flow_ring_overwritten_total   flows that a reader was too slow for
func RegisterRing(r prometheus.Registerer, flows *ring.Ring) error {
	metrics := []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_flow_ring_size", Help: "Flows that the ring has room for."},
			func() float64 { return float64(flows.Stats().Size) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "sluice_flow_ring_followers", Help: "Readers that wait for new flows."},
			func() float64 { return float64(flows.Stats().Followers) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "sluice_flow_ring_overwritten_total", Help: "Flows that were overwritten before a reader got to them, for each reader."},
			func() float64 { return float64(flows.Stats().Overwritten) }),
	}
	for _, m := range metrics {
		if err := r.Register(m); err != nil {
			return fmt.Errorf("register the metrics of the flow ring: %w", err)
		}
	}
	return nil
}

const (
	// scrapesAtOnce bounds the scrapes in progress; the endpoint is not for root only.
	scrapesAtOnce = 4
	scrapeTimeout = 10 * time.Second
)

// Serve answers GET /metrics with what g gathers, on a listener that it closes,
// until ctx ends; then it returns nil. An error means that the listener failed.
func Serve(ctx context.Context, l net.Listener, g prometheus.Gatherer, logger *slog.Logger) error {
	errorLog := slog.NewLogLogger(logger.Handler(), slog.LevelDebug)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		ErrorLog: errorLog, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapesAtOnce,
		Timeout: scrapeTimeout, EnableOpenMetrics: true,
	}))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "Sluice. Metrics are at /metrics.")
	})
	server := &http.Server{
		Handler: mux, ErrorLog: errorLog, MaxHeaderBytes: 16 << 10,
		ReadTimeout: scrapeTimeout, WriteTimeout: 2 * scrapeTimeout, IdleTimeout: 2 * time.Minute,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	}
	return nil
}
