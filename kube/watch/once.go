package watch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/sluice-mesh/sluice/kube"
	"github.com/sluice-mesh/sluice/kube/manifest"
)

// Stdin stands for standard input among the paths of ReadOnce.
const Stdin = "-"

// Place is where an object stands.
type Place struct {
	File string
	Line int // of its document
}

// ReadOnce reads files and folders, as a Folder with these directories would, and
// returns the objects that it would report first, with the problems of all files, and
// the place of each object. Nothing is watched and nothing remembered. A path that
// cannot be read is an error.
func ReadOnce(cfg Config, paths []string, stdin io.Reader) (kube.Change, map[kube.Key]Place, error) {
	cfg.Directories, cfg.Running, cfg.StateDir = paths, "", ""
	f, err := New(cfg)
	if err != nil {
		return kube.Change{}, nil, err
	}
	for i, path := range paths {
		if path == Stdin {
			text, err := io.ReadAll(io.LimitReader(stdin, maxFileBytes))
			if err != nil {
				return kube.Change{}, nil, fmt.Errorf("read standard input: %w", err)
			}
			f.replace(Stdin, nil, parsed(Stdin, rank{i, Stdin}, text))
			continue
		}
		// Paths are shown as they were given.
		f.roots[i] = path
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return kube.Change{}, nil, err
		case !info.IsDir():
			err = f.readOnce(path, i)
		default:
			found := map[string]fs.FileInfo{}
			f.descend(path, found, map[string]bool{})
			for _, name := range slices.Sorted(maps.Keys(found)) {
				err = errors.Join(err, f.readOnce(name, i))
			}
		}
		if err != nil {
			return kube.Change{}, nil, err
		}
	}
	change := f.flush()
	change.Synced = true
	places := map[kube.Key]Place{}
	for _, o := range change.Upserts {
		key := kube.KeyOf(o)
		path := f.set.pathOf(key)
		places[key] = Place{File: path, Line: f.files[path].objects[key].Line}
	}
	return change, places, nil
}

func (f *Folder) readOnce(path string, root int) error {
	if f.files[path] != nil {
		return nil // named twice
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	f.replace(path, nil, parsed(path, rank{root, path}, text))
	return nil
}

func parsed(path string, r rank, text []byte) *file {
	now := &file{rank: r, objects: map[kube.Key]manifest.Object{}, conflict: map[kube.Key]kube.Problem{}}
	m := manifest.Parse(path, text)
	now.parsed = m.Problems
	for _, o := range m.Objects {
		now.objects[kube.KeyOf(o.Object)] = o
	}
	return now
}
