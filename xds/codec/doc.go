// Package codec turns mesh values into xDS resources and back.
//
// It is pure: no state, no goroutine, no clock. Listener, VirtualHost, Cluster,
// ClusterEndpoints and Certificate become Envoy v3 messages that Envoy's own
// validation accepts; Workload and Service become sluice.v1 messages. What a
// mesh value says and Envoy has no field for travels in the filter_metadata of
// the message under the key "sluice.dev", a Struct, because Envoy accepts a
// Struct that it does not understand and refuses an Any that it does not know.
//
// Decode(Encode(r)) equals r, nil and empty slices apart, once r is in normal
// form: see Encode. Decode is strict: whatever the decoded value would not say
// again when encoded is an error that names the resource and the field, so that
// nothing a control plane asks for is silently left undone.
package codec
