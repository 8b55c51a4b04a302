// Package ipam hands out the addresses of a node's pool. A Pool keeps nothing on
// disk: whoever uses an address records it, and claims it again after a restart.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
)

// ErrExhausted says that every address of a pool is in use.
var ErrExhausted = errors.New("address pool exhausted")

// Pool hands out the addresses of one prefix. The prefix's first address (IPv4
// network, IPv6 subnet-router anycast, RFC 4291 §2.6.1), the second, which is the
// node's own, and the last address of an IPv4 prefix (broadcast) are never handed
// out. An address that was released is handed out again as late as possible.
// All methods may be called concurrently and cost amortised O(1).
type Pool struct {
	prefix netip.Prefix
	last   netip.Addr

	mu sync.Mutex // guards all following fields
	// next is the lowest address never handed out, or the zero Addr once the
	// prefix has been used up to its end.
	next netip.Addr
	// released are addresses that were released, oldest first. One that is in use
	// again stays in the queue and is skipped.
	released []netip.Addr
	used     map[netip.Addr]struct{}
}

// NewPool returns the pool of prefix, which must be masked (no bits set beyond its
// length) and hold at least one address to hand out.
func NewPool(prefix netip.Prefix) (*Pool, error) {
	if !prefix.IsValid() || prefix.Addr().Is4In6() || prefix != prefix.Masked() {
		return nil, fmt.Errorf("address pool %s: not a prefix, or bits set beyond its length", prefix)
	}
	p := &Pool{prefix: prefix, last: lastOf(prefix), used: make(map[netip.Addr]struct{})}
	if prefix.Addr().Is4() {
		p.last = p.last.Prev()
	}
	p.next = p.NodeAddress().Next()
	if !p.next.IsValid() || !prefix.Contains(p.next) || p.last.Less(p.next) {
		return nil, fmt.Errorf("address pool %s: too small to hand out an address", prefix)
	}
	return p, nil
}

// Prefix returns the pool's prefix.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// NodeAddress returns the address that is the node's own, the second of the prefix.
func (p *Pool) NodeAddress() netip.Addr { return p.prefix.Addr().Next() }

// Allocate returns an address that is not in use. The error wraps ErrExhausted and
// names the pool.
func (p *Pool) Allocate() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.next.IsValid() {
		addr := p.next
		if addr == p.last {
			p.next = netip.Addr{}
		} else {
			p.next = addr.Next()
		}
		if _, used := p.used[addr]; !used {
			p.used[addr] = struct{}{}
			return addr, nil
		}
	}
	for len(p.released) > 0 {
		addr := p.released[0]
		p.released = p.released[1:]
		if _, used := p.used[addr]; !used {
			p.used[addr] = struct{}{}
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: %s has %d in use", ErrExhausted, p.prefix, len(p.used))
}

// Claim marks an address as in use that was handed out before a restart. It is an
// error if the pool cannot hand it out or it is in use.
func (p *Pool) Claim(addr netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.prefix.Contains(addr) || !p.NodeAddress().Less(addr) || p.last.Less(addr) {
		return fmt.Errorf("claim address %s: not of pool %s", addr, p.prefix)
	}
	if _, used := p.used[addr]; used {
		return fmt.Errorf("claim address %s of pool %s: in use", addr, p.prefix)
	}
	p.used[addr] = struct{}{}
	return nil
}

// Release makes an address free. One that is not in use is left alone.
func (p *Pool) Release(addr netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, used := p.used[addr]; !used {
		return
	}
	delete(p.used, addr)
	p.released = append(p.released, addr)
}

// InUse returns the number of addresses in use.
func (p *Pool) InUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.used)
}

func lastOf(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}
