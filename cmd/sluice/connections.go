package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
)

func (a *app) connectionsCommand() *cobra.Command {
	return group("connections", "Connections that the node proxy holds", "  sluice connections list", a.connectionsListCommand())
}

func (a *app) connectionsListCommand() *cobra.Command {
	var out format
	var namespace string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the connections of clients that the node proxy holds",
		Long: `List the connections of clients that the node proxy holds. Connections that the
kernel alone carries are not among them.`,
		Example: `  sluice connections list
  sluice connections list -n shop -o json`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := a.client()
			defer c.Close()
			all, err := c.Connections(cmd.Context())
			if err != nil {
				return err
			}
			list := []admin.Connection{}
			for _, conn := range all {
				if namespace == "" || conn.Workload.Namespace == namespace || conn.Service.Namespace == namespace {
					list = append(list, conn)
				}
			}
			a.nothing(len(list), "connections")
			return a.print(out, list, func(w io.Writer, colored bool) error {
				return connectionTable(list, a.now()).write(w, colored)
			})
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "only of workloads or services of this namespace")
	completeWith(cmd, "namespace", a.live(namespaceNames))
	formatFlag(cmd, &out, formatTable, formatJSON, formatYAML)
	return cmd
}

func connectionTable(list []admin.Connection, now time.Time) *table {
	t := &table{header: []string{"ID", "KIND", "CLIENT", "TO", "PROTOCOL", "REQUESTS", "IN", "OUT", "AGE", "IDLE"}}
	for _, c := range list {
		client := c.Client.String()
		if !c.Workload.IsZero() {
			client = c.Workload.String() + " " + client
		}
		to := c.Original.String()
		if !c.Service.IsZero() {
			to = fmt.Sprintf("%s:%d", c.Service, c.Original.Port())
		}
		protocol := c.Protocol
		if c.TLS != nil {
			protocol = strings.TrimSpace(protocol + " " + cmp.Or(c.TLS.Version, "TLS"))
			if c.TLS.ServerName != "" {
				protocol += " " + printable(c.TLS.ServerName)
			}
		}
		t.add(fmt.Sprint(c.ID), c.Kind, client, to, protocol, fmt.Sprint(c.Requests), bytesWord(c.BytesIn), bytesWord(c.BytesOut),
			age(c.Started, now), durationWord(c.Idle))
	}
	return t
}

// bytesWord returns an amount as "512B", "1.5kB" or "3.2MB", in powers of 1000.
func bytesWord(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	v := float64(n)
	for _, unit := range "kMGTPE" {
		if v /= 1000; v < 999.95 {
			return fmt.Sprintf("%.1f%cB", v, unit)
		}
	}
	return fmt.Sprintf("%.1fEB", v)
}

// durationWord returns a duration as "120µs", "3.2ms" or "1.25s".
func durationWord(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1fms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2fs", d.Seconds())
}
