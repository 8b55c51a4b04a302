package admin

import (
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// Status is what one process says of itself, GET /status.
type Status struct {
	Component Component `json:"component"`
	// Features are abilities of the kernel, told by the agent.
	Features []Feature `json:"features,omitempty"`
	// Maps are the kernel maps that have a limit, told by the agent.
	Maps []MapUsage `json:"maps,omitempty"`
	// Counts are how many there are of each thing, in the order to show them in.
	Counts []Count `json:"counts,omitempty"`
	// XDS is the state of the process's xDS streams: on the node one entry for each
	// client and type, elsewhere one for each type.
	XDS []XDSType `json:"xds,omitempty"`
	// Losses count events that nobody could record since the process started.
	Losses []Loss `json:"losses,omitempty"`
}

// Component is one running process.
type Component struct {
	Name    Process   `json:"name"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Version string    `json:"version"`
	// OK says that the process does its work; Detail says in a sentence what is
	// wrong, or what it waits for.
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Feature is an ability of the kernel.
type Feature struct {
	Name string `json:"name"`
	// Needed says that the node cannot work without.
	Needed bool   `json:"needed"`
	Have   bool   `json:"have"`
	Detail string `json:"detail,omitempty"`
}

// MapUsage says how full a kernel map is.
type MapUsage struct {
	Name    string `json:"name"`
	Entries uint64 `json:"entries"`
	Max     uint64 `json:"max"`
}

// Count is a number of things, such as {"workloads", 12}.
type Count struct {
	Name  string `json:"name"`
	Value int    `json:"value"`
}

// Loss is a number of events that could not be recorded. Source is one of the
// words of flow.Flow.LostSource: "kernel", "proxy" or "ring".
type Loss struct {
	Source string `json:"source"`
	Events uint64 `json:"events"`
}

// XDSType is the state of one type of resource on one xDS stream.
type XDSType struct {
	// Client names the process at the other end, as the server knows it; empty in
	// the answer of a client.
	Client string `json:"client,omitempty"`
	// Type is the last part of the type URL, such as "Listener".
	Type string `json:"type"`
	// Version is what was sent last, or received last in the answer of a client;
	// empty where each resource has a version of its own.
	Version string `json:"version,omitempty"`
	// Acked is the last version that the client took.
	Acked string `json:"acked,omitempty"`
	// Pending are how many changes were not yet sent or not yet answered.
	Pending int `json:"pending,omitempty"`
	// Nacked is what the client refused last, a version or a resource with its
	// version; empty when the refusal was overcome. Error says why.
	Nacked string `json:"nacked,omitempty"`
	Error  string `json:"error,omitempty"`
	// Resources are how many the client has of the type.
	Resources int       `json:"resources"`
	Changed   time.Time `json:"changed,omitzero"`
}

// Workload is one workload of the mesh, GET /workloads of the agent.
type Workload struct {
	Name           mesh.Name         `json:"name"`
	ServiceAccount string            `json:"service_account,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Node           string            `json:"node,omitempty"`
	Addresses      []netip.Addr      `json:"addresses"`
	Ready          bool              `json:"ready"`
	// Local workloads run on this node; only they have the fields below.
	Local   bool      `json:"local"`
	PID     int       `json:"pid,omitempty"`
	Cgroup  string    `json:"cgroup,omitempty"`
	Command []string  `json:"command,omitempty"`
	Started time.Time `json:"started,omitzero"`
}

// Service is a service as the node knows it, GET /services of the agent.
type Service struct {
	Name         mesh.Name     `json:"name"`
	VIPs         []netip.Addr  `json:"vips,omitempty"`
	Headless     bool          `json:"headless,omitempty"`
	ExternalName string        `json:"external_name,omitempty"`
	Ports        []ServicePort `json:"ports,omitempty"`
	// AffinitySeconds is zero without session affinity.
	AffinitySeconds int `json:"affinity_seconds,omitempty"`
}

// ServicePort is a port of a service.
type ServicePort struct {
	Name        string           `json:"name,omitempty"`
	Port        uint16           `json:"port"`
	Protocol    mesh.Protocol    `json:"protocol"`
	AppProtocol mesh.AppProtocol `json:"app_protocol,omitempty"`
	// Steered says that connections go through the node proxy; otherwise the kernel
	// alone serves them.
	Steered   bool       `json:"steered"`
	Endpoints []Endpoint `json:"endpoints"`
}

// Endpoint is an address behind a port of a service or behind a cluster.
type Endpoint struct {
	Address  netip.AddrPort `json:"address"`
	Workload mesh.Name      `json:"workload,omitzero"`
	Node     string         `json:"node,omitempty"`
	// Ready says that it may get new connections.
	Ready bool `json:"ready"`
}

// Condition is a condition of a Gateway API object.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"` // True, False or Unknown
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// Route is an HTTPRoute or GRPCRoute with its status, GET /routes of the node.
type Route struct {
	Kind      string        `json:"kind"`
	Name      mesh.Name     `json:"name"`
	Hostnames []string      `json:"hostnames,omitempty"`
	Parents   []RouteParent `json:"parents"`
	Rules     int           `json:"rules"`
	// Source is the file that the object came from, if it came from a file.
	Source string `json:"source,omitempty"`
}

// RouteParent is what a route is attached to, with the conditions of that.
type RouteParent struct {
	// Ref is "Kind/namespace/name", with "/section" or ":port" where the route names
	// one.
	Ref        string      `json:"ref"`
	Conditions []Condition `json:"conditions,omitempty"`
}

// Gateway is a Gateway with its status, GET /gateways of the node.
type Gateway struct {
	Name       mesh.Name         `json:"name"`
	Class      string            `json:"class"`
	Addresses  []string          `json:"addresses,omitempty"`
	Listeners  []GatewayListener `json:"listeners"`
	Conditions []Condition       `json:"conditions,omitempty"`
	Source     string            `json:"source,omitempty"`
	// ListenerSets are those that name the Gateway as their parent, by name.
	ListenerSets []ListenerSet `json:"listener_sets,omitempty"`
}

// ListenerSet is a ListenerSet with its listeners.
type ListenerSet struct {
	Name       mesh.Name         `json:"name"`
	Listeners  []GatewayListener `json:"listeners"`
	Conditions []Condition       `json:"conditions,omitempty"`
}

// GatewayListener is one listener of a Gateway or of a ListenerSet.
type GatewayListener struct {
	Name           string      `json:"name"`
	Port           uint16      `json:"port"`
	Protocol       string      `json:"protocol"` // HTTP, HTTPS, TLS, TCP or UDP
	Hostname       string      `json:"hostname,omitempty"`
	AttachedRoutes int         `json:"attached_routes"`
	Conditions     []Condition `json:"conditions,omitempty"`
}

// Backend is an endpoint that the proxy sends to, GET /backends of the proxy.
type Backend struct {
	Cluster  string         `json:"cluster"` // "NAMESPACE/SERVICE/PORT"
	Endpoint netip.AddrPort `json:"endpoint"`
	Workload mesh.Name      `json:"workload,omitzero"`
	// State is "healthy", "unchecked", "failed" or "ejected"; Why says why it is not healthy.
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
}

// Connection is a connection that the proxy holds, GET /connections of the proxy.
type Connection struct {
	// ID stays the connection's as long as the proxy runs, and is no other's.
	ID uint64 `json:"id"`
	// Kind is "outbound" for a workload's own connection and "ingress" for one that
	// a Gateway took.
	Kind   string         `json:"kind"`
	Client netip.AddrPort `json:"client"`
	// Workload is the client, where it is known.
	Workload mesh.Name `json:"workload,omitzero"`
	// Original is what the client dialled, Service what that address stands for.
	Original netip.AddrPort `json:"original"`
	Service  mesh.Name      `json:"service,omitzero"`
	Protocol string         `json:"protocol"`      // "HTTP/1.1", "HTTP/2", "TCP", or "" until it is known
	TLS      *ConnectionTLS `json:"tls,omitempty"` // null: plain text, or not the proxy's to end
	Requests uint64         `json:"requests"`
	// BytesIn and BytesOut are the payload of TCP from and to the client, ciphertext
	// where there is TLS, as the kernel counts it.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Buffered is what the proxy holds for it in bytes that could not be sent on yet.
	Buffered uint64    `json:"buffered_bytes"`
	Started  time.Time `json:"started"`
	// Idle is how long nothing has moved, in nanoseconds.
	Idle time.Duration `json:"idle_ns,omitempty"`
}

// ConnectionTLS is what the handshake with a client agreed on; its fields are empty
// until that is done.
type ConnectionTLS struct {
	Version    string `json:"version,omitempty"` // "TLS 1.3"
	Cipher     string `json:"cipher,omitempty"`
	ALPN       string `json:"alpn,omitempty"`
	ServerName string `json:"server_name,omitempty"`
}

// ExplainRequest asks which rule a request would meet, POST /explain of the proxy.
type ExplainRequest struct {
	Method string `json:"method"`
	// URL is absolute: its host and port name a service or a Gateway, or its
	// address.
	URL     string   `json:"url"`
	Headers []Header `json:"headers,omitempty"`
	// From is the workload that asks; zero: a client outside of the mesh.
	From mesh.Name `json:"from,omitzero"`
}

// Header is a header field of a request.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Explanation says how the proxy would treat a request, and why.
type Explanation struct {
	Request ExplainRequest `json:"request"`
	// Listener that takes the connection; empty when none does, and the connection
	// never meets the proxy: then Detail says what happens to it.
	Listener string `json:"listener,omitempty"`
	// Table of routes that applies, and the hostname in it that the request meets.
	Table string `json:"table,omitempty"`
	Host  string `json:"host,omitempty"`
	// Considered are the rules in the order in which they were tried; the last one
	// is the winner if any is.
	Considered []ConsideredRule `json:"considered,omitempty"`
	// Winner is the position in Considered of the rule that applies, or -1.
	Winner int `json:"winner"`
	// Filters that change the request or answer it, in words.
	Filters []string `json:"filters,omitempty"`
	// Limits are the rule's timeouts and retries, in words.
	Limits []string `json:"limits,omitempty"`
	// Location is where the request is redirected to. Authority and Path are what the
	// backend sees of a request that is forwarded, before the filters of the backend.
	Location  string `json:"location,omitempty"`
	Authority string `json:"authority,omitempty"`
	Path      string `json:"path,omitempty"`
	// Clusters are where it goes, with weights; empty when it is refused or answered
	// by the proxy.
	Clusters []ExplainedCluster `json:"clusters,omitempty"`
	// Status is the answer of the proxy itself, for a refusal or a redirect, else 0.
	Status int `json:"status,omitempty"`
	// Reason is the flow.Reason word of a refusal.
	Reason string `json:"reason,omitempty"`
	Detail string `json:"detail,omitempty"`
}

// ConsideredRule is one match of a rule that was tried.
type ConsideredRule struct {
	// Route is "Kind/namespace/name", Rule and Match are positions in it.
	Route string `json:"route"`
	Rule  int    `json:"rule"`
	Match int    `json:"match"`
	Name  string `json:"name,omitempty"`
	// Conditions are the match in words, such as "path prefix /reviews".
	Conditions string `json:"conditions,omitempty"`
	Matched    bool   `json:"matched"`
	// Why says which condition failed, empty if none did.
	Why string `json:"why,omitempty"`
}

// ExplainedCluster is a backend of the rule that applies.
type ExplainedCluster struct {
	Name   string `json:"name"`
	Weight uint32 `json:"weight"`
	// Share of the requests, 0 to 1.
	Share     float64    `json:"share"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// Filters of the backend alone, in words.
	Filters []string `json:"filters,omitempty"`
}

// LogLevels is the answer of GET /loglevel.
type LogLevels struct {
	Default    string     `json:"default"`
	Components []LogLevel `json:"components,omitempty"`
}

// LogLevel is the level of one component of a process's log, and the body of PUT
// /loglevel.
type LogLevel struct {
	// Component is empty for the default of the process.
	Component string `json:"component,omitempty"`
	// Level is debug, info, warn or error, or one of these with an offset as
	// log/slog writes it ("DEBUG+2"). PUT with an empty level lets the component
	// follow the default again.
	Level string `json:"level"`
	// Own says that the component has a level of its own.
	Own bool `json:"own,omitempty"`
}

// Problem is the body of every answer that is not 2xx.
type Problem struct {
	Error string `json:"error"`
}
