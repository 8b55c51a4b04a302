package upstream

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/sluice-mesh/sluice/mesh"
)

// policed makes a cluster "a" of a policy with endpoints on ports of 10.0.0.1.
func policed(s *Set, p mesh.BackendPolicy, endpoints ...mesh.Endpoint) *Cluster {
	return s.Update("a", &mesh.Cluster{Name: "a", Policy: p}, 0, &source{}, endpoints)
}

func counts(c *Cluster, r Request, n int) map[uint16]int {
	seen := map[uint16]int{}
	for range n {
		e := c.Pick(r, nil)
		if e == nil {
			seen[0]++
			continue
		}
		seen[e.AddrPort.Port()]++
	}
	return seen
}

func TestRoundRobin(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	c := policed(s, mesh.BackendPolicy{Balancer: mesh.BalanceRoundRobin}, eps(1, 2, 3)...)
	c.endpoints[0].Active = 100 // load does not matter
	seen := counts(c, Request{}, 300)
	if seen[1] != 100 || seen[2] != 100 || seen[3] != 100 {
		t.Errorf("%v", seen)
	}
	for range 10 {
		if e := c.Pick(Request{}, c.endpoints[1]); e == c.endpoints[1] {
			t.Fatal("took the endpoint to avoid")
		}
	}
}

func TestRandomAndChoices(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	c := policed(s, mesh.BackendPolicy{Balancer: mesh.BalanceRandom}, eps(1, 2, 3)...)
	c.endpoints[0].Active = 100
	if seen := counts(c, Request{}, 3000); len(seen) != 3 || seen[1] < 500 {
		t.Errorf("random goes by load: %v", seen)
	}
	// Of many choices the least loaded is nearly always one.
	c = policed(s, mesh.BackendPolicy{Choices: 50}, eps(1, 2, 3)...)
	c.endpoints[1].Active = 50
	if seen := counts(c, Request{}, 1000); seen[3] < 990 {
		t.Errorf("least of 50: %v", seen)
	}
}

func TestRingHash(t *testing.T) {
	reg := NewRegistry(nil, nil)
	s, other := NewSet(reg, Here{}), NewSet(reg, Here{})
	p := mesh.BackendPolicy{Balancer: mesh.BalanceRingHash, Hash: []mesh.HashSource{{Header: "x"}}}
	config, src := &mesh.Cluster{Name: "a", Policy: p}, &source{}
	five := eps(1, 2, 3, 4, 5)
	c, c2 := s.Update("a", config, 1, src, five), other.Update("a", config, 1, src, five)
	where := map[uint64]netip.AddrPort{}
	spread := map[uint16]int{}
	for i := range uint64(5000) {
		hash := xxhash.Sum64String(string(rune(i)))
		r := Request{Hash: hash, Hashed: true}
		e := c.Pick(r, nil)
		where[hash] = e.AddrPort
		spread[e.AddrPort.Port()]++
		if c.Pick(r, nil) != e || c2.Pick(r, nil).AddrPort != e.AddrPort {
			t.Fatal("one hash, two endpoints")
		}
	}
	for port := range uint16(5) {
		if spread[port+1] < 500 {
			t.Errorf("endpoint %d has %d of 5000", port+1, spread[port+1])
		}
	}
	if c.ring == nil || c.ring != c2.ring {
		t.Error("each loop has a ring of its own")
	}
	// Envoy's ring: the point of a host is the hash of "ADDRESS_NUMBER".
	at := xxhash.Sum64String("10.0.0.1:3_7")
	if e := c.Pick(Request{Hash: at, Hashed: true}, nil); e.AddrPort.Port() != 3 {
		t.Errorf("at the point of 10.0.0.1:3 is %s", e.AddrPort)
	}
	// An endpoint that goes takes only its own along.
	c = s.Update("a", config, 2, &source{}, eps(1, 2, 4, 5))
	moved := 0
	for hash, before := range where {
		if now := c.Pick(Request{Hash: hash, Hashed: true}, nil); now.AddrPort != before && before.Port() != 3 {
			moved++
		}
	}
	if moved > len(where)/5 {
		t.Errorf("%d of %d moved although their endpoint stays", moved, len(where))
	}
	if e := c.Pick(Request{Hash: 1, Hashed: true}, c.Pick(Request{Hash: 1, Hashed: true}, nil)); e == nil || e == c.Pick(Request{Hash: 1, Hashed: true}, nil) {
		t.Error("a retry goes to the endpoint that failed")
	}
	if e := c.Pick(Request{}, nil); e == nil {
		t.Error("a request without a hash goes nowhere")
	}
}

func at(port uint16, node, zone string) mesh.Endpoint {
	e := eps(port)[0]
	e.Node, e.Zone = node, zone
	return e
}

func TestLocality(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{Node: "n1", Zone: "z1"})
	all := []mesh.Endpoint{at(1, "n1", "z1"), at(2, "n2", "z1"), at(3, "n2", "z1"), at(4, "n3", "z2")}
	c := policed(s, mesh.BackendPolicy{Locality: mesh.LocalityZone}, all...)
	if seen := counts(c, Request{}, 1000); seen[4] > 0 || len(seen) != 3 {
		t.Errorf("zone: %v", seen)
	}
	c = policed(s, mesh.BackendPolicy{Locality: mesh.LocalityNode}, all...)
	if seen := counts(c, Request{}, 1000); seen[1] != 1000 {
		t.Errorf("node: %v", seen)
	}
	// What is unhealthy here is made up for elsewhere.
	eject := func(i int) {
		c.endpoints[i].host.ejected.Store(true)
		c.shared.health.Add(1)
	}
	eject(0)
	if seen := counts(c, Request{}, 1000); seen[1] > 0 || seen[4] > 0 {
		t.Errorf("node's endpoint ejected: %v", seen)
	}
	c = policed(s, mesh.BackendPolicy{Locality: mesh.LocalityZone}, all...)
	eject(1)
	// Two of three are out: 1.4/3 of the requests stay in the zone.
	seen := counts(c, Request{}, 10000)
	if seen[1] > 0 || seen[2] > 0 || seen[3] < 4000 || seen[3] > 5300 || seen[4] < 4700 {
		t.Errorf("a third of the zone is healthy: %v", seen)
	}
}

func TestOutlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var events []Event
		reg := NewRegistry(nil, func(e Event) { events = append(events, e) })
		defer reg.Close()
		s := NewSet(reg, Here{})
		zero := 0
		c := policed(s, mesh.BackendPolicy{PanicPercent: &zero, Outlier: &mesh.OutlierDetection{
			Consecutive5xx: 3, ConsecutiveGatewayErrors: 2,
			Interval: time.Hour, BaseEjectionTime: time.Minute, MaxEjectionTime: time.Hour, MaxEjectionPercent: 50,
		}}, eps(1, 2, 3)...)
		e := c.endpoints[0]
		answer := func(e *Endpoint, statuses ...int) {
			for _, st := range statuses {
				e.Answered(st)
			}
		}
		answer(e, 500, 500, 200, 500, 502, 200, 503, 500, 200)
		if len(events) != 0 {
			t.Fatalf("ejected without a row: %v", events)
		}
		answer(e, 500, 500, 500)
		if len(events) != 1 || events[0].State != StateEjected || events[0].Endpoint.AddrPort != e.AddrPort {
			t.Fatalf("three 5xx: %v", events)
		}
		if seen := counts(c, Request{}, 300); seen[1] > 0 {
			t.Errorf("an ejected endpoint gets requests: %v", seen)
		}
		// Another would be two of three, above half.
		answer(c.endpoints[1], 503, 503, 503)
		if len(events) != 1 {
			t.Errorf("more than half ejected: %v", events)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if seen := counts(c, Request{}, 300); seen[1] == 0 {
			t.Error("the ejection does not end")
		}
		// What the proxy saw itself counts as a gateway error; the second time is longer.
		e.Failed()
		e.Failed()
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if seen := counts(c, Request{}, 300); seen[1] > 0 {
			t.Error("the second ejection is not longer than the first")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if seen := counts(c, Request{}, 300); seen[1] == 0 {
			t.Error("the second ejection does not end")
		}
		// Counters of an endpoint that stays live on when others come.
		answer(e, 500, 500)
		c = s.Update("a", c.config, 1, &source{}, eps(1, 2, 3, 4))
		answer(c.endpoints[0], 500)
		if c.endpoints[0].host.State() != StateEjected {
			t.Error("an update of the endpoints forgets their failures")
		}
	})
}

func TestOutlierLocalOrigin(t *testing.T) {
	reg := NewRegistry(nil, nil)
	defer reg.Close()
	c := policed(NewSet(reg, Here{}), mesh.BackendPolicy{Outlier: &mesh.OutlierDetection{
		Consecutive5xx: 1, ConsecutiveLocalOriginFailures: 2, Interval: time.Hour, BaseEjectionTime: time.Hour, MaxEjectionTime: time.Hour, MaxEjectionPercent: 100,
	}}, eps(1, 2)...)
	c.endpoints[0].Failed()
	if c.endpoints[0].host.State() != StateHealthy {
		t.Error("a failure of the proxy's own counts as 5xx although it has a detector of its own")
	}
	c.endpoints[0].Failed()
	if c.endpoints[0].host.State() != StateEjected {
		t.Error("two failures in a row do not eject")
	}
}

func TestPanic(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	c := policed(s, mesh.BackendPolicy{}, eps(1, 2, 3, 4, 5)...)
	eject := func(n int) {
		for i, e := range c.endpoints {
			e.host.ejected.Store(i < n)
		}
		c.shared.health.Add(1)
	}
	eject(2)
	if seen := counts(c, Request{}, 1000); len(seen) != 3 {
		t.Errorf("three of five are healthy: %v", seen)
	}
	eject(3)
	if seen := counts(c, Request{}, 1000); len(seen) != 5 {
		t.Errorf("two of five are healthy, below half: %v", seen)
	}
	never := 0
	c = policed(s, mesh.BackendPolicy{PanicPercent: &never}, eps(1, 2, 3, 4, 5)...)
	eject(4)
	if seen := counts(c, Request{}, 1000); seen[5] != 1000 {
		t.Errorf("threshold 0: %v", seen)
	}
	eject(5)
	if c.Pick(Request{}, nil) != nil {
		t.Error("threshold 0 and nobody healthy: picked somebody")
	}
}

func TestLimits(t *testing.T) {
	reg := NewRegistry(nil, nil)
	s, other := NewSet(reg, Here{}), NewSet(reg, Here{})
	config := &mesh.Cluster{Name: "a", Policy: mesh.BackendPolicy{Limits: mesh.BackendLimits{Connections: 2, PendingRequests: 1, Requests: 2}}}
	src := &source{}
	e1 := s.Update("a", config, 0, src, eps(1, 2)).endpoints[0]
	e2 := other.Update("a", config, 0, src, eps(1, 2)).endpoints[1]
	if !e1.Begin() || !e2.Begin() {
		t.Fatal("refused below the limit")
	}
	if e1.Begin() {
		t.Error("two loops have three requests under way, the limit is two")
	}
	e2.Done()
	if !e1.Begin() {
		t.Error("a request that ended still counts")
	}
	w1, w2 := &fakeWaiter{}, &fakeWaiter{}
	if !e1.Pool(0, HTTP1).Wait(w1) || e2.Pool(0, HTTP1).Wait(w2) {
		t.Error("one may wait, and only one")
	}
	e1.Pool(0, HTTP1).Cancel(w1)
	if !e2.Pool(0, HTTP1).Wait(w2) {
		t.Error("who gave up still counts as waiting")
	}
	e2.Pool(0, HTTP1).Failed(errors.New("no"))
	if e2.Pool(0, HTTP1).Waiting() != 0 || !e1.Pool(0, HTTP1).Wait(w1) {
		t.Error("who was told still counts as waiting")
	}
	r1, ok1 := e1.Connect()
	_, ok2 := e2.Connect()
	_, ok3 := e1.Connect()
	if !ok1 || !ok2 || ok3 {
		t.Errorf("connections: %v %v %v", ok1, ok2, ok3)
	}
	r1()
	if _, ok := e2.Connect(); !ok {
		t.Error("a connection that closed still counts")
	}
	unused := &releasing{release: func() { e1.host.shared.connections.Add(-1) }}
	e1.Pool(3, HTTP1).Put(unused)
	if _, ok := e1.Connect(); !ok || !unused.retired {
		t.Error("an unused connection of another workload is in the way")
	}
	if s.Get("a").Pick(Request{}, nil) == nil {
		t.Error("limits take endpoints out of the balancing")
	}
}

type releasing struct {
	fakeConn
	release func()
}

func (c *releasing) Retire() { c.retired = true; c.release() }

func TestRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := policed(NewSet(NewRegistry(nil, nil), Here{}), mesh.BackendPolicy{RetryBudget: &mesh.RetryBudget{Percent: 20, Minimum: 3, Interval: 10 * time.Second}}, eps(1)...)
		allowed := func() int {
			n := 0
			for c.Retry() {
				if n++; n > 1000 {
					t.Fatal("no bound")
				}
			}
			return n
		}
		if n := allowed(); n != 3 {
			t.Errorf("%d retries of nothing, the minimum is 3", n)
		}
		for range 100 {
			c.Count()
		}
		if n := allowed(); n != 17 {
			t.Errorf("%d more retries of 100 requests, want 20 in all", n)
		}
		time.Sleep(5 * time.Second)
		for range 100 {
			c.Count()
		}
		if n := allowed(); n != 20 {
			t.Errorf("%d retries of 200 requests, 20 of which were used", n)
		}
		time.Sleep(11 * time.Second)
		if n := allowed(); n != 3 {
			t.Errorf("%d retries after the interval", n)
		}
	})
}

func TestAffinity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := NewRegistry(nil, nil)
		s, other := NewSet(reg, Here{}), NewSet(reg, Here{})
		config, src := &mesh.Cluster{Name: "a", Policy: mesh.BackendPolicy{Affinity: time.Minute}}, &source{}
		c, c2 := s.Update("a", config, 0, src, eps(1, 2, 3)), other.Update("a", config, 0, src, eps(1, 2, 3))
		r := Request{Client: netip.MustParseAddr("10.1.0.1")}
		first := c.Pick(r, nil).AddrPort
		for range 100 {
			if c.Pick(r, nil).AddrPort != first || c2.Pick(r, nil).AddrPort != first {
				t.Fatal("a client changes its endpoint")
			}
		}
		// New endpoints attract nobody who has one.
		c = s.Update("a", config, 1, &source{}, eps(1, 2, 3, 4, 5, 6))
		if c.Pick(r, nil).AddrPort != first {
			t.Error("an endpoint that came moved a client")
		}
		spread := map[netip.AddrPort]bool{}
		for i := range 100 {
			spread[c.Pick(Request{Client: netip.AddrFrom4([4]byte{10, 2, 0, byte(i)})}, nil).AddrPort] = true
		}
		if len(spread) < 4 {
			t.Errorf("all clients are at %v", spread)
		}
		time.Sleep(time.Minute + time.Second)
		moved := false
		for range 50 {
			moved = moved || c.Pick(r, nil).AddrPort != first
			time.Sleep(2 * time.Minute)
		}
		if !moved {
			t.Error("the affinity never ends")
		}
		now := c.Pick(r, nil)
		var rest []mesh.Endpoint
		for _, e := range eps(1, 2, 3, 4, 5, 6) {
			if e.AddrPort != now.AddrPort {
				rest = append(rest, e)
			}
		}
		c = s.Update("a", config, 2, &source{}, rest)
		if c.Pick(r, nil).AddrPort == now.AddrPort {
			t.Error("a client stays at an endpoint that is gone")
		}
	})
}

// checker answers health checks as a test says.
type checker struct {
	mu   sync.Mutex
	sick map[netip.AddrPort]bool
	n    map[netip.AddrPort]int
}

func (c *checker) check(_ context.Context, _ *mesh.HealthCheck, _ string, to netip.AddrPort) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[to]++
	if c.sick[to] {
		return errors.New("sick")
	}
	return nil
}

func (c *checker) set(to netip.AddrPort, sick bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sick[to] = sick
}

func TestHealthChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ck := &checker{sick: map[netip.AddrPort]bool{}, n: map[netip.AddrPort]int{}}
		var mu sync.Mutex
		var events []Event
		reg := NewRegistry(ck.check, func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e)
		})
		defer reg.Close()
		s := NewSet(reg, Here{})
		two := eps(1, 2)
		ck.set(two[1].AddrPort, true)
		zero := 0
		p := mesh.BackendPolicy{PanicPercent: &zero, HealthCheck: &mesh.HealthCheck{
			Kind: mesh.CheckTCP, Interval: 10 * time.Second, Timeout: time.Second, HealthyThreshold: 2, UnhealthyThreshold: 3,
		}}
		c := policed(s, p, two...)
		if c.Warm() || c.Pick(Request{}, nil) != nil {
			t.Fatal("traffic before the first check")
		}
		synctest.Wait()
		if !c.Warm() {
			t.Fatal("the first check does not count")
		}
		if seen := counts(c, Request{}, 100); seen[1] != 100 {
			t.Errorf("one of two passed: %v", seen)
		}
		// Two checks more must pass, three must fail.
		ck.set(two[1].AddrPort, false)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if seen := counts(c, Request{}, 100); seen[2] > 0 {
			t.Error("one check made it healthy, the threshold is two")
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if seen := counts(c, Request{}, 100); seen[2] == 0 {
			t.Error("two checks did not make it healthy")
		}
		ck.set(two[0].AddrPort, true)
		time.Sleep(22 * time.Second)
		synctest.Wait()
		if seen := counts(c, Request{}, 100); seen[1] == 0 {
			t.Error("two checks made it unhealthy, the threshold is three")
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if seen := counts(c, Request{}, 100); seen[1] > 0 {
			t.Error("three failed checks did not make it unhealthy")
		}
		// An endpoint that comes gets nothing before its check; nor is anybody asked who left.
		third := eps(2, 3)
		c = s.Update("a", c.config, 1, &source{}, third)
		if seen := counts(c, Request{}, 100); seen[3] > 0 {
			t.Error("a new endpoint gets traffic before its first check")
		}
		synctest.Wait()
		if seen := counts(c, Request{}, 100); seen[3] == 0 {
			t.Error("a new endpoint that passed gets nothing")
		}
		before := ck.n[two[0].AddrPort]
		time.Sleep(time.Minute)
		synctest.Wait()
		if ck.n[two[0].AddrPort] != before {
			t.Error("an endpoint that left is still asked")
		}
		mu.Lock()
		defer mu.Unlock()
		var states []State
		for _, e := range events {
			if e.Endpoint.AddrPort == two[1].AddrPort {
				states = append(states, e.State)
			}
		}
		if len(states) != 2 || states[0] != StateFailed || states[1] != StateHealthy {
			t.Errorf("events of the second endpoint: %v", states)
		}
	})
}

// TestPicksCostNoMemory holds for each balancer, with every policy at once.
func TestPicksCostNoMemory(t *testing.T) {
	reg := NewRegistry(nil, nil)
	for _, b := range []mesh.Balancer{mesh.BalanceLeastRequest, mesh.BalanceRoundRobin, mesh.BalanceRandom, mesh.BalanceRingHash} {
		c := policed(NewSet(reg, Here{}), mesh.BackendPolicy{
			Balancer: b, Limits: mesh.BackendLimits{Requests: 5, PendingRequests: 5},
			RetryBudget: &mesh.RetryBudget{Percent: 100, Interval: time.Second},
			Outlier:     &mesh.OutlierDetection{Consecutive5xx: 5, BaseEjectionTime: time.Second, Interval: time.Second},
		}, eps(1, 2, 3)...)
		n := testing.AllocsPerRun(100, func() {
			c.Count()
			e := c.Pick(Request{Hash: 1, Hashed: true}, nil)
			e.Begin()
			e.Answered(200)
			e.Done()
		})
		if n > 0 {
			t.Errorf("balancer %d: %v allocations", b, n)
		}
	}
}

// TestOutlierInterval has intervals without an ejection shorten the next one.
func TestOutlierInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := NewRegistry(nil, nil)
		defer reg.Close()
		c := policed(NewSet(reg, Here{}), mesh.BackendPolicy{Outlier: &mesh.OutlierDetection{
			Consecutive5xx: 1, Interval: 10 * time.Second, BaseEjectionTime: time.Minute, MaxEjectionTime: 2 * time.Minute, MaxEjectionPercent: 100,
		}}, eps(1, 2)...)
		e := c.endpoints[0]
		lasts := func(want time.Duration) {
			t.Helper()
			e.Answered(500)
			time.Sleep(want - time.Second)
			synctest.Wait()
			if e.host.State() != StateEjected {
				t.Errorf("the ejection is shorter than %s", want)
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if e.host.State() != StateHealthy {
				t.Fatalf("the ejection is longer than %s", want)
			}
		}
		lasts(time.Minute)
		lasts(2 * time.Minute)
		lasts(2 * time.Minute) // the longest there is
		time.Sleep(30 * time.Second)
		lasts(time.Minute)
	})
}
