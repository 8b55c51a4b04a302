// Package detect tells from the first bytes of a connection which protocol its client
// speaks, and reads from a TLS ClientHello what routing needs.
//
// It keeps no state and does no I/O: the caller collects bytes and asks again when they
// were too few. It never fails open: what it cannot name is Other.
package detect

import "bytes"

// Kind is a protocol.
type Kind uint8

// The protocols.
const (
	Other Kind = iota
	HTTP1      // a request of HTTP/1.0 or 1.1
	HTTP2      // the preface of HTTP/2 with prior knowledge
	TLS        // a ClientHello, see ParseClientHello
)

// String returns a word for logs.
func (k Kind) String() string {
	switch k {
	case HTTP1:
		return "http1"
	case HTTP2:
		return "http2"
	case TLS:
		return "tls"
	}
	return "other"
}

const (
	// MaxBytes is how many first bytes Detect ever wants; with so many it decides.
	MaxBytes = 4 << 10
	// maxMethod is longer than any registered method (UPDATEREDIRECTREF, RFC 4437).
	maxMethod = 32
	// preface is the first line of RFC 9113 §3.4, which no HTTP/1 server may serve; the
	// rest of it is the engine's to check.
	preface = "PRI * HTTP/2.0\r\n"
)

// Detect looks at the first bytes that a client sent. decided is false while more bytes
// could change the answer; then the answer is Other.
//
// Line protocols of other kinds (Redis, SMTP, memcached) begin like HTTP/1, so that a
// request line counts only when it ends as one. A longer one than MaxBytes counts when it
// begins as one: its method is known and its target has a known form.
func Detect(first []byte) (k Kind, decided bool) {
	if len(first) == 0 {
		return Other, false
	}
	if first[0] == recordHandshake {
		return detectTLS(first)
	}
	if n := min(len(first), len(preface)); string(first[:n]) == preface[:n] {
		if n == len(preface) {
			return HTTP2, true
		}
		return Other, false
	}
	// RFC 9112 §2.2: an empty line may come before a request.
	line := bytes.TrimPrefix(first, []byte("\r\n"))
	if len(line) == 0 || len(first) == 1 && first[0] == '\r' {
		return Other, false
	}
	space := bytes.IndexByte(line[:min(len(line), maxMethod+1)], ' ')
	method := line
	if space >= 0 {
		method = line[:space]
	}
	if len(method) == 0 || len(method) > maxMethod {
		return Other, true
	}
	for _, c := range method {
		// Methods of other cases exist in theory; those of other line protocols exist.
		if (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return Other, true
		}
	}
	if space < 0 {
		return Other, false
	}
	rest := line[space+1:]
	end := bytes.IndexByte(rest, '\n')
	if end >= 0 {
		rest = bytes.TrimSuffix(rest[:end], []byte{'\r'})
	}
	if !beginsTarget(method, rest) {
		return Other, true
	}
	if end >= 0 {
		i := bytes.LastIndexByte(rest, ' ')
		if version := rest[i+1:]; i > 0 && len(version) == 8 && string(version[:5]) == "HTTP/" {
			return HTTP1, true
		}
		return Other, true
	}
	if len(first) < MaxBytes {
		return Other, false
	}
	if known(method) {
		return HTTP1, true
	}
	return Other, true
}

// Guess names what an undecided beginning is taken for when no more bytes come: HTTP1 once
// a registered method and the first octet of a target are there, HTTP2 once more of the
// preface is there than any method has. Nobody else is known to begin so and then wait,
// and whoever does must not get around routes by being slow. All else is Other.
func Guess(first []byte) Kind {
	if _, decided := Detect(first); decided {
		k, _ := Detect(first)
		return k
	}
	const enough = len("PRI *")
	if len(first) >= enough && bytes.HasPrefix([]byte(preface), first) {
		return HTTP2
	}
	line := bytes.TrimPrefix(first, []byte("\r\n"))
	method, target, ok := bytes.Cut(line, []byte{' '})
	if ok && known(method) && len(target) > 0 {
		return HTTP1
	}
	return Other
}

// beginsTarget reports whether rest, what follows a method as far as it is known, begins like a
// request target of RFC 9112 §3.2.
func beginsTarget(method, rest []byte) bool {
	for _, c := range rest {
		if c < ' ' && c != '\r' || c >= 0x7f {
			return false
		}
	}
	if len(rest) == 0 || rest[0] == '/' || rest[0] == '*' || string(method) == "CONNECT" {
		return true
	}
	for _, scheme := range []string{"http://", "https://"} {
		n := min(len(rest), len(scheme))
		if bytes.EqualFold(rest[:n], []byte(scheme[:n])) {
			return true
		}
	}
	return false
}

func known(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
		return true
	}
	return false
}

// detectTLS wants a record header (RFC 8446 §5.1) and the type of its first message.
func detectTLS(first []byte) (Kind, bool) {
	switch {
	case len(first) > 1 && first[1] != 3,
		len(first) > 2 && first[2] > 4,
		len(first) > 4 && (int(first[3])<<8|int(first[4]) < 1 || int(first[3])<<8|int(first[4]) > maxRecord),
		len(first) > 5 && first[5] != handshakeClientHello:
		return Other, true
	case len(first) < 6:
		return Other, false
	}
	return TLS, true
}
