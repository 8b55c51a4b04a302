package watch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// notifier is one inotify instance.
type notifier struct {
	file *os.File
	fd   int
	dirs map[int]string // watch descriptor → directory, as it was given
	wds  map[string]int
	buf  []byte
}

// event is what inotify(7) tells, with the directory in place of its number.
type event struct {
	dir, name string
	mask      uint32
}

// A file is read when its writer closes it (CLOSE_WRITE) or it is moved here. A
// CREATE matters for directories, symbolic links and hard links.
const watchMask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_CREATE |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

func newNotifier() (*notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			return nil, fmt.Errorf("start inotify: %w (raise fs.inotify.max_user_instances)", err)
		}
		return nil, fmt.Errorf("start inotify: %w", err)
	}
	// A nonblocking descriptor goes to the runtime's poller: reads can be interrupted.
	return &notifier{
		file: os.NewFile(uintptr(fd), "inotify"), fd: fd,
		dirs: map[int]string{}, wds: map[string]int{}, buf: make([]byte, 64<<10),
	}, nil
}

func (n *notifier) close() error { return n.file.Close() }

// watch begins to watch a directory, given by its real path. It may be repeated. A
// nil notifier watches nothing.
func (n *notifier) watch(dir string) error {
	if n == nil {
		return nil
	}
	wd, err := unix.InotifyAddWatch(n.fd, dir, watchMask)
	if err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("watch %s: %w (raise fs.inotify.max_user_watches)", dir, err)
		}
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	if old, ok := n.dirs[wd]; ok && old != dir {
		delete(n.wds, old) // the directory was renamed
	}
	n.dirs[wd] = dir
	n.wds[dir] = wd
	return nil
}

// unwatch ends it.
func (n *notifier) unwatch(dir string) {
	if wd, ok := n.wds[dir]; ok {
		// Fails if the directory is gone, and the watch with it.
		_, _ = unix.InotifyRmWatch(n.fd, uint32(wd))
		delete(n.wds, dir)
		delete(n.dirs, wd)
	}
}

// read waits for events until the deadline (zero: for ever) and returns all that
// are there. The error is os.ErrDeadlineExceeded when there were none.
// Whoever ends ctx sets the deadline to the past afterwards.
func (n *notifier) read(ctx context.Context, deadline time.Time) (events []event, overflow bool, err error) {
	if err := n.file.SetReadDeadline(deadline); err != nil {
		return nil, false, err
	}
	if ctx.Err() != nil {
		return nil, false, ctx.Err()
	}
	size, err := n.file.Read(n.buf)
	if err != nil {
		return nil, false, err
	}
	for b := n.buf[:size]; len(b) >= unix.SizeofInotifyEvent; {
		wd := int(int32(binary.NativeEndian.Uint32(b)))
		mask := binary.NativeEndian.Uint32(b[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:end], "\x00"))
		b = b[end:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			overflow = true
			continue
		}
		dir, known := n.dirs[wd]
		if !known {
			continue
		}
		if mask&unix.IN_IGNORED != 0 {
			delete(n.dirs, wd)
			if n.wds[dir] == wd {
				delete(n.wds, dir)
			}
			continue
		}
		events = append(events, event{dir, name, mask})
	}
	return events, overflow, nil
}
