// Package server serves mesh resources by the delta variant of Envoy's
// aggregated discovery service.
package server
