package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sluice-mesh/sluice/observe/filter"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// FlowQuery says which flows GET /flows returns. The zero FlowQuery is all that
// the node holds.
type FlowQuery struct {
	Terms  []filter.Term
	Last   int
	Since  time.Time
	Follow bool
}

// Values returns the query as parameters of a URL.
func (q FlowQuery) Values() url.Values {
	v := url.Values{}
	filter.AddToQuery(v, q.Terms)
	if q.Last > 0 {
		v.Set("last", strconv.Itoa(q.Last))
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Follow {
		v.Set("follow", "true")
	}
	return v
}

// ParseFlowQuery parses what Values returned.
func ParseFlowQuery(v url.Values) (FlowQuery, error) {
	var q FlowQuery
	rest := url.Values{}
	for name, values := range v {
		var err error
		switch name {
		case "last":
			if q.Last, err = strconv.Atoi(values[0]); err == nil && q.Last < 0 {
				err = errors.New("is negative")
			}
		case "since":
			q.Since, err = time.Parse(time.RFC3339Nano, values[0])
		case "follow":
			q.Follow, err = strconv.ParseBool(values[0])
		default:
			rest[name] = values
		}
		if err != nil {
			return FlowQuery{}, fmt.Errorf("parameter %s=%q: %w", name, values[0], err)
		}
	}
	terms, err := filter.FromQuery(rest)
	q.Terms = terms
	return q, err
}

// flowStream answers with one JSON object per line, and with more of them as they
// come if the query follows. The stream ends with the client, with the server, or
// when the client takes nothing for writeTimeout.
type flowStream struct {
	ring   *ring.Ring
	logger *slog.Logger
}

// writeTimeout is how long a client of a stream may take nothing before it is
// given up, so that a stopped terminal does not hold its connection for ever.
const writeTimeout = time.Minute

func (s *flowStream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, err := ParseFlowQuery(r.URL.Query())
	if err != nil {
		writeProblem(w, http.StatusBadRequest, err)
		return
	}
	f, err := filter.Compile(q.Terms)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	reader := s.ring.NewReader(ring.Query{Match: f.Match, Since: q.Since, Last: q.Last, Follow: q.Follow})
	defer reader.Close()
	if err := s.copy(r.Context(), w, reader); err != nil && r.Context().Err() == nil {
		s.logger.Debug("a stream of flows ended", "error", err)
	}
}

func (s *flowStream) copy(ctx context.Context, w http.ResponseWriter, reader *ring.Reader) error {
	control := http.NewResponseController(w)
	buffered := bufio.NewWriterSize(&deadlineWriter{w: w, control: control}, 32<<10)
	encoder := json.NewEncoder(buffered)
	encoder.SetEscapeHTML(false)
	flush := func() error {
		if err := buffered.Flush(); err != nil {
			return err
		}
		return control.Flush()
	}
	if err := flush(); err != nil { // the head, so that a client knows that it is heard
		return err
	}
	for {
		f, err := reader.Poll()
		if errors.Is(err, ring.ErrDry) {
			// Whatever there is goes out before the wait.
			if err := flush(); err != nil {
				return err
			}
			f, err = reader.Next(ctx)
		}
		if errors.Is(err, io.EOF) {
			return flush()
		}
		if err != nil {
			return err
		}
		if err := encodeFlow(encoder, f); err != nil {
			return err
		}
	}
}

// deadlineWriter gives each write writeTimeout.
type deadlineWriter struct {
	w       io.Writer
	control *http.ResponseController
}

func (d *deadlineWriter) Write(p []byte) (int, error) {
	if err := d.control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return d.w.Write(p)
}

func encodeFlow(e *json.Encoder, f *flow.Flow) error {
	if err := e.Encode(f); err != nil {
		return fmt.Errorf("encode a flow: %w", err)
	}
	return nil
}
