package server

import (
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/sluice-mesh/sluice/mesh"
)

// Config of a Server. Logger and Registerer are required.
type Config struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// ProxyUID is the user, beside root, that may be sent certificates.
	ProxyUID uint32
	// OnAck is called when a client has accepted a version of a resource, or with
	// version "" its removal. Nil: not called.
	OnAck func(client Client, ref mesh.Ref, version string)
	// OnNack is called when a client has refused a version of a resource; text is
	// the client's. Nil: not called.
	//
	// Both run in the stream's goroutine with no lock held and must not block.
	OnNack func(client Client, ref mesh.Ref, version, text string)
}

// Validate reports what is missing.
func (c *Config) Validate() error {
	switch {
	case c.Logger == nil:
		return errors.New("xds server: no logger")
	case c.Registerer == nil:
		return errors.New("xds server: no metrics registerer")
	}
	return nil
}

// Client is the other end of a stream.
type Client struct {
	// Node is the id in the client's node message; Role its metadata "role", such
	// as "agent" or "proxy".
	Node string `json:"node"`
	Role string `json:"role"`
}

// Server serves delta ADS. Its methods may be called concurrently.
type Server struct{ cfg Config }

// New returns a server that holds nothing.
func New(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg}, nil
}

// Register adds the service to a gRPC server, which must use PeerCredentials or
// Secrets are sent to nobody.
func (s *Server) Register(r grpc.ServiceRegistrar) {}

// Publish changes what is served. A resource that cannot be encoded keeps its
// last version; the error joins one *codec.Error for each of them and all others
// are served. It costs O(the delta), encodes each resource once and waits for no
// client.
//
// The first call must carry the whole state: no stream is answered before it.
func (s *Server) Publish(d mesh.Delta) error { return errors.New("xds server: not there yet") }
