package flow

import (
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
)

// Verdict is what was decided.
type Verdict uint8

// The verdicts, in the words of Hubble's flow.Verdict.
const (
	VerdictForwarded  Verdict = 1 // the bytes or the request went on
	VerdictDropped    Verdict = 2 // refused on purpose; Reason says why
	VerdictError      Verdict = 3 // meant to go on, and failed; Reason says why
	VerdictRedirected Verdict = 5 // steered into the node proxy
	VerdictTranslated Verdict = 7 // a service address became an endpoint, in the kernel
)

// Type is the layer at which something was seen.
type Type uint8

// The types of flow.
const (
	TypeSocket Type = 1 // a connect or sendmsg, seen at the socket by the kernel
	TypeTCP    Type = 2 // a connection that the proxy carried as bytes, when it ended
	TypeHTTP   Type = 3 // a request and its response, when it ended
	TypeDNS    Type = 4 // a DNS query and its answer
	TypeLost   Type = 5 // Lost events that nobody could record
	TypeUDP    Type = 7 // a client's UDP flow through a Gateway, when it ended
	TypeHealth Type = 6 // an endpoint (Destination) began or ceased to be healthy for the proxy
)

// The words of Flow.LostSource.
const (
	LostByKernel = "kernel" // the kernel programs' event buffer was full
	LostByProxy  = "proxy"  // the node proxy could not hand them to the agent
	LostByRing   = "ring"   // they were overwritten before a reader got to them
	// LostByRestart is the word of a client whose agent restarted while it followed:
	// what the kernel saw meanwhile is lost, nobody knows how much, and Lost is zero.
	LostByRestart = "restart"
)

// Peer is one side of a flow. Unknown fields are zero.
type Peer struct {
	AddrPort netip.AddrPort    `json:"address,omitzero"`
	Workload mesh.Name         `json:"workload,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Service is the service or gateway that was dialled, on the destination only.
	Service mesh.Name `json:"service,omitzero"`
}

// Flow is one record. It is immutable once it was added to a ring.
type Flow struct {
	Time    time.Time `json:"time"` // when it ended
	Node    string    `json:"node,omitempty"`
	Type    Type      `json:"type"`
	Verdict Verdict   `json:"verdict,omitempty"`
	Reason  Reason    `json:"reason,omitempty"`
	// Detail is free text that helps a person, such as an errno's name.
	Detail string `json:"detail,omitempty"`

	Source      Peer          `json:"source,omitzero"`
	Destination Peer          `json:"destination,omitzero"`
	Protocol    mesh.Protocol `json:"protocol,omitempty"`
	// Original is what the client dialled, where that differs from Destination.AddrPort.
	Original netip.AddrPort `json:"original,omitzero"`
	// Ingress says that a Gateway's listener took the connection.
	Ingress bool `json:"ingress,omitempty"`

	BytesIn  uint64        `json:"bytes_in,omitempty"`  // from the client, bodies or raw bytes
	BytesOut uint64        `json:"bytes_out,omitempty"` // to the client
	Duration time.Duration `json:"duration_ns,omitempty"`

	HTTP *HTTP  `json:"http,omitempty"`
	DNS  *DNS   `json:"dns,omitempty"`
	Lost uint64 `json:"lost,omitempty"` // TypeLost: how many
	// LostSource says where they were lost, in one of the words above.
	LostSource string `json:"lost_source,omitempty"`
}

// HTTP is the request and response of a TypeHTTP flow.
type HTTP struct {
	Method    string `json:"method"`
	Authority string `json:"authority"`
	Path      string `json:"path"`   // with its query
	Proto     string `json:"proto"`  // "HTTP/1.1", "HTTP/2"
	Status    int    `json:"status"` // 0: no response
	GRPC      string `json:"grpc_status,omitempty"`
	// Route is "Kind/namespace/name", Rule the index of its rule; empty and 0 when
	// no route matched.
	Route string `json:"route,omitempty"`
	Rule  int    `json:"rule,omitempty"`
	// RuleName is the rule's own name, if it has one.
	RuleName string `json:"rule_name,omitempty"`
	// Tries is how often the request was offered to an endpoint; those beyond the
	// first are retries. Destination is the endpoint of the last one.
	Tries int `json:"tries,omitempty"`
	// TraceID is the trace of the request (W3C Trace Context), zero if it has none.
	TraceID TraceID `json:"trace_id,omitzero"`
	// Mirror says that this is the copy of a request which a RequestMirror filter made;
	// nobody got the response.
	Mirror bool `json:"mirror,omitempty"`
}

// DNS is a query and its answer.
type DNS struct {
	Query  string   `json:"query"`
	Type   string   `json:"type"`
	RCode  string   `json:"rcode"`
	Answer []string `json:"answer,omitempty"`
}
