package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
)

// completionTimeout bounds how long the shell waits for names of the live node.
const completionTimeout = 2 * time.Second

// complete lets the shell complete a flag from fixed words.
func complete(cmd *cobra.Command, flag string, words ...string) {
	completeWith(cmd, flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completeWith lets the shell complete a flag by a function.
func completeWith(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag does not exist: a mistake in this program
	}
}

// names asks the live node for the names that complete an argument or a flag.
type names func(ctx context.Context, c *admin.Client) []string

// live completes from the live node, and with nothing if there is none.
func (a *app) live(list names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completionTimeout)
		defer cancel()
		c := a.client()
		defer c.Close()
		var out []string
		for _, n := range list(ctx, c) {
			if strings.HasPrefix(n, prefix) && !slices.Contains(args, n) {
				out = append(out, n)
			}
		}
		slices.Sort(out)
		return slices.Compact(out), cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes only the first argument.
func first(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, prefix)
	}
}

func workloadNames(ctx context.Context, c *admin.Client) []string {
	workloads, _ := c.Workloads(ctx) // no node, no names
	out := make([]string, len(workloads))
	for i := range workloads {
		out[i] = workloads[i].Name.String()
	}
	return out
}

func serviceNames(ctx context.Context, c *admin.Client) []string {
	services, _ := c.Services(ctx)
	out := make([]string, len(services))
	for i := range services {
		out[i] = services[i].Name.String()
	}
	return out
}

func namespaceNames(ctx context.Context, c *admin.Client) []string {
	var out []string
	for _, n := range append(workloadNames(ctx, c), serviceNames(ctx, c)...) {
		namespace, _, _ := strings.Cut(n, "/")
		out = append(out, namespace)
	}
	return out
}

func routeNames(ctx context.Context, c *admin.Client) []string {
	routes, _ := c.Routes(ctx)
	out := make([]string, len(routes))
	for i := range routes {
		out[i] = routes[i].Name.String()
	}
	return out
}

func gatewayNames(ctx context.Context, c *admin.Client) []string {
	gateways, _ := c.Gateways(ctx)
	out := make([]string, len(gateways))
	for i := range gateways {
		out[i] = gateways[i].Name.String()
	}
	return out
}

// liveNames returns what lists the kind of names that a filter takes, or nil.
func liveNames(kind string) names {
	switch kind {
	case "namespace":
		return namespaceNames
	case "workload":
		return workloadNames
	case "service":
		return serviceNames
	case "route":
		return routeNames
	}
	return nil
}
