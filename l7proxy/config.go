package l7proxy

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/l7proxy/tlsengine"
	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Origin is what is known of a connection that was steered to the proxy.
type Origin struct {
	// Dest is what the client dialled.
	Dest netip.AddrPort
	// Workload is who dialled.
	Workload mesh.WorkloadIndex
}

// Origins tells the original destination of an accepted socket. It is called on
// the loops and must not block.
type Origins interface {
	Lookup(fd int) (Origin, bool)
}

// Sockets gives TCP sockets made in the network namespace of a workload. It is
// called on the loops and must not block.
type Sockets interface {
	// Take returns a fresh, unconnected, non-blocking socket, which becomes the
	// caller's; false if none is ready.
	Take(w mesh.WorkloadIndex, v6 bool) (fd int, ok bool)
	// Wait has f called once, on any goroutine, with a socket, which becomes f's, or
	// without one if none could be made: Take is worth another try then.
	Wait(w mesh.WorkloadIndex, v6 bool, f func(fd int, ok bool))
}

// AccessLog takes a record of each finished exchange and connection.
type AccessLog interface {
	// Add must not block and must not keep f, the request's head (nil: no request), or
	// their strings.
	Add(f *flow.Flow, head *message.Head)
}

// Config is what a Proxy needs.
type Config struct {
	// Loops is how many epoll loops run; one per core that the proxy may use.
	Loops int
	// Node is the node's name, for flows and for what prefers endpoints that are near;
	// Zone is its topology zone, or empty.
	Node string
	Zone string

	// Store and Routes are read for each request. The wiring subscribes
	// Routes.Apply to Store before New subscribes the proxy, so that a waiting
	// request finds what has just arrived. New sets Routes.Prepare.
	Store  *store.Store
	Routes *route.Tables
	// Certificates may be nil: no listener terminates TLS then. The wiring
	// subscribes its Apply before New, like Routes.
	Certificates *tlsengine.Certificates

	// Origins may be nil: every outbound connection is refused then.
	Origins Origins
	// Sockets may be nil: all upstream sockets are made in the proxy's own network
	// namespace then.
	Sockets Sockets
	// Resolver finds the endpoints of clusters that are DNS names (ExternalName). Nil:
	// such clusters have no endpoints.
	Resolver Resolver
	// Want asks for a resource that a connection needs and Store lacks; the key may
	// be a glob. It is called on the loops, at most once per key and loop while the
	// resource stays away, and must not block. May be nil.
	Want func(kind mesh.Kind, key string)

	// Flows takes one record for each finished exchange or connection. The record and
	// its strings are valid during the call only: who keeps something copies it.
	// Called on the loops: it must not block, and counts what it drops. May be nil.
	Flows func(*flow.Flow)
	// AdmitFlow is asked before a flow of a request that went well is made; false
	// means that it is counted as lost and not wanted. Nil: all are. Called on the
	// loops, like Flows.
	AdmitFlow func() bool
	// AccessLog may be nil.
	AccessLog AccessLog
	// Tracer makes spans of requests; nil: trace context passes through unchanged.
	Tracer *trace.Tracer

	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Limits     Limits
}

// Limits bound what clients and endpoints can make the proxy hold and how long
// they can make it wait. Zero fields take the value of DefaultLimits.
type Limits struct {
	// MaxConnections bounds the downstream connections of one workload, and those
	// of one Gateway.
	MaxConnections int
	// MaxBufferedBytes bounds what the proxy holds for one workload or Gateway in
	// bytes that were read and could not be sent on yet.
	MaxBufferedBytes int64
	// MaxHandshakes bounds the TLS handshakes with clients that are under way on one
	// port of a Gateway, MaxHandshakesPerClient those of one client's address: for IPv6 of
	// its network of 64 bits.
	MaxHandshakes          int
	MaxHandshakesPerClient int
	// MaxHeadBytes bounds the head of a message; 431 beyond it.
	MaxHeadBytes int
	// MaxFields bounds the fields of a head.
	MaxFields int
	// MaxConcurrentStreams bounds the exchanges of one HTTP/2 connection.
	MaxConcurrentStreams int
	// RetryBodyBytes bounds the request body that is kept so that a try can be
	// repeated; a larger request is tried once.
	RetryBodyBytes int
	// RetryBufferedBytes bounds those of all requests together.
	RetryBufferedBytes int64
	// MirrorBodyBytes bounds what waits for a mirror that is slower than the request; it
	// gives up beyond it. MirrorBufferedBytes bounds that of all mirrors together, and
	// MaxMirrors how many are under way on one loop.
	MirrorBodyBytes     int
	MirrorBufferedBytes int64
	MaxMirrors          int

	// MirrorTimeout bounds a mirror whose rule has no request timeout.
	MirrorTimeout time.Duration
	// ConfigWait bounds how long a connection waits for configuration on demand.
	ConfigWait time.Duration
	// SniffGrace is how long a client of unknown protocol may be silent before its
	// endpoint is asked to speak first.
	SniffGrace time.Duration
	// ConnectTimeout bounds one connection attempt to an endpoint.
	ConnectTimeout time.Duration
	// HandshakeTimeout bounds a client's TLS handshake, ClientHello included.
	HandshakeTimeout time.Duration
	// HeadTimeout bounds the time from a request's first byte to its head's last.
	HeadTimeout time.Duration
	// IdleTimeout closes a downstream HTTP connection on which there is no exchange.
	IdleTimeout time.Duration
	// StreamIdleTimeout ends an exchange on which no byte moves.
	StreamIdleTimeout time.Duration
	// PoolIdleTimeout closes an unused upstream connection.
	PoolIdleTimeout time.Duration
	// UDPIdleTimeout forgets a client's UDP flow on which no datagram moves.
	UDPIdleTimeout time.Duration
	// TCPIdleTimeout ends a raw connection on which no byte moves.
	TCPIdleTimeout time.Duration
}

// DefaultLimits returns the limits of a node proxy.
func DefaultLimits() Limits {
	return Limits{
		MaxConnections:   65536,
		MaxBufferedBytes: 256 << 20,

		MaxHandshakes:          2048,
		MaxHandshakesPerClient: 512,

		MaxHeadBytes:         64 << 10,
		MaxFields:            256,
		MaxConcurrentStreams: 256,
		RetryBodyBytes:       64 << 10,
		RetryBufferedBytes:   64 << 20,
		MirrorBodyBytes:      1 << 20,
		MirrorBufferedBytes:  64 << 20,
		MaxMirrors:           4096,
		MirrorTimeout:        15 * time.Second,
		ConfigWait:           5 * time.Second,
		SniffGrace:           50 * time.Millisecond,
		ConnectTimeout:       5 * time.Second,
		HandshakeTimeout:     10 * time.Second,
		HeadTimeout:          30 * time.Second,
		IdleTimeout:          10 * time.Minute,
		StreamIdleTimeout:    10 * time.Minute,
		PoolIdleTimeout:      90 * time.Second,
		UDPIdleTimeout:       60 * time.Second,
		TCPIdleTimeout:       2 * time.Hour,
	}
}

// Validate reports the first thing that makes c unusable.
func (c *Config) Validate() error {
	switch {
	case c.Loops < 1:
		return fmt.Errorf("loops: %d, want at least 1", c.Loops)
	case c.Store == nil:
		return errors.New("store: missing")
	case c.Routes == nil:
		return errors.New("routes: missing")
	case c.Logger == nil:
		return errors.New("logger: missing")
	case c.Registerer == nil:
		return errors.New("registerer: missing")
	}
	return c.Limits.validate()
}

func (l *Limits) validate() error {
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"max connections", int64(l.MaxConnections)},
		{"max buffered bytes", l.MaxBufferedBytes},
		{"max handshakes", int64(l.MaxHandshakes)},
		{"max handshakes per client", int64(l.MaxHandshakesPerClient)},
		{"max head bytes", int64(l.MaxHeadBytes)},
		{"max fields", int64(l.MaxFields)},
		{"max concurrent streams", int64(l.MaxConcurrentStreams)},
		{"retry body bytes", int64(l.RetryBodyBytes)},
		{"retry buffered bytes", l.RetryBufferedBytes},
		{"mirror body bytes", int64(l.MirrorBodyBytes)},
		{"mirror buffered bytes", l.MirrorBufferedBytes},
		{"max mirrors", int64(l.MaxMirrors)},
		{"mirror timeout", int64(l.MirrorTimeout)},
		{"config wait", int64(l.ConfigWait)},
		{"sniff grace", int64(l.SniffGrace)},
		{"connect timeout", int64(l.ConnectTimeout)},
		{"handshake timeout", int64(l.HandshakeTimeout)},
		{"head timeout", int64(l.HeadTimeout)},
		{"idle timeout", int64(l.IdleTimeout)},
		{"stream idle timeout", int64(l.StreamIdleTimeout)},
		{"pool idle timeout", int64(l.PoolIdleTimeout)},
		{"udp idle timeout", int64(l.UDPIdleTimeout)},
		{"tcp idle timeout", int64(l.TCPIdleTimeout)},
	} {
		if v.value < 0 {
			return fmt.Errorf("%s: %d, want 0 (default) or more", v.name, v.value)
		}
	}
	return nil
}

// withDefaults returns l with its zero fields filled.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	setInt(&l.MaxConnections, d.MaxConnections)
	setInt(&l.MaxBufferedBytes, d.MaxBufferedBytes)
	setInt(&l.MaxHandshakes, d.MaxHandshakes)
	setInt(&l.MaxHandshakesPerClient, d.MaxHandshakesPerClient)
	setInt(&l.MaxHeadBytes, d.MaxHeadBytes)
	setInt(&l.MaxFields, d.MaxFields)
	setInt(&l.MaxConcurrentStreams, d.MaxConcurrentStreams)
	setInt(&l.RetryBodyBytes, d.RetryBodyBytes)
	setInt(&l.RetryBufferedBytes, d.RetryBufferedBytes)
	setInt(&l.MirrorBodyBytes, d.MirrorBodyBytes)
	setInt(&l.MirrorBufferedBytes, d.MirrorBufferedBytes)
	setInt(&l.MaxMirrors, d.MaxMirrors)
	setInt(&l.MirrorTimeout, d.MirrorTimeout)
	setInt(&l.ConfigWait, d.ConfigWait)
	setInt(&l.SniffGrace, d.SniffGrace)
	setInt(&l.ConnectTimeout, d.ConnectTimeout)
	setInt(&l.HandshakeTimeout, d.HandshakeTimeout)
	setInt(&l.HeadTimeout, d.HeadTimeout)
	setInt(&l.IdleTimeout, d.IdleTimeout)
	setInt(&l.StreamIdleTimeout, d.StreamIdleTimeout)
	setInt(&l.PoolIdleTimeout, d.PoolIdleTimeout)
	setInt(&l.UDPIdleTimeout, d.UDPIdleTimeout)
	setInt(&l.TCPIdleTimeout, d.TCPIdleTimeout)
	return l
}

func setInt[T int | int64 | time.Duration](v *T, otherwise T) {
	if *v == 0 {
		*v = otherwise
	}
}
