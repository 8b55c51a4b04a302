package server

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/nametree"
	"github.com/sluice-mesh/sluice/xds/peercred"
)

// Bounds of one stream.
const (
	// maxResponseBytes is where a response ends and the next begins; one resource
	// may exceed it. Each waits for the ACK of the one before, so this bounds what a
	// slow client makes the server hold.
	maxResponseBytes = 1 << 20
	// maxResponseRemovals does the same for names that are gone.
	maxResponseRemovals = 1 << 14
	// maxSubscriptions is the number of names and patterns that one type of one stream
	// may subscribe to: more than a node can use; patterns cost the same whatever they
	// cover.
	maxSubscriptions = 1 << 17
)

// sendOrder is the order in which what is new goes to a client: what is referred
// to comes first. What is gone goes in the opposite order, after it.
var sendOrder = []mesh.Kind{
	mesh.KindCluster, mesh.KindClusterEndpoints, mesh.KindCertificate, mesh.KindVirtualHost,
	kindRoutes, mesh.KindListener, kindAPIListener, mesh.KindWorkload, mesh.KindService,
}

// stream is one client. Server.mu guards it all but the first group.
type stream struct {
	server  *Server
	log     *slog.Logger
	since   time.Time
	uid     int64         // of the peer; -1 when unknown
	changes chan struct{} // capacity 1: there may be something to send

	client      Client
	collections bool // understands end marks
	secrets     bool // may be sent certificates
	types       map[mesh.Kind]*subscriptions
}

// subscriptions are what a stream wants of a kind and what it has of it.
type subscriptions struct {
	stream   *stream
	typ      *resourceType
	denied   bool // nothing of this kind is shown to the stream
	names    map[string]struct{}
	prefixes map[string]struct{}

	// dirty names exist and the client has them not or in another version; gone ones
	// do not exist and the client has them, or asked for them in vain.
	dirty, gone map[string]struct{}
	// answered are the patterns whose end mark follows when dirty is empty.
	answered []string
	// owed says that a response is due even if nothing is to be said.
	owed bool

	has      map[string]sent
	inFlight *inFlight
	rejected map[string]Rejection
}

// sent is the version of a resource that the client was sent last.
type sent struct {
	version string
	acked   bool
}

// inFlight is a response that waits for ACK or NACK.
type inFlight struct {
	nonce    string
	versions map[string]string // version "" is a removal
}

// DeltaAggregatedResources serves one client until it goes away.
func (s *Server) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	first, err := g.Recv()
	if err != nil {
		return err
	}
	if first.GetNode().GetId() == "" {
		return grpcstatus.Error(codes.InvalidArgument, "the first request names no node")
	}
	st := s.newStream(g.Context(), first.GetNode())
	defer s.close(st)
	request := first
	return st.serve(g.Context(), func() error {
		if err := st.handle(request); err != nil {
			return err
		}
		request, err = g.Recv()
		return err
	}, func() (bool, error) {
		response := st.next()
		if response == nil {
			return false, nil
		}
		return true, g.Send(response)
	})
}

// serve answers a client until its context ends. read handles the request at hand
// and waits for the next; send sends one response, if there is one to send now.
func (st *stream) serve(ctx context.Context, read func() error, send func() (bool, error)) error {
	st.log.Info("client connected", "uid", st.uid)
	// The context ends when the caller returns, which ends the reader too.
	failed := make(chan error, 1)
	go func() {
		for {
			if err := read(); err != nil {
				if grpcstatus.Code(err) == codes.InvalidArgument || grpcstatus.Code(err) == codes.ResourceExhausted {
					st.log.Warn("protocol error", "err", err)
				}
				failed <- err
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-failed:
			if err == io.EOF {
				return nil
			}
			return err
		case <-st.changes:
		}
		for {
			more, err := send()
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
	}
}

func (s *Server) newStream(ctx context.Context, node *corev3.Node) *stream {
	st := &stream{
		server:  s,
		since:   time.Now(),
		uid:     -1,
		changes: make(chan struct{}, 1),
		client:  Client{Node: node.GetId(), Role: node.GetMetadata().GetFields()["role"].GetStringValue()},
		types:   map[mesh.Kind]*subscriptions{},
	}
	st.log = s.log.With("node", st.client.Node, "role", st.client.Role)
	for _, f := range node.GetClientFeatures() {
		st.collections = st.collections || f == FeatureCollections
	}
	if p, ok := peercred.FromContext(ctx); ok {
		st.uid = int64(p.UID)
		st.secrets = st.client.Role != RoleAgent && (p.UID == 0 || p.UID == s.cfg.ProxyUID)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = struct{}{}
	s.metrics.streams.Inc()
	return st
}

func (s *Server) close(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	s.metrics.streams.Dec()
	for _, sub := range st.types {
		for name := range sub.names {
			unwatch(sub.typ.byName, name, sub)
		}
		for prefix := range sub.prefixes {
			unwatch(sub.typ.byPrefix, prefix, sub)
		}
	}
	st.log.Info("client disconnected")
}

func (st *stream) wakeUp() {
	select {
	case st.changes <- struct{}{}:
	default:
	}
}

// handle takes one request: an ACK or NACK, changes of subscriptions, or both.
func (st *stream) handle(request *discoveryv3.DeltaDiscoveryRequest) error {
	kind, ok := kindOf(request.GetTypeUrl())
	if !ok {
		return grpcstatus.Errorf(codes.InvalidArgument, "type %q is not served", request.GetTypeUrl())
	}
	s := st.server
	s.mu.Lock()
	sub := st.types[kind]
	if sub == nil {
		sub = st.open(kind, request.GetInitialResourceVersions())
		if len(request.GetResourceNamesSubscribe()) == 0 {
			sub.subscribe("*", nil) // the older way to ask for all
			sub.answered = nil
		}
	}
	report := sub.acknowledge(request)
	err := sub.update(request)
	st.wakeUp()
	s.mu.Unlock()
	for _, tell := range report {
		tell()
	}
	return err
}

// open starts a kind on a stream. The client says what it has from an earlier
// stream.
func (st *stream) open(kind mesh.Kind, versions map[string]string) *subscriptions {
	sub := &subscriptions{
		stream:   st,
		typ:      st.server.types[kind],
		denied:   kind == mesh.KindCertificate && !st.secrets,
		names:    map[string]struct{}{},
		prefixes: map[string]struct{}{},
		dirty:    map[string]struct{}{},
		gone:     map[string]struct{}{},
		owed:     true,
		has:      make(map[string]sent, len(versions)),
		rejected: map[string]Rejection{},
	}
	if sub.denied {
		st.log.Warn("client may not have certificates", "uid", st.uid)
	}
	for name, version := range versions {
		sub.has[name] = sent{version: version, acked: true}
	}
	st.types[kind] = sub
	return sub
}

// update changes the subscriptions.
func (s *subscriptions) update(request *discoveryv3.DeltaDiscoveryRequest) error {
	if n := len(s.names) + len(s.prefixes) + len(request.GetResourceNamesSubscribe()); n > maxSubscriptions {
		return grpcstatus.Errorf(codes.ResourceExhausted, "%d subscriptions to %s, above %d", n, s.typ.kind, maxSubscriptions)
	}
	for _, name := range request.GetResourceNamesSubscribe() {
		s.subscribe(name, request.GetInitialResourceVersions())
	}
	for _, name := range request.GetResourceNamesUnsubscribe() {
		s.unsubscribe(name)
	}
	for name := range request.GetInitialResourceVersions() {
		if !s.covers(name) {
			delete(s.has, name)
		} else if _, ok := s.resource(name); !ok {
			s.gone[name] = struct{}{}
		}
	}
	return nil
}

// resource returns what the stream may see under a name.
func (s *subscriptions) resource(name string) (*discoveryv3.Resource, bool) {
	if s.denied {
		return nil, false
	}
	return s.typ.get(name)
}

// kindOf returns the kind that a type URL stands for; kindAPIListener shares that of
// Listeners.
func kindOf(url string) (mesh.Kind, bool) {
	if url == codec.TypeRouteConfiguration {
		return kindRoutes, true
	}
	return codec.KindOf(url)
}

// subscribe adds a name or a pattern. What it covers is sent even if it was sent
// before, unless kept, the versions that this very request names, has it.
func (s *subscriptions) subscribe(name string, kept map[string]string) {
	prefix, pattern := nametree.Prefix(name)
	if !pattern {
		s.names[name] = struct{}{}
		if !s.denied {
			watch(s.typ.byName, name, s)
		}
		s.refresh(name, kept)
		return
	}
	s.prefixes[prefix] = struct{}{}
	found := false
	if !s.denied {
		watch(s.typ.byPrefix, prefix, s)
		for n := range s.typ.resources.Below(prefix) {
			found = true
			s.refresh(n, kept)
		}
	}
	if s.stream.collections {
		s.answered = append(s.answered, name)
	} else if !found && prefix != "" {
		s.gone[name] = struct{}{}
	}
}

func (s *subscriptions) refresh(name string, kept map[string]string) {
	if _, ok := kept[name]; !ok {
		delete(s.has, name)
	}
	s.changed(name)
}

// changed notes what a name is now, compared with what the client has.
func (s *subscriptions) changed(name string) {
	was, had := s.has[name]
	r, exists := s.resource(name)
	delete(s.dirty, name)
	delete(s.gone, name)
	switch {
	case exists && (!had || was.version != r.Version):
		s.dirty[name] = struct{}{}
	case !exists && (had || s.named(name)): // a name that is asked for gets its answer
		s.gone[name] = struct{}{}
	}
	if len(s.dirty) > 0 || len(s.gone) > 0 {
		s.stream.wakeUp()
	}
}

func (s *subscriptions) unsubscribe(name string) {
	prefix, pattern := nametree.Prefix(name)
	if !pattern {
		delete(s.names, name)
		unwatch(s.typ.byName, name, s)
		s.forget(name)
		return
	}
	delete(s.prefixes, prefix)
	unwatch(s.typ.byPrefix, prefix, s)
	for n := range s.typ.resources.Below(prefix) {
		if !s.covers(n) {
			s.forget(n)
		}
	}
	for n := range s.gone {
		if !s.covers(n) {
			s.forget(n)
		}
	}
}

// forget drops what was known of a name. When a pattern still covers it, the
// client, which dropped it too, is told again.
func (s *subscriptions) forget(name string) {
	delete(s.has, name)
	delete(s.dirty, name)
	delete(s.gone, name)
	delete(s.rejected, name)
	if s.covers(name) {
		s.refresh(name, nil)
	}
}

func (s *subscriptions) named(name string) bool {
	_, ok := s.names[name]
	return ok
}

func (s *subscriptions) covers(name string) bool {
	if s.named(name) {
		return true
	}
	for prefix := range nametree.Prefixes(name) {
		if _, ok := s.prefixes[prefix]; ok {
			return true
		}
	}
	return false
}

// next returns the next response, or nil when there is none to send now.
func (st *stream) next() *discoveryv3.DeltaDiscoveryResponse {
	s := st.server
	s.mu.Lock()
	defer s.mu.Unlock()
	switch sub, gone := st.turn(); {
	case sub == nil:
		return nil
	case gone:
		return sub.send(sub.takeGone())
	default:
		return sub.send(sub.takeDirty())
	}
}

// turn returns whose changes are to be sent next, and whether it is what is gone; nil
// when nothing is to be sent now. Server.mu is held.
func (st *stream) turn() (sub *subscriptions, gone bool) {
	if !st.server.published {
		return nil, false
	}
	for _, kind := range sendOrder {
		sub := st.types[kind]
		if sub == nil || len(sub.dirty) == 0 && len(sub.answered) == 0 && !sub.owed {
			continue
		}
		if sub.inFlight != nil {
			return nil, false // later kinds may refer to this one
		}
		return sub, false
	}
	for i := len(sendOrder) - 1; i >= 0; i-- {
		sub := st.types[sendOrder[i]]
		if sub == nil || len(sub.gone) == 0 {
			continue
		}
		if sub.inFlight != nil {
			return nil, false
		}
		return sub, true
	}
	return nil, false
}

func (s *subscriptions) takeDirty() *discoveryv3.DeltaDiscoveryResponse {
	response := new(discoveryv3.DeltaDiscoveryResponse)
	flight := &inFlight{versions: make(map[string]string, min(len(s.dirty), 64))}
	size := 0
	for name := range s.dirty {
		r, _ := s.typ.get(name)
		size += len(r.Resource.Value) + len(name)
		response.Resources = append(response.Resources, r)
		flight.versions[name] = r.Version
		s.has[name] = sent{version: r.Version}
		delete(s.dirty, name)
		if size >= maxResponseBytes {
			break
		}
	}
	s.owed = false
	if len(s.dirty) == 0 {
		for _, pattern := range s.answered {
			response.Resources = append(response.Resources, &discoveryv3.Resource{Name: pattern})
		}
		s.answered = nil
	}
	s.inFlight = flight
	s.stream.server.metrics.sent(s.typ.kind, len(flight.versions), size)
	return response
}

func (s *subscriptions) takeGone() *discoveryv3.DeltaDiscoveryResponse {
	response := new(discoveryv3.DeltaDiscoveryResponse)
	flight := &inFlight{versions: make(map[string]string, min(len(s.gone), 64))}
	size := 0
	for name := range s.gone {
		if prefix, pattern := nametree.Prefix(name); pattern && !s.empty(prefix) {
			delete(s.gone, name) // has been filled since
			continue
		}
		response.RemovedResources = append(response.RemovedResources, name)
		flight.versions[name] = ""
		size += len(name)
		delete(s.has, name)
		delete(s.gone, name)
		delete(s.rejected, name)
		if len(response.RemovedResources) == maxResponseRemovals {
			break
		}
	}
	s.inFlight = flight
	s.stream.server.metrics.sent(s.typ.kind, 0, size)
	return response
}

// empty reports whether the stream sees nothing below a prefix.
func (s *subscriptions) empty(prefix string) bool {
	if !s.denied {
		for range s.typ.resources.Below(prefix) {
			return false
		}
	}
	return true
}

func (s *subscriptions) send(r *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryResponse {
	server := s.stream.server
	server.nonces++
	r.Nonce = strconv.FormatUint(server.nonces, 36)
	r.TypeUrl = s.typ.url
	s.inFlight.nonce = r.Nonce
	return r
}

// answer is what ACK and NACK are in both variants.
type answer interface {
	GetResponseNonce() string
	GetErrorDetail() *status.Status
}

// acknowledge enters an ACK or NACK into the book and returns the callbacks to
// call. A nonce that is not that of the response in flight is an old one, whose
// response was answered before.
func (s *subscriptions) acknowledge(request answer) []func() {
	flight := s.inFlight
	if flight == nil || request.GetResponseNonce() != flight.nonce {
		return nil
	}
	s.inFlight = nil
	cfg, client := &s.stream.server.cfg, s.stream.client
	rejections, all := readRejections(request.GetErrorDetail())
	var report []func()
	for name, version := range flight.versions {
		ref := mesh.Ref{Kind: s.typ.kind, Key: name}
		text, refused := rejections[name]
		if refused = refused || all; !refused {
			if now, ok := s.has[name]; ok && now.version == version {
				s.has[name] = sent{version: version, acked: true}
				delete(s.rejected, name)
			}
			if cfg.OnAck != nil && s.typ.derive == nil {
				report = append(report, func() { cfg.OnAck(client, ref, version) })
			}
			continue
		}
		if text == "" {
			text = request.GetErrorDetail().GetMessage()
		}
		if s.covers(name) {
			s.rejected[name] = Rejection{Key: name, Version: version, Text: text}
		}
		s.stream.server.metrics.nacks.WithLabelValues(string(s.typ.kind)).Inc()
		report = append(report, func() {
			s.stream.log.Warn("resource refused", "kind", ref.Kind, "key", ref.Key, "version", version, "text", text)
			// A stranger that refuses a response as a whole does not say which resource is
			// bad, and a derived one is no object's: both stay in the book.
			if cfg.OnNack != nil && (!all || s.stream.client.Role != "") && s.typ.derive == nil {
				cfg.OnNack(client, ref, version, text)
			}
		})
	}
	return report
}

// readRejections returns why each refused resource was refused, or all = true
// when the client refused the response without saying which.
func readRejections(detail *status.Status) (byName map[string]string, all bool) {
	if detail == nil {
		return nil, false
	}
	for _, d := range detail.GetDetails() {
		r := new(sluicev1.Rejections)
		if d.MessageIs(r) && d.UnmarshalTo(r) == nil && len(r.GetRejections()) > 0 {
			byName = make(map[string]string, len(r.GetRejections()))
			for _, e := range r.GetRejections() {
				byName[e.GetName()] = e.GetText()
			}
			return byName, false
		}
	}
	return nil, true
}

// String returns "NODE/ROLE".
func (c Client) String() string { return c.Node + "/" + c.Role }
