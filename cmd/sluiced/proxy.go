package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/admin"
	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/l7proxy/sockets"
)

// The descriptors that the worker inherits.
const (
	workerSettingsFD = 3 // a pipe with the settings as JSON
	workerSocketsFD  = 4 // the conversation with the maker of sockets
	workerAdminFD    = 5 // the listening admin socket
)

func proxyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Run the node proxy (started by sluiced node)",
		Long: `proxy starts the worker, which parses traffic as a user without privileges, and
makes sockets in workloads' network namespaces for it. It does nothing else.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := os.Open(file)
			if err != nil {
				return fmt.Errorf("%w: --settings: %w", errUsage, err)
			}
			defer f.Close()
			s, err := readSettings(f)
			if err != nil {
				return err
			}
			return runProxy(cmd.Context(), s)
		},
	}
	cmd.Flags().StringVar(&file, "settings", "/run/sluice/settings.json", "what sluiced node wrote")
	return cmd
}

// runProxy is the privileged parent of the worker.
func runProxy(ctx context.Context, s *settings) error {
	logger, _, err := s.logger("proxy-parent")
	if err != nil {
		return err
	}
	if err := raiseFileLimit(); err != nil {
		return err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "sockets"), os.NewFile(uintptr(pair[1]), "sockets")
	adminListener, err := admin.Listen(admin.SocketPath(s.RunDir, admin.ProcessProxy))
	if err != nil {
		return err
	}
	adminFile, err := adminListener.File()
	if err != nil {
		return err
	}
	settingsReader, settingsWriter, err := os.Pipe()
	if err != nil {
		return err
	}

	// The worker ends with the thread that starts it.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", "worker")
	cmd.Args[0] = "sluiced"
	cmd.Env = []string{} // nothing of ours is its business
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{settingsReader, theirs, adminFile}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig:  unix.SIGTERM,
		Setpgid:    true,
		Credential: &syscall.Credential{Uid: uint32(s.ProxyUser), Gid: uint32(s.ProxyUser), Groups: []uint32{}},
	}
	// No execve may ever give the worker more than it has. It inherits this from the
	// thread that starts it.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the worker: %w", err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err := keepOnly(unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_KILL); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	adminListener.SetUnlinkOnClose(false)
	adminListener.Close()
	writeErr := json.NewEncoder(settingsWriter).Encode(s)
	if err := errors.Join(writeErr, settingsWriter.Close()); err != nil {
		return fmt.Errorf("tell the worker the settings: %w", err)
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return err
	}
	ours.Close()

	// The worker is asked to stop with ctx, and drains; its end is ours. Nothing may
	// be started from this thread meanwhile, but it must stay.
	var g errgroup.Group
	g.Go(func() error {
		defer cmd.Process.Kill()
		return (&sockets.Maker{NetnsDir: s.netnsDir(), Mark: workload.InboundMark, Logger: logger}).Run(conn.(*net.UnixConn))
	})
	stop := context.AfterFunc(ctx, func() {
		// An error says that it has ended.
		_ = cmd.Process.Signal(unix.SIGTERM)
		time.AfterFunc(s.Drain+5*time.Second, func() { _ = cmd.Process.Kill() })
	})
	defer stop()
	err = cmd.Wait()
	conn.Close()
	if makerErr := g.Wait(); makerErr != nil && ctx.Err() == nil {
		return makerErr
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the worker ended: %w", err)
}

// raiseFileLimit lets this process and the worker have as many descriptors as the
// machine allows: a proxied connection takes two.
func raiseFileLimit() error {
	const wanted = 1 << 20
	limit := unix.Rlimit{Cur: wanted, Max: wanted}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err == nil {
		return nil
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	limit.Cur = limit.Max
	return os.NewSyscallError("setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
}

// keepOnly gives up all capabilities of all threads but those named: to enter
// network namespaces and to signal the worker. The C library's threads, of builds
// with cgo, cannot be reached; such builds are for tests, and keep what they have.
func keepOnly(caps ...uint) error {
	var data [2]unix.CapUserData
	for _, c := range caps {
		bit := uint32(1) << (c % 32)
		data[c/32].Effective |= bit
		data[c/32].Permitted |= bit
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 && errno != unix.ENOTSUP {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}
