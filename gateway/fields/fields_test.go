package fields

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/gateway-api/pkg/features"

	"github.com/sluice-mesh/sluice/gateway"
	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

func table(t *testing.T) Table {
	t.Helper()
	text, err := os.ReadFile("fields.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tab, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// TestComplete wants a row for every field of the schemas and none for others,
// each with a known state, and a note where the state alone does not say enough.
func TestComplete(t *testing.T) {
	tab := table(t)
	for _, kind := range crds.Kinds() {
		paths, err := Paths(kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			row, ok := tab[kind][path]
			known := slices.ContainsFunc(States, func(s struct {
				State   State
				Meaning string
			}) bool {
				return s.State == row.State
			})
			switch {
			case !ok:
				t.Errorf("%s %s has no row: run go generate ./gateway/fields, then fill it in", kind, path)
			case !known:
				t.Errorf("%s %s: state %q is not known", kind, path, row.State)
			case (row.State == Served || row.State == Partly || row.State == Refused) && len(row.Tests) == 0:
				t.Errorf("%s %s is %s and no test shows it", kind, path, row.State)
			case (row.State == Partly || row.State == Ignored) && row.Note == "":
				t.Errorf("%s %s is %s and no note says why", kind, path, row.State)
			}
		}
		for path := range tab[kind] {
			if !slices.Contains(paths, path) {
				t.Errorf("%s has no field %s", kind, path)
			}
		}
	}
	for kind := range tab {
		if _, ok := crds.Get(kind); !ok {
			t.Errorf("there is no kind %s", kind)
		}
	}
}

func suite(t *testing.T) Suite {
	t.Helper()
	text, err := os.ReadFile("features.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSuite(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFeatures wants a row for each feature that the Gateway API has, and tests for
// exactly those that a GatewayClass is said to support.
func TestFeatures(t *testing.T) {
	s := suite(t)
	known := map[string]bool{}
	for _, f := range features.AllFeatures.UnsortedList() {
		known[string(f.Name)] = true
		if _, ok := s.Features[string(f.Name)]; !ok {
			t.Errorf("%s has no row in features.yaml", f.Name)
		}
	}
	supported := map[string]bool{}
	for _, name := range gateway.SupportedFeatures {
		supported[string(name)] = true
	}
	for name, row := range s.Features {
		switch {
		case !known[name]:
			t.Errorf("there is no feature %s", name)
		case supported[name] && len(row.Tests) == 0:
			t.Errorf("%s is claimed and no test shows it", name)
		case !supported[name] && len(row.Tests) > 0:
			t.Errorf("%s has tests and is not claimed in gateway/features.go", name)
		}
	}
}

// TestTestsExist wants each test that a row names to be in the tree.
func TestTestsExist(t *testing.T) {
	functions := map[string]map[string]bool{} // by folder
	sources := map[string]string{}
	seen := map[string]bool{}
	rowsOf := table(t)
	for section, rows := range map[string]map[string]Shown{"features": suite(t).Features, "conformance": suite(t).Conformance} {
		rowsOf[section] = map[string]Row{}
		for name, shown := range rows {
			rowsOf[section][name] = Row{Tests: shown.Tests}
		}
	}
	for kind, rows := range rowsOf {
		for path, row := range rows {
			for _, name := range row.Tests {
				if seen[name] {
					continue
				}
				seen[name] = true
				folder, function, subtest, ok := SplitTest(name)
				if !ok {
					t.Errorf("%s %s: %q is not FOLDER.TestFUNCTION", kind, path, name)
					continue
				}
				dir := filepath.Join("../..", folder)
				if functions[folder] == nil {
					functions[folder], sources[folder] = testsOf(t, dir)
				}
				if !functions[folder][function] {
					t.Errorf("%s %s: %s has no test %s", kind, path, folder, function)
					continue
				}
				if subtest != "" && !hasSubtest(dir, sources[folder], subtest) {
					t.Errorf("%s %s: %s has no case %s", kind, path, folder, name)
				}
			}
		}
	}
	if len(seen) == 0 {
		t.Error("no row names a test")
	}
}

// testsOf returns the test functions of a folder, and its test sources as one.
func testsOf(t *testing.T, dir string) (map[string]bool, string) {
	t.Helper()
	out := map[string]bool{}
	var all strings.Builder
	paths, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
		file, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				out[f.Name.Name] = true
			}
		}
	}
	return out, all.String()
}

// hasSubtest reports whether a case is a file of testdata or a text in the
// sources. In a subtest's name spaces are underscores.
func hasSubtest(dir, source, name string) bool {
	for _, suffix := range []string{".in.yaml", ".in.json", ".yaml", ".txtar", ""} {
		if _, err := os.Stat(filepath.Join(dir, "testdata", name+suffix)); err == nil {
			return true
		}
	}
	return strings.Contains(source, `"`+name+`"`) || strings.Contains(source, `"`+strings.ReplaceAll(name, "_", " ")+`"`)
}

func TestSplitTest(t *testing.T) {
	for _, test := range []struct {
		name, folder, function, subtest string
		ok                              bool
	}{
		{"gateway.TestScenarios/gateway-https", "gateway", "TestScenarios", "gateway-https", true},
		{"l7proxy/route.TestMatch", "l7proxy/route", "TestMatch", "", true},
		{"TestScenarios", "", "", "", false},
		{"gateway/TestScenarios", "", "", "", false},
	} {
		folder, function, subtest, ok := SplitTest(test.name)
		if folder != test.folder || function != test.function || subtest != test.subtest || ok != test.ok {
			t.Errorf("%s: %q %q %q %v", test.name, folder, function, subtest, ok)
		}
	}
}
