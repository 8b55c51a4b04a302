// Package http1 is HTTP/1.1 and HTTP/1.0 as RFC 9112 has it, without any I/O:
// a Parser turns the bytes of one direction of one connection into events, a
// Writer turns heads and body bytes into the bytes of one direction.
//
// It owns no buffers: what a Parser reports are slices of the caller's bytes, in
// which field names are made lower case in place. It starts nothing and reads no
// clock; a Parser or a Writer is used by one goroutine at a time. Everything that
// two implementations could read in two ways is refused with an *Error, after which
// the connection cannot be used: a proxy that forwards what it matched must not
// guess. What is written is checked by the same rules.
package http1
