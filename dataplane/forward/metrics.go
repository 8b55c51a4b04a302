package forward

import (
	"fmt"
	"log/slog"

	"github.com/cilium/ebpf"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// outcomes are the words for what becomes of packets.
var outcomes = map[bpf.MeshPacketCount]string{
	bpf.MeshPacketCountPACKET_REDIRECTED: "redirected",
	bpf.MeshPacketCountPACKET_STACK:      "stack",
	bpf.MeshPacketCountPACKET_SPOOFED:    flow.ReasonSpoofedSource.String(),
	bpf.MeshPacketCountPACKET_UNEXPECTED: flow.ReasonUnexpectedFrame.String(),
}

// Count is how many packets of workloads had which outcome since the programs' maps
// were made.
type Count struct {
	Redirected uint64 // handed to another workload of this node
	Stack      uint64 // left to the node's network stack
	Spoofed    uint64 // dropped, flow.ReasonSpoofedSource
	Unexpected uint64 // dropped, flow.ReasonUnexpectedFrame
}

// Count reads the counts.
func (t *Table) Count() (Count, error) {
	var c Count
	for what, n := range map[bpf.MeshPacketCount]*uint64{
		bpf.MeshPacketCountPACKET_REDIRECTED: &c.Redirected, bpf.MeshPacketCountPACKET_STACK: &c.Stack,
		bpf.MeshPacketCountPACKET_SPOOFED: &c.Spoofed, bpf.MeshPacketCountPACKET_UNEXPECTED: &c.Unexpected,
	} {
		var err error
		if *n, err = sum(t.maps.Packets, what); err != nil {
			return Count{}, err
		}
	}
	return c, nil
}

func sum(packets *ebpf.Map, what bpf.MeshPacketCount) (uint64, error) {
	var perCPU []uint64
	if err := packets.Lookup(uint32(what), &perCPU); err != nil {
		return 0, fmt.Errorf("read the count of packets: %w", err)
	}
	var n uint64
	for _, c := range perCPU {
		n += c
	}
	return n, nil
}

var packetsDesc = prometheus.NewDesc("sluice_workload_packets_total",
	"Packets that workloads sent out of their namespaces, by what became of them.", []string{"outcome"}, nil)

// collector reads the counts when somebody asks. Cardinality: one series for each outcome.
type collector struct {
	packets *ebpf.Map
	log     *slog.Logger
}

func (c collector) Describe(out chan<- *prometheus.Desc) { out <- packetsDesc }

func (c collector) Collect(out chan<- prometheus.Metric) {
	for what, word := range outcomes {
		n, err := sum(c.packets, what)
		if err != nil {
			c.log.Error("no count of packets", "error", err)
			return
		}
		out <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(n), word)
	}
}
