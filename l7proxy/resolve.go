package l7proxy

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// Resolver finds the addresses of a DNS name.
type Resolver interface {
	// Resolve returns the addresses and for how long they hold; none if the name does not
	// exist. An error says that nobody knows. It is called on a goroutine of its own.
	Resolve(ctx context.Context, name string) (addrs []netip.Addr, ttl time.Duration, err error)
}

const (
	// minTTL and maxTTL bound for how long an answer is used without another question.
	minTTL, maxTTL = time.Second, 30 * time.Minute
	// resolveAgain is how long after a question that nobody answered the next is asked.
	resolveAgain = 5 * time.Second
)

// names resolves the clusters whose endpoints are what a DNS name stands for, from the
// first use of each until it is removed. What was known stays while nobody answers.
type names struct {
	proxy *Proxy

	mu       sync.Mutex
	clusters map[string]*resolution // guarded by mu
	closed   bool                   // guarded by mu
}

// resolution is what is known of one cluster's name.
type resolution struct {
	config    *mesh.Cluster
	endpoints atomic.Pointer[mesh.ClusterEndpoints] // nil before the first answer
	cancel    context.CancelFunc
}

// of returns the endpoints of a cluster, nil if they are not known yet. The first call
// begins to ask.
func (n *names) of(config *mesh.Cluster) *mesh.ClusterEndpoints {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.clusters[config.Name]
	if r == nil || r.config.Hostname != config.Hostname || r.config.Port != config.Port {
		if n.closed || n.proxy.cfg.Resolver == nil {
			return &mesh.ClusterEndpoints{Cluster: config.Name}
		}
		if r != nil {
			r.cancel()
		}
		r = &resolution{config: config}
		var ctx context.Context
		ctx, r.cancel = context.WithCancel(context.Background())
		if n.clusters == nil {
			n.clusters = map[string]*resolution{}
		}
		n.clusters[config.Name] = r
		go n.run(ctx, r)
	}
	return r.endpoints.Load()
}

// remove ends what is asked for a cluster.
func (n *names) remove(cluster string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.clusters[cluster]; r != nil {
		r.cancel()
		delete(n.clusters, cluster)
	}
}

func (n *names) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for _, r := range n.clusters {
		r.cancel()
	}
}

// run asks again and again until ctx ends.
func (n *names) run(ctx context.Context, r *resolution) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		addrs, ttl, err := n.proxy.cfg.Resolver.Resolve(ctx, r.config.Hostname)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.proxy.log.Warn("the name of a backend is not resolved, what was known is used", "cluster", r.config.Name, "name", r.config.Hostname, "error", err)
			n.learned(r, nil, r.endpoints.Load() == nil)
			t.Reset(resolveAgain)
			continue
		}
		n.learned(r, addrs, true)
		t.Reset(min(max(ttl, minTTL), maxTTL))
	}
}

// learned publishes addresses, unless they are those that were known.
func (n *names) learned(r *resolution, addrs []netip.Addr, known bool) {
	if !known {
		return
	}
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	now := &mesh.ClusterEndpoints{Cluster: r.config.Name}
	for _, a := range slices.Compact(addrs) {
		now.Endpoints = append(now.Endpoints, mesh.Endpoint{AddrPort: netip.AddrPortFrom(a, r.config.Port)})
	}
	if before := r.endpoints.Load(); before != nil && slices.Equal(before.Endpoints, now.Endpoints) {
		return
	}
	r.endpoints.Store(now)
	p := n.proxy
	p.generation.Add(1)
	for _, w := range p.workers {
		w.committed()
	}
	p.refreshClusters(mesh.Delta{Upserts: []mesh.Resource{now}})
}
