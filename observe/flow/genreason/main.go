// Command genreason writes what is derived from the reasons: the C enum of those
// that kernel programs use, and the page that explains all of them.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log"
	"os"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// firstUserReason is the first number that only user space uses.
const firstUserReason = 100

func main() {
	header := flag.String("o", "", "the C header to write")
	page := flag.String("doc", "", "the page to write")
	source := flag.String("source", "reason.go", "where the reasons' comments are")
	flag.Parse()
	comments, err := constComments(*source)
	if err != nil {
		log.Fatal(err)
	}
	numbers := slices.Sorted(func(yield func(flow.Reason) bool) {
		for r := range flow.Reasons() {
			if !yield(r) {
				return
			}
		}
	})
	if err := errors.Join(os.WriteFile(*header, cHeader(numbers), 0o644), os.WriteFile(*page, markdown(numbers, comments), 0o644)); err != nil {
		log.Fatal(err)
	}
}

func cHeader(numbers []flow.Reason) []byte {
	var b bytes.Buffer
	b.WriteString("/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */\n")
	b.WriteString("/* Generated from observe/flow/reason.go by go generate; do not edit. */\n")
	b.WriteString("#pragma once\n\nenum reason {\n\tREASON_NONE = 0,\n")
	for _, r := range numbers {
		if r < firstUserReason {
			fmt.Fprintf(&b, "\tREASON_%s = %d,\n", strings.ToUpper(strings.ReplaceAll(r.String(), "-", "_")), r)
		}
	}
	b.WriteString("};\n")
	return b.Bytes()
}

func markdown(numbers []flow.Reason, comments map[string]string) []byte {
	var b bytes.Buffer
	b.WriteString("<!-- Generated from observe/flow/reason.go by go generate; do not edit. -->\n\n# Reasons\n\n")
	b.WriteString("Every refusal and failure has one of these words: in the response header `x-sluice-reason`, in the access log,\nin flows (`sluice observe --reason WORD`) and as the label `reason` of metrics.\n\n")
	b.WriteString("| reason | decided by | meaning |\n|---|---|---|\n")
	for _, r := range numbers {
		who := "node proxy"
		if r < firstUserReason {
			who = "kernel"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r, who, comments[r.String()])
	}
	return b.Bytes()
}

// constComments returns the comment of each reason by its word.
func constComments(path string) (map[string]string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	byNumber := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || spec.Doc == nil {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
			_, text, _ := strings.Cut(strings.Join(strings.Fields(spec.Doc.Text()), " "), ": ")
			byNumber[lit.Value] = text
		}
		return true
	})
	out := map[string]string{}
	for r := range flow.Reasons() {
		text := byNumber[fmt.Sprint(uint16(r))]
		if text == "" {
			return nil, fmt.Errorf("%s: reason %d has no comment", path, r)
		}
		out[r.String()] = text
	}
	return out, nil
}
