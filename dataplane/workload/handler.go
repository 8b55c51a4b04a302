package workload

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/sluice-mesh/sluice/dataplane/ipam"
	"github.com/sluice-mesh/sluice/mesh"
)

// maxSpecBytes bounds the body of POST /v1/workloads.
const maxSpecBytes = 1 << 20

// startedLine is what the owner sends when the workload's command was started.
const startedLine = "started"

// session is the connection of a workload's owner.
type session struct {
	conn *net.UnixConn
	once sync.Once
}

func (s *session) close() { s.once.Do(func() { _ = s.conn.Close() }) }

// Handler serves the agent's admin socket, which must be a unix socket:
//
//	POST /v1/workloads            body Spec; adds a workload that lives as long as the
//	                              connection. The answer's first line is the Sandbox; the client
//	                              sends "started\n" on the same connection when its command runs.
//	POST /v1/workloads?resume=N   the same client again, after a restart of the agent: the
//	                              workload with index N; 410 if it is gone.
//	GET  /v1/workloads            {"workloads": [Sandbox…]}
//
// Until Restore has returned, the answer is 503. Errors are {"error": "…"}.
func (r *Registry) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/workloads", r.serveList)
	mux.HandleFunc("POST /v1/workloads", r.servePost)
	return mux
}

// listed is a workload in the answer to GET.
type listed struct {
	*Sandbox
	Ready bool `json:"ready"`
}

func (r *Registry) serveList(w http.ResponseWriter, _ *http.Request) {
	out := []listed{}
	for _, s := range r.List() {
		out = append(out, listed{s, s.Ready()})
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"workloads": out})
}

func (r *Registry) servePost(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	restored := r.restored
	r.mu.Unlock()
	if !restored {
		writeError(w, http.StatusServiceUnavailable, errors.New("the agent is still taking over its workloads"))
		return
	}
	resume := req.URL.Query().Get("resume")
	index, err := strconv.ParseUint(resume, 10, 32)
	if resume != "" && err != nil {
		writeError(w, http.StatusBadRequest, fmt.Errorf("resume=%s is not an index", resume))
		return
	}
	var spec Spec
	decoder := json.NewDecoder(http.MaxBytesReader(w, req.Body, maxSpecBytes))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&spec); err != nil {
		writeError(w, http.StatusBadRequest, fmt.Errorf("read workload: %w", err))
		return
	}
	// From here on the connection is the workload's life, which the HTTP server must
	// not end when the agent stops.
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		writeError(w, http.StatusInternalServerError, errors.New("the connection cannot be kept"))
		return
	}
	conn, buffered, err := hijacker.Hijack()
	if err != nil {
		writeError(w, http.StatusInternalServerError, err)
		return
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		respondError(conn, http.StatusBadRequest, errors.New("not a unix socket"))
		_ = conn.Close()
		return
	}
	by, err := peerOwner(unixConn)
	if err != nil {
		respondError(conn, http.StatusForbidden, err)
		_ = conn.Close()
		return
	}
	s := &session{conn: unixConn}
	ctx := context.WithoutCancel(req.Context())
	var e *entry
	if resume == "" {
		var sandbox *Sandbox
		if sandbox, err = r.add(ctx, spec, by, s); err == nil {
			e = r.entryOf(sandbox)
		}
	} else {
		e, err = r.resume(spec.Name, mesh.WorkloadIndex(index), by, s)
	}
	if err != nil {
		respondError(conn, statusOf(err), err)
		s.close()
		return
	}
	if e == nil { // Removed already.
		s.close()
		return
	}
	r.hold(ctx, e, s, buffered.Reader)
}

// hold serves the connection until its other end closes it, and removes the
// workload then.
func (r *Registry) hold(ctx context.Context, e *entry, s *session, from *bufio.Reader) {
	name := e.sandbox.Spec.Name
	body, err := json.Marshal(e.sandbox)
	if err == nil {
		_, err = fmt.Fprintf(s.conn, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n%s\n", body)
	}
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, 4096)
	for err == nil && lines.Scan() {
		if lines.Text() != startedLine {
			err = fmt.Errorf("unknown word %q", lines.Text())
		} else if failed := r.Started(name); failed != nil {
			r.log.Warn("start of workload not noted", "workload", name.String(), "error", failed)
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil {
		err = io.EOF
	}
	// After Close this does nothing, and the workload stays for the next agent. The
	// owner may wait for the end of the connection to see that the workload is gone.
	r.removeIf(ctx, e, "its owner's connection ended: "+err.Error())
	s.close()
}

func (r *Registry) entryOf(s *Sandbox) *entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byIndex[s.Index]
}

var errGone = errors.New("the workload is gone")

// resume gives a restored workload back to its owner.
func (r *Registry) resume(name mesh.Name, index mesh.WorkloadIndex, by owner, s *session) (*entry, error) {
	leave, err := r.enter(name)
	if err != nil {
		return nil, err
	}
	defer leave()
	e := r.lookup(name)
	if e == nil || e.sandbox.Index != index || e.record.Phase != phaseComplete {
		return nil, fmt.Errorf("%w: %s", errGone, name)
	}
	if e.record.Owner != by {
		return nil, fmt.Errorf("%w: %s belongs to another process", ErrExists, name)
	}
	if e.session != nil {
		return nil, fmt.Errorf("%w: %s is held by another connection", ErrExists, name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.session = s
	if e.watch != nil {
		_ = e.watch.Close()
		e.watch = nil
	}
	return e, nil
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrExists):
		return http.StatusConflict
	case errors.Is(err, errGone):
		return http.StatusGone
	case errors.Is(err, ErrClosed):
		return http.StatusServiceUnavailable
	case errors.Is(err, ipam.ErrExhausted):
		return http.StatusInsufficientStorage
	case errors.Is(err, ErrInvalid):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

func writeError(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

// respondError answers on a connection that was taken from the HTTP server.
func respondError(conn net.Conn, status int, err error) {
	body, _ := json.Marshal(map[string]string{"error": err.Error()})
	response := http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header:        http.Header{"Content-Type": {"application/json"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
	_ = response.Write(conn)
}
