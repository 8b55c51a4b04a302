// Package peercred makes gRPC know who is at the other end of a unix socket.
//
// The kernel notes a process's user at connect() and listen(); nobody can claim
// another's. Connections over anything but a unix socket are refused.
package peercred

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Peer is the process that made the other end of a connection.
type Peer struct {
	credentials.CommonAuthInfo
	PID int32
	UID uint32
	GID uint32
}

// AuthType returns "unix".
func (Peer) AuthType() string { return "unix" }

// FromContext returns the peer of the call that a handler's context belongs to.
func FromContext(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	info, ok := p.AuthInfo.(Peer)
	return info, ok
}

// Of returns the peer of a unix connection.
func Of(conn net.Conn) (Peer, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("%T is not a unix connection", conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if optErr != nil {
		return Peer{}, fmt.Errorf("read SO_PEERCRED: %w", optErr)
	}
	return Peer{
		// Bytes in a unix socket pass through the kernel alone.
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		PID:            cred.Pid,
		UID:            cred.Uid,
		GID:            cred.Gid,
	}, nil
}

// Credentials returns transport credentials for both ends. accept decides about
// each peer; nil accepts everybody.
func Credentials(accept func(Peer) error) credentials.TransportCredentials {
	return transport{accept}
}

type transport struct{ accept func(Peer) error }

func (t transport) handshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	p, err := Of(conn)
	if err == nil && t.accept != nil {
		err = t.accept(p)
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, p, nil
}

func (t transport) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.handshake(conn)
}

func (t transport) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.handshake(conn)
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

func (transport) OverrideServerName(string) error { return nil }
