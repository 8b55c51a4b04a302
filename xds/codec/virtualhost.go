package codec

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
)

// Keys of a route's metadata.
const (
	// keyFilters lists the kinds of the rule's filters, when they are not exactly
	// those and in the order that Envoy's fields tell.
	keyFilters = "filters"
	// keyReplacePrefix is the prefix replacement as the route wrote it, when Envoy
	// needs another text to do the same.
	keyReplacePrefix = "replace_prefix"
	// keyReplaceFull is the full path replacement of a backend; Envoy has none.
	keyReplaceFull = "replace_full"
	// keyMirrors and keyRedirect are the mirrors and the redirect of a backend; Envoy
	// has them for whole routes only.
	keyMirrors  = "mirrors"
	keyRedirect = "redirect"
	// keyBackends has one Struct for each weighted cluster, with the keys above.
	keyBackends = "backends"
)

// retryOn are Envoy's conditions that Retry stands for. Connection failures are
// always retried, codes are listed apart.
const retryOn = "connect-failure,refused-stream,reset-before-request,retriable-status-codes"

// wholePath is the expression by which Envoy replaces a full path.
const wholePath = "^/.*$"

func encodeVirtualHost(v *mesh.VirtualHost) (*routev3.VirtualHost, error) {
	if v.Table == "" {
		return nil, at("Table", "empty")
	}
	if err := checkHostname(v.Hostname); err != nil {
		return nil, below("Hostname", err)
	}
	m := &routev3.VirtualHost{Name: v.Key(), Domains: []string{v.Hostname}}
	for i := range v.Rules {
		r, err := encodeRule(&v.Rules[i])
		if err != nil {
			return nil, below(fmt.Sprintf("Rules[%d]", i), err)
		}
		m.Routes = append(m.Routes, r)
	}
	return m, nil
}

func decodeVirtualHost(m *routev3.VirtualHost) (*mesh.VirtualHost, error) {
	if len(m.GetDomains()) != 1 {
		return nil, at("domains", "%d domains, want one", len(m.GetDomains()))
	}
	v := &mesh.VirtualHost{Hostname: m.GetDomains()[0]}
	if err := checkHostname(v.Hostname); err != nil {
		return nil, below("domains[0]", err)
	}
	last := v.Hostname
	if last == "*" {
		last = "_"
	}
	table, ok := strings.CutSuffix(m.GetName(), "/"+last)
	if !ok || table == "" {
		return nil, at("name", "%q is not a table followed by /%s", m.GetName(), last)
	}
	v.Table = table
	for i, mr := range m.GetRoutes() {
		r, err := decodeRule(mr)
		if err != nil {
			return nil, below(fmt.Sprintf("routes[%d]", i), err)
		}
		v.Rules = append(v.Rules, r)
	}
	return v, nil
}

func checkHostname(h string) error {
	switch {
	case h == "*":
		return nil
	case h == "", h == "_", h == "*.":
		return fmt.Errorf("%q is not a hostname", h)
	case strings.Contains(strings.TrimPrefix(h, "*."), "*"):
		return fmt.Errorf("%q has a wildcard that is not its first label", h)
	case strings.ContainsAny(h, "/ \t\r\n\x00"):
		return fmt.Errorf("%q is not a hostname", h)
	case h != strings.ToLower(h):
		return fmt.Errorf("%q is not in lower case", h)
	}
	return nil
}

// ruleName is "KIND/NAMESPACE/NAME/RULE/MATCH" and, if the rule has a name,
// "/RULENAME". Envoy shows it as the route's name in its logs.
func ruleName(r *mesh.Rule) (string, error) {
	for field, s := range map[string]string{"RouteKind": r.RouteKind, "Route.Namespace": r.Route.Namespace, "Route.Name": r.Route.Name} {
		if strings.Contains(s, "/") {
			return "", at(field, "%q contains a slash", s)
		}
	}
	if r.RuleIndex < 0 || r.MatchIndex < 0 {
		return "", at("RuleIndex", "negative index")
	}
	name := fmt.Sprintf("%s/%s/%d/%d", r.RouteKind, r.Route, r.RuleIndex, r.MatchIndex)
	if r.RuleName != "" {
		name += "/" + r.RuleName
	}
	return name, nil
}

func readRuleName(name string, r *mesh.Rule) error {
	parts := strings.SplitN(name, "/", 6)
	if len(parts) < 5 {
		return fmt.Errorf(`%q is not "KIND/NAMESPACE/NAME/RULE/MATCH[/RULENAME]"`, name)
	}
	r.RouteKind = parts[0]
	r.Route = mesh.Name{Namespace: parts[1], Name: parts[2]}
	var err error
	if r.RuleIndex, err = strconv.Atoi(parts[3]); err != nil {
		return err
	}
	if r.MatchIndex, err = strconv.Atoi(parts[4]); err != nil {
		return err
	}
	if len(parts) == 6 {
		r.RuleName = parts[5]
	}
	return nil
}

func encodeRule(r *mesh.Rule) (*routev3.Route, error) {
	name, err := ruleName(r)
	if err != nil {
		return nil, err
	}
	match, err := encodeMatch(&r.Match)
	if err != nil {
		return nil, below("Match", err)
	}
	filters, err := splitFilters(r.Filters)
	if err != nil {
		return nil, below("Filters", err)
	}
	m := &routev3.Route{Name: name, Match: match}
	fields := map[string]*structpb.Value{}
	clusters, err := effective(r.Clusters)
	if err != nil {
		return nil, below("Clusters", err)
	}
	prefix := matchedPrefix(&r.Match)
	switch {
	case filters.redirect != nil:
		filters.dropForwarding()
		redirect, err := encodeRedirect(filters.redirect, prefix, fields)
		if err != nil {
			return nil, below("Filters.Redirect", err)
		}
		m.Action = &routev3.Route_Redirect{Redirect: redirect}
	case len(clusters) == 0:
		filters.dropForwarding()
		m.Action = &routev3.Route_DirectResponse{
			DirectResponse: &routev3.DirectResponseAction{Status: http.StatusInternalServerError},
		}
	default:
		action, err := encodeAction(r, clusters, filters, prefix, fields)
		if err != nil {
			return nil, err
		}
		m.Action = &routev3.Route_Route{Route: action}
	}
	m.RequestHeadersToAdd, m.RequestHeadersToRemove = encodeEdit(filters.request)
	m.ResponseHeadersToAdd, m.ResponseHeadersToRemove = encodeEdit(filters.response)
	if m.TypedPerFilterConfig, err = encodeCORS(filters.cors); err != nil {
		return nil, below("Filters.CORS", err)
	}
	if !filters.canonical() {
		fields[keyFilters] = textList(filters.order)
	}
	if m.Tracing, err = encodeTracing(r.Tracing); err != nil {
		return nil, below("Tracing", err)
	}
	m.Metadata = metadata(fields)
	return m, nil
}

// effective returns the clusters, or none when nobody could get a request.
func effective(clusters []mesh.WeightedCluster) ([]mesh.WeightedCluster, error) {
	var sum uint64
	for i := range clusters {
		if err := checkClusterName(clusters[i].Cluster); err != nil {
			return nil, below(fmt.Sprintf("[%d].Cluster", i), err)
		}
		sum += uint64(clusters[i].Weight)
	}
	switch {
	case sum > math.MaxUint32:
		return nil, fmt.Errorf("weights add up to %d, above 32 bits", sum)
	case sum == 0:
		return nil, nil
	}
	return clusters, nil
}

// checkClusterName accepts a cluster's name, or "" for none.
func checkClusterName(name string) error {
	if name == "" {
		return nil
	}
	_, _, err := clusterNameParts(name)
	return err
}

func decodeRule(m *routev3.Route) (mesh.Rule, error) {
	var r mesh.Rule
	if err := readRuleName(m.GetName(), &r); err != nil {
		return r, below("name", err)
	}
	var err error
	if r.Match, err = decodeMatch(m.GetMatch()); err != nil {
		return r, below("match", err)
	}
	if r.Tracing, err = decodeTracing(m.GetTracing()); err != nil {
		return r, below("tracing", err)
	}
	fields := metadataFields(m.GetMetadata())
	filters := filterSet{
		request:  decodeEdit(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		response: decodeEdit(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
	}
	if filters.cors, err = decodeCORS(m.GetTypedPerFilterConfig()); err != nil {
		return r, below("typed_per_filter_config", err)
	}
	switch {
	case m.GetRedirect() != nil:
		filters.redirect = decodeRedirect(m.GetRedirect(), fields)
	case m.GetRoute() != nil:
		if err := decodeAction(m.GetRoute(), &r, &filters, fields); err != nil {
			return r, below("route", err)
		}
	case m.GetDirectResponse() == nil:
		return r, errors.New("action is none of route, redirect and direct_response")
	}
	r.Filters, err = filters.join(fields)
	return r, err
}

// matchedPrefix returns the prefix that Envoy's match has, "" when it has none.
func matchedPrefix(m *mesh.Match) string {
	if m.PathKind != mesh.MatchPrefix {
		return ""
	}
	if m.Path == "/" {
		return "/"
	}
	return strings.TrimSuffix(m.Path, "/")
}

func encodeMatch(m *mesh.Match) (*routev3.RouteMatch, error) {
	out := new(routev3.RouteMatch)
	switch m.PathKind {
	case 0:
		if m.Path != "" {
			return nil, at("Path", "%q without a kind", m.Path)
		}
		out.PathSpecifier = &routev3.RouteMatch_Prefix{}
	case mesh.MatchExact:
		if !strings.HasPrefix(m.Path, "/") {
			return nil, at("Path", "%q does not begin with a slash", m.Path)
		}
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: m.Path}
	case mesh.MatchPrefix:
		if !strings.HasPrefix(m.Path, "/") {
			return nil, at("Path", "%q does not begin with a slash", m.Path)
		}
		if m.Path == "/" {
			out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: "/"}
		} else {
			out.PathSpecifier = &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: strings.TrimSuffix(m.Path, "/")}
		}
	case mesh.MatchRegexp:
		if err := checkExpression(m.Path); err != nil {
			return nil, below("Path", err)
		}
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: m.Path}}
	default:
		return nil, at("PathKind", "%d is not known", m.PathKind)
	}
	if m.Method != "" {
		out.Headers = append(out.Headers, &routev3.HeaderMatcher{
			Name:                 ":method",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly(m.Method)},
		})
	}
	for i := range m.Headers {
		h := &m.Headers[i]
		value, err := encodeValueMatch(h)
		if err != nil {
			return nil, below(fmt.Sprintf("Headers[%d]", i), err)
		}
		if strings.HasPrefix(h.Name, ":") {
			return nil, at(fmt.Sprintf("Headers[%d].Name", i), "%q is not a header field", h.Name)
		}
		out.Headers = append(out.Headers, &routev3.HeaderMatcher{
			Name:                 h.Name,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: value},
		})
	}
	for i := range m.Query {
		value, err := encodeValueMatch(&m.Query[i])
		if err != nil {
			return nil, below(fmt.Sprintf("Query[%d]", i), err)
		}
		out.QueryParameters = append(out.QueryParameters, &routev3.QueryParameterMatcher{
			Name:                         m.Query[i].Name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: value},
		})
	}
	return out, nil
}

// checkExpression compiles an expression as it will be used, anchored.
func checkExpression(expr string) error {
	if expr == "" {
		return errors.New("empty expression")
	}
	_, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	return err
}

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func encodeValueMatch(m *mesh.ValueMatch) (*matcherv3.StringMatcher, error) {
	switch m.Kind {
	case mesh.MatchExact:
		return exactly(m.Value), nil
	case mesh.MatchRegexp:
		if err := checkExpression(m.Value); err != nil {
			return nil, below("Value", err)
		}
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
			SafeRegex: &matcherv3.RegexMatcher{Regex: m.Value},
		}}, nil
	}
	return nil, at("Kind", "%d is not known", m.Kind)
}

func decodeMatch(m *routev3.RouteMatch) (mesh.Match, error) {
	var out mesh.Match
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		switch p.Prefix {
		case "":
		case "/":
			out.PathKind, out.Path = mesh.MatchPrefix, "/"
		default:
			return out, at("prefix", "%q does not end at a path element", p.Prefix)
		}
	case *routev3.RouteMatch_Path:
		out.PathKind, out.Path = mesh.MatchExact, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.PathKind, out.Path = mesh.MatchPrefix, p.PathSeparatedPrefix
	case *routev3.RouteMatch_SafeRegex:
		out.PathKind, out.Path = mesh.MatchRegexp, p.SafeRegex.GetRegex()
	default:
		return out, fmt.Errorf("path specifier %T: %w", p, errUnsupported)
	}
	for i, h := range m.GetHeaders() {
		if i == 0 && h.GetName() == ":method" {
			out.Method = h.GetStringMatch().GetExact()
			continue
		}
		out.Headers = append(out.Headers, decodeValueMatch(h.GetName(), h.GetStringMatch()))
	}
	for _, q := range m.GetQueryParameters() {
		out.Query = append(out.Query, decodeValueMatch(q.GetName(), q.GetStringMatch()))
	}
	return out, nil
}

func decodeValueMatch(name string, m *matcherv3.StringMatcher) mesh.ValueMatch {
	if e := m.GetSafeRegex(); e != nil {
		return mesh.ValueMatch{Name: name, Kind: mesh.MatchRegexp, Value: e.GetRegex()}
	}
	return mesh.ValueMatch{Name: name, Kind: mesh.MatchExact, Value: m.GetExact()}
}

func encodeAction(r *mesh.Rule, clusters []mesh.WeightedCluster, filters *filterSet, prefix string, fields map[string]*structpb.Value) (*routev3.RouteAction, error) {
	if r.Timeouts.Request < 0 || r.Timeouts.Backend < 0 {
		return nil, at("Timeouts", "negative")
	}
	// Envoy takes an absent timeout for 15 seconds and zero for none.
	m := &routev3.RouteAction{Timeout: durationpb.New(r.Timeouts.Request)}
	retry, err := encodeRetry(r)
	if err != nil {
		return nil, below("Retry", err)
	}
	m.RetryPolicy = retry
	if m.RequestMirrorPolicies, err = encodeMirrors(filters.mirrors); err != nil {
		return nil, err
	}
	if w := filters.rewrite; w != nil {
		if w.Hostname != "" {
			m.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: w.Hostname}
		}
		if w.Path != nil {
			switch w.Path.Kind {
			case mesh.PathReplaceFull:
				m.RegexRewrite = replaceExpression(wholePath, w.Path.Value)
			case mesh.PathReplacePrefix:
				m.PrefixRewrite, m.RegexRewrite = encodePrefix(prefix, w.Path.Value, fields)
			default:
				return nil, at("Filters.Rewrite.Path.Kind", "%d is not known", w.Path.Kind)
			}
		}
	}
	if len(clusters) == 1 && clusters[0].Cluster != "" && clusters[0].Weight == 1 && len(clusters[0].Filters) == 0 {
		m.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusters[0].Cluster}
		return m, nil
	}
	weighted := new(routev3.WeightedCluster)
	backends := make([]*structpb.Value, len(clusters))
	more := false
	for i := range clusters {
		w, extra, err := encodeBackend(&clusters[i], prefix)
		if err != nil {
			return nil, below(fmt.Sprintf("Clusters[%d]", i), err)
		}
		if clusters[i].Cluster == "" {
			m.ClusterNotFoundResponseCode = routev3.RouteAction_INTERNAL_SERVER_ERROR
		}
		more = more || len(extra) > 0
		backends[i] = structpb.NewStructValue(&structpb.Struct{Fields: extra})
		weighted.Clusters = append(weighted.Clusters, w)
	}
	if more {
		fields[keyBackends] = structpb.NewListValue(&structpb.ListValue{Values: backends})
	}
	m.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	return m, nil
}

func encodeBackend(c *mesh.WeightedCluster, prefix string) (*routev3.WeightedCluster_ClusterWeight, map[string]*structpb.Value, error) {
	filters, err := splitFilters(c.Filters)
	if err != nil {
		return nil, nil, below("Filters", err)
	}
	w := &routev3.WeightedCluster_ClusterWeight{Name: c.Cluster, Weight: wrapperspb.UInt32(c.Weight)}
	if w.Name == "" {
		w.Name = invalidCluster
	}
	w.RequestHeadersToAdd, w.RequestHeadersToRemove = encodeEdit(filters.request)
	w.ResponseHeadersToAdd, w.ResponseHeadersToRemove = encodeEdit(filters.response)
	if w.TypedPerFilterConfig, err = encodeCORS(filters.cors); err != nil {
		return nil, nil, below("Filters.CORS", err)
	}
	extra := map[string]*structpb.Value{}
	if err := encodeBackendMirrors(filters.mirrors, extra); err != nil {
		return nil, nil, err
	}
	if filters.redirect != nil {
		if err := encodeBackendRedirect(filters.redirect, prefix, extra); err != nil {
			return nil, nil, err
		}
	}
	if r := filters.rewrite; r != nil {
		if r.Hostname != "" {
			w.HostRewriteSpecifier = &routev3.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: r.Hostname}
		}
		if r.Path != nil {
			switch r.Path.Kind {
			case mesh.PathReplaceFull:
				extra[keyReplaceFull] = structpb.NewStringValue(r.Path.Value)
			case mesh.PathReplacePrefix:
				extra[keyReplacePrefix] = structpb.NewStringValue(r.Path.Value)
			default:
				return nil, nil, at("Filters.Rewrite.Path.Kind", "%d is not known", r.Path.Kind)
			}
		}
	}
	if !filters.canonical() {
		extra[keyFilters] = textList(filters.order)
	}
	return w, extra, nil
}

func decodeAction(m *routev3.RouteAction, r *mesh.Rule, filters *filterSet, fields map[string]*structpb.Value) error {
	if m.GetTimeout() == nil {
		return at("timeout", "absent, which means 15 seconds: %w", errUnsupported)
	}
	var err error
	if r.Timeouts.Request, err = duration(m.GetTimeout()); err != nil {
		return below("timeout", err)
	}
	if err := decodeRetry(m.GetRetryPolicy(), r); err != nil {
		return below("retry_policy", err)
	}
	filters.mirrors = decodeMirrors(m.GetRequestMirrorPolicies())
	rewrite := mesh.Rewrite{Hostname: m.GetHostRewriteLiteral()}
	if v := fields[keyReplacePrefix]; v != nil {
		rewrite.Path = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: v.GetStringValue()}
	} else if m.GetPrefixRewrite() != "" {
		rewrite.Path = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: m.GetPrefixRewrite()}
	} else if m.GetRegexRewrite() != nil {
		value, err := readExpression(m.GetRegexRewrite())
		if err != nil {
			return below("regex_rewrite", err)
		}
		rewrite.Path = &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: value}
	}
	if rewrite != (mesh.Rewrite{}) {
		filters.rewrite = &rewrite
	}
	if name := m.GetCluster(); name != "" {
		r.Clusters = []mesh.WeightedCluster{{Cluster: name, Weight: 1}}
		return nil
	}
	backends := fields[keyBackends].GetListValue().GetValues()
	for i, w := range m.GetWeightedClusters().GetClusters() {
		var extra map[string]*structpb.Value
		if i < len(backends) {
			extra = backends[i].GetStructValue().GetFields()
		}
		c, err := decodeBackend(w, extra)
		if err != nil {
			return below(fmt.Sprintf("weighted_clusters.clusters[%d]", i), err)
		}
		r.Clusters = append(r.Clusters, c)
	}
	if len(r.Clusters) == 0 {
		return at("cluster_specifier", "%w", errUnsupported)
	}
	return nil
}

func decodeBackend(m *routev3.WeightedCluster_ClusterWeight, extra map[string]*structpb.Value) (mesh.WeightedCluster, error) {
	c := mesh.WeightedCluster{Cluster: m.GetName(), Weight: m.GetWeight().GetValue()}
	if c.Cluster == invalidCluster {
		c.Cluster = ""
	}
	filters := filterSet{
		request:  decodeEdit(m.GetRequestHeadersToAdd(), m.GetRequestHeadersToRemove()),
		response: decodeEdit(m.GetResponseHeadersToAdd(), m.GetResponseHeadersToRemove()),
		mirrors:  decodeBackendMirrors(extra), redirect: decodeBackendRedirect(extra),
	}
	var err error
	if filters.cors, err = decodeCORS(m.GetTypedPerFilterConfig()); err != nil {
		return c, below("typed_per_filter_config", err)
	}
	rewrite := mesh.Rewrite{Hostname: m.GetHostRewriteLiteral()}
	if v := extra[keyReplaceFull]; v != nil {
		rewrite.Path = &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: v.GetStringValue()}
	} else if v := extra[keyReplacePrefix]; v != nil {
		rewrite.Path = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: v.GetStringValue()}
	}
	if rewrite != (mesh.Rewrite{}) {
		filters.rewrite = &rewrite
	}
	c.Filters, err = filters.join(extra)
	return c, err
}

func encodeRetry(r *mesh.Rule) (*routev3.RetryPolicy, error) {
	if r.Retry == nil && r.Timeouts.Backend == 0 {
		return nil, nil
	}
	m := &routev3.RetryPolicy{NumRetries: wrapperspb.UInt32(0)}
	if r.Timeouts.Backend > 0 {
		m.PerTryTimeout = durationpb.New(r.Timeouts.Backend)
	}
	if r.Retry == nil {
		return m, nil
	}
	if r.Retry.Attempts < 0 || int64(r.Retry.Attempts) > math.MaxUint32 {
		return nil, at("Attempts", "%d is out of range", r.Retry.Attempts)
	}
	m.RetryOn = retryOn
	m.NumRetries.Value = uint32(r.Retry.Attempts)
	for i, code := range r.Retry.Codes {
		if code < 100 || code > 599 {
			return nil, at(fmt.Sprintf("Codes[%d]", i), "%d is not a status code", code)
		}
		m.RetriableStatusCodes = append(m.RetriableStatusCodes, uint32(code))
	}
	switch {
	case r.Retry.Backoff < 0:
		return nil, at("Backoff", "negative")
	case r.Retry.Backoff > 0:
		m.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(r.Retry.Backoff)}
	}
	return m, nil
}

func decodeRetry(m *routev3.RetryPolicy, r *mesh.Rule) error {
	if m == nil {
		return nil
	}
	var err error
	if r.Timeouts.Backend, err = duration(m.GetPerTryTimeout()); err != nil {
		return below("per_try_timeout", err)
	}
	if m.GetRetryOn() == "" {
		return nil
	}
	r.Retry = &mesh.Retry{Attempts: int(m.GetNumRetries().GetValue())}
	for _, code := range m.GetRetriableStatusCodes() {
		r.Retry.Codes = append(r.Retry.Codes, int(code))
	}
	if r.Retry.Backoff, err = duration(m.GetRetryBackOff().GetBaseInterval()); err != nil {
		return below("retry_back_off.base_interval", err)
	}
	return nil
}

// duration reads a duration that nanoseconds in 64 bits can hold; absent is zero.
func duration(m *durationpb.Duration) (time.Duration, error) {
	if m == nil {
		return 0, nil
	}
	if err := m.CheckValid(); err != nil {
		return 0, err
	}
	return m.AsDuration(), nil // saturates, which unread finds
}
