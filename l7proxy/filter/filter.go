package filter

import (
	"bytes"
	"strconv"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// Scratch is reusable memory of one exchange. What the functions of this package
// put into a head, or return, stays valid until Reset.
type Scratch struct{ buf []byte }

// Reset makes the memory free for the next exchange.
func (s *Scratch) Reset() { s.buf = s.buf[:0] }

// text copies a string of the configuration, which must not be handed out as bytes
// that somebody may write to.
func (s *Scratch) text(v string) []byte {
	start := len(s.buf)
	s.buf = append(s.buf, v...)
	return s.since(start)
}

// since returns what was appended after start. Growing later leaves it intact.
func (s *Scratch) since(start int) []byte { return s.buf[start:len(s.buf):len(s.buf)] }

// Origin says how the client reached the listener.
type Origin struct {
	Scheme string // "http" or "https"
	Port   uint16 // of the listener
}

// Editable reports whether a header edit may touch the field of a lower-case name.
// The others frame the message, concern one hop only (RFC 9110 §7.6.1) or name its
// target: an edit of them would let two parsers disagree, and is skipped.
func Editable(name string) bool {
	switch name {
	case "", "connection", "content-length", "expect", "host", "http2-settings", "keep-alive",
		"proxy-connection", "te", "trailer", "transfer-encoding", "upgrade":
		return false
	}
	return name[0] != ':'
}

// Request applies the request header edits and rewrites of the rule, in order, to h
// in place. h.Path is the one that the rule matched.
func Request(h *message.Head, rule *mesh.Rule, scratch *Scratch) {
	request(h, h.Path, rule, rule.Filters, scratch)
}

// ToBackend applies those of the backend, to h as Request left it. path is the one
// that the rule matched: if both rewrite the path, the backend's counts, and
// replaces what the rule's prefix matched in the path as it came.
func ToBackend(h *message.Head, path []byte, rule *mesh.Rule, backend *mesh.WeightedCluster, scratch *Scratch) {
	request(h, path, rule, backend.Filters, scratch)
}

func request(h *message.Head, path []byte, rule *mesh.Rule, filters []mesh.Filter, scratch *Scratch) {
	for i := range filters {
		switch f := &filters[i]; {
		case f.RequestHeaders != nil:
			edit(h, f.RequestHeaders, scratch)
		case f.Rewrite != nil:
			if f.Rewrite.Hostname != "" {
				h.Authority = scratch.text(f.Rewrite.Hostname)
			}
			// "*" and CONNECT have no path to edit.
			if f.Rewrite.Path != nil && len(path) > 0 && path[0] == '/' {
				start := len(scratch.buf)
				scratch.buf = appendPath(scratch.buf, f.Rewrite.Path, &rule.Match, path)
				h.Path = scratch.since(start)
			}
		}
	}
}

// Response applies the response header edits of the rule, then those of the
// backend (nil: none), in order, to h in place.
func Response(h *message.Head, rule *mesh.Rule, backend *mesh.WeightedCluster, scratch *Scratch) {
	response(h, rule.Filters, scratch)
	if backend != nil {
		response(h, backend.Filters, scratch)
	}
}

func response(h *message.Head, filters []mesh.Filter, scratch *Scratch) {
	for i := range filters {
		if e := filters[i].ResponseHeaders; e != nil {
			edit(h, e, scratch)
		}
	}
}

// edit removes, then sets, then adds. A value that is added joins the last field of
// its name (Gateway API, HTTPHeaderFilter.add), except in set-cookie, which cannot
// be joined (RFC 9110 §5.3).
func edit(h *message.Head, e *mesh.HeaderEdit, scratch *Scratch) {
	for _, name := range e.Remove {
		if Editable(name) {
			h.Del(name)
		}
	}
	for i := range e.Set {
		if v := &e.Set[i]; Editable(v.Name) {
			set(h, v, scratch)
		}
	}
	for i := range e.Add {
		if v := &e.Add[i]; Editable(v.Name) {
			add(h, v, scratch)
		}
	}
}

// set keeps the place of the first field of the name.
func set(h *message.Head, v *mesh.HeaderValue, scratch *Scratch) {
	kept, found := h.Fields[:0], false
	for _, f := range h.Fields {
		if string(f.Name) == v.Name {
			if found {
				continue
			}
			found = true
			f.Value = scratch.text(v.Value)
		}
		kept = append(kept, f)
	}
	h.Fields = kept
	if !found {
		h.Add(scratch.text(v.Name), scratch.text(v.Value))
	}
}

func add(h *message.Head, v *mesh.HeaderValue, scratch *Scratch) {
	if v.Name != "set-cookie" {
		for i := len(h.Fields) - 1; i >= 0; i-- {
			f := &h.Fields[i]
			if string(f.Name) != v.Name {
				continue
			}
			separator := ","
			if v.Name == "cookie" {
				separator = "; " // RFC 6265 §4.2.1
			}
			start := len(scratch.buf)
			if len(f.Value) > 0 {
				scratch.buf = append(append(scratch.buf, f.Value...), separator...)
			}
			scratch.buf = append(scratch.buf, v.Value...)
			f.Value = scratch.since(start)
			return
		}
	}
	h.Add(scratch.text(v.Name), scratch.text(v.Value))
}

// Redirect returns the status and Location that answer the request, or ok false
// if filters, which are the rule's or a backend's, have no redirect (Gateway API,
// HTTPRequestRedirectFilter). h.Path is the
// one that the rule matched; its query is kept. A request without an authority is
// redirected within its host, where that is not named.
func Redirect(rule *mesh.Rule, filters []mesh.Filter, h *message.Head, origin Origin, scratch *Scratch) (status int, location []byte, ok bool) {
	var r *mesh.Redirect
	for i := range filters {
		if r = filters[i].Redirect; r != nil {
			break
		}
	}
	if r == nil {
		return 0, nil, false
	}
	scheme, port := r.Scheme, r.Port
	if scheme == "" {
		scheme = origin.Scheme
	}
	if port == 0 {
		switch r.Scheme {
		case "http":
			port = 80
		case "https":
			port = 443
		default:
			port = origin.Port
		}
	}
	start := len(scratch.buf)
	b := scratch.buf
	named := r.Hostname != "" || len(h.Authority) > 0
	if named {
		b = append(append(b, scheme...), "://"...)
		if r.Hostname != "" {
			b = append(b, r.Hostname...)
		} else {
			b = append(b, withoutPort(h.Authority)...)
		}
		if (scheme != "http" || port != 80) && (scheme != "https" || port != 443) && port != 0 {
			b = strconv.AppendUint(append(b, ':'), uint64(port), 10)
		}
	}
	pathStart := len(b)
	switch {
	case len(h.Path) == 0 || h.Path[0] != '/':
		b = append(b, '/')
	case r.Path != nil:
		b = appendPath(b, r.Path, &rule.Match, h.Path)
	default:
		b = append(b, h.Path...)
	}
	if !named {
		// "//" would start an authority (RFC 3986 §4.2), and the client chose it.
		kept := bytes.TrimLeft(b[pathStart:], "/")
		b = append(b[:pathStart+1], kept...)
	}
	scratch.buf = b
	return r.Status, scratch.since(start), true
}

func withoutPort(authority []byte) []byte {
	i := bytes.LastIndexByte(authority, ':')
	if i < 0 || bytes.IndexByte(authority[i:], ']') >= 0 {
		return authority
	}
	return authority[:i]
}

// appendPath appends the edited path and the query of target, whose path m matched.
// The cases are those of the table at Gateway API, HTTPPathModifier.replacePrefixMatch.
func appendPath(b []byte, e *mesh.PathEdit, m *mesh.Match, target []byte) []byte {
	path, query := target, []byte(nil)
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	start := len(b)
	b = append(b, e.Value...)
	if e.Kind == mesh.PathReplacePrefix {
		b = trimSlash(b, start)
		b = append(b, path[prefixLen(path, m):]...)
	}
	if len(b) == start || b[start] != '/' {
		b = append(b, 0)
		copy(b[start+1:], b[start:])
		b[start] = '/'
	}
	return append(b, query...)
}

func trimSlash(b []byte, start int) []byte {
	if n := len(b); n > start && b[n-1] == '/' {
		return b[:n-1]
	}
	return b
}

// prefixLen returns how much of a normalised path the prefix of m covers, without a
// final slash. It counts elements, because the configured prefix need not be in
// normal form.
func prefixLen(path []byte, m *mesh.Match) int {
	if m.PathKind != mesh.MatchPrefix {
		return 0
	}
	elements := 0
	for i := range len(m.Path) {
		if m.Path[i] == '/' && i < len(m.Path)-1 {
			elements++
		}
	}
	n := 0
	for n < len(path) && elements > 0 {
		n++
		if i := bytes.IndexByte(path[n:], '/'); i >= 0 {
			n += i
		} else {
			n = len(path)
		}
		elements--
	}
	return n
}
