package destroy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/destroy"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/probe"
	"github.com/sluice-mesh/sluice/dataplane/service"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func TestMain(m *testing.M) { lab.Main(m) }

var (
	vip4, vip6     = netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("fd96::1:1")
	other4, other6 = netip.MustParseAddr("10.96.2.2"), netip.MustParseAddr("fd96::2:2")
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// bed is a node whose sockets to endpoints that are gone are ended.
type bed struct {
	*lab.Mesh
	table  *service.Table
	flows  chan *flow.Flow
	client *lab.Pod
	server *lab.Pod
	// dead are addresses of workloads that have ended.
	dead sync.Map
}

func newBed(t *testing.T) *bed {
	for _, f := range probe.Features(probe.Config{}) {
		if f.Name == "sock-destroy" && !f.Have {
			t.Skip(f.Detail)
		}
	}
	b := &bed{Mesh: lab.NewMesh(t), flows: make(chan *flow.Flow, 64)}
	b.client, b.server = b.Enrol(t, "client"), b.Enrol(t, "server")
	d, err := destroy.New(destroy.Config{
		Datapath: b.Datapath, Node: "lab", Sink: func(f *flow.Flow) { b.flows <- f },
		Namespaces: func() (out []destroy.Namespace) {
			for _, p := range []*lab.Pod{b.client, b.server} {
				out = append(out, destroy.Namespace{
					Workload: &mesh.Workload{Name: mesh.Name{Namespace: "lab", Name: p.Name}, Addresses: []netip.Addr{p.Addr4, p.Addr6}},
					Index:    p.Index(), Path: fmt.Sprintf("/proc/self/fd/%d", p.FD),
				})
			}
			return out
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := d.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	b.table, err = service.New(service.Config{
		Datapath: b.Datapath, DNS: []netip.Addr{lab.DNS}, Node: "lab",
		Alive: func(a netip.Addr) bool {
			_, dead := b.dead.Load(a)
			return !dead
		},
		Gone: func(gone []service.Gone) {
			victims := make([]destroy.Victim, len(gone))
			for i, g := range gone {
				victims[i] = destroy.Victim(g)
			}
			d.Add(victims)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// set has a service of both protocols use and drain endpoints.
func (b *bed) set(t *testing.T, name string, vips []netip.Addr, use, draining []netip.AddrPort) {
	t.Helper()
	s := &mesh.Service{Name: mesh.Name{Namespace: "lab", Name: name}, VIPs: vips}
	list := func(as []netip.AddrPort) (out []mesh.Endpoint) {
		for _, a := range as {
			out = append(out, mesh.Endpoint{AddrPort: a})
		}
		return out
	}
	for _, protocol := range []mesh.Protocol{mesh.ProtocolTCP, mesh.ProtocolUDP} {
		s.Ports = append(s.Ports, mesh.ServicePort{Port: 80, Protocol: protocol, Endpoints: list(use), Draining: list(draining)})
	}
	if err := b.table.Apply(mesh.Delta{Upserts: []mesh.Resource{s}}); err != nil {
		t.Fatal(err)
	}
}

// removed tells the table that workloads ended.
func (b *bed) removed(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	for _, a := range addrs {
		b.dead.Store(a, true)
	}
	if err := b.table.Apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindWorkload, Key: "lab/server"}}}); err != nil {
		t.Fatal(err)
	}
}

var names atomic.Int32

// connect opens a socket and sees that it works.
func connect(t *testing.T, app *lab.App, domain, typ int, to netip.AddrPort) int {
	t.Helper()
	fd := app.Socket(domain, typ)
	if err := app.Connect(fd, to); err != nil {
		t.Fatalf("connect to %s: %v", to, err)
	}
	if typ == unix.SOCK_STREAM {
		app.Recv(fd) // the server's name
	}
	works(t, app, fd)
	return fd
}

func works(t *testing.T, app *lab.App, fd int) {
	t.Helper()
	text := fmt.Sprintf("ping %d", names.Add(1))
	app.Send(fd, text)
	if got := app.Recv(fd); !strings.HasSuffix(got, text) {
		t.Errorf("a socket that is nobody's victim answers %q", got)
	}
}

func (b *bed) wantFlow(t *testing.T, protocol mesh.Protocol, original, endpoint netip.AddrPort) {
	t.Helper()
	select {
	case f := <-b.flows:
		if f.Reason != flow.ReasonEndpointGone || f.Verdict != flow.VerdictDropped || f.Protocol != protocol ||
			f.Original != original || f.Destination.AddrPort != endpoint || f.Source.Workload.Name != "client" || f.Source.AddrPort.Port() == 0 {
			t.Errorf("flow %+v", f)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("no flow says that the socket was ended")
	}
}

func TestEndpointGone(t *testing.T) {
	b := newBed(t)
	app := b.client.App(t)
	for _, p := range []uint16{8000, 8001} {
		for _, a := range []netip.Addr{b.server.Addr4, b.server.Addr6} {
			b.server.Echo(t, "server", at(a, p))
			b.server.EchoPacket(t, "server", at(a, p))
		}
	}
	for _, c := range []struct {
		name       string
		domain     int
		vip, other netip.Addr
		server     netip.Addr
	}{
		{"IPv4", unix.AF_INET, vip4, other4, b.server.Addr4},
		{"IPv6", unix.AF_INET6, vip6, other6, b.server.Addr6},
		{"mapped", unix.AF_INET6, vip4, other4, b.server.Addr4},
	} {
		one, two := at(c.server, 8000), at(c.server, 8001)
		for _, p := range []struct {
			typ      int
			protocol mesh.Protocol
		}{{unix.SOCK_STREAM, mesh.ProtocolTCP}, {unix.SOCK_DGRAM, mesh.ProtocolUDP}} {
			t.Run(c.name+" "+p.protocol.String(), func(t *testing.T) {
				b.dead.Clear()
				vips, others := []netip.Addr{c.vip}, []netip.Addr{c.other}
				b.set(t, "other", others, []netip.AddrPort{one}, nil)
				b.set(t, "web", vips, []netip.AddrPort{two}, nil)
				second := connect(t, app, c.domain, p.typ, at(c.vip, 80))
				b.set(t, "web", vips, []netip.AddrPort{one}, []netip.AddrPort{two})
				victim := connect(t, app, c.domain, p.typ, at(c.vip, 80))
				bystanders := []int{
					connect(t, app, c.domain, p.typ, one),
					connect(t, app, c.domain, p.typ, at(c.other, 80)),
				}
				// To drain is not to be gone.
				b.set(t, "web", vips, nil, []netip.AddrPort{one, two})
				b.set(t, "web", vips, nil, []netip.AddrPort{two})
				if p.protocol == mesh.ProtocolTCP {
					// The workload lives: it is the Service that selects it no longer.
					works(t, app, victim)
					b.removed(t, c.server)
				}
				if err := app.RecvError(victim); !errors.Is(err, unix.ECONNABORTED) {
					t.Errorf("the socket says %v, want ECONNABORTED", err)
				}
				b.wantFlow(t, p.protocol, at(c.vip, 80), one)
				works(t, app, second)

				// The next one, after which all of the first is done.
				b.set(t, "web", vips, nil, nil)
				if err := app.RecvError(second); !errors.Is(err, unix.ECONNABORTED) {
					t.Errorf("the second socket says %v, want ECONNABORTED", err)
				}
				b.wantFlow(t, p.protocol, at(c.vip, 80), two)
				for _, fd := range bystanders {
					works(t, app, fd)
					app.Close(fd)
				}
				app.Close(victim)
				app.Close(second)
			})
		}
	}
	if len(b.flows) > 0 {
		t.Errorf("more was ended: %+v", <-b.flows)
	}
}
