package service

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
)

// Config of a Table.
type Config struct {
	Datapath *loader.Datapath
	// DNS are the addresses of the DNS service: port 53 of them, TCP and UDP, is
	// answered by the node proxy, whatever a Service says of it.
	DNS []netip.Addr
	// Node is the name of this node, to which services with a Local traffic policy are
	// bound.
	Node string
	// Gone is told of the endpoints that services have no more, neither to use nor
	// draining, once the kernel sends nobody there; nil: nobody is told. Those of TCP
	// count only when their address belongs to no workload any more (Alive): a
	// Service that selects a workload no longer leaves its connections alone, as
	// kube-proxy does.
	Gone func([]Gone)
	// Alive reports whether an address is that of a workload; nil: none is.
	Alive func(netip.Addr) bool
	// Registerer may be nil.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// dnsPort is where DNS is asked for (RFC 1035 §4.2).
const dnsPort = 53

// dnsOwner owns the DNS frontends; no resource has such a key.
const dnsOwner = "*dns*"

// frontend is what the kernel has for one VIP, port and protocol.
type frontend struct {
	id         uint32
	generation uint32
	want
	// owner is the key of the service that it belongs to; empty while only an earlier
	// process knows.
	owner string
	// partial says that the endpoints in the kernel are not those listed.
	partial bool
}

// want is what a frontend is to be.
type want struct {
	flags           uint32
	affinitySeconds uint32
	endpoints       []netip.AddrPort // in the order of slots; one with more weight has more slots
	members         bool             // endpoints are looked up by address, too
	// draining are looked up by address only: nobody is sent there, and flows go on.
	// Without members the kernel does not know them, nor does a later process.
	draining []netip.AddrPort
}

func (w want) equal(o want) bool {
	return w.flags == o.flags && w.affinitySeconds == o.affinitySeconds &&
		w.members == o.members && w.sameEndpoints(o)
}

func (w want) sameEndpoints(o want) bool {
	return slices.Equal(w.endpoints, o.endpoints) && (!w.members || slices.Equal(w.draining, o.draining))
}

// Table is the service tables.
type Table struct {
	maps *bpf.MeshMaps
	log  *slog.Logger
	cfg  Config

	frontends map[bpf.MeshFrontend]*frontend
	owned     map[string][]bpf.MeshFrontend // by the key of the service
	failed    map[string]*mesh.Service
	// lingering are endpoints of TCP that services have no more, while their workloads live.
	lingering map[Gone]bool
	nextID    uint32
	// firstGeneration differs between processes, so that a socket cannot take an
	// endpoint of an earlier frontend with the same id for one of the current set.
	firstGeneration uint32

	// Read by the metrics from other goroutines.
	frontendCount, endpointCount, memberCount, failedCount atomic.Int64
}

// New reads back the tables of an earlier process and writes the DNS frontends.
func New(cfg Config) (*Table, error) {
	if cfg.Datapath == nil {
		return nil, errors.New("service: no datapath")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Table{
		maps:            cfg.Datapath.Maps(),
		log:             cfg.Logger,
		cfg:             cfg,
		frontends:       map[bpf.MeshFrontend]*frontend{},
		owned:           map[string][]bpf.MeshFrontend{},
		failed:          map[string]*mesh.Service{},
		lingering:       map[Gone]bool{},
		firstGeneration: rand.Uint32(),
	}
	if err := t.restore(); err != nil {
		return nil, fmt.Errorf("read the service tables back: %w", err)
	}
	if err := t.writeDNS(cfg.DNS); err != nil {
		return nil, fmt.Errorf("write the DNS frontends: %w", err)
	}
	if cfg.Registerer != nil {
		if err := t.register(cfg.Registerer); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *Table) writeDNS(addrs []netip.Addr) error {
	var b batch
	for _, a := range addrs {
		for _, p := range []mesh.Protocol{mesh.ProtocolUDP, mesh.ProtocolTCP} {
			key := bpf.FrontendFrom(netip.AddrPortFrom(a, dnsPort), uint8(p))
			t.plan(&b, key, dnsOwner, want{flags: uint32(bpf.MeshServiceFlagsSERVICE_DNS)})
		}
	}
	return errors.Join(slices.Collect(errorsOf(t.write(&b)))...)
}

// Apply projects the services of a delta; other kinds are ignored. It costs
// O(the services in d). A client sees a frontend as it was or as it is, never a
// mixture. The error joins one for each service that could not be written; those
// are tried again with the next Apply. One goroutine at a time may call
// Apply and Prune.
func (t *Table) Apply(d mesh.Delta) error {
	services := map[string]*mesh.Service{}
	for key, s := range t.failed {
		services[key] = s
	}
	for _, r := range d.Upserts {
		if s, ok := r.(*mesh.Service); ok {
			services[s.Key()] = s
		}
	}
	workloads := false
	for _, ref := range d.Removes {
		switch ref.Kind {
		case mesh.KindService:
			services[ref.Key] = nil // as in mesh/store, removals come last
		case mesh.KindWorkload:
			workloads = true
		default:
		}
	}
	var b batch
	var dropped []claim
	for key, s := range services {
		dropped = append(dropped, t.planService(&b, key, s)...)
	}
	for _, c := range dropped {
		// Another service may have taken the address over.
		if t.owner(&b, c.frontend) == c.owner {
			b.removes = append(b.removes, c.frontend)
		}
	}
	clear(t.failed)
	failures := t.write(&b)
	var errs []error
	for key, err := range failures {
		errs = append(errs, fmt.Errorf("write service %s: %w", key, err))
		// A service that is to go and could not is left to Prune.
		if s := services[key]; s != nil {
			t.failed[key] = s
		}
	}
	t.failedCount.Store(int64(len(failures)))
	t.tellGone(b.gone, workloads)
	return errors.Join(errs...)
}

// Prune removes the frontends of an earlier process that no service applied since
// New has. Call it once the first full state was applied.
func (t *Table) Prune() (removed int, err error) {
	var b batch
	for key, f := range t.frontends {
		if f.owner == "" {
			b.removes = append(b.removes, key)
			removed++
		}
	}
	if failures := t.write(&b); len(failures) > 0 {
		return 0, fmt.Errorf("prune the service tables: %w", errors.Join(slices.Collect(errorsOf(failures))...))
	}
	return removed, nil
}

// claim says that a frontend belonged to a service.
type claim struct {
	frontend bpf.MeshFrontend
	owner    string
}

// planService adds the changes that make the service's frontends be what s says,
// nil for none, and returns those that it had and has no more.
func (t *Table) planService(b *batch, key string, s *mesh.Service) (dropped []claim) {
	wanted := map[bpf.MeshFrontend]want{}
	if s != nil && !s.Headless {
		wanted = t.wants(s)
	}
	var owned []bpf.MeshFrontend
	for f, w := range wanted {
		if old := t.frontends[f]; old != nil && old.owner == dnsOwner {
			continue
		}
		owned = append(owned, f)
		t.plan(b, f, key, w)
	}
	for _, f := range t.owned[key] {
		if _, still := wanted[f]; !still {
			dropped = append(dropped, claim{f, key})
		}
	}
	if len(owned) == 0 {
		delete(t.owned, key)
	} else {
		t.owned[key] = owned
	}
	return dropped
}

// owner returns whose the frontend is once b is written.
func (t *Table) owner(b *batch, f bpf.MeshFrontend) string {
	if c := b.changes[f]; c != nil {
		return c.owner
	}
	if old := t.frontends[f]; old != nil {
		return old.owner
	}
	return ""
}

// plan adds the change that makes a frontend be what w says, if it is not.
func (t *Table) plan(b *batch, key bpf.MeshFrontend, owner string, w want) {
	old := t.frontends[key]
	if old != nil && !old.partial && old.equal(w) {
		b.gone = append(b.gone, lost(key, old.want, w)...)
		old.owner, old.draining = owner, w.draining
		delete(b.changes, key)
		return
	}
	now := &frontend{want: w, owner: owner}
	switch {
	case old == nil:
		t.nextID++
		now.id, now.generation = t.nextID, t.firstGeneration
	case old.partial || !old.sameEndpoints(w):
		now.id, now.generation = old.id, old.generation+1
	default:
		now.id, now.generation = old.id, old.generation
	}
	if b.changes == nil {
		b.changes = map[bpf.MeshFrontend]*frontend{}
	}
	b.changes[key] = now
}

// wants returns the frontends of a service.
func (t *Table) wants(s *mesh.Service) map[bpf.MeshFrontend]want {
	out := make(map[bpf.MeshFrontend]want, len(s.VIPs)*len(s.Ports))
	for _, vip := range s.VIPs {
		vip = vip.Unmap()
		for i := range s.Ports {
			p := &s.Ports[i]
			w := want{members: p.Protocol == mesh.ProtocolUDP}
			if p.Steered && p.Protocol == mesh.ProtocolTCP {
				// The node proxy chooses.
				w.flags |= uint32(bpf.MeshServiceFlagsSERVICE_STEERED)
			} else {
				if s.AffinityTimeout > 0 {
					w.flags |= uint32(bpf.MeshServiceFlagsSERVICE_AFFINITY)
					w.affinitySeconds = seconds(s.AffinityTimeout)
					w.members = true
				}
				use, elsewhere := t.usable(s, p)
				if elsewhere {
					w.flags |= uint32(bpf.MeshServiceFlagsSERVICE_LOCAL)
				}
				w.endpoints = slots(use, vip)
				w.draining = unused(p, vip, w.endpoints)
			}
			out[bpf.FrontendFrom(netip.AddrPortFrom(vip, p.Port), uint8(p.Protocol))] = w
		}
	}
	return out
}

// seconds rounds up, so that no affinity ends early.
func seconds(d time.Duration) uint32 {
	return uint32(min((d+time.Second-1)/time.Second, math.MaxUint32))
}
