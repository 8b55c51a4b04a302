package events_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"net/netip"
	"reflect"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/events"
	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func TestMain(m *testing.M) { lab.Main(m) }

func sample(t testing.TB, e bpf.MeshEvent) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, &e); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFlow(t *testing.T) {
	a := netip.MustParseAddr
	client := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web"}}
	server := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "db"}}
	cfg := events.Config{
		Node: "n1",
		Workload: func(i mesh.WorkloadIndex) *mesh.Workload {
			if i == 7 {
				return client
			}
			return nil
		},
		Address: func(x netip.Addr) *mesh.Workload {
			switch x {
			case a("10.0.0.7"):
				return client
			case a("10.0.0.8"):
				return server
			}
			return nil
		},
		Service: func(f mesh.Frontend) mesh.Name {
			if f.String() == "TCP 10.96.0.1:80" {
				return mesh.Name{Namespace: "shop", Name: "db"}
			}
			return mesh.Name{}
		},
	}
	source := flow.Peer{AddrPort: netip.MustParseAddrPort("10.0.0.7:0"), Workload: client.Name, Labels: client.Labels}
	event := bpf.MeshEvent{
		Time: 5, Source: bpf.AddrFrom(a("10.0.0.7")), Original: bpf.AddrFrom(a("10.96.0.1")), OriginalPort: bpf.Port(80),
		Workload: 7, Family: 2, Protocol: 6, Hook: uint8(bpf.MeshHookHOOK_CONNECT),
	}
	flowOf := func(change func(*flow.Flow)) flow.Flow {
		f := flow.Flow{
			Time: time.Unix(0, 1005), Node: "n1", Type: flow.TypeSocket, Detail: "connect", Source: source, Protocol: mesh.ProtocolTCP,
			Original: netip.MustParseAddrPort("10.96.0.1:80"),
		}
		f.Destination.AddrPort, f.Destination.Service = f.Original, mesh.Name{Namespace: "shop", Name: "db"}
		change(&f)
		return f
	}
	for _, c := range []struct {
		name   string
		change func(*bpf.MeshEvent)
		want   flow.Flow
	}{
		{"translated", func(e *bpf.MeshEvent) {
			e.Verdict = uint8(bpf.MeshVerdictVERDICT_TRANSLATED)
			e.Chosen, e.ChosenPort = bpf.AddrFrom(a("10.0.0.8")), bpf.Port(8080)
		}, flowOf(func(f *flow.Flow) {
			f.Verdict = flow.VerdictTranslated
			f.Destination.AddrPort, f.Destination.Workload = netip.MustParseAddrPort("10.0.0.8:8080"), server.Name
		})},
		{"redirected", func(e *bpf.MeshEvent) {
			e.Verdict = uint8(bpf.MeshVerdictVERDICT_REDIRECTED)
			e.Chosen, e.ChosenPort = bpf.AddrFrom(a("10.0.0.7")), bpf.Port(15001)
		}, flowOf(func(f *flow.Flow) {
			f.Verdict, f.Destination.AddrPort = flow.VerdictRedirected, netip.MustParseAddrPort("10.0.0.7:15001")
		})},
		{"dropped", func(e *bpf.MeshEvent) {
			e.Verdict, e.Reason = uint8(bpf.MeshVerdictVERDICT_DROPPED), uint16(flow.ReasonNoEndpoint)
		}, flowOf(func(f *flow.Flow) { f.Verdict, f.Reason = flow.VerdictDropped, flow.ReasonNoEndpoint })},
		{"known by its address", func(e *bpf.MeshEvent) {
			e.Verdict, e.Reason, e.Workload = uint8(bpf.MeshVerdictVERDICT_DROPPED), uint16(flow.ReasonListenerClosed), 0
			e.SourcePort, e.Hook = bpf.Port(4711), uint8(bpf.MeshHookHOOK_GATEWAY)
		}, flowOf(func(f *flow.Flow) {
			f.Verdict, f.Reason, f.Detail, f.Ingress = flow.VerdictDropped, flow.ReasonListenerClosed, "gateway", true
			f.Source.AddrPort = netip.MustParseAddrPort("10.0.0.7:4711")
		})},
		{"bind", func(e *bpf.MeshEvent) {
			e.Verdict, e.Reason = uint8(bpf.MeshVerdictVERDICT_DROPPED), uint16(flow.ReasonBindReserved)
			e.Hook = uint8(bpf.MeshHookHOOK_BIND)
		}, flowOf(func(f *flow.Flow) {
			f.Verdict, f.Reason, f.Detail = flow.VerdictDropped, flow.ReasonBindReserved, "bind"
			f.Destination = flow.Peer{}
		})},
	} {
		e := event
		c.change(&e)
		got, err := events.NewFlow(cfg, sample(t, e), 1000)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, *got, c.want)
		}
	}
}

// TestVocabulary: numbers mean the same on both sides.
func TestVocabulary(t *testing.T) {
	for c, want := range map[bpf.MeshVerdict]flow.Verdict{
		bpf.MeshVerdictVERDICT_FORWARDED:  flow.VerdictForwarded,
		bpf.MeshVerdictVERDICT_DROPPED:    flow.VerdictDropped,
		bpf.MeshVerdictVERDICT_REDIRECTED: flow.VerdictRedirected,
		bpf.MeshVerdictVERDICT_TRANSLATED: flow.VerdictTranslated,
	} {
		if flow.Verdict(c) != want {
			t.Errorf("verdict %d is %d in C", want, c)
		}
	}
	if got := unsafe.Sizeof(bpf.MeshEvent{}); got != 96 {
		t.Errorf("an event has %d bytes in Go, 96 in C", got)
	}
}

func FuzzFlow(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 95))
	f.Add(bytes.Repeat([]byte{0xff}, 96))
	f.Add(sample(f, bpf.MeshEvent{Verdict: 2, Reason: 1, Hook: 1, Protocol: 6}))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := events.NewFlow(events.Config{}, b, 0)
		if (err == nil) != (len(b) >= 96) || (err == nil) != (got != nil) {
			t.Errorf("%d bytes: %v, %v", len(b), got, err)
		}
	})
}

// TestLost: what does not fit into the ring is counted, and the count is told.
func TestLost(t *testing.T) {
	n := lab.NewNode(t)
	cfg := n.Config()
	cfg.Sizes.EventBytes = 4096
	d, err := loader.Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	defer loader.Remove(cfg.Dir)
	if err := d.Attach(); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	const refused, more = 200, 10
	var seen, lost, want uint64 = 0, 0, refused
	enough := make(chan struct{}, 1)
	r, err := events.New(events.Config{Datapath: d, Node: "n", Sink: func(f *flow.Flow) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case f.Type == flow.TypeLost && f.LostSource == "kernel":
			lost += f.Lost
		case f.Reason == flow.ReasonForeignNamespace:
			seen++
		}
		if seen+lost >= want {
			want = math.MaxUint64
			enough <- struct{}{}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	// Nobody reads yet: of these refusals only some fit.
	app := n.Pod(t, "stranger").App(t)
	if got := app.Hammer(unix.AF_INET, netip.MustParseAddrPort("10.0.0.1:1"), refused); got[unix.EPERM.Error()] != refused {
		t.Fatalf("a pod that is not enrolled: %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	wait := func(seenOnly uint64) {
		t.Helper()
		select {
		case <-enough:
		case <-time.After(10 * time.Second):
		}
		mu.Lock()
		defer mu.Unlock()
		if seen+lost != refused+seenOnly || seen <= seenOnly || lost == 0 {
			t.Fatalf("%d seen and %d lost of %d", seen, lost, refused+seenOnly)
		}
		want = refused + more
	}
	wait(0)
	// Those that were lost are told once.
	app.Hammer(unix.AF_INET, netip.MustParseAddrPort("10.0.0.1:1"), more)
	wait(more)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if seen+lost != refused+more {
		t.Errorf("in the end %d seen and %d lost of %d", seen, lost, refused+more)
	}
}

// TestVerdictEvents: connections that were not refused are told unless switched off.
func TestVerdictEvents(t *testing.T) {
	m := lab.NewMesh(t)
	p, b := m.Enrol(t, "client"), m.Enrol(t, "backend")
	b.Echo(t, "b", netip.AddrPortFrom(b.Addr4, 80))
	vip := netip.MustParseAddr("10.96.1.1")
	m.SetService(t, &mesh.Service{
		Name: mesh.Name{Namespace: "lab", Name: "web"}, VIPs: []netip.Addr{vip},
		Ports: []mesh.ServicePort{{Port: 80, Protocol: mesh.ProtocolTCP, Endpoints: []mesh.Endpoint{
			{AddrPort: netip.AddrPortFrom(b.Addr4, 80)},
		}}},
	})
	if err := m.Datapath.SetVerdictEvents(false); err != nil {
		t.Fatal(err)
	}
	app := p.App(t)
	if got := app.Hammer(unix.AF_INET, netip.AddrPortFrom(vip, 80), 5); got["b"] != 5 {
		t.Fatalf("answers: %v", got)
	}
	// A refusal is told all the same, and comes after them.
	if err := app.Connect(app.Socket(unix.AF_INET, unix.SOCK_STREAM), netip.AddrPortFrom(p.Addr4, steer.OutboundPort)); err == nil {
		t.Fatal("reached a capture port")
	}
	m.WaitFlow(t, "capture-port", func(f *flow.Flow) bool {
		if f.Verdict == flow.VerdictTranslated {
			t.Error("a translated connection was told")
		}
		return f.Reason == flow.ReasonCapturePort
	})
	if err := m.Datapath.SetVerdictEvents(true); err != nil {
		t.Fatal(err)
	}
	app.Hammer(unix.AF_INET, netip.AddrPortFrom(vip, 80), 1)
	m.WaitFlow(t, "translated", func(f *flow.Flow) bool { return f.Verdict == flow.VerdictTranslated })
}
