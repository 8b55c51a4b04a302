package service_test

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
)

// BenchmarkConnect opens and closes connections to a service and to its endpoint in turns, with
// few and with many services in the tables.
func BenchmarkConnect(b *testing.B) {
	m := lab.NewMeshSized(b, func(c *loader.Config) { c.Sizes = loader.DefaultSizes() })
	p, s := m.Enrol(b, "client"), m.Enrol(b, "backend")
	endpoint := at(s.Addr4, 8080)
	s.Drain(b, endpoint)
	m.SetService(b, svc("web", []netip.Addr{vip4}, tcpPort(80, endpoint)))
	app := p.App(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	for _, n := range []int{10, 10000} {
		if err := m.Service.Apply(fill(n)); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			// The least of many short rounds: whatever else runs only adds.
			const chunk = 200
			least := [4]float64{}
			for i := range least {
				least[i] = math.Inf(1)
			}
			for b.Loop() {
				start := programTime(b, m, "connect4")
				direct := app.Connects(unix.AF_INET, endpoint, chunk)
				middle := programTime(b, m, "connect4")
				service := app.Connects(unix.AF_INET, at(vip4, 80), chunk)
				end := programTime(b, m, "connect4")
				for i, ns := range []float64{
					float64(direct) / chunk, float64(service) / chunk, middle.since(start), end.since(middle),
				} {
					least[i] = min(least[i], ns)
				}
			}
			b.ReportMetric(least[0], "direct-ns")
			b.ReportMetric(least[1], "service-ns")
			b.ReportMetric(least[1]/least[0], "ratio")
			b.ReportMetric(least[2], "direct-connect4-ns")
			b.ReportMetric(least[3], "service-connect4-ns")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// run is how long and how often a program ran.
type run struct {
	time  time.Duration
	count uint64
}

// since returns the mean time of the runs after from.
func (r run) since(from run) float64 { return float64(r.time-from.time) / float64(r.count-from.count) }

func programTime(b *testing.B, m *lab.Mesh, name string) run {
	b.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(m.Config().Dir, "links", name), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		b.Fatal(err)
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	stats, err := p.Stats()
	if err != nil {
		b.Fatal(err)
	}
	return run{stats.Runtime, stats.RunCount}
}
