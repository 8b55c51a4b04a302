// Package sluice_test checks the house rules that a linter cannot say: who may
// import whom, and that every package says what it is.
package sluice_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sluice-mesh/sluice"

// mayImport lists, for each top folder, the folders of this module that it may
// import besides itself, and whether it may import other modules at all. A folder
// that is not listed must not exist.
var mayImport = map[string]struct {
	own      []string
	external bool
}{
	"mesh":      {nil, false},
	"bpf":       {[]string{"observe/flow"}, true},
	"observe":   {[]string{"mesh"}, true},
	"admin":     {[]string{"mesh", "observe"}, true},
	"handoff":   {[]string{"mesh"}, true},
	"dataplane": {[]string{"mesh", "bpf", "observe/flow"}, true},
	"l7proxy":   {[]string{"mesh", "observe/flow"}, true},
	"kube":      {[]string{"mesh"}, true},
	"gateway":   {[]string{"mesh", "kube"}, true},
	"xds":       {[]string{"mesh"}, true},
	"cmd":       {[]string{"mesh", "bpf", "observe", "admin", "handoff", "dataplane", "l7proxy", "kube", "gateway", "xds"}, true},
	"lab":       {nil, true},
	"examples":  {[]string{"lab"}, true},
	"bench":     {[]string{"lab"}, true},
	"mutants":   {nil, true},
}

// forbidden are names that say nothing.
var forbidden = []string{"util", "utils", "common", "helper", "helpers", "types", "constants", "misc"}

type listed struct {
	ImportPath, Name, Doc string
	Imports               []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Imports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if path == "" {
			continue
		}
		top, _, _ := strings.Cut(path, "/")
		rule, ok := mayImport[top]
		if !ok {
			t.Errorf("%s: the layout has no folder %s", path, top)
			continue
		}
		if slices.Contains(forbidden, path[strings.LastIndex(path, "/")+1:]) {
			t.Errorf("%s: a package is named for what it owns", path)
		}
		for _, imported := range p.Imports {
			own, isOwn := strings.CutPrefix(imported, module+"/")
			switch {
			case isOwn && strings.HasPrefix(own, "cmd/"):
				t.Errorf("%s imports %s: nobody imports cmd", path, own)
			case isOwn && path == "l7proxy" && strings.HasPrefix(own, "l7proxy/"):
			case isOwn && top == "l7proxy" && own == "l7proxy":
				t.Errorf("%s imports l7proxy: journeys lie on top", path)
			case isOwn && path == "mesh" && strings.HasPrefix(own, "mesh/"):
				t.Errorf("mesh imports %s: values lie below", own)
			case isOwn:
				if ownTop, _, _ := strings.Cut(own, "/"); ownTop != top && !slices.ContainsFunc(rule.own, func(allowed string) bool {
					return own == allowed || strings.HasPrefix(own, allowed+"/")
				}) {
					t.Errorf("%s imports %s", path, own)
				}
			case !rule.external && strings.Contains(strings.Split(imported, "/")[0], "."):
				t.Errorf("%s imports %s: standard library only", path, imported)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && p.ImportPath != module {
			t.Errorf("%s has no package comment", strings.TrimPrefix(p.ImportPath, module+"/"))
		}
	}
}
