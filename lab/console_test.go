package lab_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/lab"
)

// call is what a console is asked to do: one JSON value a line.
type call struct {
	// Do is lookup, own, links, raw, knock, bytes, http, drain, tls, grpc, connect, open, say (a line, for a
	// line), line or close.
	Do   string
	Host string // lookup
	Addr string // address:port
	// Network of lookup ("ip4", "ip6") and of raw: "tcp4", "tcp6", "udp4", "udp6".
	// An IPv4 address with "tcp6" becomes a v4-mapped one.
	Network     string
	Unconnected bool // raw UDP: sendto and recvfrom
	NonBlocking bool // raw TCP: connect returns EINPROGRESS
	Message     string
	// Listen has bytes and open read before they write.
	Listen bool
	// Shut has bytes shut the sending side down before they read to the end.
	Shut bool

	URL     string
	Method  string
	Header  map[string]string
	Resolve string // connect to this address in place of the URL's host
	CA      string // PEM
	Name    string // tls: server name; open, say, close: which connection
	HTTP1   bool   // without HTTP/2 in ALPN
	H2C     bool
	Upload  int64 // send so many bytes of blob
	Sum     bool  // answer with the size and sum of the body
	Stall   bool  // http: leave the body alone until "drain" of Name
}

// answer is what it did.
type answer struct {
	Error   string // of a system call: its name, such as ECONNREFUSED
	Text    string // body, line or datagram
	Status  int
	Proto   string
	Header  http.Header
	Connect string // raw: what connect(2) said
	Peer    string // raw: getpeername, or recvfrom's address
	Local   string
	Size    int64
	Took    time.Duration
	Codes   []string // grpc: of each call
}

// ioLimit is far above what anything takes here.
const ioLimit = 20 * time.Second

// consoleState is what a console holds between calls. Calls come one by one.
type consoleState struct {
	conns  map[string]*openConn
	bodies map[string]io.ReadCloser
}

type openConn struct {
	net.Conn
	r *bufio.Reader
}

func runConsole(in io.Reader, out io.Writer) error {
	state := &consoleState{conns: map[string]*openConn{}, bodies: map[string]io.ReadCloser{}}
	enc := json.NewEncoder(out)
	for dec := json.NewDecoder(in); ; {
		var c call
		if err := dec.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		began := time.Now()
		if err := state.do(c, &a); err != nil {
			a.Error = errorWord(err)
		}
		a.Took = time.Since(began)
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

func errorWord(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func (s *consoleState) do(c call, a *answer) error {
	ctx, cancel := context.WithTimeout(context.Background(), ioLimit)
	defer cancel()
	switch c.Do {
	case "lookup":
		addrs, err := (&net.Resolver{PreferGo: true}).LookupNetIP(ctx, c.Network, c.Host)
		if err != nil {
			return err
		}
		var texts []string
		for _, addr := range addrs {
			texts = append(texts, addr.Unmap().String())
		}
		slices.Sort(texts)
		a.Text = strings.Join(texts, " ")
		return nil
	case "own":
		addr, err := ownAddress(c.Network == "ip6")
		a.Text = addr.String()
		return err
	case "links":
		list, err := net.Interfaces()
		for _, l := range list {
			a.Text += l.Name + " "
		}
		return err
	case "raw":
		return rawSocket(c, a)
	case "knock":
		return knock(c)
	case "bytes":
		return sendBytes(c, a)
	case "http":
		return s.http(ctx, c, a)
	case "drain":
		body := s.bodies[c.Name]
		defer body.Close()
		var err error
		a.Size, a.Text, err = sumOf(body)
		return err
	case "tls":
		return handshake(c, a)
	case "grpc":
		return calls(ctx, c, a)
	case "open":
		conn, err := net.DialTimeout("tcp", c.Addr, ioLimit)
		if err != nil {
			return err
		}
		s.conns[c.Name] = &openConn{conn, bufio.NewReader(conn)}
		a.Local, a.Peer = conn.LocalAddr().String(), conn.RemoteAddr().String()
		return nil
	case "connect":
		conn, err := net.DialTimeout("tcp", c.Addr, ioLimit)
		if err != nil {
			return err
		}
		return conn.Close()
	case "say":
		conn := s.conns[c.Name]
		if err := conn.SetDeadline(time.Now().Add(ioLimit)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, c.Message+"\n"); err != nil {
			return err
		}
		var err error
		a.Text, err = lastLine(conn.r)
		return err
	case "line":
		conn := s.conns[c.Name]
		if err := conn.SetDeadline(time.Now().Add(ioLimit)); err != nil {
			return err
		}
		var err error
		a.Text, err = lastLine(conn.r)
		return err
	case "close":
		defer delete(s.conns, c.Name)
		return s.conns[c.Name].Close()
	}
	return fmt.Errorf("do what? %q", c.Do)
}

// rawSocket does with system calls what a program in C would.
func rawSocket(c call, a *answer) (err error) {
	to, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return err
	}
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	sa := sockaddrOf(to, strings.HasSuffix(c.Network, "6"))
	if strings.HasSuffix(c.Network, "6") {
		family = unix.AF_INET6
	}
	if strings.HasPrefix(c.Network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	if c.NonBlocking {
		kind |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(ioLimit))
	if err := errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	if c.Unconnected {
		if err := unix.Sendto(fd, []byte(c.Message), 0, sa); err != nil {
			return err
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		a.Text, a.Peer = string(buf[:n]), sockaddr(from)
		return nil
	}
	err = unix.Connect(fd, sa)
	a.Connect = "ok"
	if err != nil {
		a.Connect = errorWord(err)
	}
	if errors.Is(err, unix.EINPROGRESS) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, err := unix.Poll(poll, int(ioLimit.Milliseconds())); err != nil {
			return err
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return err
		}
		if code != 0 {
			return unix.Errno(code)
		}
		if err := unix.SetNonblock(fd, false); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return err
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	a.Peer, a.Local = sockaddr(peer), sockaddr(local)
	message := c.Message
	if kind&unix.SOCK_STREAM != 0 {
		message += "\n"
	}
	if _, err := unix.Write(fd, []byte(message)); err != nil {
		return err
	}
	n, err := unix.Read(fd, buf)
	a.Text = strings.TrimSpace(string(buf[:max(0, n)]))
	return err
}

// sockaddrOf is the form of an address for sockets of a family; IPv4 becomes v4-mapped on IPv6's.
func sockaddrOf(a netip.AddrPort, six bool) unix.Sockaddr {
	if six {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func sockaddr(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	}
	return fmt.Sprintf("%T", sa)
}

// sendBytes writes a message as it is and reads to the end of the connection, or
// one line first if it is to listen.
func sendBytes(c call, a *answer) error {
	conn, err := net.DialTimeout("tcp", c.Addr, ioLimit)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(ioLimit)); err != nil {
		return err
	}
	a.Local, a.Peer = conn.LocalAddr().String(), conn.RemoteAddr().String()
	r := bufio.NewReader(conn)
	if c.Listen {
		line, err := lastLine(r)
		a.Text = line + "\n"
		if err != nil {
			return err
		}
	}
	if _, err := io.WriteString(conn, c.Message); err != nil {
		return err
	}
	if c.Shut {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
	}
	rest, err := io.ReadAll(r)
	a.Text += string(rest)
	return err
}

func roots(pem string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if pem != "" && !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("no certificate in CA")
	}
	return pool, nil
}

func handshake(c call, a *answer) error {
	pool, err := roots(c.CA)
	if err != nil {
		return err
	}
	protocols := []string{"h2", "http/1.1"}
	if c.HTTP1 {
		protocols = protocols[1:]
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: ioLimit}, "tcp", c.Addr, &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: c.Name, NextProtos: protocols,
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	a.Proto = conn.ConnectionState().NegotiatedProtocol
	return nil
}

func (s *consoleState) http(ctx context.Context, c call, a *answer) error {
	pool, err := roots(c.CA)
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!c.H2C)
	protocols.SetHTTP2(!c.HTTP1)
	protocols.SetUnencryptedHTTP2(c.H2C)
	transport := &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if c.Resolve != "" {
				addr = c.Resolve
			}
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, addr)
			if err == nil {
				a.Local, a.Peer = conn.LocalAddr().String(), conn.RemoteAddr().String()
			}
			return conn, err
		},
		DisableCompression: true,
	}
	var body io.Reader
	method := http.MethodGet
	if c.Upload > 0 {
		body, method = blob(c.Upload), http.MethodPost
	}
	if c.Method != "" {
		method = c.Method
	}
	if c.Stall {
		ctx = context.Background() // it goes on after this call
	} else {
		defer transport.CloseIdleConnections()
	}
	req, err := http.NewRequestWithContext(ctx, method, c.URL, body)
	if err != nil {
		return err
	}
	if c.Upload > 0 && c.Header["Transfer-Encoding"] == "" {
		req.ContentLength = c.Upload
	}
	for k, v := range c.Header {
		if k == "Host" {
			req.Host = v
		} else if k != "Transfer-Encoding" {
			req.Header.Set(k, v)
		}
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	a.Status, a.Proto, a.Header = resp.StatusCode, resp.Proto, resp.Header
	if c.Stall {
		s.bodies[c.Name] = resp.Body
		return nil
	}
	defer resp.Body.Close()
	if both, ok := resp.Body.(io.ReadWriter); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		if _, err := fmt.Fprintln(both, c.Message); err != nil {
			return err
		}
		a.Text, err = lastLine(bufio.NewReader(both))
		return err
	}
	if c.Sum {
		a.Size, a.Text, err = sumOf(resp.Body)
		return err
	}
	text, err := io.ReadAll(resp.Body)
	a.Text, a.Size = strings.TrimSpace(string(text)), int64(len(text))
	return err
}

// calls makes a unary call and a conversation of three messages.
func calls(ctx context.Context, c call, a *answer) error {
	conn, err := grpc.NewClient("passthrough:///"+c.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	var header metadata.MD
	_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, new(grpc_health_v1.HealthCheckRequest), grpc.Header(&header))
	a.Codes = append(a.Codes, status.Code(err).String())
	a.Text = strings.Join(header.Get("x-served-by"), ",")
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: "Chat", ServerStreams: true, ClientStreams: true}, "/lab.Echo/Chat")
	if err != nil {
		return err
	}
	for _, word := range []string{"one", "two", "three"} {
		m := new(wrapperspb.StringValue)
		if err := errors.Join(stream.SendMsg(wrapperspb.String(word)), stream.RecvMsg(m)); err != nil {
			return fmt.Errorf("chat: %w", err)
		}
		a.Text += "; " + m.GetValue()
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	err = stream.RecvMsg(new(wrapperspb.StringValue))
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("the conversation's end: %w", err)
	}
	a.Codes = append(a.Codes, "OK")
	// A method that no route serves.
	err = conn.Invoke(ctx, "/lab.Nothing/Ever", wrapperspb.String(""), new(wrapperspb.StringValue))
	a.Codes = append(a.Codes, status.Code(err).String())
	return nil
}

// console is a running one.
type console struct {
	process *lab.Process
	mu      sync.Mutex
	in      *os.File
	enc     *json.Encoder
	dec     *json.Decoder
	stderr  *bytes.Buffer
}

// newConsole starts a command that is a console.
func newConsole(cmd *lab.Command) (*console, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirIn.Close()
	defer theirOut.Close()
	c := &console{in: in, enc: json.NewEncoder(in), dec: json.NewDecoder(out), stderr: new(bytes.Buffer)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirIn, theirOut, c.stderr
	if c.process, err = cmd.Start(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *console) try(q call) (answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.enc.Encode(q); err != nil {
		return answer{}, err
	}
	var a answer
	if err := c.dec.Decode(&a); err != nil {
		<-c.process.Done
		return a, fmt.Errorf("the console ended (%w, %w): %s", err, c.process.Err, c.stderr)
	}
	return a, nil
}

// do returns an answer whatever it says.
func (c *console) do(t *testing.T, q call) answer {
	t.Helper()
	a, err := c.try(q)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// must is do without an error in the answer.
func (c *console) must(t *testing.T, q call) answer {
	t.Helper()
	a := c.do(t, q)
	if a.Error != "" {
		t.Fatalf("%s %s%s%s: %s (%+v)", q.Do, q.Addr, q.URL, q.Host, a.Error, a)
	}
	return a
}

func (c *console) lookup(t *testing.T, network, host string) string {
	t.Helper()
	return c.must(t, call{Do: "lookup", Network: network, Host: host}).Text
}
