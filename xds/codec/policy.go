package codec

import (
	"errors"
	"fmt"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	lbv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	ringhashv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
)

// ringHashPolicy is the name of Envoy's ring hash extension.
const ringHashPolicy = "envoy.load_balancing_policies.ring_hash"

// unlimited stands where Envoy would use a default limit of its own (1024) if nothing
// were said.
const unlimited = math.MaxUint32

// dnsRefreshRate is how often Envoy resolves a name whose answer has no TTL.
const dnsRefreshRate = 5 * time.Second

// encodeHostname makes m resolve c.Hostname.
func encodeHostname(c *mesh.Cluster, m *clusterv3.Cluster) error {
	if len(c.Hostname) > 253 {
		return errors.New("is longer than a DNS name")
	}
	m.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	m.EdsClusterConfig = nil
	// Their replacement, the cluster type envoy.clusters.dns, is not in the Envoys that
	// are still maintained.
	m.RespectDnsTtl = true                            //nolint:staticcheck // see above
	m.DnsRefreshRate = durationpb.New(dnsRefreshRate) //nolint:staticcheck // see above
	m.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	m.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: c.Name,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Hostname: c.Hostname,
				Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
					Address: c.Hostname, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(c.Port)},
				}}},
			}},
		}}}},
	}
	return nil
}

func decodeHostname(m *clusterv3.Cluster) (string, error) {
	if l := m.GetLoadAssignment().GetEndpoints(); len(l) == 1 && len(l[0].GetLbEndpoints()) == 1 {
		if name := l[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress(); name != "" {
			return name, nil
		}
	}
	return "", at("load_assignment", "not one DNS name")
}

// encodePolicy writes a policy; what Envoy has no field for goes to fields.
func encodePolicy(p *mesh.BackendPolicy, m *clusterv3.Cluster, options *httpv3.HttpProtocolOptions, fields map[string]*structpb.Value) error {
	if err := encodeBalancer(p, m, fields); err != nil {
		return err
	}
	switch p.Locality {
	case mesh.LocalityAny:
	case mesh.LocalityZone:
		fields["locality"] = structpb.NewStringValue("zone")
	case mesh.LocalityNode:
		fields["locality"] = structpb.NewStringValue("node")
	default:
		return at("Locality", "%d is not known", p.Locality)
	}
	if p.PanicPercent != nil {
		if err := percent(*p.PanicPercent); err != nil {
			return below("PanicPercent", err)
		}
		m.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: float64(*p.PanicPercent)}}
	}
	if p.Locality != mesh.LocalityAny {
		if m.CommonLbConfig == nil {
			m.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{}
		}
		m.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig_{
			ZoneAwareLbConfig: &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig{MinClusterSize: wrapperspb.UInt64(1)},
		}
	}
	if err := encodeLimits(p, m, options); err != nil {
		return err
	}
	if err := encodeOutlier(p.Outlier, m); err != nil {
		return below("Outlier", err)
	}
	return below("HealthCheck", encodeHealthCheck(p.HealthCheck, m))
}

func encodeBalancer(p *mesh.BackendPolicy, m *clusterv3.Cluster, fields map[string]*structpb.Value) error {
	if p.Choices != 0 && (p.Balancer != mesh.BalanceLeastRequest || p.Choices < 2 || p.Choices > math.MaxUint16) {
		return at("Choices", "%d makes no sense", p.Choices)
	}
	if (len(p.Hash) > 0) != (p.Balancer == mesh.BalanceRingHash) {
		return at("Hash", "set without ring hash, or missing")
	}
	switch p.Balancer {
	case mesh.BalanceLeastRequest:
		if p.Choices != 0 {
			m.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{
				LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{ChoiceCount: wrapperspb.UInt32(uint32(p.Choices))},
			}
		}
	case mesh.BalanceRoundRobin:
		m.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case mesh.BalanceRandom:
		m.LbPolicy = clusterv3.Cluster_RANDOM
	case mesh.BalanceRingHash:
		return encodeRing(p, m)
	default:
		return at("Balancer", "%d is not known", p.Balancer)
	}
	if p.Affinity < 0 {
		return at("Affinity", "negative")
	}
	if p.Affinity > 0 {
		// Envoy keeps no table of clients: its nearest is a hash of the address.
		fields["affinity_timeout"] = structpb.NewStringValue(p.Affinity.String())
		fields["balancer"] = structpb.NewStringValue(balancers[p.Balancer])
		if p.Choices != 0 {
			fields["choices"] = structpb.NewNumberValue(float64(p.Choices))
		}
		m.LbConfig = nil
		return below("Affinity", encodeRing(&mesh.BackendPolicy{Hash: []mesh.HashSource{{SourceIP: true}}}, m))
	}
	return nil
}

var balancers = map[mesh.Balancer]string{
	mesh.BalanceLeastRequest: "least_request", mesh.BalanceRoundRobin: "round_robin", mesh.BalanceRandom: "random",
}

func encodeRing(p *mesh.BackendPolicy, m *clusterv3.Cluster) error {
	if p.Affinity != 0 {
		return at("Affinity", "set together with ring hash")
	}
	config := &lbv3.ConsistentHashingLbConfig{}
	for i := range p.Hash {
		h, err := encodeHash(&p.Hash[i])
		if err != nil {
			return below(fmt.Sprintf("Hash[%d]", i), err)
		}
		config.HashPolicy = append(config.HashPolicy, h)
	}
	packed, err := pack(&ringhashv3.RingHash{
		HashFunction:              ringhashv3.RingHash_XX_HASH,
		ConsistentHashingLbConfig: config,
		MinimumRingSize:           wrapperspb.UInt64(1024),
		MaximumRingSize:           wrapperspb.UInt64(8 << 20),
	})
	if err != nil {
		return err
	}
	m.LbPolicy = clusterv3.Cluster_LOAD_BALANCING_POLICY_CONFIG
	m.LoadBalancingPolicy = &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &corev3.TypedExtensionConfig{Name: ringHashPolicy, TypedConfig: packed},
	}}}
	return nil
}

func encodeHash(h *mesh.HashSource) (*routev3.RouteAction_HashPolicy, error) {
	out := new(routev3.RouteAction_HashPolicy)
	n := 0
	if h.Header != "" {
		n++
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: h.Header}}
	}
	if c := h.Cookie; c != nil {
		n++
		cookie := &routev3.RouteAction_HashPolicy_Cookie{Name: c.Name, Path: c.Path}
		if c.TTL != nil {
			cookie.Ttl = durationpb.New(*c.TTL)
		}
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: cookie}
	}
	if h.Query != "" {
		n++
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: h.Query}}
	}
	if h.SourceIP {
		n++
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	}
	if n != 1 {
		return nil, errors.New("not exactly one source")
	}
	return out, nil
}

func percent(n int) error {
	if n < 0 || n > 100 {
		return fmt.Errorf("%d is no percentage", n)
	}
	return nil
}

// bound writes a limit, zero as none.
func bound(n int) (*wrapperspb.UInt32Value, error) {
	if n < 0 || n >= unlimited {
		return nil, fmt.Errorf("%d makes no sense", n)
	}
	if n == 0 {
		return wrapperspb.UInt32(unlimited), nil
	}
	return wrapperspb.UInt32(uint32(n)), nil
}

func encodeLimits(p *mesh.BackendPolicy, m *clusterv3.Cluster, options *httpv3.HttpProtocolOptions) error {
	t := &clusterv3.CircuitBreakers_Thresholds{MaxRetries: wrapperspb.UInt32(unlimited)}
	for _, l := range []struct {
		field string
		n     int
		to    **wrapperspb.UInt32Value
	}{
		{"Connections", p.Limits.Connections, &t.MaxConnections},
		{"PendingRequests", p.Limits.PendingRequests, &t.MaxPendingRequests},
		{"Requests", p.Limits.Requests, &t.MaxRequests},
	} {
		var err error
		if *l.to, err = bound(l.n); err != nil {
			return below("Limits."+l.field, err)
		}
	}
	if b := p.RetryBudget; b != nil {
		if err := percent(b.Percent); err != nil {
			return below("RetryBudget.Percent", err)
		}
		if b.Minimum < 0 || b.Minimum >= unlimited || b.Interval < 0 {
			return at("RetryBudget", "negative or too large")
		}
		t.MaxRetries = nil
		t.RetryBudget = &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: float64(b.Percent)},
			MinRetryConcurrency: wrapperspb.UInt32(uint32(b.Minimum)),
			BudgetInterval:      durationpb.New(b.Interval),
		}
	}
	m.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{t}}
	switch n := p.Limits.RequestsPerConnection; {
	case n < 0 || n >= unlimited:
		return at("Limits.RequestsPerConnection", "%d makes no sense", n)
	case n > 0:
		options.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxRequestsPerConnection: wrapperspb.UInt32(uint32(n))}
	}
	return nil
}

func encodeOutlier(o *mesh.OutlierDetection, m *clusterv3.Cluster) error {
	if o == nil {
		return nil
	}
	if err := percent(o.MaxEjectionPercent); err != nil {
		return below("MaxEjectionPercent", err)
	}
	for _, d := range []time.Duration{o.Interval, o.BaseEjectionTime, o.MaxEjectionTime} {
		if d <= 0 {
			return errors.New("a time is not positive")
		}
	}
	none := wrapperspb.UInt32(0)
	out := &clusterv3.OutlierDetection{
		Interval:           durationpb.New(o.Interval),
		BaseEjectionTime:   durationpb.New(o.BaseEjectionTime),
		MaxEjectionTime:    durationpb.New(o.MaxEjectionTime),
		MaxEjectionPercent: wrapperspb.UInt32(uint32(o.MaxEjectionPercent)),
		AlwaysEjectOneHost: wrapperspb.Bool(true),
		// A check that passes says nothing of the answers that others had.
		SuccessfulActiveHealthCheckUnejectHost: wrapperspb.Bool(false),
		// Envoy's other detectors are on unless they are switched off.
		EnforcingSuccessRate:                   none,
		EnforcingLocalOriginSuccessRate:        none,
		EnforcingFailurePercentage:             none,
		EnforcingFailurePercentageLocalOrigin:  none,
		EnforcingConsecutive_5Xx:               none,
		EnforcingConsecutiveGatewayFailure:     none,
		EnforcingConsecutiveLocalOriginFailure: none,
	}
	all := wrapperspb.UInt32(100)
	for _, d := range []struct {
		field          string
		n              int
		count, enforce **wrapperspb.UInt32Value
	}{
		{"Consecutive5xx", o.Consecutive5xx, &out.Consecutive_5Xx, &out.EnforcingConsecutive_5Xx},
		{"ConsecutiveGatewayErrors", o.ConsecutiveGatewayErrors, &out.ConsecutiveGatewayFailure, &out.EnforcingConsecutiveGatewayFailure},
		{"ConsecutiveLocalOriginFailures", o.ConsecutiveLocalOriginFailures, &out.ConsecutiveLocalOriginFailure, &out.EnforcingConsecutiveLocalOriginFailure},
	} {
		if d.n < 0 || d.n >= unlimited {
			return at(d.field, "%d makes no sense", d.n)
		}
		if d.n > 0 {
			*d.count, *d.enforce = wrapperspb.UInt32(uint32(d.n)), all
		}
	}
	out.SplitExternalLocalOriginErrors = o.ConsecutiveLocalOriginFailures > 0
	m.OutlierDetection = out
	return nil
}

func encodeHealthCheck(h *mesh.HealthCheck, m *clusterv3.Cluster) error {
	if h == nil {
		return nil
	}
	if h.Interval <= 0 || h.Timeout <= 0 || h.HealthyThreshold < 1 || h.UnhealthyThreshold < 1 {
		return errors.New("a time or threshold is not positive")
	}
	out := &corev3.HealthCheck{
		Interval: durationpb.New(h.Interval), Timeout: durationpb.New(h.Timeout),
		HealthyThreshold:   wrapperspb.UInt32(uint32(h.HealthyThreshold)),
		UnhealthyThreshold: wrapperspb.UInt32(uint32(h.UnhealthyThreshold)),
		// A check of its own connection sees what a new client would.
		ReuseConnection: wrapperspb.Bool(false),
	}
	if h.Port != 0 {
		out.AltPort = wrapperspb.UInt32(uint32(h.Port))
	}
	if h.Kind != mesh.CheckHTTP && (h.Path != "" || h.Host != "" || h.MinStatus != 0 || h.MaxStatus != 0) || h.Kind != mesh.CheckGRPC && h.Service != "" {
		return errors.New("a field of another kind of check is set")
	}
	switch h.Kind {
	case mesh.CheckTCP:
		out.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
	case mesh.CheckHTTP:
		if h.MinStatus < 100 || h.MaxStatus < h.MinStatus || h.MaxStatus > 599 {
			return at("MinStatus", "%d to %d is no range of status codes", h.MinStatus, h.MaxStatus)
		}
		out.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{
			Path: h.Path, Host: h.Host,
			ExpectedStatuses: []*typev3.Int64Range{{Start: int64(h.MinStatus), End: int64(h.MaxStatus) + 1}},
			// Without these one other status would be enough, whatever the threshold.
			RetriableStatuses: []*typev3.Int64Range{{Start: 100, End: 600}},
		}}
	case mesh.CheckGRPC:
		out.HealthChecker = &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{ServiceName: h.Service}}
	default:
		return at("Kind", "%d is not known", h.Kind)
	}
	m.HealthChecks = []*corev3.HealthCheck{out}
	return nil
}

// decodePolicy reads what encodePolicy writes. What it does not read, or reads
// differently, is found by the comparison with the second encoding.
func decodePolicy(m *clusterv3.Cluster, options *httpv3.HttpProtocolOptions, p *mesh.BackendPolicy) error {
	fields := metadataFields(m.GetMetadata())
	if err := decodeBalancer(m, fields, p); err != nil {
		return err
	}
	switch l := fields["locality"].GetStringValue(); l {
	case "":
	case "zone":
		p.Locality = mesh.LocalityZone
	case "node":
		p.Locality = mesh.LocalityNode
	default:
		return at("metadata", "locality %q is not known", l)
	}
	if t := m.GetCommonLbConfig().GetHealthyPanicThreshold(); t != nil {
		n := int(t.GetValue())
		p.PanicPercent = &n
	}
	if t := m.GetCircuitBreakers().GetThresholds(); len(t) > 0 {
		p.Limits.Connections = limit(t[0].GetMaxConnections())
		p.Limits.PendingRequests = limit(t[0].GetMaxPendingRequests())
		p.Limits.Requests = limit(t[0].GetMaxRequests())
		if b := t[0].GetRetryBudget(); b != nil {
			p.RetryBudget = &mesh.RetryBudget{
				Percent: int(b.GetBudgetPercent().GetValue()), Minimum: int(b.GetMinRetryConcurrency().GetValue()),
				Interval: b.GetBudgetInterval().AsDuration(),
			}
		}
	}
	p.Limits.RequestsPerConnection = int(options.GetCommonHttpProtocolOptions().GetMaxRequestsPerConnection().GetValue())
	if o := m.GetOutlierDetection(); o != nil {
		p.Outlier = &mesh.OutlierDetection{
			Interval: o.GetInterval().AsDuration(), BaseEjectionTime: o.GetBaseEjectionTime().AsDuration(),
			MaxEjectionTime: o.GetMaxEjectionTime().AsDuration(), MaxEjectionPercent: int(o.GetMaxEjectionPercent().GetValue()),
			Consecutive5xx:                 int(o.GetConsecutive_5Xx().GetValue()),
			ConsecutiveGatewayErrors:       int(o.GetConsecutiveGatewayFailure().GetValue()),
			ConsecutiveLocalOriginFailures: int(o.GetConsecutiveLocalOriginFailure().GetValue()),
		}
	}
	return decodeHealthCheck(m, p)
}

func limit(v *wrapperspb.UInt32Value) int {
	if v.GetValue() == unlimited {
		return 0
	}
	return int(v.GetValue())
}

func decodeBalancer(m *clusterv3.Cluster, fields map[string]*structpb.Value, p *mesh.BackendPolicy) error {
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_LEAST_REQUEST:
		p.Choices = int(m.GetLeastRequestLbConfig().GetChoiceCount().GetValue())
		return nil
	case clusterv3.Cluster_ROUND_ROBIN:
		p.Balancer = mesh.BalanceRoundRobin
		return nil
	case clusterv3.Cluster_RANDOM:
		p.Balancer = mesh.BalanceRandom
		return nil
	case clusterv3.Cluster_LOAD_BALANCING_POLICY_CONFIG:
	default:
		return at("lb_policy", "%w", errUnsupported)
	}
	policies := m.GetLoadBalancingPolicy().GetPolicies()
	if len(policies) != 1 {
		return at("load_balancing_policy", "%w", errUnsupported)
	}
	ring := new(ringhashv3.RingHash)
	if err := unpack(policies[0].GetTypedExtensionConfig().GetTypedConfig(), ring); err != nil {
		return below("load_balancing_policy.policies[0]", err)
	}
	if t := fields["affinity_timeout"]; t != nil {
		var err error
		if p.Affinity, err = time.ParseDuration(t.GetStringValue()); err != nil || p.Affinity <= 0 {
			return at("metadata", "affinity_timeout %q is no time", t.GetStringValue())
		}
		word := fields["balancer"].GetStringValue()
		for b, w := range balancers {
			if w == word {
				p.Balancer = b
				p.Choices = int(fields["choices"].GetNumberValue())
				return nil
			}
		}
		return at("metadata", "balancer %q is not known", word)
	}
	p.Balancer = mesh.BalanceRingHash
	for i, h := range ring.GetConsistentHashingLbConfig().GetHashPolicy() {
		var s mesh.HashSource
		switch {
		case h.GetHeader() != nil:
			s.Header = h.GetHeader().GetHeaderName()
		case h.GetCookie() != nil:
			c := h.GetCookie()
			s.Cookie = &mesh.HashCookie{Name: c.GetName(), Path: c.GetPath()}
			if c.GetTtl() != nil {
				ttl := c.GetTtl().AsDuration()
				s.Cookie.TTL = &ttl
			}
		case h.GetQueryParameter() != nil:
			s.Query = h.GetQueryParameter().GetName()
		case h.GetConnectionProperties().GetSourceIp():
			s.SourceIP = true
		default:
			return at(fmt.Sprintf("load_balancing_policy.policies[0].hash_policy[%d]", i), "%w", errUnsupported)
		}
		p.Hash = append(p.Hash, s)
	}
	return nil
}

func decodeHealthCheck(m *clusterv3.Cluster, p *mesh.BackendPolicy) error {
	switch len(m.GetHealthChecks()) {
	case 0:
		return nil
	case 1:
	default:
		return at("health_checks[1]", "%w", errUnsupported)
	}
	in := m.GetHealthChecks()[0]
	out := &mesh.HealthCheck{
		Interval: in.GetInterval().AsDuration(), Timeout: in.GetTimeout().AsDuration(),
		HealthyThreshold: int(in.GetHealthyThreshold().GetValue()), UnhealthyThreshold: int(in.GetUnhealthyThreshold().GetValue()),
	}
	var err error
	if out.Port, err = port(in.GetAltPort().GetValue()); err != nil {
		return below("health_checks[0].alt_port", err)
	}
	switch {
	case in.GetTcpHealthCheck() != nil:
		out.Kind = mesh.CheckTCP
	case in.GetHttpHealthCheck() != nil:
		h := in.GetHttpHealthCheck()
		out.Kind, out.Path, out.Host = mesh.CheckHTTP, h.GetPath(), h.GetHost()
		if s := h.GetExpectedStatuses(); len(s) == 1 {
			out.MinStatus, out.MaxStatus = int(s[0].GetStart()), int(s[0].GetEnd())-1
		}
	case in.GetGrpcHealthCheck() != nil:
		out.Kind, out.Service = mesh.CheckGRPC, in.GetGrpcHealthCheck().GetServiceName()
	}
	p.HealthCheck = out
	return nil
}
