// Command gencrds writes the schemas of the Gateway API's standard channel, as the
// module sigs.k8s.io/gateway-api has them, into a folder: one JSON file for each
// kind, without the descriptions.
//
//	gencrds MODULE-FOLDER OUTPUT-FOLDER
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"reflect"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("gencrds: ")
	if len(os.Args) != 3 {
		log.Fatal("want the folder of sigs.k8s.io/gateway-api and one to write to")
	}
	files, err := generate(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(os.Args[2], name), text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// generate returns the files by name.
func generate(module string) (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(module, "config/crd/standard/*.yaml"))
	if err != nil || len(paths) == 0 {
		return nil, fmt.Errorf("no definitions in %s: %w", module, err)
	}
	out := map[string][]byte{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
			doc, err := r.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			var crd apiextensionsv1.CustomResourceDefinition
			if err := yaml.Unmarshal(doc, &crd); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			if crd.Kind != "CustomResourceDefinition" {
				continue // the policy that guards upgrades
			}
			text, err := definition(&crd)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			out[crd.Spec.Names.Kind+".json"] = text
		}
	}
	return out, nil
}

// definition makes the file of a kind.
func definition(crd *apiextensionsv1.CustomResourceDefinition) ([]byte, error) {
	d := crds.Definition{
		Group: crd.Spec.Group, Kind: crd.Spec.Names.Kind, Plural: crd.Spec.Names.Plural,
		Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		Bundle:     crd.Annotations["gateway.networking.k8s.io/bundle-version"],
	}
	var schema any
	for _, v := range crd.Spec.Versions {
		raw, err := json.Marshal(v.Schema.OpenAPIV3Schema)
		if err != nil {
			return nil, err
		}
		var s any
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, err
		}
		s = undescribed(s, false)
		switch {
		case !v.Served:
			continue
		case schema == nil:
			schema = s
		case !reflect.DeepEqual(schema, s):
			// One schema is kept for all served versions of a kind.
			return nil, fmt.Errorf("version %s of %s has another schema", v.Name, d.Kind)
		}
		d.Versions = append(d.Versions, v.Name)
	}
	var err error
	if d.Schema, err = json.Marshal(schema); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(d, "", " ")
	return append(text, '\n'), err
}

// undescribed takes the descriptions out of a schema. Of a map of properties the
// keys are names.
func undescribed(v any, names bool) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			if k == "description" && !names {
				continue
			}
			out[k] = undescribed(e, k == "properties" && !names)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = undescribed(e, false)
		}
		return out
	}
	return v
}
