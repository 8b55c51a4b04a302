package detect

import (
	"errors"
	"strings"
)

const (
	recordHandshake      = 22
	handshakeClientHello = 1
	maxRecord            = 1 << 14 // RFC 8446 §5.1
	// MaxClientHello bounds the message. Post-quantum key shares take about 1.2 KiB each,
	// encrypted inner hellos some hundred bytes; crypto/tls refuses more than 64 KiB.
	MaxClientHello = 16 << 10
	// maxProtocols is how many ALPN names are read.
	maxProtocols = 32
)

// ClientHello is what routing needs from a TLS ClientHello.
type ClientHello struct {
	ServerName string   // lower case; empty when absent
	Protocols  []string // ALPN, in the client's order
}

// ErrClientHello says that the bytes are no well-formed ClientHello within bounds.
var ErrClientHello = errors.New("malformed TLS client hello")

// ParseClientHello reads the first flight of a TLS client (RFC 8446 §4.1.2, RFC 6066 §3,
// RFC 7301 §3.1), which may be spread over several records. done is false when more bytes
// are needed; it is never false with more than MaxClientHello bytes and their record headers.
// An error stands for done.
func ParseClientHello(first []byte) (h ClientHello, done bool, err error) {
	message, done, err := clientHelloMessage(first)
	if err != nil || !done {
		return ClientHello{}, err != nil, err
	}
	if h, ok := parseClientHello(message); ok {
		return h, true, nil
	}
	return ClientHello{}, true, ErrClientHello
}

// clientHelloMessage takes the message's body out of its records.
func clientHelloMessage(b []byte) (message []byte, done bool, err error) {
	var joined []byte
	for records := 0; ; records++ {
		if len(b) < 5 {
			return nil, false, nil
		}
		size := int(b[3])<<8 | int(b[4])
		// Nobody cuts a ClientHello into many pieces but to hide from readers like this one.
		if b[0] != recordHandshake || b[1] != 3 || size == 0 || size > maxRecord || records == 16 {
			return nil, false, ErrClientHello
		}
		b = b[5:]
		piece := b[:min(size, len(b))]
		if joined == nil {
			joined = piece[:len(piece):len(piece)]
		} else {
			joined = append(joined, piece...)
		}
		if len(joined) > 0 && joined[0] != handshakeClientHello {
			return nil, false, ErrClientHello
		}
		if len(joined) >= 4 {
			need := 4 + (int(joined[1])<<16 | int(joined[2])<<8 | int(joined[3]))
			if need > MaxClientHello {
				return nil, false, ErrClientHello
			}
			if len(joined) >= need {
				return joined[4:need], true, nil
			}
		}
		if len(piece) < size {
			return nil, false, nil
		}
		b = b[size:]
	}
}

// reader takes vectors of TLS's presentation language off its front.
type reader struct{ b []byte }

// vector reads a length of lengthBytes and so many bytes.
func (r *reader) vector(lengthBytes int) (v []byte, ok bool) {
	if len(r.b) < lengthBytes {
		return nil, false
	}
	n := 0
	for _, c := range r.b[:lengthBytes] {
		n = n<<8 | int(c)
	}
	if len(r.b) < lengthBytes+n {
		return nil, false
	}
	v, r.b = r.b[lengthBytes:lengthBytes+n], r.b[lengthBytes+n:]
	return v, true
}

// uint16 reads a number.
func (r *reader) uint16() (n int, ok bool) {
	if len(r.b) < 2 {
		return 0, false
	}
	n, r.b = int(r.b[0])<<8|int(r.b[1]), r.b[2:]
	return n, true
}

func parseClientHello(b []byte) (h ClientHello, ok bool) {
	if len(b) < 34 {
		return h, false
	}
	r := &reader{b[34:]} // legacy_version and random
	session, ok := r.vector(1)
	if !ok || len(session) > 32 {
		return h, false
	}
	suites, ok := r.vector(2)
	if !ok || len(suites) == 0 || len(suites)%2 != 0 {
		return h, false
	}
	if compression, ok := r.vector(1); !ok || len(compression) == 0 {
		return h, false
	}
	if len(r.b) == 0 {
		return h, true // TLS 1.2 without extensions
	}
	extensions, ok := r.vector(2)
	if !ok || len(r.b) != 0 {
		return h, false
	}
	var haveName, haveProtocols bool
	for r := (&reader{extensions}); len(r.b) > 0; {
		kind, ok := r.uint16()
		if !ok {
			return h, false
		}
		body, ok := r.vector(2)
		if !ok {
			return h, false
		}
		switch kind {
		case 0: // server_name
			if haveName {
				return h, false
			}
			haveName = true
			if h.ServerName, ok = serverName(body); !ok {
				return h, false
			}
		case 16: // application_layer_protocol_negotiation
			if haveProtocols {
				return h, false
			}
			haveProtocols = true
			if h.Protocols, ok = protocols(body); !ok {
				return h, false
			}
		}
	}
	return h, true
}

// serverName reads the one host_name that RFC 6066 §3 allows.
func serverName(body []byte) (string, bool) {
	r := &reader{body}
	list, ok := r.vector(2)
	if !ok || len(r.b) != 0 || len(list) < 1 || list[0] != 0 {
		return "", false
	}
	r = &reader{list[1:]}
	name, ok := r.vector(2)
	if !ok || len(r.b) != 0 || len(name) == 0 || len(name) > 253 || name[len(name)-1] == '.' {
		return "", false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return "", false
		}
	}
	return strings.ToLower(string(name)), true
}

func protocols(body []byte) ([]string, bool) {
	r := &reader{body}
	list, ok := r.vector(2)
	if !ok || len(r.b) != 0 || len(list) == 0 {
		return nil, false
	}
	var names []string
	for r := (&reader{list}); len(r.b) > 0; {
		name, ok := r.vector(1)
		if !ok || len(name) == 0 || len(names) == maxProtocols {
			return nil, false
		}
		names = append(names, string(name))
	}
	return names, true
}
