package upstream

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// Answered takes in the status of a response, or what a gRPC status amounts to.
func (e *Endpoint) Answered(status int) {
	h, o := e.host, e.outlier()
	if h == nil || o == nil {
		return
	}
	reset(&h.locals)
	if status < 500 {
		reset(&h.fives)
		reset(&h.gateways)
		return
	}
	h.fiveHundred(o, status >= 502 && status <= 504)
}

// Failed takes in what the proxy itself saw go wrong: no connection, a reset, no
// answer in time.
func (e *Endpoint) Failed() {
	h, o := e.host, e.outlier()
	switch {
	case h == nil || o == nil:
	case o.ConsecutiveLocalOriginFailures > 0:
		if n := h.locals.Add(1); int(n) >= o.ConsecutiveLocalOriginFailures {
			h.eject(o, fmt.Sprintf("%d failures in a row", n))
		}
	default:
		h.fiveHundred(o, true)
	}
}

func (e *Endpoint) outlier() *mesh.OutlierDetection {
	if e.cluster == nil || e.cluster.config == nil {
		return nil
	}
	return e.cluster.config.Policy.Outlier
}

func reset(n *atomic.Int32) {
	if n.Load() != 0 { // most often it is, and the line stays shared
		n.Store(0)
	}
}

func (h *Host) fiveHundred(o *mesh.OutlierDetection, gateway bool) {
	if !gateway {
		reset(&h.gateways)
	} else if n := h.gateways.Add(1); o.ConsecutiveGatewayErrors > 0 && int(n) >= o.ConsecutiveGatewayErrors {
		h.eject(o, fmt.Sprintf("%d gateway errors in a row", n))
	}
	if n := h.fives.Add(1); o.Consecutive5xx > 0 && int(n) >= o.Consecutive5xx {
		h.eject(o, fmt.Sprintf("%d responses 5xx in a row", n))
	}
}

// eject takes the host out for a while, unless too many are out already.
func (h *Host) eject(o *mesh.OutlierDetection, why string) {
	s := h.shared
	s.mu.Lock()
	share := 100 * (s.ejected + 1)
	if h.gone || s.closed || h.release != nil || s.ejected > 0 && share > o.MaxEjectionPercent*len(s.list) {
		s.mu.Unlock()
		return
	}
	// Envoy takes one from the count for each interval without an ejection.
	if !h.released.IsZero() {
		h.ejections = max(0, h.ejections-int(time.Since(h.released)/o.Interval))
	}
	h.ejections++
	s.ejected++
	h.why.Store(&why)
	h.ejected.Store(true)
	s.health.Add(1)
	took := min(time.Duration(h.ejections)*o.BaseEjectionTime, max(o.MaxEjectionTime, o.BaseEjectionTime))
	h.release = time.AfterFunc(took, h.readmit)
	s.mu.Unlock()
	h.tell(StateEjected, why)
}

// readmit ends an ejection.
func (h *Host) readmit() {
	s := h.shared
	s.mu.Lock()
	if h.release == nil {
		s.mu.Unlock()
		return
	}
	h.release = nil
	s.ejected--
	h.released = time.Now()
	h.fives.Store(0)
	h.gateways.Store(0)
	h.locals.Store(0)
	h.ejected.Store(false)
	s.health.Add(1)
	s.mu.Unlock()
	h.tell(h.State(), "the ejection is over")
}
