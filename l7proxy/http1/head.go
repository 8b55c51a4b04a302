package http1

import (
	"bytes"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// lower lowers and checks the octets of field names in one look.
var lower = message.LowerToken()

func authority(b []byte) bool {
	ok, _ := message.ValidAuthority(b)
	return ok
}

// requestLine splits a request line without changing it.
func (p *Parser) requestLine(line []byte) (method, target []byte, proto message.Proto, err error) {
	i := bytes.IndexByte(line, ' ')
	if i < 0 || !message.ValidToken(line[:i]) {
		return nil, nil, 0, p.fail(400, "malformed method")
	}
	method, rest := line[:i], line[i+1:]
	// The target has no space, so that the version follows the next one.
	i = bytes.IndexByte(rest, ' ')
	if i < 0 {
		return nil, nil, 0, p.fail(400, "request line without a version")
	}
	target, version := rest[:i], rest[i+1:]
	if !message.ValidTarget(target) || len(target) == 0 {
		return nil, nil, 0, p.fail(400, "malformed request target")
	}
	proto, ok := version1(version)
	if !ok {
		return nil, nil, 0, p.fail(400, "malformed version")
	}
	if proto == 0 {
		return nil, nil, 0, p.fail(505, "only HTTP/1 is spoken here")
	}
	return method, target, proto, nil
}

// version1 reads an HTTP-version. A higher minor version is understood as 1.1 (RFC 9110 §2.5);
// the result is zero for another major version.
func version1(b []byte) (proto message.Proto, ok bool) {
	if len(b) != 8 || string(b[:5]) != "HTTP/" || b[6] != '.' ||
		b[5] < '0' || b[5] > '9' || b[7] < '0' || b[7] > '9' {
		return 0, false
	}
	switch {
	case b[5] != '1':
		return 0, true
	case b[7] == '0':
		return message.HTTP10, true
	}
	return message.HTTP11, true
}

// statusLine reads a status line. A missing reason phrase may miss its space too, as many servers
// send it.
func (p *Parser) statusLine(line []byte) (proto message.Proto, status int, err error) {
	if len(line) < 12 || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return 0, 0, p.fail(502, "malformed status line")
	}
	proto, ok := version1(line[:8])
	n, isNumber := message.ParseNumber(line[9:12])
	if !ok || proto == 0 || !isNumber || n < 100 || !message.ValidValue(line[12:]) {
		return 0, 0, p.fail(502, "malformed status line")
	}
	return proto, int(n), nil
}

// facts are what the fields of a head say about its hop.
type facts struct {
	host, length, coding int // how often the field was there
	chunked              bool
	unknownCoding        bool
	close, keepAlive     bool
	upgrade              bool // Connection: upgrade
	upgradeTo, teValue   []byte
	expect               bool
	upgrades             int
	hostValue            []byte
}

// parseHead reads a complete head, the empty line included, whose lines p.lines knows.
func (p *Parser) parseHead(b []byte) error {
	h := &p.head
	h.Reset()
	p.trailers = p.trailers[:0]
	var target []byte
	var err error
	line := b[:p.lines[0]-2]
	if p.response {
		h.Proto, h.Status, err = p.statusLine(line)
	} else {
		h.Method, target, h.Proto, err = p.requestLine(line)
	}
	if err != nil {
		return err
	}
	var f facts
	if err := p.parseFields(b, &f); err != nil {
		return err
	}
	h.Close = f.close || h.Proto == message.HTTP10 && !f.keepAlive
	if f.coding > 0 {
		if f.length > 0 {
			return p.fail(400, "both content-length and transfer-encoding")
		}
		// RFC 9112 §6.1: the framing of an HTTP/1.0 message that says so is faulty.
		if h.Proto == message.HTTP10 {
			return p.fail(400, "transfer-encoding in HTTP/1.0")
		}
		if f.coding > 1 || !f.chunked {
			if f.unknownCoding && f.chunked {
				return p.fail(501, "unknown transfer-encoding")
			}
			return p.fail(400, "transfer-encoding other than chunked")
		}
	}
	if f.upgrade && h.Proto == message.HTTP11 {
		h.Upgrade = f.upgradeTo
	}
	if p.response {
		return p.frameResponse(&f)
	}
	return p.frameRequest(target, &f)
}

func (p *Parser) frameRequest(target []byte, f *facts) error {
	h := &p.head
	if f.host != 1 && (h.Proto != message.HTTP10 || f.host > 1) {
		return p.fail(400, "not exactly one host field")
	}
	// An empty Host stands for a target without authority.
	if len(f.hostValue) > 0 && !authority(f.hostValue) {
		return p.fail(400, "malformed host")
	}
	h.Authority = f.hostValue
	switch {
	case string(h.Method) == "CONNECT":
		if ok, port := message.ValidAuthority(target); !ok || !port {
			return p.fail(400, "malformed request target")
		}
		// RFC 9110 §9.3.6: what follows is the tunnel's, not a body.
		if f.coding > 0 || h.ContentLength > 0 {
			return p.fail(400, "content in a CONNECT request")
		}
		h.Authority = target
		h.Upgrade = nil
	case target[0] == '/':
		h.Path = target
	case len(target) == 1 && target[0] == '*':
		if string(h.Method) != "OPTIONS" {
			return p.fail(400, "malformed request target")
		}
		h.Path = target
	default:
		if !p.absoluteForm(target) {
			return p.fail(400, "malformed request target")
		}
	}
	p.final = true
	switch {
	case f.coding > 0:
		p.state, p.excess = inChunkLine, 0
	case h.ContentLength > 0:
		p.state, p.remaining = inFixed, h.ContentLength
	default:
		h.End = true
		p.state = atEnd
	}
	h.Expect100 = f.expect && !h.End
	return nil
}

// absoluteForm takes an absolute URI apart; its authority replaces Host (RFC 9112 §3.2.2).
func (p *Parser) absoluteForm(t []byte) bool {
	h := &p.head
	var skip int
	switch {
	case len(t) > 7 && message.Fold(t[:7], "http://"):
		skip = 7
	case len(t) > 8 && message.Fold(t[:8], "https://"):
		skip = 8
	default:
		return false
	}
	for i := range skip - 3 {
		t[i] |= 0x20
	}
	h.Scheme = t[: skip-3 : skip-3]
	end := skip
	for end < len(t) && t[end] != '/' && t[end] != '?' {
		end++
	}
	if !authority(t[skip:end]) {
		return false
	}
	if end < len(t) && t[end] == '/' {
		h.Authority, h.Path = t[skip:end:end], t[end:]
		return true
	}
	// The path is empty: the authority makes room for its slash by moving onto the last "/" of "://".
	copy(t[skip-1:], t[skip:end])
	h.Authority = t[skip-1 : end-1 : end-1]
	t[end-1] = '/'
	// RFC 9112 §3.2.4: the asterisk form is written so in absolute form.
	if end == len(t) && string(h.Method) == "OPTIONS" {
		t[end-1] = '*'
	}
	h.Path = t[end-1:]
	return true
}

func (p *Parser) frameResponse(f *facts) error {
	h := &p.head
	a := p.expected[p.next]
	p.final = h.Status >= 200 || h.Status == 101
	switch {
	case h.Status == 101:
		if len(h.Upgrade) == 0 {
			return p.fail(502, "101 without an upgrade field")
		}
		if f.coding > 0 || f.length > 0 {
			return p.fail(502, "content in a response that has none")
		}
		p.state = inTunnel
		p.next++
		return nil
	case a == askedConnect && h.Status >= 200 && h.Status < 300:
		// RFC 9110 §9.3.6: such fields are ignored here.
		h.Del("content-length")
		h.ContentLength = -1
		h.Upgrade = nil
		p.state = inTunnel
		p.next++
		return nil
	}
	if h.Status != 426 {
		h.Upgrade = nil
	}
	switch {
	case h.Status < 200 || h.Status == 204:
		if f.coding > 0 || h.ContentLength > 0 {
			return p.fail(502, "content in a response that has none")
		}
		if h.Status < 200 {
			if p.interims++; p.interims > maxInterim {
				return p.fail(502, "too many interim responses")
			}
			h.Close = false
		}
		h.Del("content-length")
		h.ContentLength = -1
		h.End = true
	case h.Status == 304 || a == askedHead:
		h.End = true
	case f.coding > 0:
		p.state, p.excess = inChunkLine, 0
		return nil
	case f.length > 0:
		if h.ContentLength > 0 {
			p.state, p.remaining = inFixed, h.ContentLength
			return nil
		}
		h.End = true
	default:
		h.Close = true
		p.state = inUntilClose
		return nil
	}
	p.state = atEnd
	return nil
}

// field takes one line apart: a name, made lower case in place, and a trimmed value.
func (p *Parser) field(line []byte) (name, value []byte, err error) {
	i := 0
	for ; i < len(line); i++ {
		c := lower[line[i]]
		if c == 0 {
			break
		}
		line[i] = c
	}
	if i == 0 || i == len(line) || line[i] != ':' {
		if i == 0 && (line[0] == ' ' || line[0] == '\t') {
			return nil, nil, p.fail(400, "folded field line")
		}
		return nil, nil, p.fail(400, "malformed field name")
	}
	value = message.Trim(line[i+1:])
	if !message.ValidValue(value) {
		return nil, nil, p.fail(400, "control character in a field value")
	}
	return line[:i:i], value, nil
}

// parseFields reads the field lines of a head into p.head.Fields and f.
func (p *Parser) parseFields(b []byte, f *facts) error {
	h := &p.head
	p.nominated = p.nominated[:0]
	start := p.lines[0]
	for _, end := range p.lines[1:] {
		name, value, err := p.field(b[start : end-2])
		if err != nil {
			return err
		}
		start = end
		switch string(name) {
		case "host":
			if !p.response {
				f.host++
				f.hostValue = value
				continue
			}
		case "content-length":
			n, ok := message.ParseNumber(value)
			if !ok {
				return p.fail(400, "malformed content-length")
			}
			if f.length++; f.length > 1 {
				if n != h.ContentLength {
					return p.fail(400, "different content-length fields")
				}
				continue
			}
			h.ContentLength = n
		case "transfer-encoding":
			f.coding++
			if message.Fold(value, "chunked") {
				f.chunked = true
			} else {
				p.otherCoding(value, f)
			}
			continue
		case "connection":
			if err := p.connection(value, f); err != nil {
				return err
			}
			continue
		case "keep-alive", "proxy-connection", "http2-settings":
			continue
		case "upgrade":
			if f.upgrades++; f.upgrades > 1 || !upgradeList(value) {
				return p.fail(400, "malformed upgrade")
			}
			// HTTP/2 is agreed on by ALPN or prior knowledge; relaying its upgrade would
			// open a tunnel past every rule of the proxy.
			if !names(value, "h2c") && !names(value, "h2") {
				f.upgradeTo = value
			}
			continue
		case "te":
			if trailersOnly := te(value); trailersOnly != nil && f.teValue == nil && !p.response {
				f.teValue = trailersOnly
				h.Fields = append(h.Fields, message.Field{Name: name, Value: trailersOnly})
			}
			continue
		case "expect":
			if !p.response {
				if h.Proto == message.HTTP10 {
					continue
				}
				if !message.Fold(value, "100-continue") {
					return p.fail(417, "unknown expectation")
				}
				f.expect = true
			}
		}
		h.Fields = append(h.Fields, message.Field{Name: name, Value: value})
	}
	for _, name := range p.nominated {
		switch string(name) {
		case "content-length", "host":
			return p.fail(400, "connection names a field of the message")
		case "te": // what is left of it is ours
		default:
			h.Del(string(name))
		}
	}
	return nil
}

// otherCoding notes a transfer-encoding that is not just "chunked".
func (p *Parser) otherCoding(value []byte, f *facts) {
	for len(value) > 0 {
		var item []byte
		item, value = element(value)
		switch {
		case message.Fold(item, "chunked"):
			if f.chunked {
				f.unknownCoding = false
				f.coding++
				f.chunked = false
				return
			}
			f.chunked = true
			f.coding++
		case len(item) > 0:
			f.unknownCoding = true
			f.chunked = false
		}
	}
}

// element takes the first item off a comma-separated list (RFC 9110 §5.6.1).
func element(list []byte) (item, rest []byte) {
	if i := bytes.IndexByte(list, ','); i >= 0 {
		return message.Trim(list[:i]), list[i+1:]
	}
	return message.Trim(list), nil
}

// names reports whether a list of tokens holds a lower-case name, in any case.
func names(list []byte, name string) bool {
	for len(list) > 0 {
		var item []byte
		if item, list = element(list); message.Fold(item, name) {
			return true
		}
	}
	return false
}

// upgradeList reports whether value is a list of protocols (RFC 9110 §7.8).
func upgradeList(value []byte) bool {
	some := false
	for len(value) > 0 {
		var item []byte
		if item, value = element(value); len(item) == 0 {
			continue
		}
		name, version, slash := bytes.Cut(item, []byte{'/'})
		if !message.ValidToken(name) || slash && !message.ValidToken(version) {
			return false
		}
		some = true
	}
	return some
}

// te returns the part of a TE value that means trailers, nil when there is none.
func te(value []byte) []byte {
	for len(value) > 0 {
		var item []byte
		if item, value = element(value); message.Fold(item, "trailers") {
			return item
		}
	}
	return nil
}

// connection reads the options of a Connection field. The fields that it names belong to this
// hop (RFC 9110 §7.6.1).
func (p *Parser) connection(value []byte, f *facts) error {
	for len(value) > 0 {
		var item []byte
		if item, value = element(value); len(item) == 0 {
			continue
		}
		for i, c := range item {
			if item[i] = lower[c]; item[i] == 0 {
				return p.fail(400, "malformed connection option")
			}
		}
		switch string(item) {
		case "close":
			f.close = true
		case "keep-alive":
			f.keepAlive = true
		case "upgrade":
			f.upgrade = true
		default:
			if len(p.nominated) == maxNominated {
				return p.fail(431, "too many connection options")
			}
			p.nominated = append(p.nominated, item)
		}
	}
	return nil
}

// parseTrailers reads a complete trailer section (RFC 9112 §7.1.2). A field that would have
// changed the framing, had it come in time, is refused; those of this hop, and those that
// say how to read the content, are dropped.
func (p *Parser) parseTrailers(b []byte) error {
	start := uint32(0)
	for _, end := range p.lines {
		name, value, err := p.field(b[start : end-2])
		if err != nil {
			return err
		}
		start = end
		switch string(name) {
		case "content-length", "transfer-encoding", "host", "trailer":
			return p.fail(400, "forbidden trailer field")
		case "connection", "keep-alive", "proxy-connection", "upgrade", "te", "expect", "http2-settings",
			"content-encoding", "content-type", "content-range":
			continue
		}
		p.trailers = append(p.trailers, message.Field{Name: name, Value: value})
	}
	return nil
}
