package route

import (
	"bytes"

	"github.com/sluice-mesh/sluice/mesh"
)

// ServiceTable returns the route table of a service's listener for a client's
// namespace, empty if no route is attached for it (GEP-1426: a consumer's routes
// replace the producer's).
func ServiceTable(l *mesh.Listener, clientNamespace string) string {
	if table, ok := l.ConsumerTables[clientNamespace]; ok && clientNamespace != "" {
		return table
	}
	if len(l.Chains) == 0 {
		return ""
	}
	return l.Chains[0].RouteTable
}

// BestChain returns the chain with the most specific server name for an authority:
// exact, then the longest suffix, then none; the first of equals.
func BestChain(l *mesh.Listener, authority []byte, tls bool) *mesh.Chain {
	host := hostOf(authority)
	var best *mesh.Chain
	bestScore := -1
	for i := range l.Chains {
		c := &l.Chains[i]
		if (len(c.Certificates) > 0 || c.Passthrough) != tls {
			continue
		}
		score := -1
		if len(c.ServerNames) == 0 {
			score = 0
		}
		for _, name := range c.ServerNames {
			score = max(score, nameScore(name, host))
		}
		if score > bestScore {
			best, bestScore = c, score
		}
	}
	return best
}

// nameScore says how well a pattern names a host, -1 if not at all.
func nameScore(pattern string, host []byte) int {
	if len(pattern) > 1 && pattern[0] == '*' && pattern[1] == '.' {
		suffix := pattern[1:]
		if len(host) > len(suffix) && equalFold(host[len(host)-len(suffix):], suffix) {
			return len(suffix)
		}
		return -1
	}
	if pattern == "*" || pattern == "" {
		return 0
	}
	if equalFold(host, pattern) {
		return 1 << 16
	}
	return -1
}

// equalFold compares a host with a lower-case name.
func equalFold(host []byte, name string) bool {
	if len(host) != len(name) {
		return false
	}
	for i := range host {
		c := host[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// hostOf returns an authority without its port and final dot.
func hostOf(authority []byte) []byte {
	if len(authority) > 0 && authority[0] == '[' {
		if i := bytes.IndexByte(authority, ']'); i > 0 {
			return authority[:i+1]
		}
		return authority
	}
	if i := bytes.LastIndexByte(authority, ':'); i >= 0 {
		authority = authority[:i]
	}
	return bytes.TrimSuffix(authority, []byte{'.'})
}
