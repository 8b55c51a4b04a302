package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/mesh"
)

func (a *app) serviceCommand() *cobra.Command {
	return group("service", "Services of the mesh", "  sluice service list -n shop", a.serviceListCommand())
}

func (a *app) serviceListCommand() *cobra.Command {
	var out format
	var sel selection
	cmd := &cobra.Command{
		Use:   "list [[NAMESPACE/]NAME]...",
		Short: "List services with their addresses, ports and endpoints",
		Long: `List services with their addresses, ports and endpoints, a row for each port.

PATH says who carries a connection to the port: "kernel" for those that go straight
to an endpoint, "proxy" for those that the node proxy takes because a route is
attached.`,
		Example: `  sluice service list
  sluice service list shop/reviews -o yaml`,
		ValidArgsFunction: a.live(serviceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			all, err := c.Services(cmd.Context())
			if err != nil {
				return err
			}
			list, err := pick(&sel, "service", args, all, func(s admin.Service) mesh.Name { return s.Name })
			if err != nil {
				return err
			}
			a.nothing(len(list), "services")
			return a.print(out, list, serviceTable(list).write)
		},
	}
	sel.flags(a, cmd)
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func serviceTable(list []admin.Service) *table {
	t := &table{header: []string{"SERVICE", "ADDRESSES", "PORT", "PATH", "READY", "ENDPOINTS"}}
	for _, s := range list {
		addresses := words(s.VIPs)
		switch {
		case s.ExternalName != "":
			addresses = "→ " + s.ExternalName
		case s.Headless:
			addresses = "headless"
		}
		if len(s.Ports) == 0 {
			t.add(s.Name.String(), addresses, "", "", "", "")
		}
		for i := range s.Ports {
			p := &s.Ports[i]
			path := cell{"kernel", plain}
			if p.Steered {
				path = cell{"proxy", cyan}
			}
			if s.Headless {
				path.text = ""
			}
			endpoints, ready := endpointWords(p.Endpoints)
			count := cell{text: fmt.Sprintf("%d/%d", ready, len(p.Endpoints)), color: green}
			if ready == 0 {
				count.color = red
			}
			t.add(s.Name.String(), addresses, portWords(p), path, count, abridged(endpoints))
		}
	}
	return t
}

// portWords returns a port as "80/TCP http".
func portWords(p *admin.ServicePort) string {
	text := fmt.Sprintf("%d/%s", p.Port, p.Protocol)
	if p.AppProtocol != "" {
		return text + " " + string(p.AppProtocol)
	}
	if p.Name != "" {
		return text + " " + p.Name
	}
	return text
}

func endpointWords(endpoints []admin.Endpoint) (words []string, ready int) {
	for _, e := range endpoints {
		words = append(words, e.Address.String())
		if e.Ready {
			ready++
		}
	}
	return words, ready
}
