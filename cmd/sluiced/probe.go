package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/dataplane/probe"
)

func probeCommand() *cobra.Command {
	var table bool
	cmd := &cobra.Command{
		Use:     "probe",
		Short:   "Say whether this machine can be a node: exit status 2 and one line if not",
		Example: "  sluiced probe --table",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if table {
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
				fmt.Fprintln(w, "FEATURE\tNEEDED\tHAVE\tDETAIL")
				for _, f := range probe.Features(probe.Config{}) {
					fmt.Fprintf(w, "%s\t%t\t%t\t%s\n", f.Name, f.Needed, f.Have, f.Detail)
				}
				if err := w.Flush(); err != nil {
					return err
				}
			}
			return checkMachine(probe.Config{})
		},
	}
	cmd.Flags().BoolVar(&table, "table", false, "list every feature")
	return cmd
}

// checkMachine returns an errUsage of one line if the machine lacks something.
func checkMachine(cfg probe.Config) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: needs root, to load BPF programs and make network namespaces", errUsage)
	}
	if err := probe.Check(cfg); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return nil
}
