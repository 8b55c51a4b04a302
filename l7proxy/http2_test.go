package l7proxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// rawHTTP2 is a connection on which a client has said its preface.
func rawHTTP2(t testing.TB, to netip.AddrPort) (*http2.Framer, *net.TCPConn) {
	t.Helper()
	c := dial(t, to)
	io.WriteString(c, http2.ClientPreface)
	fr := http2.NewFramer(c, c)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return fr, c
}

// fieldBlock encodes names and values.
func fieldBlock(fields ...string) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// TestHTTP2Refusals: each request and each connection that breaks the protocol, or is
// too much, leaves a flow and a metric with its reason, however early the engine refuses
// it; streams beside it are served on.
func TestHTTP2Refusals(t *testing.T) {
	ok := []string{":method", "GET", ":scheme", "http", ":authority", "web", ":path", "/ok"}
	request := func(fr *http2.Framer, id uint32, end bool, fields ...string) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(fields...), EndHeaders: true, EndStream: end})
	}
	for _, test := range []struct {
		name   string
		send   func(fr *http2.Framer)
		reason flow.Reason
		typ    flow.Type
		path   string
		status int
		ends   bool // the connection
	}{
		{"upper case", func(fr *http2.Framer) { request(fr, 1, true, append(ok, "Upper", "x")...) }, flow.ReasonDownstreamProtocol, flow.TypeHTTP, "/ok", 0, false},
		{"connection field", func(fr *http2.Framer) { request(fr, 1, true, append(ok, "connection", "close")...) }, flow.ReasonDownstreamProtocol, flow.TypeHTTP, "/ok", 0, false},
		{"no path", func(fr *http2.Framer) { request(fr, 1, true, ok[:6]...) }, flow.ReasonDownstreamProtocol, flow.TypeHTTP, "", 0, false},
		{"too many fields", func(fr *http2.Framer) {
			fields := append([]string(nil), ok...)
			for range 300 {
				fields = append(fields, "a", "b")
			}
			request(fr, 1, true, fields...)
		}, flow.ReasonHeadTooLarge, flow.TypeHTTP, "/ok", 431, false},
		{"body too long", func(fr *http2.Framer) {
			request(fr, 1, false, ":method", "POST", ":scheme", "http", ":authority", "web", ":path", "/ok", "content-length", "1")
			fr.WriteData(1, true, []byte("ab"))
		}, flow.ReasonDownstreamProtocol, flow.TypeHTTP, "/ok", 0, false},
		{"one field too large", func(fr *http2.Framer) {
			block := fieldBlock(append(ok, "a", strings.Repeat("x", 100_000))...)
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:10000]})
			for block = block[10000:]; len(block) > 0; block = block[min(10000, len(block)):] {
				fr.WriteContinuation(1, len(block) <= 10000, block[:min(10000, len(block))])
			}
		}, flow.ReasonHeadTooLarge, flow.TypeTCP, "", 0, true},
		{"continuation flood", func(fr *http2.Framer) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: fieldBlock(ok...)})
			for range 100 {
				fr.WriteContinuation(1, false, nil)
			}
		}, flow.ReasonOverLimit, flow.TypeTCP, "", 0, true},
		{"rapid reset", func(fr *http2.Framer) {
			for id := uint32(1); id < 10_000; id += 2 {
				request(fr, id, true, ok...)
				fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}, flow.ReasonOverLimit, flow.TypeTCP, "", 0, true},
		{"settings flood", func(fr *http2.Framer) {
			for range 20_000 {
				fr.WriteSettings()
			}
		}, flow.ReasonOverLimit, flow.TypeTCP, "", 0, true},
		{"ping flood", func(fr *http2.Framer) {
			for range 20_000 {
				fr.WritePing(false, [8]byte{})
			}
		}, flow.ReasonOverLimit, flow.TypeTCP, "", 0, true},
		{"empty data", func(fr *http2.Framer) {
			request(fr, 1, false, ":method", "POST", ":scheme", "http", ":authority", "web", ":path", "/ok")
			for range 1000 {
				fr.WriteData(1, false, nil)
			}
		}, flow.ReasonOverLimit, flow.TypeTCP, "", 0, true},
		{"data of no stream", func(fr *http2.Framer) { fr.WriteData(9, true, nil) }, flow.ReasonDownstreamProtocol, flow.TypeTCP, "", 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			l.serve(h2, h2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
			fr, c := rawHTTP2(t, l.outbound(vip))
			fr.AllowIllegalWrites = true
			go test.send(fr) // which may be stopped by the other end
			f := l.flow(test.reason.String(), func(f *flow.Flow) bool { return f.Reason == test.reason && f.Type == test.typ })
			if f.Detail == "" || f.Verdict != flow.VerdictDropped || test.typ == flow.TypeHTTP && (f.HTTP.Path != test.path || f.HTTP.Status != test.status) {
				t.Errorf("flow %+v %+v", f, f.HTTP)
			}
			metric := map[flow.Type]string{flow.TypeHTTP: "sluice_proxy_requests_total", flow.TypeTCP: "sluice_proxy_tcp_connections_total"}[test.typ]
			if n := l.metric(metric, "reason", test.reason.String()); n != 1 {
				t.Errorf("%s %v", metric, n)
			}
			if test.ends {
				for { // a GOAWAY, or the reset that overtook it
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					if f, ok := f.(*http2.GoAwayFrame); ok && (f.ErrCode == http2.ErrCodeEnhanceYourCalm) != (test.reason != flow.ReasonDownstreamProtocol) {
						t.Errorf("%v", f)
					}
				}
			}
			request(fr, 3, true, ok...)
			for {
				f, err := fr.ReadFrame()
				if err != nil {
					t.Fatal(err)
				}
				if f, ok := f.(*http2.HeadersFrame); ok && f.StreamID == 3 {
					break
				}
			}
			c.Close()
		})
	}
}

// TestTooManyStreams: streams above the limit that was announced are refused, with a
// record, and may be repeated.
func TestTooManyStreams(t *testing.T) {
	l := newLab(t, func(c *Config) { c.Limits.MaxConcurrentStreams = 2 })
	release := make(chan struct{})
	l.serve(h2, h1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }))
	fr, _ := rawHTTP2(t, l.outbound(vip))
	for _, id := range []uint32{1, 3, 5} {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: fieldBlock(":method", "GET", ":scheme", "http", ":authority", "web", ":path", "/"), EndHeaders: true, EndStream: true})
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := f.(*http2.RSTStreamFrame); ok {
			if f.StreamID != 5 || f.ErrCode != http2.ErrCodeRefusedStream {
				t.Errorf("%v", f)
			}
			break
		}
	}
	l.flow("refused", func(f *flow.Flow) bool { return f.Reason == flow.ReasonOverLimit && f.Type == flow.TypeHTTP })
	close(release)
}

// TestConnect: plain CONNECT would be a tunnel to wherever the client says, around
// services and routes; it gets 501 with a reason in both versions.
func TestConnect(t *testing.T) {
	l := newLab(t)
	l.serve(h2, h1, http.NotFoundHandler())
	st := openStream(t, l.outbound(vip), ":method", "CONNECT", ":authority", "web:80")
	h, err := st.head()
	if err != nil || h[":status"] != "501" || h["x-sluice-reason"] != "unsupported" {
		t.Errorf("%v %v", h, err)
	}
	l.flow("connect", func(f *flow.Flow) bool { return f.Reason == flow.ReasonUnsupported && f.HTTP.Method == "CONNECT" })
}

// TestGRPCDeadline: the deadline that a client gives its call ends the exchange, with a
// status in gRPC's form, and the endpoint is told.
func TestGRPCDeadline(t *testing.T) {
	l := newLab(t)
	told := make(chan struct{}, 1)
	c := l.serve(h2, h2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		told <- struct{}{}
	}))
	// By hand: grpc-go would end the call itself.
	req, _ := http.NewRequest("POST", "http://web/shop.Echo/Unary", strings.NewReader(""))
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Grpc-Timeout", "50m")
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 || res.Header.Get("Grpc-Status") != "4" {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	<-told
	f := l.flow("deadline", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
	if f.Reason != flow.ReasonRequestTimeout || f.HTTP.GRPC != "4" {
		t.Errorf("%s %s", f.Reason, f.HTTP.GRPC)
	}
}

// TestGRPCCancel: a call that the client cancels ends at the endpoint too, and a stream
// that the endpoint ends with an error ends at the client, between messages.
func TestGRPCCancel(t *testing.T) {
	l := newLab(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cancelled := make(chan error, 1)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		m := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(m); err != nil {
			return err
		}
		if err := stream.SendMsg(m); err != nil {
			return err
		}
		if m.Value == "fail" {
			return status.Error(codes.Aborted, "enough")
		}
		<-stream.Context().Done()
		cancelled <- stream.Context().Err()
		return stream.Context().Err()
	}))
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	l.commit(routed(web(mesh.AppProtocolHTTP2, ln.Addr().(*net.TCPAddr).AddrPort()), to(webCluster))...)
	l.commit(cluster(webCluster, mesh.AppProtocolHTTP2))
	cc, err := grpc.NewClient("passthrough:///"+l.outbound(vip).String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	open := func(ctx context.Context, text string) grpc.ClientStream {
		st, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/shop.Echo/Chat")
		if err != nil {
			t.Fatal(err)
		}
		m := wrapperspb.String(text)
		if err := st.SendMsg(m); err != nil {
			t.Fatal(err)
		}
		if err := st.RecvMsg(m); err != nil || m.Value != text {
			t.Fatalf("%q %v", m.Value, err)
		}
		return st
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stCtx, stop := context.WithCancel(ctx)
	open(stCtx, "wait")
	stop()
	select {
	case <-cancelled:
	case <-time.After(patience):
		t.Fatal("the endpoint was not told")
	}
	l.flow("cancelled", func(f *flow.Flow) bool { return f.Reason == flow.ReasonDownstreamReset })
	st := open(ctx, "fail")
	if err := st.RecvMsg(new(wrapperspb.StringValue)); status.Code(err) != codes.Aborted || status.Convert(err).Message() != "enough" {
		t.Errorf("%v", err)
	}
}

// TestHTTP2Fields: crumbs of cookies become one field, Host and :authority agree, fields
// of the HTTP/1.1 connection do not reach the stream, TE says trailers or nothing.
func TestHTTP2Fields(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		c := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "X-Hop", "Upgrade", "Http2-Settings"} {
				if v := r.Header.Get(name); v != "" && !(up == h1 && name == "Connection" && strings.EqualFold(v, "te")) {
					t.Errorf("the endpoint got %s: %s", name, v)
				}
			}
			w.Header().Set("X-Te", strings.Join(r.Header["Te"], ","))
			w.Header().Set("X-Cookies", strings.Join(r.Header["Cookie"], "|"))
			w.Header().Set("X-Host", r.Host)
			if up == h1 {
				w.Header().Set("Connection", "x-back")
				w.Header().Set("X-Back", "mine")
				w.Header().Set("Keep-Alive", "timeout=1")
			}
		}))
		req, _ := http.NewRequest("GET", "http://web:80/", nil)
		req.Header["Cookie"] = []string{"a=1; b=2; c=3"}
		req.Header.Set("Te", "trailers")
		if down == h1 {
			req.Header.Set("Connection", "keep-alive, x-hop")
			req.Header.Set("Keep-Alive", "timeout=1")
			req.Header.Set("X-Hop", "mine")
			req.Header.Set("Te", "gzip, trailers")
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		h := res.Header
		if h.Get("X-Cookies") != "a=1; b=2; c=3" || h.Get("X-Host") != "web:80" || h.Get("X-Te") != "trailers" ||
			h.Get("X-Back") != "" || h.Get("Keep-Alive") != "" || h.Get("Connection") != "" {
			t.Errorf("%v", h)
		}
	})
}
