// Package pool gives addresses of configured ranges to owners and remembers whose
// they are: cluster IPs of Services, addresses of Gateways.
//
// An owner gets the same address each time: it follows from the owner's name, and
// where two names would meet, from a file that outlives the process. An owner that
// went away keeps its address for when it comes back, unless the range is full or
// somebody asks for just that address.
//
// One goroutine uses a Pool at a time.
package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// ErrExhausted says that a range has no address left.
var ErrExhausted = errors.New("no address left")

// ErrTaken says that an address belongs to another owner.
var ErrTaken = errors.New("address is taken")

// Pool is a set of address ranges.
type Pool struct {
	path   string
	ranges []span
	leases map[netip.Addr]*lease
	owners map[string][]netip.Addr
	dirty  bool
}

type lease struct {
	owner  string
	active bool // asked for since the start and not released
}

// span is a prefix with the part of it that Take uses.
type span struct {
	prefix      netip.Prefix
	first, size uint64 // offsets from the prefix's address
}

// maxSize bounds what is used of a large IPv6 prefix.
const maxSize = 1 << 32

// Open returns a pool of the prefixes, with what the file at path remembers. Path
// may be empty: nothing is remembered. The lowest addresses of each prefix, up to
// reserve of them, are left to Claim.
func Open(path string, prefixes []netip.Prefix, reserve uint64) (*Pool, error) {
	p := &Pool{path: path, leases: map[netip.Addr]*lease{}, owners: map[string][]netip.Addr{}}
	for _, prefix := range prefixes {
		p.ranges = append(p.ranges, newSpan(prefix, reserve))
	}
	if path == "" {
		return p, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read addresses: %w", err)
	}
	var saved map[string][]netip.Addr
	if err := json.Unmarshal(data, &saved); err != nil {
		return nil, fmt.Errorf("read addresses of %s: %w (remove the file to give new addresses)", path, err)
	}
	for owner, addrs := range saved {
		for _, a := range addrs {
			p.put(owner, a, false)
		}
	}
	p.dirty = false
	return p, nil
}

// StaticBand returns the number of low addresses of a prefix that Kubernetes does
// not give by itself (KEP-3070): min(max(16, size/16), 256), or none in a small one.
func StaticBand(prefix netip.Prefix) uint64 {
	bits := min(prefix.Addr().BitLen()-prefix.Bits(), 32)
	size := uint64(1) << bits
	if size <= 16 {
		return 0
	}
	return min(max(16, size/16), 256)
}

func newSpan(prefix netip.Prefix, reserve uint64) span {
	prefix = prefix.Masked()
	size := uint64(maxSize)
	if host := prefix.Addr().BitLen() - prefix.Bits(); host < 32 {
		size = 1 << host
	}
	s := span{prefix: prefix, size: size}
	// Neither the network's own address nor the broadcast address, where they exist.
	if size > 2 {
		s.first = 1
		if prefix.Addr().Is4() {
			size--
		}
	}
	if reserve > s.first && reserve < size {
		s.first = reserve
	}
	s.size = size - s.first
	return s
}

func (s span) at(i uint64) netip.Addr {
	b := s.prefix.Addr().AsSlice()
	for n, j := s.first+i, len(b)-1; n > 0 && j >= 0; j-- {
		sum := uint64(b[j]) + n&0xff
		b[j] = byte(sum)
		n = n>>8 + sum>>8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Contains reports whether an address is in one of the ranges.
func (p *Pool) Contains(a netip.Addr) bool {
	return slices.ContainsFunc(p.ranges, func(s span) bool { return s.prefix.Contains(a) })
}

// Has reports whether there is a range of the family.
func (p *Pool) Has(is4 bool) bool {
	return slices.ContainsFunc(p.ranges, func(s span) bool { return s.prefix.Addr().Is4() == is4 })
}

// Remembers reports whether Take would return an address that the owner had before.
func (p *Pool) Remembers(owner string, is4 bool) bool {
	_, ok := p.remembered(owner, is4)
	return ok
}

func (p *Pool) remembered(owner string, is4 bool) (netip.Addr, bool) {
	for _, a := range p.owners[owner] {
		if a.Is4() == is4 && p.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Take returns the owner's address of a family: the one it has or had, or a new
// one. The error is ErrExhausted.
func (p *Pool) Take(owner string, is4 bool) (netip.Addr, error) {
	if a, ok := p.remembered(owner, is4); ok {
		p.leases[a].active = true
		return a, nil
	}
	for _, takeForgotten := range []bool{false, true} {
		for _, s := range p.ranges {
			if s.prefix.Addr().Is4() != is4 || s.size == 0 {
				continue
			}
			h := fnv.New64a()
			_, _ = h.Write([]byte(owner))
			start := h.Sum64() % s.size
			for i := range min(s.size, uint64(len(p.leases))+1) {
				a := s.at((start + i) % s.size)
				if l := p.leases[a]; l == nil || takeForgotten && !l.active {
					p.put(owner, a, true)
					return a, nil
				}
			}
		}
	}
	return netip.Addr{}, ErrExhausted
}

// Claim gives an owner the very address, which need not be in a range. The error
// wraps ErrTaken and names the owner that has it.
func (p *Pool) Claim(owner string, a netip.Addr) error {
	if l := p.leases[a]; l != nil && l.owner != owner && l.active {
		return fmt.Errorf("%w by %s", ErrTaken, l.owner)
	}
	if l := p.leases[a]; l != nil && l.owner == owner {
		l.active = true
		return nil
	}
	p.put(owner, a, true)
	return nil
}

// Release ends the owner's use of all its addresses but keep.
func (p *Pool) Release(owner string, keep ...netip.Addr) {
	for _, a := range p.owners[owner] {
		if !slices.Contains(keep, a) {
			p.leases[a].active = false
		}
	}
}

func (p *Pool) put(owner string, a netip.Addr, active bool) {
	if l := p.leases[a]; l != nil {
		rest := slices.DeleteFunc(p.owners[l.owner], func(o netip.Addr) bool { return o == a })
		if len(rest) == 0 {
			delete(p.owners, l.owner)
		} else {
			p.owners[l.owner] = rest
		}
	}
	p.leases[a] = &lease{owner: owner, active: active}
	p.owners[owner] = append(p.owners[owner], a)
	p.dirty = true
}

// Save writes the file if something changed.
func (p *Pool) Save() error {
	if !p.dirty || p.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(p.owners, "", "  ")
	if err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(p.path), "."+filepath.Base(p.path)+"-*")
	if err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), p.path)
	}
	if err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	p.dirty = false
	return nil
}
