package handoff

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// proxy is a Handler that keeps what it gets and reports it.
type proxy struct {
	held   map[Socket]int
	events chan string
}

func newProxy() *proxy { return &proxy{held: map[Socket]int{}, events: make(chan string, 64)} }

func (p *proxy) Held() map[Socket]int { return p.held }
func (p *proxy) Maps(origins, heartbeat int) {
	unix.Close(origins)
	unix.Close(heartbeat)
	p.events <- "maps"
}

func (p *proxy) AddSocket(s Socket, fd int) {
	if old, ok := p.held[s]; ok {
		unix.Close(fd)
		p.events <- "again " + s.Key()
		_ = old
		return
	}
	p.held[s] = fd
	p.events <- "add " + s.Key()
}

func (p *proxy) RemoveSocket(s Socket) {
	unix.Close(p.held[s])
	delete(p.held, s)
	p.events <- "remove " + s.Key()
}
func (p *proxy) AddWorkload(w Workload)    { p.events <- "workload " + w.Name.String() }
func (p *proxy) RemoveWorkload(w Workload) { p.events <- "no workload " + w.Name.String() }
func (p *proxy) Synced()                   { p.events <- "synced" }

func (p *proxy) want(t *testing.T, events ...string) {
	t.Helper()
	for _, want := range events {
		if got := <-p.events; got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
}

func serve(t *testing.T, path string, takeBack func(Socket, int) bool) (*Server, context.CancelFunc) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ServerConfig{
		Path: path, ProxyUID: 65532, Origins: int(null.Fd()), Heartbeat: int(null.Fd()),
		TakeBack: takeBack, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		null.Close()
	}
	return s, stop
}

func listenerFD(t *testing.T) (int, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return fd, l.Addr().(*net.TCPAddr).AddrPort()
}

// TestListenerOutlivesTheAgent hands a listening socket over, loses the agent,
// and lets a second agent take it back from the proxy and hand it to a third
// party: clients can connect all the time.
func TestListenerOutlivesTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "handoff.sock")
	fd, addr := listenerFD(t)
	sock := Socket{Type: SocketOutbound, Protocol: mesh.ProtocolTCP, Workload: 7, Name: mesh.Name{Namespace: "shop", Name: "web"}, Address: addr}

	first, stopFirst := serve(t, path, func(Socket, int) bool { t.Error("an empty proxy gave a socket back"); return false })
	first.AddWorkload(Workload{Index: 7, Name: sock.Name})
	first.AddSocket(sock, fd)

	p := newProxy()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- (&Client{Path: path, Handler: p, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
	}()
	p.want(t, "maps", "workload shop/web", "add "+sock.Key(), "synced")

	stopFirst()
	unix.Close(fd)
	dial(t, addr)

	back := make(chan int, 1)
	second, stopSecond := serve(t, path, func(s Socket, fd int) bool {
		if s != sock {
			t.Errorf("got %+v back, want %+v", s, sock)
		}
		back <- fd
		return true
	})
	defer stopSecond()
	fd = <-back
	defer unix.Close(fd)
	p.want(t, "maps", "synced")
	second.AddSocket(sock, fd)
	p.want(t, "again "+sock.Key())
	dial(t, addr)

	second.RemoveSocket(sock)
	p.want(t, "remove "+sock.Key())
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUnwantedSocketIsClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "handoff.sock")
	fd, addr := listenerFD(t)
	sock := Socket{Type: SocketGateway, Protocol: mesh.ProtocolTCP, Listener: "gateway/shop/web/80", Address: addr}
	p := newProxy()
	p.held[sock] = fd
	_, stop := serve(t, path, func(_ Socket, fd int) bool { unix.Close(fd); return false })
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go (&Client{Path: path, Handler: p, Logger: slog.New(slog.DiscardHandler)}).Run(ctx)
	p.want(t, "maps", "remove "+sock.Key(), "synced")
	if c, err := net.Dial("tcp", addr.String()); err == nil {
		c.Close()
		t.Fatal("the unwanted listener still accepts")
	}
}

func dial(t *testing.T, addr netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatalf("the listener did not outlive its maker: %v", err)
	}
	c.Close()
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"synced"}`))
	f.Add([]byte(`{"kind":"add-socket","socket":{"type":"gateway","address":"10.0.0.1:80"}}`))
	f.Add([]byte(`{"kind":"add-workload","workload":{"index":1,"name":{"Namespace":"a","Name":"b"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		switch m.Kind {
		case kindAddSocket, kindRemoveSocket, kindHave:
			if m.Socket == nil {
				t.Fatalf("%s without a socket was accepted", m.Kind)
			}
		case kindAddWorkload, kindRemoveWorkload:
			if m.Workload == nil || m.Workload.Index == 0 {
				t.Fatalf("%s without a workload was accepted", m.Kind)
			}
		}
	})
}
