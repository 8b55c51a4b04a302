package destroy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Victim is an endpoint that a service has no more. The sockets that were connected
// to the service and got the endpoint are ended; others that speak to it are not.
type Victim struct {
	Frontend mesh.Frontend
	Endpoint netip.AddrPort
}

// Namespace is a workload's network namespace.
type Namespace struct {
	Workload *mesh.Workload
	Index    mesh.WorkloadIndex
	// Path is where it can be opened.
	Path string
}

// Config of a Destroyer.
type Config struct {
	Datapath *loader.Datapath
	// Node is the name of this node, for flows.
	Node string
	// Namespaces returns those of the workloads of this node. No other is entered.
	Namespaces func() []Namespace
	// Service names the service with the frontend, for flows; nil: unknown.
	Service func(mesh.Frontend) mesh.Name
	// Sink takes a flow for each socket that was ended. It must not block.
	Sink   func(*flow.Flow)
	Logger *slog.Logger
}

// Destroyer ends sockets.
type Destroyer struct {
	cfg        Config
	victims    *ebpf.Map
	translated *ebpf.Map // the datapath's
	tcp, udp   *link.Iter

	wake    chan struct{}
	mu      sync.Mutex
	pending map[Victim]bool // guarded by mu
}

// New loads the programs. The error says so if the kernel cannot (Linux 6.5 and newer
// can). The caller calls Run, or Close.
func New(cfg Config) (*Destroyer, error) {
	if cfg.Datapath == nil || cfg.Namespaces == nil || cfg.Sink == nil {
		return nil, errors.New("destroy: no datapath, namespaces or sink")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Service == nil {
		cfg.Service = func(mesh.Frontend) mesh.Name { return mesh.Name{} }
	}
	spec, err := bpf.LoadDestroy()
	if err != nil {
		return nil, fmt.Errorf("parse the programs that end sockets: %w", err)
	}
	maps := cfg.Datapath.Maps()
	spec.Maps[bpf.DestroyMapTranslated].MaxEntries = maps.Translated.MaxEntries()
	var o bpf.DestroyObjects
	if err := spec.LoadAndAssign(&o, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{
		bpf.DestroyMapTranslated: maps.Translated, bpf.DestroyMapPeers: maps.Peers,
	}}); err != nil {
		return nil, fmt.Errorf("load the programs that end sockets (Linux 6.5 and newer): %w", err)
	}
	defer o.Close()
	d := &Destroyer{cfg: cfg, translated: maps.Translated, wake: make(chan struct{}, 1), pending: map[Victim]bool{}}
	if d.tcp, err = link.AttachIter(link.IterOptions{Program: o.DestroyTcp}); err != nil {
		return nil, fmt.Errorf("make the iterator of TCP sockets: %w", err)
	}
	if d.udp, err = link.AttachIter(link.IterOptions{Program: o.DestroyUdp}); err != nil {
		return nil, errors.Join(fmt.Errorf("make the iterator of UDP sockets: %w", err), d.tcp.Close())
	}
	if d.victims, err = o.Victims.Clone(); err != nil {
		return nil, errors.Join(err, d.tcp.Close(), d.udp.Close())
	}
	return d, nil
}

// Close releases what New made.
func (d *Destroyer) Close() error {
	return errors.Join(d.tcp.Close(), d.udp.Close(), d.victims.Close())
}

// Add has Run end the sockets of the victims. Any goroutine may call it.
func (d *Destroyer) Add(victims []Victim) {
	if len(victims) == 0 {
		return
	}
	d.mu.Lock()
	for _, v := range victims {
		d.pending[v] = true
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Run ends sockets until ctx ends, and returns nil then. What gathers while it is
// at work is done together. It closes the Destroyer.
func (d *Destroyer) Run(ctx context.Context) error {
	defer d.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		}
		d.mu.Lock()
		pending := d.pending
		d.pending = map[Victim]bool{}
		d.mu.Unlock()
		for len(pending) > 0 {
			if err := d.end(pending); err != nil {
				d.cfg.Logger.Error("connections to endpoints that are gone stay open", "error", err)
			}
		}
	}
}

// end ends the sockets of as many victims as have room, and takes them out.
func (d *Destroyer) end(pending map[Victim]bool) error {
	var keys []bpf.DestroyVictim
	protocols := map[mesh.Protocol]bool{}
	for v := range pending {
		if len(keys) == int(d.victims.MaxEntries()) {
			break
		}
		delete(pending, v)
		keys = append(keys, key(v))
		protocols[v.Frontend.Protocol] = true
	}
	values := make([]uint32, len(keys))
	if _, err := d.victims.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("write the victims: %w", err)
	}
	defer func() {
		if _, err := d.victims.BatchDelete(keys, nil); err != nil {
			d.cfg.Logger.Error("cannot clear the victims", "error", err)
		}
	}()
	var clients map[uint32]bool
	if protocols[mesh.ProtocolTCP] {
		var err error
		if clients, err = d.clients(keys); err != nil {
			return err
		}
	}
	var errs []error
	for _, ns := range d.cfg.Namespaces() {
		if protocols[mesh.ProtocolUDP] {
			errs = append(errs, d.visit(d.udp, ns))
		}
		if clients[uint32(ns.Index)] {
			errs = append(errs, d.visit(d.tcp, ns))
		}
	}
	return errors.Join(errs...)
}

// clients returns the workloads that have a TCP connection to a victim: an iterator goes
// over the sockets of the whole machine, once for each namespace that is visited.
func (d *Destroyer) clients(keys []bpf.DestroyVictim) (map[uint32]bool, error) {
	wanted := make(map[bpf.DestroyVictim]bool, len(keys))
	for _, k := range keys {
		wanted[k] = true
	}
	const chunk = 1024
	cookies, notes := make([]uint64, chunk), make([]bpf.DestroyPeer, chunk)
	out := map[uint32]bool{}
	var cursor ebpf.MapBatchCursor
	for {
		n, err := d.translated.BatchLookup(&cursor, cookies, notes, nil)
		for i := range notes[:n] {
			note := &notes[i]
			if wanted[bpf.DestroyVictim{
				Original: note.Original, Chosen: note.Chosen,
				OriginalPort: note.OriginalPort, ChosenPort: note.ChosenPort, Protocol: uint32(mesh.ProtocolTCP),
			}] {
				out[note.Workload] = true
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the translated connections: %w", err)
		}
	}
}

// visit ends the victims' sockets in one namespace. One that is gone is no error.
func (d *Destroyer) visit(iter *link.Iter, ns Namespace) error {
	space, err := netns.Open(ns.Path)
	if err != nil {
		d.cfg.Logger.Debug("a namespace is gone", "path", ns.Path, "error", err)
		return nil
	}
	defer space.Close()
	var sockets io.ReadCloser
	// The namespace that counts is that of the thread which opens the iterator.
	if err := space.Do(func() (err error) {
		sockets, err = iter.Open()
		return err
	}); err != nil {
		return fmt.Errorf("visit the sockets of workload %s: %w", ns.Workload.Name, err)
	}
	defer sockets.Close()
	var e bpf.DestroyEnded
	record := make([]byte, unsafe.Sizeof(e))
	for {
		if _, err := io.ReadFull(sockets, record); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("visit the sockets of workload %s: %w", ns.Workload.Name, err)
		}
		if _, err := binary.Decode(record, binary.NativeEndian, &e); err != nil {
			return fmt.Errorf("read what was ended: %w", err)
		}
		d.tell(&e, ns)
	}
}

func (d *Destroyer) tell(e *bpf.DestroyEnded, ns Namespace) {
	original := netip.AddrPortFrom(bpf.MeshAddr(e.Victim.Original).Addr(), bpf.Port(e.Victim.OriginalPort))
	f := &flow.Flow{
		Time: time.Now(), Node: d.cfg.Node, Type: flow.TypeSocket, Verdict: flow.VerdictDropped,
		Reason: flow.ReasonEndpointGone, Protocol: mesh.Protocol(e.Victim.Protocol), Original: original,
	}
	f.Source.Workload, f.Source.Labels = ns.Workload.Name, ns.Workload.Labels
	for _, a := range ns.Workload.Addresses {
		if a.Is4() == original.Addr().Is4() {
			f.Source.AddrPort = netip.AddrPortFrom(a, bpf.Port(e.SourcePort))
		}
	}
	f.Destination.AddrPort = netip.AddrPortFrom(bpf.MeshAddr(e.Victim.Chosen).Addr(), bpf.Port(e.Victim.ChosenPort))
	f.Destination.Service = d.cfg.Service(mesh.Frontend{AddrPort: original, Protocol: f.Protocol})
	d.cfg.Sink(f)
}

// key is the victim as the programs know it.
func key(v Victim) bpf.DestroyVictim {
	k := bpf.DestroyVictim{
		OriginalPort: bpf.Port(v.Frontend.AddrPort.Port()), ChosenPort: bpf.Port(v.Endpoint.Port()),
		Protocol: uint32(v.Frontend.Protocol),
	}
	k.Original.Bytes = bpf.AddrFrom(v.Frontend.AddrPort.Addr()).Bytes
	k.Chosen.Bytes = bpf.AddrFrom(v.Endpoint.Addr()).Bytes
	return k
}
