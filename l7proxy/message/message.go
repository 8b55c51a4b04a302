// Package message is an HTTP message head in the form that both codecs, the route
// matcher and the filters share: names and values as slices of somebody's buffer.
//
// It owns no bytes. A Head that a codec returned is valid until the codec is next
// given bytes or reset; whoever needs it longer calls Clone. It is used by one
// goroutine at a time and never fails.
package message

// Proto is the version of HTTP that a message was received in.
type Proto uint8

// The versions.
const (
	HTTP10 Proto = iota + 1
	HTTP11
	HTTP2
)

// String returns "HTTP/1.0", "HTTP/1.1" or "HTTP/2".
func (p Proto) String() string {
	switch p {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return ""
}

// Field is one header or trailer field. Name is lower case. Several fields of
// one name stay apart and in order.
type Field struct {
	Name, Value []byte
}

// Head is the head of a request or a response. Method is empty in a response,
// Status zero in a request.
//
// Fields holds the end-to-end fields only: codecs take away what concerns one
// hop (connection and the fields it names, keep-alive, proxy-connection,
// transfer-encoding, upgrade, te except "trailers", and host, which becomes
// Authority) and put their own back. Content-Length stays in Fields as it came
// and is also parsed into ContentLength.
type Head struct {
	Proto Proto

	Method    []byte
	Scheme    []byte // "http" or "https"; empty in HTTP/1 origin form
	Authority []byte // Host or :authority, as it came
	Path      []byte // origin form with query, "*" for OPTIONS *; empty for CONNECT
	// Upgrade is the protocol that the message asks for or switches to: the
	// Upgrade field of HTTP/1 with Connection: upgrade, :protocol of RFC 8441.
	Upgrade []byte

	Status int

	Fields []Field

	// ContentLength is -1 when the message does not say.
	ContentLength int64
	// End says that neither body nor trailers follow.
	End bool
	// Close says that the connection ends after this message (HTTP/1 only).
	Close bool
	// Expect100 says that the client waits for 100 (Continue) before the body.
	Expect100 bool
}

// Get returns the value of the first field of a lower-case name, and whether
// there is one.
func (h *Head) Get(name string) ([]byte, bool) {
	for i := range h.Fields {
		if string(h.Fields[i].Name) == name {
			return h.Fields[i].Value, true
		}
	}
	return nil, false
}

// Add appends a field. The strings are not copied.
func (h *Head) Add(name, value []byte) { h.Fields = append(h.Fields, Field{name, value}) }

// Del removes all fields of a lower-case name and keeps the order of the others.
func (h *Head) Del(name string) {
	kept := h.Fields[:0]
	for _, f := range h.Fields {
		if string(f.Name) != name {
			kept = append(kept, f)
		}
	}
	h.Fields = kept
}

// Reset makes h empty and keeps its memory.
func (h *Head) Reset() {
	*h = Head{Fields: h.Fields[:0], ContentLength: -1}
}

// Clone copies h and its bytes into dst, whose memory it reuses, with all bytes
// in one buffer buf, which it returns grown.
func (h *Head) Clone(dst *Head, buf []byte) []byte {
	fields := dst.Fields[:0]
	*dst = *h
	need := len(h.Method) + len(h.Scheme) + len(h.Authority) + len(h.Path) + len(h.Upgrade)
	for i := range h.Fields {
		need += len(h.Fields[i].Name) + len(h.Fields[i].Value)
	}
	buf = buf[:0]
	if cap(buf) < need {
		buf = make([]byte, 0, need)
	}
	put := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		n := len(buf)
		buf = append(buf, b...)
		return buf[n:len(buf):len(buf)]
	}
	dst.Method, dst.Scheme, dst.Authority = put(h.Method), put(h.Scheme), put(h.Authority)
	dst.Path, dst.Upgrade = put(h.Path), put(h.Upgrade)
	for i := range h.Fields {
		fields = append(fields, Field{put(h.Fields[i].Name), put(h.Fields[i].Value)})
	}
	dst.Fields = fields
	return buf
}
