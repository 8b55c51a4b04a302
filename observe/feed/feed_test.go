package feed_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/feed"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/metrics"
	"github.com/sluice-mesh/sluice/observe/record"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// sink passes the flows on that it is given.
type sink chan *flow.Flow

func (s sink) AddBatch(b *record.Batch) {
	for i := range b.Len() {
		s <- b.Flow(i)
	}
}

// next returns the next flow; the test's own deadline bounds the wait.
func (s sink) next(t *testing.T) *flow.Flow {
	t.Helper()
	select {
	case f := <-s:
		return f
	case <-t.Context().Done():
		t.Fatal("no flow came")
		return nil
	}
}

var web = &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web"}}

func newReceiver(t *testing.T, s feed.Sink, change ...func(*feed.ReceiverConfig)) (*feed.Receiver, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	c := feed.ReceiverConfig{
		Sink: s, Node: "n1", Logger: slog.New(slog.DiscardHandler), Registerer: reg,
		Workload: func(a netip.Addr) *mesh.Workload {
			if a == netip.MustParseAddr("10.77.0.4") {
				return web
			}
			return nil
		},
	}
	for _, f := range change {
		f(&c)
	}
	r, err := feed.NewReceiver(c)
	if err != nil {
		t.Fatal(err)
	}
	return r, reg
}

func newSender(t testing.TB, dial func(context.Context) (net.Conn, error), change ...func(*feed.SenderConfig)) (*feed.Sender, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	c := feed.SenderConfig{Dial: dial, Logger: slog.New(slog.DiscardHandler), Registerer: reg}
	for _, f := range change {
		f(&c)
	}
	s, err := feed.NewSender(c)
	if err != nil {
		t.Fatal(err)
	}
	return s, reg
}

// start runs f until the test ends or stop is called, and waits for it.
func start(t *testing.T, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
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

func listen(t *testing.T) (*net.UnixListener, func(context.Context) (net.Conn, error)) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flows.sock")
	l, err := feed.Listen(path, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, dialer(path)
}

func dialer(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unixpacket", path)
	}
}

func request(n int) *flow.Flow {
	return &flow.Flow{Type: flow.TypeHTTP, Time: time.Unix(int64(n), 0), BytesIn: uint64(n + 1), HTTP: &flow.HTTP{Path: "/"}}
}

func TestFromProxyToAgent(t *testing.T) {
	l, dial := listen(t)
	got := make(sink, 1000)
	receiver, _ := newReceiver(t, got)
	sender, reg := newSender(t, dial)
	start(t, func(ctx context.Context) error { return receiver.Serve(ctx, l) })
	start(t, sender.Run)

	sent := &flow.Flow{
		Time: time.Unix(100, 0).UTC(), Node: "elsewhere", Type: flow.TypeHTTP, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolTCP,
		Source: flow.Peer{AddrPort: netip.MustParseAddrPort("[::ffff:10.77.0.4]:41000"), Workload: mesh.Name{Namespace: "kube-system", Name: "admin"}, Labels: map[string]string{"forged": "yes"}},
		Destination: flow.Peer{AddrPort: netip.MustParseAddrPort("192.0.2.1:80"), Workload: mesh.Name{Namespace: "kube-system", Name: "dns"},
			Service: mesh.Name{Namespace: "shop", Name: "reviews"}},
		HTTP: &flow.HTTP{Method: "GET", Path: "/x", Status: 200}, Lost: 1 << 60, LostSource: "kernel",
	}
	q1, q2 := sender.NewQueue(), sender.NewQueue()
	q1.Add(sent)
	f := got.next(t)
	want := *sent
	want.Node, want.Lost, want.LostSource = "n1", 0, ""
	want.Source.Workload, want.Source.Labels = web.Name, web.Labels
	want.Destination.Workload = mesh.Name{}
	if !reflect.DeepEqual(*f, want) {
		t.Errorf("got  %+v\nwant %+v", *f, want)
	}

	// Two workers: each one's flows stay in order, and none is lost or doubled.
	const each = 300
	for i := range each {
		q1.Add(request(i))
		q2.Add(&flow.Flow{Type: flow.TypeTCP, BytesIn: uint64(i + 1)})
	}
	var lastHTTP, lastTCP uint64
	for range 2 * each {
		f := got.next(t)
		last := &lastHTTP
		if f.Type == flow.TypeTCP {
			last = &lastTCP
		}
		if f.BytesIn != *last+1 {
			t.Fatalf("%v flow %d after %d", f.Type, f.BytesIn, *last)
		}
		*last = f.BytesIn
	}

	// What an ended flow says of time and of losses is not believed blindly.
	q1.Add(&flow.Flow{Type: flow.TypeTCP, Time: time.Now().Add(time.Hour)})
	if f := got.next(t); f.Time.After(time.Now()) {
		t.Errorf("a flow ended in the future, at %v", f.Time)
	}
	q1.Add(&flow.Flow{Type: flow.TypeLost, Lost: 3, LostSource: "kernel", Node: "x"})
	if f := got.next(t); f.Lost != 3 || f.LostSource != flow.LostByProxy || f.Node != "n1" {
		t.Errorf("a loss arrived as %+v", f)
	}
	if n := counter(t, reg, "sluice_flow_feed_lost_total"); n != 0 {
		t.Errorf("%v lost", n)
	}
}

func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// collect takes flows until those that came and those that were reported lost are
// total, and returns both numbers.
func collect(t *testing.T, s sink, total uint64) (came, lost uint64) {
	t.Helper()
	for came+lost < total {
		f := s.next(t)
		if f.Type == flow.TypeLost {
			lost += f.Lost
			continue
		}
		came++
	}
	if came+lost != total {
		t.Errorf("%d came and %d were lost, of %d", came, lost, total)
	}
	return came, lost
}

func TestLimitPerSecond(t *testing.T) {
	l, dial := listen(t)
	got := make(sink, 1000)
	receiver, _ := newReceiver(t, got)
	sender, reg := newSender(t, dial, func(c *feed.SenderConfig) { c.PerSecond = 10 })
	start(t, func(ctx context.Context) error { return receiver.Serve(ctx, l) })
	start(t, sender.Run)
	q := sender.NewQueue()
	for i := range 500 {
		q.Add(request(i))
	}
	came, lost := collect(t, got, 500)
	if came < 10 || lost == 0 {
		t.Errorf("%d came and %d were lost with a limit of 10 per second", came, lost)
	}
	if n := counter(t, reg, "sluice_flow_feed_lost_total"); n != float64(lost) {
		t.Errorf("the metric says %v lost, the flows %d", n, lost)
	}
}

// TestAgentAway: what has no room while the agent is away is counted, the rest
// comes when it is back.
func TestAgentAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.sock")
	tried := make(chan struct{}, 100)
	dial := dialer(path)
	sender, _ := newSender(t, func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			tried <- struct{}{}
		}
		return conn, err
	}, func(c *feed.SenderConfig) { c.QueueBytes = 256 << 10 })
	start(t, sender.Run)
	q := sender.NewQueue()
	const total = 10_000
	for i := range total {
		q.Add(request(i))
	}
	<-tried
	l, err := feed.Listen(path, os.Geteuid())
	if err != nil {
		t.Fatal(err)
	}
	got := make(sink, total)
	receiver, _ := newReceiver(t, got)
	start(t, func(ctx context.Context) error { return receiver.Serve(ctx, l) })
	came, lost := collect(t, got, total)
	if came < 1000 || lost == 0 {
		t.Errorf("%d came and %d were lost of %d", came, lost, total)
	}
}

// TestReconnect: a frame that a dying connection did not take comes over the next.
func TestReconnect(t *testing.T) {
	l, dial := listen(t)
	sender, _ := newSender(t, dial)
	start(t, sender.Run)
	q := sender.NewQueue()
	q.Add(request(1))
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := first.Read(make([]byte, 1<<16)); n == 0 || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	got := make(sink, 100)
	receiver, _ := newReceiver(t, got)
	start(t, func(ctx context.Context) error { return receiver.Serve(ctx, l) })
	q.Add(request(2))
	if f := got.next(t); f.BytesIn != 3 {
		t.Errorf("got flow %+v", f)
	}
}

// TestStop: what was added before the sender stops arrives.
func TestStop(t *testing.T) {
	l, dial := listen(t)
	got := make(sink, 1000)
	receiver, _ := newReceiver(t, got)
	start(t, func(ctx context.Context) error { return receiver.Serve(ctx, l) })
	sender, _ := newSender(t, dial)
	stop := start(t, sender.Run)
	q := sender.NewQueue()
	for i := range 100 {
		q.Add(request(i))
	}
	stop()
	if came, lost := collect(t, got, 100); lost != 0 || came != 100 {
		t.Errorf("%d came, %d were lost", came, lost)
	}
}

func TestAddDoesNotBlockOrAllocate(t *testing.T) {
	sender, _ := newSender(t, func(context.Context) (net.Conn, error) { panic("nobody runs the sender") },
		func(c *feed.SenderConfig) { c.PerSecond = 1_000_000 })
	q := sender.NewQueue()
	f := request(1)
	if n := testing.AllocsPerRun(20_000, func() { q.Add(f) }); n != 0 { // far more than a queue holds
		t.Errorf("Add allocates %v times", n)
	}
}

// realistic is a request as a busy proxy reports it.
func realistic() *flow.Flow {
	return &flow.Flow{
		Time: time.Now(), Node: "node-1", Type: flow.TypeHTTP, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolTCP,
		Source:      flow.Peer{AddrPort: netip.MustParseAddrPort("10.77.0.4:41000"), Workload: web.Name},
		Destination: flow.Peer{AddrPort: netip.MustParseAddrPort("10.77.0.5:8080"), Workload: mesh.Name{Namespace: "shop", Name: "reviews-v1"}, Service: mesh.Name{Namespace: "shop", Name: "reviews"}},
		Original:    netip.MustParseAddrPort("10.96.0.12:80"), BytesOut: 1024, Duration: time.Millisecond,
		HTTP: &flow.HTTP{Method: "GET", Authority: "reviews.shop", Path: "/reviews/7", Proto: "HTTP/1.1", Status: 200, Route: "HTTPRoute/shop/reviews", Tries: 1},
	}
}

// agentSide is a receiver with the agent's own sink.
func agentSide(t testing.TB) (*feed.Receiver, metrics.Sink) {
	r, err := ring.New(ring.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	counted, err := metrics.NewFlows(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	sink := metrics.Sink{Ring: r, Flows: counted}
	receiver, err := feed.NewReceiver(feed.ReceiverConfig{
		Sink: sink, Node: "n1", Workload: func(netip.Addr) *mesh.Workload { return web }, PerSecond: 10_000_000,
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return receiver, sink
}

// stream is a connection from which the same frame comes n times.
type stream struct {
	net.Conn
	frame []byte
	n, at int
}

func (s *stream) Read(p []byte) (int, error) {
	if s.n == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.frame[s.at:])
	if s.at += n; s.at == len(s.frame) {
		s.at = 0
		s.n--
	}
	return n, nil
}

func (s *stream) Close() error { return nil }

func fullFrame() (bytes []byte, flows int) {
	one := encoded(realistic())
	flows = 60_000 / len(one)
	var all [][]byte
	for range flows {
		all = append(all, one)
	}
	return frame(all...), flows
}

// TestReceiveCost: the agent takes a flow with less than a tenth of an allocation, as
// long as nobody reads it.
func TestReceiveCost(t *testing.T) {
	receiver, sink := agentSide(t)
	bytes, flows := fullFrame()
	const frames = 20
	perRun := testing.AllocsPerRun(5, func() {
		if err := receiver.ServeConn(t.Context(), &stream{frame: bytes, n: frames}); err != nil {
			t.Fatal(err)
		}
	})
	if per := perRun / float64(frames*flows); per > 0.1 {
		t.Errorf("%.3f allocations for each flow", per)
	}
	if added := sink.Ring.Stats().Added; added != uint64(6*frames*flows) {
		t.Errorf("the ring took %d flows, want %d", added, 6*frames*flows)
	}
}

// BenchmarkReceive is what the agent spends on a flow that nobody reads.
func BenchmarkReceive(b *testing.B) {
	receiver, _ := agentSide(b)
	bytes, flows := fullFrame()
	b.ReportAllocs()
	if err := receiver.ServeConn(b.Context(), &stream{frame: bytes, n: (b.N + flows - 1) / flows}); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPut is what the proxy spends on handing a flow over.
func BenchmarkPut(b *testing.B) {
	sender, _ := newSender(b, dialer("/nonexistent"), func(c *feed.SenderConfig) { c.QueueBytes = 64 << 20 })
	q := sender.NewQueue()
	f := realistic()
	b.ReportAllocs()
	for i := range b.N {
		if i%200_000 == 0 {
			b.StopTimer()
			q = sender.NewQueue()
			b.StartTimer()
		}
		q.Put(f)
	}
}

// frame builds a frame around records.
func frame(records ...[]byte) []byte {
	out := []byte("SLF1\x00\x00\x00\x00")
	for _, r := range records {
		out = append(out, r...)
	}
	n := len(out) - 8
	out[4], out[5], out[6] = byte(n), byte(n>>8), byte(n>>16)
	return out
}

func encoded(f *flow.Flow) []byte { return record.Append(nil, f) }

// TestStream: frames may come in any pieces.
func TestStream(t *testing.T) {
	got := make(sink, 10)
	receiver, _ := newReceiver(t, got)
	ours, theirs := net.Pipe()
	start(t, func(ctx context.Context) error { return receiver.ServeConn(ctx, theirs) })
	bytes := append(frame(encoded(request(1)), encoded(request(2))), frame(encoded(request(3)))...)
	for _, b := range bytes {
		if _, err := ours.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	for want := uint64(2); want <= 4; want++ {
		if f := got.next(t); f.BytesIn != want {
			t.Errorf("got flow %d, want %d", f.BytesIn, want)
		}
	}
	ours.Close()
}

func TestBrokenPeers(t *testing.T) {
	good := encoded(request(1))
	bad := encoded(request(2))
	bad[8] = 99 // no type of flow
	tests := map[string]struct {
		bytes   []byte
		came    int
		invalid float64
		fails   bool
	}{
		"nothing":             {nil, 0, 0, false},
		"another protocol":    {[]byte("GET / HTTP/1.1\r\n\r\n"), 0, 0, true},
		"cut magic":           {[]byte("SLX"), 0, 0, true},
		"cut frame":           {frame(good)[:20], 0, 0, true},
		"empty frame":         {frame(), 0, 0, true},
		"huge frame":          {[]byte("SLF1\xff\xff\xff\x7f"), 0, 0, true},
		"bad record":          {frame(good, bad, good), 2, 1, false},
		"cut record":          {frame(good, good[:len(good)-1]), 1, 0, true},
		"huge record":         {frame(good, []byte{0xff, 0xff, 0xff, 0x7f}), 1, 0, true},
		"frame after a frame": {append(frame(good), frame(good)...), 2, 0, false},
		"noise after a frame": {append(frame(good), "noise"...), 1, 0, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := make(sink, 10)
			receiver, reg := newReceiver(t, got)
			ours, theirs := net.Pipe()
			served := make(chan error)
			go func() { served <- receiver.ServeConn(t.Context(), theirs) }()
			_, _ = ours.Write(test.bytes) // the receiver may end the connection first
			ours.Close()
			if err := <-served; (err != nil) != test.fails {
				t.Errorf("error %v, want one: %v", err, test.fails)
			}
			if len(got) != test.came {
				t.Errorf("%d flows came, want %d", len(got), test.came)
			}
			if n := counter(t, reg, "sluice_flow_feed_invalid_total"); n != test.invalid {
				t.Errorf("%v invalid, want %v", n, test.invalid)
			}
		})
	}
}

// TestReceiverLimit: a proxy that floods is cut, and the loss is told.
func TestReceiverLimit(t *testing.T) {
	got := make(sink, 200)
	receiver, _ := newReceiver(t, got, func(c *feed.ReceiverConfig) { c.PerSecond = 10 })
	ours, theirs := net.Pipe()
	start(t, func(ctx context.Context) error { return receiver.ServeConn(ctx, theirs) })
	var records [][]byte
	for i := range 100 {
		records = append(records, encoded(request(i)))
	}
	if _, err := ours.Write(frame(records...)); err != nil {
		t.Fatal(err)
	}
	came, lost := collect(t, got, 100)
	if came < 10 || lost == 0 {
		t.Errorf("%d came and %d were lost with a limit of 10 per second", came, lost)
	}
	ours.Close()
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "flows.sock")
	const proxyUser = 65532
	uid := proxyUser
	if os.Geteuid() != 0 {
		uid = os.Geteuid()
	}
	for range 2 { // the second takes the place of what the first left
		l, err := feed.Listen(path, uid)
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 || int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("mode %v, user %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
		}
		l.Close()
	}
}

func TestConfig(t *testing.T) {
	reg, logger := prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	dial := func(context.Context) (net.Conn, error) { return nil, nil }
	for name, c := range map[string]feed.SenderConfig{
		"no dial":     {Logger: logger, Registerer: reg},
		"no logger":   {Dial: dial, Registerer: reg},
		"small queue": {Dial: dial, Logger: logger, Registerer: reg, QueueBytes: 1000},
		"no limit":    {Dial: dial, Logger: logger, Registerer: reg, PerSecond: -1},
	} {
		if _, err := feed.NewSender(c); err == nil {
			t.Errorf("sender with %s was made", name)
		}
	}
	if families, err := reg.Gather(); err != nil || len(families) != 0 {
		t.Errorf("senders that were not made registered %d metrics (%v)", len(families), err)
	}
	lookup := func(netip.Addr) *mesh.Workload { return nil }
	for name, c := range map[string]feed.ReceiverConfig{
		"no sink":   {Workload: lookup, Logger: logger, Registerer: reg},
		"no lookup": {Sink: make(sink), Logger: logger, Registerer: reg},
		"no logger": {Sink: make(sink), Workload: lookup, Registerer: reg},
		"no limit":  {Sink: make(sink), Workload: lookup, Logger: logger, Registerer: reg, PerSecond: -1},
	} {
		if _, err := feed.NewReceiver(c); err == nil {
			t.Errorf("receiver with %s was made", name)
		}
	}
}

// FuzzServeConn: no bytes make the receiver panic or hang.
func FuzzServeConn(f *testing.F) {
	f.Add(frame(encoded(request(1)), encoded(request(2))))
	f.Add([]byte("SLF1\xff\xff\xff\x7f"))
	f.Add(append(frame(encoded(request(1))), "SLF1"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		receiver, _ := newReceiver(t, discard{})
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); _ = receiver.ServeConn(t.Context(), theirs) }()
		_, _ = ours.Write(b)
		ours.Close()
		<-done
	})
}

type discard struct{}

func (discard) AddBatch(b *record.Batch) {
	for i := range b.Len() {
		b.Flow(i)
	}
}
