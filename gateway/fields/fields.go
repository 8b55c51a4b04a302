// Package fields says of every field of the Gateway API's standard channel
// whether Sluice serves it, and which test shows that.
//
// fields.yaml is kept by hand: for each kind a row for each field, such as
//
//	HTTPRoute:
//	  spec.hostnames: {state: served, tests: [gateway.TestScenarios/gateway-hostname-intersection]}
//	  spec.rules[].name: {state: partly, tests: [l7proxy/route.TestNames], note: not in metrics}
//
// A test is named by its folder, a dot, its function and, after a slash, the
// subtest. `go generate ./gateway/fields` adds rows that are missing as open, takes away
// those whose field is gone, and writes docs/reference/gateway-api.md.
package fields

//go:generate go run ./genfields

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

// State is how far a field is served.
type State string

// The states of fields.
const (
	// Served: it does what the API says.
	Served State = "served"
	// Partly: the note says what is missing.
	Partly State = "partly"
	// Refused: an object that uses it gets a condition or an error that says so.
	Refused State = "refused"
	// Ignored: the note says why it has no effect.
	Ignored State = "ignored"
	// Open: nobody has looked yet.
	Open State = "open"
)

// States lists all states with what they mean, in the order of the reference.
var States = []struct {
	State   State
	Meaning string
}{
	{Served, "does what the API says"},
	{Partly, "does a part of what the API says; the note says what not"},
	{Refused, "is refused with a condition or an error that names it"},
	{Ignored, "has no effect; the note says why"},
	{Open, "has not been looked at"},
}

// Row is what is known of a field.
type Row struct {
	State State    `json:"state"`
	Tests []string `json:"tests,omitempty"`
	Note  string   `json:"note,omitempty"`
}

// Table has the rows by kind and by path of the field.
type Table map[string]map[string]Row

// Parse reads fields.yaml.
func Parse(text []byte) (Table, error) {
	var t Table
	if err := yaml.UnmarshalStrict(text, &t); err != nil {
		return nil, fmt.Errorf("read the table of fields: %w", err)
	}
	return t, nil
}

// Suite is features.yaml: what of the Gateway API's conformance suite is shown by
// tests here.
type Suite struct {
	// Features are all features that a GatewayClass may list; those with tests are listed.
	Features map[string]Shown `json:"features"`
	// Conformance are the suite's tests. One without tests of ours is open.
	Conformance map[string]Shown `json:"conformance"`
}

// Shown names the tests that show something, or says in a note why there are none.
type Shown struct {
	Tests []string `json:"tests,omitempty"`
	Note  string   `json:"note,omitempty"`
}

// ParseSuite reads features.yaml.
func ParseSuite(text []byte) (Suite, error) {
	var s Suite
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		return Suite{}, fmt.Errorf("read the table of features: %w", err)
	}
	return s, nil
}

// Paths lists the paths of all fields of spec and status that a kind has, in the
// order of the alphabet, parents first. "[]" stands for the items of a list, "{}"
// for the values of a map.
func Paths(kind string) ([]string, error) {
	d, ok := crds.Get(kind)
	if !ok {
		return nil, fmt.Errorf("no definition of %s", kind)
	}
	var s schema
	if err := json.Unmarshal(d.Schema, &s); err != nil {
		return nil, fmt.Errorf("definition of %s: %w", kind, err)
	}
	var paths []string
	for _, top := range []string{"spec", "status"} {
		if p := s.Properties[top]; p != nil {
			paths = p.appendPaths(paths, top)
		}
	}
	return paths, nil
}

// schema is as much of an OpenAPI schema as has fields in it.
type schema struct {
	Properties           map[string]*schema `json:"properties"`
	Items                *schema            `json:"items"`
	AdditionalProperties *schema            `json:"additionalProperties"`
}

func (s *schema) appendPaths(paths []string, path string) []string {
	for s.Items != nil {
		s, path = s.Items, path+"[]"
	}
	names := make([]string, 0, len(s.Properties))
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		paths = append(paths, path+"."+name)
		paths = s.Properties[name].appendPaths(paths, path+"."+name)
	}
	if s.AdditionalProperties != nil {
		paths = s.AdditionalProperties.appendPaths(paths, path+"{}")
	}
	return paths
}

// SplitTest takes a test's name apart: folder, function and subtest (or "").
func SplitTest(name string) (folder, function, subtest string, ok bool) {
	// The folder may have slashes too: the function is what follows the dot.
	folder, rest, ok := strings.Cut(name, ".Test")
	if !ok || folder == "" {
		return "", "", "", false
	}
	function, subtest, _ = strings.Cut("Test"+rest, "/")
	return folder, function, subtest, true
}
