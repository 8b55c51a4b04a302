package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/mesh"
)

func (a *app) workloadCommand() *cobra.Command {
	return group("workload", "Workloads of the mesh", "  sluice workload list -n shop", a.workloadListCommand())
}

func (a *app) workloadListCommand() *cobra.Command {
	var out format
	var sel selection
	cmd := &cobra.Command{
		Use:   "list [[NAMESPACE/]NAME]...",
		Short: "List workloads with their addresses",
		Example: `  sluice workload list
  sluice workload list -n shop -o json
  sluice workload list shop/web`,
		ValidArgsFunction: a.live(workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			all, err := c.Workloads(cmd.Context())
			if err != nil {
				return err
			}
			list, err := pick(&sel, "workload", args, all, func(w admin.Workload) mesh.Name { return w.Name })
			if err != nil {
				return err
			}
			a.nothing(len(list), "workloads; `sluice run` starts one")
			return a.print(out, list, func(w io.Writer, colored bool) error {
				return workloadTable(list, a.now()).write(w, colored)
			})
		},
	}
	sel.flags(a, cmd)
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func workloadTable(list []admin.Workload, now time.Time) *table {
	t := &table{header: []string{"WORKLOAD", "READY", "ADDRESSES", "NODE", "SERVICE ACCOUNT", "PID", "AGE", "LABELS"}}
	for _, w := range list {
		pid := ""
		if w.PID != 0 {
			pid = fmt.Sprint(w.PID)
		}
		t.add(w.Name.String(), yesNo(w.Ready), words(w.Addresses), w.Node, w.ServiceAccount, pid, age(w.Started, now), labels(w.Labels))
	}
	return t
}

// yesNo returns a coloured yes or no.
func yesNo(b bool) cell {
	if b {
		return cell{"yes", green}
	}
	return cell{"no", red}
}

// words joins the texts of values with commas.
func words[T fmt.Stringer](values []T) string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return abridged(out)
}

func labels(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return abridged(out)
}

// age returns how long ago t was, as two units at most ("3d4h", "12m"), and
// nothing for the zero time.
func age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	const day = 24 * time.Hour
	switch d := max(0, now.Sub(t)); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}
