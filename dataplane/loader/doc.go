// Package loader owns the kernel objects of the node: it loads the programs,
// opens or makes the pinned maps, and attaches the programs to the cgroups that its
// configuration names and to the namespaces and interfaces that its callers do, and to
// nothing else.
//
// It runs no goroutine. Links and maps are pinned, so that they outlive the
// process: a later process opens the same maps and puts its own programs into
// the links that are there, without a moment in which nothing is attached. A
// failure leaves in place what was attached before.
package loader
