package l7proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// grpcServer answers any method: Unary with a wrapped string, Fail with a status
// and no message, Chat with what it gets, Sum after the client's last message.
func grpcServer(t *testing.T, name string, calls *atomic.Int64) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		calls.Add(1)
		method, _ := grpc.MethodFromServerStream(stream)
		stream.SetTrailer(metadata.Pairs("x-server", name))
		sum := 0
		for {
			m := new(wrapperspb.StringValue)
			err := stream.RecvMsg(m)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			sum += len(m.Value)
			switch method {
			case "/shop.Echo/Fail":
				return status.Error(codes.NotFound, "no such thing")
			case "/shop.Echo/Unary", "/shop.Echo/Chat":
				if err := stream.SendMsg(wrapperspb.String(name + ":" + m.Value)); err != nil {
					return err
				}
			}
		}
		if method == "/shop.Echo/Sum" {
			return stream.SendMsg(wrapperspb.String(fmt.Sprint(sum)))
		}
		return nil
	}))
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func grpcClient(t *testing.T, addr netip.AddrPort) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func TestGRPC(t *testing.T) {
	l := newLab(t)
	var a, b atomic.Int64
	rule := to(webCluster)
	rule.RouteKind = "GRPCRoute"
	rule.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/shop.Echo"}
	l.commit(routed(web(mesh.AppProtocolHTTP2, grpcServer(t, "a", &a), grpcServer(t, "b", &b)), rule)...)
	cc := grpcClient(t, l.outbound(vip))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	// One connection, and each call balanced by itself.
	for range 40 {
		out := new(wrapperspb.StringValue)
		if err := cc.Invoke(ctx, "/shop.Echo/Unary", wrapperspb.String("x"), out); err != nil {
			t.Fatal(err)
		}
		if out.Value != "a:x" && out.Value != "b:x" {
			t.Fatalf("answer %q", out.Value)
		}
	}
	if a.Load() == 0 || b.Load() == 0 || a.Load()+b.Load() != 40 {
		t.Errorf("%d calls to a, %d to b", a.Load(), b.Load())
	}
	if n := l.metric("sluice_proxy_connections_total"); n != 1 {
		t.Errorf("%v connections", n)
	}

	// A status without a message is a response of trailers only.
	err := cc.Invoke(ctx, "/shop.Echo/Fail", wrapperspb.String("x"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such thing" {
		t.Errorf("Fail: %v", err)
	}
	f := l.flow("fail", func(f *flow.Flow) bool { return f.HTTP.Path == "/shop.Echo/Fail" })
	if f.HTTP.GRPC != "5" || f.HTTP.Status != 200 || f.HTTP.Route != "GRPCRoute/shop/web-route" {
		t.Errorf("flow %+v", f.HTTP)
	}

	// Both directions of a stream, message by message.
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/shop.Echo/Chat")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		text := fmt.Sprint(i)
		if err := stream.SendMsg(wrapperspb.String(text)); err != nil {
			t.Fatal(err)
		}
		out := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(out); err != nil || out.Value[2:] != text {
			t.Fatalf("%q %v", out.Value, err)
		}
	}
	stream.CloseSend()
	if err := stream.RecvMsg(new(wrapperspb.StringValue)); err != io.EOF {
		t.Errorf("end: %v", err)
	}
	if got := stream.Trailer().Get("x-server"); len(got) != 1 {
		t.Errorf("trailer %v", stream.Trailer())
	}

	// More than the windows hold.
	stream, err = cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, "/shop.Echo/Sum")
	if err != nil {
		t.Fatal(err)
	}
	big := wrapperspb.String(string(make([]byte, 100_000)))
	for range 50 {
		if err := stream.SendMsg(big); err != nil {
			t.Fatal(err)
		}
	}
	stream.CloseSend()
	out := new(wrapperspb.StringValue)
	if err := stream.RecvMsg(out); err != nil || out.Value != "5000000" {
		t.Errorf("sum %q %v", out.Value, err)
	}

	// Refusals have the form of gRPC.
	err = cc.Invoke(ctx, "/shop.Other/Unary", wrapperspb.String("x"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.Unimplemented || status.Convert(err).Message() != "no-route" {
		t.Errorf("no route: %v", err)
	}
	l.commit(clusterEndpoints(webCluster, refusing(t)))
	err = cc.Invoke(ctx, "/shop.Echo/Unary", wrapperspb.String("x"), new(wrapperspb.StringValue))
	if status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "connect-failed" {
		t.Errorf("refused: %v", err)
	}
}
