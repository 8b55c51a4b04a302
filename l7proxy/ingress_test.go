package l7proxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

const edge = "gateway/infra/edge/443"

func certificate(t testing.TB, name string, hosts ...string) (*mesh.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	leaf, _ := x509.ParseCertificate(der)
	pool.AddCert(leaf)
	return &mesh.Certificate{
		Name:     name,
		ChainPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, pool
}

func gatewayListener(chains ...mesh.Chain) *mesh.Listener {
	return &mesh.Listener{
		Name: edge, Type: mesh.ListenerGateway, Parent: mesh.Name{Namespace: "infra", Name: "edge"}, Port: 443, Chains: chains,
	}
}

func TestGatewayTLS(t *testing.T) {
	for _, alpn := range []string{"h2", "http/1.1"} {
		t.Run(alpn, func(t *testing.T) {
			l := newLab(t)
			cert, roots := certificate(t, "infra/cert", "*.example.com")
			const size = 3 << 20
			backend := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h := sha256.New()
				n, _ := io.Copy(h, r.Body)
				w.Header().Set("X-Saw", fmt.Sprintf("%s|%s|%d|%x", r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"), n, h.Sum(nil)))
				io.CopyN(w, rand.NewChaCha8([32]byte{2}), size)
			}))
			table := edge + "/https"
			l.commit(cert, gatewayListener(mesh.Chain{Name: "https", ServerNames: []string{"*.example.com"}, Certificates: []string{"infra/cert"}, RouteTable: table}),
				virtualHost(table, "*.example.com", to(webCluster)), cluster(webCluster, ""), clusterEndpoints(webCluster, backend))
			addr := l.gateway(edge)
			c := h1client(t, addr)
			tr := c.Transport.(*http.Transport)
			tr.TLSClientConfig = &tls.Config{RootCAs: roots}
			tr.Protocols = new(http.Protocols)
			tr.Protocols.SetHTTP1(alpn != "h2")
			tr.Protocols.SetHTTP2(alpn == "h2")
			want := sha256.New()
			io.CopyN(want, rand.NewChaCha8([32]byte{2}), size)
			for range 3 {
				req, _ := http.NewRequest("POST", "https://www.example.com/", io.LimitReader(rand.NewChaCha8([32]byte{1}), 1<<20))
				req.Header.Set("X-Forwarded-For", "192.0.2.1")
				req.Header.Set("X-Forwarded-Proto", "gopher")
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				got := sha256.New()
				if n, err := io.Copy(got, res.Body); err != nil || n != size {
					t.Fatalf("%d bytes, %v", n, err)
				}
				res.Body.Close()
				if string(got.Sum(nil)) != string(want.Sum(nil)) {
					t.Error("other bytes")
				}
				sent := sha256.New()
				io.CopyN(sent, rand.NewChaCha8([32]byte{1}), 1<<20)
				if saw := res.Header.Get("X-Saw"); saw != fmt.Sprintf("192.0.2.1, 127.0.0.1|https|%d|%x", 1<<20, sent.Sum(nil)) {
					t.Errorf("the endpoint saw %s", saw)
				}
				if alpn == "h2" && res.ProtoMajor != 2 || alpn != "h2" && res.ProtoMajor != 1 {
					t.Errorf("spoke %s", res.Proto)
				}
			}
			f := l.flow("ingress", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
			if !f.Ingress || f.Destination.Service != (mesh.Name{Namespace: "infra", Name: "edge"}) || f.Original != addr {
				t.Errorf("flow %+v", f)
			}
			held, err := l.proxy.Snapshot(t.Context())
			if err != nil || len(held) != 1 {
				t.Fatalf("%d connections, %v", len(held), err)
			}
			if got := held[0].TLS; got == nil || got.Version != "TLS 1.3" || (got.ALPN == "h2") != (alpn == "h2") || got.ServerName != "www.example.com" || got.Cipher == "" {
				t.Errorf("the connection's TLS is %+v", got)
			}
			if held[0].BytesIn < 3<<20 || held[0].BytesOut < 3*size {
				t.Errorf("%d bytes in, %d out", held[0].BytesIn, held[0].BytesOut)
			}
		})
	}
}

func TestGatewayTLSRefusals(t *testing.T) {
	l := newLab(t)
	cert, roots := certificate(t, "infra/cert", "a.example.com", "b.example.com")
	l.commit(cert, gatewayListener(
		mesh.Chain{Name: "a", ServerNames: []string{"a.example.com"}, Certificates: []string{"infra/cert"}, RouteTable: edge + "/a"},
		mesh.Chain{Name: "b", ServerNames: []string{"b.example.com"}, Certificates: []string{"infra/cert"}, RouteTable: edge + "/b"},
	), virtualHost(edge+"/a", "a.example.com", to(webCluster)), virtualHost(edge+"/b", "b.example.com", to(webCluster)),
		cluster(webCluster, ""), clusterEndpoints(webCluster, httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))))
	addr := l.gateway(edge)

	// A name that no chain serves.
	raw := dial(t, addr)
	if err := tls.Client(raw, &tls.Config{ServerName: "c.example.com", InsecureSkipVerify: true}).Handshake(); err == nil {
		t.Error("shook hands for a name that nobody serves")
	}
	f := l.flow("no chain", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
	if f.Reason != flow.ReasonNoChain || !f.Ingress {
		t.Errorf("flow %+v", f)
	}

	// A request for a name that another chain serves.
	conn := tls.Client(dial(t, addr), &tls.Config{ServerName: "a.example.com", RootCAs: roots})
	for _, test := range []struct {
		host   string
		status int
	}{{"a.example.com", 200}, {"b.example.com", 421}, {"a.example.com:443", 200}} {
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", test.host)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		if res.StatusCode != test.status {
			t.Errorf("%s: %d", test.host, res.StatusCode)
		}
	}

	// A client that does not trust the certificate.
	if err := tls.Client(dial(t, addr), &tls.Config{ServerName: "a.example.com"}).Handshake(); err == nil {
		t.Error("shook hands without trust")
	}
	f = l.flow("handshake", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP })
	if f.Reason != flow.ReasonTLSHandshake || f.Detail == "" {
		t.Errorf("flow %+v", f)
	}
}

func TestGatewayPlain(t *testing.T) {
	l := newLab(t)
	answer := func(text string) netip.AddrPort {
		return httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) }))
	}
	l.commit(gatewayListener(
		mesh.Chain{Name: "any", RouteTable: edge + "/any"},
		mesh.Chain{Name: "wild", ServerNames: []string{"*.example.com"}, RouteTable: edge + "/wild"},
		mesh.Chain{Name: "exact", ServerNames: []string{"www.example.com"}, RouteTable: edge + "/exact"},
	))
	for _, name := range []string{"any", "wild", "exact"} {
		c := "shop/" + name + "/80"
		l.commit(virtualHost(edge+"/"+name, "*", to(c)), cluster(c, ""), clusterEndpoints(c, answer(name)))
	}
	addr := l.gateway(edge)
	for _, s := range []speaker{h1, h2} {
		c := s.client(t, addr)
		for host, want := range map[string]string{
			"www.example.com": "exact", "WWW.example.com:443": "exact", "a.b.example.com": "wild", "example.com": "any", "other": "any",
		} {
			if _, body := get(t, c, "http://"+host+"/"); body != want {
				t.Errorf("%s %s: %q, want %q", s, host, body, want)
			}
		}
	}
	// What is neither HTTP nor TLS.
	c := dial(t, addr)
	io.WriteString(c, "SSH-2.0-x\r\n")
	if _, err := io.ReadAll(c); err == nil {
		t.Error("not reset")
	}
	if f := l.flow("other", func(f *flow.Flow) bool { return f.Type == flow.TypeTCP }); f.Reason != flow.ReasonDownstreamProtocol {
		t.Errorf("flow %+v", f)
	}
}

func TestDrain(t *testing.T) {
	for _, s := range []speaker{h1, h2} {
		t.Run(string(s), func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Loops = 2 })
			begun, finish := make(chan struct{}), make(chan struct{})
			c := l.serve(s, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					close(begun)
					<-finish
				}
				io.WriteString(w, "ok")
			}))
			addr := l.outbound(vip)
			idle := dial(t, addr)
			fmt.Fprintf(idle, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
			idleReader := bufio.NewReader(idle)
			if _, err := http.ReadResponse(idleReader, nil); err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, idleReader, 2)
			answered := make(chan error, 1)
			go func() {
				res, err := c.Get("http://web/slow")
				if err == nil {
					var b []byte
					b, err = io.ReadAll(res.Body)
					if res.StatusCode != 200 || string(b) != "ok" || s == h1 && !res.Close {
						err = fmt.Errorf("%d %q %v", res.StatusCode, b, res)
					}
				}
				answered <- err
			}()
			<-begun
			drained := make(chan error, 1)
			go func() { drained <- l.proxy.Drain(context.Background()) }()
			// The idle connection ends at once, the other with its response.
			if _, err := idleReader.ReadByte(); err != io.EOF {
				t.Errorf("idle connection: %v", err)
			}
			select {
			case err := <-drained:
				t.Fatalf("drained with a request under way: %v", err)
			default:
			}
			close(finish)
			if err := <-answered; err != nil {
				t.Error(err)
			}
			select {
			case err := <-drained:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("not drained")
			}
			// The listening sockets are there for others who hold them.
			if n := len(l.proxy.Sockets()); n != 2 {
				t.Errorf("%d sockets", n)
			}
		})
	}
}

func TestDrainDeadline(t *testing.T) {
	l := newLab(t)
	l.commit(web(mesh.AppProtocolTCP, tcpServer(t, echo))...)
	c := dial(t, l.outbound(vip))
	io.WriteString(c, "x")
	io.ReadFull(c, make([]byte, 1))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := l.proxy.Drain(ctx); err != context.DeadlineExceeded {
		t.Errorf("Drain: %v", err)
	}
	l.cancel()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("still open after Run")
	}
}

func TestSockets(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Loops = 2 })
	l.commit(web(mesh.AppProtocolTCP, tcpServer(t, echo))...)
	addr := l.outbound(vip)
	held := dial(t, addr)
	io.WriteString(held, "x")
	io.ReadFull(held, make([]byte, 1))
	socks := l.proxy.Sockets()
	if len(socks) != 1 || socks[0].Addr != addr || socks[0].WorkloadName != client || socks[0].Type != SocketOutbound {
		t.Fatalf("%+v", socks)
	}
	if !l.proxy.RemoveSocket(Socket{Type: SocketOutbound, Workload: 7, Addr: addr}) {
		t.Fatal("not found")
	}
	if l.proxy.RemoveSocket(Socket{Type: SocketOutbound, Workload: 7, Addr: addr}) {
		t.Error("found twice")
	}
	for deadline := time.Now().Add(patience); ; {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("the socket is still open")
		}
	}
	// What it accepted goes on.
	io.WriteString(held, "y")
	if _, err := io.ReadFull(held, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestBudget(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.MaxConnections = 2 })
	l.commit(web(mesh.AppProtocolTCP, tcpServer(t, echo))...)
	addr := l.outbound(vip)
	var conns []net.Conn
	for range 2 {
		c := dial(t, addr)
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	wantReset(t, addr)
	if f := l.flow("over", func(f *flow.Flow) bool { return true }); f.Reason != flow.ReasonOverLimit || f.Verdict != flow.VerdictDropped {
		t.Errorf("flow %+v", f)
	}
	conns[0].Close()
	l.flow("closed", func(f *flow.Flow) bool { return f.Reason == flow.ReasonNone })
	c := dial(t, addr)
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestConfigValidate(t *testing.T) {
	for _, edit := range []func(*Config){
		func(c *Config) { c.Loops = 0 },
		func(c *Config) { c.Store = nil },
		func(c *Config) { c.Routes = nil },
		func(c *Config) { c.Logger = nil },
		func(c *Config) { c.Registerer = nil },
		func(c *Config) { c.Limits.MaxHeadBytes = -1 },
	} {
		l := newLab(t)
		cfg := l.proxy.cfg
		edit(&cfg)
		if _, err := New(cfg); err == nil || !strings.HasPrefix(err.Error(), "l7proxy: ") {
			t.Errorf("New: %v", err)
		}
	}
}
