package watch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/manifest"
)

// Config of a Folder.
type Config struct {
	// Directories are watched recursively. In a conflict between two files an
	// earlier directory wins. One that does not exist is waited for.
	Directories []string
	// Running is a directory, or empty, with the Pods that run. They take the place of
	// declared Pods of the same name (and keep their labels and container ports), and
	// a Pod that goes is gone at once.
	Running string
	// ServiceCIDRs are where Services without clusterIP get their addresses, at
	// most one of each family. The first is the default family.
	ServiceCIDRs []netip.Prefix
	// StateDir is where addresses given to Services are remembered, or empty.
	StateDir string
	Logger   *slog.Logger
}

// Validate reports what is wrong with the configuration.
func (c Config) Validate() error {
	if len(c.Directories) == 0 && c.Running == "" {
		return errors.New("watch: no directory")
	}
	families := map[bool]bool{}
	for _, p := range c.ServiceCIDRs {
		if !p.IsValid() {
			return fmt.Errorf("watch: invalid service CIDR %q", p)
		}
		if families[p.Addr().Is4()] {
			return fmt.Errorf("watch: service CIDR %s is the second of its family", p)
		}
		families[p.Addr().Is4()] = true
	}
	return nil
}

// absence is how long a file may be away before its objects are. Editors and git
// replace a file by removing the old one first; a change of a file does not wait.
const absence = 250 * time.Millisecond

// maxFileBytes is the largest file that is read: more than etcd takes for an
// object, many times over.
const maxFileBytes = 64 << 20

// Folder is a kube.Source. Run may be called once.
type Folder struct {
	cfg   Config
	log   *slog.Logger
	roots []string // Running last
	set   *set

	notify *notifier
	// scanned has the real directories that are watched and the paths under the roots
	// by which they were reached; links the real files that symbolic links lead to.
	scanned map[string]map[string]bool
	links   map[string]map[string]bool
	files   map[string]*file
	absent  map[string]time.Time // when the objects of a vanished file go

	changed map[string]kube.File // to report
}

// file is a file as it was last read.
type file struct {
	rank     rank
	sum      [sha256.Size]byte
	stamp    stamp
	objects  map[kube.Key]manifest.Object
	parsed   []kube.Problem // of the file by itself
	conflict map[kube.Key]kube.Problem
}

// stamp changes with a file's content, but for changes within a tick of the clock.
type stamp struct {
	device, inode  uint64
	size           int64
	modified, made time.Time
}

func stampOf(info fs.FileInfo) stamp {
	s := stamp{size: info.Size(), modified: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		s.device, s.inode, s.made = stat.Dev, stat.Ino, time.Unix(stat.Ctim.Unix())
	}
	return s
}

// rank orders files by precedence.
type rank struct {
	root int
	path string
}

func (r rank) compare(o rank) int {
	if r.root != o.root {
		return r.root - o.root
	}
	return strings.Compare(r.path, o.path)
}

// New validates and reads the remembered addresses; it watches nothing yet.
func New(cfg Config) (*Folder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Folder{
		cfg: cfg, log: cfg.Logger.With("component", "watch"),
		scanned: map[string]map[string]bool{}, links: map[string]map[string]bool{},
		files: map[string]*file{}, absent: map[string]time.Time{}, changed: map[string]kube.File{},
	}
	for _, dir := range cfg.Directories {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		}
		f.roots = append(f.roots, abs)
	}
	if cfg.Running != "" {
		abs, err := filepath.Abs(cfg.Running)
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", cfg.Running, err)
		}
		f.roots = append(f.roots, abs)
	}
	var err error
	f.set, err = newSet(cfg)
	return f, err
}

// Run implements kube.Source.
func (f *Folder) Run(ctx context.Context, report func(kube.Change)) error {
	n, err := newNotifier()
	if err != nil {
		return err
	}
	f.notify = n
	defer func() { _ = n.close() }()
	stop := context.AfterFunc(ctx, func() { _ = n.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	f.rescan()
	for first := true; ; first = false {
		change := f.flush()
		change.Synced = true
		if first || !change.IsEmpty() {
			report(change)
		}
		if err := f.wait(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// wait takes in what happens next.
func (f *Folder) wait(ctx context.Context) error {
	events, overflow, err := f.notify.read(ctx, f.nextAbsence())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("read inotify events: %w", err)
	}
	if overflow {
		f.log.Warn("the kernel dropped events, all folders are read again")
		for _, file := range f.files {
			file.stamp = stamp{}
		}
		f.rescan()
		return nil
	}
	f.take(events)
	f.expire(time.Now())
	return nil
}

// nextAbsence returns when the next vanished file is given up, or zero.
func (f *Folder) nextAbsence() (next time.Time) {
	for _, t := range f.absent {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	return next
}

// expire takes the objects away of files that stayed absent.
func (f *Folder) expire(now time.Time) {
	for path, t := range f.absent {
		if now.Before(t) {
			continue
		}
		delete(f.absent, path)
		// If it is there again, its writer is still at it and will close it.
		if _, err := os.Stat(path); err != nil {
			f.remove(path)
		}
	}
}

// take decides what each event means for which files.
func (f *Folder) take(events []event) {
	read, scan, gone := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, e := range events {
		if e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0 || e.name == "" {
			for dir := range f.scanned[e.dir] {
				scan[dir] = true
			}
			continue
		}
		real := filepath.Join(e.dir, e.name)
		for link := range f.links[real] {
			read[link] = true
		}
		for dir := range f.scanned[e.dir] {
			path := filepath.Join(dir, e.name)
			switch {
			case f.leadsToRoot(path):
				scan[path] = true
			case !f.inRoots(path):
			case e.mask&unix.IN_ISDIR != 0:
				if !hidden(e.name) {
					scan[path] = true
				} else if e.mask&(unix.IN_MOVED_TO|unix.IN_MOVED_FROM) != 0 {
					// Links may lead through it.
					scan[dir] = true
				}
			case isManifest(e.name):
				if e.mask&unix.IN_CREATE != 0 && !complete(path) {
					continue // its writer will close it
				}
				// The last event of a file counts. One that went away is not looked for: a
				// file of its name may be there again, and be half written.
				if e.mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0 {
					gone[path] = true
					delete(read, path)
					continue
				}
				delete(gone, path)
				read[path] = true
			case e.mask&unix.IN_CLOSE_WRITE != 0:
			case isLink(path) || strings.HasPrefix(e.name, "..") || f.isScanned(path):
				// "..data" of a mounted ConfigMap, or a link to a directory that came or went.
				scan[dir] = true
			}
		}
	}
	// A scan covers what is below it.
	for dir := range scan {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(scan)), func(o string) bool { return o != dir && below(dir, o) }) {
			f.scan(dir)
		}
	}
	for path := range gone {
		f.vanish(path)
	}
	for path := range read {
		f.read(path)
	}
}

// isScanned reports whether path is one of a watched directory.
func (f *Folder) isScanned(path string) bool {
	for _, paths := range f.scanned {
		if paths[path] {
			return true
		}
	}
	return false
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") }

// isManifest reports whether a file of that name is one of ours.
func isManifest(name string) bool {
	if hidden(name) {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// complete reports whether something that was just created is whole: a link.
func complete(path string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return false // gone again, as its next event says
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return true
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink > 1
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// below reports whether path is under dir.
func below(path, dir string) bool {
	return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

func (f *Folder) inRoots(path string) bool {
	return slices.ContainsFunc(f.roots, func(root string) bool { return path == root || below(path, root) })
}

// leadsToRoot reports whether path is a root or on the way to one.
func (f *Folder) leadsToRoot(path string) bool {
	return slices.ContainsFunc(f.roots, func(root string) bool { return path == root || below(root, path) })
}

// rescan reads everything again.
func (f *Folder) rescan() {
	for _, root := range f.roots {
		f.scan(root)
	}
}

// scan reads a directory and all below it, and notes what is no longer there.
// For a directory that is not there, its nearest ancestor is watched.
func (f *Folder) scan(dir string) {
	if f.leadsToRoot(dir) && !slices.Contains(f.roots, dir) {
		for _, root := range f.roots {
			if below(root, dir) {
				f.scan(root)
			}
		}
		return
	}
	f.forget(dir)
	found := map[string]fs.FileInfo{}
	f.descend(dir, found, map[string]bool{})
	for path := range f.files {
		if (path == dir || below(path, dir)) && found[path] == nil {
			f.vanish(path)
		}
	}
	for path, info := range found {
		if file := f.files[path]; file != nil && file.stamp == stampOf(info) && f.absent[path].IsZero() && !isLink(path) {
			continue
		}
		f.read(path)
	}
}

// forget drops the notes on what is under dir, and watches that nobody needs any
// more.
func (f *Folder) forget(dir string) {
	needed := map[string]bool{}
	for real, links := range f.links {
		for link := range links {
			if below(link, dir) {
				delete(links, link)
			}
		}
		if len(links) == 0 {
			delete(f.links, real)
		} else {
			needed[filepath.Dir(real)] = true
		}
	}
	for real, paths := range f.scanned {
		for path := range paths {
			if path == dir || below(path, dir) {
				delete(paths, path)
			}
		}
		if len(paths) == 0 && !needed[real] {
			delete(f.scanned, real)
			f.notify.unwatch(real)
		}
	}
}

// descend watches a directory before it lists it, so that nothing is missed.
func (f *Folder) descend(dir string, found map[string]fs.FileInfo, visiting map[string]bool) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		if !slices.Contains(f.roots, dir) {
			return
		}
		f.await(dir)
		// It may have come before the watch.
		if real, err = filepath.EvalSymlinks(dir); err != nil {
			return
		}
	}
	if visiting[real] {
		return // a link back up
	}
	visiting[real] = true
	defer delete(visiting, real)
	if slices.Contains(f.roots, dir) {
		f.watch(filepath.Dir(dir)) // to see it replaced
	}
	f.watchAs(real, dir)
	entries, err := os.ReadDir(real)
	if err != nil {
		f.log.Warn("a folder cannot be read", "folder", dir, "error", err)
		return
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if hidden(e.Name()) {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		switch {
		case info.IsDir():
			f.descend(path, found, visiting)
		case info.Mode().IsRegular() && isManifest(e.Name()):
			found[path] = info
		}
	}
}

// await watches the nearest ancestor of a root that is not there.
func (f *Folder) await(root string) {
	for dir := filepath.Dir(root); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); dir != "/" && (err != nil || !info.IsDir()) {
			continue
		}
		f.watch(dir)
		// What is on the way may have come before the watch.
		rest := strings.TrimPrefix(root, strings.TrimSuffix(dir, "/")+"/")
		first, more, _ := strings.Cut(rest, "/")
		if info, err := os.Stat(filepath.Join(dir, first)); more != "" && err == nil && info.IsDir() {
			dir = root // begin again
			continue
		}
		return
	}
}

// watch watches a directory outside of the roots.
func (f *Folder) watch(dir string) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		f.watchAs(real, dir)
	}
}

func (f *Folder) watchAs(real, path string) {
	if err := f.notify.watch(real); err != nil {
		f.log.Warn("changes of a folder will not be seen", "folder", path, "error", err)
		return
	}
	if f.scanned[real] == nil {
		f.scanned[real] = map[string]bool{}
	}
	f.scanned[real][path] = true
}

// follow notes where a symbolic link leads, so that a change there is seen.
func (f *Folder) follow(path string) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil || real == path {
		return
	}
	if f.links[real][path] {
		return
	}
	if f.links[real] == nil {
		f.links[real] = map[string]bool{}
	}
	f.links[real][path] = true
	if dir := filepath.Dir(real); f.scanned[dir] == nil {
		if err := f.notify.watch(dir); err != nil {
			f.log.Warn("changes of a file will not be seen", "file", path, "error", err)
			return
		}
		f.scanned[dir] = map[string]bool{}
	}
}

// read reads a file if it is there.
func (f *Folder) read(path string) {
	if isLink(path) {
		f.follow(path)
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		f.vanish(path)
		return
	}
	delete(f.absent, path)
	var data []byte
	if info.Size() > maxFileBytes {
		err = fmt.Errorf("is larger than %d bytes", maxFileBytes)
	} else {
		data, err = os.ReadFile(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		f.vanish(path)
		return
	}
	old := f.files[path]
	sum := sha256.Sum256(data)
	if old != nil && err == nil && old.sum == sum {
		old.stamp = stampOf(info)
		for key := range old.objects {
			f.set.setAbsent(key, path, false)
		}
		return
	}
	now := &file{rank: f.rankOf(path), sum: sum, stamp: stampOf(info), objects: map[kube.Key]manifest.Object{}, conflict: map[kube.Key]kube.Problem{}}
	if err != nil {
		now.sum, now.stamp = [sha256.Size]byte{}, stamp{}
		now.parsed = []kube.Problem{{File: path, Text: err.Error()}}
		if old != nil {
			now.objects = old.objects
		}
	} else {
		parsed := manifest.Parse(path, bytes.Clone(data))
		now.parsed = parsed.Problems
		for _, o := range parsed.Objects {
			now.objects[kube.KeyOf(o.Object)] = o
		}
		if old != nil {
			keepLastGood(now, old, parsed)
		}
	}
	f.replace(path, old, now)
}

// keepLastGood keeps the objects in force that a file had and that are broken now.
func keepLastGood(now, old *file, parsed manifest.File) {
	for key, o := range old.objects {
		if _, good := now.objects[key]; good {
			continue
		}
		if !parsed.BrokenUnknown && !slices.Contains(parsed.Broken, key) {
			continue
		}
		now.objects[key] = o
		for i := range now.parsed {
			if p := &now.parsed[i]; p.Object == key && !p.Warning && !strings.HasSuffix(p.Text, inForce) {
				p.Text += inForce
			}
		}
	}
}

const inForce = "; the version before stays in force"

func (f *Folder) rankOf(path string) rank {
	for i, root := range f.roots {
		if path == root || below(path, root) {
			return rank{i, path}
		}
	}
	return rank{len(f.roots), path}
}

// isRunning reports whether a file is one of Config.Running.
func (f *Folder) isRunning(r rank) bool {
	return f.cfg.Running != "" && r.root == len(f.roots)-1
}

// vanish notes that a file is away.
func (f *Folder) vanish(path string) {
	if f.files[path] == nil {
		return
	}
	if f.isRunning(f.files[path].rank) {
		f.remove(path)
		return
	}
	if _, known := f.absent[path]; !known {
		f.absent[path] = time.Now().Add(absence)
		for key := range f.files[path].objects {
			f.set.setAbsent(key, path, true)
		}
	}
}

func (f *Folder) remove(path string) {
	if old := f.files[path]; old != nil {
		f.replace(path, old, nil)
	}
}

// replace puts a version of a file in the place of another; either may be nil.
func (f *Folder) replace(path string, old, now *file) {
	f.touch(path)
	if now == nil {
		delete(f.files, path)
	} else {
		f.files[path] = now
	}
	if old != nil {
		for key := range old.objects {
			if now == nil || now.objects[key].Object == nil {
				f.set.drop(key, path)
			}
		}
	}
	if now != nil {
		for key, o := range now.objects {
			f.set.put(key, path, candidate{rank: now.rank, running: f.isRunning(now.rank), object: o.Object})
		}
	}
}

// touch notes that the problems of a file may be others.
func (f *Folder) touch(path string) {
	if _, known := f.changed[path]; !known {
		f.changed[path] = kube.File{Path: path, Problems: f.problems(path)}
	}
}

// problems lists all that is wrong in a file.
func (f *Folder) problems(path string) []kube.Problem {
	file := f.files[path]
	if file == nil {
		return nil
	}
	problems := slices.Clone(file.parsed)
	for _, key := range slices.SortedFunc(maps.Keys(file.conflict), kube.Key.Compare) {
		problems = append(problems, file.conflict[key])
	}
	return problems
}

// flush settles what was taken in and returns it as one change.
func (f *Folder) flush() kube.Change {
	upserts, deletes, verdicts := f.set.settle()
	for _, v := range verdicts {
		file := f.files[v.path]
		if file == nil {
			continue
		}
		f.touch(v.path)
		if v.text == "" {
			delete(file.conflict, v.key)
			continue
		}
		o := file.objects[v.key]
		file.conflict[v.key] = kube.Problem{
			File: v.path, Document: o.Document, Line: o.Line, Object: v.key, Field: v.field, Text: v.text, Cure: v.cure,
		}
	}
	change := kube.Change{Upserts: upserts, Deletes: deletes}
	for _, path := range slices.Sorted(maps.Keys(f.changed)) {
		now := f.problems(path)
		if before := f.changed[path].Problems; !reflect.DeepEqual(before, now) && len(before)+len(now) > 0 {
			change.Files = append(change.Files, kube.File{Path: path, Problems: now})
			f.tell(before, now)
		}
	}
	clear(f.changed)
	return change
}

// tell logs the problems that are new.
func (f *Folder) tell(before, now []kube.Problem) {
	for _, p := range now {
		if slices.Contains(before, p) {
			continue
		}
		if p.Warning {
			f.log.Warn(p.Error())
		} else {
			f.log.Error(p.Error())
		}
	}
}
