// Package healthcheck asks an endpoint once whether it is well: by a TCP connection,
// by an HTTP/1.1 request, or by grpc.health.v1.Health/Check.
//
// It runs on the caller's goroutine, with a connection of its own each time, as a new
// client would have. It keeps nothing.
package healthcheck

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/http1"
	"github.com/sluice-mesh/sluice/l7proxy/http2"
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// maxAnswer bounds the head of an answer, and the message of a gRPC one.
const maxAnswer = 16 << 10

// userAgent is what the endpoint's log shows.
const userAgent = "sluice-healthcheck"

// Check asks the endpoint. It returns nil if that is healthy, else what is wrong; when
// h.Timeout or ctx ends that is their error. name stands where the check names no host.
func Check(ctx context.Context, h *mesh.HealthCheck, name string, to netip.AddrPort) error {
	if h.Port != 0 {
		to = netip.AddrPortFrom(to.Addr(), h.Port)
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout)
	defer cancel()
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	switch h.Kind {
	case mesh.CheckTCP:
		return nil
	case mesh.CheckHTTP:
		err = overHTTP(c, h, name)
	case mesh.CheckGRPC:
		err = overGRPC(c, h, name)
	default:
		err = fmt.Errorf("kind %d of check is not known", h.Kind)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no answer in time: %w", ctx.Err())
	}
	return err
}

func overHTTP(c net.Conn, h *mesh.HealthCheck, name string) error {
	host, path := h.Host, h.Path
	if host == "" {
		host = name
	}
	if path == "" {
		path = "/"
	}
	head := message.Head{
		Proto: message.HTTP11, Method: []byte("GET"), Authority: []byte(host), Path: []byte(path),
		ContentLength: -1, End: true, Close: true,
	}
	head.Add([]byte("user-agent"), []byte(userAgent))
	var w http1.Writer
	out := w.AppendEnd(w.AppendRequest(nil, &head), nil)
	if err := w.Err(); err != nil {
		return err
	}
	if _, err := c.Write(out); err != nil {
		return err
	}
	p := http1.NewResponseParser(http1.Limits{MaxHeadBytes: maxAnswer, MaxFields: http1.DefaultLimits().MaxFields})
	p.ExpectResponseTo(head.Method)
	buf := make([]byte, 0, 2*maxAnswer)
	for {
		n, ev, err := p.Next(buf)
		buf = buf[n:]
		switch {
		case err != nil:
			return err
		case ev.Kind == http1.Head && p.Head().Status >= 200:
			if s := p.Head().Status; s < h.MinStatus || s > h.MaxStatus {
				return fmt.Errorf("status %d", s)
			}
			return nil
		case ev.Kind == http1.NeedMore:
			if buf, err = readMore(c, buf); err != nil {
				return err
			}
		}
	}
}

// readMore appends what the connection has next.
func readMore(c net.Conn, buf []byte) ([]byte, error) {
	if len(buf) >= 2*maxAnswer {
		return nil, errors.New("the answer is too long")
	}
	more := make([]byte, 4<<10)
	n, err := c.Read(more)
	if n > 0 {
		return append(buf, more[:n]...), nil
	}
	if err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	}
	return nil, err
}

// healthPath and serving are of grpc.health.v1 (health.proto).
const (
	healthPath = "/grpc.health.v1.Health/Check"
	serving    = 1
)

var servingNames = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

func overGRPC(c net.Conn, h *mesh.HealthCheck, name string) error {
	conn := http2.NewClient(http2.Config{MaxHeaderListBytes: maxAnswer})
	head := message.Head{
		Proto: message.HTTP2, Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte(name), Path: []byte(healthPath),
		ContentLength: -1,
	}
	head.Add([]byte("content-type"), []byte("application/grpc"))
	head.Add([]byte("te"), []byte("trailers"))
	head.Add([]byte("user-agent"), []byte(userAgent))
	id, err := conn.OpenStream(&head, false)
	if err != nil {
		return err
	}
	// A HealthCheckRequest has the service as field 1.
	request := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(h.Service)))
	request = append(request, h.Service...)
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(request)))
	if _, err := conn.WriteData(id, append(frame, request...), true); err != nil {
		return err
	}
	var buf, answer []byte
	for {
		if out := conn.Out(); len(out) > 0 {
			n, err := c.Write(out)
			if err != nil {
				return err
			}
			conn.Sent(n)
		}
		n, ev, err := conn.Next(buf)
		buf = buf[n:]
		if err != nil {
			return err
		}
		switch ev.Kind {
		case http2.NeedMore:
			if buf, err = readMore(c, buf); err != nil {
				return err
			}
		case http2.GoAway, http2.Reset:
			return fmt.Errorf("the server refused: %v", ev.Code)
		case http2.Headers:
			if s := conn.Head().Status; s != 200 && s >= 200 {
				return fmt.Errorf("status %d", s)
			}
			if ev.End {
				return grpcStatus(conn.Head().Fields)
			}
		case http2.Data:
			if len(answer)+len(ev.Data) > maxAnswer {
				return errors.New("the answer is too long")
			}
			answer = append(answer, ev.Data...)
			if ev.End {
				return errors.New("the answer has no grpc-status")
			}
		case http2.Trailers:
			if err := grpcStatus(conn.Trailers()); err != nil {
				return err
			}
			return servingStatus(answer)
		case http2.Writable, http2.Settings, http2.Ping:
		}
	}
}

func grpcStatus(fields []message.Field) error {
	for _, f := range fields {
		if string(f.Name) == "grpc-status" {
			if string(f.Value) == "0" {
				return nil
			}
			return fmt.Errorf("gRPC status %s", strings.ToValidUTF8(string(f.Value), "?"))
		}
	}
	return errors.New("the answer has no grpc-status")
}

// servingStatus reads a HealthCheckResponse, whose field 1 is the status. Other fields
// are for later versions.
func servingStatus(frame []byte) error {
	if len(frame) < 5 || frame[0] != 0 || uint64(binary.BigEndian.Uint32(frame[1:5])) != uint64(len(frame)-5) {
		return errors.New("the answer is not one plain message")
	}
	status := uint64(0)
	for m := frame[5:]; len(m) > 0; {
		tag, n := binary.Uvarint(m)
		if n <= 0 {
			return errors.New("the answer is no message")
		}
		m = m[n:]
		switch tag & 7 {
		case 0:
			v, n := binary.Uvarint(m)
			if n <= 0 {
				return errors.New("the answer is no message")
			}
			m = m[n:]
			if tag>>3 == 1 {
				status = v
			}
		case 2:
			v, n := binary.Uvarint(m)
			if n <= 0 || v > uint64(len(m)-n) {
				return errors.New("the answer is no message")
			}
			m = m[n+int(v):]
		default:
			return errors.New("the answer is no HealthCheckResponse")
		}
	}
	if status == serving {
		return nil
	}
	if status < uint64(len(servingNames)) {
		return fmt.Errorf("the service says %s", servingNames[status])
	}
	return fmt.Errorf("the service says %d", status)
}
