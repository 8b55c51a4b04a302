package l7proxy

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/l7proxy/route"
)

// journeys bounds arrays that are indexed by SocketType.
const journeys = int(SocketGateway) + 1

// metrics are the counters of the data path. The values of all labels are bounded:
// journeys, classes of status, reasons, and routes and workloads up to
// maxRequestSeries.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	closed   *prometheus.CounterVec

	active      [journeys]prometheus.Gauge
	conns       [journeys]prometheus.Counter
	connsActive [journeys]prometheus.Gauge
	bytesIn     [journeys]prometheus.Counter
	bytesOut    [journeys]prometheus.Counter

	udpFlows  *prometheus.CounterVec
	udpActive prometheus.Gauge

	retries, repeats prometheus.Counter
	// bodyTooLarge and bodiesTooMany count requests that are not tried again.
	bodyTooLarge, bodiesTooMany prometheus.Counter
	mirrors                     *prometheus.CounterVec
	connects, connectFailures   prometheus.Counter

	workers int
	series  *seriesTable
	noRule  *ruleMetrics // of requests that no rule took
}

var classes = [...]string{"none", "1xx", "2xx", "3xx", "4xx", "5xx"}

func class(status int) int {
	if status < 100 || status > 599 {
		return 0
	}
	return status / 100
}

func newMetrics(reg prometheus.Registerer, workers int) (*metrics, error) {
	m := &metrics{
		workers: workers,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_proxy_requests_total",
			Help: "HTTP exchanges that ended, by the route that took them, the workloads that asked and answered, class of the status sent and reason of a refusal or failure (empty: none).",
		}, []string{"journey", "route", "source", "destination", "code_class", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sluice_proxy_request_duration_seconds",
			Help:    "Time from a request's head to its response's end.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"journey", "route"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_proxy_tcp_connections_total",
			Help: "Connections that ended without being spoken HTTP on, relayed or refused, by reason (empty: none).",
		}, []string{"journey", "reason"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_proxy_retries_total",
			Help: "Tries that were repeated because a rule says so.",
		}),
		repeats: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_proxy_repeats_total",
			Help: "Tries that were repeated although no rule says so, because that was safe: the endpoint had not seen the request, or the request is idempotent and its connection died in silence.",
		}),
		udpFlows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_proxy_udp_flows_total",
			Help: "UDP flows of clients with Gateways that ended, and datagrams that were refused one, by reason (empty: none).",
		}, []string{"reason"}),
		udpActive: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_proxy_udp_flows_active", Help: "UDP flows of clients with Gateways.",
		}),
		connects: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_proxy_upstream_connects_total",
			Help: "Attempts to open a pooled connection to an endpoint.",
		}),
		connectFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_proxy_upstream_connect_failures_total",
			Help: "Attempts of those that failed.",
		}),
	}
	forgotten := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_proxy_retry_bodies_dropped_total",
		Help: "Requests of rules with retries whose body was not kept, so that they are tried once: larger than one request may keep (request), or than all together may (node).",
	}, []string{"limit"})
	m.bodyTooLarge, m.bodiesTooMany = forgotten.WithLabelValues("request"), forgotten.WithLabelValues("node")
	m.mirrors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_proxy_mirrors_total",
		Help: "Copies of requests that RequestMirror filters made and that ended, by route and reason of a failure (empty: answered).",
	}, []string{"route", "reason"})
	conns := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_proxy_connections_total", Help: "Connections accepted and not refused at once.",
	}, []string{"journey"})
	connsActive := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_proxy_connections_active", Help: "Downstream connections that are open.",
	}, []string{"journey"})
	active := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "sluice_proxy_requests_active", Help: "HTTP exchanges under way.",
	}, []string{"journey"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_proxy_bytes_total",
		Help: "Bytes of bodies and raw connections that ended, from (in) and to (out) clients.",
	}, []string{"journey", "direction"})
	overflow := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sluice_proxy_series_overflow_total",
		Help: "HTTP exchanges that count under route, source and destination \"other\", because there are too many series.",
	})
	m.series = newSeriesTable(m.requests, m.duration, overflow)
	m.noRule = m.newRuleMetrics("")
	for _, c := range []prometheus.Collector{
		overflow, m.requests, m.duration, m.closed, m.udpFlows, m.udpActive, m.retries, m.repeats, m.connects, m.connectFailures,
		forgotten, m.mirrors,
		conns, connsActive, active, bytes,
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	for t := SocketOutbound; t <= SocketGateway; t++ {
		m.conns[t] = conns.WithLabelValues(t.String())
		m.connsActive[t] = connsActive.WithLabelValues(t.String())
		m.active[t] = active.WithLabelValues(t.String())
		m.bytesIn[t] = bytes.WithLabelValues(t.String(), "in")
		m.bytesOut[t] = bytes.WithLabelValues(t.String(), "out")
	}
	return m, nil
}

// of returns the handles of a rule, nil standing for none.
func (m *metrics) of(r *route.Rule) *ruleMetrics {
	if r != nil {
		if rm, ok := r.Metrics.(*ruleMetrics); ok {
			return rm
		}
	}
	return m.noRule
}
