package mesh

// Kind is a type of resource that travels from the control plane to a node.
type Kind string

// The kinds. Each has one key per resource: the string that follows.
const (
	KindWorkload         Kind = "workload"    // Workload.Name.String()
	KindService          Kind = "service"     // Service.Name.String()
	KindListener         Kind = "listener"    // Listener.Name
	KindVirtualHost      Kind = "virtualhost" // VirtualHost.Key()
	KindCluster          Kind = "cluster"     // Cluster.Name
	KindClusterEndpoints Kind = "endpoints"   // ClusterEndpoints.Cluster
	KindCertificate      Kind = "certificate" // Certificate.Name
)

// Kinds lists all kinds in the order in which a node applies them: what is
// referred to comes first, so that nothing refers to a thing not yet there.
var Kinds = []Kind{
	KindCertificate, KindClusterEndpoints, KindCluster, KindVirtualHost,
	KindListener, KindWorkload, KindService,
}

// Resource is any of *Workload, *Service, *Listener, *VirtualHost, *Cluster,
// *ClusterEndpoints or *Certificate.
type Resource interface {
	Kind() Kind
	Key() string
}

// Kind returns KindWorkload.
func (*Workload) Kind() Kind { return KindWorkload }

// Key returns "namespace/name".
func (w *Workload) Key() string { return w.Name.String() }

// Kind returns KindService.
func (*Service) Kind() Kind { return KindService }

// Key returns "namespace/name".
func (s *Service) Key() string { return s.Name.String() }

// Kind returns KindListener.
func (*Listener) Kind() Kind { return KindListener }

// Key returns the listener's name.
func (l *Listener) Key() string { return l.Name }

// Kind returns KindVirtualHost.
func (*VirtualHost) Kind() Kind { return KindVirtualHost }

// Kind returns KindCluster.
func (*Cluster) Kind() Kind { return KindCluster }

// Key returns the cluster's name.
func (c *Cluster) Key() string { return c.Name }

// Kind returns KindClusterEndpoints.
func (*ClusterEndpoints) Kind() Kind { return KindClusterEndpoints }

// Key returns the cluster's name.
func (c *ClusterEndpoints) Key() string { return c.Cluster }

// Kind returns KindCertificate.
func (*Certificate) Kind() Kind { return KindCertificate }

// Key returns "namespace/name".
func (c *Certificate) Key() string { return c.Name }

// Delta is a change of the mesh: what is new or different, and what is gone.
// Applying it costs O(its own size).
type Delta struct {
	Upserts []Resource
	Removes []Ref
}

// Ref names a resource.
type Ref struct {
	Kind Kind
	Key  string
}

// IsEmpty reports whether the delta changes nothing.
func (d Delta) IsEmpty() bool { return len(d.Upserts) == 0 && len(d.Removes) == 0 }
