// Package launch starts a command inside a workload: the client side of the agent,
// run by `sluice run` as root. The command gets PID, mount, IPC, UTS and cgroup
// namespaces of its own beside the workload's network namespace, and loses what
// would let it leave them: capabilities, privileges gained by exec, device nodes,
// writable kernel file systems, and by a seccomp filter new namespaces. It ends with
// the process that launched it, however that ends; a restart of the agent does not
// touch it.
//
// The command shares the machine's file system: one that runs as root can write
// there what root can. Give a User to programs that are not to be trusted with that.
//
// Three processes take part, all of one executable. Run makes the first, in new
// namespaces and in the workload's cgroup (CLONE_INTO_CGROUP); it makes the mounts
// and drops what is to be dropped, and executes the second in its place: process 1
// of the PID namespace, no more privileged than the command, which starts it,
// passes signals on and reaps. A failure at any step ends them all and is Run's error.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/netns"
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
	// CapAdd are capabilities beyond the default set, with or without "CAP_". Root gets
	// the default set and these, any other user these alone.
	CapAdd  []string
	Command []string
	// Env is the whole environment of the command; nil: the caller's. A User adds
	// HOME, USER and LOGNAME.
	Env []string
	// Dir is the working directory; empty: the caller's.
	Dir string
	// Hide are folders that the command sees empty, beside those that the agent names.
	Hide                  []string
	Stdin, Stdout, Stderr *os.File // nil: /dev/null
	// OnStarted is called once, when the command was started. May be nil.
	OnStarted func(*workload.Sandbox)
	Logger    *slog.Logger
}

// The names by which Run calls its own executable.
const (
	setupName = "sluice-workload-setup"
	initName  = "sluice-workload-init"
)

// Init takes the process over if it is the inner part of Run, and does not return
// then. main must call it before anything else; so must TestMain of tests that Run.
func Init() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case setupName:
		setUp()
	case initName:
		supervise()
	}
}

// plan is what the inner processes are told, as JSON in a memory file.
type plan struct {
	Hostname   string
	Hosts      string
	ResolvConf string
	Hide       []string
	Dir        string
	Command    []string
	Env        []string
	User       user
	Caps       capabilities
	// Terminal says that the terminal sends SIGINT and SIGQUIT to the command itself.
	Terminal bool
}

// Descriptors of the inner processes, in the order of exec.Cmd.ExtraFiles.
const (
	planFD   = 3 // memory file with the plan
	statusFD = 4 // pipe to Run for one status
	lifeFD   = 5 // pipe from Run that ends with it
)

// status is what Run learns of the command's start.
type status struct {
	Error string `json:",omitempty"`
	Code  int    `json:",omitempty"`
}

// Run adds the workload, runs the command inside it until it ends, and returns its
// exit code: 128+n if signal n ended it, one of the Exit codes with an error if it
// was not started. Signals sent to the caller go to the command; when ctx ends, it
// is killed. The workload is gone when Run returns, unless the agent is away.
func Run(ctx context.Context, o Options) (exitCode int, err error) {
	p, err := o.plan()
	if err != nil {
		return ExitSetup, err
	}
	spec := o.Spec
	if spec.Command == nil {
		spec.Command = o.Command
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	agent, err := attach(ctx, o.Socket, spec, o.Logger)
	if err != nil {
		return ExitSetup, err
	}
	defer agent.leave()
	p.place(agent.sandbox, o.Hide)

	c, err := start(agent.sandbox, p, o.Stdin, o.Stdout, o.Stderr)
	if err != nil {
		return ExitSetup, err
	}
	// From here on the processes exist, and end before Run returns.
	stopForwarding := c.forwardSignals(p.Terminal)
	defer stopForwarding()
	stopKilling := context.AfterFunc(ctx, c.kill)
	defer stopKilling()

	first, err := c.status()
	switch {
	case err != nil:
		c.kill()
		<-c.ended
		return ExitSetup, fmt.Errorf("run %s: %w", o.Command[0], err)
	case first.Error != "":
		<-c.ended
		return first.Code, fmt.Errorf("run %s: %s", o.Command[0], first.Error)
	}
	agent.started()
	if o.OnStarted != nil {
		o.OnStarted(agent.sandbox)
	}
	kept := make(chan error, 1)
	keepCtx, stopKeeping := context.WithCancel(ctx)
	go func() {
		err := agent.keep(keepCtx)
		if err != nil {
			c.kill()
		}
		kept <- err
	}()
	<-c.ended
	stopKeeping()
	return c.exitCode, <-kept
}

// plan checks the options. What depends on the sandbox is filled in by place.
func (o *Options) plan() (*plan, error) {
	if len(o.Command) == 0 || o.Command[0] == "" {
		return nil, errors.New("no command")
	}
	for _, words := range [][]string{o.Command, o.Env} {
		if slices.ContainsFunc(words, func(s string) bool { return strings.ContainsRune(s, 0) }) {
			return nil, errors.New("zero byte in command or environment")
		}
	}
	if slices.ContainsFunc(o.Hide, func(path string) bool { return filepath.Clean(path) == "/" || !filepath.IsAbs(path) }) {
		return nil, fmt.Errorf("hide %q: not folders by absolute path below /", o.Hide)
	}
	p := &plan{Dir: o.Dir, Command: o.Command, Env: o.Env}
	if p.Env == nil {
		p.Env = os.Environ()
	}
	var err error
	if p.Dir == "" {
		if p.Dir, err = os.Getwd(); err != nil {
			return nil, err
		}
	}
	if p.User, err = lookupUser(o.User); err != nil {
		return nil, err
	}
	p.Env = lastOfEach(append(slices.Clone(p.Env), p.User.environ()...))
	if p.Caps, err = chooseCapabilities(o.CapAdd, p.User.UID == 0); err != nil {
		return nil, err
	}
	if o.Stdin != nil {
		_, err := unix.IoctlGetTermios(int(o.Stdin.Fd()), unix.TCGETS)
		p.Terminal = err == nil
	}
	return p, nil
}

// lastOfEach drops all but the last value of each variable of an environment.
func lastOfEach(env []string) []string {
	seen := make(map[string]bool)
	var out []string
	for _, entry := range slices.Backward(env) {
		name, _, _ := strings.Cut(entry, "=")
		if !seen[name] {
			seen[name] = true
			out = append(out, entry)
		}
	}
	slices.Reverse(out)
	return out
}

// maxHostname is HOST_NAME_MAX-1 of Linux, rounded down to a DNS label.
const maxHostname = 63

func (p *plan) place(s *workload.Sandbox, hide []string) {
	p.Hostname = s.Spec.Name.Name
	if len(p.Hostname) > maxHostname {
		p.Hostname = strings.TrimRight(p.Hostname[:maxHostname], "-.")
	}
	p.Hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for _, addr := range s.Addresses {
		p.Hosts += addr.String() + "\t" + p.Hostname + "\n"
	}
	p.ResolvConf = s.ResolvConf
	p.Hide = append(slices.Clone(s.Hide), hide...)
}

// child is the inner process as Run sees it.
type child struct {
	cmd      *exec.Cmd
	statusR  *os.File
	lifeW    *os.File
	ended    chan struct{} // closed after exitCode was set
	exitCode int
}

// start makes the first inner process. It returns when the process exists.
func start(s *workload.Sandbox, p *plan, stdin, stdout, stderr *os.File) (c *child, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	planFile, err := p.memoryFile()
	if err != nil {
		return nil, err
	}
	files = append(files, planFile)
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	files = append(files, statusW)
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		_ = statusR.Close()
		return nil, err
	}
	files = append(files, lifeR)
	c = &child{statusR: statusR, lifeW: lifeW, ended: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = statusR.Close()
			_ = lifeW.Close()
		}
	}()
	cgroup, err := os.OpenFile(s.CgroupPath, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup of the workload: %w", err)
	}
	files = append(files, cgroup)
	ns, err := netns.Open(s.NetnsPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }()

	c.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{setupName}, Env: []string{},
		Stdin: orNil(stdin), Stdout: orNilWriter(stdout), Stderr: orNilWriter(stderr),
		ExtraFiles: []*os.File{planFile, statusW, lifeR},
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			UseCgroupFD: true, CgroupFD: int(cgroup.Fd()),
			Pdeathsig: syscall.SIGKILL,
			// Outside a terminal's job control, signals to the caller's process group reach
			// the command once, by way of the caller.
			Setpgid: !p.Terminal,
		},
	}
	started := make(chan error)
	go func() {
		// The thread ends with this goroutine: it is in the workload's namespace, and
		// the parent-death signal is sent when it ends, so it waits for the process.
		runtime.LockOSThread()
		if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("enter network namespace of the workload: %w", err)
			return
		}
		err := c.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = c.cmd.Wait()
		c.exitCode = exitCodeOf(c.cmd.ProcessState, err)
		_ = c.lifeW.Close()
		close(c.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start process in the workload: %w", err)
	}
	return c, nil
}

// orNil keeps a nil *os.File from becoming a non-nil interface.
func orNil(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

func orNilWriter(f *os.File) io.Writer {
	if f == nil {
		return nil
	}
	return f
}

func exitCodeOf(state *os.ProcessState, err error) int {
	if state == nil {
		return ExitSetup
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	if code := state.ExitCode(); code >= 0 {
		return code
	}
	_ = err
	return ExitSetup
}

func (p *plan) memoryFile() (*os.File, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode plan: %w", err)
	}
	fd, err := unix.MemfdCreate("sluice-plan", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "plan")
	if _, err := file.Write(data); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("write plan: %w", err)
	}
	return file, nil
}

// readPlan reads the plan, as either inner process.
func readPlan() (*plan, error) {
	var data []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Pread(planFD, buf, int64(len(data)))
		if err != nil {
			return nil, os.NewSyscallError("read plan", err)
		}
		if n == 0 {
			break
		}
		data = append(data, buf[:n]...)
	}
	p := new(plan)
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("decode plan: %w", err)
	}
	return p, nil
}

// status waits for the command's start; call it once. It is an error if the inner
// process ended without a word.
func (c *child) status() (status, error) {
	defer func() { _ = c.statusR.Close() }()
	var s status
	if err := json.NewDecoder(c.statusR).Decode(&s); err != nil {
		return s, errors.New("the process that prepares the sandbox was killed")
	}
	return s, nil
}

func (c *child) kill() { _ = c.cmd.Process.Kill() }

// forwarded are the signals that go on to the command.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH,
}

// fromTerminal reports whether the kernel sends the signal to all processes of the
// terminal, so that passing it on would deliver it twice.
func fromTerminal(sig os.Signal) bool {
	return sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGWINCH
}

func (c *child) forwardSignals(terminal bool) (stop func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case sig := <-signals:
				if !terminal || !fromTerminal(sig) {
					_ = c.cmd.Process.Signal(sig)
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		signal.Stop(signals)
		close(done)
		wg.Wait()
	}
}
