// Package probe asks the kernel what it can do, by doing it in a way that
// leaves nothing behind.
//
// It owns no state and runs no goroutine.
package probe
