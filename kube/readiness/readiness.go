// Package readiness does for a node without a kubelet what the kubelet does with
// readiness probes: it asks running Pods and writes the answer into their Ready
// condition, which makes them endpoints of their Services, or not.
//
// A Prober stands between the source of objects and whoever takes them in; both see
// only changes. A Pod is not ready before its first probe has passed. Probes that it
// cannot make (Unsupported) count as none, and the Pod's status says so. It keeps a
// timer for each probe and nothing else; Close ends them.
package readiness

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// Check asks once, as long as the check's timeout and ctx allow, and returns what is
// wrong. It is called on many goroutines.
type Check func(ctx context.Context, h *mesh.HealthCheck, name string, to netip.AddrPort) error

// maxProbes bounds the probes that are under way at once.
const maxProbes = 64

// Prober makes the probes of the Pods that pass through it. Its methods may be called
// concurrently.
type Prober struct {
	check Check
	next  func(kube.Change)
	slots chan struct{} // one element for each probe under way

	mu     sync.Mutex // also held while next is called, so that changes stay in order
	pods   map[kube.Key]*podProbes
	closed bool
}

// New returns a prober that hands every change on to next.
func New(check Check, next func(kube.Change)) *Prober {
	return &Prober{check: check, next: next, slots: make(chan struct{}, maxProbes), pods: map[kube.Key]*podProbes{}}
}

// podProbes are the probes of a Pod.
type podProbes struct {
	pod    *corev1.Pod // as it came
	probes []*probe
}

// probe is one container's.
type probe struct {
	prober *Prober
	key    kube.Key
	spec   mesh.HealthCheck
	to     netip.AddrPort
	ctx    context.Context //nolint:containedctx // the life of the probe, which has no call
	cancel context.CancelFunc

	// Guarded by Prober.mu.
	timer        *time.Timer
	ready        bool
	passed, lost int // in a row
}

// Changed takes a change in and hands it on with the Pods' Ready conditions as their
// probes have them.
func (p *Prober) Changed(c kube.Change) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range c.Deletes {
		p.forget(key)
	}
	copied := false
	for i, o := range c.Upserts {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			continue
		}
		now := p.take(pod)
		if now == pod {
			continue
		}
		if !copied {
			c.Upserts = append([]kube.Object(nil), c.Upserts...)
			copied = true
		}
		c.Upserts[i] = now
	}
	p.next(c)
}

// Close ends all probes.
func (p *Prober) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for key := range p.pods {
		p.forget(key)
	}
}

func (p *Prober) forget(key kube.Key) {
	if pp := p.pods[key]; pp != nil {
		for _, pr := range pp.probes {
			pr.stop()
		}
		delete(p.pods, key)
	}
}

func (pr *probe) stop() {
	pr.cancel()
	pr.timer.Stop()
}

// take begins, goes on with or ends the probes of a Pod, and returns it with what they
// say. The caller holds p.mu.
func (p *Prober) take(pod *corev1.Pod) *corev1.Pod {
	key := kube.KeyOf(pod)
	specs := specsOf(pod)
	old := p.pods[key]
	if !running(pod) || len(specs) == 0 || p.closed {
		p.forget(key)
		return pod
	}
	if old != nil && len(old.probes) == len(specs) {
		same := true
		for i, s := range specs {
			same = same && old.probes[i].spec == s.check && old.probes[i].to == s.to
		}
		if same {
			old.pod = pod
			return old.withReady()
		}
	}
	p.forget(key)
	pp := &podProbes{pod: pod}
	for _, s := range specs {
		pr := &probe{prober: p, key: key, spec: s.check, to: s.to}
		pr.ctx, pr.cancel = context.WithCancel(context.Background())
		pr.timer = time.AfterFunc(s.delay, pr.run)
		pp.probes = append(pp.probes, pr)
	}
	p.pods[key] = pp
	return pp.withReady()
}

// running reports whether a Pod's processes run, which is when a kubelet probes them.
func running(pod *corev1.Pod) bool {
	if pod.Status.Phase != corev1.PodRunning || len(pod.Status.PodIPs) == 0 {
		return false
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// withReady returns the Pod with its Ready condition as the probes have it.
func (pp *podProbes) withReady() *corev1.Pod {
	for _, pr := range pp.probes {
		if pr.ready {
			continue
		}
		pod := *pp.pod
		pod.Status.Conditions = append([]corev1.PodCondition(nil), pod.Status.Conditions...)
		for i := range pod.Status.Conditions {
			if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
				c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ContainersNotReady", "a readiness probe does not pass"
			}
		}
		return &pod
	}
	return pp.pod
}

// run makes one probe and arranges for the next.
func (pr *probe) run() {
	p := pr.prober
	select {
	case p.slots <- struct{}{}:
	case <-pr.ctx.Done():
		return
	}
	err := p.check(pr.ctx, &pr.spec, pr.to.Addr().String(), pr.to)
	<-p.slots
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr.ctx.Err() != nil {
		return
	}
	pr.timer.Reset(pr.spec.Interval)
	was := pr.ready
	if err == nil {
		pr.passed, pr.lost = pr.passed+1, 0
		pr.ready = pr.ready || pr.passed >= pr.spec.HealthyThreshold
	} else {
		pr.passed, pr.lost = 0, pr.lost+1
		pr.ready = pr.ready && pr.lost < pr.spec.UnhealthyThreshold
	}
	if pr.ready != was {
		p.next(kube.Change{Upserts: []kube.Object{p.pods[pr.key].withReady()}})
	}
}

// spec is a probe as it is made.
type spec struct {
	check mesh.HealthCheck
	to    netip.AddrPort
	delay time.Duration
}

// specsOf returns the probes of a Pod that can be made.
func specsOf(pod *corev1.Pod) []spec {
	if len(pod.Status.PodIPs) == 0 {
		return nil
	}
	addr, err := netip.ParseAddr(pod.Status.PodIPs[0].IP)
	if err != nil {
		return nil
	}
	var out []spec
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if c.ReadinessProbe == nil {
			continue
		}
		check, port, why := Compile(c)
		if why != "" {
			continue
		}
		out = append(out, spec{check, netip.AddrPortFrom(addr, port), seconds(c.ReadinessProbe.InitialDelaySeconds, 0)})
	}
	return out
}

// Compile returns a container's readiness probe as a check with its port, or why it
// cannot be made.
func Compile(c *corev1.Container) (check mesh.HealthCheck, port uint16, why string) {
	p := c.ReadinessProbe
	check = mesh.HealthCheck{
		Interval: seconds(p.PeriodSeconds, 10), Timeout: seconds(p.TimeoutSeconds, 1),
		HealthyThreshold: int(max(p.SuccessThreshold, 1)), UnhealthyThreshold: int(p.FailureThreshold),
	}
	if check.UnhealthyThreshold < 1 {
		check.UnhealthyThreshold = 3
	}
	switch {
	case p.HTTPGet != nil:
		h := p.HTTPGet
		// A kubelet takes 200 to 399 as success.
		check.Kind, check.Path, check.MinStatus, check.MaxStatus = mesh.CheckHTTP, h.Path, 200, 399
		switch {
		case h.Scheme == corev1.URISchemeHTTPS:
			return check, 0, "httpGet with scheme HTTPS is not supported"
		case h.Host != "":
			return check, 0, "httpGet with another host than the Pod's is not supported"
		}
		for _, f := range h.HTTPHeaders {
			if f.Name != "Host" {
				return check, 0, fmt.Sprintf("httpGet with the header %q is not supported, only Host is", f.Name)
			}
			check.Host = f.Value
		}
		port, why = portOf(c, h.Port.StrVal, h.Port.IntVal)
	case p.TCPSocket != nil:
		check.Kind = mesh.CheckTCP
		if p.TCPSocket.Host != "" {
			return check, 0, "tcpSocket with another host than the Pod's is not supported"
		}
		port, why = portOf(c, p.TCPSocket.Port.StrVal, p.TCPSocket.Port.IntVal)
	case p.GRPC != nil:
		check.Kind = mesh.CheckGRPC
		if p.GRPC.Service != nil {
			check.Service = *p.GRPC.Service
		}
		port, why = portOf(c, "", p.GRPC.Port)
	case p.Exec != nil:
		why = "exec is not supported, because nothing of Sluice runs in a workload; use httpGet, tcpSocket or grpc"
	default:
		why = "it says neither httpGet nor tcpSocket nor grpc"
	}
	return check, port, why
}

// Unsupported says which readiness probes of a Pod cannot be made, and why; "" if all can.
func Unsupported(pod *corev1.Pod) string {
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.ReadinessProbe != nil {
			if _, _, why := Compile(c); why != "" {
				return fmt.Sprintf("spec.containers[%d].readinessProbe: %s; the Pod counts as ready while it runs", i, why)
			}
		}
	}
	return ""
}

func portOf(c *corev1.Container, name string, number int32) (uint16, string) {
	if name == "" {
		if number < 1 || number > 65535 {
			return 0, fmt.Sprintf("%d is not a port", number)
		}
		return uint16(number), ""
	}
	for i := range c.Ports {
		if c.Ports[i].Name == name {
			return uint16(c.Ports[i].ContainerPort), ""
		}
	}
	return 0, fmt.Sprintf("the container has no port named %q", name)
}

func seconds(n, standard int32) time.Duration {
	if n <= 0 {
		n = standard
	}
	return time.Duration(n) * time.Second
}
