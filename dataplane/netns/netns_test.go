package netns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func create(t *testing.T) (ns *Namespace, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path = filepath.Join(t.TempDir(), "ns")
	ns, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(ns.Close(), Delete(path)) })
	return ns, path
}

func TestCreate(t *testing.T) {
	here, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	ns, path := create(t)
	if same, err := ns.Same(here); err != nil || same {
		t.Errorf("the new namespace is the old one: %v, %v", same, err)
	}
	if err := ns.Do(func() error {
		links, err := net.Interfaces()
		if err == nil && (len(links) != 1 || links[0].Name != "lo") {
			t.Errorf("links %v", links)
		}
		inside, err := Current()
		if err != nil {
			return err
		}
		defer func() { _ = inside.Close() }()
		if same, err := inside.Same(ns); err != nil || !same {
			t.Errorf("Do runs elsewhere: %v", err)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := again.Same(ns); err != nil || !same {
		t.Errorf("the path leads elsewhere: %v", err)
	}
	_ = again.Close()
	if _, err := Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("creating it again: %v", err)
	}
	if initial, err := ns.OfInit(); err != nil || initial {
		t.Errorf("taken for the machine's own: %v, %v", initial, err)
	}
	for range 2 {
		if err := Delete(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), path) {
		t.Errorf("%s is still mounted: %v", path, err)
	}
}

func TestCreateFails(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if ns, err := Create(filepath.Join(t.TempDir(), "missing", "ns")); err == nil {
		_ = ns.Close()
		t.Error("made where no folder is")
	}
}

func TestOpenOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{path, "/proc/self/ns/mnt", "/nonexistent"} {
		if ns, err := Open(path); err == nil {
			_ = ns.Close()
			t.Errorf("%s was taken for a network namespace", path)
		}
	}
}

// TestComeBack: threads that were in a namespace do not stay there, also after
// errors and at many at once.
func TestComeBack(t *testing.T) {
	here, err := Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	ns, _ := create(t)
	cookie, err := ns.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := ns.Do(func() error { return errors.ErrUnsupported }); !errors.Is(err, errors.ErrUnsupported) {
				t.Error(err)
			}
			if again, err := ns.Cookie(); err != nil || again != cookie {
				t.Errorf("cookie %d, was %d, %v", again, cookie, err)
			}
			now, err := Current()
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = now.Close() }()
			if same, err := now.Same(here); err != nil || !same {
				t.Errorf("a thread stayed inside: %v", err)
			}
		})
	}
	wg.Wait()
}
