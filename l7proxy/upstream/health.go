package upstream

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// checkRun is the health checks of a host, one after the other.
type checkRun struct {
	host   *Host
	spec   *mesh.HealthCheck
	ctx    context.Context //nolint:containedctx // the life of the run, which has no call
	cancel context.CancelFunc

	// Guarded by the cluster's mu.
	timer        *time.Timer
	passed, lost int // in a row
}

func (c *checkRun) stop() {
	c.cancel()
	if c.timer != nil {
		c.timer.Stop()
	}
}

// setChecks begins and ends health checks as the configuration says. The caller holds
// s.mu. Endpoints that were there without a check count as healthy until one fails.
func (s *Shared) setChecks(before *mesh.Cluster) {
	var spec *mesh.HealthCheck
	if s.config != nil && !s.closed && s.registry.check != nil {
		spec = s.config.Policy.HealthCheck
	}
	fresh := before == nil || before.Policy.HealthCheck != nil
	for _, h := range s.list {
		if h.check != nil && (spec == nil || *h.check.spec != *spec) {
			h.check.stop()
			h.check = nil
			if spec == nil {
				h.unchecked.Store(false)
				h.failed.Store(false)
			}
		} else if h.check == nil && spec != nil && (fresh || h.fresh) {
			h.unchecked.Store(true)
		}
		h.fresh = false
		if spec != nil && h.check == nil {
			h.check = &checkRun{host: h, spec: spec}
			h.check.ctx, h.check.cancel = context.WithCancel(context.Background())
			h.check.timer = time.AfterFunc(0, h.check.run)
		}
	}
}

// run makes one check and arranges for the next.
func (c *checkRun) run() {
	h := c.host
	s := h.shared
	r := s.registry
	select {
	case r.slots <- struct{}{}:
	case <-c.ctx.Done():
		return
	}
	s.mu.Lock()
	to, name := h.endpoint.AddrPort, s.name
	s.mu.Unlock()
	err := r.check(c.ctx, c.spec, name, to)
	<-r.slots

	s.mu.Lock()
	if c.ctx.Err() != nil {
		s.mu.Unlock()
		return
	}
	state, turned := c.note(err)
	// A little apart, so that endpoints that came together are not asked together.
	c.timer.Reset(c.spec.Interval + rand.N(c.spec.Interval/10+1))
	s.mu.Unlock()
	if turned {
		why := ""
		if err != nil {
			why = err.Error()
		}
		h.tell(state, why)
	}
}

// note counts a check and reports whether it turns the host's state. The caller holds
// the cluster's mu.
func (c *checkRun) note(err error) (State, bool) {
	h := c.host
	first := h.unchecked.Load()
	failed := h.failed.Load()
	if err == nil {
		c.passed, c.lost = c.passed+1, 0
		if !first && (!failed || c.passed < c.spec.HealthyThreshold) {
			return StateHealthy, false
		}
		h.failed.Store(false)
		h.unchecked.Store(false)
		h.shared.health.Add(1)
		return h.State(), true
	}
	why := err.Error()
	c.passed, c.lost = 0, c.lost+1
	if !first && (failed || c.lost < c.spec.UnhealthyThreshold) {
		return StateFailed, false
	}
	h.why.Store(&why)
	h.failed.Store(true)
	h.unchecked.Store(false)
	h.shared.health.Add(1)
	return StateFailed, true
}
