package tlsengine

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-mesh/sluice/mesh"
)

// Certificates are the TLS settings of the node's listeners. One goroutine calls
// Apply; everything else may be called by any number of them at any time.
type Certificates struct {
	certificates sync.Map // mesh.Certificate.Name -> *tls.Certificate
	listeners    sync.Map // mesh.Listener.Name -> []chain

	mu      sync.Mutex
	refused map[string]error // by certificate name, guarded by mu
}

// chain is a mesh.Chain with its settings, which live as long as the chain stays the
// same: they hold the keys of session tickets.
type chain struct {
	*mesh.Chain
	cfg *tls.Config // nil: plain text
}

// NewCertificates returns a table that knows nothing.
func NewCertificates() *Certificates { return &Certificates{} }

// ValidateCertificate reports why a certificate cannot be used. The error holds
// nothing of the key.
func ValidateCertificate(c *mesh.Certificate) error {
	_, err := parse(c)
	return err
}

func parse(c *mesh.Certificate) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(c.ChainPEM, c.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", c.Name, err)
	}
	return &cert, nil
}

// Apply takes over the certificates and listeners of a delta and ignores everything
// else. A changed certificate is parsed once and costs the listeners that use it
// nothing. One that cannot be parsed leaves the last good one of its name in place,
// and shows in Refused.
func (c *Certificates) Apply(d mesh.Delta) {
	for _, r := range d.Upserts {
		switch r := r.(type) {
		case *mesh.Certificate:
			cert, err := parse(r)
			c.note(r.Name, err)
			if err == nil {
				c.certificates.Store(r.Name, cert)
			}
		case *mesh.Listener:
			c.upsert(r)
		}
	}
	for _, ref := range d.Removes {
		switch ref.Kind {
		case mesh.KindCertificate:
			c.note(ref.Key, nil)
			c.certificates.Delete(ref.Key)
		case mesh.KindListener:
			c.listeners.Delete(ref.Key)
		}
	}
}

func (c *Certificates) upsert(l *mesh.Listener) {
	var old []chain
	if v, ok := c.listeners.Load(l.Name); ok {
		old = v.([]chain)
	}
	chains := make([]chain, len(l.Chains))
	for i := range l.Chains {
		n := &l.Chains[i]
		chains[i].Chain = n
		if len(n.Certificates) == 0 {
			continue
		}
		for _, o := range old {
			if o.cfg != nil && o.Name == n.Name && o.RouteTable == n.RouteTable &&
				slices.Equal(o.Certificates, n.Certificates) && slices.Equal(o.ServerNames, n.ServerNames) && reflect.DeepEqual(o.Clients, n.Clients) {
				chains[i].cfg = o.cfg
			}
		}
		if chains[i].cfg == nil {
			chains[i].cfg = c.config(n)
		}
	}
	c.listeners.Store(l.Name, chains)
}

func (c *Certificates) note(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		delete(c.refused, name)
	case c.refused == nil:
		c.refused = map[string]error{name: err}
	default:
		c.refused[name] = err
	}
}

// Refused returns the names of the certificates whose newest form could not be
// used, with the reason of each.
func (c *Certificates) Refused() map[string]error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.refused)
}

// Config returns the first chain of a listener that serves a server name (empty: the
// client named none), and the settings for its handshake. cfg is nil if the chain is
// plain text. ok is false if no chain serves the name, or none of the chain's
// certificates is known; chain is nil in the first case only.
func (c *Certificates) Config(listener, sni string) (cfg *tls.Config, mchain *mesh.Chain, ok bool) {
	v, found := c.listeners.Load(listener)
	if !found {
		return nil, nil, false
	}
	for _, ch := range v.([]chain) {
		if !serves(ch.Chain, sni) {
			continue
		}
		if ch.cfg == nil {
			return nil, ch.Chain, true
		}
		for _, name := range ch.Certificates {
			if _, ok := c.certificates.Load(name); ok {
				return ch.cfg, ch.Chain, true
			}
		}
		return nil, ch.Chain, false
	}
	return nil, nil, false
}

// serves reports whether a server name is one of the chain's patterns. "*.suffix"
// stands for one or more labels (Gateway API, Listener.hostname).
func serves(c *mesh.Chain, sni string) bool {
	if len(c.ServerNames) == 0 {
		return true
	}
	sni = strings.TrimSuffix(strings.ToLower(sni), ".")
	for _, pattern := range c.ServerNames {
		if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
			if suffix == "" || len(sni) > len(suffix) && strings.HasSuffix(sni, suffix) {
				return true
			}
		} else if sni == pattern && sni != "" {
			return true
		}
	}
	return false
}

var (
	errOtherChain    = errors.New("the server name is not of the listener that was chosen")
	errNoCertificate = errors.New("no certificate is known")
)

func (c *Certificates) config(n *mesh.Chain) *tls.Config {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS12,
		// Small first records would be one system call each for a proxy that has the
		// whole response at hand.
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.choose(n.Certificates, hello)
		},
	}
	if n.Clients != nil {
		validateClients(cfg, n.Clients)
	}
	if n.RouteTable != "" {
		cfg.NextProtos = []string{"h2", "http/1.1"}
	}
	// The chain was chosen by the server name that somebody else read from the
	// ClientHello. Both readings must agree.
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if !serves(n, hello.ServerName) {
			return nil, errOtherChain
		}
		return nil, nil
	}
	return cfg
}

// validateClients has a handshake ask for the client's certificate, and check it. Tickets
// hold what was verified; their keys live as long as the settings, so that a session
// never outlives the authorities that it was verified with.
func validateClients(cfg *tls.Config, v *mesh.ClientValidation) {
	if v.Optional {
		cfg.ClientAuth = tls.RequestClientCert
		return
	}
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	// Without a usable authority the pool is empty, and nobody is let in.
	cfg.ClientCAs = x509.NewCertPool()
	cfg.ClientCAs.AppendCertsFromPEM(v.RootsPEM)
}

// choose returns the first of the named certificates that the client can verify and
// that is for the name it asks for, else the first known one.
func (c *Certificates) choose(names []string, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	var first *tls.Certificate
	for _, name := range names {
		v, ok := c.certificates.Load(name)
		if !ok {
			continue
		}
		cert := v.(*tls.Certificate)
		if first == nil {
			first = cert
		}
		if len(names) > 1 && hello.SupportsCertificate(cert) != nil {
			continue
		}
		return cert, nil
	}
	if first == nil {
		return nil, errNoCertificate
	}
	return first, nil
}
