package message

import "encoding/binary"

// LowerToken is a table that maps the octets of a token (RFC 9110 §5.6.2) to their
// lower case and all others to zero. It is a function, so that nobody changes the table.
func LowerToken() [256]byte { return lower }

var lower = func() (t [256]byte) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		t[c] = c
	}
	for c := byte('A'); c <= 'Z'; c++ {
		t[c] = c + 'a' - 'A'
	}
	return t
}()

// Octet classes.
const (
	inValue  = 1 << iota // a field value: HTAB, SP, VCHAR, obs-text (RFC 9110 §5.5)
	inTarget             // a request target: VCHAR without the "#" of a fragment
	inHost               // reg-name: unreserved, sub-delims and "%" (RFC 3986 §3.2.2)
	inIPv6               // between the brackets of an IP-literal
)

var class = func() (t [256]byte) {
	for c := range 256 {
		if c >= ' ' && c != 0x7f || c == '\t' {
			t[c] |= inValue
		}
		if c > ' ' && c < 0x7f && c != '#' {
			t[c] |= inTarget
		}
	}
	for c := byte('0'); c <= '9'; c++ {
		t[c] |= inHost | inIPv6
	}
	for c := byte('a'); c <= 'z'; c++ {
		t[c] |= inHost
		t[c-'a'+'A'] |= inHost
	}
	for c := byte('a'); c <= 'f'; c++ {
		t[c] |= inIPv6
		t[c-'a'+'A'] |= inIPv6
	}
	for _, c := range []byte("-._~!$&'()*+,;=%") {
		t[c] |= inHost
	}
	t[':'] |= inIPv6
	t['.'] |= inIPv6
	return t
}()

func all(b []byte, mask byte) bool {
	for _, c := range b {
		if class[c]&mask == 0 {
			return false
		}
	}
	return true
}

const (
	ones = 0x0101010101010101
	tops = 0x8080808080808080
)

// suspect reports whether one of the eight octets is below n (n <= 0x80) or DEL.
// It never overlooks one.
func suspect(x uint64, n uint64) bool {
	d := x ^ 0x7f*ones
	return ((x-n*ones)&^x|(d-ones)&^d)&tops != 0
}

// ValidValue reports whether b has the octets of a field value only.
func ValidValue(b []byte) bool {
	if len(b) < 8 {
		return all(b, inValue)
	}
	for i := 0; i+8 <= len(b); i += 8 {
		// HTAB is suspect too, and rare.
		if suspect(binary.LittleEndian.Uint64(b[i:]), ' ') && !all(b[i:i+8], inValue) {
			return false
		}
	}
	last := b[len(b)-8:]
	return !suspect(binary.LittleEndian.Uint64(last), ' ') || all(last, inValue)
}

// ValidTarget reports whether b has the octets of a request target only: visible ASCII
// without the "#" of a fragment. Its form is not looked at.
func ValidTarget(b []byte) bool {
	if len(b) < 8 {
		return all(b, inTarget)
	}
	word := func(x uint64) bool {
		h := x ^ '#'*ones
		return !suspect(x, '!') && (x|(h-ones)&^h)&tops == 0
	}
	for i := 0; i+8 <= len(b); i += 8 {
		if !word(binary.LittleEndian.Uint64(b[i:])) && !all(b[i:i+8], inTarget) {
			return false
		}
	}
	last := b[len(b)-8:]
	return word(binary.LittleEndian.Uint64(last)) || all(last, inTarget)
}

// ValidToken reports whether b is one or more octets of a token.
func ValidToken(b []byte) bool {
	for _, c := range b {
		if lower[c] == 0 {
			return false
		}
	}
	return len(b) > 0
}

// ValidName reports whether b is a field name in lower case.
func ValidName(b []byte) bool {
	for _, c := range b {
		if lower[c] != c || c == 0 {
			return false
		}
	}
	return len(b) > 0
}

// Fold reports whether b is s, a lower-case string, in any case.
func Fold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

// Trim takes optional white space (RFC 9110 §5.6.3) off both ends.
func Trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// ValidAuthority reports whether b is a host with an optional port, without user
// information (RFC 9110 §7.2, RFC 3986 §3.2), and whether it has a port.
func ValidAuthority(b []byte) (ok, hasPort bool) {
	host, port := b, []byte(nil)
	if len(b) > 0 && b[0] == '[' {
		end := 1
		for end < len(b) && class[b[end]]&inIPv6 != 0 {
			end++
		}
		if end < 3 || end == len(b) || b[end] != ']' {
			return false, false
		}
		if rest := b[end+1:]; len(rest) > 0 {
			if rest[0] != ':' {
				return false, false
			}
			port, hasPort = rest[1:], true
		}
		return !hasPort || portNumber(port), hasPort
	}
	for i, c := range b {
		if c == ':' {
			host, port, hasPort = b[:i], b[i+1:], true
			break
		}
	}
	if len(host) == 0 || !all(host, inHost) || hasPort && !portNumber(port) {
		return false, false
	}
	for i, c := range host {
		if c == '%' && (i+2 >= len(host) || Hex(host[i+1]) < 0 || Hex(host[i+2]) < 0) {
			return false, false
		}
	}
	return true, hasPort
}

func portNumber(b []byte) bool {
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
		if n = n*10 + int(c-'0'); n > 65535 {
			return false
		}
	}
	return len(b) > 0
}

// Hex returns the value of a hexadecimal digit, -1 for any other octet.
func Hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// ParseNumber reads digits only; ok is false for an empty string and above 2^63-1.
func ParseNumber(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 19 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
		if n < 0 {
			return 0, false
		}
	}
	return n, true
}
