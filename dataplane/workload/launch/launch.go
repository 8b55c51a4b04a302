// Package launch starts a command inside a workload: the client side of the agent,
// run by `sluice run` as root. The command gets its own PID, mount, IPC, UTS and
// cgroup namespaces beside the workload's network namespace, and a capability
// bounding set and seccomp filter that keep it there. It ends with the process that
// launched it, however that ends; a restart of the agent does not touch it.
//
// The command shares the machine's file system: one that runs as root can write
// there what root can. Give User for programs that are not to be trusted with that.
package launch

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/sluice-mesh/sluice/dataplane/workload"
)

// Exit codes for a command that was not started, in the words of docker-run(1).
const (
	ExitSetup         = 125 // the sandbox could not be made
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// Options say what to run, and where.
type Options struct {
	// Socket is the agent's admin socket.
	Socket string
	Spec   workload.Spec
	// User is "name", "name:group", "uid" or "uid:gid"; empty: the caller's own.
	User string
	// CapAdd are capabilities beyond the default set, with or without "CAP_".
	CapAdd  []string
	Command []string
	// Env is the whole environment of the command; nil: the caller's.
	Env []string
	// Dir is the working directory; empty: the caller's.
	Dir string
	// Hide are folders that the command sees empty: the node's run and state folders
	// and its bpffs.
	Hide                  []string
	Stdin, Stdout, Stderr *os.File // nil: /dev/null
	// OnStarted is called once, when the command was started. May be nil.
	OnStarted func(*workload.Sandbox)
	Logger    *slog.Logger
}

// Init takes the process over if it is the inner part of Run, and does not return
// then. main must call it before anything else; so must TestMain of tests that Run.
func Init() {}

// Run adds the workload, runs the command inside it until it ends, and returns its
// exit code: 128+n if signal n ended it, one of the Exit codes with an error if it
// was not started. Signals sent to the caller go to the command; when ctx ends, it
// is killed. The workload is gone when Run returns.
func Run(ctx context.Context, o Options) (exitCode int, err error) {
	return ExitSetup, errors.ErrUnsupported
}
