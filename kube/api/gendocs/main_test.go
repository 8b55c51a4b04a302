package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const folder = "../v1alpha1"

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestPageIsCurrent also fails for a field without a test and a test without a field.
func TestPageIsCurrent(t *testing.T) {
	page, err := generate(read(t, filepath.Join(folder, "sluice.dev_backendtrafficpolicies.yaml")), read(t, filepath.Join(folder, "fields.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	if have := read(t, "../../../docs/reference/backend-traffic-policy.md"); !bytes.Equal(have, page) {
		t.Error("docs/reference/backend-traffic-policy.md is out of date: go generate ./kube/api/...")
	}
}

// TestTestsExist looks for each test that the table names.
func TestTestsExist(t *testing.T) {
	var tests map[string][]string
	if err := yaml.UnmarshalStrict(read(t, filepath.Join(folder, "fields.yaml")), &tests); err != nil {
		t.Fatal(err)
	}
	for field, names := range tests {
		for _, name := range names {
			i := strings.LastIndex(name, ".")
			pkg, function := name[:i], name[i+1:]
			function, scenario, _ := strings.Cut(function, "/")
			files, _ := filepath.Glob(filepath.Join("../../..", pkg, "*_test.go"))
			found := false
			for _, f := range files {
				found = found || bytes.Contains(read(t, f), []byte("func "+function+"(t "))
			}
			if !found {
				t.Errorf("%s: there is no test %s", field, name)
			}
			if function == "TestScenarios" {
				read(t, filepath.Join("../../..", pkg, "testdata", scenario+".in.yaml"))
			}
		}
	}
}
