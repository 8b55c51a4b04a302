package route

import (
	"bytes"
	"strings"
)

// Classes of bytes in a request target.
const (
	bytePlain      = iota // kept as it is
	byteRefused           // controls, space, DEL, "#", and "\", which some servers read as "/"
	bytePercent           // starts an escape
	byteHigh              // outside ASCII: RFC 3987 §3.1 writes it as an escape
	byteUnreserved        // RFC 3986 §2.3: its escape means the same
)

var byteClass = func() (c [256]uint8) {
	for i := range c {
		switch b := byte(i); {
		case b <= ' ' || b == 0x7f || b == '#' || b == '\\':
			c[i] = byteRefused
		case b == '%':
			c[i] = bytePercent
		case b >= 0x80:
			c[i] = byteHigh
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', strings.IndexByte("-._~", b) >= 0:
			c[i] = byteUnreserved
		}
	}
	return c
}()

// NormalizePath brings a request's path (with its query, which it only checks)
// into the one form that rules are matched with and that must be sent on, so that
// the backend resolves what was matched (RFC 3986 §6.2.2): escapes of unreserved
// characters are decoded, other escapes get upper-case digits, bytes outside ASCII
// are escaped, and dot segments are resolved. Empty segments stay, and an escaped
// slash stays escaped: both can be part of a name.
//
// It returns path itself when there was nothing to change, else dst with the
// result appended; dst must not overlap path. ok is false for what a backend could
// read differently, which wants 400: no leading slash, controls, spaces, "#", "\",
// broken escapes, %00, and dot segments that appear once %2F, %5C or ";parameters"
// are taken as some servers take them. "*" and the empty path of CONNECT pass.
func NormalizePath(dst, path []byte) (out []byte, ok bool) {
	if len(path) == 0 || len(path) == 1 && path[0] == '*' {
		return path, true
	}
	if path[0] != '/' {
		return nil, false
	}
	end, clean := len(path), true
scan:
	for i, b := range path {
		switch byteClass[b] {
		case bytePlain:
			if b == '?' {
				end = i
				break scan
			}
			if b == '/' && i+1 < len(path) && path[i+1] == '.' {
				clean = false
			}
		case byteRefused:
			return nil, false
		case bytePercent, byteHigh:
			clean = false
		}
	}
	for _, b := range path[end:] {
		if b != '\\' && byteClass[b] == byteRefused {
			return nil, false
		}
	}
	if clean {
		return path, true
	}
	start := len(dst)
	if dst, ok = unescapePath(dst, path[:end]); !ok {
		return nil, false
	}
	n, ok := resolveDots(dst[start:])
	if !ok {
		return nil, false
	}
	if n == end && bytes.Equal(dst[start:start+n], path[:end]) {
		return path, true
	}
	return append(dst[:start+n], path[end:]...), true
}

const upperHex = "0123456789ABCDEF"

func unescapePath(dst, path []byte) (out []byte, ok bool) {
	for i := 0; i < len(path); i++ {
		b := path[i]
		switch byteClass[b] {
		case bytePercent:
			if i+2 >= len(path) {
				return nil, false
			}
			hi, lo := unhex(path[i+1]), unhex(path[i+2])
			if hi > 15 || lo > 15 {
				return nil, false
			}
			i += 2
			b = hi<<4 | lo
			if b == 0 {
				return nil, false
			}
			if byteClass[b] == byteUnreserved {
				dst = append(dst, b)
			} else {
				dst = append(dst, '%', upperHex[b>>4], upperHex[b&15])
			}
		case byteHigh:
			dst = append(dst, '%', upperHex[b>>4], upperHex[b&15])
		default:
			dst = append(dst, b)
		}
	}
	return dst, true
}

// resolveDots removes the dot segments of p in place (RFC 3986 §5.2.4) and returns
// the length that is left.
func resolveDots(p []byte) (n int, ok bool) {
	for r := 0; r < len(p); {
		// p[r] is a slash; the segment lies behind it.
		next := bytes.IndexByte(p[r+1:], '/')
		last := next < 0
		if last {
			next = len(p)
		} else {
			next += r + 1
		}
		segment := p[r+1 : next]
		switch {
		case len(segment) == 1 && segment[0] == '.':
			if last {
				p[n] = '/'
				n++
			}
		case len(segment) == 2 && segment[0] == '.' && segment[1] == '.':
			n = max(bytes.LastIndexByte(p[:n], '/'), 0)
			if last {
				p[n] = '/'
				n++
			}
		case hidesDots(segment):
			return 0, false
		default:
			n += copy(p[n:], p[r:next])
		}
		r = next
	}
	return n, true
}

// hidesDots reports whether a server that decodes %2F or %5C, or drops
// ";parameters", before it resolves dots would find a dot segment in this one.
func hidesDots(segment []byte) bool {
	for {
		piece, rest := segment, []byte(nil)
		for i := 0; i+2 < len(segment); i++ {
			if segment[i] == '%' && (segment[i+1] == '2' && segment[i+2] == 'F' || segment[i+1] == '5' && segment[i+2] == 'C') {
				piece, rest = segment[:i], segment[i+3:]
				break
			}
		}
		whole := len(piece) == len(segment) // what is a dot segment by itself was resolved
		if i := bytes.IndexByte(piece, ';'); i >= 0 {
			piece, whole = piece[:i], false
		}
		if !whole && (string(piece) == "." || string(piece) == "..") {
			return true
		}
		if rest == nil {
			return false
		}
		if string(rest) == "." || string(rest) == ".." {
			return true
		}
		segment = rest
	}
}

func unhex(b byte) byte {
	switch {
	case '0' <= b && b <= '9':
		return b - '0'
	case 'a' <= b && b <= 'f':
		return b - 'a' + 10
	case 'A' <= b && b <= 'F':
		return b - 'A' + 10
	}
	return 255
}

// Hostname returns the host of an authority as virtual hosts name it: lower case,
// without port and final dot; an IPv6 address keeps its brackets. host is a slice of
// authority if that is already so, else of buf, which is returned as it was grown.
// ok is false for what no host can be: user information, separators of a URL,
// controls, a port that is not digits.
func Hostname(buf, authority []byte) (host, grown []byte, ok bool) {
	host = authority
	colon := -1
	if len(host) > 0 && host[0] == '[' {
		end := bytes.IndexByte(host, ']')
		if end < 0 {
			return nil, buf, false
		}
		if end+1 < len(host) {
			if colon = end + 1; host[colon] != ':' {
				return nil, buf, false
			}
		}
	} else {
		colon = bytes.IndexByte(host, ':')
	}
	if colon >= 0 {
		for _, b := range host[colon+1:] {
			if b < '0' || b > '9' {
				return nil, buf, false
			}
		}
		host = host[:colon]
	}
	upper := false
	for _, b := range host {
		switch {
		case 'A' <= b && b <= 'Z':
			upper = true
		case b <= ' ' || b == 0x7f || strings.IndexByte("/\\?#@,;\"<>%", b) >= 0:
			return nil, buf, false
		}
	}
	if n := len(host); n > 1 && host[n-1] == '.' {
		host = host[:n-1]
	}
	if !upper {
		return host, buf, true
	}
	buf = append(buf[:0], host...)
	for i, b := range buf {
		if 'A' <= b && b <= 'Z' {
			buf[i] = b + 'a' - 'A'
		}
	}
	return buf, buf, true
}
