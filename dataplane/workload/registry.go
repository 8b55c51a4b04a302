package workload

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"

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
	// its copies of the sockets, which hold the namespace.
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
	// NodeNetns is the node's namespace; nil means that of the thread that calls New.
	NodeNetns *netns.Namespace
	// AllowHostSysctl permits turning on forwarding in the network namespace of
	// process 1. Any other namespace is changed without asking.
	AllowHostSysctl bool
	// DNS are the addresses of the name server that workloads ask, and ClusterDomain
	// the suffix of Services ("cluster.local").
	DNS           []netip.Addr
	ClusterDomain string
	// MTU of the workloads' interfaces; zero: 1500.
	MTU    int
	Hooks  Hooks // nil: nobody is told
	Logger *slog.Logger
}

// Registry holds the node's workloads. All methods may be called concurrently.
type Registry struct{ cfg Config }

// New checks the configuration and prepares folders, the parent cgroup and the
// node's namespace: forwarding, and the pools' node addresses on lo. It touches no workload.
func New(cfg Config) (*Registry, error) { return &Registry{cfg: cfg}, nil }

// Restore takes over the workloads that an earlier agent left running, without
// touching their traffic, and removes those that are damaged or whose owner is gone.
// Until Activate, they have no sockets. Call it once, before Add.
func (r *Registry) Restore(ctx context.Context) error { return nil }

// Adopt takes sockets that came back from the proxy, and their ownership. It returns those that no workload
// lacks, which stay the caller's.
func (r *Registry) Adopt(fds []int) (rest []int) { return fds }

// Activate makes the sockets that restored workloads still lack and calls OnAdd for
// each of them. A workload that fails is removed; the error joins the reasons. It
// does nothing for workloads that are active already.
func (r *Registry) Activate(ctx context.Context) error { return nil }

// Add makes a workload and returns when it is enrolled. Adding the same Spec again
// returns the Sandbox that is there; another Spec of the name is ErrExists. The
// workload lives until Remove.
func (r *Registry) Add(ctx context.Context, spec Spec) (*Sandbox, error) { return nil, ErrClosed }

// Started marks the workload's command as started: its Pod becomes Running and Ready.
func (r *Registry) Started(name mesh.Name) error { return ErrNotFound }

// Remove ends all processes of a workload and takes away everything made for it.
// It is ErrNotFound if there is none.
func (r *Registry) Remove(ctx context.Context, name mesh.Name) error { return ErrNotFound }

// Get returns the workload of a name, or nil.
func (r *Registry) Get(name mesh.Name) *Sandbox { return nil }

// List returns the workloads by name.
func (r *Registry) List() []*Sandbox { return nil }

// Close stops watching owners and closes the connections of Handler, and leaves all workloads running for the next
// agent. The sockets are closed in this process only.
func (r *Registry) Close() error { return nil }

// Handler serves the agent's admin socket, which must be a unix socket:
//
//	POST /v1/workloads            body Spec; adds a workload that lives as long as the
//	                              connection. The answer's first line is the Sandbox; the client
//	                              sends "started\n" on the same connection when its command runs.
//	POST /v1/workloads?resume=N   the same client again, after a restart of the agent: the
//	                              workload with index N; 410 if it is gone.
//	GET  /v1/workloads            {"workloads": [Sandbox…]}
func (r *Registry) Handler() http.Handler { return http.NotFoundHandler() }

// PodYAML returns the workload as a Kubernetes Pod, which is what the control plane
// learns of it. The registry keeps it in RunDir/pods/NAMESPACE_NAME.yaml.
func PodYAML(s *Sandbox) []byte { return nil }
