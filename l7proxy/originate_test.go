package l7proxy

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// authority signs certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Authorities of a test suite may share subject and serial number.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2024), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	return &authority{t, cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue signs a certificate for names, of which those with "://" are URIs.
func (a *authority) issue(name string, names ...string) *mesh.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if strings.Contains(n, "://") {
			u, _ := url.Parse(n)
			template.URIs = append(template.URIs, u)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(crand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
	return &mesh.Certificate{
		Name:     name,
		ChainPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func pair(t testing.TB, c *mesh.Certificate) tls.Certificate {
	t.Helper()
	p, err := tls.X509KeyPair(c.ChainPEM, c.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tlsBackend is Go's own HTTP server over TLS. It says what it saw.
type tlsBackend struct {
	addr     netip.AddrPort
	accepted atomic.Int32
}

func newTLSBackend(t testing.TB, network string, cfg *tls.Config, h http.Handler) *tlsBackend {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "tcp6" {
		address = "[::1]:0"
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	b := &tlsBackend{addr: ln.Addr().(*net.TCPAddr).AddrPort()}
	server := &http.Server{
		Handler: h, TLSConfig: cfg, ErrorLog: quietLog(),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				b.accepted.Add(1)
			}
		},
	}
	go server.ServeTLS(ln, "", "")
	t.Cleanup(func() { server.Close() })
	return b
}

// sawTLS answers with what a server knows of its client's TLS.
func sawTLS(w http.ResponseWriter, r *http.Request) {
	peer := "none"
	if len(r.TLS.PeerCertificates) > 0 {
		peer = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %s %d", r.Proto, r.TLS.ServerName, r.TLS.NegotiatedProtocol, peer, len(body))
}

func secured(c *mesh.Cluster, u *mesh.UpstreamTLS) *mesh.Cluster {
	c.TLS = u
	return c
}

func TestUpstreamTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	server := ca.issue("server", "abc.example.com", "*.wild.example.com", "spiffe://example.org/backend")
	for _, network := range []string{"tcp4", "tcp6"} {
		backend := newTLSBackend(t, network, &tls.Config{
			Certificates: []tls.Certificate{pair(t, server)}, ClientAuth: tls.RequestClientCert,
		}, http.HandlerFunc(sawTLS))
		for _, test := range []struct {
			name     string
			protocol mesh.AppProtocol
			tls      mesh.UpstreamTLS
			want     string // empty: 502
		}{
			{"http/1.1", "", mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: ca.pem}, "HTTP/1.1 abc.example.com http/1.1 none 100000"},
			{"h2", mesh.AppProtocolHTTP2, mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: ca.pem}, "HTTP/2.0 abc.example.com h2 none 100000"},
			{"one of two authorities", "", mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: append(other.pem, ca.pem...)}, "HTTP/1.1 abc.example.com http/1.1 none 100000"},
			{"other authority", "", mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: other.pem}, ""},
			{"other authority h2", mesh.AppProtocolHTTP2, mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: other.pem}, ""},
			{"other name", "", mesh.UpstreamTLS{ServerName: "abd.example.com", RootsPEM: ca.pem}, ""},
			{"no authority", "", mesh.UpstreamTLS{ServerName: "abc.example.com"}, ""},
			{"authority that is none", "", mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: []byte("x")}, ""},
			{"authorities of the node", "", mesh.UpstreamTLS{ServerName: "abc.example.com", SystemRoots: true}, ""},
			{"URI", "", mesh.UpstreamTLS{ServerName: "sni.test", RootsPEM: ca.pem, SubjectAltNames: []mesh.SubjectAltName{{DNS: "x.test"}, {URI: "spiffe://example.org/backend"}}}, "HTTP/1.1 sni.test http/1.1 none 100000"},
			{"other URI", "", mesh.UpstreamTLS{ServerName: "abc.example.com", RootsPEM: ca.pem, SubjectAltNames: []mesh.SubjectAltName{{URI: "spiffe://example.org/backen"}}}, ""},
			{"DNS name", "", mesh.UpstreamTLS{ServerName: "sni.test", RootsPEM: ca.pem, SubjectAltNames: []mesh.SubjectAltName{{DNS: "x.wild.example.com"}}}, "HTTP/1.1 sni.test http/1.1 none 100000"},
			{"wildcard", "", mesh.UpstreamTLS{ServerName: "sni.test", RootsPEM: ca.pem, SubjectAltNames: []mesh.SubjectAltName{{DNS: "*.example.com"}}}, "HTTP/1.1 sni.test http/1.1 none 100000"},
			{"other wildcard", "", mesh.UpstreamTLS{ServerName: "sni.test", RootsPEM: ca.pem, SubjectAltNames: []mesh.SubjectAltName{{DNS: "*.xample.com"}}}, ""},
		} {
			t.Run(network+"/"+test.name, func(t *testing.T) {
				l := newLab(t)
				l.commit(routed(web(mesh.AppProtocolHTTP, backend.addr), to(webCluster))...)
				l.commit(secured(cluster(webCluster, test.protocol), &test.tls))
				c := h1client(t, l.outbound(vip))
				before := backend.accepted.Load()
				for range 3 {
					res, err := c.Post("http://web/", "text/plain", strings.NewReader(strings.Repeat("x", 100000)))
					if err != nil {
						t.Fatal(err)
					}
					body, _ := io.ReadAll(res.Body)
					res.Body.Close()
					if test.want != "" && (res.StatusCode != 200 || string(body) != test.want) {
						t.Errorf("%d %q, want %q", res.StatusCode, body, test.want)
					}
					if test.want == "" {
						f := l.flow("refused", func(*flow.Flow) bool { return true })
						if res.StatusCode != 502 || res.Header.Get("X-Sluice-Reason") != "upstream-tls" || f.Reason != flow.ReasonUpstreamTLS || f.Detail == "" {
							t.Errorf("%d %v, flow %+v", res.StatusCode, res.Header, f)
						}
					}
				}
				if n := backend.accepted.Load() - before; test.want != "" && n != 1 {
					t.Errorf("%d connections for three requests", n)
				}
				// Whom nobody could trust is not even dialled.
				nobody := !test.tls.SystemRoots && !strings.HasPrefix(string(test.tls.RootsPEM), "-----BEGIN")
				if n := backend.accepted.Load() - before; nobody && n != 0 {
					t.Errorf("%d connections although there is no authority", n)
				}
			})
		}
	}
}

// TestUpstreamTLSRotation changes whom a cluster trusts, and back: connections that
// were verified by others are not used again.
func TestUpstreamTLSRotation(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	backend := newTLSBackend(t, "tcp", &tls.Config{Certificates: []tls.Certificate{pair(t, ca.issue("s", "a.test"))}}, http.HandlerFunc(sawTLS))
	l := newLab(t)
	l.commit(routed(web(mesh.AppProtocolHTTP, backend.addr), to(webCluster))...)
	c := h1client(t, l.outbound(vip))
	for i, test := range []struct {
		roots    []byte
		status   int
		accepted int32
	}{{ca.pem, 200, 1}, {ca.pem, 200, 1}, {other.pem, 502, 2}, {ca.pem, 200, 3}} {
		l.commit(secured(cluster(webCluster, ""), &mesh.UpstreamTLS{ServerName: "a.test", RootsPEM: test.roots}))
		status, _ := get(t, c, "http://web/")
		if status.StatusCode != test.status || backend.accepted.Load() != test.accepted {
			t.Errorf("step %d: %d after %d connections, want %d after %d", i, status.StatusCode, backend.accepted.Load(), test.status, test.accepted)
		}
	}
}

// TestUpstreamClientCertificate has an endpoint that wants the Gateway's certificate.
func TestUpstreamClientCertificate(t *testing.T) {
	ca := newAuthority(t)
	backend := newTLSBackend(t, "tcp", &tls.Config{
		Certificates: []tls.Certificate{pair(t, ca.issue("s", "a.test"))},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(),
	}, http.HandlerFunc(sawTLS))
	l := newLab(t)
	gw := gatewayListener(mesh.Chain{Name: "http", RouteTable: edge + "/http"})
	l.commit(gw, virtualHost(edge+"/http", "*", to(webCluster)), clusterEndpoints(webCluster, backend.addr),
		secured(cluster(webCluster, ""), &mesh.UpstreamTLS{ServerName: "a.test", RootsPEM: ca.pem}))
	c := h1client(t, l.gateway(edge))
	if res, _ := get(t, c, "http://web/"); res.StatusCode != 502 {
		t.Errorf("without a certificate: %d", res.StatusCode)
	}
	named := *gw
	named.ClientCertificate = "infra/own"
	l.commit(ca.issue("infra/own", "edge.test"), &named)
	if res, body := get(t, c, "http://web/"); res.StatusCode != 200 || !strings.Contains(body, " infra/own ") {
		t.Errorf("with a certificate: %d %q", res.StatusCode, body)
	}
}

// TestTunnelUpstreamTLS carries the bytes of a TCP route and of a terminated TLS
// connection over TLS of the proxy's own, and a client's own TLS as it is.
func TestTunnelUpstreamTLS(t *testing.T) {
	ca := newAuthority(t)
	own := ca.issue("infra/edge", "b.test", "term.test", "pass.test")
	backend := tlsServer(t, "hello", own)
	for _, test := range []struct {
		name  string
		chain mesh.Chain
		roots []byte
		want  string
	}{
		{"tcp", mesh.Chain{}, ca.pem, "hello b.test"},
		{"terminated", mesh.Chain{ServerNames: []string{"term.test"}, Certificates: []string{"infra/edge"}}, ca.pem, "hello b.test"},
		{"passthrough", mesh.Chain{ServerNames: []string{"pass.test"}, Passthrough: true}, ca.pem, "hello pass.test"},
		{"not trusted", mesh.Chain{}, newAuthority(t).pem, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			test.chain.Name = "l4"
			test.chain.Default = []mesh.WeightedCluster{{Cluster: webCluster, Weight: 1}}
			l.commit(own, gatewayListener(test.chain), clusterEndpoints(webCluster, backend),
				secured(cluster(webCluster, mesh.AppProtocolTLS), &mesh.UpstreamTLS{ServerName: "b.test", RootsPEM: test.roots}))
			addr := l.gateway(edge)
			if test.want == "" {
				wantReset(t, addr)
				if f := l.flow("not trusted", func(*flow.Flow) bool { return true }); f.Reason != flow.ReasonUpstreamTLS || f.Detail == "" {
					t.Errorf("flow %+v", f)
				}
				return
			}
			var c net.Conn = dial(t, addr)
			if len(test.chain.ServerNames) > 0 {
				c = tls.Client(c, &tls.Config{ServerName: test.chain.ServerNames[0], RootCAs: ca.pool()})
			}
			if got := line(t, c); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			text := strings.Repeat("0123456789abcdef", 1<<16)
			go func() {
				io.WriteString(c, text)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			if back, err := io.ReadAll(c); err != nil || string(back) != text {
				t.Errorf("%d bytes back of %d, %v", len(back), len(text), err)
			}
		})
	}
}

// TestUpgradeUpstreamTLS switches protocols with an endpoint behind TLS (wss).
func TestUpgradeUpstreamTLS(t *testing.T) {
	ca := newAuthority(t)
	backend := newTLSBackend(t, "tcp", &tls.Config{Certificates: []tls.Certificate{pair(t, ca.issue("s", "a.test"))}}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst\n")
		io.Copy(c, rw)
	}))
	l := newLab(t)
	l.commit(routed(web(mesh.AppProtocolHTTP, backend.addr), to(webCluster))...)
	l.commit(secured(cluster(webCluster, ""), &mesh.UpstreamTLS{ServerName: "a.test", RootsPEM: ca.pem}))
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatalf("%v, %v", res, err)
	}
	if got := line(t, r); got != "first" {
		t.Errorf("%q", got)
	}
	io.WriteString(c, "second\n")
	if got := line(t, r); got != "second" {
		t.Errorf("%q", got)
	}
}

// quietLog is for servers whose clients are meant to fail.
func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }
