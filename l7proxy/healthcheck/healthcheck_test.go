package healthcheck

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sluice-mesh/sluice/mesh"
)

func listen(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestTCP(t *testing.T) {
	ln, addr := listen(t)
	h := &mesh.HealthCheck{Kind: mesh.CheckTCP, Timeout: 10 * time.Second}
	if err := Check(t.Context(), h, "web", addr); err != nil {
		t.Error(err)
	}
	ln.Close()
	if err := Check(t.Context(), h, "web", addr); err == nil {
		t.Error("nobody listens, and it is healthy")
	}
}

func TestHTTP(t *testing.T) {
	ln, addr := listen(t)
	hosts := make(chan string, 10)
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hosts <- r.Host
		switch r.URL.String() {
		case "/ready?full=1":
			w.WriteHeader(http.StatusNoContent)
		case "/large":
			io.WriteString(w, strings.Repeat("x", 1<<20))
		case "/sick":
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	check := func(path, host string, first, last int) error {
		return Check(t.Context(), &mesh.HealthCheck{Kind: mesh.CheckHTTP, Path: path, Host: host, MinStatus: first, MaxStatus: last, Timeout: 10 * time.Second}, "web.shop", addr)
	}
	if err := check("/ready?full=1", "", 200, 299); err != nil {
		t.Error(err)
	}
	if host := <-hosts; host != "web.shop" {
		t.Errorf("asked for host %q", host)
	}
	if err := check("/large", "other", 200, 200); err != nil {
		t.Error(err)
	}
	if host := <-hosts; host != "other" {
		t.Errorf("asked for host %q", host)
	}
	if err := check("/sick", "", 200, 299); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("503: %v", err)
	}
	if err := check("/nothing", "", 404, 404); err != nil {
		t.Error(err)
	}
}

func TestGRPC(t *testing.T) {
	ln, addr := listen(t)
	s, hs := grpc.NewServer(), health.NewServer()
	healthv1.RegisterHealthServer(s, hs)
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	hs.SetServingStatus("books", healthv1.HealthCheckResponse_SERVING)
	hs.SetServingStatus("films", healthv1.HealthCheckResponse_NOT_SERVING)
	check := func(service string) error {
		return Check(t.Context(), &mesh.HealthCheck{Kind: mesh.CheckGRPC, Service: service, Timeout: 10 * time.Second}, "web", addr)
	}
	for service, want := range map[string]string{"": "", "books": "", "films": "NOT_SERVING", "none": "gRPC status 5"} {
		err := check(service)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", service, err, want)
		}
	}
	plain, plainAddr := listen(t)
	go http.Serve(plain, http.NotFoundHandler())
	if err := Check(t.Context(), &mesh.HealthCheck{Kind: mesh.CheckGRPC, Timeout: 10 * time.Second}, "web", plainAddr); err == nil {
		t.Error("an HTTP/1 server counts as serving gRPC")
	}
}

// TestSilence has a server that accepts and says nothing.
func TestSilence(t *testing.T) {
	_, addr := listen(t)
	for _, kind := range []mesh.HealthCheckKind{mesh.CheckHTTP, mesh.CheckGRPC} {
		h := &mesh.HealthCheck{Kind: kind, MinStatus: 200, MaxStatus: 200, Timeout: 50 * time.Millisecond}
		if err := Check(t.Context(), h, "web", addr); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("kind %d: %v", kind, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Check(ctx, &mesh.HealthCheck{Kind: mesh.CheckHTTP, Timeout: time.Hour}, "web", addr); err == nil {
		t.Error("a check that was called off is healthy")
	}
}

// FuzzServing gives the parser of HealthCheckResponse anything.
func FuzzServing(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 2, 8, 1})
	f.Add([]byte{0, 0, 0, 0, 4, 18, 2, 1, 1})
	f.Fuzz(func(t *testing.T, frame []byte) {
		err := servingStatus(frame)
		if err == nil && (len(frame) < 7 || frame[0] != 0) {
			t.Errorf("%x is healthy", frame)
		}
	})
}

// TestPort asks another port than the endpoint's own.
func TestPort(t *testing.T) {
	_, other := listen(t)
	ln, dead := listen(t)
	ln.Close()
	h := &mesh.HealthCheck{Kind: mesh.CheckTCP, Port: other.Port(), Timeout: 10 * time.Second}
	if err := Check(t.Context(), h, "web", dead); err != nil {
		t.Error(err)
	}
}
