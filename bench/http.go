package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/lab"
)

const baseYAML = `apiVersion: v1
kind: Namespace
metadata: {name: bench}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bench}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: bench}
spec:
  selector: {app: relay}
  ports: [{name: tcp, port: 9000, targetPort: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: relayed, namespace: bench}
spec:
  selector: {app: relay}
  ports: [{name: tcp, port: 9000, targetPort: 9000, appProtocol: tcp}]
---
# Only for it to be steered: bytes that are not HTTP are relayed.
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: relayed, namespace: bench}
spec:
  parentRefs: [{group: "", kind: Service, name: relayed, port: 9000}]
  rules: [{backendRefs: [{name: relayed, port: 9000}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: sluice.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: bench}
spec:
  gatewayClassName: sluice
  addresses: [{type: IPAddress, value: 198.51.100.10}]
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edge, namespace: bench}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: bench}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
`

const gatewayAddress = "198.51.100.10"

// startBackend starts a server as a workload and returns its address.
func startBackend(ctx context.Context, l *lab.Lab, name, program string, args ...string) (string, error) {
	if _, err := l.Workload(ctx, "bench", name, []string{"--label", "app=" + name}, program, args...).Start(); err != nil {
		return "", err
	}
	return workloadAddress(ctx, l, name)
}

// workloadAddress waits until a workload runs and returns its IPv4 address.
func workloadAddress(ctx context.Context, l *lab.Lab, name string) (string, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		text, err := l.Sluice(ctx, "workload", "list", "-o", "json")
		if err == nil {
			if a := addressOf(text, "bench", name); a != "" {
				return a, nil
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return "", fmt.Errorf("workload %s does not run (%w):\n%s", name, err, text)
		}
	}
}

// httpBackend starts nginx with a body of 1,000 bytes.
func httpBackend(ctx context.Context, l *lab.Lab) (string, error) {
	// The server's folder is its own: a workload sees the node's folders empty.
	dir, err := os.MkdirTemp("", "sluice-bench-")
	if err != nil {
		return "", err
	}
	conf := fmt.Sprintf(nginxBackend, dir, strings.Repeat("x", 1000))
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		return "", err
	}
	return startBackend(ctx, l, "web", "/usr/sbin/nginx", "-p", dir, "-c", filepath.Join(dir, "conf"), "-e", filepath.Join(dir, "error.log"))
}

// runHTTP measures HTTP from clients that client starts.
func runHTTP(ctx context.Context, o *options, id, what, target, url string, judge func(Row) bool, client func(*lab.Lab) func(args ...string) (lab.Output, error)) ([]Row, error) {
	var out []Row
	err := withLab(ctx, map[string]string{"base.yaml": baseYAML}, func(l *lab.Lab) error {
		address, err := httpBackend(ctx, l)
		if err != nil {
			return err
		}
		start := client(l)
		load := func(url string) func(context.Context, time.Duration) (float64, error) {
			return func(ctx context.Context, d time.Duration) (float64, error) { return wrk(ctx, d, start, url) }
		}
		web := filepath.Join(l.Cgroup(), "workloads", "bench_web")
		contestants := []contestant{
			{name: direct, cgroups: []string{web}, run: load("http://" + address + ":8080/")},
			{name: ours, cgroups: []string{filepath.Join(l.Cgroup(), "node")}, run: load(url)},
		}
		for name, port := range map[string]int{"nginx": nginxPort, "haproxy": haproxyPort, "ReverseProxy": reversePort} {
			c, err := startPeer(ctx, l, name, address+":8080", false)
			if err != nil {
				return err
			}
			c.run = load(fmt.Sprintf("http://%s:%d/", lab.NodeAddress, port))
			contestants = append(contestants, *c)
		}
		samples, err := compete(ctx, o, contestants, 1)
		if err != nil {
			return err
		}
		r := newRow(id, what, "µs CPU per request", samples, contestants)
		r.Target = target
		r.Met = judge(r)
		out = append(out, r)
		return nil
	})
	return out, err
}

func runP1(ctx context.Context, o *options) ([]Row, error) {
	return runHTTP(ctx, o, "P1", "HTTP/1.1 keep-alive route through the Gateway, 1 KB, 32 connections", "≤1.3× the best of nginx and HAProxy, ≤0.5× ReverseProxy", "http://"+gatewayAddress+"/",
		func(r Row) bool {
			return r.bestRatio("nginx", "haproxy") <= 1.3 && r.Peers["ReverseProxy"].Ratio.Median <= 0.5
		},
		func(l *lab.Lab) func(...string) (lab.Output, error) {
			return func(args ...string) (lab.Output, error) {
				return l.Command(ctx, lab.Outside, "/usr/bin/wrk", args...).Output()
			}
		})
}

func runP2(ctx context.Context, o *options) ([]Row, error) {
	clients := 0
	return runHTTP(ctx, o, "P2", "the same between two workloads of the node, steered", "≤1.3× nginx", "http://web/",
		func(r Row) bool { return r.Peers["nginx"].Ratio.Median <= 1.3 },
		func(l *lab.Lab) func(...string) (lab.Output, error) {
			return func(args ...string) (lab.Output, error) {
				clients++
				return l.Workload(ctx, "bench", fmt.Sprintf("client-%d", clients), nil, "/usr/bin/wrk", args...).Output()
			}
		})
}
