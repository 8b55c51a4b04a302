package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

func mustPool(t testing.TB, prefix string) *Pool {
	t.Helper()
	p, err := NewPool(netip.MustParsePrefix(prefix))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func drain(t *testing.T, p *Pool) (out []string) {
	t.Helper()
	for {
		addr, err := p.Allocate()
		if errors.Is(err, ErrExhausted) {
			if !strings.Contains(err.Error(), p.Prefix().String()) {
				t.Errorf("%v does not name the pool", err)
			}
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, addr.String())
	}
}

// TestRange: neither network, node nor broadcast address is handed out, and all
// others are, once.
func TestRange(t *testing.T) {
	for _, test := range []struct {
		prefix, first, last string
		count               int
	}{
		{"10.0.0.0/24", "10.0.0.2", "10.0.0.254", 253},
		{"10.0.0.4/30", "10.0.0.6", "10.0.0.6", 1},
		{"255.255.255.0/24", "255.255.255.2", "255.255.255.254", 253},
		{"fd00::/120", "fd00::2", "fd00::ff", 254},
		{"fd00::8/126", "fd00::a", "fd00::b", 2},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff02", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 254},
	} {
		got := drain(t, mustPool(t, test.prefix))
		if len(got) != test.count || got[0] != test.first || got[len(got)-1] != test.last {
			t.Errorf("%s: %d addresses, %v", test.prefix, len(got), got)
		}
		seen := make(map[string]bool)
		for _, addr := range got {
			if seen[addr] {
				t.Errorf("%s twice", addr)
			}
			seen[addr] = true
		}
	}
	for _, bad := range []string{"10.0.0.0/31", "10.0.0.0/32", "10.0.0.1/24", "fd00::/127", "fd00::/128", "fd00::1/64", "::ffff:10.0.0.0/120"} {
		if _, err := NewPool(netip.MustParsePrefix(bad)); err == nil {
			t.Errorf("%s was taken for a pool", bad)
		}
	}
	if _, err := NewPool(netip.Prefix{}); err == nil {
		t.Error("no prefix was taken for a pool")
	}
}

// TestReuse: the address that was released longest ago comes first, and only when
// no other is left.
func TestReuse(t *testing.T) {
	p := mustPool(t, "10.0.0.0/29") // .2 to .6
	first, _ := p.Allocate()
	second, _ := p.Allocate()
	p.Release(second)
	p.Release(first)
	p.Release(first) // is no address that is in use
	want := []string{"10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.2"}
	if got := drain(t, p); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("handed out %v, want %v", got, want)
	}
	if p.InUse() != 5 {
		t.Errorf("%d in use", p.InUse())
	}
}

// TestClaim: what ran before a restart is not handed out again.
func TestClaim(t *testing.T) {
	p := mustPool(t, "10.0.0.0/29")
	for _, text := range []string{"10.0.0.3", "10.0.0.6"} {
		if err := p.Claim(netip.MustParseAddr(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"10.0.0.3", "10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.0.8", "fd00::2"} {
		if err := p.Claim(netip.MustParseAddr(bad)); err == nil {
			t.Errorf("%s could be claimed", bad)
		}
	}
	// Released before the pool has come to it: handed out once.
	p.Release(netip.MustParseAddr("10.0.0.6"))
	if got := strings.Join(drain(t, p), " "); got != "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6" {
		t.Errorf("handed out %s", got)
	}
	// Claimed while it waits among the released.
	p.Release(netip.MustParseAddr("10.0.0.4"))
	if err := p.Claim(netip.MustParseAddr("10.0.0.4")); err != nil {
		t.Fatal(err)
	}
	p.Release(netip.MustParseAddr("10.0.0.4"))
	if got := strings.Join(drain(t, p), " "); got != "10.0.0.4" {
		t.Errorf("handed out %s", got)
	}
}

func TestConcurrent(t *testing.T) {
	p := mustPool(t, "10.0.0.0/24")
	var wg sync.WaitGroup
	var mu sync.Mutex
	held := make(map[netip.Addr]bool)
	for range 8 {
		wg.Go(func() {
			for range 500 {
				addr, err := p.Allocate()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if held[addr] {
					t.Errorf("%s twice", addr)
				}
				held[addr] = true
				mu.Unlock()
				mu.Lock()
				delete(held, addr)
				mu.Unlock()
				p.Release(addr)
			}
		})
	}
	wg.Wait()
	if p.InUse() != 0 {
		t.Errorf("%d in use", p.InUse())
	}
}

func FuzzPool(f *testing.F) {
	f.Add("10.0.0.0/29", []byte{0, 0, 1, 2, 0})
	f.Add("fd00::/125", []byte{0, 2, 3, 0, 1, 1, 0})
	f.Fuzz(func(t *testing.T, text string, steps []byte) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil || len(steps) > 200 {
			return
		}
		p, err := NewPool(prefix)
		if err != nil {
			return
		}
		// The model is the set that is in use.
		used := make(map[netip.Addr]bool)
		addr := p.NodeAddress()
		for _, step := range steps {
			switch step % 3 {
			case 0:
				got, err := p.Allocate()
				if err == nil && (used[got] || !prefix.Contains(got) || got == prefix.Addr() || got == p.NodeAddress()) {
					t.Fatalf("handed out %s", got)
				}
				if err == nil {
					used[got], addr = true, got
				}
			case 1:
				p.Release(addr)
				delete(used, addr)
			case 2:
				for range step / 3 {
					addr = addr.Next()
				}
				if p.Claim(addr) == nil {
					if used[addr] {
						t.Fatalf("claimed %s twice", addr)
					}
					used[addr] = true
				}
			}
			if p.InUse() != len(used) {
				t.Fatalf("%d in use, want %d", p.InUse(), len(used))
			}
		}
	})
}

func BenchmarkAllocateRelease(b *testing.B) {
	p := mustPool(b, "10.0.0.0/16")
	b.ReportAllocs()
	for b.Loop() {
		addr, err := p.Allocate()
		if err != nil {
			b.Fatal(err)
		}
		p.Release(addr)
	}
}
