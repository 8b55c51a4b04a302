package l7proxy

import (
	"net/netip"
	"sync"
)

// handshakes counts the TLS handshakes with clients that are under way on a Gateway's
// port. One costs the proxy far more than it costs the client, so that both their
// number and the share of one client's address are bounded. The lock is taken twice in
// a handshake, which takes a thousand times as long.
type handshakes struct {
	mu       sync.Mutex
	all      int                // guarded by mu
	byClient map[netip.Addr]int // guarded by mu
}

// clientOf is the address that a client is counted by: of IPv6 the network of 64 bits,
// in which one host can have any number of addresses (RFC 4291 §2.5.1).
func clientOf(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is4() {
		return a
	}
	p, _ := a.WithZone("").Prefix(64)
	return p.Addr()
}

// begin counts a handshake, or says whose limit is reached.
func (h *handshakes) begin(client netip.Addr, maxAll, maxClient int) (refused string) {
	client = clientOf(client)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.all >= maxAll:
		return "TLS handshakes of the listener"
	case h.byClient[client] >= maxClient:
		return "TLS handshakes of the client's address"
	}
	if h.byClient == nil {
		h.byClient = map[netip.Addr]int{}
	}
	h.all++
	h.byClient[client]++
	return ""
}

func (h *handshakes) end(client netip.Addr) {
	client = clientOf(client)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all--
	if h.byClient[client]--; h.byClient[client] == 0 {
		delete(h.byClient, client)
	}
}
