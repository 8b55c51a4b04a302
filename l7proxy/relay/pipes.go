package relay

import "golang.org/x/sys/unix"

const (
	// maxPipes bounds the pipes of one loop: an unprivileged user may have 16,384
	// pages in pipes (pipe-user-pages-soft), then gets pipes of a page or two.
	maxPipes = 128
	// idlePipes are kept for the next bulk transfer.
	idlePipes = 16
	// pipeSize is 64 slots, each of which takes up to one fragment of a packet
	// buffer, 32 KiB on loopback and veth.
	pipeSize = 256 << 10
)

// Pipe is a pipe for splice.
type Pipe struct {
	r, w  int
	owner *Pipes
}

// Pipes are the pipes of one loop. The zero value is ready.
type Pipes struct {
	idle []*Pipe
	open int
}

// get returns an empty pipe, nil when there is none to be had.
func (p *Pipes) get() *Pipe {
	if n := len(p.idle); n > 0 {
		pipe := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return pipe
	}
	if p.open >= maxPipes {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		return nil
	}
	// Where the user's pages are used up the pipe stays small, and works.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	p.open++
	return &Pipe{r: fds[0], w: fds[1], owner: p}
}

func (p *Pipes) put(pipe *Pipe) {
	if len(p.idle) >= idlePipes {
		pipe.Close()
		return
	}
	p.idle = append(p.idle, pipe)
}

// Close closes the pipe with what is in it.
func (pipe *Pipe) Close() {
	unix.Close(pipe.r)
	unix.Close(pipe.w)
	pipe.owner.open--
}

// Close closes the unused pipes.
func (p *Pipes) Close() {
	for _, pipe := range p.idle {
		pipe.Close()
	}
	p.idle = nil
}
