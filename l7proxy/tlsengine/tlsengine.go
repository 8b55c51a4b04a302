// Package tlsengine is TLS without I/O: ciphertext in, plaintext out, and back.
package tlsengine

import (
	"crypto/tls"
	"errors"

	"github.com/sluice-mesh/sluice/mesh"
)

// ErrDry means that more ciphertext is needed.
var ErrDry = errors.New("more ciphertext needed")

// Certificates are the TLS settings of the node's listeners.
type Certificates struct{}

// NewCertificates returns a table that knows nothing.
func NewCertificates() *Certificates { return &Certificates{} }

// Apply takes over the certificates and listeners of a delta and ignores everything
// else. Only one goroutine may call it at a time; readers may be at work meanwhile.
func (c *Certificates) Apply(d mesh.Delta) {}

// Config returns the chain of a listener that serves a server name, and the
// settings for its handshake. cfg is nil if the chain is plain text. ok is false
// if no chain serves the name, or its certificate is not known yet.
func (c *Certificates) Config(listener, sni string) (cfg *tls.Config, chain *mesh.Chain, ok bool) {
	return nil, nil, false
}

// Conn is the server's side of a TLS connection.
type Conn struct{}

// Server starts a handshake on a goroutine of its own. wake is called from it when
// there is output to send or the handshake ended.
func Server(cfg *tls.Config, wake func()) *Conn { return &Conn{} }

// Feed takes bytes from the socket, and copies them.
func (c *Conn) Feed(cipher []byte) {}

// FeedEOF says that the socket has no more bytes.
func (c *Conn) FeedEOF() {}

// HandshakeDone reports whether the handshake ended, and how.
func (c *Conn) HandshakeDone() (done bool, err error) { return false, nil }

// ALPN returns the protocol agreed on, empty if none. Valid after the handshake.
func (c *Conn) ALPN() string { return "" }

// ServerName returns the client's SNI. Valid after the handshake.
func (c *Conn) ServerName() string { return "" }

// Read returns plaintext; ErrDry when more ciphertext is needed, io.EOF after the
// peer's close_notify.
func (c *Conn) Read(p []byte) (n int, err error) { return 0, ErrDry }

// Write encrypts p into Out.
func (c *Conn) Write(p []byte) (n int, err error) { return 0, nil }

// Out returns the bytes to send. They stay valid until the next call of Sent.
func (c *Conn) Out() []byte { return nil }

// Sent says how many bytes of Out were sent.
func (c *Conn) Sent(n int) {}

// CloseNotify queues the close_notify alert into Out. Nothing can be written after it.
func (c *Conn) CloseNotify() {}

// Close frees the connection and ends a handshake that is under way.
func (c *Conn) Close() {}
