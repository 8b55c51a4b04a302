package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// offline runs a command line on a machine without a node.
func offline(t *testing.T, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	in, err := os.Create(filepath.Join(t.TempDir(), "stdin"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.WriteString(stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	a := &app{stdin: in, stdout: &out, stderr: &errs, getenv: func(string) string { return "" }, now: time.Now}
	code = a.execute(t.Context(), append(args, "--run-dir", t.TempDir()))
	return out.String(), errs.String(), code
}

// TestValidate holds what a person sees of files. The name is the golden file's.
func TestValidate(t *testing.T) {
	shop, err := os.ReadFile("testdata/validate/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	routes, err := os.ReadFile("testdata/validate/broken/routes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, args, stdin string
		code              int
	}{
		{"validate", "-f testdata/validate/shop.yaml", "", exitOK},
		{"validate-folder", "-f testdata/validate", "", exitNo},
		{"validate-stdin", "-f -", string(shop) + "---\n" + string(routes), exitNo},
		{"validate-json", "-o json -f testdata/validate/shop.yaml", "", exitOK},
		{"validate-yaml", "-o yaml -f testdata/validate/shop.yaml -f testdata/validate/broken", "", exitNo},
		{"validate-alone", "--alone testdata/validate/broken/routes.yaml", "", exitNo},
		{"validate-nothing", "-f -", "", exitOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, code := offline(t, test.stdin, append([]string{"validate"}, strings.Fields(test.args)...)...)
			if code != test.code || (stderr == "") != (code == exitOK) {
				t.Errorf("exit code %d, want %d; standard error %q", code, test.code, stderr)
			}
			golden(t, test.name, stdout)
		})
	}
}

// TestValidateAlone: what an object refers to is not looked at, itself it is.
func TestValidateAlone(t *testing.T) {
	route := `
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a}
spec: {parentRefs: [{name: elsewhere}], rules: [{backendRefs: [{name: elsewhere, port: 80}]}]}
`
	if _, stderr, code := offline(t, route, "validate", "-f", "-"); code != exitNo {
		t.Errorf("with what it refers to missing: exit code %d %s", code, stderr)
	}
	if _, stderr, code := offline(t, route, "validate", "--alone", "-f", "-"); code != exitOK {
		t.Errorf("alone: exit code %d %s", code, stderr)
	}
	wrong := strings.Replace(route, "name: elsewhere, port: 80", "name: elsewhere", 1)
	if _, _, code := offline(t, wrong, "validate", "--alone", "-f", "-"); code != exitNo {
		t.Errorf("wrong by itself: exit code %d", code)
	}
}

func TestValidateErrors(t *testing.T) {
	for _, test := range []struct {
		args string
		code int
		text string
	}{
		{"", exitUsage, "-f"},
		{"-f testdata/nothing.yaml", exitFailed, "testdata/nothing.yaml"},
		{"-f testdata/validate -o table2", exitUsage, "want one of"},
	} {
		_, stderr, code := offline(t, "", append([]string{"validate"}, strings.Fields(test.args)...)...)
		if code != test.code || !strings.Contains(stderr, test.text) {
			t.Errorf("%q: exit code %d, want %d; %q", test.args, code, test.code, stderr)
		}
	}
}

// TestValidateTwice wants an object that is in two files to be told of.
func TestValidateTwice(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.yaml", "b.yaml"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stdout, _, code := offline(t, "", "validate", "-o", "json", "-f", dir)
	var v validation
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatal(err)
	}
	if code != exitNo || len(v.Problems) != 1 || v.Problems[0].File != filepath.Join(dir, "b.yaml") || !strings.Contains(v.Problems[0].Text, "is also in") {
		t.Errorf("exit code %d, %+v", code, v.Problems)
	}
}
