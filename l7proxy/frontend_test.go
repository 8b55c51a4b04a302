package l7proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// ask sends one request over a new TLS connection and returns its status, and whether
// the server asked for a certificate. TLS 1.3 clients see with the first read that
// their certificate was refused.
func ask(t *testing.T, addr netip.AddrPort, cfg *tls.Config, host string) (status int, asked bool, err error) {
	t.Helper()
	own := cfg.Certificates
	cfg = cfg.Clone()
	cfg.Certificates = nil
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		if len(own) == 0 {
			return new(tls.Certificate), nil
		}
		return &own[0], nil
	}
	c := tls.Client(dial(t, addr), cfg)
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return 0, asked, err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, asked, err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, asked, err
}

func TestClientCertificates(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	edgeCert := ca.issue("infra/edge", "strict.test", "loose.test", "open.test")
	good, bad := pair(t, ca.issue("client")), pair(t, other.issue("client"))
	l := newLab(t)
	chain := func(name string, clients *mesh.ClientValidation) mesh.Chain {
		return mesh.Chain{Name: name, ServerNames: []string{name + ".test"}, Certificates: []string{"infra/edge"}, RouteTable: edge + "/" + name, Clients: clients}
	}
	listener := func(roots []byte) *mesh.Listener {
		return gatewayListener(
			chain("strict", &mesh.ClientValidation{RootsPEM: roots}),
			chain("loose", &mesh.ClientValidation{RootsPEM: roots, Optional: true}),
			chain("open", nil))
	}
	l.commit(edgeCert, listener(ca.pem), cluster(webCluster, ""),
		clusterEndpoints(webCluster, httpServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))))
	for _, name := range []string{"strict", "loose", "open"} {
		l.commit(virtualHost(edge+"/"+name, "*", to(webCluster)))
	}
	addr := l.gateway(edge)
	for _, test := range []struct {
		name        string
		certificate *tls.Certificate
		ok, asked   bool
	}{
		{"strict", &good, true, true}, {"strict", &bad, false, true}, {"strict", nil, false, true},
		{"loose", &good, true, true}, {"loose", &bad, true, true}, {"loose", nil, true, true},
		{"open", nil, true, false},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			cfg := &tls.Config{ServerName: test.name + ".test", RootCAs: ca.pool(), MinVersion: version, MaxVersion: version}
			if test.certificate != nil {
				cfg.Certificates = []tls.Certificate{*test.certificate}
			}
			status, asked, err := ask(t, addr, cfg, cfg.ServerName)
			if (err == nil && status == 200) != test.ok || asked != test.asked {
				t.Errorf("%s, certificate %v: %d, %v, asked %v", test.name, test.certificate != nil, status, err, asked)
			}
			if !test.ok {
				f := l.flow("refused", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
				if f.Reason != flow.ReasonTLSHandshake || f.Detail == "" {
					t.Errorf("flow %+v", f)
				}
			}
		}
	}

	// A session does not outlive the authorities that it was verified with.
	cfg := &tls.Config{
		ServerName: "strict.test", RootCAs: ca.pool(), Certificates: []tls.Certificate{good},
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	for range 2 {
		if status, _, err := ask(t, addr, cfg, "strict.test"); status != 200 {
			t.Fatal(status, err)
		}
	}
	l.commit(listener(other.pem))
	if status, _, err := ask(t, addr, cfg, "strict.test"); err == nil {
		t.Errorf("%d with a session of other authorities", status)
	}
}

// TestRotationKeepsConnections changes the certificate of a listener below a client.
func TestRotationKeepsConnections(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	l := newLab(t)
	l.commit(ca.issue("infra/edge", "a.test"),
		gatewayListener(mesh.Chain{Name: "https", Certificates: []string{"infra/edge"}, RouteTable: edge + "/https"}),
		virtualHost(edge+"/https", "*", to(webCluster)), cluster(webCluster, ""),
		clusterEndpoints(webCluster, httpServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))))
	addr := l.gateway(edge)
	old := tls.Client(dial(t, addr), &tls.Config{ServerName: "a.test", RootCAs: ca.pool()})
	reader := bufio.NewReader(old)
	request := func() {
		t.Helper()
		fmt.Fprint(old, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		res, err := http.ReadResponse(reader, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		io.Copy(io.Discard, res.Body)
	}
	request()
	l.commit(next.issue("infra/edge", "a.test"))
	request()
	if status, _, err := ask(t, addr, &tls.Config{ServerName: "a.test", RootCAs: next.pool()}, "a.test"); status != 200 {
		t.Errorf("the new certificate: %d, %v", status, err)
	}
	if _, _, err := ask(t, addr, &tls.Config{ServerName: "a.test", RootCAs: ca.pool()}, "a.test"); err == nil {
		t.Error("the old certificate is still shown")
	}
	request()
}

func TestHandshakeLimits(t *testing.T) {
	for _, test := range []struct {
		name        string
		all, client int
		want        string
	}{
		{"listener", 2, 9, "TLS handshakes of the listener"},
		{"client", 9, 2, "TLS handshakes of the client's address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Limits.MaxHandshakes, c.Limits.MaxHandshakesPerClient = test.all, test.client })
			cert, roots := certificate(t, "infra/edge", "a.test")
			l.commit(cert, gatewayListener(mesh.Chain{Name: "https", Certificates: []string{"infra/edge"}, RouteTable: edge + "/https"}),
				virtualHost(edge+"/https", "*", to(webCluster)), cluster(webCluster, ""),
				clusterEndpoints(webCluster, httpServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))))
			addr := l.gateway(edge)
			cfg := &tls.Config{ServerName: "a.test", RootCAs: roots}
			release := make(chan struct{})
			defer close(release)
			// Two clients stop after the server's flight.
			stuck := make([]io.Closer, 2)
			for i := range stuck {
				c := dial(t, addr)
				stuck[i] = c
				stop := cfg.Clone()
				stop.InsecureSkipVerify = true
				seen := make(chan struct{})
				stop.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { close(seen); <-release; return io.EOF }
				go func() { _ = tls.Client(c, stop).Handshake() }()
				<-seen
			}
			if _, _, err := ask(t, addr, cfg, "a.test"); err == nil {
				t.Error("a third handshake went through")
			}
			if f := l.flow("over", func(*flow.Flow) bool { return true }); f.Reason != flow.ReasonOverLimit || f.Detail != test.want {
				t.Errorf("flow %+v, want %q", f, test.want)
			}
			stuck[0].Close()
			l.flow("gone", func(f *flow.Flow) bool { return f.Reason == flow.ReasonTLSHandshake })
			if status, _, err := ask(t, addr, cfg, "a.test"); status != 200 {
				t.Errorf("after one ended: %d, %v", status, err)
			}
		})
	}
	for a, want := range map[string]string{"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1", "2001:db8::1:2:3:4": "2001:db8::", "fe80::1%eth0": "fe80::"} {
		if got := clientOf(netip.MustParseAddr(a)).String(); got != want {
			t.Errorf("%s counts as %s, want %s", a, got, want)
		}
	}
}
