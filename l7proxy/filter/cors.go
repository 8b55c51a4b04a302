package filter

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

var (
	acAllowOrigin      = []byte("access-control-allow-origin")
	acAllowMethods     = []byte("access-control-allow-methods")
	acAllowHeaders     = []byte("access-control-allow-headers")
	acAllowCredentials = []byte("access-control-allow-credentials")
	acExposeHeaders    = []byte("access-control-expose-headers")
	acMaxAge           = []byte("access-control-max-age")
	fieldVary          = []byte("vary")
	wordOrigin         = []byte("Origin")
	wordTrue           = []byte("true")
)

// CORS returns the CORS filter of a rule's or a backend's filters, nil if there is
// none.
func CORS(filters []mesh.Filter) *mesh.CORS {
	for i := range filters {
		if c := filters[i].CORS; c != nil {
			return c
		}
	}
	return nil
}

// Preflight reports whether a request asks for permission only: it is answered, not
// forwarded (Fetch standard §4.8).
func Preflight(h *message.Head) bool {
	if string(h.Method) != "OPTIONS" {
		return false
	}
	if _, ok := h.Get("access-control-request-method"); !ok {
		return false
	}
	_, ok := h.Get("origin")
	return ok
}

// AnswerPreflight adds to h, the head of an answer, what the request asked for, and
// nothing if its origin is not allowed.
func AnswerPreflight(h *message.Head, request *message.Head, c *mesh.CORS, scratch *Scratch) {
	origin, _ := request.Get("origin")
	// The answer may be kept by who sits between: others may get another.
	h.Add(fieldVary, wordOrigin)
	if !originAllowed(c, origin) {
		return
	}
	allow(h, c, origin, scratch)
	method, _ := request.Get("access-control-request-method")
	listOrAsked(h, acAllowMethods, c.AllowMethods, method, scratch)
	headers, _ := request.Get("access-control-request-headers")
	listOrAsked(h, acAllowHeaders, c.AllowHeaders, headers, scratch)
	expose(h, c, scratch)
	start := len(scratch.buf)
	scratch.buf = strconv.AppendUint(scratch.buf, uint64(c.MaxAge), 10)
	h.Add(acMaxAge, scratch.since(start))
}

// ShareResponse edits a response to a request of an origin (empty: the request has
// none): it says what the filter allows, in place of what the backend says of it.
func ShareResponse(h *message.Head, origin []byte, c *mesh.CORS, scratch *Scratch) {
	varyByOrigin(h, scratch)
	if len(origin) == 0 {
		return
	}
	for _, name := range [...][]byte{acAllowOrigin, acAllowCredentials, acExposeHeaders} {
		h.Del(string(name))
	}
	if originAllowed(c, origin) {
		allow(h, c, origin, scratch)
		expose(h, c, scratch)
	}
}

// allow names the origin itself, whatever the filter's pattern: with credentials
// nothing else is allowed, and without it is as good.
func allow(h *message.Head, c *mesh.CORS, origin []byte, scratch *Scratch) {
	start := len(scratch.buf)
	scratch.buf = append(scratch.buf, origin...)
	h.Add(acAllowOrigin, scratch.since(start))
	if c.AllowCredentials {
		h.Add(acAllowCredentials, wordTrue)
	}
}

// expose lists the headers that scripts may read. With credentials "*" would be a
// header of that name: the fields of the response stand for it.
func expose(h *message.Head, c *mesh.CORS, scratch *Scratch) {
	start := len(scratch.buf)
	b := scratch.buf
	for _, name := range c.ExposeHeaders {
		if name != "*" || !c.AllowCredentials {
			b = append(comma(b, start), name...)
			continue
		}
		for i := range h.Fields {
			field := h.Fields[i].Name
			if !named(h.Fields[:i], field) && !bytes.HasPrefix(field, []byte("access-control-")) && string(field) != "set-cookie" {
				b = append(comma(b, start), field...)
			}
		}
	}
	scratch.buf = b
	if len(b) > start {
		h.Add(acExposeHeaders, scratch.since(start))
	}
}

func named(fields []message.Field, name []byte) bool {
	for i := range fields {
		if bytes.Equal(fields[i].Name, name) {
			return true
		}
	}
	return false
}

func comma(b []byte, start int) []byte {
	if len(b) > start {
		b = append(b, ", "...)
	}
	return b
}

// listOrAsked adds the list, or for "*" what the request asked for, if it did.
func listOrAsked(h *message.Head, field []byte, list []string, asked []byte, scratch *Scratch) {
	start := len(scratch.buf)
	b := scratch.buf
	for _, v := range list {
		if v == "*" {
			b = append(b, asked...)
			break
		}
		b = append(comma(b, start), v...)
	}
	scratch.buf = b
	if len(b) > start {
		h.Add(field, scratch.since(start))
	}
}

func varyByOrigin(h *message.Head, scratch *Scratch) {
	for i := range h.Fields {
		if f := &h.Fields[i]; string(f.Name) == "vary" {
			if bytes.Contains(bytes.ToLower(f.Value), []byte("origin")) || string(f.Value) == "*" {
				return
			}
		}
	}
	add(h, &mesh.HeaderValue{Name: "vary", Value: "Origin"}, scratch)
}

// originAllowed reports whether a pattern of c names the origin, which is compared as
// it would be serialised: in lower case and without the scheme's own port (Fetch
// standard §3.2.1). "null" is named by "*" alone.
func originAllowed(c *mesh.CORS, origin []byte) bool {
	if len(origin) == 0 {
		return false
	}
	if i := bytes.IndexByte(origin, ':'); i > 0 {
		scheme := origin[:i]
		switch {
		case bytes.EqualFold(scheme, schemeHTTP):
			origin = bytes.TrimSuffix(origin, []byte(":80"))
		case bytes.EqualFold(scheme, schemeHTTPS):
			origin = bytes.TrimSuffix(origin, []byte(":443"))
		}
	}
	for _, pattern := range c.AllowOrigins {
		if pattern == "*" || matchesOrigin(pattern, origin) {
			return true
		}
	}
	return false
}

var (
	schemeHTTP  = []byte("http")
	schemeHTTPS = []byte("https")
)

// matchesOrigin compares with a pattern of one "*" or none, which stands for one or
// more characters of a host.
func matchesOrigin(pattern string, origin []byte) bool {
	before, after, wild := strings.Cut(pattern, "*")
	if !wild {
		return foldEqual(origin, pattern)
	}
	if len(origin) <= len(before)+len(after) || !foldEqual(origin[:len(before)], before) || !foldEqual(origin[len(origin)-len(after):], after) {
		return false
	}
	return !bytes.ContainsAny(origin[len(before):len(origin)-len(after)], ":/")
}

func foldEqual(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
