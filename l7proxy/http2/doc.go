// Package http2 is HTTP/2 as RFC 9113 has it, without any I/O: a Conn takes the bytes
// that a peer sent and gives events, takes messages and gives bytes to send.
//
// A Conn owns the state of one connection and of its streams: HPACK's table, flow control
// both ways, and the bytes that wait to be sent. It starts nothing and reads no clock (Tick
// stands for one); one goroutine at a time uses it. DATA is passed on as it arrives, a slice
// of the caller's bytes, and the peer may send more only when the application says Consumed,
// so that nothing is buffered here but header blocks.
//
// A mistake of the peer in one stream resets that stream, a mistake about the connection
// ends it with GOAWAY. What a peer can make a Conn hold is bounded by Config; what it can
// make it do for nothing (resets, pings, settings, empty frames, CONTINUATION) is counted and
// ended with ENHANCE_YOUR_CALM.
package http2
