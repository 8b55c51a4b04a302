package http1

import (
	"errors"
	"slices"
	"strconv"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// Refusals of a Writer.
var (
	ErrField     = errors.New("field with octets that would be read differently")
	ErrTarget    = errors.New("request target that would be read differently")
	ErrMethod    = errors.New("method that would be read differently")
	ErrStatus    = errors.New("status that cannot be sent")
	ErrUpgrade   = errors.New("protocol switch that nobody asked for, or that HTTP/1 has no form for")
	ErrBodyLong  = errors.New("body longer than announced")
	ErrBodyShort = errors.New("body shorter than announced")
)

type framing uint8

const (
	noBody     framing = iota
	fixed              // remaining bytes still to come
	chunked            // HTTP/1.1
	untilClose         // the end of the connection is the end of the body
	tunnel             // after 101, or 2xx to CONNECT
)

// Writer frames one direction of one connection: requests (AppendRequest) or responses
// (ReplyTo, AppendResponse), each followed by AppendData* and AppendEnd. The zero value is
// ready. The Append functions return dst extended. When they must refuse, they return dst as
// it was and Err says why; the connection must then be closed. Memory: none beside dst.
//
// Head.Close is the sender's wish for this very connection: whoever forwards a head that
// another connection's parser made, sets it anew.
type Writer struct {
	framing   framing
	close     bool
	remaining int64
	err       error

	// Of the request that the next final response answers.
	method     asked
	http10     bool
	wantsClose bool
	wants      bool // an upgrade

	size [20]byte // DataFraming's prefix
}

// ReplyTo tells the writer of a server which request its next final response answers: method,
// version, Upgrade and Close decide about framing. Nothing of req is kept.
func (w *Writer) ReplyTo(req *message.Head) {
	w.method = askedOther
	switch string(req.Method) {
	case "HEAD":
		w.method = askedHead
	case "CONNECT":
		w.method = askedConnect
	}
	w.http10 = req.Proto == message.HTTP10
	w.wantsClose = req.Close
	w.wants = len(req.Upgrade) > 0
}

// Close reports whether the connection ends after this message: the head or the request said so,
// or the body's end is the end of the connection.
func (w *Writer) Close() bool { return w.close }

// Raw reports whether body bytes go out as they are (known length, close-delimited, tunnel), so
// that they may be spliced. Count such bytes with DataFraming.
func (w *Writer) Raw() bool { return w.framing != chunked && w.framing != noBody }

// Err is the first refusal since the last head.
func (w *Writer) Err() error { return w.err }

// Upgrade makes the writer of requests send the rest as it is, when a 101 or a 2xx to CONNECT
// came. A writer of responses does so by itself.
func (w *Writer) Upgrade() { w.framing = tunnel }

// Reset makes w the zero value.
func (w *Writer) Reset() { *w = Writer{} }

func (w *Writer) refuse(dst []byte, size int, err error) []byte {
	if w.err == nil {
		w.err = err
	}
	return dst[:size]
}

// AppendRequest starts a request in HTTP/1.1.
func (w *Writer) AppendRequest(dst []byte, h *message.Head) []byte {
	size := len(dst)
	w.err, w.close, w.remaining, w.framing = nil, h.Close, 0, noBody
	if !message.ValidToken(h.Method) {
		return w.refuse(dst, size, ErrMethod)
	}
	connect := string(h.Method) == "CONNECT"
	target := h.Path
	switch {
	case connect:
		if len(h.Upgrade) > 0 {
			return w.refuse(dst, size, ErrUpgrade)
		}
		target = h.Authority
		if ok, port := message.ValidAuthority(target); !ok || !port {
			return w.refuse(dst, size, ErrTarget)
		}
	case len(target) == 0 || !message.ValidTarget(target) ||
		target[0] != '/' && (string(target) != "*" || string(h.Method) != "OPTIONS") ||
		len(h.Authority) > 0 && !authority(h.Authority):
		return w.refuse(dst, size, ErrTarget)
	}
	dst = append(dst, h.Method...)
	dst = append(dst, ' ')
	dst = append(dst, target...)
	dst = append(dst, " HTTP/1.1\r\nhost: "...)
	dst = append(dst, h.Authority...)
	dst = append(dst, '\r', '\n')
	dst, te, ok := appendFields(dst, h.Fields, false)
	if !ok {
		return w.refuse(dst, size, ErrField)
	}
	switch {
	case connect:
		w.framing = tunnel
	case h.End && h.ContentLength > 0:
		return w.refuse(dst, size, ErrBodyShort)
	case h.End:
		// RFC 9110 §8.6: methods that have content say that there is none.
		if h.ContentLength == 0 || string(h.Method) == "POST" || string(h.Method) == "PUT" || string(h.Method) == "PATCH" {
			dst = append(dst, "content-length: 0\r\n"...)
		}
	default:
		dst = w.appendFraming(dst, h)
	}
	if len(h.Upgrade) > 0 {
		if !upgradeList(h.Upgrade) {
			return w.refuse(dst, size, ErrUpgrade)
		}
		dst = appendUpgrade(dst, h.Upgrade)
	}
	return appendConnection(dst, h.Close, false, len(h.Upgrade) > 0, te)
}

// AppendResponse starts a response. One with status 1xx (except 101) is complete with that, needs
// no AppendEnd, and is left out for a client of HTTP/1.0.
func (w *Writer) AppendResponse(dst []byte, h *message.Head) []byte {
	size := len(dst)
	w.err = nil
	if h.Status < 100 || h.Status > 999 {
		return w.refuse(dst, size, ErrStatus)
	}
	if h.Status < 200 && h.Status != 101 {
		if w.http10 {
			return dst
		}
		dst = appendStatusLine(dst, h.Status)
		dst, _, ok := appendFields(dst, h.Fields, false)
		if !ok {
			return w.refuse(dst, size, ErrField)
		}
		return append(dst, '\r', '\n')
	}
	w.close, w.remaining, w.framing = h.Close || w.wantsClose, 0, noBody
	dst = appendStatusLine(dst, h.Status)
	dst, _, ok := appendFields(dst, h.Fields, false)
	if !ok {
		return w.refuse(dst, size, ErrField)
	}
	upgrade := false
	switch {
	case h.Status == 101:
		if !w.wants || !upgradeList(h.Upgrade) {
			return w.refuse(dst, size, ErrUpgrade)
		}
		upgrade, w.framing, w.close = true, tunnel, false
	case w.method == askedConnect && h.Status < 300:
		w.framing, w.close = tunnel, false
	case w.method == askedHead || h.Status == 304:
		if h.ContentLength >= 0 {
			dst = appendLength(dst, h.ContentLength)
		}
	case h.Status == 204:
	case h.End:
		if h.ContentLength > 0 {
			return w.refuse(dst, size, ErrBodyShort)
		}
		dst = append(dst, "content-length: 0\r\n"...)
	case h.ContentLength < 0 && w.http10:
		w.framing, w.close = untilClose, true
	default:
		dst = w.appendFraming(dst, h)
	}
	if upgrade || h.Status == 426 && upgradeList(h.Upgrade) {
		upgrade = true
		dst = appendUpgrade(dst, h.Upgrade)
	}
	return appendConnection(dst, w.close, w.http10 && !w.close, upgrade, false)
}

// AppendContinue writes 100 (Continue), nothing for a client of HTTP/1.0.
func (w *Writer) AppendContinue(dst []byte) []byte {
	if w.http10 {
		return dst
	}
	return append(dst, "HTTP/1.1 100 Continue\r\n\r\n"...)
}

// AppendData writes body bytes, framed.
func (w *Writer) AppendData(dst, p []byte) []byte {
	size := len(dst)
	prefix, suffix := w.DataFraming(len(p))
	if w.err != nil {
		return dst[:size]
	}
	dst = append(dst, prefix...)
	dst = append(dst, p...)
	return append(dst, suffix...)
}

// DataFraming counts n body bytes and returns what goes before and after them, for a writev
// without a copy. Both may be empty; they are not to be changed and valid until the next call.
func (w *Writer) DataFraming(n int) (prefix, suffix []byte) {
	if n == 0 || w.err != nil {
		return nil, nil
	}
	switch w.framing {
	case chunked:
		prefix = append(strconv.AppendInt(w.size[:0], int64(n), 16), '\r', '\n')
		return prefix, crlf
	case untilClose, tunnel:
		return nil, nil
	}
	if int64(n) > w.remaining {
		w.err = ErrBodyLong
		return nil, nil
	}
	w.remaining -= int64(n)
	return nil, nil
}

// AppendEnd ends the message. Trailers are left out where the framing has no room for them.
func (w *Writer) AppendEnd(dst []byte, trailers []message.Field) []byte {
	size := len(dst)
	if w.err != nil {
		return dst
	}
	switch w.framing {
	case fixed:
		if w.remaining > 0 {
			return w.refuse(dst, size, ErrBodyShort)
		}
	case chunked:
		dst = append(dst, '0', '\r', '\n')
		dst, _, ok := appendFields(dst, trailers, true)
		if !ok {
			return w.refuse(dst, size, ErrField)
		}
		dst = append(dst, '\r', '\n')
		w.framing = noBody
		return dst
	}
	w.framing = noBody
	return dst
}

var crlf = []byte{'\r', '\n'}

// appendFraming announces a body in HTTP/1.1. HTTP/2 has trailers behind a body of known
// length too; here only chunks leave room for them.
func (w *Writer) appendFraming(dst []byte, h *message.Head) []byte {
	known := h.ContentLength >= 0
	if known && h.Proto == message.HTTP2 && !w.http10 {
		_, trailers := h.Get("trailer")
		known = !trailers
	}
	if known {
		w.framing, w.remaining = fixed, h.ContentLength
		return appendLength(dst, h.ContentLength)
	}
	w.framing = chunked
	return append(dst, "transfer-encoding: chunked\r\n"...)
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "content-length: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, '\r', '\n')
}

func appendUpgrade(dst, protocol []byte) []byte {
	dst = append(dst, "upgrade: "...)
	dst = append(dst, protocol...)
	return append(dst, '\r', '\n')
}

// appendConnection writes the Connection field, when there is something to say, and ends the head.
func appendConnection(dst []byte, close, keepAlive, upgrade, te bool) []byte {
	if !close && !keepAlive && !upgrade && !te {
		return append(dst, '\r', '\n')
	}
	dst = append(dst, "connection: "...)
	for _, o := range [...]struct {
		on   bool
		name string
	}{{close, "close"}, {keepAlive, "keep-alive"}, {upgrade, "upgrade"}, {te, "te"}} {
		if o.on {
			dst = append(dst, o.name...)
			dst = append(dst, ',', ' ')
		}
	}
	return append(dst[:len(dst)-2], "\r\n\r\n"...)
}

// appendFields writes end-to-end fields. Those that the framing or the hop owns are the
// Writer's own business and left out. te says that the peer has to be told about TE
// (RFC 9110 §10.1.4).
func appendFields(dst []byte, fields []message.Field, trailer bool) (_ []byte, te, ok bool) {
	need := 64
	for i := range fields {
		need += len(fields[i].Name) + len(fields[i].Value) + 4
	}
	dst = slices.Grow(dst, need)
	for i := range fields {
		f := &fields[i]
		switch string(f.Name) {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host",
			"content-length", "http2-settings":
			continue
		case "trailer":
			if trailer {
				continue
			}
		case "te":
			if !message.Fold(f.Value, "trailers") || trailer {
				continue
			}
			te = true
		}
		if !message.ValidName(f.Name) || !message.ValidValue(f.Value) {
			return dst, false, false
		}
		dst = append(dst, f.Name...)
		dst = append(dst, ':', ' ')
		dst = append(dst, f.Value...)
		dst = append(dst, '\r', '\n')
	}
	return dst, te, true
}
