package workload

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/mesh"
)

// InboundAnnotation of a workload says what becomes of TCP connections to the ports
// that it declares: "capture" has the node proxy take and pass them on, and the
// workload take them itself while no proxy serves; "require" refuses them then.
const InboundAnnotation = "sluice.dev/inbound"

// Inbound is what a workload wants for connections to its own ports.
type Inbound struct {
	// Ports are the TCP ports whose connections the node proxy takes; none: no capture.
	Ports []uint16
	// Required refuses connections while no proxy serves.
	Required bool
}

// Inbound reads the annotation. The error names what is wrong with it.
func (s *Spec) Inbound() (Inbound, error) {
	var in Inbound
	value, ok := s.Annotations[InboundAnnotation]
	switch {
	case !ok:
		return in, nil
	case value == "require":
		in.Required = true
	case value != "capture":
		return in, fmt.Errorf("annotation %s=%q: want capture or require", InboundAnnotation, value)
	}
	for _, p := range s.Ports {
		if p.Protocol == 0 || p.Protocol == mesh.ProtocolTCP {
			in.Ports = append(in.Ports, p.Port)
		}
	}
	if len(in.Ports) == 0 {
		return in, fmt.Errorf("annotation %s: the workload declares no TCP port (--port)", InboundAnnotation)
	}
	return in, nil
}

// InboundMark marks the packets of sockets that speak to a workload with the addresses
// of its clients. They stay in the workload's namespace, and so do the answers.
const InboundMark = 0x51ce0000 | PortInbound

// The rule that leads marked packets home, and its table.
const (
	inboundRulePriority = 100
	inboundTable        = PortInbound
)

// prepareInbound lets a socket with the mark InboundMark reach the workload from any
// address: answers to the mark take it over (tcp_fwmark_accept, fwmark_reflect), and are
// local by it, whatever their destination.
func prepareInbound(s *Sandbox, pod *netns.Namespace, handle *netlink.Handle) error {
	lo, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	sysctls := []string{"net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect"}
	for _, addr := range s.Addresses {
		family, all := netlink.FAMILY_V4, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if addr.Is6() {
			family, all = netlink.FAMILY_V6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
			sysctls = append(sysctls, "net/ipv6/fwmark_reflect")
		}
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Priority = family, InboundMark, inboundTable, inboundRulePriority
		if err := handle.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the rule for inbound connections: %w", err)
		}
		if err := handle.RouteReplace(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: all, Type: unix.RTN_LOCAL, Table: inboundTable, Scope: netlink.SCOPE_HOST,
		}); err != nil {
			return fmt.Errorf("add the route for inbound connections: %w", err)
		}
	}
	return pod.Do(func() error {
		for _, path := range sysctls {
			if err := writeSysctl(path, "1"); err != nil {
				return err
			}
		}
		return nil
	})
}
