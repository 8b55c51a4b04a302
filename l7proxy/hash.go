package l7proxy

import (
	"bytes"
	"net/url"
	"strconv"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
)

var fieldSetCookie = []byte("set-cookie")

// balance returns what the cluster's balancer looks at. It is made once: a retry goes
// by the same hash.
func (x *exchange) balance() upstream.Request {
	if x.hashed {
		return x.hash
	}
	x.hashed = true
	x.hash = upstream.Request{Client: x.d.peer.Addr()}
	config, _ := x.cluster.Config()
	if config == nil {
		return x.hash
	}
	for i := range config.Policy.Hash {
		if h, ok := x.hashOf(&config.Policy.Hash[i]); ok {
			x.hash.Hash = upstream.JoinHash(x.hash.Hash, h)
			x.hash.Hashed = true
		}
	}
	return x.hash
}

// hashOf is the hash of one source, if the request has it.
func (x *exchange) hashOf(s *mesh.HashSource) (uint64, bool) {
	switch {
	case s.Header != "":
		if s.Header == "host" || s.Header == ":authority" {
			return upstream.HashText(x.head.Authority), len(x.head.Authority) > 0
		}
		v, ok := x.head.Get(s.Header)
		return upstream.HashText(v), ok
	case s.Query != "":
		v, ok := queryValue(x.head.Path, s.Query)
		return upstream.HashText(v), ok
	case s.SourceIP:
		return x.d.addressHash(), true
	case s.Cookie != nil:
		if v, ok := cookieValue(x.head.Fields, s.Cookie.Name); ok {
			return upstream.HashText(v), true
		}
		if s.Cookie.TTL == nil {
			return 0, false
		}
		value := bytes.Clone(x.requestID())
		x.cookie = setCookie(s.Cookie, value)
		return upstream.HashText(value), true
	}
	return 0, false
}

// addressHash is the hash of the client's address as text, as Envoy has it.
func (d *downConn) addressHash() uint64 {
	var buf [64]byte
	return upstream.HashText(d.peer.Addr().Unmap().AppendTo(buf[:0]))
}

// cookieValue finds a cookie of a request (RFC 6265 §5.4).
func cookieValue(fields []message.Field, name string) ([]byte, bool) {
	for i := range fields {
		if string(fields[i].Name) != "cookie" {
			continue
		}
		rest := fields[i].Value
		for len(rest) > 0 {
			pair := rest
			if j := bytes.IndexByte(rest, ';'); j >= 0 {
				pair, rest = rest[:j], rest[j+1:]
			} else {
				rest = nil
			}
			pair = bytes.TrimSpace(pair)
			if len(pair) > len(name) && pair[len(name)] == '=' && string(pair[:len(name)]) == name {
				v := pair[len(name)+1:]
				if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
					v = v[1 : len(v)-1]
				}
				return v, true
			}
		}
	}
	return nil, false
}

// setCookie is the value of Set-Cookie that gives a client a cookie (RFC 6265 §4.1).
func setCookie(c *mesh.HashCookie, value []byte) []byte {
	out := append([]byte(c.Name), '=')
	out = append(out, value...)
	if *c.TTL > 0 {
		out = append(out, "; Max-Age="...)
		out = strconv.AppendInt(out, int64(c.TTL.Seconds()), 10)
	}
	if c.Path != "" {
		out = append(out, "; Path="...)
		out = append(out, c.Path...)
	}
	return append(out, "; HttpOnly"...)
}

// queryValue finds a parameter of a path's query; the value is decoded if it must be.
func queryValue(path []byte, name string) ([]byte, bool) {
	i := bytes.IndexByte(path, '?')
	if i < 0 {
		return nil, false
	}
	rest := path[i+1:]
	for len(rest) > 0 {
		pair := rest
		if j := bytes.IndexByte(rest, '&'); j >= 0 {
			pair, rest = rest[:j], rest[j+1:]
		} else {
			rest = nil
		}
		key, value, _ := bytes.Cut(pair, []byte("="))
		if string(key) != name {
			continue
		}
		if bytes.ContainsAny(value, "%+") {
			if text, err := url.QueryUnescape(string(value)); err == nil {
				return []byte(text), true
			}
		}
		return value, true
	}
	return nil, false
}
