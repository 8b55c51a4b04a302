package gatewayaddr

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/listen"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// bed is a node's namespace with a Table, and the other side's copies of sockets.
type bed struct {
	netns *netns.Namespace
	cfg   Config
	table *Table
	// proxy are duplicates of the sockets, as a proxy holds them.
	proxy map[netip.AddrPort]int
	// refuse is an error of OnAdd for one address.
	refuse map[netip.AddrPort]error
	calls  []string
}

func (b *bed) OnAdd(s Socket) error {
	if err := b.refuse[s.AddrPort]; err != nil {
		return err
	}
	b.calls = append(b.calls, fmt.Sprintf("add %s %s", s.Listener, s.AddrPort))
	if _, held := b.proxy[s.AddrPort]; !held {
		fd, err := unix.FcntlInt(uintptr(s.FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		b.proxy[s.AddrPort] = fd
	}
	return nil
}

func (b *bed) OnRemove(s Socket) {
	b.calls = append(b.calls, fmt.Sprintf("remove %s %s", s.Listener, s.AddrPort))
	if fd, held := b.proxy[s.AddrPort]; held {
		_ = unix.Close(fd)
	}
	delete(b.proxy, s.AddrPort)
}

// took returns the calls since the last took, sorted.
func (b *bed) took() []string {
	calls := b.calls
	b.calls = nil
	slices.Sort(calls)
	return calls
}

func newBed(t *testing.T) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "node")
	ns, err := netns.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{netns: ns, proxy: make(map[netip.AddrPort]int), refuse: make(map[netip.AddrPort]error)}
	b.cfg = Config{
		StateFile: filepath.Join(dir, "run", "gateways.json"), NodeNetns: ns, Hooks: b,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(func() {
		if b.table != nil {
			_ = b.table.Close()
		}
		for fd := range maps.Values(b.proxy) {
			_ = unix.Close(fd)
		}
		if err := errors.Join(ns.Close(), netns.Delete(path)); err != nil {
			t.Error(err)
		}
	})
	b.start(t)
	return b
}

func (b *bed) start(t *testing.T) {
	t.Helper()
	var err error
	if b.table, err = New(b.cfg); err != nil {
		t.Fatal(err)
	}
	if err := b.table.Restore(); err != nil {
		t.Fatal(err)
	}
}

func gateway(name string, port uint16, addrs ...string) *mesh.Listener {
	l := &mesh.Listener{Name: "gateway/shop/" + name, Type: mesh.ListenerGateway, Port: port}
	for _, addr := range addrs {
		l.Addresses = append(l.Addresses, netip.MustParseAddr(addr))
	}
	return l
}

func (b *bed) mustSet(t *testing.T, l *mesh.Listener) {
	t.Helper()
	if err := b.table.Set(l); err != nil {
		t.Fatal(err)
	}
}

// localRoutes lists the destinations of local routes that are the node's own.
func (b *bed) localRoutes(t *testing.T) []string {
	t.Helper()
	handle, err := netlink.NewHandleAt(vnetns.NsHandle(b.netns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if !r.Dst.IP.IsLoopback() && !r.Dst.IP.IsMulticast() {
				out = append(out, r.Dst.IP.String())
			}
		}
	}
	slices.Sort(out)
	return out
}

func equal(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func TestSetAndRemove(t *testing.T) {
	b := newBed(t)
	b.mustSet(t, gateway("web", 80, "10.90.0.1", "fd90::1"))
	b.mustSet(t, gateway("web-tls", 443, "10.90.0.1"))
	equal(t, "calls", b.took(),
		"add gateway/shop/web 10.90.0.1:80", "add gateway/shop/web [fd90::1]:80", "add gateway/shop/web-tls 10.90.0.1:443")
	equal(t, "routes", b.localRoutes(t), "10.90.0.1", "fd90::1")
	cookie, err := b.netns.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range b.table.Sockets() {
		id, err := listen.Identify(s.FD)
		if err != nil || id.NetnsCookie != cookie || id.AddrPort != s.Local || !s.Local.Addr().IsLoopback() ||
			id.Protocol != mesh.ProtocolTCP || s.Local.Addr().Is4() != s.AddrPort.Addr().Is4() {
			t.Errorf("%+v is %+v, %v", s, id, err)
		}
	}

	// Nothing differs: nothing happens.
	b.mustSet(t, gateway("web", 80, "fd90::1", "10.90.0.1"))
	equal(t, "calls", b.took())
	// Only what differs is touched; an address stays while another port has it.
	b.mustSet(t, gateway("web", 80, "fd90::1", "10.90.0.2"))
	equal(t, "calls", b.took(), "add gateway/shop/web 10.90.0.2:80", "remove gateway/shop/web 10.90.0.1:80")
	equal(t, "routes", b.localRoutes(t), "10.90.0.1", "10.90.0.2", "fd90::1")
	b.mustSet(t, gateway("web", 8080, "10.90.0.2"))
	equal(t, "calls", b.took(), "add gateway/shop/web 10.90.0.2:8080",
		"remove gateway/shop/web 10.90.0.2:80", "remove gateway/shop/web [fd90::1]:80")
	for _, name := range []string{"gateway/shop/web", "gateway/shop/web-tls", "gateway/shop/unknown"} {
		if err := b.table.Remove(name); err != nil {
			t.Error(err)
		}
	}
	equal(t, "calls", b.took(), "remove gateway/shop/web 10.90.0.2:8080", "remove gateway/shop/web-tls 10.90.0.1:443")
	equal(t, "routes", b.localRoutes(t))
	if left := b.table.Sockets(); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// TestPacketsArrive: with the route, a connection to the address reaches the namespace
// itself; without it, it goes nowhere.
func TestPacketsArrive(t *testing.T) {
	b := newBed(t)
	for _, addr := range []string{"10.90.0.1", "fd90::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(addr), 80)
		dial := func() error {
			return b.netns.Do(func() error {
				c, err := net.Dial("tcp", at.String())
				if err == nil {
					_ = c.Close()
				}
				return err
			})
		}
		if err := dial(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("before: %v", err)
		}
		b.mustSet(t, gateway("web", 80, addr))
		// No kernel program picks the socket here, so the answer is the namespace's own.
		if err := dial(); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("with the route: %v", err)
		}
		if err := b.table.Remove("gateway/shop/web"); err != nil {
			t.Fatal(err)
		}
		if err := dial(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("after: %v", err)
		}
	}
}

// TestAddressOfNode: an address that is local to the node already keeps its own route.
func TestAddressOfNode(t *testing.T) {
	b := newBed(t)
	handle, err := netlink.NewHandleAt(vnetns.NsHandle(b.netns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	lo, err := handle.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("10.90.0.9/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(handle.LinkSetUp(lo), handle.AddrAdd(lo, addr)); err != nil {
		t.Fatal(err)
	}
	b.mustSet(t, gateway("web", 80, "10.90.0.9"))
	if err := b.table.Remove("gateway/shop/web"); err != nil {
		t.Fatal(err)
	}
	equal(t, "routes", b.localRoutes(t), "10.90.0.9")
}

func TestRefusals(t *testing.T) {
	b := newBed(t)
	b.mustSet(t, gateway("first", 80, "10.90.0.1"))
	b.took()
	for _, test := range []struct {
		l    *mesh.Listener
		want string
	}{
		{&mesh.Listener{Name: "service/shop/web/80", Type: mesh.ListenerService, Port: 80}, "not a gateway"},
		{gateway("web", 0, "10.90.0.2"), "port 0"},
		{gateway("web", 80, "127.0.0.1"), "not a global unicast"},
		{gateway("web", 80, "0.0.0.0"), "not a global unicast"},
		{gateway("web", 80, "255.255.255.255"), "not a global unicast"},
		{gateway("web", 80, "fe80::1"), "not a global unicast"},
		{gateway("web", 80, "ff02::1"), "not a global unicast"},
		{gateway("web", 80, "::ffff:10.90.0.2"), "not an IPv4 or IPv6"},
		{gateway("web", 80, "10.90.0.1"), "served by gateway/shop/first"},
	} {
		if err := b.table.Set(test.l); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %q", test.l.Addresses, err, test.want)
		}
		equal(t, "calls", b.took())
		equal(t, "routes", b.localRoutes(t), "10.90.0.1")
	}

	// One bad address does not keep the others from being served, and goes on when
	// what was in its way is gone.
	l := gateway("web", 80, "127.0.0.1", "10.90.0.2", "10.90.0.1", "10.90.0.3")
	at := netip.MustParseAddrPort("10.90.0.3:80")
	b.refuse[at] = errors.New("no room")
	if err := b.table.Set(l); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
	equal(t, "calls", b.took(), "add gateway/shop/web 10.90.0.2:80")
	equal(t, "routes", b.localRoutes(t), "10.90.0.1", "10.90.0.2")
	delete(b.refuse, at)
	l.Addresses = l.Addresses[1:]
	if err := b.table.Remove("gateway/shop/first"); err != nil {
		t.Fatal(err)
	}
	b.took()
	b.mustSet(t, l)
	equal(t, "calls", b.took(), "add gateway/shop/web 10.90.0.1:80", "add gateway/shop/web 10.90.0.3:80")
}

// TestRestart: sockets come back from the proxy with the connections that wait in
// them; routes stay throughout; what is no longer wanted goes.
func TestRestart(t *testing.T) {
	b := newBed(t)
	b.mustSet(t, gateway("web", 80, "10.90.0.1", "fd90::1"))
	b.mustSet(t, gateway("old", 80, "10.90.0.2"))
	b.mustSet(t, gateway("lost", 80, "10.90.0.4"))
	b.took()
	before := b.table.Sockets()
	var waiting net.Conn
	if err := b.netns.Do(func() (err error) {
		waiting, err = net.Dial("tcp", before[2].Local.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = waiting.Close() }()
	if err := b.table.Close(); err != nil {
		t.Fatal(err)
	}
	equal(t, "routes while away", b.localRoutes(t), "10.90.0.1", "10.90.0.2", "10.90.0.4", "fd90::1")

	b.start(t)
	// In another namespace, where one that is waited for was.
	path := filepath.Join(t.TempDir(), "other")
	other, err := netns.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(other.Close(), netns.Delete(path)) }()
	stray := -1
	if err := other.Do(func() (err error) {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		lo, err := handle.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := handle.LinkSetUp(lo); err != nil {
			return err
		}
		stray, err = listen.Open(mesh.ProtocolTCP, before[2].Local)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(stray) }()
	var back []int
	// The IPv6 socket and that of "lost" do not come back.
	for _, at := range []string{"10.90.0.1:80", "10.90.0.2:80"} {
		fd, err := unix.Dup(b.proxy[netip.MustParseAddrPort(at)])
		if err != nil {
			t.Fatal(err)
		}
		back = append(back, fd)
	}
	for _, at := range []string{"[fd90::1]:80", "10.90.0.4:80"} {
		_ = unix.Close(b.proxy[netip.MustParseAddrPort(at)])
		delete(b.proxy, netip.MustParseAddrPort(at))
	}
	if rest := b.table.Adopt(append([]int{stray}, back...)); !slices.Equal(rest, []int{stray}) {
		t.Errorf("not adopted: %v of %v and %d", rest, back, stray)
	}
	b.mustSet(t, gateway("web", 80, "10.90.0.1", "fd90::1"))
	equal(t, "calls", b.took(), "add gateway/shop/web 10.90.0.1:80", "add gateway/shop/web [fd90::1]:80")
	if err := b.table.Retain(func(name string) bool { return name == "gateway/shop/web" }); err != nil {
		t.Fatal(err)
	}
	equal(t, "calls", b.took(), "remove gateway/shop/lost 10.90.0.4:80", "remove gateway/shop/old 10.90.0.2:80")
	equal(t, "routes", b.localRoutes(t), "10.90.0.1", "fd90::1")
	sockets := b.table.Sockets()
	if len(sockets) != 2 || sockets[0].FD != back[0] || sockets[0].Local.Port() == 0 {
		t.Fatalf("sockets %+v", sockets)
	}
	for i := range before {
		s := &before[i]
		if s.AddrPort == sockets[0].AddrPort && s.Local != sockets[0].Local {
			t.Errorf("came back as %s, was %s", sockets[0].Local, s.Local)
		}
	}
	if _, err := unix.FcntlInt(uintptr(back[1]), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
		t.Error("the socket of a listener that is gone stays open")
	}

	// A third agent knows what the second had.
	if err := b.table.Close(); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	for _, fd := range b.proxy {
		dup, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		_ = b.table.Adopt([]int{dup})
	}
	if err := b.table.Retain(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	equal(t, "routes at the end", b.localRoutes(t))
}

// TestBacklogSurvives: a connection that no proxy has accepted yet is there after the
// agent was restarted.
func TestBacklogSurvives(t *testing.T) {
	b := newBed(t)
	b.mustSet(t, gateway("web", 80, "10.90.0.1"))
	s := b.table.Sockets()[0]
	var client net.Conn
	if err := b.netns.Do(func() (err error) {
		client, err = net.Dial("tcp", s.Local.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := b.table.Close(); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	back, err := unix.Dup(b.proxy[s.AddrPort])
	if err != nil {
		t.Fatal(err)
	}
	if rest := b.table.Adopt([]int{back}); len(rest) != 0 {
		t.Fatal("not adopted")
	}
	fd, _, err := unix.Accept(back)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
}

// TestJournal: the file does not grow with the number of changes, and a torn line at
// its end costs no more than what it said.
func TestJournal(t *testing.T) {
	b := newBed(t)
	b.mustSet(t, gateway("stays", 80, "10.90.0.1"))
	for i := range 500 {
		b.mustSet(t, gateway("moves", 80, fmt.Sprintf("10.90.1.%d", i%250+1)))
	}
	data, err := os.ReadFile(b.cfg.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(data, []byte("\n")); lines > 3*2+maxIdleLines {
		t.Errorf("%d lines for 2 sockets", lines)
	}
	if err := b.table.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.cfg.StateFile, append(data, `{"opened":{"listen`...), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	for at, fd := range b.proxy {
		dup, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		if rest := b.table.Adopt([]int{dup}); len(rest) != 0 {
			t.Errorf("%s not adopted", at)
		}
	}
	// The first change after a restart must not be appended to the torn line.
	b.mustSet(t, gateway("new", 80, "10.90.0.7"))
	open, err := (&journal{path: b.cfg.StateFile}).read()
	if err != nil || len(open) != 3 {
		t.Errorf("journal says %v, %v", open, err)
	}
}
