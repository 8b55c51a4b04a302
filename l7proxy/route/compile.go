package route

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-mesh/sluice/mesh"
)

// Validate reports why a virtual host cannot be used. The error names the field as
// the path to it, such as "rules[2].match.headers[0].value".
func Validate(v *mesh.VirtualHost) error {
	_, err := compile(v, nil)
	return err
}

type compiler struct {
	rules   []Rule
	regexps map[string]*regexp.Regexp
	old     map[string]*regexp.Regexp
}

func (c *compiler) host(v *mesh.VirtualHost) error {
	if v.Table == "" {
		return errors.New("table: empty")
	}
	if v.Hostname != "*" {
		if err := hostname(strings.TrimPrefix(v.Hostname, "*.")); err != nil {
			return fmt.Errorf("hostname %q: %w", v.Hostname, err)
		}
	}
	if len(v.Rules) > math.MaxInt32 {
		return errors.New("rules: too many")
	}
	c.rules = make([]Rule, len(v.Rules))
	for i := range v.Rules {
		r := &c.rules[i]
		r.Rule = &v.Rules[i]
		if err := c.rule(r); err != nil {
			return fmt.Errorf("rules[%d].%w", i, err)
		}
	}
	return nil
}

func (c *compiler) rule(r *Rule) (err error) {
	m := &r.Match
	switch m.PathKind {
	case 0:
		if m.Path != "" {
			return errors.New("match.path: without a kind")
		}
	case mesh.MatchExact, mesh.MatchPrefix:
		if r.path, err = normalPath(m.Path); err != nil {
			return fmt.Errorf("match.path %q: %w", m.Path, err)
		}
		if m.PathKind == mesh.MatchPrefix {
			r.path = strings.TrimSuffix(r.path, "/")
		}
	case mesh.MatchRegexp:
		if r.pathRE, err = c.regexp(m.Path); err != nil {
			return fmt.Errorf("match.path: %w", err)
		}
	default:
		return fmt.Errorf("match.path: unknown kind %d", m.PathKind)
	}
	if m.Method != "" && !isToken(m.Method) {
		return fmt.Errorf("match.method %q: not a token", m.Method)
	}
	if r.headers, err = c.values("match.headers", m.Headers, true); err != nil {
		return err
	}
	if r.query, err = c.values("match.query", m.Query, false); err != nil {
		return err
	}
	if err := filters(r.Filters, m); err != nil {
		return err
	}
	var sum uint64
	for i := range r.Clusters {
		wc := &r.Clusters[i]
		if sum += uint64(wc.Weight); sum > math.MaxUint32 {
			return fmt.Errorf("clusters[%d].weight: the sum is more than %d", i, uint32(math.MaxUint32))
		}
		if err := filters(wc.Filters, m); err != nil {
			return fmt.Errorf("clusters[%d].%w", i, err)
		}
	}
	if r.Timeouts.Request < 0 {
		return errors.New("timeouts.request: negative")
	}
	if r.Timeouts.Backend < 0 {
		return errors.New("timeouts.backend: negative")
	}
	if retry := r.Retry; retry != nil {
		if retry.Attempts < 0 {
			return errors.New("retry.attempts: negative")
		}
		if retry.Backoff < 0 {
			return errors.New("retry.backoff: negative")
		}
		for i, code := range retry.Codes {
			if code < 400 || code > 599 {
				return fmt.Errorf("retry.codes[%d]: %d is not an error status", i, code)
			}
		}
	}
	return nil
}

// values compiles conditions; of those with one name only the first counts
// (Gateway API, HTTPHeaderMatch and HTTPQueryParamMatch).
func (c *compiler) values(field string, in []mesh.ValueMatch, header bool) ([]valueMatch, error) {
	var out []valueMatch
	for i := range in {
		v := &in[i]
		if v.Name == "" {
			return nil, fmt.Errorf("%s[%d].name: empty", field, i)
		}
		if header {
			if err := fieldName(v.Name); err != nil {
				return nil, fmt.Errorf("%s[%d].name %q: %w", field, i, v.Name, err)
			}
		}
		m := valueMatch{name: v.Name, value: v.Value}
		switch v.Kind {
		case mesh.MatchExact:
		case mesh.MatchRegexp:
			var err error
			if m.re, err = c.regexp(v.Value); err != nil {
				return nil, fmt.Errorf("%s[%d].value: %w", field, i, err)
			}
		default:
			return nil, fmt.Errorf("%s[%d].kind: unknown kind %d", field, i, v.Kind)
		}
		if !slices.ContainsFunc(out, func(o valueMatch) bool { return o.name == m.name }) {
			out = append(out, m)
		}
	}
	return out, nil
}

// regexp compiles an RE2 expression to match the whole of a value.
func (c *compiler) regexp(source string) (*regexp.Regexp, error) {
	if re := c.regexps[source]; re != nil {
		return re, nil
	}
	re := c.old[source]
	if re == nil {
		// By itself first: "a)|(b" would only be well formed between our brackets.
		if _, err := regexp.Compile(source); err != nil {
			return nil, err
		}
		var err error
		if re, err = regexp.Compile(`\A(?:` + source + `)\z`); err != nil {
			return nil, err
		}
	}
	c.regexps[source] = re
	return re, nil
}

func filters(in []mesh.Filter, m *mesh.Match) error {
	var redirect, rewrite bool
	for i := range in {
		f := &in[i]
		set := 0
		var err error
		if f.RequestHeaders != nil {
			set, err = set+1, headerEdit("requestHeaders", f.RequestHeaders)
		}
		if f.ResponseHeaders != nil && err == nil {
			set, err = set+1, headerEdit("responseHeaders", f.ResponseHeaders)
		}
		if r := f.Redirect; r != nil && err == nil {
			set, err = set+1, redirectFilter(r, m)
			redirect = true
		}
		if r := f.Rewrite; r != nil && err == nil {
			set++
			rewrite = true
			if r.Hostname != "" {
				if err = hostname(r.Hostname); err != nil {
					err = fmt.Errorf("rewrite.hostname %q: %w", r.Hostname, err)
				}
			}
			if err == nil {
				err = pathEdit("rewrite.path", r.Path, m)
			}
		}
		if mirror := f.Mirror; mirror != nil && err == nil {
			set++
			if mirror.Cluster == "" {
				err = errors.New("mirror.cluster: empty")
			} else if mirror.PerMillion > mesh.EveryRequest {
				err = fmt.Errorf("mirror.perMillion: %d is more than %d", mirror.PerMillion, mesh.EveryRequest)
			}
		}
		if f.CORS != nil && err == nil {
			set, err = set+1, corsFilter(f.CORS)
		}
		if err == nil && set != 1 {
			err = fmt.Errorf("%d kinds are set, want 1", set)
		}
		if err != nil {
			return fmt.Errorf("filters[%d].%w", i, err)
		}
	}
	if redirect && rewrite {
		return errors.New("filters: both a redirect and a rewrite")
	}
	return nil
}

func corsFilter(c *mesh.CORS) error {
	for i, o := range c.AllowOrigins {
		host, ok := strings.CutPrefix(o, "http://")
		if !ok {
			host, ok = strings.CutPrefix(o, "https://")
		}
		if o != "*" && (!ok || host == "" || o != strings.ToLower(o)) {
			return fmt.Errorf("cors.allowOrigins[%d]: %q is not an origin", i, o)
		}
	}
	for _, list := range []struct {
		name   string
		values []string
	}{{"allowMethods", c.AllowMethods}, {"allowHeaders", c.AllowHeaders}, {"exposeHeaders", c.ExposeHeaders}} {
		for i, v := range list.values {
			if !isToken(v) {
				return fmt.Errorf("cors.%s[%d] %q: not a token", list.name, i, v)
			}
		}
	}
	return nil
}

func redirectFilter(r *mesh.Redirect, m *mesh.Match) error {
	switch r.Scheme {
	case "", "http", "https":
	default:
		return fmt.Errorf("redirect.scheme: unknown scheme %q", r.Scheme)
	}
	if r.Hostname != "" {
		if err := hostname(r.Hostname); err != nil {
			return fmt.Errorf("redirect.hostname %q: %w", r.Hostname, err)
		}
	}
	switch r.Status {
	case 301, 302, 303, 307, 308:
	default:
		return fmt.Errorf("redirect.status: %d", r.Status)
	}
	return pathEdit("redirect.path", r.Path, m)
}

func pathEdit(field string, e *mesh.PathEdit, m *mesh.Match) error {
	if e == nil {
		return nil
	}
	switch e.Kind {
	case mesh.PathReplaceFull:
	case mesh.PathReplacePrefix:
		if m.PathKind != mesh.MatchPrefix {
			return fmt.Errorf("%s: replaces a prefix where the rule matches none", field)
		}
	default:
		return fmt.Errorf("%s: unknown kind %d", field, e.Kind)
	}
	for i := range len(e.Value) {
		// "?" would make up a query, the rest would not arrive as one request target.
		if b := e.Value[i]; b <= ' ' || b >= 0x7f || b == '#' || b == '?' || b == '\\' {
			return fmt.Errorf("%s: %q has a character that no path has", field, e.Value)
		}
	}
	return nil
}

func headerEdit(field string, e *mesh.HeaderEdit) error {
	for _, l := range []struct {
		name   string
		values []mesh.HeaderValue
	}{{"set", e.Set}, {"add", e.Add}} {
		for i, h := range l.values {
			if err := fieldName(h.Name); err != nil {
				return fmt.Errorf("%s.%s[%d].name %q: %w", field, l.name, i, h.Name, err)
			}
			for j := range len(h.Value) {
				if b := h.Value[j]; b < ' ' && b != '\t' || b == 0x7f {
					return fmt.Errorf("%s.%s[%d].value: has a control character", field, l.name, i)
				}
			}
		}
	}
	for i, name := range e.Remove {
		if err := fieldName(name); err != nil {
			return fmt.Errorf("%s.remove[%d] %q: %w", field, i, name, err)
		}
	}
	return nil
}

func fieldName(name string) error {
	switch {
	case !isToken(name):
		return errors.New("not a token")
	case strings.ToLower(name) != name:
		return errors.New("not in lower case")
	}
	return nil
}

// isToken reports whether s is a token of RFC 9110 §5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		b := s[i]
		if (b < '0' || b > '9') && (b < 'a' || b > 'z') && (b < 'A' || b > 'Z') && strings.IndexByte("!#$%&'*+-.^_`|~", b) < 0 {
			return false
		}
	}
	return s != ""
}

// hostname accepts a lower-case host name without port, or an IP address.
func hostname(name string) error {
	host, _, ok := Hostname(nil, []byte(name))
	if !ok || len(host) == 0 || strings.ContainsAny(name, "* ") {
		return errors.New("not a host name")
	}
	if string(host) != name {
		return errors.New("not in lower case, or with a port or a final dot")
	}
	return nil
}

func normalPath(path string) (string, error) {
	if !strings.HasPrefix(path, "/") {
		return "", errors.New("does not start with a slash")
	}
	if strings.ContainsAny(path, "?#") {
		return "", errors.New("has a query or fragment")
	}
	out, ok := NormalizePath(nil, []byte(path))
	if !ok {
		return "", errors.New("not a path")
	}
	// Whoever replaces the prefix counts the elements of the path as written.
	if plain, _ := unescapePath(nil, []byte(path)); string(plain) != string(out) {
		return "", errors.New("has dot segments")
	}
	return string(out), nil
}
