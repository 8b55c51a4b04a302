package mesh

// Mirror sends copies of requests to another cluster, whose answers nobody sees
// (Gateway API, HTTPRequestMirrorFilter). A list may have several.
type Mirror struct {
	// Cluster names a Cluster. A mirror without one does not exist: a reference that
	// does not resolve is left out (HTTPRequestMirrorFilter.backendRef).
	Cluster string
	// PerMillion is how many of a million requests are copied: those of a weighted
	// choice for each request by itself. At most 1,000,000.
	PerMillion uint32
}

// EveryRequest is the PerMillion of a mirror that takes all.
const EveryRequest = 1_000_000

// CORS answers preflight requests of browsers and adds to responses what lets
// scripts of other origins read them (Fetch standard §3.2; Gateway API,
// HTTPCORSFilter).
type CORS struct {
	// AllowOrigins are "*", "SCHEME://HOST" and "SCHEME://HOST:PORT" in lower case,
	// without a port that is the scheme's own. A "*" in HOST stands for one or more
	// characters of any labels.
	AllowOrigins []string
	// AllowMethods are methods as they are written, or "*" alone.
	AllowMethods []string
	// AllowHeaders and ExposeHeaders are names as they are written, or "*".
	AllowHeaders     []string
	ExposeHeaders    []string
	AllowCredentials bool
	// MaxAge is for how many seconds a browser may keep the answer to a preflight.
	MaxAge uint32
}
