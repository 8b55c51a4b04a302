package tlsengine

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// certificate makes a self-signed certificate for the names.
func certificate(t testing.TB, name string, dns ...string) *mesh.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: dns[0]}, DNSNames: dns,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &mesh.Certificate{
		Name:     name,
		ChainPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM:   pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

func pool(t testing.TB, certs ...*mesh.Certificate) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	for _, c := range certs {
		if !p.AppendCertsFromPEM(c.ChainPEM) {
			t.Fatal("no certificate")
		}
	}
	return p
}

// setup returns a table with one TLS listener "l", and the settings of a client.
func setup(t testing.TB) (*Certificates, *tls.Config) {
	t.Helper()
	cert := certificate(t, "ns/cert", "a.test")
	c := NewCertificates()
	c.Apply(mesh.Delta{Upserts: []mesh.Resource{cert, &mesh.Listener{
		Name: "l", Chains: []mesh.Chain{{Certificates: []string{"ns/cert"}, RouteTable: "t"}},
	}}})
	return c, &tls.Config{ServerName: "a.test", RootCAs: pool(t, cert), NextProtos: []string{"h2", "http/1.1"}, DynamicRecordSizingDisabled: true}
}

// pair is both ends of a connection, with the wire between them in the test's hands.
type pair struct {
	t              testing.TB
	server, client *Conn
	woken          chan struct{}
	toServer       func([]byte) // how client bytes reach the server; nil: at once
	fromServer     []byte       // all that the server ever sent
}

func newPair(t testing.TB, serverCfg, clientCfg *tls.Config) *pair {
	p := connect(t, serverCfg, clientCfg)
	t.Cleanup(func() {
		p.server.Close()
		p.client.Close()
	})
	return p
}

func connect(t testing.TB, serverCfg, clientCfg *tls.Config) *pair {
	woken := make(chan struct{}, 1)
	p := &pair{t: t, woken: woken}
	wake := func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	p.server, p.client = Server(serverCfg, wake), Client(clientCfg, wake)
	return p
}

// move carries what both ends have to send to the other, and reports whether there
// was anything.
func (p *pair) move() bool {
	moved := false
	if out := p.client.Out(); len(out) > 0 {
		moved = true
		if p.toServer != nil {
			p.toServer(out)
		} else {
			p.server.Feed(out)
		}
		p.client.Sent(len(out))
	}
	if out := p.server.Out(); len(out) > 0 {
		moved = true
		p.fromServer = append(p.fromServer, out...)
		p.client.Feed(out)
		p.server.Sent(len(out))
	}
	return moved
}

// handshake runs both handshakes to their end and returns their errors.
func (p *pair) handshake() (server, client error) {
	for {
		serverDone, serverErr := p.server.HandshakeDone()
		clientDone, clientErr := p.client.HandshakeDone()
		moved := p.move()
		switch {
		case serverDone && clientDone && !moved:
			return serverErr, clientErr
		case serverDone && serverErr != nil && !moved && !clientDone:
			p.client.FeedEOF()
		case clientDone && clientErr != nil && !moved && !serverDone:
			p.server.FeedEOF()
		}
		if !moved {
			if s, _ := p.server.HandshakeDone(); s != serverDone {
				continue
			}
			if c, _ := p.client.HandshakeDone(); c != clientDone {
				continue
			}
			<-p.woken
		}
	}
}

func (p *pair) mustHandshake() {
	p.t.Helper()
	if s, c := p.handshake(); s != nil || c != nil {
		p.t.Fatalf("handshake: server %v, client %v", s, c)
	}
}

func established(t testing.TB, change func(client *tls.Config)) *pair {
	t.Helper()
	certs, client := setup(t)
	if change != nil {
		change(client)
	}
	cfg, _, ok := certs.Config("l", "a.test")
	if !ok {
		t.Fatal("no settings")
	}
	p := newPair(t, cfg, client)
	p.mustHandshake()
	return p
}

func write(t testing.TB, c *Conn, text string) {
	t.Helper()
	if n, err := c.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(text), err)
	}
}

// drain reads until an error and returns the plaintext.
func drain(c *Conn) (string, error) {
	var got []byte
	buf := make([]byte, 1000)
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return string(got), err
		}
	}
}

func wantRead(t testing.TB, c *Conn, text string, want error) {
	t.Helper()
	if got, err := drain(c); got != text || !errors.Is(err, want) {
		t.Fatalf("read %d bytes %.40q and %v, want %d bytes and %v", len(got), got, err, len(text), want)
	}
}

var versions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

func eachVersion(t *testing.T, f func(t *testing.T, change func(*tls.Config))) {
	for _, v := range versions {
		t.Run(tls.VersionName(v), func(t *testing.T) { f(t, func(c *tls.Config) { c.MaxVersion = v }) })
	}
}

func TestExchange(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		p := established(t, change)
		if p.server.ALPN() != "h2" || p.server.ServerName() != "a.test" {
			t.Errorf("agreed on %q for %q", p.server.ALPN(), p.server.ServerName())
		}
		wantRead(t, p.server, "", ErrDry)
		for _, size := range []int{1, 100, 16 << 10, 16<<10 + 1, 300 << 10} {
			text := strings.Repeat("x", size-1) + "y"
			write(t, p.client, text)
			p.move()
			wantRead(t, p.server, text, ErrDry)
			write(t, p.server, text)
			p.move()
			wantRead(t, p.client, text, ErrDry)
		}
		if p.server.mem.in.data != nil || p.server.mem.out.data != nil {
			t.Error("an idle connection holds buffers")
		}
	})
}

// TestEveryCut stops the ciphertext after every byte, asks for plaintext, and goes on.
func TestEveryCut(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		p := established(t, change)
		write(t, p.client, "first")
		write(t, p.client, "second")
		p.client.CloseNotify()
		wire := bytes.Clone(p.client.Out())
		var got []byte
		for i := range wire {
			p.server.Feed(wire[i : i+1])
			text, err := drain(p.server)
			got = append(got, text...)
			if last := i == len(wire)-1; last && err != io.EOF || !last && err != ErrDry {
				t.Fatalf("after byte %d of %d: %v", i+1, len(wire), err)
			}
		}
		if string(got) != "firstsecond" {
			t.Fatalf("read %q", got)
		}
	})
}

func TestHandshakeByteByByte(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		certs, client := setup(t)
		change(client)
		cfg, _, _ := certs.Config("l", "a.test")
		p := newPair(t, cfg, client)
		p.toServer = func(b []byte) {
			for i := range b {
				p.server.Feed(b[i : i+1])
			}
		}
		p.mustHandshake()
		write(t, p.client, "hello")
		p.move()
		wantRead(t, p.server, "hello", ErrDry)
	})
}

// TestDataBehindFinished sends application data in the same bytes as the client's
// last flight.
func TestDataBehindFinished(t *testing.T) {
	certs, client := setup(t)
	cfg, _, _ := certs.Config("l", "a.test")
	p := newPair(t, cfg, client)
	var held []byte
	p.toServer = func(b []byte) {
		if done, _ := p.client.HandshakeDone(); done || bytes.Contains(b, []byte{20, 3, 3, 0, 1, 1}) {
			held = append(held, b...)
			return
		}
		p.server.Feed(b)
	}
	for done := false; !done; done, _ = p.client.HandshakeDone() {
		if !p.move() {
			<-p.woken
		}
	}
	write(t, p.client, "early")
	p.move()
	p.toServer = nil
	p.server.Feed(held)
	p.mustHandshake()
	wantRead(t, p.server, "early", ErrDry)
}

func TestCloseNotify(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		p := established(t, change)
		write(t, p.server, "last words")
		p.server.CloseNotify()
		if _, err := p.server.Write([]byte("more")); err == nil {
			t.Error("written after close_notify")
		}
		p.move()
		wantRead(t, p.client, "last words", io.EOF)
		// The other half stays open.
		write(t, p.client, "answer")
		p.client.CloseNotify()
		p.move()
		wantRead(t, p.server, "answer", io.EOF)
		wantRead(t, p.server, "", io.EOF)
	})
}

func TestCutIsNoClose(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		p := established(t, change)
		write(t, p.client, "half of it")
		p.move()
		p.server.FeedEOF()
		wantRead(t, p.server, "half of it", io.ErrUnexpectedEOF)

		p = established(t, change)
		write(t, p.client, "half of it")
		out := p.client.Out()
		p.server.Feed(out[:len(out)-1])
		p.server.FeedEOF()
		wantRead(t, p.server, "", io.ErrUnexpectedEOF)
	})
}

func TestForgedRecord(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		p := established(t, change)
		write(t, p.client, "hello")
		out := p.client.Out()
		out[len(out)-1] ^= 1
		p.move()
		_, err := drain(p.server)
		if err == nil || errors.Is(err, ErrDry) || errors.Is(err, io.EOF) {
			t.Fatalf("a forged record reads as %v", err)
		}
		if len(p.server.Out()) == 0 {
			t.Error("no alert for the peer")
		}
		write(t, p.client, "hello")
		p.move()
		if _, again := drain(p.server); again != err {
			t.Errorf("then %v, was %v", again, err)
		}
	})
}

func TestHandshakeFailures(t *testing.T) {
	for name, c := range map[string]struct {
		change func(client *tls.Config)
		want   string // in the server's error
	}{
		"no common protocol": {func(c *tls.Config) { c.NextProtos = []string{"smtp"} }, "protocols"},
		"TLS 1.1":            {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, "version"},
		"client distrusts":   {func(c *tls.Config) { c.RootCAs = x509.NewCertPool() }, "bad certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			certs, client := setup(t)
			c.change(client)
			cfg, _, _ := certs.Config("l", "a.test")
			p := newPair(t, cfg, client)
			server, clientErr := p.handshake()
			if server == nil || clientErr == nil || !strings.Contains(server.Error(), c.want) {
				t.Fatalf("server %v, client %v, want %q of the server", server, clientErr, c.want)
			}
			if _, err := p.server.Read(make([]byte, 1)); err != ErrDry {
				t.Errorf("read %v", err)
			}
			if _, err := p.server.Write([]byte("x")); err == nil {
				t.Error("written without a handshake")
			}
		})
	}
	t.Run("not TLS", func(t *testing.T) {
		certs, client := setup(t)
		cfg, _, _ := certs.Config("l", "a.test")
		p := newPair(t, cfg, client)
		p.toServer = func([]byte) { p.server.Feed([]byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")) }
		if server, _ := p.handshake(); server == nil {
			t.Fatal("plain text was taken for TLS")
		}
	})
}

func TestOtherServerName(t *testing.T) {
	cert := certificate(t, "ns/cert", "a.test", "b.test")
	certs := NewCertificates()
	certs.Apply(mesh.Delta{Upserts: []mesh.Resource{cert, &mesh.Listener{Name: "l", Chains: []mesh.Chain{
		{Certificates: []string{"ns/cert"}, ServerNames: []string{"a.test"}},
	}}}})
	cfg, _, ok := certs.Config("l", "a.test")
	if !ok {
		t.Fatal("no settings")
	}
	p := newPair(t, cfg, &tls.Config{ServerName: "b.test", RootCAs: pool(t, cert)})
	if server, _ := p.handshake(); !errors.Is(server, errOtherChain) {
		t.Fatalf("server %v, want %v", server, errOtherChain)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	certs, _ := setup(t)
	cfg, _, _ := certs.Config("l", "")
	synctest.Test(t, func(t *testing.T) {
		woken := make(chan struct{}, 1)
		c := Server(cfg, func() { woken <- struct{}{} })
		c.Feed([]byte{22, 3, 1})
		start := time.Now()
		<-woken
		if took := time.Since(start); took != HandshakeTimeout {
			t.Errorf("timed out after %s", took)
		}
		if done, err := c.HandshakeDone(); !done || !errors.Is(err, ErrHandshakeTimeout) {
			t.Errorf("done %v, %v", done, err)
		}
		c.Close()
	})
}

// TestCloseEndsHandshake fails by synctest's complaint about a goroutine that is left.
func TestCloseEndsHandshake(t *testing.T) {
	certs, _ := setup(t)
	cfg, _, _ := certs.Config("l", "")
	synctest.Test(t, func(t *testing.T) {
		c := Server(cfg, func() {})
		synctest.Wait()
		c.Close()
		synctest.Wait()
		c.Close()
	})
}

func TestResumption(t *testing.T) {
	eachVersion(t, func(t *testing.T, change func(*tls.Config)) {
		certs, client := setup(t)
		change(client)
		client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		cfg, _, _ := certs.Config("l", "a.test")
		for i := range 3 {
			p := newPair(t, cfg, client)
			p.mustHandshake()
			write(t, p.server, "x") // carries the session tickets of TLS 1.3 with it
			p.move()
			wantRead(t, p.client, "x", ErrDry)
			if resumed := p.server.ConnectionState().DidResume; resumed != (i > 0) {
				t.Errorf("connection %d: resumed is %v", i, resumed)
			}
		}
		// A new version of the listener that leaves the chain as it was keeps the keys
		// of the tickets.
		certs.Apply(mesh.Delta{Upserts: []mesh.Resource{&mesh.Listener{
			Name: "l", Chains: []mesh.Chain{{Certificates: []string{"ns/cert"}, RouteTable: "t"}, {Name: "new"}},
		}}})
		cfg, _, _ = certs.Config("l", "a.test")
		p := newPair(t, cfg, client)
		p.mustHandshake()
		if !p.server.ConnectionState().DidResume {
			t.Error("not resumed after the listener changed elsewhere")
		}
	})
}

// keys is a client's side of the record layer, from what crypto/tls logs of it.
type keys struct {
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
	secret []byte // of TLS 1.3
}

func aead(t *testing.T, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func logged(t *testing.T, log, label string) []byte {
	t.Helper()
	for line := range strings.Lines(log) {
		if f := strings.Fields(line); f[0] == label {
			b, err := hex.DecodeString(f[2])
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
	t.Fatalf("no %s in the key log", label)
	return nil
}

// expand is HKDF-Expand-Label of RFC 8446 §7.1.
func expand(t *testing.T, secret []byte, label string, n int) []byte {
	t.Helper()
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(append(info, byte(len(label))), label...)
	out, err := hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (k *keys) use(t *testing.T, secret []byte) {
	k.secret, k.seq = secret, 0
	k.aead, k.iv = aead(t, expand(t, secret, "key", 16)), expand(t, secret, "iv", 12)
}

// record13 encrypts a record of TLS 1.3 (RFC 8446 §5.2).
func (k *keys) record13(kind byte, content []byte) []byte {
	inner := append(bytes.Clone(content), kind)
	header := []byte{23, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(inner)+k.aead.Overhead()))
	nonce := bytes.Clone(k.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(k.seq >> (56 - 8*i))
	}
	k.seq++
	return k.aead.Seal(header, nonce, inner, header)
}

// record12 encrypts a record of TLS 1.2 with AES-GCM (RFC 5288 §3).
func (k *keys) record12(kind byte, content []byte) []byte {
	explicit := binary.BigEndian.AppendUint64(nil, k.seq)
	additional := append(bytes.Clone(explicit), kind, 3, 3, byte(len(content)>>8), byte(len(content)))
	k.seq++
	out := []byte{kind, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(out[3:], uint16(8+len(content)+k.aead.Overhead()))
	out = append(out, explicit...)
	return k.aead.Seal(out, append(bytes.Clone(k.iv), explicit...), content, additional)
}

// TestKeyUpdate has the client change its keys, with a request for the server to do
// the same, in records cut at every byte and in a message split over two records.
func TestKeyUpdate(t *testing.T) {
	var log strings.Builder
	p := established(t, func(c *tls.Config) {
		c.KeyLogWriter = &log
		c.MinVersion = tls.VersionTLS13
	})
	if suite := p.server.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skipf("the cipher suite is %s", tls.CipherSuiteName(suite))
	}
	var k keys
	k.use(t, logged(t, log.String(), "CLIENT_TRAFFIC_SECRET_0"))
	feed := func(b []byte, want string) {
		t.Helper()
		var got string
		for i := range b {
			p.server.Feed(b[i : i+1])
			text, err := drain(p.server)
			if got += text; err != ErrDry {
				t.Fatalf("after byte %d: %v", i, err)
			}
		}
		if got != want {
			t.Fatalf("read %q, want %q", got, want)
		}
	}
	const handshake, data = 22, 23
	feed(k.record13(data, []byte("before")), "before")
	for round := range 3 {
		update := []byte{24, 0, 0, 1, 1} // KeyUpdate, update_requested
		wire := k.record13(handshake, update)
		if round == 1 {
			k.seq--
			wire = append(k.record13(handshake, update[:2]), k.record13(handshake, update[2:])...)
		}
		feed(wire, "")
		k.use(t, expand(t, k.secret, "traffic upd", 32))
		text := fmt.Sprintf("after %d", round)
		feed(k.record13(data, []byte(text)), text)
		// The server answered, and its own new keys are right.
		write(t, p.server, "from the server")
		if n := len(p.server.Out()); n < 2*(5+16+1) {
			t.Fatalf("%d bytes to send, want two records", n)
		}
		p.client.Feed(p.server.Out())
		p.server.Sent(len(p.server.Out()))
		wantRead(t, p.client, "from the server", ErrDry)
	}

	// A message that has no place here ends the connection, also for what follows it;
	// crypto/tls would go on.
	p.server.Feed(k.record13(handshake, append([]byte{20, 0, 0, 32}, make([]byte, 32)...)))
	p.server.Feed(k.record13(data, []byte("more")))
	_, err := drain(p.server)
	if err == nil || errors.Is(err, ErrDry) {
		t.Fatalf("a stray Finished reads as %v", err)
	}
	if text, again := drain(p.server); text != "" || again != err {
		t.Fatalf("after it the connection reads as %q, %v", text, again)
	}
}

// prf is P_SHA256 of RFC 5246 §5.
func prf(secret []byte, label string, seed []byte, n int) []byte {
	seed = append([]byte(label), seed...)
	sum := func(b []byte) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write(b)
		return h.Sum(nil)
	}
	var out []byte
	for a := sum(seed); len(out) < n; a = sum(a) {
		out = append(out, sum(append(bytes.Clone(a), seed...))...)
	}
	return out[:n]
}

// TestNoRenegotiation has a client of TLS 1.2 start a second handshake.
func TestNoRenegotiation(t *testing.T) {
	var log strings.Builder
	p := established(t, func(c *tls.Config) {
		c.KeyLogWriter = &log
		c.MaxVersion = tls.VersionTLS12
		c.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	})
	master := logged(t, log.String(), "CLIENT_RANDOM")
	clientRandom, err := hex.DecodeString(strings.Fields(log.String())[1])
	if err != nil {
		t.Fatal(err)
	}
	serverRandom := p.fromServer[5+4+2:][:32] // of the ServerHello
	block := prf(master, "key expansion", append(bytes.Clone(serverRandom), clientRandom...), 40)
	k := keys{aead: aead(t, block[:16]), iv: block[32:36], seq: 1} // Finished was 0
	p.server.Feed(k.record12(23, []byte("hello")))
	wantRead(t, p.server, "hello", ErrDry)
	p.server.Feed(k.record12(22, []byte{1, 0, 0, 2, 3, 3})) // a ClientHello
	text, err := drain(p.server)
	if err == nil || errors.Is(err, ErrDry) || errors.Is(err, io.EOF) {
		t.Fatalf("a second handshake reads as %q, %v", text, err)
	}
	p.server.Feed(k.record12(23, []byte("more")))
	if text, again := drain(p.server); text != "" || again != err {
		t.Fatalf("after it the connection reads as %q, %v", text, again)
	}
	if len(p.server.Out()) == 0 {
		t.Error("no alert for the peer")
	}
}

// FuzzFeed feeds an established connection what no peer encrypted, in two pieces, and
// a handshake the same. Neither may yield plaintext or wait for ever.
func FuzzFeed(f *testing.F) {
	f.Add([]byte{23, 3, 3, 0, 1, 0}, uint16(3))
	f.Add([]byte{21, 3, 3, 0, 2, 1, 0}, uint16(7))
	f.Add([]byte{20, 3, 3, 0, 1, 1, 23, 3, 3, 0xff, 0xff}, uint16(6))
	f.Add([]byte{22, 3, 1, 0, 5, 1, 0, 0, 1, 3}, uint16(0))
	certs, client := setup(f)
	cfg, _, _ := certs.Config("l", "a.test")
	f.Fuzz(func(t *testing.T, wire []byte, cut uint16) {
		n := min(int(cut), len(wire))
		p := newPair(t, cfg, client)
		p.mustHandshake()
		var err error
		for _, piece := range [][]byte{wire[:n], wire[n:]} {
			p.server.Feed(piece)
			if got, _ := drain(p.server); got != "" {
				t.Fatalf("forged plaintext %q", got)
			}
		}
		p.server.FeedEOF()
		if _, err = drain(p.server); err == nil || errors.Is(err, ErrDry) || errors.Is(err, io.EOF) {
			t.Fatalf("a cut connection reads as %v", err)
		}

		woken := make(chan struct{}, 16)
		c := Server(cfg, func() { woken <- struct{}{} })
		defer c.Close()
		c.Feed(wire[:n])
		c.Feed(wire[n:])
		c.FeedEOF()
		for done := false; !done; {
			if done, err = c.HandshakeDone(); !done {
				<-woken
			}
		}
		if err == nil {
			t.Fatal("a handshake without a peer succeeded")
		}
	})
}

func TestDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector a sync.Pool forgets on purpose")
	}
	p := established(t, nil)
	text, buf := make([]byte, 8000), make([]byte, 16<<10)
	run := func() {
		p.client.Write(text)
		p.server.Feed(p.client.Out())
		p.client.Sent(len(p.client.Out()))
		if n, err := p.server.Read(buf); n != len(text) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if _, err := p.server.Read(buf); err != ErrDry {
			t.Fatal(err)
		}
		p.server.Write(text)
		if n := len(p.server.Out()); n > len(text)+5+16+1 {
			t.Fatalf("%d bytes to send, want one record", n)
		}
		p.server.Sent(len(p.server.Out()))
	}
	for range 10 {
		run()
	}
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkIdle reports what an idle connection of a server costs.
func BenchmarkIdle(b *testing.B) {
	certs, client := setup(b)
	cfg, _, _ := certs.Config("l", "a.test")
	var before, after runtime.MemStats
	var idle []*Conn
	measure := func(m *runtime.MemStats) {
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(m)
	}
	measure(&before)
	for b.Loop() {
		p := connect(b, cfg, client)
		p.mustHandshake()
		write(b, p.client, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		p.move()
		drain(p.server)
		write(b, p.server, strings.Repeat("x", 1000))
		p.server.Sent(len(p.server.Out()))
		p.client.Close()
		idle = append(idle, p.server)
	}
	measure(&after)
	b.ReportMetric(float64(after.HeapInuse-before.HeapInuse)/float64(len(idle)), "B/conn")
	runtime.KeepAlive(idle)
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{200, 16 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := established(b, nil)
			text, buf := make([]byte, size), make([]byte, 16<<10)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				p.client.Write(text)
				p.server.Feed(p.client.Out())
				p.client.Sent(len(p.client.Out()))
				p.server.Read(buf)
			}
		})
	}
}
