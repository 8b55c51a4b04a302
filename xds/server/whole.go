package server

import (
	"strconv"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/sluice-mesh/sluice/mesh"
)

// The state-of-the-world variant: each request names all that the client wants of a
// type, and each response of Listeners and Clusters carries all of it, so that what
// is missing is gone. Proxyless gRPC speaks nothing else. The book is the one of the
// delta variant; only requests and responses differ.

// listsAll reports whether a response of a kind carries all that was asked for
// (Envoy, xDS protocol, "Deleting resources").
func listsAll(kind mesh.Kind) bool {
	return kind == mesh.KindListener || kind == kindAPIListener || kind == mesh.KindCluster
}

// StreamAggregatedResources serves one client of the state-of-the-world variant until
// it goes away.
func (s *Server) StreamAggregatedResources(g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
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
		if err := st.handleWhole(request); err != nil {
			return err
		}
		request, err = g.Recv()
		return err
	}, func() (bool, error) {
		response := st.nextWhole()
		if response == nil {
			return false, nil
		}
		return true, g.Send(response)
	})
}

// handleWhole takes one request: an ACK or NACK, and the names that are wanted.
func (st *stream) handleWhole(request *discoveryv3.DiscoveryRequest) error {
	kind, ok := kindOf(request.GetTypeUrl())
	if !ok {
		return grpcstatus.Errorf(codes.InvalidArgument, "type %q is not served", request.GetTypeUrl())
	}
	names := request.GetResourceNames()
	s := st.server
	s.mu.Lock()
	if kind == mesh.KindListener && st.asksByHost(names) {
		kind = kindAPIListener
	}
	sub := st.types[kind]
	if sub == nil {
		sub = st.open(kind, nil)
		if len(names) == 0 && listsAll(kind) {
			sub.subscribe("*", nil)
		}
	}
	report := sub.acknowledge(request)
	err := sub.want(names)
	st.wakeUp()
	s.mu.Unlock()
	for _, tell := range report {
		tell()
	}
	return err
}

// asksByHost reports whether a client asks for listeners by "HOST:PORT", and goes on
// doing so, also with its last name gone.
func (st *stream) asksByHost(names []string) bool {
	if st.types[kindAPIListener] != nil {
		return true
	}
	for _, name := range names {
		if _, ok := st.server.apiPort(name); ok {
			return true
		}
	}
	return false
}

// want makes names all that is subscribed to by name.
func (s *subscriptions) want(names []string) error {
	if len(names) > maxSubscriptions {
		return grpcstatus.Errorf(codes.ResourceExhausted, "%d subscriptions to %s, above %d", len(names), s.typ.kind, maxSubscriptions)
	}
	wanted := make(map[string]struct{}, len(names))
	for _, name := range names {
		wanted[name] = struct{}{}
		if !s.named(name) {
			s.subscribe(name, nil)
			s.owed = true
		}
	}
	for name := range s.names {
		if _, ok := wanted[name]; !ok {
			s.unsubscribe(name)
		}
	}
	return nil
}

// nextWhole returns the next response, or nil when there is none to send now.
func (st *stream) nextWhole() *discoveryv3.DiscoveryResponse {
	s := st.server
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		sub, _ := st.turn()
		if sub == nil {
			return nil
		}
		if response := sub.takeWhole(); response != nil {
			return response
		}
	}
}

// takeWhole returns the response of what changed, nil if this variant has no way to
// say it: an endpoint or route table that is gone is not named any more by what
// referred to it.
func (s *subscriptions) takeWhole() *discoveryv3.DiscoveryResponse {
	names := s.dirty
	if listsAll(s.typ.kind) {
		names = map[string]struct{}{}
		for name := range s.names {
			names[name] = struct{}{}
		}
		for prefix := range s.prefixes {
			for name := range s.typ.resources.Below(prefix) {
				names[name] = struct{}{}
			}
		}
	}
	for name := range s.gone {
		delete(s.has, name)
		delete(s.rejected, name)
	}
	response := new(discoveryv3.DiscoveryResponse)
	flight := &inFlight{versions: make(map[string]string, len(names))}
	size := 0
	for name := range names {
		r, ok := s.resource(name)
		if !ok {
			continue
		}
		size += len(r.Resource.Value)
		response.Resources = append(response.Resources, r.Resource)
		flight.versions[name] = r.Version
		if was := s.has[name]; was.version != r.Version {
			s.has[name] = sent{version: r.Version}
		}
	}
	clear(s.dirty)
	clear(s.gone)
	s.owed = false
	if len(response.Resources) == 0 && !listsAll(s.typ.kind) {
		return nil
	}
	server := s.stream.server
	server.nonces++
	flight.nonce = strconv.FormatUint(server.nonces, 36)
	s.inFlight = flight
	server.metrics.sent(s.typ.kind, len(flight.versions), size)
	response.Nonce, response.VersionInfo, response.TypeUrl = flight.nonce, flight.nonce, s.typ.url
	return response
}
