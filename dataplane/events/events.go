package events

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Config of a Reader. The functions that name things may be nil, must not block, and
// are called from Run; nil or a zero Name means unknown.
type Config struct {
	Datapath *loader.Datapath
	// Node is the name of this node.
	Node string
	// Workload names a workload of this node.
	Workload func(mesh.WorkloadIndex) *mesh.Workload
	// Address names the owner of an address in the mesh.
	Address func(netip.Addr) *mesh.Workload
	// Service names the service or gateway with the frontend.
	Service func(mesh.Frontend) mesh.Name
	// Sink takes the flows. It must not block.
	Sink   func(*flow.Flow)
	Logger *slog.Logger
}

// withDefaults names nothing where no function was given.
func (cfg Config) withDefaults() Config {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Workload == nil {
		cfg.Workload = func(mesh.WorkloadIndex) *mesh.Workload { return nil }
	}
	if cfg.Address == nil {
		cfg.Address = func(netip.Addr) *mesh.Workload { return nil }
	}
	if cfg.Service == nil {
		cfg.Service = func(mesh.Frontend) mesh.Name { return mesh.Name{} }
	}
	return cfg
}

// Reader turns kernel events into flows.
type Reader struct {
	cfg  Config
	ring *ringbuf.Reader
	lost *ebpf.Map

	// Owned by Run.
	lostBefore uint64
}

// pollInterval is how long an event that does not wake the reader (bpf/include/event.h)
// waits at most.
const pollInterval = 50 * time.Millisecond

// New opens the ring; nothing is read before Run. If Run is not called, Close.
func New(cfg Config) (*Reader, error) {
	if cfg.Datapath == nil || cfg.Sink == nil {
		return nil, errors.New("events: no datapath or no sink")
	}
	cfg = cfg.withDefaults()
	maps := cfg.Datapath.Maps()
	ring, err := ringbuf.NewReader(maps.Events)
	if err != nil {
		return nil, fmt.Errorf("open the ring of kernel events: %w", err)
	}
	r := &Reader{cfg: cfg, ring: ring, lost: maps.Lost}
	// What was lost while nobody read is the last process's to tell, or nobody's.
	if r.lostBefore, err = r.lostNow(); err != nil {
		return nil, errors.Join(err, ring.Close())
	}
	return r, nil
}

// Close releases the ring.
func (r *Reader) Close() error { return r.ring.Close() }

// Run reads events until ctx ends, and returns nil then. It closes the ring.
func (r *Reader) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { r.ring.Close() })
	defer stop()
	defer r.ring.Close()
	offset, err := clockOffset()
	if err != nil {
		return err
	}
	var rec ringbuf.Record
	for {
		r.ring.SetDeadline(time.Now().Add(pollInterval))
		// Read all that is there before the deadline is moved.
		for {
			err = r.ring.ReadInto(&rec)
			if err != nil {
				break
			}
			f, perr := r.flow(rec.RawSample, offset)
			if perr != nil {
				r.cfg.Logger.Error("kernel event is not understood", "error", perr)
				continue
			}
			r.cfg.Sink(f)
		}
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return r.tellLost()
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("read kernel events: %w", err)
		}
		// Time of day may have been set.
		if offset, err = clockOffset(); err != nil {
			return err
		}
		if err := r.tellLost(); err != nil {
			return err
		}
	}
}

// clockOffset returns what to add to ktime to get the time of day.
func clockOffset() (time.Duration, error) {
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(time.Now().UnixNano() - mono.Nano()), nil
}

func (r *Reader) lostNow() (uint64, error) {
	var perCPU []uint64
	if err := r.lost.Lookup(uint32(0), &perCPU); err != nil {
		return 0, fmt.Errorf("read the count of lost kernel events: %w", err)
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum, nil
}

func (r *Reader) tellLost() error {
	now, err := r.lostNow()
	if err != nil || now == r.lostBefore {
		return err
	}
	r.cfg.Sink(&flow.Flow{
		Time: time.Now(), Node: r.cfg.Node, Type: flow.TypeLost,
		Lost: now - r.lostBefore, LostSource: "kernel",
	})
	r.lostBefore = now
	return nil
}

// hookTexts say where in the kernel an event was seen, for flow.Flow.Detail.
var hookTexts = map[bpf.MeshHook]string{
	bpf.MeshHookHOOK_CONNECT: "connect",
	bpf.MeshHookHOOK_SENDMSG: "sendmsg",
	bpf.MeshHookHOOK_BIND:    "bind",
	bpf.MeshHookHOOK_SOCKOPS: "sockops",
	bpf.MeshHookHOOK_INBOUND: "inbound",
	bpf.MeshHookHOOK_GATEWAY: "gateway",
	bpf.MeshHookHOOK_HOST:    "packet",
	bpf.MeshHookHOOK_CAPTURE: "capture",
}

// parse decodes an event as the programs write it.
func parse(sample []byte) (bpf.MeshEvent, error) {
	var e bpf.MeshEvent
	if uintptr(len(sample)) < unsafe.Sizeof(e) {
		return e, fmt.Errorf("event of %d bytes is too short", len(sample))
	}
	if _, err := binary.Decode(sample, binary.NativeEndian, &e); err != nil {
		return e, fmt.Errorf("decode an event: %w", err)
	}
	return e, nil
}

func (r *Reader) flow(sample []byte, offset time.Duration) (*flow.Flow, error) {
	e, err := parse(sample)
	if err != nil {
		return nil, err
	}
	original := netip.AddrPortFrom(e.Original.Addr(), bpf.Port(e.OriginalPort))
	f := &flow.Flow{
		Time:     time.Unix(0, int64(e.Time)+int64(offset)),
		Node:     r.cfg.Node,
		Type:     flow.TypeSocket,
		Verdict:  flow.Verdict(e.Verdict),
		Reason:   flow.Reason(e.Reason),
		Detail:   hookTexts[bpf.MeshHook(e.Hook)],
		Protocol: mesh.Protocol(e.Protocol),
		Original: original,
	}
	f.Source.AddrPort = netip.AddrPortFrom(e.Source.Addr(), bpf.Port(e.SourcePort))
	source := r.cfg.Workload(mesh.WorkloadIndex(e.Workload))
	if source == nil {
		source = r.cfg.Address(f.Source.AddrPort.Addr())
	}
	if source != nil {
		f.Source.Workload, f.Source.Labels = source.Name, source.Labels
	}
	if bpf.MeshHook(e.Hook) == bpf.MeshHookHOOK_BIND {
		return f, nil
	}
	f.Ingress = bpf.MeshHook(e.Hook) == bpf.MeshHookHOOK_GATEWAY
	f.Destination.AddrPort = original
	if chosen := e.Chosen.Addr(); chosen.IsValid() {
		f.Destination.AddrPort = netip.AddrPortFrom(chosen, bpf.Port(e.ChosenPort))
	}
	f.Destination.Service = r.cfg.Service(mesh.Frontend{AddrPort: original, Protocol: f.Protocol})
	// A redirected connection is on its way to the proxy; whose address that is says nothing.
	if f.Verdict != flow.VerdictRedirected {
		if w := r.cfg.Address(f.Destination.AddrPort.Addr()); w != nil {
			f.Destination.Workload, f.Destination.Labels = w.Name, w.Labels
		}
	}
	return f, nil
}
