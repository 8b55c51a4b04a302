package compile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/mesh"
)

// filters compiles the filters of a rule, or of one of its backends. A mirror whose
// backendRef does not resolve is left out (HTTPRequestMirrorFilter.backendRef);
// everything else that cannot be done is an error, so that no filter is skipped.
func (c *compiler) filters(rule, backend int, specs []gatewayv1.HTTPRouteFilter) ([]mesh.Filter, error) {
	var filters []mesh.Filter
	seen := map[gatewayv1.HTTPRouteFilterType]bool{}
	for i := range specs {
		spec := &specs[i]
		if seen[spec.Type] && spec.Type != gatewayv1.HTTPRouteFilterRequestMirror {
			return nil, fmt.Errorf("filters[%d]: a second %s", i, spec.Type)
		}
		seen[spec.Type] = true
		f, err := filter(spec)
		if err != nil {
			return nil, fmt.Errorf("filters[%d]: %w", i, err)
		}
		if f.Mirror != nil {
			if f.Mirror.Cluster = c.backends.Mirrors[graph.FilterAt{Rule: rule, Backend: backend, Filter: i}]; f.Mirror.Cluster == "" {
				continue
			}
		}
		filters = append(filters, f)
	}
	if seen[gatewayv1.HTTPRouteFilterRequestRedirect] && seen[gatewayv1.HTTPRouteFilterURLRewrite] {
		return nil, errors.New("filters: RequestRedirect and URLRewrite cannot be combined")
	}
	return filters, nil
}

func filter(spec *gatewayv1.HTTPRouteFilter) (f mesh.Filter, err error) {
	missing := fmt.Errorf("%s has no settings", spec.Type)
	switch spec.Type {
	case gatewayv1.HTTPRouteFilterRequestHeaderModifier:
		if spec.RequestHeaderModifier == nil {
			return f, missing
		}
		f.RequestHeaders, err = headerEdit("requestHeaderModifier", spec.RequestHeaderModifier)
	case gatewayv1.HTTPRouteFilterResponseHeaderModifier:
		if spec.ResponseHeaderModifier == nil {
			return f, missing
		}
		f.ResponseHeaders, err = headerEdit("responseHeaderModifier", spec.ResponseHeaderModifier)
	case gatewayv1.HTTPRouteFilterRequestRedirect:
		if spec.RequestRedirect == nil {
			return f, missing
		}
		f.Redirect, err = redirect(spec.RequestRedirect)
	case gatewayv1.HTTPRouteFilterURLRewrite:
		if spec.URLRewrite == nil {
			return f, missing
		}
		f.Rewrite = &mesh.Rewrite{}
		if f.Rewrite.Hostname, err = hostname("urlRewrite.hostname", spec.URLRewrite.Hostname); err == nil {
			f.Rewrite.Path, err = pathEdit("urlRewrite.path", spec.URLRewrite.Path)
		}
	case gatewayv1.HTTPRouteFilterRequestMirror:
		if spec.RequestMirror == nil {
			return f, missing
		}
		f.Mirror, err = mirror(spec.RequestMirror)
	case gatewayv1.HTTPRouteFilterCORS:
		if spec.CORS == nil {
			return f, missing
		}
		f.CORS, err = cors(spec.CORS)
	case gatewayv1.HTTPRouteFilterExtensionRef:
		if spec.ExtensionRef == nil {
			return f, missing
		}
		return f, fmt.Errorf("extensionRef: %s %s is not a filter that Sluice knows; it knows none of its own", spec.ExtensionRef.Kind, spec.ExtensionRef.Name)
	default:
		return f, fmt.Errorf("%s is not supported", spec.Type)
	}
	return f, err
}

// headerEdit compiles a header modifier. The schemas leave values unchecked: one
// with a line break would be a header, or a request, of its own. Names are compared
// without case; of equal ones in a list the first counts, and two kinds of action
// on one name are an error (HTTPHeaderFilter).
func headerEdit(field string, spec *gatewayv1.HTTPHeaderFilter) (*mesh.HeaderEdit, error) {
	e := &mesh.HeaderEdit{}
	actions := map[string]string{}
	first := func(action, name string) (string, bool, error) {
		name = strings.ToLower(name)
		switch {
		case !isToken(name):
			return "", false, fmt.Errorf("%s.%s: %q is not a header", field, action, name)
		case name == "host":
			return "", false, fmt.Errorf("%s.%s: host cannot be edited as a header; use urlRewrite.hostname", field, action)
		case ofTheHop(name):
			return "", false, fmt.Errorf("%s.%s: %s frames the message or concerns one hop; it cannot be edited", field, action, name)
		}
		before, again := actions[name]
		if again && before != action {
			return "", false, fmt.Errorf("%s: %s has both %s and %s; only one is allowed", field, name, before, action)
		}
		actions[name] = action
		return name, !again, nil
	}
	values := func(action string, headers []gatewayv1.HTTPHeader) (out []mesh.HeaderValue, err error) {
		for _, h := range headers {
			name, counts, err := first(action, string(h.Name))
			if err != nil {
				return nil, err
			}
			if strings.ContainsFunc(h.Value, isControl) {
				return nil, fmt.Errorf("%s.%s: the value of %s has a control character", field, action, name)
			}
			if counts {
				out = append(out, mesh.HeaderValue{Name: name, Value: h.Value})
			}
		}
		return out, nil
	}
	var err error
	if e.Set, err = values("set", spec.Set); err != nil {
		return nil, err
	}
	if e.Add, err = values("add", spec.Add); err != nil {
		return nil, err
	}
	for _, name := range spec.Remove {
		name, counts, err := first("remove", name)
		if err != nil {
			return nil, err
		}
		if counts {
			e.Remove = append(e.Remove, name)
		}
	}
	return e, nil
}

// ofTheHop are the fields that the proxy itself writes for each hop (RFC 9110
// §7.6.1) or that frame a message.
func ofTheHop(name string) bool {
	switch name {
	case "connection", "content-length", "expect", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer",
		"transfer-encoding", "upgrade":
		return true
	}
	return false
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
	switch r.Scheme {
	case "", "http", "https":
	default:
		return nil, fmt.Errorf("requestRedirect.scheme: %q is not supported; use http or https", r.Scheme)
	}
	if spec.Port != nil {
		if *spec.Port < 1 || *spec.Port > 65535 {
			return nil, fmt.Errorf("requestRedirect.port: %d is not a port", *spec.Port)
		}
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
	if r.Hostname, err = hostname("requestRedirect.hostname", spec.Hostname); err != nil {
		return nil, err
	}
	r.Path, err = pathEdit("requestRedirect.path", spec.Path)
	return r, err
}

// preciseHostname is the schema's pattern of PreciseHostname.
var preciseHostname = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func hostname(field string, name *gatewayv1.PreciseHostname) (string, error) {
	if name == nil || *name == "" {
		return "", nil
	}
	s := strings.ToLower(string(*name))
	if !preciseHostname.MatchString(s) {
		return "", fmt.Errorf("%s: %q is not a host name", field, s)
	}
	return s, nil
}

// pathEdit compiles a path modifier, whose values the schemas leave unchecked.
func pathEdit(field string, spec *gatewayv1.HTTPPathModifier) (*mesh.PathEdit, error) {
	var e *mesh.PathEdit
	switch {
	case spec == nil:
		return nil, nil
	case spec.Type == gatewayv1.FullPathHTTPPathModifier && spec.ReplaceFullPath != nil:
		e = &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: *spec.ReplaceFullPath}
	case spec.Type == gatewayv1.PrefixMatchHTTPPathModifier && spec.ReplacePrefixMatch != nil:
		e = &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: *spec.ReplacePrefixMatch}
	default:
		return nil, fmt.Errorf("%s: %q without its value", field, spec.Type)
	}
	if e.Value != "" && e.Value[0] != '/' || strings.ContainsFunc(e.Value, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`#?\`, r) }) {
		return nil, fmt.Errorf("%s: %q is not a path", field, e.Value)
	}
	return e, nil
}

// needsPrefix refuses a rule that replaces a prefix where its match has none
// (HTTPPathModifier.replacePrefixMatch).
func needsPrefix(r *mesh.Rule) error {
	if r.Match.PathKind == mesh.MatchPrefix {
		return nil
	}
	lists := [][]mesh.Filter{r.Filters}
	for i := range r.Clusters {
		lists = append(lists, r.Clusters[i].Filters)
	}
	replaces := func(e *mesh.PathEdit) bool { return e != nil && e.Kind == mesh.PathReplacePrefix }
	for _, list := range lists {
		for _, f := range list {
			if f.Redirect != nil && replaces(f.Redirect.Path) || f.Rewrite != nil && replaces(f.Rewrite.Path) {
				return fmt.Errorf("matches[%d]: replacePrefixMatch needs a match of type PathPrefix", r.MatchIndex)
			}
		}
	}
	return nil
}

// mirror compiles a mirror but for its cluster.
func mirror(spec *gatewayv1.HTTPRequestMirrorFilter) (*mesh.Mirror, error) {
	m := &mesh.Mirror{PerMillion: mesh.EveryRequest}
	switch {
	case spec.Percent != nil && spec.Fraction != nil:
		return nil, errors.New("requestMirror: only one of percent and fraction is allowed")
	case spec.Percent != nil:
		if *spec.Percent < 0 || *spec.Percent > 100 {
			return nil, fmt.Errorf("requestMirror.percent: %d is not between 0 and 100", *spec.Percent)
		}
		m.PerMillion = uint32(*spec.Percent) * (mesh.EveryRequest / 100)
	case spec.Fraction != nil:
		numerator, denominator := int64(spec.Fraction.Numerator), int64(100)
		if spec.Fraction.Denominator != nil {
			denominator = int64(*spec.Fraction.Denominator)
		}
		if numerator < 0 || denominator < 1 || numerator > denominator {
			return nil, fmt.Errorf("requestMirror.fraction: %d/%d is not between 0 and 1", numerator, denominator)
		}
		m.PerMillion = uint32((numerator*mesh.EveryRequest + denominator/2) / denominator)
	}
	return m, nil
}

// corsOrigin is the schema's pattern of CORSOrigin, without "*" alone.
var corsOrigin = regexp.MustCompile(`^https?://((\*\.)?([a-z0-9-]+\.)*[a-z0-9-]+|\*)(:[0-9]{1,5})?$`)

// defaultMaxAge is HTTPCORSFilter.maxAge's default in seconds.
const defaultMaxAge = 5

func cors(spec *gatewayv1.HTTPCORSFilter) (*mesh.CORS, error) {
	c := &mesh.CORS{AllowCredentials: spec.AllowCredentials != nil && *spec.AllowCredentials, MaxAge: defaultMaxAge}
	if spec.MaxAge > 0 {
		c.MaxAge = uint32(spec.MaxAge)
	}
	for i, o := range spec.AllowOrigins {
		origin := strings.ToLower(string(o))
		if origin == "*" && len(spec.AllowOrigins) > 1 {
			return nil, errors.New(`cors.allowOrigins: "*" allows no others beside it`)
		}
		if origin != "*" && !corsOrigin.MatchString(origin) {
			return nil, fmt.Errorf("cors.allowOrigins[%d]: %q is not SCHEME://HOST[:PORT]", i, o)
		}
		for _, standard := range []struct{ scheme, port string }{{"http://", ":80"}, {"https://", ":443"}} {
			if strings.HasPrefix(origin, standard.scheme) {
				origin = strings.TrimSuffix(origin, standard.port)
			}
		}
		if !slices.Contains(c.AllowOrigins, origin) {
			c.AllowOrigins = append(c.AllowOrigins, origin)
		}
	}
	for i, m := range spec.AllowMethods {
		switch {
		case m == "*" && len(spec.AllowMethods) > 1:
			return nil, errors.New(`cors.allowMethods: "*" allows no others beside it`)
		case !isToken(string(m)):
			return nil, fmt.Errorf("cors.allowMethods[%d]: %q is not a method", i, m)
		}
		c.AllowMethods = append(c.AllowMethods, string(m))
	}
	for i, h := range spec.AllowHeaders {
		switch {
		case h == "*" && len(spec.AllowHeaders) > 1:
			return nil, errors.New(`cors.allowHeaders: "*" allows no others beside it`)
		case !isToken(string(h)):
			return nil, fmt.Errorf("cors.allowHeaders[%d]: %q is not a header", i, h)
		}
		c.AllowHeaders = append(c.AllowHeaders, string(h))
	}
	for i, h := range spec.ExposeHeaders {
		if !isToken(string(h)) {
			return nil, fmt.Errorf("cors.exposeHeaders[%d]: %q is not a header", i, h)
		}
		c.ExposeHeaders = append(c.ExposeHeaders, string(h))
	}
	return c, nil
}
