package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCurrent wants the committed schemas to be those of the Gateway API module
// that go.mod names.
func TestCurrent(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := generate(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	committed, err := filepath.Glob("../crds/*.json")
	if err != nil || len(committed) != len(files) {
		t.Errorf("%d files are committed, the module makes %d: run go generate ./kube/validate (%v)", len(committed), len(files), err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("../crds", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the module says: run go generate ./kube/validate", name)
		}
	}
}
