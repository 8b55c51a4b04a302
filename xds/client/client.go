package client

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
)

// Role says what the client's process is.
type Role string

// The roles.
const (
	RoleAgent Role = "agent"
	RoleProxy Role = "proxy" // may be sent certificates
)

// Config of a Client.
type Config struct {
	// Target is the path of the control plane's unix socket.
	Target string
	// Node is the node's id.
	Node string
	Role Role
	// StateDir keeps the last good resources, certificates excepted, for a start
	// with the control plane away. It is made when missing. Empty: nothing is kept.
	StateDir string
	Store    *store.Store
	// Validate refuses a resource that decodes but cannot be used. Nil: none is.
	Validate func(mesh.Resource) error
	// Initial are the names subscribed to from the start: a key, a prefix that
	// ends in "/*", or "*" for all of a kind.
	Initial map[mesh.Kind][]string
	// FollowReferences subscribes to what listeners, virtual hosts and clusters
	// refer to, and holds back a new version of one until that has arrived.
	FollowReferences bool
	Logger           *slog.Logger
	Registerer       prometheus.Registerer
}

// check reports what is missing or wrong.
func (c *Config) check() error {
	switch {
	case c.Target == "":
		return errors.New("xds client: no target")
	case c.Node == "":
		return errors.New("xds client: no node id")
	case c.Role != RoleAgent && c.Role != RoleProxy:
		return errors.New("xds client: role is neither agent nor proxy")
	case c.Store == nil:
		return errors.New("xds client: no store")
	case c.Logger == nil:
		return errors.New("xds client: no logger")
	case c.Registerer == nil:
		return errors.New("xds client: no metrics registerer")
	}
	return nil
}

// Client is the only writer of its store. Its methods may be called concurrently.
type Client struct {
	cfg   Config
	ready chan struct{}
}

// New validates the configuration and starts nothing.
func New(cfg Config) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, ready: make(chan struct{})}, nil
}

// Run loads the state on disk into the store, then follows the control plane
// until ctx ends, reconnecting with growing, jittered pauses. It returns nil when
// ctx ended. It may be called once.
func (c *Client) Run(ctx context.Context) error { return errors.New("xds client: not there yet") }

// Ready is closed once the store holds a first full state: all initial
// subscriptions were answered, now or in the run that left the state on disk.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Want subscribes to a resource, a "prefix/*" or "*" until Forget. It does not
// block, may be called from many goroutines and costs one map lookup when the
// subscription exists.
func (c *Client) Want(kind mesh.Kind, key string) {}

// Forget ends a subscription made by Want. What nothing else refers to leaves
// the store.
func (c *Client) Forget(kind mesh.Kind, key string) {}

// Wait returns nil once the control plane has answered for a wanted resource and
// for all that it refers to (with FollowReferences): either they are in the store or
// they do not exist. It returns an error when ctx ends first. It does not Want.
func (c *Client) Wait(ctx context.Context, kind mesh.Kind, key string) error { return nil }

// ResourceStatus is one row of the versions table.
type ResourceStatus struct {
	Kind mesh.Kind `json:"kind"`
	Key  string    `json:"key"`
	// Version is that in the store; empty when there is none.
	Version string `json:"version,omitempty"`
	// Warming is a newer version that waits for what it refers to.
	Warming string `json:"warming,omitempty"`
	// Rejected says why the newest version was refused.
	Rejected string `json:"rejected,omitempty"`
}

// Resources returns the versions of all resources, ordered by kind and key.
func (c *Client) Resources() []ResourceStatus { return nil }

// Status is the connection's state.
type Status struct {
	Connected bool `json:"connected"`
	Ready     bool `json:"ready"`
	// FromDisk says that the store was filled from disk and the control plane has
	// not answered yet.
	FromDisk  bool   `json:"fromDisk"`
	LastError string `json:"lastError,omitempty"`
	Resources int    `json:"resources"`
	Rejected  int    `json:"rejected"`
	Warming   int    `json:"warming"`
}

// Status returns the connection's state.
func (c *Client) Status() Status { return Status{} }
