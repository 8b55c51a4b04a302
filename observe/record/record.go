// Package record is the binary form in which the proxy hands flows to the agent.
//
// It is pure and keeps nothing. Decode takes bytes of a process that is trusted
// with nothing else: it is strict, every flow has exactly one form, and every
// length has a limit. Append cuts what is longer than its limit and never fails.
//
// A record is four bytes of length (little endian), then that many bytes: four
// bytes of bits that say which fields follow, the fixed fields, and those fields
// in the order of their bits. Numbers are minimal uvarints and text is a uvarint
// of its length and its bytes.
package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// The limits of what a record holds, in bytes unless named otherwise. What comes
// from Kubernetes has Kubernetes' own limit (RFC 1123 names, label syntax). What
// strangers choose has one so that a ring of bounded memory (ring.MaxBatchBytes) still
// holds many of the longest, about 2.3 KB each.
const (
	maxName       = 253
	maxLabels     = 32 // labels of one peer
	maxLabelKey   = 317
	maxLabelValue = 63
	maxDetail     = 256
	maxMethod     = 32
	maxAuthority  = 261 // a DNS name and a port
	maxPath       = 1024
	maxWord       = 32 // protocol, gRPC status, DNS type and code, source of a loss
	maxRoute      = 2*maxName + 32
	maxQuery      = 255 // RFC 1035 §3.1
	maxAnswers    = 16  // answers of one query
	maxAnswer     = 128
	maxStatus     = 999
)

// MaxBytes is more than the longest record has, its length included.
const MaxBytes = 48 << 10

// lengthBytes is the size of the length before each record.
const lengthBytes = 4

// The bits of optional fields. A field is there if and only if it is not zero.
const (
	hasTime = 1 << iota
	hasNode
	hasDetail
	hasSourceAddress
	hasSourceWorkload
	hasSourceLabels
	hasSourceService
	hasDestinationAddress
	hasDestinationWorkload
	hasDestinationLabels
	hasDestinationService
	hasOriginal
	hasIngress
	hasBytesIn
	hasBytesOut
	hasDuration
	hasHTTP
	hasDNS
	hasLost
	hasLostSource
	hasRuleName // of an HTTP flow only, as is the next
	hasTrace
	hasMirror // the copy of a request
	allBits   = 1<<iota - 1
)

// Append appends the record of f to dst. It allocates only if dst must grow or f
// has labels, and keeps no reference to f.
func Append(dst []byte, f *flow.Flow) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	dst = append(dst, byte(f.Type), byte(f.Verdict), byte(f.Protocol), byte(f.Reason), byte(f.Reason>>8))
	var bits uint32
	if !f.Time.IsZero() {
		bits |= hasTime
		dst = binary.LittleEndian.AppendUint64(dst, uint64(f.Time.UnixNano()))
	}
	dst = appendOptional(dst, &bits, hasNode, f.Node, maxName)
	if f.Detail != "" {
		bits |= hasDetail
		dst = appendCut(dst, f.Detail, maxDetail)
	}
	dst = appendPeer(dst, &bits, hasSourceAddress, &f.Source)
	dst = appendPeer(dst, &bits, hasDestinationAddress, &f.Destination)
	dst = appendAddress(dst, &bits, hasOriginal, f.Original)
	if f.Ingress {
		bits |= hasIngress
	}
	dst = appendNumber(dst, &bits, hasBytesIn, f.BytesIn)
	dst = appendNumber(dst, &bits, hasBytesOut, f.BytesOut)
	dst = appendNumber(dst, &bits, hasDuration, uint64(max(0, f.Duration)))
	if h := f.HTTP; h != nil {
		bits |= hasHTTP
		dst = appendText(dst, h.Method, maxMethod)
		dst = appendCut(dst, h.Authority, maxAuthority)
		dst = appendCut(dst, h.Path, maxPath)
		dst = appendText(dst, h.Proto, maxWord)
		dst = appendBounded(dst, h.Status, maxStatus)
		dst = appendText(dst, h.GRPC, maxWord)
		dst = appendText(dst, h.Route, maxRoute)
		dst = appendBounded(dst, h.Rule, math.MaxUint16)
		dst = appendBounded(dst, h.Tries, math.MaxUint16)
	}
	if d := f.DNS; d != nil {
		bits |= hasDNS
		dst = appendText(dst, d.Query, maxQuery)
		dst = appendText(dst, d.Type, maxWord)
		dst = appendText(dst, d.RCode, maxWord)
		n := min(len(d.Answer), maxAnswers)
		dst = binary.AppendUvarint(dst, uint64(n))
		for _, a := range d.Answer[:n] {
			dst = appendCut(dst, a, maxAnswer)
		}
	}
	dst = appendNumber(dst, &bits, hasLost, f.Lost)
	dst = appendOptional(dst, &bits, hasLostSource, f.LostSource, maxWord)
	if h := f.HTTP; h != nil {
		dst = appendOptional(dst, &bits, hasRuleName, h.RuleName, maxName)
		if !h.TraceID.IsZero() {
			bits |= hasTrace
			dst = append(dst, h.TraceID[:]...)
		}
		if h.Mirror {
			bits |= hasMirror
		}
	}
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start-lengthBytes))
	binary.LittleEndian.PutUint32(dst[start+lengthBytes:], bits)
	return dst
}

func appendText(dst []byte, s string, limit int) []byte {
	s = s[:min(len(s), limit)]
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

// ellipsis ends a text that was cut, so that a person sees it.
const ellipsis = "…"

// appendCut is appendText for what strangers choose the length of.
func appendCut(dst []byte, s string, limit int) []byte {
	if len(s) <= limit {
		return appendText(dst, s, limit)
	}
	dst = binary.AppendUvarint(dst, uint64(limit))
	dst = append(dst, s[:limit-len(ellipsis)]...)
	return append(dst, ellipsis...)
}

func appendOptional(dst []byte, bits *uint32, bit uint32, s string, limit int) []byte {
	if s == "" {
		return dst
	}
	*bits |= bit
	return appendText(dst, s, limit)
}

func appendNumber(dst []byte, bits *uint32, bit uint32, v uint64) []byte {
	if v == 0 {
		return dst
	}
	*bits |= bit
	return binary.AppendUvarint(dst, v)
}

func appendBounded(dst []byte, v, limit int) []byte {
	return binary.AppendUvarint(dst, uint64(min(max(0, v), limit)))
}

// appendPeer appends one end; bit is that of its address, and the bits of its
// workload, labels and service follow it.
func appendPeer(dst []byte, bits *uint32, bit uint32, p *flow.Peer) []byte {
	dst = appendAddress(dst, bits, bit, p.AddrPort)
	dst = appendName(dst, bits, bit<<1, p.Workload)
	if len(p.Labels) > 0 {
		keys := slices.Sorted(maps.Keys(p.Labels))
		keys = slices.DeleteFunc(keys, func(k string) bool { return k == "" || len(k) > maxLabelKey })
		dst = appendLabels(dst, bits, bit<<2, p.Labels, keys[:min(len(keys), maxLabels)])
	}
	return appendName(dst, bits, bit<<3, p.Service)
}

// appendLabels appends the labels of the keys, which are sorted.
func appendLabels(dst []byte, bits *uint32, bit uint32, labels map[string]string, keys []string) []byte {
	if len(keys) == 0 {
		return dst
	}
	*bits |= bit
	dst = binary.AppendUvarint(dst, uint64(len(keys)))
	for _, k := range keys {
		dst = appendText(dst, k, maxLabelKey)
		dst = appendText(dst, labels[k], maxLabelValue)
	}
	return dst
}

func appendName(dst []byte, bits *uint32, bit uint32, n mesh.Name) []byte {
	if n.IsZero() {
		return dst
	}
	*bits |= bit
	dst = appendText(dst, n.Namespace, maxName)
	return appendText(dst, n.Name, maxName)
}

// appendAddress appends the port, the number of bytes of the address (4, 16, or 0
// for none), and those bytes. A zone is left out.
func appendAddress(dst []byte, bits *uint32, bit uint32, a netip.AddrPort) []byte {
	if a == (netip.AddrPort{}) {
		return dst
	}
	*bits |= bit
	dst = binary.LittleEndian.AppendUint16(dst, a.Port())
	switch addr := a.Addr(); {
	case addr.Is4():
		b := addr.As4()
		dst = append(append(dst, 4), b[:]...)
	case addr.Is6():
		b := addr.As16()
		dst = append(append(dst, 16), b[:]...)
	default:
		dst = append(dst, 0)
	}
	return dst
}

// ErrShort says that the bytes end before the record does.
var ErrShort = errors.New("flow record: more bytes are needed")

// Size returns how many bytes the record at the start of b has, ErrShort if b
// does not even hold its length, or another error if no record is so long.
func Size(b []byte) (int, error) {
	if len(b) < lengthBytes {
		return 0, ErrShort
	}
	n := uint64(binary.LittleEndian.Uint32(b)) + lengthBytes
	if n > MaxBytes {
		return 0, fmt.Errorf("flow record of %d bytes: the limit is %d", n, MaxBytes)
	}
	return int(n), nil
}

// Decode returns the flow at the start of b and the number of bytes that it took.
// It keeps no reference to b. The error is ErrShort if b ends before the record
// does; any other means that the record breaks its format, and if n is not zero
// then it is where the next record starts.
func Decode(b []byte) (f flow.Flow, n int, err error) {
	n, err = Size(b)
	if err != nil {
		return flow.Flow{}, 0, err
	}
	if len(b) < n {
		return flow.Flow{}, 0, ErrShort
	}
	d := decoder{rest: string(b[lengthBytes:n]), httpAt: new(flow.HTTP), dnsAt: new(flow.DNS)}
	if err := d.whole(&f); err != nil {
		return flow.Flow{}, n, err
	}
	return f, n, nil
}

// whole decodes all there is into f.
func (d *decoder) whole(f *flow.Flow) error {
	d.flow(f)
	if d.err == nil && d.rest != "" {
		d.fail("bytes after its end")
	}
	return d.err
}

// decoder takes a record apart. After the first error everything is zero. The
// texts of the flow are parts of one string, so that a record costs one copy.
type decoder struct {
	rest string
	err  error
	// httpAt and dnsAt are where those parts of the flow go.
	httpAt *flow.HTTP
	dnsAt  *flow.DNS
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("flow record: %s", what)
	}
	d.rest = ""
}

func (d *decoder) take(n int) string {
	if n > len(d.rest) {
		d.fail("ends in the middle of a field")
		return ""
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}

func (d *decoder) fixed(n int) uint64 {
	s := d.take(n)
	var v uint64
	for i := range len(s) {
		v |= uint64(s[i]) << (8 * i)
	}
	return v
}

func (d *decoder) number(limit uint64) uint64 {
	var v uint64
	for i := 0; ; i++ {
		if i == len(d.rest) || i == binary.MaxVarintLen64 {
			d.fail("ends in the middle of a number")
			return 0
		}
		c := d.rest[i]
		if i == binary.MaxVarintLen64-1 && c > 1 {
			d.fail("a number of more than 64 bits")
			return 0
		}
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				d.fail("a number that is longer than needed")
				return 0
			}
			d.rest = d.rest[i+1:]
			break
		}
	}
	if v > limit {
		d.fail("a number above its limit")
		return 0
	}
	return v
}

func (d *decoder) nonzero(limit uint64) uint64 {
	v := d.number(limit)
	if v == 0 {
		d.fail("a field that is there and zero")
	}
	return v
}

func (d *decoder) text(limit int) string { return d.take(int(d.number(uint64(limit)))) }

func (d *decoder) nonempty(limit int) string {
	s := d.text(limit)
	if s == "" {
		d.fail("a text that is there and empty")
	}
	return s
}

func (d *decoder) flow(f *flow.Flow) {
	bits := uint32(d.fixed(4))
	if bits&^allBits != 0 {
		d.fail("unknown fields")
		return
	}
	f.Type = flow.Type(d.fixed(1))
	f.Verdict = flow.Verdict(d.fixed(1))
	f.Protocol = mesh.Protocol(d.fixed(1))
	f.Reason = flow.Reason(d.fixed(2))
	if !f.Type.Known() {
		d.fail("unknown type of flow")
	}
	if f.Verdict != 0 && !f.Verdict.Known() {
		d.fail("unknown verdict")
	}
	if bits&hasTime != 0 {
		f.Time = time.Unix(0, int64(d.fixed(8))).UTC()
	}
	if bits&hasNode != 0 {
		f.Node = d.nonempty(maxName)
	}
	if bits&hasDetail != 0 {
		f.Detail = d.nonempty(maxDetail)
	}
	d.peer(bits, hasSourceAddress, &f.Source)
	d.peer(bits, hasDestinationAddress, &f.Destination)
	if bits&hasOriginal != 0 {
		f.Original = d.address()
	}
	f.Ingress = bits&hasIngress != 0
	if bits&hasBytesIn != 0 {
		f.BytesIn = d.nonzero(math.MaxUint64)
	}
	if bits&hasBytesOut != 0 {
		f.BytesOut = d.nonzero(math.MaxUint64)
	}
	if bits&hasDuration != 0 {
		f.Duration = time.Duration(d.nonzero(math.MaxInt64))
	}
	if bits&hasHTTP != 0 {
		f.HTTP = d.http()
	}
	if bits&hasDNS != 0 {
		f.DNS = d.dns()
	}
	if bits&hasLost != 0 {
		f.Lost = d.nonzero(math.MaxUint64)
	}
	if bits&hasLostSource != 0 {
		f.LostSource = d.nonempty(maxWord)
	}
	if bits&(hasRuleName|hasTrace|hasMirror) != 0 && f.HTTP == nil {
		d.fail("a part of a request without the request")
		return
	}
	if bits&hasRuleName != 0 {
		f.HTTP.RuleName = d.nonempty(maxName)
	}
	if bits&hasTrace != 0 {
		copy(f.HTTP.TraceID[:], d.take(len(f.HTTP.TraceID)))
		if f.HTTP.TraceID.IsZero() {
			d.fail("a trace that is there and zero")
		}
	}
	if bits&hasMirror != 0 {
		f.HTTP.Mirror = true
	}
}

func (d *decoder) http() *flow.HTTP {
	*d.httpAt = flow.HTTP{
		Method: d.text(maxMethod), Authority: d.text(maxAuthority), Path: d.text(maxPath),
		Proto: d.text(maxWord), Status: int(d.number(maxStatus)), GRPC: d.text(maxWord),
		Route: d.text(maxRoute), Rule: int(d.number(math.MaxUint16)), Tries: int(d.number(math.MaxUint16)),
	}
	return d.httpAt
}

func (d *decoder) dns() *flow.DNS {
	out := d.dnsAt
	*out = flow.DNS{Query: d.text(maxQuery), Type: d.text(maxWord), RCode: d.text(maxWord)}
	if n := int(d.number(maxAnswers)); n > 0 {
		out.Answer = make([]string, n)
		for i := range out.Answer {
			out.Answer[i] = d.text(maxAnswer)
		}
	}
	return out
}

func (d *decoder) peer(bits, bit uint32, p *flow.Peer) {
	if bits&bit != 0 {
		p.AddrPort = d.address()
	}
	if bits&(bit<<1) != 0 {
		p.Workload = d.name()
	}
	if bits&(bit<<2) != 0 {
		p.Labels = d.labels()
	}
	if bits&(bit<<3) != 0 {
		p.Service = d.name()
	}
}

func (d *decoder) name() mesh.Name {
	n := mesh.Name{Namespace: d.text(maxName), Name: d.text(maxName)}
	if n.IsZero() {
		d.fail("a name that is there and empty")
	}
	return n
}

func (d *decoder) labels() map[string]string {
	n := int(d.nonzero(maxLabels))
	out := make(map[string]string, n)
	last := ""
	for range n {
		k := d.text(maxLabelKey)
		if k <= last {
			d.fail("labels out of order")
			return nil
		}
		out[k] = d.text(maxLabelValue)
		last = k
	}
	return out
}

func (d *decoder) address() netip.AddrPort {
	port := uint16(d.fixed(2))
	var addr netip.Addr
	switch n := d.fixed(1); n {
	case 0:
		if port == 0 {
			d.fail("an address that is there and empty")
		}
	case 4, 16:
		addr, _ = netip.AddrFromSlice([]byte(d.take(int(n))))
	default:
		d.fail("an address that is neither IPv4 nor IPv6")
	}
	return netip.AddrPortFrom(addr, port)
}
