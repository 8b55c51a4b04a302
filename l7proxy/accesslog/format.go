package accesslog

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// maxString bounds each string of a line, in bytes before escaping; what is cut off
// ends in "...". A path of HTTP may have 64 KiB and says little after its first part.
const maxString = 4096

func appendText(b []byte, f *flow.Flow) []byte {
	b = appendTime(b, f.Time)
	b = append(append(b, ' '), f.Type.String()...)
	b = append(append(b, ' '), f.Verdict.String()...)
	if f.Reason != flow.ReasonNone {
		b = append(append(b, '('), f.Reason.String()...)
		b = append(b, ')')
	}
	b = append(b, ' ')
	b = peer(b, &f.Source, netip.AddrPort{})
	b = append(b, " -> "...)
	b = peer(b, &f.Destination, f.Original)
	if f.Protocol == mesh.ProtocolUDP {
		b = append(b, " UDP"...)
	}
	if f.Ingress {
		b = append(b, " ingress"...)
	}
	if h := f.HTTP; h != nil {
		b = append(b, ` "`...)
		b = appendEscaped(b, h.Method, false)
		b = append(b, ' ')
		b = appendEscaped(b, h.Path, false)
		b = append(b, ' ')
		b = appendEscaped(b, h.Proto, false)
		b = append(b, `" `...)
		b = strconv.AppendInt(b, int64(h.Status), 10)
		b = quoted(b, " authority=", h.Authority)
		b = quoted(b, " grpc=", h.GRPC)
		if h.Route != "" {
			b = quoted(b, " route=", h.Route)
			b = strconv.AppendInt(append(b, " rule="...), int64(h.Rule), 10)
		}
		if h.RuleName != "" {
			b = quoted(b, " rule_name=", h.RuleName)
		}
		if h.Tries > 1 {
			b = strconv.AppendInt(append(b, " tries="...), int64(h.Tries), 10)
		}
		if !h.TraceID.IsZero() {
			b, _ = h.TraceID.AppendText(append(b, " trace="...))
		}
	}
	if d := f.DNS; d != nil {
		b = quoted(b, " query=", d.Query)
		b = quoted(b, " type=", d.Type)
		b = quoted(b, " rcode=", d.RCode)
		for _, a := range d.Answer {
			b = quoted(b, " answer=", a)
		}
	}
	if f.BytesIn != 0 || f.BytesOut != 0 {
		b = strconv.AppendUint(append(b, " in="...), f.BytesIn, 10)
		b = strconv.AppendUint(append(b, " out="...), f.BytesOut, 10)
	}
	if f.Duration != 0 {
		b = strconv.AppendFloat(append(b, " ms="...), float64(f.Duration)/float64(time.Millisecond), 'f', 3, 64)
	}
	if f.Lost != 0 {
		b = strconv.AppendUint(append(b, " lost="...), f.Lost, 10)
		b = quoted(b, " by=", f.LostSource)
	}
	b = quoted(b, " detail=", f.Detail)
	return append(b, '\n')
}

func quoted(b []byte, k, v string) []byte {
	if v == "" {
		return b
	}
	return appendString(append(b, k...), v, false)
}

// peer appends "namespace/name[address]", or what of it is known, else "-". A service
// stands before the endpoint that was chosen for it.
func peer(b []byte, p *flow.Peer, original netip.AddrPort) []byte {
	start := len(b)
	if !p.Service.IsZero() {
		b = appendName(b, p.Service, false)
		if original.IsValid() {
			b = append(b, '[')
			b = append(appendAddr(b, original), ']')
		}
		b = append(b, '=')
	}
	if !p.Workload.IsZero() {
		b = appendName(b, p.Workload, false)
	}
	if p.AddrPort.IsValid() {
		b = append(b, '[')
		b = append(appendAddr(b, p.AddrPort), ']')
	}
	if len(b) == start {
		b = append(b, '-')
	}
	return b
}

// appendTime appends RFC 3339 with nanoseconds, in UTC.
func appendTime(b []byte, t time.Time) []byte {
	return t.UTC().AppendFormat(b, time.RFC3339Nano)
}

// appendAddr leaves out an IPv6 zone that is not plain: zones are free text.
func appendAddr(b []byte, a netip.AddrPort) []byte {
	if zone := a.Addr().Zone(); zone != "" {
		a = netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
	}
	return a.AppendTo(b)
}

func appendProtocol(b []byte, p mesh.Protocol) []byte {
	switch p {
	case mesh.ProtocolTCP:
		return append(b, "TCP"...)
	case mesh.ProtocolUDP:
		return append(b, "UDP"...)
	}
	return strconv.AppendUint(append(b, "proto-"...), uint64(p), 10)
}

func appendName(b []byte, n mesh.Name, json bool) []byte {
	b = appendEscaped(b, n.Namespace, json)
	b = append(b, '/')
	return appendEscaped(b, n.Name, json)
}

func appendString(b []byte, s string, json bool) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s, json)
	return append(b, '"')
}

const hex = "0123456789abcdef"

// appendEscaped appends s in printable ASCII. In JSON all else is \u escapes, and a
// byte that is not UTF-8 becomes U+FFFD; in text, \x and \u escapes as Go writes them.
func appendEscaped(b []byte, s string, json bool) []byte {
	cut := len(s) > maxString
	if cut {
		s = s[:maxString]
	}
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			i++
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c >= ' ' && c < 0x7f:
				b = append(b, c)
			case json:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			default:
				b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
			}
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1 && !json:
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		case r >= 0x10000 && json:
			r -= 0x10000
			b = appendUnit(b, 0xd800+r>>10)
			b = appendUnit(b, 0xdc00+r&0x3ff)
		case r >= 0x10000:
			b = append(b, '\\', 'U', '0', '0')
			for shift := 20; shift >= 0; shift -= 4 {
				b = append(b, hex[r>>shift&15])
			}
		default:
			b = appendUnit(b, r)
		}
		i += n
	}
	if cut {
		b = append(b, "..."...)
	}
	return b
}

// appendUnit appends \u and four digits.
func appendUnit(b []byte, u rune) []byte {
	return append(b, '\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15])
}
