package l7proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// policed is web with one route, and with a policy for its cluster.
func policed(protocol mesh.AppProtocol, p mesh.BackendPolicy, rule mesh.Rule, addrs ...netip.AddrPort) []mesh.Resource {
	resources := routed(web(protocol, addrs...), rule)
	for _, r := range resources {
		if c, ok := r.(*mesh.Cluster); ok {
			c.Policy = p
			c.Protocol = protocol
		}
	}
	return resources
}

// named serves its own name; if sick is set, with that status.
func named(t testing.TB, name string, sick *atomic.Int64) netip.AddrPort {
	return httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sick != nil && sick.Load() != 0 {
			w.WriteHeader(int(sick.Load()))
		}
		io.WriteString(w, name)
	}))
}

// TestLimitsSayWhy reaches each limit and sees status, header, flow and metric.
func TestLimitsSayWhy(t *testing.T) {
	held := make(chan struct{})
	entered := make(chan struct{}, 10)
	backend := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			entered <- struct{}{}
			<-held
		}
		io.WriteString(w, "ok")
	}))
	var once sync.Once
	release := func() { once.Do(func() { close(held) }) }
	t.Cleanup(release)
	refused := func(l *lab, c *http.Client, reason flow.Reason) {
		t.Helper()
		res, _ := get(t, c, "http://web/")
		if res.StatusCode != 503 || res.Header.Get("x-sluice-reason") != reason.String() {
			t.Errorf("status %d, reason %q, want 503 %s", res.StatusCode, res.Header.Get("x-sluice-reason"), reason)
		}
		if f := l.flow(reason.String(), func(f *flow.Flow) bool { return f.Reason == reason }); f.Verdict != flow.VerdictDropped {
			t.Errorf("%s: verdict %s", reason, f.Verdict)
		}
		if l.metric("sluice_proxy_requests_total", "reason", reason.String()) != 1 {
			t.Errorf("%s is not in the metric", reason)
		}
	}
	hold := func(c *http.Client) chan string {
		done := make(chan string, 1)
		go func() {
			res, err := c.Get("http://web/hold")
			if err != nil {
				done <- err.Error()
				return
			}
			defer res.Body.Close()
			b, _ := io.ReadAll(res.Body)
			done <- string(b)
		}()
		return done
	}

	t.Run("requests", func(t *testing.T) {
		l := newLab(t)
		l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{Limits: mesh.BackendLimits{Requests: 1}}, to(webCluster), backend)...)
		c := h1client(t, l.outbound(vip))
		hold(c)
		<-entered
		refused(l, c, flow.ReasonBackendRequestLimit)
	})
	t.Run("connections and those who wait", func(t *testing.T) {
		l := newLab(t)
		l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{Limits: mesh.BackendLimits{Connections: 1, PendingRequests: 1}}, to(webCluster), backend)...)
		c := h1client(t, l.outbound(vip))
		first := hold(c)
		<-entered
		second := hold(c) // waits for the first's connection
		waits := func() int64 {
			n := int64(0)
			got := make(chan int64)
			for _, w := range l.proxy.workers {
				w.loop.Post(func() { got <- int64(w.set.Get(webCluster).Waiting()) })
				n += <-got
			}
			return n
		}
		for deadline := time.Now().Add(patience); waits() == 0; {
			if time.Now().After(deadline) {
				t.Fatal("the second request does not wait")
			}
		}
		refused(l, c, flow.ReasonBackendPendingLimit)
		release()
		if a, b := <-first, <-second; a != "ok" || b != "ok" {
			t.Errorf("who waited got %q and %q", a, b)
		}
		if n := l.metric("sluice_proxy_upstream_connects_total"); n != 1 {
			t.Errorf("%v connections, the limit is one", n)
		}
	})
	t.Run("raw connections", func(t *testing.T) {
		echo := tcpServer(t, func(c *net.TCPConn) { io.Copy(c, c) })
		l := newLab(t)
		resources := web(mesh.AppProtocolTCP, echo)
		resources[2].(*mesh.Cluster).Policy.Limits.Connections = 1
		l.commit(resources...)
		addr := l.outbound(vip)
		one := dial(t, addr)
		buf := make([]byte, 1)
		one.Write([]byte("x"))
		if _, err := io.ReadFull(one, buf); err != nil {
			t.Fatal(err)
		}
		// The reset may come before the client has noticed that it is connected.
		if two, err := net.Dial("tcp", addr.String()); err == nil {
			// A deadline that passes means that the connection was taken.
			two.SetDeadline(time.Now().Add(patience))
			if _, err := two.Read(buf); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("a connection above the limit")
			}
			two.Close()
		}
		l.flow("the refusal", func(f *flow.Flow) bool { return f.Reason == flow.ReasonBackendConnectionLimit })
		one.Close()
		l.flow("the end", func(f *flow.Flow) bool { return f.Reason == flow.ReasonNone })
		three := dial(t, addr)
		three.Write([]byte("x"))
		if _, err := io.ReadFull(three, buf); err != nil {
			t.Errorf("after the first closed: %v", err)
		}
	})
}

// TestRequestsPerConnection counts the connections that an endpoint sees.
func TestRequestsPerConnection(t *testing.T) {
	for _, protocol := range []mesh.AppProtocol{mesh.AppProtocolHTTP, mesh.AppProtocolHTTP2} {
		seen := sync.Map{}
		backend := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen.Store(r.RemoteAddr, true) }))
		l := newLab(t)
		l.commit(policed(protocol, mesh.BackendPolicy{Limits: mesh.BackendLimits{RequestsPerConnection: 3}}, to(webCluster), backend)...)
		c := h1client(t, l.outbound(vip))
		for range 9 {
			get(t, c, "http://web/")
		}
		n := 0
		seen.Range(func(any, any) bool { n++; return true })
		if n != 3 {
			t.Errorf("%s: 9 requests on %d connections, want 3", protocol, n)
		}
	}
}

// TestOutlierIsEjected has one of three endpoints answer 500.
func TestOutlierIsEjected(t *testing.T) {
	var sick atomic.Int64
	sick.Store(500)
	a, b, c := named(t, "a", &sick), named(t, "b", nil), named(t, "c", nil)
	l := newLab(t, func(c *Config) { c.Loops = 2 })
	l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{
		Balancer: mesh.BalanceRoundRobin,
		Outlier: &mesh.OutlierDetection{
			Consecutive5xx: 3, Interval: time.Hour, BaseEjectionTime: time.Hour, MaxEjectionTime: time.Hour, MaxEjectionPercent: 50,
		},
	}, to(webCluster), a, b, c)...)
	cl := h1client(t, l.outbound(vip))
	failed := 0
	for range 60 {
		if res, _ := get(t, cl, "http://web/"); res.StatusCode == 500 {
			failed++
		}
	}
	if failed != 3 {
		t.Errorf("%d requests failed, three in a row eject", failed)
	}
	f := l.flow("the ejection", func(f *flow.Flow) bool { return f.Type == flow.TypeHealth && f.Reason == flow.ReasonEjected })
	if f.Destination.AddrPort != a || f.Destination.Service.Name != "web" || f.Detail == "" {
		t.Errorf("flow %+v", f)
	}
	found := false
	for _, v := range l.proxy.Backends() {
		if v.State == "ejected" {
			found = v.Endpoint == a && v.Why != ""
		}
	}
	if !found {
		t.Errorf("backends: %+v", l.proxy.Backends())
	}
	if l.metric("sluice_proxy_endpoint_changes_total", "state", "ejected") != 1 {
		t.Error("the ejection is not in the metric")
	}
}

// TestHealthCheckComesFirst has the first request wait for the check, and an endpoint
// that fails its check get nothing.
func TestHealthCheckComesFirst(t *testing.T) {
	var sick atomic.Int64
	var checked atomic.Bool
	early := atomic.Bool{}
	serve := func(name string, state *atomic.Int64) netip.AddrPort {
		return httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/health" {
				checked.Store(true)
			} else if !checked.Load() {
				early.Store(true)
			}
			if state != nil && state.Load() != 0 {
				w.WriteHeader(int(state.Load()))
			}
			io.WriteString(w, name)
		}))
	}
	sick.Store(503)
	good, bad := serve("good", nil), serve("bad", &sick)
	l := newLab(t)
	l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{HealthCheck: &mesh.HealthCheck{
		Kind: mesh.CheckHTTP, Path: "/health", MinStatus: 200, MaxStatus: 299,
		Interval: 5 * time.Millisecond, Timeout: 10 * time.Second, HealthyThreshold: 1, UnhealthyThreshold: 1,
	}}, to(webCluster), good, bad)...)
	c := h1client(t, l.outbound(vip))
	get(t, c, "http://web/")
	if early.Load() {
		t.Error("a request came before the first check")
	}
	l.flow("the failed check", func(f *flow.Flow) bool {
		return f.Type == flow.TypeHealth && f.Reason == flow.ReasonHealthCheckFailed && f.Destination.AddrPort == bad
	})
	for range 50 {
		if _, body := get(t, c, "http://web/"); body != "good" {
			t.Fatalf("an endpoint that fails its check answered: %q", body)
		}
	}
	sick.Store(0)
	l.flow("the recovery", func(f *flow.Flow) bool {
		return f.Type == flow.TypeHealth && f.Verdict == flow.VerdictForwarded && f.Destination.AddrPort == bad
	})
	seen := map[string]bool{}
	for range 100 {
		_, body := get(t, c, "http://web/")
		seen[body] = true
	}
	if !seen["bad"] {
		t.Error("an endpoint that recovered gets nothing")
	}
}

// TestRetryBudgetIsSpent has an endpoint fail while the budget allows two retries.
func TestRetryBudgetIsSpent(t *testing.T) {
	var asked atomic.Int64
	backend := httpServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	}))
	rule := to(webCluster)
	rule.Retry = &mesh.Retry{Codes: []int{502}, Attempts: 10, Backoff: time.Millisecond}
	l := newLab(t)
	l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{RetryBudget: &mesh.RetryBudget{Minimum: 2, Interval: time.Hour}}, rule, backend)...)
	res, _ := get(t, h1client(t, l.outbound(vip)), "http://web/")
	if res.StatusCode != 503 || res.Header.Get("x-sluice-reason") != flow.ReasonRetryBudget.String() {
		t.Errorf("status %d, reason %q", res.StatusCode, res.Header.Get("x-sluice-reason"))
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("%d tries, the budget allows two more than the first", n)
	}
}

// TestRingHashSources sends requests that differ in one thing.
func TestRingHashSources(t *testing.T) {
	var addrs []netip.AddrPort
	for i := range 4 {
		addrs = append(addrs, named(t, fmt.Sprint(i), nil))
	}
	ttl := time.Hour
	sources := map[string]mesh.HashSource{
		"header": {Header: "x-user"}, "query": {Query: "user"}, "cookie": {Cookie: &mesh.HashCookie{Name: "user"}},
		"address": {SourceIP: true}, "given cookie": {Cookie: &mesh.HashCookie{Name: "lb", TTL: &ttl, Path: "/"}},
	}
	for what, source := range sources {
		t.Run(what, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.Loops = 2 })
			l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{Balancer: mesh.BalanceRingHash, Hash: []mesh.HashSource{source}}, to(webCluster), addrs...)...)
			addr := l.outbound(vip)
			ask := func(c *http.Client, user string) string {
				req, err := http.NewRequest("GET", "http://web/?a=b&user="+url.QueryEscape(user), nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("x-user", user)
				if what == "cookie" {
					req.Header.Set("Cookie", `a=b; user="`+user+`"; c=d`)
				}
				res, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				b, _ := io.ReadAll(res.Body)
				if what == "given cookie" && user == "first" {
					if ck := res.Cookies(); len(ck) != 1 || ck[0].Name != "lb" || ck[0].MaxAge != 3600 || ck[0].Path != "/" || !ck[0].HttpOnly {
						t.Errorf("cookies %v", ck)
					}
				} else if len(res.Cookies()) > 0 {
					t.Errorf("a cookie for who has one: %v", res.Cookies())
				}
				return string(b)
			}
			all := map[string]bool{}
			for i := range 40 {
				c := h1client(t, addr)
				if what == "given cookie" {
					c.Jar, _ = cookiejar.New(nil)
				}
				user := fmt.Sprintf("user %d", i)
				first := ask(c, map[bool]string{true: "first", false: user}[what == "given cookie"])
				all[first] = true
				for range 3 {
					if got := ask(c, user); got != first {
						t.Fatalf("%s is at %s, then at %s", user, first, got)
					}
				}
			}
			if want := map[bool]int{true: 1, false: 4}[what == "address"]; len(all) != want {
				t.Errorf("40 users are at %d endpoints, want %d", len(all), want)
			}
		})
	}
}

// TestAffinityInTheProxy has clients of one address stay at their endpoint.
func TestAffinityInTheProxy(t *testing.T) {
	var addrs []netip.AddrPort
	for i := range 4 {
		addrs = append(addrs, named(t, fmt.Sprint(i), nil))
	}
	l := newLab(t, func(c *Config) { c.Loops = 2 })
	l.commit(policed(mesh.AppProtocolHTTP, mesh.BackendPolicy{Affinity: time.Hour}, to(webCluster), addrs...)...)
	addr := l.outbound(vip)
	seen := map[string]bool{}
	for range 30 {
		_, body := get(t, h1client(t, addr), "http://web/")
		seen[body] = true
	}
	if len(seen) != 1 {
		t.Errorf("one client at %v", seen)
	}
}
