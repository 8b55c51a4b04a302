// Package ring keeps the newest flows of a node in memory.
//
// A Ring has a fixed number of slots. Any goroutine adds flows, in batches, under
// one lock per batch; any number of Readers read without a lock and never slow a
// writer down. A reader that falls behind by more than the ring holds is told how
// many flows it missed, by a flow of its own. Nothing here fails.
package ring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
)

// The bounds of a ring's size, and the size that a node uses unless told
// otherwise: some seconds of a busy node, about 40 MB of requests.
const (
	MinSize     = 16
	MaxSize     = 1 << 22
	DefaultSize = 1 << 17
	// MaxBatchBytes bounds the memory of the records of one ring: with requests of
	// ordinary length it holds DefaultSize of them, with the longest fewer.
	MaxBatchBytes = 64 << 20
)

// Ring holds the newest flows. Create it with New. All methods may be called by
// many goroutines at a time.
type Ring struct {
	slots []slot // a power of two
	mask  uint64

	// head is the number of flows ever added; flow n is in slot n&mask.
	head       atomic.Uint64
	overwrites atomic.Uint64 // flows that readers missed
	// The sums of Lost of the TypeLost flows that were added, by who lost them.
	lostByKernel, lostByProxy, lostByOthers atomic.Uint64

	// floor is the number of the oldest flow that MaxBatchBytes left.
	floor    atomic.Uint64
	maxBytes int

	// mu guards writing of slots, head and floor, and what follows.
	mu        sync.Mutex
	followers map[*Reader]struct{}
	batches   []held // oldest first, from firstHeld
	firstHeld int
	bytes     int // of the batches
}

// held is a batch in the ring.
type held struct {
	first, end uint64 // numbers of its flows, end excluded
	bytes      int
}

// A slot is written under Ring.mu and read without: number is the flow's number
// plus one, and zero while the slot changes. A reader that still sees the number
// it wants after loading the flow has that flow.
//
// It holds a flow, or a flow's place in a batch.
type slot struct {
	number atomic.Uint64
	flow   atomic.Pointer[flow.Flow]
	batch  atomic.Pointer[record.Batch]
	index  atomic.Uint32
}

// New returns an empty ring of at least size flows, rounded up to a power of two.
func New(size int) (*Ring, error) {
	if size < MinSize || size > MaxSize {
		return nil, fmt.Errorf("flow ring of %d flows: want %d to %d", size, MinSize, MaxSize)
	}
	n := 1
	for n < size {
		n <<= 1
	}
	return &Ring{slots: make([]slot, n), mask: uint64(n - 1), maxBytes: MaxBatchBytes, followers: map[*Reader]struct{}{}}, nil
}

// Add appends flows in order and wakes the readers that follow. It never blocks
// on a reader. The flows must not change afterwards.
func (r *Ring) Add(flows ...*flow.Flow) {
	if len(flows) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.head.Load()
	for _, f := range flows {
		s := &r.slots[n&r.mask]
		s.number.Store(0)
		s.flow.Store(f)
		s.batch.Store(nil)
		n++
		s.number.Store(n)
		if f.Type == flow.TypeLost {
			r.countLoss(f.LostSource, f.Lost)
		}
	}
	r.publish(n)
}

// AddBatch is Add for the flows of a batch, which are not decoded before somebody
// reads them. The batch must not change afterwards.
func (r *Ring) AddBatch(b *record.Batch) {
	if b.Len() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	first := r.head.Load()
	n := first
	for i := range b.Len() {
		s := &r.slots[n&r.mask]
		s.number.Store(0)
		s.flow.Store(nil)
		s.batch.Store(b)
		s.index.Store(uint32(i))
		n++
		s.number.Store(n)
		if h := b.Head(i); h.Type == flow.TypeLost {
			r.countLoss(flow.LostByProxy, h.Lost)
		}
	}
	r.hold(held{first: first, end: n, bytes: b.Bytes()})
	r.publish(n)
}

// hold notes a batch, and lets go of the oldest if they take too much memory.
func (r *Ring) hold(b held) {
	r.batches = append(r.batches, b)
	r.bytes += b.bytes
	for r.firstHeld < len(r.batches)-1 {
		old := r.batches[r.firstHeld]
		overwritten := b.end > uint64(len(r.slots)) && old.end <= b.end-uint64(len(r.slots))
		if !overwritten {
			if r.bytes <= r.maxBytes {
				break
			}
			for n := old.first; n < old.end; n++ {
				if s := &r.slots[n&r.mask]; s.number.Load() == n+1 {
					s.number.Store(0)
					s.batch.Store(nil)
				}
			}
			r.floor.Store(old.end)
		}
		r.bytes -= old.bytes
		r.firstHeld++
	}
	if r.firstHeld > len(r.batches)/2 {
		r.batches = append(r.batches[:0], r.batches[r.firstHeld:]...)
		r.firstHeld = 0
	}
}

// publish makes the flows below n visible. It is called with mu held.
func (r *Ring) publish(n uint64) {
	r.head.Store(n)
	for reader := range r.followers {
		select {
		case reader.wake <- struct{}{}:
		default:
		}
	}
}

func (r *Ring) countLoss(source string, lost uint64) {
	switch source {
	case flow.LostByKernel:
		r.lostByKernel.Add(lost)
	case flow.LostByProxy:
		r.lostByProxy.Add(lost)
	default:
		r.lostByOthers.Add(lost)
	}
}

// at returns flow n, or nil if it was overwritten. n must be below head.
func (r *Ring) at(n uint64) *flow.Flow {
	s := &r.slots[n&r.mask]
	// The slot held flow n when head passed n, so that what is loaded is flow n or a
	// newer one; a newer one changed the number before.
	f, b, i := s.flow.Load(), s.batch.Load(), s.index.Load()
	if s.number.Load() != n+1 {
		return nil
	}
	if f == nil {
		f = b.Flow(int(i))
	}
	return f
}

// oldest returns the number of the oldest flow that a ring with this head holds.
func (r *Ring) oldest(head uint64) uint64 {
	oldest := r.floor.Load()
	if size := uint64(len(r.slots)); head > size {
		oldest = max(oldest, head-size)
	}
	return min(oldest, head)
}

// Query says which flows a Reader returns. The zero Query is all that the ring
// holds now.
type Query struct {
	// Match selects flows; nil selects all. It is called by Next only, except while
	// NewReader looks for the Last flows.
	Match func(*flow.Flow) bool
	// Since leaves out flows that ended before; zero leaves out none.
	Since time.Time
	// Last starts at the newest so many of the flows that match; zero does not limit.
	Last int
	// Follow goes on with flows that are added later. With neither Last nor Since,
	// a reader that follows starts with the next flow that is added.
	Follow bool
}

// Reader reads the flows of one Query, oldest first. It belongs to one goroutine.
type Reader struct {
	ring  *Ring
	query Query
	next  uint64
	end   uint64 // where a reader that does not follow stops
	wake  chan struct{}
}

// NewReader returns a reader of the flows that q selects. Close must be called.
func (r *Ring) NewReader(q Query) *Reader {
	reader := &Reader{ring: r, query: q, wake: make(chan struct{}, 1)}
	if q.Follow {
		r.mu.Lock()
		r.followers[reader] = struct{}{}
		r.mu.Unlock()
	}
	reader.end = r.head.Load()
	reader.next = r.oldest(reader.end)
	switch {
	case q.Last > 0:
		reader.next = reader.backtrack(q.Last)
	case q.Follow && q.Since.IsZero():
		reader.next = reader.end
	}
	return reader
}

// backtrack returns the number of the oldest of the newest n flows that match.
func (rd *Reader) backtrack(n int) uint64 {
	start := rd.end
	for i := rd.end; i > rd.next && n > 0; i-- {
		f := rd.ring.at(i - 1)
		if f == nil {
			break // overwritten meanwhile, and so is all that is older
		}
		if rd.selects(f) {
			start = i - 1
			n--
		}
	}
	return start
}

// Next returns the next flow that the query selects. When flows were overwritten
// before they could be read it first returns a TypeLost flow that counts them,
// whatever the query selects. It returns io.EOF at the end of a query that does
// not follow, and ctx.Err() when ctx ends while it waits.
func (rd *Reader) Next(ctx context.Context) (*flow.Flow, error) {
	for {
		f, err := rd.Poll()
		if !errors.Is(err, ErrDry) {
			return f, err
		}
		select {
		case <-rd.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ErrDry is the error of Poll when a reader that follows has read all there is.
var ErrDry = errors.New("no flow yet")

// Poll is Next without the wait: it returns ErrDry instead.
func (rd *Reader) Poll() (*flow.Flow, error) {
	for {
		head := rd.ring.head.Load()
		end := rd.end
		if rd.query.Follow {
			end = head
		}
		if rd.next >= end {
			if rd.query.Follow {
				return nil, ErrDry
			}
			return nil, io.EOF
		}
		f := rd.ring.at(rd.next)
		if f == nil {
			return rd.skip(end), nil
		}
		rd.next++
		if rd.selects(f) {
			return f, nil
		}
	}
}

// skip moves past what was overwritten, and an eighth of the ring further, so
// that a reader that is slower than the writer does not meet the writer again at
// once. It returns the record of that.
func (rd *Reader) skip(end uint64) *flow.Flow {
	size := uint64(len(rd.ring.slots))
	// The writer may be ahead of head by one batch; it never is by more than a
	// reader can find out here and skip again.
	next := min(rd.ring.oldest(rd.ring.head.Load())+size/8, end)
	if next <= rd.next {
		next = rd.next + 1
	}
	lost := next - rd.next
	rd.next = next
	rd.ring.overwrites.Add(lost)
	return &flow.Flow{Time: time.Now(), Type: flow.TypeLost, Lost: lost, LostSource: flow.LostByRing}
}

func (rd *Reader) selects(f *flow.Flow) bool {
	if !rd.query.Since.IsZero() && f.Time.Before(rd.query.Since) {
		return false
	}
	return rd.query.Match == nil || rd.query.Match(f)
}

// Close ends the reader. It may be called more than once.
func (rd *Reader) Close() {
	rd.ring.mu.Lock()
	defer rd.ring.mu.Unlock()
	delete(rd.ring.followers, rd)
}

// Stats are counters of a ring since it was made.
type Stats struct {
	// Size is the number of slots, Held how many hold a flow.
	Size int `json:"size"`
	Held int `json:"held"`
	// Added counts flows, TypeLost ones included.
	Added uint64 `json:"added"`
	// Lost is the sum of the losses that were recorded in the ring, and the others
	// are its parts: what the kernel and the proxy could not hand over.
	Lost         uint64 `json:"lost"`
	LostByKernel uint64 `json:"lost_by_kernel"`
	LostByProxy  uint64 `json:"lost_by_proxy"`
	// Overwritten counts flows that readers missed, once for each reader.
	Overwritten uint64 `json:"overwritten"`
	// Followers are the readers that wait for more.
	Followers int `json:"followers"`
}

// Stats returns the counters.
func (r *Ring) Stats() Stats {
	r.mu.Lock()
	followers := len(r.followers)
	r.mu.Unlock()
	head := r.head.Load()
	kernel, proxy := r.lostByKernel.Load(), r.lostByProxy.Load()
	return Stats{
		Size: len(r.slots), Held: int(head - r.oldest(head)), Added: head,
		Lost: kernel + proxy + r.lostByOthers.Load(), LostByKernel: kernel, LostByProxy: proxy,
		Overwritten: r.overwrites.Load(), Followers: followers,
	}
}
