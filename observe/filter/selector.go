package filter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// selector is a Kubernetes label selector: requirements that must all hold.
type selector []requirement

type requirement struct {
	key string
	// exists is required, or its opposite.
	exists bool
	// values, if not nil: one of them, or with exists false none of them.
	values []string
}

var errSelector = errors.New("want a label selector such as app=web, tier!=test, 'env in (a,b)', 'env notin (a,b)', app or !app, joined with commas")

// parseSelector parses the syntax of `kubectl --selector`.
func parseSelector(v string) (selector, error) {
	var out selector
	for len(v) > 0 {
		item := v
		if i := topLevelComma(v); i >= 0 {
			item, v = v[:i], v[i+1:]
			if strings.TrimSpace(v) == "" {
				return nil, errSelector
			}
		} else {
			v = ""
		}
		r, err := parseRequirement(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, errSelector
	}
	return out, nil
}

// topLevelComma returns the position of the first comma outside of parentheses,
// or -1.
func topLevelComma(v string) int {
	depth := 0
	for i := range len(v) {
		switch v[i] {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	return -1
}

func parseRequirement(item string) (requirement, error) {
	if key, ok := strings.CutPrefix(item, "!"); ok {
		return checked(requirement{key: strings.TrimSpace(key)})
	}
	if key, value, ok := strings.Cut(item, "!="); ok {
		return checked(requirement{key: strings.TrimSpace(key), values: []string{strings.TrimSpace(value)}})
	}
	if key, value, ok := strings.Cut(item, "="); ok {
		value = strings.TrimPrefix(value, "=") // "==" is the same
		return checked(requirement{key: strings.TrimSpace(key), exists: true, values: []string{strings.TrimSpace(value)}})
	}
	fields := strings.Fields(strings.ReplaceAll(item, "(", " ("))
	if len(fields) == 1 {
		return checked(requirement{key: fields[0], exists: true})
	}
	if len(fields) >= 3 && (fields[1] == "in" || fields[1] == "notin") {
		set := strings.Join(fields[2:], "")
		inner, ok := strings.CutPrefix(set, "(")
		inner, ok2 := strings.CutSuffix(inner, ")")
		if ok && ok2 {
			return checked(requirement{key: fields[0], exists: fields[1] == "in", values: strings.Split(inner, ",")})
		}
	}
	return requirement{}, fmt.Errorf("%q: %w", item, errSelector)
}

func checked(r requirement) (requirement, error) {
	const special = "()=!, \t"
	bad := r.key == "" || strings.ContainsAny(r.key, special)
	for _, v := range r.values {
		bad = bad || strings.ContainsAny(v, special)
	}
	if bad {
		return requirement{}, errSelector
	}
	return r, nil
}

// matches follows Kubernetes: != and notin hold for labels that are not there.
func (s selector) matches(labels map[string]string) bool {
	for _, r := range s {
		v, ok := labels[r.key]
		holds := ok
		if r.values != nil {
			holds = ok && slices.Contains(r.values, v)
		}
		if holds != r.exists {
			return false
		}
	}
	return true
}
