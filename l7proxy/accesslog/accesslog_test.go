package accesslog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func exchange() *flow.Flow {
	return &flow.Flow{
		Time: time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC), Node: "node-a", Type: flow.TypeHTTP,
		Verdict: flow.VerdictDropped, Reason: flow.ReasonNoRoute, Detail: "why",
		Source: flow.Peer{
			AddrPort: netip.MustParseAddrPort("10.0.0.1:40000"), Workload: mesh.Name{Namespace: "shop", Name: "web"},
			Labels: map[string]string{"app": "web"},
		},
		Destination: flow.Peer{
			AddrPort: netip.MustParseAddrPort("[fd00::2]:8080"), Workload: mesh.Name{Namespace: "shop", Name: "api-1"},
			Service: mesh.Name{Namespace: "shop", Name: "api"},
		},
		Protocol: mesh.ProtocolTCP, Original: netip.MustParseAddrPort("10.96.0.1:80"), Ingress: true,
		BytesIn: 7, BytesOut: 8, Duration: 1234567,
		HTTP: &flow.HTTP{
			Method: "GET", Authority: "api:80", Path: "/a?b=c", Proto: "HTTP/2", Status: 404, GRPC: "5",
			Route: "HTTPRoute/shop/api", Rule: 2, Tries: 3,
		},
	}
}

func TestLines(t *testing.T) {
	query := &flow.Flow{
		Time: time.Unix(0, 0), Type: flow.TypeDNS, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolUDP,
		Source: flow.Peer{Workload: mesh.Name{Namespace: "shop", Name: "web"}},
		DNS:    &flow.DNS{Query: "api.shop.svc.cluster.local.", Type: "A", RCode: "NOERROR", Answer: []string{"10.96.0.1", "x\ny"}},
	}
	lost := &flow.Flow{Time: time.Unix(0, 0), Type: flow.TypeLost, Lost: 5, LostSource: "proxy"}
	for _, c := range []struct {
		f      *flow.Flow
		format Format
		want   string
	}{
		{exchange(), JSON, `{"time":"2030-01-02T03:04:05.0000006Z","node":"node-a","type":"http","verdict":"dropped","reason":"no-route","detail":"why",` +
			`"source":"10.0.0.1:40000","source_workload":"shop/web","destination":"[fd00::2]:8080","destination_workload":"shop/api-1",` +
			`"destination_service":"shop/api","original":"10.96.0.1:80","protocol":"TCP","ingress":true,"bytes_in":7,"bytes_out":8,"duration_ns":1234567,` +
			`"method":"GET","authority":"api:80","path":"/a?b=c","proto":"HTTP/2","status":404,"grpc_status":"5","route":"HTTPRoute/shop/api","rule":2,"tries":3}`},
		{exchange(), Text, `2030-01-02T03:04:05.0000006Z http dropped(no-route) shop/web[10.0.0.1:40000] -> shop/api[10.96.0.1:80]=shop/api-1[[fd00::2]:8080] ingress ` +
			`"GET /a?b=c HTTP/2" 404 authority="api:80" grpc="5" route="HTTPRoute/shop/api" rule=2 tries=3 in=7 out=8 ms=1.235 detail="why"`},
		{query, JSON, `{"time":"1970-01-01T00:00:00Z","type":"dns","verdict":"forwarded","source_workload":"shop/web","protocol":"UDP",` +
			`"query":"api.shop.svc.cluster.local.","query_type":"A","rcode":"NOERROR","answer":["10.96.0.1","x\u000ay"]}`},
		{query, Text, `1970-01-01T00:00:00Z dns forwarded shop/web -> - UDP query="api.shop.svc.cluster.local." type="A" rcode="NOERROR" answer="10.96.0.1" answer="x\x0ay"`},
		{lost, Text, `1970-01-01T00:00:00Z lost unknown - -> - lost=5 by="proxy"`},
	} {
		if got := string(line(c.f, c.format)); got != c.want+"\n" {
			t.Errorf("got\n%s, want\n%s", got, c.want)
		}
	}
}

func open(t testing.TB, w io.Writer, format Format, size int, reg prometheus.Registerer) *Log {
	t.Helper()
	l, err := New(w, Options{Format: format}, size, reg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// line is a flow's with everything that is known.
func line(f *flow.Flow, format Format) []byte {
	l, err := Options{Format: format}.compile()
	if err != nil {
		panic(err)
	}
	return l.append(nil, f, nil)
}

func counters(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			out[name] = m.Counter.GetValue()
		}
	}
	return out
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestBusyWriter blocks the writer and fills the log.
func TestBusyWriter(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	var out bytes.Buffer
	first := true
	reg := prometheus.NewRegistry()
	line := len(line(exchange(), JSON))
	l := open(t, writer(func(p []byte) (int, error) {
		if first {
			first = false
			close(entered)
			<-release
		}
		return out.Write(p)
	}), JSON, 10*line+line/2, reg)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	l.Add(exchange(), nil)
	go func() { ended <- l.Run(ctx) }()
	<-entered
	for range 25 {
		l.Add(exchange(), nil)
	}
	close(release)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 11 || out.Len() != 11*line {
		t.Errorf("%d lines were written, want 11 whole ones", n)
	}
	got := counters(t, reg)
	if got["sluice_accesslog_written_total"] != 11 || got["sluice_accesslog_lost_total full"] != 15 {
		t.Errorf("counted %v", got)
	}
}

func TestFailingWriter(t *testing.T) {
	reg := prometheus.NewRegistry()
	l := open(t, writer(func([]byte) (int, error) { return 0, errors.New("disk full") }), Text, 1<<20, reg)
	l.Add(exchange(), nil)
	l.Add(exchange(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := counters(t, reg); got["sluice_accesslog_lost_total failed"] != 2 {
		t.Errorf("counted %v", got)
	}
}

func TestManyGoroutines(t *testing.T) {
	var out bytes.Buffer
	l := open(t, &out, JSON, 1<<20, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	var adders sync.WaitGroup
	for range 4 {
		adders.Go(func() {
			for range 250 {
				l.Add(exchange(), nil)
			}
		})
	}
	adders.Wait()
	cancel()
	<-ended
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	want := strings.TrimSuffix(string(line(exchange(), JSON)), "\n")
	if len(lines) != 1000 || slices.ContainsFunc(lines, func(s string) bool { return s != want }) {
		t.Errorf("%d lines, want 1000 equal ones", len(lines))
	}
}

func TestDoesNotAllocate(t *testing.T) {
	f := exchange()
	for _, format := range []Format{JSON, Text} {
		l, err := Options{Format: format}.compile()
		if err != nil {
			t.Fatal(err)
		}
		b := l.append(nil, f, nil)
		if n := testing.AllocsPerRun(100, func() { b = l.append(b[:0], f, nil) }); n != 0 {
			t.Errorf("format %d: %v allocations", format, n)
		}
	}
}

func FuzzAppend(f *testing.F) {
	f.Add("GET\x7f", "a\r\n{\"x\":1}", "\x00\xff\u2028\U0001f600\x9b", uint16(404), int64(1), uint64(2), []byte{1, 2, 3, 4})
	f.Add("\"", "\\", strings.Repeat("x", 5000), uint16(0), int64(-1), uint64(1<<63), []byte{})
	f.Fuzz(func(t *testing.T, method, path, other string, code uint16, n int64, u uint64, ip []byte) {
		rec := &flow.Flow{
			Time: time.Unix(n, int64(code)), Node: other, Type: flow.Type(code), Verdict: flow.Verdict(code >> 3), Reason: flow.Reason(code), Detail: other,
			Source:   flow.Peer{Workload: mesh.Name{Namespace: other, Name: path}},
			Protocol: mesh.Protocol(code), BytesIn: u, BytesOut: u >> 3, Duration: time.Duration(n), Lost: u, LostSource: method,
			HTTP: &flow.HTTP{Method: method, Authority: other, Path: path, Proto: other, Status: int(n), GRPC: path, Route: other, Rule: int(n), Tries: int(code)},
			DNS:  &flow.DNS{Query: path, Type: method, RCode: other, Answer: []string{path, other, method}},
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			rec.Source.AddrPort = netip.AddrPortFrom(a, code)
			rec.Destination.AddrPort = netip.AddrPortFrom(a.WithZone(other), code)
		}
		for _, format := range []Format{JSON, Text} {
			line := line(rec, format)
			for i, c := range line {
				if c == '\n' && i != len(line)-1 || c != '\n' && (c < ' ' || c >= 0x7f) {
					t.Fatalf("format %d: byte %d of %q", format, i, line)
				}
			}
			if len(line) == 0 || line[len(line)-1] != '\n' {
				t.Fatalf("format %d: no line %q", format, line)
			}
			if format != JSON {
				continue
			}
			var got map[string]any
			d := json.NewDecoder(bytes.NewReader(line))
			d.UseNumber()
			if err := d.Decode(&got); err != nil {
				t.Fatalf("%v of %s", err, line)
			}
			if _, err := d.Token(); err != io.EOF {
				t.Fatalf("more than one value in %s", line)
			}
			for key, want := range map[string]string{"method": method, "path": path, "query": path, "authority": other, "lost_source": method} {
				if len(want) > maxString {
					if got[key] == nil || !strings.HasSuffix(got[key].(string), "...") {
						t.Fatalf("%s is cut without a mark: %v", key, got[key])
					}
					continue
				}
				if text, _ := got[key].(string); text != strings.ToValidUTF8(want, "\ufffd") && text != runes(want) {
					t.Fatalf("%s is %q, want %q", key, text, want)
				}
			}
			if u != 0 && got["bytes_in"] != json.Number(strconv.FormatUint(u, 10)) {
				t.Fatalf("bytes_in is %v, want %d", got["bytes_in"], u)
			}
		}
	})
}

// runes replaces each byte that is not UTF-8 by U+FFFD.
func runes(s string) string { return string([]rune(s)) }

func BenchmarkAdd(b *testing.B) {
	l := open(b, io.Discard, JSON, 1<<20, nil)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- l.Run(ctx) }()
	f := exchange()
	b.ReportAllocs()
	for b.Loop() {
		l.Add(f, nil)
	}
	cancel()
	<-ended
}
