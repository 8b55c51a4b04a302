package admin

import "path/filepath"

// Process is one of the processes of a node that has an admin socket.
type Process string

// The processes, named as the subcommands of sluiced that they are.
const (
	// ProcessNode supervises the others and holds the control plane.
	ProcessNode Process = "node"
	// ProcessAgent owns the kernel programs, the workloads and the flows.
	ProcessAgent Process = "agent"
	// ProcessProxy carries connections.
	ProcessProxy Process = "proxy"
)

// Processes lists all of them in the order in which a person reads of them.
var Processes = []Process{ProcessNode, ProcessAgent, ProcessProxy}

// DefaultRunDir is where the sockets are unless configured otherwise.
const DefaultRunDir = "/run/sluice"

// SocketPath returns the path of the admin socket of p.
func SocketPath(runDir string, p Process) string {
	return filepath.Join(runDir, string(p)+".sock")
}
