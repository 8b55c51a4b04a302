package graph

import "testing"

func TestIntersect(t *testing.T) {
	for _, test := range []struct{ a, b, want string }{
		{"*", "*", "*"},
		{"*", "a.example", "a.example"},
		{"*", "*.example", "*.example"},
		{"a.example", "a.example", "a.example"},
		{"a.example", "b.example", ""},
		{"*.example", "a.example", "a.example"},
		{"*.example", "a.b.example", "a.b.example"},
		{"*.example", "example", ""},
		{"*.example", "aexample", ""},
		{"*.example", "*.example", "*.example"},
		{"*.example", "*.b.example", "*.b.example"},
		{"*.a.example", "*.b.example", ""},
		{"*.b.example", "b.example", ""},
	} {
		for _, pair := range [][2]string{{test.a, test.b}, {test.b, test.a}} {
			got, ok := Intersect(pair[0], pair[1])
			if got != test.want || ok != (test.want != "") {
				t.Errorf("%s and %s: %q, want %q", pair[0], pair[1], got, test.want)
			}
		}
	}
}

func TestCompareSpecificity(t *testing.T) {
	order := []string{"long.a.example", "a.example", "*.long.a.example", "*.example", "*"}
	for i := range order {
		for j := range order {
			if got := CompareSpecificity(order[i], order[j]); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s against %s: %d", order[i], order[j], got)
			}
		}
	}
}
