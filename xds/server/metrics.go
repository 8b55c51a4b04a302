package server

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
)

type metrics struct {
	streams     prometheus.Gauge
	resources   *prometheus.GaugeVec
	responses   *prometheus.CounterVec
	pushed      *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	nacks       *prometheus.CounterVec
	unencodable prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	vec := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sluice_xds_server_" + name, Help: help}, []string{"kind"})
	}
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_xds_server_streams", Help: "Connected clients.",
		}),
		resources: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_xds_server_resources", Help: "Published resources.",
		}, []string{"kind"}),
		responses: vec("responses_total", "Responses sent."),
		pushed:    vec("resources_sent_total", "Resources sent in responses."),
		bytes:     vec("sent_bytes_total", "Bytes of names and resources sent."),
		nacks:     vec("rejected_total", "Versions of resources that a client refused."),
		unencodable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_xds_server_unencodable_total", Help: "Resources published that have no encoding; the last version stays.",
		}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.streams, m.resources, m.responses, m.pushed, m.bytes, m.nacks, m.unencodable} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) sent(kind mesh.Kind, resources, bytes int) {
	m.responses.WithLabelValues(string(kind)).Inc()
	m.pushed.WithLabelValues(string(kind)).Add(float64(resources))
	m.bytes.WithLabelValues(string(kind)).Add(float64(bytes))
}
