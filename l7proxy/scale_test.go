package l7proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sluice-mesh/sluice/mesh"
)

// replica is a server that ends as a well-behaved one does: it stops accepting and
// finishes what is under way.
type replica struct {
	addr netip.AddrPort
	end  func()
	open *atomic.Int64 // connections; nil if not counted
}

func httpReplica(t *testing.T) *replica {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{addr: ln.Addr().(*net.TCPAddr).AddrPort(), open: new(atomic.Int64)}
	s := &http.Server{
		Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
		ConnState: func(_ net.Conn, st http.ConnState) {
			switch st {
			case http.StateNew:
				r.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				r.open.Add(-1)
			case http.StateActive, http.StateIdle:
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
		}),
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	go s.Serve(ln)
	r.end = func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("a server that left keeps requests: %v", err)
		}
	}
	t.Cleanup(func() { s.Close() })
	return r
}

func grpcReplica(t *testing.T) *replica {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthv1.RegisterHealthServer(s, health.NewServer())
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	return &replica{addr: ln.Addr().(*net.TCPAddr).AddrPort(), end: s.GracefulStop}
}

// TestScaleUnderLoad adds and removes replicas while clients send without a pause, and
// loses no request: an endpoint that left gets nothing new, what it has is finished,
// and connections that wait in pools are closed before the server is.
func TestScaleUnderLoad(t *testing.T) {
	post := func(c *http.Client) func() error {
		return func() error {
			// Not idempotent: nothing repeats it once an endpoint may have seen it.
			res, err := c.Post("http://web/", "text/plain", bytes.NewReader([]byte("hello")))
			if err != nil {
				return err
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err == nil && (res.StatusCode != 200 || string(b) != "hello") {
				err = fmt.Errorf("status %d, %q, %s", res.StatusCode, b, res.Header.Get("x-sluice-reason"))
			}
			return err
		}
	}
	cases := map[string]struct {
		protocol mesh.AppProtocol
		replica  func(*testing.T) *replica
		client   func(*testing.T, netip.AddrPort) func() error
	}{
		"HTTP/1.1": {mesh.AppProtocolHTTP, httpReplica, func(t *testing.T, a netip.AddrPort) func() error { return post(h1client(t, a)) }},
		"HTTP/2":   {mesh.AppProtocolHTTP2, httpReplica, func(t *testing.T, a netip.AddrPort) func() error { return post(h2client(t, a)) }},
		"gRPC": {mesh.AppProtocolHTTP2, grpcReplica, func(t *testing.T, a netip.AddrPort) func() error {
			conn, err := grpc.NewClient(a.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			c := healthv1.NewHealthClient(conn)
			return func() error {
				_, err := c.Check(context.Background(), &healthv1.HealthCheckRequest{})
				return err
			}
		}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Loops = 2 })
			replicas := []*replica{tc.replica(t), tc.replica(t)}
			publish := func() {
				addrs := make([]netip.AddrPort, len(replicas))
				for i, r := range replicas {
					addrs[i] = r.addr
				}
				l.commit(clusterEndpoints(webCluster, addrs...))
			}
			l.commit(policed(tc.protocol, mesh.BackendPolicy{}, to(webCluster), replicas[0].addr, replicas[1].addr)...)
			addr := l.outbound(vip)
			var done atomic.Bool
			var sent atomic.Int64
			var clients sync.WaitGroup
			for range 6 {
				send := tc.client(t, addr)
				clients.Go(func() {
					for !done.Load() {
						if err := send(); err != nil {
							t.Errorf("a request was lost: %v", err)
							return
						}
						sent.Add(1)
					}
				})
			}
			more := func() { // so that every state sees traffic
				for n, deadline := sent.Load()+200, time.Now().Add(patience); sent.Load() < n && !t.Failed(); {
					if time.Now().After(deadline) {
						t.Fatal("requests stand still")
					}
					time.Sleep(time.Millisecond)
				}
			}
			for range 6 {
				more()
				replicas = append(replicas, tc.replica(t))
				publish()
				more()
				gone := replicas[0]
				replicas = replicas[1:]
				publish()
				l.drained(gone.addr)
				gone.end()
			}
			more()
			done.Store(true)
			clients.Wait()
			if sent.Load() < 1000 {
				t.Errorf("only %d requests", sent.Load())
			}
			for _, r := range replicas {
				if r.open != nil && r.open.Load() == 0 {
					t.Error("an endpoint that stays has no connection")
				}
			}
		})
	}
}

// drained waits until no loop has a connection to an endpoint.
func (l *lab) drained(a netip.AddrPort) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		n := 0
		for _, w := range l.proxy.workers {
			got := make(chan int)
			w.loop.Post(func() { got <- w.set.Uses(a) })
			n += <-got
		}
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%d connections to %s, which left", n, a)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestUnusedConnectionsEndAtOnce removes an endpoint when there is no traffic: what
// waits in pools is closed without a request that would show the change.
func TestUnusedConnectionsEndAtOnce(t *testing.T) {
	for _, protocol := range []mesh.AppProtocol{mesh.AppProtocolHTTP, mesh.AppProtocolHTTP2} {
		r := httpReplica(t)
		l := newLab(t)
		l.commit(policed(protocol, mesh.BackendPolicy{}, to(webCluster), r.addr)...)
		get(t, h1client(t, l.outbound(vip)), "http://web/")
		if r.open.Load() != 1 {
			t.Fatalf("%s: %d connections", protocol, r.open.Load())
		}
		l.commit(clusterEndpoints(webCluster))
		l.drained(r.addr)
		for deadline := time.Now().Add(patience); r.open.Load() != 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the endpoint that left has %d connections", protocol, r.open.Load())
			}
		}
	}
}
