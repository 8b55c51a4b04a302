package codec

import (
	"fmt"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/sluice-mesh/sluice/mesh"
)

// MetadataKey is the key of filter_metadata under which a message carries what
// Envoy has no field for.
const MetadataKey = "sluice.dev"

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
	// Field is a path such as "routes[2].route.timeout", or empty.
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
