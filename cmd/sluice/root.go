package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
)

// envRunDir names the run directory in place of the flag.
const envRunDir = "SLUICE_RUN_DIR"

// app is one invocation of the program. It belongs to one goroutine.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	now    func() time.Time

	runDir string // flag --run-dir
	color  string // flag --color
}

// execute runs a command line and returns the exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	return report(a.stderr, root.ExecuteContext(ctx))
}

// root returns the tree of all commands.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Look into a Sluice node, and run workloads on it",
		Long: `Sluice steers connections at the socket into a node proxy, without sidecars.

This command runs programs as workloads of the node on this machine and shows what
the node does with their connections. It talks to the node's processes over unix
sockets that only root can reach.

` + exitCodes,
		Example: `  sluice status
  sluice run -n shop --name web -- python3 -m http.server 8080
  sluice observe --follow --namespace shop
  sluice route explain GET http://reviews.shop/reviews/7 --from shop/web`,
		DisableFlagsInUseLine:      true,
		SilenceUsage:               true,
		SilenceErrors:              true,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       groupRun,
		SuggestionsMinimumDistance: suggestionDistance,
	}
	runDir := a.getenv(envRunDir)
	if runDir == "" {
		runDir = admin.DefaultRunDir
	}
	root.PersistentFlags().StringVar(&a.runDir, "run-dir", runDir, "directory of the node's sockets (environment "+envRunDir+")")
	root.PersistentFlags().StringVar(&a.color, "color", "auto", "colour in tables: auto (on a terminal, unless NO_COLOR is set), always or never")
	complete(root, "color", "auto", "always", "never")
	root.PersistentFlags().Lookup("run-dir").DefValue = admin.DefaultRunDir
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		switch a.color {
		case "auto", "always", "never":
			return nil
		}
		return &usageError{err: fmt.Errorf("--color %q: want auto, always or never", a.color), command: cmd.CommandPath()}
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, command: cmd.CommandPath()}
	})
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.AddGroup(
		&cobra.Group{ID: "look", Title: "Look into the node:"},
		&cobra.Group{ID: "do", Title: "Run workloads:"},
		&cobra.Group{ID: "files", Title: "Without a node:"},
	)
	look := []*cobra.Command{
		a.statusCommand(), a.observeCommand(), a.workloadCommand(), a.serviceCommand(), a.gatewayCommand(),
		a.routeCommand(), a.connectionsCommand(), a.backendCommand(), a.xdsCommand(), a.configCommand(), a.logCommand(),
	}
	for _, c := range look {
		c.GroupID = "look"
		root.AddCommand(c)
	}
	run := a.runCommand()
	run.GroupID = "do"
	validate := a.validateCommand()
	validate.GroupID = "files"
	root.AddCommand(run, validate, a.completionCommand(root), a.versionCommand(), a.docsCommand(root))
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// suggestionDistance is how many letters (Levenshtein) a mistyped command may be
// away from the one that is suggested.
const suggestionDistance = 2

// group returns a command that only holds others.
func group(use, short, example string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, DisableFlagsInUseLine: true, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: groupRun,
		SuggestionsMinimumDistance: suggestionDistance}
	c.AddCommand(children...)
	return c
}

// groupRun shows the help of a command that only holds others, and refuses words
// that are none of them.
func groupRun(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return &usageError{err: errors.New(text), command: cmd.CommandPath()}
}

// arguments makes the errors of a check of arguments usage errors.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &usageError{err: err, command: cmd.CommandPath()}
		}
		return nil
	}
}

// usagef returns a usage error of cmd.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), command: cmd.CommandPath()}
}

// client returns a client of the node's processes. The caller closes it.
func (a *app) client() *admin.Client { return admin.NewClient(a.runDir) }
