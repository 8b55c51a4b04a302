package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/ipam"
	"github.com/sluice-mesh/sluice/dataplane/listen"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// hooks are Hooks that note what they were told and do what the test says.
type hooks struct {
	mu    sync.Mutex
	calls []string
	onAdd func(*Sandbox) error
	// removed, if set, is called by OnRemove.
	onRemove func(*Sandbox)
}

func (h *hooks) OnAdd(_ context.Context, s *Sandbox) error {
	if h.onAdd != nil {
		if err := h.onAdd(s); err != nil {
			return err
		}
	}
	h.note("add " + s.Spec.Name.Name)
	return nil
}

func (h *hooks) OnRemove(s *Sandbox) {
	h.note("remove " + s.Spec.Name.Name)
	if h.onRemove != nil {
		h.onRemove(s)
	}
}

func (h *hooks) note(call string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call)
}

func (h *hooks) took() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	calls := h.calls
	h.calls = nil
	return calls
}

// openDescriptors counts the descriptors of this process that are sockets or
// namespaces, which is what a registry could leak.
func openDescriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, entry := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + entry.Name())
		if strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, "net:") || strings.Contains(target, "cgroup") {
			n++
		}
	}
	return n
}

func mustBeBare(t testing.TB, b *bed) {
	t.Helper()
	if left := b.pieces(t); len(left) != 0 {
		t.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
}

func TestAddAndRemove(t *testing.T) {
	b := newBed(t)
	h := new(hooks)
	r := b.registry(t, func(c *Config) { c.Hooks = h })
	before := openDescriptors(t)
	s := mustAdd(t, r, "a")
	if again := mustAdd(t, r, "a"); again != s {
		t.Error("adding the same made another")
	}
	other := spec("a")
	other.Labels = map[string]string{"app": "b"}
	if _, err := r.Add(t.Context(), other); !errors.Is(err, ErrExists) {
		t.Errorf("adding another of the name: %v", err)
	}
	if got := h.took(); !slices.Equal(got, []string{"add a"}) {
		t.Errorf("hooks were told %v", got)
	}
	if s.Index == 0 || s.NetnsCookie == 0 || s.CgroupID == 0 || s.HostIfindex == 0 || len(s.Addresses) != 2 ||
		!s.Addresses[0].Is4() || !s.Addresses[1].Is6() || s.Spec.ServiceAccount != "default" {
		t.Errorf("sandbox %+v", s)
	}
	if got := r.List(); len(got) != 1 || got[0] != s || r.Get(s.Spec.Name) != s {
		t.Errorf("list %v", got)
	}
	if err := r.Remove(t.Context(), s.Spec.Name); err != nil {
		t.Fatal(err)
	}
	if got := h.took(); !slices.Equal(got, []string{"remove a"}) {
		t.Errorf("hooks were told %v", got)
	}
	if err := r.Remove(t.Context(), s.Spec.Name); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing again: %v", err)
	}
	mustBeBare(t, b)
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	if len(r.List()) != 0 || r.Get(s.Spec.Name) != nil || len(r.byIndex) != 0 || len(r.locks) != 0 || r.poolV4.InUse()+r.poolV6.InUse() != 0 {
		t.Error("the registry still knows it")
	}
	if next := mustAdd(t, r, "a"); next.Index <= s.Index || next.NetnsCookie == s.NetnsCookie {
		t.Errorf("index %d after %d", next.Index, s.Index)
	}
}

func TestSockets(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	s := mustAdd(t, r, "a")
	v4, v6 := s.Addresses[0], s.Addresses[1]
	want := map[string]Purpose{
		"TCP " + netip.AddrPortFrom(v4, 15001).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v4, 15002).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v4, 15003).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v4, 15004).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v6, 15001).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v6, 15002).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v6, 15003).String(): PurposeOutbound,
		"TCP " + netip.AddrPortFrom(v6, 15004).String(): PurposeOutbound,
		"TCP 127.0.0.1:15006":                           PurposeInbound,
		"TCP [::1]:15006":                               PurposeInbound,
		"TCP " + netip.AddrPortFrom(v4, 15053).String(): PurposeDNS,
		"TCP " + netip.AddrPortFrom(v6, 15053).String(): PurposeDNS,
		"UDP " + netip.AddrPortFrom(v4, 15053).String(): PurposeDNS,
		"UDP " + netip.AddrPortFrom(v6, 15053).String(): PurposeDNS,
	}
	for _, socket := range s.ListenerFDs() {
		id, err := listen.Identify(socket.FD)
		if err != nil {
			t.Errorf("%+v: %v", socket, err)
			continue
		}
		key := id.Protocol.String() + " " + id.AddrPort.String()
		if want[key] != socket.Purpose || id.NetnsCookie != s.NetnsCookie || id.AddrPort != socket.AddrPort {
			t.Errorf("%s is for %q; identity %+v", key, socket.Purpose, id)
		}
		delete(want, key)
		flags, err := unix.FcntlInt(uintptr(socket.FD), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("%s blocks", key)
		}
		if flags, err := unix.FcntlInt(uintptr(socket.FD), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s is inherited", key)
		}
	}
	if len(want) != 0 {
		t.Errorf("no socket for %v", want)
	}
}

// TestAddFails: whichever piece cannot be made, nothing is left of the others.
func TestAddFails(t *testing.T) {
	for _, test := range []struct {
		name string
		// obstruct makes the piece fail and returns what takes the obstruction away.
		obstruct func(t *testing.T, b *bed, r *Registry, h *hooks) (clear func())
		want     string
	}{
		{"addresses", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			var taken []netip.Addr
			for addr, err := r.poolV4.Allocate(); err == nil; addr, err = r.poolV4.Allocate() {
				taken = append(taken, addr)
			}
			return func() {
				for _, addr := range taken {
					r.poolV4.Release(addr)
				}
			}
		}, "10.77.0.0/24"},
		{"record", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			// Root writes where it may not; a folder in the way stops it.
			path := filepath.Join(r.recordDir, ".shop_a.json.tmp")
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(path) }
		}, "shop_a.json"},
		{"cgroup", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			// One level below the limit of depth there is room for none.
			limit := filepath.Join(r.cfg.CgroupRoot, "cgroup.max.descendants")
			if err := os.WriteFile(limit, []byte("0"), 0); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.WriteFile(limit, []byte("max"), 0) }
		}, "cgroup"},
		{"namespace", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			if err := os.WriteFile(filepath.Join(r.netnsDir, "shop_a"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}, "network namespace"},
		{"veth", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			// An address family that is off in the node's namespace.
			err := b.netns.Do(func() error { return writeSysctl("net/ipv6/conf/default/disable_ipv6", "1") })
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				_ = b.netns.Do(func() error { return writeSysctl("net/ipv6/conf/default/disable_ipv6", "0") })
			}
		}, "fd77::"},
		{"hook", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			h.onAdd = func(*Sandbox) error { return errors.New("the kernel said no") }
			return func() { h.onAdd = nil }
		}, "the kernel said no"},
		{"pod", func(t *testing.T, b *bed, r *Registry, h *hooks) func() {
			path := filepath.Join(r.podDir, ".shop_a.yaml.tmp")
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(path) }
		}, "shop_a.yaml"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t)
			h := new(hooks)
			r := b.registry(t, func(c *Config) { c.Hooks = h })
			before := openDescriptors(t)
			clear := test.obstruct(t, b, r, h)
			s, err := r.Add(t.Context(), spec("a"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v, %v; want %q", s, err, test.want)
			}
			clear()
			mustBeBare(t, b)
			if after := openDescriptors(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
			if r.poolV4.InUse()+r.poolV6.InUse() != 0 || len(r.workloads)+len(r.byIndex) != 0 {
				t.Error("the registry still knows it")
			}
			calls := h.took()
			if adds, removes := count(calls, "add a"), count(calls, "remove a"); adds != removes {
				t.Errorf("hooks were told %v", calls)
			}
			mustAdd(t, r, "a")
		})
	}
}

func count(calls []string, call string) (n int) {
	for _, c := range calls {
		if c == call {
			n++
		}
	}
	return n
}

func TestAddCancelled(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Add(ctx, spec("a")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	mustBeBare(t, b)
}

func TestExhausted(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, func(c *Config) { c.PoolV4 = netip.MustParsePrefix("10.77.0.0/30") })
	mustAdd(t, r, "a")
	if _, err := r.Add(t.Context(), spec("b")); !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "10.77.0.0/30") {
		t.Error(err)
	}
}

// TestOneFamily: a node may have addresses of one family only.
func TestOneFamily(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			b := newBed(t)
			r := b.registry(t, func(c *Config) {
				if family == "IPv4" {
					c.PoolV6 = netip.Prefix{}
				} else {
					c.PoolV4 = netip.Prefix{}
				}
			})
			one, two := mustAdd(t, r, "a"), mustAdd(t, r, "b")
			if len(one.Addresses) != 1 || len(one.ListenerFDs()) != 7 {
				t.Fatalf("%+v", one)
			}
			l := listenTCP(t, two, two.Addresses[0])
			client := dialTCP(t, one, l.Addr())
			pass(t, client, accept(t, l), "hello")
			for _, s := range []*Sandbox{one, two} {
				if err := r.Remove(t.Context(), s.Spec.Name); err != nil {
					t.Error(err)
				}
			}
			mustBeBare(t, b)
		})
	}
}

// TestTwentyAtOnce: adds and removes of many do not disturb each other.
func TestTwentyAtOnce(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	before := openDescriptors(t)
	boxes := make([]*Sandbox, 20)
	var wg sync.WaitGroup
	for i := range boxes {
		wg.Go(func() {
			s, err := r.Add(t.Context(), spec(fmt.Sprintf("w%d", i)))
			if err != nil {
				t.Error(err)
			}
			boxes[i] = s
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	indexes, addresses := make(map[mesh.WorkloadIndex]bool), make(map[netip.Addr]bool)
	for i, s := range boxes {
		indexes[s.Index] = true
		for _, addr := range s.Addresses {
			addresses[addr] = true
			l := listenTCP(t, s, addr)
			client := dialTCP(t, boxes[(i+1)%len(boxes)], l.Addr())
			pass(t, client, accept(t, l), s.Spec.Name.Name)
		}
	}
	if len(indexes) != 20 || len(addresses) != 40 {
		t.Errorf("%d indexes, %d addresses", len(indexes), len(addresses))
	}
	for _, s := range boxes {
		for range 2 {
			wg.Go(func() {
				if err := r.Remove(t.Context(), s.Spec.Name); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	mustBeBare(t, b)
	// The connections of this test are still open.
	if after := openDescriptors(t); after != before+20*2*3 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// TestRestore: a new registry takes running workloads over, with the sockets that come
// back, and a connection lives through it.
func TestRestore(t *testing.T) {
	b := newBed(t)
	h := new(hooks)
	with := func(c *Config) { c.Hooks = h }
	r := b.registry(t, with)
	one, two := mustAdd(t, r, "a"), mustAdd(t, r, "b")
	if err := r.Started(one.Spec.Name); err != nil {
		t.Fatal(err)
	}
	l := listenTCP(t, two, two.Addresses[1])
	client := dialTCP(t, one, l.Addr())
	server := accept(t, l)
	pass(t, client, server, "before")
	// A client waits in the queue of a socket that nobody accepts from.
	waiting := dialTCP(t, one, net.TCPAddrFromAddrPort(netip.AddrPortFrom(one.Addresses[0], PortOutbound)))
	// What a proxy holds: copies of the sockets of one workload.
	var copies []int
	for _, socket := range one.ListenerFDs() {
		fd, err := unix.FcntlInt(uintptr(socket.FD), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		copies = append(copies, fd)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Add(t.Context(), spec("c")); !errors.Is(err, ErrClosed) {
		t.Errorf("add after close: %v", err)
	}
	pieces := b.pieces(t)
	h.took()

	r = b.registry(t, with)
	if err := r.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	pass(t, server, client, "while nobody looks")
	if got := len(r.List()); got != 2 || len(h.took()) != 0 {
		t.Errorf("%d restored", got)
	}
	stray, err := listen.Open(mesh.ProtocolTCP, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(stray) }()
	if rest := r.Adopt(append([]int{stray}, copies...)); !slices.Equal(rest, []int{stray}) {
		t.Errorf("not adopted: %v", rest)
	}
	if err := r.Activate(t.Context()); err != nil {
		t.Fatal(err)
	}
	calls := h.took()
	slices.Sort(calls)
	if !slices.Equal(calls, []string{"add a", "add b"}) {
		t.Errorf("hooks were told %v", calls)
	}
	if err := r.Activate(t.Context()); err != nil || len(h.took()) != 0 {
		t.Errorf("activating again: %v", err)
	}
	for _, was := range []*Sandbox{one, two} {
		is := r.Get(was.Spec.Name)
		if is == nil || is.Index != was.Index || is.NetnsCookie != was.NetnsCookie || !slices.Equal(is.Addresses, was.Addresses) ||
			is.HostIfindex != was.HostIfindex || is.CgroupID != was.CgroupID || is.Ready() != was.Ready() || len(is.ListenerFDs()) != len(copies) {
			t.Errorf("was %+v, is %+v", was, is)
		}
	}
	back := r.Get(one.Spec.Name).ListenerFDs()
	for i, socket := range back {
		if socket.FD != copies[i] {
			t.Errorf("%s was made anew", socket.AddrPort)
		}
	}
	fd, _, err := unix.Accept(back[0].FD)
	if err != nil {
		t.Errorf("the waiting client is lost: %v", err)
	} else {
		_ = unix.Close(fd)
	}
	_ = waiting.Close()
	pass(t, client, server, "after")
	if got := b.pieces(t); !slices.Equal(got, pieces) {
		t.Errorf("restored:\n%s\nwas:\n%s", strings.Join(got, "\n"), strings.Join(pieces, "\n"))
	}
	third := mustAdd(t, r, "c")
	for _, s := range []*Sandbox{one, two} {
		if third.Index <= s.Index || third.Addresses[0] == s.Addresses[0] || third.Addresses[1] == s.Addresses[1] {
			t.Errorf("new workload has index %d and %v", third.Index, third.Addresses)
		}
	}
	for _, s := range r.List() {
		if err := r.Remove(t.Context(), s.Spec.Name); err != nil {
			t.Error(err)
		}
	}
	mustBeBare(t, b)
}

// TestRestoreDamaged: what cannot be taken over is removed, and the rest is not.
func TestRestoreDamaged(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, r *Registry, s *Sandbox)
	}{
		{"record", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := os.WriteFile(filepath.Join(r.recordDir, "shop_a.json"), []byte(`{"phase":`), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
		{"no record", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := os.Remove(filepath.Join(r.recordDir, "shop_a.json")); err != nil {
				t.Fatal(err)
			}
		}},
		{"namespace", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := netns.Delete(s.NetnsPath); err != nil {
				t.Fatal(err)
			}
		}},
		{"veth", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := r.node.disconnect(s.HostInterface); err != nil {
				t.Fatal(err)
			}
		}},
		{"cgroup", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := removeCgroup(s.CgroupPath); err != nil {
				t.Fatal(err)
			}
		}},
		{"half made", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := r.setPhase(r.lookup(s.Spec.Name), phaseMaking); err != nil {
				t.Fatal(err)
			}
		}},
		{"half removed", func(t *testing.T, r *Registry, s *Sandbox) {
			if err := r.setPhase(r.lookup(s.Spec.Name), phaseRemoving); err != nil {
				t.Fatal(err)
			}
		}},
		{"owner", func(t *testing.T, r *Registry, s *Sandbox) {
			e := r.lookup(s.Spec.Name)
			// The number of a process that lives, and the start of another.
			e.record.Owner = owner{PID: os.Getpid(), StartTicks: 1}
			if err := writeRecord(r.recordDir, &e.record); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t)
			h := new(hooks)
			r := b.registry(t, func(c *Config) { c.Hooks = h })
			damaged, sound := mustAdd(t, r, "a"), mustAdd(t, r, "sound")
			test.damage(t, r, damaged)
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			h.took()
			r = b.registry(t, func(c *Config) { c.Hooks = h })
			if err := errors.Join(r.Restore(t.Context()), r.Activate(t.Context())); err != nil {
				t.Fatal(err)
			}
			if r.Get(damaged.Spec.Name) != nil || r.Get(sound.Spec.Name) == nil {
				t.Errorf("restored %v", r.List())
			}
			// Without a record nobody knows that it was enrolled.
			if got := count(h.took(), "remove a"); got != 1 && !strings.Contains(test.name, "record") {
				t.Errorf("OnRemove was called %d times", got)
			}
			if err := r.Remove(t.Context(), sound.Spec.Name); err != nil {
				t.Fatal(err)
			}
			mustBeBare(t, b)
			if r.poolV4.InUse() != 0 || r.poolV6.InUse() != 0 {
				t.Error("addresses stay in use")
			}
		})
	}
}

// TestRemoveKills: processes of the workload end, also those in cgroups that it made.
func TestRemoveKills(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	s := mustAdd(t, r, "a")
	nested := filepath.Join(s.CgroupPath, "nested", "deeper")
	if err := os.MkdirAll(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	var commands []*sleeper
	for _, cgroup := range []string{s.CgroupPath, nested} {
		commands = append(commands, sleepIn(t, cgroup))
	}
	if err := r.Remove(t.Context(), s.Spec.Name); err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		if state := c.wait(); !strings.Contains(state, "killed") {
			t.Errorf("process ended by %q", state)
		}
	}
	mustBeBare(t, b)
}

// TestIndexesSurvive: no index is handed out twice, however often the agent starts.
func TestIndexesSurvive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "next-index")
	seen := make(map[mesh.WorkloadIndex]bool)
	for range 5 {
		x, err := openIndexes(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2*indexStep + 3 {
			index, err := x.take(func(mesh.WorkloadIndex) bool { return false })
			if err != nil || index == 0 || seen[index] {
				t.Fatalf("index %d again, or %v", index, err)
			}
			seen[index] = true
		}
	}
	x, err := openIndexes(path)
	if err != nil {
		t.Fatal(err)
	}
	first := x.next
	if got, err := x.take(func(i mesh.WorkloadIndex) bool { return i == first }); err != nil || got != first+1 {
		t.Errorf("took %d, %v; %d is used", got, err, first)
	}
	// After the last number come the first ones again, and never zero.
	if err := os.WriteFile(path, []byte("4294967200"), 0o600); err != nil {
		t.Fatal(err)
	}
	if x, err = openIndexes(path); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if index, err := x.take(func(mesh.WorkloadIndex) bool { return false }); err != nil || index == 0 {
			t.Fatalf("index %d, %v", index, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "x", "4294967296"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := openIndexes(path); err == nil {
			t.Errorf("%q was taken for a number", text)
		}
	}
}

func TestPodYAML(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	sp := Spec{
		Name: mesh.Name{Namespace: "shop", Name: "web-1"}, ServiceAccount: "web",
		Labels:  map[string]string{"app": "web"},
		Ports:   []ContainerPort{{Name: "http", Port: 8080}, {Port: 53, Protocol: mesh.ProtocolUDP}},
		Command: []string{"/bin/web", "--port=8080"},
	}
	s, err := r.Add(t.Context(), sp)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(b.runDir, "pods", "shop_web-1.yaml")
	read := func() map[string]any {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(data) != string(PodYAML(s)) {
			t.Error("the file is not what PodYAML says")
		}
		var pod map[string]any
		if err := json.Unmarshal(data, &pod); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	want := func(pod map[string]any, path, value string) {
		t.Helper()
		var at any = pod
		for step := range strings.SplitSeq(path, ".") {
			switch in := at.(type) {
			case map[string]any:
				at = in[step]
			case []any:
				var i int
				if _, err := fmt.Sscan(step, &i); err != nil || i >= len(in) {
					t.Fatalf("%s: no %s", path, step)
				}
				at = in[i]
			}
		}
		if got := fmt.Sprint(at); got != value {
			t.Errorf("%s is %s, want %s", path, got, value)
		}
	}
	pod := read()
	for path, value := range map[string]string{
		"apiVersion": "v1", "kind": "Pod", "metadata.namespace": "shop", "metadata.name": "web-1", "metadata.labels.app": "web",
		"spec.serviceAccountName": "web", "spec.nodeName": "node1", "spec.containers.0.command.1": "--port=8080",
		"spec.containers.0.ports.0.name": "http", "spec.containers.0.ports.0.containerPort": "8080",
		"spec.containers.0.ports.0.protocol": "TCP", "spec.containers.0.ports.1.protocol": "UDP",
		"status.phase": "Pending", "status.podIP": s.Addresses[0].String(), "status.podIPs.1.ip": s.Addresses[1].String(),
		"status.conditions.3.type": "Ready", "status.conditions.3.status": "False",
	} {
		want(pod, path, value)
	}
	if err := r.Started(sp.Name); err != nil {
		t.Fatal(err)
	}
	pod = read()
	want(pod, "status.phase", "Running")
	want(pod, "status.conditions.3.status", "True")
	want(pod, "status.containerStatuses.0.ready", "true")
	if err := r.Remove(t.Context(), sp.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the Pod is still there: %v", err)
	}
}

func TestConfigValidate(t *testing.T) {
	b := &bed{runDir: "/run/x", cgroup: "/sys/fs/cgroup/x"}
	sound := b.config(t)
	if err := sound.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"run folder":      func(c *Config) { c.RunDir = "run" },
		"cgroup":          func(c *Config) { c.CgroupRoot = "" },
		"no address pool": func(c *Config) { c.PoolV4, c.PoolV6 = netip.Prefix{}, netip.Prefix{} },
		"is not IPv4":     func(c *Config) { c.PoolV4 = c.PoolV6 },
		"is not IPv6":     func(c *Config) { c.PoolV6 = c.PoolV4 },
		"node name":       func(c *Config) { c.Node = "Node_1" },
		"cluster domain":  func(c *Config) { c.ClusterDomain = "cluster.local." },
		"MTU 1279":        func(c *Config) { c.MTU = 1279 },
		"no logger":       func(c *Config) { c.Logger = nil },
	} {
		cfg := b.config(t)
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func BenchmarkAddRemove(b *testing.B) {
	bed := newBed(b)
	r := bed.registry(b, func(c *Config) { c.Logger = quiet })
	for b.Loop() {
		s := mustAdd(b, r, "a")
		if err := r.Remove(b.Context(), s.Spec.Name); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	bed := newBed(b)
	r := bed.registry(b, func(c *Config) { c.Logger = quiet; c.PoolV4 = netip.MustParsePrefix("10.77.0.0/16") })
	n := 0
	for b.Loop() {
		n++
		mustAdd(b, r, fmt.Sprintf("w%d", n))
	}
	b.StopTimer()
	for _, s := range r.List() {
		if err := r.Remove(b.Context(), s.Spec.Name); err != nil {
			b.Fatal(err)
		}
	}
}
