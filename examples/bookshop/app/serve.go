package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

type server struct {
	name                 string
	http, grpc, tcp, udp string
	fail                 int
	delay                time.Duration
}

func serveCommand() *cobra.Command {
	var s server
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve HTTP, gRPC, TCP or UDP and say who answered",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return s.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&s.name, "name", "app", "the name in answers")
	f.StringVar(&s.http, "http", "", "address for HTTP/1.1 and cleartext HTTP/2")
	f.StringVar(&s.grpc, "grpc", "", "address for gRPC (grpc.health.v1.Health)")
	f.StringVar(&s.tcp, "tcp", "", "address for a line echo over TCP")
	f.StringVar(&s.udp, "udp", "", "address for an echo over UDP")
	f.IntVar(&s.fail, "fail", 0, "answer every HTTP request with this status")
	f.DurationVar(&s.delay, "delay", 0, "wait before each HTTP answer")
	return cmd
}

func (s *server) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.http != "" {
		g.Go(func() error { return s.serveHTTP(ctx) })
	}
	if s.grpc != "" {
		g.Go(func() error { return s.serveGRPC(ctx) })
	}
	if s.tcp != "" {
		g.Go(func() error { return s.serveTCP(ctx) })
	}
	if s.udp != "" {
		g.Go(func() error { return s.serveUDP(ctx) })
	}
	return g.Wait()
}

func (s *server) serveHTTP(ctx context.Context) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Addr: s.http, Handler: http.HandlerFunc(s.answer), Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (s *server) answer(w http.ResponseWriter, r *http.Request) {
	select {
	case <-time.After(s.delay):
	case <-r.Context().Done():
		return
	}
	w.Header().Set("X-Served-By", s.name)
	if s.fail != 0 {
		http.Error(w, s.name+" is out of order", s.fail)
		return
	}
	fmt.Fprintf(w, "%s %s %s host=%s peer=%s for=%s\n", s.name, r.Method, r.URL.RequestURI(), r.Host, r.RemoteAddr, r.Header.Get("X-Forwarded-For"))
}

func (s *server) serveGRPC(ctx context.Context) error {
	l, err := net.Listen("tcp", s.grpc)
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, &health{name: s.name})
	context.AfterFunc(ctx, srv.Stop)
	return srv.Serve(l)
}

// health answers every check, and says who it is in a header.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	name string
}

func (h *health) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-served-by", h.name)); err != nil {
		return nil, err
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (s *server) serveTCP(ctx context.Context) error {
	l, err := net.Listen("tcp", s.tcp)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer c.Close()
			lines := bufio.NewScanner(c)
			for lines.Scan() {
				if _, err := fmt.Fprintf(c, "%s %s peer=%s\n", s.name, lines.Text(), c.RemoteAddr()); err != nil {
					return
				}
			}
		}()
	}
}

func (s *server) serveUDP(ctx context.Context) error {
	c, err := net.ListenPacket("udp", s.udp)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if _, err := fmt.Fprintf(udpReply{c, from}, "%s %s peer=%s", s.name, buf[:n], from); err != nil {
			return err
		}
	}
}

type udpReply struct {
	c  net.PacketConn
	to net.Addr
}

func (r udpReply) Write(b []byte) (int, error) { return r.c.WriteTo(b, r.to) }
