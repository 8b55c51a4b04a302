package trace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Protocol is how OTLP is carried.
type Protocol string

// The protocols (OpenTelemetry Protocol Specification).
const (
	GRPC Protocol = "grpc"
	HTTP Protocol = "http"
)

const (
	// queueRequests bounds the recorded requests that wait to become spans.
	queueRequests = 4096
	// batchSpans are exported at once, those of the last request over it included.
	batchSpans = 512
	// gather is how long a span waits for others to be exported with it.
	gather = time.Second
	// exportTimeout bounds one export with its repetitions; drainTimeout the last one.
	exportTimeout = 10 * time.Second
	drainTimeout  = 2 * time.Second
	// maxAttribute bounds the text of one attribute, in characters.
	maxAttribute = 1024
)

// Config of a Tracer.
type Config struct {
	// Endpoint is the URL of the OTLP receiver: its scheme says whether TLS is spoken,
	// and a path is for HTTP only ("/v1/traces" without).
	Endpoint string
	Protocol Protocol
	// Sampling is the share of requests that start a trace where a route does not say.
	Sampling mesh.PerMillion
	// Node and Version name the proxy in its spans.
	Node, Version string

	Logger *slog.Logger
	// Registerer gets sluice_trace_spans_exported_total and
	// sluice_trace_spans_lost_total.
	Registerer prometheus.Registerer
}

// Validate says what is missing or wrong.
func (c *Config) Validate() error {
	if err := ValidateEndpoint(c.Endpoint, c.Protocol); err != nil {
		return err
	}
	switch {
	case c.Sampling > mesh.AllPerMillion:
		return fmt.Errorf("traces: a share of %d in a million", c.Sampling)
	case c.Logger == nil || c.Registerer == nil:
		return errors.New("traces: no logger or no metrics registry")
	}
	return nil
}

// ValidateEndpoint says what is wrong with the URL of a receiver.
func ValidateEndpoint(endpoint string, p Protocol) error {
	u, err := url.Parse(endpoint)
	switch {
	case p != GRPC && p != HTTP:
		return fmt.Errorf("OTLP over %q: want grpc or http", p)
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("OTLP receiver %q: want a URL such as http://127.0.0.1:4317, or https:// for TLS", endpoint)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("OTLP receiver %q: a URL without user, query and fragment", u.Redacted())
	case p == GRPC && u.Path != "" && u.Path != "/":
		return fmt.Errorf("OTLP receiver %q: gRPC has no path", endpoint)
	}
	return nil
}

// Tracer decides about traces and exports them. Its methods may be called by many
// goroutines.
type Tracer struct {
	sampling mesh.PerMillion
	queue    chan *Request
	free     sync.Pool // *Request
	logger   *slog.Logger

	exporter sdktrace.SpanExporter
	provider *sdktrace.TracerProvider
	tracer   oteltrace.Tracer
	ids      ids
	batch    batch
	failing  bool // the last export failed

	exported     prometheus.Counter
	full, failed prometheus.Counter
}

// New returns a tracer that Run starts. Requests may be recorded before. It does not
// connect.
func New(c Config) (*Tracer, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	lost := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_trace_spans_lost_total",
		Help: "Spans that were lost, because too many waited (full) or the receiver did not take them (failed).",
	}, []string{"cause"})
	t := &Tracer{
		sampling: c.Sampling, queue: make(chan *Request, queueRequests), logger: c.Logger,
		exported: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_trace_spans_exported_total", Help: "Spans that the OTLP receiver took.",
		}),
		full: lost.WithLabelValues("full"), failed: lost.WithLabelValues("failed"),
	}
	t.free.New = func() any { return new(Request) }
	for _, m := range []prometheus.Collector{t.exported, lost} {
		if err := c.Registerer.Register(m); err != nil {
			return nil, fmt.Errorf("register the metrics of traces: %w", err)
		}
	}
	t.exporter = otlptrace.NewUnstarted(c.client())
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxAttribute
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()), // who is here was sampled
		sdktrace.WithIDGenerator(&t.ids),
		sdktrace.WithSpanProcessor(&t.batch),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithResource(resource.NewWithAttributes(semconv.SchemaURL,
			semconv.ServiceName("sluice-proxy"), semconv.ServiceVersion(c.Version), semconv.K8SNodeName(c.Node))),
	)
	t.tracer = t.provider.Tracer("github.com/sluice-mesh/sluice/l7proxy/trace")
	return t, nil
}

// client returns the exporter's way to the receiver.
func (c *Config) client() otlptrace.Client {
	if c.Protocol == GRPC {
		return otlptracegrpc.NewClient(otlptracegrpc.WithEndpointURL(c.Endpoint))
	}
	u, _ := url.Parse(c.Endpoint) // validated
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return otlptracehttp.NewClient(otlptracehttp.WithEndpointURL(u.String()))
}

// Begin decides about the trace of a request, at a time of the caller's clock, for
// its route's share (nil: the tracer's). The head is not changed. The Request is nil
// unless the decision is Record.
func (t *Tracer) Begin(h *message.Head, now int64, route *mesh.Tracing) (Context, Decision, *Request) {
	share := t.sampling
	if route != nil {
		share = route.Sampling
	}
	parent, ok := FromHead(h)
	c, decision := Decide(parent, ok, share)
	if decision != Record {
		return c, decision, nil
	}
	r := t.free.Get().(*Request)
	r.Context, r.parent, r.opened = c, parent.Span, now
	if ok && ValidState(h) {
		r.state, r.keepState = stateOf(h), true
	}
	return c, Record, r
}

// stateOf returns the tracestate fields as one.
func stateOf(h *message.Head) string {
	var out []byte
	for i := range h.Fields {
		if string(h.Fields[i].Name) == FieldState && len(h.Fields[i].Value) > 0 {
			if len(out) > 0 {
				out = append(out, ',')
			}
			out = append(out, h.Fields[i].Value...)
		}
	}
	return string(out)
}

// Finish hands a request over that ended as f says. It never blocks, keeps nothing of
// f, and r must not be used any more.
func (t *Tracer) Finish(r *Request, f *flow.Flow, about About) {
	r.take(f, about)
	select {
	case t.queue <- r:
	default:
		t.full.Add(float64(1 + len(r.tries)))
		t.release(r)
	}
}

func (t *Tracer) release(r *Request) {
	r.reset()
	t.free.Put(r)
}

// Run makes spans and exports them until ctx ends, then what is left, and returns
// nil. It must run once at most.
func (t *Tracer) Run(ctx context.Context) error {
	start, cancel := context.WithTimeout(ctx, exportTimeout)
	err := startExporter(start, t.exporter)
	cancel()
	if err != nil {
		return fmt.Errorf("start the exporter of traces: %w", err)
	}
	var due <-chan time.Time
	for {
		select {
		case r := <-t.queue:
			t.spans(r)
			if len(t.batch.spans) >= batchSpans {
				t.export(ctx, exportTimeout)
				due = nil
			} else if due == nil {
				due = time.After(gather)
			}
		case <-due:
			t.export(ctx, exportTimeout)
			due = nil
		case <-ctx.Done():
			last := context.WithoutCancel(ctx)
			for len(t.queue) > 0 {
				t.spans(<-t.queue)
			}
			t.export(last, drainTimeout)
			stop, cancel := context.WithTimeout(last, drainTimeout)
			defer cancel()
			// What is left to fail is the end of a connection.
			_ = t.exporter.Shutdown(stop)
			return nil
		}
	}
}

func startExporter(ctx context.Context, e sdktrace.SpanExporter) error {
	if s, ok := e.(interface{ Start(context.Context) error }); ok {
		return s.Start(ctx)
	}
	return nil
}

// export sends the batch, and counts what became of it.
func (t *Tracer) export(ctx context.Context, timeout time.Duration) {
	spans := t.batch.take()
	if len(spans) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := t.exporter.ExportSpans(ctx, spans)
	if err != nil {
		t.failed.Add(float64(len(spans)))
		if !t.failing {
			t.logger.Warn("spans were lost: the OTLP receiver did not take them", "spans", len(spans), "error", err)
		}
	} else {
		t.exported.Add(float64(len(spans)))
		if t.failing {
			t.logger.Info("the OTLP receiver takes spans again")
		}
	}
	t.failing = err != nil
}

// batch is the SDK's processor: it collects spans that ended. It belongs to Run's
// goroutine.
type batch struct{ spans []sdktrace.ReadOnlySpan }

// OnStart does nothing.
func (b *batch) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd keeps the span.
func (b *batch) OnEnd(s sdktrace.ReadOnlySpan) { b.spans = append(b.spans, s) }

// Shutdown does nothing; Run exports what is left.
func (b *batch) Shutdown(context.Context) error { return nil }

// ForceFlush does nothing.
func (b *batch) ForceFlush(context.Context) error { return nil }

func (b *batch) take() []sdktrace.ReadOnlySpan {
	out := b.spans
	b.spans = nil
	return out
}

// ids gives the SDK the identifiers that the endpoints were told. It belongs to Run's
// goroutine.
type ids struct {
	trace ID
	span  SpanID
}

// NewIDs returns those of the next span, a root.
func (i *ids) NewIDs(context.Context) (oteltrace.TraceID, oteltrace.SpanID) {
	return oteltrace.TraceID(i.trace), oteltrace.SpanID(i.span)
}

// NewSpanID returns that of the next span.
func (i *ids) NewSpanID(context.Context, oteltrace.TraceID) oteltrace.SpanID {
	return oteltrace.SpanID(i.span)
}

// spans makes the spans of a request and gives it back.
func (t *Tracer) spans(r *Request) {
	f := &r.flow
	ended := f.Time
	wall := func(at int64) time.Time { return ended.Add(time.Duration(at-r.opened) - f.Duration) }
	ctx := context.Background()
	if r.parent != (SpanID{}) {
		state, err := oteltrace.ParseTraceState(r.state)
		if err != nil {
			state = oteltrace.TraceState{}
		}
		ctx = oteltrace.ContextWithRemoteSpanContext(ctx, oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
			TraceID: oteltrace.TraceID(r.Trace), SpanID: oteltrace.SpanID(r.parent),
			TraceFlags: oteltrace.TraceFlags(r.Flags), TraceState: state, Remote: true,
		}))
	}
	t.ids = ids{trace: r.Trace, span: r.Span}
	ctx, span := t.tracer.Start(ctx, r.name(), oteltrace.WithSpanKind(oteltrace.SpanKindServer),
		oteltrace.WithTimestamp(wall(r.opened)), oteltrace.WithAttributes(r.serverAttributes()...))
	for i := range r.tries {
		try := &r.tries[i]
		t.ids.span = try.span
		_, child := t.tracer.Start(ctx, r.tryName(), oteltrace.WithSpanKind(oteltrace.SpanKindClient),
			oteltrace.WithTimestamp(wall(try.began)), oteltrace.WithAttributes(r.tryAttributes(i)...))
		setStatus(child, try.reason, try.status >= 400 || try.status == 0)
		end := ended
		if try.end != 0 {
			end = wall(try.end)
		}
		child.End(oteltrace.WithTimestamp(end))
	}
	setStatus(span, f.Reason, r.http.Status >= 500)
	span.End(oteltrace.WithTimestamp(ended))
	t.release(r)
}

var _ sdktrace.SpanProcessor = (*batch)(nil)
var _ sdktrace.IDGenerator = (*ids)(nil)
