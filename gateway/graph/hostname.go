package graph

import "strings"

// AnyHost is the hostname that matches every other one.
const AnyHost = "*"

// Intersect returns the more specific of two hostnames if there are hosts that
// both match. A hostname is exact, "*.suffix" (which matches one or more labels
// before the suffix) or AnyHost.
func Intersect(a, b string) (string, bool) {
	switch {
	case Covers(a, b):
		return b, true
	case Covers(b, a):
		return a, true
	}
	return "", false
}

// Covers reports whether every host that b matches is matched by a.
func Covers(a, b string) bool {
	if a == AnyHost || a == b {
		return true
	}
	suffix, wildcard := strings.CutPrefix(a, "*")
	if !wildcard || b == AnyHost {
		return false
	}
	b = strings.TrimPrefix(b, "*")
	return len(b) > len(suffix) && strings.HasSuffix(b, suffix)
}

// CompareSpecificity orders hostnames from the most to the least specific, as
// HTTPRoute.spec.hostnames says: most characters in a hostname without wildcard,
// then most characters in one with.
func CompareSpecificity(a, b string) int {
	wildA, wildB := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	switch {
	case wildA != wildB && wildA:
		return 1
	case wildA != wildB:
		return -1
	}
	return len(b) - len(a)
}
