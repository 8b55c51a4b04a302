package launch

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/dataplane/workload"
	"github.com/sluice-mesh/sluice/mesh"
)

// answering is the agent's end of a socket, by hand.
type answering struct {
	t *testing.T
	l net.Listener
}

// next takes a request and answers it.
func (a *answering) next(answer string) (url string, conn net.Conn, from *bufio.Reader) {
	a.t.Helper()
	conn, err := a.l.Accept()
	if err != nil {
		a.t.Fatal(err)
	}
	from = bufio.NewReader(conn)
	req, err := http.ReadRequest(from)
	if err != nil {
		a.t.Fatal(err)
	}
	body := make([]byte, req.ContentLength)
	if _, err := req.Body.Read(body); err != nil && !strings.Contains(string(body), "shop/a") {
		a.t.Fatalf("request %q, %v", body, err)
	}
	if _, err := fmt.Fprint(conn, answer); err != nil {
		a.t.Fatal(err)
	}
	return req.URL.String(), conn, from
}

const (
	accepted = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + `{"index":7,"spec":{"name":"shop/a"}}` + "\n"
	notYet   = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 8\r\n\r\nnot yet\n"
	gone     = "HTTP/1.1 410 Gone\r\nConnection: close\r\nContent-Length: 17\r\n\r\n" + `{"error":"no a."}`
)

// TestReattach: an agent that is not ready is waited for, one that comes back is told
// again that the command runs, and one that has lost the workload ends it.
func TestReattach(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	end := &answering{t, l}
	type result struct {
		a   *agent
		err error
	}
	attached := make(chan result)
	go func() {
		a, err := attach(context.Background(), socket, workload.Spec{Name: mesh.Name{Namespace: "shop", Name: "a"}}, slog.New(slog.DiscardHandler))
		attached <- result{a, err}
	}()
	_, conn, _ := end.next(notYet)
	_ = conn.Close()
	_, conn, _ = end.next(accepted)
	_ = conn.Close() // before it could be told
	got := <-attached
	if got.err != nil || got.a.sandbox.Index != 7 {
		t.Fatalf("%+v", got)
	}
	got.a.started()
	kept := make(chan error)
	go func() { kept <- got.a.keep(context.Background()) }()
	_, conn, _ = end.next(notYet)
	_ = conn.Close()
	url, conn, from := end.next(accepted)
	if url != "http://agent/v1/workloads?resume=7" && url != "/v1/workloads?resume=7" {
		t.Errorf("asked for %s", url)
	}
	if line, err := from.ReadString('\n'); line != "started\n" {
		t.Errorf("was told %q, %v", line, err)
	}
	_ = conn.Close()
	_, conn, _ = end.next(gone)
	_ = conn.Close()
	if err := <-kept; err == nil || !strings.Contains(err.Error(), "no a.") {
		t.Error(err)
	}
}
