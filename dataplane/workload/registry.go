package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/ipam"
	"github.com/sluice-mesh/sluice/dataplane/listen"
	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// Errors that callers tell apart.
var (
	// ErrExists says that a workload of the name runs and differs or has another owner.
	ErrExists = errors.New("workload exists")
	// ErrNotFound says that no workload has the name.
	ErrNotFound = errors.New("no such workload")
	// ErrClosed says that the registry was closed.
	ErrClosed = errors.New("workload registry is closed")
)

// Hooks are told about workloads by the goroutine that adds or removes them, one
// call at a time for each workload.
type Hooks interface {
	// OnAdd enrols a workload whose namespace, cgroup and sockets are complete, and
	// before any process is in it. It runs again, for what runs already, after a
	// restart of the agent. An error takes the workload apart; OnRemove is not called
	// then, so OnAdd undoes what it did.
	OnAdd(ctx context.Context, s *Sandbox) error
	// OnRemove forgets a workload whose processes have ended. The proxy must close
	// its copies of the sockets, which hold the namespace. It may be a workload of an
	// earlier agent, for which this one has not called OnAdd.
	OnRemove(s *Sandbox)
}

// Config says what a Registry works with.
type Config struct {
	// RunDir holds records, namespaces and Pods: RunDir/workloads, /netns, /pods.
	RunDir string
	// CgroupRoot is a cgroup2 folder; each workload gets CgroupRoot/NAMESPACE_NAME.
	CgroupRoot string
	// PoolV4 and PoolV6 are the node's address pools. At least one is set.
	PoolV4, PoolV6 netip.Prefix
	Node           string
	// NodeNetns is the node's namespace, which must stay open until Close; nil means
	// that of the thread that calls New.
	NodeNetns *netns.Namespace
	// AllowHostSysctl permits turning on forwarding in the network namespace of
	// process 1. Any other namespace is changed without asking.
	AllowHostSysctl bool
	// DNS are the addresses of the name server that workloads ask, and ClusterDomain
	// the suffix of Services ("cluster.local").
	DNS           []netip.Addr
	ClusterDomain string
	// Hide are folders that workloads must not see, beside RunDir: the node's state
	// folder, its bpffs and its cgroups.
	Hide []string
	// MTU of the workloads' interfaces; zero: 1500.
	MTU    int
	Hooks  Hooks // nil: nobody is told
	Logger *slog.Logger
}

// Validate checks what can be checked without the kernel.
func (c *Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.RunDir) {
		errs = append(errs, fmt.Errorf("run folder %q is not an absolute path", c.RunDir))
	}
	if !filepath.IsAbs(c.CgroupRoot) {
		errs = append(errs, fmt.Errorf("cgroup %q is not an absolute path", c.CgroupRoot))
	}
	if !c.PoolV4.IsValid() && !c.PoolV6.IsValid() {
		errs = append(errs, errors.New("no address pool"))
	}
	if c.PoolV4.IsValid() && !c.PoolV4.Addr().Is4() {
		errs = append(errs, fmt.Errorf("IPv4 address pool %s is not IPv4", c.PoolV4))
	}
	if c.PoolV6.IsValid() && (!c.PoolV6.Addr().Is6() || c.PoolV6.Addr().Is4In6()) {
		errs = append(errs, fmt.Errorf("IPv6 address pool %s is not IPv6", c.PoolV6))
	}
	if !isDNSSubdomain(c.Node) {
		errs = append(errs, fmt.Errorf("node name %q is not an RFC 1123 subdomain", c.Node))
	}
	if !isDNSSubdomain(c.ClusterDomain) {
		errs = append(errs, fmt.Errorf("cluster domain %q is not an RFC 1123 subdomain", c.ClusterDomain))
	}
	// IPv6 asks for 1280 (RFC 8200 §5).
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		errs = append(errs, fmt.Errorf("MTU %d is not between 1280 and 65535", c.MTU))
	}
	if c.Logger == nil {
		errs = append(errs, errors.New("no logger"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("workload registry: %w", err)
	}
	return nil
}

// killTimeout bounds the wait for killed processes to end. One that sleeps in the
// kernel for longer keeps its workload on record.
const killTimeout = 10 * time.Second

// Registry holds the node's workloads. All methods may be called concurrently.
type Registry struct {
	cfg            Config
	log            *slog.Logger
	recordDir      string
	netnsDir       string
	podDir         string
	poolV4, poolV6 *ipam.Pool // nil: no addresses of the family
	node           *node
	ownNetns       bool

	// gate is held for reading by every call that changes workloads, and for writing
	// by Close.
	gate   sync.RWMutex
	closed bool

	mu sync.Mutex // guards all following fields
	// locks serialise the changes of each workload.
	locks     map[mesh.Name]*nameLock
	workloads map[mesh.Name]*entry
	byIndex   map[mesh.WorkloadIndex]*entry
	indexes   *indexes
	restored  bool
}

// entry is a workload as the registry knows it. Its fields are guarded by the
// workload's name lock and written under Registry.mu as well, so that either is
// enough to read them.
type entry struct {
	sandbox *Sandbox
	record  record
	// active says that OnAdd has returned, and restored that an earlier agent may have
	// called it; OnRemove was not called since.
	active, restored bool
	// watch is the wait for the owner of a restored workload that has not come back.
	watch *watch
	// session is the owner's connection, or nil.
	session *session
}

type nameLock struct {
	sync.Mutex
	users int // guarded by Registry.mu
}

// New checks the configuration and prepares folders, the parent cgroup and the
// node's namespace: forwarding, and the pools' node addresses on lo. It touches no
// workload.
func New(cfg Config) (*Registry, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	r := &Registry{
		cfg: cfg, log: cfg.Logger.With("component", "workload"),
		recordDir: filepath.Join(cfg.RunDir, "workloads"),
		netnsDir:  filepath.Join(cfg.RunDir, "netns"),
		podDir:    filepath.Join(cfg.RunDir, "pods"),
		locks:     make(map[mesh.Name]*nameLock),
		workloads: make(map[mesh.Name]*entry),
		byIndex:   make(map[mesh.WorkloadIndex]*entry),
	}
	var nodeV4, nodeV6 netip.Addr
	var err error
	if cfg.PoolV4.IsValid() {
		if r.poolV4, err = ipam.NewPool(cfg.PoolV4); err != nil {
			return nil, err
		}
		nodeV4 = r.poolV4.NodeAddress()
	}
	if cfg.PoolV6.IsValid() {
		if r.poolV6, err = ipam.NewPool(cfg.PoolV6); err != nil {
			return nil, err
		}
		nodeV6 = r.poolV6.NodeAddress()
	}
	for _, dir := range []string{cfg.RunDir, r.recordDir, r.netnsDir, r.podDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make run folder: %w", err)
		}
	}
	if err := checkCgroup2(cfg.CgroupRoot); err != nil {
		return nil, err
	}
	if r.indexes, err = openIndexes(filepath.Join(r.recordDir, "next-index")); err != nil {
		return nil, err
	}
	if r.cfg.NodeNetns == nil {
		if r.cfg.NodeNetns, err = netns.Current(); err != nil {
			return nil, err
		}
		r.ownNetns = true
	}
	r.node, err = newNode(r.cfg.NodeNetns, nodeV4, nodeV6, cfg.MTU, cfg.AllowHostSysctl)
	if err != nil {
		if r.ownNetns {
			_ = r.cfg.NodeNetns.Close()
		}
		return nil, err
	}
	return r, nil
}

// NodeAddresses returns the node's own addresses in the pools, which New put on lo,
// IPv4 first.
func (r *Registry) NodeAddresses() []netip.Addr { return r.node.addresses() }

// enter admits a change of the workload and serialises it with others of the same
// name. The caller calls leave when it is done.
func (r *Registry) enter(name mesh.Name) (leave func(), err error) {
	r.gate.RLock()
	if r.closed {
		r.gate.RUnlock()
		return nil, ErrClosed
	}
	r.mu.Lock()
	lock := r.locks[name]
	if lock == nil {
		lock = new(nameLock)
		r.locks[name] = lock
	}
	lock.users++
	r.mu.Unlock()
	lock.Lock()
	return func() {
		lock.Unlock()
		r.mu.Lock()
		if lock.users--; lock.users == 0 {
			delete(r.locks, name)
		}
		r.mu.Unlock()
		r.gate.RUnlock()
	}, nil
}

func (r *Registry) lookup(name mesh.Name) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.workloads[name]
}

// Add makes a workload and returns when it is enrolled. Adding the same Spec again
// returns the Sandbox that is there; another Spec of the name is ErrExists. The
// workload lives until Remove.
func (r *Registry) Add(ctx context.Context, spec Spec) (*Sandbox, error) {
	return r.add(ctx, spec, owner{}, nil)
}

// add makes a workload for an owner, and for its connection if it has one.
func (r *Registry) add(ctx context.Context, spec Spec, by owner, session *session) (*Sandbox, error) {
	spec = spec.clone()
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	leave, err := r.enter(spec.Name)
	if err != nil {
		return nil, err
	}
	defer leave()

	if e := r.lookup(spec.Name); e != nil {
		switch {
		case e.record.Phase == phaseRemoving:
			// What an earlier Remove could not take away.
			if err := r.remove(ctx, e); err != nil {
				return nil, err
			}
		case session == nil && e.active && e.record.Owner == by && e.sandbox.Spec.equal(&spec):
			return e.sandbox, nil
		default:
			return nil, fmt.Errorf("%w: %s", ErrExists, spec.Name)
		}
	}

	s := &Sandbox{
		Spec: spec, Node: r.cfg.Node, Created: time.Now().UTC().Truncate(time.Second),
		NetnsPath:     filepath.Join(r.netnsDir, fileName(spec.Name)),
		CgroupPath:    filepath.Join(r.cfg.CgroupRoot, fileName(spec.Name)),
		HostInterface: hostInterfaceName(spec.Name),
		ResolvConf:    resolvConf(spec.Name.Namespace, r.cfg.ClusterDomain, r.cfg.DNS),
		Hide:          append([]string{r.cfg.RunDir}, r.cfg.Hide...),
	}
	e := &entry{sandbox: s, record: record{Phase: phaseMaking, Owner: by, Sandbox: s}}
	if err := r.make(ctx, e); err != nil {
		// The caller's context may be what ended it.
		if undo := r.takeApart(context.WithoutCancel(ctx), e); undo != nil {
			err = errors.Join(err, undo)
		}
		return nil, fmt.Errorf("add workload %s: %w", spec.Name, err)
	}
	e.session = session
	r.log.Info("workload added", "workload", spec.Name.String(), "index", s.Index, "addresses", s.Addresses)
	return s, nil
}

// make makes all pieces of e. On error the pieces that were made are on record.
func (r *Registry) make(ctx context.Context, e *entry) error {
	s := e.sandbox
	if err := r.register(e); err != nil {
		return err
	}
	for _, pool := range []*ipam.Pool{r.poolV4, r.poolV6} {
		if pool == nil {
			continue
		}
		addr, err := pool.Allocate()
		if err != nil {
			return err
		}
		s.Addresses = append(s.Addresses, addr)
	}
	if err := writeRecord(r.recordDir, &e.record); err != nil {
		return err
	}
	var err error
	if s.CgroupID, err = makeCgroup(s.CgroupPath); err != nil {
		return err
	}
	pod, err := netns.Create(s.NetnsPath)
	if err != nil {
		return err
	}
	defer func() { _ = pod.Close() }()
	if s.NetnsCookie, err = pod.Cookie(); err != nil {
		return err
	}
	if err := r.node.connect(s, pod); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	sockets := wantSockets(s.Addresses)
	err = openSockets(pod, sockets)
	s.mu.Lock()
	s.sockets = sockets
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if err := r.setPhase(e, phaseComplete); err != nil {
		return err
	}
	return r.activate(ctx, e)
}

// activate tells the hooks and the control plane of a complete workload.
func (r *Registry) activate(ctx context.Context, e *entry) error {
	if r.cfg.Hooks != nil {
		if err := r.cfg.Hooks.OnAdd(ctx, e.sandbox); err != nil {
			return fmt.Errorf("enrol: %w", err)
		}
	}
	r.mu.Lock()
	e.active = true
	r.mu.Unlock()
	return r.writePod(e.sandbox)
}

// register gives e an index and puts it into the tables.
func (r *Registry) register(e *entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	index, err := r.indexes.take(func(i mesh.WorkloadIndex) bool { return r.byIndex[i] != nil })
	if err != nil {
		return err
	}
	e.sandbox.Index = index
	r.byIndex[index] = e
	r.workloads[e.sandbox.Spec.Name] = e
	return nil
}

func (r *Registry) setPhase(e *entry, p phase) error {
	r.mu.Lock()
	e.record.Phase = p
	r.mu.Unlock()
	return writeRecord(r.recordDir, &e.record)
}

// Started marks the workload's command as started: its Pod becomes Running and Ready.
func (r *Registry) Started(name mesh.Name) error {
	leave, err := r.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	e := r.lookup(name)
	if e == nil || e.record.Phase != phaseComplete {
		return fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	e.sandbox.mu.Lock()
	e.sandbox.ready = true
	e.sandbox.mu.Unlock()
	e.record.Started = true
	return errors.Join(writeRecord(r.recordDir, &e.record), r.writePod(e.sandbox))
}

// Remove ends all processes of a workload and takes away everything made for it.
// It is ErrNotFound if there is none. What could not be taken away stays on record,
// and removing or adding the workload again goes on with it.
func (r *Registry) Remove(ctx context.Context, name mesh.Name) error {
	leave, err := r.enter(name)
	if err != nil {
		return err
	}
	defer leave()
	e := r.lookup(name)
	if e == nil {
		return fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	return r.remove(ctx, e)
}

// removeIf removes the workload of a name if it still is e.
func (r *Registry) removeIf(ctx context.Context, e *entry, why string) {
	name := e.sandbox.Spec.Name
	leave, err := r.enter(name)
	if err != nil {
		return
	}
	defer leave()
	if r.lookup(name) != e {
		return
	}
	r.log.Debug("removing workload", "workload", name.String(), "why", why)
	if err := r.remove(ctx, e); err != nil {
		r.log.Error("workload could not be removed", "workload", name.String(), "error", err)
	}
}

func (r *Registry) remove(ctx context.Context, e *entry) error {
	if err := r.takeApart(ctx, e); err != nil {
		return fmt.Errorf("remove workload %s: %w", e.sandbox.Spec.Name, err)
	}
	r.log.Info("workload removed", "workload", e.sandbox.Spec.Name.String(), "index", e.sandbox.Index)
	return nil
}

// takeApart undoes make, whichever pieces there are, in an order that never lets a
// process of the workload run outside the mesh: processes, enrolment, network.
func (r *Registry) takeApart(ctx context.Context, e *entry) error {
	s := e.sandbox
	name := s.Spec.Name
	unrecorded := r.setPhase(e, phaseRemoving)
	if e.watch != nil {
		_ = e.watch.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	err := errors.Join(removeFile(r.podFile(name)), emptyCgroup(ctx, s.CgroupPath))
	if err != nil {
		return errors.Join(err, unrecorded)
	}
	if e.active || e.restored {
		if r.cfg.Hooks != nil {
			r.cfg.Hooks.OnRemove(s)
		}
		r.mu.Lock()
		e.active, e.restored = false, false
		r.mu.Unlock()
	}
	s.closeSockets()
	if err := r.takeApartPieces(s); err != nil {
		return errors.Join(err, unrecorded)
	}
	if err := removeFile(filepath.Join(r.recordDir, fileName(name)+recordSuffix)); err != nil {
		return err
	}
	for _, addr := range s.Addresses {
		r.pool(addr).Release(addr)
	}
	r.mu.Lock()
	delete(r.workloads, name)
	if r.byIndex[s.Index] == e {
		delete(r.byIndex, s.Index)
	}
	r.mu.Unlock()
	if e.session != nil {
		e.session.close()
	}
	return nil
}

// takeApartPieces takes away what the kernel holds for a workload without processes.
func (r *Registry) takeApartPieces(s *Sandbox) error {
	return errors.Join(
		r.node.disconnect(s.HostInterface),
		netns.Delete(s.NetnsPath),
		removeCgroup(s.CgroupPath),
	)
}

func (r *Registry) pool(addr netip.Addr) *ipam.Pool {
	if addr.Is4() {
		return r.poolV4
	}
	return r.poolV6
}

func (s *Sandbox) closeSockets() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.sockets {
		if s.sockets[i].FD >= 0 {
			_ = unix.Close(s.sockets[i].FD)
		}
	}
	s.sockets = nil
}

// Get returns the workload of a name, or nil if there is none or it is not complete.
func (r *Registry) Get(name mesh.Name) *Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.workloads[name]; e != nil && e.record.Phase == phaseComplete {
		return e.sandbox
	}
	return nil
}

// List returns the workloads by name: those that are complete, be they active or
// restored.
func (r *Registry) List() []*Sandbox {
	r.mu.Lock()
	out := make([]*Sandbox, 0, len(r.workloads))
	for _, e := range r.workloads {
		if e.record.Phase == phaseComplete {
			out = append(out, e.sandbox)
		}
	}
	r.mu.Unlock()
	slices.SortFunc(out, func(a, b *Sandbox) int { return a.Spec.Name.Compare(b.Spec.Name) })
	return out
}

// Close stops watching owners and closes the connections of Handler, and leaves all
// workloads running for the next agent. The sockets are closed in this process only.
func (r *Registry) Close() error {
	r.gate.Lock()
	defer r.gate.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.workloads {
		if e.session != nil {
			e.session.close()
		}
		if e.watch != nil {
			_ = e.watch.Close()
		}
		e.sandbox.closeSockets()
	}
	r.node.link.Close()
	if r.ownNetns {
		return r.cfg.NodeNetns.Close()
	}
	return nil
}

// resolvConf is what resolv.conf(5) says in a workload: the domains that a Pod with
// the DNS policy ClusterFirst searches.
func resolvConf(namespace, clusterDomain string, servers []netip.Addr) string {
	var b strings.Builder
	for _, server := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	fmt.Fprintf(&b, "search %[1]s.svc.%[2]s svc.%[2]s %[2]s\noptions ndots:5\n", namespace, clusterDomain)
	return b.String()
}

// Adopt takes sockets that came back from the proxy, and their ownership. It returns
// those that no workload lacks, which stay the caller's.
func (r *Registry) Adopt(fds []int) (rest []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	byCookie := make(map[uint64]*Sandbox)
	for _, e := range r.workloads {
		if e.record.Phase == phaseComplete {
			byCookie[e.sandbox.NetnsCookie] = e.sandbox
		}
	}
	for _, fd := range fds {
		id, err := listen.Identify(fd)
		if err != nil {
			r.log.Warn("socket that came back is of no use", "error", err)
		}
		if s := byCookie[id.NetnsCookie]; err != nil || s == nil || !s.adopt(id, fd) {
			rest = append(rest, fd)
		}
	}
	return rest
}

func (s *Sandbox) adopt(id listen.Identity, fd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.sockets {
		if have := &s.sockets[i]; have.FD < 0 && have.Protocol == id.Protocol && have.AddrPort == id.AddrPort {
			unix.CloseOnExec(fd)
			have.FD = fd
			return true
		}
	}
	return false
}
