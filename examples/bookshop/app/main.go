// Command app is every program of the bookshop example: servers that say who
// they are, and clients that count who answered.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "app",
		Short:         "The bookshop's servers and clients",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), getCommand(), grpcCommand(), tcpCommand(), udpCommand(), certCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

// Tally is what a client prints: one JSON value.
type Tally struct {
	Requests int            `json:"requests"`
	ServedBy map[string]int `json:"served_by"`          // by the server's name
	Status   map[string]int `json:"status"`             // by HTTP or gRPC status, or "error"
	Errors   map[string]int `json:"errors,omitempty"`   // by the error's text
	Last     string         `json:"last,omitempty"`     // the last answer's body
	Headers  map[string]any `json:"headers,omitempty"`  // the last answer's
	Local    string         `json:"local,omitempty"`    // the last connection's own address
	Remote   string         `json:"remote,omitempty"`   // and the one that it sees at the other end
	Location string         `json:"location,omitempty"` // of a redirect
}

func newTally() *Tally {
	return &Tally{ServedBy: map[string]int{}, Status: map[string]int{}, Errors: map[string]int{}}
}

func (t *Tally) fail(err error) {
	t.Requests++
	t.Status["error"]++
	t.Errors[err.Error()]++
}

func (t *Tally) print(cmd *cobra.Command) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(t)
}
