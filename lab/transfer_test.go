package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const large = 64 << 20

// peak returns a process's peak of resident memory since resetPeak, in bytes.
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kB << 10
		}
	}
	t.Fatalf("process %d has no VmHWM", pid)
	return 0
}

// resetPeak sets the peak to what is resident now (proc_pid_clear_refs(5)).
func resetPeak(t *testing.T, pid int) int64 {
	t.Helper()
	if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	return peak(t, pid)
}

// TestLarge: large bodies arrive as they were sent, in each protocol, and the worker
// holds little of them at a time.
func TestLarge(t *testing.T) {
	_, sum, err := sumOf(blob(large))
	if err != nil {
		t.Fatal(err)
	}
	worker := shared.pid(t, "proxy")
	before := resetPeak(t, worker)
	for _, h2 := range []bool{false, true} {
		a := shared.client.must(t, call{Do: "http", H2C: h2, URL: "http://web/web/sum", Upload: large})
		if want := fmt.Sprintf("%d %s <nil>", large, sum); a.Text != want {
			t.Errorf("h2=%t: the server got %q, want %q", h2, a.Text, want)
		}
		a = shared.client.must(t, call{Do: "http", H2C: h2, URL: fmt.Sprintf("http://web/web/blob?n=%d", large), Sum: true})
		if a.Size != large || a.Text != sum {
			t.Errorf("h2=%t: the client got %d bytes, sum %s, want %d %s", h2, a.Size, a.Text, large, sum)
		}
	}
	if grown := peak(t, worker) - before; grown > large/4 {
		t.Errorf("the worker grew by %d MB while it carried bodies of %d MB", grown>>20, large>>20)
	}
}

// TestBackpressure: a client that does not read stops the server, not the worker's
// memory, and gets all of it in the end.
func TestBackpressure(t *testing.T) {
	_, sum, err := sumOf(blob(large))
	if err != nil {
		t.Fatal(err)
	}
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%t", h2), func(t *testing.T) {
			worker := shared.pid(t, "proxy")
			before := resetPeak(t, worker)
			shared.client.must(t, call{Do: "http", H2C: h2, URL: fmt.Sprintf("http://web/web/stall?n=%d", large), Stall: true, Name: "stalled"})
			// By the time that as much went another way, it would have come through.
			shared.client.must(t, call{Do: "http", URL: fmt.Sprintf("http://web/web/blob?n=%d", large), Sum: true})
			sent := shared.client.must(t, call{Do: "http", URL: "http://plain/web/stalled"}).Text
			if n, err := strconv.ParseInt(sent, 10, 64); err != nil || n == 0 || n >= large/2 {
				t.Errorf("the server could send %q of %d bytes to nobody", sent, large)
			}
			if grown := peak(t, worker) - before; grown > large/4 {
				t.Errorf("the worker grew by %d MB", grown>>20)
			}
			a := shared.client.must(t, call{Do: "drain", Name: "stalled"})
			if a.Size != large || a.Text != sum {
				t.Errorf("the client got %d bytes, sum %s, want %d %s", a.Size, a.Text, large, sum)
			}
		})
	}
}
