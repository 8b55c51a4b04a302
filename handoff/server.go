package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Path of the socket, replaced if it exists.
	Path string
	// ProxyUID may connect besides root, and owns the socket's group.
	ProxyUID int
	// Origins and Heartbeat are map descriptors that every proxy gets.
	Origins, Heartbeat int
	// TakeBack is called for each socket that a proxy says it holds and the agent
	// does not (or has another of that name), before that proxy is told anything. It owns fd. It returns false when the socket is not
	// wanted any more; the proxy is then told to close it.
	TakeBack func(s Socket, fd int) bool
	// Connected is called when a proxy has said what it holds: the moment to make
	// the sockets that are still missing. May be nil.
	Connected func()
	Logger    *slog.Logger
}

// Server is the agent's side. Its methods may be called by any goroutine.
type Server struct {
	cfg      ServerConfig
	listener *net.UnixListener

	mu        sync.Mutex // guards what follows; never held while a peer is waited for
	sockets   map[string]held
	workloads map[uint32]Workload
	peers     map[*peer]struct{}
}

// held is a socket that the agent keeps; fd belongs to the caller of AddSocket.
type held struct {
	socket Socket
	fd     int
}

// NewServer binds the socket and starts nothing.
func NewServer(cfg ServerConfig) (*Server, error) {
	if err := os.Remove(cfg.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace %s: %w", cfg.Path, err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: cfg.Path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := errors.Join(os.Chown(cfg.Path, 0, cfg.ProxyUID), os.Chmod(cfg.Path, 0o660)); err != nil {
		l.Close()
		return nil, fmt.Errorf("give %s to the proxy: %w", cfg.Path, err)
	}
	return &Server{
		cfg: cfg, listener: l,
		sockets: map[string]held{}, workloads: map[uint32]Workload{}, peers: map[*peer]struct{}{},
	}, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a proxy: %w", err)
		}
		uid, err := PeerUID(c)
		if err != nil || (uid != 0 && int(uid) != s.cfg.ProxyUID) {
			s.cfg.Logger.Warn("refused a peer that is not the proxy", "uid", uid, "error", err)
			c.Close()
			continue
		}
		wg.Go(func() { s.serve(ctx, c) })
	}
}

// Proxies returns how many proxies are connected and synced.
func (s *Server) Proxies() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// AddSocket hands a socket to every proxy, now and later. The caller keeps fd
// open until after RemoveSocket; the server never closes it.
func (s *Server) AddSocket(sock Socket, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sockets[sock.Key()] = held{sock, fd}
	for p := range s.peers {
		p.enqueue(message{Kind: kindAddSocket, Socket: &sock}, fd)
	}
}

// RemoveSocket makes every proxy close a socket.
func (s *Server) RemoveSocket(sock Socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sockets, sock.Key())
	for p := range s.peers {
		p.enqueue(message{Kind: kindRemoveSocket, Socket: &sock}, -1)
	}
}

// AddWorkload tells every proxy of a workload. Call it before its sockets are added.
func (s *Server) AddWorkload(w Workload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workloads[uint32(w.Index)] = w
	for p := range s.peers {
		p.enqueue(message{Kind: kindAddWorkload, Workload: &w}, -1)
	}
}

// RemoveWorkload makes every proxy forget a workload and what it holds of it.
func (s *Server) RemoveWorkload(w Workload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.workloads, uint32(w.Index))
	for p := range s.peers {
		p.enqueue(message{Kind: kindRemoveWorkload, Workload: &w}, -1)
	}
}

// holds reports whether fd is the very socket that the agent has under its name.
func (s *Server) holds(sock Socket, fd int) bool {
	theirs, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.sockets[sock.Key()]
	if !ok {
		return false
	}
	ours, err := unix.GetsockoptUint64(h.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return err == nil && ours == theirs
}

// serve speaks with one proxy until it goes away.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var unwanted []Socket
	for {
		m, fd, err := read(c)
		if err != nil {
			s.cfg.Logger.Warn("proxy left before it was known", "error", err)
			return
		}
		if m.Kind == kindHaveAll {
			break
		}
		if m.Kind != kindHave {
			if fd >= 0 {
				unix.Close(fd)
			}
			s.cfg.Logger.Warn("proxy spoke out of turn", "kind", m.Kind)
			return
		}
		if s.holds(*m.Socket, fd) {
			unix.Close(fd)
		} else if !s.cfg.TakeBack(*m.Socket, fd) {
			unwanted = append(unwanted, *m.Socket)
		}
	}
	if s.cfg.Connected != nil {
		s.cfg.Connected()
	}
	p := &peer{wake: make(chan struct{}, 1)}
	p.enqueue(message{Kind: kindOrigins}, s.cfg.Origins)
	p.enqueue(message{Kind: kindHeartbeat}, s.cfg.Heartbeat)
	for i := range unwanted {
		p.enqueue(message{Kind: kindRemoveSocket, Socket: &unwanted[i]}, -1)
	}
	s.mu.Lock()
	for _, w := range s.workloads {
		p.enqueue(message{Kind: kindAddWorkload, Workload: &w}, -1)
	}
	for _, h := range s.sockets {
		p.enqueue(message{Kind: kindAddSocket, Socket: &h.socket}, h.fd)
	}
	p.enqueue(message{Kind: kindSynced}, -1)
	s.peers[p] = struct{}{}
	s.mu.Unlock()
	s.cfg.Logger.Info("proxy connected")

	done := make(chan struct{})
	go func() { // the proxy says nothing more; reading tells when it goes
		defer close(done)
		if _, fd, err := read(c); err == nil && fd >= 0 {
			unix.Close(fd)
		}
	}()
	p.run(c, done)
	s.mu.Lock()
	delete(s.peers, p)
	s.mu.Unlock()
	p.discard()
	if ctx.Err() == nil {
		s.cfg.Logger.Info("proxy disconnected")
	}
}

// peer is the queue of messages to one proxy. It is unbounded in principle and
// bounded in fact by the sockets and workloads of a node.
type peer struct {
	wake  chan struct{}
	mu    sync.Mutex
	queue []queued // guarded by mu
	gone  bool     // guarded by mu
}

type queued struct {
	m  message
	fd int // a duplicate of ours, or -1
}

// enqueue adds a message with a duplicate of fd, so that the owner may close his.
func (p *peer) enqueue(m message, fd int) {
	if fd >= 0 {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return // the owner closed it: its RemoveSocket is on the way
		}
		fd = dup
	}
	p.mu.Lock()
	if p.gone {
		p.mu.Unlock()
		if fd >= 0 {
			unix.Close(fd)
		}
		return
	}
	p.queue = append(p.queue, queued{m, fd})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *peer) run(c *net.UnixConn, done <-chan struct{}) {
	for {
		p.mu.Lock()
		batch := p.queue
		p.queue = nil
		p.mu.Unlock()
		for i, q := range batch {
			err := write(c, q.m, q.fd)
			if q.fd >= 0 {
				unix.Close(q.fd)
			}
			if err != nil {
				closeAll(batch[i+1:])
				return
			}
		}
		select {
		case <-p.wake:
		case <-done:
			return
		}
	}
}

func (p *peer) discard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	closeAll(p.queue)
	p.queue = nil
}

func closeAll(queue []queued) {
	for _, q := range queue {
		if q.fd >= 0 {
			unix.Close(q.fd)
		}
	}
}
