package nametree

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestPrefix(t *testing.T) {
	for pattern, want := range map[string]string{"*": "", "a/*": "a/", "a/b/*": "a/b/"} {
		if got, ok := Prefix(pattern); !ok || got != want || Pattern(got) != pattern {
			t.Errorf("Prefix(%q) = %q, %t", pattern, got, ok)
		}
	}
	for _, name := range []string{"a", "a/b", "a*", "a/*.example", ""} {
		if p, ok := Prefix(name); ok {
			t.Errorf("Prefix(%q) = %q, want a plain name", name, p)
		}
	}
	if got := slices.Collect(Prefixes("a/b/c")); !slices.Equal(got, []string{"", "a/", "a/b/"}) {
		t.Errorf("Prefixes = %q", got)
	}
}

// A tree does what a map and a scan do.
func TestTreeIsAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		parts := make([]string, 1+r.IntN(4))
		for i := range parts {
			parts[i] = []string{"a", "b", "", "*.x"}[r.IntN(4)]
		}
		return strings.Join(parts, "/")
	}
	var tree Tree[int]
	model := map[string]int{}
	for i := range 20000 {
		n := name()
		switch r.IntN(3) {
		case 0:
			tree.Set(n, i)
			model[n] = i
		case 1:
			tree.Delete(n)
			delete(model, n)
		}
		if tree.Len() != len(model) {
			t.Fatalf("step %d: %d names, want %d", i, tree.Len(), len(model))
		}
		got, ok := tree.Get(n)
		if want, has := model[n]; got != want || ok != has {
			t.Fatalf("step %d: Get(%q) = %d, %t; want %d, %t", i, n, got, ok, want, has)
		}
		prefix := ""
		if r.IntN(2) == 0 {
			prefix = name() + "/"
		}
		want := maps.Clone(model)
		maps.DeleteFunc(want, func(n string, _ int) bool { return !strings.HasPrefix(n, prefix) })
		if found := maps.Collect(tree.Below(prefix)); !maps.Equal(found, want) {
			t.Fatalf("step %d: below %q: %v, want %v", i, prefix, found, want)
		}
	}
	for n := range model {
		tree.Delete(n)
	}
	if len(tree.root.children) != 0 {
		t.Fatal("an empty tree keeps nodes")
	}
}

func TestPrefixesDoesNotAllocate(t *testing.T) {
	n := 0
	if allocs := testing.AllocsPerRun(100, func() {
		for p := range Prefixes("service/shop/web/80/www.example.com") {
			n += len(p)
		}
	}); allocs != 0 {
		t.Fatalf("%v allocations", allocs)
	}
}
