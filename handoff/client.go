package handoff

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"
)

// Handler is what the proxy does with what the agent says. Its methods are
// called by the client's one goroutine, in the order of the messages, and own the
// descriptors that they get.
type Handler interface {
	// Held returns the sockets that the proxy holds, to be offered to the agent.
	// The descriptors stay the proxy's.
	Held() map[Socket]int
	Maps(origins, heartbeat int)
	// AddSocket may be called again for a socket that is held already: the second
	// descriptor is another name of the same socket.
	AddSocket(s Socket, fd int)
	RemoveSocket(s Socket)
	AddWorkload(w Workload)
	RemoveWorkload(w Workload)
	// Synced says that all of the node's sockets and workloads have been handed over.
	Synced()
}

// Client is the proxy's side.
type Client struct {
	Path    string
	Handler Handler
	Logger  *slog.Logger
}

// The waits between attempts to reach an agent that is away.
const (
	minRetryWait = 20 * time.Millisecond
	maxRetryWait = time.Second
)

// Run speaks with the agent until ctx ends, and connects again when the agent
// goes away: what was handed over stays in use meanwhile.
func (c *Client) Run(ctx context.Context) error {
	wait := minRetryWait
	for {
		err := c.session(ctx, func() { wait = minRetryWait })
		if ctx.Err() != nil {
			return nil
		}
		c.Logger.Debug("agent is away", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
		wait = min(2*wait, maxRetryWait)
	}
}

func (c *Client) session(ctx context.Context, connected func()) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: c.Path, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	for s, fd := range c.Handler.Held() {
		if err := write(conn, message{Kind: kindHave, Socket: &s}, fd); err != nil {
			return err
		}
	}
	if err := write(conn, message{Kind: kindHaveAll}, -1); err != nil {
		return err
	}
	connected()
	origins := -1
	for {
		m, fd, err := read(conn)
		if err != nil {
			return err
		}
		switch m.Kind {
		case kindOrigins:
			origins = fd
		case kindHeartbeat:
			c.Handler.Maps(origins, fd)
		case kindAddSocket:
			c.Handler.AddSocket(*m.Socket, fd)
		case kindRemoveSocket:
			c.Handler.RemoveSocket(*m.Socket)
		case kindAddWorkload:
			c.Handler.AddWorkload(*m.Workload)
		case kindRemoveWorkload:
			c.Handler.RemoveWorkload(*m.Workload)
		case kindSynced:
			c.Handler.Synced()
		default:
			return fmt.Errorf("agent sent %s", m.Kind)
		}
	}
}
