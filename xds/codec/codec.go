package codec

import (
	"errors"
	"fmt"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
)

// typePrefix begins the type URL of every message.
const typePrefix = "type.googleapis.com/"

var typeURLs = map[mesh.Kind]string{
	mesh.KindWorkload:         typePrefix + "sluice.v1.Workload",
	mesh.KindService:          typePrefix + "sluice.v1.Service",
	mesh.KindListener:         resourcev3.ListenerType,
	mesh.KindVirtualHost:      resourcev3.VirtualHostType,
	mesh.KindCluster:          resourcev3.ClusterType,
	mesh.KindClusterEndpoints: resourcev3.EndpointType,
	mesh.KindCertificate:      resourcev3.SecretType,
}

var kinds = func() map[string]mesh.Kind {
	m := make(map[string]mesh.Kind, len(typeURLs))
	for k, u := range typeURLs {
		m[u] = k
	}
	return m
}()

// TypeURL returns the type URL of a kind, or "" for an unknown kind.
func TypeURL(kind mesh.Kind) string { return typeURLs[kind] }

// KindOf returns the kind that a type URL stands for.
func KindOf(typeURL string) (mesh.Kind, bool) {
	k, ok := kinds[typeURL]
	return k, ok
}

// Error says which field of which resource cannot be encoded or decoded.
type Error struct {
	Kind mesh.Kind
	Key  string
	// Field is a path such as "routes[2].route.timeout", or empty: in the mesh value
	// when that is what makes no sense, else in the message.
	Field string
	Err   error
}

// Error returns "KIND KEY: FIELD: text".
func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s %s: %v", e.Kind, e.Key, e.Err)
	}
	return fmt.Sprintf("%s %s: %s: %v", e.Kind, e.Key, e.Field, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// fieldError is an error at a field, on its way to becoming an Error.
type fieldError struct {
	field string
	err   error
}

func (e *fieldError) Error() string { return e.field + ": " + e.err.Error() }

// at makes an error of a field.
func at(field, format string, args ...any) error {
	return &fieldError{field, fmt.Errorf(format, args...)}
}

// below puts the field of err under a parent.
func below(parent string, err error) error {
	if err == nil {
		return nil
	}
	var fe *fieldError
	if errors.As(err, &fe) {
		if !strings.HasPrefix(fe.field, "[") {
			parent += "."
		}
		return &fieldError{parent + fe.field, fe.err}
	}
	return &fieldError{parent, err}
}

func resourceError(kind mesh.Kind, key string, err error) error {
	var fe *fieldError
	if errors.As(err, &fe) {
		return &Error{Kind: kind, Key: key, Field: fe.field, Err: fe.err}
	}
	return &Error{Kind: kind, Key: key, Err: err}
}

var marshal = proto.MarshalOptions{Deterministic: true}

// Encode returns the message of a resource, packed; equal resources have equal
// bytes. Every error is an *Error.
//
// What can have no effect is not sent, which is the normal form that Decode
// returns: the trailing slash of a path prefix; the clusters, rewrite, timeouts
// and retry of a rule that redirects; the rewrite, timeouts and retry of a rule
// without clusters; the clusters of a rule whose weights are all zero, and the
// zero weights among a chain's default clusters; the requests per connection of a
// cluster that does not speak HTTP.
func Encode(r mesh.Resource) (*anypb.Any, error) {
	m, err := message(r)
	if err != nil {
		return nil, resourceError(r.Kind(), r.Key(), err)
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return nil, resourceError(r.Kind(), r.Key(), err)
		}
	}
	value, err := marshal.Marshal(m)
	if err != nil {
		return nil, resourceError(r.Kind(), r.Key(), err)
	}
	return &anypb.Any{TypeUrl: typeURLs[r.Kind()], Value: value}, nil
}

// message returns the message of a resource.
func message(r mesh.Resource) (proto.Message, error) {
	switch r := r.(type) {
	case *mesh.Workload:
		return encodeWorkload(r)
	case *mesh.Service:
		return encodeService(r)
	case *mesh.Listener:
		return encodeListener(r)
	case *mesh.VirtualHost:
		return encodeVirtualHost(r)
	case *mesh.Cluster:
		return encodeCluster(r)
	case *mesh.ClusterEndpoints:
		return encodeClusterEndpoints(r)
	case *mesh.Certificate:
		return encodeCertificate(r)
	}
	return nil, fmt.Errorf("%T is not a resource", r)
}

// Decode returns the resource that value, a serialized message of the kind's
// type, describes. key is the name under which it was sent and must be its own.
// Every error is an *Error. The result shares no memory with value.
func Decode(kind mesh.Kind, key string, value []byte) (mesh.Resource, error) {
	r, err := decode(kind, value)
	if err == nil && r.Key() != key {
		err = fmt.Errorf("the resource calls itself %q", r.Key())
	}
	if err != nil {
		return nil, resourceError(kind, key, err)
	}
	return r, nil
}

func decode(kind mesh.Kind, value []byte) (mesh.Resource, error) {
	switch kind {
	case mesh.KindWorkload:
		return decodeOwn(value, new(sluicev1.Workload), decodeWorkload)
	case mesh.KindService:
		return decodeOwn(value, new(sluicev1.Service), decodeService)
	case mesh.KindListener:
		return decodeEnvoy(value, new(listenerv3.Listener), decodeListener)
	case mesh.KindVirtualHost:
		return decodeEnvoy(value, new(routev3.VirtualHost), decodeVirtualHost)
	case mesh.KindCluster:
		return decodeEnvoy(value, new(clusterv3.Cluster), decodeCluster)
	case mesh.KindClusterEndpoints:
		return decodeEnvoy(value, new(endpointv3.ClusterLoadAssignment), decodeClusterEndpoints)
	case mesh.KindCertificate:
		return decodeEnvoy(value, new(tlsv3.Secret), decodeCertificate)
	}
	return nil, fmt.Errorf("unknown kind %q", kind)
}

// decodeOwn decodes a message of sluice.v1.
func decodeOwn[M proto.Message, R mesh.Resource](value []byte, m M, f func(M) (R, error)) (mesh.Resource, error) {
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, err
	}
	if err := refuseUnknown(m.ProtoReflect()); err != nil {
		return nil, err
	}
	r, err := f(m)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// decodeEnvoy decodes a message of Envoy. Those have hundreds of fields, so
// strictness is had by encoding the result again: f reads what it knows, and a
// field of the message that the second encoding lacks is one that f did not read.
func decodeEnvoy[M interface {
	proto.Message
	Validate() error
}, R mesh.Resource](value []byte, m M, f func(M) (R, error)) (mesh.Resource, error) {
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, err
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	r, err := f(m)
	if err != nil {
		return nil, err
	}
	again, err := message(r)
	if err != nil {
		return nil, err
	}
	if err := unread(m.ProtoReflect(), again.ProtoReflect()); err != nil {
		return nil, err
	}
	return r, nil
}
