package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// TestLists holds the lists to the code: every mutant can still be applied, and
// names a test that exists as far as its package and name say.
func TestLists(t *testing.T) {
	all, err := read(".")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, m := range all {
		if _, _, err := m.apply(".."); err != nil {
			t.Error(err)
		}
		if names[m.list+m.Name] {
			t.Errorf("%s: two mutants are called %q", m.list, m.Name)
		}
		names[m.list+m.Name] = true
		if m.Test != "" && !strings.HasPrefix(m.Test, "./") {
			t.Errorf("%s: %q: test starts with a package (./PATH)", m.list, m.Name)
		}
	}
}

func TestVerdict(t *testing.T) {
	fails := exec.Command("false").Run()
	for _, tt := range []struct {
		name, out string
		demo      string
		err       error
		want      string // part of the complaint; empty: killed
	}{
		{name: "test failed", out: "--- FAIL: TestX (0.00s)\nFAIL\n", err: fails},
		{name: "test panicked", out: "panic: boom\n", err: fails},
		{name: "passed", out: "ok  \tx\t0.1s\n", want: "survived"},
		{name: "no such test", out: "ok  \tx\t0.1s [no tests to run]\n", want: "no test has that name"},
		{name: "does not compile", out: "FAIL\tx [build failed]\n", err: fails, want: "does not compile"},
		{name: "died of something else", out: "signal: killed\n", err: fails, want: "without a failure of its own"},
		{name: "could not start", err: errors.New("no go"), want: "no go"},
		{name: "step failed", demo: "Retry", out: "  ✗ Retry: status 503\n", err: fails},
		{name: "other step failed", demo: "Retry", out: "  ✗ Timeout: 200\n  ✓ Retry: fine\n", err: fails, want: "without that step"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := Mutant{Demo: tt.demo}.verdict([]byte(tt.out), tt.err)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
