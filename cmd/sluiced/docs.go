package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:generate go run . docs-settings --out ../../docs/reference/settings.md

// settingsPage returns the reference of all settings, from the flags themselves.
func settingsPage() []byte {
	s := defaultSettings()
	// What differs from machine to machine is told, not shown.
	s.NodeName, s.Cgroup = "(the host's name)", "(the cgroup v2 mount)/sluice"
	f := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	f.String("config", "", "folder of Kubernetes YAML, watched; needed")
	s.flags(f)
	var b bytes.Buffer
	b.WriteString("<!-- Generated from cmd/sluiced by go generate; do not edit. -->\n\n# Settings of the node\n\n")
	b.WriteString("Of `sluiced node`; a flag wins over the environment, the environment over the YAML file named by `--settings`\n(its keys are the flags' names without dashes in front).\n\n")
	b.WriteString("| flag | environment | default | meaning |\n|---|---|---|---|\n")
	f.VisitAll(func(f *pflag.Flag) {
		def := f.DefValue
		switch {
		case def == "[]":
			def = ""
		case def != "":
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | `SLUICE_%s` | %s | %s |\n", f.Name, strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")), def, f.Usage)
	})
	return b.Bytes()
}

func docsCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:    "docs-settings",
		Short:  "Write the reference of all settings",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return os.WriteFile(out, settingsPage(), 0o644)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the file to write")
	return cmd
}
