package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
)

const (
	// maxConns is how many proxies may send at a time: two during an upgrade, and
	// some to spare.
	maxConns = 8
	// readBytes of a connection's buffer hold a partial frame and one whole read.
	readBytes = 2 * maxFrameBytes
	// clockSkew is how far in the future a flow may have ended.
	clockSkew = time.Second
)

// Sink takes flows in batches; *ring.Ring is one. A batch is the sink's.
type Sink interface{ AddBatch(*record.Batch) }

// ReceiverConfig configures a Receiver.
type ReceiverConfig struct {
	Sink Sink
	// Node is the name of this node.
	Node string
	// Workload returns the workload that has an address, or nil. It must not block.
	Workload func(netip.Addr) *mesh.Workload
	// PerSecond bounds the flows that are taken; what is above is counted as lost.
	// Zero is twice the DefaultPerSecond of a sender.
	PerSecond int
	Logger    *slog.Logger
	// Registerer gets sluice_flow_feed_invalid_total.
	Registerer prometheus.Registerer
}

// Validate says what is missing or out of range.
func (c ReceiverConfig) Validate() error {
	switch {
	case c.Sink == nil:
		return errors.New("flow receiver: nothing takes the flows")
	case c.Workload == nil:
		return errors.New("flow receiver: no lookup of workloads")
	case c.Logger == nil || c.Registerer == nil:
		return errors.New("flow receiver: no logger or no metrics registry")
	case c.PerSecond < 1 || c.PerSecond > maxPerSecond:
		return fmt.Errorf("flow receiver: a limit of %d flows per second; want 1 to %d", c.PerSecond, maxPerSecond)
	}
	return nil
}

// Receiver takes flows from proxies.
type Receiver struct {
	sink     Sink
	node     string
	workload func(netip.Addr) *mesh.Workload
	limit    *bucket
	start    time.Time
	logger   *slog.Logger
	invalid  prometheus.Counter
}

// NewReceiver returns a receiver; Serve or ServeConn starts it.
func NewReceiver(c ReceiverConfig) (*Receiver, error) {
	if c.PerSecond == 0 {
		c.PerSecond = 2 * DefaultPerSecond
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	r := &Receiver{
		sink: c.Sink, node: c.Node, workload: c.Workload, limit: newBucket(c.PerSecond), start: time.Now(), logger: c.Logger,
		invalid: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_flow_feed_invalid_total", Help: "Records of flows from the proxy that broke their format and were left out.",
		}),
	}
	if err := c.Registerer.Register(r.invalid); err != nil {
		return nil, fmt.Errorf("register the metrics of the flow receiver: %w", err)
	}
	return r, nil
}

// Listen makes a seqpacket socket at path that only the user uid may write to, in
// place of one that an earlier process left.
func Listen(path string, uid int) (*net.UnixListener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the old flow socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen on the flow socket: %w", err)
	}
	err = os.Chmod(path, 0o600)
	if err == nil && uid != os.Geteuid() {
		err = os.Chown(path, uid, -1)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("give the flow socket to user %d: %w", uid, err)
	}
	return l, nil
}

// Serve takes the connections of a listener until ctx ends, closes them and the
// listener, and returns nil; an error means that the listener failed.
func (r *Receiver) Serve(ctx context.Context, l net.Listener) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	room := make(chan struct{}, maxConns)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
				// Descriptors may come back; the socket's backlog keeps who waits.
				select {
				case <-time.After(redialFirst):
					continue
				case <-ctx.Done():
					return nil
				}
			}
			return fmt.Errorf("accept on the flow socket: %w", err)
		}
		select {
		case room <- struct{}{}:
		default:
			r.logger.Warn("refused one more sender of flows", "limit", maxConns)
			_ = conn.Close()
			continue
		}
		conns.Add(1)
		go func() {
			defer func() { <-room; conns.Done() }()
			if err := r.ServeConn(ctx, conn); err != nil {
				r.logger.Warn("a sender of flows broke the protocol", "error", err)
			}
		}()
	}
}

// ServeConn takes flows from one connection until its peer closes it or ctx ends,
// and closes it. The error says that the peer broke the protocol.
func (r *Receiver) ServeConn(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	buf := make([]byte, 0, readBytes)
	var decoder record.Decoder
	for {
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		used := 0
		for {
			records, size, err := frameAt(buf[used:])
			if err != nil {
				return err
			}
			if size == 0 {
				break
			}
			batch, err := r.decode(&decoder, records)
			r.sink.AddBatch(batch)
			if err != nil {
				return err
			}
			used += size
		}
		buf = buf[:copy(buf, buf[used:])]
		if err != nil || n == 0 {
			if len(buf) > 0 && ctx.Err() == nil {
				return fmt.Errorf("flow feed: the connection ended in the middle of a frame: %w", errors.Join(err, io.ErrUnexpectedEOF))
			}
			return nil
		}
	}
}

// decode returns the flows of a frame. A record that breaks its format is counted and
// left out; the error says that the rest cannot be told apart.
func (r *Receiver) decode(d *record.Decoder, records []byte) (*record.Batch, error) {
	now := time.Now()
	elapsed := now.Sub(r.start)
	batch := record.NewBatch(r.node, len(records))
	var lost uint64
	for len(records) > 0 {
		f, n, err := d.Decode(records)
		if n == 0 {
			return batch, fmt.Errorf("flow feed: %w", err)
		}
		raw := records[:n]
		records = records[n:]
		switch {
		case err != nil:
			r.invalid.Inc()
			r.logger.Debug("left out a flow", "error", err)
		case f.Type != flow.TypeLost && !r.limit.take(elapsed):
			lost++
		default:
			if f.Time.IsZero() || f.Time.After(now.Add(clockSkew)) {
				f.Time = now
			}
			// What the proxy says of its workloads is not believed.
			batch.Add(raw, f, r.named(f.Source.AddrPort), r.named(f.Destination.AddrPort))
		}
	}
	if lost > 0 {
		f := &flow.Flow{Time: now, Type: flow.TypeLost, Lost: lost}
		batch.Add(record.Append(nil, f), f, nil, nil)
	}
	return batch, nil
}

func (r *Receiver) named(a netip.AddrPort) *mesh.Workload {
	if addr := a.Addr(); addr.IsValid() {
		return r.workload(addr.Unmap())
	}
	return nil
}
