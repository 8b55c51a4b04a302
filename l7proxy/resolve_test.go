package l7proxy

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// nameServer answers as a test says and counts how often it was asked.
type nameServer struct {
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	asked chan struct{}
}

func (n *nameServer) Resolve(_ context.Context, name string) ([]netip.Addr, time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name != "db.example.com" {
		return nil, 0, errors.New("asked for " + name)
	}
	select {
	case n.asked <- struct{}{}:
	default:
	}
	return n.addrs, 0, n.err // asks again after minTTL
}

func (n *nameServer) set(err error, addrs ...netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err, n.addrs = err, addrs
}

// TestNamedBackend routes to a DNS name whose address changes.
func TestNamedBackend(t *testing.T) {
	here, there := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	seen := make(chan netip.Addr, 1)
	backend := httpServerOnAll(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local := r.Context().Value(http.LocalAddrContextKey).(interface{ AddrPort() netip.AddrPort })
		seen <- local.AddrPort().Addr().Unmap()
	}))
	n := &nameServer{asked: make(chan struct{}, 1)}
	n.set(nil, here)
	l := newLab(t, func(c *Config) { c.Resolver = n })
	resources := policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{}, to(webCluster))
	for _, r := range resources {
		if c, ok := r.(*mesh.Cluster); ok {
			c.Hostname, c.Port = "db.example.com", backend
		}
	}
	l.commit(resources...)
	c := h1client(t, l.outbound(vip))
	ask := func() netip.Addr {
		t.Helper()
		if res, _ := get(t, c, "http://web/"); res.StatusCode != 200 {
			t.Fatalf("status %d %s", res.StatusCode, res.Header.Get("x-sluice-reason"))
		}
		return <-seen
	}
	if a := ask(); a != here {
		t.Errorf("the request went to %s", a)
	}
	n.set(nil, there)
	for deadline := time.Now().Add(patience); ask() != there; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new address is not used")
		}
	}
	// Nobody answers: what was known is used on.
	n.set(errors.New("no answer"))
	<-n.asked // may be from before
	<-n.asked
	if a := ask(); a != there {
		t.Errorf("without an answer the request went to %s", a)
	}
	l.store.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindCluster, Key: webCluster}}})
	l.proxy.names.mu.Lock()
	defer l.proxy.names.mu.Unlock()
	if len(l.proxy.names.clusters) != 0 {
		t.Error("the name of a cluster that is gone is still resolved")
	}
}

// TestNamedBackendGone has the name stand for nothing.
func TestNamedBackendGone(t *testing.T) {
	for what, err := range map[string]error{"no address": nil, "no answer": errors.New("timeout")} {
		n := &nameServer{asked: make(chan struct{}, 1)}
		n.set(err)
		l := newLab(t, func(c *Config) { c.Resolver = n })
		resources := policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{}, to(webCluster))
		for _, r := range resources {
			if c, ok := r.(*mesh.Cluster); ok {
				c.Hostname = "db.example.com"
			}
		}
		l.commit(resources...)
		if res, _ := get(t, h1client(t, l.outbound(vip)), "http://web/"); res.StatusCode != 503 || res.Header.Get("x-sluice-reason") != "no-healthy-endpoint" {
			t.Errorf("%s: %d %s", what, res.StatusCode, res.Header.Get("x-sluice-reason"))
		}
	}
}

// httpServerOnAll serves on every address of the loopback interface and returns the port.
func httpServerOnAll(t *testing.T, h http.Handler) uint16 {
	t.Helper()
	ln, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return netip.MustParseAddrPort(ln.Addr().String()).Port()
}
