package readiness

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// endpoint answers probes as a test says, and keeps what they were.
type endpoint struct {
	mu    sync.Mutex
	err   error
	asked []mesh.HealthCheck
	to    netip.AddrPort
}

func (e *endpoint) check(_ context.Context, h *mesh.HealthCheck, _ string, to netip.AddrPort) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked, e.to = append(e.asked, *h), to
	return e.err
}

func (e *endpoint) say(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.asked)
}

func pod(p *corev1.Probe) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", ReadinessProbe: p, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.9"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

// ready is the Ready condition that the last change said, "" if it said nothing.
func ready(c *kube.Change) string {
	for _, o := range c.Upserts {
		if p, ok := o.(*corev1.Pod); ok {
			return string(p.Status.Conditions[0].Status)
		}
	}
	return ""
}

func TestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{err: errors.New("not yet")}
		var last kube.Change
		changes := 0
		p := New(e.check, func(c kube.Change) { last, changes = c, changes+1 })
		defer p.Close()
		original := pod(&corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromString("http")}},
			PeriodSeconds: 5, InitialDelaySeconds: 2, SuccessThreshold: 2, FailureThreshold: 2,
		})
		p.Changed(kube.Change{Upserts: []kube.Object{original}})
		if ready(&last) != "False" || original.Status.Conditions[0].Status != corev1.ConditionTrue {
			t.Fatal("a Pod is ready before its first probe, or the published object was changed")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if e.count() != 0 {
			t.Error("probed before initialDelaySeconds")
		}
		e.say(nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if changes != 1 || e.count() != 1 {
			t.Errorf("%d changes after %d probes, successThreshold is 2", changes, e.count())
		}
		if h := e.asked[0]; h.Kind != mesh.CheckHTTP || h.Path != "/ready" || h.MaxStatus != 399 || e.to != netip.MustParseAddrPort("10.0.0.9:8080") {
			t.Errorf("asked %+v at %s", h, e.to)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if ready(&last) != "True" || changes != 2 {
			t.Errorf("after two probes that passed: %s, %d changes", ready(&last), changes)
		}
		// A change of the Pod that is none of the probe's keeps what is known.
		labelled := pod(original.Spec.Containers[0].ReadinessProbe)
		labelled.Labels = map[string]string{"a": "b"}
		p.Changed(kube.Change{Upserts: []kube.Object{labelled}})
		if ready(&last) != "True" {
			t.Error("a new label made the Pod unready")
		}
		e.say(errors.New("overload"))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if changes != 3 {
			t.Error("one failure made it unready, failureThreshold is 2")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if ready(&last) != "False" {
			t.Error("two failures did not make it unready")
		}
		if o := last.Upserts[0]; o.GetLabels()["a"] != "b" {
			t.Error("the older version of the Pod came back")
		}
		p.Changed(kube.Change{Deletes: []kube.Key{kube.KeyOf(original)}})
		n := e.count()
		time.Sleep(time.Minute)
		synctest.Wait()
		if e.count() != n {
			t.Error("a Pod that is gone is probed")
		}
	})
}

func TestWhatIsProbed(t *testing.T) {
	service := "books"
	for name, c := range map[string]struct {
		probe *corev1.Probe
		kind  mesh.HealthCheckKind
		why   string
	}{
		"tcp":    {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(80)}}}, mesh.CheckTCP, ""},
		"grpc":   {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 80, Service: &service}}}, mesh.CheckGRPC, ""},
		"exec":   {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}}, 0, "exec is not supported"},
		"https":  {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: "HTTPS", Port: intstr.FromInt32(1)}}}, 0, "HTTPS"},
		"port":   {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("x")}}}, 0, `no port named "x"`},
		"header": {&corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(1), HTTPHeaders: []corev1.HTTPHeader{{Name: "X"}}}}}, 0, `header "X"`},
	} {
		o := pod(c.probe)
		check, _, why := Compile(&o.Spec.Containers[0])
		if c.why != "" {
			if !strings.Contains(why, c.why) || !strings.Contains(Unsupported(o), "spec.containers[0].readinessProbe") {
				t.Errorf("%s: %q, want %q", name, why, c.why)
			}
			var last kube.Change
			p := New((&endpoint{}).check, func(c kube.Change) { last = c })
			p.Changed(kube.Change{Upserts: []kube.Object{o}})
			p.Close()
			if ready(&last) != "True" {
				t.Errorf("%s: a probe that cannot be made keeps the Pod unready", name)
			}
			continue
		}
		if why != "" || check.Kind != c.kind || check.Timeout != time.Second || check.Interval != 10*time.Second || check.UnhealthyThreshold != 3 {
			t.Errorf("%s: %+v %q", name, check, why)
		}
	}
	if Unsupported(pod(nil)) != "" {
		t.Error("no probe at all is unsupported")
	}
}
