package l7proxy

import (
	"fmt"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// seriesCount returns how many series of a metric have the labels given.
func (l *lab) seriesCount(name string, labels ...string) int {
	l.t.Helper()
	families, err := l.reg.Gather()
	if err != nil {
		l.t.Fatal(err)
	}
	n := 0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	sample:
		for _, m := range f.Metric {
			for i := 0; i < len(labels); i += 2 {
				ok := false
				for _, p := range m.Label {
					ok = ok || p.GetName() == labels[i] && p.GetValue() == labels[i+1]
				}
				if !ok {
					continue sample
				}
			}
			n++
		}
	}
	return n
}

const requestsTotal, durationSeconds = "sluice_proxy_requests_total", "sluice_proxy_request_duration_seconds"

// TestSeriesGo: requests count by route, workloads and class; the series of a route
// that is gone and of a workload that is gone vanish, and come back as new ones.
func TestSeriesGo(t *testing.T) {
	l := newLab(t)
	addr := tcpServer(t, rawServer(kilobyte()))
	workload := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "web-0"}}
	one, two := to(webCluster), to(webCluster)
	one.Route, one.Match = mesh.Name{Namespace: "shop", Name: "one"}, mesh.Match{PathKind: mesh.MatchExact, Path: "/one"}
	two.Route, two.Match = mesh.Name{Namespace: "shop", Name: "two"}, mesh.Match{PathKind: mesh.MatchExact, Path: "/two"}
	l.commit(append(routed(web(mesh.AppProtocolHTTP, addr), one, two), workload)...)
	// A second virtual host names the route as well.
	l.commit(virtualHost(webListener, "other", two))
	c := h1client(t, l.outbound(vip))
	ask := func(path string, n int) {
		for range n {
			get(t, c, "http://web"+path)
		}
	}
	ask("/one", 3)
	ask("/two", 2)
	ask("/none", 1)
	want := func(n float64, labels ...string) {
		t.Helper()
		if got := l.metric(requestsTotal, labels...); got != n {
			t.Errorf("%v of %v, want %v", got, labels, n)
		}
	}
	want(3, "route", "HTTPRoute/shop/one", "source", "shop/client", "destination", "shop/web-0", "code_class", "2xx", "reason", "", "journey", "outbound")
	want(2, "route", "HTTPRoute/shop/two", "source", "shop/client", "destination", "shop/web-0")
	want(1, "route", "", "source", "shop/client", "destination", "", "reason", "no-route", "code_class", "4xx")

	// The second route goes from one virtual host and stays in the other; then it goes.
	l.commit(virtualHost(webListener, "*", one))
	if l.seriesCount(requestsTotal, "route", "HTTPRoute/shop/two") != 1 {
		t.Error("a route that a virtual host still names has lost its series")
	}
	l.store.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindVirtualHost, Key: webListener + "/other"}}})
	for _, name := range []string{requestsTotal, durationSeconds} {
		if n := l.seriesCount(name, "route", "HTTPRoute/shop/two"); n != 0 {
			t.Errorf("%s: %d series of a route that is gone", name, n)
		}
		if n := l.seriesCount(name, "route", "HTTPRoute/shop/one"); n != 1 {
			t.Errorf("%s: %d series of a route that stayed", name, n)
		}
	}
	l.commit(virtualHost(webListener, "*", one, two))
	ask("/two", 4)
	want(4, "route", "HTTPRoute/shop/two")

	// The workload that answers goes, and comes back.
	l.store.Commit(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindWorkload, Key: "shop/web-0"}}})
	if n := l.seriesCount(requestsTotal, "destination", "shop/web-0"); n != 0 {
		t.Errorf("%d series of a workload that is gone", n)
	}
	want(3, "route", "HTTPRoute/shop/one", "destination", "", "source", "shop/client")
	ask("/one", 1)
	want(4, "route", "HTTPRoute/shop/one", "destination", "", "source", "shop/client")
	l.commit(workload)
	ask("/one", 5)
	want(5, "route", "HTTPRoute/shop/one", "destination", "shop/web-0")

	// The client goes with its last socket.
	for _, s := range l.proxy.Sockets() {
		l.proxy.RemoveSocket(s)
	}
	if n := l.seriesCount(requestsTotal, "source", "shop/client"); n != 0 {
		t.Errorf("%d series of a client that is gone", n)
	}
	want(9, "route", "HTTPRoute/shop/one", "source", "")
	if s := l.proxy.metrics.series; s.byWorkload[mesh.Name{Namespace: "shop", Name: "client"}] != nil {
		t.Errorf("%d series are still counted, of %d workloads", s.count, len(s.byWorkload))
	}
}

// TestSeriesBound: there are never more series than the bound; what is beyond counts
// as other, and is counted.
func TestSeriesBound(t *testing.T) {
	l := newLab(t)
	table := l.proxy.metrics.series
	table.max, table.maxDurations = 50, 20
	table.alive = func(mesh.Name) bool { return true }
	for i := range 200 {
		r := table.route(fmt.Sprintf("HTTPRoute/a/%d", i))
		s, lasting := table.set(r, seriesKey{journey: SocketOutbound, route: r.name, source: mesh.Name{Namespace: "a", Name: fmt.Sprint(i % 7)}})
		if !lasting {
			t.Fatal("a set of living things does not last")
		}
		for range 2 {
			table.inc(s, class(200), flow.ReasonNone)
			table.observer(r, SocketOutbound).Observe(1)
		}
	}
	if n := l.seriesCount(requestsTotal); n != 51 {
		t.Errorf("%d series of requests, want 50 and the other", n)
	}
	if n := l.metric(requestsTotal); n != 400 {
		t.Errorf("%v requests counted, want 400", n)
	}
	if n := l.metric(requestsTotal, "route", otherName, "source", otherName, "destination", otherName); n != 300 || l.metric("sluice_proxy_series_overflow_total") != 300 {
		t.Errorf("%v count as other, %v as beyond the bound, want 300", n, l.metric("sluice_proxy_series_overflow_total"))
	}
	if n := l.seriesCount(durationSeconds); n != 21 {
		t.Errorf("%d histograms, want 20 and the other", n)
	}
	// Who goes makes room.
	table.apply(mesh.Delta{Upserts: []mesh.Resource{virtualHost("t", "*", mesh.Rule{Route: mesh.Name{Namespace: "a", Name: "0"}})}})
	table.apply(mesh.Delta{Removes: []mesh.Ref{{Kind: mesh.KindVirtualHost, Key: "t/_"}}})
	r := table.route("HTTPRoute/a/new")
	s, _ := table.set(r, seriesKey{journey: SocketOutbound, route: r.name})
	table.inc(s, class(200), flow.ReasonNone)
	if n := l.metric(requestsTotal, "route", r.name); n != 1 {
		t.Errorf("%v of a new route, want 1", n)
	}
}

// TestSeriesCost: a request whose series is known costs no allocation to count, also
// when endpoints take turns.
func TestSeriesCost(t *testing.T) {
	l := newLab(t)
	l.commit(routed(web(mesh.AppProtocolHTTP, tcpServer(t, rawServer(kilobyte()))), to(webCluster))...)
	w := l.proxy.workers[0]
	w.metrics.series.alive = func(mesh.Name) bool { return true }
	rm := w.metrics.newRuleMetrics("HTTPRoute/a/b")
	d := &downConn{w: nil, journey: SocketOutbound, source: client}
	dests := []mesh.Name{{Namespace: "a", Name: "x"}, {Namespace: "a", Name: "y"}}
	i := 0
	count := func() {
		w.countRequest(d, rm, dests[i%2], 200, flow.ReasonNone, 0.1)
		i++
	}
	count()
	count()
	if n := testing.AllocsPerRun(1000, count); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
