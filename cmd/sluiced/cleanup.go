package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/dataplane/loader"
)

func cleanupCommand() *cobra.Command {
	s := defaultSettings()
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that a stopped node left: processes of workloads, pins, cgroups, mounts, sockets",
		Long: `cleanup ends every process in the node's cgroups and removes its kernel
programs, namespaces, cgroups and its run folder. The state folder stays.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.validate(); err != nil {
				return err
			}
			return cleanup(cmd.Context(), &s)
		},
	}
	s.flags(cmd.Flags())
	return cmd
}

// cleanup goes on after a failure and reports all of them.
func cleanup(ctx context.Context, s *settings) error {
	var errs []error
	errs = append(errs, killCgroup(ctx, s.Cgroup))
	errs = append(errs, loader.Remove(s.pins()))
	errs = append(errs, unmountBelow(s.RunDir))
	errs = append(errs, removeCgroup(s.Cgroup))
	errs = append(errs, os.RemoveAll(s.RunDir))
	if s.BPFFS != "/sys/fs/bpf" {
		if err := unix.Unmount(s.BPFFS, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.BPFFS, err))
		}
	}
	return errors.Join(errs...)
}

// killCgroup ends all processes in a cgroup and below, and waits for their end.
func killCgroup(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("end the processes in %s: %w", path, err)
	}
	for {
		events, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
		if err != nil || strings.Contains(string(events), "populated 0") {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes in %s do not end", path)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// removeCgroup removes a cgroup and those below it, deepest first.
func removeCgroup(path string) error {
	var folders []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			folders = append(folders, p)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for i := len(folders) - 1; i >= 0; i-- {
		if err := os.Remove(folders[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// unmountBelow unmounts what is mounted below a folder, deepest first.
func unmountBelow(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	var errs []error
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", points[i], err))
		}
	}
	return errors.Join(errs...)
}
