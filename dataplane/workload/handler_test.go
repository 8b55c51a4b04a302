package workload

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/mesh"
)

// served is a registry behind a unix socket.
type served struct {
	*Registry
	socket string
	server *http.Server
}

func serve(t *testing.T, r *Registry, dir string) *served {
	t.Helper()
	s := &served{Registry: r, socket: filepath.Join(dir, "agent.sock")}
	_ = os.Remove(s.socket)
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	s.server = &http.Server{Handler: r.Handler()}
	go func() { _ = s.server.Serve(l) }()
	t.Cleanup(func() {
		_ = l.Close()
		_ = s.server.Close()
	})
	return s
}

// post sends a request and returns the connection with its answer.
func (s *served) post(t *testing.T, query, body string) (net.Conn, *http.Response, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprintf(conn, "POST /v1/workloads%s HTTP/1.1\r\nHost: agent\r\nContent-Length: %d\r\n\r\n%s", query, len(body), body); err != nil {
		t.Fatal(err)
	}
	from := bufio.NewReader(conn)
	resp, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn, resp, bufio.NewReader(resp.Body)
}

func specJSON(t *testing.T, s Spec) string {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func restored(t *testing.T, r *Registry) *Registry {
	t.Helper()
	if err := errors.Join(r.Restore(t.Context()), r.Activate(t.Context())); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestConnectionIsLife: the workload is there while the connection is, and when the
// connection's other end is closed by the registry it is gone.
func TestConnectionIsLife(t *testing.T) {
	b := newBed(t)
	s := serve(t, restored(t, b.registry(t, nil)), b.runDir)
	conn, resp, body := s.post(t, "", specJSON(t, spec("a")))
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	line, err := body.ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var got Sandbox
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	have := s.Get(spec("a").Name)
	if have == nil || got.Index != have.Index || got.NetnsPath != have.NetnsPath || got.CgroupPath != have.CgroupPath ||
		len(got.Addresses) != 2 || !strings.Contains(got.ResolvConf, "shop.svc.cluster.local") || len(got.Hide) == 0 || got.Hide[0] != b.runDir {
		t.Errorf("answer %s", line)
	}
	client := http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { return net.Dial("unix", s.socket) }}}
	defer client.CloseIdleConnections()
	list, err := client.Get("http://agent/v1/workloads")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = list.Body.Close() }()
	var listed struct {
		Workloads []struct {
			Spec  Spec
			Ready bool
		}
	}
	if err := json.NewDecoder(list.Body).Decode(&listed); err != nil || len(listed.Workloads) != 1 || listed.Workloads[0].Ready {
		t.Errorf("list %+v, %v", listed, err)
	}
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(body); err != nil || len(rest) != 0 {
		t.Errorf("then came %q, %v", rest, err)
	}
	mustBeBare(t, b)
}

func TestStartedLine(t *testing.T) {
	b := newBed(t)
	s := serve(t, restored(t, b.registry(t, nil)), b.runDir)
	conn, _, body := s.post(t, "", specJSON(t, spec("a")))
	if _, err := body.ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	have := s.Get(spec("a").Name)
	// The second line makes the registry close the connection, after the first took effect.
	if _, err := io.WriteString(conn, "started\nwhatever\n"); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(body)
	if !have.Ready() {
		t.Error("not ready")
	}
	mustBeBare(t, b)
}

func TestHandlerRefuses(t *testing.T) {
	b := newBed(t)
	r := b.registry(t, nil)
	s := serve(t, r, b.runDir)
	if _, resp, _ := s.post(t, "", specJSON(t, spec("early"))); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("before Restore: %s", resp.Status)
	}
	restored(t, r)
	_, _, body := s.post(t, "", specJSON(t, spec("a")))
	if _, err := body.ReadBytes('\n'); err != nil {
		t.Fatal(err)
	}
	index := s.Get(spec("a").Name).Index
	for _, test := range []struct {
		name, query, body string
		status            int
		want              string
	}{
		{"no JSON", "", "{", http.StatusBadRequest, "unexpected EOF"},
		{"unknown field", "", `{"nmae":{}}`, http.StatusBadRequest, "nmae"},
		{"no name", "", "{}", http.StatusBadRequest, "RFC 1123"},
		{"path as name", "", `{"name":"shop/.."}`, http.StatusBadRequest, "RFC 1123"},
		{"too long", "", `{"command":["` + strings.Repeat("x", maxSpecBytes) + `"]}`, http.StatusBadRequest, "too large"},
		{"same name", "", specJSON(t, spec("a")), http.StatusConflict, "exists"},
		{"resume what", "?resume=x", specJSON(t, spec("a")), http.StatusBadRequest, "index"},
		{"resume unknown", "?resume=1", specJSON(t, spec("b")), http.StatusGone, "gone"},
		{"resume other index", fmt.Sprintf("?resume=%d", index+1), specJSON(t, spec("a")), http.StatusGone, "gone"},
		{"resume held", fmt.Sprintf("?resume=%d", index), specJSON(t, spec("a")), http.StatusConflict, "another connection"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, resp, body := s.post(t, test.query, test.body)
			text, err := io.ReadAll(body)
			if err != nil {
				t.Fatal(err)
			}
			var answer struct{ Error string }
			if err := json.Unmarshal(text, &answer); err != nil || resp.StatusCode != test.status || !strings.Contains(answer.Error, test.want) {
				t.Errorf("%s %s", resp.Status, text)
			}
		})
	}
	if s.Get(spec("a").Name) == nil || len(s.List()) != 1 {
		t.Error("a refused request did harm")
	}
}

// TestForeignResume: only the process that a workload belongs to may have it back.
func TestForeignResume(t *testing.T) {
	b := newBed(t)
	r := restored(t, b.registry(t, nil))
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	ticks, err := startTicks(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := r.add(t.Context(), spec("a"), owner{PID: other.Process.Pid, StartTicks: ticks}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	s := serve(t, restored(t, b.registry(t, nil)), b.runDir)
	if _, resp, _ := s.post(t, fmt.Sprintf("?resume=%d", sandbox.Index), specJSON(t, spec("a"))); resp.StatusCode != http.StatusConflict {
		t.Error(resp.Status)
	}
	if s.Get(spec("a").Name) == nil {
		t.Error("the workload is gone")
	}
}

// TestOwnerEnds: a restored workload whose owner does not come back ends with it.
func TestOwnerEnds(t *testing.T) {
	b := newBed(t)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	ticks, err := startTicks(other.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	r := b.registry(t, nil)
	if _, err := r.add(t.Context(), spec("a"), owner{PID: other.Process.Pid, StartTicks: ticks}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	h := &hooks{onRemove: func(*Sandbox) { close(gone) }}
	r = restored(t, b.registry(t, func(c *Config) { c.Hooks = h }))
	if r.Get(spec("a").Name) == nil {
		t.Fatal("not restored")
	}
	if err := other.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait()
	<-gone
	// Serialised with the removal that runs.
	if err := r.Remove(t.Context(), spec("a").Name); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	mustBeBare(t, b)
}

// TestCloseKeeps: when the agent stops, in whichever order, workloads stay.
func TestCloseKeeps(t *testing.T) {
	for _, order := range []string{"server first", "registry first"} {
		t.Run(order, func(t *testing.T) {
			b := newBed(t)
			s := serve(t, restored(t, b.registry(t, nil)), b.runDir)
			_, _, body := s.post(t, "", specJSON(t, spec("a")))
			if _, err := body.ReadBytes('\n'); err != nil {
				t.Fatal(err)
			}
			if order == "server first" {
				_ = s.server.Close()
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_ = s.server.Close()
			if _, err := io.ReadAll(body); err != nil {
				t.Error(err)
			}
			// This process is the owner and lives.
			r := restored(t, b.registry(t, nil))
			if r.Get(spec("a").Name) == nil {
				t.Error("the workload is gone")
			}
			if err := r.Remove(t.Context(), spec("a").Name); err != nil {
				t.Error(err)
			}
			mustBeBare(t, b)
		})
	}
}

func TestPeerOwner(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pair[1]) }()
	file := os.NewFile(uintptr(pair[0]), "pair")
	conn, err := net.FileConn(file)
	_ = file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	by, err := peerOwner(conn.(*net.UnixConn))
	if os.Getuid() != 0 {
		if err == nil {
			t.Error("a peer that is not root owns workloads")
		}
		return
	}
	if err != nil || by.PID != os.Getpid() || by.StartTicks == 0 {
		t.Errorf("%+v, %v", by, err)
	}
}

func TestRecordOnDisk(t *testing.T) {
	dir := t.TempDir()
	rec := &record{Phase: phaseComplete, Sandbox: &Sandbox{Spec: spec("a"), Index: 7}}
	if err := writeRecord(dir, rec); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"shop_b.json": "{}", "shop_c.json": `{"sandbox":{"spec":{"name":"shop/other"}}}`,
		".shop_d.json.tmp": "{}", "next-index": "12", "no-workload.json": "{}", "a_b_c.json": "{}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	records, damaged, err := readRecords(dir)
	if err != nil || len(records) != 1 || records[0].Sandbox.Index != 7 || records[0].Sandbox.Spec.Name != spec("a").Name {
		t.Errorf("records %+v, %v", records, err)
	}
	if len(damaged) != 2 || damaged[0] != (mesh.Name{Namespace: "shop", Name: "b"}) || damaged[1].Name != "c" {
		t.Errorf("damaged %v", damaged)
	}
}

func FuzzSpec(f *testing.F) {
	for _, seed := range []string{
		`{"name":"shop/web"}`, `{"name":"a/b/.."}`,
		`{"name":"shop/web","labels":{"a/b":"c"},"ports":[{"name":"http","port":80}]}`,
		`{"name":"shop/a_b"}`, `{"labels":{"x/":""}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Spec
		if json.Unmarshal(data, &s) != nil || s.Validate() != nil {
			return
		}
		// A valid name makes one path element that can be read back, and short enough.
		file := fileName(s.Name)
		name, ok := parseFileName(file)
		if !ok || name != s.Name || filepath.Base(file) != file || len(file)+len(".json")+len("..tmp") > 255 {
			t.Errorf("%q makes %q", s.Name, file)
		}
		if c := s.clone(); c.Validate() != nil || bytes.ContainsAny([]byte(c.ServiceAccount), "/\x00") {
			t.Errorf("%+v", c)
		}
	})
}
