package lab_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/lab"
)

// holderBin tells a test binary to be the process of TestHolder, and where the
// programs are.
const holderBin = "SLUICE_LAB_HOLDER"

const holderName = "test-holder"

// TestHolder is no test: it holds a lab until it is killed.
func TestHolder(t *testing.T) {
	if os.Getenv(holderBin) == "" {
		t.Skip("a part of TestKilledHolder")
	}
	n, err := start(t.Context(), holderName)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("holding %d %s\n", n.pid(t, "agent"), n.Cgroup())
	select {}
}

// TestKilledHolder: a lab whose process was killed leaves nothing once the next of
// its name is made.
func TestKilledHolder(t *testing.T) {
	before, err := links()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHolder$", "-test.v")
	cmd.Env = append(os.Environ(), holderBin+"="+bin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, text := false, ""
	for lines := bufio.NewScanner(out); !said && lines.Scan(); {
		text += lines.Text() + "\n"
		said = strings.Contains(lines.Text(), "holding ")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if !said {
		t.Fatalf("the holder ended:\n%s", text)
	}
	l, err := lab.New(t.Context(), lab.Config{Bin: bin, Name: holderName})
	if err != nil {
		t.Fatal(err)
	}
	if err := goneWithout(before, holderName); err != nil {
		t.Errorf("left after New: %v", err)
	}
	if err := l.Down(); err != nil {
		t.Error(err)
	}
	if err := goneWithout(before, holderName); err != nil {
		t.Errorf("left after Down: %v", err)
	}
}
