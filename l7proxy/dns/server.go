package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

const (
	// maxQuery is the longest query that is read. RFC 6891 §6.2.5 has requestors
	// understand 4096; questions are never near it.
	maxQuery = 4096
	// maxUDP is the largest answer over UDP, whatever the client offers. The socket is
	// the workload's own, so that no link with a smaller MTU lies between.
	maxUDP = 4096
	// maxForwards is how many questions of all workloads wait for upstreams at once, and
	// maxForwardsEach how many of one: a twentieth, so that one cannot starve the others.
	maxForwards     = 2000
	maxForwardsEach = 100
	// maxConnsEach is how many TCP connections one workload has open.
	maxConnsEach = 50
	// tcpIdle is how long a TCP connection may wait for its next query (RFC 7766 §6.2.3
	// asks for a few seconds at least).
	tcpIdle = 10 * time.Second
	// retryPause is how long a socket rests after an error that is not its end.
	retryPause = 100 * time.Millisecond
)

// Config says what a server answers from.
type Config struct {
	Store *store.Store
	// ClusterDomain is "cluster.local" if empty.
	ClusterDomain string
	// Upstreams answer for names outside the cluster domain, in this order. None:
	// such queries are refused.
	Upstreams []netip.AddrPort
	// Flows takes one flow for each query; nil: none are made. It must not block, and
	// many goroutines call it.
	Flows      func(*flow.Flow)
	Node       string // for flows
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Store == nil {
		errs = append(errs, errors.New("dns: no store"))
	}
	if c.ClusterDomain != "" {
		if _, ok := dns.IsDomainName(c.ClusterDomain); !ok || dns.CountLabel(c.ClusterDomain) == 0 || strings.Contains(c.ClusterDomain, `\`) {
			errs = append(errs, fmt.Errorf("dns: cluster domain %q is no domain name", c.ClusterDomain))
		}
	}
	for _, u := range c.Upstreams {
		if !u.IsValid() || u.Port() == 0 || u.Addr().IsUnspecified() {
			errs = append(errs, fmt.Errorf("dns: upstream %s is no address and port", u))
		}
	}
	return errors.Join(errs...)
}

// Server answers the queries that arrive on the sockets it was handed. Its methods
// may be called concurrently.
type Server struct {
	cfg     Config
	zone    zone
	index   *index
	forward *forwarder
	metrics *metrics
	log     *slog.Logger

	mu        sync.Mutex
	workloads map[mesh.WorkloadIndex]*workload // guarded by mu
	run       func(func(context.Context))      // starts a goroutine; nil before Run; guarded by mu
	waiting   []func(context.Context)          // handed over before Run; guarded by mu
	ended     bool                             // guarded by mu
}

// workload is one that has sockets here.
type workload struct {
	index    mesh.WorkloadIndex
	name     mesh.Name
	forwards chan struct{} // one element for each question that waits for upstreams
	conns    chan struct{} // one element for each TCP connection

	sockets map[io.Closer]struct{} // guarded by Server.mu
	removed bool                   // guarded by Server.mu
}

// New returns a server and subscribes it to the store. It starts nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger.With("component", "dns"), metrics: newMetrics(cfg.Registerer),
		workloads: map[mesh.WorkloadIndex]*workload{},
	}
	name := strings.ToLower(dns.Fqdn(cfg.ClusterDomain))
	s.zone = zone{server: s, name: name, labels: dns.SplitDomainName(name)}
	s.forward = newForwarder(cfg.Upstreams, s.metrics)
	s.index = newIndex(cfg.Store)
	return s, nil
}

// Run serves until ctx ends, closes all sockets, and waits for what is under way. It
// must be called once at most.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	s.mu.Lock()
	s.run = func(task func(context.Context)) { tasks.Go(func() { task(ctx) }) }
	for _, task := range s.waiting {
		s.run(task)
	}
	s.waiting = nil
	s.mu.Unlock()

	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	for index := range s.workloads {
		s.remove(index)
	}
	s.mu.Unlock()
	tasks.Wait()
	return nil
}

// AddPacketConn serves UDP queries of a workload on c, which the server owns from
// now on. A workload may have several sockets.
func (s *Server) AddPacketConn(c net.PacketConn, index mesh.WorkloadIndex, name mesh.Name) {
	s.add(c, index, name, func(ctx context.Context, w *workload) { s.serveUDP(ctx, w, c) })
}

// AddListener serves TCP queries of a workload on l, which the server owns from
// now on.
func (s *Server) AddListener(l net.Listener, index mesh.WorkloadIndex, name mesh.Name) {
	s.add(l, index, name, func(ctx context.Context, w *workload) { s.serveTCP(ctx, w, l) })
}

// Remove closes the sockets of a workload.
func (s *Server) Remove(index mesh.WorkloadIndex) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(index)
}

func (s *Server) remove(index mesh.WorkloadIndex) {
	w := s.workloads[index]
	if w == nil {
		return
	}
	delete(s.workloads, index)
	w.removed = true
	for c := range w.sockets {
		// The descriptor is gone whatever close says.
		_ = c.Close()
	}
}

func (s *Server) add(c io.Closer, index mesh.WorkloadIndex, name mesh.Name, serve func(context.Context, *workload)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		_ = c.Close()
		return
	}
	w := s.workloads[index]
	if w == nil {
		w = &workload{
			index: index, name: name, sockets: map[io.Closer]struct{}{},
			forwards: make(chan struct{}, maxForwardsEach), conns: make(chan struct{}, maxConnsEach),
		}
		s.workloads[index] = w
	}
	w.sockets[c] = struct{}{}
	s.start(func(ctx context.Context) {
		defer s.release(w, c)
		serve(ctx, w)
	})
}

// start runs a task until Run ends. It is called with mu held.
func (s *Server) start(task func(context.Context)) {
	if s.run == nil {
		s.waiting = append(s.waiting, task)
		return
	}
	s.run(task)
}

// hold makes c close with its workload, and reports false if that is gone already.
func (s *Server) hold(w *workload, c io.Closer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !w.removed {
		w.sockets[c] = struct{}{}
	}
	return !w.removed
}

func (s *Server) release(w *workload, c io.Closer) {
	s.mu.Lock()
	delete(w.sockets, c)
	s.mu.Unlock()
	_ = c.Close()
}

func (s *Server) serveUDP(ctx context.Context, w *workload, c net.PacketConn) {
	buf := make([]byte, maxQuery)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if s.rest(ctx, w, err) {
				continue
			}
			return
		}
		client := client{workload: w, addr: addrPort(from), protocol: mesh.ProtocolUDP, start: time.Now()}
		send := func(reply []byte) {
			if len(reply) > 0 {
				if _, err := c.WriteTo(reply, from); err != nil && !errors.Is(err, net.ErrClosed) {
					s.log.Debug("reply not sent", "workload", w.name, "client", from, "error", err)
				}
			}
		}
		reply, ask := s.handle(buf[:n], &client)
		if ask == nil {
			send(reply)
			continue
		}
		s.mu.Lock()
		s.start(func(ctx context.Context) { send(s.ask(ctx, ask)) })
		s.mu.Unlock()
	}
}

func (s *Server) serveTCP(ctx context.Context, w *workload, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if s.rest(ctx, w, err) {
				continue
			}
			return
		}
		select {
		case w.conns <- struct{}{}:
		default:
			s.metrics.limited.Inc()
			_ = c.Close()
			continue
		}
		if !s.hold(w, c) {
			_ = c.Close()
			<-w.conns
			return
		}
		s.mu.Lock()
		s.start(func(ctx context.Context) {
			defer func() {
				s.release(w, c)
				<-w.conns
			}()
			s.serveConn(ctx, w, c)
		})
		s.mu.Unlock()
	}
}

// serveConn answers the queries of one connection in their order (RFC 7766 allows
// another, and requires none).
func (s *Server) serveConn(ctx context.Context, w *workload, c net.Conn) {
	var length [2]byte
	buf := make([]byte, maxQuery)
	for {
		if err := c.SetDeadline(time.Now().Add(tcpIdle)); err != nil {
			return
		}
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if n > maxQuery {
			s.metrics.invalid.Inc()
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		client := client{workload: w, addr: addrPort(c.RemoteAddr()), protocol: mesh.ProtocolTCP, start: time.Now()}
		reply, ask := s.handle(buf[:n], &client)
		if ask != nil {
			reply = s.ask(ctx, ask)
		}
		if len(reply) == 0 {
			return
		}
		if err := c.SetDeadline(time.Now().Add(tcpIdle)); err != nil {
			return
		}
		out := append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// rest waits after an error of a socket, and reports false if that was its end.
func (s *Server) rest(ctx context.Context, w *workload, err error) bool {
	if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
		return false
	}
	s.log.Warn("DNS socket", "workload", w.name, "error", err)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(retryPause):
		return true
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
