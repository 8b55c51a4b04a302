package gateway

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/gateway/graph"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/mesh"
)

// askPolicies is asked for by who needs to know how a Service's endpoints are
// connected to.
const askPolicies kube.Kind = "BackendTLSPolicies of a Service"

// maxAncestors is the limit of PolicyStatus.ancestors.
const maxAncestors = 16

// policies has the BackendTLSPolicies and who uses the Services that they are about.
type policies struct {
	all map[mesh.Name]*graph.Policy
	// of has the policies by each Service that they target.
	of index[mesh.Name, mesh.Name, *graph.Policy]
	// users has the routes that name a Service as a backend.
	users index[mesh.Name, kube.Key, struct{}]
}

func newPolicies() policies {
	return policies{all: map[mesh.Name]*graph.Policy{}, of: index[mesh.Name, mesh.Name, *graph.Policy]{}, users: index[mesh.Name, kube.Key, struct{}]{}}
}

func policyKey(name mesh.Name) kube.Key {
	return kube.Key{Kind: kube.KindBackendTLSPolicy, Namespace: name.Namespace, Name: name.Name}
}

// list returns the policies for a Service, by name.
func (p *policies) list(service mesh.Name) []*graph.Policy {
	return slices.SortedFunc(maps.Values(p.of[service]), func(a, b *graph.Policy) int { return a.Name.Compare(b.Name) })
}

// BackendTLS implements graph.Objects.
func (r *reader) BackendTLS(service mesh.Name, port string) *mesh.UpstreamTLS {
	r.asked[kube.Key{Kind: askPolicies, Namespace: service.Namespace, Name: service.Name}] = struct{}{}
	if p := graph.PolicyFor(r.t.policies.list(service), service, port); p != nil {
		return p.TLS
	}
	return nil
}

// settlePolicies resolves the policies that are dirty.
func (t *Translator) settlePolicies() {
	for _, name := range drain(t.dirty.policies, mesh.Name.Compare) {
		t.visited++
		key := policyKey(name)
		r := t.reader()
		old := t.policies.all[name]
		var now *graph.Policy
		if o, ok := t.objects.byKey[key].(*gatewayv1.BackendTLSPolicy); ok {
			now = graph.ResolvePolicy(r, o)
		}
		t.deps.set(key, r.asked)
		t.dirty.statuses[key] = struct{}{}
		services := map[mesh.Name]struct{}{}
		if old != nil {
			delete(t.policies.all, name)
			for _, target := range old.Targets {
				t.policies.of.remove(target.Service, name)
				services[target.Service] = struct{}{}
			}
		}
		if now != nil {
			t.policies.all[name] = now
			for _, target := range now.Targets {
				t.policies.of.put(target.Service, name, now)
				services[target.Service] = struct{}{}
			}
		}
		same := old != nil && now != nil && old.Created.Equal(now.Created) &&
			reflect.DeepEqual(old.TLS, now.TLS) && slices.Equal(old.Targets, now.Targets)
		if same {
			continue
		}
		for svc := range services {
			t.markAskers(kube.Key{Kind: askPolicies, Namespace: svc.Namespace, Name: svc.Name})
			t.markPolicies(svc)
		}
	}
}

// markPolicies has the statuses of a Service's policies computed anew.
func (t *Translator) markPolicies(service mesh.Name) {
	for name := range t.policies.of[service] {
		t.dirty.statuses[policyKey(name)] = struct{}{}
	}
}

// backendsOf returns the Services that a route names as backends.
func backendsOf(r *graph.Route) map[mesh.Name]struct{} {
	out := map[mesh.Name]struct{}{}
	if r == nil {
		return out
	}
	for _, b := range []graph.Backends{r.GatewayBackends, r.MeshBackends} {
		for _, rule := range b.Clusters {
			for _, cluster := range rule {
				if parts := strings.Split(cluster, "/"); len(parts) >= 3 {
					out[mesh.Name{Namespace: parts[0], Name: parts[1]}] = struct{}{}
				}
			}
		}
	}
	return out
}

// settleUsers notes which Services a route uses. Its parents are the ancestors of those
// Services' policies.
func (t *Translator) settleUsers(key kube.Key, old, now *routeState) {
	before, after := backendsOf(old.route), backendsOf(now.route)
	for svc := range before {
		if _, still := after[svc]; !still {
			t.policies.users.remove(svc, key)
			t.markPolicies(svc)
		}
	}
	for svc := range after {
		t.policies.users.put(svc, key, struct{}{})
		t.markPolicies(svc)
	}
}

// policyStatus has one entry for each Gateway, and each Service that is the parent of a
// route, through which a target is reached; if there is none, one for each target.
func (t *Translator) policyStatus(name mesh.Name) *gatewayv1.PolicyStatus {
	p := t.policies.all[name]
	if p == nil {
		return nil
	}
	accepted := p.Accepted
	var rivals []*graph.Policy
	ancestors := map[string]gatewayv1.ParentReference{}
	for _, target := range p.Targets {
		rivals = append(rivals, t.policies.list(target.Service)...)
		for key := range t.policies.users[target.Service] {
			for i := range t.routes[key].route.Parents {
				parent := &t.routes[key].route.Parents[i]
				owner := mesh.Name{Namespace: key.Namespace, Name: string(parent.Ref.Name)}
				if parent.Ref.Namespace != nil {
					owner.Namespace = string(*parent.Ref.Namespace)
				}
				switch {
				case parent.Mesh:
					addAncestor(ancestors, "", kube.KindService, owner)
				case len(parent.Attachments) > 0: // perhaps by way of a ListenerSet
					addAncestor(ancestors, gatewayv1.GroupName, kube.KindGateway, parent.Attachments[0].Gateway)
				case parent.Ref.Kind == nil || *parent.Ref.Kind == gatewayv1.Kind(kube.KindGateway):
					addAncestor(ancestors, gatewayv1.GroupName, kube.KindGateway, owner)
				}
			}
		}
	}
	if len(ancestors) == 0 {
		for _, target := range p.Targets {
			addAncestor(ancestors, "", kube.KindService, target.Service)
		}
	}
	if winner := p.LostTo(rivals); winner != nil && accepted.Status == metav1.ConditionTrue {
		accepted = conditions.PolicyNotAccepted(gatewayv1.PolicyReasonConflicted, p.Generation,
			fmt.Sprintf("BackendTLSPolicy %s has the same targets and takes precedence", winner.Name))
	}
	out := &gatewayv1.PolicyStatus{Ancestors: []gatewayv1.PolicyAncestorStatus{}}
	for _, id := range slices.Sorted(maps.Keys(ancestors)) {
		if len(out.Ancestors) == maxAncestors {
			break
		}
		out.Ancestors = append(out.Ancestors, gatewayv1.PolicyAncestorStatus{
			AncestorRef: ancestors[id], ControllerName: gatewayv1.GatewayController(t.cfg.Controller),
			Conditions: []metav1.Condition{accepted, p.ResolvedRefs},
		})
	}
	return out
}

func addAncestor(to map[string]gatewayv1.ParentReference, group gatewayv1.Group, kind kube.Kind, name mesh.Name) {
	k, ns := gatewayv1.Kind(kind), gatewayv1.Namespace(name.Namespace)
	to[string(kind)+" "+name.String()] = gatewayv1.ParentReference{Group: &group, Kind: &k, Namespace: &ns, Name: gatewayv1.ObjectName(name.Name)}
}
