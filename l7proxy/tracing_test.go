package l7proxy

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/l7proxy/trace"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// collector is an OTLP receiver, over gRPC and HTTP.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer

	grpc, http string // URLs

	mu    sync.Mutex
	spans []*tracev1.Span
	more  chan struct{}
}

func newCollector(t testing.TB) *collector {
	t.Helper()
	c := &collector{more: make(chan struct{}, 1)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	go server.Serve(ln)
	t.Cleanup(server.Stop)
	c.grpc = "http://" + ln.Addr().String()
	c.http = "http://" + httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		request := new(collectorv1.ExportTraceServiceRequest)
		if err == nil {
			err = proto.Unmarshal(b, request)
		}
		if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
			return
		}
		c.Export(r.Context(), request)
		w.Header().Set("Content-Type", "application/x-protobuf")
	})).String()
	return c
}

// Export implements the collector's service.
func (c *collector) Export(_ context.Context, r *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
	select {
	case c.more <- struct{}{}:
	default:
	}
	return new(collectorv1.ExportTraceServiceResponse), nil
}

// wait returns the spans of a trace once there are n.
func (c *collector) wait(t testing.TB, n int, of func(*tracev1.Span) bool) []*tracev1.Span {
	t.Helper()
	deadline := time.After(patience)
	for {
		var out []*tracev1.Span
		c.mu.Lock()
		for _, s := range c.spans {
			if of(s) {
				out = append(out, s)
			}
		}
		c.mu.Unlock()
		if len(out) >= n {
			return out
		}
		select {
		case <-c.more:
		case <-deadline:
			t.Fatalf("%d spans, want %d: %v", len(out), n, out)
		}
	}
}

func ofTrace(id string) func(*tracev1.Span) bool {
	return func(s *tracev1.Span) bool { return hex.EncodeToString(s.TraceId) == id }
}

func all(*tracev1.Span) bool { return true }

// traced has a proxy make spans.
func traced(t testing.TB, endpoint string, protocol trace.Protocol, sampling mesh.PerMillion) func(*Config) {
	t.Helper()
	return func(c *Config) {
		tracer, err := trace.New(trace.Config{
			Endpoint: endpoint, Protocol: protocol, Sampling: sampling, Node: "node-1", Version: "test",
			Logger: slog.New(slog.DiscardHandler), Registerer: c.Registerer,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- tracer.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		c.Tracer = tracer
	}
}

// attributes returns a span's, as text.
func attributes(s *tracev1.Span) map[string]string {
	out := map[string]string{}
	for _, a := range s.Attributes {
		switch v := a.Value.Value.(type) {
		case *commonv1.AnyValue_StringValue:
			out[a.Key] = v.StringValue
		case *commonv1.AnyValue_IntValue:
			out[a.Key] = fmt.Sprint(v.IntValue)
		default:
			out[a.Key] = fmt.Sprint(v)
		}
	}
	return out
}

const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "b7ad6b7169203331"
)

// TestTraceRetry: a request whose caller records its trace becomes a span below the
// caller's, each try a span below that, and each endpoint is told its own try.
func TestTraceRetry(t *testing.T) {
	pairings(t, func(t *testing.T, down, up speaker) {
		c := newCollector(t)
		endpoint, protocol := c.grpc, trace.GRPC
		if down == h2 {
			endpoint, protocol = c.http, trace.HTTP
		}
		l := newLab(t, traced(t, endpoint, protocol, 0))
		var mu sync.Mutex
		var parents, states []string
		rule := to(webCluster)
		rule.RuleName = "all"
		rule.Match = mesh.Match{PathKind: mesh.MatchPrefix, Path: "/a"}
		rule.Retry = &mesh.Retry{Codes: []int{503}, Attempts: 3, Backoff: time.Millisecond}
		client := l.serve(down, up, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			parents = append(parents, r.Header.Get("Traceparent"))
			states = append(states, strings.Join(r.Header.Values("Tracestate"), ";"))
			if len(parents) < 3 {
				w.WriteHeader(503)
			}
		}), rule)
		r, _ := http.NewRequest("GET", "http://web/a/b?token=secret", nil)
		r.Header.Set("traceparent", "00-"+callersTrace+"-"+callersSpan+"-01")
		r.Header.Set("tracestate", "vendor=opaque")
		r.Header.Set("User-Agent", "tester/1")
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()

		spans := c.wait(t, 4, ofTrace(callersTrace))
		if len(spans) != 4 {
			t.Fatalf("%d spans, want one and three tries", len(spans))
		}
		var server *tracev1.Span
		tries := map[string]*tracev1.Span{}
		for _, s := range spans {
			if s.Kind == tracev1.Span_SPAN_KIND_SERVER {
				server = s
				continue
			}
			tries[hex.EncodeToString(s.SpanId)] = s
		}
		if server == nil || hex.EncodeToString(server.ParentSpanId) != callersSpan || server.Name != "GET /a/*" || server.TraceState != "vendor=opaque" {
			t.Fatalf("the request's span: %v", server)
		}
		want := map[string]string{
			"http.request.method": "GET", "url.path": "/a/b", "url.scheme": "http", "http.response.status_code": "200", "http.route": "/a/*",
			"server.address": "web", "client.address": "127.0.0.1", "user_agent.original": "tester/1",
			"sluice.route": "HTTPRoute/shop/web-route", "sluice.rule.name": "all", "sluice.source.workload": "shop/client", "sluice.destination.service": "shop/web",
		}
		for key, value := range want {
			if got := attributes(server)[key]; got != value {
				t.Errorf("%s of the request is %q, want %q", key, got, value)
			}
		}
		if strings.Contains(fmt.Sprint(spans), "secret") {
			t.Error("a span repeats the query")
		}
		for i, parent := range parents {
			id := strings.Split(parent, "-")
			if len(id) != 4 || id[1] != callersTrace || id[3] != "01" || states[i] != "vendor=opaque" {
				t.Fatalf("try %d was told %q, %q", i, parent, states[i])
			}
			s := tries[id[2]]
			if s == nil {
				t.Fatalf("try %d has the parent %s, which is no try's span: %v", i, parent, tries)
			}
			delete(tries, id[2])
			a := attributes(s)
			resend, status := "", "503"
			if i > 0 {
				resend = fmt.Sprint(i)
			}
			if i == 2 {
				status = "200"
			}
			if !bytes.Equal(s.ParentSpanId, server.SpanId) || s.Kind != tracev1.Span_SPAN_KIND_CLIENT || a["http.request.resend_count"] != resend || a["http.response.status_code"] != status ||
				(s.Status.GetCode() == tracev1.Status_STATUS_CODE_ERROR) != (i < 2) {
				t.Errorf("try %d: %v", i, s)
			}
			if a["network.peer.port"] == "" || a["sluice.destination.workload"] != "shop/web-0" || a["url.full"] != "http://web/a/b" {
				t.Errorf("try %d: attributes %v", i, a)
			}
			if s.StartTimeUnixNano < server.StartTimeUnixNano || s.EndTimeUnixNano > server.EndTimeUnixNano || s.EndTimeUnixNano < s.StartTimeUnixNano {
				t.Errorf("try %d is not within the request: %d–%d in %d–%d", i, s.StartTimeUnixNano, s.EndTimeUnixNano, server.StartTimeUnixNano, server.EndTimeUnixNano)
			}
		}
		f := l.flow("the request", func(f *flow.Flow) bool { return f.Type == flow.TypeHTTP })
		if f.HTTP.TraceID.String() != callersTrace || f.HTTP.RuleName != "all" {
			t.Errorf("flow %+v", f.HTTP)
		}
	})
}

// TestTraceForwarded: without a share, and for a caller that does not record, what the
// request says of its trace reaches the endpoint as it came.
func TestTraceForwarded(t *testing.T) {
	c := newCollector(t)
	var got http.Header
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	for name, test := range map[string]struct {
		sampling mesh.PerMillion
		parent   string
	}{
		"unsampled caller":       {mesh.AllPerMillion, "00-" + callersTrace + "-" + callersSpan + "-00"},
		"none, no share":         {0, ""},
		"malformed, no share":    {0, "00-x"},
		"later version, no flag": {mesh.AllPerMillion, "42-" + callersTrace + "-" + callersSpan + "-00-more"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, traced(t, c.grpc, trace.GRPC, test.sampling))
			l.commit(routed(web(mesh.AppProtocolHTTP, httpServer(t, handler)), to(webCluster))...)
			r, _ := http.NewRequest("GET", "http://web/", nil)
			r.Header.Set("Tracestate", "a=b")
			if test.parent != "" {
				r.Header.Set("Traceparent", test.parent)
			}
			res, err := h1client(t, l.outbound(vip)).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if got.Get("Traceparent") != test.parent || got.Get("Tracestate") != "a=b" {
				t.Errorf("the endpoint got %q, %q", got.Get("Traceparent"), got.Get("Tracestate"))
			}
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) > 0 {
		t.Errorf("spans: %v", c.spans)
	}
}

// TestTraceSampling: routes have shares of their own, the default holds elsewhere,
// what is decided is what the endpoint is told, and only what was sampled is exported.
func TestTraceSampling(t *testing.T) {
	c := newCollector(t)
	l := newLab(t, traced(t, c.grpc, trace.GRPC, 0))
	var mu sync.Mutex
	told := map[string][]string{}
	addr := httpServer(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		told[r.URL.Path] = append(told[r.URL.Path], r.Header.Get("Traceparent")+r.Header.Get("Tracestate"))
	}))
	rules := map[string]*mesh.Tracing{"/all": {Sampling: mesh.AllPerMillion}, "/half": {Sampling: mesh.AllPerMillion / 2}, "/default": nil}
	var list []mesh.Rule
	for path, tracing := range rules {
		rule := to(webCluster)
		rule.Match = mesh.Match{PathKind: mesh.MatchExact, Path: path}
		rule.Tracing = tracing
		list = append(list, rule)
	}
	l.commit(routed(web(mesh.AppProtocolHTTP, addr), list...)...)
	client := h1client(t, l.outbound(vip))
	const n = 400
	for range n {
		for path := range rules {
			r, _ := http.NewRequest("GET", "http://web"+path, nil)
			if path != "/default" {
				// Of a trace that cannot be told: it begins anew.
				r.Header.Set("Traceparent", "00-00000000000000000000000000000000-0000000000000000-01")
				r.Header.Set("Tracestate", "a=b")
			}
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
		}
	}
	mu.Lock()
	heard := maps.Clone(told)
	mu.Unlock()
	wanted := 0
	for path, parents := range heard {
		sampled := 0
		for _, parent := range parents {
			if path == "/default" {
				if parent != "" {
					t.Fatalf("%s: %q", path, parent)
				}
				continue
			}
			context, ok := trace.Parse([]byte(parent))
			if !ok {
				t.Fatalf("%s was told %q", path, parent)
			}
			if context.Sampled() != trace.Sampled(rules[path].Sampling, context.Trace) {
				t.Fatalf("%s: %s is not what its identifier says", path, parent)
			}
			if context.Sampled() {
				sampled++
			}
		}
		wanted += 2 * sampled
		if path == "/all" && sampled != n || path == "/half" && (sampled < n/4 || sampled > 3*n/4) {
			t.Errorf("%s: %d of %d sampled", path, sampled, n)
		}
	}
	if got := c.wait(t, wanted, all); len(got) != wanted {
		t.Errorf("%d spans, want %d", len(got), wanted)
	}
	// A span counts once its receipt is confirmed.
	for deadline := time.Now().Add(patience); l.metric("sluice_trace_spans_exported_total") != float64(wanted); {
		if time.Now().After(deadline) {
			t.Fatalf("%v spans count as exported, want %d", l.metric("sluice_trace_spans_exported_total"), wanted)
		}
		get(t, client, "http://web/default")
	}
}

// TestTraceRefused: a refusal is a span of its caller's trace.
func TestTraceRefused(t *testing.T) {
	c := newCollector(t)
	l := newLab(t, traced(t, c.grpc, trace.GRPC, 0))
	rule := to(webCluster)
	rule.Match = mesh.Match{PathKind: mesh.MatchExact, Path: "/only"}
	l.commit(routed(web(mesh.AppProtocolHTTP, refusing(t)), rule)...)
	client := h1client(t, l.outbound(vip))
	for i, path := range []string{"/nothing", "/only"} {
		id := fmt.Sprintf("%032x", i+1)
		r, _ := http.NewRequest("GET", "http://web"+path, nil)
		r.Header.Set("Traceparent", "00-"+id+"-"+callersSpan+"-01")
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		spans := c.wait(t, 1+i, ofTrace(id))
		want := []string{"no-route", "connect-failed"}[i]
		for _, s := range spans {
			if a := attributes(s); a["error.type"] != want || a["sluice.reason"] != want || s.Status.GetCode() != tracev1.Status_STATUS_CODE_ERROR {
				t.Errorf("%s: %v", path, s)
			}
		}
	}
}

// TestTraceLost: spans that the receiver does not take are counted, and nobody waits.
func TestTraceLost(t *testing.T) {
	l := newLab(t, traced(t, "http://"+httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
	})).String(), trace.HTTP, mesh.AllPerMillion))
	l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(t, rawServer(kilobyte()))), to(webCluster))...)
	client := h1client(t, l.outbound(vip))
	for range 10 {
		get(t, client, "http://web/")
	}
	deadline := time.Now().Add(patience)
	for l.metric("sluice_trace_spans_lost_total", "cause", "failed") < 20 {
		if time.Now().After(deadline) {
			t.Fatalf("%v spans count as lost, want 20", l.metric("sluice_trace_spans_lost_total"))
		}
		get(t, client, "http://web/")
	}
}

// TestCostTrace: a request that no trace is recorded of costs no allocation, whether
// its caller has one or it starts one.
func TestCostTrace(t *testing.T) {
	c := newCollector(t)
	for name, request := range map[string]string{
		"unsampled caller": strings.Replace(browserRequest, "-01\r\n", "-00\r\n", 1),
		"started":          strings.Replace(browserRequest, "Traceparent", "Other", 1),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, traced(t, c.grpc, trace.GRPC, 1), func(c *Config) { c.Flows = func(*flow.Flow) {} })
			l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(t, rawServer(kilobyte()))), to(webCluster))...)
			r := newRawClient(t, dial(t, l.outbound(vip)), request)
			run := func() {
				if err := r.do(); err != nil {
					t.Fatal(err)
				}
			}
			for range 100 {
				run()
			}
			if allocs := testing.AllocsPerRun(2000, run); allocs > 0.5 {
				t.Errorf("%v allocations per request", allocs)
			}
		})
	}
}
