package trace

import (
	"encoding/hex"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// The header fields of W3C Trace Context §3.
const (
	FieldParent = "traceparent"
	FieldState  = "tracestate"
)

// ID identifies a trace; zero is invalid.
type ID = flow.TraceID

// SpanID identifies a span; zero is invalid.
type SpanID [8]byte

// The flags of a trace (W3C Trace Context Level 2 §3.2.2.5). Others are not passed on.
const (
	flagSampled = 1 << 0
	flagRandom  = 1 << 1
	knownFlags  = flagSampled | flagRandom
)

// Context is what a traceparent field says.
type Context struct {
	Trace ID
	Span  SpanID
	Flags byte
}

// Sampled reports whether the caller records the trace.
func (c Context) Sampled() bool { return c.Flags&flagSampled != 0 }

// parentBytes is the length of a traceparent of version 00.
const parentBytes = 55

// where the span's identifier is in a traceparent.
const (
	spanAt  = 36
	flagsAt = 53
)

// Parse parses the value of a traceparent field as W3C Trace Context §3.2 says: of
// version 00 exactly, of later versions as far as version 00 goes. It allocates
// nothing.
func Parse(v []byte) (Context, bool) {
	var c Context
	if len(v) < parentBytes || v[2] != '-' || v[35] != '-' || v[52] != '-' {
		return c, false
	}
	var version, flags [1]byte
	if !unhex(version[:], v[:2]) || version[0] == 0xff {
		return c, false
	}
	if len(v) > parentBytes && (version[0] == 0 || v[parentBytes] != '-') {
		return c, false
	}
	if !unhex(c.Trace[:], v[3:35]) || !unhex(c.Span[:], v[spanAt:52]) || !unhex(flags[:], v[flagsAt:parentBytes]) {
		return Context{}, false
	}
	if c.Trace.IsZero() || c.Span == (SpanID{}) {
		return Context{}, false
	}
	c.Flags = flags[0] & knownFlags
	return c, true
}

// unhex decodes lower-case hexadecimal; the field allows no other.
func unhex(dst, src []byte) bool {
	for i := range dst {
		hi, lo := nibble(src[2*i]), nibble(src[2*i+1])
		if hi|lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func nibble(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// Append appends c as a traceparent of version 00.
func (c Context) Append(b []byte) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, c.Trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, c.Span[:])
	return append(b, '-', '0', hexDigits[c.Flags&knownFlags])
}

const hexDigits = "0123456789abcdef"

// PutSpan writes a span's identifier into a traceparent that Append made.
func PutSpan(parent []byte, s SpanID) { hex.Encode(parent[spanAt:52], s[:]) }

// FromHead returns what the request says of its trace. More than one traceparent is
// as good as none (W3C Trace Context §3.2: restart the trace).
func FromHead(h *message.Head) (c Context, ok bool) {
	found := false
	for i := range h.Fields {
		f := &h.Fields[i]
		if len(f.Name) != len(FieldParent) || string(f.Name) != FieldParent {
			continue
		}
		if found {
			return Context{}, false
		}
		found = true
		if c, ok = Parse(f.Value); !ok {
			return Context{}, false
		}
	}
	return c, ok
}

// The limits of tracestate (W3C Trace Context §3.3.1).
const (
	maxMembers    = 32
	maxKeyBytes   = 256
	maxValueBytes = 256
)

// ValidState reports whether the tracestate fields of a request together are a list
// as W3C Trace Context §3.3.1 defines it. Keys that come twice are not looked for.
// It allocates nothing.
func ValidState(h *message.Head) bool {
	members := 0
	for i := range h.Fields {
		f := &h.Fields[i]
		if len(f.Name) != len(FieldState) || string(f.Name) != FieldState {
			continue
		}
		n, ok := countMembers(f.Value)
		members += n
		if !ok || members > maxMembers {
			return false
		}
	}
	return true
}

// countMembers returns the number of list members of one field, and false if one of
// them is malformed.
func countMembers(v []byte) (n int, ok bool) {
	for len(v) > 0 {
		member := v
		if i := indexByte(v, ','); i >= 0 {
			member, v = v[:i], v[i+1:]
		} else {
			v = nil
		}
		member = trimSpace(member)
		if len(member) == 0 {
			continue // an empty member is allowed
		}
		i := indexByte(member, '=')
		if i < 0 || !validKey(member[:i]) || !validValue(member[i+1:]) {
			return n, false
		}
		n++
	}
	return n, true
}

func indexByte(v []byte, c byte) int {
	for i := range v {
		if v[i] == c {
			return i
		}
	}
	return -1
}

func trimSpace(v []byte) []byte {
	for len(v) > 0 && (v[0] == ' ' || v[0] == '\t') {
		v = v[1:]
	}
	for len(v) > 0 && (v[len(v)-1] == ' ' || v[len(v)-1] == '\t') {
		v = v[:len(v)-1]
	}
	return v
}

// validKey is Level 2's rule, which allows all that Level 1's does but a tenant that
// is longer than the whole may be.
func validKey(k []byte) bool {
	if len(k) == 0 || len(k) > maxKeyBytes {
		return false
	}
	for i, c := range k {
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '-' || c == '*' || c == '/' || c == '@'):
		default:
			return false
		}
	}
	return true
}

func validValue(v []byte) bool {
	if len(v) == 0 || len(v) > maxValueBytes || v[len(v)-1] == ' ' {
		return false
	}
	for _, c := range v {
		if c < ' ' || c > '~' || c == ',' || c == '=' {
			return false
		}
	}
	return true
}
