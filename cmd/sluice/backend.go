package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
)

func (a *app) backendCommand() *cobra.Command {
	return group("backend", "Endpoints as the node proxy sees them", "  sluice backend list", a.backendListCommand())
}

func (a *app) backendListCommand() *cobra.Command {
	var out format
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the endpoints that the node proxy sends to, with their health",
		Long: `List the endpoints of every backend that traffic of this node went to through the
node proxy, with their state: healthy, unchecked (no health check has ended yet),
failed (by its health checks) or ejected (for its answers), and why.`,
		Example: `  sluice backend list
  sluice backend list -o json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			list, err := c.Backends(cmd.Context())
			if err != nil {
				return err
			}
			a.nothing(len(list), "backends")
			return a.print(out, list, func(w io.Writer, colored bool) error {
				return backendTable(list).write(w, colored)
			})
		},
	}
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func backendTable(list []admin.Backend) *table {
	t := &table{header: []string{"CLUSTER", "ENDPOINT", "WORKLOAD", "STATE", "WHY"}}
	for _, b := range list {
		workload := ""
		if !b.Workload.IsZero() {
			workload = b.Workload.String()
		}
		t.add(b.Cluster, b.Endpoint.String(), workload, b.State, printable(b.Why))
	}
	return t
}
