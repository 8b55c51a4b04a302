package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// routeTo is an HTTPRoute for http://plain.../routed, by parent and backend. It makes
// a Service of its own, so that other tests' Services stay as they are.
const routed = `apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: NAME, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: NAME}]
  rules:
    - filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: {set: [{name: x-version, value: VERSION}]}
      backendRefs: [BACKEND]
`

func routedYAML(name, version, backend string) string {
	return strings.NewReplacer("NAME", name, "VERSION", version, "BACKEND", backend).Replace(routed)
}

// version waits for the version of the route in answers, "" if no route acts.
func (n *node) version(t *testing.T, service, version string) {
	t.Helper()
	eventually(t, func() error {
		a, err := n.client.try(call{Do: "http", URL: "http://" + service + "/version"})
		if err != nil {
			return err
		}
		if a.Status != 200 || a.Header.Get("X-Version") != version {
			return fmt.Errorf("%s: status %d (%s), version %q, want %q", service, a.Status, a.Error, a.Header.Get("X-Version"), version)
		}
		return nil
	})
}

// TestRouteFile: added, edited, renamed and deleted.
func TestRouteFile(t *testing.T) {
	own := "{name: edited, port: 80}"
	shared.write(t, "edited.yaml", routedYAML("edited", "one", own))
	shared.version(t, "edited", "one")
	shared.write(t, "edited.yaml", routedYAML("edited", "two", own))
	shared.version(t, "edited", "two")
	// In place, as an editor that keeps the file's inode.
	if err := os.WriteFile(filepath.Join(shared.ConfigDir(), "edited.yaml"), []byte(routedYAML("edited", "three", own)), 0o644); err != nil {
		t.Fatal(err)
	}
	shared.version(t, "edited", "three")
	service, _, _ := strings.Cut(routedYAML("edited", "", own), "---")
	shared.write(t, "edited.yaml", service)
	shared.version(t, "edited", "") // the kernel's again
	if text := shared.sluice(t, "route", "list", "-o", "json"); strings.Contains(text, `"shop/edited"`) {
		t.Errorf("route list still has it:\n%s", text)
	}
	if err := os.Remove(filepath.Join(shared.ConfigDir(), "edited.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if a := shared.client.do(t, call{Do: "lookup", Network: "ip4", Host: "edited"}); a.Error == "" {
			return fmt.Errorf("it still has the address %s", a.Text)
		}
		return nil
	})
}

// TestBrokenFile: it is named, what was good goes on, and its repair is seen.
func TestBrokenFile(t *testing.T) {
	own := "{name: broken, port: 80}"
	good := routedYAML("broken", "good", own)
	shared.write(t, "broken.yaml", good)
	shared.version(t, "broken", "good")
	for name, broken := range map[string]string{
		"no YAML":       strings.Replace(good, "rules:", "rules: {{", 1),
		"a wrong field": strings.Replace(good, "rules:", "rulez:", 1),
		"a wrong value": strings.Replace(good, "port: 80, targetPort", "port: 99999, targetPort", 1),
	} {
		t.Run(name, func(t *testing.T) {
			shared.write(t, "broken.yaml", broken)
			eventually(t, func() error {
				text, err := shared.Sluice(t.Context(), "status")
				if exitCode(err) != 3 || !strings.Contains(text, "broken.yaml") {
					return fmt.Errorf("sluice status ends with status %d:\n%s", exitCode(err), text)
				}
				return nil
			})
			shared.version(t, "broken", "good")
			shared.write(t, "broken.yaml", good)
			eventually(t, func() error { _, err := shared.Sluice(t.Context(), "status"); return err })
			shared.version(t, "broken", "good")
		})
	}
}

// condition waits for a condition of a route at its parent.
func (n *node) condition(t *testing.T, route, kind, status, reason string) {
	t.Helper()
	eventually(t, func() error {
		var list []struct {
			Parents []struct {
				Conditions []struct{ Type, Status, Reason string }
			}
		}
		n.read(t, &list, "route", "list", route)
		for _, r := range list {
			for _, p := range r.Parents {
				for _, c := range p.Conditions {
					if c.Type == kind && c.Status == status && c.Reason == reason {
						return nil
					}
				}
			}
		}
		return fmt.Errorf("%s has not %s=%s %s: %+v", route, kind, status, reason, list)
	})
}

func (n *node) refusal(t *testing.T, url string, status int, reason string) {
	t.Helper()
	eventually(t, func() error {
		a, err := n.client.try(call{Do: "http", URL: url})
		if err != nil {
			return err
		}
		if a.Status != status || a.Header.Get("X-Sluice-Reason") != reason {
			return fmt.Errorf("%s: status %d, reason %q, %s; want %d %s", url, a.Status, a.Header.Get("X-Sluice-Reason"), a.Error, status, reason)
		}
		return nil
	})
}

// TestMissingBackend: 500, and the route says which reference is wrong.
func TestMissingBackend(t *testing.T) {
	shared.write(t, "dangling.yaml", routedYAML("dangling", "one", "{name: nobody, port: 80}"))
	shared.refusal(t, "http://dangling/", 500, "no-backend")
	shared.condition(t, "shop/dangling", "ResolvedRefs", "False", "BackendNotFound")
	shared.condition(t, "shop/dangling", "Accepted", "True", "Accepted")
	if text := shared.sluice(t, "route", "list", "shop/dangling"); !strings.Contains(text, "nobody") {
		t.Errorf("route list does not name the missing service:\n%s", text)
	}
	// It comes to life with its backend.
	shared.write(t, "dangling.yaml", routedYAML("dangling", "two", "{name: web, port: 80}"))
	shared.version(t, "dangling", "two")
	shared.condition(t, "shop/dangling", "ResolvedRefs", "True", "ResolvedRefs")
}

// TestReferenceGrant: a Gateway's route needs the word of another namespace to use
// its services.
func TestReferenceGrant(t *testing.T) {
	remote, err := shared.serve("other", "remote", "app=remote")
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Stop()
	shared.write(t, "granted.yaml", `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: granted, namespace: shop}
spec:
  parentRefs: [{name: edge}]
  rules:
    - matches: [{path: {value: /granted}}]
      backendRefs: [{name: remote, namespace: other, port: 80}]
`)
	get := call{Do: "http", URL: "http://www.example/granted", Resolve: edge4 + ":80"}
	eventually(t, func() error { return answers(shared.outside, get, 500) })
	shared.condition(t, "shop/granted", "ResolvedRefs", "False", "RefNotPermitted")
	shared.write(t, "grant.yaml", `apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: shop, namespace: other}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: "", kind: Service}]
`)
	eventually(t, func() error { return answers(shared.outside, get, 200) })
	shared.condition(t, "shop/granted", "ResolvedRefs", "True", "ResolvedRefs")
	if a := shared.outside.must(t, get); !strings.HasPrefix(a.Text, "remote GET /granted ") {
		t.Errorf("served by %q", a.Text)
	}
	if err := os.Remove(filepath.Join(shared.ConfigDir(), "grant.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { return answers(shared.outside, get, 500) })
	shared.condition(t, "shop/granted", "ResolvedRefs", "False", "RefNotPermitted")
}
