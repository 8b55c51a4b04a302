package upstream

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

const (
	affinityShards = 16
	// maxAffinities bounds the clients that one shard remembers: beyond it the oldest
	// uses of a few that are looked at give way.
	maxAffinities = 4096
)

// affinity remembers the endpoint of each client address (Service
// spec.sessionAffinity). Its shards are locked for one look each.
type affinity struct {
	shards [affinityShards]struct {
		mu      sync.Mutex
		clients map[netip.Addr]affine
	}
}

type affine struct {
	endpoint netip.AddrPort
	until    time.Time
}

var affinitySeed = maphash.MakeSeed()

// endpoint returns the endpoint that a client has, if that is not over.
func (a *affinity) endpoint(client netip.Addr, now time.Time) (netip.AddrPort, bool) {
	s := &a.shards[maphash.Comparable(affinitySeed, client)%affinityShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.clients[client]
	if !ok || now.After(c.until) {
		return netip.AddrPort{}, false
	}
	return c.endpoint, true
}

// set gives a client an endpoint, or prolongs that.
func (a *affinity) set(client netip.Addr, endpoint netip.AddrPort, until time.Time) {
	s := &a.shards[maphash.Comparable(affinitySeed, client)%affinityShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.clients == nil {
		s.clients = map[netip.Addr]affine{}
	}
	if _, known := s.clients[client]; !known && len(s.clients) >= maxAffinities {
		var oldest netip.Addr
		looked := 0
		for k, c := range s.clients {
			if looked == 0 || c.until.Before(s.clients[oldest].until) {
				oldest = k
			}
			if looked++; looked == 8 {
				break
			}
		}
		delete(s.clients, oldest)
	}
	s.clients[client] = affine{endpoint, until}
}
