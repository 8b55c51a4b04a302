package validate

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

// module returns the folder of the Gateway API's module.
func module(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// content decodes one document.
func content(t testing.TB, text string) map[string]any {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestExamples wants the Gateway API's own examples of its standard channel to be
// right, and its examples of mistakes to be found.
func TestExamples(t *testing.T) {
	dir := module(t)
	for _, test := range []struct {
		folder string
		right  bool
		least  int // that many objects
	}{
		{"examples/standard", true, 90},
		{"hack/invalid-examples/standard", false, 30},
	} {
		n := 0
		err := filepath.WalkDir(filepath.Join(dir, test.folder), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || filepath.Ext(path) != ".yaml" {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			var problems []Problem
			for doc := range strings.SplitSeq(string(text), "\n---") {
				c := content(t, doc)
				kind, _ := c["kind"].(string)
				if !Has(kind) {
					continue
				}
				n++
				problems = append(problems, Object(kind, c)...)
			}
			if right := len(problems) == 0; right != test.right {
				t.Errorf("%s: %v", path, problems)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n < test.least {
			t.Errorf("%s: %d objects", test.folder, n)
		}
	}
}

// TestRulesCompile wants every rule of every schema to compile at its place, as the
// validator compiles it.
func TestRulesCompile(t *testing.T) {
	for _, name := range crds.Kinds() {
		rules := 0
		k := kinds[name]()
		forEach(k.schema, "", func(path string, s *structural.Structural) {
			if len(s.XValidations) == 0 {
				return
			}
			s = withoutRules(s, true)
			results, err := cel.Compile(s, model.SchemaDeclType(s, path == ""), celconfig.PerCallLimit,
				environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()), cel.NewExpressionsEnvLoader())
			if err != nil {
				t.Errorf("%s%s: %v", name, path, err)
			}
			for i, r := range results {
				rules++
				if r.Error != nil {
					t.Errorf("%s%s: rule %q: %v", name, path, s.XValidations[i].Rule, r.Error)
				}
			}
		})
		if count := countRules(k.rules); count == 0 && rules > 0 {
			t.Errorf("%s has %d rules and none is checked", name, rules)
		}
	}
}

func forEach(s *structural.Structural, path string, f func(string, *structural.Structural)) {
	if s == nil {
		return
	}
	f(path, s)
	forEach(s.Items, path+"[]", f)
	for name := range s.Properties {
		p := s.Properties[name]
		forEach(&p, path+"."+name, f)
	}
	if s.AdditionalProperties != nil {
		forEach(s.AdditionalProperties.Structural, path+"{}", f)
	}
}

func countRules(n *node) int {
	if n == nil {
		return 0
	}
	c := countRules(n.items) + countRules(n.values)
	if n.rules != nil {
		c++
	}
	for _, p := range n.properties {
		c += countRules(p)
	}
	return c
}

// TestAsOne compares the rules as they are compiled here, place by place, with the
// library's validator of the whole schema.
func TestAsOne(t *testing.T) {
	dir := module(t)
	paths, err := filepath.Glob(filepath.Join(dir, "hack/invalid-examples/standard/*/*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatal("no examples", err)
	}
	whole := map[string]*cel.Validator{}
	found := 0
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "\n---") {
			c := content(t, doc)
			name, _ := c["kind"].(string)
			if !Has(name) {
				continue
			}
			Object(name, c) // for the defaults
			k := kinds[name]()
			if whole[name] == nil {
				whole[name] = cel.NewValidator(k.schema, true, celconfig.PerCallLimit)
			}
			want := map[string]bool{}
			if v := whole[name]; v != nil {
				errs, _ := v.Validate(t.Context(), nil, k.schema, c, nil, celconfig.RuntimeCELCostBudget)
				for _, err := range errs {
					want[fmt.Sprintf("%s: %s", strings.TrimPrefix(err.Field, "<nil>."), err.Detail)] = true
				}
			}
			got := map[string]bool{}
			budget := int64(celconfig.RuntimeCELCostBudget)
			for _, err := range k.rules.check(nil, c, &budget) {
				got[fmt.Sprintf("%s: %s", err.Field, err.Detail)] = true
			}
			found += len(want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %v, want %v", path, got, want)
			}
		}
	}
	if found == 0 {
		t.Error("no rule is broken by any example")
	}
}

func TestDefaults(t *testing.T) {
	c := content(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a}
spec: {parentRefs: [{name: web, port: null}], rules: [{backendRefs: [{name: b, port: 80}]}]}
status: {parents: []}
`)
	if p := Object("HTTPRoute", c); len(p) > 0 {
		t.Fatal(p)
	}
	want := content(t, `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a}
spec:
  parentRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: web}]
  rules:
  - backendRefs: [{group: "", kind: Service, name: b, port: 80, weight: 1}]
    matches: [{path: {type: PathPrefix, value: /}}]
status: {parents: []}
`)
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %v, want %v", c, want)
	}
}

// FuzzObject wants any content to give problems or an object that is right when it
// is looked at again.
func FuzzObject(f *testing.F) {
	f.Add("HTTPRoute", []byte(`{"spec":{"rules":[{"matches":[{"path":{"value":"/a"}}]}]}}`))
	f.Add("Gateway", []byte(`{"spec":{"gatewayClassName":"a","listeners":[{"name":"a","port":80,"protocol":"HTTP"}]}}`))
	f.Add("BackendTLSPolicy", []byte(`{"spec":{"validation":null,"targetRefs":{}}}`))
	f.Fuzz(func(t *testing.T, kind string, text []byte) {
		var c map[string]any
		if !Has(kind) || kjson.UnmarshalCaseSensitivePreserveInts(text, &c) != nil || c == nil {
			return
		}
		if len(Object(kind, c)) == 0 {
			if p := Object(kind, c); len(p) > 0 {
				t.Errorf("wrong at the second look: %v", p)
			}
		}
	})
}

func BenchmarkObject(b *testing.B) {
	text := `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a}
spec: {parentRefs: [{name: web}], hostnames: [a.example], rules: [{backendRefs: [{name: b, port: 80}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}]}]}
`
	for b.Loop() {
		if p := Object("HTTPRoute", content(b, text)); len(p) > 0 {
			b.Fatal(p)
		}
	}
}
