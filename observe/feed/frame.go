package feed

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/sluice-mesh/sluice/observe/record"
)

const (
	magic       = "SLF1"
	headerBytes = len(magic) + 4
	// maxFrameBytes bounds a frame with its header. It holds the longest record, and
	// is below the default send buffer, so that a seqpacket socket takes it whole.
	maxFrameBytes = 64 << 10
)

// appendHeader begins a frame in dst; endFrame writes its length.
func appendHeader(dst []byte) []byte { return append(append(dst, magic...), 0, 0, 0, 0) }

func endFrame(frame []byte) {
	binary.LittleEndian.PutUint32(frame[len(magic):], uint32(len(frame)-headerBytes))
}

var errNoFrame = errors.New("flow feed: what came is no frame of flows")

// frameAt returns the records of the frame at the start of b and the frame's
// size; nil and zero if b holds only a part of it.
func frameAt(b []byte) (records []byte, size int, err error) {
	if len(b) < headerBytes {
		if magic[:min(len(b), len(magic))] != string(b[:min(len(b), len(magic))]) {
			return nil, 0, errNoFrame
		}
		return nil, 0, nil
	}
	if string(b[:len(magic)]) != magic {
		return nil, 0, errNoFrame
	}
	length := uint64(binary.LittleEndian.Uint32(b[len(magic):]))
	if length == 0 || length > maxFrameBytes-uint64(headerBytes) {
		return nil, 0, fmt.Errorf("%w: a length of %d bytes", errNoFrame, length)
	}
	size = headerBytes + int(length)
	if len(b) < size {
		return nil, 0, nil
	}
	return b[headerBytes:size], size, nil
}

// _ fails to compile if a record could be too long for a frame.
const _ = uint(maxFrameBytes - headerBytes - record.MaxBytes)
