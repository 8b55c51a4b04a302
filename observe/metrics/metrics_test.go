package metrics_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/metrics"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// scrape serves reg as a process does and returns the lines that name metrics of
// Sluice.
func scrape(t *testing.T, reg *prometheus.Registry) map[string]string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- metrics.Serve(ctx, l, reg, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	answer, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", answer.Status, err)
	}
	out := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && strings.HasPrefix(name, "sluice_") {
			out[name] = value
		}
	}
	return out
}

func TestCounts(t *testing.T) {
	reg := prometheus.NewRegistry()
	flows, err := metrics.NewFlows(reg)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ring.New(16)
	if err != nil {
		t.Fatal(err)
	}
	if err := metrics.RegisterRing(reg, r); err != nil {
		t.Fatal(err)
	}
	if err := metrics.RegisterBuild(reg, "agent", "v1", "abc", "go1"); err != nil {
		t.Fatal(err)
	}
	sink := metrics.Sink{Ring: r, Flows: flows}
	ok := &flow.Flow{Type: flow.TypeHTTP, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolTCP}
	refused := &flow.Flow{Type: flow.TypeSocket, Verdict: flow.VerdictDropped, Reason: flow.ReasonNoEndpoint, Protocol: mesh.ProtocolUDP}
	sink.Add(ok, ok, refused)
	sink.Add(&flow.Flow{Type: flow.TypeHTTP, Verdict: flow.VerdictError, Reason: flow.ReasonConnectFailed, Protocol: 132})
	sink.Add(&flow.Flow{Type: flow.TypeDNS, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolUDP, DNS: &flow.DNS{RCode: "NXDOMAIN"}})
	sink.Add(&flow.Flow{Type: flow.TypeDNS, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolUDP, DNS: &flow.DNS{RCode: "made-up-by-a-stranger"}})
	sink.Add(&flow.Flow{Type: flow.TypeLost, Lost: 5, LostSource: "kernel"}, &flow.Flow{Type: flow.TypeLost, Lost: 2, LostSource: "made-up"})
	reader := r.NewReader(ring.Query{Follow: true})
	defer reader.Close()

	got := scrape(t, reg)
	for name, want := range map[string]string{
		`sluice_flows_total{reason="",type="http",verdict="forwarded"}`:                    "2",
		`sluice_flows_total{reason="no-endpoint",type="socket",verdict="dropped"}`:         "1",
		`sluice_flows_total{reason="connect-failed",type="http",verdict="error"}`:          "1",
		`sluice_flows_total{reason="",type="dns",verdict="forwarded"}`:                     "2",
		`sluice_drops_total{protocol="udp",reason="no-endpoint"}`:                          "1",
		`sluice_drops_total{protocol="other",reason="connect-failed"}`:                     "1",
		`sluice_dns_answers_total{rcode="NXDOMAIN"}`:                                       "1",
		`sluice_dns_answers_total{rcode="other"}`:                                          "1",
		`sluice_flows_lost_total{source="kernel"}`:                                         "5",
		`sluice_flows_lost_total{source="proxy"}`:                                          "0",
		`sluice_flows_lost_total{source="ring"}`:                                           "0",
		`sluice_flows_lost_total{source="other"}`:                                          "2",
		`sluice_flow_ring_size`:                                                            "16",
		`sluice_flow_ring_followers`:                                                       "1",
		`sluice_flow_ring_overwritten_total`:                                               "0",
		`sluice_build_info{component="agent",goversion="go1",revision="abc",version="v1"}`: "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
		delete(got, name)
	}
	for name, value := range got {
		t.Errorf("unexpected %s %s", name, value)
	}
	if s := r.Stats(); s.Added != 8 || s.Lost != 7 || s.LostByKernel != 5 || s.LostByProxy != 0 {
		t.Errorf("the ring has %+v", s)
	}
	if _, err := metrics.NewFlows(reg); err == nil {
		t.Error("the same metrics were registered twice")
	}
}

// TestBounded: numbers that no version knows cannot make more and more series or
// fill the memory.
func TestBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	flows, err := metrics.NewFlows(reg)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		flows.Count(&flow.Flow{Type: flow.TypeHTTP, Verdict: flow.VerdictDropped, Reason: flow.Reason(1000 + i), Protocol: mesh.Protocol(i)})
	}
	if got := scrape(t, reg); got[`sluice_flows_total{reason="unknown",type="http",verdict="dropped"}`] != "10000" || len(got) > 20 {
		t.Errorf("got %v", got)
	}
}

func TestConcurrent(t *testing.T) {
	reg := prometheus.NewRegistry()
	flows, err := metrics.NewFlows(reg)
	if err != nil {
		t.Fatal(err)
	}
	var counting sync.WaitGroup
	for range 4 {
		counting.Go(func() {
			for reason := range flow.Reasons() {
				flows.Count(&flow.Flow{Type: flow.TypeTCP, Verdict: flow.VerdictForwarded, Reason: reason})
			}
		})
	}
	counting.Wait()
	for name, value := range scrape(t, reg) {
		if strings.HasPrefix(name, "sluice_flows_total") && value != "4" {
			t.Errorf("%s is %s, want 4", name, value)
		}
	}
}

func TestCountDoesNotAllocate(t *testing.T) {
	flows, err := metrics.NewFlows(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	f := &flow.Flow{Type: flow.TypeDNS, Verdict: flow.VerdictError, Reason: flow.ReasonInternal, DNS: &flow.DNS{RCode: "SERVFAIL"}}
	if n := testing.AllocsPerRun(100, func() { flows.Count(f) }); n != 0 {
		t.Errorf("Count allocates %v times", n)
	}
}

func BenchmarkCount(b *testing.B) {
	flows, err := metrics.NewFlows(prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	f := &flow.Flow{Type: flow.TypeHTTP, Verdict: flow.VerdictForwarded}
	b.ReportAllocs()
	for b.Loop() {
		flows.Count(f)
	}
}
