package peercred

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func unixPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestPeerIsTheOtherProcess(t *testing.T) {
	client, server := unixPair(t)
	for _, conn := range []net.Conn{client, server} {
		p, err := Of(conn)
		if err != nil {
			t.Fatal(err)
		}
		if int(p.PID) != os.Getpid() || int(p.UID) != os.Geteuid() || int(p.GID) != os.Getegid() {
			t.Fatalf("peer %+v is not this process", p)
		}
	}
}

func TestRefusedPeerIsClosed(t *testing.T) {
	client, server := unixPair(t)
	refused := errors.New("not you")
	_, _, err := Credentials(func(Peer) error { return refused }).ServerHandshake(server)
	if !errors.Is(err, refused) {
		t.Fatalf("error %v, want %v", err, refused)
	}
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Fatal("the refused connection is still open")
	}
}

func TestOnlyUnixSockets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := Credentials(nil).ServerHandshake(conn); err == nil {
		t.Fatal("a TCP connection was accepted")
	}
}
