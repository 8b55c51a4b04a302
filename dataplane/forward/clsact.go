package forward

import (
	"fmt"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// classify attaches the program as a classifier, as kernels without tcx need it: a
// discipline that only classifies, and on its ingress one filter. Both stay with the
// interface, which is the node's own, and go with it. A filter that is there is
// replaced in one step.
func (t *Table) classify(ifindex int) error {
	handle, err := netlink.NewHandleAt(vnetns.NsHandle(t.netns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the node's namespace: %w", err)
	}
	defer handle.Close()
	attrs := netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	if err := handle.QdiscReplace(&netlink.GenericQdisc{QdiscAttrs: attrs, QdiscType: "clsact"}); err != nil {
		return fmt.Errorf("add clsact to interface %d: %w", ifindex, err)
	}
	if err := handle.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: t.datapath.HostProgramFD(), Name: "host_ingress", DirectAction: true,
	}); err != nil {
		return fmt.Errorf("add the classifier to interface %d: %w", ifindex, err)
	}
	return nil
}
