// Package crds has the schemas of the Gateway API's standard channel.
//
// The JSON files are made from config/crd/standard of the module
// sigs.k8s.io/gateway-api (Copyright The Kubernetes Authors, Apache License 2.0),
// changed in that descriptions are left out and that there is one schema for all
// served versions of a kind.
package crds

//go:generate sh -c "go run ../gencrds $(go list -m -f {{.Dir}} sigs.k8s.io/gateway-api) ."

import (
	"embed"
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

//go:embed *.json
var files embed.FS

// Definition is what is kept of a CustomResourceDefinition.
type Definition struct {
	Group      string   `json:"group"`
	Kind       string   `json:"kind"`
	Plural     string   `json:"plural"`
	Namespaced bool     `json:"namespaced"`
	Bundle     string   `json:"bundle"` // version of the Gateway API
	Versions   []string `json:"versions"`
	// Schema is the openAPIV3Schema of each of the versions.
	Schema json.RawMessage `json:"schema"`
}

// Kinds lists the kinds that have a definition, by name.
func Kinds() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(err) // it is embedded
	}
	var kinds []string
	for _, e := range entries {
		kinds = append(kinds, strings.TrimSuffix(e.Name(), path.Ext(e.Name())))
	}
	return kinds
}

// Get returns the definition of a kind, or false.
func Get(kind string) (Definition, bool) {
	text, err := files.ReadFile(kind + ".json")
	if err != nil {
		return Definition{}, false
	}
	var d Definition
	if err := json.Unmarshal(text, &d); err != nil {
		panic(fmt.Sprintf("crds: %s.json: %v", kind, err)) // it is generated
	}
	return d, true
}
