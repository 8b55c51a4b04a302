package l7proxy

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"errors"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// A switch of protocols is Upgrade and 101 in HTTP/1.1 (RFC 9110 §7.8), extended
// CONNECT and 2xx in HTTP/2 (RFC 8441). Inside of an exchange it has one form: a GET
// with Head.Upgrade. Between two HTTP/1.1 connections it becomes a tunnel (upgrade);
// where one side at least is a stream, the exchange itself carries the bytes
// (switched): those of the client as its request's body, those of the endpoint as its
// response's.

var (
	methodGET          = []byte("GET")
	methodCONNECT      = []byte("CONNECT")
	protocolWebSocket  = "websocket"
	fieldSocketKey     = []byte("sec-websocket-key")
	fieldSocketAccept  = []byte("sec-websocket-accept")
	webSocketGUID      = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455 §1.3
	errNoSwitch        = errors.New("the endpoint answered well and did not switch protocols")
	errOtherSwitch     = errors.New("the endpoint switched to another protocol than it was asked to")
	errSocketAccept    = errors.New("sec-websocket-accept does not answer the key")
	errExtendedConnect = errors.New("the endpoint does not offer extended CONNECT")
)

// webSocket is the opening handshake of an exchange whose two sides have different
// forms of it: only HTTP/1.1 proves that the answer was meant (RFC 8441 §5).
type webSocket struct {
	key    [24]byte // the proxy's own, for an endpoint that speaks HTTP/1.1
	accept [28]byte // what a client that speaks HTTP/1.1 expects
}

// socketAccept answers a Sec-WebSocket-Key (RFC 6455 §4.2.2).
func socketAccept(key []byte) (out [28]byte) {
	sum := sha1.Sum(append(append(make([]byte, 0, 80), key...), webSocketGUID...))
	base64.StdEncoding.Encode(out[:], sum[:])
	return out
}

// prepareSwitch decides which form a request to switch protocols takes towards the
// endpoint. It reports false when it has refused the request.
func (x *exchange) prepareSwitch() bool {
	// An HTTP/1.1 request may have a body before the switch, and a choice of protocols;
	// extended CONNECT has room for neither.
	x.switchH2 = x.cluster.Protocol == mesh.AppProtocolHTTP2 && message.ValidToken(x.head.Upgrade) && (x.holding || x.head.End)
	if !x.holding && !x.switchH2 || !equalFold(x.head.Upgrade, protocolWebSocket) {
		return true
	}
	x.socket = &webSocket{}
	if !x.holding {
		key, ok := x.head.Get("sec-websocket-key")
		if raw, err := base64.StdEncoding.DecodeString(string(key)); !ok || err != nil || len(raw) != 16 {
			x.detail = "no proper sec-websocket-key"
			x.refuse(400, flow.ReasonDownstreamProtocol)
			return false
		}
		x.socket.accept = socketAccept(key)
	}
	x.head.Del("sec-websocket-key")
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	base64.StdEncoding.Encode(x.socket.key[:], nonce[:])
	return true
}

// accepted checks a 101 of an endpoint that speaks HTTP/1.1, and makes its answer the
// client's.
func (x *exchange) accepted(h *message.Head) error {
	if x.socket == nil && !x.holding {
		return nil // both ends see each other's handshake
	}
	if !message.Fold(h.Upgrade, string(lowered(x.head.Upgrade))) {
		return errOtherSwitch
	}
	if x.socket == nil {
		return nil
	}
	want := socketAccept(x.socket.key[:])
	if got, _ := h.Get("sec-websocket-accept"); string(got) != string(want[:]) {
		return errSocketAccept
	}
	h.Del("sec-websocket-accept")
	if !x.holding {
		h.Add(fieldSocketAccept, x.socket.accept[:])
	}
	return nil
}

func lowered(b []byte) []byte {
	out := cloneBytes(b)
	for i, c := range out {
		if 'A' <= c && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return out
}

// holdBody keeps what a stream sends before the endpoint has answered its question; its
// window bounds how much that is.
func (x *exchange) holdBody(p []byte) {
	had := cap(x.body)
	x.body = append(x.w.loop.Buffers.Grow(x.body, len(p)), p...)
	x.d.extra += cap(x.body) - had
}

// switched begins to carry the bytes of the new protocol. h is the endpoint's answer,
// which it changes into the form that the client's version has.
func (x *exchange) switched(h *message.Head) {
	l := x.w.loop
	x.moved = l.Now()
	l.StopTimer(&x.pause)
	l.StopTimer(&x.deadline)
	if x.span != nil {
		x.span.Answered(h.Status)
	}
	x.answered(h)
	x.recording, x.keeping = false, false
	x.responded, x.upgraded = true, true
	h.Close, h.End, h.ContentLength = false, false, -1
	h1, overH1 := x.down.(*h1down)
	if overH1 {
		h.Status, h.Upgrade = 101, x.head.Upgrade
		if x.socket != nil {
			h.Del("sec-websocket-accept")
			h.Add(fieldSocketAccept, x.socket.accept[:])
		}
	} else {
		h.Status, h.Upgrade = 200, nil
	}
	x.status = h.Status
	x.rewriteResponse(h)
	if overH1 {
		x.head.End, x.reqEnded = false, false
		h1.respond(h)
		h1.switchOver()
	} else {
		x.down.respond(h)
	}
	x.holding = false
	if len(x.body) > 0 && x.up != nil {
		x.bodySent = true
		x.up.data(x.body)
	}
	x.dropBody()
	if x.reqEnded && x.up != nil {
		x.up.end(nil)
	}
	x.down.wake()
}

// switchOver makes what follows on the connection the new protocol's.
func (h *h1down) switchOver() {
	h.parser.Upgrade()
	h.reading, h.last = true, true
}
