package watch

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/manifest"
	"github.com/sluice-mesh/sluice/kube/pool"
)

// set is the objects of all files: which file's version counts, and what an API
// server adds to it. Nothing here touches a file but the pool's.
type set struct {
	cidrs      []netip.Prefix
	pool       *pool.Pool
	candidates map[kube.Key]map[string]candidate // by path
	published  map[kube.Key]kube.Object
	sources    map[kube.Key]source // what published was made of
	verdicts   map[kube.Key]map[string]bool
	dirty      map[kube.Key]bool
	// blocked are Services that did not get their addresses.
	blocked map[kube.Key]bool
	save    func(error)
}

// candidate is an object of a file.
type candidate struct {
	rank    rank
	running bool
	// absent says that the file is away, for a moment or for good: any other has
	// precedence.
	absent bool
	object kube.Object
}

// compare orders candidates by precedence.
func (c candidate) compare(o candidate) int {
	switch {
	case c.absent != o.absent && o.absent:
		return -1
	case c.absent != o.absent:
		return 1
	}
	return c.rank.compare(o.rank)
}

// source is what a published object was made of.
type source struct{ object, declared kube.Object }

// verdict says of an object of a file that it has no effect, or (text empty) that
// it has again.
type verdict struct {
	path              string
	key               kube.Key
	field, text, cure string
}

func newSet(cfg Config) (*set, error) {
	path := ""
	if cfg.StateDir != "" {
		path = filepath.Join(cfg.StateDir, "service-addresses.json")
	}
	reserve := uint64(0)
	for _, p := range cfg.ServiceCIDRs {
		reserve = max(reserve, pool.StaticBand(p))
	}
	p, err := pool.Open(path, cfg.ServiceCIDRs, reserve)
	if err != nil {
		return nil, err
	}
	log := cfg.Logger
	return &set{
		cidrs: cfg.ServiceCIDRs, pool: p, candidates: map[kube.Key]map[string]candidate{}, published: map[kube.Key]kube.Object{},
		sources: map[kube.Key]source{}, verdicts: map[kube.Key]map[string]bool{}, dirty: map[kube.Key]bool{}, blocked: map[kube.Key]bool{},
		save: func(err error) { log.Error("addresses of Services may change at the next start", "error", err) },
	}, nil
}

func (s *set) put(key kube.Key, path string, c candidate) {
	if s.candidates[key] == nil {
		s.candidates[key] = map[string]candidate{}
	}
	if old, ok := s.candidates[key][path]; ok && old == c {
		return
	}
	s.candidates[key][path] = c
	s.dirty[key] = true
}

// setAbsent notes that the file of a candidate went away or came back.
func (s *set) setAbsent(key kube.Key, path string, absent bool) {
	if c, ok := s.candidates[key][path]; ok && c.absent != absent {
		c.absent = absent
		s.candidates[key][path] = c
		s.dirty[key] = true
	}
}

func (s *set) drop(key kube.Key, path string) {
	delete(s.candidates[key], path)
	if len(s.candidates[key]) == 0 {
		delete(s.candidates, key)
	}
	s.dirty[key] = true
}

// settle decides for every dirty key which version counts, and returns what is
// different from before.
func (s *set) settle() (upserts []kube.Object, deletes []kube.Key, verdicts []verdict) {
	if len(s.dirty) == 0 {
		return nil, nil, nil
	}
	var services []kube.Key
	chosen := map[kube.Key]source{}
	for _, key := range slices.SortedFunc(maps.Keys(s.dirty), kube.Key.Compare) {
		if key.Kind == kube.KindService {
			continue // after the others that wait for an address were added
		}
		src, v := s.choose(key)
		chosen[key] = src
		verdicts = append(verdicts, v...)
	}
	for key := range s.dirty {
		if key.Kind == kube.KindService {
			services = append(services, key)
		}
	}
	if len(services) > 0 {
		for key := range s.blocked {
			if !s.dirty[key] {
				services = append(services, key)
			}
		}
	}
	slices.SortFunc(services, kube.Key.Compare)
	for _, key := range services {
		src, v := s.choose(key)
		chosen[key] = src
		verdicts = append(verdicts, v...)
	}
	clear(s.dirty)

	addressed, failed := s.address(services, chosen)
	verdicts = append(verdicts, failed...)

	for _, key := range slices.SortedFunc(maps.Keys(chosen), kube.Key.Compare) {
		src := chosen[key]
		old := s.published[key]
		if src.object == nil {
			if old != nil {
				delete(s.published, key)
				delete(s.sources, key)
				deletes = append(deletes, key)
			}
			continue
		}
		o := src.object
		if svc, ok := addressed[key]; ok {
			o = svc
		}
		if pod, ok := o.(*corev1.Pod); ok && src.declared != nil {
			o = mergePod(pod, src.declared.(*corev1.Pod))
		}
		o = withGeneration(o, old)
		s.sources[key] = src
		if old != nil && reflect.DeepEqual(old, o) {
			continue
		}
		s.published[key] = o
		upserts = append(upserts, o)
	}
	if err := s.pool.Save(); err != nil {
		s.save(err)
	}
	return upserts, deletes, verdicts
}

// choose finds the version of an object that counts.
func (s *set) choose(key kube.Key) (src source, verdicts []verdict) {
	paths := slices.SortedFunc(maps.Keys(s.candidates[key]), func(a, b string) int {
		return s.candidates[key][a].compare(s.candidates[key][b])
	})
	// One version of each world counts: what is declared, and what runs.
	var declared, running string
	before := s.verdicts[key]
	now := map[string]bool{}
	for _, path := range paths {
		first := &declared
		if s.candidates[key][path].running {
			first = &running
		}
		if *first == "" {
			*first = path
			continue
		}
		if s.candidates[key][path].absent {
			continue
		}
		now[path] = true
		verdicts = append(verdicts, verdict{
			path: path, key: key, text: fmt.Sprintf("is also in %s, which takes precedence", *first), cure: "remove one of the two",
		})
	}
	for path := range before {
		if !now[path] {
			verdicts = append(verdicts, verdict{path: path, key: key})
		}
	}
	if len(now) > 0 {
		s.verdicts[key] = now
	} else {
		delete(s.verdicts, key)
	}
	if declared != "" {
		src.object = s.candidates[key][declared].object
	}
	if running != "" {
		src.declared, src.object = src.object, s.candidates[key][running].object
	}
	return src, verdicts
}

// mergePod adds what only the declaration of a running Pod knows.
func mergePod(running, declared *corev1.Pod) *corev1.Pod {
	p := *running
	p.Labels = maps.Clone(declared.Labels)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	maps.Copy(p.Labels, running.Labels)
	ports := false
	for i := range p.Spec.Containers {
		ports = ports || len(p.Spec.Containers[i].Ports) > 0
	}
	if !ports {
		p.Spec.Containers = declared.Spec.Containers
	}
	p.Spec.Containers = slices.Clone(p.Spec.Containers)
	for i := range min(len(p.Spec.Containers), len(declared.Spec.Containers)) {
		if c := &p.Spec.Containers[i]; c.ReadinessProbe == nil {
			c.ReadinessProbe = declared.Spec.Containers[i].ReadinessProbe
		}
	}
	if p.Spec.Hostname == "" && p.Spec.Subdomain == "" {
		p.Spec.Hostname, p.Spec.Subdomain = declared.Spec.Hostname, declared.Spec.Subdomain
	}
	return &p
}

// withGeneration gives an object without a generation the next one.
func withGeneration(o, old kube.Object) kube.Object {
	if o.GetGeneration() != 0 {
		return o
	}
	generation := int64(1)
	if old != nil {
		generation = old.GetGeneration()
		if !manifest.SameSpec(o, old) {
			generation++
		}
	}
	c := o.DeepCopyObject().(kube.Object)
	c.SetGeneration(generation)
	return c
}

// address gives Services their cluster IPs: first those that have had theirs, then
// those that name them, then the others.
func (s *set) address(keys []kube.Key, chosen map[kube.Key]source) (map[kube.Key]*corev1.Service, []verdict) {
	out := map[kube.Key]*corev1.Service{}
	var verdicts []verdict
	type wish struct {
		key      kube.Key
		svc      *corev1.Service
		explicit []netip.Addr
		families []bool // of dynamic addresses, true is IPv4
	}
	var wishes []wish
	for _, key := range keys {
		svc, ok := chosen[key].object.(*corev1.Service)
		if !ok || svc.Spec.Type == corev1.ServiceTypeExternalName {
			s.pool.Release(key.String())
			delete(s.blocked, key)
			if ok {
				out[key] = svc
			}
			continue
		}
		families, err := s.families(svc)
		if err != "" {
			verdicts = append(verdicts, verdict{key: key, field: "spec.ipFamilyPolicy", text: err, cure: "configure a service CIDR of each family"})
			chosen[key] = source{}
			s.blocked[key] = true
			continue
		}
		w := wish{key: key, svc: svc, families: families}
		for _, text := range svc.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(text); err == nil {
				w.explicit = append(w.explicit, a)
				w.families = slices.DeleteFunc(w.families, func(is4 bool) bool { return is4 == a.Is4() })
			}
		}
		if svc.Spec.ClusterIP == corev1.ClusterIPNone {
			w.families = nil
		}
		keep := slices.Clone(w.explicit)
		for _, is4 := range w.families {
			if s.pool.Remembers(key.String(), is4) {
				if a, err := s.pool.Take(key.String(), is4); err == nil {
					keep = append(keep, a)
				}
			}
		}
		s.pool.Release(key.String(), keep...)
		wishes = append(wishes, w)
	}
	got := map[kube.Key][]netip.Addr{}
	fail := func(w wish, field, text, cure string) {
		s.pool.Release(w.key.String())
		s.blocked[w.key] = true
		if s.keepPublished(w.key) {
			delete(chosen, w.key)
			text += inForce
		} else {
			chosen[w.key] = source{}
		}
		verdicts = append(verdicts, verdict{key: w.key, field: field, text: text, cure: cure})
	}
	for i := range wishes {
		w := &wishes[i]
		for _, a := range w.explicit {
			if err := s.pool.Claim(w.key.String(), a); err != nil {
				fail(*w, "spec.clusterIP", fmt.Sprintf("%s: %v", a, err), "choose another, or leave clusterIP out")
				w.svc = nil
				break
			}
			got[w.key] = append(got[w.key], a)
		}
	}
	for _, w := range wishes {
		if w.svc == nil {
			continue
		}
		ok := true
		for _, is4 := range w.families {
			a, err := s.pool.Take(w.key.String(), is4)
			if err != nil {
				fail(w, "spec.clusterIP", fmt.Sprintf("no address for it: %v", err), "enlarge the service CIDR")
				ok = false
				break
			}
			got[w.key] = append(got[w.key], a)
		}
		if ok {
			delete(s.blocked, w.key)
			out[w.key] = s.withAddresses(w.svc, got[w.key])
		}
	}
	for i := range verdicts {
		verdicts[i].path = s.pathOf(verdicts[i].key)
	}
	// A verdict that was spoken before and is not now is taken back.
	refused := map[kube.Key]bool{}
	for _, v := range verdicts {
		refused[v.key] = true
	}
	for _, key := range keys {
		if path := s.pathOf(key); !refused[key] && path != "" {
			verdicts = append(verdicts, verdict{path: path, key: key})
		}
	}
	return out, verdicts
}

// keepPublished takes the addresses again that the published version of a Service
// has, and reports whether it can stay.
func (s *set) keepPublished(key kube.Key) bool {
	svc, ok := s.published[key].(*corev1.Service)
	if !ok {
		return false
	}
	for _, text := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil && s.pool.Claim(key.String(), a) != nil {
			s.pool.Release(key.String())
			return false
		}
	}
	return true
}

// pathOf returns the file whose version of an object counts.
func (s *set) pathOf(key kube.Key) (path string) {
	for p, c := range s.candidates[key] {
		if path == "" || c.compare(s.candidates[key][path]) < 0 {
			path = p
		}
	}
	return path
}

// families lists the families that a Service has, the first being its primary one
// (true is IPv4), by ipFamilies, ipFamilyPolicy and the node's CIDRs.
func (s *set) families(svc *corev1.Service) (families []bool, problem string) {
	for _, f := range svc.Spec.IPFamilies {
		families = append(families, f == corev1.IPv4Protocol)
	}
	for _, text := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil && !slices.Contains(families, a.Is4()) {
			families = append(families, a.Is4())
		}
	}
	policy := corev1.IPFamilyPolicySingleStack
	if svc.Spec.IPFamilyPolicy != nil {
		policy = *svc.Spec.IPFamilyPolicy
	} else if len(families) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	if len(families) == 0 {
		families = []bool{true}
		if len(s.cidrs) > 0 {
			families[0] = s.cidrs[0].Addr().Is4()
		}
	}
	if policy != corev1.IPFamilyPolicySingleStack && len(families) == 1 && (s.pool.Has(!families[0]) || policy == corev1.IPFamilyPolicyRequireDualStack) {
		families = append(families, !families[0])
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return families, ""
	}
	for _, is4 := range families {
		explicit := slices.ContainsFunc(svc.Spec.ClusterIPs, func(text string) bool {
			a, err := netip.ParseAddr(text)
			return err == nil && a.Is4() == is4
		})
		if !explicit && !s.pool.Has(is4) {
			return nil, "there is no service CIDR of the family that it wants"
		}
	}
	return families, ""
}

// withAddresses returns the Service as an API server would have stored it.
func (s *set) withAddresses(svc *corev1.Service, got []netip.Addr) *corev1.Service {
	families, _ := s.families(svc)
	c := svc.DeepCopy()
	c.Spec.IPFamilies, c.Spec.ClusterIPs = nil, nil
	for _, is4 := range families {
		family := corev1.IPv6Protocol
		if is4 {
			family = corev1.IPv4Protocol
		}
		c.Spec.IPFamilies = append(c.Spec.IPFamilies, family)
		for _, a := range got {
			if a.Is4() == is4 {
				c.Spec.ClusterIPs = append(c.Spec.ClusterIPs, a.String())
			}
		}
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		c.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
	}
	if len(c.Spec.ClusterIPs) > 0 {
		c.Spec.ClusterIP = c.Spec.ClusterIPs[0]
	}
	if c.Spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if len(families) > 1 {
			policy = corev1.IPFamilyPolicyRequireDualStack
		}
		c.Spec.IPFamilyPolicy = &policy
	}
	return c
}
