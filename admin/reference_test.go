package admin_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/admin"
)

// Views with no more than one process has.
type (
	onlyAgent struct{ admin.AgentView }
	onlyNode  struct{ admin.NodeView }
	onlyProxy struct{ admin.ProxyView }
)

// TestReference: docs/reference/admin.md lists the paths of each process, and no
// others.
func TestReference(t *testing.T) {
	all := everything{flows: newRing(t, 16)}
	views := map[admin.Process]admin.View{admin.ProcessNode: onlyNode{all}, admin.ProcessAgent: onlyAgent{all}, admin.ProcessProxy: onlyProxy{all}}
	text, err := os.ReadFile("../docs/reference/admin.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[admin.Process][]string{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(line, "|")
		if len(fields) < 4 || !strings.Contains(fields[1], " /") {
			continue
		}
		for _, p := range admin.Processes {
			if who := strings.TrimSpace(fields[2]); who == "all" || strings.Contains(who, string(p)) {
				documented[p] = append(documented[p], strings.Trim(fields[1], " `"))
			}
		}
	}
	for p, view := range views {
		_, runDir, _ := serve(t, p, view)
		got := []string{"GET /"}
		for line := range strings.Lines(index(t, admin.SocketPath(runDir, p))) {
			line = strings.TrimSpace(line)
			if strings.Contains(line, " /") && !strings.HasPrefix(line, "GET /debug/pprof/") || line == "GET /debug/pprof/" {
				got = append(got, line)
			}
		}
		slices.Sort(got)
		slices.Sort(documented[p])
		if !slices.Equal(got, documented[p]) {
			t.Errorf("%s answers\n%q, documented are\n%q", p, got, documented[p])
		}
	}
}

func index(t *testing.T, socket string) string {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer hc.CloseIdleConnections()
	answer, err := hc.Get("http://process/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
