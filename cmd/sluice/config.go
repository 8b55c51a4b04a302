package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/sluice-mesh/sluice/admin"
)

func (a *app) configCommand() *cobra.Command {
	return group("config", "Configuration that the processes run with", "  sluice config show proxy", a.configShowCommand())
}

func (a *app) configShowCommand() *cobra.Command {
	var out format
	cmd := &cobra.Command{
		Use:   "show PROCESS",
		Short: "Show the configuration of a process, without secrets",
		Long: `Show the configuration that a process runs with: node, agent or proxy. Private keys
are shown as "[redacted]".`,
		Example: `  sluice config show proxy
  sluice config show agent -o json`,
		Args:              arguments(cobra.ExactArgs(1)),
		ValidArgsFunction: first(cobra.FixedCompletions(processWords(), cobra.ShellCompDirectiveNoFileComp)),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, ok := parseProcess(args[0])
			if !ok {
				return usagef(cmd, "%q is not a process; want node, agent or proxy", args[0])
			}
			c := a.client()
			defer c.Close()
			raw, err := c.Config(cmd.Context(), p)
			if err != nil {
				return err
			}
			var value any
			if err := json.Unmarshal(raw, &value); err != nil {
				return fmt.Errorf("decode the configuration of the %s: %w", p, err)
			}
			return a.print(out, value, func(w io.Writer, _ bool) error {
				b, err := yaml.Marshal(value)
				if err != nil {
					return fmt.Errorf("encode as YAML: %w", err)
				}
				_, err = w.Write(b)
				return err
			})
		},
	}
	formatFlag(cmd, &out, formatYAML, formatJSON)
	return cmd
}

func processWords() []string {
	out := make([]string, len(admin.Processes))
	for i, p := range admin.Processes {
		out[i] = string(p)
	}
	return out
}

func parseProcess(word string) (admin.Process, bool) {
	for _, p := range admin.Processes {
		if string(p) == word {
			return p, true
		}
	}
	return "", false
}
