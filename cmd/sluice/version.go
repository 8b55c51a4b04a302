package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin/version"
)

func (a *app) versionCommand() *cobra.Command {
	var out format
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Show which build this is",
		Long:    "Show which build this command is. `sluice status` shows the builds of the running processes.",
		Example: "  sluice version -o json",
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			v := version.Get()
			return a.print(out, v, func(w io.Writer, _ bool) error {
				_, err := fmt.Fprintf(w, "sluice %s (%s, %s)\n", v, v.Go, v.Platform)
				return err
			})
		},
	}
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}
