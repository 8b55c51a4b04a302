// Package gatewayaddr owns the addresses of Gateways on a node: the local routes
// that make the node's network namespace take their packets, and the sockets on
// which the node proxy takes their connections. The sockets are bound to loopback
// addresses; a kernel program (sk_lookup) picks one by the Gateway's address and port.
//
// The agent runs one Table. Routes and sockets outlive the agent: routes are known by
// their protocol number, and a journal says which socket is bound where. A listener that cannot be served leaves nothing behind, and the others are
// served.
package gatewayaddr

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/listen"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// Socket takes the connections of one address and port of a Gateway.
type Socket struct {
	// Listener is the mesh.Listener's name.
	Listener string         `json:"listener"`
	Protocol mesh.Protocol  `json:"protocol"`
	AddrPort netip.AddrPort `json:"address"`
	// Local is where the socket is bound.
	Local netip.AddrPort `json:"local"`
	// FD belongs to the Table, which closes it when the address and port are removed.
	FD int `json:"-"`
}

// Hooks are told about sockets by the goroutine that calls the Table, which they
// must not call themselves.
type Hooks interface {
	// OnAdd registers a socket with the kernel program and hands it to the proxy. It
	// runs again, for sockets that came back, after a restart of the agent. An error
	// closes the socket; OnRemove is not called then.
	OnAdd(s Socket) error
	// OnRemove forgets it before it is closed. It may be a socket of an earlier agent,
	// for which this one has not called OnAdd; FD is -1 if it did not come back.
	OnRemove(s Socket)
}

// Config says what a Table works with.
type Config struct {
	// StateFile is where the Table remembers its sockets, in the run folder.
	StateFile string
	// NodeNetns is the namespace to change, which must stay open until Close; nil means
	// that of the thread that calls New.
	NodeNetns *netns.Namespace
	Hooks     Hooks // nil: nobody is told
	Logger    *slog.Logger
}

// Table holds the Gateway addresses of the node. All methods may be called concurrently.
type Table struct {
	cfg      Config
	log      *slog.Logger
	ownNetns bool
	cookie   uint64
	link     *netlink.Handle
	lo       netlink.Link

	mu        sync.Mutex // guards all following fields
	listeners map[string]map[netip.AddrPort]*entry
	// servedBy says which listener has an address and port.
	servedBy map[mesh.Frontend]string
	addrs    map[netip.Addr]*address
	// awaited are the sockets of an earlier agent that did not come back, by where
	// they are bound.
	awaited map[netip.AddrPort]Socket
	journal journal
	closed  bool
}

type entry struct {
	socket Socket
	// active says that the address is routed and OnAdd has returned.
	active bool
	// restored says that an earlier agent's OnAdd has returned.
	restored bool
}

// address is a Gateway's address with the number of active sockets that it has.
type address struct {
	sockets int
	// routed says that the local route is the Table's. It is not where the address is
	// local to the node anyway.
	routed bool
}

// routeProtocol marks the Table's routes: a number without an owner in
// rtnetlink.h and in iproute2's list.
const routeProtocol = 0x5c

// New checks the configuration and makes the folder of the state file. It changes no
// route.
func New(cfg Config) (*Table, error) {
	if !filepath.IsAbs(cfg.StateFile) {
		return nil, fmt.Errorf("gateway addresses: state file %q is not an absolute path", cfg.StateFile)
	}
	if cfg.Logger == nil {
		return nil, errors.New("gateway addresses: no logger")
	}
	if err := os.MkdirAll(filepath.Dir(cfg.StateFile), 0o755); err != nil {
		return nil, fmt.Errorf("make folder of gateways' state file: %w", err)
	}
	t := &Table{
		cfg: cfg, log: cfg.Logger.With("component", "gatewayaddr"),
		listeners: make(map[string]map[netip.AddrPort]*entry),
		servedBy:  make(map[mesh.Frontend]string),
		addrs:     make(map[netip.Addr]*address),
		awaited:   make(map[netip.AddrPort]Socket),
		journal:   journal{path: cfg.StateFile},
	}
	var err error
	if t.cfg.NodeNetns == nil {
		if t.cfg.NodeNetns, err = netns.Current(); err != nil {
			return nil, err
		}
		t.ownNetns = true
	}
	if err := t.open(); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Table) open() (err error) {
	if t.cookie, err = t.cfg.NodeNetns.Cookie(); err != nil {
		return err
	}
	if t.link, err = netlink.NewHandleAt(vnetns.NsHandle(t.cfg.NodeNetns.FD()), unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink in the node's namespace: %w", err)
	}
	if t.lo, err = t.link.LinkByName("lo"); err != nil {
		return fmt.Errorf("find lo in the node's namespace: %w", err)
	}
	return nil
}

// Restore reads what an earlier agent left: its routes stay, its sockets are waited
// for (Adopt). Call it once, before Set; then Set all listeners and Retain them.
func (t *Table) Restore() error {
	sockets, err := t.journal.read()
	if err != nil {
		return err
	}
	routes, err := t.routes()
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range sockets {
		t.awaited[s.Local] = s
	}
	for _, addr := range routes {
		t.addrs[addr] = &address{routed: true}
	}
	return nil
}

// routes lists the addresses for which the Table's local routes are there.
func (t *Table) routes() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := t.link.RouteListFiltered(family,
			&netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: routeProtocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		for _, route := range routes {
			if addr, ok := netip.AddrFromSlice(route.Dst.IP); ok {
				out = append(out, addr.Unmap())
			}
		}
	}
	return out, nil
}

// Adopt takes sockets that came back from the proxy, and their ownership. It returns
// those that are not the Table's, which stay the caller's. Call it before Set.
func (t *Table) Adopt(fds []int) (rest []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, fd := range fds {
		id, err := listen.Identify(fd)
		s, awaited := t.awaited[id.AddrPort]
		if err != nil || !awaited || id.NetnsCookie != t.cookie || id.Protocol != s.Protocol || t.servedBy[s.frontend()] != "" {
			rest = append(rest, fd)
			continue
		}
		delete(t.awaited, id.AddrPort)
		unix.CloseOnExec(fd)
		s.FD = fd
		t.insert(&entry{socket: s, restored: true})
	}
	return rest
}

func (t *Table) insert(e *entry) {
	entries := t.listeners[e.socket.Listener]
	if entries == nil {
		entries = make(map[netip.AddrPort]*entry)
		t.listeners[e.socket.Listener] = entries
	}
	entries[e.socket.AddrPort] = e
	t.servedBy[e.socket.frontend()] = e.socket.Listener
}

// Set makes the node serve exactly the addresses and ports of l, which must be of
// type gateway: O(what differs from the Set before). On error the rest is served
// and calling Set again tries what failed.
func (t *Table) Set(l *mesh.Listener) error {
	if l.Type != mesh.ListenerGateway {
		return fmt.Errorf("serve %s: not a gateway's listener", l.Name)
	}
	if l.Port == 0 {
		return fmt.Errorf("serve %s: port 0", l.Name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("serve %s: %w", l.Name, os.ErrClosed)
	}
	want := make(map[netip.AddrPort]bool, len(l.Addresses))
	var errs []error
	for _, addr := range l.Addresses {
		if err := checkAddress(addr); err != nil {
			errs = append(errs, fmt.Errorf("serve %s: %w", l.Name, err))
			continue
		}
		want[netip.AddrPortFrom(addr, l.Port)] = true
	}
	for at, e := range t.listeners[l.Name] {
		if !want[at] {
			errs = append(errs, t.remove(e))
		}
	}
	for _, addr := range l.Addresses {
		at := netip.AddrPortFrom(addr, l.Port)
		if !want[at] {
			continue
		}
		if err := t.add(l, at); err != nil {
			errs = append(errs, fmt.Errorf("serve %s on %s: %w", l.Name, at, err))
		}
	}
	return errors.Join(errs...)
}

// checkAddress refuses addresses that a Gateway cannot have, such as those that the
// node's own routing depends on.
func checkAddress(addr netip.Addr) error {
	switch {
	case !addr.IsValid(), addr.Is4In6(), addr.Zone() != "":
		return fmt.Errorf("address %q is not an IPv4 or IPv6 address", addr)
	case !addr.IsGlobalUnicast():
		return fmt.Errorf("address %s is not a global unicast address", addr)
	}
	return nil
}

// add makes a listener serve one address and port.
func (t *Table) add(l *mesh.Listener, at netip.AddrPort) error {
	listener, protocol := l.Name, mesh.ProtocolTCP
	if l.Protocol != 0 {
		protocol = l.Protocol
	}
	if by := t.servedBy[mesh.Frontend{AddrPort: at, Protocol: protocol}]; by != "" && by != listener {
		return fmt.Errorf("it is served by %s", by)
	}
	e := t.listeners[listener][at]
	if e != nil && e.active {
		return nil
	}
	if e == nil {
		socket, err := t.openSocket(listener, protocol, at)
		if err != nil {
			return err
		}
		e = &entry{socket: socket}
		t.insert(e)
		// Before another process can have the socket.
		if err := t.note(change{Opened: &e.socket}); err != nil {
			return errors.Join(err, t.remove(e))
		}
	}
	if t.cfg.Hooks != nil {
		if err := t.cfg.Hooks.OnAdd(e.socket); err != nil {
			return errors.Join(err, t.remove(e))
		}
	}
	e.active = true
	// Last, so that no packet arrives before there is who takes it.
	if err := t.route(at.Addr()); err != nil {
		return errors.Join(err, t.remove(e))
	}
	t.log.Info("gateway address served", "listener", listener, "address", at)
	return nil
}

// frontend is what clients dial.
func (s *Socket) frontend() mesh.Frontend {
	return mesh.Frontend{AddrPort: s.AddrPort, Protocol: s.Protocol}
}

// openSocket makes the socket of an address and port. That of UDP is bound to them, so
// that what is sent on it comes from there; connections of TCP know by themselves.
func (t *Table) openSocket(listener string, protocol mesh.Protocol, at netip.AddrPort) (Socket, error) {
	s := Socket{Listener: listener, Protocol: protocol, AddrPort: at, FD: -1}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if at.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	err := t.cfg.NodeNetns.Do(func() (err error) {
		if protocol == mesh.ProtocolUDP {
			s.FD, err = listen.OpenFree(s.Protocol, at)
			return err
		}
		s.FD, err = listen.Open(s.Protocol, netip.AddrPortFrom(loopback, 0))
		return err
	})
	if err != nil {
		return s, err
	}
	id, err := listen.Identify(s.FD)
	if err != nil {
		_ = unix.Close(s.FD)
		return s, err
	}
	s.Local = id.AddrPort
	return s, nil
}

// remove takes back what add did, as far as it came.
func (t *Table) remove(e *entry) error {
	s := e.socket
	var err error
	if e.active {
		err = t.unroute(s.AddrPort.Addr())
	}
	if e.active || e.restored {
		if t.cfg.Hooks != nil {
			t.cfg.Hooks.OnRemove(s)
		}
		t.log.Info("gateway address no longer served", "listener", s.Listener, "address", s.AddrPort)
	}
	if s.FD >= 0 {
		_ = unix.Close(s.FD)
	}
	delete(t.listeners[s.Listener], s.AddrPort)
	if len(t.listeners[s.Listener]) == 0 {
		delete(t.listeners, s.Listener)
	}
	delete(t.servedBy, s.frontend())
	return errors.Join(err, t.note(closed(&s)))
}

// note keeps the journal.
func (t *Table) note(c change) error {
	return t.journal.write(c, len(t.servedBy)+len(t.awaited), func(yield func(Socket) bool) {
		for _, entries := range t.listeners {
			for _, e := range entries {
				if !yield(e.socket) {
					return
				}
			}
		}
		for _, s := range t.awaited {
			if !yield(s) {
				return
			}
		}
	})
}

// route makes the namespace take packets for addr.
func (t *Table) route(addr netip.Addr) error {
	a := t.addrs[addr]
	if a == nil {
		a = new(address)
		t.addrs[addr] = a
	}
	a.sockets++
	if a.routed || a.sockets > 1 {
		return nil
	}
	if t.lo.Attrs().Flags&net.FlagUp == 0 {
		if err := t.link.LinkSetUp(t.lo); err != nil {
			return fmt.Errorf("set lo up: %w", err)
		}
	}
	err := t.link.RouteAdd(t.localRoute(addr))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("add local route to %s: %w", addr, err)
	}
	a.routed = true
	return nil
}

func (t *Table) unroute(addr netip.Addr) error {
	a := t.addrs[addr]
	if a.sockets > 0 {
		a.sockets--
	}
	if a.sockets > 0 {
		return nil
	}
	delete(t.addrs, addr)
	if !a.routed {
		return nil
	}
	if err := t.link.RouteDel(t.localRoute(addr)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("delete local route to %s: %w", addr, err)
	}
	return nil
}

func (t *Table) localRoute(addr netip.Addr) *netlink.Route {
	return &netlink.Route{
		LinkIndex: t.lo.Attrs().Index, Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: routeProtocol,
	}
}

// Remove stops serving a listener. An unknown name is no error.
func (t *Table) Remove(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removeListener(name)
}

func (t *Table) removeListener(name string) error {
	var errs []error
	for _, e := range t.listeners[name] {
		errs = append(errs, t.remove(e))
	}
	return errors.Join(errs...)
}

// Retain removes all listeners for which keep is false, and what an earlier agent
// left that belongs to no listener.
func (t *Table) Retain(keep func(name string) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	names := make(map[string]bool)
	for name := range t.listeners {
		names[name] = true
	}
	// What did not come back and was not made anew.
	for _, s := range t.awaited {
		if t.servedBy[s.frontend()] == "" {
			s.FD = -1
			t.insert(&entry{socket: s, restored: true})
			errs = append(errs, t.remove(t.listeners[s.Listener][s.AddrPort]))
		}
	}
	clear(t.awaited)
	for name := range names {
		if !keep(name) {
			errs = append(errs, t.removeListener(name))
		}
	}
	for addr, a := range t.addrs {
		if a.sockets == 0 {
			errs = append(errs, t.unroute(addr))
		}
	}
	return errors.Join(errs...)
}

// Sockets returns the sockets that are served, by listener, address and port.
func (t *Table) Sockets() []Socket {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Socket
	for _, entries := range t.listeners {
		for _, e := range entries {
			if e.active {
				out = append(out, e.socket)
			}
		}
	}
	slices.SortFunc(out, func(a, b Socket) int {
		return cmp.Or(cmp.Compare(a.Listener, b.Listener), a.AddrPort.Compare(b.AddrPort))
	})
	return out
}

// Close closes the sockets in this process and leaves the routes, for the next agent.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	for _, entries := range t.listeners {
		for _, e := range entries {
			_ = unix.Close(e.socket.FD)
		}
	}
	clear(t.listeners)
	t.journal.close()
	if t.link != nil {
		t.link.Close()
	}
	if t.ownNetns {
		return t.cfg.NodeNetns.Close()
	}
	return nil
}
