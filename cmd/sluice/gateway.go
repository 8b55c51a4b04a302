package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/mesh"
)

func (a *app) gatewayCommand() *cobra.Command {
	return group("gateway", "Gateways of the mesh", "  sluice gateway list", a.gatewayListCommand())
}

func (a *app) gatewayListCommand() *cobra.Command {
	var out format
	var sel selection
	cmd := &cobra.Command{
		Use:   "list [[NAMESPACE/]NAME]...",
		Short: "List Gateways with their addresses, listeners and conditions",
		Long: `List Gateways, a row for each listener; those of ListenerSets are named with their
set. Below the table stands what is wrong with them. -o yaml has all conditions.`,
		Example: `  sluice gateway list
  sluice gateway list shop/edge -o yaml`,
		ValidArgsFunction: a.live(gatewayNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			all, err := c.Gateways(cmd.Context())
			if err != nil {
				return err
			}
			list, err := pick(&sel, "gateway", args, all, func(g admin.Gateway) mesh.Name { return g.Name })
			if err != nil {
				return err
			}
			a.nothing(len(list), "Gateways")
			return a.print(out, list, func(w io.Writer, colored bool) error {
				return writeWithRemarks(w, colored, gatewayTable(list), gatewayRemarks(list))
			})
		},
	}
	sel.flags(a, cmd)
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func gatewayTable(list []admin.Gateway) *table {
	t := &table{header: []string{"GATEWAY", "CLASS", "ADDRESSES", "LISTENER", "PORT", "HOSTNAME", "ROUTES", "STATUS"}}
	for _, g := range list {
		addresses := abridged(g.Addresses)
		if len(g.Listeners) == 0 {
			t.add(g.Name.String(), g.Class, addresses, "", "", "", "", conditionsCell(g.Conditions))
		}
		for _, l := range g.Listeners {
			status := conditionsCell(g.Conditions)
			if status.color == green {
				status = conditionsCell(l.Conditions)
			}
			t.add(g.Name.String(), g.Class, addresses, l.Name, fmt.Sprintf("%d/%s", l.Port, l.Protocol), l.Hostname, fmt.Sprint(l.AttachedRoutes), status)
		}
		for _, set := range g.ListenerSets {
			for _, l := range set.Listeners {
				status := conditionsCell(set.Conditions)
				if status.color == green {
					status = conditionsCell(l.Conditions)
				}
				t.add(g.Name.String(), g.Class, addresses, set.Name.String()+"/"+l.Name, fmt.Sprintf("%d/%s", l.Port, l.Protocol), l.Hostname, fmt.Sprint(l.AttachedRoutes), status)
			}
		}
	}
	return t
}

func gatewayRemarks(list []admin.Gateway) []string {
	var out []string
	for _, g := range list {
		who := "Gateway " + g.Name.String()
		out = append(out, remarks(who, g.Source, g.Conditions)...)
		for _, l := range g.Listeners {
			out = append(out, remarks(who+" listener "+l.Name, g.Source, l.Conditions)...)
		}
		for _, set := range g.ListenerSets {
			who := "ListenerSet " + set.Name.String()
			out = append(out, remarks(who, g.Source, set.Conditions)...)
			for _, l := range set.Listeners {
				out = append(out, remarks(who+" listener "+l.Name, g.Source, l.Conditions)...)
			}
		}
	}
	return out
}

// badWhenTrue are the conditions that say something is wrong (Gateway API,
// listener and route conditions); of all others it is wrong if they are not True.
var badWhenTrue = map[string]bool{"Conflicted": true, "OverlappingTLSConfig": true, "PartiallyInvalid": true}

// wrong reports whether a condition says that something is wrong.
func wrong(c admin.Condition) bool { return (c.Status == "True") == badWhenTrue[c.Type] }

// conditionsCell sums conditions up: "ok", or those that are wrong with their
// reasons.
func conditionsCell(conditions []admin.Condition) cell {
	if len(conditions) == 0 {
		return cell{"no status", yellow}
	}
	var bad []string
	for _, c := range conditions {
		if wrong(c) {
			bad = append(bad, c.Type+"="+c.Status+" "+c.Reason)
		}
	}
	if len(bad) > 0 {
		return cell{strings.Join(bad, ", "), red}
	}
	return cell{"ok", green}
}

// remarks returns a line for each condition that is wrong, with its message.
func remarks(who, source string, conditions []admin.Condition) []string {
	if source != "" {
		who += " (" + source + ")"
	}
	var out []string
	for _, c := range conditions {
		if wrong(c) && c.Message != "" {
			out = append(out, fmt.Sprintf("%s: %s: %s", who, c.Reason, c.Message))
		}
	}
	return out
}

// writeWithRemarks prints a table and below it the remarks on its rows.
func writeWithRemarks(w io.Writer, colored bool, t *table, remarks []string) error {
	if err := t.write(w, colored); err != nil {
		return err
	}
	for i, r := range remarks {
		if i == 0 {
			fmt.Fprintln(w)
		}
		if _, err := fmt.Fprintln(w, printable(r)); err != nil {
			return err
		}
	}
	return nil
}
