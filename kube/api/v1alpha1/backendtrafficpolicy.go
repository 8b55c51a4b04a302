package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// BackendTrafficPolicy says how the endpoints of a Service are balanced, watched and
// spared by all proxies that send to them, whichever route leads there. It is a direct
// attached policy (GEP-2648) of the Services in its own namespace.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=backendtrafficpolicies,singular=backendtrafficpolicy,categories=sluice,shortName=btrafficpolicy
// +kubebuilder:subresource:status
// +kubebuilder:metadata:labels="gateway.networking.k8s.io/policy=Direct"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BackendTrafficPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	//
	// +required
	Spec BackendTrafficPolicySpec `json:"spec"`

	// Status says for each target whether the policy applies there.
	//
	// +optional
	Status gatewayv1.PolicyStatus `json:"status,omitempty"`
}

// BackendTrafficPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type BackendTrafficPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BackendTrafficPolicy `json:"items"`
}

// BackendTrafficPolicySpec is what a policy wants of its targets. What is left out
// keeps the default that its field names.
type BackendTrafficPolicySpec struct {
	// TargetRefs are Services of the policy's own namespace. With a sectionName, which
	// is the name of one of the Service's ports, the policy is for that port only, and
	// goes before one for the whole Service. Of several policies for the same target the
	// oldest applies, then the first by name; the others are Conflicted.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:XValidation:message="targetRefs must be Services: group \"\", kind Service",rule="self.all(t, t.group == '' && t.kind == 'Service')"
	// +kubebuilder:validation:XValidation:message="targetRefs must not name the same target twice",rule="self.all(a, self.exists_one(b, a.name == b.name && (has(a.sectionName) ? a.sectionName : '') == (has(b.sectionName) ? b.sectionName : '')))"
	TargetRefs []gatewayv1.LocalPolicyTargetReferenceWithSectionName `json:"targetRefs"`

	// LoadBalancer says how one of several healthy endpoints is chosen. Left out, it is
	// LeastRequest of two.
	//
	// +optional
	LoadBalancer *LoadBalancer `json:"loadBalancer,omitempty"`

	// Locality prefers endpoints that are near. It goes before the Service's
	// spec.trafficDistribution, which says the same.
	//
	// +optional
	Locality *Locality `json:"locality,omitempty"`

	// PanicThreshold is the percentage of healthy endpoints below which health is
	// ignored and all endpoints are used, because it is more likely that the check is
	// wrong than that all endpoints are. 0: health is never ignored.
	//
	// +optional
	// +kubebuilder:default=50
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	PanicThreshold *int32 `json:"panicThreshold,omitempty"`

	// OutlierDetection takes endpoints out for a while because of their answers. Left
	// out, it does not.
	//
	// +optional
	OutlierDetection *OutlierDetection `json:"outlierDetection,omitempty"`

	// HealthCheck asks each endpoint, from each node whose traffic goes there, whether
	// it is well. Left out, only the endpoint's readiness counts.
	//
	// +optional
	HealthCheck *HealthCheck `json:"healthCheck,omitempty"`

	// Limits bound what one node does to the target at once.
	//
	// +optional
	Limits *Limits `json:"limits,omitempty"`

	// RetryBudget bounds the retries that routes ask for. A retry that is beyond it is
	// answered with 503 and the reason retry-budget.
	//
	// +optional
	RetryBudget *RetryBudget `json:"retryBudget,omitempty"`
}

// LoadBalancerType names a load balancer.
//
// +kubebuilder:validation:Enum=LeastRequest;RoundRobin;Random;RingHash
type LoadBalancerType string

// The load balancers.
const (
	LeastRequest LoadBalancerType = "LeastRequest"
	RoundRobin   LoadBalancerType = "RoundRobin"
	Random       LoadBalancerType = "Random"
	RingHash     LoadBalancerType = "RingHash"
)

// LoadBalancer says how an endpoint is chosen.
//
// +kubebuilder:validation:XValidation:message="leastRequest is for type LeastRequest only",rule="!has(self.leastRequest) || self.type == 'LeastRequest'"
// +kubebuilder:validation:XValidation:message="ringHash is for type RingHash, which needs it",rule="has(self.ringHash) == (self.type == 'RingHash')"
type LoadBalancer struct {
	// Type is LeastRequest (the one of a few random endpoints that has the fewest
	// requests under way), RoundRobin, Random or RingHash (requests that have the same
	// hash go to the same endpoint).
	//
	// +required
	Type LoadBalancerType `json:"type"`

	// LeastRequest is for type LeastRequest.
	//
	// +optional
	LeastRequest *LeastRequestLoadBalancer `json:"leastRequest,omitempty"`

	// RingHash is for type RingHash.
	//
	// +optional
	RingHash *RingHashLoadBalancer `json:"ringHash,omitempty"`
}

// LeastRequestLoadBalancer is for type LeastRequest.
type LeastRequestLoadBalancer struct {
	// Choices is how many random endpoints are compared.
	//
	// +optional
	// +kubebuilder:default=2
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=100
	Choices *int32 `json:"choices,omitempty"`
}

// RingHashLoadBalancer is for type RingHash.
type RingHashLoadBalancer struct {
	// Hash is what of a request is hashed. Of several, all that the request has count.
	// A request that has none of them goes to any endpoint.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Hash []HashSource `json:"hash"`
}

// HashSource is one thing of a request.
//
// +kubebuilder:validation:XValidation:message="exactly one of header, cookie, query and sourceAddress must be set",rule="[has(self.header), has(self.cookie), has(self.query), has(self.sourceAddress)].filter(x, x).size() == 1"
type HashSource struct {
	// Header is the name of a request header.
	//
	// +optional
	Header *gatewayv1.HTTPHeaderName `json:"header,omitempty"`

	// Cookie is a cookie, which a client that has none may be given.
	//
	// +optional
	Cookie *HashCookie `json:"cookie,omitempty"`

	// Query is the name of a query parameter.
	//
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Query *string `json:"query,omitempty"`

	// SourceAddress is the client's IP address.
	//
	// +optional
	// +kubebuilder:validation:Enum=true
	SourceAddress *bool `json:"sourceAddress,omitempty"`
}

// HashCookie is a cookie of a request.
type HashCookie struct {
	// Name of the cookie.
	//
	// +required
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$"
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`

	// TTL is how long the cookie lives that a client without one is given, "0s": for
	// the client's session. Left out, no client is given one.
	//
	// +optional
	TTL *gatewayv1.Duration `json:"ttl,omitempty"`

	// Path of the cookie that a client is given.
	//
	// +optional
	// +kubebuilder:validation:Pattern=`^/[-A-Za-z0-9/._~!$&'()*+,=:@%]*$`
	// +kubebuilder:validation:MaxLength=1024
	Path *string `json:"path,omitempty"`
}

// LocalityPreference says which endpoints are near.
//
// +kubebuilder:validation:Enum=SameZone;SameNode
type LocalityPreference string

// The preferences.
const (
	SameZone LocalityPreference = "SameZone"
	SameNode LocalityPreference = "SameNode"
)

// Locality prefers endpoints that are near.
type Locality struct {
	// Prefer is SameZone, or SameNode and then the same zone. When fewer than seven of
	// ten of the near endpoints are healthy, those further away take the part that is
	// missing.
	//
	// +required
	Prefer LocalityPreference `json:"prefer"`
}

// OutlierDetection takes endpoints out because of their answers.
//
// +kubebuilder:validation:XValidation:message="at least one of consecutive5xx, consecutiveGatewayErrors and consecutiveLocalOriginFailures must be set",rule="has(self.consecutive5xx) || has(self.consecutiveGatewayErrors) || has(self.consecutiveLocalOriginFailures)"
type OutlierDetection struct {
	// Consecutive5xx is how many responses with a status of 500 to 599 in a row take an
	// endpoint out. Of gRPC, the status counts as what it would be in HTTP.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Consecutive5xx *int32 `json:"consecutive5xx,omitempty"`

	// ConsecutiveGatewayErrors is the same for 502, 503 and 504.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	ConsecutiveGatewayErrors *int32 `json:"consecutiveGatewayErrors,omitempty"`

	// ConsecutiveLocalOriginFailures is the same for what the proxy sees itself:
	// connections that fail or are reset, and answers that do not come in time. Left
	// out, these count as 5xx and as gateway errors.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	ConsecutiveLocalOriginFailures *int32 `json:"consecutiveLocalOriginFailures,omitempty"`

	// Interval is how long without an ejection shortens the next by one BaseEjectionTime.
	//
	// +optional
	// +kubebuilder:default="10s"
	Interval *gatewayv1.Duration `json:"interval,omitempty"`

	// BaseEjectionTime is how long the first ejection lasts. The second lasts twice as
	// long, and so on, up to five minutes or this if it is more.
	//
	// +optional
	// +kubebuilder:default="30s"
	BaseEjectionTime *gatewayv1.Duration `json:"baseEjectionTime,omitempty"`

	// MaxEjectionPercent bounds the part of the endpoints that are out at once. One may
	// always be.
	//
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	MaxEjectionPercent *int32 `json:"maxEjectionPercent,omitempty"`
}

// HealthCheck asks each endpoint whether it is well.
//
// +kubebuilder:validation:XValidation:message="exactly one of http, tcp and grpc must be set",rule="[has(self.http), has(self.tcp), has(self.grpc)].filter(x, x).size() == 1"
type HealthCheck struct {
	// HTTP sends a GET by HTTP/1.1.
	//
	// +optional
	HTTP *HTTPHealthCheck `json:"http,omitempty"`

	// TCP opens a connection.
	//
	// +optional
	TCP *TCPHealthCheck `json:"tcp,omitempty"`

	// GRPC calls grpc.health.v1.Health/Check.
	//
	// +optional
	GRPC *GRPCHealthCheck `json:"grpc,omitempty"`

	// Port is asked in place of the endpoint's own.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port *int32 `json:"port,omitempty"`

	// Interval lies between two checks of an endpoint.
	//
	// +optional
	// +kubebuilder:default="10s"
	Interval *gatewayv1.Duration `json:"interval,omitempty"`

	// Timeout bounds one check.
	//
	// +optional
	// +kubebuilder:default="1s"
	Timeout *gatewayv1.Duration `json:"timeout,omitempty"`

	// HealthyThreshold is how many checks in a row must pass before an endpoint that
	// failed is used again. The very first check decides alone, and requests wait for
	// it.
	//
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	HealthyThreshold *int32 `json:"healthyThreshold,omitempty"`

	// UnhealthyThreshold is how many checks in a row must fail before an endpoint is
	// not used any more.
	//
	// +optional
	// +kubebuilder:default=3
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	UnhealthyThreshold *int32 `json:"unhealthyThreshold,omitempty"`
}

// HTTPHealthCheck sends a GET.
//
// +kubebuilder:validation:XValidation:message="minStatus must not be above maxStatus",rule="(has(self.minStatus) ? self.minStatus : 200) <= (has(self.maxStatus) ? self.maxStatus : 299)"
type HTTPHealthCheck struct {
	// Path of the request, with its query.
	//
	// +required
	// +kubebuilder:validation:Pattern=`^/[^ #[:cntrl:]]*$`
	// +kubebuilder:validation:MaxLength=1024
	Path string `json:"path"`

	// Host of the request. Left out, it is SERVICE.NAMESPACE.
	//
	// +optional
	Host *gatewayv1.PreciseHostname `json:"host,omitempty"`

	// MinStatus and maxStatus are the first and last status of a healthy endpoint.
	//
	// +optional
	// +kubebuilder:default=200
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=599
	MinStatus *int32 `json:"minStatus,omitempty"`

	// MaxStatus is the last status of a healthy endpoint.
	//
	// +optional
	// +kubebuilder:default=299
	// +kubebuilder:validation:Minimum=100
	// +kubebuilder:validation:Maximum=599
	MaxStatus *int32 `json:"maxStatus,omitempty"`
}

// TCPHealthCheck opens a connection. It has no fields.
type TCPHealthCheck struct{}

// GRPCHealthCheck calls grpc.health.v1.Health/Check.
type GRPCHealthCheck struct {
	// Service that is asked for. Left out, it is the server as a whole.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Service *string `json:"service,omitempty"`
}

// Limits bound what one node does to the target at once. What is left out is not
// bounded.
type Limits struct {
	// Connections bounds the open connections, over all endpoints. A request that would
	// need another waits if its workload has one to the endpoint, else it is answered
	// with 503 and the reason backend-connection-limit; a raw connection is closed.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Connections *int32 `json:"connections,omitempty"`

	// PendingRequests bounds the requests that wait for a connection. One more is
	// answered with 503 and the reason backend-pending-limit.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	PendingRequests *int32 `json:"pendingRequests,omitempty"`

	// Requests bounds the requests under way. One more is answered with 503 and the
	// reason backend-request-limit.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	Requests *int32 `json:"requests,omitempty"`

	// RequestsPerConnection is after how many requests a connection is replaced.
	//
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	RequestsPerConnection *int32 `json:"requestsPerConnection,omitempty"`
}

// RetryBudget bounds retries by a share of the requests of the last interval.
type RetryBudget struct {
	// Percent is how many retries there may be for each hundred requests.
	//
	// +optional
	// +kubebuilder:default=20
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Percent *int32 `json:"percent,omitempty"`

	// Minimum is how many retries there may be in an interval however few requests
	// there are.
	//
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	Minimum *int32 `json:"minimum,omitempty"`

	// Interval over which both are counted, at least a second.
	//
	// +optional
	// +kubebuilder:default="10s"
	// +kubebuilder:validation:XValidation:message="interval must be between one second and one hour",rule="duration(self) >= duration('1s') && duration(self) <= duration('1h')"
	Interval *gatewayv1.Duration `json:"interval,omitempty"`
}
