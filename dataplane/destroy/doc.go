// Package destroy ends the sockets of workloads whose endpoint is gone, so that
// their owners learn of it at once: a connected UDP socket would send into the void
// for ever, a TCP connection would wait for its retransmissions to end.
//
// Run's goroutine does all of it; Add never waits. Nothing survives the process: what
// vanished while no agent ran is not ended. A kernel that cannot do it (before Linux
// 6.5) leaves the sockets as they are.
package destroy
