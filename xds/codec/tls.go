package codec

import (
	"bytes"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
)

// noCertificate is the hash of a certificate that nobody has. A validation context
// with nothing in it trusts everybody, in Envoy; this one trusts nobody.
var noCertificate = strings.Repeat("00", 32)

// encodeUpstreamTLS writes the transport socket of a cluster. ALPN is left out: Envoy
// and Sluice offer what their connection pool speaks.
func encodeUpstreamTLS(t *mesh.UpstreamTLS) (*corev3.TransportSocket, error) {
	if t.ServerName == "" {
		return nil, at("ServerName", "empty")
	}
	if len(t.RootsPEM) > 0 && t.SystemRoots {
		return nil, at("SystemRoots", "does not go with RootsPEM")
	}
	v := new(tlsv3.CertificateValidationContext)
	switch {
	case t.SystemRoots:
		v.SystemRootCerts = new(tlsv3.CertificateValidationContext_SystemRootCerts)
	case len(t.RootsPEM) > 0:
		v.TrustedCa = inline(t.RootsPEM)
	default:
		v.VerifyCertificateHash = []string{noCertificate}
	}
	names := t.SubjectAltNames
	if len(names) == 0 {
		names = []mesh.SubjectAltName{{DNS: t.ServerName}}
	}
	for _, n := range names {
		m := &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_DNS}
		suffix, wildcard := strings.CutPrefix(n.DNS, "*")
		switch {
		case (n.DNS == "") == (n.URI == ""):
			return nil, at("SubjectAltNames", "want one of DNS and URI")
		case n.URI != "":
			m.SanType = tlsv3.SubjectAltNameMatcher_URI
			m.Matcher = exactly(n.URI)
		case wildcard:
			m.Matcher = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: suffix}}
		default:
			m.Matcher = exactly(n.DNS)
		}
		v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, m)
	}
	packed, err := pack(&tlsv3.UpstreamTlsContext{
		Sni:              t.ServerName,
		CommonTlsContext: &tlsv3.CommonTlsContext{ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}},
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: nameTLS, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed}}, nil
}

func decodeUpstreamTLS(m *corev3.TransportSocket) (*mesh.UpstreamTLS, error) {
	c := new(tlsv3.UpstreamTlsContext)
	if err := unpack(m.GetTypedConfig(), c); err != nil {
		return nil, below("typed_config", err)
	}
	v := c.GetCommonTlsContext().GetValidationContext()
	t := &mesh.UpstreamTLS{
		ServerName:  c.GetSni(),
		RootsPEM:    bytes.Clone(v.GetTrustedCa().GetInlineBytes()),
		SystemRoots: v.GetSystemRootCerts() != nil,
	}
	for _, n := range v.GetMatchTypedSubjectAltNames() {
		switch {
		case n.GetSanType() == tlsv3.SubjectAltNameMatcher_URI:
			t.SubjectAltNames = append(t.SubjectAltNames, mesh.SubjectAltName{URI: n.GetMatcher().GetExact()})
		case n.GetMatcher().GetSuffix() != "":
			t.SubjectAltNames = append(t.SubjectAltNames, mesh.SubjectAltName{DNS: "*" + n.GetMatcher().GetSuffix()})
		default:
			t.SubjectAltNames = append(t.SubjectAltNames, mesh.SubjectAltName{DNS: n.GetMatcher().GetExact()})
		}
	}
	if len(t.SubjectAltNames) == 1 && t.SubjectAltNames[0].DNS == t.ServerName {
		t.SubjectAltNames = nil
	}
	return t, nil
}

// encodeClients writes which certificates of clients are taken.
func encodeClients(c *mesh.ClientValidation, into *tlsv3.DownstreamTlsContext) error {
	if c == nil {
		return nil
	}
	if len(c.RootsPEM) == 0 {
		return at("RootsPEM", "empty")
	}
	v := &tlsv3.CertificateValidationContext{TrustedCa: inline(c.RootsPEM)}
	if c.Optional {
		v.TrustChainVerification = tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED
	} else {
		into.RequireClientCertificate = wrapperspb.Bool(true)
	}
	into.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: v}
	return nil
}

func decodeClients(m *tlsv3.DownstreamTlsContext) *mesh.ClientValidation {
	v := m.GetCommonTlsContext().GetValidationContext()
	if v == nil {
		return nil
	}
	return &mesh.ClientValidation{
		RootsPEM: bytes.Clone(v.GetTrustedCa().GetInlineBytes()),
		Optional: !m.GetRequireClientCertificate().GetValue(),
	}
}
