package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

// addressOf finds a workload's IPv4 address in what `sluice workload list` printed.
func addressOf(text, namespace, name string) string {
	var list []struct {
		Name      string
		Addresses []string
		Ready     bool
	}
	if json.Unmarshal([]byte(text), &list) != nil {
		return ""
	}
	for _, w := range list {
		if w.Name == namespace+"/"+name && w.Ready && len(w.Addresses) > 0 {
			return w.Addresses[0]
		}
	}
	return ""
}

// tool returns a runner of one of this program's tools as a workload, which prints
// how many operations it did.
func tool(ctx context.Context, l *lab.Lab, prefix string) func(args ...string) (float64, error) {
	n := 0
	return func(args ...string) (float64, error) {
		self, err := os.Executable()
		if err != nil {
			return 0, err
		}
		n++
		out, err := l.Workload(ctx, "bench", fmt.Sprintf("%s-%d", prefix, n), nil, self, args...).Output()
		if err != nil {
			return 0, fmt.Errorf("%w: %s", err, out.Stderr)
		}
		return strconv.ParseFloat(strings.TrimSpace(out.Stdout), 64)
	}
}

func tcpBackend(ctx context.Context, l *lab.Lab) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return startBackend(ctx, l, "relay", self, "tcp-server", ":9000")
}

func runP6(ctx context.Context, o *options) ([]Row, error) {
	var out []Row
	err := withLab(ctx, map[string]string{"base.yaml": baseYAML}, func(l *lab.Lab) error {
		address, err := tcpBackend(ctx, l)
		if err != nil {
			return err
		}
		haproxy, err := startPeer(ctx, l, "haproxy", address+":9000", true)
		if err != nil {
			return err
		}
		run := tool(ctx, l, "client")
		for _, mode := range []struct {
			id, what, arg, unit string
			scale               float64
			target              float64
		}{
			{"P6 ping-pong", "raw TCP relay, 1 KB ping-pong, 32 connections", "ping-pong", "µs CPU per round trip", 1, 1.3},
			{"P6 bulk", "raw TCP relay, bulk, 4 connections", "bulk", "ms CPU per GB", 1e-3, 1.1},
		} {
			load := func(target string) func(context.Context, time.Duration) (float64, error) {
				return func(_ context.Context, d time.Duration) (float64, error) { return run(mode.arg, target, d.String()) }
			}
			haproxy.run = load(fmt.Sprintf("%s:%d", lab.NodeAddress, haproxyPort))
			contestants := []contestant{
				{name: direct, cgroups: []string{filepath.Join(l.Cgroup(), "workloads", "bench_relay")}, run: load(address + ":9000")},
				{name: ours, cgroups: []string{filepath.Join(l.Cgroup(), "node")}, run: load("relayed:9000")},
				*haproxy,
			}
			samples, err := compete(ctx, o, contestants, mode.scale)
			if err != nil {
				return err
			}
			r := newRow(mode.id, mode.what, mode.unit, samples, contestants)
			r.Target = fmt.Sprintf("≤%.1f× HAProxy", mode.target)
			r.Met = r.Peers["haproxy"].Ratio.Median <= mode.target
			out = append(out, r)
		}
		return nil
	})
	return out, err
}

// manyServices returns n more Services in files of a thousand.
func manyServices(n int) map[string]string {
	files := map[string]string{"base.yaml": baseYAML}
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata: {name: many-%[1]d, namespace: bench}
spec:
  ports: [{name: tcp, port: 9000, targetPort: 9000}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: many-%[1]d, namespace: bench, labels: {kubernetes.io/service-name: many-%[1]d}}
addressType: IPv4
endpoints: [{addresses: ["203.0.113.2"]}]
ports: [{name: tcp, port: 9000}]
---
`, i)
		if (i+1)%1000 == 0 || i == n-1 {
			files[fmt.Sprintf("many-%05d.yaml", i)] = b.String()
			b.Reset()
		}
	}
	return files
}

func runP11(ctx context.Context, o *options) ([]Row, error) {
	var out []Row
	for _, n := range []int{10, 10_000} {
		err := withLab(ctx, manyServices(n), func(l *lab.Lab) error {
			address, err := tcpBackend(ctx, l)
			if err != nil {
				return err
			}
			run := tool(ctx, l, "client")
			// Client and server are both part of what a connect costs.
			load := func(target string) func(context.Context, time.Duration) (float64, error) {
				return func(_ context.Context, d time.Duration) (float64, error) { return run("connect", target, d.String()) }
			}
			all := []string{filepath.Join(l.Cgroup(), "workloads")}
			contestants := []contestant{
				{name: "endpoint", cgroups: all, run: load(address + ":9000")},
				{name: ours, cgroups: all, run: load("plain:9000")},
			}
			samples, err := compete(ctx, o.finer(4), contestants, 1)
			if err != nil {
				return err
			}
			r := newRow(fmt.Sprintf("P11 %d", n), fmt.Sprintf("connect, one byte each way and close to a Service, %d services", n), "µs CPU per connection, client and server", samples, contestants)
			r.Target = "≤1.03× its endpoint"
			r.Met = r.Peers["endpoint"].Ratio.Median <= 1.03
			out = append(out, r)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	// The slope compares ratios, because two runs are not one.
	small, large := out[0].Peers["endpoint"].Ratio, out[1].Peers["endpoint"].Ratio
	slope := Estimate{large.Median / small.Median, large.Low / small.High, large.High / small.Low}
	out = append(out, Row{
		ID: "P11 slope", What: "ratio at 10,000 services over ratio at 10", Unit: "×", Ours: slope,
		Target: "≤1.05", Met: slope.Median <= 1.05, Rounds: min(out[0].Rounds, out[1].Rounds),
	})
	return out, nil
}

func runP15(ctx context.Context, o *options) ([]Row, error) {
	const routes = 3000
	changes := 300
	if o.quick {
		changes = 60
	}
	files := map[string]string{"base.yaml": baseYAML}
	for i := range routes {
		files[routeFile(i)] = routeYAML(i, 0)
	}
	var out []Row
	err := withLab(ctx, files, func(l *lab.Lab) error {
		if _, err := httpBackend(ctx, l); err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		printed, err := l.Command(ctx, lab.Outside, self, "route-changes", l.ConfigDir(), strconv.Itoa(routes), strconv.Itoa(changes), gatewayAddress+":80").Output()
		if err != nil {
			return fmt.Errorf("%w: %s", err, printed.Stderr)
		}
		var seen struct {
			Milliseconds     []float64
			Requests, Failed int
		}
		if err := json.Unmarshal([]byte(printed.Stdout), &seen); err != nil {
			return err
		}
		p50, p99 := quantile(seen.Milliseconds, 0.5), quantile(seen.Milliseconds, 0.99)
		what := fmt.Sprintf("one route of %d changed: file written → first request that sees it", routes)
		note := fmt.Sprintf("%d of %d requests failed meanwhile", seen.Failed, seen.Requests)
		e := estimate(seen.Milliseconds)
		out = append(out,
			Row{ID: "P15 p50", What: what, Unit: "ms", Ours: e, Target: "≤15 ms, no failed request", Met: p50 <= 15 && seen.Failed == 0, Rounds: changes, Note: note},
			Row{ID: "P15 p99", What: what, Unit: "ms", Ours: Estimate{p99, p99, math.Max(p99, quantile(seen.Milliseconds, 1))}, Target: "≤40 ms", Met: p99 <= 40 && seen.Failed == 0, Rounds: changes, Note: note})
		return nil
	})
	return out, err
}

func routeFile(i int) string { return fmt.Sprintf("route-%04d.yaml", i) }

// routeYAML is a route of a host of its own that marks its answers with a version.
func routeYAML(i, version int) string {
	return fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: host-%[1]d, namespace: bench}
spec:
  parentRefs: [{name: edge}]
  hostnames: [host-%[1]d.example]
  rules:
    - filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {set: [{name: x-version, value: "%[2]d"}]}
      backendRefs: [{name: web, port: 80}]
`, i, version)
}
