package service

import (
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"
)

// register adds the tables' metrics. Cardinality: one series for each map.
func (t *Table) register(r prometheus.Registerer) error {
	gauge := func(name, help, mapName string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name, Help: help, ConstLabels: prometheus.Labels{"map": mapName},
		}, value)
	}
	collectors := []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_kernel_services_failed",
			Help: "Services that the kernel's tables could not take and that keep their last state.",
		}, func() float64 { return float64(t.failedCount.Load()) }),
	}
	for _, m := range []struct {
		name  string
		count *atomic.Int64
		m     *ebpf.Map
	}{
		{"services", &t.frontendCount, t.maps.Services},
		{"endpoints", &t.endpointCount, t.maps.Endpoints},
		{"members", &t.memberCount, t.maps.Members},
	} {
		capacity := float64(m.m.MaxEntries())
		collectors = append(collectors,
			gauge("sluice_kernel_map_entries", "Entries of a kernel map.", m.name,
				func() float64 { return float64(m.count.Load()) }),
			gauge("sluice_kernel_map_capacity", "Greatest number of entries of a kernel map.", m.name,
				func() float64 { return capacity }))
	}
	for _, c := range collectors {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register the metrics of the service tables: %w", err)
		}
	}
	return nil
}
