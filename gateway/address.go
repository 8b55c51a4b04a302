package gateway

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sluice-mesh/sluice/gateway/conditions"
	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/pool"
	"github.com/sluice-mesh/sluice/mesh"
)

// addresses gives each Gateway its own.
type addresses struct {
	pool   *pool.Pool
	static []netip.Prefix
	// wanted has the Gateways that name an address in their spec, by age.
	wanted index[netip.Addr, mesh.Name, time.Time]
	wants  map[mesh.Name][]netip.Addr
	// unhappy Gateways did not get what they want; a released address may change that.
	unhappy map[mesh.Name]struct{}
}

func newAddresses(cfg Config) (*addresses, error) {
	path := ""
	if cfg.StateDir != "" {
		path = filepath.Join(cfg.StateDir, "gateway-addresses.json")
	}
	p, err := pool.Open(path, cfg.GatewayPools, 0)
	if err != nil {
		return nil, err
	}
	return &addresses{
		pool: p, static: cfg.StaticAddresses, unhappy: map[mesh.Name]struct{}{},
		wanted: index[netip.Addr, mesh.Name, time.Time]{}, wants: map[mesh.Name][]netip.Addr{},
	}, nil
}

func addressOwner(name mesh.Name) string {
	return kube.Key{Kind: kube.KindGateway, Namespace: name.Namespace, Name: name.Name}.String()
}

// want notes the addresses that a Gateway names (gw nil: none, it is gone) and
// returns the other Gateways that this may concern.
func (a *addresses) want(name mesh.Name, gw *gatewayv1.Gateway) []mesh.Name {
	var now []netip.Addr
	if gw != nil {
		for _, spec := range gw.Spec.Addresses {
			if addr, err := netip.ParseAddr(spec.Value); err == nil && isIP(spec) {
				now = append(now, addr.Unmap())
			}
		}
	}
	before := a.wants[name]
	var concerned []mesh.Name
	concern := func(addr netip.Addr) {
		for other := range a.wanted[addr] {
			if other != name {
				concerned = append(concerned, other)
			}
		}
	}
	for _, addr := range before {
		if !slices.Contains(now, addr) {
			a.wanted.remove(addr, name)
			concern(addr)
		}
	}
	for _, addr := range now {
		created := gw.CreationTimestamp.UTC()
		if t, ok := a.wanted[addr][name]; !ok || !t.Equal(created) {
			a.wanted.put(addr, name, created)
			concern(addr)
		}
	}
	if len(now) == 0 {
		delete(a.wants, name)
	} else {
		a.wants[name] = now
	}
	if gw == nil {
		delete(a.unhappy, name)
	}
	if gw == nil || !slices.Equal(before, now) {
		for other := range a.unhappy {
			concerned = append(concerned, other)
		}
	}
	return concerned
}

// holder returns the Gateway that an address goes to: the oldest, then the first by
// name, of those that name it.
func (a *addresses) holder(addr netip.Addr) (holder mesh.Name) {
	var age time.Time
	for name, created := range a.wanted[addr] {
		c := created.Compare(age)
		if holder.IsZero() || c < 0 || c == 0 && name.Compare(holder) < 0 {
			holder, age = name, created
		}
	}
	return holder
}

// yield gives back the addresses that are not, or no longer, the Gateway's.
func (a *addresses) yield(name mesh.Name, gw *gatewayv1.Gateway) {
	owner := addressOwner(name)
	var keep []netip.Addr
	for _, addr := range a.wants[name] {
		if a.holder(addr) == name {
			keep = append(keep, addr)
		}
	}
	if gw != nil {
		for _, is4 := range dynamicFamilies(gw, a.pool) {
			if a.pool.Remembers(owner, is4) {
				addr, err := a.pool.Take(owner, is4)
				if err == nil {
					keep = append(keep, addr)
				}
			}
		}
	}
	a.pool.Release(owner, keep...)
}

// dynamicFamilies lists the families (true is IPv4) of which a Gateway gets an
// address that it does not name.
func dynamicFamilies(gw *gatewayv1.Gateway, p *pool.Pool) []bool {
	var families []bool
	for _, is4 := range []bool{true, false} {
		if p.Has(is4) {
			families = append(families, is4)
		}
	}
	if len(gw.Spec.Addresses) == 0 {
		return families
	}
	n := 0
	for _, spec := range gw.Spec.Addresses {
		if isIP(spec) && spec.Value == "" {
			n++
		}
	}
	return families[:min(n, len(families))]
}

func isIP(spec gatewayv1.GatewaySpecAddress) bool {
	return spec.Type == nil || *spec.Type == gatewayv1.IPAddressType
}

// assign gives a Gateway its addresses. refused is set if the Gateway cannot be
// accepted with what it asks for, short if it did not get all of that.
func (a *addresses) assign(name mesh.Name, gw *gatewayv1.Gateway) (got []netip.Addr, refused string, short *metav1.Condition) {
	owner := addressOwner(name)
	lack := func(reason gatewayv1.GatewayConditionReason, format string, args ...any) {
		if short == nil {
			c := conditions.GatewayNotProgrammed(reason, gw.Generation, fmt.Sprintf(format, args...))
			short = &c
		}
	}
	for i, spec := range gw.Spec.Addresses {
		if !isIP(spec) {
			return nil, fmt.Sprintf("spec.addresses[%d]: type %s is not supported; use IPAddress", i, *spec.Type), nil
		}
		if spec.Value == "" {
			continue
		}
		addr, err := netip.ParseAddr(spec.Value)
		if err == nil {
			addr = addr.Unmap()
			err = a.usable(name, addr)
		}
		if err == nil {
			err = a.pool.Claim(owner, addr)
		}
		if err != nil {
			lack(gatewayv1.GatewayReasonAddressNotUsable, "spec.addresses[%d]: %s: %v", i, spec.Value, err)
			continue
		}
		if !slices.Contains(got, addr) {
			got = append(got, addr)
		}
	}
	families := dynamicFamilies(gw, a.pool)
	for _, is4 := range families {
		addr, err := a.pool.Take(owner, is4)
		if err != nil {
			lack(gatewayv1.GatewayReasonAddressNotAssigned, "The address pool of the node: %v; enlarge --gateway-addresses", err)
			continue
		}
		got = append(got, addr)
	}
	if len(got) == 0 {
		lack(gatewayv1.GatewayReasonAddressNotAssigned, "The node has no address pool for Gateways; set --gateway-addresses or spec.addresses")
	}
	if short != nil {
		a.unhappy[name] = struct{}{}
	} else {
		delete(a.unhappy, name)
	}
	return got, "", short
}

// usable reports why an address that a Gateway names cannot be its own.
func (a *addresses) usable(name mesh.Name, addr netip.Addr) error {
	if holder := a.holder(addr); holder != name {
		return fmt.Errorf("already in use by Gateway %s", holder)
	}
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.Zone() != "" {
		return fmt.Errorf("not an address that a Gateway can have")
	}
	if !a.pool.Has(true) && !a.pool.Has(false) && len(a.static) == 0 || a.pool.Contains(addr) {
		return nil
	}
	if slices.ContainsFunc(a.static, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return nil
	}
	return fmt.Errorf("outside of the addresses that the node is configured with for Gateways")
}
