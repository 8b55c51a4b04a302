package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/netns"
	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/mesh"
)

// echoScript is a command that says so when it runs and then answers each line.
const echoScript = `echo ready; while read -r line; do echo "got $line"; done`

// running is a launched process whose command has said "ready".
type running struct {
	*launched
	in  io.WriteCloser
	out *bufio.Reader
}

func startEcho(t *testing.T, b *bed, name string) *running {
	t.Helper()
	l := command(t, b.options(name, "sh", "-c", echoScript))
	in, err := l.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.Stdout = nil
	out, err := l.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Process.Kill()
		_ = l.Wait()
	})
	r := &running{launched: l, in: in, out: bufio.NewReader(out)}
	if line, err := r.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("read %q, %v; stderr %q", line, err, l.stderr.String())
	}
	return r
}

func (r *running) echo(t *testing.T, text string) {
	t.Helper()
	if _, err := fmt.Fprintln(r.in, text); err != nil {
		t.Fatal(err)
	}
	if line, err := r.out.ReadString('\n'); line != "got "+text+"\n" {
		t.Fatalf("read %q, %v", line, err)
	}
}

// processes returns pidfds of all processes of a cgroup.
func processes(t *testing.T, cgroup string) []int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	for field := range strings.FieldsSeq(string(text)) {
		var pid int
		if _, err := fmt.Sscan(field, &pid); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	return fds
}

// awaitEnd waits until all the processes have ended.
func awaitEnd(t *testing.T, pidfds []int) {
	t.Helper()
	for _, fd := range pidfds {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n != 1 || err != nil {
				t.Fatalf("a process of the workload lives on: %v", err)
			}
			break
		}
		_ = unix.Close(fd)
	}
}

// awaitReady returns when the agent knows that the workload's command runs.
func awaitReady(t *testing.T, b *bed, s *workload.Sandbox) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(b.cfg.RunDir, "pods"), unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); !s.Ready(); {
		if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatal(err)
		}
	}
}

// removed is a Hooks that says which workloads were removed.
type removed chan mesh.Name

func (removed) OnAdd(context.Context, *workload.Sandbox) error { return nil }
func (r removed) OnRemove(s *workload.Sandbox)                 { r <- s.Spec.Name }

// TestKillLauncher: whoever launched it may be killed without a chance to clear up.
func TestKillLauncher(t *testing.T) {
	b := newBed(t)
	gone := make(removed, 1)
	b.stopAgent(t)
	b.cfg.Hooks = gone
	b.startAgent(t)
	r := startEcho(t, b, "killed")
	r.echo(t, "one")
	s := b.registry.List()[0]
	pids := processes(t, s.CgroupPath)
	if len(pids) != 2 {
		t.Errorf("%d processes, want init and sh", len(pids))
	}
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, pids)
	if name := <-gone; name != s.Spec.Name {
		t.Errorf("%s was removed", name)
	}
	// OnRemove is in the middle; adding the name again waits for the end.
	if _, err := b.registry.Add(t.Context(), s.Spec); err != nil {
		t.Fatal(err)
	}
	if err := b.registry.Remove(t.Context(), s.Spec.Name); err != nil {
		t.Fatal(err)
	}
	b.mustBeEmpty(t)
}

// TestKillLauncherWithoutAgent: also while no agent runs; the next one clears up.
func TestKillLauncherWithoutAgent(t *testing.T) {
	b := newBed(t)
	r := startEcho(t, b, "killed")
	s := b.registry.List()[0]
	pids := processes(t, s.CgroupPath)
	b.stopAgent(t)
	r.echo(t, "without an agent")
	if err := r.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, pids)
	_ = r.Wait()
	b.startAgent(t)
	b.mustBeEmpty(t)
}

// TestAgentRestart: a command and its connections live through a restart of the
// agent, and the workload still ends with the command afterwards.
func TestAgentRestart(t *testing.T) {
	b := newBed(t)
	r := startEcho(t, b, "restart")
	s := b.registry.List()[0]
	awaitReady(t, b, s)
	ns, err := netns.Open(s.NetnsPath)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	var l net.Listener
	var client net.Conn
	if err := errors.Join(
		ns.Do(func() (err error) {
			l, err = net.Listen("tcp", netip.AddrPortFrom(s.Addresses[1], 0).String())
			return err
		}),
		b.netns.Do(func() (err error) {
			client, err = net.Dial("tcp", l.Addr().String())
			return err
		}),
	); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	defer func() { _ = server.Close() }()

	for i := range 2 {
		b.stopAgent(t)
		r.echo(t, "away")
		b.startAgent(t)
		after := b.registry.Get(s.Spec.Name)
		if after == nil || after.Index != s.Index || after.NetnsCookie != s.NetnsCookie || !after.Ready() {
			t.Fatalf("restored %+v", after)
		}
		r.echo(t, "back")
		text := fmt.Sprintf("line %d\n", i)
		if _, err := io.WriteString(client, text); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(server, got); err != nil || string(got) != text {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	_ = r.in.Close()
	if err := r.Wait(); err != nil {
		t.Errorf("%v, %s", err, r.stderr.String())
	}
	// Whether it had come back to the last agent or that one watched it: it is removed.
	if err := b.registry.Remove(t.Context(), s.Spec.Name); err != nil && !errors.Is(err, workload.ErrNotFound) {
		t.Error(err)
	}
	b.mustBeEmpty(t)
}

// TestLostWorkload: the command ends when the agent comes back without its workload.
func TestLostWorkload(t *testing.T) {
	b := newBed(t)
	r := startEcho(t, b, "lost")
	s := b.registry.List()[0]
	awaitReady(t, b, s)
	pids := processes(t, s.CgroupPath)
	if err := b.registry.Remove(t.Context(), s.Spec.Name); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, pids)
	_ = r.Wait()
	if code := r.ProcessState.ExitCode(); code != 128+int(syscall.SIGKILL) {
		t.Errorf("exit code %d", code)
	}
	b.mustBeEmpty(t)
}

// TestSameName: the second of a name is refused and does no harm to the first.
func TestSameName(t *testing.T) {
	b := newBed(t)
	r := startEcho(t, b, "twin")
	_, stderr, code := run(t, b.options("twin", "true"))
	if code != ExitSetup || !strings.Contains(stderr, "workload exists") {
		t.Errorf("code %d, stderr %q", code, stderr)
	}
	r.echo(t, "still here")
}

// TestContext: a context that ends kills the command.
func TestContext(t *testing.T) {
	b := newBed(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := b.options("context")
	code, err := Run(ctx, Options{
		Socket: o.Socket, Spec: o.Spec, Command: []string{"sleep", "1000"},
		OnStarted: func(*workload.Sandbox) { cancel() },
	})
	if code != 128+int(syscall.SIGKILL) || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	b.mustBeEmpty(t)
}
