// Package explain says which rule the node proxy would apply to a request, and
// why it would not apply the others: by the tables and the matching code that the
// proxy itself uses.
//
// It owns nothing and runs in the caller's goroutine. What the proxy would fetch
// on demand for such a request is fetched first.
package explain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/filter"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Errors of a request that cannot be explained.
var (
	// ErrRequest says that the request itself is wrong.
	ErrRequest = errors.New("bad request")
	// ErrNoWorkload says that the client is no workload of the mesh.
	ErrNoWorkload = errors.New("no such workload")
)

// Explainer explains requests. It may be used concurrently.
type Explainer struct {
	Store         *store.Store
	Routes        *route.Tables
	ClusterDomain string
	// Fetch waits until the store has the resource, or it is known not to exist. Nil
	// if everything is in the store.
	Fetch func(ctx context.Context, kind mesh.Kind, key string) error
}

// Request is the request in question.
type Request struct {
	Method string
	URL    string
	// Headers have any case; Host overrides the URL's.
	Headers []mesh.HeaderValue
	// From is the client's name, zero for one outside the mesh.
	From mesh.Name
}

// Explanation is what the proxy would do.
type Explanation struct {
	// Listener that takes the connection; nil: the proxy never sees it, see Detail.
	Listener *mesh.Listener
	// Routing is what the route table says; its Winner indexes Rules.
	Routing route.Explanation
	// Rules of the virtual host in Routing.
	Rules []mesh.Rule
	// Location is where the request is redirected to.
	Location string
	// Authority and Path are what a backend sees once the rule's filters have edited
	// them; those of the backend come on top.
	Authority, Path string
	// Status and Reason are the proxy's own answer, if it gives one.
	Status int
	Reason flow.Reason
	Detail string
}

// Winner returns the rule that applies, or nil.
func (e *Explanation) Winner() *mesh.Rule {
	if w := e.Routing.Winner; w >= 0 && w < len(e.Rules) {
		return &e.Rules[w]
	}
	return nil
}

// target is what the URL names.
type target struct {
	service *mesh.Service
	port    *mesh.ServicePort
	gateway *mesh.Listener
	chain   *mesh.Chain
}

// Explain explains a request.
func (e *Explainer) Explain(ctx context.Context, r Request) (*Explanation, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("%w: %q is not a URL such as http://reviews.shop/path", ErrRequest, r.URL)
	}
	if r.Method == "" {
		return nil, fmt.Errorf("%w: the method is missing", ErrRequest)
	}
	if !r.From.IsZero() && e.Store.Workload(r.From) == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoWorkload, r.From)
	}
	port, err := portOf(u)
	if err != nil {
		return nil, err
	}
	out := &Explanation{Routing: route.Explanation{Winner: -1}}
	head := requestHead(r, u)
	t := e.target(u, port, r.From, string(head.Authority))
	table := ""
	switch {
	case t.gateway != nil:
		out.Listener = t.gateway
		secure := u.Scheme == "https"
		best := route.BestChain(t.gateway, head.Authority, secure)
		switch {
		case best == nil:
			out.Status, out.Reason = 404, flow.ReasonNoChain
			return out, nil
		case secure && best.Name != t.chain.Name:
			out.Status, out.Reason = 421, flow.ReasonMisdirected
			out.Detail = fmt.Sprintf("the connection for %s belongs to listener %s, the authority to %s", u.Hostname(), t.chain.Name, best.Name)
			return out, nil
		case best.RouteTable == "":
			out.Status, out.Reason = 404, flow.ReasonNoRoute
			return out, nil
		}
		table = best.RouteTable
	case t.service == nil:
		out.Detail = fmt.Sprintf("%s is neither a service nor a gateway's host: the connection is not steered", u.Host)
		return out, nil
	case !t.port.Steered:
		out.Detail = fmt.Sprintf("no route is attached to service %s port %d: the kernel balances it, the proxy never sees it", t.service.Name, t.port.Port)
		return out, nil
	default:
		name := "service/" + t.service.Name.String() + "/" + strconv.Itoa(int(t.port.Port))
		if e.Fetch != nil {
			if err := e.Fetch(ctx, mesh.KindListener, name); err != nil {
				return nil, fmt.Errorf("fetch the routes of %s: %w", t.service.Name, err)
			}
		}
		l := e.Store.Listener(name)
		if l == nil || len(l.Chains) == 0 {
			out.Detail = "the control plane has no listener " + name
			return out, nil
		}
		out.Listener = l
		table = route.ServiceTable(l, r.From.Namespace)
	}
	path, ok := route.NormalizePath(nil, head.Path)
	if !ok {
		out.Status, out.Reason, out.Detail = 400, flow.ReasonDownstreamProtocol, "the path could be read in two ways"
		return out, nil
	}
	head.Path = path
	out.Routing = e.Routes.Explain(table, &route.Request{Method: head.Method, Authority: head.Authority, Path: path, Head: head})
	if out.Routing.Hostname != "" {
		host := mesh.VirtualHost{Table: table, Hostname: out.Routing.Hostname}
		if v, ok := e.Store.Get(mesh.KindVirtualHost, host.Key()).(*mesh.VirtualHost); ok {
			out.Rules = v.Rules
		}
	}
	answer(out, head, filter.Origin{Scheme: u.Scheme, Port: port})
	return out, nil
}

// answer fills in the answer that the proxy gives by itself, or what it forwards.
func answer(out *Explanation, head *message.Head, origin filter.Origin) {
	w := out.Winner()
	if w == nil {
		out.Status, out.Reason = 404, flow.ReasonNoRoute
		return
	}
	var scratch filter.Scratch
	if filter.CORS(w.Filters) != nil && filter.Preflight(head) {
		out.Status, out.Detail = 200, "a preflight request, which the CORS filter answers"
		return
	}
	if status, location, ok := filter.Redirect(w, w.Filters, head, origin, &scratch); ok {
		out.Status, out.Location = status, string(location)
		return
	}
	if !slices.ContainsFunc(w.Clusters, func(c mesh.WeightedCluster) bool { return c.Cluster != "" && c.Weight > 0 }) {
		out.Status, out.Reason = 500, flow.ReasonNoBackend
		return
	}
	filter.Request(head, w, &scratch)
	out.Authority, out.Path = string(head.Authority), string(head.Path)
}

func portOf(u *url.URL) (uint16, error) {
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%w: port %q", ErrRequest, p)
		}
		return uint16(n), nil
	}
	if u.Scheme == "https" {
		return 443, nil
	}
	return 80, nil
}

func requestHead(r Request, u *url.URL) *message.Head {
	h := &message.Head{
		Method: []byte(r.Method), Scheme: []byte(u.Scheme), Authority: []byte(u.Host),
		Path: []byte(u.RequestURI()), ContentLength: -1, End: true,
	}
	for _, f := range r.Headers {
		name := strings.ToLower(f.Name)
		if name == "host" {
			h.Authority = []byte(f.Value)
			continue
		}
		h.Add([]byte(name), []byte(f.Value))
	}
	return h
}

// target finds what the URL's host and port name: an address, a service by any of
// its names as a workload of the namespace would resolve it, or a gateway.
func (e *Explainer) target(u *url.URL, port uint16, from mesh.Name, authority string) target {
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		at := netip.AddrPortFrom(addr.Unmap(), port)
		if svc, i := e.Store.ServiceByFrontend(mesh.Frontend{AddrPort: at, Protocol: mesh.ProtocolTCP}); svc != nil {
			return target{service: svc, port: &svc.Ports[i]}
		}
		return e.gateway(func(l *mesh.Listener) bool { return l.Port == port && slices.Contains(l.Addresses, at.Addr()) }, u, authority)
	}
	if svc := e.Store.Service(e.serviceName(u.Hostname(), from.Namespace)); svc != nil {
		for i := range svc.Ports {
			if p := &svc.Ports[i]; p.Port == port && p.Protocol == mesh.ProtocolTCP {
				return target{service: svc, port: p}
			}
		}
	}
	return e.gateway(func(l *mesh.Listener) bool { return l.Port == port }, u, authority)
}

// serviceName reads "svc", "svc.ns", "svc.ns.svc" and "svc.ns.svc.DOMAIN".
func (e *Explainer) serviceName(host, namespace string) mesh.Name {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	host = strings.TrimSuffix(host, "."+e.ClusterDomain)
	host = strings.TrimSuffix(host, ".svc")
	name, ns, ok := strings.Cut(host, ".")
	if !ok {
		ns = namespace
	}
	return mesh.Name{Namespace: ns, Name: name}
}

// gateway returns the first listener, by name, that takes the connection; one
// whose routes know the authority goes before one whose do not.
func (e *Explainer) gateway(accept func(*mesh.Listener) bool, u *url.URL, authority string) target {
	var listeners []*mesh.Listener
	e.Store.Range(mesh.KindListener, func(r mesh.Resource) bool {
		if l := r.(*mesh.Listener); l.Type == mesh.ListenerGateway && accept(l) {
			listeners = append(listeners, l)
		}
		return true
	})
	slices.SortFunc(listeners, func(a, b *mesh.Listener) int { return strings.Compare(a.Name, b.Name) })
	var first target
	for _, l := range listeners {
		// The name that a TLS client asks for is the URL's, whatever Host says.
		c := route.BestChain(l, []byte(u.Hostname()), u.Scheme == "https")
		if c == nil {
			continue
		}
		t := target{gateway: l, chain: c}
		if _, host := e.Routes.Match(c.RouteTable, &route.Request{Method: []byte("GET"), Authority: []byte(authority), Path: []byte("/")}); host {
			return t
		}
		if first.gateway == nil {
			first = t
		}
	}
	return first
}

// Conditions returns a rule's match in words.
func Conditions(m *mesh.Match) string {
	var parts []string
	kinds := map[mesh.MatchKind]string{mesh.MatchExact: "is", mesh.MatchPrefix: "prefix", mesh.MatchRegexp: "matches"}
	if m.PathKind != 0 {
		parts = append(parts, "path "+kinds[m.PathKind]+" "+m.Path)
	}
	if m.Method != "" {
		parts = append(parts, "method "+m.Method)
	}
	for _, h := range m.Headers {
		parts = append(parts, "header "+h.Name+" "+kinds[h.Kind]+" "+h.Value)
	}
	for _, q := range m.Query {
		parts = append(parts, "query "+q.Name+" "+kinds[q.Kind]+" "+q.Value)
	}
	if len(parts) == 0 {
		return "any request"
	}
	return strings.Join(parts, ", ")
}

// Filters returns a rule's filters in words.
func Filters(filters []mesh.Filter) []string {
	var out []string
	for _, f := range filters {
		switch {
		case f.RequestHeaders != nil:
			out = append(out, "request headers: "+headerEdit(f.RequestHeaders))
		case f.ResponseHeaders != nil:
			out = append(out, "response headers: "+headerEdit(f.ResponseHeaders))
		case f.Redirect != nil:
			out = append(out, fmt.Sprintf("redirect with %d", f.Redirect.Status))
		case f.Rewrite != nil:
			out = append(out, "rewrite: "+rewrite(f.Rewrite))
		case f.Mirror != nil:
			out = append(out, fmt.Sprintf("mirror of %.4g%% to %s", 100*float64(f.Mirror.PerMillion)/mesh.EveryRequest, f.Mirror.Cluster))
		case f.CORS != nil:
			out = append(out, "CORS: "+cors(f.CORS))
		}
	}
	return out
}

// Limits returns a rule's timeouts and retries in words.
func Limits(r *mesh.Rule) []string {
	var out []string
	for _, t := range []struct {
		what string
		d    time.Duration
	}{{"request", r.Timeouts.Request}, {"try", r.Timeouts.Backend}} {
		if t.d > 0 {
			out = append(out, fmt.Sprintf("timeout of the %s: %s", t.what, t.d))
		}
	}
	if retry := r.Retry; retry != nil {
		causes := []string{"a failed connection"}
		if r.Timeouts.Backend > 0 {
			causes = append(causes, "the timeout of a try")
		}
		for _, code := range retry.Codes {
			causes = append(causes, strconv.Itoa(code))
		}
		text := fmt.Sprintf("retries: up to %d after %s", retry.Attempts, strings.Join(causes, ", "))
		if retry.Backoff > 0 {
			text += fmt.Sprintf(", backoff from %s", retry.Backoff)
		}
		out = append(out, text)
	}
	return out
}

func cors(c *mesh.CORS) string {
	parts := []string{"origins " + strings.Join(c.AllowOrigins, " ")}
	for _, l := range []struct {
		what string
		list []string
	}{{"methods", c.AllowMethods}, {"headers", c.AllowHeaders}, {"exposes", c.ExposeHeaders}} {
		if len(l.list) > 0 {
			parts = append(parts, l.what+" "+strings.Join(l.list, " "))
		}
	}
	if c.AllowCredentials {
		parts = append(parts, "credentials")
	}
	return strings.Join(parts, ", ")
}

func headerEdit(e *mesh.HeaderEdit) string {
	var parts []string
	for _, n := range e.Remove {
		parts = append(parts, "remove "+n)
	}
	for _, h := range e.Set {
		parts = append(parts, "set "+h.Name+": "+h.Value)
	}
	for _, h := range e.Add {
		parts = append(parts, "add "+h.Name+": "+h.Value)
	}
	return strings.Join(parts, ", ")
}

func rewrite(r *mesh.Rewrite) string {
	var parts []string
	if r.Hostname != "" {
		parts = append(parts, "host to "+r.Hostname)
	}
	if r.Path != nil {
		what := "path to "
		if r.Path.Kind == mesh.PathReplacePrefix {
			what = "path prefix to "
		}
		parts = append(parts, what+r.Path.Value)
	}
	return strings.Join(parts, ", ")
}
