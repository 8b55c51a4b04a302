package main

import (
	"testing"

	"github.com/sluice-mesh/sluice/dataplane/steer"
	"github.com/sluice-mesh/sluice/dataplane/workload"
)

// TestPorts: the agent listens where the kernel programs steer to.
func TestPorts(t *testing.T) {
	for name, ports := range map[string][2]uint16{
		"the first outbound port": {workload.PortOutbound, steer.OutboundPort},
		"the last outbound port":  {workload.PortOutboundLast, steer.LastOutboundPort},
		"the inbound port":        {workload.PortInbound, steer.InboundPort},
		"the DNS port":            {workload.PortDNS, steer.DNSPort},
	} {
		if ports[0] != ports[1] {
			t.Errorf("%s is %d in dataplane/workload and %d in dataplane/steer", name, ports[0], ports[1])
		}
	}
}
