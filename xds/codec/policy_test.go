package codec

import (
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	ringhashv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sluice-mesh/sluice/mesh"
)

// encodedCluster encodes a cluster and returns the message that an Envoy would read.
func encodedCluster(t *testing.T, c *mesh.Cluster) *clusterv3.Cluster {
	t.Helper()
	packed, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	m := new(clusterv3.Cluster)
	if err := proto.Unmarshal(packed.Value, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestPolicyIsEnvoys holds what Envoy's documentation says that each field does.
func TestPolicyIsEnvoys(t *testing.T) {
	bare := &mesh.Cluster{Name: "shop/web/80", Service: mesh.Name{Namespace: "shop", Name: "web"}, Port: 80}
	m := encodedCluster(t, bare)
	// Without a word Envoy would allow 1024 of each, and three retries.
	limits := m.GetCircuitBreakers().GetThresholds()[0]
	for name, v := range map[string]uint32{
		"connections": limits.GetMaxConnections().GetValue(), "pending": limits.GetMaxPendingRequests().GetValue(),
		"requests": limits.GetMaxRequests().GetValue(), "retries": limits.GetMaxRetries().GetValue(),
	} {
		if v != unlimited {
			t.Errorf("no policy: at most %d %s", v, name)
		}
	}
	if m.GetLbPolicy() != clusterv3.Cluster_LEAST_REQUEST || m.OutlierDetection != nil || len(m.HealthChecks) != 0 {
		t.Errorf("no policy: %v", m)
	}

	ttl, zero := time.Hour, 0
	full := *bare
	full.Policy = mesh.BackendPolicy{
		Balancer: mesh.BalanceRingHash,
		Hash:     []mesh.HashSource{{Header: "x-user"}, {Cookie: &mesh.HashCookie{Name: "s", TTL: &ttl, Path: "/"}}, {Query: "q"}, {SourceIP: true}},
		Locality: mesh.LocalityZone, PanicPercent: &zero,
		Limits:      mesh.BackendLimits{Connections: 1, PendingRequests: 2, Requests: 3, RequestsPerConnection: 4},
		RetryBudget: &mesh.RetryBudget{Percent: 20, Minimum: 5, Interval: 10 * time.Second},
		Outlier: &mesh.OutlierDetection{
			ConsecutiveGatewayErrors: 3, Interval: time.Second, BaseEjectionTime: time.Second, MaxEjectionTime: time.Minute, MaxEjectionPercent: 50,
		},
		HealthCheck: &mesh.HealthCheck{
			Kind: mesh.CheckHTTP, Path: "/ready", MinStatus: 200, MaxStatus: 299,
			Interval: time.Second, Timeout: time.Second, HealthyThreshold: 2, UnhealthyThreshold: 3,
		},
	}
	m = encodedCluster(t, &full)
	limits = m.GetCircuitBreakers().GetThresholds()[0]
	if limits.GetMaxConnections().GetValue() != 1 || limits.GetMaxPendingRequests().GetValue() != 2 || limits.GetMaxRequests().GetValue() != 3 {
		t.Errorf("limits: %v", limits)
	}
	if b := limits.GetRetryBudget(); b.GetBudgetPercent().GetValue() != 20 || b.GetMinRetryConcurrency().GetValue() != 5 || b.GetBudgetInterval().AsDuration() != 10*time.Second {
		t.Errorf("retry budget: %v", b)
	}
	if m.GetLbPolicy() != clusterv3.Cluster_LOAD_BALANCING_POLICY_CONFIG {
		t.Errorf("lb_policy %v hides load_balancing_policy", m.GetLbPolicy())
	}
	ring := new(ringhashv3.RingHash)
	if err := m.GetLoadBalancingPolicy().GetPolicies()[0].GetTypedExtensionConfig().GetTypedConfig().UnmarshalTo(ring); err != nil {
		t.Fatal(err)
	}
	hash := ring.GetConsistentHashingLbConfig().GetHashPolicy()
	if len(hash) != 4 || hash[0].GetHeader().GetHeaderName() != "x-user" || hash[1].GetCookie().GetTtl().AsDuration() != time.Hour ||
		hash[2].GetQueryParameter().GetName() != "q" || !hash[3].GetConnectionProperties().GetSourceIp() {
		t.Errorf("hash policy: %v", hash)
	}
	o := m.GetOutlierDetection()
	if o.GetEnforcingConsecutiveGatewayFailure().GetValue() != 100 || o.GetEnforcingConsecutive_5Xx().GetValue() != 0 ||
		o.GetEnforcingSuccessRate().GetValue() != 0 || o.EnforcingSuccessRate == nil || o.GetSplitExternalLocalOriginErrors() {
		t.Errorf("outlier detection: %v", o)
	}
	if h := m.GetHealthChecks()[0]; h.GetHttpHealthCheck().GetExpectedStatuses()[0].GetEnd() != 300 {
		t.Errorf("the range of statuses is half open: %v", h)
	}
	if m.GetCommonLbConfig().GetHealthyPanicThreshold().GetValue() != 0 || m.GetCommonLbConfig().GetHealthyPanicThreshold() == nil {
		t.Errorf("panic threshold: %v", m.GetCommonLbConfig())
	}
	options := new(httpv3.HttpProtocolOptions)
	if err := m.GetTypedExtensionProtocolOptions()[upstreamOptions].UnmarshalTo(options); err != nil {
		t.Fatal(err)
	}
	if n := options.GetCommonHttpProtocolOptions().GetMaxRequestsPerConnection().GetValue(); n != 4 {
		t.Errorf("%d requests per connection", n)
	}

	external := *bare
	external.Hostname = "db.example.com"
	m = encodedCluster(t, &external)
	a := m.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress()
	if m.GetType() != clusterv3.Cluster_STRICT_DNS || a.GetAddress() != "db.example.com" || a.GetPortValue() != 80 || m.EdsClusterConfig != nil {
		t.Errorf("external name: %v", m)
	}
}

// TestZonesAreLocalities shows that endpoints of a zone are one locality with a weight.
func TestZonesAreLocalities(t *testing.T) {
	r := newRandom(7)
	c := r.clusterEndpoints()
	for len(c.Endpoints) < 3 {
		c = r.clusterEndpoints()
	}
	m, err := encodeClusterEndpoints(c)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, l := range m.GetEndpoints() {
		if int(l.GetLoadBalancingWeight().GetValue()) != len(l.GetLbEndpoints()) || len(l.GetLbEndpoints()) == 0 {
			t.Errorf("locality %d: weight %v of %d endpoints", i, l.GetLoadBalancingWeight(), len(l.GetLbEndpoints()))
		}
		n += len(l.GetLbEndpoints())
	}
	if n != len(c.Endpoints) {
		t.Errorf("%d endpoints of %d", n, len(c.Endpoints))
	}
}
