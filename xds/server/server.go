package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/nametree"
	"github.com/sluice-mesh/sluice/xds/peercred"
)

// FeatureCollections is the client feature by which a client says that it
// understands the end marks of prefix subscriptions.
const FeatureCollections = "sluice.dev/collections"

// RoleAgent is the role that is never sent certificates.
const RoleAgent = "agent"

// maxRequestBytes bounds a request. The greatest is the first after a reconnect,
// which names the versions of all that the client holds.
const maxRequestBytes = 64 << 20

// Config of a Server. Logger and Registerer are required.
type Config struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// ClusterDomain ends the names that proxyless gRPC asks for; "cluster.local" if empty.
	ClusterDomain string
	// ProxyUID is the user, beside root, that may be sent certificates.
	ProxyUID uint32
	// OnAck is called when a client has accepted a version of a resource, or with
	// version "" its removal. Nil: not called.
	OnAck func(client Client, ref mesh.Ref, version string)
	// OnNack is called when a client has refused a version of a resource; text is
	// the client's. Nil: not called.
	//
	// Both run in the stream's goroutine with no lock held and must not block.
	OnNack func(client Client, ref mesh.Ref, version, text string)
}

// Validate reports what is missing.
func (c *Config) Validate() error {
	switch {
	case c.Logger == nil:
		return errors.New("xds server: no logger")
	case c.Registerer == nil:
		return errors.New("xds server: no metrics registerer")
	}
	return nil
}

// Client is the other end of a stream.
type Client struct {
	// Node is the id in the client's node message; Role its metadata "role", such
	// as "agent" or "proxy".
	Node string `json:"node"`
	Role string `json:"role"`
}

// Server serves delta ADS. Its methods may be called concurrently.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	cfg     Config
	log     *slog.Logger
	metrics *metrics

	publishing sync.Mutex // held for one Publish at a time; taken before mu

	mu        sync.Mutex // guards what follows and all state of streams
	published bool       // the first Publish has been
	types     map[mesh.Kind]*resourceType
	streams   map[*stream]struct{}
	nonces    uint64
}

// resourceType is the resources of a kind and who watches them.
type resourceType struct {
	kind      mesh.Kind
	url       string
	resources nametree.Tree[*discoveryv3.Resource] // shared by all streams, immutable
	// derive makes a resource of others (derived.go); nil: they are published.
	derive   func(name string) *discoveryv3.Resource
	byName   map[string]watchers
	byPrefix map[string]watchers
}

type watchers map[*subscriptions]struct{}

// New returns a server that holds nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("xds server: %w", err)
	}
	s := &Server{
		cfg:     cfg,
		log:     cfg.Logger.With("component", "xds-server"),
		metrics: m,
		types:   map[mesh.Kind]*resourceType{},
		streams: map[*stream]struct{}{},
	}
	for _, kind := range mesh.Kinds {
		s.addType(kind, codec.TypeURL(kind), nil)
	}
	s.addType(kindRoutes, codec.TypeRouteConfiguration, s.routes)
	s.addType(kindAPIListener, codec.TypeURL(mesh.KindListener), s.apiListener)
	return s, nil
}

func (s *Server) addType(kind mesh.Kind, url string, derive func(string) *discoveryv3.Resource) {
	s.types[kind] = &resourceType{
		kind:     kind,
		url:      url,
		derive:   derive,
		byName:   map[string]watchers{},
		byPrefix: map[string]watchers{},
	}
}

// Listen makes the unix socket at path, in place of one that nobody listens on
// any more. Only root and the members of group may connect; group -1 leaves the
// group as it is.
func Listen(path string, group int) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if conn, dialErr := net.Dial("unix", path); dialErr == nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: another process serves there", path), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Lchown(path, -1, group), os.Chmod(path, 0o660)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Serve accepts connections of a unix socket until ctx ends, then closes it with
// all connections and returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(grpc.Creds(peercred.Credentials(nil)), grpc.MaxRecvMsgSize(maxRequestBytes))
	s.Register(g)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve xds on %s: %w", l.Addr(), err)
	}
	return nil
}

// Register adds the service to a gRPC server, for callers that do without Serve.
// Certificates are sent only over peercred's credentials.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Publish changes what is served. A resource that cannot be encoded keeps its
// last version; the error joins one *codec.Error for each of them and all others
// are served. It costs O(the delta), encodes each resource once and waits for no
// client.
//
// The first call must carry the whole state, even if that is nothing: no stream
// is answered before it, so that no client takes a server that is starting for a
// mesh that is empty.
func (s *Server) Publish(d mesh.Delta) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	var errs []error
	encoded := make([]*discoveryv3.Resource, len(d.Upserts))
	for i, r := range d.Upserts {
		var err error
		if encoded[i], err = encode(r); err != nil {
			s.metrics.unencodable.Inc()
			errs = append(errs, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := map[mesh.Ref]struct{}{}
	changed := func(kind mesh.Kind, name string) {
		if derived, ok := s.derivedFrom(kind, name); ok {
			stale[derived] = struct{}{}
		}
	}
	for i, r := range d.Upserts {
		if encoded[i] != nil && s.types[r.Kind()].put(encoded[i]) {
			changed(r.Kind(), encoded[i].Name)
		}
	}
	for _, ref := range d.Removes {
		if t := s.types[ref.Kind]; t != nil && t.derive == nil && t.remove(ref.Key) {
			changed(ref.Kind, ref.Key)
		}
	}
	for ref := range stale { // once each, however much of it changed
		s.types[ref.Kind].stale(ref.Key)
	}
	for _, kind := range mesh.Kinds {
		t := s.types[kind]
		s.metrics.resources.WithLabelValues(string(kind)).Set(float64(t.resources.Len()))
	}
	if !s.published {
		s.published = true
		for st := range s.streams {
			st.wakeUp()
		}
	}
	return errors.Join(errs...)
}

// encode returns the resource as all streams send it. Its version is a hash of
// its content, so that it is the same before and after a restart of the server.
func encode(r mesh.Resource) (*discoveryv3.Resource, error) {
	packed, err := codec.Encode(r)
	if err != nil {
		return nil, err
	}
	return versioned(r.Key(), packed), nil
}

// put and remove report whether something changed.
func (t *resourceType) put(r *discoveryv3.Resource) bool {
	if old, ok := t.resources.Get(r.Name); ok && old.Version == r.Version {
		return false
	}
	t.resources.Set(r.Name, r)
	t.notify(r.Name)
	return true
}

func (t *resourceType) remove(name string) bool {
	if _, ok := t.resources.Get(name); !ok {
		return false
	}
	t.resources.Delete(name)
	t.notify(name)
	return true
}

// notify marks a name as changed for all that watch it.
func (t *resourceType) notify(name string) {
	for w := range t.byName[name] {
		w.changed(name)
	}
	for prefix := range nametree.Prefixes(name) {
		for w := range t.byPrefix[prefix] {
			w.changed(name)
		}
	}
}

func watch(m map[string]watchers, key string, w *subscriptions) {
	if m[key] == nil {
		m[key] = watchers{}
	}
	m[key][w] = struct{}{}
}

func unwatch(m map[string]watchers, key string, w *subscriptions) {
	delete(m[key], w)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}
