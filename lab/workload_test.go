package lab_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/lab"
)

// servedBy sends requests until each of the names, and nobody else, answered in one
// round.
func (n *node) servedBy(t *testing.T, url string, names ...string) {
	t.Helper()
	eventually(t, func() error {
		by := map[string]int{}
		for range 16 * len(names) {
			a, err := n.client.try(call{Do: "http", URL: url})
			if err != nil {
				return err
			}
			if a.Status != 200 {
				return fmt.Errorf("%s: %+v", url, a)
			}
			by[a.Header.Get("X-Served-By")]++
		}
		for _, name := range names {
			if by[name] == 0 {
				return fmt.Errorf("served by %v, want %v", by, names)
			}
		}
		if len(by) != len(names) {
			return fmt.Errorf("served by %v, want %v", by, names)
		}
		return nil
	})
}

// nodeLinks returns the names of the links in the node's network namespace.
func (n *node) nodeLinks(t *testing.T) []string {
	t.Helper()
	return strings.Fields(n.local.must(t, call{Do: "links"}).Text)
}

// TestReplicas: endpoints follow the workloads that run, whoever carries the
// connections, and nothing is left of a workload whose parent was killed.
func TestReplicas(t *testing.T) {
	services := []string{"http://web/", "http://plain/"}
	for _, url := range services {
		shared.servedBy(t, url, "web-a")
	}
	links, mounts := len(shared.nodeLinks(t)), mountsBelow(t, shared.RunDir())
	second, err := shared.serve("shop", "web-b", "app=web")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Stop()
	for _, url := range services {
		shared.servedBy(t, url, "web-a", "web-b")
	}
	if now := len(shared.nodeLinks(t)); now != links+1 {
		t.Errorf("the node had %d links, and with one more workload %d", links, now)
	}
	if now := mountsBelow(t, shared.RunDir()); now != mounts+1 {
		t.Errorf("there were %d mounts, and with one more namespace %d", mounts, now)
	}
	if len(workloadCgroups(t, shared.Lab, "shop_web-b")) == 0 {
		t.Fatal("the workload has no cgroup of its name")
	}
	if err := unix.Kill(second.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-second.Done
	for _, url := range services {
		shared.servedBy(t, url, "web-a")
	}
	eventually(t, func() error {
		var errs []error
		if left := workloadCgroups(t, shared.Lab, "shop_web-b"); len(left) > 0 {
			errs = append(errs, fmt.Errorf("cgroups %v", left))
		}
		if now := shared.nodeLinks(t); len(now) != links {
			errs = append(errs, fmt.Errorf("links %v, there were %d", now, links))
		}
		if text := shared.sluice(t, "workload", "list"); strings.Contains(text, "web-b") {
			errs = append(errs, fmt.Errorf("workload list has it:\n%s", text))
		}
		err := filepath.WalkDir(shared.RunDir(), func(path string, _ fs.DirEntry, _ error) error {
			if strings.Contains(path, "web-b") {
				errs = append(errs, fmt.Errorf("file %s", path))
			}
			return nil
		})
		if now := mountsBelow(t, shared.RunDir()); now != mounts {
			errs = append(errs, fmt.Errorf("%d mounts, there were %d", now, mounts))
		}
		return errors.Join(append(errs, err)...)
	})
}

// mountsBelow counts the mounts in a folder: network namespaces among others.
func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), " "+dir+"/")
}

// workloadCgroups returns the cgroups below the node's of which the name has the word.
func workloadCgroups(t *testing.T, l *lab.Lab, word string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(l.Cgroup(), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		if err == nil && d.IsDir() && strings.Contains(d.Name(), word) {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
