package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRead: what counts is what init said, whatever the kernel prints in between.
func TestRead(t *testing.T) {
	for _, tt := range []struct {
		name, serial string
		good, bad    int
		whole        bool
	}{
		{"all pass", passed + "./a\t1s\r\n" + passed + "./b\t1s\r\n" + ended + "\r\n", 2, 0, true},
		{"one fails", "--- FAIL: TestX\r\n" + failed + "./a\texit status 1\t1s\r\n" + passed + "./b\t1s\r\n" + ended + "\r\n", 1, 1, true},
		{"the machine dies", passed + "./a\t1s\r\n[ 1.0] Kernel panic - not syncing\r\n", 1, 0, false},
		{"cut in a line", passed + "./a\t1s\r\n" + mark, 1, 0, false},
		{"a test that speaks of init", " " + passed + "./a\r\n" + ended + "\r\n", 0, 0, true},
	} {
		good, bad, whole := read(strings.NewReader(tt.serial), io.Discard)
		if good != tt.good || bad != tt.bad || whole != tt.whole {
			t.Errorf("%s: %d passed, %d failed, whole %t; want %d, %d, %t", tt.name, good, bad, whole, tt.good, tt.bad, tt.whole)
		}
	}
}

// TestInitramfs unpacks an archive with cpio, if the machine has one, and compares.
func TestInitramfs(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("no cpio")
	}
	root := newTree()
	want := map[string]string{"/a": "", "/b/one": "1", "/b/c/four": "1234", "/b/c/five": "12345"}
	for name, text := range want {
		root.file(name, []byte(text), 0o640)
	}
	archive, dir := filepath.Join(t.TempDir(), "archive"), t.TempDir()
	if err := root.write(archive); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(cpio, "-idm", "--quiet", "-D", dir)
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != text {
			t.Errorf("%s is %q, %v; want %q", name, got, err, text)
		}
		if i, err := os.Stat(filepath.Join(dir, name)); err == nil && i.Mode() != 0o640 {
			t.Errorf("%s has mode %v", name, i.Mode())
		}
	}
}
