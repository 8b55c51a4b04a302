package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The test binary is also every program that the tests run on the node: under the
// name peerName it serves ("peer serve NAME") or does what it is asked on standard
// input ("peer console", console_test.go).
const peerName = "peer"

func peerMain(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return (&peerServer{name: args[1]}).run()
	case len(args) == 1 && args[0] == "console":
		return runConsole(os.Stdin, os.Stdout)
	}
	return fmt.Errorf("peer serve NAME, or peer console; not %q", args)
}

// The ports that a peer serves.
const (
	peerHTTP   = ":8080"
	peerGRPC   = ":9090"
	peerLine   = ":7000"
	peerUDP    = ":7001"
	peerBanner = ":7002"
)

type peerServer struct {
	name string
	// stalled counts the bytes of /stall that a client's connection took.
	stalled atomic.Int64

	mu   sync.Mutex
	seen []string // guarded by mu: method and target of each request but GET /seen
}

func (s *peerServer) run() error {
	failed := make(chan error)
	for _, serve := range []func() error{
		s.serveHTTP, s.serveGRPC, s.serveUDP,
		func() error { return serveTCP(peerLine, s.lines) },
		func() error {
			return serveTCP(peerBanner, func(c net.Conn) {
				if _, err := fmt.Fprintf(c, "220 %s\n", s.name); err == nil {
					s.lines(c)
				}
			})
		},
	} {
		go func() { failed <- serve() }()
	}
	return <-failed
}

func serveTCP(addr string, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// lines answers each line, and the end of the client's bytes with a last word.
func (s *peerServer) lines(c net.Conn) {
	lines, n := bufio.NewScanner(c), 0
	for lines.Scan() {
		n++
		if _, err := fmt.Fprintf(c, "%s %s peer=%s\n", s.name, lines.Text(), c.RemoteAddr()); err != nil {
			return
		}
	}
	fmt.Fprintf(c, "end after %d\n", n)
}

func (s *peerServer) serveUDP() error {
	c, err := net.ListenPacket("udp", peerUDP)
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(fmt.Appendf(nil, "%s %s peer=%s", s.name, buf[:n], from), from); err != nil {
			return err
		}
	}
}

func (s *peerServer) serveHTTP() error {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s host=%s peer=%s for=%s proto=%s\n",
			s.name, r.Method, r.URL.RequestURI(), r.Host, r.RemoteAddr, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"))
	})
	mux.HandleFunc("/web/sum", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		fmt.Fprintln(w, n, hex.EncodeToString(hash.Sum(nil)), err)
	})
	mux.HandleFunc("/web/blob", func(w http.ResponseWriter, r *http.Request) {
		// An error is the client's, who counts.
		_, _ = io.Copy(w, blob(number(r)))
	})
	mux.HandleFunc("/web/stall", func(w http.ResponseWriter, r *http.Request) {
		s.stalled.Store(0)
		_, _ = io.Copy(counted{w, &s.stalled}, blob(number(r)))
	})
	mux.HandleFunc("/web/stalled", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s.stalled.Load()) })
	mux.HandleFunc("/web/seen", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, line := range s.seen {
			fmt.Fprintln(w, line)
		}
	})
	mux.HandleFunc("/web/upgrade", s.upgrade)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Addr: peerHTTP, Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Served-By", s.name)
		if r.URL.Path != "/web/seen" {
			s.mu.Lock()
			s.seen = append(s.seen, r.Method+" "+r.URL.RequestURI())
			s.mu.Unlock()
		}
		mux.ServeHTTP(w, r)
	})}
	return srv.ListenAndServe()
}

// upgrade speaks lines after 101, as a WebSocket would frames.
func (s *peerServer) upgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "lines" {
		http.Error(w, "lines only", http.StatusUpgradeRequired)
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: lines\r\n\r\n")
	s.lines(readConn{c, buffered})
}

type readConn struct {
	net.Conn
	r io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.r.Read(b) }

type counted struct {
	w io.Writer
	n *atomic.Int64
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n.Add(int64(n))
	return n, err
}

func number(r *http.Request) int64 {
	n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// blob returns n bytes that never repeat at the size of any buffer.
func blob(n int64) io.Reader {
	pattern := make([]byte, 1<<16-17)
	x := uint32(1)
	for i := range pattern {
		x = x*1664525 + 1013904223 // any generator will do
		pattern[i] = byte(x >> 24)
	}
	return io.LimitReader(&repeated{pattern: pattern}, n)
}

type repeated struct {
	pattern []byte
	at      int
}

func (r *repeated) Read(b []byte) (int, error) {
	n := copy(b, r.pattern[r.at:])
	r.at = (r.at + n) % len(r.pattern)
	return n, nil
}

func sumOf(r io.Reader) (n int64, sum string, err error) {
	hash := sha256.New()
	n, err = io.Copy(hash, r)
	return n, hex.EncodeToString(hash.Sum(nil)), err
}

func (s *peerServer) serveGRPC() error {
	l, err := net.Listen("tcp", peerGRPC)
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, &peerHealth{name: s.name})
	srv.RegisterService(&grpc.ServiceDesc{
		ServiceName: "lab.Echo",
		HandlerType: (*any)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: "Chat", Handler: s.chat, ServerStreams: true, ClientStreams: true}},
	}, s)
	return srv.Serve(l)
}

// chat answers each message before it reads the next.
func (s *peerServer) chat(_ any, stream grpc.ServerStream) error {
	for {
		m := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(wrapperspb.String(s.name + " " + m.GetValue())); err != nil {
			return err
		}
	}
}

type peerHealth struct {
	grpc_health_v1.UnimplementedHealthServer
	name string
}

func (h *peerHealth) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-served-by", h.name)); err != nil {
		return nil, err
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

// ownAddress returns this machine's first address of the family that is not
// loopback or link-local.
func ownAddress(six bool) (netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is6() == six && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, errors.New("no such address")
}

// lastLine returns what was read up to the end of a line.
func lastLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadBytes('\n')
	return string(bytes.TrimSpace(line)), err
}
