// Command genreason writes the C enum of the reasons that kernel programs use.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// firstUserReason is the first number that only user space uses.
const firstUserReason = 100

func main() {
	out := flag.String("o", "", "the header to write")
	flag.Parse()
	var numbers []flow.Reason
	texts := flow.Reasons()
	for r := range texts {
		if r < firstUserReason {
			numbers = append(numbers, r)
		}
	}
	slices.Sort(numbers)
	var b bytes.Buffer
	b.WriteString("/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */\n")
	b.WriteString("/* Generated from observe/flow/reason.go by go generate; do not edit. */\n")
	b.WriteString("#pragma once\n\nenum reason {\n\tREASON_NONE = 0,\n")
	for _, r := range numbers {
		fmt.Fprintf(&b, "\tREASON_%s = %d,\n", strings.ToUpper(strings.ReplaceAll(texts[r], "-", "_")), r)
	}
	b.WriteString("};\n")
	if err := os.WriteFile(*out, b.Bytes(), 0o644); err != nil {
		log.Fatalf("write the C header: %v", err)
	}
}
