package manifest

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube"
)

// report takes in what is wrong with a field.
type report func(field, text, cure string)

// check applies the rules of the API: those of each type wherever it occurs, then
// those between fields.
func check(o kube.Object, bad report) {
	checkName(o, bad)
	walk(reflect.ValueOf(o).Elem(), "", bad)
	switch o := o.(type) {
	case *corev1.Service:
		checkService(o, bad)
	case *corev1.Secret:
		if o.Type == corev1.SecretTypeTLS {
			for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
				if len(o.Data[key]) == 0 {
					bad(fmt.Sprintf("data[%s]", key), "is missing", "a Secret of type kubernetes.io/tls needs tls.crt and tls.key")
				}
			}
		}
	case *discoveryv1.EndpointSlice:
		checkEndpointSlice(o, bad)
	case *corev1.Pod:
		for i, ip := range o.Status.PodIPs {
			if _, err := netip.ParseAddr(ip.IP); err != nil {
				bad(fmt.Sprintf("status.podIPs[%d].ip", i), fmt.Sprintf("%q is not an IP address", ip.IP), "")
			}
		}
	case *gatewayv1.GatewayClass:
		if o.Spec.ControllerName == "" {
			bad("spec.controllerName", "is missing", "for Sluice it is sluice.dev/gateway-controller")
		}
	case *gatewayv1.Gateway:
		checkGateway(o, bad)
	case *gatewayv1.HTTPRoute:
		checkHTTPRoute(o, bad)
	case *gatewayv1.GRPCRoute:
		checkGRPCRoute(o, bad)
	case *gatewayv1.ReferenceGrant:
		if len(o.Spec.From) == 0 {
			bad("spec.from", "is empty", "")
		}
		if len(o.Spec.To) == 0 {
			bad("spec.to", "is empty", "")
		}
	}
}

// checkWarnings tells of what is allowed and yet surely not meant.
func checkWarnings(o kube.Object, warn report) {
	var parents []gatewayv1.ParentReference
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute:
		parents = o.Spec.ParentRefs
	case *gatewayv1.GRPCRoute:
		parents = o.Spec.ParentRefs
	default:
		return
	}
	if len(parents) == 0 {
		warn("spec.parentRefs", "is empty, so that the route has no effect", "name a Gateway or a Service")
	}
	for i, ref := range parents {
		gateway := *ref.Group == gatewayv1.GroupName && *ref.Kind == gatewayv1.Kind(kube.KindGateway)
		service := *ref.Group == "" && *ref.Kind == gatewayv1.Kind(kube.KindService)
		switch {
		case gateway || service:
		case *ref.Kind == gatewayv1.Kind(kube.KindService):
			warn(fmt.Sprintf("spec.parentRefs[%d].group", i), fmt.Sprintf("there is no Service in group %q", *ref.Group), `use group: ""`)
		default:
			warn(fmt.Sprintf("spec.parentRefs[%d].kind", i), fmt.Sprintf("%s is not known as a parent, the route does not attach there", *ref.Kind), "use Gateway or Service")
		}
	}
}

func checkName(o kube.Object, bad report) {
	name, valid := o.GetName(), validation.IsDNS1123Subdomain
	switch o.(type) {
	case *corev1.Namespace:
		valid = validation.IsDNS1123Label
	case *corev1.Service:
		valid = validation.IsDNS1035Label
	}
	if name == "" {
		bad("metadata.name", "is missing", "")
		return
	}
	if problems := valid(name); len(problems) > 0 {
		bad("metadata.name", fmt.Sprintf("%q is not a name", name), problems[0])
	}
	if ns := o.GetNamespace(); ns != "" {
		if problems := validation.IsDNS1123Label(ns); len(problems) > 0 {
			bad("metadata.namespace", fmt.Sprintf("%q is not a namespace", ns), problems[0])
		}
	}
	for key, value := range o.GetLabels() {
		if len(validation.IsQualifiedName(key)) > 0 {
			bad("metadata.labels", fmt.Sprintf("%q is not a label's name", key), "")
		}
		if problems := validation.IsValidLabelValue(value); len(problems) > 0 {
			bad("metadata.labels["+key+"]", fmt.Sprintf("%q is not a label's value", value), problems[0])
		}
	}
}

var (
	hostname        = regexp.MustCompile(`^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	preciseHostname = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	durationText    = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)
	token           = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$")
	pathCharacters  = regexp.MustCompile(`^(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+$`)
	methodName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9]*$`)
	serviceName     = regexp.MustCompile(`^[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$`)
)

// rule says what is wrong with a value, and the cure.
type rule func(s string) (text, cure string)

func oneOf(values ...string) rule {
	return func(s string) (string, string) {
		if slices.Contains(values, s) {
			return "", ""
		}
		if s == "" {
			return "is missing", "one of " + strings.Join(values, ", ")
		}
		return fmt.Sprintf("%q is not known", s), "one of " + strings.Join(values, ", ")
	}
}

func matching(expression *regexp.Regexp, what, cure string) rule {
	return func(s string) (string, string) {
		if s == "" {
			return "is missing", ""
		}
		if !expression.MatchString(s) {
			return fmt.Sprintf("%q is not %s", s, what), cure
		}
		return "", ""
	}
}

func noAddress(r rule) rule {
	return func(s string) (string, string) {
		if _, err := netip.ParseAddr(s); err == nil {
			return fmt.Sprintf("%q is an IP address", s), "hostnames are DNS names"
		}
		return r(s)
	}
}

func required(s string) (string, string) {
	if s == "" {
		return "is missing", ""
	}
	return "", ""
}

// rules by type: what the schemas of the APIs say of a named type.
var rules = map[reflect.Type]rule{
	reflect.TypeFor[gatewayv1.Hostname](): func(s string) (string, string) {
		if s == "" {
			return "", "" // an empty one counts as none
		}
		return noAddress(matching(hostname, "a hostname", `lower case, without port, "*." only in front`))(s)
	},
	reflect.TypeFor[gatewayv1.PreciseHostname]():      noAddress(matching(preciseHostname, "a hostname", "lower case, without port and wildcard")),
	reflect.TypeFor[gatewayv1.Duration]():             matching(durationText, "a duration", `such as "1m30s" or "500ms"`),
	reflect.TypeFor[gatewayv1.SectionName]():          matching(preciseHostname, "a section name", "lower case letters, digits, - and ."),
	reflect.TypeFor[gatewayv1.ObjectName]():           required,
	reflect.TypeFor[gatewayv1.Kind]():                 required,
	reflect.TypeFor[gatewayv1.Namespace]():            required,
	reflect.TypeFor[gatewayv1.HTTPHeaderName]():       matching(token, "a name of a header or parameter", "RFC 9110 §5.6.2"),
	reflect.TypeFor[gatewayv1.GRPCHeaderName]():       matching(token, "a header name", "RFC 9110 §5.6.2"),
	reflect.TypeFor[gatewayv1.HTTPMethod]():           oneOf("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"),
	reflect.TypeFor[gatewayv1.PathMatchType]():        oneOf("Exact", "PathPrefix", "RegularExpression"),
	reflect.TypeFor[gatewayv1.HeaderMatchType]():      oneOf("Exact", "RegularExpression"),
	reflect.TypeFor[gatewayv1.QueryParamMatchType]():  oneOf("Exact", "RegularExpression"),
	reflect.TypeFor[gatewayv1.GRPCMethodMatchType]():  oneOf("Exact", "RegularExpression"),
	reflect.TypeFor[gatewayv1.GRPCHeaderMatchType]():  oneOf("Exact", "RegularExpression"),
	reflect.TypeFor[gatewayv1.HTTPPathModifierType](): oneOf("ReplaceFullPath", "ReplacePrefixMatch"),
	reflect.TypeFor[gatewayv1.TLSModeType]():          oneOf("Terminate", "Passthrough"),
	reflect.TypeFor[gatewayv1.FromNamespaces]():       oneOf("All", "Selector", "Same", "None"),
	reflect.TypeFor[gatewayv1.ProtocolType]():         required,
	reflect.TypeFor[gatewayv1.HTTPRouteFilterType]():  oneOf("RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "RequestMirror", "CORS", "ExternalAuth", "ExtensionRef"),
	reflect.TypeFor[gatewayv1.GRPCRouteFilterType]():  oneOf("RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "ExtensionRef"),
	reflect.TypeFor[corev1.Protocol]():                oneOf("TCP", "UDP", "SCTP"),
	reflect.TypeFor[corev1.ServiceType]():             oneOf("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
	reflect.TypeFor[corev1.ServiceAffinity]():         oneOf("None", "ClientIP"),
	reflect.TypeFor[corev1.IPFamily]():                oneOf("IPv4", "IPv6"),
	reflect.TypeFor[corev1.IPFamilyPolicy]():          oneOf("SingleStack", "PreferDualStack", "RequireDualStack"),
	reflect.TypeFor[discoveryv1.AddressType]():        oneOf("IPv4", "IPv6", "FQDN"),
}

// walk applies the rules of types to v and all in it.
func walk(v reflect.Value, path string, bad report) {
	if r, ok := rules[v.Type()]; ok && v.Kind() == reflect.String {
		if text, cure := r(v.String()); text != "" {
			bad(path, text, cure)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			walk(v.Elem(), path, bad)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := range v.Len() {
			walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), bad)
		}
	case reflect.Struct:
		if h, ok := v.Interface().(gatewayv1.HTTPHeader); ok {
			if strings.ContainsFunc(h.Value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				bad(join(path, "value"), "has control characters", "a header value is one line of text")
			}
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case !f.IsExported() || name == "metadata":
			case f.Anonymous && name == "" || strings.Contains(options, "inline"):
				walk(v.Field(i), path, bad)
			case name == "port" || name == "containerPort":
				checkPort(v.Field(i), join(path, name), bad)
			default:
				// The zero value of an optional field means that it was not given.
				if strings.Contains(options, "omitempty") && v.Field(i).IsZero() {
					continue
				}
				walk(v.Field(i), join(path, name), bad)
			}
		}
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func checkPort(v reflect.Value, path string, bad report) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Int32 {
		return // the port of a probe may be a name
	}
	if n := v.Int(); n < 1 || n > 65535 {
		bad(path, fmt.Sprintf("%d is not a port", n), "1 to 65535")
	}
}

func checkService(o *corev1.Service, bad report) {
	spec := &o.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		if problems := validation.IsDNS1123Subdomain(strings.TrimSuffix(spec.ExternalName, ".")); len(problems) > 0 {
			bad("spec.externalName", fmt.Sprintf("%q is not a DNS name", spec.ExternalName), "type ExternalName needs one")
		}
		return
	}
	headless := spec.ClusterIP == corev1.ClusterIPNone
	if len(spec.Ports) == 0 && !headless {
		bad("spec.ports", "is empty", "name the ports that the Service has")
	}
	if headless && spec.Type != corev1.ServiceTypeClusterIP {
		bad("spec.clusterIP", fmt.Sprintf("None does not go with type %s", spec.Type), "")
	}
	names, numbers := map[string]bool{}, map[string]bool{}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		field := fmt.Sprintf("spec.ports[%d]", i)
		switch {
		case p.Name == "" && len(spec.Ports) > 1:
			bad(field+".name", "is missing", "with several ports each needs a name")
		case p.Name != "" && len(validation.IsDNS1123Label(p.Name)) > 0:
			bad(field+".name", fmt.Sprintf("%q is not a port's name", p.Name), "lower case letters, digits and -")
		case names[p.Name]:
			bad(field+".name", fmt.Sprintf("%q is there twice", p.Name), "")
		}
		names[p.Name] = true
		number := fmt.Sprintf("%s %d", p.Protocol, p.Port)
		if numbers[number] {
			bad(field+".port", number+" is there twice", "")
		}
		numbers[number] = true
		if n := p.TargetPort.IntVal; p.TargetPort.StrVal == "" && (n < 1 || n > 65535) {
			bad(field+".targetPort", fmt.Sprintf("%d is not a port", n), "1 to 65535, or the name of a container's port")
		}
	}
	if len(spec.ClusterIPs) > 0 && spec.ClusterIP != spec.ClusterIPs[0] {
		bad("spec.clusterIPs[0]", "is not the same as spec.clusterIP", "leave one of the two out")
	}
	families := map[bool]bool{}
	for i, text := range spec.ClusterIPs {
		if text == corev1.ClusterIPNone {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || a.Is4In6() || a.Zone() != "" {
			bad(fmt.Sprintf("spec.clusterIPs[%d]", i), fmt.Sprintf("%q is not an IP address", text), "")
			continue
		}
		if families[a.Is4()] {
			bad(fmt.Sprintf("spec.clusterIPs[%d]", i), "is of the same family as the one before", "at most one of each")
		}
		families[a.Is4()] = true
	}
	if a := spec.SessionAffinityConfig; a != nil && a.ClientIP != nil && a.ClientIP.TimeoutSeconds != nil {
		if n := *a.ClientIP.TimeoutSeconds; n < 1 || n > 86400 {
			bad("spec.sessionAffinityConfig.clientIP.timeoutSeconds", fmt.Sprintf("%d is out of range", n), "1 to 86400")
		}
	}
}

func checkEndpointSlice(o *discoveryv1.EndpointSlice, bad report) {
	if o.AddressType == "" {
		bad("addressType", "is missing", "one of IPv4, IPv6, FQDN")
	}
	for i := range o.Endpoints {
		e := &o.Endpoints[i]
		if len(e.Addresses) == 0 {
			bad(fmt.Sprintf("endpoints[%d].addresses", i), "is empty", "")
		}
		for j, text := range e.Addresses {
			if o.AddressType == discoveryv1.AddressTypeFQDN {
				continue
			}
			a, err := netip.ParseAddr(text)
			if err != nil || a.Is4() != (o.AddressType == discoveryv1.AddressTypeIPv4) || a.Zone() != "" {
				bad(fmt.Sprintf("endpoints[%d].addresses[%d]", i, j), fmt.Sprintf("%q is not an %s address", text, o.AddressType), "")
			}
		}
	}
}

func checkGateway(o *gatewayv1.Gateway, bad report) {
	if len(o.Spec.Listeners) == 0 {
		bad("spec.listeners", "is empty", "")
	}
	names, places := map[gatewayv1.SectionName]bool{}, map[string]bool{}
	for i := range o.Spec.Listeners {
		l := &o.Spec.Listeners[i]
		field := fmt.Sprintf("spec.listeners[%d]", i)
		if names[l.Name] {
			bad(field+".name", fmt.Sprintf("%q is there twice", l.Name), "")
		}
		names[l.Name] = true
		host := ""
		if l.Hostname != nil {
			host = string(*l.Hostname)
		}
		place := fmt.Sprintf("%d %s %s", l.Port, l.Protocol, host)
		if places[place] {
			bad(field, "another listener has the same port, protocol and hostname", "")
		}
		places[place] = true
		switch l.Protocol {
		case gatewayv1.HTTPProtocolType, gatewayv1.TCPProtocolType, gatewayv1.UDPProtocolType:
			if l.TLS != nil {
				bad(field+".tls", fmt.Sprintf("does not go with protocol %s", l.Protocol), "use HTTPS, or remove tls")
			}
		case gatewayv1.HTTPSProtocolType:
			if l.TLS != nil && *l.TLS.Mode != gatewayv1.TLSModeTerminate {
				bad(field+".tls.mode", "must be Terminate for protocol HTTPS", "")
			}
		}
		if host != "" && (l.Protocol == gatewayv1.TCPProtocolType || l.Protocol == gatewayv1.UDPProtocolType) {
			bad(field+".hostname", fmt.Sprintf("does not go with protocol %s", l.Protocol), "")
		}
	}
	for i, a := range o.Spec.Addresses {
		if *a.Type != gatewayv1.IPAddressType || a.Value == "" {
			continue
		}
		if _, err := netip.ParseAddr(a.Value); err != nil {
			bad(fmt.Sprintf("spec.addresses[%d].value", i), fmt.Sprintf("%q is not an IP address", a.Value), "")
		}
	}
}

func checkHTTPRoute(o *gatewayv1.HTTPRoute, bad report) {
	checkParents(o.Spec.ParentRefs, bad)
	ruleNames := map[gatewayv1.SectionName]bool{}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		field := fmt.Sprintf("spec.rules[%d]", i)
		if r.Name != nil {
			if ruleNames[*r.Name] {
				bad(field+".name", fmt.Sprintf("%q is there twice", *r.Name), "")
			}
			ruleNames[*r.Name] = true
		}
		onePrefix := len(r.Matches) == 1 && *r.Matches[0].Path.Type == gatewayv1.PathMatchPathPrefix
		for j := range r.Matches {
			checkPath(r.Matches[j].Path, fmt.Sprintf("%s.matches[%d].path", field, j), bad)
		}
		checkHTTPFilters(r.Filters, field+".filters", onePrefix, bad)
		redirects := slices.ContainsFunc(r.Filters, func(f gatewayv1.HTTPRouteFilter) bool { return f.RequestRedirect != nil })
		if redirects && len(r.BackendRefs) > 0 {
			bad(field+".backendRefs", "does not go with a RequestRedirect filter", "a redirect answers by itself; remove one of the two")
		}
		for j := range r.BackendRefs {
			b := fmt.Sprintf("%s.backendRefs[%d]", field, j)
			checkBackend(&r.BackendRefs[j].BackendRef, b, bad)
			checkHTTPFilters(r.BackendRefs[j].Filters, b+".filters", onePrefix, bad)
		}
		if t := r.Timeouts; t != nil && t.Request != nil && t.BackendRequest != nil {
			whole, err1 := time.ParseDuration(string(*t.Request))
			each, err2 := time.ParseDuration(string(*t.BackendRequest))
			if err1 == nil && err2 == nil && whole != 0 && each > whole {
				bad(field+".timeouts.backendRequest", "is longer than timeouts.request", "each try is a part of the request")
			}
		}
		if r.Retry != nil {
			for j, code := range r.Retry.Codes {
				if code < 400 || code > 599 {
					bad(fmt.Sprintf("%s.retry.codes[%d]", field, j), fmt.Sprintf("%d cannot be retried", code), "400 to 599")
				}
			}
			if *r.Retry.Attempts < 0 {
				bad(field+".retry.attempts", "is negative", "0 disables retries")
			}
		}
	}
}

// checkPath applies the CEL rules of HTTPPathMatch.
func checkPath(p *gatewayv1.HTTPPathMatch, field string, bad report) {
	v := *p.Value
	if *p.Type == gatewayv1.PathMatchRegularExpression {
		if _, err := regexp.Compile(v); err != nil {
			bad(field+".value", plain(err), "RE2 syntax, https://github.com/google/re2/wiki/Syntax")
		}
		return
	}
	if !strings.HasPrefix(v, "/") {
		bad(field+".value", fmt.Sprintf("%q does not begin with /", v), "")
		return
	}
	for _, part := range []string{"//", "/./", "/../", "%2f", "%2F", "#"} {
		if strings.Contains(v, part) {
			bad(field+".value", fmt.Sprintf("must not have %q in it", part), "paths are compared after normalisation")
			return
		}
	}
	for _, end := range []string{"/..", "/."} {
		if strings.HasSuffix(v, end) {
			bad(field+".value", fmt.Sprintf("must not end in %q", end), "paths are compared after normalisation")
			return
		}
	}
	if !pathCharacters.MatchString(v) {
		bad(field+".value", fmt.Sprintf("%q has characters that a path does not have", v), "percent-encode them, leave the query out")
	}
}

func checkHTTPFilters(filters []gatewayv1.HTTPRouteFilter, field string, onePrefix bool, bad report) {
	count := map[gatewayv1.HTTPRouteFilterType]int{}
	for i := range filters {
		f := &filters[i]
		at := fmt.Sprintf("%s[%d]", field, i)
		if count[f.Type]++; count[f.Type] == 2 && f.Type != gatewayv1.HTTPRouteFilterRequestMirror && f.Type != gatewayv1.HTTPRouteFilterExtensionRef {
			bad(at, fmt.Sprintf("%s is there twice", f.Type), "put both into one")
		}
		checkUnion(reflect.ValueOf(f).Elem(), at, bad)
		var path *gatewayv1.HTTPPathModifier
		if f.RequestRedirect != nil {
			path = f.RequestRedirect.Path
			if s := f.RequestRedirect.Scheme; s != nil && *s != "http" && *s != "https" {
				bad(at+".requestRedirect.scheme", fmt.Sprintf("%q is not known", *s), "one of http, https")
			}
			if !slices.Contains([]int{301, 302, 303, 307, 308}, *f.RequestRedirect.StatusCode) {
				bad(at+".requestRedirect.statusCode", fmt.Sprintf("%d is not a redirection", *f.RequestRedirect.StatusCode), "one of 301, 302, 303, 307, 308")
			}
		}
		if f.URLRewrite != nil {
			path = f.URLRewrite.Path
		}
		if path == nil {
			continue
		}
		switch {
		case path.Type == gatewayv1.FullPathHTTPPathModifier && path.ReplaceFullPath == nil:
			bad(at+".path.replaceFullPath", "is missing", "")
		case path.Type == gatewayv1.PrefixMatchHTTPPathModifier && path.ReplacePrefixMatch == nil:
			bad(at+".path.replacePrefixMatch", "is missing", "")
		case path.ReplaceFullPath != nil && path.ReplacePrefixMatch != nil:
			bad(at+".path", "has both replaceFullPath and replacePrefixMatch", "keep the one that type names")
		case path.ReplacePrefixMatch != nil && !onePrefix:
			bad(at+".path.replacePrefixMatch", "needs a rule with exactly one match, of type PathPrefix", "split the rule")
		}
	}
	if count[gatewayv1.HTTPRouteFilterRequestRedirect] > 0 && count[gatewayv1.HTTPRouteFilterURLRewrite] > 0 {
		bad(field, "RequestRedirect and URLRewrite do not go together", "a redirect can change the URL by itself")
	}
}

// checkUnion wants the settings of a filter to be those of its type.
func checkUnion(f reflect.Value, at string, bad report) {
	typ := f.FieldByName("Type").String()
	for i := range f.NumField() {
		name, _, _ := strings.Cut(f.Type().Field(i).Tag.Get("json"), ",")
		if f.Field(i).Kind() != reflect.Pointer {
			continue
		}
		mine := strings.EqualFold(name, typ)
		switch {
		case mine && f.Field(i).IsNil():
			bad(at+"."+name, fmt.Sprintf("is missing for a filter of type %s", typ), "")
		case !mine && !f.Field(i).IsNil():
			bad(at+"."+name, fmt.Sprintf("does not go with type %s", typ), "")
		}
	}
}

func checkBackend(b *gatewayv1.BackendRef, field string, bad report) {
	if *b.Group == "" && *b.Kind == gatewayv1.Kind(kube.KindService) && b.Port == nil {
		bad(field+".port", "is missing", "a Service as a backend needs the port")
	}
	if *b.Weight < 0 || *b.Weight > 1_000_000 {
		bad(field+".weight", fmt.Sprintf("%d is out of range", *b.Weight), "0 to 1000000")
	}
}

func checkParents(refs []gatewayv1.ParentReference, bad report) {
	seen := map[string]bool{}
	for i, ref := range refs {
		id := fmt.Sprintf("%s/%s %v/%s", *ref.Group, *ref.Kind, value(ref.Namespace), ref.Name)
		section := fmt.Sprintf(" %v %v", value(ref.SectionName), value(ref.Port))
		if seen[id+section] {
			bad(fmt.Sprintf("spec.parentRefs[%d]", i), "is there twice", "tell them apart by sectionName or port")
		}
		seen[id+section] = true
	}
}

func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func checkGRPCRoute(o *gatewayv1.GRPCRoute, bad report) {
	checkParents(o.Spec.ParentRefs, bad)
	ruleNames := map[gatewayv1.SectionName]bool{}
	for i := range o.Spec.Rules {
		r := &o.Spec.Rules[i]
		field := fmt.Sprintf("spec.rules[%d]", i)
		if r.Name != nil {
			if ruleNames[*r.Name] {
				bad(field+".name", fmt.Sprintf("%q is there twice", *r.Name), "")
			}
			ruleNames[*r.Name] = true
		}
		for j := range r.Matches {
			m := r.Matches[j].Method
			if m == nil {
				continue
			}
			at := fmt.Sprintf("%s.matches[%d].method", field, j)
			service, method := value(m.Service), value(m.Method)
			if service == "" && method == "" {
				bad(at, "needs a service or a method", "")
			}
			if *m.Type != gatewayv1.GRPCMethodMatchExact {
				continue
			}
			if service != "" && !serviceName.MatchString(service) {
				bad(at+".service", fmt.Sprintf("%q is not a gRPC service", service), "such as package.Service")
			}
			if method != "" && !methodName.MatchString(method) {
				bad(at+".method", fmt.Sprintf("%q is not a gRPC method", method), "")
			}
		}
		for j := range r.Filters {
			checkUnion(reflect.ValueOf(&r.Filters[j]).Elem(), fmt.Sprintf("%s.filters[%d]", field, j), bad)
		}
		for j := range r.BackendRefs {
			checkBackend(&r.BackendRefs[j].BackendRef, fmt.Sprintf("%s.backendRefs[%d]", field, j), bad)
		}
	}
}
