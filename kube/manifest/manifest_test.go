package manifest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

var update = flag.Bool("update", false, "write the results to testdata/*.out.txt")

// TestFiles parses testdata/NAME.in.yaml (or .json) and compares the objects and
// problems with testdata/NAME.out.txt.
func TestFiles(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.*")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no files", err)
	}
	for _, input := range inputs {
		name, _, _ := strings.Cut(filepath.Base(input), ".in.")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			f := Parse(filepath.Base(input), data)
			var b strings.Builder
			for _, o := range f.Objects {
				fmt.Fprintf(&b, "object %s (document %d, line %d)\n", kube.KeyOf(o.Object), o.Document, o.Line)
			}
			for _, key := range f.Broken {
				fmt.Fprintf(&b, "broken %s\n", key)
			}
			if f.BrokenUnknown {
				fmt.Fprintf(&b, "broken: unknown objects\n")
			}
			for _, p := range f.Problems {
				severity := "error"
				if p.Warning {
					severity = "warning"
				}
				fmt.Fprintf(&b, "%s %s\n", severity, p.Error())
			}
			golden := filepath.Join("testdata", name+".out.txt")
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	f := Parse("defaults.yaml", []byte(`
apiVersion: gateway.networking.k8s.io/v1beta1
kind: HTTPRoute
metadata: {name: reviews}
spec:
  parentRefs: [{name: web}]
  rules: [{backendRefs: [{name: reviews, port: 80}], matches: [{headers: [{name: a, value: b}]}], retry: {}}, {}]
status: {parents: []}
---
apiVersion: v1
kind: Service
metadata: {name: reviews, managedFields: [{manager: kubectl}]}
spec: {clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 80}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, namespace: ignored}
---
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {a: b}
`))
	if len(f.Problems) > 0 {
		t.Fatal(f.Problems)
	}
	route := f.Objects[0].Object.(*gatewayv1.HTTPRoute)
	if route.Namespace != "default" {
		t.Errorf("namespace %q", route.Namespace)
	}
	r := route.Spec.Rules[0]
	if *route.Spec.ParentRefs[0].Kind != "Gateway" || *r.BackendRefs[0].Weight != 1 || *r.BackendRefs[0].Kind != "Service" ||
		*r.Matches[0].Path.Value != "/" || *r.Matches[0].Path.Type != gatewayv1.PathMatchPathPrefix ||
		*r.Matches[0].Headers[0].Type != gatewayv1.HeaderMatchExact || *r.Retry.Attempts != 1 {
		t.Errorf("rule %+v", r)
	}
	if *route.Spec.Rules[1].Matches[0].Path.Value != "/" {
		t.Error("a rule without match does not match all")
	}
	svc := f.Objects[1].Object.(*corev1.Service)
	if svc.Spec.Type != corev1.ServiceTypeClusterIP || svc.Spec.Ports[0].Protocol != corev1.ProtocolTCP || svc.Spec.Ports[0].TargetPort.IntVal != 80 ||
		svc.Spec.ClusterIPs[0] != "10.96.0.1" || *svc.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds != 10800 || svc.ManagedFields != nil {
		t.Errorf("service %+v", svc.Spec)
	}
	if ns := f.Objects[2].Object.(*corev1.Namespace); ns.Labels[corev1.LabelMetadataName] != "shop" || ns.Namespace != "" {
		t.Errorf("namespace %+v", ns)
	}
	if s := f.Objects[3].Object.(*corev1.Secret); string(s.Data["a"]) != "b" || s.Type != corev1.SecretTypeOpaque {
		t.Errorf("secret %+v", s)
	}
}

// FuzzParse wants any bytes to give objects or problems, and each object once.
func FuzzParse(f *testing.F) {
	inputs, err := filepath.Glob("testdata/*.in.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, input := range inputs {
		data, err := os.ReadFile(input)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("{\"kind\":\"List\",\"apiVersion\":\"v1\",\"items\":[null,1,{}]}"))
	f.Add([]byte("apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [null]\n"))
	f.Add([]byte("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a}\nspec: {parentRefs: [null], rules: [null, {matches: [null], filters: [null], backendRefs: [null]}]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		file := Parse("f.yaml", data)
		seen := map[kube.Key]bool{}
		for _, o := range file.Objects {
			key := kube.KeyOf(o.Object)
			if seen[key] || key.Name == "" || key.Kind.Namespaced() != (key.Namespace != "") {
				t.Errorf("%s", key)
			}
			seen[key] = true
		}
		for _, p := range file.Problems {
			if p.File != "f.yaml" || p.Text == "" || p.Document == 0 || p.Line == 0 {
				t.Errorf("%+v", p)
			}
		}
		if len(file.Objects) == 0 && len(file.Problems) == 0 && len(strings.TrimSpace(string(data))) > 0 && data[0] >= 'a' && data[0] <= 'z' && !strings.Contains(string(data), "items") {
			t.Errorf("neither object nor problem")
		}
	})
}

// TestKinds wants every kind of the set to be read, under the version that it says.
func TestKinds(t *testing.T) {
	for _, kind := range kube.Kinds {
		o, ok := newObject(kind.APIVersion(), string(kind))
		if !ok {
			t.Errorf("%s is not read", kind)
			continue
		}
		o.SetName("x")
		if got := kube.KeyOf(o).Kind; got != kind {
			t.Errorf("%s is read as %s", kind, got)
		}
		if !SameSpec(o, o.DeepCopyObject().(kube.Object)) {
			t.Errorf("%s differs from its copy", kind)
		}
	}
}
