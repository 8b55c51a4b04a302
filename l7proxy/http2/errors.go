package http2

import (
	"errors"
	"strconv"
)

// ErrCode is an error code of RFC 9113 §7.
type ErrCode uint32

// The error codes.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String returns the name that RFC 9113 §7 gives.
func (e ErrCode) String() string {
	if int(e) < len(codeNames) {
		return codeNames[e]
	}
	return "0x" + strconv.FormatUint(uint64(e), 16)
}

// Error is why a Conn ended the connection: the peer broke a rule.
type Error struct {
	Code ErrCode
	Text string // constant, fit for a log
	Head bool   // because of a head that was too large
}

func (e *Error) Error() string { return e.Code.String() + ": " + e.Text }

// What the methods that send refuse.
var (
	// ErrStream: the stream is not open in our direction (any more). Its Reset event came or is coming.
	ErrStream = errors.New("stream is closed")
	// ErrConn: the connection has ended, or takes no more streams.
	ErrConn = errors.New("connection takes no more")
	// ErrLimit: the peer's limit of concurrent streams is reached; see CanOpen.
	ErrLimit = errors.New("too many streams")
	// ErrField: a field that HTTP/2 has no form for, or octets that would be read differently.
	ErrField = errors.New("field that cannot be sent")
	// ErrHead: a method, target or status that HTTP/2 has no form for.
	ErrHead = errors.New("head that cannot be sent")
	// ErrHeadSize: more fields than the peer wants.
	ErrHeadSize = errors.New("head larger than the peer accepts")
	// ErrOrder: body before the head, a second head.
	ErrOrder = errors.New("message out of order")
	// ErrLength: a body longer or shorter than its content-length.
	ErrLength = errors.New("body differs from its content-length")
)
