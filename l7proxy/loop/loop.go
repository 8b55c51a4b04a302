package loop

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// eventBatch is how many sockets one wake-up reports at most; what else is
	// ready waits for the next poll.
	eventBatch = 256
	// acceptBatch bounds the connections accepted from one listener before others
	// have their turn.
	acceptBatch = 32
	// acceptRetry is how long a listener rests when the process has no room for
	// another descriptor.
	acceptRetry = 100 * time.Millisecond
)

// Handler owns what happens to a Conn.
type Handler interface {
	// Ready is called when c may have become readable or writable, was hung up, or
	// was queued by Conn.Again. It reads until ErrAgain or until it wants no more,
	// and calls Conn.Again when it stopped although there is more.
	Ready(c *Conn)
}

// Flusher is work put off to the end of the current round of events.
type Flusher interface {
	Flush()
}

// Stats are counts since the loop began. They belong to the loop's goroutine.
type Stats struct {
	Polls, Waits                  uint64 // epoll_wait that did not and did block
	Reads, Writes, Splices        uint64 // system calls
	Accepts, Connects, Closes     uint64 // of connections
	ReadAgains, WriteAgains       uint64 // of Reads and Writes, those in vain
	Posts, Timers, Events, Rounds uint64
}

// Loop is one epoll loop.
type Loop struct {
	// Stats may be read by the loop's goroutine.
	Stats Stats
	// Buffers are the loop's.
	Buffers Buffers
	// Scratch is memory for one read, shared by all of the loop: its content is
	// gone when a handler returns.
	Scratch []byte

	epfd   int
	wakefd int
	epoch  time.Time
	now    int64 // nanoseconds since epoch, read once for each round

	entries []entry
	free    []uint32
	timers  timerHeap
	again   []*Conn
	running []*Conn // the again list being worked off
	flushes []Flusher
	events  []unix.EpollEvent
	iov     [4]unix.Iovec
	msg     unix.Msghdr
	sa      unix.RawSockaddrAny
	peers   map[netip.Addr]map[*Conn]struct{} // connections made by Connect

	sleeping atomic.Bool
	inboxLen atomic.Int32
	mu       sync.Mutex
	inbox    []func() // guarded by mu
	closed   bool     // guarded by mu
}

// entry is what an epoll registration leads to: a slot and its generation are in
// the event's data, so that an event of a socket that was closed meanwhile finds
// nobody.
type entry struct {
	generation uint32
	conn       *Conn
	listener   *Listener
	packet     *Packet
	wake       bool
}

// New makes a loop, which Run must run or Close close.
func New() (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	l := &Loop{
		epfd: epfd, wakefd: wakefd, epoch: time.Now(),
		Scratch: make([]byte, ScratchSize),
		events:  make([]unix.EpollEvent, eventBatch),
		peers:   map[netip.Addr]map[*Conn]struct{}{},
	}
	slot := l.register(entry{wake: true})
	if err := l.add(wakefd, slot, unix.EPOLLIN|unix.EPOLLET); err != nil {
		unix.Close(epfd)
		unix.Close(wakefd)
		return nil, err
	}
	return l, nil
}

// Now is the time of the current round, in nanoseconds since an arbitrary moment.
// It belongs to the loop's goroutine.
func (l *Loop) Now() int64 { return l.now }

// Post has f called by the loop's goroutine, soon. Any goroutine may call it. It
// reports false, and f will not be called, when the loop has ended.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.inbox = append(l.inbox, f)
	l.inboxLen.Store(int32(len(l.inbox)))
	l.mu.Unlock()
	if l.sleeping.Swap(false) {
		l.wake()
	}
	return true
}

func (l *Loop) wake() {
	one := [8]byte{1} // a count of one in either byte order is not zero
	_, _ = unix.Write(l.wakefd, one[:])
}

// Defer calls f.Flush once at the end of the current round. The caller sees to it
// that f is not queued twice.
func (l *Loop) Defer(f Flusher) { l.flushes = append(l.flushes, f) }

// Run runs the loop until ctx ends; then it runs what was posted before, calls
// closing, and frees the loop's descriptors. It locks its goroutine to a thread.
func (l *Loop) Run(ctx context.Context, closing func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var done atomic.Bool
	stop := context.AfterFunc(ctx, func() {
		done.Store(true)
		l.Post(func() {})
	})
	defer stop()
	l.tick()
	for !done.Load() {
		if err := l.round(); err != nil {
			l.finish(closing)
			return err
		}
	}
	l.finish(closing)
	return nil
}

func (l *Loop) finish(closing func()) {
	l.runInbox()
	if closing != nil {
		closing()
	}
	l.flush()
	l.mu.Lock()
	l.closed = true
	l.inbox = nil
	l.mu.Unlock()
	unix.Close(l.epfd)
	unix.Close(l.wakefd)
}

// Close frees a loop that never ran.
func (l *Loop) Close() { l.finish(nil) }

func (l *Loop) tick() { l.now = int64(time.Since(l.epoch)) }

// round waits for something to happen and works it off.
func (l *Loop) round() error {
	l.Stats.Rounds++
	l.Stats.Polls++
	n, errno := sysPoll(l.epfd, l.events)
	if n <= 0 && errno == 0 && len(l.again) == 0 && l.inboxLen.Load() == 0 {
		n, errno = l.sleep()
	}
	if errno != 0 && errno != unix.EINTR {
		return os.NewSyscallError("epoll_wait", errno)
	}
	l.tick()
	// All is noted before anything is acted on: who takes a pooled connection must know
	// that its peer has closed it meanwhile.
	for i := 0; i < n; i++ {
		l.note(&l.events[i])
	}
	for i := 0; i < n; i++ {
		l.dispatch(&l.events[i])
	}
	l.Stats.Events += uint64(max(n, 0))
	l.runTimers()
	l.runInbox()
	l.runAgain()
	l.flush()
	return nil
}

// sleep waits in epoll. The sleeping flag is raised before the inbox is looked at
// for the last time, so that a Post either is seen here or writes the eventfd.
func (l *Loop) sleep() (int, unix.Errno) {
	ms := -1
	if when, ok := l.timers.next(); ok {
		l.tick()
		wait := when - l.now
		if wait <= 0 {
			return 0, 0
		}
		// Rounded up: a wake-up too early would find nothing due.
		ms = int(min((wait+int64(time.Millisecond)-1)/int64(time.Millisecond), 60_000))
	}
	l.sleeping.Store(true)
	if l.inboxLen.Load() != 0 {
		l.sleeping.Store(false)
		return 0, 0
	}
	l.Stats.Waits++
	n, errno := sysWait(l.epfd, l.events, ms)
	l.sleeping.Store(false)
	return n, errno
}

// note writes into a Conn what an event says.
func (l *Loop) note(ev *unix.EpollEvent) {
	e := &l.entries[uint32(ev.Fd)]
	if e.generation != uint32(ev.Pad) || e.conn == nil {
		return
	}
	c := e.conn
	if ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.readable = true
	}
	if ev.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.hup = true
	}
	if ev.Events&unix.EPOLLERR != 0 {
		c.failed = true
	}
	if ev.Events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.writable = true
	}
}

func (l *Loop) dispatch(ev *unix.EpollEvent) {
	slot, generation := uint32(ev.Fd), uint32(ev.Pad)
	e := &l.entries[slot]
	if e.generation != generation {
		return
	}
	switch {
	case e.conn != nil:
		e.conn.handler.Ready(e.conn)
	case e.listener != nil:
		e.listener.accept()
	case e.packet != nil:
		e.packet.ready()
	case e.wake:
		var b [8]byte
		sysRead(l.wakefd, b[:])
	}
}

func (l *Loop) runInbox() {
	if l.inboxLen.Load() == 0 {
		return
	}
	l.mu.Lock()
	batch := l.inbox
	l.inbox = nil
	l.inboxLen.Store(0)
	l.mu.Unlock()
	for _, f := range batch {
		l.Stats.Posts++
		f()
	}
}

// runAgain gives each queued connection one turn; what they queue meanwhile waits
// for the next round, after a poll, so that nobody starves.
func (l *Loop) runAgain() {
	if len(l.again) == 0 {
		return
	}
	l.running, l.again = l.again, l.running[:0]
	for i, c := range l.running {
		l.running[i] = nil
		c.queued = false
		if c.handler != nil {
			c.handler.Ready(c)
		}
	}
}

func (l *Loop) flush() {
	// A flush may queue another.
	for i := 0; i < len(l.flushes); i++ {
		f := l.flushes[i]
		l.flushes[i] = nil
		f.Flush()
	}
	l.flushes = l.flushes[:0]
}

func (l *Loop) register(e entry) uint32 {
	if n := len(l.free); n > 0 {
		slot := l.free[n-1]
		l.free = l.free[:n-1]
		e.generation = l.entries[slot].generation
		l.entries[slot] = e
		return slot
	}
	l.entries = append(l.entries, e)
	return uint32(len(l.entries) - 1)
}

func (l *Loop) release(slot uint32) {
	l.entries[slot] = entry{generation: l.entries[slot].generation + 1}
	l.free = append(l.free, slot)
}

func (l *Loop) add(fd int, slot, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(slot), Pad: int32(l.entries[slot].generation)}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl add: %w", err)
	}
	return nil
}

// Listener is a listening socket registered with a loop; several loops, also of
// several processes, may share the socket.
type Listener struct {
	loop     *Loop
	fd       int
	slot     uint32
	accepted func(fd int, peer netip.AddrPort)
	timer    Timer
	resting  bool
	closed   bool
}

// Listen begins to accept from the listening socket fd, which stays the caller's.
// accepted owns each non-blocking connection that it is called with.
func (l *Loop) Listen(fd int, accepted func(fd int, peer netip.AddrPort)) (*Listener, error) {
	ln := &Listener{loop: l, fd: fd, accepted: accepted}
	ln.timer.Handler = ln
	if err := ln.add(); err != nil {
		return nil, err
	}
	return ln, nil
}

func (ln *Listener) add() error {
	ln.slot = ln.loop.register(entry{listener: ln})
	// Level-triggered, because a batch may leave some waiting; exclusive, because
	// all loops share the socket and one is enough.
	if err := ln.loop.add(ln.fd, ln.slot, unix.EPOLLIN|unix.EPOLLEXCLUSIVE); err != nil {
		ln.loop.release(ln.slot)
		return err
	}
	return nil
}

// Close stops accepting. The socket stays open; the caller closes it afterwards.
func (ln *Listener) Close() {
	if ln.closed {
		return
	}
	ln.closed = true
	ln.loop.StopTimer(&ln.timer)
	if !ln.resting {
		ln.remove()
	}
}

func (ln *Listener) remove() {
	_ = unix.EpollCtl(ln.loop.epfd, unix.EPOLL_CTL_DEL, ln.fd, nil)
	ln.loop.release(ln.slot)
}

func (ln *Listener) accept() {
	l := ln.loop
	for i := 0; i < acceptBatch && !ln.closed; i++ {
		fd, errno := sysAccept(ln.fd, &l.sa)
		switch errno {
		case 0:
			l.Stats.Accepts++
			ln.accepted(fd, addrPort(&l.sa))
		case unix.EINTR, unix.ECONNABORTED, unix.EPROTO:
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			// The connection stays in the backlog, where a level-triggered socket
			// would wake the loop without end.
			ln.remove()
			ln.resting = true
			l.SetTimer(&ln.timer, l.now+int64(acceptRetry))
			return
		default: // EAGAIN: another loop was faster, or all are accepted
			return
		}
	}
}

// OnTimer takes the listener up again after a rest.
func (ln *Listener) OnTimer(*Timer) {
	if ln.closed {
		return
	}
	if err := ln.add(); err != nil {
		ln.loop.SetTimer(&ln.timer, ln.loop.now+int64(acceptRetry))
		return
	}
	ln.resting = false
}
