package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-mesh/sluice/observe/flow"
)

// Client asks the processes of the node on this machine. Its methods may be
// called by many goroutines at a time.
type Client struct {
	runDir  string
	clients map[Process]*http.Client
}

// NewClient returns a client of the processes whose sockets are in runDir. It
// connects when it is asked for something.
func NewClient(runDir string) *Client {
	c := &Client{runDir: runDir, clients: map[Process]*http.Client{}}
	for _, p := range Processes {
		path := SocketPath(runDir, p)
		c.clients[p] = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			MaxIdleConns:          1,
			IdleConnTimeout:       10 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
		}}
	}
	return c
}

// Close ends idle connections.
func (c *Client) Close() {
	for _, hc := range c.clients {
		hc.CloseIdleConnections()
	}
}

// UnreachableError says that a process does not listen on its admin socket, or
// not for this user. Its text says what to do.
type UnreachableError struct {
	Process Process
	Socket  string
	Err     error
}

// Error says which process is not running and how to start it.
func (e *UnreachableError) Error() string {
	switch {
	case errors.Is(e.Err, fs.ErrPermission):
		return fmt.Sprintf("not allowed to talk to the %s: %s is for root only; run the command as root (sudo)", e.Process, e.Socket)
	case e.NotRunning() && e.Process == ProcessNode:
		return fmt.Sprintf("no node is running: nobody listens on %s; start one with `sluiced node --config DIR`, or name its directory with --run-dir", e.Socket)
	case e.NotRunning():
		return fmt.Sprintf("the %s is not running: nobody listens on %s; `sluiced node --config DIR` starts it with the node, and its log says why it ended; --run-dir names another node's directory", e.Process, e.Socket)
	}
	return fmt.Sprintf("talk to the %s on %s: %v", e.Process, e.Socket, e.Err)
}

// Unwrap returns the error of the socket.
func (e *UnreachableError) Unwrap() error { return e.Err }

// NotRunning reports that nobody listens, rather than that something failed.
func (e *UnreachableError) NotRunning() bool {
	return errors.Is(e.Err, fs.ErrNotExist) || errors.Is(e.Err, syscall.ECONNREFUSED)
}

// AnswerError is a refusal by a process that is running.
type AnswerError struct {
	Process Process
	Status  int
	Text    string
}

// Error says what the process said.
func (e *AnswerError) Error() string { return fmt.Sprintf("%s: %s", e.Process, e.Text) }

// Is makes errors.Is(err, ErrNotFound) and errors.Is(err, ErrBadRequest) hold on
// this side as on the other.
func (e *AnswerError) Is(target error) bool {
	return target == ErrNotFound && e.Status == http.StatusNotFound ||
		target == ErrBadRequest && e.Status == http.StatusBadRequest
}

// do sends a request and returns the body of a 2xx answer, which the caller
// closes.
func (c *Client) do(ctx context.Context, p Process, method, path string, query url.Values, body any) (io.ReadCloser, error) {
	hc, ok := c.clients[p]
	if !ok {
		return nil, fmt.Errorf("no process is called %q", p)
	}
	var content io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		content = bytes.NewReader(encoded)
	}
	u := url.URL{Scheme: "http", Host: string(p), Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		return nil, err
	}
	answer, err := hc.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, &UnreachableError{Process: p, Socket: SocketPath(c.runDir, p), Err: err}
	}
	if answer.StatusCode/100 != 2 {
		defer answer.Body.Close()
		return nil, answerError(p, answer)
	}
	return answer.Body, nil
}

func answerError(p Process, answer *http.Response) error {
	e := &AnswerError{Process: p, Status: answer.StatusCode, Text: answer.Status}
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	var problem Problem
	if err == nil && json.Unmarshal(body, &problem) == nil && problem.Error != "" {
		e.Text = problem.Error
	} else if text := strings.TrimSpace(string(body)); text != "" {
		e.Text = answer.Status + ": " + text
	}
	return e
}

// Do sends body as JSON, or nothing for nil, and decodes the JSON answer into out.
func (c *Client) Do(ctx context.Context, p Process, method, path string, body, out any) error {
	answer, err := c.do(ctx, p, method, path, nil, body)
	if err != nil {
		return err
	}
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(out); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("decode %s of the %s: %w", path, p, err)
	}
	return nil
}

func get[T any](ctx context.Context, c *Client, p Process, path string) (T, error) {
	var out T
	err := c.Do(ctx, p, http.MethodGet, path, nil, &out)
	return out, err
}

// Status returns what a process says of itself.
func (c *Client) Status(ctx context.Context, p Process) (Status, error) {
	return get[Status](ctx, c, p, "/status")
}

// Config returns the redacted configuration of a process, as JSON.
func (c *Client) Config(ctx context.Context, p Process) (json.RawMessage, error) {
	return get[json.RawMessage](ctx, c, p, "/config")
}

// Workloads returns the workloads that the agent knows.
func (c *Client) Workloads(ctx context.Context) ([]Workload, error) {
	return get[[]Workload](ctx, c, ProcessAgent, "/workloads")
}

// Services returns the services that the agent knows.
func (c *Client) Services(ctx context.Context) ([]Service, error) {
	return get[[]Service](ctx, c, ProcessAgent, "/services")
}

// Routes returns the routes that the control plane knows.
func (c *Client) Routes(ctx context.Context) ([]Route, error) {
	return get[[]Route](ctx, c, ProcessNode, "/routes")
}

// Gateways returns the gateways that the control plane knows.
func (c *Client) Gateways(ctx context.Context) ([]Gateway, error) {
	return get[[]Gateway](ctx, c, ProcessNode, "/gateways")
}

// XDS returns the xDS streams of the control plane, or of the proxy.
func (c *Client) XDS(ctx context.Context, p Process) ([]XDSType, error) {
	return get[[]XDSType](ctx, c, p, "/xds")
}

// Connections returns the connections that the proxy holds.
func (c *Client) Connections(ctx context.Context) ([]Connection, error) {
	return get[[]Connection](ctx, c, ProcessProxy, "/connections")
}

// Backends returns the endpoints that the proxy sends to.
func (c *Client) Backends(ctx context.Context) ([]Backend, error) {
	return get[[]Backend](ctx, c, ProcessProxy, "/backends")
}

// Explain asks the proxy which rule a request would meet.
func (c *Client) Explain(ctx context.Context, q ExplainRequest) (*Explanation, error) {
	out := new(Explanation)
	err := c.Do(ctx, ProcessProxy, http.MethodPost, "/explain", q, out)
	return out, err
}

// LogLevels returns the log levels of a process.
func (c *Client) LogLevels(ctx context.Context, p Process) (LogLevels, error) {
	return get[LogLevels](ctx, c, p, "/loglevel")
}

// SetLogLevel changes the log level of a process or of one component of it, and
// returns all levels as they are then.
func (c *Client) SetLogLevel(ctx context.Context, p Process, l LogLevel) (LogLevels, error) {
	var out LogLevels
	err := c.Do(ctx, p, http.MethodPut, "/loglevel", l, &out)
	return out, err
}

// maxFlowLine bounds one line of the stream of flows; the agent's own limits on
// what a flow holds are far below.
const maxFlowLine = 1 << 20

// Flows calls each for every flow of the query, with the line of JSON that it came
// in, which is valid during the call only. It returns nil at the end of a query
// that does not follow, the error of each, ctx.Err(), or an *UnreachableError when
// the agent went away.
func (c *Client) Flows(ctx context.Context, q FlowQuery, each func(f *flow.Flow, line []byte) error) error {
	body, err := c.do(ctx, ProcessAgent, http.MethodGet, "/flows", q.Values(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(make([]byte, 64<<10), maxFlowLine)
	for lines.Scan() {
		f := new(flow.Flow)
		if err := json.Unmarshal(lines.Bytes(), f); err != nil {
			return fmt.Errorf("decode a flow: %w", err)
		}
		if err := each(f, lines.Bytes()); err != nil {
			return err
		}
	}
	switch err := lines.Err(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return &UnreachableError{Process: ProcessAgent, Socket: SocketPath(c.runDir, ProcessAgent), Err: err}
	case q.Follow:
		return &UnreachableError{Process: ProcessAgent, Socket: SocketPath(c.runDir, ProcessAgent), Err: errors.New("the agent stopped")}
	}
	return nil
}
