// Package loop is an epoll loop: one goroutine, locked to its thread, that owns
// the sockets registered with it and runs everything that happens to them.
//
// Sockets are registered once, edge-triggered for both directions, and never
// modified: whether a socket is readable or writable is remembered in its Conn,
// so that a steady exchange costs one read and one write of each side and no
// epoll_ctl. Reads and writes are raw system calls, which cannot block because
// the sockets cannot; epoll is first polled raw, and only when nothing happened
// is it waited for by a system call that gives the processor to the runtime (a
// raw one that blocks would hold up the garbage collector).
//
// Nothing in a Loop may be called by another goroutine except Post, Now's clock
// and Run's cancellation. Handlers run one at a time and must not block. Run ends
// when its context does; what is still registered then is closed by the owners'
// Closed methods, or leaks if they do not.
package loop
