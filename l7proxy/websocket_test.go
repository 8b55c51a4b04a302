package l7proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gobwas/ws"
	"github.com/gobwas/ws/wsutil"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// extendedConnect runs the test in a process in which net/http offers RFC 8441, which
// it reads from its environment when it starts. It reports whether this is that one.
func extendedConnect(t *testing.T) bool {
	t.Helper()
	if strings.Contains(os.Getenv("GODEBUG"), "http2xconnect=1") {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "GODEBUG=http2xconnect=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// socketHandler echoes messages over HTTP/1.1 and HTTP/2; /no refuses.
func socketHandler(t *testing.T, handshakes *atomic.Value) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		handshakes.Store(fmt.Sprintf("%s %s %s %q", r.Proto, r.Method, r.Header.Get(":protocol"), r.Header["Sec-Websocket-Key"]))
		var rw io.ReadWriter
		switch {
		case r.ProtoMajor == 2 && r.Method == "CONNECT" && r.Header.Get(":protocol") == "websocket":
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			rw = &bothWays{r.Body, flushing{w}}
		case r.ProtoMajor == 1:
			c, _, _, err := ws.UpgradeHTTP(r, w)
			if err != nil {
				t.Errorf("%v", err)
				return
			}
			defer c.Close()
			rw = c
		default:
			http.Error(w, "odd", http.StatusBadRequest)
			return
		}
		for {
			m, op, err := wsutil.ReadClientData(rw)
			if err != nil {
				return
			}
			if err := wsutil.WriteServerMessage(rw, op, m); err != nil {
				return
			}
		}
	})
}

type bothWays struct {
	io.Reader
	io.Writer
}

type flushing struct{ http.ResponseWriter }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

// socket opens a WebSocket. The error of a refusal ends in its status.
func (s speaker) socket(t *testing.T, to netip.AddrPort, path string) (io.ReadWriter, error) {
	if s == h1 {
		c := dial(t, to)
		u, _ := url.Parse("ws://web" + path)
		br, _, err := ws.Dialer{}.Upgrade(c, u)
		if err != nil {
			return nil, err
		}
		if br != nil {
			return &bothWays{io.MultiReader(io.LimitReader(br, int64(br.Buffered())), c), c}, nil
		}
		return c, nil
	}
	// net/http's client has no way to say :protocol.
	st := openStream(t, to, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "web", ":path", path, "sec-websocket-version", "13")
	head, err := st.head()
	if err != nil {
		return nil, err
	}
	if status := head[":status"]; status != "200" {
		n, _ := strconv.Atoi(status)
		return nil, ws.StatusError(n)
	}
	for _, name := range []string{"sec-websocket-accept", "upgrade", "connection", "content-length"} {
		if v, ok := head[name]; ok {
			t.Errorf("%s: %s", name, v)
		}
	}
	return st, nil
}

// stream is one HTTP/2 stream of a client, frame by frame.
type stream struct {
	fr    *http2.Framer
	heads chan map[string]string
	err   error // after heads is closed
	body  *io.PipeReader

	mu     sync.Mutex
	send   sync.Cond
	window [2]int64 // of the connection, of the stream; guarded by mu
	failed error    // guarded by mu
}

// openStream sends the head of a request, given as names and values.
func openStream(t testing.TB, to netip.AddrPort, fields ...string) *stream {
	t.Helper()
	c := dial(t, to)
	io.WriteString(c, http2.ClientPreface)
	pr, pw := io.Pipe()
	s := &stream{fr: http2.NewFramer(c, c), heads: make(chan map[string]string, 4), body: pr, window: [2]int64{65535, 65535}}
	s.send.L = &s.mu
	s.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	s.fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	go func() {
		err := s.read(pw)
		pw.CloseWithError(err)
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
		s.send.Broadcast()
		s.err = err
		close(s.heads)
	}()
	return s
}

// read works off what the server sends, to the end of the stream: io.EOF, or an error.
func (s *stream) read(body *io.PipeWriter) error {
	for {
		f, err := s.fr.ReadFrame()
		if err != nil {
			return fmt.Errorf("connection: %w", err)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if f.IsAck() {
				continue
			}
			s.mu.Lock()
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				s.window[1] += int64(v) - 65535
			}
			s.fr.WriteSettingsAck()
			s.mu.Unlock()
			s.send.Broadcast()
		case *http2.WindowUpdateFrame:
			s.mu.Lock()
			s.window[f.StreamID] += int64(f.Increment)
			s.mu.Unlock()
			s.send.Broadcast()
		case *http2.MetaHeadersFrame:
			head := map[string]string{}
			for _, field := range f.Fields {
				head[field.Name] = field.Value
			}
			s.heads <- head
		case *http2.DataFrame:
			if n := uint32(len(f.Data())); n > 0 {
				if _, err := body.Write(f.Data()); err != nil {
					return err
				}
				s.mu.Lock()
				s.fr.WriteWindowUpdate(0, n)
				s.fr.WriteWindowUpdate(1, n)
				s.mu.Unlock()
			}
		case *http2.RSTStreamFrame:
			return http2.StreamError{StreamID: f.StreamID, Code: f.ErrCode}
		case *http2.GoAwayFrame:
			return http2.ConnectionError(f.ErrCode)
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) && (f.Header().Type == http2.FrameData || f.Header().Type == http2.FrameHeaders) {
			return io.EOF
		}
	}
}

// head returns the next head, interim ones and trailers included.
func (s *stream) head() (map[string]string, error) {
	if h, ok := <-s.heads; ok {
		return h, nil
	}
	return nil, s.err
}

func (s *stream) Read(p []byte) (int, error) { return s.body.Read(p) }

// Write sends DATA as the windows allow.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for rest := p; len(rest) > 0; {
		n := min(int64(len(rest)), 16384, s.window[0], s.window[1])
		if s.failed != nil {
			return 0, s.failed
		}
		if n <= 0 {
			s.send.Wait()
			continue
		}
		s.window[0] -= n
		s.window[1] -= n
		if err := s.fr.WriteData(1, false, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// CloseWrite sends END_STREAM.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fr.WriteData(1, true, nil)
}

// TestWebSocket: WebSockets pass in all pairings of versions: messages in both
// directions, more than windows and buffers hold, fragments, pings and the closing
// handshake.
func TestWebSocket(t *testing.T) {
	if !extendedConnect(t) {
		return
	}
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		var handshake atomic.Value
		l.commit(routed(web(up.protocol(), httpServer(t, socketHandler(t, &handshake))), to(webCluster))...)
		l.commit(cluster(webCluster, up.protocol()))
		addr := l.outbound(vip)
		c, err := down.socket(t, addr, "/ws")
		if err != nil {
			t.Fatal(err)
		}
		want := map[speaker]string{h1: `HTTP/1.1 GET  [`, h2: `HTTP/2.0 CONNECT websocket []`}[up]
		if got, _ := handshake.Load().(string); !strings.HasPrefix(got, want) {
			t.Errorf("the endpoint saw %s, want %s", got, want)
		}
		for _, size := range []int{0, 1, 200, 100_000, 3_000_000} {
			m := bytes.Repeat([]byte{'x'}, size)
			sent := make(chan error, 1)
			go func() { sent <- wsutil.WriteClientBinary(c, m) }()
			got, err := wsutil.ReadServerBinary(c)
			if err != nil || !bytes.Equal(got, m) {
				t.Fatalf("%d bytes: got %d, %v", size, len(got), err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		// A message in two pieces, with a ping between them.
		for _, f := range []ws.Frame{
			ws.NewFrame(ws.OpText, false, []byte("frag")), ws.NewFrame(ws.OpPing, true, []byte("there?")), ws.NewFrame(ws.OpContinuation, true, []byte("ments")),
		} {
			if err := ws.WriteFrame(c, ws.MaskFrame(f)); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []ws.Frame{ws.NewPongFrame([]byte("there?")), ws.NewTextFrame([]byte("fragments"))} {
			f, err := ws.ReadFrame(c)
			if err != nil || f.Header.OpCode != want.Header.OpCode || !bytes.Equal(f.Payload, want.Payload) {
				t.Fatalf("%v %q %v", f.Header, f.Payload, err)
			}
		}
		if err := ws.WriteFrame(c, ws.MaskFrame(ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusNormalClosure, "bye")))); err != nil {
			t.Fatal(err)
		}
		f, err := ws.ReadFrame(c)
		if err != nil || f.Header.OpCode != ws.OpClose {
			t.Fatalf("%v %v", f.Header, err)
		}
		if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
			t.Errorf("end: %q %v", b, err)
		}
		if down == h1 {
			c.(*net.TCPConn).Close()
		}
		status := map[speaker]int{h1: 101, h2: 200}[down]
		rec := l.flow("socket", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
		if rec.HTTP.Method != "GET" || rec.HTTP.Status != status || rec.Reason != flow.ReasonNone || rec.BytesIn < 3_100_000 || rec.BytesOut < 3_100_000 {
			t.Errorf("flow %+v %+v", rec, rec.HTTP)
		}

		// A refusal is an ordinary response.
		if _, err := down.socket(t, addr, "/no"); !errors.Is(err, ws.StatusError(403)) {
			t.Errorf("refused: %v", err)
		}
	})
}

// TestWebSocketReset: the end of either side that is no orderly one reaches the other.
func TestWebSocketReset(t *testing.T) {
	if !extendedConnect(t) {
		return
	}
	pairings(t, func(t *testing.T, down, up speaker) {
		l := newLab(t)
		ended := make(chan error, 1)
		l.commit(routed(web(up.protocol(), httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var rd io.Reader = r.Body
			if r.ProtoMajor == 1 {
				c, _, _, err := ws.UpgradeHTTP(r, w)
				if err != nil {
					return
				}
				defer c.Close()
				rd = c
			} else {
				w.WriteHeader(200)
				w.(http.Flusher).Flush()
			}
			_, err := io.Copy(io.Discard, rd)
			ended <- err
			if r.URL.Path == "/abort" {
				panic(http.ErrAbortHandler)
			}
		}))), to(webCluster))...)
		l.commit(cluster(webCluster, up.protocol()))
		addr := l.outbound(vip)
		if down == h1 {
			c, err := down.socket(t, addr, "/")
			if err != nil {
				t.Fatal(err)
			}
			c.(*net.TCPConn).SetLinger(0)
			c.(*net.TCPConn).Close()
			<-ended
			if f := l.flow("reset", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP }); f.Reason != flow.ReasonDownstreamReset {
				t.Errorf("%s", f.Reason)
			}
			return
		}
		c, err := down.socket(t, addr, "/abort")
		if err != nil {
			t.Fatal(err)
		}
		c.(*stream).CloseWrite() // END_STREAM, which is the client's FIN
		if err := <-ended; err != nil {
			t.Errorf("the endpoint's read ended with %v", err)
		}
		_, err = io.ReadAll(c)
		if (up == h2) != (err != nil) {
			t.Errorf("%v", err)
		}
	})
}

// TestWebSocketFallback: an HTTP/2 endpoint that does not offer extended CONNECT is
// asked in HTTP/1.1, also when the question comes before its settings.
func TestWebSocketFallback(t *testing.T) {
	l := newLab(t)
	var handshake atomic.Value
	l.commit(routed(web(mesh.AppProtocolHTTP2, httpServer(t, socketHandler(t, &handshake))), to(webCluster))...)
	l.commit(cluster(webCluster, mesh.AppProtocolHTTP2))
	addr := l.outbound(vip)
	for range 2 {
		c, err := h1.socket(t, addr, "/ws")
		if err != nil {
			t.Fatal(err)
		}
		if err := wsutil.WriteClientText(c, []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if got, err := wsutil.ReadServerText(c); err != nil || string(got) != "hello" {
			t.Errorf("%q %v", got, err)
		}
		if got, _ := handshake.Load().(string); !strings.HasPrefix(got, "HTTP/1.1 GET") {
			t.Errorf("the endpoint saw %s", got)
		}
	}
}

// TestWebSocketAnswers: towards a stream only a switch that was asked for counts, with
// a proof where there is one.
func TestWebSocketAnswers(t *testing.T) {
	if !extendedConnect(t) {
		return
	}
	for _, test := range []struct{ name, answer string }{
		{"200", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"no proof", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"},
		{"wrong proof", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"},
		{"other protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			backend := tcpServer(t, func(c *net.TCPConn) {
				http.ReadRequest(bufio.NewReader(c))
				io.WriteString(c, test.answer)
				io.Copy(io.Discard, c)
			})
			l.commit(routed(web(mesh.AppProtocolHTTP, backend), to(webCluster))...)
			if _, err := h2.socket(t, l.outbound(vip), "/"); !errors.Is(err, ws.StatusError(502)) {
				t.Errorf("%v", err)
			}
			if f := l.flow("refused", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP }); f.Reason != flow.ReasonUpstreamProtocol || f.Detail == "" {
				t.Errorf("%s %q", f.Reason, f.Detail)
			}
		})
	}
}
