package compile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/mesh"
)

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
		err = checkPath(value)
	case gatewayv1.PathMatchPathPrefix:
		m.PathKind, k[0] = mesh.MatchPrefix, pathPrefix
		err = checkPath(value)
		// A trailing "/" is not part of the prefix (HTTPPathMatch).
		if value = strings.TrimRight(value, "/"); value == "" {
			value = "/"
		}
	case gatewayv1.PathMatchRegularExpression:
		m.PathKind, k[0] = mesh.MatchRegexp, pathRegexp
		err = checkExpression(value)
	default:
		return m, k, fmt.Errorf("path.type: %q is not supported", kind)
	}
	if err != nil {
		return m, k, fmt.Errorf("path: %w", err)
	}
	m.Path, k[1] = value, len(value)
	if spec.Method != nil && *spec.Method != "" {
		if !isToken(string(*spec.Method)) {
			return m, k, fmt.Errorf("method: %q is not a method", *spec.Method)
		}
		m.Method, k[2] = string(*spec.Method), 1
	}
	for i, h := range spec.Headers {
		typ := gatewayv1.HeaderMatchExact
		if h.Type != nil {
			typ = *h.Type
		}
		if m.Headers, err = headerMatch(m.Headers, string(h.Name), string(typ), h.Value); err != nil {
			return m, k, fmt.Errorf("headers[%d]: %w", i, err)
		}
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

// headerMatch adds a condition on a header field to list.
func headerMatch(list []mesh.ValueMatch, name, typ, value string) ([]mesh.ValueMatch, error) {
	name = strings.ToLower(name)
	if !isToken(name) {
		return nil, fmt.Errorf("name: %q is not a header", name)
	}
	kind, err := valueKind(typ, value)
	if err != nil {
		return nil, err
	}
	return appendFirst(list, mesh.ValueMatch{Name: name, Kind: kind, Value: value}), nil
}

func valueKind(typ, value string) (mesh.MatchKind, error) {
	switch typ {
	case "", "Exact":
		return mesh.MatchExact, nil
	case "RegularExpression":
		return mesh.MatchRegexp, checkExpression(value)
	}
	return 0, fmt.Errorf("type: %q is not supported", typ)
}

// checkExpression accepts an RE2 expression by itself.
func checkExpression(expression string) error {
	if expression == "" {
		return errors.New("an empty expression matches nothing that is sent")
	}
	_, err := regexp.Compile(expression)
	return err
}

// pathCharacters is the schema's pattern of HTTPPathMatch.value.
var pathCharacters = regexp.MustCompile(`^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$`)

// checkPath accepts what the schema accepts as an Exact or PathPrefix value, less
// what some servers read as a dot segment: no request would ever match it.
func checkPath(value string) error {
	plain := strings.NewReplacer("%2e", ".", "%2f", "/", "%5c", "/", ";", "/").Replace(strings.ToLower(value))
	switch {
	case !strings.HasPrefix(value, "/"):
		return fmt.Errorf("%q does not start with a slash", value)
	case strings.Contains(value, "//"):
		return fmt.Errorf("%q has an empty element", value)
	case !pathCharacters.MatchString(value) || strings.Contains(strings.ToLower(value), "%2f") || strings.Contains(value, "%00"):
		return fmt.Errorf("%q has a character that no path has", value)
	}
	for element := range strings.SplitSeq(plain, "/") {
		if element == "." || element == ".." {
			return fmt.Errorf("%q has dot segments, which are resolved before matching", value)
		}
	}
	return nil
}

var methodCharacters = regexp.MustCompile(`^[A-Za-z0-9_.]*$`)

// isMethod accepts the name of a gRPC service or method, or none.
func isMethod(name string) bool { return methodCharacters.MatchString(name) }

// appendFirst appends v unless its name is there: of equivalent names only the
// first counts (HTTPHeaderMatch.name).
func appendFirst(list []mesh.ValueMatch, v mesh.ValueMatch) []mesh.ValueMatch {
	if slices.ContainsFunc(list, func(o mesh.ValueMatch) bool { return o.Name == v.Name }) {
		return list
	}
	return append(list, v)
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
		case exact && !isMethod(service) || exact && !isMethod(name):
			return m, k, fmt.Errorf("method: %q and %q are not a service and a method", service, name)
		case exact && name == "":
			m.Path = "/" + service
		case exact && service == "":
			m.PathKind, m.Path = mesh.MatchRegexp, "/[^/]+/"+regexp.QuoteMeta(name)
		case exact:
			m.PathKind, m.Path = mesh.MatchExact, "/"+service+"/"+name
		default:
			m.PathKind, m.Path = mesh.MatchRegexp, "/"+anyIfEmpty(service)+"/"+anyIfEmpty(name)
			for _, expression := range []string{service, name} {
				// By itself first: "a)|(b" would only be well formed between our brackets.
				if _, err := regexp.Compile(expression); err != nil {
					return m, k, fmt.Errorf("method: %w", err)
				}
			}
			if err := checkExpression(m.Path); err != nil {
				return m, k, fmt.Errorf("method: %w", err)
			}
		}
	}
	for i, h := range spec.Headers {
		typ := gatewayv1.GRPCHeaderMatchExact
		if h.Type != nil {
			typ = *h.Type
		}
		if m.Headers, err = headerMatch(m.Headers, string(h.Name), string(typ), h.Value); err != nil {
			return m, k, fmt.Errorf("headers[%d]: %w", i, err)
		}
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
