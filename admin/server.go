package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sluice-mesh/sluice/admin/loglevel"
	"github.com/sluice-mesh/sluice/admin/version"
)

// ErrNotFound in the error of a handler makes the answer 404.
var ErrNotFound = errors.New("not found")

// ErrBadRequest in the error of a handler makes the answer 400.
var ErrBadRequest = errors.New("bad request")

const (
	// maxBodyBytes bounds what a client may send, an ExplainRequest with its headers.
	maxBodyBytes = 1 << 20
	// headTimeout bounds the time in which a client must send its request's head.
	headTimeout = 10 * time.Second
	// drainTimeout is how long answers in progress may take when the server stops.
	drainTimeout = 2 * time.Second
)

// Config of a Server.
type Config struct {
	Process Process
	// Path of the socket. A socket that a dead process left there is replaced; one
	// that somebody listens on is an error. Ignored if Listener is set.
	Path string
	// Listener is a listening socket that the process inherited, with mode 0600. The
	// server closes it, and leaves its file to whoever made it.
	Listener net.Listener
	Levels   *loglevel.Levels
	Logger   *slog.Logger
}

// Validate says what is missing.
func (c Config) Validate() error {
	switch {
	case c.Process == "":
		return errors.New("admin server: no process is named")
	case c.Path == "" && c.Listener == nil:
		return errors.New("admin server: neither a path nor a listener")
	case c.Levels == nil:
		return errors.New("admin server: no log levels")
	case c.Logger == nil:
		return errors.New("admin server: no logger")
	}
	return nil
}

// Server is the admin server of one process.
type Server struct {
	process  Process
	levels   *loglevel.Levels
	logger   *slog.Logger
	listener net.Listener
	started  time.Time
	mux      *http.ServeMux

	mu    sync.Mutex
	paths []string // guarded by mu; what GET / lists
}

// New binds the socket of a server that shows view, which may implement AgentView,
// NodeView or ProxyView besides View. It serves /status, /config, /loglevel,
// /debug/pprof/ and what the view adds; clients wait until Run.
func New(c Config, view View) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if view == nil {
		return nil, errors.New("admin server: no view")
	}
	s := &Server{
		process: c.Process, levels: c.Levels, logger: c.Logger.With(loglevel.ComponentKey, "admin"),
		listener: c.Listener, started: time.Now(), mux: http.NewServeMux(),
	}
	if s.listener == nil {
		listener, err := listen(c.Path)
		if err != nil {
			return nil, err
		}
		s.listener = listener
	}
	s.routes(view)
	return s, nil
}

func (s *Server) routes(view View) {
	s.mux.HandleFunc("GET /{$}", s.index)
	s.Handle("GET /status", func(*http.Request) (any, error) { return s.status(view), nil })
	s.Handle("GET /config", func(*http.Request) (any, error) { return view.Config(), nil })
	s.Handle("GET /loglevel", func(*http.Request) (any, error) { return s.logLevels(), nil })
	s.Handle("PUT /loglevel", s.setLogLevel)
	s.HandleHTTP("GET /debug/pprof/", http.HandlerFunc(pprof.Index))
	s.HandleHTTP("GET /debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	s.HandleHTTP("GET /debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.HandleHTTP("GET /debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	s.HandleHTTP("GET /debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	if v, ok := view.(AgentView); ok {
		s.Handle("GET /workloads", func(*http.Request) (any, error) { return list(v.Workloads()), nil })
		s.Handle("GET /services", func(*http.Request) (any, error) { return list(v.Services()), nil })
		s.HandleHTTP("GET /flows", &flowStream{ring: v.Flows(), logger: s.logger})
	}
	if v, ok := view.(NodeView); ok {
		s.Handle("GET /routes", func(*http.Request) (any, error) { return list(v.Routes()), nil })
		s.Handle("GET /gateways", func(*http.Request) (any, error) { return list(v.Gateways()), nil })
	}
	if v, ok := view.(ProxyView); ok {
		s.Handle("GET /backends", func(*http.Request) (any, error) { return list(v.Backends()), nil })
		s.Handle("GET /connections", func(*http.Request) (any, error) { return list(v.Connections()), nil })
		s.Handle("POST /explain", func(r *http.Request) (any, error) {
			var q ExplainRequest
			if err := decodeBody(r, &q); err != nil {
				return nil, err
			}
			return v.Explain(r.Context(), q)
		})
	}
	if v, ok := view.(interface{ XDS() []XDSType }); ok {
		s.Handle("GET /xds", func(*http.Request) (any, error) { return list(v.XDS()), nil })
	}
}

// list makes an empty list of none, so that it is "[]" in JSON.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// Handle adds an endpoint that answers with JSON. The pattern is http.ServeMux's
// and must name the method. An error becomes a Problem, with 404 for ErrNotFound,
// 400 for ErrBadRequest and 500 for others. It must be called before Run.
func (s *Server) Handle(pattern string, answer func(*http.Request) (any, error)) {
	s.HandleHTTP(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value, err := answer(r)
		if err != nil {
			writeProblem(w, statusOf(err), err)
			return
		}
		writeJSON(w, http.StatusOK, value)
	}))
}

// HandleHTTP adds an endpoint of any kind. It must be called before Run.
func (s *Server) HandleHTTP(pattern string, h http.Handler) {
	s.mux.Handle(pattern, h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths = append(s.paths, pattern)
}

// Run serves until ctx ends, then ends the streams and waits a moment for answers
// in progress. It returns nil after that, and an error if the socket failed.
func (s *Server) Run(ctx context.Context) error {
	streams, endStreams := context.WithCancel(context.WithoutCancel(ctx))
	defer endStreams()
	server := &http.Server{
		Handler:           s.mux,
		ReadHeaderTimeout: headTimeout,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return streams },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(&rootListener{Listener: s.listener, logger: s.logger}) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", s.listener.Addr(), err)
	case <-ctx.Done():
	}
	endStreams()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		_ = server.Close()
	}
	<-failed
	return nil
}

// Close releases the socket of a server that never ran.
func (s *Server) Close() error { return s.listener.Close() }

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "sluiced %s\n\n%s\n", s.process, strings.Join(s.paths, "\n"))
}

func (s *Server) status(view View) Status {
	status := view.Status()
	c := &status.Component
	c.Name, c.PID, c.Started, c.Version = s.process, os.Getpid(), s.started, version.Get().String()
	return status
}

func (s *Server) logLevels() LogLevels {
	out := LogLevels{Default: levelWord(s.levels.Default())}
	for _, l := range s.levels.List() {
		out.Components = append(out.Components, LogLevel{Component: l.Component, Level: levelWord(l.Level), Own: l.Own})
	}
	return out
}

func levelWord(l slog.Level) string { return strings.ToLower(l.String()) }

func (s *Server) setLogLevel(r *http.Request) (any, error) {
	var want LogLevel
	if err := decodeBody(r, &want); err != nil {
		return nil, err
	}
	if want.Level == "" {
		if want.Component == "" {
			return nil, fmt.Errorf("%w: the default level cannot be taken away", ErrBadRequest)
		}
		if err := s.levels.Reset(want.Component); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		s.logger.Info("log level follows the default", "of", want.Component)
		return s.logLevels(), nil
	}
	level, err := loglevel.Parse(want.Level)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	if want.Component == "" {
		s.levels.SetDefault(level)
	} else if err := s.levels.Set(want.Component, level); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	s.logger.Info("log level changed", "of", want.Component, "level", levelWord(level))
	return s.logLevels(), nil
}

func decodeBody(r *http.Request, out any) error {
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBodyBytes))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("%w: decode the body: %w", ErrBadRequest, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more than one value in the body", ErrBadRequest)
	}
	return nil
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, ErrBadRequest):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	body, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		writeProblem(w, http.StatusInternalServerError, fmt.Errorf("encode the answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that went away needs no answer
}

func writeProblem(w http.ResponseWriter, status int, err error) {
	writeJSON(w, status, Problem{Error: err.Error()})
}
