package upstream

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
)

func eps(ports ...uint16) []mesh.Endpoint {
	var out []mesh.Endpoint
	for _, p := range ports {
		out = append(out, mesh.Endpoint{AddrPort: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), p)})
	}
	return out
}

type source struct{ _ int }

func TestPickLeastLoaded(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	c := s.Update("a", nil, 0, &source{}, eps(1, 2, 3, 4))
	// With the choice of two, the most loaded is never taken.
	c.endpoints[2].Active = 100
	seen := map[uint16]int{}
	for range 4000 {
		e := c.Pick(Request{}, nil)
		seen[e.AddrPort.Port()]++
	}
	if seen[3] > 0 || len(seen) != 3 {
		t.Errorf("%v", seen)
	}
	// A retry goes elsewhere, whatever the load there.
	avoid := c.endpoints[0]
	seen = map[uint16]int{}
	for range 4000 {
		e := c.Pick(Request{}, avoid)
		seen[e.AddrPort.Port()]++
	}
	if seen[1] > 0 || seen[2] == 0 || seen[4] == 0 {
		t.Errorf("avoiding 1: %v", seen)
	}
	two := s.Update("b", nil, 0, &source{}, eps(7, 8))
	for range 100 {
		if e := two.Pick(Request{}, two.endpoints[1]); e.AddrPort.Port() != 7 {
			t.Fatal("took the endpoint to avoid")
		}
	}
	if one := s.Update("c", nil, 0, &source{}, eps(9)); one.Pick(Request{}, one.endpoints[0]) == nil {
		t.Error("the only endpoint was avoided")
	}
	if s.Update("d", nil, 0, &source{}, nil).Pick(Request{}, nil) != nil {
		t.Error("picked from nothing")
	}
	if n := testing.AllocsPerRun(100, func() { c.Pick(Request{}, nil) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

type fakeConn struct {
	room    int
	retired bool
}

func (c *fakeConn) CanOpen() int { return c.room }
func (c *fakeConn) Retire()      { c.retired = true }

type fakeWaiter struct {
	conn Conn
	err  error
	n    int
}

func (w *fakeWaiter) Dialed(c Conn, err error) { w.conn, w.err, w.n = c, err, w.n+1 }

func TestEndpointsKeepTheirState(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	first, second := &source{}, &source{}
	c := s.Update("a", nil, 0, first, eps(1, 2))
	if s.Update("a", nil, 0, first, nil) != c || c.Len() != 2 {
		t.Error("an unchanged source was read again")
	}
	e1, e2 := c.endpoints[0], c.endpoints[1]
	conn1, conn2 := &fakeConn{room: 1}, &fakeConn{room: 1}
	e1.Pool(0, HTTP1).Put(conn1)
	e2.Pool(0, HTTP1).Put(conn2)
	e2.Active++
	other := s.Update("b", nil, 0, first, eps(1)).endpoints[0]
	if other == e1 {
		t.Error("two clusters share an endpoint's connections, which their policies may forbid")
	}
	s.Update("a", nil, 0, second, eps(1, 3))
	if conn1.retired || c.endpoints[0] != e1 {
		t.Error("an endpoint that stays lost its connections")
	}
	if !conn2.retired {
		t.Error("an endpoint that left kept an unused connection")
	}
	if s.endpoint("a", &e2.Endpoint) != e2 {
		t.Error("an endpoint was forgotten with a request under way")
	}
	late := &fakeConn{room: 1}
	if e2.Pool(0, HTTP1).Put(late) {
		t.Error("a connection to an endpoint that left went back to the pool")
	}
	e2.Done()
	if _, ok := s.endpoints[endpointKey{"a", e2.AddrPort}]; ok {
		t.Error("an endpoint without use was not forgotten")
	}
	s.Remove("a")
	if !conn1.retired || len(s.endpoints) != 1 {
		t.Errorf("after the cluster: retired %v, %d endpoints", conn1.retired, len(s.endpoints))
	}
}

func TestPoolOfHTTP1(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	e := s.Update("a", nil, 0, &source{}, eps(1)).endpoints[0]
	p := e.Pool(7, HTTP1)
	if e.Pool(7, HTTP1) != p || e.Pool(8, HTTP1) == p || e.Pool(7, HTTP2) == p {
		t.Error("pools are not kept apart by workload and protocol")
	}
	a, b := &fakeConn{room: 1}, &fakeConn{room: 1}
	p.Put(a)
	p.Put(b)
	if p.Get() != Conn(b) || p.Get() != Conn(a) || p.Get() != nil {
		t.Error("not the last used first")
	}
	w1, w2 := &fakeWaiter{}, &fakeWaiter{}
	p.Wait(w1)
	p.Wait(w2)
	p.Put(a)
	if w1.conn != Conn(a) || w2.n != 0 {
		t.Error("a returned connection did not go to the first who waits")
	}
	failure := errors.New("no")
	p.Failed(failure)
	if w2.err != failure || p.Waiting() != 0 {
		t.Error("a failed attempt was not reported to the next who waits")
	}
	p.Failed(failure)
	p.Wait(w1)
	p.Cancel(w1)
	p.Put(a)
	if w1.n != 1 || p.Get() != Conn(a) {
		t.Error("somebody who gave up was served")
	}
	s.DropWorkload(7)
	p.Put(a)
	s.DropWorkload(7)
	if !a.retired || p.Get() != nil {
		t.Error("the workload's connections were not closed")
	}
}

func TestPoolOfHTTP2(t *testing.T) {
	s := NewSet(NewRegistry(nil, nil), Here{})
	p := s.Update("a", nil, 0, &source{}, eps(1)).endpoints[0].Pool(0, HTTP2)
	var ws []*fakeWaiter
	for range 5 {
		w := &fakeWaiter{}
		ws = append(ws, w)
		p.Wait(w)
	}
	full := &fakeConn{}
	p.Put(full)
	if p.Get() != nil || ws[0].n != 0 {
		t.Error("a full connection was used")
	}
	a := &fakeConn{room: 1}
	p.Put(a)
	if p.Get() != Conn(a) {
		t.Error("not found")
	}
	for i, w := range ws {
		if w.conn != Conn(a) {
			t.Errorf("waiter %d was not served", i)
		}
	}
	p.Remove(a)
	if p.Get() != nil {
		t.Error("removed and found")
	}
	ws[0].n, ws[1].n = 0, 0
	p.Wait(ws[0])
	p.Wait(ws[1])
	p.Failed(errors.New("no"))
	if ws[0].n != 1 || ws[1].n != 1 {
		t.Error("a failed attempt was not reported to all who shared it")
	}
}
