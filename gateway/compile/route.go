package compile

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Rule is a mesh.Rule with what decides its place among others.
type Rule struct {
	mesh.Rule
	rank rank
}

// rank has the criteria of HTTPRouteRule.matches and GRPCRouteRule.matches in
// order; greater comes first. HTTP: class of path match, its length, method,
// headers, query. gRPC: length of service, of method, headers.
type rank [5]int

// Classes of path matches. The place of regular expressions is ours to choose
// (HTTPRoute.spec.rules.matches): between exact paths and prefixes, the longer
// expression first.
const (
	pathPrefix = iota
	pathRegexp
	pathExact
)

// Dropped is a rule that is not supported: its requests are answered with 500
// (it has no clusters), or cannot even be told (an invalid expression).
type Dropped struct {
	Rule int
	Why  string
}

// Route compiles the rules of a route. Each match becomes a rule, in the order of
// the object.
func Route(o kube.Object, backends graph.Backends) ([]Rule, []Dropped) {
	var rules []Rule
	var dropped []Dropped
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		rules, dropped = httpRoute(o, backends.Clusters)
	case *gatewayv1.GRPCRoute:
		rules, dropped = grpcRoute(o, backends.Clusters)
	}
	// What is wrong with the annotation is said in the route's status.
	if tracing, err := Tracing(o); err == nil && tracing != nil {
		for i := range rules {
			rules[i].Tracing = tracing
		}
	}
	return rules, dropped
}

func httpRoute(o *gatewayv1.HTTPRoute, clusters [][]string) (rules []Rule, dropped []Dropped) {
	for i := range o.Spec.Rules {
		spec := &o.Spec.Rules[i]
		base := mesh.Rule{Route: mesh.Name{Namespace: o.Namespace, Name: o.Name}, RouteKind: string(kube.KindHTTPRoute), RuleIndex: i}
		if spec.Name != nil {
			base.RuleName = string(*spec.Name)
		}
		if err := httpAction(&base, spec, clusters[i]); err != nil {
			dropped = append(dropped, Dropped{Rule: i, Why: err.Error()})
			base.Filters, base.Clusters, base.Timeouts, base.Retry = nil, nil, mesh.Timeouts{}, nil
		}
		matches := spec.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j := range matches {
			r := Rule{Rule: base}
			r.MatchIndex = j
			var err error
			if r.Match, r.rank, err = httpMatch(&matches[j]); err != nil {
				dropped = append(dropped, Dropped{Rule: i, Why: fmt.Sprintf("matches[%d]: %v", j, err)})
				continue
			}
			rules = append(rules, r)
		}
	}
	return rules, dropped
}

// httpAction fills in what happens to the requests of a rule.
func httpAction(r *mesh.Rule, spec *gatewayv1.HTTPRouteRule, clusters []string) error {
	if spec.SessionPersistence != nil {
		return fmt.Errorf("sessionPersistence is not supported")
	}
	var err error
	if r.Filters, err = httpFilters(spec.Filters, true); err != nil {
		return err
	}
	for j := range spec.BackendRefs {
		b := &spec.BackendRefs[j]
		wc := mesh.WeightedCluster{Cluster: clusters[j], Weight: weight(b.Weight)}
		if wc.Filters, err = httpFilters(b.Filters, false); err != nil {
			return fmt.Errorf("backendRefs[%d]: %w", j, err)
		}
		r.Clusters = append(r.Clusters, wc)
	}
	if t := spec.Timeouts; t != nil {
		if r.Timeouts.Request, err = duration("timeouts.request", t.Request); err != nil {
			return err
		}
		if r.Timeouts.Backend, err = duration("timeouts.backendRequest", t.BackendRequest); err != nil {
			return err
		}
	}
	if s := spec.Retry; s != nil {
		attempts := 1
		if s.Attempts != nil {
			attempts = *s.Attempts
		}
		backoff, err := duration("retry.backoff", s.Backoff)
		if err != nil {
			return err
		}
		if attempts > 0 {
			r.Retry = &mesh.Retry{Attempts: attempts, Backoff: backoff}
			for _, code := range s.Codes {
				r.Retry.Codes = append(r.Retry.Codes, int(code))
			}
			slices.Sort(r.Retry.Codes)
			r.Retry.Codes = slices.Compact(r.Retry.Codes)
		}
	}
	return nil
}

func weight(w *int32) uint32 {
	switch {
	case w == nil:
		return 1
	case *w < 0:
		return 0
	}
	return uint32(*w)
}

// duration parses a Gateway API duration (GEP-2257), which is a subset of Go's.
func duration(field string, d *gatewayv1.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	v, err := time.ParseDuration(string(*d))
	if err != nil || v < 0 {
		return 0, fmt.Errorf("%s: %q is not a duration", field, *d)
	}
	return v, nil
}

func httpFilters(specs []gatewayv1.HTTPRouteFilter, ofRule bool) ([]mesh.Filter, error) {
	var filters []mesh.Filter
	for i := range specs {
		spec := &specs[i]
		missing := fmt.Errorf("filters[%d]: %s has no settings", i, spec.Type)
		var f mesh.Filter
		switch spec.Type {
		case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
			if spec.RequestHeaderModifier == nil {
				return nil, missing
			}
			var err error
			if f.RequestHeaders, err = headerEdit(spec.RequestHeaderModifier); err != nil {
				return nil, fmt.Errorf("filters[%d]: %w", i, err)
			}
		case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
			if spec.ResponseHeaderModifier == nil {
				return nil, missing
			}
			var err error
			if f.ResponseHeaders, err = headerEdit(spec.ResponseHeaderModifier); err != nil {
				return nil, fmt.Errorf("filters[%d]: %w", i, err)
			}
		case gatewayv1.HTTPRouteFilterRequestRedirect:
			if spec.RequestRedirect == nil {
				return nil, missing
			}
			if !ofRule {
				return nil, fmt.Errorf("filters[%d]: %s is not supported for a backend", i, spec.Type)
			}
			var err error
			if f.Redirect, err = redirect(spec.RequestRedirect); err != nil {
				return nil, fmt.Errorf("filters[%d]: %w", i, err)
			}
		case gatewayv1.HTTPRouteFilterURLRewrite:
			if spec.URLRewrite == nil {
				return nil, missing
			}
			f.Rewrite = &mesh.Rewrite{}
			if spec.URLRewrite.Hostname != nil {
				f.Rewrite.Hostname = string(*spec.URLRewrite.Hostname)
			}
			var err error
			if f.Rewrite.Path, err = pathEdit(spec.URLRewrite.Path); err != nil {
				return nil, fmt.Errorf("filters[%d]: %w", i, err)
			}
		default:
			return nil, fmt.Errorf("filters[%d]: %s is not supported", i, spec.Type)
		}
		filters = append(filters, f)
	}
	return filters, nil
}

// headerEdit compiles a header modifier. The schemas leave values unchecked: one
// with a line break would be a header, or a request, of its own.
func headerEdit(spec *gatewayv1.HTTPHeaderFilter) (*mesh.HeaderEdit, error) {
	e := &mesh.HeaderEdit{}
	values := func(headers []gatewayv1.HTTPHeader) (out []mesh.HeaderValue, err error) {
		for _, h := range headers {
			name := strings.ToLower(string(h.Name))
			if !isToken(name) || strings.ContainsFunc(h.Value, isControl) {
				return nil, fmt.Errorf("%q is not a header", name)
			}
			out = append(out, mesh.HeaderValue{Name: name, Value: h.Value})
		}
		return out, nil
	}
	var err error
	if e.Set, err = values(spec.Set); err != nil {
		return nil, err
	}
	if e.Add, err = values(spec.Add); err != nil {
		return nil, err
	}
	for _, name := range spec.Remove {
		if name = strings.ToLower(name); !isToken(name) {
			return nil, fmt.Errorf("%q is not a header", name)
		}
		e.Remove = append(e.Remove, name)
	}
	return e, nil
}

// isToken reports whether s is a token of RFC 9110 §5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	})
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

func redirect(spec *gatewayv1.HTTPRequestRedirectFilter) (*mesh.Redirect, error) {
	r := &mesh.Redirect{Status: 302}
	if spec.Scheme != nil {
		r.Scheme = strings.ToLower(*spec.Scheme)
	}
	if spec.Hostname != nil {
		r.Hostname = string(*spec.Hostname)
	}
	if spec.Port != nil {
		r.Port = uint16(*spec.Port)
	}
	if spec.StatusCode != nil {
		r.Status = *spec.StatusCode
	}
	switch r.Status {
	case 301, 302, 303, 307, 308:
	default:
		return nil, fmt.Errorf("requestRedirect.statusCode: %d is not supported", r.Status)
	}
	var err error
	r.Path, err = pathEdit(spec.Path)
	return r, err
}

// pathEdit compiles a path modifier, whose values the schemas leave unchecked too.
func pathEdit(spec *gatewayv1.HTTPPathModifier) (*mesh.PathEdit, error) {
	var e *mesh.PathEdit
	switch {
	case spec == nil:
		return nil, nil
	case spec.Type == gatewayv1.FullPathHTTPPathModifier && spec.ReplaceFullPath != nil:
		e = &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: *spec.ReplaceFullPath}
	case spec.Type == gatewayv1.PrefixMatchHTTPPathModifier && spec.ReplacePrefixMatch != nil:
		e = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: *spec.ReplacePrefixMatch}
	default:
		return nil, fmt.Errorf("path: %q without its value", spec.Type)
	}
	if e.Value != "" && e.Value[0] != '/' || strings.ContainsFunc(e.Value, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) {
		return nil, fmt.Errorf("path: %q is not a path", e.Value)
	}
	return e, nil
}

func httpMatch(spec *gatewayv1.HTTPRouteMatch) (m mesh.Match, k rank, err error) {
	kind, value := gatewayv1.PathMatchPathPrefix, "/"
	if spec.Path != nil {
		if spec.Path.Type != nil {
			kind = *spec.Path.Type
		}
		if spec.Path.Value != nil {
			value = *spec.Path.Value
		}
	}
	switch kind {
	case gatewayv1.PathMatchExact:
		m.PathKind, k[0] = mesh.MatchExact, pathExact
	case gatewayv1.PathMatchPathPrefix:
		m.PathKind, k[0] = mesh.MatchPrefix, pathPrefix
		// A trailing "/" is not part of the prefix (HTTPPathMatch).
		if value = strings.TrimRight(value, "/"); value == "" {
			value = "/"
		}
	case gatewayv1.PathMatchRegularExpression:
		m.PathKind, k[0] = mesh.MatchRegexp, pathRegexp
		if _, err := regexp.Compile(value); err != nil {
			return m, k, fmt.Errorf("path: %w", err)
		}
	default:
		return m, k, fmt.Errorf("path.type: %q is not supported", kind)
	}
	m.Path, k[1] = value, len(value)
	if spec.Method != nil && *spec.Method != "" {
		m.Method, k[2] = string(*spec.Method), 1
	}
	for i, h := range spec.Headers {
		v := mesh.ValueMatch{Name: strings.ToLower(string(h.Name)), Kind: mesh.MatchExact, Value: h.Value}
		if h.Type != nil {
			if v.Kind, err = valueKind(string(*h.Type), h.Value); err != nil {
				return m, k, fmt.Errorf("headers[%d]: %w", i, err)
			}
		}
		m.Headers = appendFirst(m.Headers, v)
	}
	for i, q := range spec.QueryParams {
		v := mesh.ValueMatch{Name: string(q.Name), Kind: mesh.MatchExact, Value: q.Value}
		if q.Type != nil {
			if v.Kind, err = valueKind(string(*q.Type), q.Value); err != nil {
				return m, k, fmt.Errorf("queryParams[%d]: %w", i, err)
			}
		}
		m.Query = appendFirst(m.Query, v)
	}
	k[3], k[4] = len(m.Headers), len(m.Query)
	return m, k, nil
}

func valueKind(typ, value string) (mesh.MatchKind, error) {
	switch typ {
	case "", "Exact":
		return mesh.MatchExact, nil
	case "RegularExpression":
		_, err := regexp.Compile(value)
		return mesh.MatchRegexp, err
	}
	return 0, fmt.Errorf("type: %q is not supported", typ)
}

// appendFirst appends v unless its name is there: of equivalent names only the
// first counts (HTTPHeaderMatch.name).
func appendFirst(list []mesh.ValueMatch, v mesh.ValueMatch) []mesh.ValueMatch {
	if slices.ContainsFunc(list, func(o mesh.ValueMatch) bool { return o.Name == v.Name }) {
		return list
	}
	return append(list, v)
}

func grpcRoute(o *gatewayv1.GRPCRoute, clusters [][]string) (rules []Rule, dropped []Dropped) {
	for i := range o.Spec.Rules {
		spec := &o.Spec.Rules[i]
		base := mesh.Rule{Route: mesh.Name{Namespace: o.Namespace, Name: o.Name}, RouteKind: string(kube.KindGRPCRoute), RuleIndex: i}
		if spec.Name != nil {
			base.RuleName = string(*spec.Name)
		}
		if err := grpcAction(&base, spec, clusters[i]); err != nil {
			dropped = append(dropped, Dropped{Rule: i, Why: err.Error()})
			base.Filters, base.Clusters = nil, nil
		}
		matches := spec.Matches
		if len(matches) == 0 {
			matches = []gatewayv1.GRPCRouteMatch{{}}
		}
		for j := range matches {
			r := Rule{Rule: base}
			r.MatchIndex = j
			var err error
			if r.Match, r.rank, err = grpcMatch(&matches[j]); err != nil {
				dropped = append(dropped, Dropped{Rule: i, Why: fmt.Sprintf("matches[%d]: %v", j, err)})
				continue
			}
			rules = append(rules, r)
		}
	}
	return rules, dropped
}

func grpcAction(r *mesh.Rule, spec *gatewayv1.GRPCRouteRule, clusters []string) error {
	if spec.SessionPersistence != nil {
		return fmt.Errorf("sessionPersistence is not supported")
	}
	var err error
	if r.Filters, err = grpcFilters(spec.Filters); err != nil {
		return err
	}
	for j := range spec.BackendRefs {
		b := &spec.BackendRefs[j]
		wc := mesh.WeightedCluster{Cluster: clusters[j], Weight: weight(b.Weight)}
		if wc.Filters, err = grpcFilters(b.Filters); err != nil {
			return fmt.Errorf("backendRefs[%d]: %w", j, err)
		}
		r.Clusters = append(r.Clusters, wc)
	}
	return nil
}

func grpcFilters(specs []gatewayv1.GRPCRouteFilter) ([]mesh.Filter, error) {
	var filters []mesh.Filter
	for i := range specs {
		spec := &specs[i]
		var f mesh.Filter
		var err error
		switch {
		case spec.Type == gatewayv1.GRPCRouteFilterRequestHeaderModifier && spec.RequestHeaderModifier != nil:
			f.RequestHeaders, err = headerEdit(spec.RequestHeaderModifier)
		case spec.Type == gatewayv1.GRPCRouteFilterResponseHeaderModifier && spec.ResponseHeaderModifier != nil:
			f.ResponseHeaders, err = headerEdit(spec.ResponseHeaderModifier)
		default:
			err = fmt.Errorf("%s is not supported", spec.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("filters[%d]: %w", i, err)
		}
		filters = append(filters, f)
	}
	return filters, nil
}

// grpcMatch writes a gRPC method as the path "/SERVICE/METHOD" that it has on the
// wire.
func grpcMatch(spec *gatewayv1.GRPCRouteMatch) (m mesh.Match, k rank, err error) {
	m.PathKind, m.Path = mesh.MatchPrefix, "/"
	if method := spec.Method; method != nil {
		service, name := deref(method.Service), deref(method.Method)
		k[0], k[1] = len(service), len(name)
		exact := method.Type == nil || *method.Type == gatewayv1.GRPCMethodMatchExact
		switch {
		case !exact && *method.Type != gatewayv1.GRPCMethodMatchRegularExpression:
			return m, k, fmt.Errorf("method.type: %q is not supported", *method.Type)
		case service == "" && name == "":
		case exact && name == "":
			m.Path = "/" + service
		case exact && service == "":
			m.PathKind, m.Path = mesh.MatchRegexp, "/[^/]+/"+regexp.QuoteMeta(name)
		case exact:
			m.PathKind, m.Path = mesh.MatchExact, "/"+service+"/"+name
		default:
			m.PathKind, m.Path = mesh.MatchRegexp, "/"+anyIfEmpty(service)+"/"+anyIfEmpty(name)
			if _, err := regexp.Compile(m.Path); err != nil {
				return m, k, fmt.Errorf("method: %w", err)
			}
		}
	}
	for i, h := range spec.Headers {
		v := mesh.ValueMatch{Name: strings.ToLower(string(h.Name)), Kind: mesh.MatchExact, Value: h.Value}
		if h.Type != nil {
			if v.Kind, err = valueKind(string(*h.Type), h.Value); err != nil {
				return m, k, fmt.Errorf("headers[%d]: %w", i, err)
			}
		}
		m.Headers = appendFirst(m.Headers, v)
	}
	k[2] = len(m.Headers)
	return m, k, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func anyIfEmpty(expression string) string {
	if expression == "" {
		return "[^/]+"
	}
	return "(?:" + expression + ")"
}

// Contribution is the rules of one route under one hostname.
type Contribution struct {
	Route   kube.Key
	Created time.Time
	// Original is the hostname as the route has it.
	Original string
	Rules    []Rule
}

// VirtualHost merges the rules of routes by precedence: hostname as the route has
// it, then the match, then the age of the route, its name, and the order in it.
func VirtualHost(table, hostname string, contributions []Contribution) *mesh.VirtualHost {
	type entry struct {
		from *Contribution
		rule *Rule
	}
	n := 0
	for i := range contributions {
		n += len(contributions[i].Rules)
	}
	entries := make([]entry, 0, n)
	for i := range contributions {
		c := &contributions[i]
		for j := range c.Rules {
			entries = append(entries, entry{c, &c.Rules[j]})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		if a.from != b.from {
			if c := graph.CompareSpecificity(a.from.Original, b.from.Original); c != 0 {
				return c
			}
		}
		for i := range a.rule.rank {
			if c := cmp.Compare(b.rule.rank[i], a.rule.rank[i]); c != 0 {
				return c
			}
		}
		if a.from != b.from {
			if c := compareAge(a.from, b.from); c != 0 {
				return c
			}
		}
		if c := cmp.Compare(a.rule.RuleIndex, b.rule.RuleIndex); c != 0 {
			return c
		}
		return cmp.Compare(a.rule.MatchIndex, b.rule.MatchIndex)
	})
	v := &mesh.VirtualHost{Table: table, Hostname: hostname}
	if len(entries) > 0 {
		v.Rules = make([]mesh.Rule, len(entries))
		for i := range entries {
			v.Rules[i] = entries[i].rule.Rule
		}
	}
	return v
}

func compareAge(a, b *Contribution) int {
	return CompareAge(a.Created, a.Route, b.Created, b.Route)
}

// CompareAge orders routes by precedence: the older one, then the first by
// "NAMESPACE/NAME", then by kind.
func CompareAge(created time.Time, key kube.Key, otherCreated time.Time, other kube.Key) int {
	if c := created.Compare(otherCreated); c != 0 {
		return c
	}
	if c := strings.Compare(key.Namespace+"/"+key.Name, other.Namespace+"/"+other.Name); c != 0 {
		return c
	}
	return strings.Compare(string(key.Kind), string(other.Kind))
}
