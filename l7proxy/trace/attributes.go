package trace

import (
	"net"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Attributes that no convention has.
const (
	keyRoute       = attribute.Key("sluice.route") // "Kind/namespace/name"
	keyRule        = attribute.Key("sluice.rule")
	keyRuleName    = attribute.Key("sluice.rule.name")
	keyReason      = attribute.Key("sluice.reason")
	keySource      = attribute.Key("sluice.source.workload")
	keyDestination = attribute.Key("sluice.destination.workload")
	keyService     = attribute.Key("sluice.destination.service")
)

// name is "METHOD template" (OpenTelemetry "Semantic conventions for HTTP spans"), or
// the RPC's (… "for RPC spans").
func (r *Request) name() string {
	if r.about.RPC != "" {
		return r.about.RPC
	}
	method, _ := knownMethod(r.http.Method)
	if r.about.Template != "" {
		return method + " " + r.about.Template
	}
	return method
}

func (r *Request) tryName() string {
	if r.about.RPC != "" {
		return r.about.RPC
	}
	method, _ := knownMethod(r.http.Method)
	return method
}

// knownMethod returns a method's name for spans, and false if it stands for others.
func knownMethod(m string) (string, bool) {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY":
		return m, true
	}
	return "HTTP", false
}

func (r *Request) serverAttributes() []attribute.KeyValue {
	f, h := &r.flow, &r.http
	out := make([]attribute.KeyValue, 0, 24)
	out = r.shared(out)
	path, _, _ := strings.Cut(h.Path, "?") // queries hold secrets
	out = append(out, semconv.URLScheme(r.about.Scheme), semconv.URLPath(path))
	if f.Source.AddrPort.IsValid() {
		client := f.Source.AddrPort.Addr().Unmap().String()
		out = append(out, semconv.ClientAddress(client), semconv.NetworkPeerAddress(client),
			semconv.NetworkPeerPort(int(f.Source.AddrPort.Port())))
	}
	out = append(out, semconv.NetworkProtocolName("http"),
		semconv.NetworkProtocolVersion(strings.TrimPrefix(h.Proto, "HTTP/")))
	if h.Status != 0 {
		out = append(out, semconv.HTTPResponseStatusCode(h.Status))
	}
	if r.about.UserAgent != "" {
		out = append(out, semconv.UserAgentOriginal(r.about.UserAgent))
	}
	if r.about.Template != "" {
		out = append(out, semconv.HTTPRoute(r.about.Template))
	}
	if h.Route != "" {
		out = append(out, keyRoute.String(h.Route), keyRule.Int(h.Rule))
	}
	if h.RuleName != "" {
		out = append(out, keyRuleName.String(h.RuleName))
	}
	if h.GRPC != "" {
		out = append(out, semconv.RPCResponseStatusCode(grpcStatus(h.GRPC)))
	}
	return failure(out, f.Reason, h.Status, h.Status >= 500)
}

func (r *Request) tryAttributes(i int) []attribute.KeyValue {
	t := &r.tries[i]
	out := make([]attribute.KeyValue, 0, 20)
	out = r.shared(out)
	path, _, _ := strings.Cut(r.http.Path, "?")
	// The scheme is that of this hop.
	out = append(out, semconv.URLFull("http://"+r.http.Authority+path))
	if t.endpoint.IsValid() {
		out = append(out, semconv.NetworkPeerAddress(t.endpoint.Addr().Unmap().String()),
			semconv.NetworkPeerPort(int(t.endpoint.Port())))
	}
	if !t.workload.IsZero() {
		out = append(out, keyDestination.String(t.workload.String()))
	}
	if i > 0 {
		out = append(out, semconv.HTTPRequestResendCount(i))
	}
	if t.status != 0 {
		out = append(out, semconv.HTTPResponseStatusCode(t.status))
	}
	return failure(out, t.reason, t.status, t.status >= 400)
}

// shared appends what the spans of a request and of its tries both have.
func (r *Request) shared(out []attribute.KeyValue) []attribute.KeyValue {
	f, h := &r.flow, &r.http
	if method, ok := knownMethod(h.Method); ok {
		out = append(out, semconv.HTTPRequestMethodKey.String(method))
	} else {
		out = append(out, semconv.HTTPRequestMethodOther, semconv.HTTPRequestMethodOriginal(h.Method))
	}
	if host, port, err := net.SplitHostPort(h.Authority); err == nil {
		out = append(out, semconv.ServerAddress(host))
		if n, err := strconv.ParseUint(port, 10, 16); err == nil {
			out = append(out, semconv.ServerPort(int(n)))
		}
	} else if h.Authority != "" {
		out = append(out, semconv.ServerAddress(strings.Trim(h.Authority, "[]")))
	}
	if r.about.RPC != "" {
		out = append(out, semconv.RPCSystemNameGRPC, semconv.RPCMethod(r.about.RPC))
	}
	return name(name(out, keySource, f.Source.Workload), keyService, f.Destination.Service)
}

func name(out []attribute.KeyValue, key attribute.Key, n mesh.Name) []attribute.KeyValue {
	if n.IsZero() {
		return out
	}
	return append(out, key.String(n.String()))
}

// failure appends why it failed, if it did: the reason's word, else the status.
func failure(out []attribute.KeyValue, reason flow.Reason, status int, failed bool) []attribute.KeyValue {
	switch {
	case reason != flow.ReasonNone:
		word := reason.String()
		return append(out, semconv.ErrorTypeKey.String(word), keyReason.String(word))
	case failed:
		return append(out, semconv.ErrorTypeKey.String(strconv.Itoa(status)))
	}
	return out
}

func setStatus(s oteltrace.Span, reason flow.Reason, failed bool) {
	switch {
	case reason != flow.ReasonNone:
		s.SetStatus(codes.Error, reason.String())
	case failed:
		s.SetStatus(codes.Error, "")
	}
}

// grpcStatus is the name of a status code (grpc.io, statuscodes.md).
func grpcStatus(code string) string {
	n, err := strconv.Atoi(code)
	if err != nil || n < 0 || n >= len(grpcStatuses) {
		return code
	}
	return grpcStatuses[n]
}

var grpcStatuses = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
	"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}
