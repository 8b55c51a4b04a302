package route

import (
	"hash/maphash"
	"sync/atomic"
)

// index is a hash table from strings to pointers with one writer and lock-free
// readers that do not allocate (a sync.Map would box its string keys). Changing
// one entry copies one bucket; growing and shrinking are amortised.
//
// A reader sees the table as it was at some moment of its call.
type index[V any] struct {
	buckets atomic.Pointer[[]atomic.Pointer[bucket[V]]]
	n       int // owned by the writer
}

type bucket[V any] []entry[V]

type entry[V any] struct {
	key   string
	value *V
}

const minBuckets = 8

var hashSeed = maphash.MakeSeed()

func (ix *index[V]) get(key string) *V {
	buckets := ix.buckets.Load()
	if buckets == nil {
		return nil
	}
	b := (*buckets)[maphash.String(hashSeed, key)&uint64(len(*buckets)-1)].Load()
	if b == nil {
		return nil
	}
	for i := range *b {
		if e := &(*b)[i]; e.key == key {
			return e.value
		}
	}
	return nil
}

// put sets the value of a key, or forgets the key if value is nil.
func (ix *index[V]) put(key string, value *V) {
	buckets := ix.buckets.Load()
	if buckets == nil {
		if value == nil {
			return
		}
		buckets = ix.resize(minBuckets)
	}
	slot := &(*buckets)[maphash.String(hashSeed, key)&uint64(len(*buckets)-1)]
	var kept bucket[V]
	if old := slot.Load(); old != nil {
		for _, e := range *old {
			if e.key == key {
				ix.n--
			} else {
				kept = append(kept, e)
			}
		}
	}
	if value != nil {
		kept = append(kept, entry[V]{key, value})
		ix.n++
	}
	slot.Store(&kept)
	switch {
	case ix.n > 2*len(*buckets):
		ix.resize(2 * len(*buckets))
	case len(*buckets) > minBuckets && ix.n < len(*buckets)/4:
		ix.resize(len(*buckets) / 2)
	}
}

func (ix *index[V]) resize(size int) *[]atomic.Pointer[bucket[V]] {
	contents := make([]bucket[V], size)
	ix.each(func(key string, value *V) {
		i := maphash.String(hashSeed, key) & uint64(size-1)
		contents[i] = append(contents[i], entry[V]{key, value})
	})
	buckets := make([]atomic.Pointer[bucket[V]], size)
	for i := range contents {
		if contents[i] != nil {
			buckets[i].Store(&contents[i])
		}
	}
	ix.buckets.Store(&buckets)
	return &buckets
}

func (ix *index[V]) each(f func(key string, value *V)) {
	buckets := ix.buckets.Load()
	if buckets == nil {
		return
	}
	for i := range *buckets {
		if b := (*buckets)[i].Load(); b != nil {
			for _, e := range *b {
				f(e.key, e.value)
			}
		}
	}
}
