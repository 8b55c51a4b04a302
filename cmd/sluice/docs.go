package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docsCommand writes the reference of all commands. It is hidden: the reference
// is for those who build Sluice.
func (a *app) docsCommand(root *cobra.Command) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:     "docs",
		Short:   "Write the reference of all commands as Markdown",
		Example: "  sluice docs --output docs/reference/cli.md",
		Hidden:  true,
		Args:    arguments(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			var b bytes.Buffer
			writeReference(&b, root)
			if path == "" {
				_, err := a.stdout.Write(b.Bytes())
				return err
			}
			if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
				return fmt.Errorf("write the reference: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&path, "output", "", "file to write (default: standard output)")
	return cmd
}

// writeReference writes the reference of root and of all that is visible below.
func writeReference(w io.Writer, root *cobra.Command) {
	fmt.Fprintf(w, "# %s: reference\n\nGenerated from the program by `go generate ./cmd/sluice`; do not edit.\n\n", root.Name())
	fmt.Fprintf(w, "%s\n\n", paragraphs(root.Long))
	fmt.Fprintf(w, "```sh\n%s\n```\n\n", unindent(root.Example))
	fmt.Fprintf(w, "Flags of every command:\n\n")
	writeFlags(w, root.PersistentFlags())
	fmt.Fprintln(w, "Commands:")
	fmt.Fprintln(w)
	for _, c := range leaves(root) {
		fmt.Fprintf(w, "- [`%s`](#%s): %s\n", c.CommandPath(), strings.ReplaceAll(c.CommandPath(), " ", "-"), c.Short)
	}
	for _, c := range leaves(root) {
		fmt.Fprintf(w, "\n## %s\n\n```\n%s\n```\n\n", c.CommandPath(), c.UseLine())
		text := c.Long
		if text == "" {
			text = c.Short + "."
		}
		fmt.Fprintf(w, "%s\n\n", paragraphs(text))
		if c.Example != "" {
			fmt.Fprintf(w, "```sh\n%s\n```\n\n", unindent(c.Example))
		}
		writeFlags(w, c.NonInheritedFlags())
	}
}

// leaves returns the visible commands below c that do something, in the order in
// which the help lists them.
func leaves(c *cobra.Command) []*cobra.Command {
	var out []*cobra.Command
	for _, child := range c.Commands() {
		switch {
		case !child.IsAvailableCommand() || child.Name() == "help":
		case child.HasAvailableSubCommands():
			out = append(out, leaves(child)...)
		default:
			out = append(out, child)
		}
	}
	return out
}

func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(w, "| flag | meaning | default |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		value, usage := pflag.UnquoteUsage(f)
		if value != "" {
			name += " " + value
		}
		standard := ""
		switch f.DefValue {
		case "", "false", "[]":
		default:
			standard = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(w, "| %s` | %s | %s |\n", strings.ReplaceAll(name, "|", `\|`), strings.ReplaceAll(usage, "|", `\|`), standard)
	})
	fmt.Fprintln(w)
}

// unindent takes the two columns away by which examples are set off in help texts.
func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

// paragraphs makes Markdown of a help text: indented lines become list items.
func paragraphs(s string) string {
	var out []string
	item := false
	for l := range strings.SplitSeq(s, "\n") {
		rest, indented := strings.CutPrefix(l, "  ")
		if indented != item && len(out) > 0 && out[len(out)-1] != "" {
			out = append(out, "")
		}
		if indented {
			l = "- " + rest
		}
		out, item = append(out, l), indented
	}
	return strings.Join(out, "\n")
}
