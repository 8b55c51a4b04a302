package flow

import (
	"encoding/hex"
	"errors"
)

// TraceID identifies a trace; zero is none.
type TraceID [16]byte

// IsZero reports whether there is no trace.
func (t TraceID) IsZero() bool { return t == TraceID{} }

// String returns 32 hexadecimal digits.
func (t TraceID) String() string { return hex.EncodeToString(t[:]) }

// AppendText appends 32 hexadecimal digits.
func (t TraceID) AppendText(b []byte) ([]byte, error) { return hex.AppendEncode(b, t[:]), nil }

// MarshalText returns 32 hexadecimal digits.
func (t TraceID) MarshalText() ([]byte, error) { return t.AppendText(nil) }

var errTraceID = errors.New("want the 32 hexadecimal digits of a trace")

// UnmarshalText parses 32 hexadecimal digits.
func (t *TraceID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(t) {
		return errTraceID
	}
	var out TraceID
	if _, err := hex.Decode(out[:], b); err != nil {
		return errTraceID
	}
	*t = out
	return nil
}
