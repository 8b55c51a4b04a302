package tlsengine

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-mesh/sluice/mesh"
)

// sessions is how many endpoints of a cluster a client remembers for resumption.
const sessions = 64

// ErrNoRoots says that nobody is trusted to sign the certificates of a cluster's
// endpoints.
var ErrNoRoots = errors.New("no valid CA certificate is known, so that no endpoint can be trusted")

var systemRoots = sync.OnceValues(x509.SystemCertPool)

// ClientConfig returns the settings for handshakes with the endpoints of a cluster.
// They offer protocols (ALPN), and show the certificate that certificate returns, nil
// for none, at the time of the handshake. The settings keep sessions for resumption,
// and verify a resumed session like a new one.
func ClientConfig(u *mesh.UpstreamTLS, protocols []string, certificate func() *tls.Certificate) (*tls.Config, error) {
	roots, err := rootsOf(u)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		ServerName:                  u.ServerName,
		NextProtos:                  protocols,
		DynamicRecordSizingDisabled: true,
		ClientSessionCache:          tls.NewLRUClientSessionCache(sessions),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := certificate(); c != nil {
				return c, nil
			}
			return new(tls.Certificate), nil
		},
		// VerifyConnection does it: a name other than that of the SNI may be wanted, and
		// VerifyPeerCertificate is left out when a session is resumed.
		InsecureSkipVerify: true,
		VerifyConnection:   func(s tls.ConnectionState) error { return verifyEndpoint(u, roots, s) },
	}, nil
}

func rootsOf(u *mesh.UpstreamTLS) (*x509.CertPool, error) {
	if u.SystemRoots {
		return systemRoots()
	}
	return poolOf(u.RootsPEM)
}

// poolOf returns the certificates of a PEM file that has at least one.
func poolOf(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, ErrNoRoots
	}
	return pool, nil
}

// verifyEndpoint checks the chain and the names of an endpoint's certificate.
func verifyEndpoint(u *mesh.UpstreamTLS, roots *x509.CertPool, s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the endpoint has no certificate")
	}
	leaf := s.PeerCertificates[0]
	options := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		options.Intermediates.AddCert(c)
	}
	if len(u.SubjectAltNames) == 0 {
		options.DNSName = u.ServerName
	}
	if _, err := leaf.Verify(options); err != nil {
		return err
	}
	if len(u.SubjectAltNames) > 0 && !slices.ContainsFunc(u.SubjectAltNames, func(n mesh.SubjectAltName) bool { return hasName(leaf, n) }) {
		return fmt.Errorf("the endpoint's certificate has none of the wanted names, but %s", namesOf(leaf))
	}
	return nil
}

// hasName reports whether a certificate has a name.
func hasName(leaf *x509.Certificate, n mesh.SubjectAltName) bool {
	if n.URI != "" {
		for _, u := range leaf.URIs {
			if u.String() == n.URI {
				return true
			}
		}
		return false
	}
	if suffix, ok := strings.CutPrefix(n.DNS, "*"); ok {
		return slices.ContainsFunc(leaf.DNSNames, func(d string) bool {
			return len(d) > len(suffix) && strings.EqualFold(d[len(d)-len(suffix):], suffix)
		})
	}
	return leaf.VerifyHostname(n.DNS) == nil
}

// namesOf lists the names of a certificate for people.
func namesOf(leaf *x509.Certificate) string {
	names := slices.Clone(leaf.DNSNames)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		return "no name at all"
	}
	return strings.Join(names, ", ")
}

// Certificate returns a certificate by its name, nil if it is not known.
func (c *Certificates) Certificate(name string) *tls.Certificate {
	if v, ok := c.certificates.Load(name); ok {
		return v.(*tls.Certificate)
	}
	return nil
}
