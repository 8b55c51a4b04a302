package gateway

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/manifest"
	"github.com/sluice-mesh/sluice/mesh"
)

var update = flag.Bool("update", false, "write the results to testdata/*.out.yaml")

// TestScenarios applies testdata/base.yaml, then each testdata/NAME.in.yaml, and
// compares what the second changed with testdata/NAME.out.yaml. In the mesh of an
// .out.yaml fields with zero values are left out.
func TestScenarios(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			tr := newTestTranslator(t)
			base := load(t, "testdata/base.yaml")
			tr.Apply(kube.Change{Upserts: base, Synced: true})
			got := render(t, tr.Apply(kube.Change{Upserts: load(t, input), Synced: true}))
			golden := strings.TrimSuffix(input, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("differs from %s (see with -update and git diff); got:\n%s", golden, firstDifference(string(got), string(want)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			from := max(0, i-5)
			return fmt.Sprintf("line %d:\n%s\nwant:\n%s", i+1, strings.Join(g[from:min(len(g), i+10)], "\n"), strings.Join(w[min(len(w), from):min(len(w), i+10)], "\n"))
		}
	}
	return "less than wanted"
}

func newTestTranslator(t testing.TB) *Translator {
	t.Helper()
	tr, err := New(Config{
		GatewayPools: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16"), netip.MustParsePrefix("fd97::/112")},
		Node:         "node-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// load reads objects, which must be right, in the order of the file.
func load(t testing.TB, path string) []kube.Object {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, path, string(data))
}

func parse(t testing.TB, path, text string) []kube.Object {
	t.Helper()
	f := manifest.Parse(path, []byte(text))
	for _, p := range f.Problems {
		if !p.Warning {
			t.Fatal(p.Error())
		}
	}
	var out []kube.Object
	for _, o := range f.Objects {
		if o.GetGeneration() == 0 {
			o.SetGeneration(1)
		}
		out = append(out, o.Object)
	}
	return out
}

// render writes a result for people.
func render(t *testing.T, r Result) []byte {
	t.Helper()
	type output struct {
		Mesh     []any    `json:"mesh"`
		Removed  []string `json:"removed,omitempty"`
		Statuses []any    `json:"statuses"`
		Gone     []string `json:"gone,omitempty"`
	}
	var out output
	for _, res := range r.Delta.Upserts {
		out.Mesh = append(out.Mesh, map[string]any{string(res.Kind()) + " " + res.Key(): plainValue(t, res)})
	}
	for _, ref := range r.Delta.Removes {
		out.Removed = append(out.Removed, string(ref.Kind)+" "+ref.Key)
	}
	for _, s := range r.Statuses {
		entry := map[string]any{}
		var lines []string
		switch {
		case s.GatewayClass != nil:
			lines = conditionLines("", s.GatewayClass.Conditions)
			for _, f := range s.GatewayClass.SupportedFeatures {
				lines = append(lines, "supports "+string(f.Name))
			}
		case s.Gateway != nil:
			for _, a := range s.Gateway.Addresses {
				lines = append(lines, "address "+string(*a.Type)+" "+a.Value)
			}
			lines = append(lines, conditionLines("", s.Gateway.Conditions)...)
			for _, l := range s.Gateway.Listeners {
				var kinds []string
				for _, k := range l.SupportedKinds {
					kinds = append(kinds, string(k.Kind))
				}
				lines = append(lines, fmt.Sprintf("listener %s: %d attached, supports [%s]", l.Name, l.AttachedRoutes, strings.Join(kinds, " ")))
				lines = append(lines, conditionLines("listener "+string(l.Name)+": ", l.Conditions)...)
			}
			if n := s.Gateway.AttachedListenerSets; n != nil && *n > 0 {
				lines = append(lines, fmt.Sprintf("%d ListenerSets attached", *n))
			}
		case s.ListenerSet != nil:
			lines = conditionLines("", s.ListenerSet.Conditions)
			for _, l := range s.ListenerSet.Listeners {
				var kinds []string
				for _, k := range l.SupportedKinds {
					kinds = append(kinds, string(k.Kind))
				}
				lines = append(lines, fmt.Sprintf("listener %s: %d attached, supports [%s]", l.Name, l.AttachedRoutes, strings.Join(kinds, " ")))
				lines = append(lines, conditionLines("listener "+string(l.Name)+": ", l.Conditions)...)
			}
		case s.Route != nil:
			for _, p := range s.Route.Parents {
				ref := fmt.Sprintf("parent %s %s", *p.ParentRef.Kind, p.ParentRef.Name)
				if p.ParentRef.SectionName != nil {
					ref += "/" + string(*p.ParentRef.SectionName)
				}
				if p.ParentRef.Port != nil {
					ref += fmt.Sprintf(":%d", *p.ParentRef.Port)
				}
				lines = append(lines, conditionLines(ref+": ", p.Conditions)...)
			}
		case s.Policy != nil:
			for _, a := range s.Policy.Ancestors {
				ref := fmt.Sprintf("ancestor %s %s/%s", *a.AncestorRef.Kind, *a.AncestorRef.Namespace, a.AncestorRef.Name)
				if a.AncestorRef.SectionName != nil {
					ref += "/" + string(*a.AncestorRef.SectionName)
				}
				lines = append(lines, conditionLines(ref+": ", a.Conditions)...)
			}
		default:
			lines = conditionLines("", s.Conditions)
		}
		entry[s.Key.String()] = lines
		out.Statuses = append(out.Statuses, entry)
	}
	for _, key := range r.Gone {
		out.Gone = append(out.Gone, key.String())
	}
	text, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func conditionLines(prefix string, conditions []metav1.Condition) []string {
	var lines []string
	for _, c := range conditions {
		if c.ObservedGeneration == 0 {
			lines = append(lines, "NO GENERATION")
		}
		lines = append(lines, fmt.Sprintf("%s%s=%s %s: %s", prefix, c.Type, c.Status, c.Reason, c.Message))
	}
	return lines
}

// plainValue is a resource as maps without zero values.
func plainValue(t *testing.T, r mesh.Resource) any {
	t.Helper()
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	v = prune(v)
	if m, ok := v.(map[string]any); ok && r.Kind() == mesh.KindCertificate {
		m["ChainPEM"] = "…"
	}
	return v
}

func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e = prune(e); e == nil {
				delete(v, k)
			} else {
				v[k] = e
			}
		}
		if len(v) == 0 {
			return nil
		}
	case []any:
		if len(v) == 0 {
			return nil
		}
		return slices.Collect(func(yield func(any) bool) {
			for _, e := range v {
				if e = prune(e); e == nil {
					e = map[string]any{}
				}
				if !yield(e) {
					return
				}
			}
		})
	case string:
		if v == "" {
			return nil
		}
	case float64:
		if v == 0 {
			return nil
		}
	case bool:
		if !v {
			return nil
		}
	}
	return v
}
