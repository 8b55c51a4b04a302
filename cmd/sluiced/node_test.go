package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/gateway"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/manifest"
	"github.com/sluice-mesh/sluice/kube/status"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/server"
)

// controlPlane is a node's control plane without the rest of a node.
func controlPlane(t *testing.T) (n *node, statuses string) {
	t.Helper()
	statuses = filepath.Join(t.TempDir(), "status")
	s := defaultSettings()
	n = &node{
		s: &s, logger: slog.New(slog.DiscardHandler),
		objects: map[kube.Key]kube.Object{}, statuses: map[kube.Key]kube.Status{}, files: map[string]kube.File{}, refusals: map[mesh.Ref]bool{},
	}
	var err error
	if n.translator, err = gateway.New(gateway.Config{GatewayPools: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/24")}}); err != nil {
		t.Fatal(err)
	}
	if n.writer, err = status.New(statuses, gateway.DefaultController); err != nil {
		t.Fatal(err)
	}
	if n.server, err = server.New(server.Config{Logger: n.logger, Registerer: prometheus.NewRegistry()}); err != nil {
		t.Fatal(err)
	}
	return n, statuses
}

func objects(t *testing.T, text string) (out []kube.Object) {
	t.Helper()
	f := manifest.Parse("test", []byte(text))
	if len(f.Problems) > 0 {
		t.Fatal(f.Problems)
	}
	for _, o := range f.Objects {
		o.SetGeneration(1)
		out = append(out, o.Object)
	}
	return out
}

const withListenerSet = `
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: sluice}
spec: {controllerName: sluice.dev/gateway-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: web, namespace: shop}
spec:
  gatewayClassName: sluice
  allowedListeners: {namespaces: {from: Same}}
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: more, namespace: shop}
spec: {parentRef: {name: web}, listeners: [{name: alt, port: 8080, protocol: HTTP, hostname: a.example}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: {name: refused, namespace: other}
spec: {parentRef: {name: web, namespace: shop}, listeners: [{name: alt, port: 8081, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{kind: ListenerSet, name: more}], hostnames: [a.example]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: t, namespace: shop}
spec: {parentRefs: [{name: web}], rules: [{backendRefs: [{name: x, port: 80}]}]}
`

// TestAnswersOfObjects: what a person sees of Gateways, ListenerSets and routes is what
// their statuses say.
func TestAnswersOfObjects(t *testing.T) {
	n, _ := controlPlane(t)
	n.changed(kube.Change{Upserts: objects(t, withListenerSet), Synced: true})

	reason := func(conditions []admin.Condition, typ string) string {
		for _, c := range conditions {
			if c.Type == typ {
				return c.Reason
			}
		}
		return "none"
	}
	var lines []string
	for _, g := range n.Gateways() {
		for _, l := range g.Listeners {
			lines = append(lines, fmt.Sprintf("%s %s %d %d %s", g.Name, l.Name, l.Port, l.AttachedRoutes, reason(l.Conditions, "Programmed")))
		}
		for _, s := range g.ListenerSets {
			lines = append(lines, fmt.Sprintf("%s %s", s.Name, reason(s.Conditions, "Accepted")))
			for _, l := range s.Listeners {
				lines = append(lines, fmt.Sprintf("%s %s %d %d %s %s", s.Name, l.Name, l.Port, l.AttachedRoutes, l.Hostname, reason(l.Conditions, "Programmed")))
			}
		}
	}
	for _, r := range n.Routes() {
		for _, p := range r.Parents {
			lines = append(lines, fmt.Sprintf("%s %s %s %d %v %s", r.Kind, r.Name, p.Ref, r.Rules, r.Hostnames, reason(p.Conditions, "Accepted")))
		}
	}
	want := `shop/web http 80 0 Programmed
other/refused NotAllowed
other/refused alt 8081 0  none
shop/more Accepted
shop/more alt 8080 1 a.example Programmed
HTTPRoute shop/r ListenerSet/shop/more 1 [a.example] Accepted
TCPRoute shop/t Gateway/shop/web 1 [] NotAllowedByListeners`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestStatusFolder: each object with a status has a file of its own, which goes with
// it, and a change touches no other.
func TestStatusFolder(t *testing.T) {
	n, dir := controlPlane(t)
	all := objects(t, withListenerSet)
	n.changed(kube.Change{Upserts: all, Synced: true})
	list := func() map[string]os.FileInfo {
		found := map[string]os.FileInfo{}
		err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
			if err == nil && !info.IsDir() {
				rel, _ := filepath.Rel(dir, path)
				found[rel] = info
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	before := list()
	for _, path := range []string{
		"GatewayClass/sluice.yaml", "Gateway/shop/web.yaml", "ListenerSet/shop/more.yaml", "ListenerSet/other/refused.yaml",
		"HTTPRoute/shop/r.yaml", "TCPRoute/shop/t.yaml",
	} {
		if before[path] == nil {
			t.Errorf("there is no %s", path)
		}
	}
	n.changed(kube.Change{Deletes: []kube.Key{{Kind: kube.KindTCPRoute, Namespace: "shop", Name: "t"}}, Synced: true})
	after := list()
	if after["TCPRoute/shop/t.yaml"] != nil {
		t.Error("the status of a gone object stays")
	}
	for path, info := range after {
		// A file that is written is another one: it is put in the place of the old.
		if !os.SameFile(info, before[path]) {
			t.Errorf("%s was written without need", path)
		}
	}
	if len(after) != len(before)-1 {
		t.Errorf("%d files, want %d", len(after), len(before)-1)
	}
}
