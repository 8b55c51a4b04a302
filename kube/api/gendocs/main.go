// Command gendocs writes the reference page of a kind of sluice.dev from its
// definition, whose descriptions are the comments of the Go types, and from a table of
// the tests that show what each field does.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("gendocs: ")
	crd := flag.String("crd", "", "the CustomResourceDefinition")
	tests := flag.String("tests", "", "the tests by field")
	out := flag.String("o", "", "the page to write")
	flag.Parse()
	definition, err := os.ReadFile(*crd)
	if err != nil {
		log.Fatal(err)
	}
	table, err := os.ReadFile(*tests)
	if err != nil {
		log.Fatal(err)
	}
	page, err := generate(definition, table)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(*out, page, 0o644); err != nil {
		log.Fatal(err)
	}
}

// row is a field of the page.
type row struct {
	path, typ, text string
	standard        string // default value
	required        bool
}

// generate returns the page. Each field must have a test, and each test a field.
func generate(definition, table []byte) ([]byte, error) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(definition, &crd); err != nil {
		return nil, err
	}
	var tests map[string][]string
	if err := yaml.UnmarshalStrict(table, &tests); err != nil {
		return nil, err
	}
	version := crd.Spec.Versions[0]
	root := version.Schema.OpenAPIV3Schema
	var rows []row
	walk(&rows, "spec", ptr(root.Properties["spec"]), true)
	var b strings.Builder
	kind := crd.Spec.Names.Kind
	fmt.Fprintf(&b, "# %s\n\n<!-- Made by `go generate ./kube/api/...`. -->\n\n", kind)
	fmt.Fprintf(&b, "`apiVersion: %s/%s`, `kind: %s`\n\n%s\n\n", crd.Spec.Group, version.Name, kind, oneLine(root.Description))
	b.WriteString("| field | type | default | what it does | shown by |\n|---|---|---|---|---|\n")
	for _, r := range rows {
		shown, ok := tests[r.path]
		if !ok || len(shown) == 0 {
			return nil, fmt.Errorf("%s has no test in the table", r.path)
		}
		delete(tests, r.path)
		standard := r.standard
		if r.required {
			standard = "required"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | `%s` |\n", r.path, r.typ, standard, r.text, strings.Join(shown, "`, `"))
	}
	if len(tests) > 0 {
		return nil, fmt.Errorf("there is no field %s", strings.Join(slices.Sorted(maps.Keys(tests)), ", "))
	}
	return []byte(b.String()), nil
}

func ptr[T any](v T) *T { return &v }

func oneLine(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

// walk adds what is below a place of the schema.
func walk(rows *[]row, path string, s *apiextensionsv1.JSONSchemaProps, top bool) {
	if !top {
		*rows = append(*rows, describe(path, s))
	}
	for s.Type == "array" {
		path, s = path+"[]", s.Items.Schema
	}
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[name]
		walk(rows, path+"."+name, &p, false)
		if slices.Contains(s.Required, name) {
			for i := range *rows {
				if (*rows)[i].path == path+"."+name {
					(*rows)[i].required = true
				}
			}
		}
	}
}

func describe(path string, s *apiextensionsv1.JSONSchemaProps) row {
	r := row{path: path, typ: s.Type, text: oneLine(s.Description)}
	switch {
	case len(s.Enum) > 0:
		var values []string
		for _, e := range s.Enum {
			values = append(values, strings.Trim(string(e.Raw), `"`))
		}
		r.typ = strings.Join(values, ", ")
	case s.Type == "integer" && s.Minimum != nil && s.Maximum != nil:
		r.typ = fmt.Sprintf("integer, %g to %.0f", *s.Minimum, *s.Maximum)
	case s.Type == "array":
		r.typ = "list of " + s.Items.Schema.Type + "s"
	}
	if s.Default != nil {
		var v any
		if json.Unmarshal(s.Default.Raw, &v) == nil {
			r.standard = fmt.Sprintf("`%v`", v)
		}
	}
	return r
}
