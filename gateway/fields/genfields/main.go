// Command genfields brings gateway/fields/fields.yaml into line with the schemas
// and writes the reference of fields from it. It runs in gateway/fields.
package main

import (
	"bytes"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/gateway/fields"
	"github.com/sluice-mesh/sluice/kube/validate/crds"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("genfields: ")
	const table, page = "fields.yaml", "../../docs/reference/gateway-api.md"
	text, err := os.ReadFile(table)
	if err != nil {
		log.Fatal(err)
	}
	t, err := fields.Parse(text)
	if err != nil {
		log.Fatal(err)
	}
	out, err := rows(t, text)
	if err != nil {
		log.Fatal(err)
	}
	if t, err = fields.Parse(out); err != nil {
		log.Fatal(err)
	}
	doc, err := reference(t)
	if err != nil {
		log.Fatal(err)
	}
	const suite, suitePage = "features.yaml", "../../docs/reference/conformance.md"
	if text, err = os.ReadFile(suite); err != nil {
		log.Fatal(err)
	}
	known, err := fields.ParseSuite(text)
	if err != nil {
		log.Fatal(err)
	}
	for path, text := range map[string][]byte{table: out, page: doc, suitePage: conformance(known)} {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// rows writes the table with exactly the fields that there are. Comments before
// the first kind stay.
func rows(t fields.Table, old []byte) ([]byte, error) {
	var b bytes.Buffer
	for line := range bytes.Lines(old) {
		if !bytes.HasPrefix(line, []byte("#")) {
			break
		}
		b.Write(line)
	}
	for _, kind := range crds.Kinds() {
		paths, err := fields.Paths(kind)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\n%s:\n", kind)
		for _, path := range paths {
			row, ok := t[kind][path]
			if !ok {
				row.State = fields.Open
			}
			fmt.Fprintf(&b, "  %s: {state: %s", path, row.State)
			if len(row.Tests) > 0 {
				fmt.Fprintf(&b, ", tests: [%s]", strings.Join(row.Tests, ", "))
			}
			if row.Note != "" {
				fmt.Fprintf(&b, ", note: %q", row.Note)
			}
			fmt.Fprintf(&b, "}\n")
		}
	}
	return b.Bytes(), nil
}

// reference writes the page.
func reference(t fields.Table) ([]byte, error) {
	var b bytes.Buffer
	d, _ := crds.Get("HTTPRoute")
	fmt.Fprintf(&b, `<!-- Generated from gateway/fields/fields.yaml by go generate; do not edit. -->

# Fields of the Gateway API

Every field of the standard channel of Gateway API %s, whether Sluice serves it, and the test that shows it.
A test is named by its folder, function and case: `+"`go test ./gateway -run 'TestScenarios/gateway-https$'`"+`.

| state | a field with it | how many |
|---|---|---|
`, d.Bundle)
	count := map[fields.State]int{}
	for _, rows := range t {
		for _, row := range rows {
			count[row.State]++
		}
	}
	for _, s := range fields.States {
		fmt.Fprintf(&b, "| %s | %s | %d |\n", s.State, s.Meaning, count[s.State])
	}
	for _, kind := range slices.Sorted(maps.Keys(t)) {
		fmt.Fprintf(&b, "\n## %s\n\n| field | state | test |\n|---|---|---|\n", kind)
		paths, err := fields.Paths(kind)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			row := t[kind][path]
			tests := make([]string, len(row.Tests))
			for i, test := range row.Tests {
				tests[i] = "`" + test + "`"
			}
			shown := strings.Join(tests, ", ")
			if row.Note != "" {
				shown = strings.TrimPrefix(shown+"; "+row.Note, "; ")
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", path, row.State, strings.ReplaceAll(shown, "|", `\|`))
		}
	}
	return b.Bytes(), nil
}

// conformance writes the page of features and tests of the suite.
func conformance(s fields.Suite) []byte {
	var b bytes.Buffer
	table := func(rows map[string]fields.Shown, without string) {
		shown := 0
		for _, r := range rows {
			if len(r.Tests) > 0 {
				shown++
			}
		}
		fmt.Fprintf(&b, "%d of %d.\n\n| name | shown by |\n|---|---|\n", shown, len(rows))
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			r := rows[name]
			text := "`" + strings.Join(r.Tests, "`, `") + "`"
			if len(r.Tests) == 0 {
				text = without
			}
			if r.Note != "" {
				text += "; " + r.Note
			}
			fmt.Fprintf(&b, "| %s | %s |\n", name, text)
		}
	}
	d, _ := crds.Get("HTTPRoute")
	fmt.Fprintf(&b, `<!-- Generated from gateway/fields/features.yaml by go generate; do not edit. -->

# Features and conformance tests of the Gateway API

Of Gateway API %s. The suite itself needs a cluster; here stands which test of ours asserts the same as far as it can
be said without one.

## Features that GatewayClass.status.supportedFeatures lists

`, d.Bundle)
	table(s.Features, "not listed")
	fmt.Fprintf(&b, "\n## Tests of the suite\n\n")
	table(s.Conformance, "open")
	return b.Bytes()
}
