// Package compile turns resolved objects into values of the mesh: rules, virtual
// hosts, listeners, services, workloads.
//
// Everything is pure and deterministic: lists come out in an order that does not
// depend on the order of what came in.
package compile
