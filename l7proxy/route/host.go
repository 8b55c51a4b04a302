package route

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// Request is what a rule looks at. It is reusable memory of one exchange: keep one
// and fill it anew, so that matching need not allocate.
type Request struct {
	Method    []byte
	Authority []byte        // as it came; may have a port and upper case
	Path      []byte        // normalised by NormalizePath, with its query
	Head      *message.Head // for matches on header fields; nil: there are none

	buf []byte // scratch of host, header and query comparison
}

// Host is a compiled virtual host. It is immutable.
type Host struct {
	*mesh.VirtualHost

	rules []Rule
	// Each rule is in one of these, by its index; every list is in ascending order.
	exact  map[string][]int32
	prefix node
	rest   []int32 // regular expressions, and rules for any path
	// regexps by their source, for the next version of this virtual host to take over.
	regexps map[string]*regexp.Regexp
}

// node is an element of the tree of path prefixes.
type node struct {
	rules    []int32 // whose prefix ends here
	children map[string]*node
}

// Rule is a compiled rule. It is immutable.
type Rule struct {
	*mesh.Rule
	// Metrics is for the caller: only Tables.Prepare may set it.
	Metrics any

	path    string         // normalised; a prefix has no final slash
	pathRE  *regexp.Regexp // MatchRegexp
	headers []valueMatch
	query   []valueMatch
}

type valueMatch struct {
	name  string
	value string
	re    *regexp.Regexp // nil: exact
}

// compile is what Validate runs, so that both refuse the same. old, if not nil, lends
// its regular expressions.
func compile(v *mesh.VirtualHost, old *Host) (*Host, error) {
	c := compiler{regexps: map[string]*regexp.Regexp{}}
	if old != nil {
		c.old = old.regexps
	}
	if err := c.host(v); err != nil {
		return nil, err
	}
	h := &Host{VirtualHost: v, rules: c.rules, regexps: c.regexps, exact: map[string][]int32{}}
	for i := range h.rules {
		r := &h.rules[i]
		switch {
		case r.Match.PathKind == mesh.MatchExact:
			h.exact[r.path] = append(h.exact[r.path], int32(i))
		case r.Match.PathKind == mesh.MatchPrefix && r.path != "":
			h.prefix.insert(r.path, int32(i))
		default:
			h.rest = append(h.rest, int32(i))
		}
	}
	return h, nil
}

func (n *node) insert(prefix string, rule int32) {
	for element := range strings.SplitSeq(prefix[1:], "/") {
		child := n.children[element]
		if child == nil {
			if n.children == nil {
				n.children = map[string]*node{}
			}
			child = new(node)
			n.children[element] = child
		}
		n = child
	}
	n.rules = append(n.rules, rule)
}

// match returns the index of the first rule that matches, or -1: what a scan of
// all rules in their order would find.
func (h *Host) match(req *Request) int {
	path, query := splitQuery(req.Path)
	best := int32(len(h.rules))
	best = h.first(h.exact[string(path)], best, req, query)
	n, rest := &h.prefix, path
	for len(rest) > 0 && rest[0] == '/' && n.children != nil {
		end := bytes.IndexByte(rest[1:], '/') + 1
		if end == 0 {
			end = len(rest)
		}
		if n = n.children[string(rest[1:end])]; n == nil {
			break
		}
		best = h.first(n.rules, best, req, query)
		rest = rest[end:]
	}
	for _, i := range h.rest {
		if i >= best {
			break
		}
		r := &h.rules[i]
		if r.matchesPath(path) && r.miss(req, query).part == partNone {
			best = i
		}
	}
	if int(best) == len(h.rules) {
		return -1
	}
	return int(best)
}

// first returns the first of candidates, whose path is known to match, that matches
// wholly and comes before best; else best.
func (h *Host) first(candidates []int32, best int32, req *Request, query []byte) int32 {
	for _, i := range candidates {
		if i >= best {
			break
		}
		if h.rules[i].miss(req, query).part == partNone {
			return i
		}
	}
	return best
}

// matchesPath reports whether the path, without query, is the rule's. A prefix
// matches whole elements, and the prefix "/" everything, also "*" and no path.
func (r *Rule) matchesPath(path []byte) bool {
	switch r.Match.PathKind {
	case mesh.MatchExact:
		return string(path) == r.path
	case mesh.MatchPrefix:
		n := len(r.path)
		return n == 0 || len(path) >= n && string(path[:n]) == r.path && (len(path) == n || path[n] == '/')
	case mesh.MatchRegexp:
		return r.pathRE.Match(path)
	}
	return true
}

// part is a part of a rule's match.
type part uint8

const (
	partNone part = iota
	partPath
	partMethod
	partHeader
	partQuery
)

// mismatch is the first condition that does not hold; part is partNone if all do.
type mismatch struct {
	part part
	i    int // which header or query condition
}

// miss checks every condition but the path.
func (r *Rule) miss(req *Request, query []byte) mismatch {
	if r.Match.Method != "" && string(req.Method) != r.Match.Method {
		return mismatch{part: partMethod}
	}
	for i := range r.headers {
		m := &r.headers[i]
		value, ok := req.header(m.name)
		if !ok || !m.matches(value) {
			return mismatch{partHeader, i}
		}
	}
	for i := range r.query {
		m := &r.query[i]
		raw, ok := parameter(query, m.name)
		if !ok {
			return mismatch{partQuery, i}
		}
		if m.re == nil {
			if !decodesTo(raw, m.value) {
				return mismatch{partQuery, i}
			}
			continue
		}
		if bytes.IndexByte(raw, '%') >= 0 || bytes.IndexByte(raw, '+') >= 0 {
			req.buf = decode(req.buf[:0], raw)
			raw = req.buf
		}
		if !m.re.Match(raw) {
			return mismatch{partQuery, i}
		}
	}
	return mismatch{}
}

func (m *valueMatch) matches(value []byte) bool {
	if m.re != nil {
		return m.re.Match(value)
	}
	return string(value) == m.value
}

// header returns the value of a header field; fields of one name are joined as
// RFC 9110 §5.3 says (cookie as RFC 9113 §8.2.3 does). "host" is the authority.
func (req *Request) header(name string) ([]byte, bool) {
	if name == "host" {
		return req.Authority, len(req.Authority) > 0
	}
	if req.Head == nil {
		return nil, false
	}
	fields := req.Head.Fields
	for i := range fields {
		if string(fields[i].Name) != name {
			continue
		}
		value, joined := fields[i].Value, false
		for _, f := range fields[i+1:] {
			if string(f.Name) != name {
				continue
			}
			if !joined {
				req.buf = append(req.buf[:0], value...)
				joined = true
			}
			if name == "cookie" {
				req.buf = append(req.buf, "; "...)
			} else {
				req.buf = append(req.buf, ',')
			}
			req.buf = append(req.buf, f.Value...)
		}
		if joined {
			value = req.buf
		}
		return value, true
	}
	return nil, false
}

func splitQuery(target []byte) (path, query []byte) {
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		return target[:i], target[i+1:]
	}
	return target, nil
}

// parameter returns the value, still encoded, of the first query parameter of a
// name (the Gateway API recommends the first).
func parameter(query []byte, name string) (raw []byte, ok bool) {
	for len(query) > 0 {
		pair := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			pair, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		if len(pair) == 0 {
			continue
		}
		key, value := pair, []byte(nil)
		if i := bytes.IndexByte(pair, '='); i >= 0 {
			key, value = pair[:i], pair[i+1:]
		}
		if decodesTo(key, name) {
			return value, true
		}
	}
	return nil, false
}

// next returns the first character of the encoded form s and its length. A broken
// escape stands for itself.
func next(s []byte) (b byte, n int) {
	switch s[0] {
	case '+':
		return ' ', 1
	case '%':
		if len(s) >= 3 {
			if hi, lo := unhex(s[1]), unhex(s[2]); hi < 16 && lo < 16 {
				return hi<<4 | lo, 3
			}
		}
	}
	return s[0], 1
}

func decodesTo(raw []byte, want string) bool {
	for i := range len(want) {
		if len(raw) == 0 {
			return false
		}
		b, n := next(raw)
		if b != want[i] {
			return false
		}
		raw = raw[n:]
	}
	return len(raw) == 0
}

func decode(dst, raw []byte) []byte {
	for len(raw) > 0 {
		b, n := next(raw)
		dst = append(dst, b)
		raw = raw[n:]
	}
	return dst
}
