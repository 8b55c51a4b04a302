package upstream

import "net/netip"

// ConnectFrom has the connections to the cluster's endpoints come from an address, which
// need not be one of the process's or the workload's own (Dial.Source).
func (c *Cluster) ConnectFrom(source netip.Addr) {
	for _, e := range c.endpoints {
		e.Source = source
	}
}
