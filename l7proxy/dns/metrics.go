package dns

import "github.com/prometheus/client_golang/prometheus"

// metrics of the server. Answers are counted from their flows.
type metrics struct {
	waiting prometheus.Gauge
	asked   *prometheus.CounterVec // by upstream and result
	limited prometheus.Counter
	invalid prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_dns_forwards", Help: "DNS queries that wait for an upstream resolver.",
		}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_dns_upstream_queries_total",
			Help: "DNS queries to upstream resolvers by what came of them: answered, refused, timeout or failed.",
		}, []string{"upstream", "result"}),
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_dns_limited_total", Help: "DNS queries and connections that were refused because of a limit.",
		}),
		invalid: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_dns_invalid_total", Help: "DNS messages of workloads that broke the protocol.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.waiting, m.asked, m.limited, m.invalid)
	}
	return m
}
