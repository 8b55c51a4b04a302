package compile

import (
	"strings"
	"testing"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/graph"
)

// TestUnsafeValues wants values that would break out of their place on the wire
// to drop the rule: requests are answered with 500, the filter is not skipped.
func TestUnsafeValues(t *testing.T) {
	header := func(name, value string) gatewayv1.HTTPRouteFilter {
		return gatewayv1.HTTPRouteFilter{
			Type:                  gatewayv1.HTTPRouteFilterRequestHeaderModifier,
			RequestHeaderModifier: &gatewayv1.HTTPHeaderFilter{Set: []gatewayv1.HTTPHeader{{Name: gatewayv1.HTTPHeaderName(name), Value: value}}},
		}
	}
	path := func(value string) gatewayv1.HTTPRouteFilter {
		return gatewayv1.HTTPRouteFilter{
			Type:       gatewayv1.HTTPRouteFilterURLRewrite,
			URLRewrite: &gatewayv1.HTTPURLRewriteFilter{Path: &gatewayv1.HTTPPathModifier{Type: gatewayv1.FullPathHTTPPathModifier, ReplaceFullPath: &value}},
		}
	}
	for name, test := range map[string]struct {
		filter gatewayv1.HTTPRouteFilter
		ok     bool
	}{
		"plain header":           {header("X-A", "b c\tä"), true},
		"line break":             {header("x-a", "b\r\nx-admin: 1"), false},
		"zero byte":              {header("x-a", "b\x00"), false},
		"header name with colon": {header("x-a: b", "c"), false},
		"header name empty":      {header("", "c"), false},
		"host":                   {header("Host", "c"), false},
		"content-length":         {header("Content-Length", "5"), false},
		"plain path":             {path("/a/%20b"), true},
		"path with a query":      {path("/a?c=d"), false},
		"empty path":             {path(""), true},
		"path with space":        {path("/ HTTP/1.1"), false},
		"path with line break":   {path("/\r\nHost: x"), false},
		"path without slash":     {path("a"), false},
	} {
		route := &gatewayv1.HTTPRoute{Spec: gatewayv1.HTTPRouteSpec{Rules: []gatewayv1.HTTPRouteRule{{
			Filters: []gatewayv1.HTTPRouteFilter{test.filter}, BackendRefs: []gatewayv1.HTTPBackendRef{{}},
		}}}}
		rules, dropped := Route(route, graph.Backends{Clusters: [][]string{{"shop/reviews/80"}}})
		if test.ok != (len(dropped) == 0) {
			t.Errorf("%s: dropped %v", name, dropped)
		}
		if len(rules) != 1 || (len(rules[0].Clusters) == 0) == test.ok || (len(rules[0].Filters) == 0) == test.ok {
			t.Errorf("%s: rules %+v", name, rules)
		}
	}
}

// TestGRPCExtensionRef wants a filter that nobody knows to drop the rule, in words.
func TestGRPCExtensionRef(t *testing.T) {
	ref := &gatewayv1.LocalObjectReference{Group: "example.com", Kind: "Auth", Name: "auth"}
	filters := []gatewayv1.GRPCRouteFilter{{Type: gatewayv1.GRPCRouteFilterExtensionRef, ExtensionRef: ref}}
	route := &gatewayv1.GRPCRoute{Spec: gatewayv1.GRPCRouteSpec{Rules: []gatewayv1.GRPCRouteRule{
		{Filters: filters, BackendRefs: []gatewayv1.GRPCBackendRef{{}}},
		{BackendRefs: []gatewayv1.GRPCBackendRef{{Filters: filters}}},
	}}}
	rules, dropped := Route(route, graph.Backends{Clusters: [][]string{{"shop/reviews/80"}, {"shop/reviews/80"}}})
	if len(dropped) != 2 || len(rules) != 2 {
		t.Fatalf("%d rules, dropped %v", len(rules), dropped)
	}
	for i, d := range dropped {
		if !strings.Contains(d.Why, "extensionRef: Auth auth") || len(rules[i].Clusters) != 0 {
			t.Errorf("rule %d: %q, clusters %v", i, d.Why, rules[i].Clusters)
		}
	}
}
