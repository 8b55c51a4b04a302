package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/admin/loglevel"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/filter"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// everything is a view of all processes at once, with fixed answers.
type everything struct{ flows *ring.Ring }

func (everything) Status() admin.Status {
	return admin.Status{
		Component: admin.Component{OK: true, Detail: "fine", Name: "overwritten by the server"},
		Features:  []admin.Feature{{Name: "tcx", Needed: true, Have: true}},
		Maps:      []admin.MapUsage{{Name: "sluice_services", Entries: 3, Max: 100}},
		Counts:    []admin.Count{{Name: "workloads", Value: 2}},
		Losses:    []admin.Loss{{Source: "kernel", Events: 1}},
	}
}

func (everything) Config() any {
	return map[string]any{"certificate": mesh.Certificate{Name: "shop/tls", KeyPEM: []byte("SECRET")}}
}

var workloads = []admin.Workload{{
	Name: mesh.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.4")},
	Ready: true, Local: true, PID: 7, Started: time.Unix(1, 0).UTC(),
}}

var services = []admin.Service{{
	Name: mesh.Name{Namespace: "shop", Name: "reviews"}, VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.12")},
	Ports: []admin.ServicePort{{Port: 80, Protocol: mesh.ProtocolTCP, Steered: true, Endpoints: []admin.Endpoint{{Address: netip.MustParseAddrPort("10.77.0.5:8080"), Ready: true}}}},
}}

var xds = []admin.XDSType{{Client: "proxy", Type: "Listener", Version: "7", Acked: "6", Nacked: "7", Error: "no", Resources: 3}}

func (everything) Workloads() []admin.Workload { return workloads }
func (everything) Services() []admin.Service   { return services }
func (v everything) Flows() *ring.Ring         { return v.flows }
func (everything) Routes() []admin.Route       { return nil }
func (everything) Gateways() []admin.Gateway {
	return []admin.Gateway{{Name: mesh.Name{Namespace: "shop", Name: "edge"}, Class: "sluice"}}
}
func (everything) XDS() []admin.XDSType { return xds }
func (everything) Backends() []admin.Backend {
	return []admin.Backend{{Cluster: "shop/web/80", State: "healthy"}}
}

func (everything) Connections() []admin.Connection {
	return []admin.Connection{{ID: 1, Kind: "outbound", Idle: time.Second}}
}

func (everything) Explain(_ context.Context, q admin.ExplainRequest) (*admin.Explanation, error) {
	if q.From.Name == "ghost" {
		return nil, fmt.Errorf("workload %s: %w", q.From, admin.ErrNotFound)
	}
	if q.From.Name == "crash" {
		return nil, errors.New("out of luck")
	}
	return &admin.Explanation{Request: q, Winner: -1, Reason: "no-route"}, nil
}

// serve runs a server of process p in a directory of its own, and returns a client
// and what stops the server.
func serve(t *testing.T, p admin.Process, view admin.View) (c *admin.Client, runDir string, stop func()) {
	t.Helper()
	runDir = t.TempDir()
	s, err := admin.New(config(p, admin.SocketPath(runDir, p)), view)
	if err != nil {
		t.Fatal(err)
	}
	c = admin.NewClient(runDir)
	t.Cleanup(c.Close)
	return c, runDir, run(t, s)
}

func config(p admin.Process, path string) admin.Config {
	levels := loglevel.New(slog.LevelInfo)
	levels.Register("dns")
	return admin.Config{Process: p, Path: path, Levels: levels, Logger: slog.New(slog.DiscardHandler)}
}

func run(t *testing.T, s *admin.Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func newRing(t *testing.T, size int) *ring.Ring {
	t.Helper()
	r, err := ring.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAnswers(t *testing.T) {
	ctx := t.Context()
	view := everything{flows: newRing(t, 16)}
	c, _, _ := serve(t, admin.ProcessAgent, view)

	status, err := c.Status(ctx, admin.ProcessAgent)
	if err != nil {
		t.Fatal(err)
	}
	component := status.Component
	if component.Name != admin.ProcessAgent || component.PID != os.Getpid() || component.Version == "" || component.Started.IsZero() || !component.OK || component.Detail != "fine" {
		t.Errorf("component %+v", component)
	}
	want := view.Status()
	want.Component = component
	if !reflect.DeepEqual(status, want) {
		t.Errorf("got %+v, want %+v", status, want)
	}
	gotWorkloads, err := c.Workloads(ctx)
	if err != nil || !reflect.DeepEqual(gotWorkloads, workloads) {
		t.Errorf("got %+v, %v", gotWorkloads, err)
	}
	gotServices, err := c.Services(ctx)
	if err != nil || !reflect.DeepEqual(gotServices, services) {
		t.Errorf("got %+v, %v", gotServices, err)
	}
	raw, err := c.Config(ctx, admin.ProcessAgent)
	if err != nil || strings.Contains(string(raw), "SECRET") || !strings.Contains(string(raw), "[redacted]") {
		t.Errorf("config %s, %v", raw, err)
	}

	c, _, _ = serve(t, admin.ProcessNode, view)
	if routes, err := c.Routes(ctx); err != nil || len(routes) != 0 || routes == nil {
		t.Errorf("no routes are %#v, %v; want an empty list", routes, err)
	}
	if gateways, err := c.Gateways(ctx); err != nil || !reflect.DeepEqual(gateways, view.Gateways()) {
		t.Errorf("got %+v, %v", gateways, err)
	}
	if got, err := c.XDS(ctx, admin.ProcessNode); err != nil || !reflect.DeepEqual(got, xds) {
		t.Errorf("got %+v, %v", got, err)
	}

	c, _, _ = serve(t, admin.ProcessProxy, view)
	if got, err := c.Connections(ctx); err != nil || !reflect.DeepEqual(got, view.Connections()) {
		t.Errorf("got %+v, %v", got, err)
	}
	q := admin.ExplainRequest{Method: "GET", URL: "http://reviews/", Headers: []admin.Header{{Name: "a", Value: "b"}}, From: mesh.Name{Namespace: "shop", Name: "web"}}
	if got, err := c.Explain(ctx, q); err != nil || !reflect.DeepEqual(got.Request, q) || got.Reason != "no-route" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// only has no more than every process.
type only struct{}

func (only) Status() admin.Status { return admin.Status{} }
func (only) Config() any          { return make(chan int) } // not JSON

func TestErrors(t *testing.T) {
	c, runDir, _ := serve(t, admin.ProcessProxy, everything{flows: newRing(t, 16)})
	explain := func(name string) error {
		_, err := c.Explain(t.Context(), admin.ExplainRequest{From: mesh.Name{Namespace: "shop", Name: name}})
		return err
	}
	if err := explain("ghost"); !errors.Is(err, admin.ErrNotFound) || !strings.Contains(err.Error(), "proxy: workload shop/ghost") {
		t.Errorf("got %v", err)
	}
	var answer *admin.AnswerError
	if err := explain("crash"); !errors.As(err, &answer) || answer.Status != 500 || answer.Text != "out of luck" {
		t.Errorf("got %v", err)
	}
	for name, body := range map[string]any{
		"unknown field": map[string]string{"methud": "GET"}, "wrong type": 7, "too long": map[string]string{"method": strings.Repeat("x", 2<<20)},
	} {
		err := c.Do(t.Context(), admin.ProcessProxy, "POST", "/explain", body, new(any))
		if !errors.Is(err, admin.ErrBadRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", admin.SocketPath(runDir, admin.ProcessProxy))
	}}}
	defer hc.CloseIdleConnections()
	post, err := hc.Post("http://proxy/explain", "application/json", strings.NewReader(`{} {}`))
	if err != nil || post.StatusCode != 400 {
		t.Errorf("two values in a body: %v, %v", post, err)
	}
	for path, want := range map[string]string{"/": "GET /connections", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/nothing": "404 page not found"} {
		got, err := hc.Get("http://proxy" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(got.Body)
		got.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("%s answers %q", path, body)
		}
	}

	c, _, _ = serve(t, admin.ProcessAgent, only{})
	if _, err := c.Workloads(t.Context()); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("a view without workloads answers %v", err)
	}
	if _, err := c.Config(t.Context(), admin.ProcessAgent); !errors.As(err, &answer) || answer.Status != 500 {
		t.Errorf("a configuration that is not JSON: %v", err)
	}
	if _, err := c.Status(t.Context(), "relay"); err == nil {
		t.Error("an unknown process answered")
	}
}

func TestLogLevel(t *testing.T) {
	ctx := t.Context()
	c, _, _ := serve(t, admin.ProcessAgent, only{})
	before, err := c.LogLevels(ctx, admin.ProcessAgent)
	if err != nil || before.Default != "info" {
		t.Fatalf("got %+v, %v", before, err)
	}
	set := func(component, level string) (admin.LogLevels, error) {
		return c.SetLogLevel(ctx, admin.ProcessAgent, admin.LogLevel{Component: component, Level: level})
	}
	dns := func(l admin.LogLevels) admin.LogLevel {
		for _, c := range l.Components {
			if c.Component == "dns" {
				return c
			}
		}
		return admin.LogLevel{}
	}
	if got, err := set("dns", "debug"); err != nil || dns(got) != (admin.LogLevel{Component: "dns", Level: "debug", Own: true}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := set("", "error"); err != nil || got.Default != "error" || dns(got).Level != "debug" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := set("dns", ""); err != nil || dns(got) != (admin.LogLevel{Component: "dns", Level: "error"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := set("dsn", "debug"); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("an unknown component: %v", err)
	}
	if _, err := set("dsn", ""); !errors.Is(err, admin.ErrNotFound) {
		t.Errorf("an unknown component: %v", err)
	}
	for _, bad := range [][2]string{{"dns", "loud"}, {"", ""}} {
		if _, err := set(bad[0], bad[1]); !errors.Is(err, admin.ErrBadRequest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNotRunning(t *testing.T) {
	runDir := t.TempDir()
	c := admin.NewClient(runDir)
	defer c.Close()
	check := func(p admin.Process, want string) {
		t.Helper()
		_, err := c.Status(t.Context(), p)
		var unreachable *admin.UnreachableError
		if !errors.As(err, &unreachable) || !unreachable.NotRunning() || unreachable.Process != p {
			t.Fatalf("got %v", err)
		}
		for _, part := range []string{want, admin.SocketPath(runDir, p), "sluiced node --config DIR"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q does not say %q", err, part)
			}
		}
	}
	check(admin.ProcessNode, "no node is running")
	check(admin.ProcessProxy, "the proxy is not running")
	// A socket that a dead process left is no better.
	l, err := admin.Listen(admin.SocketPath(runDir, admin.ProcessAgent))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	check(admin.ProcessAgent, "the agent is not running")
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	first, err := admin.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := admin.Listen(path); err == nil || !strings.Contains(err.Error(), "another process listens") {
		t.Errorf("a second process: %v", err)
	}
	first.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("closing a listener that may have been handed over removed its file: %v", err)
	}
	// A server takes the place of a dead one, and removes its own file.
	s, err := admin.New(config(admin.ProcessAgent, path), only{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of a closed server is there: %v", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Listen(path); err == nil {
		t.Error("a file that is no socket was replaced")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file has %q", b)
	}
}

// TestInherited: a server works on a listener that another process made, through a
// descriptor as it is handed over.
func TestInherited(t *testing.T) {
	runDir := t.TempDir()
	path := admin.SocketPath(runDir, admin.ProcessProxy)
	made, err := admin.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := made.File()
	if err != nil {
		t.Fatal(err)
	}
	made.Close()
	inherited, err := net.FileListener(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := config(admin.ProcessProxy, "")
	c.Listener = inherited
	s, err := admin.New(c, only{})
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, s)
	client := admin.NewClient(runDir)
	defer client.Close()
	if _, err := client.Status(t.Context(), admin.ProcessProxy); err != nil {
		t.Error(err)
	}
	stop()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the server removed a file that it did not make: %v", err)
	}
}

// TestRootOnly: another user cannot reach the socket, and is refused even if the
// socket's mode lets everybody in.
func TestRootOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	_, runDir, _ := serve(t, admin.ProcessAgent, only{})
	path := admin.SocketPath(runDir, admin.ProcessAgent)
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connectAs(t, 65534, path); !errors.Is(err, syscall.EACCES) {
		t.Errorf("connect as nobody: %v, want EACCES", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if answer, err := connectAs(t, 65534, path); err != nil || answer != "" {
		t.Errorf("nobody was answered %q, %v", answer, err)
	}
	if answer, err := connectAs(t, 0, path); err != nil || !strings.Contains(answer, " 200 OK\r\n") {
		t.Errorf("root was answered %q, %v", answer, err)
	}
}

// connectAs asks for /status on a thread of another user.
func connectAs(t *testing.T, uid int, path string) (answer string, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this user
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			err = errno
			return
		}
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return
		}
		_, _ = unix.Write(fd, []byte("GET /status HTTP/1.0\r\n\r\n")) // it may be refused already
		buf := make([]byte, 4096)
		n, readErr := unix.Read(fd, buf)
		if readErr == nil {
			answer = string(buf[:n])
		}
	}()
	<-done
	return answer, err
}

func numbered(first, n int) []*flow.Flow {
	out := make([]*flow.Flow, n)
	for i := range out {
		out[i] = &flow.Flow{Type: flow.TypeHTTP, BytesIn: uint64(first + i), Time: time.Unix(int64(first+i), 0), Verdict: flow.VerdictForwarded,
			HTTP: &flow.HTTP{Path: "/<&>"}}
	}
	return out
}

func TestFlows(t *testing.T) {
	r := newRing(t, 64)
	c, _, _ := serve(t, admin.ProcessAgent, everything{flows: r})
	r.Add(numbered(1, 50)...)
	read := func(q admin.FlowQuery) (numbers []uint64) {
		t.Helper()
		err := c.Flows(t.Context(), q, func(f *flow.Flow, line []byte) error {
			if !json.Valid(line) || f.HTTP.Path != "/<&>" || !strings.Contains(string(line), "/<&>") {
				t.Errorf("line %s", line)
			}
			numbers = append(numbers, f.BytesIn)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return numbers
	}
	if got := read(admin.FlowQuery{}); len(got) != 50 {
		t.Errorf("all: %v", got)
	}
	if got := read(admin.FlowQuery{Last: 2}); !reflect.DeepEqual(got, []uint64{49, 50}) {
		t.Errorf("last 2: %v", got)
	}
	if got := read(admin.FlowQuery{Since: time.Unix(48, 0)}); !reflect.DeepEqual(got, []uint64{48, 49, 50}) {
		t.Errorf("since: %v", got)
	}
	if got := read(admin.FlowQuery{Terms: []filter.Term{{Flag: "verdict", Value: "dropped"}}}); got != nil {
		t.Errorf("dropped: %v", got)
	}
	if got := read(admin.FlowQuery{Terms: []filter.Term{{Flag: "verdict", Value: "dropped", Not: true}}, Last: 1}); !reflect.DeepEqual(got, []uint64{50}) {
		t.Errorf("not dropped: %v", got)
	}
	stop := errors.New("enough")
	if err := c.Flows(t.Context(), admin.FlowQuery{}, func(*flow.Flow, []byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's own error came back as %v", err)
	}
	if err := c.Flows(t.Context(), admin.FlowQuery{Terms: []filter.Term{{Flag: "port", Value: "http"}}}, nil); !errors.Is(err, admin.ErrBadRequest) {
		t.Errorf("a bad filter: %v", err)
	}
	for _, query := range []string{"last=-1", "last=x", "since=yesterday", "follow=2", "verdcit=dropped"} {
		if _, err := admin.ParseFlowQuery(parseQuery(t, query)); err == nil {
			t.Errorf("%s was taken", query)
		}
	}
}

func parseQuery(t *testing.T, raw string) map[string][]string {
	t.Helper()
	name, value, _ := strings.Cut(raw, "=")
	return map[string][]string{name: {value}}
}

func TestFlowQueryValues(t *testing.T) {
	q := admin.FlowQuery{
		Terms: []filter.Term{{Flag: "namespace", Value: "shop"}, {Flag: "http-path", Value: "^/a&b", Not: true}},
		Last:  7, Since: time.Unix(1700000000, 5).UTC(), Follow: true,
	}
	got, err := admin.ParseFlowQuery(q.Values())
	if err != nil || !reflect.DeepEqual(got, q) {
		t.Errorf("got %+v, %v; want %+v", got, err, q)
	}
}

func TestFollow(t *testing.T) {
	r := newRing(t, 64)
	c, _, stop := serve(t, admin.ProcessAgent, everything{flows: r})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan uint64)
	ended := make(chan error, 1)
	follow := func(ctx context.Context) {
		ended <- c.Flows(ctx, admin.FlowQuery{Follow: true, Last: 1}, func(f *flow.Flow, _ []byte) error {
			got <- f.BytesIn
			return nil
		})
	}
	r.Add(numbered(1, 1)...)
	go follow(ctx)
	for i := 1; i <= 3; i++ {
		if n := <-got; n != uint64(i) {
			t.Fatalf("got flow %d, want %d", n, i)
		}
		r.Add(numbered(i+1, 1)...)
	}
	<-got
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled follower ended with %v", err)
	}
	// The end of the agent is told, and does not wait for its followers.
	go follow(t.Context())
	<-got
	stop()
	var unreachable *admin.UnreachableError
	if err := <-ended; !errors.As(err, &unreachable) {
		t.Errorf("the end of the agent came as %v", err)
	}
}

// TestFollowWithLoss: a client that reads too slowly is told what it missed, and
// what it got and missed is all there was.
func TestFollowWithLoss(t *testing.T) {
	r := newRing(t, 16)
	c, _, _ := serve(t, admin.ProcessAgent, everything{flows: r})
	const total = 20_000 // some megabytes of JSON: more than the buffers on the way hold
	r.Add(numbered(1, 1)...)
	var received, lost uint64
	done := errors.New("done")
	err := c.Flows(t.Context(), admin.FlowQuery{Follow: true, Last: 1}, func(f *flow.Flow, _ []byte) error {
		if received == 0 {
			r.Add(numbered(2, total-1)...)
		}
		if f.Type == flow.TypeLost {
			if f.LostSource != flow.LostByRing {
				t.Errorf("lost by %q", f.LostSource)
			}
			lost += f.Lost
		} else {
			received++
		}
		if received+lost >= total {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) || received+lost != total || lost == 0 {
		t.Errorf("received %d and lost %d of %d: %v", received, lost, total, err)
	}
}

func TestConfig(t *testing.T) {
	good := config(admin.ProcessAgent, filepath.Join(t.TempDir(), "x"))
	for name, change := range map[string]func(*admin.Config){
		"process": func(c *admin.Config) { c.Process = "" },
		"path":    func(c *admin.Config) { c.Path = "" },
		"levels":  func(c *admin.Config) { c.Levels = nil },
		"logger":  func(c *admin.Config) { c.Logger = nil },
	} {
		bad := good
		change(&bad)
		if _, err := admin.New(bad, only{}); err == nil {
			t.Errorf("a server without %s was made", name)
		}
	}
	if _, err := admin.New(good, nil); err == nil {
		t.Error("a server without a view was made")
	}
}
