package filter

import (
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
)

func head(authority, path string, fields ...string) *message.Head {
	h := &message.Head{Authority: []byte(authority), Path: []byte(path)}
	for i := 0; i < len(fields); i += 2 {
		h.Add([]byte(fields[i]), []byte(fields[i+1]))
	}
	return h
}

func text(h *message.Head) string {
	var b strings.Builder
	for i, f := range h.Fields {
		if i > 0 {
			b.WriteString("|")
		}
		b.WriteString(string(f.Name) + ": " + string(f.Value))
	}
	return b.String()
}

func values(pairs ...string) (out []mesh.HeaderValue) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, mesh.HeaderValue{Name: pairs[i], Value: pairs[i+1]})
	}
	return out
}

func TestReplacePrefix(t *testing.T) {
	for _, c := range []struct{ path, prefix, replace, want string }{
		// The table at HTTPPathModifier.replacePrefixMatch, Gateway API v1.7.0.
		{"/foo/bar", "/foo", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo", "/xyz/", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz", "/xyz/bar"},
		{"/foo/bar", "/foo/", "/xyz/", "/xyz/bar"},
		{"/foo", "/foo", "/xyz", "/xyz"},
		{"/foo/", "/foo", "/xyz", "/xyz/"},
		{"/foo/bar", "/foo", "", "/bar"},
		{"/foo/", "/foo", "", "/"},
		{"/foo", "/foo", "", "/"},
		{"/foo/", "/foo", "/", "/"},
		{"/foo", "/foo", "/", "/"},
		// Beyond it.
		{"/foo/bar?a=/foo", "/foo", "/xyz", "/xyz/bar?a=/foo"},
		{"/foo?a=b", "/foo", "", "/?a=b"},
		{"/foo?", "/foo", "/xyz", "/xyz?"},
		{"/bar", "/", "/xyz", "/xyz/bar"},
		{"/", "/", "/xyz", "/xyz/"},
		{"/a/b/c", "/a/b", "/x/y/z", "/x/y/z/c"},
		{"/~user/x", "/%7Euser", "/u", "/u/x"},
		{"/foo/bar", "/foo", "xyz", "/xyz/bar"},
	} {
		rule := &mesh.Rule{
			Match:   mesh.Match{PathKind: mesh.MatchPrefix, Path: c.prefix},
			Filters: []mesh.Filter{{Rewrite: &mesh.Rewrite{Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: c.replace}}}},
		}
		h := head("h", c.path)
		Request(h, rule, new(Scratch))
		if string(h.Path) != c.want {
			t.Errorf("%s with %s → %s is %s, want %s", c.path, c.prefix, c.replace, h.Path, c.want)
		}
	}
}

func TestRewrite(t *testing.T) {
	full := &mesh.Rewrite{Hostname: "one.test", Path: &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: "/one"}}
	rule := &mesh.Rule{
		Match:   mesh.Match{PathKind: mesh.MatchPrefix, Path: "/foo"},
		Filters: []mesh.Filter{{Rewrite: full}},
	}
	h := head("h:80", "/foo/bar?q")
	Request(h, rule, new(Scratch))
	if string(h.Authority) != "one.test" || string(h.Path) != "/one?q" {
		t.Errorf("rewritten to %s%s", h.Authority, h.Path)
	}
	backend := &mesh.WeightedCluster{Filters: []mesh.Filter{{Rewrite: &mesh.Rewrite{
		Hostname: "two.test", Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/two"},
	}}}}
	h = head("h:80", "/foo/bar?q")
	both(h, rule, backend, new(Scratch))
	if string(h.Authority) != "two.test" || string(h.Path) != "/two/bar?q" {
		t.Errorf("rewritten for the backend to %s%s", h.Authority, h.Path)
	}
	h = head("h", "*")
	both(h, rule, backend, new(Scratch))
	if string(h.Path) != "*" {
		t.Errorf("* was rewritten to %s", h.Path)
	}
}

func TestHeaderEdits(t *testing.T) {
	rule := &mesh.Rule{Filters: []mesh.Filter{{
		RequestHeaders: &mesh.HeaderEdit{
			Remove: []string{"gone", "content-length"},
			Set:    values("set", "new", "fresh", "1", "connection", "x", "host", "evil", "transfer-encoding", "chunked", ":path", "/"),
			Add:    values("add", "b", "brand", "new", "empty", "v", "cookie", "c=d"),
		},
		ResponseHeaders: nil,
	}, {
		ResponseHeaders: &mesh.HeaderEdit{
			Set: values("x", "1", "content-length", "0"),
			Add: values("set-cookie", "b=2", "vary", "origin"),
		},
	}}}
	backend := &mesh.WeightedCluster{Filters: []mesh.Filter{
		{RequestHeaders: &mesh.HeaderEdit{Add: values("add", "c"), Remove: []string{"fresh"}}},
		{ResponseHeaders: &mesh.HeaderEdit{Add: values("x", "2")}},
	}}
	h := head("h", "/", "gone", "1", "content-length", "5", "set", "1", "add", "0", "set", "2", "add", "a", "gone", "2", "empty", "", "cookie", "a=b")
	both(h, rule, backend, new(Scratch))
	want := "content-length: 5|set: new|add: 0|add: a,b,c|empty: v|cookie: a=b; c=d|brand: new"
	if got := text(h); got != want {
		t.Errorf("request has\n%s, want\n%s", got, want)
	}
	h = head("", "", "set-cookie", "a=1", "content-length", "3", "vary", "accept")
	Response(h, rule, backend, new(Scratch))
	want = "set-cookie: a=1|content-length: 3|vary: accept,origin|x: 1,2|set-cookie: b=2"
	if got := text(h); got != want {
		t.Errorf("response has\n%s, want\n%s", got, want)
	}
}

func TestRedirect(t *testing.T) {
	http, http8080 := Origin{"http", 80}, Origin{"http", 8080}
	https, https8443 := Origin{"https", 443}, Origin{"https", 8443}
	prefix := func(v string) *mesh.PathEdit { return &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: v} }
	for _, c := range []struct {
		redirect  mesh.Redirect
		origin    Origin
		authority string
		path      string
		want      string
	}{
		{mesh.Redirect{Hostname: "example.org"}, http, "h", "/a?b", "http://example.org/a?b"},
		{mesh.Redirect{}, http8080, "h:8080", "/", "http://h:8080/"},
		{mesh.Redirect{}, http8080, "h", "/", "http://h:8080/"},
		{mesh.Redirect{}, https, "h:443", "/", "https://h/"},
		{mesh.Redirect{}, https8443, "h", "/", "https://h:8443/"},
		{mesh.Redirect{Scheme: "https"}, http8080, "h:8080", "/", "https://h/"},
		{mesh.Redirect{Scheme: "https"}, http, "h", "/", "https://h/"},
		{mesh.Redirect{Scheme: "http"}, http8080, "h", "/", "http://h/"},
		{mesh.Redirect{Scheme: "http"}, https, "h", "/", "http://h/"},
		{mesh.Redirect{Scheme: "https", Port: 8443}, http, "h", "/", "https://h:8443/"},
		{mesh.Redirect{Scheme: "https", Port: 443}, http, "h", "/", "https://h/"},
		{mesh.Redirect{Scheme: "http", Port: 443}, http, "h", "/", "http://h:443/"},
		{mesh.Redirect{Port: 80}, https, "h", "/", "https://h:80/"},
		{mesh.Redirect{Port: 8083}, http8080, "h", "/", "http://h:8083/"},
		{mesh.Redirect{Port: 80}, http8080, "h", "/", "http://h/"},
		{mesh.Redirect{}, http8080, "[::1]:8080", "/", "http://[::1]:8080/"},
		{mesh.Redirect{}, http, "[::1]", "/", "http://[::1]/"},
		{mesh.Redirect{Path: prefix("/new")}, http, "h", "/old/x?y=z", "http://h/new/x?y=z"},
		{mesh.Redirect{Path: prefix("/new")}, http, "h", "/old", "http://h/new"},
		{mesh.Redirect{Path: &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: "/full"}}, http, "h", "/old/x?y", "http://h/full?y"},
		{mesh.Redirect{}, http, "h", "//evil.test/", "http://h//evil.test/"},
		{mesh.Redirect{}, http, "", "/x", "/x"},
		{mesh.Redirect{}, http, "", "///evil.test/", "/evil.test/"},
		{mesh.Redirect{}, http, "h", "*", "http://h/"},
	} {
		c.redirect.Status = 308
		rule := &mesh.Rule{
			Match:   mesh.Match{PathKind: mesh.MatchPrefix, Path: "/old"},
			Filters: []mesh.Filter{{RequestHeaders: &mesh.HeaderEdit{}}, {Redirect: &c.redirect}},
		}
		status, location, ok := Redirect(rule, rule.Filters, head(c.authority, c.path), c.origin, new(Scratch))
		if !ok || status != 308 || string(location) != c.want {
			t.Errorf("%+v of %s%s at %v: %d %q, want %q", c.redirect, c.authority, c.path, c.origin, status, location, c.want)
		}
	}
	if _, _, ok := Redirect(&mesh.Rule{}, nil, head("h", "/"), http, new(Scratch)); ok {
		t.Error("a rule without a redirect redirects")
	}
}

// TestScratchKeepsWhatItGave grows the scratch while earlier results are in use.
func TestScratchKeepsWhatItGave(t *testing.T) {
	rule := &mesh.Rule{}
	for range 200 {
		rule.Filters = append(rule.Filters, mesh.Filter{RequestHeaders: &mesh.HeaderEdit{Add: values("a", "v", "set-cookie", "c")}})
	}
	h := head("h", "/")
	Request(h, rule, new(Scratch))
	if v, _ := h.Get("a"); string(v) != "v"+strings.Repeat(",v", 199) || len(h.Fields) != 201 {
		t.Errorf("%d fields, a: %s", len(h.Fields), v)
	}
	for _, f := range h.Fields[1:] {
		// Whoever appends must not write over the next.
		f.Name, f.Value = append(f.Name, "xxxx"...)[:len(f.Name)], append(f.Value, "xxxx"...)[:len(f.Value)]
	}
	for _, f := range h.Fields[1:] {
		if string(f.Name) != "set-cookie" || string(f.Value) != "c" {
			t.Fatalf("%s: %s", f.Name, f.Value)
		}
	}
}

func TestDoesNotAllocate(t *testing.T) {
	rule := &mesh.Rule{
		Match: mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a"},
		Filters: []mesh.Filter{
			{RequestHeaders: &mesh.HeaderEdit{Set: values("a", "b"), Add: values("a", "c"), Remove: []string{"x"}}},
			{Rewrite: &mesh.Rewrite{Hostname: "h", Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: "/b"}}},
			{Redirect: &mesh.Redirect{Status: 302, Port: 81}},
		},
	}
	h, s := head("h", "/a/b", "x", "y"), new(Scratch)
	fields, path := h.Fields, h.Path
	run := func() {
		s.Reset()
		h.Fields, h.Path = fields, path
		Request(h, rule, s)
		Redirect(rule, rule.Filters, h, Origin{"http", 80}, s)
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRedirect wants a path that the matcher lets pass to stay inside the Location.
func FuzzRedirect(f *testing.F) {
	f.Add("h:1", "/old/x?y", "/new")
	f.Add("", "//a//", "")
	f.Fuzz(func(t *testing.T, authority, path, replace string) {
		v := &mesh.VirtualHost{Table: "t", Hostname: "*", Rules: []mesh.Rule{{
			Match: mesh.Match{PathKind: mesh.MatchPrefix, Path: "/old"},
			Filters: []mesh.Filter{{Redirect: &mesh.Redirect{
				Status: 302, Path: &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: replace},
			}}},
		}}}
		if route.Validate(v) != nil {
			return
		}
		tables := route.NewTables()
		tables.Apply(mesh.Delta{Upserts: []mesh.Resource{v}})
		p, ok := route.NormalizePath(nil, []byte(path))
		rule, _ := tables.Match("t", &route.Request{Authority: []byte(authority), Path: p})
		if !ok || rule == nil {
			return
		}
		_, location, _ := Redirect(rule.Rule, rule.Filters, head(authority, string(p)), Origin{"http", 80}, new(Scratch))
		if strings.ContainsAny(string(location), " \r\n\x00#") || strings.HasPrefix(string(location), "//") {
			t.Fatalf("%q %q becomes %q", authority, path, location)
		}
	})
}

// both applies the edits of the rule and of the backend.
func both(h *message.Head, rule *mesh.Rule, backend *mesh.WeightedCluster, scratch *Scratch) {
	path := h.Path
	Request(h, rule, scratch)
	ToBackend(h, path, rule, backend, scratch)
}
