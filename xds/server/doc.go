// Package server serves mesh resources by the delta variant of Envoy's
// aggregated discovery service.
//
// It owns the published resources with their versions, and for each stream what
// it subscribed to, was sent, and accepted or refused (the ACK book). One lock
// guards all of it; nobody holds it while encoding or sending. Each stream has
// two goroutines: one reads requests, one sends responses. What changed for a
// stream is a set of names, so a slow client costs memory by the number of its
// resources, never by the number of changes, and delays nobody else.
//
// A change is sent at once. While a response of a type waits for its ACK, further
// changes of that type gather. A stream's changes go out in an order in which
// nothing refers to what is not there: clusters, endpoints, certificates, virtual
// hosts, listeners, workloads, services; then removals in the opposite order.
//
// A subscription is a name, a prefix that ends in "/*" and covers every name below
// it, or "*". A client whose node lists FeatureCollections among its
// client_features is told when a prefix has been answered in full: by a resource
// that has the pattern as its name and no content. Any other client learns of a
// prefix without resources as of a missing resource, by its removal.
//
// Clients that are not Sluice's are served on the same port: an Envoy by delta ADS,
// with whole route tables (RouteConfiguration), and proxyless gRPC by the
// state-of-the-world variant, with ApiListeners by the name
// "SERVICE.NAMESPACE.svc.DOMAIN:PORT" (gRFC A27). Both are made of the published
// resources when somebody asks for them. They get what all nodes get of a service;
// consumer routes, which depend on the client's namespace, are not among it.
//
// Failures: a resource that cannot be encoded keeps its last version. A stream
// that breaks the protocol is ended with the reason; the client starts again.
package server
