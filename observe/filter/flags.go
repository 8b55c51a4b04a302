package filter

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Flag is one kind of condition.
type Flag struct {
	Name string
	// Value names the value in help texts, such as "NAMESPACE".
	Value string
	Usage string
	// Words are all values that the flag takes, if they can be listed.
	Words []string
	// Names says which names complete the value: "namespace", "workload", "service",
	// "route" or nothing.
	Names string

	compile func(value string) (func(*flow.Flow) bool, error)
	lost    bool
}

// Flags returns every kind of condition, in the order of the reference.
func Flags() []Flag { return slices.Clone(flags) }

var flags = slices.Concat(
	sided("namespace", "NAMESPACE", "workload or service in the namespace", "namespace", namespace),
	sided("workload", "[NAMESPACE/]NAME", "workload; * stands for any characters, NAMESPACE/ for all of one", "workload", workload),
	sided("label", "SELECTOR", "workload whose labels match, such as app=web,tier!=test or 'env in (a,b)'", "", label),
	sided("ip", "ADDRESS|CIDR", "address", "", ip),
	sided("port", "PORT[-PORT]", "port, as dialled or as reached", "", port),
	[]Flag{
		{Name: "service", Value: "[NAMESPACE/]NAME", Usage: "service or gateway that was dialled; * stands for any characters", Names: "service", compile: service},
		{Name: "to-service", Value: "[NAMESPACE/]NAME", Usage: "the same as --service: only a destination is a service", Names: "service", compile: service},
		{Name: "verdict", Value: "WORD", Usage: "verdict: " + strings.Join(words(flow.Verdicts()), ", "), Words: words(flow.Verdicts()), compile: verdict},
		{Name: "reason", Value: "WORD", Usage: "reason of a drop or an error, such as no-endpoint", Words: words(flow.Reasons()), compile: reason},
		{Name: "type", Value: "WORD", Usage: "type of flow: " + strings.Join(words(flow.Types()), ", "), Words: words(flow.Types()), compile: flowType, lost: true},
		{Name: "protocol", Value: "WORD", Usage: "protocol: " + strings.Join(protocols, ", "), Words: protocols, compile: protocol},
		{Name: "http-status", Value: "CODE", Usage: "HTTP status: 503, 5+ for all that start with 5, or a regular expression for the whole code", compile: httpStatus},
		{Name: "http-method", Value: "METHOD", Usage: "HTTP method, in any case", Words: []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"}, compile: httpMethod},
		{Name: "http-path", Value: "REGEXP", Usage: "HTTP path without its query, regular expression (RE2) that matches anywhere", compile: httpPath},
		{Name: "http-host", Value: "HOST", Usage: "HTTP authority without its port; * stands for any characters", compile: httpHost},
		{Name: "route", Value: "[KIND/]NAMESPACE/NAME", Usage: "route that the request took", Names: "route", compile: route},
		{Name: "trace-id", Value: "ID", Usage: "trace that the request belongs to: 32 hexadecimal digits", compile: traceID},
		{Name: "min-latency", Value: "DURATION", Usage: "requests, queries and connections that took as long at least, such as 250ms", compile: minLatency},
		{Name: "dns-query", Value: "REGEXP", Usage: "name that was asked for, regular expression (RE2) that matches anywhere", compile: dnsQuery},
	},
)

// side says which end of a flow a condition looks at.
type side uint8

const (
	either side = iota
	source
	destination
)

// sided returns the flags NAME, from-NAME and to-NAME.
func sided(name, value, what, names string, compile func(string, side) (func(*flow.Flow) bool, error)) []Flag {
	flag := func(name, usage string, s side) Flag {
		return Flag{Name: name, Value: value, Usage: usage, Names: names,
			compile: func(v string) (func(*flow.Flow) bool, error) { return compile(v, s) }}
	}
	return []Flag{
		flag(name, "either side: "+what, either),
		flag("from-"+name, "source: "+what, source),
		flag("to-"+name, "destination: "+what, destination),
	}
}

// ends makes a condition on a flow of conditions on its ends.
func ends(s side, from, to func(*flow.Flow) bool) func(*flow.Flow) bool {
	switch s {
	case source:
		return from
	case destination:
		return to
	}
	return func(f *flow.Flow) bool { return from(f) || to(f) }
}

func words[K comparable](m map[K]string) []string { return slices.Sorted(maps.Values(m)) }

var errEmpty = errors.New("want a value")

func namespace(v string, s side) (func(*flow.Flow) bool, error) {
	if v == "" {
		return nil, errEmpty
	}
	return ends(s,
		func(f *flow.Flow) bool { return f.Source.Workload.Namespace == v },
		func(f *flow.Flow) bool {
			return f.Destination.Workload.Namespace == v || f.Destination.Service.Namespace == v
		}), nil
}

func workload(v string, s side) (func(*flow.Flow) bool, error) {
	match, err := namePattern(v)
	if err != nil {
		return nil, err
	}
	return ends(s,
		func(f *flow.Flow) bool { return match(f.Source.Workload) },
		func(f *flow.Flow) bool { return match(f.Destination.Workload) }), nil
}

func label(v string, s side) (func(*flow.Flow) bool, error) {
	sel, err := parseSelector(v)
	if err != nil {
		return nil, err
	}
	return ends(s,
		func(f *flow.Flow) bool { return !f.Source.Workload.IsZero() && sel.matches(f.Source.Labels) },
		func(f *flow.Flow) bool { return !f.Destination.Workload.IsZero() && sel.matches(f.Destination.Labels) }), nil
}

func ip(v string, s side) (func(*flow.Flow) bool, error) {
	prefix, err := netip.ParsePrefix(v)
	if err != nil {
		addr, err := netip.ParseAddr(v)
		if err != nil {
			return nil, errors.New("want an address such as 10.77.0.5 or fd77::5, or a range such as 10.77.0.0/16")
		}
		addr = addr.Unmap().WithZone("")
		prefix = netip.PrefixFrom(addr, addr.BitLen())
	}
	in := func(a netip.AddrPort) bool { return prefix.Contains(a.Addr().Unmap()) }
	return ends(s,
		func(f *flow.Flow) bool { return in(f.Source.AddrPort) },
		func(f *flow.Flow) bool { return in(f.Destination.AddrPort) || in(f.Original) }), nil
}

func port(v string, s side) (func(*flow.Flow) bool, error) {
	first, last, isRange := strings.Cut(v, "-")
	low, err := strconv.ParseUint(first, 10, 16)
	high := low
	if isRange && err == nil {
		high, err = strconv.ParseUint(last, 10, 16)
	}
	if err != nil || low == 0 || high < low {
		return nil, errors.New("want a port from 1 to 65535, or two with - between them")
	}
	in := func(p uint16) bool { return uint64(p) >= low && uint64(p) <= high }
	return ends(s,
		func(f *flow.Flow) bool { return in(f.Source.AddrPort.Port()) },
		func(f *flow.Flow) bool { return in(f.Destination.AddrPort.Port()) || in(f.Original.Port()) }), nil
}

func service(v string) (func(*flow.Flow) bool, error) {
	match, err := namePattern(v)
	if err != nil {
		return nil, err
	}
	return func(f *flow.Flow) bool { return match(f.Destination.Service) }, nil
}

func verdict(v string) (func(*flow.Flow) bool, error) {
	want, ok := flow.ParseVerdict(strings.ToLower(v))
	if !ok {
		return nil, oneOf(words(flow.Verdicts()))
	}
	return func(f *flow.Flow) bool { return f.Verdict == want }, nil
}

func reason(v string) (func(*flow.Flow) bool, error) {
	want, ok := flow.ParseReason(strings.ToLower(v))
	if !ok || want == flow.ReasonNone {
		return nil, oneOf(words(flow.Reasons()))
	}
	return func(f *flow.Flow) bool { return f.Reason == want }, nil
}

func flowType(v string) (func(*flow.Flow) bool, error) {
	want, ok := flow.ParseType(strings.ToLower(v))
	if !ok {
		return nil, oneOf(words(flow.Types()))
	}
	return func(f *flow.Flow) bool { return f.Type == want }, nil
}

var protocols = []string{"dns", "grpc", "http", "tcp", "udp"}

func protocol(v string) (func(*flow.Flow) bool, error) {
	switch strings.ToLower(v) {
	case "tcp":
		return func(f *flow.Flow) bool { return f.Protocol == mesh.ProtocolTCP }, nil
	case "udp":
		return func(f *flow.Flow) bool { return f.Protocol == mesh.ProtocolUDP }, nil
	case "http":
		return func(f *flow.Flow) bool { return f.HTTP != nil }, nil
	case "grpc":
		return func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.GRPC != "" }, nil
	case "dns":
		return func(f *flow.Flow) bool { return f.DNS != nil }, nil
	}
	return nil, oneOf(protocols)
}

var (
	exactStatus  = regexp.MustCompile(`^[1-5][0-9]{2}$`)
	prefixStatus = regexp.MustCompile(`^[1-5][0-9]?\+$`)
)

func httpStatus(v string) (func(*flow.Flow) bool, error) {
	pattern := v
	switch {
	case v == "":
		return nil, errEmpty
	case exactStatus.MatchString(v):
	case prefixStatus.MatchString(v):
		pattern = strings.TrimSuffix(v, "+") + ".*"
	}
	re, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return nil, errors.New("want a code such as 503, a prefix such as 5+ or 50+, or a regular expression such as 50[34]")
	}
	var codes [1000]bool
	for code := range codes {
		codes[code] = re.MatchString(strconv.Itoa(code))
	}
	return func(f *flow.Flow) bool {
		return f.HTTP != nil && f.HTTP.Status >= 0 && f.HTTP.Status < len(codes) && codes[f.HTTP.Status]
	}, nil
}

func httpMethod(v string) (func(*flow.Flow) bool, error) {
	if v == "" {
		return nil, errEmpty
	}
	return func(f *flow.Flow) bool { return f.HTTP != nil && strings.EqualFold(f.HTTP.Method, v) }, nil
}

func httpPath(v string) (func(*flow.Flow) bool, error) {
	re, err := expression(v)
	if err != nil {
		return nil, err
	}
	return func(f *flow.Flow) bool {
		if f.HTTP == nil {
			return false
		}
		path, _, _ := strings.Cut(f.HTTP.Path, "?")
		return re.MatchString(path)
	}, nil
}

func httpHost(v string) (func(*flow.Flow) bool, error) {
	if v == "" {
		return nil, errEmpty
	}
	want := strings.ToLower(v)
	return func(f *flow.Flow) bool {
		return f.HTTP != nil && wildcard(want, strings.ToLower(withoutPort(f.HTTP.Authority)))
	}, nil
}

// withoutPort returns the host of an authority. An IPv6 address keeps its
// brackets.
func withoutPort(authority string) string {
	colon := strings.LastIndexByte(authority, ':')
	if colon < 0 || strings.IndexByte(authority[colon:], ']') >= 0 {
		return authority
	}
	return authority[:colon]
}

func route(v string) (func(*flow.Flow) bool, error) {
	switch strings.Count(v, "/") {
	case 1:
		return func(f *flow.Flow) bool {
			if f.HTTP == nil {
				return false
			}
			_, name, ok := strings.Cut(f.HTTP.Route, "/")
			return ok && name == v
		}, nil
	case 2:
		return func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.Route == v }, nil
	}
	return nil, errors.New("want NAMESPACE/NAME or KIND/NAMESPACE/NAME")
}

func dnsQuery(v string) (func(*flow.Flow) bool, error) {
	re, err := expression(v)
	if err != nil {
		return nil, err
	}
	return func(f *flow.Flow) bool { return f.DNS != nil && re.MatchString(f.DNS.Query) }, nil
}

func traceID(v string) (func(*flow.Flow) bool, error) {
	var id flow.TraceID
	if err := id.UnmarshalText([]byte(v)); err != nil {
		return nil, err
	}
	return func(f *flow.Flow) bool { return f.HTTP != nil && f.HTTP.TraceID == id }, nil
}

func minLatency(v string) (func(*flow.Flow) bool, error) {
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return nil, errors.New("want a duration such as 250ms or 1.5s")
	}
	return func(f *flow.Flow) bool { return f.Duration >= d }, nil
}

func expression(v string) (*regexp.Regexp, error) {
	if v == "" {
		return nil, errEmpty
	}
	re, err := regexp.Compile(v)
	if err != nil {
		return nil, fmt.Errorf("want a regular expression (RE2): %w", err)
	}
	return re, nil
}

func oneOf(words []string) error {
	return errors.New("want one of " + strings.Join(words, ", "))
}

// namePattern returns what matches names as "[NAMESPACE/]NAME" says, where "*" in
// NAME stands for any characters and an empty NAME for all.
func namePattern(v string) (func(mesh.Name) bool, error) {
	namespace, name, both := strings.Cut(v, "/")
	if !both {
		namespace, name = "", v
	}
	if v == "" || both && namespace == "" || strings.Contains(name, "/") {
		return nil, errors.New("want NAME, NAMESPACE/NAME or NAMESPACE/")
	}
	if name == "" {
		name = "*"
	}
	return func(n mesh.Name) bool {
		return !n.IsZero() && (namespace == "" || n.Namespace == namespace) && wildcard(name, n.Name)
	}, nil
}

// wildcard reports whether s is as the pattern says, in which "*" stands for any
// characters, also none.
func wildcard(pattern, s string) bool {
	first, rest, found := strings.Cut(pattern, "*")
	if !found {
		return pattern == s
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for {
		part, tail, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], tail
	}
}
