package probe_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/sluice-mesh/sluice/dataplane/internal/lab"
	"github.com/sluice-mesh/sluice/dataplane/loader"
	"github.com/sluice-mesh/sluice/dataplane/probe"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestComplete: where everything needed is found the programs load, and where they load it is found.
func TestComplete(t *testing.T) {
	n := lab.NewNode(t)
	features := probe.Features(probe.Config{Cgroup: n.Cgroup, BPFFS: n.BPFFS + "/not/yet"})
	d, err := loader.Load(n.Config())
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if err := loader.Remove(n.Config().Dir); err != nil {
		t.Error(err)
	}
	if err := probe.Check(probe.Config{Cgroup: n.Cgroup, BPFFS: n.BPFFS}); err != nil {
		t.Error(err)
	}
	optional := false
	for _, f := range features {
		if f.Needed && (!f.Have || optional) {
			t.Errorf("%+v", f)
		}
		optional = optional || !f.Needed
	}
}

func TestMissing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	err := probe.Check(probe.Config{Cgroup: "/proc", BPFFS: "/proc"})
	if err == nil {
		t.Fatal("nothing is missing")
	}
	for _, want := range []string{"cgroup-v2", "mount -t cgroup2", "bpffs", "mount -t bpf"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q has more than one line", err)
	}
}

var nobody = lab.Child("nobody", func([]string) error {
	fmt.Println(probe.Check(probe.Config{}))
	return json.NewEncoder(os.Stdout).Encode(probe.Features(probe.Config{}))
})

// TestUnprivileged: without root the one line says so, and nothing hangs or panics.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := lab.ChildCommand(nobody)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	line, table, _ := strings.Cut(string(out), "\n")
	if !strings.Contains(line, "no root") || !strings.Contains(line, "run it as root") {
		t.Errorf("the line is %q", line)
	}
	var features []probe.Feature
	if err := json.Unmarshal([]byte(table), &features); err != nil || len(features) < 20 {
		t.Errorf("%d features, %v", len(features), err)
	}
}
