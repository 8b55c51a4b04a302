package route

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/sluice-mesh/sluice/mesh"
)

// Tables are the route tables of a node. One goroutine calls Apply; everything
// else may be called by any number of them at any time.
type Tables struct {
	// Prepare, if set before the first Apply, is called for each rule before it is
	// published: the place to fill Rule.Metrics.
	Prepare func(*Rule)

	tables index[table]

	mu      sync.Mutex
	refused map[string]error // by VirtualHost.Key(), guarded by mu
}

// table is the virtual hosts of one route table.
type table struct {
	exact    index[Host]
	wildcard index[Host] // by suffix: "example.com" for "*.example.com"
	any      atomic.Pointer[Host]
	hosts    atomic.Int64
}

// NewTables returns tables that know nothing.
func NewTables() *Tables { return &Tables{} }

// Apply takes over the virtual hosts of a delta and ignores everything else. It
// costs O(the rules of those virtual hosts). A virtual host that Validate refuses
// leaves the last good one of its name in place, and shows in Refused.
func (t *Tables) Apply(d mesh.Delta) {
	for _, r := range d.Upserts {
		if v, ok := r.(*mesh.VirtualHost); ok {
			t.upsert(v)
		}
	}
	for _, ref := range d.Removes {
		if ref.Kind == mesh.KindVirtualHost {
			t.remove(ref.Key)
		}
	}
}

func (t *Tables) upsert(v *mesh.VirtualHost) {
	key := v.Key()
	tb := t.tables.get(v.Table)
	var old *Host
	if tb != nil {
		old = tb.get(v.Hostname)
	}
	host, err := compile(v, old)
	t.note(key, err)
	if err != nil {
		return
	}
	if t.Prepare != nil {
		for i := range host.rules {
			t.Prepare(&host.rules[i])
		}
	}
	if tb == nil {
		tb = new(table)
	}
	tb.put(v.Hostname, host)
	if old == nil && tb.hosts.Add(1) == 1 {
		t.tables.put(v.Table, tb)
	}
}

func (t *Tables) remove(key string) {
	t.note(key, nil)
	i := strings.LastIndexByte(key, '/')
	if i < 0 {
		return
	}
	name, hostname := key[:i], key[i+1:]
	if hostname == "_" {
		hostname = "*"
	}
	tb := t.tables.get(name)
	if tb == nil || tb.get(hostname) == nil {
		return
	}
	tb.put(hostname, nil)
	if tb.hosts.Add(-1) == 0 {
		t.tables.put(name, nil)
	}
}

func (t *Tables) note(key string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		delete(t.refused, key)
	case t.refused == nil:
		t.refused = map[string]error{key: err}
	default:
		t.refused[key] = err
	}
}

// Refused returns the keys of the virtual hosts whose newest form could not be
// compiled, with the reason of each.
func (t *Tables) Refused() map[string]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.refused)
}

// Has reports whether any virtual host of the table is known.
func (t *Tables) Has(table string) bool { return t.tables.get(table) != nil }

// Match returns the rule that the request takes, and whether any virtual host of
// the table serves its authority. The rule is nil if there is none. It does not
// allocate once the memory of req has grown to its need.
func (t *Tables) Match(table string, req *Request) (rule *Rule, host bool) {
	h := t.host(table, req)
	if h == nil {
		return nil, false
	}
	if i := h.match(req); i >= 0 {
		return &h.rules[i], true
	}
	return nil, true
}

// Host returns the virtual host of the table that serves the authority, or nil:
// the exact name, else the longest wildcard, else "*" (Gateway API, Listener.hostname).
func (t *Tables) host(table string, req *Request) *Host {
	tb := t.tables.get(table)
	if tb == nil {
		return nil
	}
	var name []byte
	var ok bool
	if name, req.buf, ok = Hostname(req.buf, req.Authority); !ok {
		return nil
	}
	return tb.lookup(unsafe.String(unsafe.SliceData(name), len(name)))
}

// lookup must not keep name, whose bytes are the request's.
func (tb *table) lookup(name string) *Host {
	if h := tb.exact.get(name); h != nil {
		return h
	}
	for i := strings.IndexByte(name, '.'); i >= 0; {
		suffix := name[i+1:]
		if i > 0 {
			if h := tb.wildcard.get(suffix); h != nil {
				return h
			}
		}
		next := strings.IndexByte(suffix, '.')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return tb.any.Load()
}

func (tb *table) get(hostname string) *Host {
	if hostname == "*" {
		return tb.any.Load()
	}
	if suffix, ok := strings.CutPrefix(hostname, "*."); ok {
		return tb.wildcard.get(suffix)
	}
	return tb.exact.get(hostname)
}

func (tb *table) put(hostname string, h *Host) {
	if hostname == "*" {
		tb.any.Store(h)
	} else if suffix, ok := strings.CutPrefix(hostname, "*."); ok {
		tb.wildcard.put(suffix, h)
	} else {
		tb.exact.put(hostname, h)
	}
}

// String names the rule as people know it: "HTTPRoute/namespace/name rule 0 match 1".
func (r *Rule) String() string {
	s := fmt.Sprintf("%s/%s rule %d match %d", r.RouteKind, r.Route, r.RuleIndex, r.MatchIndex)
	if r.RuleName != "" {
		s += " (" + r.RuleName + ")"
	}
	return s
}
