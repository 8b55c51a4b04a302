package client

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connected prometheus.Gauge
	warming   prometheus.Gauge
	resources *prometheus.GaugeVec
	responses *prometheus.CounterVec
	rejected  *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_xds_client_connected", Help: "Whether the control plane answers.",
		}),
		warming: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_xds_client_warming", Help: "Resources with a new version that waits for what it refers to.",
		}),
		resources: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_xds_client_resources", Help: "Resources held.",
		}, []string{"kind"}),
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_xds_client_responses_total", Help: "Responses received.",
		}, []string{"kind"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_xds_client_rejected_total", Help: "Resources refused.",
		}, []string{"kind"}),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.connected, m.warming, m.resources, m.responses, m.rejected} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

func (m *metrics) observe(v *view) {
	m.warming.Set(float64(v.warming))
	for kind, k := range v.kinds {
		m.resources.WithLabelValues(string(kind)).Set(float64(k.resources.Len()))
	}
}
