package route

import (
	"bytes"
	"strings"
	"testing"
)

func TestNormalizePath(t *testing.T) {
	for in, want := range map[string]string{
		"/":                 "/",
		"/a/b":              "/a/b",
		"/a//b/":            "/a//b/",
		"/.a/..b/c..":       "/.a/..b/c..",
		"/a?b=../c&d=%2e\\": "/a?b=../c&d=%2e\\",
		"*":                 "*",
		"":                  "",
		"/a/./b":            "/a/b",
		"/a/../b":           "/b",
		"/a/b/..":           "/a/",
		"/a/.":              "/a/",
		"/..":               "/",
		"/../../x?y":        "/x?y",
		"/a//../b":          "/a/b",
		"/a/%2e%2E/b":       "/b",
		"/%61%7E%2d":        "/a~-",
		"/a%2fb%5c":         "/a%2Fb%5C",
		"/a%2F.b":           "/a%2F.b",
		"/%25%32%65":        "/%252e",
		"/caf\xc3\xa9":      "/caf%C3%A9",
		"/a;v=1/b":          "/a;v=1/b",
		"/%20":              "/%20",
		"/[a]|{b}\"":        "/[a]|{b}\"",
	} {
		got, ok := NormalizePath(nil, []byte(in))
		if !ok || string(got) != want {
			t.Errorf("%q becomes %q, %v; want %q", in, got, ok, want)
		}
	}
	for _, in := range []string{
		"a", "?", "http://h/", "/a b", "/a\x00", "/a\r\nb", "/a\x7f", "/a#b", "/a?b#c", "/a?b c", "/a\\b",
		"/%", "/%4", "/%zz", "/%00", "/a%2f..", "/a/..%2fb", "/a%2F..%2Fb", "/%5c..", "/a%5C.", "/..;/b", "/a/..;x=y/b", "/.;", "/%2e%2e;/",
		"/%2F..;/",
	} {
		if got, ok := NormalizePath(nil, []byte(in)); ok {
			t.Errorf("%q becomes %q, want it refused", in, got)
		}
	}
	clean := []byte("/a/b?c")
	if got, _ := NormalizePath(nil, clean); &got[0] != &clean[0] {
		t.Error("a path with nothing to change was copied")
	}
	buf, dirty := make([]byte, 0, 64), []byte("/a/%7e/../b")
	if n := testing.AllocsPerRun(10, func() { NormalizePath(buf, dirty) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzNormalizePath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b?c", "/%2e%2e/%2f..", "/..;/%5c.", "/\xff", "/a%", "*", "/a/b/../../.."} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		out, ok := NormalizePath(nil, in)
		if !bytes.Equal(in, before) {
			t.Fatalf("%q was changed in place", before)
		}
		if !ok {
			return
		}
		again, ok := NormalizePath(nil, out)
		if !ok || !bytes.Equal(again, out) || len(out) > 0 && &again[0] != &out[0] {
			t.Fatalf("%q becomes %q becomes %q, %v", in, out, again, ok)
		}
		path, query := splitQuery(out)
		if _, q := splitQuery(in); !bytes.Equal(q, query) {
			t.Fatalf("query %q became %q", q, query)
		}
		if len(path) == 0 || string(path) == "*" {
			return
		}
		for _, b := range path {
			if b <= ' ' || b >= 0x7f || b == '#' || b == '\\' {
				t.Fatalf("%q keeps %q", out, b)
			}
		}
		// As the loosest server would read it.
		loose := strings.NewReplacer("%2F", "/", "%5C", "/").Replace(string(path))
		for segment := range strings.SplitSeq(loose[1:], "/") {
			segment, _, _ = strings.Cut(segment, ";")
			if segment == "." || segment == ".." {
				t.Fatalf("%q hides a dot segment", out)
			}
		}
	})
}

func FuzzHostname(f *testing.F) {
	for _, s := range []string{"a.test", "A.Test:80", "[::1]:80", "[::1", "a@b", "a.", ".", "a:b:c"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		host, _, ok := Hostname(nil, in)
		if !ok {
			return
		}
		if bytes.ContainsAny(host, "/\\?#@ ,\r\n\x00ABCXYZ") {
			t.Fatalf("%q becomes %q", in, host)
		}
		if again, _, ok := Hostname(nil, host); !ok && len(host) > 0 || !bytes.Equal(bytes.TrimSuffix(host, []byte(".")), bytes.TrimSuffix(again, []byte("."))) {
			t.Fatalf("%q becomes %q becomes %q, %v", in, host, again, ok)
		}
	})
}
