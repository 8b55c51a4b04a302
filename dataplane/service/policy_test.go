package service_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/service"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// families are the clients of both families.
var families = []struct {
	name   string
	domain int
	vip    netip.Addr
}{{"IPv4", unix.AF_INET, vip4}, {"IPv6", unix.AF_INET6, vip6}}

// on says of endpoints on which node they are and whether they terminate.
func on(node string, terminating bool, list []mesh.Endpoint) []mesh.Endpoint {
	for i := range list {
		list[i].Node, list[i].Terminating = node, terminating
	}
	return list
}

// TestLocal: with a Local traffic policy a client gets endpoints of its own node, those that terminate
// if no other is left, and else a refusal that says why.
func TestLocal(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, v6 := backends(t, b, 3)
	app := p.App(t)
	here := on("lab", false, endpoints(v4[0], v6[0]))
	leaving := on("lab", true, endpoints(v4[1], v6[1]))
	gone := on("lab", false, endpoints(v4[1], v6[1]))
	elsewhere := on("far", false, endpoints(v4[2], v6[2]))
	set := func(use, draining []mesh.Endpoint) {
		s := svc("near", []netip.Addr{vip4, vip6})
		s.Local = true
		for _, protocol := range []mesh.Protocol{mesh.ProtocolTCP, mesh.ProtocolUDP} {
			s.Ports = append(s.Ports, mesh.ServicePort{Port: 80, Protocol: protocol, Endpoints: use, Draining: draining})
		}
		m.SetService(t, s)
	}
	for _, c := range families {
		t.Run(c.name, func(t *testing.T) {
			ask := func() (tcp, udp string) {
				fd, name := dialTCP(t, app, c.domain, at(c.vip, 80))
				app.Close(fd)
				fd = app.Socket(c.domain, unix.SOCK_DGRAM)
				defer app.Close(fd)
				if err := app.SendTo(fd, "x", at(c.vip, 80)); err != nil {
					t.Fatal(err)
				}
				answer, _ := app.RecvFrom(fd)
				return name, strings.TrimSuffix(answer, " x")
			}
			for _, step := range []struct {
				what          string
				use, draining []mesh.Endpoint
				want          string
			}{
				{"one here", append(elsewhere[:2:2], here...), leaving, "0"},
				{"one here that leaves", elsewhere, leaving, "1"},
			} {
				set(step.use, step.draining)
				for range 8 {
					if tcp, udp := ask(); tcp != step.want || udp != step.want {
						t.Errorf("%s: TCP goes to %s and UDP to %s, want %s", step.what, tcp, udp, step.want)
					}
				}
			}
			set(elsewhere, gone)
			for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
				fd := app.Socket(c.domain, typ)
				if err := app.Connect(fd, at(c.vip, 80)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("connect with none here: %v, want ECONNREFUSED", err)
				}
				app.Close(fd)
			}
			m.WaitFlow(t, "no-local-endpoint", func(f *flow.Flow) bool {
				return f.Reason == flow.ReasonNoLocalEndpoint && f.Original == at(c.vip, 80) && f.Source.Workload.Name == "client"
			})
			// Nowhere at all is another word.
			set(nil, nil)
			fd := app.Socket(c.domain, unix.SOCK_STREAM)
			defer app.Close(fd)
			if err := app.Connect(fd, at(c.vip, 80)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("connect with none at all: %v, want ECONNREFUSED", err)
			}
			m.WaitFlow(t, "no-endpoint", func(f *flow.Flow) bool {
				return f.Reason == flow.ReasonNoEndpoint && f.Original == at(c.vip, 80)
			})
		})
	}
}

// TestDraining: an endpoint that drains gets nobody new, not even by affinity, and keeps the flows that
// it has, also when no other endpoint is left and after another process took over.
func TestDraining(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, v6 := backends(t, b, 2)
	app := p.App(t)
	old, young := endpoints(v4[0], v6[0]), endpoints(v4[1], v6[1])
	set := func(table *service.Table, use, draining []mesh.Endpoint) {
		t.Helper()
		s := svc("web", []netip.Addr{vip4, vip6})
		for _, protocol := range []mesh.Protocol{mesh.ProtocolTCP, mesh.ProtocolUDP} {
			s.Ports = append(s.Ports, mesh.ServicePort{Port: 80, Protocol: protocol, Endpoints: use, Draining: draining})
		}
		sticky := svc("sticky", []netip.Addr{other, netip.MustParseAddr("fd96::2:2")})
		sticky.AffinityTimeout = 1 << 40
		sticky.Ports = s.Ports[:1]
		if err := table.Apply(mesh.Delta{Upserts: []mesh.Resource{s, sticky}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range families {
		t.Run(c.name, func(t *testing.T) {
			sticky := other
			if c.domain == unix.AF_INET6 {
				sticky = netip.MustParseAddr("fd96::2:2")
			}
			set(m.Service, old, nil)
			tcp, _ := dialTCP(t, app, c.domain, at(c.vip, 80))
			defer app.Close(tcp)
			kept, _ := dialTCP(t, app, c.domain, at(sticky, 80))
			defer app.Close(kept)
			udp := app.Socket(c.domain, unix.SOCK_DGRAM)
			defer app.Close(udp)
			ask := func(fd int, want string) {
				t.Helper()
				if err := app.SendTo(fd, "x", at(c.vip, 80)); err != nil {
					t.Fatal(err)
				}
				if got, from := app.RecvFrom(fd); got != want+" x" || from != at(c.vip, 80) {
					t.Errorf("%q from %s, want endpoint %s", got, from, want)
				}
			}
			ask(udp, "0")
			restarted := func() *service.Table {
				table, err := service.New(service.Config{Datapath: m.Datapath, DNS: []netip.Addr{lab.DNS}, Node: "lab"})
				if err != nil {
					t.Fatal(err)
				}
				return table
			}
			for _, step := range []struct {
				what  string
				table *service.Table
				use   []mesh.Endpoint
			}{
				{"another is there", m.Service, young}, {"no other is there", m.Service, nil},
				{"another process", restarted(), nil}, {"another process, another is there", restarted(), young},
			} {
				set(step.table, step.use, old)
				ask(udp, "0")
				app.Send(tcp, "ping")
				if got := app.Recv(tcp); got != "ping" {
					t.Errorf("%s: the connection answers %q", step.what, got)
				}
				if step.use == nil {
					continue
				}
				for _, to := range []netip.AddrPort{at(c.vip, 80), at(sticky, 80)} {
					for range 8 {
						fd, name := dialTCP(t, app, c.domain, to)
						if name != "1" {
							t.Errorf("%s: a new connection to %s goes to the endpoint that drains", step.what, to)
						}
						app.Close(fd)
					}
				}
				fd := app.Socket(c.domain, unix.SOCK_DGRAM)
				ask(fd, "1")
				app.Close(fd)
			}
			// Gone for good.
			set(restarted(), young, nil)
			ask(udp, "1")
		})
	}
}

// TestWeight: connections spread as the weights say.
func TestWeight(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	v4, v6 := backends(t, b, 3)
	app := p.App(t)
	list := endpoints(v4[0], v4[1], v4[2], v6[0], v6[1], v6[2])
	for i, w := range []uint32{60, 20, 0, 60, 20, 0} {
		list[i].Weight = w
	}
	list = append(list[:2:2], list[3:5]...) // weights of 60 to 20: three slots and one
	s := svc("web", []netip.Addr{vip4, vip6}, mesh.ServicePort{Port: 80, Protocol: mesh.ProtocolTCP, Endpoints: list})
	m.SetService(t, s)
	if n := length(t, m.Datapath.Maps().Endpoints); n != 8 {
		t.Errorf("%d slots, want 4 of each family", n)
	}
	for _, c := range families {
		const n = 400
		seen := map[string]int{}
		for range n {
			fd, name := dialTCP(t, app, c.domain, at(c.vip, 80))
			seen[name]++
			app.Close(fd)
		}
		// 300 expected, nine standard deviations below and above.
		if seen["0"] < 222 || seen["0"] > 378 || seen["0"]+seen["1"] != n {
			t.Errorf("%s: %v of %d connections, want three quarters to the first", c.name, seen, n)
		}
	}
}
