package kube

import (
	"context"
	"fmt"
	"strings"
)

// Source reports the object set.
type Source interface {
	// Run calls f with each change until ctx ends, then returns nil; or it returns
	// the error for which it cannot go on. f is called by one goroutine, in order,
	// and what happened during a call is gathered into the next. The first call has
	// the whole set and Synced; nothing is to be served before.
	Run(ctx context.Context, f func(Change)) error
}

// Change is what happened to the object set since the change before.
type Change struct {
	// Upserts are objects that are new or different, in no order. No object is in
	// Upserts twice or both in Upserts and Deletes.
	Upserts []Object
	Deletes []Key
	// Files are those whose problems are others than before. A file without
	// problems became right or went away.
	Files []File
	// Synced says that the set is complete with this change. It is true for the
	// first change and all that follow.
	Synced bool
}

// IsEmpty reports whether nothing happened.
func (c Change) IsEmpty() bool {
	return len(c.Upserts) == 0 && len(c.Deletes) == 0 && len(c.Files) == 0
}

// File is a file of a folder with what is wrong in it.
type File struct {
	Path     string
	Problems []Problem
}

// Problem is what is wrong with a document. It is an error unless Warning.
type Problem struct {
	File string
	// Document counts from 1; zero is the file as a whole. Line is the first of the
	// document, or zero.
	Document int
	Line     int
	// Object is what the document describes as far as it could be read.
	Object Key
	// Field is a path such as "spec.rules[0].matches[1].path", or empty.
	Field string
	// Text says what is wrong, Cure what to do about it (may be empty).
	Text string
	Cure string
	// Warning says that nothing was refused.
	Warning bool
}

// Error returns all of the problem in one line:
// "shop.yaml:12: document 2: HTTPRoute shop/reviews: spec.rules[0]: text (cure)".
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Document > 0 {
		fmt.Fprintf(&b, ": document %d", p.Document)
	}
	if !p.Object.IsZero() {
		b.WriteString(": " + p.Object.String())
	}
	if p.Field != "" {
		b.WriteString(": " + p.Field)
	}
	b.WriteString(": " + p.Text)
	if p.Cure != "" {
		b.WriteString(" (" + p.Cure + ")")
	}
	return b.String()
}
