package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/bpf"
)

// Config says where the kernel objects go.
type Config struct {
	// WorkloadsCgroup is the cgroup v2 folder above all workloads' cgroups. The
	// socket programs are attached to it.
	WorkloadsCgroup string
	// NodeCgroup is the cgroup v2 folder of the node's own processes: whoever makes
	// listening or upstream sockets for workloads sits in it.
	NodeCgroup string
	// Dir is a folder on a bpffs for the pins; it is made if absent.
	Dir string
	// Sizes of the maps that are not there yet. A map that is pinned keeps its size.
	Sizes  Sizes
	Logger *slog.Logger
}

// Sizes are the greatest numbers of entries of the maps.
type Sizes struct {
	Workloads   uint32 // workloads of this node
	Addresses   uint32 // of workloads, on all nodes
	Services    uint32 // frontends: one for each VIP and port
	Endpoints   uint32 // endpoints of all frontends together
	Affinity    uint32 // clients with session affinity; the oldest gives way
	Handshakes  uint32 // connections to the node proxy whose handshake is not complete
	Connections uint32 // open translated TCP connections; the others' getpeername shows endpoints
	Datagrams   uint32 // services of unconnected UDP sockets, each socket's counted
	Sockets     uint32 // gateways and inbound listeners
	EventBytes  uint32 // ring of events, a power of two of at least a page
}

// DefaultSizes fit a node of a cluster with tens of thousands of services.
func DefaultSizes() Sizes {
	return Sizes{
		Workloads: 4096, Addresses: 262144, Services: 65536, Endpoints: 524288, Affinity: 65536,
		Handshakes: 65536, Connections: 65536, Datagrams: 131072, Sockets: 8192, EventBytes: 1 << 18,
	}
}

// Validate returns an error that names every field that is wrong and why.
func (c Config) Validate() error {
	var errs []error
	for _, cg := range []struct{ field, path string }{
		{"WorkloadsCgroup", c.WorkloadsCgroup}, {"NodeCgroup", c.NodeCgroup},
	} {
		if err := validateCgroup(cg.path); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", cg.field, err))
		}
	}
	// The programs of workloads would refuse the node's own connections.
	if rel, err := filepath.Rel(c.WorkloadsCgroup, c.NodeCgroup); err == nil && !strings.HasPrefix(rel, "..") {
		errs = append(errs, fmt.Errorf("NodeCgroup: %s lies in WorkloadsCgroup %s", c.NodeCgroup, c.WorkloadsCgroup))
	}
	if err := validateDir(c.Dir); err != nil {
		errs = append(errs, fmt.Errorf("Dir: %w", err))
	}
	for _, size := range c.Sizes.fields() {
		if *size.value == 0 {
			errs = append(errs, fmt.Errorf("Sizes.%s: must not be zero", size.name))
		}
	}
	if n := c.Sizes.EventBytes; bits.OnesCount32(n) != 1 || int(n)%os.Getpagesize() != 0 {
		errs = append(errs, fmt.Errorf("Sizes.EventBytes: %d is no power of two of at least a page", n))
	}
	return errors.Join(errs...)
}

// validateCgroup returns an error unless path is a cgroup v2 folder other than the
// root, which all processes of the machine would be subject to.
func validateCgroup(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not absolute", path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not on a cgroup v2 file system", path)
	}
	// Every cgroup but the root has a type.
	if _, err := os.Stat(filepath.Join(path, "cgroup.type")); err != nil {
		return fmt.Errorf("%s is the root cgroup: %w", path, err)
	}
	return nil
}

// validateDir returns an error unless dir lies, or would lie, on a bpffs.
func validateDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%q is not absolute", dir)
	}
	at := dir
	for {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, fs.ErrNotExist) && at != "/" {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return fmt.Errorf("stat %s: %w", at, err)
		}
		if st.Type != unix.BPF_FS_MAGIC {
			return fmt.Errorf("%s is not on a bpffs (mount -t bpf bpf /sys/fs/bpf)", dir)
		}
		return nil
	}
}

type sizeField struct {
	name  string
	value *uint32
	maps  []string
}

func (s *Sizes) fields() []sizeField {
	return []sizeField{
		{"Workloads", &s.Workloads, []string{bpf.MeshMapWorkloads, bpf.MeshMapInterfaces}},
		{"Addresses", &s.Addresses, []string{bpf.MeshMapMeshAddresses}},
		{"Services", &s.Services, []string{bpf.MeshMapServices}},
		{"Endpoints", &s.Endpoints, []string{bpf.MeshMapEndpoints, bpf.MeshMapMembers}},
		{"Affinity", &s.Affinity, []string{bpf.MeshMapAffinities}},
		{"Handshakes", &s.Handshakes, []string{bpf.MeshMapPending, bpf.MeshMapOwnTuples}},
		{"Connections", &s.Connections, []string{bpf.MeshMapTranslated}},
		{"Datagrams", &s.Datagrams, []string{bpf.MeshMapDatagrams, bpf.MeshMapDatagramNames}},
		{"Sockets", &s.Sockets, []string{
			bpf.MeshMapGateways, bpf.MeshMapGatewaySockets, bpf.MeshMapInbound, bpf.MeshMapInboundSockets,
		}},
		{"EventBytes", &s.EventBytes, []string{bpf.MeshMapEvents}},
	}
}

// Datapath is the loaded programs and maps. Its methods may be called from any
// goroutine.
type Datapath struct {
	cfg     Config
	objects bpf.MeshObjects
}

// Load opens the maps pinned in cfg.Dir, makes those that are absent, and loads
// the programs. It attaches nothing: what an earlier process attached goes on
// with its own programs until Attach.
func Load(cfg Config) (*Datapath, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{cfg.Dir, filepath.Join(cfg.Dir, mapsDir), filepath.Join(cfg.Dir, linksDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of pins: %w", err)
		}
	}
	spec, err := bpf.LoadMesh()
	if err != nil {
		return nil, fmt.Errorf("parse the programs' object: %w", err)
	}
	for _, size := range cfg.Sizes.fields() {
		for _, name := range size.maps {
			spec.Maps[name].MaxEntries = *size.value
		}
	}
	// Each workload has an address of each family.
	spec.Maps[bpf.MeshMapAddresses].MaxEntries = 2 * cfg.Sizes.Workloads
	spec.Maps[bpf.MeshMapNeighbours].MaxEntries = 2 * cfg.Sizes.Workloads

	d := &Datapath{cfg: cfg}
	pinned, err := d.openMaps(spec)
	defer func() {
		for _, m := range pinned {
			m.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := configure(spec); err != nil {
		return nil, fmt.Errorf("set the programs' settings: %w", err)
	}
	opts := &ebpf.CollectionOptions{MapReplacements: pinned}
	if err := spec.LoadAndAssign(&d.objects, opts); err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	if err := d.pinMaps(spec, pinned); err != nil {
		return nil, errors.Join(err, d.objects.Close())
	}
	return d, nil
}

// configure sets the programs' constants.
func configure(spec *ebpf.CollectionSpec) error {
	var mptcp uint32
	if _, err := os.Stat("/proc/sys/net/mptcp"); err == nil {
		mptcp = 1
	}
	return errors.Join(
		spec.Variables[bpf.MeshVarEventWakeupBytes].Set(spec.Maps[bpf.MeshMapEvents].MaxEntries/4),
		spec.Variables[bpf.MeshVarHaveMptcp].Set(mptcp),
	)
}

const (
	mapsDir  = "maps"
	linksDir = "links"
)

func (d *Datapath) mapPin(name string) string {
	return filepath.Join(d.cfg.Dir, mapsDir, fmt.Sprintf("%s_v%d", name, bpf.MeshLayoutLAYOUT_VERSION))
}

func (d *Datapath) linkPin(name string) string {
	return filepath.Join(d.cfg.Dir, linksDir, name)
}

// openMaps returns the pinned maps of this layout by name, and has spec agree with
// their sizes.
func (d *Datapath) openMaps(spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	pinned := map[string]*ebpf.Map{}
	for name, ms := range spec.Maps {
		if !isPinned(name) {
			continue
		}
		path := d.mapPin(name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return pinned, fmt.Errorf("open map %s: %w", path, err)
		}
		pinned[name] = m
		if m.MaxEntries() != ms.MaxEntries {
			d.cfg.Logger.Info("map keeps its size", "map", name, "entries", m.MaxEntries(), "configured", ms.MaxEntries)
			ms.MaxEntries = m.MaxEntries()
		}
		if err := ms.Compatible(m); err != nil {
			return pinned, fmt.Errorf("map %s was not made by this version of the layout: %w", path, err)
		}
	}
	return pinned, nil
}

func (d *Datapath) pinMaps(spec *ebpf.CollectionSpec, pinned map[string]*ebpf.Map) error {
	made := mapsByName(&d.objects.MeshMaps)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if !isPinned(name) || pinned[name] != nil {
			continue
		}
		if err := made[name].Pin(d.mapPin(name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	return nil
}

// isPinned tells maps from a program's own variables, which go with the program.
func isPinned(name string) bool { return !strings.HasPrefix(name, ".") }

// Maps are the maps, each for the package that its comment in bpf/include/maps.h names.
// They are closed by Close.
func (d *Datapath) Maps() *bpf.MeshMaps { return &d.objects.MeshMaps }

// OpenReadOnly returns a new descriptor of a map that does not allow writing.
// The caller closes it.
func (d *Datapath) OpenReadOnly(name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(d.mapPin(name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", name, err)
	}
	return m, nil
}

// SetVerdictEvents says whether the programs also tell of connections that they
// translated or redirected. They do by default; refusals are always told. It takes
// effect at once for the programs loaded by this process.
func (d *Datapath) SetVerdictEvents(on bool) error {
	var value uint32
	if on {
		value = 1
	}
	if err := d.objects.EventVerdicts.Set(value); err != nil {
		return fmt.Errorf("set the programs' events: %w", err)
	}
	return nil
}

// SetRedirectPeer says whether packets between workloads of this node bypass its
// network stack. They do by default. It takes effect at once for the programs loaded
// by this process.
func (d *Datapath) SetRedirectPeer(on bool) error {
	var value uint32
	if on {
		value = 1
	}
	if err := d.objects.RedirectPeer.Set(value); err != nil {
		return fmt.Errorf("set how packets between workloads go: %w", err)
	}
	return nil
}

// Close closes the descriptors. Everything pinned goes on.
func (d *Datapath) Close() error { return d.objects.Close() }

// Remove detaches every program and removes every map that is pinned in dir, and
// dir itself. It is no error if dir does not exist.
func Remove(dir string) error {
	links, err := pins(filepath.Join(dir, linksDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range links {
		errs = append(errs, removeLink(path))
	}
	maps, err := pins(filepath.Join(dir, mapsDir))
	errs = append(errs, err)
	for _, path := range maps {
		errs = append(errs, os.Remove(path))
	}
	for _, d := range []string{filepath.Join(dir, linksDir), filepath.Join(dir, mapsDir), dir} {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pins returns the paths of the pins in a folder, none if there is no such folder.
func pins(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pins: %w", err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, filepath.Join(dir, e.Name()))
	}
	return out, nil
}
