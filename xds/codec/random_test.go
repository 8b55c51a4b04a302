package codec

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// random makes mesh values in normal form.
type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 1))} }

func (r random) chance(percent int) bool { return r.IntN(100) < percent }

func (r random) label() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
	b := []byte{letters[r.IntN(26)]}
	for range r.IntN(8) {
		b = append(b, letters[r.IntN(36)])
	}
	return string(b)
}

func (r random) text() string {
	const odd = `ab %\/,;=é0"'`
	var b strings.Builder
	runes := []rune(odd)
	for range r.IntN(9) {
		b.WriteRune(runes[r.IntN(len(runes))])
	}
	return b.String()
}

func (r random) name() mesh.Name { return mesh.Name{Namespace: r.label(), Name: r.label()} }

func (r random) addr() netip.Addr {
	if r.chance(60) {
		return netip.AddrFrom4([4]byte{10, byte(r.IntN(4)), byte(r.IntN(256)), byte(r.IntN(256))})
	}
	var b [16]byte
	for i := range b {
		b[i] = byte(r.IntN(256))
	}
	if r.chance(10) {
		return netip.AddrFrom16(netip.AddrFrom4([4]byte{10, 0, 0, 1}).As16()) // v4-mapped stays mapped
	}
	return netip.AddrFrom16(b)
}

func many[T any](r random, most int, f func() T) []T {
	n := r.IntN(most + 1)
	if n == 0 {
		return nil
	}
	out := make([]T, n)
	for i := range out {
		out[i] = f()
	}
	return out
}

func (r random) duration() time.Duration {
	if r.chance(30) {
		return 0
	}
	return time.Duration(1 + r.Int64N(int64(time.Hour)))
}

func (r random) appProtocol() mesh.AppProtocol {
	all := []mesh.AppProtocol{mesh.AppProtocolUnknown, mesh.AppProtocolHTTP, mesh.AppProtocolHTTP2, mesh.AppProtocolTLS, mesh.AppProtocolTCP}
	return all[r.IntN(len(all))]
}

func (r random) port() uint16 { return uint16(r.IntN(1 << 16)) }

func (r random) workload() *mesh.Workload {
	w := &mesh.Workload{
		Name:           r.name(),
		ServiceAccount: r.label(),
		Node:           r.label(),
		Addresses:      many(r, 2, r.addr),
		Ready:          r.chance(50),
	}
	for range r.IntN(4) {
		if w.Labels == nil {
			w.Labels = map[string]string{}
		}
		w.Labels[r.label()] = r.text()
	}
	return w
}

func (r random) endpoint() mesh.Endpoint {
	e := mesh.Endpoint{AddrPort: netip.AddrPortFrom(r.addr(), r.port())}
	if r.chance(70) {
		e.Workload = r.name()
	}
	if r.chance(70) {
		e.Node = r.label()
	}
	if r.chance(20) {
		e.Hostname = r.label()
	}
	return e
}

func (r random) service() *mesh.Service {
	s := &mesh.Service{Name: r.name(), VIPs: many(r, 2, r.addr), Headless: r.chance(20)}
	if r.chance(20) {
		s.AffinityTimeout = r.duration()
	}
	if r.chance(10) {
		s.ExternalName = r.label() + ".example"
	}
	hosts := many(r, 6, func() mesh.Endpoint {
		e := r.endpoint()
		e.Terminating = r.chance(20)
		if r.chance(30) {
			e.Weight = uint32(r.IntN(100))
		}
		return e
	})
	s.Ports = many(r, 4, func() mesh.ServicePort {
		p := mesh.ServicePort{Name: r.label(), Port: r.port(), Protocol: mesh.ProtocolTCP, AppProtocol: r.appProtocol()}
		if r.chance(30) {
			p.Protocol = mesh.ProtocolUDP
		} else {
			p.Steered = r.chance(30)
		}
		same, target := r.chance(70), r.port()
		for _, h := range hosts {
			if r.chance(20) {
				continue
			}
			if same {
				h.AddrPort = netip.AddrPortFrom(h.AddrPort.Addr(), target)
			}
			if r.chance(20) {
				p.Draining = append(p.Draining, h)
			} else {
				p.Endpoints = append(p.Endpoints, h)
			}
		}
		return p
	})
	s.Local = r.chance(20)
	if s.Headless && len(s.Ports) == 0 {
		for _, h := range hosts {
			h.AddrPort = netip.AddrPortFrom(h.AddrPort.Addr(), 0)
			s.Hosts = append(s.Hosts, h)
		}
		// As they are written: IPv4 first, each host once.
		slices.SortStableFunc(s.Hosts, func(a, b mesh.Endpoint) int {
			return a.AddrPort.Addr().BitLen() - b.AddrPort.Addr().BitLen()
		})
		s.Hosts = slices.Compact(s.Hosts)
	}
	return s
}

func (r random) clusterName() string { return fmt.Sprintf("%s/%d", r.name(), r.port()) }

func (r random) cluster() *mesh.Cluster {
	n, p := r.name(), r.port()
	c := &mesh.Cluster{Name: fmt.Sprintf("%s/%d", n, p), Service: n, Port: p, Protocol: r.appProtocol()}
	if r.chance(10) {
		c.Hostname = r.label() + ".example"
	}
	if r.chance(60) {
		c.Policy = r.policy(c.Protocol)
	}
	if r.chance(30) {
		c.TLS = r.upstreamTLS()
	}
	return c
}

func (r random) upstreamTLS() *mesh.UpstreamTLS {
	t := &mesh.UpstreamTLS{ServerName: r.label() + ".example"}
	switch r.IntN(3) {
	case 0:
		t.SystemRoots = true
	case 1:
		t.RootsPEM = []byte(r.label())
	}
	t.SubjectAltNames = many(r, 3, func() mesh.SubjectAltName {
		switch r.IntN(3) {
		case 0:
			return mesh.SubjectAltName{URI: "spiffe://example.org/" + r.label()}
		case 1:
			return mesh.SubjectAltName{DNS: "*." + r.label() + ".test"}
		}
		return mesh.SubjectAltName{DNS: r.label() + ".test"}
	})
	return t
}

func (r random) policy(protocol mesh.AppProtocol) mesh.BackendPolicy {
	p := mesh.BackendPolicy{Balancer: mesh.Balancer(r.IntN(4)), Locality: mesh.Locality(r.IntN(3))}
	switch {
	case p.Balancer == mesh.BalanceRingHash:
		ttl := r.duration()
		all := []mesh.HashSource{
			{Header: r.label()}, {Cookie: &mesh.HashCookie{Name: r.label()}},
			{Cookie: &mesh.HashCookie{Name: r.label(), Path: "/" + r.label(), TTL: &ttl}}, {Query: r.label()}, {SourceIP: true},
		}
		for len(p.Hash) == 0 {
			p.Hash = many(r, 3, func() mesh.HashSource { return all[r.IntN(len(all))] })
		}
	case r.chance(20):
		p.Affinity = r.duration()
	}
	if p.Balancer == mesh.BalanceLeastRequest && r.chance(30) {
		p.Choices = 2 + r.IntN(5)
	}
	if r.chance(30) {
		n := r.IntN(101)
		p.PanicPercent = &n
	}
	count := func() int { return r.IntN(3) * r.IntN(2000) }
	p.Limits = mesh.BackendLimits{Connections: count(), PendingRequests: count(), Requests: count()}
	if protocol == mesh.AppProtocolUnknown || protocol == mesh.AppProtocolHTTP || protocol == mesh.AppProtocolHTTP2 {
		p.Limits.RequestsPerConnection = count()
	}
	positive := func() time.Duration { return r.duration() + time.Millisecond }
	if r.chance(40) {
		p.Outlier = &mesh.OutlierDetection{
			Consecutive5xx: count(), ConsecutiveGatewayErrors: count(), ConsecutiveLocalOriginFailures: count(),
			Interval: positive(), BaseEjectionTime: positive(), MaxEjectionTime: positive(), MaxEjectionPercent: r.IntN(101),
		}
	}
	if r.chance(40) {
		h := &mesh.HealthCheck{
			Kind: mesh.HealthCheckKind(1 + r.IntN(3)), Interval: positive(), Timeout: positive(),
			HealthyThreshold: 1 + r.IntN(4), UnhealthyThreshold: 1 + r.IntN(4),
		}
		if r.chance(20) {
			h.Port = r.port()
		}
		switch h.Kind {
		case mesh.CheckHTTP:
			h.Path, h.Host, h.MinStatus, h.MaxStatus = "/"+r.label(), r.label(), 200, 200+r.IntN(200)
		case mesh.CheckGRPC:
			h.Service = r.label()
		case mesh.CheckTCP:
		}
		p.HealthCheck = h
	}
	if r.chance(30) {
		p.RetryBudget = &mesh.RetryBudget{Percent: r.IntN(101), Minimum: r.IntN(50), Interval: r.duration()}
	}
	return p
}

func (r random) clusterEndpoints() *mesh.ClusterEndpoints {
	c := &mesh.ClusterEndpoints{Cluster: r.clusterName(), Endpoints: many(r, 5, r.endpoint)}
	zones := []string{"", "a", "b"}
	for i := range c.Endpoints {
		e := &c.Endpoints[i]
		e.Zone = zones[r.IntN(3)]
		if a := netip.AddrPortFrom(r.addr(), r.port()); a.Addr().Is4() != e.AddrPort.Addr().Is4() {
			e.Additional = a
		}
	}
	slices.SortFunc(c.Endpoints, func(a, b mesh.Endpoint) int { return a.AddrPort.Compare(b.AddrPort) })
	return c
}

func (r random) certificate() *mesh.Certificate {
	return &mesh.Certificate{Name: r.name().String(), ChainPEM: []byte("chain " + r.text()), KeyPEM: []byte("key " + r.text())}
}

func (r random) listener() *mesh.Listener {
	n, p := r.name(), r.port()
	l := &mesh.Listener{Type: mesh.ListenerGateway, Parent: n, Port: p, Addresses: many(r, 2, r.addr)}
	if r.chance(50) {
		l.Type = mesh.ListenerService
		l.Name = fmt.Sprintf("service/%s/%d", n, p)
		c := mesh.Chain{}
		if r.chance(80) {
			c.RouteTable = l.Name
		}
		if r.chance(80) {
			c.Default = r.rawClusters()
		}
		l.Chains = []mesh.Chain{c}
		for range r.IntN(3) {
			if l.ConsumerTables == nil {
				l.ConsumerTables = map[string]string{}
			}
			ns := r.label()
			l.ConsumerTables[ns] = l.Name + "/@" + ns
		}
		return l
	}
	l.Name = fmt.Sprintf("gateway/%s/%d", n, p)
	l.Chains = many(r, 4, func() mesh.Chain {
		c := mesh.Chain{
			Name:         r.label(),
			ServerNames:  many(r, 2, func() string { return r.label() + ".example" }),
			Certificates: many(r, 2, func() string { return r.name().String() }),
		}
		switch {
		case r.chance(20):
			c.Passthrough, c.Certificates = true, nil
		case r.chance(80):
			c.RouteTable = l.Name + "/" + c.Name
		}
		if r.chance(20) {
			c.Default = r.rawClusters()
		}
		if len(c.Certificates) > 0 && r.chance(30) {
			c.Clients = &mesh.ClientValidation{RootsPEM: []byte(r.label()), Optional: r.chance(50)}
		}
		return c
	})
	if r.chance(20) {
		l.ClientCertificate = r.name().String()
	}
	if r.chance(20) {
		l.Name, l.Protocol = l.Name+"/udp", mesh.ProtocolUDP
		l.Chains = []mesh.Chain{{Name: r.label(), Default: r.rawClusters()}}
	}
	return l
}

func (r random) rawClusters() []mesh.WeightedCluster {
	return many(r, 3, func() mesh.WeightedCluster {
		c := mesh.WeightedCluster{Cluster: r.clusterName(), Weight: 1 + r.Uint32N(3)}
		if r.chance(20) {
			c.Cluster = ""
		}
		return c
	})
}

func (r random) virtualHost() *mesh.VirtualHost {
	v := &mesh.VirtualHost{Table: "gateway/" + r.name().String() + "/80/http", Hostname: r.label() + ".example"}
	switch r.IntN(4) {
	case 0:
		v.Hostname = "*"
	case 1:
		v.Hostname = "*." + v.Hostname
	}
	v.Rules = many(r, 5, r.rule)
	return v
}

func (r random) path() string {
	p := ""
	for range 1 + r.IntN(3) {
		p += "/" + r.label()
	}
	return p
}

func (r random) rule() mesh.Rule {
	rule := mesh.Rule{Route: r.name(), RouteKind: "HTTPRoute", RuleIndex: r.IntN(20), MatchIndex: r.IntN(20), Match: r.match()}
	if r.chance(30) {
		rule.RouteKind = "GRPCRoute"
	}
	if r.chance(30) {
		rule.RuleName = r.label()
	}
	if r.chance(30) {
		rule.Tracing = &mesh.Tracing{Sampling: mesh.PerMillion(r.Uint32N(uint32(mesh.AllPerMillion) + 1))}
	}
	switch r.IntN(5) {
	case 0:
		rule.Filters = r.filters(true, false)
		f := mesh.Filter{Redirect: r.redirect()}
		rule.Filters = append(rule.Filters, f)
		r.Shuffle(len(rule.Filters), func(i, j int) { rule.Filters[i], rule.Filters[j] = rule.Filters[j], rule.Filters[i] })
	case 1:
		rule.Filters = r.filters(true, false)
	default:
		rule.Filters = r.filters(true, true)
		for range 1 + r.IntN(3) {
			c := mesh.WeightedCluster{Cluster: r.clusterName(), Weight: r.Uint32N(4), Filters: r.filters(r.chance(30), r.chance(30))}
			if r.chance(20) {
				c.Filters = append(r.filters(true, false), mesh.Filter{Redirect: r.redirect()})
			}
			if r.chance(20) {
				c.Cluster = ""
			}
			rule.Clusters = append(rule.Clusters, c)
		}
		rule.Clusters[0].Weight++
		rule.Timeouts = mesh.Timeouts{Request: r.duration(), Backend: r.duration()}
		if r.chance(40) {
			rule.Retry = &mesh.Retry{
				Attempts: r.IntN(5),
				Backoff:  r.duration(),
				Codes:    many(r, 3, func() int { return 500 + r.IntN(100) }),
			}
		}
	}
	return rule
}

func (r random) match() mesh.Match {
	m := mesh.Match{Headers: many(r, 2, r.valueMatch), Query: many(r, 2, r.valueMatch)}
	switch r.IntN(5) {
	case 0:
		m.PathKind, m.Path = mesh.MatchExact, r.path()
	case 1:
		m.PathKind, m.Path = mesh.MatchPrefix, r.path()
	case 2:
		m.PathKind, m.Path = mesh.MatchPrefix, "/"
	case 3:
		m.PathKind, m.Path = mesh.MatchRegexp, r.path()+"/[0-9]+|/x"
	}
	if r.chance(30) {
		m.Method = "POST"
	}
	return m
}

func (r random) valueMatch() mesh.ValueMatch {
	if r.chance(30) {
		return mesh.ValueMatch{Name: r.label(), Kind: mesh.MatchRegexp, Value: "v[0-9]+"}
	}
	return mesh.ValueMatch{Name: r.label(), Kind: mesh.MatchExact, Value: r.text()}
}

func (r random) pathEdit() *mesh.PathEdit {
	switch r.IntN(6) {
	case 0:
		return nil
	case 1:
		return &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: r.path()}
	case 2:
		return &mesh.PathEdit{Kind: mesh.PathReplaceFull, Value: "/" + strings.ReplaceAll(r.text(), "é", "")}
	case 3:
		return &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: []string{"", "/"}[r.IntN(2)]}
	case 4:
		return &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: r.path() + "/"}
	}
	return &mesh.PathEdit{Kind: mesh.PathReplacePrefix, Value: r.path()}
}

func (r random) edit() *mesh.HeaderEdit {
	value := func() mesh.HeaderValue { return mesh.HeaderValue{Name: r.label(), Value: r.text()} }
	return &mesh.HeaderEdit{Set: many(r, 2, value), Add: many(r, 2, value), Remove: many(r, 2, r.label)}
}

func (r random) cors() *mesh.CORS {
	origin := func() string {
		return []string{"https://", "http://"}[r.IntN(2)] + []string{"", "*."}[r.IntN(2)] + r.label() + ".example" + []string{"", ":8080"}[r.IntN(2)]
	}
	c := &mesh.CORS{
		AllowOrigins: many(r, 3, origin), AllowMethods: many(r, 3, r.label), AllowHeaders: many(r, 3, r.label), ExposeHeaders: many(r, 3, r.label),
		AllowCredentials: r.chance(50), MaxAge: r.Uint32N(10000),
	}
	if r.chance(20) {
		c.AllowOrigins = []string{"*"}
	}
	return c
}

func (r random) redirect() *mesh.Redirect {
	out := &mesh.Redirect{Status: []int{301, 302, 303, 307, 308}[r.IntN(5)], Path: r.pathEdit()}
	if r.chance(50) {
		out.Scheme = "https"
	}
	if r.chance(50) {
		out.Hostname = r.label()
	}
	if r.chance(50) {
		out.Port = r.port()
	}
	return out
}

func (r random) mirror() *mesh.Mirror {
	m := &mesh.Mirror{Cluster: r.clusterName(), PerMillion: mesh.EveryRequest}
	if r.chance(50) {
		m.PerMillion = r.Uint32N(mesh.EveryRequest)
	}
	return m
}

func (r random) filters(headers, rewrite bool) []mesh.Filter {
	var out []mesh.Filter
	if headers && r.chance(30) {
		out = append(out, mesh.Filter{CORS: r.cors()})
	}
	for rewrite && r.chance(30) {
		out = append(out, mesh.Filter{Mirror: r.mirror()})
	}
	if headers && r.chance(50) {
		out = append(out, mesh.Filter{RequestHeaders: r.edit()})
	}
	if headers && r.chance(50) {
		out = append(out, mesh.Filter{ResponseHeaders: r.edit()})
	}
	if rewrite && r.chance(50) {
		w := &mesh.Rewrite{Path: r.pathEdit()}
		if r.chance(50) {
			w.Hostname = r.label()
		}
		out = append(out, mesh.Filter{Rewrite: w})
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// resource makes one of any kind.
func (r random) resource(kind mesh.Kind) mesh.Resource {
	switch kind {
	case mesh.KindWorkload:
		return r.workload()
	case mesh.KindService:
		return r.service()
	case mesh.KindListener:
		return r.listener()
	case mesh.KindVirtualHost:
		return r.virtualHost()
	case mesh.KindCluster:
		return r.cluster()
	case mesh.KindClusterEndpoints:
		return r.clusterEndpoints()
	default:
		return r.certificate()
	}
}
