package mesh

// UpstreamTLS says how connections to the endpoints of a cluster are encrypted, and
// whom to trust at their other end.
type UpstreamTLS struct {
	// ServerName is what the endpoint is asked for (SNI). Its certificate must be for
	// this name, unless SubjectAltNames is set.
	ServerName string
	// RootsPEM are the certificates of the authorities that are trusted; SystemRoots
	// trusts those of the node. If there are neither, no endpoint is trusted.
	RootsPEM    []byte
	SystemRoots bool
	// SubjectAltNames are names of which the endpoint's certificate must have at least
	// one; ServerName is for SNI only then.
	SubjectAltNames []SubjectAltName
}

// SubjectAltName is a name in a certificate; one of the two is set.
type SubjectAltName struct {
	// DNS is exact, lower case, or "*.suffix" for any name below it.
	DNS string
	// URI is compared byte by byte, as for SPIFFE IDs.
	URI string
}

// ClientValidation says which certificates of clients a chain takes.
type ClientValidation struct {
	// RootsPEM are the certificates of the authorities that are trusted.
	RootsPEM []byte
	// Optional asks clients for a certificate, and lets those pass that have none or
	// one that is not trusted.
	Optional bool
}
