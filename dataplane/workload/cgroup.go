package workload

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// checkCgroup2 makes the folder at path and reports whether it is a cgroup of the v2 hierarchy.
func checkCgroup2(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fmt.Errorf("make cgroup %s: %w", path, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("make cgroup %s: not in a cgroup2 file system", path)
	}
	return nil
}

// makeCgroup makes the cgroup at path, which must not exist, and returns its number.
func makeCgroup(path string) (id uint64, err error) {
	if err := os.Mkdir(path, 0o755); err != nil {
		return 0, fmt.Errorf("make cgroup: %w", err)
	}
	return cgroupID(path)
}

func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat cgroup %s: %w", path, err)
	}
	return st.Ino, nil
}

// emptyCgroup kills all processes of the cgroup at path and those below it, and
// returns when they have ended. A cgroup that does not exist is empty.
func emptyCgroup(ctx context.Context, path string) error {
	events, err := os.Open(filepath.Join(path, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch cgroup: %w", err)
	}
	defer func() { _ = events.Close() }()
	populated := func() (bool, error) {
		var buf [256]byte
		n, err := unix.Pread(int(events.Fd()), buf[:], 0)
		if errors.Is(err, unix.ENODEV) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read %s: %w", events.Name(), err)
		}
		return strings.Contains(string(buf[:n]), "populated 1"), nil
	}
	if busy, err := populated(); err != nil || !busy {
		return err
	}
	if err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill processes of cgroup: %w", err)
	}
	for {
		if busy, err := populated(); err != nil || !busy {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the processes of cgroup %s to end: %w", path, err)
		}
		// The kernel raises POLLPRI when "populated" changes; the timeout only lets a
		// cancelled context be seen.
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 100); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch cgroup %s: %w", path, err)
		}
	}
}

// removeCgroup deletes an empty cgroup and those below it. One that does not exist
// is no error.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}
