package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
)

const patience = 20 * time.Second

// bench is a relay in a loop between two TCP connections, whose far ends the test
// holds.
type bench struct {
	t       *testing.T
	l       *loop.Loop
	r       Relay
	pipes   Pipes
	a, b    *loop.Conn
	client  *net.TCPConn
	server  *net.TCPConn
	end     chan error
	over    bool
	spliced bool
	account Account
}

func (x *bench) Ready(*loop.Conn) {
	if x.over || x.b == nil {
		return
	}
	more, done, err := x.r.Pump()
	x.spliced = x.spliced || x.r.Spliced()
	if err != nil || done {
		x.over = true
		x.r.Release()
		x.a.Close()
		x.b.Close()
		x.end <- err
		return
	}
	if more {
		x.a.Again()
	}
}

func tcpPair(t *testing.T) (near int, far *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.File()
	s.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// File made the description blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return fd, c
}

func newBench(t *testing.T, account Account, inject string) *bench {
	t.Helper()
	l, err := loop.New()
	if err != nil {
		t.Fatal(err)
	}
	x := &bench{t: t, l: l, end: make(chan error, 1), account: account}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, x.pipes.Close) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := l.Buffers.Lent(); n != 0 {
			t.Errorf("%d bytes of buffers are missing", n)
		}
		if x.pipes.open != 0 {
			t.Errorf("%d pipes are open", x.pipes.open)
		}
	})
	a, client := tcpPair(t)
	b, server := tcpPair(t)
	x.client, x.server = client, server
	l.Post(func() {
		if x.a, err = l.Attach(a, x); err != nil {
			t.Error(err)
		}
		conn, err := l.Attach(b, x)
		if err != nil {
			t.Error(err)
		}
		x.r.Init(l, x.a, conn, &x.pipes, account)
		if err := x.r.Inject(Downstream, []byte(inject)); err != nil {
			t.Error(err)
		}
		x.b = conn
		x.Ready(nil)
	})
	return x
}

func (x *bench) wait() error {
	x.t.Helper()
	select {
	case err := <-x.end:
		return err
	case <-time.After(patience):
		x.t.Fatal("the relay does not end")
		return nil
	}
}

// TestBothWays moves different amounts in pieces of all sizes in both directions at
// once, with readers that pause.
func TestBothWays(t *testing.T) {
	x := newBench(t, nil, "injected ")
	const up, down = 20 << 20, 9 << 20
	send := func(c *net.TCPConn, seed byte, size int) {
		src := rand.NewChaCha8([32]byte{seed})
		rng := rand.New(rand.NewPCG(1, uint64(seed)))
		for size > 0 {
			n := min(size, 1<<rng.IntN(21))
			if _, err := io.CopyN(c, src, int64(n)); err != nil {
				t.Error(err)
				return
			}
			size -= n
		}
		c.CloseWrite()
	}
	type sum struct {
		n int64
		h [32]byte
	}
	receive := func(c *net.TCPConn, out chan sum) {
		h := sha256.New()
		n, err := io.Copy(h, c)
		if err != nil {
			t.Error(err)
		}
		out <- sum{n, [32]byte(h.Sum(nil))}
	}
	expect := func(prefix string, seed byte, size int64) sum {
		h := sha256.New()
		io.WriteString(h, prefix)
		io.CopyN(h, rand.NewChaCha8([32]byte{seed}), size)
		return sum{size + int64(len(prefix)), [32]byte(h.Sum(nil))}
	}
	atServer, atClient := make(chan sum, 1), make(chan sum, 1)
	go send(x.client, 1, up)
	go send(x.server, 2, down)
	go receive(x.server, atServer)
	go receive(x.client, atClient)
	if got := <-atServer; got != expect("injected ", 1, up) {
		t.Errorf("the server got %d bytes, or other ones", got.n)
	}
	if got := <-atClient; got != expect("", 2, down) {
		t.Errorf("the client got %d bytes, or other ones", got.n)
	}
	if err := x.wait(); err != nil {
		t.Error(err)
	}
	if in, out := x.r.Moved(); in != up+9 || out != down {
		t.Errorf("moved %d and %d", in, out)
	}
	if !x.spliced {
		t.Error("bulk was not spliced")
	}
}

// TestMessagesHoldNothing: small messages are not spliced, cost a read and a write
// each, and leave no buffer.
func TestMessagesHoldNothing(t *testing.T) {
	x := newBench(t, nil, "")
	buf := make([]byte, 1000)
	ping := func() {
		x.client.Write(buf)
		if _, err := io.ReadFull(x.server, buf); err != nil {
			t.Fatal(err)
		}
		x.server.Write(buf)
		if _, err := io.ReadFull(x.client, buf); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		ping()
	}
	stats := func() (s loop.Stats, lent int) {
		got := make(chan struct{})
		x.l.Post(func() { s, lent = x.l.Stats, x.l.Buffers.Lent(); close(got) })
		<-got
		return s, lent
	}
	before, _ := stats()
	const n = 500
	for range n {
		ping()
	}
	after, lent := stats()
	if calls := after.Reads + after.Writes - before.Reads - before.Writes; calls > 4*n+8 {
		t.Errorf("%d system calls for %d round trips", calls, n)
	}
	if after.Splices != 0 || lent != 0 {
		t.Errorf("%d splices, %d bytes held", after.Splices, lent)
	}
	x.client.CloseWrite()
	x.server.CloseWrite()
	if err := x.wait(); err != nil {
		t.Error(err)
	}
}

func TestHalfClose(t *testing.T) {
	x := newBench(t, nil, "")
	io.WriteString(x.client, "question")
	x.client.CloseWrite()
	if b, err := io.ReadAll(x.server); err != nil || string(b) != "question" {
		t.Fatalf("%q %v", b, err)
	}
	big := bytes.Repeat([]byte("answer "), 100_000)
	go func() { x.server.Write(big); x.server.CloseWrite() }()
	if b, err := io.ReadAll(x.client); err != nil || !bytes.Equal(b, big) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if err := x.wait(); err != nil {
		t.Error(err)
	}
}

func TestReset(t *testing.T) {
	x := newBench(t, nil, "")
	io.WriteString(x.client, "x")
	io.ReadFull(x.server, make([]byte, 1))
	x.server.SetLinger(0)
	x.server.Close()
	var re *Error
	if err := x.wait(); !errors.As(err, &re) || re.Side != Upstream {
		t.Errorf("got %v", err)
	}
}

// stingy allows so many bytes.
type stingy struct{ left, held int }

func (s *stingy) Hold(n int) bool {
	if n > s.left {
		return false
	}
	s.left -= n
	s.held += n
	return true
}

func (s *stingy) Free(n int) { s.left += n; s.held -= n }

// stuck is a Stream that takes one byte and then nothing.
type stuck struct{ taken int }

func (s *stuck) Read([]byte) (int, error) { return 0, loop.ErrAgain }
func (s *stuck) Send(p []byte) (int, error) {
	if s.taken > 0 {
		return 0, loop.ErrAgain
	}
	s.taken = 1
	return 1, nil
}
func (s *stuck) Writable() bool { return s.taken == 0 }
func (s *stuck) CloseWrite()    {}

// source gives zeros for ever.
type source struct{ stuck }

func (s *source) Read(p []byte) (int, error) { return len(p), nil }

// TestAccount: what a slow receiver leaves behind is booked and given back, or
// refused, and not one byte more is read.
func TestAccount(t *testing.T) {
	for _, room := range []int{0, 1 << 20} {
		l, err := loop.New()
		if err != nil {
			t.Fatal(err)
		}
		account := &stingy{left: room}
		var r Relay
		r.Init(l, &source{}, &stuck{}, nil, account)
		for range 3 {
			_, _, err = r.Pump()
			if err != nil {
				break
			}
		}
		if room == 0 {
			if !errors.Is(err, ErrOverLimit) {
				t.Errorf("got %v", err)
			}
		} else {
			in, _ := r.Moved()
			if err != nil || account.held == 0 || r.Buffered() != int(in)-1 || in != smallRead {
				t.Errorf("%v, %d booked, %d buffered, %d read", err, account.held, r.Buffered(), in)
			}
		}
		r.Release()
		if account.held != 0 || l.Buffers.Lent() != 0 {
			t.Errorf("after Release %d bytes are booked, %d lent", account.held, l.Buffers.Lent())
		}
		l.Close()
	}
}
