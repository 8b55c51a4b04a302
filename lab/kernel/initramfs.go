package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is the content of an initramfs.
type tree struct {
	dirs  map[string]bool
	files map[string]entry
}

type entry struct {
	data []byte
	mode uint32 // permissions
}

func newTree() *tree {
	return &tree{dirs: map[string]bool{}, files: map[string]entry{}}
}

// dir adds a folder and those above it.
func (t *tree) dir(name string) {
	for ; name != "/" && name != "."; name = path.Dir(name) {
		t.dirs[name] = true
	}
}

func (t *tree) file(name string, data []byte, mode uint32) {
	t.dir(path.Dir(name))
	t.files[name] = entry{data: data, mode: mode}
}

// program adds one executable file as it is.
func (t *tree) program(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.file(to, data, 0o755)
	return nil
}

// folder adds the files below from.
func (t *tree) folder(from, to string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		t.file(path.Join(to, rel), data, 0o644)
		return nil
	})
}

// libraryDirs are where Debian's loader looks.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/lib", "/usr/lib"}

// tool adds a dynamically linked program with its loader and the libraries that it
// and they name.
func (t *tree) tool(from, to string) error {
	if err := t.program(from, to); err != nil {
		return err
	}
	f, err := elf.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	if s := f.Section(".interp"); s != nil {
		b, err := s.Data()
		if err != nil {
			return err
		}
		loader := string(bytes.TrimRight(b, "\x00"))
		if err := t.program(loader, loader); err != nil {
			return err
		}
	}
	return t.libraries(f)
}

func (t *tree) libraries(f *elf.File) error {
	names, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range names {
		to := path.Join(libraryDirs[0], name)
		if _, ok := t.files[to]; ok {
			continue
		}
		i := slices.IndexFunc(libraryDirs, func(d string) bool { _, err := os.Stat(path.Join(d, name)); return err == nil })
		if i < 0 {
			return fmt.Errorf("library %s is in none of %v", name, libraryDirs)
		}
		from := path.Join(libraryDirs[i], name)
		if err := t.program(from, to); err != nil {
			return err
		}
		lib, err := elf.Open(from)
		if err != nil {
			return err
		}
		err = t.libraries(lib)
		_ = lib.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// modules adds the kernel modules names and what they depend on, and the order in
// which init loads them.
func (t *tree) modules(dir string, names []string) error {
	files := map[string]string{} // name → file
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(path.Base(p), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	}); err != nil {
		return err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		if slices.Contains(order, name) {
			return nil
		}
		from, ok := files[name]
		if !ok {
			return fmt.Errorf("%s has no module %s", dir, name)
		}
		f, err := elf.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		s := f.Section(".modinfo")
		if s == nil {
			return fmt.Errorf("%s: no .modinfo", from)
		}
		info, err := s.Data()
		if err != nil {
			return err
		}
		for field := range bytes.SplitSeq(info, []byte{0}) {
			depends, ok := strings.CutPrefix(string(field), "depends=")
			if !ok || depends == "" {
				continue
			}
			for d := range strings.SplitSeq(depends, ",") {
				if err := add(strings.ReplaceAll(d, "-", "_")); err != nil {
					return err
				}
			}
		}
		order = append(order, name)
		return t.program(from, "/modules/"+name)
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return err
		}
	}
	t.file("/modules/order", []byte(strings.Join(order, "\n")+"\n"), 0o644)
	return nil
}

// write writes the tree as a cpio archive in the form that the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst: newc).
func (t *tree) write(name string) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	inode := 0
	put := func(name string, mode uint32, data []byte) {
		inode++
		name = strings.TrimPrefix(name, "/")
		fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		pad(w, 110+len(name)+1)
		_, _ = w.Write(data) // a bufio.Writer keeps its error for Flush
		pad(w, len(data))
	}
	for _, d := range sortedKeys(t.dirs) {
		put(d, 0o040755, nil)
	}
	for _, n := range sortedKeys(t.files) {
		put(n, 0o100000|t.files[n].mode, t.files[n].data)
	}
	put("TRAILER!!!", 0, nil)
	return w.Flush()
}

// pad fills up to a multiple of four.
func pad(w *bufio.Writer, n int) {
	for ; n%4 != 0; n++ {
		_ = w.WriteByte(0)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
