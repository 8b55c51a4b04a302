package ring_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/ring"
)

// numbered returns n flows whose BytesIn and times count from first.
func numbered(first, n int) []*flow.Flow {
	out := make([]*flow.Flow, n)
	for i := range out {
		v := first + i
		out[i] = &flow.Flow{Type: flow.TypeHTTP, BytesIn: uint64(v), Time: time.Unix(int64(v), 0)}
	}
	return out
}

func newRing(t testing.TB, size int) *ring.Ring {
	t.Helper()
	r, err := ring.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// read returns the numbers of the flows of a query that does not follow, and how
// many were lost.
func read(t *testing.T, r *ring.Ring, q ring.Query) (numbers []uint64, lost uint64) {
	t.Helper()
	reader := r.NewReader(q)
	defer reader.Close()
	for {
		f, err := reader.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return numbers, lost
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == flow.TypeLost {
			lost += f.Lost
			continue
		}
		numbers = append(numbers, f.BytesIn)
	}
}

func equal(t *testing.T, got []uint64, first, last int) {
	t.Helper()
	if len(got) != last-first+1 {
		t.Fatalf("got %d flows %v, want %d to %d", len(got), got, first, last)
	}
	for i, n := range got {
		if n != uint64(first+i) {
			t.Fatalf("got %v, want %d to %d", got, first, last)
		}
	}
}

func TestNewRefusesSizes(t *testing.T) {
	for _, size := range []int{-1, 0, ring.MinSize - 1, ring.MaxSize + 1} {
		if _, err := ring.New(size); err == nil {
			t.Errorf("New(%d) made a ring", size)
		}
	}
}

func TestQueries(t *testing.T) {
	even := func(f *flow.Flow) bool { return f.BytesIn%2 == 0 }
	r := newRing(t, 16)
	if got, _ := read(t, r, ring.Query{Last: 5}); got != nil {
		t.Errorf("an empty ring has %v", got)
	}
	r.Add(numbered(1, 10)...)
	r.Add()
	r.Add(numbered(11, 30)...) // 1 to 40; 25 to 40 are held
	got, lost := read(t, r, ring.Query{})
	equal(t, got, 25, 40)
	if lost != 0 {
		t.Errorf("flows from before the query count as lost: %d", lost)
	}
	got, _ = read(t, r, ring.Query{Last: 3})
	equal(t, got, 38, 40)
	got, _ = read(t, r, ring.Query{Last: 100})
	equal(t, got, 25, 40)
	got, _ = read(t, r, ring.Query{Since: time.Unix(39, 0)})
	equal(t, got, 39, 40)
	got, _ = read(t, r, ring.Query{Since: time.Unix(30, 0), Last: 2})
	equal(t, got, 39, 40)
	got, _ = read(t, r, ring.Query{Match: even, Last: 2})
	if len(got) != 2 || got[0] != 38 || got[1] != 40 {
		t.Errorf("the last two even flows are %v", got)
	}
	s := r.Stats()
	if s.Size != 16 || s.Held != 16 || s.Added != 40 || s.Followers != 0 || s.Overwritten != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRing(t, 16)
		r.Add(numbered(1, 5)...)
		fromNow := r.NewReader(ring.Query{Follow: true})
		defer fromNow.Close()
		fromLast := r.NewReader(ring.Query{Follow: true, Last: 2})
		defer fromLast.Close()
		if n := r.Stats().Followers; n != 2 {
			t.Errorf("%d followers, want 2", n)
		}
		next := func(rd *ring.Reader, want uint64) {
			t.Helper()
			f, err := rd.Next(t.Context())
			if err != nil || f.BytesIn != want {
				t.Fatalf("got %+v, %v; want flow %d", f, err, want)
			}
		}
		next(fromLast, 4)
		next(fromLast, 5)
		if _, err := fromLast.Poll(); !errors.Is(err, ring.ErrDry) {
			t.Errorf("Poll at the end: %v", err)
		}
		waited := make(chan uint64)
		for _, rd := range []*ring.Reader{fromNow, fromLast} {
			go func() {
				f, err := rd.Next(t.Context())
				if err != nil {
					t.Error(err)
				}
				waited <- f.BytesIn
			}()
		}
		synctest.Wait() // both wait in Next
		r.Add(numbered(6, 1)...)
		for range 2 {
			if n := <-waited; n != 6 {
				t.Errorf("a follower got flow %d, want 6", n)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { _, err := fromNow.Next(ctx); ended <- err }()
		synctest.Wait()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled follower got %v", err)
		}
		fromNow.Close()
		fromNow.Close()
		if n := r.Stats().Followers; n != 1 {
			t.Errorf("%d followers after one closed, want 1", n)
		}
	})
}

// TestSlowFollower: it is told how many flows it missed, and all others it gets
// in order: what it got and what it missed make up what was added.
func TestSlowFollower(t *testing.T) {
	r := newRing(t, 16)
	reader := r.NewReader(ring.Query{Follow: true, Match: func(*flow.Flow) bool { return false }})
	reader.Close() // the filter must not hide the loss
	reader = r.NewReader(ring.Query{Follow: true})
	defer reader.Close()
	r.Add(numbered(0, 100)...)
	f, err := reader.Next(t.Context())
	if err != nil || f.Type != flow.TypeLost || f.LostSource != flow.LostByRing || f.Time.IsZero() {
		t.Fatalf("got %+v, %v; want a lost flow", f, err)
	}
	want := f.Lost
	if want < 84 || want >= 100 {
		t.Fatalf("%d of 100 flows lost in a ring of 16", want)
	}
	for ; want < 100; want++ {
		f, err := reader.Next(t.Context())
		if err != nil || f.BytesIn != want {
			t.Fatalf("got %+v, %v; want flow %d", f, err, want)
		}
	}
	if _, err := reader.Poll(); !errors.Is(err, ring.ErrDry) {
		t.Errorf("after the last flow: %v", err)
	}
	if s := r.Stats(); s.Overwritten != 84+2 {
		t.Errorf("%d overwritten, want the 84 that are gone and an eighth of the ring", s.Overwritten)
	}
}

func TestLossesPassTheFilter(t *testing.T) {
	r := newRing(t, 16)
	reader := r.NewReader(ring.Query{Follow: true, Match: func(*flow.Flow) bool { return false }})
	defer reader.Close()
	r.Add(numbered(0, 100)...)
	if f, err := reader.Next(t.Context()); err != nil || f.Type != flow.TypeLost {
		t.Fatalf("got %+v, %v; want a lost flow", f, err)
	}
}

// TestConcurrent: with several writers and readers, each reader sees the flows of
// each writer in order and none twice, and received + lost = added.
func TestConcurrent(t *testing.T) {
	const writers, perWriter, readers = 3, 4000, 3
	r := newRing(t, 64)
	var reading, writing sync.WaitGroup
	for range readers {
		reader := r.NewReader(ring.Query{Follow: true})
		reading.Go(func() {
			defer reader.Close()
			var last [writers]uint64
			var received, lost uint64
			for received+lost < writers*perWriter {
				f, err := reader.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				if f.Type == flow.TypeLost {
					lost += f.Lost
					continue
				}
				received++
				if f.BytesIn <= last[f.BytesOut] {
					t.Errorf("writer %d: flow %d after %d", f.BytesOut, f.BytesIn, last[f.BytesOut])
					return
				}
				last[f.BytesOut] = f.BytesIn
			}
			if received+lost != writers*perWriter {
				t.Errorf("received %d and lost %d, together not %d", received, lost, writers*perWriter)
			}
		})
	}
	for w := range writers {
		writing.Go(func() {
			for n := 0; n < perWriter; {
				batch := numbered(n+1, min(1+rand.IntN(8), perWriter-n))
				for _, f := range batch {
					f.BytesOut = uint64(w)
				}
				r.Add(batch...)
				n += len(batch)
			}
		})
	}
	writing.Wait()
	reading.Wait()
}

func TestAddDoesNotAllocate(t *testing.T) {
	r := newRing(t, 64)
	reader := r.NewReader(ring.Query{Follow: true})
	defer reader.Close()
	f := &flow.Flow{}
	if n := testing.AllocsPerRun(100, func() { r.Add(f) }); n != 0 {
		t.Errorf("Add allocates %v times", n)
	}
}

func BenchmarkAdd(b *testing.B) {
	r := newRing(b, ring.DefaultSize)
	f := &flow.Flow{}
	b.ReportAllocs()
	for b.Loop() {
		r.Add(f)
	}
}
