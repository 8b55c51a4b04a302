package upstream

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/mesh"
)

// ErrTimeout says that an endpoint did not answer in time.
var ErrTimeout = errors.New("connect: timed out")

// ErrNoSocket says that no socket could be had in the workload's namespace.
var ErrNoSocket = errors.New("no socket in the workload's network namespace")

// Sockets gives sockets made in the network namespace of a workload.
type Sockets interface {
	Take(w mesh.WorkloadIndex, v6 bool) (fd int, ok bool)
	Wait(w mesh.WorkloadIndex, v6 bool, f func(fd int, ok bool))
}

// Transparent gives sockets that may be bound to any address, a client's.
type Transparent interface {
	TakeTransparent(w mesh.WorkloadIndex, v6 bool) (fd int, ok bool)
	WaitTransparent(w mesh.WorkloadIndex, v6 bool, f func(fd int, ok bool))
}

// maxSocketWaits is how often an attempt asks again after none could be made.
const maxSocketWaits = 8

// Dialer makes connections to endpoints.
type Dialer struct {
	Loop *loop.Loop
	// Sockets may be nil: every socket is then made in the process's namespace.
	Sockets Sockets
	Timeout time.Duration
}

// Dial is one attempt, which ends by one call of Done.
type Dial struct {
	// Done owns c, unless err is set. c's handler must be set by it.
	Done func(d *Dial, c *loop.Conn, err error)
	// Owner is for the caller.
	Owner any
	// Source is the address to connect from; zero: the namespace's own. Without a
	// Transparent it is left aside.
	Source netip.Addr
	// Fallback is tried when the address cannot be connected to, within the same time;
	// zero: nothing is.
	Fallback netip.AddrPort

	dialer   *Dialer
	workload mesh.WorkloadIndex
	to       netip.AddrPort
	conn     *loop.Conn
	timer    loop.Timer
	waits    int
	ended    bool
}

// Start begins an attempt. Done is never called before Start returns.
func (d *Dialer) Start(w mesh.WorkloadIndex, to netip.AddrPort, dial *Dial) {
	dial.dialer, dial.workload, dial.to = d, w, to
	dial.timer.Handler = dial
	d.Loop.SetTimer(&dial.timer, d.Loop.Now()+int64(d.Timeout))
	if err := dial.connect(); err != nil {
		d.Loop.Defer(&failure{dial, err})
	}
}

// Cancel ends an attempt without a call of Done.
func (d *Dial) Cancel() {
	d.end()
	if d.conn != nil {
		d.conn.Close()
	}
}

// connect takes a socket and connects it, or arranges to be given one.
func (d *Dial) connect() error {
	v6 := !d.to.Addr().Is4()
	if d.workload == 0 || d.dialer.Sockets == nil {
		fd, err := loop.NewSocket(v6)
		if err != nil {
			return err
		}
		return d.use(fd, false)
	}
	take, wait := d.dialer.Sockets.Take, d.dialer.Sockets.Wait
	t, transparent := d.dialer.Sockets.(Transparent)
	if transparent = transparent && d.Source.IsValid() && d.Source.Is4() != v6; transparent {
		take, wait = t.TakeTransparent, t.WaitTransparent
	}
	if fd, ok := take(d.workload, v6); ok {
		return d.use(fd, transparent)
	}
	if d.waits++; d.waits > maxSocketWaits {
		return ErrNoSocket
	}
	to := d.to
	wait(d.workload, v6, func(fd int, ok bool) {
		d.dialer.Loop.Post(func() {
			var err error
			switch {
			case ok && (d.ended || d.to != to):
				loop.CloseFD(fd)
				return
			case d.ended || d.to != to:
				return
			case ok:
				err = d.use(fd, transparent)
			default:
				err = d.connect()
			}
			if err != nil {
				d.finish(nil, err)
			}
		})
	})
	return nil
}

// use connects a socket, which is the attempt's from now on.
func (d *Dial) use(fd int, transparent bool) error {
	if transparent {
		if err := loop.Bind(fd, netip.AddrPortFrom(d.Source, 0)); err != nil {
			loop.CloseFD(fd)
			return err
		}
	}
	if err := loop.SetNoDelay(fd); err != nil {
		loop.CloseFD(fd)
		return err
	}
	c, err := d.dialer.Loop.Connect(fd, d.to, d)
	if err != nil {
		return err
	}
	d.conn = c
	return nil
}

// Ready sees how the attempt went.
func (d *Dial) Ready(c *loop.Conn) {
	done, err := c.Connected()
	if !done {
		return
	}
	if err != nil {
		c.Close()
		d.finish(nil, err)
		return
	}
	d.finish(c, nil)
}

// OnTimer ends the attempt.
func (d *Dial) OnTimer(*loop.Timer) {
	if d.conn != nil {
		d.conn.Close()
	}
	d.Fallback = netip.AddrPort{}
	d.finish(nil, ErrTimeout)
}

func (d *Dial) end() {
	d.ended = true
	d.dialer.Loop.DropTimer(&d.timer)
}

func (d *Dial) finish(c *loop.Conn, err error) {
	if d.ended {
		return
	}
	if err != nil && d.Fallback.IsValid() {
		d.to, d.Fallback = d.Fallback, netip.AddrPort{}
		d.conn, d.waits = nil, 0
		second := d.connect()
		if second == nil {
			return
		}
		err = fmt.Errorf("%w, and %s: %w", err, d.to, second)
	}
	d.end()
	d.Done(d, c, err)
}

// failure puts off an error until Start has returned.
type failure struct {
	dial *Dial
	err  error
}

// Flush ends the attempt.
func (f *failure) Flush() { f.dial.finish(nil, f.err) }
