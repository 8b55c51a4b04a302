// Package detect tells from the first bytes of a connection which protocol its client speaks.
package detect

// Kind is a protocol.
type Kind uint8

// The protocols.
const (
	Other Kind = iota
	HTTP1
	HTTP2
	TLS
)

// Detect looks at the first bytes that a client sent. decided is false while more bytes could change the answer.
func Detect(first []byte) (k Kind, decided bool) { return Other, false }

// ClientHello is what routing needs from a TLS ClientHello.
type ClientHello struct {
	ServerName string   // lower case, without a final dot; empty when absent
	Protocols  []string // ALPN, in the client's order
}

// ParseClientHello reads the first flight of a TLS client. done is false when more bytes are needed.
func ParseClientHello(first []byte) (h ClientHello, done bool, err error) { return ClientHello{}, false, nil }
