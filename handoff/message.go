package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// maxMessageBytes bounds one message; the largest is a Socket with long names.
const maxMessageBytes = 4096

// SocketType says what a handed-over socket takes.
type SocketType string

// The types of socket.
const (
	SocketOutbound SocketType = "outbound" // TCP, a workload's steered connections
	SocketInbound  SocketType = "inbound"  // TCP, connections to a workload's own ports
	SocketGateway  SocketType = "gateway"  // TCP, one address and port of a Gateway
	SocketDNS      SocketType = "dns"      // TCP or UDP, a workload's DNS queries
)

// Socket describes a socket that travels with its message.
type Socket struct {
	Type     SocketType         `json:"type"`
	Protocol mesh.Protocol      `json:"protocol"`
	Workload mesh.WorkloadIndex `json:"workload,omitempty"`
	Name     mesh.Name          `json:"name,omitempty"` // the workload's or the Gateway's
	// Listener is the mesh.Listener's name; gateways only.
	Listener string `json:"listener,omitempty"`
	// Address is what clients dial: the workload's capture port, or the Gateway's
	// address and port (the socket itself is bound elsewhere then).
	Address netip.AddrPort `json:"address"`
}

// Key names the socket among those of the node.
func (s Socket) Key() string {
	return fmt.Sprintf("%s/%d/%d/%s", s.Type, s.Workload, s.Protocol, s.Address)
}

// Workload tells the proxy of a workload of its node.
type Workload struct {
	Index mesh.WorkloadIndex `json:"index"`
	Name  mesh.Name          `json:"name"`
	// Netns is the file name of its network namespace in the node's netns folder.
	Netns string `json:"netns"`
}

// kind is the kind of a message.
type kind string

const (
	kindOrigins        kind = "origins"         // agent: the map of original destinations
	kindHeartbeat      kind = "heartbeat"       // agent: the map of the proxy's heartbeat
	kindAddSocket      kind = "add-socket"      // agent: take this socket
	kindRemoveSocket   kind = "remove-socket"   // agent: close that socket
	kindAddWorkload    kind = "add-workload"    // agent
	kindRemoveWorkload kind = "remove-workload" // agent
	kindSynced         kind = "synced"          // agent: all that there was has been sent
	kindHave           kind = "have"            // proxy: I hold this socket
	kindHaveAll        kind = "have-all"        // proxy: that was all
)

type message struct {
	Kind     kind      `json:"kind"`
	Socket   *Socket   `json:"socket,omitempty"`
	Workload *Workload `json:"workload,omitempty"`
}

// wantsFD says whether a message of the kind carries a descriptor.
func (k kind) wantsFD() bool {
	switch k {
	case kindOrigins, kindHeartbeat, kindAddSocket, kindHave:
		return true
	}
	return false
}

// write sends a message, with fd unless it is negative.
func write(c *net.UnixConn, m message, fd int) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Kind, err)
	}
	if len(b) > maxMessageBytes {
		return fmt.Errorf("%s message of %d bytes is larger than %d", m.Kind, len(b), maxMessageBytes)
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	return nil
}

// errClosed says that the peer went away between messages.
var errClosed = errors.New("connection closed")

// read receives a message and its descriptor, -1 if it has none. The caller owns
// the descriptor.
func read(c *net.UnixConn) (message, int, error) {
	buf := make([]byte, maxMessageBytes+1)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return message{}, -1, fmt.Errorf("receive: %w", err)
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return message{}, -1, err
	}
	fd := -1
	if len(fds) > 0 {
		fd = fds[0]
		for _, extra := range fds[1:] {
			unix.Close(extra)
		}
	}
	fail := func(err error) (message, int, error) {
		if fd >= 0 {
			unix.Close(fd)
		}
		return message{}, -1, err
	}
	if n == 0 {
		return fail(errClosed)
	}
	if len(fds) > 1 || n > maxMessageBytes || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return fail(fmt.Errorf("malformed message: %d bytes, %d descriptors", n, len(fds)))
	}
	m, err := decode(buf[:n])
	if err != nil {
		return fail(err)
	}
	if m.Kind.wantsFD() != (fd >= 0) {
		return fail(fmt.Errorf("malformed message: %s with descriptor %d", m.Kind, fd))
	}
	return m, fd, nil
}

// decode parses a message strictly.
func decode(b []byte) (message, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return message{}, fmt.Errorf("malformed message: %w", err)
	}
	ok := true
	switch m.Kind {
	case kindAddSocket, kindRemoveSocket, kindHave:
		ok = m.Socket != nil && m.Socket.Address.IsValid()
	case kindAddWorkload, kindRemoveWorkload:
		ok = m.Workload != nil && m.Workload.Index != 0
	case kindOrigins, kindHeartbeat, kindSynced, kindHaveAll:
	default:
		return message{}, fmt.Errorf("malformed message: unknown kind %q", m.Kind)
	}
	if !ok {
		return message{}, fmt.Errorf("malformed message: %s lacks its object", m.Kind)
	}
	return m, nil
}

func rights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("malformed control message: %w", err)
	}
	var fds []int
	for i := range cmsgs {
		got, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			continue // not SCM_RIGHTS
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// PeerUID returns the user of the process at the other end.
func PeerUID(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, os.NewSyscallError("getsockopt SO_PEERCRED", credErr)
	}
	return cred.Uid, nil
}
