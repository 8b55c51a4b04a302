package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// probedYAML has two Services of one Pod: one of its readiness, one regardless of it.
const probedYAML = `apiVersion: v1
kind: Pod
metadata: {name: NAME, namespace: shop}
spec: {containers: [{name: main, image: x, readinessProbe: {periodSeconds: 1, failureThreshold: 1, PROBE}}]}
---
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: shop}
spec: {selector: {app: NAME}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: any-NAME, namespace: shop}
spec: {selector: {app: NAME}, publishNotReadyAddresses: true, ports: [{name: http, port: 80, targetPort: 8080}]}
`

// TestReadinessProbe has a workload whose probe fails, then passes, then cannot be made.
func TestReadinessProbe(t *testing.T) {
	name := shared.unique("probed")
	probe := func(text string) {
		t.Helper()
		shared.write(t, name+".yaml", strings.NewReplacer("NAME", name, "PROBE", text).Replace(probedYAML))
	}
	probe("httpGet: {path: /web/upgrade, port: 8080}") // 426
	p, err := shared.serve("shop", name, "app="+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	eventually(t, func() error {
		a, err := shared.client.try(call{Do: "http", URL: "http://any-" + name + "/web/seen"})
		if err == nil && !strings.Contains(a.Text, "GET /web/upgrade") {
			err = fmt.Errorf("the workload saw %q %s", a.Text, a.Error)
		}
		return err
	})
	if a := shared.client.do(t, call{Do: "http", URL: "http://" + name + "/"}); a.Error == "" {
		t.Errorf("a workload whose probe fails answers: %d", a.Status)
	}
	probe("httpGet: {path: /, port: 8080}")
	eventually(t, func() error { return shared.answers(call{Do: "http", URL: "http://" + name + "/"}, 200) })
	probe("exec: {command: [/bin/false]}")
	eventually(t, func() error {
		var all strings.Builder
		err := filepath.WalkDir(filepath.Join(shared.Dir(), "state", "status"), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, name) {
				return err
			}
			text, err := os.ReadFile(path)
			all.Write(text)
			return err
		})
		if err == nil && !strings.Contains(all.String(), "UnsupportedProbe") {
			err = fmt.Errorf("statuses:\n%s", all.String())
		}
		return err
	})
}

// TestBackendTrafficPolicy has a policy come and go while its Service is used.
func TestBackendTrafficPolicy(t *testing.T) {
	name := shared.unique("policed")
	shared.write(t, name+".yaml", routedYAML(name, "one", "{name: "+name+", port: 80}"))
	shared.version(t, name, "one")
	cookie := func(want bool) func() error {
		return func() error {
			a, err := shared.client.try(call{Do: "http", URL: "http://" + name + "/"})
			if err == nil && (a.Status != 200 || strings.HasPrefix(a.Header.Get("Set-Cookie"), "backend=") != want) {
				err = fmt.Errorf("status %d, cookie %q %s", a.Status, a.Header.Get("Set-Cookie"), a.Error)
			}
			return err
		}
	}
	policy := name + "-policy.yaml"
	shared.write(t, policy, `apiVersion: sluice.dev/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: `+name+`, namespace: shop}
spec:
  targetRefs: [{group: "", kind: Service, name: `+name+`, sectionName: http}]
  loadBalancer: {type: RingHash, ringHash: {hash: [{cookie: {name: backend, ttl: 1h}}]}}
  healthCheck: {http: {path: /}}
`)
	eventually(t, cookie(true))
	if err := os.Remove(filepath.Join(shared.ConfigDir(), policy)); err != nil {
		t.Fatal(err)
	}
	eventually(t, cookie(false))
}
