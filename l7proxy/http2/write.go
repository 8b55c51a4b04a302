package http2

import (
	"strconv"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// shutdownData marks the PING whose answer tells that the peer has seen Shutdown.
const shutdownData = "sluiceSD"

func be32(dst []byte, v uint32) []byte {
	return append(dst, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// frame writes a frame header.
func (c *Conn) frame(length int, kind frameType, flags uint8, stream uint32) {
	c.out = append(c.out, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func (c *Conn) windowUpdate(stream uint32, n int64) {
	c.frame(4, frameWindowUpdate, 0, stream)
	c.out = be32(c.out, uint32(n))
}

func (c *Conn) reset(stream uint32, code ErrCode) {
	c.frame(4, frameRSTStream, 0, stream)
	c.out = be32(c.out, uint32(code))
}

func (c *Conn) goAway(last uint32, code ErrCode, text string) {
	c.frame(8+len(text), frameGoAway, 0, 0)
	c.out = be32(c.out, last)
	c.out = be32(c.out, uint32(code))
	c.out = append(c.out, text...)
	if last != maxStreamID {
		c.final, c.finalID = true, last
	}
}

// Out is what waits to be written, valid until the next call of any other method.
func (c *Conn) Out() []byte { return c.out[c.sent:] }

// Sent says that the first n bytes of Out were written. Writable events may be due then.
func (c *Conn) Sent(n int) {
	full := c.full()
	c.sent += n
	switch {
	case c.sent == len(c.out):
		c.out, c.sent, c.acks = c.out[:0], 0, 0
		if len(c.streams) == 0 {
			c.shrink()
		}
	case c.sent >= 64<<10:
		c.out, c.sent = c.out[:copy(c.out, c.out[c.sent:])], 0
	}
	if full && !c.full() {
		c.wake = len(c.waiting)
	}
}

// shrink gives back a large out that is empty: an idle connection keeps no more than small answers need.
func (c *Conn) shrink() {
	if len(c.out) == 0 && cap(c.out) > 8<<10 {
		c.out = nil
	}
}

// full reports whether WriteData has to wait for Sent.
func (c *Conn) full() bool { return len(c.out)-c.sent >= c.cfg.MaxOutBytes }

// ended reports whether nothing may be written any more.
func (c *Conn) ended() bool { return c.err != nil || c.closing }

// OpenStream sends a request head (client). end says that neither body nor trailers follow. An
// extended CONNECT (RFC 8441) has Method CONNECT and Upgrade.
func (c *Conn) OpenStream(h *message.Head, end bool) (id uint32, err error) {
	if c.server || c.ended() || c.draining || c.peerGoAway || c.nextOwn > maxStreamID {
		return 0, ErrConn
	}
	if c.CanOpen() == 0 {
		return 0, ErrLimit
	}
	id = c.nextOwn
	mark := len(c.out)
	c.beginBlock()
	size, err := c.appendRequest(h)
	if err == nil && size > c.peerMaxHeadSize {
		err = ErrHeadSize
	}
	if err == nil && end && h.ContentLength > 0 {
		err = ErrLength
	}
	if err != nil {
		c.out = c.out[:mark]
		return 0, err
	}
	c.endBlock(mark, id, end)
	c.nextOwn += 2
	s := c.open(id)
	s.isHead = string(h.Method) == "HEAD"
	s.isConnect = string(h.Method) == "CONNECT"
	s.weEnded = end
	if !s.isConnect {
		s.toSend = h.ContentLength
	}
	c.idle = 0
	return id, nil
}

// WriteHeaders sends a response head (server); interim ones, status 1xx, may come before the final one.
// end says that neither body nor trailers follow.
func (c *Conn) WriteHeaders(id uint32, h *message.Head, end bool) error {
	s := c.streams[id]
	switch {
	case c.ended():
		return ErrConn
	case s == nil || s.weEnded:
		return ErrStream
	case !c.server || s.headSent:
		return ErrOrder
	case h.Status < 100 || h.Status > 999 || h.Status == 101 || h.Status < 200 && end:
		return ErrHead
	}
	noBody := s.isHead || h.Status == 204 || h.Status == 304
	if end && h.ContentLength > 0 && !noBody {
		return ErrLength
	}
	mark := len(c.out)
	c.beginBlock()
	size, err := c.appendResponse(h, s)
	if err == nil && size > c.peerMaxHeadSize {
		err = ErrHeadSize
	}
	if err != nil {
		c.out = c.out[:mark]
		return err
	}
	c.endBlock(mark, id, end)
	if h.Status < 200 {
		return nil
	}
	s.headSent = true
	switch {
	case noBody:
		s.toSend = 0
	case !s.isConnect:
		s.toSend = h.ContentLength
	}
	c.weEnd(s, end)
	return nil
}

func (c *Conn) weEnd(s *stream, end bool) {
	c.idle = 0
	if end {
		s.weEnded = true
		c.finish(s)
	}
}

// WriteData sends the first n bytes of p: what the windows and MaxOutBytes allow. With n < len(p) a
// Writable event follows. end counts only when all of p was taken.
func (c *Conn) WriteData(id uint32, p []byte, end bool) (n int, err error) {
	s := c.streams[id]
	switch {
	case c.ended():
		return 0, ErrConn
	case s == nil || s.weEnded:
		return 0, ErrStream
	case c.server && !s.headSent:
		return 0, ErrOrder
	case s.toSend >= 0 && (int64(len(p)) > s.toSend || end && int64(len(p)) < s.toSend):
		return 0, ErrLength
	}
	for len(p) > 0 {
		k := int(min(int64(len(p)), int64(c.peerMaxFrame), s.sendWindow, c.sendWindow))
		if k <= 0 || c.full() {
			s.waiting = true
			if !s.queued {
				s.queued = true
				c.waiting = append(c.waiting, id)
			}
			break
		}
		flags := uint8(0)
		if end && k == len(p) {
			flags = flagEndStream
		}
		c.frame(k, frameData, flags, id)
		c.out = append(c.out, p[:k]...)
		p = p[k:]
		n += k
		s.sendWindow -= int64(k)
		c.sendWindow -= int64(k)
	}
	if s.toSend >= 0 {
		s.toSend -= int64(n)
	}
	if n == 0 && len(p) == 0 && end {
		c.frame(0, frameData, flagEndStream, id)
	}
	if n > 0 {
		c.idle = 0
	}
	if end && len(p) == 0 {
		c.weEnd(s, true)
	}
	return n, nil
}

// WriteTrailers ends the stream with trailers, after all of its body was taken.
func (c *Conn) WriteTrailers(id uint32, f []message.Field) error {
	s := c.streams[id]
	switch {
	case c.ended():
		return ErrConn
	case s == nil || s.weEnded:
		return ErrStream
	case c.server && !s.headSent:
		return ErrOrder
	case s.toSend > 0:
		return ErrLength
	}
	mark := len(c.out)
	c.beginBlock()
	size, err := c.appendFields(f, true)
	if err == nil && size > c.peerMaxHeadSize {
		err = ErrHeadSize
	}
	if err != nil {
		c.out = c.out[:mark]
		return err
	}
	if len(c.out) == mark+headerSize {
		// All were dropped: an empty block would be legal, and is not understood everywhere.
		c.out = c.out[:mark]
		c.frame(0, frameData, flagEndStream, id)
	} else {
		c.endBlock(mark, id, true)
	}
	c.weEnd(s, true)
	return nil
}

// Reset ends a stream at once in both directions. No more events of it follow. A server that has sent a
// whole response and does not want the rest of the request uses NoError (RFC 9113 §8.1).
func (c *Conn) Reset(id uint32, code ErrCode) {
	s := c.streams[id]
	if s == nil || c.ended() {
		return
	}
	c.reset(id, code)
	c.remember(id)
	c.remove(s)
}

// GoAway ends the connection: after what Out holds, close.
func (c *Conn) GoAway(code ErrCode) {
	if !c.ended() {
		c.goAway(c.lastPeer, code, "")
		c.closing = true
	}
}

// Shutdown is graceful: streams that are open go on, the peer is told to open no more. A client may have
// opened streams before it hears that; they are served, until it has answered a PING (RFC 9113 §6.8).
func (c *Conn) Shutdown() {
	if c.ended() || c.draining {
		return
	}
	c.draining = true
	if !c.server {
		c.goAway(0, NoError, "")
		return
	}
	c.goAway(maxStreamID, NoError, "")
	c.frame(8, framePing, 0, 0)
	c.out = append(c.out, shutdownData...)
	c.shutdownPing = true
}

func (c *Conn) lastGoAway() { c.goAway(c.lastPeer, NoError, "") }

// Ping sends a PING frame; a Ping event brings the answer.
func (c *Conn) Ping(data [8]byte) {
	if !c.ended() {
		c.frame(8, framePing, 0, 0)
		c.out = append(c.out, data[:]...)
	}
}

// beginBlock leaves room for a frame header and says once that the encoder uses no dynamic table
// (RFC 7541 §6.3), whatever size the peer would allow.
func (c *Conn) beginBlock() {
	c.frame(0, frameHeaders, 0, 0)
	if !c.tableUpdate {
		c.out = append(c.out, 0x20)
	}
}

// endBlock makes frames of a header block that stands in out after the room at mark.
func (c *Conn) endBlock(mark int, id uint32, end bool) {
	c.tableUpdate = true
	flags := uint8(0)
	if end {
		flags = flagEndStream
	}
	size := len(c.out) - mark - headerSize
	if size <= c.peerMaxFrame {
		c.patch(mark, size, frameHeaders, flags|flagEndHeaders, id)
		return
	}
	rest := append([]byte(nil), c.out[mark+headerSize+c.peerMaxFrame:]...)
	c.out = c.out[:mark+headerSize+c.peerMaxFrame]
	c.patch(mark, c.peerMaxFrame, frameHeaders, flags, id)
	for len(rest) > 0 {
		k := min(len(rest), c.peerMaxFrame)
		flags = 0
		if k == len(rest) {
			flags = flagEndHeaders
		}
		c.frame(k, frameContinuation, flags, id)
		c.out = append(c.out, rest[:k]...)
		rest = rest[k:]
	}
}

func (c *Conn) patch(at, size int, kind frameType, flags uint8, id uint32) {
	b := c.out[at : at+headerSize]
	b[0], b[1], b[2], b[3], b[4] = byte(size>>16), byte(size>>8), byte(size), byte(kind), flags
	b[5], b[6], b[7], b[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
}

// appendRequest writes the fields of a request and returns their uncompressed size.
func (c *Conn) appendRequest(h *message.Head) (int64, error) {
	if !message.ValidToken(h.Method) {
		return 0, ErrHead
	}
	connect := string(h.Method) == "CONNECT"
	authority, port := message.ValidAuthority(h.Authority)
	switch {
	case len(h.Upgrade) > 0 && (!connect || !c.peerConnect || !authority || !message.ValidToken(h.Upgrade)):
		return 0, ErrHead
	case connect && len(h.Upgrade) == 0:
		if !authority || !port {
			return 0, ErrHead
		}
	case len(h.Path) == 0 || !message.ValidTarget(h.Path) ||
		h.Path[0] != '/' && (string(h.Path) != "*" || string(h.Method) != "OPTIONS") ||
		len(h.Authority) > 0 && !authority:
		return 0, ErrHead
	}
	size := int64(4*32 + 40 + len(h.Method) + len(h.Authority) + len(h.Path))
	switch string(h.Method) {
	case "GET":
		c.out = append(c.out, 0x80|2)
	case "POST":
		c.out = append(c.out, 0x80|3)
	default:
		c.literal(2, h.Method)
	}
	if !connect || len(h.Upgrade) > 0 {
		switch string(h.Scheme) {
		case "http", "":
			c.out = append(c.out, 0x80|6)
		case "https":
			c.out = append(c.out, 0x80|7)
		default:
			return 0, ErrHead
		}
		if len(h.Path) == 1 && h.Path[0] == '/' {
			c.out = append(c.out, 0x80|4)
		} else {
			c.literal(4, h.Path)
		}
	}
	if len(h.Authority) > 0 {
		c.literal(1, h.Authority)
	}
	if len(h.Upgrade) > 0 {
		c.named(protocolName, h.Upgrade)
	}
	if h.ContentLength >= 0 && !connect {
		c.length(h.ContentLength)
	}
	n, err := c.appendFields(h.Fields, false)
	return size + n, err
}

// appendResponse writes the fields of a response and returns their uncompressed size.
func (c *Conn) appendResponse(h *message.Head, s *stream) (int64, error) {
	c.out = appendStatus(c.out, h.Status)
	// RFC 9113 §8.1.1 allows a length with 304, and clients are met that wait for as much.
	if h.ContentLength >= 0 && h.Status >= 200 && h.Status != 204 && h.Status != 304 && !(s.isConnect && h.Status < 300) {
		c.length(h.ContentLength)
	}
	n, err := c.appendFields(h.Fields, false)
	return n + 42 + 64, err
}

func (c *Conn) length(n int64) {
	var digits [20]byte
	c.literal(28, strconv.AppendInt(digits[:0], n, 10))
}

// appendFields writes end-to-end fields and returns their uncompressed size. What belongs to a hop, or was
// written from the head already, is left out.
func (c *Conn) appendFields(fields []message.Field, trailer bool) (size int64, err error) {
	for i := range fields {
		f := &fields[i]
		switch string(f.Name) {
		case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host",
			"content-length", "http2-settings":
			continue
		case "te":
			if trailer || !message.Fold(f.Value, "trailers") {
				continue
			}
		case "trailer":
			if trailer {
				continue
			}
		}
		value := message.Trim(f.Value)
		if !message.ValidName(f.Name) || !message.ValidValue(value) {
			return 0, ErrField
		}
		size += int64(len(f.Name) + len(value) + 32)
		if index := staticName(f.Name); index > 0 {
			c.literal(index, value)
		} else {
			c.named(f.Name, value)
		}
	}
	return size, nil
}
