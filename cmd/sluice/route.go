package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/mesh"
)

func (a *app) routeCommand() *cobra.Command {
	return group("route", "Routes, and what they do with a request", "  sluice route explain GET http://reviews.shop/reviews/7 --from shop/web",
		a.routeListCommand(), a.routeExplainCommand())
}

func (a *app) routeListCommand() *cobra.Command {
	var out format
	var sel selection
	cmd := &cobra.Command{
		Use:   "list [[NAMESPACE/]NAME]...",
		Short: "List routes with their parents and conditions",
		Long: `List routes of all kinds, a row for each parent. Below the table stands why
a parent does not accept a route, or which reference of the route is wrong.`,
		Example: `  sluice route list
  sluice route list shop/reviews -o yaml`,
		ValidArgsFunction: a.live(routeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c := a.client()
			defer c.Close()
			all, err := c.Routes(cmd.Context())
			if err != nil {
				return err
			}
			list, err := pick(&sel, "route", args, all, func(r admin.Route) mesh.Name { return r.Name })
			if err != nil {
				return err
			}
			a.nothing(len(list), "routes")
			return a.print(out, list, func(w io.Writer, colored bool) error {
				return writeWithRemarks(w, colored, routeTable(list), routeRemarks(list))
			})
		},
	}
	sel.flags(a, cmd)
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func routeTable(list []admin.Route) *table {
	t := &table{header: []string{"ROUTE", "PARENT", "HOSTNAMES", "RULES", "STATUS"}}
	for _, r := range list {
		name, hostnames, rules := r.Kind+"/"+r.Name.String(), abridged(r.Hostnames), fmt.Sprint(r.Rules)
		if len(r.Parents) == 0 {
			t.add(name, "", hostnames, rules, cell{"no parent", yellow})
		}
		for _, p := range r.Parents {
			t.add(name, p.Ref, hostnames, rules, conditionsCell(p.Conditions))
		}
	}
	return t
}

func routeRemarks(list []admin.Route) []string {
	var out []string
	for _, r := range list {
		for _, p := range r.Parents {
			out = append(out, remarks(r.Kind+" "+r.Name.String()+" at "+p.Ref, r.Source, p.Conditions)...)
		}
	}
	return out
}
