// Package route finds the rule of a route table that a request takes.
//
// It owns the compiled form of mesh.VirtualHost. Tables has one writer (whoever
// applies the store's deltas) and any number of readers, which take no lock.
// Matching is pure, never fails and never allocates; what cannot be compiled is
// refused by Validate before it gets here.
package route
