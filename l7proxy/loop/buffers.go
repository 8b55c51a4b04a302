package loop

// ScratchSize is the largest read: below it the cost of a relayed byte rises
// (32 KB reads cost 1.7 times as much), above it little is won.
const ScratchSize = 256 << 10

// The classes of buffers.
const (
	class1K = iota
	class4K
	class16K
	class64K
	class256K
	classes
)

var classSize = [classes]int{1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10}

// keepBytes bounds the unused memory that one class keeps for the next user.
const keepBytes = 4 << 20

// Buffers lends memory in five sizes. It belongs to the loop's goroutine.
type Buffers struct {
	free [classes][][]byte
	lent int // bytes
}

// Lent is how many bytes are out, by capacity.
func (b *Buffers) Lent() int { return b.lent }

// Get returns an empty buffer of at least n bytes capacity. What is larger than
// the largest class is made anew and not kept.
func (b *Buffers) Get(n int) []byte {
	for i, size := range classSize {
		if n > size {
			continue
		}
		b.lent += size
		if k := len(b.free[i]); k > 0 {
			p := b.free[i][k-1]
			b.free[i][k-1] = nil
			b.free[i] = b.free[i][:k-1]
			return p
		}
		return make([]byte, 0, size)
	}
	b.lent += n
	return make([]byte, 0, n)
}

// Put gives back a buffer that Get or Grow returned, with its full capacity.
func (b *Buffers) Put(p []byte) {
	b.lent -= cap(p)
	for i, size := range classSize {
		if cap(p) == size {
			if len(b.free[i])*size < keepBytes {
				b.free[i] = append(b.free[i], p[:0])
			}
			return
		}
	}
}

// Swapped books that a buffer of the loop was replaced, by append, by one that
// was made elsewhere. It takes the old one back.
func (b *Buffers) Swapped(old, now []byte) {
	b.lent += cap(now)
	b.Put(old)
}

// Grow returns a buffer with p's bytes and room for n more, and takes p back if it
// had to be replaced.
func (b *Buffers) Grow(p []byte, n int) []byte {
	if cap(p)-len(p) >= n {
		return p
	}
	need := len(p) + n
	if need > classSize[classes-1] {
		need = max(need, 2*cap(p))
	}
	bigger := b.Get(need)
	bigger = append(bigger, p...)
	if p != nil {
		b.Put(p)
	}
	return bigger
}
