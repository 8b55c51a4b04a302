package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
)

func (a *app) xdsCommand() *cobra.Command {
	return group("xds", "Configuration streams between the control plane and the node", "  sluice xds status", a.xdsStatusCommand())
}

func (a *app) xdsStatusCommand() *cobra.Command {
	var out format
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show which versions the control plane sent, and who took them",
		Long: `Show what the control plane sent to each process, by type of resource: the version
sent last, the version taken last, and what was refused and why. Exits with 3 if a
process refuses something or is not connected.`,
		Example: `  sluice xds status
  sluice xds status -o json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			list, err := c.XDS(cmd.Context(), admin.ProcessNode)
			if err != nil {
				return err
			}
			if err := a.print(out, list, func(w io.Writer, colored bool) error {
				return writeWithRemarks(w, colored, xdsTable(list, a.now()), xdsRemarks(list))
			}); err != nil {
				return err
			}
			if len(list) == 0 {
				return answerNo("No process is connected to the control plane.")
			}
			if len(xdsRemarks(list)) > 0 {
				return &exitError{code: exitNo}
			}
			return nil
		},
	}
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func xdsTable(list []admin.XDSType, now time.Time) *table {
	t := &table{header: []string{"CLIENT", "TYPE", "RESOURCES", "SENT", "TAKEN", "CHANGED", "STATE"}}
	for _, x := range list {
		t.add(x.Client, x.Type, fmt.Sprint(x.Resources), x.Version, x.Acked, age(x.Changed, now), streamState(x))
	}
	return t
}

// streamState sums one type of a stream up.
func streamState(x admin.XDSType) cell {
	switch {
	case x.Nacked != "":
		return cell{"refused " + x.Nacked, red}
	case x.Pending > 0:
		return cell{fmt.Sprintf("%d waiting", x.Pending), yellow}
	case x.Acked != x.Version || x.Error != "":
		return cell{"waiting", yellow}
	}
	return cell{"in sync", green}
}

// xdsRemarks returns a line for each refusal.
func xdsRemarks(list []admin.XDSType) []string {
	var out []string
	for _, x := range list {
		if x.Nacked != "" {
			out = append(out, fmt.Sprintf("%s refused %s %s: %s", x.Client, x.Type, x.Nacked, x.Error))
		}
	}
	return out
}
