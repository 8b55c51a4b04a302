package compile

import (
	"cmp"
	"errors"
	"fmt"
	"math"
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

// ruleSpec is a rule of any kind of route: what it does as HTTPRoute says it, which
// includes all that GRPCRoute can say, and how its matches are compiled.
type ruleSpec struct {
	gatewayv1.HTTPRouteRule
	matches int
	match   func(j int) (mesh.Match, rank, error)
}

// Route compiles the rules of a route. Each match becomes a rule, in the order of
// the object.
func Route(o kube.Object, backends graph.Backends) ([]Rule, []Dropped) {
	var kind kube.Kind
	var specs []ruleSpec
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		kind = kube.KindHTTPRoute
		for i := range o.Spec.Rules {
			spec := &o.Spec.Rules[i]
			specs = append(specs, ruleSpec{*spec, len(spec.Matches), func(j int) (mesh.Match, rank, error) { return httpMatch(at(spec.Matches, j)) }})
		}
	case *gatewayv1.GRPCRoute:
		kind = kube.KindGRPCRoute
		for i := range o.Spec.Rules {
			spec := &o.Spec.Rules[i]
			specs = append(specs, ruleSpec{grpcRule(spec), len(spec.Matches), func(j int) (mesh.Match, rank, error) { return grpcMatch(at(spec.Matches, j)) }})
		}
	}
	c := compiler{backends: backends}
	// What is wrong with the annotation is said in the route's status.
	tracing, _ := Tracing(o)
	for i := range specs {
		c.rule(mesh.Rule{Route: mesh.Name{Namespace: o.GetNamespace(), Name: o.GetName()}, RouteKind: string(kind), RuleIndex: i, Tracing: tracing}, &specs[i])
	}
	return c.rules, c.dropped
}

// at returns an element of matches, or an empty one, which matches everything, if
// there is none.
func at[T any](matches []T, j int) *T {
	if len(matches) == 0 {
		return new(T)
	}
	return &matches[j]
}

// grpcRule says a GRPCRoute's rule as HTTPRoute would.
func grpcRule(spec *gatewayv1.GRPCRouteRule) gatewayv1.HTTPRouteRule {
	out := gatewayv1.HTTPRouteRule{Name: spec.Name, Filters: grpcFilters(spec.Filters), SessionPersistence: spec.SessionPersistence}
	for _, b := range spec.BackendRefs {
		out.BackendRefs = append(out.BackendRefs, gatewayv1.HTTPBackendRef{BackendRef: b.BackendRef, Filters: grpcFilters(b.Filters)})
	}
	return out
}

func grpcFilters(specs []gatewayv1.GRPCRouteFilter) (out []gatewayv1.HTTPRouteFilter) {
	for _, f := range specs {
		out = append(out, gatewayv1.HTTPRouteFilter{
			Type: gatewayv1.HTTPRouteFilterType(f.Type), RequestHeaderModifier: f.RequestHeaderModifier,
			ResponseHeaderModifier: f.ResponseHeaderModifier, RequestMirror: f.RequestMirror, ExtensionRef: f.ExtensionRef,
		})
	}
	return out
}

type compiler struct {
	backends graph.Backends
	rules    []Rule
	dropped  []Dropped
}

// rule compiles the rule that base names.
func (c *compiler) rule(base mesh.Rule, spec *ruleSpec) {
	if spec.Name != nil {
		base.RuleName = string(*spec.Name)
	}
	wrong := c.action(&base, &spec.HTTPRouteRule)
	for j := range max(spec.matches, 1) {
		r := Rule{Rule: base}
		r.MatchIndex = j
		var err error
		if r.Match, r.rank, err = spec.match(j); err != nil {
			c.drop(base.RuleIndex, fmt.Errorf("matches[%d]: %w", j, err))
			continue
		}
		if wrong == nil {
			wrong = needsPrefix(&r.Rule)
		}
		if wrong != nil {
			r.Filters, r.Clusters, r.Timeouts, r.Retry = nil, nil, mesh.Timeouts{}, nil
		}
		c.rules = append(c.rules, r)
	}
	if wrong != nil {
		c.drop(base.RuleIndex, wrong)
	}
}

func (c *compiler) drop(rule int, why error) {
	c.dropped = append(c.dropped, Dropped{Rule: rule, Why: why.Error()})
}

// action fills in what happens to the requests of a rule.
func (c *compiler) action(r *mesh.Rule, spec *gatewayv1.HTTPRouteRule) error {
	if spec.SessionPersistence != nil {
		return errors.New("sessionPersistence is not supported")
	}
	var err error
	if r.Filters, err = c.filters(r.RuleIndex, graph.OfRule, spec.Filters); err != nil {
		return err
	}
	for j := range spec.BackendRefs {
		b := &spec.BackendRefs[j]
		wc := mesh.WeightedCluster{Cluster: c.backends.Clusters[r.RuleIndex][j], Weight: weight(b.Weight)}
		if wc.Filters, err = c.filters(r.RuleIndex, j, b.Filters); err != nil {
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
	r.Retry, err = retry(spec.Retry)
	return err
}

// retry compiles a rule's retries, nil if it wants none.
func retry(spec *gatewayv1.HTTPRouteRetry) (*mesh.Retry, error) {
	if spec == nil || spec.Attempts != nil && *spec.Attempts == 0 {
		return nil, nil
	}
	r := &mesh.Retry{Attempts: 1}
	if spec.Attempts != nil {
		r.Attempts = *spec.Attempts
	}
	if r.Attempts < 0 || r.Attempts > math.MaxInt32 {
		return nil, fmt.Errorf("retry.attempts: %d is out of range", r.Attempts)
	}
	var err error
	if r.Backoff, err = duration("retry.backoff", spec.Backoff); err != nil {
		return nil, err
	}
	for _, code := range spec.Codes {
		if code < 400 || code > 599 {
			return nil, fmt.Errorf("retry.codes: %d is not the status of an error", code)
		}
		r.Codes = append(r.Codes, int(code))
	}
	slices.Sort(r.Codes)
	r.Codes = slices.Compact(r.Codes)
	return r, nil
}

// weight reads a BackendRef's weight, whose maximum is 1,000,000.
func weight(w *int32) uint32 {
	switch {
	case w == nil:
		return 1
	case *w < 0:
		return 0
	}
	return uint32(min(*w, 1_000_000))
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
