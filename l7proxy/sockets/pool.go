package sockets

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// The size of a batch grows while a workload keeps emptying its shelf and starts
// small, because an idle socket costs kernel memory.
const (
	firstBatch = 4
	// retryWait is how long a workload whose batch failed is left alone.
	retryWait = 100 * time.Millisecond
)

// Pool keeps sockets of the node's workloads ready. Its methods may be called by
// any goroutine and never wait for the Maker.
type Pool struct {
	conn   *net.UnixConn
	logger *slog.Logger

	mu      sync.Mutex // guards what follows; held for a few instructions
	shelves map[shelfKey]*shelf
	names   map[mesh.WorkloadIndex]string
	tags    map[uint32]shelfKey
	nextTag uint32
	closed  bool
}

type shelfKey struct {
	workload    mesh.WorkloadIndex
	v6          bool
	transparent bool
}

type shelf struct {
	fds     []int
	batch   int
	asked   bool
	retryAt time.Time
	waiting []func(fd int, ok bool) // in the order in which they came
}

// NewPool returns a pool that asks the Maker at the other end of conn, which
// must be a SOCK_SEQPACKET socket and becomes the pool's.
func NewPool(conn *net.UnixConn, logger *slog.Logger) *Pool {
	return &Pool{
		conn: conn, logger: logger,
		shelves: map[shelfKey]*shelf{}, names: map[mesh.WorkloadIndex]string{}, tags: map[uint32]shelfKey{},
	}
}

// AddWorkload makes a workload known by the file name of its network namespace.
func (p *Pool) AddWorkload(w mesh.WorkloadIndex, netns string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names[w] = netns
}

// RemoveWorkload forgets a workload and closes its idle sockets, which would keep
// its namespace alive. Those who wait for one are called and find none.
func (p *Pool) RemoveWorkload(w mesh.WorkloadIndex) {
	p.mu.Lock()
	delete(p.names, w)
	var waiting []func(int, bool)
	for _, k := range []shelfKey{{w, false, false}, {w, true, false}, {w, false, true}, {w, true, true}} {
		if s := p.shelves[k]; s != nil {
			closeFDs(s.fds)
			waiting = append(waiting, s.waiting...)
			delete(p.shelves, k)
		}
	}
	p.mu.Unlock()
	fail(waiting)
}

// Take returns a fresh, unconnected, non-blocking TCP socket in the workload's
// namespace, which becomes the caller's; false if none is ready (Wait then).
func (p *Pool) Take(w mesh.WorkloadIndex, v6 bool) (fd int, ok bool) {
	return p.take(shelfKey{w, v6, false})
}

// TakeTransparent is Take for a socket that may be bound to any address.
func (p *Pool) TakeTransparent(w mesh.WorkloadIndex, v6 bool) (fd int, ok bool) {
	return p.take(shelfKey{w, v6, true})
}

func (p *Pool) take(k shelfKey) (fd int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.shelf(k)
	if s == nil {
		return -1, false
	}
	if n := len(s.fds); n > 0 {
		fd, s.fds = s.fds[n-1], s.fds[:n-1]
		if n-1 <= s.batch/4 {
			p.ask(k, s)
		}
		return fd, true
	}
	if s.batch < maxBatch && !s.asked {
		s.batch *= 2
	}
	p.ask(k, s)
	return -1, false
}

// Known reports whether the workload can have sockets.
func (p *Pool) Known(w mesh.WorkloadIndex) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.names[w] != "" && !p.closed
}

// Wait has f called once, by another goroutine: with a socket, which becomes f's, or
// without one because the workload is gone or its batch failed.
func (p *Pool) Wait(w mesh.WorkloadIndex, v6 bool, f func(fd int, ok bool)) {
	p.wait(shelfKey{w, v6, false}, f)
}

// WaitTransparent is Wait for TakeTransparent.
func (p *Pool) WaitTransparent(w mesh.WorkloadIndex, v6 bool, f func(fd int, ok bool)) {
	p.wait(shelfKey{w, v6, true}, f)
}

func (p *Pool) wait(k shelfKey, f func(int, bool)) {
	if fd, ok := p.take(k); ok {
		go f(fd, true)
		return
	}
	p.mu.Lock()
	s := p.shelf(k)
	if s == nil {
		p.mu.Unlock()
		go f(-1, false)
		return
	}
	s.waiting = append(s.waiting, f)
	p.ask(k, s)
	p.mu.Unlock()
}

// shelf returns the shelf of a known workload, nil of any other.
func (p *Pool) shelf(k shelfKey) *shelf {
	if p.closed || p.names[k.workload] == "" {
		return nil
	}
	s := p.shelves[k]
	if s == nil {
		s = &shelf{batch: firstBatch}
		p.shelves[k] = s
	}
	return s
}

// ask sends a request unless one is under way. A full socket buffer is treated as
// a failed batch: the Maker is far behind.
func (p *Pool) ask(k shelfKey, s *shelf) {
	if s.asked {
		return
	}
	if wait := time.Until(s.retryAt); wait > 0 {
		s.asked = true
		time.AfterFunc(wait, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.shelves[k] == s {
				s.asked = false
				p.ask(k, s)
			}
		})
		return
	}
	s.asked = true
	p.nextTag++
	tag := p.nextTag
	p.tags[tag] = k
	r := request{tag: tag, v6: k.v6, transparent: k.transparent, count: s.batch, netns: p.names[k.workload]}
	go func() {
		if _, err := p.conn.Write(r.append(nil)); err != nil && !errors.Is(err, net.ErrClosed) {
			p.logger.Error("cannot ask for sockets", "error", err)
		}
	}()
}

// Run takes what the Maker answers, until ctx ends or the Maker goes away.
func (p *Pool) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { p.conn.Close() })
	defer stop()
	defer p.close()
	buf := make([]byte, answerBytes+1)
	oob := make([]byte, unix.CmsgSpace(4*maxBatch))
	for {
		n, oobn, flags, _, err := p.conn.ReadMsgUnix(buf, oob)
		if err != nil || n == 0 {
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				err = io.EOF
			}
			return fmt.Errorf("the maker of sockets is gone: %w", err)
		}
		fds, err := parseRights(oob[:oobn])
		if err != nil || flags&unix.MSG_CTRUNC != 0 {
			closeFDs(fds)
			return fmt.Errorf("receive sockets: %w", errors.Join(err, os.NewSyscallError("recvmsg", unix.EMSGSIZE)))
		}
		tag, errno, err := parseAnswer(buf[:n])
		if err != nil {
			closeFDs(fds)
			return err
		}
		p.stock(tag, errno, fds)
	}
}

func (p *Pool) stock(tag uint32, errno unix.Errno, fds []int) {
	p.mu.Lock()
	k, ok := p.tags[tag]
	delete(p.tags, tag)
	s := p.shelves[k]
	if !ok || s == nil { // removed meanwhile
		p.mu.Unlock()
		closeFDs(fds)
		return
	}
	s.asked = false
	if errno != 0 {
		p.logger.Warn("no sockets for a workload", "workload", k.workload, "error", errno)
		s.retryAt = time.Now().Add(retryWait)
	}
	served := s.waiting[:min(len(fds), len(s.waiting))]
	unserved := s.waiting[len(served):]
	s.fds = append(s.fds, fds[len(served):]...)
	if s.waiting = nil; len(fds) > 0 && len(unserved) > 0 {
		// A batch that was made, if it was too small, is followed by another.
		s.waiting, unserved = unserved, nil
		s.batch = min(max(s.batch, len(s.waiting)), maxBatch)
		p.ask(k, s)
	}
	p.mu.Unlock()
	for i, f := range served {
		f(fds[i], true)
	}
	fail(unserved)
}

func (p *Pool) close() {
	p.mu.Lock()
	p.closed = true
	var waiting []func(int, bool)
	for _, s := range p.shelves {
		closeFDs(s.fds)
		waiting = append(waiting, s.waiting...)
	}
	p.shelves = map[shelfKey]*shelf{}
	p.mu.Unlock()
	fail(waiting)
}

func fail(waiting []func(int, bool)) {
	for _, f := range waiting {
		f(-1, false)
	}
}

func parseRights(oob []byte) ([]int, error) {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range cmsgs {
		got, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			return fds, err
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
