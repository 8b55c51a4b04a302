package bpf

import (
	"encoding/binary"
	"net/netip"
)

// AddrFrom returns the form that the programs use: IPv4 mapped into IPv6, the
// zero Addr as zero.
func AddrFrom(a netip.Addr) MeshAddr {
	if !a.IsValid() {
		return MeshAddr{}
	}
	return MeshAddr{Bytes: a.As16()}
}

// Addr returns the address, IPv4 never in mapped form. Zero is the zero Addr.
func (a MeshAddr) Addr() netip.Addr {
	if a == (MeshAddr{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.Bytes).Unmap()
}

// Port converts a port between the host's and the network's byte order, either way.
func Port(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// FrontendFrom returns the key of an address, a port and an IANA protocol number.
func FrontendFrom(a netip.AddrPort, protocol uint8) MeshFrontend {
	return MeshFrontend{Addr: AddrFrom(a.Addr()), Port: Port(a.Port()), Protocol: protocol}
}

// AddrPort returns the address and port of the key.
func (f MeshFrontend) AddrPort() netip.AddrPort {
	return netip.AddrPortFrom(f.Addr.Addr(), Port(f.Port))
}
