package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/mesh/store"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/nametree"
)

// Pauses between attempts to connect: they double from the first to the last,
// and each is shortened at random by up to half.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// ErrNotWanted is what Wait returns for a resource that nobody asked for.
var ErrNotWanted = errors.New("xds client: nothing subscribes to the resource")

// Role says what the client's process is.
type Role string

// The roles.
const (
	RoleAgent Role = "agent"
	RoleProxy Role = "proxy" // may be sent certificates
)

// Config of a Client.
type Config struct {
	// Target is the path of the control plane's unix socket. Whoever listens on it
	// must be root or this process's own user.
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
	for kind := range c.Initial {
		if codec.TypeURL(kind) == "" {
			return fmt.Errorf("xds client: initial subscription to unknown kind %q", kind)
		}
	}
	return nil
}

// Client is the only writer of its store. Its methods may be called concurrently,
// also from the store's subscribers, Wait excepted there.
type Client struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	ready   chan struct{}

	wantMu sync.RWMutex
	wanted map[mesh.Ref]struct{} // guarded by wantMu
	wishes []func()              // guarded by wantMu; Run's goroutine runs them
	wake   chan struct{}         // capacity 1: there are wishes

	// Run's goroutine alone writes what follows, holding mu; it reads without.
	mu        sync.Mutex
	view      *view
	waits     map[*wait]struct{}
	isReady   bool
	fromDisk  bool
	connected bool
	lastError string

	// Run's goroutine alone uses what follows.
	state      *stateFile
	stateError string // the last one logged
}

// wait is a call of Wait.
type wait struct {
	ref  mesh.Ref
	done chan error // capacity 1
}

// New validates the configuration and starts nothing.
func New(cfg Config) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("xds client: %w", err)
	}
	c := &Client{
		cfg:     cfg,
		log:     cfg.Logger.With("component", "xds-client"),
		metrics: m,
		ready:   make(chan struct{}),
		wanted:  map[mesh.Ref]struct{}{},
		wake:    make(chan struct{}, 1),
		view:    newView(cfg.FollowReferences),
		waits:   map[*wait]struct{}{},
	}
	for kind, names := range cfg.Initial {
		for _, name := range names {
			c.view.open(mesh.Ref{Kind: kind, Key: name}).initial = true
		}
	}
	return c, nil
}

// Run loads the state on disk into the store, then follows the control plane
// until ctx ends, reconnecting with growing, jittered pauses. It returns nil when
// ctx ended, and an error only if the state directory cannot be made. It may be
// called once.
func (c *Client) Run(ctx context.Context) error {
	if c.cfg.StateDir != "" {
		var err error
		if c.state, err = openState(c.cfg.StateDir); err != nil {
			return fmt.Errorf("xds client: %w", err)
		}
		defer func() {
			if err := c.state.close(); err != nil {
				c.log.Warn("state not closed", "err", err)
			}
		}()
		c.load()
	}
	pause := firstPause
	for ctx.Err() == nil {
		answered, err := c.session(ctx)
		if ctx.Err() != nil {
			break
		}
		c.mu.Lock()
		c.connected, c.lastError = false, err.Error()
		c.mu.Unlock()
		c.metrics.connected.Set(0)
		if answered {
			pause = firstPause
		}
		c.log.Warn("no control plane", "target", c.cfg.Target, "err", err, "retry", pause)
		c.pause(ctx, pause/2+rand.N(pause/2))
		pause = min(2*pause, lastPause)
	}
	return nil
}

// pause waits, granting wishes meanwhile.
func (c *Client) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-c.wake:
			c.grant()
			c.apply()
		}
	}
}

// Ready is closed once the store holds a first full state: all initial
// subscriptions were answered, now or in the run that left the state on disk.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Want subscribes to a resource, a "prefix/*" or "*" until Forget. It does not
// block, and costs one map lookup when the subscription exists.
func (c *Client) Want(kind mesh.Kind, key string) {
	ref := mesh.Ref{Kind: kind, Key: key}
	c.wantMu.RLock()
	_, ok := c.wanted[ref]
	c.wantMu.RUnlock()
	if ok || codec.TypeURL(kind) == "" {
		return
	}
	c.wantMu.Lock()
	defer c.wantMu.Unlock()
	if _, ok := c.wanted[ref]; ok {
		return
	}
	c.wanted[ref] = struct{}{}
	c.wish(func() { c.view.want(ref) })
}

// Forget ends a subscription made by Want. What nothing else refers to leaves
// the store.
func (c *Client) Forget(kind mesh.Kind, key string) {
	ref := mesh.Ref{Kind: kind, Key: key}
	c.wantMu.Lock()
	defer c.wantMu.Unlock()
	if _, ok := c.wanted[ref]; !ok {
		return
	}
	delete(c.wanted, ref)
	c.wish(func() { c.view.forget(ref) })
}

// Wait returns nil once the control plane has answered for a wanted resource and
// for all that it refers to (with FollowReferences): either they are in the store
// or they do not exist. It returns ctx's error when ctx ends first, and
// ErrNotWanted when neither Want nor Config.Initial covers the resource.
func (c *Client) Wait(ctx context.Context, kind mesh.Kind, key string) error {
	if codec.TypeURL(kind) == "" {
		return ErrNotWanted
	}
	w := &wait{ref: mesh.Ref{Kind: kind, Key: key}, done: make(chan error, 1)}
	c.wantMu.Lock()
	c.wish(func() { c.waits[w] = struct{}{} })
	c.wantMu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		c.wantMu.Lock()
		c.wish(func() { delete(c.waits, w) })
		c.wantMu.Unlock()
		return ctx.Err()
	}
}

// wish has f run by Run's goroutine, in order. The caller holds wantMu.
func (c *Client) wish(f func()) {
	c.wishes = append(c.wishes, f)
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// grant runs the wishes. The caller calls apply afterwards.
func (c *Client) grant() {
	c.wantMu.Lock()
	wishes := c.wishes
	c.wishes = nil
	c.wantMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range wishes {
		f()
	}
}

// apply commits and remembers what the view has come to, then tells those who
// wait for it.
func (c *Client) apply() {
	c.mu.Lock()
	delta, records := c.view.take()
	c.mu.Unlock()
	if !delta.IsEmpty() {
		c.cfg.Store.Commit(delta)
	}
	c.mu.Lock()
	if !c.isReady && c.view.complete() {
		records = append(records, record{op: opReady})
		c.isReady = true
		close(c.ready)
	}
	for w := range c.waits {
		done, asked := c.view.satisfied(w.ref)
		switch {
		case done:
			w.done <- nil
		case !asked:
			w.done <- ErrNotWanted
		default:
			continue
		}
		delete(c.waits, w)
	}
	c.mu.Unlock()
	c.metrics.observe(c.view)
	c.remember(records)
}

// remember writes records to disk.
func (c *Client) remember(records []record) {
	err := c.state.write(records, c.allRecords)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != c.stateError && err != nil {
		c.log.Warn("state not written", "err", err)
	}
	c.stateError = text
}

// allRecords returns the whole state.
func (c *Client) allRecords() ([]record, error) {
	var out []record
	for _, kind := range mesh.Kinds {
		k := c.view.kinds[kind]
		for _, subs := range []map[string]*subscription{k.byName, k.byPrefix} {
			for name, s := range subs {
				if s.wanted {
					out = append(out, record{op: opWant, ref: mesh.Ref{Kind: kind, Key: name}})
				}
			}
		}
		if kind == mesh.KindCertificate {
			continue
		}
		for key, r := range k.resources.Below("") {
			if r.current == nil {
				continue
			}
			packed, err := codec.Encode(r.current)
			if err != nil {
				return nil, err
			}
			out = append(out, record{op: opPut, ref: mesh.Ref{Kind: kind, Key: key}, version: r.version, value: packed.Value})
		}
	}
	if c.isReady {
		out = append(out, record{op: opReady})
	}
	return out, nil
}

// load fills the store from disk. Whatever is wrong there is logged and left out.
func (c *Client) load() {
	records, err := c.state.read()
	if err != nil {
		c.log.Warn("state on disk is damaged", "err", err)
	}
	if len(records) == 0 {
		return
	}
	c.mu.Lock()
	found, complete, bad := c.view.load(records, c.decode)
	for _, k := range c.view.kinds {
		for _, subs := range []map[string]*subscription{k.byName, k.byPrefix} {
			for name, s := range subs {
				if s.wanted {
					c.wantMu.Lock()
					c.wanted[mesh.Ref{Kind: k.kind, Key: name}] = struct{}{}
					c.wantMu.Unlock()
				}
			}
		}
	}
	c.fromDisk = complete
	delta, _ := c.view.take()
	c.mu.Unlock()
	for _, err := range bad {
		c.log.Warn("resource on disk left out", "err", err)
	}
	c.cfg.Store.Commit(delta)
	if complete {
		c.mu.Lock()
		c.isReady = true
		close(c.ready)
		c.mu.Unlock()
	}
	c.metrics.observe(c.view)
	c.log.Info("state loaded from disk", "resources", found, "complete", complete)
}

// decode decodes and validates a resource.
func (c *Client) decode(ref mesh.Ref, value []byte) (mesh.Resource, error) {
	r, err := codec.Decode(ref.Kind, ref.Key, value)
	if err == nil && c.cfg.Validate != nil {
		if err = c.cfg.Validate(r); err != nil {
			err = fmt.Errorf("%s %s: %w", ref.Kind, ref.Key, err)
		}
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// load takes what a state file said and that the subscriptions, with the wanted
// ones among the records, cover. It returns the number of resources taken, whether
// the state was once complete, and what was wrong with single resources.
func (v *view) load(records []record, decode func(mesh.Ref, []byte) (mesh.Resource, error)) (taken int, complete bool, bad []error) {
	type stored struct {
		version string
		value   []byte
	}
	trees := map[mesh.Kind]*nametree.Tree[stored]{}
	for _, kind := range mesh.Kinds {
		trees[kind] = new(nametree.Tree[stored])
	}
	for _, r := range records {
		tree := trees[r.ref.Kind]
		switch {
		case r.op == opReady:
			complete = true
		case tree == nil: // a kind of another version
		case r.op == opPut && r.ref.Kind != mesh.KindCertificate:
			tree.Set(r.ref.Key, stored{r.version, r.value})
		case r.op == opDelete:
			tree.Delete(r.ref.Key)
		case r.op == opWant:
			v.open(r.ref).wanted = true
		case r.op == opForget:
			if s := v.kinds[r.ref.Kind].find(r.ref.Key); s != nil {
				s.wanted = false
				v.close(s)
			}
		}
	}
	var queue []*subscription
	seen := map[*subscription]bool{}
	enqueue := func(s *subscription) {
		if !seen[s] {
			seen[s] = true
			queue = append(queue, s)
		}
	}
	for _, k := range v.kinds {
		for _, subs := range []map[string]*subscription{k.byName, k.byPrefix} {
			for _, s := range subs {
				enqueue(s)
			}
		}
	}
	take := func(k *kindView, key string, st stored) {
		if _, ok := k.resources.Get(key); ok {
			return
		}
		r, err := decode(mesh.Ref{Kind: k.kind, Key: key}, st.value)
		if err != nil {
			bad = append(bad, err)
			return
		}
		res := &resource{kind: k, key: key, current: r, version: st.version, refs: v.refer(r)}
		k.resources.Set(key, res)
		v.delta.Upserts = append(v.delta.Upserts, r)
		taken++
		for _, s := range res.refs {
			enqueue(s)
		}
	}
	for len(queue) > 0 {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		tree := trees[s.kind.kind]
		if prefix, pattern := nametree.Prefix(s.name); pattern {
			s.answered = complete && s.kind.kind != mesh.KindCertificate
			for key, st := range tree.Below(prefix) {
				take(s.kind, key, st)
			}
		} else if st, ok := tree.Get(s.name); ok {
			s.answered = true
			take(s.kind, s.name, st)
		}
	}
	return taken, complete, bad
}

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
func (c *Client) Resources() []ResourceStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []ResourceStatus
	for _, k := range c.view.kinds {
		for key, r := range k.resources.Below("") {
			out = append(out, ResourceStatus{k.kind, key, r.version, r.nextVersion, k.rejected[key]})
		}
		for key, text := range k.rejected {
			if _, ok := k.resources.Get(key); !ok {
				out = append(out, ResourceStatus{Kind: k.kind, Key: key, Rejected: text})
			}
		}
	}
	slices.SortFunc(out, func(a, b ResourceStatus) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	return out
}

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
	// Subscriptions per kind, names and patterns.
	Subscriptions map[mesh.Kind]int `json:"subscriptions"`
}

// Status returns the connection's state.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{
		Connected:     c.connected,
		Ready:         c.isReady,
		FromDisk:      c.fromDisk,
		LastError:     c.lastError,
		Warming:       c.view.warming,
		Subscriptions: map[mesh.Kind]int{},
	}
	for kind, k := range c.view.kinds {
		s.Resources += k.resources.Len()
		s.Rejected += len(k.rejected)
		s.Subscriptions[kind] = len(k.byName) + len(k.byPrefix)
	}
	return s
}
