package manifest

import (
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
)

// TestBackendTrafficPolicy gives each rule of the kind's definition an object that
// breaks it; the problem names object, field and what to do.
func TestBackendTrafficPolicy(t *testing.T) {
	parse := func(spec string) File {
		return Parse("policy.yaml", []byte("apiVersion: sluice.dev/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {name: web, namespace: shop}\nspec: "+spec+"\n"))
	}
	const target = `targetRefs: [{group: "", kind: Service, name: web}]`
	good := parse("{" + target + ", healthCheck: {http: {path: /ready}}, retryBudget: {}}")
	if len(good.Problems) != 0 || len(good.Objects) != 1 {
		t.Fatalf("a good policy: %v", good.Problems)
	}
	spec := good.Objects[0].Object.(*v1alpha1.BackendTrafficPolicy).Spec
	if *spec.PanicThreshold != 50 || *spec.HealthCheck.Interval != "10s" || *spec.HealthCheck.HTTP.MaxStatus != 299 || *spec.RetryBudget.Percent != 20 {
		t.Errorf("defaults: %+v", spec)
	}
	for broken, want := range map[string]string{
		"{}": "spec.targetRefs",
		`{targetRefs: [{group: "", kind: Gateway, name: web}]}`:                                       "targetRefs must be Services",
		`{targetRefs: [{group: apps, kind: Service, name: web}]}`:                                     "targetRefs must be Services",
		`{targetRefs: [{group: "", kind: Service, name: a}, {group: "", kind: Service, name: a}]}`:    "same target twice",
		"{" + target + ", loadBalancer: {type: Fastest}}":                                             "spec.loadBalancer.type",
		"{" + target + ", loadBalancer: {type: RingHash}}":                                            "ringHash is for type RingHash, which needs it",
		"{" + target + ", loadBalancer: {type: Random, leastRequest: {}}}":                            "leastRequest is for type LeastRequest only",
		"{" + target + ", loadBalancer: {type: RingHash, ringHash: {hash: [{header: a, query: b}]}}}": "exactly one of header, cookie, query and sourceAddress",
		"{" + target + ", outlierDetection: {}}":                                                      "at least one of consecutive5xx",
		"{" + target + ", outlierDetection: {consecutive5xx: 0}}":                                     "spec.outlierDetection.consecutive5xx",
		"{" + target + ", healthCheck: {}}":                                                           "exactly one of http, tcp and grpc",
		"{" + target + ", healthCheck: {http: {path: ready}}}":                                        "spec.healthCheck.http.path",
		"{" + target + ", healthCheck: {http: {path: /, minStatus: 300, maxStatus: 200}}}":            "minStatus must not be above maxStatus",
		"{" + target + ", healthCheck: {tcp: {}, interval: soon}}":                                    "spec.healthCheck.interval",
		"{" + target + ", limits: {connections: 0}}":                                                  "spec.limits.connections",
		"{" + target + ", limits: {conections: 1}}":                                                   "conections",
		"{" + target + ", panicThreshold: 101}":                                                       "spec.panicThreshold",
		"{" + target + ", retryBudget: {interval: 2h}}":                                               "interval must be between one second and one hour",
		"{" + target + ", locality: {prefer: SameRack}}":                                              "spec.locality.prefer",
	} {
		f := parse(broken)
		found := false
		for _, p := range f.Problems {
			text := p.Error()
			found = found || strings.Contains(text, want) && strings.Contains(text, "BackendTrafficPolicy shop/web")
		}
		if !found || len(f.Objects) != 0 {
			t.Errorf("%s: want %q, problems %v", broken, want, f.Problems)
		}
	}
}
