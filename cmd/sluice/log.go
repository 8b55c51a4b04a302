package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/admin/loglevel"
)

// levelDefault takes a component's own level away.
const levelDefault = "default"

func (a *app) logCommand() *cobra.Command {
	return group("log", "Logs of the processes", "  sluice log level proxy debug", a.logLevelCommand())
}

// levelRow is the level of one component of one process, as it is shown.
type levelRow struct {
	Process admin.Process `json:"process"`
	// Component is empty for the default of the process.
	Component string `json:"component,omitempty"`
	Level     string `json:"level"`
	Own       bool   `json:"own"`
}

func (a *app) logLevelCommand() *cobra.Command {
	var out format
	cmd := &cobra.Command{
		Use:   "level [COMPONENT] [LEVEL]",
		Short: "Show or change what the processes write to their logs",
		Long: `Show or change the log levels of the running processes.

COMPONENT is a process (node, agent, proxy), one component of a process such as
proxy/dns, or the name of a component alone for all processes that have it. LEVEL is
debug, info, warn or error, or "default" to let a component follow its process
again. A change takes effect at once and lasts until the process ends.`,
		Example: `  sluice log level
  sluice log level proxy debug
  sluice log level agent/xds debug
  sluice log level agent/xds default`,
		Args:              arguments(cobra.MaximumNArgs(2)),
		ValidArgsFunction: a.completeLogLevel,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			component, level := "", ""
			if len(args) > 0 {
				component = args[0]
			}
			if len(args) > 1 {
				level = args[1]
				if _, err := loglevel.Parse(level); err != nil && level != levelDefault {
					return usagef(cmd, "%w, or %s", err, levelDefault)
				}
			}
			rows, err := a.logLevels(cmd.Context(), c, component)
			if err != nil {
				return err
			}
			if level != "" {
				if err := setLogLevels(cmd, c, rows, level); err != nil {
					return err
				}
				if rows, err = a.logLevels(cmd.Context(), c, component); err != nil {
					return err
				}
			}
			return a.print(out, rows, levelTable(rows).write)
		},
	}
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

// logLevels returns the levels that component selects, of all running processes
// for none. It fails if no process runs, or if nothing is called so.
func (a *app) logLevels(ctx context.Context, c *admin.Client, component string) ([]levelRow, error) {
	process, name, both := strings.Cut(component, "/")
	named, isProcess := parseProcess(process)
	var rows []levelRow
	var down error
	running := 0
	for _, p := range admin.Processes {
		if isProcess && p != named {
			continue
		}
		levels, err := c.LogLevels(ctx, p)
		if err != nil {
			var unreachable *admin.UnreachableError
			if isProcess || !errors.As(err, &unreachable) {
				return nil, err
			}
			down = err
			continue
		}
		running++
		if component == "" || isProcess && !both {
			rows = append(rows, levelRow{Process: p, Level: levels.Default, Own: true})
		}
		for _, l := range levels.Components {
			if component == "" || isProcess && (!both || l.Component == name) || !isProcess && l.Component == component {
				rows = append(rows, levelRow{Process: p, Component: l.Component, Level: l.Level, Own: l.Own})
			}
		}
	}
	switch {
	case running == 0:
		return nil, down
	case len(rows) == 0:
		return nil, answerNo("No running process has a component %s; `sluice log level` lists them.", component)
	}
	return rows, nil
}

// setLogLevels sets the level of the rows. Of a whole process only the default is
// set, and its components' own levels are left alone.
func setLogLevels(cmd *cobra.Command, c *admin.Client, rows []levelRow, level string) error {
	whole := slices.ContainsFunc(rows, func(r levelRow) bool { return r.Component == "" })
	if level == levelDefault {
		if whole {
			return usagef(cmd, "the level of a process is the default itself; want debug, info, warn or error")
		}
		level = ""
	}
	for _, r := range rows {
		if whole && r.Component != "" {
			continue
		}
		if _, err := c.SetLogLevel(cmd.Context(), r.Process, admin.LogLevel{Component: r.Component, Level: level}); err != nil {
			return err
		}
	}
	return nil
}

func levelTable(rows []levelRow) *table {
	t := &table{header: []string{"COMPONENT", "LEVEL", "SET"}}
	for _, r := range rows {
		name, set := string(r.Process), "for the process"
		if r.Component != "" {
			name += "/" + r.Component
			set = "by the process"
			if r.Own {
				set = "for itself"
			}
		}
		t.add(name, r.Level, set)
	}
	return t
}

func (a *app) completeLogLevel(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.live(func(ctx context.Context, c *admin.Client) []string {
			rows, _ := a.logLevels(ctx, c, "") // no node, no names
			out := processWords()
			for _, r := range rows {
				if r.Component != "" {
					out = append(out, string(r.Process)+"/"+r.Component)
				}
			}
			return out
		})(cmd, args, prefix)
	case 1:
		return []string{"debug", "info", "warn", "error", levelDefault}, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}
