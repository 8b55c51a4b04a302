package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// format is how an answer is printed, the flag -o.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
	formatJSONL format = "jsonl"
)

// formatFlag gives a command the flag -o with these formats, the first by default.
func formatFlag(cmd *cobra.Command, out *format, formats ...format) {
	words := make([]string, len(formats))
	for i, f := range formats {
		words[i] = string(f)
	}
	cmd.Flags().VarP(&formatValue{out: out, words: words}, "output", "o", "how to print: "+strings.Join(words, ", "))
	*out = formats[0]
	cmd.Flags().Lookup("output").DefValue = words[0]
	complete(cmd, "output", words...)
}

// formatValue is the pflag.Value of -o.
type formatValue struct {
	out   *format
	words []string
}

func (v *formatValue) String() string { return string(*v.out) }
func (v *formatValue) Type() string   { return "FORMAT" }
func (v *formatValue) Set(s string) error {
	if !slices.Contains(v.words, s) {
		return fmt.Errorf("want one of %s", strings.Join(v.words, ", "))
	}
	*v.out = format(s)
	return nil
}

// print writes an answer in a format; asTable writes it as a table.
func (a *app) print(f format, value any, asTable func(w io.Writer, colored bool) error) error {
	switch f {
	case formatJSON:
		e := json.NewEncoder(a.stdout)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(value)
	case formatYAML:
		b, err := yaml.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode as YAML: %w", err)
		}
		_, err = a.stdout.Write(b)
		return err
	}
	return asTable(a.stdout, a.colored())
}

// colored reports whether tables are printed in colour.
func (a *app) colored() bool {
	switch a.color {
	case "always":
		return true
	case "never":
		return false
	}
	return a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" && isTerminal(a.stdout)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
