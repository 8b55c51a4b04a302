package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// A request is one SOCK_SEQPACKET message:
//
//	u32 tag (echoed), u8 family (4 or 6, perhaps with transparentBit), u8 count, then the
//	namespace's file name
//
// and its answer
//
//	u32 tag, u32 errno (0: the message carries count descriptors)
const (
	requestHeaderBytes = 6
	answerBytes        = 8
	maxNameBytes       = 255 // NAME_MAX
	// maxBatch bounds the descriptors of one answer; SCM_MAX_FD is 253.
	maxBatch = 64
)

// transparentBit asks for sockets that may be bound to any address.
const transparentBit = 0x80

type request struct {
	tag uint32
	v6  bool
	// transparent sockets may be bound to any address and carry the Maker's mark.
	transparent bool
	count       int
	netns       string
}

func (r request) append(b []byte) []byte {
	family := byte(4)
	if r.v6 {
		family = 6
	}
	if r.transparent {
		family |= transparentBit
	}
	b = binary.LittleEndian.AppendUint32(b, r.tag)
	b = append(b, family, byte(r.count))
	return append(b, r.netns...)
}

var errMalformed = errors.New("malformed message")

// parseRequest is strict: the name must be one element of a path.
func parseRequest(b []byte) (request, error) {
	if len(b) <= requestHeaderBytes || len(b) > requestHeaderBytes+maxNameBytes {
		return request{}, fmt.Errorf("%w: %d bytes", errMalformed, len(b))
	}
	family := b[4] &^ transparentBit
	r := request{tag: binary.LittleEndian.Uint32(b), v6: family == 6, transparent: b[4]&transparentBit != 0, count: int(b[5]), netns: string(b[requestHeaderBytes:])}
	if family != 4 && family != 6 {
		return request{}, fmt.Errorf("%w: family %d", errMalformed, b[4])
	}
	if r.count < 1 || r.count > maxBatch {
		return request{}, fmt.Errorf("%w: %d sockets", errMalformed, r.count)
	}
	if r.netns == "." || r.netns == ".." || strings.ContainsAny(r.netns, "/\x00") || !utf8.ValidString(r.netns) {
		return request{}, fmt.Errorf("%w: namespace %q", errMalformed, r.netns)
	}
	return r, nil
}

func appendAnswer(b []byte, tag uint32, errno unix.Errno) []byte {
	b = binary.LittleEndian.AppendUint32(b, tag)
	return binary.LittleEndian.AppendUint32(b, uint32(errno))
}

func parseAnswer(b []byte) (tag uint32, errno unix.Errno, err error) {
	if len(b) != answerBytes {
		return 0, 0, fmt.Errorf("%w: answer of %d bytes", errMalformed, len(b))
	}
	return binary.LittleEndian.Uint32(b), unix.Errno(binary.LittleEndian.Uint32(b[4:])), nil
}
