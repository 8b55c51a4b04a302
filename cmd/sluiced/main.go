// Command sluiced is the daemon of Sluice: the node as a whole, or one of its
// processes.
//
// Exit status: 0 after an orderly stop, 1 if something failed, 2 for wrong flags
// or a machine that lacks what the node needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// errUsage is an error of the person or of the machine: exit status 2.
var errUsage = errors.New("cannot start")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:   "sluiced",
		Short: "The node proxy and service mesh of a node",
		Long: `sluiced steers the connections of a node's workloads.

Every flag can also be given by an environment variable (--run-dir is
SLUICE_RUN_DIR) or in a YAML file (--settings FILE, with the flags' names as
keys). A flag wins over the environment, the environment over the file.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(nodeCommand(), agentCommand(), proxyCommand(), workerCommand(), probeCommand(), cleanupCommand(), docsCommand(), docsMetricsCommand())
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "sluiced:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "sluiced:", err)
		os.Exit(1)
	}
}
