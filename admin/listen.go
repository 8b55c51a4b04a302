package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listen makes the admin socket of a process at path, mode 0600, for a process
// that hands it to another one: closing the listener leaves the file. It takes the
// place of a socket file on which nobody listens any more.
func Listen(path string) (*net.UnixListener, error) {
	l, err := listen(path)
	if err == nil {
		l.SetUnlinkOnClose(false)
	}
	return l, err
}

func listen(path string) (*net.UnixListener, error) {
	if err := removeDead(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the admin socket: %w", err)
	}
	// Whoever connects before this is refused by rootListener.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("make the admin socket private: %w", err)
	}
	return l, nil
}

// removeDead removes a socket file that no process listens on.
func removeDead(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the admin socket %s: %w", path, err)
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("admin socket %s: a file that is no socket is there; remove it or choose another run directory", path)
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("admin socket %s: another process listens on it; is Sluice running already?", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("look who listens on the admin socket %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the dead admin socket: %w", err)
	}
	return nil
}

// rootListener takes connections of root and of the process's own user only.
// The mode of the socket says the same; this holds even where a file's mode was
// changed by somebody's hand.
type rootListener struct {
	net.Listener
	logger *slog.Logger
}

func (l *rootListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(conn)
		if err == nil && (uid == 0 || uid == os.Geteuid()) {
			return conn, nil
		}
		l.logger.Warn("refused a client of the admin socket", "uid", uid, "error", err)
		_ = conn.Close()
	}
}

func peerUID(conn net.Conn) (int, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return -1, fmt.Errorf("a %T has no credentials", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return -1, err
	}
	if credErr != nil {
		return -1, fmt.Errorf("read the peer's credentials: %w", credErr)
	}
	return int(cred.Uid), nil
}
