package route

import (
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// FuzzExplain: whatever the rules and the request, Explain names the rule that Match
// takes, and of the others those that would match come after it.
func FuzzExplain(f *testing.F) {
	f.Add("/a", "/a/b", "/[a-z]+/.*", "v", "x|y", "q", "1+", "GET", "/a/b?q=11", "x")
	f.Add("/", "/%61", "(", "v", "", "q", "", "POST", "/%2e%2e/a//b?q=%31&q=2", "")
	f.Add("/a;b", "/a/", "/A", "cookie", "a; b", "a b", "c", "PATCH", "/a;b/?a+b=c", "a; b")
	f.Fuzz(func(t *testing.T, prefix, exact, expression, header, headerValue, query, queryValue, method, target, value string) {
		matches := []mesh.Match{
			{PathKind: mesh.MatchExact, Path: exact, Method: method},
			{PathKind: mesh.MatchExact, Path: exact},
			{PathKind: mesh.MatchRegexp, Path: expression},
			{PathKind: mesh.MatchPrefix, Path: prefix, Headers: []mesh.ValueMatch{{Name: header, Kind: mesh.MatchRegexp, Value: headerValue}}},
			{PathKind: mesh.MatchPrefix, Path: prefix, Headers: []mesh.ValueMatch{{Name: header, Kind: mesh.MatchExact, Value: headerValue}}},
			{PathKind: mesh.MatchPrefix, Path: prefix, Query: []mesh.ValueMatch{{Name: query, Kind: mesh.MatchRegexp, Value: queryValue}}},
			{PathKind: mesh.MatchPrefix, Path: prefix},
			{Query: []mesh.ValueMatch{{Name: query, Kind: mesh.MatchExact, Value: queryValue}}},
			{PathKind: mesh.MatchPrefix, Path: "/"},
		}
		v := &mesh.VirtualHost{Table: "t", Hostname: "*"}
		for i, m := range matches {
			one := &mesh.VirtualHost{Table: "t", Hostname: "*", Rules: []mesh.Rule{{Match: m}}}
			if Validate(one) == nil {
				v.Rules = append(v.Rules, mesh.Rule{RuleIndex: i, Match: m})
			}
		}
		tables := NewTables()
		tables.Apply(mesh.Delta{Upserts: []mesh.Resource{v}})
		path, ok := NormalizePath(nil, []byte(target))
		if !ok {
			return
		}
		head := &message.Head{Fields: []message.Field{{Name: []byte(header), Value: []byte(value)}, {Name: []byte("other"), Value: []byte("x")}, {Name: []byte(header), Value: []byte(value)}}}
		if len(value)%2 == 0 {
			head.Fields = head.Fields[:2]
		}
		request := func() *Request {
			return &Request{Method: []byte(method), Authority: []byte("h"), Path: path, Head: head}
		}
		rule, _ := tables.Match("t", request())
		e := tables.Explain("t", request())
		if (rule == nil) != (e.Winner < 0) || rule != nil && rule.RuleIndex != e.Rules[e.Winner].RuleIndex {
			t.Fatalf("%s %s: the proxy takes %v, explain names %d of %+v", method, path, rule, e.Winner, e.Rules)
		}
		for i, r := range e.Rules {
			if r.Matched && i < e.Winner || !r.Matched && i == e.Winner || (r.Why == "") != (i == e.Winner) {
				t.Fatalf("%s %s: rule %d of %+v, winner %d", method, path, i, r, e.Winner)
			}
		}
	})
}
