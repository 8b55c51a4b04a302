package gateway

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/compile"
	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/api/v1alpha1"
	"github.com/sluice-mesh/sluice/kube/readiness"
	"github.com/sluice-mesh/sluice/mesh"
)

// DefaultController is the controllerName of GatewayClasses that Sluice serves.
const DefaultController = "sluice.dev/gateway-controller"

// Config of a Translator.
type Config struct {
	// Controller is the spec.controllerName that a GatewayClass must have to be ours.
	// Empty: DefaultController.
	Controller string
	// GatewayPools are where Gateways without spec.addresses get their addresses:
	// one of each family that is given.
	GatewayPools []netip.Prefix
	// StaticAddresses are further addresses that spec.addresses may name. If this and
	// GatewayPools are empty it may name any.
	StaticAddresses []netip.Prefix
	// StateDir is where addresses given to Gateways are remembered, or empty.
	StateDir string
	// Node is the name of the node for workloads and endpoints that do not name one.
	Node string
	// Zone is the node's topology zone, or empty.
	Zone   string
	Logger *slog.Logger
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	for _, p := range slices.Concat(c.GatewayPools, c.StaticAddresses) {
		if !p.IsValid() {
			return fmt.Errorf("gateway: invalid address range %q", p)
		}
	}
	return nil
}

// Result is what a change of objects comes to.
type Result struct {
	// Delta is sorted by kind and key.
	Delta mesh.Delta
	// Statuses are those that differ from the ones before, sorted by key.
	Statuses []kube.Status
	// Gone are objects that had a status and have none any more.
	Gone []kube.Key
}

// Translator keeps the mesh that the objects given to Apply describe. One
// goroutine may use it at a time.
type Translator struct {
	cfg  Config
	log  *slog.Logger
	addr *addresses

	objects objectSet
	deps    dependencies

	gateways map[mesh.Name]*gatewayState
	routes   map[kube.Key]*routeState
	domains  map[string]*domain
	hosts    index[hostKey, kube.Key, contribution]
	// declared are hostnames that a listener has to itself although no route may be
	// attached, so that no less specific one answers for them.
	declared map[hostKey]struct{}
	policies policies
	// l4 has, by Gateway, what the routes of connections say for its listeners.
	l4 index[mesh.Name, kube.Key, compile.L4Route]
	// steering has the routes attached to the ports of a Service.
	steering map[mesh.Name]index[steeringKey, kube.Key, struct{}]
	services map[mesh.Name][]mesh.Ref
	// certificates has the Gateways that serve with a Secret.
	certificates index[mesh.Name, mesh.Name, struct{}]

	outputs  map[mesh.Ref]mesh.Resource
	statuses map[kube.Key]kube.Status
	// rejected is what nodes refused, with the objects that it came from; the index
	// finds it by object.
	rejected   map[mesh.Ref]rejection
	rejections index[kube.Key, mesh.Ref, string]

	dirty   dirty
	changed map[mesh.Ref]mesh.Resource // nil: removed
	visited int                        // steps since the start
}

type gatewayState struct {
	resolved  *graph.Gateway
	addresses []netip.Addr
	short     *metav1.Condition
	listeners []mesh.Ref
	declared  []hostKey
	certs     map[mesh.Name]struct{}
}

type routeState struct {
	route         *graph.Route
	rules         [2][]compile.Rule // for Gateways, for Services
	dropped       [2][]compile.Dropped
	contributions map[hostKey]contribution
	claims        map[string]*claim
	steering      map[serviceSteering]struct{}
	l4            map[mesh.Name]compile.L4Route // by Gateway
}

// Indexes of routeState.rules.
const (
	ofGateway = iota
	ofMesh
)

type hostKey struct{ table, host string }

type contribution struct {
	compile.Contribution
	domain string
}

type steeringKey struct {
	port     uint16
	consumer string
}

type serviceSteering struct {
	service mesh.Name
	steeringKey
}

type rejection struct {
	text   string
	owners []kube.Key
}

// dirty has what is to be computed anew, in the order of the steps.
type dirty struct {
	classes  map[kube.Key]struct{}
	gateways map[mesh.Name]struct{}
	routes   map[kube.Key]struct{}
	policies map[mesh.Name]struct{}
	// listeners has the Gateways whose listeners are to be compiled.
	listeners map[mesh.Name]struct{}
	hosts     map[hostKey]struct{}
	services  map[mesh.Name]struct{}
	secrets   map[mesh.Name]struct{}
	pods      map[mesh.Name]struct{}
	statuses  map[kube.Key]struct{}
}

func newDirty() dirty {
	return dirty{
		classes: map[kube.Key]struct{}{}, gateways: map[mesh.Name]struct{}{}, routes: map[kube.Key]struct{}{},
		policies: map[mesh.Name]struct{}{}, listeners: map[mesh.Name]struct{}{}, hosts: map[hostKey]struct{}{}, services: map[mesh.Name]struct{}{}, secrets: map[mesh.Name]struct{}{},
		pods: map[mesh.Name]struct{}{}, statuses: map[kube.Key]struct{}{},
	}
}

// New validates and reads the remembered addresses.
func New(cfg Config) (*Translator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Controller == "" {
		cfg.Controller = DefaultController
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	addr, err := newAddresses(cfg)
	if err != nil {
		return nil, err
	}
	return &Translator{
		cfg: cfg, log: cfg.Logger.With("component", "gateway"), addr: addr,
		objects:      newObjectSet(),
		deps:         dependencies{asked: map[kube.Key]map[kube.Key]struct{}{}, askers: map[kube.Key]map[kube.Key]struct{}{}},
		gateways:     map[mesh.Name]*gatewayState{},
		routes:       map[kube.Key]*routeState{},
		domains:      map[string]*domain{},
		hosts:        index[hostKey, kube.Key, contribution]{},
		declared:     map[hostKey]struct{}{},
		policies:     newPolicies(),
		l4:           index[mesh.Name, kube.Key, compile.L4Route]{},
		steering:     map[mesh.Name]index[steeringKey, kube.Key, struct{}]{},
		services:     map[mesh.Name][]mesh.Ref{},
		certificates: index[mesh.Name, mesh.Name, struct{}]{},
		outputs:      map[mesh.Ref]mesh.Resource{},
		statuses:     map[kube.Key]kube.Status{},
		rejected:     map[mesh.Ref]rejection{},
		rejections:   index[kube.Key, mesh.Ref, string]{},
		dirty:        newDirty(),
		changed:      map[mesh.Ref]mesh.Resource{},
	}, nil
}

// Apply takes a change in and returns what it changes of the mesh, at a cost of
// what depends on it.
func (t *Translator) Apply(c kube.Change) Result {
	for _, key := range c.Deletes {
		t.take(key, nil)
	}
	for _, o := range c.Upserts {
		t.take(kube.KeyOf(o), o)
	}
	t.settleGateways()
	t.settlePolicies()
	t.settleRoutes()
	t.settleListeners()
	t.settleHosts()
	t.settleServices()
	t.settleSecrets()
	t.settlePods()
	if err := t.addr.pool.Save(); err != nil {
		t.log.Error("addresses of Gateways may change at the next start", "error", err)
	}
	return t.result()
}

// take puts an object into the set and marks what depends on it.
func (t *Translator) take(key kube.Key, o kube.Object) {
	old := t.objects.set(key, o)
	if old == nil && o == nil {
		return
	}
	t.markAskers(key)
	name := mesh.Name{Namespace: key.Namespace, Name: key.Name}
	switch key.Kind {
	case kube.KindGatewayClass:
		t.dirty.statuses[key] = struct{}{}
	case kube.KindGateway:
		t.dirty.gateways[name] = struct{}{}
	case kube.KindHTTPRoute, kube.KindGRPCRoute, kube.KindTLSRoute, kube.KindTCPRoute, kube.KindUDPRoute:
		t.dirty.routes[key] = struct{}{}
	case kube.KindService:
		t.dirty.services[name] = struct{}{}
		t.markTrafficPolicies(name)
	case kube.KindBackendTrafficPolicy:
		t.takeTrafficPolicy(old, o)
		t.dirty.statuses[key] = struct{}{}
	case kube.KindSecret:
		t.dirty.secrets[name] = struct{}{}
	case kube.KindBackendTLSPolicy:
		t.dirty.policies[name] = struct{}{}
	case kube.KindReferenceGrant:
		t.markAskers(kube.Key{Kind: askGrants, Namespace: key.Namespace})
	case kube.KindListenerSet:
		t.dirty.statuses[key] = struct{}{}
		for _, version := range []kube.Object{old, o} {
			if set, ok := version.(*gatewayv1.ListenerSet); ok {
				parent := graph.SetParent(set)
				t.markAskers(kube.Key{Kind: askSets, Namespace: parent.Namespace, Name: parent.Name})
			}
		}
	case kube.KindEndpointSlice:
		for _, version := range []kube.Object{old, o} {
			if slice, ok := version.(*discoveryv1.EndpointSlice); ok {
				if svc, ok := serviceOf(slice); ok {
					t.dirty.services[svc] = struct{}{}
				}
			}
		}
	case kube.KindPod:
		t.dirty.pods[name] = struct{}{}
		t.dirty.statuses[key] = struct{}{}
		for _, version := range []kube.Object{old, o} {
			if pod, ok := version.(*corev1.Pod); ok {
				for _, svc := range t.objects.servicesSelecting(pod) {
					t.dirty.services[svc] = struct{}{}
				}
				for _, a := range compile.PodAddresses(pod) {
					t.markAskers(kube.Key{Kind: askAddress, Name: a.String()})
				}
			}
		}
	}
	if len(t.rejections[key]) > 0 {
		t.dirty.statuses[key] = struct{}{}
	}
}

// markAskers marks the steps that asked for something.
func (t *Translator) markAskers(key kube.Key) {
	for asker := range t.deps.askers[key] {
		name := mesh.Name{Namespace: asker.Namespace, Name: asker.Name}
		switch asker.Kind {
		case kube.KindGateway:
			t.dirty.gateways[name] = struct{}{}
		case kube.KindBackendTLSPolicy:
			t.dirty.policies[name] = struct{}{}
		case kube.KindHTTPRoute, kube.KindGRPCRoute, kube.KindTLSRoute, kube.KindTCPRoute, kube.KindUDPRoute:
			t.dirty.routes[asker] = struct{}{}
		case kube.KindService:
			t.dirty.services[name] = struct{}{}
		}
	}
}

// drain returns the members of a dirty set in order and empties it.
func drain[K comparable](set map[K]struct{}, compare func(a, b K) int) []K {
	keys := slices.SortedFunc(maps.Keys(set), compare)
	clear(set)
	return keys
}

// ours returns a Gateway if it is there and its class is ours.
func (t *Translator) ours(r *reader, name mesh.Name) *gatewayv1.Gateway {
	gw, ok := t.objects.byKey[kube.Key{Kind: kube.KindGateway, Namespace: name.Namespace, Name: name.Name}].(*gatewayv1.Gateway)
	if !ok {
		return nil
	}
	class, ok := r.Get(kube.Key{Kind: kube.KindGatewayClass, Name: string(gw.Spec.GatewayClassName)}).(*gatewayv1.GatewayClass)
	if !ok || string(class.Spec.ControllerName) != t.cfg.Controller || class.Spec.ParametersRef != nil {
		return nil
	}
	return gw
}

// settleGateways resolves the Gateways that are dirty and gives them addresses.
func (t *Translator) settleGateways() {
	// All wishes first: whether an address is free may depend on another Gateway.
	wished := map[mesh.Name]struct{}{}
	for more := true; more; {
		more = false
		for _, name := range slices.SortedFunc(maps.Keys(t.dirty.gateways), mesh.Name.Compare) {
			if _, done := wished[name]; done {
				continue
			}
			wished[name] = struct{}{}
			more = true
			for _, other := range t.addr.want(name, t.ours(t.reader(), name)) {
				t.dirty.gateways[other] = struct{}{}
			}
		}
	}
	names := drain(t.dirty.gateways, mesh.Name.Compare)
	for _, name := range names {
		t.addr.yield(name, t.ours(t.reader(), name))
	}
	for _, name := range names {
		t.settleGateway(name)
	}
}

func (t *Translator) settleGateway(name mesh.Name) {
	t.visited++
	key := kube.Key{Kind: kube.KindGateway, Namespace: name.Namespace, Name: name.Name}
	t.dirty.statuses[key] = struct{}{}
	r := t.reader()
	old := t.gateways[name]
	if old == nil {
		old = &gatewayState{}
	}
	now := &gatewayState{}
	if gw := t.ours(r, name); gw != nil {
		now.resolved = graph.ResolveGateway(r, gw)
		var refused string
		now.addresses, refused, now.short = t.addr.assign(name, gw)
		if refused != "" {
			now.resolved.Refuse(gatewayv1.GatewayReasonUnsupportedAddress, refused)
		}
	}
	t.deps.set(key, r.asked)
	for set := range t.objects.sets[name] {
		t.dirty.statuses[kube.Key{Kind: kube.KindListenerSet, Namespace: set.Namespace, Name: set.Name}] = struct{}{}
	}
	if now.resolved == nil {
		delete(t.gateways, name)
	} else {
		t.gateways[name] = now
	}
	if !old.resolved.SameAttachment(now.resolved) {
		t.markAskers(kube.Key{Kind: askGateway, Namespace: name.Namespace, Name: name.Name})
	}

	now.certs = map[mesh.Name]struct{}{}
	if now.resolved != nil {
		now.declared = declaredHosts(now.resolved)
		for i := range now.resolved.Listeners {
			if l := &now.resolved.Listeners[i]; l.Served {
				for _, c := range l.Certificates {
					now.certs[c] = struct{}{}
				}
			}
		}
		if own := now.resolved.ClientCertificate; !own.IsZero() {
			now.certs[own] = struct{}{}
		}
	}
	now.listeners = old.listeners
	if now.resolved == nil {
		t.removeStale(old.listeners, nil)
	} else {
		t.dirty.listeners[name] = struct{}{}
	}
	for _, h := range old.declared {
		delete(t.declared, h)
		t.dirty.hosts[h] = struct{}{}
	}
	for _, h := range now.declared {
		t.declared[h] = struct{}{}
		t.dirty.hosts[h] = struct{}{}
	}
	for c := range old.certs {
		t.certificates.remove(c, name)
		t.dirty.secrets[c] = struct{}{}
	}
	for c := range now.certs {
		t.certificates.put(c, name, struct{}{})
		t.dirty.secrets[c] = struct{}{}
	}
}

// declaredHosts lists the hostnames of plain listeners that share a port.
func declaredHosts(g *graph.Gateway) []hostKey {
	byTable := map[string][]hostKey{}
	for i := range g.Listeners {
		if l := &g.Listeners[i]; l.Served && l.Protocol == gatewayv1.HTTPProtocolType {
			byTable[l.Table] = append(byTable[l.Table], hostKey{l.Table, l.Hostname})
		}
	}
	var out []hostKey
	for _, hosts := range byTable {
		if len(hosts) > 1 {
			out = append(out, hosts...)
		}
	}
	return out
}

func (t *Translator) settleRoutes() {
	for _, key := range drain(t.dirty.routes, kube.Key.Compare) {
		t.settleRoute(key)
	}
}

func (t *Translator) settleRoute(key kube.Key) {
	t.visited++
	t.dirty.statuses[key] = struct{}{}
	old := t.routes[key]
	if old == nil {
		old = &routeState{}
	}
	now := &routeState{}
	r := t.reader()
	if o := t.objects.byKey[key]; o != nil {
		now.route = graph.ResolveRoute(r, o)
	}
	t.deps.set(key, r.asked)
	if now.route == nil {
		delete(t.routes, key)
	} else {
		t.routes[key] = now
		t.attach(now)
	}

	same := [2]bool{reflect.DeepEqual(old.rules[0], now.rules[0]), reflect.DeepEqual(old.rules[1], now.rules[1])}
	for h, c := range now.contributions {
		t.hosts.put(h, key, c)
		o, ok := old.contributions[h]
		rulesSame := same[ofGateway]
		if strings.HasPrefix(h.table, "service/") {
			rulesSame = same[ofMesh]
		}
		if !ok || !rulesSame || o.domain != c.domain || o.Original != c.Original || !o.Created.Equal(c.Created) {
			t.dirty.hosts[h] = struct{}{}
		}
	}
	for h := range old.contributions {
		if _, still := now.contributions[h]; !still {
			t.hosts.remove(h, key)
			t.dirty.hosts[h] = struct{}{}
		}
	}
	for id, o := range old.claims {
		if now.claims[id] == nil {
			t.claim(id, key, nil, o)
		}
	}
	for id, c := range now.claims {
		t.claim(id, key, c, old.claims[id])
	}
	t.settleL4(key, old, now)
	t.settleUsers(key, old, now)
	for s := range old.steering {
		if _, still := now.steering[s]; !still {
			t.steering[s.service].remove(s.steeringKey, key)
			t.dirty.services[s.service] = struct{}{}
		}
	}
	for s := range now.steering {
		if _, before := old.steering[s]; !before {
			if t.steering[s.service] == nil {
				t.steering[s.service] = index[steeringKey, kube.Key, struct{}]{}
			}
			t.steering[s.service].put(s.steeringKey, key, struct{}{})
			t.dirty.services[s.service] = struct{}{}
		}
	}
}

// attach says where the rules of a route go.
func (t *Translator) attach(s *routeState) {
	s.contributions = map[hostKey]contribution{}
	s.claims = map[string]*claim{}
	s.steering = map[serviceSteering]struct{}{}
	s.l4 = map[mesh.Name]compile.L4Route{}
	if s.route.GatewayBackends.ResolvedRefs.Type != "" {
		s.rules[ofGateway], s.dropped[ofGateway] = compile.Route(s.route.Object, s.route.GatewayBackends)
	}
	if s.route.MeshBackends.ResolvedRefs.Type != "" {
		s.rules[ofMesh], s.dropped[ofMesh] = compile.Route(s.route.Object, s.route.MeshBackends)
	}
	for i := range s.route.Parents {
		p := &s.route.Parents[i]
		side := ofGateway
		if p.Mesh {
			side = ofMesh
		}
		for j := range p.Attachments {
			a := &p.Attachments[j]
			c := s.claims[a.Domain]
			if c == nil {
				c = &claim{created: s.route.Created, counts: !s.allDropped(side)}
				s.claims[a.Domain] = c
				if t.domains[a.Domain] == nil {
					t.domains[a.Domain] = newDomain(a.Gateway, a.Set)
				}
			}
			s.attachL4(a)
			if p.Mesh {
				s.steering[serviceSteering{a.Service, steeringKey{a.Port, a.Consumer}}] = struct{}{}
			}
			for _, h := range a.Hosts {
				if !slices.Contains(c.hosts, h.Name) {
					c.hosts = append(c.hosts, h.Name)
				}
				if a.Table == "" || !h.Served {
					continue
				}
				k := hostKey{a.Table, h.Name}
				if o, ok := s.contributions[k]; ok && graph.CompareSpecificity(o.Original, h.Original) <= 0 {
					continue
				}
				s.contributions[k] = contribution{
					Contribution: compile.Contribution{Route: s.route.Key, Created: s.route.Created, Original: h.Original, Rules: s.rules[side]},
					domain:       a.Domain,
				}
			}
		}
	}
}

// allDropped reports whether no rule of the route is supported.
func (s *routeState) allDropped(side int) bool {
	n := 0
	switch o := s.route.Object.(type) {
	case *gatewayv1.HTTPRoute:
		n = len(o.Spec.Rules)
	case *gatewayv1.GRPCRoute:
		n = len(o.Spec.Rules)
	}
	return n > 0 && len(droppedRules(s.dropped[side])) == n
}

func droppedRules(dropped []compile.Dropped) []int {
	var rules []int
	for _, d := range dropped {
		if !slices.Contains(rules, d.Rule) {
			rules = append(rules, d.Rule)
		}
	}
	return rules
}

// claim brings a route's claim of a domain up to date and marks those who won or
// lost by it.
func (t *Translator) claim(id string, key kube.Key, now, old *claim) {
	d := t.domains[id]
	if now != nil && old != nil && now.created.Equal(old.created) && now.counts == old.counts && slices.Equal(now.hosts, old.hosts) {
		// Nothing that others could notice.
		d.routes[key] = now
		now.lostTo = old.lostTo
		return
	}
	before := d.attached
	var fates []kube.Key
	if now != nil {
		fates = d.set(key, now)
		if old != nil && old.lostTo.IsZero() != now.lostTo.IsZero() {
			fates = append(fates, key)
		}
	} else {
		fates = d.set(key, nil)
	}
	for _, route := range fates {
		t.dirty.statuses[route] = struct{}{}
		if s := t.routes[route]; s != nil {
			for h, c := range s.contributions {
				if c.domain == id {
					t.dirty.hosts[h] = struct{}{}
				}
			}
		}
	}
	if d.attached != before && !d.owner().IsZero() {
		t.dirty.statuses[d.owner()] = struct{}{}
	}
	if len(d.routes) == 0 {
		delete(t.domains, id)
	}
}

func (t *Translator) settleHosts() {
	for _, h := range drain(t.dirty.hosts, func(a, b hostKey) int {
		return cmp.Or(strings.Compare(a.table, b.table), strings.Compare(a.host, b.host))
	}) {
		t.visited++
		var contributions []compile.Contribution
		for key, c := range t.hosts[h] {
			if d := t.domains[c.domain]; d != nil && d.routes[key] != nil && d.routes[key].lostTo.IsZero() {
				contributions = append(contributions, c.Contribution)
			}
		}
		// Not needed for the result, which is sorted as a whole, but for equal costs.
		slices.SortFunc(contributions, func(a, b compile.Contribution) int { return a.Route.Compare(b.Route) })
		v := compile.VirtualHost(h.table, h.host, contributions)
		if _, declared := t.declared[h]; len(contributions) == 0 && !declared {
			t.remove(mesh.Ref{Kind: mesh.KindVirtualHost, Key: v.Key()})
			continue
		}
		t.put(v)
	}
}

func (t *Translator) settleServices() {
	for _, name := range drain(t.dirty.services, mesh.Name.Compare) {
		t.visited++
		key := kube.Key{Kind: kube.KindService, Namespace: name.Namespace, Name: name.Name}
		old := t.services[name]
		svc, ok := t.objects.byKey[key].(*corev1.Service)
		if !ok {
			delete(t.services, name)
			t.deps.set(key, nil)
			t.removeStale(old, nil)
			continue
		}
		r := t.reader()
		in := compile.ServiceInput{
			Service: svc, Slices: t.objects.slicesOf(name), Workload: r.workload,
			Steering: t.steeringOf(name), Policies: t.trafficPoliciesOf(name), Node: t.cfg.Node, Zone: t.cfg.Zone,
			TLS: func(port string) *mesh.UpstreamTLS { return r.BackendTLS(name, port) },
		}
		if len(in.Slices) == 0 {
			in.Pods = t.objects.podsOf(svc)
		}
		resources := compile.Service(in)
		t.deps.set(key, r.asked)
		refs := make([]mesh.Ref, len(resources))
		for i, res := range resources {
			refs[i] = t.put(res)
		}
		t.removeStale(old, refs)
		t.services[name] = refs
	}
}

func (t *Translator) steeringOf(name mesh.Name) map[uint16]compile.Steering {
	if len(t.steering[name]) == 0 {
		delete(t.steering, name)
		return nil
	}
	out := map[uint16]compile.Steering{}
	for _, k := range slices.SortedFunc(maps.Keys(t.steering[name]), func(a, b steeringKey) int { return strings.Compare(a.consumer, b.consumer) }) {
		s := out[k.port]
		if k.consumer == "" {
			s.Producer = true
		} else {
			s.Consumers = append(s.Consumers, k.consumer)
		}
		out[k.port] = s
	}
	return out
}

func (t *Translator) settleSecrets() {
	for _, name := range drain(t.dirty.secrets, mesh.Name.Compare) {
		secret, ok := t.objects.byKey[kube.Key{Kind: kube.KindSecret, Namespace: name.Namespace, Name: name.Name}].(*corev1.Secret)
		if !ok || len(t.certificates[name]) == 0 {
			t.remove(mesh.Ref{Kind: mesh.KindCertificate, Key: name.String()})
			continue
		}
		t.visited++
		t.put(compile.Certificate(secret))
	}
}

func (t *Translator) settlePods() {
	for _, name := range drain(t.dirty.pods, mesh.Name.Compare) {
		t.visited++
		pod, ok := t.objects.byKey[kube.Key{Kind: kube.KindPod, Namespace: name.Namespace, Name: name.Name}].(*corev1.Pod)
		if ok {
			if w := compile.Workload(pod, t.cfg.Node); w != nil {
				t.put(w)
				continue
			}
		}
		t.remove(mesh.Ref{Kind: mesh.KindWorkload, Key: name.String()})
	}
}

// put publishes a resource unless it is as before.
func (t *Translator) put(r mesh.Resource) mesh.Ref {
	ref := mesh.Ref{Kind: r.Kind(), Key: r.Key()}
	if old, ok := t.outputs[ref]; ok && reflect.DeepEqual(old, r) {
		return ref
	}
	t.outputs[ref] = r
	t.changed[ref] = r
	t.forgive(ref)
	return ref
}

func (t *Translator) remove(ref mesh.Ref) {
	if _, ok := t.outputs[ref]; ok {
		delete(t.outputs, ref)
		t.changed[ref] = nil
		t.forgive(ref)
	}
}

func (t *Translator) removeStale(old, now []mesh.Ref) {
	for _, ref := range old {
		if !slices.Contains(now, ref) {
			t.remove(ref)
		}
	}
}

// result collects what changed.
func (t *Translator) result() Result {
	var out Result
	for _, key := range drain(t.dirty.statuses, kube.Key.Compare) {
		s, ok := t.status(key)
		old, had := t.statuses[key]
		switch {
		case !ok && had:
			delete(t.statuses, key)
			out.Gone = append(out.Gone, key)
		case ok && !(had && reflect.DeepEqual(old, s)):
			t.statuses[key] = s
			out.Statuses = append(out.Statuses, s)
		}
	}
	order := map[mesh.Kind]int{}
	for i, kind := range mesh.Kinds {
		order[kind] = i
	}
	for _, ref := range slices.SortedFunc(maps.Keys(t.changed), func(a, b mesh.Ref) int {
		return cmp.Or(cmp.Compare(order[a.Kind], order[b.Kind]), strings.Compare(a.Key, b.Key))
	}) {
		if r := t.changed[ref]; r != nil {
			out.Delta.Upserts = append(out.Delta.Upserts, r)
		} else {
			out.Delta.Removes = append(out.Delta.Removes, ref)
		}
	}
	clear(t.changed)
	return out
}

// Rejected notes that a node refused a resource, for the reason in text, and
// returns the statuses that say so. Empty text takes it back; so does the next
// version of the resource.
func (t *Translator) Rejected(ref mesh.Ref, text string) Result {
	t.forgive(ref)
	if _, known := t.outputs[ref]; known && text != "" {
		owners := t.owners(ref)
		t.rejected[ref] = rejection{text: text, owners: owners}
		for _, key := range owners {
			t.rejections.put(key, ref, text)
			t.dirty.statuses[key] = struct{}{}
		}
	}
	return t.result()
}

// forgive forgets that a resource was refused.
func (t *Translator) forgive(ref mesh.Ref) {
	for _, key := range t.rejected[ref].owners {
		t.rejections.remove(key, ref)
		t.dirty.statuses[key] = struct{}{}
	}
	delete(t.rejected, ref)
}

// owners returns the objects that a resource was made of and that can say so.
func (t *Translator) owners(ref mesh.Ref) []kube.Key {
	var keys []kube.Key
	named := func(kind kube.Kind, name mesh.Name) {
		keys = append(keys, kube.Key{Kind: kind, Namespace: name.Namespace, Name: name.Name})
	}
	switch r := t.outputs[ref].(type) {
	case *mesh.Workload:
		named(kube.KindPod, r.Name)
	case *mesh.Service:
		named(kube.KindService, r.Name)
	case *mesh.Cluster:
		named(kube.KindService, r.Service)
	case *mesh.ClusterEndpoints:
		if c, ok := t.outputs[mesh.Ref{Kind: mesh.KindCluster, Key: r.Cluster}].(*mesh.Cluster); ok {
			named(kube.KindService, c.Service)
		}
	case *mesh.Listener:
		if r.Type == mesh.ListenerGateway {
			named(kube.KindGateway, r.Parent)
		} else {
			named(kube.KindService, r.Parent)
		}
	case *mesh.VirtualHost:
		for key := range t.hosts[hostKey{r.Table, r.Hostname}] {
			keys = append(keys, key)
		}
	case *mesh.Certificate:
		if ns, name, ok := strings.Cut(r.Name, "/"); ok {
			for gw := range t.certificates[mesh.Name{Namespace: ns, Name: name}] {
				named(kube.KindGateway, gw)
			}
		}
	}
	slices.SortFunc(keys, kube.Key.Compare)
	return keys
}

// status computes the status of an object, or reports that there is nothing to say.
func (t *Translator) status(key kube.Key) (kube.Status, bool) {
	o := t.objects.byKey[key]
	if o == nil {
		return kube.Status{}, false
	}
	s := kube.Status{Key: key, Generation: o.GetGeneration()}
	switch o := o.(type) {
	case *gatewayv1.GatewayClass:
		if string(o.Spec.ControllerName) != t.cfg.Controller {
			return s, false
		}
		condition := conditions.ClassAccepted(o.Generation)
		if o.Spec.ParametersRef != nil {
			condition = conditions.ClassInvalidParameters(o.Generation, "spec.parametersRef is not supported; Sluice has no parameters for it")
		}
		s.GatewayClass = &gatewayv1.GatewayClassStatus{Conditions: []metav1.Condition{condition}, SupportedFeatures: supportedFeatures()}
	case *gatewayv1.Gateway:
		g := t.gateways[mesh.Name{Namespace: key.Namespace, Name: key.Name}]
		if g == nil {
			return s, false
		}
		s.Gateway = t.gatewayStatus(key, g)
	case *gatewayv1.ListenerSet:
		status := t.listenerSetStatus(key, o)
		if status == nil {
			return s, false
		}
		s.ListenerSet = status
	case *v1alpha1.BackendTrafficPolicy:
		s.Policy = t.trafficPolicyStatus(o)
	case *gatewayv1.HTTPRoute, *gatewayv1.GRPCRoute, *gatewayv1.TLSRoute, *gatewayv1.TCPRoute, *gatewayv1.UDPRoute:
		r := t.routes[key]
		if r == nil {
			return s, false
		}
		s.Route = t.routeStatus(key, r)
	case *gatewayv1.BackendTLSPolicy:
		if s.Policy = t.policyStatus(mesh.Name{Namespace: key.Namespace, Name: key.Name}); s.Policy == nil {
			return s, false
		}
	default:
		if pod, ok := o.(*corev1.Pod); ok {
			if why := readiness.Unsupported(pod); why != "" {
				s.Conditions = append(s.Conditions, conditions.NotProbed(s.Generation, why))
			}
		}
		if text := t.rejectionText(key); text != "" {
			s.Conditions = append(s.Conditions, conditions.NotProgrammed(s.Generation, text))
		}
		if len(s.Conditions) == 0 {
			return s, false
		}
	}
	return s, true
}

// rejectionText joins what nodes said against what was made of an object.
func (t *Translator) rejectionText(key kube.Key) string {
	var texts []string
	for ref, text := range t.rejections[key] {
		texts = append(texts, fmt.Sprintf("%s %s: %s", ref.Kind, ref.Key, text))
	}
	slices.Sort(texts)
	return strings.Join(texts, "; ")
}

func (t *Translator) gatewayStatus(key kube.Key, g *gatewayState) *gatewayv1.GatewayStatus {
	rejected := t.rejectionText(key)
	generation := g.resolved.Generation
	out := &gatewayv1.GatewayStatus{}
	ip := gatewayv1.IPAddressType
	for _, a := range g.addresses {
		out.Addresses = append(out.Addresses, gatewayv1.GatewayStatusAddress{Type: &ip, Value: a.String()})
	}
	served := false
	for i := range g.resolved.Listeners {
		l := &g.resolved.Listeners[i]
		served = served || l.Served
		if l.Owner != key {
			continue
		}
		status := t.listenerStatus(g, l, rejected)
		out.Listeners = append(out.Listeners, status)
	}
	attached := int32(g.resolved.AttachedSets())
	out.AttachedListenerSets = &attached
	programmed := conditions.GatewayProgrammed(generation)
	switch {
	case !served:
		programmed = conditions.GatewayNotProgrammed(gatewayv1.GatewayReasonInvalid, generation, "No listener can be served")
	case g.short != nil:
		programmed = *g.short
	case rejected != "":
		programmed = conditions.GatewayNotProgrammed(conditions.ReasonRejected, generation, rejected)
	}
	out.Conditions = append([]metav1.Condition{g.resolved.Accepted, programmed, g.resolved.ResolvedRefs}, g.resolved.Warnings...)
	return out
}

// listenerStatus is the status of a listener of a Gateway or of a ListenerSet.
func (t *Translator) listenerStatus(g *gatewayState, l *graph.Listener, rejected string) gatewayv1.ListenerStatus {
	programmed := conditions.ListenerProgrammed(l.Generation)
	switch {
	case !l.Served && l.WhyReason != "":
		programmed = conditions.ListenerNotProgrammed(l.WhyReason, l.Generation, l.Why)
	case !l.Served:
		programmed = conditions.ListenerNotProgrammed(gatewayv1.ListenerReasonInvalid, l.Generation, l.Why)
	case len(g.addresses) == 0:
		programmed = conditions.ListenerNotProgrammed(gatewayv1.ListenerReasonPending, l.Generation, "The Gateway has no address")
	case rejected != "":
		programmed = conditions.ListenerNotProgrammed(conditions.ReasonRejected, l.Generation, rejected)
	}
	status := gatewayv1.ListenerStatus{
		Name: gatewayv1.SectionName(l.Section), SupportedKinds: l.SupportedKinds,
		Conditions: slices.Concat(l.Conditions, []metav1.Condition{programmed}),
	}
	if d := t.domains[g.resolved.Name.String()+"/"+l.Name]; d != nil {
		status.AttachedRoutes = int32(d.attached)
	}
	return status
}

// listenerSetStatus returns nil if the Gateway of a ListenerSet is another
// controller's.
func (t *Translator) listenerSetStatus(key kube.Key, o *gatewayv1.ListenerSet) *gatewayv1.ListenerSetStatus {
	parent := graph.SetParent(o)
	if ref := o.Spec.ParentRef; ref.Group != nil && *ref.Group != gatewayv1.GroupName || ref.Kind != nil && *ref.Kind != gatewayv1.Kind(kube.KindGateway) {
		return nil
	}
	gw := kube.Key{Kind: kube.KindGateway, Namespace: parent.Namespace, Name: parent.Name}
	g := t.gateways[parent]
	if g == nil {
		if t.objects.byKey[gw] != nil {
			return nil
		}
		text := gw.String() + " does not exist"
		return &gatewayv1.ListenerSetStatus{Conditions: []metav1.Condition{
			conditions.ListenerSetAccepted(false, gatewayv1.ListenerSetReasonParentNotAccepted, o.Generation, text),
			conditions.ListenerSetProgrammed(false, conditions.ReasonParentNotProgrammed, o.Generation, text),
		}}
	}
	i := slices.IndexFunc(g.resolved.Sets, func(s graph.ListenerSet) bool { return s.Key() == key })
	if i < 0 {
		return nil
	}
	set := &g.resolved.Sets[i]
	rejected := t.rejectionText(gw)
	accepted := g.resolved.SetAccepted(set)
	programmed := conditions.ListenerSetProgrammed(true, gatewayv1.ListenerSetReasonProgrammed, set.Generation, "The listeners are configured on the nodes")
	switch {
	case accepted.Reason == string(gatewayv1.ListenerSetReasonParentNotAccepted):
		programmed = conditions.ListenerSetProgrammed(false, conditions.ReasonParentNotProgrammed, set.Generation, accepted.Message)
	case accepted.Status != metav1.ConditionTrue:
		programmed = conditions.ListenerSetProgrammed(false, accepted.Reason, set.Generation, accepted.Message)
	case g.short != nil:
		programmed = conditions.ListenerSetProgrammed(false, conditions.ReasonParentNotProgrammed, set.Generation, g.short.Message)
	case rejected != "":
		programmed = conditions.ListenerSetProgrammed(false, conditions.ReasonRejected, set.Generation, rejected)
	}
	out := &gatewayv1.ListenerSetStatus{Conditions: []metav1.Condition{accepted, programmed}}
	for i := range g.resolved.Listeners {
		if l := &g.resolved.Listeners[i]; l.Owner == key {
			s := t.listenerStatus(g, l, rejected)
			out.Listeners = append(out.Listeners, gatewayv1.ListenerEntryStatus(s))
		}
	}
	return out
}

func (t *Translator) routeStatus(key kube.Key, s *routeState) *gatewayv1.RouteStatus {
	rejected := t.rejectionText(key)
	out := &gatewayv1.RouteStatus{Parents: []gatewayv1.RouteParentStatus{}}
	generation := s.route.Generation
	for i := range s.route.Parents {
		p := &s.route.Parents[i]
		side, resolved := ofGateway, s.route.GatewayBackends.ResolvedRefs
		if p.Mesh {
			side, resolved = ofMesh, s.route.MeshBackends.ResolvedRefs
		}
		accepted := p.Accepted
		var partial []metav1.Condition
		if accepted.Status == metav1.ConditionTrue {
			lostTo, lost := t.lost(key, p)
			switch {
			case s.allDropped(side):
				accepted = conditions.RouteNotAccepted(gatewayv1.RouteReasonUnsupportedValue, generation,
					"No rule is supported, requests are answered with 500: "+droppedText(s.dropped[side]))
			case lost:
				accepted = conditions.RouteNotAccepted(conditions.ReasonConflicted, generation,
					fmt.Sprintf("%s has the same hostnames and takes precedence; kinds of routes are not merged", lostTo))
			case rejected != "":
				accepted = conditions.RouteNotAccepted(conditions.ReasonRejected, generation, rejected)
			case len(s.dropped[side]) > 0:
				partial = append(partial, conditions.RoutePartiallyInvalid(generation,
					"Dropped Rule(s), whose requests are answered with 500: "+droppedText(s.dropped[side])))
			}
		}
		if _, err := compile.Tracing(s.route.Object); err != nil {
			accepted.Message += fmt.Sprintf("; the node's default share of requests is traced: %v", err)
		}
		out.Parents = append(out.Parents, gatewayv1.RouteParentStatus{
			ParentRef: p.Ref, ControllerName: gatewayv1.GatewayController(t.cfg.Controller),
			Conditions: append([]metav1.Condition{accepted, resolved}, partial...),
		})
	}
	return out
}

// lost reports whether the route lost all places that a parent has for it, and to
// whom.
func (t *Translator) lost(key kube.Key, p *graph.Parent) (to kube.Key, lost bool) {
	for i := range p.Attachments {
		c := t.domains[p.Attachments[i].Domain].routes[key]
		if c.lostTo.IsZero() {
			return kube.Key{}, false
		}
		to = c.lostTo
	}
	return to, len(p.Attachments) > 0
}

func droppedText(dropped []compile.Dropped) string {
	texts := make([]string, len(dropped))
	for i, d := range dropped {
		texts[i] = fmt.Sprintf("rules[%d]: %s", d.Rule, d.Why)
	}
	return strings.Join(texts, "; ")
}
