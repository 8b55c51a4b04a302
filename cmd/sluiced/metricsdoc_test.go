package main

import (
	"bytes"
	"os"
	"testing"
)

// TestMetricsReference keeps the page of all metrics true: each with its type, labels,
// meaning and bound.
func TestMetricsReference(t *testing.T) {
	want, err := metricsPage()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/reference/metrics.md is out of date; run: go generate ./cmd/sluiced")
	}
	if bytes.Contains(want, []byte("| unknown |")) {
		t.Errorf("a metric has no type:\n%s", want)
	}
}
