package flow

// Reason says why something was refused or went wrong. Its text is the one word
// for it everywhere. The kernel programs use the numbers below 100.
type Reason uint16

// The reasons. Numbers are part of the kernel programs' event layout: never
// reuse one.
const (
	// ReasonNone: nothing was refused.
	ReasonNone Reason = 0

	// ReasonNoEndpoint: the service has no endpoint for new connections.
	ReasonNoEndpoint Reason = 1
	// ReasonCapturePort: somebody dialled a port of a workload that belongs to the
	// node proxy there.
	ReasonCapturePort Reason = 2
	// ReasonProxyUnavailable: the connection needs the node proxy and none serves.
	ReasonProxyUnavailable Reason = 3
	// ReasonForeignNamespace: the process sits in a workload's cgroup but in a
	// network namespace that is not the workload's.
	ReasonForeignNamespace Reason = 4
	// ReasonMapFull: a kernel map had no room for the connection's record.
	ReasonMapFull Reason = 5
	// ReasonListenerClosed: the socket that inbound connections are steered to is gone.
	ReasonListenerClosed Reason = 6
	// ReasonBindReserved: a workload tried to bind a port of the node proxy.
	ReasonBindReserved Reason = 7
	// ReasonSpoofedSource: a packet left a workload with an address, IP or hardware,
	// that is not the workload's.
	ReasonSpoofedSource Reason = 8
	// ReasonUnexpectedFrame: a packet left a workload that is no IPv4, IPv6 or ARP.
	ReasonUnexpectedFrame Reason = 9
	// ReasonNoLocalEndpoint: the service's traffic policy is Local, and none of its
	// endpoints is on this node.
	ReasonNoLocalEndpoint Reason = 10
	// ReasonEndpointGone: the endpoint that a connection went to is gone, and the client's
	// socket was ended so that it does not wait for answers.
	ReasonEndpointGone Reason = 11

	// ReasonNoOriginalDestination: a connection reached the node proxy without
	// having been steered there.
	ReasonNoOriginalDestination Reason = 100
	// ReasonNoRoute: no route matches the request.
	ReasonNoRoute Reason = 101
	// ReasonNoBackend: the route that matches names no valid backend.
	ReasonNoBackend Reason = 102
	// ReasonNoHealthyEndpoint: the backend has no endpoint.
	ReasonNoHealthyEndpoint Reason = 103
	// ReasonConnectFailed: the endpoint refused the connection or could not be reached.
	ReasonConnectFailed Reason = 104
	// ReasonConnectTimeout: the endpoint did not answer the connection in time.
	ReasonConnectTimeout Reason = 105
	// ReasonUpstreamReset: the endpoint ended the connection before its response.
	ReasonUpstreamReset Reason = 106
	// ReasonUpstreamProtocol: the endpoint's answer breaks its protocol.
	ReasonUpstreamProtocol Reason = 107
	// ReasonRequestTimeout: the rule's request timeout ended.
	ReasonRequestTimeout Reason = 108
	// ReasonBackendTimeout: the rule's backend request timeout ended.
	ReasonBackendTimeout Reason = 109
	// ReasonDownstreamProtocol: the client's request breaks its protocol.
	ReasonDownstreamProtocol Reason = 110
	// ReasonDownstreamReset: the client went away before its response was complete.
	ReasonDownstreamReset Reason = 111
	// ReasonHeadTooLarge: the head of the message is larger than the limit.
	ReasonHeadTooLarge Reason = 112
	// ReasonTLSHandshake: the TLS handshake with the client failed.
	ReasonTLSHandshake Reason = 113
	// ReasonNoChain: no listener serves the name that the client asked for.
	ReasonNoChain Reason = 114
	// ReasonMisdirected: the request's authority is not served on this TLS connection.
	ReasonMisdirected Reason = 115
	// ReasonOverLimit: a limit on connections, requests or buffered bytes is reached.
	ReasonOverLimit Reason = 116
	// ReasonDraining: the node proxy is stopping.
	ReasonDraining Reason = 117
	// ReasonUnsupported: the request asks for what the proxy does not do.
	ReasonUnsupported Reason = 118
	// ReasonIdleTimeout: nothing moved on the connection for too long.
	ReasonIdleTimeout Reason = 119
	// ReasonInternal: the node proxy could not do its part; its log says why.
	ReasonInternal Reason = 120
	// ReasonUpstreamTLS: the TLS handshake with the endpoint failed, or its certificate
	// is not trusted or is for other names.
	ReasonUpstreamTLS Reason = 130

	// ReasonBackendConnectionLimit: the backend's limit of connections is reached.
	ReasonBackendConnectionLimit Reason = 140
	// ReasonBackendPendingLimit: the backend's limit of requests that wait for a
	// connection is reached.
	ReasonBackendPendingLimit Reason = 141
	// ReasonBackendRequestLimit: the backend's limit of concurrent requests is reached.
	ReasonBackendRequestLimit Reason = 142
	// ReasonRetryBudget: the try failed, and the backend's retry budget is spent.
	ReasonRetryBudget Reason = 143
	// ReasonHealthCheckFailed: the endpoint fails its health checks.
	ReasonHealthCheckFailed Reason = 144
	// ReasonEjected: the endpoint is out for a while because of its answers.
	ReasonEjected Reason = 145

	// ReasonMirrorBehind: the backend of a RequestMirror took the copy of a request more
	// slowly than its limit of buffered bytes allows.
	ReasonMirrorBehind Reason = 160
	// ReasonMirrorCut: the request that is copied ended before it was complete.
	ReasonMirrorCut Reason = 161
)

var reasonTexts = map[Reason]string{
	ReasonNone:                  "",
	ReasonNoEndpoint:            "no-endpoint",
	ReasonCapturePort:           "capture-port",
	ReasonProxyUnavailable:      "proxy-unavailable",
	ReasonForeignNamespace:      "foreign-namespace",
	ReasonMapFull:               "map-full",
	ReasonListenerClosed:        "listener-closed",
	ReasonBindReserved:          "bind-reserved",
	ReasonSpoofedSource:         "spoofed-source",
	ReasonUnexpectedFrame:       "unexpected-frame",
	ReasonNoLocalEndpoint:       "no-local-endpoint",
	ReasonEndpointGone:          "endpoint-gone",
	ReasonNoOriginalDestination: "no-original-destination",
	ReasonNoRoute:               "no-route",
	ReasonNoBackend:             "no-backend",
	ReasonNoHealthyEndpoint:     "no-healthy-endpoint",
	ReasonConnectFailed:         "connect-failed",
	ReasonConnectTimeout:        "connect-timeout",
	ReasonUpstreamReset:         "upstream-reset",
	ReasonUpstreamProtocol:      "upstream-protocol",
	ReasonRequestTimeout:        "request-timeout",
	ReasonBackendTimeout:        "backend-timeout",
	ReasonDownstreamProtocol:    "downstream-protocol",
	ReasonDownstreamReset:       "downstream-reset",
	ReasonHeadTooLarge:          "head-too-large",
	ReasonTLSHandshake:          "tls-handshake",
	ReasonNoChain:               "no-chain",
	ReasonMisdirected:           "misdirected",
	ReasonOverLimit:             "over-limit",
	ReasonDraining:              "draining",
	ReasonUnsupported:           "unsupported",
	ReasonIdleTimeout:           "idle-timeout",
	ReasonInternal:              "internal",
	ReasonUpstreamTLS:           "upstream-tls",

	ReasonBackendConnectionLimit: "backend-connection-limit",
	ReasonBackendPendingLimit:    "backend-pending-limit",
	ReasonBackendRequestLimit:    "backend-request-limit",
	ReasonRetryBudget:            "retry-budget",
	ReasonHealthCheckFailed:      "health-check-failed",
	ReasonEjected:                "ejected",
	ReasonMirrorBehind:           "mirror-behind",
	ReasonMirrorCut:              "mirror-cut",
}

// Reasons returns every reason with its text, ReasonNone excepted.
func Reasons() map[Reason]string {
	out := make(map[Reason]string, len(reasonTexts))
	for r, text := range reasonTexts {
		if r != ReasonNone {
			out[r] = text
		}
	}
	return out
}

// String returns the reason's word, empty for ReasonNone, "unknown" for a number
// that is not a reason.
func (r Reason) String() string {
	return text(reasonTexts, r)
}

// ParseReason returns the reason of a word.
func ParseReason(word string) (Reason, bool) { return parse(reasonTexts, word) }
