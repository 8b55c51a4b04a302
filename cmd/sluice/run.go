package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/dataplane/workload/launch"
	"github.com/sluice-mesh/sluice/mesh"
)

// runFlags are the flags of `sluice run`.
type runFlags struct {
	namespace, name, serviceAccount string
	labels, annotations, ports      []string
	user, dir                       string
	capabilities, env, hide         []string
	quiet                           bool
}

func (a *app) runCommand() *cobra.Command {
	var flags runFlags
	cmd := &cobra.Command{
		Use:   "run -n NAMESPACE --name NAME [flags] -- COMMAND [ARGUMENT]...",
		Short: "Run a program as a workload of the mesh",
		Long: `Run a program as a workload: in network, mount, PID, IPC, UTS and cgroup namespaces
of its own, with addresses from the node's pool, names of Services in its resolv.conf,
and its connections steered as the mesh's routes say. The workload is gone when the
program ends. Services whose selector matches the labels have it as an endpoint.

The program shares the machine's files. It gets no new privileges and a small set of
capabilities; --user runs it as somebody else, --cap-add gives it more. Signals go to
the program. The exit code is the program's; 128 and the signal's number if a signal
ended it; 125 if the workload could not be made, 126 if COMMAND cannot be executed,
127 if there is no such command.`,
		Example: `  sluice run -n shop --name web --label app=web --port http=8080 -- python3 -m http.server 8080
  sluice run -n shop --name client -- curl -s http://reviews/reviews/7
  sluice run -n shop --name shell --user nobody -- bash`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := flags.spec(args)
			if err != nil {
				return usagef(cmd, "%w", err)
			}
			return a.runWorkload(cmd, flags, spec, args)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.SortFlags = false
	f.StringVarP(&flags.namespace, "namespace", "n", "", "namespace of the workload (required)")
	f.StringVar(&flags.name, "name", "", "name of the workload, not yet taken in its namespace (required)")
	f.StringVar(&flags.serviceAccount, "service-account", "", `service account of the workload (default "default")`)
	f.StringArrayVarP(&flags.labels, "label", "l", nil, "label of the workload, KEY=VALUE (repeatable)")
	f.StringArrayVar(&flags.annotations, "annotation", nil, "annotation of the workload, KEY=VALUE (repeatable)")
	f.StringArrayVar(&flags.ports, "port", nil, "port that the program listens on, [NAME=]PORT[/tcp|/udp] (repeatable); names target ports of Services")
	f.StringVar(&flags.user, "user", "", "user, and group if need be, to run as: NAME[:GROUP] or UID[:GID] (default: the caller's)")
	f.StringArrayVar(&flags.capabilities, "cap-add", nil, "capability to add to the usual ones, such as NET_RAW (repeatable)")
	f.StringArrayVarP(&flags.env, "env", "e", nil, "variable to add to the environment, NAME=VALUE (repeatable)")
	f.StringVar(&flags.dir, "workdir", "", "working directory (default: the caller's)")
	f.StringArrayVar(&flags.hide, "hide", nil, "directory that the program sees empty (repeatable); the run directory always is")
	f.BoolVarP(&flags.quiet, "quiet", "q", false, "do not tell the workload's addresses on standard error")
	completeWith(cmd, "namespace", a.live(namespaceNames))
	return cmd
}

// spec checks the flags and makes a workload of them.
func (f *runFlags) spec(command []string) (workload.Spec, error) {
	spec := workload.Spec{
		Name:           mesh.Name{Namespace: f.namespace, Name: f.name},
		ServiceAccount: f.serviceAccount,
		Command:        command,
	}
	switch {
	case f.namespace == "":
		return spec, fmt.Errorf("-n NAMESPACE is missing: in which namespace is the workload?")
	case f.name == "":
		return spec, fmt.Errorf("--name NAME is missing: what is the workload called?")
	}
	var err error
	if spec.Labels, err = pairs("--label", f.labels); err != nil {
		return spec, err
	}
	if spec.Annotations, err = pairs("--annotation", f.annotations); err != nil {
		return spec, err
	}
	for _, p := range f.ports {
		port, err := containerPort(p)
		if err != nil {
			return spec, err
		}
		spec.Ports = append(spec.Ports, port)
	}
	for _, e := range f.env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return spec, fmt.Errorf("--env %q: want NAME=VALUE", e)
		}
	}
	return spec, spec.Validate()
}

// pairs parses KEY=VALUE of a repeatable flag.
func pairs(flag string, values []string) (map[string]string, error) {
	var out map[string]string
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%s %q: want KEY=VALUE", flag, v)
		}
		if _, twice := out[key]; twice {
			return nil, fmt.Errorf("%s: %s is given twice", flag, key)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = value
	}
	return out, nil
}

// containerPort parses [NAME=]PORT[/tcp|/udp].
func containerPort(v string) (workload.ContainerPort, error) {
	name, rest, named := strings.Cut(v, "=")
	if !named {
		name, rest = "", v
	}
	number, protocol, _ := strings.Cut(rest, "/")
	port, err := strconv.ParseUint(number, 10, 16)
	out := workload.ContainerPort{Name: name, Port: uint16(port), Protocol: mesh.ProtocolTCP}
	switch strings.ToLower(protocol) {
	case "", "tcp":
	case "udp":
		out.Protocol = mesh.ProtocolUDP
	default:
		err = strconv.ErrSyntax
	}
	if err != nil || port == 0 || named && name == "" {
		return out, fmt.Errorf("--port %q: want PORT, NAME=PORT or NAME=PORT/udp", v)
	}
	return out, nil
}

func (a *app) runWorkload(cmd *cobra.Command, f runFlags, spec workload.Spec, command []string) error {
	runDir, err := filepath.Abs(a.runDir)
	if err != nil {
		return fmt.Errorf("find the run directory: %w", err)
	}
	o := launch.Options{
		Socket:  admin.SocketPath(a.runDir, admin.ProcessAgent),
		Spec:    spec,
		User:    f.user,
		CapAdd:  f.capabilities,
		Command: command,
		Dir:     f.dir,
		Hide:    append([]string{runDir}, f.hide...),
		Stdin:   a.stdin,
		Logger:  slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	o.Stdout, _ = a.stdout.(*os.File)
	o.Stderr, _ = a.stderr.(*os.File)
	if len(f.env) > 0 {
		o.Env = append(os.Environ(), f.env...)
	}
	if !f.quiet {
		o.OnStarted = func(s *workload.Sandbox) {
			fmt.Fprintf(a.stderr, "sluice: %s runs with %s\n", s.Spec.Name, words(s.Addresses))
		}
	}
	// The agent is asked first, so that a node that does not run is told in the same
	// words as by every other command.
	c := a.client()
	_, err = c.Status(cmd.Context(), admin.ProcessAgent)
	c.Close()
	if err != nil {
		return err
	}
	code, err := launch.Run(cmd.Context(), o)
	if err != nil {
		return &exitError{code: code, text: fmt.Sprintf("sluice: run %s: %v", spec.Name, err)}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

// startsWorkload reports whether a command line is one of `sluice run`, whose
// signals belong to the workload.
func startsWorkload(args []string) bool {
	for i := 0; i < len(args); i++ {
		switch arg := args[i]; {
		case arg == "--run-dir" || arg == "--color":
			i++ // its value
		case strings.HasPrefix(arg, "-"):
		default:
			return arg == "run"
		}
	}
	return false
}
