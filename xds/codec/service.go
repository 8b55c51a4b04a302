package codec

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
)

// maxServiceEndpoints bounds the endpoints of all ports of one service, because
// a short message can name every host once for each port. It is ten times what
// Kubernetes is tested with.
const maxServiceEndpoints = 1 << 20

// host is what an endpoint says besides its port.
type host struct {
	addr     netip.Addr
	workload mesh.Name
	node     string
	hostname string

	weight      uint32
	terminating bool
}

func hostOf(e *mesh.Endpoint) host {
	return host{e.AddrPort.Addr(), e.Workload, e.Node, e.Hostname, e.Weight, e.Terminating}
}

// endpoint returns the host's endpoint of a port.
func (h *host) endpoint(port uint16) mesh.Endpoint {
	return mesh.Endpoint{
		AddrPort: netip.AddrPortFrom(h.addr, port), Workload: h.workload, Node: h.node, Hostname: h.hostname,
		Weight: h.weight, Terminating: h.terminating,
	}
}

// allEndpoints yields all endpoints of a service with the fields that they are in.
func allEndpoints(s *mesh.Service) iter.Seq2[string, *mesh.Endpoint] {
	return func(yield func(string, *mesh.Endpoint) bool) {
		lists := []struct {
			field string
			list  []mesh.Endpoint
		}{{"Hosts", s.Hosts}}
		for i := range s.Ports {
			lists = append(lists, []struct {
				field string
				list  []mesh.Endpoint
			}{{fmt.Sprintf("Ports[%d].Endpoints", i), s.Ports[i].Endpoints}, {fmt.Sprintf("Ports[%d].Draining", i), s.Ports[i].Draining}}...)
		}
		for _, l := range lists {
			for j := range l.list {
				if !yield(l.field, &l.list[j]) {
					return
				}
			}
		}
	}
}

// texts interns the strings of a service.
type textTable struct {
	list []string
	num  map[string]uint32
}

func (t *textTable) number(s string) uint32 {
	if s == "" {
		return 0
	}
	n, ok := t.num[s]
	if !ok {
		t.list = append(t.list, s)
		n = uint32(len(t.list))
		t.num[s] = n
	}
	return n
}

func encodeService(s *mesh.Service) (*sluicev1.Service, error) {
	if err := checkName(s.Name); err != nil {
		return nil, below("Name", err)
	}
	vips, err := addressBytes(s.VIPs)
	if err != nil {
		return nil, below("VIPs", err)
	}
	m := &sluicev1.Service{
		Namespace:    s.Name.Namespace,
		Name:         s.Name.Name,
		Vips:         vips,
		ExternalName: s.ExternalName,
		Headless:     s.Headless,
		Local:        s.Local,
	}
	switch {
	case len(s.Hosts) > 0 && (len(s.Ports) > 0 || !s.Headless):
		return nil, at("Hosts", "set on a service that has ports or is not headless")
	case s.AffinityTimeout < 0:
		return nil, at("AffinityTimeout", "negative")
	case s.AffinityTimeout > 0:
		m.AffinityTimeout = durationpb.New(s.AffinityTimeout)
	}
	hosts, err := encodeHosts(s, m)
	if err != nil {
		return nil, err
	}
	for i := range s.Ports {
		p, err := encodePort(&s.Ports[i], hosts)
		if err != nil {
			return nil, below(fmt.Sprintf("Ports[%d]", i), err)
		}
		m.Ports = append(m.Ports, p)
	}
	return m, nil
}

// encodeHosts writes the hosts of all ports into columns and returns their numbers.
func encodeHosts(s *mesh.Service, m *sluicev1.Service) (map[host]uint32, error) {
	total := 0
	for range allEndpoints(s) {
		total++
	}
	if total == 0 {
		return nil, nil
	}
	if total > maxServiceEndpoints {
		return nil, at("Ports", "%d endpoints, more than %d", total, maxServiceEndpoints)
	}
	numbers := make(map[host]uint32, total/max(1, len(s.Ports)))
	var v4, v6 []host
	for field, e := range allEndpoints(s) {
		if err := checkAddress(e.AddrPort.Addr()); err != nil {
			return nil, below(field+"[].AddrPort", err)
		}
		h := hostOf(e)
		if _, ok := numbers[h]; ok {
			continue
		}
		numbers[h] = 0
		if h.addr.Is4() {
			v4 = append(v4, h)
		} else {
			v6 = append(v6, h)
		}
	}
	t := textTable{num: map[string]uint32{}}
	n := len(v4) + len(v6)
	columns := make([]uint32, 6*n)
	namespaces, workloads, nodes, names := columns[:n], columns[n:2*n], columns[2*n:3*n], columns[3*n:4*n]
	weights, terminating := columns[4*n:5*n], columns[5*n:]
	for i, h := range append(v4, v6...) {
		numbers[h] = uint32(i)
		if h.addr.Is4() {
			a := h.addr.As4()
			m.HostsIpv4 = append(m.HostsIpv4, a[:]...)
		} else {
			a := h.addr.As16()
			m.HostsIpv6 = append(m.HostsIpv6, a[:]...)
		}
		namespaces[i] = t.number(h.workload.Namespace)
		workloads[i] = t.number(h.workload.Name)
		nodes[i] = t.number(h.node)
		names[i] = t.number(h.hostname)
		weights[i] = h.weight
		if h.terminating {
			terminating[i] = 1
		}
	}
	m.Texts = t.list
	m.HostNamespaces = unlessZero(namespaces)
	m.HostWorkloads = unlessZero(workloads)
	m.HostNodes = unlessZero(nodes)
	m.HostNames = unlessZero(names)
	m.HostWeights = unlessZero(weights)
	m.HostTerminating = unlessZero(terminating)
	return numbers, nil
}

func unlessZero(column []uint32) []uint32 {
	for _, n := range column {
		if n != 0 {
			return column
		}
	}
	return nil
}

func encodePort(p *mesh.ServicePort, hosts map[host]uint32) (*sluicev1.Service_Port, error) {
	if err := checkPort(p); err != nil {
		return nil, err
	}
	m := &sluicev1.Service_Port{
		Name:        p.Name,
		Port:        uint32(p.Port),
		Protocol:    sluicev1.Protocol(p.Protocol),
		AppProtocol: string(p.AppProtocol),
		Steered:     p.Steered,
	}
	endpoints := p.Endpoints
	if len(p.Draining) > 0 {
		endpoints = slices.Concat(p.Endpoints, p.Draining)
		m.Draining = uint32(len(p.Draining))
	}
	if len(endpoints) == 0 {
		return m, nil
	}
	same, all := true, len(endpoints) == len(hosts)
	numbers := make([]uint32, len(endpoints))
	for i := range endpoints {
		e := &endpoints[i]
		numbers[i] = hosts[hostOf(e)]
		all = all && numbers[i] == uint32(i)
		same = same && e.AddrPort.Port() == endpoints[0].AddrPort.Port()
	}
	if all {
		m.AllHosts = true
	} else {
		m.Hosts = numbers
	}
	if same {
		m.TargetPort = uint32(endpoints[0].AddrPort.Port())
		return m, nil
	}
	m.TargetPorts = make([]uint32, len(endpoints))
	for i := range endpoints {
		m.TargetPorts[i] = uint32(endpoints[i].AddrPort.Port())
	}
	return m, nil
}

func checkPort(p *mesh.ServicePort) error {
	if p.Protocol != mesh.ProtocolTCP && p.Protocol != mesh.ProtocolUDP {
		return at("Protocol", "%d is neither TCP nor UDP", p.Protocol)
	}
	if p.Steered && p.Protocol != mesh.ProtocolTCP {
		return at("Steered", "set on a port that is not TCP")
	}
	return checkAppProtocol(p.AppProtocol)
}

func checkAppProtocol(p mesh.AppProtocol) error {
	switch p {
	case mesh.AppProtocolUnknown, mesh.AppProtocolHTTP, mesh.AppProtocolHTTP2, mesh.AppProtocolTLS, mesh.AppProtocolTCP:
		return nil
	}
	return at("AppProtocol", "%q is not known", string(p))
}

func decodeService(m *sluicev1.Service) (*mesh.Service, error) {
	s := &mesh.Service{
		Name:         mesh.Name{Namespace: m.GetNamespace(), Name: m.GetName()},
		ExternalName: m.GetExternalName(),
		Headless:     m.GetHeadless(),
		Local:        m.GetLocal(),
	}
	if err := checkName(s.Name); err != nil {
		return nil, below("name", err)
	}
	var err error
	if s.VIPs, err = addressesOf(m.GetVips()); err != nil {
		return nil, below("vips", err)
	}
	if d := m.GetAffinityTimeout(); d != nil {
		if err := d.CheckValid(); err != nil {
			return nil, below("affinity_timeout", err)
		}
		if s.AffinityTimeout = d.AsDuration(); s.AffinityTimeout <= 0 {
			return nil, at("affinity_timeout", "not positive")
		}
	}
	hosts, err := decodeHosts(m)
	if err != nil {
		return nil, err
	}
	total := 0
	for i, mp := range m.GetPorts() {
		p, err := decodePort(mp, hosts, maxServiceEndpoints-total)
		if err != nil {
			return nil, below(fmt.Sprintf("ports[%d]", i), err)
		}
		total += len(p.Endpoints) + len(p.Draining)
		s.Ports = append(s.Ports, p)
	}
	if len(s.Ports) == 0 && s.Headless {
		for i := range hosts {
			s.Hosts = append(s.Hosts, hosts[i].endpoint(0))
		}
	}
	return s, nil
}

func decodeHosts(m *sluicev1.Service) ([]host, error) {
	v4, v6 := m.GetHostsIpv4(), m.GetHostsIpv6()
	if len(v4)%4 != 0 {
		return nil, at("hosts_ipv4", "%d bytes", len(v4))
	}
	if len(v6)%16 != 0 {
		return nil, at("hosts_ipv6", "%d bytes", len(v6))
	}
	hosts := make([]host, 0, len(v4)/4+len(v6)/16)
	for ; len(v4) > 0; v4 = v4[4:] {
		hosts = append(hosts, host{addr: netip.AddrFrom4([4]byte(v4))})
	}
	for ; len(v6) > 0; v6 = v6[16:] {
		hosts = append(hosts, host{addr: netip.AddrFrom16([16]byte(v6))})
	}
	numbers := []struct {
		field  string
		column []uint32
		most   uint32
		set    func(*host, uint32)
	}{
		{"host_weights", m.GetHostWeights(), math.MaxUint32, func(h *host, n uint32) { h.weight = n }},
		{"host_terminating", m.GetHostTerminating(), 1, func(h *host, n uint32) { h.terminating = n == 1 }},
	}
	for _, c := range numbers {
		if len(c.column) != 0 && len(c.column) != len(hosts) {
			return nil, at(c.field, "%d entries for %d hosts", len(c.column), len(hosts))
		}
		for i, n := range c.column {
			if n > c.most {
				return nil, at(fmt.Sprintf("%s[%d]", c.field, i), "%d is above %d", n, c.most)
			}
			c.set(&hosts[i], n)
		}
	}
	columns := []struct {
		field  string
		column []uint32
		set    func(*host, string)
	}{
		{"host_namespaces", m.GetHostNamespaces(), func(h *host, t string) { h.workload.Namespace = t }},
		{"host_workloads", m.GetHostWorkloads(), func(h *host, t string) { h.workload.Name = t }},
		{"host_nodes", m.GetHostNodes(), func(h *host, t string) { h.node = t }},
		{"host_names", m.GetHostNames(), func(h *host, t string) { h.hostname = t }},
	}
	for _, c := range columns {
		if len(c.column) == 0 {
			continue
		}
		if len(c.column) != len(hosts) {
			return nil, at(c.field, "%d entries for %d hosts", len(c.column), len(hosts))
		}
		for i, n := range c.column {
			switch {
			case n == 0:
			case int64(n) > int64(len(m.GetTexts())):
				return nil, at(fmt.Sprintf("%s[%d]", c.field, i), "there is no text %d", n)
			default:
				c.set(&hosts[i], m.GetTexts()[n-1])
			}
		}
	}
	return hosts, nil
}

// decodePort decodes a port with at most limit endpoints.
func decodePort(m *sluicev1.Service_Port, hosts []host, limit int) (mesh.ServicePort, error) {
	p := mesh.ServicePort{
		Name:        m.GetName(),
		AppProtocol: mesh.AppProtocol(m.GetAppProtocol()),
		Steered:     m.GetSteered(),
	}
	var err error
	if p.Port, err = port(m.GetPort()); err != nil {
		return p, below("port", err)
	}
	if n := m.GetProtocol(); n >= 0 && n <= math.MaxUint8 {
		p.Protocol = mesh.Protocol(n)
	}
	if err := checkPort(&p); err != nil {
		return p, err
	}
	n := len(m.GetHosts())
	if m.GetAllHosts() {
		if n != 0 {
			return p, at("hosts", "set together with all_hosts")
		}
		n = len(hosts)
	}
	if n > limit {
		return p, at("hosts", "more than %d endpoints in one service", maxServiceEndpoints)
	}
	targets := m.GetTargetPorts()
	switch {
	case len(targets) > 0 && m.GetTargetPort() != 0:
		return p, at("target_ports", "set together with target_port")
	case len(targets) > 0 && len(targets) != n:
		return p, at("target_ports", "%d entries for %d endpoints", len(targets), n)
	case int64(m.GetDraining()) > int64(n):
		return p, at("draining", "%d of %d endpoints", m.GetDraining(), n)
	case n == 0:
		return p, nil
	}
	endpoints := make([]mesh.Endpoint, n)
	for i := range endpoints {
		number := uint32(i)
		if !m.GetAllHosts() {
			number = m.GetHosts()[i]
		}
		if int64(number) >= int64(len(hosts)) {
			return p, at(fmt.Sprintf("hosts[%d]", i), "there is no host %d", number)
		}
		target := m.GetTargetPort()
		if len(targets) > 0 {
			target = targets[i]
		}
		t, err := port(target)
		if err != nil {
			return p, below("target_port", err)
		}
		endpoints[i] = hosts[number].endpoint(t)
	}
	if ready := n - int(m.GetDraining()); ready > 0 {
		p.Endpoints = endpoints[:ready:ready]
	}
	if draining := endpoints[n-int(m.GetDraining()):]; len(draining) > 0 {
		p.Draining = draining
	}
	return p, nil
}

func port(n uint32) (uint16, error) {
	if n > math.MaxUint16 {
		return 0, errors.New("above 65535")
	}
	return uint16(n), nil
}
