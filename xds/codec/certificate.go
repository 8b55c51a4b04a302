package codec

import (
	"bytes"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/sluice-mesh/sluice/mesh"
)

func encodeCertificate(c *mesh.Certificate) (*tlsv3.Secret, error) {
	switch {
	case c.Name == "":
		return nil, at("Name", "empty")
	case len(c.ChainPEM) == 0:
		return nil, at("ChainPEM", "empty")
	case len(c.KeyPEM) == 0:
		return nil, at("KeyPEM", "empty")
	}
	return &tlsv3.Secret{
		Name: c.Name,
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(c.ChainPEM),
			PrivateKey:       inline(c.KeyPEM),
		}},
	}, nil
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func decodeCertificate(m *tlsv3.Secret) (*mesh.Certificate, error) {
	tls := m.GetTlsCertificate()
	return &mesh.Certificate{
		Name:     m.GetName(),
		ChainPEM: bytes.Clone(tls.GetCertificateChain().GetInlineBytes()),
		KeyPEM:   bytes.Clone(tls.GetPrivateKey().GetInlineBytes()),
	}, nil
}
