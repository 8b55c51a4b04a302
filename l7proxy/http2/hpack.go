package http2

import "strconv"

// The encoder uses RFC 7541's static table only. A dynamic table would save bytes on the
// wire and cost a lookup and a copy per field here, and memory per connection at both
// ends; fields of this proxy travel within a node or a cluster.

var protocolName = []byte(":protocol")

// appendInt writes an integer with an n-bit prefix (RFC 7541 §5.1); pattern are the bits before it.
func appendInt(dst []byte, pattern byte, n uint, v uint64) []byte {
	limit := uint64(1)<<n - 1
	if v < limit {
		return append(dst, pattern|byte(v))
	}
	dst = append(dst, pattern|byte(limit))
	for v -= limit; v >= 0x80; v >>= 7 {
		dst = append(dst, byte(v)|0x80)
	}
	return append(dst, byte(v))
}

// literal writes a field that is not to be indexed, with a name of the static table
// (RFC 7541 §6.2.2). Secrets are marked, so that no later hop indexes them (§7.1.3).
func (c *Conn) literal(index uint64, value []byte) {
	pattern := byte(0)
	switch index {
	case 23, 32, 49, 55: // authorization, cookie, proxy-authorization, set-cookie
		pattern = 0x10
	}
	c.out = appendInt(c.out, pattern, 4, index)
	c.out = appendInt(c.out, 0, 7, uint64(len(value)))
	c.out = append(c.out, value...)
}

// named writes a field whose name is not in the static table.
func (c *Conn) named(name, value []byte) {
	c.out = append(c.out, 0)
	c.out = appendInt(c.out, 0, 7, uint64(len(name)))
	c.out = append(c.out, name...)
	c.out = appendInt(c.out, 0, 7, uint64(len(value)))
	c.out = append(c.out, value...)
}

// appendStatus writes :status.
func appendStatus(dst []byte, status int) []byte {
	switch status {
	case 200:
		return append(dst, 0x80|8)
	case 204:
		return append(dst, 0x80|9)
	case 206:
		return append(dst, 0x80|10)
	case 304:
		return append(dst, 0x80|11)
	case 400:
		return append(dst, 0x80|12)
	case 404:
		return append(dst, 0x80|13)
	case 500:
		return append(dst, 0x80|14)
	}
	dst = append(dst, 0x08, 3)
	return strconv.AppendInt(dst, int64(status), 10)
}

// staticName returns the index of a name in RFC 7541's appendix A, zero when it is not there.
func staticName(name []byte) uint64 {
	switch string(name) {
	case "accept-charset":
		return 15
	case "accept-encoding":
		return 16
	case "accept-language":
		return 17
	case "accept-ranges":
		return 18
	case "accept":
		return 19
	case "access-control-allow-origin":
		return 20
	case "age":
		return 21
	case "allow":
		return 22
	case "authorization":
		return 23
	case "cache-control":
		return 24
	case "content-disposition":
		return 25
	case "content-encoding":
		return 26
	case "content-language":
		return 27
	case "content-location":
		return 29
	case "content-range":
		return 30
	case "content-type":
		return 31
	case "cookie":
		return 32
	case "date":
		return 33
	case "etag":
		return 34
	case "expect":
		return 35
	case "expires":
		return 36
	case "from":
		return 37
	case "if-match":
		return 39
	case "if-modified-since":
		return 40
	case "if-none-match":
		return 41
	case "if-range":
		return 42
	case "if-unmodified-since":
		return 43
	case "last-modified":
		return 44
	case "link":
		return 45
	case "location":
		return 46
	case "max-forwards":
		return 47
	case "proxy-authenticate":
		return 48
	case "proxy-authorization":
		return 49
	case "range":
		return 50
	case "referer":
		return 51
	case "refresh":
		return 52
	case "retry-after":
		return 53
	case "server":
		return 54
	case "set-cookie":
		return 55
	case "strict-transport-security":
		return 56
	case "user-agent":
		return 58
	case "vary":
		return 59
	case "via":
		return 60
	case "www-authenticate":
		return 61
	}
	return 0
}
