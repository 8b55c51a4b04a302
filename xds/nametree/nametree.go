// Package nametree indexes values by resource names, whose parts are separated
// by slashes, so that all names below a prefix are found at the cost of what is
// found. It runs no goroutine, takes no lock and cannot fail.
package nametree

import (
	"iter"
	"strings"
)

// Prefix returns the prefix that a pattern covers: "" for "*" and "a/b/" for
// "a/b/*". ok is false for a plain name.
func Prefix(pattern string) (prefix string, ok bool) {
	if pattern == "*" {
		return "", true
	}
	if strings.HasSuffix(pattern, "/*") {
		return pattern[:len(pattern)-1], true
	}
	return "", false
}

// Pattern is the inverse of Prefix.
func Pattern(prefix string) string { return prefix + "*" }

// Prefixes yields every prefix that covers a name, from "" on; for "a/b/c" these
// are "", "a/" and "a/b/". It does not allocate.
func Prefixes(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if !yield("") {
			return
		}
		for i := range len(name) {
			if name[i] == '/' && !yield(name[:i+1]) {
				return
			}
		}
	}
}

// Tree maps names to values. The zero value is empty and ready.
type Tree[V any] struct {
	root node[V]
	size int
}

type node[V any] struct {
	children map[string]*node[V]
	value    V
	name     string // whole
	set      bool
}

// Len returns the number of names.
func (t *Tree[V]) Len() int { return t.size }

// Get returns the value of a name.
func (t *Tree[V]) Get(name string) (V, bool) {
	n := &t.root
	for rest, more := name, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if n = n.children[part]; n == nil {
			var zero V
			return zero, false
		}
	}
	return n.value, n.set
}

// Set gives a name a value.
func (t *Tree[V]) Set(name string, v V) {
	n := &t.root
	for rest, more := name, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "/")
		child := n.children[part]
		if child == nil {
			if n.children == nil {
				n.children = map[string]*node[V]{}
			}
			child = new(node[V])
			n.children[part] = child
		}
		n = child
	}
	if !n.set {
		t.size++
	}
	n.value, n.name, n.set = v, name, true
}

// Delete forgets a name.
func (t *Tree[V]) Delete(name string) {
	if t.root.delete(name) {
		t.size--
	}
}

func (n *node[V]) delete(name string) bool {
	part, rest, more := strings.Cut(name, "/")
	child := n.children[part]
	if child == nil {
		return false
	}
	deleted := false
	if more {
		deleted = child.delete(rest)
	} else if deleted = child.set; deleted {
		var zero V
		child.value, child.name, child.set = zero, "", false
	}
	if !child.set && len(child.children) == 0 {
		delete(n.children, part)
	}
	return deleted
}

// Below yields the names that a prefix, as Prefix returns it, covers. The tree
// must not change meanwhile.
func (t *Tree[V]) Below(prefix string) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		n := &t.root
		for prefix != "" {
			part, rest, _ := strings.Cut(prefix, "/")
			if n = n.children[part]; n == nil {
				return
			}
			prefix = rest
		}
		n.walk(yield)
	}
}

// walk yields what is below n; n itself is not.
func (n *node[V]) walk(yield func(string, V) bool) bool {
	for _, child := range n.children {
		if child.set && !yield(child.name, child.value) {
			return false
		}
		if !child.walk(yield) {
			return false
		}
	}
	return true
}
