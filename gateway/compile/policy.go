package compile

import (
	"cmp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/mesh"
)

// SortPolicies puts policies in the order of precedence: the oldest, then the first by
// name (GEP-713, conflict resolution).
func SortPolicies(policies []*v1alpha1.BackendTrafficPolicy) {
	slices.SortFunc(policies, func(a, b *v1alpha1.BackendTrafficPolicy) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
}

// PolicyFor returns the policy of a section of a Service among policies in the order of
// precedence, nil if there is none: one that names the section goes before one for the
// whole Service. An empty section asks for the latter.
func PolicyFor(policies []*v1alpha1.BackendTrafficPolicy, service, section string) *v1alpha1.BackendTrafficPolicy {
	var whole *v1alpha1.BackendTrafficPolicy
	for _, p := range policies {
		for _, ref := range p.Spec.TargetRefs {
			switch {
			case string(ref.Name) != service:
			case ref.SectionName != nil && string(*ref.SectionName) == section && section != "":
				return p
			case ref.SectionName == nil && whole == nil:
				whole = p
			}
		}
	}
	return whole
}

// backendPolicy compiles what is wanted of a Service's port.
func backendPolicy(svc *corev1.Service, policy *v1alpha1.BackendTrafficPolicy, affinity time.Duration) mesh.BackendPolicy {
	var out mesh.BackendPolicy
	if d := svc.Spec.TrafficDistribution; d != nil {
		switch *d {
		case corev1.ServiceTrafficDistributionPreferClose, "PreferSameZone":
			out.Locality = mesh.LocalityZone
		case "PreferSameNode":
			out.Locality = mesh.LocalityNode
		}
	}
	if policy == nil {
		out.Affinity = affinity
		return out
	}
	spec := &policy.Spec
	if l := spec.Locality; l != nil {
		out.Locality = mesh.LocalityZone
		if l.Prefer == v1alpha1.SameNode {
			out.Locality = mesh.LocalityNode
		}
	}
	balancer(spec.LoadBalancer, &out)
	if out.Balancer != mesh.BalanceRingHash {
		out.Affinity = affinity
	}
	if p := spec.PanicThreshold; p != nil {
		n := int(*p)
		out.PanicPercent = &n
	}
	if l := spec.Limits; l != nil {
		out.Limits = mesh.BackendLimits{
			Connections: number(l.Connections), PendingRequests: number(l.PendingRequests),
			Requests: number(l.Requests), RequestsPerConnection: number(l.RequestsPerConnection),
		}
	}
	if o := spec.OutlierDetection; o != nil {
		out.Outlier = &mesh.OutlierDetection{
			Consecutive5xx: number(o.Consecutive5xx), ConsecutiveGatewayErrors: number(o.ConsecutiveGatewayErrors),
			ConsecutiveLocalOriginFailures: number(o.ConsecutiveLocalOriginFailures),
			Interval:                       policyDuration(o.Interval), BaseEjectionTime: policyDuration(o.BaseEjectionTime),
			MaxEjectionPercent: number(o.MaxEjectionPercent),
		}
		out.Outlier.MaxEjectionTime = max(maxEjectionTime, out.Outlier.BaseEjectionTime)
	}
	if h := spec.HealthCheck; h != nil {
		out.HealthCheck = healthCheck(h)
	}
	if b := spec.RetryBudget; b != nil {
		out.RetryBudget = &mesh.RetryBudget{Percent: number(b.Percent), Minimum: number(b.Minimum), Interval: policyDuration(b.Interval)}
	}
	return out
}

// maxEjectionTime is Envoy's default.
const maxEjectionTime = 5 * time.Minute

func balancer(l *v1alpha1.LoadBalancer, out *mesh.BackendPolicy) {
	if l == nil {
		return
	}
	switch l.Type {
	case v1alpha1.LeastRequest:
		if r := l.LeastRequest; r != nil {
			out.Choices = number(r.Choices)
		}
	case v1alpha1.RoundRobin:
		out.Balancer = mesh.BalanceRoundRobin
	case v1alpha1.Random:
		out.Balancer = mesh.BalanceRandom
	case v1alpha1.RingHash:
		out.Balancer = mesh.BalanceRingHash
		for i := range l.RingHash.Hash {
			s := &l.RingHash.Hash[i]
			var h mesh.HashSource
			switch {
			case s.Header != nil:
				h.Header = strings.ToLower(string(*s.Header))
			case s.Cookie != nil:
				h.Cookie = &mesh.HashCookie{Name: s.Cookie.Name}
				if s.Cookie.TTL != nil {
					ttl := policyDuration(s.Cookie.TTL)
					h.Cookie.TTL = &ttl
				}
				if s.Cookie.Path != nil {
					h.Cookie.Path = *s.Cookie.Path
				}
			case s.Query != nil:
				h.Query = *s.Query
			default:
				h.SourceIP = true
			}
			out.Hash = append(out.Hash, h)
		}
	}
}

func healthCheck(h *v1alpha1.HealthCheck) *mesh.HealthCheck {
	out := &mesh.HealthCheck{
		Port: uint16(number(h.Port)), Interval: policyDuration(h.Interval), Timeout: policyDuration(h.Timeout),
		HealthyThreshold: number(h.HealthyThreshold), UnhealthyThreshold: number(h.UnhealthyThreshold),
	}
	switch {
	case h.HTTP != nil:
		out.Kind, out.Path = mesh.CheckHTTP, h.HTTP.Path
		out.MinStatus, out.MaxStatus = number(h.HTTP.MinStatus), number(h.HTTP.MaxStatus)
		if h.HTTP.Host != nil {
			out.Host = string(*h.HTTP.Host)
		}
	case h.GRPC != nil:
		out.Kind = mesh.CheckGRPC
		if h.GRPC.Service != nil {
			out.Service = *h.GRPC.Service
		}
	default:
		out.Kind = mesh.CheckTCP
	}
	return out
}

// CheckPolicy returns what of a policy is right by its schema and yet makes no sense,
// or "".
func CheckPolicy(p *v1alpha1.BackendTrafficPolicy) string {
	positive := func(field string, d *gatewayv1.Duration) string {
		if policyDuration(d) <= 0 {
			return field + " must be positive"
		}
		return ""
	}
	var texts []string
	if o := p.Spec.OutlierDetection; o != nil {
		texts = append(texts, positive("spec.outlierDetection.interval", o.Interval), positive("spec.outlierDetection.baseEjectionTime", o.BaseEjectionTime))
	}
	if h := p.Spec.HealthCheck; h != nil {
		texts = append(texts, positive("spec.healthCheck.interval", h.Interval), positive("spec.healthCheck.timeout", h.Timeout))
	}
	texts = slices.DeleteFunc(texts, func(t string) bool { return t == "" })
	return strings.Join(texts, "; ")
}

func number(n *int32) int {
	if n == nil {
		return 0
	}
	return int(*n)
}

// policyDuration is a duration that the schema has checked.
func policyDuration(d *gatewayv1.Duration) time.Duration {
	v, _ := duration("", d)
	return v
}
