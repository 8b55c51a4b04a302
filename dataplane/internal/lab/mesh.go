package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/events"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/service"
	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// DNS is the address of the DNS service.
var DNS = netip.MustParseAddr("10.96.0.10")

// Mesh is a node with the dataplane loaded and attached.
type Mesh struct {
	*Node
	Datapath *loader.Datapath
	Steer    *steer.Table
	Service  *service.Table

	mu      sync.Mutex
	arrived *sync.Cond
	flows   []*flow.Flow                          // guarded by mu
	pods    map[mesh.WorkloadIndex]*mesh.Workload // guarded by mu
	silent  bool                                  // guarded by mu
}

// Config returns the configuration of the node's datapath with small maps.
func (n *Node) Config() loader.Config {
	return loader.Config{
		WorkloadsCgroup: n.WorkloadsCgroup, NodeCgroup: n.NodeCgroup,
		Dir: filepath.Join(n.BPFFS, "sluice"),
		Sizes: loader.Sizes{
			Workloads: 64, Addresses: 64, Services: 1024, Endpoints: 4096, Affinity: 1024,
			Handshakes: 1024, Connections: 1024, Datagrams: 8192, Sockets: 64, EventBytes: 1 << 18,
		},
	}
}

// NewMesh makes a node, attaches the programs, and keeps the node proxy's heartbeat
// going.
func NewMesh(t testing.TB) *Mesh {
	t.Helper()
	return NewMeshSized(t, func(*loader.Config) {})
}

// NewMeshSized is NewMesh with another configuration of the datapath.
func NewMeshSized(t testing.TB, change func(*loader.Config)) *Mesh {
	t.Helper()
	n := NewNode(t)
	cfg := n.Config()
	change(&cfg)
	d, err := loader.Load(cfg)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { d.Close() })
	t.Cleanup(func() { must(t, loader.Remove(n.Config().Dir)) })
	m := &Mesh{Node: n, Datapath: d, pods: map[mesh.WorkloadIndex]*mesh.Workload{}}
	m.arrived = sync.NewCond(&m.mu)
	m.Steer, err = steer.New(steer.Config{Datapath: d})
	must(t, err)
	t.Cleanup(func() { m.Steer.Close() })
	m.Service, err = service.New(service.Config{Datapath: d, DNS: []netip.Addr{DNS}, Node: "lab"})
	must(t, err)
	must(t, d.Attach())

	r, err := events.New(events.Config{
		Datapath: d, Node: "lab", Sink: m.sink,
		Workload: func(i mesh.WorkloadIndex) *mesh.Workload {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.pods[i]
		},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("read events: %v", err)
		}
	})
	running.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			m.beat(t)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	m.beat(t)
	return m
}

func (m *Mesh) beat(t testing.TB) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.silent {
		return
	}
	if err := steer.Beat(m.Steer.HeartbeatMapFD()); err != nil {
		t.Errorf("beat: %v", err)
	}
}

// StopProxy makes the node proxy look as if it had last beaten the given time ago.
func (m *Mesh) StopProxy(t testing.TB, ago time.Duration) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.silent = true
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	must(t, m.Datapath.Maps().Heartbeat.Put(uint32(0), uint64(now.Nano()-int64(ago))))
}

// StartProxy undoes StopProxy.
func (m *Mesh) StartProxy(t testing.TB) {
	t.Helper()
	m.mu.Lock()
	m.silent = false
	m.mu.Unlock()
	m.beat(t)
}

func (m *Mesh) sink(f *flow.Flow) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flows = append(m.flows, f)
	m.arrived.Broadcast()
}

// Enrol makes a pod and enrols it.
func (m *Mesh) Enrol(t testing.TB, name string) *Pod {
	t.Helper()
	p := m.Pod(t, name)
	m.EnrolPod(t, p)
	return p
}

// EnrolPod enrols a pod; its index is the last byte of its address.
func (m *Mesh) EnrolPod(t testing.TB, p *Pod) {
	t.Helper()
	cookie, err := steer.NetnsCookie(p.FD)
	must(t, err)
	w := steer.Workload{
		Index: p.Index(), Name: mesh.Name{Namespace: "lab", Name: p.Name},
		NetnsCookie: cookie, Addr4: p.Addr4, Addr6: p.Addr6,
	}
	m.mu.Lock()
	m.pods[w.Index] = &mesh.Workload{Name: w.Name, Addresses: []netip.Addr{p.Addr4, p.Addr6}}
	m.mu.Unlock()
	must(t, m.Steer.Enrol(w))
}

// Index is the index that EnrolPod gives the pod.
func (p *Pod) Index() mesh.WorkloadIndex { return mesh.WorkloadIndex(p.Addr4.As4()[3]) }

// SetService applies one service.
func (m *Mesh) SetService(t testing.TB, s *mesh.Service) {
	t.Helper()
	must(t, m.Service.Apply(mesh.Delta{Upserts: []mesh.Resource{s}}))
}

// WaitFlow returns the first flow that matches, waiting for it if need be.
func (m *Mesh) WaitFlow(t testing.TB, what string, match func(*flow.Flow) bool) *flow.Flow {
	t.Helper()
	expired := false
	timer := time.AfterFunc(10*time.Second, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		expired = true
		m.arrived.Broadcast()
	})
	defer timer.Stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for _, f := range m.flows {
			if match(f) {
				return f
			}
		}
		if expired {
			for _, f := range m.flows {
				t.Logf("flow: %+v", *f)
			}
			t.Fatalf("no flow: %s", what)
		}
		m.arrived.Wait()
	}
}

// Proxy stands for the node proxy in a pod: it answers each steered connection with the original
// destination and the workload's index, or with "unknown", and then with what it receives.
func (m *Mesh) Proxy(t testing.TB, p *Pod) {
	t.Helper()
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		l := p.ListenSteered(t, a)
		go func() {
			for c := range l.accepted {
				io.WriteString(c, m.origin(t, c))
				go func() {
					defer c.Close()
					echo(c)
				}()
			}
		}()
	}
}

// origin says where a connection was going and whose it is.
func (m *Mesh) origin(t testing.TB, c syscall.Conn) (text string) {
	FD(t, c, func(fd int) {
		o, ok, err := steer.LookupOrigin(m.Steer.OriginMapFD(), fd)
		switch {
		case err != nil:
			text = err.Error()
		case ok:
			text = fmt.Sprintf("%s %d", o.Destination, o.Workload)
		default:
			text = "unknown"
		}
	})
	return text
}

// ProxyHTTP is Proxy for HTTP: the answer is the body of each response.
func (m *Mesh) ProxyHTTP(t testing.TB, p *Pod) {
	t.Helper()
	for _, a := range []netip.Addr{p.Addr4, p.Addr6} {
		type key struct{}
		s := &http.Server{
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, key{}, m.origin(t, c.(*net.TCPConn)))
			},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, r.Context().Value(key{}).(string))
			}),
		}
		for port := steer.OutboundPort; port <= steer.LastOutboundPort; port++ {
			go s.Serve(p.Listen(t, netip.AddrPortFrom(a, port)))
		}
		t.Cleanup(func() { s.Close() })
	}
}
