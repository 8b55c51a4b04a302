package upstream

import (
	"slices"
	"sort"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// minRing is the least number of points of a ring: Envoy's default, so that the same
// header leads to the same endpoint there.
const minRing = 1024

// point is where an endpoint is on the ring.
type point struct {
	hash     uint64
	endpoint int32
}

// ring is the points of a cluster's endpoints, by hash. It is immutable, and the loops
// share it.
type ring struct{ points []point }

// newRing puts each endpoint on as many points as it takes to have minRing: at the
// hashes of "ADDRESS:PORT_0", "ADDRESS:PORT_1" … (Envoy, ring_hash_lb.cc).
func newRing(hosts []*Host) *ring {
	if len(hosts) == 0 {
		return &ring{}
	}
	each := (minRing + len(hosts) - 1) / len(hosts)
	r := &ring{points: make([]point, 0, each*len(hosts))}
	var key []byte
	for i, h := range hosts {
		key = h.endpoint.AddrPort.AppendTo(key[:0])
		key = append(key, '_')
		n := len(key)
		for j := range each {
			key = strconv.AppendInt(key[:n], int64(j), 10)
			r.points = append(r.points, point{xxhash.Sum64(key), int32(i)})
		}
	}
	slices.SortFunc(r.points, func(a, b point) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return int(a.endpoint - b.endpoint)
	})
	return r
}

// pick returns the first endpoint at or after a hash that is in the tier, is usable if
// it must be, and is not avoid; nil if there is none. endpoints are those that the ring
// is of, in its order.
func (r *ring) pick(hash uint64, endpoints []*Endpoint, tier uint8, usable bool, avoid *Endpoint) *Endpoint {
	n := len(r.points)
	if n == 0 {
		return nil
	}
	first := sort.Search(n, func(i int) bool { return r.points[i].hash >= hash })
	for i := range n {
		e := endpoints[r.points[(first+i)%n].endpoint]
		if e.tier == tier && (!usable || e.usable) && e != avoid {
			return e
		}
	}
	return nil
}

// ringOf returns the ring of the hosts that a loop has, made once for all loops.
func (s *Shared) ringOf(hosts []*Host) *ring {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(hosts) != len(s.list) || len(hosts) > 0 && &hosts[0] != &s.list[0] {
		return newRing(hosts) // this loop is behind
	}
	if s.ring == nil {
		s.ring = newRing(hosts)
	}
	return s.ring
}

// HashText is the hash of one thing of a request.
func HashText(p []byte) uint64 { return xxhash.Sum64(p) }

// JoinHash adds the hash of another thing to a hash, as Envoy's HashPolicyImpl does.
func JoinHash(hash, next uint64) uint64 { return (hash<<1 | hash>>63) ^ next }
