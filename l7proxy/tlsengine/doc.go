// Package tlsengine is TLS without I/O: ciphertext in, plaintext out, and back. It is
// crypto/tls over a connection in memory.
//
// A Conn is owned by the event loop of its socket. Only the handshake, which
// waits for the peer and computes for long, runs on a goroutine of its own; it ends
// with the handshake, after HandshakeTimeout, or with Close. From then on the loop
// itself decrypts and encrypts: the memory connection answers "temporary error" when
// it is dry, which crypto/tls does not remember, so that the same Read can be tried
// again when more bytes came.
//
// Certificates holds the settings of the node's TLS listeners, from the store. It
// has one writer and lock-free readers. A certificate that cannot be parsed leaves
// the last good one in place; a listener without any usable certificate refuses.
// Private keys appear in no error and no log.
package tlsengine
