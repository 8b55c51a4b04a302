package pool

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, path string, prefixes ...string) *Pool {
	t.Helper()
	var list []netip.Prefix
	for _, p := range prefixes {
		list = append(list, netip.MustParsePrefix(p))
	}
	p, err := Open(path, list, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSpans(t *testing.T) {
	for _, test := range []struct {
		prefix      string
		reserve     uint64
		first, last string
		size        uint64
	}{
		{"10.0.0.0/24", 0, "10.0.0.1", "10.0.0.254", 254},
		{"10.0.255.128/25", 16, "10.0.255.144", "10.0.255.254", 111},
		{"10.0.0.0/16", 256, "10.0.1.0", "10.0.255.254", 65279},
		{"10.0.0.4/32", 0, "10.0.0.4", "10.0.0.4", 1},
		{"10.0.0.4/31", 0, "10.0.0.4", "10.0.0.5", 2},
		{"fd00::/127", 0, "fd00::", "fd00::1", 2},
		{"fd00::ff00/120", 0, "fd00::ff01", "fd00::ffff", 255},
		{"fd00::/64", 0, "fd00::1", "fd00::ffff:ffff", maxSize - 1},
		{"0.0.0.0/0", 0, "0.0.0.1", "255.255.255.254", maxSize - 2},
	} {
		s := newSpan(netip.MustParsePrefix(test.prefix), test.reserve)
		if s.size != test.size || s.at(0).String() != test.first || s.at(s.size-1).String() != test.last {
			t.Errorf("%s: %d addresses from %s to %s", test.prefix, s.size, s.at(0), s.at(s.size-1))
		}
	}
}

func TestStaticBand(t *testing.T) {
	for prefix, want := range map[string]uint64{"10.96.0.0/12": 256, "10.96.0.0/16": 256, "10.96.0.0/24": 16, "10.96.0.0/20": 256, "10.96.0.0/22": 64, "10.96.0.0/28": 0, "fd00::/112": 256} {
		if got := StaticBand(netip.MustParsePrefix(prefix)); got != want {
			t.Errorf("%s: %d, want %d", prefix, got, want)
		}
	}
}

func TestEveryAddressOnce(t *testing.T) {
	p := open(t, "", "10.0.0.0/28")
	seen := map[netip.Addr]bool{}
	for i := range 14 {
		a, err := p.Take(fmt.Sprint("owner", i), true)
		if err != nil || seen[a] || !p.Contains(a) {
			t.Fatalf("%d: %s %v", i, a, err)
		}
		seen[a] = true
	}
	if _, err := p.Take("one more", true); !errors.Is(err, ErrExhausted) {
		t.Errorf("a full range: %v", err)
	}
	if _, err := p.Take("six", false); !errors.Is(err, ErrExhausted) {
		t.Errorf("a family that is not there: %v", err)
	}
	// What is released is reused only now, when nothing else is left.
	kept, _ := p.Take("owner3", true)
	p.Release("owner3")
	if a, err := p.Take("one more", true); err != nil || a != kept {
		t.Errorf("%s %v, want %s", a, err, kept)
	}
	if _, err := p.Take("owner3", true); !errors.Is(err, ErrExhausted) {
		t.Error("an address has two owners")
	}
}

func TestClaims(t *testing.T) {
	p := open(t, "", "10.0.0.0/24")
	a, _ := p.Take("a", true)
	err := p.Claim("b", a)
	if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "by a") {
		t.Errorf("%v", err)
	}
	if err := p.Claim("a", a); err != nil {
		t.Errorf("its own: %v", err)
	}
	p.Release("a")
	if err := p.Claim("b", a); err != nil {
		t.Errorf("a released one: %v", err)
	}
	if got, err := p.Take("a", true); err != nil || got == a {
		t.Errorf("a has %s %v", got, err)
	}
	outside := netip.MustParseAddr("192.0.2.1")
	if err := p.Claim("c", outside); err != nil {
		t.Errorf("outside: %v", err)
	}
	if err := p.Claim("d", outside); !errors.Is(err, ErrTaken) {
		t.Errorf("outside, again: %v", err)
	}
	// An owner keeps what it is told to.
	p.Release("b", a)
	if err := p.Claim("d", a); !errors.Is(err, ErrTaken) {
		t.Errorf("kept: %v", err)
	}
}

func TestRemembers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "addresses.json")
	p := open(t, path, "10.0.0.0/28", "fd00::/120")
	want := map[string]netip.Addr{}
	for i := range 6 {
		owner := fmt.Sprint("owner", i)
		want[owner], _ = p.Take(owner, true)
		if _, err := p.Take(owner, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Save(); err != nil {
		t.Fatal(err)
	}
	p = open(t, path, "10.0.0.0/28", "fd00::/120")
	for i := 5; i >= 0; i-- {
		owner := fmt.Sprint("owner", i)
		if !p.Remembers(owner, true) {
			t.Errorf("%s is forgotten", owner)
		}
		// Those who are not back yet keep theirs.
		if a, err := p.Take(fmt.Sprint("new", i), true); err == nil && a == want[owner] {
			t.Errorf("%s of %s was given away", a, owner)
		}
		if a, err := p.Take(owner, true); err != nil || a != want[owner] {
			t.Errorf("%s has %s %v, had %s", owner, a, err, want[owner])
		}
	}
	// Another range: nothing of the old one is given.
	p = open(t, path, "10.1.0.0/28")
	if a, err := p.Take("owner0", true); err != nil || !p.Contains(a) {
		t.Errorf("%s %v", a, err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("left beside the file: %v", entries)
	}
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, nil, 0); err == nil || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a broken file: %v", err)
	}
}
