package http2

import (
	"bytes"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

func field(name, value []byte) message.Field { return message.Field{Name: name, Value: value} }

// pseudo are the pseudo-header fields of a head (RFC 9113 §8.3), nil when absent.
type pseudo struct {
	method, scheme, authority, path, protocol, status []byte
}

// set notes one; false when it is unknown or there already.
func (p *pseudo) set(name, value []byte) bool {
	var at *[]byte
	switch string(name) {
	case ":method":
		at = &p.method
	case ":scheme":
		at = &p.scheme
	case ":authority":
		at = &p.authority
	case ":path":
		at = &p.path
	case ":protocol":
		at = &p.protocol
	case ":status":
		at = &p.status
	default:
		return false
	}
	if *at != nil {
		return false
	}
	*at = value // never nil: a slice of the arena
	return true
}

// validValue is RFC 9113 §8.2.1 and the stricter RFC 9110 §5.5, so that the field can go on in HTTP/1.
func validValue(b []byte) bool {
	if n := len(b); n > 0 && (b[0] == ' ' || b[0] == '\t' || b[n-1] == ' ' || b[n-1] == '\t') {
		return false
	}
	return message.ValidValue(b)
}

// connectionSpecific reports fields that RFC 9113 §8.2.2 forbids.
func connectionSpecific(name []byte) bool {
	switch string(name) {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

// parse checks the block's fields and sorts them into p and c.head. false means malformed
// (RFC 9113 §8.1.1).
func (c *Conn) parse(p *pseudo) bool {
	h := &c.head
	h.Reset()
	h.Proto = message.HTTP2
	regular := false
	cookies := 0
	lengths := 0
	for i := range c.fields {
		f := &c.fields[i]
		if len(f.Name) > 0 && f.Name[0] == ':' {
			if regular || !message.ValidValue(f.Value) || !p.set(f.Name, f.Value) {
				return false
			}
			continue
		}
		regular = true
		if !message.ValidName(f.Name) || !validValue(f.Value) {
			return false
		}
		switch string(f.Name) {
		case "host":
			if !c.server {
				break
			}
			// A second one differs or repeats; neither is a request that everybody reads alike.
			if h.Authority != nil {
				return false
			}
			h.Authority = f.Value
			continue
		case "content-length":
			n, ok := message.ParseNumber(f.Value)
			if lengths++; !ok || lengths > 1 && n != h.ContentLength {
				return false
			}
			if lengths > 1 {
				continue
			}
			h.ContentLength = n
		case "te":
			if !message.Fold(f.Value, "trailers") {
				return false
			}
		case "cookie":
			cookies++
		case "expect":
			if !c.server {
				break
			}
			if !message.Fold(f.Value, "100-continue") {
				return false
			}
			h.Expect100 = true
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return false
		}
		h.Fields = append(h.Fields, *f)
	}
	if cookies > 1 {
		c.joinCookies()
	}
	return true
}

// joinCookies undoes RFC 9113 §8.2.3: other protocols want one field.
func (c *Conn) joinCookies() {
	c.cookie = c.cookie[:0]
	kept := c.head.Fields[:0]
	at := -1
	for _, f := range c.head.Fields {
		if string(f.Name) != "cookie" {
			kept = append(kept, f)
			continue
		}
		if at < 0 {
			at = len(kept)
			kept = append(kept, f)
		} else {
			c.cookie = append(c.cookie, "; "...)
		}
		c.cookie = append(c.cookie, f.Value...)
	}
	kept[at].Value = c.cookie
	c.head.Fields = kept
}

// parseRequest makes c.head of the block (RFC 9113 §8.3.1, RFC 8441 §4).
func (c *Conn) parseRequest() bool {
	var p pseudo
	if !c.parse(&p) || p.status != nil || !message.ValidToken(p.method) {
		return false
	}
	h := &c.head
	host := h.Authority
	h.Method, h.Authority = p.method, p.authority
	if len(p.authority) > 0 {
		// Both may be there when they say the same.
		if ok, _ := message.ValidAuthority(p.authority); !ok || host != nil && !bytes.EqualFold(host, p.authority) {
			return false
		}
	} else if host != nil {
		if ok, _ := message.ValidAuthority(host); !ok && len(host) > 0 {
			return false
		}
		h.Authority = host
	}
	connect := string(p.method) == "CONNECT"
	if p.protocol != nil {
		if !connect || !c.cfg.ExtendedConnect || !message.ValidToken(p.protocol) || len(p.authority) == 0 {
			return false
		}
		h.Upgrade = p.protocol
	} else if connect {
		ok, port := message.ValidAuthority(p.authority)
		// Bytes of a tunnel have no length (RFC 9110 §9.3.6).
		return ok && port && p.scheme == nil && p.path == nil && h.ContentLength <= 0
	}
	if s := string(p.scheme); s != "http" && s != "https" {
		return false
	}
	if len(p.path) == 0 || !message.ValidTarget(p.path) ||
		p.path[0] != '/' && (string(p.path) != "*" || string(p.method) != "OPTIONS") {
		return false
	}
	h.Scheme, h.Path = p.scheme, p.path
	return true
}

// parseResponse makes c.head of the block (RFC 9113 §8.3.2).
func (c *Conn) parseResponse() bool {
	var p pseudo
	if !c.parse(&p) || p.method != nil || p.scheme != nil || p.authority != nil || p.path != nil || p.protocol != nil {
		return false
	}
	n, ok := message.ParseNumber(p.status)
	// RFC 9113 §8.6: HTTP/2 has no 101.
	if !ok || len(p.status) != 3 || n < 100 || n == 101 {
		return false
	}
	c.head.Status = int(n)
	return true
}

// parseTrailers makes c.trailers of the block (RFC 9113 §8.1).
func (c *Conn) parseTrailers() bool {
	c.trailers = c.trailers[:0]
	for _, f := range c.fields {
		if !message.ValidName(f.Name) || !validValue(f.Value) || connectionSpecific(f.Name) {
			return false
		}
		switch string(f.Name) {
		case "content-length", "host", "trailer":
			return false
		case "te", "expect":
			continue
		}
		c.trailers = append(c.trailers, f)
	}
	return true
}
