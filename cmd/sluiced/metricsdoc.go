package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/l7proxy"
	"github.com/sluice-mesh/sluice/l7proxy/accesslog"
	"github.com/sluice-mesh/sluice/l7proxy/dns"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/feed"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/metrics"
	"github.com/sluice-mesh/sluice/observe/ring"
	"github.com/sluice-mesh/sluice/xds/client"
)

//go:generate go run . docs-metrics --out ../../docs/reference/metrics.md

// metric is one row of the reference.
type metric struct {
	name, kind, help string
	labels           []string
}

// catalogue is a Registerer that notes what is registered.
type catalogue struct{ metrics []metric }

var descText = regexp.MustCompile(`^Desc\{fqName: "([^"]*)", help: ("(?:[^"\\]|\\.)*"), (?:unit: "[^"]*", )?constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// Register implements prometheus.Registerer.
func (c *catalogue) Register(m prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 64)
	go func() {
		defer close(descs)
		m.Describe(descs)
	}()
	for d := range descs {
		parts := descText.FindStringSubmatch(d.String())
		if parts == nil {
			return fmt.Errorf("a metric that cannot be described: %s", d)
		}
		row := metric{name: parts[1], kind: kindOf(m)}
		if _, err := fmt.Sscanf(parts[2], "%q", &row.help); err != nil {
			return fmt.Errorf("the help of %s: %w", row.name, err)
		}
		for _, l := range strings.Split(parts[3], ",") {
			if name, _, ok := strings.Cut(l, "="); ok {
				row.labels = append(row.labels, name)
			}
		}
		if parts[4] != "" {
			row.labels = append(row.labels, strings.Split(parts[4], ",")...)
		}
		c.metrics = append(c.metrics, row)
	}
	return nil
}

// MustRegister implements prometheus.Registerer.
func (c *catalogue) MustRegister(all ...prometheus.Collector) {
	for _, m := range all {
		if err := c.Register(m); err != nil {
			panic(err)
		}
	}
}

// Unregister implements prometheus.Registerer.
func (c *catalogue) Unregister(prometheus.Collector) bool { return false }

func kindOf(c prometheus.Collector) string {
	switch c := c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec:
		return "gauge"
	case *prometheus.HistogramVec:
		return "histogram"
	case prometheus.Metric:
		var m dto.Metric
		if err := c.Write(&m); err == nil {
			switch {
			case m.Counter != nil:
				return "counter"
			case m.Gauge != nil:
				return "gauge"
			case m.Histogram != nil:
				return "histogram"
			}
		}
	}
	return "unknown"
}

// proxyMetrics are what the worker registers. Nothing is started.
func proxyMetrics(dir string) ([]metric, error) {
	c := new(catalogue)
	quiet := slog.New(slog.DiscardHandler)
	st := store.New()
	_, err := client.New(client.Config{
		Target: "unix:" + dir, Node: "n", Role: client.RoleProxy, StateDir: dir, Store: st, Validate: validate, Logger: quiet, Registerer: c,
		Initial: map[mesh.Kind][]string{mesh.KindWorkload: {"*"}},
	})
	_, feedErr := feed.NewSender(feed.SenderConfig{
		Dial:       func(context.Context) (net.Conn, error) { return nil, errors.ErrUnsupported },
		QueueBytes: feed.DefaultQueueBytes, PerSecond: feed.DefaultPerSecond, Logger: quiet, Registerer: c,
	})
	_, logErr := accesslog.New(io.Discard, accesslog.Options{Format: accesslog.JSON}, 1<<10, c)
	_, traceErr := trace.New(trace.Config{Endpoint: "http://127.0.0.1:4317", Protocol: trace.GRPC, Logger: quiet, Registerer: c})
	_, dnsErr := dns.New(dns.Config{Store: st, Registerer: c})
	_, proxyErr := l7proxy.New(l7proxy.Config{Loops: 1, Store: st, Routes: route.NewTables(), Logger: quiet, Registerer: c})
	return c.metrics, errors.Join(err, feedErr, logErr, traceErr, dnsErr, proxyErr, registerBuild(c, "proxy"))
}

// agentMetrics are what the agent registers.
func agentMetrics(dir string) ([]metric, error) {
	c := new(catalogue)
	quiet := slog.New(slog.DiscardHandler)
	r, err := ring.New(ring.MinSize)
	if err != nil {
		return nil, err
	}
	flows, err := metrics.NewFlows(c)
	_, clientErr := client.New(client.Config{
		Target: "unix:" + dir, Node: "n", Role: client.RoleAgent, StateDir: dir, Store: store.New(), Logger: quiet, Registerer: c,
		Initial: map[mesh.Kind][]string{mesh.KindWorkload: {"*"}},
	})
	_, feedErr := feed.NewReceiver(feed.ReceiverConfig{
		Sink: metrics.Sink{Ring: r, Flows: flows}, Workload: func(netip.Addr) *mesh.Workload { return nil }, Logger: quiet, Registerer: c,
	})
	// Those of the kernel's tables cannot be made without a kernel; a test of a running
	// node compares them.
	c.metrics = append(c.metrics,
		metric{"sluice_kernel_services_failed", "gauge", "Services that the kernel's tables could not take and that keep their last state.", nil},
		metric{"sluice_kernel_map_entries", "gauge", "Entries of a kernel map.", []string{"map"}},
		metric{"sluice_kernel_map_capacity", "gauge", "Greatest number of entries of a kernel map.", []string{"map"}},
		metric{"sluice_workload_packets_total", "counter", "Packets that workloads sent out of their namespaces, by what became of them.", []string{"outcome"}},
	)
	return c.metrics, errors.Join(err, clientErr, feedErr, metrics.RegisterRing(c, r), registerBuild(c, "agent"))
}

// labelMeaning says what a label's values are, and how many there can be: a number, or
// what decides it.
type labelMeaning struct {
	meaning string
	values  int
	bound   string
}

// labelMeanings has every label of every metric.
func labelMeanings() map[string]labelMeaning {
	return map[string]labelMeaning{
		"journey":     {"how the connection came: outbound, inbound or gateway", 3, ""},
		"route":       {"`Kind/namespace/name` of the route, empty: none took the request; `other`: beyond the bound", 0, "bounded by the metric"},
		"source":      {"workload that asked, empty: unknown or outside the mesh; `other`: beyond the bound", 0, "bounded by the metric"},
		"destination": {"workload that answered, empty: none did, or unknown; `other`: beyond the bound", 0, "bounded by the metric"},
		"code_class":  {"class of the status sent: 1xx to 5xx, or none", 6, ""},
		"reason":      {"[reason](reasons.md) of a refusal or failure, empty: none", 0, "[reasons](reasons.md) and none"},
		"direction":   {"in (from the client) or out", 2, ""},
		"cause":       {"full (too many waited) or failed (nobody took them)", 2, ""},
		"result":      {"what came of it, in a word of the metric's meaning", 4, ""},
		"state":       {"healthy, failed or ejected", 3, ""},
		"limit":       {"the limit that was reached: request or node", 2, ""},
		"cluster":     {"`namespace/service/port` of the backend", 0, "clusters that the node's workloads use"},
		"upstream":    {"address of a name server", 0, "name servers of --dns-upstreams"},
		"kind":        {"kind of mesh resource", 16, ""},
		"type":        {"type of flow", len(flow.Types()) + 1, ""},
		"verdict":     {"verdict of a flow", len(flow.Verdicts()) + 1, ""},
		"protocol":    {"tcp, udp or other", 3, ""},
		"rcode":       {"code of a DNS answer, or other", 7, ""},
		"map":         {"kernel map", 3, ""},
		"outcome":     {"redirected, stack, or a reason of a drop", 4, ""},
		"component":   {"agent or proxy", 1, ""},
		"version":     {"version of the build", 1, ""},
		"revision":    {"commit of the build", 1, ""},
		"goversion":   {"version of Go", 1, ""},
	}
}

// ownBounds are metrics whose number of series has a bound of its own, or a label with
// another meaning.
var ownBounds = map[string]string{
	"sluice_proxy_requests_total":           "10,000 that name a route or a workload, and those of `other`; beyond it sluice_proxy_series_overflow_total counts. Series go with their route and their workloads",
	"sluice_proxy_request_duration_seconds": "1,000 histograms that name a route, and one of `other` for each journey; they go with their route",
	"sluice_flows_lost_total":               "4",
	"sluice_proxy_mirrors_total":            "routes that mirror × [reasons](reasons.md) and none",
}

// seriesBound says how many series a metric can have.
func seriesBound(m metric) (string, error) {
	if own, ok := ownBounds[m.name]; ok {
		return own, nil
	}
	meanings := labelMeanings()
	product := 1
	var others []string
	for _, l := range m.labels {
		meaning, ok := meanings[l]
		switch {
		case !ok:
			return "", fmt.Errorf("the label %s of %s has no meaning in cmd/sluiced/metricsdoc.go: say what its values are and how many", l, m.name)
		case meaning.values > 0:
			product *= meaning.values
		default:
			others = append(others, meaning.bound)
		}
	}
	text := strings.Join(others, " × ")
	if product > 1 || text == "" {
		text = strings.TrimSuffix(fmt.Sprintf("%d × %s", product, text), " × ")
	}
	return text, nil
}

func metricsPage() ([]byte, error) {
	dir, err := os.MkdirTemp("", "sluice-metrics-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var b bytes.Buffer
	b.WriteString("<!-- Generated from cmd/sluiced by go generate; do not edit. -->\n\n# Metrics\n\n")
	b.WriteString("Prometheus metrics, by the process that serves them. Labels have values of a bounded set only; how many series a metric\ncan have at most stands in the last column.\n")
	used := map[string]bool{}
	for _, p := range []struct {
		title string
		list  func(string) ([]metric, error)
	}{
		{"Agent, port 9962 (`--agent-metrics`)", agentMetrics},
		{"Proxy, port 9964 (`--proxy-metrics`)", proxyMetrics},
	} {
		all, err := p.list(dir)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(all, func(a, b metric) int { return cmp.Compare(a.name, b.name) })
		all = slices.CompactFunc(all, func(a, b metric) bool { return a.name == b.name })
		fmt.Fprintf(&b, "\n## %s\n\n| metric | type | labels | meaning | series at most |\n|---|---|---|---|---|\n", p.title)
		for _, m := range all {
			bound, err := seriesBound(m)
			if err != nil {
				return nil, err
			}
			for _, l := range m.labels {
				used[l] = true
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, strings.Join(m.labels, ", "), m.help, bound)
		}
	}
	b.WriteString("\n## Labels\n\n| label | values |\n|---|---|\n")
	meanings := labelMeanings()
	for _, l := range slices.Sorted(maps.Keys(used)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", l, meanings[l].meaning)
	}
	b.WriteString("\n`source` of `sluice_flows_lost_total` is where flows were lost: kernel, proxy, ring or other.\n")
	return b.Bytes(), nil
}

func docsMetricsCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:    "docs-metrics",
		Short:  "Write the reference of all metrics",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			page, err := metricsPage()
			if err != nil {
				return err
			}
			return os.WriteFile(out, page, 0o644)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the file to write")
	return cmd
}
