package client

import (
	"iter"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/nametree"
)

// view is what a client asked for and what it has. It does no I/O: its methods
// leave what is to be committed in delta, what is to be remembered in records and
// what is to be asked for in each kind's subscribe and unsubscribe.
type view struct {
	follow bool
	kinds  map[mesh.Kind]*kindView
	// warming is the number of resources with a next version.
	warming int
	// deferred are removals that wait until nothing warms.
	deferred map[mesh.Ref]struct{}

	ready    []*resource     // have nothing more to wait for
	released []*subscription // lost a reference each

	delta   mesh.Delta
	records []record
}

// kindView is the part of a view that is about one kind.
type kindView struct {
	kind      mesh.Kind
	resources nametree.Tree[*resource]
	byName    map[string]*subscription
	byPrefix  map[string]*subscription
	rejected  map[string]string // key -> why its newest version was refused

	subscribe, unsubscribe map[string]struct{}
}

// subscription is a name or pattern that the client asks the server for.
type subscription struct {
	kind *kindView
	name string // as the server is told
	// Why it is there: references of resources, Config.Initial, Want.
	refs    int
	initial bool
	wanted  bool
	// answered: the server said what there is, or that there is nothing.
	answered bool
	// first is the number of its resources that were never committed.
	first int
	// waiters are the resources whose next version waits for it to be satisfied.
	waiters map[*resource]struct{}
}

func (s *subscription) satisfied() bool { return s.answered && s.first == 0 }

// resource is one that the server sent and the client accepted.
type resource struct {
	kind *kindView
	key  string

	current mesh.Resource // in the store, or nil
	version string
	refs    []*subscription

	next        mesh.Resource // warming, or nil
	nextVersion string
	nextValue   []byte // as it was sent
	nextRefs    []*subscription
	waiting     map[*subscription]struct{}
}

// newest returns the version that the client has of the resource.
func (r *resource) newest() string {
	if r.next != nil {
		return r.nextVersion
	}
	return r.version
}

func newView(follow bool) *view {
	v := &view{follow: follow, kinds: map[mesh.Kind]*kindView{}, deferred: map[mesh.Ref]struct{}{}}
	for _, kind := range mesh.Kinds {
		v.kinds[kind] = &kindView{
			kind:        kind,
			byName:      map[string]*subscription{},
			byPrefix:    map[string]*subscription{},
			rejected:    map[string]string{},
			subscribe:   map[string]struct{}{},
			unsubscribe: map[string]struct{}{},
		}
	}
	return v
}

// find returns the subscription to exactly this name or pattern, or nil.
func (k *kindView) find(name string) *subscription {
	if prefix, pattern := nametree.Prefix(name); pattern {
		return k.byPrefix[prefix]
	}
	return k.byName[name]
}

// covering yields the subscriptions that a key belongs to.
func (k *kindView) covering(key string) iter.Seq[*subscription] {
	return func(yield func(*subscription) bool) {
		if s := k.byName[key]; s != nil && !yield(s) {
			return
		}
		for prefix := range nametree.Prefixes(key) {
			if s := k.byPrefix[prefix]; s != nil && !yield(s) {
				return
			}
		}
	}
}

func (k *kindView) covered(key string) bool {
	for range k.covering(key) {
		return true
	}
	return false
}

// below yields the resources that belong to a subscription.
func (s *subscription) below() iter.Seq[*resource] {
	return func(yield func(*resource) bool) {
		prefix, pattern := nametree.Prefix(s.name)
		if !pattern {
			if r, ok := s.kind.resources.Get(s.name); ok {
				yield(r)
			}
			return
		}
		for _, r := range s.kind.resources.Below(prefix) {
			if !yield(r) {
				return
			}
		}
	}
}

// open returns the subscription to a name, made if need be.
func (v *view) open(ref mesh.Ref) *subscription {
	k := v.kinds[ref.Kind]
	if s := k.find(ref.Key); s != nil {
		return s
	}
	s := &subscription{kind: k, name: ref.Key, waiters: map[*resource]struct{}{}}
	for r := range s.below() {
		if r.current == nil {
			s.first++
		}
	}
	if prefix, pattern := nametree.Prefix(ref.Key); pattern {
		k.byPrefix[prefix] = s
	} else {
		k.byName[ref.Key] = s
	}
	k.subscribe[ref.Key] = struct{}{}
	delete(k.unsubscribe, ref.Key)
	return s
}

// close ends a subscription that nothing needs, with the resources that only it
// covered.
func (v *view) close(s *subscription) {
	if s.refs > 0 || s.initial || s.wanted {
		return
	}
	k := s.kind
	if prefix, pattern := nametree.Prefix(s.name); pattern {
		delete(k.byPrefix, prefix)
	} else {
		delete(k.byName, s.name)
		if !k.covered(s.name) {
			delete(k.rejected, s.name)
		}
	}
	if _, unsent := k.subscribe[s.name]; unsent {
		delete(k.subscribe, s.name)
	} else {
		k.unsubscribe[s.name] = struct{}{}
	}
	var drop []*resource
	for r := range s.below() {
		if !k.covered(r.key) {
			drop = append(drop, r)
		}
	}
	for _, r := range drop {
		v.drop(r)
	}
}

// want makes a subscription that stays until forget.
func (v *view) want(ref mesh.Ref) {
	s := v.open(ref)
	if !s.wanted {
		s.wanted = true
		v.records = append(v.records, record{op: opWant, ref: ref})
	}
}

func (v *view) forget(ref mesh.Ref) {
	s := v.kinds[ref.Kind].find(ref.Key)
	if s == nil || !s.wanted {
		return
	}
	s.wanted = false
	v.records = append(v.records, record{op: opForget, ref: ref})
	v.close(s)
	v.settle()
}

// accept takes a new version of a resource. The caller calls settle when it has
// passed on all of a response.
func (v *view) accept(r mesh.Resource, version string, value []byte) {
	k := v.kinds[r.Kind()]
	key := r.Key()
	delete(k.rejected, key)
	delete(v.deferred, mesh.Ref{Kind: k.kind, Key: key})
	res, ok := k.resources.Get(key)
	if !ok {
		res = &resource{kind: k, key: key}
		k.resources.Set(key, res)
		for s := range k.covering(key) {
			s.first++
		}
	}
	refs := v.refer(r)
	v.unstage(res)
	v.warming++
	res.next, res.nextVersion, res.nextValue, res.nextRefs = r, version, value, refs
	for _, s := range refs {
		if !s.satisfied() {
			if res.waiting == nil {
				res.waiting = map[*subscription]struct{}{}
			}
			res.waiting[s] = struct{}{}
			s.waiters[res] = struct{}{}
		}
	}
	if len(res.waiting) == 0 {
		v.ready = append(v.ready, res)
	}
}

// refer opens what a resource refers to.
func (v *view) refer(r mesh.Resource) []*subscription {
	if !v.follow {
		return nil
	}
	refs := references(r)
	if len(refs) == 0 {
		return nil
	}
	out := make([]*subscription, len(refs))
	for i, ref := range refs {
		out[i] = v.open(ref)
		out[i].refs++
	}
	return out
}

// unstage gives up the next version of a resource, if there is one.
func (v *view) unstage(r *resource) {
	if r.next == nil {
		return
	}
	for s := range r.waiting {
		delete(s.waiters, r)
	}
	v.released = append(v.released, r.nextRefs...)
	r.next, r.nextVersion, r.nextValue, r.nextRefs, r.waiting = nil, "", nil, nil, nil
	v.warming--
}

// refuse notes that a version of a resource was refused.
func (v *view) refuse(ref mesh.Ref, text string) {
	k := v.kinds[ref.Kind]
	k.rejected[ref.Key] = text
	v.answer(ref)
}

// answer notes that the server has said what there is of a subscription.
func (v *view) answer(ref mesh.Ref) {
	if s := v.kinds[ref.Kind].find(ref.Key); s != nil && !s.answered {
		s.answered = true
		v.check(s)
	}
}

// check lets go what waits for a subscription that is satisfied.
func (v *view) check(s *subscription) {
	if !s.satisfied() {
		return
	}
	for r := range s.waiters {
		delete(r.waiting, s)
		if len(r.waiting) == 0 {
			v.ready = append(v.ready, r)
		}
	}
	clear(s.waiters)
}

// remove takes a removal that the server sent.
func (v *view) remove(ref mesh.Ref) {
	k := v.kinds[ref.Kind]
	delete(k.rejected, ref.Key)
	if r, ok := k.resources.Get(ref.Key); ok {
		v.unstage(r)
		// Workloads and services are referred to by nothing that warms.
		if r.current == nil || ref.Kind == mesh.KindWorkload || ref.Kind == mesh.KindService {
			v.drop(r)
		} else {
			v.deferred[ref] = struct{}{}
		}
	}
	v.answer(ref)
}

// drop forgets a resource.
func (v *view) drop(r *resource) {
	ref := mesh.Ref{Kind: r.kind.kind, Key: r.key}
	v.unstage(r)
	r.kind.resources.Delete(r.key)
	delete(r.kind.rejected, r.key)
	delete(v.deferred, ref)
	v.released = append(v.released, r.refs...)
	r.refs = nil
	if r.current != nil {
		if r.kind.kind != mesh.KindCertificate {
			v.records = append(v.records, record{op: opDelete, ref: ref})
		}
		r.current = nil
		v.delta.Removes = append(v.delta.Removes, ref)
		return
	}
	for s := range r.kind.covering(r.key) {
		s.first--
		v.check(s)
	}
}

// settle commits what is ready until nothing changes any more.
func (v *view) settle() {
	for {
		for len(v.ready) > 0 {
			r := v.ready[len(v.ready)-1]
			v.ready = v.ready[:len(v.ready)-1]
			if r.next != nil && len(r.waiting) == 0 {
				v.commit(r)
			}
		}
		// What has lost a reference goes after what replaced the reference came.
		if released := v.released; len(released) > 0 {
			v.released = nil
			for _, s := range released {
				s.refs--
			}
			for _, s := range released {
				if s.kind.find(s.name) == s {
					v.close(s)
				}
			}
			continue
		}
		if v.warming == 0 && len(v.deferred) > 0 {
			for ref := range v.deferred {
				if r, ok := v.kinds[ref.Kind].resources.Get(ref.Key); ok {
					v.drop(r)
				}
			}
			clear(v.deferred)
			continue
		}
		return
	}
}

func (v *view) commit(r *resource) {
	first := r.current == nil
	v.released = append(v.released, r.refs...)
	r.current, r.version, r.refs = r.next, r.nextVersion, r.nextRefs
	if r.kind.kind != mesh.KindCertificate {
		v.records = append(v.records, record{op: opPut, ref: mesh.Ref{Kind: r.kind.kind, Key: r.key}, version: r.version, value: r.nextValue})
	}
	r.next, r.nextVersion, r.nextValue, r.nextRefs, r.waiting = nil, "", nil, nil, nil
	v.warming--
	v.delta.Upserts = append(v.delta.Upserts, r.current)
	for s := range r.kind.covering(r.key) {
		if first {
			s.first--
		}
		v.check(s)
	}
}

// satisfied reports whether the server has answered for a key, and whether
// anybody asked.
func (v *view) satisfied(ref mesh.Ref) (done, asked bool) {
	k := v.kinds[ref.Kind]
	if s := k.find(ref.Key); s != nil {
		return s.satisfied(), true
	}
	for s := range k.covering(ref.Key) {
		if s.satisfied() {
			return true, true
		}
		asked = true
	}
	return false, asked
}

// complete reports whether all initial subscriptions are satisfied.
func (v *view) complete() bool {
	for _, k := range v.kinds {
		for _, subs := range []map[string]*subscription{k.byName, k.byPrefix} {
			for _, s := range subs {
				if s.initial && !s.satisfied() {
					return false
				}
			}
		}
	}
	return true
}

// take returns what is to be committed and remembered, once.
func (v *view) take() (mesh.Delta, []record) {
	delta, records := v.delta, v.records
	v.delta, v.records = mesh.Delta{}, nil
	return delta, records
}
