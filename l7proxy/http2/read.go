package http2

import (
	"encoding/binary"
	"errors"

	"golang.org/x/net/http2/hpack"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// header is the header of a frame.
type header struct {
	length int
	kind   frameType
	flags  uint8
	stream uint32
}

// purpose is what a header block is for.
type purpose uint8

const (
	forNothing purpose = iota // decoded for HPACK's sake
	forRequest
	forResponse
	forTrailers
)

// block is a header block that is being received (RFC 9113 §4.3).
type block struct {
	open   bool
	stream uint32
	use    purpose
	code   ErrCode // forNothing: reset the stream with it, NoError: do not
	end    bool    // END_STREAM
	bytes  int     // compressed
	frames int
}

// fail ends the connection because of the peer.
func (c *Conn) fail(code ErrCode, text string) error {
	if c.err == nil {
		c.err = &Error{Code: code, Text: text}
		c.goAway(c.lastPeer, code, text)
	}
	return c.err
}

// failHead is fail because of a head too large to be answered with 431: HPACK's state is lost with it.
func (c *Conn) failHead(text string) error {
	err := c.fail(EnhanceYourCalm, text)
	var e *Error
	if errors.As(err, &e) {
		e.Head = true
	}
	return err
}

// Next takes n bytes off the front of buf, which holds all bytes that were not taken so far. Call it
// until NeedMore, also with an empty buf: Writable events may be due after Sent. An error is an *Error and
// stays: send what Out holds, a GOAWAY, and close.
func (c *Conn) Next(buf []byte) (n int, ev Event, err error) {
	for {
		if c.err != nil {
			return n, Event{}, c.err
		}
		if c.closing {
			return len(buf), Event{}, nil
		}
		if ev, ok := c.due(); ok {
			return n, ev, nil
		}
		in := buf[n:]
		switch c.phase {
		case inPreface:
			k := min(len(in), len(preface))
			if string(in[:k]) != preface[:k] {
				return n, Event{}, c.fail(ProtocolError, "no client preface")
			}
			if k < len(preface) {
				return n, Event{}, nil
			}
			n += k
			c.phase = inFrame

		case inFrame:
			if len(in) < headerSize {
				return n, Event{}, nil
			}
			h := header{
				length: int(in[0])<<16 | int(in[1])<<8 | int(in[2]),
				kind:   frameType(in[3]),
				flags:  in[4],
				stream: binary.BigEndian.Uint32(in[5:]) &^ (1 << 31),
			}
			if h.length > c.cfg.MaxFrameSize {
				return n, Event{}, c.fail(FrameSizeError, "frame larger than MAX_FRAME_SIZE")
			}
			if !c.sawSettings && (h.kind != frameSettings || h.flags&flagAck != 0) {
				return n, Event{}, c.fail(ProtocolError, "first frame is not SETTINGS")
			}
			if c.block.open && (h.kind != frameContinuation || h.stream != c.block.stream) {
				return n, Event{}, c.fail(ProtocolError, "frame inside of a header block")
			}
			switch {
			case h.kind == frameData:
				k, ev, err := c.dataFrame(h, in)
				if err != nil || k == 0 {
					return n, Event{}, err
				}
				n += k
				if ev.Kind != NeedMore {
					return n, ev, nil
				}
			case h.kind > frameContinuation:
				// RFC 9113 §5.5: unknown types are ignored, of any length.
				if err := c.useless(); err != nil {
					return n, Event{}, err
				}
				n += headerSize
				c.phase, c.skip = inSkip, h.length
			default:
				if len(in) < headerSize+h.length {
					return n, Event{}, nil
				}
				n += headerSize + h.length
				ev, err := c.wholeFrame(h, in[headerSize:headerSize+h.length])
				if err != nil || ev.Kind != NeedMore {
					return n, ev, err
				}
			}

		case inData:
			if len(in) == 0 {
				return n, Event{}, nil
			}
			k := min(len(in), c.dataLeft)
			n += k
			c.dataLeft -= k
			last := c.dataLeft == 0
			s := c.dataStream
			if last {
				c.phase, c.skip, c.dataStream = inSkip, c.dataPad, nil
			}
			if s == nil { // reset in the middle of the frame
				continue
			}
			ev := Event{Kind: Data, Stream: s.id, Data: in[:k], End: last && c.dataEnd}
			if ev.End {
				c.peerEnds(s)
			}
			return n, ev, nil

		case inSkip:
			k := min(len(in), c.skip)
			n += k
			if c.skip -= k; c.skip > 0 {
				return n, Event{}, nil
			}
			c.phase = inFrame
		}
	}
}

// due returns what does not depend on more input.
func (c *Conn) due() (Event, bool) {
	if len(c.events) > 0 {
		ev := c.events[0]
		if c.events = c.events[1:]; len(c.events) == 0 {
			c.events = nil
		}
		return ev, true
	}
	for c.wake > 0 {
		if c.sendWindow <= 0 || c.full() {
			c.wake = 0 // a WINDOW_UPDATE, or Sent, begins again
			break
		}
		c.wake--
		id := c.waiting[0]
		c.waiting = append(c.waiting[:0], c.waiting[1:]...)
		s := c.streams[id]
		if s == nil {
			continue
		}
		switch {
		case !s.waiting:
			s.queued = false
		case s.sendWindow <= 0:
			c.waiting = append(c.waiting, id)
		default:
			s.waiting, s.queued = false, false
			return Event{Kind: Writable, Stream: id}, true
		}
	}
	return Event{}, false
}

// useless counts a frame that brings nothing.
func (c *Conn) useless() error {
	if c.idle++; c.idle > c.cfg.MaxIdleFrames {
		return c.fail(EnhanceYourCalm, "too many frames without content")
	}
	return nil
}

// wasted counts a stream that the peer brought to nothing.
func (c *Conn) wasted() error {
	if !c.server {
		return nil
	}
	if c.resets++; c.resets > c.cfg.MaxResets {
		return c.fail(EnhanceYourCalm, "too many streams reset")
	}
	return nil
}

// streamError ends a stream because of the peer and returns the Reset event.
func (c *Conn) streamError(s *stream, code ErrCode, text string) (Event, error) {
	c.reset(s.id, code)
	c.remember(s.id)
	c.remove(s)
	return Event{Kind: Reset, Stream: s.id, Code: code, Text: text}, c.wasted()
}

// refused makes the event of a request that becomes no stream.
func (c *Conn) refused(id uint32, code ErrCode, text string) (Event, error) {
	if err := c.wasted(); err != nil {
		return Event{}, err
	}
	h := &c.head
	h.Reset()
	h.Proto = message.HTTP2
	for _, f := range c.fields {
		switch string(f.Name) {
		case ":method":
			if message.ValidToken(f.Value) {
				h.Method = f.Value
			}
		case ":authority":
			if ok, _ := message.ValidAuthority(f.Value); ok {
				h.Authority = f.Value
			}
		case ":path":
			if message.ValidTarget(f.Value) {
				h.Path = f.Value
			}
		}
	}
	return Event{Kind: Refused, Stream: id, Code: code, Text: text}, nil
}

// peerEnds closes the peer's half.
func (c *Conn) peerEnds(s *stream) {
	s.peerEnded = true
	c.finish(s)
}

// dataFrame begins a DATA frame (RFC 9113 §6.1): n is zero when more bytes are needed.
func (c *Conn) dataFrame(h header, in []byte) (n int, ev Event, err error) {
	n = headerSize
	overhead := 0
	if h.flags&flagPadded != 0 {
		if h.length == 0 {
			return 0, ev, c.fail(FrameSizeError, "DATA without its pad length")
		}
		if len(in) < headerSize+1 {
			return 0, ev, nil
		}
		n++
		if overhead = 1 + int(in[headerSize]); overhead > h.length {
			return 0, ev, c.fail(ProtocolError, "padding longer than its frame")
		}
	}
	size := h.length - overhead
	end := h.flags&flagEndStream != 0
	// Flow control counts the whole frame, whatever becomes of it (RFC 9113 §6.9.1).
	if int64(h.length) > c.recvWindow {
		return 0, ev, c.fail(FlowControlError, "DATA beyond the connection's window")
	}
	if c.idleStream(h.stream) && !c.late(h.stream) {
		return 0, ev, c.fail(ProtocolError, "DATA on an idle stream")
	}
	c.recvWindow -= int64(h.length)
	c.phase, c.skip = inSkip, h.length-(n-headerSize)
	s := c.streams[h.stream]
	if s == nil {
		if !c.late(h.stream) {
			return 0, ev, c.fail(StreamClosed, "DATA on a closed stream")
		}
		c.creditConn(int64(h.length))
		if size > 0 {
			return n, ev, nil // the stream's window bounds how much of it there is
		}
		return n, ev, c.useless()
	}
	if size == 0 && !end {
		if c.empty++; c.empty > maxEmptyData {
			return 0, ev, c.fail(EnhanceYourCalm, "too many empty DATA frames")
		}
	} else {
		c.empty, c.idle = 0, 0
	}
	code, text := NoError, ""
	switch {
	case s.peerEnded:
		code, text = StreamClosed, "DATA after the end of a stream"
	case int64(h.length) > s.recvWindow:
		code, text = FlowControlError, "DATA beyond the stream's window"
	case !c.server && !s.headSeen:
		code, text = ProtocolError, "DATA before a response"
	case s.toReceive >= 0 && (int64(size) > s.toReceive || end && int64(size) < s.toReceive):
		code, text = ProtocolError, "body differs from its content-length"
	}
	if code != NoError {
		c.creditConn(int64(h.length))
		ev, err = c.streamError(s, code, text)
		return n, ev, err
	}
	s.recvWindow -= int64(h.length)
	if s.toReceive >= 0 {
		s.toReceive -= int64(size)
	}
	if overhead > 0 {
		c.creditStream(s, int64(overhead))
		c.creditConn(int64(overhead))
	}
	if size == 0 {
		if end {
			c.peerEnds(s)
			ev = Event{Kind: Data, Stream: h.stream, End: true}
		}
		return n, ev, nil
	}
	s.held += int64(size)
	c.phase, c.dataLeft, c.dataEnd, c.dataStream = inData, size, end, s
	c.dataPad = max(overhead-1, 0)
	return n, ev, nil
}

// wholeFrame handles a frame other than DATA.
func (c *Conn) wholeFrame(h header, payload []byte) (Event, error) {
	switch h.kind {
	case frameHeaders:
		return c.headersFrame(h, payload)
	case frameContinuation:
		if !c.block.open {
			return Event{}, c.fail(ProtocolError, "CONTINUATION without HEADERS")
		}
		if c.block.frames++; c.block.frames > maxContinuations {
			return Event{}, c.fail(EnhanceYourCalm, "header block in too many pieces")
		}
		return c.fragment(payload, h.flags&flagEndHeaders != 0)
	case framePriority:
		return c.priorityFrame(h, payload)
	case frameRSTStream:
		return c.resetFrame(h, payload)
	case frameSettings:
		return c.settingsFrame(h, payload)
	case framePing:
		return c.pingFrame(h, payload)
	case frameGoAway:
		return c.goAwayFrame(h, payload)
	case frameWindowUpdate:
		return c.windowFrame(h, payload)
	}
	// A client cannot push, and a server was told not to.
	return Event{}, c.fail(ProtocolError, "PUSH_PROMISE is not allowed")
}

// headersFrame begins a header block (RFC 9113 §6.2).
func (c *Conn) headersFrame(h header, p []byte) (Event, error) {
	pad := 0
	if h.flags&flagPadded != 0 {
		if len(p) == 0 {
			return Event{}, c.fail(FrameSizeError, "HEADERS without its pad length")
		}
		pad, p = int(p[0]), p[1:]
	}
	selfDependent := false
	if h.flags&flagPriority != 0 {
		if len(p) < 5 {
			return Event{}, c.fail(FrameSizeError, "HEADERS without its priority")
		}
		selfDependent = binary.BigEndian.Uint32(p)&^(1<<31) == h.stream
		p = p[5:]
	}
	if pad > len(p) {
		return Event{}, c.fail(ProtocolError, "padding longer than its frame")
	}
	p = p[:len(p)-pad]
	if h.stream == 0 || h.stream&1 == 0 {
		return Event{}, c.fail(ProtocolError, "HEADERS on a stream that nobody can open")
	}
	b := block{open: true, stream: h.stream, end: h.flags&flagEndStream != 0, frames: 1}
	s := c.streams[h.stream]
	switch {
	case s != nil && s.peerEnded:
		b.code = StreamClosed
	case s != nil && selfDependent:
		b.code = ProtocolError
	case s != nil && !c.server && !s.headSeen:
		b.use = forResponse
	case s != nil:
		b.use = forTrailers
	case !c.idleStream(h.stream):
		if !c.late(h.stream) {
			return Event{}, c.fail(StreamClosed, "HEADERS on a closed stream")
		}
	case !c.server:
		return Event{}, c.fail(ProtocolError, "response to no request")
	case c.final:
		// The peer was told that this stream would not be looked at (RFC 9113 §6.8).
	default:
		c.lastPeer = h.stream
		switch {
		case selfDependent:
			b.code = ProtocolError
		case len(c.streams) >= c.cfg.MaxConcurrentStreams:
			b.code = RefusedStream
		default:
			b.use = forRequest
		}
	}
	c.block = b
	c.arena, c.fields, c.listSize, c.tooLarge = c.arena[:0], c.fields[:0], 0, false
	c.decoder.SetEmitEnabled(b.use != forNothing)
	return c.fragment(p, h.flags&flagEndHeaders != 0)
}

// fragment decodes a piece of a header block.
func (c *Conn) fragment(p []byte, last bool) (Event, error) {
	if c.block.bytes += len(p); c.block.bytes > c.cfg.MaxHeaderListBytes+c.cfg.MaxFrameSize {
		return Event{}, c.failHead("header block too large")
	}
	_, err := c.decoder.Write(p)
	if err == nil && last {
		err = c.decoder.Close()
	}
	if errors.Is(err, hpack.ErrStringLength) {
		return Event{}, c.failHead("field too large")
	}
	if err != nil {
		return Event{}, c.fail(CompressionError, "header block cannot be decoded")
	}
	if !last {
		return Event{}, nil
	}
	b := c.block
	c.block.open = false
	s := c.streams[b.stream]
	switch b.use {
	case forRequest:
		return c.request(b)
	case forResponse:
		if s != nil {
			return c.response(s, b)
		}
	case forTrailers:
		if s != nil {
			return c.trailersOf(s, b)
		}
	default:
		if s != nil {
			return c.streamError(s, b.code, "HEADERS that the stream has no place for")
		}
		if b.code != NoError {
			c.reset(b.stream, b.code)
			c.remember(b.stream)
			text := "stream that depends on itself"
			if b.code == RefusedStream {
				text = "too many concurrent streams"
			}
			return c.refused(b.stream, b.code, text)
		}
	}
	return Event{}, c.useless()
}

// emit is HPACK's callback: it copies a field out of the decoder's memory.
func (c *Conn) emit(f hpack.HeaderField) {
	c.listSize += len(f.Name) + len(f.Value) + 32 // RFC 9113 §6.5.2
	if c.listSize > c.cfg.MaxHeaderListBytes || len(c.fields) == c.cfg.MaxFields {
		c.tooLarge = true
		c.decoder.SetEmitEnabled(false)
		return
	}
	at := len(c.arena)
	c.arena = append(c.arena, f.Name...)
	mid := len(c.arena)
	c.arena = append(c.arena, f.Value...)
	c.fields = append(c.fields, field(c.arena[at:mid:mid], c.arena[mid:len(c.arena):len(c.arena)]))
}

// request makes a stream of a complete request head.
func (c *Conn) request(b block) (Event, error) {
	if c.tooLarge {
		// RFC 6585 §5, without troubling the application: it could not route it.
		mark := len(c.out)
		c.beginBlock()
		c.out = appendStatus(c.out, 431)
		c.endBlock(mark, b.stream, true)
		if !b.end {
			c.reset(b.stream, NoError)
			c.remember(b.stream)
		}
		return c.refused(b.stream, EnhanceYourCalm, "head larger than MAX_HEADER_LIST_SIZE, or too many fields")
	}
	if !c.parseRequest() || b.end && c.head.ContentLength > 0 {
		c.reset(b.stream, ProtocolError)
		c.remember(b.stream)
		return c.refused(b.stream, ProtocolError, "malformed request head")
	}
	c.idle = 0
	s := c.open(b.stream)
	s.peerEnded = b.end
	s.isHead = string(c.head.Method) == "HEAD"
	s.isConnect = string(c.head.Method) == "CONNECT"
	s.toReceive = c.head.ContentLength
	c.head.End = b.end
	c.head.Expect100 = c.head.Expect100 && !b.end
	return Event{Kind: Headers, Stream: b.stream, End: b.end}, nil
}

// response handles a complete response head.
func (c *Conn) response(s *stream, b block) (Event, error) {
	h := &c.head
	if c.tooLarge || !c.parseResponse() {
		return c.streamError(s, ProtocolError, "malformed or too large response head")
	}
	if h.Status < 200 {
		if s.interims++; b.end || s.interims > maxInterim {
			return c.streamError(s, ProtocolError, "too many interim responses, or nothing behind one")
		}
		h.End = true
		return Event{Kind: Headers, Stream: s.id}, nil
	}
	switch {
	case s.isConnect && h.Status < 300:
		h.Del("content-length")
		h.ContentLength = -1
	case s.isHead || h.Status == 204 || h.Status == 304:
		s.toReceive = 0
	default:
		s.toReceive = h.ContentLength
		if b.end && h.ContentLength > 0 {
			return c.streamError(s, ProtocolError, "body differs from its content-length")
		}
	}
	c.idle = 0
	s.headSeen = true
	h.End = b.end
	if b.end {
		c.peerEnds(s)
	}
	return Event{Kind: Headers, Stream: b.stream, End: b.end}, nil
}

// trailersOf handles a complete trailer section.
func (c *Conn) trailersOf(s *stream, b block) (Event, error) {
	if c.tooLarge || !b.end || s.toReceive > 0 || !c.parseTrailers() {
		return c.streamError(s, ProtocolError, "malformed, too large or too early trailers")
	}
	c.idle = 0
	c.peerEnds(s)
	return Event{Kind: Trailers, Stream: b.stream, End: true}, nil
}

// priorityFrame: RFC 9113 §6.3 deprecates priorities, not their form.
func (c *Conn) priorityFrame(h header, p []byte) (Event, error) {
	if h.stream == 0 {
		return Event{}, c.fail(ProtocolError, "PRIORITY without a stream")
	}
	if err := c.useless(); err != nil {
		return Event{}, err
	}
	code := NoError
	if len(p) != 5 {
		code = FrameSizeError
	} else if binary.BigEndian.Uint32(p)&^(1<<31) == h.stream {
		code = ProtocolError
	}
	if code == NoError {
		return Event{}, nil
	}
	if s := c.streams[h.stream]; s != nil {
		return c.streamError(s, code, "malformed PRIORITY")
	}
	// A stream that does not exist cannot be reset.
	return Event{}, c.fail(code, "malformed PRIORITY")
}

func (c *Conn) resetFrame(h header, p []byte) (Event, error) {
	if len(p) != 4 {
		return Event{}, c.fail(FrameSizeError, "RST_STREAM of a wrong size")
	}
	if c.idleStream(h.stream) && !c.late(h.stream) {
		return Event{}, c.fail(ProtocolError, "RST_STREAM on an idle stream")
	}
	s := c.streams[h.stream]
	if s == nil {
		return Event{}, c.useless()
	}
	c.remove(s)
	return Event{Kind: Reset, Stream: h.stream, Code: ErrCode(binary.BigEndian.Uint32(p))}, c.wasted()
}

// settingsFrame applies the peer's settings (RFC 9113 §6.5).
func (c *Conn) settingsFrame(h header, p []byte) (Event, error) {
	if h.stream != 0 {
		return Event{}, c.fail(ProtocolError, "SETTINGS on a stream")
	}
	if err := c.useless(); err != nil {
		return Event{}, err
	}
	if h.flags&flagAck != 0 {
		if len(p) != 0 {
			return Event{}, c.fail(FrameSizeError, "SETTINGS acknowledgement with content")
		}
		if less := defaultWindow - int64(c.cfg.InitialWindow); !c.acked && less > 0 {
			for _, s := range c.streams {
				s.recvWindow -= less
			}
		}
		c.acked = true
		return Event{}, nil
	}
	if len(p)%6 != 0 {
		return Event{}, c.fail(FrameSizeError, "SETTINGS of a wrong size")
	}
	if len(p) > 6*maxSettings {
		return Event{}, c.fail(EnhanceYourCalm, "too many settings")
	}
	if !c.sawSettings {
		c.sawSettings = true
		c.peerMaxStreams = maxStreamID
	}
	for ; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingEnablePush:
			if v > 1 || v == 1 && !c.server {
				return Event{}, c.fail(ProtocolError, "ENABLE_PUSH out of range")
			}
		case settingMaxConcurrent:
			c.peerMaxStreams = int(min(v, maxStreamID))
		case settingInitialWindow:
			if v > maxWindow {
				return Event{}, c.fail(FlowControlError, "INITIAL_WINDOW_SIZE out of range")
			}
			delta := int64(v) - c.peerWindow
			c.peerWindow = int64(v)
			for _, s := range c.streams {
				if s.sendWindow += delta; s.sendWindow > maxWindow {
					return Event{}, c.fail(FlowControlError, "window larger than 2^31-1")
				}
			}
			if delta > 0 {
				c.wake = len(c.waiting)
			}
		case settingMaxFrameSize:
			if v < minMaxFrame || v > maxMaxFrame {
				return Event{}, c.fail(ProtocolError, "MAX_FRAME_SIZE out of range")
			}
			c.peerMaxFrame = int(v)
		case settingMaxHeaderListSize:
			c.peerMaxHeadSize = int64(v)
		case settingEnableConnect:
			if v > 1 || v == 0 && c.peerConnect {
				return Event{}, c.fail(ProtocolError, "ENABLE_CONNECT_PROTOCOL out of range")
			}
			c.peerConnect = v == 1 && !c.server
		}
	}
	if err := c.answer(); err != nil {
		return Event{}, err
	}
	c.frame(0, frameSettings, flagAck, 0)
	return Event{Kind: Settings}, nil
}

// answer counts an acknowledgement before it is written.
func (c *Conn) answer() error {
	if c.acks++; c.acks > maxAcks {
		return c.fail(EnhanceYourCalm, "answers are not read")
	}
	return nil
}

func (c *Conn) pingFrame(h header, p []byte) (Event, error) {
	if h.stream != 0 {
		return Event{}, c.fail(ProtocolError, "PING on a stream")
	}
	if len(p) != 8 {
		return Event{}, c.fail(FrameSizeError, "PING of a wrong size")
	}
	if err := c.useless(); err != nil {
		return Event{}, err
	}
	if h.flags&flagAck == 0 {
		if err := c.answer(); err != nil {
			return Event{}, err
		}
		c.frame(8, framePing, flagAck, 0)
		c.out = append(c.out, p...)
		return Event{}, nil
	}
	if c.shutdownPing && string(p) == shutdownData {
		c.shutdownPing = false
		c.lastGoAway()
		return Event{}, nil
	}
	copy(c.pingData[:], p)
	return Event{Kind: Ping, Data: c.pingData[:]}, nil
}

// goAwayFrame: streams above the last one were not processed and may be tried elsewhere
// (RFC 9113 §6.8).
func (c *Conn) goAwayFrame(h header, p []byte) (Event, error) {
	if h.stream != 0 {
		return Event{}, c.fail(ProtocolError, "GOAWAY on a stream")
	}
	if len(p) < 8 {
		return Event{}, c.fail(FrameSizeError, "GOAWAY of a wrong size")
	}
	if err := c.useless(); err != nil {
		return Event{}, err
	}
	c.peerGoAway = true
	last := binary.BigEndian.Uint32(p) &^ (1 << 31)
	if !c.server {
		for id, s := range c.streams {
			if id > last {
				c.events = append(c.events, Event{Kind: Reset, Stream: id, Code: RefusedStream})
				c.remember(id)
				c.remove(s)
			}
		}
	}
	return Event{Kind: GoAway, Code: ErrCode(binary.BigEndian.Uint32(p[4:]))}, nil
}

func (c *Conn) windowFrame(h header, p []byte) (Event, error) {
	if len(p) != 4 {
		return Event{}, c.fail(FrameSizeError, "WINDOW_UPDATE of a wrong size")
	}
	if err := c.useless(); err != nil {
		return Event{}, err
	}
	n := int64(binary.BigEndian.Uint32(p) &^ (1 << 31))
	if h.stream == 0 {
		if n == 0 {
			return Event{}, c.fail(ProtocolError, "WINDOW_UPDATE of nothing")
		}
		if c.sendWindow += n; c.sendWindow > maxWindow {
			return Event{}, c.fail(FlowControlError, "window larger than 2^31-1")
		}
		c.wake = len(c.waiting)
		return Event{}, nil
	}
	if c.idleStream(h.stream) && !c.late(h.stream) {
		return Event{}, c.fail(ProtocolError, "WINDOW_UPDATE on an idle stream")
	}
	s := c.streams[h.stream]
	if s == nil {
		return Event{}, nil
	}
	if n == 0 {
		return c.streamError(s, ProtocolError, "WINDOW_UPDATE of nothing")
	}
	if s.sendWindow += n; s.sendWindow > maxWindow {
		return c.streamError(s, FlowControlError, "window larger than 2^31-1")
	}
	if s.waiting && s.sendWindow > 0 && c.sendWindow > 0 && !c.full() {
		s.waiting = false
		return Event{Kind: Writable, Stream: s.id}, nil
	}
	return Event{}, nil
}
