package server

import (
	"crypto/sha256"
	"encoding/base64"
	"net"
	"strconv"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/codec"
)

// Kinds that are made of others for clients that are not Sluice's. They are made
// when somebody asks, kept while nothing that they are made of changes, and shared
// by all streams.
const (
	// kindRoutes is a route table as one RouteConfiguration: Envoy and gRPC do not ask
	// for single virtual hosts.
	kindRoutes mesh.Kind = "RouteConfiguration"
	// kindAPIListener is a port of a Service as proxyless gRPC asks for it, by the name
	// "SERVICE.NAMESPACE.svc.DOMAIN:PORT".
	kindAPIListener mesh.Kind = "ApiListener"
)

// derivedKinds are in the order of sendOrder.
var derivedKinds = []mesh.Kind{kindRoutes, kindAPIListener}

// versioned is a resource with the hash of its content as its version.
func versioned(name string, packed *anypb.Any) *discoveryv3.Resource {
	sum := sha256.Sum256(packed.Value)
	return &discoveryv3.Resource{
		Name:     name,
		Version:  base64.RawURLEncoding.EncodeToString(sum[:12]),
		Resource: packed,
	}
}

// get returns the resource of a name; a derived one is made now if it is not here.
func (t *resourceType) get(name string) (*discoveryv3.Resource, bool) {
	r, ok := t.resources.Get(name)
	if ok || t.derive == nil {
		return r, ok
	}
	if r = t.derive(name); r == nil {
		return nil, false
	}
	t.resources.Set(name, r)
	return r, true
}

// stale drops a derived resource, which is made again for those that watch it.
func (t *resourceType) stale(name string) {
	t.resources.Delete(name)
	t.notify(name)
}

// derivedFrom returns what is made of the resource of a kind and name, if anything is.
func (s *Server) derivedFrom(kind mesh.Kind, name string) (derived mesh.Ref, ok bool) {
	switch kind {
	case mesh.KindVirtualHost:
		i := strings.LastIndexByte(name, '/')
		return mesh.Ref{Kind: kindRoutes, Key: name[:max(i, 0)]}, i > 0
	case mesh.KindListener:
		port, ok := strings.CutPrefix(name, "service/")
		return mesh.Ref{Kind: kindAPIListener, Key: s.apiName(port)}, ok
	case mesh.KindCluster:
		return mesh.Ref{Kind: kindAPIListener, Key: s.apiName(name)}, true
	}
	return mesh.Ref{}, false
}

// routes makes the RouteConfiguration of a table. A table without virtual hosts is
// an empty one, so that nobody waits for it.
func (s *Server) routes(table string) *discoveryv3.Resource {
	var hosts [][]byte
	for _, r := range s.types[mesh.KindVirtualHost].resources.Below(table + "/") {
		hosts = append(hosts, r.Resource.Value)
	}
	return versioned(table, codec.RouteConfiguration(table, hosts))
}

// apiName returns the name by which gRPC asks for "NAMESPACE/SERVICE/PORT".
func (s *Server) apiName(port string) string {
	parts := strings.Split(port, "/")
	if len(parts) != 3 {
		return ""
	}
	return net.JoinHostPort(parts[1]+"."+parts[0]+".svc."+s.cfg.ClusterDomain, parts[2])
}

// apiPort is the inverse of apiName.
func (s *Server) apiPort(name string) (port string, ok bool) {
	host, number, err := net.SplitHostPort(name)
	if err != nil {
		return "", false
	}
	if _, err := strconv.ParseUint(number, 10, 16); err != nil {
		return "", false
	}
	service, ok := strings.CutSuffix(host, ".svc."+s.cfg.ClusterDomain)
	if !ok {
		return "", false
	}
	service, namespace, ok := strings.Cut(service, ".")
	if !ok || service == "" || namespace == "" || strings.ContainsAny(namespace, "./") {
		return "", false
	}
	return namespace + "/" + service + "/" + number, true
}

// apiListener makes the listener of a port of a Service: with its routes, or with
// all requests for its cluster if no route is attached. It is nil if there is no
// such port. Server.mu is held; it decodes one Listener.
func (s *Server) apiListener(name string) *discoveryv3.Resource {
	port, ok := s.apiPort(name)
	if !ok {
		return nil
	}
	table, cluster := "", port
	if r, ok := s.types[mesh.KindListener].resources.Get("service/" + port); ok {
		decoded, err := codec.Decode(mesh.KindListener, r.Name, r.Resource.Value)
		if err != nil {
			s.log.Error("a listener cannot be read again", "name", r.Name, "err", err)
			return nil
		}
		if l, ok := decoded.(*mesh.Listener); ok && len(l.Chains) > 0 {
			table = l.Chains[0].RouteTable
		}
	} else if _, ok := s.types[mesh.KindCluster].resources.Get(port); !ok {
		return nil
	}
	packed, err := codec.APIListener(name, table, cluster)
	if err != nil {
		s.log.Error("an ApiListener cannot be made", "name", name, "err", err)
		return nil
	}
	return versioned(name, packed)
}
