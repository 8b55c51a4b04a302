// Package filter selects flows in the words of `sluice observe`.
//
// A Term is one flag with its value. Terms of the same flag are alternatives,
// different flags must all agree, and a negated term takes out what it matches
// whatever the others say. The table of flags here is the only one: the command
// line, the admin socket's query and the reference are made of it. All of it is
// pure; compiling fails for a word that cannot be right, matching never fails.
package filter

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// Term is one condition.
type Term struct {
	Flag  string // the Name of one of Flags
	Value string
	Not   bool
}

// Filter is a compiled list of terms. It is immutable; nil selects every flow.
type Filter struct {
	groups []group
	not    []condition
}

// group is the alternatives that one flag was given.
type group struct {
	any []condition
	// lost says that the group decides about TypeLost flows too.
	lost bool
}

type condition struct {
	match func(*flow.Flow) bool
	lost  bool
}

// Compile checks the terms and makes a filter of them. The error names the flag
// and says what it takes.
func Compile(terms []Term) (*Filter, error) {
	f := &Filter{}
	positions := map[string]int{}
	for _, t := range terms {
		i := slices.IndexFunc(flags, func(f Flag) bool { return f.Name == t.Flag })
		if i < 0 {
			return nil, fmt.Errorf("unknown filter %q", t.Flag)
		}
		if len(t.Value) > maxValueBytes {
			return nil, fmt.Errorf("--%s: a value of %d bytes is too long", t.Flag, len(t.Value))
		}
		match, err := flags[i].compile(t.Value)
		if err != nil {
			return nil, fmt.Errorf("--%s %q: %w", t.Flag, t.Value, err)
		}
		c := condition{match: match, lost: flags[i].lost}
		if t.Not {
			f.not = append(f.not, c)
			continue
		}
		at, ok := positions[t.Flag]
		if !ok {
			at = len(f.groups)
			positions[t.Flag] = at
			f.groups = append(f.groups, group{lost: c.lost})
		}
		f.groups[at].any = append(f.groups[at].any, c)
	}
	return f, nil
}

// maxValueBytes bounds the value of one term; no name or expression is so long.
const maxValueBytes = 4096

// Match reports whether the filter selects the flow. A TypeLost flow is selected
// unless a type filter takes it out: losses concern whatever one looks at.
func (f *Filter) Match(fl *flow.Flow) bool {
	if f == nil {
		return true
	}
	lost := fl.Type == flow.TypeLost
	for i := range f.not {
		if c := &f.not[i]; (c.lost || !lost) && c.match(fl) {
			return false
		}
	}
	for i := range f.groups {
		g := &f.groups[i]
		if lost && !g.lost {
			continue
		}
		if !slices.ContainsFunc(g.any, func(c condition) bool { return c.match(fl) }) {
			return false
		}
	}
	return true
}

// notPrefix marks negated terms in a query.
const notPrefix = "not-"

// AddToQuery adds the terms to a URL's query; FromQuery reads them back.
func AddToQuery(q url.Values, terms []Term) {
	for _, t := range terms {
		name := t.Flag
		if t.Not {
			name = notPrefix + name
		}
		q.Add(name, t.Value)
	}
}

// FromQuery returns the terms of a URL's query, in the order of Flags. A
// parameter that is no flag is an error, so that a misspelt filter does not show
// everything.
func FromQuery(q url.Values) ([]Term, error) {
	var terms []Term
	known := 0
	for _, f := range flags {
		for _, not := range []bool{false, true} {
			name := f.Name
			if not {
				name = notPrefix + name
			}
			values, ok := q[name]
			if ok {
				known++
			}
			for _, v := range values {
				terms = append(terms, Term{Flag: f.Name, Value: v, Not: not})
			}
		}
	}
	if known == len(q) {
		return terms, nil
	}
	for name := range q {
		bare := strings.TrimPrefix(name, notPrefix)
		if !slices.ContainsFunc(flags, func(f Flag) bool { return f.Name == bare }) {
			return nil, fmt.Errorf("unknown filter %q", name)
		}
	}
	return terms, nil
}
