package mesh

import (
	"fmt"
	"strings"
)

// MarshalText returns "namespace/name", or nothing for the zero name.
func (n Name) MarshalText() ([]byte, error) {
	if n.IsZero() {
		return []byte{}, nil
	}
	return []byte(n.String()), nil
}

// UnmarshalText parses what MarshalText wrote.
func (n *Name) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*n = Name{}
		return nil
	}
	parsed, err := ParseName(string(b))
	if err != nil {
		return err
	}
	*n = parsed
	return nil
}

// ParseName parses "namespace/name". Both parts must be there.
func ParseName(s string) (Name, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return Name{}, fmt.Errorf("%q is not NAMESPACE/NAME", s)
	}
	return Name{Namespace: namespace, Name: name}, nil
}

// MarshalText returns "TCP" or "UDP", or nothing for the zero protocol.
func (p Protocol) MarshalText() ([]byte, error) {
	if p == 0 {
		return []byte{}, nil
	}
	return []byte(p.String()), nil
}

// UnmarshalText parses what MarshalText wrote.
func (p *Protocol) UnmarshalText(b []byte) error {
	switch string(b) {
	case "":
		*p = 0
	case "TCP":
		*p = ProtocolTCP
	case "UDP":
		*p = ProtocolUDP
	default:
		var number uint8
		if _, err := fmt.Sscanf(string(b), "proto-%d", &number); err != nil || Protocol(number).String() != string(b) {
			return fmt.Errorf("unknown protocol %q: want TCP or UDP", b)
		}
		*p = Protocol(number)
	}
	return nil
}
