package upstream_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
)

// TestFallback: a backend with an address of each family is reached by the one that answers.
func TestFallback(t *testing.T) {
	listener := func(addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	at := func(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }
	open, other := listener("[::1]:0"), listener("127.0.0.1:0")
	gone4, gone6 := listener("127.0.0.1:0"), listener("[::1]:0")
	closed4, closed6 := at(gone4), at(gone6)
	gone4.Close()
	gone6.Close()

	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx, func() {}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	dialer := &upstream.Dialer{Loop: l, Timeout: 20 * time.Second}
	for _, c := range []struct {
		name         string
		to, fallback netip.AddrPort
		reached      netip.AddrPort // zero: refused
	}{
		{"the first answers", at(other), at(open), at(other)},
		{"the first refuses", closed4, at(open), at(open)},
		{"the other way round", closed6, at(other), at(other)},
		{"both refuse", closed4, closed6, netip.AddrPort{}},
		{"there is one", closed4, netip.AddrPort{}, netip.AddrPort{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			type result struct {
				peer netip.AddrPort
				err  error
			}
			results := make(chan result, 2)
			l.Post(func() {
				dialer.Start(0, c.to, &upstream.Dial{Fallback: c.fallback, Done: func(_ *upstream.Dial, conn *loop.Conn, err error) {
					r := result{err: err}
					if err == nil {
						if sa, err := unix.Getpeername(conn.FD()); err != nil {
							r.err = err
						} else if v4, ok := sa.(*unix.SockaddrInet4); ok {
							r.peer = netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
						} else if v6, ok := sa.(*unix.SockaddrInet6); ok {
							r.peer = netip.AddrPortFrom(netip.AddrFrom16(v6.Addr), uint16(v6.Port))
						}
						conn.Close()
					}
					results <- r
				}})
			})
			r := <-results
			if r.peer != c.reached || c.reached.IsValid() != (r.err == nil) || r.err != nil && !errors.Is(r.err, unix.ECONNREFUSED) {
				t.Errorf("reached %s, %v; want %s", r.peer, r.err, c.reached)
			}
		})
	}
}
