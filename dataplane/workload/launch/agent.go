package launch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/dataplane/workload"
)

// agent is the connection to the node's agent, by which the workload lives.
type agent struct {
	socket  string
	spec    workload.Spec
	log     *slog.Logger
	sandbox *workload.Sandbox

	mu        sync.Mutex // guards all following fields
	conn      *net.UnixConn
	from      *bufio.Reader
	isStarted bool
}

// refusal is an answer of the agent that is not 200.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return "agent: " + r.text }

// attach adds the workload. An agent that has just started and has no full
// configuration yet is waited for.
func attach(ctx context.Context, socket string, spec workload.Spec, log *slog.Logger) (*agent, error) {
	a := &agent{socket: socket, spec: spec, log: log}
	var err error
	for begin, wait := time.Now(), firstRetry; ; wait = min(2*wait, lastRetry) {
		if a.sandbox, err = a.post(ctx, ""); err == nil {
			return a, nil
		}
		var refused *refusal
		if !errors.As(err, &refused) || refused.status != http.StatusServiceUnavailable || time.Since(begin) > startWait {
			return nil, err
		}
		log.Debug("agent is not ready", "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// post asks for the workload and keeps the connection.
func (a *agent) post(ctx context.Context, query string) (*workload.Sandbox, error) {
	body, err := json.Marshal(a.spec)
	if err != nil {
		return nil, fmt.Errorf("encode workload: %w", err)
	}
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "unix", a.socket)
	if err != nil {
		return nil, fmt.Errorf("reach the node's agent (is it running?): %w", err)
	}
	conn := raw.(*net.UnixConn)
	// A context that ends breaks the exchange off; the agent removes what it made.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(err error) (*workload.Sandbox, error) {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("ask the node's agent for workload %s: %w", a.spec.Name, err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://agent/v1/workloads"+query, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if err := req.Write(conn); err != nil {
		return fail(err)
	}
	from := bufio.NewReader(conn)
	resp, err := http.ReadResponse(from, req)
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		var answer struct {
			Error string `json:"error"`
		}
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(text, &answer) != nil || answer.Error == "" {
			answer.Error = resp.Status + ": " + strings.TrimSpace(string(text))
		}
		_ = conn.Close()
		return nil, &refusal{resp.StatusCode, answer.Error}
	}
	line, err := from.ReadBytes('\n')
	if err != nil {
		return fail(err)
	}
	sandbox := new(workload.Sandbox)
	if err := json.Unmarshal(line, sandbox); err != nil {
		return fail(err)
	}
	if !stop() {
		return fail(context.Cause(ctx))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conn, a.from = conn, from
	if a.isStarted {
		a.sendStarted()
	}
	return sandbox, nil
}

// started tells the agent that the command runs.
func (a *agent) started() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isStarted = true
	a.sendStarted()
}

// sendStarted needs mu. A connection that is broken is seen by keep, which sends it
// again on the next one.
func (a *agent) sendStarted() { _, _ = io.WriteString(a.conn, "started\n") }

// The waits between attempts to reach an agent that is away.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// startWait bounds the wait for an agent that has just started.
const startWait = 15 * time.Second

// keep waits for the connection to end and attaches again to the agent that comes
// after. It returns nil when ctx ends, and an error when the workload is lost.
func (a *agent) keep(ctx context.Context) error {
	for {
		a.mu.Lock()
		conn, from := a.conn, a.from
		a.mu.Unlock()
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = conn.SetReadDeadline(time.Unix(1, 0))
			close(woken)
		})
		_, _ = io.Copy(io.Discard, from)
		if !stop() {
			<-woken
			return nil
		}
		_ = conn.Close()
		a.log.Debug("agent is away", "workload", a.spec.Name.String())
		if err := a.again(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		a.log.Debug("agent is back", "workload", a.spec.Name.String())
	}
}

// again attaches to the agent as soon as it is there. It returns nil when ctx ends.
func (a *agent) again(ctx context.Context) error {
	query := fmt.Sprintf("?resume=%d", a.sandbox.Index)
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		_, err := a.post(ctx, query)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		// The agent that has not taken its workloads over yet says 503.
		var refused *refusal
		if errors.As(err, &refused) && refused.status != http.StatusServiceUnavailable {
			return fmt.Errorf("the workload is lost: %w", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// leave gives the workload up and waits until the agent has removed it or is away.
func (a *agent) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.conn.SetDeadline(time.Time{})
	if a.conn.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, a.from)
	}
	_ = a.conn.Close()
}
