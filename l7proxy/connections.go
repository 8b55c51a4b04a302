package l7proxy

import (
	"context"
	"crypto/tls"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// Connection is a downstream connection, as the admin socket shows it.
type Connection struct {
	// ID stays the connection's as long as the proxy runs, and is no other's.
	ID          uint64
	Journey     string
	Protocol    string // "config", "detect", "tls", "http/1.1", "h2", "tcp", "closing"
	Source      netip.AddrPort
	Workload    mesh.Name
	Destination netip.AddrPort
	Service     mesh.Name
	Listener    string
	Loop        int
	Age         time.Duration
	Exchanges   uint64 // begun on it
	Buffered    int    // bytes
	TLS         *ConnectionTLS

	// BytesIn and BytesOut are the payload of TCP from and to the client, ciphertext
	// where there is TLS, as the kernel counts it. Idle is how long none has moved.
	BytesIn, BytesOut uint64
	Idle              time.Duration
}

// ConnectionTLS is what a TLS handshake with a client agreed on.
type ConnectionTLS struct {
	Version    string // "TLS 1.3"; empty until it is done
	Cipher     string
	ALPN       string
	ServerName string
}

// snapshotBatch is how many connections a loop describes at a time: each costs it a
// system call.
const snapshotBatch = 128

// Connections returns how many downstream connections there are.
func (p *Proxy) Connections() int {
	n := 0
	for _, w := range p.workers {
		n += int(w.open.Load())
	}
	return n
}

// Snapshot returns the downstream connections. The loops are not held up: they
// describe a few at a time, so that what opens meanwhile may be missing.
func (p *Proxy) Snapshot(ctx context.Context) ([]Connection, error) {
	var out []Connection
	for _, w := range p.workers {
		seen := map[uint64]bool{}
		for from := -1; from != 0; {
			type part struct {
				conns []Connection
				next  int
			}
			got := make(chan part, 1)
			if !w.loop.Post(func() {
				conns, next := w.snapshot(from)
				got <- part{conns, next}
			}) {
				break
			}
			select {
			case p := <-got:
				for _, c := range p.conns {
					// One that closed lets the last take its place, which was seen.
					if !seen[c.ID] {
						seen[c.ID] = true
						out = append(out, c)
					}
				}
				from = p.next
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
	return out, nil
}

// snapshot describes some connections below the index from, or the last ones for -1,
// and returns where to go on; 0 is the end.
func (w *worker) snapshot(from int) ([]Connection, int) {
	if from < 0 || from > len(w.conns) {
		from = len(w.conns)
	}
	next := max(0, from-snapshotBatch)
	out := make([]Connection, 0, from-next)
	for i := from - 1; i >= next; i-- {
		out = append(out, w.conns[i].describe())
	}
	return out, next
}

func (d *downConn) describe() Connection {
	buffered := d.buffered()
	if d.tunnel != nil {
		buffered += d.tunnel.relay.Buffered()
	}
	now := d.w.loop.Now()
	out := Connection{
		ID: d.id, Journey: d.journey.String(), Protocol: modeNames[d.mode], Source: d.peer, Workload: d.source,
		Destination: d.dest, Service: d.service, Listener: d.listenerName, Loop: d.w.id,
		Age: time.Duration(now - d.opened), Exchanges: d.exchanges, Buffered: buffered,
	}
	if d.isTLS {
		out.TLS = new(ConnectionTLS)
		if d.tls != nil {
			if done, err := d.tls.HandshakeDone(); done && err == nil {
				state := d.tls.ConnectionState()
				*out.TLS = ConnectionTLS{
					Version: tls.VersionName(state.Version), Cipher: tls.CipherSuiteName(state.CipherSuite),
					ALPN: state.NegotiatedProtocol, ServerName: state.ServerName,
				}
			}
		}
	}
	if !d.c.Closed() {
		if info, err := unix.GetsockoptTCPInfo(d.c.FD(), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			out.BytesIn, out.BytesOut = info.Bytes_received, info.Bytes_sent-info.Bytes_retrans
			out.Idle = min(time.Duration(min(info.Last_data_recv, info.Last_data_sent))*time.Millisecond, out.Age)
		}
	}
	return out
}
