package lab_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestObserve: each filter finds the flow that it describes, and not the other one.
func TestObserve(t *testing.T) {
	shared.client.must(t, call{Do: "http", URL: "http://web/web/this?q=1", Method: "PUT"})
	shared.client.must(t, call{Do: "http", URL: "http://web/web/that"})
	shared.outside.must(t, call{Do: "http", URL: "http://www.example/nowhere/that", Resolve: edge4 + ":80"})
	is := func(path string) func(record) bool {
		return func(r record) bool { return strings.HasPrefix(r.HTTP.Path, path) }
	}
	this, that, nowhere := is("/web/this"), is("/web/that"), is("/nowhere/that")
	for _, there := range []func(record) bool{this, that, nowhere} {
		shared.flow(t, there, "--type", "http")
	}
	var address string
	for _, r := range shared.observe(t, "--http-path", "^/nowhere/that$") {
		address = r.Source.Address.Addr().String()
	}
	for _, test := range []struct {
		args   []string
		has    func(record) bool
		hasNot func(record) bool
	}{
		{[]string{"--http-path", "^/web/this$"}, this, that},
		{[]string{"--http-method", "put"}, this, that},
		{[]string{"--http-method", "PUT", "--http-status", "2+"}, this, that},
		{[]string{"--http-status", "404"}, nowhere, that},
		{[]string{"--verdict", "dropped", "--type", "http"}, nowhere, that},
		{[]string{"--verdict", "forwarded"}, this, nowhere},
		{[]string{"--reason", "no-route"}, nowhere, this},
		{[]string{"--from-workload", "shop/client"}, this, nowhere},
		{[]string{"--from-workload", "shop/cl*"}, this, nowhere},
		{[]string{"--workload", "shop/client", "--type", "http"}, that, nowhere},
		{[]string{"--to-workload", "web-a"}, this, nowhere},
		{[]string{"--from-label", "app=client,app!=web"}, this, nowhere},
		{[]string{"--service", "shop/web"}, this, nowhere},
		{[]string{"--to-service", "shop/edge"}, nowhere, this},
		{[]string{"--route", "HTTPRoute/shop/web"}, this, nowhere},
		{[]string{"--http-host", "www.*"}, nowhere, this},
		{[]string{"--from-ip", address + "/31"}, nowhere, this},
		{[]string{"--not", "--http-path", "that"}, this, that},
		{[]string{"--http-path", "that", "--not", "--http-status", "404"}, that, nowhere},
		{[]string{"--port", "80", "--not", "--from-namespace", "shop"}, nowhere, this},
		{[]string{"--since", "10m", "--protocol", "http"}, this, func(r record) bool { return r.Type == "dns" }},
	} {
		has := false
		for _, r := range shared.observe(t, append(test.args, "--last", "0")...) {
			has = has || test.has(r)
			if test.hasNot(r) {
				t.Errorf("observe %v shows %+v", test.args, r)
				break
			}
		}
		if !has {
			t.Errorf("observe %v does not show what it should", test.args)
		}
	}
	if _, err := shared.Sluice(t.Context(), "observe", "--http-path", "^/never$"); exitCode(err) != 3 {
		t.Errorf("with no flow to show: %v, want status 3", err)
	}
	if _, err := shared.Sluice(t.Context(), "observe", "--http-path", "("); exitCode(err) != 2 {
		t.Errorf("with a filter that is none: %v, want status 2", err)
	}
}

// series returns the names and labels of a process's own metrics.
func (n *node) series(t *testing.T, port int) map[string]bool {
	t.Helper()
	a := n.local.must(t, call{Do: "http", URL: fmt.Sprintf("http://127.0.0.1:%d/metrics", port)})
	if a.Status != 200 {
		t.Fatalf("metrics on port %d: status %d", port, a.Status)
	}
	out := map[string]bool{}
	for line := range strings.Lines(a.Text) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && strings.HasPrefix(line, "sluice_") {
			out[line[:i]] = true
		}
	}
	return out
}

// TestMetrics: both endpoints answer, and a client cannot make series.
func TestMetrics(t *testing.T) {
	request := func(i int) call {
		return call{Do: "http", URL: fmt.Sprintf("http://web/cardinality/%d?q=%d", i, i), Method: "GET",
			Header: map[string]string{"User-Agent": fmt.Sprint("agent-", i), "X-Request-Id": fmt.Sprint(i), "Host": fmt.Sprintf("web-%d.example", i)}}
	}
	odd := func(i int) call {
		q := request(i)
		q.Method = "M" + string(rune('A'+i))
		return q
	}
	for i := range 2 {
		shared.client.must(t, request(i))
		shared.client.must(t, odd(i))
	}
	shared.flow(t, func(r record) bool { return r.HTTP.Method == "MB" }, "--http-path", "^/cardinality/1$")
	before := map[int]map[string]bool{9962: shared.series(t, 9962), 9964: shared.series(t, 9964)}
	for port, name := range map[int]string{9962: "sluice_flows_total{", 9964: "sluice_proxy_requests_total{"} {
		if text := fmt.Sprint(before[port]); !strings.Contains(text, name) {
			t.Errorf("port %d has no %s...}", port, name)
		}
	}
	for i := range 10 {
		shared.client.must(t, request(14+i))
		shared.client.must(t, odd(14+i))
	}
	shared.flow(t, func(r record) bool { return r.HTTP.Method == "MX" }, "--http-path", "^/cardinality/23$")
	for port, old := range before {
		for s := range shared.series(t, port) {
			if !old[s] {
				t.Errorf("port %d has a new series: %s", port, s)
			}
		}
	}
}

// TestMetricsReference: what a running node serves is in the reference, with its type
// and its labels.
func TestMetricsReference(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	type documented struct{ kind, labels string }
	known := map[string]documented{}
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "|"); len(cells) > 5 && strings.Contains(cells[1], "`sluice_") {
			known[strings.Trim(cells[1], " `")] = documented{strings.TrimSpace(cells[2]), cells[3]}
		}
	}
	for _, port := range []int{9962, 9964} {
		a := shared.local.must(t, call{Do: "http", URL: fmt.Sprintf("http://127.0.0.1:%d/metrics", port)})
		served := 0
		for line := range strings.Lines(a.Text) {
			line = strings.TrimSpace(line)
			if of, ok := strings.CutPrefix(line, "# TYPE sluice_"); ok {
				name, kind, _ := strings.Cut("sluice_"+of, " ")
				served++
				if known[name].kind != kind {
					t.Errorf("port %d serves %s, a %s; the reference says %q", port, name, kind, known[name].kind)
				}
				continue
			}
			name, labels, ok := strings.Cut(line, "{")
			if !ok || !strings.HasPrefix(name, "sluice_") {
				continue
			}
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if base, ok := strings.CutSuffix(name, suffix); ok && known[base].kind == "histogram" {
					name = base
				}
			}
			for _, l := range strings.Split(labels, `",`) {
				label, _, _ := strings.Cut(l, "=")
				if label != "le" && !strings.Contains(known[name].labels, label) {
					t.Errorf("port %d: %s has the label %s, which the reference does not know", port, name, label)
				}
			}
		}
		if served < 5 {
			t.Errorf("port %d serves %d metrics", port, served)
		}
	}
}
