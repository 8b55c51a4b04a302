// Package service owns the kernel's service tables: it projects mesh.Service
// values onto the maps of frontends and endpoints that the socket programs read.
//
// It runs no goroutine; whoever receives the mesh calls Apply. The maps are the
// only state that survives a process, and are read back by New. A map without
// room leaves the services that do not fit as they were, and says which.
package service
