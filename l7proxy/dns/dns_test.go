package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func name(s string) mesh.Name {
	ns, n, _ := strings.Cut(s, "/")
	return mesh.Name{Namespace: ns, Name: n}
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func port(name string, number uint16, protocol mesh.Protocol, endpoints ...mesh.Endpoint) mesh.ServicePort {
	return mesh.ServicePort{Name: name, Port: number, Protocol: protocol, Endpoints: endpoints}
}

func endpoint(addrPort, hostname string) mesh.Endpoint {
	return mesh.Endpoint{AddrPort: netip.MustParseAddrPort(addrPort), Hostname: hostname}
}

const tcp, udp = mesh.ProtocolTCP, mesh.ProtocolUDP

// cluster is what the tests ask about.
func cluster() mesh.Delta {
	return mesh.Delta{Upserts: []mesh.Resource{
		&mesh.Service{Name: name("shop/web"), VIPs: addrs("10.96.0.10", "fd00::10"), Ports: []mesh.ServicePort{
			port("http", 80, tcp), port("http", 81, udp), port("", 9999, tcp),
		}},
		&mesh.Service{Name: name("shop/v4"), VIPs: addrs("10.96.0.11"), Ports: []mesh.ServicePort{port("", 80, tcp)}},
		&mesh.Service{Name: name("shop/db"), Headless: true, Ports: []mesh.ServicePort{
			port("sql", 5432, tcp, endpoint("10.1.0.1:15432", "db-0"), endpoint("10.1.0.2:15432", "db-1"), endpoint("[fd00::1:2]:15432", "db-1"), endpoint("10.1.0.3:15432", "")),
			port("metrics", 9100, tcp, endpoint("10.1.0.1:9100", "db-0"), endpoint("10.1.0.2:9100", "db-1")),
		}},
		&mesh.Service{Name: name("shop/peers"), Headless: true, Hosts: []mesh.Endpoint{endpoint("10.1.0.7:0", "p-0"), endpoint("[fd00::1:7]:0", "")}},
		&mesh.Service{Name: name("shop/empty"), Headless: true, Ports: []mesh.ServicePort{port("sql", 5432, tcp)}},
		&mesh.Service{Name: name("shop/ext"), ExternalName: "www.example.com"},
		&mesh.Service{Name: name("shop/inner"), ExternalName: "web.shop.svc.cluster.local"},
		&mesh.Service{Name: name("shop/twice"), ExternalName: "ext.shop.svc.cluster.local."},
		&mesh.Service{Name: name("shop/circle"), ExternalName: "circle2.shop.svc.cluster.local"},
		&mesh.Service{Name: name("shop/circle2"), ExternalName: "circle.shop.svc.cluster.local"},
		&mesh.Workload{Name: name("jobs/batch"), Addresses: addrs("10.1.0.9"), Labels: map[string]string{"app": "batch"}, Ready: true},
	}}
}

type harness struct {
	*Server
	store *store.Store
	reg   *prometheus.Registry
	addr  string // of the sockets, UDP and TCP

	mu    sync.Mutex
	flows []*flow.Flow
}

func (h *harness) takeFlows() []*flow.Flow {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.flows
	h.flows = nil
	return out
}

func (h *harness) counter(t *testing.T, name string) float64 {
	t.Helper()
	families, err := h.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].Counter.GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

var client0 = name("jobs/batch")

// serve runs a server with one workload's sockets on loopback.
func serve(t *testing.T, upstreams ...netip.AddrPort) *harness {
	t.Helper()
	return serveWith(t, func(*Server) {}, upstreams...)
}

// serveWith is serve with a change before anything runs.
func serveWith(t *testing.T, change func(*Server), upstreams ...netip.AddrPort) *harness {
	t.Helper()
	h := &harness{store: store.New(), reg: prometheus.NewRegistry()}
	h.store.Commit(cluster())
	s, err := New(Config{
		Store: h.store, Upstreams: upstreams, Node: "node-a", Registerer: h.reg,
		Flows: func(f *flow.Flow) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.flows = append(h.flows, f)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	h.Server = s
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	c, err := net.ListenPacket("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	// One before Run and one after it.
	s.AddPacketConn(c, 7, client0)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.AddListener(l, 7, client0)
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return h
}

// resolver starts a DNS server on loopback that answers by f; a nil reply is none.
func resolver(t *testing.T, f func(q *dns.Msg, network string) *dns.Msg) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: c}, {Listener: l}} {
		network := "udp"
		if s.Listener != nil {
			network = "tcp"
		}
		s.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			if m := f(q, network); m != nil {
				w.WriteMsg(m)
			}
		})
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(l.Addr().String())
}

func reply(q *dns.Msg, rcode int, rrs ...string) *dns.Msg {
	m := new(dns.Msg).SetRcode(q, rcode)
	for _, text := range rrs {
		rr, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

// query asks over a network and returns the reply.
func (h *harness) query(t *testing.T, network, qname string, qtype uint16, change func(*dns.Msg)) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(qname, qtype)
	if change != nil {
		change(m)
	}
	c := dns.Client{Net: network, Timeout: 20 * time.Second, UDPSize: maxUDP}
	r, _, err := c.Exchange(m, h.addr)
	if err != nil {
		t.Fatalf("%s %s: %v", qname, dns.TypeToString[qtype], err)
	}
	return r
}

// records writes records as "owner type data", sorted.
func records(rrs []dns.RR) string {
	var out []string
	for _, rr := range rrs {
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(append([]string{f[0], f[3]}, f[4:]...), " "))
	}
	sort.Strings(out)
	return strings.Join(out, "; ")
}

func TestSpecification(t *testing.T) {
	h := serve(t)
	const z = ".svc.cluster.local."
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode string
		want  string // answers
	}{
		// §2.2
		{"dns-version.cluster.local.", dns.TypeTXT, "NOERROR", `dns-version.cluster.local. TXT "1.1.0"`},
		{"dns-version.cluster.local.", dns.TypeA, "NOERROR", ""},
		// §2.3
		{"web.shop" + z, dns.TypeA, "NOERROR", "web.shop" + z + " A 10.96.0.10"},
		{"web.shop" + z, dns.TypeAAAA, "NOERROR", "web.shop" + z + " AAAA fd00::10"},
		{"web.shop" + z, dns.TypeMX, "NOERROR", ""},
		{"wEb.sHop.SVC.cluster.Local.", dns.TypeA, "NOERROR", "wEb.sHop.SVC.cluster.Local. A 10.96.0.10"},
		{"v4.shop" + z, dns.TypeAAAA, "NOERROR", ""},
		{"_http._tcp.web.shop" + z, dns.TypeSRV, "NOERROR", "_http._tcp.web.shop" + z + " SRV 0 100 80 web.shop" + z},
		{"_http._udp.web.shop" + z, dns.TypeSRV, "NOERROR", "_http._udp.web.shop" + z + " SRV 0 100 81 web.shop" + z},
		{"_HTTP._TCP.web.shop" + z, dns.TypeSRV, "NOERROR", "_HTTP._TCP.web.shop" + z + " SRV 0 100 80 web.shop" + z},
		{"_http._tcp.web.shop" + z, dns.TypeA, "NOERROR", ""},
		{"_tcp.web.shop" + z, dns.TypeSRV, "NOERROR", ""},
		{"_tcp.v4.shop" + z, dns.TypeSRV, "NXDOMAIN", ""}, // unnamed ports have none
		{"_none._tcp.web.shop" + z, dns.TypeSRV, "NXDOMAIN", ""},
		{"_http._sctp.web.shop" + z, dns.TypeSRV, "NXDOMAIN", ""},
		{"x._http._tcp.web.shop" + z, dns.TypeSRV, "NXDOMAIN", ""},
		{"10.0.96.10.in-addr.arpa.", dns.TypePTR, "NOERROR", "10.0.96.10.in-addr.arpa. PTR web.shop" + z},
		{"10.0.96.10.in-addr.arpa.", dns.TypeA, "NOERROR", ""},
		{reverseName("fd00::10"), dns.TypePTR, "NOERROR", reverseName("fd00::10") + " PTR web.shop" + z},
		// §2.4
		{"db.shop" + z, dns.TypeA, "NOERROR", "db.shop" + z + " A 10.1.0.1; db.shop" + z + " A 10.1.0.2; db.shop" + z + " A 10.1.0.3"},
		{"db.shop" + z, dns.TypeAAAA, "NOERROR", "db.shop" + z + " AAAA fd00::1:2"},
		{"peers.shop" + z, dns.TypeA, "NOERROR", "peers.shop" + z + " A 10.1.0.7"},
		{"peers.shop" + z, dns.TypeAAAA, "NOERROR", "peers.shop" + z + " AAAA fd00::1:7"},
		{"p-0.peers.shop" + z, dns.TypeA, "NOERROR", "p-0.peers.shop" + z + " A 10.1.0.7"},
		{"7.0.1.10.in-addr.arpa.", dns.TypePTR, "NOERROR", "7.0.1.10.in-addr.arpa. PTR p-0.peers.shop" + z},
		{"empty.shop" + z, dns.TypeA, "NXDOMAIN", ""},
		{"_sql._tcp.empty.shop" + z, dns.TypeSRV, "NXDOMAIN", ""},
		{"db-1.db.shop" + z, dns.TypeA, "NOERROR", "db-1.db.shop" + z + " A 10.1.0.2"},
		{"db-1.db.shop" + z, dns.TypeAAAA, "NOERROR", "db-1.db.shop" + z + " AAAA fd00::1:2"},
		{"db-0.db.shop" + z, dns.TypeAAAA, "NOERROR", ""},
		{"10-1-0-3.db.shop" + z, dns.TypeA, "NOERROR", "10-1-0-3.db.shop" + z + " A 10.1.0.3"},
		{"db-9.db.shop" + z, dns.TypeA, "NXDOMAIN", ""},
		{"x.db-0.db.shop" + z, dns.TypeA, "NXDOMAIN", ""},
		{"x.web.shop" + z, dns.TypeA, "NXDOMAIN", ""},
		{
			"_sql._tcp.db.shop" + z, dns.TypeSRV, "NOERROR", "_sql._tcp.db.shop" + z + " SRV 0 100 15432 10-1-0-3.db.shop" + z +
				"; _sql._tcp.db.shop" + z + " SRV 0 100 15432 db-0.db.shop" + z + "; _sql._tcp.db.shop" + z + " SRV 0 100 15432 db-1.db.shop" + z,
		},
		{"2.0.1.10.in-addr.arpa.", dns.TypePTR, "NOERROR", "2.0.1.10.in-addr.arpa. PTR db-1.db.shop" + z},
		{"3.0.1.10.in-addr.arpa.", dns.TypePTR, "NOERROR", "3.0.1.10.in-addr.arpa. PTR 10-1-0-3.db.shop" + z},
		{"9.0.1.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN", ""}, // a workload of no headless service
		// §2.5
		{"ext.shop" + z, dns.TypeCNAME, "NOERROR", "ext.shop" + z + " CNAME www.example.com."},
		{"ext.shop" + z, dns.TypeA, "NOERROR", "ext.shop" + z + " CNAME www.example.com."},
		{"x.ext.shop" + z, dns.TypeA, "NXDOMAIN", ""},
		{"inner.shop" + z, dns.TypeA, "NOERROR", "inner.shop" + z + " CNAME web.shop" + z + "; web.shop" + z + " A 10.96.0.10"},
		{"circle.shop" + z, dns.TypeA, "SERVFAIL", ""},
		// §2.6
		{"10-1-2-3.shop.pod.cluster.local.", dns.TypeA, "NOERROR", "10-1-2-3.shop.pod.cluster.local. A 10.1.2.3"},
		{"10-1-2-3.jobs.pod.cluster.local.", dns.TypeA, "NOERROR", "10-1-2-3.jobs.pod.cluster.local. A 10.1.2.3"},
		{"fd00--1.shop.pod.cluster.local.", dns.TypeAAAA, "NOERROR", "fd00--1.shop.pod.cluster.local. AAAA fd00::1"},
		{"10-1-2-3.shop.pod.cluster.local.", dns.TypeAAAA, "NOERROR", ""},
		{"10-1-2-3.none.pod.cluster.local.", dns.TypeA, "NXDOMAIN", ""},
		{"10-1-2-256.shop.pod.cluster.local.", dns.TypeA, "NXDOMAIN", ""},
		{"x.10-1-2-3.shop.pod.cluster.local.", dns.TypeA, "NXDOMAIN", ""},
		// Names that exist because others lie below them (RFC 8020).
		{"cluster.local.", dns.TypeA, "NOERROR", ""},
		{"cluster.local.", dns.TypeNS, "NOERROR", "cluster.local. NS ns.dns.cluster.local."},
		{"svc.cluster.local.", dns.TypeA, "NOERROR", ""},
		{"shop" + z, dns.TypeA, "NOERROR", ""},
		{"none" + z, dns.TypeA, "NXDOMAIN", ""},
		{"pod.cluster.local.", dns.TypeA, "NOERROR", ""},
		{"shop.pod.cluster.local.", dns.TypeA, "NOERROR", ""},
		{"none.shop" + z, dns.TypeA, "NXDOMAIN", ""},
		{"other.cluster.local.", dns.TypeA, "NXDOMAIN", ""},
		// What the search path makes of names.
		{"www.example.com.jobs" + z, dns.TypeA, "NXDOMAIN", ""},
		{"www.example.com" + z, dns.TypeA, "NXDOMAIN", ""},
		{"www.example.com.cluster.local.", dns.TypeA, "NXDOMAIN", ""},
		{`web\.shop` + z, dns.TypeA, "NXDOMAIN", ""},
		// Others, with nobody to ask.
		{"www.example.com.", dns.TypeA, "REFUSED", ""},
		{"xcluster.local.", dns.TypeA, "REFUSED", ""},
		{"1.0.0.8.in-addr.arpa.", dns.TypePTR, "REFUSED", ""},
		{"0.96.10.in-addr.arpa.", dns.TypePTR, "REFUSED", ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := h.query(t, network, c.name, c.qtype, nil)
			what := fmt.Sprintf("%s %s over %s", c.name, dns.TypeToString[c.qtype], network)
			if got := dns.RcodeToString[r.Rcode]; got != c.rcode || records(r.Answer) != c.want {
				t.Errorf("%s: %s, %s; want %s, %s", what, got, records(r.Answer), c.rcode, c.want)
				continue
			}
			if r.Question[0].Name != c.name {
				t.Errorf("%s: the question comes back as %s", what, r.Question[0].Name)
			}
			for _, rr := range append(slices.Clone(r.Answer), r.Extra...) {
				if rr.Header().Ttl != ttl {
					t.Errorf("%s: TTL %d", what, rr.Header().Ttl)
				}
			}
			negative := c.want == "" && (c.rcode == "NOERROR" || c.rcode == "NXDOMAIN")
			if hasSOA := len(r.Ns) == 1 && r.Ns[0].Header().Rrtype == dns.TypeSOA && r.Ns[0].Header().Name == "cluster.local."; hasSOA != negative {
				t.Errorf("%s: authority section %v", what, r.Ns)
			}
			if r.Authoritative != (c.rcode != "REFUSED") || r.RecursionAvailable {
				t.Errorf("%s: AA %v, RA %v", what, r.Authoritative, r.RecursionAvailable)
			}
		}
	}
	r := h.query(t, "udp", "_sql._tcp.db.shop"+z, dns.TypeSRV, nil)
	if got, want := records(r.Extra), "10-1-0-3.db.shop"+z+" A 10.1.0.3; db-0.db.shop"+z+" A 10.1.0.1; db-1.db.shop"+z+" A 10.1.0.2; db-1.db.shop"+z+" AAAA fd00::1:2"; got != want {
		t.Errorf("additional section %s, want %s", got, want)
	}
	r = h.query(t, "udp", "cluster.local.", dns.TypeSOA, nil)
	if soa, ok := r.Answer[0].(*dns.SOA); !ok || soa.Minttl != ttl || soa.Serial == 0 {
		t.Errorf("SOA %v", r.Answer)
	}
}

func reverseName(a string) string {
	n, err := dns.ReverseAddr(a)
	if err != nil {
		panic(err)
	}
	return n
}

func TestProtocol(t *testing.T) {
	h := serve(t)
	const web = "web.shop.svc.cluster.local."
	for _, c := range []struct {
		what   string
		change func(*dns.Msg)
		want   int
	}{
		{"NOTIFY", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented},
		{"UPDATE", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		{"no question", func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
		{"CHAOS", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		{"AXFR", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeRefused},
		{"EDNS 1", func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		{"no recursion", func(m *dns.Msg) { m.RecursionDesired = false }, dns.RcodeSuccess},
	} {
		if r := h.query(t, "tcp", web, dns.TypeA, c.change); r.Rcode != c.want {
			t.Errorf("%s: %s, want %s", c.what, dns.RcodeToString[r.Rcode], dns.RcodeToString[c.want])
		}
	}
	if r := h.query(t, "udp", web, dns.TypeANY, nil); len(r.Answer) != 1 || r.Answer[0].Header().Rrtype != dns.TypeHINFO {
		t.Errorf("ANY: %v", r.Answer)
	}
	r := h.query(t, "udp", web, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true) })
	if opt := r.IsEdns0(); opt == nil || !opt.Do() {
		t.Errorf("EDNS of the reply: %v", r.IsEdns0())
	}
	if r := h.query(t, "udp", web, dns.TypeA, nil); r.IsEdns0() != nil {
		t.Error("EDNS for a client that has none")
	}

	// Garbage gets FORMERR if it has a header, and replies nothing at all; the next
	// query on the socket is answered.
	before := h.counter(t, "sluice_dns_invalid_total")
	c, err := net.Dial("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	good, err := new(dns.Msg).SetQuestion(web, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	response := slices.Clone(good)
	response[2] |= 0x80
	for _, b := range [][]byte{{1, 2, 3}, response, {0xab, 0xcd, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0}} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil || n != 12 || buf[0] != 0xab || buf[1] != 0xcd || buf[3]&15 != dns.RcodeFormatError {
		t.Fatalf("garbage: % x, %v", buf[:n], err)
	}
	if n := h.counter(t, "sluice_dns_invalid_total") - before; n != 3 {
		t.Errorf("%v invalid messages are counted, want 3", n)
	}
}

func TestTruncation(t *testing.T) {
	h := serve(t)
	var endpoints []mesh.Endpoint
	for i := range 200 {
		endpoints = append(endpoints, endpoint(fmt.Sprintf("10.2.0.%d:80", i+1), ""))
	}
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{
		&mesh.Service{Name: name("shop/many"), Headless: true, Ports: []mesh.ServicePort{port("", 80, tcp, endpoints...)}},
	}})
	const many = "many.shop.svc.cluster.local."
	for _, c := range []struct {
		network   string
		size      uint16
		min, max  int
		truncated bool
	}{
		{"udp", 0, 20, 30, true},
		{"udp", 100, 20, 30, true}, // less than 512 counts as 512 (RFC 6891 §6.2.5)
		{"udp", 1232, 60, 80, true},
		{"udp", 4096, 200, 200, false},
		{"tcp", 0, 200, 200, false},
	} {
		r := h.query(t, c.network, many, dns.TypeA, func(m *dns.Msg) {
			if c.size > 0 {
				m.SetEdns0(c.size, false)
			}
		})
		if n := len(r.Answer); n < c.min || n > c.max || r.Truncated != c.truncated {
			t.Errorf("%s with %d bytes: %d answers, truncated %v", c.network, c.size, n, r.Truncated)
		}
	}
	// A resolver that falls back to TCP by itself.
	got, err := resolve(h).LookupHost(t.Context(), many)
	if err != nil || len(got) != 200 {
		t.Errorf("net.Resolver finds %d addresses, %v", len(got), err)
	}
}

func resolve(h *harness) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network[:3], h.addr)
	}}
}

func TestGoResolver(t *testing.T) {
	h := serve(t)
	r := resolve(h)
	ctx := t.Context()
	if got, err := r.LookupHost(ctx, "web.shop.svc.cluster.local."); err != nil || strings.Join(got, " ") != "10.96.0.10 fd00::10" {
		t.Errorf("host: %v, %v", got, err)
	}
	if _, got, err := r.LookupSRV(ctx, "http", "tcp", "web.shop.svc.cluster.local."); err != nil || len(got) != 1 || got[0].Port != 80 {
		t.Errorf("SRV: %v, %v", got, err)
	}
	if got, err := r.LookupAddr(ctx, "10.1.0.2"); err != nil || strings.Join(got, " ") != "db-1.db.shop.svc.cluster.local." {
		t.Errorf("PTR: %v, %v", got, err)
	}
	if got, err := r.LookupHost(ctx, "inner.shop.svc.cluster.local."); err != nil || strings.Join(got, " ") != "10.96.0.10 fd00::10" {
		t.Errorf("alias: %v, %v", got, err)
	}
	var notFound *net.DNSError
	if _, err := r.LookupHost(ctx, "none.shop.svc.cluster.local."); !errors.As(err, &notFound) || !notFound.IsNotFound {
		t.Errorf("no such name: %v", err)
	}
}

func TestDig(t *testing.T) {
	path, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("no dig")
	}
	h := serve(t)
	host, port, _ := net.SplitHostPort(h.addr)
	for _, c := range []struct{ args, want string }{
		{"web.shop.svc.cluster.local A", "10.96.0.10"},
		{"web.shop.svc.cluster.local AAAA", "fd00::10"},
		{"+tcp WEB.shop.svc.cluster.local A", "10.96.0.10"},
		{"_http._tcp.web.shop.svc.cluster.local SRV", "0 100 80 web.shop.svc.cluster.local."},
		{"-x fd00::10", "web.shop.svc.cluster.local."},
		{"+noedns web.shop.svc.cluster.local A", "10.96.0.10"},
	} {
		args := append([]string{"@" + host, "-p", port, "+short", "+tries=1"}, strings.Fields(c.args)...)
		out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != c.want {
			t.Errorf("dig %s: %s, %v; want %s", c.args, out, err, c.want)
		}
	}
	out, err := exec.CommandContext(t.Context(), path, "@"+host, "-p", port, "+tries=1", "none.shop.svc.cluster.local").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "status: NXDOMAIN") || !strings.Contains(string(out), "SOA") || strings.Contains(strings.ToLower(string(out)), "warning: m") {
		t.Errorf("dig: %s, %v", out, err)
	}
}

func TestForwarding(t *testing.T) {
	var asked []string
	var mu sync.Mutex
	up := resolver(t, func(q *dns.Msg, network string) *dns.Msg {
		mu.Lock()
		defer mu.Unlock()
		n := q.Question[0].Name
		asked = append(asked, network+" "+n)
		switch n = strings.ToLower(n); n {
		case "www.example.com.":
			return reply(q, dns.RcodeSuccess, "www.example.com. 60 IN A 192.0.2.1")
		case "big.example.com.":
			m := reply(q, dns.RcodeSuccess)
			if network == "udp" {
				m.Truncated = true
				return m
			}
			for i := range 100 {
				m.Answer = append(m.Answer, reply(q, 0, fmt.Sprintf("big.example.com. 60 IN A 192.0.2.%d", i)).Answer...)
			}
			return m
		}
		return reply(q, dns.RcodeNameError)
	})
	h := serve(t, up)
	r := h.query(t, "udp", "wWw.example.com.", dns.TypeA, nil)
	if records(r.Answer) != "wWw.example.com. A 192.0.2.1" || r.Authoritative || !r.RecursionAvailable || r.Answer[0].Header().Ttl != 60 {
		t.Errorf("outside: %v", r)
	}
	if r := h.query(t, "udp", "none.example.com.", dns.TypeA, nil); r.Rcode != dns.RcodeNameError {
		t.Errorf("no such name outside: %v", r)
	}
	if r := h.query(t, "udp", "big.example.com.", dns.TypeA, nil); !r.Truncated {
		t.Errorf("%d answers without truncation", len(r.Answer))
	}
	if r := h.query(t, "tcp", "big.example.com.", dns.TypeA, nil); len(r.Answer) != 100 || r.Truncated {
		t.Errorf("%d answers over TCP", len(r.Answer))
	}
	const z = ".shop.svc.cluster.local."
	if r := h.query(t, "udp", "ext"+z, dns.TypeA, nil); records(r.Answer) != "ext"+z+" CNAME www.example.com.; www.example.com. A 192.0.2.1" {
		t.Errorf("ExternalName: %v", r.Answer)
	}
	if r := h.query(t, "udp", "twice"+z, dns.TypeA, nil); records(r.Answer) != "ext"+z+" CNAME www.example.com.; twice"+z+" CNAME ext"+z+"; www.example.com. A 192.0.2.1" {
		t.Errorf("ExternalName of an ExternalName: %v", r.Answer)
	}
	if r := h.query(t, "udp", "www.example.com.", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false }); r.Rcode != dns.RcodeRefused {
		t.Errorf("without recursion: %v", r)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, a := range asked {
		if strings.Contains(strings.ToLower(a), "cluster.local") {
			t.Errorf("the cluster's name left the node: %s", a)
		}
	}
}

func TestUpstreamFailures(t *testing.T) {
	silent := resolver(t, func(*dns.Msg, string) *dns.Msg { return nil })
	broken := resolver(t, func(q *dns.Msg, _ string) *dns.Msg { return reply(q, dns.RcodeServerFailure) })
	forging := resolver(t, func(q *dns.Msg, _ string) *dns.Msg {
		m := reply(q, dns.RcodeSuccess, "www.example.com. 60 IN A 192.0.2.66")
		m.Question[0].Name = "other.example.com."
		return m
	})
	good := resolver(t, func(q *dns.Msg, _ string) *dns.Msg {
		return reply(q, dns.RcodeSuccess, q.Question[0].Name+" 60 IN A 192.0.2.1")
	})
	// A port where nobody listens: UDP gets an ICMP error.
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := netip.MustParseAddrPort(l.LocalAddr().String())
	l.Close()

	h := serve(t, closed, broken, good)
	if r := h.query(t, "udp", "www.example.com.", dns.TypeA, nil); records(r.Answer) != "www.example.com. A 192.0.2.1" {
		t.Errorf("with a good upstream behind two bad ones: %v", r)
	}
	if got := h.forward.order(); got[0].addr != broken || got[2].addr != closed {
		t.Errorf("the next one asks %v", got)
	}
	h = serve(t, broken)
	if r := h.query(t, "udp", "www.example.com.", dns.TypeA, nil); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("broken upstream: %v", r)
	}
	h = serve(t, closed)
	if r := h.query(t, "udp", "www.example.com.", dns.TypeA, nil); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("closed upstream: %v", r)
	}
	if f := h.takeFlows(); len(f) != 1 || f[0].Verdict != flow.VerdictError || f[0].Reason != flow.ReasonConnectFailed || f[0].Destination.AddrPort != closed {
		t.Errorf("flow %+v", f)
	}
	h = serveWith(t, func(s *Server) { s.forward.tryTimeout = 200 * time.Millisecond }, silent, forging)
	if r := h.query(t, "udp", "www.example.com.", dns.TypeA, nil); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("silent and forging upstreams: %v", r)
	}
	if f := h.takeFlows(); len(f) != 1 || f[0].Reason != flow.ReasonConnectTimeout {
		t.Errorf("flow %+v", f)
	}
	// The cluster's names wait for nobody.
	if r := h.query(t, "udp", "web.shop.svc.cluster.local.", dns.TypeA, nil); len(r.Answer) != 1 {
		t.Errorf("cluster name: %v", r)
	}
}

// TestForwardLimit holds the upstream until one workload's places are taken.
func TestForwardLimit(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 2*maxForwardsEach)
	up := resolver(t, func(q *dns.Msg, _ string) *dns.Msg {
		arrived <- struct{}{}
		<-release
		return reply(q, dns.RcodeSuccess, q.Question[0].Name+" 60 IN A 192.0.2.1")
	})
	h := serve(t, up)
	c, err := net.Dial("udp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range maxForwardsEach {
		m := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.com.", i), dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		<-arrived
	}
	r := h.query(t, "tcp", "www.example.com.", dns.TypeA, nil)
	if r.Rcode != dns.RcodeServerFailure || h.counter(t, "sluice_dns_limited_total") != 1 {
		t.Errorf("one too many: %v", r)
	}
	if f := h.takeFlows(); len(f) != 1 || f[0].Reason != flow.ReasonOverLimit || f[0].Verdict != flow.VerdictDropped {
		t.Errorf("flow %+v", f)
	}
	close(release)
	buf := make([]byte, 512)
	for range maxForwardsEach {
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFlows(t *testing.T) {
	h := serve(t)
	h.query(t, "udp", "WEB.shop.svc.cluster.local.", dns.TypeA, nil)
	h.query(t, "tcp", "www.example.com.", dns.TypeAAAA, nil)
	fs := h.takeFlows()
	if len(fs) != 2 {
		t.Fatalf("%d flows", len(fs))
	}
	f := fs[0]
	if f.Type != flow.TypeDNS || f.Verdict != flow.VerdictForwarded || f.Reason != 0 || f.Node != "node-a" ||
		f.Source.Workload != client0 || f.Source.Labels["app"] != "batch" || !f.Source.AddrPort.Addr().Is4() || f.Protocol != udp || f.Duration <= 0 ||
		f.DNS.Query != "WEB.shop.svc.cluster.local." || f.DNS.Type != "A" || f.DNS.RCode != "NOERROR" || !slices.Equal(f.DNS.Answer, []string{"10.96.0.10"}) {
		t.Errorf("flow %+v of %+v", f, f.DNS)
	}
	f = fs[1]
	if f.Verdict != flow.VerdictDropped || f.Reason != flow.ReasonUnsupported || f.Protocol != tcp || f.DNS.RCode != "REFUSED" || f.Detail == "" {
		t.Errorf("flow %+v of %+v", f, f.DNS)
	}
}

// TestFollowsStore wants names to come and go with commits, in the reverse zone too.
func TestFollowsStore(t *testing.T) {
	h := serve(t)
	ask := func(qname string, qtype uint16) string {
		r := h.query(t, "udp", qname, qtype, nil)
		var out []string
		for _, rr := range r.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				out = append(out, rr.A.String())
			case *dns.PTR:
				out = append(out, rr.Ptr)
			}
		}
		return dns.RcodeToString[r.Rcode] + " " + strings.Join(out, " ")
	}
	expect := func(qname string, qtype uint16, want string) {
		t.Helper()
		if got := ask(qname, qtype); got != want {
			t.Errorf("%s: %s, want %s", qname, got, want)
		}
	}
	const ptr = "77.0.96.10.in-addr.arpa."
	expect(ptr, dns.TypePTR, "REFUSED ")
	expect("new.svc.cluster.local.", dns.TypeA, "NXDOMAIN ")
	a := &mesh.Service{Name: name("new/a"), VIPs: addrs("10.96.0.77")}
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{a}})
	expect(ptr, dns.TypePTR, "NOERROR a.new.svc.cluster.local.")
	expect("new.svc.cluster.local.", dns.TypeA, "NOERROR ")
	// Another takes the address over in one commit, then both have it.
	b := &mesh.Service{Name: name("new/b"), VIPs: addrs("10.96.0.77")}
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{b}, Removes: []mesh.Ref{{Kind: mesh.KindService, Key: "new/a"}}})
	expect(ptr, dns.TypePTR, "NOERROR b.new.svc.cluster.local.")
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{a, b}})
	expect(ptr, dns.TypePTR, "NOERROR a.new.svc.cluster.local. b.new.svc.cluster.local.")
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{&mesh.Service{Name: name("new/a"), VIPs: addrs("10.96.0.78")}}})
	expect(ptr, dns.TypePTR, "NOERROR b.new.svc.cluster.local.")
	h.store.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindService, Key: "new/a"}, {Kind: mesh.KindService, Key: "new/b"}}})
	expect(ptr, dns.TypePTR, "REFUSED ")
	expect("new.svc.cluster.local.", dns.TypeA, "NXDOMAIN ")
	w := &mesh.Workload{Name: name("new/w"), Addresses: addrs("10.1.1.1")}
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{w}})
	h.store.Commit(mesh.Delta{Upserts: []mesh.Resource{w}})
	expect("new.svc.cluster.local.", dns.TypeA, "NOERROR ")
	h.store.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindWorkload, Key: "new/w"}}})
	expect("new.svc.cluster.local.", dns.TypeA, "NXDOMAIN ")
	if len(h.index.names) == 0 || len(h.index.names[netip.MustParseAddr("10.96.0.78")]) != 0 {
		t.Error("the index keeps an address that nobody has")
	}
}

func TestRemove(t *testing.T) {
	h := serve(t)
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d := dns.Conn{Conn: c}
	for range 2 { // two queries on one connection
		if err := d.WriteMsg(new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		if r, err := d.ReadMsg(); err != nil || len(r.Answer) != 1 {
			t.Fatal(r, err)
		}
	}
	h.Remove(7)
	if _, err := d.ReadMsg(); err == nil {
		t.Error("the connection of a removed workload is open")
	}
	if c, err := net.Dial("tcp", h.addr); err == nil {
		c.Close()
		t.Error("the listener of a removed workload is open")
	}
	h.Remove(7)
	// Its address can be served again.
	l, err := net.Listen("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	h.AddListener(l, 8, client0)
	if r := h.query(t, "tcp", "web.shop.svc.cluster.local.", dns.TypeA, nil); len(r.Answer) != 1 {
		t.Error(r)
	}
}

func TestLongQuery(t *testing.T) {
	h := serve(t)
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d bytes, %v; want the connection to end", n, err)
	}
}

func TestTooManyConnections(t *testing.T) {
	h := serve(t)
	var conns []*dns.Conn
	for range maxConnsEach + 1 {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, &dns.Conn{Conn: c})
	}
	for i, d := range conns {
		err := d.WriteMsg(new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA))
		if err == nil {
			_, err = d.ReadMsg()
		}
		if (err != nil) != (i == maxConnsEach) {
			t.Errorf("connection %d: %v", i, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "no store"},
		{Config{Store: store.New(), ClusterDomain: "a..b"}, "cluster domain"},
		{Config{Store: store.New(), ClusterDomain: "."}, "cluster domain"},
		{Config{Store: store.New(), Upstreams: []netip.AddrPort{netip.MustParseAddrPort("1.2.3.4:0")}}, "upstream"},
	} {
		if _, err := New(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	s, err := New(Config{Store: store.New(), ClusterDomain: "Mesh.Example"})
	if err != nil {
		t.Fatal(err)
	}
	if a := s.zone.answer(dns.Question{Name: "svc.mesh.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}); a.outside || a.rcode != 0 {
		t.Errorf("%+v", a)
	}
}

func FuzzHandle(f *testing.F) {
	for _, n := range []string{"web.shop.svc.cluster.local.", "db.shop.svc.cluster.local.", "_sql._tcp.db.shop.svc.cluster.local.", "circle.shop.svc.cluster.local.", "ext.shop.svc.cluster.local.", "2.0.1.10.in-addr.arpa.", reverseName("fd00::10"), "1-2-3-4.shop.pod.cluster.local.", "example.com.", "."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY} {
			m := new(dns.Msg).SetQuestion(n, qtype)
			if qtype == dns.TypeA {
				m.SetEdns0(600, true)
			}
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, qtype == dns.TypeSRV)
		}
	}
	st := store.New()
	st.Commit(cluster())
	flows := 0
	s, err := New(Config{Store: st, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, Flows: func(*flow.Flow) { flows++ }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, message []byte, overTCP bool) {
		c := &client{workload: &workload{name: client0}, protocol: udp}
		if overTCP {
			c.protocol = tcp
		}
		flows = 0
		out, ask := s.handle(message, c)
		if out == nil || ask != nil {
			if out != nil || flows != 0 {
				t.Fatal("a reply or a flow before the upstream answered")
			}
			return
		}
		if flows != 1 {
			t.Fatalf("%d flows", flows)
		}
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil {
			t.Fatalf("reply %x to %x: %v", out, message, err)
		}
		if !r.Response || out[0] != message[0] || out[1] != message[1] {
			t.Fatalf("reply %v to %x", r, message)
		}
		q := new(dns.Msg)
		if q.Unpack(message) != nil {
			if r.Rcode != dns.RcodeFormatError {
				t.Fatalf("reply %v to garbage", r)
			}
			return
		}
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(size, int(opt.UDPSize())), maxUDP)
		}
		if !overTCP && len(out) > size {
			t.Fatalf("%d bytes, want %d at most", len(out), size)
		}
		if len(q.Question) == 1 && (len(r.Question) != 1 || r.Question[0] != q.Question[0]) {
			t.Fatalf("question %v comes back as %v", q.Question, r.Question)
		}
	})
}

// FuzzUpstreamAnswer wants whatever an upstream sends to become one reply that the
// client can read and that answers its own question.
func FuzzUpstreamAnswer(f *testing.F) {
	q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	for _, m := range []*dns.Msg{
		reply(q, dns.RcodeSuccess, "www.example.com. 60 IN A 192.0.2.1", "WWW.example.com. 60 IN TXT \"x\""),
		reply(q, dns.RcodeNameError),
		reply(q, dns.RcodeSuccess, "www.example.com. 60 IN CNAME a.example.com.", "a.example.com. 60 IN AAAA 2001:db8::1").SetEdns0(1232, true),
		reply(q, 23).SetEdns0(1232, false),
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(0), false)
		f.Add(b, uint16(600), true)
	}
	st := store.New()
	st.Commit(cluster())
	flows := 0
	s, err := New(Config{Store: st, Upstreams: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, Flows: func(*flow.Flow) { flows++ }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, message []byte, size uint16, alias bool) {
		answer := new(dns.Msg)
		if answer.Unpack(message) != nil {
			return
		}
		qname := "wWw.example.com."
		if alias {
			qname = "ext.shop.svc.cluster.local."
		}
		q := new(dns.Msg).SetQuestion(qname, dns.TypeA)
		limit := dns.MinMsgSize
		if size > 0 {
			q.SetEdns0(size, false)
			limit = min(max(limit, int(size)), maxUDP)
		}
		b, err := q.Pack()
		if err != nil {
			t.Fatal(err)
		}
		_, ask := s.handle(b, &client{workload: &workload{name: client0}, protocol: udp})
		if ask == nil {
			t.Fatal("upstreams are not asked")
		}
		flows = 0
		out := s.merge(ask, answer, netip.AddrPort{})
		r := new(dns.Msg)
		if err := r.Unpack(out); err != nil {
			t.Fatalf("reply %x to %v: %v", out, answer, err)
		}
		if flows != 1 || len(out) > limit || r.Id != q.Id || !r.Response || r.Authoritative || len(r.Question) != 1 || r.Question[0] != q.Question[0] {
			t.Fatalf("%d flows, %d bytes: %v", flows, len(out), r)
		}
	})
}

func BenchmarkHandle(b *testing.B) {
	st := store.New()
	st.Commit(cluster())
	s, err := New(Config{Store: st, Flows: func(*flow.Flow) {}})
	if err != nil {
		b.Fatal(err)
	}
	m, err := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	c := &client{workload: &workload{name: client0}, protocol: udp}
	b.ReportAllocs()
	for b.Loop() {
		s.handle(m, c)
	}
}
