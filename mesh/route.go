package mesh

import (
	"net/netip"
	"time"
)

// VirtualHost is the rules of one hostname in one route table. Tables are never
// sent as a whole: a change of one route costs the virtual hosts that it names.
type VirtualHost struct {
	// Table names the route table, as Chain.RouteTable does.
	Table string
	// Hostname is exact, "*.suffix", or "*" for all. Lower case, without port. The
	// most specific hostname of a table wins; there is no falling back to another
	// virtual host when no rule matches.
	Hostname string
	// Rules by precedence (Gateway API, HTTPRouteRule.matches): the first match wins.
	Rules []Rule
}

// Key returns "TABLE/HOSTNAME", the name of the virtual host in xDS. The hostname
// "*" is written "_", because a name that ends in "/*" subscribes to all of a table.
func (v *VirtualHost) Key() string {
	if v.Hostname == "*" {
		return v.Table + "/_"
	}
	return v.Table + "/" + v.Hostname
}

// Rule is one match of one rule of a route, with what happens then.
type Rule struct {
	// Route is the object that it came from, RouteKind "HTTPRoute" or "GRPCRoute".
	Route     Name
	RouteKind string
	// RuleIndex and MatchIndex are positions in the object's spec; RuleName is the
	// rule's optional name.
	RuleIndex  int
	MatchIndex int
	RuleName   string

	Match   Match
	Filters []Filter
	// Clusters get the requests, by weight. Empty with no redirect: 500
	// (Gateway API: no valid backend).
	Clusters []WeightedCluster
	Timeouts Timeouts
	Retry    *Retry
	// Tracing is nil where the node's default holds.
	Tracing *Tracing
}

// MatchKind says how a path, header or query value is compared.
type MatchKind uint8

// The kinds of match.
const (
	MatchExact MatchKind = iota + 1
	// MatchPrefix compares path elements ("/a" matches "/a/b", not "/ab").
	MatchPrefix
	// MatchRegexp is RE2, anchored at both ends.
	MatchRegexp
)

// Match is the conditions of a rule; all must hold.
type Match struct {
	PathKind MatchKind // zero: any path
	Path     string
	Method   string // empty: any
	Headers  []ValueMatch
	Query    []ValueMatch
}

// ValueMatch is the condition on one header or query parameter.
type ValueMatch struct {
	// Name is lower case for headers and as written for query parameters.
	Name  string
	Kind  MatchKind // MatchExact or MatchRegexp
	Value string
}

// WeightedCluster is a backend of a rule.
type WeightedCluster struct {
	// Cluster names a Cluster. Empty: the backend is invalid and its share of
	// requests is answered with 500 (Gateway API, BackendRef).
	Cluster string
	// Weight is relative to the sum of the rule; zero gets nothing.
	Weight uint32
	// Filters apply to requests of this backend only.
	Filters []Filter
}

// Filter is one step of a rule; exactly one pointer is set.
type Filter struct {
	RequestHeaders  *HeaderEdit
	ResponseHeaders *HeaderEdit
	Redirect        *Redirect
	Rewrite         *Rewrite
	Mirror          *Mirror
	CORS            *CORS
}

// HeaderEdit changes header fields: remove, then set, then add.
type HeaderEdit struct {
	Set    []HeaderValue
	Add    []HeaderValue
	Remove []string // lower case
}

// HeaderValue is a header field; Name is lower case.
type HeaderValue struct{ Name, Value string }

// PathEditKind says what a path edit replaces.
type PathEditKind uint8

// The kinds of path edit.
const (
	PathReplaceFull PathEditKind = iota + 1
	// PathReplacePrefix replaces what the rule's prefix matched.
	PathReplacePrefix
)

// PathEdit replaces a path, or the matched prefix of it.
type PathEdit struct {
	Kind  PathEditKind
	Value string
}

// Redirect answers in place of a backend. Zero fields keep the request's value.
type Redirect struct {
	Scheme   string
	Hostname string
	Path     *PathEdit
	Port     uint16
	Status   int // 301, 302, 303, 307 or 308
}

// Rewrite changes the authority or path that the backend sees.
type Rewrite struct {
	Hostname string
	Path     *PathEdit
}

// Timeouts of a rule; zero means none.
type Timeouts struct {
	// Request bounds the exchange from the request's last byte in to the
	// response's last byte out, retries included (GEP-1742).
	Request time.Duration
	// Backend bounds each try, from its begin to the response's last byte.
	Backend time.Duration
}

// Retry says which failed tries are repeated (GEP-1731): those that cannot have been
// acted on, such as a connection that was refused, those that took longer than
// Timeouts.Backend, and those that ended in silence if the request is idempotent.
type Retry struct {
	// Codes are response status codes that are retried too, whatever the method.
	Codes []int
	// Attempts is the number of tries beyond the first.
	Attempts int
	// Backoff is the least wait before a repeated try.
	Backoff time.Duration
}

// Cluster is a set of endpoints that are spoken to in the same way.
type Cluster struct {
	// Name is "NAMESPACE/SERVICE/PORT".
	Name     string
	Service  Name
	Port     uint16
	Protocol AppProtocol // AppProtocolUnknown: as the client spoke
	// TLS says how connections to the endpoints are encrypted; nil: not by the proxy.
	TLS *UpstreamTLS
	// Hostname is the DNS name whose addresses are the endpoints (ExternalName), or
	// empty: they come as ClusterEndpoints.
	Hostname string
	Policy   BackendPolicy
}

// ClusterEndpoints are the endpoints of a cluster, in the order of addresses.
type ClusterEndpoints struct {
	Cluster   string
	Endpoints []Endpoint
}

// Certificate is a certificate chain with its key, from a Secret of type
// kubernetes.io/tls.
type Certificate struct {
	// Name is "namespace/name".
	Name     string
	ChainPEM []byte
	KeyPEM   PrivateBytes
}

// PrivateBytes never show themselves in logs or dumps.
type PrivateBytes []byte

// String returns "[redacted]".
func (PrivateBytes) String() string { return "[redacted]" }

// GoString returns "[redacted]".
func (PrivateBytes) GoString() string { return "[redacted]" }

// MarshalText returns "[redacted]".
func (PrivateBytes) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// MarshalJSON returns the string "[redacted]".
func (PrivateBytes) MarshalJSON() ([]byte, error) { return []byte(`"[redacted]"`), nil }

// GatewayFrontend is an address of a Gateway that nodes must accept
// connections for; the dataplane needs no more of it.
type GatewayFrontend struct {
	// Listener is the Listener's name.
	Listener string
	AddrPort netip.AddrPort
}
