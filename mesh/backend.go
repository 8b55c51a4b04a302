package mesh

import "time"

// Balancer says how an endpoint is chosen among those that may take a request.
type Balancer uint8

// The balancers.
const (
	// BalanceLeastRequest takes the one with the fewest requests under way of a few
	// that are chosen at random.
	BalanceLeastRequest Balancer = iota
	BalanceRoundRobin
	BalanceRandom
	// BalanceRingHash sends requests of equal hash to one endpoint as long as it is
	// there (consistent hashing, Karger 1997).
	BalanceRingHash
)

// Locality says which endpoints are taken before others while they are healthy.
type Locality uint8

// The localities.
const (
	LocalityAny Locality = iota
	// LocalityZone prefers endpoints of the node's own zone.
	LocalityZone
	// LocalityNode prefers endpoints of the node itself, then of its zone.
	LocalityNode
)

// BackendPolicy is how the endpoints of a cluster are balanced, watched and spared.
// Its zero value is least request of two, without limits and checks.
type BackendPolicy struct {
	Balancer Balancer
	// Choices is how many endpoints least request compares; zero: two.
	Choices int
	// Hash is what ring hash looks at: the first source that the request has, and
	// whatever follows it. A request that has none goes anywhere.
	Hash []HashSource
	// Affinity keeps a client's address at its endpoint until so long after its last
	// connection or request; zero: not at all. It goes before the balancer.
	Affinity time.Duration
	Locality Locality
	// PanicPercent is the share of healthy endpoints below which health is ignored,
	// because the check is more likely wrong than all endpoints; nil: 50, zero: never.
	PanicPercent *int
	Limits       BackendLimits
	// Outlier, HealthCheck and RetryBudget are nil where there is none.
	Outlier     *OutlierDetection
	HealthCheck *HealthCheck
	RetryBudget *RetryBudget
}

// HashSource is one thing of a request that ring hash looks at; exactly one of
// Header, Cookie, Query and SourceIP is set.
type HashSource struct {
	Header string // lower case
	Cookie *HashCookie
	Query  string
	// SourceIP is the client's address.
	SourceIP bool
}

// HashCookie is a cookie to hash. With a positive TTL, or a zero one, a client that
// has none is given one; nil: it is never given one.
type HashCookie struct {
	Name string
	// TTL is how long the client keeps the cookie; zero: for its session.
	TTL *time.Duration
	// Path of the cookie that is given; empty: none is said.
	Path string
}

// BackendLimits bound what one node's proxy does to a cluster at once. Zero: no bound.
type BackendLimits struct {
	// Connections bounds those that are open, over all endpoints.
	Connections int
	// PendingRequests bounds the requests that wait for a connection.
	PendingRequests int
	// Requests bounds those under way.
	Requests int
	// RequestsPerConnection is after how many a connection is replaced.
	RequestsPerConnection int
}

// OutlierDetection ejects endpoints for a while because of their answers. Zero
// counts switch a detector off.
type OutlierDetection struct {
	// Consecutive5xx is how many responses 500 to 599 in a row eject an endpoint.
	Consecutive5xx int
	// ConsecutiveGatewayErrors is the same for 502, 503 and 504.
	ConsecutiveGatewayErrors int
	// ConsecutiveLocalOriginFailures is the same for what the proxy saw itself: a
	// connection that failed, was reset, or a try that timed out. If zero, these count
	// as 5xx and as gateway errors.
	ConsecutiveLocalOriginFailures int
	// Interval is how often it is looked whether an ejection is over.
	Interval time.Duration
	// BaseEjectionTime is the time of the first ejection; the nth lasts n times that,
	// at most MaxEjectionTime.
	BaseEjectionTime time.Duration
	MaxEjectionTime  time.Duration
	// MaxEjectionPercent bounds the share of ejected endpoints; one may always be.
	MaxEjectionPercent int
}

// HealthCheckKind says how a health check asks.
type HealthCheckKind uint8

// The kinds of health check.
const (
	// CheckTCP connects.
	CheckTCP HealthCheckKind = iota + 1
	// CheckHTTP sends GET by HTTP/1.1.
	CheckHTTP
	// CheckGRPC calls grpc.health.v1.Health/Check.
	CheckGRPC
)

// HealthCheck asks each endpoint again and again.
type HealthCheck struct {
	Kind HealthCheckKind
	// Path and Host are of CheckHTTP; Host empty: the cluster's name.
	Path string
	Host string
	// MinStatus and MaxStatus are the first and last status that is healthy.
	MinStatus, MaxStatus int
	// Service is of CheckGRPC; empty: the server as a whole.
	Service string
	// Port is asked in place of the endpoint's own; zero: the endpoint's.
	Port uint16
	// Interval lies between the end of a check and the begin of the next; Timeout
	// bounds one.
	Interval, Timeout time.Duration
	// HealthyThreshold checks in a row must pass before a failed endpoint counts as
	// healthy, UnhealthyThreshold must fail before a healthy one counts as failed. The
	// first check decides alone.
	HealthyThreshold, UnhealthyThreshold int
}

// RetryBudget bounds the share of retries: in the last Interval there are at most
// Percent of the requests of that time, or Minimum if that is more.
type RetryBudget struct {
	Percent  int
	Minimum  int
	Interval time.Duration
}
