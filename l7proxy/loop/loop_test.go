package loop

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// start runs a loop until the test ends.
func start(t *testing.T) *Loop {
	t.Helper()
	l, err := New()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
		if l.Post(func() {}) {
			t.Error("Post after the end")
		}
	})
	return l
}

// do runs f in the loop and waits for it.
func do(t *testing.T, l *Loop, f func()) {
	t.Helper()
	done := make(chan struct{})
	if !l.Post(func() { f(); close(done) }) {
		t.Fatal("the loop has ended")
	}
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the loop is stuck")
	}
}

func pair(t *testing.T) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

type handlerFunc func(c *Conn)

func (f handlerFunc) Ready(c *Conn) { f(c) }

func TestPostWakesASleepingLoop(t *testing.T) {
	l := start(t)
	for range 100 {
		do(t, l, func() {})
	}
	var n atomic.Int32
	for range 4 {
		go func() {
			for range 1000 {
				l.Post(func() { n.Add(1) })
			}
		}()
	}
	for deadline := time.Now().Add(patience); n.Load() < 4000; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 4000", n.Load())
		}
	}
}

func TestConnReadsOnlyWhenReady(t *testing.T) {
	l := start(t)
	a, b := pair(t)
	got := make(chan string, 10)
	var again atomic.Int32
	do(t, l, func() {
		_, err := l.Attach(a, handlerFunc(func(c *Conn) {
			buf := make([]byte, 64)
			for {
				n, err := c.Read(buf)
				switch err {
				case nil:
					got <- string(buf[:n])
				case ErrAgain:
					again.Add(1)
					return
				case io.EOF:
					got <- "EOF"
					c.Close()
					return
				default:
					got <- err.Error()
					return
				}
			}
		}))
		if err != nil {
			t.Error(err)
		}
	})
	for _, text := range []string{"one", "two"} {
		unix.Write(b, []byte(text))
		if s := <-got; s != text {
			t.Fatalf("%q", s)
		}
	}
	var stats Stats
	do(t, l, func() { stats = l.Stats })
	// The first event, of a socket that is writable, reads in vain once.
	if stats.Reads > 3 || stats.ReadAgains > 1 {
		t.Errorf("%d reads, %d in vain, for two messages", stats.Reads, stats.ReadAgains)
	}
	// A last message and the end come as one event.
	unix.Write(b, []byte("three"))
	unix.Close(b)
	if s := <-got; s != "three" {
		t.Fatalf("%q", s)
	}
	if s := <-got; s != "EOF" {
		t.Fatalf("%q", s)
	}
}

func TestWriteStopsAndGoesOn(t *testing.T) {
	l := start(t)
	a, b := pair(t)
	const size = 4 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7)
	}
	do(t, l, func() {
		left := data
		_, err := l.Attach(a, handlerFunc(func(c *Conn) {
			for len(left) > 0 {
				// Several pieces, an empty one among them.
				k := min(len(left), 1000)
				n, err := c.Write(left[:k/2], nil, left[k/2:k], left[k:])
				if err == ErrAgain {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				left = left[n:]
			}
			c.Close()
		}))
		if err != nil {
			t.Error(err)
		}
	})
	unix.SetNonblock(b, false)
	var got []byte
	buf := make([]byte, 10_000)
	for {
		n, err := unix.Read(b, buf)
		if err != nil || n == 0 {
			break
		}
		got = append(got, buf[:n]...)
	}
	unix.Close(b)
	if !slices.Equal(got, data) {
		t.Errorf("%d bytes arrived, or other ones", len(got))
	}
}

// TestCloseInAnotherHandler: an event that was fetched together with the one whose
// handler closed the connection finds nobody, also when the slot was taken anew.
func TestCloseInAnotherHandler(t *testing.T) {
	l := start(t)
	const n = 32
	var peers []int
	calls := make(chan int, 10*n)
	blocked := make(chan struct{})
	do(t, l, func() {
		var conns [n]*Conn
		for i := range n {
			a, b := pair(t)
			peers = append(peers, b)
			c, err := l.Attach(a, handlerFunc(func(c *Conn) {
				if _, err := c.Read(make([]byte, 8)); err != nil {
					return
				}
				calls <- i
				for j := range n {
					if conns[j] != nil && j != i {
						conns[j].Close()
						conns[j] = nil
						// The slot is used again at once.
						x, y := pair(t)
						peers = append(peers, y)
						if _, err := l.Attach(x, handlerFunc(func(c *Conn) {
							if _, err := c.Read(make([]byte, 8)); err == nil {
								t.Error("an event found somebody else")
							}
						})); err != nil {
							t.Error(err)
						}
					}
				}
			}))
			if err != nil {
				t.Error(err)
			}
			conns[i] = c
		}
	})
	do(t, l, func() {
		// The loop is here: all are readable when it polls next.
		go func() {
			for _, b := range peers[:n] {
				unix.Write(b, []byte("x"))
			}
			close(blocked)
		}()
		<-blocked
	})
	do(t, l, func() {})
	do(t, l, func() {})
	if len(calls) != 1 {
		t.Errorf("%d handlers of closed connections were called", len(calls)-1)
	}
	for _, b := range peers {
		unix.Close(b)
	}
}

func TestConnect(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	l := start(t)
	connect := func(to netip.AddrPort) error {
		result := make(chan error, 1)
		do(t, l, func() {
			fd, err := NewSocket(false)
			if err != nil {
				result <- err
				return
			}
			if _, err := l.Connect(fd, to, handlerFunc(func(c *Conn) {
				if done, err := c.Connected(); done {
					result <- err
					c.Close()
				}
			})); err != nil {
				result <- err
			}
		})
		return <-result
	}
	good := ln.Addr().(*net.TCPAddr).AddrPort()
	if err := connect(good); err != nil {
		t.Error(err)
	}
	ln.Close()
	if err := connect(good); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to nobody: %v", err)
	}
}

func TestListenerRestsWithoutDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := PrepareListener(fd); err != nil {
		t.Fatal(err)
	}
	l := start(t)
	accepted := make(chan netip.AddrPort, 1)
	do(t, l, func() {
		if _, err := l.Listen(fd, func(fd int, peer netip.AddrPort) { CloseFD(fd); accepted <- peer }); err != nil {
			t.Error(err)
		}
	})
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	to := ln.Addr().(*net.TCPAddr).AddrPort()
	cerr := unix.Connect(c, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	// The listener has found out once the loop has gone around without it.
	var rounds uint64
	do(t, l, func() { rounds = l.Stats.Rounds })
	for range 50 {
		do(t, l, func() {})
	}
	var after uint64
	do(t, l, func() { after = l.Stats.Rounds })
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if cerr != nil {
		t.Fatal(cerr)
	}
	if after-rounds > 1000 {
		t.Errorf("the loop spins: %d rounds", after-rounds)
	}
	select {
	case <-accepted:
	case <-time.After(patience):
		t.Fatal("not accepted after there were descriptors again")
	}
}

type timerLog struct {
	l     *Loop
	fired []*Timer
}

func (h *timerLog) OnTimer(t *Timer) { h.fired = append(h.fired, t) }

// TestTimers drives the heap with a clock of its own against a plain list.
func TestTimers(t *testing.T) {
	l := &Loop{}
	h := &timerLog{l: l}
	rng := rand.New(rand.NewPCG(1, 2))
	timers := make([]*Timer, 50)
	want := map[*Timer]int64{}
	for i := range timers {
		timers[i] = &Timer{Handler: h}
	}
	for step := range 20_000 {
		x := timers[rng.IntN(len(timers))]
		switch rng.IntN(4) {
		case 0, 1:
			when := l.now + rng.Int64N(1000) + 1
			l.SetTimer(x, when)
			want[x] = when
		case 2:
			l.StopTimer(x)
			delete(want, x)
		case 3:
			l.DropTimer(x)
			delete(want, x)
		}
		if x.Active() != (want[x] != 0) {
			t.Fatalf("step %d: active %v", step, x.Active())
		}
		l.now += rng.Int64N(50)
		h.fired = h.fired[:0]
		l.runTimers()
		for _, f := range h.fired {
			if when, ok := want[f]; !ok || when > l.now {
				t.Fatalf("step %d: fired at %d, due %d (%v)", step, l.now, when, ok)
			}
			delete(want, f)
		}
		for x, when := range want {
			if when <= l.now {
				t.Fatalf("step %d: %p due at %d did not fire at %d", step, x, when, l.now)
			}
		}
		if next, ok := l.timers.next(); ok {
			for _, when := range want {
				if when < next {
					t.Fatalf("step %d: the loop would sleep until %d past %d", step, next, when)
				}
			}
		}
	}
}

func TestTimerWakesTheLoop(t *testing.T) {
	l := start(t)
	fired := make(chan struct{})
	tm := &Timer{Handler: timerFunc(func() { close(fired) })}
	do(t, l, func() { l.SetTimer(tm, l.Now()+int64(3*time.Millisecond)) })
	select {
	case <-fired:
	case <-time.After(patience):
		t.Fatal("not fired")
	}
}

type timerFunc func()

func (f timerFunc) OnTimer(*Timer) { f() }

func TestBuffers(t *testing.T) {
	var b Buffers
	for _, n := range []int{0, 1, 1024, 1025, 5000, 70_000, 256 << 10, 1 << 20} {
		p := b.Get(n)
		if len(p) != 0 || cap(p) < n {
			t.Errorf("Get(%d): %d of %d", n, len(p), cap(p))
		}
		p = append(p, "text"...)
		q := b.Grow(p, 10_000)
		if string(q) != "text" || cap(q)-len(q) < 10_000 {
			t.Errorf("Grow: %q, %d", q, cap(q))
		}
		before := q
		q = append(q, make([]byte, 2<<20)...)
		b.Swapped(before, q)
		b.Put(q)
		if b.Lent() != 0 {
			t.Errorf("%d bytes lent after all were put back", b.Lent())
		}
	}
	if n := testing.AllocsPerRun(100, func() { b.Put(b.Grow(b.Get(100), 5000)) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
